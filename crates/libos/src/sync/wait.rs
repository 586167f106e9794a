//! Wait queues: how a thread, an epoll instance or anything else learns that an object changed.
//!
//! An object that can become ready owns an `Arc<WaitQueue>` and calls [`WaitQueue::wake`] after it
//! has changed (after releasing its own lock, or under it: the queue's lock is the innermost).
//! Lost wake-ups are impossible when the waiter registers, then looks, then sleeps:
//! [`block_on`] does so.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::SpinLock;
use crate::errno::{ERESTARTSYS, ETIMEDOUT};
use crate::platform::platform;
use crate::{Result, Thread};

bitflags::bitflags! {
    /// Readiness, with the numbers of poll(2) and epoll(7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Events: u32 {
        const IN = 0x1;
        const PRI = 0x2;
        const OUT = 0x4;
        const ERR = 0x8;
        const HUP = 0x10;
        const NVAL = 0x20;
        const RDNORM = 0x40;
        const RDBAND = 0x80;
        const WRNORM = 0x100;
        const WRBAND = 0x200;
        const MSG = 0x400;
        const RDHUP = 0x2000;
        const EXCLUSIVE = 1 << 28;
        const WAKEUP = 1 << 29;
        const ONESHOT = 1 << 30;
        const EDGE = 1 << 31;
    }
}

/// Something that wants to hear of a wake-up. Called under the queue's lock: it may take only
/// locks that are inner to every object's (its own), and never sleeps.
pub trait Wake: Send + Sync {
    /// Returns whether it consumed the wake-up (counts for [`WaitQueue::wake_some`]).
    fn wake(&self, events: Events) -> bool;
}

/// Wakes a thread.
pub struct ThreadWaker {
    thread: Weak<Thread>,
}

impl ThreadWaker {
    pub fn new(thread: &Arc<Thread>) -> Arc<ThreadWaker> {
        Arc::new(ThreadWaker {
            thread: Arc::downgrade(thread),
        })
    }
}

impl Wake for ThreadWaker {
    fn wake(&self, _events: Events) -> bool {
        match self.thread.upgrade() {
            Some(thread) => {
                thread.notify();
                true
            }
            None => false,
        }
    }
}

/// The waiters of one object.
#[derive(Default)]
pub struct WaitQueue {
    /// Number of waiters, so that waking an empty queue costs one load.
    count: AtomicUsize,
    waiters: SpinLock<Vec<Waiter>>,
}

struct Waiter {
    interest: Events,
    wake: Arc<dyn Wake>,
}

impl WaitQueue {
    pub fn new() -> Arc<WaitQueue> {
        Arc::new(WaitQueue::default())
    }

    /// Adds a waiter at the end.
    pub fn register(&self, wake: Arc<dyn Wake>, interest: Events) {
        let mut waiters = self.waiters.lock();
        waiters.push(Waiter { interest, wake });
        self.count.store(waiters.len(), Ordering::SeqCst);
    }

    /// Removes a waiter registered before.
    pub fn unregister(&self, wake: &Arc<dyn Wake>) {
        let mut waiters = self.waiters.lock();
        if let Some(at) = waiters.iter().position(|w| Arc::ptr_eq(&w.wake, wake)) {
            waiters.remove(at);
        }
        self.count.store(waiters.len(), Ordering::SeqCst);
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Wakes everyone interested in one of `events` (errors and hang-ups interest everyone); of
    /// those that registered with EPOLLEXCLUSIVE only the first that consumes it.
    pub fn wake(&self, events: Events) {
        self.wake_some(usize::MAX, events);
    }

    /// Wakes at most `limit` waiters that consume the wake-up; returns how many did.
    pub fn wake_some(&self, limit: usize, events: Events) -> usize {
        core::sync::atomic::fence(Ordering::SeqCst);
        if self.is_empty() {
            return 0;
        }
        let always = Events::ERR | Events::HUP;
        let mut woken = 0;
        let mut exclusive_woken = false;
        for waiter in self.waiters.lock().iter() {
            if woken >= limit {
                break;
            }
            let relevant = events.is_empty() || events.intersects(waiter.interest | always);
            let exclusive = waiter.interest.contains(Events::EXCLUSIVE);
            if relevant && !(exclusive && exclusive_woken) && waiter.wake.wake(events) {
                woken += 1;
                exclusive_woken |= exclusive;
            }
        }
        woken
    }
}

/// Collects the queues that a poll registered with, and leaves them all when dropped.
pub struct PollTable {
    wake: Arc<dyn Wake>,
    queues: Vec<Arc<WaitQueue>>,
}

impl PollTable {
    pub fn new(wake: Arc<dyn Wake>) -> PollTable {
        PollTable {
            wake,
            queues: Vec::new(),
        }
    }

    /// Registers with `queue`; called by a file's `poll` before it looks at its state.
    pub fn register(&mut self, queue: &Arc<WaitQueue>, interest: Events) {
        queue.register(self.wake.clone(), interest);
        self.queues.push(queue.clone());
    }
}

impl Drop for PollTable {
    fn drop(&mut self) {
        for queue in &self.queues {
            queue.unregister(&self.wake);
        }
    }
}

/// Runs `attempt` until it gives a value, sleeping on `queue` in between. ERESTARTSYS when a
/// signal is pending, ETIMEDOUT when the monotonic `deadline` (ns) passes.
pub fn block_on<T>(
    thread: &Arc<Thread>,
    queue: &Arc<WaitQueue>,
    interest: Events,
    deadline: Option<u64>,
    mut attempt: impl FnMut() -> Option<T>,
) -> Result<T> {
    if let Some(value) = attempt() {
        return Ok(value);
    }
    let mut table = PollTable::new(ThreadWaker::new(thread));
    table.register(queue, interest);
    loop {
        let seen = thread.event_count();
        if let Some(value) = attempt() {
            return Ok(value);
        }
        sleep_once(thread, seen, deadline)?;
    }
}

/// One interruptible sleep: returns when `thread` was notified since `seen` was read.
pub fn sleep_once(thread: &Arc<Thread>, seen: u32, deadline: Option<u64>) -> Result<()> {
    if thread.interrupted() {
        return Err(ERESTARTSYS);
    }
    if deadline.is_some_and(|deadline| platform().monotonic() >= deadline) {
        return Err(ETIMEDOUT);
    }
    thread.sleep(seen, deadline);
    Ok(())
}
