//! Evidence bundles: everything that led to a verdict, to be judged again years later, offline.
//!
//! ```text
//! quote.bin                  what was judged
//! certificate.pem            and what it came in, if it came in one
//! collateral.json            what it was judged with
//! policy.toml                by what
//! verdict.json               the result, and when
//! configuration.json         what the configuration said that was shown, if one was: measured when
//!                            the bundle was written
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use thiserror::Error;

use crate::approve::{Judge, Judged};
use crate::certificate::Certificate;
use crate::collateral::{COLLATERAL_MAX, Collateral, CollateralError};
use crate::policy::{Disclosed, POLICY_MAX, Policy, PolicyError};
use crate::verdict::Verdict;

const QUOTE: &str = "quote.bin";
const CERTIFICATE: &str = "certificate.pem";
const COLLATERAL: &str = "collateral.json";
const POLICY: &str = "policy.toml";
const VERDICT: &str = "verdict.json";
const DISCLOSED: &str = "configuration.json";

/// Why a bundle cannot be written or read.
#[derive(Debug, Error)]
pub enum BundleError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Collateral(#[from] CollateralError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("the bundle's verdict is malformed: {0}")]
    Verdict(String),
    #[error("the bundle cannot be judged: {0}")]
    Judge(String),
    #[error("the bundle says trusted = {recorded}, judging it again says {again}: it was altered")]
    Differs { recorded: bool, again: bool },
}

/// Writes a bundle. `certificate` is what the quote came in, if it came in one.
pub fn write(
    directory: &Path,
    judged: &Judged,
    certificate: Option<&[u8]>,
    policy: &str,
    disclosed: Option<&Disclosed>,
) -> Result<(), BundleError> {
    let put = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        fs::write(&path, bytes).map_err(|source| BundleError::File { path, source })
    };
    fs::create_dir_all(directory).map_err(|source| BundleError::File {
        path: directory.to_owned(),
        source,
    })?;
    put(QUOTE, &judged.quote)?;
    if let Some(certificate) = certificate {
        let block = pem::Pem::new("CERTIFICATE", certificate);
        put(CERTIFICATE, pem::encode(&block).as_bytes())?;
    }
    put(COLLATERAL, judged.collateral.to_json().as_bytes())?;
    put(POLICY, policy.as_bytes())?;
    if let Some(disclosed) = disclosed {
        let bytes = serde_json::to_vec_pretty(disclosed)
            .map_err(|error| BundleError::Verdict(error.to_string()))?;
        put(DISCLOSED, &bytes)?;
    }
    let verdict = serde_json::to_vec_pretty(&judged.verdict)
        .map_err(|error| BundleError::Verdict(error.to_string()))?;
    put(VERDICT, &verdict)
}

/// Judges a bundle again, as of the time when it was written.
pub fn replay(directory: &Path) -> Result<Verdict, BundleError> {
    #[derive(Deserialize)]
    struct Recorded {
        trusted: bool,
        at: u64,
    }
    let get = |name: &str, max: usize| {
        let path = directory.join(name);
        let read = fs::metadata(&path).and_then(|metadata| {
            if metadata.len() > max as u64 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too large"));
            }
            fs::read(&path)
        });
        read.map_err(|source| BundleError::File { path, source })
    };
    let recorded: Recorded = serde_json::from_slice(&get(VERDICT, COLLATERAL_MAX)?)
        .map_err(|error| BundleError::Verdict(error.to_string()))?;
    let disclosed = match directory.join(DISCLOSED).exists() {
        true => Some(
            serde_json::from_slice::<Disclosed>(&get(DISCLOSED, COLLATERAL_MAX)?)
                .map_err(|error| BundleError::Judge(format!("{DISCLOSED}: {error}")))?,
        ),
        false => None,
    };
    let judge = Judge {
        policy: Policy::from_toml(&get(POLICY, POLICY_MAX)?)?,
        source: Arc::new(Collateral::from_json(&get(COLLATERAL, COLLATERAL_MAX)?)?),
        disclosed,
    };
    let judged = if directory.join(CERTIFICATE).exists() {
        let text = get(CERTIFICATE, 2 * crate::certificate::CERTIFICATE_MAX)?;
        let der =
            Certificate::der_of(&text).map_err(|error| BundleError::Judge(error.to_string()))?;
        judge
            .certificate(&der, recorded.at)
            .map_err(|error| BundleError::Judge(error.to_string()))?
    } else {
        judge
            .quote(&get(QUOTE, crate::quote::QUOTE_MAX)?, None, recorded.at)
            .map_err(|error| BundleError::Judge(error.to_string()))?
    };
    if judged.verdict.trusted != recorded.trusted {
        return Err(BundleError::Differs {
            recorded: recorded.trusted,
            again: judged.verdict.trusted,
        });
    }
    Ok(judged.verdict)
}
