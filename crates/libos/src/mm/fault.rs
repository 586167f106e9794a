//! Bringing pages in.
//!
//! Committing costs an exit and a fault about ten microseconds, a page within a larger commit a
//! third of one: so a fault brings in its neighbourhood, more each time a walk goes on.

use core::ops::Range;

use alloc::sync::Arc;

use super::saved::{SavedPage, Tag};
use super::shared::SharedObject;
use super::vma::{Around, FileBacking, page_protection};
use super::{Backing, Locked, PAGE, Space, Vma, VmaFlags, accounting, allocator, page_down};
use crate::errno::{EFAULT, EIO, ENOMEM};
use crate::platform::{Protection, platform};
use crate::{Errno, Result};

/// How a fault was resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Something had to be brought in.
    Brought,
    /// The page is there and allows the access: another thread was faster, or the host keeps it
    /// from us.
    Present,
}

/// An access that the address space does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGSEGV, SEGV_MAPERR (1): nothing is mapped there.
    NotMapped,
    /// SIGSEGV, SEGV_ACCERR (2): the mapping does not allow the access.
    NotAllowed,
    /// SIGBUS, BUS_ADRERR (2): beyond the end of the file, or it cannot be read.
    Unreadable,
    /// The container's memory is used up: SIGKILL, as Linux's out-of-memory killer does.
    NoMemory,
}

impl Fault {
    /// Signal number and si_code.
    pub fn signal(self) -> (u32, i32) {
        match self {
            Fault::NotMapped => (11, 1),
            Fault::NotAllowed => (11, 2),
            Fault::Unreadable => (7, 2),
            Fault::NoMemory => (9, 0x80),
        }
    }
}

impl From<Fault> for Errno {
    fn from(fault: Fault) -> Errno {
        match fault {
            Fault::NoMemory => ENOMEM,
            _ => EFAULT,
        }
    }
}

/// Bytes that a fault brings in at least, where they are free: 16 pages cost little more than one.
const AROUND_MIN: u64 = 64 << 10;
/// The same of files, whose content must be read and verified: half as much costs a small program a
/// few faults more and a hundred pages less.
const FILE_AROUND_MIN: u64 = 32 << 10;
/// And at most, when a program walks through memory.
const AROUND_MAX: u64 = 2 << 20;
/// The same for files.
const FILE_AROUND_MAX: u64 = 512 << 10;
/// Anonymous maps up to this size, and small text, are brought in when they are made.
pub(super) const EAGER_MAX: u64 = 256 << 10;

const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

/// See [`Space::beside`].
enum Beside {
    Nobody,
    /// Other threads of the process.
    OwnThreads,
    /// All who see an object with aliases.
    Users(Arc<SharedObject>),
}

impl Space {
    /// Makes the page at `address` accessible, or says why it cannot be.
    pub fn handle_fault(
        &self,
        address: u64,
        access: Protection,
    ) -> core::result::Result<Resolved, Fault> {
        let page = page_down(address);
        let mut locked = match self.beside(page) {
            Beside::Nobody => self.lock(),
            // A page is accessible while the kernel fills it: no other thread may see it so.
            Beside::OwnThreads => {
                let guard = super::residency::lock();
                self.stop_threads(None);
                self.lock_with(guard)
            }
            Beside::Users(object) => {
                let guard = super::residency::lock();
                guard.stop_users(&object, None);
                self.lock_with(guard)
            }
        };
        if locked.dead {
            return Err(Fault::NotMapped);
        }
        let vma = match locked.vmas.find(address) {
            Some(vma) => vma.clone(),
            None => locked.grow_down(address).ok_or(Fault::NotMapped)?,
        };
        if vma.flags.contains(VmaFlags::GUARD) {
            return Err(Fault::NotMapped);
        }
        if !vma.allows(access) {
            return Err(Fault::NotAllowed);
        }
        if locked.is_live(page) {
            if let Some(view) = vma.view().filter(|view| view.object.is_aliased()) {
                let allowed = view
                    .object
                    .allow(view.offset_of(page), vma.page_protection());
                return allowed
                    .map(|()| Resolved::Brought)
                    .map_err(|_| Fault::NoMemory);
            }
            return Ok(Resolved::Present);
        }
        if locked.saved.contains_key(&page) {
            if locked.resident {
                super::swap::restore(&mut locked, &vma, page..page + PAGE)
                    .map_err(|_| Fault::NoMemory)?;
            }
            return Ok(Resolved::Brought);
        }
        locked.adopt(&(page..page + PAGE));
        if !locked.is_live(page) {
            locked.bring_in(&vma, page)?;
        }
        Ok(Resolved::Brought)
    }

