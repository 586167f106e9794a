//! Extended attributes: setxattr, getxattr, listxattr, removexattr and their l- and f-variants.

use alloc::vec;
use alloc::vec::Vec;

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{E2BIG, EBADF, EINVAL, ENODATA, EOPNOTSUPP, EPERM, ERANGE, EROFS};
use crate::fs::acl::{self, Kind};
use crate::fs::inode::FileType;
use crate::fs::inotify::{self, mask};
use crate::fs::path::{Follow, PathRef};
use crate::fs::permission::{READ, WRITE};
use crate::user::read_string;

/// Longest value (XATTR_SIZE_MAX).
const VALUE_MAX: usize = 65536;
/// Longest name (XATTR_NAME_MAX).
const NAME_MAX: usize = 255;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SETFCAP: u32 = 31;

/// How a call names its file.
#[derive(Clone, Copy)]
enum Target {
    Path(Follow),
    Descriptor,
}

fn find(context: &Context<'_>, arguments: Arguments, target: Target) -> Result<PathRef> {
    match target {
        Target::Path(follow) => {
            let path = context.path(arguments.u64(0))?;
            context.walk().find(&path, follow)
        }
        Target::Descriptor => {
            let file = context.thread.file(arguments.i32(0))?;
            if file.is_path() {
                return Err(EBADF);
            }
            file.path.clone().ok_or(EOPNOTSUPP)
        }
    }
}

fn read_name(context: &Context<'_>, address: u64) -> Result<Vec<u8>> {
    let name = read_string(&context.mm(), address, NAME_MAX + 1).map_err(|error| {
        if error == crate::errno::ENAMETOOLONG {
            ERANGE
        } else {
            error
        }
    })?;
    if name.is_empty() {
        Err(ERANGE)
    } else {
        Ok(name)
    }
}

/// Whether the caller may read or write attributes of this name.
fn check(context: &Context<'_>, path: &PathRef, name: &[u8], write: bool) -> Result<()> {
    let caller = context.caller();
    let inode = path.inode();
    if write && path.mount.is_read_only() {
        return Err(EROFS);
    }
    if matches!(name, b"user." | b"trusted." | b"security.") {
        return Err(EINVAL.because("a namespace without a name"));
    }
    if name.starts_with(b"user.") {
        let kind = inode.kind();
        if !matches!(kind, FileType::Regular | FileType::Directory) {
            return Err(if write { EPERM } else { ENODATA });
        }
        if write && kind == FileType::Directory && inode.mode() & 0o1000 != 0 {
            caller.check_owner(&**inode)?;
        }
        return caller.check(&**inode, if write { WRITE } else { READ });
    }
    if name.starts_with(b"trusted.") {
        if caller.has(CAP_SYS_ADMIN) {
            return Ok(());
        }
        return Err(if write { EPERM } else { ENODATA });
    }
    if name.starts_with(b"security.") {
        // No security module gives these names a meaning: they are data that root may keep.
        return if !write || caller.has(CAP_SETFCAP) {
            Ok(())
        } else {
            Err(EPERM)
        };
    }
    if Kind::of_attribute(name).is_some() {
        return if inode.kind() == FileType::Link {
            Err(EOPNOTSUPP.because("symbolic links have no access list"))
        } else {
            Ok(())
        };
    }
    Err(EOPNOTSUPP.because("unknown attribute namespace"))
}

/// Whether a value has the form of capabilities(7)'s `vfs_cap_data`, of version 2 or 3.
fn is_capability(value: &[u8]) -> bool {
    match value {
        [.., _] if value.len() == 20 => value[3] == 2,
        [.., _] if value.len() == 24 => value[3] == 3,
        _ => false,
    }
}

fn set(context: &Context<'_>, arguments: Arguments, target: Target) -> Result<usize> {
    let flags = arguments.u32(4);
    if flags & !3 != 0 || flags == 3 {
        return Err(EINVAL);
    }
    let name = read_name(context, arguments.u64(1))?;
    let size = arguments.usize(3);
    if size > VALUE_MAX {
        return Err(E2BIG);
    }
    let mut value = vec![0; size];
    context.mm().read(arguments.u64(2), &mut value)?;
    let path = find(context, arguments, target)?;
    check(context, &path, &name, true)?;
    if name == b"security.capability" && !is_capability(&value) {
        return Err(EINVAL.because("no capabilities of a file"));
    }
    match Kind::of_attribute(&name) {
        // Nothing is what removes a list.
        Some(kind) => {
            let value = (!value.is_empty()).then_some(&value[..]);
            acl::set(&context.caller(), &**path.inode(), kind, value)?;
        }
        None => path.inode().set_xattr(&name, &value, flags)?,
    }
    inotify::notify_path(&path, mask::ATTRIB);
    Ok(0)
}

fn answer(context: &Context<'_>, address: u64, size: usize, bytes: &[u8]) -> Result<usize> {
    if size == 0 {
        return Ok(bytes.len());
    }
    if bytes.len() > size {
        return Err(ERANGE);
    }
    context.mm().write(address, bytes)?;
    Ok(bytes.len())
}

fn get(context: &Context<'_>, arguments: Arguments, target: Target) -> Result<usize> {
    let name = read_name(context, arguments.u64(1))?;
    let path = find(context, arguments, target)?;
    check(context, &path, &name, false)?;
    let value = path.inode().get_xattr(&name)?;
    answer(context, arguments.u64(2), arguments.usize(3), &value)
}

fn list(context: &Context<'_>, arguments: Arguments, target: Target) -> Result<usize> {
    let path = find(context, arguments, target)?;
    let sees_trusted = context.caller().has(CAP_SYS_ADMIN);
    let mut bytes = Vec::new();
    for name in path.inode().list_xattrs()? {
        if sees_trusted || !name.starts_with(b"trusted.") {
            bytes.extend_from_slice(&name);
            bytes.push(0);
        }
    }
    answer(context, arguments.u64(1), arguments.usize(2), &bytes)
}

fn remove(context: &Context<'_>, arguments: Arguments, target: Target) -> Result<usize> {
    let name = read_name(context, arguments.u64(1))?;
    let path = find(context, arguments, target)?;
    check(context, &path, &name, true)?;
    match Kind::of_attribute(&name) {
        Some(kind) => acl::set(&context.caller(), &**path.inode(), kind, None)?,
        None => path.inode().remove_xattr(&name)?,
    }
    inotify::notify_path(&path, mask::ATTRIB);
    Ok(0)
}

macro_rules! variants {
    ($($name:ident $run:ident $target:expr;)*) => {
        $(pub fn $name(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
            $run(context, arguments, $target)
        })*
    };
}

variants! {
    setxattr set Target::Path(Follow::Yes);
    lsetxattr set Target::Path(Follow::No);
    fsetxattr set Target::Descriptor;
    getxattr get Target::Path(Follow::Yes);
    lgetxattr get Target::Path(Follow::No);
    fgetxattr get Target::Descriptor;
    listxattr list Target::Path(Follow::Yes);
    llistxattr list Target::Path(Follow::No);
    flistxattr list Target::Descriptor;
    removexattr remove Target::Path(Follow::Yes);
    lremovexattr remove Target::Path(Follow::No);
    fremovexattr remove Target::Descriptor;
}
