//! read, write and their vector and position variants; lseek.

use alloc::sync::Arc;

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EAGAIN, EBADF, EFBIG, EINVAL, EISDIR, EOPNOTSUPP, ESPIPE};
use crate::fs::file::{OpenFile, flags};
use crate::fs::inode::FileType;
use crate::fs::inotify::{self, mask};
use crate::fs::{hooks, namei};
use crate::sync::wait::Events;
use crate::user::{IoBuffer, UserPtr, check_range};

/// RWF_* flags of preadv2 and pwritev2.
pub const RWF_HIPRI: u32 = 1;
pub const RWF_DSYNC: u32 = 2;
pub const RWF_SYNC: u32 = 4;
pub const RWF_NOWAIT: u32 = 8;
pub const RWF_APPEND: u32 = 16;

fn readable(context: &Context<'_>, fd: i32) -> Result<Arc<OpenFile>> {
    let file = context.thread.file(fd)?;
    if !file.is_readable() {
        return Err(EBADF.because("not open for reading"));
    }
    Ok(file)
}

fn writable(context: &Context<'_>, fd: i32) -> Result<Arc<OpenFile>> {
    let file = context.thread.file(fd)?;
    if !file.is_writable() {
        return Err(EBADF.because("not open for writing"));
    }
    Ok(file)
}

/// Reads at the file position, with what every read entails.
pub fn read_file(
    context: &Context<'_>,
    file: &Arc<OpenFile>,
    to: &mut IoBuffer<'_>,
) -> Result<usize> {
    let read = file.ops.read(context.thread, file, to)?;
    if read > 0 {
        inotify::notify_file(file, mask::ACCESS);
    }
    Ok(read)
}

/// Writes at the file position, with what every write entails.
pub fn write_file(
    context: &Context<'_>,
    file: &Arc<OpenFile>,
    from: &mut IoBuffer<'_>,
) -> Result<usize> {
    before_write(context, file, None, from)?;
    let written = file.ops.write(context.thread, file, from)?;
    after_write(context, file, written)
}

/// RLIMIT_FSIZE: EFBIG and SIGXFSZ at the limit, a short write below it.
fn before_write(
    context: &Context<'_>,
    file: &Arc<OpenFile>,
    offset: Option<u64>,
    from: &mut IoBuffer<'_>,
) -> Result<()> {
    let Some(inode) = file.inode() else {
        return Ok(());
    };
    let limit = hooks::size_limit(context.thread);
    if limit == u64::MAX || inode.kind() != FileType::Regular {
        return Ok(());
    }
    let at = match offset {
        _ if file.flags() & flags::APPEND != 0 => inode.size(),
        Some(offset) => offset,
        None => *file.position.lock(context.thread),
    };
    if at >= limit {
        if from.is_empty() {
            return Ok(());
        }
        hooks::raise_sigxfsz(context.thread);
        return Err(EFBIG);
    }
    from.truncate(usize::try_from(limit - at).unwrap_or(usize::MAX));
    Ok(())
}

fn after_write(context: &Context<'_>, file: &Arc<OpenFile>, written: usize) -> Result<usize> {
    if written > 0
        && let Some(inode) = file.inode()
    {
        if inode.mode() & 0o6000 != 0 && inode.kind() == FileType::Regular {
            namei::drop_privilege_bits(&context.caller(), &**inode)?;
        }
        inotify::notify_file(file, mask::MODIFY);
    }
    Ok(written)
}

/// Reads at an offset; ESPIPE for what has none.
pub fn read_file_at(
    context: &Context<'_>,
    file: &Arc<OpenFile>,
    to: &mut IoBuffer<'_>,
    offset: u64,
) -> Result<usize> {
    let read = file.ops.read_at(context.thread, file, to, offset)?;
    if read > 0 {
        inotify::notify_file(file, mask::ACCESS);
    }
    Ok(read)
}

