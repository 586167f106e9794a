//! chmod, chown, utimes and their relatives; truncate, ftruncate, fallocate; umask.

use super::at::{AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, check_flags};
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EACCES, EBADF, EFBIG, EINVAL, ENODEV, EOPNOTSUPP, EPERM, EROFS, ESPIPE};
use crate::fs::file::OpenFile;
use crate::fs::inode::{FileType, SetAttributes, Time};
use crate::fs::inotify::{self, mask};
use crate::fs::path::{Follow, PathRef};
use crate::fs::permission::WRITE;
use crate::fs::{hooks, namei};
use crate::mm::AddressSpace;
use crate::process::credentials::{CAP_CHOWN, CAP_FSETID};
use crate::user::UserPtr;

fn file_place(file: &OpenFile) -> Result<PathRef> {
    file.path
        .clone()
        .ok_or(EINVAL.because("the file has no place in the tree"))
}

/// The place of a descriptor that is open (not O_PATH).
fn open_place(context: &Context<'_>, fd: i32) -> Result<Option<PathRef>> {
    let file = context.thread.file(fd)?;
    if file.is_path() {
        return Err(EBADF);
    }
    Ok(file.path.clone())
}

fn change_mode(context: &Context<'_>, path: &PathRef, mode: u32) -> Result<usize> {
    if path.mount.is_read_only() {
        return Err(EROFS);
    }
    let caller = context.caller();
    let inode = path.inode();
    caller.check_owner(&**inode)?;
    let mut mode = mode & 0o7777;
    // Only members may give a file the group's rights.
    if mode & 0o2000 != 0 && !caller.has(CAP_FSETID) && !caller.in_group(inode.metadata().gid) {
        mode &= !0o2000;
    }
    namei::set_attributes(
        path,
        &SetAttributes {
            mode: Some(mode),
            ..Default::default()
        },
    )?;
    Ok(0)
}

fn chmod_at(context: &Context<'_>, dirfd: i32, path: u64, mode: u32, flags: u32) -> Result<usize> {
    check_flags(flags, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)?;
    let path = context.path_or_empty(path, flags)?;
    let found = context.find_at(dirfd, &path, flags, Follow::Yes)?;
    if found.inode().kind() == FileType::Link {
        return Err(EOPNOTSUPP.because("symbolic links have no mode"));
    }
    change_mode(context, &found, mode)
}

pub fn chmod(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    chmod_at(context, AT_FDCWD, arguments.u64(0), arguments.u32(1), 0)
}

pub fn fchmodat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    chmod_at(
        context,
        arguments.i32(0),
        arguments.u64(1),
        arguments.u32(2),
        0,
    )
}

pub fn fchmodat2(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    chmod_at(
        context,
        arguments.i32(0),
        arguments.u64(1),
        arguments.u32(2),
        arguments.u32(3),
    )
}

pub fn fchmod(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match open_place(context, arguments.i32(0))? {
        Some(path) => change_mode(context, &path, arguments.u32(1)),
        // Pipes and sockets: a mode that nothing looks at.
        None => Ok(0),
    }
}

fn change_owner(context: &Context<'_>, path: &PathRef, uid: u32, gid: u32) -> Result<usize> {
    if path.mount.is_read_only() {
        return Err(EROFS);
    }
    let caller = context.caller();
    let inode = path.inode();
    let metadata = inode.metadata();
    let new_uid = (uid != u32::MAX).then_some(uid);
    let new_gid = (gid != u32::MAX).then_some(gid);
    if !caller.has(CAP_CHOWN) {
        let owns = metadata.uid == caller.ids().0;
        let keeps_uid = new_uid.is_none_or(|uid| uid == metadata.uid);
        let own_group = new_gid.is_none_or(|gid| gid == metadata.gid || caller.in_group(gid));
        let changes = new_uid.is_some() || new_gid.is_some();
        if changes && !(owns && keeps_uid && own_group) {
            return Err(EPERM);
        }
    }
    // A change of owner takes set-user-id away, and set-group-id where it means that.
    let mut mode = None;
    if inode.kind() == FileType::Regular && (new_uid.is_some() || new_gid.is_some()) {
        let bits = metadata.mode & 0o7777;
        let drop = if bits & 0o010 != 0 { 0o6000 } else { 0o4000 };
        if bits & drop != 0 {
            mode = Some(bits & !drop);
        }
    }
    let change = SetAttributes {
        mode,
        uid: new_uid,
        gid: new_gid,
        ..Default::default()
    };
    namei::set_attributes(path, &change)?;
    Ok(0)
}

