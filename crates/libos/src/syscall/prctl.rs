//! prctl, arch_prctl.

use core::sync::atomic::Ordering;

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EFAULT, EINVAL, ENODEV, EPERM};
use crate::platform::platform;
use crate::process::credentials::{CAP_LAST, CAP_SETPCAP, secure};
use crate::process::exec::set_name;
use crate::signal::SIGNAL_MAX;
use crate::user::UserPtr;

const PR_SET_PDEATHSIG: u32 = 1;
const PR_GET_PDEATHSIG: u32 = 2;
const PR_GET_DUMPABLE: u32 = 3;
const PR_SET_DUMPABLE: u32 = 4;
const PR_GET_KEEPCAPS: u32 = 7;
const PR_SET_KEEPCAPS: u32 = 8;
const PR_GET_TIMING: u32 = 13;
const PR_SET_TIMING: u32 = 14;
const PR_SET_NAME: u32 = 15;
const PR_GET_NAME: u32 = 16;
const PR_GET_SECCOMP: u32 = 21;
const PR_SET_SECCOMP: u32 = 22;
const PR_CAPBSET_READ: u32 = 23;
const PR_CAPBSET_DROP: u32 = 24;
const PR_GET_TSC: u32 = 25;
const PR_SET_TSC: u32 = 26;
const PR_GET_SECUREBITS: u32 = 27;
const PR_SET_SECUREBITS: u32 = 28;
const PR_SET_TIMERSLACK: u32 = 29;
const PR_GET_TIMERSLACK: u32 = 30;
const PR_SET_MM: u32 = 35;
const PR_SET_CHILD_SUBREAPER: u32 = 36;
const PR_GET_CHILD_SUBREAPER: u32 = 37;
const PR_SET_NO_NEW_PRIVS: u32 = 38;
const PR_GET_NO_NEW_PRIVS: u32 = 39;
const PR_GET_TID_ADDRESS: u32 = 40;
const PR_SET_THP_DISABLE: u32 = 41;
const PR_GET_THP_DISABLE: u32 = 42;
const PR_CAP_AMBIENT: u32 = 47;
const PR_GET_SPECULATION_CTRL: u32 = 52;
const PR_SET_SPECULATION_CTRL: u32 = 53;
const PR_SET_IO_FLUSHER: u32 = 57;
const PR_SET_VMA: u32 = 0x5356_4d41;
const PR_SET_PTRACER: u32 = 0x5961_6d61;

pub fn prctl(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let thread = context.thread;
    let process = &thread.process;
    let value = arguments.u64(1);
    let write = |value: u32| UserPtr::<u32>::new(arguments.u64(1)).write(&context.mm(), &value);
    match arguments.u32(0) {
        PR_SET_PDEATHSIG => {
            if value > u64::from(SIGNAL_MAX) {
                return Err(EINVAL.because("no such signal"));
            }
            process
                .parent_death_signal
                .store(value as u32, Ordering::Relaxed);
        }
        PR_GET_PDEATHSIG => write(process.parent_death_signal.load(Ordering::Relaxed))?,
        PR_GET_DUMPABLE => return Ok(process.dumpable.load(Ordering::Relaxed) as usize),
        PR_SET_DUMPABLE if value <= 1 => process.dumpable.store(value as u32, Ordering::Relaxed),
        PR_GET_KEEPCAPS => {
            let bits = process.credentials.lock().secure_bits;
            return Ok(usize::from(bits & secure::KEEP_CAPS != 0));
        }
        PR_SET_KEEPCAPS if value <= 1 => {
            process.credentials.lock().keep_capabilities(value == 1)?;
        }
        PR_GET_TIMING => {}
        PR_SET_TIMING if value == 0 => {}
        PR_SET_NAME => {
            let mut name = [0u8; 16];
            // The name may end before the page does.
            let read = crate::user::read_string(&context.mm(), value, 15);
            let name = match read {
                Ok(text) => {
                    name[..text.len()].copy_from_slice(&text);
                    name
                }
                Err(error) if error == EFAULT => return Err(error),
                Err(_) => {
                    context.mm().read(value, &mut name[..15])?;
                    name
                }
            };
            set_name(thread, &name);
        }
        PR_GET_NAME => {
            let mut name = [0u8; 16];
            let own = thread.name.lock().clone();
            name[..own.len().min(15)].copy_from_slice(&own[..own.len().min(15)]);
            context.mm().write(value, &name)?;
        }
        PR_GET_SECCOMP => return Ok(usize::from(thread.seccomp.mode())),
        PR_SET_SECCOMP => return super::seccomp::from_prctl(context, value, arguments.u64(2)),
        PR_CAPBSET_READ if value <= u64::from(CAP_LAST) => {
            return Ok((process.credentials.lock().bounding >> value & 1) as usize);
        }
        PR_CAPBSET_DROP if value <= u64::from(CAP_LAST) => {
            let mut credentials = process.credentials.lock();
            if !credentials.has(CAP_SETPCAP) {
                return Err(EPERM);
            }
            credentials.bounding &= !(1 << value);
        }
        PR_GET_TSC => write(1)?,
        PR_SET_TSC if value == 1 => {}
        PR_GET_SECUREBITS => return Ok(process.credentials.lock().secure_bits as usize),
        PR_SET_SECUREBITS => process.credentials.lock().set_secure_bits(value)?,
        PR_SET_TIMERSLACK => {
            let slack = if value == 0 || value as i64 <= 0 {
                thread.timer_slack_default.load(Ordering::Relaxed)
            } else {
                value
            };
            thread.timer_slack.store(slack, Ordering::Relaxed);
        }
        PR_GET_TIMERSLACK => return Ok(thread.timer_slack.load(Ordering::Relaxed) as usize),
        PR_SET_MM => return Err(EPERM.because("PR_SET_MM needs CAP_SYS_RESOURCE")),
        PR_SET_CHILD_SUBREAPER => process.subreaper.store(value != 0, Ordering::Relaxed),
        PR_GET_CHILD_SUBREAPER => write(process.subreaper.load(Ordering::Relaxed).into())?,
        PR_SET_NO_NEW_PRIVS => {
            if value != 1 || [2, 3, 4].iter().any(|&index| arguments.u64(index) != 0) {
                return Err(EINVAL);
            }
            process.no_new_privileges.store(true, Ordering::Relaxed);
        }
        PR_GET_NO_NEW_PRIVS if (1..5).all(|index| arguments.u64(index) == 0) => {
            return Ok(usize::from(
                process.no_new_privileges.load(Ordering::Relaxed),
            ));
        }
        PR_GET_TID_ADDRESS => {
            let address = thread.exit.clear_child_tid.load(Ordering::Relaxed);
            UserPtr::<u64>::new(value).write(&context.mm(), &address)?;
        }
        // Huge pages are a matter of the host; what was asked for is told.
        PR_SET_THP_DISABLE if [2, 3, 4].iter().all(|&index| arguments.u64(index) == 0) => {
            process
                .no_huge_pages
                .store(u32::from(value != 0), Ordering::Relaxed);
        }
        PR_GET_THP_DISABLE if (1..5).all(|index| arguments.u64(index) == 0) => {
            return Ok(process.no_huge_pages.load(Ordering::Relaxed) as usize);
        }
        PR_CAP_AMBIENT => return ambient(context, arguments),
        PR_GET_SPECULATION_CTRL if (2..5).all(|index| arguments.u64(index) == 0) => {
            return Err(ENODEV);
        }
        PR_SET_SPECULATION_CTRL if arguments.u64(3) == 0 && arguments.u64(4) == 0 => {
            return Err(ENODEV);
        }
        PR_SET_IO_FLUSHER => return Err(EPERM),
        // Names of anonymous mappings are a debugging aid that nothing may rely on.
        PR_SET_VMA => return Err(EINVAL.because("names of mappings are not kept")),
        PR_SET_PTRACER => {}
        _ => return Err(EINVAL.because("unknown prctl")),
    }
    Ok(0)
}

