//! Where the state is kept: keys and values, sealed before they leave memory.
//!
//! A store has one *revision*, which grows by one with every batch. Everything that must be one
//! step for a reader after a crash goes into one [`Batch`].

mod anchor;
mod directory;
mod journal;

pub use anchor::{Anchor, FileAnchor, Mark};
pub use directory::{DirectoryStore, Header, Opened, SEALED_DATA, SEALED_KEY};

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The content of a store.
pub type Content = BTreeMap<String, Vec<u8>>;

/// Changes that are made together: a value, or `None` to remove the key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub changes: Vec<(String, Option<Vec<u8>>)>,
}

impl Batch {
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Batch {
        self.changes.push((key.into(), Some(value.into())));
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
    #[error("the store has failed before and takes nothing more: restart the coordinator")]
    Failed,
}

pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> StoreError + '_ {
    move |error| StoreError::Io {
        path: path.to_owned(),
        error,
    }
}
