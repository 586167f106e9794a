//! Signals: exceptions of the enclave become AEXs, ENCLU is served, sites are patched.
//!
//! [`on_signal`] runs on the alternate stack with the host's FS and GS, all signals blocked. It
//! never enters the enclave: it changes the saved context. What it finds:
//! - RIP in the enclave (or, with the enclave's FS still loaded, at a place outside ELRANGE where
//!   the enclave jumped to): an exception of the enclave, or an asynchronous signal;
//! - RIP at the trap of a gate: an ENCLU that the gate does not serve itself;
//! - anything else: a crash of the host, left to whoever handled the signal before.
//!
//! No lock is taken that the interrupted code may hold: enclave code holds none of ours.

use std::mem::{MaybeUninit, zeroed};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use super::enclave::Enclave;
use super::entry;
use super::profile::Profile;
use super::seccomp;
use super::sites::{code_at, enclu, gate_trap, patched_meanwhile};
use super::ssa::{self, Extended};
use super::sys;
use super::thread::{Fault, TcsState, Thread};
use crate::backend::Error;

const FAULT_SIGNALS: [i32; 6] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGSYS,
];

/// What was installed before, for crashes of the host.
static mut PREVIOUS: [MaybeUninit<libc::sigaction>; 32] = [MaybeUninit::zeroed(); 32];
static INSTALL: Once = Once::new();
/// Host-side RDTSCs that were executed in the handler, since PR_SET_TSC hits the host as well.
pub static HOST_RDTSC: AtomicU64 = AtomicU64::new(0);

/// Installs the handlers of the fault signals, once per process.
pub fn install() {
    INSTALL.call_once(|| {
        for signal in FAULT_SIGNALS {
            // SAFETY: a valid action; the old one goes to its own place, which is only read after
            // this signal can arrive here.
            unsafe {
                let mut action: libc::sigaction = zeroed();
                action.sa_sigaction = entry::bulla_emu_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigfillset(&mut action.sa_mask);
                let previous = (&raw mut PREVIOUS[signal as usize]).cast::<libc::sigaction>();
                libc::sigaction(signal, &action, previous);
            }
        }
    });
}

/// Makes `syscall` and `int 0x80` below [`entry::HOST_START`] raise SIGSYS on this thread, CPUID
/// fault where the CPU can, and RDTSC if the platform has none.
pub fn filter_thread(profile: &Profile) -> Result<(), Error> {
    let dispatched = match profile.seccomp {
        false => dispatch_to_user(),
        true => Err(Error::Refused("the profile wants seccomp".to_owned())),
    };
    dispatched.or_else(|_| seccomp::filter())?;
    set_tsc(if profile.features.rdtsc {
        libc::PR_TSC_ENABLE
    } else {
        libc::PR_TSC_SIGSEGV
    });
    set_cpuid(Cpuid::Faults);
    Ok(())
}

/// Syscall User Dispatch for this thread alone.
fn dispatch_to_user() -> Result<(), Error> {
    const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
    const PR_SYS_DISPATCH_ON: u64 = 1;
    let len = u64::MAX - entry::HOST_START;
    // SAFETY: allows system calls from the host's code only; no selector byte is used.
    let result = unsafe {
        libc::prctl(
            PR_SET_SYSCALL_USER_DISPATCH,
            PR_SYS_DISPATCH_ON,
            entry::HOST_START,
            len,
            0,
        )
    };
    if result != 0 {
        return Err(Error::System {
            call: "prctl",
            errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
            reason: "there is no Syscall User Dispatch (Linux 5.11 or newer)".to_owned(),
        });
    }
    Ok(())
}

fn set_tsc(setting: i32) {
    // SAFETY: changes how RDTSC behaves on this thread; `serve_host` serves the host's.
    unsafe { libc::prctl(libc::PR_SET_TSC, setting) };
}

