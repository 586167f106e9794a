//! What runs in the enclave before the application; see `main.rs`. The library is its settings, which
//! `bulla` checks when it makes the configuration.
#![forbid(unsafe_code)]

pub mod settings;
