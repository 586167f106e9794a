//! dup, dup2, dup3, fcntl, flock, ioctl, pipe, pipe2.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::at::check_flags;
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EBADF, EBUSY, EINVAL, ENOPKG, ENOTTY, EOVERFLOW, EPERM};
use crate::fs::async_io::{self, Target};
use crate::fs::dnotify;
use crate::fs::file::{OpenFile, flags};
use crate::fs::hooks;
use crate::fs::inode::FileType;
use crate::fs::ioctl;
use crate::fs::lease;
use crate::fs::lock::{Owner, Record};
use crate::fs::pipe;
use crate::fs::procfs::NamespaceFile;
use crate::net::file::SocketFile;
use crate::process::credentials::CAP_SYS_RESOURCE;
use crate::user::UserPtr;

pub fn dup(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let files = context.thread.files();
    let file = files.get(arguments.i32(0))?;
    Ok(files.add(file, false, hooks::file_limit(context.thread))? as usize)
}

fn dup_to(context: &Context<'_>, old: i32, new: i32, close_on_exec: bool) -> Result<usize> {
    let files = context.thread.files();
    let file = files.get(old)?;
    drop(files.set(new, file, close_on_exec, hooks::file_limit(context.thread))?);
    Ok(new as usize)
}

pub fn dup2(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (old, new) = (arguments.i32(0), arguments.i32(1));
    if old == new {
        context.thread.file(old)?;
        return Ok(new as usize);
    }
    dup_to(context, old, new, false)
}

pub fn dup3(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (old, new, flags) = (arguments.i32(0), arguments.i32(1), arguments.u32(2));
    check_flags(flags, flags::CLOEXEC)?;
    if old == new {
        return Err(EINVAL);
    }
    dup_to(context, old, new, flags & flags::CLOEXEC != 0)
}

/// fcntl(2) commands.
mod command {
    pub const DUPFD: u32 = 0;
    pub const GETFD: u32 = 1;
    pub const SETFD: u32 = 2;
    pub const GETFL: u32 = 3;
    pub const SETFL: u32 = 4;
    pub const GETLK: u32 = 5;
    pub const SETLK: u32 = 6;
    pub const SETLKW: u32 = 7;
    pub const SETOWN: u32 = 8;
    pub const GETOWN: u32 = 9;
    pub const SETSIG: u32 = 10;
    pub const GETSIG: u32 = 11;
    pub const SETOWN_EX: u32 = 15;
    pub const GETOWN_EX: u32 = 16;
    pub const OFD_GETLK: u32 = 36;
    pub const OFD_SETLK: u32 = 37;
    pub const OFD_SETLKW: u32 = 38;
    pub const SETLEASE: u32 = 1024;
    pub const GETLEASE: u32 = 1025;
    pub const NOTIFY: u32 = 1026;
    pub const CREATED_QUERY: u32 = 1028;
    pub const DUPFD_CLOEXEC: u32 = 1030;
    pub const SETPIPE_SZ: u32 = 1031;
    pub const GETPIPE_SZ: u32 = 1032;
    pub const ADD_SEALS: u32 = 1033;
    pub const GET_SEALS: u32 = 1034;
}

/// What F_SETFL may change.
const SETTABLE: u32 =
    flags::APPEND | flags::NONBLOCK | flags::ASYNC | flags::DIRECT | flags::NOATIME;

