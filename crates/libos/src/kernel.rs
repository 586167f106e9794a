//! The kernel: its global state and the runtime's entry points.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;

use bulla_abi::config::{Config, Insecure};
use spin::Once;

use crate::mm::Resolved;
use crate::platform::platform;
use crate::platform::{Exception, Platform, Protection};
use crate::process::thread::Work;
use crate::process::{exit, host_exec, string_move, table};
use crate::ptrace::step;
use crate::signal::send::{Origin, to_group, to_process};
use crate::signal::{self, SigInfo, info};
use crate::sync::SpinLock;
use crate::{Registers, Result, Thread, syscall};

/// Global state. Everything else hangs off processes.
pub struct Kernel {
    pub config: Config,
}

static KERNEL: Once<Kernel> = Once::new();

impl Kernel {
    /// Most threads at once: the configuration's number.
    pub fn max_threads(&self) -> usize {
        self.config.threads.max(1) as usize
    }

    /// Host name and NIS domain name: the configuration's, or what was written to /proc/sys/kernel
    /// since.
    pub fn names(&self) -> (Vec<u8>, Vec<u8>) {
        let host = if self.config.hostname.is_empty() {
            "localhost"
        } else {
            &self.config.hostname
        };
        let name = |written: &SpinLock<Option<Vec<u8>>>, first: &[u8]| {
            let written = written.lock();
            written.clone().unwrap_or_else(|| first.to_vec())
        };
        (
            name(&HOST_NAME, host.as_bytes()),
            name(&DOMAIN_NAME, b"(none)"),
        )
    }

    /// Writes to /proc/sys/kernel/hostname: the first line, as far as it fits.
    pub fn set_host_name(bytes: &[u8]) -> Result<()> {
        set_name(&HOST_NAME, bytes)
    }

    /// Writes to /proc/sys/kernel/domainname.
    pub fn set_domain_name(bytes: &[u8]) -> Result<()> {
        set_name(&DOMAIN_NAME, bytes)
    }
}

static HOST_NAME: SpinLock<Option<Vec<u8>>> = SpinLock::new(None);
static DOMAIN_NAME: SpinLock<Option<Vec<u8>>> = SpinLock::new(None);
/// Longest name of the host (__NEW_UTS_LEN).
const NAME_MAX: usize = 64;

fn set_name(name: &SpinLock<Option<Vec<u8>>>, bytes: &[u8]) -> Result<()> {
    let line = bytes.split(|byte| matches!(byte, 0 | b'\n')).next();
    let line = line.unwrap_or_default();
    *name.lock() = Some(line[..line.len().min(NAME_MAX)].to_vec());
    Ok(())
}

/// The kernel; set by [`boot`].
pub fn kernel() -> &'static Kernel {
    KERNEL
        .get()
        .expect("boot builds the kernel before anything else runs")
}

/// Sets the configuration; later calls change nothing (tests).
pub(crate) fn set_kernel(config: Config) {
    KERNEL.call_once(|| Kernel { config });
}

/// Why the first process could not be started.
#[derive(Debug)]
pub struct BootError {
    /// Exit code for the container: 125 ours, 126 not executable, 127 not found.
    pub code: u8,
    /// One line that names the thing, the reason and the remedy.
    pub message: alloc::string::String,
}

/// Builds the kernel and the first process; the thread's `start` state is its first instruction.
pub fn boot(
    platform: &'static dyn Platform,
    config: Config,
) -> core::result::Result<Arc<Thread>, BootError> {
    crate::platform::set_platform(platform);
    set_kernel(config);
    crate::process::boot::first_thread(&kernel().config)
}

/// What the runtime does next with a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Return to user code with the registers as they are.
    User,
    /// The thread has ended: its slot is free.
    Exit,
}

/// One system call of user code. `rip` is the address after the `syscall`.
pub fn handle_syscall(thread: &Arc<Thread>, registers: &mut Registers) {
    syscall::dispatch(thread, registers);
}

/// Whether the instruction at `at` is IN, INS, OUT or OUTS (SDM volume 3, "Illegal Instructions"
/// in an enclave). Programs that look for a hypervisor try one and expect SIGSEGV.
fn is_port_access(thread: &Arc<Thread>, at: u64) -> bool {
    let mm = thread.mm();
    // One by one: the next page may hold nothing.
    for offset in 0..4 {
        let mut byte = [0];
        if mm.read(at + offset, &mut byte).is_err() {
            return false;
        }
        match byte[0] {
            0x66 | 0x67 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x40..=0x4f => {}
            opcode => return matches!(opcode, 0xe4..=0xe7 | 0xec..=0xef | 0x6c..=0x6f),
        }
    }
    false
}

