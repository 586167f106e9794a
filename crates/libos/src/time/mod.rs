//! Clocks and timers.
//!
//! - [`Clock`]: the clocks of clock_gettime.
//! - [`timers`]: the kernel's timer queue and its service thread.
//! - [`ProcessTimers`]: a process's interval timers (setitimer) and POSIX timers (timer_create).

pub mod clock;
mod cpu_limit;
pub mod interval;
pub mod service;
pub mod timers;

pub use clock::{Clock, Timespec, Timeval};
pub use interval::ProcessTimers;

/// Nanoseconds in a second.
pub const SECOND_NS: u64 = 1_000_000_000;
