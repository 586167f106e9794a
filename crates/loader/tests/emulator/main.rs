//! The emulated platform, rule by rule, with a hand-made enclave.

mod code;
mod enclave;
mod entry;
