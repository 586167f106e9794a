//! What the platform gives to the verified storage.

use alloc::boxed::Box;
use alloc::sync::Arc;

/// The source could not give the bytes asked for; the reader names the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceFault;

/// The untrusted rootfs file, and the hash function to check it with.
pub trait BlockSource: Send + Sync {
    /// Copies `buf.len()` bytes at `offset` of the rootfs file into `buf`, all or nothing.
    ///
    /// The bytes are the host's and may differ at each call; `buf` must be memory that the host
    /// cannot change afterwards. Blocks are asked for whole: offset and length are multiples of
    /// 4096.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceFault>;

    /// SHA-256 of the parts, one after the other.
    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32];

    /// Decrypts verified data blocks in place, `first` being the number of the first one; images
    /// that are not encrypted have nothing to do.
    fn decrypt(&self, first: u64, blocks: &mut [u8]) {
        let _ = (first, blocks);
    }

    /// SHA-256 of the salt and each block: faster than one after the other where the CPU can do it.
    fn sha256_pair(&self, salt: &[u8; 32], blocks: [&[u8]; 2]) -> [[u8; 32]; 2] {
        blocks.map(|block| self.sha256(&[salt, block]))
    }
}

impl<S: BlockSource + ?Sized> BlockSource for &S {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceFault> {
        (**self).read(offset, buf)
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        (**self).sha256(parts)
    }

    fn decrypt(&self, first: u64, blocks: &mut [u8]) {
        (**self).decrypt(first, blocks);
    }

    fn sha256_pair(&self, salt: &[u8; 32], blocks: [&[u8]; 2]) -> [[u8; 32]; 2] {
        (**self).sha256_pair(salt, blocks)
    }
}

impl<S: BlockSource + ?Sized> BlockSource for Box<S> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceFault> {
        (**self).read(offset, buf)
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        (**self).sha256(parts)
    }

    fn decrypt(&self, first: u64, blocks: &mut [u8]) {
        (**self).decrypt(first, blocks);
    }

    fn sha256_pair(&self, salt: &[u8; 32], blocks: [&[u8]; 2]) -> [[u8; 32]; 2] {
        (**self).sha256_pair(salt, blocks)
    }
}

impl<S: BlockSource + ?Sized> BlockSource for Arc<S> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceFault> {
        (**self).read(offset, buf)
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        (**self).sha256(parts)
    }

    fn decrypt(&self, first: u64, blocks: &mut [u8]) {
        (**self).decrypt(first, blocks);
    }

    fn sha256_pair(&self, salt: &[u8; 32], blocks: [&[u8]; 2]) -> [[u8; 32]; 2] {
        (**self).sha256_pair(salt, blocks)
    }
}
