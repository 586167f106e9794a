//! The relay: a plain client and a plain server, attested TLS between two proxies.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use bulla_attest::emulated::Parameters;
use bulla_attest::proxy::{Issuer, Relay, Side, run};
use bulla_attest::ratls::{Approval, Approver, Issued, Peers, Request, TlsIdentity, issue};
use bulla_attest::{Judge, NoSource, Policy};
use common::{CPU_SVN, Machine, policy};
use rustls::client::danger::ServerCertVerifier;
use rustls::server::danger::ClientCertVerifier;

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

fn approver(policy: Policy) -> Arc<dyn Approver> {
    Arc::new(Judge {
        policy,
        source: Arc::new(NoSource),
        disclosed: None,
    })
}

fn issuer(change: fn(&mut Machine)) -> Issuer {
    let mut machine = Machine::new(&Parameters::new(CPU_SVN, now()));
    change(&mut machine);
    Box::new(move || issue(&machine, &Request::new(now())).map_err(|error| error.to_string()))
}

/// Starts a proxy; its address and what it says.
fn start(forward: String, side: Side, issuer: Option<Issuer>) -> (String, mpsc::Receiver<String>) {
    let (say, said) = mpsc::channel();
    thread::spawn(move || {
        let relay = Relay {
            listen: "127.0.0.1:0".into(),
            forward,
            side,
            issuer,
            timeout: Duration::from_secs(20),
        };
        run(relay, &mut |line| drop(say.send(line))).unwrap();
    });
    let line = said.recv_timeout(Duration::from_secs(20)).unwrap();
    (line.rsplit(' ').next().unwrap().to_string(), said)
}

/// Sends everything back in capitals.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    bytes[..count].make_ascii_uppercase();
                    if stream.write_all(&bytes[..count]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

fn talk(address: &str, words: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sent = words.to_vec();
    thread::spawn(move || {
        let _ = writer.write_all(&sent);
        let _ = writer.shutdown(std::net::Shutdown::Write);
    });
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn plain_programs_talk_through_attested_tls() {
    let server_side = Side::Server {
        clients: Some(approver(policy()).into()),
    };
    let (server, _said) = start(echo(), server_side, Some(issuer(|_| ())));
    let client_side = Side::Client {
        server: approver(policy()).into(),
    };
    let (client, _said2) = start(server, client_side, Some(issuer(|_| ())));
    assert_eq!(talk(&client, b"hello"), b"HELLO");
    let large = vec![b'x'; 1 << 20];
    assert_eq!(talk(&client, &large), vec![b'X'; 1 << 20]);
}

/// One peer's judgement takes its time (its collateral is fetched); the others' does not.
#[test]
fn a_slow_judgement_holds_nobody_else_up() {
    type Slot = (mpsc::Sender<()>, mpsc::Receiver<()>);
    struct SlowOnce(Arc<dyn Approver>, Mutex<Option<Slot>>);
    impl Approver for SlowOnce {
        fn approve(&self, certificate: &[u8], now: u64) -> Result<Approval, String> {
            let first = self.1.lock().unwrap().take();
            if let Some((entered, go_on)) = first {
                entered.send(()).unwrap();
                go_on.recv().unwrap();
            }
            self.0.approve(certificate, now)
        }
    }
    let (server, _said) = start(echo(), Side::Server { clients: None }, Some(issuer(|_| ())));
    let (release, go_on) = mpsc::channel();
    let (entered, is_in) = mpsc::channel();
    let slow = SlowOnce(approver(policy()), Mutex::new(Some((entered, go_on))));
    let side = Side::Client {
        server: Peers::Attested(Arc::new(slow)),
    };
    let (client, _said2) = start(server, side, None);
    let first = client.clone();
    let first = thread::spawn(move || talk(&first, b"slow"));
    // Only once the others have had their answers does the first get on.
    is_in.recv_timeout(Duration::from_secs(20)).unwrap();
    for _ in 0..3 {
        assert_eq!(talk(&client, b"quick"), b"QUICK");
    }
    assert!(!first.is_finished());
    release.send(()).unwrap();
    assert_eq!(first.join().unwrap(), b"SLOW");
}

#[test]
fn five_hundred_connections_at_once() {
    let server_side = Side::Server {
        clients: Some(approver(policy()).into()),
    };
    let (server, _said) = start(echo(), server_side, Some(issuer(|_| ())));
    let client_side = Side::Client {
        server: approver(policy()).into(),
    };
    let (client, _said2) = start(server, client_side, Some(issuer(|_| ())));
    // All are open before the first says something.
    let open: Vec<TcpStream> = (0..500)
        .map(|_| TcpStream::connect(&client).unwrap())
        .collect();
    for (index, mut stream) in open.iter().enumerate() {
        stream
            .write_all(format!("hello {index}").as_bytes())
            .unwrap();
    }
    for (index, mut stream) in open.iter().enumerate() {
        let expected = format!("HELLO {index}");
        let mut answer = vec![0; expected.len()];
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), expected);
    }
}

