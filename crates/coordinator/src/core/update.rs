//! Changing a manifest that is in force: a package's version by one user, everything by several.

use super::live::{CORE, Core, Live, Pending, Previous};
use super::set::{RecoverySecrets, shared_secrets};
use super::{Coordinator, Credentials, Error, Phase};
use crate::json::{self, Bytes};
use crate::manifest::{Manifest, Resource, apply_package_update, is_package_update};
use crate::policy::Policy;
use crate::seal::Key;
use crate::secrets::Secret;
use crate::store::Batch;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where an update stands after a request.
#[derive(Debug, Default)]
pub struct UpdateOutcome {
    pub missing_acknowledgments: usize,
    pub missing_users: Vec<String>,
    /// New ones, where the update changed how the state is recovered.
    pub recovery_secrets: RecoverySecrets,
}

const NONE_PENDING: &str = "no update in progress";

impl Coordinator {
    /// The user behind a request.
    pub(super) fn user(live: &Live, credentials: Credentials<'_>) -> Result<String, Error> {
        let certificate = credentials
            .certificate
            .ok_or_else(|| Error::Unauthorized("no client certificate provided".to_owned()))?;
        live.user_of(certificate)
            .map(|(name, _)| name.to_owned())
            .ok_or_else(|| {
                Error::Unauthorized(
                    "client certificate does not match any user of the manifest".to_owned(),
                )
            })
    }

    pub(super) fn require(
        live: &Live,
        user: &str,
        resource: Resource,
        name: &str,
        action: &str,
    ) -> Result<(), Error> {
        let allowed = live
            .manifest
            .users
            .get(user)
            .is_some_and(|entry| live.manifest.may(entry, resource, name, action));
        match allowed {
            true => Ok(()),
            false => Err(Error::Unauthorized(format!(
                "user {user} lacks the permission {action}{}{name}",
                if name.is_empty() { "" } else { " for " }
            ))),
        }
    }

    /// Raises versions at once, or initiates an update of the whole manifest.
    pub(super) async fn try_update_manifest(
        &self,
        raw: &[u8],
        credentials: Credentials<'_>,
    ) -> Result<UpdateOutcome, Error> {
        let _change = self.change.lock().await;
        let live = self.live()?;
        let policy = self.open_policy(raw, &live.pki)?;
        let raw = policy.manifest.as_slice();
        let (user, agreed) = self.actors(&live, credentials, &policy)?;
        if live.core.pending.is_some() {
            return Err(Error::Refused(
                "an update is pending: acknowledge or cancel it first".to_owned(),
            ));
        }
        let update: Manifest =
            json::from_slice(raw).map_err(|error| Error::Refused(error.to_string()))?;
        if is_package_update(&update) {
            return self.update_packages(&live, &update, &user).await;
        }
        let (user, agreed) = Self::updaters(&live, user, agreed)?;
        let (update, _) = Manifest::parse(raw)?;
        check_predecessor(&live, &update, &policy)?;
        super::activate::dry_run(&update, &live.core.secrets)?;
        let pending = Pending {
            manifest: Bytes(raw.to_vec()),
            initiator: user.clone(),
            acknowledged: agreed,
            is_signed: !policy.signatures.is_empty(),
        };
        self.proceed(&live, pending, update, &user, "initiated")
            .await
    }

    /// Those who may update, and one of them who acts.
    fn updaters(
        live: &Live,
        user: String,
        mut agreed: BTreeSet<String>,
    ) -> Result<(String, BTreeSet<String>), Error> {
        let may = |user: &str| Self::require(live, user, Resource::Manifest, "", "UpdateManifest");
        let refusal = may(&user);
        agreed.retain(|user| may(user).is_ok());
        match (refusal, agreed.first().cloned()) {
            (Ok(()), _) => Ok((user, agreed)),
            (Err(_), Some(signer)) => Ok((signer, agreed)),
            (Err(refusal), None) => Err(refusal),
        }
    }

    async fn update_packages(
        &self,
        live: &Live,
        update: &Manifest,
        user: &str,
    ) -> Result<UpdateOutcome, Error> {
        for package in update.packages.keys() {
            Self::require(
                live,
                user,
                Resource::Packages,
                package,
                "UpdateSecurityVersion",
            )?;
        }
        let (packages, changes) = apply_package_update(&live.core.packages, update)?;
        let mut core = live.core.clone();
        core.packages = packages;
        for change in changes {
            core.log(
                "SecurityVersion increased",
                &[
                    ("user", user.into()),
                    ("package", change.package.into()),
                    ("new version", change.version.into()),
                ],
            );
        }
        let pki = core.rotate(&live.pki, &self.options.names, live.leaf_life())?;
        renew_certificates(&mut core, &live.manifest, &pki)?;
        self.replace(live, core).await?;
        Ok(UpdateOutcome::default())
    }

