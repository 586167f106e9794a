//! CPU time.
//!
//! The host does not tell how long a thread ran. Time outside of sleeps counts as CPU time: an
//! upper bound that is exact while there are enough CPUs. System time is what calls of the kernel took
//! without their sleeps: measured for most calls, by a sample for those that are as fast as the clock
//! ([`crate::syscall`]), and never more than all of it.

use core::ops::Add;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Process;
use crate::platform::platform;

/// Nanoseconds in a clock tick (USER_HZ is 100).
pub const TICK_NS: u64 = 10_000_000;

/// A thread's CPU clock.
pub struct ThreadClock {
    /// Monotonic time at the start (ns).
    pub started: u64,
    /// Time spent asleep since (ns).
    asleep: AtomicU64,
    /// Monotonic time at which the present sleep began, or 0.
    since: AtomicU64,
    /// Sleeps so far (voluntary context switches).
    pub sleeps: AtomicU64,
    /// Monotonic time at which the last sleep ended.
    woken: AtomicU64,
    /// Time in calls of the kernel (ns). Only the thread itself writes it.
    system: AtomicU64,
    /// Fast calls, of which a few are measured.
    calls: AtomicU32,
}

/// CPU time (ns).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    pub user: u64,
    pub system: u64,
}

impl CpuTime {
    fn new(all: u64, system: u64) -> CpuTime {
        let system = system.min(all);
        CpuTime {
            user: all - system,
            system,
        }
    }

    pub fn all(self) -> u64 {
        self.user + self.system
    }

    /// In clock ticks: user, system.
    pub fn ticks(self) -> [u64; 2] {
        [self.user / TICK_NS, self.system / TICK_NS]
    }
}

impl Add for CpuTime {
    type Output = CpuTime;

    fn add(self, other: CpuTime) -> CpuTime {
        CpuTime {
            user: self.user + other.user,
            system: self.system + other.system,
        }
    }
}

/// CPU time that is added up.
#[derive(Default)]
pub struct TimeSum {
    user: AtomicU64,
    system: AtomicU64,
}

impl TimeSum {
    pub fn add(&self, time: CpuTime) {
        self.user.fetch_add(time.user, Ordering::Relaxed);
        self.system.fetch_add(time.system, Ordering::Relaxed);
    }

    pub fn get(&self) -> CpuTime {
        CpuTime {
            user: self.user.load(Ordering::Relaxed),
            system: self.system.load(Ordering::Relaxed),
        }
    }
}

/// CPU time of all threads of the container that have ended.
pub static ENDED: TimeSum = TimeSum {
    user: AtomicU64::new(0),
    system: AtomicU64::new(0),
};

impl ThreadClock {
    pub fn start() -> ThreadClock {
        ThreadClock {
            started: platform().monotonic(),
            asleep: AtomicU64::new(0),
            since: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            woken: AtomicU64::new(0),
            system: AtomicU64::new(0),
            calls: AtomicU32::new(0),
        }
    }

    /// When the last sleep ended (monotonic, ns).
    pub fn last_wake(&self) -> u64 {
        self.woken.load(Ordering::Relaxed)
    }

    /// Runs a call of the kernel, whose time without sleeps counts `weight` times as system time.
    pub fn in_kernel<T>(&self, weight: u64, call: impl FnOnce() -> T) -> T {
        let asleep = || self.asleep.load(Ordering::Relaxed);
        let (since, slept) = (platform().monotonic(), asleep());
        let result = call();
        let took = platform().monotonic().saturating_sub(since);
        let took = took.saturating_sub(asleep() - slept);
        let sum = self.system.load(Ordering::Relaxed) + took * weight;
        self.system.store(sum, Ordering::Relaxed);
        result
    }

    /// Whether this fast call is the one in `every` that is measured.
    pub fn is_sample(&self, every: u32) -> bool {
        let calls = self.calls.load(Ordering::Relaxed).wrapping_add(1);
        self.calls.store(calls, Ordering::Relaxed);
        calls.is_multiple_of(every)
    }

    /// CPU time so far, divided.
    pub fn times(&self) -> CpuTime {
        CpuTime::new(self.cpu_time(), self.system.load(Ordering::Relaxed))
    }

    /// Runs `sleep`, whose duration does not count. Also for host calls that wait.
    pub fn asleep<T>(&self, sleep: impl FnOnce() -> T) -> T {
        let since = platform().monotonic();
        self.since.store(since, Ordering::Relaxed);
        let result = sleep();
        let now = platform().monotonic();
        let slept = now.saturating_sub(since);
        self.woken.store(now, Ordering::Relaxed);
        self.asleep.fetch_add(slept, Ordering::Relaxed);
        self.since.store(0, Ordering::Relaxed);
        self.sleeps.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// The thread ends: its clock stands still.
    pub fn finish(&self) {
        self.since.store(platform().monotonic(), Ordering::Relaxed);
    }

    /// CPU time so far (ns).
    pub fn cpu_time(&self) -> u64 {
        let now = match self.since.load(Ordering::Relaxed) {
            0 => platform().monotonic(),
            since => since,
        };
        now.saturating_sub(self.started)
            .saturating_sub(self.asleep.load(Ordering::Relaxed))
    }
}

/// What ended threads and reaped children leave behind.
#[derive(Default)]
pub struct ProcessTimes {
    /// CPU time of threads that have ended.
    pub ended_threads: TimeSum,
    /// CPU time of children that were waited for, and theirs.
    pub children: TimeSum,
    /// Monotonic time of the process's start (ns).
    pub started: AtomicU64,
    pub ended_sleeps: AtomicU64,
    pub children_sleeps: AtomicU64,
}

impl Process {
    /// CPU time of all its threads (ns).
    pub fn cpu_time(&self) -> u64 {
        self.cpu_times().all()
    }

    /// The same, divided.
    pub fn cpu_times(&self) -> CpuTime {
        let live = self.live_threads();
        let times = live.iter().map(|thread| thread.clock.times());
        times.fold(self.times.ended_threads.get(), CpuTime::add)
    }

    /// Sleeps of all its threads.
    pub fn sleeps(&self) -> u64 {
        let live = self.live_threads();
        let live: u64 = live
            .iter()
            .map(|t| t.clock.sleeps.load(Ordering::Relaxed))
            .sum();
        live + self.times.ended_sleeps.load(Ordering::Relaxed)
    }
}
