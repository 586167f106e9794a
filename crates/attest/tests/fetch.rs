//! Collateral over HTTP: a stand-in for a PCCS serves the saved collateral, or misbehaves.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bulla_attest::fetch::{INTEL, Options, Service, Trust};
use bulla_attest::{Collateral, CollateralSource, Quote, Saved, verify};
use common::{IN_DATE, Machine, real};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

fn encode(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => (byte as char).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// What a PCCS answers to a path.
fn answer(path: &str, collateral: &Collateral) -> Option<(String, Vec<u8>)> {
    let signed = |name: &str, text: &str, signature: &[u8]| {
        format!(
            "{{\"{name}\":{text},\"signature\":\"{}\"}}",
            hex::encode(signature)
        )
        .into_bytes()
    };
    Some(match path {
        "/sgx/certification/v4/tcb?fmspc=00a067110000" => (
            format!(
                "TCB-Info-Issuer-Chain: {}",
                encode(&collateral.tcb_info_issuer_chain)
            ),
            signed(
                "tcbInfo",
                &collateral.tcb_info,
                &collateral.tcb_info_signature,
            ),
        ),
        "/sgx/certification/v4/qe/identity" => (
            format!(
                "SGX-Enclave-Identity-Issuer-Chain: {}",
                encode(&collateral.qe_identity_issuer_chain)
            ),
            signed(
                "enclaveIdentity",
                &collateral.qe_identity,
                &collateral.qe_identity_signature,
            ),
        ),
        path if path.starts_with("/sgx/certification/v4/pckcrl?ca=") => (
            format!(
                "SGX-PCK-CRL-Issuer-Chain: {}",
                encode(&collateral.pck_crl_issuer_chain)
            ),
            collateral.pck_crl.clone(),
        ),
        "/sgx/certification/v4/rootcacrl" => (
            "X: y".into(),
            hex::encode(&collateral.root_ca_crl).into_bytes(),
        ),
        _ => return None,
    })
}

type Serve = dyn Fn(&str, &mut dyn Write) + Send + Sync;

/// A server; its address and the number of requests.
fn start(serve: Box<Serve>) -> (String, Arc<AtomicU32>) {
    start_as(None, serve)
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// The same, over TLS.
fn start_as(tls: Option<Arc<ServerConfig>>, serve: Box<Serve>) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let base = format!("{scheme}://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicU32::new(0));
    let (serve, counted) = (Arc::new(serve), count.clone());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve, counted) = (stream.unwrap(), serve.clone(), counted.clone());
            let tls = tls.clone();
            thread::spawn(move || {
                let mut stream: Box<dyn Stream> = match tls {
                    None => Box::new(stream),
                    Some(config) => {
                        let connection = ServerConnection::new(config).unwrap();
                        Box::new(StreamOwned::new(connection, stream))
                    }
                };
                let mut request = Vec::new();
                let mut byte = [0; 1];
                while !request.ends_with(b"\r\n\r\n")
                    && stream.read(&mut byte).is_ok_and(|n| n == 1)
                {
                    request.push(byte[0]);
                }
                if request.is_empty() {
                    return;
                }
                counted.fetch_add(1, Ordering::SeqCst);
                let text = String::from_utf8_lossy(&request).into_owned();
                serve(text.split(' ').nth(1).unwrap_or(""), &mut stream);
            });
        }
    });
    (base, count)
}

fn respond(stream: &mut dyn Write, status: &str, header: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status}\r\n{header}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
}

fn good(path: &str, stream: &mut dyn Write) {
    match answer(path, &real("sgx").1) {
        Some((header, body)) => respond(stream, "200 OK", &header, &body),
        None => respond(stream, "404 Not Found", "X: y", b""),
    }
}

