//! Builds the verified root file system of a container: one uncompressed EROFS image followed by
//! its dm-verity hash tree, in one file, without root and deterministic to the byte.
//!
//! - [`Builder`]: takes directories, files, links, devices; [`Builder::finish`] writes the file and
//!   returns the parameters that the measured configuration binds.
//! - [`from_directory`]: the same for a directory tree of this machine.
//! - [`encrypt`]: a copy whose blocks are encrypted.
//! - [`verify`]: checks a file against its parameters, as `veritysetup verify` does.
//!
//! The image depends on the tree alone, never on the order in which it was described, on hole
//! layouts, directory order, inode numbers or the clock. A stock kernel mounts it.
//!
//! What is stored how: content shared by several files is stored once; files and directory ends up
//! to 2 KiB lie in the metadata, beside their inode; files from 1 MiB on store no chunk (64 KiB or
//! more) of zeros; all else is dense. Attributes that EROFS cannot hold are errors.
//!
//! What it leaves out: compression, sharing of parts of files, shared extended attributes.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod builder;
mod content;
mod directory;
mod encrypt;
mod error;
mod format;
mod image;
mod layout;
mod sparse;
mod tree;
mod verity;

pub use builder::{Attributes, Builder, Inode, Numbers, Special, xattr_is_supported};
pub use directory::{Options, Ownership, from_directory};
pub use encrypt::encrypt;
pub use error::{Error, Result};
pub use verity::verify;

/// Bytes in a block.
pub(crate) const BLOCK: u64 = 4096;
