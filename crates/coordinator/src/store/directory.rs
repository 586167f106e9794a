//! The embedded store: one directory.
//!
//! - `sealed_data`: a snapshot. A header in the clear (what recovery needs), then the content,
//!   sealed under the data key with the header as context. Replaced by rename.
//! - `journal-ID`: what was committed since the snapshot ID; appended and synced.
//! - `sealed_key`: the data key, sealed under the enclave's key. Without it the state needs
//!   recovery. `sealed_key.next` is that of the snapshot which is about to be put in place.
//! - `lock`: held while a coordinator runs.
//!
//! One thread writes. It takes all batches that wait, writes them at once and syncs once, so that
//! the disk's latency is shared; a batch is acknowledged only then. After an error nothing more is
//! written: what is on the disk is then not known, and the next start reads it anew.

use super::anchor::{self, Anchor, FileAnchor, Mark, replace_file, sync_directory};
use super::journal::Position;
use super::{Batch, Content, Place, Receipt, Store, StoreError, io};
use crate::manifest::SealMode;
use crate::recovery::Plan;
use crate::seal::{Key, SealError, SealingKeys};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use tokio::sync::oneshot;

pub const SEALED_DATA: &str = "sealed_data";
pub const SEALED_KEY: &str = "sealed_key";
const NEXT_KEY: &str = "sealed_key.next";
const MAGIC: &[u8; 8] = b"BULLAST1";
/// A journal that is longer than this, and than the snapshot, is folded into a new snapshot.
const FOLD_BYTES: u64 = 4 << 20;
/// Batches that are written together at most.
const GROUP: usize = 1024;
const MOST_HEADER: usize = 16 << 20;

/// What is kept in the clear.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Header {
    /// Random; the state's name for its anchor.
    pub state: String,
    /// Random; the snapshot's name for its journal.
    pub snapshot: String,
    pub revision: u64,
    pub seal_mode: SealMode,
    pub recovery: Plan,
}

impl Header {
    /// The header of a state that begins now.
    pub fn new(seal_mode: SealMode, recovery: Plan) -> Result<Header, StoreError> {
        Ok(Header {
            state: random_id()?,
            snapshot: random_id()?,
            revision: 1,
            seal_mode,
            recovery,
        })
    }
}

fn random_id() -> Result<String, StoreError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(SealError::Random)?;
    Ok(hex::encode(id))
}

/// A directory that is locked for this process.
pub struct DirectoryStore {
    path: PathBuf,
    anchor: Option<Box<dyn Anchor>>,
    _lock: Option<File>,
    writer: Option<Writer>,
}

/// What a start finds.
pub enum Opened {
    Empty,
    /// A state, and its content if it could be unsealed.
    State {
        header: Header,
        content: Option<Content>,
    },
}

/// Stores of namespaces below a coordinator's own directory, each with an anchor beside its anchor.
pub struct DirectoryPlace {
    pub directory: PathBuf,
    pub anchor: Option<PathBuf>,
}

impl Place for DirectoryPlace {
    fn open(&self, id: &str) -> Result<Box<dyn Store>, StoreError> {
        let anchor = FileAnchor::of(self.anchor.as_deref(), id);
        let path = self.directory.join("namespaces").join(id);
        Ok(Box::new(DirectoryStore::open(&path, anchor)?))
    }

    fn remove(&self, id: &str) -> Result<(), StoreError> {
        let path = self.directory.join("namespaces").join(id);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(&path)(error)),
            _ => Ok(()),
        }
    }
}

impl Store for DirectoryStore {
    fn load(&mut self, keys: &dyn SealingKeys) -> Result<Opened, StoreError> {
        DirectoryStore::load(self, keys)
    }

    fn unseal(&mut self, key: &Key) -> Result<Content, StoreError> {
        DirectoryStore::unseal(self, key)
    }

    fn begin(
        &mut self,
        keys: &dyn SealingKeys,
        key: &Key,
        header: Header,
        content: Content,
    ) -> Result<(), StoreError> {
        DirectoryStore::begin(self, keys, key, header, content)
    }

