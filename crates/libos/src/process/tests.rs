//! Processes from clone to wait, on the test host.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::clone::{CloneArguments, CloneFlags, clone};
use super::wait::{WaitOptions, Which, wait};
use super::{exec, exit, table};
use crate::errno::{ECHILD, EINVAL, EPERM, ESRCH};
use crate::kernel::{before_user, set_kernel};
use crate::mm::AddressSpace;
use crate::signal::action::{SA_NOCLDWAIT, SIG_DFL, SIG_IGN};
use crate::signal::info::{CLD_CONTINUED, CLD_EXITED, CLD_KILLED, CLD_STOPPED};
use crate::signal::send::{Origin, to_process};
use crate::signal::{self, Action, SIGCHLD, SIGCONT, SIGKILL, SIGSTOP, SIGTERM, SigInfo, bit};
use crate::testing;
use crate::{Next, Registers, Thread};

/// A configuration that no test depends on.
fn config() -> bulla_abi::config::Config {
    bulla_abi::config::Config {
        version: bulla_abi::config::VERSION,
        rootfs: bulla_abi::config::Rootfs {
            data_size: 0,
            tree_size: 0,
            salt: [0; 32],
            root_hash: [0; 32],
            sites: None,
        },
        argv: Vec::new(),
        env: Vec::new(),
        cwd: Vec::new(),
        user: "".into(),
        hostname: "box".into(),
        memory: 1 << 30,
        threads: 10_000,
        terminal: false,
        files: Vec::new(),
        stop_signal: 15,
        insecure: Vec::new(),
        ..bulla_abi::config::Config::default()
    }
}

/// Process 1 of the tests: it adopts orphans and never runs.
fn init() -> Arc<Thread> {
    static INIT: spin::Once<Arc<Thread>> = spin::Once::new();
    INIT.call_once(|| {
        testing::platform();
        set_kernel(config());
        let thread = testing::thread_with_id(1);
        thread.process.signals.group.lock().unkillable = true;
        let mut table = table::lock();
        let pid = table.allocate().unwrap();
        assert_eq!(pid, 1);
        table.insert_process(&thread.process, 0);
        table.insert_thread(&thread);
        drop(table);
        thread
    })
    .clone()
}

/// A process under process 1, in the table, in a session of its own.
pub(crate) fn process() -> Arc<Thread> {
    init();
    let pid = table::lock().allocate().unwrap();
    let thread = testing::thread_with_id(pid);
    let mut table = table::lock();
    table.insert_process(&thread.process, 1);
    table.insert_thread(&thread);
    drop(table);
    thread
}

pub(crate) fn arguments(flags: CloneFlags) -> CloneArguments {
    CloneArguments {
        flags,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: SIGCHLD,
        stack: 0,
        tls: 0,
    }
}

/// A child of its own memory, not run by anyone but the test.
pub(crate) fn fork(parent: &Arc<Thread>) -> Arc<Thread> {
    let tid = clone(
        parent,
        &mut Registers::default(),
        &arguments(CloneFlags::empty()),
    )
    .unwrap();
    table::thread(tid).expect("the platform keeps it")
}

fn end(thread: &Arc<Thread>, status: u32) {
    exit::group_exit(&thread.process, status);
    assert_eq!(before_user(thread, &mut Registers::default()), Next::Exit);
}

const NOHANG: WaitOptions = WaitOptions::NOHANG.union(WaitOptions::EXITED);

