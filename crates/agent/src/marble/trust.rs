//! Is it the coordinator that the manifest means?
//!
//! The coordinator's root certificate is fixed for its life: it is pinned by its hash, or it is the one
//! that a quote vouches for which satisfies a policy. The marble door's own certificate has the key of
//! the intermediate, which changes with each manifest and is signed by the root: so the connection's key
//! is checked against that root. Bulla's coordinator shows intermediate and root with its certificate;
//! MarbleRun's shows them in its answer only. (In a namespace they differ: the answer's are the
//! namespace's, the connection's the coordinator's.)

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bulla_agent::settings::Coordinator;
use bulla_attest::coordinator::{CoordinatorError, judge};
use bulla_attest::{
    Certificate, CollateralSource, Device, HexBytes, Judge, NoSource, pem_certificates, sha256,
};

use super::MarbleError;

/// Where a coordinator's client API usually is.
const CLIENT_PORT: u16 = 4433;
const PATIENCE: Duration = Duration::from_secs(30);

/// Which root certificate is trusted.
#[derive(Debug, PartialEq, Eq)]
pub enum Root {
    /// The one with this SHA-256.
    Pinned([u8; 32]),
    Any,
}

/// Finds out; with a policy the coordinator is asked for its quote.
pub fn root(settings: &Coordinator, address: &str) -> Result<Root, MarbleError> {
    if let Some(HexBytes(pinned)) = settings.root_sha256 {
        return Ok(Root::Pinned(pinned));
    }
    let Some(policy) = &settings.policy else {
        return match settings.insecure_any {
            true => Ok(Root::Any),
            false => Err(MarbleError::Stranger("the settings trust none".into())),
        };
    };
    let client = match &settings.client_address {
        Some(client) => client.clone(),
        None => {
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
            format!("{host}:{CLIENT_PORT}")
        }
    };
    let source: Arc<dyn CollateralSource> = match Device::new().collateral() {
        Some(collateral) => Arc::new(collateral),
        None => Arc::new(NoSource),
    };
    let judged = judge(
        &Judge {
            policy: policy.clone(),
            source,
            disclosed: None,
        },
        &client,
        UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs()),
        PATIENCE,
    )
    .map_err(|error| match error {
        CoordinatorError::Unreachable(reason) => MarbleError::Unreachable(reason),
        CoordinatorError::NotOne(reason) => MarbleError::Stranger(reason),
    })?;
    match judged.verdict.trusted {
        true => Ok(Root::Pinned(sha256(&[&judged.root]))),
        false => Err(MarbleError::Stranger(format!(
            "{client}: {}",
            judged.verdict.reason()
        ))),
    }
}

