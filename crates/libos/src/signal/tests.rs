//! Delivery: frames, restarts, masks.

use alloc::sync::Arc;

use super::action::{SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_RESTORER, SA_SIGINFO};
use super::send::{Origin, to_process, to_thread};
use super::*;
use crate::errno::{EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS};
use crate::kernel::{before_user, handle_exception};
use crate::platform::platform;
use crate::process::tests::process;
use crate::process::thread::Work;
use crate::testing::alloc_user;
use crate::{Next, Registers};

const HANDLER: u64 = 0x40_1000;
const RESTORER: u64 = 0x40_2000;

fn handle(thread: &Arc<Thread>, signal: u32, flags: u64) {
    let action = Action {
        handler: HANDLER,
        flags: flags | SA_RESTORER,
        restorer: RESTORER,
        mask: 0,
    };
    thread.process.signals.actions().lock().set(signal, action);
}

/// A thread with a stack and distinct register values.
fn running() -> (Arc<Thread>, Registers) {
    let thread = process();
    let stack = alloc_user(&thread, 0x10000);
    let registers = Registers {
        rax: 1,
        rbx: 2,
        rcx: 3,
        rdx: 4,
        rsi: 5,
        rdi: 6,
        rbp: 7,
        rsp: stack + 0xf008,
        r8: 8,
        r9: 9,
        r10: 10,
        r11: 11,
        r12: 12,
        r13: 13,
        r14: 14,
        r15: 15,
        rip: 0x40_0123,
        rflags: 0x202 | 0x400 | 1,
        orig_rax: u64::MAX,
    };
    (thread, registers)
}

