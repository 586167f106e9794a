//! The wire, request by request, over real TLS, against the tables of MarbleRun's interface.

mod common;

use base64::{Engine, prelude::BASE64_STANDARD};
use bulla_coordinator::api::marble::{ActivationReq, ActivationResp};
use bulla_coordinator::client::marble::{ActivateError, activate, self_signed, signing_request};
use bulla_coordinator::client::{Identity, Trust};
use bulla_coordinator::manifest::Subject;
use bulla_coordinator::quote::with_oe_header;
use common::{Server, UUID, b64, manifest, manifest_body, test_quote, user_pem};
use ring::signature as alg;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::*;

fn certificates(pem: &str) -> Vec<Vec<u8>> {
    Pem::iter_from_buffer(pem.as_bytes())
        .map(|block| block.unwrap().contents)
        .collect()
}

fn public_key(der: &[u8]) -> Vec<u8> {
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    certificate.public_key().subject_public_key.data.to_vec()
}

/// ECDSA P-384 over SHA-256, as MarbleRun's clients verify it.
fn verifies_sha256(root: &[u8], message: &[u8], signature: &[u8]) -> bool {
    use p384::ecdsa::signature::hazmat::PrehashVerifier;
    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(&public_key(root)).unwrap();
    let signature = p384::ecdsa::Signature::from_der(signature).unwrap();
    key.verify_prehash(&Sha256::digest(message), &signature)
        .is_ok()
}

struct Cluster {
    server: Server,
    admin: Identity,
    other: Identity,
    manifest: Value,
    root: Vec<u8>,
    _dir: tempfile::TempDir,
}

async fn cluster() -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let admin = self_signed("admin").unwrap().0;
    let other = self_signed("other").unwrap().0;
    let manifest = manifest(&admin, &other);
    let data = server.set(&manifest).await;
    assert_eq!(data, json!({}), "no recovery keys, no recovery secrets");
    let quote = server.get("/api/v2/quote").await.1;
    let root = certificates(quote["data"]["cert"].as_str().unwrap())[1].clone();
    Cluster {
        server,
        admin,
        other,
        manifest,
        root,
        _dir: dir,
    }
}

fn refusal(
    result: Result<bulla_coordinator::api::marble::ActivationResp, ActivateError>,
) -> (i32, String) {
    match result {
        Err(ActivateError::Refused { code, message }) => (code, message),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn before_a_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let (code, answer) = server.get("/api/v2/status").await;
    assert_eq!(code, 200);
    assert_eq!(
        answer,
        json!({"status": "success", "data": {"code": 2, "message": "Coordinator is ready to accept a manifest."}})
    );
    assert_eq!(
        server.get("/status").await.1,
        json!({"status": "success", "data": {"StatusCode": 2, "StatusMessage": "Coordinator is ready to accept a manifest."}})
    );
    assert_eq!(server.get("/api/v2/manifest").await.0, 500);
    assert_eq!(
        server.get("/manifest").await,
        (
            200,
            json!({"status": "success", "data": {"ManifestSignatureRootECDSA": null, "ManifestSignature": "", "Manifest": null}})
        )
    );
    for path in [
        "/api/v2/update",
        "/api/v2/update-manifest",
        "/api/v2/recover/public-key",
    ] {
        let (code, answer) = server.get(path).await;
        assert_eq!(code, 500, "{path}");
        assert_eq!(
            answer["message"], "server is not in expected state",
            "{path}"
        );
        assert_eq!(answer["status"], "error");
        assert_eq!(answer["data"], Value::Null);
    }
    assert_eq!(
        refusal(server.activate("backend", UUID).await),
        (9, "cannot accept marbles in current state".to_owned())
    );
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/api/v2"),
        ("GET", "/api/v2/nothing"),
        ("GET", "/api/v3/status"),
        ("POST", "/api/v2/status"),
        ("DELETE", "/api/v2/manifest"),
        ("PUT", "/status"),
        ("GET", "/api/v2/recover"),
    ] {
        let (code, answer) = server.send(method, path, None, None).await;
        assert_eq!(code, 405, "{method} {path}");
        assert_eq!(answer["status"], "error");
    }
    assert_eq!(
        server.send("POST", "/recover", Some(b"x"), None).await.0,
        410
    );
}

