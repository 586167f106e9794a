//! The coordinator's front doors.
//!
//! - [`client`]: the REST API over TLS, versions 1 and 2, for owners, users and marbles.
//! - [`marble`]: gRPC over mutual TLS, where marbles activate.
//! - [`metrics`]: plain HTTP for Prometheus.
//!
//! [`serve`] accepts connections for all of them, within limits.

mod body;
pub mod client;
mod envelope;
mod limit;
pub mod marble;
pub mod metrics;
mod namespaces;
mod openapi;
mod places;
pub mod serve;
mod tls;
mod v1;
mod v2;

pub(crate) use tls::verify_signature;
pub use tls::{client_tls, marble_tls};
