//! Pages that the application has given back and that are still in the enclave.
//!
//! Giving a page to the host and taking a new one costs two exits, two EACCEPTs and the clearing of
//! a page by the CPU; clearing it ourselves costs a tenth of a microsecond. So what is given back is
//! kept for a while, where it is. Its content is nobody's: it is cleared before it is used again.
//! Only pages without the right to execute are kept, since EPCM rights would go to the next owner.
//!
//! Lock order: innermost but for the heap. Who takes pages waits while others are removed.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use bulla_libos::sync::SpinLock;

use crate::bitmap::PAGE;
use crate::memory;

/// Bytes kept at most: what a few small processes use. Part of the runtime's own memory.
const MAX: u64 = 8 << 20;
/// Longer runs are not kept.
pub const LARGEST: u64 = 2 << 20;

/// Kept pages in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub start: u64,
    pub len: u64,
    pub access: Access,
}

/// What the host was asked to let programs do with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    None,
    ReadWrite,
    /// Something else.
    Other,
}

impl Piece {
    pub fn closed(start: u64, len: u64) -> Piece {
        Piece {
            start,
            len,
            access: Access::None,
        }
    }
}

struct Run {
    end: u64,
    access: Access,
    /// Counts up: the lowest are the oldest.
    age: u64,
}

struct Kept {
    runs: BTreeMap<u64, Run>,
    age: u64,
}

static KEPT: SpinLock<Kept> = SpinLock::new(Kept {
    runs: BTreeMap::new(),
    age: 0,
});
/// Bytes in the runs, those being removed included.
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Takes what is kept of a range, in ascending order.
pub fn take(start: u64, len: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    if BYTES.load(Ordering::SeqCst) == 0 {
        return pieces;
    }
    let end = start + len;
    let mut kept = KEPT.lock();
    kept.split(start);
    kept.split(end);
    while let Some((&at, run)) = kept.runs.range(start..end).next() {
        pieces.push(Piece {
            start: at,
            len: run.end - at,
            access: run.access,
        });
        BYTES.fetch_sub(run.end - at, Ordering::SeqCst);
        kept.runs.remove(&at);
    }
    pieces
}

/// The addresses have a new owner, who is to meet a fault where it has no page yet.
pub fn close(start: u64, len: u64) {
    if BYTES.load(Ordering::SeqCst) == 0 {
        return;
    }
    let end = start + len;
    let mut kept = KEPT.lock();
    kept.split(start);
    kept.split(end);
    for (&at, run) in kept.runs.range_mut(start..end) {
        if run.access != Access::None {
            run.access = Access::None;
            memory::hide(at, run.end - at);
        }
    }
}

/// Keeps pages that are not in use; the oldest make room.
pub fn put(piece: Piece) {
    let mut kept = KEPT.lock();
    kept.age += 1;
    let run = Run {
        end: piece.start + piece.len,
        access: piece.access,
        age: kept.age,
    };
    kept.runs.insert(piece.start, run);
    BYTES.fetch_add(piece.len, Ordering::SeqCst);
    kept.shrink(MAX);
}

/// Gives all to the host; whether there was any.
pub fn release_all() -> bool {
    let mut kept = KEPT.lock();
    let any = !kept.runs.is_empty();
    kept.shrink(0);
    any
}

impl Kept {
    fn split(&mut self, at: u64) {
        if let Some((_, run)) = self.runs.range_mut(..at).next_back()
            && run.end > at
        {
            let rest = Run { ..*run };
            run.end = at;
            self.runs.insert(at, rest);
        }
    }

    /// Removes the oldest until no more than `bytes` are left.
    fn shrink(&mut self, bytes: u64) {
        while BYTES.load(Ordering::SeqCst) > bytes {
            let oldest = self.runs.iter().min_by_key(|(_, run)| run.age);
            let Some((&start, run)) = oldest else {
                return;
            };
            let len = run.end - start;
            debug_assert!(len.is_multiple_of(PAGE));
            self.runs.remove(&start);
            // A host that refuses keeps its page: it is not used again.
            let _ = memory::remove(start, len);
            BYTES.fetch_sub(len, Ordering::SeqCst);
        }
    }
}
