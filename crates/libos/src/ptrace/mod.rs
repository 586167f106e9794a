//! ptrace(2) between the processes of a container.
//!
//! Threads trace threads: who is traced has a [`Tracee`], which its own thread, its process (for the
//! first thread) and its tracer's process refer to.
//!
//! ```text
//!             halt                   wait                PTRACE_CONT, SYSCALL, DETACH …
//!   running ───────► stopped ───────► stopped, reported ─────────────────────────────► running
//!                       │ PTRACE_LISTEN                                                   │
//!                       ▼                                                                 ▼
//!                   listening ── SIGCONT, PTRACE_INTERRUPT ──► stopped            exited, then waited for
//! ```
//!
//! - [`relation`]: who traces whom, from PTRACE_TRACEME, ATTACH and SEIZE to the end of either.
//! - [`stop`]: the stops, as the tracee makes them: it sleeps in the kernel with its registers in
//!   [`Stop::snapshot`], where the tracer reads and changes them.
//! - [`report`]: what wait(2) tells a tracer.
//! - [`registers`]: `struct user_regs_struct`.
//! - [`step`]: single steps, which a CPU does not offer in an enclave.
//!
//! Programs see their memory as they know it: [`crate::mm::debug`] reads text without what the
//! library OS has rewritten in it.
//!
//! # Invariants
//! A relation begins and ends under the process table's lock: then the tracee is in its tracer's
//! list, or nowhere. A stop begins and ends under the tracee's state lock: while [`State::stop`] is
//! there, the thread runs no code of the program. Only SIGKILL ends it without the tracer.
//!
//! Nothing here is known to the host, and a debugger of the host learns nothing by it.
//!
//! Lock order: process table → a tracer's list → a tracee's state. Nothing is locked under a state.

pub mod registers;
pub mod relation;
pub mod report;
pub mod step;
pub mod stop;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::process::Process;
use crate::process::credentials::CAP_SYS_PTRACE;
use crate::signal::SigInfo;
use crate::sync::SpinLock;
use crate::{Result, Thread};
pub use registers::Snapshot;

bitflags::bitflags! {
    /// PTRACE_SETOPTIONS.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Options: u64 {
        const SYSGOOD = 1;
        const FORK = 1 << 1;
        const VFORK = 1 << 2;
        const CLONE = 1 << 3;
        const EXEC = 1 << 4;
        const VFORK_DONE = 1 << 5;
        const EXIT = 1 << 6;
        const SECCOMP = 1 << 7;
        const EXITKILL = 1 << 20;
        const SUSPEND_SECCOMP = 1 << 21;
    }
}

/// PTRACE_EVENT_…, with the number that a status has above the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Fork = 1,
    Vfork = 2,
    Clone = 3,
    Exec = 4,
    VforkDone = 5,
    Exit = 6,
    Seccomp = 7,
    Stop = 128,
}

impl Event {
    /// The option that asks for it; `None` for what comes without.
    fn option(self) -> Option<Options> {
        Some(match self {
            Event::Fork => Options::FORK,
            Event::Vfork => Options::VFORK,
            Event::Clone => Options::CLONE,
            Event::Exec => Options::EXEC,
            Event::VforkDone => Options::VFORK_DONE,
            Event::Exit => Options::EXIT,
            Event::Seccomp => Options::SECCOMP,
            Event::Stop => return None,
        })
    }
}

/// What a stopped thread does once it goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Run,
    /// Stops at the entry and exit of system calls.
    Calls,
    /// Stops at their entry, and does not carry them out.
    Emulate,
}

/// Why a thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Signal,
    CallEntry,
    CallExit,
    Event(Event),
    /// Job control, for who was not seized.
    Group,
}

/// A thread that has stopped for its tracer.
pub struct Stop {
    pub kind: Kind,
    /// What a status has in its upper bytes: a signal, and above it an event.
    pub code: u32,
    /// Of a stop by job control nothing is known.
    pub info: Option<SigInfo>,
    pub snapshot: Box<Snapshot>,
    /// wait has told of it.
    reported: bool,
}