/// Checks what the coordinator says about certificates; returns the marble's own.
///
/// `chain`: leaf and intermediate; `root`: PEM; `connection`: what the server showed, its own first.
pub fn check(
    trusted: &Root,
    chain: &str,
    root: &str,
    connection: &[Vec<u8>],
) -> Result<Vec<u8>, MarbleError> {
    let broken = |what: &str| MarbleError::Broken(format!("{what} is not as it should be"));
    let ders = |text: &str| pem_certificates(text).unwrap_or_default();
    let decode = |der: &[u8]| Certificate::decode(der).map_err(|_| broken("a certificate"));
    let (chain, roots) = (ders(chain), ders(root));
    let ([leaf_der, intermediate], [root]) = (&chain[..], &roots[..]) else {
        return Err(broken("the certificate chain"));
    };
    let (server, above, top) = match connection {
        [server, above, top] => (server, above, top),
        [server, ..] => (server, intermediate, root),
        [] => return Err(broken("the connection's certificate")),
    };
    if let Root::Pinned(pinned) = trusted
        && sha256(&[top]) != *pinned
    {
        return Err(MarbleError::Stranger(format!(
            "its root certificate has SHA-256 {}, not {}",
            HexBytes(sha256(&[top])),
            HexBytes(*pinned)
        )));
    }
    for (child, parent) in [(above, top), (intermediate, root), (leaf_der, intermediate)] {
        let (child, parent) = (decode(child)?, decode(parent)?);
        if !child.is_signed_by(&parent) {
            return Err(MarbleError::Stranger(
                "its certificates do not descend from the root".into(),
            ));
        }
    }
    // Anybody can show the certificates; only the coordinator has the intermediate's key.
    if decode(server)?.public_key != decode(above)?.public_key {
        return Err(MarbleError::Stranger(
            "the connection is not with the key of its certificates".into(),
        ));
    }
    Ok(leaf_der.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P384_SHA384,
    };

    fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap()
    }

    fn authority() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    #[test]
    fn only_the_holder_of_the_pinned_root_is_the_coordinator() {
        let root = CertifiedIssuer::self_signed(authority(), key()).unwrap();
        let intermediate = CertifiedIssuer::signed_by(authority(), key(), &root).unwrap();
        let leaf = CertificateParams::default()
            .signed_by(&key(), &intermediate)
            .unwrap();
        let marble_root = authority().self_signed(intermediate.key()).unwrap();
        let pinned = Root::Pinned(sha256(&[root.der()]));
        let chain = leaf.pem() + &intermediate.pem();
        let server = marble_root.der().to_vec();
        let alone = vec![server.clone()];
        let whole = vec![
            server.clone(),
            intermediate.der().to_vec(),
            root.der().to_vec(),
        ];
        for connection in [&alone, &whole] {
            let checked = check(&pinned, &chain, &root.pem(), connection).unwrap();
            assert_eq!(checked, leaf.der().to_vec());
        }
        assert!(check(&Root::Any, &chain, &root.pem(), &alone).is_ok());

        let stranger = |trusted: &Root, chain: &str, root: &str, connection: &[Vec<u8>]| {
            let refused = check(trusted, chain, root, connection);
            matches!(refused, Err(MarbleError::Stranger(_)))
        };
        // Another root; a chain of another; the real chain shown by who lacks its key.
        for connection in [&alone, &whole] {
            assert!(stranger(
                &Root::Pinned([7; 32]),
                &chain,
                &root.pem(),
                connection
            ));
        }
        let other = CertifiedIssuer::self_signed(authority(), key()).unwrap();
        assert!(stranger(&pinned, &chain, &other.pem(), &alone));
        let theirs = CertifiedIssuer::signed_by(authority(), key(), &other).unwrap();
        let their_leaf = CertificateParams::default()
            .signed_by(&key(), &theirs)
            .unwrap();
        let their_chain = their_leaf.pem() + &theirs.pem();
        let their_door = theirs.der().to_vec();
        assert!(stranger(
            &pinned,
            &their_chain,
            &root.pem(),
            std::slice::from_ref(&their_door)
        ));
        let mixed = their_leaf.pem() + &intermediate.pem();
        assert!(stranger(&pinned, &mixed, &root.pem(), &alone));
        assert!(stranger(
            &pinned,
            &chain,
            &root.pem(),
            std::slice::from_ref(&their_door)
        ));
        let shown = [their_door.clone(), whole[1].clone(), whole[2].clone()];
        assert!(stranger(&pinned, &chain, &root.pem(), &shown));
        let shown = [their_door.clone(), their_door, whole[2].clone()];
        assert!(stranger(&pinned, &chain, &root.pem(), &shown));
        // A namespace's chain over the coordinator's own connection.
        assert!(check(&pinned, &their_chain, &other.pem(), &whole).is_ok());
        for (chain, root) in [
            (String::new(), root.pem()),
            (leaf.pem(), root.pem()),
            (chain.clone() + &root.pem(), root.pem()),
            (chain, "nothing".into()),
        ] {
            let refused = check(&pinned, &chain, &root, &whole);
            assert!(matches!(refused, Err(MarbleError::Broken(_))));
        }
    }
}