    fn rekey(
        &mut self,
        keys: &dyn SealingKeys,
        key: &Key,
        seal_mode: SealMode,
        recovery: Plan,
        batch: Batch,
    ) -> Result<bool, StoreError> {
        DirectoryStore::rekey(self, keys, key, seal_mode, recovery, batch)
    }

    fn rewrite_key(&self, keys: &dyn SealingKeys, key: &Key) -> Result<(), StoreError> {
        DirectoryStore::rewrite_key(self, keys, key)
    }

    fn commit(&self, batch: Batch) -> Receipt {
        DirectoryStore::commit(self, batch)
    }
}

struct Writer {
    queue: mpsc::Sender<Message>,
    thread: std::thread::JoinHandle<Disk>,
}

/// A batch, and where its revision goes.
type Message = (Batch, oneshot::Sender<Result<u64, StoreError>>);

impl DirectoryStore {
    /// Locks a directory, making it if need be.
    pub fn open(
        path: &Path,
        anchor: Option<Box<dyn Anchor>>,
    ) -> Result<DirectoryStore, StoreError> {
        fs::create_dir_all(path).map_err(io(path))?;
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path).map_err(io(&lock_path))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::Locked(path.to_owned()))?;
        Ok(DirectoryStore {
            path: path.to_owned(),
            anchor,
            _lock: Some(lock),
            writer: None,
        })
    }

    /// Reads the state and begins to write if it can be unsealed.
    pub fn load(&mut self, keys: &dyn SealingKeys) -> Result<Opened, StoreError> {
        let Some((header, sealed_data)) = self.read_snapshot()? else {
            return Ok(Opened::Empty);
        };
        let sealing = keys.key(header.seal_mode).ok();
        let context = serde_json::to_vec(&header).unwrap_or_default();
        let mut candidates: Vec<(PathBuf, Key)> = [SEALED_KEY, NEXT_KEY]
            .iter()
            .filter_map(|name| {
                let path = self.path.join(name);
                let sealed = fs::read(&path).ok()?;
                let key = sealing
                    .as_ref()?
                    .open(&key_context(&header), &sealed)
                    .ok()?;
                Some((path, Key(key.as_slice().try_into().ok()?)))
            })
            .collect();
        // A crash while the key changes leaves two keys for one state: the snapshot tells which is
        // its own. If it is neither's, it is damaged, which opening it with the first will say.
        let own = candidates
            .iter()
            .position(|(_, key)| key.open(&context, &sealed_data).is_ok());
        let key = match candidates.is_empty() {
            true => None,
            false => Some(candidates.swap_remove(own.unwrap_or(0))),
        };
        let Some((key_path, key)) = key else {
            return Ok(Opened::State {
                header,
                content: None,
            });
        };
        if key_path.ends_with(NEXT_KEY) {
            self.finish_key()?;
        }
        let content = self.unseal(&key)?;
        Ok(Opened::State {
            header,
            content: Some(content),
        })
    }

    /// Opens the state with its data key, and begins to write.
    pub fn unseal(&mut self, key: &Key) -> Result<Content, StoreError> {
        let path = self.path.join(SEALED_DATA);
        let Some((header, sealed)) = self.read_snapshot()? else {
            return Err(StoreError::Damaged {
                path,
                reason: "it is gone".to_owned(),
            });
        };
        let context = serde_json::to_vec(&header).unwrap_or_default();
        let plain = zeroize::Zeroizing::new(key.open(&context, &sealed)?);
        let mut content: Content = serde_json::from_slice::<
            std::collections::BTreeMap<String, crate::json::Bytes>,
        >(&plain)
        .map_err(|error| StoreError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?
        .into_iter()
        .map(|(key, value)| (key, value.0))
        .collect();
        let journal_path = self.journal_path(&header);
        let mut journal = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(&journal_path)
            .map_err(io(&journal_path))?;
        let mut bytes = Vec::new();
        journal.read_to_end(&mut bytes).map_err(io(&journal_path))?;
        let mut position = Position::after_snapshot(&header.snapshot, header.revision);
        let (batches, whole) = position.replay(key, &bytes, &journal_path)?;
        batches
            .into_iter()
            .for_each(|batch| batch.apply(&mut content));
        if whole < bytes.len() {
            journal.set_len(whole as u64).map_err(io(&journal_path))?;
            journal.sync_all().map_err(io(&journal_path))?;
        }
        if let Some(anchor) = &self.anchor {
            let found = Mark {
                state: header.state.clone(),
                revision: position.revision,
                next: None,
            };
            anchor::check(anchor.as_ref(), &found)?;
        }
        self.remove_other_journals(&header);
        let anchor = self.anchor.take();
        self.start(Disk {
            path: self.path.clone(),
            snapshot_bytes: sealed.len() as u64,
            journal_bytes: whole as u64,
            content: content.clone(),
            key: key.clone(),
            header,
            position,
            journal,
            anchor,
            failed: false,
        });
        Ok(content)
    }

    /// Throws away what is there and begins a new state.
    pub fn begin(
        &mut self,
        keys: &dyn SealingKeys,
        key: &Key,
        header: Header,
        content: Content,
    ) -> Result<(), StoreError> {
        self.stop();
        if let Some(anchor) = &mut self.anchor
            && let Some(old) = anchor.read()?
        {
            anchor.write(&Mark {
                next: Some(header.state.clone()),
                ..old
            })?;
        }
        self.install(keys, key, header, content)
    }

    /// Goes on with the same state under a new key, after one more batch. False if nothing is
    /// being written.
    pub fn rekey(
        &mut self,
        keys: &dyn SealingKeys,
        key: &Key,
        seal_mode: SealMode,
        recovery: Plan,
        batch: Batch,
    ) -> Result<bool, StoreError> {
        let Some(disk) = self.stop() else {
            return Ok(false);
        };
        if disk.failed {
            return Err(StoreError::Failed);
        }
        let header = Header {
            state: disk.header.state,
            snapshot: random_id()?,
            revision: disk.position.revision + 1,
            seal_mode,
            recovery,
        };
        let mut content = disk.content;
        batch.apply(&mut content);
        self.install(keys, key, header, content)?;
        Ok(true)
    }

    /// Puts a snapshot and its key in place, and begins to write behind it. Whenever this is
    /// interrupted, the old snapshot still has its key, or the new one has it.
    fn install(
        &mut self,
        keys: &dyn SealingKeys,
        key: &Key,
        header: Header,
        content: Content,
    ) -> Result<(), StoreError> {
        let sealed = seal_key(keys, key, &header)?;
        replace_file(&self.path.join(NEXT_KEY), &sealed)?;
        let journal = create_journal(&self.journal_path(&header))?;
        let snapshot_bytes = write_snapshot(&self.path, key, &header, &content)?;
        self.finish_key()?;
        self.remove_other_journals(&header);
        let mut anchor = self.anchor.take();
        if let Some(anchor) = &mut anchor {
            anchor.write(&Mark {
                state: header.state.clone(),
                revision: header.revision,
                next: None,
            })?;
        }
        let position = Position::after_snapshot(&header.snapshot, header.revision);
        self.start(Disk {
            path: self.path.clone(),
            snapshot_bytes,
            journal_bytes: 0,
            content,
            key: key.clone(),
            header,
            position,
            journal,
            anchor,
            failed: false,
        });
        Ok(())
    }

    fn finish_key(&self) -> Result<(), StoreError> {
        let path = self.path.join(SEALED_KEY);
        fs::rename(self.path.join(NEXT_KEY), &path).map_err(io(&path))?;
        sync_directory(&path)
    }

    /// Seals the data key of the state that is there for this enclave: after recovery.
    pub fn rewrite_key(&self, keys: &dyn SealingKeys, key: &Key) -> Result<(), StoreError> {
        match self.read_snapshot()? {
            Some((header, _)) => {
                replace_file(&self.path.join(SEALED_KEY), &seal_key(keys, key, &header)?)
            }
            None => Err(StoreError::Failed),
        }
    }

    /// Queues a batch; the receiver gets its revision when it is durable.
    pub fn commit(&self, batch: Batch) -> oneshot::Receiver<Result<u64, StoreError>> {
        let (sender, receiver) = oneshot::channel();
        self.send((batch, sender));
        receiver
    }

    fn send(&self, message: Message) {
        let refused = match &self.writer {
            Some(writer) => writer.queue.send(message).err().map(|error| error.0),
            None => Some(message),
        };
        if let Some((_, reply)) = refused {
            let _ = reply.send(Err(StoreError::Failed));
        }
    }

    fn start(&mut self, disk: Disk) {
        self.stop();
        let (queue, messages) = mpsc::channel();
        let thread = std::thread::spawn(move || disk.run(&messages));
        self.writer = Some(Writer { queue, thread });
    }

    /// Ends the writer, after all that was queued.
    fn stop(&mut self) -> Option<Disk> {
        let Writer { queue, thread } = self.writer.take()?;
        drop(queue);
        let mut disk = thread.join().ok()?;
        self.anchor = disk.anchor.take();
        Some(disk)
    }

    fn read_snapshot(&self) -> Result<Option<(Header, Vec<u8>)>, StoreError> {
        let path = self.path.join(SEALED_DATA);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(&path)(error)),
        };
        parse_snapshot(&bytes)
            .map(Some)
            .ok_or_else(|| StoreError::Damaged {
                path,
                reason: "it has no valid header".to_owned(),
            })
    }

    fn journal_path(&self, header: &Header) -> PathBuf {
        self.path.join(format!("journal-{}", header.snapshot))
    }

    fn remove_other_journals(&self, header: &Header) {
        remove_other_journals(&self.path, &header.snapshot);
    }
}

