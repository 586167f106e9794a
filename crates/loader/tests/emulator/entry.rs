//! EENTER, EEXIT, AEX and ERESUME.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use bulla_loader::backend::emulated::Profile;
use bulla_loader::backend::{Backend, EnterLeaf, Outcome};

use bulla_sgx::xfrm;

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
        // URSP and the bases; the extended state in standard format.
        assert!(enclave.peek(gprs + 144) >> 40 != 0);
        assert_eq!(enclave.peek(gprs + 168), enclave.area(0));
        assert_eq!(enclave.peek(gprs + 176), enclave.area(0));
        let frame = enclave.ssa(0, 0);
        assert_eq!(enclave.peek(frame) & 0xffff, 0x37f, "the x87 control word");
        assert_eq!(enclave.peek(frame + 24) as u32, 0x1fa0, "MXCSR");
        for register in 0..16 {
            assert_eq!(enclave.peek(frame + 160 + 16 * register), 0x7000 + register);
            assert_eq!(enclave.peek(frame + 576 + 16 * register), 0x7000 + register);
        }
        // AVX-512 state may be left from the host.
        assert_eq!(
            (enclave.peek(frame + 512) & 0x1f, enclave.peek(frame + 520)),
            (7, 0)
        );
        assert_eq!(enclave.skip(2), (Outcome::Exit, 1, enclave.skip_rdx()));
    }
}

/// Whether enclaves of this machine have AVX-512; says so where not.
pub fn has_avx512(profile: &Profile) -> bool {
    let has = profile.features().xfrm & xfrm::AVX512 != 0;
    if !has {
        eprintln!("{}: no AVX-512 to test with", profile.name);
    }
    has
}

/// What host code may do with the registers that it shares with the enclave.
fn spoil_wide_registers() {
    // SAFETY: only called where the CPU has AVX-512; all that is changed is named.
    unsafe {
        asm!(
            ".irp n, 0,1,2,3,4,5,6,7",
            "kxnorq k\\n, k\\n, k\\n",
            ".endr",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "vpternlogd zmm\\n, zmm\\n, zmm\\n, 0xff",
            ".endr",
            "vzeroupper",
            clobber_abi("sysv64"),
            options(nostack)
        );
    }
}

#[test]
fn avx512_survives_aex_and_eresume() {
    for profile in Profile::NAMED {
        if !has_avx512(&profile) {
            continue;
        }
        let enclave = TestEnclave::new(profile);
        let place = |component| u64::from(__cpuid_count(0xd, component).ebx);
        let (opmask, upper, high) = (place(5), place(6), place(7));
        spoil_wide_registers();
        let out = enclave.data();
        assert_eq!(enclave.fault(at::do_wide(), [out, 0, 0, 0]), (6, 0, 0));
        // After an AEX the components are in their initial state (SDM 36.3.2).
        let mut left = [1u64; 9];
        // SAFETY: stores a register where there is room for it.
        unsafe {
            asm!("vmovdqu64 [{0}], zmm31", "kmovq [{0} + 64], k7", in(reg) &raw mut left,
                options(nostack, preserves_flags));
        }
        assert_eq!(left, [0; 9]);
        let frame = enclave.ssa(0, 0);
        assert_eq!(enclave.peek(frame + 512) & 0xe6, 0xe6);
        for n in 0..8 {
            assert_eq!(enclave.peek(frame + opmask + 8 * n), 0x9000 + n, "k{n}");
        }
        for n in 0..16 {
            for word in 0..4 {
                let at = frame + upper + 32 * n + 8 * word;
                assert_eq!(enclave.peek(at), 0x8000 + n, "zmm{n}");
            }
            for word in 0..8 {
                let at = frame + high + 64 * n + 8 * word;
                assert_eq!(enclave.peek(at), 0x8000 + 16 + n, "zmm{}", 16 + n);
            }
        }
        spoil_wide_registers();
        assert_eq!(enclave.skip(2).1, 1);
        for n in 0..32 {
            for word in 0..8 {
                let at = out + 64 * n + 8 * word;
                assert_eq!(enclave.peek(at), 0x8000 + n, "zmm{n}");
            }
        }
        for n in 0..8 {
            assert_eq!(enclave.peek(out + 64 * 32 + 8 * n), 0x9000 + n, "k{n}");
        }
    }
}

