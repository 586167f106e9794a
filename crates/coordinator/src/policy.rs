//! Policies in envelopes: manifests that are signed (JWS, RFC 7515) and encrypted to the
//! coordinator (JWE, RFC 7516), so that whoever carries them need not be trusted.
//!
//! Wherever a manifest is uploaded it may come as a JWS in JSON form whose payload is the manifest,
//! as a compact JWE (ECDH-ES with P-384, A256GCM) whose plaintext is the manifest or such a JWS, or
//! as it is. A signature counts as its signer's word only if `typ` is [`TYPE`] and `ns` is the
//! namespace; the signer is named by the SHA-256 of their certificate (`x5t#S256`).

use crate::client::Identity;
use crate::sha256;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use hkdf::Hkdf;
use p384::elliptic_curve::Generate;
use p384::elliptic_curve::sec1::ToSec1Point;
use p384::pkcs8::{DecodePublicKey, EncodePublicKey};
use p384::{PublicKey, SecretKey};
use ring::rand::SystemRandom;
use ring::signature as ring_sig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// What a signature's `typ` must say, so that nobody's other signatures count here.
pub const TYPE: &str = "bulla-policy";
/// More signatures than this serve nobody, and each costs a verification.
const MOST_SIGNATURES: usize = 64;
const TAG_BYTES: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("the policy's envelope is broken: {0}")]
    Envelope(&'static str),
    #[error(
        "the policy cannot be decrypted: it was encrypted to another coordinator, or changed. \
         Encrypt it to this one's policy key"
    )]
    Decrypt,
    #[error("cannot sign with this key: give a PKCS#8 key of P-256, P-384, Ed25519 or RSA")]
    Key,
    #[error("cannot encrypt: {0}")]
    Encrypt(String),
}

/// What was inside.
#[derive(Debug, Default)]
pub struct Policy {
    pub manifest: Vec<u8>,
    pub signatures: Vec<Signature>,
}

/// Somebody's signature over the manifest, not yet verified.
#[derive(Debug)]
pub struct Signature {
    algorithm: String,
    thumbprint: Vec<u8>,
    namespace: String,
    input: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct ProtectedHeader {
    alg: String,
    #[serde(default)]
    typ: String,
    #[serde(rename = "x5t#S256", default)]
    thumbprint: String,
    #[serde(default)]
    ns: String,
    #[serde(default)]
    crit: Option<Value>,
}

#[derive(Serialize, Deserialize)]
struct Jws {
    payload: String,
    signatures: Vec<JwsSignature>,
}

#[derive(Serialize, Deserialize)]
struct JwsSignature {
    protected: String,
    signature: String,
}

impl Signature {
    /// Whether the holder of this certificate (DER) signed, for this namespace.
    pub fn is_by(&self, certificate: &[u8], namespace: &str) -> bool {
        if self.namespace != namespace || self.thumbprint != sha256(certificate) {
            return false;
        }
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else {
            return false;
        };
        let key = &certificate.public_key().subject_public_key.data;
        let algorithm: &dyn ring_sig::VerificationAlgorithm = match self.algorithm.as_str() {
            "ES256" => &ring_sig::ECDSA_P256_SHA256_FIXED,
            "ES384" => &ring_sig::ECDSA_P384_SHA384_FIXED,
            "EdDSA" | "Ed25519" => &ring_sig::ED25519,
            "RS256" => &ring_sig::RSA_PKCS1_2048_8192_SHA256,
            "PS256" => &ring_sig::RSA_PSS_2048_8192_SHA256,
            _ => return false,
        };
        ring_sig::UnparsedPublicKey::new(algorithm, key)
            .verify(&self.input, &self.signature)
            .is_ok()
    }
}

/// The key that policies are encrypted to. It follows from the root key, so it lives as long as
/// that, and pipelines may keep it.
pub struct PolicyKey(SecretKey);

impl PolicyKey {
    pub fn of_root(root_pkcs8: &[u8]) -> Option<PolicyKey> {
        let expand = Hkdf::<Sha256>::new(Some(b"bulla policy key"), root_pkcs8);
        // A candidate is out of the curve's range once in 2^190.
        (0..=u8::MAX).find_map(|attempt| {
            let mut scalar = Zeroizing::new([0u8; 48]);
            expand.expand(&[attempt], &mut scalar[..]).ok()?;
            SecretKey::from_slice(&scalar[..]).ok().map(PolicyKey)
        })
    }

    /// PKIX DER.
    pub fn public(&self) -> Vec<u8> {
        self.0
            .public_key()
            .to_public_key_der()
            .map(|der| der.into_vec())
            .unwrap_or_default()
    }

