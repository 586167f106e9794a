//! madvise, mincore, mlock, msync.

use alloc::vec::Vec;

use super::map::checked_range;
use super::{Backing, Locked, PAGE, Space, Vma, VmaFlags};
use crate::Result;
use crate::errno::{EINVAL, ENOMEM};
use crate::platform::Protection;

/// The numbers of madvise(2).
mod advice {
    pub const NORMAL: u32 = 0;
    pub const RANDOM: u32 = 1;
    pub const SEQUENTIAL: u32 = 2;
    pub const WILLNEED: u32 = 3;
    pub const DONTNEED: u32 = 4;
    pub const FREE: u32 = 8;
    pub const REMOVE: u32 = 9;
    pub const DONTFORK: u32 = 10;
    pub const DOFORK: u32 = 11;
    pub const MERGEABLE: u32 = 12;
    pub const UNMERGEABLE: u32 = 13;
    pub const HUGEPAGE: u32 = 14;
    pub const NOHUGEPAGE: u32 = 15;
    pub const DONTDUMP: u32 = 16;
    pub const DODUMP: u32 = 17;
    pub const WIPEONFORK: u32 = 18;
    pub const KEEPONFORK: u32 = 19;
    pub const COLD: u32 = 20;
    pub const PAGEOUT: u32 = 21;
    pub const POPULATE_READ: u32 = 22;
    pub const POPULATE_WRITE: u32 = 23;
    pub const DONTNEED_LOCKED: u32 = 24;
    pub const COLLAPSE: u32 = 25;
    pub const GUARD_INSTALL: u32 = 102;
    pub const GUARD_REMOVE: u32 = 103;
}

impl Space {
    /// madvise(2).
    pub fn advise(&self, address: u64, len: u64, advice: u32) -> Result<()> {
        use advice::*;
        let range = checked_range(address, len)?;
        let is_known = matches!(advice, 0..5 | FREE..=COLLAPSE | GUARD_INSTALL | GUARD_REMOVE);
        if !is_known {
            return Err(EINVAL.because("unknown advice"));
        }
        let mut locked = self.lock();
        let pieces: Vec<Vma> = locked
            .vmas
            .overlapping(&range)
            .map(|vma| vma.clipped(&range))
            .collect();
        for piece in &pieces {
            match advice {
                DONTNEED | DONTNEED_LOCKED | FREE => {
                    let locked_pages = piece.flags.contains(VmaFlags::LOCKED);
                    if locked_pages && advice != DONTNEED_LOCKED {
                        return Err(EINVAL.because("the pages are locked"));
                    }
                    if advice == FREE
                        && (!matches!(piece.backing, Backing::Anonymous) || piece.is_shared())
                    {
                        return Err(EINVAL.because("MADV_FREE of a file"));
                    }
                    // The pages of shared objects stay: others may use them.
                    if !matches!(piece.backing, Backing::Shared(..)) && advice != FREE {
                        locked.drop_pages(piece);
                    }
                }
                REMOVE if piece.flags.contains(VmaFlags::LOCKED) => {
                    return Err(EINVAL.because("the pages are locked"));
                }
                REMOVE => match &piece.backing {
                    Backing::Shared(object, _) if !object.is_file() => {
                        if let Some(view) = piece.view() {
                            object.discard(view.offsets());
                        }
                    }
                    _ => return Err(EINVAL.because("MADV_REMOVE of private memory")),
                },
                POPULATE_READ | POPULATE_WRITE => {
                    let access = match advice == POPULATE_READ {
                        true => Protection::READ,
                        false => Protection::WRITE,
                    };
                    if !piece.allows(access) {
                        return Err(EINVAL.because("the mapping does not allow the access"));
                    }
                    locked.populate(&piece.range())?;
                }
                GUARD_INSTALL | GUARD_REMOVE => {
                    let is_locked = piece.flags.contains(VmaFlags::LOCKED);
                    if !matches!(piece.backing, Backing::Anonymous)
                        || piece.is_shared()
                        || is_locked
                    {
                        return Err(EINVAL.because("guards need private, unlocked memory"));
                    }
                    if advice == GUARD_INSTALL {
                        locked.drop_pages(piece);
                    }
                    locked.flag(piece, VmaFlags::GUARD, advice == GUARD_INSTALL);
                }
                DONTFORK => locked.flag(piece, VmaFlags::DONTFORK, true),
                DOFORK => locked.flag(piece, VmaFlags::DONTFORK, false),
                WIPEONFORK => {
                    if !matches!(piece.backing, Backing::Anonymous) {
                        return Err(EINVAL.because("MADV_WIPEONFORK of a file"));
                    }
                    locked.flag(piece, VmaFlags::WIPEONFORK, true);
                }
                KEEPONFORK => locked.flag(piece, VmaFlags::WIPEONFORK, false),
                DONTDUMP => locked.flag(piece, VmaFlags::DONTDUMP, true),
                DODUMP => locked.flag(piece, VmaFlags::DONTDUMP, false),
                WILLNEED => {
                    // Only files: for memory Linux reads swapped pages back, and there are none.
                    const MOST: u64 = 1 << 20;
                    if matches!(piece.backing, Backing::File(_)) {
                        let end = piece.end.min(piece.start + MOST);
                        let _ = locked.populate(&(piece.start..end));
                    }
                }
                // Hints about readahead, huge pages and reclaim have nothing to act on.
                MERGEABLE | UNMERGEABLE => {
                    return Err(EINVAL.because("pages are not merged"));
                }
                NORMAL | RANDOM | SEQUENTIAL | HUGEPAGE | NOHUGEPAGE | COLD | PAGEOUT
                | COLLAPSE => {}
                _ => return Err(EINVAL.because("unknown advice")),
            }
        }
        match locked.vmas.covers(&range) {
            true => Ok(()),
            false => Err(ENOMEM.because("a part of the range is not mapped")),
        }
    }