/// A fault of user code: brings the page in, or becomes the signal that Linux sends.
pub fn handle_exception(thread: &Arc<Thread>, registers: &mut Registers, exception: Exception) {
    registers.orig_rax = u64::MAX;
    let at = registers.rip;
    let info = match exception.vector {
        14 => match page_fault(thread, registers, &exception) {
            Some(info) => info,
            None => return,
        },
        0 => SigInfo::fault(signal::SIGFPE, info::FPE_INTDIV, at),
        1 => SigInfo::fault(signal::SIGTRAP, info::TRAP_TRACE, at),
        3 => match step::at_breakpoint(thread, at) {
            Some(step::Met::Other) => return,
            Some(step::Met::Own) => SigInfo::fault(signal::SIGTRAP, info::TRAP_TRACE, at),
            None => {
                // In an enclave INT3 is a fault (SDM volume 3, "INT3 Consideration"); to programs it is a
                // trap: a handler sees what comes after it, and returns there.
                registers.rip = at.wrapping_add(1);
                SigInfo::kernel(signal::SIGTRAP)
            }
        },
        4 | 5 => SigInfo::kernel(signal::SIGSEGV),
        // What only an enclave calls undefined: outside, the CPU says that it is not permitted.
        6 if is_port_access(thread, at) => SigInfo::kernel(signal::SIGSEGV),
        6 => SigInfo::fault(signal::SIGILL, info::ILL_ILLOPN, at),
        16 | 19 => SigInfo::fault(signal::SIGFPE, math_code(exception.vector), at),
        17 => SigInfo::fault(signal::SIGBUS, info::BUS_ADRALN, 0),
        11 | 12 => SigInfo::kernel(signal::SIGBUS),
        // #GP and whatever else a CPU may raise.
        _ => SigInfo::kernel(signal::SIGSEGV),
    };
    signal::note_fault(thread, exception);
    // What a tracer gets to see need not be the end.
    let is_default =
        thread.process.signals.action(info.number()).handler == signal::action::SIG_DFL;
    if is_default && !thread.tracee.is_set() {
        report_fault(thread, registers, &exception, &info);
    }
    signal::send::force(thread, info);
}

/// A fault of user code that only the host reports, on CPUs without EXINFO: it may bring in a page
/// that the program has mapped. Anything else ends the process, because a handler that runs at the
/// host's wish, with an address of the host's choice, is more than it may ask for.
pub fn handle_host_fault(thread: &Arc<Thread>, registers: &mut Registers, exception: Exception) {
    if kernel().config.insecure.contains(&Insecure::HostFaults) {
        return handle_exception(thread, registers, exception);
    }
    registers.orig_rax = u64::MAX;
    if exception.vector == 14 && page_fault(thread, registers, &exception).is_none() {
        return;
    }
    let info = SigInfo::fault(signal::SIGSEGV, info::SEGV_MAPERR, exception.address);
    report_fault(thread, registers, &exception, &info);
    crate::platform().log(
        1,
        "this CPU does not report page faults to the enclave, so the fault cannot be delivered; \
         --insecure-host-faults believes the host",
    );
    exit::group_exit(&thread.process, signal::SIGSEGV);
}

/// A fault that ends a process is told to the host's log: signal, addresses, mapped objects with
/// the offsets in their files.
fn report_fault(thread: &Thread, registers: &Registers, exception: &Exception, info: &SigInfo) {
    let maps = thread.mm().maps();
    let root = thread.fs().root();
    let place = |address: u64| {
        let found = maps
            .iter()
            .find(|line| (line.start..line.end).contains(&address));
        let Some(line) = found else {
            return String::from("no mapping");
        };
        let object = match &line.path {
            Some(path) => String::from_utf8_lossy(&path.display_path(&root)).into_owned(),
            None if line.name.is_empty() => String::from("anonymous memory"),
            None => String::from(line.name),
        };
        format!("{object}+{:#x}", address - line.start + line.offset)
    };
    let mut text = format!("process {} (", thread.process.pid);
    text.push_str(&String::from_utf8_lossy(&thread.name.lock()));
    let _ = write!(
        text,
        "): {} at {:#x} ({})",
        crate::trace::describe_signal(info),
        registers.rip,
        place(registers.rip)
    );
    if exception.vector == 14 {
        let access = match exception.error_code {
            code if code & 16 != 0 => "executing",
            code if code & 2 != 0 => "writing",
            _ => "reading",
        };
        let address = exception.address;
        let _ = write!(text, ", {access} address {address:#x} ({})", place(address));
    }
    crate::platform().log(1, &text);
}

/// `None` when the page has been brought in.
fn page_fault(
    thread: &Arc<Thread>,
    registers: &mut Registers,
    exception: &Exception,
) -> Option<SigInfo> {
    let access = if exception.error_code & 16 != 0 {
        Protection::EXECUTE
    } else if exception.error_code & 2 != 0 {
        Protection::WRITE
    } else {
        Protection::READ
    };
    let fault = match thread.mm().handle_fault(exception.address, access) {
        Ok(Resolved::Brought) => return torn_views(thread, registers, exception.address),
        Ok(Resolved::Present) => {
            if thread.stuck.again(registers, exception.address) {
                platform().fatal(&alloc::format!(
                    "the host keeps the page at {:#x} from the enclave",
                    exception.address
                ));
            }
            return None;
        }
        Err(fault) => fault,
    };
    let (number, code) = fault.signal();
    if number == signal::SIGKILL {
        let text = format!(
            "process {} is killed: out of memory, the container's limit of {} MiB is reached; give \
             it more with --memory, or memory in the manifest",
            thread.process.pid,
            crate::mm::accounting::limit() >> 20
        );
        platform().log(0, &text);
        exit::group_exit(&thread.process, signal::SIGKILL);
        return None;
    }
    Some(SigInfo::fault(number, code, exception.address))
}

