//! Scheduling calls, as a container without privileges sees them: no real-time policies; the
//! others are kept without effect.

use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::Ordering;

use super::{Arguments, Context};
use crate::errno::{E2BIG, EACCES, EINVAL, EPERM, ESRCH};
use crate::platform::platform;
use crate::process::credentials::CAP_SYS_NICE;
use crate::process::limits::Resource;
use crate::process::{Process, table};
use crate::time::Timespec;
use crate::user::UserPtr;
use crate::{Result, Thread};

const SCHED_OTHER: i32 = 0;
const SCHED_FIFO: i32 = 1;
const SCHED_RR: i32 = 2;
const SCHED_BATCH: i32 = 3;
const SCHED_IDLE: i32 = 5;
const SCHED_DEADLINE: i32 = 6;
/// SCHED_RESET_ON_FORK.
const RESET_ON_FORK: i32 = 0x4000_0000;

pub fn sched_yield(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    context.mm().give_way();
    context.thread.clock.asleep(|| platform().yield_now());
    Ok(0)
}

/// The thread that a call is about (0: the caller); ESRCH.
fn target(context: &Context<'_>, pid: i32) -> Result<Arc<Thread>> {
    match pid {
        0 => Ok(context.thread.clone()),
        pid if pid < 0 => Err(EINVAL.because("negative thread id")),
        pid => table::thread(pid as u32).ok_or(ESRCH),
    }
}

/// All CPUs as a bit mask, in bytes padded to whole words.
fn cpu_mask() -> vec::Vec<u8> {
    let cpus = platform().cpus().max(1) as usize;
    let mut mask = vec![0u8; cpus.div_ceil(64) * 8];
    for cpu in 0..cpus {
        mask[cpu / 8] |= 1 << (cpu % 8);
    }
    mask
}

pub fn sched_getaffinity(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    // An unsigned int; where its number of bits overflows, no CPU fits.
    let room = match arguments.u32(1) {
        room if room.checked_mul(8).is_some() => room as usize,
        _ => 0,
    };
    let mask = cpu_mask();
    if room < mask.len() || !room.is_multiple_of(8) {
        return Err(EINVAL.because("no room for all CPUs"));
    }
    let mut mask = mask;
    let chosen = affinity_target(context, arguments.i32(0))?
        .affinity
        .load(Ordering::Relaxed);
    if chosen != 0 {
        for (byte, chosen) in mask.iter_mut().zip(chosen.to_le_bytes()) {
            *byte &= chosen;
        }
        mask.iter_mut().skip(8).for_each(|byte| *byte = 0);
    }
    context.mm().write(arguments.u64(2), &mask)?;
    Ok(mask.len())
}

/// ESRCH for a negative id, unlike the other calls.
fn affinity_target(context: &Context<'_>, id: i32) -> Result<Arc<crate::Thread>> {
    match id {
        ..0 => Err(ESRCH),
        _ => target(context, id),
    }
}

/// Accepted when at least one CPU exists, and remembered; threads run wherever the host puts them.
pub fn sched_setaffinity(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mask = cpu_mask();
    let len = arguments.usize(1).min(mask.len());
    let mut wanted = vec![0u8; len];
    context.mm().read(arguments.u64(2), &mut wanted)?;
    let target = affinity_target(context, arguments.i32(0))?;
    check_owner(context, &target)?;
    let chosen: vec::Vec<u8> = wanted
        .iter()
        .zip(&mask)
        .map(|(wanted, have)| wanted & have)
        .collect();
    if chosen.iter().all(|&byte| byte == 0) {
        return Err(EINVAL.because("no such CPU"));
    }
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(&chosen) {
        *to = *from;
    }
    target
        .affinity
        .store(u64::from_le_bytes(word), Ordering::Relaxed);
    Ok(0)
}

pub fn sched_getscheduler(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let target = target(context, arguments.i32(0))?;
    Ok(target.policy.load(Ordering::Relaxed) as usize)
}

