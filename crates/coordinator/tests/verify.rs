//! What `bulla verify coordinator://…` says of this coordinator, and of those who stand in for one.

mod common;

use bulla_attest::bundle::{Origin, replay, write};
use bulla_attest::coordinator::{CoordinatorError, Shown, judge};
use bulla_attest::emulated::{Parameters, Provisioning, QuotingEnclave};
use bulla_attest::{Accept, HexBytes, Judge, Policy, Verdict};
use bulla_coordinator::quote::{NoPlatform, QuoteIssuer};
use bulla_sgx::Report;
use common::{Server, TestPlatform};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

fn now() -> u64 {
    UNIX_EPOCH.elapsed().unwrap().as_secs()
}

/// An emulated machine that quotes the coordinator.
struct Machine {
    provisioning: Provisioning,
    quoting: QuotingEnclave,
}

impl Machine {
    fn new() -> Machine {
        let provisioning = Provisioning::make(&Parameters::new([3; 16], now())).unwrap();
        let quoting = QuotingEnclave::new(&provisioning, Box::new(|_, _| true)).unwrap();
        Machine {
            provisioning,
            quoting,
        }
    }

    fn judge(&self, mrenclave: u8) -> Judge {
        Judge {
            policy: Policy {
                accept: vec![Accept {
                    mrenclave: vec![HexBytes([mrenclave; 32])],
                    ..Accept::default()
                }],
                insecure_allow_emulated: true,
                ..Policy::default()
            },
            source: Arc::new(self.provisioning.collateral().clone()),
            disclosed: None,
        }
    }
}

/// The machine's, for the coordinator; its report data may be replaced.
struct Issuer(Machine, Option<[u8; 64]>);

impl QuoteIssuer for Issuer {
    fn issue(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, String> {
        let mut report = Report::from_bytes(&[0; Report::SIZE]);
        report.report_data = self.1.unwrap_or(*report_data);
        report.mrenclave = [0x77; 32];
        report.cpu_svn = [3; 16];
        self.0
            .quoting
            .quote(&report.to_bytes())
            .map_err(|error| error.to_string())
    }
}

const LIMIT: Duration = Duration::from_secs(10);

async fn ask(judge_of: Judge, address: &str) -> Result<Verdict, CoordinatorError> {
    let address = address.to_owned();
    tokio::task::spawn_blocking(move || judge(&judge_of, &address, now(), LIMIT))
        .await
        .unwrap()
        .map(|judged| judged.verdict)
}

fn failed(verdict: &Verdict) -> Vec<&str> {
    verdict.failures().map(|check| check.check).collect()
}

#[tokio::test]
async fn this_coordinator_is_who_it_says() {
    let machine = Machine::new();
    let (good, other) = (machine.judge(0x77), machine.judge(0x78));
    let dir = tempfile::tempdir().unwrap();
    let issuer = Box::new(Issuer(machine, None));
    let server = Server::on(dir.path(), Box::new(TestPlatform), issuer).await;
    let verdict = ask(good, &server.client).await.unwrap();
    assert!(verdict.trusted, "{verdict}");
    assert!(
        verdict.to_string().contains("quoted, with our nonce"),
        "{verdict}"
    );
    let verdict = ask(other, &server.client).await.unwrap();
    assert_eq!(failed(&verdict), ["enclave"], "{verdict}");
    // The door for marbles is not a coordinator's: it wants a certificate.
    let closed = ask(Machine::new().judge(0x77), &server.mesh).await;
    assert!(matches!(closed, Err(CoordinatorError::Unreachable(_))));
}

/// What a coordinator showed can be judged again, with the nonce that it was asked with.
#[tokio::test]
async fn the_evidence_of_a_coordinator_is_kept() {
    let machine = Machine::new();
    let mut asker = machine.judge(0x77);
    let policy = format!(
        "insecure_allow_emulated = true\n[[accept]]\nmrenclave = \"{}\"\n",
        "77".repeat(32)
    );
    asker.policy = Policy::from_toml(policy.as_bytes()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let issuer = Box::new(Issuer(machine, None));
    let server = Server::on(dir.path(), Box::new(TestPlatform), issuer).await;
    let address = server.client.clone();
    let judged =
        tokio::task::spawn_blocking(move || judge(&asker, &address, now(), LIMIT).unwrap())
            .await
            .unwrap();
    let kept = dir.path().join("evidence");
    let origin = Origin::Coordinator(judged.shown.clone());
    write(&kept, &judged.evidence, &origin, &policy, None).unwrap();
    let again = replay(&kept).unwrap();
    assert!(again.trusted, "{again}");
    assert_eq!(again, judged.verdict);
    // Another nonce, another connection: another verdict, so the bundle is refused.
    for change in [
        (|shown: &mut Shown| shown.nonce[0] ^= 1) as fn(&mut Shown),
        |shown| shown.connection.clear(),
        |shown| shown.chain.clear(),
    ] {
        let mut shown = judged.shown.clone();
        change(&mut shown);
        let altered = serde_json::to_vec(&shown).unwrap();
        std::fs::write(kept.join("coordinator.json"), altered).unwrap();
        assert!(replay(&kept).is_err());
    }
}

#[tokio::test]
async fn a_quote_over_something_else_is_refused() {
    let machine = Machine::new();
    let judge = machine.judge(0x77);
    let dir = tempfile::tempdir().unwrap();
    let issuer = Box::new(Issuer(machine, Some([9; 64])));
    let server = Server::on(dir.path(), Box::new(TestPlatform), issuer).await;
    let verdict = ask(judge, &server.client).await.unwrap();
    assert_eq!(failed(&verdict), ["root certificate"], "{verdict}");
}

#[tokio::test]
async fn a_coordinator_outside_an_enclave_has_nothing_to_show() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::on(dir.path(), Box::new(TestPlatform), Box::new(NoPlatform)).await;
    let error = ask(Machine::new().judge(0x77), &server.client)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("without an enclave"), "{error}");
}