#[test]
fn collateral_is_fetched_once_and_cached_until_it_expires() {
    let (quote, saved) = real("sgx");
    let decoded = Quote::decode(&quote).unwrap().0;
    let dir = tempfile::tempdir().unwrap();
    let (base, count) = start(Box::new(good));
    let service = Service::new(Options {
        cache: Some(dir.path().join("c")),
        ..Options::new(&base, Duration::from_secs(10))
    })
    .unwrap();
    let fetched = service.collateral(&decoded, IN_DATE).unwrap();
    assert_eq!(fetched, saved);
    verify(&quote, &fetched, IN_DATE).unwrap();
    let after_one = count.load(Ordering::SeqCst);
    assert_eq!(service.collateral(&decoded, IN_DATE + 60).unwrap(), saved);
    assert_eq!(count.load(Ordering::SeqCst), after_one, "from the cache");
    service
        .collateral(&decoded, IN_DATE + 365 * 86_400)
        .unwrap();
    assert!(
        count.load(Ordering::SeqCst) > after_one,
        "the cache had expired"
    );
    // What is cached is a directory of saved collateral.
    let directory = Saved {
        path: dir.path().join("c"),
    };
    assert_eq!(directory.collateral(&decoded, IN_DATE).unwrap(), saved);
    let tdx = Quote::decode(&real("tdx").0).unwrap().0;
    assert!(directory.collateral(&tdx, IN_DATE).is_err());
    // Nobody is asked about emulated platforms.
    let emulated = Machine::usual();
    let emulated = emulated.enclave.quote(&emulated.report.to_bytes()).unwrap();
    let before = count.load(Ordering::SeqCst);
    assert!(
        service
            .collateral(&Quote::decode(&emulated).unwrap().0, IN_DATE)
            .is_err()
    );
    assert_eq!(count.load(Ordering::SeqCst), before);
}

#[test]
fn services_that_misbehave_are_errors_in_time() {
    let decoded = Quote::decode(&real("sgx").0).unwrap().0;
    let cases: Vec<(&str, Box<Serve>)> = vec![
        (
            "silent",
            Box::new(|_, _| thread::sleep(Duration::from_secs(30))),
        ),
        (
            "slow",
            Box::new(|_, stream| {
                for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
                    .iter()
                    .cycle()
                {
                    if stream.write_all(&[*byte]).is_err() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
            }),
        ),
        (
            "endless",
            Box::new(|_, stream| {
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\nTCB-Info-Issuer-Chain: x\r\nConnection: close\r\n\r\n",
                );
                while stream.write_all(&[b' '; 4096]).is_ok() {}
            }),
        ),
        (
            "not HTTP",
            Box::new(|_, stream| {
                let _ = stream.write_all(b"220 mail ready\r\n");
            }),
        ),
        (
            "error",
            Box::new(|_, stream| respond(stream, "500 Oops", "X: y", b"{}")),
        ),
        (
            "no chain",
            Box::new(|_, stream| respond(stream, "200 OK", "X: y", b"{}")),
        ),
        (
            "no JSON",
            Box::new(|_, stream| {
                respond(stream, "200 OK", "TCB-Info-Issuer-Chain: x", b"<html>");
            }),
        ),
        (
            "redirects",
            Box::new(|path, stream| {
                respond(stream, "302 Found", &format!("Location: {path}x"), b"");
            }),
        ),
        (
            "endless headers",
            Box::new(|_, stream| {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
                while stream
                    .write_all(b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n")
                    .is_ok()
                {}
            }),
        ),
        (
            "oversize",
            Box::new(|_, stream| {
                let body = vec![b' '; (2 << 20) + 1];
                respond(stream, "200 OK", "TCB-Info-Issuer-Chain: x", &body);
            }),
        ),
        (
            "a chain that is not URL encoded",
            Box::new(|path, stream| {
                let (_, body) = answer(path, &real("sgx").1).unwrap();
                respond(stream, "200 OK", "TCB-Info-Issuer-Chain: %2", &body);
            }),
        ),
        ("hang-up", Box::new(|_, _| ())),
    ];
    for (name, serve) in cases {
        let (base, _) = start(serve);
        let service = Service::new(Options::new(&base, Duration::from_millis(800))).unwrap();
        let start = Instant::now();
        assert!(service.collateral(&decoded, IN_DATE).is_err(), "{name}");
        assert!(
            start.elapsed() < Duration::from_secs(25),
            "{name} was not given up"
        );
    }
    // Nonsense in the right shape is fetched, and refused by the verifier.
    let (base, _) = start(Box::new(|path, stream| {
        let mut wrong = real("sgx").1;
        wrong.tcb_info = wrong.tcb_info.replace("OutOfDate", "UpToDate");
        let (header, body) = answer(path, &wrong).unwrap();
        respond(stream, "200 OK", &header, &body);
    }));
    let service = Service::new(Options::new(&base, Duration::from_secs(10))).unwrap();
    let wrong = service.collateral(&decoded, IN_DATE).unwrap();
    assert!(verify(&real("sgx").0, &wrong, IN_DATE).is_err());
}

/// A certificate authority's certificate (PEM), and the configuration of a server it vouches for.
fn authority(name: &str) -> (String, Arc<ServerConfig>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_string()]).unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    (ca.pem(), Arc::new(config))
}

