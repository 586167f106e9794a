//! unlink, unlinkat, rename, renameat, renameat2, link, linkat, symlink, symlinkat, readlink,
//! readlinkat.

use super::at::{
    AT_EMPTY_PATH, AT_FDCWD, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_SYMLINK_NOFOLLOW, check_flags,
};
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EINVAL, ENOENT};
use crate::fs::inode::{FileType, NewNode};
use crate::fs::mount::flags::NOATIME;
use crate::fs::namei::{self, Rename};
use crate::fs::path::Follow;

fn unlink_at(context: &Context<'_>, dirfd: i32, path: u64, flags: u32) -> Result<usize> {
    check_flags(flags, AT_REMOVEDIR)?;
    let path = context.path(path)?;
    let mut walk = context.walk_at(dirfd, &path)?;
    if flags & AT_REMOVEDIR != 0 {
        namei::rmdir(&mut walk, &path)?;
    } else {
        namei::unlink(&mut walk, &path)?;
    }
    Ok(0)
}

pub fn unlink(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    unlink_at(context, AT_FDCWD, arguments.u64(0), 0)
}

pub fn unlinkat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    unlink_at(
        context,
        arguments.i32(0),
        arguments.u64(1),
        arguments.u32(2),
    )
}

/// renameat2(2) flags.
const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

fn rename_at(context: &Context<'_>, old: (i32, u64), new: (i32, u64), flags: u32) -> Result<usize> {
    let how = match flags {
        0 => Rename::Replace,
        NOREPLACE => Rename::NoReplace,
        EXCHANGE => Rename::Exchange,
        _ => return Err(EINVAL.because("unknown rename flags")),
    };
    let (old_path, new_path) = (context.path(old.1)?, context.path(new.1)?);
    let mut old_walk = context.walk_at(old.0, &old_path)?;
    let mut new_walk = context.walk_at(new.0, &new_path)?;
    namei::rename(&mut old_walk, &old_path, &mut new_walk, &new_path, how)?;
    Ok(0)
}

pub fn rename(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    rename_at(
        context,
        (AT_FDCWD, arguments.u64(0)),
        (AT_FDCWD, arguments.u64(1)),
        0,
    )
}

pub fn renameat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (old, new) = (
        (arguments.i32(0), arguments.u64(1)),
        (arguments.i32(2), arguments.u64(3)),
    );
    rename_at(context, old, new, 0)
}

pub fn renameat2(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (old, new) = (
        (arguments.i32(0), arguments.u64(1)),
        (arguments.i32(2), arguments.u64(3)),
    );
    rename_at(context, old, new, arguments.u32(4))
}

fn link_at(context: &Context<'_>, old: (i32, u64), new: (i32, u64), flags: u32) -> Result<usize> {
    check_flags(flags, AT_SYMLINK_FOLLOW | AT_EMPTY_PATH)?;
    let old_path = context.path_or_empty(old.1, flags)?;
    let source = context.find_at(old.0, &old_path, flags & !AT_SYMLINK_NOFOLLOW, Follow::No)?;
    let new_path = context.path(new.1)?;
    let mut walk = context.walk_at(new.0, &new_path)?;
    namei::link(&mut walk, &source, &new_path)?;
    Ok(0)
}

pub fn link(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    link_at(
        context,
        (AT_FDCWD, arguments.u64(0)),
        (AT_FDCWD, arguments.u64(1)),
        0,
    )
}

pub fn linkat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (old, new) = (
        (arguments.i32(0), arguments.u64(1)),
        (arguments.i32(2), arguments.u64(3)),
    );
    link_at(context, old, new, arguments.u32(4))
}

fn symlink_at(context: &Context<'_>, target: u64, dirfd: i32, path: u64) -> Result<usize> {
    let target = context.path(target)?;
    let path = context.path(path)?;
    if target.is_empty() {
        return Err(ENOENT);
    }
    let mut walk = context.walk_at(dirfd, &path)?;
    namei::create(&mut walk, &path, NewNode::Link(&target), 0o777)?;
    Ok(0)
}

pub fn symlink(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    symlink_at(context, arguments.u64(0), AT_FDCWD, arguments.u64(1))
}

pub fn symlinkat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    symlink_at(
        context,
        arguments.u64(0),
        arguments.i32(1),
        arguments.u64(2),
    )
}

fn readlink_at(
    context: &Context<'_>,
    dirfd: i32,
    path: u64,
    buffer: u64,
    size: i32,
) -> Result<usize> {
    let size = usize::try_from(size)
        .ok()
        .filter(|&size| size > 0)
        .ok_or(EINVAL)?;
    let path = context.path(path)?;
    // An empty path stands for a descriptor of the link itself (O_PATH | O_NOFOLLOW).
    let flags = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH;
    let was_empty = path.is_empty();
    let found = context.find_at(dirfd, &path, flags, Follow::No)?;
    if found.inode().kind() != FileType::Link {
        return Err(if was_empty { ENOENT } else { EINVAL });
    }
    let target = found.inode().read_link(&context.caller())?;
    if found.mount.flags() & NOATIME == 0 {
        found.inode().accessed();
    }
    let len = target.len().min(size);
    context.mm().write(buffer, &target[..len])?;
    Ok(len)
}

pub fn readlink(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    readlink_at(
        context,
        AT_FDCWD,
        arguments.u64(0),
        arguments.u64(1),
        arguments.i32(2),
    )
}

pub fn readlinkat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let dirfd = arguments.i32(0);
    readlink_at(
        context,
        dirfd,
        arguments.u64(1),
        arguments.u64(2),
        arguments.i32(3),
    )
}
