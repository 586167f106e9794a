//! Memory as a debugger reads and writes it: whatever its protection, and text as the program's file
//! has it, without the sites that were rewritten ([`super::sites`]).
//!
//! Writing into text makes the page the process's own, as on Linux: its rewritten sites get their
//! instructions back, and trap from then on.

use alloc::vec;
use core::ops::Range;

use super::{Backing, Locked, PAGE, Space, Vma, VmaFlags, page_down, residency, sites, swap};
use crate::Result;
use crate::errno::EFAULT;
use crate::platform::Protection;

/// A page that cannot be brought in this often is refused.
const TRIES: u32 = 8;

/// The parts of a range that lie in one page each: address, and place in the whole.
fn pages(address: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let at = address.wrapping_add(done as u64);
        let part = (len - done).min((PAGE - at % PAGE) as usize);
        let range = done..done + part;
        done += part;
        (part > 0).then_some((at, range))
    })
}

impl Space {
    /// Reads as a debugger does. EFAULT where nothing is.
    pub fn peek(&self, address: u64, to: &mut [u8]) -> Result<()> {
        address.checked_add(to.len() as u64).ok_or(EFAULT)?;
        for (at, part) in pages(address, to.len()) {
            if self.read(at, &mut to[part.clone()]).is_err() {
                self.peek_closed(at, &mut to[part])?;
            }
        }
        self.undo_rewriting(address, to);
        Ok(())
    }

    /// Makes of what was read at an address what the program's file has there.
    pub fn undo_rewriting(&self, address: u64, bytes: &mut [u8]) {
        let end = address.saturating_add(bytes.len() as u64);
        for patch in sites::patches(&(address..end)) {
            let range = patch.range();
            let mut there = vec![0; patch.original.len()];
            // Elsewhere at these addresses, or written over since, the original is what was read.
            if self.read(range.start, &mut there).is_err() || there != patch.replacement() {
                continue;
            }
            for (at, &byte) in (range.start..range.end).zip(&patch.original) {
                if (address..end).contains(&at) {
                    bytes[(at - address) as usize] = byte;
                }
            }
        }
    }

    /// Reads within a page that the program itself may not read.
    fn peek_closed(&self, at: u64, to: &mut [u8]) -> Result<()> {
        let locked = self.lock();
        let vma = locked.private_at(at)?;
        let page = page_down(at);
        let within = (at - page) as usize..(at - page) as usize + to.len();
        if let Some(saved) = locked.saved.get(&page) {
            to.copy_from_slice(&saved.bytes()[within]);
        } else if locked.live.contains(page) {
            let range = page..page + PAGE;
            swap::read_run(&range, vma.page_protection(), &mut |_, page, _| {
                to.copy_from_slice(&page[within.clone()]);
            });
        } else if let Backing::File(file) = &vma.backing {
            super::fault::read_file(file, file.offset + (at - vma.start), to)?;
        } else {
            to.fill(0);
        }
        Ok(())
    }

    /// Writes as a debugger does: also where the program itself may not, as long as it is the only
    /// one to see it. EFAULT.
    pub fn poke(&self, address: u64, bytes: &[u8]) -> Result<()> {
        address.checked_add(bytes.len() as u64).ok_or(EFAULT)?;
        for (at, part) in pages(address, bytes.len()) {
            let part = &bytes[part];
            if self.write(at, part).is_err() {
                self.poke_closed(at, part)?;
            }
        }
        Ok(())
    }

    /// Whether [`Space::poke`] may write there: false where the program shares what it may not write.
    pub fn may_poke(&self, at: u64) -> bool {
        let locked = self.lock();
        let vma = locked.vmas.find(at);
        vma.is_none_or(|vma| !vma.is_shared() || vma.allows(Protection::WRITE))
    }

    /// Writes within a page that the program itself may not write.
    fn poke_closed(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let page = page_down(at);
        for _ in 0..TRIES {
            let guard = residency::lock();
            // None of its threads runs code that is half written.
            self.stop_threads(None);
            let mut locked = self.lock_with(guard);
            let vma = locked.private_at(at)?;
            if !locked.saved.contains_key(&page) && !locked.live.contains(page) {
                locked.adopt(&(page..page + PAGE));
                if !locked.live.contains(page) {
                    locked.bring_in(&vma, page).map_err(|_| EFAULT)?;
                }
                continue;
            }
            locked.make_own(page);
            if let Some(saved) = locked.saved.get_mut(&page) {
                let start = (at - page) as usize;
                saved.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
            } else {
                swap::write_live(at, bytes, vma.page_protection());
            }
            return Ok(());
        }
        Err(EFAULT.because("the page cannot be brought in"))
    }
}