#[tokio::test]
async fn quote_binds_root_and_nonce() {
    let c = cluster().await;
    let (code, answer) = c.server.get("/api/v2/quote?nonce=AQL_").await;
    assert_eq!(code, 200);
    let pem = answer["data"]["cert"].as_str().unwrap();
    let chain = certificates(pem);
    let [intermediate, root] = chain.as_slice() else {
        panic!("{pem}")
    };
    let quote = b64(&answer["data"]["quote"]);
    assert_eq!(quote[..8], [1, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(
        u64::from_le_bytes(quote[8..16].try_into().unwrap()) as usize,
        quote.len() - 16
    );
    let quote: Value = serde_json::from_slice(&quote[16..]).unwrap();
    let expected = Sha256::new()
        .chain_update(root)
        .chain_update([1, 2, 0xff])
        .finalize();
    assert_eq!(
        quote["report_data"].as_str().unwrap()[..64],
        hex::encode(expected)
    );
    assert_eq!(c.server.get("/api/v2/quote?nonce=!!").await.0, 400);
    assert!(
        c.server.get("/quote").await.1["data"]["Cert"]
            .as_str()
            .unwrap()
            .ends_with(&pem[pem.len() - 100..])
    );
    // The server's own certificate is the root, alone.
    let rest = bulla_coordinator::client::Rest {
        address: c.server.client.clone(),
        trust: bulla_coordinator::client::Trust::Pinned(root.clone()),
        identity: None,
        token: None,
    };
    let (_, _, served) = rest.raw("GET", "/status", None).await.unwrap();
    assert_eq!(served, *root);
    let (_, root_certificate) = X509Certificate::from_der(root).unwrap();
    let (_, intermediate) = X509Certificate::from_der(intermediate).unwrap();
    assert!(root_certificate.is_ca() && intermediate.is_ca());
    assert_eq!(
        root_certificate.subject().to_string(),
        "CN=MarbleRun Coordinator"
    );
    assert_eq!(
        intermediate.subject().to_string(),
        "CN=MarbleRun Coordinator - Intermediate CA"
    );
    root_certificate.verify_signature(None).unwrap();
    intermediate
        .verify_signature(Some(root_certificate.public_key()))
        .unwrap();
}

#[tokio::test]
async fn manifest_is_signed_and_returned_to_the_byte() {
    let c = cluster().await;
    let raw = c.manifest.to_string();
    let (code, answer) = c.server.get("/api/v2/manifest").await;
    assert_eq!(code, 200);
    let data = &answer["data"];
    assert_eq!(b64(&data["manifest"]), raw.as_bytes());
    assert_eq!(
        data["manifestFingerprint"],
        hex::encode(Sha256::digest(&raw))
    );
    assert!(verifies_sha256(
        &c.root,
        raw.as_bytes(),
        &b64(&data["manifestSignatureRootECDSA"])
    ));
    let v1 = c.server.get("/manifest").await.1;
    assert_eq!(v1["data"]["ManifestSignature"], data["manifestFingerprint"]);
    assert!(verifies_sha256(
        &c.root,
        raw.as_bytes(),
        &b64(&v1["data"]["ManifestSignatureRootECDSA"])
    ));
    // A second one is refused, in both versions.
    for (path, body) in [
        ("/api/v2/manifest", manifest_body(&c.manifest)),
        ("/manifest", c.manifest.clone()),
    ] {
        let (code, answer) = c.server.post(path, body, None).await;
        assert_eq!(
            (code, answer["message"].as_str().unwrap()),
            (500, "server is not in expected state")
        );
    }
    assert_eq!(c.server.get("/status").await.1["data"]["StatusCode"], 3);
    let log = c.server.get("/api/v2/update").await.1;
    let lines = log["data"]["updateLog"].as_array().unwrap();
    assert_eq!(lines.len(), 1);
    let line: Value = serde_json::from_str(lines[0].as_str().unwrap()).unwrap();
    assert_eq!(line["update"], "Initial manifest set");
    assert!(lines[0].as_str().unwrap().starts_with("{\"time\":\""));
}

#[tokio::test]
async fn bad_requests_are_fail_in_v2_and_error_in_v1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    for body in [
        "",
        "{",
        "[]",
        "\"x\"",
        "{\"manifest\":1}",
        "{\"manifest\":\"?\"}",
    ] {
        let (code, answer) = server
            .send("POST", "/api/v2/manifest", Some(body.as_bytes()), None)
            .await;
        assert_eq!(
            (code, answer["status"].as_str().unwrap()),
            (400, "fail"),
            "{body}: {answer}"
        );
        assert_eq!(answer["data"], Value::Null);
    }
    // What parses but is no acceptable manifest is an error of the server's logic.
    for (manifest, message) in [
        (json!({}), "no allowed packages defined"),
        (
            json!({"Packages": {"p": {"UniqueID": "00"}}}),
            "no allowed marbles defined",
        ),
        (
            json!({"Packages": {"p": {"UniqueID": "00"}}, "Marbles": {"m": {"Package": "q"}}}),
            "manifest does not contain marble package q",
        ),
        (
            json!({"Packages": {"p": {"UniqueID": "00"}}, "Marbles": {"m": {"Package": "p", "Parameters": {"Env": {"A": "{{ hex .Secrets.x }}"}}}}}),
            "secret does not exist",
        ),
    ] {
        let (code, answer) = server
            .post("/api/v2/manifest", manifest_body(&manifest), None)
            .await;
        assert_eq!((code, answer["status"].as_str().unwrap()), (500, "error"));
        assert!(
            answer["message"].as_str().unwrap().contains(message),
            "{answer}"
        );
        let (code, answer) = server.post("/manifest", manifest, None).await;
        assert_eq!((code, answer["status"].as_str().unwrap()), (500, "error"));
    }
    let huge = vec![b' '; 33 << 20];
    let (code, _) = server
        .send("POST", "/api/v2/manifest", Some(&huge), None)
        .await;
    assert_eq!(code, 400);
    assert_eq!(
        server.get("/api/v2/status").await.1["data"]["code"],
        2,
        "nothing was set"
    );
}

#[tokio::test]
async fn users_read_and_write_secrets() {
    let c = cluster().await;
    let stranger = self_signed("admin").unwrap().0;
    let path = "/api/v2/secrets";
    let token = json!({"secrets": {"token": {"Key": BASE64_STANDARD.encode("open sesame")}}});
    for identity in [None, Some(&stranger), Some(&c.other)] {
        let (code, answer) = c.server.post(path, token.clone(), identity).await;
        assert_eq!((code, answer["status"].as_str().unwrap()), (401, "fail"));
        assert_eq!(
            c.server
                .send("GET", "/api/v2/secrets?s=token", None, identity)
                .await
                .0,
            401
        );
        assert_eq!(
            c.server
                .send("GET", "/secrets?s=token", None, identity)
                .await
                .0,
            401
        );
    }
    let get = async |query: &str| {
        c.server
            .send("GET", &format!("{path}{query}"), None, Some(&c.admin))
            .await
    };
    for query in ["", "?s=", "?s=token&s=", "?x=1", "?s=%zz"] {
        let (code, answer) = get(query).await;
        assert_eq!(
            (code, answer["status"].as_str().unwrap()),
            (400, "fail"),
            "{query}"
        );
    }
    // The same answer, whether the secret exists or not.
    let of = |answer: (u16, Value), name: &str| {
        (
            answer.0,
            answer.1["message"].as_str().unwrap().replace(name, "NAME"),
        )
    };
    assert_eq!(
        of(get("?s=own").await, "own"),
        of(get("?s=nothing").await, "nothing")
    );
    assert_eq!(get("?s=token").await.0, 500, "not set yet");
    assert_eq!(
        c.server.post(path, token, Some(&c.admin)).await,
        (200, json!({"status": "success", "data": null}))
    );
    let (code, answer) = get("?s=token").await;
    assert_eq!(code, 200);
    let expected = json!({
        "Type": "plain", "Size": 0, "Shared": false, "UserDefined": true, "Cert": null, "ValidFor": 0,
        "Private": BASE64_STANDARD.encode("open sesame"), "Public": BASE64_STANDARD.encode("open sesame"),
    });
    assert_eq!(answer["data"]["secrets"]["token"], expected);
    let v1 = c
        .server
        .send("GET", "/secrets?s=token", None, Some(&c.admin))
        .await;
    assert_eq!(v1.1["data"]["token"], expected, "version 1 has no wrapper");
    // Wrong sizes, wrong parts.
    for wrong in [
        json!({"upload": {"Key": BASE64_STANDARD.encode("short")}}),
        json!({"upload": {}}),
        json!({"token": {"Cert": "AAAA"}}),
        json!({"token": {"Key": ""}}),
    ] {
        let (code, answer) = c
            .server
            .post(path, json!({"secrets": wrong}), Some(&c.admin))
            .await;
        assert_eq!(code, 500, "{wrong}: {answer}");
    }
    // One that a template would choke on does not get in.
    let nul = json!({"secrets": {"token": {"Key": BASE64_STANDARD.encode("a\0b")}}});
    let (code, answer) = c.server.post(path, nul, Some(&c.admin)).await;
    assert_eq!(code, 500);
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("in Marble reader: env variable TOKEN:"),
        "{answer}"
    );
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("secret contains null bytes"),
        "{answer}"
    );
    let env = c
        .server
        .activate("reader", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap()
        .env;
    assert_eq!(env["TOKEN"], b"open sesame");
}

