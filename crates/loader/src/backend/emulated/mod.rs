//! SGX in software, faithful to the SDM (volume 3D) but for secrecy.
//!
//! The same enclave image gives the same MRENCLAVE, every check of ECREATE, EADD, EINIT and the
//! ENCLU leaves is made, and what traps on hardware traps here:
//! - [`Profile`]: which machine is emulated.
//! - `secs`, `enclave`, `epcm`: building an enclave, its pages, the driver's operations on them.
//! - `seccomp`: how system calls are caught where the kernel has no Syscall User Dispatch.
//! - `entry`, `thread`, `ssa`: EENTER, EEXIT, AEX, ERESUME; `signals`: what becomes an AEX;
//!   `kick`: making a thread look; `exits`: what an EEXIT shows the host.
//! - `sites`, `leaves`, `keys`, `report`: what the enclave itself executes with ENCLU.
//!
//! # Not reproduced
//! - Confidentiality: host code in this process can read enclave pages, and so can the kernel for
//!   it. The loader never passes enclave addresses to the kernel.
//! - A jump out of ELRANGE executes what is there; it is #GP only where it cannot be executed.
//! - CPUID executes, where nobody rewrote it, unless the CPU can make it fault; XFRM does not disable
//!   instructions.
//! - RCX and R11 of a trapped `syscall` are as Linux leaves them, and the arithmetic flags after an
//!   EEXIT at a patched site are undefined.
//! - Pages that are not yet accepted can be accessed unless the profile is [`Profile::strict`].

mod enclave;
mod entry;
mod epcm;
mod exits;
mod keys;
mod kick;
mod leaves;
mod profile;
mod report;
mod seccomp;
mod secs;
mod signals;
mod sites;
mod ssa;
mod sys;
mod thread;

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError};

use super::{Backend, EnterLeaf, Error, Features, Outcome, Protection, Registers};
use enclave::Enclave;
pub use exits::CANARY;
pub use keys::{CPU_SVN, Fuses};
pub use profile::Profile;
pub use report::verify as verify_report;
pub use signals::cpuid_faulting;

/// The emulated platform with at most one enclave.
pub struct Emulated {
    profile: Profile,
    fuses: PathBuf,
    enclave: OnceLock<Box<Enclave>>,
}

impl Emulated {
    /// A machine. Its fuses are kept in the directory `fuses`, which is made when needed.
    pub fn new(profile: Profile, fuses: &Path) -> Result<Emulated, Error> {
        if !sys::has_fsgsbase() {
            return Err(Error::Refused(
                "the emulated platform needs FSGSBASE (Linux 5.9 or newer, no `nofsgsbase`)".into(),
            ));
        }
        Ok(Emulated {
            profile,
            fuses: fuses.to_owned(),
            enclave: OnceLock::new(),
        })
    }

    fn created(&self) -> Result<&Enclave, Error> {
        self.enclave
            .get()
            .map(|enclave| &**enclave)
            .ok_or_else(|| Error::Refused("there is no enclave: create it first".into()))
    }
}

/// The outcome that a fault stands for.
fn exception(leaf: u32, fault: thread::Fault) -> Outcome {
    Outcome::Exception {
        leaf,
        vector: fault.vector,
        error_code: fault.error_code,
        address: fault.address,
    }
}