    /// mincore(2): one byte per page, 1 where it is in memory.
    pub fn core(&self, address: u64, len: u64) -> Result<Vec<u8>> {
        let range = checked_range(address, len)?;
        let mut locked = self.lock();
        if !locked.vmas.covers(&range) {
            return Err(ENOMEM.because("a part of the range is not mapped"));
        }
        locked.be_exact();
        // A file's pages count where the file has them, mapped or not: its content is in memory.
        let of_file = |page: u64| {
            let vma = locked.vmas.find(page);
            vma.is_some_and(|vma| matches!(vma.backing, Backing::File(_)))
        };
        let present = |page: &u64| u8::from(of_file(*page) || locked.is_resident(*page));
        Ok(range
            .step_by(PAGE as usize)
            .map(|page| present(&page))
            .collect())
    }

    /// For each of `count` pages: whether it is in memory, and whether it belongs to a file or to
    /// shared memory.
    pub fn presence(&self, address: u64, count: u64) -> Vec<(bool, bool)> {
        let locked = self.lock();
        (0..count)
            .map(|index| {
                let page = address + index * PAGE;
                let is_there = locked.is_live(page) || locked.saved.contains_key(&page);
                let vma = locked.vmas.find(page);
                let is_own = vma.is_none_or(|vma| {
                    matches!(vma.backing, Backing::Anonymous)
                        || !vma.is_shared() && vma.flags.contains(VmaFlags::DIRTY)
                });
                (is_there, !is_own)
            })
            .collect()
    }

    /// mlock and munlock. Enclave memory is never swapped by us, so locking only brings it in.
    pub fn lock_pages(&self, address: u64, len: u64, lock: Lock) -> Result<()> {
        let start = super::page_down(address);
        // As Linux rounds: the longest lengths are none.
        let len = len.wrapping_add(address - start).wrapping_add(PAGE - 1) & !(PAGE - 1);
        let range = checked_range(start, len)?;
        let mut locked = self.lock();
        if !locked.vmas.covers(&range) {
            return Err(ENOMEM.because("a part of the range is not mapped"));
        }
        let is_locked = lock != Lock::Off;
        locked
            .vmas
            .update(&range, |vma| vma.flags.set(VmaFlags::LOCKED, is_locked));
        if lock == Lock::Now {
            locked
                .vmas
                .update(&range, |vma| vma.flags -= VmaFlags::GUESSED);
            locked.populate(&range)?;
            let closed = |vma: &Vma| vma.page_protection().is_empty();
            if locked.vmas.overlapping(&range).any(closed) {
                return Err(ENOMEM.because("a part of the range allows no access"));
            }
        }
        Ok(())
    }

