//! mount, umount2, pivot_root. A container under the default capabilities has no CAP_SYS_ADMIN and
//! gets EPERM; with it, tmpfs and bind mounts work.

use alloc::string::String;
use alloc::vec::Vec;

use super::at::check_flags;
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EINVAL, ENODEV, EPERM};
use crate::fs::dentry::Dentry;
use crate::fs::memfs::{MemFs, TMPFS_MAGIC};
use crate::fs::mount::{self, MountSpec};
use crate::fs::path::Follow;
use crate::fs::{budget, namei, procfs};
use crate::user::read_string;

const CAP_SYS_ADMIN: u32 = 21;
const MS_REMOUNT: u32 = 32;
const MS_BIND: u32 = 4096;
const MS_MOVE: u32 = 8192;
/// MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED.
const MS_PROPAGATION: u32 = 0xf << 17;

fn check_right(context: &Context<'_>) -> Result<()> {
    if context.caller().has(CAP_SYS_ADMIN) {
        Ok(())
    } else {
        Err(EPERM.because("CAP_SYS_ADMIN"))
    }
}

fn optional(context: &Context<'_>, address: u64) -> Result<Vec<u8>> {
    if address == 0 {
        Ok(Vec::new())
    } else {
        read_string(&context.mm(), address, 4096)
    }
}

/// (size in bytes, mode) of tmpfs options.
fn tmpfs_options(options: &[u8]) -> Result<(u64, u32)> {
    let (mut size, mut mode) = (budget().limit(), 0o1777);
    for option in options
        .split(|&byte| byte == b',')
        .filter(|option| !option.is_empty())
    {
        let option = core::str::from_utf8(option).map_err(|_| EINVAL)?;
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "size" => {
                let (digits, unit) = match value.as_bytes().last() {
                    Some(b'k' | b'K') => (&value[..value.len() - 1], 1 << 10),
                    Some(b'm' | b'M') => (&value[..value.len() - 1], 1 << 20),
                    Some(b'g' | b'G') => (&value[..value.len() - 1], 1 << 30),
                    Some(b'%') => (&value[..value.len() - 1], budget().limit() / 100),
                    _ => (value, 1),
                };
                let number: u64 = digits.parse().map_err(|_| EINVAL)?;
                size = number
                    .checked_mul(unit)
                    .ok_or(EINVAL)?
                    .min(budget().limit());
            }
            "mode" => mode = u32::from_str_radix(value, 8).map_err(|_| EINVAL)? & 0o7777,
            "nr_inodes" | "uid" | "gid" | "huge" | "mpol" | "noswap" | "inode64" => {}
            _ => return Err(EINVAL),
        }
    }
    Ok((size, mode))
}

pub fn mount(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let source = optional(context, arguments.u64(0))?;
    let target = context.path(arguments.u64(1))?;
    let kind = optional(context, arguments.u64(2))?;
    let flags = arguments.u32(3);
    let point = context.walk().find(&target, Follow::Yes)?;
    check_right(context)?;
    if flags & MS_REMOUNT != 0 {
        namei::mount_at(&point)?.set_flags(flags);
        return Ok(0);
    }
    if flags & MS_PROPAGATION != 0 {
        // One mount namespace: nothing to propagate to.
        return Ok(0);
    }
    if flags & MS_MOVE != 0 {
        return Err(EINVAL.because("mounts cannot be moved"));
    }
    let name = String::from_utf8_lossy(&source).into_owned();
    let spec = if flags & MS_BIND != 0 {
        let from = context.walk().find(&source, Follow::Yes)?;
        let flags = from.mount.flags();
        MountSpec {
            root: from.dentry.clone(),
            flags,
            kind: from.mount.kind,
            source: from.mount.source.clone(),
            options: String::new(),
        }
    } else {
        let (root, kind) = match kind.as_slice() {
            b"tmpfs" => {
                let options = optional(context, arguments.u64(4))?;
                let (size, mode) = tmpfs_options(&options)?;
                let fs = MemFs::new(TMPFS_MAGIC, budget(), size);
                (Dentry::root(fs.empty_root(mode)), "tmpfs")
            }
            b"proc" => (Dentry::root(procfs::root()), "proc"),
            _ => return Err(ENODEV.because("unknown file system type")),
        };
        MountSpec {
            root,
            flags,
            kind,
            source: name,
            options: String::new(),
        }
    };
    mount::attach(&point, spec)?;
    Ok(0)
}

/// umount2(2) flags.
const MNT_FORCE: u32 = 1;
const MNT_DETACH: u32 = 2;
const MNT_EXPIRE: u32 = 4;
const UMOUNT_NOFOLLOW: u32 = 8;

pub fn umount2(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let flags = arguments.u32(1);
    check_flags(flags, MNT_FORCE | MNT_DETACH | MNT_EXPIRE | UMOUNT_NOFOLLOW)?;
    check_right(context)?;
    let path = context.path(arguments.u64(0))?;
    let follow = if flags & UMOUNT_NOFOLLOW != 0 {
        Follow::No
    } else {
        Follow::Yes
    };
    let found = context.walk().find(&path, follow)?;
    let mount = namei::mount_at(&found)?;
    drop(found);
    mount::detach(&mount, flags & MNT_DETACH != 0)?;
    Ok(0)
}

pub fn pivot_root(_context: &mut Context<'_>, _arguments: Arguments) -> Result<usize> {
    Err(EPERM)
}
