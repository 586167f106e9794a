//! What execve changes beside memory. The program loader calls [`prepare`] when it is certain that
//! the new program can be started, and [`commit`] once its memory is complete.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::{Process, exit, table};
use crate::mm::AddressSpace;
use crate::signal::AlternateStack;
use crate::{Result, Thread};

/// The point of no return: every other thread of the process ends, the caller takes over the
/// process's id. An error means that the process is being killed; the caller returns it.
pub fn prepare(thread: &Arc<Thread>) -> Result<()> {
    exit::end_other_threads(thread, || {})?;
    table::lock().take_over_id(thread);
    crate::ptrace::relation::took_over_id(thread);
    Ok(())
}

/// The new program is in `mm`: futexes of the old memory are released, its space left, signals,
/// timers, descriptors and identity are reset as execve(2) says. `name` is the file's base name;
/// `set_uid` and `set_gid` the owner of a set-id file.
pub fn commit(
    thread: &Arc<Thread>,
    mm: Arc<AddressSpace>,
    name: &[u8],
    set_uid: Option<u32>,
    set_gid: Option<u32>,
) {
    let process = &thread.process;
    let old = thread.mm();
    exit::release_futexes(thread, &old);
    let files = thread.files();
    // A table shared with another process (CLONE_FILES) is unshared first.
    let files = if Arc::strong_count(&files) > 2 {
        let copy = files.copy();
        thread.set_files(copy.clone());
        copy
    } else {
        files
    };
    drop(files.take_close_on_exec());
    mm.attach(thread);
    thread.add_own_work(super::thread::Work::RESIDENCY);
    process.set_mm(mm);
    old.detach(thread);

    let actions = process.signals.actions();
    let mut fresh = actions.lock().clone();
    fresh.reset_for_exec();
    process
        .signals
        .set_actions(Arc::new(crate::sync::SpinLock::new(fresh)));
    *thread.signals.alternate_stack.lock() = AlternateStack::default();
    thread.keys.forget_own();
    process.timers.clear_posix();
    process
        .exit_signal
        .store(crate::signal::SIGCHLD, Ordering::Relaxed);
    set_name(thread, name);
    let mut credentials = process.credentials.lock();
    let keeps = process.no_new_privileges.load(Ordering::Relaxed);
    let (set_uid, set_gid) = if keeps {
        (None, None)
    } else {
        (set_uid, set_gid)
    };
    if set_uid.is_some() || set_gid.is_some() {
        process.parent_death_signal.store(0, Ordering::Relaxed);
    }
    credentials.exec(set_uid, set_gid);
    // Whoever runs with another's rights is not looked into, even if nothing changed just now.
    let own = credentials.euid == credentials.ruid && credentials.egid == credentials.rgid;
    process.dumpable.store(u32::from(own), Ordering::Relaxed);
    drop(credentials);
    process.barriers.store(0, Ordering::Relaxed);
    process.has_executed.store(true, Ordering::Relaxed);
    process.release_vfork_parent();
    if process.agent.swap(false, Ordering::Relaxed) {
        let_children_go(process);
    }
}

/// The agent has become the application, which must not be surprised by children that it never made:
/// wait(2) as process 1 says ECHILD until it has its own. What the agent left behind has no parent
/// from now on, as what `docker exec` starts in a container.
fn let_children_go(process: &Process) {
    let mut table = table::lock();
    let children = table.node(process.pid).map(|node| node.children.clone());
    for pid in children.unwrap_or_default() {
        if table.node(pid).is_some_and(|node| node.zombie.is_some()) {
            drop(table.reap(pid));
        } else {
            table.reparent(pid, 0);
        }
    }
}

/// The thread's name, cut as Linux cuts it (TASK_COMM_LEN).
pub fn set_name(thread: &Thread, name: &[u8]) {
    let end = name
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(name.len());
    *thread.name.lock() = name[..end.min(15)].to_vec();
}
