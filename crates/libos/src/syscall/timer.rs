//! alarm, getitimer, setitimer, timer_create and its relatives.

use alloc::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Arguments, Context};
use crate::Result;
use crate::errno::EINVAL;
use crate::process::table;
use crate::signal::{self, SIGALRM};
use crate::time::interval::{Notify, Setting, seconds_left};
use crate::time::{Clock, SECOND_NS, Timespec, Timeval};

/// `struct itimerval`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct IntervalValue {
    interval: Timeval,
    value: Timeval,
}

impl IntervalValue {
    fn new(setting: Setting) -> IntervalValue {
        // Rounded up: a running timer never shows 0.
        let up = |ns: u64| Timeval::from_ns(ns.saturating_add(999));
        IntervalValue {
            interval: up(setting.interval),
            value: up(setting.value),
        }
    }
}

pub fn alarm(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let process = &context.thread.process;
    let value = u64::from(arguments.u32(0)) * SECOND_NS;
    let old = process
        .timers
        .interval(process, 0)?
        .set(Setting { value, interval: 0 }, false);
    Ok(seconds_left(old) as usize)
}

pub fn getitimer(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let process = &context.thread.process;
    let setting = process.timers.interval(process, arguments.i32(0))?.get();
    arguments
        .pointer::<IntervalValue>(1)
        .write(&context.mm(), &IntervalValue::new(setting))?;
    Ok(0)
}

pub fn setitimer(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let process = &context.thread.process;
    let mm = context.mm();
    let setting = match arguments.pointer::<IntervalValue>(1).option() {
        Some(from) => {
            let given = from.read(&mm)?;
            Setting {
                value: given.value.to_ns()?,
                interval: given.interval.to_ns()?,
            }
        }
        // As on Linux: a null pointer disarms.
        None => Setting::default(),
    };
    let timer = process.timers.interval(process, arguments.i32(0))?;
    let old = timer.set(setting, false);
    if let Some(to) = arguments.pointer::<IntervalValue>(2).option() {
        to.write(&mm, &IntervalValue::new(old))?;
    }
    Ok(0)
}

/// `struct sigevent`.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub struct SignalEvent {
    pub value: u64,
    pub signal: i32,
    pub notify: i32,
    pub tid: i32,
    padding: [u32; 11],
}

pub const SIGEV_SIGNAL: i32 = 0;
pub const SIGEV_NONE: i32 = 1;
pub const SIGEV_THREAD: i32 = 2;
const SIGEV_THREAD_ID: i32 = 4;

pub fn timer_create(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let thread = context.thread;
    let process = &thread.process;
    let mm = context.mm();
    let clock = Clock::from_id(arguments.i32(0), thread)?;
    if matches!(arguments.i32(0), 4..=6) {
        return Err(crate::errno::EOPNOTSUPP.because("timer on a raw or coarse clock"));
    }
    let event = match arguments.pointer::<SignalEvent>(1).option() {
        Some(from) => Some(from.read(&mm)?),
        None => None,
    };
    let mut target = None;
    if let Some(event) = &event {
        match event.notify {
            SIGEV_NONE => {}
            SIGEV_SIGNAL | SIGEV_THREAD => {
                signal::checked(event.signal)?;
            }
            SIGEV_THREAD_ID => {
                signal::checked(event.signal)?;
                let found = table::thread(event.tid as u32)
                    .filter(|other| other.process.pid == process.pid)
                    .ok_or(EINVAL.because("no such thread in the process"))?;
                target = Some(Arc::downgrade(&found));
            }
            _ => return Err(EINVAL.because("unknown SIGEV kind")),
        }
    }
    let id = process.timers.create(process, clock, |id| match event {
        None => Notify::Process {
            signal: SIGALRM,
            value: u64::from(id),
        },
        Some(event) if event.notify == SIGEV_NONE => Notify::Nobody,
        Some(event) => {
            let (signal, value) = (event.signal as u32, event.value);
            match target {
                Some(thread) => Notify::Thread {
                    thread,
                    signal,
                    value,
                },
                None => Notify::Process { signal, value },
            }
        }
    })?;
    if let Err(error) = arguments.pointer::<u32>(2).write(&mm, &id) {
        process.timers.delete(id)?;
        return Err(error);
    }
    Ok(0)
}

/// `struct itimerspec`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct TimerValue {
    pub interval: Timespec,
    pub value: Timespec,
}

impl TimerValue {
    pub fn new(setting: Setting) -> TimerValue {
        TimerValue {
            interval: Timespec::from_ns(setting.interval),
            value: Timespec::from_ns(setting.value),
        }
    }
}

/// TIMER_ABSTIME.
const ABSOLUTE: u32 = 1;

pub fn timer_settime(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mm = context.mm();
    let given = match arguments.pointer::<TimerValue>(2).option() {
        Some(from) => from.read(&mm)?,
        None => return Err(EINVAL.because("timer_settime without a value")),
    };
    let setting = Setting {
        value: given.value.to_ns()?,
        interval: given.interval.to_ns()?,
    };
    let timer = context.thread.process.timers.get(arguments.u32(0))?;
    let old = timer.set(setting, arguments.u32(1) & ABSOLUTE != 0);
    if let Some(to) = arguments.pointer::<TimerValue>(3).option() {
        to.write(&mm, &TimerValue::new(old))?;
    }
    Ok(0)
}

pub fn timer_gettime(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let setting = context.thread.process.timers.get(arguments.u32(0))?.get();
    arguments
        .pointer::<TimerValue>(1)
        .write(&context.mm(), &TimerValue::new(setting))?;
    Ok(0)
}

pub fn timer_getoverrun(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let timer = context.thread.process.timers.get(arguments.u32(0))?;
    Ok(timer.last_overrun() as usize)
}

pub fn timer_delete(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    context
        .thread
        .process
        .timers
        .delete(arguments.u32(0))
        .map(|()| 0)
}
