//! epoll(7).
//!
//! An instance has two halves. Files of the enclave (pipes, eventfds, UNIX sockets …) wake an
//! [`Item`], which puts itself on the ready list. Files of the host (sockets, standard streams) go
//! into a host epoll instance, created when the first is added; the host reports tokens, which are
//! looked up here, so that it can at most report a file that is not ready.
//!
//! Lock order: items → ready list → wait queue of the instance.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use bulla_abi::hostcall::PollFd;

use super::file::{FileOps, OpenFile};
use super::inode::FileType;
use crate::errno::{EEXIST, EINVAL, ELOOP, ENOENT, EPERM};
use crate::net::host::{self, HostFd};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, ThreadWaker, WaitQueue, Wake, sleep_once};
use crate::{Result, Thread};

/// Deepest nesting of instances (epoll_ctl(2): ELOOP beyond five).
const NESTING_MAX: usize = 5;

/// Fewest items for which it pays to look for those of closed files.
const SWEEP_MIN: usize = 64;
/// What may come with EPOLLEXCLUSIVE (epoll_ctl(2)).
const EXCLUSIVE_ALLOWED: Events = Events::EXCLUSIVE
    .union(Events::IN)
    .union(Events::OUT)
    .union(Events::ERR)
    .union(Events::HUP)
    .union(Events::WAKEUP)
    .union(Events::EDGE);

/// What the caller wants to know of one descriptor, and what it is told back.
#[derive(Clone, Copy)]
pub struct Interest {
    pub events: Events,
    pub data: u64,
}

/// One event for the caller.
pub struct Ready {
    pub events: Events,
    pub data: u64,
}

type Key = (i32, usize);

/// An epoll instance.
pub struct Epoll {
    items: SpinLock<BTreeMap<Key, Arc<Item>>>,
    tokens: SpinLock<BTreeMap<u64, Weak<Item>>>,
    shared: Arc<Shared>,
    host: SpinLock<Option<Arc<HostFd>>>,
    next_token: AtomicU64,
    /// With this many items it is time to forget those of closed files.
    sweep_at: AtomicUsize,
}

/// What items need of their instance.
struct Shared {
    ready: SpinLock<VecDeque<Weak<Item>>>,
    queue: Arc<WaitQueue>,
}

struct Item {
    file: Weak<OpenFile>,
    events: AtomicU32,
    data: AtomicU64,
    /// On the ready list.
    queued: AtomicBool,
    /// EPOLLONESHOT has fired.
    disabled: AtomicBool,
    /// The host's descriptor of the file, with our token for it.
    host: Option<(i32, u64)>,
    /// Wakes us when the file changes; `None` for files of the host alone.
    table: SpinLock<Option<PollTable>>,
    shared: Weak<Shared>,
    this: Weak<Item>,
}

/// What the file's queues hold: separate from the item so that they do not keep it alive.
struct ItemWaker {
    item: Weak<Item>,
}

impl Wake for ItemWaker {
    fn wake(&self, events: Events) -> bool {
        let Some(item) = self.item.upgrade() else {
            return false;
        };
        let interest = item.interest() | Events::ERR | Events::HUP;
        if !events.is_empty() && !events.intersects(interest) {
            return false;
        }
        // An exclusive wake-up is spent only where someone waits for it.
        let reached = item.enqueue();
        reached || !item.interest().contains(Events::EXCLUSIVE)
    }
}

impl Item {
    fn interest(&self) -> Events {
        Events::from_bits_retain(self.events.load(Ordering::Relaxed))
    }

    /// Puts it on the ready list; whether someone waits for the instance.
    fn enqueue(&self) -> bool {
        let Some(shared) = self.shared.upgrade() else {
            return false;
        };
        if !self.queued.swap(true, Ordering::SeqCst) {
            shared.ready.lock().push_back(self.this.clone());
        }
        shared.queue.wake_some(1, Events::IN) > 0
    }

    /// Whether a file that the host has told to be ready is so still. What is told only once counts.
    fn is_ready_still(&self, thread: &Arc<Thread>) -> bool {
        let interest = self.interest();
        if interest.intersects(Events::EDGE | Events::ONESHOT) {
            return true;
        }
        let file = self.file.upgrade();
        let Some(fd) = file.as_ref().and_then(|file| file.ops.host_fd()) else {
            return true;
        };
        let mut asked = [PollFd {
            fd,
            events: (interest.bits() & 0xffff) as u16,
            revents: 0,
        }];
        let seen = thread.event_count();
        host::poll(&mut asked, Some(0), thread, seen).unwrap_or(1) > 0
    }
}

