//! The trusted runtime: everything unsafe inside the enclave, below the library OS.
//!
//! The package has two programs, both `no_std` and behind the feature `enclave-bin`, because only
//! the enclave profile can link them:
//! - `bulla-bootstrap` (src/bootstrap): measured; verifies the rest.
//! - `bulla-runtime` (src/runtime): entry and exception assembly, memory, host calls, and
//!   [`bulla_libos::Platform`] on top.
//!
//! This library is what they share: [`sha256`], [`fingerprint`], and the memory functions of a C
//! library.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod fingerprint;
pub mod sha256;

#[cfg(any(test, feature = "enclave-bin"))]
mod memfunctions;
