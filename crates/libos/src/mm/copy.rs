//! Copies between kernel and user memory.
//!
//! The usual case goes straight through the platform, without holding a lock; a fault brings the
//! page in and tries again. A space in conflict takes the residency lock for each copy and finds
//! its pages live or saved.

use core::ops::Range;
use core::sync::atomic::Ordering;

use super::{Locked, PAGE, Space, page_down};
use crate::Result;
use crate::errno::{EFAULT, EINVAL};
use crate::platform::{Atomic, Protection, UserFault, platform};

/// How to copy a piece: the live way and the way to a saved page.
struct Copier<'a> {
    access: Protection,
    /// Copies `range` of the whole at a user address.
    live: &'a mut dyn FnMut(u64, Range<usize>) -> core::result::Result<(), UserFault>,
    /// Copies `range` of the whole from or to a part of a saved page.
    saved: &'a mut dyn FnMut(SavedPart<'_>, Range<usize>),
}

/// Part of a saved page.
enum SavedPart<'a> {
    Read(&'a [u8]),
    Write(&'a mut [u8]),
}

/// A copy that faults this often at one place without getting on is refused.
const TRIES: u32 = 64;

impl Space {
    /// Copies from user memory; EFAULT.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<()> {
        let len = to.len();
        let cell = core::cell::RefCell::new(to);
        self.copy(
            address,
            len,
            Copier {
                access: Protection::READ,
                live: &mut |at, range| platform().copy_from_user(at, &mut cell.borrow_mut()[range]),
                saved: &mut |part, range| {
                    if let SavedPart::Read(page) = part {
                        cell.borrow_mut()[range].copy_from_slice(page);
                    }
                },
            },
        )
    }

    /// Copies to user memory; EFAULT.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        self.copy(
            address,
            from.len(),
            Copier {
                access: Protection::WRITE,
                live: &mut |at, range| platform().copy_to_user(at, &from[range]),
                saved: &mut |part, range| {
                    if let SavedPart::Write(page) = part {
                        page.copy_from_slice(&from[range]);
                    }
                },
            },
        )
    }

    /// Clears user memory; EFAULT.
    pub fn clear(&self, address: u64, len: usize) -> Result<()> {
        self.copy(
            address,
            len,
            Copier {
                access: Protection::WRITE,
                live: &mut |at, range| platform().clear_user(at, range.len()),
                saved: &mut |part, _| {
                    if let SavedPart::Write(page) = part {
                        page.fill(0);
                    }
                },
            },
        )
    }

    /// User memory into the calling thread's host buffer at `offset`; EFAULT.
    pub fn host_put(&self, offset: u64, address: u64, len: usize) -> Result<()> {
        self.copy(
            address,
            len,
            Copier {
                access: Protection::READ,
                live: &mut |at, range| {
                    platform().host_put_user(offset + range.start as u64, at, range.len())
                },
                saved: &mut |part, range| {
                    if let SavedPart::Read(page) = part {
                        // The buffer's size was the caller's to respect.
                        let _ = platform().host_put(offset + range.start as u64, page);
                    }
                },
            },
        )
    }

    /// The calling thread's host buffer at `offset` into user memory; EFAULT.
    pub fn host_get(&self, offset: u64, address: u64, len: usize) -> Result<()> {
        self.copy(
            address,
            len,
            Copier {
                access: Protection::WRITE,
                live: &mut |at, range| {
                    platform().host_get_user(offset + range.start as u64, at, range.len())
                },
                saved: &mut |part, range| {
                    if let SavedPart::Write(page) = part {
                        let _ = platform().host_get(offset + range.start as u64, page);
                    }
                },
            },
        )
    }

    /// An atomic operation on an aligned 32-bit word in user memory; the old value. EINVAL when
    /// it is not aligned, EFAULT.
    pub fn atomic(&self, address: u64, operation: Atomic) -> Result<u32> {
        if !address.is_multiple_of(4) {
            return Err(EINVAL.because("the word is not aligned"));
        }
        let old = core::cell::Cell::new(0);
        let access = match operation {
            Atomic::Load => Protection::READ,
            _ => Protection::WRITE,
        };
        self.copy(
            address,
            4,
            Copier {
                access,
                live: &mut |at, _| {
                    old.set(platform().atomic_user(at, operation)?);
                    Ok(())
                },
                saved: &mut |part, _| match part {
                    SavedPart::Read(word) => old.set(word_of(word)),
                    SavedPart::Write(word) => {
                        old.set(word_of(word));
                        word.copy_from_slice(&operation.apply(old.get()).to_le_bytes());
                    }
                },
            },
        )?;
        Ok(old.get())
    }

    /// Whether an access to all of a range would be allowed, bringing nothing in.
    pub fn is_accessible(&self, address: u64, len: u64, access: Protection) -> bool {
        self.allowed(&self.lock(), address, len, access) == len
    }

    /// How many bytes from an address on allow an access.
    pub fn accessible(&self, address: u64, len: u64, access: Protection) -> u64 {
        self.allowed(&self.lock(), address, len, access)
    }

    fn copy(&self, address: u64, len: usize, mut copier: Copier<'_>) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let end = address.checked_add(len as u64).ok_or(EFAULT)?;
        if end > platform().user_range().end {
            return Err(EFAULT);
        }
        let mut done = 0;
        let mut tries = 0;
        while done < len {
            let at = address + done as u64;
            let moved = match self.begin_copy() {
                Some(_pass) => self.copy_live(at, done..len, &mut copier)?,
                None => self.copy_locked(&mut self.lock(), at, done..len, &mut copier)?,
            };
            done += moved;
            tries = if moved > 0 { 0 } else { tries + 1 };
            if tries > TRIES {
                return Err(EFAULT.because("the page cannot be brought in"));
            }
            if done < len {
                let at = address + done as u64;
                self.handle_fault(at, copier.access).map_err(|_| EFAULT)?;
            }
        }
        Ok(())
    }

    /// Copies as far as the mappings allow and the pages are there.
    fn copy_live(&self, at: u64, range: Range<usize>, copier: &mut Copier<'_>) -> Result<usize> {
        let allowed = self.allowed(&self.lock_quick(), at, range.len() as u64, copier.access);
        if allowed == 0 {
            return Err(EFAULT);
        }
        let part = range.start..range.start + allowed as usize;
        match (copier.live)(at, part.clone()) {
            Ok(()) => Ok(part.len()),
            Err(fault) => Ok(part.len() - fault.remaining.min(part.len())),
        }
    }

    /// The same with residency held still: at most up to the end of a page.
    fn copy_locked(
        &self,
        locked: &mut Locked<'_>,
        at: u64,
        range: Range<usize>,
        copier: &mut Copier<'_>,
    ) -> Result<usize> {
        let to_page_end = PAGE - at % PAGE;
        let len = (range.len() as u64).min(to_page_end);
        if self.allowed(locked, at, len, copier.access) == 0 {
            return Err(EFAULT);
        }
        let part = range.start..range.start + len as usize;
        let offset = (at % PAGE) as usize;
        if let Some(page) = locked.state.saved.get_mut(&page_down(at)) {
            let within = offset..offset + len as usize;
            let saved = match copier.access.contains(Protection::WRITE) {
                true => SavedPart::Write(&mut page.bytes_mut()[within]),
                false => SavedPart::Read(&page.bytes()[within]),
            };
            (copier.saved)(saved, part.clone());
            return Ok(part.len());
        }
        let Some(page) = locked.location(page_down(at)) else {
            return Ok(0);
        };
        let at = page + at % PAGE;
        match (copier.live)(at, part.clone()) {
            Ok(()) => Ok(part.len()),
            Err(fault) => Ok(part.len() - fault.remaining.min(part.len())),
        }
    }

    /// How many bytes from `address` on are mapped with this access.
    fn allowed(&self, state: &super::State, address: u64, len: u64, access: Protection) -> u64 {
        let end = address.saturating_add(len);
        let mut at = address;
        while at < end {
            match state.vmas.find(at) {
                Some(vma) if vma.allows(access) => at = vma.end,
                _ => break,
            }
        }
        at.min(end).saturating_sub(address)
    }

    /// Announces a copy without a lock; `None` when the space is in conflict.
    fn begin_copy(&self) -> Option<Pass<'_>> {
        self.copying.fetch_add(1, Ordering::SeqCst);
        let pass = Pass(self);
        (!self.conflicted.load(Ordering::SeqCst)).then_some(pass)
    }

    /// Waits until nobody copies without a lock; `conflicted` is set.
    pub(super) fn wait_for_copies(&self) {
        while self.copying.load(Ordering::SeqCst) != 0 {
            platform().relax();
        }
    }

    /// The state for a look at the mappings only.
    fn lock_quick(&self) -> crate::sync::SpinGuard<'_, super::State> {
        self.state.lock()
    }
}

/// A copy without a lock is under way.
struct Pass<'a>(&'a Space);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.copying.fetch_sub(1, Ordering::SeqCst);
    }
}

impl super::State {
    /// Whether the page at an address is committed with this space's (or its object's) content.
    pub(super) fn is_live(&self, page: u64) -> bool {
        self.location(page) == Some(page)
    }

    /// Where the page is: there, or for one of shared memory elsewhere.
    pub(super) fn location(&self, page: u64) -> Option<u64> {
        if self.live.contains(page) {
            return Some(page);
        }
        let view = self.vmas.find(page)?.view()?;
        view.object.location(view.offset_of(page))
    }
}

fn word_of(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
