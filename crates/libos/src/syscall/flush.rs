//! fsync, fdatasync, sync, syncfs, sync_file_range, fadvise64, readahead. Files of protected
//! volumes are written to the host here; all others live in memory, so there is nothing to write
//! back, and arguments are checked all the same.

use super::at::check_flags;
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EBADF, EINVAL, ESPIPE};
use crate::fs::file::OpenFile;
use crate::fs::inode::FileType;
use alloc::sync::Arc;

fn open_file(context: &Context<'_>, fd: i32) -> Result<Arc<OpenFile>> {
    let file = context.thread.file(fd)?;
    if file.is_path() { Err(EBADF) } else { Ok(file) }
}

fn kind(file: &OpenFile) -> Option<FileType> {
    file.inode().map(|inode| inode.kind())
}

pub fn fsync(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = open_file(context, arguments.i32(0))?;
    match (kind(&file), file.inode()) {
        (Some(FileType::Regular | FileType::Directory), Some(inode)) => {
            inode.sync(context.thread).map(|()| 0)
        }
        _ => Err(EINVAL.because("nothing to synchronise")),
    }
}

pub fn sync(context: &mut Context<'_>, _arguments: Arguments) -> Result<usize> {
    // sync(2) has no way to report an error; it is in the log.
    let _ = crate::fs::sync_volumes(context.thread);
    Ok(0)
}

pub fn syncfs(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = open_file(context, arguments.i32(0))?;
    match file.inode() {
        Some(inode) => inode.sync(context.thread).map(|()| 0),
        None => Ok(0),
    }
}

pub fn sync_file_range(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = open_file(context, arguments.i32(0))?;
    let (offset, len) = (arguments.i64(1), arguments.i64(2));
    check_flags(arguments.u32(3), 7)?;
    if offset < 0 || len < 0 || offset.checked_add(len).is_none() {
        return Err(EINVAL);
    }
    match kind(&file) {
        Some(FileType::Regular | FileType::Directory | FileType::Block | FileType::Link) => Ok(0),
        _ => Err(ESPIPE),
    }
}

pub fn fadvise64(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = open_file(context, arguments.i32(0))?;
    if crate::fs::pipe::of(&file).is_some() {
        return Err(ESPIPE);
    }
    if arguments.i64(2) < 0 || arguments.u32(3) > 5 {
        return Err(EINVAL);
    }
    Ok(0)
}

pub fn readahead(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = open_file(context, arguments.i32(0))?;
    if !file.is_readable() {
        return Err(EBADF);
    }
    match kind(&file) {
        Some(FileType::Regular) if arguments.i64(2) >= 0 => Ok(0),
        _ => Err(EINVAL),
    }
}