/// One page has one address: an instruction that needs it at two at once is carried out by the
/// kernel if it copies memory, or is a fault (SIGBUS) of the program.
fn torn_views(thread: &Arc<Thread>, registers: &mut Registers, address: u64) -> Option<SigInfo> {
    let page = thread.mm().aliased_page(address)?;
    let torn = thread.views.torn(registers, address & !0xfff, page);
    if !torn || string_move::carry_out(thread, registers) {
        return None;
    }
    platform().log(
        1,
        "an instruction uses two views of one page of shared memory at once: SIGBUS",
    );
    Some(SigInfo::fault(signal::SIGBUS, info::BUS_OBJERR, address))
}

/// si_code of a floating-point fault, from the unmasked exception that is flagged first (x87
/// status word or MXCSR, both with the same bits: IE DE ZE OE UE PE).
fn math_code(vector: u8) -> i32 {
    let mut state = alloc::vec![0u8; crate::platform().fpu_size()];
    crate::platform().fpu_save(&mut state);
    let half = |at: usize| u32::from(u16::from_le_bytes([state[at], state[at + 1]]));
    let flagged = if vector == 16 {
        let (control, status) = (half(0), half(2));
        status & !control
    } else {
        let mxcsr = u32::from_le_bytes([state[24], state[25], state[26], state[27]]);
        mxcsr & !(mxcsr >> 7)
    };
    match flagged {
        f if f & 1 != 0 => info::FPE_FLTINV,
        f if f & 4 != 0 => info::FPE_FLTDIV,
        f if f & 8 != 0 => info::FPE_FLTOVF,
        f if f & 0x12 != 0 => info::FPE_FLTUND,
        f if f & 0x20 != 0 => info::FPE_FLTRES,
        _ => 0,
    }
}

/// Before user code runs (again): call when the thread's work word is not 0, and before the first
/// entry to user code. It may sleep (job control, residency).
pub fn before_user(thread: &Arc<Thread>, registers: &mut Registers) -> Next {
    loop {
        let work = thread.work();
        if work.contains(Work::EXIT) {
            thread.process.dumped.leave(thread, registers);
            exit::finish(thread, registers);
            return Next::Exit;
        }
        if work.contains(Work::HOST_EXEC) {
            thread.clear_work(Work::HOST_EXEC);
            host_exec::begin(thread, registers);
        } else if work.contains(Work::STOP) {
            signal::deliver::rest(thread, registers);
        } else if work.intersects(Work::SIGNAL | Work::RESTORE_MASK) {
            signal::deliver::deliver(thread, registers);
        } else if work.contains(Work::RESIDENCY) {
            thread.mm().enter_user(thread);
            if crate::debugger::is_wanted() {
                crate::debugger::announce(thread);
            }
        } else if work.contains(Work::STEP) {
            thread.clear_work(Work::STEP);
            step::begin(thread, registers);
        } else {
            return Next::User;
        }
    }
}

/// Signals that a terminal sends to its foreground group.
const FROM_TERMINAL: u64 = signal::bit(signal::SIGINT)
    | signal::bit(signal::SIGQUIT)
    | signal::bit(signal::SIGTSTP)
    | signal::bit(signal::SIGWINCH);

/// Signals that the host forwards to the container (bit n−1 = signal n): they go to process 1, or
/// to the foreground group of the console where the terminal would send them.
pub fn host_signals(mask: u64) -> Result<()> {
    let Some(init) = table::process(1) else {
        return Err(crate::errno::ESRCH);
    };
    let foreground = crate::fs::tty::host_terminal().foreground();
    if mask & signal::bit(signal::SIGURG) != 0 {
        crate::net::listing::host_urgent();
    }
    let mut left = mask & !signal::bit(signal::SIGURG);
    while left != 0 {
        let number = left.trailing_zeros() + 1;
        left &= left - 1;
        if foreground != 0 && FROM_TERMINAL & signal::bit(number) != 0 {
            // A group that has ended in between wants no signal.
            let _ = to_group(foreground, SigInfo::kernel(number), Origin::Inside);
            continue;
        }
        // As from a parent PID namespace: the sender has no pid here.
        let info = SigInfo::user(number, info::SI_USER, 0, 0);
        to_process(&init, info, Origin::Host)?;
    }
    Ok(())
}

/// Takes the programs that the host wants to start, where it may.
pub fn host_requests() {
    host_exec::take_requests();
}
