//! Mounts: file systems grafted onto directories.
//!
//! The table is container-wide (one mount namespace). Lock order: namespace → table.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::dentry::{Dentry, namespace};
use super::path::PathRef;
use crate::Result;
use crate::errno::{EBUSY, EINVAL, ENOTDIR};
use crate::sync::RwSpinLock;

/// Mount flags, with the numbers of mount(2).
pub mod flags {
    pub const RDONLY: u32 = 1;
    pub const NOSUID: u32 = 2;
    pub const NODEV: u32 = 4;
    pub const NOEXEC: u32 = 8;
    pub const NOATIME: u32 = 1024;
    pub const NODIRATIME: u32 = 2048;
    pub const RELATIME: u32 = 1 << 21;
    /// What a mount keeps.
    pub const KEPT: u32 = RDONLY | NOSUID | NODEV | NOEXEC | NOATIME | NODIRATIME | RELATIME;
}

/// One mount.
pub struct Mount {
    pub id: u64,
    /// What is shown at the mount point.
    pub root: Arc<Dentry>,
    /// Where it is mounted; `None` for the first root and for kernel-internal mounts.
    pub point: Option<PathRef>,
    flags: AtomicU32,
    /// Type and source, for /proc/mounts.
    pub kind: &'static str,
    pub source: String,
    pub options: String,
}

impl Mount {
    pub fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    pub fn set_flags(&self, flags: u32) {
        self.flags
            .store(flags & self::flags::KEPT, Ordering::Relaxed);
    }

    pub fn is_read_only(&self) -> bool {
        self.flags() & flags::RDONLY != 0
    }
}

/// What to mount.
pub struct MountSpec {
    pub root: Arc<Dentry>,
    pub flags: u32,
    pub kind: &'static str,
    pub source: String,
    pub options: String,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(21);
static TABLE: RwSpinLock<Vec<Arc<Mount>>> = RwSpinLock::new(Vec::new());

fn build(spec: MountSpec, point: Option<PathRef>) -> Arc<Mount> {
    Arc::new(Mount {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        root: spec.root,
        point,
        flags: AtomicU32::new(spec.flags & flags::KEPT),
        kind: spec.kind,
        source: spec.source,
        options: spec.options,
    })
}

/// The mount of a root directory, or of objects without a place (pipes, memfds).
pub fn detached(spec: MountSpec) -> Arc<Mount> {
    build(spec, None)
}

/// Mounts on a directory (or a file on a file).
pub fn attach(point: &PathRef, spec: MountSpec) -> Result<Arc<Mount>> {
    if spec.root.inode().is_directory() != point.inode().is_directory() {
        return Err(ENOTDIR.because("a directory is mounted on a directory, a file on a file"));
    }
    let _names = namespace();
    let mount = build(spec, Some(point.clone()));
    point.dentry.set_mounted(true);
    TABLE.write().push(mount.clone());
    Ok(mount)
}

/// What is mounted on `path`, topmost.
pub fn mounted_on(path: &PathRef) -> Option<Arc<Mount>> {
    let table = TABLE.read();
    let found = table.iter().rev().find(|mount| {
        mount.point.as_ref().is_some_and(|point| {
            Arc::ptr_eq(&point.dentry, &path.dentry) && Arc::ptr_eq(&point.mount, &path.mount)
        })
    });
    found.cloned()
}

/// Unmounts. EBUSY while something is mounted below it or, unless `lazy`, in use.
pub fn detach(mount: &Arc<Mount>, lazy: bool) -> Result<()> {
    let _names = namespace();
    let mut table = TABLE.write();
    let at = table
        .iter()
        .position(|m| Arc::ptr_eq(m, mount))
        .ok_or(EINVAL)?;
    let has_children = table.iter().any(|other| {
        other
            .point
            .as_ref()
            .is_some_and(|point| Arc::ptr_eq(&point.mount, mount))
    });
    // The table and the caller hold one reference each; every open file and directory one more.
    if has_children || (!lazy && Arc::strong_count(mount) > 3) {
        return Err(EBUSY.because("the file system is in use"));
    }
    let mount = table.remove(at);
    if let Some(point) = &mount.point {
        let still = table.iter().any(|other| {
            other
                .point
                .as_ref()
                .is_some_and(|other| Arc::ptr_eq(&other.dentry, &point.dentry))
        });
        point.dentry.set_mounted(still);
    }
    Ok(())
}

/// Takes all mounts out of the table: their root is given up for another.
pub fn take_all() -> Vec<Arc<Mount>> {
    let _names = namespace();
    core::mem::take(&mut *TABLE.write())
}

/// All mounts, in the order they were made.
pub fn all() -> Vec<Arc<Mount>> {
    TABLE.read().clone()
}
