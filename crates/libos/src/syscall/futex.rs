//! futex, futex_waitv, set_robust_list, get_robust_list.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use zerocopy::{FromBytes, IntoBytes};

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EINVAL, ENOSYS, EPERM, ESRCH};
use crate::platform::{Atomic, platform};
use crate::process::credentials::By;
use crate::process::table;
use crate::signal::Restart;
use crate::sync::futex::{self, Word};
use crate::time::{Clock, Timespec};
use crate::user::UserPtr;

const WAIT: u32 = 0;
const WAKE: u32 = 1;
const REQUEUE: u32 = 3;
const CMP_REQUEUE: u32 = 4;
const WAKE_OP: u32 = 5;
const LOCK_PI: u32 = 6;
const UNLOCK_PI: u32 = 7;
const TRYLOCK_PI: u32 = 8;
const WAIT_BITSET: u32 = 9;
const WAKE_BITSET: u32 = 10;
const WAIT_REQUEUE_PI: u32 = 11;
const CMP_REQUEUE_PI: u32 = 12;
const LOCK_PI2: u32 = 13;

const PRIVATE: u32 = 128;
const CLOCK_REALTIME: u32 = 256;

/// futex: the second timeout argument is a count for the requeue and wake operations.
pub fn futex(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (address, operation) = (arguments.u64(0), arguments.u32(1));
    let private = operation & PRIVATE != 0;
    let realtime = operation & CLOCK_REALTIME != 0;
    let command = operation & !(PRIVATE | CLOCK_REALTIME);
    if realtime && !matches!(command, WAIT_BITSET | WAIT_REQUEUE_PI | LOCK_PI2) {
        return Err(ENOSYS.because("FUTEX_CLOCK_REALTIME with this operation"));
    }
    let value = arguments.u32(2);
    // Linux takes an int; a negative count wakes one.
    let count = |raw: u32| {
        if raw == 0 || raw > i32::MAX as u32 {
            1
        } else {
            raw as usize
        }
    };
    let wake_count = |raw: u32| {
        if raw > i32::MAX as u32 {
            1
        } else {
            raw as usize
        }
    };
    let thread = context.thread;
    match command {
        WAKE => futex::wake(&context.mm(), address, private, count(value), !0),
        WAKE_BITSET => {
            let bitset = arguments.u32(5);
            if bitset == 0 {
                return Err(EINVAL.because("empty futex bitset"));
            }
            futex::wake(&context.mm(), address, private, count(value), bitset)
        }
        WAIT => {
            let deadline = read_timeout(context, arguments.u64(3))?
                .map(|timeout| platform().monotonic().saturating_add(timeout));
            wait_until(context, address, value, !0, private, deadline)
        }
        WAIT_BITSET => {
            let deadline = absolute(context, arguments.u64(3), realtime)?;
            futex::wait(thread, address, value, arguments.u32(5), private, deadline)?;
            Ok(0)
        }
        REQUEUE | CMP_REQUEUE | CMP_REQUEUE_PI => {
            let (wake, requeue) = (value as i32, arguments.i32(3));
            if wake < 0 || requeue < 0 {
                return Err(EINVAL.because("negative futex count"));
            }
            let expected = (command != REQUEUE).then_some(arguments.u32(5));
            let second = arguments.u64(4);
            if command == CMP_REQUEUE_PI && address == second {
                return Err(EINVAL.because("a lock is no condition of its own"));
            }
            // Waiters that would be moved to a lock are woken and queue for it themselves.
            let (wake, requeue) = if command == CMP_REQUEUE_PI {
                if wake != 1 {
                    return Err(EINVAL.because("FUTEX_CMP_REQUEUE_PI wakes exactly one"));
                }
                (1 + requeue as usize, 0)
            } else {
                (wake as usize, requeue as usize)
            };
            let mm = context.mm();
            let (woken, moved) =
                futex::requeue(&mm, address, second, private, wake, requeue, expected)?;
            // Both in one number for all three, whatever futex(2) says of FUTEX_REQUEUE.
            Ok(woken + moved)
        }
        WAKE_OP => {
            let limits = [wake_count(value), wake_count(arguments.u32(3))];
            let second = arguments.u64(4);
            futex::wake_op(
                &context.mm(),
                address,
                second,
                private,
                limits,
                arguments.u32(5),
            )
        }
        LOCK_PI | LOCK_PI2 => {
            let realtime = realtime || command == LOCK_PI;
            let deadline = absolute(context, arguments.u64(3), realtime)?;
            futex::lock_pi(thread, address, private, deadline, true)?;
            Ok(0)
        }
        TRYLOCK_PI => futex::lock_pi(thread, address, private, None, false).map(|()| 0),
        UNLOCK_PI => futex::unlock_pi(thread, address, private).map(|()| 0),
        WAIT_REQUEUE_PI => {
            let deadline = absolute(context, arguments.u64(3), realtime)?;
            let lock = arguments.u64(4);
            if address == lock {
                return Err(EINVAL.because("a lock is no condition of its own"));
            }
            // The lock must be there before anything is waited for.
            context.mm().atomic(lock, Atomic::Load)?;
            futex::wait(thread, address, value, !0, private, deadline)?;
            futex::lock_pi(thread, arguments.u64(4), private, deadline, true)?;
            Ok(0)
        }
        _ => Err(ENOSYS.because("unknown futex operation")),
    }
}