fn chown_at(
    context: &Context<'_>,
    dirfd: i32,
    path: u64,
    ids: (u32, u32),
    flags: u32,
) -> Result<usize> {
    check_flags(flags, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)?;
    let path = context.path_or_empty(path, flags)?;
    let found = context.find_at(dirfd, &path, flags, Follow::Yes)?;
    change_owner(context, &found, ids.0, ids.1)
}

pub fn chown(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    chown_at(
        context,
        AT_FDCWD,
        arguments.u64(0),
        (arguments.u32(1), arguments.u32(2)),
        0,
    )
}

pub fn lchown(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let ids = (arguments.u32(1), arguments.u32(2));
    chown_at(
        context,
        AT_FDCWD,
        arguments.u64(0),
        ids,
        AT_SYMLINK_NOFOLLOW,
    )
}

pub fn fchownat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let ids = (arguments.u32(2), arguments.u32(3));
    chown_at(
        context,
        arguments.i32(0),
        arguments.u64(1),
        ids,
        arguments.u32(4),
    )
}

pub fn fchown(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match open_place(context, arguments.i32(0))? {
        Some(path) => change_owner(context, &path, arguments.u32(1), arguments.u32(2)),
        None => Ok(0),
    }
}

/// What to do with one time stamp.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stamp {
    Now,
    Keep,
    Set(Time),
}

const UTIME_NOW: i64 = 0x3fff_ffff;
const UTIME_OMIT: i64 = 0x3fff_fffe;

fn stamp(seconds: i64, nanoseconds: i64) -> Result<Stamp> {
    Ok(match nanoseconds {
        UTIME_NOW => Stamp::Now,
        UTIME_OMIT => Stamp::Keep,
        0..=999_999_999 => Stamp::Set(Time {
            seconds,
            nanoseconds: nanoseconds as u32,
        }),
        _ => return Err(EINVAL),
    })
}

fn set_times(context: &Context<'_>, path: &PathRef, stamps: [Stamp; 2]) -> Result<usize> {
    if stamps == [Stamp::Keep; 2] {
        return Ok(0);
    }
    if path.mount.is_read_only() {
        return Err(EROFS);
    }
    let caller = context.caller();
    let inode = path.inode();
    if stamps == [Stamp::Now; 2] {
        // The present may be set by anyone who may write.
        if caller.check_owner(&**inode).is_err() {
            caller.check(&**inode, WRITE).map_err(|_| EACCES)?;
        }
    } else {
        caller.check_owner(&**inode)?;
    }
    let now = Time::now();
    let [atime, mtime] = stamps.map(|stamp| match stamp {
        Stamp::Now => Some(now),
        Stamp::Keep => None,
        Stamp::Set(time) => Some(time),
    });
    namei::set_attributes(
        path,
        &SetAttributes {
            atime,
            mtime,
            ..Default::default()
        },
    )?;
    Ok(0)
}

fn read_timespecs(mm: &AddressSpace, address: u64) -> Result<[Stamp; 2]> {
    let Some(pointer) = UserPtr::<[i64; 4]>::new(address).option() else {
        return Ok([Stamp::Now; 2]);
    };
    let [atime, atime_ns, mtime, mtime_ns] = pointer.read(mm)?;
    Ok([stamp(atime, atime_ns)?, stamp(mtime, mtime_ns)?])
}

fn read_timevals(mm: &AddressSpace, address: u64) -> Result<[Stamp; 2]> {
    let Some(pointer) = UserPtr::<[i64; 4]>::new(address).option() else {
        return Ok([Stamp::Now; 2]);
    };
    let [atime, atime_us, mtime, mtime_us] = pointer.read(mm)?;
    if !(0..1_000_000).contains(&atime_us) || !(0..1_000_000).contains(&mtime_us) {
        return Err(EINVAL);
    }
    Ok([
        stamp(atime, atime_us * 1000)?,
        stamp(mtime, mtime_us * 1000)?,
    ])
}

