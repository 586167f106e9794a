//! Layers into one tree: whiteouts, opaque directories, links, and everything that is hostile.
//!
//! Semantics follow the OCI image specification (layer.md) as containerd applies it: a path's
//! parent directories are resolved through symbolic links *inside* the tree (so a layer may write
//! `bin/x` where a lower one made `bin` a link to `usr/bin`), an explicit directory entry replaces
//! whatever else had its name, and whiteouts hide only what lower layers brought.
//! Nothing touches the host's file system: the tree is in memory, so no path can escape from it.

use crate::error::Error;
use crate::tar::{self, Entry};
use crate::tree::{Attributes, Content, Kind, LINKS_MAX, Node, NodeId, Source, Tree, components};
use std::collections::BTreeMap;

/// Bounds on what an image may contain.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of all layers together.
    pub entries: u64,
    /// Bytes of all unpacked layers together, and the largest apparent size of a file.
    pub bytes: u64,
    /// Layers; overlay file systems stop at 128, image builders at 127.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            entries: 8_000_000,
            bytes: 256 << 30,
            layers: 512,
        }
    }
}

/// Longest path and name, as in Linux.
const PATH_MAX: usize = 4096;
const NAME_MAX: usize = 255;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// Applies layers to a tree, lowest first.
pub(crate) struct Flattener {
    pub tree: Tree,
    /// The layer that last wrote each node's entry, by node.
    written: Vec<u16>,
    limits: Limits,
    entries: u64,
    bytes: u64,
}

impl Flattener {
    pub fn new(limits: Limits) -> Flattener {
        Flattener {
            tree: Tree::new(),
            written: vec![0],
            limits,
            entries: 0,
            bytes: 0,
        }
    }