#[test]
fn less_state_than_the_machine_has_is_possible() {
    for profile in Profile::NAMED {
        for less in [3, 7].map(|wanted| xfrm::most(wanted, profile.features().xfrm)) {
            let enclave = TestEnclave::with(Options {
                xfrm: less,
                ..Options::new(profile)
            });
            enclave.fault(at::do_ud2(), [0; 4]);
            assert_eq!(enclave.peek(enclave.ssa(0, 0) + 512) & !less, 0);
            assert_eq!(enclave.skip(2).0, Outcome::Exit);
        }
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
        illegal_instructions(profile);
    }
}

#[test]
fn illegal_instructions_raise_ud_with_seccomp_too() {
    for profile in Profile::NAMED {
        illegal_instructions(profile.seccomp());
    }
}

fn illegal_instructions(profile: Profile) {
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

/// The vector of an EENTER or ERESUME that faults.
fn entry_fault(outcome: Outcome, leaf: u32) -> u16 {
    match outcome {
        Outcome::Exception {
            leaf: of, vector, ..
        } if of == leaf => vector,
        other => panic!("{other:?}"),
    }
}

#[test]
fn eenter_sets_the_registers() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        let data = enclave.data();
        enclave.call(at::do_registers(), [data, 11, 12, 13]);
        assert_eq!(enclave.peek(data), enclave.area(0));
        assert_eq!(enclave.peek(data + 8), enclave.area(0));
        // RCX was an address outside, RSP the host's (kept in URSP), RBX the TCS.
        assert!(enclave.peek(data + 16) >> 40 != 0);
        assert_eq!(
            enclave.peek(data + 24),
            enclave.peek(enclave.gprs(0, 0) + 144)
        );
        assert_eq!(enclave.peek(data + 32), enclave.tcs(0));
        assert_eq!([40, 48, 56].map(|at| enclave.peek(data + at)), [11, 12, 13]);
    }
}

#[test]
fn the_host_gets_its_own_state_back() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        for _ in 0..3 {
            // Clobbers r12-r15, MXCSR, the x87 control word and DF.
            assert_eq!(enclave.call(at::do_state(), [0; 4]).0, 1);
            let one = std::hint::black_box(1.0f64);
            assert_eq!((one / 3.0).to_bits(), 0x3fd5_5555_5555_5555);
            let mut copy = [0u8; 100];
            copy.copy_from_slice(&std::hint::black_box([7u8; 100]));
            assert_eq!(copy, [7; 100]);
        }
    }
}

#[test]
fn eenter_checks_the_tcs() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        let enter = |tcs: u64| {
            let mut registers = Default::default();
            entry_fault(
                enclave
                    .platform
                    .enter(tcs, EnterLeaf::Eenter, &mut registers),
                2,
            )
        };
        assert_eq!(enter(enclave.tcs(0) + 8), 13, "misaligned");
        assert_eq!(enter(enclave.tcs(7)), 14, "not there");
        assert_eq!(enter(enclave.data()), 14, "not a TCS");
        assert_eq!(enter(0x1000), 14, "outside");
        // ERESUME with nothing to resume.
        assert_eq!(entry_fault(enclave.resume().0, 3), 13);
    }
}

