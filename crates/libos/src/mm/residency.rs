//! Taking turns: of the spaces that hold the same addresses, one is resident.
//!
//! Spaces form a graph: two are *neighbours* when private mappings of theirs overlap (after fork,
//! or two programs linked at fixed addresses). No two neighbours are resident at once. The pages
//! of a space that is not resident stay live where nobody else needs their addresses; the others
//! are *saved* in kernel memory, and swapped back when its turn comes. A saved page and the live
//! one are often equal: then nothing is written.
//!
//! The kernel needs no residency: its copies find a page live or saved. Only the way back to user
//! mode waits for it, in [`Space::enter_user`], in a queue: of two spaces that want the same
//! addresses the one that came first gets them, so that any number of siblings all get on. Whoever
//! frees a turn wakes the first that may use it, and nobody else.
//!
//! Lock order: outermost. Under it: a space's `member`, then its state, then other spaces' states
//! (only one thread holds this lock, so their order does not matter).

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::saved::Kept;
use super::shared::{SharedObject, View};
use super::swap::{evict, exchange, restore_all, return_aliases};
use super::{Backing, PAGE, Space, State, Vma, accounting, allocator};
use crate::errno::ENOMEM;
use crate::platform::platform;
use crate::process::thread::Work;
use crate::sync::{SpinGuard, SpinLock};
use crate::{Result, Thread};

/// Global state of turn-taking.
pub(crate) struct Residency {
    spaces: Vec<Arc<Space>>,
    /// Threads that wait for their space's turn, in the order of their arrival.
    waiting: Vec<Waiter>,
}

/// A thread that waits for its space's turn.
struct Waiter {
    thread: Weak<Thread>,
    space: Arc<Space>,
}

/// Excludes switching.
pub(crate) type Guard = SpinGuard<'static, Residency>;

static RESIDENCY: SpinLock<Residency> = SpinLock::new(Residency {
    spaces: Vec::new(),
    waiting: Vec::new(),
});
/// Number of threads in `waiting`, so that going to sleep costs one load.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// A turn lasts at least this long (ns) when somebody waits: a switch of a large process costs
/// a few milliseconds.
const SLICE: u64 = 10_000_000;
/// A forked child's first turn: most children exec or exit well within it.
const FIRST_SLICE: u64 = 50_000_000;
/// A turn lasts this many times what switching to it has cost.
const SLICE_PER_COST: u64 = 10;

/// What waking the thread whose turn it is costs beside the exchange of pages (ns), about.
const WAKE: u64 = 30_000;
/// The longest that a turn is held for a thread that waits for the host (ns).
const LINGER: u64 = 200_000;
/// Turns that are not held after holding one was of no use too often.
const LINGER_PAUSE: i32 = 16;

/// A space's part in turn-taking.
pub(super) struct Member {
    pub resident: bool,
    pub neighbours: Vec<Arc<Space>>,
    /// When the turn may end if others wait (monotonic ns).
    pub until: u64,
    /// How long it is held for a thread that waits for the host, and until when.
    pub linger: u64,
    pub linger_until: u64,
    /// Rises when that was of use; below 0 it is not held.
    pub linger_credit: i32,
    /// Threads of this space in [`Residency::waiting`].
    pub waiting: u32,
}

impl Default for Member {
    fn default() -> Member {
        Member {
            resident: true,
            neighbours: Vec::new(),
            until: 0,
            linger: 0,
            linger_until: 0,
            linger_credit: 0,
            waiting: 0,
        }
    }
}

pub(crate) fn lock() -> Guard {
    RESIDENCY.lock()
}

pub(super) fn register(space: &Arc<Space>) {
    lock().spaces.push(space.clone());
}

/// A thread is about to sleep in the kernel: whoever waits for its space to pause should look.
pub fn note_sleep(thread: &Thread) {
    if WAITING.load(Ordering::SeqCst) == 0 {
        return;
    }
    let mm = thread.mm();
    if mm.conflicted.load(Ordering::SeqCst) && mm.is_asleep() {
        lock().pass_on();
    }
}

