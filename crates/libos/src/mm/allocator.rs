//! The container's one address allocator.
//!
//! Every mapping of every process counts as a user of its addresses; a new mapping goes where
//! nobody is. So processes never meet by accident, only by fork or by asking for fixed addresses.
//! Lock order: innermost (taken under an address space's lock).

use alloc::collections::BTreeMap;
use core::ops::Range;

use crate::Result;
use crate::errno::ENOMEM;
use crate::platform::platform;
use crate::sync::SpinLock;

/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// The addresses in use, by start: (end, number of users). Ranges do not overlap; neighbours that
/// touch have different counts.
#[derive(Default)]
pub struct Allocator {
    used: BTreeMap<u64, (u64, u32)>,
}

static ALLOCATOR: SpinLock<Allocator> = SpinLock::new(Allocator {
    used: BTreeMap::new(),
});

/// Where a new mapping may go.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub len: u64,
    /// A power of two, at least a page.
    pub align: u64,
    /// Only within these addresses.
    pub within: Range<u64>,
    /// Search downward from here first.
    pub below: u64,
}

/// Finds addresses nobody uses and takes them. ENOMEM.
pub fn allocate(wanted: &Wanted) -> Result<u64> {
    let mut allocator = ALLOCATOR.lock();
    let start = allocator
        .find(wanted)
        .ok_or(ENOMEM.because("no addresses left"))?;
    allocator.add(start..start + wanted.len);
    Ok(start)
}

/// Takes exactly these addresses if nobody uses them.
pub fn allocate_at(range: Range<u64>) -> bool {
    let mut allocator = ALLOCATOR.lock();
    let free = is_user(&range) && allocator.is_free(&range);
    if free {
        allocator.add(range);
    }
    free
}

/// Becomes a further user of these addresses.
pub fn share(range: Range<u64>) {
    ALLOCATOR.lock().add(range);
}

/// Stops using addresses.
pub fn release(range: Range<u64>) {
    ALLOCATOR.lock().remove(range);
}

/// Whether nobody uses any of these addresses.
pub fn is_free(range: &Range<u64>) -> bool {
    ALLOCATOR.lock().is_free(range)
}

/// Whether these addresses have at most one user each.
pub fn at_most_one_user(range: &Range<u64>) -> bool {
    ALLOCATOR
        .lock()
        .overlapping(range)
        .all(|(_, (_, users))| users <= 1)
}

/// Whether these are the application's addresses.
pub fn is_user(range: &Range<u64>) -> bool {
    let user = platform().user_range();
    user.start <= range.start && range.start <= range.end && range.end <= user.end
}

impl Allocator {
    fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, (u64, u32))> {
        let first = self
            .used
            .range(..=range.start)
            .next_back()
            .map_or(range.start, |(&at, _)| at);
        let start = range.start;
        self.used
            .range(first..range.end.max(first))
            .map(|(&at, &value)| (at, value))
            .filter(move |(_, (end, _))| *end > start)
    }

    fn is_free(&self, range: &Range<u64>) -> bool {
        self.overlapping(range).next().is_none()
    }

    fn find(&self, wanted: &Wanted) -> Option<u64> {
        let user = platform().user_range();
        let low = wanted.within.start.max(user.start);
        let high = wanted.within.end.min(user.end);
        let below = wanted.below.clamp(low, high);
        self.find_down(low, below, wanted)
            .or_else(|| self.find_down(low, high, wanted))
    }

    /// The highest free place that ends at or below `high`.
    fn find_down(&self, low: u64, high: u64, wanted: &Wanted) -> Option<u64> {
        let mut ceiling = high;
        let mut used = self.used.range(..high).rev();
        loop {
            let next = used.next();
            let floor = next.map_or(low, |(_, (end, _))| *end).max(low);
            if let Some(start) = ceiling.checked_sub(wanted.len) {
                let start = start & !(wanted.align - 1);
                if start >= floor && ceiling >= floor {
                    return Some(start);
                }
            }
            let (start, _) = next?;
            ceiling = ceiling.min(*start);
            if ceiling <= low {
                return None;
            }
        }
    }

    fn split(&mut self, at: u64) {
        if let Some((&start, &(end, users))) = self.used.range(..at).next_back()
            && end > at
        {
            self.used.insert(start, (at, users));
            self.used.insert(at, (end, users));
        }
    }

    fn merge(&mut self, range: Range<u64>) {
        let from = self
            .used
            .range(..range.start)
            .next_back()
            .map_or(range.start, |(&at, _)| at);
        let mut at = from;
        while at <= range.end
            && let Some((&start, &(end, users))) = self.used.range(at..=range.end).next()
        {
            match self.used.get(&end) {
                Some(&(next_end, next_users)) if next_users == users && end <= range.end => {
                    self.used.remove(&end);
                    self.used.insert(start, (next_end, users));
                    at = start;
                }
                _ => at = start + 1,
            }
        }
    }

    fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.split(range.start);
        self.split(range.end);
        let mut at = range.start;
        while at < range.end {
            match self.used.range_mut(at..range.end).next() {
                Some((&start, value)) if start == at => {
                    value.1 += 1;
                    at = value.0;
                }
                next => {
                    let end = next.map_or(range.end, |(&start, _)| start);
                    self.used.insert(at, (end, 1));
                    at = end;
                }
            }
        }
        self.merge(range);
    }

    fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.split(range.start);
        self.split(range.end);
        let starts: alloc::vec::Vec<u64> = self
            .used
            .range(range.clone())
            .map(|(&start, _)| start)
            .collect();
        for start in starts {
            if let Some(value) = self.used.get_mut(&start) {
                value.1 -= 1;
                if value.1 == 0 {
                    self.used.remove(&start);
                }
            }
        }
        self.merge(range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(len: u64, below: u64) -> Wanted {
        Wanted {
            len,
            align: PAGE,
            within: 0x10000..0x100_0000,
            below,
        }
    }

    #[test]
    fn counts_split_and_merge() {
        let mut a = Allocator::default();
        a.add(0x1000..0x5000);
        a.add(0x2000..0x3000);
        assert_eq!(a.used.len(), 3);
        a.remove(0x2000..0x3000);
        assert_eq!(a.used.len(), 1);
        assert!(a.is_free(&(0x5000..0x6000)));
        assert!(!a.is_free(&(0x4fff..0x6000)));
        a.remove(0x2000..0x3000);
        assert!(a.is_free(&(0x2000..0x3000)));
        assert_eq!(a.used.len(), 2);
        a.add(0x0..0x9000);
        a.remove(0x0..0x9000);
        a.remove(0x1000..0x2000);
        a.remove(0x3000..0x5000);
        assert!(a.used.is_empty());
    }

    #[test]
    fn finds_the_highest_gap_below() {
        crate::testing::platform();
        let mut a = Allocator::default();
        a.add(0x80000..0x90000);
        assert_eq!(a.find(&wanted(0x1000, 0x100000)), Some(0xff000));
        assert_eq!(a.find(&wanted(0x1000, 0x88000)), Some(0x7f000));
        assert_eq!(
            a.find(&wanted(0x71000, 0x90000)),
            Some(0x100_0000 - 0x71000)
        );
        assert_eq!(a.find(&wanted(0x70000, 0x90000)), Some(0x10000));
        assert_eq!(a.find(&wanted(0x1000_0000, 0x90000)), None);
        let aligned = Wanted {
            align: 0x20000,
            ..wanted(0x1000, 0xff000)
        };
        assert_eq!(a.find(&aligned), Some(0xe0000));
    }
}
