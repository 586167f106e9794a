//! The untrusted host of an enclave: loads it, runs its threads, answers its host calls.
//!
//! [`launch`] does all of it, once per process. Nothing in here is trusted by the enclave; what is
//! here protects the host from a confused enclave (no pointer of its own choosing reaches a system
//! call) and the user from a slow or untidy one.
//!
//! - [`backend`]: the platforms, `hardware` and `emulated`, behind one trait.
//! - `host`: the host calls; `exec`: programs that start later; `threads`: enclave threads and kicks; `launch`: start and end. The
//!   same code for both platforms.
//! - `sys`: every system call, and with `backend` the only unsafe code.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod backend;
mod descriptors;
mod enclave;
mod error;
mod exec;
#[cfg(test)]
#[allow(unsafe_code)] // the trait has an unsafe function
mod fake;
mod host;
mod hostile;
mod launch;
mod stats;
#[allow(unsafe_code)]
mod sys;
#[cfg(test)]
mod tests;
mod threads;
#[cfg(test)]
#[allow(unsafe_code)] // the enclave's code is assembly in this binary
mod tiny;
mod waiting;

pub use enclave::{Content, Enclave, PageRun};
pub use error::Error;
pub use exec::{Exec, ExecEnd, Execs};
pub use host::{Debugger, PassedDirectory, Quoter, VolumeFiles};
pub use launch::{ExitStatus, Finished, Options, launch};
pub use stats::{Phase, Stats};
pub use sys::dcap::{LibraryError, QuoteLibrary};
pub use sys::entry::{WHOLE, is_of_this_build};
