//! Shared memory: objects whose pages several mappings show.
//!
//! Each object has a *home*: addresses of its own, where nearly all its mappings are, the same in
//! every process. A view at another address is an *alias* ([`super::alias`]): an enclave page has
//! one address, so a page of the object is either at home or *away*, where an alias saw it last, and
//! moves when the other view is used. Offsets here are bytes from the object's start.
//!
//! A shared file mapping holds the file's content while it exists: reads and writes of the file go
//! through [`flush`] and [`refresh`], and the pages are written back by msync and when a mapping
//! goes.
//!
//! # Invariants
//! Pages move, and the home changes, under the residency lock only, with all users stopped. A space
//! that sees an object with aliases is *conflicted*: its copies take that lock.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::fault::read_file;
use super::pages::PageSet;
use super::swap::write_live;
use super::vma::FileBacking;
use super::{Fault, PAGE, accounting, allocator, page_down};
use crate::Result;
use crate::errno::{EFAULT, ENOMEM};
use crate::fs::inode::FileId;
use crate::platform::{Protection, platform};
use crate::sync::SpinLock;

/// Memory that several processes see.
pub struct SharedObject {
    /// Names the object for as long as the container runs.
    id: u64,
    /// Address of the first byte at home.
    home: AtomicU64,
    len: AtomicU64,
    /// The file behind it; its `offset` belongs to the first byte.
    file: Option<FileBacking>,
    /// Has, or had, a view at another address.
    aliased: AtomicBool,
    pages: SpinLock<Pages>,
}

struct Pages {
    /// Pages at home.
    live: PageSet,
    /// Pages that an alias holds.
    away: BTreeMap<u64, Away>,
    /// Protection of the pages at home: what all the mappings there together need.
    protection: Protection,
    /// Pages may differ from the file.
    dirty: bool,
}

/// Where a page is that is not at home.
struct Away {
    at: u64,
    protection: Protection,
}

/// A part of an object as a mapping shows it.
#[derive(Clone)]
pub struct View {
    pub object: Arc<SharedObject>,
    /// Offset of the first byte.
    pub offset: u64,
    /// Addresses of the mapping.
    pub range: Range<u64>,
}

impl View {
    /// Whether it is where the object lives.
    pub fn is_home(&self) -> bool {
        self.object.home().start + self.offset == self.range.start
    }

    /// The part of the object that it shows.
    pub fn offsets(&self) -> Range<u64> {
        self.offset..self.offset + (self.range.end - self.range.start)
    }

    /// The offset behind an address of the view.
    pub fn offset_of(&self, address: u64) -> u64 {
        address - self.range.start + self.offset
    }

    /// Whether two views show the same bytes at the same addresses where they overlap.
    pub fn agrees_with(&self, other: &View) -> bool {
        Arc::ptr_eq(&self.object, &other.object)
            && self.range.start.wrapping_sub(self.offset)
                == other.range.start.wrapping_sub(other.offset)
    }

    /// The same part at home.
    fn home(&self) -> View {
        let start = self.object.home().start + self.offset;
        View {
            range: start..start + (self.range.end - self.range.start),
            ..self.clone()
        }
    }
}

const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

/// The shared objects of files, by file.
static FILES: SpinLock<BTreeMap<FileId, Vec<Weak<SharedObject>>>> = SpinLock::new(BTreeMap::new());
/// Number of shared file objects, so that ordinary reads and writes cost one load.
static FILE_OBJECTS: AtomicUsize = AtomicUsize::new(0);

/// Objects by their home, so that whoever needs those addresses can ask for another one.
static HOMES: SpinLock<BTreeMap<u64, Weak<SharedObject>>> = SpinLock::new(BTreeMap::new());

/// The objects that live in a range.
pub fn homes_in(range: &Range<u64>) -> Vec<Arc<SharedObject>> {
    let homes = HOMES.lock();
    let below = homes.range(..range.end);
    below
        .filter_map(|(_, object)| object.upgrade())
        .filter(|object| object.home().end > range.start)
        .collect()
}

