//! mremap.
//!
//! A page cannot move to another address in an enclave: its content is copied and the old page
//! given back. Views of shared memory move by mapping the same part elsewhere.

use core::ops::Range;

use super::map::{Placement, maps_max};
use super::residency;
use super::shared::View;
use super::view::Wish;
use super::vma::Around;
use super::{Backing, Locked, PAGE, Space, Vma, VmaFlags, accounting, allocator, page_up};
use crate::Result;
use crate::errno::{EFAULT, EINVAL, ENOMEM};
use crate::platform::{Protection, platform};

/// How a mapping may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Not at all.
    Never,
    /// Anywhere, if it must (MREMAP_MAYMOVE).
    May,
    /// To this address (MREMAP_FIXED).
    To(u64),
}

impl Space {
    /// Resizes or moves a mapping; its address. `keep` leaves the emptied old mapping in place
    /// (MREMAP_DONTUNMAP).
    pub fn remap(
        &self,
        address: u64,
        old_len: u64,
        new_len: u64,
        how: Move,
        keep: Keep,
    ) -> Result<u64> {
        if !address.is_multiple_of(PAGE) {
            return Err(EINVAL.because("the address is not page aligned"));
        }
        let old_len = page_up(old_len).ok_or(EINVAL)?;
        let new_len = page_up(new_len).filter(|&len| len > 0).ok_or(EINVAL)?;
        let old = address..address.checked_add(old_len).ok_or(EFAULT)?;
        if let Move::To(to) = how {
            let new = to..to.checked_add(new_len).ok_or(EINVAL)?;
            if to % PAGE != 0 || !allocator::is_user(&new) {
                return Err(EINVAL.because("a bad new address"));
            }
            if new.start < old.end && old.start < new.end {
                return Err(EINVAL.because("the old and new ranges overlap"));
            }
        }
        let mut locked = self.lock();
        let Some(vma) = locked.vmas.find(address).cloned() else {
            return Err(EFAULT);
        };
        if old_len == 0 {
            // A second view, as long as it is wanted.
            let view = vma.clipped(&(address..vma.end)).view();
            let view = view.ok_or(EINVAL.because("a second view of private memory"))?;
            if how == Move::Never {
                return Err(ENOMEM.because("a second view has another address"));
            }
            let wish = wish(&vma, how, new_len);
            drop(locked);
            return self.map_view(&view.object, view.offset, &wish);
        }
        if how == Move::Never || how == Move::May && keep == Keep::No {
            if new_len <= old_len {
                if new_len < old_len {
                    locked.unmap(&(address + new_len..old.end));
                }
                return Ok(address);
            }
            if old.end > vma.end {
                return Err(EFAULT.because("the old range is not one mapping"));
            }
            if locked.grow_in_place(&vma, &old, new_len) {
                return Ok(address);
            }
            if how == Move::Never {
                return Err(ENOMEM.because("no room to grow in place"));
            }
        }
        if old.end > vma.end {
            return Err(EFAULT.because("the old range is not one mapping"));
        }
        if keep == Keep::Yes && new_len != old_len {
            return Err(EINVAL);
        }
        let view = vma.clipped(&old).view();
        drop(locked);
        if let Some(view) = view {
            if view.object.is_file() {
                residency::lock().make_room(&view.object, view.offset + new_len)?;
            }
            let wish = wish(&vma, how, new_len);
            let start = self.map_view(&view.object, view.offset, &wish)?;
            if keep == Keep::No {
                self.lock().unmap(&old);
            }
            return Ok(start);
        }
        self.move_mapping(old, new_len, how, keep)
    }

    fn move_mapping(&self, old: Range<u64>, new_len: u64, how: Move, keep: Keep) -> Result<u64> {
        let placement = match how {
            Move::To(to) => Placement::Fixed(to),
            _ => Placement::Hint(0),
        };
        let (mut locked, start) = self.take_addresses(placement, new_len, None)?;
        let new = start..start + new_len;
        let found = locked
            .vmas
            .find(old.start)
            .filter(|vma| vma.end >= old.end)
            .cloned();
        let result = match found {
            Some(vma) => locked.move_pages(&vma.clipped(&old), &new),
            None => Err(EFAULT.because("another thread has changed the mapping")),
        };
        if let Err(errno) = result {
            for part in locked.without_reserved(&new) {
                allocator::release(part);
            }
            return Err(errno);
        }
        if keep == Keep::No {
            locked.unmap(&old);
        } else if let Some(vma) = locked.vmas.find(old.start).map(|vma| vma.clipped(&old)) {
            locked.drop_pages(&vma);
        }
        Ok(start)
    }
}