impl Epoll {
    pub fn new() -> Arc<Epoll> {
        Arc::new(Epoll {
            items: SpinLock::new(BTreeMap::new()),
            tokens: SpinLock::new(BTreeMap::new()),
            shared: Arc::new(Shared {
                ready: SpinLock::new(VecDeque::new()),
                queue: WaitQueue::new(),
            }),
            host: SpinLock::new(None),
            next_token: AtomicU64::new(1),
            sweep_at: AtomicUsize::new(SWEEP_MIN),
        })
    }

    fn host_instance(&self) -> Result<Arc<HostFd>> {
        if let Some(host) = &*self.host.lock() {
            return Ok(host.clone());
        }
        let fresh = Arc::new(host::epoll_create()?);
        let instance = self.host.lock().get_or_insert(fresh).clone();
        // Who waits in the enclave alone must from now on wait on the host.
        self.shared.queue.wake(Events::empty());
        Ok(instance)
    }

    fn key(fd: i32, file: &Arc<OpenFile>) -> Key {
        (fd, Arc::as_ptr(file) as usize)
    }

    /// EPOLL_CTL_ADD.
    pub fn add(&self, fd: i32, file: &Arc<OpenFile>, interest: Interest) -> Result<()> {
        let kind = file.inode().map(|inode| inode.kind());
        if matches!(kind, Some(FileType::Regular | FileType::Directory)) {
            return Err(EPERM.because("regular files are always ready"));
        }
        if super::device::is_always_ready(&*file.ops) {
            return Err(EPERM.because("this device is always ready"));
        }
        let exclusive = interest.events.contains(Events::EXCLUSIVE);
        if exclusive && !EXCLUSIVE_ALLOWED.contains(interest.events) {
            return Err(EINVAL.because("not with EPOLLEXCLUSIVE"));
        }
        if let Some(inner) = file.ops.as_any().downcast_ref::<Epoll>() {
            if exclusive {
                return Err(EINVAL.because("no EPOLLEXCLUSIVE on an epoll instance"));
            }
            if core::ptr::eq(inner, self) {
                return Err(EINVAL.because("an epoll instance cannot watch itself"));
            }
            if inner.depth_or_contains(self, 1)? >= NESTING_MAX {
                return Err(ELOOP);
            }
        }
        let key = Self::key(fd, file);
        if self
            .items
            .lock()
            .get(&key)
            .is_some_and(|item| item.file.strong_count() > 0)
        {
            return Err(EEXIST);
        }
        self.sweep();
        let host = file
            .ops
            .host_fd()
            .map(|host_fd| (host_fd, self.next_token.fetch_add(1, Ordering::Relaxed)));
        let item = Arc::new_cyclic(|this| Item {
            file: Arc::downgrade(file),
            events: AtomicU32::new(interest.events.bits()),
            data: AtomicU64::new(interest.data),
            queued: AtomicBool::new(false),
            disabled: AtomicBool::new(false),
            host,
            table: SpinLock::new(None),
            shared: Arc::downgrade(&self.shared),
            this: this.clone(),
        });
        if let Some((host_fd, token)) = host {
            let instance = self.host_instance()?;
            // The token is known before the host can report it: to another thread, at once, and
            // only once if the event is one-shot or an edge.
            self.tokens.lock().insert(token, Arc::downgrade(&item));
            let wanted = host_events(interest.events);
            if let Err(error) = host::epoll_control(&instance, 1, host_fd, wanted, token) {
                self.tokens.lock().remove(&token);
                return Err(error);
            }
        }
        self.items.lock().insert(key, item.clone());
        let mut table = PollTable::new(Arc::new(ItemWaker {
            item: Arc::downgrade(&item),
        }));
        let ready = file.ops.poll(Some(&mut table), interest.events);
        *item.table.lock() = Some(table);
        if ready.intersects(interest.events | Events::ERR | Events::HUP) {
            item.enqueue();
        }
        Ok(())
    }

