//! `bulla proxy` in enclaves and outside: programs that speak plain TCP, and ordinary TLS clients.

use bulla_test_apps::{Server, Side, bulla, free_port, platform_options, sides};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(90);

/// A root directory with bulla, and what it is linked with if it is not static.
fn root(policy: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let put = |from: &Path, to: &str| {
        let to = root.path().join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    put(bulla(), "/bulla");
    let linked = Command::new("ldd").arg(bulla()).output().unwrap();
    let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
    for path in linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        put(Path::new(path), path);
    }
    fs::write(root.path().join("policy.toml"), policy).unwrap();
    fs::create_dir(root.path().join("tmp")).unwrap();
    root
}

/// A plain program: answers HTTP, so that curl understands it too.
fn program() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let (mut asked, mut byte) = (Vec::new(), [0]);
                while !asked.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    asked.push(byte[0]);
                }
                if !asked.is_empty() {
                    let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nplain");
                }
            });
        }
    });
    port
}

fn ask(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = Vec::new();
    let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A proxy in an enclave with this root, and a policy for it.
fn enclave(root: &Path, listen: u16, words: &[&str]) -> (Server, String) {
    let with = |command: &str, options: &[String]| {
        let mut bulla = Command::new(bulla());
        bulla.arg(command).args(options);
        bulla.args(["--layout", "dynamic", "--rootfs"]).arg(root);
        bulla.args(["/bulla", "proxy"]).args(words);
        bulla
    };
    let measured = with("measure", &["--json".into()]).output().unwrap();
    assert!(measured.status.success(), "{measured:?}");
    let measured: Value = serde_json::from_slice(&measured.stdout).unwrap();
    let mrenclave = measured["layouts"][0]["mrenclave"].as_str().unwrap();
    let policy =
        format!("insecure_allow_emulated = true\n[[accept]]\nmrenclave = \"{mrenclave}\"\n");
    let run = with("run", &platform_options());
    (Server::start(run, Side::Enclave, listen, PATIENCE), policy)
}

/// A proxy without an enclave.
fn native(forward: &str, policy: &Path) -> Server {
    let port = free_port();
    let mut command = Command::new(bulla());
    command.args(["proxy", "client", &format!("127.0.0.1:{port}"), forward]);
    command.args(["--offline", "--policy"]).arg(policy);
    Server::start(command, Side::Native, port, PATIENCE)
}

/// Its log is read beside.
fn says(server: &Server, words: &str) {
    let end = Instant::now() + PATIENCE;
    while !server.output().contains(words) {
        assert!(Instant::now() < end, "{words}: {}", server.output());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn text(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn a_plain_program_speaks_attested_tls_through_a_proxy_in_an_enclave() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let (listen, behind) = (free_port(), program());
    let (at, forward) = (format!("127.0.0.1:{listen}"), format!("127.0.0.1:{behind}"));
    let root = root("");
    let words = ["server", &at, &forward, "--name", "localhost"];
    let (server, policy) = enclave(root.path(), listen, &words);
    fs::write(path("policy.toml"), &policy).unwrap();
    let start = policy.find("mrenclave = \"").unwrap() + 13;
    let other = [&policy[..start], &"00".repeat(32), &policy[start + 64..]].concat();
    fs::write(path("other.toml"), other).unwrap();

    // One that is trusted, and one that trusts another.
    let client = native(&at, &path("policy.toml"));
    assert!(ask(client.port).ends_with("plain"), "{}", client.output());
    let open: Vec<TcpStream> = (0..50)
        .map(|_| TcpStream::connect(("127.0.0.1", client.port)).unwrap())
        .collect();
    for mut stream in &open {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    }
    for mut stream in open {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("plain"), "{answer}");
    }
    let stranger = native(&at, &path("other.toml"));
    assert_eq!(ask(stranger.port), "", "{}", stranger.output());
    says(&stranger, "not trusted");

    // Ordinary clients, which trust the certificate that was verified.
    let verified = Command::new(bulla())
        .args(["verify", &at, "--offline", "--policy"])
        .arg(path("policy.toml"))
        .arg("--bundle")
        .arg(path("evidence"))
        .output()
        .unwrap();
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified));
    let certificate = path("evidence/certificate.pem");
    let curl = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "60", "--cacert"])
        .arg(&certificate)
        .arg(format!("https://localhost:{listen}/"))
        .output()
        .unwrap();
    assert_eq!(text(&curl), "plain");
    let openssl = Command::new("openssl")
        .args([
            "s_client",
            "-verify_return_error",
            "-connect",
            &at,
            "-CAfile",
        ])
        .arg(&certificate)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(
        text(&openssl).contains("Verify return code: 0"),
        "{}",
        text(&openssl)
    );
    // Once it is gone, the client says so, and goes on with the next one.
    drop(server);
    assert_eq!(ask(client.port), "");
    says(&client, "refused");
    let (_server, again) = enclave(root.path(), listen, &words);
    assert_eq!(again, policy);
    assert!(ask(client.port).ends_with("plain"), "{}", client.output());
}

#[test]
fn two_enclaves_know_each_other() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    // Any enclave, but an enclave: neither has the other's MRENCLAVE in its own files.
    let root = root("insecure_allow_emulated = true\ninsecure_any_enclave = true\n");
    let (listen, behind, plain) = (free_port(), program(), free_port());
    let (at, forward) = (format!("127.0.0.1:{listen}"), format!("127.0.0.1:{behind}"));
    let own = format!("127.0.0.1:{plain}");
    let policy = ["--offline", "--policy", "/policy.toml"];
    let words = [&["server", &at, &forward][..], &policy].concat();
    let (server, _) = enclave(root.path(), listen, &words);
    let words = [&["client", &own, &at, "--attest"][..], &policy].concat();
    let (client, _) = enclave(root.path(), plain, &words);
    let answer = ask(plain);
    assert!(
        answer.ends_with("plain"),
        "{}{}",
        client.output(),
        server.output()
    );
    // A client without a quote of its own gets nothing.
    let without = native(&at, &root.path().join("policy.toml"));
    assert_eq!(ask(without.port), "");
}
