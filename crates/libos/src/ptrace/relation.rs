//! Who traces whom: how it begins and ends.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use super::{Options, State, Tracee};
use crate::errno::{EPERM, ESRCH};
use crate::process::credentials::{By, CAP_SYS_PTRACE};
use crate::process::thread::Work;
use crate::process::{Process, exit, table};
use crate::signal::send::{Origin, to_thread};
use crate::signal::{SIGKILL, SIGSTOP, SigInfo};
use crate::sync::SpinLock;
use crate::{Result, Thread};

/// Makes `tracer` the tracer of `thread`. EPERM where it has one. Under the table's lock.
fn link(tracer: &Arc<Thread>, thread: &Arc<Thread>, state: State) -> Result<()> {
    if thread.tracee.is_set() {
        return Err(EPERM.because("the thread is traced already"));
    }
    let tracee = Arc::new(Tracee {
        tid: AtomicU32::new(thread.tid()),
        thread: Arc::downgrade(thread),
        process: thread.process.clone(),
        tracer: Arc::downgrade(tracer),
        tracer_process: Arc::downgrade(&tracer.process),
        state: SpinLock::new(state),
    });
    if tracee.is_leader() {
        *thread.process.leader_tracee.lock() = Some(tracee.clone());
    }
    tracer.process.tracees.lock().push(tracee.clone());
    thread.tracee.set(Some(tracee));
    Ok(())
}

/// Ends a relation; the thread goes on with `signal`. Under the table's lock.
fn unlink(tracee: &Arc<Tracee>, signal: u32) {
    if let Some(tracer) = tracee.tracer_process.upgrade() {
        let mut tracees = tracer.tracees.lock();
        tracees.retain(|other| !Arc::ptr_eq(other, tracee));
    }
    if tracee.is_leader() {
        let mut leader = tracee.process.leader_tracee.lock();
        if leader
            .as_ref()
            .is_some_and(|other| Arc::ptr_eq(other, tracee))
        {
            *leader = None;
        }
    }
    {
        let mut state = tracee.state.lock();
        state.ended = true;
        state.go_on(signal, false);
    }
    let Some(thread) = tracee.thread.upgrade() else {
        return;
    };
    thread.tracee.set(None);
    thread.seccomp.set_traced(false);
    // A process that job control has stopped stays so.
    match tracee.process.signals.group.lock().stopped_by {
        0 => thread.notify(),
        _ => thread.add_work(Work::STOP),
    }
}

/// PTRACE_TRACEME: the thread that forked the caller's process traces it. EPERM.
pub fn trace_me(thread: &Arc<Thread>) -> Result<()> {
    let parent = thread.process.parent();
    let parent = parent.ok_or(EPERM.because("the parent is the host"))?;
    let creator = thread.process.creator.lock().upgrade();
    let creator = creator.filter(|creator| Arc::ptr_eq(&creator.process, &parent));
    let tracer = creator.or_else(|| parent.main_thread());
    let tracer = tracer.ok_or(EPERM.because("the parent has no thread left"))?;
    let wanted = thread.process.credentials.lock().permitted;
    let may = {
        let theirs = parent.credentials.lock();
        wanted & !theirs.permitted == 0 || theirs.has(CAP_SYS_PTRACE)
    };
    if !may {
        return Err(EPERM.because("the parent has less rights"));
    }
    let _table = table::lock();
    if tracer.work().contains(Work::EXIT) {
        return Err(EPERM.because("the parent ends"));
    }
    link(&tracer, thread, State::default())
}

/// PTRACE_ATTACH and SEIZE. EPERM, ESRCH.
pub fn attach(tracer: &Arc<Thread>, tid: u32, seize: Option<Options>) -> Result<()> {
    let thread = table::thread(tid).ok_or(ESRCH)?;
    if Arc::ptr_eq(&thread.process, &tracer.process) {
        return Err(EPERM.because("a thread of the same process"));
    }
    if !thread.process.may_be_examined(&tracer.process, By::RealIds) {
        return Err(EPERM.because("a process with other rights"));
    }
    {
        let _table = table::lock();
        if thread.process.group_exit().is_some() {
            return Err(EPERM.because("the process ends"));
        }
        let state = State {
            seized: seize.is_some(),
            options: seize.unwrap_or_default(),
            ..State::default()
        };
        link(tracer, &thread, state)?;
    }
    if seize.is_none() {
        let _ = to_thread(&thread, SigInfo::kernel(SIGSTOP), Origin::Inside);
    }
    // One that rests already reports that to its new tracer.
    thread.notify();
    Ok(())
}

