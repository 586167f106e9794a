//! Evidence bundles: everything that led to a verdict, to be judged again years later, offline.
//!
//! ```text
//! quote.bin                  what was judged
//! certificate.pem            and what it came in, if it came in one
//! coordinator.json           or what a coordinator showed with it: nonce, certificates
//! collateral.json            what it was judged with
//! policy.toml                by what
//! configuration.json         what the configuration said that was shown, if one was: measured when
//!                            the bundle was written
//! verdict.json               the result, and when; written last
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::approve::{Judge, Judged};
use crate::certificate::{CERTIFICATE_MAX, Certificate};
use crate::collateral::{COLLATERAL_MAX, Collateral, CollateralError};
use crate::coordinator::Shown;
use crate::policy::{Disclosed, POLICY_MAX, Policy, PolicyError};
use crate::verdict::Verdict;

const QUOTE: &str = "quote.bin";
const CERTIFICATE: &str = "certificate.pem";
const COORDINATOR: &str = "coordinator.json";
const COLLATERAL: &str = "collateral.json";
const POLICY: &str = "policy.toml";
const VERDICT: &str = "verdict.json";
const DISCLOSED: &str = "configuration.json";
/// All of them; the verdict last.
const NAMES: [&str; 7] = [
    QUOTE,
    CERTIFICATE,
    COORDINATOR,
    COLLATERAL,
    POLICY,
    DISCLOSED,
    VERDICT,
];

/// Why a bundle cannot be written or read.
#[derive(Debug, Error)]
pub enum BundleError {
    #[error("the evidence cannot be written: {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the evidence cannot be read: {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Collateral(#[from] CollateralError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("the bundle's verdict is malformed: {0}")]
    Verdict(String),
    #[error("the bundle cannot be judged: {0}")]
    Judge(String),
    #[error(
        "the bundle was altered: {what} is recorded as {recorded}, judging it again says {again}"
    )]
    Differs {
        what: String,
        recorded: String,
        again: String,
    },
}

/// How a quote came.
#[derive(Clone, Debug)]
pub enum Origin {
    /// By itself.
    File,
    /// In this certificate (DER).
    Certificate(Vec<u8>),
    Coordinator(Shown),
}

/// Writes a bundle, in place of the one that is there. Whatever fails, no half of one is left, and what
/// was there before stays.
pub fn write(
    directory: &Path,
    judged: &Judged,
    origin: &Origin,
    policy: &str,
    disclosed: Option<&Disclosed>,
) -> Result<(), BundleError> {
    let json = |value: Result<Vec<u8>, serde_json::Error>| {
        value.map_err(|error| BundleError::Verdict(error.to_string()))
    };
    let mut files = vec![
        (QUOTE, judged.quote.clone()),
        (COLLATERAL, judged.collateral.to_json().into_bytes()),
        (POLICY, policy.as_bytes().to_vec()),
    ];
    match origin {
        Origin::File => {}
        Origin::Certificate(der) => {
            let block = pem::Pem::new("CERTIFICATE", der.clone());
            files.push((CERTIFICATE, pem::encode(&block).into_bytes()));
        }
        Origin::Coordinator(shown) => {
            files.push((COORDINATOR, json(serde_json::to_vec_pretty(shown))?));
        }
    }
    if let Some(disclosed) = disclosed {
        files.push((DISCLOSED, json(serde_json::to_vec_pretty(disclosed))?));
    }
    files.push((VERDICT, json(serde_json::to_vec_pretty(&judged.verdict))?));

    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| BundleError::Write { path, source }
    };
    let existed = directory.is_dir();
    fs::create_dir_all(directory).map_err(failed(directory))?;
    let staging = directory.join(format!(".writing-{}", std::process::id()));
    let staged = fs::create_dir(&staging)
        .map_err(failed(&staging))
        .and_then(|()| {
            files.iter().try_for_each(|(name, bytes)| {
                File::create_new(staging.join(name))
                    .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
                    .map_err(failed(&directory.join(name)))
            })
        });
    let done = staged.and_then(|()| {
        // A bundle without a verdict is none: the old one goes first, the new one comes last.
        for name in NAMES.into_iter().rev() {
            let path = directory.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(&path)(error));
                }
                _ => {}
            }
        }
        files.iter().try_for_each(|(name, _)| {
            let path = directory.join(name);
            fs::rename(staging.join(name), &path).map_err(failed(&path))
        })
    });
    let _ = fs::remove_dir_all(&staging);
    if done.is_err() && !existed {
        let _ = fs::remove_dir(directory);
    }
    done
}