    pub fn jwk(&self) -> Value {
        let mut jwk = jwk(&self.0.public_key());
        jwk["alg"] = "ECDH-ES".into();
        jwk["use"] = "enc".into();
        jwk
    }

    fn decrypt(&self, parts: &[&str]) -> Result<Vec<u8>, PolicyError> {
        let [header, encrypted_key, nonce, sealed, tag] = parts else {
            return Err(PolicyError::Envelope("a JWE has five parts"));
        };
        #[derive(Deserialize)]
        struct Header {
            alg: String,
            enc: String,
            epk: Epk,
            #[serde(default)]
            crit: Option<Value>,
            #[serde(default)]
            zip: Option<Value>,
        }
        #[derive(Deserialize)]
        struct Epk {
            crv: String,
            x: String,
            y: String,
        }
        let fields: Header = serde_json::from_slice(&decoded(header)?)
            .map_err(|_| PolicyError::Envelope("the JWE's header is not understood"))?;
        if fields.alg != "ECDH-ES" || fields.enc != "A256GCM" || fields.epk.crv != "P-384" {
            return Err(PolicyError::Envelope(
                "use alg ECDH-ES with a P-384 key and enc A256GCM",
            ));
        }
        if !encrypted_key.is_empty() || fields.crit.is_some() || fields.zip.is_some() {
            return Err(PolicyError::Envelope(
                "no encrypted key, crit or zip goes with ECDH-ES",
            ));
        }
        let point = [vec![4], decoded(&fields.epk.x)?, decoded(&fields.epk.y)?].concat();
        // Checks that the point is on the curve.
        let peer = PublicKey::from_sec1_bytes(&point)
            .map_err(|_| PolicyError::Envelope("epk is no point of P-384"))?;
        let key = shared_key(&self.0, &peer);
        let nonce: [u8; 12] = decoded(nonce)?
            .try_into()
            .map_err(|_| PolicyError::Envelope("the nonce has 12 bytes"))?;
        let sealed = [decoded(sealed)?, decoded(tag)?].concat();
        if sealed.len() < TAG_BYTES {
            return Err(PolicyError::Envelope("the tag has 16 bytes"));
        }
        let payload = Payload {
            msg: &sealed,
            aad: header.as_bytes(),
        };
        Aes256Gcm::new(&(*key).into())
            .decrypt(&Nonce::from(nonce), payload)
            .map_err(|_| PolicyError::Decrypt)
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, PolicyError> {
    BASE64
        .decode(text)
        .map_err(|_| PolicyError::Envelope("a part is not base64url without padding"))
}

fn jwk(key: &PublicKey) -> Value {
    let point = key.to_sec1_point(false);
    let (x, y) = point.as_bytes()[1..].split_at(48);
    json!({"kty": "EC", "crv": "P-384", "x": BASE64.encode(x), "y": BASE64.encode(y)})
}

/// ECDH-ES: NIST's concatenation KDF over the shared point, one round of SHA-256.
fn shared_key(own: &SecretKey, peer: &PublicKey) -> Zeroizing<[u8; 32]> {
    let shared = p384::ecdh::diffie_hellman(own.to_nonzero_scalar(), peer.as_affine());
    let algorithm = b"A256GCM";
    let digest = Sha256::new()
        .chain_update(1u32.to_be_bytes())
        .chain_update(shared.raw_secret_bytes())
        .chain_update((algorithm.len() as u32).to_be_bytes())
        .chain_update(algorithm)
        .chain_update(0u32.to_be_bytes())
        .chain_update(0u32.to_be_bytes())
        .chain_update(256u32.to_be_bytes())
        .finalize();
    Zeroizing::new(digest.into())
}

/// Opens whatever envelope there is; a bare manifest is its own content.
pub fn open(raw: &[u8], key: &PolicyKey) -> Result<Policy, PolicyError> {
    let trimmed = raw.trim_ascii();
    let is_compact = trimmed
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte));
    if is_compact && trimmed.iter().filter(|byte| **byte == b'.').count() == 4 {
        let text =
            std::str::from_utf8(trimmed).map_err(|_| PolicyError::Envelope("it is not text"))?;
        let parts: Vec<&str> = text.split('.').collect();
        let plain = Zeroizing::new(key.decrypt(&parts)?);
        return signed(&plain);
    }
    signed(raw)
}

/// Takes a JWS apart; anything else is the manifest itself.
fn signed(raw: &[u8]) -> Result<Policy, PolicyError> {
    let Ok(jws) = serde_json::from_slice::<Jws>(raw) else {
        return Ok(Policy {
            manifest: raw.to_vec(),
            signatures: Vec::new(),
        });
    };
    if jws.signatures.is_empty() || jws.signatures.len() > MOST_SIGNATURES {
        return Err(PolicyError::Envelope("a JWS has 1 to 64 signatures"));
    }
    let signatures = jws
        .signatures
        .iter()
        .map(|entry| {
            let header: ProtectedHeader = serde_json::from_slice(&decoded(&entry.protected)?)
                .map_err(|_| PolicyError::Envelope("a protected header is not understood"))?;
            if header.typ != TYPE || header.crit.is_some() {
                return Err(PolicyError::Envelope(
                    "a signature's protected header needs typ bulla-policy, and no crit",
                ));
            }
            Ok(Signature {
                algorithm: header.alg,
                thumbprint: decoded(&header.thumbprint)?,
                namespace: header.ns,
                input: format!("{}.{}", entry.protected, jws.payload).into_bytes(),
                signature: decoded(&entry.signature)?,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Policy {
        manifest: decoded(&jws.payload)?,
        signatures,
    })
}

/// Adds a signature to a manifest, or to one that others have signed.
pub fn sign(raw: &[u8], identity: &Identity, namespace: &str) -> Result<Vec<u8>, PolicyError> {
    let mut jws = serde_json::from_slice::<Jws>(raw).unwrap_or_else(|_| Jws {
        payload: BASE64.encode(raw),
        signatures: Vec::new(),
    });
    let signer = JwsSigner::open(&identity.key)?;
    let mut header = json!({
        "alg": signer.name(), "typ": TYPE,
        "x5t#S256": BASE64.encode(sha256(&identity.certificate)),
    });
    if !namespace.is_empty() {
        header["ns"] = namespace.into();
    }
    let protected = BASE64.encode(header.to_string());
    let signature = signer.sign(format!("{protected}.{}", jws.payload).as_bytes())?;
    jws.signatures.push(JwsSignature {
        protected,
        signature: BASE64.encode(signature),
    });
    serde_json::to_vec(&jws).map_err(|_| PolicyError::Envelope("it cannot be written"))
}

enum JwsSigner {
    P256(ring_sig::EcdsaKeyPair),
    P384(ring_sig::EcdsaKeyPair),
    Ed25519(ring_sig::Ed25519KeyPair),
    Rsa(ring_sig::RsaKeyPair),
}

impl JwsSigner {
    fn open(pkcs8: &[u8]) -> Result<JwsSigner, PolicyError> {
        let ecdsa = |algorithm| {
            ring_sig::EcdsaKeyPair::from_pkcs8(algorithm, pkcs8, &SystemRandom::new()).ok()
        };
        ecdsa(&ring_sig::ECDSA_P384_SHA384_FIXED_SIGNING)
            .map(JwsSigner::P384)
            .or_else(|| ecdsa(&ring_sig::ECDSA_P256_SHA256_FIXED_SIGNING).map(JwsSigner::P256))
            .or_else(|| {
                ring_sig::Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)
                    .ok()
                    .map(JwsSigner::Ed25519)
            })
            .or_else(|| {
                ring_sig::RsaKeyPair::from_pkcs8(pkcs8)
                    .ok()
                    .map(JwsSigner::Rsa)
            })
            .ok_or(PolicyError::Key)
    }

    fn name(&self) -> &'static str {
        match self {
            JwsSigner::P256(_) => "ES256",
            JwsSigner::P384(_) => "ES384",
            JwsSigner::Ed25519(_) => "EdDSA",
            JwsSigner::Rsa(_) => "RS256",
        }
    }

    fn sign(&self, input: &[u8]) -> Result<Vec<u8>, PolicyError> {
        let random = SystemRandom::new();
        match self {
            JwsSigner::P256(key) | JwsSigner::P384(key) => key
                .sign(&random, input)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| PolicyError::Key),
            JwsSigner::Ed25519(key) => Ok(key.sign(input).as_ref().to_vec()),
            JwsSigner::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&ring_sig::RSA_PKCS1_SHA256, &random, input, &mut signature)
                    .map_err(|_| PolicyError::Key)?;
                Ok(signature)
            }
        }
    }
}

