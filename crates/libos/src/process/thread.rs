//! A thread: its identity, its wake-up counter, its pending work.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::Process;
use super::stuck::{Stuck, Views};
use crate::fs::context::FsContext;
use crate::fs::file::OpenFile;
use crate::fs::table::FdTable;
use crate::mm::AddressSpace;
use crate::platform::platform;
use crate::sync::SpinLock;
use crate::{Registers, Result};

bitflags::bitflags! {
    /// Things to do before user code runs again.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Work: u32 {
        /// A signal may be deliverable.
        const SIGNAL = 1;
        /// The thread must end.
        const EXIT = 2;
        /// The address space may not be resident, or must be given up.
        const RESIDENCY = 4;
        /// Job control: stop until continued.
        const STOP = 8;
        /// A system call asked for its saved signal mask to be restored (sigsuspend, ppoll).
        const RESTORE_MASK = 16;
        /// A program of the host's is to be brought in (`process::host_exec`).
        const HOST_EXEC = 32;
        /// A tracer wants one step ([`crate::ptrace::step`]).
        const STEP = 64;
    }
}

/// State with which a thread enters user mode for the first time.
pub struct StartState {
    pub registers: Registers,
    pub fs_base: u64,
    /// Extended state (XSAVE standard format); `None` is the initial state.
    pub fpu: Option<Box<[u8]>>,
}

/// Linux's timer slack for ordinary threads.
const TIMER_SLACK_NS: u64 = 50_000;

/// One thread of a process.
pub struct Thread {
    /// Changes once at most: execve by another thread than the first gives it the process's id.
    tid: AtomicU32,
    pub process: Arc<Process>,
    /// The thread slot it runs on; u32::MAX before the platform has assigned one.
    pub slot: AtomicU32,
    events: AtomicU32,
    work: AtomicU32,
    /// Sleeping in the kernel: its address space may lose its turn.
    pub asleep: AtomicBool,
    pub start: SpinLock<Option<StartState>>,
    files: SpinLock<Arc<FdTable>>,
    fs: SpinLock<Arc<FsContext>>,
    /// Everything signals need (mask, pending, alternate stack).
    pub signals: crate::signal::ThreadSignals,
    /// Everything futexes and thread exit need (clear_child_tid, robust list).
    pub exit: crate::process::exit::ThreadExit,
    pub name: SpinLock<Vec<u8>>,
    /// Where a futex wait stands.
    pub futex: crate::sync::futex::FutexWait,
    pub clock: super::times::ThreadClock,
    /// Faults at a page that is there.
    pub stuck: Stuck,
    /// Faults at two views of one page.
    pub views: Views,
    /// What it may not ask of the kernel.
    pub seccomp: super::seccomp::Seccomp,
    /// prctl(PR_SET_TIMERSLACK), ns; kept, not used.
    pub timer_slack: AtomicU64,
    /// The first 64 CPUs that sched_setaffinity chose, 0: all. Kept, not used.
    pub affinity: AtomicU64,
    /// setpriority: 20 − nice, so that getpriority can return it as it is. Each thread's own, and its
    /// children's. Kept, not used.
    pub priority: AtomicU32,
    /// The scheduling policy with SCHED_RESET_ON_FORK. Kept, not used.
    pub policy: AtomicU32,
    /// What it goes back to: its creator's.
    pub timer_slack_default: AtomicU64,
    /// Its keyrings, its process's and its session's.
    pub keys: crate::keys::ThreadRings,
    /// That it is traced.
    pub tracee: crate::ptrace::Slot,
    /// The call that `--strace` will print when it returns.
    pub trace: SpinLock<Option<crate::trace::Pending>>,
}

