//! System V message queues.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{ALTER, IPC_NOWAIT, OBJECTS_MAX, Object, Permission, READ, Registry, seconds};
use crate::errno::{E2BIG, EAGAIN, EIDRM, EINVAL, ENOMSG, EPERM, ERESTARTNOHAND, ERESTARTSYS};
use crate::fs::procfs::Setting;
use crate::process::credentials::Credentials;
use crate::sync::SpinLock;
use crate::sync::wait::{Events, WaitQueue, block_on};
use crate::{Result, Thread};

/// Longest message, and most bytes in a queue (Linux's defaults).
pub const MESSAGE_MAX: usize = 8192;
pub const QUEUE_BYTES: u64 = 16_384;

pub const MSG_NOERROR: u32 = 0o10000;
const MSG_EXCEPT: u32 = 0o20000;
const MSG_COPY: u32 = 0o40000;

/// A message.
pub struct Message {
    pub kind: i64,
    pub data: Vec<u8>,
}

/// A queue.
pub struct Queue {
    state: SpinLock<State>,
    readers: Arc<WaitQueue>,
    writers: Arc<WaitQueue>,
}

struct State {
    permission: Permission,
    messages: VecDeque<Message>,
    bytes: u64,
    bytes_max: u64,
    sent: u64,
    received: u64,
    changed: u64,
    last_sender: u32,
    last_receiver: u32,
    removed: bool,
}

pub static QUEUES: Registry<Queue> = Registry::new(&QUEUES_MAX);
/// Most queues (/proc/sys/kernel/msgmni).
pub static QUEUES_MAX: Setting = Setting::new(OBJECTS_MAX, OBJECTS_MAX);

impl Object for Queue {
    fn permission(&self) -> Permission {
        self.state.lock().permission
    }

    fn set_sequence(&self, sequence: u16) {
        self.state.lock().permission.sequence = sequence;
    }

    fn removed(&self) {
        self.state.lock().removed = true;
        self.readers.wake(Events::empty());
        self.writers.wake(Events::empty());
    }
}

impl State {
    /// The position of the message that a receiver of `kind` gets.
    fn choose(&self, kind: i64, flags: u32) -> Option<usize> {
        match kind {
            0 => (!self.messages.is_empty()).then_some(0),
            kind if kind > 0 && flags & MSG_EXCEPT != 0 => self
                .messages
                .iter()
                .position(|message| message.kind != kind),
            kind if kind > 0 => self
                .messages
                .iter()
                .position(|message| message.kind == kind),
            kind => {
                let limit = kind.checked_neg().unwrap_or(i64::MAX);
                let within = self
                    .messages
                    .iter()
                    .enumerate()
                    .filter(|(_, m)| m.kind <= limit);
                within
                    .min_by_key(|(at, message)| (message.kind, *at))
                    .map(|(at, _)| at)
            }
        }
    }
}

/// Message calls are never restarted after a handler (signal(7)).
fn not_restarted<T>(result: Result<T>) -> Result<T> {
    result.map_err(|error| {
        if error == ERESTARTSYS {
            ERESTARTNOHAND
        } else {
            error
        }
    })
}

impl Queue {
    pub fn new(permission: Permission) -> Arc<Queue> {
        Arc::new(Queue {
            state: SpinLock::new(State {
                permission,
                messages: VecDeque::new(),
                bytes: 0,
                bytes_max: QUEUE_BYTES,
                sent: 0,
                received: 0,
                changed: seconds(),
                last_sender: 0,
                last_receiver: 0,
                removed: false,
            }),
            readers: WaitQueue::new(),
            writers: WaitQueue::new(),
        })
    }

    fn check(&self, thread: &Thread, wanted: u32) -> Result<()> {
        let credentials = thread.process.credentials.lock().clone();
        self.state.lock().permission.check(&credentials, wanted)
    }

    /// msgsnd. EAGAIN with IPC_NOWAIT when the queue is full; EIDRM, EACCES.
    pub fn send(&self, thread: &Arc<Thread>, message: Message, flags: u32) -> Result<()> {
        self.check(thread, ALTER)?;
        let size = message.data.len() as u64;
        let mut message = Some(message);
        let result = block_on(thread, &self.writers, Events::empty(), None, || {
            let mut state = self.state.lock();
            if state.removed {
                return Some(Err(EIDRM));
            }
            let fits = state.bytes + size <= state.bytes_max
                && (state.messages.len() as u64) < state.bytes_max;
            if !fits {
                return (flags & IPC_NOWAIT != 0).then_some(Err(EAGAIN));
            }
            state.bytes += size;
            state.sent = seconds();
            state.last_sender = thread.process.pid;
            state.messages.extend(message.take());
            Some(Ok(()))
        });
        not_restarted(result)??;
        self.readers.wake(Events::empty());
        Ok(())
    }

