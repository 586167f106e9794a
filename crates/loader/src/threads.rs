//! Enclave threads: slots, their host threads, entering and leaving, waking and kicking.
//!
//! One host thread per slot, made when the slot is first started and kept: it parks when its slot
//! is given up, and starting it again is one futex wake. The enclave hands slots out, so warm ones
//! are reused first.
//!
//! # How a sleeping or running thread is made to look
//! - *Wake*: the enclave changed the slot's wait word. [`Waiting`] says how the thread blocks, so
//!   that the waker knows whether a futex wake or a signal is needed, or nothing.
//! - *Kick*: a signal. In the enclave the backend turns it into an entry. Outside, `kicked` is set
//!   and ends or forestalls any blocking call. Entering with EENTER clears it: the enclave looks at
//!   its flags on every entry. Before ERESUME it is looked at; a kick that falls between this look
//!   and the instruction is sent again by the supervisor (`resuming`, `again`).
//!
//! No locks but `end`, which nothing is called under.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bulla_abi::hostcall::EnterReason;
use bulla_abi::layout::{LayoutKind, SLOTS_MAX, tcs_address};

use crate::Error;
use crate::backend::{Backend, EnterLeaf, Outcome, Registers};
use crate::descriptors::{Descriptors, Standard};
use crate::exec::Execs;
use crate::host::{self, Debugger, PassedDirectory, Quoter, Reply, VolumeFiles};
use crate::hostile::{Hostile, Tampered};
use crate::launch::ExitStatus;
use crate::stats::Counters;
use crate::sys::area::Area;
use crate::sys::raw::{Answer, Errno};
use crate::sys::wait::{futex_wait, futex_wake};
use crate::sys::{self, signal};
use crate::waiting::{Blocks, Waiting};

/// Stack of a slot's host thread. It runs the serve loop only; signal handlers have their own.
const HOST_STACK: usize = 256 << 10;

/// States of a slot.
mod state {
    /// Never started: there is no host thread yet.
    pub const FRESH: u32 = 0;
    /// The host thread sleeps until the slot is started.
    pub const PARKED: u32 = 1;
    pub const RUNNING: u32 = 2;
    /// Started again before its thread came to park: it goes round once more.
    pub const AGAIN: u32 = 3;
}

/// One thread slot of the enclave, as the host sees it.
pub struct Slot {
    pub index: u32,
    pub area: Area,
    pub counters: Counters,
    state: AtomicU32,
    /// The host thread, 0 before it runs.
    tid: AtomicI32,
    pub waiting: Waiting,
    pub kicked: AtomicU32,
    resuming: AtomicBool,
    again: AtomicBool,
}

impl Slot {
    pub fn new(index: u32) -> std::io::Result<Slot> {
        Ok(Slot {
            index,
            area: Area::new()?,
            counters: Counters::new(),
            state: AtomicU32::new(state::FRESH),
            tid: AtomicI32::new(0),
            waiting: Waiting::default(),
            kicked: AtomicU32::new(0),
            resuming: AtomicBool::new(false),
            again: AtomicBool::new(false),
        })
    }

    fn is_live(&self) -> bool {
        self.state.load(Ordering::SeqCst) >= state::RUNNING
    }

    /// Sends the kick signal, if there is a thread to get it.
    fn signal(&self) {
        let tid = self.tid.load(Ordering::SeqCst);
        if tid != 0 {
            // Fails only when the thread is gone, and with it whoever should look.
            let _ = signal::kick(tid, self.index);
        }
    }
}

/// All slots; a slot's place is filled when it is first used.
pub struct Slots([OnceLock<Box<Slot>>; SLOTS_MAX as usize]);

impl Slots {
    pub const fn new() -> Slots {
        Slots([const { OnceLock::new() }; SLOTS_MAX as usize])
    }

    fn get(&self, index: u64) -> Option<&Slot> {
        self.0
            .get(usize::try_from(index).ok()?)?
            .get()
            .map(|slot| &**slot)
    }

