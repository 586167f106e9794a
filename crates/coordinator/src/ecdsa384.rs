//! ECDSA with P-384 and SHA-384, which is most of what an activation costs: the handshake's two
//! signatures, the signing request's, a fresh key and the leaf's signature. MarbleRun's protocol fixes
//! the curve, so it is computed by AWS-LC, with which an activation costs less than half of what it costs
//! with ring; everything else stays with ring.

use crate::keys::KeyError;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use rustls::crypto::{CryptoProvider, KeyProvider, ring};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use std::sync::Arc;
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA384;
use x509_parser::prelude::{AlgorithmIdentifier, SubjectPublicKeyInfo};

/// An uncompressed point of the curve: 04, x and y.
const POINT_BYTES: usize = 97;

/// A key that signs.
pub struct Key(EcdsaKeyPair);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("P-384 key")
    }
}

impl Key {
    pub fn generate() -> Result<Key, KeyError> {
        EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING)
            .map(Key)
            .map_err(|error| KeyError::Generate("P-384", error.to_string()))
    }

    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Key, KeyError> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, pkcs8)
            .map(Key)
            .map_err(|_| KeyError::NotP384)
    }

    pub fn pkcs8(&self) -> Result<Vec<u8>, KeyError> {
        let document = self.0.to_pkcs8v1();
        let document = document.map_err(|error| KeyError::Generate("P-384", error.to_string()))?;
        Ok(document.as_ref().to_vec())
    }

    /// Uncompressed.
    pub fn point(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// In ASN.1, as certificates carry it.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|error| KeyError::Generate("signature", error.to_string()))
    }
}

/// Whether a signature (ASN.1) is of the key with this point.
pub fn verifies(point: &[u8], message: &[u8], signature: &[u8]) -> bool {
    // Compressed points are no keys in TLS (RFC 8446, 4.2.8.2), and ring takes none.
    point.len() == POINT_BYTES
        && UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, point)
            .verify(message, signature)
            .is_ok()
}

/// Whether something signed as X.509 does it is right. None: it is of another kind.
pub fn verifies_x509(
    key: &SubjectPublicKeyInfo<'_>,
    algorithm: &AlgorithmIdentifier<'_>,
    body: &[u8],
    signature: &[u8],
) -> Option<bool> {
    use x509_parser::oid_registry::{OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384};
    let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
    let is_ours = algorithm.algorithm == OID_SIG_ECDSA_WITH_SHA384
        && key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve == OID_NIST_EC_P384;
    is_ours.then(|| verifies(&key.subject_public_key.data, body, signature))
}

/// TLS as ring does it, but for P-384 keys.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        key_provider: &Keys,
        ..ring::default_provider()
    })
}

/// A private key for TLS, of any kind that ring knows.
pub fn tls_key(key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
    if let PrivateKeyDer::Pkcs8(pkcs8) = &key
        && let Ok(key) = Key::from_pkcs8(pkcs8.secret_pkcs8_der())
    {
        return Ok(Arc::new(TlsKey(Arc::new(key))));
    }
    ring::sign::any_supported_type(&key)
}

#[derive(Debug)]
struct Keys;

impl KeyProvider for Keys {
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        tls_key(key)
    }
}

#[derive(Debug)]
struct TlsKey(Arc<Key>);

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ECDSA_NISTP384_SHA384)
            .then(|| Box::new(TlsKey(self.0.clone())) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.0
            .sign(message)
            .map_err(|error| Error::General(error.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP384_SHA384
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::ring::signature as other;
    use ::ring::signature::KeyPair as _;

    /// Both libraries must read and believe each other: states and certificates outlive a version.
    #[test]
    fn keys_and_signatures_are_those_of_the_other_library() {
        let key = Key::generate().unwrap();
        let pkcs8 = key.pkcs8().unwrap();
        let random = ::ring::rand::SystemRandom::new();
        let algorithm = &other::ECDSA_P384_SHA384_ASN1_SIGNING;
        let theirs = other::EcdsaKeyPair::from_pkcs8(algorithm, &pkcs8, &random).unwrap();
        assert_eq!(theirs.public_key().as_ref(), key.point());
        let signature = key.sign(b"message").unwrap();
        other::UnparsedPublicKey::new(&other::ECDSA_P384_SHA384_ASN1, key.point())
            .verify(b"message", &signature)
            .unwrap();
        let signature = theirs.sign(&random, b"message").unwrap();
        assert!(verifies(key.point(), b"message", signature.as_ref()));

        let document = other::EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let key = Key::from_pkcs8(document.as_ref()).unwrap();
        assert_eq!(key.pkcs8().unwrap(), document.as_ref(), "to the byte");
    }

    #[test]
    fn what_is_wrong_anywhere_is_refused() {
        let key = Key::generate().unwrap();
        let signature = key.sign(b"message").unwrap();
        assert!(verifies(key.point(), b"message", &signature));
        assert!(!verifies(key.point(), b"massage", &signature));
        assert!(!verifies(
            Key::generate().unwrap().point(),
            b"message",
            &signature
        ));
        for at in 0..signature.len() {
            let mut changed = signature.clone();
            changed[at] ^= 1;
            assert!(!verifies(key.point(), b"message", &changed), "byte {at}");
            assert!(!verifies(key.point(), b"message", &signature[..at]));
        }
        let longer = [&signature[..], &[0]].concat();
        assert!(!verifies(key.point(), b"message", &longer));
        let mut compressed = key.point()[..49].to_vec();
        compressed[0] = 2 + (key.point()[96] & 1);
        assert!(!verifies(&compressed, b"message", &signature));
        let mut outside = key.point().to_vec();
        outside[96] ^= 1;
        assert!(!verifies(&outside, b"message", &signature));
        assert!(Key::from_pkcs8(&key.pkcs8().unwrap()[..100]).is_err());
    }
}