    /// msgrcv: a message of at most `size` bytes. ENOMSG with IPC_NOWAIT; E2BIG, EIDRM, EACCES.
    pub fn receive(
        &self,
        thread: &Arc<Thread>,
        size: usize,
        kind: i64,
        flags: u32,
    ) -> Result<Message> {
        if flags & MSG_COPY != 0 && (flags & MSG_EXCEPT != 0 || flags & IPC_NOWAIT == 0) {
            return Err(EINVAL.because("MSG_COPY needs IPC_NOWAIT and excludes MSG_EXCEPT"));
        }
        self.check(thread, READ)?;
        if flags & MSG_COPY != 0 {
            return self.copy(size, kind, flags);
        }
        let result = block_on(thread, &self.readers, Events::empty(), None, || {
            let mut state = self.state.lock();
            if state.removed {
                return Some(Err(EIDRM));
            }
            let Some(at) = state.choose(kind, flags) else {
                return (flags & IPC_NOWAIT != 0).then_some(Err(ENOMSG));
            };
            if state.messages[at].data.len() > size && flags & MSG_NOERROR == 0 {
                return Some(Err(E2BIG));
            }
            let message = state.messages.remove(at)?;
            state.bytes -= message.data.len() as u64;
            state.received = seconds();
            state.last_receiver = thread.process.pid;
            Some(Ok(message))
        });
        let mut message = not_restarted(result)??;
        message.data.truncate(size);
        self.writers.wake(Events::empty());
        Ok(message)
    }

    /// MSG_COPY: the message at a position, which stays. ENOMSG where there is none.
    fn copy(&self, size: usize, position: i64, flags: u32) -> Result<Message> {
        let state = self.state.lock();
        if state.removed {
            return Err(EIDRM);
        }
        let at = usize::try_from(position).map_err(|_| ENOMSG)?;
        let message = state.messages.get(at).ok_or(ENOMSG)?;
        if message.data.len() > size && flags & MSG_NOERROR == 0 {
            return Err(E2BIG);
        }
        let mut data = message.data.clone();
        data.truncate(size);
        let kind = message.kind;
        Ok(Message { kind, data })
    }

    /// IPC_SET: owner, mode and size, as the bytes of a `struct msqid64_ds` say.
    pub fn set(&self, credentials: &Credentials, bytes: &[u8; 120]) -> Result<()> {
        let mut size = [0; 8];
        size.copy_from_slice(&bytes[88..96]);
        let size = u64::from_le_bytes(size);
        let mut permission = [0; 48];
        permission.copy_from_slice(&bytes[..48]);
        let mut state = self.state.lock();
        state.permission.check_owner(credentials)?;
        // More than the default needs CAP_SYS_RESOURCE.
        if size > QUEUE_BYTES && !credentials.has(crate::process::credentials::CAP_SYS_RESOURCE) {
            return Err(EPERM.because("more bytes than kernel.msgmnb"));
        }
        if size == 0 {
            return Err(EINVAL.because("a queue for no bytes"));
        }
        state.permission.set(&permission);
        state.bytes_max = size;
        state.changed = seconds();
        drop(state);
        self.writers.wake(Events::empty());
        Ok(())
    }

    /// Messages and bytes in the queue.
    pub fn usage(&self) -> (usize, u64) {
        let state = self.state.lock();
        (state.messages.len(), state.bytes)
    }

    /// `struct msqid64_ds`.
    pub fn encode(&self) -> [u8; 120] {
        let state = self.state.lock();
        let mut out = [0; 120];
        out[..48].copy_from_slice(&state.permission.encode());
        let words = [
            state.sent,
            state.received,
            state.changed,
            state.bytes,
            state.messages.len() as u64,
            state.bytes_max,
            u64::from(state.last_sender) | u64::from(state.last_receiver) << 32,
        ];
        for (at, word) in words.iter().enumerate() {
            out[48 + at * 8..56 + at * 8].copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::process;

    #[test]
    fn messages_are_chosen_by_kind() {
        let thread = process();
        let queue = Queue::new(Permission::default());
        for (kind, text) in [(5, "five"), (2, "two"), (2, "again"), (9, "nine")] {
            let data = text.as_bytes().to_vec();
            queue.send(&thread, Message { kind, data }, 0).unwrap();
        }
        let take = |kind, flags| {
            let result = queue.receive(&thread, 100, kind, flags | IPC_NOWAIT);
            result.map(|message| alloc::string::String::from_utf8(message.data).unwrap())
        };
        assert_eq!(take(-5, 0).unwrap(), "two");
        assert_eq!(take(5, MSG_EXCEPT).unwrap(), "again");
        assert_eq!(take(7, 0), Err(ENOMSG));
        assert_eq!(take(9, 0).unwrap(), "nine");
        assert_eq!(queue.receive(&thread, 2, 0, 0).map(|_| ()), Err(E2BIG));
        assert_eq!(
            queue.receive(&thread, 2, 0, MSG_NOERROR).unwrap().data,
            b"fi"
        );
        assert_eq!(queue.usage(), (0, 0));
        let big = || Message {
            kind: 1,
            data: alloc::vec![0; MESSAGE_MAX],
        };
        queue.send(&thread, big(), IPC_NOWAIT).unwrap();
        queue.send(&thread, big(), IPC_NOWAIT).unwrap();
        assert_eq!(queue.send(&thread, big(), IPC_NOWAIT), Err(EAGAIN));
    }
}
