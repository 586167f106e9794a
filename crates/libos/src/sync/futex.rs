//! Futexes: sleeping on a word of user memory.
//!
//! Waiters stand in hash buckets. User memory is never touched under a bucket's lock: a waiter
//! queues up first, then looks at its word, and leaves again if the word differs; if a waker has
//! met it in between, it passes the wake-up on. An operation that compares a word before it acts
//! on the queue (CMP_REQUEUE) acts only on those that queued before it looked. Both give the
//! results that Linux's look under the lock gives.
//!
//! Lock order: bucket → (second bucket, by index) → wait queues.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use super::SpinLock;
use crate::errno::{
    EAGAIN, EDEADLK, EFAULT, EINVAL, ENOSYS, EPERM, ERESTART_RESTARTBLOCK, ERESTARTSYS, ESRCH,
    ETIMEDOUT,
};
use crate::mm::AddressSpace;
use crate::platform::{Atomic, Protection, platform};
use crate::process::thread::Work;
use crate::{Result, Thread};

/// Bits of a futex word under the robust and PI protocols.
pub const WAITERS: u32 = 0x8000_0000;
pub const OWNER_DIED: u32 = 0x4000_0000;
pub const TID_MASK: u32 = 0x3fff_ffff;

/// What a futex word is: the object that holds it and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    object: u64,
    offset: u64,
}

/// Where a thread's futex wait stands.
#[derive(Default)]
pub struct FutexWait {
    /// 0 while waiting, else 1 + the index (futex_waitv) of the word that was woken.
    woken: AtomicU32,
}

struct Entry {
    key: Key,
    bitset: u32,
    /// Which of the waiter's words (futex_waitv).
    index: u32,
    /// Order of arrival, over all buckets.
    sequence: u64,
    /// Waits for a priority-inheritance lock: woken by UNLOCK_PI only.
    is_lock: bool,
    thread: Arc<Thread>,
}

struct Bucket {
    /// Entries, so that waking an empty bucket costs one load.
    count: AtomicUsize,
    entries: SpinLock<Vec<Entry>>,
}

/// Enough that two busy futexes rarely share one; a power of two.
const BUCKETS: usize = 512;

static TABLE: [Bucket; BUCKETS] = [const {
    Bucket {
        count: AtomicUsize::new(0),
        entries: SpinLock::new(Vec::new()),
    }
}; BUCKETS];

static SEQUENCE: AtomicU64 = AtomicU64::new(1);

fn bucket_index(key: &Key) -> usize {
    let mixed = (key.object ^ key.offset.rotate_left(20)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as usize % BUCKETS
}

fn bucket(key: &Key) -> &'static Bucket {
    &TABLE[bucket_index(key)]
}

/// EINVAL for an address that is not aligned.
fn key(mm: &Arc<AddressSpace>, address: u64, private: bool) -> Result<Key> {
    if !address.is_multiple_of(4) {
        return Err(EINVAL.because("futex words are aligned"));
    }
    crate::user::check_range(address, 4)?;
    // Shared words are known by what is mapped there.
    if !private && !mm.is_accessible(address, 4, Protection::READ) {
        return Err(EFAULT.because("no futex word is there"));
    }
    // A shared operation on private memory means the same word as a private one.
    let shared = if private {
        None
    } else {
        mm.shared_location(address)
    };
    if shared.is_some() {
        // The page must be there: not of a file that has become shorter.
        mm.read(address, &mut [0; 4])?;
    }
    let (object, offset) = shared.unwrap_or((Arc::as_ptr(mm) as usize as u64, address));
    Ok(Key { object, offset })
}

fn enqueue(thread: &Arc<Thread>, key: Key, bitset: u32, index: u32, is_lock: bool) {
    let bucket = bucket(&key);
    bucket.count.fetch_add(1, Ordering::SeqCst);
    let mut entries = bucket.entries.lock();
    let sequence = SEQUENCE.fetch_add(1, Ordering::SeqCst);
    entries.push(Entry {
        key,
        bitset,
        index,
        sequence,
        is_lock,
        thread: thread.clone(),
    });
}

/// Takes all entries of a thread out, wherever requeues have moved them. Whether it was still
/// waiting (nobody has woken it).
fn dequeue(thread: &Arc<Thread>, keys: &[Key]) -> bool {
    let mut left = 0;
    for key in keys {
        left += remove_from(bucket(key), thread);
    }
    // Requeued meanwhile: rare enough for a search.
    if left < keys.len() && thread.futex.woken.load(Ordering::SeqCst) == 0 {
        for bucket in &TABLE {
            if bucket.count.load(Ordering::SeqCst) != 0 {
                remove_from(bucket, thread);
            }
        }
    }
    thread.futex.woken.load(Ordering::SeqCst) == 0
}

