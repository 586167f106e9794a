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

use super::anchor::Mark;
use super::etcd_client::{Compare, EtcdClient, Operation};
use super::http::ClientTls;
use super::shared::{self, Medium, SharedStore};
use super::worker::{Changes, News, SharedState};
use super::{Content, FileAnchor, Header, Place, Store, StoreError};
use crate::seal::Key;
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Batches that are written together at most; etcd allows 128 operations in a transaction, and a
/// request of 1.5 MiB.
const MOST_OPERATIONS: usize = 100;
const MOST_BYTES: usize = 1 << 20;

/// Where a cluster's stores are.
pub struct EtcdPlace {
    client: Arc<EtcdClient>,
    prefix: String,
    replica: String,
    anchor: Option<PathBuf>,
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
            anchor: None,
        })
    }

    /// Remembers in a file how new the state was, for when this replica starts.
    pub fn anchored(self, anchor: Option<PathBuf>) -> EtcdPlace {
        EtcdPlace { anchor, ..self }
    }

    fn store(&self, id: &str) -> SharedStore<Names> {
        let names = Names {
            client: self.client.clone(),
            base: format!("{}/{id}/", self.prefix),
            replica: self.replica.clone(),
        };
        SharedStore::new(names, FileAnchor::of(self.anchor.as_deref(), id))
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
    fn head_key(&self) -> Vec<u8> {
        format!("{}head", self.base).into_bytes()
    }

    fn snapshot(&self, snapshot: &str) -> Vec<u8> {
        format!("{}{snapshot}/", self.base).into_bytes()
    }

    fn key_of(&self, snapshot: &str) -> Vec<u8> {
        format!("{}{snapshot}/key/{}", self.base, hex::encode(&self.replica)).into_bytes()
    }

    fn entries(&self, snapshot: &str) -> Vec<u8> {
        format!("{}{snapshot}/kv/", self.base).into_bytes()
    }

    fn entry(&self, snapshot: &str, key: &str) -> Vec<u8> {
        format!("{}{snapshot}/kv/{key}", self.base).into_bytes()
    }
}

impl Medium for Names {
    type Head = Head;
    type At = i64;
    type Replica = Replica;

    fn read_head(&self) -> Result<Option<(Head, i64)>, StoreError> {
        let found = self.client.get(&self.head_key())?;
        let Some(found) = found else { return Ok(None) };
        let head = serde_json::from_slice(&found.value).map_err(|error| self.damaged(error))?;
        Ok(Some((head, found.mod_revision)))
    }

    fn own_key(&self, head: &Head) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.client.get(&self.key_of(&head.header.snapshot))?;
        Ok(found.map(|found| found.value))
    }

    fn put_own_key(&self, head: &Head, sealed: &[u8]) -> Result<(), StoreError> {
        self.client.put(&self.key_of(&head.header.snapshot), sealed)
    }

    fn read(self: &Arc<Self>, key: &Key) -> Result<Replica, StoreError> {
        let (head, _) = self
            .read_head()?
            .ok_or_else(|| self.damaged("it is gone"))?;
        // A wrong key is the uploader's mistake, not damage.
        head.open(key)?;
        let mut replica = Replica::new(self.clone(), key.clone(), head.header)?;
        replica.read_all()?;
        Ok(replica)
    }

    fn install(
        self: &Arc<Self>,
        seal: &dyn Fn(&Head) -> Result<Vec<u8>, StoreError>,
        key: &Key,
        header: Header,
        content: Content,
        replaces: Option<&i64>,
    ) -> Result<Replica, StoreError> {
        let mut replica = Replica::new(self.clone(), key.clone(), header)?;
        let (client, snapshot) = (&self.client, replica.header.snapshot.clone());
        let begun = replica.head()?;
        self.put_own_key(&begun, &seal(&begun)?)?;
        let mut operations = Vec::new();
        let mut bytes = 0;
        for (name, value) in content {
            let sealed = replica.set(&name, Some(value))?;
            bytes += sealed.len();
            operations.push(Operation::Put(self.entry(&snapshot, &name), sealed));
            if operations.len() >= MOST_OPERATIONS || bytes >= MOST_BYTES / 2 {
                client.write(&operations)?;
                operations.clear();
                bytes = 0;
            }
        }
        client.write(&operations)?;
        let old = self.read_head()?;
        let compare = Compare {
            key: self.head_key(),
            mod_revision: replaces.copied().unwrap_or_default(),
        };
        let Some(at) = client.transact(&compare, &[replica.put_head()?])? else {
            client.write(&[Operation::DeletePrefix(self.snapshot(&snapshot))])?;
            return Err(StoreError::Conflict);
        };
        if let Some((old, _)) = old {
            let gone = self.snapshot(&old.header.snapshot);
            client.write(&[Operation::DeletePrefix(gone)])?;
        }
        replica.head_at = at;
        Ok(replica)
    }

    fn damaged(&self, reason: impl ToString) -> StoreError {
        StoreError::Damaged {
            path: PathBuf::from(format!("etcd:{}", self.base)),
            reason: reason.to_string(),
        }
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

impl shared::Head for Head {
    fn header(&self) -> &Header {
        &self.header
    }

    fn key_context(&self) -> Vec<u8> {
        let Header {
            state, snapshot, ..
        } = &self.header;
        format!("bulla data key of {state} in {snapshot}").into_bytes()
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

    fn head(&self) -> Result<Head, StoreError> {
        Head::new(&self.header, self.revision, &self.digest, &self.key)
    }

    fn put_head(&self) -> Result<Operation, StoreError> {
        let head = serde_json::to_vec(&self.head()?).unwrap_or_default();
        Ok(Operation::Put(self.place.head_key(), head))
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
                .get_with_prefix(&place.head_key(), &prefix, self.head_at + 1)?;
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

impl shared::Replica for Replica {
    type At = i64;

    fn key(&self) -> &Key {
        &self.key
    }

    fn at(&self) -> i64 {
        self.head_at
    }
}

impl SharedState for Replica {
    fn mark(&self) -> Mark {
        Mark {
            state: self.header.state.clone(),
            revision: self.revision,
            next: None,
        }
    }

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
            operations.push(self.put_head()?);
            let compare = Compare {
                key: self.place.head_key(),
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
