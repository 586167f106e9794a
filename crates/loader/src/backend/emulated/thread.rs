//! The two structures that the assembly knows: a host thread and a TCS.
//!
//! A [`Thread`] sits at the start of a block that also holds the alternate signal stack and the
//! stack of the ENCLU gate. Handlers find it without FS or GS from `uc_stack`, which the kernel
//! writes into every signal frame.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use super::enclave::Enclave;
use super::sys;
use crate::backend::{Error, Registers};

const MAGIC: u64 = u64::from_le_bytes(*b"bullaTHR");

/// Layout of a thread's block: this structure, the gate's stack, the entry stack, the alternate
/// stack, with a guard page below each. The kernel wants AT_MINSIGSTKSZ there (11 KiB with AMX) and the handlers use
/// a few KiB; 120 KiB leave room and give the stack a size that is like no other.
const GATE_STACK: u64 = 0x2000;
const GATE_STACK_SIZE: u64 = 0x1_0000;
/// EENTER and ERESUME always happen at the same RSP, since the enclave remembers it from EENTER and
/// comes back to it after an ERESUME as well.
const ENTRY_STACK: u64 = GATE_STACK + GATE_STACK_SIZE + 0x1000;
const ENTRY_STACK_SIZE: u64 = 0x1_0000;
/// What `entry` keeps there: the thread's address and a scratch word.
const FRAME_SIZE: u64 = 32;
pub const SIGNAL_STACK: u64 = ENTRY_STACK + ENTRY_STACK_SIZE + 0x1000;
pub const SIGNAL_STACK_SIZE: u64 = 0x1_E000;
const BLOCK_SIZE: u64 = SIGNAL_STACK + SIGNAL_STACK_SIZE;

/// Where a host thread is, as far as a kick has to know.
pub mod mode {
    /// In host code (or in the enclave: that is decided by the interrupted RIP).
    pub const HOST: u32 = 0;
    /// Between an AEX and the end of ERESUME.
    pub const RESUMING: u32 = 1;
    /// Executing an ENCLU leaf for the enclave.
    pub const GATE: u32 = 2;
    /// After an AEX for an exception, which is on its way to the caller of `enter`.
    pub const EXCEPTION: u32 = 3;
}

/// General registers in the order of GPRSGX.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Gprs {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8_r15: [u64; 8],
    pub rflags: u64,
    pub rip: u64,
}

/// A fault raised by an SGX instruction or by the enclave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    pub vector: u16,
    pub error_code: u16,
    pub address: u64,
}

impl Fault {
    pub const UD: Fault = Fault {
        vector: 6,
        error_code: 0,
        address: 0,
    };
    pub const GP: Fault = Fault {
        vector: 13,
        error_code: 0,
        address: 0,
    };

    /// #PF at an address that the EPCM does not allow (error code bit 15, SGX).
    pub fn page(address: u64, write: bool) -> Fault {
        Fault {
            vector: 14,
            error_code: 0x8005 | u16::from(write) << 1,
            address,
        }
    }

    /// #PF at a page that is not there.
    pub fn absent(address: u64) -> Fault {
        Fault {
            vector: 14,
            error_code: 4,
            address,
        }
    }
}

/// xmm0 to xmm15.
#[repr(C, align(16))]
pub struct Vectors([[u64; 2]; 16]);

