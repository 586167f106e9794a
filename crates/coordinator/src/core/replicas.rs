//! Several replicas over one store.
//!
//! Each works on its own copy. What it changes is written only if nobody else has written since it
//! looked; otherwise it takes in the others' changes ([`Coordinator::refresh`]) and does the request
//! again. Every second it looks anyway, so that updates and revocations reach all replicas.
//!
//! A replica on another machine cannot unseal the data key. It proves to a peer, by a quote over its
//! TLS certificate, that it is the same program ([`Coordinator::join`]), having verified the peer
//! likewise, and is given the key.

use super::live::Live;
use super::{
    Coordinator, Credentials, Error, Phase, ReadOutcome, Revoked, UpdateOutcome, phase_of,
};
use crate::client::marble::self_signed;
use crate::client::{Rest, Trust};
use crate::json::Bytes;
use crate::manifest::{Package, SealMode};
use crate::quote::{self, Evidence, strip_oe_header};
use crate::seal::Key;
use crate::secrets::{SecretView, UserSecret};
use crate::store::Refreshed;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// Conflicts that one request survives: each means that somebody else's went through.
pub(super) const ATTEMPTS: usize = 50;
/// For two requests and two quotes.
const PEERS_PATIENCE: Duration = Duration::from_secs(20);
/// How often replicas look at what the others have written.
pub(super) const PACE: Duration = Duration::from_secs(1);

/// Does a request on what is there now, and again after conflicts: what this replica remembers may
/// be a second old, and a refusal for old reasons would be wrong.
macro_rules! retried {
    ($coordinator:expr, $attempt:expr) => {{
        $coordinator.refresh().await?;
        let mut attempts = 1;
        loop {
            match $attempt.await {
                Err($crate::core::Error::Conflict)
                    if attempts < $crate::core::replicas::ATTEMPTS =>
                {
                    attempts += 1;
                    $coordinator.refresh().await?;
                }
                other => break other,
            }
        }
    }};
}
pub(super) use retried;

impl Coordinator {
    /// Takes in what other replicas have written.
    pub async fn refresh(&self) -> Result<(), Error> {
        let _change = self.change.lock().await;
        let receipt = self.with_store(|store| store.refresh());
        let Some(receipt) = receipt else {
            return Ok(());
        };
        let refreshed = receipt
            .await
            .map_err(|_| Error::Internal("the store has stopped".to_owned()))??;
        match refreshed {
            Refreshed::Unchanged => {}
            Refreshed::Changed { epoch, content } => {
                self.tables.load(&content, epoch).map_err(Error::Internal)?;
                match self.live() {
                    // Mostly others have only activated marbles.
                    Ok(live) if live.is_in(&content) => live.follow(epoch),
                    _ => {
                        let live = Live::load(&content).map_err(Error::Internal)?;
                        live.follow(epoch);
                        self.enter(Phase::Running(Arc::new(live)));
                    }
                }
            }
            Refreshed::Replaced => {
                let opened = self.change_store(|store| store.load(self.keys.as_ref()))?;
                let phase = phase_of(opened, &self.tables, &self.options.names)
                    .map_err(|error| Error::Internal(error.to_string()))?;
                self.enter(phase);
            }
        }
        Ok(())
    }

    /// What a replica of this coordinator must be: the same program, as its sealing demands.
    fn own_package(&self, seal_mode: SealMode) -> Result<Package, Error> {
        let failed =
            |reason: String| Error::Internal(format!("this enclave's own quote: {reason}"));
        let own = self.issuer.issue(&[0; 64]).map_err(failed)?;
        let own = strip_oe_header(&own).unwrap_or(&own);
        let own = self.verifier.verify(own).map_err(failed)?;
        let mut package = Package {
            debug: own.debug,
            insecure_allow_emulated: own.emulated,
            accepted_tcb_statuses: vec![own.tcb_status.clone()],
            ..Package::default()
        };
        match seal_mode {
            SealMode::UniqueKey => package.unique_id = hex::encode(own.mr_enclave),
            SealMode::ProductKey | SealMode::Disabled => {
                package.signer_id = hex::encode(own.mr_signer);
                package.product_id = Some(u64::from(own.product_id));
                package.security_version = Some(u32::from(own.security_version));
            }
        }
        Ok(package)
    }

