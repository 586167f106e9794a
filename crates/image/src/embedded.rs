//! The enclave programs, built from this workspace by `build.rs`: equal sources, lock file and
//! compiler give equal bytes, wherever they are built.

use crate::layout::{EnclaveImage, LayoutError, Options, layout_of};
use crate::pieces::Known;
use bulla_abi::config::Config;
use bulla_abi::layout::LayoutKind;
use bytes::Bytes;

/// ELF file of the bootstrap.
pub static BOOTSTRAP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bulla-bootstrap"));
/// ELF file of the runtime with the library OS. Its pages are pages of this program's file, so that
/// the emulated platform need not copy them.
pub static RUNTIME: &[u8] = &RUNTIME_PAGES.0;
static RUNTIME_PAGES: &PageAligned<[u8]> =
    &PageAligned(*include_bytes!(concat!(env!("OUT_DIR"), "/bulla-runtime")));
/// SHA-256 of the whole pieces of [`RUNTIME`].
static RUNTIME_PIECES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bulla-runtime.pieces"));
/// ELF file of the agent, a static program that configurations with `[attestation.tls]` start with.
pub static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bulla-agent"));

#[repr(C, align(4096))]
struct PageAligned<T: ?Sized>(T);

/// Lays out and measures an enclave of the embedded programs.
pub fn image(
    config: &Config,
    kind: LayoutKind,
    options: &Options,
) -> Result<EnclaveImage, LayoutError> {
    let [bootstrap, runtime] = [BOOTSTRAP, RUNTIME].map(Bytes::from_static);
    layout_of(bootstrap, runtime, config, kind, options)
}

/// What need not be hashed again when an enclave is laid out.
pub(crate) fn known_pieces() -> Known<'static> {
    let (hashes, _) = RUNTIME_PIECES.as_chunks();
    Known {
        file: RUNTIME,
        hashes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn the_pieces_hash_to_what_the_build_wrote() {
        let known = known_pieces();
        let (pieces, _) = RUNTIME.as_chunks::<{ bulla_abi::boot::HASH_PIECE as usize }>();
        assert!(pieces.len() > 8);
        assert_eq!(known.hashes.len(), pieces.len());
        for (hash, piece) in known.hashes.iter().zip(pieces) {
            assert_eq!(*hash, Sha256::digest(piece)[..]);
        }
    }
}
