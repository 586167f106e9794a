//! Which host file descriptors the enclave may use: the three standard ones and those it made.
//!
//! Everything else that the loader has open (the image, the SGX device, the caller's files) is
//! closed to it. One bit per descriptor, so that the check costs one load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::sys::raw::Errno;

/// Descriptors above this are refused (EMFILE); Linux allows as many by default (fs.nr_open).
const LIMIT: usize = 1 << 20;

/// The set. It is meant to live in a `static`: 128 KiB that cost nothing until they are used.
pub struct Descriptors {
    made: [AtomicU64; LIMIT / 64],
}

impl Descriptors {
    pub const fn new() -> Descriptors {
        Descriptors {
            made: [const { AtomicU64::new(0) }; LIMIT / 64],
        }
    }

    /// Lets the enclave use `fd`.
    pub fn add(&self, fd: i32) -> Result<(), Errno> {
        let word = self.made.get(fd as usize / 64).ok_or(Errno(libc::EMFILE))?;
        word.fetch_or(1 << (fd % 64), Ordering::Relaxed);
        Ok(())
    }

    /// Takes `fd` away again; false when the enclave did not have it.
    pub fn remove(&self, fd: i32) -> bool {
        let Some(word) = self.made.get(fd as usize / 64) else {
            return false;
        };
        word.fetch_and(!(1 << (fd % 64)), Ordering::Relaxed) >> (fd % 64) & 1 == 1
    }

    #[inline(always)]
    pub fn has(&self, fd: u64) -> bool {
        match self.made.get(fd as usize / 64) {
            Some(word) => word.load(Ordering::Relaxed) >> (fd % 64) & 1 == 1,
            None => false,
        }
    }
}

/// The standard descriptors: what the enclave's 0, 1 and 2 are on the host.
pub struct Standard {
    pub host: [i32; 3],
    closed: [AtomicBool; 3],
}

impl Standard {
    pub fn new(host: [i32; 3]) -> Standard {
        Standard {
            host,
            closed: [const { AtomicBool::new(false) }; 3],
        }
    }

    /// The host's descriptor, unless the enclave has closed it.
    fn get(&self, fd: u64) -> Option<i32> {
        let closed = self.closed.get(fd as usize)?.load(Ordering::Relaxed);
        (!closed).then(|| self.host[fd as usize])
    }

    /// Closes it for the enclave; the host's descriptor, when it was open.
    pub fn close(&self, fd: u64) -> Option<i32> {
        let was_closed = self.closed.get(fd as usize)?.swap(true, Ordering::Relaxed);
        (!was_closed).then(|| self.host[fd as usize])
    }
}

/// The host's number of the enclave's descriptor `fd`, or EBADF.
#[inline(always)]
pub fn resolve(made: &Descriptors, standard: &Standard, fd: u64) -> Result<i32, Errno> {
    if fd > 2 {
        return if made.has(fd) {
            Ok(fd as i32)
        } else {
            Err(Errno(libc::EBADF))
        };
    }
    standard.get(fd).ok_or(Errno(libc::EBADF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made() {
        static MADE: Descriptors = Descriptors::new();
        let standard = Standard::new([0, 11, 12]);
        assert_eq!(resolve(&MADE, &standard, 1), Ok(11));
        assert_eq!(standard.close(1), Some(11));
        assert_eq!(standard.close(1), None);
        for fd in [1, 3, 70, LIMIT as u64, u64::MAX, 1 << 32, (1 << 32) + 5] {
            assert_eq!(
                resolve(&MADE, &standard, fd),
                Err(Errno(libc::EBADF)),
                "{fd}"
            );
        }
        MADE.add(70).unwrap();
        assert_eq!(resolve(&MADE, &standard, 70), Ok(70));
        assert!(MADE.remove(70));
        assert!(!MADE.remove(70));
        assert!(MADE.add(LIMIT as i32).is_err());
        assert!(MADE.add(-1).is_err());
    }
}
