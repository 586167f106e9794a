//! clone, clone3, fork, vfork.

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{E2BIG, EINVAL, EPERM};
use crate::process::clone::{CloneArguments, CloneFlags, clone as do_clone};
use crate::signal::{SIGCHLD, SIGNAL_MAX};
use crate::user::ADDRESS_MAX;

pub fn clone(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let word = arguments.u64(0) & 0xffff_ffff;
    let flags = CloneFlags::from_bits_truncate(word & !0xff);
    if flags.contains(CloneFlags::PIDFD | CloneFlags::PARENT_SETTID) {
        return Err(EINVAL.because("CLONE_PIDFD and CLONE_PARENT_SETTID share an argument"));
    }
    run(
        context,
        &CloneArguments {
            flags,
            pidfd: arguments.u64(2),
            parent_tid: arguments.u64(2),
            child_tid: arguments.u64(3),
            exit_signal: (word & 0xff) as u32,
            stack: arguments.u64(1),
            tls: arguments.u64(4),
        },
    )
}

pub fn fork(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    run(context, &plain(CloneFlags::empty()))
}

pub fn vfork(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    run(context, &plain(CloneFlags::VFORK | CloneFlags::VM))
}

fn plain(flags: CloneFlags) -> CloneArguments {
    CloneArguments {
        flags,
        pidfd: 0,
        parent_tid: 0,
        child_tid: 0,
        exit_signal: SIGCHLD,
        stack: 0,
        tls: 0,
    }
}

/// `struct clone_args`, version 2.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
struct Clone3 {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Ids that `set_tid` may list: one for each level of PID namespaces.
const SET_TID_MAX: u64 = 32;

/// Size of the first version of `struct clone_args`.
const CLONE3_MIN: usize = 64;

pub fn clone3(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (address, size) = (arguments.u64(0), arguments.usize(1));
    if size > 4096 {
        return Err(E2BIG);
    }
    if size < CLONE3_MIN {
        return Err(EINVAL.because("clone3 arguments too short"));
    }
    let mm = context.mm();
    let mut bytes = alloc::vec![0u8; size];
    mm.read(address, &mut bytes)?;
    let mut given = Clone3::new_zeroed();
    let known = size.min(size_of::<Clone3>());
    given.as_mut_bytes()[..known].copy_from_slice(&bytes[..known]);
    if bytes[known..].iter().any(|&byte| byte != 0) {
        return Err(E2BIG.because("clone3 arguments from a newer kernel"));
    }
    let flags = CloneFlags::from_bits(given.flags).ok_or(EINVAL.because("unknown flags"))?;
    if flags.contains(CloneFlags::DETACHED) || given.exit_signal > u64::from(SIGNAL_MAX) {
        return Err(EINVAL.because("bad exit signal or CLONE_DETACHED"));
    }
    if flags.intersects(CloneFlags::THREAD | CloneFlags::PARENT) && given.exit_signal != 0 {
        return Err(EINVAL.because("threads have no exit signal"));
    }
    if (given.stack == 0) != (given.stack_size == 0) {
        return Err(EINVAL.because("stack without size"));
    }
    if given.stack != 0
        && given
            .stack
            .checked_add(given.stack_size)
            .is_none_or(|end| end > ADDRESS_MAX)
    {
        return Err(EINVAL.because("the stack is no user memory"));
    }
    if (given.set_tid == 0) != (given.set_tid_size == 0) || given.set_tid_size > SET_TID_MAX {
        return Err(EINVAL.because("ids without their number"));
    }
    if given.set_tid != 0 {
        return Err(EPERM.because("ids cannot be chosen"));
    }
    run(
        context,
        &CloneArguments {
            flags,
            pidfd: given.pidfd,
            parent_tid: given.parent_tid,
            child_tid: given.child_tid,
            exit_signal: given.exit_signal as u32,
            stack: given.stack.wrapping_add(given.stack_size),
            tls: given.tls,
        },
    )
}

fn run(context: &mut Context<'_>, arguments: &CloneArguments) -> Result<usize> {
    do_clone(context.thread, context.registers, arguments).map(|tid| tid as usize)
}

/// set_tid_address: the thread's id.
pub fn set_tid_address(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let thread = context.thread;
    let address = arguments.u64(0);
    thread
        .exit
        .clear_child_tid
        .store(address, core::sync::atomic::Ordering::Relaxed);
    Ok(thread.tid() as usize)
}

pub fn exit(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    crate::process::exit::thread_exit(context.thread, (arguments.u32(0) & 0xff) << 8);
    Ok(0)
}

pub fn exit_group(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let status = (arguments.u32(0) & 0xff) << 8;
    crate::process::exit::group_exit(&context.thread.process, status);
    Ok(0)
}