#[tokio::test]
async fn activation_gives_what_the_manifest_says() {
    let c = cluster().await;
    let parameters = c
        .server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    assert_eq!(parameters.argv, ["backend", "{{ not a template }}"]);
    assert_eq!(parameters.files["/plain"], b"Hello {{ x }}");
    let text = |name: &str| String::from_utf8(parameters.env[name].clone()).unwrap();
    assert_eq!(hex::encode(&parameters.files["/raw"]), text("SHARED"));
    assert!(parameters.files["/key"].starts_with(b"-----BEGIN PRIVATE KEY-----"));
    assert_eq!(text("MARBLE_PREDEFINED_ROOT_CA"), text("ROOT"));
    let chain = certificates(&text("MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"));
    let marble_root = certificates(&text("MARBLE_PREDEFINED_ROOT_CA")).remove(0);
    let coordinator_root = certificates(&text("MARBLE_PREDEFINED_COORDINATOR_ROOT_CA")).remove(0);
    assert_eq!(coordinator_root, c.root);
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let (_, intermediate) = X509Certificate::from_der(&chain[1]).unwrap();
    let (_, marble_root) = X509Certificate::from_der(&marble_root).unwrap();
    let (_, root) = X509Certificate::from_der(&coordinator_root).unwrap();
    // The twins: one name, one key, one key identifier.
    assert_eq!(
        intermediate.subject().as_raw(),
        marble_root.subject().as_raw()
    );
    assert_eq!(intermediate.public_key(), marble_root.public_key());
    leaf.verify_signature(Some(marble_root.public_key()))
        .unwrap();
    marble_root.verify_signature(None).unwrap();
    intermediate
        .verify_signature(Some(root.public_key()))
        .unwrap();
    assert_eq!(leaf.issuer().as_raw(), intermediate.subject().as_raw());
    assert_eq!(leaf.subject().to_string(), format!("CN={UUID}"));
    assert!(!leaf.is_ca());
    let oid = oid_registry::Oid::from(&[1, 3, 9903, 2, 1]).unwrap();
    let kind = leaf.get_extension_unique(&oid).unwrap().unwrap();
    assert!(!kind.critical);
    assert_eq!(kind.value, b"backend");
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_agreement() && !usage.key_cert_sign());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(
        names.value.general_names,
        [GeneralName::DNSName("localhost")]
    );
    let hours =
        (leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp()) / 3600;
    assert_eq!(hours, 24);
    // The private key is the leaf's.
    let key = certificates(&text("MARBLE_PREDEFINED_PRIVATE_KEY")).remove(0);
    let pair = alg::EcdsaKeyPair::from_pkcs8(
        &alg::ECDSA_P384_SHA384_ASN1_SIGNING,
        &key,
        &ring::rand::SystemRandom::new(),
    )
    .unwrap();
    assert_eq!(
        alg::KeyPair::public_key(&pair).as_ref(),
        public_key(&chain[0])
    );
    // Transparent TLS.
    let ttls: Value = serde_json::from_str(&text("MARBLE_TTLS_CONFIG")).unwrap();
    assert_eq!(ttls["tls"]["Incoming"]["*:443"]["clientAuth"], true);
    assert_eq!(ttls["tls"]["Incoming"]["*:443"]["cacrt"], text("ROOT"));
    assert_eq!(
        ttls["tls"]["Outgoing"]["db:5432"]["clicrt"],
        text("MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN")
    );
    // The same marble again: its own key again, a new certificate.
    let again = c
        .server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    assert_eq!(again.env["OWN"], parameters.env["OWN"]);
    assert_ne!(
        again.env["MARBLE_PREDEFINED_PRIVATE_KEY"],
        parameters.env["MARBLE_PREDEFINED_PRIVATE_KEY"]
    );
    let (code, message) = refusal(c.server.activate("backend", UUID).await);
    assert_eq!(
        (code, message.as_str()),
        (
            7,
            "marble verification failed: reached max activations count for marble type"
        )
    );
}

