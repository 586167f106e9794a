//! shmget, shmat, shmdt, shmctl.

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EACCES, EEXIST, EINVAL, EPERM};
use crate::mm::PAGE;
use crate::mm::map::Placement;
use crate::mm::sysv::{self, Open, Status};
use crate::platform::{Protection, platform};
use crate::process::credentials::Credentials;

const IPC_CREAT: i32 = 0o1000;
const IPC_EXCL: i32 = 0o2000;
const SHM_HUGETLB: i32 = 0o4000;
const READ: u32 = 0o4;
const WRITE: u32 = 0o2;

fn seconds() -> u64 {
    platform().realtime() / 1_000_000_000
}

/// Checks the permission bits of a segment; EACCES.
fn check(credentials: &Credentials, status: &Status, wanted: u32) -> Result<()> {
    let shift = if [status.uid, status.creator_uid].contains(&credentials.euid) {
        6
    } else if credentials.in_group(status.gid) || credentials.in_group(status.creator_gid) {
        3
    } else {
        0
    };
    let allowed = status.mode >> shift & wanted == wanted;
    match allowed || credentials.euid == 0 {
        true => Ok(()),
        false => Err(EACCES.because("the segment's permissions")),
    }
}

fn credentials(context: &Context<'_>) -> Credentials {
    context.thread.process.credentials.lock().clone()
}

/// shmget(2).
pub fn shmget(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let flags = arguments.i32(2);
    if flags & SHM_HUGETLB != 0 {
        return Err(EINVAL.because("there are no huge pages"));
    }
    let credentials = credentials(context);
    let status = Status {
        uid: credentials.euid,
        gid: credentials.egid,
        creator_uid: credentials.euid,
        creator_gid: credentials.egid,
        mode: (flags & 0o777) as u32,
        changed: seconds(),
        creator: context.thread.process.pid,
        ..Status::default()
    };
    let open = Open {
        key: arguments.i32(0),
        size: arguments.u64(1),
        create: flags & IPC_CREAT != 0,
        exclusive: flags & IPC_EXCL != 0,
    };
    let wanted = (flags | flags >> 3 | flags >> 6) as u32 & (READ | WRITE);
    let id = sysv::get(open, status, |status| check(&credentials, status, wanted))?;
    Ok(id as usize)
}

/// shmat(2).
pub fn shmat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    const RDONLY: i32 = 0o10000;
    const RND: i32 = 0o20000;
    const REMAP: i32 = 0o40000;
    const EXEC: i32 = 0o100000;
    let (id, mut address, flags) = (arguments.i32(0), arguments.u64(1), arguments.i32(2));
    if address % PAGE != 0 {
        if flags & RND == 0 {
            return Err(EINVAL.because("the address is not page aligned"));
        }
        address -= address % PAGE;
    }
    if flags & REMAP != 0 && address == 0 {
        return Err(EINVAL);
    }
    let mut protection = Protection::READ;
    let mut wanted = READ;
    if flags & RDONLY == 0 {
        protection |= Protection::WRITE;
        wanted |= WRITE;
    }
    if flags & EXEC != 0 {
        protection |= Protection::EXECUTE;
    }
    check(&credentials(context), &sysv::status(id)?, wanted)?;
    let placement = match address {
        0 => Placement::Hint(0),
        address if flags & REMAP != 0 => Placement::Fixed(address),
        address => Placement::Free(address),
    };
    let at = context
        .mm()
        .attach_segment(id, placement, protection)
        .map_err(|error| match error == EEXIST {
            true => EINVAL.because("something is mapped there"),
            false => error,
        })?;
    let pid = context.thread.process.pid;
    sysv::update(id, |status| {
        (status.attached, status.last) = (seconds(), pid)
    })?;
    Ok(at as usize)
}

/// shmdt(2).
pub fn shmdt(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if let Some(id) = context.mm().detach_segment(arguments.u64(0))? {
        let pid = context.thread.process.pid;
        // It may have been the last user of a removed segment.
        let _ = sysv::update(id, |status| {
            (status.detached, status.last) = (seconds(), pid)
        });
    }
    Ok(0)
}