#[test]
fn a_child_is_a_zombie_until_waited_for() {
    let parent = process();
    assert_eq!(wait(&parent, &Which::Any, NOHANG).unwrap_err(), ECHILD);
    // Ignored by default, it is kept only while it is blocked.
    signal::set_blocked(&parent, bit(SIGCHLD));
    let child = fork(&parent);
    let pid = child.process.pid;
    assert_eq!(child.process.parent_pid(), parent.process.pid);
    assert_eq!(child.process.group(), parent.process.group());
    assert!(wait(&parent, &Which::Any, NOHANG).unwrap().is_none());
    end(&child, 7 << 8);
    assert!(table::is_zombie(pid));
    assert_ne!(parent.process.signals.pending_mask() & bit(SIGCHLD), 0);
    let peek = NOHANG | WaitOptions::NOWAIT;
    assert_eq!(
        wait(&parent, &Which::Pid(pid), peek)
            .unwrap()
            .unwrap()
            .status,
        7 << 8
    );
    let change = wait(&parent, &Which::Pid(pid), NOHANG).unwrap().unwrap();
    assert_eq!(
        (change.pid, change.info.code, change.info.fields[1]),
        (pid, CLD_EXITED, 7)
    );
    assert!(table::process(pid).is_none());
    assert_eq!(wait(&parent, &Which::Any, NOHANG).unwrap_err(), ECHILD);
}

#[test]
fn a_parent_that_ignores_sigchld_has_no_zombies() {
    for action in [
        Action {
            handler: SIG_IGN,
            ..Action::default()
        },
        Action {
            handler: SIG_DFL,
            flags: SA_NOCLDWAIT,
            ..Action::default()
        },
    ] {
        let parent = process();
        parent.process.signals.actions().lock().set(SIGCHLD, action);
        let child = fork(&parent);
        end(&child, 0);
        assert!(table::process(child.process.pid).is_none());
    }
}

#[test]
fn orphans_go_to_the_subreaper_or_process_1() {
    let top = process();
    let middle = fork(&top);
    let low = fork(&middle);
    middle
        .process
        .parent_death_signal
        .store(0, Ordering::Relaxed);
    low.process
        .parent_death_signal
        .store(SIGTERM, Ordering::Relaxed);
    end(&middle, 0);
    assert_eq!(low.process.parent_pid(), 1);
    assert_ne!(low.process.signals.pending_mask() & bit(SIGTERM), 0);

    let middle = fork(&top);
    let low = fork(&middle);
    top.process.subreaper.store(true, Ordering::Relaxed);
    end(&middle, 0);
    assert_eq!(low.process.parent_pid(), top.process.pid);
    end(&low, SIGKILL);
    let change = wait(&top, &Which::Pid(low.process.pid), NOHANG)
        .unwrap()
        .unwrap();
    assert_eq!((change.status, change.info.code), (SIGKILL, CLD_KILLED));
}

#[test]
fn what_the_agent_leaves_behind_is_no_child_of_the_application() {
    let top = process();
    signal::set_blocked(&top, bit(SIGCHLD));
    let (helper, ended) = (fork(&top), fork(&top));
    end(&ended, 0);
    top.process.agent.store(true, Ordering::Relaxed);
    let become_other = || exec::commit(&top, AddressSpace::new(), b"application", None, None);
    become_other();
    assert_eq!(wait(&top, &Which::Any, NOHANG).unwrap_err(), ECHILD);
    assert_eq!(helper.process.parent_pid(), 0);
    assert!(table::process(ended.process.pid).is_none());
    // Children of its own stay its own, whatever it becomes next.
    let own = fork(&top);
    become_other();
    assert!(wait(&top, &Which::Any, NOHANG).unwrap().is_none());
    assert_eq!(own.process.parent_pid(), top.process.pid);
    end(&own, 0);
    let change = wait(&top, &Which::Any, NOHANG).unwrap().unwrap();
    assert_eq!(change.pid, own.process.pid);
    // Nobody waits for the helper, so nothing of it stays.
    end(&helper, 0);
    assert!(table::process(helper.process.pid).is_none());
}

#[test]
fn wait_sleeps_until_the_child_ends() {
    let parent = process();
    let child = fork(&parent);
    let pid = child.process.pid;
    let waiter = parent.clone();
    let host = std::thread::spawn(move || wait(&waiter, &Which::Any, WaitOptions::EXITED));
    std::thread::sleep(core::time::Duration::from_millis(20));
    // SIGCHLD is ignored by default: it does not interrupt the wait.
    end(&child, 3 << 8);
    assert_eq!(host.join().unwrap().unwrap().unwrap().pid, pid);
}

