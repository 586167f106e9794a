//! rt_sigaction, rt_sigprocmask, rt_sigreturn, rt_sigsuspend, rt_sigpending, rt_sigtimedwait,
//! sigaltstack, pause, restart_syscall.

use alloc::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Arguments, Context};
use crate::errno::{EAGAIN, EINTR, EINVAL, ERESTARTNOHAND, ERESTARTSYS, ETIMEDOUT};
use crate::mm::AddressSpace;
use crate::platform::platform;
use crate::signal::action::SA_KNOWN;
use crate::signal::{
    self, Action, AlternateStack, Restart, SigInfo, UNBLOCKABLE, bit, frame, send,
};
use crate::sync::wait::sleep_once;
use crate::time::Timespec;
use crate::user::UserPtr;
use crate::{Result, Thread};

/// Size of a signal set in bytes.
const SET_SIZE: usize = 8;

fn check_set_size(size: usize) -> Result<()> {
    if size == SET_SIZE {
        Ok(())
    } else {
        Err(EINVAL.because("signal sets have 8 bytes"))
    }
}

/// A signal mask argument with its size (ppoll, epoll_pwait, …); `None` for a null pointer.
pub fn read_mask(mm: &AddressSpace, address: u64, size: usize) -> Result<Option<u64>> {
    let Some(pointer) = UserPtr::<u64>::new(address).option() else {
        return Ok(None);
    };
    check_set_size(size)?;
    pointer.read(mm).map(|mask| Some(mask & !UNBLOCKABLE))
}

pub fn rt_sigaction(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    check_set_size(arguments.usize(3))?;
    let signal = signal::checked(arguments.i32(0))?;
    let mm = context.mm();
    let new = match arguments.pointer::<Action>(1).option() {
        Some(from) => Some(from.read(&mm)?),
        None => None,
    };
    if new.is_some() && bit(signal) & UNBLOCKABLE != 0 {
        return Err(EINVAL.because("SIGKILL and SIGSTOP cannot be handled"));
    }
    let process = &context.thread.process;
    let actions = process.signals.actions();
    let old = {
        let mut actions = actions.lock();
        let old = actions.get(signal);
        if let Some(mut action) = new {
            action.flags &= SA_KNOWN;
            action.mask &= !UNBLOCKABLE;
            actions.set(signal, action);
        }
        old
    };
    if let Some(action) = new {
        send::forget_ignored(process, signal, &action);
    }
    if let Some(to) = arguments.pointer::<Action>(2).option() {
        to.write(&mm, &old)?;
    }
    Ok(0)
}

pub fn rt_sigprocmask(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    check_set_size(arguments.usize(3))?;
    let thread = context.thread;
    let old = thread.signals.blocked();
    let mm = context.mm();
    if let Some(from) = arguments.pointer::<u64>(1).option() {
        let set = from.read(&mm)?;
        let new = match arguments.i32(0) {
            0 => old | set,
            1 => old & !set,
            2 => set,
            _ => return Err(EINVAL.because("unknown sigprocmask operation")),
        };
        signal::set_blocked(thread, new);
    }
    if let Some(to) = arguments.pointer::<u64>(2).option() {
        to.write(&mm, &old)?;
    }
    Ok(0)
}

pub fn rt_sigreturn(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    if frame::pop(context.thread, context.registers).is_err() {
        send::force(context.thread, SigInfo::kernel(signal::SIGSEGV));
        context.registers.orig_rax = u64::MAX;
    }
    Ok(context.registers.rax as usize)
}

pub fn rt_sigpending(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.usize(1) > SET_SIZE {
        return Err(EINVAL.because("signal sets have 8 bytes"));
    }
    let signals = &context.thread.signals;
    let pending = signals.pending_mask() | context.thread.process.signals.pending_mask();
    let shown = pending & signals.blocked();
    context
        .mm()
        .write(arguments.u64(0), &shown.to_le_bytes()[..arguments.usize(1)])?;
    Ok(0)
}

