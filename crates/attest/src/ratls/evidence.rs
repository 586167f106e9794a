//! The extensions' content: CBOR in, quote and claims out, and back.

use ciborium::Value;
use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use thiserror::Error;

use super::{ENDORSEMENTS_OID, EVIDENCE_OID, GRAMINE_OID, GRAMINE_WRITTEN_OID, QUOTE_TAG};
use crate::bytes::sha256;
use crate::certificate::{Certificate, CertificateError, SelfSignature};
use crate::collateral::{Collateral, CollateralError, date};
use crate::quote::{Identity, QUOTE_MAX};

/// The longest claims, in bytes.
const CLAIMS_MAX: usize = 4096;
/// The longest nonce, in bytes.
const NONCE_MAX: usize = 1024;
/// Nesting of CBOR; the profile needs two levels.
const DEPTH_MAX: usize = 8;

/// Why a certificate's evidence cannot be used. All are refusals.
#[derive(Debug, Error)]
pub enum EvidenceError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Collateral(#[from] CollateralError),
    #[error(
        "the certificate carries no quote: it is an ordinary certificate, and says nothing about an enclave"
    )]
    None,
    #[error("the certificate's evidence is malformed: {0}")]
    Malformed(&'static str),
    #[error("the certificate's evidence is of another kind (CBOR tag {0})")]
    OtherKind(u64),
    #[error(
        "the quote is over another key: {0}; somebody put a genuine quote into a certificate of their own"
    )]
    WrongKey(&'static str),
    #[error("the certificate claims to be signed with its own key, and is not")]
    WrongSignature,
    #[error(
        "the certificate is issued by {0}, whose signature cannot be checked here: its names and dates could be anybody's; certificates with a quote are signed with their own key"
    )]
    OtherIssuer(String),
    #[error("the certificate expired on {}; the peer must renew it, or this machine's clock is wrong", date(*.0))]
    Expired(u64),
    #[error("the certificate is valid from {} on; check this machine's clock", date(*.0))]
    NotYetValid(u64),
    #[error("the evidence does not hold the nonce that was asked for; it may be a replay")]
    WrongNonce,
}

/// How quote and key belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Report data = SHA-256 of the claims.
    Dice {
        claims: Vec<u8>,
        nonce: Option<Vec<u8>>,
    },
    /// Report data = SHA-256 of the key.
    Gramine,
}

/// What a certificate says about its enclave. The key has been checked against the claims; the
/// quote is unverified.
#[derive(Clone, Debug)]
pub struct CertificateEvidence {
    pub certificate: Certificate,
    pub quote: Vec<u8>,
    pub binding: Binding,
    /// Collateral that came along; as untrusted as any.
    pub endorsements: Option<Collateral>,
}

impl CertificateEvidence {
    /// Takes a DER certificate apart. Dates are checked, and that it is signed with its own key.
    pub fn of_certificate(der: &[u8], now: u64) -> Result<Self, EvidenceError> {
        let certificate = Certificate::decode(der)?;
        // The quote vouches for the key, and only the key for the rest: names, dates, the nonce's place.
        match certificate.self_signature() {
            SelfSignature::Valid => {}
            SelfSignature::Wrong => return Err(EvidenceError::WrongSignature),
            SelfSignature::Other => return Err(EvidenceError::OtherIssuer(certificate.issuer())),
        }
        if now > certificate.not_after {
            return Err(EvidenceError::Expired(certificate.not_after));
        }
        if now < certificate.not_before {
            return Err(EvidenceError::NotYetValid(certificate.not_before));
        }
        let (quote, binding) = match certificate.extension(EVIDENCE_OID)? {
            Some(content) => {
                let (quote, claims) = decode_evidence(content)?;
                let nonce = check_claims(&claims, &certificate.public_key)?;
                (quote, Binding::Dice { claims, nonce })
            }
            None => {
                let written = certificate.extension(GRAMINE_WRITTEN_OID)?;
                let documented = certificate.extension(GRAMINE_OID)?;
                let quote = written.or(documented).ok_or(EvidenceError::None)?;
                (quote.to_vec(), Binding::Gramine)
            }
        };
        if quote.len() > QUOTE_MAX {
            return Err(EvidenceError::Malformed("the quote is too long"));
        }
        let endorsements = certificate
            .extension(ENDORSEMENTS_OID)?
            .map(decode_endorsements)
            .transpose()?;
        Ok(CertificateEvidence {
            certificate,
            quote,
            binding,
            endorsements,
        })
    }

