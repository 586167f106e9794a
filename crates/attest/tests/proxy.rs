//! The relay: a plain client and a plain server, attested TLS between two proxies.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use bulla_attest::emulated::Parameters;
use bulla_attest::proxy::{Issuer, Side, run};
use bulla_attest::ratls::{Approver, Request, issue};
use bulla_attest::{Judge, NoSource, Policy};
use common::{CPU_SVN, Machine, policy};

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
        run("127.0.0.1:0", &forward, side, issuer, &mut |line| {
            drop(say.send(line))
        })
        .unwrap();
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
        clients: Some(approver(policy())),
    };
    let (server, _said) = start(echo(), server_side, Some(issuer(|_| ())));
    let client_side = Side::Client {
        server: approver(policy()),
    };
    let (client, _said2) = start(server, client_side, Some(issuer(|_| ())));
    assert_eq!(talk(&client, b"hello"), b"HELLO");
    let large = vec![b'x'; 1 << 20];
    assert_eq!(talk(&client, &large), vec![b'X'; 1 << 20]);
}

#[test]
fn nothing_passes_to_or_from_the_wrong_peer() {
    let other: fn(&mut Machine) = |machine| machine.report.mrenclave = [7; 32];
    // The server is another enclave.
    let (server, _said) = start(echo(), Side::Server { clients: None }, Some(issuer(other)));
    let (client, said) = start(
        server,
        Side::Client {
            server: approver(policy()),
        },
        None,
    );
    assert_eq!(talk(&client, b"secret"), b"");
    let reason = said.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(reason.contains("not trusted"), "{reason}");
    // The client is another enclave, or none.
    let clients = Side::Server {
        clients: Some(approver(policy())),
    };
    let (server, said) = start(echo(), clients, Some(issuer(|_| ())));
    for own in [Some(issuer(other)), None] {
        let side = Side::Client {
            server: approver(policy()),
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