fn tsc_faults() -> bool {
    let mut setting = 0;
    // SAFETY: stores an int.
    let asked = unsafe { libc::prctl(libc::PR_GET_TSC, &raw mut setting) };
    asked == 0 && setting == libc::PR_TSC_SIGSEGV
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cpuid {
    Faults = 0,
    Works = 1,
}

const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_SET_CPUID: u64 = 0x1012;

/// Makes CPUID fault on this thread. Returns whether the CPU can (most of Intel's, few of AMD's).
fn set_cpuid(setting: Cpuid) -> bool {
    let arguments = [ARCH_SET_CPUID, setting as u64, 0, 0, 0, 0];
    // SAFETY: changes how CPUID behaves on this thread; `serve_host` serves the host's.
    unsafe { sys::syscall(libc::SYS_arch_prctl, arguments) == 0 }
}

fn cpuid_faults() -> bool {
    // SAFETY: only asks.
    let now = unsafe { sys::syscall(libc::SYS_arch_prctl, [ARCH_GET_CPUID, 0, 0, 0, 0, 0]) };
    now == Cpuid::Faults as i64
}

/// Whether CPUID in an enclave faults here, as it does on hardware. Where it does not, it executes.
pub fn cpuid_faulting() -> bool {
    if cpuid_faults() {
        return true;
    }
    let can = set_cpuid(Cpuid::Faults);
    if can {
        set_cpuid(Cpuid::Works);
    }
    can
}

pub fn in_text(rip: u64) -> bool {
    entry::between(rip, &entry::bulla_emu_text, &entry::bulla_emu_text_end)
}

/// Called by the signal stub; `thread` is null on threads that were never prepared.
///
/// # Safety
/// The arguments are the kernel's, of a signal being delivered to this thread.
pub unsafe extern "C" fn on_signal(
    signal: i32,
    info: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
    thread: *mut Thread,
) {
    // SAFETY: as for this function; nobody else uses the context meanwhile.
    let (code, saved) = unsafe { ((*info).si_code, &mut *context) };
    let rip = saved.uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
    // SAFETY: the thread is this one; its TCS lives while it is in the enclave.
    let tcs = unsafe {
        if thread.is_null() || (*thread).tcs.is_null() {
            None
        } else {
            Some(&*(*thread).tcs)
        }
    };
    let Some(tcs) = tcs else {
        // SAFETY: as for this function.
        return unsafe { host_signal(signal, code, saved) };
    };
    // SAFETY: this thread's structure.
    let host_fs = unsafe { (*thread).signal_fs == (*thread).host_fs };
    if rip == entry::address(&entry::bulla_emu_trap) && signal == libc::SIGILL {
        // SAFETY: the gate left the enclave's state as it was at the site.
        unsafe { gate_trap(saved, thread, tcs) };
    } else if !in_text(rip) && (rip < entry::HOST_START || !host_fs) {
        // SAFETY: the context is the enclave's.
        unsafe { enclave_signal(signal, info, saved, thread, tcs) };
    } else {
        // SAFETY: as for this function.
        unsafe { host_signal(signal, code, saved) };
    }
}

/// A signal for the host itself.
///
/// # Safety
/// As for [`on_signal`].
unsafe fn host_signal(signal: i32, code: i32, context: &mut libc::ucontext_t) {
    if signal == libc::SIGSEGV && serve_host(context) {
        return;
    }
    // Back to whoever handled it before; the fault repeats and finds them.
    // SAFETY: `install` stored the action.
    unsafe {
        let previous = (&raw const PREVIOUS[signal as usize]).cast::<libc::sigaction>();
        libc::sigaction(signal, previous, ptr::null_mut());
        if code <= 0 {
            libc::raise(signal);
        }
    }
}

/// Executes an RDTSC or CPUID of the host (the vDSO's, mostly), which faults on the threads that
/// enter enclaves and on those that they start. Returns whether it was one.
fn serve_host(context: &mut libc::ucontext_t) -> bool {
    const GENERAL_PROTECTION: i64 = 13;
    let registers = &mut context.uc_mcontext.gregs;
    if registers[libc::REG_TRAPNO as usize] != GENERAL_PROTECTION {
        return false;
    }
    let rip = registers[libc::REG_RIP as usize];
    let byte = |index: i64| {
        // SAFETY: an instruction that just executed is readable; the third byte is only asked for
        // where the first two say that there is one.
        unsafe { *((rip + index) as *const u8) }
    };
    if byte(0) != 0x0f {
        return false;
    }
    let low = |register: i64| register as u32;
    let len = match byte(1) {
        0xa2 if cpuid_faults() => {
            let leaf = low(registers[libc::REG_RAX as usize]);
            let subleaf = low(registers[libc::REG_RCX as usize]);
            set_cpuid(Cpuid::Works);
            let result = std::arch::x86_64::__cpuid_count(leaf, subleaf);
            set_cpuid(Cpuid::Faults);
            registers[libc::REG_RAX as usize] = i64::from(result.eax);
            registers[libc::REG_RBX as usize] = i64::from(result.ebx);
            registers[libc::REG_RCX as usize] = i64::from(result.ecx);
            registers[libc::REG_RDX as usize] = i64::from(result.edx);
            2
        }
        second @ (0x31 | 0x01) if tsc_faults() => {
            if second == 0x01 && byte(2) != 0xf9 {
                return false;
            }
            set_tsc(libc::PR_TSC_ENABLE);
            let mut aux = 0;
            // SAFETY: RDTSCP is part of every CPU this runs on.
            let value = unsafe { std::arch::x86_64::__rdtscp(&mut aux) };
            set_tsc(libc::PR_TSC_SIGSEGV);
            registers[libc::REG_RAX as usize] = (value & 0xffff_ffff) as i64;
            registers[libc::REG_RDX as usize] = (value >> 32) as i64;
            HOST_RDTSC.fetch_add(1, Ordering::Relaxed);
            if second == 0x01 {
                registers[libc::REG_RCX as usize] = i64::from(aux);
                3
            } else {
                2
            }
        }
        _ => return false,
    };
    registers[libc::REG_RIP as usize] = rip + len;
    true
}

/// A signal while the enclave was running.
///
/// # Safety
/// As for [`on_signal`]; `thread` is in the enclave of `tcs`.
unsafe fn enclave_signal(
    signal: i32,
    info: *mut libc::siginfo_t,
    context: &mut libc::ucontext_t,
    thread: *mut Thread,
    tcs: &TcsState,
) {
    // SAFETY: the enclave outlives its TCSs.
    let enclave = unsafe { &*tcs.enclave };
    // SAFETY: the kernel's siginfo.
    if unsafe { (*info).si_code } <= 0 {
        // Sent by somebody: no exception, but an AEX all the same.
        // SAFETY: the context is the enclave's.
        return unsafe { exit_asynchronously(context, thread, None) };
    }
    let rip = context.uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
    if signal == libc::SIGILL && code_at::<3>(enclave, rip) == Some([0x0f, 0x01, 0xd7]) {
        // SAFETY: as for this function.
        return unsafe { enclu(context, thread, tcs, rip, 3) };
    }
    if signal == libc::SIGILL && patched_meanwhile(enclave, rip) {
        return;
    }
    // SAFETY: as for this function.
    if let Some(fault) = unsafe { exception(signal, info, context, thread, enclave) } {
        // SAFETY: as for this function.
        unsafe { exit_asynchronously(context, thread, Some(fault)) };
    }
}

/// AEX with the state in the context.
///
/// # Safety
/// The context is the enclave's, `thread` this thread.
pub unsafe fn exit_asynchronously(
    context: &mut libc::ucontext_t,
    thread: *mut Thread,
    fault: Option<Fault>,
) {
    let gprs = ssa::context_gprs(context);
    // SAFETY: as for this function.
    unsafe {
        let bases = ((*thread).signal_fs, (*thread).signal_gs);
        let outside = ssa::save(thread, &gprs, bases, Extended::Signal(context), fault);
        ssa::leave(
            context,
            (*thread).tcs_address,
            outside,
            &entry::bulla_emu_aep,
        );
        (*thread).signal_fs = (*thread).host_fs;
        (*thread).signal_gs = (*thread).host_gs;
    }
}

/// The exception that a fault signal stands for; `None` if it was resolved here.
///
/// # Safety
/// As for [`enclave_signal`].
unsafe fn exception(
    signal: i32,
    info: *mut libc::siginfo_t,
    context: &mut libc::ucontext_t,
    thread: *mut Thread,
    enclave: &Enclave,
) -> Option<Fault> {
    let registers = &mut context.uc_mcontext.gregs;
    let rip = registers[libc::REG_RIP as usize] as u64;
    if signal == libc::SIGSYS {
        // `syscall` and `int 0x80` are illegal: as if the instruction had not been executed.
        registers[libc::REG_RIP as usize] -= 2;
        return Some(Fault::UD);
    }
    let vector = registers[libc::REG_TRAPNO as usize] as u16;
    let error_code = registers[libc::REG_ERR as usize] as u16;
    let plain = |vector| Fault {
        vector,
        error_code: 0,
        address: 0,
    };
    match vector {
        // INT3 is reported like a fault: RIP at the instruction.
        3 => {
            registers[libc::REG_RIP as usize] -= 1;
            Some(plain(3))
        }
        13 if illegal(enclave, rip) => Some(Fault::UD),
        13 => Some(Fault {
            error_code,
            ..Fault::GP
        }),
        14 => {
            // SAFETY: the kernel's siginfo of a page fault.
            let address = unsafe { (*info).si_addr() } as u64;
            // SAFETY: as for this function.
            unsafe { page_fault(enclave, thread, rip, address, error_code) }
        }
        _ => Some(plain(vector & 31)),
    }
}

/// Whether the instruction at `rip`, which raised #GP outside, raises #UD inside (SDM 37.6.1):
/// port I/O, INT n, RDPMC, RDTSC on SGX1, IRET and far transfers.
fn illegal(enclave: &Enclave, rip: u64) -> bool {
    match code_at::<3>(enclave, rip) {
        Some([0xe4..=0xe7 | 0xec..=0xef | 0x6c..=0x6f | 0xcd | 0xcf, ..]) => true,
        Some([0xca | 0xcb, ..]) => true,
        Some([0x0f, 0x33, _]) => true,
        Some([0x0f, 0x31, _] | [0x0f, 0x01, 0xf9]) => !enclave.profile.features.rdtsc,
        // CPUID, where the CPU can make it fault.
        Some([0x0f, 0xa2, _]) => true,
        // With an operand-size or repeat prefix.
        Some(
            [
                0x66 | 0xf2 | 0xf3,
                0xe5 | 0xe7 | 0xed | 0xef | 0x6c..=0x6f,
                _,
            ],
        ) => true,
        _ => false,
    }
}

/// # Safety
/// As for [`enclave_signal`].
unsafe fn page_fault(
    enclave: &Enclave,
    thread: *mut Thread,
    rip: u64,
    address: u64,
    error_code: u16,
) -> Option<Fault> {
    const WRITE: u16 = 1 << 1;
    const FETCH: u16 = 1 << 4;
    const SGX_VIOLATION: u16 = 1 << 15 | 1;
    if !enclave.contains(rip) {
        // A fetch outside ELRANGE is #GP at the target.
        return Some(Fault::GP);
    }
    if !enclave.contains(address) {
        return Some(Fault {
            vector: 14,
            error_code,
            address,
        });
    }
    let access = match error_code {
        code if code & FETCH != 0 => 4,
        code if code & WRITE != 0 => 2,
        _ => 1,
    };
    // SAFETY: this thread's structure.
    let thread = unsafe { &mut *thread };
    let repeated = thread.widened == address && thread.widened_count > 3;
    if !repeated && enclave.epcm.widen(address, access) {
        thread.widened_count = if thread.widened == address {
            thread.widened_count + 1
        } else {
            1
        };
        thread.widened = address;
        return None;
    }
    thread.widened = 0;
    let entry = enclave.epcm.get(address);
    let by_epcm = entry.is(super::epcm::VALID)
        && entry.table() & access != 0
        && entry.allowed() & access == 0;
    let error_code = if by_epcm {
        error_code | SGX_VIOLATION
    } else {
        error_code
    };
    Some(Fault {
        vector: 14,
        error_code,
        address,
    })
}
