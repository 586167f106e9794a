//! Paths and their resolution.

use alloc::sync::Arc;

use super::inode::Inode;

/// A resolved location.
#[derive(Clone)]
pub struct PathRef {
    pub inode: Arc<dyn Inode>,
}
