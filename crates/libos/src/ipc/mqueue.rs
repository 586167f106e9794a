//! POSIX message queues: named, with priorities, limits and a notification; open ones are files.
//!
//! [`MessageQueue`] is the queue, [`Names`] the flat directory that mq_open(3) looks in. A queue
//! lives as long as its name or an open file of it.
//!
//! Lock order: names → queue → wait queue. User memory is touched under none of them.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;

use crate::errno::{
    EACCES, EAGAIN, EBUSY, EEXIST, EINVAL, EMFILE, EMSGSIZE, ENAMETOOLONG, ENOENT, ENOSPC, EPERM,
};
use crate::fs::file::{FileOps, OpenFile, anonymous_metadata};
use crate::fs::inode::Metadata;
use crate::net::Socket;
use crate::net::netlink::NetlinkSocket;
use crate::process::credentials::{CAP_FOWNER, CAP_SYS_RESOURCE, Credentials};
use crate::process::{Process, table};
use crate::signal::SigInfo;
use crate::signal::info::SI_MESGQ;
use crate::signal::send::{self, Origin};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, WaitQueue, block_on};
use crate::user::IoBuffer;
use crate::{Result, Thread};

/// Priorities are below this (MQ_PRIO_MAX).
pub const PRIORITIES: u32 = 32_768;
/// What /proc/sys/fs/mqueue shows: most queues, messages in one, bytes in a message.
pub const QUEUES_MAX: usize = 256;
pub const MESSAGES_MAX: i64 = 10;
pub const SIZE_MAX: i64 = 8192;
/// What CAP_SYS_RESOURCE cannot pass.
const HARD_MESSAGES_MAX: i64 = 65_536;
const HARD_SIZE_MAX: i64 = 16 << 20;
/// What a message costs beside its text, as Linux counts it against RLIMIT_MSGQUEUE.
const MESSAGE_OVERHEAD: u64 = 48 + 48;
/// Longest name.
const NAME_MAX: usize = 255;
/// Bytes of the cookie that comes back through a netlink socket (SIGEV_THREAD).
pub const COOKIE: usize = 32;
const WOKEN_UP: u8 = 1;
const REMOVED: u8 = 2;

/// How the process that registered learns of a message in an empty queue.
pub enum Notice {
    Nothing,
    Signal {
        signal: u32,
        value: u64,
    },
    Thread {
        socket: Arc<dyn Socket>,
        cookie: [u8; COOKIE],
    },
}

struct Registration {
    process: Weak<Process>,
    pid: u32,
    notice: Notice,
}

impl Registration {
    /// Tells the registered process through its socket that the registration ended.
    fn cancel(self) {
        self.through_socket(REMOVED);
    }

    fn through_socket(&self, what: u8) {
        if let Notice::Thread { socket, cookie } = &self.notice {
            let mut bytes = *cookie;
            bytes[COOKIE - 1] = what;
            if let Some(socket) = socket.as_any().downcast_ref::<NetlinkSocket>() {
                socket.deliver(bytes.to_vec());
            }
        }
    }

    fn fire(self, sender: &Thread) {
        if let Notice::Signal { signal, value } = self.notice {
            if let Some(process) = self.process.upgrade().filter(|_| signal != 0) {
                let uid = sender.process.credentials.lock().ruid;
                let mut info = SigInfo::user(signal, SI_MESGQ, sender.process.pid, uid);
                info.fields[1] = value;
                // A full signal queue loses the notification, as on Linux.
                let _ = send::to_process(&process, info, Origin::Inside);
            }
        } else {
            self.through_socket(WOKEN_UP);
        }
    }
}

struct State {
    messages: BTreeMap<u32, VecDeque<Vec<u8>>>,
    count: i64,
    bytes: u64,
    /// Threads that wait for a message: they come before a notification.
    receivers: usize,
    registration: Option<Registration>,
}

/// A queue.
pub struct MessageQueue {
    name: Vec<u8>,
    messages_max: i64,
    size_max: i64,
    mode: u32,
    uid: u32,
    gid: u32,
    /// Bytes charged against a user's RLIMIT_MSGQUEUE.
    charged: u64,
    charged_to: u32,
    state: SpinLock<State>,
    readers: Arc<WaitQueue>,
    writers: Arc<WaitQueue>,
}

/// The queues by name, and what each user's queues may hold at most.
pub struct Names {
    queues: BTreeMap<Vec<u8>, Arc<MessageQueue>>,
    charges: BTreeMap<u32, u64>,
}

pub static NAMES: SpinLock<Names> = SpinLock::new(Names {
    queues: BTreeMap::new(),
    charges: BTreeMap::new(),
});

/// What mq_open makes a queue with: most messages and most bytes in each.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub messages: i64,
    pub bytes: i64,
}

