//! Processes and threads.
//!
//! A [`Process`] is what Linux calls a thread group; a [`thread::Thread`] runs on one thread slot
//! of the enclave for its whole life. [`table`] holds the family tree; everything that concerns
//! more than one process (parents, groups, sessions, zombies) changes under its lock only.

pub mod boot;
pub mod bpf;
pub mod clone;
pub mod core_dump;
pub mod credentials;
pub mod exec;
pub mod exit;
pub mod host_exec;
pub mod limits;
pub mod load;
pub mod pidfd;
pub mod program;
pub mod seccomp;
pub mod string_move;
pub mod stuck;
pub mod table;
#[cfg(test)]
pub(crate) mod tests;
pub mod thread;
pub mod times;
pub mod users;
pub mod wait;

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::mm::AddressSpace;
use crate::ptrace::Tracee;
use crate::signal::ProcessSignals;
use crate::sync::SpinLock;
use crate::sync::wait::WaitQueue;
use credentials::By;
use thread::Thread;

/// A thread group.
pub struct Process {
    pub pid: u32,
    /// Never used again, as process ids may be.
    pub serial: u64,
    /// User memory. Replaced by execve; shared with the parent under CLONE_VM.
    mm: SpinLock<Arc<AddressSpace>>,
    /// Copies of what the table says, so that getppid and its like take no lock.
    parent_pid: AtomicU32,
    group: AtomicU32,
    session: AtomicU32,
    pub threads: SpinLock<Vec<Weak<Thread>>>,
    pub credentials: SpinLock<credentials::Credentials>,
    pub signals: ProcessSignals,
    pub limits: limits::Limits,
    pub times: times::ProcessTimes,
    pub timers: crate::time::ProcessTimers,
    /// Woken when a child ends, stops or continues.
    pub children_changed: Arc<WaitQueue>,
    /// Woken when this process ends (pidfd).
    pub ended: Arc<WaitQueue>,
    /// Signal to the parent at the end: SIGCHLD, or what clone asked for; 0 for none.
    pub exit_signal: AtomicU32,
    /// Bit 32: the whole group ends, with the status in the lower half.
    group_exit: AtomicU64,
    /// The thread that ends all others and stays, while it does; or 0.
    staying: AtomicU32,
    /// execve has run since fork (setpgid by the parent is then refused).
    pub has_executed: AtomicBool,
    /// ioprio_set: class and level.
    pub io_priority: AtomicU32,
    /// membarrier's registrations, as its commands' bits.
    pub barriers: AtomicU32,
    /// The thread whose vfork waits for this process.
    vfork_parent: SpinLock<Option<Weak<Thread>>>,
    /// The thread that forked this process: PTRACE_TRACEME makes it the tracer.
    pub creator: SpinLock<Weak<Thread>>,
    /// That the first thread is traced, which outlives it.
    pub leader_tracee: SpinLock<Option<Arc<Tracee>>>,
    /// The threads that those of this process trace.
    pub tracees: SpinLock<Vec<Arc<Tracee>>>,
    /// This is the container's agent, which will become its application (see `exec::commit`).
    pub agent: AtomicBool,
    /// prctl: PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG.
    pub subreaper: AtomicBool,
    pub dumpable: AtomicU32,
    /// PR_SET_THP_DISABLE. Kept, not used.
    pub no_huge_pages: AtomicU32,
    pub no_new_privileges: AtomicBool,
    pub parent_death_signal: AtomicU32,
    /// loginuid of /proc: u32::MAX until somebody has logged in.
    pub login_uid: AtomicU32,
    /// oom_score_adj of /proc, kept as written.
    pub oom_score_adj: AtomicU32,
    pub personality: AtomicU32,
    /// What the other threads leave for a core file.
    pub dumped: core_dump::OtherThreads,
    /// /proc/<pid>/coredump_filter.
    pub core_filter: AtomicU32,
    /// What was written to /dev/attestation for the next report or quote.
    pub attestation: SpinLock<Option<alloc::boxed::Box<crate::attestation::Inputs>>>,
}

impl Process {
    /// I/O priority of a process that has chosen none: class none, level 4.
    pub const IO_PRIORITY_NONE: u32 = 4;

