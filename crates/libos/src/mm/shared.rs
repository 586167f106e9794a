//! Shared memory: each object has one home address, the same in every process.
//!
//! A second view at another address would need an alias of its pages, which an enclave does not
//! have; such requests are refused with a line in the log.
//!
//! A shared file mapping holds the file's content while it exists: reads and writes of the file go
//! through [`flush`] and [`refresh`], and the pages are written back by msync and when a mapping
//! goes.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::fault::read_file;
use super::pages::PageSet;
use super::swap::write_live;
use super::vma::FileBacking;
use super::{Fault, PAGE, accounting, allocator, page_down};
use crate::Result;
use crate::errno::ENOMEM;
use crate::fs::inode::FileId;
use crate::platform::{Protection, platform};
use crate::sync::SpinLock;

/// Memory that several processes see at the same address.
pub struct SharedObject {
    /// Home address and extent.
    pub home: Range<u64>,
    /// The file behind it; its `offset` belongs to the home's first byte.
    file: Option<FileBacking>,
    pages: SpinLock<Pages>,
}

struct Pages {
    live: PageSet,
    /// Protection of the live pages: what all the mappings together need.
    protection: Protection,
    /// Pages may differ from the file.
    dirty: bool,
}

const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

/// The shared objects of files, by file.
static FILES: SpinLock<BTreeMap<FileId, Vec<Weak<SharedObject>>>> = SpinLock::new(BTreeMap::new());
/// Number of shared file objects, so that ordinary reads and writes cost one load.
static FILE_OBJECTS: AtomicUsize = AtomicUsize::new(0);

impl SharedObject {
    /// A new object whose home addresses the caller has taken from the allocator.
    pub fn new(home: Range<u64>, file: Option<FileBacking>) -> Arc<SharedObject> {
        let id = file.as_ref().map(|file| file.inode.id());
        let pages = Pages {
            live: PageSet::new(),
            protection: READ_WRITE,
            dirty: false,
        };
        let object = Arc::new(SharedObject {
            home,
            file,
            pages: SpinLock::new(pages),
        });
        if let Some(id) = id {
            FILES
                .lock()
                .entry(id)
                .or_default()
                .push(Arc::downgrade(&object));
            FILE_OBJECTS.fetch_add(1, Ordering::SeqCst);
        }
        object
    }

    pub fn is_file(&self) -> bool {
        self.file.is_some()
    }

    pub fn file(&self) -> Option<&FileBacking> {
        self.file.as_ref()
    }

    /// The home address of a file offset range, if the object has all of it.
    fn place(&self, offset: u64, len: u64) -> Option<u64> {
        let base = self.file.as_ref()?.offset;
        let at = offset.checked_sub(base)?;
        (at.checked_add(len)? <= self.home.end - self.home.start).then(|| self.home.start + at)
    }

    /// Whether any of a file offset range is in the object.
    fn touches(&self, offset: u64, len: u64) -> bool {
        let Some(file) = &self.file else { return false };
        let end = file.offset + (self.home.end - self.home.start);
        offset < end && file.offset < offset.saturating_add(len)
    }

    pub fn is_live(&self, page: u64) -> bool {
        self.pages.lock().live.contains(page)
    }

    /// Live pages within a range.
    pub fn count(&self, range: &Range<u64>) -> u64 {
        let pages = self.pages.lock();
        pages
            .live
            .runs(range.clone())
            .map(|run| (run.end - run.start) / PAGE)
            .sum()
    }

