//! The audit log: the update log, each line bound to the one before it, and the head signed by the
//! root key.
//!
//! A line's last field, `previous`, is the SHA-256 of the line before it (zeros for the first). Who
//! keeps a copy can tell later whether the log has only grown; who has none can tell that lines in
//! the middle were neither changed nor left out.

use super::{Coordinator, Credentials, Error};
use crate::sha256;
use p384::ecdsa::signature::hazmat::PrehashVerifier;
use p384::ecdsa::{Signature, VerifyingKey};

/// The log with its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditLog {
    pub entries: Vec<String>,
    pub signature: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    #[error("entry {0} does not follow the one before it: entries were changed, added or left out")]
    Chain(usize),
    #[error("the log is not signed by this coordinator's root key")]
    Signature,
    #[error("the log does not go on from the earlier copy: entry {0} differs or is missing")]
    Rewritten(usize),
}

impl Coordinator {
    pub fn audit(&self, credentials: Credentials<'_>) -> Result<AuditLog, Error> {
        let live = self.live()?;
        Self::require_reader(&live, credentials)?;
        let entries = live.core.update_log.clone();
        let signature = live
            .pki
            .root
            .signer()
            .sign_sha256(&signed_message(&entries))?;
        Ok(AuditLog { entries, signature })
    }
}

/// What the next line's `previous` must be.
pub(super) fn link(entries: &[String]) -> String {
    match entries.last() {
        Some(last) => hex::encode(sha256(last.as_bytes())),
        None => "0".repeat(64),
    }
}

fn signed_message(entries: &[String]) -> Vec<u8> {
    format!("bulla audit log\n{}\n{}\n", entries.len(), link(entries)).into_bytes()
}

impl AuditLog {
    /// Checks chain and signature against a root certificate (DER), and that the log continues an
    /// earlier copy.
    pub fn verify(&self, root: &[u8], earlier: &[String]) -> Result<(), AuditError> {
        for (number, entry) in self.entries.iter().enumerate() {
            let suffix = format!(",\"previous\":\"{}\"}}", link(&self.entries[..number]));
            if !entry.ends_with(&suffix) {
                return Err(AuditError::Chain(number));
            }
        }
        for (number, entry) in earlier.iter().enumerate() {
            if self.entries.get(number) != Some(entry) {
                return Err(AuditError::Rewritten(number));
            }
        }
        let is_signed = || {
            let (_, certificate) = x509_parser::parse_x509_certificate(root).ok()?;
            let point = &certificate.public_key().subject_public_key.data;
            let key = VerifyingKey::from_sec1_bytes(point).ok()?;
            let signature = Signature::from_der(&self.signature).ok()?;
            let digest = sha256(&signed_message(&self.entries));
            key.verify_prehash(&digest, &signature).ok()
        };
        is_signed().ok_or(AuditError::Signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;

    #[test]
    fn changes_omissions_and_rewritten_pasts_are_noticed() {
        let pki = Pki::generate(&[]).unwrap();
        let mut entries = Vec::new();
        for number in 0..4 {
            let line = format!("{{\"n\":{number},\"previous\":\"{}\"}}", link(&entries));
            entries.push(line);
        }
        let signed = |entries: &[String]| AuditLog {
            entries: entries.to_vec(),
            signature: pki
                .root
                .signer()
                .sign_sha256(&signed_message(entries))
                .unwrap(),
        };
        let root = &pki.root_cert;
        let log = signed(&entries);
        assert_eq!(log.verify(root, &[]), Ok(()));
        assert_eq!(log.verify(root, &entries[..2]), Ok(()));
        assert_eq!(
            signed(&entries[..3]).verify(root, &entries),
            Err(AuditError::Rewritten(3))
        );
        let mut changed = log.clone();
        changed.entries[1] = changed.entries[1].replace("\"n\":1", "\"n\":7");
        assert_eq!(changed.verify(root, &[]), Err(AuditError::Chain(2)));
        let mut omitted = log.clone();
        omitted.entries.remove(1);
        assert_eq!(omitted.verify(root, &[]), Err(AuditError::Chain(1)));
        let mut cut = log.clone();
        cut.entries.pop();
        assert_eq!(cut.verify(root, &[]), Err(AuditError::Signature));
        assert_eq!(
            log.verify(&Pki::generate(&[]).unwrap().root_cert, &[]),
            Err(AuditError::Signature)
        );
    }
}
