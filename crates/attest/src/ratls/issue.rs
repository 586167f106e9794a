//! Making keys and certificates, in the enclave.

use std::net::IpAddr;

use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::evidence::{claims, encode_endorsements, encode_evidence};
use super::{ENDORSEMENTS_OID, EVIDENCE_OID, GRAMINE_WRITTEN_OID};
use crate::bytes::sha256;
use crate::collateral::Collateral;

/// Why no certificate was made.
#[derive(Debug, Error)]
pub enum IssueError {
    #[error("no quote can be had: {0}")]
    Quote(std::io::Error),
    #[error("the certificate cannot be made: {0}")]
    Make(String),
}

impl From<rcgen::Error> for IssueError {
    fn from(error: rcgen::Error) -> Self {
        IssueError::Make(error.to_string())
    }
}

/// Something that can be quoted: an enclave, by way of [`crate::Device`].
pub trait Attester {
    /// A quote with this report data.
    fn quote(&self, report_data: &[u8; 64]) -> std::io::Result<Vec<u8>>;
    /// The collateral for its quotes, if it is at hand.
    fn collateral(&self) -> Option<Collateral> {
        None
    }
}

/// What the certificate is to say.
#[derive(Clone, Debug)]
pub struct Request {
    pub common_name: String,
    /// DNS names and addresses.
    pub names: Vec<String>,
    /// Seconds since 1970, and how long it is valid.
    pub now: u64,
    pub valid_seconds: u64,
    /// Put the quote in Gramine's extension too (a second quote).
    pub gramine: bool,
    /// Let the collateral travel along, where it is at hand.
    pub endorsements: bool,
    pub nonce: Option<Vec<u8>>,
}

impl Request {
    /// A day from `now` on, for no name.
    pub fn new(now: u64) -> Request {
        Request {
            common_name: "bulla".into(),
            names: Vec::new(),
            now,
            valid_seconds: 86_400,
            gramine: false,
            endorsements: true,
            nonce: None,
        }
    }
}

/// A key and its certificate.
pub struct Identity {
    /// PKCS #8, DER.
    pub key: Zeroizing<Vec<u8>>,
    /// DER.
    pub certificate: Vec<u8>,
}

impl Identity {
    /// The certificate, PEM.
    pub fn certificate_pem(&self) -> String {
        pem::encode_config(
            &pem::Pem::new("CERTIFICATE", self.certificate.clone()),
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        )
    }

    /// The key, PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem::encode_config(
            &pem::Pem::new("PRIVATE KEY", self.key.to_vec()),
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        ))
    }
}

/// Makes a key (ECDSA P-256) and a self-signed certificate with a quote over it.
pub fn issue(attester: &dyn Attester, request: &Request) -> Result<Identity, IssueError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let public_key = key.subject_public_key_info();
    let quote = |hash: [u8; 32]| {
        let mut report_data = [0; 64];
        report_data[..32].copy_from_slice(&hash);
        attester.quote(&report_data).map_err(IssueError::Quote)
    };
    let claims = claims(&public_key, request.nonce.as_deref());
    let evidence = encode_evidence(&quote(sha256(&[&claims]))?, &claims);
    let mut extensions = vec![extension(EVIDENCE_OID, evidence)];
    if request.endorsements
        && let Some(collateral) = attester.collateral()
    {
        extensions.push(extension(
            ENDORSEMENTS_OID,
            encode_endorsements(&collateral),
        ));
    }
    if request.gramine {
        extensions.push(extension(
            GRAMINE_WRITTEN_OID,
            quote(sha256(&[&public_key]))?,
        ));
    }
    let certificate = params(request, extensions)?.self_signed(&key)?;
    Ok(Identity {
        certificate: certificate.der().to_vec(),
        key: Zeroizing::new(key.serialize_der()),
    })
}

fn extension(oid: der::asn1::ObjectIdentifier, content: Vec<u8>) -> CustomExtension {
    let arcs: Vec<u64> = oid.arcs().map(u64::from).collect();
    CustomExtension::from_oid_content(&arcs, content)
}

/// Names as a certificate has them: addresses and DNS names.
pub fn alternative_names(names: &[String]) -> Result<Vec<SanType>, rcgen::Error> {
    names
        .iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => Ok(SanType::DnsName(name.as_str().try_into()?)),
        })
        .collect()
}

fn params(
    request: &Request,
    extensions: Vec<CustomExtension>,
) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, request.common_name.as_str());
    params.distinguished_name = subject;
    params.subject_alt_names = alternative_names(&request.names)?;
    let mut serial = [0; 16];
    SystemRandom::new()
        .fill(&mut serial)
        .map_err(|_| IssueError::Make("no random numbers".into()))?;
    // Positive.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let moment = |seconds: u64| {
        i64::try_from(seconds)
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .ok_or_else(|| IssueError::Make("the time is out of range".into()))
    };
    // Clocks of peers may be behind a little.
    params.not_before = moment(request.now)? - Duration::minutes(5);
    params.not_after = moment(request.now.saturating_add(request.valid_seconds))?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.custom_extensions = extensions;
    Ok(params)
}