/// Sleeps until a signal that is not blocked arrives.
fn sleep_until_signal(thread: &Arc<Thread>) {
    loop {
        let seen = thread.event_count();
        if sleep_once(thread, seen, None).is_err() {
            return;
        }
    }
}

pub fn pause(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    sleep_until_signal(context.thread);
    Err(ERESTARTNOHAND)
}

pub fn rt_sigsuspend(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    check_set_size(arguments.usize(1))?;
    let mask = arguments.pointer::<u64>(0).read(&context.mm())?;
    signal::begin_temporary_mask(context.thread, mask);
    sleep_until_signal(context.thread);
    signal::end_temporary_mask(context.thread, true);
    Err(ERESTARTNOHAND)
}

pub fn rt_sigtimedwait(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    check_set_size(arguments.usize(3))?;
    let mm = context.mm();
    let wanted = arguments.pointer::<u64>(0).read(&mm)? & !UNBLOCKABLE;
    let timeout = match arguments.pointer::<Timespec>(2).option() {
        Some(from) => Some(from.read(&mm)?.to_ns()?),
        None => None,
    };
    let info = wait_for(context.thread, wanted, timeout)?;
    if let Some(to) = arguments.pointer::<[u8; 128]>(1).option() {
        mm.write(to.address, &info.to_user())?;
    }
    Ok(info.number() as usize)
}

fn wait_for(thread: &Arc<Thread>, wanted: u64, timeout: Option<u64>) -> Result<SigInfo> {
    if let Some(info) = signal::next_of(thread, wanted) {
        return Ok(info);
    }
    if timeout == Some(0) {
        return Err(EAGAIN);
    }
    let deadline = timeout.map(|timeout| platform().monotonic().saturating_add(timeout));
    // While it waits they are not blocked, so that senders wake it, but still count as blocked
    // for the question whether an ignored signal is dropped.
    let blocked = thread.signals.blocked();
    signal::begin_awaiting(thread, wanted);
    let result = loop {
        let seen = thread.event_count();
        if let Some(info) = signal::next_of(thread, wanted) {
            break Ok(info);
        }
        if let Err(error) = sleep_once(thread, seen, deadline) {
            break match signal::next_of(thread, wanted) {
                Some(info) => Ok(info),
                None if error == ETIMEDOUT => Err(EAGAIN),
                None if error == ERESTARTSYS => Err(EINTR),
                None => Err(error),
            };
        }
    };
    signal::end_awaiting(thread, blocked);
    result
}

/// `stack_t`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Stack {
    base: u64,
    flags: u32,
    padding: u32,
    size: u64,
}

pub fn sigaltstack(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mm = context.mm();
    let (thread, rsp) = (context.thread, context.registers.rsp);
    let new = match arguments.pointer::<Stack>(0).option() {
        Some(from) => Some(from.read(&mm)?),
        None => None,
    };
    let old = *thread.signals.alternate_stack.lock();
    if let Some(new) = new {
        let stack = AlternateStack {
            base: new.base,
            size: new.size,
            flags: new.flags,
        };
        frame::set_alternate_stack(thread, stack, rsp)?;
    }
    if let Some(to) = arguments.pointer::<Stack>(1).option() {
        let flags = frame::stack_flags(&old, rsp) | old.flags;
        to.write(
            &mm,
            &Stack {
                base: old.base,
                flags,
                padding: 0,
                size: old.size,
            },
        )?;
    }
    Ok(0)
}

/// Continues what a signal without a handler interrupted.
pub fn restart_syscall(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    let restart = core::mem::take(&mut *context.thread.signals.restart.lock());
    match restart {
        Restart::None => Err(EINTR),
        Restart::Sleep {
            deadline,
            remaining,
        } => super::time::sleep_until(context, deadline, remaining),
        Restart::Futex {
            address,
            expected,
            bitset,
            private,
            deadline,
        } => super::futex::wait_until(context, address, expected, bitset, private, Some(deadline)),
        Restart::Poll {
            fds,
            count,
            deadline,
        } => super::poll::poll_until(context, fds, count, super::poll::Timeout::At(deadline)),
    }
}