/// In pieces, as services behind a proxy answer.
fn respond_chunked(stream: &mut dyn Write, header: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 200 OK\r\n{header}\r\ntransfer-encoding: chunked\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
    for piece in body.chunks(1000) {
        let _ = stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes());
        let _ = stream.write_all(piece);
        let _ = stream.write_all(b"\r\n");
    }
    let _ = stream.write_all(b"0\r\n\r\n");
}

/// Intel's PCCS, version 4: a certificate of its own making, revocation lists in hexadecimal.
fn pccs(path: &str, stream: &mut dyn Write) {
    let Some((header, mut body)) = answer(path, &real("sgx").1) else {
        return respond(stream, "404 No cache data for this platform.", "X: y", b"");
    };
    if path.contains("pckcrl") {
        body = hex::encode(body).into_bytes();
    }
    let header = format!(
        "X-Powered-By: Express\r\nContent-Type: application/json\r\nRequest-ID: 1\r\n{header}"
    );
    respond(stream, "200 OK", &header, &body);
}

/// Intel's service, version 4: revocation lists in DER, the root's elsewhere.
fn intel(path: &str, stream: &mut dyn Write) {
    let found = answer(path, &real("sgx").1).filter(|_| !path.contains("rootcacrl"));
    match found {
        Some((header, body)) => {
            let header = format!("Request-ID: 7b\r\nContent-Type: application/json\r\n{header}");
            respond(stream, "200 OK", &header, &body);
        }
        None => respond(stream, "404 Not Found", "Request-ID: 7b", b""),
    }
}

/// Azure's THIM: header names in small letters, answers in chunks, lists in PEM.
fn azure(path: &str, stream: &mut dyn Write) {
    let path = path.strip_prefix("/metadata/THIM").unwrap_or(path);
    let collateral = real("sgx").1;
    let Some((header, mut body)) = answer(path, &collateral) else {
        return respond(stream, "404 Not Found", "x: y", b"");
    };
    let list = |der: &[u8]| pem::encode(&pem::Pem::new("X509 CRL", der)).into_bytes();
    if path.contains("pckcrl") {
        body = list(&collateral.pck_crl);
    }
    if path.contains("rootcacrl") {
        body = list(&collateral.root_ca_crl);
    }
    let (name, value) = header.split_once(':').unwrap();
    respond_chunked(stream, &format!("{}:{value}", name.to_lowercase()), &body);
}

