//! Collateral: what Intel (or an emulated platform) has signed about a platform, needed beside the
//! quote: TCB levels, the identity of the quoting enclave, revocation lists and the chains that
//! sign them.
//!
//! The saved form is the JSON that `dcap-qvl` and PCCS tools write: texts as they were signed,
//! binary fields in hexadecimal. Everything is untrusted until [`crate::verify`] has checked it.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The largest saved collateral that is read, in bytes. Real ones have 14 to 60 KiB; revocation
/// lists grow.
pub const COLLATERAL_MAX: usize = 4 << 20;
/// The longest single field.
pub const FIELD_MAX: usize = 2 << 20;

/// Why collateral cannot be used.
#[derive(Debug, Error)]
pub enum CollateralError {
    /// {0} bytes of collateral.
    #[error("{0} bytes are too many for collateral (at most {COLLATERAL_MAX})")]
    TooLarge(usize),
    #[error(
        "the collateral is malformed: {0}; fetch it again, or save it with `bulla verify --bundle`"
    )]
    Malformed(String),
}

/// The signed statements about a platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collateral {
    /// PEM.
    pub pck_crl_issuer_chain: String,
    /// DER.
    #[serde(with = "hex")]
    pub root_ca_crl: Vec<u8>,
    /// DER.
    #[serde(with = "hex")]
    pub pck_crl: Vec<u8>,
    /// PEM.
    pub tcb_info_issuer_chain: String,
    /// The signed JSON text.
    pub tcb_info: String,
    /// r ‖ s.
    #[serde(with = "hex")]
    pub tcb_info_signature: Vec<u8>,
    /// PEM.
    pub qe_identity_issuer_chain: String,
    /// The signed JSON text.
    pub qe_identity: String,
    /// r ‖ s.
    #[serde(with = "hex")]
    pub qe_identity_signature: Vec<u8>,
}

impl Collateral {
    /// Reads the saved form.
    pub fn from_json(bytes: &[u8]) -> Result<Collateral, CollateralError> {
        if bytes.len() > COLLATERAL_MAX {
            return Err(CollateralError::TooLarge(bytes.len()));
        }
        let collateral: Collateral = serde_json::from_slice(bytes)
            .map_err(|error| CollateralError::Malformed(error.to_string()))?;
        collateral.check()?;
        Ok(collateral)
    }

    /// The saved form.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings always serialise")
    }

    /// Sizes within bounds.
    pub(crate) fn check(&self) -> Result<(), CollateralError> {
        let lengths = [
            self.pck_crl_issuer_chain.len(),
            self.root_ca_crl.len(),
            self.pck_crl.len(),
            self.tcb_info_issuer_chain.len(),
            self.tcb_info.len(),
            self.tcb_info_signature.len(),
            self.qe_identity_issuer_chain.len(),
            self.qe_identity.len(),
            self.qe_identity_signature.len(),
        ];
        match lengths.into_iter().find(|length| *length > FIELD_MAX) {
            Some(length) => Err(CollateralError::TooLarge(length)),
            None => Ok(()),
        }
    }

    /// When the first of its parts ends (seconds since 1970), as far as they say so; for caches.
    /// Unverified: the verifier looks at the dates itself.
    pub fn next_update(&self) -> Option<u64> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Dated {
            next_update: String,
        }
        let json = |text: &str| {
            let dated: Dated = serde_json::from_str(text).ok()?;
            seconds(&dated.next_update)
        };
        [
            json(&self.tcb_info),
            json(&self.qe_identity),
            revocation_list_until(&self.root_ca_crl),
            revocation_list_until(&self.pck_crl),
        ]
        .into_iter()
        .try_fold(u64::MAX, |least, date| Some(least.min(date?)))
    }

    pub(crate) fn to_library(&self) -> dcap_qvl::QuoteCollateralV3 {
        dcap_qvl::QuoteCollateralV3 {
            pck_crl_issuer_chain: self.pck_crl_issuer_chain.clone(),
            root_ca_crl: self.root_ca_crl.clone(),
            pck_crl: self.pck_crl.clone(),
            tcb_info_issuer_chain: self.tcb_info_issuer_chain.clone(),
            tcb_info: self.tcb_info.clone(),
            tcb_info_signature: self.tcb_info_signature.clone(),
            qe_identity_issuer_chain: self.qe_identity_issuer_chain.clone(),
            qe_identity: self.qe_identity.clone(),
            qe_identity_signature: self.qe_identity_signature.clone(),
            // The quote's own chain, which is what its signature is checked with.
            pck_certificate_chain: None,
        }
    }
}

/// When a revocation list (DER) ends; unverified.
pub(crate) fn revocation_list_until(der: &[u8]) -> Option<u64> {
    use der::Decode;
    use x509_cert::certificate::Rfc5280;
    use x509_cert::crl::CertificateList;
    let list = CertificateList::<Rfc5280>::from_der(der).ok()?;
    Some(list.tbs_cert_list.next_update?.to_unix_duration().as_secs())
}

/// Seconds since 1970 of an RFC 3339 date.
pub fn seconds(date: &str) -> Option<u64> {
    let date = OffsetDateTime::parse(date, &Rfc3339).ok()?;
    u64::try_from(date.unix_timestamp()).ok()
}

/// An RFC 3339 date of seconds since 1970.
pub fn date(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{seconds} s after 1970"))
}
