//! The tree of files in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::builder::Attributes;
use crate::content::Source;
use crate::error::{Error, Result, image_path};

/// Index into [`Tree::nodes`].
pub(crate) type NodeId = u32;

pub(crate) const ROOT: NodeId = 0;

/// Longest file name of Linux and of EROFS.
const NAME_MAX: usize = 255;

/// One inode.
pub(crate) struct Node {
    pub attributes: Attributes,
    pub kind: Kind,
}

pub(crate) enum Kind {
    Directory(Directory),
    File {
        size: u64,
        source: Source,
    },
    Symlink(Box<[u8]>),
    /// Device number as EROFS encodes it.
    CharacterDevice(u32),
    BlockDevice(u32),
    Fifo,
    Socket,
}

pub(crate) struct Directory {
    pub parent: NodeId,
    /// Sorted by bytes, as EROFS wants it.
    pub children: BTreeMap<Box<[u8]>, NodeId>,
    /// Came into being as the parent of something; its own attributes may still come.
    pub implicit: bool,
}

/// All inodes; the root is node 0. Hard links are entries of the same node.
pub(crate) struct Tree {
    pub nodes: Vec<Node>,
}

impl Tree {
    pub fn new() -> Tree {
        Tree {
            nodes: vec![Node::implicit_directory(ROOT)],
        }
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match &mut self.nodes[id as usize].kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// Adds a node, or gives an implicit directory its attributes.
    pub fn insert(&mut self, path: &[u8], node: Node) -> Result<()> {
        let is_directory = matches!(node.kind, Kind::Directory(_));
        let Some((parent, name)) = self.place(path)? else {
            if !is_directory {
                return path_error(path, "the root of the image must be a directory");
            }
            return self.define_directory(ROOT, node.attributes, path);
        };
        let id = self.next_id()?;
        let Some(directory) = self.directory_mut(parent) else {
            return path_error(path, "its parent is not a directory");
        };
        if let Some(&existing) = directory.children.get(name) {
            if is_directory {
                return self.define_directory(existing, node.attributes, path);
            }
            return path_error(path, "given twice; resolve layers before building");
        }
        directory.children.insert(name.into(), id);
        self.nodes.push(node);
        if let Some(directory) = self.directory_mut(id) {
            directory.parent = parent;
        }
        Ok(())
    }

    /// Adds another name for the node at `target`; false where there is nothing yet.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> Result<bool> {
        let Some(node) = self.find(target)? else {
            return Ok(false);
        };
        if matches!(self.node(node).kind, Kind::Directory(_)) {
            return path_error(path, "hard link to a directory; use a symbolic link");
        }
        let Some((parent, name)) = self.place(path)? else {
            return path_error(path, "the root of the image must be a directory");
        };
        let Some(directory) = self.directory_mut(parent) else {
            return path_error(path, "its parent is not a directory");
        };
        if directory.children.contains_key(name) {
            return path_error(path, "given twice; resolve layers before building");
        }
        directory.children.insert(name.into(), node);
        Ok(true)
    }

    /// The node at a path.
    pub fn find(&self, path: &[u8]) -> Result<Option<NodeId>> {
        let mut at = ROOT;
        for name in components(path) {
            check_name(name, path)?;
            let Kind::Directory(directory) = &self.node(at).kind else {
                return Ok(None);
            };
            let Some(&child) = directory.children.get(name) else {
                return Ok(None);
            };
            at = child;
        }
        Ok(Some(at))
    }

