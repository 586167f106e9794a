//! Finding programs: what execve and the first process need of the file system.

use alloc::vec::Vec;

use crate::Result;
use crate::elf::Executable;
use crate::errno::{EACCES, ENOENT, ETXTBSY};
use crate::fs::context::FsContext;
use crate::fs::inode::FileType;
use crate::fs::mount::flags as mount_flags;
use crate::fs::path::{Follow, PathRef, Walk};
use crate::fs::permission::{Caller, EXECUTE};

/// Where programs are looked for when the environment has no PATH: as Docker sets it.
pub const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Checks that a place holds a file which the caller may execute.
pub fn check(caller: &Caller<'_>, path: PathRef) -> Result<Executable> {
    let inode = path.inode().clone();
    if inode.kind() != FileType::Regular {
        return Err(EACCES.because("not a regular file"));
    }
    if path.mount.flags() & mount_flags::NOEXEC != 0 {
        return Err(EACCES.because("mounted noexec"));
    }
    // Even root needs one execute bit.
    if inode.mode() & 0o111 == 0 {
        return Err(EACCES.because("not executable"));
    }
    caller.check(&*inode, EXECUTE)?;
    if inode.state().is_some_and(|state| state.has_writers()) {
        return Err(ETXTBSY);
    }
    Ok(Executable {
        inode,
        path: Some(path),
    })
}

/// Finds and checks a program by path.
pub fn find(caller: Caller<'_>, context: &FsContext, path: &[u8]) -> Result<Executable> {
    let found = Walk::new(caller, context).find(path, Follow::Yes)?;
    check(&caller, found)
}

/// Finds a program as execvp does: by PATH unless the name has a slash. Also the path it has.
pub fn search(
    caller: Caller<'_>,
    context: &FsContext,
    name: &[u8],
    path: &[u8],
) -> Result<(Executable, Vec<u8>)> {
    if name.contains(&b'/') {
        return Ok((find(caller, context, name)?, name.to_vec()));
    }
    let mut error = ENOENT;
    for directory in path.split(|&byte| byte == b':') {
        let mut candidate = directory.to_vec();
        if !candidate.is_empty() {
            candidate.push(b'/');
        }
        candidate.extend_from_slice(name);
        match find(caller, context, &candidate) {
            Ok(found) => return Ok((found, candidate)),
            Err(refused) if refused == EACCES => error = EACCES,
            Err(_) => {}
        }
    }
    Err(error)
}

/// The user and group that a set-id program gives: `None` where it gives none.
pub fn set_ids(file: &Executable) -> (Option<u32>, Option<u32>) {
    let nosuid = file
        .path
        .as_ref()
        .is_some_and(|path| path.mount.flags() & mount_flags::NOSUID != 0);
    let mut head = [0; 2];
    let is_script = matches!(file.inode.read_bytes(0, &mut head), Ok(2)) && head == *b"#!";
    let mode = file.inode.mode();
    if nosuid || is_script || mode & 0o6000 == 0 {
        return (None, None);
    }
    let owner = file.inode.metadata();
    let uid = (mode & 0o4000 != 0).then_some(owner.uid);
    // Set-group-ID without group execute means mandatory locking, not a set-id program.
    let gid = (mode & 0o2010 == 0o2010).then_some(owner.gid);
    (uid, gid)
}

/// The last component of a path.
pub fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}
