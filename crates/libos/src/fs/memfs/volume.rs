//! Protected volumes: a file system in memory over what a volume keeps.
//!
//! What was written waits in memory, like a page cache, until it is committed: by fsync and its
//! relatives, when much has gathered, and at the end of the container. A commit takes everything
//! that waits in the whole file system, so that after a crash it is as it was at one moment.
//!
//! Lock order: committing → namespace → the list of what waits → an inode's.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use bulla_abi::config::VolumeKey;
use bulla_abi::hostcall::{DATA_SIZE, HostCall};
use bulla_abi::volume::{KEY, KEY_SIZE, object};
use bulla_sgx::{Attributes as EnclaveAttributes, KeyName, KeyRequest, flags, key_policy};
use bulla_vault::volume as vault;
use bulla_vault::volume::{
    Change, HostFault, KeyParameters, Object, Volume, VolumeError, VolumeHost,
};
use spin::Once;

use super::data::{PAGE, Page};
use super::node::{Content, Node};
use super::{MemFs, cache};
use crate::attestation::own_report;
use crate::errno::{EIO, ENOENT};
use crate::fs::dentry::namespace;
use crate::fs::inode::{FileType, Inode, Metadata, Time};
use crate::fs::lower::{LowerMetadata, LowerNode, Visit};
use crate::platform::platform;
use crate::sync::SpinLock;
use crate::sync::mutex::SleepLock;
use crate::{Result, Thread};

/// Most pages that wait for a commit: 32 MiB.
const WAITING_MAX: u64 = 8192;

/// The host's files of one volume.
struct HostFiles {
    volume: u64,
}

fn call(kind: HostCall, arguments: [u64; 3], most: u64) -> core::result::Result<u64, HostFault> {
    let [a, b, c] = arguments;
    let answer = platform().host_call(kind, [a, b, c, 0], None);
    u64::try_from(answer)
        .ok()
        .filter(|&answer| answer <= most)
        .ok_or(HostFault)
}

impl VolumeHost for HostFiles {
    fn size(&self, of: Object) -> core::result::Result<u64, HostFault> {
        let object = object(self.volume, of as u64);
        call(HostCall::VolumeSize, [object, 0, 0], i64::MAX as u64)
    }

    fn read(&self, of: Object, offset: u64, to: &mut [u8]) -> core::result::Result<(), HostFault> {
        read_object(object(self.volume, of as u64), offset, to)
    }

    fn write(&self, of: Object, offset: u64, from: &[u8]) -> core::result::Result<(), HostFault> {
        let mut done = 0usize;
        while done < from.len() {
            let part = &from[done..(done + DATA_SIZE as usize).min(from.len())];
            platform().host_put(0, part).map_err(|_| HostFault)?;
            let (len, at) = (part.len() as u64, offset + done as u64);
            let object = object(self.volume, of as u64);
            match call(HostCall::VolumeWrite, [object, len, at], len)? {
                0 => return Err(HostFault),
                written => done += written as usize,
            }
        }
        Ok(())
    }

    fn resize(&self, of: Object, len: u64) -> core::result::Result<(), HostFault> {
        let object = object(self.volume, of as u64);
        call(HostCall::VolumeResize, [object, len, 0], 0).map(drop)
    }

    fn sync(&self, of: Object) -> core::result::Result<(), HostFault> {
        let object = object(self.volume, of as u64);
        call(HostCall::VolumeSync, [object, 0, 0], 0).map(drop)
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        platform().sha256(parts)
    }

    fn random(&self, to: &mut [u8]) {
        platform().random(to);
    }
}

fn read_object(object: u64, offset: u64, to: &mut [u8]) -> core::result::Result<(), HostFault> {
    let mut done = 0usize;
    while done < to.len() {
        let end = (done + DATA_SIZE as usize).min(to.len());
        let len = (end - done) as u64;
        let read = call(
            HostCall::VolumeRead,
            [object, len, offset + done as u64],
            len,
        )? as usize;
        if read == 0 {
            return Err(HostFault);
        }
        let part = &mut to[done..done + read];
        platform().host_get(0, part).map_err(|_| HostFault)?;
        done += read;
    }
    Ok(())
}

