//! Where things go: directory blocks, and inodes in the metadata area.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::BLOCK;
use crate::format::{DIRENT_SIZE, SLOT};
use crate::tree::{Directory, NodeId};

/// Ends of files and directories up to this size lie beside their inode. Half a block: larger ones
/// save little and would push the inodes apart, which every path lookup pays for.
pub(crate) const INLINE_MAX: u64 = BLOCK / 2;

/// Blocks with room that are tried for the next inode: few, to keep siblings near each other.
const OPEN_BLOCKS: usize = 16;

/// An entry of a directory, with "." and "..", sorted.
pub(crate) type Entry<'a> = (&'a [u8], NodeId);

/// All entries of a directory in the order of the image.
pub(crate) fn entries(id: NodeId, directory: &Directory) -> Vec<Entry<'_>> {
    let mut all = Vec::with_capacity(directory.children.len() + 2);
    all.extend([(&b"."[..], id), (&b".."[..], directory.parent)]);
    all.extend(
        directory
            .children
            .iter()
            .map(|(name, &child)| (name.as_ref(), child)),
    );
    // Almost sorted already, which the sort makes use of.
    all.sort();
    all
}

/// The entries of each block of a directory, and the size of the directory.
pub(crate) fn directory_blocks(entries: &[Entry<'_>]) -> (Vec<Range<usize>>, u64) {
    let mut blocks = Vec::new();
    let (mut first, mut used) = (0, 0);
    for (index, (name, _)) in entries.iter().enumerate() {
        let length = DIRENT_SIZE + name.len();
        if used + length > BLOCK as usize {
            blocks.push(first..index);
            (first, used) = (index, 0);
        }
        used += length;
    }
    blocks.push(first..entries.len());
    let size = (blocks.len() as u64 - 1) * BLOCK + used as u64;
    (blocks, size)
}

/// The bytes of one block of a directory, not padded.
pub(crate) fn directory_block(
    entries: &[Entry<'_>],
    describe: impl Fn(NodeId) -> (u64, u8),
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    let mut name_at = entries.len() * DIRENT_SIZE;
    for (name, child) in entries {
        let (nid, kind) = describe(*child);
        bytes.extend(nid.to_le_bytes());
        bytes.extend((name_at as u16).to_le_bytes());
        bytes.extend([kind, 0]);
        name_at += name.len();
    }
    for (name, _) in entries {
        bytes.extend_from_slice(name);
    }
    bytes
}

/// Gives out places in the metadata area.
pub(crate) struct Allocator {
    /// Blocks handed out so far.
    blocks: u64,
    /// Blocks with free slots at their end: block, and first free slot. Oldest first.
    open: BTreeMap<u64, u64>,
}

const SLOTS: u64 = BLOCK / SLOT;

impl Allocator {
    /// The first slot stays empty: 0 is no inode number to show to programs.
    pub fn new() -> Allocator {
        Allocator {
            blocks: 1,
            open: BTreeMap::from([(0, 1)]),
        }
    }

    /// The inode number for an inode of `size` bytes with all that follows it. Up to a block lies
    /// within one block; more begins with one.
    pub fn place(&mut self, size: u64) -> u64 {
        let slots = size.div_ceil(SLOT);
        // Best fit; of equal ones the oldest.
        let fit = self
            .open
            .iter()
            .map(|(&block, &slot)| (SLOTS - slot, block))
            .filter(|&(free, _)| free >= slots)
            .min();
        let (block, slot) = match fit {
            Some((_, block)) => (block, self.open.remove(&block).unwrap_or(0)),
            None => {
                let block = self.blocks;
                self.blocks += slots.div_ceil(SLOTS);
                (block, 0)
            }
        };
        let end = block * SLOTS + slot + slots;
        if !end.is_multiple_of(SLOTS) {
            self.open.insert(end / SLOTS, end % SLOTS);
        }
        if self.open.len() > OPEN_BLOCKS {
            self.open.pop_first();
        }
        block * SLOTS + slot
    }

    /// Bytes of the metadata area.
    pub fn size(&self) -> u64 {
        self.blocks * BLOCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_sorted_among_the_others() {
        let names: [&[u8]; 6] = [b"!", b".!", b".-", b"..a", b".a", b"a"];
        let children = names.iter().map(|&name| (name.into(), 9)).collect();
        let directory = Directory {
            parent: 1,
            children,
            implicit: false,
        };
        let entries = entries(2, &directory);
        assert!(entries.is_sorted());
        assert_eq!(entries.len(), 8);
        assert!(entries.contains(&(b".", 2)) && entries.contains(&(b"..", 1)));
    }

    #[test]
    fn inodes_do_not_cross_blocks() {
        let mut allocator = Allocator::new();
        assert_eq!(allocator.place(64), 1);
        assert_eq!(allocator.place(4096), 128);
        assert_eq!(allocator.place(4064), 256);
        assert_eq!(allocator.place(32), 383, "the smallest gap");
        assert_eq!(allocator.place(5000), 384);
        assert_eq!(allocator.place(3100), 384 + 157, "after the long one");
        assert_eq!(allocator.size(), 5 * 4096);
    }
}
