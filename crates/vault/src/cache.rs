//! Verified blocks in enclave memory, bounded.
//!
//! Set-associative: a block can live in one of [`WAYS`] places of one set, the least recently used
//! one of which gives way. So there is no global lock, no list to keep in order, and the memory
//! used never exceeds the bound. A user of a block holds a reference to it; eviction never pulls it
//! away. File content enters only when it is read again while its set still remembers that it was
//! read before ([`BlockCache::admits`]), so that streaming through a large file displaces nothing.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use spin::Mutex;

use crate::{BLOCK_SIZE, Error, Result};

/// Places per set: enough that few blocks collide, few enough to search in one cache line or two.
const WAYS: usize = 8;

/// One verified block of 4096 bytes.
pub struct Block(Vec<u8>);

impl Block {
    /// A block of zeros, or an error where memory is short.
    pub(crate) fn zeroed() -> Result<Block> {
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(BLOCK_SIZE)
            .map_err(|_| Error::NoMemory)?;
        bytes.resize(BLOCK_SIZE, 0);
        Ok(Block(bytes))
    }

    /// The bytes, always 4096.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// A bounded cache of verified blocks, keyed by block number.
pub struct BlockCache {
    sets: Box<[Mutex<Set>]>,
}

struct Set {
    clock: u64,
    ways: Vec<Way>,
    /// Blocks that were read but not kept, as a ring.
    seen: [u64; WAYS],
    next: usize,
}

struct Way {
    number: u64,
    used: u64,
    block: Arc<Block>,
}

impl BlockCache {
    /// A cache of at most `bytes`, rounded down to whole sets of 32 KiB; none at all below that.
    pub fn new(bytes: usize) -> BlockCache {
        let sets = bytes / (BLOCK_SIZE * WAYS);
        BlockCache {
            sets: (0..sets).map(|_| Mutex::new(Set::new())).collect(),
        }
    }

    /// Most bytes of blocks that the cache holds.
    pub fn capacity(&self) -> usize {
        self.sets.len().saturating_mul(BLOCK_SIZE * WAYS)
    }

    /// The block, if it is here.
    pub fn get(&self, number: u64) -> Option<Arc<Block>> {
        let mut set = self.set(number)?.lock();
        let now = set.tick();
        let way = set.ways.iter_mut().find(|way| way.number == number)?;
        way.used = now;
        Some(way.block.clone())
    }

    /// Keeps a verified block, in place of the one of its set that was unused longest.
    pub fn insert(&self, number: u64, block: Arc<Block>) {
        let Some(set) = self.set(number) else { return };
        let mut set = set.lock();
        let used = set.tick();
        let new = Way {
            number,
            used,
            block,
        };
        let old = if let Some(same) = set.ways.iter_mut().find(|way| way.number == number) {
            core::mem::replace(same, new)
        } else if set.ways.len() < WAYS {
            if set.ways.try_reserve_exact(WAYS).is_ok() {
                set.ways.push(new);
            }
            return;
        } else if let Some(oldest) = set.ways.iter_mut().min_by_key(|way| way.used) {
            core::mem::replace(oldest, new)
        } else {
            return;
        };
        drop(set);
        // Freed outside the lock.
        drop(old);
    }

    /// Whether a block of content that was just read should be kept: it was read before, not long
    /// ago. Remembers it in any case.
    pub fn admits(&self, number: u64) -> bool {
        let Some(set) = self.set(number) else {
            return false;
        };
        let mut set = set.lock();
        if set.seen.contains(&number) {
            return true;
        }
        let next = set.next;
        if let Some(place) = set.seen.get_mut(next) {
            *place = number;
        }
        set.next = next.wrapping_add(1) % WAYS;
        false
    }

    fn set(&self, number: u64) -> Option<&Mutex<Set>> {
        // Fibonacci hashing: neighbours and multiples of 128 (hash tree) spread over all sets.
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let index = spread.checked_rem(self.sets.len() as u64)?;
        self.sets.get(index as usize)
    }
}

impl Set {
    fn new() -> Set {
        Set {
            clock: 0,
            ways: Vec::new(),
            seen: [u64::MAX; WAYS],
            next: 0,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock = self.clock.wrapping_add(1);
        self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(value: u8) -> Arc<Block> {
        let mut block = Block::zeroed().unwrap();
        block.bytes_mut().fill(value);
        Arc::new(block)
    }

    #[test]
    fn keeps_what_is_used_and_stays_bounded() {
        let cache = BlockCache::new(BLOCK_SIZE * WAYS);
        assert_eq!(cache.capacity(), BLOCK_SIZE * WAYS);
        for number in 0..100 {
            cache.insert(number, block(number as u8));
            assert_eq!(
                cache.get(0).unwrap().bytes()[0],
                0,
                "block 0 is used at each step"
            );
        }
        let held = (0..100).filter(|&n| cache.get(n).is_some()).count();
        assert_eq!(held, WAYS);
        cache.insert(0, block(7));
        assert_eq!(cache.get(0).unwrap().bytes()[4095], 7);
    }

    #[test]
    fn admits_what_comes_again_soon() {
        let cache = BlockCache::new(BLOCK_SIZE * WAYS);
        assert!(!cache.admits(1));
        assert!(cache.admits(1));
        (100..100 + WAYS as u64).for_each(|number| assert!(!cache.admits(number)));
        assert!(!cache.admits(1), "forgotten");
    }

    #[test]
    fn of_no_size_keeps_nothing() {
        let cache = BlockCache::new(100);
        assert_eq!(cache.capacity(), 0);
        cache.insert(1, block(1));
        assert!(cache.get(1).is_none() && !cache.admits(1) && !cache.admits(1));
    }

    #[test]
    fn spreads_over_sets() {
        let cache = BlockCache::new(64 * BLOCK_SIZE * WAYS);
        for number in 0..256 {
            cache.insert(number * 128, block(1));
        }
        let held = (0..256).filter(|n| cache.get(n * 128).is_some()).count();
        assert!(held > 240, "{held} of 256 blocks kept in a cache of 512");
    }
}
