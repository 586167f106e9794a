//! Taking trust back: from one marble, from a package, from a platform.
//!
//! What is revoked cannot activate any more, at once. Certificates that are out already live until
//! they expire, unless their peers look at the list ([`Coordinator::revoked`]).

use super::live::Revoked;
use super::{Coordinator, Credentials, Error};
use crate::manifest::Resource;
use uuid::Uuid;

/// The list is sent to whoever asks, and is in memory: bounded.
const MOST: usize = 100_000;

impl Coordinator {
    /// Adds to what is revoked. One user with UpdateManifest suffices: it only ever takes away.
    pub async fn revoke(
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

    pub fn revoked(&self) -> Result<Revoked, Error> {
        Ok(self.live()?.core.revoked.clone())
    }
}