/// The calling thread's tracee with this id. ESRCH.
pub fn find(tracer: &Arc<Thread>, tid: u32) -> Result<Arc<Tracee>> {
    let thread = table::thread(tid).ok_or(ESRCH)?;
    let tracee = thread.tracee.get();
    tracee
        .filter(|tracee| tracee.is_tracer(tracer))
        .ok_or(ESRCH.because("the thread is not traced by the caller"))
}

/// PTRACE_DETACH. ESRCH where the thread is not stopped.
pub fn detach(tracee: &Arc<Tracee>, signal: u32) -> Result<()> {
    let _table = table::lock();
    tracee.stopped(|_| ())?;
    unlink(tracee, signal);
    Ok(())
}

/// A new thread or process of a traced one is traced too: before it runs.
pub fn inherit(thread: &Thread, child: &Arc<Thread>) {
    let Some(tracee) = thread.tracee.get() else {
        return;
    };
    let Some(tracer) = tracee.tracer.upgrade() else {
        return;
    };
    let (seized, options) = {
        let state = tracee.state.lock();
        (state.seized, state.options)
    };
    {
        let _table = table::lock();
        let state = State {
            seized,
            options,
            trap: seized,
            ..State::default()
        };
        if tracer.work().contains(Work::EXIT) || link(&tracer, child, state).is_err() {
            return;
        }
    }
    if seized {
        child.add_own_work(Work::SIGNAL);
    } else {
        let info = SigInfo {
            signal: SIGSTOP as i32,
            ..SigInfo::default()
        };
        child.signals.add_raw(info);
        child.add_own_work(Work::SIGNAL);
    }
}

/// The new thread could not be started.
pub fn never_ran(child: &Thread) {
    let _table = table::lock();
    if let Some(tracee) = child.tracee.get() {
        unlink(&tracee, 0);
    }
}

/// A thread ends whose tracees nobody traces from now on. Before its own end is told.
pub fn tracer_ends(thread: &Arc<Thread>) {
    let process = &thread.process;
    let (mut doomed, mut zombies) = (Vec::new(), Vec::new());
    {
        // Whoever wants it as a tracer after this sees that it ends.
        let table = table::lock();
        let all = process.tracees.lock().clone();
        for tracee in all.iter().filter(|tracee| tracee.is_tracer(thread)) {
            let (kills, exited) = {
                let state = tracee.state.lock();
                (state.options.contains(Options::EXITKILL), state.exited)
            };
            if kills && exited.is_none() {
                doomed.push(tracee.process.clone());
            }
            unlink(tracee, 0);
            let status = table
                .node(tracee.process.pid)
                .filter(|_| tracee.is_leader())
                .and_then(|node| node.zombie);
            if let Some(status) = status {
                zombies.push((tracee.process.clone(), status));
            }
        }
    }
    for process in doomed {
        exit::group_exit(&process, SIGKILL);
    }
    for (process, status) in zombies {
        exit::announce(&process, status);
    }
}

/// Another thread than the first has executed a program and has the process's id now.
pub fn took_over_id(thread: &Arc<Thread>) {
    let process = &thread.process;
    let _table = table::lock();
    let old = process.leader_tracee.lock().clone();
    let own = thread.tracee.get();
    if let (Some(old), Some(own)) = (&old, &own)
        && Arc::ptr_eq(old, own)
    {
        return;
    }
    if let Some(old) = old {
        unlink(&old, 0);
    }
    if let Some(own) = own {
        own.tid.store(thread.tid(), Ordering::Relaxed);
        *process.leader_tracee.lock() = Some(own);
    }
}

/// Takes a tracee whose end the tracer has been told of out of the lists. Under the table's lock.
pub(crate) fn forget(tracee: &Arc<Tracee>) {
    unlink(tracee, 0);
}

/// The tracer of a process's first thread, unless that has none.
pub fn of_leader(process: &Process) -> Option<Arc<Tracee>> {
    process.leader_tracee.lock().clone()
}