    /// The parent directory of a path (made where missing) and the name in it; `None` for the root.
    fn place<'p>(&mut self, path: &'p [u8]) -> Result<Option<(NodeId, &'p [u8])>> {
        let mut at = ROOT;
        let mut names = components(path).peekable();
        while let Some(name) = names.next() {
            check_name(name, path)?;
            if names.peek().is_none() {
                return Ok(Some((at, name)));
            }
            let id = self.next_id()?;
            let Some(directory) = self.directory_mut(at) else {
                return path_error(path, "its parent is not a directory");
            };
            match directory.children.get(name) {
                Some(&child) => at = child,
                None => {
                    directory.children.insert(name.into(), id);
                    self.nodes.push(Node::implicit_directory(at));
                    at = id;
                }
            }
        }
        Ok(None)
    }

    fn define_directory(&mut self, id: NodeId, new: Attributes, path: &[u8]) -> Result<()> {
        match &mut self.nodes[id as usize] {
            Node {
                attributes,
                kind: Kind::Directory(directory),
            } if directory.implicit => {
                directory.implicit = false;
                *attributes = new;
                Ok(())
            }
            _ => path_error(path, "given twice; resolve layers before building"),
        }
    }

    fn next_id(&self) -> Result<NodeId> {
        NodeId::try_from(self.nodes.len()).map_err(|_| Error::TooLarge)
    }

    /// All nodes, each once: siblings together, in name order, then the content of
    /// each directory among them. Hard links appear at their first name only.
    pub fn order(&self) -> Vec<NodeId> {
        let mut order = vec![ROOT];
        let mut seen = vec![false; self.nodes.len()];
        let mut directories = vec![ROOT];
        while let Some(at) = directories.pop() {
            let Kind::Directory(directory) = &self.node(at).kind else {
                continue;
            };
            let first = directories.len();
            for &child in directory.children.values() {
                if std::mem::replace(&mut seen[child as usize], true) {
                    continue;
                }
                order.push(child);
                if matches!(self.node(child).kind, Kind::Directory(_)) {
                    directories.push(child);
                }
            }
            // The stack gives the last one first.
            directories[first..].reverse();
        }
        order
    }

    /// Number of names of each node, and for directories of ".." in subdirectories.
    pub fn links(&self) -> Vec<u32> {
        let mut links = vec![0u32; self.nodes.len()];
        links[ROOT as usize] = 1;
        for (id, node) in self.nodes.iter().enumerate() {
            let Kind::Directory(directory) = &node.kind else {
                continue;
            };
            links[id] += 1;
            for &child in directory.children.values() {
                links[child as usize] += 1;
                if matches!(self.node(child).kind, Kind::Directory(_)) {
                    links[id] += 1;
                }
            }
        }
        links
    }

    /// A path of the node, for messages; slow, as only called when something is wrong.
    pub fn path_of(&self, id: NodeId) -> PathBuf {
        let mut directories = vec![(ROOT, Vec::new())];
        while let Some((at, path)) = directories.pop() {
            if at == id {
                return image_path(if path.is_empty() { b"/" } else { &path });
            }
            if let Kind::Directory(directory) = &self.node(at).kind {
                directories.extend(directory.children.iter().map(|(name, &child)| {
                    (child, [path.as_slice(), b"/", name.as_ref()].concat())
                }));
            }
        }
        PathBuf::from("(nameless)")
    }
}

impl Node {
    fn implicit_directory(parent: NodeId) -> Node {
        let directory = Directory {
            parent,
            children: BTreeMap::new(),
            implicit: true,
        };
        let attributes = Attributes {
            mode: 0o755,
            ..Attributes::default()
        };
        Node {
            attributes,
            kind: Kind::Directory(directory),
        }
    }
}

/// The names of a path; a leading slash, "." and doubled slashes mean nothing.
fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}

fn check_name(name: &[u8], path: &[u8]) -> Result<()> {
    if name == b".." {
        return path_error(path, "a path of the image must not contain '..'");
    }
    if name.len() > NAME_MAX {
        return path_error(path, "a name longer than 255 bytes; shorten it");
    }
    if name.contains(&0) {
        return path_error(path, "a name must not contain NUL");
    }
    Ok(())
}

fn path_error<T>(path: &[u8], reason: &'static str) -> Result<T> {
    Err(Error::Path {
        path: image_path(path),
        reason,
    })
}