/// How long (ns) a thread that is about to wait for the host should wait without giving up the turn:
/// a client's answer often comes sooner than a switch to a sibling and back takes. `None`: not at all.
/// Afterwards call [`lingered`].
pub fn linger(thread: &Thread) -> Option<u64> {
    if WAITING.load(Ordering::SeqCst) == 0 {
        return None;
    }
    let mm = thread.mm();
    let is_asleep = |other: &Arc<Thread>| other.asleep.load(Ordering::SeqCst);
    let is_last = || {
        let awake = mm.threads().into_iter().filter(|other| !is_asleep(other));
        awake.count() == 1
    };
    if !mm.takes_turns() || !is_last() {
        return None;
    }
    let mut member = mm.member.lock();
    if !member.resident || platform().monotonic() >= member.linger_until {
        return None;
    }
    if member.linger_credit < 0 {
        member.linger_credit += 1;
        return None;
    }
    Some(member.linger)
}

/// Whether what the thread waited for came in time.
pub fn lingered(thread: &Thread, came: bool) {
    let mm = thread.mm();
    let mut member = mm.member.lock();
    member.linger_credit = match (came, member.linger_credit) {
        (true, credit) => (credit + 1).min(4),
        (false, 1..) => member.linger_credit - 1,
        (false, _) => -LINGER_PAUSE,
    };
}

impl Residency {
    pub(super) fn spaces(&self) -> &[Arc<Space>] {
        &self.spaces
    }

    /// Wakes the first in the queue who may have a turn now.
    fn pass_on(&self) {
        if self.waiting.is_empty() {
            return;
        }
        let busy = self.busy();
        let mut waiting = self.waiting.iter();
        let first = waiting.find(|waiter| waiter.space.may_enter(&busy));
        if let Some(thread) = first.and_then(|waiter| waiter.thread.upgrade()) {
            thread.notify();
        }
    }

    /// Spaces in the middle of their turn: whose addresses nobody else can have now. With a thousand
    /// siblings, looking for them once costs a thousandth of asking each who waits.
    fn busy(&self) -> Vec<&Arc<Space>> {
        let now = platform().monotonic();
        let spaces = self.spaces.iter();
        spaces.filter(|space| space.is_busy(now)).collect()
    }

    /// How many stand before a thread in the queue; `None` where it is not in it.
    fn place_of(&self, thread: &Arc<Thread>) -> Option<usize> {
        let this = Arc::downgrade(thread);
        let mut waiting = self.waiting.iter();
        waiting.position(|waiter| waiter.thread.ptr_eq(&this))
    }

    /// Resident spaces that have neighbours.
    fn residents(&self) -> Vec<&Arc<Space>> {
        let spaces = self.spaces.iter();
        spaces
            .filter(|space| space.takes_turns() && space.is_resident())
            .collect()
    }

    /// Whether somebody who came before `space` waits for the same addresses and could have them
    /// now.
    fn is_first(&self, space: &Space, busy: &[&Arc<Space>]) -> bool {
        for waiter in &self.waiting {
            if core::ptr::eq(&*waiter.space, space) {
                return true;
            }
            if waiter.thread.strong_count() > 0
                && space.is_neighbour(&waiter.space)
                && waiter.space.may_enter(busy)
            {
                return false;
            }
        }
        true
    }
}

/// Gives up what is kept for the next fork: memory is short.
pub(super) fn forget_kept() {
    for space in &lock().spaces {
        space.state.lock().kept = Kept::default();
    }
}

/// How often a shared object is mapped, over all spaces.
pub(super) fn users_of(object: &Arc<SharedObject>) -> u64 {
    let guard = lock();
    let maps = |vma: &Vma| matches!(&vma.backing, Backing::Shared(o, _) if Arc::ptr_eq(o, object));
    let users = guard.spaces.iter().map(|space| {
        space
            .state
            .lock()
            .vmas
            .iter()
            .filter(|vma| maps(vma))
            .count() as u64
    });
    users.sum()
}