pub fn utimensat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (dirfd, path, flags) = (arguments.i32(0), arguments.u64(1), arguments.u32(3));
    check_flags(flags, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)?;
    let stamps = read_timespecs(&context.mm(), arguments.u64(2))?;
    if stamps == [Stamp::Keep; 2] {
        return Ok(0);
    }
    if path == 0 && dirfd != AT_FDCWD {
        // futimens
        if flags != 0 {
            return Err(EINVAL.because("flags without a path"));
        }
        return match open_place(context, dirfd)? {
            Some(path) => set_times(context, &path, stamps),
            None => Ok(0),
        };
    }
    let path = context.path_or_empty(path, flags)?;
    let found = context.find_at(dirfd, &path, flags, Follow::Yes)?;
    set_times(context, &found, stamps)
}

pub fn futimesat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (dirfd, path) = (arguments.i32(0), arguments.u64(1));
    let stamps = read_timevals(&context.mm(), arguments.u64(2))?;
    if path == 0 {
        let place = open_place(context, dirfd)?.ok_or(EINVAL)?;
        return set_times(context, &place, stamps);
    }
    let path = context.path(path)?;
    let found = context.find_at(dirfd, &path, 0, Follow::Yes)?;
    set_times(context, &found, stamps)
}

pub fn utimes(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let stamps = read_timevals(&context.mm(), arguments.u64(1))?;
    let path = context.path(arguments.u64(0))?;
    let found = context.walk().find(&path, Follow::Yes)?;
    set_times(context, &found, stamps)
}

pub fn utime(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let stamps = match UserPtr::<[i64; 2]>::new(arguments.u64(1)).option() {
        None => [Stamp::Now; 2],
        Some(pointer) => {
            let [atime, mtime] = pointer.read(&context.mm())?;
            [stamp(atime, 0)?, stamp(mtime, 0)?]
        }
    };
    let path = context.path(arguments.u64(0))?;
    let found = context.walk().find(&path, Follow::Yes)?;
    set_times(context, &found, stamps)
}

fn new_size(context: &Context<'_>, size: i64, old: u64) -> Result<u64> {
    let size = u64::try_from(size).map_err(|_| EINVAL)?;
    if size > old && size > hooks::size_limit(context.thread) {
        hooks::raise_sigxfsz(context.thread);
        return Err(EFBIG);
    }
    Ok(size)
}

pub fn truncate(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.i64(1) < 0 {
        return Err(EINVAL);
    }
    let path = context.path(arguments.u64(0))?;
    let found = context.walk().find(&path, Follow::Yes)?;
    let inode = found.inode();
    if inode.kind() == FileType::Regular {
        context.caller().check(&**inode, WRITE)?;
    }
    let size = new_size(context, arguments.i64(1), inode.size())?;
    crate::fs::lease::break_for(Some(context.thread), inode, true, false)?;
    namei::truncate(&found, size)?;
    namei::drop_privilege_bits(&context.caller(), &**inode)?;
    Ok(0)
}

pub fn ftruncate(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.i64(1) < 0 {
        return Err(EINVAL);
    }
    let file = context.thread.file(arguments.i32(0))?;
    if file.is_path() {
        return Err(EBADF);
    }
    if !file.is_writable() {
        return Err(EINVAL.because("not open for writing"));
    }
    let path = file_place(&file)?;
    let size = new_size(context, arguments.i64(1), path.inode().size())?;
    if path.inode().kind() != FileType::Regular {
        return Err(EINVAL);
    }
    path.inode().truncate(size)?;
    inotify::notify_file(&file, mask::MODIFY);
    Ok(0)
}

pub fn fallocate(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = context.thread.file(arguments.i32(0))?;
    let (mode, offset, len) = (arguments.u32(1), arguments.i64(2), arguments.i64(3));
    if offset < 0 || len <= 0 {
        return Err(EINVAL);
    }
    if !file.is_writable() {
        return Err(EBADF);
    }
    let Some(path) = &file.path else {
        return Err(ESPIPE);
    };
    match path.inode().kind() {
        FileType::Regular => {}
        FileType::Fifo => return Err(ESPIPE),
        FileType::Directory => return Err(crate::errno::EISDIR),
        _ => return Err(ENODEV),
    }
    let end = offset.checked_add(len).ok_or(EFBIG)?;
    if mode & 1 == 0 {
        new_size(context, end, path.inode().size())?;
    }
    path.inode().allocate(mode, offset as u64, len as u64)?;
    inotify::notify_file(&file, mask::MODIFY);
    Ok(0)
}

pub fn umask(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    Ok(context.thread.fs().set_umask(arguments.u32(0)) as usize)
}
