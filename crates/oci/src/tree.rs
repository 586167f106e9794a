//! A file tree in memory: names, kinds and attributes, with file contents left where they are.
//!
//! Directory entries are sorted by name, so that walking a tree is deterministic. Hard links are
//! entries that share a [`NodeId`].

use crate::tar::Segment;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Index of a node in its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);
}

/// Attributes that every node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, with set-user-id and the like.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A node: what it is and its attributes.
#[derive(Clone, Debug)]
pub struct Node {
    pub attributes: Attributes,
    pub kind: Kind,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Kind {
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    File(Content),
    Symlink(Vec<u8>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// A file's content: its size and where the bytes are.
#[derive(Clone, Debug)]
pub struct Content {
    pub size: u64,
    pub(crate) source: Source,
}

#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// One stretch of an unpacked layer (most files).
    Extent { layer: u16, offset: u64 },
    /// Pieces of an unpacked layer, holes in between.
    Sparse {
        layer: u16,
        segments: Arc<[Segment]>,
    },
    /// A file of the host.
    Host(PathBuf),
}

/// An uncompressed layer that can be read at any offset.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub file: Arc<File>,
    pub offset: u64,
}

/// A file tree.
#[derive(Debug)]
pub struct Tree {
    pub(crate) nodes: Vec<Node>,
    pub(crate) layers: Vec<Layer>,
}

impl Tree {
    /// A tree with an empty root directory.
    pub(crate) fn new() -> Tree {
        Tree {
            nodes: vec![Node {
                attributes: Attributes {
                    mode: 0o755,
                    ..Attributes::default()
                },
                kind: Kind::Directory(BTreeMap::new()),
            }],
            layers: Vec::new(),
        }
    }

    /// The node with this id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    pub(crate) fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId((self.nodes.len() - 1) as u32)
    }

    /// Entries of a directory, sorted by name; nothing for other nodes.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let children = match &self.node(id).kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        };
        let entries = children.into_iter().flatten();
        entries.map(|(name, &id)| (&**name, id))
    }

    pub(crate) fn child(&self, id: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(id).kind {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// The node at `path`, following symbolic links within the tree (not the last component).
    pub fn lookup(&self, path: &[u8]) -> Option<NodeId> {
        self.resolve(path, false, &mut 0)
    }

    /// The node at `path`, following symbolic links within the tree, the last one too.
    pub fn lookup_follow(&self, path: &[u8]) -> Option<NodeId> {
        self.resolve(path, true, &mut 0)
    }

    fn resolve(&self, path: &[u8], follow: bool, links: &mut u32) -> Option<NodeId> {
        let mut stack = vec![NodeId::ROOT];
        let mut todo: Vec<Vec<u8>> = components(path);
        while let Some(name) = todo.pop() {
            if name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let next = self.child(*stack.last()?, &name)?;
            match &self.node(next).kind {
                Kind::Symlink(target) if follow || !todo.is_empty() => {
                    *links += 1;
                    if *links > LINKS_MAX {
                        return None;
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    todo.extend(components(target));
                }
                _ => stack.push(next),
            }
        }
        stack.last().copied()
    }

    /// Opens a file of the tree.
    pub fn open(&self, content: &Content) -> io::Result<ContentReader> {
        let (segments, file) = match &content.source {
            Source::Extent { layer, offset } => {
                let layer = &self.layers[usize::from(*layer)];
                let segment = Segment {
                    logical: 0,
                    stored: layer.offset + offset,
                    len: content.size,
                };
                (vec![segment], layer.file.clone())
            }
            Source::Sparse { layer, segments } => {
                let layer = &self.layers[usize::from(*layer)];
                let moved = segments.iter().map(|segment| Segment {
                    stored: segment.stored + layer.offset,
                    ..*segment
                });
                (moved.collect(), layer.file.clone())
            }
            Source::Host(path) => {
                let segment = Segment {
                    logical: 0,
                    stored: 0,
                    len: content.size,
                };
                (vec![segment], Arc::new(File::open(path)?))
            }
        };
        Ok(ContentReader {
            file,
            segments,
            next: 0,
            position: 0,
            size: content.size,
        })
    }

    /// Reads a small file whole; `None` when it is not a file or larger than `limit` bytes.
    pub fn read(&self, path: &[u8], limit: u64) -> Option<Vec<u8>> {
        let Kind::File(content) = &self.node(self.lookup_follow(path)?).kind else {
            return None;
        };
        if content.size > limit {
            return None;
        }
        let mut bytes = Vec::new();
        self.open(content).ok()?.read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// Symbolic links followed in one path, as in Linux (MAXSYMLINKS).
pub(crate) const LINKS_MAX: u32 = 40;

/// The components of a path, last first, without empty ones and `.`.
pub(crate) fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&byte| byte == b'/')
        .rev()
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

/// Reads a file's content, with zeros for holes.
pub struct ContentReader {
    file: Arc<File>,
    segments: Vec<Segment>,
    next: usize,
    position: u64,
    size: u64,
}

impl Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.size - self.position;
        let limit = left.min(buffer.len() as u64);
        if limit == 0 {
            return Ok(0);
        }
        while let Some(segment) = self.segments.get(self.next) {
            if self.position < segment.logical + segment.len {
                break;
            }
            self.next += 1;
        }
        let count = match self.segments.get(self.next) {
            Some(segment) if self.position >= segment.logical => {
                let inside = self.position - segment.logical;
                let limit = limit.min(segment.len - inside) as usize;
                let offset = segment.stored + inside;
                match self.file.read_at(&mut buffer[..limit], offset)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => count,
                }
            }
            next => {
                let hole = next.map_or(left, |segment| segment.logical - self.position);
                let limit = limit.min(hole) as usize;
                buffer[..limit].fill(0);
                limit
            }
        };
        self.position += count as u64;
        Ok(count)
    }
}
