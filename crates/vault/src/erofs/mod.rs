//! An EROFS image, read through its hash tree.
//!
//! Supported: everything uncompressed on one device with 4 KiB blocks: compact and extended inodes,
//! flat, inline-tail and chunk-based data, inline and shared extended attributes. Compression and
//! the formats beyond (48-bit addresses, long attribute prefixes) are refused when opened.
//!
//! Key types: [`Erofs`] (the image), [`Inode`] (a parsed inode, small and cheap to keep),
//! [`DirEntry`]. The on-disk structures are those of the kernel's documentation
//! (`Documentation/filesystems/erofs.rst`).

mod dir;
mod inode;
mod super_block;
mod xattr;

use alloc::sync::Arc;
use alloc::vec::Vec;
use bulla_abi::config::Rootfs;

pub use dir::{DirEntry, Entry};
pub use inode::{FileKind, Inode};
use super_block::SuperBlock;

use crate::cache::{Block, BlockCache};
use crate::source::BlockSource;
use crate::verity::Verity;
use crate::{BLOCK_SIZE, Error, Result};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Number of an inode: its place in the metadata area. Unique, never 0, fits `st_ino`.
pub type Nid = u64;

/// How much memory the reader may keep.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of verified hash blocks. The whole tree is 1/128 of the image.
    pub hash_cache: usize,
    /// Bytes of verified blocks of metadata, directories and partly read file blocks.
    pub block_cache: usize,
    /// Bytes of verified blocks of file content that was read more than once.
    pub content_cache: usize,
}

impl Default for Options {
    /// 4 MiB of hash blocks (all of a 512 MiB image), 8 MiB of metadata, 12 MiB of content: the
    /// libraries that every new process maps again.
    fn default() -> Options {
        Options {
            hash_cache: 4 << 20,
            block_cache: 8 << 20,
            content_cache: 12 << 20,
        }
    }
}

/// Sizes of the file system, for `statfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Blocks of 4096 bytes.
    pub blocks: u64,
    /// Inodes.
    pub inodes: u64,
}

/// A verified, read-only EROFS file system.
pub struct Erofs<S> {
    verity: Verity<S>,
    blocks: BlockCache,
    content: BlockCache,
    super_block: SuperBlock,
}

impl<S: BlockSource> Erofs<S> {
    /// Opens the image that `rootfs` (from the measured configuration) describes.
    pub fn open(source: S, rootfs: &Rootfs, options: Options) -> Result<Erofs<S>> {
        let verity = Verity::new(source, rootfs, options.hash_cache)?;
        let mut first = Block::zeroed()?;
        verity.read_blocks(0, first.bytes_mut())?;
        let super_block = SuperBlock::parse(first.bytes(), verity.data_blocks())?;
        let blocks = BlockCache::new(options.block_cache);
        let content = BlockCache::new(options.content_cache);
        let fs = Erofs {
            verity,
            blocks,
            content,
            super_block,
        };
        if fs.root()?.kind() != FileKind::Directory {
            return Err(Error::Malformed {
                what: "the root is not a directory",
                position: 1024,
            });
        }
        Ok(fs)
    }

    /// The root directory.
    pub fn root(&self) -> Result<Inode> {
        self.inode(self.super_block.root_nid)
    }