    /// Whether the quoted enclave vouches for the certificate's key. The quote must have been
    /// verified.
    pub fn check_binding(&self, identity: &Identity) -> Result<(), EvidenceError> {
        let hash = match &self.binding {
            Binding::Dice { claims, .. } => sha256(&[claims]),
            Binding::Gramine => sha256(&[&self.certificate.public_key]),
        };
        let (data, rest) = identity.report_data().split_at(32);
        if data != hash || rest.iter().any(|byte| *byte != 0) {
            return Err(EvidenceError::WrongKey(match self.binding {
                Binding::Dice { .. } => "its report data is not the hash of the claims",
                Binding::Gramine => "its report data is not the hash of the key",
            }));
        }
        Ok(())
    }

    /// Whether the evidence was made for this nonce.
    pub fn check_nonce(&self, expected: &[u8]) -> Result<(), EvidenceError> {
        match &self.binding {
            Binding::Dice {
                nonce: Some(nonce), ..
            } if nonce == expected => Ok(()),
            _ => Err(EvidenceError::WrongNonce),
        }
    }
}

const PUBKEY_HASH: &str = "pubkey-hash";
const NONCE: &str = "nonce";
/// "Named Information Hash Algorithm Registry" (IANA).
const SHA_256_ID: u64 = 1;

/// The claims about a key.
pub(super) fn claims(public_key: &[u8], nonce: Option<&[u8]>) -> Vec<u8> {
    let hash = Value::Array(vec![
        Value::Integer(SHA_256_ID.into()),
        Value::Bytes(sha256(&[public_key]).to_vec()),
    ]);
    let mut map = vec![(Value::Text(PUBKEY_HASH.into()), Value::Bytes(encode(&hash)))];
    if let Some(nonce) = nonce {
        map.push((Value::Text(NONCE.into()), Value::Bytes(nonce.to_vec())));
    }
    encode(&Value::Map(map))
}

/// The content of the evidence extension.
pub(super) fn encode_evidence(quote: &[u8], claims: &[u8]) -> Vec<u8> {
    let parts = [quote, claims].map(|part| Value::Bytes(part.to_vec()));
    encode(&Value::Tag(QUOTE_TAG, Box::new(Value::Array(parts.into()))))
}

/// The content of the endorsements extension (the fields of Open Enclave's SGX endorsements).
pub(super) fn encode_endorsements(collateral: &Collateral) -> Vec<u8> {
    let signed = |name: &str, text: &str, signature: &[u8]| {
        format!(
            "{{\"{name}\":{text},\"signature\":\"{}\"}}",
            hex::encode(signature)
        )
        .into_bytes()
    };
    let bytes = |value: &[u8]| Value::Bytes(value.to_vec());
    let array = vec![
        Value::Integer(1.into()),
        Value::Bytes(signed(
            "tcbInfo",
            &collateral.tcb_info,
            &collateral.tcb_info_signature,
        )),
        bytes(collateral.tcb_info_issuer_chain.as_bytes()),
        bytes(&collateral.pck_crl),
        bytes(&collateral.root_ca_crl),
        bytes(collateral.pck_crl_issuer_chain.as_bytes()),
        Value::Bytes(signed(
            "enclaveIdentity",
            &collateral.qe_identity,
            &collateral.qe_identity_signature,
        )),
        bytes(collateral.qe_identity_issuer_chain.as_bytes()),
    ];
    encode(&Value::Tag(QUOTE_TAG, Box::new(Value::Array(array))))
}

fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    ciborium::into_writer(value, &mut out).expect("writing to memory does not fail");
    out
}

/// One CBOR value, and nothing behind it.
fn decode(mut bytes: &[u8], what: &'static str) -> Result<Value, EvidenceError> {
    let value = ciborium::de::from_reader_with_recursion_limit(&mut bytes, DEPTH_MAX)
        .map_err(|_| EvidenceError::Malformed(what))?;
    if bytes.is_empty() {
        Ok(value)
    } else {
        Err(EvidenceError::Malformed(what))
    }
}

fn tagged_array(content: &[u8], what: &'static str) -> Result<Vec<Value>, EvidenceError> {
    match decode(content, what)? {
        Value::Tag(QUOTE_TAG, value) => match *value {
            Value::Array(array) => Ok(array),
            _ => Err(EvidenceError::Malformed(what)),
        },
        Value::Tag(other, _) => Err(EvidenceError::OtherKind(other)),
        _ => Err(EvidenceError::Malformed(what)),
    }
}

