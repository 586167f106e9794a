//! Descriptors on their way: files that wait in the queue of a UNIX socket (SCM_RIGHTS).
//!
//! A socket in flight may hold, in its own queue, the last reference to the socket in whose queue
//! it waits. Such cycles are found as on Linux: a socket in flight whose every reference comes from
//! the queues of other such sockets can be reached by nobody, and its queue is emptied.
//!
//! Lock order: [`SOCKETS`] is never held while a socket's state is taken, nor while a file is
//! dropped.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::UnixSocket;
use crate::Result;
use crate::errno::ETOOMANYREFS;
use crate::fs::file::OpenFile;
use crate::net::file::SocketFile;
use crate::sync::SpinLock;

/// Deepest nesting of sockets in flight in queues of sockets in flight: what is dropped together
/// is dropped recursively.
const LEVEL_MAX: u8 = 4;

/// UNIX sockets in flight, by address of the open file: the file, and how often it is in flight.
static SOCKETS: SpinLock<BTreeMap<usize, (Weak<OpenFile>, usize)>> = SpinLock::new(BTreeMap::new());
/// All files in flight.
static FILES: AtomicUsize = AtomicUsize::new(0);

/// The UNIX socket behind a file.
fn socket_of(file: &OpenFile) -> Option<&UnixSocket> {
    let socket = &SocketFile::of(file).ok()?.socket;
    socket.as_any().downcast_ref()
}

fn key(file: &Arc<OpenFile>) -> usize {
    Arc::as_ptr(file) as usize
}

/// One reference to a file in flight.
pub struct Flight {
    file: Arc<OpenFile>,
}

impl Flight {
    fn new(file: Arc<OpenFile>) -> Flight {
        FILES.fetch_add(1, Ordering::Relaxed);
        if socket_of(&file).is_some() {
            let mut sockets = SOCKETS.lock();
            let fresh = || (Arc::downgrade(&file), 0);
            sockets.entry(key(&file)).or_insert_with(fresh).1 += 1;
        }
        Flight { file }
    }

    /// Another reference, for the receiver.
    pub fn file(&self) -> Arc<OpenFile> {
        self.file.clone()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        FILES.fetch_sub(1, Ordering::Relaxed);
        if socket_of(&self.file).is_none() {
            return;
        }
        let mut sockets = SOCKETS.lock();
        if let Some(entry) = sockets.get_mut(&key(&self.file)) {
            entry.1 -= 1;
            if entry.1 == 0 {
                sockets.remove(&key(&self.file));
            }
        }
    }
}

/// Sends files off: the flights, and the level of nesting that the receiving socket gets.
/// ETOOMANYREFS beyond `limit` files in flight (RLIMIT_NOFILE, as on Linux) or too deep.
pub fn depart(files: Vec<Arc<OpenFile>>, limit: usize) -> Result<(Vec<Flight>, u8)> {
    if files.is_empty() {
        return Ok((Vec::new(), 0));
    }
    if FILES.load(Ordering::Relaxed).saturating_add(files.len()) > limit {
        return Err(ETOOMANYREFS.because("too many descriptors in flight"));
    }
    let deepest = files
        .iter()
        .filter_map(|file| socket_of(file).map(|socket| socket.state.lock().level + 1))
        .max();
    let level = deepest.unwrap_or(0);
    if level > LEVEL_MAX {
        return Err(ETOOMANYREFS.because("sockets in flight nested too deep"));
    }
    Ok((files.into_iter().map(Flight::new).collect(), level))
}

/// Keys of the sockets in flight in a socket's queue, and in those of its connections that wait
/// to be accepted.
fn children(socket: &UnixSocket) -> Vec<usize> {
    let mut found = Vec::new();
    let waiting: Vec<Arc<UnixSocket>> = {
        let state = socket.state.lock();
        state.collect_flights(&mut found);
        state.waiting.iter().cloned().collect()
    };
    for socket in waiting {
        socket.state.lock().collect_flights(&mut found);
    }
    found
}

/// Empties the queues of sockets in flight that nobody can reach any more.
pub fn collect_garbage() {
    static RUNNING: AtomicBool = AtomicBool::new(false);
    if SOCKETS.lock().is_empty() || RUNNING.swap(true, Ordering::Acquire) {
        return;
    }
    let garbage = find_garbage();
    let mut dropped = Vec::new();
    for file in &garbage {
        if let Some(socket) = socket_of(file) {
            dropped.push(core::mem::take(&mut socket.state.lock().packets));
        }
    }
    RUNNING.store(false, Ordering::Release);
    drop(dropped);
}

fn find_garbage() -> Vec<Arc<OpenFile>> {
    struct Candidate {
        file: Arc<OpenFile>,
        count: usize,
        internal: usize,
        children: Vec<usize>,
    }
    let in_flight: Vec<(Arc<OpenFile>, usize)> = {
        let sockets = SOCKETS.lock();
        let entries = sockets.values();
        entries
            .filter_map(|(file, count)| Some((file.upgrade()?, *count)))
            .collect()
    };
    // Our own reference is one more.
    let only_in_flight = |file: &Arc<OpenFile>, count| Arc::strong_count(file) == count + 1;
    let mut candidates: BTreeMap<usize, Candidate> = BTreeMap::new();
    let mut others = Vec::new();
    for (file, count) in in_flight {
        if only_in_flight(&file, count) {
            let children = socket_of(&file).map(children).unwrap_or_default();
            let candidate = Candidate {
                file,
                count,
                internal: 0,
                children,
            };
            candidates.insert(key(&candidate.file), candidate);
        } else {
            others.push(file);
        }
    }
    let links: Vec<usize> = candidates
        .values()
        .flat_map(|candidate| candidate.children.iter().copied())
        .collect();
    for child in links {
        if let Some(candidate) = candidates.get_mut(&child) {
            candidate.internal += 1;
        }
    }
    // What is also in a reachable socket's queue is reachable, and so is all that it holds.
    let mut reachable: Vec<usize> = candidates
        .iter()
        .filter(|(_, candidate)| candidate.internal < candidate.count)
        .map(|(key, _)| *key)
        .collect();
    let mut kept = Vec::new();
    while let Some(key) = reachable.pop() {
        if let Some(candidate) = candidates.remove(&key) {
            reachable.extend_from_slice(&candidate.children);
            kept.push(candidate.file);
        }
    }
    // A file that somebody received meanwhile is in use after all: leave it all for next time.
    let counts_hold = {
        let sockets = SOCKETS.lock();
        candidates.iter().all(|(key, candidate)| {
            let count = sockets.get(key).map_or(0, |entry| entry.1);
            count == candidate.count && only_in_flight(&candidate.file, count)
        })
    };
    let garbage = candidates.into_values().map(|candidate| candidate.file);
    let garbage: Vec<_> = garbage.collect();
    if counts_hold { garbage } else { Vec::new() }
}

impl super::State {
    /// Adds the keys of the sockets in flight in this queue.
    fn collect_flights(&self, found: &mut Vec<usize>) {
        for packet in &self.packets {
            let files = packet.files.iter().map(|flight| &flight.file);
            found.extend(files.filter(|file| socket_of(file).is_some()).map(key));
        }
    }
}
