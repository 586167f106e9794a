//! Clean file pages that outlive their process, so that the next one finds them ready.
//!
//! What a program's text and constants cost is not their memory: each page is added, accepted,
//! verified, copied, rewritten and protected. A shell script or a build starts the same few programs
//! and libraries again and again, one after the other. So when a process ends, the clean pages of
//! its ELF images stay where they are, with the addresses of the whole image (a *span*). The next
//! process that maps the same file whole gets those addresses ([`claim`]); the pages are *pending*
//! until a mapping of the same part with the same protection takes them over ([`Locked::adopt`]).
//! docs/design/warm-images.md says what that means for address randomisation.
//!
//! # Invariants
//! A page in here is committed, equals its file (but for rewritten sites), was never writable, and
//! is live in no space. The addresses of a span are taken from the allocator; those of pending pages
//! are the claimer's. Whoever commits pages at an address first drops what is pending there
//! ([`make_room`]), so a claimer that does something else is safe.
//!
//! Lock order: inside a space's state. The locks here are never held while calling anything else.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{Backing, Locked, Space, Vma, VmaFlags, accounting, allocator};
use crate::fs::inode::{FileId, Inode};
use crate::platform::{Protection, platform};
use crate::sync::SpinLock;

/// Most bytes of pages in spans; part of the runtime's own memory.
const MAX: u64 = 12 << 20;
/// Most spans, and most images remembered per process.
const SPANS_MAX: usize = 64;

/// Pages in a row, of one mapping.
struct Run {
    start: u64,
    end: u64,
    file: FileId,
    /// In the file.
    offset: u64,
    protection: Protection,
    has_sites: bool,
}

impl Run {
    fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Gives the pages back.
    fn drop_pages(&self) {
        platform().decommit(self.start, self.end - self.start);
    }
}

struct Span {
    range: Range<u64>,
    file: FileId,
    runs: Vec<Run>,
}

impl Span {
    fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Gives pages and addresses back.
    fn drop_all(self) {
        self.runs.iter().for_each(Run::drop_pages);
        allocator::release(self.range.clone());
        if self.runs.iter().any(|run| run.has_sites) {
            super::sites::dropped(&self.range);
        }
    }
}

/// Oldest first.
static SPANS: SpinLock<Vec<Span>> = SpinLock::new(Vec::new());
static PENDING: SpinLock<BTreeMap<u64, Run>> = SpinLock::new(BTreeMap::new());
/// How many spans and pending runs there are, so that most look-ups cost one load.
static SPANS_COUNT: AtomicU64 = AtomicU64::new(0);
static PENDING_COUNT: AtomicU64 = AtomicU64::new(0);

fn take_spans(mut wanted: impl FnMut(&Span) -> bool) -> Vec<Span> {
    if SPANS_COUNT.load(Ordering::Acquire) == 0 {
        return Vec::new();
    }
    let mut spans = SPANS.lock();
    let (taken, kept) = core::mem::take(&mut *spans)
        .into_iter()
        .partition(|span| wanted(span));
    *spans = kept;
    SPANS_COUNT.store(spans.len() as u64, Ordering::Release);
    taken
}

fn take_pending(range: &Range<u64>, mut wanted: impl FnMut(&Run) -> bool) -> Vec<Run> {
    if PENDING_COUNT.load(Ordering::Acquire) == 0 {
        return Vec::new();
    }
    let mut pending = PENDING.lock();
    // Runs do not overlap, so at most one starts before the range and reaches into it.
    let first = pending
        .range(..range.start)
        .next_back()
        .filter(|(_, run)| run.end > range.start)
        .map_or(range.start, |(&start, _)| start);
    let starts: Vec<u64> = pending
        .range(first..range.end.max(first))
        .filter(|(_, run)| wanted(run))
        .map(|(&start, _)| start)
        .collect();
    let taken = starts
        .iter()
        .filter_map(|start| pending.remove(start))
        .collect();
    PENDING_COUNT.store(pending.len() as u64, Ordering::Release);
    taken
}

/// Where the pages of a file's image of this length are, which is to be mapped now. The addresses
/// are free again: the caller takes them at once, and nothing breaks if somebody else is faster.
pub fn claim(inode: &dyn Inode, len: u64) -> Option<u64> {
    let id = inode.id();
    let mut found = None;
    let span = take_spans(|span| {
        let fits = found.is_none() && span.file == id && span.range.end - span.range.start == len;
        if fits {
            found = Some(span.range.start);
        }
        fits
    })
    .pop()?;
    if !inode.is_immutable() {
        span.drop_all();
        return None;
    }
    {
        let mut pending = PENDING.lock();
        pending.extend(span.runs.into_iter().map(|run| (run.start, run)));
        PENDING_COUNT.store(pending.len() as u64, Ordering::Release);
    }
    allocator::release(span.range);
    found
}

/// Pages are about to be committed in a range, or its addresses to be released: what is pending
/// there goes.
pub(super) fn make_room(range: &Range<u64>) {
    for run in take_pending(range, |_| true) {
        run.drop_pages();
        if run.has_sites {
            super::sites::dropped(&run.range());
        }
    }
}