impl SharedObject {
    /// A new object whose home addresses the caller has taken from the allocator.
    pub fn new(home: Range<u64>, file: Option<FileBacking>) -> Arc<SharedObject> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = file.as_ref().map(|file| file.inode.id());
        let pages = Pages {
            live: PageSet::new(),
            away: BTreeMap::new(),
            protection: READ_WRITE,
            dirty: false,
        };
        let object = Arc::new(SharedObject {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            home: AtomicU64::new(home.start),
            len: AtomicU64::new(home.end - home.start),
            file,
            aliased: AtomicBool::new(false),
            pages: SpinLock::new(pages),
        });
        HOMES.lock().insert(home.start, Arc::downgrade(&object));
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

    /// See the field.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its home addresses.
    pub fn home(&self) -> Range<u64> {
        let start = self.home.load(Ordering::SeqCst);
        start..start + self.len.load(Ordering::SeqCst)
    }

    /// Bytes that it can hold.
    pub fn capacity(&self) -> u64 {
        self.len.load(Ordering::SeqCst)
    }

    pub fn is_file(&self) -> bool {
        self.file.is_some()
    }

    pub fn file(&self) -> Option<&FileBacking> {
        self.file.as_ref()
    }

    /// File offset of its first byte.
    pub fn base(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.offset)
    }

    pub fn is_aliased(&self) -> bool {
        self.aliased.load(Ordering::SeqCst)
    }

    /// From now on it has a view at another address. Under the residency lock.
    pub(super) fn set_aliased(&self) {
        self.aliased.store(true, Ordering::SeqCst);
    }

    /// The offset of a file range, if the object has all of it.
    fn place(&self, offset: u64, len: u64) -> Option<u64> {
        let at = offset.checked_sub(self.file.as_ref()?.offset)?;
        (at.checked_add(len)? <= self.capacity()).then_some(at)
    }

    /// Whether any of a file offset range is in the object.
    fn touches(&self, offset: u64, len: u64) -> bool {
        let Some(file) = &self.file else { return false };
        let end = file.offset + self.capacity();
        offset < end && file.offset < offset.saturating_add(len)
    }

    /// Where the page at an offset is now.
    pub fn location(&self, offset: u64) -> Option<u64> {
        let pages = self.pages.lock();
        self.place_of(&pages, offset)
    }

    fn place_of(&self, pages: &Pages, offset: u64) -> Option<u64> {
        if pages.live.contains(offset) {
            return Some(self.home.load(Ordering::SeqCst) + offset);
        }
        pages.away.get(&offset).map(|away| away.at)
    }

    /// Pages of a part that are in memory.
    pub fn count(&self, part: &Range<u64>) -> u64 {
        let pages = self.pages.lock();
        let live = pages.live.runs(part.clone());
        let live: u64 = live.map(|run| (run.end - run.start) / PAGE).sum();
        live + pages.away.range(part.clone()).count() as u64
    }

    /// Brings in what nobody has yet of the addresses `window` of a view; `page` is what is needed.
    pub fn bring_in(
        &self,
        view: &View,
        window: &Range<u64>,
        page: u64,
        protection: Protection,
    ) -> core::result::Result<(), Fault> {
        let mut pages = self.pages.lock();
        let at_home = view.is_home();
        if at_home {
            let home = self.home.load(Ordering::SeqCst);
            pages.raise(protection, home).map_err(|_| Fault::NoMemory)?;
        }
        let mut end = view.offset_of(window.end).min(self.capacity());
        if let Some(file) = &self.file {
            let size = file.inode.size().div_ceil(PAGE).saturating_mul(PAGE);
            end = end.min(size.saturating_sub(file.offset));
        }
        if view.offset_of(page) >= end {
            return Err(Fault::Unreadable);
        }
        for hole in pages.holes(view.offset_of(window.start)..end) {
            let (len, at) = (
                hole.end - hole.start,
                hole.start - view.offset + view.range.start,
            );
            accounting::charge(len).map_err(|_| Fault::NoMemory)?;
            let wanted = match at_home {
                true => pages.protection,
                false => protection,
            };
            if let Err(errno) = self.commit(at, hole.clone(), wanted) {
                accounting::uncharge(len);
                return Err(match errno == ENOMEM {
                    true => Fault::NoMemory,
                    false => Fault::Unreadable,
                });
            }
            if at_home {
                pages.live.insert(hole);
                continue;
            }
            for offset in hole.clone().step_by(PAGE as usize) {
                let at = at + (offset - hole.start);
                pages.away.insert(offset, Away { at, protection });
            }
        }
        Ok(())
    }

    /// The same at home, whatever the view.
    pub fn bring_in_at_home(
        &self,
        view: &View,
        page: u64,
        protection: Protection,
    ) -> core::result::Result<(), Fault> {
        let home = view.home();
        let page = page - view.range.start + home.range.start;
        self.bring_in(&home, &(page..page + PAGE), page, protection)
    }

    fn commit(&self, at: u64, part: Range<u64>, protection: Protection) -> Result<()> {
        let len = part.end - part.start;
        let Some(file) = &self.file else {
            return super::commit(&(at..at + len), protection);
        };
        super::commit(&(at..at + len), READ_WRITE)?;
        let offset = file.offset + part.start;
        let result = platform()
            .fill(at, len, &mut |bytes| read_file(file, offset, bytes))
            .and_then(|()| match protection == READ_WRITE {
                true => Ok(()),
                false => platform().protect(at, len, protection),
            });
        if result.is_err() {
            platform().decommit(at, len);
        }
        result
    }

    /// Moves a page that is somewhere to the address `to`, which is home or an alias. All users are
    /// stopped.
    fn move_page(
        &self,
        pages: &mut Pages,
        offset: u64,
        to: u64,
        protection: Protection,
    ) -> Result<()> {
        let Some(from) = self.place_of(pages, offset).filter(|&from| from != to) else {
            return Ok(());
        };
        super::commit(&(to..to + PAGE), READ_WRITE)?;
        let copy = || {
            platform().fill(to, PAGE, &mut |bytes| {
                platform()
                    .copy_from_user(from, bytes)
                    .map_err(|_| EFAULT.because("the page cannot be read where it is"))
            })
        };
        let moved = copy()
            .or_else(|_| {
                platform().protect(from, PAGE, Protection::READ)?;
                copy()
            })
            .and_then(|()| match protection == READ_WRITE {
                true => Ok(()),
                false => platform().protect(to, PAGE, protection),
            });
        if let Err(errno) = moved {
            platform().decommit(to, PAGE);
            return Err(errno);
        }
        platform().decommit(from, PAGE);
        pages.away.remove(&offset);
        pages.live.remove(offset..offset + PAGE);
        if to == self.home.load(Ordering::SeqCst) + offset {
            pages.live.insert(offset..offset + PAGE);
        } else {
            pages.away.insert(offset, Away { at: to, protection });
        }
        Ok(())
    }

    /// Moves the page that a view needs to it. All users are stopped.
    pub(super) fn fetch(&self, view: &View, page: u64, protection: Protection) -> Result<()> {
        let mut pages = self.pages.lock();
        let wanted = match view.is_home() {
            true => pages.protection | protection,
            false => protection,
        };
        self.move_page(&mut pages, view.offset_of(page), page, wanted)
    }

    /// Moves the pages that an alias holds back home. All users are stopped.
    pub(super) fn return_home(&self, view: &View) {
        let mut pages = self.pages.lock();
        let home = self.home.load(Ordering::SeqCst);
        let held: Vec<u64> = pages
            .away
            .range(view.offsets())
            .filter(|(_, away)| view.range.contains(&away.at))
            .map(|(&offset, _)| offset)
            .collect();
        for offset in held {
            let protection = pages.protection;
            let moved = self.move_page(&mut pages, offset, home + offset, protection);
            if moved.is_err() {
                // Memory for one page at a time is what the reserve is for; without it the content
                // would be lost to everyone.
                platform().log(0, "no memory to move a page of shared memory");
                platform().exit(9);
            }
        }
    }

    /// Whether an alias holds any page.
    pub(super) fn holds_any(&self, view: &View) -> bool {
        let pages = self.pages.lock();
        let mut held = pages.away.range(view.offsets());
        held.any(|(_, away)| view.range.contains(&away.at))
    }

    /// The page is where the view wants it: makes sure that its protection suffices.
    pub(super) fn allow(&self, offset: u64, protection: Protection) -> Result<()> {
        let mut pages = self.pages.lock();
        if let Some(away) = pages.away.get_mut(&offset) {
            if !away.protection.contains(protection) {
                away.protection |= protection;
                platform().protect(away.at, PAGE, away.protection)?;
            }
            return Ok(());
        }
        pages.raise(protection, self.home.load(Ordering::SeqCst))
    }

    /// Gives the object another home, where it may grow. What `views` show stays where it is, the
    /// rest goes to the new home. All users are stopped; addresses are the caller's business.
    pub(super) fn set_home(&self, home: Range<u64>, views: &[View]) -> Result<()> {
        let mut pages = self.pages.lock();
        let old = self.home();
        let protection = pages.protection;
        let runs: Vec<_> = pages.live.runs(0..old.end - old.start).collect();
        for offset in runs.into_iter().flat_map(|run| run.step_by(PAGE as usize)) {
            let at = old.start + offset;
            let shown = views.iter().any(|view| view.range.contains(&at));
            if shown {
                pages.live.remove(offset..offset + PAGE);
                pages.away.insert(offset, Away { at, protection });
            } else {
                self.move_page(&mut pages, offset, home.start + offset, protection)?;
                // It counts as away until the home has changed.
            }
        }
        self.home.store(home.start, Ordering::SeqCst);
        self.len.store(home.end - home.start, Ordering::SeqCst);
        let arrived: Vec<u64> = pages
            .away
            .iter()
            .filter(|(offset, away)| home.start + **offset == away.at)
            .map(|(&offset, _)| offset)
            .collect();
        for offset in arrived {
            pages.away.remove(&offset);
            pages.live.insert(offset..offset + PAGE);
        }
        let mut homes = HOMES.lock();
        if let Some(this) = homes.remove(&old.start) {
            homes.insert(home.start, this);
        }
        Ok(())
    }

    /// A mapping of the object may be written to from now on.
    pub fn set_dirty(&self) {
        self.pages.lock().dirty = true;
    }

    /// Gives the pages of a view its protection; at home, more when there are other mappings.
    pub fn protect(&self, view: &View, protection: Protection, alone: bool) -> Result<()> {
        let mut pages = self.pages.lock();
        if !view.is_home() {
            for (_, away) in pages.away.range_mut(view.offsets()) {
                if view.range.contains(&away.at) {
                    away.protection = protection;
                    platform().protect(away.at, PAGE, protection)?;
                }
            }
            return Ok(());
        }
        let home = self.home.load(Ordering::SeqCst);
        if !alone {
            return pages.raise(protection, home);
        }
        for run in pages.live.runs(view.offsets()) {
            platform().protect(home + run.start, run.end - run.start, protection)?;
        }
        Ok(())
    }

    /// Drops the content of whole pages (MADV_REMOVE, truncation).
    pub fn discard(&self, part: Range<u64>) {
        let mut pages = self.pages.lock();
        for (_, at, len) in pages.parts(self.home.load(Ordering::SeqCst), &part) {
            platform().decommit(at, len);
            accounting::uncharge(len);
        }
        pages.live.remove(part.clone());
        pages.away.retain(|offset, _| !part.contains(offset));
    }

    /// Writes the pages of a part back to the file.
    pub fn write_back(&self, part: Range<u64>) -> Result<()> {
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
        let part = page_down(part.start)..part.end.next_multiple_of(PAGE);
        for (start, at, len) in pages.parts(self.home.load(Ordering::SeqCst), &part) {
            for page in (0..len).step_by(PAGE as usize) {
                let offset = file.offset + start + page;
                let len = size.saturating_sub(offset).min(PAGE) as usize;
                if len == 0
                    || platform()
                        .copy_from_user(at + page, &mut ours[..len])
                        .is_err()
                {
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
    /// Adds to the protection of all pages at home.
    fn raise(&mut self, protection: Protection, home: u64) -> Result<()> {
        if self.protection.contains(protection) {
            return Ok(());
        }
        self.protection |= protection;
        for run in self.live.runs(0..u64::MAX / 2) {
            platform().protect(home + run.start, run.end - run.start, self.protection)?;
        }
        Ok(())
    }

    /// The pages of a part that are in memory: offset, address, length of each run.
    fn parts(&self, home: u64, part: &Range<u64>) -> Vec<(u64, u64, u64)> {
        let live = self.live.runs(part.clone());
        let live = live.map(|run| (run.start, home + run.start, run.end - run.start));
        let away = self.away.range(part.clone());
        live.chain(away.map(|(&offset, away)| (offset, away.at, PAGE)))
            .collect()
    }

    /// The runs of a part that are nowhere.
    fn holes(&self, part: Range<u64>) -> Vec<Range<u64>> {
        let mut holes = Vec::new();
        for hole in self.live.holes(part) {
            let mut at = hole.start;
            for (&offset, _) in self.away.range(hole.clone()) {
                if at < offset {
                    holes.push(at..offset);
                }
                at = offset + PAGE;
            }
            if at < hole.end {
                holes.push(at..hole.end);
            }
        }
        holes
    }
}

impl Drop for SharedObject {
    fn drop(&mut self) {
        let home = self.home();
        // The file system has no way to report this to anyone: msync is there for that.
        let _ = self.write_back(0..home.end - home.start);
        self.discard(0..home.end - home.start);
        HOMES.lock().remove(&home.start);
        allocator::release(home);
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

/// What there is of a range of a file.
pub enum Found {
    Nothing,
    /// An object has it, at this offset.
    Whole(Arc<SharedObject>, u64),
    /// An object has less than the range needs: it must be made so long.
    Short(Arc<SharedObject>, u64),
}

/// Looks for the object that has a range of a file. ENOMEM when an object has its end only.
pub fn find(id: FileId, offset: u64, len: u64) -> Result<Found> {
    for object in objects_of(id) {
        if let Some(at) = object.place(offset, len) {
            return Ok(Found::Whole(object, at));
        }
        if object.base() == 0 {
            let wanted = offset.checked_add(len).ok_or(ENOMEM)?;
            return Ok(Found::Short(object, wanted));
        }
        if object.touches(offset, len) {
            return Err(ENOMEM.because("a part of this file range is mapped elsewhere"));
        }
    }
    Ok(Found::Nothing)
}

/// Before a part of a file is read: what shared mappings have changed goes into the file.
pub fn flush(id: FileId, offset: u64, len: u64) -> Result<()> {
    for object in objects_of(id) {
        if object.touches(offset, len) {
            object.write_back(object.part(offset, len))?;
        }
    }
    Ok(())
}

/// What shared mappings have changed goes into the files of a file system.
pub fn flush_device(device: u64) -> Result<()> {
    let ids: Vec<FileId> = {
        let files = FILES.lock();
        files
            .keys()
            .filter(|id| id.device == device)
            .copied()
            .collect()
    };
    ids.into_iter().try_for_each(|id| flush(id, 0, u64::MAX))
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
        let capacity = object.capacity();
        let end = size.saturating_sub(file.offset).min(capacity);
        let page_end = end.next_multiple_of(PAGE);
        if end % PAGE != 0 {
            let pages = object.pages.lock();
            if let Some(at) = object.place_of(&pages, page_down(end)) {
                let zeros = vec![0; (page_end - end) as usize];
                write_live(at + end % PAGE, &zeros, pages.protection_at(page_down(end)));
            }
        }
        object.discard(page_end..capacity);
    }
}

impl Pages {
    fn protection_at(&self, offset: u64) -> Protection {
        self.away
            .get(&offset)
            .map_or(self.protection, |away| away.protection)
    }
}

impl SharedObject {
    /// The part of a file range that the object has.
    fn part(&self, offset: u64, len: u64) -> Range<u64> {
        let (base, capacity) = (self.base(), self.capacity());
        let at = |offset: u64| offset.saturating_sub(base).min(capacity);
        at(offset)..at(offset.saturating_add(len))
    }

    /// Reads the parts of a file range that are in memory again.
    fn reload(&self, offset: u64, len: u64) {
        let Some(file) = &self.file else { return };
        let part = self.part(offset, len);
        let pages = self.pages.lock();
        let mut buffer = [0; PAGE as usize];
        let around = page_down(part.start)..part.end.next_multiple_of(PAGE);
        for (start, at, len) in pages.parts(self.home.load(Ordering::SeqCst), &around) {
            for page in (start..start + len).step_by(PAGE as usize) {
                let (from, to) = (page.max(part.start), (page + PAGE).min(part.end));
                let bytes = &mut buffer[..(to - from) as usize];
                if read_file(file, file.offset + from, bytes).is_ok() {
                    write_live(at + (from - start), bytes, pages.protection_at(page));
                }
            }
        }
    }
}