/// The key for a volume with these parameters; `None` where there is none to be had.
fn derive(volume: u64, key: VolumeKey, parameters: &KeyParameters) -> Option<[u8; 32]> {
    let policy = match key {
        VolumeKey::InsecureHost => {
            let mut given = [0; KEY_SIZE];
            read_object(object(volume, KEY), 0, &mut given).ok()?;
            let parts: [&[u8]; 3] = [b"bulla volume key of the host", &given, &parameters.key_id];
            return Some(platform().sha256(&parts));
        }
        VolumeKey::Signer => key_policy::MRSIGNER,
        VolumeKey::Enclave => key_policy::MRENCLAVE,
    };
    let own = own_report().ok()?;
    let kss = own.attributes.flags & flags::KSS != 0;
    let request = KeyRequest {
        key_name: KeyName::Seal as u16,
        key_policy: policy | if kss { key_policy::CONFIG_ID } else { 0 },
        isv_svn: parameters.isv_svn,
        cet_attributes_mask: 0,
        cpu_svn: parameters.cpu_svn,
        attribute_mask: EnclaveAttributes {
            flags: u64::MAX,
            xfrm: u64::MAX,
        },
        key_id: parameters.key_id,
        misc_mask: u32::MAX,
        config_svn: parameters.config_svn,
    };
    let sealing = platform().key(&request.to_bytes()).ok()?;
    let parts: [&[u8]; 3] = [b"bulla volume key of the CPU", &sealing, &parameters.key_id];
    Some(platform().sha256(&parts))
}

/// A volume and what waits to be written to it.
pub struct Backing {
    volume: Volume<HostFiles>,
    /// For messages.
    target: String,
    waiting: SpinLock<BTreeMap<u64, Arc<Node>>>,
    committing: SleepLock<()>,
}

/// What of a file was written, to be let go when it is durable.
struct Written {
    node: Arc<Node>,
    size: u64,
    pages: Vec<(u64, Arc<Page>)>,
}

impl Backing {
    /// Opens the volume of this number, or makes it where the host has none: then its root has the
    /// owner and mode of `over`, the image's directory that it covers.
    pub fn open(
        number: u64,
        key: VolumeKey,
        target: &str,
        over: Option<Metadata>,
    ) -> core::result::Result<Arc<Backing>, VolumeError> {
        let own = own_report().map_err(|_| VolumeError::Host)?;
        let fresh = KeyParameters {
            key_id: [0; 32],
            cpu_svn: own.cpu_svn,
            isv_svn: own.isv_svn,
            config_svn: own.config_svn,
        };
        let now = Time::now();
        let stamp = (now.seconds, now.nanoseconds);
        let root = vault::Attributes {
            mode: FileType::Directory.mode() | over.map_or(0o755, |over| over.mode & 0o7777),
            uid: over.map_or(0, |over| over.uid),
            gid: over.map_or(0, |over| over.gid),
            links: 2,
            modified: stamp,
            changed: stamp,
            ..vault::Attributes::default()
        };
        let host = HostFiles { volume: number };
        let volume = Volume::open(host, fresh, root, &|parameters| {
            derive(number, key, parameters)
        })?;
        Ok(Arc::new(Backing {
            volume,
            target: target.into(),
            waiting: SpinLock::new(BTreeMap::new()),
            committing: SleepLock::new(()),
        }))
    }

    pub fn next_number(&self) -> u64 {
        self.volume.next_number()
    }

    /// The root directory.
    pub fn root(self: &Arc<Self>) -> Arc<dyn LowerNode> {
        Arc::new(VolumeNode {
            backing: self.clone(),
            number: vault::ROOT,
            stored: Once::new(),
        })
    }

    /// What a new inode of a file system stands over.
    pub fn lower_of_new(fs: &MemFs, number: u64) -> Option<Arc<dyn LowerNode>> {
        let backing = fs.backing.as_ref()?.clone();
        Some(Arc::new(VolumeNode {
            backing,
            number,
            stored: Once::new(),
        }))
    }

    /// An inode differs from what the volume keeps.
    pub fn mark(&self, node: Arc<Node>) {
        self.waiting.lock().insert(node.number(), node);
    }

    /// Whether it is time for a commit.
    pub fn is_full(&self, fs: &MemFs) -> bool {
        let pages = fs.pages.load(core::sync::atomic::Ordering::Relaxed);
        pages > WAITING_MAX.min(fs.budget.limit() / PAGE / 4)
    }

    /// Makes everything durable that waits.
    pub fn commit(&self, fs: &MemFs, thread: &Arc<Thread>) -> Result<()> {
        let _one = self.committing.lock(thread);
        let mut written = Vec::new();
        let mut changes = Vec::new();
        let names = namespace();
        let nodes = core::mem::take(&mut *self.waiting.lock());
        let mut gathered = Ok(());
        for node in nodes.values() {
            gathered = gathered.and_then(|()| self.gather(node, &mut changes, &mut written));
        }
        let next = fs.next_number.load(core::sync::atomic::Ordering::Relaxed);
        drop(names);
        if changes.is_empty() && gathered.is_ok() {
            return Ok(());
        }
        let kept = gathered.and_then(|()| {
            let committed = self
                .volume
                .commit(next, changes, |page: &Arc<Page>| &page.0);
            committed.map_err(|error| self.failed(error))
        });
        if let Err(error) = kept {
            // It still waits; what changed since then waits already.
            let mut waiting = self.waiting.lock();
            for (number, node) in nodes {
                waiting.entry(number).or_insert(node);
            }
            return Err(error);
        }
        for Written { node, size, pages } in written {
            let id = node.id();
            if let Content::File { data, .. } = &node.content {
                data.lock().settle(fs, size, pages, &mut |index, page| {
                    cache::replace(id, index, page);
                });
            }
        }
        Ok(())
    }

