//! The superblock.

use crate::bytes::{u8_at, u16_at, u32_at, u64_at};
use crate::{BLOCK_SIZE, Error, Result};

const POSITION: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
const BLOCK_BITS: u8 = BLOCK_SIZE.trailing_zeros() as u8;

/// LZ4 data ends at the block's end: says nothing about uncompressed files, and mkfs sets it
/// always.
const INCOMPAT_ZERO_PADDING: u32 = 0x1;
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;

/// What the reader needs of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SuperBlock {
    pub root_nid: u64,
    pub inodes: u64,
    /// Byte positions of the metadata area and of the shared attributes.
    pub metadata: u64,
    pub shared_xattrs: u64,
    /// Modification time of all compact inodes.
    pub build_time: i64,
    pub build_time_nsec: u32,
}

impl SuperBlock {
    /// Parses the first block of an image of `data_blocks` blocks.
    pub fn parse(block: &[u8], data_blocks: u64) -> Result<SuperBlock> {
        let malformed = |what| {
            Err(Error::Malformed {
                what,
                position: POSITION as u64,
            })
        };
        let Some(bytes) = block.get(POSITION..).filter(|bytes| bytes.len() >= 128) else {
            return malformed("superblock out of reach");
        };
        if u32_at(bytes, 0) != MAGIC {
            return malformed("not an EROFS image");
        }
        // The checksum is left alone: the hash tree says more than a CRC could.
        if u8_at(bytes, 12) != BLOCK_BITS {
            return malformed("block size is not 4096");
        }
        if u8_at(bytes, 90) != 0 {
            return malformed("directory block size is not 4096");
        }
        let features = u32_at(bytes, 80);
        if features & !(INCOMPAT_ZERO_PADDING | INCOMPAT_CHUNKED_FILE) != 0 {
            return Err(Error::Unsupported {
                what: "compression or a newer EROFS format",
            });
        }
        if u16_at(bytes, 86) != 0 {
            return Err(Error::Unsupported {
                what: "additional devices",
            });
        }
        if u64::from(u32_at(bytes, 36)) > data_blocks {
            return malformed("the image is longer than its hash tree covers");
        }
        let metadata_block = u64::from(u32_at(bytes, 40));
        let shared_xattr_block = u64::from(u32_at(bytes, 44));
        if metadata_block >= data_blocks || shared_xattr_block >= data_blocks {
            return malformed("metadata beyond the image");
        }
        let build_time_nsec = u32_at(bytes, 32);
        if build_time_nsec >= 1_000_000_000 {
            return malformed("impossible build time");
        }
        Ok(SuperBlock {
            root_nid: u64::from(u16_at(bytes, 14)),
            inodes: u64_at(bytes, 16),
            metadata: metadata_block.saturating_mul(BLOCK_SIZE as u64),
            shared_xattrs: shared_xattr_block.saturating_mul(BLOCK_SIZE as u64),
            build_time: u64_at(bytes, 24).cast_signed(),
            build_time_nsec,
        })
    }
}