    /// Brings in what is missing of `range`; `page` is what is needed.
    pub fn bring_in(
        &self,
        range: Range<u64>,
        page: u64,
        protection: Protection,
    ) -> core::result::Result<(), Fault> {
        let mut pages = self.pages.lock();
        pages
            .raise(protection, &self.home)
            .map_err(|_| Fault::NoMemory)?;
        let mut end = range.end;
        if let Some(file) = &self.file {
            let size = file.inode.size().div_ceil(PAGE).saturating_mul(PAGE);
            end = end.min(
                self.home
                    .start
                    .saturating_add(size.saturating_sub(file.offset)),
            );
            if page >= end {
                return Err(Fault::Unreadable);
            }
        }
        let holes: Vec<_> = pages.live.holes(range.start..end).collect();
        for hole in holes {
            let len = hole.end - hole.start;
            accounting::charge(len).map_err(|_| Fault::NoMemory)?;
            if let Err(errno) = self.commit(&pages, hole.clone()) {
                accounting::uncharge(len);
                return Err(if errno == ENOMEM {
                    Fault::NoMemory
                } else {
                    Fault::Unreadable
                });
            }
            pages.live.insert(hole);
        }
        Ok(())
    }

    fn commit(&self, pages: &Pages, range: Range<u64>) -> Result<()> {
        let len = range.end - range.start;
        let Some(file) = &self.file else {
            return platform().commit(range.start, len, pages.protection);
        };
        platform().commit(range.start, len, READ_WRITE)?;
        let offset = file.offset + (range.start - self.home.start);
        let result = platform()
            .fill(range.start, len, &mut |bytes| {
                read_file(file, offset, bytes)
            })
            .and_then(|()| match pages.protection == READ_WRITE {
                true => Ok(()),
                false => platform().protect(range.start, len, pages.protection),
            });
        if result.is_err() {
            platform().decommit(range.start, len);
        }
        result
    }

    /// A mapping of the object may be written to from now on.
    pub fn set_dirty(&self) {
        self.pages.lock().dirty = true;
    }

    /// Gives the pages the protection of their only mapping, or more when there are others.
    pub fn protect(&self, range: &Range<u64>, protection: Protection, alone: bool) -> Result<()> {
        let mut pages = self.pages.lock();
        if !alone {
            return pages.raise(protection, &self.home);
        }
        for run in pages.live.runs(range.clone()) {
            platform().protect(run.start, run.end - run.start, protection)?;
        }
        Ok(())
    }

    /// Drops the content of whole pages (MADV_REMOVE, truncation).
    pub fn discard(&self, range: Range<u64>) {
        let mut pages = self.pages.lock();
        let runs: Vec<_> = pages.live.runs(range.clone()).collect();
        for run in runs {
            platform().decommit(run.start, run.end - run.start);
            accounting::uncharge(run.end - run.start);
        }
        pages.live.remove(range);
    }

    /// Writes the pages of a range back to the file.
    pub fn write_back(&self, range: Range<u64>) -> Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let pages = self.pages.lock();
        if !pages.dirty {
            return Ok(());
        }
        let size = file.inode.size();
        let mut buffer = vec![0; 2 * PAGE as usize];
        let (ours, theirs) = buffer.split_at_mut(PAGE as usize);
        let range = page_down(range.start)..range.end.next_multiple_of(PAGE);
        for run in pages.live.runs(range) {
            for page in (run.start..run.end).step_by(PAGE as usize) {
                let offset = file.offset + (page - self.home.start);
                let len = size.saturating_sub(offset).min(PAGE) as usize;
                if len == 0 || platform().copy_from_user(page, &mut ours[..len]).is_err() {
                    continue;
                }
                // Most pages have not changed; writing costs memory, and the time stamps.
                let same = read_file(file, offset, &mut theirs[..len]).is_ok()
                    && ours[..len] == theirs[..len];
                if !same {
                    file.inode.write_bytes(offset, &ours[..len])?;
                }
            }
        }
        Ok(())
    }
}

impl Pages {
    /// Adds to the protection of all live pages.
    fn raise(&mut self, protection: Protection, home: &Range<u64>) -> Result<()> {
        if self.protection.contains(protection) {
            return Ok(());
        }
        self.protection |= protection;
        for run in self.live.runs(home.clone()) {
            platform().protect(run.start, run.end - run.start, self.protection)?;
        }
        Ok(())
    }
}

