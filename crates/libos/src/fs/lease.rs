//! Leases (F_SETLEASE): a process is told before another one opens the file, and the open waits
//! until it has given the lease up or down, or for /proc/sys/fs/lease-break-time seconds.
//!
//! A read lease stands against opening for writing, a write lease against any open. Leases are with
//! the inode; the lock is inner to none but the wait queue's.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Once;

use super::async_io::{self, POLL_MSG};
use super::file::OpenFile;
use super::inode::{FileType, Inode};
use crate::errno::{EACCES, EAGAIN, EINVAL, ETIMEDOUT};
use crate::platform::platform;
use crate::sync::SpinLock;
use crate::sync::wait::{Events, WaitQueue, block_on};
use crate::time::SECOND_NS;
use crate::{Result, Thread};

/// F_RDLCK, F_WRLCK, F_UNLCK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    None,
}

impl Kind {
    pub fn from_number(number: i32) -> Result<Kind> {
        match number {
            0 => Ok(Kind::Read),
            1 => Ok(Kind::Write),
            2 => Ok(Kind::None),
            _ => Err(EINVAL.because("unknown kind of lease")),
        }
    }

    pub fn number(self) -> usize {
        match self {
            Kind::Read => 0,
            Kind::Write => 1,
            Kind::None => 2,
        }
    }
}

struct Lease {
    /// Identity of the open file, and the file for its signal.
    id: usize,
    file: Weak<OpenFile>,
    kind: Kind,
    /// What an opener asked it to become.
    wanted: Option<Kind>,
}

impl Lease {
    fn conflicts(&self, writes: bool) -> bool {
        writes || self.kind == Kind::Write
    }
}

/// The leases on one inode.
#[derive(Default)]
pub struct Leases {
    count: AtomicUsize,
    list: SpinLock<Vec<Lease>>,
    queue: Once<Arc<WaitQueue>>,
}

impl Leases {
    fn change<R>(&self, change: impl FnOnce(&mut Vec<Lease>) -> R) -> R {
        let mut list = self.list.lock();
        let result = change(&mut list);
        self.count.store(list.len(), Ordering::Release);
        drop(list);
        if let Some(queue) = self.queue.get() {
            queue.wake(Events::IN);
        }
        result
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }
}

fn id(file: &OpenFile) -> usize {
    core::ptr::from_ref(file) as usize
}

/// F_SETLEASE. EINVAL for other files than regular ones, EACCES for another user's, EAGAIN where
/// the file is open in a way that the lease excludes.
pub fn set(thread: &Arc<Thread>, file: &Arc<OpenFile>, fd: i32, kind: Kind) -> Result<()> {
    let inode = file.inode().ok_or(EINVAL)?;
    let state = inode.state().ok_or(EINVAL.because("no leases here"))?;
    let own = id(file);
    if kind == Kind::None {
        return state.leases.change(|list| {
            let before = list.len();
            list.retain(|lease| lease.id != own);
            (list.len() < before).then_some(()).ok_or(EAGAIN)
        });
    }
    if inode.kind() != FileType::Regular {
        return Err(EINVAL.because("leases are for regular files"));
    }
    let credentials = thread.process.credentials.lock().clone();
    async_io::may_lease(&credentials, inode.metadata().uid).map_err(|_| EACCES)?;
    if kind == Kind::Read && state.has_writers() || kind == Kind::Write && state.opens() > 1 {
        return Err(EAGAIN.because("the file is open"));
    }
    state.leases.change(|list| {
        let others = list.iter().any(|lease| lease.id != own);
        if others
            && (kind == Kind::Write || list.iter().any(|l| l.id != own && l.kind == Kind::Write))
        {
            return Err(EAGAIN.because("another lease"));
        }
        if let Some(lease) = list.iter_mut().find(|lease| lease.id == own) {
            // A lease that is to be given up can only go down to what was asked.
            if lease.wanted.is_some_and(|wanted| wanted != kind) {
                return Err(EAGAIN.because("the lease is being broken"));
            }
            (lease.kind, lease.wanted) = (kind, None);
            return Ok(());
        }
        list.push(Lease {
            id: own,
            file: Arc::downgrade(file),
            kind,
            wanted: None,
        });
        Ok(())
    })?;
    file.owner.note(fd, &thread.process);
    Ok(())
}

/// F_GETLEASE: what the lease is, or is to become.
pub fn get(file: &Arc<OpenFile>) -> Kind {
    let state = file.inode().and_then(|inode| inode.state());
    let Some(state) = state.filter(|state| !state.leases.is_empty()) else {
        return Kind::None;
    };
    let list = state.leases.list.lock();
    let lease = list.iter().find(|lease| lease.id == id(file));
    lease.map_or(Kind::None, |lease| lease.wanted.unwrap_or(lease.kind))
}

/// Someone opens (or truncates) an inode: tells the holders of leases that stand against it and
/// waits for them. EAGAIN instead of waiting where `nonblocking`.
pub fn break_for(
    thread: Option<&Arc<Thread>>,
    inode: &Arc<dyn Inode>,
    writes: bool,
    nonblocking: bool,
) -> Result<()> {
    let Some(state) = inode.state().filter(|state| !state.leases.is_empty()) else {
        return Ok(());
    };
    let leases = &state.leases;
    let wanted = if writes { Kind::None } else { Kind::Read };
    let mut told = Vec::new();
    let conflict = {
        let mut list = leases.list.lock();
        for lease in list.iter_mut().filter(|lease| lease.conflicts(writes)) {
            if lease
                .wanted
                .is_none_or(|old| old != Kind::None && old != wanted)
            {
                lease.wanted = Some(wanted);
                told.extend(lease.file.upgrade());
            }
        }
        list.iter().any(|lease| lease.conflicts(writes))
    };
    for file in told {
        file.owner.notify(POLL_MSG, 0x400);
    }
    let (true, Some(thread)) = (conflict, thread) else {
        return Ok(());
    };
    if nonblocking {
        return Err(EAGAIN.because("a lease stands against it"));
    }
    let seconds: u64 = super::procfs::lease_break_time();
    let deadline = platform().monotonic() + seconds * SECOND_NS;
    let gone = || {
        let list = leases.list.lock();
        (!list.iter().any(|lease| lease.conflicts(writes))).then_some(())
    };
    let queue = leases.queue.call_once(WaitQueue::new);
    match block_on(thread, queue, Events::IN, Some(deadline), gone) {
        // The holder had its time.
        Err(error) if error == ETIMEDOUT => {
            leases.change(|list| {
                if writes {
                    list.clear();
                }
                for lease in list.iter_mut() {
                    (lease.kind, lease.wanted) = (Kind::Read, None);
                }
            });
            Ok(())
        }
        other => other,
    }
}

/// An open file ends, and its lease with it.
pub fn release(file: &OpenFile) {
    let state = file.inode().and_then(|inode| inode.state());
    if let Some(state) = state.filter(|state| !state.leases.is_empty()) {
        state
            .leases
            .change(|list| list.retain(|lease| lease.id != id(file)));
    }
}
