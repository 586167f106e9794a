//! Advisory locks: flock(2), and the record locks of fcntl(2), of processes and of open files.
//!
//! An inode's locks are in its [`Locks`]; pipes and sockets have their own. Blocking requests sleep on its queue and try again.
//! Deadlocks between processes' record locks are found by following who waits for whom.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Once;

use super::file::OpenFile;
use crate::errno::{EAGAIN, EDEADLK, ENOLCK};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, WaitQueue, block_on};
use crate::{Result, Thread};

/// Most record locks on one inode: bounds what a program can make the kernel store.
const RECORDS_MAX: usize = 4096;

/// Whose lock it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A process, known by its descriptor table as on Linux.
    Table(usize),
    /// An open file description.
    File(usize),
}

impl Owner {
    pub fn file(file: &Arc<OpenFile>) -> Owner {
        Owner::File(Arc::as_ptr(file) as usize)
    }
}

/// A record lock: bytes `start..end` (`u64::MAX` is the end of any file).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub owner: Owner,
    pub exclusive: bool,
    pub start: u64,
    pub end: u64,
    /// For F_GETLK; 0 for open file description locks.
    pub pid: u32,
}

impl Record {
    fn conflicts(&self, other: &Record) -> bool {
        self.owner != other.owner
            && (self.exclusive || other.exclusive)
            && self.start < other.end
            && other.start < self.end
    }
}

struct Flock {
    file: usize,
    exclusive: bool,
}

#[derive(Default)]
struct State {
    records: Vec<Record>,
    flocks: Vec<Flock>,
}

/// The locks on one inode.
#[derive(Default)]
pub struct Locks {
    count: AtomicUsize,
    state: SpinLock<State>,
    queue: Once<Arc<WaitQueue>>,
}

/// Processes that wait for a record lock: who, and for whom.
static WAITING: SpinLock<Vec<(Owner, Owner)>> = SpinLock::new(Vec::new());

/// The locks of files that have no inode of their own: epoll instances, eventfds, timers … share one,
/// as on Linux.
pub static ANONYMOUS: Locks = Locks::new();

impl Locks {
    pub const fn new() -> Locks {
        Locks {
            count: AtomicUsize::new(0),
            state: SpinLock::new(State {
                records: Vec::new(),
                flocks: Vec::new(),
            }),
            queue: Once::new(),
        }
    }

    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        self.count
            .store(state.records.len() + state.flocks.len(), Ordering::Release);
        drop(state);
        if let Some(queue) = self.queue.get() {
            queue.wake(Events::IN);
        }
        result
    }

    fn queue(&self) -> &Arc<WaitQueue> {
        self.queue.call_once(WaitQueue::new)
    }

    /// F_GETLK: a lock that stands in the way.
    pub fn conflict(&self, wanted: &Record) -> Option<Record> {
        self.state
            .lock()
            .records
            .iter()
            .filter(|record| record.conflicts(wanted))
            .min_by_key(|record| record.start)
            .copied()
    }

    /// F_SETLK: EAGAIN when another lock stands in the way.
    pub fn set(&self, wanted: Record) -> Result<()> {
        self.update(|state| {
            if state.records.iter().any(|record| record.conflicts(&wanted)) {
                return Err(EAGAIN);
            }
            if state.records.len() + 2 > RECORDS_MAX {
                return Err(ENOLCK);
            }
            remove(&mut state.records, wanted.owner, wanted.start, wanted.end);
            merge(&mut state.records, wanted);
            Ok(())
        })
    }

    /// F_SETLKW.
    pub fn set_wait(&self, thread: &Arc<Thread>, wanted: Record) -> Result<()> {
        match self.set(wanted) {
            Err(error) if error == EAGAIN => {}
            other => return other,
        }
        let mut result = block_on(thread, self.queue(), Events::IN, None, || {
            let answer = self.set(wanted);
            if answer != Err(EAGAIN) {
                return Some(answer);
            }
            let holder = self.conflict(&wanted)?.owner;
            (!wait_for(wanted.owner, holder)).then_some(Err(EDEADLK))
        });
        WAITING.lock().retain(|(waiter, _)| *waiter != wanted.owner);
        if let Ok(Err(error)) = result {
            result = Err(error);
        }
        result.map(drop)
    }

    /// F_UNLCK.
    pub fn unlock(&self, owner: Owner, start: u64, end: u64) -> Result<()> {
        self.update(|state| {
            if state.records.len() + 1 > RECORDS_MAX {
                return Err(ENOLCK);
            }
            remove(&mut state.records, owner, start, end);
            Ok(())
        })
    }

    fn try_flock(&self, file: usize, exclusive: bool) -> Result<()> {
        self.update(|state| {
            let blocked = state
                .flocks
                .iter()
                .any(|lock| lock.file != file && (exclusive || lock.exclusive));
            if blocked {
                return Err(EAGAIN);
            }
            state.flocks.retain(|lock| lock.file != file);
            state.flocks.push(Flock { file, exclusive });
            Ok(())
        })
    }

    /// flock(2).
    pub fn flock(
        &self,
        thread: &Arc<Thread>,
        file: &Arc<OpenFile>,
        exclusive: bool,
        wait: bool,
    ) -> Result<()> {
        let file_id = Arc::as_ptr(file) as usize;
        file.lock_owner.store(1, Ordering::Relaxed);
        let mut result = self.try_flock(file_id, exclusive);
        if result == Err(EAGAIN) {
            // A conversion gives the old lock up before it waits.
            self.update(|state| state.flocks.retain(|lock| lock.file != file_id));
            result = self.try_flock(file_id, exclusive);
        }
        if result != Err(EAGAIN) || !wait {
            return result;
        }
        block_on(thread, self.queue(), Events::IN, None, || {
            Some(self.try_flock(file_id, exclusive)).filter(|result| *result != Err(EAGAIN))
        })?
    }

    pub fn unflock(&self, file: &Arc<OpenFile>) {
        let file_id = Arc::as_ptr(file) as usize;
        self.update(|state| state.flocks.retain(|lock| lock.file != file_id));
    }

    fn release(&self, owner: Owner) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        self.update(|state| {
            state.records.retain(|record| record.owner != owner);
            if let Owner::File(file) = owner {
                state.flocks.retain(|lock| lock.file != file);
            }
        });
    }
}