pub fn fcntl(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (fd, argument) = (arguments.i32(0), arguments.u64(2));
    let thread = context.thread;
    let files = thread.files();
    let file = files.get(fd)?;
    let command = arguments.u32(1);
    if file.is_path() {
        let allowed = [
            command::DUPFD,
            command::DUPFD_CLOEXEC,
            command::GETFD,
            command::SETFD,
            command::GETFL,
        ];
        if !allowed.contains(&command) {
            return Err(EBADF);
        }
    }
    match command {
        command::DUPFD | command::DUPFD_CLOEXEC => {
            let limit = hooks::file_limit(thread);
            let from = usize::try_from(argument as i32)
                .ok()
                .filter(|&from| from < limit);
            let close_on_exec = command == command::DUPFD_CLOEXEC;
            Ok(files.add_from(from.ok_or(EINVAL)?, file, close_on_exec, limit)? as usize)
        }
        command::GETFD => Ok(usize::from(files.close_on_exec(fd)?)),
        command::SETFD => files.set_close_on_exec(fd, argument & 1 != 0).map(|()| 0),
        command::GETFL => Ok((file.shown_flags() & !flags::CLOEXEC) as usize),
        command::SETFL => {
            let value = argument as u32;
            if (value ^ file.flags()) & flags::NOATIME != 0
                && value & flags::NOATIME != 0
                && let Some(inode) = file.inode()
            {
                context.caller().check_owner(&**inode)?;
            }
            file.ops.check_flags(value)?;
            if (value ^ file.flags()) & flags::ASYNC != 0 {
                async_io::set(&file, fd, value & flags::ASYNC != 0);
            }
            file.set_flags(SETTABLE & !flags::ASYNC, value);
            Ok(0)
        }
        command::GETLK | command::SETLK | command::SETLKW => {
            record_lock(context, &file, Owner::Table(files.id()), command, argument)
        }
        command::OFD_GETLK | command::OFD_SETLK | command::OFD_SETLKW => {
            let posix = command - command::OFD_GETLK + command::GETLK;
            record_lock(context, &file, Owner::file(&file), posix, argument)
        }
        command::SETOWN | command::SETOWN_EX => {
            let target = match command {
                command::SETOWN => Target::from_owner(argument as i32)?,
                _ => Target::from_pair(UserPtr::<[i32; 2]>::new(argument).read(&context.mm())?)?,
            };
            target.check()?;
            file.owner.set_target(target, &thread.process);
            if let Ok(socket) = SocketFile::of(&file) {
                socket.socket.watch_urgent();
            }
            Ok(0)
        }
        command::GETOWN => Ok(file.owner.target().owner() as usize),
        command::GETOWN_EX => {
            let answer = file.owner.target().pair();
            UserPtr::<[i32; 2]>::new(argument).write(&context.mm(), &answer)?;
            Ok(0)
        }
        command::SETSIG => {
            let signal = async_io::check_signal(argument)?;
            file.owner.signal.store(signal, Ordering::Relaxed);
            Ok(0)
        }
        command::GETSIG => Ok(file.owner.signal.load(Ordering::Relaxed) as usize),
        command::SETLEASE => {
            lease::set(
                thread,
                &file,
                fd,
                lease::Kind::from_number(argument as i32)?,
            )?;
            Ok(0)
        }
        command::GETLEASE => Ok(lease::get(&file).number()),
        command::CREATED_QUERY => Ok(usize::from(file.created.load(Ordering::Relaxed))),
        command::NOTIFY => dnotify::set(thread, &file, fd, argument as u32).map(|()| 0),
        command::SETPIPE_SZ => {
            let size = usize::try_from(argument as i32).map_err(|_| EINVAL)?;
            pipe::set_capacity(&file, size, context.caller().has(CAP_SYS_RESOURCE))
        }
        command::GETPIPE_SZ => pipe::capacity(&file),
        command::ADD_SEALS => {
            if !file.is_writable() {
                return Err(EPERM);
            }
            /// F_SEAL_WRITE.
            const SEAL_WRITE: u32 = 8;
            let (inode, seals) = (file.inode().ok_or(EINVAL)?, argument as u32);
            if seals & SEAL_WRITE != 0
                && inode.seals().is_ok_and(|old| old & SEAL_WRITE == 0)
                && crate::mm::view::is_mapped_writable(inode.id())
            {
                return Err(EBUSY.because("the file is mapped for writing"));
            }
            inode.add_seals(seals).map(|()| 0)
        }
        command::GET_SEALS => Ok(file.inode().ok_or(EINVAL)?.seals()? as usize),
        _ => Err(EINVAL.because("unknown fcntl command")),
    }
}