fn remove_from(bucket: &Bucket, thread: &Arc<Thread>) -> usize {
    let mut entries = bucket.entries.lock();
    let before = entries.len();
    entries.retain(|entry| !Arc::ptr_eq(&entry.thread, thread));
    let removed = before - entries.len();
    bucket.count.fetch_sub(removed, Ordering::SeqCst);
    removed
}

/// Wakes up to `limit` waiters that `chosen` accepts; how many were woken.
fn wake_matching(bucket: &Bucket, limit: usize, mut chosen: impl FnMut(&Entry) -> bool) -> usize {
    let mut woken: Vec<Arc<Thread>> = Vec::new();
    {
        let mut entries = bucket.entries.lock();
        let mut at = 0;
        while at < entries.len() && woken.len() < limit {
            if !chosen(&entries[at]) {
                at += 1;
                continue;
            }
            let entry = entries.remove(at);
            bucket.count.fetch_sub(1, Ordering::SeqCst);
            let state = &entry.thread.futex.woken;
            let first =
                state.compare_exchange(0, entry.index + 1, Ordering::SeqCst, Ordering::SeqCst);
            // A waiter for several words may have been woken by another one already.
            if first.is_ok() {
                woken.push(entry.thread);
            }
        }
    }
    for thread in &woken {
        thread.notify();
    }
    woken.len()
}

/// FUTEX_WAKE_BITSET: wakes up to `limit` waiters with a bit of `bitset`.
pub fn wake(
    mm: &Arc<AddressSpace>,
    address: u64,
    private: bool,
    limit: usize,
    bitset: u32,
) -> Result<usize> {
    Ok(wake_key(key(mm, address, private)?, limit, bitset))
}

fn wake_key(key: Key, limit: usize, bitset: u32) -> usize {
    let bucket = bucket(&key);
    // Against the waiter's count-then-look: the store to the word comes before this load.
    fence(Ordering::SeqCst);
    if bucket.count.load(Ordering::SeqCst) == 0 {
        return 0;
    }
    wake_matching(bucket, limit, |entry| {
        entry.key == key && entry.bitset & bitset != 0 && !entry.is_lock
    })
}

/// FUTEX_WAIT_BITSET: sleeps while the word is `expected`, until woken. EAGAIN when it differs,
/// ETIMEDOUT at the monotonic `deadline`, ERESTARTSYS for a signal.
pub fn wait(
    thread: &Arc<Thread>,
    address: u64,
    expected: u32,
    bitset: u32,
    private: bool,
    deadline: Option<u64>,
) -> Result<()> {
    if bitset == 0 {
        return Err(EINVAL.because("empty futex bitset"));
    }
    let mm = thread.mm();
    let key = key(&mm, address, private)?;
    thread.futex.woken.store(0, Ordering::SeqCst);
    enqueue(thread, key, bitset, 0, false);
    match mm.atomic(address, Atomic::Load) {
        Ok(value) if value == expected => sleep(thread, &[key], deadline).map(|_| ()),
        other => {
            if !dequeue(thread, &[key]) {
                // A wake-up meant for one that really waits.
                wake_key(key, 1, bitset);
            }
            other.and(Err(EAGAIN.because("futex word differs")))
        }
    }
}

/// Sleeps until woken; the index of the word.
fn sleep(thread: &Arc<Thread>, keys: &[Key], deadline: Option<u64>) -> Result<u32> {
    let give_up = |error| {
        if dequeue(thread, keys) {
            Err(error)
        } else {
            Ok(thread.futex.woken.load(Ordering::SeqCst) - 1)
        }
    };
    loop {
        let seen = thread.event_count();
        match thread.futex.woken.load(Ordering::SeqCst) {
            0 => {}
            woken => {
                if keys.len() > 1 {
                    dequeue_rest(thread, keys);
                }
                return Ok(woken - 1);
            }
        }
        if thread.interrupted() {
            return give_up(ERESTARTSYS);
        }
        if deadline.is_some_and(|deadline| platform().monotonic() >= deadline) {
            return give_up(ETIMEDOUT);
        }
        thread.sleep(seen, deadline);
    }
}

fn dequeue_rest(thread: &Arc<Thread>, keys: &[Key]) {
    for key in keys {
        remove_from(bucket(key), thread);
    }
}

