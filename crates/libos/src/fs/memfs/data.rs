//! The content of a regular file: pages, and what still shows through from the lower layer.
//!
//! Pages are shared by reference count: a reader takes a reference under the lock and copies to
//! user memory without it; a writer that finds a page shared writes to a copy.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use core::sync::atomic::Ordering;

use super::MemFs;
use crate::Result;
use crate::fs::inode::Find;

pub const PAGE: u64 = 4096;

/// Seals of fcntl(2) F_ADD_SEALS.
pub const SEAL_SEAL: u32 = 1;
pub const SEAL_SHRINK: u32 = 2;
pub const SEAL_GROW: u32 = 4;
pub const SEAL_WRITE: u32 = 8;
pub const SEAL_FUTURE_WRITE: u32 = 16;

/// Pages in one chunk of the map.
const CHUNK: u64 = 64;
/// Memory of a chunk's own, charged with its first page.
const CHUNK_COST: u64 = CHUNK * 8;

/// One page of content.
#[derive(Clone)]
pub struct Page(pub [u8; PAGE as usize]);

type Chunk = [Option<Arc<Page>>; CHUNK as usize];

/// What a range of a file consists of.
pub enum Piece {
    /// A page of the upper layer.
    Page(Arc<Page>),
    /// This many zeros.
    Hole(u64),
    /// This many bytes of the lower layer's file at the same offset.
    Lower(u64),
}

/// A file's content.
#[derive(Default)]
pub struct Data {
    pub size: u64,
    /// Up to here what is not in `chunks` comes from the lower layer; beyond it are holes. Never
    /// above `size`.
    pub lower_size: u64,
    pub seals: u32,
    /// The smallest size since [`Data::snapshot`].
    pub smallest: u64,
    chunks: BTreeMap<u64, Box<Chunk>>,
    /// Pages present.
    pub count: u64,
}

impl Data {
    /// Content that comes from the lower layer up to `lower_size`.
    pub fn new(lower_size: u64, seals: u32) -> Data {
        Data {
            size: lower_size,
            lower_size,
            seals,
            ..Data::default()
        }
    }

    fn page(&self, index: u64) -> Option<&Arc<Page>> {
        self.chunks.get(&(index / CHUNK))?[(index % CHUNK) as usize].as_ref()
    }

    /// What is at `offset` (below the size), up to `len` bytes (not 0).
    pub fn piece(&self, offset: u64, len: u64) -> Piece {
        let index = offset / PAGE;
        if let Some(page) = self.page(index) {
            return Piece::Page(page.clone());
        }
        let last = (offset + len - 1) / PAGE;
        let mut end = if self.count == 0 { last + 1 } else { index + 1 };
        while end <= last && self.page(end).is_none() {
            end += 1;
        }
        let end = (end * PAGE).min(offset + len);
        if offset < self.lower_size {
            Piece::Lower(end.min(self.lower_size) - offset)
        } else {
            Piece::Hole(end - offset)
        }
    }

    /// The page to write to, made from `below` (the lower layer's bytes, or zeros) if it is not
    /// there. Charges the file system.
    pub fn page_for_write(
        &mut self,
        fs: &MemFs,
        index: u64,
        below: Option<&Page>,
    ) -> Result<&mut Page> {
        let (number, slot) = (index / CHUNK, (index % CHUNK) as usize);
        if let alloc::collections::btree_map::Entry::Vacant(e) = self.chunks.entry(number) {
            fs.charge(CHUNK_COST)?;
            e.insert(Box::new([const { None }; CHUNK as usize]));
        }
        let chunk = self.chunks.get_mut(&number).expect("inserted above");
        let place = &mut chunk[slot];
        if place.is_none() {
            fs.charge(PAGE)?;
            fs.pages.fetch_add(1, Ordering::Relaxed);
            *place = Some(match below {
                Some(page) => Arc::new(page.clone()),
                None => Arc::new(Page([0; PAGE as usize])),
            });
            self.count += 1;
        }
        Ok(Arc::make_mut(place.as_mut().expect("filled above")))
    }

    /// Whether the page is there already.
    pub fn has_page(&self, index: u64) -> bool {
        self.page(index).is_some()
    }

    /// Whether the lower layer shows through in the page.
    pub fn is_lower(&self, index: u64) -> bool {
        index * PAGE < self.lower_size && !self.has_page(index)
    }

