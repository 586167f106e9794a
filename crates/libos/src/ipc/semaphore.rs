//! System V semaphores.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{ALTER, IPC_NOWAIT, OBJECTS_MAX, Object, Permission, READ, Registry, seconds};
use crate::errno::{EAGAIN, EFBIG, EIDRM, EINTR, EINVAL, ENOSPC, ERANGE, ERESTARTSYS, ETIMEDOUT};
use crate::fs::procfs::Setting;
use crate::process::Process;
use crate::process::credentials::Credentials;
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, ThreadWaker, WaitQueue, sleep_once};
use crate::{Result, Thread};

/// Most semaphores in a set, in all sets, operations in a call: the first numbers of
/// /proc/sys/kernel/sem.
pub static SET_MAX: Setting = Setting::new(32_000, i32::MAX as u64);
pub static ALL_MAX: Setting = Setting::new(1_024_000_000, i32::MAX as u64);
pub static OPERATIONS_MAX: Setting = Setting::new(500, i32::MAX as u64);
/// Highest value.
pub const VALUE_MAX: i32 = 32_767;
/// What bounds kernel memory, whatever the settings say: semaphores in all, in a set, operations in
/// a call.
const TOTAL_BOUND: u64 = 1 << 20;
const SET_BOUND: u64 = 32_000;
const OPERATIONS_BOUND: u64 = 4096;

const SEM_UNDO: u32 = 0o10000;

/// `struct sembuf`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Operation {
    pub index: u16,
    pub change: i16,
    pub flags: u16,
}

/// A set of semaphores.
pub struct Set {
    state: SpinLock<State>,
    queue: Arc<WaitQueue>,
}

#[derive(Clone)]
struct Semaphore {
    value: i32,
    /// Who changed it last.
    pid: u32,
}

struct State {
    permission: Permission,
    semaphores: Vec<Semaphore>,
    /// What to add when a process ends (SEM_UNDO), by process.
    undo: BTreeMap<u32, Vec<i32>>,
    /// Waiters: semaphore, and whether it waits for zero.
    waiting: Vec<(u16, bool)>,
    operated: u64,
    changed: u64,
    removed: bool,
}

pub static SETS: Registry<Set> = Registry::new(&SETS_MAX);
/// Most sets: the last number of /proc/sys/kernel/sem.
pub static SETS_MAX: Setting = Setting::new(OBJECTS_MAX, 32_768);
static TOTAL: AtomicUsize = AtomicUsize::new(0);
/// Sets with undo entries have existed: ends of processes look for them.
static UNDO_USED: AtomicUsize = AtomicUsize::new(0);

impl Object for Set {
    fn permission(&self) -> Permission {
        self.state.lock().permission
    }

    fn set_sequence(&self, sequence: u16) {
        self.state.lock().permission.sequence = sequence;
    }

    fn removed(&self) {
        self.state.lock().removed = true;
        self.queue.wake(Events::empty());
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        TOTAL.fetch_sub(self.len(), Ordering::Relaxed);
    }
}

fn limits() -> [&'static Setting; 4] {
    [&SET_MAX, &ALL_MAX, &OPERATIONS_MAX, &SETS_MAX]
}

/// /proc/sys/kernel/sem.
pub fn limits_text() -> String {
    let [set, all, operations, sets] = limits().map(Setting::value);
    format!("{set}\t{all}\t{operations}\t{sets}\n")
}

/// Writes /proc/sys/kernel/sem: the first numbers, or all.
pub fn set_limits(bytes: &[u8]) -> Result<()> {
    let words = bytes.split(u8::is_ascii_whitespace);
    let numbers = words.filter(|word| !word.is_empty());
    let mut settings = limits().into_iter().zip(numbers);
    settings.try_for_each(|(setting, number)| setting.set(number))
}

/// Most operations in a call.
pub fn most_operations() -> usize {
    OPERATIONS_MAX.value().min(OPERATIONS_BOUND) as usize
}

/// What an attempt at a list of operations comes to.
enum Outcome {
    Done,
    Failed(crate::Errno),
    /// This semaphore keeps it; whether it waits for zero; whether it does not want to wait.
    Blocked {
        index: u16,
        zero: bool,
        no_wait: bool,
    },
}

impl State {
    fn attempt(&mut self, operations: &[Operation], pid: u32) -> Outcome {
        let mut values: Vec<i32> = Vec::new();
        // Values change only if all operations succeed: later ones see the earlier.
        let value_of = |values: &[i32], semaphores: &[Semaphore], at: usize| {
            let index = operations[at].index;
            let earlier = operations[..at].iter().rposition(|o| o.index == index);
            earlier.map_or(semaphores[usize::from(index)].value, |at| values[at])
        };
        for (at, operation) in operations.iter().enumerate() {
            let value = value_of(&values, &self.semaphores, at);
            let change = i32::from(operation.change);
            let blocked = |zero| Outcome::Blocked {
                index: operation.index,
                zero,
                no_wait: u32::from(operation.flags) & IPC_NOWAIT != 0,
            };
            if change == 0 && value != 0 {
                return blocked(true);
            }
            if value + change < 0 {
                return blocked(false);
            }
            if value + change > VALUE_MAX {
                return Outcome::Failed(ERANGE);
            }
            values.push(value + change);
        }
        for (operation, value) in operations.iter().zip(values) {
            let index = usize::from(operation.index);
            self.semaphores[index] = Semaphore { value, pid };
            if u32::from(operation.flags) & SEM_UNDO != 0 {
                let count = self.semaphores.len();
                UNDO_USED.store(1, Ordering::SeqCst);
                let undo = self.undo.entry(pid).or_insert_with(|| vec![0; count]);
                undo[index] -= i32::from(operation.change);
            }
        }
        self.operated = seconds();
        Outcome::Done
    }
}

