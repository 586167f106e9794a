//! ptrace(2).

use alloc::sync::Arc;
use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EACCES, EFAULT, EINVAL, EIO, EPERM, ESRCH};
use crate::platform::platform;
use crate::ptrace::registers::{DEBUG_REGISTERS, FPREGS_SIZE, USER_SIZE, WORDS};
use crate::ptrace::{Kind, Mode, Options, Snapshot, Tracee, relation, step};
use crate::signal::send::{Origin, to_process};
use crate::signal::{SIGKILL, SIGNAL_MAX, SIGTRAP, SigInfo};
use crate::user::UserPtr;

/// Requests.
mod request {
    pub const TRACEME: u64 = 0;
    pub const PEEKTEXT: u64 = 1;
    pub const PEEKDATA: u64 = 2;
    pub const PEEKUSER: u64 = 3;
    pub const POKETEXT: u64 = 4;
    pub const POKEDATA: u64 = 5;
    pub const POKEUSER: u64 = 6;
    pub const CONT: u64 = 7;
    pub const KILL: u64 = 8;
    pub const SINGLESTEP: u64 = 9;
    pub const GETREGS: u64 = 12;
    pub const SETREGS: u64 = 13;
    pub const GETFPREGS: u64 = 14;
    pub const SETFPREGS: u64 = 15;
    pub const ATTACH: u64 = 16;
    pub const DETACH: u64 = 17;
    pub const SYSCALL: u64 = 24;
    pub const ARCH_PRCTL: u64 = 30;
    pub const SYSEMU: u64 = 31;
    pub const SYSEMU_SINGLESTEP: u64 = 32;
    pub const SETOPTIONS: u64 = 0x4200;
    pub const GETEVENTMSG: u64 = 0x4201;
    pub const GETSIGINFO: u64 = 0x4202;
    pub const SETSIGINFO: u64 = 0x4203;
    pub const GETREGSET: u64 = 0x4204;
    pub const SETREGSET: u64 = 0x4205;
    pub const SEIZE: u64 = 0x4206;
    pub const INTERRUPT: u64 = 0x4207;
    pub const LISTEN: u64 = 0x4208;
    pub const PEEKSIGINFO: u64 = 0x4209;
    pub const GETSIGMASK: u64 = 0x420a;
    pub const SETSIGMASK: u64 = 0x420b;
    pub const SECCOMP_GET_FILTER: u64 = 0x420c;
    pub const SECCOMP_GET_METADATA: u64 = 0x420d;
    pub const GET_SYSCALL_INFO: u64 = 0x420e;
}

/// Register sets of PTRACE_GETREGSET.
mod set {
    pub const PRSTATUS: u64 = 1;
    pub const PRFPREG: u64 = 2;
    pub const X86_XSTATE: u64 = 0x202;
}

/// Where the extended state holds MXCSR.
const MXCSR: core::ops::Range<usize> = 24..28;
/// Bits of MXCSR that are none.
const MXCSR_RESERVED: u32 = 0xffff_0000;

pub fn ptrace(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (wanted, tid) = (arguments.u64(0), arguments.u32(1));
    let thread = context.thread;
    match wanted {
        request::TRACEME => return relation::trace_me(thread).map(|()| 0),
        request::ATTACH => return relation::attach(thread, tid, None).map(|()| 0),
        request::SEIZE => {
            let options = Options::from_bits(arguments.u64(3));
            let options = options.filter(|_| arguments.u64(2) == 0);
            let options = options.ok_or(EIO.because("unknown options, or an address"))?;
            check_options(options)?;
            return relation::attach(thread, tid, Some(options)).map(|()| 0);
        }
        _ => {}
    }
    let tracee = relation::find(thread, tid)?;
    match wanted {
        request::KILL => {
            to_process(tracee.process(), SigInfo::kernel(SIGKILL), Origin::Inside)?;
            return Ok(0);
        }
        request::INTERRUPT => return tracee.interrupt().map(|()| 0),
        _ => {}
    }
    // All others are for threads that have stopped.
    tracee.stopped(|_| ())?;
    at_stop(context, &tracee, wanted, arguments)
}

fn check_options(options: Options) -> Result<()> {
    match options.contains(Options::SUSPEND_SECCOMP) {
        true => Err(EPERM.because("filters cannot be suspended in a container")),
        false => Ok(()),
    }
}

