//! The end of threads and processes.
//!
//! Ending is asked for with Work::EXIT and carried out by the thread itself, in [`finish`], on the
//! way to user code: no kernel function is ever abandoned half-way.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::thread::Work;
use super::times::ENDED;
use super::{Process, table};
use crate::errno::EAGAIN;
use crate::fs::context::FsContext;
use crate::fs::table::FdTable;
use crate::mm::AddressSpace;
use crate::platform::{Atomic, platform};
use crate::signal::action::{SA_NOCLDWAIT, SIG_IGN};
use crate::signal::info::{SI_USER, SigInfo};
use crate::signal::send::{Origin, child_info, to_group, to_process};
use crate::signal::{SIGCHLD, SIGCONT, SIGHUP, SIGKILL, SIGNAL_MAX};
use crate::sync::futex;
use crate::sync::wait::Events;
use crate::{Registers, Result, Thread, ptrace};

/// What a thread leaves behind when it ends.
#[derive(Default)]
pub struct ThreadExit {
    /// Address of the word to clear and wake (set_tid_address), or 0.
    pub clear_child_tid: AtomicU64,
    /// Head of the robust futex list, or 0.
    pub robust_list: AtomicU64,
    /// Status for wait, once decided.
    pub status: AtomicU32,
}

impl ThreadExit {
    pub fn robust_list(&self) -> u64 {
        self.robust_list.load(Ordering::Relaxed)
    }
}

/// exit: this thread only. `status` as wait reports it.
pub fn thread_exit(thread: &Arc<Thread>, status: u32) {
    thread.exit.status.store(status, Ordering::Relaxed);
    thread.add_own_work(Work::EXIT);
}

/// exit_group, a fatal signal, or exec's parent killed: every thread of the process ends. The
/// first status given stays.
pub fn group_exit(process: &Arc<Process>, status: u32) {
    let value = 1 << 32 | u64::from(status);
    let first = process
        .group_exit
        .compare_exchange(0, value, Ordering::SeqCst, Ordering::SeqCst);
    if first.is_ok() {
        process.signals.group.lock().stopped_by = 0;
    }
    for thread in process.live_threads() {
        thread.add_work(Work::EXIT);
    }
}

/// Carries out a thread's end. Called once, by the thread itself; afterwards it runs no user code.
pub fn finish(thread: &Arc<Thread>, registers: &mut Registers) {
    let process = &thread.process;
    let status = |thread: &Thread| {
        let own = thread.exit.status.load(Ordering::Relaxed);
        process.group_exit().unwrap_or(own)
    };
    let message = status(thread).into();
    ptrace::stop::event(thread, registers, ptrace::Event::Exit, message);
    ptrace::step::cancel(thread);
    ptrace::relation::tracer_ends(thread);
    let mm = thread.mm();
    release_futexes(thread, &mm);
    thread.clock.finish();
    let times = thread.clock.times();
    process.times.ended_threads.add(times);
    ENDED.add(times);
    let sleeps = thread.clock.sleeps.load(Ordering::Relaxed);
    process
        .times
        .ended_sleeps
        .fetch_add(sleeps, Ordering::Relaxed);
    thread.set_files(Arc::new(FdTable::default()));
    let is_last = {
        let mut table = table::lock();
        let mut threads = process.threads.lock();
        threads.retain(|other| !core::ptr::eq(other.as_ptr(), Arc::as_ptr(thread)));
        let is_last = threads.is_empty();
        drop(threads);
        table.remove_thread(thread.tid());
        is_last
    };
    ptrace::report::thread_ended(thread, status(thread));
    if is_last {
        process_end(thread, status(thread));
    } else {
        // exec waits for the others to go; a stop may have waited for this one.
        for other in process.live_threads() {
            other.notify();
        }
        crate::signal::deliver::complete_stop(process, 0);
    }
    mm.detach(thread);
    thread.set_fs(kernel_fs());
}

/// What threads that have ended refer to instead of their file system context.
fn kernel_fs() -> Arc<FsContext> {
    static EMPTY: spin::Once<Arc<FsContext>> = spin::Once::new();
    EMPTY.call_once(|| Arc::new(FsContext::default())).clone()
}

