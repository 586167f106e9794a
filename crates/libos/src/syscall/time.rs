//! clock_gettime and its relatives, nanosleep, clock_nanosleep.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EINVAL, EOPNOTSUPP, EPERM, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS};
use crate::platform::platform;
use crate::signal::Restart;
use crate::sync::wait::sleep_once;
use crate::time::{Clock, SECOND_NS, Timespec, Timeval};

pub fn clock_gettime(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let now = Clock::from_id(arguments.i32(0), context.thread)?.now();
    arguments
        .pointer::<Timespec>(1)
        .write(&context.mm(), &Timespec::from_ns(now))?;
    Ok(0)
}

pub fn clock_getres(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    Clock::from_id(arguments.i32(0), context.thread)?;
    // The coarse clocks tick at 250 Hz on most hosts.
    let resolution = if matches!(arguments.i32(0), 5 | 6) {
        4_000_000
    } else {
        1
    };
    if let Some(to) = arguments.pointer::<Timespec>(1).option() {
        to.write(&context.mm(), &Timespec::from_ns(resolution))?;
    }
    Ok(0)
}

/// Only the host sets the clock.
pub fn clock_settime(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match arguments.i32(0) {
        0 => {
            arguments
                .pointer::<Timespec>(1)
                .read(&context.mm())?
                .to_ns()?;
            Err(EPERM.because("a container cannot set the clock"))
        }
        _ => Err(EINVAL.because("this clock cannot be set")),
    }
}

pub fn settimeofday(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if let Some(from) = arguments.pointer::<Timeval>(0).option() {
        from.read(&context.mm())?.to_ns()?;
    }
    Err(EPERM.because("a container cannot set the clock"))
}

pub fn gettimeofday(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mm = context.mm();
    if let Some(to) = arguments.pointer::<Timeval>(0).option() {
        to.write(&mm, &Timeval::from_ns(platform().realtime()))?;
    }
    // struct timezone: UTC.
    if let Some(to) = arguments.pointer::<u64>(1).option() {
        to.write(&mm, &0)?;
    }
    Ok(0)
}

pub fn time(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let seconds = platform().realtime() / SECOND_NS;
    if let Some(to) = arguments.pointer::<u64>(0).option() {
        to.write(&context.mm(), &seconds)?;
    }
    Ok(seconds as usize)
}

/// `struct timex`, as far as reading goes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Timex {
    modes: u32,
    padding1: u32,
    offset: i64,
    frequency: i64,
    max_error: i64,
    estimated_error: i64,
    status: i32,
    padding2: u32,
    constant: i64,
    precision: i64,
    tolerance: i64,
    time: Timeval,
    tick: i64,
    rest: [u64; 14],
}

const _: () = assert!(size_of::<Timex>() == TIMEX_SIZE);

/// Length of `struct timex` in bytes.
const TIMEX_SIZE: usize = 208;

/// adjtime's own modes, as the kernel takes ADJ_OFFSET_SINGLESHOT and ADJ_OFFSET_SS_READ apart.
const ADJ_OFFSET_SINGLESHOT: u32 = 0x1;
const ADJ_OFFSET_READONLY: u32 = 0x2000;
const ADJ_ADJTIME: u32 = 0x8000;

fn read_adjustment(context: &mut Context<'_>, address: u64) -> Result<usize> {
    let mm = context.mm();
    let mut modes = [0; 4];
    mm.read(address, &mut modes)?;
    match u32::from_le_bytes(modes) {
        0 => {}
        modes if modes & ADJ_ADJTIME != 0 && modes & ADJ_OFFSET_SINGLESHOT == 0 => {
            return Err(EINVAL.because("adjtime's mode without its flag"));
        }
        // What is left of an adjustment (adjtime with a null pointer): there is none.
        modes if modes & ADJ_ADJTIME != 0 && modes & ADJ_OFFSET_READONLY != 0 => {}
        _ => return Err(EPERM.because("a container cannot adjust the clock")),
    }
    const STA_UNSYNC: i32 = 0x40;
    let timex = Timex {
        modes: 0,
        padding1: 0,
        offset: 0,
        frequency: 0,
        max_error: 16_000_000,
        estimated_error: 16_000_000,
        status: STA_UNSYNC,
        padding2: 0,
        constant: 2,
        precision: 1,
        tolerance: 32_768_000,
        time: Timeval::from_ns(platform().realtime()),
        tick: 10_000,
        rest: [0; 14],
    };
    mm.write(address, timex.as_bytes())?;
    const TIME_ERROR: usize = 5;
    Ok(TIME_ERROR)
}

pub fn adjtimex(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    read_adjustment(context, arguments.u64(0))
}

pub fn clock_adjtime(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match Clock::from_id(arguments.i32(0), context.thread)? {
        Clock::Realtime => read_adjustment(context, arguments.u64(1)),
        _ => Err(EOPNOTSUPP),
    }
}

pub fn nanosleep(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let timeout = arguments
        .pointer::<Timespec>(0)
        .read(&context.mm())?
        .to_ns()?;
    let deadline = platform().monotonic().saturating_add(timeout);
    sleep_until(context, deadline, arguments.u64(1))
}

/// TIMER_ABSTIME.
const ABSOLUTE: u32 = 1;

pub fn clock_nanosleep(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let id = arguments.i32(0);
    let clock = Clock::from_id(id, context.thread)?;
    match (&clock, id) {
        (Clock::Thread(_), 3) => {
            return Err(EOPNOTSUPP.because("sleep on the own thread's CPU clock"));
        }
        (Clock::Thread(_), _) => return Err(EINVAL.because("sleep on a thread's CPU clock")),
        (_, 4..=6) => return Err(EOPNOTSUPP.because("sleep on a raw or coarse clock")),
        _ => {}
    }
    let time = arguments
        .pointer::<Timespec>(2)
        .read(&context.mm())?
        .to_ns()?;
    if arguments.u32(1) & ABSOLUTE == 0 {
        let deadline = match &clock {
            Clock::Process(_) => clock.to_monotonic(clock.now().saturating_add(time)),
            _ => platform().monotonic().saturating_add(time),
        };
        return sleep_until(context, deadline, arguments.u64(3));
    }
    // Absolute: whatever the clock does meanwhile, it is asked again before returning.
    let thread = context.thread;
    loop {
        let seen = thread.event_count();
        if clock.now() >= time {
            return Ok(0);
        }
        match sleep_once(thread, seen, Some(clock.to_monotonic(time))) {
            Err(error) if error == ERESTARTSYS => return Err(ERESTARTNOHAND),
            _ => {}
        }
    }
}

/// Sleeps until a monotonic time. After a signal, the time left goes to `remaining` (unless 0).
pub fn sleep_until(context: &mut Context<'_>, deadline: u64, remaining: u64) -> Result<usize> {
    let thread = context.thread;
    loop {
        let seen = thread.event_count();
        match sleep_once(thread, seen, Some(deadline)) {
            Ok(()) => {}
            Err(error) if error == ERESTARTSYS => break,
            Err(_) => return Ok(0),
        }
    }
    let left = deadline.saturating_sub(platform().monotonic());
    if left == 0 {
        return Ok(0);
    }
    if remaining != 0 {
        let to = crate::user::UserPtr::<Timespec>::new(remaining);
        to.write(&context.mm(), &Timespec::from_ns(left))?;
    }
    *thread.signals.restart.lock() = Restart::Sleep {
        deadline,
        remaining,
    };
    Err(ERESTART_RESTARTBLOCK)
}