/// Judges a bundle again, as of the time when it was written. The verdict must be the recorded one, row
/// by row; only the explanations may be worded in another way than by an older version.
pub fn replay(directory: &Path) -> Result<Verdict, BundleError> {
    #[derive(Deserialize)]
    struct Recorded {
        at: u64,
    }
    let get = |name: &str, max: usize| {
        let path = directory.join(name);
        let mut bytes = Vec::new();
        let read = File::open(&path)
            .and_then(|file| file.take(max as u64 + 1).read_to_end(&mut bytes))
            .and_then(|length| match length > max {
                true => Err(io::Error::new(io::ErrorKind::InvalidData, "too large")),
                false => Ok(bytes),
            });
        read.map_err(|source| BundleError::Read { path, source })
    };
    let malformed = |error: serde_json::Error| BundleError::Verdict(error.to_string());
    let recorded: Value =
        serde_json::from_slice(&get(VERDICT, COLLATERAL_MAX)?).map_err(malformed)?;
    let Recorded { at } = Recorded::deserialize(&recorded).map_err(malformed)?;
    let has = |name: &str| directory.join(name).exists();
    let disclosed = match has(DISCLOSED) {
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
    let cannot = |error: &dyn std::fmt::Display| BundleError::Judge(error.to_string());
    let quote = get(QUOTE, crate::quote::QUOTE_MAX)?;
    let judged = if has(CERTIFICATE) {
        let text = get(CERTIFICATE, 2 * CERTIFICATE_MAX)?;
        let der = Certificate::der_of(&text).map_err(|error| cannot(&error))?;
        judge
            .certificate(&der, at)
            .map_err(|error| cannot(&error))?
    } else if has(COORDINATOR) {
        let shown: Shown = serde_json::from_slice(&get(COORDINATOR, COLLATERAL_MAX)?)
            .map_err(|error| BundleError::Judge(format!("{COORDINATOR}: {error}")))?;
        shown
            .judge(&judge, &quote, at)
            .map_err(|error| cannot(&error))?
    } else {
        judge
            .quote(&quote, None, at)
            .map_err(|error| cannot(&error))?
    };
    if judged.quote != quote {
        return Err(BundleError::Judge(format!(
            "{QUOTE} is not the quote of {CERTIFICATE}"
        )));
    }
    compare(&recorded, &judged.verdict)?;
    Ok(judged.verdict)
}

/// Whether a recorded verdict is this one.
fn compare(recorded: &Value, verdict: &Verdict) -> Result<(), BundleError> {
    let again =
        serde_json::to_value(verdict).map_err(|error| BundleError::Verdict(error.to_string()))?;
    let same = |what: &str, recorded: &Value, again: &Value| {
        if recorded == again {
            return Ok(());
        }
        Err(BundleError::Differs {
            what: what.into(),
            recorded: recorded.to_string(),
            again: again.to_string(),
        })
    };
    for field in ["trusted", "at", "until"] {
        same(field, &recorded[field], &again[field])?;
    }
    let rows = |verdict: &Value| {
        let rows = verdict["checks"].as_array().cloned().unwrap_or_default();
        rows.into_iter().map(|row| {
            let name = row["check"].as_str().unwrap_or("").to_string();
            let said: Vec<Value> = ["check", "value", "rule", "pass"]
                .map(|field| row[field].clone())
                .to_vec();
            (name, Value::Array(said))
        })
    };
    let (old, new): (Vec<_>, Vec<_>) = (rows(recorded).collect(), rows(&again).collect());
    for ((_, recorded), (name, again)) in old.iter().zip(&new) {
        same(&format!("the row {name:?}"), recorded, again)?;
    }
    same("the number of rows", &old.len().into(), &new.len().into())?;
    // A later version may know more of the evidence; what was recorded must be as it was.
    match recorded["evidence"].as_object() {
        Some(fields) => fields.iter().try_for_each(|(name, recorded)| {
            same(
                &format!("evidence.{name}"),
                recorded,
                &again["evidence"][name],
            )
        }),
        None => same("evidence", &recorded["evidence"], &again["evidence"]),
    }
}