/// The last thread of a process has gone: zombie, orphans, the parent.
fn process_end(thread: &Arc<Thread>, status: u32) {
    let process = &thread.process;
    process
        .group_exit
        .store(3 << 32 | u64::from(status), Ordering::SeqCst);
    if crate::trace::is_enabled() {
        crate::trace::ended(thread, status);
    }
    process.timers.clear();
    crate::ipc::semaphore::process_ends(process);
    if process.pid == 1 {
        // The container ends with its first process; the others go with the enclave.
        crate::trace::write_report();
        // An error is in the log; the exit status is the program's.
        let _ = crate::fs::sync_volumes(thread);
        platform().exit(status);
    }
    let of_host = super::host_exec::ended(process.pid, status);
    process.release_vfork_parent();
    release_children(process);
    if process.session() == process.pid {
        crate::fs::pty::leader_ends(process.pid);
    }
    let left_group = orphan_group(process);
    if of_host {
        drop(table::lock().reap(process.pid));
    } else {
        announce(process, status);
    }
    process.ended.wake(Events::IN);
    for group in left_group {
        // POSIX: a newly orphaned group with a stopped member gets SIGHUP and SIGCONT.
        let _ = to_group(group, SigInfo::kernel(SIGHUP), Origin::Inside);
        let _ = to_group(group, SigInfo::kernel(SIGCONT), Origin::Inside);
    }
}

/// Children go to the nearest subreaper or process 1.
fn release_children(process: &Arc<Process>) {
    let mut heirs: Vec<(Arc<Process>, Option<u32>)> = Vec::new();
    let reaper = {
        let mut table = table::lock();
        let reaper = table.reaper_of(process.pid);
        let children = table
            .node(process.pid)
            .map(|n| n.children.clone())
            .unwrap_or_default();
        for pid in children {
            table.reparent(pid, reaper);
            if let Some(node) = table.node(pid) {
                heirs.push((node.process.clone(), node.zombie));
            }
        }
        table.node(reaper).map(|node| node.process.clone())
    };
    let uid = process.credentials.lock().ruid;
    for (child, zombie) in heirs {
        let signal = child.parent_death_signal.load(Ordering::Relaxed);
        if signal != 0 && zombie.is_none() {
            // As if the parent had sent it.
            let info = SigInfo::user(signal, SI_USER, process.pid, uid);
            let _ = to_process(&child, info, Origin::Inside);
        }
        child.exit_signal.store(SIGCHLD, Ordering::Relaxed);
        let is_traced = ptrace::relation::of_leader(&child).is_some();
        if let (Some(status), Some(_), false) = (zombie, &reaper, is_traced) {
            announce(&child, status);
        }
    }
}

/// Groups that the end of `process` orphans and that have a stopped member.
fn orphan_group(process: &Arc<Process>) -> Vec<u32> {
    let table = table::lock();
    let is_stopped = |process: &Process| process.signals.group.lock().stopped_by != 0;
    let group = process.group();
    let mut groups = Vec::new();
    if table.is_orphaned_group(group, process.pid)
        && table
            .group_members(group)
            .iter()
            .any(|p| p.pid != process.pid && is_stopped(p))
    {
        groups.push(group);
    }
    groups
}

/// The process becomes a zombie, or vanishes when its parent does not want to know.
pub(crate) fn announce(process: &Arc<Process>, status: u32) {
    if let Some(tracee) = traced_zombie(process, status) {
        return ptrace::report::process_ended(&tracee, status);
    }
    let parent = process.parent();
    let signal = process.exit_signal.load(Ordering::Relaxed);
    let action = parent.as_ref().map(|parent| parent.signals.action(SIGCHLD));
    let unwanted = signal == SIGCHLD
        && action.is_none_or(|a| a.handler == SIG_IGN || a.flags & SA_NOCLDWAIT != 0);
    {
        let mut table = table::lock();
        if unwanted {
            drop(table.reap(process.pid));
        } else if let Some(node) = table.node_mut(process.pid) {
            node.zombie = Some(status);
        }
    }
    let Some(parent) = parent else { return };
    // clone takes any number for the signal; there is none beyond the last.
    if (1..=SIGNAL_MAX).contains(&signal) && action.is_none_or(|action| action.handler != SIG_IGN) {
        let (code, value) = ptrace::report::end_of(status);
        let info = child_info(process, signal, code, value);
        let _ = to_process(&parent, info, Origin::Inside);
    }
    parent.children_changed.wake(Events::empty());
}

/// A process whose first thread is traced becomes a zombie for its tracer, which comes before the
/// parent.
fn traced_zombie(process: &Process, status: u32) -> Option<Arc<ptrace::Tracee>> {
    let mut table = table::lock();
    let tracee = ptrace::relation::of_leader(process)?;
    if let Some(node) = table.node_mut(process.pid) {
        node.zombie = Some(status);
    }
    Some(tracee)
}

