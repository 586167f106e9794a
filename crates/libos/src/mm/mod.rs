//! User memory.
//!
//! [`AddressSpace`] is the only way to user memory: it finds each page live or saved, brings it in
//! when it is not there, and knows which addresses a process may use.
//!
//! - [`allocator`]: one for the container, so that mappings of different processes do not meet.
//! - [`vma`], [`pages`]: the mappings of a space, and which of their pages are *live* (committed in
//!   the enclave, with this space's content).
//! - [`map`], [`brk`], [`remap`], [`advise`]: the system calls' work. [`fault`]: bringing pages in.
//! - [`residency`]: spaces that hold the same addresses (after fork, or two fixed-address programs)
//!   take turns; the pages of those that wait are *saved* in kernel memory.
//! - [`shared`]: shared memory, each object at one home address. [`view`]: its mappings, there and
//!   elsewhere.
//! - [`sysv`]: System V segments.
//! - [`warm`]: file pages that wait for the next process.
//! - [`debug`]: memory as a debugger reads and writes it.
//! - [`sites`]: system-call sites in program text, rewritten before they can trap.
//!
//! # Invariants
//! A committed user page is live in exactly one address space, belongs to one shared object or is kept
//! by [`warm`]. A resident space has no saved pages.
//!
//! # Lock order
//! making a shared object → residency → a space's state → shared object → allocator → site lists.

pub mod accounting;
pub mod advise;
pub mod allocator;
pub mod brk;
pub mod copy;
pub mod debug;
pub mod fault;
pub mod fork;
pub mod map;
pub mod maps;
pub mod pages;
pub mod remap;
pub mod residency;
mod saved;
pub mod seal;
pub mod shared;
pub mod sites;
pub(crate) mod swap;
pub mod sysv;
pub(crate) mod view;
pub mod vma;
pub mod warm;

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut, Range};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::fs::inode::Execution;
use crate::fs::path::PathRef;
use crate::platform::{Protection, platform};
use crate::sync::{SpinGuard, SpinLock};
use crate::{Result, Thread};

pub use allocator::PAGE;
pub use fault::{Fault, Resolved};
pub use maps::MapLine;
pub use vma::{Backing, Vma, VmaFlags};

use pages::PageSet;
use residency::Member;
use vma::VmaMap;

/// The memory of a process (or of several, under CLONE_VM): owns a [`Space`], and frees its memory
/// when dropped. The kernel's own lists know the [`Space`] only.
pub struct AddressSpace {
    space: Arc<Space>,
}

impl AddressSpace {
    /// An empty address space.
    pub fn new() -> Arc<AddressSpace> {
        Arc::new(AddressSpace {
            space: Space::new(Member::default()),
        })
    }
}

impl Deref for AddressSpace {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.space
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        self.space.tear_down();
    }
}

/// See [`AddressSpace`].
pub struct Space {
    /// Another space holds some of the same addresses. Changes under residency and state lock.
    conflicted: AtomicBool,
    /// Sees shared memory that has views at several addresses: copies must know where a page is.
    /// Once set it stays.
    aliased: AtomicBool,
    /// Threads that copy to or from user memory without a lock right now.
    copying: AtomicU32,
    state: SpinLock<State>,
    /// Threads that run in this space.
    threads: SpinLock<Vec<Weak<Thread>>>,
    /// Under the residency lock.
    member: SpinLock<Member>,
}

/// What changes under the space's lock.
pub(crate) struct State {
    vmas: VmaMap,
    /// Committed pages with this space's content. Pages of shared objects are not among them.
    live: PageSet,
    /// Content of pages that cannot be live while another space is resident.
    saved: BTreeMap<u64, saved::SavedPage>,
    /// What was saved until this space became resident last.
    kept: saved::Kept,
    /// Addresses taken from the allocator beyond the mappings (the program break's room).
    reserved: Vec<Range<u64>>,
    brk: brk::Brk,
    /// New mappings are searched for downward from here.
    mmap_base: u64,
    /// Bytes between a relocatable program and its heap.
    brk_gap: u64,
    /// ELF images that were mapped whole.
    images: Vec<warm::Image>,
    /// mlockall(MCL_FUTURE).
    lock_future: bool,
    /// The process asks which pages are resident: from then on only touched ones are brought in.
    exact: bool,
    /// Bytes mapped.
    total: u64,
    peak_pages: u64,
    program: ProgramInfo,
    /// Torn down: every access faults.
    dead: bool,
    /// And nobody else had the same addresses then.
    alone_at_end: bool,
}

/// What exec leaves for /proc and prctl.
#[derive(Clone, Default)]
pub struct ProgramInfo {
    pub path: Option<PathRef>,
    /// Keeps the program's file from being written to.
    pub execution: Option<Arc<Execution>>,
    pub code: Range<u64>,
    pub data: Range<u64>,
    pub stack_start: u64,
    pub arguments: Range<u64>,
    pub environment: Range<u64>,
    /// The auxiliary vector as it stands on the stack.
    pub auxv: Vec<u8>,
}

/// A space's state under its lock, with switching excluded.
pub(crate) struct Locked<'a> {
    space: &'a Space,
    state: SpinGuard<'a, State>,
    /// Whether pages can be brought in live. If not, they are made in the saved set.
    resident: bool,
    residency: Option<residency::Guard>,
}

