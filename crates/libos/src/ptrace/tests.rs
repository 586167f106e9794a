//! Who traces whom, stops, and what wait tells of them, on the test host.

use alloc::sync::Arc;
use std::thread::JoinHandle;

use super::{Event, Mode, Options, relation};
use crate::errno::{ECHILD, EIO, EPERM, ESRCH};
use crate::kernel::before_user;
use crate::platform::platform;
use crate::process::tests::{fork, process};
use crate::process::wait::{Change, WaitOptions, Which, wait};
use crate::process::{exit, table};
use crate::signal::send::{Origin, to_process, to_thread};
use crate::signal::{SIGKILL, SIGSTOP, SIGTRAP, SIGUSR1, SIGUSR2, SigInfo};
use crate::{Next, Registers, Thread};

const STOPPED: u32 = 0x7f;

/// Lets a thread go on its way to user code, on a host thread of its own.
fn run(thread: &Arc<Thread>) -> JoinHandle<(Next, Registers)> {
    let thread = thread.clone();
    std::thread::spawn(move || {
        let mut registers = Registers {
            rip: 0x1000,
            rax: 7,
            ..Registers::default()
        };
        let next = before_user(&thread, &mut registers);
        (next, registers)
    })
}

fn send(thread: &Arc<Thread>, signal: u32) {
    to_thread(thread, SigInfo::user(signal, 0, 5, 0), Origin::Inside).unwrap();
}

fn next(thread: &Arc<Thread>, tid: u32) -> Change {
    let options = WaitOptions::EXITED | WaitOptions::ALL;
    wait(thread, &Which::Pid(tid), options)
        .unwrap()
        .expect("something to tell")
}

fn now(thread: &Arc<Thread>, tid: u32) -> crate::Result<Option<Change>> {
    let options = WaitOptions::EXITED | WaitOptions::ALL | WaitOptions::NOHANG;
    wait(thread, &Which::Pid(tid), options)
}

#[test]
fn a_tracer_sees_signals_and_changes_registers() {
    let parent = process();
    let child = fork(&parent);
    let tid = child.tid();
    assert_eq!(relation::find(&parent, tid).err(), Some(ESRCH));
    relation::trace_me(&child).unwrap();
    assert_eq!(relation::trace_me(&child), Err(EPERM));
    send(&child, SIGUSR1);
    let running = run(&child);
    assert_eq!(next(&parent, tid).status, SIGUSR1 << 8 | STOPPED);
    assert!(now(&parent, tid).unwrap().is_none(), "told once");
    let stranger = process();
    assert_eq!(relation::find(&stranger, tid).err(), Some(ESRCH));
    let tracee = relation::find(&parent, tid).unwrap();
    assert_eq!(tracee.tracer_id(), parent.tid());
    tracee
        .at_stop(|stop| {
            assert_eq!(stop.snapshot.registers.rip, 0x1000);
            assert_eq!(stop.info.unwrap().number(), SIGUSR1);
            stop.snapshot.set_word(12, 99).unwrap();
            assert_eq!(stop.snapshot.set_word(17, 0x10), Err(EIO));
            assert_eq!(stop.snapshot.set_word(22, 1), Err(EIO));
            assert_eq!(stop.snapshot.words()[12], 99);
        })
        .unwrap();
    tracee.resume(Mode::Run, false, 0).unwrap();
    let (next, registers) = running.join().unwrap();
    assert_eq!((next, registers.rdx), (Next::User, 99));
    assert_eq!(tracee.resume(Mode::Run, false, 0), Err(ESRCH));
    assert!(!child.seccomp.is_watched());
    assert!(child.process.group_exit().is_none(), "it was suppressed");
}

#[test]
fn calls_stop_at_both_ends_and_the_fast_way_is_left_for_that_only() {
    const GETPID: u64 = 39;
    const GETPPID: u64 = 110;
    let parent = process();
    let child = fork(&parent);
    relation::trace_me(&child).unwrap();
    send(&child, SIGUSR1);
    let running = run(&child);
    next(&parent, child.tid());
    let tracee = relation::find(&parent, child.tid()).unwrap();
    tracee
        .stopped(|state| state.options = Options::SYSGOOD)
        .unwrap();
    tracee.resume(Mode::Calls, false, 0).unwrap();
    running.join().unwrap();
    assert!(child.seccomp.is_watched() && child.seccomp.mode() == 0);
    let thread = child.clone();
    let calling = std::thread::spawn(move || {
        let mut registers = Registers {
            rax: GETPID,
            ..Registers::default()
        };
        crate::syscall::dispatch(&thread, &mut registers);
        registers
    });
    let good = (SIGTRAP | 0x80) << 8 | STOPPED;
    assert_eq!(next(&parent, child.tid()).status, good);
    tracee
        .at_stop(|stop| {
            let registers = &mut stop.snapshot.registers;
            assert_eq!((registers.orig_rax, registers.rax as i64), (GETPID, -38));
            registers.orig_rax = GETPPID;
        })
        .unwrap();
    tracee.resume(Mode::Calls, false, 0).unwrap();
    assert_eq!(next(&parent, child.tid()).status, good);
    tracee
        .at_stop(|stop| {
            let parent = u64::from(parent.process.pid);
            assert_eq!(stop.snapshot.registers.rax, parent);
            stop.snapshot.registers.rax = 5;
        })
        .unwrap();
    tracee.resume(Mode::Run, false, 0).unwrap();
    assert_eq!(calling.join().unwrap().rax, 5);
    assert!(!child.seccomp.is_watched());
}

