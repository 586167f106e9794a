//! What is needed of X.509 certificates beside what the libraries do.

use der::asn1::ObjectIdentifier;
use der::{Decode, Encode};
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use thiserror::Error;
use x509_cert::Certificate as Parsed;

/// The largest certificate that is looked at, in bytes: a quote twice, and collateral.
pub const CERTIFICATE_MAX: usize = 256 << 10;

/// Why bytes are no usable certificate.
#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("{0} bytes are too many for a certificate (at most {CERTIFICATE_MAX})")]
    TooLarge(usize),
    #[error("this is not an X.509 certificate: {0}")]
    Malformed(String),
    #[error("extension {0} appears more than once")]
    Repeated(ObjectIdentifier),
}

/// A decoded certificate.
#[derive(Clone, Debug)]
pub struct Certificate {
    parsed: Parsed,
    /// DER of the SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
    /// Validity in seconds since 1970.
    pub not_before: u64,
    pub not_after: u64,
}

/// What the signature of a certificate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfSignature {
    /// Made with the certificate's own key.
    Valid,
    /// Claims to be, and is not.
    Wrong,
    /// Issued by another key.
    Other,
}

impl Certificate {
    /// Decodes DER.
    pub fn decode(bytes: &[u8]) -> Result<Certificate, CertificateError> {
        if bytes.len() > CERTIFICATE_MAX {
            return Err(CertificateError::TooLarge(bytes.len()));
        }
        let malformed = |error: der::Error| CertificateError::Malformed(error.to_string());
        let parsed = Parsed::from_der(bytes).map_err(malformed)?;
        let tbs = parsed.tbs_certificate();
        let public_key = tbs.subject_public_key_info().to_der().map_err(malformed)?;
        let validity = tbs.validity();
        Ok(Certificate {
            public_key,
            not_before: validity.not_before.to_unix_duration().as_secs(),
            not_after: validity.not_after.to_unix_duration().as_secs(),
            parsed,
        })
    }

    /// Decodes PEM (the first certificate in it) or DER.
    pub fn der_of(bytes: &[u8]) -> Result<Vec<u8>, CertificateError> {
        if bytes.len() > 2 * CERTIFICATE_MAX {
            return Err(CertificateError::TooLarge(bytes.len()));
        }
        if !bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
            return Ok(bytes.to_vec());
        }
        let blocks = pem::parse_many(bytes)
            .map_err(|error| CertificateError::Malformed(error.to_string()))?;
        blocks
            .into_iter()
            .find(|block| block.tag() == "CERTIFICATE")
            .map(pem::Pem::into_contents)
            .ok_or_else(|| CertificateError::Malformed("the PEM holds no certificate".into()))
    }

    /// The content of an extension.
    pub fn extension(&self, oid: ObjectIdentifier) -> Result<Option<&[u8]>, CertificateError> {
        let extensions = self.parsed.tbs_certificate().extensions();
        let mut found = extensions
            .into_iter()
            .flatten()
            .filter(|extension| extension.extn_id == oid)
            .map(|extension| extension.extn_value.as_bytes());
        let first = found.next();
        match found.next() {
            Some(_) => Err(CertificateError::Repeated(oid)),
            None => Ok(first),
        }
    }

    /// Who it is for, for people.
    pub fn subject(&self) -> String {
        self.parsed.tbs_certificate().subject().to_string()
    }

    /// Who issued it, for people.
    pub fn issuer(&self) -> String {
        self.parsed.tbs_certificate().issuer().to_string()
    }

    /// Whether the certificate is signed with its own key.
    pub fn self_signature(&self) -> SelfSignature {
        let tbs = self.parsed.tbs_certificate();
        if tbs.issuer() != tbs.subject() {
            return SelfSignature::Other;
        }
        match self.is_signed_by(self) {
            true => SelfSignature::Valid,
            false => SelfSignature::Wrong,
        }
    }

    /// Whether the signature was made with the key of `issuer`. Names and times are not looked at.
    pub fn is_signed_by(&self, issuer: &Certificate) -> bool {
        let tbs = self.parsed.tbs_certificate();
        let (Ok(signed), Some(signature)) = (tbs.to_der(), self.parsed.signature().as_bytes())
        else {
            return false;
        };
        let info = issuer.parsed.tbs_certificate().subject_public_key_info();
        let key = info.subject_public_key.raw_bytes();
        // With its parameters: they are outside of what is signed.
        if self.parsed.signature_algorithm() != tbs.signature() {
            return false;
        }
        let algorithm = self.parsed.signature_algorithm().oid;
        let curve: Option<ObjectIdentifier> = info
            .algorithm
            .parameters
            .as_ref()
            .and_then(|parameters| parameters.decode_as().ok());
        algorithm_of(algorithm, curve)
            .map(|algorithm| UnparsedPublicKey::new(algorithm, key))
            .is_some_and(|key| key.verify(&signed, signature).is_ok())
    }
}

const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// What a signature of this kind by a key on this curve means.
fn algorithm_of(
    signature: ObjectIdentifier,
    curve: Option<ObjectIdentifier>,
) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match (signature.to_string().as_str(), curve) {
        ("1.2.840.10045.4.3.2", Some(P256)) => &signature::ECDSA_P256_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", Some(P256)) => &signature::ECDSA_P256_SHA384_ASN1,
        ("1.2.840.10045.4.3.2", Some(P384)) => &signature::ECDSA_P384_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", Some(P384)) => &signature::ECDSA_P384_SHA384_ASN1,
        ("1.3.101.112", None) => &signature::ED25519,
        ("1.2.840.113549.1.1.11", _) => &signature::RSA_PKCS1_2048_8192_SHA256,
        ("1.2.840.113549.1.1.12", _) => &signature::RSA_PKCS1_2048_8192_SHA384,
        ("1.2.840.113549.1.1.13", _) => &signature::RSA_PKCS1_2048_8192_SHA512,
        _ => return None,
    })
}

/// Whether DER is a certificate of this common name that is signed with its own key.
pub fn is_root_named(bytes: &[u8], name: &str) -> bool {
    let Ok(certificate) = Certificate::decode(bytes) else {
        return false;
    };
    let tbs = certificate.parsed.tbs_certificate();
    let named = format!("CN={name}");
    certificate.self_signature() == SelfSignature::Valid
        && tbs
            .subject()
            .to_string()
            .split(',')
            .any(|part| part == named)
}
