//! What the kernel needs from below, implemented by the trusted runtime and by a test host.

use bulla_abi::hostcall::HostCall;
use spin::Once;

use crate::{Result, Thread};
use alloc::sync::Arc;

bitflags::bitflags! {
    /// Access to memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Protection: u8 {
        const READ = 1;
        const WRITE = 2;
        const EXECUTE = 4;
    }
}

/// A fault of user code, after validation by the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// x86 vector: 0 #DE, 1 #DB, 3 #BP, 6 #UD, 13 #GP, 14 #PF, 16 #MF, 17 #AC, 19 #XM.
    pub vector: u8,
    /// #PF: the faulting address; else 0.
    pub address: u64,
    /// #PF error code: bit 0 present, 1 write, 4 instruction fetch.
    pub error_code: u32,
}

/// A copy to or from user memory faulted `remaining` bytes before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserFault {
    pub remaining: usize,
}

/// One operation on a 32-bit word in user memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomic {
    Load,
    Swap(u32),
    Add(u32),
    Or(u32),
    And(u32),
    Xor(u32),
    /// Store `new` if the word is `expected`.
    CompareExchange {
        expected: u32,
        new: u32,
    },
}

impl Atomic {
    /// The word that the operation leaves behind when it finds `old`.
    pub fn apply(self, old: u32) -> u32 {
        match self {
            Atomic::Load => old,
            Atomic::Swap(new) => new,
            Atomic::Add(value) => old.wrapping_add(value),
            Atomic::Or(value) => old | value,
            Atomic::And(value) => old & value,
            Atomic::Xor(value) => old ^ value,
            Atomic::CompareExchange { expected, new } => {
                if old == expected {
                    new
                } else {
                    old
                }
            }
        }
    }
}

/// What a thread's CPU state is made of beside [`crate::Registers`].
pub const FPU_STATE_MAX: usize = 4096;

/// Where a trampoline leaves its address, and the gate it then jumps through; offsets from GS.
#[derive(Clone, Copy)]
pub struct InstructionGate {
    pub offset: u32,
    pub trampoline: u32,
}

