//! Reading and writing secrets by users.

use super::{Coordinator, Credentials, Error};
use crate::manifest::Resource;
use crate::secrets::{Secret, SecretView, UserSecret};
use std::collections::BTreeMap;

impl Coordinator {
    /// The values of secrets. Who may not read a name learns nothing about it, not even whether it
    /// exists.
    pub(super) async fn try_read_secrets(
        &self,
        names: &[String],
        credentials: Credentials<'_>,
    ) -> Result<BTreeMap<String, SecretView>, Error> {
        let live = self.live()?;
        let user = Self::user(&live, credentials)?;
        for name in names {
            Self::require(&live, &user, Resource::Secrets, name, "ReadSecret")?;
        }
        let live = match super::read::is_watched(&live.manifest, names) {
            true => self.use_agreement(&user, names).await?,
            false => live,
        };
        names
            .iter()
            .map(|name| match live.core.secrets.get(name) {
                Some(secret) => Ok((name.clone(), secret.view())),
                None => Err(Error::Refused(format!(
                    "secret {name} has not been set yet"
                ))),
            })
            .collect()
    }

    pub(super) async fn try_write_secrets(
        &self,
        uploads: &BTreeMap<String, UserSecret>,
        credentials: Credentials<'_>,
    ) -> Result<(), Error> {
        let _change = self.change.lock().await;
        let live = self.live()?;
        let user = Self::user(&live, credentials)?;
        for name in uploads.keys() {
            Self::require(&live, &user, Resource::Secrets, name, "WriteSecret")?;
        }
        if live.core.pending.is_some() {
            return Err(Error::Refused(
                "an update is pending: acknowledge or cancel it first".to_owned(),
            ));
        }
        let mut core = live.core.clone();
        for (name, upload) in uploads {
            let spec = live
                .manifest
                .secrets
                .get(name)
                .filter(|spec| spec.user_defined && spec.import.is_none())
                .ok_or_else(|| Error::Refused(format!("secret {name} cannot be set")))?;
            let secret = Secret::from_user(name, spec, upload)?;
            core.secrets.insert(name.clone(), secret);
            core.log(
                "Secret set",
                &[
                    ("user", user.as_str().into()),
                    ("secret", name.as_str().into()),
                    ("type", spec.kind.as_str().into()),
                ],
            );
        }
        super::activate::dry_run(&live.manifest, &core.secrets)?;
        self.replace(&live, core).await.map(|_| ())
    }
}
