//! Files and directories by place: descriptors of O_PATH and single names, never a path.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::area::Span;
use super::raw::{Answer, Errno, plain};

/// NAME_MAX.
const NAME_MAX: usize = 255;

/// A single name in a directory: neither a path nor a way up.
pub fn name(bytes: &[u8]) -> Result<CString, Errno> {
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(Errno(libc::EINVAL));
    }
    if bytes.len() > NAME_MAX {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    CString::new(bytes).map_err(|_| Errno(libc::EINVAL))
}

/// The place of a directory that the user named.
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(OsStr::as_bytes(path.as_os_str()))?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: a terminated string.
    let fd = unsafe { libc::open(path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Another descriptor of the same place.
pub fn duplicate(place: i32) -> Answer {
    plain!(libc::SYS_fcntl, place, libc::F_DUPFD_CLOEXEC, 3)
}

/// The place of `name`.
pub fn lookup(directory: i32, name: &CString) -> Answer {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    plain!(libc::SYS_openat, directory, name.as_ptr(), flags, 0)
}

/// Where the kernel finds what a place stands for; it is no link of a file system.
fn shown(place: i32) -> CString {
    CString::new(format!("/proc/self/fd/{place}")).expect("no zero byte in it")
}

/// Opens a place, which must be a regular file, or with O_DIRECTORY a directory. `flags` has the
/// access mode and O_DIRECTORY.
pub fn open(place: i32, flags: i32) -> Answer {
    let fixed = libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    let path = shown(place);
    plain!(
        libc::SYS_openat,
        libc::AT_FDCWD,
        path.as_ptr(),
        flags | fixed,
        0
    )
}

pub fn make_file(directory: i32, name: &CString, mode: u32) -> Answer {
    let mode = libc::S_IFREG | mode;
    plain!(libc::SYS_mknodat, directory, name.as_ptr(), mode, 0)
}

pub fn make_directory(directory: i32, name: &CString, mode: u32) -> Answer {
    plain!(libc::SYS_mkdirat, directory, name.as_ptr(), mode)
}

pub fn make_link(directory: i32, name: &CString, target: &CString) -> Answer {
    plain!(
        libc::SYS_symlinkat,
        target.as_ptr(),
        directory,
        name.as_ptr()
    )
}

pub fn remove(directory: i32, name: &CString, is_directory: bool) -> Answer {
    let flags = if is_directory { libc::AT_REMOVEDIR } else { 0 };
    plain!(libc::SYS_unlinkat, directory, name.as_ptr(), flags)
}

pub fn rename(from: i32, name: &CString, to: i32, to_name: &CString, flags: u64) -> Answer {
    plain!(
        libc::SYS_renameat2,
        from,
        name.as_ptr(),
        to,
        to_name.as_ptr(),
        flags
    )
}

pub fn link(place: i32, directory: i32, name: &CString) -> Answer {
    let path = shown(place);
    plain!(
        libc::SYS_linkat,
        libc::AT_FDCWD,
        path.as_ptr(),
        directory,
        name.as_ptr(),
        libc::AT_SYMLINK_FOLLOW
    )
}

/// The target of a link into a shared area.
pub fn read_link(place: i32, to: Span<'_>) -> Answer {
    plain!(
        libc::SYS_readlinkat,
        place,
        c"".as_ptr(),
        to.pointer(),
        to.len()
    )
}

/// Entries from `position` on into a shared area.
pub fn read_directory(fd: i32, position: u64, to: Span<'_>) -> Answer {
    plain!(libc::SYS_lseek, fd, position, libc::SEEK_SET)?;
    plain!(libc::SYS_getdents64, fd, to.pointer(), to.len())
}

pub fn change_mode(place: i32, mode: u32) -> Answer {
    let path = shown(place);
    plain!(libc::SYS_fchmodat, libc::AT_FDCWD, path.as_ptr(), mode)
}

pub fn change_owner(place: i32, uid: u32, gid: u32) -> Answer {
    plain!(
        libc::SYS_fchownat,
        place,
        c"".as_ptr(),
        uid,
        gid,
        libc::AT_EMPTY_PATH
    )
}

/// Sets the time of the last access or change.
pub fn change_time(place: i32, modified: bool, seconds: i64, nanoseconds: i64) -> Answer {
    let omit = libc::timespec {
        tv_sec: 0,
        tv_nsec: libc::UTIME_OMIT,
    };
    let given = libc::timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = if modified {
        [omit, given]
    } else {
        [given, omit]
    };
    plain!(
        libc::SYS_utimensat,
        place,
        c"".as_ptr(),
        times.as_ptr(),
        libc::AT_EMPTY_PATH
    )
}

/// Block size, blocks, free blocks, files, free files.
pub fn statistics(place: i32) -> Result<[u64; 5], Errno> {
    // SAFETY: all zeros is a valid `struct statfs`.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    plain!(libc::SYS_fstatfs, place, &raw mut found)?;
    Ok([
        found.f_bsize as u64,
        found.f_blocks,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
    ])
}

/// fsync.
pub fn sync(fd: i32) -> Answer {
    plain!(libc::SYS_fsync, fd)
}
