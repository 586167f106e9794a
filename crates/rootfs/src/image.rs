//! Writes a tree as an EROFS image: superblock, content of files, blocks of directories, metadata.
//!
//! Content comes first because where it lies is known only once chunks of zeros and equal files
//! have been found; the metadata, which says so, follows. All of it is one sequential stream.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use bulla_abi::config::Rootfs;
use sha2::{Digest, Sha256};

use crate::BLOCK;
use crate::content::Tails;
use crate::error::{Error, Result, io_error};
use crate::format::{self, Content, HOLE, Inode, SLOT, SuperBlock, Tail};
use crate::layout::{Allocator, INLINE_MAX, directory_block, directory_blocks, entries};
use crate::sparse::{PIECE, SPARSE_MIN, chunk_bits, for_each_piece};
use crate::tree::{Kind, NodeId, ROOT, Tree};
use crate::verity::ImageWriter;

/// Files up to this size are not worth a block of their own, even if there are several equal ones.
const SHARE_MIN: u64 = 256;

/// Writes the image and its hash tree; also gives the inode number of each node.
/// `spool` is a directory for unnamed temporary files.
pub(crate) fn write(tree: &Tree, out: File, spool: PathBuf) -> Result<(Rootfs, Vec<u64>)> {
    let order = tree.order();
    let mut image = Image {
        tree,
        links: tree.links(),
        build_time: most_common_time(tree),
        shared: find_shared(tree, &order)?,
        plans: tree.nodes.iter().map(|_| Plan::default()).collect(),
        tails: Tails::new(spool),
        writer: ImageWriter::new(out),
    };
    // The superblock comes last.
    image.writer.pad_to(BLOCK)?;
    for &id in &order {
        image.write_content(id)?;
    }
    let mut allocator = Allocator::new();
    for &id in &order {
        let size = image.inode_size(id) + image.attached_size(id);
        image.plans[id as usize].nid = allocator.place(size);
    }
    for &id in &order {
        image.write_directory(id)?;
    }
    let metadata_block = image.writer.align()?;
    image.write_metadata(&order, metadata_block)?;
    image
        .writer
        .pad_to(u64::from(metadata_block) * BLOCK + allocator.size())?;
    let super_block = SuperBlock {
        root_nid: u16::try_from(image.plans[ROOT as usize].nid).expect("the root is placed first"),
        inodes: order.len() as u64,
        build_time: image.build_time,
        blocks: image.writer.align()?,
        metadata_block,
        chunked: image
            .plans
            .iter()
            .any(|plan| matches!(plan.content, Content::Chunks { .. })),
    };
    let numbers = image.plans.iter().map(|plan| plan.nid).collect();
    let rootfs = image.writer.finish(&super_block.to_block())?;
    Ok((rootfs, numbers))
}

struct Image<'t> {
    tree: &'t Tree,
    links: Vec<u32>,
    build_time: (i64, u32),
    shared: Shared,
    plans: Vec<Plan>,
    tails: Tails,
    writer: ImageWriter,
}

/// What has been decided about a node.
struct Plan {
    nid: u64,
    size: u64,
    content: Content,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            nid: 0,
            size: 0,
            content: Content::Plain { block: 0 },
        }
    }
}

