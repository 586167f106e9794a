//! Sets of pages.

use alloc::collections::BTreeMap;
use core::ops::Range;

use super::allocator::PAGE;

/// Pages per bitmap.
const CHUNK: u64 = 512;

/// A set of pages, as bitmaps of 2 MiB each. Addresses are page aligned.
#[derive(Clone, Default)]
pub struct PageSet {
    chunks: BTreeMap<u64, [u64; 8]>,
    count: u64,
}

impl PageSet {
    pub const fn new() -> PageSet {
        PageSet {
            chunks: BTreeMap::new(),
            count: 0,
        }
    }

    /// Number of pages in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn contains(&self, address: u64) -> bool {
        let page = address / PAGE;
        let bit = page % CHUNK;
        let chunk = self.chunks.get(&(page / CHUNK));
        chunk.is_some_and(|chunk| chunk[(bit / 64) as usize] >> (bit % 64) & 1 != 0)
    }

    /// Adds the pages of a range.
    pub fn insert(&mut self, range: Range<u64>) {
        self.apply(range, |word, mask| *word |= mask);
    }

    /// Takes the pages of a range out; returns how many there were.
    pub fn remove(&mut self, range: Range<u64>) -> u64 {
        let before = self.count;
        let last = range.end.div_ceil(PAGE * CHUNK);
        if last - range.start / (PAGE * CHUNK) > 64 {
            // A huge range with few pages: walk what is there.
            let chunks = self.chunks.range(range.start / PAGE / CHUNK..last);
            let present: alloc::vec::Vec<u64> = chunks.map(|(&at, _)| at).collect();
            for chunk in present {
                let start = (chunk * CHUNK * PAGE).max(range.start);
                let end = ((chunk + 1) * CHUNK * PAGE).min(range.end);
                self.apply(start..end, |word, mask| *word &= !mask);
            }
        } else {
            self.apply(range, |word, mask| *word &= !mask);
        }
        before - self.count
    }

    fn apply(&mut self, range: Range<u64>, change: impl Fn(&mut u64, u64)) {
        let (mut page, end) = (range.start / PAGE, range.end.div_ceil(PAGE));
        while page < end {
            let chunk = self.chunks.entry(page / CHUNK).or_default();
            let chunk_end = (page / CHUNK + 1) * CHUNK;
            while page < end.min(chunk_end) {
                let bit = page % 64;
                let len = (64 - bit).min(end - page);
                let mask = if len == 64 {
                    u64::MAX
                } else {
                    ((1 << len) - 1) << bit
                };
                let word = &mut chunk[(page % CHUNK / 64) as usize];
                let before = word.count_ones();
                change(word, mask);
                self.count = self.count + u64::from(word.count_ones()) - u64::from(before);
                page += len;
            }
            if chunk.iter().all(|&word| word == 0) {
                self.chunks.remove(&((page - 1) / CHUNK));
            }
        }
    }

    /// The first page of the range that is in the set.
    pub fn next(&self, range: Range<u64>) -> Option<u64> {
        let (first, end) = (range.start / PAGE, range.end.div_ceil(PAGE));
        for (&index, chunk) in self
            .chunks
            .range(first / CHUNK..end.div_ceil(CHUNK).max(first / CHUNK))
        {
            for (at, &word) in chunk.iter().enumerate() {
                let base = index * CHUNK + at as u64 * 64;
                let skip = first.saturating_sub(base);
                if skip >= 64 {
                    continue;
                }
                let word = word >> skip << skip;
                if word != 0 {
                    let page = base + u64::from(word.trailing_zeros());
                    return (page < end).then_some(page * PAGE);
                }
            }
        }
        None
    }

    /// The last page of the range that is in the set.
    pub fn last(&self, range: Range<u64>) -> Option<u64> {
        let (first, end) = (range.start / PAGE, range.end.div_ceil(PAGE));
        for (&index, chunk) in self
            .chunks
            .range(first / CHUNK..end.div_ceil(CHUNK).max(first / CHUNK))
            .rev()
        {
            for (at, &word) in chunk.iter().enumerate().rev() {
                let base = index * CHUNK + at as u64 * 64;
                if base >= end {
                    continue;
                }
                let keep = (end - base).min(64);
                let word = if keep == 64 {
                    word
                } else {
                    word & ((1 << keep) - 1)
                };
                if word != 0 {
                    let page = base + 63 - u64::from(word.leading_zeros());
                    return (page >= first).then_some(page * PAGE);
                }
            }
        }
        None
    }

    /// The runs of pages of the set within a range.
    pub fn runs(&self, range: Range<u64>) -> Runs<'_> {
        Runs { set: self, range }
    }

    /// The run of missing pages around `address` within a range.
    pub fn hole_around(&self, address: u64, range: Range<u64>) -> Range<u64> {
        let start = self
            .last(range.start..address)
            .map_or(range.start, |page| page + PAGE);
        let end = self.next(address..range.end).unwrap_or(range.end);
        start..end
    }

    /// The runs of a range that are not in the set.
    pub fn holes(&self, range: Range<u64>) -> Holes<'_> {
        Holes { set: self, range }
    }

    /// Where the run of pages of the set that starts at `start` ends, at `end` at the latest.
    pub fn run_end(&self, start: u64, end: u64) -> u64 {
        let mut at = start;
        while at < end {
            let page = at / PAGE;
            let Some(chunk) = self.chunks.get(&(page / CHUNK)) else {
                return at;
            };
            let bit = page % 64;
            let ones = (!(chunk[(page % CHUNK / 64) as usize] >> bit)).trailing_zeros();
            let ones = u64::from(ones).min(64 - bit);
            at += ones * PAGE;
            if ones < 64 - bit {
                break;
            }
        }
        at.min(end)
    }
}