/// `struct flock`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Flock {
    kind: i16,
    whence: i16,
    pad: u32,
    start: i64,
    len: i64,
    pid: i32,
    pad_end: u32,
}

const RDLCK: i16 = 0;
const WRLCK: i16 = 1;
const UNLCK: i16 = 2;

fn record_lock(
    context: &Context<'_>,
    file: &Arc<OpenFile>,
    owner: Owner,
    command: u32,
    argument: u64,
) -> Result<usize> {
    let mm = context.mm();
    let user = UserPtr::<Flock>::new(argument);
    let mut request = user.read(&mm)?;
    if !(0..=2).contains(&request.whence) || !(0..=2).contains(&request.kind) {
        return Err(EINVAL.because("bad l_whence or l_type"));
    }
    let base = match request.whence {
        0 => 0,
        1 => *file.position.lock(context.thread) as i64,
        2 => file.inode().map_or(0, |inode| inode.size()) as i64,
        _ => return Err(EINVAL),
    };
    let start = base.checked_add(request.start).ok_or(EOVERFLOW)?;
    let (start, end) = match request.len {
        0 => (start, None),
        len @ 1.. => (start, Some(start.checked_add(len).ok_or(EOVERFLOW)?)),
        len => (start.checked_add(len).ok_or(EINVAL)?, Some(start)),
    };
    let start = u64::try_from(start).map_err(|_| EINVAL)?;
    let end = end.map_or(u64::MAX, |end| end as u64);
    let is_file_owner = matches!(owner, Owner::File(_));
    if is_file_owner && request.pid != 0 {
        return Err(EINVAL.because("l_pid must be 0 for open file description locks"));
    }
    let record = Record {
        owner,
        exclusive: request.kind == WRLCK,
        start,
        end,
        pid: if is_file_owner {
            u32::MAX
        } else {
            context.thread.process.pid
        },
    };
    let locks = file
        .locks()
        .ok_or(EINVAL.because("no locks on this kind of file"))?;
    if command == command::GETLK {
        if !matches!(request.kind, RDLCK | WRLCK) {
            return Err(EINVAL);
        }
        match locks.conflict(&record) {
            None => request.kind = UNLCK,
            Some(found) => {
                request.kind = if found.exclusive { WRLCK } else { RDLCK };
                request.whence = 0;
                request.start = found.start as i64;
                request.len = if found.end == u64::MAX {
                    0
                } else {
                    (found.end - found.start) as i64
                };
                request.pid = found.pid as i32;
            }
        }
        user.write(&mm, &request)?;
        return Ok(0);
    }
    match request.kind {
        RDLCK if !file.is_readable() => return Err(EBADF),
        WRLCK if !file.is_writable() => return Err(EBADF),
        RDLCK | WRLCK if command == command::SETLKW => locks.set_wait(context.thread, record)?,
        RDLCK | WRLCK => locks.set(record)?,
        UNLCK => locks.unlock(owner, start, end)?,
        _ => return Err(EINVAL),
    }
    Ok(0)
}

/// flock(2) operations.
const LOCK_SH: u32 = 1;
const LOCK_EX: u32 = 2;
const LOCK_NB: u32 = 4;
const LOCK_UN: u32 = 8;

pub fn flock(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let operation = arguments.u32(1);
    let file = context.thread.file(arguments.i32(0))?;
    if file.is_path() {
        return Err(EBADF);
    }
    /// Mandatory locks, which no Linux has any more: accepted, without effect.
    const LOCK_MAND: u32 = 32;
    if operation & LOCK_MAND != 0 {
        return Ok(0);
    }
    let exclusive = match operation & !LOCK_NB {
        LOCK_SH => Some(false),
        LOCK_EX => Some(true),
        LOCK_UN => None,
        _ => return Err(EINVAL),
    };
    let locks = file
        .locks()
        .ok_or(EINVAL.because("no locks on this kind of file"))?;
    match exclusive {
        Some(exclusive) => {
            locks.flock(context.thread, &file, exclusive, operation & LOCK_NB == 0)?;
        }
        None => locks.unflock(&file),
    }
    Ok(0)
}