/// A TLS server with a key of its own that answers what it is told to; `extra` certificates follow
/// its own.
fn impostor(
    extra: Vec<Vec<u8>>,
    answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
) -> (String, Vec<u8>) {
    let plain = rcgen_self_signed();
    let chain = std::iter::once(plain.0.clone())
        .chain(extra)
        .map(Into::into)
        .collect();
    let key = PrivateKeyDer::try_from(plain.1).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (config, answer, stream) = (config.clone(), answer.clone(), stream.unwrap());
            std::thread::spawn(move || {
                let connection = ServerConnection::new(config).unwrap();
                let mut tls = StreamOwned::new(connection, stream);
                let (mut request, mut byte) = (Vec::new(), [0]);
                while !request.ends_with(b"\r\n\r\n") && tls.read(&mut byte).is_ok_and(|n| n == 1) {
                    request.push(byte[0]);
                }
                let text = String::from_utf8_lossy(&request).into_owned();
                let _ = tls.write_all(&answer(text.split(' ').nth(1).unwrap_or("")));
                tls.conn.send_close_notify();
                let _ = tls.flush();
            });
        }
    });
    (address, plain.0)
}

fn rcgen_self_signed() -> (Vec<u8>, Vec<u8>) {
    let (identity, _) = bulla_coordinator::client::marble::self_signed("impostor").unwrap();
    (identity.certificate.clone(), identity.key.to_vec())
}

