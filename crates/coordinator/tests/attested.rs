//! Activation with real quotes: those of an emulated platform, verified down to its root.

mod common;

use bulla_coordinator::api::marble::ActivationReq;
use bulla_coordinator::attested::Verifier;
use bulla_coordinator::client::Trust;
use bulla_coordinator::client::marble::{ActivateError, activate};
use common::machine::Machine;
use common::{Server, TestPlatform, UUID};
use serde_json::{Value, json};

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

fn reason(result: Result<bulla_coordinator::api::marble::ActivationResp, ActivateError>) -> String {
    result.unwrap_err().to_string()
}

#[tokio::test]
async fn real_quotes_are_verified_and_emulated_ones_need_an_insecure_word() {
    let machine = Machine::new();
    let dir = tempfile::tempdir().unwrap();
    let server = start(&machine, dir.path(), true).await;
    let (identity, good) = machine.marble(UUID);
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
    let (thief, _) = machine.marble(UUID);
    let stolen = activate(&server.mesh, Trust::Any, &thief, &good).await;
    assert!(reason(stolen).contains("not made for the certificate"));
    let (stranger, foreign) = Machine::new().marble(UUID);
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
