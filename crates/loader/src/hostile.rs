//! A host that lies, for tests (`bulla run --hostile-host SEED`).
//!
//! The enclave may stop, refuse or go on; it must never do anything else. What the seed decides:
//! - the [`Theme`], `seed % 11`: what kind of lie is told;
//! - how often: one call in 2 to 256 (`seed / 11 % 8`);
//! - whether the lie may be about waiting, time and the network (`seed % 3 == 0`). Such a lie can
//!   let a program sleep for ever: no wake-up, no data, a clock that stands still. With the other
//!   seeds a container must end.
//!
//! A thread of its own writes into the shared areas, takes pages away, kicks and enters at any
//! time, as a host would that waits for the moment between a check and a use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bulla_abi::hostcall::{BootParams, DATA_SIZE, EnterReason, HostCall};
use bulla_abi::layout::tcs_address;

use crate::backend::{EnterLeaf, Registers};
use crate::sys::raw::Errno;
use crate::threads::{Engine, Slot};

/// What a seed's lies are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theme {
    /// Random results.
    Random,
    /// The largest, the smallest, negative ones, one more than asked for.
    Extreme,
    /// The data changes while it is looked at, and after it was.
    Torn,
    /// Earlier results with their data, again.
    Repeated,
    /// Calls about memory are not carried out, or for other pages and permissions.
    Memory,
    /// Pages disappear, or cannot be written any more.
    Pages,
    /// Page faults and other exceptions are invented.
    Faults,
    /// Entries that nobody asked for, at every host call.
    Entries,
    /// Kicks, at every host call.
    Kicks,
    /// The boot parameters are wrong.
    Boot,
    /// All of them.
    Everything,
}

const THEMES: [Theme; 11] = [
    Theme::Random,
    Theme::Extreme,
    Theme::Torn,
    Theme::Repeated,
    Theme::Memory,
    Theme::Pages,
    Theme::Faults,
    Theme::Entries,
    Theme::Kicks,
    Theme::Boot,
    Theme::Everything,
];

/// The liar.
pub struct Hostile {
    state: AtomicU64,
    theme: Theme,
    /// A lie is told when these low bits of a random number are zero.
    mask: u64,
    /// Whether lies may make programs wait for ever.
    about_waiting: bool,
    told: AtomicU32,
    /// Results by host call, each with the start of its data.
    earlier: Mutex<HashMap<u64, (u64, Vec<u8>)>>,
    /// Pages that were committed lately.
    pages: Mutex<Vec<(u64, u64)>>,
}

/// What becomes of an answer.
pub enum Tampered {
    /// Make the call, but enter with these registers instead.
    Instead(Registers),
    /// Enter with these, and only afterwards, if it comes back, with the true ones.
    Before(EnterLeaf, u64, Registers),
    /// Do not even make the call.
    Skip(Registers),
    /// Make this other call.
    Other(Registers),
    Not,
}

/// Lines that say what lie was told, at most.
const LINES: u32 = 400;
/// Bytes of data kept with an earlier result.
const KEPT: u64 = 512;
/// Ranges of committed pages that are remembered.
const RANGES: usize = 64;

/// Calls whose answers a program may wait for, or that tell it the time.
fn is_about_waiting(call: HostCall) -> bool {
    use HostCall::*;
    matches!(
        call,
        Wait | Wake
            | Kick
            | ThreadStart
            | ThreadExit
            | Clock
            | Poll
            | Read
            | EpollCreate
            | EpollCtl
            | EpollWait
            | Socket
            | Bind
            | Listen
            | Accept
            | Connect
            | Send
            | Recv
            | Shutdown
            | SetSockOpt
            | GetSockOpt
            | GetSockName
            | GetPeerName
    )
}

fn is_about_memory(call: HostCall) -> bool {
    use HostCall::*;
    matches!(
        call,
        MemCommit | MemProtect | MemRestrict | MemType | MemRemove
    )
}

