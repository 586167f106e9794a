//! What can go wrong when the host's storage is read.

use core::fmt;

/// An error of the verified storage. [`Error::errno`] is what Linux would answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The source gave no data for this 4 KiB block of the rootfs file.
    Source {
        /// Block number in the rootfs file.
        block: u64,
    },
    /// The hash of a data block is not what the tree says.
    Integrity {
        /// Block number in the rootfs file.
        block: u64,
    },
    /// The hash of a block of the hash tree is not what its parent (or the root hash) says.
    TreeIntegrity {
        /// Block number in the rootfs file (it lies after the data).
        block: u64,
        /// Level of the tree; 0 is the one next to the data.
        level: usize,
    },
    /// The image says something that cannot be; it was built so, as its hashes are right.
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Byte position in the image where it was found.
        position: u64,
    },
    /// The image uses a feature that this reader leaves out.
    Unsupported {
        /// The feature.
        what: &'static str,
    },
    /// The measured parameters of the tree contradict each other.
    Parameters {
        /// What is wrong.
        what: &'static str,
    },
    /// No entry of this name.
    NotFound,
    /// The inode is not a directory.
    NotDirectory,
    /// The inode is a directory.
    IsDirectory,
    /// The operation does not fit this kind of inode.
    Invalid,
    /// The name is longer than 255 bytes.
    NameTooLong,
    /// No memory for a block.
    NoMemory,
}

impl Error {
    /// The Linux error number, positive.
    pub const fn errno(&self) -> i32 {
        match self {
            Error::Source { .. }
            | Error::Integrity { .. }
            | Error::TreeIntegrity { .. }
            | Error::Malformed { .. } => 5,
            Error::NotFound => 2,
            Error::NoMemory => 12,
            Error::NotDirectory => 20,
            Error::IsDirectory => 21,
            Error::Invalid | Error::Parameters { .. } => 22,
            Error::NameTooLong => 36,
            Error::Unsupported { .. } => 95,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Source { block } => {
                write!(
                    f,
                    "block {block} of the rootfs could not be read: is the file complete?"
                )
            }
            Error::Integrity { block } => write!(
                f,
                "block {block} of the rootfs was changed after it was measured: restore the file"
            ),
            Error::TreeIntegrity { block, level } => write!(
                f,
                "block {block} of the rootfs (hash tree level {level}) was changed after it was \
                 measured: restore the file"
            ),
            Error::Malformed { what, position } => {
                write!(
                    f,
                    "malformed rootfs image at byte {position}: {what}: build it again"
                )
            }
            Error::Unsupported { what } => {
                write!(f, "the rootfs image uses {what}: build it without")
            }
            Error::Parameters { what } => {
                write!(
                    f,
                    "bad rootfs parameters in the configuration: {what}: build it again"
                )
            }
            Error::NotFound => f.write_str("no such entry"),
            Error::NotDirectory => f.write_str("not a directory"),
            Error::IsDirectory => f.write_str("is a directory"),
            Error::Invalid => f.write_str("not possible with this kind of file"),
            Error::NameTooLong => f.write_str("name longer than 255 bytes"),
            Error::NoMemory => f.write_str("no memory for a block: give the container more"),
        }
    }
}

impl core::error::Error for Error {}
