//! The trusted runtime, entered by the bootstrap once its hash is verified.
//!
//! - `sgx`: the ENCLU leaves. `area`: per-thread data that GS points to. `entry`: the assembly
//!   that every entry, exit, system call and exception passes.
//! - `exception`: the two stages. `hostcall`: asking the host. `untrusted`: host memory.
//! - `memory`: which pages are committed. `heap`: the kernel's allocator. `usercopy`: user memory.
//! - `clock`: time. `threads`: slots, sleeping, kicks. `platform`: [`bulla_libos::Platform`].
//! - `boot`: the first entry.
//!
//! # Lock order
//! thread slots → memory bitmap → heap → (host calls take no lock).
#![no_std]
#![no_main]

extern crate alloc;

mod area;
mod bitmap;
mod boot;
mod clock;
mod cpu;
mod entry;
mod exception;
mod fingerprints;
mod heap;
mod hostcall;
mod kept;
mod memory;
mod panic;
mod platform;
mod sgx;
mod threads;
mod untrusted;
mod usercopy;
mod xstate;

// The memory functions that compiled code calls.
use bulla_enclave as _;
