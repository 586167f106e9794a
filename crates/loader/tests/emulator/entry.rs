//! EENTER, EEXIT, AEX and ERESUME.

use bulla_loader::backend::emulated::Profile;
use bulla_loader::backend::{Backend, Outcome};

use crate::code::at;
use crate::enclave::{CODE, Options, TestEnclave};

#[test]
fn runs_code_and_comes_back() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        for round in 0..10 {
            assert_eq!(enclave.call(at::do_nothing(), [round, 0, 0, 0]).0, round);
        }
        assert_eq!(enclave.counter("enclu_traps"), 1);
        assert_eq!(enclave.counter("enclu_sites_patched"), 1);
        assert_eq!(
            (enclave.counter("entries"), enclave.counter("exits")),
            (10, 10)
        );
    }
}

#[test]
fn every_register_survives_aex_and_eresume() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        let fault = enclave.fault(at::do_pattern(), [0; 4]);
        assert_eq!(fault, (6, 0, 0));
        let gprs = enclave.gprs(0, 0);
        let expected = [0x11, 0x33, 0x44, 0x22];
        for (index, value) in expected.into_iter().enumerate() {
            assert_eq!(enclave.peek(gprs + 8 * index as u64), value);
        }
        assert_eq!(
            enclave.peek(gprs + 136),
            enclave.base + CODE + at::do_pattern_ud2()
        );
        assert_eq!(enclave.peek(gprs + 160), 0x8000_0306);
        assert_eq!(enclave.skip(2), (Outcome::Exit, 1, enclave.skip_rdx()));
    }
}

impl TestEnclave {
    fn skip_rdx(&self) -> u64 {
        0x44
    }
}

#[test]
fn the_hole_lets_sites_be_patched() {
    let enclave = TestEnclave::new(Profile::named("full").unwrap());
    let (flags, page) = (0x20b, enclave.fresh());
    enclave.platform.commit(page, 0x10_0000, 3).unwrap();
    let secinfo = enclave.secinfo(flags);
    let accepted = enclave
        .call(at::do_enclu_patched_loop(), [256, secinfo, page, 0])
        .0;
    assert_eq!(accepted, 256);
    assert_eq!(enclave.counter("enclu_traps"), 2);
}

#[test]
fn illegal_instructions_raise_ud() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        let mut cases = vec![
            (at::do_syscall(), 5, 2),
            (at::do_int80(), 5, 2),
            (at::do_ud2(), 0, 2),
            (at::do_rdpmc(), 2, 2),
            (at::do_in(), 5, 1),
            (at::do_int7(), 0, 2),
        ];
        if !profile.features.rdtsc {
            cases.push((at::do_rdtsc(), 0, 2));
        }
        for (snippet, offset, len) in cases {
            assert_eq!(enclave.fault(snippet, [0; 4]), (6, 0, 0), "{snippet:#x}");
            let gprs = enclave.gprs(0, 0);
            assert_eq!(
                enclave.peek(gprs + 136),
                enclave.base + CODE + snippet + offset
            );
            assert_eq!(enclave.peek(gprs + 160), 0x8000_0306);
            let (outcome, ..) = enclave.skip(len);
            assert_eq!(outcome, Outcome::Exit);
        }
        if profile.features.rdtsc {
            assert_eq!(enclave.call(at::do_rdtsc(), [0; 4]).0, 1);
        }
        // The host's own system calls and clocks still work.
        let _ = std::time::Instant::now();
        assert!(std::fs::metadata("/").is_ok());
    }
}

#[test]
fn elrange_may_start_at_zero() {
    let profile = Profile::named("full").unwrap();
    let options = Options {
        base: 0,
        ..Options::new(profile)
    };
    let enclave = TestEnclave::with(options);
    assert_eq!(enclave.call(at::do_nothing(), [5, 0, 0, 0]).0, 5);
    // A null pointer finds nothing.
    let (vector, _, address) = enclave.fault(at::do_read(), [8, 0, 0, 0]);
    assert_eq!((vector, address), (14, 8));
}
