//! What path walks depend on: root, working directory, umask.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use super::path::PathRef;
use crate::sync::SpinLock;

/// Shared under CLONE_FS.
pub struct FsContext {
    places: SpinLock<Places>,
    umask: AtomicU32,
}

#[derive(Clone)]
struct Places {
    root: PathRef,
    cwd: PathRef,
}

impl Default for FsContext {
    /// An empty in-memory root, for tests and for kernel threads.
    fn default() -> FsContext {
        FsContext::new(super::empty_root())
    }
}

impl FsContext {
    /// Root and working directory at `root`, umask 022.
    pub fn new(root: PathRef) -> FsContext {
        FsContext {
            places: SpinLock::new(Places {
                cwd: root.clone(),
                root,
            }),
            umask: AtomicU32::new(0o022),
        }
    }

    /// A copy for fork without CLONE_FS.
    pub fn copy(&self) -> Arc<FsContext> {
        Arc::new(FsContext {
            places: SpinLock::new(self.places.lock().clone()),
            umask: AtomicU32::new(self.umask()),
        })
    }

    pub fn root(&self) -> PathRef {
        self.places.lock().root.clone()
    }

    pub fn cwd(&self) -> PathRef {
        self.places.lock().cwd.clone()
    }

    pub fn set_root(&self, root: PathRef) {
        let old = core::mem::replace(&mut self.places.lock().root, root);
        drop(old);
    }

    pub fn set_cwd(&self, cwd: PathRef) {
        let old = core::mem::replace(&mut self.places.lock().cwd, cwd);
        drop(old);
    }

    pub fn umask(&self) -> u32 {
        self.umask.load(Ordering::Relaxed)
    }

    /// Sets the umask; the old one.
    pub fn set_umask(&self, umask: u32) -> u32 {
        self.umask.swap(umask & 0o777, Ordering::Relaxed)
    }
}
