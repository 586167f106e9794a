//! How long trust lasts: certificates over updates of the manifest, renewals, and what is taken back.

mod common;

use bulla_coordinator::api::marble::{ActivationReq, Parameters};
use bulla_coordinator::client::marble::{ActivateError, activate, self_signed, signing_request};
use bulla_coordinator::client::{Identity, Trust};
use bulla_coordinator::manifest::Subject;
use bulla_coordinator::pem_block;
use bulla_coordinator::quote::with_oe_header;
use common::{Server, UUID, manifest, manifest_body, test_quote};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::process::Command;

struct Cluster {
    server: Server,
    admin: Identity,
    other: Identity,
    manifest: Value,
    dir: tempfile::TempDir,
}

async fn cluster() -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let [admin, other] = ["admin", "other"].map(|name| self_signed(name).unwrap().0);
    let manifest = manifest(&admin, &other);
    server.set(&manifest).await;
    Cluster {
        server,
        admin,
        other,
        manifest,
        dir,
    }
}

impl Cluster {
    async fn update(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.manifest);
        let body = manifest_body(&self.manifest);
        for (path, who) in [
            ("/api/v2/update", &self.admin),
            ("/api/v2/update-manifest", &self.other),
        ] {
            let (code, said) = self.server.post(path, body.clone(), Some(who)).await;
            assert_eq!(code, 200, "{said}");
        }
    }

    /// An activation by the holder of a certificate.
    async fn renew(&self, identity: &Identity, uuid: &str) -> Result<Parameters, ActivateError> {
        let (_, signer) = self_signed("marble").unwrap();
        let request = ActivationReq {
            quote: with_oe_header(&test_quote(&Sha256::digest(&identity.certificate), |_| {})),
            csr: signing_request(&signer, &Subject::default(), &[], &[]).unwrap(),
            marble_type: "backend".to_owned(),
            uuid: uuid.to_owned(),
        };
        let answer = activate(&self.server.mesh, Trust::Any, identity, &request).await?;
        Ok(answer.parameters.unwrap())
    }
}

fn text(parameters: &Parameters, name: &str) -> String {
    String::from_utf8(parameters.env[name].clone()).unwrap()
}

fn identity(parameters: &Parameters) -> Identity {
    let chain = text(parameters, "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN");
    let key = text(parameters, "MARBLE_PREDEFINED_PRIVATE_KEY");
    Identity {
        certificate: pem_block(&chain, "CERTIFICATE").unwrap(),
        key: pem_block(&key, "PRIVATE KEY").unwrap(),
    }
}

#[tokio::test]
async fn the_first_renewal_after_an_update_takes_nothing_of_the_budget() {
    let mut c = cluster().await;
    let strangers: Vec<Identity> = (0..2).map(|_| self_signed("marble").unwrap().0).collect();
    let other = "00000000-0000-4000-8000-000000000001";
    let marble = identity(&c.renew(&strangers[0], UUID).await.unwrap());
    c.renew(&strangers[1], other).await.unwrap();
    // Two of two are there. The update's issuer is another, and so is that of the next.
    for n in 0..2 {
        c.update(|manifest| {
            manifest["Marbles"]["backend"]["Parameters"]["Env"]["N"] = json!(n.to_string());
        })
        .await;
    }
    let renewed = c.renew(&marble, UUID).await.unwrap();
    assert_eq!(text(&renewed, "N"), "1");
    c.renew(&identity(&renewed), UUID).await.unwrap();
    // As somebody else, by a certificate of nobody's, or for another manifest's coordinator it counts.
    let foreign = {
        let elsewhere = cluster().await;
        identity(&elsewhere.renew(&strangers[0], UUID).await.unwrap())
    };
    for (who, uuid) in [(&marble, other), (&strangers[0], UUID), (&foreign, UUID)] {
        let refused = c.renew(who, uuid).await.unwrap_err().to_string();
        assert!(refused.contains("reached max activations"), "{refused}");
    }
}