    /// What the volume is told of one inode.
    fn gather(
        &self,
        node: &Arc<Node>,
        changes: &mut Vec<Change<Arc<Page>>>,
        written: &mut Vec<Written>,
    ) -> Result<()> {
        let number = node.number();
        if node.is_unnamed() {
            if self.volume.node(number).is_some() {
                // Whoever has it open goes on reading it.
                if let Some(lower) = &node.lower {
                    lower.pin();
                }
                changes.push(Change::Remove(number));
            }
            return Ok(());
        }
        let content = match &node.content {
            Content::File { data, .. } => {
                let mut data = data.lock();
                let pages = data.snapshot();
                let (size, keep) = (data.size, data.lower_size);
                drop(data);
                written.push(Written {
                    node: node.clone(),
                    size,
                    pages: pages.clone(),
                });
                vault::Content::File { size, keep, pages }
            }
            Content::Directory(directory) => {
                let mut directory = directory.lock();
                directory.load()?;
                let mut entries = Vec::with_capacity(directory.len());
                directory.list(0, &mut |entry| {
                    entries.push(vault::Entry {
                        name: entry.name.to_vec(),
                        number: entry.inode,
                        kind: entry.kind.mode(),
                    });
                    true
                });
                vault::Content::Directory(entries)
            }
            Content::Link(target) => match target {
                Ok(target) => vault::Content::Link(target.to_vec()),
                Err(error) => return Err(*error),
            },
            Content::Fifo(_) | Content::Socket(_) | Content::Device => vault::Content::Other,
        };
        changes.push(Change::Set {
            number,
            attributes: node.kept_attributes()?,
            content,
        });
        Ok(())
    }

    fn failed(&self, error: VolumeError) -> crate::Errno {
        platform().log(0, &format!("the volume at {}: {error}", self.target));
        EIO
    }
}

/// An inode as the volume keeps it.
struct VolumeNode {
    backing: Arc<Backing>,
    number: u64,
    stored: Once<Arc<vault::Node>>,
}

impl VolumeNode {
    /// `None` while it has never been committed.
    fn stored(&self) -> Option<&Arc<vault::Node>> {
        if let Some(stored) = self.stored.get() {
            return Some(stored);
        }
        let stored = self.backing.volume.node(self.number)?;
        Some(self.stored.call_once(|| stored))
    }
}

impl LowerNode for VolumeNode {
    fn metadata(&self) -> LowerMetadata {
        let (attributes, size) = match self.stored() {
            Some(stored) => (stored.attributes(), stored.size()),
            None => Default::default(),
        };
        LowerMetadata {
            number: self.number,
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            links: attributes.links,
            size,
            rdev: attributes.rdev,
            modified: Time {
                seconds: attributes.modified.0,
                nanoseconds: attributes.modified.1,
            },
        }
    }

    /// Whole pages, as far as `to` reaches; the caller knows the file's size.
    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        let Some(stored) = self.stored() else {
            to.fill(0);
            return Ok(to.len());
        };
        let mut page = [0; PAGE as usize];
        let mut done = 0usize;
        while done < to.len() {
            let at = offset + done as u64;
            let from = (at % PAGE) as usize;
            let len = (page.len() - from).min(to.len() - done);
            let read = self.backing.volume.read_page(stored, at / PAGE, &mut page);
            read.map_err(|error| self.backing.failed(error))?;
            to[done..done + len].copy_from_slice(&page[from..from + len]);
            done += len;
        }
        Ok(done)
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        Ok(self.stored().ok_or(ENOENT)?.link())
    }

    fn read_dir(&self, visit: &mut Visit<'_>) -> Result<()> {
        for entry in self
            .stored()
            .map(|stored| stored.entries())
            .unwrap_or_default()
        {
            let kind = FileType::from_mode(entry.kind).unwrap_or(FileType::Regular);
            visit(&entry.name, entry.number, kind);
        }
        Ok(())
    }

    fn xattrs(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let stored = self.stored();
        Ok(stored
            .map(|stored| stored.attributes().xattrs)
            .unwrap_or_default())
    }

    fn open(&self, number: u64) -> Result<Arc<dyn LowerNode>> {
        let node = VolumeNode {
            backing: self.backing.clone(),
            number,
            stored: Once::new(),
        };
        // The volume's own record names it: if it were not there, that would be our mistake.
        node.stored().ok_or(EIO)?;
        Ok(Arc::new(node))
    }

    fn pin(&self) {
        self.stored();
    }
}
