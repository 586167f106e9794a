//! The on-disk structures of EROFS, as the kernel's `fs/erofs/erofs_fs.h` defines them.

use crate::BLOCK;
use crate::builder::Attributes;
use crate::tree::Kind;

/// Longest target of a symbolic link.
pub(crate) const SYMLINK_MAX: usize = 4095;
/// Unit of inode numbers: byte position in the metadata area.
pub(crate) const SLOT: u64 = 32;
pub(crate) const DIRENT_SIZE: usize = 12;
pub(crate) const SUPER_BLOCK_POSITION: usize = 1024;

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_CHECKSUM: u32 = 0x1;
const COMPAT_MTIME: u32 = 0x2;
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;

const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;
const LAYOUT_CHUNKS: u16 = 4;

const XATTR_HEADER: usize = 12;
/// The count of 4-byte units after the header is stored plus one, in 16 bits.
const XATTR_MAX: usize = XATTR_HEADER + 4 * (u16::MAX as usize - 1);

/// Attribute names are stored as a number for the prefix and the rest. Whole names come first.
const XATTR_PREFIXES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Where the content of an inode is.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// None, or all in blocks from this one on.
    Plain { block: u32 },
    /// Full blocks from this one on, the rest after the inode.
    Inline { block: u32, tail: Tail },
    /// Chunks, each at a block or [`HOLE`]; the map comes after the inode.
    Chunks { bits: u32, map: Vec<u32> },
}

/// Where an inline tail comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tail {
    /// From the kept pieces of files.
    Kept(u64),
    /// From the tree: end of a directory, or target of a link.
    Tree,
}

pub(crate) const HOLE: u32 = u32::MAX;

/// An inode as it will be written, without the name-dependent parts.
pub(crate) struct Inode<'a> {
    pub attributes: &'a Attributes,
    pub kind: &'a Kind,
    pub compact: bool,
    pub size: u64,
    pub links: u32,
    /// Serial number for 32-bit `st_ino`.
    pub serial: u32,
    pub content: &'a Content,
}

impl Inode<'_> {
    /// The bytes of the inode and its extended attributes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (layout, word) = match (self.kind, self.content) {
            (Kind::CharacterDevice(device) | Kind::BlockDevice(device), _) => {
                (LAYOUT_PLAIN, *device)
            }
            (_, Content::Plain { block }) => (LAYOUT_PLAIN, *block),
            (_, Content::Inline { block, .. }) => (LAYOUT_INLINE, *block),
            (_, Content::Chunks { bits, .. }) => (LAYOUT_CHUNKS, *bits),
        };
        let xattrs = xattr_bytes(self.attributes);
        let xattr_count = match xattrs.len() {
            0 => 0,
            length => ((length - XATTR_HEADER) / 4 + 1) as u16,
        };
        let mut bytes = Vec::with_capacity(64 + xattrs.len());
        let format = layout << 1 | u16::from(!self.compact);
        bytes.extend(format.to_le_bytes());
        bytes.extend(xattr_count.to_le_bytes());
        bytes.extend((type_bits(self.kind) | self.attributes.mode).to_le_bytes());
        let Attributes {
            uid,
            gid,
            modified: (seconds, nanoseconds),
            ..
        } = self.attributes;
        if self.compact {
            bytes.extend((self.links as u16).to_le_bytes());
            bytes.extend((self.size as u32).to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(word.to_le_bytes());
            bytes.extend(self.serial.to_le_bytes());
            bytes.extend((*uid as u16).to_le_bytes());
            bytes.extend((*gid as u16).to_le_bytes());
            bytes.extend([0; 4]);
        } else {
            bytes.extend([0; 2]);
            bytes.extend(self.size.to_le_bytes());
            bytes.extend(word.to_le_bytes());
            bytes.extend(self.serial.to_le_bytes());
            bytes.extend(uid.to_le_bytes());
            bytes.extend(gid.to_le_bytes());
            bytes.extend(seconds.to_le_bytes());
            bytes.extend(nanoseconds.to_le_bytes());
            bytes.extend(self.links.to_le_bytes());
            bytes.extend([0; 16]);
        }
        bytes.extend(xattrs);
        bytes
    }
}

/// Bytes of an inode without attributes and content.
pub(crate) fn inode_size(compact: bool) -> u64 {
    if compact { 32 } else { 64 }
}

/// Whether the short form can hold an inode, given the one time that all short ones share.
pub(crate) fn fits_compact(
    attributes: &Attributes,
    size: u64,
    links: u32,
    build_time: (i64, u32),
) -> bool {
    attributes.modified == build_time
        && size <= u64::from(u32::MAX)
        && links <= u32::from(u16::MAX)
        && attributes.uid <= u32::from(u16::MAX)
        && attributes.gid <= u32::from(u16::MAX)
}

