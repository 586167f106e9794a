//! Interval timers (setitimer, alarm) and POSIX timers (timer_create).

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};

use super::cpu_limit::CpuLimit;
use super::timers::{Expire, Timer, now};
use super::{Clock, SECOND_NS};
use crate::errno::{EAGAIN, EINVAL};
use crate::process::Process;
use crate::process::limits::{RLIM_INFINITY, Resource};
use crate::signal::send::{Origin, to_process, to_thread};
use crate::signal::{SIGALRM, SIGPROF, SIGVTALRM, SigInfo};
use crate::sync::SpinLock;
use crate::{Result, Thread};

/// Most POSIX timers of a process: bounds kernel memory.
const POSIX_TIMERS_MAX: usize = 65_536;

/// Value and period as user code sets and reads them (ns); a value of 0 means disarmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    pub value: u64,
    pub interval: u64,
}

/// Who is told at expiry.
#[derive(Clone)]
pub enum Notify {
    Nobody,
    /// The process; its signal and the value that goes with it.
    Process {
        signal: u32,
        value: u64,
    },
    /// One thread.
    Thread {
        thread: Weak<Thread>,
        signal: u32,
        value: u64,
    },
}

/// A timer on any clock that sends a signal.
pub struct SignalTimer {
    /// `None` for setitimer's, whose signals carry no timer information.
    id: Option<u32>,
    process: Weak<Process>,
    clock: Clock,
    notify: Notify,
    state: SpinLock<State>,
    timer: Arc<Timer>,
}

#[derive(Default)]
struct State {
    /// Time of expiry on `clock`, or 0.
    expiry: u64,
    interval: u64,
    /// Expiries beyond the one that the last delivered signal stood for.
    overrun: u32,
    /// What the signal that was taken last told.
    told: u32,
}

/// CPU-time timers look again after at most this long (ns): the clock may have stood still.
const CPU_POLL_MIN: u64 = 1_000_000;

impl SignalTimer {
    fn new(process: &Arc<Process>, id: Option<u32>, clock: Clock, notify: Notify) -> Arc<Self> {
        Arc::new(SignalTimer {
            id,
            process: Arc::downgrade(process),
            clock,
            notify,
            state: SpinLock::new(State::default()),
            timer: Timer::new(),
        })
    }

    /// Time to the next expiry, and the period.
    pub fn get(&self) -> Setting {
        let now = self.clock.now();
        let state = self.state.lock();
        let value = match state.expiry {
            0 => 0,
            expiry => expiry.saturating_sub(now).max(1),
        };
        Setting {
            value,
            interval: state.interval,
        }
    }

    /// Arms it; `absolute`: the value is a time on its clock. The old setting.
    pub fn set(self: &Arc<Self>, new: Setting, absolute: bool) -> Setting {
        let old = self.get();
        let clock_now = self.clock.now();
        let mut state = self.state.lock();
        state.interval = new.interval;
        (state.overrun, state.told) = (0, 0);
        if new.value == 0 {
            state.expiry = 0;
            drop(state);
            self.timer.disarm();
            return old;
        }
        let expiry = if absolute {
            new.value
        } else {
            clock_now.saturating_add(new.value)
        };
        state.expiry = expiry.max(1);
        drop(state);
        let target: Weak<dyn Expire> = Arc::<Self>::downgrade(self);
        self.timer.arm(self.wake_time(expiry), target);
        old
    }

    /// The time of its clock.
    pub fn clock_now(&self) -> u64 {
        self.clock.now()
    }

    /// Expiries that the last signal stood for besides its own (timer_getoverrun): those since then
    /// count for the next.
    pub fn last_overrun(&self) -> u32 {
        self.state.lock().told
    }

    /// The same when its signal is taken: expiries that nobody has seen to yet count as well, or a busy
    /// machine would tell of too few. To be called under the lock of the pending signals (so `now` is
    /// asked before): an expiry between the two would begin the count of the next signal.
    pub fn overrun_when_taken(&self, now: u64) -> u32 {
        let mut state = self.state.lock();
        if state.interval != 0 && state.expiry != 0 && now >= state.expiry {
            let missed = (now - state.expiry) / state.interval + 1;
            state.expiry += missed * state.interval;
            let all = u64::from(state.overrun).saturating_add(missed);
            state.overrun = all.min(i32::MAX as u64) as u32;
        }
        state.told = state.overrun;
        state.told
    }

    fn wake_time(&self, expiry: u64) -> u64 {
        let at = self.clock.to_monotonic(expiry);
        if self.clock.is_cpu() {
            at.max(now() + CPU_POLL_MIN)
        } else {
            at
        }
    }

    /// Whether the last signal of this (POSIX) timer has not been taken yet.
    fn is_pending(&self) -> bool {
        let Some(id) = self.id else { return false };
        match &self.notify {
            Notify::Nobody => false,
            Notify::Process { .. } => self
                .process
                .upgrade()
                .is_some_and(|process| process.signals.has_timer(id)),
            Notify::Thread { thread, .. } => thread
                .upgrade()
                .is_some_and(|thread| thread.signals.has_timer(id)),
        }
    }