/// Somebody wants exactly these addresses: spans there go.
pub(super) fn leave(range: &Range<u64>) {
    take_spans(|span| span.range.start < range.end && range.start < span.range.end)
        .into_iter()
        .for_each(Span::drop_all);
}

/// An ELF image in a space: the addresses of its whole mapping.
#[derive(Clone)]
pub(super) struct Image {
    range: Range<u64>,
    file: FileId,
}

impl Image {
    /// Whether a mapping's pages equal the file for ever, and can be reached.
    fn may_keep(&self, vma: &Vma) -> bool {
        let Backing::File(file) = &vma.backing else {
            return false;
        };
        let same = file.inode.id() == self.file && file.inode.is_immutable();
        same && vma.is_clean() && !vma.protection.is_empty()
    }
}

impl Space {
    /// Notes that an image of a file was mapped at these addresses.
    pub fn note_image(&self, range: Range<u64>, inode: &dyn Inode) {
        self.lock().note_image(range, inode);
    }
}

impl Locked<'_> {
    pub(super) fn note_image(&mut self, range: Range<u64>, inode: &dyn Inode) {
        if inode.is_immutable() && self.images.len() < SPANS_MAX {
            let file = inode.id();
            self.images.push(Image { range, file });
        }
    }

    /// Takes over what is pending for the mapping at the start of `range`, as far as it touches
    /// the range.
    pub(super) fn adopt(&mut self, range: &Range<u64>) {
        if PENDING_COUNT.load(Ordering::Acquire) == 0 || !self.resident {
            return;
        }
        let Some(vma) = self.vmas.find(range.start).cloned() else {
            return;
        };
        let Backing::File(file) = &vma.backing else {
            return;
        };
        if !vma.is_clean() || !file.inode.is_immutable() {
            return;
        }
        let id = file.inode.id();
        let fits = |run: &Run| {
            run.start >= vma.start
                && run.end <= vma.end
                && run.file == id
                && run.offset == file.offset + (run.start - vma.start)
                && run.protection == vma.page_protection()
        };
        for run in take_pending(range, fits) {
            let untouched = self.live.runs(run.range()).next().is_none()
                && self.saved.range(run.range()).next().is_none();
            if !untouched || accounting::charge(run.end - run.start).is_err() {
                run.drop_pages();
                continue;
            }
            if run.has_sites
                && let Some(vma) = self.vmas.find_mut(run.start)
            {
                vma.flags |= VmaFlags::SITES;
            }
            self.live.insert(run.range());
        }
        self.peak_pages = self.peak_pages.max(self.live.count());
    }

    /// The space is about to be torn down, and nobody shares its addresses: keeps what the next
    /// process may want. What it keeps is no longer this space's.
    pub(super) fn keep_images(&mut self) {
        let images = core::mem::take(&mut self.images);
        if !self.resident || platform().must_commit_at_once() || accounting::is_scarce() {
            return;
        }
        let mut fresh = Vec::new();
        for image in images {
            let whole = self.vmas.covers(&image.range)
                && self.without_reserved(&image.range) == [image.range.clone()]
                && self
                    .vmas
                    .overlapping(&image.range)
                    .all(|vma| !vma.is_shared())
                && allocator::at_most_one_user(&image.range);
            if !whole {
                continue;
            }
            let pieces: Vec<Vma> = self
                .vmas
                .overlapping(&image.range)
                .map(|vma| vma.clipped(&image.range))
                .collect();
            // Rewritten sites may only stay with their pages.
            let has_sites = |vma: &&Vma| vma.flags.contains(VmaFlags::SITES);
            if !pieces
                .iter()
                .filter(has_sites)
                .all(|vma| image.may_keep(vma))
            {
                continue;
            }
            let mut runs = Vec::new();
            for vma in &pieces {
                if image.may_keep(vma) {
                    self.keep_pages(vma, image.file, &mut runs);
                }
            }
            let range = image.range;
            // The rest of its pages goes; the addresses stay taken.
            self.take_out(&range);
            make_room(&range);
            fresh.push(Span {
                range,
                file: image.file,
                runs,
            });
        }
        let excess = {
            let mut spans = SPANS.lock();
            spans.extend(fresh);
            let mut bytes: u64 = spans.iter().map(Span::bytes).sum();
            let mut count = 0;
            while bytes > MAX || spans.len() - count > SPANS_MAX {
                bytes -= spans[count].bytes();
                count += 1;
            }
            let excess: Vec<Span> = spans.drain(..count).collect();
            SPANS_COUNT.store(spans.len() as u64, Ordering::Release);
            excess
        };
        excess.into_iter().for_each(Span::drop_all);
    }

    /// Takes the pages of a mapping that equal their file from the space.
    fn keep_pages(&mut self, vma: &Vma, id: FileId, runs: &mut Vec<Run>) {
        let Backing::File(file) = &vma.backing else {
            return;
        };
        let live: Vec<Range<u64>> = self.live.runs(vma.range()).collect();
        for run in live {
            self.live.remove(run.clone());
            accounting::uncharge(run.end - run.start);
            runs.push(Run {
                start: run.start,
                end: run.end,
                file: id,
                offset: file.offset + (run.start - vma.start),
                protection: vma.page_protection(),
                has_sites: vma.flags.contains(VmaFlags::SITES),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::map::{Placement, Request, Source};
    use super::super::vma::FileBacking;
    use super::super::{AddressSpace, PAGE};
    use super::*;
    use crate::testing::{self, MemoryFile};
    use alloc::sync::Arc;

    const R: Protection = Protection::READ;
    const RX: Protection = R.union(Protection::EXECUTE);
    const RW: Protection = R.union(Protection::WRITE);
    const LEN: u64 = 0x8000;
    /// Tests that end processes with images, one at a time: the list of layouts is the container's.
    static ORDER: SpinLock<()> = SpinLock::new(());

    fn library() -> Arc<MemoryFile> {
        testing::platform();
        let content = (0..LEN).map(|at| (at >> 12) as u8 | 0x40).collect();
        let file = MemoryFile::new(content);
        file.set_immutable(true);
        file
    }

    fn map(
        mm: &Space,
        file: &Arc<MemoryFile>,
        placement: Placement,
        offset: u64,
        len: u64,
        protection: Protection,
    ) -> u64 {
        let mut request = Request::anonymous(len, protection);
        request.placement = placement;
        request.source = Source::File(FileBacking {
            inode: file.clone(),
            offset,
            path: None,
        });
        mm.map(request).unwrap()
    }

    /// As ld.so does it: headers, text, constants, data.
    fn load(mm: &Space, file: &Arc<MemoryFile>) -> u64 {
        let at = map(mm, file, Placement::Hint(0), 0, LEN, R);
        for (offset, len, protection) in [
            (0x1000, 0x3000, RX),
            (0x4000, 0x2000, R),
            (0x6000, 0x2000, RW),
        ] {
            map(
                mm,
                file,
                Placement::Fixed(at + offset),
                offset,
                len,
                protection,
            );
        }
        let mut bytes = [0; LEN as usize];
        mm.read(at, &mut bytes).unwrap();
        for (index, byte) in bytes.iter().enumerate() {
            assert_eq!(*byte, (index >> 12) as u8 | 0x40, "at {index:#x}");
        }
        mm.write(at + 0x6000, b"changed").unwrap();
        at
    }

    fn committed(at: u64) -> usize {
        testing::platform().committed(at..at + LEN)
    }

    #[test]
    fn the_next_process_finds_clean_pages_and_nothing_else() {
        let _order = ORDER.lock();
        let file = library();
        let first = AddressSpace::new();
        let at = load(&first, &file);
        drop(first);
        assert_eq!(committed(at), 6, "all but the data stay");
        assert!(!allocator::is_free(&(at..at + LEN)));

        let second = AddressSpace::new();
        assert_eq!(load(&second, &file), at);
        assert_eq!(committed(at), 8);
        // It is not shared: a third process that runs beside it has its own.
        let third = AddressSpace::new();
        let other = load(&third, &file);
        assert_ne!(other, at);
        drop(second);
        drop(third);
        leave(&(at..at + LEN));
        leave(&(other..other + LEN));
        assert_eq!((committed(at), committed(other)), (0, 0));
        assert!(allocator::is_free(&(at..at + LEN)));
    }

    #[test]
    fn what_was_written_to_or_is_used_otherwise_goes() {
        let _order = ORDER.lock();
        let file = library();
        let first = AddressSpace::new();
        let at = load(&first, &file);
        // A debugger's breakpoint, say.
        first.protect(at + 0x1000, 0x1000, RW).unwrap();
        first.write(at + 0x1000, &[0xcc]).unwrap();
        drop(first);
        assert_eq!(committed(at), 5);

        // The next one maps something else over the constants, and its text anew.
        let second = AddressSpace::new();
        assert_eq!(map(&second, &file, Placement::Hint(0), 0, LEN, R), at);
        let fixed = Request {
            placement: Placement::Fixed(at + 0x4000),
            ..Request::anonymous(0x2000, RW)
        };
        second.map(fixed).unwrap();
        let mut bytes = [9; 0x4001];
        second.read(at + 0x1000, &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[0x1000], bytes[0x3000]), (0x41, 0x42, 0));
        drop(second);

        // A file that is written to later gives nothing.
        file.set_immutable(false);
        let third = AddressSpace::new();
        let other = load(&third, &file);
        drop(third);
        assert_eq!((committed(at), committed(other)), (0, 0));
        assert!(allocator::is_free(&(at..at + LEN)));
    }

    #[test]
    fn fixed_addresses_push_it_away() {
        let _order = ORDER.lock();
        let file = library();
        let first = AddressSpace::new();
        let at = load(&first, &file);
        drop(first);
        let second = AddressSpace::new();
        let fixed = Request {
            placement: Placement::Free(at + 0x2000),
            ..Request::anonymous(PAGE, RW)
        };
        assert_eq!(second.map(fixed), Ok(at + 0x2000));
        assert_eq!(committed(at), 1);
    }
}
