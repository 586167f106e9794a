//! A host that lies, for tests: wrong answers to host calls, torn data, entries that nobody asked
//! for, kicks at any time.
//!
//! The enclave may stop, refuse or go on; it must never do anything else. One in `2^n` host calls
//! is tampered with, where n depends on the seed (4 to 11), so that different seeds get differently
//! far. A thread of its own writes into the shared areas all the time, as a host would that waits
//! for the moment between a check and a use.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bulla_abi::hostcall::{BootParams, DATA_SIZE, EnterReason, HostCall};
use bulla_abi::layout::tcs_address;

use crate::backend::{EnterLeaf, Registers};
use crate::sys::raw::Errno;
use crate::threads::{Engine, Slot};

/// The liar.
pub struct Hostile {
    state: AtomicU64,
    /// Tampering happens when this many low bits of a random number are zero.
    mask: u64,
    /// Whether the enclave is also entered unasked, at which it usually stops: not with every
    /// seed, so that the other lies get their turn.
    intrudes: bool,
}

/// What becomes of an answer.
pub enum Tampered {
    /// Enter with these registers instead.
    Instead(Registers),
    /// Enter with these, and only afterwards, if it comes back, with the true ones.
    Before(Registers),
    /// Do not even make the call.
    Skip(Registers),
    Not,
}

impl Hostile {
    pub fn new(seed: u64) -> Hostile {
        Hostile {
            state: AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            mask: (1 << (4 + seed % 8)) - 1,
            intrudes: seed.is_multiple_of(4),
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

    /// A value for a result: what a length, a descriptor, a count or an error must not be.
    fn value(&self, registers: &Registers) -> u64 {
        let random = self.random();
        match random % 10 {
            0 => self.random(),
            1 => u64::MAX,
            2 => i64::MAX as u64,
            3 => i64::MIN as u64,
            4 => -((self.random() % 5000) as i64) as u64,
            5 => registers.rdx.wrapping_add(1),
            6 => registers.r8.wrapping_add(1 + random % 8),
            7 => DATA_SIZE + random % 3,
            8 => 0,
            _ => self.random() % 64,
        }
    }

    /// Decides about the host call in `registers` before it is served.
    pub fn tamper(&self, engine: &Engine, slot: &Slot, registers: &Registers) -> Tampered {
        if self.random() & self.mask != 0 {
            return Tampered::Not;
        }
        let value = self.value(registers);
        let answer = |reason| Registers {
            rdi: reason,
            rsi: value,
            rdx: self.random(),
            r8: self.random(),
            r9: self.random(),
        };
        let kind = self.random() % if self.intrudes { 12 } else { 10 };
        // What the enclave did next can only be judged by what it was told.
        let name = HostCall::from_number(registers.rdi).map_or("?", HostCall::name);
        eprintln!(
            "bulla: hostile: slot {}, {name}, kind {kind}, answer {:#x}",
            slot.index, value
        );
        match kind {
            0..4 => Tampered::Instead(answer(EnterReason::Return as u64)),
            4 => Tampered::Skip(answer(EnterReason::Return as u64)),
            5 => {
                self.scribble(slot);
                Tampered::Skip(answer(EnterReason::Return as u64))
            }
            6 => {
                self.scribble(slot);
                Tampered::Not
            }
            7 => {
                let word = slot.area.wait_word();
                word.fetch_add(self.random() as u32, Ordering::SeqCst);
                Tampered::Not
            }
            8 | 9 => {
                let _ = engine.kick(slot, self.random() % 16);
                Tampered::Not
            }
            10 => Tampered::Before(answer(EnterReason::Exception as u64)),
            _ => Tampered::Before(answer(self.random() % 6)),
        }
    }

    /// Random bytes at a random place of the data buffer, often near its start.
    fn scribble(&self, slot: &Slot) {
        let at = match self.random() % 2 {
            0 => self.random() % 256,
            _ => self.random() % DATA_SIZE,
        };
        let len = (1 + self.random() % 64).min(DATA_SIZE - at);
        let bytes: Vec<u8> = (0..len).map(|_| self.random() as u8).collect();
        if let Ok(span) = slot.area.data(at, len) {
            span.put(0, &bytes);
        }
    }

    /// Enters a slot that is another thread's, or nobody's, with made-up registers.
    fn intrude(&self, engine: &Engine) {
        let tcs = tcs_address(engine.kind, (self.random() % 8) as u32);
        let leaf = match self.random() % 4 {
            0 => EnterLeaf::Eresume,
            _ => EnterLeaf::Eenter,
        };
        let address = self.random() & (engine.kind.elrange_size() * 4 - 1);
        let mut registers = Registers {
            rdi: 1 + self.random() % 3,
            rsi: address,
            rdx: self.random(),
            r8: self.random(),
            r9: self.random(),
        };
        // Whatever comes of it: this host does not care.
        engine.backend.enter(tcs, leaf, &mut registers);
    }

    /// Spoils one of the boot parameters, with some seeds.
    pub fn spoil(&self, parameters: &mut BootParams) {
        let value = self.random();
        match self.random() % 24 {
            0 => parameters.size = value,
            1 => parameters.rootfs = value % (1 << 40),
            2 => parameters.rootfs = 0u64.wrapping_sub(value % 65536),
            3 => parameters.rootfs_len = value,
            4 => parameters.features = value,
            5 => parameters.cpus = value,
            6 => parameters.tsc_hz = value,
            7 => parameters.platform = value,
            8 => parameters.input = value,
            9 => parameters.input_len = value,
            _ => {}
        }
    }

    /// The thread that writes and kicks at any time.
    pub fn start(engine: &'static Engine) -> Result<(), Errno> {
        let Some(hostile) = &engine.hostile else {
            return Ok(());
        };
        let run = move || {
            let can_enter = engine.backend.prepare_thread().is_ok();
            loop {
                std::thread::sleep(Duration::from_micros(hostile.random() % 500));
                if hostile.random() & hostile.mask != 0 {
                    continue;
                }
                if can_enter && hostile.intrudes && hostile.random().is_multiple_of(16) {
                    hostile.intrude(engine);
                }
                for slot in engine.slots.used() {
                    if hostile.random() % 2 == 0 {
                        hostile.scribble(slot);
                    } else {
                        let _ = engine.kick(slot, u64::from(slot.index));
                    }
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

    #[test]
    fn lies_come_in_all_kinds() {
        // Seed 8 tampers with one call in sixteen.
        let (engine, fake) = engine_with_hostile(8);
        let inside = Inside::start(engine, fake, 61);
        let (mut wrong, mut reasons) = (0, [0; 8]);
        for _ in 0..4000 {
            inside.exit(HostCall::Clock, [77, 0, 0, 0]);
            loop {
                let (_, registers) = inside.entry();
                reasons[registers.rdi.min(7) as usize] += 1;
                if registers.rdi == EnterReason::Return as u64 {
                    wrong += u32::from(registers.rsi as i64 != -i64::from(libc::EINVAL));
                    break;
                }
                // What the enclave would do at an entry it did not expect: fault, until it is
                // entered as it should be.
                inside.exception(0);
            }
        }
        assert!((30..1000).contains(&wrong), "{wrong}");
        assert!(reasons[EnterReason::Exception as usize] > 0, "{reasons:?}");
        assert!(reasons[EnterReason::Start as usize] > 0, "{reasons:?}");
    }
}