fn ambient(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mut credentials = context.thread.process.credentials.lock();
    let capability = arguments.u64(2);
    if arguments.u64(3) != 0 || arguments.u64(4) != 0 {
        return Err(EINVAL.because("arguments that must be 0"));
    }
    let bit = || {
        let known = capability <= u64::from(CAP_LAST);
        known
            .then(|| 1u64 << capability)
            .ok_or(EINVAL.because("unknown capability"))
    };
    match arguments.u64(1) {
        1 => Ok(usize::from(credentials.ambient & bit()? != 0)),
        2 => {
            let bit = bit()?;
            if credentials.secure_bits & secure::NO_CAP_AMBIENT_RAISE != 0 {
                return Err(EPERM.because("SECBIT_NO_CAP_AMBIENT_RAISE is set"));
            }
            if credentials.permitted & credentials.inheritable & bit == 0 {
                return Err(EPERM.because("not permitted and inheritable"));
            }
            credentials.ambient |= bit;
            Ok(0)
        }
        3 => {
            credentials.ambient &= !bit()?;
            Ok(0)
        }
        4 if capability == 0 => {
            credentials.ambient = 0;
            Ok(0)
        }
        _ => Err(EINVAL.because("unknown ambient operation")),
    }
}

const ARCH_SET_GS: u32 = 0x1001;
const ARCH_SET_FS: u32 = 0x1002;
const ARCH_GET_FS: u32 = 0x1003;
const ARCH_GET_GS: u32 = 0x1004;
const ARCH_GET_CPUID: u32 = 0x1011;
const ARCH_SET_CPUID: u32 = 0x1012;

pub fn arch_prctl(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match arguments.u32(0) {
        ARCH_SET_FS => {
            let base = arguments.u64(1);
            if base >= 1 << 47 {
                return Err(EPERM.because("not a user address"));
            }
            platform().set_fs_base(base);
            Ok(0)
        }
        ARCH_GET_FS => {
            arguments
                .pointer::<u64>(1)
                .write(&context.mm(), &platform().fs_base())?;
            Ok(0)
        }
        ARCH_SET_GS => Err(EPERM.because("GS belongs to the runtime")),
        ARCH_GET_GS => {
            arguments.pointer::<u64>(1).write(&context.mm(), &0)?;
            Ok(0)
        }
        ARCH_GET_CPUID => Ok(1),
        ARCH_SET_CPUID => Err(ENODEV),
        _ => Err(EINVAL.because("unknown arch_prctl")),
    }
}
