//! EACCEPT, EACCEPTCOPY, EMODPE, and the flows with EMODPR and EMODT.

use bulla_loader::backend::emulated::Profile;
use bulla_loader::backend::{Backend, Outcome, page_type};
use bulla_sgx::SecInfo;

use crate::code::at;
use crate::enclave::{CODE, CONSTANT, CONSTANTS, NSSA, Options, PAGE, TestEnclave};

const EACCEPT: u64 = 5;
const EMODPE: u64 = 6;
const EACCEPTCOPY: u64 = 7;
const ZF: u64 = 1 << 6;
const MISMATCH: u64 = 19;
const REG: u64 = 2 << 8;
const TCS: u64 = 1 << 8;
const TRIM: u64 = 4 << 8;

/// Machines with EDMM, with and without faults on pending pages.
fn machines() -> impl Iterator<Item = Profile> {
    Profile::NAMED
        .into_iter()
        .filter(|profile| profile.features.edmm)
        .flat_map(|profile| [profile, profile.strict()])
}

impl TestEnclave {
    /// ENCLU by both ways, trapped and patched, must do the same; returns (RAX, ZF).
    fn leaf(&self, leaf: u64, rbx: u64, rcx: u64, rdx: u64, patched: bool) -> (u64, bool) {
        let snippet = if patched {
            at::do_enclu_patched()
        } else {
            at::do_enclu()
        };
        let (rax, flags) = self.call(snippet, [leaf, rbx, rcx, rdx]);
        (rax, flags & ZF != 0)
    }

    fn fresh_page(&self, page: u64) {
        self.platform.commit(page, PAGE, 7).unwrap();
        let info = self.secinfo(REG | 3 | SecInfo::PENDING);
        assert_eq!(self.leaf(EACCEPT, info, page, 0, false), (0, false));
    }

    /// Vector and error code of an access that faults; the enclave goes on behind it.
    fn denied(&self, snippet: u64, address: u64) -> (u16, u16) {
        let (vector, error_code, fault) = self.fault(snippet, [address, 1, 0, 0]);
        assert_eq!(fault, address);
        // Leave by making the snippet return.
        let rip = self.gprs(0, 0) + 136;
        let back = self.base + CODE + at::do_nothing();
        self.poke(rip, back);
        assert_eq!(self.resume().0, Outcome::Exit);
        (vector, error_code)
    }
}

#[test]
fn committed_pages_are_zero_and_usable_after_eaccept() {
    for profile in machines() {
        let enclave = TestEnclave::new(profile);
        for patched in [false, true] {
            let page = enclave.fresh() + u64::from(patched) * PAGE;
            enclave.platform.commit(page, PAGE, 3).unwrap();
            if profile.strict {
                let (vector, error) = enclave.denied(at::do_read(), page + 5);
                assert_eq!((vector, error & 0x8001), (14, 0x8001));
            }
            let info = enclave.secinfo(REG | 3 | SecInfo::PENDING);
            assert_eq!(enclave.leaf(EACCEPT, info, page, 0, patched), (0, false));
            assert_eq!(enclave.call(at::do_read(), [page, 0, 0, 0]).0, 0);
            enclave.call(at::do_write(), [page, 9, 0, 0]);
            assert_eq!(enclave.call(at::do_read(), [page, 0, 0, 0]).0, 9);
            // Twice is a mismatch: PENDING is gone.
            assert_eq!(
                enclave.leaf(EACCEPT, info, page, 0, patched),
                (MISMATCH, true)
            );
        }
        assert_eq!(enclave.counter("eaug_pages"), 2);
    }
}