/// Whether `target` may get a policy: EPERM for real-time ones, as without CAP_SYS_NICE and
/// RLIMIT_RTPRIO, and for what only that capability takes back.
fn check_policy(context: &Context<'_>, target: &Thread, policy: i32, priority: i32) -> Result<()> {
    let old = target.policy.load(Ordering::Relaxed) as i32;
    match policy & !RESET_ON_FORK {
        SCHED_OTHER | SCHED_BATCH | SCHED_IDLE if priority == 0 => {}
        SCHED_FIFO | SCHED_RR if (1..=99).contains(&priority) => {
            return Err(EPERM.because("real-time scheduling needs privileges"));
        }
        SCHED_DEADLINE => return Err(EPERM.because("real-time scheduling needs privileges")),
        _ => return Err(EINVAL.because("bad policy or priority")),
    }
    check_owner(context, target)?;
    let leaves_idle = old & !RESET_ON_FORK == SCHED_IDLE && policy & !RESET_ON_FORK != SCHED_IDLE;
    let forgets = old & RESET_ON_FORK != 0 && policy & RESET_ON_FORK == 0;
    let may = context.thread.process.credentials.lock().has(CAP_SYS_NICE);
    match (leaves_idle || forgets) && !may {
        true => Err(EPERM.because("taking SCHED_IDLE or reset-on-fork back needs CAP_SYS_NICE")),
        false => Ok(()),
    }
}

/// Whether the caller may change how `target` is scheduled.
fn check_owner(context: &Context<'_>, target: &Thread) -> Result<()> {
    let own = context.thread.process.credentials.lock().clone();
    let theirs = target.process.credentials.lock().clone();
    if own.euid != theirs.euid && own.euid != theirs.ruid && !own.has(CAP_SYS_NICE) {
        return Err(EPERM.because("another user's thread"));
    }
    Ok(())
}

/// The policy is kept and told; the host schedules.
pub fn sched_setscheduler(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let from = arguments.pointer::<i32>(2);
    let policy = arguments.i32(1);
    if from.is_null() || arguments.i32(0) < 0 || policy < 0 {
        return Err(EINVAL);
    }
    let priority = from.read(&context.mm())?;
    let target = target(context, arguments.i32(0))?;
    check_policy(context, &target, policy, priority)?;
    target.policy.store(policy as u32, Ordering::Relaxed);
    Ok(0)
}

pub fn sched_setparam(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let from = arguments.pointer::<i32>(1);
    if from.is_null() || arguments.i32(0) < 0 {
        return Err(EINVAL);
    }
    let priority = from.read(&context.mm())?;
    let target = target(context, arguments.i32(0))?;
    let policy = target.policy.load(Ordering::Relaxed) as i32;
    check_policy(context, &target, policy, priority).map(|()| 0)
}

pub fn sched_getparam(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.u64(1) == 0 {
        return Err(EINVAL);
    }
    target(context, arguments.i32(0))?;
    arguments.pointer::<i32>(1).write(&context.mm(), &0)?;
    Ok(0)
}

pub fn sched_get_priority_max(_: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match arguments.i32(0) {
        SCHED_FIFO | SCHED_RR => Ok(99),
        SCHED_OTHER | SCHED_BATCH | SCHED_IDLE | SCHED_DEADLINE => Ok(0),
        _ => Err(EINVAL.because("unknown policy")),
    }
}

pub fn sched_get_priority_min(_: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match arguments.i32(0) {
        SCHED_FIFO | SCHED_RR => Ok(1),
        SCHED_OTHER | SCHED_BATCH | SCHED_IDLE | SCHED_DEADLINE => Ok(0),
        _ => Err(EINVAL.because("unknown policy")),
    }
}

pub fn sched_rr_get_interval(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    target(context, arguments.i32(0))?;
    // The slice of SCHED_OTHER on a machine with nothing else to do.
    let slice = Timespec::from_ns(4_000_000);
    arguments
        .pointer::<Timespec>(1)
        .write(&context.mm(), &slice)?;
    Ok(0)
}

/// Size of the first version of `struct sched_attr`, which has all that there is here.
const ATTRIBUTES_SIZE: usize = 48;
/// SCHED_FLAG_RESET_ON_FORK, _KEEP_POLICY, _KEEP_PARAMS.
const FLAG_RESET_ON_FORK: i32 = 1;
const FLAG_KEEP_POLICY: i32 = 8;
const FLAG_KEEP_PARAMS: i32 = 0x10;

