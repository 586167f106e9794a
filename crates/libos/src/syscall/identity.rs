//! Process ids, user and group ids, capabilities.

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EINVAL, EPERM, ESRCH};
use crate::process::credentials::{CAP_SETGID, CAP_SETPCAP, CAP_SETUID, Credentials};
use crate::process::table;

pub fn getpid(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    Ok(context.thread.process.pid as usize)
}

pub fn gettid(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    Ok(context.thread.tid() as usize)
}

pub fn getppid(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    Ok(context.thread.process.parent_pid() as usize)
}

pub fn getuid(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    Ok(context.thread.process.credentials.lock().ruid as usize)
}

pub fn geteuid(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    Ok(context.thread.process.credentials.lock().euid as usize)
}

pub fn getgid(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    Ok(context.thread.process.credentials.lock().rgid as usize)
}

pub fn getegid(context: &mut Context<'_>, _: Arguments) -> Result<usize> {
    Ok(context.thread.process.credentials.lock().egid as usize)
}

/// Changes the credentials as a whole or not at all.
fn change(
    context: &mut Context<'_>,
    change: impl FnOnce(&mut Credentials) -> Result<()>,
) -> Result<usize> {
    let mut credentials = context.thread.process.credentials.lock();
    let old = credentials.clone();
    let mut new = old.clone();
    change(&mut new)?;
    let ids_changed =
        [new.euid, new.egid, new.fsuid, new.fsgid] != [old.euid, old.egid, old.fsuid, old.fsgid];
    new.adjust_capabilities(&old);
    *credentials = new;
    drop(credentials);
    if ids_changed {
        let process = &context.thread.process;
        process
            .dumpable
            .store(0, core::sync::atomic::Ordering::Relaxed);
        process
            .parent_death_signal
            .store(0, core::sync::atomic::Ordering::Relaxed);
    }
    Ok(0)
}

/// −1 keeps an id.
fn optional(id: u32) -> Option<u32> {
    (id != u32::MAX).then_some(id)
}

pub fn setuid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let id = optional(arguments.u32(0)).ok_or(EINVAL)?;
    change(context, |c| {
        if c.has(CAP_SETUID) {
            (c.ruid, c.suid) = (id, id);
        } else if id != c.ruid && id != c.suid {
            return Err(EPERM);
        }
        (c.euid, c.fsuid) = (id, id);
        Ok(())
    })
}

pub fn setgid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let id = optional(arguments.u32(0)).ok_or(EINVAL)?;
    change(context, |c| {
        if c.has(CAP_SETGID) {
            (c.rgid, c.sgid) = (id, id);
        } else if id != c.rgid && id != c.sgid {
            return Err(EPERM);
        }
        (c.egid, c.fsgid) = (id, id);
        Ok(())
    })
}

pub fn setreuid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (real, effective) = (optional(arguments.u32(0)), optional(arguments.u32(1)));
    change(context, |c| {
        let old = c.clone();
        let free = c.has(CAP_SETUID);
        if let Some(id) = real {
            if !free && id != old.ruid && id != old.euid {
                return Err(EPERM);
            }
            c.ruid = id;
        }
        if let Some(id) = effective {
            if !free && ![old.ruid, old.euid, old.suid].contains(&id) {
                return Err(EPERM);
            }
            c.euid = id;
        }
        if real.is_some() || effective.is_some_and(|id| id != old.ruid) {
            c.suid = c.euid;
        }
        c.fsuid = c.euid;
        Ok(())
    })
}

pub fn setregid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (real, effective) = (optional(arguments.u32(0)), optional(arguments.u32(1)));
    change(context, |c| {
        let old = c.clone();
        let free = c.has(CAP_SETGID);
        if let Some(id) = real {
            if !free && id != old.rgid && id != old.egid {
                return Err(EPERM);
            }
            c.rgid = id;
        }
        if let Some(id) = effective {
            if !free && ![old.rgid, old.egid, old.sgid].contains(&id) {
                return Err(EPERM);
            }
            c.egid = id;
        }
        if real.is_some() || effective.is_some_and(|id| id != old.rgid) {
            c.sgid = c.egid;
        }
        c.fsgid = c.egid;
        Ok(())
    })
}

pub fn setresuid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let ids = [0, 1, 2].map(|index| optional(arguments.u32(index)));
    change(context, |c| {
        let known = [c.ruid, c.euid, c.suid];
        if !c.has(CAP_SETUID) && ids.iter().flatten().any(|id| !known.contains(id)) {
            return Err(EPERM);
        }
        let [real, effective, saved] = ids;
        c.ruid = real.unwrap_or(c.ruid);
        c.euid = effective.unwrap_or(c.euid);
        c.suid = saved.unwrap_or(c.suid);
        c.fsuid = c.euid;
        Ok(())
    })
}

pub fn setresgid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let ids = [0, 1, 2].map(|index| optional(arguments.u32(index)));
    change(context, |c| {
        let known = [c.rgid, c.egid, c.sgid];
        if !c.has(CAP_SETGID) && ids.iter().flatten().any(|id| !known.contains(id)) {
            return Err(EPERM);
        }
        let [real, effective, saved] = ids;
        c.rgid = real.unwrap_or(c.rgid);
        c.egid = effective.unwrap_or(c.egid);
        c.sgid = saved.unwrap_or(c.sgid);
        c.fsgid = c.egid;
        Ok(())
    })
}