#[test]
fn silent_peers_are_given_up_and_wrong_addresses_named() {
    // It accepts and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = silent.local_addr().unwrap().to_string();
    let relay = |listen: &str, forward: &str| Relay {
        listen: listen.into(),
        forward: forward.into(),
        side: Side::Client {
            server: approver(policy()).into(),
        },
        issuer: None,
        timeout: Duration::from_millis(200),
    };
    let (say, said) = mpsc::channel();
    let waiting = relay("127.0.0.1:0", &forward);
    thread::spawn(move || run(waiting, &mut |line| drop(say.send(line))));
    let line = said.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(talk(line.rsplit(' ').next().unwrap(), b"hello"), b"");
    let reason = said.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(reason.contains("no answer within 0.2 s"), "{reason}");
    for (listen, forward) in [
        ("here", "127.0.0.1:1"),
        ("127.0.0.1:0", "there"),
        ("127.0.0.1:99999", "127.0.0.1:1"),
        (":5", "127.0.0.1:1"),
        (&forward, "127.0.0.1:1"),
    ] {
        let error = run(relay(listen, forward), &mut |_| ()).unwrap_err();
        let named = [listen, forward]
            .iter()
            .any(|word| error.to_string().contains(word));
        assert!(named, "{error}");
    }
}

#[test]
fn nothing_passes_to_or_from_the_wrong_peer() {
    let other: fn(&mut Machine) = |machine| machine.report.mrenclave = [7; 32];
    // The server is another enclave.
    let (server, _said) = start(echo(), Side::Server { clients: None }, Some(issuer(other)));
    let (client, said) = start(
        server,
        Side::Client {
            server: approver(policy()).into(),
        },
        None,
    );
    assert_eq!(talk(&client, b"secret"), b"");
    let reason = said.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(reason.contains("not trusted"), "{reason}");
    // The client is another enclave, or none.
    let clients = Side::Server {
        clients: Some(approver(policy()).into()),
    };
    let (server, said) = start(echo(), clients, Some(issuer(|_| ())));
    for own in [Some(issuer(other)), None] {
        let side = Side::Client {
            server: approver(policy()).into(),
        };
        let (client, _said) = start(server.clone(), side, own);
        assert_eq!(talk(&client, b"command"), b"");
        said.recv_timeout(Duration::from_secs(20)).unwrap();
    }
    // A client that does not speak TLS.
    assert!(
        !talk(&server, b"plain")
            .windows(5)
            .any(|window| window == b"PLAIN")
    );
}

/// Marbles have no quotes in their certificates: their coordinator issued them.
#[test]
fn issued_certificates_pass_until_they_are_revoked() {
    let authority = Authority::new("marble root");
    let (good, bad) = (authority.issue(1), authority.issue(2));
    let issued = Arc::new(authority.verifier(&[2]));
    let side = Side::Server {
        clients: Some(issued.clone().into()),
    };
    let always = |own: &TlsIdentity| -> Option<Issuer> {
        let (key, certificate) = (own.key.clone(), own.certificate.clone());
        Some(Box::new(move || {
            Ok(TlsIdentity {
                key: key.clone(),
                certificate: certificate.clone(),
            })
        }))
    };
    let (server, _said) = start(echo(), side, always(&good));
    let client = |own: &TlsIdentity| {
        let side = Side::Client {
            server: Peers::Issued(issued.clone()),
        };
        // By name: the certificate is for localhost.
        let forward = server.replace("127.0.0.1", "localhost");
        start(forward, side, always(own))
    };
    assert_eq!(talk(&client(&good).0, b"hello"), b"HELLO");
    assert_eq!(talk(&client(&bad).0, b"hello"), b"");
    let stranger = Authority::new("marble root").issue(1);
    assert_eq!(talk(&client(&stranger).0, b"hello"), b"");
    // Taken back while the proxies run.
    let (running, said) = client(&good);
    assert_eq!(talk(&running, b"hello"), b"HELLO");
    issued.renew(&authority.list(&[1, 2], 1, 600)).unwrap();
    assert_eq!(talk(&running, b"hello"), b"");
    let reason = said.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(reason.to_lowercase().contains("revoked"), "{reason}");
}

