//! timerfd_create, timerfd_settime, timerfd_gettime, signalfd, signalfd4.

use alloc::sync::Arc;
use core::any::Any;

use super::timer::TimerValue;
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EINVAL, EPERM};
use crate::fs::file::{FileOps, OpenFile, flags};
use crate::fs::signalfd::SignalFd;
use crate::fs::timerfd::TimerFd;
use crate::time::Clock;
use crate::time::interval::Setting;

/// Adds an anonymous file with O_CLOEXEC and O_NONBLOCK as wanted; EINVAL for other flags.
fn add(context: &Context<'_>, ops: Arc<dyn FileOps>, wanted: u32) -> Result<usize> {
    let file = OpenFile::new(ops, flags::RDWR | wanted & flags::NONBLOCK);
    let limit = context.thread.process.limits.files();
    let fd = context
        .thread
        .files()
        .add(file, wanted & flags::CLOEXEC != 0, limit)?;
    Ok(fd as usize)
}

fn check_flags(wanted: u32) -> Result<()> {
    if wanted & !(flags::CLOEXEC | flags::NONBLOCK) != 0 {
        return Err(EINVAL.because("unknown flags"));
    }
    Ok(())
}

pub fn timerfd_create(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (id, wanted) = (arguments.i32(0), arguments.u32(1));
    check_flags(wanted)?;
    let clock = match id {
        0 | 1 | 7 => Clock::from_id(id, context.thread)?,
        8 | 9 => return Err(EPERM.because("waking the machine needs CAP_WAKE_ALARM")),
        _ => return Err(EINVAL.because("no timerfd on this clock")),
    };
    add(context, TimerFd::new(clock, id), wanted)
}

/// The timer behind a descriptor; EINVAL when it is none.
fn timer(context: &Context<'_>, fd: i32) -> Result<Arc<TimerFd>> {
    let file = context.thread.files().get(fd)?;
    let ops: Arc<dyn Any + Send + Sync> = file.ops.clone();
    ops.downcast::<TimerFd>()
        .map_err(|_| EINVAL.because("not a timerfd"))
}

/// TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET (the clock is never set).
const ABSOLUTE: u32 = 1;
const CANCEL_ON_SET: u32 = 2;

pub fn timerfd_settime(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let wanted = arguments.u32(1);
    if wanted & !(ABSOLUTE | CANCEL_ON_SET) != 0 {
        return Err(EINVAL.because("unknown flags"));
    }
    let mm = context.mm();
    let given = arguments.pointer::<TimerValue>(2).read(&mm)?;
    let setting = Setting {
        value: given.value.to_ns()?,
        interval: given.interval.to_ns()?,
    };
    let old = timer(context, arguments.i32(0))?.set(setting, wanted & ABSOLUTE != 0);
    if let Some(to) = arguments.pointer::<TimerValue>(3).option() {
        to.write(&mm, &TimerValue::new(old))?;
    }
    Ok(0)
}

pub fn timerfd_gettime(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let setting = timer(context, arguments.i32(0))?.get();
    arguments
        .pointer::<TimerValue>(1)
        .write(&context.mm(), &TimerValue::new(setting))?;
    Ok(0)
}

pub fn signalfd(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    make_signalfd(context, arguments, 0)
}

pub fn signalfd4(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    make_signalfd(context, arguments, arguments.u32(3))
}

fn make_signalfd(context: &mut Context<'_>, arguments: Arguments, wanted: u32) -> Result<usize> {
    check_flags(wanted)?;
    if arguments.usize(2) != 8 {
        return Err(EINVAL.because("signal sets have 8 bytes"));
    }
    let mask = arguments.pointer::<u64>(1).read(&context.mm())?;
    match arguments.i32(0) {
        -1 => add(
            context,
            SignalFd::new(&context.thread.process, mask),
            wanted,
        ),
        fd => {
            let file = context.thread.files().get(fd)?;
            let signals = file.ops.as_any().downcast_ref::<SignalFd>();
            signals
                .ok_or(EINVAL.because("not a signalfd"))?
                .set_mask(mask);
            Ok(fd as usize)
        }
    }
}
