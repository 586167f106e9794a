//! `bulla verify`: who is at the other end, and should it be trusted?
//!
//! The subject is a quote file, a certificate file, a live TLS endpoint, or a coordinator. Exit
//! codes: 0 trusted, 1 not trusted, 2 cannot reach, 3 bad input. Whatever fails is not trusted.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bulla_attest::fetch::{AZURE, INTEL, Options, Service, Trust};
use bulla_attest::{
    Certificate, CertificateUnjudged, Collateral, CollateralSource, Disclosed, FirstOf, Judge,
    Judged, LocalEmulated, Policy, Saved, Unjudged, Verdict, bundle, bundle::Origin,
    coordinator::CoordinatorError, endpoint,
};

use crate::args::{CollateralArguments, VerifyArguments};
use crate::disclose::{self, DOCUMENT_MAX};
use crate::failure::Failure;
use crate::quoter::now;
use crate::state::State;
use crate::{print, print_json};

const TRUSTED: u8 = 0;
const NOT_TRUSTED: u8 = 1;
const CANNOT_REACH: u8 = 2;
const BAD_INPUT: u8 = 3;
/// Largest input file, in bytes.
const FILE_MAX: u64 = 4 << 20;

pub fn bad_input(message: impl std::fmt::Display) -> Failure {
    Failure::with_code(BAD_INPUT, message)
}

fn unreachable(message: impl std::fmt::Display) -> Failure {
    Failure::with_code(CANNOT_REACH, message)
}

/// A verdict and, where there was a genuine attempt, what it rests on.
struct Outcome {
    verdict: Verdict,
    kept: Option<(Judged, Origin)>,
}

impl Outcome {
    fn of(judged: Judged, origin: Origin) -> Outcome {
        Outcome {
            verdict: judged.verdict.clone(),
            kept: Some((judged, origin)),
        }
    }
}

/// Runs the command; the result is the exit code.
pub fn run(arguments: &VerifyArguments) -> Result<u8, Failure> {
    let verdict = match &arguments.replay {
        Some(directory) => bundle::replay(directory).map_err(bad_input)?,
        None => judge(arguments)?,
    };
    if arguments.json {
        print_json(&verdict)?;
    } else {
        print(&verdict.to_string())?;
    }
    Ok(if verdict.trusted {
        TRUSTED
    } else {
        NOT_TRUSTED
    })
}

fn judge(arguments: &VerifyArguments) -> Result<Verdict, Failure> {
    let subject = arguments
        .subject
        .as_deref()
        .ok_or_else(|| bad_input("name a quote, a certificate or an address to verify"))?;
    let policy = arguments
        .policy
        .as_deref()
        .map(read)
        .transpose()?
        .unwrap_or_default();
    let judge = Judge {
        policy: policy_of(arguments.policy.as_deref(), &policy)?,
        source: source(&arguments.collateral)?,
        disclosed: disclosed(arguments)?,
    };
    let at = match &arguments.at {
        None => now(),
        Some(time) => bulla_attest::seconds(time)
            .ok_or_else(|| bad_input(format!("--at {time}: write 2027-01-31T00:00:00Z")))?,
    };
    let timeout = Duration::from_secs(arguments.collateral.timeout);
    let outcome = if let Some(address) = subject.strip_prefix("coordinator://") {
        let address = address.trim_end_matches('/');
        coordinator(&judge, &with_port(address, address)?, at, timeout)?
    } else if let Some(address) = address_of(subject) {
        let address = address?;
        let seen = endpoint::look(&address, b"", timeout)
            .map_err(|error| unreachable(format!("{address}: {error}")))?;
        let leaf = seen
            .chain
            .first()
            .ok_or_else(|| unreachable("it shows no certificate"))?;
        certificate(&judge, leaf, at)?
    } else {
        file(&judge, Path::new(subject), at)?
    };
    if let Some(directory) = &arguments.bundle {
        let (judged, origin) = outcome.kept.as_ref().ok_or_else(|| {
            bad_input(format!(
                "there is no evidence to keep: {}",
                outcome.verdict.reason()
            ))
        })?;
        let text = String::from_utf8_lossy(&policy);
        let disclosed = judge.disclosed.as_ref();
        bundle::write(directory, judged, origin, &text, disclosed).map_err(Failure::new)?;
    }
    Ok(outcome.verdict)
}