impl Drop for DirectoryStore {
    fn drop(&mut self) {
        self.stop();
    }
}

fn seal_key(keys: &dyn SealingKeys, key: &Key, header: &Header) -> Result<Vec<u8>, StoreError> {
    Ok(keys
        .key(header.seal_mode)?
        .seal(&key_context(header), &key.0)?)
}

fn key_context(header: &Header) -> Vec<u8> {
    format!("data key of {}", header.state).into_bytes()
}

/// Left over from a crash between two steps; failing to remove them harms nothing.
fn remove_other_journals(directory: &Path, snapshot: &str) {
    let keep = format!("journal-{snapshot}");
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("journal-") && name != keep {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn parse_snapshot(bytes: &[u8]) -> Option<(Header, Vec<u8>)> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    if magic != MAGIC || length > MOST_HEADER {
        return None;
    }
    let (header, sealed) = rest.split_at_checked(length)?;
    Some((serde_json::from_slice(header).ok()?, sealed.to_vec()))
}

fn write_snapshot(
    directory: &Path,
    key: &Key,
    header: &Header,
    content: &Content,
) -> Result<u64, StoreError> {
    let context = serde_json::to_vec(header).unwrap_or_default();
    let plain: std::collections::BTreeMap<&String, crate::json::Bytes> = content
        .iter()
        .map(|(key, value)| (key, crate::json::Bytes(value.clone())))
        .collect();
    let plain = zeroize::Zeroizing::new(serde_json::to_vec(&plain).unwrap_or_default());
    let sealed = key.seal(&context, &plain)?;
    let mut file = Vec::with_capacity(sealed.len() + context.len() + 12);
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&(context.len() as u32).to_le_bytes());
    file.extend_from_slice(&context);
    file.extend_from_slice(&sealed);
    replace_file(&directory.join(SEALED_DATA), &file)?;
    Ok(sealed.len() as u64)
}

