//! Open files: the object behind a descriptor, and what a kind of file must implement.

use alloc::sync::Arc;
use core::any::Any;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::errno::{EINVAL, ENOTTY, ESPIPE};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable};
use crate::syscall::Context;
use crate::user::IoBuffer;
use crate::{Result, Thread};

/// Status flags of an open file (O_APPEND, O_NONBLOCK, O_DIRECT, O_ASYNC, access mode).
pub mod flags {
    pub const ACCESS_MODE: u32 = 0o3;
    pub const RDONLY: u32 = 0;
    pub const WRONLY: u32 = 1;
    pub const RDWR: u32 = 2;
    pub const CREAT: u32 = 0o100;
    pub const EXCL: u32 = 0o200;
    pub const NOCTTY: u32 = 0o400;
    pub const TRUNC: u32 = 0o1000;
    pub const APPEND: u32 = 0o2000;
    pub const NONBLOCK: u32 = 0o4000;
    pub const DSYNC: u32 = 0o10000;
    pub const ASYNC: u32 = 0o20000;
    pub const DIRECT: u32 = 0o40000;
    pub const LARGEFILE: u32 = 0o100000;
    pub const DIRECTORY: u32 = 0o200000;
    pub const NOFOLLOW: u32 = 0o400000;
    pub const NOATIME: u32 = 0o1000000;
    pub const CLOEXEC: u32 = 0o2000000;
    pub const SYNC: u32 = 0o4010000;
    pub const PATH: u32 = 0o10000000;
    pub const TMPFILE: u32 = 0o20200000;
}

/// An open file description: shared by dup and fork.
pub struct OpenFile {
    pub ops: Arc<dyn FileOps>,
    flags: AtomicU32,
    /// File position. Held over a read or write, as Linux does for regular files.
    pub position: SpinLock<u64>,
    /// Where it was opened, for /proc/self/fd, *at calls and directories; `None` for sockets …
    pub path: Option<crate::fs::path::PathRef>,
}

impl OpenFile {
    pub fn new(ops: Arc<dyn FileOps>, flags: u32) -> Arc<OpenFile> {
        Self::with_path(ops, flags, None)
    }

    pub fn with_path(
        ops: Arc<dyn FileOps>,
        flags: u32,
        path: Option<crate::fs::path::PathRef>,
    ) -> Arc<OpenFile> {
        Arc::new(OpenFile { ops, flags: AtomicU32::new(flags), position: SpinLock::new(0), path })
    }

    pub fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// F_SETFL: replaces the bits in `mask`.
    pub fn set_flags(&self, mask: u32, value: u32) {
        let old = self.flags();
        self.flags.store(old & !mask | value & mask, Ordering::Relaxed);
    }

    pub fn is_nonblocking(&self) -> bool {
        self.flags() & flags::NONBLOCK != 0
    }

    pub fn is_readable(&self) -> bool {
        self.flags() & flags::ACCESS_MODE != flags::WRONLY
    }

    pub fn is_writable(&self) -> bool {
        self.flags() & flags::ACCESS_MODE != flags::RDONLY
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.ops.release(self.flags());
    }
}

/// What a kind of file implements. Defaults refuse as Linux does for files without the operation.
pub trait FileOps: Any + Send + Sync {
    /// For downcasts to the concrete kind (socket calls, epoll_ctl, timerfd_settime …).
    fn as_any(&self) -> &dyn Any;

    /// Reads at the file position (which the implementation moves, if it has one).
    fn read(&self, _thread: &Arc<Thread>, _file: &OpenFile, _to: &mut IoBuffer<'_>) -> Result<usize> {
        Err(EINVAL)
    }

    fn write(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        _from: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        Err(EINVAL)
    }

    /// pread: at `offset`, not moving the position.
    fn read_at(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        _to: &mut IoBuffer<'_>,
        _offset: u64,
    ) -> Result<usize> {
        Err(ESPIPE)
    }

    fn write_at(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        _from: &mut IoBuffer<'_>,
        _offset: u64,
    ) -> Result<usize> {
        Err(ESPIPE)
    }

    fn seek(&self, _file: &OpenFile, _offset: i64, _whence: u32) -> Result<u64> {
        Err(ESPIPE)
    }

    /// Readiness now. With a table: register with every queue that may change it first.
    /// A file that lives on the host (`host_fd`) reports only what it knows by itself.
    fn poll(&self, _table: Option<&mut PollTable>, _interest: Events) -> Events {
        Events::IN | Events::OUT | Events::RDNORM | Events::WRNORM
    }

    /// The host descriptor whose readiness is this file's, for sockets and standard streams.
    fn host_fd(&self) -> Option<i32> {
        None
    }

    fn ioctl(
        &self,
        _context: &mut Context<'_>,
        _file: &OpenFile,
        _request: u32,
        _argument: u64,
    ) -> Result<usize> {
        Err(ENOTTY)
    }

    /// The inode behind the file, when it has one: stat, mmap, truncate, … go through it.
    fn inode(&self) -> Option<Arc<dyn crate::fs::inode::Inode>> {
        None
    }

    /// getdents64: fills `to` with directory entries from the file position on.
    fn read_dir(&self, _file: &OpenFile, _to: &mut IoBuffer<'_>) -> Result<usize> {
        Err(crate::errno::ENOTDIR)
    }

    /// The last reference to the open file is gone.
    fn release(&self, _flags: u32) {}

    /// What /proc/self/fd shows for files without a path, such as "pipe:[12]".
    fn describe(&self) -> alloc::string::String {
        alloc::string::String::from("anon_inode:[file]")
    }
}