/// What is known of the peer beside its quote.
fn disclosed(arguments: &VerifyArguments) -> Result<Option<Disclosed>, Failure> {
    if let Some(path) = &arguments.configuration {
        let bytes = read_up_to(path, DOCUMENT_MAX)?;
        return disclose::of_document(&bytes).map(Some).map_err(bad_input);
    }
    let Some(image) = &arguments.image else {
        return Ok(None);
    };
    disclose::of_image(image, arguments.manifest.as_deref())
        .map(Some)
        .map_err(|failure| match failure.is_remote {
            true => unreachable(failure),
            false => bad_input(failure),
        })
}

fn policy_of(path: Option<&Path>, text: &[u8]) -> Result<Policy, Failure> {
    Policy::from_toml(text).map_err(|error| match path {
        Some(path) => bad_input(format!("{}: {error}", path.display())),
        None => bad_input(error),
    })
}

/// The judge that a policy file and the options describe.
pub fn judge_of(policy: &Path, collateral: &CollateralArguments) -> Result<Judge, Failure> {
    Ok(Judge {
        policy: policy_of(Some(policy), &read(policy)?)?,
        source: source(collateral)?,
        disclosed: None,
    })
}

/// This machine's emulated platform knows its own quotes; others' collateral is saved or fetched.
fn source(arguments: &CollateralArguments) -> Result<Arc<dyn CollateralSource>, Failure> {
    let state = State::of_user();
    let mut sources: Vec<Box<dyn CollateralSource>> = Vec::new();
    if let Some(path) = &arguments.collateral {
        if path.is_dir() {
            return Ok(Arc::new(Saved { path: path.clone() }));
        }
        let collateral = Collateral::from_json(&read(path)?)
            .map_err(|error| bad_input(format!("{}: {error}", path.display())))?;
        return Ok(Arc::new(collateral));
    }
    sources.push(Box::new(LocalEmulated {
        state: state.emulated_fuses(),
    }));
    let cache = state.collateral();
    if arguments.offline {
        sources.push(Box::new(Saved { path: cache }));
    } else {
        let base = match &arguments.pccs {
            Some(base) => base,
            None if arguments.azure => AZURE,
            None => INTEL,
        };
        let trust = match &arguments.pccs_ca {
            Some(path) => Trust::File(path.clone()),
            None if arguments.insecure_pccs_tls => Trust::InsecureAny,
            None => Trust::System,
        };
        let service = Service::new(Options {
            trust,
            cache: Some(cache),
            ..Options::new(base, Duration::from_secs(arguments.timeout))
        });
        sources.push(Box::new(service.map_err(bad_input)?));
    }
    Ok(Arc::new(FirstOf(sources)))
}

pub fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    read_up_to(path, FILE_MAX)
}

fn read_up_to(path: &Path, max: u64) -> Result<Vec<u8>, Failure> {
    let failed = |error| bad_input(format!("cannot read {}: {error}", path.display()));
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(max + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if bytes.len() as u64 > max {
        return Err(bad_input(format!(
            "{} is larger than {} MiB",
            path.display(),
            max >> 20
        )));
    }
    Ok(bytes)
}

/// `https://host[:port][/…]` or `host:port`, unless there is a file of that name.
fn address_of(subject: &str) -> Option<Result<String, Failure>> {
    if let Some(rest) = subject.strip_prefix("https://") {
        let authority = rest.split('/').next()?;
        // Colons may also be those of an IPv6 address.
        let after_host = authority.rsplit(']').next()?;
        return Some(if after_host.contains(':') || authority.is_empty() {
            with_port(authority, subject)
        } else {
            Ok(format!("{authority}:443"))
        });
    }
    if Path::new(subject).exists() || subject.contains('/') {
        return None;
    }
    let (_, port) = subject.rsplit_once(':')?;
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| with_port(subject, subject))
}