impl Set {
    /// A new set; EINVAL for a bad size, ENOSPC.
    pub fn new(permission: Permission, count: usize) -> Result<Arc<Set>> {
        let most = SET_MAX.value().min(SET_BOUND) as usize;
        if count == 0 || count > most {
            return Err(EINVAL.because("bad number of semaphores"));
        }
        let total = TOTAL.fetch_add(count, Ordering::Relaxed);
        if total + count > ALL_MAX.value().min(TOTAL_BOUND) as usize {
            TOTAL.fetch_sub(count, Ordering::Relaxed);
            return Err(ENOSPC.because("too many semaphores"));
        }
        Ok(Arc::new(Set {
            state: SpinLock::new(State {
                permission,
                semaphores: vec![Semaphore { value: 0, pid: 0 }; count],
                undo: BTreeMap::new(),
                waiting: Vec::new(),
                operated: 0,
                changed: seconds(),
                removed: false,
            }),
            queue: WaitQueue::new(),
        }))
    }

    /// Number of semaphores.
    pub fn len(&self) -> usize {
        self.state.lock().semaphores.len()
    }

    /// Sets always have semaphores; for completeness.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// semtimedop: all operations at once, as soon as all are possible. EAGAIN at the monotonic
    /// deadline, EINTR, EIDRM, EFBIG, ERANGE, EACCES.
    pub fn operate(
        &self,
        thread: &Arc<Thread>,
        operations: &[Operation],
        deadline: Option<u64>,
    ) -> Result<()> {
        let pid = thread.process.pid;
        {
            let state = self.state.lock();
            let count = state.semaphores.len();
            if operations.iter().any(|o| usize::from(o.index) >= count) {
                return Err(EFBIG.because("no such semaphore in the set"));
            }
            let alters = operations.iter().any(|o| o.change != 0);
            let credentials = thread.process.credentials.lock().clone();
            state
                .permission
                .check(&credentials, if alters { ALTER } else { READ })?;
        }
        let mut registered: Option<PollTable> = None;
        loop {
            let seen = thread.event_count();
            let waiter = {
                let mut state = self.state.lock();
                if state.removed {
                    return Err(EIDRM);
                }
                match state.attempt(operations, pid) {
                    Outcome::Done => {
                        drop(state);
                        self.queue.wake(Events::empty());
                        return Ok(());
                    }
                    Outcome::Failed(error) => return Err(error),
                    Outcome::Blocked { no_wait: true, .. } => return Err(EAGAIN),
                    Outcome::Blocked { index, zero, .. } => (index, zero),
                }
            };
            if registered.is_none() {
                // Registered before it looks again: no wake-up is lost.
                let mut table = PollTable::new(ThreadWaker::new(thread));
                table.register(&self.queue, Events::empty());
                registered = Some(table);
                continue;
            }
            self.state.lock().waiting.push(waiter);
            let result = sleep_once(thread, seen, deadline);
            let mut state = self.state.lock();
            if let Some(at) = state.waiting.iter().position(|other| *other == waiter) {
                state.waiting.swap_remove(at);
            }
            let removed = state.removed;
            drop(state);
            match result {
                _ if removed => return Err(EIDRM),
                Ok(()) => {}
                Err(error) if error == ETIMEDOUT => return Err(EAGAIN),
                Err(error) if error == ERESTARTSYS => return Err(EINTR),
                Err(error) => return Err(error),
            }
        }
    }

    fn with<T>(
        &self,
        credentials: &Credentials,
        wanted: u32,
        act: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.state.lock();
        if state.removed {
            return Err(EIDRM);
        }
        state.permission.check(credentials, wanted)?;
        act(&mut state)
    }

    /// GETVAL and its relatives for one semaphore: value, last pid, waiters for more, for zero.
    pub fn get(&self, credentials: &Credentials, index: i32) -> Result<[usize; 4]> {
        self.with(credentials, READ, |state| {
            let at = usize::try_from(index).map_err(|_| EINVAL)?;
            let semaphore = state.semaphores.get(at).ok_or(EINVAL)?;
            let waiters = |zero: bool| {
                state
                    .waiting
                    .iter()
                    .filter(|w| usize::from(w.0) == at && w.1 == zero)
                    .count()
            };
            let (value, pid) = (semaphore.value as usize, semaphore.pid as usize);
            Ok([value, pid, waiters(false), waiters(true)])
        })
    }

