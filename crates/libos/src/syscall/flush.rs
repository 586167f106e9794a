//! fsync, fdatasync, sync, syncfs, sync_file_range, fadvise64, readahead, cachestat. Files of protected
//! volumes are written to the host here; all others live in memory, so there is nothing to write
//! back, and arguments are checked all the same.

use super::at::check_flags;
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EBADF, EINVAL, ESPIPE};
use crate::fs::file::OpenFile;
use crate::fs::inode::{FileType, Find, Inode};
use crate::mm::PAGE;
use crate::user::UserPtr;
use alloc::sync::Arc;
use zerocopy::IntoBytes;

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

/// cachestat(2): what a file has of a range is in memory, and as good as written.
pub fn cachestat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = open_file(context, arguments.i32(0))?;
    let mm = context.mm();
    let [offset, len] = UserPtr::<[u64; 2]>::new(arguments.u64(1)).read(&mm)?;
    if arguments.u32(3) != 0 {
        return Err(EINVAL.because("no flags are known"));
    }
    let cached = match (kind(&file), file.inode()) {
        (Some(FileType::Regular), Some(inode)) => pages_of(&**inode, offset, len),
        _ => 0,
    };
    // struct cachestat: cached, dirty, being written, evicted, recently evicted.
    let words = [cached, 0, 0, 0, 0];
    mm.write(arguments.u64(2), words.as_bytes())?;
    Ok(0)
}

/// The pages of a range that have content; a length of 0 is all the rest.
fn pages_of(inode: &dyn Inode, offset: u64, len: u64) -> u64 {
    let end = match len {
        0 => u64::MAX,
        len => offset.saturating_add(len),
    };
    let (mut at, mut pages) = (offset - offset % PAGE, 0);
    while let Some(data) = inode.find(Find::Data, at).filter(|&data| data < end) {
        let hole = inode.find(Find::Hole, data).unwrap_or(end).min(end);
        pages += hole.div_ceil(PAGE) - data / PAGE;
        at = hole.next_multiple_of(PAGE).max(data + PAGE);
    }
    pages
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
