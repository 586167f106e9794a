//! Private keys of every kind that a manifest may ask for, and the P-384 keys of the PKI.

use crate::ecdsa384;
use getrandom::SysRng;
use p384::elliptic_curve::Generate;
use p384::pkcs8::{EncodePrivateKey, EncodePublicKey};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair,
    KeyPair as _,
};
use rsa::signature::hazmat::PrehashSigner;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot generate a {0} key: {1}")]
    Generate(&'static str, String),
    #[error("not a P-384 private key in PKCS#8 form")]
    NotP384,
    #[error("unsupported key size: {0} bits")]
    Size(u32),
}

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    P224,
    P256,
    P384,
    P521,
    Ed25519,
    Rsa { bits: u32 },
}

impl KeyKind {
    /// The curve of a `cert-ecdsa` secret's size.
    pub fn ecdsa(bits: u32) -> Result<KeyKind, KeyError> {
        Ok(match bits {
            224 => KeyKind::P224,
            256 => KeyKind::P256,
            384 => KeyKind::P384,
            521 => KeyKind::P521,
            other => return Err(KeyError::Size(other)),
        })
    }
}

/// A private key (PKCS#8) and its public half (PKIX), both DER.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    pub pkcs8: Vec<u8>,
    pub spki: Vec<u8>,
}

impl Drop for KeyPair {
    fn drop(&mut self) {
        self.pkcs8.zeroize();
    }
}

impl KeyPair {
    pub fn generate(kind: KeyKind) -> Result<KeyPair, KeyError> {
        match kind {
            KeyKind::P256 => ring_ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, P256_OID),
            KeyKind::P384 => {
                let key = ecdsa384::Key::generate()?;
                Ok(KeyPair {
                    pkcs8: key.pkcs8()?,
                    spki: ec_spki(P384_OID, key.point()),
                })
            }
            KeyKind::P224 => {
                let key = p224::SecretKey::try_generate().map_err(failed("P-224"))?;
                encoded(
                    "P-224",
                    key.to_pkcs8_der(),
                    key.public_key().to_public_key_der(),
                )
            }
            KeyKind::P521 => {
                let key = p521::SecretKey::try_generate().map_err(failed("P-521"))?;
                encoded(
                    "P-521",
                    key.to_pkcs8_der(),
                    key.public_key().to_public_key_der(),
                )
            }
            KeyKind::Ed25519 => ed25519(),
            KeyKind::Rsa { bits } => {
                let key =
                    rsa::PrivateKey::new(&mut SysRng, bits as usize).map_err(failed("RSA"))?;
                encoded(
                    "RSA",
                    key.to_pkcs8_der(),
                    key.to_public_key().to_public_key_der(),
                )
            }
        }
    }
}

fn failed<E: ToString>(kind: &'static str) -> impl FnOnce(E) -> KeyError {
    move |error| KeyError::Generate(kind, error.to_string())
}

fn encoded<E: ToString, F: ToString>(
    kind: &'static str,
    private: Result<p384::pkcs8::SecretDocument, E>,
    public: Result<p384::pkcs8::Document, F>,
) -> Result<KeyPair, KeyError> {
    Ok(KeyPair {
        pkcs8: private.map_err(failed(kind))?.as_bytes().to_vec(),
        spki: public.map_err(failed(kind))?.as_bytes().to_vec(),
    })
}

const P256_OID: &[u64] = &[1, 2, 840, 10045, 3, 1, 7];
const P384_OID: &[u64] = &[1, 3, 132, 0, 34];

fn ring_ecdsa(
    algorithm: &'static EcdsaSigningAlgorithm,
    curve: &[u64],
) -> Result<KeyPair, KeyError> {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(failed("ECDSA"))?;
    let pair =
        EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).map_err(failed("ECDSA"))?;
    Ok(KeyPair {
        pkcs8: document.as_ref().to_vec(),
        spki: ec_spki(curve, pair.public_key().as_ref()),
    })
}

/// SubjectPublicKeyInfo of an elliptic curve point (RFC 5480).
fn ec_spki(curve: &[u64], point: &[u8]) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_sequence(|writer| {
                writer
                    .next()
                    .write_oid(&yasna::models::ObjectIdentifier::from_slice(&[
                        1, 2, 840, 10045, 2, 1,
                    ]));
                writer
                    .next()
                    .write_oid(&yasna::models::ObjectIdentifier::from_slice(curve));
            });
            writer.next().write_bitvec_bytes(point, point.len() * 8);
        });
    })
}

/// PKCS#8 version 1 (RFC 8410), which every reader takes; ring alone would write version 2.
fn ed25519() -> Result<KeyPair, KeyError> {
    const PKCS8_PREFIX: [u8; 16] = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    let mut seed = Zeroizing::new([0u8; 32]);
    getrandom::fill(seed.as_mut()).map_err(failed("Ed25519"))?;
    let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).map_err(failed("Ed25519"))?;
    Ok(KeyPair {
        pkcs8: [&PKCS8_PREFIX[..], seed.as_ref()].concat(),
        spki: ed25519_spki(pair.public_key().as_ref()),
    })
}

/// SubjectPublicKeyInfo of an Ed25519 key (RFC 8410).
pub fn ed25519_spki(key: &[u8]) -> Vec<u8> {
    const PREFIX: [u8; 12] = [
        0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
    ];
    [&PREFIX[..], key].concat()
}

/// A P-384 key that signs: certificates, manifests, quotes.
pub struct Signer {
    key: ecdsa384::Key,
    prehash: p384::ecdsa::SigningKey,
    keys: KeyPair,
}

impl Signer {
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Signer, KeyError> {
        let key = ecdsa384::Key::from_pkcs8(pkcs8)?;
        let secret: p384::SecretKey =
            p384::pkcs8::DecodePrivateKey::from_pkcs8_der(pkcs8).map_err(|_| KeyError::NotP384)?;
        let spki = ec_spki(P384_OID, key.point());
        Ok(Signer {
            key,
            prehash: secret.into(),
            keys: KeyPair {
                pkcs8: pkcs8.to_vec(),
                spki,
            },
        })
    }

    pub fn generate() -> Result<Signer, KeyError> {
        Signer::from_pkcs8(&KeyPair::generate(KeyKind::P384)?.pkcs8)
    }

    pub fn keys(&self) -> &KeyPair {
        &self.keys
    }

    /// ECDSA with SHA-384, in ASN.1, as certificates carry it.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.key.sign(message)
    }

    /// ECDSA over the SHA-256 of a message, in ASN.1: what MarbleRun's clients verify manifests
    /// and quotes with.
    pub fn sign_sha256(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature: p384::ecdsa::Signature = self
            .prehash
            .sign_prehash(&Sha256::digest(message))
            .map_err(failed("signature"))?;
        Ok(signature.to_der().as_bytes().to_vec())
    }
}