    /// Sizes, for `statfs`.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            blocks: self.verity.data_blocks(),
            inodes: self.super_block.inodes,
        }
    }

    /// The inode of this number.
    pub fn inode(&self, nid: Nid) -> Result<Inode> {
        Inode::read(self, nid)
    }

    /// Reads a regular file from `offset` on; returns how many bytes, fewer than `dst` only at the
    /// end of the file.
    ///
    /// Whole blocks (`offset` a multiple of 4096) are copied from the host directly into `dst` and
    /// verified there; on an error the content of `dst` is unspecified but never unverified data.
    pub fn read_at(&self, inode: &Inode, offset: u64, dst: &mut [u8]) -> Result<usize> {
        match inode.kind() {
            FileKind::Regular => self.read_content(inode, offset, dst),
            FileKind::Directory => Err(Error::IsDirectory),
            _ => Err(Error::Invalid),
        }
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.kind() != FileKind::Symlink {
            return Err(Error::Invalid);
        }
        if inode.size() == 0 || inode.size() >= BLOCK {
            return Err(inode.malformed("symbolic link of impossible length"));
        }
        let mut target = Vec::new();
        target
            .try_reserve_exact(inode.size() as usize)
            .map_err(|_| Error::NoMemory)?;
        target.resize(inode.size() as usize, 0);
        self.read_content(inode, 0, &mut target)?;
        Ok(target)
    }

    /// Where the data that the file has at `offset` begins and ends: `None` at the end of the file,
    /// else `(start, end, hole)` around `offset`, `hole` being true where nothing is stored. For
    /// SEEK_HOLE and SEEK_DATA.
    pub fn extent_at(&self, inode: &Inode, offset: u64) -> Result<Option<(u64, u64, bool)>> {
        if inode.kind() != FileKind::Regular {
            return Err(Error::Invalid);
        }
        if offset >= inode.size() {
            return Ok(None);
        }
        let extent = inode.map(self, offset)?;
        let end = offset.saturating_add(extent.length());
        Ok(Some((offset, end, matches!(extent, Extent::Hole { .. }))))
    }

    /// Content of any inode that has some.
    fn read_content(&self, inode: &Inode, offset: u64, dst: &mut [u8]) -> Result<usize> {
        let available = inode.size().saturating_sub(offset);
        let wanted = usize::try_from(available)
            .unwrap_or(usize::MAX)
            .min(dst.len());
        let mut rest = dst.get_mut(..wanted).unwrap_or_default();
        let mut offset = offset;
        while !rest.is_empty() {
            let extent = inode.map(self, offset)?;
            let length = extent.length().min(rest.len() as u64);
            let (part, after) = rest.split_at_mut(length as usize);
            if part.is_empty() {
                return Err(inode.malformed("empty extent"));
            }
            match extent {
                Extent::Hole { .. } => part.fill(0),
                Extent::Stored { position, .. } => self.read_bytes(position, part)?,
            }
            offset = offset.saturating_add(length);
            rest = after;
        }
        Ok(wanted)
    }

    /// Bytes of the image at any position: whole blocks directly, parts through the cache.
    fn read_bytes(&self, position: u64, dst: &mut [u8]) -> Result<()> {
        let mut position = position;
        let mut rest = dst;
        while !rest.is_empty() {
            let number = position / BLOCK;
            let within = (position % BLOCK) as usize;
            let whole = rest.len().saturating_sub(rest.len() % BLOCK_SIZE);
            let length = if within == 0 && whole > 0 {
                whole
            } else {
                BLOCK_SIZE.saturating_sub(within).min(rest.len())
            };
            let (part, after) = rest.split_at_mut(length);
            if within == 0 && whole > 0 {
                self.read_whole(number, part)?;
            } else {
                let block = self.block(number)?;
                let bytes = block.bytes().get(within..).and_then(|b| b.get(..length));
                part.copy_from_slice(bytes.ok_or(Error::Invalid)?);
            }
            position = position.saturating_add(length as u64);
            rest = after;
        }
        Ok(())
    }

    /// Whole blocks, from the cache or the host.
    fn read_whole(&self, first: u64, dst: &mut [u8]) -> Result<()> {
        let mut number = first;
        let mut rest = dst;
        while !rest.is_empty() {
            if let Some(block) = self.content.get(number) {
                let (part, after) = rest.split_at_mut(BLOCK_SIZE.min(rest.len()));
                part.copy_from_slice(block.bytes().get(..part.len()).unwrap_or_default());
                number = number.saturating_add(1);
                rest = after;
                continue;
            }
            // All blocks up to the next one in the cache are read together.
            let mut length = BLOCK_SIZE;
            for ahead in number.saturating_add(1).. {
                if length >= rest.len() || self.content.get(ahead).is_some() {
                    break;
                }
                length = length.saturating_add(BLOCK_SIZE);
            }
            let (part, after) = rest.split_at_mut(length.min(rest.len()));
            self.verity.read_blocks(number, part)?;
            for bytes in part.chunks(BLOCK_SIZE) {
                self.keep_content(number, bytes);
                number = number.saturating_add(1);
            }
            rest = after;
        }
        Ok(())
    }

    /// Keeps a verified block of content if that seems worth it, and if there is memory.
    fn keep_content(&self, number: u64, bytes: &[u8]) {
        if self.content.admits(number)
            && let Ok(mut block) = Block::zeroed()
        {
            block.bytes_mut().copy_from_slice(bytes);
            self.content.insert(number, Arc::new(block));
        }
    }

    /// A verified block of the image, from the cache if it is there.
    fn block(&self, number: u64) -> Result<Arc<Block>> {
        if let Some(block) = self.blocks.get(number) {
            return Ok(block);
        }
        let mut block = Block::zeroed()?;
        self.verity.read_blocks(number, block.bytes_mut())?;
        let block = Arc::new(block);
        self.blocks.insert(number, block.clone());
        Ok(block)
    }

    /// Bytes of the image; [`Error::Malformed`] rather than an I/O error where they lie outside.
    fn metadata<const N: usize>(&self, position: u64) -> Result<[u8; N]> {
        self.check_range(position, N as u64)?;
        let mut bytes = [0; N];
        self.read_bytes(position, &mut bytes)?;
        Ok(bytes)
    }

    fn check_range(&self, position: u64, length: u64) -> Result<()> {
        let size = self.verity.data_blocks().saturating_mul(BLOCK);
        match position.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::Malformed {
                what: "reference beyond the image",
                position,
            }),
        }
    }
}

/// Where a stretch of an inode's content is, checked to lie within the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Hole { length: u64 },
    Stored { position: u64, length: u64 },
}

impl Extent {
    fn length(&self) -> u64 {
        match self {
            Extent::Hole { length } | Extent::Stored { length, .. } => *length,
        }
    }
}
