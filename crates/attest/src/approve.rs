//! From a certificate or a quote to a verdict: all steps in their order.

use std::io;
use std::sync::Arc;

use crate::collateral::Collateral;
use crate::policy::{Disclosed, Policy};
use crate::quote::Quote;
use crate::ratls::{Approval, Approver, CertificateEvidence, EvidenceError};
use crate::verdict::{Check, Verdict};
use crate::verify::verify;

/// Where collateral comes from.
pub trait CollateralSource: Send + Sync {
    /// The collateral for a quote.
    fn collateral(&self, quote: &Quote, now: u64) -> io::Result<Collateral>;
}

/// Always the same collateral.
impl CollateralSource for Collateral {
    fn collateral(&self, _: &Quote, _: u64) -> io::Result<Collateral> {
        Ok(self.clone())
    }
}

/// Nowhere: only collateral that the peer brings is used.
pub struct NoSource;

impl CollateralSource for NoSource {
    fn collateral(&self, _: &Quote, _: u64) -> io::Result<Collateral> {
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no source of collateral is set",
        ))
    }
}

/// Judges quotes and certificates by a policy.
pub struct Judge {
    pub policy: Policy,
    /// Asked first; what the peer brings is used where this has none.
    pub source: Arc<dyn CollateralSource>,
    pub disclosed: Option<Disclosed>,
}

/// Why there is no verdict.
#[derive(Debug)]
pub enum Unjudged {
    /// The bytes are not what they should be.
    BadInput(String),
    /// Collateral cannot be had.
    Unreachable(String),
}

impl std::fmt::Display for Unjudged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unjudged::BadInput(reason) | Unjudged::Unreachable(reason) => f.write_str(reason),
        }
    }
}

/// A judged quote and what it was judged by.
pub struct Judged {
    pub verdict: Verdict,
    pub quote: Vec<u8>,
    pub collateral: Collateral,
}

impl Judge {
    /// Judges a quote with the source's collateral, else with what the peer brought: both are
    /// signed, but a peer may have chosen the oldest that is still in date.
    pub fn quote(
        &self,
        bytes: &[u8],
        brought: Option<Collateral>,
        now: u64,
    ) -> Result<Judged, Unjudged> {
        let (decoded, exact) =
            Quote::decode(bytes).map_err(|error| Unjudged::BadInput(error.to_string()))?;
        let collateral = match (self.source.collateral(&decoded, now), brought) {
            (Ok(collateral), _) | (Err(_), Some(collateral)) => collateral,
            (Err(error), None) => {
                return Err(Unjudged::Unreachable(format!(
                    "no collateral for this quote: {error}"
                )));
            }
        };
        let verdict = match verify(exact, &collateral, now) {
            Ok(evidence) => self.policy.judge(&evidence, self.disclosed.as_ref(), now),
            Err(error) => Verdict::not_genuine(&error, now),
        };
        Ok(Judged {
            verdict,
            quote: exact.to_vec(),
            collateral,
        })
    }

    /// Judges an RA-TLS certificate (DER).
    pub fn certificate(&self, der: &[u8], now: u64) -> Result<Judged, CertificateUnjudged> {
        let found = CertificateEvidence::of_certificate(der, now)?;
        let mut judged = self
            .quote(&found.quote, found.endorsements.clone(), now)
            .map_err(CertificateUnjudged::Unjudged)?;
        let identity = judged
            .verdict
            .evidence
            .as_ref()
            .map(|evidence| evidence.identity.clone());
        let bound = match identity {
            Some(identity) => found
                .check_binding(&identity)
                .map_err(|error| error.to_string()),
            None => Err("the quote is not genuine, so it vouches for no key".into()),
        };
        judged.verdict.push_first(Check {
            check: "key",
            pass: bound.is_ok(),
            value: match bound {
                Ok(()) => "quoted together with the enclave".into(),
                Err(reason) => reason,
            },
            rule: "the quote is over this certificate's key".into(),
            meaning: "only the quoted enclave can hold this key".into(),
            remedy: "do not trust this peer".into(),
        });
        judged
            .verdict
            .limit(found.certificate.not_after.saturating_add(1));
        Ok(judged)
    }
}

/// Why a certificate got no verdict.
#[derive(Debug)]
pub enum CertificateUnjudged {
    /// The certificate itself is refused.
    Refused(EvidenceError),
    Unjudged(Unjudged),
}

impl From<EvidenceError> for CertificateUnjudged {
    fn from(error: EvidenceError) -> Self {
        CertificateUnjudged::Refused(error)
    }
}

impl std::fmt::Display for CertificateUnjudged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CertificateUnjudged::Refused(error) => error.fmt(f),
            CertificateUnjudged::Unjudged(error) => error.fmt(f),
        }
    }
}

impl Approver for Judge {
    fn approve(&self, certificate: &[u8], now: u64) -> Result<Approval, String> {
        let judged = self
            .certificate(certificate, now)
            .map_err(|error| error.to_string())?;
        if judged.verdict.trusted {
            Ok(Approval {
                until: judged.verdict.until,
            })
        } else {
            Err(judged.verdict.reason())
        }
    }
}
