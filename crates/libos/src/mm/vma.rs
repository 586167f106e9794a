//! Mappings (VMAs) and the sorted map of them.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use super::allocator::PAGE;
use super::shared::{SharedObject, View};
use crate::fs::inode::Inode;
use crate::fs::path::PathRef;
use crate::platform::Protection;

bitflags::bitflags! {
    /// Properties of a mapping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct VmaFlags: u32 {
        /// MAP_SHARED.
        const SHARED = 1;
        /// MAP_GROWSDOWN.
        const GROWSDOWN = 2;
        /// MAP_NORESERVE.
        const NORESERVE = 4;
        /// mlock.
        const LOCKED = 8;
        /// MADV_DONTFORK.
        const DONTFORK = 16;
        /// MADV_WIPEONFORK.
        const WIPEONFORK = 32;
        /// MADV_DONTDUMP.
        const DONTDUMP = 64;
        /// Pages may differ from the file: the mapping was writable at some time.
        const DIRTY = 128;
        /// Writing was never possible: the file was opened without it (shared maps).
        const NO_WRITE = 256;
        /// A stack: grows towards low addresses, so its top is brought in first.
        const STACK = 512;
        /// The program break's area.
        const HEAP = 1024;
        /// Our vDSO.
        const VDSO = 2048;
        /// Patched system-call sites may be in these pages.
        const SITES = 4096;
        /// mseal: stays as it is.
        const SEALED = 8192;
        /// MADV_GUARD_INSTALL: every access is a fault, whatever the protection.
        const GUARD = 16384;
        /// Has pages from before fork: Linux does not join it with what the child maps beside it.
        const INHERITED = 32768;
        /// Was there when the process first asked which pages are resident ([`State::exact`]).
        ///
        /// [`State::exact`]: super::State
        const GUESSED = 65536;
    }
}

/// Where a file-backed mapping's content comes from.
#[derive(Clone)]
pub struct FileBacking {
    pub inode: Arc<dyn Inode>,
    /// File offset of the mapping's first byte.
    pub offset: u64,
    /// For /proc/self/maps.
    pub path: Option<PathRef>,
}

/// What is behind a mapping.
#[derive(Clone)]
pub enum Backing {
    /// Zeros.
    Anonymous,
    /// A private view of a file.
    File(FileBacking),
    /// A view of a shared object; the file offset is the mapping's first byte's.
    Shared(Arc<SharedObject>, u64),
}

/// One mapping.
#[derive(Clone)]
pub struct Vma {
    pub start: u64,
    pub end: u64,
    pub protection: Protection,
    pub flags: VmaFlags,
    pub backing: Backing,
    /// Fault-around: where the next fault of a sequential walk would be (upwards and downwards),
    /// and how many bytes came in last time.
    pub around: Around,
}

/// The memory of fault-around.
#[derive(Clone, Copy, Default)]
pub struct Around {
    pub start: u64,
    pub end: u64,
}

impl Vma {
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_shared(&self) -> bool {
        self.flags.contains(VmaFlags::SHARED)
    }

    /// Whether a page of this private mapping is sure to equal the file's.
    pub fn is_clean(&self) -> bool {
        matches!(self.backing, Backing::File(_)) && !self.flags.contains(VmaFlags::DIRTY)
    }

    /// The protection that committed pages have: on x86, writing and executing imply reading.
    pub fn page_protection(&self) -> Protection {
        match self.flags.contains(VmaFlags::GUARD) {
            true => Protection::empty(),
            false => page_protection(self.protection),
        }
    }

    /// Whether an access is allowed.
    pub fn allows(&self, access: Protection) -> bool {
        self.page_protection().contains(access)
    }

    /// What it shows of a shared object.
    pub fn view(&self) -> Option<View> {
        match &self.backing {
            Backing::Shared(object, offset) => Some(View {
                object: object.clone(),
                offset: offset - object.base(),
                range: self.range(),
            }),
            _ => None,
        }
    }

    /// Whether it is a view of shared memory at another address than its home.
    pub fn is_alias(&self) -> bool {
        match &self.backing {
            Backing::Shared(object, offset) => {
                object.home().start + (offset - object.base()) != self.start
            }
            _ => false,
        }
    }

    /// Whether the process owns the addresses: those of an object's home are the object's.
    pub fn owns_addresses(&self) -> bool {
        !matches!(self.backing, Backing::Shared(..)) || self.is_alias()
    }

    fn advance_backing(&mut self, by: u64) {
        match &mut self.backing {
            Backing::Anonymous => {}
            Backing::File(file) => file.offset += by,
            Backing::Shared(_, offset) => *offset += by,
        }
    }

    /// The part of the mapping within `range`.
    pub fn clipped(&self, range: &Range<u64>) -> Vma {
        let mut part = self.clone();
        part.start = self.start.max(range.start);
        part.end = self.end.min(range.end);
        part.advance_backing(part.start - self.start);
        part
    }

    /// Whether two mappings show the same bytes at the same addresses where they overlap.
    pub fn same_file(&self, other: &Vma) -> bool {
        match (&self.backing, &other.backing) {
            (Backing::File(a), Backing::File(b)) => {
                a.inode.id() == b.inode.id()
                    && a.offset.wrapping_sub(self.start) == b.offset.wrapping_sub(other.start)
            }
            _ => false,
        }
    }