    /// Who must not run while a page is brought in: it means reading a file, or moving the page from
    /// another view.
    fn beside(&self, page: u64) -> Beside {
        let from_file = {
            let locked = self.lock();
            match locked.vmas.find(page).map(|vma| &vma.backing) {
                Some(Backing::File(_)) => !locked.is_live(page),
                Some(Backing::Shared(object, _)) if object.is_aliased() => {
                    return Beside::Users(object.clone());
                }
                Some(Backing::Shared(object, _)) => object.is_file() && !locked.is_live(page),
                _ => false,
            }
        };
        match from_file && self.threads().len() > 1 {
            true => Beside::OwnThreads,
            false => Beside::Nobody,
        }
    }

    /// Brings in what is missing of a range, as far as that is possible.
    pub fn populate(&self, range: &Range<u64>) -> Result<()> {
        self.lock().populate(range)
    }
}

impl Locked<'_> {
    /// Extends a MAP_GROWSDOWN mapping down to an address not far below it.
    fn grow_down(&mut self, address: u64) -> Option<Vma> {
        /// Linux keeps this gap between a growing stack and the mapping below it.
        const GUARD: u64 = 256 * PAGE;
        /// The default stack limit.
        const MOST: u64 = 8 << 20;
        let start = page_down(address);
        let above = self.vmas.find_from(address)?.clone();
        let grows = above.flags.contains(VmaFlags::GROWSDOWN);
        if !grows || above.end - start > MOST || start < GUARD {
            return None;
        }
        if self
            .vmas
            .before(above.start)
            .is_some_and(|below| below.end + GUARD > start)
        {
            return None;
        }
        if !allocator::allocate_at(start..above.start) {
            return None;
        }
        let above_start = above.start;
        self.vmas.remove(&above.range());
        self.total += above.start - start;
        let grown = Vma { start, ..above };
        self.vmas.insert(grown.clone());
        self.close(&(start..above_start));
        Some(grown)
    }

    /// Brings in the page of a mapping and some of its neighbours.
    pub(super) fn bring_in(&mut self, vma: &Vma, page: u64) -> core::result::Result<(), Fault> {
        if let Backing::Shared(object, _) = &vma.backing {
            let max = if object.is_file() {
                FILE_AROUND_MAX
            } else {
                AROUND_MAX
            };
            let window = self.window(vma, page, vma.range(), max);
            self.remember(page, &window);
            let Some(view) = vma.view() else {
                return Err(Fault::NotMapped);
            };
            return self.bring_in_view(&view, window, page, vma.page_protection());
        }
        if !self.resident {
            return self.make_saved(vma, page);
        }
        let max = if matches!(vma.backing, Backing::File(_)) {
            FILE_AROUND_MAX
        } else {
            AROUND_MAX
        };
        let hole = self.live.hole_around(page, vma.range());
        let window = self.window(vma, page, hole, max);
        match self.bring_in_range(vma, window.clone(), page) {
            Ok(()) => {
                self.remember(page, &window);
                Ok(())
            }
            // Perhaps there is room for the one page that is needed.
            Err(Fault::NoMemory) if window.end - window.start > PAGE => {
                self.bring_in_range(vma, page..page + PAGE, page)
            }
            Err(fault) => Err(fault),
        }
    }

    /// The bytes around `page` to bring in, within a hole.
    fn window(&self, vma: &Vma, page: u64, hole: Range<u64>, max: u64) -> Range<u64> {
        if self.exact || accounting::is_scarce() {
            return page..page + PAGE;
        }
        let min = match vma.backing {
            Backing::File(_) => FILE_AROUND_MIN,
            _ => AROUND_MIN,
        };
        let last = vma.around;
        let grown = ((last.end - last.start) * 2).clamp(min, max);
        let wanted = if last.end == page {
            page..page.saturating_add(grown)
        } else if page + PAGE == last.start {
            (page + PAGE).saturating_sub(grown)..page + PAGE
        } else if vma.flags.contains(VmaFlags::STACK) {
            (page + PAGE).saturating_sub(min)..page + PAGE
        } else {
            let start = page & !(min - 1);
            start..start + min
        };
        wanted.start.max(hole.start)..wanted.end.min(hole.end)
    }

    fn remember(&mut self, page: u64, window: &Range<u64>) {
        if let Some(vma) = self.vmas.find_mut(page) {
            vma.around = Around {
                start: window.start,
                end: window.end,
            };
        }
    }

    /// Commits a range of a private mapping, none of it live, `page` within it being what is
    /// needed: a file's end may make the rest shorter.
    pub(super) fn bring_in_range(
        &mut self,
        vma: &Vma,
        range: Range<u64>,
        page: u64,
    ) -> core::result::Result<(), Fault> {
        let range = match &vma.backing {
            Backing::File(file) => clip_to_file(vma, file, range, page)?,
            _ => range,
        };
        let len = range.end - range.start;
        accounting::charge(len).map_err(|_| Fault::NoMemory)?;
        let result = commit(vma, range.clone());
        match result {
            Ok(has_sites) => {
                if has_sites && let Some(vma) = self.vmas.find_mut(range.start) {
                    vma.flags |= VmaFlags::SITES;
                }
                self.live.insert(range);
                self.peak_pages = self.peak_pages.max(self.live.count());
                Ok(())
            }
            Err(errno) => {
                accounting::uncharge(len);
                Err(if errno == ENOMEM {
                    Fault::NoMemory
                } else {
                    Fault::Unreadable
                })
            }
        }
    }

    /// Makes a page of a private mapping in the saved set: its address is another space's now.
    fn make_saved(&mut self, vma: &Vma, page: u64) -> core::result::Result<(), Fault> {
        let mut bytes = alloc::vec![0; PAGE as usize];
        if let Backing::File(file) = &vma.backing {
            clip_to_file(vma, file, page..page + PAGE, page)?;
            read_file(file, file.offset + (page - vma.start), &mut bytes)
                .map_err(|_| Fault::Unreadable)?;
        }
        accounting::charge(PAGE).map_err(|_| Fault::NoMemory)?;
        self.saved
            .insert(page, SavedPage::new(&bytes, Tag::UNKNOWN));
        Ok(())
    }

    /// See [`Space::populate`].
    pub(super) fn populate(&mut self, range: &Range<u64>) -> Result<()> {
        let pieces: alloc::vec::Vec<Vma> = self
            .vmas
            .overlapping(range)
            .map(|vma| vma.clipped(range))
            .collect();
        for vma in pieces {
            if vma.page_protection().is_empty() {
                continue;
            }
            if let Some(view) = vma.view() {
                // What another view has stays there until this one is used.
                if view.is_home() || self.resident {
                    let protection = vma.page_protection();
                    view.object
                        .bring_in(&view, &vma.range(), vma.start, protection)?;
                }
                continue;
            }
            if !self.resident {
                continue;
            }
            self.adopt(&vma.range());
            let holes: alloc::vec::Vec<_> = self.live.holes(vma.range()).collect();
            for hole in holes {
                let mut at = hole.start;
                while at < hole.end {
                    let end = hole.end.min(at + AROUND_MAX);
                    match self.bring_in_range(&vma, at..end, at) {
                        Ok(()) | Err(Fault::Unreadable) => at = end,
                        Err(fault) => return Err(fault.into()),
                    }
                }
            }
        }
        Ok(())
    }
}

