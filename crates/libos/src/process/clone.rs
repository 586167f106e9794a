//! clone: new threads and processes.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::Ordering;

use super::limits::{RLIM_INFINITY, Resource};
use super::thread::{StartState, Thread, Work};
use super::{Process, table};
use crate::errno::{EAGAIN, EINVAL, EPERM};
use crate::keys::Child;
use crate::platform::platform;
use crate::ptrace::{self, Event};
use crate::signal::SIGCHLD;
use crate::user::UserPtr;
use crate::{Registers, Result};

bitflags::bitflags! {
    /// Flags of clone and clone3.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CloneFlags: u64 {
        const NEWTIME = 0x80;
        const VM = 0x100;
        const FS = 0x200;
        const FILES = 0x400;
        const SIGHAND = 0x800;
        const PIDFD = 0x1000;
        const PTRACE = 0x2000;
        const VFORK = 0x4000;
        const PARENT = 0x8000;
        const THREAD = 0x1_0000;
        const NEWNS = 0x2_0000;
        const SYSVSEM = 0x4_0000;
        const SETTLS = 0x8_0000;
        const PARENT_SETTID = 0x10_0000;
        const CHILD_CLEARTID = 0x20_0000;
        const DETACHED = 0x40_0000;
        const UNTRACED = 0x80_0000;
        const CHILD_SETTID = 0x100_0000;
        const NEWCGROUP = 0x200_0000;
        const NEWUTS = 0x400_0000;
        const NEWIPC = 0x800_0000;
        const NEWUSER = 0x1000_0000;
        const NEWPID = 0x2000_0000;
        const NEWNET = 0x4000_0000;
        const IO = 0x8000_0000;
        const CLEAR_SIGHAND = 0x1_0000_0000;
        const INTO_CGROUP = 0x2_0000_0000;
    }
}

impl CloneFlags {
    /// New namespaces.
    pub const NAMESPACES: CloneFlags = CloneFlags::NEWTIME
        .union(CloneFlags::NEWNS)
        .union(CloneFlags::NEWCGROUP)
        .union(CloneFlags::NEWUTS)
        .union(CloneFlags::NEWIPC)
        .union(CloneFlags::NEWUSER)
        .union(CloneFlags::NEWPID)
        .union(CloneFlags::NEWNET);
}

/// Arguments of clone3, to which the other calls are reduced.
#[derive(Clone, Copy, Debug)]
pub struct CloneArguments {
    pub flags: CloneFlags,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u32,
    /// The child's stack pointer; 0 for the parent's.
    pub stack: u64,
    pub tls: u64,
}

fn check(thread: &Arc<Thread>, flags: CloneFlags) -> Result<()> {
    use CloneFlags as F;
    if flags.contains(F::FS) && flags.intersects(F::NEWNS.union(F::NEWUSER)) {
        return Err(EINVAL.because("a new mount or user namespace shares no root"));
    }
    if flags.intersects(F::NAMESPACES) {
        return Err(EPERM.because("namespaces cannot be created in a container"));
    }
    if flags.contains(F::INTO_CGROUP) {
        return Err(EINVAL.because("there are no control groups"));
    }
    let needs = |flag: F, other: F| flags.contains(flag) && !flags.contains(other);
    if needs(F::THREAD, F::SIGHAND) || needs(F::SIGHAND, F::VM) {
        return Err(EINVAL.because("CLONE_THREAD needs CLONE_SIGHAND, which needs CLONE_VM"));
    }
    if flags.contains(F::CLEAR_SIGHAND | F::SIGHAND) {
        return Err(EINVAL.because("CLONE_CLEAR_SIGHAND with CLONE_SIGHAND"));
    }
    if flags.contains(F::PARENT) && thread.process.pid == 1 {
        return Err(EINVAL.because("process 1 can have no siblings"));
    }
    Ok(())
}

/// Creates a thread or a process; its id. The child runs as soon as this returns, and before: a
/// vfork returns only when the child has executed a program or ended.
pub fn clone(
    thread: &Arc<Thread>,
    registers: &mut Registers,
    arguments: &CloneArguments,
) -> Result<u32> {
    let flags = arguments.flags;
    check(thread, flags)?;
    if table::thread_count() >= crate::kernel().max_threads() {
        return Err(EAGAIN.because("the manifest's number of threads is reached"));
    }
    check_user_limit(thread)?;
    let tid = table::lock().allocate()?;
    let child = match build(thread, registers, arguments, tid) {
        Ok(child) => child,
        Err(error) => {
            table::lock().release(tid);
            return Err(error);
        }
    };
    match start(thread, &child, arguments) {
        Ok(()) => {}
        Err(error) => {
            child.mm().detach(&child);
            let mut table = table::lock();
            if !flags.contains(CloneFlags::THREAD) {
                drop(table.reap(tid));
            }
            child
                .process
                .threads
                .lock()
                .retain(|other| !core::ptr::eq(other.as_ptr(), Arc::as_ptr(&child)));
            table.remove_thread(tid);
            table.release(tid);
            return Err(error);
        }
    }
    let event = event_of(arguments);
    if let Some(event) = event {
        ptrace::stop::event(thread, registers, event, tid.into());
    }
    if flags.contains(CloneFlags::VFORK) {
        wait_for_vfork(thread, &child.process);
        ptrace::stop::event(thread, registers, Event::VforkDone, tid.into());
    }
    Ok(tid)
}

