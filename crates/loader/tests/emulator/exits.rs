//! Machines that examine exits find every register that an enclave leaves for the host.

use bulla_loader::backend::Outcome;
use bulla_loader::backend::emulated::{CANARY, Profile};

use crate::code::at;
use crate::enclave::TestEnclave;

/// What `do_leak` leaves, in its order; the first is a clean exit, the last are AVX-512's.
const LEFT: [&str; 31] = [
    "nothing",
    "rdi",
    "rsi",
    "rdx",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rbp",
    "rsp",
    "rax",
    "DF",
    "CF",
    "MXCSR",
    "xmm0",
    "xmm7",
    "xmm15",
    "ymm4",
    "ymm15",
    "st0",
    "an empty st0",
    "FCW",
    "mm5",
    "k3",
    "zmm9",
    "xmm16",
    "zmm31",
];
const WIDE: usize = 4;

#[test]
fn every_register_that_is_left_is_found() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile.examined());
        // What FXRSTOR takes for the initial state.
        enclave.poke(enclave.area(0) + 512, 0x37f);
        enclave.poke(enclave.area(0) + 512 + 24, 0x1f80);
        enclave.poke(enclave.area(0) + 64, CANARY);
        let wide = if crate::entry::has_avx512(&profile) {
            WIDE
        } else {
            0
        };
        for (index, name) in LEFT[..LEFT.len() - WIDE + wide].iter().enumerate() {
            let before = ["exits_examined", "exits_unclean"].map(|name| enclave.counter(name));
            let value = CANARY | 0x5a;
            let (outcome, ..) = enclave.run(0, at::do_leak(), [index as u64, value, 0, 0]);
            assert_eq!(outcome, Outcome::Exit);
            let after = ["exits_examined", "exits_unclean"].map(|name| enclave.counter(name));
            assert_eq!(after[0], before[0] + 1, "{name}: every exit is examined");
            let unclean = u64::from(index != 0);
            assert_eq!(after[1], before[1] + unclean, "{name} is left");
        }
    }
}

#[test]
fn without_examination_exits_do_not_trap() {
    let enclave = TestEnclave::new(Profile::named("full").unwrap());
    for _ in 0..10 {
        enclave.call(at::do_nothing(), [0; 4]);
    }
    assert_eq!(enclave.counter("enclu_traps"), 1);
}
