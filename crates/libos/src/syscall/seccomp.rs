//! seccomp, and prctl's older way to the same.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EFAULT, EINVAL, EOPNOTSUPP};
use crate::process::bpf::{INSTRUCTIONS_MAX, Instruction, Program};
use crate::process::seccomp::{self as restrictions, Scope, action};
use crate::user::UserPtr;

/// `struct sock_fprog`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct FilterProgram {
    len: u16,
    padding: [u16; 3],
    instructions: u64,
}

/// seccomp(2).
pub fn seccomp(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    const SET_MODE_STRICT: u32 = 0;
    const SET_MODE_FILTER: u32 = 1;
    const GET_ACTION_AVAIL: u32 = 2;
    const GET_NOTIF_SIZES: u32 = 3;
    let (flags, argument) = (arguments.u32(1), arguments.u64(2));
    match arguments.u32(0) {
        SET_MODE_STRICT if flags == 0 && argument == 0 => {
            context.thread.seccomp.set_strict().map(|()| 0)
        }
        SET_MODE_FILTER => set_filter(context, flags, argument),
        GET_ACTION_AVAIL if flags == 0 => {
            let wanted = UserPtr::<u32>::new(argument).read(&context.mm())?;
            match wanted {
                action::KILL_PROCESS
                | action::KILL_THREAD
                | action::TRAP
                | action::ERRNO
                | action::LOG
                | action::ALLOW => Ok(0),
                // Tracers and supervisors do not exist.
                _ => Err(EOPNOTSUPP.because("no such action here")),
            }
        }
        GET_NOTIF_SIZES if flags == 0 => {
            // struct seccomp_notif, seccomp_notif_resp, seccomp_data.
            const SIZES: [u16; 3] = [80, 24, 64];
            context.mm().write(argument, SIZES.as_bytes())?;
            Ok(0)
        }
        _ => Err(EINVAL.because("unknown seccomp operation or flags")),
    }
}

fn set_filter(context: &Context<'_>, flags: u32, address: u64) -> Result<usize> {
    const TSYNC: u32 = 1;
    /// SECCOMP_FILTER_FLAG_LOG and _SPEC_ALLOW: there is no log, and nothing to mitigate.
    const WITHOUT_EFFECT: u32 = 2 | 4;
    const TSYNC_ESRCH: u32 = 16;
    if flags & !(TSYNC | WITHOUT_EFFECT | TSYNC_ESRCH) != 0 {
        return Err(EINVAL.because("no notifications of filters"));
    }
    let mm = context.mm();
    let program = UserPtr::<FilterProgram>::new(address).read(&mm)?;
    let len = usize::from(program.len);
    if len == 0 || len > INSTRUCTIONS_MAX {
        return Err(EINVAL.because("a filter has 1 to 4096 instructions"));
    }
    let code = UserPtr::<Instruction>::new(program.instructions).read_vec(&mm, len)?;
    let scope = match flags & TSYNC != 0 {
        true => Scope::Process {
            as_error: flags & TSYNC_ESRCH != 0,
        },
        false => Scope::Thread,
    };
    restrictions::add(context.thread, Program::new(code)?, scope)
}

/// PR_SET_SECCOMP.
pub fn from_prctl(context: &Context<'_>, mode: u64, address: u64) -> Result<usize> {
    match mode {
        1 => context.thread.seccomp.set_strict().map(|()| 0),
        2 if address == 0 => Err(EFAULT),
        2 => set_filter(context, 0, address),
        _ => Err(EINVAL.because("unknown seccomp mode")),
    }
}
