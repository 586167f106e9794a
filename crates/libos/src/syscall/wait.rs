//! wait4, waitid, pidfd_open, pidfd_send_signal, pidfd_getfd.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::{Arguments, Context};
use crate::errno::{EAGAIN, EBADF, EINVAL, EPERM, ESRCH};
use crate::fs::file::flags;
use crate::ipc::semaphore::has_undo;
use crate::process::Process;
use crate::process::credentials::By;
use crate::process::pidfd::{self, PidFile};
use crate::process::table;
use crate::process::wait::{Change, WaitOptions, Which, wait};
use crate::signal::SigInfo;
use crate::signal::send::{Origin, check_right, to_process, to_thread, user_info};

use crate::{Result, Thread};

use super::limits::Usage;

pub fn wait4(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let pid = arguments.i32(0);
    let options = WaitOptions::from_bits(arguments.u32(2))
        .filter(|o| !o.intersects(WaitOptions::EXITED | WaitOptions::NOWAIT))
        .ok_or(EINVAL.because("unknown wait4 options"))?;
    let which = match pid {
        -1 => Which::Any,
        0 => Which::Group(context.thread.process.group()),
        i32::MIN => return Err(ESRCH),
        pid if pid < 0 => Which::Group(pid.unsigned_abs()),
        pid => Which::Pid(pid as u32),
    };
    let Some(change) = wait(context.thread, &which, options | WaitOptions::EXITED)? else {
        return Ok(0);
    };
    let mm = context.mm();
    if let Some(to) = arguments.pointer::<u32>(1).option() {
        to.write(&mm, &change.status)?;
    }
    if let Some(to) = arguments.pointer::<Usage>(3).option() {
        to.write(&mm, &usage_of(&change))?;
    }
    Ok(change.pid as usize)
}

fn usage_of(change: &Change) -> Usage {
    Usage::new(change.cpu_time, change.sleeps)
}

const P_ALL: u32 = 0;
const P_PID: u32 = 1;
const P_PGID: u32 = 2;
const P_PIDFD: u32 = 3;

pub fn waitid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let change = wait_for_id(context, arguments);
    // The fields are written whatever comes of it, cleared where nothing does; EFAULT is then the
    // answer.
    let info = match &change {
        Ok(Some(change)) => change.info,
        Ok(None) | Err(_) => SigInfo::default(),
    };
    let mm = context.mm();
    if let Some(to) = arguments.pointer::<[u8; 128]>(2).option() {
        // Linux writes the fields up to si_status only.
        mm.write(to.address, &info.to_user()[..28])?;
    }
    if let (Some(change), Some(to)) = (&change?, arguments.pointer::<Usage>(4).option()) {
        to.write(&mm, &usage_of(change))?;
    }
    Ok(0)
}

fn wait_for_id(context: &Context<'_>, arguments: Arguments) -> Result<Option<Change>> {
    let (kind, id) = (arguments.u32(0), arguments.i32(1));
    let mut options =
        WaitOptions::from_bits(arguments.u32(3)).ok_or(EINVAL.because("unknown waitid options"))?;
    let changes = WaitOptions::EXITED | WaitOptions::STOPPED | WaitOptions::CONTINUED;
    if !options.intersects(changes) {
        return Err(EINVAL.because("waitid for nothing"));
    }
    let mut nonblocking = false;
    let which = match kind {
        P_ALL => Which::Any,
        P_PID if id > 0 => Which::Pid(id as u32),
        P_PGID if id == 0 => Which::Group(context.thread.process.group()),
        P_PGID if id > 0 => Which::Group(id as u32),
        P_PIDFD if id >= 0 => {
            let file = context.thread.files().get(id)?;
            let process = PidFile::process_of(&file)?;
            if file.is_nonblocking() && !options.contains(WaitOptions::NOHANG) {
                options |= WaitOptions::NOHANG;
                nonblocking = true;
            }
            Which::Pid(process.pid)
        }
        _ => return Err(EINVAL.because("bad id for waitid")),
    };
    let change = wait(context.thread, &which, options)?;
    if change.is_none() && nonblocking {
        return Err(EAGAIN.because("the pidfd does not wait"));
    }
    Ok(change)
}

pub fn pidfd_open(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (pid, given) = (arguments.i32(0), arguments.u32(1));
    if given & !(flags::NONBLOCK | pidfd::PIDFD_THREAD) != 0 || pid <= 0 {
        return Err(EINVAL.because("bad pidfd_open arguments"));
    }
    let file = if given & pidfd::PIDFD_THREAD != 0 {
        let thread = table::thread(pid as u32).ok_or(ESRCH)?;
        pidfd::open(&thread, true, given)
    } else if let Some(process) = table::process(pid as u32) {
        pidfd::open_process(&process, given)
    } else if table::thread(pid as u32).is_some() {
        return Err(EINVAL.because("a thread's id, not a process's"));
    } else {
        return Err(ESRCH);
    };
    let limit = context.thread.process.limits.files();
    context
        .thread
        .files()
        .add(file, true, limit)
        .map(|fd| fd as usize)
}