fn read_timeout(context: &Context<'_>, address: u64) -> Result<Option<u64>> {
    match UserPtr::<Timespec>::new(address).option() {
        Some(from) => from.read(&context.mm())?.to_ns().map(Some),
        None => Ok(None),
    }
}

/// An absolute timeout as a monotonic deadline.
fn absolute(context: &Context<'_>, address: u64, realtime: bool) -> Result<Option<u64>> {
    let clock = if realtime {
        Clock::Realtime
    } else {
        Clock::Monotonic
    };
    Ok(read_timeout(context, address)?.map(|time| clock.to_monotonic(time)))
}

/// FUTEX_WAIT with a deadline; continues by itself after a signal without a handler.
pub fn wait_until(
    context: &mut Context<'_>,
    address: u64,
    expected: u32,
    bitset: u32,
    private: bool,
    deadline: Option<u64>,
) -> Result<usize> {
    let thread = context.thread;
    let result = futex::wait(thread, address, expected, bitset, private, deadline);
    match deadline {
        Some(deadline) => {
            if result == Err(crate::errno::ERESTARTSYS) {
                *thread.signals.restart.lock() = Restart::Futex {
                    address,
                    expected,
                    bitset,
                    private,
                    deadline,
                };
            }
            futex::restartable(thread, result).map(|()| 0)
        }
        None => result.map(|()| 0),
    }
}

/// `struct futex_waitv`.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
struct WaitWord {
    expected: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

/// Most words of futex_waitv (FUTEX_WAITV_MAX).
const WAIT_WORDS_MAX: usize = 128;

pub fn futex_waitv(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let count = arguments.usize(1);
    if count == 0 || count > WAIT_WORDS_MAX || arguments.u32(2) != 0 {
        return Err(EINVAL.because("bad futex_waitv count or flags"));
    }
    if arguments.u64(0) == 0 {
        return Err(EINVAL.because("no waiters"));
    }
    let deadline = match arguments.u64(3) {
        0 => None,
        address => {
            let realtime = match arguments.i32(4) {
                0 => true,
                1 => false,
                _ => return Err(EINVAL.because("futex_waitv with another clock")),
            };
            absolute(context, address, realtime)?
        }
    };
    let mm = context.mm();
    let mut words = Vec::with_capacity(count);
    for word in arguments.pointer::<WaitWord>(0).read_vec(&mm, count)? {
        // FUTEX2_SIZE_U32 = 2, FUTEX2_PRIVATE = 128; nothing else.
        let known = word.flags & !(2 | PRIVATE) == 0 && word.flags & 3 == 2;
        if !known || word.reserved != 0 || u32::try_from(word.expected).is_err() {
            return Err(EINVAL.because("bad futex_waitv word"));
        }
        words.push(Word {
            address: word.address,
            expected: word.expected as u32,
            private: word.flags & PRIVATE != 0,
        });
    }
    futex::wait_any(context.thread, &words, deadline).map(|index| index as usize)
}

/// Size of `struct robust_list_head`.
const ROBUST_HEAD_SIZE: usize = 24;

pub fn set_robust_list(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.usize(1) != ROBUST_HEAD_SIZE {
        return Err(EINVAL.because("robust list heads have 24 bytes"));
    }
    context
        .thread
        .exit
        .robust_list
        .store(arguments.u64(0), Ordering::Relaxed);
    Ok(0)
}

pub fn get_robust_list(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let own = context.thread;
    let target = match arguments.u32(0) {
        0 => own.clone(),
        tid => table::thread(tid).ok_or(ESRCH)?,
    };
    if !target.process.may_be_examined(&own.process, By::RealIds) {
        return Err(EPERM.because("a process with other rights"));
    }
    let mm = context.mm();
    arguments
        .pointer::<u64>(2)
        .write(&mm, &(ROBUST_HEAD_SIZE as u64))?;
    arguments
        .pointer::<u64>(1)
        .write(&mm, &target.exit.robust_list())?;
    Ok(0)
}