fn type_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::File { .. } => 0o100000,
        Kind::Directory(_) => 0o040000,
        Kind::CharacterDevice(_) => 0o020000,
        Kind::BlockDevice(_) => 0o060000,
        Kind::Fifo => 0o010000,
        Kind::Socket => 0o140000,
        Kind::Symlink(_) => 0o120000,
    }
}

/// The type byte of a directory entry.
pub(crate) fn entry_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => 1,
        Kind::Directory(_) => 2,
        Kind::CharacterDevice(_) => 3,
        Kind::BlockDevice(_) => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}

/// The kernel's encoding (new_encode_dev), `None` where it has no room.
pub(crate) fn device_number(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Says why EROFS cannot hold these attributes, if so.
pub(crate) fn check_attributes(attributes: &Attributes) -> Result<(), String> {
    if attributes.mode > 0o7777 {
        return Err(format!(
            "mode {:o} has bits beyond the permissions",
            attributes.mode
        ));
    }
    if attributes.modified.1 >= 1_000_000_000 {
        return Err("the nanoseconds of its time are not below 10^9".into());
    }
    for (name, value) in &attributes.xattrs {
        let shown = String::from_utf8_lossy(name);
        let Some((_, suffix)) = split_xattr(name) else {
            return Err(format!(
                "EROFS has no extended attributes like {shown}; remove it"
            ));
        };
        if suffix.len() > 255 || suffix.contains(&0) || value.len() > usize::from(u16::MAX) {
            return Err(format!(
                "the extended attribute {shown} is too long; remove it"
            ));
        }
    }
    if xattr_size(attributes) > XATTR_MAX as u64 {
        return Err("more than 256 KiB of extended attributes; remove some".into());
    }
    Ok(())
}

/// The number of the name's prefix, and the rest.
pub(crate) fn split_xattr(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|&(prefix, index)| {
        let suffix = name.strip_prefix(prefix)?;
        // A prefix with a dot needs something after it, a whole name must end.
        (suffix.is_empty() != prefix.ends_with(b".")).then_some((index, suffix))
    })
}

/// Bytes of the extended attributes in the inode.
pub(crate) fn xattr_size(attributes: &Attributes) -> u64 {
    if attributes.xattrs.is_empty() {
        return 0;
    }
    let entries: usize = attributes
        .xattrs
        .iter()
        .filter_map(|(name, value)| Some((split_xattr(name)?.1, value)))
        .map(|(suffix, value)| (4 + suffix.len() + value.len()).next_multiple_of(4))
        .sum();
    (XATTR_HEADER + entries) as u64
}

fn xattr_bytes(attributes: &Attributes) -> Vec<u8> {
    let mut bytes = Vec::new();
    if attributes.xattrs.is_empty() {
        return bytes;
    }
    bytes.resize(XATTR_HEADER, 0);
    for (name, value) in &attributes.xattrs {
        let Some((index, suffix)) = split_xattr(name) else {
            continue;
        };
        bytes.extend([suffix.len() as u8, index]);
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend_from_slice(suffix);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// What the superblock says.
pub(crate) struct SuperBlock {
    pub root_nid: u16,
    pub inodes: u64,
    pub build_time: (i64, u32),
    pub blocks: u32,
    pub metadata_block: u32,
    pub chunked: bool,
}

impl SuperBlock {
    /// The first block of the image.
    pub fn to_block(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        let mut put = |at: usize, bytes: &[u8]| {
            block[SUPER_BLOCK_POSITION + at..][..bytes.len()].copy_from_slice(bytes);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK.trailing_zeros() as u8]);
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(24, &self.build_time.0.to_le_bytes());
        put(32, &self.build_time.1.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.metadata_block.to_le_bytes());
        put(
            80,
            &(if self.chunked {
                INCOMPAT_CHUNKED_FILE
            } else {
                0
            })
            .to_le_bytes(),
        );
        let checksum = crc32c(&block[SUPER_BLOCK_POSITION..]);
        block[SUPER_BLOCK_POSITION + 4..][..4].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// CRC-32C with all bits set at the start and no inversion at the end, as the kernel uses it here.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_of_the_check_string() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn xattr_names_split() {
        assert_eq!(
            split_xattr(b"security.capability"),
            Some((6, &b"capability"[..]))
        );
        assert_eq!(split_xattr(b"system.posix_acl_access"), Some((2, &b""[..])));
        assert_eq!(split_xattr(b"system.posix_acl_accessory"), None);
        assert_eq!(split_xattr(b"user."), None);
        assert_eq!(split_xattr(b"system.nfs4_acl"), None);
    }

    #[test]
    fn device_numbers_have_limits() {
        assert_eq!(device_number(8, 1), Some(0x801));
        assert_eq!(device_number(4095, 0xfffff), Some(u32::MAX));
        assert_eq!(device_number(4096, 0), None);
        assert_eq!(device_number(0, 1 << 20), None);
    }
}
