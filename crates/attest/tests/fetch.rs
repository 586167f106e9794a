//! Collateral over HTTP: a stand-in for a PCCS serves the saved collateral, or misbehaves.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bulla_attest::fetch::Service;
use bulla_attest::{Collateral, CollateralSource, Quote, Saved, verify};
use common::{IN_DATE, Machine, real};

fn encode(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => (byte as char).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// What a PCCS answers to a path.
fn answer(path: &str, collateral: &Collateral) -> Option<(String, Vec<u8>)> {
    let signed = |name: &str, text: &str, signature: &[u8]| {
        format!(
            "{{\"{name}\":{text},\"signature\":\"{}\"}}",
            hex::encode(signature)
        )
        .into_bytes()
    };
    Some(match path {
        "/sgx/certification/v4/tcb?fmspc=00a067110000" => (
            format!(
                "TCB-Info-Issuer-Chain: {}",
                encode(&collateral.tcb_info_issuer_chain)
            ),
            signed(
                "tcbInfo",
                &collateral.tcb_info,
                &collateral.tcb_info_signature,
            ),
        ),
        "/sgx/certification/v4/qe/identity" => (
            format!(
                "SGX-Enclave-Identity-Issuer-Chain: {}",
                encode(&collateral.qe_identity_issuer_chain)
            ),
            signed(
                "enclaveIdentity",
                &collateral.qe_identity,
                &collateral.qe_identity_signature,
            ),
        ),
        path if path.starts_with("/sgx/certification/v4/pckcrl?ca=") => (
            format!(
                "SGX-PCK-CRL-Issuer-Chain: {}",
                encode(&collateral.pck_crl_issuer_chain)
            ),
            collateral.pck_crl.clone(),
        ),
        "/sgx/certification/v4/rootcacrl" => (
            "X: y".into(),
            hex::encode(&collateral.root_ca_crl).into_bytes(),
        ),
        _ => return None,
    })
}

type Serve = dyn Fn(&str, &mut TcpStream) + Send + Sync;

/// A server; its address and the number of requests.
fn start(serve: Box<Serve>) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicU32::new(0));
    let (serve, counted) = (Arc::new(serve), count.clone());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, serve, counted) = (stream.unwrap(), serve.clone(), counted.clone());
            thread::spawn(move || {
                let mut request = Vec::new();
                let mut byte = [0; 1];
                while !request.ends_with(b"\r\n\r\n")
                    && stream.read(&mut byte).is_ok_and(|n| n == 1)
                {
                    request.push(byte[0]);
                }
                counted.fetch_add(1, Ordering::SeqCst);
                let text = String::from_utf8_lossy(&request).into_owned();
                serve(text.split(' ').nth(1).unwrap_or(""), &mut stream);
            });
        }
    });
    (base, count)
}

fn respond(stream: &mut TcpStream, status: &str, header: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status}\r\n{header}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
}

fn good(path: &str, stream: &mut TcpStream) {
    match answer(path, &real("sgx").1) {
        Some((header, body)) => respond(stream, "200 OK", &header, &body),
        None => respond(stream, "404 Not Found", "X: y", b""),
    }
}

#[test]
fn collateral_is_fetched_once_and_cached_until_it_expires() {
    let (quote, saved) = real("sgx");
    let decoded = Quote::decode(&quote).unwrap().0;
    let dir = tempfile::tempdir().unwrap();
    let (base, count) = start(Box::new(good));
    let service = Service::new(
        &base,
        false,
        Duration::from_secs(10),
        Some(dir.path().join("c")),
    );
    let fetched = service.collateral(&decoded, IN_DATE).unwrap();
    assert_eq!(fetched, saved);
    verify(&quote, &fetched, IN_DATE).unwrap();
    let after_one = count.load(Ordering::SeqCst);
    assert_eq!(service.collateral(&decoded, IN_DATE + 60).unwrap(), saved);
    assert_eq!(count.load(Ordering::SeqCst), after_one, "from the cache");
    service
        .collateral(&decoded, IN_DATE + 365 * 86_400)
        .unwrap();
    assert!(
        count.load(Ordering::SeqCst) > after_one,
        "the cache had expired"
    );
    // What is cached is a directory of saved collateral.
    let directory = Saved {
        path: dir.path().join("c"),
    };
    assert_eq!(directory.collateral(&decoded, IN_DATE).unwrap(), saved);
    let tdx = Quote::decode(&real("tdx").0).unwrap().0;
    assert!(directory.collateral(&tdx, IN_DATE).is_err());
    // Nobody is asked about emulated platforms.
    let emulated = Machine::usual();
    let emulated = emulated.enclave.quote(&emulated.report.to_bytes()).unwrap();
    let before = count.load(Ordering::SeqCst);
    assert!(
        service
            .collateral(&Quote::decode(&emulated).unwrap().0, IN_DATE)
            .is_err()
    );
    assert_eq!(count.load(Ordering::SeqCst), before);
}

#[test]
fn services_that_misbehave_are_errors_in_time() {
    let decoded = Quote::decode(&real("sgx").0).unwrap().0;
    let cases: Vec<(&str, Box<Serve>)> = vec![
        (
            "silent",
            Box::new(|_, _| thread::sleep(Duration::from_secs(30))),
        ),
        (
            "slow",
            Box::new(|_, stream| {
                for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
                    .iter()
                    .cycle()
                {
                    if stream.write_all(&[*byte]).is_err() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
            }),
        ),
        (
            "endless",
            Box::new(|_, stream| {
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\nTCB-Info-Issuer-Chain: x\r\nConnection: close\r\n\r\n",
                );
                while stream.write_all(&[b' '; 4096]).is_ok() {}
            }),
        ),
        (
            "not HTTP",
            Box::new(|_, stream| {
                let _ = stream.write_all(b"220 mail ready\r\n");
            }),
        ),
        (
            "error",
            Box::new(|_, stream| respond(stream, "500 Oops", "X: y", b"{}")),
        ),
        (
            "no chain",
            Box::new(|_, stream| respond(stream, "200 OK", "X: y", b"{}")),
        ),
        (
            "no JSON",
            Box::new(|_, stream| {
                respond(stream, "200 OK", "TCB-Info-Issuer-Chain: x", b"<html>");
            }),
        ),
        (
            "redirects",
            Box::new(|path, stream| {
                respond(stream, "302 Found", &format!("Location: {path}x"), b"");
            }),
        ),
        ("hang-up", Box::new(|_, _| ())),
    ];
    for (name, serve) in cases {
        let (base, _) = start(serve);
        let service = Service::new(&base, false, Duration::from_millis(800), None);
        let start = Instant::now();
        assert!(service.collateral(&decoded, IN_DATE).is_err(), "{name}");
        assert!(
            start.elapsed() < Duration::from_secs(25),
            "{name} was not given up"
        );
    }
    // Nonsense in the right shape is fetched, and refused by the verifier.
    let (base, _) = start(Box::new(|path, stream| {
        let mut wrong = real("sgx").1;
        wrong.tcb_info = wrong.tcb_info.replace("OutOfDate", "UpToDate");
        let (header, body) = answer(path, &wrong).unwrap();
        respond(stream, "200 OK", &header, &body);
    }));
    let service = Service::new(&base, false, Duration::from_secs(10), None);
    let wrong = service.collateral(&decoded, IN_DATE).unwrap();
    assert!(verify(&real("sgx").0, &wrong, IN_DATE).is_err());
}
