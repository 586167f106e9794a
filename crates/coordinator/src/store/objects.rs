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
//! - `KEY`: the data key, sealed for each replica's enclave. One object: who deletes the state cannot
//!   list what is there, and must leave nothing.
//!
//! A journal that has grown, or a batch that does not fit into it, makes a new snapshot: its pieces
//! first, then the head, then the old pieces go. Who reads meanwhile begins again.

use super::anchor::Mark;
use super::journal::Position;
use super::shared::{self, Medium, SharedStore};
use super::worker::{Changes, News, SharedState};
use super::{Batch, Content, FileAnchor, Header, Place, Store, StoreError};
use crate::json::Bytes;
use crate::seal::{Key, SealError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    anchor: Option<PathBuf>,
}

impl ObjectPlace {
    /// `prefix`: what names of objects begin with; `replica`: a name that this replica keeps across
    /// restarts.
    pub fn new(objects: Arc<dyn Objects>, prefix: &str, replica: &str) -> ObjectPlace {
        ObjectPlace {
            objects,
            prefix: prefix.to_owned(),
            replica: replica.to_owned(),
            anchor: None,
        }
    }

    /// Remembers in a file how new the state was, for when this replica starts.
    pub fn anchored(self, anchor: Option<PathBuf>) -> ObjectPlace {
        ObjectPlace { anchor, ..self }
    }

    fn names(&self, id: &str) -> Names {
        Names {
            objects: self.objects.clone(),
            base: format!("{}-{id}", self.prefix),
            // Names of objects are short, and lower-case.
            replica: hex::encode(&crate::sha256(self.replica.as_bytes())[..16]),
        }
    }
}

impl Place for ObjectPlace {
    fn open(&self, id: &str) -> Result<Box<dyn Store>, StoreError> {
        let anchor = FileAnchor::of(self.anchor.as_deref(), id);
        Ok(Box::new(SharedStore::new(self.names(id), anchor)))
    }

    fn remove(&self, id: &str) -> Result<(), StoreError> {
        let names = self.names(id);
        let Some((head, _)) = names.read_head()? else {
            return Ok(());
        };
        self.objects.delete(&names.head())?;
        names.remove_pieces(&head);
        self.objects.delete(&names.key_of(&head))
    }
}

type SealedKeys = BTreeMap<String, Bytes>;

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

    /// Where its journal begins.
    fn position(&self) -> Position {
        Position::after_snapshot(&self.header.snapshot, self.header.revision)
    }
}

impl shared::Head for Head {
    fn header(&self) -> &Header {
        &self.header
    }

    fn key_context(&self) -> Vec<u8> {
        format!("bulla data key {} of {}", self.key, self.header.state).into_bytes()
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

    fn key_of(&self, head: &Head) -> String {
        format!("{}.{}", self.base, head.key)
    }

    /// The data key as it is sealed, by replica, and the object's version.
    fn sealed_keys(&self, head: &Head) -> Result<(SealedKeys, Option<String>), StoreError> {
        let Some(object) = self.objects.get(&self.key_of(head))? else {
            return Ok(Default::default());
        };
        // What cannot be read is sealed anew, as is what cannot be unsealed.
        let keys = serde_json::from_slice(&object.bytes).unwrap_or_default();
        Ok((keys, Some(object.version)))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("{}/{}", self.objects.place(), self.base))
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

impl Medium for Names {
    type Head = Head;
    type At = String;
    type Replica = Replica;

    fn read_head(&self) -> Result<Option<(Head, String)>, StoreError> {
        let Some(object) = self.objects.get(&self.head())? else {
            return Ok(None);
        };
        let head = serde_json::from_slice(&object.bytes).map_err(|error| self.damaged(error))?;
        Ok(Some((head, object.version)))
    }

    fn own_key(&self, head: &Head) -> Result<Option<Vec<u8>>, StoreError> {
        let (mut keys, _) = self.sealed_keys(head)?;
        Ok(keys.remove(&self.replica).map(|sealed| sealed.0))
    }

    fn put_own_key(&self, head: &Head, sealed: &[u8]) -> Result<(), StoreError> {
        let name = self.key_of(head);
        for _ in 0..WRITES {
            let (mut keys, version) = self.sealed_keys(head)?;
            keys.insert(self.replica.clone(), Bytes(sealed.to_vec()));
            let bytes = serde_json::to_vec(&keys).unwrap_or_default();
            match self.objects.put(&name, &bytes, version.as_deref()) {
                Ok(Some(_)) => return Ok(()),
                Ok(None) | Err(StoreError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Conflict)
    }

    fn read(self: &Arc<Self>, key: &Key) -> Result<Replica, StoreError> {
        Replica::read(self.clone(), key)
    }

    fn install(
        self: &Arc<Self>,
        seal: &dyn Fn(&Head) -> Result<Vec<u8>, StoreError>,
        key: &Key,
        header: Header,
        content: Content,
        replaces: Option<&String>,
    ) -> Result<Replica, StoreError> {
        let mut head = Head {
            header,
            key: random_id()?,
            pieces: 0,
            journal: Bytes(Vec::new()),
        };
        self.put_own_key(&head, &seal(&head)?)?;
        let old = self.read_head()?;
        let written =
            self.write_snapshot(key, &mut head, &content, replaces.map(String::as_str))?;
        let Some(version) = written else {
            let _ = self.objects.delete(&self.key_of(&head));
            return Err(StoreError::Conflict);
        };
        if let Some((old, _)) = old {
            self.remove_pieces(&old);
            let _ = self.objects.delete(&self.key_of(&old));
        }
        Ok(Replica {
            names: self.clone(),
            key: key.clone(),
            position: head.position(),
            read: 0,
            head,
            version,
            content,
        })
    }

    fn damaged(&self, reason: impl ToString) -> StoreError {
        StoreError::Damaged {
            path: self.path(),
            reason: reason.to_string(),
        }
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

impl shared::Replica for Replica {
    type At = String;

    fn key(&self) -> &Key {
        &self.key
    }

    fn at(&self) -> String {
        self.version.clone()
    }
}

impl SharedState for Replica {
    fn mark(&self) -> Mark {
        Mark {
            state: self.head.header.state.clone(),
            revision: self.position.revision,
            next: None,
        }
    }

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
