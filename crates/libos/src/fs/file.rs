//! Open files: the object behind a descriptor, and what a kind of file must implement.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::inode::{Find, Inode, Metadata, Time};
use super::lock::{self, Locks};
use super::mount::flags::NOATIME;
use super::path::PathRef;
use crate::errno::{EBADF, EINVAL, ENOTTY, ENXIO, ESPIPE};
use crate::sync::mutex::SleepLock;
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

/// lseek(2)'s `whence`.
pub struct SEEK;

impl SEEK {
    pub const SET: u32 = 0;
    pub const CUR: u32 = 1;
    pub const END: u32 = 2;
    pub const DATA: u32 = 3;
    pub const HOLE: u32 = 4;
}

/// lseek(2) of a file or directory of a file system.
pub(super) fn seek(
    inode: &dyn Inode,
    is_directory: bool,
    thread: &Arc<Thread>,
    file: &OpenFile,
    offset: i64,
    whence: u32,
) -> Result<u64> {
    let mut position = file.position.lock(thread);
    let target = match whence {
        SEEK::SET => offset,
        SEEK::CUR => position.checked_add_signed(offset).ok_or(EINVAL)? as i64,
        SEEK::END if is_directory => return Err(EINVAL),
        SEEK::END => inode.size().checked_add_signed(offset).ok_or(EINVAL)? as i64,
        SEEK::DATA | SEEK::HOLE if !is_directory => {
            let what = if whence == SEEK::DATA {
                Find::Data
            } else {
                Find::Hole
            };
            let offset = u64::try_from(offset).map_err(|_| ENXIO)?;
            inode.find(what, offset).ok_or(ENXIO)? as i64
        }
        _ => return Err(EINVAL),
    };
    *position = u64::try_from(target).map_err(|_| EINVAL)?;
    Ok(*position)
}

/// An open file description: shared by dup and fork.
pub struct OpenFile {
    pub ops: Arc<dyn FileOps>,
    flags: AtomicU32,
    /// File position. Held over a read or write, as Linux does for regular files.
    pub position: SleepLock<u64>,
    /// Locks and leases the file may have left: cleaned up when it goes.
    pub(super) lock_owner: AtomicU32,
    /// F_SETOWN, F_SETSIG, O_ASYNC.
    pub owner: super::async_io::Owner,
    /// Whether the open made the file (F_CREATED_QUERY).
    pub created: AtomicBool,
    /// Where it was opened, for /proc/self/fd, *at calls and directories; `None` for sockets …
    pub path: Option<PathRef>,
}

impl OpenFile {
    pub fn new(ops: Arc<dyn FileOps>, flags: u32) -> Arc<OpenFile> {
        Self::with_path(ops, flags, None)
    }

    pub fn with_path(ops: Arc<dyn FileOps>, flags: u32, path: Option<PathRef>) -> Arc<OpenFile> {
        let counts = flags & flags::PATH == 0;
        let state = path.as_ref().filter(|_| counts);
        if let Some(state) = state.and_then(|path| path.inode().state()) {
            state.begin_open();
        }
        Arc::new(OpenFile {
            ops,
            flags: AtomicU32::new(flags),
            position: SleepLock::new(0),
            lock_owner: AtomicU32::new(0),
            owner: super::async_io::Owner::default(),
            created: AtomicBool::new(false),
            path,
        })
    }

    /// The inode behind the file, when it has one: stat, mmap, truncate, … go through it.
    pub fn inode(&self) -> Option<&Arc<dyn Inode>> {
        self.path.as_ref().map(PathRef::inode)
    }

    /// The locks on what is open; `None` for an inode that has none.
    pub fn locks(&self) -> Option<&Locks> {
        match self.inode() {
            Some(inode) => inode.state().map(|state| &state.locks),
            None => Some(self.ops.locks()),
        }
    }

    /// The flags as fcntl(2) and /proc tell them: what a path was opened with has O_LARGEFILE.
    pub fn shown_flags(&self) -> u32 {
        match self.path.is_some() && !self.is_path() {
            true => self.flags() | flags::LARGEFILE,
            false => self.flags(),
        }
    }

