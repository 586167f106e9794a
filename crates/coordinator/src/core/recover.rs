//! Opening a state with the secrets of its recovery keys.

use super::live::Live;
use super::{Coordinator, Error, Phase};
use crate::recovery::Progress;
use crate::seal::Key;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    pub remaining: usize,
}

impl Coordinator {
    /// Takes one holder's secret; with the last one needed, the coordinator runs again.
    pub async fn recover(&self, secret: &[u8], signature: &[u8]) -> Result<Recovered, Error> {
        let _change = self.change.lock().await;
        let Phase::Recovery { recovery, .. } = self.phase() else {
            return Err(Error::WrongState);
        };
        let progress = recovery
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .upload(secret, signature)?;
        match progress {
            Progress::Remaining(remaining) => Ok(Recovered { remaining }),
            Progress::Complete(key) => {
                self.resume(&key)?;
                Ok(Recovered { remaining: 0 })
            }
        }
    }

    pub(super) fn resume(&self, key: &Key) -> Result<(), Error> {
        let live = self.change_store(|store| {
            let content = store
                .unseal(key)
                .map_err(|error| Error::Refused(error.to_string()))?;
            let live = Live::load(&content).map_err(Error::Internal)?;
            self.tables.load(&content, 0).map_err(Error::Internal)?;
            store.rewrite_key(self.keys.as_ref(), key)?;
            Ok::<_, Error>(live)
        })?;
        self.enter(Phase::Running(Arc::new(live)));
        Ok(())
    }

    /// The key to encrypt recovery secrets with, PKIX DER.
    pub fn recovery_public_key(&self) -> Result<Vec<u8>, Error> {
        match self.phase() {
            Phase::Recovery { recovery, .. } => Ok(recovery
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .public_key()?),
            _ => Err(Error::WrongState),
        }
    }
}