pub fn pidfd_send_signal(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let given = arguments.u32(3);
    // PIDFD_SIGNAL_THREAD, _THREAD_GROUP, _PROCESS_GROUP.
    if given & !7 != 0 || given.count_ones() > 1 {
        return Err(EINVAL.because("unknown flags"));
    }
    let thread = context.thread;
    let file = thread.files().get(arguments.i32(0))?;
    // A directory /proc/<pid> will do too.
    let directory = file.inode().and_then(crate::fs::procfs::process_of);
    let (process, target_thread) = match directory {
        Some(process) => (process, None),
        None => (PidFile::process_of(&file)?, PidFile::thread_of(&file)?),
    };
    let signal = arguments.i32(1);
    let info = match arguments.pointer::<SigInfo>(2).option() {
        Some(from) => {
            let mut info = from.read(&context.mm())?;
            if info.signal != signal {
                return Err(EINVAL.because("signal numbers differ"));
            }
            info.padding = 0;
            if process.pid != thread.process.pid && (info.code >= 0 || info.code == -6) {
                return Err(EPERM.because("a pretended origin"));
            }
            info
        }
        None => user_info(thread, signal as u32),
    };
    // The id may be another process's by now.
    if !table::process(process.pid).is_some_and(|now| Arc::ptr_eq(&now, &process)) {
        return Err(ESRCH);
    }
    if given & 4 != 0 {
        return super::kill::send_to_group(context, process.pid, signal);
    }
    check_right(&thread.process, &process, signal as u32)?;
    if signal == 0 {
        return Ok(0);
    }
    crate::signal::checked(signal)?;
    match target_thread {
        Some(target) if given & 2 == 0 => to_thread(&target, info, Origin::Inside)?,
        _ => to_process(&process, info, Origin::Inside)?,
    }
    Ok(0)
}

pub fn pidfd_getfd(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.u32(2) != 0 {
        return Err(EINVAL.because("unknown flags"));
    }
    let own = &context.thread.process;
    let file = context.thread.files().get(arguments.i32(0))?;
    let process = PidFile::process_of(&file)?;
    let target = process.main_thread().ok_or(ESRCH)?;
    if !process.may_be_examined(own, By::RealIds) {
        return Err(EPERM.because("a process with other rights"));
    }
    let wanted = target.files().get(arguments.i32(1)).map_err(|_| EBADF)?;
    let limit = own.limits.files();
    context
        .thread
        .files()
        .add(wanted, true, limit)
        .map(|fd| fd as usize)
}

/// kcmp: 0 when two processes share the resource, else 1 or 2 (an arbitrary order).
pub fn kcmp(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let find = |pid: u32| table::thread(pid).ok_or(ESRCH);
    let (first, second) = (find(arguments.u32(0))?, find(arguments.u32(1))?);
    for other in [&first, &second] {
        if !other
            .process
            .may_be_examined(&context.thread.process, By::RealIds)
        {
            return Err(EPERM.because("a process with other rights"));
        }
    }
    let order = |a: usize, b: usize| match a.cmp(&b) {
        core::cmp::Ordering::Equal => 0,
        core::cmp::Ordering::Less => 1,
        core::cmp::Ordering::Greater => 2,
    };

    Ok(match arguments.u32(2) {
        0 => {
            let a = first.files().get(arguments.i32(3))?;
            let b = second.files().get(arguments.i32(4))?;
            order(Arc::as_ptr(&a) as usize, Arc::as_ptr(&b) as usize)
        }
        1 => order(
            Arc::as_ptr(&first.mm()) as usize,
            Arc::as_ptr(&second.mm()) as usize,
        ),
        2 => order(
            Arc::as_ptr(&first.files()) as usize,
            Arc::as_ptr(&second.files()) as usize,
        ),
        3 => order(
            Arc::as_ptr(&first.fs()) as usize,
            Arc::as_ptr(&second.fs()) as usize,
        ),
        4 => {
            let (a, b) = (
                first.process.signals.actions(),
                second.process.signals.actions(),
            );
            order(Arc::as_ptr(&a) as usize, Arc::as_ptr(&b) as usize)
        }
        // What neither of them has is the same: contexts of I/O, lists of semaphores to take back.
        5 | 6 => {
            let has = |thread: &Arc<Thread>| match arguments.u32(2) {
                5 => {
                    thread.process.io_priority.load(Ordering::Relaxed) != Process::IO_PRIORITY_NONE
                }
                _ => has_undo(&thread.process),
            };
            let own = |thread: &Arc<Thread>| match has(thread) {
                true => thread.process.pid as usize,
                false => 0,
            };
            order(own(&first), own(&second))
        }
        _ => return Err(EINVAL.because("unknown kcmp type")),
    })
}