#[test]
fn each_service_is_understood_over_tls_that_its_authority_vouches_for() {
    let (quote, saved) = real("sgx");
    let decoded = Quote::decode(&quote).unwrap().0;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (root_base, _) = start(Box::new(|_, stream| {
        respond(
            stream,
            "200 OK",
            "Content-Type: x",
            &real("sgx").1.root_ca_crl,
        );
    }));
    type Answer = fn(&str, &mut dyn Write);
    let cases: [(&str, Answer, &str, Option<String>); 4] = [
        ("PCCS", pccs, "", None),
        (
            "Intel",
            intel,
            "",
            Some(format!("{root_base}/IntelSGXRootCA.der")),
        ),
        ("THIM", azure, "", None),
        ("THIM of the host", azure, "/metadata/THIM", None),
    ];
    for (name, serve, path, root_crl) in cases {
        let (ca, config) = authority("127.0.0.1");
        let (base, count) = start_as(Some(config), Box::new(serve));
        let options = |trust: Trust| Options {
            trust,
            root_crl: root_crl.clone(),
            ..Options::new(&format!("{base}{path}/"), Duration::from_secs(10))
        };
        let ask = |trust: Trust| {
            Service::new(options(trust))
                .unwrap()
                .collateral(&decoded, IN_DATE)
        };
        let fetched = ask(Trust::File(file("ca.pem", &ca))).unwrap();
        assert_eq!(fetched, saved, "{name}");
        verify(&quote, &fetched, IN_DATE).unwrap();
        assert_eq!(ask(Trust::InsecureAny).unwrap(), saved, "{name}");
        let asked = count.load(Ordering::SeqCst);
        let (stranger, _) = authority("127.0.0.1");
        assert!(
            ask(Trust::File(file("other.pem", &stranger))).is_err(),
            "{name}"
        );
        assert!(ask(Trust::System).is_err(), "{name}");
        assert_eq!(
            count.load(Ordering::SeqCst),
            asked,
            "{name}: nothing was asked"
        );
    }
    // The right authority, for another machine.
    let (ca, config) = authority("pccs.example");
    let (base, _) = start_as(Some(config), Box::new(pccs));
    let options = Options {
        trust: Trust::File(file("ca.pem", &ca)),
        ..Options::new(&base, Duration::from_secs(10))
    };
    let service = Service::new(options).unwrap();
    assert!(service.collateral(&decoded, IN_DATE).is_err());
    for trust in ["", "no certificate"] {
        let options = Options {
            trust: Trust::File(file("empty.pem", trust)),
            ..Options::new(&base, Duration::from_secs(10))
        };
        assert!(Service::new(options).is_err());
    }
    let missing = Options {
        trust: Trust::File(dir.path().join("none.pem")),
        ..Options::new(&base, Duration::from_secs(10))
    };
    assert!(Service::new(missing).is_err());
    let intel = Options::new(INTEL, Duration::from_secs(1));
    assert!(
        intel
            .root_crl
            .is_some_and(|url| url.starts_with("https://certificates."))
    );
}

#[test]
fn tls_that_never_begins_is_given_up() {
    let decoded = Quote::decode(&real("sgx").0).unwrap().0;
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (plain, _) = start(Box::new(good));
    let bases = [
        format!("https://{}", silent.local_addr().unwrap()),
        plain.replace("http:", "https:"),
        "https://127.0.0.1:1".into(),
        "https://nobody.invalid".into(),
    ];
    for base in bases {
        let options = Options::new(&base, Duration::from_millis(800));
        let start = Instant::now();
        let service = Service::new(options).unwrap();
        assert!(service.collateral(&decoded, IN_DATE).is_err(), "{base}");
        assert!(start.elapsed() < Duration::from_secs(25), "{base}");
    }
    for base in [
        "gopher://127.0.0.1",
        "",
        "pccs.example",
        "https://",
        "https:///sgx",
    ] {
        let error = Service::new(Options::new(base, Duration::from_secs(1)))
            .err()
            .unwrap();
        assert!(error.to_string().contains("is no address"), "{error}");
    }
}