#[test]
fn eaccept_compares_and_checks() {
    for profile in machines() {
        let enclave = TestEnclave::new(profile);
        let page = enclave.fresh();
        enclave.platform.commit(page, PAGE, 3).unwrap();
        let pending = SecInfo::PENDING;
        for patched in [false, true] {
            for flags in [REG | 1 | pending, REG | 7 | pending, REG | 3 | SecInfo::PR] {
                let info = enclave.secinfo(flags);
                assert_eq!(
                    enclave.leaf(EACCEPT, info, page, 0, patched),
                    (MISMATCH, true)
                );
            }
        }
        let info = enclave.secinfo(REG | 3 | pending);
        // Operands that are misaligned or outside: #GP.
        for (rbx, rcx) in [
            (info + 8, page),
            (info, page + 8),
            (info, 0x1000),
            (enclave.base - PAGE, page),
            (info, enclave.base * 2),
        ] {
            assert_eq!(enclave.enclu_fault(EACCEPT, rbx, rcx, 0).0, 13);
        }
        // A page that is not there: #PF at that page.
        let absent = enclave.fresh() + 16 * PAGE;
        assert_eq!(enclave.enclu_fault(EACCEPT, info, absent, 0), (14, absent));
        // Combinations that are never legal: #GP.
        for flags in [
            REG | 3,
            REG | 3 | pending | SecInfo::MODIFIED,
            TCS | pending,
            TRIM | 3,
            pending,
            REG | 3 | pending | 1 << 6,
        ] {
            let info = enclave.secinfo(flags);
            assert_eq!(
                enclave.enclu_fault(EACCEPT, info, page, 0).0,
                13,
                "{flags:#x}"
            );
        }
        let info = enclave.secinfo(REG | 3 | pending);
        enclave.poke(info + 32, 1);
        assert_eq!(enclave.enclu_fault(EACCEPT, info, page, 0).0, 13);
    }
}

#[test]
fn a_fault_at_a_patched_site_can_be_retried() {
    for profile in machines() {
        let enclave = TestEnclave::new(profile);
        let page = enclave.fresh();
        enclave.fresh_page(page);
        let info = enclave.secinfo(REG | 3 | SecInfo::PENDING);
        // Patch the site first.
        assert_eq!(enclave.leaf(EACCEPT, info, page, 0, true), (MISMATCH, true));
        assert_eq!(enclave.leaf(EACCEPT, info, page, 0, true), (MISMATCH, true));
        let traps = enclave.counter("enclu_traps");
        let next = page + PAGE;
        let arguments = [EACCEPT, info, next, 0];
        let fault = enclave.fault(at::do_enclu_patched(), arguments);
        assert_eq!((fault.0, fault.2), (14, next));
        assert_eq!(enclave.counter("enclu_traps"), traps);
        assert_eq!(enclave.peek(enclave.gprs(0, 0)), EACCEPT);
        enclave.platform.commit(next, PAGE, 3).unwrap();
        assert_eq!(enclave.resume(), (Outcome::Exit, 0, enclave.resume_flags()));
    }
}

impl TestEnclave {
    /// IF and the reserved bit: all arithmetic flags clear.
    fn resume_flags(&self) -> u64 {
        0x202
    }
}

#[test]
fn emodpe_extends_and_emodpr_restricts() {
    for profile in machines() {
        let enclave = TestEnclave::new(profile);
        let page = enclave.fresh();
        enclave.fresh_page(page);
        // RET, so that it can be run.
        enclave.call(at::do_write(), [page, 0xc3, 0, 0]);
        assert_eq!(
            enclave.denied(at::do_run(), page),
            (14, 0x8015),
            "not executable yet"
        );
        for (patched, flags) in [(false, REG | 4 | 1), (true, REG | 4 | 1)] {
            let info = enclave.secinfo(flags);
            let (rax, _) = enclave.leaf(EMODPE, info, page, 0, patched);
            assert_eq!(rax, EMODPE, "RAX is untouched");
        }
        enclave.call(at::do_run(), [page, 0, 0, 0]);
        // EMODPR to read and execute; EACCEPT it.
        enclave.platform.restrict(page, PAGE, 5).unwrap();
        let (vector, error) = enclave.denied(at::do_write(), page);
        assert_eq!((vector, error & 0x8003), (14, 0x8003));
        let info = enclave.secinfo(REG | 5 | SecInfo::PR);
        assert_eq!(enclave.leaf(EACCEPT, info, page, 0, false), (0, false));
        enclave.call(at::do_run(), [page, 0, 0, 0]);
        // Extending again makes it writable, if the page tables agree.
        let info = enclave.secinfo(REG | 7);
        enclave.leaf(EMODPE, info, page, 0, false);
        enclave.call(at::do_write(), [page, 0xc3, 0, 0]);
        enclave.platform.protect(page, PAGE, 5).unwrap();
        let (vector, error) = enclave.denied(at::do_write(), page);
        assert_eq!(
            (vector, error & 0x8000),
            (14, 0),
            "a page table fault, not an EPCM one"
        );
        // W without R, pages that are not there.
        let info = enclave.secinfo(REG | 2);
        assert_eq!(enclave.enclu_fault(EMODPE, info, page, 0).0, 13);
        let info = enclave.secinfo(REG | 3);
        let absent = page + 8 * PAGE;
        assert_eq!(enclave.enclu_fault(EMODPE, info, absent, 0), (14, absent));
    }
}

