//! /proc, generated from the kernel's state.

use alloc::sync::Arc;

use super::inode::Inode;
use super::memfs::{MemFs, PROC_MAGIC};

/// The root directory.
pub fn root() -> Arc<dyn Inode> {
    MemFs::new(PROC_MAGIC, super::budget(), u64::MAX >> 1).empty_root(0o555)
}