/// A signal that a tracer gives; EIO.
fn signal(arguments: Arguments) -> Result<u32> {
    let signal = arguments.u64(3);
    match signal <= u64::from(SIGNAL_MAX) {
        true => Ok(signal as u32),
        false => Err(EIO.because("no such signal")),
    }
}

fn at_stop(
    context: &Context<'_>,
    tracee: &Arc<Tracee>,
    wanted: u64,
    arguments: Arguments,
) -> Result<usize> {
    let mm = context.mm();
    let (address, data) = (arguments.u64(2), arguments.u64(3));
    match wanted {
        request::PEEKTEXT | request::PEEKDATA => {
            let mut word = [0; 8];
            check_memory(tracee)?;
            let read = tracee.process().mm().peek(address, &mut word);
            read.map_err(|_| EIO.because("nothing is mapped there"))?;
            mm.write(data, &word)?;
        }
        request::POKETEXT | request::POKEDATA => {
            check_memory(tracee)?;
            let written = tracee.process().mm().poke(address, &data.to_le_bytes());
            written.map_err(|_| EIO.because("nothing can be written there"))?;
        }
        request::PEEKUSER => {
            let word = peek_user(tracee, address)?;
            UserPtr::<u64>::new(data).write(&mm, &word)?;
        }
        request::POKEUSER => poke_user(tracee, address, data)?,
        request::CONT => tracee.resume(Mode::Run, false, signal(arguments)?)?,
        request::SYSCALL => tracee.resume(Mode::Calls, false, signal(arguments)?)?,
        request::SYSEMU => tracee.resume(Mode::Emulate, false, signal(arguments)?)?,
        request::SINGLESTEP | request::SYSEMU_SINGLESTEP => {
            let signal = signal(arguments)?;
            step::check(tracee)?;
            let mode = match wanted {
                request::SINGLESTEP => Mode::Run,
                _ => Mode::Emulate,
            };
            tracee.resume(mode, true, signal)?;
        }
        request::DETACH => relation::detach(tracee, signal(arguments)?)?,
        request::LISTEN => tracee.listen()?,
        request::SETOPTIONS => {
            let options = Options::from_bits(data).ok_or(EINVAL.because("unknown options"))?;
            check_options(options)?;
            tracee.stopped(|state| state.options = options)?;
        }
        request::GETEVENTMSG => {
            let message = tracee.stopped(|state| state.message())?;
            UserPtr::<u64>::new(data).write(&mm, &message)?;
        }
        request::GETSIGINFO => {
            let info = tracee.at_stop(|stop| stop.info)?;
            let info = info.ok_or(EINVAL.because("a stop without a signal"))?;
            mm.write(data, &info.to_user())?;
        }
        request::SETSIGINFO => {
            let info = UserPtr::<SigInfo>::new(data).read(&mm)?;
            tracee.at_stop(|stop| match &mut stop.info {
                Some(known) => {
                    *known = info;
                    Ok(())
                }
                None => Err(EINVAL.because("a stop without a signal")),
            })??;
        }
        request::PEEKSIGINFO => return peek_signals(context, tracee, address, data),
        request::GETSIGMASK | request::SETSIGMASK => mask(context, tracee, wanted, address, data)?,
        request::GET_SYSCALL_INFO => return call_info(context, tracee, address, data),
        request::SECCOMP_GET_FILTER | request::SECCOMP_GET_METADATA => {
            return Err(EACCES.because("filters are not shown in a container"));
        }
        _ => registers(context, tracee, wanted, address, data)?,
    }
    Ok(0)
}

fn check_memory(tracee: &Tracee) -> Result<()> {
    match tracee.may_access_memory() {
        true => Ok(()),
        false => Err(EIO.because("the process has other rights now")),
    }
}

fn peek_user(tracee: &Tracee, address: u64) -> Result<u64> {
    if !address.is_multiple_of(8) || address >= USER_SIZE {
        return Err(EIO.because("not in struct user"));
    }
    let words = tracee.at_stop(|stop| stop.snapshot.words())?;
    // The rest is zero on Linux too, or a debug register, of which there are none.
    Ok(words.get(address as usize / 8).copied().unwrap_or(0))
}

