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
    Certificate, CertificateUnjudged, Check, CollateralSource, Disclosed, FirstOf, Judge, Judged,
    LocalEmulated, Policy, Saved, Unjudged, Verdict, bundle, coordinator::CoordinatorError,
    endpoint,
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

fn bad_input(message: impl std::fmt::Display) -> Failure {
    Failure {
        code: BAD_INPUT,
        message: message.to_string(),
    }
}

fn unreachable(message: impl std::fmt::Display) -> Failure {
    Failure {
        code: CANNOT_REACH,
        message: message.to_string(),
    }
}

/// A verdict and, where there was a genuine attempt, what it rests on.
struct Outcome {
    verdict: Verdict,
    judged: Option<Judged>,
    certificate: Option<Vec<u8>>,
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
        policy: Policy::from_toml(&policy).map_err(bad_input)?,
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
        coordinator(&judge, address, at, timeout)?
    } else if let Some(address) = address_of(subject) {
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
        let judged = outcome.judged.as_ref().ok_or_else(|| {
            bad_input(format!(
                "there is no evidence to keep: {}",
                outcome.verdict.reason()
            ))
        })?;
        let text = String::from_utf8_lossy(&policy);
        let disclosed = judge.disclosed.as_ref();
        bundle::write(
            directory,
            judged,
            outcome.certificate.as_deref(),
            &text,
            disclosed,
        )
        .map_err(Failure::new)?;
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
        .map_err(bad_input)
}

/// The judge that a policy file and the options describe.
pub fn judge_of(policy: &Path, collateral: &CollateralArguments) -> Result<Judge, Failure> {
    Ok(Judge {
        policy: Policy::from_toml(&read(policy)?).map_err(bad_input)?,
        source: source(collateral)?,
        disclosed: None,
    })
}

/// This machine's emulated platform knows its own quotes; others' collateral is saved or fetched.
fn source(arguments: &CollateralArguments) -> Result<Arc<dyn CollateralSource>, Failure> {
    let state = State::of_user();
    let mut sources: Vec<Box<dyn CollateralSource>> = Vec::new();
    if let Some(path) = &arguments.collateral {
        sources.push(Box::new(Saved { path: path.clone() }));
        return Ok(Arc::new(FirstOf(sources)));
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

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
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
fn address_of(subject: &str) -> Option<String> {
    if let Some(rest) = subject.strip_prefix("https://") {
        let authority = rest.split('/').next()?;
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        return Some(if has_port {
            authority.to_string()
        } else {
            format!("{authority}:443")
        });
    }
    if Path::new(subject).exists() {
        return None;
    }
    let (host, port) = subject.rsplit_once(':')?;
    (!host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok())
        .then(|| subject.to_string())
}

fn unjudged(error: Unjudged) -> Failure {
    match error {
        Unjudged::BadInput(reason) => bad_input(reason),
        Unjudged::Unreachable(reason) => unreachable(reason),
    }
}

/// A certificate that says nothing or lies about its key is a refusal, not bad input.
fn certificate(judge: &Judge, der: &[u8], at: u64) -> Result<Outcome, Failure> {
    match judge.certificate(der, at) {
        Ok(judged) => Ok(Outcome {
            verdict: judged.verdict.clone(),
            judged: Some(judged),
            certificate: Some(der.to_vec()),
        }),
        Err(CertificateUnjudged::Unjudged(Unjudged::Unreachable(reason))) => {
            Err(unreachable(reason))
        }
        Err(error) => {
            let mut verdict = Verdict::new(at);
            verdict.push(Check {
                check: "certificate",
                value: error.to_string(),
                rule: "a certificate in date that carries a quote over its own key".into(),
                pass: false,
                meaning: "the peer has not shown that it is an enclave".into(),
                remedy: "check that this is the right peer, and that it serves RA-TLS ([attestation.tls] in its manifest)".into(),
            });
            Ok(Outcome {
                verdict,
                judged: None,
                certificate: None,
            })
        }
    }
}

/// A quote, or a certificate in PEM or DER.
fn file(judge: &Judge, path: &Path, at: u64) -> Result<Outcome, Failure> {
    let bytes = read(path)?;
    // A quote begins with its version, DER with a SEQUENCE, PEM with dashes.
    let pem = bytes.trim_ascii_start().starts_with(b"-----BEGIN");
    if pem || bytes.first() == Some(&0x30) {
        let der = Certificate::der_of(&bytes).map_err(bad_input)?;
        Certificate::decode(&der).map_err(bad_input)?;
        return certificate(judge, &der, at);
    }
    let judged = judge.quote(&bytes, None, at).map_err(unjudged)?;
    Ok(Outcome {
        verdict: judged.verdict.clone(),
        judged: Some(judged),
        certificate: None,
    })
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
    Ok(Outcome {
        verdict: judged.verdict,
        // The nonce is gone with this process: a bundle could not be judged again.
        judged: None,
        certificate: None,
    })
}
