//! The timer queue: things to do at a monotonic time, done by the service thread.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use crate::platform::platform;
use crate::sync::SpinLock;

/// What a timer does.
pub trait Expire: Send + Sync {
    /// The time has come. Returns when it wants to be called again.
    fn expire(&self, now: u64) -> Option<u64>;
}

/// An entry of the queue: the owner keeps the object alive, dropping it disarms it.
#[derive(Default)]
pub struct Timer {
    key: SpinLock<Option<Key>>,
}

type Key = (u64, u64);

struct Queue {
    entries: BTreeMap<Key, Entry>,
    sequence: u64,
}

struct Entry {
    timer: Weak<Timer>,
    target: Weak<dyn Expire>,
}

static QUEUE: SpinLock<Queue> = SpinLock::new(Queue {
    entries: BTreeMap::new(),
    sequence: 0,
});

impl Timer {
    pub fn new() -> Arc<Timer> {
        Arc::new(Timer::default())
    }

    /// Calls `target` at the monotonic time `deadline` (ns), instead of when it was armed for.
    pub fn arm(self: &Arc<Timer>, deadline: u64, target: Weak<dyn Expire>) {
        let is_first = {
            let mut queue = QUEUE.lock();
            let mut own = self.key.lock();
            if let Some(old) = own.take() {
                queue.entries.remove(&old);
            }
            queue.sequence += 1;
            let key = (deadline, queue.sequence);
            queue.entries.insert(
                key,
                Entry {
                    timer: Arc::downgrade(self),
                    target,
                },
            );
            *own = Some(key);
            queue
                .entries
                .first_key_value()
                .is_some_and(|(first, _)| *first == key)
        };
        if is_first {
            super::service::wake();
        }
    }

    /// Forgets the deadline.
    pub fn disarm(&self) {
        let mut queue = QUEUE.lock();
        if let Some(old) = self.key.lock().take() {
            queue.entries.remove(&old);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
    }
}

/// Runs what is due; the monotonic time of the next, if any.
pub fn run_timers(now: u64) -> Option<u64> {
    loop {
        // The timers are kept alive until the queue is unlocked: dropping one locks it.
        let mut due: Vec<(Option<Arc<Timer>>, Entry)> = Vec::new();
        let next = {
            let mut queue = QUEUE.lock();
            loop {
                let Some(first) = queue.entries.first_entry() else {
                    break None;
                };
                if first.key().0 > now {
                    break Some(first.key().0);
                }
                let entry = first.remove();
                let timer = entry.timer.upgrade();
                if let Some(timer) = &timer {
                    *timer.key.lock() = None;
                }
                due.push((timer, entry));
            }
        };
        if due.is_empty() {
            return next;
        }
        for (timer, entry) in due {
            let (Some(timer), Some(target)) = (timer, entry.target.upgrade()) else {
                continue;
            };
            if let Some(again) = target.expire(now) {
                // Unless it was armed anew meanwhile.
                if timer.key.lock().is_none() {
                    timer.arm(again.max(now + 1), entry.target);
                }
            }
        }
    }
}

/// Monotonic time of the first timer.
pub fn next_deadline() -> Option<u64> {
    QUEUE.lock().entries.first_key_value().map(|(key, _)| key.0)
}

/// The monotonic time now, for callers that arm timers.
pub fn now() -> u64 {
    platform().monotonic()
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU64, Ordering};

    struct Counter(AtomicU64);

    impl Expire for Counter {
        fn expire(&self, now: u64) -> Option<u64> {
            let times = self.0.fetch_add(1, Ordering::SeqCst);
            (times < 2).then_some(now + 10)
        }
    }

    #[test]
    fn timers_repeat_and_can_be_disarmed() {
        crate::testing::platform();
        // Now: timers of other tests are not due because of this one.
        let far = now();
        let counter = Arc::new(Counter(AtomicU64::new(0)));
        let target: Arc<dyn Expire> = counter.clone();
        let timer = Timer::new();
        timer.arm(far, Arc::downgrade(&target));
        timer.arm(far + 5, Arc::downgrade(&target));
        let other = Timer::new();
        other.arm(far + 1, Arc::downgrade(&target));
        other.disarm();
        for step in [5, 15, 25, 35, 45] {
            run_timers(far + step);
        }
        assert_eq!(counter.0.load(Ordering::SeqCst), 3);
    }
}
