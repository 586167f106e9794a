//! A store for several replicas in small objects that can be replaced only as they were read: the
//! Kubernetes API, whose `resourceVersion` says that.
//!
//! The objects of one store, none of which the API's keepers can read, exchange or shorten unnoticed
//! by a running replica:
//!
//! - `head`: the header in the clear; how many pieces its snapshot has; and the journal since, as the
//!   embedded store has it ([`journal`](super::journal)): each record is bound to the one before it.
//!   Every commit replaces it, so commits of all replicas form one line.
//! - `SNAPSHOT.N`: a piece of the snapshot, sealed with the header and its place as context.
//! - `KEY.REPLICA`: the data key, sealed for one replica's enclave.
//!
//! A journal that has grown, or a batch that does not fit into it, makes a new snapshot: its pieces
//! first, then the head, then the old pieces go. Who reads meanwhile begins again.

use super::journal::Position;
use super::worker::{Changes, Epochs, News, SharedState, Worker};
use super::{
    Batch, Content, Header, Opened, Place, Receipt, RefreshReceipt, Refreshed, Store, StoreError,
    failed,
};
use crate::json::Bytes;
use crate::manifest::SealMode;
use crate::recovery::Plan;
use crate::seal::{Key, SealError, SealingKeys};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::oneshot;

/// A journal that is longer is folded: each commit sends all of it.
const FOLD_BYTES: usize = 96 << 10;
/// A Secret has at most a MiB.
const PIECE_BYTES: usize = 640 << 10;
/// Reading begins anew this often when others fold meanwhile.
const READS: usize = 5;
/// What nobody else writes is written this often when answers are lost.
const WRITES: usize = 5;

/// Where objects are. All can be called by several threads.
pub trait Objects: Send + Sync + 'static {
    /// For messages.
    fn place(&self) -> String;
    fn get(&self, name: &str) -> Result<Option<Object>, StoreError>;
    /// Replaces an object if it still has this version (None: if there is none). Returns its new
    /// version, or None if it had another one. After [`StoreError::Conflict`] nobody knows.
    fn put(
        &self,
        name: &str,
        bytes: &[u8],
        version: Option<&str>,
    ) -> Result<Option<String>, StoreError>;
    /// Removes an object, if it is there.
    fn delete(&self, name: &str) -> Result<(), StoreError>;
}

pub struct Object {
    pub bytes: Vec<u8>,
    pub version: String,
}

/// Where a cluster's stores are.
pub struct ObjectPlace {
    objects: Arc<dyn Objects>,
    prefix: String,
    replica: String,
}

impl ObjectPlace {
    /// `prefix`: what names of objects begin with; `replica`: a name that this replica keeps across
    /// restarts.
    pub fn new(objects: Arc<dyn Objects>, prefix: &str, replica: &str) -> ObjectPlace {
        ObjectPlace {
            objects,
            prefix: prefix.to_owned(),
            replica: replica.to_owned(),
        }
    }

    pub fn store(&self, id: &str) -> ObjectStore {
        ObjectStore {
            names: Arc::new(Names {
                objects: self.objects.clone(),
                base: format!("{}-{id}", self.prefix),
                // Names of objects are short, and lower-case.
                replica: hex::encode(&crate::sha256(self.replica.as_bytes())[..16]),
            }),
            worker: None,
            version: None,
            key: None,
        }
    }
}

impl Place for ObjectPlace {
    fn open(&self, id: &str) -> Result<Box<dyn Store>, StoreError> {
        Ok(Box::new(self.store(id)))
    }

    fn remove(&self, id: &str) -> Result<(), StoreError> {
        let store = self.store(id);
        let Some((head, _)) = store.names.read_head()? else {
            return Ok(());
        };
        self.objects.delete(&store.names.head())?;
        store.names.remove_pieces(&head);
        self.objects.delete(&store.names.own_key(&head))
    }
}

struct Names {
    objects: Arc<dyn Objects>,
    base: String,
    replica: String,
}

#[derive(Clone, Serialize, Deserialize)]
struct Head {
    header: Header,
    /// Names the data key; changes with it.
    key: String,
    pieces: usize,
    journal: Bytes,
}

impl Head {
    /// What the snapshot's pieces are bound to: all but the journal.
    fn context(&self, piece: usize) -> Vec<u8> {
        let mut context = serde_json::to_vec(&self.header).unwrap_or_default();
        context.extend(format!("\0{}\0{piece} of {}", self.key, self.pieces).into_bytes());
        context
    }

    fn key_context(&self) -> Vec<u8> {
        format!("bulla data key {} of {}", self.key, self.header.state).into_bytes()
    }

