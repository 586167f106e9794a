//! dnotify (F_NOTIFY): a signal about a directory, what came before inotify.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::async_io::POLL_MSG;
use super::file::OpenFile;
use super::inode::{Inode, InodeState};
use super::inotify::{self, mask};
use crate::errno::{EINVAL, ENOTDIR};
use crate::sync::SpinLock;
use crate::{Result, Thread};

/// DN_MULTISHOT: the request stays after the first event.
const MULTISHOT: u32 = 1 << 31;
/// POLLIN | POLLRDNORM | POLLMSG, as Linux tells it.
const BAND: u32 = 0x441;

/// A name changed within one directory: no event of inotify, which tells both halves of a move.
pub const RENAMED: u32 = 1 << 28;

/// DN_ACCESS to DN_ATTRIB, and the events that each stands for.
const EVENTS: [(u32, u32); 6] = [
    (0x1, mask::ACCESS),
    (0x2, mask::MODIFY),
    (0x4, mask::CREATE | mask::MOVED_TO),
    (0x8, mask::DELETE | mask::MOVED_FROM),
    (0x10, RENAMED),
    (0x20, mask::ATTRIB),
];

struct Note {
    id: usize,
    file: Weak<OpenFile>,
    events: u32,
    multishot: bool,
}

/// The requests about one directory.
#[derive(Default)]
pub struct Notes {
    count: AtomicUsize,
    list: SpinLock<Vec<Note>>,
}

impl Notes {
    fn change<R>(&self, change: impl FnOnce(&mut Vec<Note>) -> R) -> R {
        let mut list = self.list.lock();
        let before = list.len();
        let result = change(&mut list);
        let after = list.len();
        self.count.store(after, Ordering::Release);
        drop(list);
        inotify::count_watches(before, after);
        result
    }
}

fn id(file: &OpenFile) -> usize {
    core::ptr::from_ref(file) as usize
}

fn state_of(file: &OpenFile) -> Option<&InodeState> {
    file.inode().and_then(|inode| inode.state())
}

/// F_NOTIFY: adds to what the open file waits for; nothing takes the request away. ENOTDIR, EINVAL.
pub fn set(thread: &Arc<Thread>, file: &Arc<OpenFile>, fd: i32, argument: u32) -> Result<()> {
    let known = EVENTS.iter().fold(MULTISHOT, |all, (bit, _)| all | bit);
    if argument & !known != 0 {
        return Err(EINVAL.because("unknown dnotify events"));
    }
    let state = state_of(file).ok_or(ENOTDIR)?;
    if !file.inode().is_some_and(|inode| inode.is_directory()) {
        return Err(ENOTDIR);
    }
    let own = id(file);
    if argument & !MULTISHOT == 0 {
        state
            .notes
            .change(|list| list.retain(|note| note.id != own));
        return Ok(());
    }
    let wanted = EVENTS.iter().filter(|(bit, _)| argument & bit != 0);
    let events = wanted.fold(0, |all, (_, events)| all | events);
    let multishot = argument & MULTISHOT != 0;
    file.owner.note(fd, &thread.process);
    state
        .notes
        .change(|list| match list.iter_mut().find(|note| note.id == own) {
            Some(note) => {
                note.events |= events;
                note.multishot |= multishot;
            }
            None => list.push(Note {
                id: own,
                file: Arc::downgrade(file),
                events,
                multishot,
            }),
        });
    Ok(())
}

/// Something happened to a name in a directory.
pub fn tell(directory: &Arc<dyn Inode>, event: u32) {
    let Some(state) = directory.state() else {
        return;
    };
    if state.notes.count.load(Ordering::Acquire) == 0 {
        return;
    }
    let mut files = Vec::new();
    state.notes.change(|list| {
        list.retain(|note| {
            if note.events & event == 0 {
                return true;
            }
            files.extend(note.file.upgrade());
            note.multishot
        });
    });
    for file in files {
        file.owner.notify(POLL_MSG, BAND);
    }
}

/// An open directory ends, and its request with it.
pub(super) fn release(file: &OpenFile) {
    let state = state_of(file);
    if let Some(state) = state.filter(|state| state.notes.count.load(Ordering::Acquire) > 0) {
        let own = id(file);
        state
            .notes
            .change(|list| list.retain(|note| note.id != own));
    }
}
