//! SGX as the Intel SDM (volume 3D, chapters 34–40) defines it: structures, their exact layout in
//! memory, and the measurement of enclaves.
//!
//! Structures are plain values with `to_bytes` and `from_bytes`; nothing here executes an SGX
//! instruction. Numbers that have no layout (leaf functions, key names, page types, error codes)
//! come from the `sgx-isa` crate. Structures are our own, because KSS, CET and AEX-Notify fields
//! must survive a round trip; tests compare their layout with `sgx-isa`.
//!
//! - [`Secs`], [`Tcs`], [`SecInfo`]: what enclaves are made of.
//! - [`SigStruct`]: the signed description of an enclave; [`SigStruct::verify`] as EINIT does it.
//! - [`Report`], [`TargetInfo`], [`KeyRequest`]: what EREPORT and EGETKEY take and give.
//! - [`Measurement`]: MRENCLAVE from ECREATE, EADD and EEXTEND.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod attributes;
mod bytes;
mod identity;
#[cfg(feature = "measure")]
mod measure;
mod pages;
mod sigstruct;
#[cfg(feature = "verify")]
mod verify;

pub use attributes::{Attributes, flags, misc, xfrm};
pub use identity::{KeyRequest, Report, TargetInfo, key_policy};
#[cfg(feature = "measure")]
pub use measure::{Measurement, eadd_record, ecreate_record, eextend_record};
pub use pages::{SecInfo, Secs, Tcs};
pub use sgx_isa::{Encls, Enclu, ErrorCode, Keyname as KeyName, PageType};
pub use sigstruct::SigStruct;
#[cfg(feature = "verify")]
pub use verify::{SignatureError, quotients};

/// Bytes in an enclave page.
pub const PAGE_SIZE: usize = 4096;
/// Bytes that one EEXTEND measures.
pub const CHUNK_SIZE: usize = 256;