#[test]
fn a_tracer_that_is_not_the_parent_comes_first() {
    let parent = process();
    let child = fork(&parent);
    let tracer = process();
    let tid = child.tid();
    assert_eq!(now(&tracer, tid).err(), Some(ECHILD));
    relation::attach(&tracer, tid, Some(Options::EXIT)).unwrap();
    assert_eq!(relation::attach(&parent, tid, None), Err(EPERM));
    to_process(&child.process, SigInfo::kernel(SIGKILL), Origin::Inside).unwrap();
    let running = run(&child);
    let event = (SIGTRAP | (Event::Exit as u32) << 8) << 8 | STOPPED;
    assert_eq!(next(&tracer, tid).status, event);
    assert!(now(&parent, tid).unwrap().is_none());
    let tracee = relation::find(&tracer, tid).unwrap();
    assert_eq!(
        tracee.stopped(|state| state.message()),
        Ok(u64::from(SIGKILL))
    );
    tracee.resume(Mode::Run, false, 0).unwrap();
    assert_eq!(running.join().unwrap().0, Next::Exit);
    assert!(now(&parent, tid).unwrap().is_none(), "not the parent's yet");
    assert_eq!(next(&tracer, tid).status, SIGKILL);
    assert_eq!(now(&tracer, tid).err(), Some(ECHILD));
    assert_eq!(next(&parent, tid).status, SIGKILL);
    assert_eq!(now(&parent, tid).err(), Some(ECHILD));
}

#[test]
fn the_end_of_a_tracer_frees_its_tracees_or_ends_them() {
    let parent = process();
    let tracer = fork(&parent);
    let free = fork(&parent);
    let doomed = fork(&parent);
    relation::attach(&tracer, free.tid(), None).unwrap();
    relation::attach(&tracer, doomed.tid(), Some(Options::EXITKILL)).unwrap();
    let running = run(&free);
    assert_eq!(next(&tracer, free.tid()).status, SIGSTOP << 8 | STOPPED);
    exit::thread_exit(&tracer, 0);
    before_user(&tracer, &mut Registers::default());
    assert_eq!(running.join().unwrap().0, Next::User);
    assert!(!free.tracee.is_set() && free.process.group_exit().is_none());
    assert_eq!(doomed.process.group_exit(), Some(SIGKILL));
    assert!(tracer.process.tracees.lock().is_empty());
    // Who ends traces nobody any more.
    *free.process.creator.lock() = Arc::downgrade(&tracer);
    table::lock().reparent(free.process.pid, tracer.process.pid);
    assert_eq!(relation::trace_me(&free), Err(EPERM));
}

#[test]
fn who_has_more_rights_or_keeps_them_secret_is_not_traced() {
    let parent = process();
    let child = fork(&parent);
    relation::attach(&parent, child.tid(), None).unwrap();
    let tracee = relation::find(&parent, child.tid()).unwrap();
    assert!(tracee.may_access_memory());
    let dumpable = |value| {
        let order = core::sync::atomic::Ordering::Relaxed;
        child.process.dumpable.store(value, order);
    };
    dumpable(0);
    assert!(!tracee.may_access_memory(), "changed while it is traced");
    assert!(super::keeps_rights(&child) && !super::keeps_rights(&parent));
    let other = process();
    assert_eq!(relation::attach(&other, child.tid(), None), Err(EPERM));
    assert_eq!(relation::attach(&parent, parent.tid(), None), Err(EPERM));
    assert_eq!(relation::attach(&parent, 1 << 22, None), Err(ESRCH));
    // A parent with less rights than its child.
    let child = fork(&parent);
    parent.process.credentials.lock().permitted = 0;
    assert_eq!(relation::trace_me(&child), Err(EPERM));
}

#[test]
fn seized_threads_stop_for_events_and_listen() {
    let parent = process();
    let child = fork(&parent);
    let tid = child.tid();
    relation::attach(&parent, tid, Some(Options::empty())).unwrap();
    assert!(now(&parent, tid).unwrap().is_none(), "no signal is sent");
    let tracee = relation::find(&parent, tid).unwrap();
    tracee.interrupt().unwrap();
    let running = run(&child);
    let event = |signal: u32| (signal | (Event::Stop as u32) << 8) << 8 | STOPPED;
    assert_eq!(next(&parent, tid).status, event(SIGTRAP));
    tracee.listen().unwrap();
    assert_eq!(tracee.stopped(|_| ()), Err(ESRCH), "it listens");
    tracee.interrupt().unwrap();
    assert_eq!(next(&parent, tid).status, event(SIGTRAP));
    relation::detach(&tracee, SIGUSR2).unwrap();
    running.join().unwrap();
    assert!(platform().monotonic() > 0 && !child.tracee.is_set());
}
