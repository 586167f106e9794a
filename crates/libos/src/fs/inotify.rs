//! inotify(7): events about files and directories.
//!
//! An inode keeps the watches on it; an instance keeps its events and what it watches. As long as
//! nobody watches anything, every hook is one load.
//!
//! Lock order: instance's watches → inode's watches → events.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use hashbrown::HashMap;

use super::dentry::Dentry;
use super::file::{FileOps, OpenFile};
use super::inode::Inode;
use super::ioctl;
use super::path::PathRef;
use super::procfs::Setting;
use crate::errno::{EAGAIN, EEXIST, EINVAL, EMFILE, ENOSPC, ENOTTY};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, WaitQueue, block_on};
use crate::syscall::Context;
use crate::user::{IoBuffer, UserPtr};
use crate::{Result, Thread};

/// Event bits and flags of inotify_add_watch(2).
pub mod mask {
    pub const ACCESS: u32 = 0x1;
    pub const MODIFY: u32 = 0x2;
    pub const ATTRIB: u32 = 0x4;
    pub const CLOSE_WRITE: u32 = 0x8;
    pub const CLOSE_NOWRITE: u32 = 0x10;
    pub const OPEN: u32 = 0x20;
    pub const MOVED_FROM: u32 = 0x40;
    pub const MOVED_TO: u32 = 0x80;
    pub const CREATE: u32 = 0x100;
    pub const DELETE: u32 = 0x200;
    pub const DELETE_SELF: u32 = 0x400;
    pub const MOVE_SELF: u32 = 0x800;
    pub const ALL: u32 = 0xfff;
    pub const UNMOUNT: u32 = 0x2000;
    pub const Q_OVERFLOW: u32 = 0x4000;
    pub const IGNORED: u32 = 0x8000;
    pub const ONLYDIR: u32 = 0x0100_0000;
    pub const DONT_FOLLOW: u32 = 0x0200_0000;
    pub const EXCL_UNLINK: u32 = 0x0400_0000;
    pub const MASK_CREATE: u32 = 0x1000_0000;
    pub const MASK_ADD: u32 = 0x2000_0000;
    pub const ISDIR: u32 = 0x4000_0000;
    pub const ONESHOT: u32 = 0x8000_0000;
}

/// Most events that wait to be read (/proc/sys/fs/inotify/max_queued_events).
const EVENTS_MAX: usize = 16384;
/// Most instances of a user, most watches of an instance (/proc/sys/fs/inotify).
pub static MAX_USER_INSTANCES: Setting = Setting::new(128, i32::MAX as u64);
pub static MAX_USER_WATCHES: Setting = Setting::new(65536, i32::MAX as u64);
/// Size of `struct inotify_event` without its name.
const HEADER: usize = 16;

/// Watches in the whole container.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Instances of each user.
static INSTANCES: SpinLock<BTreeMap<u32, u64>> = SpinLock::new(BTreeMap::new());
static NEXT_COOKIE: AtomicU32 = AtomicU32::new(1);

#[derive(Clone)]
struct Watch {
    descriptor: i32,
    mask: u32,
    instance: Weak<Inotify>,
}

/// The watches on one inode.
#[derive(Default)]
pub struct Watches {
    list: SpinLock<Vec<Watch>>,
}

#[derive(Clone, PartialEq, Eq)]
struct Event {
    descriptor: i32,
    mask: u32,
    cookie: u32,
    name: Vec<u8>,
}

