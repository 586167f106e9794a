//! Signals: what is pending, what is blocked, what happens on delivery.
//!
//! - [`ProcessSignals`]: actions, process-wide pending signals, job-control state.
//! - [`ThreadSignals`]: mask, the thread's own pending signals, alternate stack.
//! - [`send`]: generation; [`deliver`]: delivery; [`frame`]: the user's signal frame.
//!
//! # Invariants
//! The masks of pending signals are mirrored in atomics, written under the lock of their queue.
//! A sender publishes the pending bit and then reads `blocked`; a thread that changes `blocked`
//! stores it and then reads the pending bits: one of the two always sees the other.
//!
//! Lock order: process table → group state → actions → pending queues → wait queues.

pub mod action;
pub mod deliver;
pub mod frame;
pub mod info;
pub mod pending;
pub mod send;
#[cfg(test)]
mod tests;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::platform::Exception;
use crate::sync::SpinLock;
use crate::sync::wait::WaitQueue;
use crate::time::interval::SignalTimer;
use crate::{Result, Thread};
pub use action::{Action, Actions};
pub use info::SigInfo;
use pending::Pending;

macro_rules! signals {
    ($($name:ident = $number:literal,)*) => {
        $(pub const $name: u32 = $number;)*

        /// The name of a standard signal.
        pub fn name(signal: u32) -> Option<&'static str> {
            match signal { $($number => Some(stringify!($name)),)* _ => None }
        }
    };
}

signals! {
    SIGHUP = 1, SIGINT = 2, SIGQUIT = 3, SIGILL = 4, SIGTRAP = 5, SIGABRT = 6, SIGBUS = 7,
    SIGFPE = 8, SIGKILL = 9, SIGUSR1 = 10, SIGSEGV = 11, SIGUSR2 = 12, SIGPIPE = 13, SIGALRM = 14,
    SIGTERM = 15, SIGSTKFLT = 16, SIGCHLD = 17, SIGCONT = 18, SIGSTOP = 19, SIGTSTP = 20,
    SIGTTIN = 21, SIGTTOU = 22, SIGURG = 23, SIGXCPU = 24, SIGXFSZ = 25, SIGVTALRM = 26,
    SIGPROF = 27, SIGWINCH = 28, SIGIO = 29, SIGPWR = 30, SIGSYS = 31,
}

/// Highest signal number (_NSIG).
pub const SIGNAL_MAX: u32 = 64;
/// First real-time signal as the kernel counts them.
pub const SIGRTMIN: u32 = 32;

/// The bit of `signal` in a mask.
pub const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// Signals that cannot be caught, blocked or ignored.
pub const UNBLOCKABLE: u64 = bit(SIGKILL) | bit(SIGSTOP);
/// Signals whose default action is to do nothing.
pub const IGNORED_BY_DEFAULT: u64 = bit(SIGCONT) | bit(SIGCHLD) | bit(SIGWINCH) | bit(SIGURG);
/// Signals whose default action is to stop.
pub const STOPPING: u64 = bit(SIGSTOP) | bit(SIGTSTP) | bit(SIGTTIN) | bit(SIGTTOU);
/// Signals that a fault of the thread itself raises: delivered before all others.
pub const SYNCHRONOUS: u64 =
    bit(SIGSEGV) | bit(SIGBUS) | bit(SIGILL) | bit(SIGTRAP) | bit(SIGFPE) | bit(SIGSYS);
/// Signals whose default action is to dump core: the status then has bit 7 set.
pub const DUMPING: u64 = bit(SIGQUIT)
    | bit(SIGILL)
    | bit(SIGTRAP)
    | bit(SIGABRT)
    | bit(SIGFPE)
    | bit(SIGSEGV)
    | bit(SIGBUS)
    | bit(SIGSYS)
    | bit(SIGXCPU)
    | bit(SIGXFSZ);

/// An alternate stack (sigaltstack).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlternateStack {
    pub base: u64,
    pub size: u64,
    /// SS_AUTODISARM or 0.
    pub flags: u32,
}

impl AlternateStack {
    /// Whether `rsp` is on it (a disarmed or absent stack never is).
    pub fn contains(&self, rsp: u64) -> bool {
        self.flags & frame::SS_AUTODISARM == 0 && self.spans(rsp)
    }

    /// Whether `rsp` is within its memory.
    pub fn spans(&self, rsp: u64) -> bool {
        rsp > self.base && rsp - self.base <= self.size
    }
}

