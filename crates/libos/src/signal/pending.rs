//! A queue of pending signals.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::info::{SI_TIMER, SI_USER};
use super::{SIGRTMIN, SYNCHRONOUS, SigInfo, bit};
use crate::Result;
use crate::errno::EAGAIN;

/// Most real-time signals that one queue holds: bounds kernel memory (RLIMIT_SIGPENDING).
pub const QUEUE_MAX: usize = 32768;

/// Pending signals with their information, in order of arrival.
#[derive(Default)]
pub struct Pending {
    mask: u64,
    queue: VecDeque<SigInfo>,
}

impl Pending {
    /// Bit n−1: signal n is pending.
    pub fn mask(&self) -> u64 {
        self.mask
    }

    /// Adds a signal. A standard signal that is pending already is merged with it; real-time
    /// signals queue up. EAGAIN when the queue holds `limit` (RLIMIT_SIGPENDING) already.
    pub fn add(&mut self, info: SigInfo, limit: usize) -> Result<()> {
        let signal = info.number();
        if signal < SIGRTMIN && self.mask & bit(signal) != 0 {
            return Ok(());
        }
        if self.queue.len() >= limit.min(QUEUE_MAX) {
            if signal < SIGRTMIN || info.code == SI_USER {
                // A signal of kill is never lost, only its information.
                self.mask |= bit(signal);
                return Ok(());
            }
            return Err(EAGAIN.because("too many signals are queued"));
        }
        self.mask |= bit(signal);
        self.queue.push_back(info);
        Ok(())
    }

    /// Signals that are queued with their information.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// They, in order of arrival.
    pub fn infos(&self) -> Vec<SigInfo> {
        self.queue.iter().copied().collect()
    }

    /// The number of the signal of `wanted` that is next.
    fn next(&self, wanted: u64) -> Option<u32> {
        let candidates = self.mask & wanted;
        let urgent = candidates & SYNCHRONOUS;
        let first = if urgent != 0 { urgent } else { candidates };
        (first != 0).then(|| first.trailing_zeros() + 1)
    }

    /// What `take` would give, if its information is here.
    pub fn first(&self, wanted: u64) -> Option<&SigInfo> {
        let signal = self.next(wanted)?;
        self.queue.iter().find(|info| info.number() == signal)
    }

    /// Takes the next signal of `wanted`: faults first, then the lowest number, oldest first.
    pub fn take(&mut self, wanted: u64) -> Option<SigInfo> {
        let signal = self.next(wanted)?;
        let at = self.queue.iter().position(|info| info.number() == signal);
        let info = match at.and_then(|at| self.queue.remove(at)) {
            Some(info) => info,
            // Its information was dropped when the queue was full.
            None => SigInfo {
                signal: signal as i32,
                ..SigInfo::default()
            },
        };
        if !self.queue.iter().any(|info| info.number() == signal) {
            self.mask &= !bit(signal);
        }
        Some(info)
    }

    /// Drops all signals in `mask`.
    pub fn discard(&mut self, mask: u64) {
        if self.mask & mask != 0 {
            self.queue.retain(|info| mask & bit(info.number()) == 0);
            self.mask &= !mask;
        }
    }

    /// Whether a signal of POSIX timer `id` is queued.
    pub fn has_timer(&self, id: u32) -> bool {
        let mut queued = self.queue.iter();
        queued.any(|info| info.code == SI_TIMER && info.pid() == id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::info::SI_QUEUE;
    use super::super::*;
    use super::*;

    fn queued(signal: u32, value: u64) -> SigInfo {
        let mut info = SigInfo::user(signal, SI_QUEUE, 1, 0);
        info.fields[1] = value;
        info
    }

    #[test]
    fn standard_signals_merge_and_real_time_signals_queue() {
        let mut pending = Pending::default();
        pending.add(queued(SIGUSR1, 1), QUEUE_MAX).unwrap();
        pending.add(queued(SIGUSR1, 2), QUEUE_MAX).unwrap();
        pending.add(queued(40, 3), QUEUE_MAX).unwrap();
        pending.add(queued(40, 4), QUEUE_MAX).unwrap();
        pending.add(queued(35, 5), QUEUE_MAX).unwrap();
        let order: alloc::vec::Vec<_> = core::iter::from_fn(|| pending.take(!0))
            .map(|i| (i.number(), i.fields[1]))
            .collect();
        assert_eq!(order, [(SIGUSR1, 1), (35, 5), (40, 3), (40, 4)]);
        assert_eq!(pending.mask(), 0);
    }

    #[test]
    fn faults_come_first_and_the_mask_selects() {
        let mut pending = Pending::default();
        for signal in [SIGHUP, SIGSEGV, SIGTERM] {
            pending.add(SigInfo::kernel(signal), QUEUE_MAX).unwrap();
        }
        assert_eq!(pending.take(!bit(SIGHUP)).unwrap().number(), SIGSEGV);
        assert_eq!(pending.take(!bit(SIGHUP)).unwrap().number(), SIGTERM);
        assert_eq!(pending.take(!bit(SIGHUP)), None);
        pending.discard(bit(SIGHUP));
        assert_eq!(pending.mask(), 0);
    }
}