    pub(super) async fn try_acknowledge_update(
        &self,
        raw: &[u8],
        credentials: Credentials<'_>,
    ) -> Result<UpdateOutcome, Error> {
        let _change = self.change.lock().await;
        let live = self.live()?;
        let policy = self.open_policy(raw, &live.pki)?;
        let raw = policy.manifest.as_slice();
        let (user, agreed) = self.actors(&live, credentials, &policy)?;
        let mut pending = live
            .core
            .pending
            .clone()
            .ok_or_else(|| Error::NotFound(NONE_PENDING.to_owned()))?;
        let (user, agreed) = Self::updaters(&live, user, agreed)?;
        if pending.manifest.0 != raw {
            return Err(Error::Refused(
                "provided manifest does not match the pending manifest".to_owned(),
            ));
        }
        if agreed.is_subset(&pending.acknowledged) {
            return Ok(outcome(&live.manifest, &pending));
        }
        pending.acknowledged.extend(agreed);
        pending.is_signed |= !policy.signatures.is_empty();
        let (update, _) = Manifest::parse(raw)?;
        self.proceed(&live, pending, update, &user, "acknowledged")
            .await
    }

    pub(super) async fn try_cancel_update(
        &self,
        credentials: Credentials<'_>,
    ) -> Result<(), Error> {
        let _change = self.change.lock().await;
        let live = self.live()?;
        let user = Self::user(&live, credentials)?;
        Self::require(&live, &user, Resource::Manifest, "", "UpdateManifest")?;
        let mut core = live.core.clone();
        let pending = core
            .pending
            .take()
            .ok_or_else(|| Error::NotFound(NONE_PENDING.to_owned()))?;
        log_step(&mut core, &live.manifest, &pending, &user, "cancelled");
        self.replace(&live, core).await.map(|_| ())
    }

    /// The pending manifest, and who has not acknowledged it yet.
    pub fn pending_update(
        &self,
        credentials: Credentials<'_>,
    ) -> Result<(Vec<u8>, UpdateOutcome), Error> {
        let live = self.live()?;
        Self::require_reader(&live, credentials)?;
        match &live.core.pending {
            Some(pending) => Ok((pending.manifest.0.clone(), outcome(&live.manifest, pending))),
            None => Err(Error::NotFound(NONE_PENDING.to_owned())),
        }
    }

    /// Keeps the update pending, or applies it if it has all it needs.
    async fn proceed(
        &self,
        live: &Live,
        pending: Pending,
        update: Manifest,
        user: &str,
        step: &str,
    ) -> Result<UpdateOutcome, Error> {
        let mut outcome = outcome(&live.manifest, &pending);
        let mut core = live.core.clone();
        log_step(&mut core, &live.manifest, &pending, user, step);
        if outcome.missing_acknowledgments > 0 {
            core.pending = Some(pending);
            self.replace(live, core).await?;
            return Ok(outcome);
        }
        outcome.recovery_secrets = self.apply(live, core, &pending, update).await?;
        Ok(outcome)
    }

    async fn apply(
        &self,
        live: &Live,
        mut core: Core,
        pending: &Pending,
        update: Manifest,
    ) -> Result<RecoverySecrets, Error> {
        core.pending = None;
        if pending.is_signed {
            core.used_policies.insert(fingerprint(&pending.manifest.0));
        }
        core.manifest = pending.manifest.clone();
        core.packages.clone_from(&update.packages);
        let pki = core.rotate(&live.pki, &self.options.names, live.leaf_life())?;
        if update.config.rotate_root_secret {
            let new = Key::random().map_err(|error| Error::Internal(error.to_string()))?;
            core.previous = Some(Previous {
                root_secret: core.root_secret.clone(),
                secrets: live.core.secrets.clone(),
            });
            core.root_secret = Bytes(new.0.to_vec());
        }
        core.secrets = updated_secrets(live, &update, &pki)?;
        core.log(
            "Complete Manifest updated",
            &[(
                "manifestFingerprint",
                fingerprint(&pending.manifest.0).into(),
            )],
        );
        let new = Live::new(core).map_err(Error::Internal)?;
        new.follow(live.epoch());
        let recovery_changed = live.manifest.recovery_keys != update.recovery_keys
            || live.manifest.config.recovery_threshold != update.config.recovery_threshold
            || live.manifest.seal_mode() != update.seal_mode();
        let mut secrets = RecoverySecrets::new();
        if recovery_changed {
            secrets = self.rekey(&new)?;
        } else {
            let batch = Batch::default().put(CORE, new.core.encode());
            Self::durable(self.queue(&new, new.epoch(), batch)).await?;
        }
        self.enter(Phase::Running(Arc::new(new)));
        Ok(secrets)
    }
}