/// See [`PageSet::runs`].
pub struct Runs<'a> {
    set: &'a PageSet,
    range: Range<u64>,
}

impl Iterator for Runs<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let start = self.set.next(self.range.clone())?;
        let end = self.set.run_end(start, self.range.end);
        self.range.start = end;
        Some(start..end)
    }
}

/// See [`PageSet::holes`].
pub struct Holes<'a> {
    set: &'a PageSet,
    range: Range<u64>,
}

impl Iterator for Holes<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let start = self.set.run_end(self.range.start, self.range.end);
        if start >= self.range.end {
            return None;
        }
        let end = self
            .set
            .next(start..self.range.end)
            .unwrap_or(self.range.end);
        self.range.start = end;
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn runs_and_holes_cross_words_and_chunks() {
        let mut set = PageSet::new();
        set.insert(60 * PAGE..70 * PAGE);
        set.insert(500 * PAGE..600 * PAGE);
        set.insert(0x40_0000_0000..0x40_0000_1000);
        assert_eq!(set.count(), 111);
        let all = 0..0x80_0000_0000;
        let runs: Vec<_> = set
            .runs(all.clone())
            .map(|r| (r.start / PAGE, r.end / PAGE))
            .collect();
        assert_eq!(runs, [(60, 70), (500, 600), (0x400_0000, 0x400_0001)]);
        let holes: Vec<_> = set
            .holes(0..700 * PAGE)
            .map(|r| r.start / PAGE..r.end / PAGE)
            .collect();
        assert_eq!(holes, [0..60, 70..500, 600..700]);
        assert_eq!(
            set.hole_around(80 * PAGE, 0..1000 * PAGE),
            70 * PAGE..500 * PAGE
        );
        assert_eq!(
            set.hole_around(80 * PAGE, 75 * PAGE..90 * PAGE),
            75 * PAGE..90 * PAGE
        );
        assert_eq!(set.remove(0..0x80_0000_0000), 111);
        assert_eq!(set.count(), 0);
        assert!(set.chunks.is_empty());
    }

    #[test]
    fn edges() {
        let mut set = PageSet::new();
        set.insert(0..64 * PAGE);
        assert_eq!(set.last(0..64 * PAGE), Some(63 * PAGE));
        assert_eq!(set.next(63 * PAGE..64 * PAGE), Some(63 * PAGE));
        assert_eq!(set.next(64 * PAGE..65 * PAGE), None);
        assert_eq!(set.remove(10 * PAGE..11 * PAGE), 1);
        assert!(!set.contains(10 * PAGE) && set.contains(11 * PAGE));
        assert_eq!(set.last(0..11 * PAGE), Some(9 * PAGE));
    }
}
