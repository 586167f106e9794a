//! The checks, each with a manifest that breaks just one of them.

use super::*;
use crate::client::marble::self_signed;
use crate::x509::pem;
use serde_json::{Value, json};

fn base() -> Value {
    json!({
        "Packages": {"p": {"UniqueID": "00"}},
        "Marbles": {"m": {"Package": "p"}},
    })
}

fn parse(manifest: &Value) -> Result<(Manifest, Vec<String>), String> {
    Manifest::parse(manifest.to_string().as_bytes()).map_err(|error| error.to_string())
}

fn user() -> String {
    pem("CERTIFICATE", &self_signed("user").unwrap().0.certificate)
}

/// The base with `value` at `path`, which is like `/Config/SealMode`.
fn with(path: &str, value: Value) -> Value {
    let mut manifest = base();
    let mut place = &mut manifest;
    for name in path.split('/').skip(1) {
        place = &mut place[name];
    }
    *place = value;
    manifest
}

#[test]
fn what_go_clients_send_is_accepted() {
    assert!(parse(&base()).is_ok());
    let full = json!({
        "packages": {"p": {"Debug": false, "UniqueID": "zz", "SignerID": "", "ProductID": null,
            "SecurityVersion": null, "AcceptedTCBStatuses": null, "AcceptedAdvisories": null}},
        "Infrastructures": null, "MARBLES": {"m": {"Package": "p", "MaxActivations": 0,
            "Parameters": {"Files": null, "Env": {"A": "b"}, "Argv": null}, "TLS": null}},
        "Secrets": {"s": {"Type": "cert-rsa", "Size": 2048, "Cert": {"SerialNumber": null,
            "Subject": {"CommonName": "x", "Names": null}, "NotAfter": "0001-01-01T00:00:00Z",
            "KeyUsage": 5, "ExtKeyUsage": [1], "IPAddresses": ["::1"]}, "ValidFor": 3}},
        "Users": null, "Roles": null, "RecoveryKeys": null, "TLS": null,
        "Config": {"SealMode": "", "FeatureGates": ["monotoniccounter"]}, "Unknown": [1],
    });
    let (manifest, warnings) = parse(&full).unwrap();
    assert!(warnings.is_empty());
    assert_eq!(manifest.marbles["m"].parameters.env["A"].data, b"b");
    assert!(manifest.config.has_gate("MonotonicCounter"));
}