    /// EPOLL_CTL_MOD.
    pub fn modify(&self, fd: i32, file: &Arc<OpenFile>, interest: Interest) -> Result<()> {
        let item = self
            .items
            .lock()
            .get(&Self::key(fd, file))
            .cloned()
            .ok_or(ENOENT)?;
        if (item.interest() | interest.events).contains(Events::EXCLUSIVE) {
            return Err(EINVAL);
        }
        item.data.store(interest.data, Ordering::Relaxed);
        item.events.store(interest.events.bits(), Ordering::Relaxed);
        item.disabled.store(false, Ordering::SeqCst);
        if let Some((host_fd, token)) = item.host {
            let instance = self.host_instance()?;
            host::epoll_control(&instance, 3, host_fd, host_events(interest.events), token)?;
        }
        let mut table = PollTable::new(Arc::new(ItemWaker {
            item: Arc::downgrade(&item),
        }));
        let ready = file.ops.poll(Some(&mut table), interest.events);
        let old = item.table.lock().replace(table);
        drop(old);
        if ready.intersects(interest.events | Events::ERR | Events::HUP) {
            item.enqueue();
        }
        Ok(())
    }

    /// EPOLL_CTL_DEL.
    pub fn delete(&self, fd: i32, file: &Arc<OpenFile>) -> Result<()> {
        let item = self
            .items
            .lock()
            .remove(&Self::key(fd, file))
            .ok_or(ENOENT)?;
        self.forget(&item);
        Ok(())
    }

    fn forget(&self, item: &Item) {
        let table = item.table.lock().take();
        drop(table);
        if let Some((host_fd, token)) = item.host {
            self.tokens.lock().remove(&token);
            // Once the file is closed the host has forgotten it already.
            if item.file.strong_count() > 0
                && let Ok(instance) = self.host_instance()
            {
                let _ = host::epoll_control(&instance, 2, host_fd, 0, 0);
            }
        }
    }

    /// Forgets the items of closed files, when there are many items. Linux does so on close; here
    /// it is put off, for nothing can be heard of such an item.
    fn sweep(&self) {
        let dead: Vec<Arc<Item>> = {
            let mut items = self.items.lock();
            if items.len() < self.sweep_at.load(Ordering::Relaxed) {
                return;
            }
            let dead = items.extract_if(.., |_, item| item.file.strong_count() == 0);
            let dead = dead.map(|(_, item)| item).collect();
            let next = (items.len() * 2).max(SWEEP_MIN);
            self.sweep_at.store(next, Ordering::Relaxed);
            dead
        };
        for item in dead {
            self.forget(&item);
        }
    }

    /// How deep instances are nested below this one; ELOOP when `outer` is among them.
    fn depth_or_contains(&self, outer: &Epoll, depth: usize) -> Result<usize> {
        if depth > NESTING_MAX {
            return Err(ELOOP);
        }
        let files: Vec<_> = self
            .items
            .lock()
            .values()
            .filter_map(|i| i.file.upgrade())
            .collect();
        let mut deepest = depth;
        for file in files {
            if let Some(inner) = file.ops.as_any().downcast_ref::<Epoll>() {
                if core::ptr::eq(inner, outer) {
                    return Err(ELOOP);
                }
                deepest = deepest.max(inner.depth_or_contains(outer, depth + 1)?);
            }
        }
        Ok(deepest)
    }

    /// Takes ready events of enclave files, at most `most`.
    fn collect(&self, most: usize, out: &mut Vec<Ready>) {
        let mut turns = self.shared.ready.lock().len();
        let mut again = Vec::new();
        while turns > 0 && out.len() < most {
            turns -= 1;
            let Some(item) = self.shared.ready.lock().pop_front() else {
                break;
            };
            let Some(item) = item.upgrade() else {
                continue;
            };
            item.queued.store(false, Ordering::SeqCst);
            if let Some(ready) = self.examine(&item) {
                let flags = item.interest();
                if flags.contains(Events::ONESHOT) {
                    item.disabled.store(true, Ordering::SeqCst);
                } else if !flags.contains(Events::EDGE) {
                    again.push(item);
                }
                out.push(ready);
            }
        }
        for item in again {
            if !item.queued.swap(true, Ordering::SeqCst) {
                self.shared.ready.lock().push_back(item.this.clone());
            }
        }
    }

