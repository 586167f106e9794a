//! Sealing with AES-256-GCM, and keys made from keys.

use aes_gcm::aead::AeadInPlace;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use alloc::vec::Vec;

/// Bytes of an authentication tag.
pub const TAG: usize = 16;
/// Block size of SHA-256, for HMAC.
const BLOCK: usize = 64;

/// SHA-256 of parts, from the platform.
pub type Hash<'a> = dyn Fn(&[&[u8]]) -> [u8; 32] + 'a;

/// HMAC-SHA256 (RFC 2104) of the parts, one after the other.
pub fn hmac(hash: &Hash<'_>, key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let (mut inner, mut outer) = ([0x36u8; BLOCK], [0x5cu8; BLOCK]);
    for (at, byte) in key.iter().enumerate() {
        inner[at] ^= byte;
        outer[at] ^= byte;
    }
    let mut all: Vec<&[u8]> = Vec::with_capacity(parts.len() + 1);
    all.push(&inner);
    all.extend_from_slice(parts);
    let digest = hash(&all);
    hash(&[&outer, &digest])
}

/// Compares without telling where the difference is.
pub fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    core::hint::black_box(difference) == 0
}

/// A key that seals; each nonce is used once.
pub struct Sealer(Aes256Gcm);

impl Sealer {
    /// The key of a session of a volume.
    pub fn new(hash: &Hash<'_>, key: &[u8; 32], session: &[u8; 16]) -> Sealer {
        let key = hmac(hash, key, &[b"bulla volume session", session]);
        Sealer(Aes256Gcm::new(&key.into()))
    }

    fn nonce(nonce: u64) -> Nonce<aes_gcm::aes::cipher::consts::U12> {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&nonce.to_le_bytes());
        bytes.into()
    }

    /// Encrypts in place; the tag covers `associated` too.
    pub fn seal(&self, nonce: u64, associated: &[&[u8]], bytes: &mut [u8]) -> [u8; TAG] {
        let sealed =
            self.0
                .encrypt_in_place_detached(&Self::nonce(nonce), &associated.concat(), bytes);
        // GCM fails above 64 GiB only.
        sealed.map(Into::into).unwrap_or([0; TAG])
    }

    /// Decrypts in place; false when anything was changed, and then `bytes` mean nothing.
    #[must_use]
    pub fn open(
        &self,
        nonce: u64,
        associated: &[&[u8]],
        bytes: &mut [u8],
        tag: &[u8; TAG],
    ) -> bool {
        let opened = self.0.decrypt_in_place_detached(
            &Self::nonce(nonce),
            &associated.concat(),
            bytes,
            Tag::from_slice(tag),
        );
        opened.is_ok()
    }
}
