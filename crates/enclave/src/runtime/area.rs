//! The thread area: what GS points to, one page in each thread slot.
//!
//! The assembly in `entry` uses the offsets; the fields are written by their own thread only,
//! except `kick_ack`, `mode` and `sleeping`, which others read.

use alloc::sync::Arc;
use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};

use bulla_abi::layout::slot;
use bulla_libos::{Registers, Thread};

/// Where a thread is; decides which entries are legitimate.
pub mod mode {
    /// Not in use: an entry starts it.
    pub const FREE: u32 = 0;
    /// Runs the runtime or the library OS.
    pub const KERNEL: u32 = 1;
    /// Runs application code.
    pub const USER: u32 = 2;
    /// Waits for the answer of a host call.
    pub const HOST: u32 = 3;
}

/// Handing a thread to a free slot. The host may start a slot late, twice or unasked, so the entry
/// that finds an offer takes it, once.
pub mod offer {
    /// No thread is there for an entry to take.
    pub const NONE: u32 = 0;
    /// The creator has put a thread in.
    pub const MADE: u32 = 1;
}

/// User state at the top of the kernel stack while the thread is not in user code.
#[repr(C, align(16))]
pub struct Frame {
    pub registers: Registers,
    pub reserved: u64,
    pub xmm: [[u64; 2]; 16],
    /// Not 0: a fault left by way of stage 2, see `exception`.
    pub vector: u32,
    pub fault_address: u64,
}

/// Bytes of a [`Frame`], a multiple of 16.
pub const FRAME_SIZE: usize = size_of::<Frame>();

/// Room for the extended state around host calls and for signals: x87, SSE, AVX, AVX-512 (2688
/// bytes on Intel's CPUs, less on AMD's).
pub const XSAVE_SIZE: usize = 3072;

#[repr(C)]
pub struct Area {
    pub this: *mut Area,
    pub mode: AtomicU32,
    pub slot: AtomicU32,
    /// The frame, and so the kernel stack pointer at every entry from user code.
    pub frame: *mut Frame,
    pub user_rsp: u64,
    /// Where user code continues (trampolines make it differ from the frame's rip).
    pub resume: u64,
    /// The thread's work word (in its `Thread`, or `NO_WORK`).
    pub work: AtomicPtr<AtomicU32>,
    /// Targets of `jmp gs:[…]` in trampolines: of system calls, and of other instructions, which
    /// leave the trampoline's address.
    pub gate: u64,
    pub instruction_gate: u64,
    pub trampoline: u64,
    /// Host state at the last entry at CSSA 0.
    pub host_return: u64,
    pub host_rsp: u64,
    pub host_rbp: u64,
    /// Kernel stack pointer, FS base and MXCSR during a host call; components that had to be saved.
    pub kernel_rsp: u64,
    pub saved_fs: u64,
    pub saved_mxcsr: u32,
    pub saved_components: u32,
    /// Stage 1: its stack, and the host state of its entry.
    pub exception_stack: u64,
    pub exception_return: u64,
    pub exception_rsp: u64,
    pub exception_rbp: u64,
    /// Stage 1 has run this often: whoever kicks can wait for it to change.
    pub kick_ack: AtomicU64,
    /// The thread sleeps on its wait word on the host.
    pub sleeping: AtomicU32,
    /// Turns in spin loops, to yield now and then.
    pub spins: u32,
    /// Untrusted shared area of the slot.
    pub shared: u64,
    /// See [`offer`]: who may touch `thread` and `shared`.
    pub offer: AtomicU32,
    /// The thread that runs here. Written by whoever owns the slot: its creator until it starts,
    /// then the thread itself.
    pub thread: Option<Arc<Thread>>,
}

const _: () = assert!(size_of::<Area>() <= 1024);
const _: () = assert!(1024 + XSAVE_SIZE <= slot::AREA_SIZE as usize);

/// Offset of the XSAVE buffer in the area page (64-byte aligned).
pub const XSAVE_OFFSET: usize = 1024;
/// Within it, during a host call: zmm16 to zmm31 and k0 to k7, behind what XSAVEC writes of the other
/// components, x87, AVX and ZMM_Hi256.
pub const WIDE_OFFSET: usize = XSAVE_OFFSET + 512 + 64 + 256 + 512;
const _: () = assert!(WIDE_OFFSET.is_multiple_of(64));
const _: () = assert!(WIDE_OFFSET + 16 * 64 + 8 * 8 <= XSAVE_OFFSET + XSAVE_SIZE);

pub const MODE: usize = offset_of!(Area, mode);
pub const FRAME: usize = offset_of!(Area, frame);
pub const USER_RSP: usize = offset_of!(Area, user_rsp);
pub const RESUME: usize = offset_of!(Area, resume);
pub const WORK: usize = offset_of!(Area, work);
pub const GATE: usize = offset_of!(Area, gate);
pub const INSTRUCTION_GATE: usize = offset_of!(Area, instruction_gate);
pub const TRAMPOLINE: usize = offset_of!(Area, trampoline);
pub const HOST_RETURN: usize = offset_of!(Area, host_return);
pub const HOST_RSP: usize = offset_of!(Area, host_rsp);
pub const HOST_RBP: usize = offset_of!(Area, host_rbp);
pub const KERNEL_RSP: usize = offset_of!(Area, kernel_rsp);
pub const SAVED_FS: usize = offset_of!(Area, saved_fs);
pub const SAVED_MXCSR: usize = offset_of!(Area, saved_mxcsr);
pub const SAVED_COMPONENTS: usize = offset_of!(Area, saved_components);
pub const EXCEPTION_STACK: usize = offset_of!(Area, exception_stack);
pub const EXCEPTION_RETURN: usize = offset_of!(Area, exception_return);
pub const EXCEPTION_RSP: usize = offset_of!(Area, exception_rsp);
pub const EXCEPTION_RBP: usize = offset_of!(Area, exception_rbp);

/// The calling thread's area.
#[inline(always)]
pub fn current() -> &'static mut Area {
    let area: *mut Area;
    // SAFETY: GS points to the thread's area, whose first field is its address; the entry code
    // has set it before any Rust code runs. Only this thread makes a reference that it writes
    // through; fields that others read are atomic.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) area, options(nostack, readonly, preserves_flags));
        &mut *area
    }
}

impl Area {
    /// The frame of the user code that this thread is working for.
    #[inline(always)]
    pub fn user_frame(&mut self) -> &mut Frame {
        // SAFETY: `frame` is the top of this thread's own kernel stack, set up at the slot's first
        // entry, and lives as long as the enclave.
        unsafe { &mut *self.frame }
    }

    /// The XSAVE buffer.
    pub fn xsave(&mut self) -> *mut u8 {
        (self as *mut Area as usize + XSAVE_OFFSET) as *mut u8
    }
}
