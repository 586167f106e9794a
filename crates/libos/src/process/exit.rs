//! The end of threads and processes.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What a thread leaves behind when it ends.
#[derive(Default)]
pub struct ThreadExit {
    /// Address of the word to clear and wake (set_tid_address), or 0.
    pub clear_child_tid: AtomicU64,
    /// Head of the robust futex list, or 0.
    pub robust_list: AtomicU64,
    /// Status for wait, once decided.
    pub status: AtomicU32,
}

impl ThreadExit {
    pub fn robust_list(&self) -> u64 {
        self.robust_list.load(Ordering::Relaxed)
    }
}
