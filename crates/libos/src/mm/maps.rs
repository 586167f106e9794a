//! What /proc shows of an address space.

use alloc::vec::Vec;
use core::ops::Range;

use super::{Backing, PAGE, Space, VmaFlags};
use crate::fs::inode::FileId;
use crate::fs::path::PathRef;
use crate::platform::Protection;

/// One line of /proc/self/maps.
#[derive(Clone)]
pub struct MapLine {
    pub start: u64,
    pub end: u64,
    pub protection: Protection,
    pub shared: bool,
    /// File offset.
    pub offset: u64,
    /// The file, if one is mapped.
    pub file: Option<FileId>,
    /// Its path, if it has one.
    pub path: Option<PathRef>,
    /// `[heap]`, `[stack]`, `[vdso]` or empty.
    pub name: &'static str,
    /// Bytes that are in memory.
    pub resident: u64,
    /// Bytes that mlock keeps in memory.
    pub locked: u64,
    pub flags: VmaFlags,
}

/// Sizes in pages, as /proc/self/statm has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    pub total: u64,
    pub resident: u64,
    pub shared: u64,
    pub text: u64,
    pub data: u64,
    /// Highest number of resident pages so far.
    pub peak: u64,
}

/// Bytes of mappings, as limits count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All of them (RLIMIT_AS).
    pub total: u64,
    /// Private and writable (RLIMIT_DATA).
    pub data: u64,
    /// Locked (RLIMIT_MEMLOCK).
    pub locked: u64,
}

impl Space {
    /// The mappings, by address.
    pub fn maps(&self) -> Vec<MapLine> {
        let locked = self.lock();
        let stack = locked.program.stack_start;
        locked
            .vmas
            .iter()
            .map(|vma| {
                let (offset, inode, path) = match &vma.backing {
                    Backing::Anonymous => (0, None, None),
                    Backing::File(file) => (file.offset, Some(&file.inode), file.path.clone()),
                    Backing::Shared(object, offset) => {
                        let file = object.file();
                        let path = file.and_then(|file| file.path.clone());
                        (*offset, file.map(|file| &file.inode), path)
                    }
                };
                let name = if vma.flags.contains(VmaFlags::HEAP) {
                    "[heap]"
                } else if vma.range().contains(&stack) {
                    "[stack]"
                } else if vma.flags.contains(VmaFlags::VDSO) {
                    "[vdso]"
                } else {
                    ""
                };
                MapLine {
                    start: vma.start,
                    end: vma.end,
                    protection: vma.protection,
                    shared: vma.is_shared(),
                    offset,
                    file: inode
                        .map(|inode| inode.id())
                        .filter(|_| !vma.flags.contains(VmaFlags::VDSO)),
                    path,
                    name,
                    resident: locked.resident_pages(vma) * PAGE,
                    locked: match vma.flags.contains(VmaFlags::LOCKED) {
                        true => locked.resident_pages(vma) * PAGE,
                        false => 0,
                    },
                    flags: vma.flags,
                }
            })
            .collect()
    }

    /// What limits count, of all mappings or those in a range.
    pub fn usage(&self, range: Option<&Range<u64>>) -> Usage {
        let locked = self.lock();
        let mut usage = Usage::default();
        let all = crate::platform::platform().user_range();
        let range = range.unwrap_or(&all);
        for vma in locked.vmas.overlapping(range) {
            let vma = vma.clipped(range);
            usage.locked += match vma.flags.contains(VmaFlags::LOCKED) {
                true => vma.len(),
                false => 0,
            };
            let is_data = vma.protection.contains(Protection::WRITE)
                && !vma.flags.intersects(VmaFlags::SHARED | VmaFlags::STACK);
            usage.data += if is_data { vma.len() } else { 0 };
            usage.total += vma.len();
        }
        usage
    }

    /// How large the space is.
    pub fn sizes(&self) -> Sizes {
        let locked = self.lock();
        let mut sizes = Sizes {
            total: locked.total / PAGE,
            peak: locked.peak_pages,
            ..Sizes::default()
        };
        for vma in locked.vmas.iter() {
            let pages = locked.resident_pages(vma);
            sizes.resident += pages;
            if !matches!(vma.backing, Backing::Anonymous) {
                sizes.shared += pages;
            }
            if vma.protection.contains(Protection::EXECUTE) {
                sizes.text += vma.len() / PAGE;
            } else if vma.protection.contains(Protection::WRITE) {
                sizes.data += vma.len() / PAGE;
            }
        }
        sizes.peak = sizes.peak.max(sizes.resident);
        sizes
    }
}

impl super::Locked<'_> {
    fn resident_pages(&self, vma: &super::Vma) -> u64 {
        match &vma.backing {
            Backing::Shared(object, _) => {
                vma.view().map_or(0, |view| object.count(&view.offsets()))
            }
            _ => {
                let live: u64 = self
                    .live
                    .runs(vma.range())
                    .map(|run| (run.end - run.start) / PAGE)
                    .sum();
                live + self.saved.range(vma.range()).count() as u64
            }
        }
    }
}

impl Space {
    /// The page of shared memory behind an address, where it has more than one: object and offset.
    pub fn aliased_page(&self, address: u64) -> Option<(u64, u64)> {
        let locked = self.state.lock();
        let view = locked.vmas.find(address)?.view()?;
        let offset = view.offset_of(super::page_down(address));
        view.object
            .is_aliased()
            .then_some((view.object.id(), offset))
    }

    /// What a futex word in shared memory is known by in every process: object and offset. `None`
    /// in private memory.
    pub fn shared_location(&self, address: u64) -> Option<(u64, u64)> {
        let locked = self.lock();
        let vma = locked.vmas.find(address)?;
        match vma.view() {
            Some(view) => Some((view.object.id(), view.offset_of(address))),
            // A private mapping is never marked so.
            None => vma.is_shared().then_some((0, address)),
        }
    }
}
