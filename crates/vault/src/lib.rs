//! Storage that the enclave can trust although the host keeps it.
//!
//! - [`Erofs`]: the container's files, an EROFS image read through
//! - [`Verity`]: a dm-verity hash tree (format 1, SHA-256) that checks each block when it is used.
//! - [`BlockSource`]: what the platform gives: a copy out of untrusted memory, and SHA-256.
//! - [`BlockCache`]: verified blocks kept in enclave memory.
//! - [`ImageCipher`]: AES-XTS under the hash tree, for images whose files are secret.
//! - [`volume`]: protected volumes, which can be written to.
//!
//! ```text
//! let fs = Erofs::open(source, &config.rootfs, Options::default())?;
//! let etc = fs.lookup(&fs.root()?, b"etc")?;
//! let passwd = fs.inode(fs.lookup(&fs.inode(etc.nid)?, b"passwd")?.nid)?;
//! let n = fs.read_at(&passwd, 0, &mut buffer)?;
//! ```
//!
//! Invariants: sizes, salt and root hash come from the measured configuration, never from the
//! image. A byte of the host is copied in once, hashed in that copy and only then looked at; no
//! second read is ever trusted. A corrupt or hostile image gives an [`Error`], never a panic, an
//! endless loop or an access out of bounds; arithmetic on its numbers is checked.
//!
//! Everything here is `Send + Sync`. Lock order: one cache set at a time, held for a few
//! instructions, never while the source is read or a block is hashed.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bytes;
mod cache;
mod erofs;
mod error;
mod source;
mod verity;
pub mod volume;
mod xts;

pub use cache::{Block, BlockCache};
pub use erofs::{DirEntry, Entry, Erofs, FileKind, Inode, Nid, Options, Statistics};
pub use error::Error;
pub use source::{BlockSource, SourceFault};
pub use verity::Verity;
pub use xts::ImageCipher;

/// Bytes in a block, of data and of the hash tree alike.
pub const BLOCK_SIZE: usize = 4096;

/// Result of everything in this crate.
pub type Result<T, E = Error> = core::result::Result<T, E>;
