//! The importers on files as people write them.

use super::*;
use bulla_coordinator::manifest::Manifest;

fn noted(imported: &Imported, text: &str) -> bool {
    imported.notes.iter().any(|note| note.contains(text))
}

const GRAMINE: &str = r#"
libos.entrypoint = "/usr/bin/python3"
loader.log_level = "error"
loader.argv = ["python3", "/app/serve.py", "--port", "8080"]
loader.env.LD_LIBRARY_PATH = "/lib:/usr/lib"
loader.env.TZ = { passthrough = true }
loader.env.SECRET = { file = "secret.txt" }
loader.uid = 1000
fs.mounts = [
  { path = "/usr", uri = "file:/usr" },
  { type = "tmpfs", path = "/tmp" },
  { type = "encrypted", path = "/data", uri = "file:data", key_name = "_sgx_mrsigner" },
]
sgx.enclave_size = "512M"
sgx.max_threads = 32
sgx.edmm_enable = true
sgx.debug = false
sgx.isvsvn = 3
sgx.remote_attestation = "dcap"
sgx.cpu_features.avx512 = "required"
sgx.trusted_files = ["file:/usr/bin/python3", "file:/app/"]
sgx.allowed_files = ["file:/etc/hostname"]
sgx.from_the_future = 1
sys.stack.size = "2M"
"#;

#[test]
fn a_gramine_manifest_becomes_a_container_manifest() {
    let imported = gramine::import(&toml(GRAMINE, Path::new("x")).unwrap()).unwrap();
    let ours = bulla_image::manifest::Manifest::parse(&imported.text).unwrap();
    assert_eq!(ours.entrypoint, Some(vec!["/usr/bin/python3".to_owned()]));
    assert_eq!(ours.memory.as_deref(), Some("512M"));
    assert_eq!(ours.threads, Some(32));
    assert_eq!(ours.security_version, 3);
    assert_eq!(ours.user.as_deref(), Some("1000:0"));
    for text in ["/app/serve.py", "host = true", "type = \"volume\""] {
        assert!(imported.text.contains(text), "{text}: {}", imported.text);
    }
    for note in [
        "loader.env.SECRET.file",
        "avx512",
        "loader.log_level",
        "/usr from /usr",
        "sgx.allowed_files: /etc/hostname",
        "sgx.trusted_files: 2 entries",
        "sgx.from_the_future: has no equivalent",
        "sys.stack",
    ] {
        assert!(noted(&imported, note), "{note}: {:#?}", imported.notes);
    }
}

const SCONE: &str = r#"
name: shop/backend
version: "0.3.10"
predecessor: 3fe1a04c
security:
  attestation:
    tolerate: [software-hardening-needed, hyperthreading, moon-phase]
    ignore_advisories: [INTEL-SA-00615]
services:
  - name: api
    image_name: api_image
    mrenclaves: ["6ddc62d2d6d55ef1f3e5ab7dc2ffc41be9f4d4b8a1ae7b6e2b8a6bd01c1b3c7a"]
    command: python3 /app/api.py --token @@1
    environment:
      DB_PASSWORD: $$SCONE::db_password$$
      SESSION_KEY: $$SCONE::session-key:base64$$
      HOST: "@@HOSTNAME"
    pwd: /app
    fspf_tag: "00"
  - name: worker
    attestation:
      - signer: {mrsigner: "1234", isvprodid: 7, isvsvn_min: 2}
    command: [worker, --verbose]
images:
  - name: api_image
    injection_files:
      - path: /etc/tls/server.pem
        content: "$$SCONE::server.crt$$$$SCONE::server.key$$"
secrets:
  - name: db_password
    kind: ascii
    value: never-in-a-manifest
  - name: session-key
    kind: binary
    size: 32
    export: [{session: shop/frontend}]
  - name: server
    kind: x509
    common_name: api.shop
    dns: [api.shop, localhost]
    endpoint: server
    valid_for: 30d
  - name: theirs
    kind: binary
    import: {session: shop/vault, secret: root-key}
  - name: cloud
    kind: gcp-token
volumes:
  - name: data
access_policy:
  read: [CREATOR]
  update: [NONE]
from_the_future: 1
"#;