impl Size {
    fn check(self, credentials: &Credentials) -> Result<()> {
        let (messages, bytes) = if credentials.has(CAP_SYS_RESOURCE) {
            (HARD_MESSAGES_MAX, HARD_SIZE_MAX)
        } else {
            (MESSAGES_MAX, SIZE_MAX)
        };
        if (1..=messages).contains(&self.messages) && (1..=bytes).contains(&self.bytes) {
            Ok(())
        } else {
            Err(EINVAL.because("size of a message queue out of range"))
        }
    }

    /// Within the range that `check` accepts, so nothing overflows.
    fn charge(self) -> u64 {
        self.messages as u64 * (self.bytes as u64 + MESSAGE_OVERHEAD)
    }
}

/// A name without the leading slash, which the C library takes off.
fn check_name(name: &[u8]) -> Result<()> {
    match name {
        b"" => Err(ENOENT),
        b"." | b".." => Err(EACCES),
        name if name.contains(&b'/') => Err(EACCES.because("a slash within a queue's name")),
        name if name.len() > NAME_MAX => Err(ENAMETOOLONG),
        _ => Ok(()),
    }
}

/// mq_open's choices.
pub struct Open {
    pub create: bool,
    pub exclusive: bool,
    /// Read (4) and write (2) permission that the access mode needs.
    pub wanted: u32,
    pub mode: u32,
    pub size: Option<Size>,
    /// RLIMIT_MSGQUEUE.
    pub limit: u64,
}

impl Names {
    /// Finds or makes a queue. ENOENT, EEXIST, EACCES, EINVAL, EMFILE, ENOSPC.
    pub fn open(
        &mut self,
        name: &[u8],
        open: &Open,
        credentials: &Credentials,
    ) -> Result<Arc<MessageQueue>> {
        check_name(name)?;
        if let Some(queue) = self.queues.get(name) {
            if open.create && open.exclusive {
                return Err(EEXIST);
            }
            queue.check(credentials, open.wanted)?;
            return Ok(queue.clone());
        }
        if !open.create {
            return Err(ENOENT);
        }
        if let Some(size) = open.size {
            size.check(credentials)?;
        }
        if self.queues.len() >= QUEUES_MAX && !credentials.has(CAP_SYS_RESOURCE) {
            return Err(ENOSPC.because("fs.mqueue.queues_max"));
        }
        let size = open.size.unwrap_or(Size {
            messages: MESSAGES_MAX,
            bytes: SIZE_MAX,
        });
        let charged = size.charge();
        let total = self.charges.entry(credentials.ruid).or_insert(0);
        if total.saturating_add(charged) > open.limit {
            return Err(EMFILE.because("RLIMIT_MSGQUEUE"));
        }
        *total += charged;
        let queue = Arc::new(MessageQueue {
            name: name.to_vec(),
            messages_max: size.messages,
            size_max: size.bytes,
            mode: open.mode & 0o777,
            uid: credentials.fsuid,
            gid: credentials.fsgid,
            charged,
            charged_to: credentials.ruid,
            state: SpinLock::new(State {
                messages: BTreeMap::new(),
                count: 0,
                bytes: 0,
                receivers: 0,
                registration: None,
            }),
            readers: WaitQueue::new(),
            writers: WaitQueue::new(),
        });
        self.queues.insert(name.to_vec(), queue.clone());
        Ok(queue)
    }

    /// Takes the name away; the queue goes with its last user, which the caller may be: drop the
    /// result after the lock. ENOENT, EPERM.
    pub fn unlink(&mut self, name: &[u8], credentials: &Credentials) -> Result<Arc<MessageQueue>> {
        check_name(name)?;
        let queue = self.queues.get(name).ok_or(ENOENT)?;
        // The directory of queues is sticky.
        if queue.uid != credentials.fsuid && !credentials.has(CAP_FOWNER) {
            return Err(EPERM);
        }
        self.queues.remove(name).ok_or(ENOENT)
    }
}

impl Drop for MessageQueue {
    fn drop(&mut self) {
        let mut names = NAMES.lock();
        if let Some(total) = names.charges.get_mut(&self.charged_to) {
            *total = total.saturating_sub(self.charged);
            if *total == 0 {
                names.charges.remove(&self.charged_to);
            }
        }
    }
}

impl MessageQueue {
    /// The queue behind an open file; `None` for another kind of file.
    pub fn of(file: &OpenFile) -> Option<&Arc<MessageQueue>> {
        let file: &QueueFile = file.ops.as_any().downcast_ref()?;
        Some(&file.0)
    }