impl Image<'_> {
    /// Bytes of the inode and its extended attributes.
    fn inode_size(&self, id: NodeId) -> u64 {
        let attributes = &self.tree.node(id).attributes;
        format::inode_size(self.is_compact(id)) + format::xattr_size(attributes)
    }

    fn is_compact(&self, id: NodeId) -> bool {
        let attributes = &self.tree.node(id).attributes;
        let size = self.plans[id as usize].size;
        format::fits_compact(attributes, size, self.links[id as usize], self.build_time)
    }

    /// Bytes of what follows the inode.
    fn attached_size(&self, id: NodeId) -> u64 {
        let plan = &self.plans[id as usize];
        match &plan.content {
            Content::Plain { .. } => 0,
            Content::Inline { .. } => plan.size % BLOCK,
            Content::Chunks { map, .. } => map.len() as u64 * 4,
        }
    }

    /// Whether the last `size % BLOCK` bytes may lie beside the inode.
    fn may_inline(&self, id: NodeId, size: u64, limit: u64) -> bool {
        let tail = size % BLOCK;
        tail != 0 && tail <= limit && self.inode_size(id) + tail <= BLOCK
    }

    /// Decides where the content is, and writes it where it is known by now.
    fn write_content(&mut self, id: NodeId) -> Result<()> {
        match &self.tree.node(id).kind {
            Kind::File { size: 0, .. } => {}
            Kind::File { size, source } => {
                self.plans[id as usize].size = *size;
                let first = self.shared.first_with_content(id);
                if first != id {
                    self.plans[id as usize].content = self.plans[first as usize].content.clone();
                    return Ok(());
                }
                let tree = self.tree;
                let name = || tree.path_of(id);
                let mut content = source.open(*size, &name)?;
                self.plans[id as usize].content = if *size >= SPARSE_MIN {
                    self.write_large(&mut content, *size)?
                } else {
                    let inline =
                        !self.shared.is_shared(id) && self.may_inline(id, *size, INLINE_MAX);
                    self.write_small(&content, *size, inline)?
                };
            }
            Kind::Symlink(target) => {
                let size = target.len() as u64;
                self.plans[id as usize].size = size;
                self.plans[id as usize].content = if self.may_inline(id, size, BLOCK) {
                    Content::Inline {
                        block: 0,
                        tail: Tail::Tree,
                    }
                } else {
                    let block = self.writer.align()?;
                    self.writer.write(target)?;
                    Content::Plain { block }
                };
            }
            Kind::Directory(directory) => {
                let (_, size) = directory_blocks(&entries(id, directory));
                self.plans[id as usize].size = size;
                if self.may_inline(id, size, INLINE_MAX) {
                    let content = Content::Inline {
                        block: 0,
                        tail: Tail::Tree,
                    };
                    self.plans[id as usize].content = content;
                }
            }
            Kind::CharacterDevice(_) | Kind::BlockDevice(_) | Kind::Fifo | Kind::Socket => {}
        }
        Ok(())
    }

    fn write_small(
        &mut self,
        content: &crate::content::Content<'_>,
        size: u64,
        inline: bool,
    ) -> Result<Content> {
        let full = if inline { size - size % BLOCK } else { size };
        let block = if full == 0 { 0 } else { self.writer.align()? };
        self.writer.copy(content, 0, full)?;
        if !inline {
            return Ok(Content::Plain { block });
        }
        let mut tail = vec![0; (size - full) as usize];
        content.read(full, &mut tail)?;
        let kept = self.tails.push(&tail).map_err(tails_error())?;
        Ok(Content::Inline {
            block,
            tail: Tail::Kept(kept),
        })
    }

    /// Writes all chunks that are not zeros only.
    fn write_large(
        &mut self,
        content: &mut crate::content::Content<'_>,
        size: u64,
    ) -> Result<Content> {
        let bits = chunk_bits(size);
        let chunk = BLOCK << bits;
        let writer = &mut self.writer;
        let first = writer.align()?;
        let mut map = vec![HOLE; size.div_ceil(chunk) as usize];
        // Zeros of the chunk at hand that are stored only if something else follows in it.
        let mut zeros = 0;
        let mut position = 0;
        for_each_piece(content, size, |length, bytes| {
            if position % chunk == 0 {
                zeros = 0;
            }
            let place = &mut map[(position / chunk) as usize];
            position += length;
            match bytes {
                None if *place == HOLE => zeros += length,
                None => writer.pad_to(writer.position() + length)?,
                Some(bytes) => {
                    if *place == HOLE {
                        *place = writer.align()?;
                        writer.pad_to(writer.position() + zeros)?;
                    }
                    writer.write(bytes)?;
                }
            }
            Ok(())
        })?;
        if map.contains(&HOLE) {
            return Ok(Content::Chunks { bits, map });
        }
        Ok(Content::Plain { block: first })
    }

    /// Writes the blocks of a directory, but for an end beside its inode.
    fn write_directory(&mut self, id: NodeId) -> Result<()> {
        let Kind::Directory(directory) = &self.tree.node(id).kind else {
            return Ok(());
        };
        let entries = entries(id, directory);
        let (mut blocks, _) = directory_blocks(&entries);
        if matches!(self.plans[id as usize].content, Content::Inline { .. }) {
            blocks.pop();
        }
        if blocks.is_empty() {
            return Ok(());
        }
        let first = self.writer.align()?;
        for range in blocks {
            self.writer.align()?;
            let bytes = directory_block(&entries[range], |child| self.describe(child));
            self.writer.write(&bytes)?;
        }
        match &mut self.plans[id as usize].content {
            Content::Plain { block } | Content::Inline { block, .. } => *block = first,
            Content::Chunks { .. } => {}
        }
        Ok(())
    }

    /// What a directory entry says of a node.
    fn describe(&self, id: NodeId) -> (u64, u8) {
        (
            self.plans[id as usize].nid,
            format::entry_type(&self.tree.node(id).kind),
        )
    }

    /// Writes all inodes, in the order of their places.
    fn write_metadata(&mut self, order: &[NodeId], metadata_block: u32) -> Result<()> {
        let start = u64::from(metadata_block) * BLOCK;
        let mut serials = vec![0u32; self.plans.len()];
        for (serial, &id) in (1..).zip(order) {
            serials[id as usize] = serial;
        }
        let mut by_place = order.to_vec();
        by_place.sort_unstable_by_key(|&id| self.plans[id as usize].nid);
        for id in by_place {
            let plan = &self.plans[id as usize];
            let node = self.tree.node(id);
            let inode = Inode {
                attributes: &node.attributes,
                kind: &node.kind,
                compact: self.is_compact(id),
                size: plan.size,
                links: self.links[id as usize],
                serial: serials[id as usize],
                content: &plan.content,
            };
            let mut bytes = inode.to_bytes();
            match &plan.content {
                Content::Plain { .. } => {}
                Content::Inline { tail, .. } => {
                    self.append_tail(&mut bytes, id, *tail)?;
                }
                Content::Chunks { map, .. } => {
                    bytes.extend(map.iter().flat_map(|block| block.to_le_bytes()));
                }
            }
            self.writer.pad_to(start + plan.nid * SLOT)?;
            self.writer.write(&bytes)?;
        }
        Ok(())
    }

    fn append_tail(&self, bytes: &mut Vec<u8>, id: NodeId, tail: Tail) -> Result<()> {
        let length = (self.plans[id as usize].size % BLOCK) as usize;
        match (tail, &self.tree.node(id).kind) {
            (Tail::Kept(at), _) => {
                let start = bytes.len();
                bytes.resize(start + length, 0);
                self.tails
                    .get(at, &mut bytes[start..])
                    .map_err(tails_error())?;
            }
            (Tail::Tree, Kind::Symlink(target)) => bytes.extend_from_slice(target),
            (Tail::Tree, Kind::Directory(directory)) => {
                let entries = entries(id, directory);
                let (blocks, _) = directory_blocks(&entries);
                let last = blocks.last().cloned().unwrap_or_default();
                bytes.extend(directory_block(&entries[last], |child| {
                    self.describe(child)
                }));
            }
            (Tail::Tree, _) => {}
        }
        Ok(())
    }
}

