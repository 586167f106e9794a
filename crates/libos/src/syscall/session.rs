//! Process groups and sessions.

use core::sync::atomic::Ordering;

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EACCES, EINVAL, EPERM, ESRCH};
use crate::process::table;

pub fn getpgrp(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    Ok(context.thread.process.group() as usize)
}

pub fn getpgid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match arguments.u32(0) {
        0 => Ok(context.thread.process.group() as usize),
        pid => Ok(table::process_or_esrch(pid)?.group() as usize),
    }
}

pub fn getsid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match arguments.u32(0) {
        0 => Ok(context.thread.process.session() as usize),
        pid => Ok(table::process_or_esrch(pid)?.session() as usize),
    }
}

pub fn setsid(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    let process = &context.thread.process;
    table::lock().new_session(process)?;
    Ok(process.pid as usize)
}

pub fn setpgid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let own = &context.thread.process;
    let (pid, group) = (arguments.i32(0), arguments.i32(1));
    if pid < 0 || group < 0 {
        return Err(EINVAL.because("negative process or group id"));
    }
    let pid = if pid == 0 { own.pid } else { pid as u32 };
    let group = if group == 0 { pid } else { group as u32 };
    let mut table = table::lock();
    let node = table.node(pid).ok_or(ESRCH)?;
    let target = node.process.clone();
    if node.parent == own.pid {
        if target.session() != own.session() {
            return Err(EPERM.because("the child is in another session"));
        }
        if target.has_executed.load(Ordering::Relaxed) {
            return Err(EACCES.because("the child has executed a program"));
        }
    } else if pid != own.pid {
        return Err(ESRCH.because("not a child"));
    }
    if target.session() == target.pid {
        return Err(EPERM.because("a session leader stays in its group"));
    }
    if group != pid && !table.group_in_session(group, own.session()) {
        return Err(EPERM.because("no such group in the session"));
    }
    table.set_group(&target, group);
    Ok(0)
}