    /// Where its journal begins.
    fn position(&self) -> Position {
        Position::after_snapshot(&self.header.snapshot, self.header.revision)
    }
}

fn random_id() -> Result<String, StoreError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(SealError::Random)?;
    Ok(hex::encode(id))
}

impl Names {
    fn head(&self) -> String {
        format!("{}.head", self.base)
    }

    fn piece(&self, head: &Head, number: usize) -> String {
        format!("{}.{}.{number}", self.base, head.header.snapshot)
    }

    fn own_key(&self, head: &Head) -> String {
        format!("{}.{}.{}", self.base, head.key, self.replica)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("{}/{}", self.objects.place(), self.base))
    }

    fn damaged(&self, reason: impl ToString) -> StoreError {
        StoreError::Damaged {
            path: self.path(),
            reason: reason.to_string(),
        }
    }

    fn read_head(&self) -> Result<Option<(Head, String)>, StoreError> {
        let Some(object) = self.objects.get(&self.head())? else {
            return Ok(None);
        };
        let head = serde_json::from_slice(&object.bytes).map_err(|error| self.damaged(error))?;
        Ok(Some((head, object.version)))
    }

    /// The snapshot's content. A piece that is missing was folded away meanwhile: a conflict.
    fn read_snapshot(&self, key: &Key, head: &Head) -> Result<Content, StoreError> {
        let mut plain = zeroize::Zeroizing::new(Vec::new());
        for number in 0..head.pieces {
            let piece = self
                .objects
                .get(&self.piece(head, number))?
                .ok_or(StoreError::Conflict)?;
            // A wrong key is the uploader's mistake, not damage: the error tells them apart.
            plain.extend(key.open(&head.context(number), &piece.bytes)?);
        }
        let content: BTreeMap<String, Bytes> =
            serde_json::from_slice(&plain).map_err(|error| self.damaged(error))?;
        Ok(content
            .into_iter()
            .map(|(key, value)| (key, value.0))
            .collect())
    }

    /// Writes a snapshot's pieces, then the head that names them.
    fn write_snapshot(
        &self,
        key: &Key,
        head: &mut Head,
        content: &Content,
        version: Option<&str>,
    ) -> Result<Option<String>, StoreError> {
        let plain: BTreeMap<&String, Bytes> = content
            .iter()
            .map(|(key, value)| (key, Bytes(value.clone())))
            .collect();
        let plain = zeroize::Zeroizing::new(serde_json::to_vec(&plain).unwrap_or_default());
        let pieces: Vec<&[u8]> = plain.chunks(PIECE_BYTES).collect();
        head.pieces = pieces.len();
        for (number, piece) in pieces.iter().enumerate() {
            let sealed = key.seal(&head.context(number), piece)?;
            self.put_own(&self.piece(head, number), &sealed)?;
        }
        let written = self.write_head(head, version);
        if !matches!(written, Ok(Some(_)) | Err(StoreError::Conflict)) {
            self.remove_pieces(head);
        }
        written
    }

    /// Writes an object whose name is random: if it is there, we have written it.
    fn put_own(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        for _ in 1..WRITES {
            match self.objects.put(name, bytes, None) {
                Err(StoreError::Conflict) => {}
                other => return other.map(|_| ()),
            }
        }
        self.objects.put(name, bytes, None).map(|_| ())
    }

    /// Replaces the head. When the answer is lost, the head itself tells whether it was done: no two
    /// are alike.
    fn write_head(&self, head: &Head, version: Option<&str>) -> Result<Option<String>, StoreError> {
        if version == Some("") {
            return Ok(None);
        }
        let bytes = serde_json::to_vec(head).unwrap_or_default();
        match self.objects.put(&self.head(), &bytes, version) {
            Err(StoreError::Conflict) => {}
            other => return other,
        }
        let Some((found, now)) = self.read_head()? else {
            return Ok(None);
        };
        let is_ours = found.header.snapshot == head.header.snapshot
            && found.journal.0.starts_with(&head.journal.0);
        Ok(match is_ours {
            false => None,
            true if found.journal.0.len() == head.journal.0.len() => Some(now),
            // Others went on from it: a version that is none makes the next write look first.
            true => Some(String::new()),
        })
    }

    /// Of a snapshot that is no longer, or not, in force; what stays harms nothing.
    fn remove_pieces(&self, head: &Head) {
        for number in 0..head.pieces {
            let _ = self.objects.delete(&self.piece(head, number));
        }
    }
}

pub struct ObjectStore {
    names: Arc<Names>,
    worker: Option<Worker<Replica>>,
    /// The head's version when it was last read.
    version: Option<String>,
    key: Option<Key>,
}