#[tokio::test]
async fn a_renewal_takes_nothing_of_the_budget() {
    let c = cluster().await;
    let other = "00000000-0000-4000-8000-000000000001";
    let send = async |identity: &Identity, uuid: &str| {
        let (_, signer) = self_signed("marble").unwrap();
        let request = ActivationReq {
            quote: with_oe_header(&test_quote(&Sha256::digest(&identity.certificate), |_| {})),
            csr: signing_request(&signer, &Subject::default(), &[], &[]).unwrap(),
            marble_type: "backend".to_owned(),
            uuid: uuid.to_owned(),
        };
        activate(&c.server.mesh, Trust::Any, identity, &request).await
    };
    let leaf = |answer: ActivationResp| {
        let parameters = answer.parameters.unwrap();
        let text = |name: &str| String::from_utf8(parameters.env[name].clone()).unwrap();
        let chain = text("MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN");
        Identity {
            certificate: certificates(&chain).remove(0),
            key: certificates(&text("MARBLE_PREDEFINED_PRIVATE_KEY")).remove(0),
        }
    };
    let stranger = self_signed("marble").unwrap().0;
    let mut marble = leaf(send(&stranger, UUID).await.unwrap());
    for _ in 0..3 {
        marble = leaf(send(&marble, UUID).await.unwrap());
    }
    // As somebody else it is one more instance, of which there is one left.
    send(&marble, other).await.unwrap();
    for (identity, uuid) in [(&marble, other), (&stranger, UUID)] {
        let (_, message) = refusal(send(identity, uuid).await);
        assert!(message.contains("max activations"), "{message}");
    }
    leaf(send(&marble, UUID).await.unwrap());
}

#[tokio::test]
async fn activation_is_refused_with_the_reason() {
    let c = cluster().await;
    let denied = async |kind: &str, change: fn(&mut Value)| {
        let (code, message) = refusal(c.server.activate_as(kind, UUID, &[], change).await);
        assert!(
            message.starts_with("marble verification failed: "),
            "{message}"
        );
        assert_eq!(code, 7, "{message}");
        message
    };
    assert!(
        denied("nobody", |_| {})
            .await
            .contains("unknown marble type")
    );
    assert!(
        denied("backend", |q| q["report_data"] = json!("00"))
            .await
            .contains("not made for the certificate")
    );
    assert!(
        denied("backend", |q| q["mr_signer"] = json!("33".repeat(32)))
            .await
            .contains("SignerID")
    );
    assert!(
        denied("backend", |q| q["product_id"] = json!(9))
            .await
            .contains("ProductID")
    );
    assert!(
        denied("backend", |q| q["security_version"] = json!(0))
            .await
            .contains("SecurityVersion")
    );
    assert!(
        denied("backend", |q| q["debug"] = json!(true))
            .await
            .contains("debug")
    );
    assert!(
        denied("backend", |q| q["emulated"] = json!(true))
            .await
            .contains("emulated")
    );
    assert!(
        denied("backend", |q| q["tcb"] = json!("OutOfDate"))
            .await
            .contains("OutOfDate")
    );
    assert!(
        denied("frontend", |q| q["mr_enclave"] = json!("99".repeat(32)))
            .await
            .contains("UniqueID")
    );
    let (code, message) = refusal(c.server.activate("backend", "not a uuid").await);
    assert_eq!(code, 3, "{message}");
    let allowed = c
        .server
        .activate_as(
            "frontend",
            UUID,
            &["localhost", "a.b.cluster.local"],
            |_| {},
        )
        .await;
    assert!(allowed.is_ok());
    let (code, message) = refusal(
        c.server
            .activate_as("frontend", UUID, &["evil.example"], |_| {})
            .await,
    );
    assert_eq!(code, 7);
    assert!(message.contains("evil.example"));
    // No attempt above took from the budget of two.
    assert!(c.server.activate("backend", UUID).await.is_ok());
    assert!(c.server.activate("backend", UUID).await.is_ok());
}