    fn check(&self, credentials: &Credentials, wanted: u32) -> Result<()> {
        use crate::process::credentials::CAP_DAC_OVERRIDE;
        let shift = if credentials.fsuid == self.uid {
            6
        } else if credentials.in_group(self.gid) {
            3
        } else {
            0
        };
        if credentials.has(CAP_DAC_OVERRIDE) || self.mode >> shift & wanted == wanted {
            Ok(())
        } else {
            Err(EACCES)
        }
    }

    /// Most messages, most bytes in each, messages now.
    pub fn attributes(&self) -> [i64; 3] {
        [self.messages_max, self.size_max, self.state.lock().count]
    }

    /// The longest message.
    pub fn size_max(&self) -> usize {
        self.size_max as usize
    }

    /// mq_timedsend, until the monotonic `deadline`. EAGAIN, ETIMEDOUT, EMSGSIZE.
    pub fn send(
        &self,
        thread: &Arc<Thread>,
        data: Vec<u8>,
        priority: u32,
        deadline: Option<u64>,
        nonblocking: bool,
    ) -> Result<()> {
        if data.len() > self.size_max() {
            return Err(EMSGSIZE);
        }
        let mut data = Some(data);
        let mut put = || {
            let mut state = self.state.lock();
            if state.count >= self.messages_max {
                return None;
            }
            let data = data.take().unwrap_or_default();
            state.bytes += data.len() as u64;
            state.messages.entry(priority).or_default().push_back(data);
            state.count += 1;
            let notify = state.count == 1 && state.receivers == 0;
            Some(if notify {
                state.registration.take()
            } else {
                None
            })
        };
        let registration = if nonblocking {
            put().ok_or(EAGAIN)?
        } else {
            block_on(thread, &self.writers, Events::OUT, deadline, put)?
        };
        if let Some(registration) = registration {
            registration.fire(thread);
        }
        self.readers.wake(Events::IN | Events::RDNORM);
        Ok(())
    }

    /// mq_timedreceive: the oldest message of the highest priority, with it.
    pub fn receive(
        &self,
        thread: &Arc<Thread>,
        deadline: Option<u64>,
        nonblocking: bool,
    ) -> Result<(Vec<u8>, u32)> {
        let take = || {
            let mut state = self.state.lock();
            let mut last = state.messages.last_entry()?;
            let priority = *last.key();
            let data = last.get_mut().pop_front()?;
            if last.get().is_empty() {
                last.remove();
            }
            state.count -= 1;
            state.bytes -= data.len() as u64;
            Some((data, priority))
        };
        let message = if nonblocking {
            take().ok_or(EAGAIN)?
        } else {
            self.state.lock().receivers += 1;
            let result = block_on(thread, &self.readers, Events::IN, deadline, take);
            self.state.lock().receivers -= 1;
            result?
        };
        self.writers.wake(Events::OUT | Events::WRNORM);
        Ok(message)
    }

    /// mq_notify: registers the process; EBUSY while one is registered.
    pub fn register(&self, process: &Arc<Process>, notice: Notice) -> Result<()> {
        let mut state = self.state.lock();
        let taken = state.registration.as_ref();
        if taken.is_some_and(|old| old.process.strong_count() > 0) {
            return Err(EBUSY);
        }
        state.registration = Some(Registration {
            process: Arc::downgrade(process),
            pid: process.pid,
            notice,
        });
        Ok(())
    }

    /// Ends the registration of process `pid`, if it has one.
    pub fn unregister(&self, pid: u32) {
        let mut state = self.state.lock();
        let own = state.registration.as_ref().is_some_and(|r| r.pid == pid);
        let registration = if own { state.registration.take() } else { None };
        drop(state);
        if let Some(registration) = registration {
            registration.cancel();
        }
    }
}

/// An open queue.
pub struct QueueFile(pub Arc<MessageQueue>);

impl FileOps for QueueFile {
    fn as_any(&self) -> &dyn Any {
        self
    }

