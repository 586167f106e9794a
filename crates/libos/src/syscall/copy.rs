//! sendfile, copy_file_range, splice, tee, vmsplice: data goes through a kernel buffer.

use alloc::sync::Arc;
use alloc::vec;

use super::at::check_flags;
use super::io::{read_file, read_file_at, with_offset, write_file, write_file_at};
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EAGAIN, EBADF, EINVAL, EISDIR, EOVERFLOW, ESPIPE};
use crate::fs::file::{OpenFile, flags};
use crate::fs::inode::FileType;
use crate::fs::pipe::{self, PipeEnd};
use crate::user::{IoBuffer, RW_MAX, UserPtr};

/// Bytes moved at once.
const CHUNK: usize = 64 << 10;

fn source(context: &Context<'_>, fd: i32) -> Result<Arc<OpenFile>> {
    let file = context.thread.file(fd)?;
    if file.is_readable() {
        Ok(file)
    } else {
        Err(EBADF)
    }
}

fn target(context: &Context<'_>, fd: i32) -> Result<Arc<OpenFile>> {
    let file = context.thread.file(fd)?;
    if file.is_writable() {
        Ok(file)
    } else {
        Err(EBADF)
    }
}

/// Copies from `from` at `offset` to wherever `put` writes; bytes copied.
fn pump(
    context: &Context<'_>,
    from: &Arc<OpenFile>,
    offset: u64,
    count: usize,
    mut put: impl FnMut(&mut IoBuffer<'_>) -> Result<usize>,
) -> Result<usize> {
    let mut buffer = vec![0u8; count.min(CHUNK)];
    let mut moved = 0;
    while moved < count {
        let len = (count - moved).min(CHUNK);
        let mut to = IoBuffer::output(&mut buffer[..len]);
        let read = match read_file_at(context, from, &mut to, offset + moved as u64) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if moved == 0 => return Err(error),
            Err(_) => break,
        };
        match put(&mut IoBuffer::input(&buffer[..read])) {
            Ok(written) => {
                moved += written;
                if written < read {
                    break;
                }
            }
            Err(error) if moved == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(moved)
}

/// EINVAL for a negative count; more than a read may move is cut off.
fn checked_count(count: i64) -> Result<usize> {
    let count = usize::try_from(count).map_err(|_| EINVAL.because("a negative count"))?;
    Ok(count.min(RW_MAX))
}

pub fn sendfile(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let from = source(context, arguments.i32(1))?;
    let to = target(context, arguments.i32(0))?;
    let count = checked_count(arguments.i64(3))?;
    match from.inode().map(|inode| inode.kind()) {
        Some(FileType::Regular) => {}
        Some(FileType::Directory) => return Err(EINVAL),
        // Devices can be read at any offset too.
        Some(_) if from.ops.is_seekable() => {}
        _ => return Err(EINVAL.because("the source of sendfile must be a file")),
    }
    if to.flags() & flags::APPEND != 0 {
        return Err(EINVAL);
    }
    let put = |data: &mut IoBuffer<'_>| write_file(context, &to, data);
    match UserPtr::<i64>::new(arguments.u64(2)).option() {
        Some(pointer) => with_offset(context, pointer, count, |offset| {
            pump(context, &from, offset, count, put)
        }),
        None => {
            let offset = *from.position.lock(context.thread);
            let moved = pump(context, &from, offset, count, put)?;
            *from.position.lock(context.thread) = offset + moved as u64;
            Ok(moved)
        }
    }
}

pub fn copy_file_range(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    check_flags(arguments.u32(5), 0)?;
    let from = source(context, arguments.i32(0))?;
    let to = target(context, arguments.i32(2))?;
    for file in [&from, &to] {
        match file.inode().map(|inode| inode.kind()) {
            Some(FileType::Regular) => {}
            Some(FileType::Directory) => return Err(EISDIR),
            _ => return Err(EINVAL),
        }
    }
    if to.flags() & flags::APPEND != 0 {
        return Err(EBADF);
    }
    let mm = context.mm();
    let count = arguments.usize(4);
    let place = |pointer: UserPtr<i64>, file: &Arc<OpenFile>| match pointer.option() {
        Some(pointer) => pointer.read(&mm).map(|at| at as u64),
        None => Ok(*file.position.lock(context.thread)),
    };
    let (from_at, to_at) = (arguments.pointer::<i64>(1), arguments.pointer::<i64>(3));
    let (start, target) = (place(from_at, &from)?, place(to_at, &to)?);
    let end = start.checked_add(count as u64).ok_or(EOVERFLOW)?;
    let target_end = target.checked_add(count as u64).ok_or(EOVERFLOW)?;
    if i64::try_from(start.max(target)).is_err() {
        return Err(EINVAL.because("a negative offset"));
    }
    let same = from.inode().map(|inode| inode.id()) == to.inode().map(|inode| inode.id());
    if same && start < target_end && target < end {
        return Err(EINVAL.because("the ranges overlap"));
    }
    let mut at = target;
    let moved = pump(context, &from, start, count.min(RW_MAX), |data| {
        let written = write_file_at(context, &to, data, at)?;
        at += written as u64;
        Ok(written)
    })?;
    for (pointer, file, base) in [(from_at, &from, start), (to_at, &to, target)] {
        let after = base + moved as u64;
        match pointer.option() {
            Some(pointer) => pointer.write(&mm, &(after as i64))?,
            None => *file.position.lock(context.thread) = after,
        }
    }
    Ok(moved)
}

/// splice(2) flags.
const SPLICE_NONBLOCK: u32 = 2;
const SPLICE_KNOWN: u32 = 15;

/// EAGAIN where a pipe would have to wait but must not.
fn check_ready(end: &PipeEnd, read: bool, flags: u32) -> Result<()> {
    let blocked = if read {
        end.would_block_read()
    } else {
        end.would_block_write()
    };
    if flags & SPLICE_NONBLOCK != 0 && blocked {
        Err(EAGAIN)
    } else {
        Ok(())
    }
}

pub fn splice(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let flags = arguments.u32(5);
    check_flags(flags, SPLICE_KNOWN)?;
    let from = source(context, arguments.i32(0))?;
    let to = target(context, arguments.i32(2))?;
    let count = checked_count(arguments.i64(4))?;
    let (from_at, to_at) = (arguments.pointer::<i64>(1), arguments.pointer::<i64>(3));
    let (from_pipe, to_pipe) = (pipe::of(&from), pipe::of(&to));
    if from_pipe.is_some() && from_at.option().is_some()
        || to_pipe.is_some() && to_at.option().is_some()
    {
        return Err(ESPIPE);
    }
    if from.inode().map(|inode| inode.kind()) == Some(FileType::Directory) {
        return Err(EINVAL.because("a directory has no bytes"));
    }
    // Before anything waits for data: eventfd, inotify and their like have no type of file.
    let anonymous =
        |file: &OpenFile| file.inode().is_none() && file.ops.metadata().mode & 0o170000 == 0;
    if anonymous(&from) || anonymous(&to) {
        return Err(EINVAL.because("files without a type are not spliced"));
    }
    if count == 0 {
        return Ok(0);
    }
    let mut buffer = vec![0u8; count.min(CHUNK)];
    match (from_pipe, to_pipe) {
        (None, None) => Err(EINVAL.because("one end of splice must be a pipe")),
        (Some(end), Some(other)) if Arc::ptr_eq(end.pipe(), other.pipe()) => Err(EINVAL),
        (Some(end), _) => {
            if to.flags() & flags::APPEND != 0 {
                return Err(EINVAL);
            }
            check_ready(end, true, flags)?;
            if let Some(other) = to_pipe {
                check_ready(other, false, flags)?;
            }
            let read = read_file(context, &from, &mut IoBuffer::output(&mut buffer))?;
            let put = |data: &mut IoBuffer<'_>| match to_at.option() {
                Some(pointer) => with_offset(context, pointer, count, |at| {
                    write_file_at(context, &to, data, at)
                }),
                None => write_file(context, &to, data),
            };
            let written = put(&mut IoBuffer::input(&buffer[..read]));
            // What the target did not take stays in the pipe.
            end.pipe().put_back(&buffer[written.unwrap_or(0)..read]);
            written
        }
        (None, Some(end)) => {
            check_ready(end, false, flags)?;
            end.wait_for_room(context.thread, &to)?;
            let room = end.pipe().room().clamp(1, buffer.len());
            let get = |data: &mut IoBuffer<'_>| match from_at.option() {
                Some(pointer) => with_offset(context, pointer, count, |at| {
                    read_file_at(context, &from, data, at)
                }),
                None => read_file(context, &from, data),
            };
            let read = get(&mut IoBuffer::output(&mut buffer[..room]))?;
            write_file(context, &to, &mut IoBuffer::input(&buffer[..read]))
        }
    }
}

