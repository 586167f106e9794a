//! Signals at any instruction: kicks while the enclave runs, and single-stepping.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bulla_loader::backend::emulated::{Emulated, Profile};
use bulla_loader::backend::{Backend, EnterLeaf, Outcome, Registers};

use crate::code::at;
use crate::enclave::TestEnclave;

const KICK: i32 = libc::SIGURG;
const EXCEPTION: u64 = 3;

static PLATFORM: AtomicPtr<Emulated> = AtomicPtr::new(ptr::null_mut());
static HANDLED: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, context: *mut c_void) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
    let platform = PLATFORM.load(Ordering::Acquire);
    // SAFETY: the platform outlives the storm; the context is the kernel's.
    if !platform.is_null() && unsafe { (*platform).kick_in_handler(context) } {
        TAKEN.fetch_add(1, Ordering::Relaxed);
    }
}

fn install(enclave: &TestEnclave) {
    PLATFORM.store((&raw const enclave.platform).cast_mut(), Ordering::Release);
    // SAFETY: a valid action.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_kick as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(KICK, &action, ptr::null_mut());
    }
}

/// Runs a snippet as the loader would: kicks are answered with ERESUME, faults are not expected.
/// Returns RDI at the end and how many kicks came through.
fn run(enclave: &TestEnclave, slot: u64, snippet: u64, arguments: [u64; 4]) -> (u64, u64) {
    let (mut outcome, mut rdi, mut rsi) = enclave.run(slot, snippet, arguments);
    let mut kicks = 0;
    loop {
        assert_eq!(outcome, Outcome::Exit);
        if (rdi, rsi) != (1, EXCEPTION) {
            return (rdi, kicks);
        }
        kicks += 1;
        let mut registers = Registers::default();
        outcome = enclave
            .platform
            .enter(enclave.tcs(slot), EnterLeaf::Eresume, &mut registers);
        (rdi, rsi) = (registers.rdi, registers.rsi);
    }
}

fn storm(enclave: &TestEnclave, work: impl Fn() -> u64) -> u64 {
    install(enclave);
    // SAFETY: no arguments.
    let thread = unsafe { libc::pthread_self() };
    let stop = AtomicBool::new(false);
    let kicks = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0u32;
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: the thread lives as long as the scope.
                unsafe { libc::pthread_kill(thread, KICK) };
                round = round.wrapping_mul(1664525).wrapping_add(1013904223);
                for _ in 0..round >> 20 {
                    std::hint::spin_loop();
                }
            }
        });
        let kicks = work();
        stop.store(true, Ordering::Relaxed);
        kicks
    });
    PLATFORM.store(ptr::null_mut(), Ordering::Release);
    kicks
}

#[test]
fn kicks_reach_a_running_enclave_and_change_nothing() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        let stop = enclave.data();
        enclave.poke(stop, 0);
        let kicks = storm(&enclave, || {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // As long as it takes, on a busy machine too.
                    let end = Instant::now() + Duration::from_secs(60);
                    while enclave.counter("kicks") <= 100 && Instant::now() < end {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    enclave.poke(stop, 1);
                });
                let (result, kicks) = run(&enclave, 0, at::do_spin(), [stop, 0, 0, 0]);
                assert_eq!(result, 77);
                kicks
            })
        });
        assert!(kicks > 10, "only {kicks} kicks");
        assert_eq!(enclave.counter("entries"), enclave.counter("exits"));
    }
}

#[test]
fn kicks_at_entries_and_exits_change_nothing() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        storm(&enclave, || {
            let mut kicks = 0;
            for round in 0..100_000 {
                let (result, some) = run(&enclave, 0, at::do_nothing(), [round + 100, 0, 0, 0]);
                assert_eq!(result, round + 100);
                kicks += some;
            }
            kicks
        });
    }
}

#[test]
fn kicks_in_the_gate_change_nothing() {
    for profile in Profile::NAMED
        .into_iter()
        .filter(|profile| profile.features.edmm)
    {
        let enclave = TestEnclave::new(profile);
        let page = enclave.fresh();
        enclave.platform.commit(page, 4096, 3).unwrap();
        let info = enclave.secinfo(0x20b);
        enclave.call(at::do_enclu_patched(), [5, info, page, 0]);
        let stop = enclave.data();
        enclave.poke(stop, 0);
        let kicks = storm(&enclave, || {
            let (result, kicks) = run(&enclave, 0, at::do_gate_spin(), [stop, 500_000, page, info]);
            assert_eq!(result, 77);
            kicks
        });
        println!("{kicks} kicks");
    }
}

