//! `bulla verify`: who is at the other end, and should it be trusted?
//!
//! The subject is a quote file, a certificate file, a live TLS endpoint, or a coordinator. Exit
//! codes: 0 trusted, 1 not trusted, 2 cannot reach, 3 bad input. Whatever fails is not trusted.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bulla_attest::fetch::{AZURE, INTEL, Service};
use bulla_attest::{
    Certificate, CertificateUnjudged, Check, CollateralSource, FirstOf, Judge, Judged,
    LocalEmulated, Policy, Saved, Unjudged, Verdict, bundle, endpoint, sha256,
};
use serde::Deserialize;

use crate::args::{CollateralArguments, VerifyArguments};
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
        source: source(&arguments.collateral),
        disclosed: None,
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
        bundle::write(directory, judged, outcome.certificate.as_deref(), &text)
            .map_err(Failure::new)?;
    }
    Ok(outcome.verdict)
}

/// The judge that a policy file and the options describe.
pub fn judge_of(policy: &Path, collateral: &CollateralArguments) -> Result<Judge, Failure> {
    Ok(Judge {
        policy: Policy::from_toml(&read(policy)?).map_err(bad_input)?,
        source: source(collateral),
        disclosed: None,
    })
}

/// This machine's emulated platform knows its own quotes; others' collateral is saved or fetched.
fn source(arguments: &CollateralArguments) -> Arc<dyn CollateralSource> {
    let state = State::of_user();
    let mut sources: Vec<Box<dyn CollateralSource>> = Vec::new();
    if let Some(path) = &arguments.collateral {
        sources.push(Box::new(Saved { path: path.clone() }));
        return Arc::new(FirstOf(sources));
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
        let timeout = Duration::from_secs(arguments.timeout);
        let insecure = arguments.insecure_pccs_tls;
        sources.push(Box::new(Service::new(base, insecure, timeout, Some(cache))));
    }
    Arc::new(FirstOf(sources))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error| bad_input(format!("cannot read {}: {error}", path.display()));
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(bad_input(format!(
            "{} is larger than 4 MiB",
            path.display()
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

/// MarbleRun's way: GET /quote answers with a certificate chain and a quote whose report data
/// begins with the SHA-256 of the root certificate (DER) and a nonce. The nonce makes it fresh;
/// the endpoint must then use a certificate of that chain.
fn coordinator(
    judge: &Judge,
    address: &str,
    at: u64,
    timeout: Duration,
) -> Result<Outcome, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        cert: String,
        quote: Option<String>,
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let nonce = bulla_attest::nonce().map_err(Failure::new)?;
    let query = bulla_attest::base64url(&nonce);
    // HTTP 1.0: the answer ends with the connection.
    let request = format!("GET /api/v2/quote?nonce={query} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    let seen = endpoint::look(address, request.as_bytes(), timeout)
        .map_err(|error| unreachable(format!("{address}: {error}")))?;
    let malformed = |reason: &str| bad_input(format!("{address} is no coordinator: {reason}"));
    let body = seen
        .answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| &seen.answer[at + 4..])
        .ok_or_else(|| malformed("its answer is not HTTP"))?;
    let answer: Answer =
        serde_json::from_slice(body).map_err(|error| malformed(&error.to_string()))?;
    let chain = bulla_attest::pem_certificates(&answer.data.cert)
        .ok_or_else(|| malformed("its certificates are not PEM"))?;
    let root = chain
        .last()
        .ok_or_else(|| malformed("it shows no certificates"))?;
    let quote = answer
        .data
        .quote
        .as_deref()
        .and_then(bulla_attest::unbase64)
        .ok_or_else(|| malformed("it has no quote; it runs without an enclave"))?;
    // Open Enclave puts a header of 16 bytes before it.
    let quote = match quote.get(..8) {
        Some([1, 0, 0, 0, 2, 0, 0, 0]) => &quote[16.min(quote.len())..],
        _ => &quote[..],
    };
    let mut judged = judge.quote(quote, None, at).map_err(unjudged)?;
    let bound =
        judged.verdict.evidence.as_ref().is_some_and(|evidence| {
            evidence.identity.report_data()[..32] == sha256(&[root, &nonce])
        });
    judged.verdict.push_first(Check {
        check: "root certificate",
        value: if bound {
            "quoted, with our nonce"
        } else {
            "not the one that is quoted"
        }
        .into(),
        rule: "report data = SHA-256(root certificate, nonce)".into(),
        pass: bound,
        meaning: "only the quoted coordinator holds the root's key".into(),
        remedy: "do not trust this coordinator".into(),
    });
    let same = seen.chain.iter().any(|shown| chain.contains(shown));
    judged.verdict.push_first(Check {
        check: "connection",
        value: if same {
            "certificate of that chain"
        } else {
            "another certificate"
        }
        .into(),
        rule: "TLS with a certificate of the quoted chain".into(),
        pass: same,
        meaning: "the answer came from the coordinator itself".into(),
        remedy: "connect to the coordinator without a proxy in between".into(),
    });
    Ok(Outcome {
        verdict: judged.verdict.clone(),
        // The nonce is gone with this process: a bundle could not be judged again.
        judged: None,
        certificate: None,
    })
}