fn poke_user(tracee: &Tracee, address: u64, value: u64) -> Result<()> {
    let index = address as usize / 8;
    if address.is_multiple_of(8) && index < WORDS {
        return tracee.at_stop(|stop| stop.snapshot.set_word(index, value))?;
    }
    match DEBUG_REGISTERS.contains(&address) && address.is_multiple_of(8) {
        // What they hold.
        true if value == 0 => Ok(()),
        true => Err(EINVAL.because("an enclave has no debug registers")),
        false => Err(EIO.because("not in struct user, or nothing that can be changed")),
    }
}

/// Requests for whole sets of registers.
fn registers(
    context: &Context<'_>,
    tracee: &Tracee,
    wanted: u64,
    address: u64,
    data: u64,
) -> Result<()> {
    let mm = context.mm();
    match wanted {
        request::GETREGS => mm.write(data, &set_of(tracee, set::PRSTATUS)?),
        request::GETFPREGS => mm.write(data, &set_of(tracee, set::PRFPREG)?),
        request::SETREGS => {
            let words = UserPtr::<[u64; WORDS]>::new(data).read(&mm)?;
            tracee.at_stop(|stop| stop.snapshot.set_words(&words))?
        }
        request::SETFPREGS => {
            let mut bytes = [0; FPREGS_SIZE];
            mm.read(data, &mut bytes)?;
            set_extended(tracee, &bytes)
        }
        request::GETREGSET | request::SETREGSET => {
            let vector = UserPtr::<[u64; 2]>::new(data);
            let [base, len] = vector.read(&mm)?;
            let all = set_of(tracee, address)?;
            if len % 8 != 0 {
                return Err(EINVAL.because("not whole words"));
            }
            let len = (len as usize).min(all.len());
            if wanted == request::GETREGSET {
                mm.write(base, &all[..len])?;
            } else {
                let mut bytes = alloc::vec![0; len];
                mm.read(base, &mut bytes)?;
                change_set(tracee, address, &bytes, all.len())?;
            }
            vector.write(&mm, &[base, len as u64])
        }
        request::ARCH_PRCTL => {
            const SET_GS: u64 = 0x1001;
            const SET_FS: u64 = 0x1002;
            const GET_FS: u64 = 0x1003;
            const GET_GS: u64 = 0x1004;
            const FS_BASE: usize = 21;
            const GS_BASE: usize = 22;
            let index = match data {
                GET_FS | SET_FS => FS_BASE,
                GET_GS | SET_GS => GS_BASE,
                _ => return Err(EINVAL.because("unknown code")),
            };
            if matches!(data, GET_FS | GET_GS) {
                let word = tracee.at_stop(|stop| stop.snapshot.words()[index])?;
                return UserPtr::<u64>::new(address).write(&mm, &word);
            }
            let changed = tracee.at_stop(|stop| stop.snapshot.set_word(index, address))?;
            changed.map_err(|_| EPERM.because("no base that a program can have"))
        }
        _ => Err(EIO.because("unknown request")),
    }
}

/// The bytes of a register set. EINVAL for an unknown one.
fn set_of(tracee: &Tracee, kind: u64) -> Result<Vec<u8>> {
    let of = |snapshot: &Snapshot| match kind {
        set::PRSTATUS => Some(snapshot.words().as_bytes().to_vec()),
        set::PRFPREG => Some(snapshot.fpu[..FPREGS_SIZE].to_vec()),
        set::X86_XSTATE if snapshot.fpu.len() > FPREGS_SIZE => Some(snapshot.extended()),
        _ => None,
    };
    tracee
        .at_stop(|stop| of(&stop.snapshot))?
        .ok_or(EINVAL.because("no such set of registers"))
}

fn change_set(tracee: &Tracee, kind: u64, bytes: &[u8], whole: usize) -> Result<()> {
    match kind {
        set::PRSTATUS => {
            let (words, _) = bytes.as_chunks::<8>();
            let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
            tracee.at_stop(|stop| stop.snapshot.set_words(&words))?
        }
        // A part of the state cannot be told from a state with other parts.
        set::X86_XSTATE if bytes.len() != whole => Err(EFAULT.because("not all of the state")),
        _ => set_extended(tracee, bytes),
    }
}

