//! The measured bootstrap: verifies everything that was added to the enclave without being
//! measured, then lets threads into the runtime.
//!
//! Every TCS enters here. Until the first entry has verified all ranges of the boot header, any
//! other entry stops (UD2). The code uses only its own stack and reads host memory only for the
//! feature hints, which cannot weaken anything: a lie makes the CPU fault.
#![no_std]
#![no_main]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use bulla_abi::boot::{BootHeader, HASH_PIECE, Range};
use bulla_abi::hostcall::{BootParams, HostCall};
use bulla_abi::layout::{SSA_FRAME_PAGES, slot};
use bulla_enclave::sha256::of_pieces;

/// Filled in by the image builder. Volatile reads only: the compiler sees the empty one.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.boot_header")]
static mut BULLA_BOOT_HEADER: BootHeader = BootHeader::EMPTY;

#[unsafe(no_mangle)]
static BOOTSTRAP_LOCK: AtomicU32 = AtomicU32::new(0);
#[unsafe(no_mangle)]
static BOOTSTRAP_READY: AtomicU32 = AtomicU32::new(0);

const STACK_SIZE: usize = 16 << 10;

#[repr(C, align(16))]
struct Stack([u8; STACK_SIZE]);
#[unsafe(no_mangle)]
static mut BOOTSTRAP_STACK: Stack = Stack([0; STACK_SIZE]);

global_asm!(
    ".globl bulla_bootstrap_entry",
    ".type bulla_bootstrap_entry, @function",
    "bulla_bootstrap_entry:",
    "cmp dword ptr [rip + BOOTSTRAP_READY], 1",
    "jne 2f",
    "4:",
    // The runtime is told on every entry where the header and the entry point are.
    "lea r9, [rip + BULLA_BOOT_HEADER]",
    "lea r10, [rip + bulla_bootstrap_entry]",
    "jmp qword ptr [rip + BULLA_BOOT_HEADER + {runtime_entry}]",
    "2:",
    // First entry: CSSA must be 0, and only one thread may be here.
    "test rax, rax",
    "jne 5f",
    "inc eax",
    "xchg eax, dword ptr [rip + BOOTSTRAP_LOCK]",
    "test eax, eax",
    "jne 3f",
    "cld",
    "mov r8, rsp",
    "lea rsp, [rip + BOOTSTRAP_STACK + {stack_size}]",
    "push 2",
    "popfq",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push rbp",
    "push r8",
    "mov rdi, rdx",
    "call {main}",
    "test eax, eax",
    "je 3f",
    "pop r8",
    "pop rbp",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rbx",
    "pop rax",
    "mov rsp, r8",
    "xor r8d, r8d",
    "mov dword ptr [rip + BOOTSTRAP_READY], 1",
    "jmp 4b",
    "3:",
    "ud2",
    // An exception interrupted the first entry. A nudge (EXITINFO of the newest frame is not valid)
    // changes nothing: out again, so that the host resumes. A fault ends the enclave.
    "5:",
    "rdgsbase rdx",
    "shl eax, {ssa_frame_shift}",
    "xor edi, edi",
    "bt dword ptr [rdx + rax + {newest_exitinfo}], 31",
    "jnc 6f",
    "mov edi, {panic}",
    "6:",
    "mov rbx, rcx",
    "xor esi, esi",
    "xor edx, edx",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "mov eax, 4",
    ".byte 0x0f, 0x01, 0xd7",
    "ud2",
    ssa_frame_shift = const (SSA_FRAME_PAGES * 4096).trailing_zeros(),
    // EXITINFO lies 24 bytes before the end of a frame; GS points to the thread area.
    newest_exitinfo = const slot::SSA as i64 - slot::AREA as i64 - 24,
    panic = const HostCall::Panic as u64,
    runtime_entry = const core::mem::offset_of!(BootHeader, runtime_entry),
    stack_size = const STACK_SIZE,
    main = sym bootstrap_main,
);

/// Verifies and clears; returns whether all is as measured. `params` is the host's.
extern "C" fn bootstrap_main(params: u64) -> u32 {
    // SAFETY: the header is initialised data of this program, written by nobody after EINIT.
    let header = unsafe { core::ptr::read_volatile(&raw const BULLA_BOOT_HEADER) };
    let elrange = match header.layout {
        0 => bulla_abi::layout::LayoutKind::Dynamic.elrange_size(),
        _ => bulla_abi::layout::LayoutKind::Static.elrange_size(),
    };
    let outside = params >= elrange && params < 1 << 47 && params.is_multiple_of(8);
    let features = if outside {
        // SAFETY: an aligned read outside the enclave; if nothing is there, the entry faults.
        unsafe {
            let field = params as usize + core::mem::offset_of!(BootParams, features);
            core::ptr::read_volatile(field as *const u64)
        }
    } else {
        0
    };
    // SAFETY: the ranges are measured, hence what the image builder put there: pages of this
    // enclave, readable, that no other code touches before `BOOTSTRAP_READY`.
    let ranges = header
        .hashed
        .iter()
        .map(|range| (range.start, unsafe { slice(range) }));
    if of_pieces(features, ranges, HASH_PIECE as usize) != header.hash {
        return 0;
    }
    for range in &header.zeroed {
        // SAFETY: as above, and writable: bss of the runtime, which has not run yet.
        unsafe { core::ptr::write_bytes(range.start as *mut u8, 0, range.len as usize) };
    }
    BOOTSTRAP_LOCK.store(2, Ordering::SeqCst);
    1
}

/// # Safety
/// `range` lies in readable enclave memory that nothing writes meanwhile.
unsafe fn slice(range: &Range) -> &'static [u8] {
    if range.len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(range.start as *const u8, range.len as usize) }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: UD2 stops the enclave; nothing has been let in yet.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}

/// Referenced by the precompiled `core`; never called with panic = abort.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// The bootstrap allocates nothing; a crate it shares with the runtime asks for an allocator.
struct NoHeap;

// SAFETY: no block is ever handed out.
unsafe impl core::alloc::GlobalAlloc for NoHeap {
    unsafe fn alloc(&self, _layout: core::alloc::Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _pointer: *mut u8, _layout: core::alloc::Layout) {}
}

#[global_allocator]
static NO_HEAP: NoHeap = NoHeap;
