//! A state that several replicas share: what etcd and the Kubernetes API have in common.
//!
//! A [`Medium`] has a *head*, which every commit replaces, and behind it what belongs to it. A
//! [`Replica`] is one coordinator's copy of the state; a [`Worker`] writes it.
//!
//! A replica that runs notices when the medium goes back. An [`Anchor`] remembers how new the state was
//! for one that starts: what was committed, or taken in from others, is in it before anybody is told.

use super::anchor::{self, Anchor, Mark};
use super::worker::{Epochs, SharedState, Worker};
use super::{
    Batch, Content, Header, Opened, Receipt, RefreshReceipt, Refreshed, Store, StoreError, failed,
};
use crate::manifest::SealMode;
use crate::recovery::Plan;
use crate::seal::{Key, SealingKeys};
use std::sync::Arc;
use tokio::sync::oneshot;

/// A head and its version.
pub type Versioned<M> = (<M as Medium>::Head, <M as Medium>::At);
/// Seals the data key under a head, for this replica.
pub type Seal<'a, H> = &'a dyn Fn(&H) -> Result<Vec<u8>, StoreError>;

/// Where one state is.
pub trait Medium: Send + Sync + Sized + 'static {
    type Head: Head;
    /// A version of the head.
    type At: Clone + PartialEq + Send + Sync + 'static;
    type Replica: Replica<At = Self::At>;

    fn read_head(&self) -> Result<Option<Versioned<Self>>, StoreError>;
    /// The data key as it was sealed for this replica.
    fn own_key(&self, head: &Self::Head) -> Result<Option<Vec<u8>>, StoreError>;
    fn put_own_key(&self, head: &Self::Head, sealed: &[u8]) -> Result<(), StoreError>;
    /// Reads all.
    fn read(self: &Arc<Self>, key: &Key) -> Result<Self::Replica, StoreError>;
    /// Writes a new snapshot under a new head, if the head is still the one that it replaces (None:
    /// there is none). The old snapshot goes. `seal` gives the data key for this replica.
    fn install(
        self: &Arc<Self>,
        seal: Seal<'_, Self::Head>,
        key: &Key,
        header: Header,
        content: Content,
        replaces: Option<&Self::At>,
    ) -> Result<Self::Replica, StoreError>;
    fn damaged(&self, reason: impl ToString) -> StoreError;
}

pub trait Head {
    fn header(&self) -> &Header;
    /// What the sealed data key is bound to.
    fn key_context(&self) -> Vec<u8>;
}

pub trait Replica: SharedState {
    type At;
    fn key(&self) -> &Key;
    fn at(&self) -> Self::At;
}

pub struct SharedStore<M: Medium> {
    medium: Arc<M>,
    anchor: Option<Box<dyn Anchor>>,
    worker: Option<Worker<M::Replica>>,
    /// The head's version when it was last read.
    at: Option<M::At>,
    key: Option<Key>,
}

impl<M: Medium> SharedStore<M> {
    pub fn new(medium: M, anchor: Option<Box<dyn Anchor>>) -> SharedStore<M> {
        SharedStore {
            medium: Arc::new(medium),
            anchor,
            worker: None,
            at: None,
            key: None,
        }
    }

    fn start(&mut self, replica: M::Replica, epochs: Epochs) {
        self.stop();
        self.key = Some(replica.key().clone());
        self.at = Some(replica.at());
        self.worker = Some(Worker::start(replica, epochs, self.anchor.take()));
    }

    fn stop(&mut self) -> Option<(M::Replica, Epochs)> {
        let (replica, epochs, anchor) = self.worker.take()?.stop()?;
        self.anchor = anchor;
        self.at = Some(replica.at());
        Some((replica, epochs))
    }

    fn sealed(keys: &dyn SealingKeys, key: &Key, head: &M::Head) -> Result<Vec<u8>, StoreError> {
        let sealing = keys.key(head.header().seal_mode)?;
        Ok(sealing.seal(&head.key_context(), &key.0)?)
    }

