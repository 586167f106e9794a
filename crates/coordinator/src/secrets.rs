//! Secrets: made from their description, derived for one marble, or given by a user.

use crate::json::Bytes;
use crate::keys::{KeyError, KeyKind, KeyPair};
use crate::manifest::{CertificateTemplate, SecretSpec, SecretType, Subject};
use crate::pki::Issuer;
use crate::x509::{self, ext_key_usage, key_usage};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;
use zeroize::Zeroize;

/// The subject of certificates whose template names none.
const DEFAULT_COMMON_NAME: &str = "MarbleRun Generated Certificate";
const DEFAULT_DAYS: u32 = 365;

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("secret {0} is set by a user, not generated")]
    UserDefined(String),
    #[error("secret {name}: {reason}")]
    Invalid { name: String, reason: String },
}

/// A secret with its values. Symmetric keys and plain data are both private and public, as in
/// MarbleRun; certificates have a PKCS#8 key, a PKIX key and a DER certificate.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secret {
    pub spec: SecretSpec,
    #[serde(with = "bytes")]
    pub cert: Vec<u8>,
    #[serde(with = "bytes")]
    pub private: Vec<u8>,
    #[serde(with = "bytes")]
    pub public: Vec<u8>,
}

mod bytes {
    use super::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        Bytes(value.to_vec()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Bytes::deserialize(deserializer).map(|bytes| bytes.0)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.private.zeroize();
        self.public.zeroize();
    }
}

/// Never its values: debug output ends up in logs.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("type", &self.spec.kind)
            .finish_non_exhaustive()
    }
}

/// Whose secret is made.
pub enum Owner<'a> {
    /// Every marble's: random.
    Shared,
    /// One marble's: symmetric keys are derived, so that a restarted marble gets them again.
    Marble {
        root_secret: &'a [u8],
        uuid: Uuid,
        /// Empty when the manifest disables the binding.
        marble_type: &'a str,
    },
}

impl Secret {
    /// A secret whose certificate parts are all there is to it.
    pub fn of_certificate(cert: Vec<u8>, keys: Option<&KeyPair>) -> Secret {
        Secret {
            spec: SecretSpec {
                kind: SecretType::CertEcdsa.name().to_owned(),
                ..SecretSpec::default()
            },
            cert,
            private: keys.map(|keys| keys.pkcs8.clone()).unwrap_or_default(),
            public: keys.map(|keys| keys.spki.clone()).unwrap_or_default(),
        }
    }

    /// A stand-in with which templates are tried before real values exist.
    pub fn dummy(spec: &SecretSpec) -> Secret {
        let value = vec![0x41];
        Secret {
            spec: spec.clone(),
            cert: match spec.secret_type().is_certificate() {
                true => value.clone(),
                false => Vec::new(),
            },
            private: value.clone(),
            public: value,
        }
    }

    pub fn generate(
        name: &str,
        spec: &SecretSpec,
        owner: &Owner<'_>,
        issuer: &Issuer,
    ) -> Result<Secret, SecretError> {
        if spec.user_defined {
            return Err(SecretError::UserDefined(name.to_owned()));
        }
        let kind = match spec.secret_type() {
            SecretType::SymmetricKey => {
                let key = symmetric_key(name, spec.size as usize / 8, owner)?;
                return Ok(Secret {
                    spec: spec.clone(),
                    cert: Vec::new(),
                    private: key.clone(),
                    public: key,
                });
            }
            SecretType::CertEcdsa => KeyKind::ecdsa(spec.size)?,
            SecretType::CertEd25519 => KeyKind::Ed25519,
            SecretType::CertRsa => KeyKind::Rsa { bits: spec.size },
            SecretType::Plain => return Err(SecretError::UserDefined(name.to_owned())),
        };
        let keys = KeyPair::generate(kind)?;
        let cert = certificate(spec, &keys.spki, issuer)?;
        Ok(Secret {
            spec: spec.clone(),
            cert,
            private: keys.pkcs8.clone(),
            public: keys.spki.clone(),
        })
    }