    /// GETALL.
    pub fn values(&self, credentials: &Credentials) -> Result<Vec<u16>> {
        self.with(credentials, READ, |state| {
            Ok(state
                .semaphores
                .iter()
                .map(|semaphore| semaphore.value as u16)
                .collect())
        })
    }

    /// SETVAL (with an index) or SETALL.
    pub fn set(
        &self,
        credentials: &Credentials,
        pid: u32,
        first: usize,
        values: &[i32],
    ) -> Result<()> {
        self.with(credentials, ALTER, |state| {
            let range = first..first + values.len();
            if values.iter().any(|value| !(0..=VALUE_MAX).contains(value)) {
                return Err(ERANGE);
            }
            let chosen = state.semaphores.get_mut(range.clone()).ok_or(EINVAL)?;
            for (semaphore, &value) in chosen.iter_mut().zip(values) {
                *semaphore = Semaphore { value, pid };
            }
            for undo in state.undo.values_mut() {
                undo[range.clone()].fill(0);
            }
            state.changed = seconds();
            Ok(())
        })?;
        self.queue.wake(Events::empty());
        Ok(())
    }

    /// IPC_SET.
    pub fn set_permission(&self, credentials: &Credentials, bytes: &[u8; 48]) -> Result<()> {
        let mut state = self.state.lock();
        state.permission.check_owner(credentials)?;
        state.permission.set(bytes);
        state.changed = seconds();
        Ok(())
    }

    /// `struct semid64_ds`.
    pub fn encode(&self) -> [u8; 104] {
        let state = self.state.lock();
        let mut out = [0; 104];
        out[..48].copy_from_slice(&state.permission.encode());
        out[48..56].copy_from_slice(&state.operated.to_le_bytes());
        out[64..72].copy_from_slice(&state.changed.to_le_bytes());
        out[80..88].copy_from_slice(&(state.semaphores.len() as u64).to_le_bytes());
        out
    }
}

/// Whether something that a process did will be taken back when it ends (SEM_UNDO).
pub fn has_undo(process: &Process) -> bool {
    let holds = |set: &Arc<Set>| set.state.lock().undo.contains_key(&process.pid);
    UNDO_USED.load(Ordering::SeqCst) != 0 && SETS.all().0.iter().any(holds)
}

/// A process ends: what it did with SEM_UNDO is taken back.
pub fn process_ends(process: &Process) {
    if UNDO_USED.load(Ordering::SeqCst) == 0 {
        return;
    }
    for set in SETS.all().0 {
        let mut state = set.state.lock();
        let Some(undo) = state.undo.remove(&process.pid) else {
            continue;
        };
        for (semaphore, change) in state.semaphores.iter_mut().zip(undo) {
            if change != 0 {
                semaphore.value = (semaphore.value + change).clamp(0, VALUE_MAX);
                semaphore.pid = process.pid;
            }
        }
        drop(state);
        set.queue.wake(Events::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::process;

    fn operation(index: u16, change: i16, flags: u32) -> Operation {
        Operation {
            index,
            change,
            flags: flags as u16,
        }
    }

    #[test]
    fn all_operations_or_none() {
        let thread = process();
        let root = Credentials::default();
        let set = Set::new(Permission::default(), 2).unwrap();
        set.set(&root, 1, 0, &[1, 0]).unwrap();
        let both = [operation(0, -1, 0), operation(1, -1, IPC_NOWAIT)];
        assert_eq!(set.operate(&thread, &both, None), Err(EAGAIN));
        assert_eq!(set.values(&root).unwrap(), [1, 0]);
        let twice = [
            operation(0, -1, 0),
            operation(0, 0, IPC_NOWAIT),
            operation(1, 3, 0),
        ];
        set.operate(&thread, &twice, None).unwrap();
        assert_eq!(set.values(&root).unwrap(), [0, 3]);
        assert_eq!(
            set.operate(&thread, &[operation(2, 1, 0)], None),
            Err(EFBIG)
        );
        let much = [operation(1, 32_767, 0)];
        assert_eq!(set.operate(&thread, &much, None), Err(ERANGE));
    }

    #[test]
    fn waiters_wake_and_undo_is_taken_back() {
        let (thread, other) = (process(), process());
        let root = Credentials::default();
        let set = Set::new(Permission::default(), 1).unwrap();
        let waiter = {
            let (set, thread) = (set.clone(), thread.clone());
            std::thread::spawn(move || set.operate(&thread, &[operation(0, -2, 0)], None))
        };
        while set.get(&root, 0).unwrap()[2] == 0 {
            std::thread::yield_now();
        }
        set.operate(&other, &[operation(0, 3, SEM_UNDO)], None)
            .unwrap();
        waiter.join().unwrap().unwrap();
        assert_eq!(set.values(&root).unwrap(), [1]);
        let undone = set.state.lock().undo.remove(&other.process.pid).unwrap();
        assert_eq!(undone, [-3]);
        let waiter = {
            let (set, thread) = (set.clone(), thread.clone());
            std::thread::spawn(move || set.operate(&thread, &[operation(0, 0, 0)], None))
        };
        set.removed();
        assert_eq!(waiter.join().unwrap(), Err(EIDRM));
    }
}
