//! seccomp(2): what a thread may still ask of the kernel.
//!
//! Filters are classic BPF programs ([`super::bpf`]). A thread's filters form a list whose tails
//! are shared with the threads it was cloned from; all of them run at every call, and the strictest
//! answer counts. Supervisors (SECCOMP_RET_USER_NOTIF) do not exist here: such calls answer ENOSYS, as
//! on Linux when nobody listens, and so do those for a tracer (SECCOMP_RET_TRACE) that there is not.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU8, Ordering};

use super::bpf::{Data, INSTRUCTIONS_MAX, Program};
use super::credentials::CAP_SYS_ADMIN;
use super::{Process, exit};
use crate::errno::{EACCES, EINVAL, ENOMEM, ENOSYS, ESRCH, Errno};
use crate::signal::info::SigInfo;
use crate::signal::{SIGKILL, SIGSYS};
use crate::sync::SpinLock;
use crate::{Registers, Result, Thread, ptrace};

/// Modes as PR_GET_SECCOMP tells them.
pub const DISABLED: u8 = 0;
pub const STRICT: u8 = 1;
pub const FILTER: u8 = 2;
/// Beside the mode: a tracer looks at the thread's calls ([`crate::ptrace`]).
const TRACED: u8 = 0x80;

/// Most instructions of all filters of a thread, with 4 more for each filter (Linux's
/// MAX_INSNS_PER_PATH).
const PATH_MAX: usize = (1 << 18) / 8;
const FILTER_COST: usize = 4;
/// AUDIT_ARCH_X86_64.
const ARCHITECTURE: u32 = 0xc000_003e;
/// si_code of a SIGSYS that a filter sends.
const SYS_SECCOMP: i32 = 1;

/// Upper halves of what filters return; the lower one is data.
pub mod action {
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    pub const KILL_THREAD: u32 = 0;
    pub const TRAP: u32 = 0x0003_0000;
    pub const ERRNO: u32 = 0x0005_0000;
    pub const USER_NOTIF: u32 = 0x7fc0_0000;
    pub const TRACE: u32 = 0x7ff0_0000;
    pub const LOG: u32 = 0x7ffc_0000;
    pub const ALLOW: u32 = 0x7fff_0000;
    pub const MASK: u32 = 0xffff_0000;
}

/// A filter and those that were there before it.
struct Filter {
    program: Program,
    before: Option<Arc<Filter>>,
    /// Cost of this one and all before it.
    cost: usize,
    count: usize,
}

impl Drop for Filter {
    /// One by one: a long list must not take the kernel's stack.
    fn drop(&mut self) {
        let mut next = self.before.take();
        while let Some(mut filter) = next.and_then(Arc::into_inner) {
            next = filter.before.take();
        }
    }
}

/// A thread's state.
#[derive(Default)]
pub struct Seccomp {
    /// The mode, and [`TRACED`]: whoever looks at calls at all costs others one load.
    word: AtomicU8,
    filters: SpinLock<Option<Arc<Filter>>>,
}

impl Seccomp {
    pub fn mode(&self) -> u8 {
        self.word.load(Ordering::Relaxed) & !TRACED
    }

    /// Whether anything looks at the thread's calls.
    pub fn is_watched(&self) -> bool {
        self.word.load(Ordering::Relaxed) != 0
    }

    /// Whether a tracer does.
    pub fn is_traced(&self) -> bool {
        self.word.load(Ordering::Relaxed) & TRACED != 0
    }

    /// A tracer begins to look at the thread's calls, or no longer does.
    pub fn set_traced(&self, traced: bool) {
        if traced {
            self.word.fetch_or(TRACED, Ordering::Relaxed);
        } else {
            self.word.fetch_and(!TRACED, Ordering::Relaxed);
        }
    }

    /// Filters of the thread.
    pub fn count(&self) -> usize {
        self.filters
            .lock()
            .as_ref()
            .map_or(0, |filter| filter.count)
    }

    /// clone: the same restrictions.
    pub fn copy_from(&self, other: &Seccomp) {
        let filters = other.filters.lock().clone();
        *self.filters.lock() = filters;
        self.word.store(other.mode(), Ordering::Relaxed);
    }

