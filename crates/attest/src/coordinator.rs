//! Looking at a coordinator (Bulla's, or any that speaks MarbleRun's protocol): is the root that it
//! signs a cluster's certificates with held by the enclave that the policy means?
//!
//! `GET /api/v2/quote?nonce=…` answers with a certificate chain and a quote whose report data begins
//! with the SHA-256 of the chain's root (DER) and the nonce, which makes it fresh. Older coordinators
//! answer `GET /quote` without a nonce. In both, TLS itself must be with the chain's own key: what is
//! quoted is who answers.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::approve::{Judge, Judged as Evidence, Unjudged};
use crate::bytes::{base64url, nonce, pem_certificates, sha256, unbase64};
use crate::endpoint;
use crate::verdict::{Check, Verdict};

/// Why there is no verdict.
#[derive(Debug, Error)]
pub enum CoordinatorError {
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}; is it a coordinator?")]
    NotOne(String),
}

/// A judged coordinator.
pub struct Judged {
    pub verdict: Verdict,
    /// DER of its root certificate: only with a trusted verdict is it the one that was quoted.
    pub root: Vec<u8>,
    /// Quote and collateral, to keep.
    pub evidence: Evidence,
    pub shown: Shown,
}

/// What a coordinator showed beside its quote: enough to judge it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// What it was asked with; empty for an older one, which is asked without.
    #[serde(with = "hex")]
    pub nonce: Vec<u8>,
    /// The certificate (DER) whose key the connection's handshake proved.
    #[serde(with = "hex")]
    pub connection: Vec<u8>,
    /// PEM, the root last.
    pub chain: String,
}

impl Shown {
    /// Judges a quote, and whether it is over this root and nonce.
    pub fn judge(&self, judge: &Judge, quote: &[u8], now: u64) -> Result<Evidence, Unjudged> {
        let quoted = pem_certificates(&self.chain)
            .ok_or_else(|| Unjudged::BadInput("its certificates are not PEM".into()))?;
        let root = quoted
            .last()
            .ok_or_else(|| Unjudged::BadInput("it shows no certificates".into()))?;
        let mut judged = judge.quote(quote, None, now)?;
        let verdict = &mut judged.verdict;
        let bound = verdict.evidence.as_ref().is_some_and(|evidence| {
            let (data, rest) = evidence.identity.report_data().split_at(32);
            data == sha256(&[root, &self.nonce]) && rest.iter().all(|byte| *byte == 0)
        });
        verdict.push_first(Check {
            check: "root certificate",
            value: match (bound, self.nonce.is_empty()) {
                (true, false) => "quoted, with our nonce",
                (true, true) => "quoted, without a nonce (an older coordinator)",
                (false, _) => "not the one that is quoted",
            }
            .into(),
            rule: "report data = SHA-256(root certificate, nonce)".into(),
            pass: bound,
            meaning: "only the quoted coordinator holds the root's key".into(),
            remedy: "do not trust this coordinator".into(),
        });
        // The handshake has proven who holds the leaf's key, and nothing of the others.
        let own = quoted.contains(&self.connection);
        verdict.push_first(Check {
            check: "connection",
            value: if own {
                "with a key of the quoted chain"
            } else {
                "with another key"
            }
            .into(),
            rule: "TLS with a certificate of the quoted chain".into(),
            pass: own,
            meaning: "the answer came from the coordinator itself".into(),
            remedy: "connect to the coordinator without a proxy in between".into(),
        });
        Ok(judged)
    }
}

/// Asks a coordinator at `host:port` for its quote, and judges it; asking takes no longer than
/// `timeout`.
pub fn judge(
    judge: &Judge,
    address: &str,
    now: u64,
    timeout: Duration,
) -> Result<Judged, CoordinatorError> {
    let deadline = Instant::now() + timeout;
    let left = || deadline.saturating_duration_since(Instant::now());
    let nonce = nonce().map_err(|error| CoordinatorError::Unreachable(error.to_string()))?;
    let path = format!("/api/v2/quote?nonce={}", base64url(&nonce));
    let (seen, nonce) = match ask(address, &path, left())? {
        Some(seen) => (seen, nonce.to_vec()),
        None => match ask(address, "/quote", left())? {
            Some(seen) => (seen, Vec::new()),
            None => return Err(not_one(address, "it has no quote to ask for")),
        },
    };
    let answer: Answer = serde_json::from_slice(&seen.body)
        .map_err(|error| not_one(address, &format!("its answer is malformed: {error}")))?;
    let shown = Shown {
        nonce,
        connection: seen.chain.into_iter().next().unwrap_or_default(),
        chain: answer.data.cert,
    };
    let root = pem_certificates(&shown.chain)
        .and_then(|mut chain| chain.pop())
        .ok_or_else(|| not_one(address, "it shows no certificates"))?;
    let quote = answer
        .data
        .quote
        .as_deref()
        .and_then(unbase64)
        .ok_or_else(|| not_one(address, "it has no quote: it runs without an enclave"))?;
    let evidence =
        shown
            .judge(judge, without_header(&quote), now)
            .map_err(|error| match error {
                Unjudged::BadInput(reason) => not_one(address, &reason),
                Unjudged::Unreachable(reason) => CoordinatorError::Unreachable(reason),
            })?;
    Ok(Judged {
        verdict: evidence.verdict.clone(),
        root,
        evidence,
        shown,
    })
}

#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(alias = "Cert")]
    cert: String,
    #[serde(alias = "Quote")]
    quote: Option<String>,
}

struct Answered {
    chain: Vec<Vec<u8>>,
    body: Vec<u8>,
}

fn not_one(address: &str, reason: &str) -> CoordinatorError {
    CoordinatorError::NotOne(format!("{address}: {reason}"))
}

/// `None`: the coordinator does not know the path.
fn ask(address: &str, path: &str, timeout: Duration) -> Result<Option<Answered>, CoordinatorError> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    // HTTP 1.0: the answer ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    let seen = endpoint::look(address, request.as_bytes(), timeout)
        .map_err(|error| CoordinatorError::Unreachable(format!("{address}: {error}")))?;
    let malformed = || not_one(address, "its answer is not HTTP");
    let end = seen
        .answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(malformed)?;
    let (head, body) = (&seen.answer[..end], seen.answer[end + 4..].to_vec());
    let status = head
        .strip_prefix(b"HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .ok_or_else(malformed)?;
    match status {
        b"200" => Ok(Some(Answered {
            chain: seen.chain,
            body,
        })),
        b"404" => Ok(None),
        other => {
            let status = String::from_utf8_lossy(other);
            Err(not_one(address, &format!("it answers with HTTP {status}")))
        }
    }
}

/// Open Enclave puts a header of 16 bytes before a quote: version 1, type 2, length.
fn without_header(quote: &[u8]) -> &[u8] {
    match quote.get(..8) {
        Some([1, 0, 0, 0, 2, 0, 0, 0]) => quote.get(16..).unwrap_or_default(),
        _ => quote,
    }
}