pub fn ioctl(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (fd, request, argument) = (arguments.i32(0), arguments.u32(1), arguments.u64(2));
    let files = context.thread.files();
    let file = files.get(fd)?;
    if file.is_path() {
        return Err(EBADF);
    }
    match request {
        ioctl::FIOCLEX => files.set_close_on_exec(fd, true).map(|()| 0),
        ioctl::FIONCLEX => files.set_close_on_exec(fd, false).map(|()| 0),
        ioctl::FIONBIO | ioctl::FIOASYNC => {
            let on = UserPtr::<i32>::new(argument).read(&context.mm())? != 0;
            if request == ioctl::FIONBIO {
                file.set_flags(flags::NONBLOCK, if on { flags::NONBLOCK } else { 0 });
            } else if file.ops.is_async() {
                async_io::set(&file, fd, on);
            } else {
                return Err(ENOTTY);
            }
            Ok(0)
        }
        ioctl::FIOSETOWN | ioctl::SIOCSPGRP if SocketFile::of(&file).is_ok() => {
            let owner = UserPtr::<i32>::new(argument).read(&context.mm())?;
            let target = Target::from_owner(owner)?;
            target.check()?;
            file.owner.set_target(target, &context.thread.process);
            SocketFile::of(&file)?.socket.watch_urgent();
            Ok(0)
        }
        ioctl::FIOGETOWN | ioctl::SIOCGPGRP if SocketFile::of(&file).is_ok() => {
            let owner = file.owner.target().owner();
            UserPtr::<i32>::new(argument).write(&context.mm(), &owner)?;
            Ok(0)
        }
        _ => {
            let regular = file
                .inode()
                .filter(|inode| inode.kind() == FileType::Regular)
                .filter(|_| !file.ops.as_any().is::<NamespaceFile>());
            match (request, regular) {
                (ioctl::FIONREAD, Some(inode)) => {
                    let position = *file.position.lock(context.thread);
                    let left = inode.size().saturating_sub(position).min(i32::MAX as u64) as i32;
                    UserPtr::<i32>::new(argument).write(&context.mm(), &left)?;
                    Ok(0)
                }
                (ioctl::FIOQSIZE, Some(inode)) => {
                    UserPtr::<i64>::new(argument).write(&context.mm(), &(inode.size() as i64))?;
                    Ok(0)
                }
                _ => file.ops.ioctl(context, &file, request, argument),
            }
        }
    }
}

fn make_pipe(context: &Context<'_>, address: u64, flags: u32) -> Result<usize> {
    /// O_NOTIFICATION_PIPE: a queue of the kernel's notifications, of which there are none.
    const NOTIFICATIONS: u32 = flags::EXCL;
    check_flags(
        flags,
        flags::CLOEXEC | flags::NONBLOCK | flags::DIRECT | NOTIFICATIONS,
    )?;
    if flags & NOTIFICATIONS != 0 {
        return Err(ENOPKG.because("no watch queues"));
    }
    let files = context.thread.files();
    let close_on_exec = flags & flags::CLOEXEC != 0;
    let limit = hooks::file_limit(context.thread);
    let fds = files.add_pair(pipe::pipe(flags), close_on_exec, limit)?;
    if let Err(error) = UserPtr::<[i32; 2]>::new(address).write(&context.mm(), &fds) {
        for fd in fds {
            drop(files.remove(fd));
        }
        return Err(error);
    }
    Ok(0)
}

pub fn pipe(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    make_pipe(context, arguments.u64(0), 0)
}

pub fn pipe2(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    make_pipe(context, arguments.u64(0), arguments.u32(1))
}