impl Space {
    /// Whether another process holds some of the same addresses.
    pub fn takes_turns(&self) -> bool {
        self.conflicted.load(Ordering::SeqCst)
    }

    /// Gives the rest of a turn to whoever waits for it (sched_yield).
    pub fn give_way(&self) {
        if WAITING.load(Ordering::SeqCst) == 0 || !self.conflicted.load(Ordering::SeqCst) {
            return;
        }
        let guard = lock();
        self.member.lock().until = 0;
        guard.pass_on();
    }

    /// Waits until user code of this space may run. Call it last on the way to user mode when
    /// [`Work::RESIDENCY`] is set, holding no lock. Returns early, the work still set, when the
    /// thread must end.
    pub fn enter_user(&self, thread: &Arc<Thread>) {
        let mut queued = false;
        loop {
            let seen = thread.event_count();
            let mut guard = lock();
            let entered = self.try_enter(&mut guard);
            if entered {
                thread.clear_work(Work::RESIDENCY);
            }
            if entered || thread.work().contains(Work::EXIT) {
                if queued {
                    self.leave_queue(&mut guard, thread);
                }
                return;
            }
            if !queued {
                // Look again: who fell asleep just before this one stood in the queue woke nobody.
                queued = true;
                self.join_queue(&mut guard, thread);
                continue;
            }
            let deadline = self.next_look(&guard, thread);
            drop(guard);
            thread
                .clock
                .asleep(|| platform().sleep(thread, seen, Some(deadline)));
        }
    }

    /// Waits for this space's turn, and takes it if something is still wanted then; whether it is.
    /// For who was woken together with its siblings. Whoever is interrupted is taken to want it. Holds
    /// no lock, as [`Space::enter_user`].
    pub fn enter_if(&self, thread: &Arc<Thread>, mut is_wanted: impl FnMut() -> bool) -> bool {
        if !self.takes_turns() || self.is_resident() {
            return true;
        }
        let mut queued = false;
        let wanted = loop {
            let seen = thread.event_count();
            if self.is_next(&lock()) {
                if !is_wanted() {
                    break false;
                }
                if self.try_enter(&mut lock()) {
                    break true;
                }
            }
            if thread.interrupted() {
                break true;
            }
            let mut guard = lock();
            if !queued {
                queued = true;
                self.join_queue(&mut guard, thread);
                continue;
            }
            let deadline = self.next_look(&guard, thread);
            drop(guard);
            thread
                .clock
                .asleep(|| platform().sleep(thread, seen, Some(deadline)));
        };
        if queued {
            self.leave_queue(&mut lock(), thread);
        }
        wanted
    }

    fn join_queue(&self, guard: &mut Guard, thread: &Arc<Thread>) {
        let this = guard
            .spaces
            .iter()
            .find(|space| core::ptr::eq(&***space, self));
        // A space that is torn down has no threads left but one that is about to end.
        let Some(space) = this.cloned() else { return };
        guard.waiting.push(Waiter {
            thread: Arc::downgrade(thread),
            space,
        });
        self.member.lock().waiting += 1;
        WAITING.fetch_add(1, Ordering::SeqCst);
    }

    fn leave_queue(&self, guard: &mut Guard, thread: &Arc<Thread>) {
        if let Some(at) = guard.place_of(thread) {
            guard.waiting.remove(at);
            self.member.lock().waiting -= 1;
            WAITING.fetch_sub(1, Ordering::SeqCst);
        }
        // The other threads of this space may run as well; or whoever stood behind this one.
        guard.pass_on();
    }

    /// Whether user code of this space may run now.
    pub fn is_resident(&self) -> bool {
        self.member.lock().resident
    }

    fn try_enter(&self, guard: &mut Guard) -> bool {
        let ready = self.is_next(guard);
        if ready && !self.is_resident() {
            self.make_resident(guard);
        }
        ready
    }