/// Writes at an offset.
pub fn write_file_at(
    context: &Context<'_>,
    file: &Arc<OpenFile>,
    from: &mut IoBuffer<'_>,
    offset: u64,
) -> Result<usize> {
    before_write(context, file, Some(offset), from)?;
    let written = file.ops.write_at(context.thread, file, from, offset)?;
    after_write(context, file, written)
}

/// ESPIPE for a pipe or a socket, before it matters how it is open.
fn check_positioned(context: &Context<'_>, fd: i32) -> Result<()> {
    let file = context.thread.file(fd)?;
    let is_stream = match file.inode() {
        Some(inode) => inode.kind() == FileType::Fifo,
        None => crate::fs::pipe::is_pipe(&file) || crate::net::file::SocketFile::of(&file).is_ok(),
    };
    match is_stream {
        true => Err(ESPIPE),
        false => Ok(()),
    }
}

fn check_not_directory(file: &OpenFile) -> Result<()> {
    if file.inode().is_some_and(|inode| inode.is_directory()) {
        return Err(EISDIR);
    }
    Ok(())
}

pub fn read(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = readable(context, arguments.i32(0))?;
    let mm = context.mm();
    check_range(arguments.u64(1), arguments.usize(2))?;
    let mut to = IoBuffer::user(&mm, arguments.u64(1), arguments.usize(2));
    read_file(context, &file, &mut to)
}

pub fn write(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = writable(context, arguments.i32(0))?;
    let mm = context.mm();
    check_range(arguments.u64(1), arguments.usize(2))?;
    let mut from = IoBuffer::user(&mm, arguments.u64(1), arguments.usize(2));
    write_file(context, &file, &mut from)
}

fn offset(argument: i64) -> Result<u64> {
    u64::try_from(argument).map_err(|_| EINVAL.because("negative offset"))
}

pub fn pread64(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let offset = offset(arguments.i64(3))?;
    check_positioned(context, arguments.i32(0))?;
    let file = readable(context, arguments.i32(0))?;
    check_not_directory(&file)?;
    let mm = context.mm();
    check_range(arguments.u64(1), arguments.usize(2))?;
    let mut to = IoBuffer::user(&mm, arguments.u64(1), arguments.usize(2));
    read_file_at(context, &file, &mut to, offset)
}

pub fn pwrite64(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let offset = offset(arguments.i64(3))?;
    check_positioned(context, arguments.i32(0))?;
    let file = writable(context, arguments.i32(0))?;
    let mm = context.mm();
    check_range(arguments.u64(1), arguments.usize(2))?;
    let mut from = IoBuffer::user(&mm, arguments.u64(1), arguments.usize(2));
    write_file_at(context, &file, &mut from, offset)
}

pub fn readv(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = readable(context, arguments.i32(0))?;
    let mm = context.mm();
    let mut to = IoBuffer::vector(&mm, arguments.u64(1), arguments.u32(2) as usize)?;
    read_file(context, &file, &mut to)
}

pub fn writev(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = writable(context, arguments.i32(0))?;
    let mm = context.mm();
    let mut from = IoBuffer::vector(&mm, arguments.u64(1), arguments.u32(2) as usize)?;
    write_file(context, &file, &mut from)
}

pub fn preadv(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let offset = offset(arguments.i64(3))?;
    check_positioned(context, arguments.i32(0))?;
    let file = readable(context, arguments.i32(0))?;
    check_not_directory(&file)?;
    let mm = context.mm();
    let mut to = IoBuffer::vector(&mm, arguments.u64(1), arguments.u32(2) as usize)?;
    read_file_at(context, &file, &mut to, offset)
}

pub fn pwritev(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let offset = offset(arguments.i64(3))?;
    check_positioned(context, arguments.i32(0))?;
    let file = writable(context, arguments.i32(0))?;
    let mm = context.mm();
    let mut from = IoBuffer::vector(&mm, arguments.u64(1), arguments.u32(2) as usize)?;
    write_file_at(context, &file, &mut from, offset)
}