/// Quote and claims.
fn decode_evidence(content: &[u8]) -> Result<(Vec<u8>, Vec<u8>), EvidenceError> {
    const WHAT: &str = "it is not a tagged array of quote and claims";
    let array = tagged_array(content, WHAT)?;
    match <[Value; 2]>::try_from(array) {
        Ok([Value::Bytes(quote), Value::Bytes(claims)]) if claims.len() <= CLAIMS_MAX => {
            Ok((quote, claims))
        }
        _ => Err(EvidenceError::Malformed(WHAT)),
    }
}

/// Checks the key's hash in the claims; the nonce, if there is one.
fn check_claims(claims: &[u8], public_key: &[u8]) -> Result<Option<Vec<u8>>, EvidenceError> {
    const WHAT: &str = "the claims are not a map of pubkey-hash and nonce";
    let Value::Map(map) = decode(claims, WHAT)? else {
        return Err(EvidenceError::Malformed(WHAT));
    };
    let (mut hash, mut nonce) = (None, None);
    for (name, value) in map {
        let (Value::Text(name), Value::Bytes(value)) = (name, value) else {
            return Err(EvidenceError::Malformed(WHAT));
        };
        let place = match name.as_str() {
            PUBKEY_HASH => &mut hash,
            NONCE if value.len() <= NONCE_MAX => &mut nonce,
            _ => return Err(EvidenceError::Malformed(WHAT)),
        };
        if place.replace(value).is_some() {
            return Err(EvidenceError::Malformed("a claim appears twice"));
        }
    }
    let hash = hash.ok_or(EvidenceError::Malformed("there is no pubkey-hash"))?;
    const HASH: &str = "pubkey-hash is not an array of algorithm and hash";
    let Value::Array(entry) = decode(&hash, HASH)? else {
        return Err(EvidenceError::Malformed(HASH));
    };
    let Ok([Value::Integer(algorithm), Value::Bytes(hash)]) = <[Value; 2]>::try_from(entry) else {
        return Err(EvidenceError::Malformed(HASH));
    };
    let algorithm: &Algorithm = match u64::try_from(algorithm) {
        Ok(SHA_256_ID) => &SHA256,
        Ok(7) => &SHA384,
        Ok(8) => &SHA512,
        _ => return Err(EvidenceError::Malformed("an unknown hash algorithm")),
    };
    if digest(algorithm, public_key).as_ref() != hash {
        return Err(EvidenceError::WrongKey(
            "its claims hold the hash of a key that is not the certificate's",
        ));
    }
    Ok(nonce)
}

fn decode_endorsements(content: &[u8]) -> Result<Collateral, EvidenceError> {
    const WHAT: &str = "the endorsements are not those of an SGX or TDX quote";
    let malformed = || EvidenceError::Malformed(WHAT);
    let mut array = tagged_array(content, WHAT)?;
    if array.len() == 9 {
        // The date of creation says nothing that is signed.
        array.pop();
    }
    let [version, rest @ ..] = <[Value; 8]>::try_from(array).map_err(|_| malformed())?;
    if version != Value::Integer(1.into()) {
        return Err(malformed());
    }
    let mut bytes = rest.into_iter().map(|value| match value {
        // Open Enclave's are strings of C.
        Value::Bytes(mut bytes) => {
            if bytes.last() == Some(&0) && bytes.starts_with(b"-----") {
                bytes.pop();
            }
            Ok(bytes)
        }
        _ => Err(malformed()),
    });
    let mut next = || bytes.next().ok_or_else(malformed)?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| malformed());
    let (tcb_info, tcb_info_signature) =
        crate::signed_json::split(&next()?, "tcbInfo").map_err(|_| malformed())?;
    let tcb_info_issuer_chain = text(next()?)?;
    let pck_crl = next()?;
    let root_ca_crl = next()?;
    let pck_crl_issuer_chain = text(next()?)?;
    let (qe_identity, qe_identity_signature) =
        crate::signed_json::split(&next()?, "enclaveIdentity").map_err(|_| malformed())?;
    let qe_identity_issuer_chain = text(next()?)?;
    let collateral = Collateral {
        pck_crl_issuer_chain,
        root_ca_crl,
        pck_crl,
        tcb_info_issuer_chain,
        tcb_info,
        tcb_info_signature,
        qe_identity_issuer_chain,
        qe_identity,
        qe_identity_signature,
    };
    collateral.check()?;
    Ok(collateral)
}