    /// Drops the pages from `first` up to `end` (exclusive).
    pub fn remove_pages(&mut self, fs: &MemFs, first: u64, end: u64) {
        if first >= end {
            return;
        }
        let mut empty = Vec::new();
        for (&number, chunk) in self.chunks.range_mut(first / CHUNK..=(end - 1) / CHUNK) {
            let base = number * CHUNK;
            let from = first.saturating_sub(base).min(CHUNK) as usize;
            let to = (end - base).min(CHUNK) as usize;
            for slot in &mut chunk[from..to] {
                if slot.take().is_some() {
                    fs.release(PAGE);
                    fs.pages.fetch_sub(1, Ordering::Relaxed);
                    self.count -= 1;
                }
            }
            if chunk.iter().all(Option::is_none) {
                empty.push(number);
            }
        }
        for number in empty {
            self.chunks.remove(&number);
            fs.release(CHUNK_COST);
        }
    }

    /// Shrinks or grows the file.
    pub fn resize(&mut self, fs: &MemFs, size: u64) {
        if size < self.size {
            self.remove_pages(fs, size.div_ceil(PAGE), u64::MAX / PAGE);
            self.lower_size = self.lower_size.min(size);
            self.smallest = self.smallest.min(size);
            // The rest of the last page must read as zeros if the file grows again.
            self.clear_in_page(size, (size | (PAGE - 1)) + 1);
        }
        self.size = size;
    }

    /// Clears bytes of one page if it is there.
    pub fn clear_in_page(&mut self, from: u64, to: u64) {
        let index = from / PAGE;
        let (number, slot) = (index / CHUNK, (index % CHUNK) as usize);
        if let Some(page) = self
            .chunks
            .get_mut(&number)
            .and_then(|chunk| chunk[slot].as_mut())
        {
            let start = (from % PAGE) as usize;
            Arc::make_mut(page).0[start..start + (to - from) as usize].fill(0);
        }
    }

    /// SEEK_DATA and SEEK_HOLE.
    pub fn find(&self, what: Find, offset: u64) -> Option<u64> {
        let mut at = offset;
        while at < self.size {
            let index = at / PAGE;
            let is_data = self.has_page(index) || at < self.lower_size;
            if is_data == (what == Find::Data) {
                return Some(at);
            }
            at = if is_data {
                (index + 1) * PAGE
            } else {
                self.next_page(index + 1)
                    .map_or(self.size, |page| page * PAGE)
            };
        }
        (what == Find::Hole && offset < self.size).then_some(self.size)
    }

    fn next_page(&self, from: u64) -> Option<u64> {
        self.chunks
            .range(from / CHUNK..)
            .find_map(|(&number, chunk)| {
                let base = number * CHUNK;
                let skip = from.saturating_sub(base) as usize;
                let found = chunk.iter().skip(skip).position(Option::is_some)?;
                Some(base + (skip + found) as u64)
            })
    }

    /// Gives all pages back.
    pub fn clear(&mut self, fs: &MemFs) {
        fs.release(self.count * PAGE + self.chunks.len() as u64 * CHUNK_COST);
        fs.pages.fetch_sub(self.count, Ordering::Relaxed);
        self.chunks.clear();
        self.count = 0;
    }

    /// All pages, to be written down. They stay; one that is written to meanwhile becomes another.
    pub fn snapshot(&mut self) -> Vec<(u64, Arc<Page>)> {
        self.smallest = self.size;
        let chunks = self.chunks.iter();
        let all = chunks.flat_map(|(number, chunk)| {
            let slots = chunk.iter().enumerate();
            slots
                .filter_map(move |(slot, page)| Some((number * CHUNK + slot as u64, page.clone()?)))
        });
        all.collect()
    }

    /// A snapshot of a file of `size` bytes is in the lower layer now: what has not changed since
    /// comes from there, and is handed to `clean`.
    pub fn settle(
        &mut self,
        fs: &MemFs,
        size: u64,
        pages: Vec<(u64, Arc<Page>)>,
        clean: &mut dyn FnMut(u64, Arc<Page>),
    ) {
        self.lower_size = size.min(self.smallest);
        for (index, page) in pages {
            let same = self.page(index).is_some_and(|now| Arc::ptr_eq(now, &page));
            if same && index * PAGE < self.lower_size {
                self.remove_pages(fs, index, index + 1);
                clean(index, page);
            }
        }
    }
}