/// FUTEX_REQUEUE, FUTEX_CMP_REQUEUE: wakes up to `wake` waiters, moves up to `requeue` others to
/// the second word. `expected`: EAGAIN when the first word differs. Number woken and moved.
pub fn requeue(
    mm: &Arc<AddressSpace>,
    from: u64,
    to: u64,
    private: bool,
    wake: usize,
    requeue: usize,
    expected: Option<u32>,
) -> Result<(usize, usize)> {
    let (from_key, to_key) = (key(mm, from, private)?, key(mm, to, private)?);
    // Both words must be there, even if the second is not looked at.
    if requeue > 0 {
        mm.atomic(to, Atomic::Load)?;
    }
    // Only those that queue before the word is looked at count as waiting.
    let horizon = SEQUENCE.load(Ordering::SeqCst);
    if let Some(expected) = expected
        && mm.atomic(from, Atomic::Load)? != expected
    {
        return Err(EAGAIN.because("futex word differs"));
    }
    let waits = |entry: &Entry| entry.key == from_key && entry.sequence < horizon && !entry.is_lock;
    let source = bucket(&from_key);
    let woken = if wake == 0 {
        0
    } else {
        wake_matching(source, wake, waits)
    };
    if requeue == 0 || from_key == to_key {
        return Ok((woken, 0));
    }
    let mut moved = 0;
    let (first, second) = (bucket_index(&from_key), bucket_index(&to_key));
    if first == second {
        for entry in source
            .entries
            .lock()
            .iter_mut()
            .filter(|entry| waits(entry))
        {
            if moved == requeue {
                break;
            }
            entry.key = to_key;
            moved += 1;
        }
        return Ok((woken, moved));
    }
    let target = &TABLE[second];
    // Both locks at once, in order, so that a waiter that leaves finds itself in one of the two.
    let (low, high) = (&TABLE[first.min(second)], &TABLE[first.max(second)]);
    let mut low_entries = low.entries.lock();
    let mut high_entries = high.entries.lock();
    let (entries, others) = if first < second {
        (&mut *low_entries, &mut *high_entries)
    } else {
        (&mut *high_entries, &mut *low_entries)
    };
    let mut at = 0;
    while at < entries.len() && moved < requeue {
        if !waits(&entries[at]) {
            at += 1;
            continue;
        }
        let mut entry = entries.remove(at);
        entry.key = to_key;
        target.count.fetch_add(1, Ordering::SeqCst);
        source.count.fetch_sub(1, Ordering::SeqCst);
        others.push(entry);
        moved += 1;
    }
    Ok((woken, moved))
}

/// FUTEX_WAKE_OP: changes the second word, wakes waiters of the first, and those of the second if
/// its old value compares as `operation` says.
pub fn wake_op(
    mm: &Arc<AddressSpace>,
    first: u64,
    second: u64,
    private: bool,
    limits: [usize; 2],
    operation: u32,
) -> Result<usize> {
    let (first_key, second_key) = (key(mm, first, private)?, key(mm, second, private)?);
    let sign_extend = |value: u32| ((value << 20) as i32 >> 20) as u32;
    let compare_with = sign_extend(operation & 0xfff);
    let mut argument = sign_extend(operation >> 12 & 0xfff);
    if operation >> 28 & 8 != 0 {
        argument = 1 << (argument & 31);
    }
    let atomic = match operation >> 28 & 7 {
        0 => Atomic::Swap(argument),
        1 => Atomic::Add(argument),
        2 => Atomic::Or(argument),
        3 => Atomic::And(!argument),
        4 => Atomic::Xor(argument),
        _ => return Err(ENOSYS.because("unknown FUTEX_WAKE_OP operation")),
    };
    let old = mm.atomic(second, atomic)? as i32;
    let compare_with = compare_with as i32;
    let holds = match operation >> 24 & 15 {
        0 => old == compare_with,
        1 => old != compare_with,
        2 => old < compare_with,
        3 => old <= compare_with,
        4 => old > compare_with,
        5 => old >= compare_with,
        _ => return Err(ENOSYS.because("unknown FUTEX_WAKE_OP comparison")),
    };
    let mut woken = wake_key(first_key, limits[0], !0);
    if holds {
        woken += wake_key(second_key, limits[1], !0);
    }
    Ok(woken)
}

/// One of futex_waitv's words.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    pub address: u64,
    pub expected: u32,
    pub private: bool,
}