    /// A secret that a user uploads.
    pub fn from_user(
        name: &str,
        spec: &SecretSpec,
        upload: &UserSecret,
    ) -> Result<Secret, SecretError> {
        let wrong = |reason: &str| {
            Err(SecretError::Invalid {
                name: name.to_owned(),
                reason: reason.to_owned(),
            })
        };
        let kind = spec.secret_type();
        if !kind.is_certificate() {
            if !upload.cert.0.is_empty() || !upload.private.0.is_empty() {
                return wrong("only Key can be set for this type");
            }
            if upload.key.0.is_empty() {
                return wrong("Key is missing");
            }
            if kind == SecretType::SymmetricKey && upload.key.0.len() * 8 != spec.size as usize {
                return wrong("Key does not have the size of the manifest");
            }
            return Ok(Secret {
                spec: spec.clone(),
                cert: Vec::new(),
                private: upload.key.0.clone(),
                public: upload.key.0.clone(),
            });
        }
        if !upload.key.0.is_empty() {
            return wrong("Key cannot be set for a certificate: use Cert and Private");
        }
        if upload.cert.0.is_empty() || upload.private.0.is_empty() {
            return wrong("a certificate needs Cert and Private");
        }
        let Ok((rest, certificate)) = x509_parser::parse_x509_certificate(&upload.cert.0) else {
            return wrong("Cert is not a DER certificate");
        };
        if !rest.is_empty() {
            return wrong("Cert has bytes after the certificate");
        }
        let Some(spki) = public_of_private(&upload.private.0) else {
            return wrong("Private is not a PKCS#8 key of a supported kind");
        };
        if spki != certificate.public_key().raw {
            return wrong("Private does not belong to Cert");
        }
        if !matches_type(kind, spec.size, &spki) {
            return wrong("the key does not have the type and size of the manifest");
        }
        Ok(Secret {
            spec: spec.clone(),
            cert: upload.cert.0.clone(),
            private: upload.private.0.clone(),
            public: spki,
        })
    }

    /// As clients of the REST API see it.
    pub fn view(&self) -> SecretView {
        let some = |bytes: &Vec<u8>| (!bytes.is_empty()).then(|| Bytes(bytes.clone()));
        SecretView {
            kind: self.spec.kind.clone(),
            size: self.spec.size,
            shared: self.spec.shared,
            user_defined: self.spec.user_defined,
            cert: some(&self.cert),
            valid_for: self.spec.valid_for,
            private: some(&self.private),
            public: some(&self.public),
        }
    }
}

/// What `POST /secrets` carries for one secret.
#[derive(Default, Clone)]
pub struct UserSecret {
    pub cert: Bytes,
    pub private: Bytes,
    pub key: Bytes,
}
crate::json::decode_struct!(UserSecret { "Cert" => cert, "Private" => private, "Key" => key });

