//! `bulla proxy`: attested TLS for programs that speak plain TCP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bulla_attest::Device;
use bulla_attest::proxy::{self, Relay, Side};
use bulla_attest::ratls::{Approver, Issued, Peers, Request, TlsIdentity, issue};

use crate::args::{ProxyArguments, ProxySide};
use crate::failure::Failure;
use crate::quoter::now;
use crate::verify::{bad_input, judge_of, read};

/// How old a revocation list gets before it is read again.
const LIST_AGE: Duration = Duration::from_secs(30);

/// Relays until it is ended.
pub fn run(arguments: &ProxyArguments) -> Result<(), Failure> {
    let peers = peers(arguments)?;
    let identity = {
        let names = arguments.name.clone();
        let gramine = arguments.gramine;
        move || -> Result<TlsIdentity, String> {
            let request = Request {
                names: names.clone(),
                gramine,
                ..Request::new(now())
            };
            issue(&Device::new(), &request).map_err(|error| error.to_string())
        }
    };
    let needs_identity = arguments.side == ProxySide::Server || arguments.attest;
    if needs_identity && !Device::new().is_present() {
        return Err(Failure::new(
            "there is no /dev/attestation: only inside an enclave can a proxy show a quote; run it \
             with `bulla run`",
        ));
    }
    let side = match (arguments.side, peers) {
        (ProxySide::Server, clients) => Side::Server { clients },
        (ProxySide::Client, Some(server)) => Side::Client { server },
        (ProxySide::Client, None) => {
            return Err(Failure::new(
                "a client needs --policy, or --authority and --crl: whom to trust",
            ));
        }
    };
    let identity = needs_identity.then_some(Box::new(identity) as proxy::Issuer);
    let relay = Relay {
        listen: arguments.listen.clone(),
        forward: arguments.forward.clone(),
        side,
        issuer: identity,
        timeout: Duration::from_secs(arguments.collateral.timeout),
    };
    proxy::run(relay, &mut |line| {
        eprintln!("bulla: {line}");
    })
    .map_err(Failure::new)
}

/// Whom to trust.
fn peers(arguments: &ProxyArguments) -> Result<Option<Peers>, Failure> {
    if let Some(policy) = &arguments.policy {
        let judge: Arc<dyn Approver> = Arc::new(judge_of(policy, &arguments.collateral)?);
        return Ok(Some(judge.into()));
    }
    let (Some(authority), Some(list)) = (&arguments.authority, &arguments.crl) else {
        return Ok(None);
    };
    let issued = Issued::new(&read(authority)?, &read(list)?).map_err(bad_input)?;
    let issued = Arc::new(issued);
    let (renewed, list) = (issued.clone(), list.clone());
    std::thread::Builder::new()
        .spawn(move || renew(&renewed, &list))
        .map_err(Failure::new)?;
    Ok(Some(issued.into()))
}

/// Reads the list anew for ever; the one before holds until it runs out.
fn renew(issued: &Issued, list: &Path) {
    loop {
        std::thread::sleep(LIST_AGE);
        let renewed = read(list).and_then(|bytes| issued.renew(&bytes).map_err(bad_input));
        if let Err(error) = renewed {
            eprintln!("bulla: {}: {error}", list.display());
        }
    }
}