fn openssl(dir: &Path, words: &str) -> (bool, String) {
    let output = Command::new("openssl")
        .args(words.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[tokio::test]
async fn certificates_of_an_earlier_manifest_can_be_taken_back() {
    let mut c = cluster().await;
    let other = "00000000-0000-4000-8000-000000000001";
    let write = |name: &str, content: &str| {
        std::fs::write(c.dir.path().join(name), content).unwrap();
    };
    for (name, uuid) in [("one", UUID), ("two", other)] {
        let made = c.renew(&self_signed("marble").unwrap().0, uuid).await;
        let made = made.unwrap();
        let chain = text(&made, "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN");
        write(name, &chain);
        write(
            "root",
            &text(&made, "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"),
        );
    }
    c.update(|manifest| manifest["Marbles"]["backend"]["MaxActivations"] = json!(9))
        .await;
    // What a peer says that has the root alone, and the lists that are there now.
    let verify = async |name: &str| {
        let lists = c.server.get("/api/v2/crl").await.1;
        let lists = lists["data"]["crl"].as_str().unwrap();
        assert_eq!(lists.matches("BEGIN X509 CRL").count(), 3);
        std::fs::write(c.dir.path().join("lists"), lists).unwrap();
        openssl(
            c.dir.path(),
            &format!("verify -crl_check -CRLfile lists -CAfile root -untrusted {name} {name}"),
        )
    };
    for name in ["one", "two"] {
        let (is_good, said) = verify(name).await;
        assert!(is_good, "{said}");
    }
    let body = json!({"marbles": [UUID]});
    let (code, said) = c.server.post("/api/v2/revoked", body, Some(&c.admin)).await;
    assert_eq!(code, 200, "{said}");
    let (is_good, said) = verify("one").await;
    assert!(!is_good && said.contains("certificate revoked"), "{said}");
    let (is_good, said) = verify("two").await;
    assert!(is_good, "{said}");
    // It gets no further certificate, though it shows one.
    let (_, chain) = openssl(c.dir.path(), "x509 -in one");
    let shown = Identity {
        certificate: pem_block(&chain, "CERTIFICATE").unwrap(),
        ..self_signed("marble").unwrap().0
    };
    assert!(c.renew(&shown, UUID).await.is_err());
}

#[tokio::test]
async fn certificates_live_as_long_as_the_manifest_says() {
    let mut c = cluster().await;
    let life = async |c: &Cluster| {
        let made = c.renew(&self_signed("marble").unwrap().0, UUID).await;
        let leaf = identity(&made.unwrap()).certificate;
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        leaf.validity()
            .time_to_expiration()
            .unwrap()
            .whole_minutes()
    };
    assert!((24 * 60 - 5..=24 * 60).contains(&life(&c).await));
    c.update(|manifest| {
        manifest["Config"]["MarbleCertificateHours"] = json!(2);
        manifest["Marbles"]["backend"]["MaxActivations"] = json!(9);
    })
    .await;
    assert!((115..=120).contains(&life(&c).await));
    c.update(|manifest| {
        manifest["Config"] = json!({"MarbleCertificateMinutes": 10});
    })
    .await;
    assert!((5..=10).contains(&life(&c).await));
    let mut both = c.manifest.clone();
    both["Config"]["MarbleCertificateHours"] = json!(2);
    let update = c
        .server
        .post("/api/v2/update", manifest_body(&both), Some(&c.admin));
    let (code, said) = update.await;
    assert_eq!(code, 500, "{said}");
    assert!(
        said.to_string().contains("MarbleCertificateMinutes"),
        "{said}"
    );
}

/// A peer that checks by lists has loaded them before the update; a new marble is new after it.
#[tokio::test]
async fn lists_that_are_older_than_an_update_are_enough_for_a_new_marble() {
    let mut c = cluster().await;
    for round in 0..3 {
        let lists = c.server.get("/api/v2/crl").await.1;
        let lists = lists["data"]["crl"].as_str().unwrap().to_owned();
        std::fs::write(c.dir.path().join("lists"), lists).unwrap();
        c.update(|manifest| manifest["Marbles"]["backend"]["MaxActivations"] = json!(9 + round))
            .await;
        let uuid = uuid::Uuid::new_v4().to_string();
        let made = c
            .renew(&self_signed("marble").unwrap().0, &uuid)
            .await
            .unwrap();
        for (file, name) in [
            ("leaf", "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"),
            ("root", "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"),
        ] {
            std::fs::write(c.dir.path().join(file), text(&made, name)).unwrap();
        }
        let (is_good, said) = openssl(
            c.dir.path(),
            "verify -crl_check -CRLfile lists -CAfile root -untrusted leaf leaf",
        );
        assert!(is_good, "{said}");
    }
}
