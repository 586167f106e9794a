//! getdents, getdents64, getcwd, chdir, fchdir, chroot, mkdir, mkdirat, rmdir, mknod, mknodat.

use alloc::vec::Vec;

use super::at::AT_FDCWD;
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EBADF, EFAULT, EINVAL, ENOENT, ENOTDIR, EPERM, ERANGE};
use crate::fs::inode::{FileType, NewNode};
use crate::fs::inotify::{self, mask};
use crate::fs::mount::flags::NODIRATIME;
use crate::fs::namei;
use crate::fs::path::{Follow, PathRef};
use crate::fs::permission::EXECUTE;
use crate::process::credentials::CAP_SYS_CHROOT;

/// Most bytes of entries collected before they go to user memory.
const LISTING_MAX: usize = 128 << 10;

/// mknod(2) of devices.
const CAP_MKNOD: u32 = 27;

/// How an entry is laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// `struct linux_dirent`: the type is the record's last byte.
    Old,
    /// `struct linux_dirent64`.
    New,
}

struct Listing {
    bytes: Vec<u8>,
    limit: usize,
    layout: Layout,
}

impl Listing {
    /// Adds an entry; false when it does not fit.
    fn add(&mut self, name: &[u8], inode: u64, kind: FileType, next: u64) -> bool {
        let header = if self.layout == Layout::New { 19 } else { 18 };
        let tail = usize::from(self.layout == Layout::Old);
        let len = (header + name.len() + 1 + tail).next_multiple_of(8);
        if self.bytes.len() + len > self.limit {
            return false;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&inode.to_le_bytes());
        self.bytes.extend_from_slice(&next.to_le_bytes());
        self.bytes.extend_from_slice(&(len as u16).to_le_bytes());
        if self.layout == Layout::New {
            self.bytes.push(kind.dirent());
        }
        self.bytes.extend_from_slice(name);
        self.bytes.resize(start + len, 0);
        if self.layout == Layout::Old {
            self.bytes[start + len - 1] = kind.dirent();
        }
        true
    }
}

fn list(context: &Context<'_>, arguments: Arguments, layout: Layout) -> Result<usize> {
    let file = context.thread.file(arguments.i32(0))?;
    if file.is_path() {
        return Err(EBADF);
    }
    let path = file.path.clone().ok_or(ENOTDIR)?;
    let inode = path.inode();
    if !inode.is_directory() {
        return Err(ENOTDIR);
    }
    if path.dentry.is_deleted() {
        return Err(ENOENT.because("the directory was removed"));
    }
    // An int to Linux: no entry fits into less than nothing.
    let limit = usize::try_from(arguments.i32(2)).unwrap_or(0);
    let mut listing = Listing {
        bytes: Vec::new(),
        limit: limit.min(LISTING_MAX),
        layout,
    };
    let mut position = file.position.lock(context.thread);
    let before = *position;
    let mut full = false;
    if *position == 0 {
        full = !listing.add(b".", inode.id().inode, FileType::Directory, 1);
        if !full {
            *position = 1;
        }
    }
    if *position == 1 && !full {
        let parent = path.parent(&context.thread.fs().root());
        full = !listing.add(b"..", parent.inode().id().inode, FileType::Directory, 2);
        if !full {
            *position = 2;
        }
    }
    if !full {
        let mut next = *position;
        inode.read_dir(&context.caller(), next, &mut |entry| {
            full = !listing.add(entry.name, entry.inode, entry.kind, entry.next);
            if !full {
                next = entry.next;
            }
            !full
        })?;
        *position = next;
    }
    if file.updates_access_time() && path.mount.flags() & NODIRATIME == 0 {
        inode.accessed();
    }
    inotify::notify_file(&file, mask::ACCESS);
    if listing.bytes.is_empty() && full {
        return Err(EINVAL.because("the buffer is too small for an entry"));
    }
    let written = context.mm().write(arguments.u64(1), &listing.bytes);
    if let Err(error) = written {
        // What was not seen comes again.
        *position = before;
        return Err(error);
    }
    Ok(listing.bytes.len())
}