fn tails_error() -> impl FnOnce(io::Error) -> Error {
    io_error("using a temporary file for", Path::new("ends of files"))
}

/// The time that compact inodes share: the most common one, of equals the earliest.
fn most_common_time(tree: &Tree) -> (i64, u32) {
    let mut counts = BTreeMap::<(i64, u32), usize>::new();
    for node in &tree.nodes {
        *counts.entry(node.attributes.modified).or_default() += 1;
    }
    let best = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    best.map_or((0, 0), |(time, _)| time)
}

/// Files with equal content.
struct Shared {
    /// For each member of a group but the first in the order: the first.
    first: HashMap<NodeId, NodeId>,
    /// The first of each group.
    groups: HashMap<NodeId, ()>,
}

impl Shared {
    fn first_with_content(&self, id: NodeId) -> NodeId {
        self.first.get(&id).copied().unwrap_or(id)
    }

    fn is_shared(&self, id: NodeId) -> bool {
        self.groups.contains_key(&id)
    }
}

/// Finds files with equal content. Only files of equal size are read for it, by two threads.
fn find_shared(tree: &Tree, order: &[NodeId]) -> Result<Shared> {
    let mut by_size = BTreeMap::<u64, Vec<NodeId>>::new();
    for &id in order {
        if let Kind::File { size, .. } = tree.node(id).kind
            && size > SHARE_MIN
        {
            by_size.entry(size).or_default().push(id);
        }
    }
    by_size.retain(|_, files| files.len() > 1);
    let candidates: Vec<NodeId> = by_size.values().flatten().copied().collect();
    let queue = Mutex::new(candidates.iter());
    let digest = || -> Result<HashMap<NodeId, [u8; 32]>> {
        let mut digests = HashMap::new();
        loop {
            let next = queue
                .lock()
                .expect("nothing panics while holding it")
                .next();
            let Some(&id) = next else { return Ok(digests) };
            digests.insert(id, content_digest(tree, id)?);
        }
    };
    let mut digests = HashMap::new();
    if !candidates.is_empty() {
        thread::scope(|scope| -> Result<()> {
            let other = scope.spawn(digest);
            digests = digest()?;
            digests.extend(other.join().expect("hashing does not panic")?);
            Ok(())
        })?;
    }
    let mut shared = Shared {
        first: HashMap::new(),
        groups: HashMap::new(),
    };
    for files in by_size.values() {
        let mut firsts = HashMap::new();
        for id in files {
            let first = *firsts.entry(digests[id]).or_insert(*id);
            if first != *id {
                shared.first.insert(*id, first);
                shared.groups.insert(first, ());
            }
        }
    }
    Ok(shared)
}

/// SHA-256 of a file's content, with pieces of zeros replaced by a mark so that holes cost nothing.
/// Files of one size have one digest exactly if they are equal.
fn content_digest(tree: &Tree, id: NodeId) -> Result<[u8; 32]> {
    let mut sha = Sha256::new();
    if let Kind::File { size, source } = &tree.node(id).kind {
        let name = || tree.path_of(id);
        let mut content = source.open(*size, &name)?;
        for_each_piece(&mut content, *size, |length, bytes| {
            debug_assert!(length <= PIECE);
            match bytes {
                Some(bytes) => {
                    sha.update([1]);
                    sha.update(bytes);
                }
                None => sha.update([0]),
            }
            Ok(())
        })?;
    }
    Ok(sha.finalize().into())
}