    /// What /dev/mqueue's files show.
    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        let text = {
            let state = self.0.state.lock();
            let (kind, signal, pid) = match &state.registration {
                None => (0, 0, 0),
                Some(registration) => match &registration.notice {
                    Notice::Nothing => (1, 0, registration.pid),
                    Notice::Signal { signal, .. } => (0, *signal, registration.pid),
                    Notice::Thread { .. } => (2, 0, registration.pid),
                },
            };
            format!(
                "QSIZE:{:<10} NOTIFY:{kind:<5} SIGNO:{signal:<5} NOTIFY_PID:{pid:<6}\n",
                state.bytes
            )
        };
        let mut position = file.position.lock(thread);
        let from = text.as_bytes().get(*position as usize..);
        let put = to.put(from.unwrap_or_default())?;
        *position += put as u64;
        Ok(put)
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table {
            table.register(&self.0.readers, interest);
            table.register(&self.0.writers, interest);
        }
        let count = self.0.state.lock().count;
        let mut events = Events::empty();
        if count > 0 {
            events |= Events::IN | Events::RDNORM;
        }
        if count < self.0.messages_max {
            events |= Events::OUT | Events::WRNORM;
        }
        events
    }

    fn metadata(&self) -> Metadata {
        Metadata {
            mode: 0o100000 | self.0.mode,
            uid: self.0.uid,
            gid: self.0.gid,
            size: 80,
            ..anonymous_metadata()
        }
    }

    fn release(&self, _flags: u32) {
        // Linux ends a registration when its process closes any descriptor of the queue; here when
        // an open file ends whose process is the registered one, or is gone.
        let registered = self.0.state.lock().registration.as_ref().map(|r| r.pid);
        if let Some(pid) = registered {
            let gone = table::process(pid).is_none_or(|process| process.has_ended());
            // The name holds one reference, this file another.
            if gone || Arc::strong_count(&self.0) <= 2 {
                self.0.unregister(pid);
            }
        }
    }

    fn describe(&self) -> String {
        format!("/{}", String::from_utf8_lossy(&self.0.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::ETIMEDOUT;
    use crate::process::tests::process;

    fn open(name: &[u8], credentials: &Credentials) -> Result<Arc<MessageQueue>> {
        let open = Open {
            create: true,
            exclusive: false,
            wanted: 6,
            mode: 0o600,
            size: Some(Size {
                messages: 2,
                bytes: 8,
            }),
            limit: 1000,
        };
        NAMES.lock().open(name, &open, credentials)
    }

    /// The queue is dropped after the lock.
    fn unlink(name: &[u8], credentials: &Credentials) -> Result<()> {
        let queue = NAMES.lock().unlink(name, credentials);
        queue.map(|_| ())
    }

    #[test]
    fn messages_come_by_priority_then_age() {
        let thread = process();
        let root = Credentials::default();
        let queue = open(b"by-priority", &root).unwrap();
        let send = |text: &[u8], priority| queue.send(&thread, text.to_vec(), priority, None, true);
        send(b"low", 1).unwrap();
        send(b"high", 7).unwrap();
        assert_eq!(send(b"more", 0), Err(EAGAIN));
        assert_eq!(send(b"longer than 8", 0), Err(EMSGSIZE));
        let expired = queue.send(&thread, b"late".to_vec(), 0, Some(1), false);
        assert_eq!(expired, Err(ETIMEDOUT));
        let take = || queue.receive(&thread, None, true);
        assert_eq!(take().unwrap(), (b"high".to_vec(), 7));
        send(b"low2", 1).unwrap();
        assert_eq!(take().unwrap(), (b"low".to_vec(), 1));
        assert_eq!(take().unwrap(), (b"low2".to_vec(), 1));
        assert_eq!(take(), Err(EAGAIN));
        unlink(b"by-priority", &root).unwrap();
    }

    #[test]
    fn names_limits_and_rights_are_checked() {
        let root = Credentials::default();
        let other = Credentials::new(65_533, 65_533, Vec::new());
        assert_eq!(open(b"a/b", &root).err(), Some(EACCES));
        assert_eq!(open(&[b'x'; 256], &root).err(), Some(ENAMETOOLONG));
        let queue = open(b"rights", &root).unwrap();
        assert_eq!(open(b"rights", &other).err(), Some(EACCES));
        assert_eq!(unlink(b"rights", &other).err(), Some(EPERM));
        unlink(b"rights", &root).unwrap();
        drop(queue);
        // 2 × (8 + 96) bytes each: the limit of 1000 bytes holds four.
        let queues: Vec<_> = (0..4u8)
            .map(|n| open(&[b'q', n], &other).unwrap())
            .collect();
        assert_eq!(open(b"q5", &other).err(), Some(EMFILE));
        for n in 0..4u8 {
            unlink(&[b'q', n], &other).unwrap();
        }
        drop(queues);
        drop(open(b"q5", &other).unwrap());
        unlink(b"q5", &other).unwrap();
    }

    #[test]
    fn one_process_is_notified_once() {
        let thread = process();
        let root = Credentials::default();
        let queue = open(b"notified", &root).unwrap();
        queue.register(&thread.process, Notice::Nothing).unwrap();
        let again = queue.register(&thread.process, Notice::Nothing);
        assert_eq!(again, Err(EBUSY));
        queue.send(&thread, b"x".to_vec(), 0, None, true).unwrap();
        queue.register(&thread.process, Notice::Nothing).unwrap();
        queue.unregister(thread.process.pid);
        queue.register(&thread.process, Notice::Nothing).unwrap();
        unlink(b"notified", &root).unwrap();
    }
}
