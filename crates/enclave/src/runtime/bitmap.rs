//! What the enclave knows of each page of the application, a bit each.
//!
//! Two levels; leaves appear on first use.

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use alloc::boxed::Box;
use bulla_libos::Result;

pub const PAGE: u64 = 4096;
/// Pages that one leaf covers: 512 words of 64 bits.
const LEAF_PAGES: u64 = 512 * 64;
/// Leaves for the widest ELRANGE, 2^40 bytes.
const LEAVES: usize = (1 << 28) / LEAF_PAGES as usize;

/// A property of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// In use by the application: accepted, with content.
    Committed = 0,
    /// Its EPCM entry allows execution.
    Code = 1,
}

type Leaf = [[AtomicU64; 512]; 2];

static PAGES: [AtomicPtr<Leaf>; LEAVES] = [const { AtomicPtr::new(core::ptr::null_mut()) }; LEAVES];

fn leaf(page: u64, create: bool) -> Option<&'static Leaf> {
    let entry = &PAGES[(page / LEAF_PAGES) as usize];
    let mut pointer = entry.load(Ordering::Acquire);
    if pointer.is_null() {
        if !create {
            return None;
        }
        let fresh = Box::into_raw(Box::new([const { [const { AtomicU64::new(0) }; 512] }; 2]));
        match entry.compare_exchange(
            core::ptr::null_mut(),
            fresh,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => pointer = fresh,
            Err(other) => {
                // SAFETY: `fresh` was not published.
                drop(unsafe { Box::from_raw(fresh) });
                pointer = other;
            }
        }
    }
    // SAFETY: leaves are never freed.
    Some(unsafe { &*pointer })
}

/// Whether the page at `address` has a mark.
pub fn has(mark: Mark, address: u64) -> bool {
    let page = address / PAGE;
    match leaf(page, false) {
        Some(leaf) => {
            let index = page % LEAF_PAGES;
            let word = &leaf[mark as usize][(index / 64) as usize];
            word.load(Ordering::Relaxed) & 1 << (index % 64) != 0
        }
        None => false,
    }
}

/// Sets or clears a mark of a run of pages.
pub fn set(mark: Mark, address: u64, len: u64, value: bool) {
    let (mut page, end) = (address / PAGE, (address + len) / PAGE);
    while page < end {
        let index = page % LEAF_PAGES;
        let count = (64 - index % 64).min(end - page);
        if let Some(leaf) = leaf(page, value) {
            let ones = if count == 64 {
                u64::MAX
            } else {
                (1 << count) - 1
            };
            let mask = ones << (index % 64);
            let word = &leaf[mark as usize][(index / 64) as usize];
            if value {
                word.fetch_or(mask, Ordering::Relaxed);
            } else {
                word.fetch_and(!mask, Ordering::Relaxed);
            }
        }
        page += count;
    }
}

/// Calls `act` for each maximal run of pages in the range whose mark is `value`.
pub fn for_runs(
    mark: Mark,
    address: u64,
    len: u64,
    value: bool,
    mut act: impl FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let end = address + len;
    let mut at = address;
    while at < end {
        let page = at / PAGE;
        // A leaf that does not exist is a long run without any mark.
        if leaf(page, false).is_none() {
            let run_end = ((page / LEAF_PAGES + 1) * LEAF_PAGES * PAGE).min(end);
            if !value {
                act(at, run_end - at)?;
            }
            at = run_end;
            continue;
        }
        let start = at;
        let state = has(mark, at);
        while at < end && has(mark, at) == state && leaf(at / PAGE, false).is_some() {
            at += PAGE;
        }
        if state == value {
            act(start, at - start)?;
        }
    }
    Ok(())
}