impl Locked<'_> {
    /// The mapping at an address, if no other process sees what is written there.
    fn private_at(&self, at: u64) -> Result<Vma> {
        let vma = self.vmas.find(at).ok_or(EFAULT)?;
        let is_open = !vma.is_shared()
            && !matches!(vma.backing, Backing::Shared(..))
            && !vma.flags.contains(VmaFlags::GUARD);
        match is_open {
            true => Ok(vma.clone()),
            false => Err(EFAULT.because("not the process's own memory")),
        }
    }

    /// The page may differ from its file from now on, and has none of our rewritten sites.
    fn make_own(&mut self, page: u64) {
        let Some(vma) = self.vmas.find(page).filter(|vma| vma.is_clean()).cloned() else {
            return;
        };
        let mut range = page..page + PAGE;
        if vma.flags.contains(VmaFlags::SITES) {
            // Sites may cross the page's ends.
            for patch in sites::patches(&range) {
                let bytes = patch.range();
                range.start = range.start.min(page_down(bytes.start)).max(vma.start);
                range.end = range.end.max(page_down(bytes.end - 1) + PAGE).min(vma.end);
            }
            sites::undo(&vma.clipped(&range), &self.live);
        }
        self.vmas.update(&range, |vma| {
            vma.flags |= VmaFlags::DIRTY;
            vma.flags -= VmaFlags::SITES;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::map::{Request, Source};
    use crate::mm::vma::FileBacking;
    use crate::testing::{self, MemoryFile};
    use bulla_abi::sites::Kind;

    const RX: Protection = Protection::READ.union(Protection::EXECUTE);

    fn text() -> alloc::vec::Vec<u8> {
        let mut bytes = vec![0xcc; 0x3000];
        bytes[0xfe..0x106].copy_from_slice(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3]);
        // musl's cancellable one, across pages.
        bytes[0x1ffd..0x2005].copy_from_slice(&[0x4c, 0x89, 0x5c, 0x24, 8, 0x0f, 0x05, 0xc3]);
        bytes
    }

    #[test]
    fn rewritten_text_reads_as_the_file_and_is_given_back_when_written() {
        let thread = testing::setup();
        let mm = thread.mm();
        let mut request = Request::anonymous(0x3000, RX);
        request.source = Source::File(FileBacking {
            inode: MemoryFile::new(text()),
            offset: 0,
            path: None,
        });
        let base = mm.map(request).unwrap();
        sites::trapped(&thread, base + 0x103, Kind::Syscall, 39);
        sites::trapped(&thread, base + 0x2002, Kind::Syscall, 1);
        let mut seen = vec![0; 0x3000];
        mm.read(base, &mut seen).unwrap();
        assert_eq!((seen[0xfe], seen[0x1ffd]), (0xe9, 0xe9));
        mm.peek(base, &mut seen).unwrap();
        assert!(seen == text());
        mm.peek(base + 0x100, &mut seen[..2]).unwrap();
        assert_eq!(seen[..2], text()[0x100..0x102]);
        assert_ne!(sites::resume_address(base + 0x1fff), base + 0x1fff);
        // A breakpoint beside the second site undoes it, on both of its pages; the first stays.
        mm.poke(base + 0x2004, &[0xcc]).unwrap();
        mm.read(base, &mut seen).unwrap();
        assert_eq!(seen[0xfe], 0xe9);
        let mut expected = text();
        expected[0x2004] = 0xcc;
        assert!(seen[0x1000..] == expected[0x1000..]);
        assert_eq!(sites::resume_address(base + 0x1fff), base + 0x1fff);
        // It stays undone.
        sites::trapped(&thread, base + 0x2002, Kind::Syscall, 1);
        mm.read(base, &mut seen).unwrap();
        assert!(seen[0x1000..] == expected[0x1000..]);
    }

    #[test]
    fn closed_memory_can_be_read_and_written_unless_it_is_shared() {
        let thread = testing::setup();
        let mm = thread.mm();
        let at = mm.map(Request::anonymous(
            0x3000,
            Protection::READ | Protection::WRITE,
        ));
        let at = at.unwrap();
        mm.write(at + 0xffe, b"over").unwrap();
        mm.protect(at, 0x3000, Protection::empty()).unwrap();
        let mut seen = [0; 4];
        assert_eq!(mm.read(at, &mut seen), Err(EFAULT));
        mm.peek(at + 0xffe, &mut seen).unwrap();
        assert_eq!(&seen, b"over");
        mm.poke(at + 0xfff, b"!!").unwrap();
        mm.peek(at + 0xffe, &mut seen).unwrap();
        assert_eq!(&seen, b"o!!r");
        assert_eq!(mm.peek(at + 0x2ffe, &mut [0; 4]), Err(EFAULT));
        let mut shared = Request::anonymous(0x1000, Protection::READ);
        shared.flags = VmaFlags::SHARED;
        let shared = mm.map(shared).unwrap();
        assert_eq!(mm.poke(shared, b"x"), Err(EFAULT));
        assert!(!mm.may_poke(shared) && mm.may_poke(at));
        assert_eq!(mm.peek(u64::MAX - 1, &mut seen), Err(EFAULT));
    }
}
