//! The verdict: one row per check, for people and for programs.

use std::fmt;

use serde::Serialize;

use crate::collateral::date;
use crate::verify::{Evidence, VerifyError};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub check: &'static str,
    pub value: String,
    pub rule: String,
    pub pass: bool,
    pub meaning: String,
    /// How to fix it; of interest when it failed.
    pub remedy: String,
}

/// All checks. Trusted only if there is one and every one passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub trusted: bool,
    /// When it was reached, seconds since 1970.
    pub at: u64,
    /// Until when it may be relied upon.
    pub until: u64,
    pub checks: Vec<Check>,
    pub evidence: Option<Evidence>,
}

impl Verdict {
    /// Without checks: not trusted.
    pub fn new(now: u64) -> Verdict {
        Verdict {
            trusted: false,
            at: now,
            until: u64::MAX,
            checks: Vec::new(),
            evidence: None,
        }
    }

    /// The refusal of something that is not genuine.
    pub fn not_genuine(error: &VerifyError, now: u64) -> Verdict {
        let (meaning, remedy) = match error {
            VerifyError::Quote(_) => ("these bytes are no quote", "check the file or the peer"),
            VerifyError::Collateral(_) => ("the collateral is unusable", "fetch it again"),
            VerifyError::NotGenuine { reason, .. } => (reason.meaning(), reason.remedy()),
        };
        let mut verdict = Verdict::new(now);
        verdict.until = now;
        verdict.push(Check {
            check: "quote",
            value: error.to_string(),
            rule: "signed by a certified platform".into(),
            pass: false,
            meaning: meaning.into(),
            remedy: remedy.into(),
        });
        verdict
    }

    /// The refusal of a certificate that says nothing of an enclave, or lies about its key.
    pub fn unattested(reason: String, now: u64) -> Verdict {
        let mut verdict = Verdict::new(now);
        verdict.until = now;
        verdict.push(Check {
            check: "certificate",
            value: reason,
            rule: "a certificate in date that carries a quote over its own key".into(),
            pass: false,
            meaning: "the peer has not shown that it is an enclave".into(),
            remedy: "check that this is the right peer, and that it serves RA-TLS ([attestation.tls] in its manifest)".into(),
        });
        verdict
    }

    /// Adds a check.
    pub fn push(&mut self, check: Check) {
        self.checks.push(check);
        self.trusted = self.checks.iter().all(|check| check.pass);
    }

    /// Adds a check before the others.
    pub fn push_first(&mut self, check: Check) {
        self.checks.insert(0, check);
        self.trusted = self.checks.iter().all(|check| check.pass);
    }

    /// The verdict does not outlast this time.
    pub fn limit(&mut self, until: u64) {
        self.until = self.until.min(until);
    }

    /// The failed checks.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.pass)
    }

    /// The failures in one line.
    pub fn reason(&self) -> String {
        let failures: Vec<String> = self
            .failures()
            .map(|check| format!("{}: {}", check.check, check.value))
            .collect();
        if failures.is_empty() && !self.trusted {
            return "nothing was checked".into();
        }
        failures.join("; ")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .checks
            .iter()
            .map(|check| check.check.len())
            .max()
            .unwrap_or(0);
        for check in &self.checks {
            let mark = if check.pass { "ok  " } else { "FAIL" };
            let value = printable(&check.value);
            writeln!(f, "{mark}  {:width$}  {value}", check.check)?;
            writeln!(f, "      {:width$}  rule: {}", "", printable(&check.rule))?;
            writeln!(f, "      {:width$}  {}", "", printable(&check.meaning))?;
            if !check.pass {
                writeln!(f, "      {:width$}  fix: {}", "", printable(&check.remedy))?;
            }
        }
        if self.trusted {
            let until = if self.until == u64::MAX {
                String::new()
            } else {
                format!(" (until {})", date(self.until))
            };
            writeln!(f, "TRUSTED{until}")
        } else {
            writeln!(f, "NOT TRUSTED")
        }
    }
}

/// Values come from peers: nothing in them may drive a terminal, or begin a line of its own that looks
/// like another row.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_write_rows_of_its_own() {
        let mut verdict = Verdict::new(0);
        let text = "x\nok    enclave  the right one\nTRUSTED\n\u{1b}[2J";
        verdict.push(Check {
            check: "quote",
            value: text.into(),
            rule: text.into(),
            pass: false,
            meaning: text.into(),
            remedy: text.into(),
        });
        let printed = verdict.to_string();
        assert_eq!(printed.lines().count(), 5, "{printed}");
        assert_eq!(printed.lines().last(), Some("NOT TRUSTED"));
        assert!(!printed.contains('\u{1b}'));
    }
}
