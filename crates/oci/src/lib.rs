//! Container images: reading, flattening, and caching what was built from them.
//!
//! - [`Reference`] and [`Image`]: a docker-archive, an OCI archive or an OCI layout directory, its
//!   configuration, and its layers; only linux/amd64.
//! - [`Tree`]: the files of an image after all layers were laid over one another, or of a plain
//!   directory ([`directory`]).
//! - [`source`]: what a word on the command line names: a file, a name, an engine's image;
//!   [`registry`]: pulling and pushing; [`Store`]: images of this machine by name.
//! - [`output`]: writing images and archives; [`built`]: what is in a confidential image;
//!   [`listing`]: the files of a root file system image.
//! - [`Cache`]: root file system images by the content they were built from, shared safely by
//!   several processes.
//!
//! Everything in an image is hostile: digests are verified before anything is used, sizes are
//! bounded, paths are resolved in memory and never on the host.
#![forbid(unsafe_code)]

mod build;
pub mod built;
mod cache;
mod config;
mod digest;
pub mod directory;
mod error;
mod flatten;
mod image;
pub mod listing;
pub mod output;
mod prune;
pub mod registry;
mod sites;
pub mod source;
mod store;
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
pub use prune::Usage;
pub use registry::full_name;
pub use store::{Named, Store};
pub use tree::{Attributes, Content, ContentReader, Kind, Node, NodeId, Tree};
