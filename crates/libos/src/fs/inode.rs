//! Inodes: what a file system implements.
//!
//! An [`Inode`] is the object itself, without a name: names are [`super::dentry::Dentry`]s. The
//! VFS (`namei`, `path`) checks permissions and holds the namespace lock around every change of a
//! directory, so implementations need neither.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::acl::{self, Acl};
use super::dnotify::Notes;
use super::file::FileOps;
use super::inotify::Watches;
use super::lease::Leases;
use super::lock::Locks;
use super::path::PathRef;
use super::permission::Caller;
use crate::errno::{EACCES, EINVAL, EIO, ENOTDIR, ENXIO, EOPNOTSUPP, EPERM, ETXTBSY};
use crate::{Result, Thread};

/// Longest name in a directory (NAME_MAX).
pub const NAME_MAX: usize = 255;

/// Identity of file content for mappings and learned system-call sites: stable while the kernel
/// runs, equal for the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

/// What kind of object an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    Fifo,
    Character,
    Directory,
    Block,
    Regular,
    Link,
    Socket,
}

impl FileType {
    /// The bits of st_mode.
    pub const fn mode(self) -> u32 {
        match self {
            FileType::Fifo => 0o010000,
            FileType::Character => 0o020000,
            FileType::Directory => 0o040000,
            FileType::Block => 0o060000,
            FileType::Regular => 0o100000,
            FileType::Link => 0o120000,
            FileType::Socket => 0o140000,
        }
    }

    /// The type in an st_mode; `None` for a number that means nothing.
    pub const fn from_mode(mode: u32) -> Option<FileType> {
        Some(match mode & 0o170000 {
            0o010000 => FileType::Fifo,
            0o020000 => FileType::Character,
            0o040000 => FileType::Directory,
            0o060000 => FileType::Block,
            0o100000 => FileType::Regular,
            0o120000 => FileType::Link,
            0o140000 => FileType::Socket,
            _ => return None,
        })
    }

    /// d_type of getdents64.
    pub const fn dirent(self) -> u8 {
        (self.mode() >> 12) as u8
    }
}

/// A point in time since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl Time {
    /// The present.
    pub fn now() -> Time {
        Time::from_nanoseconds(crate::platform::platform().realtime())
    }

    pub const fn from_nanoseconds(ns: u64) -> Time {
        Time {
            seconds: (ns / 1_000_000_000) as i64,
            nanoseconds: (ns % 1_000_000_000) as u32,
        }
    }
}

/// Everything stat(2) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub device: u64,
    pub inode: u64,
    pub links: u64,
    /// Type and permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    pub block_size: u32,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub btime: Time,
}

/// What a change of attributes sets; `None` leaves as is. The VFS has checked permissions.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttributes {
    /// Permission bits only (0o7777).
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<Time>,
    pub mtime: Option<Time>,
}

/// What to create in a directory.
pub enum NewNode<'a> {
    Regular,
    Directory,
    Link(&'a [u8]),
    Fifo,
    Socket,
    Character(u64),
    Block(u64),
}

impl NewNode<'_> {
    pub fn kind(&self) -> FileType {
        match self {
            NewNode::Regular => FileType::Regular,
            NewNode::Directory => FileType::Directory,
            NewNode::Link(_) => FileType::Link,
            NewNode::Fifo => FileType::Fifo,
            NewNode::Socket => FileType::Socket,
            NewNode::Character(_) => FileType::Character,
            NewNode::Block(_) => FileType::Block,
        }
    }
}

/// Who owns a new object, and its permission bits.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Where a symbolic link leads.
pub enum LinkTarget {
    /// A path to walk.
    Path(Vec<u8>),
    /// The object itself (/proc/self/fd/3, /proc/self/exe).
    Jump(PathRef),
}

/// One directory entry as `read_dir` hands it out.
pub struct Entry<'a> {
    pub name: &'a [u8],
    pub inode: u64,
    pub kind: FileType,
    /// Position of the entry after this one.
    pub next: u64,
}

/// What lseek(2) SEEK_DATA and SEEK_HOLE look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Find {
    Data,
    Hole,
}

/// What a file system as a whole tells statfs(2).
#[derive(Clone, Copy, Debug, Default)]
pub struct FsStatistics {
    pub magic: u64,
    pub block_size: u64,
    pub blocks: u64,
    pub free: u64,
    pub files: u64,
    pub files_free: u64,
}

