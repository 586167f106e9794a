//! What the *at calls share: a directory descriptor, a path, flags.

use alloc::vec::Vec;

use super::Context;
use crate::Result;
use crate::errno::{EBADF, EINVAL, ENOENT, ENOTDIR};
use crate::fs::path::{Follow, PathRef, Walk};
use crate::fs::permission::Caller;
use crate::user::read_path;

/// The working directory.
pub const AT_FDCWD: i32 = -100;
pub const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
pub const AT_EACCESS: u32 = 0x200;
pub const AT_REMOVEDIR: u32 = 0x200;
pub const AT_SYMLINK_FOLLOW: u32 = 0x400;
pub const AT_NO_AUTOMOUNT: u32 = 0x800;
pub const AT_EMPTY_PATH: u32 = 0x1000;

impl Context<'_> {
    /// On whose behalf files are used.
    pub fn caller(&self) -> Caller<'_> {
        Caller::new(self.thread)
    }

    /// A path argument.
    pub fn path(&self, address: u64) -> Result<Vec<u8>> {
        read_path(&self.mm(), address)
    }

    /// A walk from the working directory.
    pub fn walk(&self) -> Walk<'_> {
        Walk::from(self.caller(), self.thread.fs())
    }

    /// A walk from `dirfd`. The descriptor matters only for a relative path; EBADF, ENOTDIR.
    pub fn walk_at(&self, dirfd: i32, path: &[u8]) -> Result<Walk<'_>> {
        if dirfd == AT_FDCWD || path.first() == Some(&b'/') {
            return Ok(self.walk());
        }
        let base = self.place_of(dirfd)?;
        if !path.is_empty() && !base.inode().is_directory() {
            return Err(ENOTDIR);
        }
        Ok(Walk::at(self.caller(), &self.thread.fs(), base))
    }

    /// Where a descriptor's file is in the tree. ENOTDIR for one without a place, as for any other
    /// file that is no directory.
    pub fn place_of(&self, fd: i32) -> Result<PathRef> {
        if fd == AT_FDCWD {
            return Ok(self.thread.fs().cwd());
        }
        self.thread.file(fd)?.path.clone().ok_or(ENOTDIR)
    }

    /// Resolves (dirfd, path, flags) with AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW and AT_EMPTY_PATH.
    pub fn find_at(&self, dirfd: i32, path: &[u8], flags: u32, default: Follow) -> Result<PathRef> {
        if path.is_empty() {
            if flags & AT_EMPTY_PATH == 0 {
                return Err(ENOENT);
            }
            return match self.place_of(dirfd) {
                Err(error) if error == ENOTDIR => Err(EBADF.because("no place in the tree")),
                other => other,
            };
        }
        let follow = if flags & AT_SYMLINK_NOFOLLOW != 0 {
            Follow::No
        } else if flags & AT_SYMLINK_FOLLOW != 0 {
            Follow::Yes
        } else {
            default
        };
        self.walk_at(dirfd, path)?.find(path, follow)
    }

    /// A path argument that may be null where AT_EMPTY_PATH is given.
    pub fn path_or_empty(&self, address: u64, flags: u32) -> Result<Vec<u8>> {
        if address == 0 && flags & AT_EMPTY_PATH != 0 {
            return Ok(Vec::new());
        }
        self.path(address)
    }
}

/// EINVAL for flags that the call does not know.
pub fn check_flags(flags: u32, known: u32) -> Result<()> {
    if flags & !known != 0 {
        Err(EINVAL.because("unknown flags"))
    } else {
        Ok(())
    }
}
