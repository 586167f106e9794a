//! Dentries: names of inodes, in a tree that caches what lookups found.
//!
//! A directory's dentry holds its children that were looked up, so that a path walk that hits
//! costs a hash and a reference count per component and no allocation. Changes of the tree
//! (create, unlink, rename, mount) are made under [`namespace`], one at a time; walks take only
//! the lock of the directory they pass.
//!
//! Lock order: namespace → children of a directory → place of a dentry.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use hashbrown::HashMap;

use super::inode::Inode;
use crate::sync::{SpinGuard, SpinLock};

/// Serialises every change of names.
static NAMESPACE: SpinLock<()> = SpinLock::new(());

/// Held while names change. Inside: no user memory, no sleep.
pub fn namespace() -> SpinGuard<'static, ()> {
    NAMESPACE.lock()
}

const MOUNTED: u32 = 1;
const DELETED: u32 = 2;

/// A name of an inode.
pub struct Dentry {
    inode: Arc<dyn Inode>,
    place: SpinLock<Place>,
    children: SpinLock<HashMap<Arc<[u8]>, Arc<Dentry>>>,
    flags: AtomicU32,
}

struct Place {
    parent: Option<Arc<Dentry>>,
    name: Arc<[u8]>,
}

impl Dentry {
    /// The root of a file system, or an object without a name.
    pub fn root(inode: Arc<dyn Inode>) -> Arc<Dentry> {
        Self::with_place(
            inode,
            Place {
                parent: None,
                name: Arc::from(&b"/"[..]),
            },
        )
    }

    /// An object that never had a place in the tree (O_TMPFILE, memfd), shown as `name`.
    pub fn unnamed(inode: Arc<dyn Inode>, name: &[u8]) -> Arc<Dentry> {
        let dentry = Self::with_place(
            inode,
            Place {
                parent: None,
                name: Arc::from(name),
            },
        );
        dentry.flags.store(DELETED, Ordering::Relaxed);
        dentry
    }

    /// A child that is not kept in its parent's cache (file systems whose content moves by itself).
    pub fn uncached(parent: &Arc<Dentry>, name: &[u8], inode: Arc<dyn Inode>) -> Arc<Dentry> {
        Self::with_place(
            inode,
            Place {
                parent: Some(parent.clone()),
                name: Arc::from(name),
            },
        )
    }

    fn with_place(inode: Arc<dyn Inode>, place: Place) -> Arc<Dentry> {
        Arc::new(Dentry {
            inode,
            place: SpinLock::new(place),
            children: SpinLock::new(HashMap::new()),
            flags: AtomicU32::new(0),
        })
    }

    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }

    pub fn parent(&self) -> Option<Arc<Dentry>> {
        self.place.lock().parent.clone()
    }

    pub fn name(&self) -> Arc<[u8]> {
        self.place.lock().name.clone()
    }

    /// The cached child.
    pub fn child(&self, name: &[u8]) -> Option<Arc<Dentry>> {
        self.children.lock().get(name).cloned()
    }

    /// Puts a child into the cache; the one that is there already wins.
    pub fn insert(self: &Arc<Self>, name: &[u8], inode: Arc<dyn Inode>) -> Arc<Dentry> {
        let mut children = self.children.lock();
        if let Some(child) = children.get(name) {
            return child.clone();
        }
        let child = Self::uncached(self, name, inode);
        children.insert(child.name(), child.clone());
        child
    }

    /// A child that was just made: kept in the cache where names stay what they are.
    pub fn keep(self: &Arc<Self>, name: &[u8], inode: Arc<dyn Inode>) -> Arc<Dentry> {
        match self.inode.is_stable() {
            true => self.insert(name, inode),
            false => Self::uncached(self, name, inode),
        }
    }

    /// Takes a name away (unlink, rmdir, replaced by rename).
    pub fn forget(&self, name: &[u8]) {
        let child = self.children.lock().remove(name);
        if let Some(child) = child {
            child.flags.fetch_or(DELETED, Ordering::Release);
        }
    }

    /// Moves a cached child to another name; whatever has that name must have been forgotten.
    pub fn move_child(&self, name: &[u8], to: &Arc<Dentry>, to_name: &[u8]) {
        let child = self.children.lock().remove(name);
        if let Some(child) = child {
            let to_name: Arc<[u8]> = Arc::from(to_name);
            *child.place.lock() = Place {
                parent: Some(to.clone()),
                name: to_name.clone(),
            };
            to.children.lock().insert(to_name, child);
        }
    }

    /// Exchanges two cached children.
    pub fn exchange_children(self: &Arc<Self>, name: &[u8], to: &Arc<Dentry>, to_name: &[u8]) {
        let first = self.children.lock().remove(name);
        let second = to.children.lock().remove(to_name);
        for (child, parent, name) in [(first, to, to_name), (second, self, name)] {
            if let Some(child) = child {
                let name: Arc<[u8]> = Arc::from(name);
                *child.place.lock() = Place {
                    parent: Some(parent.clone()),
                    name: name.clone(),
                };
                parent.children.lock().insert(name, child);
            }
        }
    }

    /// Empties the cache below, so that nothing keeps an unmounted file system alive.
    pub fn forget_tree(&self) {
        let mut stack: Vec<Arc<Dentry>> = self
            .children
            .lock()
            .drain()
            .map(|(_, child)| child)
            .collect();
        while let Some(dentry) = stack.pop() {
            stack.extend(dentry.children.lock().drain().map(|(_, child)| child));
        }
    }

    /// Whether `self` is `other` or lies below it.
    pub fn is_within(self: &Arc<Self>, other: &Arc<Dentry>) -> bool {
        let mut here = self.clone();
        loop {
            if Arc::ptr_eq(&here, other) {
                return true;
            }
            match here.parent() {
                Some(parent) => here = parent,
                None => return false,
            }
        }
    }

    pub fn is_mounted(&self) -> bool {
        self.flags.load(Ordering::Acquire) & MOUNTED != 0
    }

    pub fn set_mounted(&self, mounted: bool) {
        if mounted {
            self.flags.fetch_or(MOUNTED, Ordering::Release);
        } else {
            self.flags.fetch_and(!MOUNTED, Ordering::Release);
        }
    }

    /// Whether the name is gone.
    pub fn is_deleted(&self) -> bool {
        self.flags.load(Ordering::Acquire) & DELETED != 0
    }
}
