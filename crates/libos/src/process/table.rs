//! The process table: ids, the family tree, groups and sessions.
//!
//! One lock for all of it, held briefly. Lock order: this first, then anything of a process.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::Process;
use super::thread::Thread;
use crate::Result;
use crate::errno::{EAGAIN, EINVAL, EPERM, ESRCH};
use crate::sync::{SpinGuard, SpinLock};

/// Ids stay below this (pid_max of 64-bit Linux).
pub const ID_MAX: u32 = 1 << 22;

/// A process in the tree.
pub struct Node {
    pub process: Arc<Process>,
    pub parent: u32,
    pub children: Vec<u32>,
    /// Status for wait; the process is a zombie.
    pub zombie: Option<u32>,
    /// A stop that wait has not reported yet: the signal.
    pub stopped: Option<u32>,
    /// A continuation that wait has not reported yet.
    pub continued: bool,
}

#[derive(Default)]
struct Entry {
    thread: Weak<Thread>,
    node: Option<Node>,
}

/// The table.
pub struct Table {
    entries: BTreeMap<u32, Entry>,
    last: u32,
    /// Ids are being reused: from then on a fresh one is compared with groups and sessions.
    wrapped: bool,
}

static TABLE: SpinLock<Table> = SpinLock::new(Table {
    entries: BTreeMap::new(),
    last: 0,
    wrapped: false,
});
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Locks the table.
pub fn lock() -> SpinGuard<'static, Table> {
    TABLE.lock()
}

/// Threads that exist (for sysinfo and /proc/loadavg).
pub fn thread_count() -> usize {
    THREADS.load(Ordering::Relaxed)
}

/// The process with this id, zombies included.
pub fn process(pid: u32) -> Option<Arc<Process>> {
    lock().node(pid).map(|node| node.process.clone())
}

/// The process with this id, or ESRCH.
pub fn process_or_esrch(pid: u32) -> Result<Arc<Process>> {
    process(pid).ok_or(ESRCH)
}

/// The running thread with this id.
pub fn thread(tid: u32) -> Option<Arc<Thread>> {
    lock().entries.get(&tid)?.thread.upgrade()
}

/// All processes, zombies included, by id.
pub fn processes() -> Vec<Arc<Process>> {
    lock().nodes().map(|node| node.process.clone()).collect()
}

/// Whether a process is a zombie (for /proc).
pub fn is_zombie(pid: u32) -> bool {
    lock().node(pid).is_some_and(|node| node.zombie.is_some())
}

impl Table {
    /// A fresh id, never one that a process, thread, group or session has.
    pub fn allocate(&mut self) -> Result<u32> {
        for _ in 0..ID_MAX {
            self.last += 1;
            if self.last >= ID_MAX {
                self.last = 300;
                self.wrapped = true;
            }
            let id = self.last;
            let used = self.entries.contains_key(&id)
                || self.wrapped
                    && self
                        .nodes()
                        .any(|n| n.process.group() == id || n.process.session() == id);
            if !used {
                self.entries.insert(id, Entry::default());
                return Ok(id);
            }
        }
        Err(EAGAIN.because("no process id is free"))
    }

    /// The id that was given out last (/proc/sys/kernel/ns_last_pid).
    pub fn last(&self) -> u32 {
        self.last
    }

    /// The next id is the first free one above this. EINVAL beyond the highest id.
    pub fn set_last(&mut self, id: u32) -> Result<()> {
        if id >= ID_MAX {
            return Err(EINVAL.because("beyond the highest process id"));
        }
        self.last = id;
        self.wrapped = true;
        Ok(())
    }

    /// Gives back an id that was never used.
    pub fn release(&mut self, id: u32) {
        self.entries.remove(&id);
    }

    pub fn node(&self, pid: u32) -> Option<&Node> {
        self.entries.get(&pid)?.node.as_ref()
    }

    pub fn node_mut(&mut self, pid: u32) -> Option<&mut Node> {
        self.entries.get_mut(&pid)?.node.as_mut()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.entries
            .values()
            .filter_map(|entry| entry.node.as_ref())
    }

    /// Adds a process under its parent (0: none).
    pub fn insert_process(&mut self, process: &Arc<Process>, parent: u32) {
        process.parent_pid.store(parent, Ordering::Relaxed);
        self.entries.entry(process.pid).or_default().node = Some(Node {
            process: process.clone(),
            parent,
            children: Vec::new(),
            zombie: None,
            stopped: None,
            continued: false,
        });
        if let Some(node) = self.node_mut(parent) {
            node.children.push(process.pid);
        }
    }

