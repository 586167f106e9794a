//! The enclave programs, built from this workspace by `build.rs`: equal sources, lock file and
//! compiler give equal bytes, wherever they are built.

use crate::layout::{EnclaveImage, LayoutError, Options, layout_of};
use bulla_abi::config::Config;
use bulla_abi::layout::LayoutKind;
use bytes::Bytes;

/// ELF file of the bootstrap.
pub static BOOTSTRAP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bulla-bootstrap"));
/// ELF file of the runtime with the library OS.
pub static RUNTIME: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bulla-runtime"));
/// ELF file of the agent, a static program that configurations with `[attestation.tls]` start with.
pub static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bulla-agent"));

/// Lays out and measures an enclave of the embedded programs.
pub fn image(
    config: &Config,
    kind: LayoutKind,
    options: &Options,
) -> Result<EnclaveImage, LayoutError> {
    let [bootstrap, runtime] = [BOOTSTRAP, RUNTIME].map(Bytes::from_static);
    layout_of(bootstrap, runtime, config, kind, options)
}
