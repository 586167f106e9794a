//! The hardware platform: Linux's SGX driver and the CPU.
//!
//! Thin: one ioctl per request, mprotect for page tables, the vDSO for entering. The driver wants
//! one ioctl at a time per enclave (EBUSY), may do part of the work and ask to be called again
//! (EINTR, EAGAIN, `count`), and gives a page of an initialised enclave when it is touched.
//!
//! Lock order: `device` is the only lock; nothing is called under it but ioctls on it.

mod enter;
pub mod sys;
mod touch;
mod uapi;
mod vdso;

#[cfg(test)]
mod double;
#[cfg(test)]
pub use double::Double;

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::{Backend, EnterLeaf, Error, Features, Outcome, Protection, Registers, page_type};
use crate::sys::map;
use crate::sys::raw::{Answer, Errno};
use sys::{Capabilities, Kernel, Sys};
use uapi::Request;

const PAGE: u64 = 4096;
/// The host maps nothing below this (vm.mmap_min_addr, 64 KiB at most by default); the enclave has
/// no pages there.
const LOWEST: u64 = 0x1_0000;
/// Pages are staged for EADD in pieces of this size: page aligned, and never from a file that
/// could lie on a noexec mount (EACCES).
const STAGE: usize = 256 << 10;
/// Calls in a row that made no progress before we believe that none will.
const PATIENCE: u32 = 10_000;

/// ATTRIBUTES bits.
const ATTRIBUTE_KSS: u32 = 1 << 7;
const ATTRIBUTE_AEX_NOTIFY: u32 = 1 << 10;
/// MISCSELECT bit.
const MISC_EXINFO: u32 = 1;

/// SECINFO as EADD takes it: 64 bytes, aligned.
#[repr(C, align(64))]
struct SecInfo {
    flags: u64,
    reserved: [u64; 7],
}

/// SIGSTRUCT, aligned for EINIT.
#[repr(C, align(4096))]
struct Aligned<const N: usize>([u8; N]);

/// An enclave of this machine.
pub struct Hardware<S: Sys = Kernel> {
    sys: S,
    features: Features,
    device: Mutex<Option<i32>>,
    size: OnceLock<u64>,
    mrenclave: OnceLock<[u8; 32]>,
    ioctls: AtomicU64,
    again: AtomicU64,
    touched: AtomicU64,
}

impl Hardware<Kernel> {
    /// The platform, when this machine has it; else a reason with a remedy.
    pub fn open() -> Result<Self, Error> {
        Hardware::with(Kernel::find())
    }
}