impl Event {
    fn size(&self) -> usize {
        if self.name.is_empty() {
            HEADER
        } else {
            HEADER + (self.name.len() + 1).next_multiple_of(16)
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let size = self.size();
        let mut out = Vec::with_capacity(size);
        out.extend_from_slice(&self.descriptor.to_le_bytes());
        out.extend_from_slice(&self.mask.to_le_bytes());
        out.extend_from_slice(&self.cookie.to_le_bytes());
        out.extend_from_slice(&((size - HEADER) as u32).to_le_bytes());
        out.extend_from_slice(&self.name);
        out.resize(size, 0);
        out
    }
}

struct Watched {
    inode: Arc<dyn Inode>,
}

/// An instance: what inotify_init(2) returns.
pub struct Inotify {
    this: Weak<Inotify>,
    /// Whose it is: counted in [`INSTANCES`].
    uid: u32,
    watches: SpinLock<HashMap<i32, Watched>>,
    next: AtomicU32,
    events: SpinLock<VecDeque<Event>>,
    queue: Arc<WaitQueue>,
}

impl Inotify {
    /// An instance for a user; EMFILE where it has as many as it may.
    pub fn new(uid: u32) -> Result<Arc<Inotify>> {
        let mut instances = INSTANCES.lock();
        let count = instances.entry(uid).or_insert(0);
        if *count >= MAX_USER_INSTANCES.value() {
            return Err(EMFILE.because("fs.inotify.max_user_instances"));
        }
        *count += 1;
        drop(instances);
        Ok(Arc::new_cyclic(|this| Inotify {
            this: this.clone(),
            uid,
            watches: SpinLock::new(HashMap::new()),
            next: AtomicU32::new(1),
            events: SpinLock::new(VecDeque::new()),
            queue: WaitQueue::new(),
        }))
    }

    /// inotify_add_watch(2): a new watch, or a changed one; its descriptor.
    pub fn watch(&self, inode: &Arc<dyn Inode>, wanted: u32) -> Result<i32> {
        let state = inode
            .state()
            .ok_or(ENOSPC.because("this kind of file cannot be watched"))?;
        let kept = wanted & (mask::ALL | mask::ONESHOT | mask::EXCL_UNLINK);
        let mut watches = self.watches.lock();
        let mut list = state.watches.list.lock();
        let own = list
            .iter_mut()
            .find(|w| core::ptr::eq(w.instance.as_ptr(), self));
        if let Some(watch) = own {
            if wanted & mask::MASK_CREATE != 0 {
                return Err(EEXIST);
            }
            watch.mask = if wanted & mask::MASK_ADD != 0 {
                watch.mask | kept
            } else {
                kept
            };
            return Ok(watch.descriptor);
        }
        if watches.len() as u64 >= MAX_USER_WATCHES.value() {
            return Err(ENOSPC.because("fs.inotify.max_user_watches"));
        }
        let descriptor = self.next.fetch_add(1, Ordering::Relaxed) as i32;
        list.push(Watch {
            descriptor,
            mask: kept,
            instance: self.this.clone(),
        });
        drop(list);
        watches.insert(
            descriptor,
            Watched {
                inode: inode.clone(),
            },
        );
        COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(descriptor)
    }

    /// inotify_rm_watch(2).
    pub fn unwatch(&self, descriptor: i32) -> Result<()> {
        self.drop_watch(descriptor).ok_or(EINVAL)?;
        self.push(Event {
            descriptor,
            mask: mask::IGNORED,
            cookie: 0,
            name: Vec::new(),
        });
        Ok(())
    }

    fn drop_watch(&self, descriptor: i32) -> Option<()> {
        let watched = self.watches.lock().remove(&descriptor)?;
        COUNT.fetch_sub(1, Ordering::Relaxed);
        if let Some(state) = watched.inode.state() {
            let mut list = state.watches.list.lock();
            list.retain(|w| {
                w.descriptor != descriptor || !core::ptr::eq(w.instance.as_ptr(), self)
            });
        }
        Some(())
    }

