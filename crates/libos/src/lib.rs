//! The Linux kernel interface inside the enclave: one kernel for all processes of a container.
//!
//! The trusted runtime (`bulla-enclave`) owns the CPU: it saves the user's registers, calls one of
//! the five functions below on the thread's kernel stack, and restores what they leave in
//! [`Registers`]. Everything the kernel needs from below comes through [`Platform`].
//!
//! - [`boot`]: builds the kernel and the first process from the measured configuration.
//! - [`handle_syscall`]: one system call.
//! - [`handle_exception`]: a fault of user code.
//! - [`before_user`]: what must happen before user code runs again (signals, stops, exit).
//! - [`host_signals`]: signals that the host forwards to the container.
//! - [`service_loop`]: what the service thread ([`is_service`]) runs instead of user code.
//!
//! # Lock order
//! residency → process table → process → thread → address space → mount/dentry → inode → file →
//! wait queue. Nobody sleeps while holding a spin lock. User memory is never touched while a spin
//! lock is held, except the address space's own.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod attestation;
pub mod cpuid;
mod debugger;
pub mod elf;
pub mod errno;
pub mod fs;
pub mod ipc;
mod kernel;
mod keys;
pub mod mm;
pub mod net;
pub mod platform;
pub mod process;
pub mod ptrace;
pub mod registers;
pub mod signal;
pub mod sync;
pub mod syscall;
pub mod time;
mod trace;
pub mod user;

#[cfg(test)]
pub mod testing;

pub use errno::{Errno, Result};
pub use kernel::{
    Kernel, Next, before_user, boot, handle_exception, handle_host_fault, handle_syscall,
    host_requests, host_signals, kernel,
};
pub use platform::{Exception, Platform, platform};
pub use process::thread::Thread;
pub use registers::Registers;
pub use time::service::{is_service, service_loop};