/// A host thread that enters enclaves. Only its own thread and that thread's handlers touch it.
#[repr(C, align(64))]
pub struct Thread {
    magic: u64,
    pub host_fs: u64,
    pub host_gs: u64,
    /// RSP in `enter`'s assembly frame, which is where an AEX goes back to. Always the same.
    pub host_rsp: u64,
    /// The caller's, while the entry stack is in use.
    pub caller_rsp: u64,
    /// Control words that the ABI preserves, as they were when the thread was prepared.
    pub host_mxcsr: u32,
    pub host_fcw: u32,
    /// FS and GS bases that the signal stub found and will leave behind.
    pub signal_fs: u64,
    pub signal_gs: u64,
    /// What the next EENTER or ERESUME loads.
    pub enclave_fs: u64,
    pub enclave_gs: u64,
    pub entry: u64,
    pub cssa: u64,
    pub tcs_address: u64,
    /// GPRSGX of the SSA frame that EENTER writes URSP to, or ERESUME loads.
    pub ssa_gprs: u64,
    /// Start of the current SSA frame, its XSAVE area.
    pub ssa_frame: u64,
    pub xfrm: u64,
    pub kick_pending: AtomicU32,
    pub mode: AtomicU32,
    pub registers: Registers,
    /// RIP, CS, RFLAGS, RSP, SS for the IRETQ that ends ERESUME.
    pub iret: [u64; 5],
    pub gate_stack: u64,
    /// The enclave's state while the ENCLU gate works.
    pub gate: Gprs,
    pub gate_fs: u64,
    pub gate_xmm: Vectors,
    pub tcs: *const TcsState,
    pub fault: Fault,
    pub fault_leaf: u32,
    /// The last page fault that was resolved here, to notice one that repeats.
    pub widened: u64,
    pub widened_count: u32,
    /// The TCS looked up last, and the number of its enclave.
    pub cached: *const TcsState,
    pub cached_enclave: u64,
}

thread_local! {
    static CURRENT: Cell<*mut Thread> = const { Cell::new(ptr::null_mut()) };
    static BLOCK: Block = Block::new();
}

/// Owns the memory of a [`Thread`] and takes the alternate stack away when the thread ends.
struct Block(Cell<u64>);

impl Block {
    fn new() -> Block {
        Block(Cell::new(0))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.0.get() != 0 {
            CURRENT.set(ptr::null_mut());
            // SAFETY: disabling this thread's alternate stack; nothing runs on it.
            unsafe {
                let mut stack: libc::stack_t = std::mem::zeroed();
                stack.ss_flags = libc::SS_DISABLE;
                libc::sigaltstack(&stack, ptr::null_mut());
            }
            sys::unmap(self.0.get(), BLOCK_SIZE);
        }
    }
}

/// This host thread, null before [`prepare`]. Uses FS: only where FS is the host's.
#[inline]
pub fn current() -> *mut Thread {
    CURRENT.get()
}

/// The thread whose signal frame this is, found without FS; null if it was never prepared.
///
/// # Safety
/// `context` is the kernel's, of a signal being delivered to this thread.
pub unsafe fn of_context(context: *const libc::ucontext_t) -> *mut Thread {
    // SAFETY: the frame is valid. Only `prepare` uses stacks of this size, and their thread
    // structure lies in front of them.
    unsafe {
        let stack = &(*context).uc_stack;
        if stack.ss_size as u64 != SIGNAL_STACK_SIZE {
            return ptr::null_mut();
        }
        let thread = (stack.ss_sp as u64 - SIGNAL_STACK) as *mut Thread;
        if (*thread).magic == MAGIC {
            thread
        } else {
            ptr::null_mut()
        }
    }
}

/// Gives this host thread its block and alternate stack, if it has none yet.
pub fn prepare() -> Result<(), Error> {
    if !current().is_null() {
        return Ok(());
    }
    let block = sys::map_sparse(BLOCK_SIZE)?;
    sys::protect(block + GATE_STACK - 0x1000, 0x1000, 0)?;
    sys::protect(block + ENTRY_STACK - 0x1000, 0x1000, 0)?;
    sys::protect(block + SIGNAL_STACK - 0x1000, 0x1000, 0)?;
    let thread = block as *mut Thread;
    // SAFETY: fresh zeroed memory of sufficient size and alignment; zero is valid in every field.
    unsafe {
        (*thread).magic = MAGIC;
        (*thread).host_fs = sys::fs_base();
        (*thread).host_gs = sys::gs_base();
        (*thread).host_rsp = block + ENTRY_STACK + ENTRY_STACK_SIZE - FRAME_SIZE;
        (*thread).host_mxcsr = sys::mxcsr();
        (*thread).host_fcw = sys::x87_control();
        (*thread).gate_stack = block + GATE_STACK + GATE_STACK_SIZE;
    }
    // SAFETY: the stack stays mapped until the thread ends.
    let result = unsafe {
        let mut stack: libc::stack_t = std::mem::zeroed();
        stack.ss_sp = (block + SIGNAL_STACK) as *mut libc::c_void;
        stack.ss_size = SIGNAL_STACK_SIZE as usize;
        libc::sigaltstack(&stack, ptr::null_mut())
    };
    if result != 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        sys::unmap(block, BLOCK_SIZE);
        return Err(Error::System {
            call: "sigaltstack",
            errno,
            reason: "cannot set the alternate signal stack of an enclave thread".to_owned(),
        });
    }
    BLOCK.with(|owner| owner.0.set(block));
    CURRENT.set(thread);
    Ok(())
}