/// shmctl(2).
pub fn shmctl(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    const RMID: i32 = 0;
    const SET: i32 = 1;
    const STAT: i32 = 2;
    const INFO: i32 = 3;
    const SHM_LOCK: i32 = 11;
    const SHM_UNLOCK: i32 = 12;
    const SHM_STAT: i32 = 13;
    const SHM_INFO: i32 = 14;
    const SHM_STAT_ANY: i32 = 15;
    /// SHM_LOCKED in the mode.
    const LOCKED: u32 = 0o2000;
    let (mut id, command, buffer) = (arguments.i32(0), arguments.i32(1), arguments.u64(2));
    let credentials = credentials(context);
    let owns = |status: &Status| {
        let owner = [status.uid, status.creator_uid].contains(&credentials.euid);
        if owner || credentials.euid == 0 {
            Ok(())
        } else {
            Err(EPERM)
        }
    };
    let mm = context.mm();
    match command {
        INFO => {
            // struct shminfo64: max, min, mni, seg, all, four reserved words.
            let (max, all) = (sysv::SEGMENT_BYTES.value(), u64::MAX - (1 << 24));
            let words = [max, 1, sysv::SEGMENTS_MAX.value(), 4096, all, 0, 0, 0, 0];
            mm.write(buffer, zerocopy::IntoBytes::as_bytes(&words))?;
            Ok(sysv::all().len().saturating_sub(1))
        }
        SHM_INFO => {
            let ids = sysv::all();
            let (pages, resident) = sysv::pages();
            // struct shm_info: used_ids (int), then total, resident, swapped, two counters.
            let words = [ids.len() as u64, pages, resident, 0, 0, 0];
            mm.write(buffer, zerocopy::IntoBytes::as_bytes(&words))?;
            Ok(ids.len().saturating_sub(1))
        }
        STAT | SHM_STAT | SHM_STAT_ANY => {
            let mut answer = 0;
            if command != STAT {
                let index = usize::try_from(id).map_err(|_| EINVAL)?;
                id = *sysv::all().get(index).ok_or(EINVAL)?;
                answer = id as usize;
            }
            let status = sysv::status(id)?;
            if command != SHM_STAT_ANY {
                check(&credentials, &status, READ)?;
            }
            mm.write(buffer, &encode(&status))?;
            Ok(answer)
        }
        SET => {
            let mut bytes = [0; 24];
            mm.read(buffer, &mut bytes)?;
            let word = |at: usize| {
                u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            owns(&sysv::status(id)?)?;
            sysv::update(id, |status| {
                (status.uid, status.gid) = (word(4), word(8));
                status.mode = status.mode & !0o777 | word(20) & 0o777;
                status.changed = seconds();
            })?;
            Ok(0)
        }
        RMID => {
            owns(&sysv::status(id)?)?;
            sysv::remove(id)?;
            Ok(0)
        }
        SHM_LOCK | SHM_UNLOCK => {
            owns(&sysv::status(id)?)?;
            sysv::update(id, |status| {
                status.mode &= !LOCKED;
                status.mode |= if command == SHM_LOCK { LOCKED } else { 0 };
            })?;
            Ok(0)
        }
        _ => Err(EINVAL.because("unknown command")),
    }
}

/// struct shmid64_ds.
fn encode(status: &Status) -> [u8; 112] {
    let mut bytes = [0; 112];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &status.key.to_le_bytes());
    put(4, &status.uid.to_le_bytes());
    put(8, &status.gid.to_le_bytes());
    put(12, &status.creator_uid.to_le_bytes());
    put(16, &status.creator_gid.to_le_bytes());
    put(20, &status.mode.to_le_bytes());
    put(48, &status.size.to_le_bytes());
    put(56, &status.attached.to_le_bytes());
    put(64, &status.detached.to_le_bytes());
    put(72, &status.changed.to_le_bytes());
    put(80, &status.creator.to_le_bytes());
    put(84, &status.last.to_le_bytes());
    put(88, &status.users.to_le_bytes());
    bytes
}