pub fn sched_getattr(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (size, flags) = (arguments.usize(2) & 0xffff_ffff, arguments.u32(3));
    if !(ATTRIBUTES_SIZE..=4096).contains(&size) || flags != 0 || arguments.u64(1) == 0 {
        return Err(EINVAL.because("bad sched_getattr size or flags"));
    }
    let target = target(context, arguments.i32(0))?;
    let policy = target.policy.load(Ordering::Relaxed) as i32;
    let nice = 20 - target.priority.load(Ordering::Relaxed) as i32;
    let mut bytes = [0u8; ATTRIBUTES_SIZE];
    let mut put = |at: usize, value: i32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0, ATTRIBUTES_SIZE as i32);
    put(4, policy & !RESET_ON_FORK);
    put(
        8,
        i32::from(policy & RESET_ON_FORK != 0) * FLAG_RESET_ON_FORK,
    );
    put(16, nice);
    context.mm().write(arguments.u64(1), &bytes)?;
    Ok(0)
}

pub fn sched_setattr(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.u64(1) == 0 || arguments.u32(2) != 0 || arguments.i32(0) < 0 {
        return Err(EINVAL.because("bad sched_setattr arguments"));
    }
    let mm = context.mm();
    let from = arguments.pointer::<u32>(1);
    let size = match from.read(&mm)? as usize {
        0 => ATTRIBUTES_SIZE,
        size => size,
    };
    // The caller learns what would have been right.
    let too_big = |reason| {
        from.write(&mm, &(ATTRIBUTES_SIZE as u32))?;
        Err(E2BIG.because(reason))
    };
    if !(ATTRIBUTES_SIZE..=4096).contains(&size) {
        return too_big("no size of struct sched_attr");
    }
    let mut bytes = vec![0u8; size];
    mm.read(arguments.u64(1), &mut bytes)?;
    if bytes[ATTRIBUTES_SIZE..].iter().any(|&byte| byte != 0) {
        return too_big("attributes from a newer kernel");
    }
    let word =
        |at: usize| i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (flags, more) = (word(8), word(12));
    if flags & !(FLAG_RESET_ON_FORK | FLAG_KEEP_POLICY | FLAG_KEEP_PARAMS) != 0 || more != 0 {
        return Err(EINVAL.because("unknown flags"));
    }
    let target = target(context, arguments.i32(0))?;
    let old = target.policy.load(Ordering::Relaxed) as i32;
    let policy = match (flags & FLAG_KEEP_POLICY != 0, word(4)) {
        (true, _) => old & !RESET_ON_FORK,
        (false, policy) if policy < 0 => return Err(EINVAL.because("no such policy")),
        (false, policy) => policy,
    };
    let reset = match flags & FLAG_RESET_ON_FORK {
        0 => 0,
        _ => RESET_ON_FORK,
    };
    check_policy(context, &target, policy | reset, word(20))?;
    if flags & FLAG_KEEP_PARAMS == 0 && policy != SCHED_IDLE {
        set_nice(context.thread, &target, word(16))
            .map_err(|error| if error == EACCES { EPERM } else { error })?;
    }
    target
        .policy
        .store((policy | reset) as u32, Ordering::Relaxed);
    Ok(0)
}

/// Raising a priority needs CAP_SYS_NICE, or room below RLIMIT_NICE.
fn set_nice(thread: &Arc<Thread>, target: &Thread, nice: i32) -> Result<()> {
    let nice = nice.clamp(-20, 19);
    let old = 20 - target.priority.load(Ordering::Relaxed) as i32;
    // One lock at a time: both may be the same.
    let mine = thread.process.credentials.lock().clone();
    let theirs = target.process.credentials.lock().clone();
    let may = mine.has(CAP_SYS_NICE);
    if !may && mine.euid != theirs.ruid && mine.euid != theirs.euid {
        return Err(EPERM.because("another user's process"));
    }
    let limit = target.process.limits.get(Resource::Nice).soft;
    if nice < old && !may && (20 - nice) as u64 > limit {
        return Err(EACCES.because("raising a priority needs CAP_SYS_NICE"));
    }
    target.priority.store((20 - nice) as u32, Ordering::Relaxed);
    Ok(())
}

