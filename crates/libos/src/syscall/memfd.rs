//! memfd_create.

use super::at::check_flags;
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EINVAL, ENAMETOOLONG};
use crate::fs::file::{OpenFile, flags};
use crate::fs::{hooks, memory_file};
use crate::user::read_string;

const MFD_CLOEXEC: u32 = 1;
const MFD_ALLOW_SEALING: u32 = 2;
const MFD_NOEXEC_SEAL: u32 = 8;
const MFD_EXEC: u32 = 16;
/// Longest name without the terminating null.
const NAME_MAX: usize = 249;

pub fn memfd_create(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let wanted = arguments.u32(1);
    check_flags(
        wanted,
        MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC,
    )?;
    if wanted & MFD_EXEC != 0 && wanted & MFD_NOEXEC_SEAL != 0 {
        return Err(EINVAL);
    }
    let name = read_string(&context.mm(), arguments.u64(0), NAME_MAX + 1)
        .map_err(|error| if error == ENAMETOOLONG { EINVAL } else { error })?;
    let (uid, gid) = context.caller().ids();
    let sealable = wanted & (MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL) != 0;
    let mode = if wanted & MFD_NOEXEC_SEAL != 0 {
        0o666
    } else {
        0o777
    };
    let path = memory_file(&name, crate::fs::inode::Owner { mode, uid, gid }, sealable)?;
    let ops = path
        .inode()
        .clone()
        .open(&context.caller(), &path, flags::RDWR)?;
    let file = OpenFile::with_path(ops, flags::RDWR | flags::LARGEFILE, Some(path));
    let close_on_exec = wanted & MFD_CLOEXEC != 0;
    let limit = hooks::file_limit(context.thread);
    Ok(context.thread.files().add(file, close_on_exec, limit)? as usize)
}
