//! Enclave images: from two ELF files and a configuration to measured, signed pages.
//!
//! - [`layout`] relocates the bootstrap and the runtime to where they belong, adds configuration,
//!   thread slots and memory, and measures: [`EnclaveImage`] is what a loader adds to an enclave,
//!   page run by page run.
//! - [`write_sgxs`] writes the image as an SGXS stream, the format of Fortanix' `sgxs-tools`.
//! - [`Description`], [`SigningKey`], [`PublicKey`]: SIGSTRUCT, signed in one step or in two.
//! - [`manifest`]: `bulla.toml`, its schema and its checks.
//! - [`find_sites`]: the instructions of an executable that the runtime rewrites.
//! - [`embedded`] (feature): bootstrap and runtime, built from this workspace.
//!
//! Everything is deterministic: equal input gives equal bytes.
#![forbid(unsafe_code)]

mod elf;
#[cfg(feature = "embedded")]
pub mod embedded;
mod key;
mod layout;
pub mod manifest;
mod pieces;
mod sgxs;
mod sign;
mod sites;

pub use elf::ElfError;
pub use key::{KeyError, PublicKey, SigningKey};
pub use layout::{Content, EnclaveImage, LayoutError, Options, PageRun, layout, layout_of};
pub use sgxs::write_sgxs;
pub use sign::{Date, Description, SignError};
pub use sites::{Counts, SitesError, find_sites};

pub use bulla_sgx::{SigStruct, SignatureError};
/// What [`layout_of`] takes.
pub use bytes::Bytes;
