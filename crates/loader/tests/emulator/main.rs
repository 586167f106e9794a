//! The emulated platform, rule by rule, with a hand-made enclave.

mod build;
mod code;
mod enclave;
mod entry;
mod exits;
mod keys;
mod memory;
mod storm;
