//! System V semaphores and message queues, POSIX message queues. (Shared memory is part of `mm`.)
//!
//! - [`Registry`]: objects by key and id. [`Permission`]: `struct ipc64_perm` and its checks.
//! - [`semaphore`], [`message`]: the two kinds. [`mqueue`]: POSIX's.
//!
//! Lock order: registry → object → wait queue. User memory is touched under neither.

pub mod message;
pub mod mqueue;
pub mod semaphore;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicI32, Ordering};

use crate::Result;
use crate::errno::{EACCES, EEXIST, EIDRM, EINVAL, ENOENT, ENOSPC, EPERM};
use crate::fs::procfs::Setting;
use crate::platform::platform;
use crate::process::credentials::Credentials;
use crate::sync::SpinLock;

pub const IPC_PRIVATE: i32 = 0;
pub const IPC_CREAT: u32 = 0o1000;
pub const IPC_EXCL: u32 = 0o2000;
pub const IPC_NOWAIT: u32 = 0o4000;

pub const IPC_RMID: i32 = 0;
pub const IPC_SET: i32 = 1;
pub const IPC_STAT: i32 = 2;
pub const IPC_INFO: i32 = 3;

/// Read permission, and permission to change.
pub const READ: u32 = 4;
pub const ALTER: u32 = 2;

/// Most objects of a kind: bounds kernel memory.
pub const OBJECTS_MAX: u64 = 32_000;
/// Bits of an id that are the slot's index; the rest counts reuses.
const INDEX_BITS: u32 = 15;

/// Who owns an object and who may use it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Permission {
    pub key: i32,
    pub uid: u32,
    pub gid: u32,
    pub creator_uid: u32,
    pub creator_gid: u32,
    pub mode: u32,
    pub sequence: u16,
}

impl Permission {
    fn new(key: i32, flags: u32, credentials: &Credentials) -> Permission {
        Permission {
            key,
            uid: credentials.euid,
            gid: credentials.egid,
            creator_uid: credentials.euid,
            creator_gid: credentials.egid,
            mode: flags & 0o777,
            sequence: 0,
        }
    }

    /// EACCES unless all of `wanted` ([`READ`], [`ALTER`]) is allowed.
    pub fn check(&self, credentials: &Credentials, wanted: u32) -> Result<()> {
        let shift = if self.is_owner(credentials) {
            6
        } else if [self.gid, self.creator_gid]
            .iter()
            .any(|&gid| credentials.egid == gid || credentials.groups.contains(&gid))
        {
            3
        } else {
            0
        };
        // CAP_IPC_OWNER is not among a container's capabilities, but root owns what matters.
        if self.mode >> shift & wanted == wanted || credentials.euid == 0 {
            Ok(())
        } else {
            Err(EACCES.because("the object's permissions"))
        }
    }

    fn is_owner(&self, credentials: &Credentials) -> bool {
        [self.uid, self.creator_uid].contains(&credentials.euid)
    }

    /// EPERM unless the caller owns or made it.
    pub fn check_owner(&self, credentials: &Credentials) -> Result<()> {
        if self.is_owner(credentials) || credentials.euid == 0 {
            Ok(())
        } else {
            Err(EPERM)
        }
    }

    /// IPC_SET: owner and mode from the bytes of a `struct ipc64_perm`.
    pub fn set(&mut self, bytes: &[u8; 48]) {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        (self.uid, self.gid) = (word(4), word(8));
        self.mode = self.mode & !0o777 | word(20) & 0o777;
    }

