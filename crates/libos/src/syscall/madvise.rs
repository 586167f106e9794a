//! madvise, mincore, mlock and its relatives, msync, membarrier.

use core::sync::atomic::{Ordering, fence};

use super::{Arguments, Context, memory_limits};
use crate::Result;
use crate::errno::{EBUSY, EINVAL, ENOMEM, EPERM};
use crate::mm::PAGE;
use crate::mm::advise::Lock;

/// madvise(2).
pub fn madvise(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    /// What discards content: MADV_DONTNEED, FREE, REMOVE, DONTFORK, WIPEONFORK, DONTNEED_LOCKED,
    /// GUARD_INSTALL.
    const DISCARDING: [u32; 7] = [4, 8, 9, 10, 18, 24, 102];
    let (address, len, advice) = (arguments.u64(0), arguments.u64(1), arguments.u32(2));
    let mm = context.mm();
    if DISCARDING.contains(&advice) {
        mm.check_discard(address, len)?;
    }
    mm.advise(address, len, advice)?;
    Ok(0)
}

/// mincore(2).
pub fn mincore(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (address, len, vector) = (arguments.u64(0), arguments.u64(1), arguments.u64(2));
    let mm = context.mm();
    if address % PAGE != 0 {
        return Err(EINVAL.because("the address is not page aligned"));
    }
    // In pieces, so that a hostile length does not take kernel memory.
    const PIECE: u64 = 1 << 30;
    let end = address
        .checked_add(len)
        .and_then(|end| end.checked_next_multiple_of(PAGE))
        .ok_or(ENOMEM)?;
    let mut at = address;
    while at < end {
        let step = (end - at).min(PIECE);
        let pages = mm.core(at, step)?;
        mm.write(vector.wrapping_add((at - address) / PAGE), &pages)?;
        at += step;
    }
    Ok(0)
}

/// mlock(2).
pub fn mlock(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    memory_limits::check_lock(context, arguments.u64(0), arguments.u64(1))?;
    context
        .mm()
        .lock_pages(arguments.u64(0), arguments.u64(1), Lock::Now)?;
    Ok(0)
}

/// mlock2(2).
pub fn mlock2(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    const MLOCK_ONFAULT: u32 = 1;
    let how = match arguments.u32(2) {
        0 => Lock::Now,
        MLOCK_ONFAULT => Lock::OnFault,
        _ => return Err(EINVAL.because("unknown flags")),
    };
    memory_limits::check_lock(context, arguments.u64(0), arguments.u64(1))?;
    context
        .mm()
        .lock_pages(arguments.u64(0), arguments.u64(1), how)?;
    Ok(0)
}

/// munlock(2).
pub fn munlock(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    context
        .mm()
        .lock_pages(arguments.u64(0), arguments.u64(1), Lock::Off)?;
    Ok(0)
}

/// mlockall(2).
pub fn mlockall(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    const CURRENT: u32 = 1;
    const FUTURE: u32 = 2;
    const ONFAULT: u32 = 4;
    let flags = arguments.u32(0);
    if flags == 0 || flags == ONFAULT || flags & !(CURRENT | FUTURE | ONFAULT) != 0 {
        return Err(EINVAL.because("bad flags"));
    }
    memory_limits::check_lock_all(context, flags & CURRENT != 0)?;
    let now = flags & CURRENT != 0 && flags & ONFAULT == 0;
    let current = if now { Lock::Now } else { Lock::OnFault };
    context
        .mm()
        .lock_all(current, flags & FUTURE != 0 && flags & ONFAULT == 0)?;
    Ok(0)
}

/// munlockall(2).
pub fn munlockall(context: &mut Context<'_>, _arguments: Arguments) -> Result<usize> {
    context.mm().lock_all(Lock::Off, false)?;
    Ok(0)
}

/// msync(2).
pub fn msync(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    const ASYNC: u32 = 1;
    const INVALIDATE: u32 = 2;
    const SYNC: u32 = 4;
    let flags = arguments.u32(2);
    if flags & !(ASYNC | INVALIDATE | SYNC) != 0 || flags & ASYNC != 0 && flags & SYNC != 0 {
        return Err(EINVAL.because("bad flags"));
    }
    let (address, len) = (arguments.u64(0), arguments.u64(1));
    // As Linux rounds: the longest lengths are none.
    let len = len.wrapping_add(PAGE - 1) & !(PAGE - 1);
    if address.is_multiple_of(PAGE) && address.checked_add(len).is_none() {
        return Err(ENOMEM.because("the range wraps around"));
    }
    let mm = context.mm();
    if flags & INVALIDATE != 0 && mm.has_locked(address, len) {
        return Err(EBUSY.because("MS_INVALIDATE of locked pages"));
    }
    mm.sync(address, len)?;
    if flags & SYNC != 0 {
        crate::fs::sync_volumes(context.thread)?;
    }
    Ok(0)
}

/// membarrier(2): every thread of the process passes through the kernel.
pub fn membarrier(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    const QUERY: i32 = 0;
    const GLOBAL: i32 = 1;
    const GLOBAL_EXPEDITED: i32 = 1 << 1;
    const REGISTER_GLOBAL_EXPEDITED: i32 = 1 << 2;
    const PRIVATE_EXPEDITED: i32 = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;
    const PRIVATE_EXPEDITED_SYNC_CORE: i32 = 1 << 5;
    const REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: i32 = 1 << 6;
    const GET_REGISTRATIONS: i32 = 1 << 9;
    const ALL: i32 = GLOBAL
        | GLOBAL_EXPEDITED
        | REGISTER_GLOBAL_EXPEDITED
        | PRIVATE_EXPEDITED
        | REGISTER_PRIVATE_EXPEDITED
        | PRIVATE_EXPEDITED_SYNC_CORE
        | REGISTER_PRIVATE_EXPEDITED_SYNC_CORE
        | GET_REGISTRATIONS;
    if arguments.u32(1) != 0 {
        return Err(EINVAL.because("unknown flags"));
    }
    let command = arguments.i32(0);
    let registered = &context.thread.process.barriers;
    match command {
        QUERY => Ok(ALL as usize),
        GET_REGISTRATIONS => Ok(registered.load(Ordering::Relaxed) as usize),
        REGISTER_GLOBAL_EXPEDITED
        | REGISTER_PRIVATE_EXPEDITED
        | REGISTER_PRIVATE_EXPEDITED_SYNC_CORE => {
            registered.fetch_or(command as u32, Ordering::Relaxed);
            Ok(0)
        }
        // The registration's bit is the one above the command's.
        PRIVATE_EXPEDITED | PRIVATE_EXPEDITED_SYNC_CORE
            if registered.load(Ordering::Relaxed) & (command << 1) as u32 == 0 =>
        {
            Err(EPERM.because("the process has not registered for this barrier"))
        }
        GLOBAL | GLOBAL_EXPEDITED | PRIVATE_EXPEDITED | PRIVATE_EXPEDITED_SYNC_CORE => {
            fence(Ordering::SeqCst);
            // The global ones are for memory that processes share.
            let threads = match command {
                GLOBAL | GLOBAL_EXPEDITED => crate::process::table::processes()
                    .iter()
                    .flat_map(|process| process.live_threads())
                    .collect(),
                _ => context.mm().threads(),
            };
            for thread in threads {
                if !alloc::sync::Arc::ptr_eq(&thread, context.thread) {
                    // Out of user code and back: on x86 that is a full barrier, and serialising.
                    crate::platform::platform().stop(&thread);
                }
            }
            Ok(0)
        }
        _ => Err(EINVAL.because("unknown command")),
    }
}
