//! A store for several replicas: etcd, over its JSON gateway.
//!
//! etcd is as untrusted as a disk. Below `PREFIX/ID/` are:
//!
//! - `head`: the header in the clear, the revision, and sealed under the data key the *digest* of
//!   all entries. Every commit compares and replaces it in one transaction, so commits of all
//!   replicas form one line, whoever makes them.
//! - `SNAPSHOT/kv/KEY`: a value, sealed with its key as context. Old values put back, entries left out or
//!   exchanged do not give the digest: it is the XOR of a MAC of each entry under a key that etcd
//!   never sees.
//! - `SNAPSHOT/key/REPLICA`: the data key, sealed for one replica's enclave.
//!
//! A new state, or the same under a new key, is written below a new snapshot's name first; then the
//! head changes, and the old snapshot goes.
//!
//! A commit that lost its race is [`StoreError::Conflict`]: the replica reads what the others wrote
//! ([`Store::refresh`]) and tries again; [`worker`](super::worker) sees to that.

use super::etcd_client::{Compare, EtcdClient, Operation};
use super::http::ClientTls;
use super::worker::{Changes, Epochs, News, SharedState, Worker};
use super::{
    Batch, Content, Header, Opened, Place, Receipt, RefreshReceipt, Refreshed, Store, StoreError,
    failed,
};
use crate::manifest::SealMode;
use crate::recovery::Plan;
use crate::seal::{Key, SealingKeys};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Batches that are written together at most; etcd allows 128 operations in a transaction, and a
/// request of 1.5 MiB.
const MOST_OPERATIONS: usize = 100;
const MOST_BYTES: usize = 1 << 20;

/// Where a cluster's stores are.
pub struct EtcdPlace {
    client: Arc<EtcdClient>,
    prefix: String,
    replica: String,
}

impl EtcdPlace {
    /// `replica`: a name that this replica keeps across restarts.
    pub fn new(
        endpoints: &[String],
        tls: &ClientTls,
        prefix: &str,
        replica: &str,
    ) -> Result<EtcdPlace, StoreError> {
        Ok(EtcdPlace {
            client: Arc::new(EtcdClient::new(endpoints, tls)?),
            prefix: prefix.trim_end_matches('/').to_owned(),
            replica: replica.to_owned(),
        })
    }

    pub fn store(&self, id: &str) -> EtcdStore {
        EtcdStore {
            place: Arc::new(Names {
                client: self.client.clone(),
                base: format!("{}/{id}/", self.prefix),
                replica: self.replica.clone(),
            }),
            worker: None,
            head_at: 0,
            key: None,
        }
    }
}

impl Place for EtcdPlace {
    fn open(&self, id: &str) -> Result<Box<dyn Store>, StoreError> {
        Ok(Box::new(self.store(id)))
    }

    fn remove(&self, id: &str) -> Result<(), StoreError> {
        let prefix = format!("{}/{id}/", self.prefix).into_bytes();
        self.client.write(&[Operation::DeletePrefix(prefix)])
    }
}

struct Names {
    client: Arc<EtcdClient>,
    base: String,
    replica: String,
}

impl Names {
    fn head(&self) -> Vec<u8> {
        format!("{}head", self.base).into_bytes()
    }

    fn snapshot(&self, snapshot: &str) -> Vec<u8> {
        format!("{}{snapshot}/", self.base).into_bytes()
    }

    fn own_key(&self, snapshot: &str) -> Vec<u8> {
        format!("{}{snapshot}/key/{}", self.base, hex::encode(&self.replica)).into_bytes()
    }

    fn entries(&self, snapshot: &str) -> Vec<u8> {
        format!("{}{snapshot}/kv/", self.base).into_bytes()
    }

    fn entry(&self, snapshot: &str, key: &str) -> Vec<u8> {
        format!("{}{snapshot}/kv/{key}", self.base).into_bytes()
    }

    fn damaged(&self, reason: impl ToString) -> StoreError {
        StoreError::Damaged {
            path: PathBuf::from(format!("etcd:{}", self.base)),
            reason: reason.to_string(),
        }
    }

