//! System calls: dispatch. [`table`] lists them; each family has its file.

pub mod admission;
pub mod aio;
pub mod at;
pub mod attribute;
pub mod brk;
pub mod clone;
pub mod copy;
pub mod descriptor;
pub mod directory;
pub mod epoll;
pub mod exec;
pub mod filesystems;
pub mod flush;
pub mod futex;
pub mod identity;
pub mod inotify;
pub mod io;
pub mod keys;
pub mod kill;
pub mod limits;
pub mod madvise;
mod measure;
pub mod memfd;
pub mod memory_limits;
pub mod message;
pub mod mmap;
pub mod mount;
pub mod mqueue;
pub mod names;
pub mod open;
pub mod poll;
pub mod prctl;
pub mod process_vm;
pub mod ptrace;
pub mod sched;
pub mod seccomp;
pub mod semaphore;
pub mod session;
pub mod shm;
pub mod signal;
pub mod socket;
pub mod stat;
pub mod system;
pub mod table;
pub mod time;
pub mod timer;
pub mod timerfd;
pub mod wait;
pub mod xattr;

use alloc::sync::Arc;

use crate::errno::ENOSYS;
use crate::mm::AddressSpace;
use crate::process::seccomp as restrictions;
use crate::{Errno, Registers, Result, Thread, trace};

/// What a handler gets: the calling thread and its registers. Results are returned; a handler
/// writes registers only where the call replaces them (execve, rt_sigreturn).
pub struct Context<'a> {
    pub thread: &'a Arc<Thread>,
    pub registers: &'a mut Registers,
}

impl Context<'_> {
    pub fn mm(&self) -> Arc<AddressSpace> {
        self.thread.mm()
    }

    /// RLIMIT_NOFILE of the process.
    pub fn file_limit(&self) -> usize {
        self.thread.process.limits.files()
    }

    /// Gives a new open file the lowest free descriptor; EMFILE.
    pub fn add_file(
        &self,
        file: Arc<crate::fs::file::OpenFile>,
        close_on_exec: bool,
    ) -> Result<usize> {
        let fd = self
            .thread
            .files()
            .add(file, close_on_exec, self.file_limit())?;
        Ok(fd as usize)
    }
}

/// The six raw arguments.
#[derive(Clone, Copy)]
pub struct Arguments(pub [u64; 6]);

impl Arguments {
    pub fn u64(&self, index: usize) -> u64 {
        self.0[index]
    }

    pub fn usize(&self, index: usize) -> usize {
        self.0[index] as usize
    }

    pub fn i64(&self, index: usize) -> i64 {
        self.0[index] as i64
    }

    /// An `int`: the upper half of the register is not part of it.
    pub fn i32(&self, index: usize) -> i32 {
        self.0[index] as i32
    }

    pub fn u32(&self, index: usize) -> u32 {
        self.0[index] as u32
    }

    pub fn pointer<T>(&self, index: usize) -> crate::user::UserPtr<T> {
        crate::user::UserPtr::new(self.0[index])
    }
}

/// A system-call handler.
pub type Handler = fn(&mut Context<'_>, Arguments) -> Result<usize>;

/// How much of a call works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Everything that its manual page says.
    Full,
    /// What the note does not exclude.
    Partial,
    /// Answers ENOSYS, or the error in the note.
    Missing,
}

/// One row of the table.
pub struct Row {
    pub number: usize,
    pub name: &'static str,
    pub handler: Handler,
    pub support: Support,
    pub note: &'static str,
}

/// The handler of every call that does not exist.
pub fn missing(_context: &mut Context<'_>, _arguments: Arguments) -> Result<usize> {
    Err(ENOSYS)
}

const NUMBERS: usize = 512;

/// Handlers by number, so that dispatch is one load.
static HANDLERS: [Handler; NUMBERS] = {
    let mut handlers: [Handler; NUMBERS] = [missing; NUMBERS];
    let mut at = 0;
    while at < table::ROWS.len() {
        let row = &table::ROWS[at];
        handlers[row.number] = measure::handler(row.number, row.handler);
        at += 1;
    }
    handlers
};

/// Runs the system call in `registers` and stores its result in rax.
///
/// The arguments are made where the handler takes them, from registers one by one: a copy of them
/// in greater pieces would have to wait for the gate's stores (of all registers) to reach the cache.
pub fn dispatch(thread: &Arc<Thread>, registers: &mut Registers) {
    let number = registers.rax;
    registers.orig_rax = number;
    let result = match !thread.seccomp.is_watched() && !trace::is_enabled() {
        true => {
            let arguments = Arguments(registers.arguments());
            handler(number)(&mut Context { thread, registers }, arguments)
        }
        false => return watched(thread, registers),
    };
    registers.rax = match result {
        Ok(value) => value as u64,
        Err(errno) => refused(thread, registers, errno),
    };
}

fn handler(number: u64) -> Handler {
    HANDLERS.get(number as usize).copied().unwrap_or(missing)
}

/// A call that somebody looks at: a tracer, a filter or `--strace`.
#[cold]
#[inline(never)]
fn watched(thread: &Arc<Thread>, registers: &mut Registers) {
    let is_traced = thread.seccomp.is_traced();
    if !is_traced || crate::ptrace::stop::enter_call(thread, registers) {
        let result = filtered(thread, registers);
        registers.rax = match result {
            Ok(value) => value as u64,
            Err(errno) => refused(thread, registers, errno),
        };
    }
    // Looking may have begun in the call, at one of its events.
    if thread.seccomp.is_traced() {
        crate::ptrace::stop::leave_call(thread, registers);
    }
}

/// The call after its tracer has seen it.
fn filtered(thread: &Arc<Thread>, registers: &mut Registers) -> Result<usize> {
    let refused = match thread.seccomp.mode() {
        restrictions::DISABLED => None,
        _ => restrictions::check(thread, registers),
    };
    let number = registers.orig_rax;
    let arguments = Arguments(registers.arguments());
    let mut context = Context { thread, registers };
    if trace::is_enabled() {
        trace::enter(thread, number, &arguments.0);
    }
    let result = match refused {
        None => handler(number)(&mut context, arguments),
        Some(result) => result,
    };
    if trace::is_enabled() {
        trace::leave(thread, &result);
    }
    result
}

/// The value of rax for a call that failed.
#[inline(never)]
fn refused(thread: &Arc<Thread>, registers: &Registers, errno: Errno) -> u64 {
    if trace::is_reporting() {
        let number = registers.orig_rax;
        trace::note_refusal(thread, number, &registers.arguments(), errno);
    }
    if errno.code() >= crate::errno::ERESTARTSYS.code() {
        // Restarted or turned into EINTR on the way to user code, whether or not the signal that
        // interrupted the call is still there.
        thread.add_own_work(crate::process::thread::Work::SIGNAL);
    }
    i64::from(errno.code()).wrapping_neg() as u64
}
