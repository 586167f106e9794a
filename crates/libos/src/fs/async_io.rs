//! Signals about files: whom F_SETOWN names, which signal F_SETSIG chose, and signal-driven I/O
//! (O_ASYNC).
//!
//! An open file with O_ASYNC is registered with its own wait queues; the waker sends the signal.
//! Wakers run under a queue's lock, and sending a signal takes process locks and the signal
//! queue's: so only pipes, sockets and terminals, which signals never wake, can be O_ASYNC.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicI32, Ordering};

use super::file::{OpenFile, flags};
use crate::Result;
use crate::errno::{EINVAL, EPERM, ESRCH};
use crate::process::credentials::Credentials;
use crate::process::{Process, table};
use crate::signal::SigInfo;
use crate::signal::send::{Origin, to_process, to_thread};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, Wake};

const SIGIO: u32 = 29;
const SIGURG: u32 = 23;
/// si_code: input, output.
const POLL_IN: i32 = 1;
const POLL_OUT: i32 = 2;
/// si_code of a lease that is to be given up (POLL_MSG).
pub const POLL_MSG: i32 = 3;

/// Whom signals go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    #[default]
    Nobody,
    Thread(u32),
    Process(u32),
    Group(u32),
}

impl Target {
    /// F_SETOWN: a process, or a negative process group.
    pub fn from_owner(owner: i32) -> Result<Target> {
        match owner {
            0 => Ok(Target::Nobody),
            1.. => Ok(Target::Process(owner as u32)),
            _ => Ok(Target::Group(owner.checked_neg().ok_or(EINVAL)? as u32)),
        }
    }

    /// `struct f_owner_ex`.
    pub fn from_pair([kind, id]: [i32; 2]) -> Result<Target> {
        if !(0..=2).contains(&kind) {
            return Err(EINVAL.because("unknown kind of owner"));
        }
        let id = u32::try_from(id).map_err(|_| ESRCH.because("negative owner"))?;
        match kind {
            0..=2 if id == 0 => Ok(Target::Nobody),
            0 => Ok(Target::Thread(id)),
            1 => Ok(Target::Process(id)),
            2 => Ok(Target::Group(id)),
            _ => Err(EINVAL.because("unknown kind of owner")),
        }
    }

    pub fn pair(self) -> [i32; 2] {
        match self {
            Target::Nobody => [1, 0],
            Target::Thread(id) => [0, id as i32],
            Target::Process(id) => [1, id as i32],
            Target::Group(id) => [2, id as i32],
        }
    }

    /// F_GETOWN.
    pub fn owner(self) -> i32 {
        match self {
            Target::Group(id) => -(id as i32),
            other => other.pair()[1],
        }
    }

    /// ESRCH when there is nobody of that id.
    pub fn check(self) -> Result<()> {
        let exists = match self {
            Target::Nobody => true,
            Target::Thread(id) => table::thread(id).is_some(),
            Target::Process(id) => table::process(id).is_some(),
            Target::Group(id) => !table::lock().group_members(id).is_empty(),
        };
        exists.then_some(()).ok_or(ESRCH)
    }
}

/// What an open file knows about its signals.
#[derive(Default)]
pub struct Owner {
    state: SpinLock<State>,
    /// F_SETSIG; 0 is SIGIO without details.
    pub signal: AtomicI32,
    table: SpinLock<Option<PollTable>>,
}

#[derive(Clone, Default)]
struct State {
    target: Target,
    /// The rights of who named the target.
    credentials: Option<Arc<Credentials>>,
    /// The descriptor that the setter used: si_fd.
    fd: i32,
}

impl Owner {
    pub fn target(&self) -> Target {
        self.state.lock().target
    }

    pub fn set_target(&self, target: Target, setter: &Process) {
        let credentials = Some(Arc::new(setter.credentials.lock().clone()));
        let mut state = self.state.lock();
        (state.target, state.credentials) = (target, credentials);
    }

