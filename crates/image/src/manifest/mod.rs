//! The manifest, `bulla.toml`: what the owner of a confidential container decides about it.
//!
//! [`Manifest`] and the types it consists of are the schema: their doc comments are the
//! descriptions in the JSON Schema ([`schema`]), in `bulla manifest init` and in the manual.
//! [`Manifest::parse`] refuses unknown keys and names the one that was probably meant; it checks
//! everything that can be checked without the image.
//!
//! A manifest is never read inside the enclave: what it says goes into the measured configuration
//! ([`bulla_abi::config::Config`]).

mod check;
mod keys;
mod template;
mod types;

pub use check::ManifestError;
pub use keys::{Key, keys, schema};
pub use template::template;
pub use types::*;