/// The view of shared memory that a mapping becomes.
fn wish(vma: &Vma, how: Move, len: u64) -> Wish {
    Wish {
        placement: match how {
            Move::To(to) => Placement::Fixed(to),
            _ => Placement::Hint(0),
        },
        len,
        protection: vma.protection,
        flags: vma.flags,
    }
}

/// Whether the old mapping stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    No,
    Yes,
}

impl Locked<'_> {
    fn grow_in_place(&mut self, vma: &Vma, old: &Range<u64>, new_len: u64) -> bool {
        let grown = old.end..old.start.saturating_add(new_len);
        if old.end != vma.end || vma.flags.contains(VmaFlags::VDSO) {
            return false;
        }
        if grown.end - grown.start > accounting::limit() || self.vmas.len() >= maps_max() {
            return false;
        }
        if let Backing::Shared(object, _) = &vma.backing {
            let free = self.vmas.overlapping(&grown).next().is_none();
            if vma.is_alias() || !free || grown.end > object.home().end {
                return false;
            }
            let Some(view) = vma.view() else { return false };
            let more = View {
                offset: view.offset_of(grown.start),
                range: grown.clone(),
                ..view
            };
            let wish = wish(vma, Move::Never, grown.end - grown.start);
            return self.add_view(more, &wish).is_ok();
        }
        if !allocator::allocate_at(grown.clone()) {
            return false;
        }
        let mut more = vma.clone();
        more.start = grown.start;
        more.end = grown.end;
        more.around = Around::default();
        if let Backing::File(file) = &mut more.backing {
            file.offset += vma.len();
        }
        self.add(more);
        let _ = self.bring_in_new(grown, false);
        true
    }

    /// Makes the mapping `to` with the content of `from` (one mapping or a part of one).
    fn move_pages(&mut self, from: &Vma, to: &Range<u64>) -> Result<()> {
        let len = from.len().min(to.end - to.start);
        let mut moved = from.clone();
        moved.start = to.start;
        moved.end = to.end;
        // The copied pages are no longer sure to be the file's, nor patched for this address.
        moved.flags |= VmaFlags::DIRTY;
        moved.flags -= VmaFlags::SITES | VmaFlags::HEAP;
        let runs: alloc::vec::Vec<_> = self.live.runs(from.start..from.start + len).collect();
        let bytes: u64 = runs.iter().map(|run| run.end - run.start).sum();
        accounting::charge(bytes)?;
        if from.flags.contains(VmaFlags::SITES) {
            super::sites::undo(from, &self.live);
        }
        let protection = moved.page_protection();
        for (at, run) in runs.iter().enumerate() {
            let target = run.start - from.start + to.start;
            if let Err(errno) = copy_run(run, target, from.page_protection(), protection) {
                for run in &runs[..at] {
                    let target = run.start - from.start + to.start;
                    platform().decommit(target, run.end - run.start);
                }
                accounting::uncharge(bytes);
                return Err(errno);
            }
        }
        for run in &runs {
            let target = run.start - from.start + to.start;
            self.live.insert(target..target + (run.end - run.start));
        }
        let saved: alloc::vec::Vec<_> = self
            .saved
            .range(from.start..from.start + len)
            .map(|(&page, bytes)| (page - from.start + to.start, bytes.clone()))
            .collect();
        // The old range keeps its own until it is dropped.
        accounting::charge(saved.len() as u64 * PAGE)?;
        self.saved.extend(saved);
        self.total += moved.len();
        self.vmas.insert(moved);
        self.close(to);
        Ok(())
    }
}

/// Commits a run at a new address with the content of the old one.
fn copy_run(run: &Range<u64>, target: u64, from: Protection, to: Protection) -> Result<()> {
    const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);
    let len = run.end - run.start;
    if !from.contains(Protection::READ) {
        platform().protect(run.start, len, Protection::READ)?;
    }
    super::commit(&(target..target + len), READ_WRITE)?;
    let result = platform()
        .fill(target, len, &mut |bytes| {
            platform()
                .copy_from_user(run.start, bytes)
                .map_err(|_| EFAULT)
        })
        .and_then(|()| match to == READ_WRITE {
            true => Ok(()),
            false => platform().protect(target, len, to),
        });
    if result.is_err() {
        platform().decommit(target, len);
    }
    result
}
