//! Waiting for children.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::Process;
use super::table::{self, Node};
use super::times::CpuTime;
use crate::errno::ECHILD;
use crate::ptrace::relation;
use crate::ptrace::report::{self, Report};
use crate::signal::info::{
    CLD_CONTINUED, CLD_DUMPED, CLD_EXITED, CLD_KILLED, CLD_STOPPED, SigInfo,
};
use crate::signal::{SIGCHLD, SIGCONT};
use crate::sync::wait::{Events, block_on};
use crate::{Result, Thread};

bitflags::bitflags! {
    /// Options of wait4 and waitid.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct WaitOptions: u32 {
        const NOHANG = 1;
        const STOPPED = 2;
        const EXITED = 4;
        const CONTINUED = 8;
        const NOWAIT = 0x0100_0000;
        const NOTHREAD = 0x2000_0000;
        const ALL = 0x4000_0000;
        const CLONE = 0x8000_0000;
    }
}

/// Which children.
#[derive(Clone, Debug)]
pub enum Which {
    Any,
    Pid(u32),
    Group(u32),
}

/// A child's change of state.
#[derive(Clone, Debug)]
pub struct Change {
    pub pid: u32,
    /// As wait4 reports it.
    pub status: u32,
    pub info: SigInfo,
    /// CPU time of the child and its waited-for children (ns), sleeps.
    pub cpu_time: CpuTime,
    pub sleeps: u64,
}

enum Scan {
    Found(Change, Option<Node>),
    /// The end of another's child that a tracer was told of: its parent is next.
    OtherZombie(Change, Arc<Process>, u32),
    Nothing,
    NoChildren,
}

/// Waits for a change. `None` with WNOHANG when nothing has changed. ECHILD.
pub fn wait(thread: &Arc<Thread>, which: &Which, options: WaitOptions) -> Result<Option<Change>> {
    let process = &thread.process;
    let attempt = || match scan(thread, which, options) {
        Scan::Found(change, reaped) => {
            if let Some(node) = reaped {
                account(process, &node.process, &change);
                // The last reference may go here: not under the table's lock.
                drop(node);
            }
            Some(Ok(Some(change)))
        }
        Scan::OtherZombie(change, process, status) => {
            super::exit::announce(&process, status);
            Some(Ok(Some(change)))
        }
        Scan::NoChildren => Some(Err(ECHILD)),
        Scan::Nothing if options.contains(WaitOptions::NOHANG) => Some(Ok(None)),
        Scan::Nothing => None,
    };
    block_on(
        thread,
        &process.children_changed,
        Events::empty(),
        None,
        attempt,
    )?
}

fn account(process: &Process, child: &Process, change: &Change) {
    let _ = child;
    process.times.children.add(change.cpu_time);
    process
        .times
        .children_sleeps
        .fetch_add(change.sleeps, Ordering::Relaxed);
}

fn scan(thread: &Arc<Thread>, which: &Which, options: WaitOptions) -> Scan {
    let process = &thread.process;
    let mut table = table::lock();
    let Some(own) = table.node(process.pid) else {
        return Scan::NoChildren;
    };
    let mut any = false;
    let mut found = None;
    for &pid in &own.children {
        let Some(child) = table.node(pid) else {
            continue;
        };
        if !matches(child, which, options) {
            continue;
        }
        any = true;
        let mut options = options;
        if relation::of_leader(&child.process).is_some() {
            // Its end is its tracer's first; its stops too, if that is of this process.
            options -= WaitOptions::EXITED;
            if report::is_traced_by(&child.process, process) {
                options -= WaitOptions::STOPPED;
            }
        }
        if let Some(change) = change_of(child, options) {
            found = Some(change);
            break;
        }
    }
    if found.is_none() {
        let (has_tracees, report) = report::scan(&table, thread, which, options);
        any |= has_tracees;
        match report {
            None => {}
            Some(Report::Change(change)) => return Scan::Found(change, None),
            Some(Report::OtherZombie(change, process, status)) => {
                return Scan::OtherZombie(change, process, status);
            }
            Some(Report::OwnZombie(pid)) => {
                found = table.node(pid).and_then(|node| change_of(node, options));
            }
        }
    }
    let Some(change) = found else {
        return if any { Scan::Nothing } else { Scan::NoChildren };
    };
    if options.contains(WaitOptions::NOWAIT) {
        return Scan::Found(change, None);
    }
    if matches!(change.info.code, CLD_EXITED | CLD_KILLED | CLD_DUMPED) {
        if let Some(tracee) = table
            .node(change.pid)
            .and_then(|node| relation::of_leader(&node.process))
        {
            relation::forget(&tracee);
        }
        let node = table.reap(change.pid);
        return Scan::Found(change, node);
    }
    if let Some(node) = table.node_mut(change.pid) {
        if change.info.code == CLD_STOPPED {
            node.stopped = None;
        } else {
            node.continued = false;
        }
    }
    Scan::Found(change, None)
}

fn matches(child: &Node, which: &Which, options: WaitOptions) -> bool {
    let chosen = match *which {
        Which::Any => true,
        Which::Pid(pid) => child.process.pid == pid,
        Which::Group(group) => child.process.group() == group,
    };
    // Children that signal their end with something else than SIGCHLD need __WCLONE or __WALL.
    let is_clone = child.process.exit_signal.load(Ordering::Relaxed) != SIGCHLD;
    chosen
        && (options.contains(WaitOptions::ALL) || is_clone == options.contains(WaitOptions::CLONE))
}

fn change_of(child: &Node, options: WaitOptions) -> Option<Change> {
    let process = &child.process;
    let (code, status, value) = if let Some(status) = child
        .zombie
        .filter(|_| options.contains(WaitOptions::EXITED))
    {
        let (code, value) = report::end_of(status);
        (code, status, value)
    } else if let Some(signal) = child
        .stopped
        .filter(|_| options.contains(WaitOptions::STOPPED))
    {
        (CLD_STOPPED, signal << 8 | 0x7f, signal)
    } else if child.continued && options.contains(WaitOptions::CONTINUED) {
        (CLD_CONTINUED, 0xffff, SIGCONT)
    } else {
        return None;
    };
    let own = process.cpu_times();
    let uid = process.credentials.lock().ruid;
    Some(Change {
        pid: process.pid,
        status,
        info: SigInfo::child(SIGCHLD, code, process.pid, uid, value, [0, 0]),
        cpu_time: own + process.times.children.get(),
        sleeps: process.sleeps() + process.times.children_sleeps.load(Ordering::Relaxed),
    })
}
