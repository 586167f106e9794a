//! What wait(2) tells a tracer of its tracees.

use alloc::sync::Arc;

use super::{Tracee, relation};
use crate::Thread;
use crate::process::Process;
use crate::process::table::Table;
use crate::process::times::CpuTime;
use crate::process::wait::{Change, WaitOptions, Which};
use crate::signal::info::{CLD_DUMPED, CLD_EXITED, CLD_KILLED, CLD_TRAPPED};
use crate::signal::{SIGCHLD, SigInfo};

/// What there is to tell.
pub enum Report {
    /// A stop, or the end of a thread that is not its process's first.
    Change(Change),
    /// A process that the caller is the parent of has ended: wait reaps it.
    OwnZombie(u32),
    /// One of another parent has ended: the parent is told now.
    OtherZombie(Change, Arc<Process>, u32),
}

/// Whether a process's first thread is traced by a thread of `tracer`.
pub fn is_traced_by(process: &Process, tracer: &Arc<Process>) -> bool {
    relation::of_leader(process)
        .is_some_and(|tracee| core::ptr::eq(tracee.tracer_process.as_ptr(), Arc::as_ptr(tracer)))
}

/// CLD_ and value for an exit status.
pub fn end_of(status: u32) -> (i32, u32) {
    match status & 0x7f {
        0 => (CLD_EXITED, status >> 8 & 0xff),
        signal if status & 0x80 != 0 => (CLD_DUMPED, signal),
        signal => (CLD_KILLED, signal),
    }
}

fn matches(tracee: &Tracee, thread: &Arc<Thread>, which: &Which, options: WaitOptions) -> bool {
    let chosen = match *which {
        Which::Any => true,
        Which::Pid(pid) => tracee.tid() == pid,
        Which::Group(group) => tracee.process.group() == group,
    };
    chosen && (!options.contains(WaitOptions::NOTHREAD) || tracee.is_tracer(thread))
}

/// Looks for something to tell `thread`; whether it has tracees that match, and what was found.
pub fn scan(
    table: &Table,
    thread: &Arc<Thread>,
    which: &Which,
    options: WaitOptions,
) -> (bool, Option<Report>) {
    let all = thread.process.tracees.lock().clone();
    let mut any = false;
    for tracee in all {
        if matches(&tracee, thread, which, options) {
            any = true;
            if let Some(report) = look(table, thread, &tracee, options) {
                return (true, Some(report));
            }
        }
    }
    (any, None)
}

fn look(
    table: &Table,
    thread: &Arc<Thread>,
    tracee: &Arc<Tracee>,
    options: WaitOptions,
) -> Option<Report> {
    let takes = !options.contains(WaitOptions::NOWAIT);
    let node = table
        .node(tracee.process.pid)
        .filter(|_| tracee.is_leader());
    if let Some(status) = node.and_then(|node| node.zombie) {
        if !options.contains(WaitOptions::EXITED) {
            return None;
        }
        if node.is_some_and(|node| node.parent == thread.process.pid) {
            return Some(Report::OwnZombie(tracee.process.pid));
        }
        let change = ended(tracee, status);
        if takes {
            relation::forget(tracee);
            return Some(Report::OtherZombie(change, tracee.process.clone(), status));
        }
        return Some(Report::Change(change));
    }
    let exited = tracee.state.lock().exited;
    if let Some(status) = exited.filter(|_| !tracee.is_leader()) {
        if !options.contains(WaitOptions::EXITED) {
            return None;
        }
        if takes {
            relation::forget(tracee);
        }
        return Some(Report::Change(ended(tracee, status)));
    }
    let code = {
        let mut state = tracee.state.lock();
        let stop = state.stop.as_mut().filter(|stop| !stop.reported)?;
        stop.reported |= takes;
        stop.code
    };
    Some(Report::Change(change(
        tracee,
        CLD_TRAPPED,
        code << 8 | 0x7f,
        code,
    )))
}

fn ended(tracee: &Tracee, status: u32) -> Change {
    let (code, value) = end_of(status);
    change(tracee, code, status, value)
}

fn change(tracee: &Tracee, code: i32, status: u32, value: u32) -> Change {
    let uid = tracee.process.credentials.lock().ruid;
    let pid = tracee.tid();
    Change {
        pid,
        status,
        info: SigInfo::child(SIGCHLD, code, pid, uid, value, [0, 0]),
        cpu_time: CpuTime::default(),
        sleeps: 0,
    }
}

/// A thread has ended: its tracer is told, unless it was the first of its process, whose end is that
/// of the process.
pub fn thread_ended(thread: &Arc<Thread>, status: u32) {
    let Some(tracee) = thread.tracee.get() else {
        return;
    };
    {
        let mut state = tracee.state.lock();
        state.stop = None;
        state.exited = Some(status);
    }
    if !tracee.is_leader() {
        let (code, value) = end_of(status);
        tracee.tell(code, value);
    }
}

/// A process has ended whose first thread is traced: the tracer is told, as the parent would be.
pub fn process_ended(tracee: &Tracee, status: u32) {
    let (code, value) = end_of(status);
    tracee.tell(code, value);
}