impl ObjectStore {
    fn start(&mut self, replica: Replica, epochs: Epochs) {
        self.stop();
        self.key = Some(replica.key.clone());
        self.version = Some(replica.version.clone());
        self.worker = Some(Worker::start(replica, epochs));
    }

    fn stop(&mut self) -> Option<(Replica, Epochs)> {
        self.worker.take()?.stop()
    }

    fn seal_key(&self, keys: &dyn SealingKeys, key: &Key, head: &Head) -> Result<(), StoreError> {
        let sealed = keys
            .key(head.header.seal_mode)?
            .seal(&head.key_context(), &key.0)?;
        let name = self.names.own_key(head);
        let objects = &self.names.objects;
        for _ in 0..WRITES {
            let version = objects.get(&name)?.map(|object| object.version);
            match objects.put(&name, &sealed, version.as_deref()) {
                Ok(Some(_)) => return Ok(()),
                Ok(None) | Err(StoreError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Conflict)
    }

    /// Begins a state, or goes on under a new key.
    fn install(
        &mut self,
        keys: &dyn SealingKeys,
        key: &Key,
        header: Header,
        content: Content,
        epochs: Epochs,
    ) -> Result<(), StoreError> {
        let mut head = Head {
            header,
            key: random_id()?,
            pieces: 0,
            journal: Bytes(Vec::new()),
        };
        self.seal_key(keys, key, &head)?;
        let old = self.names.read_head()?;
        let written =
            self.names
                .write_snapshot(key, &mut head, &content, self.version.as_deref())?;
        let Some(version) = written else {
            let _ = self.names.objects.delete(&self.names.own_key(&head));
            return Err(StoreError::Conflict);
        };
        if let Some((old, _)) = old {
            self.names.remove_pieces(&old);
            let _ = self.names.objects.delete(&self.names.own_key(&old));
        }
        let replica = Replica {
            names: self.names.clone(),
            key: key.clone(),
            position: head.position(),
            read: 0,
            head,
            version,
            content,
        };
        self.start(replica, epochs);
        Ok(())
    }
}

impl Store for ObjectStore {
    fn load(&mut self, keys: &dyn SealingKeys) -> Result<Opened, StoreError> {
        self.stop();
        let Some((head, version)) = self.names.read_head()? else {
            self.version = None;
            return Ok(Opened::Empty);
        };
        self.version = Some(version);
        let sealed = self.names.objects.get(&self.names.own_key(&head))?;
        let key = sealed.and_then(|sealed| {
            let sealing = keys.key(head.header.seal_mode).ok()?;
            let plain = sealing.open(&head.key_context(), &sealed.bytes).ok()?;
            Some(Key(plain.as_slice().try_into().ok()?))
        });
        let content = match key {
            Some(key) => Some(self.unseal(&key)?),
            None => None,
        };
        Ok(Opened::State {
            header: head.header,
            content,
        })
    }

    fn unseal(&mut self, key: &Key) -> Result<Content, StoreError> {
        self.stop();
        let replica = Replica::read(self.names.clone(), key)?;
        let content = replica.content.clone();
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
        if let Some((old, _)) = self.stop() {
            self.version = Some(old.version);
        }
        self.install(keys, key, header, content, Epochs::default())
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
        let header = Header {
            state: old.head.header.state.clone(),
            revision: old.position.revision + 1,
            ..Header::new(seal_mode, recovery)?
        };
        let mut content = old.content.clone();
        batch.apply(&mut content);
        self.version = Some(old.version.clone());
        let next = Epochs {
            now: epochs.now,
            told: epochs.now,
        };
        match self.install(keys, key, header, content, next) {
            Ok(()) => Ok(true),
            Err(error) => {
                self.start(old, epochs);
                Err(error)
            }
        }
    }

    fn rewrite_key(&self, keys: &dyn SealingKeys, key: &Key) -> Result<(), StoreError> {
        let (head, _) = self
            .names
            .read_head()?
            .ok_or_else(|| self.names.damaged("it is gone"))?;
        self.seal_key(keys, key, &head)
    }

    fn commit(&self, batch: Batch) -> Receipt {
        match &self.worker {
            Some(worker) => worker.commit(batch),
            None => failed(),
        }
    }

    fn refresh(&self) -> Option<RefreshReceipt> {
        Some(match &self.worker {
            Some(worker) => worker.refresh(),
            // Nothing is open: has somebody begun a state, or another one?
            None => {
                let (sender, receiver) = oneshot::channel();
                let (names, known) = (self.names.clone(), self.version.clone());
                std::thread::spawn(move || {
                    let answer = names.read_head().map(|head| {
                        match head.map(|(_, version)| version) == known {
                            true => Refreshed::Unchanged,
                            false => Refreshed::Replaced,
                        }
                    });
                    let _ = sender.send(answer);
                });
                receiver
            }
        })
    }

    fn data_key(&self) -> Option<Key> {
        self.key.clone()
    }
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What this replica knows of the state.
struct Replica {
    names: Arc<Names>,
    key: Key,
    head: Head,
    version: String,
    position: Position,
    /// Bytes of the head's journal that `content` has.
    read: usize,
    content: Content,
}

impl Replica {
    fn read(names: Arc<Names>, key: &Key) -> Result<Replica, StoreError> {
        for _ in 0..READS {
            let (head, version) = names
                .read_head()?
                .ok_or_else(|| names.damaged("it is gone"))?;
            let content = match names.read_snapshot(key, &head) {
                Err(StoreError::Conflict) => continue,
                other => other?,
            };
            let mut replica = Replica {
                names,
                key: key.clone(),
                position: head.position(),
                read: 0,
                head,
                version,
                content,
            };
            replica.replay()?;
            return Ok(replica);
        }
        Err(names.damaged("pieces of its snapshot are missing"))
    }

    /// Takes in the part of the head's journal that is new.
    fn replay(&mut self) -> Result<(), StoreError> {
        let path = self.names.path();
        let mut position = self.position.clone();
        let new = self
            .head
            .journal
            .0
            .get(self.read..)
            .ok_or_else(|| self.names.damaged("its journal was cut"))?;
        let (batches, whole) = position.replay(&self.key, new, Path::new(&path))?;
        // Objects are replaced as a whole: a torn record is no crash.
        if whole != new.len() {
            return Err(self.names.damaged("a record of its journal was changed"));
        }
        self.read += whole;
        self.position = position;
        for batch in batches {
            batch.apply(&mut self.content);
        }
        Ok(())
    }

    /// Commits with the journal in the head.
    fn append(&mut self, batch: &Batch) -> Result<u64, StoreError> {
        let mut position = self.position.clone();
        let mut head = self.head.clone();
        position.append(&self.key, batch, &mut head.journal.0)?;
        let version = self
            .names
            .write_head(&head, Some(&self.version))?
            .ok_or(StoreError::Conflict)?;
        self.version = version;
        self.read = head.journal.0.len();
        self.head = head;
        self.position = position;
        Ok(self.position.revision)
    }

    /// Commits with a new snapshot.
    fn fold(&mut self, content: &Content) -> Result<u64, StoreError> {
        let mut head = Head {
            header: Header {
                snapshot: random_id()?,
                revision: self.position.revision + 1,
                ..self.head.header.clone()
            },
            key: self.head.key.clone(),
            pieces: 0,
            journal: Bytes(Vec::new()),
        };
        let version = self
            .names
            .write_snapshot(&self.key, &mut head, content, Some(&self.version))?
            .ok_or(StoreError::Conflict)?;
        self.names.remove_pieces(&self.head);
        self.version = version;
        self.read = 0;
        self.position = head.position();
        self.head = head;
        Ok(self.position.revision)
    }
}

impl SharedState for Replica {
    fn fits(&self, _: usize, bytes: usize) -> bool {
        bytes <= FOLD_BYTES
    }

    fn write(&mut self, changes: Changes) -> Result<u64, StoreError> {
        let batch = Batch { changes, epoch: 0 };
        let bytes: usize = batch
            .changes
            .iter()
            .map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len))
            .sum();
        if self.read + bytes <= FOLD_BYTES {
            let revision = self.append(&batch)?;
            batch.apply(&mut self.content);
            return Ok(revision);
        }
        let mut content = self.content.clone();
        batch.apply(&mut content);
        let revision = self.fold(&content)?;
        self.content = content;
        Ok(revision)
    }

    fn read_news(&mut self) -> Result<News, StoreError> {
        let Some((head, version)) = self.names.read_head()? else {
            return Ok(News::Replaced);
        };
        if version == self.version {
            return Ok(News::None);
        }
        if head.header.state != self.head.header.state || head.key != self.head.key {
            return Ok(News::Replaced);
        }
        if head.header.snapshot == self.head.header.snapshot {
            let before = std::mem::replace(&mut self.head, head);
            if let Err(error) = self.replay() {
                self.head = before;
                return Err(error);
            }
            self.version = version;
            return Ok(News::Changes);
        }
        let new = Replica::read(self.names.clone(), &self.key)?;
        if new.position.revision < self.position.revision {
            return Err(self
                .names
                .damaged("it went back: an old copy was put in its place"));
        }
        *self = new;
        Ok(News::Changes)
    }

    fn content(&self) -> Content {
        self.content.clone()
    }
}