/// As what a tracer sees it.
fn event_of(arguments: &CloneArguments) -> Option<Event> {
    let flags = arguments.flags;
    if flags.contains(CloneFlags::UNTRACED) {
        return None;
    }
    Some(match flags.contains(CloneFlags::VFORK) {
        true => Event::Vfork,
        false if arguments.exit_signal != SIGCHLD => Event::Clone,
        false => Event::Fork,
    })
}

/// RLIMIT_NPROC: threads of the caller's user; root has no limit.
fn check_user_limit(thread: &Arc<Thread>) -> Result<()> {
    let most = thread.process.limits.get(Resource::Processes).soft;
    let user = thread.process.credentials.lock().ruid;
    if most == RLIM_INFINITY || user == 0 {
        return Ok(());
    }
    let of_user = |process: &Arc<Process>| process.credentials.lock().ruid == user;
    let all = table::processes();
    let count: usize = all
        .iter()
        .filter(|process| of_user(process))
        .map(|process| process.live_threads().len().max(1))
        .sum();
    match count as u64 >= most {
        true => Err(EAGAIN.because("RLIMIT_NPROC")),
        false => Ok(()),
    }
}

/// The child's objects; nothing is visible to others yet.
fn build(
    thread: &Arc<Thread>,
    registers: &Registers,
    arguments: &CloneArguments,
    tid: u32,
) -> Result<Arc<Thread>> {
    let flags = arguments.flags;
    let parent = &thread.process;
    let mut fpu: Box<[u8]> = vec![0; platform().fpu_size()].into_boxed_slice();
    platform().fpu_save(&mut fpu);
    let mut child_registers = *registers;
    child_registers.rax = 0;
    child_registers.orig_rax = u64::MAX;
    if arguments.stack != 0 {
        child_registers.rsp = arguments.stack;
    }
    let fs_base = if flags.contains(CloneFlags::SETTLS) {
        arguments.tls
    } else {
        platform().fs_base()
    };
    let start = StartState {
        registers: child_registers,
        fs_base,
        fpu: Some(fpu),
    };

    let files = thread.files();
    let files = if flags.contains(CloneFlags::FILES) {
        files
    } else {
        files.copy_for_fork()?
    };
    let fs = thread.fs();
    let fs = if flags.contains(CloneFlags::FS) {
        fs
    } else {
        fs.copy()
    };
    let process = if flags.contains(CloneFlags::THREAD) {
        parent.clone()
    } else {
        fork_process(thread, arguments, tid)?
    };
    let child = Arc::new(Thread::new(tid, process, files, fs, start));
    let slack = thread.timer_slack.load(Ordering::Relaxed);
    child.timer_slack.store(slack, Ordering::Relaxed);
    child.timer_slack_default.store(slack, Ordering::Relaxed);
    child.signals.set_blocked_raw(thread.signals.blocked());
    if !flags.contains(CloneFlags::VM) || flags.contains(CloneFlags::VFORK) {
        let stack = *thread.signals.alternate_stack.lock();
        *child.signals.alternate_stack.lock() = stack;
    }
    let name = thread.name.lock().clone();
    *child.name.lock() = name;
    child.seccomp.copy_from(&thread.seccomp);
    let kind = match flags.contains(CloneFlags::THREAD) {
        true => Child::Thread,
        false => Child::Process,
    };
    child.keys.inherit(thread, kind);
    let affinity = thread.affinity.load(Ordering::Relaxed);
    child.affinity.store(affinity, Ordering::Relaxed);
    // SCHED_RESET_ON_FORK itself is not inherited.
    let priority = thread.priority.load(Ordering::Relaxed);
    child.priority.store(priority, Ordering::Relaxed);
    let policy = thread.policy.load(Ordering::Relaxed) & 0xff;
    child.policy.store(policy, Ordering::Relaxed);
    if flags.contains(CloneFlags::CHILD_CLEARTID) {
        child
            .exit
            .clear_child_tid
            .store(arguments.child_tid, Ordering::Relaxed);
    }
    child.add_own_work(Work::RESIDENCY);
    Ok(child)
}

