//! semget, semop, semtimedop, semctl.

use alloc::vec::Vec;

use zerocopy::IntoBytes;

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{E2BIG, EINVAL, ERANGE};
use crate::ipc::semaphore::{
    ALL_MAX, OPERATIONS_MAX, Operation, SET_MAX, SETS, SETS_MAX, Set, VALUE_MAX, most_operations,
};
use crate::ipc::{IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT, Object, READ};
use crate::platform::platform;
use crate::process::credentials::Credentials;
use crate::time::Timespec;
use crate::user::UserPtr;

fn credentials(context: &Context<'_>) -> Credentials {
    context.thread.process.credentials.lock().clone()
}

pub fn semget(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let count = usize::try_from(arguments.i32(1)).map_err(|_| EINVAL)?;
    if count as u64 > SET_MAX.value() {
        return Err(EINVAL.because("too many semaphores for a set"));
    }
    let enough = |set: &Set| {
        let fits = count <= set.len();
        if fits {
            Ok(())
        } else {
            Err(EINVAL.because("the set is smaller"))
        }
    };
    let make = |permission| Set::new(permission, count);
    SETS.get(
        arguments.i32(0),
        arguments.u32(2),
        &credentials(context),
        enough,
        make,
    )
}

pub fn semop(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    operate(context, arguments, None)
}

pub fn semtimedop(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let deadline = match arguments.pointer::<Timespec>(3).option() {
        Some(from) => {
            let timeout = from.read(&context.mm())?.to_ns()?;
            Some(platform().monotonic().saturating_add(timeout))
        }
        None => None,
    };
    operate(context, arguments, deadline)
}

fn operate(context: &Context<'_>, arguments: Arguments, deadline: Option<u64>) -> Result<usize> {
    let count = arguments.u32(2) as usize;
    if count == 0 {
        return Err(EINVAL.because("no operations"));
    }
    if count > most_operations() {
        return Err(E2BIG.because("too many operations"));
    }
    let operations = arguments
        .pointer::<Operation>(1)
        .read_vec(&context.mm(), count)?;
    let set = SETS.find(arguments.i32(0))?;
    set.operate(context.thread, &operations, deadline)?;
    Ok(0)
}

const GETPID: i32 = 11;
const GETVAL: i32 = 12;
const GETALL: i32 = 13;
const GETNCNT: i32 = 14;
const GETZCNT: i32 = 15;
const SETVAL: i32 = 16;
const SETALL: i32 = 17;
const SEM_STAT: i32 = 18;
const SEM_INFO: i32 = 19;
const SEM_STAT_ANY: i32 = 20;
/// Bit that old programs set for the 64-bit structures.
const IPC_64: i32 = 0x100;

pub fn semctl(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (id, index, argument) = (arguments.i32(0), arguments.i32(1), arguments.u64(3));
    let command = arguments.i32(2) & !IPC_64;
    let credentials = credentials(context);
    let mm = context.mm();
    match command {
        IPC_INFO | SEM_INFO => {
            let (sets, highest) = SETS.all();
            let limits = [&ALL_MAX, &SETS_MAX, &SET_MAX, &OPERATIONS_MAX];
            let [all, sets_max, max, operations] = limits.map(|limit| limit.value() as i32);
            let (mut used, mut adjust) = (20, VALUE_MAX);
            if command == SEM_INFO {
                used = sets.len() as i32;
                adjust = sets.iter().map(|set| set.len()).sum::<usize>() as i32;
            }
            let info: [i32; 10] = [
                all, sets_max, all, all, max, operations, operations, used, VALUE_MAX, adjust,
            ];
            mm.write(argument, info.as_bytes())?;
            Ok(highest)
        }
        IPC_STAT => {
            let set = SETS.find(id)?;
            set.permission().check(&credentials, READ)?;
            mm.write(argument, &set.encode())?;
            Ok(0)
        }
        SEM_STAT | SEM_STAT_ANY => {
            let (id, set) = SETS.by_index(id)?;
            if command == SEM_STAT {
                set.permission().check(&credentials, READ)?;
            }
            mm.write(argument, &set.encode())?;
            Ok(id)
        }
        IPC_SET => {
            let mut bytes = [0; 48];
            mm.read(argument, &mut bytes)?;
            SETS.find(id)?.set_permission(&credentials, &bytes)?;
            Ok(0)
        }
        IPC_RMID => {
            SETS.remove(id, |set| set.permission().check_owner(&credentials))?;
            Ok(0)
        }
        GETVAL => Ok(SETS.find(id)?.get(&credentials, index)?[0]),
        GETPID => Ok(SETS.find(id)?.get(&credentials, index)?[1]),
        GETNCNT => Ok(SETS.find(id)?.get(&credentials, index)?[2]),
        GETZCNT => Ok(SETS.find(id)?.get(&credentials, index)?[3]),
        GETALL => {
            let values = SETS.find(id)?.values(&credentials)?;
            mm.write(argument, values.as_bytes())?;
            Ok(0)
        }
        SETVAL => {
            let value = argument as i32;
            if !(0..=VALUE_MAX).contains(&value) {
                return Err(ERANGE);
            }
            let first = usize::try_from(index).map_err(|_| EINVAL)?;
            let pid = context.thread.process.pid;
            SETS.find(id)?.set(&credentials, pid, first, &[value])?;
            Ok(0)
        }
        SETALL => {
            let set = SETS.find(id)?;
            let values = UserPtr::<u16>::new(argument).read_vec(&mm, set.len())?;
            let values: Vec<i32> = values.into_iter().map(i32::from).collect();
            set.set(&credentials, context.thread.process.pid, 0, &values)?;
            Ok(0)
        }
        _ => Err(EINVAL.because("unknown semctl command")),
    }
}