    /// SECCOMP_SET_MODE_STRICT. EINVAL with filters.
    pub fn set_strict(&self) -> Result<()> {
        if self.mode() == FILTER {
            return Err(EINVAL.because("the thread has filters"));
        }
        self.word.fetch_or(STRICT, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the thread's filters are `list`, or what `list` was made from.
    fn is_before(&self, list: Option<&Arc<Filter>>) -> bool {
        let own = self.filters.lock().clone();
        let Some(own) = own else {
            return self.mode() == DISABLED;
        };
        let mut at = list;
        while let Some(filter) = at {
            if Arc::ptr_eq(filter, &own) {
                return true;
            }
            at = filter.before.as_ref();
        }
        false
    }
}

/// Who gets a new filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Thread,
    /// SECCOMP_FILTER_FLAG_TSYNC: all threads of the process; the flag says whether a thread that
    /// cannot be brought in step is reported by ESRCH instead of its id.
    Process {
        as_error: bool,
    },
}

/// SECCOMP_SET_MODE_FILTER. Returns 0, or the id of a thread whose filters differ. EACCES for who
/// could still gain privileges; EINVAL, ENOMEM.
pub fn add(thread: &Arc<Thread>, program: Program, scope: Scope) -> Result<usize> {
    let process = &thread.process;
    let privileged = process.no_new_privileges.load(Ordering::Relaxed)
        || process.credentials.lock().has(CAP_SYS_ADMIN);
    if !privileged {
        return Err(EACCES.because("filters need PR_SET_NO_NEW_PRIVS or CAP_SYS_ADMIN"));
    }
    if thread.seccomp.mode() == STRICT {
        return Err(EINVAL.because("the thread is in strict mode"));
    }
    debug_assert!(program.instructions() <= INSTRUCTIONS_MAX);
    // Held over all threads, so that two of them cannot add filters past each other.
    let adding = ADDING.lock();
    let before = thread.seccomp.filters.lock().clone();
    let cost =
        before.as_ref().map_or(0, |filter| filter.cost) + program.instructions() + FILTER_COST;
    if cost > PATH_MAX {
        return Err(ENOMEM.because("too many instructions in filters"));
    }
    let others = match scope {
        Scope::Thread => alloc::vec::Vec::new(),
        Scope::Process { as_error } => {
            let others = others(process, thread);
            let differs = |other: &&Arc<Thread>| !other.seccomp.is_before(before.as_ref());
            if let Some(other) = others.iter().find(differs) {
                return match as_error {
                    true => Err(ESRCH.because("another thread has other filters")),
                    false => Ok(other.tid() as usize),
                };
            }
            others
        }
    };
    let count = before.as_ref().map_or(0, |filter| filter.count) + 1;
    let filter = Arc::new(Filter {
        program,
        before,
        cost,
        count,
    });
    for one in others.iter().chain([thread]) {
        *one.seccomp.filters.lock() = Some(filter.clone());
        one.seccomp.word.fetch_or(FILTER, Ordering::SeqCst);
    }
    drop(adding);
    Ok(0)
}

static ADDING: SpinLock<()> = SpinLock::new(());

fn others(process: &Process, thread: &Arc<Thread>) -> alloc::vec::Vec<Arc<Thread>> {
    let mut threads = process.live_threads();
    threads.retain(|other| !Arc::ptr_eq(other, thread));
    threads
}

/// Asks the thread's restrictions about the call in `registers`. `None`: it is allowed; else what
/// happens instead. A tracer that a filter asks may change the call.
pub fn check(thread: &Arc<Thread>, registers: &mut Registers) -> Option<Result<usize>> {
    match thread.seccomp.mode() {
        DISABLED => None,
        STRICT => strict(thread, registers),
        _ => {
            let value = strictest(thread, &data(registers));
            if value & action::MASK != action::TRACE {
                return filtered(thread, registers, value);
            }
            match ptrace::stop::seccomp(thread, registers, value & !action::MASK) {
                None => Some(Err(ENOSYS.because("nobody listens"))),
                Some(false) => Some(Ok(registers.rax as usize)),
                // It may be another call now; the tracer is asked once.
                Some(true) => {
                    let value = strictest(thread, &data(registers));
                    match value & action::MASK {
                        action::TRACE => None,
                        _ => filtered(thread, registers, value),
                    }
                }
            }
        }
    }
}

fn strict(thread: &Arc<Thread>, registers: &Registers) -> Option<Result<usize>> {
    /// read, write, rt_sigreturn, exit.
    const ALLOWED: [u64; 4] = [0, 1, 15, 60];
    if ALLOWED.contains(&registers.orig_rax) {
        return None;
    }
    exit::thread_exit(thread, SIGKILL);
    Some(Ok(registers.orig_rax as usize))
}

/// What happens at a filter's answer.
fn filtered(thread: &Arc<Thread>, registers: &Registers, value: u32) -> Option<Result<usize>> {
    let number = registers.orig_rax;
    let low = value & !action::MASK;
    let rolled_back = Some(Ok(number as usize));
    match value & action::MASK {
        action::ALLOW | action::LOG => None,
        action::ERRNO => match low.min(4095) as i32 {
            0 => Some(Ok(0)),
            code @ 1..512 => Some(Err(Errno::from_code(code))),
            // Beyond are the kernel's own, which must not restart anything here.
            code => Some(Ok(code.wrapping_neg() as usize)),
        },
        action::USER_NOTIF => Some(Err(ENOSYS.because("nobody listens"))),
        action::TRAP => {
            crate::signal::send::force(thread, signal(registers, low as i32));
            rolled_back
        }
        action::KILL_THREAD if thread.process.live_threads().len() > 1 => {
            exit::thread_exit(thread, SIGSYS);
            rolled_back
        }
        // KILL_PROCESS, the last thread, and whatever is unknown.
        _ => {
            let info = signal(registers, low as i32);
            crate::signal::send::force_fatal(thread, info);
            rolled_back
        }
    }
}

/// SIGSYS: si_call_addr, si_syscall, si_arch, and the filter's data in si_errno.
fn signal(registers: &Registers, data: i32) -> SigInfo {
    let mut info = SigInfo::fault(SIGSYS, SYS_SECCOMP, registers.rip);
    info.errno = data;
    info.fields[1] = registers.orig_rax & 0xffff_ffff | u64::from(ARCHITECTURE) << 32;
    info
}

fn data(registers: &Registers) -> Data {
    let mut words = Data::default();
    words[0] = registers.orig_rax as u32;
    words[1] = ARCHITECTURE;
    let wide = [registers.rip].into_iter().chain(registers.arguments());
    for (index, value) in wide.enumerate() {
        words[2 + 2 * index] = value as u32;
        words[3 + 2 * index] = (value >> 32) as u32;
    }
    words
}

/// What the filters say together: the lowest action, as signed numbers, that any of them returns,
/// with the data of the newest filter that says so.
fn strictest(thread: &Thread, data: &Data) -> u32 {
    let newest = thread.seccomp.filters.lock().clone();
    let mut result = action::ALLOW;
    let mut at = newest.as_ref();
    while let Some(filter) = at {
        let value = filter.program.run(data);
        if ((value & action::MASK) as i32) < (result & action::MASK) as i32 {
            result = value;
        }
        at = filter.before.as_ref();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::super::bpf::Instruction;
    use super::*;
    use crate::errno::EPERM;
    use crate::process::tests::process;

    fn returning(value: u32) -> Program {
        let ret = Instruction {
            code: 6,
            if_true: 0,
            if_false: 0,
            k: value,
        };
        Program::new(alloc::vec![ret]).unwrap()
    }

    #[test]
    fn the_strictest_filter_counts() {
        let thread = process();
        let mut registers = Registers {
            orig_rax: 39,
            ..Registers::default()
        };
        assert_eq!(check(&thread, &mut registers), None);
        let own = |program| add(&thread, program, Scope::Thread);
        // Root without CAP_SYS_ADMIN is nobody special here.
        thread.process.credentials.lock().effective = 0;
        assert_eq!(own(returning(action::ALLOW)), Err(EACCES));
        thread
            .process
            .no_new_privileges
            .store(true, Ordering::Relaxed);
        assert_eq!(own(returning(action::ERRNO | 1)), Ok(0));
        assert_eq!(own(returning(action::ALLOW)), Ok(0));
        assert_eq!(check(&thread, &mut registers), Some(Err(EPERM)));
        assert_eq!(own(returning(action::ERRNO | 2)), Ok(0));
        // Of equal actions the newest filter's data counts.
        assert_eq!(
            check(&thread, &mut registers),
            Some(Err(crate::errno::ENOENT))
        );
        assert_eq!(thread.seccomp.count(), 3);
        assert_eq!(thread.seccomp.set_strict(), Err(EINVAL));
        let mut added = 0;
        while own(returning(action::ALLOW)).is_ok() {
            added += 1;
        }
        assert_eq!(added + 3, PATH_MAX / (FILTER_COST + 1));
    }
}
