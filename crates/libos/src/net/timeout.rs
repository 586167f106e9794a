//! SO_RCVTIMEO and SO_SNDTIMEO: how long a blocking call on a socket may wait.
//!
//! Kept in the enclave for every family: host sockets never block.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::errno::{EAGAIN, EDOM, EINTR, EINVAL, ERESTARTSYS, ETIMEDOUT};
use crate::platform::platform;
use crate::{Errno, Result};

/// Option names at SOL_SOCKET.
pub const SO_RCVTIMEO: i32 = 20;
pub const SO_SNDTIMEO: i32 = 21;

/// The two timeouts of a socket, in ns; 0 is none.
#[derive(Default)]
pub struct Timeouts {
    receive: AtomicU64,
    send: AtomicU64,
}

impl Timeouts {
    /// The monotonic time at which a receive, accept … that begins now gives up.
    pub fn receive_deadline(&self) -> Option<u64> {
        deadline(&self.receive)
    }

    /// Likewise for send and connect.
    pub fn send_deadline(&self) -> Option<u64> {
        deadline(&self.send)
    }

    /// The values of another socket: accepted sockets have their listener's.
    pub fn inherit(&self, other: &Timeouts) {
        let copy = |to: &AtomicU64, from: &AtomicU64| {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        };
        copy(&self.receive, &other.receive);
        copy(&self.send, &other.send);
    }

    fn named(&self, name: i32) -> Option<&AtomicU64> {
        match name {
            SO_RCVTIMEO => Some(&self.receive),
            SO_SNDTIMEO => Some(&self.send),
            _ => None,
        }
    }

    /// The option as a `struct timeval`; `None` when `name` is another option.
    pub fn get(&self, name: i32) -> Option<Vec<u8>> {
        let ns = self.named(name)?.load(Ordering::Relaxed);
        let mut bytes = (ns / 1_000_000_000).to_le_bytes().to_vec();
        bytes.extend_from_slice(&(ns % 1_000_000_000 / 1000).to_le_bytes());
        Some(bytes)
    }

    /// Sets the option from a `struct timeval`; `None` when `name` is another option.
    pub fn set(&self, name: i32, value: &[u8]) -> Option<Result<()>> {
        let timeout = self.named(name)?;
        let (Some(seconds), Some(micros)) = (word(value, 0), word(value, 8)) else {
            return Some(Err(EINVAL));
        };
        if !(0..1_000_000).contains(&micros) {
            return Some(Err(EDOM));
        }
        let ns = match u64::try_from(seconds) {
            Ok(seconds) => seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(micros as u64 * 1000),
            // As on Linux, a negative time means not to wait at all.
            Err(_) => 1,
        };
        timeout.store(ns, Ordering::Relaxed);
        Some(Ok(()))
    }
}

/// What the caller sees of a wait that failed: the timeout's end is EAGAIN, and a call that has a
/// timeout is not restarted after a signal (signal(7)).
pub fn wait_error(error: Errno, deadline: Option<u64>) -> Errno {
    if error == ETIMEDOUT {
        EAGAIN
    } else if error == ERESTARTSYS && deadline.is_some() {
        EINTR
    } else {
        error
    }
}

fn deadline(timeout: &AtomicU64) -> Option<u64> {
    match timeout.load(Ordering::Relaxed) {
        0 => None,
        timeout => Some(platform().monotonic().saturating_add(timeout)),
    }
}

fn word(value: &[u8], at: usize) -> Option<i64> {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(value.get(at..at + 8)?);
    Some(i64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_timevals() {
        crate::testing::platform();
        let timeouts = Timeouts::default();
        assert_eq!(timeouts.receive_deadline(), None);
        let mut value = 2i64.to_le_bytes().to_vec();
        value.extend_from_slice(&500_000i64.to_le_bytes());
        assert_eq!(timeouts.set(SO_RCVTIMEO, &value), Some(Ok(())));
        assert_eq!(timeouts.get(SO_RCVTIMEO), Some(value.clone()));
        assert!(timeouts.receive_deadline().is_some());
        assert_eq!(timeouts.send_deadline(), None);
        value[8..].copy_from_slice(&1_000_000i64.to_le_bytes());
        assert_eq!(timeouts.set(SO_SNDTIMEO, &value), Some(Err(EDOM)));
        assert_eq!(timeouts.set(SO_SNDTIMEO, &value[..8]), Some(Err(EINVAL)));
        assert_eq!(timeouts.set(7, &value), None);
        assert_eq!(wait_error(ERESTARTSYS, None), ERESTARTSYS);
        assert_eq!(wait_error(ERESTARTSYS, Some(1)), EINTR);
        assert_eq!(wait_error(ETIMEDOUT, Some(1)), EAGAIN);
    }
}
