//! What the enclave knows of each page of the application, a bit each.
//!
//! Three levels; what is below the first appears on first use.

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use alloc::boxed::Box;
use bulla_abi::layout::LayoutKind;
use bulla_libos::Result;

pub const PAGE: u64 = 4096;
/// Pages that one leaf covers: 512 words of 64 bits.
const LEAF_PAGES: u64 = 512 * 64;
/// Leaves that one branch holds.
const BRANCH_LEAVES: u64 = 4096;
/// Branches for the widest ELRANGE.
const BRANCHES: usize =
    (LayoutKind::Dynamic.elrange_size() / (BRANCH_LEAVES * LEAF_PAGES * PAGE)) as usize;

/// A property of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// In use by the application: accepted, with content.
    Committed = 0,
    /// Its EPCM entry allows execution.
    Code = 1,
}

type Leaf = [[AtomicU64; 512]; 2];
type Branch = [AtomicPtr<Leaf>; BRANCH_LEAVES as usize];

static PAGES: [AtomicPtr<Branch>; BRANCHES] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; BRANCHES];

/// What an entry points to; `create` makes it when there is nothing yet.
fn follow<T>(entry: &AtomicPtr<T>, create: Option<fn() -> Box<T>>) -> Option<&T> {
    let mut pointer = entry.load(Ordering::Acquire);
    if pointer.is_null() {
        let fresh = Box::into_raw(create?());
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
    // SAFETY: what an entry points to came from a box and is never freed.
    Some(unsafe { &*pointer })
}

fn leaf(page: u64, create: bool) -> Option<&'static Leaf> {
    let new_branch = || Box::new([const { AtomicPtr::new(core::ptr::null_mut()) }; _]);
    let new_leaf = || Box::new([const { [const { AtomicU64::new(0) }; 512] }; 2]);
    let index = page / LEAF_PAGES;
    let branch = follow(
        &PAGES[(index / BRANCH_LEAVES) as usize],
        create.then_some(new_branch as fn() -> Box<Branch>),
    )?;
    follow(
        &branch[(index % BRANCH_LEAVES) as usize],
        create.then_some(new_leaf as fn() -> Box<Leaf>),
    )
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
