//! How fast: `cargo test --release -p bulla-attest --test speed -- --ignored --nocapture`.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulla_attest::emulated::Parameters;
use bulla_attest::ratls::{Approver, Attester, Request, client_config, issue, server_config};
use bulla_attest::{Collateral, Judge, verify};
use common::{CPU_SVN, IN_DATE, Machine, NOW, policy, real};
use rustls::crypto::ring as provider;
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

/// Plain mutual TLS: both show certificates of an authority that both know, and verify the other's, as
/// rustls does it by itself.
fn plain() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::server::WebPkiClientVerifier;
    let key = || rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(params, key()).unwrap();
    let issued = || {
        let key = key();
        let params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (vec![certificate.der().clone()], key.into())
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let (roots, provider) = (Arc::new(roots), Arc::new(provider::default_provider()));
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
    let (chain, key) = issued();
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let (chain, key) = issued();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    client.resumption = rustls::client::Resumption::disabled();
    (Arc::new(client), Arc::new(server))
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
    let judge = || -> Arc<dyn Approver> {
        Arc::new(Judge {
            policy: policy(),
            source: Arc::new(machine.collateral()),
            disclosed: None,
        })
    };
    let (client, server) = plain();
    let mutual = rate(|| handshake(&client, &server));
    let client = Arc::new(client_config(judge(), Some(&own)).unwrap());
    let server = Arc::new(server_config(&own, Some(judge().into())).unwrap());
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
                Arc::new(server_config(&other, Some(judge().into())).unwrap()),
            )
        })
        .collect();
    let fresh = rate_of(pairs.iter(), |(client, server)| handshake(client, server));
    println!(
        "mutual handshake: plain {:.2} ms, attested {:.2} ms = {:.1} x (certificates seen before), {:.2} ms = {:.1} x (never seen)",
        1e3 / mutual,
        1e3 / known,
        mutual / known,
        1e3 / fresh,
        mutual / fresh
    );
}