fn create_journal(path: &Path) -> Result<File, StoreError> {
    let journal = File::options()
        .append(true)
        .create(true)
        .open(path)
        .map_err(io(path))?;
    journal.sync_all().map_err(io(path))?;
    sync_directory(path)?;
    Ok(journal)
}

/// The writing thread's state.
struct Disk {
    path: PathBuf,
    content: Content,
    key: Key,
    header: Header,
    position: Position,
    journal: File,
    snapshot_bytes: u64,
    journal_bytes: u64,
    anchor: Option<Box<dyn Anchor>>,
    failed: bool,
}

impl Disk {
    fn run(mut self, messages: &mpsc::Receiver<Message>) -> Disk {
        while let Ok(first) = messages.recv() {
            let mut batches = Vec::new();
            let mut replies = Vec::new();
            for message in std::iter::once(first)
                .chain(messages.try_iter())
                .take(GROUP)
            {
                let (batch, reply) = message;
                batches.push(batch);
                replies.push(reply);
            }
            let before = self.position.revision;
            let result = match self.failed {
                true => Err(StoreError::Failed),
                false => self.write(batches),
            };
            if let Err(error) = &result {
                eprintln!("bulla coordinator: the store failed: {error}");
            }
            for (number, reply) in replies.into_iter().enumerate() {
                let revision = before + number as u64 + 1;
                let _ = reply.send(match &result {
                    Ok(()) => Ok(revision),
                    Err(StoreError::Io { path, error }) if !self.failed => Err(StoreError::Io {
                        path: path.clone(),
                        error: error.kind().into(),
                    }),
                    Err(_) => Err(StoreError::Failed),
                });
            }
        }
        self
    }