#[test]
fn stop_and_continue_are_reported_once() {
    let parent = process();
    let child = fork(&parent);
    let pid = child.process.pid;
    let stopped = WaitOptions::NOHANG | WaitOptions::STOPPED;
    let continued = WaitOptions::NOHANG | WaitOptions::CONTINUED;
    to_process(&child.process, SigInfo::kernel(SIGSTOP), Origin::Inside).unwrap();
    let runner = child.clone();
    let host = std::thread::spawn(move || before_user(&runner, &mut Registers::default()));
    let change = loop {
        if let Some(change) = wait(&parent, &Which::Any, stopped).unwrap() {
            break change;
        }
        std::thread::yield_now();
    };
    assert_eq!((change.pid, change.status), (pid, SIGSTOP << 8 | 0x7f));
    assert_eq!(change.info.code, CLD_STOPPED);
    assert!(wait(&parent, &Which::Any, stopped).unwrap().is_none());
    to_process(&child.process, SigInfo::kernel(SIGCONT), Origin::Inside).unwrap();
    assert_eq!(host.join().unwrap(), Next::User);
    let change = wait(&parent, &Which::Any, continued).unwrap().unwrap();
    assert_eq!((change.status, change.info.code), (0xffff, CLD_CONTINUED));
    assert!(wait(&parent, &Which::Any, continued).unwrap().is_none());
}

#[test]
fn a_stopped_process_can_be_killed() {
    let parent = process();
    let child = fork(&parent);
    to_process(&child.process, SigInfo::kernel(SIGSTOP), Origin::Inside).unwrap();
    let runner = child.clone();
    let host = std::thread::spawn(move || before_user(&runner, &mut Registers::default()));
    std::thread::sleep(core::time::Duration::from_millis(10));
    to_process(&child.process, SigInfo::kernel(SIGKILL), Origin::Inside).unwrap();
    assert_eq!(host.join().unwrap(), Next::Exit);
    let change = wait(&parent, &Which::Any, WaitOptions::EXITED)
        .unwrap()
        .unwrap();
    assert_eq!(change.status, SIGKILL);
}

#[test]
fn process_1_is_spared_by_what_it_does_not_handle() {
    let init = init();
    for signal in [SIGTERM, SIGKILL] {
        to_process(&init.process, SigInfo::kernel(signal), Origin::Inside).unwrap();
    }
    to_process(&init.process, SigInfo::kernel(SIGTERM), Origin::Host).unwrap();
    assert_eq!(init.process.group_exit(), None);
    assert_eq!(init.process.signals.pending_mask() & bit(SIGTERM), 0);
}

#[test]
fn a_thread_shares_and_a_fatal_signal_ends_all() {
    let parent = process();
    let main = fork(&parent);
    let flags = CloneFlags::VM
        | CloneFlags::FS
        | CloneFlags::FILES
        | CloneFlags::SIGHAND
        | CloneFlags::THREAD
        | CloneFlags::SETTLS;
    let mut registers = Registers {
        rip: 0x1000,
        rax: 56,
        rsp: 0x7000,
        ..Registers::default()
    };
    let wanted = CloneArguments {
        stack: 0x9000,
        tls: 0x1234,
        ..arguments(flags)
    };
    let tid = clone(&main, &mut registers, &wanted).unwrap();
    let second = table::thread(tid).unwrap();
    assert!(Arc::ptr_eq(&second.process, &main.process));
    assert!(Arc::ptr_eq(&second.files(), &main.files()));
    {
        let start = second.start.lock();
        let start = start.as_ref().unwrap();
        assert_eq!((start.registers.rax, start.registers.rsp), (0, 0x9000));
        assert_eq!((start.registers.rip, start.fs_base), (0x1000, 0x1234));
    }
    second.clear_work(crate::process::thread::Work::RESIDENCY);
    to_process(&main.process, SigInfo::kernel(SIGTERM), Origin::Inside).unwrap();
    assert_eq!(before_user(&main, &mut Registers::default()), Next::Exit);
    assert!(
        wait(&parent, &Which::Any, NOHANG).unwrap().is_none(),
        "one thread is left"
    );
    assert_eq!(before_user(&second, &mut Registers::default()), Next::Exit);
    assert_eq!(
        wait(&parent, &Which::Any, NOHANG).unwrap().unwrap().status,
        SIGTERM
    );
    assert!(table::thread(tid).is_none());
}

