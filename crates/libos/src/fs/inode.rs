//! Inodes: what a file system implements.

use core::any::Any;

use crate::Result;
use crate::errno::EIO;

/// Identity of file content for mappings and learned system-call sites: stable while the kernel
/// runs, equal for the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

/// A file system object.
pub trait Inode: Any + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn id(&self) -> FileId;
    fn size(&self) -> u64;
    /// Reads content into kernel memory (page-ins, exec, read): bytes read, 0 at the end.
    fn read_bytes(&self, _offset: u64, _to: &mut [u8]) -> Result<usize> {
        Err(EIO)
    }
    fn write_bytes(&self, _offset: u64, _from: &[u8]) -> Result<usize> {
        Err(EIO)
    }
    /// Content that can never change (the verified root file system).
    fn is_immutable(&self) -> bool {
        false
    }
}