    fn send(&self, overrun: u32) {
        let Some(process) = self.process.upgrade() else {
            return;
        };
        let info = |signal, value| match self.id {
            Some(id) => SigInfo::timer(signal, id, overrun, value),
            None => SigInfo::kernel(signal),
        };
        // A full queue loses the signal; the overrun count says so.
        let _ = match &self.notify {
            Notify::Nobody => Ok(()),
            Notify::Process { signal, value } => {
                to_process(&process, info(*signal, *value), Origin::Inside)
            }
            Notify::Thread {
                thread,
                signal,
                value,
            } => match thread.upgrade() {
                Some(thread) => to_thread(&thread, info(*signal, *value), Origin::Inside),
                None => Ok(()),
            },
        };
    }
}

impl Expire for SignalTimer {
    fn expire(&self, _now: u64) -> Option<u64> {
        let clock_now = self.clock.now();
        let mut state = self.state.lock();
        if state.expiry == 0 {
            return None;
        }
        if clock_now < state.expiry {
            let expiry = state.expiry;
            drop(state);
            return Some(self.wake_time(expiry));
        }
        if state.interval == 0 {
            state.expiry = 0;
            state.overrun = 0;
            drop(state);
            self.send(0);
            return None;
        }
        let missed = (clock_now - state.expiry) / state.interval;
        state.expiry += (missed + 1) * state.interval;
        let (expiry, known) = (state.expiry, state.overrun);
        drop(state);
        // While the last signal has not been taken, this expiry is one more that it stands for.
        let most = i32::MAX as u64;
        let waiting = self.is_pending();
        let overrun = match waiting {
            true => u64::from(known)
                .saturating_add(missed)
                .saturating_add(1)
                .min(most),
            false => missed.min(most),
        } as u32;
        self.state.lock().overrun = overrun;
        if !waiting {
            self.send(overrun);
        }
        Some(self.wake_time(expiry))
    }
}

/// A process's timers.
#[derive(Default)]
pub struct ProcessTimers {
    inner: SpinLock<Timers>,
}

#[derive(Default)]
struct Timers {
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    intervals: [Option<Arc<SignalTimer>>; 3],
    posix: BTreeMap<u32, Arc<SignalTimer>>,
    next_id: u32,
    /// RLIMIT_CPU.
    cpu_limit: Option<Arc<CpuLimit>>,
}

impl ProcessTimers {
    /// The interval timer `which` (0, 1, 2), made when first needed; EINVAL.
    pub fn interval(&self, process: &Arc<Process>, which: i32) -> Result<Arc<SignalTimer>> {
        let (clock, signal) = match which {
            0 => (Clock::Monotonic, SIGALRM),
            1 => (Clock::Process(process.clone()), SIGVTALRM),
            2 => (Clock::Process(process.clone()), SIGPROF),
            _ => return Err(EINVAL.because("no such interval timer")),
        };
        let mut inner = self.inner.lock();
        let timer = inner.intervals[which as usize].get_or_insert_with(|| {
            SignalTimer::new(process, None, clock, Notify::Process { signal, value: 0 })
        });
        Ok(timer.clone())
    }

    /// Watches the CPU time if RLIMIT_CPU says so.
    pub fn watch_cpu_limit(&self, process: &Arc<Process>) {
        let limit = process.limits.get(Resource::Cpu);
        let is_limited = limit.soft != RLIM_INFINITY || limit.hard != RLIM_INFINITY;
        let fresh = is_limited.then(|| CpuLimit::start(process));
        let old = core::mem::replace(&mut self.inner.lock().cpu_limit, fresh);
        drop(old);
    }

    /// timer_create: its id. EAGAIN when there are too many.
    pub fn create(
        &self,
        process: &Arc<Process>,
        clock: Clock,
        notify: impl FnOnce(u32) -> Notify,
    ) -> Result<u32> {
        // Each keeps an entry in the queue of signals for itself.
        let queued = process.limits.get(Resource::PendingSignals).soft;
        let mut inner = self.inner.lock();
        if inner.posix.len() >= POSIX_TIMERS_MAX || inner.posix.len() as u64 >= queued {
            return Err(EAGAIN.because("too many timers"));
        }
        while inner.posix.contains_key(&inner.next_id) {
            inner.next_id = (inner.next_id + 1) & 0x7fff_ffff;
        }
        let id = inner.next_id;
        inner.next_id = (id + 1) & 0x7fff_ffff;
        let timer = SignalTimer::new(process, Some(id), clock, notify(id));
        inner.posix.insert(id, timer);
        Ok(id)
    }

    /// A POSIX timer; EINVAL.
    pub fn get(&self, id: u32) -> Result<Arc<SignalTimer>> {
        self.inner
            .lock()
            .posix
            .get(&id)
            .cloned()
            .ok_or(EINVAL.because("no such timer"))
    }

    /// timer_delete; EINVAL.
    pub fn delete(&self, id: u32) -> Result<()> {
        let timer = self.inner.lock().posix.remove(&id);
        timer.map(drop).ok_or(EINVAL.because("no such timer"))
    }

    /// execve: POSIX timers go, interval timers stay.
    pub fn clear_posix(&self) {
        let timers = core::mem::take(&mut self.inner.lock().posix);
        drop(timers);
    }

    /// The process ends.
    pub fn clear(&self) {
        let timers = core::mem::take(&mut *self.inner.lock());
        drop(timers);
    }
}

/// alarm: seconds left of the old one, rounded as Linux does (never to 0).
pub fn seconds_left(old: Setting) -> u64 {
    match old.value {
        0 => 0,
        value => ((value + SECOND_NS / 2) / SECOND_NS).max(1),
    }
}