pub fn tee(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let flags = arguments.u32(3);
    check_flags(flags, SPLICE_KNOWN)?;
    let from = source(context, arguments.i32(0))?;
    let to = target(context, arguments.i32(1))?;
    let (Some(end), Some(other)) = (pipe::of(&from), pipe::of(&to)) else {
        return Err(EINVAL);
    };
    if Arc::ptr_eq(end.pipe(), other.pipe()) {
        return Err(EINVAL);
    }
    let count = arguments.usize(2).min(CHUNK);
    if count == 0 {
        return Ok(0);
    }
    check_ready(end, true, flags)?;
    check_ready(other, false, flags)?;
    end.wait_for_data(context.thread, &from)?;
    other.wait_for_room(context.thread, &to)?;
    let bytes = end.pipe().peek(count.min(other.pipe().room().max(1)));
    if bytes.is_empty() {
        return Ok(0);
    }
    write_file(context, &to, &mut IoBuffer::input(&bytes))
}

pub fn vmsplice(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    check_flags(arguments.u32(3), SPLICE_KNOWN)?;
    let file = context.thread.file(arguments.i32(0))?;
    let end = pipe::of(&file).ok_or(EBADF)?;
    let mm = context.mm();
    let mut data = IoBuffer::vector(&mm, arguments.u64(1), arguments.usize(2))?;
    if file.is_writable() {
        check_ready(end, false, arguments.u32(3))?;
        // Waits for some room only: a vector that does not fit goes in part.
        if !data.is_empty() {
            end.wait_for_room(context.thread, &file)?;
            data.truncate(end.pipe().room().max(1));
        }
        write_file(context, &file, &mut data)
    } else {
        check_ready(end, true, arguments.u32(3))?;
        read_file(context, &file, &mut data)
    }
}
