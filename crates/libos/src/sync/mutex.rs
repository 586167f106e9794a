//! A lock that is held over user-memory access and waits asleep.

use alloc::sync::Arc;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use super::{SpinGuard, SpinLock};
use crate::Thread;
use crate::platform::platform;
use crate::sync::wait::{Events, PollTable, ThreadWaker, WaitQueue};

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// A sleeping mutual-exclusion lock. It may be held while user memory is touched; no spin lock may
/// be held while it is taken. Waiting is not interrupted by signals: holders never wait for events
/// from outside.
#[derive(Default)]
pub struct SleepLock<T> {
    state: AtomicU32,
    queue: SpinLock<Option<Arc<WaitQueue>>>,
    value: SpinLock<T>,
}

/// The lock is held.
pub struct SleepGuard<'a, T> {
    lock: &'a SleepLock<T>,
    value: Option<SpinGuard<'a, T>>,
}

impl<T> SleepLock<T> {
    pub const fn new(value: T) -> SleepLock<T> {
        SleepLock {
            state: AtomicU32::new(FREE),
            queue: SpinLock::new(None),
            value: SpinLock::new(value),
        }
    }

    /// Takes the lock, sleeping while another thread holds it.
    pub fn lock(&self, thread: &Arc<Thread>) -> SleepGuard<'_, T> {
        if self
            .state
            .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            self.wait(thread);
        }
        SleepGuard {
            lock: self,
            value: Some(self.value.lock()),
        }
    }

    /// The value, unless someone holds the lock (for /proc, which shows a moment).
    pub fn peek(&self) -> Option<T>
    where
        T: Copy,
    {
        self.value.try_lock().map(|value| *value)
    }

    #[cold]
    fn wait(&self, thread: &Arc<Thread>) {
        let queue = self.queue.lock().get_or_insert_with(WaitQueue::new).clone();
        let mut table = PollTable::new(ThreadWaker::new(thread));
        table.register(&queue, Events::IN);
        loop {
            let seen = thread.event_count();
            if self.state.swap(CONTENDED, Ordering::Acquire) == FREE {
                return;
            }
            platform().sleep(thread, seen, None);
        }
    }
}

impl<T> Drop for SleepGuard<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        if self.lock.state.swap(FREE, Ordering::Release) == CONTENDED {
            let queue = self.lock.queue.lock().clone();
            if let Some(queue) = queue {
                queue.wake_some(1, Events::IN);
            }
        }
    }
}

impl<T> Deref for SleepGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value
            .as_deref()
            .expect("the value is held until the guard drops")
    }
}

impl<T> DerefMut for SleepGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value
            .as_deref_mut()
            .expect("the value is held until the guard drops")
    }
}
