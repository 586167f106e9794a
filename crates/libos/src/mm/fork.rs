//! fork: parent and child hold the same addresses, and take turns.
//!
//! The child gets the live pages and runs first, because it usually execs at once. The parent's
//! pages are saved; those that cannot differ from their file are not, they are read again.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use super::map::without;
use super::residency::{self, Member};
use super::{AddressSpace, Backing, PAGE, Space, Vma, VmaFlags, VmaMap, accounting, allocator};
use crate::errno::ENOMEM;
use crate::platform::platform;
use crate::process::thread::Work;
use crate::{Result, Thread};

impl AddressSpace {
    /// A copy of this address space for a child process. `thread` is the caller; it waits for its
    /// own space's turn before it returns to user code. ENOMEM, and then nothing has changed.
    pub fn fork(&self, thread: &Arc<Thread>) -> Result<Arc<AddressSpace>> {
        let child = Space::new(Member {
            resident: false,
            ..Member::default()
        });
        // From here on a failure drops the child, which frees what it has so far.
        let child = Arc::new(AddressSpace { space: child });
        let mut guard = residency::lock();
        let parent = &self.space;
        if !parent.member.lock().resident {
            parent.make_resident(&mut guard);
        }
        parent.set_conflicted();
        parent.stop_threads(Some(thread));
        let result = parent.copy_into(&child.space);
        if let Err(errno) = result {
            if parent.member.lock().neighbours.is_empty() {
                parent
                    .conflicted
                    .store(false, core::sync::atomic::Ordering::SeqCst);
            }
            return Err(errno);
        }
        child
            .space
            .conflicted
            .store(true, core::sync::atomic::Ordering::SeqCst);
        let mut neighbours = parent.member.lock().neighbours.clone();
        neighbours.push(parent.clone());
        for other in &neighbours {
            residency::link(&child.space, other);
        }
        parent.member.lock().resident = false;
        {
            let mut member = child.space.member.lock();
            member.resident = true;
            member.until = residency::first_turn();
        }
        thread.add_own_work(Work::RESIDENCY);
        drop(guard);
        Ok(child)
    }
}

impl Space {
    /// Copies everything for a child that becomes resident.
    fn copy_into(&self, child: &Space) -> Result<()> {
        let mut parent = self.state.lock();
        let mut child = child.state.lock();
        let inherited: Vec<Vma> = parent
            .vmas
            .iter()
            .filter(|vma| !vma.flags.contains(VmaFlags::DONTFORK))
            .cloned()
            .collect();
        let private = |vma: &&Vma| !matches!(vma.backing, Backing::Shared(..)) && !vma.is_clean();
        let copied: u64 = inherited
            .iter()
            .filter(private)
            .flat_map(|vma| parent.live.runs(vma.range()))
            .map(|run| run.end - run.start)
            .sum();
        let (used, available) = platform().heap_usage();
        if available.saturating_sub(used) < copied + copied / 8 {
            return Err(ENOMEM.because("no kernel memory for the pages of a second process"));
        }
        accounting::charge(copied)?;
        for vma in &inherited {
            child.total += vma.len();
            if !matches!(vma.backing, Backing::Shared(..)) {
                for part in without(&parent.reserved, &vma.range()) {
                    allocator::share(part);
                }
                let runs: Vec<Range<u64>> = parent.live.runs(vma.range()).collect();
                for run in runs {
                    if !vma.is_clean() {
                        for page in run.clone().step_by(PAGE as usize) {
                            let bytes = residency::read_live(page, vma.page_protection());
                            parent.saved.insert(page, bytes);
                        }
                    }
                    parent.live.remove(run.clone());
                    if vma.flags.contains(VmaFlags::WIPEONFORK) {
                        platform().decommit(run.start, run.end - run.start);
                        accounting::uncharge(run.end - run.start);
                    } else {
                        child.live.insert(run);
                    }
                }
            }
        }
        for range in &parent.reserved {
            allocator::share(range.clone());
        }
        child.reserved = parent.reserved.clone();
        child.brk = parent.brk.clone();
        child.mmap_base = parent.mmap_base;
        child.program = parent.program.clone();
        child.peak_pages = child.live.count();
        let mut vmas = VmaMap::default();
        for mut vma in inherited {
            vma.flags -= VmaFlags::LOCKED;
            vmas.insert(vma);
        }
        child.vmas = vmas;
        Ok(())
    }
}