/// The platform. Addresses are linear addresses in the enclave; ranges are page aligned; user
/// addresses are checked by the implementation to lie in the application's part of the enclave.
pub trait Platform: Send + Sync {
    // ---- user memory: pages -------------------------------------------------------------------
    /// The application's part of the enclave.
    fn user_range(&self) -> core::ops::Range<u64>;
    /// Commit pages (not committed before): zeroed, accepted, with this protection. ENOMEM.
    fn commit(&self, address: u64, len: u64, protection: Protection) -> Result<()>;
    /// Whether user pages can be touched before they are committed (the static layout, where all
    /// are part of the enclave from the start and only the host's page tables guard them). Then a
    /// fault cannot be relied upon, and mappings must be committed when they are made.
    fn must_commit_at_once(&self) -> bool {
        false
    }
    /// Give pages back. Pages that are not committed are skipped.
    fn decommit(&self, address: u64, len: u64);
    /// The same for pages of a process that has ended, at addresses that are nobody's now: until
    /// they are taken again the pages may keep their protection, which saves telling the host.
    fn abandon(&self, address: u64, len: u64, _protection: Protection) {
        self.decommit(address, len);
    }
    /// Addresses have been taken: pages that are not committed must fault.
    fn close(&self, _address: u64, _len: u64) {}
    /// Change the protection of committed pages (uncommitted ones are skipped).
    fn protect(&self, address: u64, len: u64, protection: Protection) -> Result<()>;
    /// Whether the page at `address` is committed.
    fn is_committed(&self, address: u64) -> bool;
    /// Write into committed user pages whatever their protection (text, read-only data): used to
    /// fill file pages and to patch code. Eight aligned bytes are one store.
    fn write_protected(&self, address: u64, bytes: &[u8]) -> Result<()>;
    /// Fill committed user pages from the verified root file system or any other reader: the
    /// callback gets the page run as a byte slice to fill, whatever its protection.
    fn fill(
        &self,
        address: u64,
        len: u64,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()>;

    // ---- user memory: bytes -------------------------------------------------------------------
    fn copy_from_user(&self, address: u64, to: &mut [u8]) -> core::result::Result<(), UserFault>;
    fn copy_to_user(&self, address: u64, from: &[u8]) -> core::result::Result<(), UserFault>;
    /// Clear user memory.
    fn clear_user(&self, address: u64, len: usize) -> core::result::Result<(), UserFault>;
    /// An atomic operation on an aligned word; the old value.
    fn atomic_user(&self, address: u64, operation: Atomic) -> core::result::Result<u32, UserFault>;

    // ---- this thread's CPU state --------------------------------------------------------------
    fn fs_base(&self) -> u64;
    fn set_fs_base(&self, base: u64);
    /// CPUID as programs get it, see [`crate::cpuid`].
    fn cpuid(&self, leaf: u32, subleaf: u32) -> crate::cpuid::Words;
    /// Size of the extended state (XSAVE standard format) in bytes; at most [`FPU_STATE_MAX`].
    fn fpu_size(&self) -> usize;
    /// The components of the extended state (XFRM): what signal frames declare.
    fn fpu_features(&self) -> u64;
    /// Save the user's extended state.
    fn fpu_save(&self, to: &mut [u8]);
    /// Load it; reserved bits and a wrong header are cleared first.
    fn fpu_restore(&self, from: &[u8]);

    // ---- threads ------------------------------------------------------------------------------
    /// Run `thread` (its `start` state) on a free thread slot. EAGAIN when none is left.
    fn spawn(&self, thread: Arc<Thread>) -> Result<()>;
    /// Sleep until `thread.events` differs from `seen` or the monotonic time reaches `deadline`
    /// (ns). Spurious returns are allowed. `thread` is the calling thread.
    fn sleep(&self, thread: &Thread, seen: u32, deadline: Option<u64>);
    /// `thread.events` was changed: wake it if it sleeps (here or in a waiting host call).
    fn wake(&self, thread: &Thread);
    /// Make a thread that may be running user code enter the kernel soon (its `work` was changed).
    fn kick(&self, thread: &Thread);
    /// The same, and return only when it is certain that it runs no user code before it has looked
    /// at its `work`.
    fn stop(&self, thread: &Thread);
    /// Let other host threads run.
    fn yield_now(&self);
    /// One turn of a spin loop.
    fn relax(&self);

    // ---- host ---------------------------------------------------------------------------------
    /// A host call with the calling thread's data buffer. The answer is the host's word. Calls
    /// with a `seen` argument: pass 0, the runtime fills it in from `waiting`: when that is the
    /// thread and its event count, the call returns early once they differ.
    fn host_call(
        &self,
        call: HostCall,
        arguments: [u64; 4],
        waiting: Option<(&Thread, u32)>,
    ) -> i64;
    /// Copy into the data buffer of this thread's shared area.
    fn host_put(&self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// Copy out of it.
    fn host_get(&self, offset: u64, bytes: &mut [u8]) -> Result<()>;
    /// User memory straight into the data buffer, and back.
    fn host_put_user(
        &self,
        offset: u64,
        address: u64,
        len: usize,
    ) -> core::result::Result<(), UserFault>;
    fn host_get_user(
        &self,
        offset: u64,
        address: u64,
        len: usize,
    ) -> core::result::Result<(), UserFault>;
    /// Bytes of the untrusted rootfs file into trusted memory. EIO when out of range.
    fn rootfs_read(&self, offset: u64, to: &mut [u8]) -> Result<()>;
    /// The container ends with a status as `wait` reports it.
    fn exit(&self, status: u32) -> !;
    /// The container ends because the host broke the rules; the reason is for its log.
    fn fatal(&self, reason: &str) -> !;
    /// A line for the host's log. Never secrets.
    fn log(&self, level: u8, message: &str);

    // ---- attestation --------------------------------------------------------------------------
    /// EREPORT for a TARGETINFO whose reserved bits are zero.
    fn report(&self, target: &[u8; 512], data: &[u8; 64]) -> Result<[u8; 432]>;
    /// EGETKEY for a well-formed KEYREQUEST. EACCES where the CPU refuses.
    fn key(&self, request: &[u8; 512]) -> Result<[u8; 16]>;

    // ---- services -----------------------------------------------------------------------------
    /// Monotonic time in ns; never goes back within this enclave.
    fn monotonic(&self) -> u64;
    /// Wall-clock time in ns since 1970 (the host's word).
    fn realtime(&self) -> u64;
    fn random(&self, to: &mut [u8]);
    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32];
    /// SHA-256 of the salt and each block.
    fn sha256_pair(&self, salt: &[u8; 32], blocks: [&[u8]; 2]) -> [[u8; 32]; 2] {
        blocks.map(|block| self.sha256(&[salt, block]))
    }
    /// A fingerprint of each of these pages: two that differ have the same one by chance only, with a
    /// probability of 2^-64. False where finding them takes longer than comparing.
    fn fingerprints(&self, _pages: &[u8], _of: &mut [u128]) -> bool {
        false
    }
    fn cpus(&self) -> u32;
    /// Address user code jumps to for a system call from a trampoline (`jmp gs:[offset]`).
    fn gate_offset(&self) -> u32;
    /// The same for another instruction that the enclave serves.
    fn instruction_gate(&self) -> InstructionGate;
    /// Address of a [`ClockPage`](crate::elf::vdso::ClockPage) that user code may read; `None`
    /// where it may not read the TSC.
    fn clock_page(&self) -> Option<u64> {
        None
    }
    /// Bytes of kernel heap in use and available.
    fn heap_usage(&self) -> (u64, u64);
    /// Refuse objects ([`Platform::heap_is_short`]) once the heap has this size.
    fn limit_heap(&self, _bytes: u64) {}
    /// Whether there is no kernel memory for another object. Never called with a lock held.
    fn heap_is_short(&self) -> bool {
        false
    }
}

static PLATFORM: Once<&'static dyn Platform> = Once::new();

/// The platform. Set once, by [`crate::boot`].
pub fn platform() -> &'static dyn Platform {
    *PLATFORM
        .get()
        .expect("boot sets the platform before anything else runs")
}

/// Sets the platform; later calls change nothing.
pub fn set_platform(platform: &'static dyn Platform) {
    PLATFORM.call_once(|| platform);
}
