//! open, openat, openat2, creat, close, close_range.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::at::{AT_FDCWD, check_flags};
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{E2BIG, EINVAL};
use crate::fs::file::flags;
use crate::fs::hooks;
use crate::fs::namei::{self, OpenHow};
use crate::fs::path::Resolve;

/// Flags that open(2) knows; it ignores all others.
const KNOWN: u32 = flags::ACCESS_MODE
    | flags::CREAT
    | flags::EXCL
    | flags::NOCTTY
    | flags::TRUNC
    | flags::APPEND
    | flags::NONBLOCK
    | flags::SYNC
    | flags::ASYNC
    | flags::DIRECT
    | flags::LARGEFILE
    | flags::DIRECTORY
    | flags::NOFOLLOW
    | flags::NOATIME
    | flags::CLOEXEC
    | flags::PATH
    | flags::TMPFILE;

const TMPFILE_BIT: u32 = flags::TMPFILE & !flags::DIRECTORY;

fn open_at(
    context: &Context<'_>,
    dirfd: i32,
    path: u64,
    flags: u32,
    mode: u32,
    resolve: Resolve,
) -> Result<usize> {
    if flags & TMPFILE_BIT != 0 && flags & flags::DIRECTORY == 0 {
        return Err(EINVAL.because("O_TMPFILE without O_DIRECTORY"));
    }
    let makes_directory = flags::CREAT | flags::DIRECTORY;
    if flags & (makes_directory | flags::PATH) == makes_directory {
        return Err(EINVAL.because("open makes no directories"));
    }
    let flags = if flags & flags::PATH != 0 {
        flags & (flags::PATH | flags::DIRECTORY | flags::NOFOLLOW | flags::CLOEXEC)
    } else {
        flags
    };
    let path = context.path(path)?;
    let thread = context.thread;
    let fs = thread.fs();
    let mode = if flags & (flags::CREAT | TMPFILE_BIT) != 0 {
        mode & 0o7777
    } else {
        0
    };
    let how = OpenHow { flags, mode };
    let mut walk = context.walk_at(dirfd, &path)?;
    if !resolve.is_empty() {
        // An absolute path starts at the descriptor's directory too under RESOLVE_IN_ROOT.
        let base = context.place_of(dirfd)?;
        walk = crate::fs::path::Walk::at(context.caller(), &fs, base).restricted(resolve);
    }
    let file = namei::open(&mut walk, &path, how)?;
    let close_on_exec = flags & flags::CLOEXEC != 0;
    let fd = thread
        .files()
        .add(file, close_on_exec, hooks::file_limit(thread))?;
    Ok(fd as usize)
}

pub fn open(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let flags = arguments.u32(1) & KNOWN;
    open_at(
        context,
        AT_FDCWD,
        arguments.u64(0),
        flags,
        arguments.u32(2),
        Resolve::empty(),
    )
}

pub fn openat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (dirfd, flags) = (arguments.i32(0), arguments.u32(2) & KNOWN);
    open_at(
        context,
        dirfd,
        arguments.u64(1),
        flags,
        arguments.u32(3),
        Resolve::empty(),
    )
}

pub fn creat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let flags = flags::CREAT | flags::WRONLY | flags::TRUNC;
    open_at(
        context,
        AT_FDCWD,
        arguments.u64(0),
        flags,
        arguments.u32(1),
        Resolve::empty(),
    )
}

/// `struct open_how`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

pub fn openat2(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let size = arguments.usize(3);
    if size < size_of::<RawHow>() {
        return Err(EINVAL.because("size of struct open_how"));
    }
    if size > 4096 {
        return Err(E2BIG);
    }
    let mm = context.mm();
    let how = arguments.pointer::<RawHow>(2).read(&mm)?;
    // A newer structure is fine as long as what we do not know is zero.
    let mut rest = [0u8; 64];
    let mut at = size_of::<RawHow>();
    while at < size {
        let len = rest.len().min(size - at);
        mm.read(arguments.u64(2).wrapping_add(at as u64), &mut rest[..len])?;
        if rest[..len].iter().any(|&byte| byte != 0) {
            return Err(E2BIG);
        }
        at += len;
    }
    let resolve = Resolve::from_bits(how.resolve).ok_or(EINVAL)?;
    let flags = u32::try_from(how.flags).map_err(|_| EINVAL)?;
    if flags & !KNOWN != 0 || how.mode & !0o7777 != 0 {
        return Err(EINVAL);
    }
    if flags & (flags::CREAT | TMPFILE_BIT) == 0 && how.mode != 0 {
        return Err(EINVAL.because("a mode without O_CREAT"));
    }
    let path_flags = flags::PATH | flags::DIRECTORY | flags::NOFOLLOW | flags::CLOEXEC;
    if flags & flags::PATH != 0 && flags & !path_flags != 0 {
        return Err(EINVAL);
    }
    if resolve.contains(Resolve::BENEATH | Resolve::IN_ROOT) {
        return Err(EINVAL);
    }
    if resolve.contains(Resolve::CACHED) && flags & (flags::TRUNC | flags::CREAT | TMPFILE_BIT) != 0
    {
        return Err(crate::errno::EAGAIN);
    }
    open_at(
        context,
        arguments.i32(0),
        arguments.u64(1),
        flags,
        how.mode as u32,
        resolve,
    )
}

pub fn close(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = context.thread.files().remove(arguments.i32(0))?;
    drop(file);
    Ok(0)
}

/// close_range(2) flags.
const UNSHARE: u32 = 2;
const CLOSE_ON_EXEC: u32 = 4;

pub fn close_range(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (first, last, flags) = (arguments.u32(0), arguments.u32(1), arguments.u32(2));
    check_flags(flags, UNSHARE | CLOSE_ON_EXEC)?;
    if first > last {
        return Err(EINVAL);
    }
    if flags & UNSHARE != 0 {
        let copy = context.thread.files().copy_for_fork()?;
        context.thread.set_files(copy);
    }
    let files = context.thread.files();
    let range = first as usize..(last as usize).saturating_add(1);
    if flags & CLOSE_ON_EXEC != 0 {
        files.mark_range(range);
    } else {
        drop(files.take_range(range));
    }
    Ok(0)
}
