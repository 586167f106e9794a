//! RA-TLS over real sockets: both sides verified, ordinary peers, and impostors.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bulla_attest::emulated::Parameters;
use bulla_attest::ratls::{Approver, Request, TlsIdentity, client_config, issue, server_config};
use bulla_attest::{Judge, NoSource, Policy, endpoint};
use common::{CPU_SVN, Machine, policy};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, Stream};

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

fn machine() -> Machine {
    Machine::new(&Parameters::new(CPU_SVN, now()))
}

fn identity(machine: &Machine) -> TlsIdentity {
    let names = vec!["localhost".into(), "127.0.0.1".into()];
    issue(
        machine,
        &Request {
            names,
            ..Request::new(now())
        },
    )
    .unwrap()
}

fn approver(policy: Policy) -> Arc<dyn Approver> {
    Arc::new(Judge {
        policy,
        source: Arc::new(NoSource),
        disclosed: None,
    })
}

/// Answers every connection with one HTTP response.
fn serve(config: ServerConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = Arc::new(config);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, config) = (stream.unwrap(), config.clone());
            thread::spawn(move || {
                stream
                    .set_read_timeout(Some(Duration::from_secs(20)))
                    .unwrap();
                let mut connection = ServerConnection::new(config).unwrap();
                let mut tls = Stream::new(&mut connection, &mut stream);
                let mut request = [0; 1024];
                if tls.read(&mut request).is_ok_and(|read| read > 0) {
                    let _ = tls.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
                    connection.send_close_notify();
                    let _ = connection.complete_io(&mut stream);
                }
            });
        }
    });
    address
}

fn ask(address: SocketAddr, config: ClientConfig) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut tls = Stream::new(&mut connection, &mut stream);
    tls.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    tls.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn attested_peers_talk() {
    let machine = machine();
    let (server, client) = (identity(&machine), identity(&machine));
    let address = serve(server_config(&server, Some(approver(policy()).into())).unwrap());
    for _ in 0..2 {
        let config = client_config(approver(policy()), Some(&client)).unwrap();
        assert!(ask(address, config).unwrap().contains("hello"));
    }
    // The server wants a quote too.
    let without = client_config(approver(policy()), None).unwrap();
    assert!(ask(address, without).is_err());
    let seen = endpoint::look(&address.to_string(), b"", Duration::from_secs(10)).unwrap();
    assert_eq!(seen.chain, std::slice::from_ref(&server.certificate));
}

#[test]
fn impostors_are_refused() {
    let machine = machine();
    let genuine = identity(&machine);
    let refuses = |config: ServerConfig, name: &str, words: &str| {
        let address = serve(config);
        let client = client_config(approver(policy()), None).unwrap();
        let error = ask(address, client).unwrap_err().to_string();
        assert!(error.contains(words), "{name}: {error}");
    };
    // The genuine certificate, without its key: the handshake's signature is wrong.
    let other = rcgen::KeyPair::generate().unwrap().serialize_der();
    let key =
        rustls::crypto::ring::sign::any_supported_type(&PrivatePkcs8KeyDer::from(other).into())
            .unwrap();
    let stolen = CertifiedKey::new(vec![CertificateDer::from(genuine.certificate.clone())], key);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(stolen)));
    refuses(config, "replayed certificate", "BadSignature");

    // An ordinary certificate.
    let plain = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let ordinary = TlsIdentity {
        certificate: plain.cert.der().to_vec(),
        key: plain.signing_key.serialize_der().into(),
    };
    refuses(
        server_config(&ordinary, None).unwrap(),
        "unattested",
        "no quote",
    );

    // Expired.
    let request = Request {
        valid_seconds: 60,
        ..Request::new(now() - 3600)
    };
    let expired = issue(&machine, &request).unwrap();
    refuses(server_config(&expired, None).unwrap(), "expired", "expired");

    // Another enclave.
    let mut other = self::machine();
    other.report.mrenclave = [0xe2; 32];
    refuses(
        server_config(&identity(&other), None).unwrap(),
        "other enclave",
        "enclave",
    );

    // The same refusals when they are clients.
    let server = serve(server_config(&genuine, Some(approver(policy()).into())).unwrap());
    for client in [&ordinary, &expired, &identity(&other)] {
        let config = client_config(approver(policy()), Some(client)).unwrap();
        assert!(ask(server, config).is_err());
    }
}

fn have(program: &str) -> bool {
    let found = Command::new(program).arg("version").output().is_ok();
    assert!(
        found || std::env::var_os("CI").is_none(),
        "{program} is missing; see scripts/packages.sh"
    );
    found
}

#[test]
fn curl_and_openssl_are_ordinary_peers() {
    let identity = identity(&machine());
    let address = serve(server_config(&identity, None).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("cert.pem");
    std::fs::write(&pem, identity.certificate_pem()).unwrap();
    if have("curl") {
        // Pinned as its own authority, with the name checked.
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--cacert"])
            .arg(&pem)
            .arg(format!("https://localhost:{}/", address.port()))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            text,
            "hello\n",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    if have("openssl") {
        for version in ["-tls1_2", "-tls1_3"] {
            let output = Command::new("openssl")
                .args(["s_client", "-verify_return_error", version, "-CAfile"])
                .arg(&pem)
                .args(["-connect", &address.to_string()])
                .stdin(std::process::Stdio::null())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                text.contains("Verify return code: 0 (ok)"),
                "{version}: {text}"
            );
        }
        let output = Command::new("openssl")
            .args(["x509", "-noout", "-text", "-in"])
            .arg(&pem)
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("2.23.133.5.4.9"));
    }
}

#[test]
fn slow_and_silent_endpoints_are_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            kept.push(stream);
        }
    });
    let reason = |address: &str, milliseconds| {
        let seen = endpoint::look(address, b"", Duration::from_millis(milliseconds));
        seen.err().unwrap().to_string()
    };
    let text = reason(&address, 300);
    assert!(text.contains("no answer within 0.3 s"), "{text}");
    // Not TLS at all.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
        }
    });
    let text = reason(&address, 5000);
    assert!(text.contains("does not speak TLS"), "{text}");
    // Hangs up at once; is not there at all.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let closing = thread::spawn(move || drop(listener.accept()));
    let text = reason(&address, 5000);
    assert!(text.contains("hung up"), "{text}");
    closing.join().unwrap();
    let text = reason(&address, 5000);
    assert!(text.contains("nothing listens there"), "{text}");
}