/// What `restart_syscall` continues.
#[derive(Clone, Copy, Debug, Default)]
pub enum Restart {
    #[default]
    None,
    /// clock_nanosleep until a monotonic deadline (ns); address for the remaining time, or 0.
    Sleep { deadline: u64, remaining: u64 },
    /// futex wait until a monotonic deadline.
    Futex {
        address: u64,
        expected: u32,
        bitset: u32,
        private: bool,
        deadline: u64,
    },
    /// poll until a monotonic deadline.
    Poll { fds: u64, count: u32, deadline: u64 },
}

/// A thread's signal state.
#[derive(Default)]
pub struct ThreadSignals {
    /// Written by the thread itself only.
    blocked: AtomicU64,
    /// The mask that sigsuspend and its like return to (Work::RESTORE_MASK).
    saved: AtomicU64,
    /// What sigtimedwait took out of `blocked` for its duration.
    awaited: AtomicU64,
    pending_mask: AtomicU64,
    pending: SpinLock<Pending>,
    pub alternate_stack: SpinLock<AlternateStack>,
    pub restart: SpinLock<Restart>,
    /// The last fault, for the frame: vector, error code, address.
    last_fault: SpinLock<Option<Exception>>,
}

impl ThreadSignals {
    pub fn blocked(&self) -> u64 {
        self.blocked.load(Ordering::SeqCst)
    }

    /// Sets the mask without looking at what becomes deliverable (a thread that does not run yet).
    pub fn set_blocked_raw(&self, mask: u64) {
        self.blocked.store(mask & !UNBLOCKABLE, Ordering::SeqCst);
    }

    pub fn saved(&self) -> u64 {
        self.saved.load(Ordering::Relaxed)
    }

    pub fn pending_mask(&self) -> u64 {
        self.pending_mask.load(Ordering::SeqCst)
    }

    /// Whether a signal of POSIX timer `id` waits to be taken.
    pub fn has_timer(&self, id: u32) -> bool {
        self.pending.lock().has_timer(id)
    }

    /// Adds a signal without looking at what becomes of it (a thread that does not run yet).
    pub fn add_raw(&self, info: SigInfo) {
        // A standard signal is always accepted.
        let _ = self.with_pending(|pending| pending.add(info, usize::MAX));
    }

    /// What is queued for the thread alone.
    pub fn queued(&self) -> Vec<SigInfo> {
        self.with_pending(|pending| pending.infos())
    }

    fn with_pending<T>(&self, change: impl FnOnce(&mut Pending) -> T) -> T {
        let mut pending = self.pending.lock();
        let result = change(&mut pending);
        self.pending_mask.store(pending.mask(), Ordering::SeqCst);
        result
    }
}

/// Job control of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct GroupState {
    /// The signal that stopped the process, or 0.
    pub stopped_by: u32,
    /// Threads that have come to rest since.
    pub stopped_threads: usize,
    /// Counts SIGCONTs, so that a stop decided upon before one does not take effect after it.
    pub continuations: u32,
    /// The stop has been reported to the parent.
    pub stop_complete: bool,
    /// PID 1 only: default actions spare it. A fault of its own takes this away.
    pub unkillable: bool,
}

/// A process's signal state.
pub struct ProcessSignals {
    /// Shared between processes under CLONE_SIGHAND.
    actions: SpinLock<Arc<SpinLock<Actions>>>,
    pending_mask: AtomicU64,
    pending: SpinLock<Pending>,
    pub group: SpinLock<GroupState>,
    /// Woken whenever a signal is queued for the process or one of its threads (signalfd).
    pub queued: Arc<WaitQueue>,
}

impl Default for ProcessSignals {
    fn default() -> ProcessSignals {
        ProcessSignals {
            actions: SpinLock::new(Arc::new(SpinLock::new(Actions::default()))),
            pending_mask: AtomicU64::new(0),
            pending: SpinLock::new(Pending::default()),
            group: SpinLock::new(GroupState::default()),
            queued: WaitQueue::new(),
        }
    }
}

impl ProcessSignals {
    pub fn pending_mask(&self) -> u64 {
        self.pending_mask.load(Ordering::SeqCst)
    }

    /// Whether a signal of POSIX timer `id` waits to be taken.
    pub fn has_timer(&self, id: u32) -> bool {
        self.pending.lock().has_timer(id)
    }

    fn with_pending<T>(&self, change: impl FnOnce(&mut Pending) -> T) -> T {
        let mut pending = self.pending.lock();
        let result = change(&mut pending);
        self.pending_mask.store(pending.mask(), Ordering::SeqCst);
        result
    }

    /// What is queued for the process as a whole.
    pub fn queued_infos(&self) -> Vec<SigInfo> {
        self.with_pending(|pending| pending.infos())
    }

    pub fn actions(&self) -> Arc<SpinLock<Actions>> {
        self.actions.lock().clone()
    }