/// What the CPU keeps of a TCS, and the counters of what happened on it. Whoever set `busy` owns
/// the rest.
#[repr(C, align(128))]
pub struct TcsState {
    pub thread: AtomicPtr<Thread>,
    pub exits: AtomicU64,
    pub busy: AtomicU32,
    pub cssa: AtomicU32,
    pub valid: AtomicBool,
    pub debug_opt_in: bool,
    pub aex_notify: bool,
    pub nssa: u32,
    pub address: u64,
    pub entry: u64,
    pub fs: u64,
    pub gs: u64,
    /// Address of SSA frame 0 and bytes in a frame.
    pub ssa: u64,
    pub frame_size: u64,
    pub enclave: *const Enclave,
    pub entries: AtomicU64,
    pub resumes: AtomicU64,
    pub kicks: AtomicU64,
    pub traps: AtomicU64,
    pub accepts: AtomicU64,
    pub reports: AtomicU64,
    pub keys: AtomicU64,
    pub aex: [AtomicU64; 32],
    pub aex_asynchronous: AtomicU64,
}

// SAFETY: shared fields are atomics; `enclave` outlives the state.
unsafe impl Send for TcsState {}
// SAFETY: as above.
unsafe impl Sync for TcsState {}

/// Adds 1 without a locked instruction: only the owner of a TCS counts on it.
pub fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// GS base → TCS, for the gates, which have nothing but GS to go by. Slots of Bulla's layout are
/// 256 KiB apart, so that bits 18–29 of GS tell them apart; a TCS whose place is taken goes
/// through the trap instead.
#[repr(C)]
pub struct GateEntry {
    pub gs: AtomicU64,
    pub tcs: AtomicPtr<TcsState>,
}

pub const GATE_ENTRIES: usize = 4096;
pub static GATE_TABLE: [GateEntry; GATE_ENTRIES] = [const {
    GateEntry {
        gs: AtomicU64::new(u64::MAX),
        tcs: AtomicPtr::new(ptr::null_mut()),
    }
}; GATE_ENTRIES];

fn gate_entry(gs: u64) -> &'static GateEntry {
    &GATE_TABLE[(gs >> 18) as usize % GATE_ENTRIES]
}

impl TcsState {
    /// Makes the patched gates find this TCS, unless another one is in its place.
    pub fn register(&self) {
        let entry = gate_entry(self.gs);
        let this = ptr::from_ref(self).cast_mut();
        if entry
            .tcs
            .compare_exchange(ptr::null_mut(), this, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            entry.gs.store(self.gs, Ordering::Release);
        } else if entry.tcs.load(Ordering::Acquire) != this
            && entry.gs.load(Ordering::Acquire) == self.gs
        {
            // Two TCSs with one GS base: neither can be told from the other.
            entry.gs.store(u64::MAX, Ordering::Release);
        }
    }

    /// Undoes [`TcsState::register`].
    pub fn unregister(&self) {
        let entry = gate_entry(self.gs);
        let this = ptr::from_ref(self).cast_mut();
        if entry.tcs.load(Ordering::Acquire) == this {
            entry.gs.store(u64::MAX, Ordering::Release);
            entry.tcs.store(ptr::null_mut(), Ordering::Release);
        }
    }
}