/// futex_waitv: sleeps until one of the words is woken; its index.
pub fn wait_any(thread: &Arc<Thread>, words: &[Word], deadline: Option<u64>) -> Result<u32> {
    let mm = thread.mm();
    let mut keys = Vec::with_capacity(words.len());
    for word in words {
        keys.push(key(&mm, word.address, word.private)?);
    }
    thread.futex.woken.store(0, Ordering::SeqCst);
    for (index, key) in keys.iter().enumerate() {
        enqueue(thread, *key, !0, index as u32, false);
    }
    for word in words {
        match mm.atomic(word.address, Atomic::Load) {
            Ok(value) if value == word.expected => {}
            other => {
                if !dequeue(thread, &keys) {
                    dequeue_rest(thread, &keys);
                    return Ok(thread.futex.woken.load(Ordering::SeqCst) - 1);
                }
                return other.and(Err(EAGAIN.because("a futex word differs")));
            }
        }
    }
    sleep(thread, &keys, deadline)
}

/// FUTEX_LOCK_PI: takes the lock in the word, sleeping while another thread holds it. Priorities
/// are not inherited: all threads have the same.
pub fn lock_pi(
    thread: &Arc<Thread>,
    address: u64,
    private: bool,
    deadline: Option<u64>,
    may_wait: bool,
) -> Result<()> {
    let mm = thread.mm();
    let key = key(&mm, address, private)?;
    let tid = thread.tid();
    loop {
        let value = mm.atomic(address, Atomic::Load)?;
        let owner = value & TID_MASK;
        if owner == tid {
            return Err(EDEADLK.because("the thread holds the lock"));
        }
        if owner == 0 {
            let waiters = if has_lock_waiters(&key) { WAITERS } else { 0 };
            let new = tid | value & OWNER_DIED | waiters;
            let exchange = Atomic::CompareExchange {
                expected: value,
                new,
            };
            if mm.atomic(address, exchange)? == value {
                return Ok(());
            }
            continue;
        }
        if !may_wait {
            // An owner that is gone is told apart from one that holds the lock.
            return Err(match crate::process::table::thread(owner) {
                Some(_) => EAGAIN.because("the lock is held"),
                None => ESRCH.because("the lock's owner is gone"),
            });
        }
        if value & WAITERS == 0 {
            let new = value | WAITERS;
            let exchange = Atomic::CompareExchange {
                expected: value,
                new,
            };
            if mm.atomic(address, exchange)? != value {
                continue;
            }
        }
        if crate::process::table::thread(owner).is_none() {
            return Err(ESRCH.because("the lock's owner is gone"));
        }
        thread.futex.woken.store(0, Ordering::SeqCst);
        enqueue(thread, key, !0, 0, true);
        let value = mm.atomic(address, Atomic::Load)?;
        if value & TID_MASK == 0 || value & WAITERS == 0 {
            if !dequeue(thread, &[key]) {
                wake_lock_waiter(&key);
            }
            continue;
        }
        sleep(thread, &[key], deadline)?;
    }
}

fn has_lock_waiters(key: &Key) -> bool {
    let bucket = bucket(key);
    bucket.count.load(Ordering::SeqCst) != 0
        && bucket
            .entries
            .lock()
            .iter()
            .any(|entry| entry.key == *key && entry.is_lock)
}

fn wake_lock_waiter(key: &Key) -> usize {
    wake_matching(bucket(key), 1, |entry| entry.key == *key && entry.is_lock)
}

/// FUTEX_UNLOCK_PI: gives the lock up and lets one waiter try. EPERM when not the owner.
pub fn unlock_pi(thread: &Arc<Thread>, address: u64, private: bool) -> Result<()> {
    let mm = thread.mm();
    let key = key(&mm, address, private)?;
    loop {
        let value = mm.atomic(address, Atomic::Load)?;
        if value & TID_MASK != thread.tid() {
            return Err(EPERM.because("the thread does not hold the lock"));
        }
        let new = if has_lock_waiters(&key) { WAITERS } else { 0 };
        let exchange = Atomic::CompareExchange {
            expected: value,
            new,
        };
        if mm.atomic(address, exchange)? == value {
            wake_lock_waiter(&key);
            return Ok(());
        }
    }
}

/// A dying owner has left the lock in the word: lets one waiter try.
pub fn release_lock(mm: &Arc<AddressSpace>, address: u64) -> Result<()> {
    wake_lock_waiter(&key(mm, address, false)?);
    Ok(())
}

/// Whether a wait that a signal interrupted continues by itself (restart_syscall).
pub fn restartable(thread: &Thread, result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error == ERESTARTSYS && !thread.work().contains(Work::EXIT) => {
            Err(ERESTART_RESTARTBLOCK)
        }
        other => other,
    }
}

#[cfg(test)]
#[path = "futex_tests.rs"]
mod tests;
