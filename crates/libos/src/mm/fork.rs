//! fork: parent and child hold the same addresses, and take turns.
//!
//! The child gets the live pages and runs first, because it usually execs at once. The parent's
//! pages are saved; those that cannot differ from their file are not, they are read again.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

use super::map::without;
use super::residency::{self, Member};
use super::saved::{Kept, SavedPage};
use super::swap::read_run;
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
        let result = parent.copy_into(&child.space, &parent.siblings());
        if let Err(errno) = result {
            parent.settle(&parent.member.lock());
            return Err(errno);
        }
        child.space.conflicted.store(true, Ordering::SeqCst);
        let aliased = parent.aliased.load(Ordering::SeqCst);
        child.space.aliased.store(aliased, Ordering::SeqCst);
        let mut neighbours = parent.member.lock().neighbours.clone();
        neighbours.push(parent.clone());
        residency::link_new(&child.space, neighbours);
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
    /// Earlier children that may have saved what this space has: the first one and the last.
    fn siblings(&self) -> Vec<Arc<Space>> {
        let neighbours = &self.member.lock().neighbours;
        let mut found: Vec<Arc<Space>> = neighbours.last().cloned().into_iter().collect();
        if neighbours.len() > 1 {
            found.extend(neighbours.first().cloned());
        }
        found
    }

    /// Copies everything for a child that becomes resident. A page that one of the siblings has saved
    /// with the same content is not copied: new memory costs much more than a comparison.
    fn copy_into(&self, child: &Space, siblings: &[Arc<Space>]) -> Result<()> {
        let mut parent = self.state.lock();
        let siblings: Vec<_> = siblings.iter().map(|space| space.state.lock()).collect();
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
        let is_short = || platform().heap_usage().1 < copied + copied / 8;
        if is_short() {
            parent.kept = Kept::default();
        }
        if is_short() {
            return Err(ENOMEM.because("no kernel memory for the pages of a second process"));
        }
        accounting::charge(copied)?;
        let mut kept = core::mem::take(&mut parent.kept).into_cursor();
        let mut saved: Vec<(u64, SavedPage)> = Vec::with_capacity((copied / PAGE) as usize);
        for vma in &inherited {
            child.total += vma.len();
            if vma.owns_addresses() {
                for part in without(&parent.reserved, &vma.range()) {
                    allocator::share(part);
                }
                let runs: Vec<Range<u64>> = parent.live.runs(vma.range()).collect();
                for run in runs {
                    if !vma.is_clean() {
                        let save = &mut |page, bytes: &[u8], tag| {
                            let mut equal = siblings
                                .iter()
                                .filter_map(|state| state.saved.get(&page))
                                .filter(|saved| saved.is(bytes, tag));
                            let known = kept.find(page, tag).or_else(|| equal.next().cloned());
                            let page_of = || SavedPage::new(bytes, tag);
                            saved.push((page, known.unwrap_or_else(page_of)));
                        };
                        read_run(&run, vma.page_protection(), save);
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
        // In order: the map is built at once.
        parent.saved.append(&mut saved.into_iter().collect());
        for range in &parent.reserved {
            allocator::share(range.clone());
        }
        child.reserved = parent.reserved.clone();
        child.brk = parent.brk.clone();
        // It has its parent's layout: another one is for a process that executes something.
        child.layout().leave();
        child.mmap_base = parent.mmap_base;
        child.exact = parent.exact;
        child.brk_gap = parent.brk_gap;
        child.images = parent.images.clone();
        child.program = parent.program.clone();
        child.peak_pages = child.live.count();
        let mut vmas = VmaMap::default();
        for mut vma in inherited {
            vma.flags -= VmaFlags::LOCKED;
            let has_pages = child.live.runs(vma.range()).next().is_some();
            let is_anonymous = matches!(vma.backing, Backing::Anonymous);
            vma.flags
                .set(VmaFlags::INHERITED, is_anonymous && has_pages);
            vmas.insert(vma);
        }
        child.vmas = vmas;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::EFAULT;
    use crate::mm::map::{Request, Source};
    use crate::mm::vma::FileBacking;
    use crate::platform::Protection;
    use crate::testing::{self, MemoryFile};

    const RW: Protection = Protection::READ.union(Protection::WRITE);
    const RX: Protection = Protection::READ.union(Protection::EXECUTE);

    fn text(mm: &Space, address: u64) -> alloc::string::String {
        let mut bytes = [0; 6];
        mm.read(address, &mut bytes).unwrap();
        alloc::string::String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What is live at an address, as user code of the resident space would see it.
    fn live(address: u64) -> alloc::string::String {
        let page = testing::platform()
            .page(address & !0xfff)
            .expect("a live page");
        let at = (address & 0xfff) as usize;
        alloc::string::String::from_utf8_lossy(&page[at..at + 6]).into_owned()
    }

    #[test]
    fn parent_and_child_each_see_their_own_memory() {
        let thread = testing::setup();
        let parent = thread.mm();
        let at = parent.map(Request::anonymous(0x8000, RW)).unwrap();
        let lazy = parent.map(Request::anonymous(1 << 20, RW)).unwrap();
        parent.write(at, b"before").unwrap();
        let used = accounting::used();
        let child = parent.fork(&thread).unwrap();
        assert!(child.is_resident() && !parent.is_resident());
        assert!(thread.work().contains(Work::RESIDENCY));
        assert!(accounting::used() >= used);
        assert_eq!(text(&child, at), "before");
        assert_eq!(text(&parent, at), "before");
        child.write(at, b"child!").unwrap();
        parent.write(at + 0x1000, b"parent").unwrap();
        assert_eq!(live(at), "child!");
        assert_eq!(text(&parent, at), "before");
        assert_eq!(text(&child, at + 0x1000), "\0\0\0\0\0\0");
        // Memory that neither had touched.
        child.write(lazy, b"c-lazy").unwrap();
        parent.write(lazy, b"p-lazy").unwrap();
        assert_eq!(text(&child, lazy), "c-lazy");
        // New mappings do not meet.
        let one = child.map(Request::anonymous(0x1000, RW)).unwrap();
        let two = parent.map(Request::anonymous(0x1000, RW)).unwrap();
        assert_ne!(one, two);
        parent.write(two, b"p-mine").unwrap();
        assert_eq!(child.write(two, b"x"), Err(EFAULT));
        // The parent's turn, then the child's again.
        parent.make_resident(&mut residency::lock());
        assert!(!child.is_resident() && parent.is_resident());
        assert_eq!(
            (live(at), live(at + 0x1000)),
            ("before".into(), "parent".into())
        );
        assert_eq!(live(lazy), "p-lazy");
        assert_eq!(text(&child, lazy), "c-lazy");
        child.write(at + 0x2000, b"late..").unwrap();
        child.space.make_resident(&mut residency::lock());
        assert_eq!(
            (live(at), live(at + 0x2000)),
            ("child!".into(), "late..".into())
        );
        assert_eq!(live(lazy), "c-lazy");
        assert_eq!(live(two), "p-mine", "nobody else needs that address");
        drop(child);
        parent.enter_user(&thread);
        assert!(parent.is_resident() && !thread.work().contains(Work::RESIDENCY));
        assert_eq!(
            (live(at), live(at + 0x1000)),
            ("before".into(), "parent".into())
        );
        assert_eq!(text(&parent, at + 0x2000), "\0\0\0\0\0\0");
        assert!(!parent.conflicted.load(core::sync::atomic::Ordering::SeqCst));
    }

    #[test]
    fn protections_unmapping_and_files_differ_after_fork() {
        let thread = testing::setup();
        let parent = thread.mm();
        let inode = MemoryFile::new(alloc::vec![b'f'; 0x4000]);
        let mut map = Request::anonymous(0x4000, RX);
        map.source = Source::File(FileBacking {
            inode,
            offset: 0,
            path: None,
        });
        let code = parent.map(map).unwrap();
        let at = parent.map(Request::anonymous(0x4000, RW)).unwrap();
        parent.write(at + 0x1000, b"kept..").unwrap();
        parent
            .protect(at + 0x1000, 0x1000, Protection::empty())
            .unwrap();
        let child = parent.fork(&thread).unwrap();
        // Text is handed over, not copied.
        assert!(
            parent
                .lock()
                .saved
                .keys()
                .all(|page| !(code..code + 0x4000).contains(page))
        );
        assert_eq!(text(&parent, code), "ffffff");
        child.unmap(at, 0x1000).unwrap();
        child.protect(at + 0x1000, 0x1000, RW).unwrap();
        assert_eq!(text(&child, at + 0x1000), "kept..");
        child.write(at + 0x1000, b"child!").unwrap();
        assert_eq!(parent.read(at + 0x1000, &mut [0]), Err(EFAULT));
        parent.make_resident(&mut residency::lock());
        let test = testing::platform();
        assert_eq!(test.protection(at + 0x1000), Some(Protection::empty()));
        assert_eq!(live(at + 0x1000), "kept..");
        assert_eq!(test.protection(at), Some(RW));
        assert_eq!(test.protection(code), Some(RX));
        child.space.make_resident(&mut residency::lock());
        // The child has nothing there, so the parent's page may stay.
        assert_eq!(test.protection(at), Some(RW));
        assert_eq!(test.protection(at + 0x1000), Some(RW));
        assert_eq!(live(at + 0x1000), "child!");
        assert_eq!(live(code), "ffffff");
    }

    #[test]
    fn shared_memory_stays_shared() {
        let thread = testing::setup();
        let parent = thread.mm();
        let mut map = Request::anonymous(0x4000, RW);
        map.flags = VmaFlags::SHARED;
        let at = parent.map(map).unwrap();
        parent.write(at, b"before").unwrap();
        let child = parent.fork(&thread).unwrap();
        child.write(at, b"child!").unwrap();
        assert_eq!(text(&parent, at), "child!");
        parent.write(at + 0x2000, b"parent").unwrap();
        assert_eq!(text(&child, at + 0x2000), "parent");
        drop(child);
        assert_eq!(text(&parent, at), "child!");
    }

    #[test]
    fn children_of_children_take_turns() {
        let thread = testing::setup();
        let first = thread.mm();
        let at = first.map(Request::anonymous(0x2000, RW)).unwrap();
        first.write(at, b"gen-0.").unwrap();
        let second = first.fork(&thread).unwrap();
        let second_thread = testing::thread_in(second.clone());
        second.write(at, b"gen-1.").unwrap();
        let third = second.fork(&second_thread).unwrap();
        third.write(at, b"gen-2.").unwrap();
        let spaces = [(&first, "gen-0."), (&second, "gen-1."), (&third, "gen-2.")];
        for turn in [0, 2, 1, 0, 1, 2] {
            spaces[turn].0.space.make_resident(&mut residency::lock());
            assert_eq!(live(at), spaces[turn].1);
            for (space, content) in spaces {
                assert_eq!(text(space, at), content);
            }
        }
        // A fork by one that is not resident.
        let fourth = first.fork(&thread).unwrap();
        assert_eq!(
            (live(at), text(&fourth, at)),
            ("gen-0.".into(), "gen-0.".into())
        );
        drop(fourth);
        drop(second);
        drop(third);
        second_thread.process.set_mm(AddressSpace::new());
        first.enter_user(&thread);
        assert_eq!(live(at), "gen-0.");
    }

    #[test]
    fn siblings_share_what_is_equal_until_they_change_it() {
        let thread = testing::setup();
        let parent = thread.mm();
        let at = parent.map(Request::anonymous(0x2000, RW)).unwrap();
        parent.write(at, b"equal.").unwrap();
        parent.write(at + 0x1000, b"parent").unwrap();
        let first = parent.fork(&thread).unwrap();
        first.write(at + 0x1000, b"first.").unwrap();
        let second = parent.fork(&thread).unwrap();
        let saved = |space: &Space, page: u64| space.lock().saved[&page].clone();
        assert!(saved(&first, at).is_shared_with(&saved(&parent, at)));
        assert!(!saved(&first, at + 0x1000).is_shared_with(&saved(&parent, at + 0x1000)));
        // Written by the kernel where it is saved, and by the program when it is live.
        first.write(at, b"1-one.").unwrap();
        second.write(at, b"2-two.").unwrap();
        let third = parent.fork(&thread).unwrap();
        third.write(at, b"3-tri.").unwrap();
        let spaces: [(&Space, _, _); 4] = [
            (&parent, "equal.", "parent"),
            (&first, "1-one.", "first."),
            (&second, "2-two.", "parent"),
            (&third, "3-tri.", "parent"),
        ];
        for turn in [0, 2, 1, 3, 0, 1, 3, 2] {
            let (space, one, two) = spaces[turn];
            space.make_resident(&mut residency::lock());
            assert_eq!((live(at).as_str(), live(at + 0x1000).as_str()), (one, two));
            for (space, one, two) in spaces {
                assert_eq!(
                    (text(space, at), text(space, at + 0x1000)),
                    (one.into(), two.into())
                );
            }
        }
    }

    #[test]
    fn what_was_saved_for_one_child_serves_for_the_next() {
        let thread = testing::setup();
        let parent = thread.mm();
        let at = parent.map(Request::anonymous(0x3000, RW)).unwrap();
        for (page, content) in [b"same..", b"of-par", b"of-chi"].into_iter().enumerate() {
            parent.write(at + page as u64 * PAGE, content).unwrap();
        }
        let fork = || {
            let child = parent.fork(&thread).unwrap();
            let saved: [_; 3] = core::array::from_fn(|page| {
                parent.lock().saved[&(at + page as u64 * PAGE)].clone()
            });
            (child, saved)
        };
        let (child, before) = fork();
        child.write(at + 2 * PAGE, b"change").unwrap();
        drop(child);
        parent.enter_user(&thread);
        assert_eq!(live(at + 2 * PAGE), "of-chi");
        parent.write(at + PAGE, b"change").unwrap();
        let (child, after) = fork();
        // The page that the child has changed was exchanged and is the child's content.
        let shared: [bool; 3] =
            core::array::from_fn(|page| before[page].is_shared_with(&after[page]));
        assert_eq!(shared, [true, false, false]);
        drop(child);
        parent.enter_user(&thread);
        let found: [_; 3] = core::array::from_fn(|page| live(at + page as u64 * PAGE));
        assert_eq!(found, ["same..", "change", "of-chi"]);
        // Without memory to spare nothing is kept.
        residency::forget_kept();
        let (_child, later) = fork();
        assert!(!after[0].is_shared_with(&later[0]));
    }

    #[test]
    fn a_saved_page_that_was_written_to_is_not_taken_for_what_it_was() {
        let thread = testing::setup();
        let parent = thread.mm();
        let at = parent.map(Request::anonymous(0x1000, RW)).unwrap();
        parent.write(at, b"before").unwrap();
        let child = parent.fork(&thread).unwrap();
        // By the kernel, as a system call's answer to a thread of the parent that waits.
        parent.write(at, b"answer").unwrap();
        drop(child);
        parent.enter_user(&thread);
        assert_eq!(live(at), "answer");
        let child = parent.fork(&thread).unwrap();
        child.write(at, b"child!").unwrap();
        drop(child);
        parent.enter_user(&thread);
        assert_eq!(live(at), "answer");
    }

    #[test]
    fn a_waiting_parent_runs_when_the_child_sleeps_or_its_slice_ends() {
        let thread = testing::setup();
        let parent = thread.mm();
        let at = parent.map(Request::anonymous(0x1000, RW)).unwrap();
        parent.write(at, b"parent").unwrap();
        let child = parent.fork(&thread).unwrap();
        let child_thread = testing::thread_in(child.clone());
        child.write(at, b"child!").unwrap();
        let start = std::time::Instant::now();
        parent.enter_user(&thread);
        assert!(start.elapsed().as_millis() >= 40, "the child's first slice");
        assert_eq!(live(at), "parent");
        assert!(child_thread.work().contains(Work::RESIDENCY));
        child.enter_user(&child_thread);
        assert_eq!(live(at), "child!");
        // A sleeping child does not keep the parent waiting.
        child.space.member.lock().until = u64::MAX;
        child_thread
            .asleep
            .store(true, core::sync::atomic::Ordering::SeqCst);
        parent.enter_user(&thread);
        assert_eq!(live(at), "parent");
    }

    #[test]
    fn advice_about_fork() {
        let thread = testing::setup();
        let parent = thread.mm();
        let at = parent.map(Request::anonymous(0x3000, RW)).unwrap();
        for page in 0..3 {
            parent.write(at + page * PAGE, b"secret").unwrap();
        }
        parent.advise(at, PAGE, 18).unwrap();
        parent.advise(at + PAGE, PAGE, 10).unwrap();
        let child = parent.fork(&thread).unwrap();
        assert_eq!(text(&child, at), "\0\0\0\0\0\0");
        assert_eq!(child.read(at + PAGE, &mut [0]), Err(EFAULT));
        assert_eq!(text(&child, at + 2 * PAGE), "secret");
        parent.make_resident(&mut residency::lock());
        for page in 0..3 {
            assert_eq!(live(at + page * PAGE), "secret");
        }
    }

    #[test]
    fn heaps_grow_apart_after_fork() {
        let thread = testing::setup();
        let parent = thread.mm();
        let start = 0x38_0000_0000;
        parent.set_up_brk(start).unwrap();
        parent.brk(start + 0x1000);
        parent.write(start, b"shared").unwrap();
        let child = parent.fork(&thread).unwrap();
        parent.make_resident(&mut residency::lock());
        parent.brk(start + 0x4000);
        parent.write(start + 0x2000, b"parent").unwrap();
        child.space.make_resident(&mut residency::lock());
        assert_eq!(live(start + 0x2000), "parent", "not in the child's way yet");
        child.brk(start + 0x3000);
        assert_eq!(text(&child, start + 0x2000), "\0\0\0\0\0\0");
        child.write(start + 0x2000, b"child!").unwrap();
        assert_eq!(text(&parent, start + 0x2000), "parent");
        let mut map = Request::anonymous(0x1000, RW);
        map.placement = crate::mm::map::Placement::Fixed(start + 0x8000);
        child.map(map).unwrap();
        parent.make_resident(&mut residency::lock());
        assert_eq!(
            (live(start), live(start + 0x2000)),
            ("shared".into(), "parent".into())
        );
        drop(child);
    }
}
