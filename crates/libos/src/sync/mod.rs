//! Locks and wait queues.
//!
//! - [`SpinLock`]: for short critical sections; spins a little, then gives the CPU to other host
//!   threads (the holder may have been descheduled by the host).
//! - [`wait::WaitQueue`], [`wait::block_on`]: sleeping until an object becomes ready.

pub mod futex;
pub mod mutex;
pub mod wait;

use crate::platform::platform;

/// Relaxation for spin locks: the platform decides when to yield to the host.
pub struct Relax;

impl spin::RelaxStrategy for Relax {
    fn relax() {
        platform().relax();
    }
}

/// A spin lock. Never sleep, and never touch user memory, while holding one.
pub type SpinLock<T> = spin::mutex::SpinMutex<T, Relax>;
/// Its guard.
pub type SpinGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T>;
/// A reader-writer spin lock, under the same rules.
pub type RwSpinLock<T> = spin::rwlock::RwLock<T, Relax>;