#[test]
fn every_way_to_be_no_issued_peer_is_a_refusal() {
    let authority = Authority::new("marble root");
    let other = Authority::new("another root");
    let leaf = authority.issue(7);
    let at = |issued: &Issued, leaf: &TlsIdentity, name: &str, after: i64| {
        let now = rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(
            now().checked_add_signed(after).unwrap(),
        ));
        let der = leaf.certificate.clone().into();
        let name = rustls::pki_types::ServerName::try_from(name.to_string()).unwrap();
        let server = issued.verify_server_cert(&der, &[], &name, &[], now);
        let client = issued.verify_client_cert(&der, &[], now);
        (server.is_ok(), client.is_ok())
    };
    let good = authority.verifier(&[]);
    assert_eq!(at(&good, &leaf, "localhost", 0), (true, true));
    // Clients have no name to go by.
    assert_eq!(at(&good, &leaf, "elsewhere", 0), (false, true));
    let never = (false, false);
    assert_eq!(at(&authority.verifier(&[7]), &leaf, "localhost", 0), never);
    assert_eq!(at(&good, &other.issue(7), "localhost", 0), never);
    // The list has run out, the certificate, or they are of the future.
    for after in [601, 86_500, -7200] {
        assert_eq!(at(&good, &leaf, "localhost", after), never, "{after}");
    }
    // A list that another authority made says nothing of this one's certificates, even under its name.
    for forger in [&other, &Authority::new("marble root")] {
        let list = forger.list(&[], 0, 600);
        let odd = Issued::new(authority.pem.as_bytes(), &list).unwrap();
        assert_eq!(at(&odd, &leaf, "localhost", 0), never);
        assert!(good.renew(&list).is_ok());
        assert_eq!(at(&good, &leaf, "localhost", 0), never);
        good.renew(&authority.list(&[], 0, 600)).unwrap();
    }
    assert_eq!(at(&good, &leaf, "localhost", 0), (true, true));
    // An enclave's own certificate is nobody's that was issued.
    let machine = Machine::new(&Parameters::new(CPU_SVN, now()));
    let attested = issue(&machine, &Request::new(now())).unwrap();
    assert_eq!(at(&good, &attested, "localhost", 0), never);
    // Older lists, and what is none, change nothing.
    good.renew(&authority.list(&[7], 0, 600)).unwrap();
    assert!(good.renew(&authority.list(&[], -60, 600)).is_err());
    let list = authority.list(&[], 0, 600);
    for wrong in [
        &b""[..],
        b"-----BEGIN X509 CRL-----",
        &list[..list.len() - 1],
        &vec![0x30; 5 << 20],
    ] {
        assert!(good.renew(wrong).is_err());
        assert!(Issued::new(authority.pem.as_bytes(), wrong).is_err());
    }
    assert_eq!(at(&good, &leaf, "localhost", 0), never);
    for wrong in [&b""[..], b"no PEM", &[0xff], &list] {
        assert!(Issued::new(wrong, &list).is_err());
    }
}

/// Issues certificates for localhost, and says which of them are revoked.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![
            rcgen::KeyUsagePurpose::KeyCertSign,
            rcgen::KeyUsagePurpose::CrlSign,
        ];
        let pem = params.self_signed(&key).unwrap().pem();
        Authority {
            issuer: rcgen::Issuer::new(params, key),
            pem,
        }
    }

    fn issue(&self, serial: u64) -> TlsIdentity {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.serial_number = Some(serial.into());
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        TlsIdentity {
            certificate: certificate.der().to_vec(),
            key: key.serialize_der().into(),
        }
    }

    /// Made `after` seconds from now, and good for so many.
    fn list(&self, serials: &[u64], after: i64, seconds: i64) -> Vec<u8> {
        let made = time::OffsetDateTime::now_utc() + time::Duration::seconds(after);
        let revoked = |serial: &u64| rcgen::RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: made,
            reason_code: None,
            invalidity_date: None,
        };
        rcgen::CertificateRevocationListParams {
            this_update: made,
            next_update: made + time::Duration::seconds(seconds),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)
        .unwrap()
        .der()
        .to_vec()
    }

    fn verifier(&self, serials: &[u64]) -> Issued {
        Issued::new(self.pem.as_bytes(), &self.list(serials, 0, 600)).unwrap()
    }
}