impl Thread {
    pub fn new(
        tid: u32,
        process: Arc<Process>,
        files: Arc<FdTable>,
        fs: Arc<FsContext>,
        start: StartState,
    ) -> Thread {
        Thread {
            tid: AtomicU32::new(tid),
            process,
            slot: AtomicU32::new(u32::MAX),
            events: AtomicU32::new(0),
            work: AtomicU32::new(0),
            asleep: AtomicBool::new(false),
            start: SpinLock::new(Some(start)),
            files: SpinLock::new(files),
            fs: SpinLock::new(fs),
            signals: Default::default(),
            stuck: Stuck::default(),
            views: Views::default(),
            seccomp: Default::default(),
            exit: Default::default(),
            name: SpinLock::new(Vec::new()),
            futex: Default::default(),
            clock: super::times::ThreadClock::start(),
            affinity: AtomicU64::new(0),
            priority: AtomicU32::new(20),
            policy: AtomicU32::new(0),
            timer_slack: AtomicU64::new(TIMER_SLACK_NS),
            timer_slack_default: AtomicU64::new(TIMER_SLACK_NS),
            keys: Default::default(),
            tracee: Default::default(),
            trace: SpinLock::new(None),
        }
    }

    /// The thread's id.
    pub fn tid(&self) -> u32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// execve by another thread than the first.
    pub(super) fn set_tid(&self, tid: u32) {
        self.tid.store(tid, Ordering::Relaxed);
    }

    /// Sleeps until notified or the deadline (monotonic, ns); the time does not count as CPU time.
    pub fn sleep(&self, seen: u32, deadline: Option<u64>) {
        self.waiting(|| platform().sleep(self, seen, deadline));
    }

    /// Runs `wait`, a sleep or a host call that waits: its time is not CPU time, and meanwhile the
    /// thread's address space may lose its turn.
    pub fn waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        if crate::trace::is_enabled() {
            crate::trace::unfinished(self);
        }
        self.asleep.store(true, Ordering::SeqCst);
        crate::mm::residency::note_sleep(self);
        let result = self.clock.asleep(wait);
        self.asleep.store(false, Ordering::SeqCst);
        super::load::tick(self.clock.last_wake());
        result
    }

    pub fn mm(&self) -> Arc<AddressSpace> {
        self.process.mm()
    }

    pub fn files(&self) -> Arc<FdTable> {
        self.files.lock().clone()
    }

    /// The open file behind a descriptor; EBADF.
    pub fn file(&self, fd: i32) -> Result<Arc<OpenFile>> {
        self.files.lock().get(fd)
    }

    pub fn set_files(&self, files: Arc<FdTable>) {
        *self.files.lock() = files;
    }

    pub fn fs(&self) -> Arc<FsContext> {
        self.fs.lock().clone()
    }

    pub fn set_fs(&self, fs: Arc<FsContext>) {
        *self.fs.lock() = fs;
    }

    /// The wake-up counter: read it, look at the condition, then sleep with the value read.
    pub fn event_count(&self) -> u32 {
        self.events.load(Ordering::SeqCst)
    }

    /// Wakes the thread if it sleeps.
    pub fn notify(&self) {
        self.events.fetch_add(1, Ordering::SeqCst);
        platform().wake(self);
    }

    /// Work to do before user code runs.
    pub fn work(&self) -> Work {
        Work::from_bits_retain(self.work.load(Ordering::SeqCst))
    }

    /// The raw word, for the runtime's check on the way to user code.
    pub fn work_word(&self) -> &AtomicU32 {
        &self.work
    }

    pub fn clear_work(&self, work: Work) {
        self.work.fetch_and(!work.bits(), Ordering::SeqCst);
    }

    /// Adds work and makes the thread look at it: wakes it if it sleeps, kicks it out of user code.
    pub fn add_work(&self, work: Work) {
        self.work.fetch_or(work.bits(), Ordering::SeqCst);
        self.events.fetch_add(1, Ordering::SeqCst);
        platform().wake(self);
        platform().kick(self);
    }

    /// Adds work for the calling thread itself.
    pub fn add_own_work(&self, work: Work) {
        self.work.fetch_or(work.bits(), Ordering::SeqCst);
    }

    /// Whether a sleeping system call must return (ERESTARTSYS): signal, exit or stop pending.
    pub fn interrupted(&self) -> bool {
        self.work()
            .intersects(Work::SIGNAL | Work::EXIT | Work::STOP)
    }
}