impl Backend for Emulated {
    fn name(&self) -> &'static str {
        "emulated"
    }

    fn features(&self) -> Features {
        self.profile.features()
    }

    fn create(&self, secs: &[u8; 4096]) -> Result<(), Error> {
        if self.enclave.get().is_some() {
            return Err(Error::Refused(
                "this platform has its enclave already".into(),
            ));
        }
        let (secs, xsave) = secs::check(secs, &self.profile)?;
        let fuses = Fuses::open(&self.fuses)?;
        signals::install();
        let enclave = Enclave::new(secs, self.profile, fuses, xsave)?;
        self.enclave
            .set(enclave)
            .map_err(|_| Error::Refused("this platform has its enclave already".into()))
    }

    fn add_pages(&self, address: u64, data: &[u8], flags: u64, measure: bool) -> Result<(), Error> {
        self.created()?
            .add(address, data.len() as u64, Some(data), flags, measure)
    }

    fn add_zero_pages(
        &self,
        address: u64,
        len: u64,
        flags: u64,
        measure: bool,
    ) -> Result<(), Error> {
        self.created()?.add(address, len, None, flags, measure)
    }

    fn init(&self, sigstruct: &[u8; 1808]) -> Result<(), Error> {
        let enclave = self.created()?;
        let mut build = enclave.build.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(measurement) = build.as_ref() else {
            return Err(Error::Refused(
                "EINIT of an enclave that is initialised".into(),
            ));
        };
        let identity = secs::verify(enclave, sigstruct, measurement.clone().finish())?;
        *build = None;
        let _ = enclave.identity.set(identity);
        enclave.set_initialised();
        Ok(())
    }

    fn mrenclave(&self) -> [u8; 32] {
        self.enclave
            .get()
            .and_then(|enclave| enclave.identity.get())
            .map_or([0; 32], |identity| identity.mrenclave)
    }

    fn prepare_thread(&self) -> Result<(), Error> {
        thread::prepare()?;
        signals::filter_thread(&self.profile)
    }

    fn enter(&self, tcs: u64, leaf: EnterLeaf, registers: &mut Registers) -> Outcome {
        let thread = thread::current();
        let Some(enclave) = self.enclave.get().filter(|_| !thread.is_null()) else {
            return exception(leaf as u32, thread::Fault::GP);
        };
        // SAFETY: this thread's own structure, which only it and its handlers use. The assembly
        // runs what `prepare` set up and comes back as the ABI demands.
        unsafe {
            let leaf = match ssa::prepare(enclave, thread, tcs, leaf) {
                Ok(leaf) => leaf,
                Err(fault) => return exception(leaf as u32, fault),
            };
            (*thread).registers = *registers;
            let result = entry::bulla_emu_enter(thread, leaf as u32);
            (*thread).tcs = std::ptr::null();
            if result == 0 {
                *registers = (*thread).registers;
                Outcome::Exit
            } else {
                exception((*thread).fault_leaf, (*thread).fault)
            }
        }
    }

    unsafe fn kick_in_handler(&self, context: *mut c_void) -> bool {
        // SAFETY: the caller passes the kernel's context.
        unsafe { kick::kick(context.cast()) }
    }

    fn commit(&self, address: u64, len: u64, protection: Protection) -> Result<(), Error> {
        self.created()?.commit(address, len, protection)
    }

    fn protect(&self, address: u64, len: u64, protection: Protection) -> Result<(), Error> {
        self.created()?.protect(address, len, protection)
    }

    fn restrict(&self, address: u64, len: u64, protection: Protection) -> Result<(), Error> {
        self.created()?.restrict(address, len, protection)
    }

    fn modify_type(&self, address: u64, len: u64, page_type: u64) -> Result<(), Error> {
        self.created()?.modify_type(address, len, page_type)
    }

    fn remove(&self, address: u64, len: u64) -> Result<(), Error> {
        self.created()?.remove(address, len)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        const NAMES: [&str; 9] = [
            "entries",
            "exits",
            "resumes",
            "kicks",
            "enclu_traps",
            "eaccepts",
            "ereports",
            "egetkeys",
            "aex_async",
        ];
        const AEX_NAMES: [(usize, &str); 9] = [
            (0, "aex_de"),
            (1, "aex_db"),
            (3, "aex_bp"),
            (6, "aex_ud"),
            (13, "aex_gp"),
            (14, "aex_pf"),
            (16, "aex_mf"),
            (17, "aex_ac"),
            (19, "aex_xm"),
        ];
        let Some(enclave) = self.enclave.get() else {
            return Vec::new();
        };
        let mut values = [0; 9];
        let mut aex = [0; 9];
        enclave.for_each_tcs(|tcs| {
            let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let all = [
                &tcs.entries,
                &tcs.exits,
                &tcs.resumes,
                &tcs.kicks,
                &tcs.traps,
                &tcs.accepts,
                &tcs.reports,
                &tcs.keys,
                &tcs.aex_asynchronous,
            ];
            for (value, counter) in values.iter_mut().zip(all) {
                *value += read(counter);
            }
            for (value, (vector, _)) in aex.iter_mut().zip(AEX_NAMES) {
                *value += read(&tcs.aex[vector]);
            }
        });
        let mut out: Vec<_> = NAMES.into_iter().zip(values).collect();
        out.extend(AEX_NAMES.into_iter().map(|(_, name)| name).zip(aex));
        out.push(("eaug_pages", enclave.augmented.load(Ordering::Relaxed)));
        out.push((
            "eaug_pages_runtime",
            enclave.augmented_runtime.load(Ordering::Relaxed),
        ));
        out.push((
            "enclu_sites_patched",
            enclave.patched.load(Ordering::Relaxed),
        ));
        if self.profile.examined {
            let (examined, unclean) = exits::counts();
            out.push(("exits_examined", examined));
            out.push(("exits_unclean", unclean));
        }
        out.push((
            "host_rdtsc_traps",
            signals::HOST_RDTSC.load(Ordering::Relaxed),
        ));
        out
    }
}
