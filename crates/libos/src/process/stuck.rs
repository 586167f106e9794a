//! Threads that a host keeps from going on.
//!
//! A host can ignore a change of page tables or take a page away. Then the same instruction faults
//! for ever, although nothing is missing. Other threads of a program can cause the same now and
//! then, by changing the protection of the page or by bringing it in first; but not a hundred
//! thousand times in a row without a register having changed.
//!
//! An instruction that needs one page of shared memory at two addresses cannot be satisfied either:
//! each fault takes the page away from the other address ([`Views`]).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::Registers;
use crate::sync::SpinLock;

/// Faults without any progress after which the host is to blame: about a second.
const LIMIT: u32 = 100_000;

/// The last fault of a thread at a page that was there, and how often it came in a row.
#[derive(Default)]
pub struct Stuck {
    last: AtomicU64,
    count: AtomicU32,
}

impl Stuck {
    /// Notes such a fault; whether there is no progress any more. Called by the thread itself.
    pub fn again(&self, registers: &Registers, address: u64) -> bool {
        let state = digest(registers, address);
        if self.last.swap(state, Ordering::Relaxed) != state {
            self.count.store(0, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed) + 1 >= LIMIT
    }
}

/// Faults of one instruction at two views of one page.
#[derive(Default)]
pub struct Views(SpinLock<Last>);

#[derive(Default)]
struct Last {
    state: u64,
    /// Object and offset of the page.
    page: (u64, u64),
    address: u64,
    turns: u32,
}

impl Views {
    /// Turns after which an instruction is known to need both. Others that use the page only make
    /// it fault at the same address again.
    const LIMIT: u32 = 3;

    /// Notes a fault at `address`, a page that shows `page`; whether the instruction needs it twice.
    pub fn torn(&self, registers: &Registers, address: u64, page: (u64, u64)) -> bool {
        let state = digest(registers, 0);
        let mut last = self.0.lock();
        if last.state != state || last.page != page {
            *last = Last {
                state,
                page,
                address,
                turns: 0,
            };
        } else if last.address != address {
            last.address = address;
            last.turns += 1;
        }
        last.turns >= Views::LIMIT
    }
}

/// One number for where a thread is: FNV-1a over words.
fn digest(registers: &Registers, address: u64) -> u64 {
    let words = [
        registers.rip,
        registers.rsp,
        registers.rbp,
        registers.rax,
        registers.rbx,
        registers.rcx,
        registers.rdx,
        registers.rsi,
        registers.rdi,
        registers.r8,
        registers.r9,
        registers.r10,
        registers.r11,
        registers.r12,
        registers.r13,
        registers.r14,
        registers.r15,
        address,
    ];
    words.iter().fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        (hash ^ word).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_that_needs_a_page_twice_is_found() {
        let views = Views::default();
        let mut registers = Registers::default();
        let mut torn = |rip, address, page| {
            registers.rip = rip;
            views.torn(&registers, address, (1, page))
        };
        // Somebody else uses the page, or the instruction two pages.
        assert!((0..100).all(|_| !torn(1, 0x1000, 0)));
        assert!((0..100).all(|turn| !torn(2, turn % 2 * 0x1000, turn % 2)));
        assert!((0..100).all(|turn| !torn(turn, turn % 2 * 0x1000, 0)));
        let turns = (0..).take_while(|turn| !torn(3, turn % 2 * 0x1000, 0));
        assert_eq!(turns.count(), 3);
    }

    #[test]
    fn only_faults_without_progress_count() {
        let stuck = Stuck::default();
        let mut registers = Registers::default();
        for turn in 0..3 * u64::from(LIMIT) {
            registers.rcx = turn / 10;
            assert!(!stuck.again(&registers, 0x1000));
        }
        let before = (1..LIMIT - 10).all(|_| !stuck.again(&registers, 0x1000));
        assert!(before && !stuck.again(&registers, 0x2000));
        let turns = (1..)
            .take_while(|_| !stuck.again(&registers, 0x1000))
            .count();
        assert_eq!(turns as u32, LIMIT - 1);
    }
}
