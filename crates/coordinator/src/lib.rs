//! The coordinator: one manifest for a cluster, verified marbles, secrets and mutual TLS.
//!
//! It speaks MarbleRun's protocols to the byte (manifest, client API, marble API, certificates,
//! recovery) and goes further where those have known limits; `docs/design/coordinator.md` tells
//! both apart.
//!
//! - [`manifest`]: what the owner says, decoded as Go decodes it ([`json`]) and checked.
//! - [`template`]: Go's text/template over secrets.
//! - [`secrets`], [`keys`], [`ecdsa384`], [`x509`], [`pki`], [`crl`]: what marbles get.
//! - [`seal`], [`store`], [`recovery`]: what outlives the process.
//! - [`quote`]: what is asked of attestation; [`attested`]: who answers.
//! - [`core`]: the state, and what can be done with it.
//! - [`policy`]: manifests in signed and encrypted envelopes. [`log`]: what is told of it all.
//! - [`api`]: the doors. [`client`]: the other side of them.
#![forbid(unsafe_code)]

pub mod api;
pub mod attested;
pub mod client;
pub mod core;
pub mod crl;
pub mod ecdsa384;
pub mod json;
pub mod keys;
pub mod log;
pub mod manifest;
pub mod pki;
pub mod policy;
pub mod quote;
pub mod recovery;
pub mod seal;
pub mod secrets;
pub mod store;
pub mod template;
pub mod x509;

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

/// A SHA-256 from hex.
pub fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    hex::decode(text).ok()?.try_into().ok()
}

/// The first PEM block with a label.
pub fn pem_block(text: &str, label: &str) -> Option<Vec<u8>> {
    x509_parser::pem::Pem::iter_from_buffer(text.as_bytes())
        .flatten()
        .find(|block| block.label == label)
        .map(|block| block.contents)
}
