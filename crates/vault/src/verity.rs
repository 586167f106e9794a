//! A dm-verity hash tree (hash format 1, SHA-256, 4096-byte blocks), checked on use.
//!
//! The file is the data, then the tree, its top level first. A hash block holds the digests
//! `SHA-256(salt ‖ block)` of 128 blocks of the level below. Level 0 is next to the data.
//!
//! A data block is copied into enclave memory and hashed there; its digest must stand in a hash
//! block that was itself verified, up to the root hash. Verified hash blocks stay in a bounded
//! cache, so a walk normally ends at its first step.

use alloc::sync::Arc;
use alloc::vec::Vec;
use bulla_abi::config::Rootfs;

use crate::cache::{Block, BlockCache};
use crate::source::BlockSource;
use crate::{BLOCK_SIZE, Error, Result};

const BLOCK: u64 = BLOCK_SIZE as u64;
const DIGEST: usize = 32;
/// Digests in a hash block.
const FANOUT: u64 = (BLOCK_SIZE / DIGEST) as u64;
/// Blocks copied in before they are hashed: few calls to the source, and all still in L2.
const BATCH: usize = 16;

/// Verified reads of a file with a hash tree.
pub struct Verity<S> {
    source: S,
    salt: [u8; 32],
    root_hash: [u8; 32],
    data_blocks: u64,
    /// Level 0 first. Each: first block in the file, and number of blocks.
    levels: Vec<Level>,
    cache: BlockCache,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Level {
    first: u64,
    blocks: u64,
}

impl<S: BlockSource> Verity<S> {
    /// Reads `source` as `rootfs` describes it, with at most `cache_bytes` of hash blocks kept.
    ///
    /// Nothing is read yet. [`Error::Parameters`] where the sizes contradict each other.
    pub fn new(source: S, rootfs: &Rootfs, cache_bytes: usize) -> Result<Verity<S>> {
        let parameters = |what| Err(Error::Parameters { what });
        if rootfs.data_size == 0 || !rootfs.data_size.is_multiple_of(BLOCK) {
            return parameters("the data size is not a multiple of 4096");
        }
        let data_blocks = rootfs.data_size / BLOCK;
        let Some(levels) = levels(data_blocks) else {
            return parameters("the data size is out of range");
        };
        let tree_blocks: u64 = levels.iter().map(|level| level.blocks).sum();
        if tree_blocks.checked_mul(BLOCK) != Some(rootfs.tree_size) {
            return parameters("the tree size does not fit the data size");
        }
        Ok(Verity {
            source,
            salt: rootfs.salt,
            root_hash: rootfs.root_hash,
            data_blocks,
            levels,
            cache: BlockCache::new(cache_bytes),
        })
    }

    /// Number of data blocks.
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Reads whole data blocks from `first` on into `dst` and verifies them there.
    ///
    /// `dst` must be a multiple of 4096 bytes long. On an error nothing unverified stays in it.
    pub fn read_blocks(&self, first: u64, dst: &mut [u8]) -> Result<()> {
        let result = self.read_verified(first, dst);
        match result {
            Ok(()) => self.source.decrypt(first, dst),
            Err(_) => dst.fill(0),
        }
        result
    }

    fn read_verified(&self, first: u64, dst: &mut [u8]) -> Result<()> {
        if !dst.len().is_multiple_of(BLOCK_SIZE) {
            return Err(Error::Invalid);
        }
        let mut parent: Option<(u64, Arc<Block>)> = None;
        let mut block = first;
        for batch in dst.chunks_mut(BATCH * BLOCK_SIZE) {
            let count = (batch.len() / BLOCK_SIZE) as u64;
            if block
                .checked_add(count)
                .is_none_or(|end| end > self.data_blocks)
            {
                return Err(Error::Source { block });
            }
            self.fetch(block, batch)?;
            for two in batch.chunks(2 * BLOCK_SIZE) {
                let digests = self.digests(two);
                for digest in digests.iter().take(two.len() / BLOCK_SIZE) {
                    self.check(block, digest, &mut parent)?;
                    block = block.saturating_add(1);
                }
            }
        }
        Ok(())
    }