/// A new process like the caller's.
fn fork_process(
    thread: &Arc<Thread>,
    arguments: &CloneArguments,
    pid: u32,
) -> Result<Arc<Process>> {
    let (flags, parent) = (arguments.flags, &thread.process);
    let mm = thread.mm();
    let mm = if flags.contains(CloneFlags::VM) {
        mm
    } else {
        let copy = mm.fork(thread)?;
        ptrace::step::forked(&mm, &copy);
        copy
    };
    let process = Process::new(pid, mm);
    *process.creator.lock() = if flags.contains(CloneFlags::PARENT) {
        parent.creator.lock().clone()
    } else {
        Arc::downgrade(thread)
    };
    *process.credentials.lock() = parent.credentials.lock().clone();
    *process.attestation.lock() = parent.attestation.lock().clone();
    process.limits.copy_from(&parent.limits);
    let actions = parent.signals.actions();
    if flags.contains(CloneFlags::SIGHAND) {
        process.signals.set_actions(actions);
    } else {
        let mut copy = actions.lock().clone();
        if flags.contains(CloneFlags::CLEAR_SIGHAND) {
            copy.clear_handlers();
        }
        *process.signals.actions().lock() = copy;
    }
    process
        .exit_signal
        .store(arguments.exit_signal, Ordering::Relaxed);
    process
        .times
        .started
        .store(platform().monotonic(), Ordering::Relaxed);
    let copy = |from: &core::sync::atomic::AtomicU32, to: &core::sync::atomic::AtomicU32| {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    };
    copy(&parent.dumpable, &process.dumpable);
    copy(&parent.no_huge_pages, &process.no_huge_pages);
    copy(&parent.core_filter, &process.core_filter);
    copy(&parent.login_uid, &process.login_uid);
    copy(&parent.oom_score_adj, &process.oom_score_adj);
    copy(&parent.personality, &process.personality);
    copy(&parent.io_priority, &process.io_priority);
    copy(&parent.barriers, &process.barriers);
    let no_new_privileges = parent.no_new_privileges.load(Ordering::Relaxed);
    process
        .no_new_privileges
        .store(no_new_privileges, Ordering::Relaxed);
    process.timers.watch_cpu_limit(&process);
    if flags.contains(CloneFlags::VFORK) {
        *process.vfork_parent.lock() = Some(Arc::downgrade(thread));
    }
    Ok(process)
}

/// Writes the ids where they are wanted, makes the child known, and lets it run.
fn start(thread: &Arc<Thread>, child: &Arc<Thread>, arguments: &CloneArguments) -> Result<()> {
    let flags = arguments.flags;
    let tid = child.tid();
    let mm = thread.mm();
    let parent = &thread.process;
    let sibling = flags.contains(CloneFlags::PARENT);
    {
        let mut table = table::lock();
        if !flags.contains(CloneFlags::THREAD) {
            let under = if sibling {
                parent.parent_pid()
            } else {
                parent.pid
            };
            table.inherit_group(&child.process, parent);
            table.insert_process(&child.process, under);
            if sibling {
                let signal = parent.exit_signal.load(Ordering::Relaxed);
                child.process.exit_signal.store(signal, Ordering::Relaxed);
            }
        }
        child.process.threads.lock().push(Arc::downgrade(child));
        table.insert_thread(child);
    }
    child.mm().attach(child);
    if flags.contains(CloneFlags::PIDFD) {
        let limit = parent.limits.files();
        let file = super::pidfd::open(child, flags.contains(CloneFlags::THREAD), 0);
        let files = thread.files();
        let fd = files.add(file, true, limit)?;
        let written = UserPtr::<i32>::new(arguments.pidfd).write(&mm, &fd);
        if let Err(error) = written {
            drop(files.remove(fd));
            return Err(error);
        }
    }
    // As on Linux, a bad address here is not an error.
    if flags.contains(CloneFlags::PARENT_SETTID) {
        let _ = UserPtr::<u32>::new(arguments.parent_tid).write(&mm, &tid);
    }
    if flags.contains(CloneFlags::CHILD_SETTID) {
        let _ = UserPtr::<u32>::new(arguments.child_tid).write(&child.mm(), &tid);
    }
    if parent.group_exit().is_some() && flags.contains(CloneFlags::THREAD) {
        return Err(EAGAIN.because("the process ends"));
    }
    let is_wanted = event_of(arguments).is_some_and(|event| ptrace::stop::wants(thread, event));
    if is_wanted || flags.contains(CloneFlags::PTRACE) {
        ptrace::relation::inherit(thread, child);
    }
    platform()
        .spawn(child.clone())
        .inspect_err(|_| ptrace::relation::never_ran(child))
}

/// Sleeps until the child has executed a program or ended. Only a fatal signal ends the wait.
fn wait_for_vfork(thread: &Arc<Thread>, child: &Arc<Process>) {
    loop {
        let seen = thread.event_count();
        let waiting = child.vfork_parent.lock().is_some();
        if !waiting || thread.work().contains(Work::EXIT) {
            return;
        }
        thread.sleep(seen, None);
    }
}