    /// What an item has to report, if anything. Items of closed files go.
    fn examine(&self, item: &Arc<Item>) -> Option<Ready> {
        let Some(file) = item.file.upgrade() else {
            self.items
                .lock()
                .retain(|_, other| !Arc::ptr_eq(other, item));
            self.forget(item);
            return None;
        };
        if item.disabled.load(Ordering::SeqCst) {
            return None;
        }
        let wanted = item.interest() | Events::ERR | Events::HUP;
        let events = file.ops.poll(None, wanted) & wanted;
        let data = item.data.load(Ordering::Relaxed);
        (!events.is_empty()).then_some(Ready { events, data })
    }

    /// epoll_wait: `deadline` is monotonic ns, 0 to return at once.
    pub fn wait(
        &self,
        thread: &Arc<Thread>,
        most: usize,
        deadline: Option<u64>,
    ) -> Result<Vec<Ready>> {
        let result = self.wait_any(thread, most, deadline);
        // A wake-up meant for whoever waits may have reached us, who could not take everything.
        if !self.shared.queue.is_empty() && !self.shared.ready.lock().is_empty() {
            self.shared.queue.wake_some(1, Events::IN);
        }
        result
    }

    fn wait_any(
        &self,
        thread: &Arc<Thread>,
        most: usize,
        deadline: Option<u64>,
    ) -> Result<Vec<Ready>> {
        let mut out = Vec::new();
        self.collect(most, &mut out);
        let host = self.host.lock().clone();
        if out.len() >= most {
            return Ok(out);
        }
        let Some(host) = host else {
            return self.wait_local(thread, most, deadline, out);
        };
        // Registered only when it may really sleep.
        let mut table = None;
        let mut told = Vec::new();
        loop {
            let at_once = deadline == Some(0) || !out.is_empty();
            let seen = thread.event_count();
            if !at_once {
                if table.is_none() {
                    let mut fresh = PollTable::new(ThreadWaker::new(thread));
                    fresh.register(&self.shared.queue, Events::IN);
                    table = Some(fresh);
                }
                // Each time after the counter was read: what came before it would wake nobody.
                self.collect(most, &mut out);
                if !out.is_empty() {
                    continue;
                }
            }
            if !at_once && thread.interrupted() {
                return Err(crate::errno::ERESTARTNOHAND);
            }
            let limit = if at_once { Some(0) } else { deadline };
            let room = most - out.len();
            let takes_turns = !at_once && thread.mm().takes_turns();
            told.clear();
            host::epoll_wait(&host, room, limit, thread, seen, |events, token| {
                if let Some((item, ready)) = self.host_event(events, token) {
                    out.push(ready);
                    if takes_turns {
                        told.push(item);
                    }
                }
            })?;
            // As in poll: what a sibling has taken meanwhile is nothing to run this process for.
            if takes_turns
                && !out.is_empty()
                && !thread.mm().enter_if(thread, || {
                    told.iter().any(|item| item.is_ready_still(thread))
                })
            {
                out.clear();
                continue;
            }
            if !at_once {
                let room = most - out.len();
                if room > 0 {
                    self.collect(most, &mut out);
                }
            }
            let over = deadline.is_some_and(|at| crate::platform::platform().monotonic() >= at);
            if at_once || !out.is_empty() || over {
                return Ok(out);
            }
        }
    }

    fn wait_local(
        &self,
        thread: &Arc<Thread>,
        most: usize,
        deadline: Option<u64>,
        mut out: Vec<Ready>,
    ) -> Result<Vec<Ready>> {
        if !out.is_empty() || deadline == Some(0) {
            return Ok(out);
        }
        let mut table = PollTable::new(ThreadWaker::new(thread));
        table.register(&self.shared.queue, Events::IN);
        loop {
            let seen = thread.event_count();
            self.collect(most, &mut out);
            if !out.is_empty() {
                return Ok(out);
            }
            // A host file added meanwhile needs the other way of waiting.
            if self.host.lock().is_some() {
                drop(table);
                return self.wait_any(thread, most, deadline);
            }
            match sleep_once(thread, seen, deadline) {
                Ok(()) => {}
                Err(error) if error == crate::errno::ETIMEDOUT => return Ok(out),
                Err(_) => return Err(crate::errno::ERESTARTNOHAND),
            }
        }
    }