#[test]
fn a_busy_tcs_cannot_be_entered() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        let stop = enclave.data();
        enclave.poke(stop, 0);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                enclave.platform.prepare_thread().unwrap();
                enclave.run(1, at::do_spin(), [stop, 0, 0, 0])
            });
            // The other thread is in when its counter says so.
            while enclave.counter("entries") == 0 {
                std::thread::yield_now();
            }
            let outcome = enclave.run(1, at::do_nothing(), [0; 4]).0;
            assert_eq!(entry_fault(outcome, 2), 13);
            // Another TCS is free.
            assert_eq!(enclave.run(0, at::do_nothing(), [3, 0, 0, 0]).1, 3);
            enclave.poke(stop, 1);
            assert_eq!(running.join().unwrap().1, 77);
        });
        assert_eq!(enclave.run(1, at::do_nothing(), [4, 0, 0, 0]).1, 4);
    }
}

#[test]
fn ssa_frames_run_out() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        enclave.fault(at::do_ud2(), [0; 4]);
        // CSSA 1: entered, and left at once with the CSSA.
        let (outcome, cssa, _) = enclave.run(0, 0, [0; 4]);
        assert_eq!((outcome, cssa), (Outcome::Exit, 1));
        assert_eq!(enclave.skip(2), (Outcome::Exit, 2, enclave.resume().2));
        drop(enclave);
        let enclave = TestEnclave::with(Options {
            nssa: 1,
            ..Options::new(profile)
        });
        enclave.fault(at::do_ud2(), [0; 4]);
        assert_eq!(
            entry_fault(enclave.run(0, at::do_nothing(), [0; 4]).0, 2),
            13
        );
        assert_eq!(enclave.skip(2).0, Outcome::Exit);
        assert_eq!(enclave.run(0, at::do_nothing(), [1, 0, 0, 0]).1, 1);
    }
}

#[test]
fn eresume_checks_the_frame() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        enclave.fault(at::do_ud2(), [0; 4]);
        let (frame, gprs) = (enclave.ssa(0, 0), enclave.gprs(0, 0));
        for (address, bad) in [
            (gprs + 136, 1 << 47),           // RIP not canonical
            (gprs + 168, 1 << 50),           // FS base not canonical
            (frame + 512, 1 << 9),           // XSTATE_BV beyond XFRM
            (frame + 520, 1 << 63),          // compacted format
            (frame + 528, 1),                // reserved
            (frame + 24, 0x1_0000 | 0x1f80), // MXCSR
        ] {
            let good = enclave.peek(address);
            enclave.poke(address, bad);
            assert_eq!(
                entry_fault(enclave.resume().0, 3),
                13,
                "{:#x}",
                address - frame
            );
            enclave.poke(address, good);
        }
        assert_eq!(enclave.skip(2).0, Outcome::Exit);
    }
}

#[test]
fn exceptions_are_reported_as_the_sdm_says() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        let exinfo = profile.features.exinfo;
        let cases = [
            (at::do_div(), 2, 0, 0x8000_0300u64),
            (at::do_int3(), 0, 3, 0x8000_0603),
            (at::do_ud2(), 0, 6, 0x8000_0306),
            (at::do_hlt(), 0, 13, if exinfo { 0x8000_030d } else { 0 }),
        ];
        for (snippet, offset, vector, info) in cases {
            assert_eq!(enclave.fault(snippet, [0; 4]).0, vector);
            let gprs = enclave.gprs(0, 0);
            assert_eq!(enclave.peek(gprs + 160), info);
            assert_eq!(
                enclave.peek(gprs + 136),
                enclave.base + CODE + snippet + offset
            );
            enclave.poke(gprs + 136, enclave.base + CODE + at::do_nothing());
            assert_eq!(enclave.resume().0, Outcome::Exit);
        }
        assert_eq!(enclave.fault(at::do_xm(), [0; 4]).0, 19);
        assert_eq!(enclave.peek(enclave.gprs(0, 0) + 160), 0x8000_0313);
        // Masks the exception and goes on.
        let mxcsr = enclave.ssa(0, 0) + 24;
        enclave.poke(mxcsr, enclave.peek(mxcsr) | 0x1f80);
        assert_eq!(enclave.resume(), (Outcome::Exit, 1, 0));
        // A page fault: address and error code only with EXINFO.
        let gprs = enclave.gprs(0, 0);
        enclave.poke(gprs - 16, 0);
        enclave.poke(gprs - 8, 0);
        let address = enclave.data() + 2 * 4096 + 0x123;
        let (vector, error_code, reported) = enclave.fault(at::do_write(), [address, 1, 0, 0]);
        assert_eq!((vector, reported), (14, address));
        assert_eq!(error_code & 7, 7, "a write to a page that is there");
        let info = enclave.peek(gprs + 160);
        let extra = (enclave.peek(gprs - 16), enclave.peek(gprs - 8));
        if exinfo {
            assert_eq!(
                (info, extra),
                (0x8000_030e, (address, u64::from(error_code)))
            );
        } else {
            assert_eq!((info, extra), (0, (0, 0)));
        }
    }
}

