//! getrlimit, setrlimit, prlimit64, getrusage, times, sysinfo.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EINVAL, EPERM, ESRCH};
use crate::platform::platform;
use crate::process::credentials::CAP_SYS_RESOURCE;
use crate::process::limits::{FILES_MAX, Limit, Resource};
use crate::process::times::{CpuTime, TICK_NS};
use crate::process::{load, table};
use crate::time::{SECOND_NS, Timeval};

pub fn getrlimit(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let limit = context
        .thread
        .process
        .limits
        .get_by_number(arguments.u32(0))?;
    arguments.pointer::<Limit>(1).write(&context.mm(), &limit)?;
    Ok(0)
}

fn set(
    context: &Context<'_>,
    process: &Arc<crate::process::Process>,
    number: u32,
    new: Limit,
) -> Result<()> {
    let may_raise = context
        .thread
        .process
        .credentials
        .lock()
        .has(CAP_SYS_RESOURCE);
    if number == Resource::Files as u32 && new.hard > FILES_MAX.value() {
        return Err(EPERM.because("more open files than the kernel allows (fs.nr_open)"));
    }
    process.limits.set_by_number(number, new, may_raise)?;
    if number == Resource::Cpu as u32 {
        process.timers.watch_cpu_limit(process);
    }
    Ok(())
}

pub fn setrlimit(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let new = arguments.pointer::<Limit>(1).read(&context.mm())?;
    set(context, &context.thread.process, arguments.u32(0), new)?;
    Ok(0)
}

pub fn prlimit64(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let own = &context.thread.process;
    let process = match arguments.u32(0) {
        0 => own.clone(),
        pid if pid == own.pid => own.clone(),
        pid => table::thread(pid).map(|t| t.process.clone()).ok_or(ESRCH)?,
    };
    if process.pid != own.pid {
        // One after the other: two processes may do this to each other.
        let mine = own.credentials.lock().clone();
        let theirs = process.credentials.lock().clone();
        let same = [theirs.ruid, theirs.euid, theirs.suid]
            .iter()
            .all(|&id| id == mine.ruid);
        if !same && !mine.has(CAP_SYS_RESOURCE) {
            return Err(EPERM.because("another user's process"));
        }
    }
    let mm = context.mm();
    let number = arguments.u32(1);
    let old = process.limits.get_by_number(number)?;
    if let Some(from) = arguments.pointer::<Limit>(2).option() {
        let new = from.read(&mm)?;
        set(context, &process, number, new)?;
    }
    if let Some(to) = arguments.pointer::<Limit>(3).option() {
        to.write(&mm, &old)?;
    }
    Ok(0)
}

/// `struct rusage`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Usage {
    pub user: Timeval,
    pub system: Timeval,
    pub max_rss_kib: u64,
    unused: [u64; 3],
    pub minor_faults: u64,
    pub major_faults: u64,
    unused2: [u64; 6],
    pub voluntary_switches: u64,
    pub involuntary_switches: u64,
}

const _: () = assert!(size_of::<Usage>() == 144);

impl Usage {
    pub fn new(cpu_time: CpuTime, sleeps: u64) -> Usage {
        Usage {
            user: Timeval::from_ns(cpu_time.user),
            system: Timeval::from_ns(cpu_time.system),
            voluntary_switches: sleeps,
            ..Usage::default()
        }
    }
}

pub fn getrusage(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let thread = context.thread;
    let process = &thread.process;
    let load = |counter: &core::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let mut usage = match arguments.i32(0) {
        0 => Usage::new(process.cpu_times(), process.sleeps()),
        -1 => Usage::new(
            process.times.children.get(),
            load(&process.times.children_sleeps),
        ),
        1 => Usage::new(thread.clock.times(), load(&thread.clock.sleeps)),
        _ => return Err(EINVAL.because("unknown rusage target")),
    };
    if arguments.i32(0) != -1 {
        usage.max_rss_kib = crate::mm::accounting::used() / 1024;
    }
    arguments.pointer::<Usage>(1).write(&context.mm(), &usage)?;
    Ok(0)
}

pub fn times(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let process = &context.thread.process;
    if let Some(to) = arguments.pointer::<[u64; 4]>(0).option() {
        let [user, system] = process.cpu_times().ticks();
        let [children, children_system] = process.times.children.get().ticks();
        to.write(&context.mm(), &[user, system, children, children_system])?;
    }
    Ok((platform().monotonic() / TICK_NS) as usize)
}

/// `struct sysinfo`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct SystemInfo {
    uptime: u64,
    loads: [u64; 3],
    total_ram: u64,
    free_ram: u64,
    shared_ram: u64,
    buffer_ram: u64,
    total_swap: u64,
    free_swap: u64,
    processes: u16,
    padding: [u16; 3],
    total_high: u64,
    free_high: u64,
    unit: u32,
    padding2: u32,
}

const _: () = assert!(size_of::<SystemInfo>() == 112);

pub fn sysinfo(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let total = crate::kernel().config.memory;
    let info = SystemInfo {
        uptime: platform().monotonic() / SECOND_NS,
        total_ram: total,
        free_ram: total.saturating_sub(crate::mm::accounting::used()),
        processes: table::thread_count().min(usize::from(u16::MAX)) as u16,
        // Two numbers of Linux's own: SI_LOAD_SHIFT is 16, averages have 11 bits of fraction.
        loads: load::averages().map(|average| average << (16 - load::FRACTION)),
        unit: 1,
        ..SystemInfo::default()
    };
    arguments
        .pointer::<SystemInfo>(0)
        .write(&context.mm(), &info)?;
    Ok(0)
}
