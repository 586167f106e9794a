//! Inodes, and where their content is.

use super::{BLOCK, Erofs, Extent, Nid};
use crate::bytes::{u16_at, u32_at, u64_at};
use crate::source::BlockSource;
use crate::{BLOCK_SIZE, Error, Result};

/// Inodes start at multiples of this.
const SLOT: u64 = 32;
const COMPACT_SIZE: u64 = 32;
const EXTENDED_SIZE: u64 = 64;
const XATTR_HEADER: u64 = 12;

const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;
const LAYOUT_CHUNKS: u16 = 4;

/// Chunk format: the chunk size, as a power of two of blocks, and whether the map's entries are
/// 8-byte indexes instead of 4-byte block numbers.
const CHUNK_BITS: u16 = 0x1f;
const CHUNK_INDEXES: u16 = 0x20;
/// Block number of a chunk that is not stored: zeros.
const HOLE: u32 = u32::MAX;

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Character device.
    CharacterDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// UNIX socket.
    Socket,
    /// Symbolic link.
    Symlink,
}

impl FileKind {
    /// From the type bits of `st_mode`.
    pub const fn from_mode(mode: u16) -> Option<FileKind> {
        Some(match mode & 0o170000 {
            0o100000 => FileKind::Regular,
            0o040000 => FileKind::Directory,
            0o020000 => FileKind::CharacterDevice,
            0o060000 => FileKind::BlockDevice,
            0o010000 => FileKind::Fifo,
            0o140000 => FileKind::Socket,
            0o120000 => FileKind::Symlink,
            _ => return None,
        })
    }

    /// From the type byte of a directory entry (EROFS's own numbers).
    pub(super) const fn from_entry(kind: u8) -> Option<FileKind> {
        Some(match kind {
            1 => FileKind::Regular,
            2 => FileKind::Directory,
            3 => FileKind::CharacterDevice,
            4 => FileKind::BlockDevice,
            5 => FileKind::Fifo,
            6 => FileKind::Socket,
            7 => FileKind::Symlink,
            _ => return None,
        })
    }

    /// The `d_type` of getdents64.
    pub const fn dirent_type(self) -> u8 {
        match self {
            FileKind::Fifo => 1,
            FileKind::CharacterDevice => 2,
            FileKind::Directory => 4,
            FileKind::BlockDevice => 6,
            FileKind::Regular => 8,
            FileKind::Symlink => 10,
            FileKind::Socket => 12,
        }
    }
}

/// A parsed inode. It never changes: keep it as long as the file is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    nid: Nid,
    mode: u16,
    kind: FileKind,
    uid: u32,
    gid: u32,
    links: u32,
    size: u64,
    modified: (i64, u32),
    /// The word whose meaning depends on the kind and layout: block, device or chunk format.
    word: u32,
    layout: Layout,
    /// Byte position in the image of the extended attributes, and their size.
    pub(super) xattrs: u64,
    pub(super) xattrs_size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// All blocks in one run.
    Plain,
    /// All full blocks in one run; the rest at this byte position.
    Inline(u64),
    /// Chunks of this many bytes (log2), whose map is at this byte position.
    Chunks { bits: u32, map: u64, entry: u64 },
    /// No content.
    None,
}

impl Inode {
    /// Its number; `st_ino`.
    pub fn nid(&self) -> Nid {
        self.nid
    }

    /// `st_mode`, with the type bits.
    pub fn mode(&self) -> u16 {
        self.mode
    }

    /// What it is.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// `st_nlink`.
    pub fn links(&self) -> u32 {
        self.links
    }

    /// Bytes of content.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Modification time (EROFS has no other): seconds since 1970, nanoseconds below 10^9.
    pub fn modified(&self) -> (i64, u32) {
        self.modified
    }

    /// Device number (major, minor) of a device inode, else (0, 0).
    pub fn device(&self) -> (u32, u32) {
        match self.kind {
            FileKind::CharacterDevice | FileKind::BlockDevice => {
                // The kernel's new_decode_dev: minor in bits 0–7 and 20–31, major in 8–19.
                let major = (self.word >> 8) & 0xfff;
                let minor = (self.word & 0xff) | ((self.word >> 12) & 0xf_ff00);
                (major, minor)
            }
            _ => (0, 0),
        }
    }

    pub(super) fn malformed(&self, what: &'static str) -> Error {
        Error::Malformed {
            what,
            position: self.xattrs,
        }
    }