fn write_ids(context: &mut Context<'_>, arguments: Arguments, ids: [u32; 3]) -> Result<usize> {
    let mm = context.mm();
    for (index, id) in ids.iter().enumerate() {
        arguments.pointer::<u32>(index).write(&mm, id)?;
    }
    Ok(0)
}

pub fn getresuid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let c = context.thread.process.credentials.lock().clone();
    write_ids(context, arguments, [c.ruid, c.euid, c.suid])
}

pub fn getresgid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let c = context.thread.process.credentials.lock().clone();
    write_ids(context, arguments, [c.rgid, c.egid, c.sgid])
}

/// setfsuid never fails: it tells the old id.
pub fn setfsuid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mut c = context.thread.process.credentials.lock();
    let (old, id) = (c.fsuid, arguments.u32(0));
    let known = [c.ruid, c.euid, c.suid, c.fsuid];
    if id != u32::MAX && (c.has(CAP_SETUID) || known.contains(&id)) {
        c.fsuid = id;
        c.adjust_file_capabilities(old);
    }
    Ok(old as usize)
}

pub fn setfsgid(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mut c = context.thread.process.credentials.lock();
    let (old, id) = (c.fsgid, arguments.u32(0));
    let known = [c.rgid, c.egid, c.sgid, c.fsgid];
    if id != u32::MAX && (c.has(CAP_SETGID) || known.contains(&id)) {
        c.fsgid = id;
    }
    Ok(old as usize)
}

/// Most supplementary groups (NGROUPS_MAX).
const GROUPS_MAX: usize = 65_536;

pub fn getgroups(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let groups = context.thread.process.credentials.lock().groups.clone();
    let room = arguments.i32(0);
    if room < 0 || room != 0 && (room as usize) < groups.len() {
        return Err(EINVAL.because("no room for all groups"));
    }
    if room != 0 {
        context.mm().write(arguments.u64(1), groups.as_bytes())?;
    }
    Ok(groups.len())
}

pub fn setgroups(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let count = arguments.i32(0);
    if !context.thread.process.credentials.lock().has(CAP_SETGID) {
        return Err(EPERM);
    }
    if count < 0 || count as usize > GROUPS_MAX {
        return Err(EINVAL.because("too many groups"));
    }
    let mut groups: Vec<u32> = arguments
        .pointer::<u32>(1)
        .read_vec(&context.mm(), count as usize)?;
    // As Linux keeps and tells them.
    groups.sort_unstable();
    context.thread.process.credentials.lock().groups = groups;
    Ok(0)
}

/// `struct __user_cap_header_struct`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

const VERSION_1: u32 = 0x1998_0330;
const VERSION_2: u32 = 0x2007_1026;
const VERSION_3: u32 = 0x2008_0522;

/// Words of each set that the version has; an unknown version is answered with ours.
fn capability_words(context: &Context<'_>, arguments: Arguments) -> Result<Option<(usize, i32)>> {
    let pointer = arguments.pointer::<CapabilityHeader>(0);
    let mm = context.mm();
    let mut header = pointer.read(&mm)?;
    match header.version {
        VERSION_1 => Ok(Some((1, header.pid))),
        VERSION_2 | VERSION_3 => Ok(Some((2, header.pid))),
        _ => {
            header.version = VERSION_3;
            pointer.write(&mm, &header)?;
            if arguments.u64(1) == 0 {
                Ok(None)
            } else {
                Err(EINVAL.because("unknown version"))
            }
        }
    }
}

pub fn capget(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let Some((words, pid)) = capability_words(context, arguments)? else {
        return Ok(0);
    };
    let own = &context.thread.process;
    let process = match pid {
        0 => own.clone(),
        pid if pid < 0 => return Err(EINVAL),
        pid if pid as u32 == own.pid => own.clone(),
        pid => table::thread(pid as u32)
            .map(|t| t.process.clone())
            .ok_or(ESRCH)?,
    };
    if arguments.u64(1) == 0 {
        return Ok(0);
    }
    let c = process.credentials.lock().clone();
    let mut data = [[0u32; 3]; 2];
    for (word, entry) in data.iter_mut().enumerate() {
        *entry = [c.effective, c.permitted, c.inheritable].map(|set| (set >> (32 * word)) as u32);
    }
    context
        .mm()
        .write(arguments.u64(1), data[..words].as_bytes())?;
    Ok(0)
}

pub fn capset(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let Some((words, pid)) = capability_words(context, arguments)? else {
        return Err(EINVAL.because("unknown version"));
    };
    let own = context.thread.process.pid;
    if pid != 0 && pid as u32 != own && pid as u32 != context.thread.tid() {
        return Err(EPERM.because("capabilities of another process"));
    }
    let mut sets = [0u64; 3];
    let entries = arguments
        .pointer::<[u32; 3]>(1)
        .read_vec(&context.mm(), words)?;
    for (word, entry) in entries.iter().enumerate() {
        for (set, bits) in sets.iter_mut().zip(entry) {
            *set |= u64::from(*bits) << (32 * word);
        }
    }
    let [effective, permitted, inheritable] = sets;
    let mut c = context.thread.process.credentials.lock();
    if permitted & !c.permitted != 0
        || effective & !permitted != 0
        || inheritable & !(c.inheritable | c.bounding) != 0
        || inheritable & !(c.inheritable | c.permitted) != 0 && !c.has(CAP_SETPCAP)
    {
        return Err(EPERM.because("capabilities that the process does not have"));
    }
    (c.effective, c.permitted, c.inheritable) = (effective, permitted, inheritable);
    c.ambient &= permitted & inheritable;
    Ok(0)
}