    fn get_or_make(&self, index: u64) -> Result<&Slot, Errno> {
        let place = usize::try_from(index)
            .ok()
            .and_then(|index| self.0.get(index))
            .ok_or(Errno(libc::EINVAL))?;
        if let Some(slot) = place.get() {
            return Ok(slot);
        }
        let slot = Slot::new(index as u32).map_err(|_| Errno(libc::ENOMEM))?;
        Ok(place.get_or_init(|| Box::new(slot)))
    }

    /// Those that were ever used.
    pub fn used(&self) -> impl Iterator<Item = &Slot> {
        self.0.iter().filter_map(|place| Some(&**place.get()?))
    }
}

/// Which threads to kick.
#[derive(Clone, Copy, PartialEq)]
pub enum Which {
    First,
    All,
}

/// How the container ended.
pub type End = Result<ExitStatus, Error>;

/// A running enclave. Lives until the process ends.
pub struct Engine {
    pub kind: LayoutKind,
    pub backend: Box<dyn Backend>,
    pub slots: &'static Slots,
    pub made: &'static Descriptors,
    pub standard: Standard,
    pub quoter: Option<Box<dyn Quoter>>,
    pub volumes: Vec<VolumeFiles>,
    pub directories: Vec<PassedDirectory>,
    /// Which of `made` may not be changed.
    pub read_only: &'static Descriptors,
    pub execs: Option<Arc<Execs>>,
    pub debugger: Option<Box<dyn Debugger>>,
    pub hostile: Option<Hostile>,
    pub log_level: u64,
    /// Whether RDTSC works on slot threads.
    pub rdtsc: bool,
    /// Address of the boot parameters, until slot 0 has taken it.
    pub boot: AtomicU64,
    /// Monotonic time of the first EENTER in ns.
    pub first_entry: AtomicU64,
    pub ending: AtomicBool,
    pub end: Mutex<Option<End>>,
}

impl Engine {
    /// Starts slot `index` on its host thread.
    pub fn start(&'static self, index: u64) -> Answer {
        let slot = self.slots.get_or_make(index)?;
        loop {
            let now = slot.state.load(Ordering::SeqCst);
            let next = match now {
                state::RUNNING => state::AGAIN,
                state::AGAIN => return Err(Errno(libc::EBUSY)),
                _ => state::RUNNING,
            };
            let changed =
                slot.state
                    .compare_exchange(now, next, Ordering::SeqCst, Ordering::SeqCst);
            match changed {
                Err(_) => continue,
                Ok(state::PARKED) => futex_wake(&slot.state),
                Ok(state::FRESH) => {
                    if self.spawn(slot).is_err() {
                        slot.state.store(state::FRESH, Ordering::SeqCst);
                        return Err(Errno(libc::EAGAIN));
                    }
                }
                Ok(_) => {}
            }
            return Ok(0);
        }
    }

    fn spawn(&'static self, slot: &'static Slot) -> std::io::Result<()> {
        std::thread::Builder::new()
            .name(format!("slot {}", slot.index))
            .stack_size(HOST_STACK)
            .spawn(move || self.serve_slot(slot))?;
        Ok(())
    }