    fn check_replica(&self, quote: &[u8], report_data: &[u8; 32]) -> Result<(), String> {
        // Who joins has only the store's word for it. A lie gains nothing: the key that is given must
        // open the state, and who gives it knows the mode.
        let seal_mode = match self.phase() {
            Phase::Running(live) => live.manifest.seal_mode(),
            Phase::Recovery { seal_mode, .. } => seal_mode,
            Phase::AcceptingManifest { .. } => SealMode::UniqueKey,
        };
        let package = self
            .own_package(seal_mode)
            .map_err(|error| error.to_string())?;
        let evidence: Evidence = strip_oe_header(quote).and_then(|q| self.verifier.verify(q))?;
        if !bool::from(evidence.report_data[..32].ct_eq(report_data)) {
            return Err("the quote was made for another certificate".to_owned());
        }
        quote::matches(&evidence, &package, &BTreeMap::new())?;
        match self.live() {
            Ok(live)
                if live
                    .core
                    .revoked
                    .platforms
                    .contains(&evidence.platform.to_lowercase()) =>
            {
                Err("its platform is revoked".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// The data key, for a replica whose quote is over its TLS certificate.
    pub fn hand_over(&self, quote: &[u8], credentials: Credentials<'_>) -> Result<Vec<u8>, Error> {
        self.live()?;
        let certificate = credentials
            .certificate
            .ok_or_else(|| Error::Unauthorized("no client certificate provided".to_owned()))?;
        self.check_replica(quote, &crate::sha256(certificate))
            .map_err(|reason| {
                Error::Unauthorized(format!("not a replica of this coordinator: {reason}"))
            })?;
        self.with_store(|store| store.data_key())
            .map(|key| key.0.to_vec())
            .ok_or_else(|| Error::Refused("this store is for one coordinator alone".to_owned()))
    }

    /// Asks peers for the key, if it is missing, until one gives it; else says what each said. One may be
    /// gone, or this replica itself.
    pub async fn join_any(&self, peers: &[String]) -> String {
        let mut reasons = Vec::new();
        for peer in peers {
            if !matches!(self.phase(), Phase::Recovery { .. }) {
                return String::new();
            }
            match tokio::time::timeout(PEERS_PATIENCE, self.join(peer)).await {
                Ok(Ok(())) => return String::new(),
                Ok(Err(error)) => reasons.push(error.to_string()),
                Err(_) => reasons.push(format!("peer {peer}: no answer in time")),
            }
        }
        reasons.join("; ")
    }

    /// Gets the data key from a peer, and runs.
    pub async fn join(&self, peer: &str) -> Result<(), Error> {
        let failed =
            |error: &dyn std::fmt::Display| Error::Refused(format!("peer {peer}: {error}"));
        let mut rest = Rest {
            address: peer.to_owned(),
            trust: Trust::Any,
            identity: None,
            token: None,
        };
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|error| failed(&error))?;
        let path = format!("/quote?nonce={}", BASE64_URL_SAFE_NO_PAD.encode(nonce));
        // The peer is one program whatever the namespace: its default root speaks for it.
        let data = rest
            .call("GET", &path, None)
            .await
            .map_err(|e| failed(&e))?;
        let decoded = |value: &serde_json::Value| {
            let text = value.as_str().unwrap_or_default();
            BASE64_STANDARD.decode(text).map_err(|error| failed(&error))
        };
        let chain = data["cert"].as_str().unwrap_or_default();
        let root = chain
            .rfind("-----BEGIN CERTIFICATE-----")
            .and_then(|at| crate::pem_block(&chain[at..], "CERTIFICATE"))
            .ok_or_else(|| failed(&"it shows no certificate"))?;
        self.check_replica(
            &decoded(&data["quote"])?,
            &crate::sha256(&[&root[..], &nonce].concat()),
        )
        .map_err(|reason| failed(&format!("not a replica of this coordinator: {reason}")))?;
        let (identity, _) = self_signed("replica")?;
        let mut report_data = [0; 64];
        report_data[..32].copy_from_slice(&crate::sha256(&identity.certificate));
        let quote = self.issuer.issue(&report_data).map_err(|e| failed(&e))?;
        let quote = match quote.starts_with(&[1, 0, 0, 0, 2, 0, 0, 0]) {
            true => quote,
            false => quote::with_oe_header(&quote),
        };
        rest.trust = Trust::Pinned(root);
        rest.identity = Some(identity);
        let path = match self.options.namespace.as_str() {
            "" => "/replica-key".to_owned(),
            namespace => format!("/namespaces/{namespace}/replica-key"),
        };
        let body = serde_json::json!({"quote": Bytes(quote)});
        let data = rest
            .call("POST", &path, Some(body))
            .await
            .map_err(|e| failed(&e))?;
        let key = Key(decoded(&data["key"])?
            .try_into()
            .map_err(|_| failed(&"its key has the wrong length"))?);
        let _change = self.change.lock().await;
        match self.phase() {
            Phase::Recovery { .. } => self.resume(&key),
            _ => Ok(()),
        }
    }

    pub async fn set_manifest(
        &self,
        raw: &[u8],
        credentials: Credentials<'_>,
    ) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        retried!(self, self.try_set_manifest(raw, credentials))
    }

    pub async fn update_manifest(
        &self,
        raw: &[u8],
        credentials: Credentials<'_>,
    ) -> Result<UpdateOutcome, Error> {
        retried!(self, self.try_update_manifest(raw, credentials))
    }

    pub async fn acknowledge_update(
        &self,
        raw: &[u8],
        credentials: Credentials<'_>,
    ) -> Result<UpdateOutcome, Error> {
        retried!(self, self.try_acknowledge_update(raw, credentials))
    }

    pub async fn cancel_update(&self, credentials: Credentials<'_>) -> Result<(), Error> {
        retried!(self, self.try_cancel_update(credentials))
    }

    pub async fn read_secrets(
        &self,
        names: &[String],
        credentials: Credentials<'_>,
    ) -> Result<BTreeMap<String, SecretView>, Error> {
        retried!(self, self.try_read_secrets(names, credentials))
    }

    pub async fn write_secrets(
        &self,
        uploads: &BTreeMap<String, UserSecret>,
        credentials: Credentials<'_>,
    ) -> Result<(), Error> {
        retried!(self, self.try_write_secrets(uploads, credentials))
    }

    pub async fn revoke(
        &self,
        what: &Revoked,
        credentials: Credentials<'_>,
    ) -> Result<Revoked, Error> {
        retried!(self, self.try_revoke(what, credentials))
    }

    pub async fn set_counter(
        &self,
        name: &str,
        value: u64,
        credentials: Credentials<'_>,
    ) -> Result<u64, Error> {
        retried!(self, self.try_set_counter(name, value, credentials))
    }

    pub async fn request_read(
        &self,
        secrets: &[String],
        reason: &str,
        credentials: Credentials<'_>,
    ) -> Result<ReadOutcome, Error> {
        retried!(self, self.try_request_read(secrets, reason, credentials))
    }

    pub async fn agree_to_read(
        &self,
        id: &str,
        credentials: Credentials<'_>,
    ) -> Result<ReadOutcome, Error> {
        retried!(self, self.try_agree_to_read(id, credentials))
    }
}