/// `host:port`, as it was written in `subject`.
fn with_port(address: &str, subject: &str) -> Result<String, Failure> {
    let parts = address.rsplit_once(':');
    match parts.filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        Some(_) => Ok(address.to_string()),
        None => Err(bad_input(format!(
            "{subject:?} is no address; write HOST:PORT, with a port up to 65535"
        ))),
    }
}

fn unjudged(error: Unjudged) -> Failure {
    match error {
        Unjudged::BadInput(reason) => bad_input(reason),
        Unjudged::Unreachable(reason) => unreachable(format!(
            "{reason}; a PCCS is named with --pccs, Azure's with --azure, saved collateral with \
             --collateral"
        )),
    }
}

/// A certificate that says nothing or lies about its key is a refusal, not bad input.
fn certificate(judge: &Judge, der: &[u8], at: u64) -> Result<Outcome, Failure> {
    match judge.certificate(der, at) {
        Ok(judged) => Ok(Outcome::of(judged, Origin::Certificate(der.to_vec()))),
        Err(CertificateUnjudged::Unjudged(error @ Unjudged::Unreachable(_))) => {
            Err(unjudged(error))
        }
        Err(error) => Ok(Outcome {
            verdict: Verdict::unattested(error.to_string(), at),
            kept: None,
        }),
    }
}

/// A quote, or a certificate in PEM or DER.
fn file(judge: &Judge, path: &Path, at: u64) -> Result<Outcome, Failure> {
    let bytes = read(path)?;
    let named = |error: &dyn std::fmt::Display| bad_input(format!("{}: {error}", path.display()));
    // A quote begins with its version, DER with a SEQUENCE, PEM with dashes.
    let pem = bytes.trim_ascii_start().starts_with(b"-----BEGIN");
    if pem || bytes.first() == Some(&0x30) {
        let der = Certificate::der_of(&bytes).map_err(|error| named(&error))?;
        Certificate::decode(&der).map_err(|error| named(&error))?;
        return certificate(judge, &der, at);
    }
    let judged = judge.quote(&bytes, None, at).map_err(|error| match error {
        Unjudged::BadInput(reason) => named(&reason),
        error => unjudged(error),
    })?;
    Ok(Outcome::of(judged, Origin::File))
}

/// A coordinator's quote, fresh and over the root certificate of the connection.
fn coordinator(
    judge: &Judge,
    address: &str,
    at: u64,
    timeout: Duration,
) -> Result<Outcome, Failure> {
    let judged = bulla_attest::coordinator::judge(judge, address, at, timeout).map_err(
        |error| match error {
            CoordinatorError::Unreachable(_) => unreachable(error),
            CoordinatorError::NotOne(_) => bad_input(error),
        },
    )?;
    let origin = Origin::Coordinator(judged.shown);
    Ok(Outcome::of(judged.evidence, origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_told_apart() {
        let address = |subject: &str| address_of(subject).map(Result::ok);
        let is = |text: &str| Some(Some(text.to_string()));
        assert_eq!(address("https://a.example"), is("a.example:443"));
        assert_eq!(address("https://a.example:7/x"), is("a.example:7"));
        assert_eq!(address("https://[::1]"), is("[::1]:443"));
        assert_eq!(address("https://[::1]:8/"), is("[::1]:8"));
        assert_eq!(address("a.example:7"), is("a.example:7"));
        assert_eq!(address("coordinator://a:4433"), None);
        for wrong in [
            "https://",
            "https://:5",
            "https://a:99999",
            "a:99999",
            "https://a:x",
        ] {
            assert_eq!(address(wrong), Some(None), "{wrong}");
        }
        for file in ["quote.bin", "./a:b/quote", "a/b:7", "/", "C:"] {
            assert_eq!(address(file), None, "{file}");
        }
    }
}
