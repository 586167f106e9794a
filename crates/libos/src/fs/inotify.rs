//! inotify(7): events about files and directories.

use alloc::sync::Arc;

use super::dentry::Dentry;
use super::file::OpenFile;
use super::inode::Inode;
use super::path::PathRef;

/// Event bits.
pub mod mask {
    pub const ACCESS: u32 = 0x1;
    pub const MODIFY: u32 = 0x2;
    pub const ATTRIB: u32 = 0x4;
    pub const CLOSE_WRITE: u32 = 0x8;
    pub const CLOSE_NOWRITE: u32 = 0x10;
    pub const OPEN: u32 = 0x20;
    pub const MOVED_FROM: u32 = 0x40;
    pub const MOVED_TO: u32 = 0x80;
    pub const CREATE: u32 = 0x100;
    pub const DELETE: u32 = 0x200;
    pub const DELETE_SELF: u32 = 0x400;
    pub const MOVE_SELF: u32 = 0x800;
}

/// The watches on one inode.
#[derive(Default)]
pub struct Watches {}

/// An open file is gone: IN_CLOSE_WRITE, IN_CLOSE_NOWRITE.
pub(super) fn closed(_file: &OpenFile) {}
pub fn notify_file(_file: &OpenFile, _mask: u32) {}
pub fn notify_child(_d: &Arc<dyn Inode>, _name: &[u8], _mask: u32, _dir: bool, _cookie: u32) {}
pub fn notify_inode(_inode: &Arc<dyn Inode>, _mask: u32) {}
pub fn notify_path(_path: &PathRef, _mask: u32) {}
pub fn unlinked(_inode: &Arc<dyn Inode>, _dentry: &Arc<Dentry>) {}
pub fn removed(_inode: &Arc<dyn Inode>) {}
pub fn next_cookie() -> u32 {
    0
}