    fn joins(&self, next: &Vma) -> bool {
        let unmergeable = VmaFlags::GROWSDOWN | VmaFlags::VDSO;
        if self.end != next.start
            || self.protection != next.protection
            || self.flags != next.flags
            || self.flags.intersects(unmergeable)
        {
            return false;
        }
        match (&self.backing, &next.backing) {
            (Backing::Anonymous, Backing::Anonymous) => true,
            (Backing::File(_), Backing::File(_)) => self.same_file(next),
            (Backing::Shared(a, at), Backing::Shared(b, next_at)) => {
                Arc::ptr_eq(a, b) && at + self.len() == *next_at
            }
            _ => false,
        }
    }
}

/// See [`Vma::page_protection`].
pub fn page_protection(protection: Protection) -> Protection {
    match protection.is_empty() {
        true => protection,
        false => protection | Protection::READ,
    }
}

/// The mappings of an address space, by start.
#[derive(Default)]
pub struct VmaMap {
    map: BTreeMap<u64, Vma>,
}

impl VmaMap {
    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Vma> {
        self.map.values()
    }

    /// The mapping at an address.
    pub fn find(&self, address: u64) -> Option<&Vma> {
        self.map
            .range(..=address)
            .next_back()
            .map(|(_, vma)| vma)
            .filter(|vma| address < vma.end)
    }

    pub fn find_mut(&mut self, address: u64) -> Option<&mut Vma> {
        let found = self
            .map
            .range_mut(..=address)
            .next_back()
            .map(|(_, vma)| vma);
        found.filter(|vma| address < vma.end)
    }

    /// The first mapping that ends above an address.
    pub fn find_from(&self, address: u64) -> Option<&Vma> {
        self.find(address)
            .or_else(|| self.map.range(address..).next().map(|(_, vma)| vma))
    }

    /// The mapping that ends at or below an address, the nearest one.
    pub fn before(&self, address: u64) -> Option<&Vma> {
        self.map.range(..address).next_back().map(|(_, vma)| vma)
    }

    /// The mappings that overlap a range, whole.
    pub fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = &Vma> {
        let first = self.find(range.start).map_or(range.start, |vma| vma.start);
        self.map
            .range(first..range.end.max(first))
            .map(|(_, vma)| vma)
    }

    /// Whether every address of the range is mapped.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        let mut at = range.start;
        while at < range.end {
            match self.find(at) {
                Some(vma) => at = vma.end,
                None => return false,
            }
        }
        true
    }

    /// Splits the mapping that contains `at` (if it does not start there).
    pub fn split(&mut self, at: u64) {
        if let Some(vma) = self.find_mut(at)
            && vma.start < at
        {
            let upper = vma.clipped(&(at..vma.end));
            vma.end = at;
            self.map.insert(at, upper);
        }
    }

    /// Takes the mappings of a range out, split at its ends.
    pub fn remove(&mut self, range: &Range<u64>) -> Vec<Vma> {
        self.split(range.start);
        self.split(range.end);
        let starts: Vec<u64> = self
            .map
            .range(range.clone())
            .map(|(&start, _)| start)
            .collect();
        starts
            .iter()
            .filter_map(|start| self.map.remove(start))
            .collect()
    }

    /// Adds a mapping where there is none, and joins it with its neighbours where that is possible.
    pub fn insert(&mut self, vma: Vma) {
        let range = vma.range();
        debug_assert!(self.overlapping(&range).next().is_none());
        debug_assert!(
            range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE) && !range.is_empty()
        );
        self.map.insert(vma.start, vma);
        self.join(range);
    }

    /// Changes the mappings of a range, split at its ends, and joins what then fits.
    pub fn update(&mut self, range: &Range<u64>, mut change: impl FnMut(&mut Vma)) {
        self.split(range.start);
        self.split(range.end);
        self.map
            .range_mut(range.clone())
            .for_each(|(_, vma)| change(vma));
        self.join(range.clone());
    }

    fn join(&mut self, range: Range<u64>) {
        let before = self.map.range(..range.start).next_back();
        let mut at = before.map_or(range.start, |(&start, _)| start);
        while at <= range.end
            && let Some((&start, vma)) = self.map.range(at..=range.end).next()
        {
            let end = vma.end;
            match self.map.get(&end) {
                Some(next) if vma.joins(next) => {
                    let next_end = next.end;
                    self.map.remove(&end);
                    if let Some(vma) = self.map.get_mut(&start) {
                        vma.end = next_end;
                    }
                    at = start;
                }
                _ => at = end,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vma(start: u64, end: u64, protection: Protection) -> Vma {
        Vma {
            start,
            end,
            protection,
            flags: VmaFlags::empty(),
            backing: Backing::Anonymous,
            around: Around::default(),
        }
    }

    const RW: Protection = Protection::READ.union(Protection::WRITE);

    #[test]
    fn split_update_and_join() {
        let mut map = VmaMap::default();
        map.insert(vma(0x10000, 0x20000, RW));
        map.insert(vma(0x20000, 0x30000, RW));
        assert_eq!(map.len(), 1);
        map.update(&(0x18000..0x1a000), |vma| vma.protection = Protection::READ);
        assert_eq!(map.len(), 3);
        assert!(map.covers(&(0x10000..0x30000)));
        assert!(!map.covers(&(0x10000..0x30001)));
        map.update(&(0x18000..0x1a000), |vma| vma.protection = RW);
        assert_eq!(map.len(), 1);
        let removed = map.remove(&(0x11000..0x12000));
        assert_eq!(removed.len(), 1);
        assert_eq!(map.len(), 2);
        assert!(map.find(0x11fff).is_none());
        assert_eq!(map.find_from(0x11000).unwrap().start, 0x12000);
        assert_eq!(map.overlapping(&(0x10fff..0x12001)).count(), 2);
        map.insert(vma(0x11000, 0x12000, RW));
        assert_eq!(map.len(), 1);
    }
}