    fn push(&self, event: Event) {
        let mut events = self.events.lock();
        // Equal events in a row are one.
        if events.back() == Some(&event) {
            return;
        }
        if events.len() < EVENTS_MAX {
            events.push_back(event);
        } else if events.len() == EVENTS_MAX {
            let (descriptor, mask) = (-1, mask::Q_OVERFLOW);
            events.push_back(Event {
                descriptor,
                mask,
                cookie: 0,
                name: Vec::new(),
            });
        } else {
            return;
        }
        drop(events);
        self.queue.wake(Events::IN | Events::RDNORM);
    }
}

/// Tells the watches on `inode`.
fn tell(inode: &Arc<dyn Inode>, event: u32, is_directory: bool, name: &[u8], cookie: u32) {
    tell_watches(inode, event, is_directory, name, cookie, 0);
}

/// The same, but not the watches that have a bit of `without`.
fn tell_watches(
    inode: &Arc<dyn Inode>,
    event: u32,
    is_directory: bool,
    name: &[u8],
    cookie: u32,
    without: u32,
) {
    // A directory's own events count too.
    if !name.is_empty() || is_directory {
        super::dnotify::tell(inode, event);
    }
    let Some(state) = inode.state() else { return };
    let interested: Vec<Watch> = {
        let list = state.watches.list.lock();
        list.iter()
            .filter(|watch| watch.mask & event != 0 && watch.mask & without == 0)
            .cloned()
            .collect()
    };
    // As Linux: an object's own end or move does not say what it was.
    let own = mask::DELETE_SELF | mask::MOVE_SELF;
    let shown = if is_directory && event & own == 0 {
        event | mask::ISDIR
    } else {
        event
    };
    for watch in interested {
        let Some(instance) = watch.instance.upgrade() else {
            continue;
        };
        let descriptor = watch.descriptor;
        instance.push(Event {
            descriptor,
            mask: shown,
            cookie,
            name: name.to_vec(),
        });
        if watch.mask & mask::ONESHOT != 0 {
            let _ = instance.unwatch(descriptor);
        }
    }
}

/// Requests that [`super::dnotify`] keeps count here too: without any, nobody need be told.
pub(super) fn count_watches(before: usize, after: usize) {
    COUNT.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
}

fn is_idle() -> bool {
    COUNT.load(Ordering::Relaxed) == 0
}

/// Something happened to a name in a directory.
pub fn notify_child(
    directory: &Arc<dyn Inode>,
    name: &[u8],
    event: u32,
    is_directory: bool,
    cookie: u32,
) {
    if !is_idle() {
        tell(directory, event, is_directory, name, cookie);
    }
}

/// Something happened to an inode, whatever its name.
pub fn notify_inode(inode: &Arc<dyn Inode>, event: u32) {
    if !is_idle() {
        tell(inode, event, inode.is_directory(), b"", 0);
    }
}

/// Something happened to an inode under a name: its directory hears of it too.
pub fn notify_path(path: &PathRef, event: u32) {
    if is_idle() {
        return;
    }
    let is_directory = path.inode().is_directory();
    if let Some(parent) = path.dentry.parent() {
        // What happens to a file that is open still, without its name.
        let without = match path.dentry.is_deleted() {
            true => mask::EXCL_UNLINK,
            false => 0,
        };
        let name = path.dentry.name();
        tell_watches(parent.inode(), event, is_directory, &name, 0, without);
    }
    tell(path.inode(), event, is_directory, b"", 0);
}

/// Something happened to an open file.
pub fn notify_file(file: &OpenFile, event: u32) {
    if is_idle() {
        return;
    }
    if let Some(path) = &file.path {
        notify_path(path, event);
    }
}

/// An open file is gone: IN_CLOSE_WRITE, IN_CLOSE_NOWRITE.
pub(super) fn closed(file: &OpenFile) {
    if !is_idle() && !file.is_path() {
        notify_file(
            file,
            if file.is_writable() {
                mask::CLOSE_WRITE
            } else {
                mask::CLOSE_NOWRITE
            },
        );
    }
}

/// The last name of a file is gone.
pub fn unlinked(inode: &Arc<dyn Inode>, _dentry: &Arc<Dentry>) {
    removed(inode);
}

/// An object is gone, and every watch on it.
pub fn removed(inode: &Arc<dyn Inode>) {
    if is_idle() {
        return;
    }
    tell(inode, mask::DELETE_SELF, inode.is_directory(), b"", 0);
    let Some(state) = inode.state() else { return };
    let all: Vec<Watch> = state.watches.list.lock().clone();
    for watch in all {
        if let Some(instance) = watch.instance.upgrade() {
            let _ = instance.unwatch(watch.descriptor);
        }
    }
}

/// A number that ties IN_MOVED_FROM and IN_MOVED_TO together.
pub fn next_cookie() -> u32 {
    if is_idle() {
        0
    } else {
        NEXT_COOKIE.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Inotify {
    fn drop(&mut self) {
        let mut instances = INSTANCES.lock();
        if let Some(count) = instances.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                instances.remove(&self.uid);
            }
        }
    }
}

impl FileOps for Inotify {
    fn as_any(&self) -> &dyn Any {
        self
    }

