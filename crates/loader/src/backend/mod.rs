//! A platform: what can build an enclave and enter it.
//!
//! Everything above this trait is the same code on both platforms. Addresses are linear addresses
//! (ELRANGE starts at 0, so they equal enclave offsets), sizes are bytes, both multiples of 4096.

pub mod emulated;
pub mod hardware;

use std::fmt;

/// What the platform offers; separate bits, since machines combine them freely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// EAUG, EMODT, EMODPR, EACCEPT work (CPU with SGX2 and kernel 6.0 or newer).
    pub edmm: bool,
    /// MISCSELECT.EXINFO is supported.
    pub exinfo: bool,
    /// RDTSC is legal in an enclave.
    pub rdtsc: bool,
    /// Key separation and sharing: CONFIGID, ISVFAMILYID, EXTPRODID.
    pub kss: bool,
    /// AEX-Notify.
    pub aex_notify: bool,
    /// XFRM: the extended state that an enclave may use.
    pub xfrm: u64,
}

/// Which EENTER-class leaf to execute; the numbers are the SDM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EnterLeaf {
    Eenter = 2,
    Eresume = 3,
}

/// The registers that cross the boundary in both directions, as with `__vdso_sgx_enter_enclave`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub r8: u64,
    pub r9: u64,
}

/// How an entry came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// EEXIT; the registers hold what the enclave passed.
    Exit,
    /// An exception. `leaf` 2: EENTER itself raised it. Else it was raised in the enclave (after the
    /// AEX), or by ERESUME, which the vDSO reports alike.
    Exception {
        leaf: u32,
        vector: u16,
        error_code: u16,
        address: u64,
    },
}

/// The signal that makes a host thread look: sent to one thread with the slot's index, its handler
/// calls [`Backend::kick_in_handler`]. An ordinary signal, so that a storm of kicks coalesces, and
/// one that does nothing by default, so that a stray one is harmless. Its handler runs on the
/// alternate stack; a backend's own handlers must have it in their `sa_mask`.
pub const KICK_SIGNAL: i32 = 23; // SIGURG

/// Protection bits in the order of SECINFO.FLAGS: bit 0 read, 1 write, 2 execute.
pub type Protection = u64;

/// SECINFO page types.
pub mod page_type {
    pub const TCS: u64 = 1;
    pub const REG: u64 = 2;
    pub const TRIM: u64 = 4;
}

/// A platform error. `Display` is one lowercase line that names the remedy where there is one.
#[derive(Debug)]
pub enum Error {
    /// An SGX instruction failed, with the SDM's error code (for EINIT: SGX_INVALID_SIGNATURE …).
    Sgx {
        leaf: &'static str,
        code: u64,
        reason: String,
    },
    /// A system call failed.
    System {
        call: &'static str,
        errno: i32,
        reason: String,
    },
    /// The request breaks a rule of the CPU or the driver (a fault on hardware).
    Refused(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Sgx { leaf, code, reason } => {
                write!(f, "{leaf} failed with code {code}: {reason}")
            }
            Error::System {
                call,
                errno,
                reason,
            } => {
                write!(
                    f,
                    "{call}: {reason}: {}",
                    std::io::Error::from_raw_os_error(*errno)
                )
            }
            Error::Refused(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for Error {}

/// One enclave on a platform.
pub trait Backend: Send + Sync {
    /// "hardware" or "emulated".
    fn name(&self) -> &'static str;
    fn features(&self) -> Features;

    /// ECREATE: reserve ELRANGE and create the enclave from the 4096 bytes of a SECS.
    fn create(&self, secs: &[u8; 4096]) -> Result<(), Error>;
    /// EADD of consecutive pages with SECINFO.FLAGS = `flags`, each followed by EEXTEND of all
    /// sixteen chunks when `measure` is set. `data.len()` is a multiple of 4096.
    fn add_pages(&self, address: u64, data: &[u8], flags: u64, measure: bool) -> Result<(), Error>;
    /// The same for `len` bytes of zeros, without needing them in memory.
    fn add_zero_pages(
        &self,
        address: u64,
        len: u64,
        flags: u64,
        measure: bool,
    ) -> Result<(), Error>;
    /// EINIT with a SIGSTRUCT of 1808 bytes; afterwards the enclave can be entered.
    fn init(&self, sigstruct: &[u8; 1808]) -> Result<(), Error>;

    /// MRENCLAVE as the platform measured it (after `init`).
    fn mrenclave(&self) -> [u8; 32];

    /// To be called once on each host thread before it enters (alternate stack, dispatch filter).
    fn prepare_thread(&self) -> Result<(), Error>;
    /// Enter the enclave at `tcs` on this host thread and return when it leaves.
    fn enter(&self, tcs: u64, leaf: EnterLeaf, registers: &mut Registers) -> Outcome;
    /// Called in the handler of the kick signal with the interrupted machine context (a
    /// `*mut libc::ucontext_t`): if the thread was in the enclave, or at the AEP about to ERESUME,
    /// arrange that it EENTERs (rdi = Exception) instead. Returns whether it was.
    ///
    /// # Safety
    /// `context` is the kernel's, of a signal being delivered to this thread.
    unsafe fn kick_in_handler(&self, context: *mut std::ffi::c_void) -> bool;

    /// EAUG (where not yet there) of [address, address+len) and page tables to `protection`.
    fn commit(&self, address: u64, len: u64, protection: Protection) -> Result<(), Error>;
    /// Page tables only.
    fn protect(&self, address: u64, len: u64, protection: Protection) -> Result<(), Error>;
    /// EMODPR.
    fn restrict(&self, address: u64, len: u64, protection: Protection) -> Result<(), Error>;
    /// EMODT.
    fn modify_type(&self, address: u64, len: u64, page_type: u64) -> Result<(), Error>;
    /// EREMOVE of trimmed and accepted pages.
    fn remove(&self, address: u64, len: u64) -> Result<(), Error>;

    /// Counters of the platform since `create`: name and value.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}
