//! Directories: blocks of sorted entries, each block self-contained.
//!
//! A block starts with its 12-byte entries (inode number, offset of the name, type), then come the
//! names. Names ascend through the whole directory, so a lookup is two binary searches: for the
//! block by first names, then within it.

use core::cmp::Ordering;
use core::ops::ControlFlow;

use super::{BLOCK, Erofs, Extent, FileKind, Inode, Nid};
use crate::bytes::{u8_at, u16_at, u64_at};
use crate::cache::Block;
use crate::source::BlockSource;
use crate::{BLOCK_SIZE, Error, Result};
use alloc::sync::Arc;

const ENTRY_SIZE: usize = 12;
const NAME_MAX: usize = 255;

/// What a lookup finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Inode number.
    pub nid: Nid,
    /// What the inode is.
    pub kind: FileKind,
}

/// One entry of a directory listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Name, any bytes but NUL and '/'. "." and ".." are listed too.
    pub name: &'a [u8],
    /// Inode number.
    pub nid: Nid,
    /// What the inode is.
    pub kind: FileKind,
    /// Cookie of the entry after this one (`d_off`).
    pub next: u64,
}

impl<S: BlockSource> Erofs<S> {
    /// Finds `name` in the directory `dir`; [`Error::NotFound`] where there is none.
    ///
    /// "." and ".." are found too.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Entry> {
        if dir.kind() != FileKind::Directory {
            return Err(Error::NotDirectory);
        }
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        // The block is the last one whose first name is not above the name.
        let (mut low, mut high) = (0, dir.size().div_ceil(BLOCK));
        let mut candidate = None;
        while low < high {
            let middle = low.midpoint(high);
            let block = DirBlock::read(self, dir, middle)?;
            match block.name(0)?.cmp(name) {
                Ordering::Greater => high = middle,
                Ordering::Equal => return block.entry(0),
                Ordering::Less => {
                    low = middle.saturating_add(1);
                    candidate = Some(block);
                }
            }
        }
        let block = candidate.ok_or(Error::NotFound)?;
        let (mut low, mut high) = (0, block.entries);
        while low < high {
            let middle = low.midpoint(high);
            match block.name(middle)?.cmp(name) {
                Ordering::Greater => high = middle,
                Ordering::Equal => return block.entry(middle),
                Ordering::Less => low = middle.saturating_add(1),
            }
        }
        Err(Error::NotFound)
    }

    /// Lists a directory from `cookie` on (0: from the start), in name order, until `visit` breaks.
    ///
    /// A cookie is the `next` of an entry already listed; any other number is taken as the nearest
    /// entry after it, as `lseek` on a directory may bring any.
    pub fn read_dir(
        &self,
        dir: &Inode,
        cookie: u64,
        visit: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        if dir.kind() != FileKind::Directory {
            return Err(Error::NotDirectory);
        }
        let mut number = cookie / BLOCK;
        let mut index = ((cookie % BLOCK) as usize).div_ceil(ENTRY_SIZE);
        while number < dir.size().div_ceil(BLOCK) {
            let block = DirBlock::read(self, dir, number)?;
            let base = number.saturating_mul(BLOCK);
            number = number.saturating_add(1);
            while index < block.entries {
                let name = block.name(index)?;
                let Entry { nid, kind } = block.entry(index)?;
                index = index.saturating_add(1);
                let next = if index < block.entries {
                    base.saturating_add((index as u64).saturating_mul(ENTRY_SIZE as u64))
                } else {
                    number.saturating_mul(BLOCK)
                };
                if visit(DirEntry {
                    name,
                    nid,
                    kind,
                    next,
                })
                .is_break()
                {
                    return Ok(());
                }
            }
            index = 0;
        }
        Ok(())
    }
}

/// A verified block of a directory. Its entries are checked one by one, when looked at.
struct DirBlock {
    block: Arc<Block>,
    /// Where in the block the directory's part starts, and how long it is.
    start: usize,
    length: usize,
    entries: usize,
    /// Byte position in the image, for errors.
    position: u64,
}

impl DirBlock {
    fn read<S: BlockSource>(fs: &Erofs<S>, dir: &Inode, number: u64) -> Result<DirBlock> {
        let offset = number.saturating_mul(BLOCK);
        let Extent::Stored { position, length } = dir.map(fs, offset)? else {
            return Err(dir.malformed("directory with a hole"));
        };
        let start = (position % BLOCK) as usize;
        let length = length.min(BLOCK) as usize;
        if start.saturating_add(length) > BLOCK_SIZE {
            return Err(Error::Malformed {
                what: "directory block across blocks",
                position,
            });
        }
        let block = fs.block(position / BLOCK)?;
        let mut this = DirBlock {
            block,
            start,
            length,
            entries: 0,
            position,
        };
        // The first name follows the last entry.
        let names = usize::from(u16_at(this.bytes(), 8));
        if names < ENTRY_SIZE || names >= length || !names.is_multiple_of(ENTRY_SIZE) {
            return Err(this.malformed("directory block without entries"));
        }
        this.entries = names / ENTRY_SIZE;
        Ok(this)
    }

    fn bytes(&self) -> &[u8] {
        let end = self.start.saturating_add(self.length);
        self.block.bytes().get(self.start..end).unwrap_or_default()
    }

    fn raw_entry(&self, index: usize) -> Result<&[u8]> {
        let start = index.saturating_mul(ENTRY_SIZE);
        let end = start.saturating_add(ENTRY_SIZE);
        self.bytes()
            .get(start..end)
            .ok_or(self.malformed("directory entry out of reach"))
    }

    fn name(&self, index: usize) -> Result<&[u8]> {
        let bytes = self.bytes();
        let start = usize::from(u16_at(self.raw_entry(index)?, 8));
        let next = index.saturating_add(1);
        let last = next >= self.entries;
        let end = if last {
            bytes.len()
        } else {
            usize::from(u16_at(self.raw_entry(next)?, 8))
        };
        let names = self.entries.saturating_mul(ENTRY_SIZE);
        let mut name = bytes
            .get(start..end)
            .filter(|_| start >= names)
            .ok_or(self.malformed("name out of its directory block"))?;
        if last {
            // The last name ends at the first NUL, or with the block.
            name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        }
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(self.malformed("name of impossible length"));
        }
        if name.iter().any(|&byte| byte == 0 || byte == b'/') {
            return Err(self.malformed("name with a slash or NUL"));
        }
        Ok(name)
    }

    fn entry(&self, index: usize) -> Result<Entry> {
        let raw = self.raw_entry(index)?;
        let kind = FileKind::from_entry(u8_at(raw, 10))
            .ok_or(self.malformed("directory entry of no known type"))?;
        Ok(Entry {
            nid: u64_at(raw, 0),
            kind,
        })
    }

    fn malformed(&self, what: &'static str) -> Error {
        Error::Malformed {
            what,
            position: self.position,
        }
    }
}