pub(super) fn fingerprint(manifest: &[u8]) -> String {
    hex::encode(Sha256::digest(manifest))
}

fn outcome(manifest: &Manifest, pending: &Pending) -> UpdateOutcome {
    let updaters = manifest.updaters();
    let given = pending.acknowledged.intersection(&updaters).count();
    if !manifest.config.update_boards.is_empty() {
        let (missing, users) = boards(
            manifest,
            &manifest.config.update_boards,
            &pending.acknowledged,
        );
        return UpdateOutcome {
            missing_acknowledgments: missing,
            missing_users: users.into_iter().collect(),
            recovery_secrets: RecoverySecrets::new(),
        };
    }
    UpdateOutcome {
        missing_acknowledgments: manifest.update_threshold().saturating_sub(given),
        missing_users: updaters
            .difference(&pending.acknowledged)
            .cloned()
            .collect(),
        recovery_secrets: RecoverySecrets::new(),
    }
}

/// How many agreements the boards miss, and from whom they may come.
pub(super) fn boards(
    manifest: &Manifest,
    names: &[String],
    agreed: &BTreeSet<String>,
) -> (usize, BTreeSet<String>) {
    let mut users = BTreeSet::new();
    let mut missing = 0;
    for board in names.iter().filter_map(|name| manifest.boards.get(name)) {
        let of_board = board.missing(agreed);
        if of_board > 0 {
            missing += of_board;
            users.extend(
                board
                    .members
                    .iter()
                    .filter(|member| !agreed.contains(*member))
                    .cloned(),
            );
        }
    }
    (missing, users)
}

/// An update says which manifest it was made for, so that two people's updates cannot pass each
/// other unseen. A signed one must: it may be carried by anyone, at any time.
fn check_predecessor(live: &Live, update: &Manifest, policy: &Policy) -> Result<(), Error> {
    let current = fingerprint(&live.core.manifest.0);
    let named = update.config.predecessor.to_ascii_lowercase();
    let is_needed = live.manifest.config.require_predecessor || !policy.signatures.is_empty();
    if named.is_empty() && is_needed {
        return Err(Error::Refused(format!(
            "the update must name its Config.Predecessor: {current}"
        )));
    }
    if !named.is_empty() && named != current {
        return Err(Error::Refused(format!(
            "the update was made for manifest {named}, but {current} is in force: someone else \
             changed it meanwhile"
        )));
    }
    let is_replay = live
        .core
        .used_policies
        .contains(&fingerprint(&policy.manifest));
    if !policy.signatures.is_empty() && is_replay {
        return Err(Error::Refused(
            "this signed manifest was in force before: signatures count once".to_owned(),
        ));
    }
    Ok(())
}

fn log_step(core: &mut Core, manifest: &Manifest, pending: &Pending, user: &str, step: &str) {
    let outcome = outcome(manifest, pending);
    core.log(
        &format!("Complete Manifest update {step} by user"),
        &[
            ("user", user.into()),
            (
                "missingAcknowledgments",
                outcome.missing_acknowledgments.into(),
            ),
            ("missingUsers", outcome.missing_users.into()),
            (
                "manifestFingerprint",
                fingerprint(&pending.manifest.0).into(),
            ),
        ],
    );
}

/// Certificates hang under the marble root, and follow it.
fn renew_certificates(
    core: &mut Core,
    manifest: &Manifest,
    pki: &crate::pki::Pki,
) -> Result<(), Error> {
    for (name, secret) in &mut core.secrets {
        if let Some(spec) = manifest.secrets.get(name)
            && spec.secret_type().is_certificate()
            && !spec.user_defined
        {
            *secret = Secret::generate(
                name,
                spec,
                &crate::secrets::Owner::Shared,
                &pki.intermediate,
            )?;
        }
    }
    Ok(())
}

/// Certificates anew; symmetric and user-defined secrets stay where their description did.
fn updated_secrets(
    live: &Live,
    update: &Manifest,
    pki: &crate::pki::Pki,
) -> Result<BTreeMap<String, Secret>, Error> {
    let mut secrets = shared_secrets(update, pki)?;
    for (name, spec) in &update.secrets {
        let Some(old) = live.core.secrets.get(name) else {
            continue;
        };
        let is_kept = spec.user_defined || !spec.secret_type().is_certificate();
        let is_same = live
            .manifest
            .secrets
            .get(name)
            .is_some_and(|before| spec.keeps_value_of(before));
        if is_kept && is_same && spec.import.is_none() {
            let mut kept = old.clone();
            kept.spec.clone_from(spec);
            secrets.insert(name.clone(), kept);
        }
    }
    Ok(secrets)
}