    /// `struct ipc64_perm`.
    pub fn encode(&self) -> [u8; 48] {
        let mut out = [0; 48];
        let words = [
            self.key as u32,
            self.uid,
            self.gid,
            self.creator_uid,
            self.creator_gid,
            self.mode,
            u32::from(self.sequence),
        ];
        for (at, word) in words.iter().enumerate() {
            out[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

/// What a registry needs of its objects.
pub trait Object: Send + Sync {
    fn permission(&self) -> Permission;
    fn set_sequence(&self, sequence: u16);
    /// The object is gone: whoever waits gets EIDRM.
    fn removed(&self);
}

/// Objects of one kind.
pub struct Registry<T> {
    slots: SpinLock<Vec<Slot<T>>>,
    most: &'static Setting,
    /// The id that the next object shall have (/proc/sys/kernel/msg_next_id, sem_next_id).
    pub next: NextId,
}

/// An id that the next object shall have, if it is free: what checkpointing tools ask for. Used
/// once.
pub struct NextId(AtomicI32);

impl NextId {
    pub const fn new() -> NextId {
        NextId(AtomicI32::new(-1))
    }

    /// -1 where none was asked for.
    pub fn get(&self) -> i32 {
        self.0.load(Ordering::Relaxed)
    }

    /// EINVAL for a negative id.
    pub fn set(&self, id: i32) -> Result<()> {
        if id < 0 {
            return Err(EINVAL.because("ids are not negative"));
        }
        self.0.store(id, Ordering::Relaxed);
        Ok(())
    }

    /// The wish, which is then used up.
    pub fn take(&self) -> Option<i32> {
        let id = self.0.swap(-1, Ordering::Relaxed);
        (id >= 0).then_some(id)
    }
}

impl Default for NextId {
    fn default() -> NextId {
        NextId::new()
    }
}

struct Slot<T> {
    sequence: u16,
    object: Option<Arc<T>>,
}

impl<T: Object> Registry<T> {
    /// A registry of at most as many objects as `most` says.
    pub const fn new(most: &'static Setting) -> Registry<T> {
        Registry {
            most,
            slots: SpinLock::new(Vec::new()),
            next: NextId::new(),
        }
    }

    /// semget, msgget: the id of the object with a key, or of a new one made by `make`; `check`
    /// looks at an existing one (its size, say).
    pub fn get(
        &self,
        key: i32,
        flags: u32,
        credentials: &Credentials,
        check: impl FnOnce(&T) -> Result<()>,
        make: impl FnOnce(Permission) -> Result<Arc<T>>,
    ) -> Result<usize> {
        let mut slots = self.slots.lock();
        if key != IPC_PRIVATE {
            let found = slots.iter().enumerate().find_map(|(index, slot)| {
                let object = slot.object.as_ref()?;
                (object.permission().key == key).then(|| (index, slot.sequence, object.clone()))
            });
            match found {
                Some(_) if flags & (IPC_CREAT | IPC_EXCL) == IPC_CREAT | IPC_EXCL => {
                    return Err(EEXIST);
                }
                Some((index, sequence, object)) => {
                    check(&object)?;
                    let wanted = (flags | flags >> 3 | flags >> 6) & (READ | ALTER);
                    object.permission().check(credentials, wanted)?;
                    return Ok(id(index, sequence));
                }
                None if flags & IPC_CREAT == 0 => return Err(ENOENT),
                None => {}
            }
        }
        let object = make(Permission::new(key, flags, credentials))?;
        let wish = self.next.take().map(|id| id as u32);
        let from = wish.map_or(0, |id| id & ((1 << INDEX_BITS) - 1)) as usize;
        let free = slots.iter().skip(from).position(|s| s.object.is_none());
        let index = free.map_or(slots.len().max(from), |after| from + after);
        let used = slots.iter().filter(|slot| slot.object.is_some()).count() as u64;
        if used >= self.most.value() || index as u64 >= OBJECTS_MAX {
            return Err(ENOSPC.because("too many System V objects"));
        }
        while slots.len() <= index {
            slots.push(Slot {
                sequence: 0,
                object: None,
            });
        }
        let slot = &mut slots[index];
        if let Some(id) = wish {
            slot.sequence = (id >> INDEX_BITS) as u16;
        }
        object.set_sequence(slot.sequence);
        slot.object = Some(object);
        Ok(id(index, slot.sequence))
    }

    /// The object with an id; EINVAL, or EIDRM for one that is gone.
    pub fn find(&self, id: i32) -> Result<Arc<T>> {
        let slots = self.slots.lock();
        lookup(&slots, id).map(|(_, object)| object)
    }

    /// By index, as SEM_STAT and MSG_STAT count: its id and the object.
    pub fn by_index(&self, index: i32) -> Result<(usize, Arc<T>)> {
        let slots = self.slots.lock();
        let index = usize::try_from(index).map_err(|_| EINVAL)?;
        let slot = slots.get(index).ok_or(EINVAL)?;
        let object = slot.object.clone().ok_or(EINVAL)?;
        Ok((id(index, slot.sequence), object))
    }

    /// Takes an object out, if `check` allows it.
    pub fn remove(&self, id: i32, check: impl FnOnce(&T) -> Result<()>) -> Result<()> {
        let object = {
            let mut slots = self.slots.lock();
            let (index, object) = lookup(&slots, id)?;
            check(&object)?;
            let slot = &mut slots[index];
            slot.object = None;
            slot.sequence = (slot.sequence + 1) & 0x7fff;
            object
        };
        object.removed();
        Ok(())
    }

    /// All objects with their ids, for /proc/sysvipc.
    pub fn list(&self) -> Vec<(usize, Arc<T>)> {
        let slots = self.slots.lock();
        let used = slots.iter().enumerate();
        used.filter_map(|(index, slot)| Some((id(index, slot.sequence), slot.object.clone()?)))
            .collect()
    }

    /// All objects, and the highest index in use.
    pub fn all(&self) -> (Vec<Arc<T>>, usize) {
        let slots = self.slots.lock();
        let highest = slots
            .iter()
            .rposition(|slot| slot.object.is_some())
            .unwrap_or(0);
        (
            slots
                .iter()
                .filter_map(|slot| slot.object.clone())
                .collect(),
            highest,
        )
    }
}

fn id(index: usize, sequence: u16) -> usize {
    usize::from(sequence) << INDEX_BITS | index
}

fn lookup<T>(slots: &[Slot<T>], id: i32) -> Result<(usize, Arc<T>)> {
    let id = u32::try_from(id).map_err(|_| EINVAL.because("negative id"))?;
    let index = (id & ((1 << INDEX_BITS) - 1)) as usize;
    let slot = slots.get(index).ok_or(EINVAL.because("no such id"))?;
    let object = slot.object.clone().ok_or(EINVAL.because("no such id"))?;
    if u32::from(slot.sequence) != id >> INDEX_BITS {
        return Err(EIDRM);
    }
    Ok((index, object))
}

/// Now, as the status structures hold it.
pub fn seconds() -> u64 {
    platform().realtime() / crate::time::SECOND_NS
}

#[cfg(test)]
mod tests {
    use super::message::Queue;
    use super::*;

    #[test]
    fn an_id_can_be_chosen_once() {
        crate::testing::platform();
        let queues: Registry<Queue> = Registry::new(&message::QUEUES_MAX);
        let root = Credentials::new(0, 0, Vec::new());
        let make = || {
            let new = |permission| Ok(Queue::new(permission));
            queues.get(IPC_PRIVATE, 0, &root, |_| Ok(()), new).unwrap()
        };
        assert_eq!(queues.next.set(-1), Err(EINVAL));
        let wanted = 7 << INDEX_BITS | 5;
        queues.next.set(wanted as i32).unwrap();
        assert_eq!(make(), wanted);
        assert_eq!(queues.next.get(), -1);
        assert_eq!(make(), 0);
        // What is taken goes to another.
        queues.next.set(wanted as i32).unwrap();
        assert_eq!(make(), 7 << INDEX_BITS | 6);
        assert_eq!(queues.find(wanted as i32).map(|_| ()), Ok(()));
    }
}