impl Hostile {
    pub fn new(seed: u64) -> Hostile {
        let themes = THEMES.len() as u64;
        Hostile {
            state: AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            theme: THEMES[(seed % themes) as usize],
            mask: (2 << (seed / themes % 8)) - 1,
            about_waiting: seed.is_multiple_of(3),
            told: AtomicU32::new(0),
            earlier: Mutex::new(HashMap::new()),
            pages: Mutex::new(Vec::new()),
        }
    }

    /// splitmix64; the counter is shared by all threads.
    fn random(&self) -> u64 {
        let mut z = self
            .state
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    fn below(&self, limit: u64) -> u64 {
        self.random() % limit
    }

    fn is_due(&self) -> bool {
        self.random() & self.mask == 0
    }

    /// What the enclave did next can only be judged by what it was told.
    fn tell(&self, text: std::fmt::Arguments<'_>) {
        if self.told.fetch_add(1, Ordering::Relaxed) < LINES {
            eprintln!("bulla: hostile: {text}");
        }
    }

    /// The theme of the next lie.
    fn theme(&self) -> Theme {
        match self.theme {
            Theme::Everything => THEMES[self.below(THEMES.len() as u64 - 2) as usize],
            theme => theme,
        }
    }

    /// A value that a result must not be.
    fn extreme(&self, registers: &Registers) -> u64 {
        match self.below(12) {
            0 => u64::MAX,
            1 => i64::MAX as u64,
            2 => i64::MIN as u64,
            3 => -(self.below(5000) as i64) as u64,
            4 => -(self.below(140) as i64) as u64,
            5 => registers.rdx.wrapping_add(1),
            6 => registers.r8.wrapping_add(1 + self.below(8)),
            7 => DATA_SIZE + self.below(3),
            8 => 0,
            9 => u64::from(u32::MAX),
            10 => 1 << 32,
            _ => i32::MIN as i64 as u64,
        }
    }

    fn value(&self, theme: Theme, registers: &Registers) -> u64 {
        match theme {
            Theme::Extreme => self.extreme(registers),
            _ => match self.below(3) {
                0 => self.random(),
                1 => self.below(64),
                _ => self.extreme(registers),
            },
        }
    }

    fn answer(&self, reason: u64, value: u64) -> Registers {
        Registers {
            rdi: reason,
            rsi: value,
            rdx: self.random(),
            r8: self.random(),
            r9: self.random(),
        }
    }

    /// Decides about the host call in `registers` before it is served.
    pub fn tamper(&self, engine: &Engine, slot: &Slot, registers: &Registers) -> Tampered {
        let Some(call) = HostCall::from_number(registers.rdi) else {
            return Tampered::Not;
        };
        if call == HostCall::MemCommit {
            self.remember(engine, registers);
        }
        if !self.is_due() || (is_about_waiting(call) && !self.about_waiting) {
            return Tampered::Not;
        }
        let theme = self.theme();
        let tampered = self.lie(theme, engine, slot, call, registers);
        if !matches!(tampered, Tampered::Not) {
            let (index, name) = (slot.index, call.name());
            match &tampered {
                Tampered::Instead(lie) | Tampered::Skip(lie) => self.tell(format_args!(
                    "slot {index}, {name}: {theme:?}, answer {:#x}",
                    lie.rsi
                )),
                _ => self.tell(format_args!("slot {index}, {name}: {theme:?}")),
            }
        }
        tampered
    }

    fn lie(
        &self,
        theme: Theme,
        engine: &Engine,
        slot: &Slot,
        call: HostCall,
        registers: &Registers,
    ) -> Tampered {
        let returned = EnterReason::Return as u64;
        match theme {
            Theme::Random | Theme::Extreme => {
                let lie = self.answer(returned, self.value(theme, registers));
                match self.below(3) {
                    0 => Tampered::Skip(lie),
                    1 => {
                        self.scribble(slot);
                        Tampered::Skip(lie)
                    }
                    _ => Tampered::Instead(lie),
                }
            }
            Theme::Torn => {
                self.scribble(slot);
                if self.about_waiting {
                    slot.area
                        .wait_word()
                        .fetch_add(self.random() as u32, Ordering::SeqCst);
                }
                Tampered::Not
            }
            Theme::Repeated => self.repeat(slot, call),
            Theme::Memory if is_about_memory(call) => {
                let mut other = *registers;
                match self.below(5) {
                    0 => return Tampered::Skip(self.answer(returned, 0)),
                    1 => return Tampered::Skip(self.answer(returned, -12i64 as u64)),
                    2 => other.r8 = self.below(8),
                    3 => other.rdx = (other.rdx / 8192 * 4096).max(4096),
                    _ => other.rsi = other.rsi.wrapping_add(4096),
                }
                Tampered::Other(other)
            }
            Theme::Pages => {
                self.take_page(engine);
                Tampered::Not
            }
            Theme::Entries => self.entry(engine, slot),
            Theme::Kicks => {
                let _ = engine.kick(slot, self.below(16));
                let _ = engine.kick(slot, u64::from(slot.index));
                Tampered::Not
            }
            _ => Tampered::Not,
        }
    }

    /// The result of an earlier call of this kind.
    fn repeat(&self, slot: &Slot, call: HostCall) -> Tampered {
        let earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((value, data)) = earlier.get(&(call as u64)) else {
            return Tampered::Not;
        };
        if let Ok(span) = slot.area.data(0, data.len() as u64) {
            span.put(0, data);
        }
        Tampered::Skip(self.answer(EnterReason::Return as u64, *value))
    }

    /// Spoils bytes of an answer of many parts, all of which the enclave reads.
    fn spoil_answer(&self, slot: &Slot, len: u64) {
        let len = len.min(DATA_SIZE);
        for _ in 0..1 + self.below(8) {
            let at = self.below(len.max(1));
            let byte = [self.random() as u8, 0, 0xff][self.below(3) as usize];
            if let Ok(span) = slot.area.data(at, 1) {
                span.put(0, &[byte]);
            }
        }
        self.tell(format_args!(
            "slot {}, answer of {len} bytes spoilt",
            slot.index
        ));
    }

    /// Looks at a true answer, to repeat it another time, or to change it in place.
    pub fn observe(&self, slot: &Slot, call: u64, value: u64) {
        let spoils = matches!(self.theme, Theme::Random | Theme::Torn | Theme::Everything);
        if call == HostCall::NetQuery as u64 && spoils && self.is_due() {
            self.spoil_answer(slot, value);
        }
        if !matches!(self.theme, Theme::Repeated | Theme::Everything) || self.below(4) != 0 {
            return;
        }
        let Ok(span) = slot.area.data(0, KEPT) else {
            return;
        };
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        earlier.insert(call, (value, span.to_vec()));
    }

    /// An entry besides the answer: at this slot or another.
    fn entry(&self, engine: &Engine, slot: &Slot) -> Tampered {
        let own = tcs_address(engine.kind, slot.index);
        let other = tcs_address(engine.kind, self.below(8) as u32);
        let exception = EnterReason::Exception as u64;
        match self.below(16) {
            0 => Tampered::Before(EnterLeaf::Eenter, own, self.answer(exception, 14)),
            1 => Tampered::Before(
                EnterLeaf::Eenter,
                own,
                self.answer(self.below(6), self.random()),
            ),
            // Starting a slot may steal its thread from it.
            2 if self.about_waiting => {
                let area = self.random() & (engine.kind.elrange_size() * 4 - 1);
                Tampered::Before(EnterLeaf::Eenter, other, self.answer(1, area))
            }
            3..8 => Tampered::Before(EnterLeaf::Eresume, own, self.answer(0, 0)),
            8..12 if other != own => Tampered::Before(EnterLeaf::Eresume, other, self.answer(0, 0)),
            _ => Tampered::Not,
        }
    }

    /// Changes what the enclave is told of an exception, or of none.
    pub fn exception(&self, registers: &mut Registers) {
        if !matches!(self.theme, Theme::Faults | Theme::Everything) || !self.is_due() {
            return;
        }
        let vectors = [14, 14, 14, 13, 6, 1, 3, self.below(64)];
        registers.rsi = vectors[self.below(8) as usize];
        registers.rdx = self.address();
        registers.r8 = self.below(32);
        self.tell(format_args!(
            "exception {} at {:#x} invented",
            registers.rsi, registers.rdx
        ));
    }

    /// Whether to enter for an exception that did not happen, instead of resuming.
    pub fn invents_exception(&self) -> bool {
        matches!(self.theme, Theme::Faults | Theme::Everything) && self.is_due()
    }

    /// Some address, of a page in use when it can be.
    fn address(&self) -> u64 {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        match self.below(4) {
            0 => self.random(),
            1 => self.below(bulla_abi::layout::LayoutKind::Dynamic.elrange_size()),
            _ => match pages.len() as u64 {
                0 => 0,
                count => {
                    let (start, len) = pages[self.below(count) as usize];
                    start + self.below(len)
                }
            },
        }
    }

    fn remember(&self, engine: &Engine, registers: &Registers) {
        let (start, len) = (registers.rsi, registers.rdx);
        // The emulator itself writes to the state save areas in there, and must be able to.
        let slots = tcs_address(engine.kind, 0) & !0x3_ffff;
        let end = engine.kind.elrange_size();
        let in_slots = (slots..slots + (1 << 30)).contains(&start);
        if start >= end || len == 0 || len > end - start || in_slots {
            return;
        }
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.len() < RANGES {
            pages.push((start, len));
        } else {
            let place = self.below(RANGES as u64) as usize;
            pages[place] = (start, len);
        }
    }

    /// Makes a page inaccessible or read-only.
    fn take_page(&self, engine: &Engine) {
        let page = {
            let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(&(start, len)) = pages.get(self.below(RANGES as u64) as usize) else {
                return;
            };
            start + self.below(len / 4096) * 4096
        };
        let protection = [0, 0, 1, 5][self.below(4) as usize];
        // It may be gone already.
        if engine.backend.protect(page, 4096, protection).is_ok() {
            self.tell(format_args!(
                "page {page:#x} now has protection {protection}"
            ));
        }
    }

    /// Random bytes at a random place of the data buffer, often near its start.
    fn scribble(&self, slot: &Slot) {
        let at = match self.below(2) {
            0 => self.below(256),
            _ => self.below(DATA_SIZE),
        };
        let len = (1 + self.below(64)).min(DATA_SIZE - at);
        let bytes: Vec<u8> = (0..len).map(|_| self.random() as u8).collect();
        if let Ok(span) = slot.area.data(at, len) {
            span.put(0, &bytes);
        }
    }

    /// Spoils one of the boot parameters.
    pub fn spoil(&self, parameters: &mut BootParams) {
        if self.theme != Theme::Boot {
            return;
        }
        let value = self.random();
        let field = self.below(14);
        match field {
            0 => parameters.size = value,
            1 => parameters.rootfs = value % (1 << 40),
            2 => parameters.rootfs = 0u64.wrapping_sub(value % 65536),
            3 => parameters.rootfs_len = value,
            4 => parameters.features = value,
            5 => parameters.cpus = value,
            6 => parameters.tsc_hz = value,
            7 => parameters.platform = value,
            8 => parameters.rootfs = value % (1 << 47),
            9 => parameters.rootfs_len = 0,
            10 => parameters.rootfs_len /= 2,
            11 => parameters.input = value,
            12 => parameters.input_len = value,
            _ => parameters.rootfs += 4096,
        }
        self.tell(format_args!("boot parameter {field}: {value:#x}"));
    }

    /// Whether a thread of its own has something to do.
    fn works_beside(&self) -> bool {
        use Theme::*;
        matches!(self.theme, Torn | Pages | Entries | Kicks | Everything)
    }

    fn work_beside(&self, engine: &Engine, can_enter: bool) {
        let theme = self.theme();
        if theme == Theme::Pages {
            return self.take_page(engine);
        }
        if theme == Theme::Entries && can_enter {
            let leaf = match self.below(4) {
                0 if self.about_waiting => EnterLeaf::Eenter,
                _ => EnterLeaf::Eresume,
            };
            let tcs = tcs_address(engine.kind, self.below(8) as u32);
            let mut registers = self.answer(1 + self.below(3), self.address());
            // An ERESUME may take over an interrupted thread, which then waits for its answers.
            if self.about_waiting {
                engine.backend.enter(tcs, leaf, &mut registers);
            }
            return;
        }
        for slot in engine.slots.used() {
            match theme {
                Theme::Torn => self.scribble(slot),
                Theme::Kicks => {
                    let _ = engine.kick(slot, u64::from(slot.index));
                }
                _ => {}
            }
        }
    }

    /// The thread that does things at any time.
    pub fn start(engine: &'static Engine) -> Result<(), Errno> {
        let Some(hostile) = &engine.hostile else {
            return Ok(());
        };
        if !hostile.works_beside() {
            return Ok(());
        }
        let run = move || {
            let can_enter = engine.backend.prepare_thread().is_ok();
            loop {
                std::thread::sleep(Duration::from_micros(hostile.below(500)));
                if hostile.is_due() {
                    hostile.work_beside(engine, can_enter);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("hostile".into())
            .spawn(run);
        thread.map(|_| ()).map_err(|_| Errno(libc::EAGAIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Inside, engine_with_hostile};

    /// A seed of this theme that lies about one call in two, and about waiting as well or not.
    fn seed(theme: Theme, about_waiting: bool) -> u64 {
        let found = (0..1000).find(|&seed| {
            let hostile = Hostile::new(seed);
            hostile.theme == theme && hostile.mask == 1 && hostile.about_waiting == about_waiting
        });
        found
            .or_else(|| {
                (0..10_000).find(|&seed| {
                    let hostile = Hostile::new(seed);
                    hostile.theme == theme && hostile.about_waiting == about_waiting
                })
            })
            .unwrap()
    }

    #[test]
    fn every_theme_comes_with_and_without_waiting() {
        for theme in THEMES {
            for about_waiting in [true, false] {
                assert_eq!(Hostile::new(seed(theme, about_waiting)).theme, theme);
            }
        }
    }

    fn wrong_answers(theme: Theme, call: HostCall, true_answer: i64) -> u32 {
        static NEXT: AtomicU32 = AtomicU32::new(40);
        let (engine, fake) = engine_with_hostile(seed(theme, true));
        let inside = Inside::start(engine, fake, NEXT.fetch_add(1, Ordering::SeqCst));
        let mut wrong = 0;
        for _ in 0..400 {
            inside.exit(call, [77, 0, 0, 0]);
            loop {
                let (leaf, registers) = inside.entry();
                if leaf == EnterLeaf::Eenter && registers.rdi == EnterReason::Return as u64 {
                    wrong += u32::from(registers.rsi as i64 != true_answer);
                    break;
                }
                // What the CPU or the enclave would do at such an entry: fault.
                inside.exception(leaf as u32);
            }
        }
        wrong
    }

    #[test]
    fn results_are_wrong() {
        let invalid = -i64::from(libc::EINVAL);
        for theme in [Theme::Random, Theme::Extreme] {
            let wrong = wrong_answers(theme, HostCall::Clock, invalid);
            assert!((20..400).contains(&wrong), "{theme:?}: {wrong}");
        }
        // This one is about other calls. (Of entries besides the answer nothing can be said here: the
        // fake enclave does not refuse one at a slot that nobody plays.)
        assert_eq!(wrong_answers(Theme::Memory, HostCall::Clock, invalid), 0);
        let wrong = wrong_answers(Theme::Memory, HostCall::MemProtect, invalid);
        assert!(wrong > 0);
    }

    #[test]
    fn without_waiting_a_wait_is_honest() {
        let (engine, fake) = engine_with_hostile(seed(Theme::Random, false));
        let inside = Inside::start(engine, fake, 39);
        for _ in 0..200 {
            assert_eq!(inside.call(HostCall::Wake, [39, 0, 0, 0]), 0);
        }
    }
}
