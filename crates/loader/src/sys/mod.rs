//! Everything that needs `unsafe` on the host's side, beside the backends: system calls, shared
//! areas, signals, mappings.
//!
//! Functions here check what they need for their own safety (lengths within shared areas, by way
//! of [`area::Span`]); what the enclave may ask for is decided in `host`.

pub mod area;
pub mod cpu;
pub mod dcap;
pub mod entry;
pub mod file;
pub mod map;
pub mod netlink;
pub mod place;
pub mod raw;
pub mod signal;
pub mod socket;
pub mod terminal;
pub mod time;
pub mod wait;
