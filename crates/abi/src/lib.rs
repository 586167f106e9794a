//! The contract between the enclave and the untrusted loader.
//!
//! - [`layout`]: where things are in the enclave's address range.
//! - [`boot`]: the header in the measured bootstrap, filled in by the image builder.
//! - [`config`]: the measured configuration of one container.
//! - [`input`]: what the host adds to it at start, and the check against what it may;
//!   [`pattern`]: what those checks compare with.
//! - [`cpu`]: CPU features that a configuration may demand.
//! - [`hostcall`]: what the enclave may ask of the host, and the memory both sides share.
//! - [`network`]: the host's interfaces, addresses and routes.
//! - [`passthrough`]: directories of the host that a container uses as they are.
//! - [`sites`]: instructions of executable files that the runtime rewrites.
//!
//! Nothing here is trusted because of its type: the enclave copies every shared structure in once
//! and validates the copy.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod boot;
pub mod config;
pub mod cpu;
pub mod hostcall;
pub mod input;
pub mod layout;
pub mod network;
pub mod passthrough;
pub mod pattern;
pub mod sites;
pub mod volume;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;