#[test]
fn page_permissions_hold() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        let base = enclave.base;
        let cases = [
            (at::do_write(), base + CODE),               // read and execute only
            (at::do_write(), enclave.data() + 2 * 4096), // read only
            (at::do_run(), enclave.data() + 4),          // not executable
            (at::do_read(), enclave.tcs(0)),             // a TCS
            (at::do_read(), enclave.fresh()),            // not there
            (at::do_read(), base + CODE - 4096),         // a gap
        ];
        for (snippet, address) in cases {
            let (vector, _, reported) = enclave.fault(snippet, [address, 0, 0, 0]);
            assert_eq!((vector, reported), (14, address));
            let gprs = enclave.gprs(0, 0);
            enclave.poke(gprs + 136, base + CODE + at::do_nothing());
            assert_eq!(enclave.resume().0, Outcome::Exit);
        }
        // A jump to where nothing can be executed outside ELRANGE: #GP at the target.
        let outside = (&raw const enclave.base) as u64;
        assert_eq!(enclave.fault(at::do_run(), [outside, 0, 0, 0]).0, 13);
        assert_eq!(enclave.peek(enclave.gprs(0, 0) + 136), outside);
    }
}

#[test]
fn enclu_refuses_what_is_illegal_inside() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        for leaf in [2, 3, 8, 9, 99] {
            assert_eq!(enclave.enclu_fault(leaf, enclave.tcs(0), 0, 0).0, 13);
        }
        // EEXIT to an address that is not canonical.
        assert_eq!(enclave.fault(at::do_bad_exit(), [1 << 48, 0, 0, 0]).0, 13);
        assert_eq!(enclave.skip(3).0, Outcome::Exit);
    }
}

#[test]
fn an_exit_site_serves_other_leaves_too() {
    for profile in Profile::NAMED
        .into_iter()
        .filter(|profile| profile.features.edmm)
    {
        let enclave = TestEnclave::new(profile);
        let page = enclave.fresh();
        let info = enclave.secinfo(0x20b);
        for round in 0..3 {
            // Makes it a jump first, then uses it for EACCEPT and EREPORT.
            assert_eq!(enclave.call(at::do_exit_other(), [4, 0, 0, 0]).0, 44);
            enclave
                .platform
                .commit(page + round * 4096, 4096, 3)
                .unwrap();
            let arguments = [5, info, page + round * 4096, 0];
            assert_eq!(enclave.call(at::do_exit_other(), arguments).0, 45);
            enclave.call(at::do_write(), [page + round * 4096, 1, 0, 0]);
        }
        let traps = enclave.counter("enclu_traps");
        let (vector, address) = {
            let absent = page + 64 * 4096;
            let (vector, _, address) = enclave.fault(at::do_exit_other(), [5, info, absent, 0]);
            (vector, address - absent)
        };
        assert_eq!((vector, address), (14, 0));
        assert_eq!(enclave.counter("enclu_traps"), traps);
        let rip = enclave.peek(enclave.gprs(0, 0) + 136);
        assert_eq!(
            rip,
            (enclave.base + CODE + at::the_site()).next_multiple_of(8)
        );
    }
}