    /// The whole life of a slot's host thread.
    fn serve_slot(&'static self, slot: &'static Slot) {
        slot.tid.store(sys::time::thread_id(), Ordering::SeqCst);
        if let Err(error) = self.backend.prepare_thread() {
            self.finish(Err(Error::Prepare(error)));
        }
        loop {
            self.run(slot);
            let parked = slot.state.compare_exchange(
                state::RUNNING,
                state::PARKED,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
            match parked {
                Ok(_) => {
                    while slot.state.load(Ordering::SeqCst) == state::PARKED {
                        futex_wait(&slot.state, state::PARKED);
                    }
                }
                Err(_) => slot.state.store(state::RUNNING, Ordering::SeqCst),
            }
        }
    }

    /// Enters the enclave in `slot` and serves it until it gives the slot up.
    fn run(&'static self, slot: &'static Slot) {
        let tcs = tcs_address(self.kind, slot.index);
        let counters = &slot.counters;
        let mut registers = Registers {
            rdi: EnterReason::Start as u64,
            rsi: slot.area.address(),
            ..Registers::default()
        };
        if slot.index == 0 {
            registers.rdx = self.boot.swap(0, Ordering::Relaxed);
            let now = sys::time::clock(libc::CLOCK_MONOTONIC).unwrap_or(0);
            let _ = self
                .first_entry
                .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
        loop {
            slot.kicked.store(0, Ordering::Relaxed);
            counters.entries.add(1);
            let mut outcome = self.backend.enter(tcs, EnterLeaf::Eenter, &mut registers);
            // The enclave comes back here with Resume after each exception that it has looked at.
            while outcome == Outcome::Exit && registers.rdi == 0 {
                counters.exits.add(1);
                counters.calls[0].add(1);
                outcome = match self.resume(slot, tcs, &mut registers) {
                    Some(outcome) => outcome,
                    None => {
                        registers = self.exception_entry(0, 0, 0);
                        counters.entries.add(1);
                        self.backend.enter(tcs, EnterLeaf::Eenter, &mut registers)
                    }
                };
            }
            match outcome {
                Outcome::Exit => {
                    counters.exits.add(1);
                    if self.ending.load(Ordering::Relaxed) {
                        sleep_forever();
                    }
                    match self.serve(slot, registers) {
                        Some(next) => registers = next,
                        None => return,
                    }
                }
                Outcome::Exception {
                    leaf: 2,
                    vector,
                    error_code,
                    address,
                } => self.finish(Err(Error::Entry {
                    slot: slot.index,
                    vector,
                    code: error_code,
                    address,
                })),
                // In the enclave, or in ERESUME, which looks the same (an AEX leaves 3 in RAX). If
                // it was ERESUME, this entry is not what the enclave expects and it stops.
                Outcome::Exception {
                    vector,
                    error_code,
                    address,
                    ..
                } => {
                    counters.exceptions.add(1);
                    registers = self.exception_entry(vector, error_code, address);
                }
            }
        }
    }

    /// Serves the host call in `registers`: what to enter with, or nothing when the slot was given
    /// up.
    #[inline(always)]
    fn serve(&'static self, slot: &Slot, registers: Registers) -> Option<Registers> {
        if let Some(hostile) = &self.hostile {
            match hostile.tamper(self, slot, &registers) {
                Tampered::Skip(lie) => return Some(lie),
                Tampered::Instead(lie) => {
                    self.serve_truly(slot, &registers)?;
                    return Some(lie);
                }
                Tampered::Before(leaf, tcs, mut lie) => {
                    let truth = self.serve_truly(slot, &registers)?;
                    self.backend.enter(tcs, leaf, &mut lie);
                    return Some(truth);
                }
                Tampered::Other(other) => return self.serve_truly(slot, &other),
                Tampered::Not => {}
            }
            let truth = self.serve_truly(slot, &registers)?;
            hostile.observe(slot, registers.rdi, truth.rsi);
            return Some(truth);
        }
        self.serve_truly(slot, &registers)
    }

    #[inline(always)]
    fn serve_truly(&'static self, slot: &Slot, registers: &Registers) -> Option<Registers> {
        match host::serve(self, slot, registers) {
            Reply::Return(value) => Some(Registers {
                rdi: EnterReason::Return as u64,
                rsi: value,
                ..Registers::default()
            }),
            Reply::Leave => None,
        }
    }

    /// Entry after an exception. The enclave believes SSA.EXITINFO only; the rest is for its messages.
    fn exception_entry(&self, vector: u16, error_code: u16, address: u64) -> Registers {
        let mut registers = Registers {
            rdi: EnterReason::Exception as u64,
            rsi: u64::from(vector),
            rdx: address,
            r8: u64::from(error_code),
            r9: 0,
        };
        if let Some(hostile) = &self.hostile {
            hostile.exception(&mut registers);
        }
        registers
    }

    /// ERESUME, or nothing when the thread was kicked and has to EENTER to look.
    fn resume(&self, slot: &Slot, tcs: u64, registers: &mut Registers) -> Option<Outcome> {
        slot.resuming.store(true, Ordering::SeqCst);
        let invented = self
            .hostile
            .as_ref()
            .is_some_and(Hostile::invents_exception);
        let outcome = (slot.kicked.swap(0, Ordering::SeqCst) == 0 && !invented).then(|| {
            slot.counters.resumes.add(1);
            self.backend.enter(tcs, EnterLeaf::Eresume, registers)
        });
        slot.resuming.store(false, Ordering::SeqCst);
        outcome
    }

    /// The enclave changed the wait word of slot `index`.
    pub fn wake(&self, from: &Slot, index: u64) -> Answer {
        let slot = self.slots.get(index).ok_or(Errno(libc::EINVAL))?;
        fence(Ordering::SeqCst);
        match slot
            .waiting
            .claim(slot.area.wait_word().load(Ordering::SeqCst))
        {
            Some(Blocks::OnWord) => futex_wake(slot.area.wait_word()),
            Some(Blocks::InCall) => {
                from.counters.kicks.add(1);
                slot.signal();
            }
            None => {}
        }
        Ok(0)
    }

    /// Makes the thread of slot `index` look.
    pub fn kick(&self, from: &Slot, index: u64) -> Answer {
        let slot = self.slots.get(index).ok_or(Errno(libc::EINVAL))?;
        if slot.is_live() {
            from.counters.kicks.add(1);
            slot.signal();
        }
        Ok(0)
    }

    /// Makes some thread of the enclave look: slot 0's, else any; or every one, for when that one
    /// did not. False when none is live.
    pub fn kick_some(&self, which: Which) -> bool {
        let mut found = false;
        for slot in self.slots.used().filter(|slot| slot.is_live()) {
            slot.signal();
            found = true;
            if which == Which::First {
                break;
            }
        }
        found
    }

    /// The supervisor's part in kicks: those that came at a bad moment are sent again.
    pub fn kick_again(&self) {
        for slot in self.slots.used() {
            if slot.again.swap(false, Ordering::SeqCst) {
                slot.signal();
            }
        }
    }

    /// Ends the container; the first caller decides how. Never returns: the thread sleeps until
    /// the supervisor has ended the process.
    pub fn finish(&self, end: End) -> ! {
        let mut place = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        place.get_or_insert(end);
        drop(place);
        self.ending.store(true, Ordering::SeqCst);
        signal::nudge_supervisor();
        sleep_forever()
    }
}

/// For the supervisor.
impl Engine {
    pub fn take_end(&self) -> Option<End> {
        let mut place = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        place.take()
    }
}

impl signal::Kicked for Engine {
    fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    fn slot_of(&self, tid: i32) -> Option<u32> {
        let mut used = self.slots.used();
        used.find(|slot| slot.tid.load(Ordering::Relaxed) == tid)
            .map(|slot| slot.index)
    }

    fn kicked(&self, index: u32) {
        let Some(slot) = self.slots.get(u64::from(index)) else {
            return;
        };
        slot.kicked.store(1, Ordering::SeqCst);
        if slot.resuming.load(Ordering::SeqCst) {
            slot.again.store(true, Ordering::SeqCst);
            signal::nudge_supervisor();
        }
    }
}

/// Waits for the end of the process.
fn sleep_forever() -> ! {
    let never = AtomicU32::new(0);
    loop {
        futex_wait(&never, 0);
    }
}
