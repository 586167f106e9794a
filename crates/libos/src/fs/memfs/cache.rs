//! Clean pages of the lower layer that were read and verified, so that a file read again and again
//! is not hashed each time (about 2 µs a page).
//!
//! A page is kept when it is read for the second time ([`admits`]): most of what a program brings in
//! as it starts is never asked for again, and keeping it costs as much as verifying it.
//!
//! Pages are spread over shards by their identity. A full shard gives up pages in the order they
//! came, except those that were used since (second chance).

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hashbrown::HashMap;
use spin::Once;

use super::data::{PAGE, Page};
use crate::fs::inode::FileId;
use crate::sync::SpinLock;

const SHARDS: usize = 64;
/// Size until the kernel heap is known.
const DEFAULT_BYTES: u64 = 16 << 20;

type Key = (FileId, u64);

struct Entry {
    page: Arc<Page>,
    used: bool,
}

#[derive(Default)]
struct Shard {
    pages: HashMap<Key, Entry>,
    order: VecDeque<Key>,
}

static LIMIT: AtomicU64 = AtomicU64::new(DEFAULT_BYTES);
static CACHE: Once<[SpinLock<Shard>; SHARDS]> = Once::new();

/// Sets how many bytes of pages are kept.
pub fn set_limit(bytes: u64) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// Whether a file of this size is worth keeping when it is read from end to end. The pages of one
/// that fills the cache would be gone before they are read again, and all others with them.
pub fn is_worth_keeping(size: u64) -> bool {
    size <= LIMIT.load(Ordering::Relaxed) / 2
}

fn shard(key: &Key) -> &'static SpinLock<Shard> {
    // Pages of a run go to different shards.
    let mixed = key.0.inode.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let shards = CACHE.call_once(|| core::array::from_fn(|_| SpinLock::new(Shard::default())));
    &shards[(mixed ^ key.1) as usize % SHARDS]
}

/// How many pages are remembered as read; another one that falls on the same place displaces them.
const SEEN: usize = 4 << 10;
static SEEN_PAGES: [AtomicU32; SEEN] = [const { AtomicU32::new(0) }; SEEN];

/// Whether a page that was just read is worth keeping: it was read before, not too long ago.
/// Remembers it in any case.
pub fn admits(file: FileId, index: u64) -> bool {
    let mixed = (file.inode ^ file.device.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ index).wrapping_mul(0xff51_afd7_ed55_8ccd);
    // 0 is no page.
    let mark = mixed as u32 | 1;
    SEEN_PAGES[(mixed >> 32) as usize % SEEN].swap(mark, Ordering::Relaxed) == mark
}

/// A page, if it is kept.
pub fn get(file: FileId, index: u64) -> Option<Arc<Page>> {
    let key = (file, index);
    let mut shard = shard(&key).lock();
    let entry = shard.pages.get_mut(&key)?;
    entry.used = true;
    Some(entry.page.clone())
}

/// Keeps a page; others go where there is no room.
pub fn insert(file: FileId, index: u64, page: Arc<Page>) {
    let room = (LIMIT.load(Ordering::Relaxed) / PAGE) as usize / SHARDS;
    if room == 0 {
        return;
    }
    let key = (file, index);
    let mut shard = shard(&key).lock();
    if shard.pages.contains_key(&key) {
        return;
    }
    while shard.pages.len() >= room {
        let Some(oldest) = shard.order.pop_front() else {
            break;
        };
        match shard.pages.get_mut(&oldest) {
            Some(entry) if entry.used => {
                entry.used = false;
                shard.order.push_back(oldest);
            }
            _ => {
                shard.pages.remove(&oldest);
            }
        }
    }
    shard.pages.insert(key, Entry { page, used: false });
    shard.order.push_back(key);
}

/// Keeps a page in the place of an older one.
pub fn replace(file: FileId, index: u64, page: Arc<Page>) {
    let key = (file, index);
    if let Some(entry) = shard(&key).lock().pages.get_mut(&key) {
        entry.page = page;
        entry.used = true;
        return;
    }
    insert(file, index, page);
}

/// Gives up a file's pages from an index on.
pub fn forget(file: FileId, first: u64) {
    let shards = CACHE.call_once(|| core::array::from_fn(|_| SpinLock::new(Shard::default())));
    for shard in shards {
        let shard = &mut *shard.lock();
        let gone = |key: &Key| key.0 == file && key.1 >= first;
        shard.pages.retain(|key, _| !gone(key));
        shard.order.retain(|key| !gone(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_fill_the_cache_is_not_kept() {
        let limit = LIMIT.load(Ordering::Relaxed);
        assert!(is_worth_keeping(0) && is_worth_keeping(limit / 2));
        assert!(!is_worth_keeping(limit / 2 + 1));
    }

    #[test]
    fn what_is_read_twice_is_worth_keeping() {
        let file = FileId {
            device: 0xcace,
            inode: 2,
        };
        let admitted = |index| admits(file, index);
        assert!(!admitted(7));
        assert!(admitted(7) && admitted(7));
        let again = (1000..1512).filter(|&index| admitted(index)).count();
        assert_eq!(again, 0, "new ones");
        let again = (1000..1512).filter(|&index| admitted(index)).count();
        assert!(again > 450, "{again} of 512 are remembered");
    }

    #[test]
    fn pages_in_use_stay() {
        let room = (LIMIT.load(Ordering::Relaxed) / PAGE) as usize / SHARDS;
        let file = FileId {
            device: 0xcace,
            inode: 1,
        };
        let page = || Arc::new(Page([0; PAGE as usize]));
        let step = SHARDS as u64;
        insert(file, 0, page());
        for at in 1..=3 * room as u64 {
            assert!(get(file, 0).is_some(), "used page given up at {at}");
            insert(file, at * step, page());
        }
        assert!(get(file, step).is_none());
        assert!(get(file, 3 * room as u64 * step).is_some());
    }
}