#[test]
fn each_check_has_its_text() {
    let signer = |field: &str, value: Value| {
        let mut package = json!({"SignerID": "00", "ProductID": 1, "SecurityVersion": 1});
        package[field] = value;
        with("/Packages/p", package)
    };
    let secret = |spec: Value| with("/Secrets/s", spec);
    for (manifest, text) in [
        (json!({}), "no allowed packages defined"),
        (json!({"Packages": {"p": {}}}), "no allowed marbles defined"),
        (
            with("/Marbles/m/Package", json!("q")),
            "manifest does not contain marble package q",
        ),
        (
            with("/Marbles/m/TLS", json!(["t"])),
            "manifest misses TLS entry for t",
        ),
        (
            with("/Packages/p/SignerID", json!("00")),
            "manifest specifies both UniqueID *and* SignerID/ProductID/SecurityVersion in package p",
        ),
        (
            with("/Packages/p/ProductID", json!(0)),
            "manifest specifies both UniqueID",
        ),
        (
            signer("SignerID", json!("")),
            "manifest misses value for SignerID in package p",
        ),
        (
            signer("ProductID", Value::Null),
            "manifest misses value for ProductID in package p",
        ),
        (
            signer("SecurityVersion", Value::Null),
            "manifest misses value for SecurityVersion in package p",
        ),
        (
            with("/Config/SealMode", json!("productkey")),
            "unknown seal mode: productkey",
        ),
        (
            with("/Config/FeatureGates", json!(["X"])),
            "unknown feature gate: X",
        ),
        (
            with("/Config/UpdateThreshold", json!(1)),
            "not enough users with manifest update permissions (0) to meet the threshold of 1",
        ),
        (
            with("/Config/RecoveryThreshold", json!(1)),
            "invalid recovery threshold: if set, threshold must be at least 2",
        ),
        (
            with("/Config/RecoveryThreshold", json!(2)),
            "invalid recovery threshold",
        ),
        (
            with(
                "/Marbles/m/Parameters",
                json!({"Files": {"f": {"Data": "", "Encoding": "rot13"}}}),
            ),
            "unknown encoding type: rot13",
        ),
        (
            with("/Marbles/m/Parameters", json!({"Env": {"e": "a\u{0}"}})),
            "null bytes",
        ),
        (secret(json!({"Type": "nothing"})), "unknown type: nothing"),
        (secret(json!({"Type": "symmetric-key"})), "invalid size: 0"),
        (
            secret(json!({"Type": "symmetric-key", "Size": 7})),
            "invalid size: 7",
        ),
        (
            secret(json!({"Type": "cert-ecdsa", "Size": 255})),
            "invalid size: 255",
        ),
        (
            secret(json!({"Type": "cert-ed25519", "Size": 1})),
            "invalid size: 1",
        ),
        (secret(json!({"Type": "plain"})), "must be UserDefined"),
        (
            secret(
                json!({"Type": "cert-ed25519", "ValidFor": 1, "Cert": {"NotAfter": "2040-01-01T00:00:00Z"}}),
            ),
            "NotAfter and ValidFor",
        ),
        (with("/TLS/t", json!({"Incoming": [{}]})), "has no Port"),
        (
            with(
                "/TLS/t",
                json!({"Incoming": [{"Port": "1", "DisableClientAuth": true}]}),
            ),
            "go together",
        ),
        (
            with("/TLS/t", json!({"Incoming": [{"Port": "1", "Cert": "s"}]})),
            "go together",
        ),
        (
            with(
                "/TLS/t",
                json!({"Incoming": [{"Port": "1", "Cert": "s", "DisableClientAuth": true}]}),
            ),
            "secret s does not exist",
        ),
        (
            with("/TLS/t", json!({"Outgoing": [{"Addr": "a"}]})),
            "needs Addr and Port",
        ),
        (with("/Users/u", json!({"Certificate": "x"})), "is not PEM"),
        (
            with("/Users/u", json!({"Certificate": user(), "Roles": ["r"]})),
            "role r does not exist",
        ),
        (
            with("/Roles/r", json!({"ResourceType": "packages"})),
            "unknown resource type: packages",
        ),
        (
            with(
                "/Roles/r",
                json!({"ResourceType": "Packages", "ResourceNames": ["q"]}),
            ),
            "package q does not exist",
        ),
        (
            with(
                "/Roles/r",
                json!({"ResourceType": "Packages", "Actions": ["ReadSecret"]}),
            ),
            "unknown action",
        ),
        (
            with(
                "/Roles/r",
                json!({"ResourceType": "Manifest", "ResourceNames": ["x"], "Actions": ["UpdateManifest"]}),
            ),
            "must be empty",
        ),
        (
            with(
                "/Roles/r",
                json!({"ResourceType": "Secrets", "ResourceNames": ["s"]}),
            ),
            "secret s does not exist",
        ),
        (with("/RecoveryKeys/k", json!("x")), "is not PEM"),
        (
            with(
                "/RecoveryKeys/k",
                json!("-----BEGIN RSA PUBLIC KEY-----\nAAAA\n-----END RSA PUBLIC KEY-----\n"),
            ),
            "must be a PUBLIC KEY",
        ),
        (
            with(
                "/RecoveryKeys/k",
                json!("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"),
            ),
            "not an RSA public key",
        ),
        (
            with("/Marbles/m/MaxActivations", json!(-1)),
            "MaxActivations",
        ),
    ] {
        let error = parse(&manifest)
            .err()
            .unwrap_or_else(|| panic!("accepted: {manifest}"));
        assert!(error.contains(text), "{manifest}\n{error}\nmisses {text}");
    }
}

#[test]
fn secrets_can_be_read_or_written_by_role_only_where_that_makes_sense() {
    let mut manifest = with(
        "/Secrets",
        json!({
            "own": {"Type": "symmetric-key", "Size": 128},
            "shared": {"Type": "symmetric-key", "Size": 128, "Shared": true},
            "user": {"Type": "plain", "UserDefined": true},
        }),
    );
    for (name, action, is_allowed) in [
        ("own", "ReadSecret", false),
        ("own", "WriteSecret", false),
        ("shared", "readsecret", true),
        ("shared", "WriteSecret", false),
        ("user", "ReadSecret", true),
        ("user", "WRITESECRET", true),
    ] {
        manifest["Roles"] =
            json!({"r": {"ResourceType": "Secrets", "ResourceNames": [name], "Actions": [action]}});
        assert_eq!(parse(&manifest).is_ok(), is_allowed, "{action} {name}");
    }
}

#[test]
fn debug_packages_only_warn_and_users_are_told_apart() {
    let (_, warnings) = parse(&with("/Packages/p", json!({"Debug": true}))).unwrap();
    assert_eq!(
        warnings,
        ["manifest misses value for SignerID in package p"]
    );
    let pem = user();
    let twins = with(
        "/Users",
        json!({"a": {"Certificate": pem}, "b": {"Certificate": pem}}),
    );
    assert!(
        parse(&twins)
            .unwrap_err()
            .contains("has the same certificate as user a")
    );
}

#[test]
fn thresholds_count_users_with_the_permission() {
    let mut manifest = with(
        "/Roles/r",
        json!({"ResourceType": "Manifest", "Actions": ["updatemanifest"]}),
    );
    manifest["Users"] = json!({
        "a": {"Certificate": user(), "Roles": ["r"]}, "b": {"Certificate": user(), "Roles": ["r"]},
        "c": {"Certificate": user()},
    });
    let (parsed, _) = parse(&manifest).unwrap();
    assert_eq!(
        parsed.updaters().into_iter().collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(parsed.update_threshold(), 2);
    manifest["Config"] = json!({"UpdateThreshold": 1});
    assert_eq!(parse(&manifest).unwrap().0.update_threshold(), 1);
    manifest["Config"] = json!({"UpdateThreshold": 3});
    assert!(parse(&manifest).is_err());
}
