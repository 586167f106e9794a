//! Saved pages, and whether a live one is still what was saved.
//!
//! A comparison reads both. Where the CPU finds fingerprints fast enough
//! ([`Platform::fingerprints`](crate::Platform::fingerprints)) a page is told by its own, and what was
//! saved for one child serves for the next if it is still the same: then a fork and the child's end
//! read the memory once each, and copy nothing.
//!
//! Invariant: the tag of a saved page is that of its bytes, or unknown.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use super::PAGE;
use crate::platform::platform;

pub(super) const PAGE_LEN: usize = PAGE as usize;
/// Pages whose fingerprints are found at a time: few enough to be in the cache when they are used.
const BATCH: usize = 16;
/// Bytes that wait for the next fork at most, over all spaces.
const KEPT_MAX: u64 = 16 << 20;
/// Only a heap that has so much more keeps anything: others need what they have, and in one piece.
const PLENTY: u64 = 64 << 20;

static KEPT: AtomicU64 = AtomicU64::new(0);

/// A page's fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u128);

impl Tag {
    pub const UNKNOWN: Tag = Tag(0);

    fn is_known(self) -> bool {
        self != Tag::UNKNOWN
    }
}

/// Looks at pages one after the other, with their tags as far as the CPU finds them fast enough.
pub(super) fn each_page(bytes: &mut [u8], look: &mut dyn FnMut(&mut [u8], Tag)) {
    let mut tags = [0; BATCH];
    for batch in bytes.chunks_mut(BATCH * PAGE_LEN) {
        let tags = &mut tags[..batch.len() / PAGE_LEN];
        if !platform().fingerprints(batch, tags) {
            tags.fill(Tag::UNKNOWN.0);
        }
        for (page, tag) in batch.chunks_exact_mut(PAGE_LEN).zip(tags) {
            look(page, Tag(*tag));
        }
    }
}

/// The content of a saved page. Spaces whose pages are equal share the bytes.
#[derive(Clone)]
pub(super) struct SavedPage {
    bytes: Arc<[u8]>,
    tag: Tag,
}

impl SavedPage {
    pub fn new(bytes: &[u8], tag: Tag) -> SavedPage {
        let bytes = Arc::from(bytes);
        SavedPage { bytes, tag }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// To write to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.tag = Tag::UNKNOWN;
        Arc::make_mut(&mut self.bytes)
    }

    /// Whether a live page, of this tag, has the same content.
    pub fn is(&self, live: &[u8], tag: Tag) -> bool {
        match self.tag.is_known() && tag.is_known() {
            true => self.tag == tag,
            false => *self.bytes == *live,
        }
    }

    /// Exchanges the content with a live page's, of this tag.
    pub fn exchange(&mut self, live: &mut [u8], tag: Tag) {
        if self.is(live, tag) {
            return;
        }
        match Arc::get_mut(&mut self.bytes) {
            Some(saved) => live.swap_with_slice(saved),
            None => {
                let old = Arc::from(&*live);
                live.copy_from_slice(&self.bytes);
                self.bytes = old;
            }
        }
        self.tag = tag;
    }

    #[cfg(test)]
    pub fn is_shared_with(&self, other: &SavedPage) -> bool {
        Arc::ptr_eq(&self.bytes, &other.bytes)
    }
}

/// What was saved until a space became resident again: most of it is what the space still has when it
/// forks the next time.
#[derive(Default)]
pub(super) struct Kept {
    pages: BTreeMap<u64, SavedPage>,
    bytes: u64,
}

impl Kept {
    /// Keeps pages if they can be told by tags, and all spaces together keep no more than they may.
    pub fn new(pages: BTreeMap<u64, SavedPage>) -> Kept {
        let bytes = pages.len() as u64 * PAGE;
        let (_, available) = platform().heap_usage();
        if available < PLENTY || !pages.values().any(|page| page.tag.is_known()) {
            return Kept::default();
        }
        let fits = |kept: u64| Some(kept + bytes).filter(|&sum| sum <= KEPT_MAX);
        match KEPT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Kept { pages, bytes },
            Err(_) => Kept::default(),
        }
    }

    /// The pages in ascending order, to be looked through once.
    pub fn into_cursor(mut self) -> Cursor {
        Cursor(core::mem::take(&mut self.pages).into_iter().peekable())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// See [`Kept::into_cursor`].
pub(super) struct Cursor(
    core::iter::Peekable<alloc::collections::btree_map::IntoIter<u64, SavedPage>>,
);

impl Cursor {
    /// The page that was saved of an address, if it has this tag. Addresses ascend.
    pub fn find(&mut self, address: u64, tag: Tag) -> Option<SavedPage> {
        while self.0.next_if(|(at, _)| *at < address).is_some() {}
        let (_, page) = self.0.next_if(|(at, _)| *at == address)?;
        (tag.is_known() && page.tag == tag).then_some(page)
    }
}