    /// O_PATH: a place in the tree, not an open file.
    pub fn is_path(&self) -> bool {
        self.flags() & flags::PATH != 0
    }

    /// Whether reads move the access time.
    pub fn updates_access_time(&self) -> bool {
        self.flags() & flags::NOATIME == 0
            && self
                .path
                .as_ref()
                .is_some_and(|path| path.mount.flags() & NOATIME == 0)
    }

    /// What /proc/self/fd shows.
    pub fn display_path(&self, root: &PathRef) -> Vec<u8> {
        match &self.path {
            Some(path) if !self.ops.has_own_name() => path.display_path(root),
            _ => self.ops.describe().into_bytes(),
        }
    }

    pub fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// F_SETFL: replaces the bits in `mask`.
    pub fn set_flags(&self, mask: u32, value: u32) {
        let old = self.flags();
        self.flags
            .store(old & !mask | value & mask, Ordering::Relaxed);
    }

    pub fn is_nonblocking(&self) -> bool {
        self.flags() & flags::NONBLOCK != 0
    }

    pub fn is_readable(&self) -> bool {
        self.flags() & flags::ACCESS_MODE != flags::WRONLY && self.flags() & flags::PATH == 0
    }

    pub fn is_writable(&self) -> bool {
        self.flags() & flags::ACCESS_MODE != flags::RDONLY && self.flags() & flags::PATH == 0
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        super::lock::release_file(self);
        super::lease::release(self);
        super::dnotify::release(self);
        if !self.is_path()
            && let Some(state) = self.inode().and_then(|inode| inode.state())
        {
            state.end_open();
        }
        self.ops.release(self.flags());
        super::inotify::closed(self);
    }
}

/// What a kind of file implements. Defaults refuse as Linux does for files without the operation.
pub trait FileOps: Any + Send + Sync {
    /// For downcasts to the concrete kind (socket calls, epoll_ctl, timerfd_settime …).
    fn as_any(&self) -> &dyn Any;

    /// Reads at the file position (which the implementation moves, if it has one).
    fn read(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        _to: &mut IoBuffer<'_>,
    ) -> Result<usize> {
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

    fn seek(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        _offset: i64,
        _whence: u32,
    ) -> Result<u64> {
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

    /// Whether O_ASYNC works: its wait queues are woken by I/O only, never by signals.
    fn is_async(&self) -> bool {
        false
    }

    /// Its locks, where it has no inode in a file system.
    fn locks(&self) -> &Locks {
        &lock::ANONYMOUS
    }

    /// Whether lseek, pread and pwrite make sense.
    fn is_seekable(&self) -> bool {
        false
    }

    /// fstat(2) for files without a path.
    fn metadata(&self) -> Metadata {
        anonymous_metadata()
    }

    /// Lines of /proc/self/fdinfo of this kind of file alone.
    fn describe_more(&self) -> String {
        String::new()
    }

    /// Whether /proc/self/fd shows `describe` even though there is a path (memfd).
    fn has_own_name(&self) -> bool {
        false
    }

    /// F_SETFL: whether the file can have these flags.
    fn check_flags(&self, _flags: u32) -> Result<()> {
        Ok(())
    }

    /// The last reference to the open file is gone.
    fn release(&self, _flags: u32) {}

    /// What /proc/self/fd shows for files without a path, such as "pipe:[12]".
    fn describe(&self) -> String {
        String::from("anon_inode:[file]")
    }
}

/// st_dev of files that belong to no file system.
pub const ANONYMOUS_DEVICE: u64 = 14;

/// fstat(2) of an anonymous inode, as Linux shows it.
pub fn anonymous_metadata() -> Metadata {
    Metadata {
        device: ANONYMOUS_DEVICE,
        inode: 1,
        links: 1,
        mode: 0o600,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        block_size: 4096,
        blocks: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        btime: Time::default(),
    }
}

/// The operations of an O_PATH descriptor: none.
pub struct PathOnly;

impl FileOps for PathOnly {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        _to: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        Err(EBADF)
    }

    fn write(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        _from: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        Err(EBADF)
    }

    fn poll(&self, _table: Option<&mut PollTable>, _interest: Events) -> Events {
        Events::NVAL
    }
}
