//! The software quoting enclave: REPORT in, DCAP version 3 quote out.

use bulla_sgx::{Report, TargetInfo};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use thiserror::Error;

use super::provisioning::{Provisioning, ProvisioningError, sign};
use super::{PCE_SVN, QE_SVN, quoting_enclave_report, target_info};
use crate::bytes::sha256;

/// Whether a report was made on this machine for this target: the MAC under the report key.
pub type ReportCheck = Box<dyn Fn(&TargetInfo, &Report) -> bool + Send + Sync>;

/// Why no quote is made.
#[derive(Debug, Error)]
pub enum QuotingError {
    #[error("a report of {0} bytes; it must have {size}", size = Report::SIZE)]
    ReportSize(usize),
    #[error(
        "the report was not made on this machine for its quoting enclave (wrong MAC); its target must be the quoting enclave's TARGETINFO"
    )]
    WrongMac,
    #[error("the emulated quoting enclave cannot sign: {0}")]
    Sign(String),
    #[error(transparent)]
    Provisioning(#[from] ProvisioningError),
}

/// A quoting enclave with its certified attestation key.
pub struct QuotingEnclave {
    check: ReportCheck,
    key: EcdsaKeyPair,
    random: SystemRandom,
    header: [u8; 48],
    /// Everything after the quote's own signature: attestation key, certified by the PCK.
    certification: Vec<u8>,
}

impl QuotingEnclave {
    /// Certifies the attestation key with the platform's PCK.
    pub fn new(provisioning: &Provisioning, check: ReportCheck) -> Result<Self, QuotingError> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = EcdsaKeyPair::from_pkcs8(algorithm, &provisioning.attestation_key, &random)
            .map_err(|error| QuotingError::Sign(error.to_string()))?;
        // Uncompressed point: 4, x, y.
        let public = key
            .public_key()
            .as_ref()
            .get(1..)
            .filter(|point| point.len() == 64)
            .ok_or_else(|| QuotingError::Sign("the attestation key is no P-256 key".into()))?;
        let authentication: [u8; 32] = core::array::from_fn(|index| index as u8);
        let mut report_data = [0; 64];
        report_data[..32].copy_from_slice(&sha256(&[public, &authentication]));
        let cpu_svn = provisioning
            .cpu_svn
            .as_slice()
            .try_into()
            .unwrap_or([0; 16]);
        let report = quoting_enclave_report(cpu_svn, report_data).to_bytes();
        let body = &report[..Report::BODY_SIZE];

        let chain = provisioning.pck_chain.as_bytes();
        const PCK_CHAIN: u16 = 5;
        let certification = [
            public,
            body,
            &sign(&provisioning.pck_key, body)?,
            &(authentication.len() as u16).to_le_bytes(),
            &authentication,
            &PCK_CHAIN.to_le_bytes(),
            &(chain.len() as u32).to_le_bytes(),
            chain,
        ]
        .concat();

        let mut header = [0; 48];
        header[0..2].copy_from_slice(&3u16.to_le_bytes());
        // ECDSA P-256.
        header[2..4].copy_from_slice(&2u16.to_le_bytes());
        header[8..10].copy_from_slice(&QE_SVN.to_le_bytes());
        header[10..12].copy_from_slice(&PCE_SVN.to_le_bytes());
        header[12..28].copy_from_slice(&dcap_qvl::INTEL_QE_VENDOR_ID);
        let qe_id: [u8; 16] = provisioning.qe_id.as_slice().try_into().unwrap_or([0; 16]);
        header[28..44].copy_from_slice(&qe_id);
        Ok(QuotingEnclave {
            check,
            key,
            random,
            header,
            certification,
        })
    }

    /// For whom reports must be made.
    pub fn target_info(&self) -> TargetInfo {
        target_info()
    }

    /// A quote over a report whose MAC is right.
    pub fn quote(&self, report: &[u8]) -> Result<Vec<u8>, QuotingError> {
        let bytes: &[u8; Report::SIZE] = report
            .try_into()
            .map_err(|_| QuotingError::ReportSize(report.len()))?;
        let report = Report::from_bytes(bytes);
        if !(self.check)(&target_info(), &report) {
            return Err(QuotingError::WrongMac);
        }
        // What was checked, not what was given: reserved fields are zero.
        let signed = [&self.header[..], &report.to_bytes()[..Report::BODY_SIZE]].concat();
        let signature = self
            .key
            .sign(&self.random, &signed)
            .map_err(|_| QuotingError::Sign("no random numbers".into()))?;
        let length = (signature.as_ref().len() + self.certification.len()) as u32;
        Ok([
            &signed[..],
            &length.to_le_bytes(),
            signature.as_ref(),
            &self.certification,
        ]
        .concat())
    }
}
