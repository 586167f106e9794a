//! The in-memory file system: tmpfs, and the writable layer over the verified root.
//!
//! - [`MemFs`]: one instance: its device number, its budget, the inodes of its lower layer.
//! - [`node::Node`]: an inode. Its content may come from the lower layer until it is changed:
//!   directories copy the lower listing on first use (so no whiteouts are needed: a name that is
//!   removed is just not in the list any more), files keep only the pages that were written.
//! - [`data::Data`]: the pages of a regular file.
//!
//! Memory is charged to the budget before it is used: ENOSPC when it is spent.
//!
//! Lock order: directory → another directory's only under the namespace lock → attributes → data.

pub mod cache;
pub mod data;
pub mod directory;
mod file;
pub mod node;
mod shift;
pub mod volume;

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;

use super::inode::{FileType, FsStatistics, Inode, Owner};
use super::lower::LowerNode;
use crate::Result;
use crate::errno::ENOSPC;
use crate::sync::SpinLock;
use node::{Content, Node};
use volume::Backing;

/// What an inode costs beside its content, in bytes.
pub const NODE_COST: u64 = 512;
/// What a directory entry costs beside its name.
pub const ENTRY_COST: u64 = 128;

/// statfs magic numbers.
pub const TMPFS_MAGIC: u64 = 0x0102_1994;
pub const OVERLAY_MAGIC: u64 = 0x794c_7630;
/// "bull".
pub const VOLUME_MAGIC: u64 = 0x6c6c_7562;
pub const SYSFS_MAGIC: u64 = 0x6265_6572;
pub const DEVPTS_MAGIC: u64 = 0x1cd1;
pub const PROC_MAGIC: u64 = 0x9fa0;

/// Memory that file systems may use, shared between them.
pub struct Budget {
    used: AtomicU64,
    limit: u64,
}

impl Budget {
    pub const fn new(limit: u64) -> Budget {
        Budget {
            used: AtomicU64::new(0),
            limit,
        }
    }

    /// ENOSPC when the budget would be exceeded.
    pub fn charge(&self, bytes: u64) -> Result<()> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        if used.saturating_add(bytes) > self.limit {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(ENOSPC.because("the file systems' memory is used up"));
        }
        Ok(())
    }

    pub fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }
}

/// One in-memory file system.
pub struct MemFs {
    pub device: u64,
    pub magic: u64,
    budget: Arc<Budget>,
    /// Size limit of this instance, in bytes (mount option `size`).
    limit: u64,
    used: AtomicU64,
    next_number: AtomicU64,
    /// Pages present, all files together.
    pages: AtomicU64,
    /// What keeps it beyond the container's end, if anything does.
    backing: Option<Arc<Backing>>,
    /// Inodes of the lower layer in use, so that hard links stay one object.
    lower: SpinLock<HashMap<u64, Weak<Node>>>,
}

static NEXT_DEVICE: AtomicU64 = AtomicU64::new(20);

/// A device number for a file system without a device (major 0).
pub fn anonymous_device() -> u64 {
    super::lower::make_device(0, NEXT_DEVICE.fetch_add(1, Ordering::Relaxed) as u32)
}

impl MemFs {
    pub fn new(magic: u64, budget: Arc<Budget>, limit: u64) -> Arc<MemFs> {
        Arc::new(MemFs {
            device: anonymous_device(),
            magic,
            budget,
            limit,
            used: AtomicU64::new(0),
            // Above any number of a lower layer, whose inodes keep theirs.
            next_number: AtomicU64::new(1 << 40),
            pages: AtomicU64::new(0),
            backing: None,
            lower: SpinLock::new(HashMap::new()),
        })
    }

    /// The file system of a protected volume.
    pub fn of_volume(backing: Arc<Backing>, budget: Arc<Budget>) -> Arc<MemFs> {
        Arc::new(MemFs {
            device: anonymous_device(),
            magic: VOLUME_MAGIC,
            limit: budget.limit(),
            budget,
            used: AtomicU64::new(0),
            next_number: AtomicU64::new(backing.next_number()),
            pages: AtomicU64::new(0),
            backing: Some(backing),
            lower: SpinLock::new(HashMap::new()),
        })
    }

    /// An empty root directory. A plain tmpfs numbers its inodes from 1.
    pub fn empty_root(self: &Arc<Self>, mode: u32) -> Arc<Node> {
        self.next_number.store(1, Ordering::Relaxed);
        // The root is there even when nothing else fits.
        self.used.fetch_add(NODE_COST, Ordering::Relaxed);
        self.budget.used.fetch_add(NODE_COST, Ordering::Relaxed);
        let owner = Owner {
            mode,
            uid: 0,
            gid: 0,
        };
        Node::new(
            self,
            FileType::Directory.mode(),
            owner,
            Content::directory(),
            0,
        )
    }

    /// The root directory over a lower layer.
    pub fn root_over(self: &Arc<Self>, lower: Arc<dyn LowerNode>) -> Arc<Node> {
        Node::over(self, lower)
    }

    /// ENOSPC when this file system or all of them together would use too much.
    pub fn charge(&self, bytes: u64) -> Result<()> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        if used.saturating_add(bytes) > self.limit {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(ENOSPC.because("the file system's size limit is reached"));
        }
        self.budget.charge(bytes).inspect_err(|_| {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        })
    }

    pub fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.release(bytes);
    }

    /// Bytes charged to this file system.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// The inode over an object of the lower layer: the one in use, else a new one.
    fn over(self: &Arc<Self>, parent: &dyn LowerNode, number: u64) -> Result<Arc<Node>> {
        if let Some(node) = self.lower.lock().get(&number).and_then(Weak::upgrade) {
            return Ok(node);
        }
        let node = Node::over(self, parent.open(number)?);
        let mut table = self.lower.lock();
        if let Some(other) = table.get(&number).and_then(Weak::upgrade) {
            drop(table);
            return Ok(other);
        }
        table.insert(number, Arc::downgrade(&node));
        Ok(node)
    }

    pub fn statistics(&self) -> FsStatistics {
        let limit = self.limit.min(self.budget.limit());
        let free = (self.limit - self.used().min(self.limit))
            .min(self.budget.limit().saturating_sub(self.budget.used()));
        FsStatistics {
            magic: self.magic,
            block_size: 4096,
            blocks: limit / 4096,
            free: free / 4096,
            files: limit / NODE_COST,
            files_free: free / NODE_COST,
        }
    }
}

/// A regular file that has no name and may have seals (memfd_create).
pub fn memory_file(fs: &Arc<MemFs>, owner: Owner, sealable: bool) -> Result<Arc<dyn Inode>> {
    fs.charge(NODE_COST)?;
    let seals = if sealable { 0 } else { data::SEAL_SEAL };
    let content = Content::sealed_file(seals);
    let node = Node::new(fs, FileType::Regular.mode(), owner, content, 0);
    node.set_links(0);
    Ok(node)
}

#[cfg(test)]
mod tests;
