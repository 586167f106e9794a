//! Generating signals: to a thread, a process, a group; faults of a thread itself.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::action::SIG_DFL;
use super::info::{CLD_CONTINUED, CLD_STOPPED, SI_USER};
use super::{
    Action, IGNORED_BY_DEFAULT, SIGCHLD, SIGCONT, SIGKILL, STOPPING, SigInfo, UNBLOCKABLE, bit,
};
use crate::errno::{EPERM, ESRCH};
use crate::process::Process;
use crate::process::limits::Resource;
use crate::process::table;
use crate::process::thread::Work;
use crate::sync::wait::Events;
use crate::{Result, Thread};

/// Where a signal comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From a process of the container or the kernel: process 1 keeps what it does not handle off.
    Inside,
    /// From the host: SIGKILL and SIGSTOP reach process 1 too, as from a parent PID namespace.
    Host,
}

/// Signals that may be queued (RLIMIT_SIGPENDING); it matters for real-time signals only.
fn queue_limit(process: &Process, signal: u32) -> usize {
    match signal < super::SIGRTMIN {
        true => usize::MAX,
        false => process.limits.get(Resource::PendingSignals).soft as usize,
    }
}

/// Sends to a process as a whole.
pub fn to_process(process: &Arc<Process>, info: SigInfo, origin: Origin) -> Result<()> {
    if process.has_ended() {
        return Ok(()); // A zombie takes anything.
    }
    let threads = process.live_threads();
    let signal = info.number();
    let blocked = threads.first().map_or(0, |thread| held_back(thread));
    let traced = threads.first().is_some_and(|t| t.tracee.is_set());
    if !prepare(process, signal, blocked, traced, origin) {
        return Ok(());
    }
    if signal == SIGKILL {
        kill(process);
        return Ok(());
    }
    let limit = queue_limit(process, signal);
    process
        .signals
        .with_pending(|pending| pending.add(info, limit))?;
    if let Some(target) = threads
        .iter()
        .find(|t| t.signals.blocked() & bit(signal) == 0)
    {
        target.add_work(Work::SIGNAL);
    }
    process.signals.queued.wake(Events::IN);
    Ok(())
}

/// Sends to one thread.
pub fn to_thread(thread: &Arc<Thread>, info: SigInfo, origin: Origin) -> Result<()> {
    let (process, signal) = (&thread.process, info.number());
    if process.has_ended() {
        return Ok(());
    }
    let traced = thread.tracee.is_set();
    if !prepare(process, signal, held_back(thread), traced, origin) {
        return Ok(());
    }
    if signal == SIGKILL {
        kill(process);
        return Ok(());
    }
    // One limit for both queues.
    let limit = queue_limit(process, signal);
    let limit = limit.saturating_sub(process.signals.with_pending(|pending| pending.queued()));
    thread
        .signals
        .with_pending(|pending| pending.add(info, limit))?;
    if thread.signals.blocked() & bit(signal) == 0 {
        thread.add_work(Work::SIGNAL);
    }
    process.signals.queued.wake(Events::IN);
    Ok(())
}

fn kill(process: &Arc<Process>) {
    crate::process::exit::group_exit(process, SIGKILL);
    crate::ptrace::stop::killed(process);
}

/// Sends to every process of a group, without a check of rights (terminals, the kernel). ESRCH
/// for an empty group.
pub fn to_group(group: u32, info: SigInfo, origin: Origin) -> Result<()> {
    let members = table::lock().group_members(group);
    if members.is_empty() {
        return Err(ESRCH);
    }
    for process in members {
        to_process(&process, info, origin)?;
    }
    Ok(())
}

/// Whether `sender` may send `signal` to `target`; EPERM.
pub fn check_right(sender: &Process, target: &Process, signal: u32) -> Result<()> {
    if sender.pid == target.pid {
        return Ok(());
    }
    let target_credentials = target.credentials.lock().clone();
    let allowed = sender.credentials.lock().may_signal(&target_credentials)
        || signal == SIGCONT && sender.session() == target.session();
    if allowed {
        Ok(())
    } else {
        Err(EPERM.because("signal to another user's process"))
    }
}

/// A fault of the thread itself: cannot be blocked or ignored.
pub fn force(thread: &Arc<Thread>, info: SigInfo) {
    let process = &thread.process;
    let signal = info.number();
    let blocked = thread.signals.blocked();
    let actions = process.signals.actions();
    let is_default = {
        let mut actions = actions.lock();
        let action = actions.get(signal);
        if blocked & bit(signal) != 0 || action.ignores(signal) {
            actions.set(
                signal,
                Action {
                    handler: SIG_DFL,
                    ..action
                },
            );
        }
        actions.get(signal).handler == SIG_DFL
    };
    if is_default {
        process.signals.group.lock().unkillable = false;
    }
    thread.signals.set_blocked_raw(blocked & !bit(signal));
    // A standard signal is always accepted.
    let _ = thread
        .signals
        .with_pending(|pending| pending.add(info, usize::MAX));
    thread.add_own_work(Work::SIGNAL);
}