    /// A line for each watch, the newest first.
    fn describe_more(&self) -> String {
        let watches = self.watches.lock();
        let mut lines: Vec<(i32, String)> = watches
            .iter()
            .filter_map(|(&descriptor, watched)| {
                let list = watched.inode.state()?.watches.list.lock();
                let own = |watch: &&Watch| {
                    watch.descriptor == descriptor && core::ptr::eq(watch.instance.as_ptr(), self)
                };
                let mask = list.iter().find(own)?.mask;
                let id = watched.inode.id();
                // As the kernel itself writes device numbers: twenty bits for the minor one.
                let major = id.device >> 8 & 0xfff;
                let minor = id.device & 0xff | id.device >> 12 & 0xfff00;
                let line = format!(
                    "inotify wd:{descriptor:x} ino:{:x} sdev:{:x} mask:{mask:x} ignored_mask:0\n",
                    id.inode,
                    major << 20 | minor,
                );
                Some((descriptor, line))
            })
            .collect();
        lines.sort_unstable_by_key(|line| core::cmp::Reverse(line.0));
        lines.into_iter().map(|(_, line)| line).collect()
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        let room = to.remaining();
        let attempt = || {
            let mut events = self.events.lock();
            let first = events.front()?;
            if first.size() > room {
                return Some(Err(
                    EINVAL.because("the buffer is too small for the next event")
                ));
            }
            let mut bytes = Vec::new();
            while let Some(event) = events.front() {
                if bytes.len() + event.size() > room {
                    break;
                }
                bytes.extend(event.bytes());
                events.pop_front();
            }
            Some(Ok(bytes))
        };
        let bytes = match attempt() {
            Some(bytes) => bytes?,
            None if file.is_nonblocking() => return Err(EAGAIN),
            None => block_on(thread, &self.queue, Events::IN, None, attempt)??,
        };
        to.put(&bytes)
    }

    /// There is no position; seeking does nothing, and says so by succeeding.
    fn seek(&self, _: &Arc<Thread>, _: &OpenFile, _: i64, _: u32) -> Result<u64> {
        Ok(0)
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table {
            table.register(&self.queue, interest);
        }
        if self.events.lock().is_empty() {
            Events::empty()
        } else {
            Events::IN | Events::RDNORM
        }
    }

    fn ioctl(
        &self,
        context: &mut Context<'_>,
        _file: &OpenFile,
        request: u32,
        argument: u64,
    ) -> Result<usize> {
        if request != ioctl::FIONREAD {
            return Err(ENOTTY);
        }
        let size: usize = self.events.lock().iter().map(Event::size).sum();
        UserPtr::<i32>::new(argument).write(&context.mm(), &(size as i32))?;
        Ok(0)
    }

    fn release(&self, _flags: u32) {
        let descriptors: Vec<i32> = self.watches.lock().keys().copied().collect();
        for descriptor in descriptors {
            self.drop_watch(descriptor);
        }
    }

    fn describe(&self) -> String {
        "anon_inode:inotify".to_string()
    }
}