impl Drop for SharedObject {
    fn drop(&mut self) {
        // The file system has no way to report this to anyone: msync is there for that.
        let _ = self.write_back(self.home.clone());
        self.discard(self.home.clone());
        allocator::release(self.home.clone());
        if let Some(file) = &self.file {
            let mut files = FILES.lock();
            if let Some(objects) = files.get_mut(&file.inode.id()) {
                objects.retain(|object| object.strong_count() > 0);
                if objects.is_empty() {
                    files.remove(&file.inode.id());
                }
            }
            FILE_OBJECTS.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// The shared objects of a file.
fn objects_of(id: FileId) -> Vec<Arc<SharedObject>> {
    if FILE_OBJECTS.load(Ordering::SeqCst) == 0 {
        return Vec::new();
    }
    let files = FILES.lock();
    files
        .get(&id)
        .map(|objects| objects.iter().filter_map(Weak::upgrade).collect())
        .unwrap_or_default()
}

/// The object that has a range of a file, and the home address of its start. ENOMEM when an
/// object has a part of it only: the rest would need an alias.
pub fn find(id: FileId, offset: u64, len: u64) -> Result<Option<(Arc<SharedObject>, u64)>> {
    for object in objects_of(id) {
        if let Some(address) = object.place(offset, len) {
            return Ok(Some((object, address)));
        }
        if object.touches(offset, len) {
            platform().log(1, "a shared file mapping overlaps another one: refused");
            return Err(ENOMEM.because("a part of this file range is mapped elsewhere"));
        }
    }
    Ok(None)
}

/// Before a part of a file is read: what shared mappings have changed goes into the file.
pub fn flush(id: FileId, offset: u64, len: u64) -> Result<()> {
    for object in objects_of(id) {
        if object.touches(offset, len) {
            object.write_back(object.homes(offset, len))?;
        }
    }
    Ok(())
}

/// After a part of a file was written: shared mappings see the new content.
pub fn refresh(id: FileId, offset: u64, len: u64) {
    for object in objects_of(id) {
        if object.touches(offset, len) {
            object.reload(offset, len);
        }
    }
}

/// Forgets what shared mappings hold beyond a file's new end, and clears the rest of its last
/// page.
pub fn truncate(id: FileId, size: u64) {
    for object in objects_of(id) {
        let Some(file) = &object.file else { continue };
        let end = object.home.start + size.saturating_sub(file.offset);
        let end = end.min(object.home.end);
        let page_end = end.next_multiple_of(PAGE);
        if end % PAGE != 0 && object.is_live(page_down(end)) {
            let zeros = vec![0; (page_end - end) as usize];
            write_live(end, &zeros, object.pages.lock().protection);
        }
        object.discard(page_end..object.home.end);
    }
}

impl SharedObject {
    /// The home addresses of the part of a file range that the object has.
    fn homes(&self, offset: u64, len: u64) -> Range<u64> {
        let base = self.file.as_ref().map_or(0, |file| file.offset);
        let home = |offset: u64| {
            let at = self.home.start.saturating_add(offset.saturating_sub(base));
            at.min(self.home.end)
        };
        home(offset)..home(offset.saturating_add(len))
    }

    /// Reads the live parts of a file range again.
    fn reload(&self, offset: u64, len: u64) {
        let Some(file) = &self.file else { return };
        let homes = self.homes(offset, len);
        let pages = self.pages.lock();
        let mut buffer = [0; PAGE as usize];
        for run in pages
            .live
            .runs(page_down(homes.start)..homes.end.next_multiple_of(PAGE))
        {
            for page in (run.start..run.end).step_by(PAGE as usize) {
                let (from, to) = (page.max(homes.start), (page + PAGE).min(homes.end));
                let bytes = &mut buffer[..(to - from) as usize];
                let offset = file.offset + (from - self.home.start);
                if read_file(file, offset, bytes).is_ok() {
                    write_live(from, bytes, pages.protection);
                }
            }
        }
    }
}