    /// CLONE_SIGHAND: shares another process's actions.
    pub fn set_actions(&self, actions: Arc<SpinLock<Actions>>) {
        *self.actions.lock() = actions;
    }

    /// The action of one signal.
    pub fn action(&self, signal: u32) -> Action {
        self.actions.lock().lock().get(signal)
    }
}

/// Sets the calling thread's mask and notices what becomes deliverable.
pub fn set_blocked(thread: &Thread, mask: u64) {
    thread
        .signals
        .blocked
        .store(mask & !UNBLOCKABLE, Ordering::SeqCst);
    recalculate(thread);
}

/// Signals that the thread could take now.
pub fn deliverable(thread: &Thread) -> u64 {
    let pending = thread.signals.pending_mask() | thread.process.signals.pending_mask();
    pending & !thread.signals.blocked()
}

/// Sets the calling thread's work bit if a signal is deliverable.
pub fn recalculate(thread: &Thread) {
    if deliverable(thread) != 0 {
        thread.add_own_work(crate::process::thread::Work::SIGNAL);
    }
}

/// Replaces the mask until the call has returned to user mode or a handler has been entered
/// (ppoll, pselect, epoll_pwait, sigsuspend). [`end_temporary_mask`] takes it back when the call
/// was not interrupted.
pub fn begin_temporary_mask(thread: &Thread, mask: u64) {
    thread
        .signals
        .saved
        .store(thread.signals.blocked(), Ordering::Relaxed);
    set_blocked(thread, mask);
}

/// The end of a call with a temporary mask: `interrupted` when it returns EINTR or restarts, so
/// that the handler runs under the temporary mask first.
pub fn end_temporary_mask(thread: &Thread, interrupted: bool) {
    if interrupted {
        thread.add_own_work(crate::process::thread::Work::RESTORE_MASK);
    } else {
        set_blocked(thread, thread.signals.saved());
    }
}

/// Whether [`next_of`] would find one of `mask` for the thread (signalfd's poll).
pub fn has_pending(thread: &Thread, mask: u64) -> bool {
    (thread.signals.pending_mask() | thread.process.signals.pending_mask()) & mask != 0
}

/// Takes the next pending signal of `mask` for the thread, its own queue first (signalfd,
/// sigtimedwait).
pub fn next_of(thread: &Thread, mask: u64) -> Option<SigInfo> {
    if !has_pending(thread, mask) {
        return None;
    }
    let process = &thread.process;
    let timer = |first: Option<&SigInfo>| {
        let id = first.filter(|info| info.code == info::SI_TIMER)?.timer_id();
        let timer = process.timers.get(id).ok()?;
        let now = timer.clock_now();
        Some((id, timer, now))
    };
    let take = |pending: &mut Pending, timer: Option<(u32, Arc<SignalTimer>, u64)>| {
        let mut taken = pending.take(mask)?;
        if let Some((id, timer, now)) = timer
            && (taken.code, taken.timer_id()) == (info::SI_TIMER, id)
        {
            // Expiries since it was sent count too.
            taken.set_overrun(timer.overrun_when_taken(now));
        }
        Some(taken)
    };
    let first = thread
        .signals
        .with_pending(|pending| pending.first(mask).cloned());
    let due = timer(first.as_ref());
    if let Some(taken) = thread.signals.with_pending(|pending| take(pending, due)) {
        return Some(taken);
    }
    let first = process
        .signals
        .with_pending(|pending| pending.first(mask).cloned());
    let due = timer(first.as_ref());
    process.signals.with_pending(|pending| take(pending, due))
}

/// A signal number from user code; EINVAL outside 1..=64.
pub fn checked(signal: i32) -> Result<u32> {
    match u32::try_from(signal) {
        Ok(signal @ 1..=SIGNAL_MAX) => Ok(signal),
        _ => Err(crate::errno::EINVAL.because("no such signal")),
    }
}

/// sigtimedwait begins to wait for the signals in `wanted`.
pub fn begin_awaiting(thread: &Thread, wanted: u64) {
    let blocked = thread.signals.blocked();
    thread
        .signals
        .awaited
        .store(blocked & wanted, Ordering::SeqCst);
    set_blocked(thread, blocked & !wanted);
}

/// It ends: the mask from before.
pub fn end_awaiting(thread: &Thread, blocked: u64) {
    thread.signals.awaited.store(0, Ordering::SeqCst);
    set_blocked(thread, blocked);
}

/// Remembers a fault for the next signal frame.
pub fn note_fault(thread: &Thread, exception: Exception) {
    *thread.signals.last_fault.lock() = Some(exception);
}
