//! The enclave page cache map: what the CPU knows of each page, and the host mapping that follows.
//!
//! One 16-bit word per page of ELRANGE in a sparse array. A page's *effective* protection is what
//! the EPCM and the page tables both allow; the *host* bits say what the host mapping allows now.
//! They never allow more than the effective ones (outside the documented exception for pending
//! pages), but may allow less: a fault then widens them ([`Epcm::widen`]), so that EMODPE and
//! EACCEPT of many pages cost one system call for a run.
//!
//! Lock order: `host` is a leaf lock. EACCEPT and EMODPE change entries without it (compare and
//! swap); whoever changes the host mapping holds it.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::sys;
use crate::backend::{Error, page_type};

pub const PAGE: u64 = 4096;

pub const VALID: u16 = 1 << 0;
pub const PENDING: u16 = 1 << 1;
pub const MODIFIED: u16 = 1 << 2;
pub const PR: u16 = 1 << 3;
const TYPE_SHIFT: u32 = 4;
const EPCM_SHIFT: u32 = 7;
const TABLE_SHIFT: u32 = 10;
const HOST_SHIFT: u32 = 13;
pub const TYPE_MASK: u16 = 7 << TYPE_SHIFT;
pub const TYPE_REG: u16 = (page_type::REG as u16) << TYPE_SHIFT;
pub const TYPE_TCS: u16 = (page_type::TCS as u16) << TYPE_SHIFT;
pub const TYPE_TRIM: u16 = (page_type::TRIM as u16) << TYPE_SHIFT;

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry(pub u16);

impl Entry {
    pub fn new(state: u16, epcm: u64, table: u64) -> Entry {
        Entry(state | ((epcm & 7) as u16) << EPCM_SHIFT | ((table & 7) as u16) << TABLE_SHIFT)
    }

    pub fn is(self, bits: u16) -> bool {
        self.0 & bits == bits
    }

    pub fn page_type(self) -> u16 {
        self.0 & TYPE_MASK
    }

    pub fn permissions(self) -> u64 {
        u64::from(self.0 >> EPCM_SHIFT) & 7
    }

    pub fn table(self) -> u64 {
        u64::from(self.0 >> TABLE_SHIFT) & 7
    }

    pub fn host(self) -> u64 {
        u64::from(self.0 >> HOST_SHIFT) & 7
    }

    pub fn with_permissions(self, permissions: u64) -> Entry {
        Entry(self.0 & !(7 << EPCM_SHIFT) | ((permissions & 7) as u16) << EPCM_SHIFT)
    }

    pub fn with_table(self, table: u64) -> Entry {
        Entry(self.0 & !(7 << TABLE_SHIFT) | ((table & 7) as u16) << TABLE_SHIFT)
    }

    fn with_host(self, host: u64) -> Entry {
        Entry(self.0 & !(7 << HOST_SHIFT) | ((host & 7) as u16) << HOST_SHIFT)
    }

    /// What the EPCM alone allows.
    pub fn allowed(self) -> u64 {
        if self.0 & (VALID | PENDING | MODIFIED | TYPE_MASK) == VALID | TYPE_REG {
            self.permissions()
        } else {
            0
        }
    }

    /// What both the EPCM and the page tables allow.
    pub fn effective(self) -> u64 {
        self.allowed() & self.table()
    }
}

pub struct Epcm {
    base: u64,
    pages: u64,
    entries: *const AtomicU16,
    strict: bool,
    host: Mutex<()>,
}

// SAFETY: the array is only accessed through atomics and lives as long as the value.
unsafe impl Send for Epcm {}
// SAFETY: as above.
unsafe impl Sync for Epcm {}

impl Drop for Epcm {
    fn drop(&mut self) {
        sys::unmap(self.entries as u64, self.pages * 2);
    }
}

impl Epcm {
    pub fn new(base: u64, size: u64, strict: bool) -> Result<Epcm, Error> {
        let pages = size / PAGE;
        let entries = sys::map_sparse(pages * 2)?;
        Ok(Epcm {
            base,
            pages,
            entries: entries as *const AtomicU16,
            strict,
            host: Mutex::new(()),
        })
    }

    /// Whether [address, address + len) consists of whole pages of the enclave.
    pub fn contains(&self, address: u64, len: u64) -> bool {
        let end = self.base + self.pages * PAGE;
        (address | len) & (PAGE - 1) == 0
            && address >= self.base
            && address < end
            && len <= end - address
    }

    fn slot(&self, address: u64) -> Option<&AtomicU16> {
        let index = address.wrapping_sub(self.base) / PAGE;
        // SAFETY: the array has `pages` entries.
        (index < self.pages).then(|| unsafe { &*self.entries.add(index as usize) })
    }