impl Drop for UserSecret {
    fn drop(&mut self) {
        self.private.0.zeroize();
        self.key.0.zeroize();
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SecretView {
    #[serde(rename = "Type")]
    pub kind: String,
    pub size: u32,
    pub shared: bool,
    pub user_defined: bool,
    pub cert: Option<Bytes>,
    pub valid_for: u32,
    pub private: Option<Bytes>,
    pub public: Option<Bytes>,
}

fn symmetric_key(name: &str, length: usize, owner: &Owner<'_>) -> Result<Vec<u8>, SecretError> {
    let mut key = vec![0; length];
    match owner {
        Owner::Shared => getrandom::fill(&mut key)
            .map_err(|error| KeyError::Generate("symmetric", error.to_string()))?,
        Owner::Marble {
            root_secret,
            uuid,
            marble_type,
        } => {
            let salt = format!("{}{name}", uuid.as_hyphenated());
            Hkdf::<Sha256>::new(Some(salt.as_bytes()), root_secret)
                .expand(marble_type.as_bytes(), &mut key)
                .map_err(|_| SecretError::Invalid {
                    name: name.to_owned(),
                    reason: "a derived key has at most 8160 bytes: make it smaller or Shared"
                        .to_owned(),
                })?;
        }
    }
    Ok(key)
}

fn certificate(spec: &SecretSpec, spki: &[u8], issuer: &Issuer) -> Result<Vec<u8>, SecretError> {
    let mut template = spec.cert.clone().unwrap_or_default();
    fill_defaults(&mut template);
    let now = OffsetDateTime::now_utc();
    let days = match spec.valid_for {
        0 => DEFAULT_DAYS,
        days => days,
    };
    let not_before = template.not_before.0.unwrap_or(now);
    let not_after = template
        .not_after
        .0
        .or_else(|| now.checked_add(Duration::days(i64::from(days))))
        .unwrap_or(time::macros::datetime!(9999-12-31 23:59:59 UTC));
    Ok(x509::from_template(
        &template,
        issuer.name(),
        &issuer.key_id(),
        spki,
        (not_before, not_after),
        issuer.signer(),
    )?)
}

fn fill_defaults(template: &mut CertificateTemplate) {
    if template.dns_names.is_empty() {
        template.dns_names = vec!["localhost".to_owned()];
    }
    if template.ip_addresses.iter().all(|ip| ip.0.is_none()) {
        template.ip_addresses = [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ]
        .map(|ip| crate::manifest::Address(Some(ip)))
        .to_vec();
    }
    if template.key_usage == 0 {
        template.key_usage = key_usage::DIGITAL_SIGNATURE | key_usage::CERT_SIGN;
    }
    if template.ext_key_usage.is_empty() {
        template.ext_key_usage = vec![ext_key_usage::SERVER, ext_key_usage::CLIENT];
    }
    if template.subject == Subject::default() {
        template.subject.common_name = match template.dns_names.as_slice() {
            [only] if only != "localhost" => only.clone(),
            _ => DEFAULT_COMMON_NAME.to_owned(),
        };
    }
}

/// The PKIX public key of a PKCS#8 private key.
fn public_of_private(pkcs8: &[u8]) -> Option<Vec<u8>> {
    use p384::pkcs8::{DecodePrivateKey, EncodePublicKey};
    use ring::signature::KeyPair as _;
    macro_rules! ec {
        ($curve:ident) => {
            if let Ok(key) = $curve::SecretKey::from_pkcs8_der(pkcs8) {
                return Some(key.public_key().to_public_key_der().ok()?.into_vec());
            }
        };
    }
    ec!(p224);
    ec!(p256);
    ec!(p384);
    ec!(p521);
    if let Ok(key) = rsa::PrivateKey::from_pkcs8_der(pkcs8) {
        return Some(key.to_public_key().to_public_key_der().ok()?.into_vec());
    }
    let key = ring::signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).ok()?;
    Some(crate::keys::ed25519_spki(key.public_key().as_ref()))
}

fn matches_type(kind: SecretType, size: u32, spki: &[u8]) -> bool {
    use x509_parser::prelude::FromDer;
    let Ok((_, info)) = x509_parser::x509::SubjectPublicKeyInfo::from_der(spki) else {
        return false;
    };
    use x509_parser::public_key::PublicKey;
    match (kind, info.parsed()) {
        (SecretType::CertRsa, Ok(PublicKey::RSA(key))) => {
            size == 0 || key.key_size() == size as usize
        }
        (SecretType::CertEcdsa, Ok(PublicKey::EC(point))) => {
            // An uncompressed point: 4, x, y.
            (point.data().len() - 1) / 2 == (size as usize).div_ceil(8)
        }
        (SecretType::CertEd25519, _) => {
            info.algorithm.algorithm == x509_parser::oid_registry::OID_SIG_ED25519
        }
        _ => false,
    }
}
