//! mmap, munmap, mprotect.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use super::allocator::Wanted;
use super::fault::{EAGER_MAX, effective};
use super::shared::{self, SharedObject, View};
use super::vma::{Around, FileBacking};
use super::{
    Backing, Locked, PAGE, Space, Vma, VmaFlags, accounting, allocator, page_up, residency,
};
use crate::Result;
use crate::errno::{EACCES, EEXIST, EINVAL, ENOMEM};
use crate::platform::{Protection, platform};

/// Where a mapping should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Anywhere, at the hint if that is free (0: no hint).
    Hint(u64),
    /// In the lowest 2 GiB (MAP_32BIT), at the hint if that is free (0: no hint).
    Low(u64),
    /// Here, in place of whatever is there (MAP_FIXED).
    Fixed(u64),
    /// Here, if nothing is there (MAP_FIXED_NOREPLACE).
    Free(u64),
}

/// End of the lowest 2 GiB.
const LOW_END: u64 = 1 << 31;

/// What is to be mapped.
pub enum Source {
    Anonymous,
    File(FileBacking),
}

/// A new mapping.
pub struct Request {
    pub placement: Placement,
    /// Bytes; rounded up to pages.
    pub len: u64,
    pub protection: Protection,
    pub flags: VmaFlags,
    pub source: Source,
    /// MAP_POPULATE or MAP_LOCKED: bring everything in at once.
    pub populate: bool,
}

impl Request {
    /// A private anonymous mapping anywhere.
    pub fn anonymous(len: u64, protection: Protection) -> Request {
        Request {
            placement: Placement::Hint(0),
            len,
            protection,
            flags: VmaFlags::empty(),
            source: Source::Anonymous,
            populate: false,
        }
    }
}

/// Most mappings of a process (vm.max_map_count).
pub fn maps_max() -> usize {
    crate::fs::procfs::max_map_count()
}

impl Space {
    /// Makes a mapping; its address.
    pub fn map(&self, request: Request) -> Result<u64> {
        if request.len == 0 {
            return Err(EINVAL.because("a mapping without length"));
        }
        let len = page_up(request.len).ok_or(ENOMEM)?;
        let user = platform().user_range();
        if len > user.end - user.start {
            return Err(ENOMEM.because("longer than the address range"));
        }
        let demanding = request.protection.contains(Protection::WRITE)
            && !request
                .flags
                .intersects(VmaFlags::NORESERVE | VmaFlags::SHARED);
        if demanding && len > accounting::limit() {
            return Err(ENOMEM.because("more than the container's memory"));
        }
        if let Placement::Fixed(at) | Placement::Free(at) = request.placement {
            check_fixed(at, len)?;
        }
        if request.flags.contains(VmaFlags::SHARED) {
            return self.map_shared(request, len);
        }
        let mut placement = request.placement;
        let mut image = None;
        let backing = match request.source {
            Source::Anonymous => Backing::Anonymous,
            Source::File(file) => {
                // As ld.so starts with a library: what is missing of it is mapped over it then.
                if placement == Placement::Hint(0) && file.offset == 0 {
                    let warm = super::warm::claim(&*file.inode, len);
                    placement = warm.map_or(placement, Placement::Hint);
                    image = Some(file.inode.clone());
                }
                Backing::File(file)
            }
        };
        let (mut locked, start) = self.take_addresses(placement, len, None)?;
        // Of a whole image the beginning; more when its parts get their protections.
        let mut ready = start..start + len;
        if let Some(inode) = image {
            locked.note_image(ready.clone(), &*inode);
            ready.end = start + PAGE;
        }
        locked.add(Vma {
            start,
            end: start + len,
            protection: request.protection,
            flags: request.flags,
            backing,
            around: Around::default(),
        });
        locked.adopt(&ready);
        let result = locked.bring_in_new(start..start + len, request.populate);
        if let Err(errno) = result {
            locked.unmap(&(start..start + len));
            return Err(errno);
        }
        Ok(start)
    }

