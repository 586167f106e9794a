//! Container images: reading, flattening, and caching what was built from them.
//!
//! - [`Reference`] and [`Image`]: a docker-archive, an OCI archive or an OCI layout directory, its
//!   configuration, and its layers; only linux/amd64.
//! - [`Tree`]: the files of an image after all layers were laid over one another, or of a plain
//!   directory ([`directory`]).
//! - [`Cache`]: root file system images by the content they were built from, shared safely by
//!   several processes.
//!
//! Everything in an image is hostile: digests are verified before anything is used, sizes are
//! bounded, paths are resolved in memory and never on the host.
#![forbid(unsafe_code)]

mod build;
mod cache;
mod config;
mod digest;
pub mod directory;
mod error;
mod flatten;
mod image;
mod sites;
pub mod tar;
mod tree;
mod unpack;

pub use build::build_rootfs;
pub use cache::{Cache, Stored};
pub use config::ImageConfig;
pub use digest::Digest;
pub use error::Error;
pub use flatten::Limits;
pub use image::{Image, Reference};
pub use tree::{Attributes, Content, ContentReader, Kind, Node, NodeId, Tree};