impl Locked<'_> {
    /// Whether another space holds some of the same addresses.
    pub(crate) fn is_conflicted(&self) -> bool {
        self.residency.is_some()
    }
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Space {
    fn new(member: Member) -> Arc<Space> {
        let space = Arc::new(Space {
            conflicted: AtomicBool::new(false),
            aliased: AtomicBool::new(false),
            copying: AtomicU32::new(0),
            state: SpinLock::new(State::new()),
            threads: SpinLock::new(Vec::new()),
            member: SpinLock::new(member),
        });
        residency::register(&space);
        space
    }

    /// Locks the state. While the space is in conflict with another, residency cannot change
    /// until the guard is dropped.
    pub(crate) fn lock(&self) -> Locked<'_> {
        loop {
            if self.conflicted.load(Ordering::SeqCst) {
                return self.lock_with(residency::lock());
            }
            let state = self.state.lock();
            if !self.conflicted.load(Ordering::SeqCst) {
                return Locked {
                    space: self,
                    state,
                    resident: true,
                    residency: None,
                };
            }
        }
    }

    /// Locks the state under the residency lock.
    pub(crate) fn lock_with(&self, guard: residency::Guard) -> Locked<'_> {
        let resident = self.member.lock().resident;
        Locked {
            space: self,
            state: self.state.lock(),
            resident,
            residency: Some(guard),
        }
    }

    /// A thread starts to run in this space (clone, exec, the first process).
    pub fn attach(&self, thread: &Arc<Thread>) {
        let mut threads = self.threads.lock();
        threads.retain(|known| known.strong_count() > 0);
        if !threads
            .iter()
            .any(|known| core::ptr::eq(known.as_ptr(), Arc::as_ptr(thread)))
        {
            threads.push(Arc::downgrade(thread));
        }
    }

    /// A thread leaves this space (exec, exit). When the last one has left, all memory is freed.
    pub fn detach(&self, thread: &Arc<Thread>) {
        let empty = {
            let mut threads = self.threads.lock();
            let before = threads.len();
            threads.retain(|known| {
                known.strong_count() > 0 && !core::ptr::eq(known.as_ptr(), Arc::as_ptr(thread))
            });
            before > 0 && threads.is_empty()
        };
        if empty {
            self.tear_down();
        }
    }

    /// The threads that run in this space.
    pub fn threads(&self) -> Vec<Arc<Thread>> {
        self.threads
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Bytes to leave between a relocatable program and its heap.
    pub fn brk_gap(&self) -> u64 {
        self.lock().brk_gap
    }

    /// What exec recorded about the program.
    pub fn program(&self) -> ProgramInfo {
        self.lock().program.clone()
    }

    /// Changes what exec recorded (prctl PR_SET_MM).
    pub fn set_program(&self, program: ProgramInfo) {
        self.lock().program = program;
    }
}

impl State {
    fn layout(&self) -> Layout {
        Layout {
            mmap_base: self.mmap_base,
            brk_gap: self.brk_gap,
        }
    }

    fn new() -> State {
        let layout = Layout::new();
        State {
            vmas: VmaMap::default(),
            live: PageSet::new(),
            saved: BTreeMap::new(),
            kept: saved::Kept::default(),
            reserved: Vec::new(),
            brk: brk::Brk::default(),
            mmap_base: layout.mmap_base,
            brk_gap: layout.brk_gap,
            images: Vec::new(),
            lock_future: false,
            exact: false,
            total: 0,
            peak_pages: 0,
            program: ProgramInfo::default(),
            dead: false,
            alone_at_end: false,
        }
    }
}

/// What is random about the addresses of a process, but for its images.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    mmap_base: u64,
    brk_gap: u64,
}

/// Layouts of processes that have ended. The next ones take them over: the pages that are still
/// there serve again (docs/design/warm-images.md).
static LEFT: SpinLock<Vec<Layout>> = SpinLock::new(Vec::new());

impl Layout {
    /// As many as processes may end at about the same time.
    const LEFT_MAX: usize = 16;

    fn new() -> Layout {
        let left = LEFT.lock().pop();
        left.unwrap_or_else(|| Layout {
            mmap_base: random_mmap_base(),
            brk_gap: random_below(4096) * PAGE,
        })
    }

    /// For the next process.
    fn leave(self) {
        let mut left = LEFT.lock();
        if left.len() < Layout::LEFT_MAX {
            left.push(self);
        }
    }
}

/// Commits pages at addresses that are the caller's.
pub(crate) fn commit(range: &Range<u64>, protection: Protection) -> Result<()> {
    warm::make_room(range);
    platform().commit(range.start, range.end - range.start, protection)
}

/// A random number below `limit`.
pub(crate) fn random_below(limit: u64) -> u64 {
    let mut bytes = [0; 8];
    platform().random(&mut bytes);
    u64::from_le_bytes(bytes) % limit.max(1)
}

/// New mappings start in the upper eighth of the application's addresses, in 16 GiB at most.
fn random_mmap_base() -> u64 {
    let user = platform().user_range();
    /// Enough to guess, and a reservation of 960 GiB still fits below.
    const SPREAD: u64 = 16 << 30;
    let spread = ((user.end - user.start) / 8).min(SPREAD);
    user.end - random_below(spread / PAGE) * PAGE
}

/// Rounds up to whole pages; `None` on overflow.
pub(crate) fn page_up(value: u64) -> Option<u64> {
    value.checked_add(PAGE - 1).map(|value| value & !(PAGE - 1))
}

/// Rounds down to whole pages.
pub(crate) fn page_down(value: u64) -> u64 {
    value & !(PAGE - 1)
}