fn word(thread: &Arc<Thread>, address: u64) -> u64 {
    let mut bytes = [0; 8];
    thread.mm().read(address, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

#[test]
fn the_frame_is_what_linux_pushes() {
    let (thread, before) = running();
    let size = platform().fpu_size();
    let mut state = alloc::vec![0u8; size];
    for (at, byte) in state.iter_mut().enumerate() {
        *byte = at as u8;
    }
    state[512..576].fill(0);
    state[512] = 7;
    platform().fpu_restore(&state);
    handle(&thread, SIGUSR1, SA_SIGINFO);
    set_blocked(&thread, bit(SIGUSR2));
    let info = SigInfo::user(SIGUSR1, super::info::SI_TKILL, 42, 1000);
    to_thread(&thread, info, Origin::Inside).unwrap();
    let mut r = before;
    assert_eq!(before_user(&thread, &mut r), Next::User);

    assert_eq!((r.rip, r.rdi, r.rax), (HANDLER, u64::from(SIGUSR1), 0));
    assert_eq!(r.rsp % 16, 8, "as after a call");
    assert_eq!((r.rsi, r.rdx), (r.rsp + 312, r.rsp + 8));
    assert_eq!(r.rflags & 0x400, 0, "the direction flag is clear");
    assert!(r.rsp + 440 <= before.rsp - 128, "the red zone is untouched");
    assert_eq!(word(&thread, r.rsp), RESTORER);
    let uc = r.rdx;
    assert_eq!((word(&thread, uc), word(&thread, uc + 8)), (7, 0));
    assert_eq!(word(&thread, uc + 24) as u32, frame::SS_DISABLE);
    // sigcontext: r8 … r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, flags.
    let saved: alloc::vec::Vec<u64> = (0..18).map(|i| word(&thread, uc + 40 + i * 8)).collect();
    let expected = [
        8,
        9,
        10,
        11,
        12,
        13,
        14,
        15,
        6,
        5,
        7,
        2,
        4,
        1,
        3,
        before.rsp,
        before.rip,
        before.rflags,
    ];
    assert_eq!(saved, expected);
    assert_eq!(word(&thread, uc + 40 + 144), 0x33 | 0x2b << 48);
    assert_eq!(word(&thread, uc + 40 + 168), bit(SIGUSR2), "oldmask");
    assert_eq!(word(&thread, uc + 296), bit(SIGUSR2));
    // siginfo.
    assert_eq!(word(&thread, r.rsi), u64::from(SIGUSR1));
    assert_eq!(word(&thread, r.rsi + 8) as i32, -6);
    assert_eq!(word(&thread, r.rsi + 16), 42 | 1000 << 32);
    // fpstate.
    let fp = word(&thread, uc + 40 + 184);
    assert_eq!(fp % 64, 0);
    let mut image = alloc::vec![0u8; size + 4];
    thread.mm().read(fp, &mut image).unwrap();
    assert_eq!(image[..464], state[..464]);
    assert_eq!(image[464..468], 0x4650_5853_u32.to_le_bytes());
    assert_eq!(image[468..472], (size as u32 + 4).to_le_bytes());
    assert_eq!(image[472..480], 7_u64.to_le_bytes());
    assert_eq!(image[480..484], (size as u32).to_le_bytes());
    assert_eq!(image[484..512], [0; 28]);
    assert_eq!(image[576..size], state[576..]);
    assert_eq!(image[size..], 0x4650_5845_u32.to_le_bytes());
    assert_eq!(thread.signals.blocked(), bit(SIGUSR1) | bit(SIGUSR2));

    // The handler changes things, then returns.
    platform().fpu_restore(&alloc::vec![0u8; size]);
    thread
        .mm()
        .write(uc + 40 + 104, &77_u64.to_le_bytes())
        .unwrap();
    r.rsp += 8;
    r.rflags = 0x202;
    frame::pop(&thread, &mut r).unwrap();
    assert_eq!(r, Registers { rax: 77, ..before });
    assert_eq!(thread.signals.blocked(), bit(SIGUSR2));
    let mut after = alloc::vec![0u8; size];
    platform().fpu_save(&mut after);
    assert_eq!(after[..464], state[..464]);
    assert_eq!(after[512..], state[512..]);
}

#[test]
fn interrupted_calls_restart_as_linux_does() {
    let eintr = (-4i64) as u64;
    // (result, handler flags or none) → rax, whether rip goes back.
    let cases = [
        (ERESTARTSYS, Some(SA_RESTART), 202, true),
        (ERESTARTSYS, Some(0), eintr, false),
        (ERESTARTSYS, None, 202, true),
        (ERESTARTNOHAND, Some(SA_RESTART), eintr, false),
        (ERESTARTNOHAND, None, 202, true),
        (ERESTART_RESTARTBLOCK, Some(SA_RESTART), eintr, false),
        (ERESTART_RESTARTBLOCK, None, 219, true),
        (EINTR, Some(SA_RESTART), eintr, false),
    ];
    for (error, flags, rax, back) in cases {
        let (thread, mut r) = running();
        r.orig_rax = 202;
        r.rax = (-i64::from(error.code())) as u64;
        let rip = r.rip;
        thread.add_own_work(Work::SIGNAL);
        if let Some(flags) = flags {
            handle(&thread, SIGUSR1, flags);
            to_thread(&thread, SigInfo::kernel(SIGUSR1), Origin::Inside).unwrap();
        }
        assert_eq!(before_user(&thread, &mut r), Next::User);
        if flags.is_some() {
            assert_eq!(r.rip, HANDLER);
            r.rsp += 8;
            frame::pop(&thread, &mut r).unwrap();
        }
        assert_eq!(
            (r.rax, r.rip),
            (rax, if back { rip - 2 } else { rip }),
            "{error:?} {flags:?}"
        );
    }
}

#[test]
fn handlers_nest_lowest_number_innermost() {
    let (thread, before) = running();
    for signal in [SIGUSR1, SIGUSR2] {
        handle(&thread, signal, 0);
        to_process(&thread.process, SigInfo::kernel(signal), Origin::Inside).unwrap();
    }
    let mut r = before;
    before_user(&thread, &mut r);
    // Linux pushes the lower number first; the higher one's handler runs first.
    assert_eq!(r.rdi, u64::from(SIGUSR2));
    r.rsp += 8;
    frame::pop(&thread, &mut r).unwrap();
    assert_eq!((r.rip, r.rdi), (HANDLER, u64::from(SIGUSR1)));
    r.rsp += 8;
    frame::pop(&thread, &mut r).unwrap();
    assert_eq!(r.rip, before.rip);
    assert_eq!(thread.signals.blocked(), 0);
}

#[test]
fn flags_of_actions() {
    let (thread, before) = running();
    handle(&thread, SIGUSR1, SA_NODEFER | SA_RESETHAND);
    to_thread(&thread, SigInfo::kernel(SIGUSR1), Origin::Inside).unwrap();
    let mut r = before;
    before_user(&thread, &mut r);
    assert_eq!(thread.signals.blocked(), 0);
    assert_eq!(
        thread.process.signals.action(SIGUSR1).handler,
        action::SIG_DFL
    );

    // The alternate stack, then a second handler on it, then one that does not fit any more.
    let (thread, before) = running();
    let stack = alloc_user(&thread, 0x4000);
    let alternate = AlternateStack {
        base: stack,
        size: 0x2000,
        flags: 0,
    };
    frame::set_alternate_stack(&thread, alternate, before.rsp).unwrap();
    let mut r = before;
    for signal in [SIGUSR1, SIGUSR2] {
        handle(&thread, signal, SA_ONSTACK);
        to_thread(&thread, SigInfo::kernel(signal), Origin::Inside).unwrap();
        before_user(&thread, &mut r);
        assert_eq!(r.rdi, u64::from(signal));
        assert!((stack..stack + 0x2000).contains(&r.rsp));
    }
    let busy = frame::set_alternate_stack(&thread, alternate, r.rsp);
    assert_eq!(busy, Err(crate::errno::EPERM));
    r.rsp = stack + 100;
    handle(&thread, SIGTERM, SA_ONSTACK);
    to_thread(&thread, SigInfo::kernel(SIGTERM), Origin::Inside).unwrap();
    assert_eq!(before_user(&thread, &mut r), Next::Exit);
    assert_eq!(thread.process.group_exit(), Some(SIGSEGV));
}

#[test]
fn a_blocked_fault_is_fatal_and_ignored_signals_vanish() {
    let (thread, mut r) = running();
    set_blocked(&thread, bit(SIGFPE));
    handle(&thread, SIGFPE, 0);
    let divide = Exception {
        vector: 0,
        address: 0,
        error_code: 0,
    };
    handle_exception(&thread, &mut r, divide);
    assert_eq!(before_user(&thread, &mut r), Next::Exit);
    assert_eq!(thread.process.group_exit(), Some(SIGFPE));

    let (thread, _) = running();
    to_process(&thread.process, SigInfo::kernel(SIGWINCH), Origin::Inside).unwrap();
    assert_eq!(thread.process.signals.pending_mask(), 0);
    // Blocked, it stays: a handler may still come.
    set_blocked(&thread, bit(SIGWINCH));
    to_process(&thread.process, SigInfo::kernel(SIGWINCH), Origin::Inside).unwrap();
    assert_eq!(thread.process.signals.pending_mask(), bit(SIGWINCH));
}

#[test]
fn a_fault_tells_its_address() {
    let (thread, mut r) = running();
    handle(&thread, SIGSEGV, SA_SIGINFO);
    let fault = Exception {
        vector: 14,
        address: 0x18,
        error_code: 6,
    };
    handle_exception(&thread, &mut r, fault);
    before_user(&thread, &mut r);
    assert_eq!(r.rdi, u64::from(SIGSEGV));
    assert_eq!(word(&thread, r.rsi + 8) as i32, super::info::SEGV_MAPERR);
    assert_eq!(word(&thread, r.rsi + 16), 0x18);
    let context = r.rdx + 40;
    let fields = [152, 160, 176].map(|at| word(&thread, context + at));
    assert_eq!(fields, [6, 14, 0x18], "error code, trap number, cr2");
}

#[test]
fn a_temporary_mask_ends_with_the_handler() {
    let (thread, mut r) = running();
    set_blocked(&thread, bit(SIGUSR1) | bit(SIGHUP));
    handle(&thread, SIGUSR1, 0);
    to_thread(&thread, SigInfo::kernel(SIGUSR1), Origin::Inside).unwrap();
    begin_temporary_mask(&thread, bit(SIGUSR2));
    assert!(thread.interrupted());
    end_temporary_mask(&thread, true);
    r.orig_rax = 130;
    r.rax = (-i64::from(ERESTARTNOHAND.code())) as u64;
    before_user(&thread, &mut r);
    assert_eq!(r.rdi, u64::from(SIGUSR1));
    assert_eq!(thread.signals.blocked(), bit(SIGUSR1) | bit(SIGUSR2));
    r.rsp += 8;
    frame::pop(&thread, &mut r).unwrap();
    assert_eq!(thread.signals.blocked(), bit(SIGUSR1) | bit(SIGHUP));
    assert_eq!(r.rax, (-4i64) as u64);
}

#[test]
fn signalfd_information() {
    let info = SigInfo::child(SIGCHLD, super::info::CLD_EXITED, 7, 1000, 3, [1, 2]);
    let bytes = info.to_signalfd();
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    assert_eq!(
        [word(0), word(8), word(12), word(16), word(40)],
        [SIGCHLD, 1, 7, 1000, 3]
    );
}

#[test]
fn a_call_restarts_after_a_stop() {
    let (thread, mut r) = running();
    r.orig_rax = 0;
    r.rax = (-i64::from(ERESTARTSYS.code())) as u64;
    let rip = r.rip;
    to_process(&thread.process, SigInfo::kernel(SIGSTOP), Origin::Inside).unwrap();
    let runner = thread.clone();
    let host = std::thread::spawn(move || {
        let next = before_user(&runner, &mut r);
        (next, r)
    });
    while thread.process.signals.group.lock().stopped_threads == 0 {
        std::thread::yield_now();
    }
    to_process(&thread.process, SigInfo::kernel(SIGCONT), Origin::Inside).unwrap();
    let (next, r) = host.join().unwrap();
    assert_eq!((next, r.rax, r.rip), (Next::User, 0, rip - 2));
}