/// The frame of `signal` could not be written: SIGSEGV, fatal if it was SIGSEGV's own.
pub fn force_bad_frame(thread: &Arc<Thread>, signal: u32) {
    let info = SigInfo::kernel(super::SIGSEGV);
    if signal == super::SIGSEGV {
        force_fatal(thread, info);
    } else {
        force(thread, info);
    }
}

/// As [`force`], and no handler runs.
pub fn force_fatal(thread: &Arc<Thread>, info: SigInfo) {
    {
        let actions = thread.process.signals.actions();
        let mut actions = actions.lock();
        let action = actions.get(info.number());
        actions.set(
            info.number(),
            Action {
                handler: SIG_DFL,
                ..action
            },
        );
    }
    force(thread, info);
}

/// What the thread blocks, counting what sigtimedwait waits for as blocked.
fn held_back(thread: &Thread) -> u64 {
    thread.signals.blocked() | thread.signals.awaited.load(Ordering::SeqCst)
}

/// What generation itself does: stop signals and SIGCONT cancel each other. Whether the signal is
/// to be queued: for a traced thread also one that it ignores, since its tracer may want to see it.
fn prepare(
    process: &Arc<Process>,
    signal: u32,
    blocked: u64,
    traced: bool,
    origin: Origin,
) -> bool {
    if process.group_exit().is_some() {
        return signal == SIGKILL;
    }
    if bit(signal) & STOPPING != 0 {
        discard(process, bit(SIGCONT));
    } else if signal == SIGCONT {
        discard(process, STOPPING);
        resume(process);
        crate::ptrace::stop::continued(process);
    }
    let action = process.signals.action(signal);
    let spared = action.handler == SIG_DFL
        && process.signals.group.lock().unkillable
        && !(origin == Origin::Host && bit(signal) & UNBLOCKABLE != 0);
    if blocked & bit(signal) & !UNBLOCKABLE != 0 {
        return true;
    }
    traced && signal != SIGKILL || !spared && !action.ignores(signal)
}

fn discard(process: &Process, mask: u64) {
    process
        .signals
        .with_pending(|pending| pending.discard(mask));
    for thread in process.live_threads() {
        thread.signals.with_pending(|pending| pending.discard(mask));
    }
}

/// sigaction made a signal ignored: what is pending of it vanishes.
pub fn forget_ignored(process: &Process, signal: u32, action: &Action) {
    if action.handler == super::action::SIG_IGN
        || action.handler == SIG_DFL && IGNORED_BY_DEFAULT & bit(signal) != 0
    {
        discard(process, bit(signal));
    }
}

/// SIGCONT: a stopped process goes on.
fn resume(process: &Arc<Process>) {
    let was_stopped = {
        let mut group = process.signals.group.lock();
        let was_stopped = group.stopped_by != 0;
        group.stopped_by = 0;
        group.stopped_threads = 0;
        group.stop_complete = false;
        group.continuations = group.continuations.wrapping_add(1);
        was_stopped
    };
    if !was_stopped {
        return;
    }
    for thread in process.live_threads() {
        thread.notify();
    }
    let parent = {
        let mut table = table::lock();
        let Some(node) = table.node_mut(process.pid) else {
            return;
        };
        node.stopped = None;
        node.continued = true;
        let parent = node.parent;
        table.node(parent).map(|node| node.process.clone())
    };
    if let Some(parent) = parent {
        tell_parent(process, &parent, CLD_CONTINUED, SIGCONT);
    }
}

/// All threads have come to rest after a stop signal.
pub fn report_stop(process: &Arc<Process>, signal: u32) {
    let parent = {
        let mut table = table::lock();
        let Some(node) = table.node_mut(process.pid) else {
            return;
        };
        node.stopped = Some(signal);
        node.continued = false;
        let parent = node.parent;
        table.node(parent).map(|node| node.process.clone())
    };
    if let Some(parent) = parent {
        tell_parent(process, &parent, CLD_STOPPED, signal);
    }
}

fn tell_parent(process: &Arc<Process>, parent: &Arc<Process>, code: i32, status: u32) {
    let action = parent.signals.action(SIGCHLD);
    if action.flags & super::action::SA_NOCLDSTOP == 0 {
        let info = child_info(process, SIGCHLD, code, status);
        let _ = to_process(parent, info, Origin::Inside);
    }
    parent.children_changed.wake(Events::empty());
}

/// The information that comes with a child's signal.
pub fn child_info(process: &Process, signal: u32, code: i32, status: u32) -> SigInfo {
    let ticks = process.cpu_times().ticks();
    let uid = process.credentials.lock().ruid;
    SigInfo::child(signal, code, process.pid, uid, status, ticks)
}

/// Information for a signal that `thread` sends with kill.
pub fn user_info(thread: &Thread, signal: u32) -> SigInfo {
    SigInfo::user(
        signal,
        SI_USER,
        thread.process.pid,
        thread.process.credentials.lock().ruid,
    )
}
