//! `bulla proxy`: attested TLS for programs that speak plain TCP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bulla_attest::Device;
use bulla_attest::proxy::{self, Relay, Side};
use bulla_attest::ratls::{Approver, Request, TlsIdentity, issue};

use crate::args::{ProxyArguments, ProxySide};
use crate::failure::Failure;
use crate::quoter::now;
use crate::verify::judge_of;

/// Relays until it is ended.
pub fn run(arguments: &ProxyArguments) -> Result<(), Failure> {
    let approver = |policy: &Path| -> Result<Arc<dyn Approver>, Failure> {
        Ok(Arc::new(judge_of(policy, &arguments.collateral)?))
    };
    let approver = arguments.policy.as_deref().map(approver).transpose()?;
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
    let side = match (arguments.side, approver) {
        (ProxySide::Server, clients) => Side::Server { clients },
        (ProxySide::Client, Some(server)) => Side::Client { server },
        (ProxySide::Client, None) => {
            return Err(Failure::new("a client needs --policy: whom to trust"));
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
