//! Activation with real quotes: those of an emulated platform, verified down to its root. And how
//! fast that is.

mod common;

use bulla_attest::emulated::{Parameters, Provisioning, QuotingEnclave};
use bulla_coordinator::api::marble::ActivationReq;
use bulla_coordinator::attested::Verifier;
use bulla_coordinator::client::marble::{ActivateError, activate, self_signed, signing_request};
use bulla_coordinator::client::{Identity, Trust};
use bulla_coordinator::manifest::Subject;
use bulla_sgx::Report;
use common::{Server, TestPlatform, UUID};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

struct Machine {
    provisioning: Provisioning,
    quoting: QuotingEnclave,
}

impl Machine {
    fn new() -> Machine {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let provisioning = Provisioning::make(&Parameters::new([3; 16], now)).unwrap();
        let quoting = QuotingEnclave::new(&provisioning, Box::new(|_, _| true)).unwrap();
        Machine {
            provisioning,
            quoting,
        }
    }

    fn quote(&self, report_data: &[u8]) -> Vec<u8> {
        let mut bytes = [0; Report::SIZE];
        bytes[320..320 + report_data.len()].copy_from_slice(report_data);
        let mut report = Report::from_bytes(&bytes);
        report.mrenclave = [0x77; 32];
        report.mrsigner = [0x88; 32];
        report.isv_prod_id = 5;
        report.isv_svn = 6;
        report.cpu_svn = [3; 16];
        self.quoting.quote(&report.to_bytes()).unwrap()
    }
}

fn manifest(insecure: bool) -> Value {
    json!({
        "Packages": {"p": {"SignerID": "88".repeat(32), "ProductID": 5, "SecurityVersion": 6, "InsecureAllowEmulated": insecure}},
        "Marbles": {"m": {"Package": "p", "Parameters": {"Env": {"K": "{{ hex .Secrets.k }}"}}}},
        "Secrets": {"k": {"Type": "symmetric-key", "Size": 256}},
    })
}

async fn start(machine: &Machine, dir: &std::path::Path, insecure: bool) -> Server {
    let collateral = dir.join("collateral.json");
    std::fs::write(&collateral, machine.provisioning.collateral().to_json()).unwrap();
    let server = Server::on(
        dir,
        Box::new(Verifier::new(Some(&collateral))),
        Box::new(TestPlatform),
    )
    .await;
    server.set(&manifest(insecure)).await;
    server
}

fn request(machine: &Machine, uuid: &str) -> (Identity, ActivationReq) {
    let (identity, signer) = self_signed("marble").unwrap();
    let request = ActivationReq {
        quote: machine.quote(&bulla_coordinator::sha256(&identity.certificate)),
        csr: signing_request(&signer, &Subject::default(), &["localhost".to_owned()], &[]).unwrap(),
        marble_type: "m".to_owned(),
        uuid: uuid.to_owned(),
    };
    (identity, request)
}

fn reason(result: Result<bulla_coordinator::api::marble::ActivationResp, ActivateError>) -> String {
    result.unwrap_err().to_string()
}

#[tokio::test]
async fn real_quotes_are_verified_and_emulated_ones_need_an_insecure_word() {
    let machine = Machine::new();
    let dir = tempfile::tempdir().unwrap();
    let server = start(&machine, dir.path(), true).await;
    let (identity, good) = request(&machine, UUID);
    let send = async |request: &ActivationReq| {
        activate(&server.mesh, Trust::Any, &identity, request).await
    };
    assert!(send(&good).await.is_ok());
    // Every flipped byte of quote and certificates is noticed.
    for at in (0..good.quote.len()).step_by(97) {
        let mut changed = good.clone();
        changed.quote[at] ^= 0x40;
        assert!(send(&changed).await.is_err(), "byte {at}");
    }
    for length in [0, 1, 47, 48, 431, 435, good.quote.len() / 2] {
        let mut short = good.clone();
        short.quote.truncate(length);
        assert!(send(&short).await.is_err(), "{length} bytes");
    }
    // Another connection cannot replay it, another machine's root is unknown.
    let (thief, _) = request(&machine, UUID);
    let stolen = activate(&server.mesh, Trust::Any, &thief, &good).await;
    assert!(reason(stolen).contains("not made for the certificate"));
    let (stranger, foreign) = request(&Machine::new(), UUID);
    assert!(
        activate(&server.mesh, Trust::Any, &stranger, &foreign)
            .await
            .is_err()
    );

    let strict_dir = tempfile::tempdir().unwrap();
    let strict = start(&machine, strict_dir.path(), false).await;
    let refused = activate(&strict.mesh, Trust::Any, &identity, &good).await;
    assert!(reason(refused).contains("emulated platform"));
}

/// Prints activations per second, client and server on the same cores.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: run it alone, with --release and --nocapture"]
async fn speed_of_activation() {
    let machine = Machine::new();
    let dir = tempfile::tempdir().unwrap();
    let server = Arc::new(start(&machine, dir.path(), true).await);
    let mut registered = 0;
    for round in [10usize, 1000, 10_000] {
        // Requests are prepared first: making keys and quotes is the marbles' work.
        let requests: Vec<_> = (0..(round - registered).min(3000))
            .map(|_| request(&machine, &uuid::Uuid::new_v4().to_string()))
            .collect();
        let count = requests.len();
        let start = Instant::now();
        let tasks: Vec<_> = requests
            .into_iter()
            .map(|(identity, request)| {
                let server = server.clone();
                tokio::spawn(async move {
                    activate(&server.mesh, Trust::Any, &identity, &request)
                        .await
                        .unwrap();
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        registered += count;
        let rate = count as f64 / start.elapsed().as_secs_f64();
        println!("{registered} marbles: {rate:.0} activations per second");
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    println!("with the clients: {resident}");
    let mut times = Vec::new();
    for _ in 0..500 {
        let start = Instant::now();
        assert_eq!(server.get("/api/v2/status").await.0, 200);
        times.push(start.elapsed());
    }
    times.sort();
    println!(
        "GET /status on new connections: p50 {:?}, p99 {:?}",
        times[250], times[494]
    );
}