    /// Applies one entry of layer `layer` (an index into the tree's layers).
    pub fn apply(&mut self, layer: u16, entry: Entry) -> Result<(), Error> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::TooLarge {
                what: format!("more than {} files", self.limits.entries),
            });
        }
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.bytes > self.limits.bytes {
            return Err(Error::TooLarge {
                what: format!("more than {} GiB of files", self.limits.bytes >> 30),
            });
        }
        let mut path = checked_components(&entry.path)?;
        let Some(name) = pop_last(&mut path) else {
            // The root itself.
            if entry.kind == tar::Kind::Directory {
                self.tree.node_mut(NodeId::ROOT).attributes = attributes(&entry);
            }
            return Ok(());
        };
        if name.starts_with(WHITEOUT) {
            return self.whiteout(layer, path, &name);
        }
        let parent = self.directory(layer, path, &entry)?;
        let id = match self.node(layer, parent, &name, &entry)? {
            Some(id) => id,
            None => return Ok(()),
        };
        self.insert(parent, name, id)
    }

    /// Makes the node for an entry; `None` when an existing directory was updated.
    fn node(
        &mut self,
        layer: u16,
        parent: NodeId,
        name: &[u8],
        entry: &Entry,
    ) -> Result<Option<NodeId>, Error> {
        let (major, minor) = entry.device;
        let kind = match entry.kind {
            tar::Kind::Directory => {
                let existing = self.tree.child(parent, name);
                if let Some(id) = existing {
                    let node = self.tree.node_mut(id);
                    if matches!(node.kind, Kind::Directory(_)) {
                        node.attributes = attributes(entry);
                        self.written[id.0 as usize] = layer;
                        return Ok(None);
                    }
                }
                Kind::Directory(BTreeMap::new())
            }
            tar::Kind::HardLink => return self.hard_link(layer, entry).map(Some),
            tar::Kind::Symlink => {
                if entry.link.is_empty() || entry.link.len() >= PATH_MAX {
                    return Err(bad(entry, "is a symbolic link with an impossible target"));
                }
                Kind::Symlink(entry.link.clone())
            }
            tar::Kind::CharDevice => Kind::CharDevice { major, minor },
            tar::Kind::BlockDevice => Kind::BlockDevice { major, minor },
            tar::Kind::Fifo => Kind::Fifo,
            tar::Kind::File => Kind::File(Content {
                size: entry.size,
                source: match entry.segments[..] {
                    [segment] if segment.len == entry.size => Source::Extent {
                        layer,
                        offset: segment.stored,
                    },
                    _ => Source::Sparse {
                        layer,
                        segments: entry.segments.clone().into(),
                    },
                },
            }),
        };
        let attributes = attributes(entry);
        Ok(Some(self.add(layer, Node { attributes, kind })))
    }

    fn add(&mut self, layer: u16, node: Node) -> NodeId {
        self.written.push(layer);
        self.tree.add(node)
    }

    fn hard_link(&mut self, layer: u16, entry: &Entry) -> Result<NodeId, Error> {
        checked_components(&entry.link)?;
        let target = self.tree.lookup(&entry.link);
        let target = target.ok_or_else(|| bad(entry, "is a hard link to a missing file"))?;
        if matches!(self.tree.node(target).kind, Kind::Directory(_)) {
            return Err(bad(entry, "is a hard link to a directory"));
        }
        if self.written[target.0 as usize] == layer {
            return Ok(target);
        }
        // A link to a lower layer's file cannot be shared across layers: it is a copy, as after
        // an overlay file system's copy-up.
        let node = self.tree.node(target).clone();
        Ok(self.add(layer, node))
    }

    fn insert(&mut self, parent: NodeId, name: Vec<u8>, id: NodeId) -> Result<(), Error> {
        if let Kind::Directory(children) = &mut self.tree.node_mut(parent).kind {
            children.insert(name.into(), id);
        }
        Ok(())
    }

    /// The directory at `path` (last component first), made where it is missing.
    fn directory(
        &mut self,
        layer: u16,
        mut path: Vec<Vec<u8>>,
        entry: &Entry,
    ) -> Result<NodeId, Error> {
        let mut stack = vec![NodeId::ROOT];
        let mut links = 0;
        while let Some(name) = path.pop() {
            if name == b".." {
                // Only from the target of a symbolic link; at the root it stays there.
                stack.truncate(stack.len().max(2) - 1);
                continue;
            }
            let parent = stack[stack.len() - 1];
            let existing = self.tree.child(parent, &name);
            match existing.map(|id| (id, &self.tree.node(id).kind)) {
                Some((id, Kind::Directory(_))) => stack.push(id),
                Some((_, Kind::Symlink(target))) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(bad(entry, "lies behind a loop of symbolic links"));
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    path.extend(components(target));
                    if path.len() > PATH_MAX {
                        return Err(bad(entry, "lies behind a loop of symbolic links"));
                    }
                }
                Some((id, _)) if self.written[id.0 as usize] == layer => {
                    return Err(bad(entry, "lies below something that is not a directory"));
                }
                _ => {
                    let attributes = Attributes {
                        mode: 0o755,
                        mtime: entry.mtime,
                        ..Attributes::default()
                    };
                    let kind = Kind::Directory(BTreeMap::new());
                    let id = self.add(layer, Node { attributes, kind });
                    self.insert(parent, name, id)?;
                    stack.push(id);
                }
            }
            if stack.len() > PATH_MAX / 2 {
                return Err(bad(entry, "lies too deep"));
            }
        }
        Ok(stack[stack.len() - 1])
    }

    /// Hides what lower layers brought: one entry, or a directory's whole content.
    fn whiteout(&mut self, layer: u16, mut path: Vec<Vec<u8>>, name: &[u8]) -> Result<(), Error> {
        path.reverse();
        let Some(parent) = self.tree.lookup_follow(&path.join(&b'/')) else {
            return Ok(());
        };
        if name == OPAQUE {
            let children: Vec<_> = self
                .tree
                .children(parent)
                .map(|(name, _)| name.to_vec())
                .collect();
            for child in children {
                self.hide(layer, parent, &child);
            }
        } else if !name.starts_with(AUFS) {
            self.hide(layer, parent, &name[WHITEOUT.len()..]);
        }
        Ok(())
    }

    /// Removes `name` from `parent` except for what this layer wrote itself.
    fn hide(&mut self, layer: u16, parent: NodeId, name: &[u8]) {
        let Some(id) = self.tree.child(parent, name) else {
            return;
        };
        let own = self.written[id.0 as usize] == layer;
        let children: Vec<_> = self
            .tree
            .children(id)
            .map(|(name, _)| name.to_vec())
            .collect();
        for child in &children {
            self.hide(layer, id, child);
        }
        let empty = self.tree.children(id).next().is_none();
        if !own
            && empty
            && let Kind::Directory(entries) = &mut self.tree.node_mut(parent).kind
        {
            entries.remove(name);
        }
    }
}

fn attributes(entry: &Entry) -> Attributes {
    let mut xattrs: Vec<_> = entry
        .xattrs
        .iter()
        // Labels and overlay bookkeeping belong to the machine that made the layer.
        .filter(|(name, _)| name != b"security.selinux" && !name.starts_with(b"trusted."))
        .cloned()
        .collect();
    xattrs.sort();
    Attributes {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs,
    }
}

/// The components of an entry's path, last first; refuses what cannot be an honest path.
fn checked_components(path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let bad = |what| Error::Entry {
        entry: printable(path),
        what,
    };
    if path.len() >= PATH_MAX {
        return Err(bad("has too long a path"));
    }
    if path.contains(&0) {
        return Err(bad("has a zero byte in its path"));
    }
    let components = components(path);
    if components.iter().any(|name| name == b"..") {
        return Err(bad("leads out of the image with `..`"));
    }
    if components.iter().any(|name| name.len() > NAME_MAX) {
        return Err(bad("has too long a name"));
    }
    Ok(components)
}

/// Splits off a path's last component (which is first in the vector).
fn pop_last(path: &mut Vec<Vec<u8>>) -> Option<Vec<u8>> {
    (!path.is_empty()).then(|| path.remove(0))
}

fn bad(entry: &Entry, what: &'static str) -> Error {
    Error::Entry {
        entry: printable(&entry.path),
        what,
    }
}

/// A name for a message: no control characters, not endless.
fn printable(name: &[u8]) -> String {
    let name = &name[..name.len().min(200)];
    String::from_utf8_lossy(name).escape_debug().to_string()
}