    /// The head and where it is; None if there is no state.
    fn read_head(&self) -> Result<Option<(Head, i64)>, StoreError> {
        let found = self.client.get(&self.head())?;
        let Some(found) = found else { return Ok(None) };
        let head = serde_json::from_slice(&found.value).map_err(|error| self.damaged(error))?;
        Ok(Some((head, found.mod_revision)))
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct Head {
    header: Header,
    revision: u64,
    /// The digest, sealed with all before it as context.
    digest: crate::json::Bytes,
}

impl Head {
    fn new(
        header: &Header,
        revision: u64,
        digest: &[u8; 32],
        key: &Key,
    ) -> Result<Head, StoreError> {
        let sealed = key.seal(&Head::context(header, revision), digest)?;
        Ok(Head {
            header: header.clone(),
            revision,
            digest: crate::json::Bytes(sealed),
        })
    }

    fn context(header: &Header, revision: u64) -> Vec<u8> {
        let mut context = serde_json::to_vec(header).unwrap_or_default();
        context.extend(revision.to_le_bytes());
        context
    }

    fn open(&self, key: &Key) -> Result<[u8; 32], StoreError> {
        let digest = key.open(&Head::context(&self.header, self.revision), &self.digest.0)?;
        digest
            .try_into()
            .map_err(|_| StoreError::Seal(crate::seal::SealError::Open))
    }
}

pub struct EtcdStore {
    place: Arc<Names>,
    worker: Option<Worker<Replica>>,
    /// Where the head was when it was last read; 0: there was none.
    head_at: i64,
    key: Option<Key>,
}

fn key_context(header: &Header) -> Vec<u8> {
    format!("bulla data key of {} in {}", header.state, header.snapshot).into_bytes()
}

impl EtcdStore {
    fn start(&mut self, replica: Replica, epochs: Epochs) {
        self.stop();
        self.key = Some(replica.key.clone());
        self.worker = Some(Worker::start(replica, epochs));
    }

    fn stop(&mut self) -> Option<(Replica, Epochs)> {
        self.worker.take()?.stop()
    }

    /// Begins or goes on under a new header, all in one transaction.
    fn install(
        &mut self,
        keys: &dyn SealingKeys,
        key: &Key,
        header: Header,
        content: Content,
        epochs: Epochs,
    ) -> Result<(), StoreError> {
        let mut replica = Replica::new(self.place.clone(), key.clone(), header)?;
        let sealed = keys
            .key(replica.header.seal_mode)?
            .seal(&key_context(&replica.header), &key.0)?;
        let (client, snapshot) = (&self.place.client, replica.header.snapshot.clone());
        client.put(&self.place.own_key(&snapshot), &sealed)?;
        let mut operations = Vec::new();
        let mut bytes = 0;
        for (name, value) in content {
            let sealed = replica.set(&name, Some(value))?;
            bytes += sealed.len();
            operations.push(Operation::Put(self.place.entry(&snapshot, &name), sealed));
            if operations.len() >= MOST_OPERATIONS || bytes >= MOST_BYTES / 2 {
                client.write(&operations)?;
                operations.clear();
                bytes = 0;
            }
        }
        client.write(&operations)?;
        let old = self.place.read_head()?;
        let head = Operation::Put(self.place.head(), replica.head()?);
        let compare = Compare {
            key: self.place.head(),
            mod_revision: self.head_at,
        };
        let at = match client.transact(&compare, &[head])? {
            Some(at) => at,
            None => {
                client.write(&[Operation::DeletePrefix(self.place.snapshot(&snapshot))])?;
                return Err(StoreError::Conflict);
            }
        };
        if let Some((old, _)) = old {
            let gone = self.place.snapshot(&old.header.snapshot);
            client.write(&[Operation::DeletePrefix(gone)])?;
        }
        self.head_at = at;
        replica.head_at = at;
        self.start(replica, epochs);
        Ok(())
    }
}

impl Store for EtcdStore {
    fn load(&mut self, keys: &dyn SealingKeys) -> Result<Opened, StoreError> {
        self.stop();
        let Some((head, at)) = self.place.read_head()? else {
            self.head_at = 0;
            return Ok(Opened::Empty);
        };
        self.head_at = at;
        let header = head.header;
        let key = self
            .place
            .client
            .get(&self.place.own_key(&header.snapshot))?
            .and_then(|sealed| {
                let sealing = keys.key(header.seal_mode).ok()?;
                let plain = sealing.open(&key_context(&header), &sealed.value).ok()?;
                Some(Key(plain.as_slice().try_into().ok()?))
            });
        let content = match key {
            Some(key) => Some(self.unseal(&key)?),
            None => None,
        };
        Ok(Opened::State { header, content })
    }

    fn unseal(&mut self, key: &Key) -> Result<Content, StoreError> {
        self.stop();
        let (head, _) = self
            .place
            .read_head()?
            .ok_or_else(|| self.place.damaged("it is gone"))?;
        // A wrong key is the uploader's mistake, not damage.
        head.open(key)?;
        let mut replica = Replica::new(self.place.clone(), key.clone(), head.header)?;
        replica.read_all()?;
        self.head_at = replica.head_at;
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
            revision: old.revision + 1,
            ..Header::new(seal_mode, recovery)?
        };
        let header = Header {
            state: old.header.state.clone(),
            ..header
        };
        let mut content = old.content();
        batch.apply(&mut content);
        self.head_at = old.head_at;
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
            .place
            .read_head()?
            .ok_or_else(|| self.place.damaged("it is gone"))?;
        let sealed = keys
            .key(head.header.seal_mode)?
            .seal(&key_context(&head.header), &key.0)?;
        self.place
            .client
            .put(&self.place.own_key(&head.header.snapshot), &sealed)
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
                let place = self.place.clone();
                let known = self.head_at;
                std::thread::spawn(move || {
                    let answer =
                        place
                            .read_head()
                            .map(|head| match head.map_or(0, |(_, at)| at) == known {
                                true => Refreshed::Unchanged,
                                false => Refreshed::Replaced,
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

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What this replica knows of the state.
struct Replica {
    place: Arc<Names>,
    key: Key,
    mac: Key,
    header: Header,
    revision: u64,
    head_at: i64,
    digest: [u8; 32],
    entries: HashMap<String, Entry>,
}

struct Entry {
    value: Option<Vec<u8>>,
    mac: [u8; 32],
}

impl Replica {
    fn new(place: Arc<Names>, key: Key, header: Header) -> Result<Replica, StoreError> {
        let mut mac = Key([0; 32]);
        // 32 bytes are always within HKDF's range.
        let _ = Hkdf::<Sha256>::new(Some(b"bulla etcd digest"), &key.0).expand(b"", &mut mac.0);
        Ok(Replica {
            place,
            key,
            mac,
            revision: header.revision,
            header,
            head_at: 0,
            digest: [0; 32],
            entries: HashMap::new(),
        })
    }

    fn context(&self, name: &str) -> Vec<u8> {
        format!("{} {name}", self.header.snapshot).into_bytes()
    }

    /// HMAC by way of HKDF-Extract, which is one.
    fn mac(&self, name: &str, sealed: &[u8]) -> [u8; 32] {
        let message = [
            &(name.len() as u64).to_le_bytes()[..],
            name.as_bytes(),
            sealed,
        ]
        .concat();
        Hkdf::<Sha256>::extract(Some(&self.mac.0), &message)
            .0
            .into()
    }

    fn toggle(&mut self, mac: &[u8; 32]) {
        self.digest.iter_mut().zip(mac).for_each(|(a, b)| *a ^= b);
    }

    /// Takes a sealed entry in, or refuses it.
    fn learn(&mut self, name: String, sealed: &[u8]) -> Result<(), StoreError> {
        let plain = self
            .key
            .open(&self.context(&name), sealed)
            .map_err(|_| self.place.damaged(format!("entry {name} was changed")))?;
        // The first byte tells values from removed ones, whose memory must stay.
        let value = match plain.split_first() {
            Some((1, value)) => Some(value.to_vec()),
            _ => None,
        };
        let mac = self.mac(&name, sealed);
        self.toggle(&mac);
        if let Some(old) = self.entries.insert(name, Entry { value, mac }) {
            self.toggle(&old.mac);
        }
        Ok(())
    }

    /// Changes an entry here; returns what to write.
    fn set(&mut self, name: &str, value: Option<Vec<u8>>) -> Result<Vec<u8>, StoreError> {
        let plain = match &value {
            Some(value) => [&[1][..], value].concat(),
            None => vec![0],
        };
        let sealed = self.key.seal(&self.context(name), &plain)?;
        let mac = self.mac(name, &sealed);
        self.toggle(&mac);
        if let Some(old) = self.entries.insert(name.to_owned(), Entry { value, mac }) {
            self.toggle(&old.mac);
        }
        Ok(sealed)
    }

    fn head(&self) -> Result<Vec<u8>, StoreError> {
        let head = Head::new(&self.header, self.revision, &self.digest, &self.key)?;
        Ok(serde_json::to_vec(&head).unwrap_or_default())
    }

    fn read_all(&mut self) -> Result<(), StoreError> {
        self.entries.clear();
        self.digest = [0; 32];
        self.head_at = 0;
        match self.take_in()? {
            true => Ok(()),
            false => Err(StoreError::Conflict),
        }
    }

    /// Reads what was written since; false if another state, or the same under another key, is
    /// there now.
    fn take_in(&mut self) -> Result<bool, StoreError> {
        let place = self.place.clone();
        let prefix = place.entries(&self.header.snapshot);
        let (head, entries) =
            place
                .client
                .get_with_prefix(&place.head(), &prefix, self.head_at + 1)?;
        let Some(found) = head else { return Ok(false) };
        let head: Head =
            serde_json::from_slice(&found.value).map_err(|error| place.damaged(error))?;
        if head.header.snapshot != self.header.snapshot {
            return Ok(false);
        }
        if head.revision < self.revision {
            return Err(place.damaged("it went back: an old copy was put in its place"));
        }
        let digest = head
            .open(&self.key)
            .map_err(|_| place.damaged("its head was changed"))?;
        let base = prefix.len();
        for entry in entries {
            let name = String::from_utf8(entry.key[base..].to_vec())
                .map_err(|_| place.damaged("an entry's name is not text"))?;
            self.learn(name, &entry.value)?;
        }
        if digest != self.digest {
            return Err(place.damaged(
                "its entries do not belong together: some were put back, left out or exchanged",
            ));
        }
        self.revision = head.revision;
        self.head_at = found.mod_revision;
        Ok(true)
    }
}

impl SharedState for Replica {
    fn fits(&self, changes: usize, bytes: usize) -> bool {
        changes <= MOST_OPERATIONS && bytes <= MOST_BYTES
    }

    fn content(&self) -> Content {
        self.entries
            .iter()
            .filter_map(|(name, entry)| Some((name.clone(), entry.value.clone()?)))
            .collect()
    }

    /// Writes in one transaction. After a failure the replica is as it was.
    fn write(&mut self, changes: Changes) -> Result<u64, StoreError> {
        let mut undo: Vec<(String, Option<Entry>)> = Vec::new();
        let before = (self.digest, self.revision);
        let mut operations = Vec::new();
        let mut result = Ok(());
        for (key, value) in changes {
            let old = self.entries.get(&key).map(|entry| Entry {
                value: entry.value.clone(),
                mac: entry.mac,
            });
            match self.set(&key, value) {
                Ok(sealed) => {
                    let at = self.place.entry(&self.header.snapshot, &key);
                    operations.push(Operation::Put(at, sealed));
                    undo.push((key, old));
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.revision += 1;
        let written = result.and_then(|()| {
            operations.push(Operation::Put(self.place.head(), self.head()?));
            let compare = Compare {
                key: self.place.head(),
                mod_revision: self.head_at,
            };
            self.place
                .client
                .transact(&compare, &operations)?
                .ok_or(StoreError::Conflict)
        });
        match written {
            Ok(at) => {
                self.head_at = at;
                Ok(self.revision)
            }
            Err(error) => {
                for (key, old) in undo.into_iter().rev() {
                    match old {
                        Some(old) => self.entries.insert(key, old),
                        None => self.entries.remove(&key),
                    };
                }
                (self.digest, self.revision) = before;
                Err(error)
            }
        }
    }

    fn read_news(&mut self) -> Result<News, StoreError> {
        let before = self.head_at;
        let is_same = match self.take_in() {
            // A deletion by hand, or a lie: all of it must be right then.
            Err(StoreError::Damaged { .. }) => self.read_all().map(|()| true)?,
            other => other?,
        };
        Ok(match is_same {
            false => News::Replaced,
            true if self.head_at == before => News::None,
            true => News::Changes,
        })
    }
}