    /// Whether it has the turn, or it is its turn now.
    fn is_next(&self, guard: &Guard) -> bool {
        if self.is_resident() {
            return true;
        }
        let busy = guard.busy();
        self.may_enter(&busy) && guard.is_first(self, &busy)
    }

    /// Whether user code of this space may run, or could if nobody else waited. Under the residency
    /// lock.
    fn may_enter(&self, busy: &[&Arc<Space>]) -> bool {
        self.is_resident() || !busy.iter().any(|other| self.is_neighbour(other))
    }

    fn is_neighbour(&self, other: &Arc<Space>) -> bool {
        let member = self.member.lock();
        member
            .neighbours
            .iter()
            .any(|known| Arc::ptr_eq(known, other))
    }

    /// Whether this space has neighbours, is resident, and neither sleeps nor has had its turn.
    fn is_busy(&self, now: u64) -> bool {
        if !self.takes_turns() {
            return false;
        }
        let member = self.member.lock();
        let in_turn = member.resident && now < member.until;
        drop(member);
        in_turn && !self.is_asleep()
    }

    /// When to look again if nobody says anything: at the end of the turn, or later by a slice for
    /// each who stands before this one, so that a long queue does not spend its time looking.
    fn next_look(&self, guard: &Guard, thread: &Arc<Thread>) -> u64 {
        let residents = guard.residents();
        let others = residents.iter().filter(|other| self.is_neighbour(other));
        let end = others.map(|other| other.member.lock().until).max();
        let end = end.unwrap_or(0).max(platform().monotonic() + 1_000_000);
        let before = guard.place_of(thread).unwrap_or(0);
        end.saturating_add(SLICE * before as u64)
    }

    /// Whether all threads sleep in the kernel.
    fn is_asleep(&self) -> bool {
        self.threads()
            .iter()
            .all(|thread| thread.asleep.load(Ordering::SeqCst))
    }

    /// Makes this space resident, now.
    pub(super) fn make_resident(&self, _guard: &mut Guard) {
        let start = platform().monotonic();
        let neighbours = self.member.lock().neighbours.clone();
        for other in &neighbours {
            let mut member = other.member.lock();
            if core::mem::replace(&mut member.resident, false) {
                drop(member);
                other.stop_threads(None);
            }
        }
        let mut state = self.state.lock();
        for other in &neighbours {
            let mut leaver = other.state.lock();
            if other.aliased.load(Ordering::SeqCst) {
                return_aliases(&leaver, &state);
            }
            exchange(&mut leaver, &mut state);
        }
        restore_all(&mut state);
        let now = platform().monotonic();
        let mut member = self.member.lock();
        member.resident = true;
        let cost = now.saturating_sub(start);
        member.until = now + SLICE.max(SLICE_PER_COST * cost);
        member.linger = (cost + WAKE).min(LINGER);
        member.linger_until = now + SLICE_PER_COST * (cost + WAKE);
        self.settle(&member);
    }

    /// Makes all threads (but the caller's) look at their residency before user code runs.
    pub(super) fn stop_threads(&self, but: Option<&Arc<Thread>>) {
        for thread in self.threads() {
            thread.add_own_work(Work::RESIDENCY);
            if !but.is_some_and(|but| Arc::ptr_eq(but, &thread)) {
                platform().stop(&thread);
            }
        }
    }

    /// Nobody else holds its addresses (any more): copies need no residency lock.
    pub(super) fn settle(&self, member: &Member) {
        if member.neighbours.is_empty() && !self.aliased.load(Ordering::SeqCst) {
            self.conflicted.store(false, Ordering::SeqCst);
        }
    }

    /// From now on copies and page faults of this space exclude switching.
    pub(super) fn set_conflicted(&self) {
        if !self.conflicted.swap(true, Ordering::SeqCst) {
            self.wait_for_copies();
            // Whoever holds the state without the residency lock finishes first.
            drop(self.state.lock());
        }
    }