/// RWF_NOWAIT: EAGAIN where a read or write would wait. Files never wait for anything but the host's
/// disk; for what lives on the host the host would have to be asked (EOPNOTSUPP).
pub fn check_ready(file: &OpenFile, wanted: Events) -> Result<()> {
    if file.ops.is_seekable() {
        return Ok(());
    }
    if file.ops.host_fd().is_some() {
        return Err(EOPNOTSUPP.because("RWF_NOWAIT for a file of the host"));
    }
    let wanted = wanted | Events::ERR | Events::HUP;
    match file.ops.poll(None, wanted).intersects(wanted) {
        true => Ok(()),
        false => Err(EAGAIN.because("RWF_NOWAIT")),
    }
}

pub fn preadv2(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.u32(5) & !(RWF_HIPRI | RWF_NOWAIT) != 0 {
        return Err(EOPNOTSUPP.because("unknown RWF flags"));
    }
    if arguments.u32(5) & RWF_NOWAIT != 0 {
        let file = readable(context, arguments.i32(0))?;
        check_ready(&file, Events::IN)?;
    }
    if arguments.i64(3) == -1 {
        readv(context, arguments)
    } else {
        preadv(context, arguments)
    }
}

pub fn pwritev2(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let rwf = arguments.u32(5);
    if rwf & !(RWF_HIPRI | RWF_NOWAIT | RWF_DSYNC | RWF_SYNC | RWF_APPEND) != 0 {
        return Err(EOPNOTSUPP.because("unknown RWF flags"));
    }
    if rwf & RWF_NOWAIT != 0 {
        let file = writable(context, arguments.i32(0))?;
        check_ready(&file, Events::OUT)?;
    }
    let written = if rwf & RWF_APPEND != 0 {
        let file = writable(context, arguments.i32(0))?;
        let inode = file.inode().ok_or(ESPIPE)?;
        let size = inode.size();
        let mm = context.mm();
        let mut from = IoBuffer::vector(&mm, arguments.u64(1), arguments.u32(2) as usize)?;
        let written = write_file_at(context, &file, &mut from, size)?;
        if arguments.i64(3) == -1 {
            *file.position.lock(context.thread) = inode.size();
        }
        written
    } else if arguments.i64(3) == -1 {
        writev(context, arguments)?
    } else {
        pwritev(context, arguments)?
    };
    if written > 0 && rwf & (RWF_DSYNC | RWF_SYNC) != 0 {
        sync_written(context, &context.thread.files().get(arguments.i32(0))?)?;
    }
    Ok(written)
}

/// RWF_DSYNC and RWF_SYNC: what was written lasts before the call returns.
pub fn sync_written(context: &Context<'_>, file: &Arc<OpenFile>) -> Result<()> {
    match file.inode() {
        Some(inode) if inode.kind() == FileType::Regular => inode.sync(context.thread),
        _ => Ok(()),
    }
}

pub fn lseek(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = context.thread.file(arguments.i32(0))?;
    if file.is_path() {
        return Err(EBADF);
    }
    let whence = arguments.u32(2);
    if whence > 4 {
        return Err(EINVAL);
    }
    Ok(file
        .ops
        .seek(context.thread, &file, arguments.i64(1), whence)? as usize)
}

/// A 64-bit offset in user memory, read, used for at most `count` bytes and written back.
pub fn with_offset(
    context: &Context<'_>,
    pointer: UserPtr<i64>,
    count: usize,
    run: impl FnOnce(u64) -> Result<usize>,
) -> Result<usize> {
    let mm = context.mm();
    let start = offset(pointer.read(&mm)?)?;
    if start + count as u64 > i64::MAX as u64 {
        return Err(EINVAL.because("an offset beyond the end of any file"));
    }
    let moved = run(start)?;
    pointer.write(&mm, &((start + moved as u64) as i64))?;
    Ok(moved)
}
