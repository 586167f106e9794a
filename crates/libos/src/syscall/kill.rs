//! kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Arguments, Context};
use crate::errno::{EINVAL, EPERM, ESRCH};
use crate::process::{Process, table};
use crate::signal::info::SI_TKILL;
use crate::signal::send::{Origin, check_right, to_process, to_thread, user_info};
use crate::signal::{self, SigInfo};
use crate::user::UserPtr;
use crate::{Result, Thread};

/// 0 asks for the right only.
fn signal_or_probe(signal: i32) -> Result<u32> {
    if signal == 0 {
        Ok(0)
    } else {
        signal::checked(signal)
    }
}

pub fn kill(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (pid, signal) = (arguments.i32(0), arguments.i32(1));
    let number = signal_or_probe(signal)?;
    let own = &context.thread.process;
    match pid {
        1.. => {
            let target = find_process(pid as u32)?;
            send(context.thread, &target, number)?;
            Ok(0)
        }
        0 => send_to_group(context, own.group(), signal),
        -1 => {
            let mut targets = table::processes();
            targets.retain(|process| process.pid != 1 && process.pid != own.pid);
            send_to_all(context.thread, &targets, number)
        }
        i32::MIN => Err(ESRCH),
        pid => send_to_group(context, pid.unsigned_abs(), signal),
    }
}

/// The process with this id; a thread's id stands for its process, as on Linux.
fn find_process(pid: u32) -> Result<Arc<Process>> {
    match table::process(pid) {
        Some(process) => Ok(process),
        None => table::thread(pid)
            .map(|thread| thread.process.clone())
            .ok_or(ESRCH),
    }
}

/// kill for a process group, with the caller's rights.
pub fn send_to_group(context: &mut Context<'_>, group: u32, signal: i32) -> Result<usize> {
    let number = signal_or_probe(signal)?;
    let targets = table::lock().group_members(group);
    send_to_all(context.thread, &targets, number)
}

/// Succeeds if one of them could be signalled.
fn send_to_all(thread: &Arc<Thread>, targets: &[Arc<Process>], signal: u32) -> Result<usize> {
    if targets.is_empty() {
        return Err(ESRCH);
    }
    let results: Vec<Result<()>> = targets.iter().map(|t| send(thread, t, signal)).collect();
    if results.iter().any(Result::is_ok) {
        return Ok(0);
    }
    results
        .into_iter()
        .find(Result::is_err)
        .map_or(Ok(0), |error| error.map(|()| 0))
}

fn send(thread: &Arc<Thread>, target: &Arc<Process>, signal: u32) -> Result<()> {
    check_right(&thread.process, target, signal)?;
    if signal == 0 {
        return Ok(());
    }
    to_process(target, user_info(thread, signal), Origin::Inside)
}

pub fn tkill(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.i32(0) <= 0 {
        return Err(EINVAL.because("no such thread id"));
    }
    send_to_thread(context, None, arguments.u32(0), arguments.i32(1))
}

pub fn tgkill(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.i32(0) <= 0 || arguments.i32(1) <= 0 {
        return Err(EINVAL.because("no such process or thread id"));
    }
    send_to_thread(
        context,
        Some(arguments.u32(0)),
        arguments.u32(1),
        arguments.i32(2),
    )
}

fn send_to_thread(
    context: &mut Context<'_>,
    process: Option<u32>,
    tid: u32,
    signal: i32,
) -> Result<usize> {
    let thread = context.thread;
    let target = find_thread(thread, process, tid)?;
    let number = signal_or_probe(signal)?;
    let Some(target) = target else {
        return Ok(0);
    };
    check_right(&thread.process, &target.process, number)?;
    if number != 0 {
        let uid = thread.process.credentials.lock().ruid;
        let info = SigInfo::user(number, SI_TKILL, thread.process.pid, uid);
        to_thread(&target, info, Origin::Inside)?;
    }
    Ok(0)
}

/// `None` for a zombie, to which signals go without effect.
fn find_thread(
    thread: &Arc<Thread>,
    process: Option<u32>,
    tid: u32,
) -> Result<Option<Arc<Thread>>> {
    if tid == thread.tid() && process.is_none_or(|pid| pid == thread.process.pid) {
        return Ok(Some(thread.clone()));
    }
    match table::thread(tid) {
        Some(target) if process.is_none_or(|pid| pid == target.process.pid) => Ok(Some(target)),
        None if process.is_none_or(|pid| pid == tid) && table::process(tid).is_some() => Ok(None),
        _ => Err(ESRCH),
    }
}

fn queued_info(context: &Context<'_>, address: u64, signal: i32, to_self: bool) -> Result<SigInfo> {
    let mut info = UserPtr::<SigInfo>::new(address).read(&context.mm())?;
    info.signal = signal;
    info.padding = 0;
    if (info.code >= 0 || info.code == SI_TKILL) && !to_self {
        return Err(EPERM.because("a pretended origin"));
    }
    Ok(info)
}

pub fn rt_sigqueueinfo(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (pid, signal) = (arguments.u32(0), arguments.i32(1));
    let to_self = pid == context.thread.process.pid;
    let info = queued_info(context, arguments.u64(2), signal, to_self)?;
    let number = signal_or_probe(signal)?;
    let target = find_process(pid)?;
    check_right(&context.thread.process, &target, number)?;
    if number != 0 {
        to_process(&target, info, Origin::Inside)?;
    }
    Ok(0)
}

pub fn rt_tgsigqueueinfo(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (pid, tid, signal) = (arguments.i32(0), arguments.i32(1), arguments.i32(2));
    if pid <= 0 || tid <= 0 {
        return Err(EINVAL.because("no such process or thread id"));
    }
    let to_self = pid as u32 == context.thread.process.pid;
    let info = queued_info(context, arguments.u64(3), signal, to_self)?;
    let number = signal_or_probe(signal)?;
    let Some(target) = find_thread(context.thread, Some(pid as u32), tid as u32)? else {
        return Ok(0);
    };
    check_right(&context.thread.process, &target.process, number)?;
    if number != 0 {
        to_thread(&target, info, Origin::Inside)?;
    }
    Ok(0)
}
