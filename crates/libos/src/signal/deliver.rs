//! Delivery: what happens before user code runs again.

use alloc::sync::Arc;

use super::action::{SA_NODEFER, SA_RESETHAND, SA_RESTART, SIG_DFL, SIG_IGN};
use super::{
    Action, DUMPING, IGNORED_BY_DEFAULT, SIGSTOP, STOPPING, SigInfo, UNBLOCKABLE, bit, frame,
};
use crate::errno::{EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS};
use crate::process::core_dump::{self, Outcome};
use crate::process::thread::Work;
use crate::process::{exit, table};
use crate::{Registers, Thread, ptrace};

/// Number of `restart_syscall`.
const RESTART_SYSCALL: u64 = 219;
/// WCOREDUMP: the bit of a status that says that there is a core file.
const CORE_DUMPED: u32 = 0x80;

/// Delivers pending signals: pushes handler frames, carries out default actions, restarts the
/// interrupted call when no handler runs.
pub fn deliver(thread: &Arc<Thread>, registers: &mut Registers) {
    thread.clear_work(Work::SIGNAL);
    while let Some((info, action)) = next_handler(thread, registers) {
        let signal = info.number();
        interrupt_call(registers, Some(&action));
        let mask = if thread.work().contains(Work::RESTORE_MASK) {
            thread.signals.saved()
        } else {
            thread.signals.blocked()
        };
        if frame::push(thread, registers, &info, &action, mask).is_err() {
            super::send::force_bad_frame(thread, signal);
            continue;
        }
        thread.clear_work(Work::RESTORE_MASK);
        let mut blocked = thread.signals.blocked() | action.mask;
        if action.flags & SA_NODEFER == 0 {
            blocked |= bit(signal);
        }
        super::set_blocked(thread, blocked);
        if thread.work().contains(Work::STEP) {
            // The handler's first instruction is where a step into it ends.
            ptrace::stop::stepped(thread, registers);
        }
    }
    if thread.work().intersects(Work::EXIT | Work::STOP) {
        // Comes back here afterwards, unless it ends: the call may have to be restarted.
        thread.add_own_work(Work::SIGNAL);
        return;
    }
    finish_without_handler(thread, registers);
}

/// No handler runs (any more): the interrupted call restarts, a temporary mask ends.
pub fn finish_without_handler(thread: &Thread, registers: &mut Registers) {
    interrupt_call(registers, None);
    if thread.work().contains(Work::RESTORE_MASK) {
        thread.clear_work(Work::RESTORE_MASK);
        super::set_blocked(thread, thread.signals.saved());
    }
}

/// Linux's rules for a call that a signal interrupted (arch/x86 `handle_signal` semantics).
fn interrupt_call(registers: &mut Registers, handler: Option<&Action>) {
    if registers.orig_rax == u64::MAX {
        return;
    }
    let error = -(registers.rax as i64);
    let is = |errno: crate::Errno| error == i64::from(errno.code());
    let restart = |registers: &mut Registers, number: u64| {
        registers.rax = number;
        registers.rip = registers.rip.wrapping_sub(2);
    };
    let number = registers.orig_rax;
    match handler {
        None if is(ERESTARTSYS) || is(ERESTARTNOHAND) => restart(registers, number),
        None if is(ERESTART_RESTARTBLOCK) => restart(registers, RESTART_SYSCALL),
        Some(action) if is(ERESTARTSYS) && action.flags & SA_RESTART != 0 => {
            restart(registers, number);
        }
        Some(_) if is(ERESTARTSYS) || is(ERESTARTNOHAND) || is(ERESTART_RESTARTBLOCK) => {
            registers.rax = (-i64::from(EINTR.code())) as u64;
        }
        _ => {}
    }
    registers.orig_rax = u64::MAX;
}