/// Threads that (which, who) means, as getpriority counts: one, or all of the processes of a group or
/// user.
fn select_threads(context: &Context<'_>, which: i32, who: u32) -> Result<vec::Vec<Arc<Thread>>> {
    if which == 0 {
        return Ok(vec![match who {
            0 => context.thread.clone(),
            _ => table::thread(who).ok_or(ESRCH)?,
        }]);
    }
    let processes = select(context, which, who)?;
    let threads = processes.iter().flat_map(|process| process.live_threads());
    Ok(threads.collect())
}

/// Processes that (which, who) means, as ioprio_get counts.
fn select(context: &Context<'_>, which: i32, who: u32) -> Result<vec::Vec<Arc<Process>>> {
    let own = &context.thread.process;
    let found = match which {
        0 if who == 0 => vec![own.clone()],
        0 => table::thread(who)
            .map(|thread| thread.process.clone())
            .into_iter()
            .collect(),
        1 => {
            let group = if who == 0 { own.group() } else { who };
            table::lock().group_members(group)
        }
        2 => {
            let uid = if who == 0 {
                own.credentials.lock().ruid
            } else {
                who
            };
            let mut all = table::processes();
            all.retain(|process| process.credentials.lock().ruid == uid);
            all
        }
        _ => return Err(EINVAL.because("unknown kind of target")),
    };
    if found.is_empty() {
        Err(ESRCH)
    } else {
        Ok(found)
    }
}

pub fn getpriority(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let threads = select_threads(context, arguments.i32(0), arguments.u32(1))?;
    let highest = threads
        .iter()
        .map(|thread| thread.priority.load(Ordering::Relaxed))
        .max();
    Ok(highest.unwrap_or(20) as usize)
}

pub fn setpriority(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    for thread in select_threads(context, arguments.i32(0), arguments.u32(1))? {
        set_nice(context.thread, &thread, arguments.i32(2))?;
    }
    Ok(0)
}

/// What was set; class none, level 4 where nothing was. The host does the I/O.
pub fn ioprio_get(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let which = arguments.i32(0).checked_sub(1).ok_or(EINVAL)?;
    let found = select(context, which, arguments.u32(1))?;
    let priorities = found
        .iter()
        .map(|process| process.io_priority.load(Ordering::Relaxed));
    // The most urgent: class none counts as best effort.
    let urgency = |value: &u32| {
        if value >> 13 == 0 {
            2 << 13 | 4
        } else {
            *value
        }
    };
    Ok(priorities.min_by_key(urgency).unwrap_or(4) as usize)
}

pub fn ioprio_set(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let which = arguments.i32(0).checked_sub(1).ok_or(EINVAL)?;
    let value = arguments.u32(2);
    // The level within a class is in the low three bits; the rest are hints.
    match (value >> 13, value & 0x1fff) {
        (0, 0) | (3, _) => {}
        (0, _) => return Err(EINVAL.because("class none has no levels")),
        (1 | 2, 8..) => return Err(EINVAL.because("levels are 0 to 7")),
        (1, _) => return Err(EPERM.because("real-time I/O needs privileges")),
        (2, _) => {}
        _ => return Err(EINVAL.because("unknown I/O class")),
    }
    let own = context.thread.process.credentials.lock().clone();
    for process in select(context, which, arguments.u32(1))? {
        let owner = process.credentials.lock().ruid;
        if owner != own.euid && owner != own.ruid && !own.has(CAP_SYS_NICE) {
            return Err(EPERM.because("another user's process"));
        }
        process.io_priority.store(value, Ordering::Relaxed);
    }
    Ok(0)
}

/// The host schedules: the answer is a valid CPU, steady for a thread.
pub fn getcpu(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mm = context.mm();
    let slot = context.thread.slot.load(Ordering::Relaxed);
    let cpu = if slot == u32::MAX {
        0
    } else {
        slot % platform().cpus().max(1)
    };
    let chosen = context.thread.affinity.load(Ordering::Relaxed);
    let cpu = match chosen != 0 && cpu < 64 && chosen >> cpu & 1 == 0 {
        true => chosen.trailing_zeros(),
        false => cpu,
    };
    for (pointer, value) in [(arguments.u64(0), cpu), (arguments.u64(1), 0)] {
        if let Some(to) = UserPtr::<u32>::new(pointer).option() {
            to.write(&mm, &value)?;
        }
    }
    Ok(0)
}