    /// After an error `failed` says whether it is known what the disk has.
    fn write(&mut self, batches: Vec<Batch>) -> Result<(), StoreError> {
        let before = self.position.clone();
        self.failed = true;
        let mut records = Vec::new();
        for batch in &batches {
            self.position.append(&self.key, batch, &mut records)?;
        }
        let path = self.path.join(format!("journal-{}", self.header.snapshot));
        if !records.is_empty() {
            if let Err(error) = self.journal.write_all(&records) {
                // A full disk: what is there of it is taken back, and nothing has happened.
                self.journal
                    .set_len(self.journal_bytes)
                    .and_then(|()| self.journal.sync_all())
                    .map_err(io(&path))?;
                self.position = before;
                self.failed = false;
                return Err(io(&path)(error));
            }
            self.journal.sync_data().map_err(io(&path))?;
        }
        self.journal_bytes += records.len() as u64;
        batches
            .into_iter()
            .for_each(|batch| batch.apply(&mut self.content));
        if let Some(anchor) = &mut self.anchor {
            anchor.write(&Mark {
                state: self.header.state.clone(),
                revision: self.position.revision,
                next: None,
            })?;
        }
        if self.journal_bytes > FOLD_BYTES.max(self.snapshot_bytes) {
            self.fold()?;
        }
        self.failed = false;
        Ok(())
    }

    /// Writes a new snapshot, and goes on with an empty journal.
    fn fold(&mut self) -> Result<(), StoreError> {
        let mut header = self.header.clone();
        header.snapshot = random_id()?;
        header.revision = self.position.revision;
        // Without the room for it the journal goes on growing.
        match write_snapshot(&self.path, &self.key, &header, &self.content) {
            Err(StoreError::Io { path, error }) if error.kind() == ErrorKind::StorageFull => {
                let path = path.display();
                eprintln!("bulla coordinator: no new snapshot: {path}: {error}");
                return Ok(());
            }
            written => self.snapshot_bytes = written?,
        }
        let path = self.path.join(format!("journal-{}", header.snapshot));
        self.journal = create_journal(&path)?;
        self.journal_bytes = 0;
        self.position = Position::after_snapshot(&header.snapshot, header.revision);
        remove_other_journals(&self.path, &header.snapshot);
        self.header = header;
        Ok(())
    }
}