    /// Whether `caller` may look into this process's memory and files.
    pub fn may_be_examined(&self, caller: &Process, by: By) -> bool {
        if self.pid == caller.pid {
            return true;
        }
        // One lock at a time.
        let own = caller.credentials.lock().clone();
        let dumpable = self.dumpable.load(Ordering::Relaxed) == 1;
        let theirs = self.credentials.lock();
        own.may_examine(by, &theirs, dumpable)
    }

    pub fn new(pid: u32, mm: Arc<AddressSpace>) -> Arc<Process> {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        Arc::new(Process {
            pid,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            mm: SpinLock::new(mm),
            parent_pid: AtomicU32::new(0),
            group: AtomicU32::new(pid),
            session: AtomicU32::new(pid),
            threads: SpinLock::new(Vec::new()),
            credentials: SpinLock::new(credentials::Credentials::default()),
            signals: ProcessSignals::default(),
            limits: limits::Limits::default(),
            times: Default::default(),
            timers: Default::default(),
            children_changed: WaitQueue::new(),
            ended: WaitQueue::new(),
            exit_signal: AtomicU32::new(crate::signal::SIGCHLD),
            group_exit: AtomicU64::new(0),
            staying: AtomicU32::new(0),
            has_executed: AtomicBool::new(false),
            io_priority: AtomicU32::new(Process::IO_PRIORITY_NONE),
            barriers: AtomicU32::new(0),
            vfork_parent: SpinLock::new(None),
            creator: SpinLock::new(Weak::new()),
            leader_tracee: SpinLock::new(None),
            tracees: SpinLock::new(Vec::new()),
            agent: AtomicBool::new(false),
            subreaper: AtomicBool::new(false),
            dumpable: AtomicU32::new(1),
            no_huge_pages: AtomicU32::new(0),
            no_new_privileges: AtomicBool::new(false),
            parent_death_signal: AtomicU32::new(0),
            login_uid: AtomicU32::new(u32::MAX),
            oom_score_adj: AtomicU32::new(0),
            personality: AtomicU32::new(0),
            dumped: Default::default(),
            core_filter: AtomicU32::new(core_dump::FILTER_DEFAULT),
            attestation: SpinLock::new(None),
        })
    }

    pub fn mm(&self) -> Arc<AddressSpace> {
        self.mm.lock().clone()
    }

    /// execve: replaces the address space.
    pub fn set_mm(&self, mm: Arc<AddressSpace>) {
        let old = core::mem::replace(&mut *self.mm.lock(), mm);
        // Tearing it down may take long: not under the lock.
        drop(old);
    }

    /// Process id of the parent; 0 for the first process.
    pub fn parent_pid(&self) -> u32 {
        self.parent_pid.load(Ordering::Relaxed)
    }

    /// Process group.
    pub fn group(&self) -> u32 {
        self.group.load(Ordering::Relaxed)
    }

    /// Session.
    pub fn session(&self) -> u32 {
        self.session.load(Ordering::Relaxed)
    }

    /// The parent, unless it is the host (first process).
    pub fn parent(&self) -> Option<Arc<Process>> {
        table::process(self.parent_pid())
    }

    /// Threads that still run.
    pub fn live_threads(&self) -> Vec<Arc<Thread>> {
        self.threads
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// The thread that the process began with, or any other if that one has ended.
    pub fn main_thread(&self) -> Option<Arc<Thread>> {
        self.threads.lock().iter().find_map(Weak::upgrade)
    }

    /// Status that the whole process ends with, once that is decided.
    pub fn group_exit(&self) -> Option<u32> {
        let value = self.group_exit.load(Ordering::SeqCst);
        (value >> 32 != 0).then_some(value as u32)
    }

    /// Whether the process has ended (it may still be a zombie).
    pub fn has_ended(&self) -> bool {
        self.group_exit.load(Ordering::SeqCst) >> 33 != 0
    }

    /// Lets the parent that vforked this process go on.
    pub fn release_vfork_parent(&self) {
        let waiting = self.vfork_parent.lock().take();
        if let Some(thread) = waiting.and_then(|thread| thread.upgrade()) {
            thread.notify();
        }
    }
}