    /// mlockall and munlockall.
    pub fn lock_all(&self, current: Lock, future: bool) -> Result<()> {
        let mut locked = self.lock();
        locked.lock_future = future;
        let all = crate::platform::platform().user_range();
        if current != Lock::OnFault || !future {
            let is_locked = current != Lock::Off;
            locked
                .vmas
                .update(&all, |vma| vma.flags.set(VmaFlags::LOCKED, is_locked));
        }
        if current == Lock::Now {
            locked.populate(&all)?;
        }
        Ok(())
    }

    /// Whether a part of a range is locked (mlock).
    pub fn has_locked(&self, address: u64, len: u64) -> bool {
        let range = address..address.saturating_add(len);
        let locked = self.lock();
        let mut found = locked.vmas.overlapping(&range);
        found.any(|vma| vma.flags.contains(VmaFlags::LOCKED))
    }

    /// Whether new mappings are locked (mlockall with MCL_FUTURE).
    pub fn locks_future(&self) -> bool {
        self.lock().lock_future
    }

    /// Bytes in locked mappings (VmLck).
    pub fn locked_bytes(&self) -> u64 {
        let locked = self.lock();
        let all = crate::platform::platform().user_range();
        let found = locked.vmas.overlapping(&all);
        found
            .filter(|vma| vma.flags.contains(VmaFlags::LOCKED))
            .map(Vma::len)
            .sum()
    }

    /// msync(2): writes shared file pages back.
    pub fn sync(&self, address: u64, len: u64) -> Result<()> {
        let range = checked_range(address, len)?;
        let locked = self.lock();
        let views: Vec<_> = locked
            .vmas
            .overlapping(&range)
            .filter_map(|vma| vma.clipped(&range).view())
            .collect();
        let covered = locked.vmas.covers(&range);
        drop(locked);
        for view in views {
            view.object.write_back(view.offsets())?;
        }
        match covered {
            true => Ok(()),
            false => Err(ENOMEM.because("a part of the range is not mapped")),
        }
    }
}

/// What mlock asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    Off,
    Now,
    /// MLOCK_ONFAULT.
    OnFault,
}

impl Locked<'_> {
    /// From the first mincore on, a process gets the pages that it touches and no others. Which ones
    /// came in untouched before that can only be guessed.
    fn be_exact(&mut self) {
        if !core::mem::replace(&mut self.exact, true) {
            let all = crate::platform::platform().user_range();
            self.vmas.update(&all, |vma| {
                let is_locked = vma.flags.contains(VmaFlags::LOCKED);
                vma.flags.set(VmaFlags::GUESSED, !is_locked);
            });
        }
    }

    /// Whether a page is in memory, and was touched as far as one can tell: of what was brought in
    /// around a fault, pages that are still zero were not.
    fn is_resident(&self, page: u64) -> bool {
        let guessed = |vma: &Vma| {
            let is_memory = match &vma.backing {
                Backing::Anonymous => true,
                Backing::Shared(object, _) => !object.is_file(),
                Backing::File(_) => false,
            };
            is_memory && vma.flags.contains(VmaFlags::GUESSED)
        };
        let is_guess = self.vmas.find(page).is_some_and(guessed);
        let is_used = |bytes: &[u8]| !is_guess || bytes.iter().any(|&byte| byte != 0);
        if let Some(saved) = self.saved.get(&page) {
            return is_used(saved.bytes());
        }
        let Some(at) = self.location(page) else {
            return false;
        };
        let mut bytes = [0; PAGE as usize];
        !is_guess
            || crate::platform::platform()
                .copy_from_user(at, &mut bytes)
                .map_or(true, |_| is_used(&bytes))
    }

    fn flag(&mut self, piece: &Vma, flag: VmaFlags, on: bool) {
        self.vmas
            .update(&piece.range(), |vma| vma.flags.set(flag, on));
    }
}
