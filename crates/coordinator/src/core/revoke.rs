//! Taking trust back: from one marble, from a package, from a platform.
//!
//! What is revoked cannot activate any more, at once. Certificates that are out already are on the
//! list that peers load ([`Coordinator::revocation_list`]), an X.509 CRL.

use super::live::Revoked;
use super::{Coordinator, Credentials, Error};
use crate::crl::RevocationList;
use crate::manifest::Resource;
use std::collections::HashSet;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// Peers' clocks may be a little behind.
const CLOCK_SKEW: Duration = Duration::minutes(2);
/// A peer that cannot get a new list for so long stops trusting.
const LIST_LIFE: Duration = Duration::minutes(10);

/// The list is sent to whoever asks, and is in memory: bounded.
const MOST: usize = 100_000;

impl Coordinator {
    /// Adds to what is revoked. One user with UpdateManifest suffices: it only ever takes away.
    pub(super) async fn try_revoke(
        &self,
        what: &Revoked,
        credentials: Credentials<'_>,
    ) -> Result<Revoked, Error> {
        let _change = self.change.lock().await;
        let live = self.live()?;
        let user = Self::user(&live, credentials)?;
        Self::require(&live, &user, Resource::Manifest, "", "UpdateManifest")?;
        if what == &Revoked::default() {
            return Err(Error::BadRequest(
                "nothing to revoke: name marbles, packages or platforms".to_owned(),
            ));
        }
        let mut core = live.core.clone();
        for marble in &what.marbles {
            let uuid = Uuid::parse_str(marble)
                .map_err(|error| Error::BadRequest(format!("marble {marble}: {error}")))?;
            core.revoked.marbles.insert(uuid.to_string());
        }
        for package in &what.packages {
            if !live.manifest.packages.contains_key(package) {
                return Err(Error::BadRequest(format!(
                    "package {package} does not exist"
                )));
            }
            core.revoked.packages.insert(package.clone());
        }
        core.revoked.platforms.extend(
            what.platforms
                .iter()
                .map(|platform| platform.to_ascii_lowercase()),
        );
        let count =
            core.revoked.marbles.len() + core.revoked.packages.len() + core.revoked.platforms.len();
        if count > MOST {
            return Err(Error::Refused(format!(
                "more than {MOST} entries are revoked"
            )));
        }
        let list = |set: &std::collections::BTreeSet<String>| {
            serde_json::Value::from(set.iter().cloned().collect::<Vec<_>>())
        };
        core.log(
            "Revoked",
            &[
                ("user", user.as_str().into()),
                ("marbles", list(&what.marbles)),
                ("packages", list(&what.packages)),
                ("platforms", list(&what.platforms)),
            ],
        );
        let live = self.replace(&live, core).await?;
        Ok(live.core.revoked.clone())
    }

    /// The CRL of the marble root, DER: all certificates of revoked marbles, packages and platforms
    /// that have not expired.
    pub fn revocation_list(&self) -> Result<Vec<u8>, Error> {
        let live = self.live()?;
        let now = OffsetDateTime::now_utc();
        let revoked = &live.core.revoked;
        let mut serials = Vec::new();
        let marbles: HashSet<Uuid> = revoked
            .marbles
            .iter()
            .filter_map(|uuid| Uuid::parse_str(uuid).ok())
            .collect();
        for (uuid, instance) in self.tables.instances().iter() {
            if revoked == &Revoked::default() {
                break;
            }
            if marbles.contains(uuid)
                || revoked.packages.contains(&instance.package)
                || revoked
                    .platforms
                    .contains(&instance.platform.to_ascii_lowercase())
            {
                let alive = instance.leaves.iter();
                serials.extend(
                    alive
                        .filter(|leaf| leaf.until > now.unix_timestamp())
                        .filter_map(|leaf| hex::decode(&leaf.serial).ok()),
                );
            }
        }
        serials.sort();
        let issuer = &live.pki.intermediate;
        Ok(RevocationList {
            issuer: issuer.name(),
            issuer_key_id: &issuer.key_id(),
            number: now.unix_timestamp().unsigned_abs(),
            this_update: now - CLOCK_SKEW,
            next_update: now + LIST_LIFE,
            serials: &serials,
        }
        .sign(issuer.signer())?)
    }

    pub fn revoked(&self) -> Result<Revoked, Error> {
        Ok(self.live()?.core.revoked.clone())
    }
}
