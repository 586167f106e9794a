//! How fast: `cargo test --release -p bulla-attest --test speed -- --ignored --nocapture`.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulla_attest::emulated::Parameters;
use bulla_attest::ratls::{
    Approval, Approver, Attester, Request, client_config, issue, server_config,
};
use bulla_attest::{Collateral, Judge, verify};
use common::{CPU_SVN, IN_DATE, Machine, NOW, policy, real};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

/// Operations per second.
fn rate(mut operation: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < Duration::from_secs(2) {
        operation();
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

/// The same over a list that is used up once; its length is enough for about two seconds.
fn rate_of<'a, T: 'a>(items: impl Iterator<Item = &'a T>, mut operation: impl FnMut(&'a T)) -> f64 {
    let start = Instant::now();
    let mut count = 0;
    for item in items {
        operation(item);
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

fn to_library(collateral: &Collateral) -> dcap_qvl::QuoteCollateralV3 {
    dcap_qvl::QuoteCollateralV3 {
        pck_crl_issuer_chain: collateral.pck_crl_issuer_chain.clone(),
        root_ca_crl: collateral.root_ca_crl.clone(),
        pck_crl: collateral.pck_crl.clone(),
        tcb_info_issuer_chain: collateral.tcb_info_issuer_chain.clone(),
        tcb_info: collateral.tcb_info.clone(),
        tcb_info_signature: collateral.tcb_info_signature.clone(),
        qe_identity_issuer_chain: collateral.qe_identity_issuer_chain.clone(),
        qe_identity: collateral.qe_identity.clone(),
        qe_identity_signature: collateral.qe_identity_signature.clone(),
        pck_certificate_chain: None,
    }
}

/// A whole handshake in memory.
fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client: Connection = ClientConnection::new(client.clone(), name).unwrap().into();
    let mut server: Connection = ServerConnection::new(server.clone()).unwrap().into();
    while client.is_handshaking() || server.is_handshaking() {
        for turn in 0..2 {
            let (from, to) = if turn == 0 {
                (&mut client, &mut server)
            } else {
                (&mut server, &mut client)
            };
            let mut bytes = Vec::new();
            while from.wants_write() {
                from.write_tls(&mut bytes).unwrap();
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                to.read_tls(&mut rest).unwrap();
                to.process_new_packets().unwrap();
            }
        }
    }
}

/// Approves without looking: what is left is plain mutual TLS with the same keys.
struct Anyone;

impl Approver for Anyone {
    fn approve(&self, _: &[u8], _: u64) -> Result<Approval, String> {
        Ok(Approval { until: 0 })
    }
}

#[test]
#[ignore = "measures for seconds; part of the benchmarks"]
fn speed() {
    // Another quote each time, all of one machine whose collateral is at hand: nothing of a quote
    // has been seen before but its chain and its quoting enclave's report.
    let machine = Machine::usual();
    let quotes: Vec<Vec<u8>> = (0..4000u64)
        .map(|number| {
            let mut data = [0; 64];
            data[..8].copy_from_slice(&number.to_le_bytes());
            machine.quote(&data).unwrap()
        })
        .collect();
    let collateral = machine.collateral();
    let root = bulla_attest::pem_certificates(machine.provisioning.pck_chain())
        .unwrap()
        .pop()
        .unwrap();
    let verifier = dcap_qvl::verify::QuoteVerifier::new(root).allow_debug(true);
    let library = to_library(&collateral);
    let mut next = quotes.iter().cycle();
    let alone = rate(|| {
        drop(
            verifier
                .verify(next.next().unwrap(), &library, NOW)
                .unwrap(),
        )
    });
    let mut next = quotes.iter();
    let ours = rate_of(&mut next, |quote| {
        drop(verify(quote, &collateral, NOW).unwrap())
    });
    println!("verify new quotes of a known machine: {ours:.0}/s; dcap-qvl alone: {alone:.0}/s");
    let (quote, collateral) = real("sgx");
    let library = to_library(&collateral);
    let verifier = dcap_qvl::verify::QuoteVerifier::new_prod().allow_debug(true);
    let alone = rate(|| drop(verifier.verify(&quote, &library, IN_DATE).unwrap()));
    let ours = rate(|| drop(verify(&quote, &collateral, IN_DATE).unwrap()));
    println!("verify one real quote again: {ours:.0}/s; dcap-qvl alone: {alone:.0}/s");

    let report = machine.report.to_bytes();
    let quotes = rate(|| drop(machine.enclave.quote(&report).unwrap()));
    println!("emulated quote: {:.3} ms", 1e3 / quotes);
    let request = Request::new(NOW);
    let certificates = rate(|| drop(issue(&machine, &request).unwrap()));
    println!("key and RA-TLS certificate: {:.3} ms", 1e3 / certificates);

    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let machine = Machine::new(&Parameters::new(CPU_SVN, now));
    let own = issue(&machine, &Request::new(now)).unwrap();
    let plain = {
        let plain = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        bulla_attest::ratls::TlsIdentity {
            certificate: plain.cert.der().to_vec(),
            key: plain.signing_key.serialize_der().into(),
        }
    };
    let judge = || -> Arc<dyn Approver> {
        Arc::new(Judge {
            policy: policy(),
            source: Arc::new(machine.collateral()),
            disclosed: None,
        })
    };
    let anyone = || -> Arc<dyn Approver> { Arc::new(Anyone) };
    let client = Arc::new(client_config(anyone(), Some(&plain)).unwrap());
    let server = Arc::new(server_config(&plain, Some(anyone())).unwrap());
    let mutual = rate(|| handshake(&client, &server));
    let client = Arc::new(client_config(judge(), Some(&own)).unwrap());
    let server = Arc::new(server_config(&own, Some(judge())).unwrap());
    let known = rate(|| handshake(&client, &server));
    // New certificates with new quotes on both sides each time, of a machine whose chain is known. The
    // configurations are made outside of what is measured, and remember nobody.
    let pairs: Vec<_> = (0..1500)
        .map(|_| {
            let own = issue(&machine, &Request::new(now)).unwrap();
            let other = issue(&machine, &Request::new(now)).unwrap();
            let client = Arc::new(client_config(judge(), Some(&own)).unwrap());
            (
                client,
                Arc::new(server_config(&other, Some(judge())).unwrap()),
            )
        })
        .collect();
    let fresh = rate_of(pairs.iter(), |(client, server)| handshake(client, server));
    println!(
        "mutual handshake: plain {:.2} ms, attested {:.2} ms (certificates seen before), {:.2} ms (never seen)",
        1e3 / mutual,
        1e3 / known,
        1e3 / fresh
    );
}