#[test]
fn vfork_waits_for_the_child() {
    let parent = process();
    let waiter = parent.clone();
    let flags = CloneFlags::VM | CloneFlags::VFORK;
    let host =
        std::thread::spawn(move || clone(&waiter, &mut Registers::default(), &arguments(flags)));
    let child = loop {
        let node = table::lock()
            .node(parent.process.pid)
            .unwrap()
            .children
            .first()
            .copied();
        if let Some(child) = node.and_then(table::thread) {
            break child;
        }
        std::thread::yield_now();
    };
    assert!(Arc::ptr_eq(&child.mm(), &parent.mm()));
    std::thread::sleep(core::time::Duration::from_millis(10));
    assert!(!host.is_finished());
    let pid = child.process.pid;
    end(&child, 0);
    assert_eq!(host.join().unwrap().unwrap(), pid);
}

#[test]
fn exec_from_another_thread_takes_over_the_process() {
    let parent = process();
    let main = fork(&parent);
    let pid = main.process.pid;
    let flags = CloneFlags::VM | CloneFlags::SIGHAND | CloneFlags::THREAD;
    let tid = clone(&main, &mut Registers::default(), &arguments(flags)).unwrap();
    let second = table::thread(tid).unwrap();
    let first = main.clone();
    let host = std::thread::spawn(move || {
        while !first.work().contains(crate::process::thread::Work::EXIT) {
            std::thread::yield_now();
        }
        before_user(&first, &mut Registers::default())
    });
    super::exec::prepare(&second).unwrap();
    assert_eq!(host.join().unwrap(), Next::Exit);
    assert_eq!(second.tid(), pid);
    assert!(Arc::ptr_eq(&table::thread(pid).unwrap(), &second));
    assert!(table::thread(tid).is_none());
    assert_eq!(second.process.group_exit(), None);
}

#[test]
fn clone_refuses_what_linux_refuses() {
    let parent = process();
    let refused = [
        (CloneFlags::THREAD, EINVAL),
        (CloneFlags::SIGHAND, EINVAL),
        (CloneFlags::NEWUSER, EPERM),
        (CloneFlags::NEWNS | CloneFlags::VM, EPERM),
        (
            CloneFlags::VM | CloneFlags::SIGHAND | CloneFlags::CLEAR_SIGHAND,
            EINVAL,
        ),
    ];
    for (flags, error) in refused {
        assert_eq!(
            clone(&parent, &mut Registers::default(), &arguments(flags)),
            Err(error)
        );
    }
}

#[test]
fn groups_and_sessions() {
    let leader = process();
    let (first, second) = (fork(&leader), fork(&leader));
    let mut table = table::lock();
    assert_eq!(table.new_session(&leader.process), Err(EPERM));
    table.set_group(&first.process, first.process.pid);
    assert!(table.group_in_session(first.process.pid, leader.process.session()));
    assert_eq!(table.group_members(first.process.pid).len(), 1);
    // Its parent is in the session, in another group: not orphaned.
    assert!(!table.is_orphaned_group(first.process.pid, 0));
    table.new_session(&second.process).unwrap();
    assert_eq!(second.process.session(), second.process.pid);
    assert!(table.is_orphaned_group(second.process.pid, 0));
    drop(table);
    assert_eq!(
        signal::send::to_group(9_999_999, SigInfo::kernel(1), Origin::Inside),
        Err(ESRCH)
    );
}