    /// Frees all memory: the last thread has left, or nobody can reach the space any more.
    pub fn tear_down(&self) {
        let mut guard = lock();
        guard.spaces.retain(|space| !core::ptr::eq(&**space, self));
        let (neighbours, was_resident) = {
            let mut member = self.member.lock();
            (
                core::mem::take(&mut member.neighbours),
                core::mem::replace(&mut member.resident, false),
            )
        };
        {
            let mut state = self.state.lock();
            if core::mem::replace(&mut state.dead, true) {
                return;
            }
            accounting::uncharge(state.saved.len() as u64 * PAGE);
            state.saved.clear();
            state.kept = Kept::default();
            state.program.execution = None;
        }
        if was_resident && let Some(heir) = heir(&guard, &neighbours) {
            heir.make_resident(&mut guard);
        }
        for other in &neighbours {
            let mut member = other.member.lock();
            member
                .neighbours
                .retain(|space| !core::ptr::eq(&**space, self));
            if member.resident {
                let _state = other.state.lock();
                other.settle(&member);
            }
        }
        let all = platform().user_range();
        let reserved = {
            let mut locked = self.lock_with(guard);
            if neighbours.is_empty() && was_resident {
                locked.alone_at_end = true;
                locked.resident = true;
                locked.keep_images();
                locked.layout().leave();
            }
            locked.unmap(&all);
            core::mem::take(&mut locked.reserved)
        };
        reserved.into_iter().for_each(allocator::release);
        lock().pass_on();
    }
}

/// Makes neighbours of `space` and everyone who has a mapping in `range`, and frees the range for
/// it if it is resident. Who has the same view of shared memory there is not in the way.
pub(super) fn join_range(
    guard: &mut Guard,
    space: &Space,
    range: &Range<u64>,
    view: Option<&View>,
) -> Result<()> {
    let mut others = Vec::new();
    let Some(this) = guard
        .spaces
        .iter()
        .find(|other| core::ptr::eq(&***other, space))
        .cloned()
    else {
        return Err(ENOMEM.because("the process is ending"));
    };
    for other in &guard.spaces {
        if Arc::ptr_eq(other, &this) {
            continue;
        }
        let state = other.state.lock();
        let mut overlaps = reserves(&state, range);
        for vma in state.vmas.overlapping(range) {
            let same = |other: View| view.is_some_and(|view| view.agrees_with(&other));
            overlaps |= vma.owns_addresses() && !vma.view().is_some_and(same);
        }
        if overlaps {
            others.push(other.clone());
        }
    }
    if !others.is_empty() {
        this.set_conflicted();
    }
    for other in &others {
        other.set_conflicted();
        link(&this, other);
        let resident = this.member.lock().resident;
        let other_resident = other.member.lock().resident;
        if resident && other_resident && this.threads().is_empty() {
            // A program that is still being loaded has time.
            this.member.lock().resident = false;
        } else if resident && other_resident {
            other.member.lock().resident = false;
            other.stop_threads(None);
        }
    }
    // All who could write there are stopped.
    if this.member.lock().resident {
        for other in &others {
            evict(&mut other.state.lock(), range);
        }
    }
    Ok(())
}

fn reserves(state: &State, range: &Range<u64>) -> bool {
    state
        .reserved
        .iter()
        .any(|part| part.start < range.end && range.start < part.end)
}

/// Who gets the pages of a space that ends as they are, so that they need not be removed and added
/// again: the first who waits for them, else who has most to bring back, usually the parent in wait4.
fn heir<'a>(guard: &Guard, neighbours: &'a [Arc<Space>]) -> Option<&'a Arc<Space>> {
    let residents = guard.residents();
    let could = |other: &&Arc<Space>| !residents.iter().any(|space| other.is_neighbour(space));
    let waits = |other: &&Arc<Space>| other.member.lock().waiting > 0;
    let saved = |other: &&Arc<Space>| other.state.lock().saved.len();
    let mut all = neighbours.iter();
    all.clone()
        .find(|other| waits(other) && could(other))
        .or_else(|| all.by_ref().filter(could).max_by_key(saved))
        .filter(|heir| saved(heir) > 0)
}