    pub(super) fn read<S: BlockSource>(fs: &Erofs<S>, nid: Nid) -> Result<Inode> {
        let position = nid
            .checked_mul(SLOT)
            .and_then(|offset| offset.checked_add(fs.super_block.metadata))
            .ok_or(Error::Malformed {
                what: "inode number out of range",
                position: 1024,
            })?;
        let malformed = |what| Error::Malformed { what, position };
        // One access for both forms, but where only the short one is sure to be there.
        let mut bytes = [0; EXTENDED_SIZE as usize];
        let whole = (position % BLOCK).saturating_add(EXTENDED_SIZE) <= BLOCK;
        if whole {
            bytes = fs.metadata(position)?;
        } else if let Some(start) = bytes.first_chunk_mut::<{ COMPACT_SIZE as usize }>() {
            *start = fs.metadata(position)?;
        }
        let compact = &bytes;
        let format = u16_at(compact, 0);
        if format & !0xf != 0 {
            return Err(Error::Unsupported {
                what: "an unknown inode format",
            });
        }
        let mode = u16_at(compact, 4);
        let kind = FileKind::from_mode(mode).ok_or(malformed("inode of no known type"))?;
        let word = u32_at(compact, 16);
        let head_size;
        let mut inode = if format & 1 == 0 {
            head_size = COMPACT_SIZE;
            Inode {
                nid,
                mode,
                kind,
                uid: u32::from(u16_at(compact, 24)),
                gid: u32::from(u16_at(compact, 26)),
                links: u32::from(u16_at(compact, 6)),
                size: u64::from(u32_at(compact, 8)),
                modified: (fs.super_block.build_time, fs.super_block.build_time_nsec),
                word,
                layout: Layout::None,
                xattrs: 0,
                xattrs_size: 0,
            }
        } else {
            head_size = EXTENDED_SIZE;
            let extended = if whole { bytes } else { fs.metadata(position)? };
            Inode {
                nid,
                mode,
                kind,
                uid: u32_at(&extended, 24),
                gid: u32_at(&extended, 28),
                links: u32_at(&extended, 44),
                size: u64_at(&extended, 8),
                modified: (u64_at(&extended, 32).cast_signed(), u32_at(&extended, 40)),
                word,
                layout: Layout::None,
                xattrs: 0,
                xattrs_size: 0,
            }
        };
        if inode.modified.1 >= 1_000_000_000 {
            return Err(malformed("impossible modification time"));
        }
        if inode.size > i64::MAX as u64 {
            return Err(malformed("impossible file size"));
        }
        inode.xattrs = position.saturating_add(head_size);
        inode.xattrs_size = match u64::from(u16_at(compact, 2)) {
            0 => 0,
            count => XATTR_HEADER.saturating_add(count.saturating_sub(1).saturating_mul(4)),
        };
        fs.check_range(inode.xattrs, inode.xattrs_size)?;
        let after = inode.xattrs.saturating_add(inode.xattrs_size);
        inode.layout = match kind {
            FileKind::Regular | FileKind::Directory | FileKind::Symlink => {
                Layout::parse(fs, format >> 1, word, after, &inode)?
            }
            _ => Layout::None,
        };
        Ok(inode)
    }

    /// The longest stretch of content at `offset`, which must be below the size.
    pub(super) fn map<S: BlockSource>(&self, fs: &Erofs<S>, offset: u64) -> Result<Extent> {
        let rest = self.size.saturating_sub(offset);
        let run = |first: u64, length: u64| {
            let position = u64::from(self.word)
                .saturating_mul(BLOCK)
                .saturating_add(first);
            Extent::Stored { position, length }
        };
        let extent = match self.layout {
            Layout::Plain => run(offset, rest),
            Layout::Inline(tail) => {
                let full = self.size.saturating_sub(self.size % BLOCK);
                if offset < full {
                    run(offset, full.saturating_sub(offset))
                } else {
                    let position = tail.saturating_add(offset.saturating_sub(full));
                    Extent::Stored {
                        position,
                        length: rest,
                    }
                }
            }
            Layout::Chunks { bits, map, entry } => {
                let index = offset.checked_shr(bits).unwrap_or(0);
                let start = index.checked_shl(bits).unwrap_or(0);
                let within = offset.saturating_sub(start);
                let chunk = 1u64.checked_shl(bits).unwrap_or(0);
                let length = chunk.saturating_sub(within).min(rest);
                let at = map.saturating_add(index.saturating_mul(entry));
                // In an 8-byte index the block number is the second half.
                let block = match entry {
                    8 => u32_at(&fs.metadata::<8>(at)?, 4),
                    _ => u32_at(&fs.metadata::<4>(at)?, 0),
                };
                if block == HOLE {
                    return Ok(Extent::Hole { length });
                }
                let position = u64::from(block)
                    .saturating_mul(BLOCK)
                    .saturating_add(within);
                Extent::Stored { position, length }
            }
            Layout::None => return Err(Error::Invalid),
        };
        if let Extent::Stored { position, length } = extent {
            fs.check_range(position, length)?;
        }
        Ok(extent)
    }
}

impl Layout {
    /// `after` is the byte position after inode and attributes.
    fn parse<S: BlockSource>(
        fs: &Erofs<S>,
        layout: u16,
        word: u32,
        after: u64,
        inode: &Inode,
    ) -> Result<Layout> {
        let malformed = |what| {
            Err(Error::Malformed {
                what,
                position: after,
            })
        };
        match layout {
            LAYOUT_PLAIN => Ok(Layout::Plain),
            LAYOUT_INLINE => {
                let tail = inode.size % BLOCK;
                if (after % BLOCK).saturating_add(tail) > BLOCK {
                    return malformed("inline data crosses a block");
                }
                Ok(Layout::Inline(after))
            }
            LAYOUT_CHUNKS => {
                let format = word as u16;
                if format & !(CHUNK_BITS | CHUNK_INDEXES) != 0 {
                    return Err(Error::Unsupported {
                        what: "an unknown chunk format",
                    });
                }
                let entry = if format & CHUNK_INDEXES == 0 { 4u64 } else { 8 };
                let bits = BLOCK_SIZE
                    .trailing_zeros()
                    .saturating_add(u32::from(format & CHUNK_BITS));
                let map = after.next_multiple_of(entry);
                let chunks = inode
                    .size
                    .div_ceil(1u64.checked_shl(bits).unwrap_or(u64::MAX));
                let Some(length) = chunks.checked_mul(entry) else {
                    return malformed("chunk map too long");
                };
                fs.check_range(map, length)?;
                Ok(Layout::Chunks { bits, map, entry })
            }
            _ => Err(Error::Unsupported {
                what: "compressed files",
            }),
        }
    }
}