/// State that the VFS keeps with an inode.
#[derive(Default)]
pub struct InodeState {
    pub watches: Watches,
    pub locks: Locks,
    /// Open files that may write (positive) or running programs that forbid it (negative).
    writers: AtomicU32,
    /// Open files.
    opens: AtomicU32,
    pub leases: Leases,
    pub notes: Notes,
    /// A file without a name that may get one (O_TMPFILE without O_EXCL).
    linkable: AtomicBool,
}

/// Bias that tells "executing" from "writing" in [`InodeState::writers`].
const EXECUTING: u32 = 1 << 31;

impl InodeState {
    pub fn begin_open(&self) {
        self.opens.fetch_add(1, Ordering::AcqRel);
    }

    pub fn end_open(&self) {
        self.opens.fetch_sub(1, Ordering::AcqRel);
    }

    /// How often it is open.
    pub fn opens(&self) -> u32 {
        self.opens.load(Ordering::Acquire)
    }

    /// A file is opened for writing; ETXTBSY is the caller's when this is false.
    pub fn begin_write(&self) -> bool {
        self.writers
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count < EXECUTING).then_some(count + 1)
            })
            .is_ok()
    }

    pub fn end_write(&self) {
        self.writers.fetch_sub(1, Ordering::AcqRel);
    }

    /// The file has no name, and may get one.
    pub fn make_linkable(&self) {
        self.linkable.store(true, Ordering::Relaxed);
    }

    /// Whether a file without a name may get one: once.
    pub fn is_linkable(&self) -> bool {
        self.linkable.load(Ordering::Relaxed)
    }

    pub fn has_been_linked(&self) {
        self.linkable.store(false, Ordering::Relaxed);
    }

    /// Programs being executed refuse writers, and writers refuse execution.
    pub fn begin_execute(&self) -> bool {
        self.writers
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count == 0 || count >= EXECUTING).then(|| count.max(EXECUTING) + 1)
            })
            .is_ok()
    }

    pub fn end_execute(&self) {
        let _ = self
            .writers
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                Some(if count == EXECUTING + 1 { 0 } else { count - 1 })
            });
    }

    /// Whether anyone may write.
    pub fn has_writers(&self) -> bool {
        let count = self.writers.load(Ordering::Acquire);
        count != 0 && count < EXECUTING
    }
}

/// A running program's file: nobody may open it for writing meanwhile.
pub struct Execution(Arc<dyn Inode>);

impl Execution {
    /// ETXTBSY while someone has it open for writing.
    pub fn begin(inode: &Arc<dyn Inode>) -> Result<Arc<Execution>> {
        match inode.state() {
            Some(state) if !state.begin_execute() => Err(ETXTBSY),
            _ => Ok(Arc::new(Execution(inode.clone()))),
        }
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        if let Some(state) = self.0.state() {
            state.end_execute();
        }
    }
}