/// A new space, which nobody knows yet, becomes a neighbour of all these.
pub(super) fn link_new(new: &Arc<Space>, others: Vec<Arc<Space>>) {
    for other in &others {
        other.member.lock().neighbours.push(new.clone());
    }
    new.member.lock().neighbours = others;
}

/// Makes two spaces neighbours.
pub(super) fn link(a: &Arc<Space>, b: &Arc<Space>) {
    for (one, other) in [(a, b), (b, a)] {
        let mut member = one.member.lock();
        if !member
            .neighbours
            .iter()
            .any(|known| Arc::ptr_eq(known, other))
        {
            member.neighbours.push(other.clone());
        }
    }
}

/// A forked child's first turn starts.
pub(super) fn first_turn() -> u64 {
    platform().monotonic() + FIRST_SLICE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::AddressSpace;
    use crate::mm::map::Request;
    use crate::platform::Protection;
    use crate::testing;

    /// A parent and its forked child, which is resident, with a thread each.
    fn family() -> [(Arc<AddressSpace>, Arc<Thread>); 2] {
        let thread = testing::setup();
        let parent = thread.mm();
        let read_write = Protection::READ | Protection::WRITE;
        let at = parent.map(Request::anonymous(0x1000, read_write)).unwrap();
        parent.write(at, b"x").unwrap();
        let child = parent.fork(&thread).unwrap();
        let child_thread = testing::thread_in(child.clone());
        assert!(child.is_resident() && !parent.is_resident());
        [(parent, thread), (child, child_thread)]
    }

    #[test]
    fn who_finds_nothing_to_do_when_its_turn_comes_leaves_it() {
        let [(parent, thread), (child, child_thread)] = family();
        child.member.lock().until = platform().monotonic() + 20_000_000;
        let mut asked = 0;
        let wanted = parent.enter_if(&thread, || {
            asked += 1;
            let over = platform().monotonic() >= child.member.lock().until;
            assert!(over, "asked within the other's turn");
            false
        });
        assert!(!wanted && asked == 1 && child.is_resident());
        assert_eq!(parent.member.lock().waiting, 0);
        // Now there is something, and the child sleeps.
        child.member.lock().until = u64::MAX;
        child_thread.asleep.store(true, Ordering::SeqCst);
        assert!(parent.enter_if(&thread, || true));
        assert!(parent.is_resident() && !child.is_resident());
        // Who has the turn is not asked.
        assert!(parent.enter_if(&thread, || false));
        // A signal is something to do.
        child_thread.asleep.store(false, Ordering::SeqCst);
        parent.member.lock().until = u64::MAX;
        child_thread.add_own_work(Work::SIGNAL);
        assert!(child.enter_if(&child_thread, || false) && parent.is_resident());
    }

    #[test]
    fn a_turn_is_held_for_the_host_while_that_is_of_use() {
        let [(parent, thread), (child, child_thread)] = family();
        parent.join_queue(&mut lock(), &thread);
        // A first turn has no measure of what a switch costs.
        assert_eq!(linger(&child_thread), None);
        child.make_resident(&mut lock());
        child.member.lock().linger_until = u64::MAX;
        let longest = linger(&child_thread).unwrap();
        assert!((WAKE..=LINGER).contains(&longest));
        for came in [true, true, false, false, false] {
            assert!(linger(&child_thread).is_some());
            lingered(&child_thread, came);
        }
        for _ in 0..LINGER_PAUSE {
            assert_eq!(linger(&child_thread), None);
        }
        assert!(linger(&child_thread).is_some());
        // While another thread of the process runs, sleeping ends no turn.
        let other = testing::thread_in(child.clone());
        assert_eq!(linger(&child_thread), None);
        other.asleep.store(true, Ordering::SeqCst);
        assert!(linger(&child_thread).is_some());
        child.member.lock().linger_until = 0;
        assert_eq!(linger(&child_thread), None);
        // Who is not resident has nothing to hold.
        assert_eq!(linger(&thread), None);
        parent.leave_queue(&mut lock(), &thread);
    }
}