    fn host_event(&self, events: u32, token: u64) -> Option<(Arc<Item>, Ready)> {
        let item = self.tokens.lock().get(&token)?.upgrade()?;
        item.file.upgrade()?;
        let wanted = item.interest() | Events::ERR | Events::HUP;
        let events = Events::from_bits_truncate(events) & wanted;
        let data = item.data.load(Ordering::Relaxed);
        (!events.is_empty()).then_some((item, Ready { events, data }))
    }
}

/// Flags that the host may see: everything but what keeps a machine awake.
fn host_events(events: Events) -> u32 {
    (events - Events::WAKEUP).bits()
}

impl Drop for Epoll {
    fn drop(&mut self) {
        // Outside of every wait queue's lock: a waker may be about to drop the last reference to
        // an item, under the lock that leaving the queue needs.
        let items = core::mem::take(&mut *self.items.lock());
        for item in items.values() {
            let table = item.table.lock().take();
            drop(table);
        }
    }
}

impl FileOps for Epoll {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn describe_more(&self) -> String {
        let mut text = String::new();
        for ((fd, _), item) in self.items.lock().iter() {
            let Some(file) = item.file.upgrade() else {
                continue;
            };
            let mut events = item.interest() | Events::ERR | Events::HUP;
            if item.disabled.load(Ordering::SeqCst) {
                events &= Events::ONESHOT | Events::EDGE | Events::WAKEUP | Events::EXCLUSIVE;
            }
            let (data, position) = (
                item.data.load(Ordering::Relaxed),
                file.position.peek().unwrap_or(0),
            );
            let (device, inode) = match file.inode() {
                Some(inode) => (inode.id().device, inode.id().inode),
                None => (file.ops.metadata().device, file.ops.metadata().inode),
            };
            let _ = writeln!(
                text,
                "tfd: {fd:8} events: {:8x} data: {data:16x}  pos:{position} ino:{inode:x} \
                 sdev:{device:x}",
                events.bits()
            );
        }
        text
    }

    /// There is no position; seeking does nothing, and says so by succeeding.
    fn seek(&self, _: &Arc<Thread>, _: &OpenFile, _: i64, _: u32) -> Result<u64> {
        Ok(0)
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table {
            table.register(&self.shared.queue, interest);
        }
        let items: Vec<_> = self
            .shared
            .ready
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let ready = items.iter().any(|item| self.examine(item).is_some());
        if ready {
            Events::IN | Events::RDNORM
        } else {
            Events::empty()
        }
    }

    fn host_fd(&self) -> Option<i32> {
        // An outer instance or poll watches our host instance too.
        self.host_instance().ok().map(|host| host.number())
    }

    fn describe(&self) -> String {
        String::from("anon_inode:[eventpoll]")
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU32;

    use super::*;
    use crate::testing;

    /// A file of the host, as a socket is.
    struct HostFile;

    impl FileOps for HostFile {
        fn as_any(&self) -> &dyn Any {
            self
        }

        fn host_fd(&self) -> Option<i32> {
            Some(7)
        }

        fn describe(&self) -> String {
            String::from("host file")
        }
    }

    #[test]
    fn the_host_may_report_a_file_while_it_is_added() {
        use bulla_abi::hostcall::HostCall;
        testing::platform();
        let epoll = Epoll::new();
        let reported = Arc::new(AtomicU32::new(0));
        let (instance, count) = (Arc::downgrade(&epoll), reported.clone());
        testing::on_host_call(move |call, arguments, _| match call {
            HostCall::EpollCreate => 9,
            HostCall::EpollCtl => {
                // Another thread that waits gets the event before this call has returned.
                let instance = instance.upgrade();
                let ready = instance.and_then(|epoll| epoll.host_event(1, arguments[3]));
                count.fetch_add(
                    ready.map_or(0, |(_, ready)| ready.data as u32),
                    Ordering::SeqCst,
                );
                0
            }
            _ => 0,
        });
        let file = OpenFile::new(Arc::new(HostFile), 0);
        let interest = Interest {
            events: Events::IN | Events::ONESHOT,
            data: 5,
        };
        epoll.add(3, &file, interest).unwrap();
        assert_eq!(reported.load(Ordering::SeqCst), 5);
    }
}