    /// Adds a thread; it counts as running.
    pub fn insert_thread(&mut self, thread: &Arc<Thread>) {
        self.entries.entry(thread.tid()).or_default().thread = Arc::downgrade(thread);
        THREADS.fetch_add(1, Ordering::Relaxed);
    }

    /// A thread has ended; its id is free unless it is its process's.
    pub fn remove_thread(&mut self, tid: u32) {
        if let Some(entry) = self.entries.get_mut(&tid) {
            entry.thread = Weak::new();
            THREADS.fetch_sub(1, Ordering::Relaxed);
            if entry.node.is_none() {
                self.entries.remove(&tid);
            }
        }
    }

    /// execve by another thread than the first: it takes over the process's id.
    pub fn take_over_id(&mut self, thread: &Arc<Thread>) {
        let (old, pid) = (thread.tid(), thread.process.pid);
        if old != pid {
            self.entries.remove(&old);
            thread.set_tid(pid);
            self.entries.entry(pid).or_default().thread = Arc::downgrade(thread);
        }
    }

    /// Takes a zombie out of the tree.
    pub fn reap(&mut self, pid: u32) -> Option<Node> {
        let node = self.entries.get_mut(&pid)?.node.take()?;
        self.entries.remove(&pid);
        if let Some(parent) = self.node_mut(node.parent) {
            parent.children.retain(|&child| child != pid);
        }
        Some(node)
    }

    /// Moves a process under another parent.
    pub fn reparent(&mut self, pid: u32, parent: u32) {
        let Some(node) = self.node_mut(pid) else {
            return;
        };
        let old = core::mem::replace(&mut node.parent, parent);
        node.process.parent_pid.store(parent, Ordering::Relaxed);
        if let Some(node) = self.node_mut(old) {
            node.children.retain(|&child| child != pid);
        }
        if let Some(node) = self.node_mut(parent) {
            node.children.push(pid);
        }
    }

    /// Who inherits the children of `pid`: the nearest living subreaper above, else process 1.
    pub fn reaper_of(&self, pid: u32) -> u32 {
        let mut at = pid;
        while let Some(node) = self.node(at) {
            at = node.parent;
            let Some(above) = self.node(at) else { break };
            let alive = above.zombie.is_none() && !above.process.has_ended();
            if alive && above.process.subreaper.load(Ordering::Relaxed) {
                return at;
            }
        }
        1
    }

    /// Living members of a process group.
    pub fn group_members(&self, group: u32) -> Vec<Arc<Process>> {
        let members = self
            .nodes()
            .filter(|n| n.process.group() == group && n.zombie.is_none());
        members.map(|node| node.process.clone()).collect()
    }

    /// Whether a group exists (zombies count).
    pub fn group_exists(&self, group: u32) -> bool {
        self.nodes().any(|n| n.process.group() == group)
    }

    /// The same, in a session.
    pub fn group_in_session(&self, group: u32, session: u32) -> bool {
        self.nodes()
            .any(|n| n.process.group() == group && n.process.session() == session)
    }

    /// Whether no member of the group has a living parent in the same session but another group:
    /// stop signals from the terminal are then not acted upon (POSIX "orphaned process group").
    pub fn is_orphaned_group(&self, group: u32, ignored: u32) -> bool {
        !self.nodes().any(|node| {
            node.process.group() == group
                && node.zombie.is_none()
                && node.process.pid != ignored
                && self.node(node.parent).is_some_and(|parent| {
                    parent.process.group() != group
                        && parent.process.session() == node.process.session()
                        && node.parent != 0
                })
        })
    }

    /// Sets a process's group and session.
    pub fn set_group(&mut self, process: &Process, group: u32) {
        process.group.store(group, Ordering::Relaxed);
    }

    /// setsid: a new session and group; EPERM for a group leader.
    pub fn new_session(&mut self, process: &Process) -> Result<()> {
        if self.nodes().any(|node| node.process.group() == process.pid) {
            return Err(EPERM.because("already a process group leader"));
        }
        process.group.store(process.pid, Ordering::Relaxed);
        process.session.store(process.pid, Ordering::Relaxed);
        Ok(())
    }

    /// fork: the child starts in its parent's group and session.
    pub fn inherit_group(&mut self, child: &Process, parent: &Process) {
        child.group.store(parent.group(), Ordering::Relaxed);
        child.session.store(parent.session(), Ordering::Relaxed);
    }
}
