//! Clocks, and the structures in which user code gives and gets times.

use alloc::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::SECOND_NS;
use crate::errno::EINVAL;
use crate::platform::platform;
use crate::process::{Process, table};
use crate::{Result, Thread};

/// `struct timespec`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Timespec {
    pub seconds: i64,
    pub nanoseconds: i64,
}

impl Timespec {
    pub fn from_ns(ns: u64) -> Timespec {
        Timespec {
            seconds: (ns / SECOND_NS) as i64,
            nanoseconds: (ns % SECOND_NS) as i64,
        }
    }

    /// Nanoseconds; EINVAL when negative or not normalised. Saturates after 584 years.
    pub fn to_ns(self) -> Result<u64> {
        if self.seconds < 0 || !(0..SECOND_NS as i64).contains(&self.nanoseconds) {
            return Err(EINVAL.because("bad timespec"));
        }
        let seconds = (self.seconds as u64).saturating_mul(SECOND_NS);
        Ok(seconds.saturating_add(self.nanoseconds as u64))
    }
}

/// `struct timeval`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Timeval {
    pub seconds: i64,
    pub microseconds: i64,
}

impl Timeval {
    pub fn from_ns(ns: u64) -> Timeval {
        Timeval {
            seconds: (ns / SECOND_NS) as i64,
            microseconds: (ns % SECOND_NS / 1000) as i64,
        }
    }

    /// Nanoseconds; EINVAL when negative or not normalised.
    pub fn to_ns(self) -> Result<u64> {
        if self.seconds < 0 || !(0..1_000_000).contains(&self.microseconds) {
            return Err(EINVAL.because("bad timeval"));
        }
        let seconds = (self.seconds as u64).saturating_mul(SECOND_NS);
        Ok(seconds.saturating_add(self.microseconds as u64 * 1000))
    }
}

/// A clock that can be read, and slept on or timed against.
#[derive(Clone)]
pub enum Clock {
    Realtime,
    Monotonic,
    Boottime,
    /// CPU time of a process.
    Process(Arc<Process>),
    /// CPU time of a thread.
    Thread(Arc<Thread>),
}

/// CLOCK_REALTIME.
pub const CLOCK_REALTIME: i32 = 0;
/// CLOCK_MONOTONIC.
pub const CLOCK_MONOTONIC: i32 = 1;

impl Clock {
    /// The clock with Linux's number, as the calling thread means it; EINVAL.
    pub fn from_id(id: i32, thread: &Arc<Thread>) -> Result<Clock> {
        Ok(match id {
            0 | 5 | 8 | 11 => Clock::Realtime,
            1 | 4 | 6 => Clock::Monotonic,
            7 | 9 => Clock::Boottime,
            2 => Clock::Process(thread.process.clone()),
            3 => Clock::Thread(thread.clone()),
            id if id < 0 => return Self::cpu_clock(id, thread),
            _ => return Err(EINVAL.because("no such clock")),
        })
    }

    /// clock_getcpuclockid, pthread_getcpuclockid: ~id << 3 | 4 if a thread | kind (0, 1, 2).
    fn cpu_clock(id: i32, thread: &Arc<Thread>) -> Result<Clock> {
        let of = !(id >> 3) as u32;
        if id & 3 == 3 {
            return Err(EINVAL.because("clocks of devices do not exist"));
        }
        if id & 4 != 0 {
            if of == 0 {
                return Ok(Clock::Thread(thread.clone()));
            }
            let other = table::thread(of).filter(|t| t.process.pid == thread.process.pid);
            return other
                .map(Clock::Thread)
                .ok_or(EINVAL.because("no such thread"));
        }
        if of == 0 {
            return Ok(Clock::Process(thread.process.clone()));
        }
        table::process(of)
            .map(Clock::Process)
            .ok_or(EINVAL.because("no such process"))
    }

    /// The time (ns).
    pub fn now(&self) -> u64 {
        match self {
            Clock::Realtime => platform().realtime(),
            Clock::Monotonic | Clock::Boottime => platform().monotonic(),
            Clock::Process(process) => process.cpu_time(),
            Clock::Thread(thread) => thread.clock.cpu_time(),
        }
    }

    /// Whether it counts CPU time.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Clock::Process(_) | Clock::Thread(_))
    }

    /// The monotonic time at which this clock will show `time`, if it runs on evenly.
    pub fn to_monotonic(&self, time: u64) -> u64 {
        match self {
            Clock::Monotonic | Clock::Boottime => time,
            _ => platform()
                .monotonic()
                .saturating_add(time.saturating_sub(self.now())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_checked() {
        let time = |seconds, nanoseconds| {
            Timespec {
                seconds,
                nanoseconds,
            }
            .to_ns()
        };
        assert_eq!(time(1, 5), Ok(1_000_000_005));
        assert_eq!(time(-1, 0), Err(EINVAL));
        assert_eq!(time(0, 1_000_000_000), Err(EINVAL));
        assert_eq!(time(i64::MAX, 0), Ok(u64::MAX));
        assert_eq!(Timeval::from_ns(1_500_000_999).microseconds, 500_000);
    }

    #[test]
    fn clocks_by_number() {
        let thread = crate::testing::setup();
        assert!(matches!(Clock::from_id(7, &thread), Ok(Clock::Boottime)));
        assert!(Clock::from_id(10, &thread).is_err());
        // pthread_getcpuclockid of the thread itself.
        assert!(matches!(
            Clock::from_id(!0 << 3 | 6, &thread),
            Ok(Clock::Thread(_))
        ));
        assert!(matches!(
            Clock::from_id(!0 << 3 | 2, &thread),
            Ok(Clock::Process(_))
        ));
    }
}
