//! What the hardware backend needs from the kernel and the CPU, behind a trait, so that a test
//! double can answer for a machine with SGX.

use std::arch::x86_64::__cpuid_count;
use std::ffi::c_void;
use std::fs::OpenOptions;
use std::os::fd::IntoRawFd;

use super::uapi::Request;
use super::vdso::Function;
use super::{enter, touch, vdso};
use crate::backend::{EnterLeaf, Outcome, Registers};
use crate::sys::cpu::xcr0;
use crate::sys::raw::{Answer, Errno, plain};

/// CPUID leaf 12H (SDM vol. 3, 39.7.2), as far as it matters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Capabilities {
    /// 12H.0 EAX bit 0.
    pub sgx1: bool,
    /// 12H.0 EAX bit 1.
    pub sgx2: bool,
    /// 12H.0 EBX: MISCSELECT bits that may be set.
    pub miscselect: u32,
    /// 12H.1 EAX: ATTRIBUTES bits 31:0 that may be set (7 KSS, 10 AEX-Notify).
    pub attributes: u32,
    /// 12H.1 EDX:ECX, XFRM bits that may be set, as far as the kernel has enabled them (XCR0).
    pub xfrm: u64,
}

/// The system calls, and entering.
pub trait Sys: Send + Sync {
    /// Opens the SGX device.
    fn open(&self) -> Answer;
    /// Closes it.
    fn close(&self, fd: i32);
    fn ioctl(&self, fd: i32, request: Request<'_>) -> Answer;
    /// mmap of the device at a fixed, free address (MAP_SHARED, PROT_NONE).
    fn reserve(&self, fd: i32, address: u64, len: u64) -> Answer;
    fn protect(&self, address: u64, len: u64, protection: u64) -> Answer;
    /// Reads one byte of each page from outside, so that the kernel adds pages that are missing.
    fn touch(&self, address: u64, len: u64);
    fn capabilities(&self) -> Capabilities;
    /// Whether entering is possible at all (the vDSO has the function).
    fn can_enter(&self) -> bool;
    fn prepare_thread(&self) -> Answer;
    fn enter(&self, tcs: u64, leaf: EnterLeaf, registers: &mut Registers) -> Outcome;
    /// As [`crate::backend::Backend::kick_in_handler`].
    ///
    /// # Safety
    /// `context` is the kernel's, of a signal being delivered to this thread.
    unsafe fn kick_in_handler(&self, context: *mut c_void) -> bool;
}

/// The real ones.
pub struct Kernel {
    enter: Option<Function>,
}

impl Kernel {
    /// Looks the entry function up in the vDSO.
    pub fn find() -> Kernel {
        Kernel {
            enter: vdso::find(c"__vdso_sgx_enter_enclave"),
        }
    }
}

/// Where the driver's device is; the second is the name that old out-of-tree drivers and some
/// clusters' device plugins use.
const DEVICES: [&str; 2] = ["/dev/sgx_enclave", "/dev/sgx/enclave"];

impl Sys for Kernel {
    fn open(&self) -> Answer {
        let mut first = None;
        for path in DEVICES {
            match OpenOptions::new().read(true).write(true).open(path) {
                Ok(file) => return Ok(file.into_raw_fd() as u64),
                Err(error) => {
                    first.get_or_insert(Errno(error.raw_os_error().unwrap_or(libc::EIO)));
                }
            }
        }
        Err(first.unwrap_or(Errno(libc::ENOENT)))
    }

    fn close(&self, fd: i32) {
        let _ = plain!(libc::SYS_close, fd);
    }

    fn ioctl(&self, fd: i32, mut request: Request<'_>) -> Answer {
        plain!(libc::SYS_ioctl, fd, request.number(), request.argument())
    }

    fn reserve(&self, fd: i32, address: u64, len: u64) -> Answer {
        let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
        let got = plain!(libc::SYS_mmap, address, len, libc::PROT_NONE, flags, fd, 0)?;
        // Kernels before 4.17 take the flag for a hint.
        if got != address {
            Err(Errno(libc::EEXIST))
        } else {
            Ok(got)
        }
    }

    fn protect(&self, address: u64, len: u64, protection: u64) -> Answer {
        plain!(libc::SYS_mprotect, address, len, protection)
    }

    fn touch(&self, address: u64, len: u64) {
        touch::touch(address, len);
    }

    fn capabilities(&self) -> Capabilities {
        // CPUID 7.0 EBX bit 2: SGX.
        if __cpuid_count(0, 0).eax < 0x12 || __cpuid_count(7, 0).ebx & 1 << 2 == 0 {
            return Capabilities::default();
        }
        let (first, second) = (__cpuid_count(0x12, 0), __cpuid_count(0x12, 1));
        Capabilities {
            sgx1: first.eax & 1 != 0,
            sgx2: first.eax & 2 != 0,
            miscselect: first.ebx,
            attributes: second.eax,
            xfrm: (u64::from(second.edx) << 32 | u64::from(second.ecx)) & xcr0(),
        }
    }

    fn can_enter(&self) -> bool {
        self.enter.is_some()
    }

    fn prepare_thread(&self) -> Answer {
        Ok(0)
    }

    fn enter(&self, tcs: u64, leaf: EnterLeaf, registers: &mut Registers) -> Outcome {
        let Some(function) = self.enter else {
            // `create` has refused already; for the caller this is an entry that failed with #UD.
            return Outcome::Exception {
                leaf: leaf as u32,
                vector: 6,
                error_code: 0,
                address: 0,
            };
        };
        // SAFETY: the kernel's function of that name.
        unsafe { enter::enter(function, tcs, leaf, registers) }
    }

    unsafe fn kick_in_handler(&self, context: *mut c_void) -> bool {
        match self.enter {
            // SAFETY: the caller's promise, and the vDSO's function.
            Some(function) => unsafe { enter::redirect(function, context) },
            None => false,
        }
    }
}
