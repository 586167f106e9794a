//! The content of a directory.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use hashbrown::HashMap;

use super::node::Node;
use super::{ENTRY_COST, MemFs};
use crate::Result;
use crate::errno::ENOENT;
use crate::fs::inode::{Entry, FileType, Inode};
use crate::fs::lower::LowerNode;

/// First position of an entry; 0 and 1 are "." and "..".
const FIRST: u64 = 2;

/// What a name stands for.
#[derive(Clone)]
pub enum Target {
    Node(Arc<Node>),
    /// An object of the lower layer that nobody has looked up yet.
    Lower {
        number: u64,
        kind: FileType,
    },
}

impl Target {
    fn is_directory(&self) -> bool {
        match self {
            Target::Node(node) => node.mode() & 0o170000 == FileType::Directory.mode(),
            Target::Lower { kind, .. } => *kind == FileType::Directory,
        }
    }
}

struct Child {
    name: Arc<[u8]>,
    target: Target,
}

/// A directory's entries. Each entry keeps its position as long as it exists, so that a listing
/// that goes on after changes shows every unchanged entry exactly once (POSIX readdir).
#[derive(Default)]
pub struct Directory {
    /// The listing of the lower layer that has not been copied yet.
    pending: Option<Arc<dyn LowerNode>>,
    /// Kept to open objects of the lower layer.
    lower: Option<Arc<dyn LowerNode>>,
    names: HashMap<Arc<[u8]>, u64>,
    children: BTreeMap<u64, Child>,
    next: u64,
    /// Subdirectories, for st_nlink; valid once loaded.
    pub subdirectories: u64,
    charged: u64,
}

impl Directory {
    pub fn new(lower: Option<Arc<dyn LowerNode>>) -> Directory {
        Directory {
            pending: lower.clone(),
            lower,
            next: FIRST,
            ..Directory::default()
        }
    }

    /// Copies the lower listing on first use.
    pub fn load(&mut self) -> Result<()> {
        let Some(lower) = self.pending.take() else {
            return Ok(());
        };
        let result = lower.read_dir(&mut |name, number, kind| {
            self.add(name, Target::Lower { number, kind });
        });
        if result.is_err() {
            // Half a listing would hide names: start over next time.
            self.names.clear();
            self.children.clear();
            self.subdirectories = 0;
            self.pending = Some(lower);
        }
        result
    }

    pub fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    pub fn len(&self) -> usize {
        self.children.len()
    }

    pub fn contains(&self, name: &[u8]) -> bool {
        self.names.contains_key(name)
    }

    /// The inode of a name; objects of the lower layer get theirs now.
    pub fn get(&mut self, fs: &Arc<MemFs>, name: &[u8]) -> Result<Arc<Node>> {
        let position = *self.names.get(name).ok_or(ENOENT)?;
        let child = self.children.get_mut(&position).ok_or(ENOENT)?;
        if let Target::Lower { number, .. } = child.target {
            let lower = self.lower.as_ref().ok_or(ENOENT)?;
            child.target = Target::Node(fs.over(&**lower, number)?);
        }
        match &child.target {
            Target::Node(node) => Ok(node.clone()),
            Target::Lower { .. } => Err(ENOENT),
        }
    }

    /// Adds a name that is not there. The caller has charged it (`charge`), unless it comes from
    /// the lower layer.
    pub fn add(&mut self, name: &[u8], target: Target) {
        let name: Arc<[u8]> = Arc::from(name);
        self.subdirectories += u64::from(target.is_directory());
        self.names.insert(name.clone(), self.next);
        self.children.insert(self.next, Child { name, target });
        self.next += 1;
    }

    /// Charges one more entry of a name this long.
    pub fn charge(&mut self, fs: &MemFs, name: &[u8]) -> Result<()> {
        let cost = ENTRY_COST + name.len() as u64;
        fs.charge(cost)?;
        self.charged += cost;
        Ok(())
    }

    /// Takes a name away.
    pub fn remove(&mut self, fs: &MemFs, name: &[u8]) -> Result<Target> {
        let position = self.names.remove(name).ok_or(ENOENT)?;
        let child = self.children.remove(&position).ok_or(ENOENT)?;
        self.subdirectories -= u64::from(child.target.is_directory());
        let cost = (ENTRY_COST + name.len() as u64).min(self.charged);
        self.charged -= cost;
        fs.release(cost);
        Ok(child.target)
    }

    /// Puts another object under a name that is there (exchange).
    pub fn replace(&mut self, name: &[u8], target: Target) -> Result<Target> {
        let position = *self.names.get(name).ok_or(ENOENT)?;
        let child = self.children.get_mut(&position).ok_or(ENOENT)?;
        self.subdirectories += u64::from(target.is_directory());
        self.subdirectories -= u64::from(child.target.is_directory());
        Ok(core::mem::replace(&mut child.target, target))
    }

    /// Entries from position `from` on.
    pub fn list(&self, from: u64, emit: &mut dyn FnMut(Entry<'_>) -> bool) {
        for (&position, child) in self.children.range(from.max(FIRST)..) {
            let (inode, kind) = match &child.target {
                Target::Node(node) => (node.number(), node.kind()),
                Target::Lower { number, kind } => (*number, *kind),
            };
            if !emit(Entry {
                name: &child.name,
                inode,
                kind,
                next: position + 1,
            }) {
                return;
            }
        }
    }

    /// Gives the memory back.
    pub fn clear(&mut self, fs: &MemFs) {
        fs.release(self.charged);
        self.charged = 0;
        self.children.clear();
        self.names.clear();
    }
}