    /// Begins a state, or goes on under a new key.
    fn install(
        &mut self,
        keys: &dyn SealingKeys,
        key: &Key,
        header: Header,
        content: Content,
    ) -> Result<M::Replica, StoreError> {
        let state = header.state.clone();
        if let Some(anchor) = &mut self.anchor
            && let Some(old) = anchor.read()?
            && old.state != state
        {
            // A crash in between is no attack.
            anchor.write(&Mark {
                next: Some(state),
                ..old
            })?;
        }
        let replica = self.medium.install(
            &|head| Self::sealed(keys, key, head),
            key,
            header,
            content,
            self.at.as_ref(),
        )?;
        if let Some(anchor) = &mut self.anchor {
            anchor.write(&replica.mark())?;
        }
        Ok(replica)
    }
}

impl<M: Medium> Store for SharedStore<M> {
    fn load(&mut self, keys: &dyn SealingKeys) -> Result<Opened, StoreError> {
        self.stop();
        let Some((head, at)) = self.medium.read_head()? else {
            self.at = None;
            return Ok(Opened::Empty);
        };
        self.at = Some(at);
        let key = self.medium.own_key(&head)?.and_then(|sealed| {
            let sealing = keys.key(head.header().seal_mode).ok()?;
            let plain = sealing.open(&head.key_context(), &sealed).ok()?;
            Some(Key(plain.as_slice().try_into().ok()?))
        });
        let content = match key {
            Some(key) => Some(self.unseal(&key)?),
            None => None,
        };
        Ok(Opened::State {
            header: head.header().clone(),
            content,
        })
    }

    fn unseal(&mut self, key: &Key) -> Result<Content, StoreError> {
        self.stop();
        let replica = self.medium.read(key)?;
        if let Some(anchor) = &mut self.anchor {
            anchor::check(anchor.as_ref(), &replica.mark())?;
            anchor.write(&replica.mark())?;
        }
        let content = replica.content();
        self.start(replica, Epochs::default());
        Ok(content)
    }

    fn begin(
        &mut self,
        keys: &dyn SealingKeys,
        key: &Key,
        header: Header,
        content: Content,
    ) -> Result<(), StoreError> {
        self.stop();
        let replica = self.install(keys, key, header, content)?;
        self.start(replica, Epochs::default());
        Ok(())
    }

    fn rekey(
        &mut self,
        keys: &dyn SealingKeys,
        key: &Key,
        seal_mode: SealMode,
        recovery: Plan,
        batch: Batch,
    ) -> Result<bool, StoreError> {
        let Some((old, epochs)) = self.stop() else {
            return Ok(false);
        };
        if batch.epoch != epochs.now {
            self.start(old, epochs);
            return Err(StoreError::Conflict);
        }
        let Mark {
            state, revision, ..
        } = old.mark();
        let header = Header {
            state,
            revision: revision + 1,
            ..Header::new(seal_mode, recovery)?
        };
        let mut content = old.content();
        batch.apply(&mut content);
        let next = Epochs {
            now: epochs.now,
            told: epochs.now,
        };
        match self.install(keys, key, header, content) {
            Ok(replica) => {
                self.start(replica, next);
                Ok(true)
            }
            Err(error) => {
                self.start(old, epochs);
                Err(error)
            }
        }
    }

    fn rewrite_key(&self, keys: &dyn SealingKeys, key: &Key) -> Result<(), StoreError> {
        let (head, _) = self
            .medium
            .read_head()?
            .ok_or_else(|| self.medium.damaged("it is gone"))?;
        let sealed = Self::sealed(keys, key, &head)?;
        self.medium.put_own_key(&head, &sealed)
    }

    fn commit(&self, batch: Batch) -> Receipt {
        match &self.worker {
            Some(worker) => worker.commit(batch),
            None => failed(),
        }
    }

    fn refresh(&self) -> Option<RefreshReceipt> {
        if let Some(worker) = &self.worker {
            return Some(worker.refresh());
        }
        // Nothing is open: has somebody begun a state, or another one?
        let (sender, receiver) = oneshot::channel();
        let (medium, known) = (self.medium.clone(), self.at.clone());
        std::thread::spawn(move || {
            let answer = medium
                .read_head()
                .map(|head| match head.map(|(_, at)| at) == known {
                    true => Refreshed::Unchanged,
                    false => Refreshed::Replaced,
                });
            let _ = sender.send(answer);
        });
        Some(receiver)
    }

    fn data_key(&self) -> Option<Key> {
        self.key.clone()
    }
}

impl<M: Medium> Drop for SharedStore<M> {
    fn drop(&mut self) {
        self.stop();
    }
}