#[test]
fn eacceptcopy_copies_and_sets_permissions() {
    for profile in machines() {
        let enclave = TestEnclave::new(profile);
        for patched in [false, true] {
            let page = enclave.fresh() + u64::from(patched) * PAGE;
            enclave.platform.commit(page, PAGE, 7).unwrap();
            let source = enclave.data();
            let info = enclave.secinfo(REG | 5);
            let before = enclave.peek(source + 0x800);
            assert_eq!(
                enclave.leaf(EACCEPTCOPY, info, page, source, patched),
                (0, false)
            );
            enclave.call(at::do_read(), [page, 0, 0, 0]); // the host's mapping follows an access
            assert_eq!(enclave.peek(page + 0x800), before);
            assert_eq!(
                enclave.peek(page + 0x400),
                REG | 5,
                "our SECINFO was copied with it"
            );
            enclave.call(at::do_write(), [page, 0xc3, 0, 0]);
            enclave.call(at::do_run(), [page, 0, 0, 0]);
            let again = enclave.leaf(EACCEPTCOPY, info, page, source, patched);
            assert_eq!(again, (MISMATCH, true));
        }
        let info = enclave.secinfo(REG | 3);
        let page = enclave.fresh() + 4 * PAGE;
        enclave.platform.commit(page, PAGE, 3).unwrap();
        let source = enclave.data();
        assert_eq!(
            enclave.enclu_fault(EACCEPTCOPY, info, page + 8, source).0,
            13
        );
        assert_eq!(
            enclave.enclu_fault(EACCEPTCOPY, info, page, source + 8).0,
            13
        );
        let absent = page + 8 * PAGE;
        assert_eq!(
            enclave.enclu_fault(EACCEPTCOPY, info, page, absent),
            (14, absent)
        );
        let info = enclave.secinfo(REG | 2);
        assert_eq!(enclave.enclu_fault(EACCEPTCOPY, info, page, source).0, 13);
    }
}

#[test]
fn pages_are_trimmed_removed_and_come_back_as_zeros() {
    for profile in machines() {
        let enclave = TestEnclave::new(profile);
        let page = enclave.fresh();
        enclave.fresh_page(page);
        enclave.call(at::do_write(), [page, 1, 0, 0]);
        enclave
            .platform
            .modify_type(page, PAGE, page_type::TRIM)
            .unwrap();
        let (vector, error) = enclave.denied(at::do_read(), page);
        assert_eq!((vector, error & 0x8000), (14, 0x8000));
        let early = enclave.platform.remove(page, PAGE).unwrap_err().to_string();
        assert!(early.contains("not trimmed and accepted"), "{early}");
        let info = enclave.secinfo(TRIM | SecInfo::MODIFIED);
        assert_eq!(enclave.leaf(EACCEPT, info, page, 0, true), (0, false));
        enclave.platform.remove(page, PAGE).unwrap();
        let (vector, error) = enclave.denied(at::do_read(), page);
        assert_eq!(
            (vector, error & 0x8001),
            (14, 0),
            "there is no page any more"
        );
        enclave.fresh_page(page);
        assert_eq!(enclave.call(at::do_read(), [page, 0, 0, 0]).0, 0);
        // Pages that are not there, or pending, cannot be changed.
        enclave.platform.commit(page + PAGE, PAGE, 3).unwrap();
        for odd in [page + PAGE, page + 2 * PAGE] {
            assert!(
                enclave
                    .platform
                    .modify_type(odd, PAGE, page_type::TRIM)
                    .is_err()
            );
            assert!(enclave.platform.restrict(odd, PAGE, 1).is_err());
        }
        assert!(
            enclave
                .platform
                .modify_type(page, PAGE, page_type::REG)
                .is_err()
        );
    }
}