/// Ends every other thread of the process and waits until they are gone (execve, a core file). EAGAIN
/// (which nobody sees) when the thread must end itself: of several that want to stay the first does.
/// `first` is done once that is settled.
pub fn end_other_threads(thread: &Arc<Thread>, first: impl FnOnce()) -> Result<()> {
    let process = &thread.process;
    let stays = |from: u32, to: u32| {
        let order = Ordering::SeqCst;
        process.staying.compare_exchange(from, to, order, order)
    };
    if stays(0, thread.tid()).is_err() {
        thread.add_own_work(Work::EXIT);
        return Err(EAGAIN.because("another thread of the process stays"));
    }
    first();
    let result = wait_for_other_threads(thread);
    let _ = stays(thread.tid(), 0);
    result
}

fn wait_for_other_threads(thread: &Arc<Thread>) -> Result<()> {
    let process = &thread.process;
    let others = |process: &Process| -> Vec<Arc<Thread>> {
        let mut threads = process.live_threads();
        threads.retain(|other| !Arc::ptr_eq(other, thread));
        threads
    };
    loop {
        let seen = thread.event_count();
        // Again each time: one of them may just have created another.
        for other in others(process) {
            if !other.work().contains(Work::EXIT) {
                other.add_work(Work::EXIT);
            }
        }
        if process.group_exit().is_some() {
            return Err(EAGAIN.because("the process ends"));
        }
        // By the list, not by upgrades: a thread that is dropped is still on its way out.
        if process.threads.lock().len() <= 1 {
            return Ok(());
        }
        thread.sleep(seen, None);
    }
}

/// Most entries of a robust list that are looked at (Linux's ROBUST_LIST_LIMIT).
const ROBUST_LIST_LIMIT: usize = 2048;

/// Robust futexes of the dying thread, then clear_child_tid. Also when execve replaces memory.
pub fn release_futexes(thread: &Arc<Thread>, mm: &Arc<AddressSpace>) {
    let head = thread.exit.robust_list.swap(0, Ordering::Relaxed);
    if head != 0 {
        // A list that cannot be read to its end is the program's problem.
        let _ = walk_robust_list(thread, mm, head);
    }
    let address = thread.exit.clear_child_tid.swap(0, Ordering::Relaxed);
    if address != 0 && mm.write(address, &0u32.to_le_bytes()).is_ok() {
        let _ = futex::wake(mm, address, false, 1, !0);
    }
}

fn walk_robust_list(thread: &Arc<Thread>, mm: &Arc<AddressSpace>, head: u64) -> Result<()> {
    let word = |address: u64| -> Result<u64> {
        let mut bytes = [0; 8];
        mm.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    };
    let offset = word(head.wrapping_add(8))?;
    let pending = word(head.wrapping_add(16))?;
    let mut entry = word(head)?;
    for _ in 0..ROBUST_LIST_LIMIT {
        if entry & !1 == head {
            break;
        }
        // The next entry first: the owner may be freed once it is released.
        let next = word(entry & !1)?;
        if entry & !1 != pending & !1 {
            release_robust(
                thread,
                mm,
                (entry & !1).wrapping_add(offset),
                entry & 1 != 0,
                false,
            )?;
        }
        entry = next;
    }
    if pending & !1 != 0 {
        release_robust(
            thread,
            mm,
            (pending & !1).wrapping_add(offset),
            pending & 1 != 0,
            true,
        )?;
    }
    Ok(())
}

fn release_robust(
    thread: &Arc<Thread>,
    mm: &Arc<AddressSpace>,
    address: u64,
    inherits: bool,
    is_pending: bool,
) -> Result<()> {
    if !address.is_multiple_of(4) {
        return Err(crate::errno::EINVAL);
    }
    loop {
        let value = mm.atomic(address, Atomic::Load)?;
        if is_pending && !inherits && value == 0 {
            // Released, but perhaps not yet announced.
            futex::wake(mm, address, false, 1, !0)?;
            return Ok(());
        }
        if value & futex::TID_MASK != thread.tid() {
            return Ok(());
        }
        let new = value & futex::WAITERS | futex::OWNER_DIED;
        let exchange = Atomic::CompareExchange {
            expected: value,
            new,
        };
        if mm.atomic(address, exchange)? == value {
            if value & futex::WAITERS != 0 {
                if inherits {
                    futex::release_lock(mm, address)?;
                } else {
                    futex::wake(mm, address, false, 1, !0)?;
                }
            }
            return Ok(());
        }
    }
}

/// Kills every process but the first (reboot, container stop).
pub fn kill_all() {
    for process in table::processes() {
        if process.pid != 1 {
            group_exit(&process, SIGKILL);
        }
    }
}