/// Notes who waits for whom; false when that closes a circle.
fn wait_for(waiter: Owner, holder: Owner) -> bool {
    let mut waiting = WAITING.lock();
    waiting.retain(|(other, _)| *other != waiter);
    if matches!(waiter, Owner::File(_)) {
        return true;
    }
    let mut at = holder;
    for _ in 0..waiting.len() + 1 {
        if at == waiter {
            return false;
        }
        match waiting.iter().find(|(other, _)| *other == at) {
            Some((_, next)) => at = *next,
            None => break,
        }
    }
    waiting.push((waiter, holder));
    true
}

/// Takes `start..end` out of an owner's locks, splitting what straddles it.
fn remove(records: &mut Vec<Record>, owner: Owner, start: u64, end: u64) {
    let mut pieces = Vec::new();
    records.retain(|record| {
        if record.owner != owner || record.start >= end || start >= record.end {
            return true;
        }
        if record.start < start {
            pieces.push(Record {
                end: start,
                ..*record
            });
        }
        if end < record.end {
            pieces.push(Record {
                start: end,
                ..*record
            });
        }
        false
    });
    records.extend(pieces);
}

/// Adds a lock, joined with neighbours of the same kind.
fn merge(records: &mut Vec<Record>, mut wanted: Record) {
    records.retain(|record| {
        let joins = record.owner == wanted.owner
            && record.exclusive == wanted.exclusive
            && record.start <= wanted.end
            && wanted.start <= record.end;
        if joins {
            wanted.start = wanted.start.min(record.start);
            wanted.end = wanted.end.max(record.end);
        }
        !joins
    });
    records.push(wanted);
}

/// A process closes a descriptor: all its record locks on the file go (POSIX).
pub fn release_table(file: &OpenFile, table: usize) {
    if let Some(locks) = file.locks() {
        locks.release(Owner::Table(table));
    }
}

/// The last descriptor of an open file is closed.
pub(super) fn release_file(file: &OpenFile) {
    if let Some(locks) = file.locks() {
        locks.release(Owner::File(core::ptr::from_ref(file) as usize));
    }
}
