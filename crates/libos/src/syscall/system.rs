//! uname, host names, getrandom, personality, and calls that a container is refused.

use core::sync::atomic::Ordering;

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EINVAL, ENOENT, ENOSYS, EPERM};
use crate::fs::procfs::namespace_flag;
use crate::platform::platform;
use crate::process::clone::CloneFlags;
use crate::process::pidfd::PidFile;
use crate::user::IoBuffer;

/// The kernel release that programs see: what this kernel's interface follows.
pub const RELEASE: &[u8] = b"6.13.0-bulla";
/// What uname and /proc/version show as the version.
pub const VERSION: &[u8] = b"#1 SMP PREEMPT_DYNAMIC Bulla";
/// Length of each field of `struct new_utsname`.
const FIELD: usize = 65;

pub fn uname(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mut bytes = [0u8; FIELD * 6];
    let (host, domain) = crate::kernel().names();
    let fields: [&[u8]; 6] = [b"Linux", &host, RELEASE, VERSION, b"x86_64", &domain];
    for (index, field) in fields.iter().enumerate() {
        let len = field.len().min(FIELD - 1);
        bytes[index * FIELD..index * FIELD + len].copy_from_slice(&field[..len]);
    }
    context.mm().write(arguments.u64(0), &bytes)?;
    Ok(0)
}

/// Setting names needs CAP_SYS_ADMIN, which a container does not have.
pub fn sethostname(_: &mut Context<'_>, _: Arguments) -> Result<usize> {
    Err(EPERM.because("the manifest sets the host name"))
}

/// Most bytes that one getrandom moves at a time through the kernel.
const CHUNK: usize = 4096;

pub fn getrandom(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    // GRND_NONBLOCK, GRND_RANDOM, GRND_INSECURE; RANDOM and INSECURE exclude each other.
    let flags = arguments.u32(2);
    if flags & !7 != 0 || flags & 6 == 6 {
        return Err(EINVAL.because("unknown getrandom flags"));
    }
    let len = arguments.usize(1).min(i32::MAX as usize);
    let mm = context.mm();
    let mut chunk = [0u8; CHUNK];
    let mut done = 0;
    while done < len {
        let step = CHUNK.min(len - done);
        platform().random(&mut chunk[..step]);
        let mut to = IoBuffer::user(&mm, arguments.u64(0).wrapping_add(done as u64), step);
        to.split_at_faults();
        match to.put(&chunk[..step]) {
            Ok(moved) if moved < step => {
                done += moved;
                break;
            }
            Ok(_) => done += step,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
        if done < len && context.thread.interrupted() {
            break;
        }
    }
    chunk.fill(0);
    Ok(done)
}

/// Kept, and told to children; only STICKY_TIMEOUTS changes what calls do.
pub const STICKY_TIMEOUTS: u32 = 0x0400_0000;

/// Query, or change.
pub fn personality(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let process = &context.thread.process;
    let old = process.personality.load(Ordering::Relaxed);
    let new = arguments.u32(0);
    if new != u32::MAX {
        process.personality.store(new, Ordering::Relaxed);
    }
    Ok(old as usize)
}

pub fn syslog(_: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match arguments.i32(0) {
        0 | 1 => Ok(0),
        10 => Ok(1 << 18),
        2..=9 => Err(EPERM.because("the kernel log belongs to the host")),
        _ => Err(EINVAL.because("unknown syslog action")),
    }
}

/// EPERM, as a container without capabilities gets it.
pub fn not_permitted(_: &mut Context<'_>, _: Arguments) -> Result<usize> {
    Err(EPERM.because("needs a privilege that containers do not have"))
}

/// unshare: what a process has for itself already needs no unsharing; namespaces are refused.
pub fn unshare(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let flags = CloneFlags::from_bits(arguments.u64(0)).ok_or(EINVAL.because("unknown flags"))?;
    if flags.intersects(CloneFlags::NAMESPACES) {
        return Err(EPERM.because("namespaces cannot be created in a container"));
    }
    let allowed = CloneFlags::FS
        | CloneFlags::FILES
        | CloneFlags::SYSVSEM
        | CloneFlags::THREAD
        | CloneFlags::SIGHAND
        | CloneFlags::VM;
    if !allowed.contains(flags) {
        return Err(EINVAL.because("cannot be unshared"));
    }
    let thread = context.thread;
    let alone = thread.process.threads.lock().len() <= 1;
    if flags.intersects(CloneFlags::THREAD | CloneFlags::SIGHAND | CloneFlags::VM) && !alone {
        return Err(EINVAL.because("the process has other threads"));
    }
    if flags.contains(CloneFlags::FS) {
        let copy = thread.fs().copy();
        thread.set_fs(copy);
    }
    if flags.contains(CloneFlags::FILES) {
        let copy = thread.files().copy_for_fork()?;
        thread.set_files(copy);
    }
    Ok(0)
}

/// setns: there is one namespace of each kind, and a container's root may not enter any.
pub fn setns(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = context.thread.files().get(arguments.i32(0))?;
    let wanted = arguments.u32(1);
    let known = CloneFlags::NAMESPACES.bits() as u32;
    if let Some(flag) = namespace_flag(&file.ops) {
        if wanted != 0 && wanted != flag {
            return Err(EINVAL.because("a namespace of another kind"));
        }
        if flag == CloneFlags::NEWUSER.bits() as u32 {
            return Err(EINVAL.because("the process is in this namespace"));
        }
    } else if !file.ops.as_any().is::<PidFile>() || wanted == 0 || wanted & !known != 0 {
        return Err(EINVAL.because("neither a namespace nor a process with kinds of them"));
    }
    Err(EPERM.because("namespaces cannot be entered in a container"))
}

/// acct needs CAP_SYS_PACCT.
pub fn acct(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.u64(0) != 0 {
        let path = crate::user::read_path(&context.mm(), arguments.u64(0))?;
        if path.is_empty() {
            return Err(ENOENT);
        }
    }
    Err(EPERM.because("process accounting needs a privilege that containers do not have"))
}

/// ENOSYS with a purpose: the C library goes on without (rseq needs the kernel to watch every
/// preemption, which only the host sees).
pub fn declined(_: &mut Context<'_>, _: Arguments) -> Result<usize> {
    Err(ENOSYS)
}
