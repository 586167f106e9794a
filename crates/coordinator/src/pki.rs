//! The coordinator's certificates.
//!
//! Three certificates over two keys: the *root*, which clients pin and which lives as long as the
//! state; the *intermediate*, signed by it; and the *marble root*, which has the intermediate's
//! name and key but is signed by itself. Marbles trust the marble root, so a new intermediate (on
//! every update) cuts off what was issued before. The twins have equal names and key identifiers:
//! a leaf's chain can be built to either.

use crate::keys::{KeyError, KeyKind, KeyPair, Signer};
use crate::x509::{self, AlternativeNames, Certificate, ext_key_usage, key_usage};
use std::net::IpAddr;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

const ROOT_NAME: &str = "MarbleRun Coordinator";
const INTERMEDIATE_NAME: &str = "MarbleRun Coordinator - Intermediate CA";
/// A marble's type, in its certificate.
pub const MARBLE_TYPE_OID: &[u64] = &[1, 3, 9903, 2, 1];
/// What is signed now must be valid on machines whose clocks are a little behind.
const CLOCK_SKEW: Duration = Duration::minutes(5);
/// The root is pinned and never renewed: it lives as long as any cluster.
const AUTHORITY_LIFE: Duration = Duration::days(50 * 365);

/// A key that issues certificates, and its name.
pub struct Issuer {
    signer: Signer,
    name: Vec<u8>,
}

impl Issuer {
    fn new(signer: Signer, common_name: &str) -> Issuer {
        Issuer {
            signer,
            name: x509::common_name(common_name),
        }
    }

    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// The DER of its distinguished name.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    pub fn key_id(&self) -> [u8; 20] {
        x509::key_id(&self.signer.keys().spki)
    }

    /// An intermediate, by its key (PKCS#8).
    pub fn intermediate(key: &[u8]) -> Result<Issuer, KeyError> {
        Ok(Issuer::new(Signer::from_pkcs8(key)?, INTERMEDIATE_NAME))
    }

    fn authority(&self, issuer: &Issuer, names: AlternativeNames<'_>) -> Result<Vec<u8>, KeyError> {
        let now = OffsetDateTime::now_utc();
        Certificate {
            issuer: &issuer.name,
            subject: &self.name,
            spki: &self.signer.keys().spki,
            authority_key_id: Some(&issuer.key_id()),
            not_before: now - CLOCK_SKEW,
            not_after: now + AUTHORITY_LIFE,
            key_usage: key_usage::DIGITAL_SIGNATURE | key_usage::CERT_SIGN | key_usage::CRL_SIGN,
            ext_key_usage: &[ext_key_usage::SERVER, ext_key_usage::CLIENT],
            unknown_ext_key_usage: &[],
            is_ca: true,
            path_len: None,
            names,
            extra: Vec::new(),
        }
        .sign(&issuer.signer)
    }
}

/// The certificates and their keys.
pub struct Pki {
    pub root: Issuer,
    pub root_cert: Vec<u8>,
    pub intermediate: Issuer,
    pub intermediate_cert: Vec<u8>,
    pub marble_root_cert: Vec<u8>,
}

impl Pki {
    /// A new root and all below it; `names` are the coordinator's own.
    pub fn generate(names: &[String]) -> Result<Pki, KeyError> {
        let root = Issuer::new(Signer::generate()?, ROOT_NAME);
        let (dns, ip) = split_names(names);
        let root_cert = root.authority(
            &root,
            AlternativeNames {
                dns: &dns,
                ip: &ip,
                email: &[],
            },
        )?;
        let intermediate = Issuer::new(Signer::generate()?, INTERMEDIATE_NAME);
        Pki::below(root, root_cert, intermediate, names)
    }

    /// A new intermediate and marble root under the same root; `key` (PKCS#8) is the intermediate's.
    pub fn rotated(&self, names: &[String], key: &[u8]) -> Result<Pki, KeyError> {
        let signer = Signer::from_pkcs8(&self.root.signer.keys().pkcs8)?;
        Pki::below(
            Issuer::new(signer, ROOT_NAME),
            self.root_cert.clone(),
            Issuer::intermediate(key)?,
            names,
        )
    }

    /// A certificate by the root for an intermediate that is not in force.
    pub fn certified(&self, intermediate: &Issuer) -> Result<Vec<u8>, KeyError> {
        intermediate.authority(&self.root, AlternativeNames::default())
    }

    fn below(
        root: Issuer,
        root_cert: Vec<u8>,
        intermediate: Issuer,
        names: &[String],
    ) -> Result<Pki, KeyError> {
        let (dns, ip) = split_names(names);
        let names = AlternativeNames {
            dns: &dns,
            ip: &ip,
            email: &[],
        };
        let intermediate_cert = intermediate.authority(&root, names)?;
        let marble_root_cert = intermediate.authority(&intermediate, names)?;
        Ok(Pki {
            root,
            root_cert,
            intermediate,
            intermediate_cert,
            marble_root_cert,
        })
    }

    pub fn restore(
        root_key: &[u8],
        root_cert: Vec<u8>,
        intermediate_key: &[u8],
        intermediate_cert: Vec<u8>,
        marble_root_cert: Vec<u8>,
    ) -> Result<Pki, KeyError> {
        Ok(Pki {
            root: Issuer::new(Signer::from_pkcs8(root_key)?, ROOT_NAME),
            root_cert,
            intermediate: Issuer::intermediate(intermediate_key)?,
            intermediate_cert,
            marble_root_cert,
        })
    }