fn http(body: &str) -> Vec<u8> {
    format!("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{body}").into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_relays_a_coordinators_answers_is_noticed() {
    let machine = Machine::new();
    let judge = machine.judge(0x77);
    let dir = tempfile::tempdir().unwrap();
    let issuer = Box::new(Issuer(machine, None));
    let server = Server::on(dir.path(), Box::new(TestPlatform), issuer).await;
    let (_, shown) = server.get("/api/v2/quote").await;
    let chain = bulla_attest::pem_certificates(shown["data"]["cert"].as_str().unwrap()).unwrap();
    let real = server.client.clone();
    // It asks the real one for each nonce, and shows the real root behind its own certificate.
    let handle = tokio::runtime::Handle::current();
    let server = Arc::new(server);
    let relay = server.clone();
    let (address, _) = impostor(vec![chain.last().unwrap().clone()], move |path| {
        let (_, answer) = handle.block_on(relay.get(path));
        http(&answer.to_string())
    });
    assert_ne!(address, real);
    let verdict = ask(judge, &address).await.unwrap();
    assert_eq!(failed(&verdict), ["connection"], "{verdict}");
}

#[tokio::test]
async fn an_older_coordinator_answers_without_a_nonce() {
    let machine = Machine::new();
    let (good, again) = (machine.judge(0x77), machine.judge(0x77));
    let issuer = Issuer(machine, None);
    // Filled in once the certificate is known.
    let answer = Arc::new(std::sync::Mutex::new(String::new()));
    let given = answer.clone();
    let (address, certificate) = impostor(Vec::new(), move |path| match path {
        "/quote" => http(&given.lock().unwrap()),
        _ => b"HTTP/1.0 404 Not Found\r\n\r\n".to_vec(),
    });
    let mut report_data = [0; 64];
    report_data[..32].copy_from_slice(&bulla_coordinator::sha256(&certificate));
    let body = |report_data: &[u8; 64]| {
        let quote = issuer.issue(report_data).unwrap();
        let quote = bulla_coordinator::quote::with_oe_header(&quote);
        use base64::{Engine, prelude::BASE64_STANDARD};
        serde_json::json!({"status": "success", "data": {
            "Cert": bulla_coordinator::x509::pem("CERTIFICATE", &certificate),
            "Quote": BASE64_STANDARD.encode(quote),
        }})
        .to_string()
    };
    *answer.lock().unwrap() = body(&report_data);
    let verdict = ask(good, &address).await.unwrap();
    assert!(verdict.trusted, "{verdict}");
    assert!(verdict.to_string().contains("without a nonce"), "{verdict}");
    report_data[40] = 1;
    *answer.lock().unwrap() = body(&report_data);
    let verdict = ask(again, &address).await.unwrap();
    assert_eq!(failed(&verdict), ["root certificate"], "{verdict}");
}

#[tokio::test]
async fn what_is_no_coordinator_is_said_in_time() {
    let answers: [(&str, Vec<u8>); 8] = [
        ("nothing", Vec::new()),
        ("no HTTP", b"220 mail ready\r\n\r\n".to_vec()),
        ("no JSON", http("<html>")),
        ("no data", http("{}")),
        (
            "no certificates",
            http("{\"data\":{\"cert\":\"\",\"quote\":\"AAAA\"}}"),
        ),
        (
            "no quote",
            http("{\"data\":{\"cert\":\"\",\"quote\":null}}"),
        ),
        ("not found", b"HTTP/1.0 404 Not Found\r\n\r\n".to_vec()),
        ("an error", b"HTTP/1.0 500 Oops\r\n\r\n{}".to_vec()),
    ];
    for (name, answer) in answers {
        let (address, _) = impostor(Vec::new(), move |_| answer.clone());
        let asked = ask(Machine::new().judge(0x77), &address).await;
        assert!(matches!(asked, Err(CoordinatorError::NotOne(_))), "{name}");
    }
    let (endless, _) = impostor(Vec::new(), |_| vec![b' '; (1 << 20) + 1]);
    let asked = ask(Machine::new().judge(0x77), &endless).await;
    assert!(matches!(asked, Err(CoordinatorError::Unreachable(_))));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let start = Instant::now();
    let asked = judge(
        &Machine::new().judge(0x77),
        &silent,
        now(),
        Duration::from_millis(300),
    );
    assert!(matches!(asked, Err(CoordinatorError::Unreachable(_))));
    assert!(start.elapsed() < Duration::from_secs(20));
}