/// EINVAL for a state that a CPU would refuse.
fn set_extended(tracee: &Tracee, bytes: &[u8]) -> Result<()> {
    if let Some(&[a, b, c, d]) = bytes.get(MXCSR)
        && u32::from_le_bytes([a, b, c, d]) & MXCSR_RESERVED != 0
    {
        return Err(EINVAL.because("reserved bits of MXCSR"));
    }
    if let Some(header) = bytes.get(FPREGS_SIZE..FPREGS_SIZE + 64) {
        let (present, rest) = header.split_at(8);
        let present = u64::from_ne_bytes(present.try_into().map_err(|_| EINVAL)?);
        if present & !platform().fpu_features() != 0 || rest.iter().any(|&byte| byte != 0) {
            return Err(EINVAL.because("components that are not there"));
        }
    }
    tracee.at_stop(|stop| stop.snapshot.set_extended(bytes))
}

/// `struct ptrace_peeksiginfo_args`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct PeekSignals {
    offset: u64,
    flags: u32,
    count: i32,
}

fn peek_signals(context: &Context<'_>, tracee: &Tracee, address: u64, data: u64) -> Result<usize> {
    /// PTRACE_PEEKSIGINFO_SHARED: the process's signals.
    const SHARED: u32 = 1;
    let mm = context.mm();
    let wanted = UserPtr::<PeekSignals>::new(address).read(&mm)?;
    if wanted.flags & !SHARED != 0 || wanted.count < 0 {
        return Err(EINVAL.because("unknown flags, or less than no signals"));
    }
    let thread = tracee.thread().ok_or(ESRCH)?;
    let queued = match wanted.flags & SHARED {
        0 => thread.signals.queued(),
        _ => thread.process.signals.queued_infos(),
    };
    let offset = usize::try_from(wanted.offset).unwrap_or(usize::MAX);
    let mut done = 0;
    for info in queued.iter().skip(offset).take(wanted.count as usize) {
        let at = data.wrapping_add((done * crate::signal::info::SIGINFO_SIZE) as u64);
        match mm.write(at, &info.to_user()) {
            Ok(()) => done += 1,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn mask(
    context: &Context<'_>,
    tracee: &Tracee,
    wanted: u64,
    address: u64,
    data: u64,
) -> Result<()> {
    if address != 8 {
        return Err(EINVAL.because("not the size of a signal mask"));
    }
    let mm = context.mm();
    let thread = tracee.thread().ok_or(ESRCH)?;
    if wanted == request::GETSIGMASK {
        return UserPtr::<u64>::new(data).write(&mm, &thread.signals.blocked());
    }
    let mask = UserPtr::<u64>::new(data).read(&mm)?;
    // The thread rests, and looks at its signals when it goes on.
    tracee.stopped(|_| thread.signals.set_blocked_raw(mask))
}

/// `struct ptrace_syscall_info`.
fn call_info(context: &Context<'_>, tracee: &Tracee, size: u64, to: u64) -> Result<usize> {
    const NONE: u8 = 0;
    const ENTRY: u8 = 1;
    const EXIT: u8 = 2;
    const SECCOMP: u8 = 3;
    /// AUDIT_ARCH_X86_64.
    const ARCHITECTURE: u32 = 0xc000_003e;
    let message = tracee.stopped(|state| state.message())?;
    let (kind, code, registers) =
        tracee.at_stop(|stop| (stop.kind, stop.code, stop.snapshot.registers))?;
    let mut bytes = Vec::new();
    let is_good = code == SIGTRAP | 0x80;
    let operation = match kind {
        Kind::CallEntry if is_good => ENTRY,
        Kind::CallExit if is_good => EXIT,
        Kind::Event(crate::ptrace::Event::Seccomp) => SECCOMP,
        _ => NONE,
    };
    bytes.extend_from_slice(&[operation, 0, 0, 0]);
    bytes.extend_from_slice(&ARCHITECTURE.to_le_bytes());
    bytes.extend_from_slice([registers.rip, registers.rsp].as_bytes());
    match operation {
        ENTRY | SECCOMP => {
            bytes.extend_from_slice(&registers.orig_rax.to_le_bytes());
            bytes.extend_from_slice(registers.arguments().as_bytes());
            if operation == SECCOMP {
                bytes.extend_from_slice(&(message as u32).to_le_bytes());
            }
        }
        EXIT => {
            let is_error = (-4095..0).contains(&(registers.rax as i64));
            bytes.extend_from_slice(&registers.rax.to_le_bytes());
            bytes.push(u8::from(is_error));
        }
        _ => {}
    }
    let len = bytes.len().min(usize::try_from(size).unwrap_or(usize::MAX));
    context.mm().write(to, &bytes[..len])?;
    Ok(bytes.len())
}