    /// The entry of the page that holds `address`; an invalid one outside ELRANGE.
    pub fn get(&self, address: u64) -> Entry {
        Entry(
            self.slot(address)
                .map_or(0, |slot| slot.load(Ordering::Acquire)),
        )
    }

    /// Replaces `old` by `new` unless the entry changed meanwhile; the host bits may change.
    pub fn replace(&self, address: u64, change: impl Fn(Entry) -> Option<Entry>) -> Option<Entry> {
        let slot = self.slot(address)?;
        slot.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
            change(Entry(old)).map(|new| new.0)
        })
        .ok()
        .map(Entry)
    }

    /// The lock under which the host mapping changes.
    pub fn lock(&self) -> MutexGuard<'_, ()> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Host protection that an entry should have.
    fn wanted(&self, entry: Entry) -> u64 {
        if !self.strict && entry.0 & (VALID | PENDING | MODIFIED) == VALID | PENDING {
            entry.permissions() & entry.table()
        } else {
            entry.effective()
        }
    }

    /// Marks pages as not valid. The caller holds the lock and changes the mapping.
    pub fn clear(&self, address: u64, len: u64) {
        for page in (address..address + len).step_by(PAGE as usize) {
            if let Some(slot) = self.slot(page) {
                slot.store(0, Ordering::Release);
            }
        }
    }

    /// Makes a run of pages that are not valid into `entry`, and the host mapping likewise.
    /// The caller holds the lock. Returns the protection they have now; where it is none, the mapping
    /// was left as it is.
    pub fn fill(&self, address: u64, len: u64, entry: Entry) -> Result<u64, Error> {
        let wanted = self.wanted(entry);
        if wanted != 0 {
            sys::protect(address, len, wanted)?;
        }
        let word = entry.with_host(wanted).0;
        let first = ((address - self.base) / PAGE) as usize;
        for index in first..first + (len / PAGE) as usize {
            // SAFETY: the caller checked the range with `contains`.
            unsafe { (*self.entries.add(index)).store(word, Ordering::Release) };
        }
        Ok(wanted)
    }

    /// First page at or after `address`, before `end`, for which `test` holds.
    pub fn find(&self, address: u64, end: u64, test: impl Fn(Entry) -> bool) -> u64 {
        let mut page = address;
        while page < end && !test(self.get(page)) {
            page += PAGE;
        }
        page
    }

    /// Brings the host mapping of a range in line with the entries, one call for each run.
    /// The caller holds the lock.
    pub fn sync(&self, address: u64, len: u64) -> Result<(), Error> {
        let end = address + len;
        let mut page = address;
        loop {
            page = self.find(page, end, |entry| entry.host() != self.wanted(entry));
            if page >= end {
                return Ok(());
            }
            let wanted = self.wanted(self.get(page));
            let stop = self.find(page, end, |entry| {
                !entry.is(VALID) || self.wanted(entry) != wanted
            });
            self.set_host(page, stop, wanted)?;
            page = stop.max(page + PAGE);
        }
    }

    fn set_host(&self, start: u64, end: u64, wanted: u64) -> Result<(), Error> {
        if end <= start {
            return Ok(());
        }
        sys::protect(start, end - start, wanted)?;
        for page in (start..end).step_by(PAGE as usize) {
            self.replace(page, |entry| Some(entry.with_host(wanted)));
        }
        Ok(())
    }

    /// After a fault: if the page should allow `access`, widens its host mapping and that of its
    /// neighbours in the same 2 MiB. Returns whether the access is allowed now.
    pub fn widen(&self, address: u64, access: u64) -> bool {
        const CHUNK: u64 = 2 << 20;
        let address = address & !(PAGE - 1);
        let entry = self.get(address);
        if self.wanted(entry) & access != access {
            return false;
        }
        let _guard = self.lock();
        let entry = self.get(address);
        let wanted = self.wanted(entry);
        if wanted & access != access {
            return false;
        }
        if entry.host() == wanted {
            return true;
        }
        let same = |entry: Entry| entry.is(VALID) && self.wanted(entry) == wanted;
        let chunk = (address & !(CHUNK - 1)).max(self.base);
        let mut start = address;
        while start > chunk && same(self.get(start - PAGE)) {
            start -= PAGE;
        }
        let end = self.find(address, (chunk | (CHUNK - 1)) + 1, |entry| !same(entry));
        self.set_host(start, end, wanted).is_ok()
    }

    /// Runs `work` while a page is writable whatever its protection. The caller holds the lock.
    pub fn writable(&self, page: u64, work: impl FnOnce()) -> Result<(), Error> {
        let host = self.get(page).host();
        if host & 2 == 0 {
            sys::protect(page, PAGE, 3)?;
        }
        work();
        if host & 2 == 0 {
            sys::protect(page, PAGE, host)?;
        }
        Ok(())
    }
}