    /// Notes the descriptor, and the setter as target where there is none yet.
    pub fn note(&self, fd: i32, setter: &Process) {
        if self.target() == Target::Nobody {
            self.set_target(Target::Process(setter.pid), setter);
        }
        self.state.lock().fd = fd;
    }

    /// Urgent data has come: SIGURG, whatever F_SETSIG says.
    pub fn urgent(&self) {
        let state = self.state.lock().clone();
        Self::send(&state, SigInfo::kernel(SIGURG));
    }

    /// Sends the signal.
    pub fn notify(&self, code: i32, band: u32) {
        let state = self.state.lock().clone();
        let signal = self.signal.load(Ordering::Relaxed) as u32;
        let info = if signal == 0 {
            SigInfo::kernel(SIGIO)
        } else {
            SigInfo {
                signal: signal as i32,
                code,
                fields: [u64::from(band), state.fd as u32 as u64, 0, 0],
                ..SigInfo::default()
            }
        };
        Self::send(&state, info);
    }

    fn send(state: &State, info: SigInfo) {
        let may = |process: &Process| {
            let target = process.credentials.lock().clone();
            state
                .credentials
                .as_ref()
                .is_some_and(|setter| setter.may_signal(&target))
        };
        // A full queue of real-time signals loses it, as on Linux, where SIGIO follows.
        match state.target {
            Target::Nobody => {}
            Target::Thread(id) => {
                if let Some(thread) = table::thread(id).filter(|thread| may(&thread.process)) {
                    let _ = to_thread(&thread, info, Origin::Inside);
                }
            }
            Target::Process(id) => {
                if let Some(process) = table::process(id).filter(|process| may(process)) {
                    let _ = to_process(&process, info, Origin::Inside);
                }
            }
            Target::Group(id) => {
                let members = table::lock().group_members(id);
                for process in members.iter().filter(|process| may(process)) {
                    let _ = to_process(process, info, Origin::Inside);
                }
            }
        }
    }
}

struct AsyncWaker(Weak<OpenFile>);

impl Wake for AsyncWaker {
    fn wake(&self, events: Events) -> bool {
        if let Some(file) = self.0.upgrade() {
            let input = events.intersects(Events::IN | Events::HUP) || events.is_empty();
            if input && file.is_readable() {
                file.owner.notify(POLL_IN, 0x41);
            }
            if events.contains(Events::OUT) && file.is_writable() {
                file.owner.notify(POLL_OUT, 0x304);
            }
        }
        false
    }
}

/// F_SETFL or FIOASYNC turns O_ASYNC on or off. Files that cannot ignore it on Linux too.
pub fn set(file: &Arc<OpenFile>, fd: i32, on: bool) {
    if !file.ops.is_async() {
        return;
    }
    let bit = if on { flags::ASYNC } else { 0 };
    file.set_flags(flags::ASYNC, bit);
    if on {
        file.owner.state.lock().fd = fd;
        let mut table = PollTable::new(Arc::new(AsyncWaker(Arc::downgrade(file))));
        file.ops.poll(Some(&mut table), Events::IN | Events::OUT);
        let old = file.owner.table.lock().replace(table);
        drop(old);
    } else {
        let old = file.owner.table.lock().take();
        drop(old);
    }
}

/// F_SETSIG's argument.
pub fn check_signal(signal: u64) -> Result<i32> {
    if signal > u64::from(crate::signal::SIGNAL_MAX) {
        return Err(EINVAL.because("no such signal"));
    }
    Ok(signal as i32)
}

/// Whether `thread`'s user may take a lease on a file of `uid`; EACCES is the caller's.
pub fn may_lease(credentials: &Credentials, uid: u32) -> Result<()> {
    const CAP_LEASE: u32 = 28;
    if credentials.fsuid == uid || credentials.has(CAP_LEASE) {
        Ok(())
    } else {
        Err(EPERM)
    }
}
