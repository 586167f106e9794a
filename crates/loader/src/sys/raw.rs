//! System calls without libc: no errno, so nothing thread-local is touched.
//!
//! Signal handlers use these while FS still belongs to the application, and host calls want −errno
//! anyway.

use std::arch::asm;

/// An error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        std::io::Error::from_raw_os_error(errno.0)
    }
}

/// What a host call returns.
pub type Answer = Result<u64, Errno>;

/// The kernel's answer as a result.
#[inline(always)]
pub fn check(value: i64) -> Answer {
    if (-4095..0).contains(&value) {
        Err(Errno(-value as i32))
    } else {
        Ok(value as u64)
    }
}

/// A system call.
///
/// # Safety
/// As the system call demands: pointers among the arguments are valid for what it does with them.
#[inline(always)]
pub unsafe fn call(number: libc::c_long, arguments: [usize; 6]) -> Answer {
    let value: i64;
    // SAFETY: the kernel's calling convention; memory effects are the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => value,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") arguments[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    check(value)
}

/// Up to six arguments, the rest zero.
#[inline(always)]
pub fn six(given: &[usize]) -> [usize; 6] {
    let mut arguments = [0; 6];
    arguments[..given.len()].copy_from_slice(given);
    arguments
}

/// A system call whose arguments are numbers, or pointers that are valid by the caller's proof.
macro_rules! plain {
    ($number:expr $(, $argument:expr)*) => {{
        let given = [$($argument as usize),*];
        let arguments = $crate::sys::raw::six(&given);
        // SAFETY: callers pass numbers, or pointers that they have shown to be valid.
        unsafe { $crate::sys::raw::call($number, arguments) }
    }};
}
pub(crate) use plain;