impl<S: Sys> Hardware<S> {
    /// The platform behind `sys`.
    pub fn with(sys: S) -> Result<Self, Error> {
        let fd = sys
            .open()
            .map_err(|errno| no_device(errno, sys.capabilities()))?;
        let edmm = probe_edmm(&sys, fd as i32);
        if !sys.can_enter() {
            sys.close(fd as i32);
            let reason = "the kernel's vDSO cannot enter enclaves; use Linux 5.11 or newer";
            return Err(Error::Refused(reason.into()));
        }
        let capabilities = sys.capabilities();
        Ok(Hardware {
            features: Features {
                edmm: edmm && capabilities.sgx2,
                exinfo: capabilities.miscselect & MISC_EXINFO != 0,
                rdtsc: capabilities.sgx2,
                kss: capabilities.attributes & ATTRIBUTE_KSS != 0,
                aex_notify: capabilities.attributes & ATTRIBUTE_AEX_NOTIFY != 0,
                xfrm: capabilities.xfrm,
            },
            sys,
            device: Mutex::new(Some(fd as i32)),
            size: OnceLock::new(),
            mrenclave: OnceLock::new(),
            ioctls: AtomicU64::new(0),
            again: AtomicU64::new(0),
            touched: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<i32>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One ioctl, repeated while the driver says so and `progress` (bytes done by the last call,
    /// to be taken off the request) does not stop.
    fn request(
        &self,
        name: &'static str,
        mut attempt: impl FnMut(&S, i32) -> (Answer, u64),
    ) -> Result<(), Error> {
        let guard = self.lock();
        let Some(fd) = *guard else {
            return Err(Error::Refused("the SGX device is not open".into()));
        };
        let mut patience = PATIENCE;
        loop {
            self.ioctls.fetch_add(1, Ordering::Relaxed);
            let (answer, done) = attempt(&self.sys, fd);
            match answer {
                Ok(_) => return Ok(()),
                Err(Errno(libc::EAGAIN | libc::EINTR | libc::EBUSY)) if patience > 0 => {
                    self.again.fetch_add(1, Ordering::Relaxed);
                    if done > 0 {
                        patience = PATIENCE;
                    } else {
                        patience -= 1;
                        std::thread::yield_now();
                    }
                }
                Err(errno) => return Err(system(name, errno, reason(name, errno))),
            }
        }
    }

    fn add(
        &self,
        address: u64,
        source: u64,
        len: u64,
        flags: u64,
        measure: bool,
    ) -> Result<(), Error> {
        let secinfo = SecInfo {
            flags,
            reserved: [0; 7],
        };
        let mut argument = uapi::AddPages {
            src: source,
            offset: address,
            length: len,
            secinfo: &raw const secinfo as u64,
            flags: if measure { uapi::PAGE_MEASURE } else { 0 },
            count: 0,
        };
        self.request("SGX_IOC_ENCLAVE_ADD_PAGES", |sys, fd| {
            argument.count = 0;
            let answer = sys.ioctl(fd, Request::AddPages(&mut argument));
            let done = argument.count.min(argument.length);
            argument.src += done;
            argument.offset += done;
            argument.length -= done;
            // The last call may have done all that was left before it was interrupted.
            (
                if argument.length == 0 {
                    Ok(0)
                } else {
                    answer.and(again())
                },
                done,
            )
        })
    }

    /// Host page tables for pages just added: what their SECINFO allows, and TCS pages RW.
    fn map_added(&self, address: u64, len: u64, flags: u64) -> Result<(), Error> {
        let protection = if flags >> 8 & 0xff == page_type::TCS {
            3
        } else {
            flags & 7
        };
        self.set_protection(address, len, protection)
    }

    fn set_protection(&self, address: u64, len: u64, protection: u64) -> Result<(), Error> {
        let answer = self.sys.protect(address, len, protection);
        answer.map_err(|errno| {
            let reason = match errno.0 {
                libc::ENOMEM => "too many mappings; raise vm.max_map_count",
                libc::EACCES => "more access than the pages were added with",
                _ => "the page tables cannot be changed",
            };
            system("mprotect", errno, reason.into())
        })?;
        Ok(())
    }

    fn edmm(&self) -> Result<(), Error> {
        if self.features.edmm {
            return Ok(());
        }
        Err(Error::Refused(
            "this machine cannot change enclaves while they run; use the static layout".into(),
        ))
    }
}

/// Success that leaves work to do: call again.
fn again() -> Answer {
    Err(Errno(libc::EAGAIN))
}

fn system(call: &'static str, errno: Errno, reason: String) -> Error {
    Error::System {
        call,
        errno: errno.0,
        reason,
    }
}

/// Why there is no SGX device.
fn no_device(errno: Errno, capabilities: Capabilities) -> Error {
    let reason = match errno.0 {
        libc::ENOENT if !capabilities.sgx1 => {
            "this CPU has no SGX, or the firmware has it switched off; use the emulated platform"
        }
        libc::ENOENT => {
            "the kernel has no SGX device; use Linux 5.11 or newer, in containers with \
             --device /dev/sgx_enclave"
        }
        libc::EACCES | libc::EPERM => {
            "no permission; add the user to the group sgx, or allow the device in the container"
        }
        _ => "the SGX device cannot be opened",
    };
    system("open /dev/sgx_enclave", errno, reason.into())
}

/// What a failed ioctl means.
fn reason(name: &str, errno: Errno) -> String {
    let text = match (name, errno.0) {
        ("SGX_IOC_ENCLAVE_CREATE", libc::EINVAL) => {
            "the CPU does not support this SECS (size, attributes or MISCSELECT)"
        }
        ("SGX_IOC_ENCLAVE_INIT", libc::EPERM) => {
            "EINIT refused the signature, the measurement or the attributes"
        }
        ("SGX_IOC_ENCLAVE_INIT", libc::EACCES) => {
            "the enclave wants the provisioning key, which it must not have"
        }
        (_, libc::ENOMEM) => "the enclave page cache is full",
        (_, libc::EIO) => "the CPU lost the enclave (a suspend or a migration?); start it again",
        _ => "the driver refused",
    };
    text.into()
}

/// Whether the driver knows the requests that change a running enclave: on an enclave that is not
/// initialised it then answers EINVAL, else ENOTTY (kernel before 6.0) or ENODEV (CPU).
fn probe_edmm(sys: &impl Sys, fd: i32) -> bool {
    let mut argument = uapi::RestrictPermissions {
        length: PAGE,
        permissions: 1,
        ..Default::default()
    };
    let answer = sys.ioctl(fd, Request::RestrictPermissions(&mut argument));
    answer == Err(Errno(libc::EINVAL))
}

impl<S: Sys> Backend for Hardware<S> {
    fn name(&self) -> &'static str {
        "hardware"
    }

    fn features(&self) -> Features {
        self.features
    }

    fn create(&self, secs: &[u8; 4096]) -> Result<(), Error> {
        // SECS.SIZE and BASEADDR (SDM vol. 3, 38.7).
        let field = |at: usize| u64::from_le_bytes(secs[at..at + 8].try_into().unwrap_or([0; 8]));
        let (size, base) = (field(0), field(8));
        if base != 0 || size <= LOWEST || self.size.set(size).is_err() {
            let reason = format!("an enclave of {size:#x} bytes at {base:#x} cannot be created");
            return Err(Error::Refused(reason));
        }
        let secs = Aligned(*secs);
        let mut argument = uapi::Create {
            src: secs.0.as_ptr() as u64,
        };
        self.request("SGX_IOC_ENCLAVE_CREATE", |sys, fd| {
            (sys.ioctl(fd, Request::Create(&mut argument)), 0)
        })?;
        let fd = self.lock().unwrap_or(-1);
        self.sys
            .reserve(fd, LOWEST, size - LOWEST)
            .map_err(|errno| {
                let reason = match errno.0 {
                    libc::EEXIST => {
                        "the enclave's addresses are taken; build the loader as static PIE"
                    }
                    libc::ENOMEM => "no room for the enclave's addresses; check ulimit -v",
                    libc::EPERM => "the address range is forbidden; set vm.mmap_min_addr to 65536",
                    _ => "the enclave's addresses cannot be reserved",
                };
                system("mmap", errno, reason.into())
            })?;
        Ok(())
    }

    fn add_pages(&self, address: u64, data: &[u8], flags: u64, measure: bool) -> Result<(), Error> {
        if !data.len().is_multiple_of(PAGE as usize) {
            return Err(Error::Refused("pages of a fractional number".into()));
        }
        let mut stage = Stage::new()?;
        for (index, piece) in data.chunks(STAGE).enumerate() {
            let source = stage.fill(piece);
            let at = address + (index * STAGE) as u64;
            self.add(at, source, piece.len() as u64, flags, measure)?;
        }
        self.map_added(address, data.len() as u64, flags)
    }

    fn add_zero_pages(
        &self,
        address: u64,
        len: u64,
        flags: u64,
        measure: bool,
    ) -> Result<(), Error> {
        let stage = Stage::new()?;
        let mut at = 0;
        while at < len {
            let piece = (len - at).min(STAGE as u64);
            self.add(address + at, stage.address(), piece, flags, measure)?;
            at += piece;
        }
        self.map_added(address, len, flags)
    }

    fn init(&self, sigstruct: &[u8; 1808]) -> Result<(), Error> {
        let aligned = Aligned(*sigstruct);
        let mut argument = uapi::Init {
            sigstruct: aligned.0.as_ptr() as u64,
        };
        self.request("SGX_IOC_ENCLAVE_INIT", |sys, fd| {
            (sys.ioctl(fd, Request::Init(&mut argument)), 0)
        })?;
        // SIGSTRUCT.ENCLAVEHASH is what EINIT has compared with the measurement.
        let hash = sigstruct[960..992].try_into().unwrap_or([0; 32]);
        let _ = self.mrenclave.set(hash);
        Ok(())
    }

    fn mrenclave(&self) -> [u8; 32] {
        self.mrenclave.get().copied().unwrap_or_default()
    }

    fn prepare_thread(&self) -> Result<(), Error> {
        let prepared = self.sys.prepare_thread();
        prepared.map_err(|errno| system("prepare thread", errno, "it cannot enter".into()))?;
        Ok(())
    }

    fn enter(&self, tcs: u64, leaf: EnterLeaf, registers: &mut Registers) -> Outcome {
        self.sys.enter(tcs, leaf, registers)
    }

    unsafe fn kick_in_handler(&self, context: *mut c_void) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.sys.kick_in_handler(context) }
    }

    /// Without EDMM all pages are there already. With it, the driver adds a page when it is first touched. Doing that from outside, for all of them,
    /// spares the enclave an asynchronous exit for each.
    fn commit(&self, address: u64, len: u64, protection: Protection) -> Result<(), Error> {
        self.set_protection(address, len, protection)?;
        if self.features.edmm && protection & 1 != 0 {
            self.sys.touch(address, len);
            self.touched.fetch_add(len / PAGE, Ordering::Relaxed);
        }
        Ok(())
    }

    fn protect(&self, address: u64, len: u64, protection: Protection) -> Result<(), Error> {
        self.set_protection(address, len, protection)
    }

    fn restrict(&self, address: u64, len: u64, protection: Protection) -> Result<(), Error> {
        self.edmm()?;
        let mut argument = uapi::RestrictPermissions {
            offset: address,
            length: len,
            permissions: protection,
            ..Default::default()
        };
        self.request("SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS", |sys, fd| {
            argument.count = 0;
            let answer = sys.ioctl(fd, Request::RestrictPermissions(&mut argument));
            let done = argument.count.min(argument.length);
            argument.offset += done;
            argument.length -= done;
            (
                if argument.length == 0 {
                    Ok(0)
                } else {
                    answer.and(again())
                },
                done,
            )
        })
    }

    fn modify_type(&self, address: u64, len: u64, page_type: u64) -> Result<(), Error> {
        self.edmm()?;
        if page_type == page_type::TCS {
            // The driver wants TCS pages mapped RW, whatever they were as regular pages.
            self.set_protection(address, len, 3)?;
        }
        let mut argument = uapi::ModifyTypes {
            offset: address,
            length: len,
            page_type,
            ..Default::default()
        };
        self.request("SGX_IOC_ENCLAVE_MODIFY_TYPES", |sys, fd| {
            argument.count = 0;
            let answer = sys.ioctl(fd, Request::ModifyTypes(&mut argument));
            let done = argument.count.min(argument.length);
            argument.offset += done;
            argument.length -= done;
            (
                if argument.length == 0 {
                    Ok(0)
                } else {
                    answer.and(again())
                },
                done,
            )
        })
    }

    fn remove(&self, address: u64, len: u64) -> Result<(), Error> {
        self.edmm()?;
        let mut argument = uapi::RemovePages {
            offset: address,
            length: len,
            ..Default::default()
        };
        self.request("SGX_IOC_ENCLAVE_REMOVE_PAGES", |sys, fd| {
            argument.count = 0;
            let answer = sys.ioctl(fd, Request::RemovePages(&mut argument));
            let done = argument.count.min(argument.length);
            argument.offset += done;
            argument.length -= done;
            (
                if argument.length == 0 {
                    Ok(0)
                } else {
                    answer.and(again())
                },
                done,
            )
        })
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        [
            ("driver requests", &self.ioctls),
            ("driver requests repeated", &self.again),
            ("pages touched", &self.touched),
        ]
        .into_iter()
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
        .collect()
    }
}

/// Page-aligned anonymous memory that EADD copies from; zero until it is filled.
struct Stage(map::Scratch);

impl Stage {
    fn new() -> Result<Stage, Error> {
        let scratch = map::Scratch::new(STAGE).map_err(|error| {
            let errno = Errno(error.raw_os_error().unwrap_or(libc::ENOMEM));
            system("mmap", errno, "no memory to stage pages in".into())
        })?;
        Ok(Stage(scratch))
    }

    fn address(&self) -> u64 {
        self.0.address()
    }

    /// Copies `piece` to the start.
    fn fill(&mut self, piece: &[u8]) -> u64 {
        self.0.fill(piece);
        self.address()
    }
}