    /// A marble's certificate over a fresh key.
    pub fn issue_marble(&self, leaf: &MarbleLeaf<'_>) -> Result<(Vec<u8>, KeyPair), KeyError> {
        let keys = KeyPair::generate(KeyKind::P384)?;
        let now = OffsetDateTime::now_utc();
        let cert = Certificate {
            issuer: &self.intermediate.name,
            subject: leaf.subject,
            spki: &keys.spki,
            authority_key_id: Some(&self.intermediate.key_id()),
            not_before: now - CLOCK_SKEW,
            not_after: now + leaf.life,
            key_usage: key_usage::DIGITAL_SIGNATURE | key_usage::KEY_AGREEMENT,
            ext_key_usage: &[ext_key_usage::SERVER, ext_key_usage::CLIENT],
            unknown_ext_key_usage: &[],
            is_ca: false,
            path_len: None,
            names: AlternativeNames {
                dns: leaf.dns_names,
                ip: leaf.ip_addresses,
                email: &[],
            },
            extra: vec![(
                MARBLE_TYPE_OID.to_vec(),
                false,
                leaf.marble_type.as_bytes().to_vec(),
            )],
        }
        .sign(&self.intermediate.signer)?;
        Ok((cert, keys))
    }

    /// Root and intermediate in PEM, as `GET /quote` gives them.
    pub fn chain_pem(&self) -> String {
        x509::pem("CERTIFICATE", &self.intermediate_cert)
            + &x509::pem("CERTIFICATE", &self.root_cert)
    }

    /// The marble that a client certificate belongs to, if it was issued under this marble root
    /// and is in its time.
    pub fn marble_of(&self, der: &[u8]) -> Option<(String, Uuid)> {
        marble_under(&self.marble_root_cert, der)
    }
}

/// The marble that a certificate belongs to, if this issuer (DER) made it and it is in its time.
pub fn marble_under(issuer: &[u8], der: &[u8]) -> Option<(String, Uuid)> {
    let (rest, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let (_, issuer) = x509_parser::parse_x509_certificate(issuer).ok()?;
    if !rest.is_empty()
        || cert.issuer().as_raw() != issuer.subject().as_raw()
        || !cert.validity().is_valid()
        || !is_signed_by(&cert, issuer.public_key())
    {
        return None;
    }
    marble_identity(&cert)
}

fn is_signed_by(
    cert: &x509_parser::certificate::X509Certificate<'_>,
    key: &x509_parser::x509::SubjectPublicKeyInfo<'_>,
) -> bool {
    let body = cert.tbs_certificate.as_ref();
    let signature = &cert.signature_value.data;
    crate::ecdsa384::verifies_x509(key, &cert.signature_algorithm, body, signature)
        .unwrap_or_else(|| cert.verify_signature(Some(key)).is_ok())
}

/// A marble's type and UUID, as its certificate says.
pub fn marble_identity(
    cert: &x509_parser::certificate::X509Certificate<'_>,
) -> Option<(String, Uuid)> {
    let common_name = cert.subject().iter_common_name().next()?.as_str().ok()?;
    let uuid = Uuid::parse_str(common_name).ok()?;
    let oid = x509_parser::oid_registry::Oid::from(MARBLE_TYPE_OID).ok()?;
    let extension = cert.get_extension_unique(&oid).ok()??;
    let marble_type = String::from_utf8(extension.value.to_vec()).ok()?;
    Some((marble_type, uuid))
}

/// What a marble's certificate says.
pub struct MarbleLeaf<'a> {
    pub marble_type: &'a str,
    /// DER; its common name is the UUID.
    pub subject: &'a [u8],
    pub dns_names: &'a [String],
    pub ip_addresses: &'a [IpAddr],
    pub life: Duration,
}

/// Separates addresses from names.
pub fn split_names(names: &[String]) -> (Vec<String>, Vec<IpAddr>) {
    let ip = names.iter().filter_map(|name| name.parse().ok()).collect();
    let dns = names
        .iter()
        .filter(|name| name.parse::<IpAddr>().is_err())
        .cloned()
        .collect();
    (dns, ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marble_is_known_by_a_leaf_of_this_root_in_its_time_alone() {
        let pki = Pki::generate(&[]).unwrap();
        let uuid = Uuid::new_v4();
        let leaf = |pki: &Pki, life: Duration| {
            let leaf = MarbleLeaf {
                marble_type: "web",
                subject: &x509::common_name(&uuid.to_string()),
                dns_names: &[],
                ip_addresses: &[],
                life,
            };
            pki.issue_marble(&leaf).unwrap().0
        };
        let good = leaf(&pki, Duration::minutes(5));
        assert_eq!(pki.marble_of(&good), Some(("web".to_owned(), uuid)));
        assert_eq!(
            pki.marble_of(&leaf(&pki, -Duration::minutes(1))),
            None,
            "expired"
        );
        let other = Pki::generate(&[]).unwrap();
        assert_eq!(pki.marble_of(&leaf(&other, Duration::hours(1))), None);
        let next = pki.rotated(&[], &KeyPair::generate(KeyKind::P384).unwrap().pkcs8);
        assert_eq!(
            next.unwrap().marble_of(&good),
            None,
            "of an earlier manifest"
        );
        assert_eq!(pki.marble_of(&pki.root_cert), None);
        let (_, parsed) = x509_parser::parse_x509_certificate(&good).unwrap();
        let signed = parsed.tbs_certificate.as_ref().len();
        for at in (4..4 + signed).step_by(7).chain([good.len() - 1]) {
            let mut changed = good.clone();
            changed[at] ^= 1;
            assert_eq!(pki.marble_of(&changed), None, "byte {at}");
        }
        assert_eq!(pki.marble_of(&[&good[..], &[0]].concat()), None);
    }
}
