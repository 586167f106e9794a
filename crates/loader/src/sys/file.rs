//! File descriptors: status, close, ioctl.

use std::io;

use super::area::Span;
use super::raw::{Answer, call, plain};

/// Opens /dev/null on whichever of the descriptors 0 to 2 are closed, so that no socket of the
/// enclave ever gets one of these numbers.
pub fn reserve_standard() -> io::Result<()> {
    loop {
        // SAFETY: a constant path.
        let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        if fd > 2 {
            let _ = close(fd);
            return Ok(());
        }
    }
}

pub fn close(fd: i32) -> Answer {
    plain!(libc::SYS_close, fd)
}

/// Lets go of what `fd` refers to but keeps the number.
pub fn replace_by_null(fd: i32) -> Answer {
    // SAFETY: a constant path.
    let null = unsafe {
        let path = c"/dev/null".as_ptr() as usize;
        let flags = (libc::O_RDWR | libc::O_CLOEXEC) as usize;
        call(
            libc::SYS_openat,
            [libc::AT_FDCWD as usize, path, flags, 0, 0, 0],
        )?
    };
    let answer = plain!(libc::SYS_dup3, null, fd, 0);
    close(null as i32)?;
    answer.map(|_| 0)
}

/// `st_mode << 32 | F_GETFL`.
pub fn info(fd: i32) -> Answer {
    let status = status(fd)?;
    let flags = plain!(libc::SYS_fcntl, fd, libc::F_GETFL)?;
    Ok(u64::from(status.st_mode) << 32 | flags & 0xffff_ffff)
}

/// fstat.
pub fn status(fd: i32) -> Result<libc::stat, super::raw::Errno> {
    // SAFETY: all zeros is a valid `struct stat`.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    plain!(libc::SYS_fstat, fd, &raw mut status)?;
    Ok(status)
}

/// pread into a shared area, of a regular file.
pub fn read_at(fd: i32, to: Span<'_>, offset: u64) -> Answer {
    plain!(libc::SYS_pread64, fd, to.pointer(), to.len(), offset)
}

/// pwrite from a shared area, to a regular file.
pub fn write_at(fd: i32, from: Span<'_>, offset: u64) -> Answer {
    plain!(libc::SYS_pwrite64, fd, from.pointer(), from.len(), offset)
}

/// ftruncate.
pub fn resize(fd: i32, len: u64) -> Answer {
    plain!(libc::SYS_ftruncate, fd, len)
}

/// fdatasync.
pub fn sync(fd: i32) -> Answer {
    plain!(libc::SYS_fdatasync, fd)
}

/// fstat into a shared area.
pub fn status_into(fd: i32, to: Span<'_>) -> Answer {
    if to.len() < size_of::<libc::stat>() {
        return Err(super::raw::Errno(libc::EINVAL));
    }
    plain!(libc::SYS_fstat, fd, to.pointer())
}

/// Signals about a socket (SIGURG) come to this process.
pub fn own_signals(fd: i32) -> Answer {
    let pid = plain!(libc::SYS_getpid)?;
    plain!(libc::SYS_fcntl, fd, libc::F_SETOWN, pid)
}

/// ioctl with an argument in a shared area; the caller knows that `request` fits into it.
pub fn ioctl(fd: i32, request: u64, argument: Span<'_>) -> Answer {
    plain!(libc::SYS_ioctl, fd, request, argument.pointer())
}
