//! Where the state is kept: keys and values, sealed before they leave memory.
//!
//! A store has one *revision*, which grows by one with every batch. Everything that must be one
//! step for a reader after a crash goes into one [`Batch`].

mod anchor;
mod directory;
mod etcd;
mod etcd_client;
mod http;
mod journal;
mod kubernetes;
mod objects;
mod shared;
mod worker;

pub use anchor::{Anchor, FileAnchor, Mark};
pub use directory::{DirectoryPlace, DirectoryStore, Header, Opened, SEALED_DATA, SEALED_KEY};
pub use etcd::EtcdPlace;
pub use http::ClientTls;
pub use kubernetes::{Kubernetes, KubernetesOptions};
pub use objects::{Object, ObjectPlace, Objects};

use crate::manifest::SealMode;
use crate::recovery::Plan;
use crate::seal::{Key, SealingKeys};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The content of a store.
pub type Content = BTreeMap<String, Vec<u8>>;

/// When a batch is durable, its revision.
pub type Receipt = tokio::sync::oneshot::Receiver<Result<u64, StoreError>>;

/// A place for one state.
pub trait Store: Send + Sync {
    /// Reads the state and begins to write if it can be unsealed.
    fn load(&mut self, keys: &dyn SealingKeys) -> Result<Opened, StoreError>;
    /// Opens the state with its data key, and begins to write.
    fn unseal(&mut self, key: &Key) -> Result<Content, StoreError>;
    /// Throws away what is there and begins a new state.
    fn begin(
        &mut self,
        keys: &dyn SealingKeys,
        key: &Key,
        header: Header,
        content: Content,
    ) -> Result<(), StoreError>;
    /// Goes on with the same state under a new key, after one more batch. False if nothing is
    /// being written.
    fn rekey(
        &mut self,
        keys: &dyn SealingKeys,
        key: &Key,
        seal_mode: SealMode,
        recovery: Plan,
        batch: Batch,
    ) -> Result<bool, StoreError>;
    /// Seals the data key of the state that is there for this enclave: after recovery.
    fn rewrite_key(&self, keys: &dyn SealingKeys, key: &Key) -> Result<(), StoreError>;
    /// Queues a batch.
    fn commit(&self, batch: Batch) -> Receipt;
    /// Asks what other replicas have changed. None: nobody else writes here.
    fn refresh(&self) -> Option<RefreshReceipt> {
        None
    }
    /// The key of the open state, for a replica that has proved to be one.
    fn data_key(&self) -> Option<Key> {
        None
    }
}

/// What other replicas have changed.
pub enum Refreshed {
    Unchanged,
    /// All there is now. Batches computed from it are of this epoch; those of earlier ones are
    /// refused as conflicts.
    Changed {
        epoch: u64,
        content: Content,
    },
    /// Another state, or this one under another key: load it.
    Replaced,
}

pub type RefreshReceipt = tokio::sync::oneshot::Receiver<Result<Refreshed, StoreError>>;

/// Where stores are: one for each namespace.
pub trait Place: Send + Sync {
    /// The store of the namespace with this id.
    fn open(&self, id: &str) -> Result<Box<dyn Store>, StoreError>;
    /// Removes what is kept for the namespace, which is closed.
    fn remove(&self, id: &str) -> Result<(), StoreError>;
}

/// Changes that are made together: a value, or `None` to remove the key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub changes: Vec<(String, Option<Vec<u8>>)>,
    /// When the values were read that it was computed from; see [`Refreshed`].
    pub epoch: u64,
}

impl Batch {
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Batch {
        self.changes.push((key.into(), Some(value.into())));
        self
    }

    /// The batch as computed in an epoch.
    pub fn of(mut self, epoch: u64) -> Batch {
        self.epoch = epoch;
        self
    }

    pub fn delete(mut self, key: impl Into<String>) -> Batch {
        self.changes.push((key.into(), None));
        self
    }

    pub(crate) fn apply(self, content: &mut Content) {
        for (key, value) in self.changes {
            match value {
                Some(value) => content.insert(key, value),
                None => content.remove(&key),
            };
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {error}")]
    Io {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("{0} is in use by another coordinator: stop it first")]
    Locked(PathBuf),
    #[error("{path} is damaged: {reason}; restore it from a copy, or delete it to start anew")]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "the state is older than its freshness anchor says (revision {found}, the anchor has \
         {anchored}): someone put an old copy back. Restore the newest one; if it is lost, delete \
         the anchor {anchor} to accept the old state"
    )]
    Replayed {
        found: u64,
        anchored: u64,
        anchor: PathBuf,
    },
    #[error(
        "the state is not the one that its freshness anchor {0} belongs to: put the right one \
         back, or delete the anchor to accept this state"
    )]
    OtherState(PathBuf),
    #[error(transparent)]
    Seal(#[from] crate::seal::SealError),
    #[error("another replica changed the state at the same time: try again")]
    Conflict,
    #[error("the store cannot be reached or refuses: {0}")]
    Remote(String),
    #[error("the store has failed before and takes nothing more: restart the coordinator")]
    Failed,
}

/// The receipt of a batch that nobody will write.
fn failed() -> Receipt {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let _ = sender.send(Err(StoreError::Failed));
    receiver
}

pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> StoreError + '_ {
    move |error| StoreError::Io {
        path: path.to_owned(),
        error,
    }
}
