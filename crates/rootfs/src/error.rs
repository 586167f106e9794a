//! What can go wrong when an image is built.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of building or checking an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the input or writing the image failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A path or name cannot be in an image.
    #[error("{path}: {reason}")]
    Path {
        /// The path.
        path: PathBuf,
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// EROFS cannot hold this.
    #[error("{path}: {reason}")]
    Unsupported {
        /// The file that has it.
        path: PathBuf,
        /// What it is, and what to do.
        reason: String,
    },
    /// A file's content is not as long as was said, or changed while it was read.
    #[error("{path}: its size is not {expected} bytes; build again when nothing writes to it")]
    Size {
        /// The file.
        path: PathBuf,
        /// The size it should have.
        expected: u64,
    },
    /// More than 2^32 blocks.
    #[error("the image would be larger than 16 TiB; leave files out")]
    TooLarge,
    /// A file does not match its hash tree.
    #[error("block {block} of {path} does not match its hash; build the image again")]
    Corrupt {
        /// The image.
        path: PathBuf,
        /// The first wrong block of data.
        block: u64,
    },
    /// The hash tree does not lead to the root hash.
    #[error("the hash tree of {path} does not match the root hash; build the image again")]
    CorruptTree {
        /// The image.
        path: PathBuf,
    },
    /// The lists of sites behind the hash tree are not those that were measured.
    #[error("the site lists of {path} do not match their hash; build the image again")]
    CorruptSites {
        /// The image.
        path: PathBuf,
    },
    /// The parameters of an image contradict its size.
    #[error("{path} does not have the size that its parameters say; build the image again")]
    Parameters {
        /// The image.
        path: PathBuf,
    },
}

/// Adds action and path to an I/O error.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

/// A path of the image, for messages.
pub(crate) fn image_path(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}
