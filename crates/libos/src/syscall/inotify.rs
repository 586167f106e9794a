//! inotify_init, inotify_init1, inotify_add_watch, inotify_rm_watch.

use super::at::check_flags;
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EBADF, EINVAL, ENOTDIR};
use crate::fs::file::{OpenFile, flags};
use crate::fs::hooks;
use crate::fs::inotify::{Inotify, mask};
use crate::fs::path::Follow;
use crate::fs::permission::READ;

fn init(context: &Context<'_>, flags: u32) -> Result<usize> {
    check_flags(flags, flags::CLOEXEC | flags::NONBLOCK)?;
    let uid = context.thread.process.credentials.lock().ruid;
    let file = OpenFile::new(Inotify::new(uid)?, flags & flags::NONBLOCK);
    let close_on_exec = flags & flags::CLOEXEC != 0;
    let limit = hooks::file_limit(context.thread);
    Ok(context.thread.files().add(file, close_on_exec, limit)? as usize)
}

pub fn inotify_init(context: &mut Context<'_>, _arguments: Arguments) -> Result<usize> {
    init(context, 0)
}

pub fn inotify_init1(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    init(context, arguments.u32(0))
}

pub fn inotify_add_watch(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let wanted = arguments.u32(2);
    if wanted & (mask::ALL | mask::ONESHOT) == 0
        || wanted & mask::MASK_ADD != 0 && wanted & mask::MASK_CREATE != 0
    {
        return Err(EINVAL);
    }
    let file = context.thread.file(arguments.i32(0))?;
    if file.is_path() {
        return Err(EBADF);
    }
    let instance = file.ops.as_any().downcast_ref::<Inotify>().ok_or(EINVAL)?;
    let path = context.path(arguments.u64(1))?;
    let follow = if wanted & mask::DONT_FOLLOW != 0 {
        Follow::No
    } else {
        Follow::Yes
    };
    let found = context.walk().find(&path, follow)?;
    if wanted & mask::ONLYDIR != 0 && !found.inode().is_directory() {
        return Err(ENOTDIR);
    }
    context.caller().check(&**found.inode(), READ)?;
    Ok(instance.watch(found.inode(), wanted)? as usize)
}

pub fn inotify_rm_watch(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = context.thread.file(arguments.i32(0))?;
    let instance = file.ops.as_any().downcast_ref::<Inotify>().ok_or(EINVAL)?;
    instance.unwatch(arguments.i32(1))?;
    Ok(0)
}