#[test]
fn pages_that_are_not_copied_are_the_enclaves_own() {
    const FILLED: u64 = 0xc5;
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        let page = enclave.base + CONSTANT;
        let program = std::env::current_exe().unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps
            .lines()
            .find(|line| line.starts_with(&format!("{page:x}-")));
        assert!(
            line.is_some_and(|line| line.ends_with(program.to_str().unwrap())),
            "they were copied: {line:?}"
        );
        assert_eq!(enclave.call(at::do_read(), [page, 0, 0, 0]).0, FILLED);
        enclave.call(at::do_write(), [page, 1, 0, 0]);
        let changed = enclave.call(at::do_read(), [page, 0, 0, 0]).0;
        assert_eq!(changed, 1);
        assert!(CONSTANTS.0.iter().all(|byte| *byte == 0xc5));
        if !profile.features.edmm {
            continue;
        }
        // Removed pages, written or not, come back as zeros.
        for page in [page, page + 3 * PAGE] {
            let trim = enclave.platform.modify_type(page, PAGE, page_type::TRIM);
            trim.unwrap();
            let info = enclave.secinfo(TRIM | SecInfo::MODIFIED);
            assert_eq!(enclave.leaf(EACCEPT, info, page, 0, true), (0, false));
            enclave.platform.remove(page, PAGE).unwrap();
            enclave.fresh_page(page);
            assert_eq!(enclave.call(at::do_read(), [page, 0, 0, 0]).0, 0);
        }
        let left = enclave.call(at::do_read(), [page + 4 * PAGE, 0, 0, 0]);
        assert_eq!(left.0, FILLED);
    }
}

#[test]
fn a_thread_is_added_and_removed() {
    for profile in machines() {
        let enclave = TestEnclave::new(profile);
        // Slot 5: stack, area, SSA and TCS from fresh pages.
        let slot = 5;
        let tcs = enclave.tcs(slot);
        let area = enclave.area(slot);
        for (start, pages) in [
            (area - 2 * PAGE, 1),
            (area, 1),
            (enclave.ssa(slot, 0), 12),
            (tcs, 1),
        ] {
            for page in 0..pages {
                enclave.fresh_page(start + page * PAGE);
            }
        }
        let bytes = TestEnclave::tcs_page(slot, NSSA).to_bytes();
        for (at, byte) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            enclave.call(at::do_write(), [tcs + at as u64, u64::from(*byte), 0, 0]);
        }
        let vector = |outcome| match outcome {
            Outcome::Exception {
                leaf: 2, vector, ..
            } => vector,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            vector(enclave.run(slot, at::do_nothing(), [0; 4]).0),
            14,
            "a regular page"
        );
        enclave
            .platform
            .modify_type(tcs, PAGE, page_type::TCS)
            .unwrap();
        assert_eq!(
            vector(enclave.run(slot, at::do_nothing(), [0; 4]).0),
            14,
            "not accepted"
        );
        let info = enclave.secinfo(TCS | SecInfo::MODIFIED);
        assert_eq!(enclave.leaf(EACCEPT, info, tcs, 0, false), (0, false));
        assert_eq!(enclave.run(slot, at::do_nothing(), [6, 0, 0, 0]).1, 6);
        assert_eq!(
            enclave.denied(at::do_read(), tcs).0,
            14,
            "a TCS cannot be read"
        );
        enclave
            .platform
            .modify_type(tcs, PAGE, page_type::TRIM)
            .unwrap();
        assert_eq!(vector(enclave.run(slot, at::do_nothing(), [0; 4]).0), 14);
        let info = enclave.secinfo(TRIM | SecInfo::MODIFIED);
        assert_eq!(enclave.leaf(EACCEPT, info, tcs, 0, false), (0, false));
        enclave.platform.remove(tcs, PAGE).unwrap();
    }
}

