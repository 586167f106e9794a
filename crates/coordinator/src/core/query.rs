//! What anyone may ask.

use super::{Coordinator, Credentials, Error, Live, Phase};
use crate::quote::{strip_oe_header, with_oe_header};
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub code: u8,
    pub message: &'static str,
}

pub struct QuoteView {
    /// PEM: intermediate, then root.
    pub certificates: String,
    /// With Open Enclave's header; none outside an enclave.
    pub quote: Option<Vec<u8>>,
}

pub struct ManifestView {
    /// None: the requester may not read it.
    pub manifest: Option<Vec<u8>>,
    pub fingerprint: String,
    pub signature: Vec<u8>,
}

impl Coordinator {
    pub fn status(&self) -> Status {
        let (code, message) = match self.phase() {
            Phase::Recovery { .. } => (
                1,
                "Coordinator is in recovery mode. Either upload a key to unseal the saved state, \
                 or set a new manifest. For more information on how to proceed, consult the \
                 documentation.",
            ),
            Phase::AcceptingManifest { .. } => (2, "Coordinator is ready to accept a manifest."),
            Phase::Running(_) => (
                3,
                "Coordinator is running correctly and ready to accept marbles.",
            ),
        };
        Status { code, message }
    }

    /// Binds the coordinator's root to its enclave: SHA-256 of root and nonce.
    pub fn quote(&self, nonce: &[u8]) -> QuoteView {
        let (certificates, digest) = self.with_pki(|pki| {
            let digest = Sha256::new()
                .chain_update(&pki.root_cert)
                .chain_update(nonce)
                .finalize();
            (pki.chain_pem(), digest)
        });
        let mut report_data = [0; 64];
        report_data[..32].copy_from_slice(&digest);
        let quote = self.issuer.issue(&report_data).ok();
        QuoteView {
            certificates,
            quote: quote.map(|quote| match quote.starts_with(&[1, 0, 0, 0, 2, 0, 0, 0]) {
                true => quote,
                false => with_oe_header(&quote),
            }),
        }
    }

    /// The manifest as it was set; none before.
    pub fn manifest(&self, credentials: Credentials<'_>) -> Result<Option<ManifestView>, Error> {
        let Phase::Running(live) = self.phase() else {
            return Ok(None);
        };
        let manifest = live.core.manifest.0.clone();
        Ok(Some(ManifestView {
            fingerprint: hex::encode(Sha256::digest(&manifest)),
            signature: live.pki.root.signer().sign_sha256(&manifest)?,
            manifest: Self::require_reader(&live, credentials)
                .is_ok()
                .then_some(manifest),
        }))
    }

    pub fn update_log(&self, credentials: Credentials<'_>) -> Result<Vec<String>, Error> {
        let live = self.live()?;
        Self::require_reader(&live, credentials)?;
        Ok(live.core.update_log.clone())
    }

    /// Where the manifest names its readers, only they see it and what the logs say about it.
    pub(super) fn require_reader(live: &Live, credentials: Credentials<'_>) -> Result<(), Error> {
        let Some(readers) = &live.manifest.config.manifest_readers else {
            return Ok(());
        };
        let user = Self::user(live, credentials)?;
        match readers.contains(&user) {
            true => Ok(()),
            false => Err(Error::Unauthorized(format!(
                "user {user} is not among the manifest's readers"
            ))),
        }
    }

    /// Verifies a quote for a marble and signs the verdict.
    pub async fn sign_quote(&self, quote: &[u8]) -> Result<(String, Vec<u8>), Error> {
        let live = self.live()?;
        if !live.manifest.config.has_gate("SignQuoteEndpoint") {
            return Err(Error::Forbidden(
                "SignQuoteEndpoint is not enabled by the manifest's FeatureGates".to_owned(),
            ));
        }
        let evidence = strip_oe_header(quote)
            .and_then(|quote| self.verifier.verify(quote))
            .map_err(|reason| Error::BadRequest(format!("quote verification failed: {reason}")))?;
        let revoked = &live.core.revoked;
        if revoked
            .platforms
            .contains(&evidence.platform.to_ascii_lowercase())
            || revoked.enclaves.contains(&hex::encode(evidence.mr_enclave))
        {
            return Err(Error::BadRequest(
                "quote verification failed: its platform or enclave is revoked".to_owned(),
            ));
        }
        // An emulated platform's verdict must not look like hardware's.
        let status = match evidence.emulated {
            true => format!("Emulated{}", evidence.tcb_status),
            false => evidence.tcb_status,
        };
        let signed = BASE64_STANDARD.encode(quote) + &status;
        let signature = live.pki.root.signer().sign_sha256(signed.as_bytes())?;
        Ok((status, signature))
    }
}
