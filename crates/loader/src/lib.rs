//! The untrusted host of an enclave: loads it, runs its threads, answers its host calls.
//!
//! - [`backend`]: the platforms, `hardware` and `emulated`, behind one trait.
//! - `host`: host calls and counters; `threads`: enclave threads and signals; the same for both.
pub mod backend;