#[test]
fn eaccept_refuses_a_bad_tcs() {
    for profile in machines() {
        let enclave = TestEnclave::new(profile);
        let page = enclave.fresh();
        enclave.fresh_page(page);
        enclave.call(at::do_write(), [page, 1, 0, 0]); // a reserved field
        enclave
            .platform
            .modify_type(page, PAGE, page_type::TCS)
            .unwrap();
        let info = enclave.secinfo(TCS | SecInfo::MODIFIED);
        assert_eq!(enclave.enclu_fault(EACCEPT, info, page, 0).0, 13);
    }
}

#[test]
fn without_edmm_there_are_no_page_leaves() {
    for profile in Profile::NAMED
        .into_iter()
        .filter(|profile| !profile.features.edmm)
    {
        let enclave = TestEnclave::new(profile);
        let page = enclave.fresh();
        assert!(
            enclave
                .platform
                .commit(page, PAGE, 3)
                .unwrap_err()
                .to_string()
                .contains("EDMM")
        );
        let info = enclave.secinfo(REG | 3 | SecInfo::PENDING);
        for leaf in [EACCEPT, EMODPE, EACCEPTCOPY] {
            assert_eq!(enclave.enclu_fault(leaf, info, page, 0).0, 13);
        }
    }
}

#[test]
fn large_runs_are_committed_at_once() {
    let enclave = TestEnclave::new(Profile::named("full").unwrap());
    let (start, len) = (enclave.fresh(), 64 << 20);
    enclave.platform.commit(start, len, 3).unwrap();
    let info = enclave.secinfo(REG | 3 | SecInfo::PENDING);
    let pages = len / PAGE;
    let accepted = enclave
        .call(at::do_enclu_patched_loop(), [pages, info, start, 0])
        .0;
    assert_eq!(accepted, pages);
    // A second commit of what is there only changes page tables.
    enclave.platform.commit(start, len, 1).unwrap();
    let (vector, error) = enclave.denied(at::do_write(), start + PAGE);
    assert_eq!((vector, error & 0x8000), (14, 0));
    assert_eq!(enclave.counter("eaug_pages"), pages);
}

#[test]
fn threads_commit_and_patch_at_once() {
    const THREADS: u64 = 4;
    const PAGES: u64 = 64;
    for profile in machines() {
        for _ in 0..10 {
            let threads = THREADS;
            let enclave = TestEnclave::with(Options {
                threads,
                ..Options::new(profile)
            });
            let info = enclave.secinfo(REG | 3 | SecInfo::PENDING);
            let barrier = std::sync::Barrier::new(THREADS as usize);
            std::thread::scope(|scope| {
                for slot in 0..THREADS {
                    let (enclave, barrier) = (&enclave, &barrier);
                    scope.spawn(move || {
                        enclave.platform.prepare_thread().unwrap();
                        let start = enclave.fresh() + slot * PAGES * PAGE;
                        enclave.platform.commit(start, PAGES * PAGE, 3).unwrap();
                        barrier.wait();
                        let arguments = [PAGES, info, start, 0];
                        let (outcome, accepted, _) =
                            enclave.run(slot, at::do_enclu_patched_loop(), arguments);
                        let rip = enclave.peek(enclave.gprs(slot, 0) + 136);
                        let bytes = if outcome == Outcome::Exit {
                            0
                        } else {
                            enclave.peek(rip)
                        };
                        assert_eq!(
                            (outcome, accepted),
                            (Outcome::Exit, PAGES),
                            "rip {rip:#x}, {bytes:#x}"
                        );
                        for page in 0..PAGES {
                            let arguments = [start + page * PAGE, 1, 0, 0];
                            assert_eq!(
                                enclave.run(slot, at::do_write(), arguments).0,
                                Outcome::Exit
                            );
                        }
                    });
                }
            });
            assert_eq!(enclave.counter("enclu_sites_patched"), 2);
        }
    }
}
