//! Load averages, as Linux computes them (kernel/sched/loadavg.c): how many threads want to run,
//! averaged over 1, 5 and 15 minutes.
//!
//! A thread's CPU time is its time outside of sleeps ([`super::times`]), so what all threads gained
//! between two moments is how many of them ran, on average. Every five seconds, or when somebody looks
//! later than that, the averages move towards it.

use core::sync::atomic::{AtomicU64, Ordering};

use super::table;
use super::times::ENDED;
use crate::platform::platform;
use crate::sync::SpinLock;

/// Bits after the point (FSHIFT).
pub const FRACTION: u32 = 11;
const ONE: u64 = 1 << FRACTION;
/// What is left of an average after five seconds: e^(-5/60), e^(-5/300), e^(-5/900).
const DECAY: [u64; 3] = [1884, 2014, 2037];
const PERIOD_NS: u64 = 5_000_000_000;

struct State {
    averages: [u64; 3],
    /// When they were computed last (ns), and the CPU time of all threads then.
    at: u64,
    used: u64,
}

static STATE: SpinLock<State> = SpinLock::new(State {
    averages: [0; 3],
    at: 0,
    used: 0,
});
/// When they are to be computed next.
static NEXT: AtomicU64 = AtomicU64::new(PERIOD_NS);

/// A thread is about to run again, and no lock is held.
pub fn tick(now: u64) {
    if now >= NEXT.load(Ordering::Relaxed) {
        update(now);
    }
}

fn update(now: u64) {
    // Before the lock: the table has its own.
    let processes = table::processes();
    let threads = processes.iter().flat_map(|process| process.live_threads());
    let live: u64 = threads.map(|thread| thread.clock.cpu_time()).sum();
    let used = live + ENDED.get().all();
    let mut state = STATE.lock();
    let passed = now.saturating_sub(state.at);
    if passed < PERIOD_NS {
        return;
    }
    // A thread that ended in between counts in neither place or in both.
    let ran = used.saturating_sub(state.used);
    let active = (u128::from(ran) * u128::from(ONE) / u128::from(passed)) as u64;
    for (average, decay) in state.averages.iter_mut().zip(DECAY) {
        *average = moved(*average, decay, active, passed / PERIOD_NS);
    }
    state.at = now;
    state.used = used;
    NEXT.store(now + PERIOD_NS, Ordering::Relaxed);
}

/// An average after so many periods in which `active` threads ran.
fn moved(average: u64, decay: u64, active: u64, periods: u64) -> u64 {
    let decay = power(decay, periods);
    let sum = average * decay + active * (ONE - decay);
    // Rounded up while it grows, so that it gets where it goes.
    let up = if active >= average { ONE - 1 } else { 0 };
    (sum + up) / ONE
}

/// A fraction to some power.
fn power(mut base: u64, mut exponent: u64) -> u64 {
    let mut result = ONE;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = (result * base + ONE / 2) / ONE;
        }
        base = (base * base + ONE / 2) / ONE;
        exponent >>= 1;
    }
    result
}

/// The averages now, with [`FRACTION`] bits after the point.
pub fn averages() -> [u64; 3] {
    tick(platform().monotonic());
    STATE.lock().averages
}

/// Threads that run or want to, and all threads.
pub fn running() -> (usize, usize) {
    let processes = table::processes();
    let threads = processes.iter().flat_map(|process| process.live_threads());
    threads.fold((0, 0), |(running, all), thread| {
        let is_running = !thread.asleep.load(Ordering::Relaxed);
        (running + usize::from(is_running), all + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_move_towards_what_runs() {
        // One thread for a minute, in steps and at once: 1 - 1/e.
        let mut average = 0;
        for _ in 0..12 {
            average = moved(average, DECAY[0], ONE, 1);
        }
        let at_once = moved(0, DECAY[0], ONE, 12);
        let expected = ONE * 632 / 1000;
        assert!(average.abs_diff(expected) < 20, "{average}");
        assert!(at_once.abs_diff(expected) < 20, "{at_once}");
        // It gets there, and back.
        for _ in 0..400 {
            average = moved(average, DECAY[0], 2 * ONE, 1);
        }
        assert_eq!(average, 2 * ONE);
        for _ in 0..400 {
            average = moved(average, DECAY[0], 0, 1);
        }
        assert_eq!(average, 0);
        assert_eq!(moved(5 * ONE, DECAY[2], 0, 1 << 40), 0);
    }
}