/// Encrypts a manifest or a signed one to a policy key (PKIX DER).
pub fn encrypt(plain: &[u8], public: &[u8]) -> Result<String, PolicyError> {
    let failed = |error: &dyn std::fmt::Display| PolicyError::Encrypt(error.to_string());
    let peer = PublicKey::from_public_key_der(public).map_err(|error| failed(&error))?;
    let own = SecretKey::try_generate().map_err(|error| failed(&error))?;
    let key = shared_key(&own, &peer);
    let header = json!({"alg": "ECDH-ES", "enc": "A256GCM", "epk": jwk(&own.public_key())});
    let header = BASE64.encode(header.to_string());
    let mut nonce = [0; 12];
    getrandom::fill(&mut nonce).map_err(|error| failed(&error))?;
    let payload = Payload {
        msg: plain,
        aad: header.as_bytes(),
    };
    let sealed = Aes256Gcm::new(&(*key).into())
        .encrypt(&Nonce::from(nonce), payload)
        .map_err(|error| failed(&error))?;
    let (sealed, tag) = sealed.split_at(sealed.len() - TAG_BYTES);
    Ok(format!(
        "{header}..{}.{}.{}",
        BASE64.encode(nonce),
        BASE64.encode(sealed),
        BASE64.encode(tag)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::marble::self_signed;
    use crate::keys::{KeyKind, KeyPair};

    fn key() -> PolicyKey {
        PolicyKey::of_root(b"root key").unwrap()
    }

    #[test]
    fn what_is_signed_and_encrypted_comes_out_as_it_was() {
        let (alice, _) = self_signed("alice").unwrap();
        let (bob, _) = self_signed("bob").unwrap();
        let manifest = br#"{"Packages": {}}"#;
        let once = sign(manifest, &alice, "team").unwrap();
        let twice = sign(&once, &bob, "team").unwrap();
        let sealed = encrypt(&twice, &key().public()).unwrap();
        let policy = open(sealed.as_bytes(), &key()).unwrap();
        assert_eq!(policy.manifest, manifest);
        let [first, second] = policy.signatures.as_slice() else {
            panic!("two signatures")
        };
        assert!(first.is_by(&alice.certificate, "team"));
        assert!(second.is_by(&bob.certificate, "team"));
        assert!(!first.is_by(&bob.certificate, "team"));
        assert!(!first.is_by(&alice.certificate, ""), "another namespace");
        assert_eq!(open(manifest, &key()).unwrap().manifest, manifest);
    }

    #[test]
    fn every_changed_byte_of_an_envelope_is_noticed() {
        let sealed = encrypt(b"{}", &key().public()).unwrap().into_bytes();
        // Without its dots it is no envelope, and no manifest either.
        for at in (0..sealed.len()).filter(|at| sealed[*at] != b'.') {
            let mut changed = sealed.clone();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(open(&changed, &key()).is_err(), "byte {at}");
        }
        assert_eq!(
            open(&sealed, &PolicyKey::of_root(b"other").unwrap()).unwrap_err(),
            PolicyError::Decrypt
        );
        let (alice, _) = self_signed("alice").unwrap();
        let signed = sign(b"{\"a\": 1}", &alice, "").unwrap();
        let mut jws: Jws = serde_json::from_slice(&signed).unwrap();
        jws.payload = BASE64.encode(b"{\"a\": 2}");
        let forged = serde_json::to_vec(&jws).unwrap();
        let policy = open(&forged, &key()).unwrap();
        assert!(!policy.signatures[0].is_by(&alice.certificate, ""));
    }

    #[test]
    fn signatures_for_other_purposes_and_unknown_algorithms_are_refused() {
        let (alice, _) = self_signed("alice").unwrap();
        let thumbprint = BASE64.encode(sha256(&alice.certificate));
        for header in [
            json!({"alg": "ES384", "typ": "JWT", "x5t#S256": thumbprint}),
            json!({"alg": "ES384", "typ": TYPE, "crit": ["b64"], "x5t#S256": thumbprint}),
        ] {
            let jws = json!({"payload": "e30", "signatures": [
                {"protected": BASE64.encode(header.to_string()), "signature": "AAAA"}]});
            assert!(open(jws.to_string().as_bytes(), &key()).is_err());
        }
        let header = json!({"alg": "none", "typ": TYPE, "x5t#S256": thumbprint});
        let jws = json!({"payload": "e30", "signatures": [
            {"protected": BASE64.encode(header.to_string()), "signature": ""}]});
        let policy = open(jws.to_string().as_bytes(), &key()).unwrap();
        assert!(!policy.signatures[0].is_by(&alice.certificate, ""));
    }

    #[test]
    fn keys_of_every_kind_sign() {
        for kind in [
            KeyKind::P256,
            KeyKind::P384,
            KeyKind::Ed25519,
            KeyKind::Rsa { bits: 2048 },
        ] {
            let keys = KeyPair::generate(kind).unwrap();
            assert!(
                JwsSigner::open(&keys.pkcs8).unwrap().sign(b"x").is_ok(),
                "{kind:?}"
            );
        }
        assert!(JwsSigner::open(&KeyPair::generate(KeyKind::P521).unwrap().pkcs8).is_err());
    }
}