/// Cuts a range off at the last page that has something of the file; a `page` beyond is a fault.
fn clip_to_file(
    vma: &Vma,
    file: &FileBacking,
    range: Range<u64>,
    page: u64,
) -> core::result::Result<Range<u64>, Fault> {
    let size = file.inode.size().div_ceil(PAGE).saturating_mul(PAGE);
    let available = size.saturating_sub(file.offset);
    let end = vma.start.saturating_add(available).min(range.end);
    if page >= end {
        return Err(Fault::Unreadable);
    }
    Ok(range.start..end)
}

/// Commits pages of a private mapping with their content and protection; whether system-call sites
/// in them were rewritten.
fn commit(vma: &Vma, range: Range<u64>) -> Result<bool> {
    let len = range.end - range.start;
    let protection = vma.page_protection();
    let Backing::File(file) = &vma.backing else {
        return super::commit(&range, protection).map(|()| false);
    };
    super::commit(&range, READ_WRITE)?;
    let offset = file.offset + (range.start - vma.start);
    let result = platform()
        .fill(range.start, len, &mut |bytes| {
            read_file(file, offset, bytes)
        })
        .and_then(|()| super::sites::prepare(vma, file, range.clone()))
        .and_then(|has_sites| match protection == READ_WRITE {
            true => Ok(has_sites),
            false => platform()
                .protect(range.start, len, protection)
                .map(|()| has_sites),
        });
    if result.is_err() {
        platform().decommit(range.start, len);
    }
    result
}

/// Reads a file's content; zeros beyond its end.
pub(super) fn read_file(file: &FileBacking, offset: u64, bytes: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let read = file
            .inode
            .read_bytes(offset + done as u64, &mut bytes[done..])?;
        if read == 0 {
            break;
        }
        done = done
            .checked_add(read)
            .filter(|&done| done <= bytes.len())
            .ok_or(EIO)?;
    }
    bytes[done..].fill(0);
    Ok(())
}

/// The protection pages of `vma` get when it changes to `protection`.
pub(super) fn effective(protection: Protection) -> Protection {
    page_protection(protection)
}