#[test]
fn a_scone_session_becomes_a_coordinator_manifest() {
    let session: Value = serde_saphyr::from_str(SCONE).unwrap();
    let imported = scone::import(&session).unwrap();
    let (manifest, _) = Manifest::parse(imported.text.as_bytes()).unwrap();
    assert!(!imported.text.contains("never-in-a-manifest"));
    let ours: Value = serde_json::from_str(&imported.text).unwrap();
    let api = &ours["Marbles"]["api"]["Parameters"];
    assert_eq!(
        api["Env"]["DB_PASSWORD"],
        "{{ string .Secrets.db_password }}"
    );
    assert_eq!(
        api["Env"]["SESSION_KEY"],
        "{{ base64 .Secrets.session_key }}"
    );
    assert_eq!(
        api["Argv"],
        serde_json::json!(["python3", "/app/api.py", "--token"])
    );
    assert_eq!(
        api["Files"]["/etc/tls/server.pem"],
        "{{ pem .Secrets.server.Cert }}{{ pem .Secrets.server.Private }}"
    );
    let package = &manifest.packages["worker"];
    assert_eq!(
        (package.product_id, package.security_version),
        (Some(7), Some(2))
    );
    assert!(manifest.secrets["session_key"].hidden);
    assert_eq!(manifest.secrets["session_key"].export, ["shop.frontend"]);
    let import = manifest.secrets["theirs"].import.as_ref().unwrap();
    assert_eq!(
        (import.namespace.as_str(), import.secret.as_str()),
        ("shop.vault", "root_key")
    );
    assert_eq!(manifest.secrets["server"].valid_for, 30);
    for note in [
        "--namespace shop.backend",
        "predecessor",
        "moon-phase",
        "UniqueIDs are SCONE's",
        "@@1",
        "environment.HOST",
        "workdir = \"/app\"",
        "fspf_tag",
        "db_password: its value is left out",
        "gcp-token has no equivalent",
        "volumes[0]: data",
        "CREATOR",
        "from_the_future: has no equivalent",
    ] {
        assert!(noted(&imported, note), "{note}: {:#?}", imported.notes);
    }
}

#[test]
fn boards_of_a_session_become_boards() {
    let pem = |name: &str| {
        let identity = bulla_coordinator::client::marble::self_signed(name)
            .unwrap()
            .0;
        bulla_coordinator::x509::pem("CERTIFICATE", &identity.certificate)
    };
    let (alice, bob) = (pem("alice"), pem("bob"));
    let session = serde_json::json!({
        "services": [{"name": "s", "attestation": [{"mrenclave": ["ab"]}]}],
        "access_policy": {
            "read": [alice],
            "update": [{"require-at-least-1": [alice, bob]}],
        },
    });
    let imported = scone::import(&session).unwrap();
    let (manifest, _) = Manifest::parse(imported.text.as_bytes()).unwrap();
    assert_eq!(manifest.boards["update-board"].members, ["user1", "user2"]);
    assert_eq!(manifest.boards["update-board"].threshold, 1);
    assert_eq!(manifest.config.update_boards, ["update-board"]);
    assert_eq!(manifest.config.manifest_readers.unwrap(), ["user1"]);
}

const MARBLERUN: &str = r#"
packages:
  backend: {SignerID: "aa", ProductID: 16, SecurityVersion: 1, Vendor: acme}
  edge: {UniqueID: "bb"}
Infrastructures:
  azure: {}
Marbles:
  first:
    Package: backend
    MaxActivations: 1
    TLS: [web]
    Parameters:
      Argv: [./first, serve]
      Env: {KEY: "{{ hex .Secrets.key }}"}
  second: {Package: edge}
Secrets:
  key: {Type: symmetric-key, Size: 128, Shared: true, Rotation: daily}
TLS:
  web: {Incoming: [{Port: "8443"}]}
Config: {FeatureGates: [AzureHSMSealing], Color: blue}
Dashboards: {}
"#;

#[test]
fn a_marblerun_manifest_stays_what_it_is() {
    let manifest: Value = serde_saphyr::from_str(MARBLERUN).unwrap();
    let imported = marblerun::import(&manifest).unwrap();
    Manifest::parse(imported.text.as_bytes()).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&imported.text).unwrap(),
        manifest
    );
    for note in [
        "packages.backend.vendor: has no equivalent",
        "Packages.edge.UniqueID",
        "Packages.backend.SignerID",
        "Infrastructures.azure: is enforced",
        "secrets.key.rotation: has no equivalent",
        "config.color: has no equivalent",
        "AzureHSMSealing",
        "dashboards: has no equivalent",
        "Marbles.first.TLS",
    ] {
        assert!(noted(&imported, note), "{note}: {:#?}", imported.notes);
    }
}

#[test]
fn other_files_are_refused_with_the_reason() {
    assert!(gramine::import(&serde_json::json!({"a": 1})).is_err());
    assert!(scone::import(&serde_json::json!({"name": "x"})).is_err());
    assert!(scone::import(&serde_json::json!([1])).is_err());
    assert!(marblerun::import(&serde_json::json!({"Packages": {}})).is_err());
    assert!(toml("{{ jinja }}", Path::new("x")).is_err());
    assert!(yaml("a: [", Path::new("x")).is_err());
}