/// The next signal that has a handler. Default actions are carried out on the way.
fn next_handler(thread: &Arc<Thread>, registers: &mut Registers) -> Option<(SigInfo, Action)> {
    let process = &thread.process;
    loop {
        if thread.work().intersects(Work::EXIT | Work::STOP) {
            return None;
        }
        if ptrace::stop::trap(thread, registers) {
            continue;
        }
        let continuations = process.signals.group.lock().continuations;
        let info = super::next_of(thread, !thread.signals.blocked())?;
        if crate::trace::is_enabled() {
            crate::trace::signal(thread, &info);
        }
        let Some(info) = ptrace::stop::signal(thread, registers, info) else {
            continue;
        };
        let signal = info.number();
        let action = {
            let actions = process.signals.actions();
            let mut actions = actions.lock();
            let action = actions.get(signal);
            if action.flags & SA_RESETHAND != 0 && action.handler > SIG_IGN {
                actions.set(
                    signal,
                    Action {
                        handler: SIG_DFL,
                        ..action
                    },
                );
            }
            action
        };
        match action.handler {
            SIG_IGN => continue,
            SIG_DFL => {}
            _ => return Some((info, action)),
        }
        if bit(signal) & IGNORED_BY_DEFAULT != 0 {
            continue;
        }
        if process.signals.group.lock().unkillable && bit(signal) & UNBLOCKABLE == 0 {
            continue;
        }
        if bit(signal) & STOPPING != 0 {
            let orphaned = signal != SIGSTOP && table::lock().is_orphaned_group(process.group(), 0);
            if !orphaned {
                begin_stop(thread, signal, continuations);
            }
            continue;
        }
        let outcome = match bit(signal) & DUMPING {
            0 => Outcome::NoFile,
            _ => core_dump::write(thread, registers, &info),
        };
        let has_core = match outcome {
            Outcome::Written => true,
            Outcome::NoFile => false,
            Outcome::AnotherStays => return None,
        };
        exit::group_exit(process, signal | if has_core { CORE_DUMPED } else { 0 });
    }
}

/// A stop signal takes effect: all threads come to rest in [`rest`].
fn begin_stop(thread: &Arc<Thread>, signal: u32, continuations: u32) {
    let process = &thread.process;
    {
        let mut group = process.signals.group.lock();
        if group.continuations != continuations {
            return;
        }
        if group.stopped_by != 0 {
            drop(group);
            if thread.tracee.is_set() {
                // Its tracer lets it run in a process that has stopped: it stops again.
                thread.add_own_work(Work::STOP);
            }
            return;
        }
        group.stopped_by = signal;
        group.stopped_threads = 0;
        group.stop_complete = false;
    }
    for other in process.live_threads() {
        if other.tid() != thread.tid() {
            other.add_work(Work::STOP);
        }
    }
    thread.add_own_work(Work::STOP);
}

/// Work::STOP: sleeps until the process continues or the thread must end. A traced thread goes on
/// when its tracer says so.
pub fn rest(thread: &Arc<Thread>, registers: &mut Registers) {
    let process = &thread.process;
    let mut counted = false;
    loop {
        let seen = thread.event_count();
        if thread.work().contains(Work::EXIT) {
            break;
        }
        let signal = {
            let mut group = process.signals.group.lock();
            if group.stopped_by == 0 {
                break;
            }
            if !counted {
                group.stopped_threads += 1;
                counted = true;
            }
            group.stopped_by
        };
        complete_stop(process, 0);
        if thread.tracee.is_set() {
            thread.clear_work(Work::STOP);
            if ptrace::stop::group(thread, registers, signal) {
                return;
            }
            continue;
        }
        thread.sleep(seen, None);
    }
    thread.clear_work(Work::STOP);
    // A second stop may have begun in between.
    if process.signals.group.lock().stopped_by != 0 {
        thread.add_own_work(Work::STOP);
    }
}

/// Reports the stop once every thread rests. `leaving` threads that are about to end do not count.
pub fn complete_stop(process: &Arc<crate::process::Process>, leaving: usize) {
    let threads = process.live_threads().len().saturating_sub(leaving);
    let report = {
        let mut group = process.signals.group.lock();
        let complete = group.stopped_by != 0
            && !group.stop_complete
            && group.stopped_threads >= threads
            && threads > 0;
        if complete {
            group.stop_complete = true;
        }
        complete.then_some(group.stopped_by)
    };
    if let Some(signal) = report {
        super::send::report_stop(process, signal);
    }
}
