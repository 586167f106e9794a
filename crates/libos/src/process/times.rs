//! CPU time.
//!
//! The host does not tell how long a thread ran. Time outside of sleeps counts as CPU time: an
//! upper bound that is exact while there are enough CPUs.

use core::sync::atomic::{AtomicU64, Ordering};

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
}

impl ThreadClock {
    pub fn start() -> ThreadClock {
        ThreadClock {
            started: platform().monotonic(),
            asleep: AtomicU64::new(0),
            since: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
        }
    }

    /// Runs `sleep`, whose duration does not count. Also for host calls that wait.
    pub fn asleep<T>(&self, sleep: impl FnOnce() -> T) -> T {
        let since = platform().monotonic();
        self.since.store(since, Ordering::Relaxed);
        let result = sleep();
        let slept = platform().monotonic().saturating_sub(since);
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
    /// CPU time of threads that have ended (ns).
    pub ended_threads: AtomicU64,
    /// CPU time of children that were waited for, and theirs (ns).
    pub children: AtomicU64,
    /// Monotonic time of the process's start (ns).
    pub started: AtomicU64,
    pub ended_sleeps: AtomicU64,
    pub children_sleeps: AtomicU64,
}

impl Process {
    /// CPU time of all its threads (ns).
    pub fn cpu_time(&self) -> u64 {
        let live: u64 = self
            .live_threads()
            .iter()
            .map(|thread| thread.clock.cpu_time())
            .sum();
        live + self.times.ended_threads.load(Ordering::Relaxed)
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
