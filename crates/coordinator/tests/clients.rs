//! Clients that share no code with ours: grpcio, Python's TLS, openssl; and a tester of APIs that
//! reads our own OpenAPI document.
//!
//! Their packages are in a virtual environment that is made once, outside the checkout.

mod common;

use bulla_coordinator::client::marble::self_signed;
use common::{Server, manifest};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Newer ones may ask for other things: pinned.
const PACKAGES: &[&str] = &["grpcio", "grpcio-tools", "schemathesis"];

/// The directory of the virtual environment's programs.
fn environment() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let cache = home.join(".cache/bulla-tests");
    std::fs::create_dir_all(&cache).unwrap();
    // Tests run side by side: one makes it, the others wait.
    let lock = std::fs::File::create(cache.join("coordinator-venv.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let place = cache.join("coordinator-venv");
    let bin = place.join("bin");
    let works = || {
        Command::new(bin.join("python"))
            .args(["-c", "import grpc, grpc_tools, schemathesis"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !works() {
        let run = |command: &mut Command| {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{command:?}: {}", text(&output));
        };
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&place));
        run(Command::new(bin.join("pip"))
            .args(["install", "-q"])
            .args(PACKAGES));
        assert!(works(), "the virtual environment lacks packages");
    }
    bin
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

/// Certificate and key in files.
fn written(identity: &bulla_coordinator::client::Identity, dir: &Path) -> (PathBuf, PathBuf) {
    let write = |name: &str, label: &str, der: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bulla_coordinator::x509::pem(label, der)).unwrap();
        path
    };
    (
        write("admin.pem", "CERTIFICATE", &identity.certificate),
        write("admin.key", "PRIVATE KEY", &identity.key),
    )
}

async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marble_by_grpcio_and_openssl_gets_all_it_needs() {
    let bin = environment();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let [admin, other] = ["admin", "other"].map(|name| self_signed(name).unwrap().0);
    server.set(&manifest(&admin, &other)).await;
    let work = dir.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let (certificate, key) = written(&admin, dir.path());
    let mut command = Command::new(bin.join("python"));
    command
        .arg(peers().join("marble.py"))
        .args([&server.mesh, &server.client])
        .args([&work, &certificate, &key]);
    let output = run(command).await;
    assert!(output.status.success(), "{}", text(&output));
}

/// Every answer is as the document says, whatever is asked.
async fn held_against_its_document(server: &Server, certificate: Option<(&Path, &Path)>) {
    // It writes what it remembers into its working directory.
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new(environment().join("schemathesis"));
    command
        .current_dir(place.path())
        .arg("run")
        .arg(format!("https://{}/api/v2/openapi.json", server.client))
        .args([
            "--tls-verify",
            "false",
            "--no-color",
            "--generation-deterministic",
        ])
        .args(["--suppress-health-check", "all"])
        .args([
            "--phases",
            "examples,coverage,fuzzing",
            "--max-examples",
            "5",
        ])
        .args([
            "--rate-limit",
            "150/s",
            "--max-time",
            "20",
            "--warnings",
            "off",
        ])
        // Errors of the API's own kind are 500, as MarbleRun has them.
        .args([
            "--checks",
            "status_code_conformance,content_type_conformance",
        ])
        .args(["--checks", "response_schema_conformance"]);
    if let Some((certificate, key)) = certificate {
        command.arg("--request-cert").arg(certificate);
        command.arg("--request-cert-key").arg(key);
    }
    let output = run(command).await;
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(server.get("/api/v2/status").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_no_answer_beside_the_openapi_document() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    held_against_its_document(&server, None).await;
    let [admin, other] = ["admin", "other"].map(|name| self_signed(name).unwrap().0);
    server.set(&manifest(&admin, &other)).await;
    let (certificate, key) = written(&admin, dir.path());
    held_against_its_document(&server, Some((&certificate, &key))).await;
}