#[test]
fn aex_notify_turns_eresume_into_an_entry() {
    const AEX_NOTIFY: u64 = bulla_sgx::flags::AEX_NOTIFY;
    const NOTIFY: u64 = 1 << 56;
    let profile = Profile::named("full").unwrap();
    let mut options = Options::new(profile);
    options.attributes |= AEX_NOTIFY;
    options.tcs_flags = 2;
    let enclave = TestEnclave::with(options);
    enclave.fault(at::do_ud2(), [0; 4]);
    // Not asked for: ERESUME resumes (and faults again).
    let again = enclave.resume().0;
    assert!(matches!(again, Outcome::Exception { vector: 6, .. }));
    let word = enclave.gprs(0, 0) + 160;
    enclave.poke(word, enclave.peek(word) | NOTIFY);
    let (outcome, cssa, _) = enclave.resume();
    assert_eq!(
        (outcome, cssa),
        (Outcome::Exit, 1),
        "entered with CSSA 1 instead"
    );
    enclave.poke(word, enclave.peek(word) & !NOTIFY);
    assert_eq!(enclave.skip(2).0, Outcome::Exit);
    // EDECCSSA gives the frame up: CSSA is 0 again, and there is nothing to resume.
    enclave.fault(at::do_ud2(), [0; 4]);
    let nine = 9u64.wrapping_sub(enclave.base + CODE);
    let (outcome, rdi, _) = enclave.run(0, nine, [0; 4]);
    assert_eq!((outcome, rdi), (Outcome::Exit, 99));
    assert_eq!(entry_fault(enclave.resume().0, 3), 13);
    assert_eq!(enclave.call(at::do_nothing(), [8, 0, 0, 0]).0, 8);
    // EDECCSSA at CSSA 0, and where there is no AEX-Notify: #GP.
    assert_eq!(enclave.enclu_fault(9, 0, 0, 0).0, 13);
}

#[test]
fn entry_and_exit_are_fast() {
    let enclave = TestEnclave::new(Profile::named("full").unwrap());
    enclave.call(at::do_nothing(), [0; 4]);
    // The best of many short runs: other work on the machine only adds.
    const ROUNDS: u32 = 1000;
    let batch = || {
        let start = std::time::Instant::now();
        for round in 0..ROUNDS {
            std::hint::black_box(enclave.call(at::do_nothing(), [u64::from(round), 0, 0, 0]));
        }
        start.elapsed() / ROUNDS
    };
    let each = (0..200).map(|_| batch()).min().unwrap();
    println!("EENTER and EEXIT together: {each:?}");
    let batch = || {
        let start = std::time::Instant::now();
        for _ in 0..100 {
            enclave.fault(at::do_ud2(), [0; 4]);
            enclave.run(0, 0, [0; 4]);
            enclave.skip(2);
        }
        start.elapsed() / 100
    };
    let each = (0..50).map(|_| batch()).min().unwrap();
    println!("AEX by #UD, entry and exit at CSSA 1, ERESUME: {each:?}");
    let batch = || {
        let start = std::time::Instant::now();
        for _ in 0..100 {
            enclave.fault(at::do_syscall(), [0; 4]);
            enclave.run(0, 0, [0; 4]);
            enclave.skip(2);
        }
        start.elapsed() / 100
    };
    let each = (0..50).map(|_| batch()).min().unwrap();
    println!("the same for a trapped system call: {each:?}");
    let info = enclave.secinfo(0x20b);
    let len = 128 << 20;
    let start = std::time::Instant::now();
    enclave.platform.commit(enclave.fresh(), len, 3).unwrap();
    let pages = len / 4096;
    println!("commit: {:?} a page", start.elapsed() / pages as u32);
    let start = std::time::Instant::now();
    enclave.call(
        at::do_enclu_patched_loop(),
        [pages, info, enclave.fresh(), 0],
    );
    println!("EACCEPT: {:?} a page", start.elapsed() / pages as u32);
}