    /// Finds addresses for a private mapping, or an alias that shows `shown` from an offset on, and
    /// takes them; what was there is gone.
    pub(super) fn take_addresses(
        &self,
        placement: Placement,
        len: u64,
        shown: Option<(&Arc<SharedObject>, u64)>,
    ) -> Result<(Locked<'_>, u64)> {
        let mut locked = self.lock();
        if locked.dead || locked.vmas.len() >= maps_max() {
            return Err(ENOMEM.because("too many mappings"));
        }
        match locked.settle_low_hint(placement, len) {
            placement @ (Placement::Hint(_) | Placement::Low(_)) => {
                let start = locked.find_addresses(placement, len)?;
                Ok((locked, start))
            }
            placement @ (Placement::Free(at) | Placement::Fixed(at)) => {
                let range = at..at + len;
                super::warm::leave(&range);
                if placement == Placement::Free(at)
                    && locked.vmas.overlapping(&range).next().is_some()
                {
                    return Err(EEXIST);
                }
                if locked.take_where_unmapped(&range) {
                    locked.take_out(&range);
                    return Ok((locked, at));
                }
                drop(locked);
                Ok((self.take_from_others(range, shown)?, at))
            }
        }
    }

    /// Takes addresses where another process is: the two take turns from now on.
    pub(super) fn take_from_others(
        &self,
        range: Range<u64>,
        shown: Option<(&Arc<SharedObject>, u64)>,
    ) -> Result<Locked<'_>> {
        let mut guard = residency::lock();
        for object in shared::homes_in(&range) {
            guard.rehome(&object, object.capacity())?;
        }
        let view = shown.map(|(object, offset)| View {
            object: object.clone(),
            offset,
            range: range.clone(),
        });
        residency::join_range(&mut guard, self, &range, view.as_ref())?;
        let mut locked = self.lock_with(guard);
        let parts = locked.unmapped(&range);
        parts.into_iter().for_each(allocator::share);
        locked.take_out(&range);
        Ok(locked)
    }

    /// The start of the MAP_GROWSDOWN mapping at an address.
    pub fn grows_down_from(&self, address: u64) -> Option<u64> {
        let locked = self.lock();
        let vma = locked.vmas.find(address)?;
        let grows = vma.flags.intersects(VmaFlags::GROWSDOWN | VmaFlags::STACK);
        grows.then_some(vma.start)
    }

    /// Removes all mappings in a range. EINVAL for a bad range.
    pub fn unmap(&self, address: u64, len: u64) -> Result<()> {
        let range = checked_range(address, len)?;
        if range.is_empty() {
            return Err(EINVAL.because("nothing to unmap"));
        }
        let mut locked = self.lock();
        // A hole in the middle of a mapping makes two of it.
        let splits = locked
            .vmas
            .find(range.start)
            .is_some_and(|vma| vma.start < range.start && range.end < vma.end);
        if splits && locked.vmas.len() >= maps_max() {
            return Err(ENOMEM.because("too many mappings"));
        }
        locked.unmap(&range);
        Ok(())
    }

    /// Unmaps a range but keeps its addresses from being used again by anyone.
    pub fn keep_free(&self, range: Range<u64>) -> Result<()> {
        let mut locked = self.lock();
        if !locked.vmas.covers(&range) {
            return Err(ENOMEM.because("nothing is mapped there"));
        }
        let parts = locked.take_out(&range);
        locked.reserved.extend(parts);
        Ok(())
    }

    /// Changes the protection of a range. ENOMEM where nothing is mapped, EACCES for writing to a
    /// shared file opened for reading.
    pub fn protect(&self, address: u64, len: u64, protection: Protection) -> Result<()> {
        let wraps = page_up(len).is_none_or(|len| address.checked_add(len).is_none());
        if wraps && address.is_multiple_of(PAGE) {
            return Err(ENOMEM.because("the range wraps around"));
        }
        let range = checked_range(address, len)?;
        let mut locked = self.lock();
        let mut at = range.start;
        while at < range.end {
            let Some(vma) = locked.vmas.find(at).cloned() else {
                return Err(ENOMEM.because("nothing is mapped there"));
            };
            let piece = vma.clipped(&(at..range.end));
            locked.protect_piece(&piece, protection)?;
            at = piece.end;
        }
        Ok(())
    }
}