pub fn getdents(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    list(context, arguments, Layout::Old)
}

pub fn getdents64(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    list(context, arguments, Layout::New)
}

pub fn getcwd(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let fs = context.thread.fs();
    let cwd = fs.cwd();
    if cwd.dentry.is_deleted() {
        return Err(ENOENT.because("the working directory was removed"));
    }
    let mut path = cwd.path_from(&fs.root()).unwrap_or_else(|| {
        // Outside of the root: shown as Linux does.
        let mut path = b"(unreachable)".to_vec();
        path.extend(cwd.display_path(&fs.root()));
        path
    });
    path.push(0);
    if path.len() > arguments.usize(1) {
        return Err(ERANGE);
    }
    if arguments.u64(0) == 0 {
        return Err(EFAULT);
    }
    context.mm().write(arguments.u64(0), &path)?;
    Ok(path.len())
}

fn check_directory(context: &Context<'_>, path: &PathRef) -> Result<()> {
    if !path.inode().is_directory() {
        return Err(ENOTDIR);
    }
    context.caller().check(&**path.inode(), EXECUTE)
}

pub fn chdir(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let path = context.path(arguments.u64(0))?;
    let found = context.walk().find(&path, Follow::Yes)?;
    check_directory(context, &found)?;
    context.thread.fs().set_cwd(found);
    Ok(0)
}

pub fn fchdir(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = context.thread.file(arguments.i32(0))?;
    let path = file.path.clone().ok_or(ENOTDIR)?;
    check_directory(context, &path)?;
    context.thread.fs().set_cwd(path);
    Ok(0)
}

pub fn chroot(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let path = context.path(arguments.u64(0))?;
    let found = context.walk().find(&path, Follow::Yes)?;
    check_directory(context, &found)?;
    if !context.caller().has(CAP_SYS_CHROOT) {
        return Err(EPERM);
    }
    context.thread.fs().set_root(found);
    Ok(0)
}

fn make_directory(context: &Context<'_>, dirfd: i32, path: u64, mode: u32) -> Result<usize> {
    let path = context.path(path)?;
    let mut walk = context.walk_at(dirfd, &path)?;
    namei::create(&mut walk, &path, NewNode::Directory, mode & 0o1777)?;
    Ok(0)
}

pub fn mkdir(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    make_directory(context, AT_FDCWD, arguments.u64(0), arguments.u32(1))
}

pub fn mkdirat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    make_directory(
        context,
        arguments.i32(0),
        arguments.u64(1),
        arguments.u32(2),
    )
}

pub fn rmdir(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let path = context.path(arguments.u64(0))?;
    namei::rmdir(&mut context.walk(), &path)?;
    Ok(0)
}

fn make_node(
    context: &Context<'_>,
    dirfd: i32,
    path: u64,
    mode: u32,
    device: u64,
) -> Result<usize> {
    let path = context.path(path)?;
    let node = match FileType::from_mode(mode) {
        Some(FileType::Regular) => NewNode::Regular,
        None if mode & 0o170000 == 0 => NewNode::Regular,
        Some(FileType::Fifo) => NewNode::Fifo,
        Some(FileType::Socket) => NewNode::Socket,
        Some(FileType::Character) => NewNode::Character(u64::from(device as u32)),
        Some(FileType::Block) => NewNode::Block(u64::from(device as u32)),
        Some(FileType::Directory) => return Err(EPERM),
        _ => return Err(EINVAL),
    };
    let is_device = matches!(node, NewNode::Character(_) | NewNode::Block(_));
    if is_device && !context.caller().has(CAP_MKNOD) {
        return Err(EPERM);
    }
    let mut walk = context.walk_at(dirfd, &path)?;
    namei::create(&mut walk, &path, node, mode & 0o7777)?;
    Ok(0)
}

pub fn mknod(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    make_node(
        context,
        AT_FDCWD,
        arguments.u64(0),
        arguments.u32(1),
        arguments.u64(2),
    )
}

pub fn mknodat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    make_node(
        context,
        arguments.i32(0),
        arguments.u64(1),
        arguments.u32(2),
        arguments.u64(3),
    )
}
