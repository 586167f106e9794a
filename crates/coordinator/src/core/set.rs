//! Setting the first manifest, or a new one in place of a state that needs recovery.

use super::live::{CORE, Core, Live, Revoked};
use super::{Coordinator, Credentials, Error, Phase};
use crate::json::Bytes;
use crate::keys::{KeyKind, KeyPair};
use crate::manifest::{Manifest, SealMode};
use crate::pki::Pki;
use crate::seal::Key;
use crate::secrets::{Owner, Secret};
use crate::store::{Batch, Content, Header};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Encrypted recovery secrets by the name of their key.
pub type RecoverySecrets = BTreeMap<String, Vec<u8>>;

impl Coordinator {
    pub(super) async fn try_set_manifest(
        &self,
        raw: &[u8],
        credentials: Credentials<'_>,
    ) -> Result<RecoverySecrets, Error> {
        let _change = self.change.lock().await;
        let pki = match self.phase() {
            Phase::Recovery { pki, .. } | Phase::AcceptingManifest { pki } => pki,
            Phase::Running(_) => return Err(Error::WrongState),
        };
        let policy = self.open_policy(raw, &pki)?;
        let raw = policy.manifest.as_slice();
        self.require_owner(credentials, &policy)?;
        let (manifest, _warnings) = Manifest::parse(raw)?;
        if !manifest.config.predecessor.is_empty() {
            return Err(Error::Refused(
                "a first manifest has no Predecessor".to_owned(),
            ));
        }
        super::activate::dry_run(&manifest, &BTreeMap::new())?;
        let mut core = new_core(raw, &manifest, &pki)?;
        core.log("Initial manifest set", &[]);
        core.remember_policy(&policy);
        let live = Live::new(core).map_err(Error::Internal)?;
        let secrets = self.begin(&live, &manifest, Content::new())?;
        self.tables.clear();
        self.enter(Phase::Running(Arc::new(live)));
        Ok(secrets)
    }

    /// The owner named at start, if one was.
    fn require_owner(
        &self,
        credentials: Credentials<'_>,
        policy: &crate::policy::Policy,
    ) -> Result<(), Error> {
        let Some(owner) = &self.options.owner else {
            return Ok(());
        };
        let by_certificate =
            owner.certificate.is_some() && owner.certificate.as_deref() == credentials.certificate;
        let by_token = match (owner.token_hash, credentials.token) {
            (Some(hash), Some(token)) => {
                bool::from(Sha256::digest(token.as_bytes()).as_slice().ct_eq(&hash))
            }
            _ => false,
        };
        let by_signature = owner.certificate.as_ref().is_some_and(|certificate| {
            policy
                .signatures
                .iter()
                .any(|signature| signature.is_by(certificate, &self.options.namespace))
        });
        match by_certificate || by_token || by_signature {
            true => Ok(()),
            false => Err(Error::Unauthorized(
                "only the owner that the coordinator was started with may set a manifest: show \
                 the owner's client certificate or token, or sign the manifest with its key"
                    .to_owned(),
            )),
        }
    }

    /// Goes on with the state under a new data key: whoever held shares of the old one must not be
    /// able to open what comes now.
    pub(super) fn rekey(&self, live: &Live) -> Result<RecoverySecrets, Error> {
        let manifest = &live.manifest;
        if manifest.seal_mode() == SealMode::Disabled {
            return Ok(RecoverySecrets::new());
        }
        let key = Key::random().map_err(|error| Error::Internal(error.to_string()))?;
        let (plan, secrets) = crate::recovery::share(manifest, &key)?;
        let batch = Batch::default()
            .put(CORE, live.core.encode())
            .of(live.epoch());
        let is_done = self.change_store(|store| {
            store.rekey(self.keys.as_ref(), &key, manifest.seal_mode(), plan, batch)
        })?;
        match is_done {
            true => Ok(secrets),
            // Nothing was kept before this update.
            false => self.begin(live, manifest, self.tables.content()),
        }
    }

    /// Begins a state in the store under a new data key, shared among the recovery keys.
    fn begin(
        &self,
        live: &Live,
        manifest: &Manifest,
        mut content: Content,
    ) -> Result<RecoverySecrets, Error> {
        if manifest.seal_mode() == SealMode::Disabled {
            return Ok(RecoverySecrets::new());
        }
        let key = Key::random().map_err(|error| Error::Internal(error.to_string()))?;
        let (plan, secrets) = crate::recovery::share(manifest, &key)?;
        let header = Header::new(manifest.seal_mode(), plan)?;
        content.insert(CORE.to_owned(), live.core.encode());
        self.change_store(|store| store.begin(self.keys.as_ref(), &key, header, content))?;
        Ok(secrets)
    }
}

fn new_core(raw: &[u8], manifest: &Manifest, pki: &Pki) -> Result<Core, Error> {
    let root_secret = Key::random().map_err(|error| Error::Internal(error.to_string()))?;
    let mut core = Core {
        earlier: Vec::new(),
        next_key: Bytes(KeyPair::generate(KeyKind::P384)?.pkcs8.clone()),
        manifest: Bytes(raw.to_vec()),
        packages: manifest.packages.clone(),
        root_secret: Bytes(root_secret.0.to_vec()),
        root_key: Bytes::default(),
        root_cert: Bytes::default(),
        intermediate_key: Bytes::default(),
        intermediate_cert: Bytes::default(),
        marble_root_cert: Bytes::default(),
        secrets: shared_secrets(manifest, pki)?,
        previous: None,
        pending: None,
        update_log: Vec::new(),
        revoked: Revoked::default(),
        namespaces: BTreeMap::new(),
        read_requests: BTreeMap::new(),
        used_policies: BTreeSet::new(),
    };
    core.set_pki(pki);
    Ok(core)
}

/// Generates all secrets that every marble sees alike.
pub(super) fn shared_secrets(
    manifest: &Manifest,
    pki: &Pki,
) -> Result<BTreeMap<String, Secret>, Error> {
    let mut secrets = BTreeMap::new();
    for (name, spec) in &manifest.secrets {
        if spec.shared && !spec.user_defined && spec.import.is_none() {
            let secret = Secret::generate(name, spec, &Owner::Shared, &pki.intermediate)?;
            secrets.insert(name.clone(), secret);
        }
    }
    Ok(secrets)
}