fn marble_identity(parameters: &bulla_coordinator::api::marble::Parameters) -> Identity {
    let text = |name: &str| String::from_utf8(parameters.env[name].clone()).unwrap();
    Identity {
        certificate: certificates(&text("MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN")).remove(0),
        key: certificates(&text("MARBLE_PREDEFINED_PRIVATE_KEY")).remove(0),
    }
}

#[tokio::test]
async fn counters_only_rise() {
    let c = cluster().await;
    let marble = marble_identity(
        &c.server
            .activate("backend", UUID)
            .await
            .unwrap()
            .parameters
            .unwrap(),
    );
    let path = "/api/v2/monotonic-counter";
    let set = async |value: Value, identity: Option<&Identity>| {
        c.server
            .post(path, json!({"name": "c", "value": value}), identity)
            .await
    };
    assert_eq!(set(json!(5), None).await.0, 401);
    assert_eq!(
        set(json!(5), Some(&c.admin)).await.0,
        401,
        "a user is no marble"
    );
    for (value, previous) in [(5u64, 0), (3, 5), (5, 5), (u64::MAX, 5), (1, u64::MAX)] {
        let (code, answer) = set(json!(value), Some(&marble)).await;
        assert_eq!((code, &answer["data"]["value"]), (200, &json!(previous)));
    }
    for bad in [json!(-1), json!("5"), json!(1.5)] {
        assert_eq!(set(bad, Some(&marble)).await.0, 400);
    }
    assert_eq!(
        c.server
            .post(path, json!({"name": "", "value": 1}), Some(&marble))
            .await
            .0,
        400
    );
    assert_eq!(
        c.server
            .post(
                path,
                json!({"name": "x".repeat(300), "value": 1}),
                Some(&marble)
            )
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn quotes_are_signed_for_marbles() {
    let c = cluster().await;
    let quote = test_quote(&[7; 32], |q| q["tcb"] = json!("OutOfDate"));
    let sent = BASE64_STANDARD.encode(&quote);
    let (code, answer) = c
        .server
        .post("/api/v2/sign-quote", json!({"sgxQuote": sent}), None)
        .await;
    assert_eq!(code, 200);
    assert_eq!(answer["data"]["tcbStatus"], "OutOfDate");
    let signed = format!("{sent}OutOfDate");
    assert!(verifies_sha256(
        &c.root,
        signed.as_bytes(),
        &b64(&answer["data"]["verificationSignature"])
    ));
    let (code, answer) = c
        .server
        .post("/api/v2/sign-quote", json!({"sgxQuote": "AAAA"}), None)
        .await;
    assert_eq!((code, answer["status"].as_str().unwrap()), (400, "fail"));
}

#[tokio::test]
async fn closed_gates_answer_403() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    server.set(&json!({"Packages": {"p": {"UniqueID": "11".repeat(32)}}, "Marbles": {"m": {"Package": "p"}}})).await;
    let marble = marble_identity(
        &server
            .activate("m", UUID)
            .await
            .unwrap()
            .parameters
            .unwrap(),
    );
    assert_eq!(
        server
            .post("/api/v2/sign-quote", json!({"sgxQuote": "AAAA"}), None)
            .await
            .0,
        403
    );
    assert_eq!(
        server
            .post(
                "/api/v2/monotonic-counter",
                json!({"name": "c", "value": 1}),
                Some(&marble)
            )
            .await
            .0,
        403
    );
}

#[tokio::test]
async fn packages_are_raised_by_one_user() {
    let c = cluster().await;
    let update = |version: u32| json!({"Packages": {"backend": {"SecurityVersion": version}}});
    let send = async |body: Value, who: &Identity| {
        c.server
            .post("/api/v2/update", manifest_body(&body), Some(who))
            .await
    };
    let before = c
        .server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    assert_eq!(send(update(2), &c.other).await.0, 401);
    let (code, answer) = send(update(2), &c.admin).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(
        answer["data"],
        json!({"missingAcknowledgments": 0, "missingUsers": []})
    );
    for (wrong, message) in [
        (update(1), "SecurityVersion"),
        (
            json!({"Packages": {"backend": {"SecurityVersion": 3, "Debug": true}}}),
            "update manifest contains unupdatable values",
        ),
        (
            json!({"Packages": {"backend": {"SecurityVersion": 3, "SignerID": "00"}}}),
            "update manifest contains unupdatable values",
        ),
    ] {
        let (code, answer) = send(wrong, &c.admin).await;
        assert_eq!(code, 500);
        assert!(
            answer["message"].as_str().unwrap().contains(message),
            "{answer}"
        );
    }
    // The manifest and its signature stay; the certificates below the root are new.
    let raw = c.manifest.to_string();
    let data = c.server.get("/api/v2/manifest").await.1["data"].clone();
    assert!(verifies_sha256(
        &c.root,
        raw.as_bytes(),
        &b64(&data["manifestSignatureRootECDSA"])
    ));
    let after = c
        .server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    assert_ne!(
        after.env["MARBLE_PREDEFINED_ROOT_CA"],
        before.env["MARBLE_PREDEFINED_ROOT_CA"]
    );
    assert_eq!(
        after.env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"],
        before.env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"]
    );
    assert_eq!(after.env["SHARED"], before.env["SHARED"]);
    assert_ne!(
        after.files["/key"], before.files["/key"],
        "certificates hang under the new marble root"
    );
    let old = marble_identity(&before);
    let answer = c
        .server
        .post(
            "/api/v2/monotonic-counter",
            json!({"name": "c", "value": 1}),
            Some(&old),
        )
        .await;
    assert_eq!(answer.0, 401, "certificates of before are cut off");
    let log = c.server.get("/api/v2/update").await.1;
    let last: Value = serde_json::from_str(log["data"]["updateLog"][1].as_str().unwrap()).unwrap();
    assert_eq!(
        (
            &last["update"],
            &last["user"],
            &last["package"],
            &last["new version"]
        ),
        (
            &json!("SecurityVersion increased"),
            &json!("admin"),
            &json!("backend"),
            &json!(2)
        )
    );
    send(update(3), &c.admin).await;
    let (_, message) = refusal(c.server.activate("backend", UUID).await);
    assert!(
        message.contains("SecurityVersion is 2, below 3"),
        "{message}"
    );
}

#[tokio::test]
async fn full_updates_need_all_parties() {
    let c = cluster().await;
    let before = c
        .server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    let mut new = c.manifest.clone();
    new["Marbles"]["added"] = json!({"Package": "frontend"});
    new["Config"]["RotateRootSecret"] = json!(true);
    let body = manifest_body(&new);
    let post = async |path: &str, body: &Value, who: Option<&Identity>| {
        c.server.post(path, body.clone(), who).await
    };
    for path in ["/api/v2/update-manifest", "/api/v2/update-cancel"] {
        assert_eq!(post(path, &body, Some(&c.admin)).await.0, 404, "{path}");
        assert_eq!(post(path, &body, None).await.0, 401, "{path}");
    }
    assert_eq!(c.server.get("/api/v2/update-manifest").await.0, 404);
    let (code, answer) = post("/api/v2/update", &body, Some(&c.admin)).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(
        answer["data"],
        json!({"missingAcknowledgments": 1, "missingUsers": ["other"]})
    );
    let pending = c.server.get("/api/v2/update-manifest").await.1;
    assert_eq!(
        b64(&pending["data"]["manifest"]),
        new.to_string().as_bytes()
    );
    assert_eq!(pending["data"]["missingUsers"], json!(["other"]));
    assert_eq!(
        post("/api/v2/update", &body, Some(&c.other)).await.0,
        500,
        "one at a time"
    );
    // Repeating changes nothing; other bytes are another manifest.
    let again = post("/api/v2/update-manifest", &body, Some(&c.admin)).await;
    assert_eq!(again.1["data"]["missingAcknowledgments"], 1);
    let mut other = new.clone();
    other["Marbles"]["added"]["MaxActivations"] = json!(1);
    let (code, answer) = post(
        "/api/v2/update-manifest",
        &manifest_body(&other),
        Some(&c.other),
    )
    .await;
    assert_eq!(
        (code, answer["message"].as_str().unwrap()),
        (500, "provided manifest does not match the pending manifest")
    );
    let cancelled = post("/api/v2/update-cancel", &json!({}), Some(&c.other)).await;
    assert_eq!(
        cancelled.1["data"]["message"],
        "Update successfully cancelled"
    );
    assert!(c.server.activate("added", UUID).await.is_err());
    // Once more, to the end.
    post("/api/v2/update", &body, Some(&c.other)).await;
    let (code, answer) = post("/api/v2/update-manifest", &body, Some(&c.admin)).await;
    assert_eq!(
        (code, &answer["data"]["missingAcknowledgments"]),
        (200, &json!(0)),
        "{answer}"
    );
    assert!(c.server.activate("added", UUID).await.is_ok());
    let after = c
        .server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    assert_eq!(
        after.env["SHARED"], before.env["SHARED"],
        "unchanged symmetric secrets stay"
    );
    assert_ne!(
        after.env["OWN"], before.env["OWN"],
        "derived ones follow the root secret"
    );
    assert_ne!(
        after.env["MARBLE_PREDEFINED_ROOT_CA"],
        before.env["MARBLE_PREDEFINED_ROOT_CA"]
    );
    let log = c.server.get("/api/v2/update").await.1;
    let updates: Vec<String> = log["data"]["updateLog"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| {
            serde_json::from_str::<Value>(line.as_str().unwrap()).unwrap()["update"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(
        updates,
        [
            "Initial manifest set",
            "Complete Manifest update initiated by user",
            "Complete Manifest update cancelled by user",
            "Complete Manifest update initiated by user",
            "Complete Manifest update acknowledged by user",
            "Complete Manifest updated",
        ]
    );
    let raw = new.to_string();
    let data = c.server.get("/api/v2/manifest").await.1["data"].clone();
    assert!(verifies_sha256(
        &c.root,
        raw.as_bytes(),
        &b64(&data["manifestSignatureRootECDSA"])
    ));
}

#[tokio::test]
async fn metrics_and_events_tell_of_activations() {
    let c = cluster().await;
    c.server.activate("backend", UUID).await.unwrap();
    let _ = c.server.activate("backend", "no uuid").await;
    let _ = c.server.activate("stranger\"}", UUID).await;
    let get = |path: &str| {
        let url = format!("http://{}{path}", c.server.metrics);
        async move {
            let out = tokio::process::Command::new("curl")
                .args(["-sS", "--fail", &url])
                .output()
                .await
                .unwrap();
            assert!(
                out.status.success(),
                "{}",
                String::from_utf8_lossy(&out.stderr)
            );
            String::from_utf8(out.stdout).unwrap()
        }
    };
    let metrics = get("/metrics").await;
    for line in [
        "coordinator_state 3".to_owned(),
        format!("coordinator_marble_activations_total{{type=\"backend\",uuid=\"{UUID}\"}} 1"),
        format!(
            "coordinator_marble_activations_success_total{{type=\"backend\",uuid=\"{UUID}\"}} 1"
        ),
        "coordinator_marble_activations_success_total{type=\"backend\",uuid=\"\"} 0".to_owned(),
        "coordinator_marble_activations_total{type=\"\",uuid=\"\"} 1".to_owned(),
    ] {
        assert!(
            metrics.lines().any(|l| l == line),
            "{line} not in\n{metrics}"
        );
    }
    assert!(
        !metrics.contains("stranger"),
        "labels are names that the manifest knows"
    );
    let events: Value = serde_json::from_str(&get("/events").await).unwrap();
    assert_eq!(events.as_array().unwrap().len(), 3);
    assert_eq!(events[0]["activation"]["marbleType"], "backend");
}

/// Foreign clients agree: curl with a client certificate, openssl with the chain.
#[tokio::test]
async fn curl_and_openssl_understand_the_server() {
    let c = cluster().await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(
        path("root.pem"),
        bulla_coordinator::x509::pem("CERTIFICATE", &c.root),
    )
    .unwrap();
    std::fs::write(path("admin.pem"), user_pem(&c.admin)).unwrap();
    std::fs::write(
        path("admin.key"),
        bulla_coordinator::x509::pem("PRIVATE KEY", &c.admin.key),
    )
    .unwrap();
    let parameters = c
        .server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    std::fs::write(
        path("chain.pem"),
        &parameters.env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"],
    )
    .unwrap();
    std::fs::write(
        path("marble-root.pem"),
        &parameters.env["MARBLE_PREDEFINED_ROOT_CA"],
    )
    .unwrap();
    let run = async |program: &str, args: &[&str]| {
        let out = tokio::process::Command::new(program)
            .args(args)
            .output()
            .await
            .unwrap();
        (
            out.status.success(),
            String::from_utf8_lossy(&out.stdout).into_owned()
                + &String::from_utf8_lossy(&out.stderr),
        )
    };
    // The root is in its own trust store, and its names fit: no -k needed.
    let url = format!("https://{}/api/v2/update-cancel", c.server.client);
    let (ok, out) = run(
        "curl",
        &[
            "-sS",
            "--cacert",
            &path("root.pem"),
            "--cert",
            &path("admin.pem"),
            "--key",
            &path("admin.key"),
            "-X",
            "POST",
            &url,
        ],
    )
    .await;
    assert!(ok && out.contains("no update in progress"), "{out}");
    let (ok, out) = run(
        "openssl",
        &[
            "verify",
            "-CAfile",
            &path("root.pem"),
            "-untrusted",
            &path("chain.pem"),
            &path("chain.pem"),
        ],
    )
    .await;
    assert!(ok, "to the coordinator's root: {out}");
    let (ok, out) = run(
        "openssl",
        &[
            "verify",
            "-CAfile",
            &path("marble-root.pem"),
            &path("chain.pem"),
        ],
    )
    .await;
    assert!(ok, "to the marble root: {out}");
    let (_, out) = run(
        "openssl",
        &[
            "s_client",
            "-connect",
            &c.server.mesh,
            "-alpn",
            "h2",
            "-cert",
            &path("admin.pem"),
            "-key",
            &path("admin.key"),
        ],
    )
    .await;
    assert!(out.contains("ALPN protocol: h2"), "{out}");
    assert!(out.contains("No client certificate CA names sent"), "{out}");
    // The marble root, and by what its key descends from the root.
    assert!(out.contains("\n 2 s:CN = MarbleRun Coordinator\n"), "{out}");
    // In TLS 1.2 the refusal is part of the handshake.
    let (ok, out) = run(
        "openssl",
        &[
            "s_client",
            "-connect",
            &c.server.mesh,
            "-alpn",
            "h2",
            "-tls1_2",
        ],
    )
    .await;
    assert!(!ok && out.contains("alert"), "{out}");
}

#[tokio::test]
async fn revoked_marbles_packages_and_platforms_are_refused() {
    let c = cluster().await;
    let other_uuid = "00000000-0000-4000-8000-000000000001";
    let parameters = c
        .server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    let marble = marble_identity(&parameters);
    // What a peer says who has loaded the list now.
    let peer = async |leaf: &[u8]| {
        let list = c.server.plain_body("/crl").await;
        let root = &parameters.env["MARBLE_PREDEFINED_ROOT_CA"];
        let issued = bulla_attest::ratls::Issued::new(root, &list).unwrap();
        rustls::server::danger::ClientCertVerifier::verify_client_cert(
            &issued,
            &leaf.into(),
            &[],
            rustls::pki_types::UnixTime::now(),
        )
        .map(|_| ())
    };
    let is_revoked = |answer: Result<(), rustls::Error>| match answer {
        Ok(()) => false,
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked)) => true,
        Err(other) => panic!("{other}"),
    };
    assert!(!is_revoked(peer(&marble.certificate).await));
    let path = "/api/v2/revoked";
    let revoke = async |body: Value, who: Option<&Identity>| c.server.post(path, body, who).await;
    let body = json!({"marbles": [UUID.to_uppercase()]});
    for who in [None, Some(&marble)] {
        assert_eq!(revoke(body.clone(), who).await.0, 401);
    }
    for wrong in [
        json!({}),
        json!({"marbles": ["x"]}),
        json!({"packages": ["nothing"]}),
    ] {
        assert_eq!(revoke(wrong, Some(&c.admin)).await.0, 400);
    }
    let (code, answer) = revoke(body, Some(&c.other)).await;
    assert_eq!((code, &answer["data"]["marbles"]), (200, &json!([UUID])));
    assert_eq!(c.server.get(path).await.1["data"]["marbles"], json!([UUID]));
    let (code, message) = refusal(c.server.activate("backend", UUID).await);
    assert_eq!(code, 7);
    assert!(message.contains("this marble is revoked"), "{message}");
    assert!(is_revoked(peer(&marble.certificate).await));
    let counter = json!({"name": "c", "value": 1});
    assert_eq!(
        c.server
            .post("/api/v2/monotonic-counter", counter, Some(&marble))
            .await
            .0,
        401
    );
    let others = c.server.activate("backend", other_uuid).await;
    let others = marble_identity(&others.expect("others are untouched").parameters.unwrap());
    // A version of a package, by its measurement.
    let version = "33".repeat(32);
    let changed = |q: &mut Value| q["mr_enclave"] = json!(version);
    let uuid = "00000000-0000-4000-8000-000000000002";
    let versioned = c.server.activate_as("versioned", uuid, &[], changed).await;
    let versioned = marble_identity(&versioned.unwrap().parameters.unwrap());
    assert!(!is_revoked(peer(&versioned.certificate).await));
    let counts = async |marble: &Identity| {
        let body = json!({"name": "c", "value": 1});
        let path = "/api/v2/monotonic-counter";
        c.server.post(path, body, Some(marble)).await.0 == 200
    };
    assert!(counts(&versioned).await && counts(&others).await);
    assert_eq!(
        revoke(json!({"enclaves": ["33"]}), Some(&c.admin)).await.0,
        400
    );
    revoke(
        json!({"enclaves": [version.to_uppercase()]}),
        Some(&c.admin),
    )
    .await;
    let (_, message) = refusal(c.server.activate_as("versioned", uuid, &[], changed).await);
    assert!(
        message.contains("this version of package backend is revoked"),
        "{message}"
    );
    assert!(is_revoked(peer(&versioned.certificate).await));
    assert!(!counts(&versioned).await && counts(&others).await);
    assert!(!is_revoked(peer(&others.certificate).await));
    revoke(json!({"platforms": ["AA"]}), Some(&c.admin)).await;
    assert!(is_revoked(peer(&others.certificate).await));
    assert!(!counts(&others).await, "its platform is revoked");
    let (_, message) = refusal(c.server.activate("frontend", other_uuid).await);
    assert!(message.contains("this platform is revoked"), "{message}");
    let elsewhere = c
        .server
        .activate_as("frontend", other_uuid, &[], |q| q["platform"] = json!("bb"))
        .await;
    let elsewhere = marble_identity(&elsewhere.unwrap().parameters.unwrap());
    assert!(!is_revoked(peer(&elsewhere.certificate).await));
    revoke(json!({"packages": ["frontend"]}), Some(&c.admin)).await;
    let (_, message) = refusal(
        c.server
            .activate_as("frontend", other_uuid, &[], |q| q["platform"] = json!("bb"))
            .await,
    );
    assert!(message.contains("package frontend is revoked"), "{message}");
    assert!(is_revoked(peer(&elsewhere.certificate).await));
}

/// Connections that say nothing hold their place only until the handshake's time is up, and do not
/// keep others out.
#[tokio::test]
async fn half_open_connections_do_not_keep_others_out() {
    let c = cluster().await;
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(
            tokio::net::TcpStream::connect(&c.server.client)
                .await
                .unwrap(),
        );
        idle.push(
            tokio::net::TcpStream::connect(&c.server.mesh)
                .await
                .unwrap(),
        );
    }
    assert_eq!(c.server.get("/api/v2/status").await.0, 200);
    assert!(c.server.activate("backend", UUID).await.is_ok());
}

#[tokio::test]
async fn one_address_cannot_flood_the_server() {
    let c = cluster().await;
    let url = format!("https://{}/api/v2/status", c.server.client);
    // 1500 requests over one connection.
    let config = format!("url = \"{url}\"\ninsecure\nsilent\nwrite-out = \"%{{http_code}}\\n\"\noutput = /dev/null\nnext\n").repeat(1500);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config"), config).unwrap();
    let out = tokio::process::Command::new("curl")
        .arg("-K")
        .arg(dir.path().join("config"))
        .output()
        .await
        .unwrap();
    let codes = String::from_utf8_lossy(&out.stdout).into_owned();
    let count = |code: &str| codes.lines().filter(|line| *line == code).count();
    assert!(
        count("200") >= 1000,
        "{} of {}",
        count("200"),
        codes.lines().count()
    );
    assert_eq!(count("200") + count("429"), 1500, "{codes}");
}