/// A file system object.
pub trait Inode: Any + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn id(&self) -> FileId;
    fn size(&self) -> u64;
    /// st_mode: type and permission bits. Cheap: every step of a path walk asks.
    fn mode(&self) -> u32;
    fn metadata(&self) -> Metadata;
    fn set_attributes(&self, _change: &SetAttributes) -> Result<()> {
        Err(EPERM)
    }
    /// Locks, watches and writers, for objects that can have them.
    fn state(&self) -> Option<&InodeState> {
        None
    }

    /// The file operations for an open with `flags`. `file_path` is where it was found.
    fn open(
        self: Arc<Self>,
        _caller: &Caller<'_>,
        _path: &PathRef,
        _flags: u32,
    ) -> Result<Arc<dyn FileOps>> {
        Err(ENXIO)
    }

    // ---- content ------------------------------------------------------------------------------
    /// Reads content into kernel memory (page-ins, exec, read): bytes read, 0 at the end.
    fn read_bytes(&self, _offset: u64, _to: &mut [u8]) -> Result<usize> {
        Err(EIO)
    }
    /// Writes content; may be short only when space runs out (ENOSPC when nothing was written).
    fn write_bytes(&self, _offset: u64, _from: &[u8]) -> Result<usize> {
        Err(EIO)
    }
    /// Content that can never change (the verified root file system, never written to).
    fn is_immutable(&self) -> bool {
        false
    }
    /// Whether mmap(2) may show the content, and the error if not.
    fn check_mappable(&self) -> Result<()> {
        Ok(())
    }
    /// The content was read: the access time moves, where there is one.
    fn accessed(&self) {}
    fn truncate(&self, _size: u64) -> Result<()> {
        Err(EINVAL)
    }
    /// Makes durable what was written, to this object and maybe others, where that means anything.
    fn sync(&self, _thread: &Arc<Thread>) -> Result<()> {
        Ok(())
    }
    /// fallocate(2) with its mode bits.
    fn allocate(&self, _mode: u32, _offset: u64, _len: u64) -> Result<()> {
        Err(EOPNOTSUPP)
    }
    /// SEEK_DATA, SEEK_HOLE: `None` past the end.
    fn find(&self, what: Find, offset: u64) -> Option<u64> {
        let size = self.size();
        (offset < size).then_some(if what == Find::Data { offset } else { size })
    }

    // ---- directories --------------------------------------------------------------------------
    /// The object named `name`; ENOENT.
    fn lookup(&self, _caller: &Caller<'_>, _name: &[u8]) -> Result<Arc<dyn Inode>> {
        Err(ENOTDIR)
    }
    /// Whether what `lookup` finds stays true until the VFS itself changes it.
    fn is_stable(&self) -> bool {
        true
    }
    fn create(&self, _name: &[u8], _node: NewNode<'_>, _owner: Owner) -> Result<Arc<dyn Inode>> {
        Err(EPERM)
    }
    /// A regular file without a name (O_TMPFILE).
    fn create_unnamed(&self, _owner: Owner) -> Result<Arc<dyn Inode>> {
        Err(EOPNOTSUPP)
    }
    fn link(&self, _name: &[u8], _inode: &Arc<dyn Inode>) -> Result<()> {
        Err(EPERM)
    }
    fn unlink(&self, _name: &[u8]) -> Result<()> {
        Err(EPERM)
    }
    fn rmdir(&self, _name: &[u8]) -> Result<()> {
        Err(EPERM)
    }
    /// Moves `name` to `to_name` in `to` (the same file system), replacing what is there, or
    /// exchanging the two.
    fn rename(
        &self,
        _name: &[u8],
        _to: &Arc<dyn Inode>,
        _to_name: &[u8],
        _exchange: bool,
    ) -> Result<()> {
        Err(EPERM)
    }
    /// Hands out entries from position `from` on (without "." and ".."; positions start at 2)
    /// until `emit` returns false.
    fn read_dir(
        &self,
        _caller: &Caller<'_>,
        _from: u64,
        _emit: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> Result<()> {
        Err(ENOTDIR)
    }

    // ---- links --------------------------------------------------------------------------------
    /// readlink(2).
    fn read_link(&self, _caller: &Caller<'_>) -> Result<Vec<u8>> {
        Err(EINVAL)
    }
    /// What a path walk does with the link.
    fn follow(&self, caller: &Caller<'_>) -> Result<LinkTarget> {
        self.read_link(caller).map(LinkTarget::Path)
    }

    // ---- extended attributes ------------------------------------------------------------------
    fn get_xattr(&self, _name: &[u8]) -> Result<Vec<u8>> {
        Err(EOPNOTSUPP)
    }
    /// `flags`: XATTR_CREATE 1, XATTR_REPLACE 2.
    fn set_xattr(&self, _name: &[u8], _value: &[u8], _flags: u32) -> Result<()> {
        Err(EOPNOTSUPP)
    }
    fn list_xattrs(&self) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }
    fn remove_xattr(&self, _name: &[u8]) -> Result<()> {
        Err(EOPNOTSUPP)
    }
    /// An access control list, kept as an attribute. Cheap where there is none: every check of
    /// permissions asks. One that cannot be read is an error, not absent.
    fn acl(&self, _kind: acl::Kind) -> Result<Option<Acl>> {
        Ok(None)
    }

    // ---- the file system ----------------------------------------------------------------------
    fn statistics(&self) -> FsStatistics {
        FsStatistics::default()
    }
    /// Memory file seals (F_ADD_SEALS): the present ones; EINVAL for other files.
    fn seals(&self) -> Result<u32> {
        Err(EINVAL)
    }
    fn add_seals(&self, _seals: u32) -> Result<()> {
        Err(EINVAL)
    }
    /// A UNIX socket bound here: the object that bind(2) left, for connect(2).
    fn socket(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }
    fn set_socket(&self, _socket: Arc<dyn Any + Send + Sync>) -> Result<()> {
        Err(EACCES)
    }
}

impl dyn Inode {
    pub fn kind(&self) -> FileType {
        FileType::from_mode(self.mode()).unwrap_or(FileType::Regular)
    }

    pub fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }
}