    /// The digests of one or two blocks.
    fn digests(&self, blocks: &[u8]) -> [[u8; DIGEST]; 2] {
        match blocks.split_at_checked(BLOCK_SIZE) {
            Some((one, other)) if other.len() == BLOCK_SIZE => {
                self.source.sha256_pair(&self.salt, [one, other])
            }
            _ => [self.source.sha256(&[&self.salt, blocks]), [0; DIGEST]],
        }
    }

    /// Whether a data block's digest is what the tree says. `parent` is the hash block that was used
    /// last.
    fn check(
        &self,
        block: u64,
        digest: &[u8; DIGEST],
        parent: &mut Option<(u64, Arc<Block>)>,
    ) -> Result<()> {
        let expected = if self.levels.is_empty() {
            Some(&self.root_hash)
        } else {
            let index = block / FANOUT;
            let hashes = match parent {
                Some((at, hashes)) if *at == index => hashes,
                _ => &parent.insert((index, self.hash_block(0, index)?)).1,
            };
            digest_at(hashes, block % FANOUT)
        };
        match expected == Some(digest) {
            true => Ok(()),
            false => Err(Error::Integrity { block }),
        }
    }

    /// The verified hash block `index` of `level`.
    ///
    /// Walks up to the nearest one in the cache, or to the root hash, then down again, verifying.
    fn hash_block(&self, level: usize, index: u64) -> Result<Arc<Block>> {
        let mut path = Vec::new();
        let (mut at, mut number) = (level, index);
        let mut verified = None;
        while let Some(&geometry) = self.levels.get(at) {
            let block = geometry.first.saturating_add(number);
            if let Some(cached) = self.cache.get(block) {
                verified = Some(cached);
                break;
            }
            path.push((at, number, block));
            at = at.saturating_add(1);
            number /= FANOUT;
        }
        while let Some((level, number, block)) = path.pop() {
            let mut fresh = Block::zeroed()?;
            self.fetch(block, fresh.bytes_mut())?;
            let digest = self.source.sha256(&[&self.salt, fresh.bytes()]);
            let expected = match &verified {
                Some(parent) => digest_at(parent, number % FANOUT),
                None => Some(&self.root_hash),
            };
            if expected != Some(&digest) {
                return Err(Error::TreeIntegrity { block, level });
            }
            let fresh = Arc::new(fresh);
            self.cache.insert(block, fresh.clone());
            verified = Some(fresh);
        }
        verified.ok_or(Error::Invalid)
    }

    /// Copies blocks in, unverified.
    fn fetch(&self, block: u64, dst: &mut [u8]) -> Result<()> {
        let offset = block.checked_mul(BLOCK).ok_or(Error::Source { block })?;
        self.source
            .read(offset, dst)
            .map_err(|_| Error::Source { block })
    }
}

/// The digest number `index` of a hash block.
fn digest_at(hashes: &Block, index: u64) -> Option<&[u8; DIGEST]> {
    let start = (index as usize).checked_mul(DIGEST)?;
    hashes.bytes().get(start..)?.first_chunk()
}

/// The levels of a tree over `data_blocks`, level 0 first; none for a single block.
fn levels(data_blocks: u64) -> Option<Vec<Level>> {
    let mut counts = Vec::new();
    let mut blocks = data_blocks;
    while blocks > 1 {
        blocks = blocks.div_ceil(FANOUT);
        counts.push(blocks);
    }
    // On disk the top level comes first, directly after the data.
    let mut first = data_blocks;
    let mut levels = Vec::new();
    for &blocks in counts.iter().rev() {
        levels.push(Level { first, blocks });
        first = first.checked_add(blocks)?;
    }
    first.checked_mul(BLOCK)?;
    levels.reverse();
    Some(levels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_laid_out_top_first() {
        assert_eq!(levels(1).unwrap(), []);
        assert_eq!(
            levels(2).unwrap(),
            [Level {
                first: 2,
                blocks: 1
            }]
        );
        assert_eq!(
            levels(128).unwrap(),
            [Level {
                first: 128,
                blocks: 1
            }]
        );
        let two = levels(129).unwrap();
        assert_eq!(
            two,
            [
                Level {
                    first: 130,
                    blocks: 2
                },
                Level {
                    first: 129,
                    blocks: 1
                }
            ]
        );
        assert_eq!(levels(u64::MAX), None);
    }
}
