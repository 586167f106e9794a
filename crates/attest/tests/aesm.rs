//! A stand-in for aesmd: the protocol, and every way in which it may misbehave.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use bulla_attest::{Aesm, AesmError, verify};
use common::{Machine, NOW};

/// Protobuf, written by hand so that the client is not tested against itself.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    [
        varint(u64::from(number << 3 | 2)),
        varint(bytes.len() as u64),
        bytes.to_vec(),
    ]
    .concat()
}

fn number(field: u32, value: u64) -> Vec<u8> {
    [varint(u64::from(field << 3)), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// The tag of the only field of a request.
fn request(stream: &mut UnixStream) -> Option<(u64, Vec<u8>)> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut message).ok()?;
    let (mut tag, mut at, mut shift) = (0u64, 0, 0);
    loop {
        let byte = message[at];
        tag |= u64::from(byte & 0x7f) << shift;
        at += 1;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some((tag >> 3, message))
}

fn answer(stream: &mut UnixStream, message: &[u8]) {
    let _ = stream.write_all(&(message.len() as u32).to_le_bytes());
    let _ = stream.write_all(message);
}

fn key_id(algorithm: u32) -> [u8; 256] {
    let mut id = [0; 256];
    id[154..158].copy_from_slice(&algorithm.to_le_bytes());
    id
}

/// Serves as aesmd does; `spoil` may answer otherwise.
fn serve(
    socket: &Path,
    machine: Machine,
    spoil: impl Fn(u64, &mut UnixStream) -> bool + Send + 'static,
) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let Some((tag, message)) = request(&mut stream) else {
                continue;
            };
            if spoil(tag, &mut stream) {
                continue;
            }
            let ok = number(1, 0);
            let body = match tag {
                21 => [ok, number(2, 2)].concat(),
                22 => [ok, field(2, &[key_id(3), key_id(2)].concat())].concat(),
                15 => {
                    let target = machine.enclave.target_info().to_bytes();
                    [ok, field(2, &target), number(3, 32)].concat()
                }
                16 => [ok, number(2, 8192)].concat(),
                17 => {
                    // The report is the only run of 432 bytes: tag 1, length 0xb0 0x03.
                    let at = message
                        .windows(3)
                        .position(|w| w == [0x0a, 0xb0, 3])
                        .unwrap()
                        + 3;
                    let quote = machine.enclave.quote(&message[at..at + 432]).unwrap();
                    [ok, field(2, &quote)].concat()
                }
                other => panic!("request {other}"),
            };
            answer(&mut stream, &field(tag as u32, &body));
        }
    });
}

#[test]
fn quotes_come_through_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("aesm.socket");
    let machine = Machine::usual();
    let (report, collateral) = (machine.report.to_bytes(), machine.collateral());
    serve(&socket, machine, |_, _| false);
    let aesm = Aesm::at(&socket);
    let target = aesm.target_info().unwrap();
    assert_eq!(target, bulla_attest::emulated::target_info().to_bytes());
    let quote = aesm.quote(&report).unwrap();
    verify(&quote, &collateral, NOW).unwrap();
}

#[test]
fn a_misbehaving_service_is_an_error_that_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Aesm::at(&dir.path().join("none"))
        .target_info()
        .unwrap_err();
    assert!(matches!(missing, AesmError::Connect { .. }), "{missing}");
    assert!(missing.to_string().contains("start aesmd"));

    type Spoil = fn(u64, &mut UnixStream) -> bool;
    let cases: &[(&str, Spoil, &str)] = &[
        (
            "refusal",
            |tag, stream| {
                answer(stream, &field(tag as u32, &number(1, 44)));
                true
            },
            "PCCS URL",
        ),
        (
            "unsupported",
            |_, stream| {
                answer(stream, &field(20, &number(1, 30)));
                true
            },
            "quote-ex-plugin",
        ),
        ("hang-up", |_, _| true, "did not answer"),
        (
            "garbage",
            |_, stream| {
                answer(stream, &[0xff; 40]);
                true
            },
            "did not answer",
        ),
        (
            "other answer",
            |_, stream| {
                answer(stream, &field(1, &number(1, 0)));
                true
            },
            "missing",
        ),
        (
            "endless",
            |_, stream| {
                let _ = stream.write_all(&u32::MAX.to_le_bytes());
                true
            },
            "bytes",
        ),
        (
            "no ECDSA key",
            |tag, stream| {
                if tag == 22 {
                    let body = [number(1, 0), field(2, &key_id(3))].concat();
                    answer(stream, &field(22, &body));
                }
                tag == 22
            },
            "no ECDSA",
        ),
        (
            "short target",
            |tag, stream| {
                if tag == 15 {
                    let body = [number(1, 0), field(2, &[0; 100]), number(3, 32)].concat();
                    answer(stream, &field(15, &body));
                }
                tag == 15
            },
            "missing",
        ),
        (
            "slow",
            |_, stream| {
                // A byte at a time: the deadline counts, not the pauses.
                for _ in 0..30 {
                    if stream.write_all(&[1]).is_err() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(50));
                }
                true
            },
            "did not answer",
        ),
    ];
    for (name, spoil, expected) in cases {
        let socket = dir.path().join(name.replace(' ', "-"));
        serve(&socket, Machine::usual(), spoil);
        let aesm = Aesm::at(&socket).with_timeout(Duration::from_millis(400));
        let error = aesm
            .quote(&common::report([0; 64]).to_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}