/// What the tracer leaves for a thread that goes on.
struct Resumed {
    snapshot: Box<Snapshot>,
    info: Option<SigInfo>,
    signal: u32,
    step: bool,
}

/// See [`Tracee`].
#[derive(Default)]
pub struct State {
    /// The relation has ended.
    ended: bool,
    /// By PTRACE_SEIZE.
    pub seized: bool,
    pub options: Options,
    mode: Mode,
    stop: Option<Stop>,
    resumed: Option<Resumed>,
    /// PTRACE_LISTEN: stopped, but SIGCONT or PTRACE_INTERRUPT make it report again.
    listening: bool,
    /// A stop with PTRACE_EVENT_STOP is due.
    trap: bool,
    /// PTRACE_GETEVENTMSG.
    message: u64,
    /// The thread has ended with this status.
    exited: Option<u32>,
}

/// A thread that is traced.
pub struct Tracee {
    /// The thread's id; execve may change it.
    tid: AtomicU32,
    thread: Weak<Thread>,
    process: Arc<Process>,
    tracer: Weak<Thread>,
    tracer_process: Weak<Process>,
    state: SpinLock<State>,
}

/// A thread's place for its [`Tracee`].
#[derive(Default)]
pub struct Slot {
    /// Whether there is one, so that asking costs a load.
    is_set: AtomicBool,
    tracee: SpinLock<Option<Arc<Tracee>>>,
}

impl Slot {
    /// Whether the thread is traced.
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed)
    }

    pub fn get(&self) -> Option<Arc<Tracee>> {
        self.is_set().then(|| self.tracee.lock().clone()).flatten()
    }

    fn set(&self, tracee: Option<Arc<Tracee>>) {
        let mut slot = self.tracee.lock();
        self.is_set.store(tracee.is_some(), Ordering::Relaxed);
        *slot = tracee;
    }
}

impl Tracee {
    pub fn tid(&self) -> u32 {
        self.tid.load(Ordering::Relaxed)
    }

    pub fn thread(&self) -> Option<Arc<Thread>> {
        self.thread.upgrade()
    }

    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// The tracing thread's id; 0 when it has ended.
    pub fn tracer_id(&self) -> u32 {
        self.tracer.upgrade().map_or(0, |tracer| tracer.tid())
    }

    pub fn is_tracer(&self, thread: &Arc<Thread>) -> bool {
        core::ptr::eq(self.tracer.as_ptr(), Arc::as_ptr(thread))
    }

    fn is_leader(&self) -> bool {
        self.tid() == self.process.pid
    }

    /// Whether the thread rests in a stop.
    pub fn is_stopped(&self) -> bool {
        self.state.lock().stop.is_some()
    }

    /// Whether the tracer may read and write the memory: not once the process has become another
    /// user's by execve, or has forbidden it, unless the tracer may trace everybody.
    pub fn may_access_memory(&self) -> bool {
        self.process.dumpable.load(Ordering::Relaxed) == 1 || self.tracer_is_privileged()
    }

    fn tracer_is_privileged(&self) -> bool {
        let tracer = self.tracer_process.upgrade();
        tracer.is_some_and(|tracer| tracer.credentials.lock().has(CAP_SYS_PTRACE))
    }

    /// Works on the state of a stopped thread; ESRCH where it is not stopped.
    pub fn stopped<T>(&self, work: impl FnOnce(&mut State) -> T) -> Result<T> {
        let mut state = self.state.lock();
        if state.stop.is_none() || state.listening || state.ended {
            return Err(crate::errno::ESRCH.because("the thread is not stopped"));
        }
        Ok(work(&mut state))
    }

    /// The same with its stop only.
    pub fn at_stop<T>(&self, work: impl FnOnce(&mut Stop) -> T) -> Result<T> {
        self.stopped(|state| state.stop.as_mut().map(work))?
            .ok_or(crate::errno::ESRCH)
    }
}

impl State {
    pub fn message(&self) -> u64 {
        self.message
    }
}

/// Whether execve may not give the thread another's rights: it is traced by one who could then use
/// them.
pub fn keeps_rights(thread: &Thread) -> bool {
    thread
        .tracee
        .get()
        .is_some_and(|tracee| !tracee.tracer_is_privileged())
}