impl Locked<'_> {
    /// A hint in the lowest 2 GiB that nothing of this process stands in the way of is taken by its
    /// word, even if the two processes that want it have to take turns: those who ask for an address
    /// there rarely do with another (SBCL ends).
    fn settle_low_hint(&self, placement: Placement, len: u64) -> Placement {
        if let Placement::Low(hint) = placement
            && let Some(at) = page_up(hint)
            && let Some(end) = at.checked_add(len).filter(|&end| end <= LOW_END)
            && allocator::is_user(&(at..end))
            && self.vmas.overlapping(&(at..end)).next().is_none()
        {
            return Placement::Free(at);
        }
        placement
    }

    pub(super) fn find_addresses(&mut self, placement: Placement, len: u64) -> Result<u64> {
        let user = platform().user_range();
        if let Placement::Hint(hint) = placement
            && let Some(hint) = page_up(hint).filter(|&hint| hint != 0)
            && hint >= user.start
            && hint.checked_add(len).is_some_and(|end| end <= user.end)
        {
            super::warm::leave(&(hint..hint + len));
            if allocator::allocate_at(hint..hint + len) {
                return Ok(hint);
            }
        }
        let low = matches!(placement, Placement::Low(_));
        let within = if low {
            user.start..LOW_END
        } else {
            user.clone()
        };
        let below = if low { within.end } else { self.mmap_base };
        allocator::allocate(&Wanted {
            len,
            align: PAGE,
            within,
            below,
        })
    }

    /// Adds a mapping whose addresses are taken.
    pub(super) fn add(&mut self, mut vma: Vma) {
        if self.lock_future {
            vma.flags |= VmaFlags::LOCKED;
        }
        if vma.protection.contains(Protection::WRITE) {
            vma.flags |= VmaFlags::DIRTY;
        }
        self.total += vma.len();
        self.vmas.insert(vma);
    }

    /// Brings in a new mapping where that is cheaper than waiting for its faults, and sees to it
    /// that the rest of it faults.
    pub(super) fn bring_in_new(&mut self, range: Range<u64>, populate: bool) -> Result<()> {
        let result = self.bring_in_eagerly(range.clone(), populate);
        self.close(&range);
        result
    }

    /// Nothing may be accessible in a new mapping but its own pages.
    pub(super) fn close(&self, range: &Range<u64>) {
        let vma = self.vmas.find(range.start);
        if !vma.is_some_and(Vma::is_clean) {
            super::warm::make_room(range);
        }
        platform().close(range.start, range.end - range.start);
    }

    fn bring_in_eagerly(&mut self, range: Range<u64>, populate: bool) -> Result<()> {
        if !self.resident {
            return Ok(());
        }
        let Some(vma) = self.vmas.find(range.start) else {
            return Ok(());
        };
        if platform().must_commit_at_once() && !vma.protection.is_empty() {
            return self.populate_all(&range);
        }
        /// Most bytes of a library's data that are brought in when it is mapped.
        const DATA: u64 = 64 << 10;
        let small = range.end - range.start <= EAGER_MAX && !accounting::is_scarce();
        let writable = vma.protection.contains(Protection::WRITE);
        let text = vma.protection.contains(Protection::EXECUTE);
        match vma.backing {
            Backing::Anonymous if small && writable && !self.exact => self.populate(&range),
            // What a program writes to at once: relocations and initialised data.
            Backing::File(_) if small && (text || writable && range.end - range.start <= DATA) => {
                // What cannot be read now faults later, if it is needed at all.
                let _ = self.populate(&range);
                Ok(())
            }
            _ if populate || self.lock_future => {
                let _ = self.populate(&range);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Brings in all of a mapping. Pages behind the end of a file cannot be: they stay out.
    fn populate_all(&mut self, range: &Range<u64>) -> Result<()> {
        match self.populate(range) {
            Err(errno) if errno == ENOMEM => Err(errno),
            _ => Ok(()),
        }
    }

    /// Removes all mappings in a range.
    pub(super) fn unmap(&mut self, range: &Range<u64>) {
        let has_sites = self
            .vmas
            .overlapping(range)
            .any(|vma| vma.flags.contains(VmaFlags::SITES));
        for part in self.take_out(range) {
            super::warm::make_room(&part);
            for part in self.without_reserved(&part) {
                allocator::release(part);
            }
        }
        if has_sites {
            super::sites::dropped(range);
        }
    }

    /// Removes all mappings in a range but keeps their addresses, which it returns (those of
    /// shared memory stay the object's).
    pub(super) fn take_out(&mut self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        for vma in self.vmas.remove(range) {
            self.total -= vma.len();
            self.drop_pages(&vma);
            match &vma.backing {
                Backing::Shared(object, _) => {
                    // With the last mapping the object goes, and writes back and frees it all.
                    let is_last = Arc::strong_count(object) == 1;
                    if !is_last && let Some(view) = vma.view() {
                        let _ = object.write_back(view.offsets());
                        if !view.is_home() {
                            self.leave_alias(&view);
                        }
                    }
                    if vma.is_alias() {
                        parts.push(vma.range());
                    }
                }
                _ => parts.push(vma.range()),
            }
        }
        parts
    }

    /// The parts of a range whose addresses this space has not taken from the allocator.
    fn unmapped(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut at = range.start;
        let mut parts = Vec::new();
        let owned = |vma: &&Vma| vma.owns_addresses();
        for vma in self.vmas.overlapping(range).filter(owned) {
            if at < vma.start {
                parts.extend(self.without_reserved(&(at..vma.start)));
            }
            at = vma.end;
        }
        if at < range.end {
            parts.extend(self.without_reserved(&(at..range.end)));
        }
        parts
    }

    /// Takes the parts of a range that are not this space's yet, if they are free. Views of shared
    /// memory at home in the range are removed first.
    fn take_where_unmapped(&mut self, range: &Range<u64>) -> bool {
        // Another process may have its heap where this one only keeps room for it.
        if self.is_conflicted() && self.without_reserved(range) != [range.clone()] {
            return false;
        }
        let shared: Vec<Range<u64>> = self
            .vmas
            .overlapping(range)
            .filter(|vma| !vma.owns_addresses())
            .map(|vma| vma.clipped(range).range())
            .collect();
        for part in shared {
            self.unmap(&part);
        }
        let parts = self.unmapped(range);
        for (at, part) in parts.iter().enumerate() {
            if !allocator::allocate_at(part.clone()) {
                parts[..at].iter().cloned().for_each(allocator::release);
                return false;
            }
        }
        true
    }

    /// Frees the pages of a mapping, live or saved. Shared objects keep theirs.
    pub(super) fn drop_pages(&mut self, vma: &Vma) {
        let range = vma.range();
        let runs: Vec<_> = self.live.runs(range.clone()).collect();
        for run in runs {
            // Where nobody waits for a fault.
            if self.alone_at_end {
                platform().abandon(run.start, run.end - run.start, vma.page_protection());
            } else {
                platform().decommit(run.start, run.end - run.start);
            }
        }
        let mut freed = self.live.remove(range.clone());
        if !self.saved.is_empty() {
            let pages: Vec<u64> = self.saved.range(range).map(|(&page, _)| page).collect();
            freed += pages.len() as u64;
            for page in pages {
                self.saved.remove(&page);
            }
        }
        accounting::uncharge(freed * PAGE);
    }

    /// The parts of a range that are not in a reservation of this space (the program break's).
    pub(super) fn without_reserved(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        without(&self.reserved, range)
    }

    /// Changes the protection of a piece of one mapping.
    fn protect_piece(&mut self, piece: &Vma, protection: Protection) -> Result<()> {
        let writable = protection.contains(Protection::WRITE);
        if writable && piece.flags.contains(VmaFlags::NO_WRITE) {
            return Err(EACCES.because("the file was not opened for writing"));
        }
        if piece.protection == protection {
            return Ok(());
        }
        let range = piece.range();
        super::warm::make_room(&range);
        let was_reserved = piece.protection.is_empty();
        let pages = effective(protection);
        match &piece.backing {
            Backing::Shared(object, _) => {
                if writable {
                    object.set_dirty();
                }
                // One reference is this piece's copy, one the mapping's.
                let alone = Arc::strong_count(object) <= 2;
                if let Some(view) = piece.view() {
                    object.protect(&view, pages, alone)?;
                }
            }
            _ => {
                if writable && piece.flags.contains(VmaFlags::SITES) {
                    super::sites::undo(piece, &self.live);
                }
                if effective(piece.protection) != pages {
                    for run in self.live.runs(range.clone()) {
                        platform().protect(run.start, run.end - run.start, pages)?;
                    }
                }
            }
        }
        self.vmas.update(&range, |vma| {
            vma.protection = protection;
            if writable {
                vma.flags |= VmaFlags::DIRTY;
                vma.flags -= VmaFlags::SITES;
            }
        });
        if was_reserved && platform().must_commit_at_once() && self.resident {
            return self.populate_all(&range);
        }
        if was_reserved && writable && matches!(piece.backing, Backing::Anonymous) {
            self.bring_in_opened(&range, piece.flags)?;
        }
        Ok(())
    }

    /// A reservation becomes memory: small ones are brought in at once; of thread stacks the top,
    /// which is used first.
    fn bring_in_opened(&mut self, range: &Range<u64>, flags: VmaFlags) -> Result<()> {
        /// The C libraries keep thread-local storage and their first frames here.
        const STACK_TOP: u64 = 32 << 10;
        if !self.resident || accounting::is_scarce() {
            return Ok(());
        }
        if range.end - range.start <= EAGER_MAX {
            return self.populate(range);
        }
        if flags.contains(VmaFlags::STACK) {
            return self.populate(&(range.end - STACK_TOP..range.end));
        }
        Ok(())
    }
}

/// The parts of a range that are in none of `reserved`.
pub(super) fn without(reserved: &[Range<u64>], range: &Range<u64>) -> Vec<Range<u64>> {
    let mut parts = alloc::vec![range.clone()];
    for hole in reserved {
        parts = parts
            .into_iter()
            .flat_map(|part| {
                [
                    part.start..part.end.min(hole.start),
                    part.start.max(hole.end)..part.end,
                ]
            })
            .filter(|part| part.start < part.end)
            .collect();
    }
    parts
}

/// A fixed address must be page aligned and the application's.
fn check_fixed(at: u64, len: u64) -> Result<()> {
    if !at.is_multiple_of(PAGE) {
        return Err(EINVAL.because("the address is not page aligned"));
    }
    let end = at.checked_add(len).ok_or(ENOMEM)?;
    if !allocator::is_user(&(at..end)) {
        // Linux answers EPERM below mmap_min_addr and ENOMEM above the address range.
        let low = at < platform().user_range().start;
        return Err(if low { crate::errno::EPERM } else { ENOMEM });
    }
    Ok(())
}

/// The pages of a range given to a system call. EINVAL when it is not page aligned or wraps.
pub(super) fn checked_range(address: u64, len: u64) -> Result<Range<u64>> {
    if !address.is_multiple_of(PAGE) {
        return Err(EINVAL.because("the address is not page aligned"));
    }
    let len = page_up(len).ok_or(EINVAL.because("the length wraps"))?;
    let end = address
        .checked_add(len)
        .ok_or(EINVAL.because("the range wraps"))?;
    Ok(address..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::EFAULT;
    use crate::mm::AddressSpace;
    use crate::testing::{self, MemoryFile};

    const RW: Protection = Protection::READ.union(Protection::WRITE);
    const R: Protection = Protection::READ;
    const NONE: Protection = Protection::empty();

    fn space() -> Arc<AddressSpace> {
        testing::platform();
        AddressSpace::new()
    }

    fn file(content: Vec<u8>, offset: u64) -> Source {
        let inode = MemoryFile::new(content);
        Source::File(FileBacking {
            inode,
            offset,
            path: None,
        })
    }

    fn request(placement: Placement, len: u64, protection: Protection) -> Request {
        Request {
            placement,
            ..Request::anonymous(len, protection)
        }
    }

    #[test]
    fn small_maps_are_eager_large_ones_lazy() {
        let mm = space();
        let small = mm.map(Request::anonymous(EAGER_MAX, RW)).unwrap();
        assert_eq!(testing::platform().committed(small..small + EAGER_MAX), 64);
        let large = mm.map(Request::anonymous(64 << 20, RW)).unwrap();
        assert_eq!(testing::platform().committed(large..large + (64 << 20)), 0);
        mm.write(large + 0x12345, b"x").unwrap();
        assert_eq!(testing::platform().committed(large..large + (64 << 20)), 16);
        // A walk brings in more and more.
        for at in (0x20000..0x800000).step_by(4096) {
            mm.write(large + at, &[1]).unwrap();
        }
        let mut byte = [9];
        mm.read(large + 0x12345, &mut byte).unwrap();
        assert_eq!(byte, *b"x");
        mm.unmap(large, 64 << 20).unwrap();
        assert_eq!(testing::platform().committed(large..large + (64 << 20)), 0);
        assert_eq!(mm.read(large, &mut byte), Err(EFAULT));
    }

    #[test]
    fn fixed_replaces_and_noreplace_does_not() {
        let mm = space();
        let at = mm.map(Request::anonymous(0x10000, RW)).unwrap();
        mm.write(at + 0x4000, b"old").unwrap();
        assert_eq!(
            mm.map(request(Placement::Free(at + 0x4000), 0x1000, RW)),
            Err(EEXIST)
        );
        assert_eq!(
            mm.map(request(Placement::Fixed(at + 0x4000), 0x2000, R)),
            Ok(at + 0x4000)
        );
        let mut bytes = [9; 3];
        mm.read(at + 0x4000, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 3]);
        assert_eq!(mm.write(at + 0x4000, b"x"), Err(EFAULT));
        assert_eq!(
            mm.map(request(Placement::Fixed(at + 1), 0x1000, RW)),
            Err(EINVAL)
        );
        assert_eq!(
            mm.map(request(Placement::Fixed(0x1000), 0x1000, RW)),
            Err(crate::errno::EPERM)
        );
        assert_eq!(mm.map(Request::anonymous(0, RW)), Err(EINVAL));
        assert_eq!(mm.map(Request::anonymous(u64::MAX, RW)), Err(ENOMEM));
        mm.unmap(at, 0x10000).unwrap();
        assert!(allocator::is_free(&(at..at + 0x10000)));
    }

    #[test]
    fn hints_low_addresses_and_huge_reservations() {
        let mm = space();
        let other = space();
        // Go's first arena.
        let arena = 0xc0_0000_0000;
        assert_eq!(
            mm.map(request(Placement::Hint(arena), 64 << 20, NONE)),
            Ok(arena)
        );
        let second = other
            .map(request(Placement::Hint(arena), 64 << 20, NONE))
            .unwrap();
        assert_ne!(second, arena);
        let low = mm.map(request(Placement::Low(0), 0x1000, RW)).unwrap();
        assert!(low < 1 << 31);
        let hint = Placement::Low(0x5000_0000);
        assert_eq!(other.map(request(hint, 0x1000, RW)), Ok(0x5000_0000));
        let taken = other.map(request(hint, 0x1000, RW)).unwrap();
        assert!(taken < 1 << 31 && taken != 0x5000_0000);
        other.unmap(taken, 0x1000).unwrap();
        let beyond = Placement::Low(0x8000_0000);
        assert!(other.map(request(beyond, 0x1000, RW)).unwrap() < 1 << 31);
        let reserved = mm.map(Request::anonymous(64 << 30, NONE)).unwrap();
        mm.protect(reserved + (8 << 20), 1 << 20, RW).unwrap();
        mm.write(reserved + (8 << 20), b"heap").unwrap();
        assert_eq!(mm.write(reserved, b"x"), Err(EFAULT));
        assert_eq!(mm.sizes().total, (64 << 20 | 0x1000 | 64 << 30) / PAGE);
        let total = (64 << 30) / PAGE + (64 << 20) / PAGE + 1;
        assert_eq!(mm.sizes().total, total);
    }

    #[test]
    fn protection_splits_and_faults() {
        let mm = space();
        let at = mm.map(Request::anonymous(0x8000, RW)).unwrap();
        mm.protect(at + 0x2000, 0x2000, R).unwrap();
        assert_eq!(mm.write(at + 0x1ffe, b"1234"), Err(EFAULT));
        let mut bytes = [0; 4];
        mm.read(at + 0x1ffe, &mut bytes).unwrap();
        assert_eq!(&bytes, b"12\0\0");
        use crate::mm::Fault;
        assert_eq!(
            mm.handle_fault(at + 0x2000, Protection::WRITE),
            Err(Fault::NotAllowed)
        );
        assert_eq!(
            mm.handle_fault(at + 0x8000, Protection::READ),
            Err(Fault::NotMapped)
        );
        mm.protect(at, 0x8000, NONE).unwrap();
        assert_eq!(mm.read(at, &mut bytes), Err(EFAULT));
        mm.protect(at, 0x8000, RW).unwrap();
        mm.read(at + 0x1ffe, &mut bytes).unwrap();
        assert_eq!(&bytes, b"12\0\0");
        assert_eq!(mm.maps().len(), 1);
        assert_eq!(mm.protect(at, 0x9000, RW), Err(ENOMEM));
        assert_eq!(mm.protect(at + 1, 0x1000, RW), Err(EINVAL));
    }

    #[test]
    fn files_end_with_zeros_then_sigbus() {
        let mm = space();
        let content: Vec<u8> = (0..0x2345u32).map(|i| i as u8).collect();
        let mut map = Request::anonymous(0x8000, R);
        map.source = file(content.clone(), 0x1000);
        let at = mm.map(map).unwrap();
        let mut bytes = [1; 0x2000];
        mm.read(at, &mut bytes).unwrap();
        assert_eq!(bytes[..0x1345], content[0x1000..]);
        assert!(bytes[0x1345..].iter().all(|&byte| byte == 0));
        let fault = mm.handle_fault(at + 0x2000, Protection::READ);
        assert_eq!(fault, Err(crate::mm::Fault::Unreadable));
        // A private write does not reach the file.
        mm.protect(at, 0x1000, RW).unwrap();
        mm.write(at, b"mine").unwrap();
        mm.read(at, &mut bytes[..4]).unwrap();
        assert_eq!(&bytes[..4], b"mine");
    }

    #[test]
    fn shared_files_have_one_home_and_are_written_back() {
        let inode = MemoryFile::new(alloc::vec![7; 0x3000]);
        let shared = |offset, len| {
            let mut map = Request::anonymous(len, RW);
            map.flags = VmaFlags::SHARED;
            let file = FileBacking {
                inode: inode.clone(),
                offset,
                path: None,
            };
            map.source = Source::File(file);
            map
        };
        let (one, two) = (space(), space());
        let at = one.map(shared(0, 0x3000)).unwrap();
        assert_eq!(two.map(shared(0x1000, 0x1000)), Ok(at + 0x1000));
        one.write(at + 0x1004, b"hello").unwrap();
        let mut bytes = [0; 5];
        two.read(at + 0x1004, &mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        assert_eq!(two.read(at, &mut bytes), Err(EFAULT));
        let id = crate::fs::inode::Inode::id(&*inode);
        shared::flush(id, 0x1000, 0x100).unwrap();
        assert_eq!(&inode.content.lock().unwrap()[0x1004..0x1009], b"hello");
        inode.content.lock().unwrap()[0x1006..0x1008].copy_from_slice(b"LP");
        shared::refresh(id, 0x1006, 2);
        two.read(at + 0x1004, &mut bytes).unwrap();
        assert_eq!(&bytes, b"heLPo");
        drop(one);
        two.read(at + 0x1004, &mut bytes).unwrap();
        assert_eq!(&bytes, b"heLPo");
        drop(two);
        assert_eq!(&inode.content.lock().unwrap()[0x1004..0x1009], b"heLPo");
        assert!(allocator::is_free(&(at..at + 0x3000)));
        assert_eq!(testing::platform().committed(at..at + 0x3000), 0);
    }

    #[test]
    fn brk_moves_within_its_room() {
        let mm = space();
        let base = mm.map(Request::anonymous(0x1000, RW)).unwrap();
        mm.unmap(base, 0x1000).unwrap();
        let start = 0x30_0000_0000;
        mm.set_up_brk(start).unwrap();
        assert_eq!(mm.brk(0), start);
        assert_eq!(mm.brk(start + 0x21000), start + 0x21000);
        mm.write(start + 0x20ff8, b"heap end").unwrap();
        assert_eq!(mm.write(start + 0x20ff9, b"heap end"), Err(EFAULT));
        assert_eq!(mm.brk(start + 0x1234), start + 0x1234);
        assert_eq!(mm.brk(start + 0x21000), start + 0x21000);
        let mut bytes = [1; 8];
        mm.read(start + 0x20ff8, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 8]);
        assert_eq!(mm.brk(start - 1), start + 0x21000);
        assert_eq!(mm.maps()[0].name, "[heap]");
        drop(mm);
        assert!(allocator::is_free(&(start..start + (8 << 30))));
    }

    #[test]
    fn remap_grows_in_place_or_moves_the_content() {
        use crate::mm::remap::{Keep, Move};
        let mm = space();
        let at = mm.map(Request::anonymous(0x4000, RW)).unwrap();
        mm.write(at + 0x3000, b"last").unwrap();
        let guard = mm
            .map(request(Placement::Hint(at + 0x4000), 0x1000, RW))
            .unwrap();
        assert_eq!(
            mm.remap(at, 0x4000, 0x8000, Move::Never, Keep::No),
            Err(ENOMEM)
        );
        let moved = mm.remap(at, 0x4000, 0x8000, Move::May, Keep::No).unwrap();
        assert_ne!(moved, at);
        let mut bytes = [0; 4];
        mm.read(moved + 0x3000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"last");
        assert_eq!(mm.read(at, &mut bytes), Err(EFAULT));
        mm.write(moved + 0x7000, b"more").unwrap();
        assert_eq!(
            mm.remap(moved, 0x8000, 0x1000, Move::Never, Keep::No),
            Ok(moved)
        );
        assert_eq!(
            mm.remap(moved, 0x1000, 0x2000, Move::Never, Keep::No),
            Ok(moved)
        );
        let kept = mm
            .remap(moved, 0x2000, 0x2000, Move::May, Keep::Yes)
            .unwrap();
        assert_ne!(kept, moved);
        mm.write(moved, b"zero").unwrap();
        let there = Move::To(guard);
        assert_eq!(mm.remap(kept, 0x1000, 0x1000, there, Keep::No), Ok(guard));
        assert_eq!(
            mm.remap(0x10000, 0x1000, 0x1000, Move::May, Keep::No),
            Err(EFAULT)
        );
    }

    #[test]
    fn dontneed_gives_pages_back() {
        let mm = space();
        let at = mm.map(Request::anonymous(0x4000, RW)).unwrap();
        mm.write(at, b"data").unwrap();
        mm.write(at + 0x2000, b"data").unwrap();
        mm.advise(at, 0x1000, 4).unwrap();
        assert_eq!(testing::platform().committed(at..at + 0x4000), 3);
        // Those that were only brought in with others do not count.
        assert_eq!(mm.core(at, 0x4000).unwrap(), [0, 0, 1, 0]);
        let mut bytes = [1; 4];
        mm.read(at, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4]);
        assert_eq!(mm.advise(at, 0x1000, 7), Err(EINVAL));
        assert_eq!(mm.advise(at, 0x5000, 4), Err(ENOMEM));
    }
}
