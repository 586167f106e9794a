//! How a thread blocks in the host, told to those that may have to wake it.
//!
//! Waiter: tell how it blocks and which value of its wait word it saw, then look at the word, then
//! block. Waker: change the word, then look here. All of it is sequentially consistent, so one of
//! the two sees the other. Of several wakers one wakes, and the others rely on it; so only one
//! whose change the waiter has not seen may take this on. A waker that was held up while the
//! waiter saw its change, and blocked anew, would wake nobody and keep the next one from doing so.

use std::sync::atomic::{AtomicU64, Ordering};

/// How a thread blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Blocks {
    /// In a futex wait on its wait word.
    OnWord,
    /// In another system call, which only a signal ends.
    InCall,
}

const NOT: u64 = 0;
const ON_WORD: u64 = 1;
const IN_CALL: u64 = 2;
/// A waker has seen to it.
const WOKEN: u64 = 3;

/// The value seen in the upper half, one of the above in the lower.
#[derive(Default)]
pub struct Waiting(AtomicU64);

impl Waiting {
    /// The thread is about to block unless its wait word differs from `seen`.
    #[inline(always)]
    pub fn begin(&self, blocks: Blocks, seen: u32) {
        let how = match blocks {
            Blocks::OnWord => ON_WORD,
            Blocks::InCall => IN_CALL,
        };
        self.0.store(u64::from(seen) << 32 | how, Ordering::SeqCst);
    }

    #[inline(always)]
    pub fn end(&self) {
        self.0.store(NOT, Ordering::Relaxed);
    }

    /// For a waker, after the wait word was changed and became `word`: how the thread blocks if
    /// this waker has to wake it.
    pub fn claim(&self, word: u32) -> Option<Blocks> {
        let state = self.0.load(Ordering::SeqCst);
        let blocks = match state & u64::from(u32::MAX) {
            ON_WORD => Blocks::OnWord,
            IN_CALL => Blocks::InCall,
            _ => return None,
        };
        let seen = state & !u64::from(u32::MAX);
        if seen == u64::from(word) << 32 {
            return None;
        }
        self.0
            .compare_exchange(state, seen | WOKEN, Ordering::SeqCst, Ordering::SeqCst)
            .ok()
            .map(|_| blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_several_wakers_wakes() {
        let waiting = Waiting::default();
        assert_eq!(waiting.claim(1), None);
        waiting.begin(Blocks::InCall, 5);
        assert_eq!(waiting.claim(6), Some(Blocks::InCall));
        assert_eq!(waiting.claim(7), None);
        waiting.end();
        assert_eq!(waiting.claim(8), None);
        waiting.begin(Blocks::OnWord, 8);
        assert_eq!(waiting.claim(9), Some(Blocks::OnWord));
    }

    #[test]
    fn a_waker_whose_change_was_seen_keeps_nobody_from_waking() {
        let waiting = Waiting::default();
        waiting.begin(Blocks::OnWord, 4);
        // One waker changes the word to 5 and is held up; the waiter sees that and blocks again.
        waiting.end();
        waiting.begin(Blocks::OnWord, 5);
        assert_eq!(waiting.claim(5), None);
        assert_eq!(waiting.claim(6), Some(Blocks::OnWord));
    }
}