#[test]
fn faults_and_kicks_together() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        storm(&enclave, || {
            for _ in 0..2000 {
                let (mut outcome, mut rdi, mut rsi) = enclave.run(0, at::do_pattern(), [0; 4]);
                let mut faults = 0;
                loop {
                    match outcome {
                        Outcome::Exit if (rdi, rsi) == (1, EXCEPTION) => {}
                        Outcome::Exit => break,
                        Outcome::Exception { vector: 6, .. } => {
                            faults += 1;
                            let rip = enclave.gprs(0, 0) + 136;
                            enclave.poke(rip, enclave.peek(rip) + 2);
                        }
                        other => panic!("{other:?}"),
                    }
                    (outcome, rdi, rsi) = enclave.resume();
                }
                assert_eq!((faults, rdi), (1, 1));
            }
            0
        });
    }
}

unsafe extern "C" {
    // The emulator's assembly.
    safe static bulla_emu_text: u8;
    safe static bulla_emu_text_end: u8;
}

/// What the stepped child does: host calls, page leaves by the gate, faults.
fn stepped_work(enclave: &TestEnclave, page: u64, info: u64) -> bool {
    let stop = enclave.data();
    let gate = run(enclave, 0, at::do_gate_spin(), [stop, 2, page, info]).0;
    let (mut outcome, mut rdi, mut rsi) = enclave.run(0, at::do_ud2(), [0; 4]);
    while outcome != Outcome::Exit || (rdi, rsi) == (1, EXCEPTION) {
        if let Outcome::Exception { vector: 6, .. } = outcome {
            let rip = enclave.gprs(0, 0) + 136;
            enclave.poke(rip, enclave.peek(rip) + 2);
        }
        (outcome, rdi, rsi) = enclave.resume();
    }
    let plain = run(enclave, 0, at::do_nothing(), [99, 0, 0, 0]).0;
    (gate, rdi, plain) == (77, 2, 99)
}

/// A child is stepped by its parent and kicked once at every instruction that it comes to.
#[test]
fn a_kick_at_every_instruction() {
    const ROUNDS: usize = 2;
    let profile = Profile::named("full").unwrap();
    let enclave = TestEnclave::new(profile);
    let page = enclave.fresh();
    enclave.platform.commit(page, 2 * 4096, 3).unwrap();
    let info = enclave.secinfo(0x20b);
    enclave.poke(enclave.data(), 0);
    // Accept the page and patch all sites before the fork.
    enclave.call(at::do_enclu_patched(), [5, info, page, 0]);
    assert!(stepped_work(&enclave, page, info));
    // SAFETY: the child only runs enclave code, which allocates nothing, and exits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        install(&enclave);
        let good = enclave.platform.prepare_thread().is_ok();
        // SAFETY: the parent traces this process.
        unsafe {
            if !good || libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) != 0 {
                libc::_exit(2);
            }
            libc::raise(libc::SIGSTOP);
        }
        for _ in 0..ROUNDS {
            if !stepped_work(&enclave, page, info) {
                // SAFETY: ends the child.
                unsafe { libc::_exit(3) };
            }
        }
        // SAFETY: ends the child without running destructors.
        unsafe { libc::_exit(0) };
    }
    assert!(child > 0);
    let text = (&raw const bulla_emu_text) as u64..(&raw const bulla_emu_text_end) as u64;
    let mut seen = std::collections::HashSet::new();
    let mut status = 0;
    let resume = |request, signal: i32| {
        // SAFETY: the child is stopped.
        let result = unsafe { libc::ptrace(request, child, 0, i64::from(signal)) };
        assert_eq!(result, 0);
    };
    loop {
        // SAFETY: waits for the child.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        if !libc::WIFSTOPPED(status) {
            break;
        }
        let signal = match libc::WSTOPSIG(status) {
            libc::SIGTRAP | libc::SIGSTOP | KICK => 0,
            other => other,
        };
        // SAFETY: the child is stopped; a plain structure.
        let rip = unsafe {
            let mut registers: libc::user_regs_struct = std::mem::zeroed();
            libc::ptrace(libc::PTRACE_GETREGS, child, 0, &raw mut registers);
            registers.rip
        };
        let kick = signal == 0 && (rip < 1 << 40 || text.contains(&rip)) && seen.insert(rip);
        if kick {
            // The handler makes no system call but its last, rt_sigreturn: runs to there and on.
            for signal in [KICK, 0] {
                resume(libc::PTRACE_SYSCALL, signal);
                // SAFETY: waits for the child.
                assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
                assert!(libc::WIFSTOPPED(status));
            }
        }
        resume(libc::PTRACE_SINGLESTEP, signal);
    }
    assert!(libc::WIFEXITED(status), "{status:#x}");
    assert_eq!(libc::WEXITSTATUS(status), 0);
    let inside = seen.iter().filter(|rip| **rip < 1 << 40).count();
    println!(
        "kicked at {inside} places inside, {} in the emulator",
        seen.len() - inside
    );
    assert!(inside > 40 && seen.len() - inside > 150);
}
