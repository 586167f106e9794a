//! Entry and exit: the only assembly that user registers, host registers and ours pass through.
//!
//! Invariants
//! - On every entry nothing but RAX (CSSA), RCX and the GS base is believed; flags and the vector
//!   state are set before compiled code runs; the stack comes from the thread area.
//! - Every EEXIT clears all general and vector registers but the call's own.
//! - Compiled code never touches FS, vector registers only in SSE encodings, and does no
//!   floating-point arithmetic (`tests/instructions.rs` of the image crate): the user's FS base,
//!   MXCSR and upper vector halves stay in the CPU from gate to return, and only a host call saves
//!   them.
//! - Between `return_window` and `return_window_end` the frame is intact, so that stage 1 can send
//!   an interrupted return back to `return_check`.

use core::arch::global_asm;

use crate::area::*;
use bulla_abi::layout::{SSA_FRAME_PAGES, slot};
use bulla_libos::Registers;
use core::mem::offset_of;

unsafe extern "C" {
    /// Start and end of the return to user code, see above.
    pub static return_window: u8;
    pub static return_window_end: u8;
    pub static return_check: u8;
    /// Where stage 1 lets stage 2 begin.
    pub static stage2_entry: u8;
    /// Where an entry ends that this thread's mode does not allow.
    pub static unexpected_entry: u8;
    /// The stack's thread ends the container, see `panic::fatal`.
    pub static stop_entry: u8;
    /// System calls from trampolines arrive here, and other instructions there.
    pub static gate_entry: u8;
    pub static instruction_gate_entry: u8;
    /// A host call: number, arguments; the answer.
    pub fn raw_host_call(number: u64, a: u64, b: u64, c: u64, d: u64) -> i64;
    /// Return to user code with the frame and `Area::resume`.
    pub fn return_to_user() -> !;
    /// Leaves the enclave for good with a host call that does not return, on a free slot.
    pub fn leave_slot(number: u64, a: u64, b: u64) -> !;
}

/// EENTER's reason in rdi for a host call's return.
const REASON_RETURN: u64 = bulla_abi::hostcall::EnterReason::Return as u64;

/// An XSAVE area in which every component is in its initial state.
#[repr(C, align(64))]
struct InitialState {
    legacy: [u32; 128],
    header: [u64; 8],
}

/// XRSTOR loads MXCSR (at byte 24) whatever the header says.
static INITIAL_STATE: InitialState = {
    let mut legacy = [0; 128];
    legacy[6] = 0x1f80;
    InitialState {
        legacy,
        header: [0; 8],
    }
};

/// Offset from the thread area to EXITINFO in SSA[CSSA - 1], when CSSA frames are added: EXITINFO
/// lies 24 bytes before the end of a frame (SDM volume 3D, table 38-9).
const NEWEST_EXITINFO: i64 = slot::SSA as i64 - slot::AREA as i64 - 24;
/// RFLAGS that may be set in compiled code: those of arithmetic (SDM volume 1, figure 3-8), which it
/// changes as it likes, IF and the bit that is always 1.
const USUAL_FLAGS: u32 = 0x8d5 | 0x200 | 2;
const SSA_FRAME_SHIFT: u32 = (SSA_FRAME_PAGES * 4096).trailing_zeros();
const _: () = assert!(SSA_FRAME_PAGES.is_power_of_two());

global_asm!(
    ".macro ENCLU_SITE",
    ".p2align 3",
    ".byte 0x0f, 0x01, 0xd7",
    ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00",
    ".endm",
    // x87 and upper vector state as after reset: FNINIT would leave what the registers hold. Changes
    // rax, rcx, rdx.
    ".macro RESET_EXTENDED",
    "mov ecx, 1",
    "xgetbv",
    "test eax, {EXTENDED}",
    "je 70f",
    "mov eax, {EXTENDED}",
    "xor edx, edx",
    "xrstor64 [rip + {initial_state}]",
    "70:",
    ".endm",
    ".macro CLEAR_VECTORS",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "pxor xmm\\n, xmm\\n",
    ".endr",
    ".endm",
    ".macro SAVE_VECTORS",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "movaps [rsp + {XMM} + 16 * \\n], xmm\\n",
    ".endr",
    ".endm",
    ".macro RESET_MXCSR",
    "ldmxcsr [rip + {initial_state} + 24]",
    ".endm",
    // At the gates: all but rsp, and r11, which a system call does not bring.
    ".macro SAVE_GENERAL",
    "mov [rsp + {RAX}], rax",
    "mov [rsp + {RBX}], rbx",
    "mov [rsp + {RCX}], rcx",
    "mov [rsp + {RDX}], rdx",
    "mov [rsp + {RSI}], rsi",
    "mov [rsp + {RDI}], rdi",
    "mov [rsp + {RBP}], rbp",
    "mov [rsp + {R8}], r8",
    "mov [rsp + {R9}], r9",
    "mov [rsp + {R10}], r10",
    "mov [rsp + {R12}], r12",
    "mov [rsp + {R13}], r13",
    "mov [rsp + {R14}], r14",
    "mov [rsp + {R15}], r15",
    ".endm",
    // ---------------------------------------------------------------- entry
    ".globl bulla_runtime_entry",
    ".type bulla_runtime_entry, @function",
    "bulla_runtime_entry:",
    "cld",
    "test eax, eax",
    "jne 20f",
    "mov gs:[{HOST_RETURN}], rcx",
    "mov gs:[{HOST_RSP}], rsp",
    "mov gs:[{HOST_RBP}], rbp",
    "mov eax, gs:[{MODE}]",
    "cmp eax, {HOST}",
    "jne 10f",
    // A host call returns: nothing else is accepted in this mode.
    "cmp rdi, {REASON_RETURN}",
    "jne 19f",
    "mov rsp, gs:[{KERNEL_RSP}]",
    "push 2",
    "popfq",
    "mov eax, gs:[{SAVED_COMPONENTS}]",
    "test eax, eax",
    "jne 12f",
    // Nothing was saved because it was in its initial state: make it so again.
    "RESET_EXTENDED",
    "13:",
    "ldmxcsr gs:[{SAVED_MXCSR}]",
    "mov rax, gs:[{SAVED_FS}]",
    "wrfsbase rax",
    "mov dword ptr gs:[{MODE}], {KERNEL}",
    "mov rax, rsi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    "12:",
    "mov eax, {EXTENDED}",
    "xor edx, edx",
    "mov rcx, gs:[0]",
    "xrstor64 [rcx + {XSAVE_OFFSET}]",
    "jmp 13b",
    // A free slot starts.
    "10:",
    "cmp eax, {FREE}",
    "jne 19f",
    "cmp rdi, 1",
    "jne 19f",
    "mov rsp, gs:[{FRAME}]",
    "test rsp, rsp",
    "jne 11f",
    // The slot's first entry ever: the frame is at the top of its kernel stack, which lies at a
    // fixed distance below the area.
    "rdgsbase rsp",
    "sub rsp, {AREA_TO_STACK_TOP} + {FRAME_SIZE}",
    "11:",
    "push 2",
    "popfq",
    "RESET_MXCSR",
    "xor ebp, ebp",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "RESET_EXTENDED",
    // From the bootstrap, on every entry.
    "mov rdx, r9",
    "mov rcx, r10",
    "call {slot_main}",
    "ud2",
    ".globl unexpected_entry",
    "unexpected_entry:",
    "19:",
    "ud2",
    // ---------------------------------------------------------------- exceptions, stage 1
    "20:",
    // A kick during stage 1, or before this slot was ever set up, enters once more: nothing to do
    // but to go on with what was interrupted.
    "cmp eax, 1",
    "jne 21f",
    "cmp qword ptr gs:[{EXCEPTION_STACK}], 0",
    "je 21f",
    "mov gs:[{EXCEPTION_RETURN}], rcx",
    "mov gs:[{EXCEPTION_RSP}], rsp",
    "mov gs:[{EXCEPTION_RBP}], rbp",
    "mov rsp, gs:[{EXCEPTION_STACK}]",
    "push 2",
    "popfq",
    "RESET_MXCSR",
    // What the host says of the exception; see `exception::stage1`.
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, r8",
    "call {stage1}",
    "CLEAR_VECTORS",
    "xor edi, edi",
    "xor esi, esi",
    "xor edx, edx",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "xor r10d, r10d",
    "xor r11d, r11d",
    "xor r12d, r12d",
    "xor r13d, r13d",
    "xor r14d, r14d",
    "xor r15d, r15d",
    "mov rbx, gs:[{EXCEPTION_RETURN}]",
    "mov rsp, gs:[{EXCEPTION_RSP}]",
    "mov rbp, gs:[{EXCEPTION_RBP}]",
    "mov eax, 4",
    "ENCLU_SITE",
    "ud2",
    "21:",
    // If it was a fault (EXITINFO of the newest frame is valid), it would come again for ever.
    "rdgsbase rdx",
    "shl eax, {SSA_FRAME_SHIFT}",
    "xor edi, edi",
    "bt dword ptr [rdx + rax + {NEWEST_EXITINFO}], 31",
    "jnc 22f",
    "mov edi, {PANIC}",
    "22:",
    "mov rbx, rcx",
    "CLEAR_VECTORS",
    "xor esi, esi",
    "xor edx, edx",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "xor r10d, r10d",
    "xor r11d, r11d",
    "xor r12d, r12d",
    "xor r13d, r13d",
    "xor r14d, r14d",
    "xor r15d, r15d",
    "mov eax, 4",
    "ENCLU_SITE",
    "ud2",
    // ---------------------------------------------------------------- host calls
    ".globl raw_host_call",
    ".type raw_host_call, @function",
    ".p2align 4",
    "raw_host_call:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov r9, r8",
    "mov r8, rcx",
    "mov r10, rdx",
    "rdfsbase rax",
    "mov gs:[{SAVED_FS}], rax",
    "mov gs:[{KERNEL_RSP}], rsp",
    "stmxcsr gs:[{SAVED_MXCSR}]",
    "RESET_MXCSR",
    // Which extended state is in use (XINUSE)? SSE is the frame's business.
    "mov ecx, 1",
    "xgetbv",
    "and eax, {EXTENDED}",
    "mov gs:[{SAVED_COMPONENTS}], eax",
    "test eax, eax",
    "je 30f",
    "mov eax, {EXTENDED}",
    "xor edx, edx",
    "mov rcx, gs:[0]",
    "xsave64 [rcx + {XSAVE_OFFSET}]",
    "mov eax, {EXTENDED}",
    "xrstor64 [rip + {initial_state}]",
    "30:",
    "mov rdx, r10",
    "xor r10d, r10d",
    "xor r11d, r11d",
    "xor r12d, r12d",
    "xor r13d, r13d",
    "xor r14d, r14d",
    "xor r15d, r15d",
    "CLEAR_VECTORS",
    "mov rbx, gs:[{HOST_RETURN}]",
    "mov rsp, gs:[{HOST_RSP}]",
    "mov rbp, gs:[{HOST_RBP}]",
    "mov dword ptr gs:[{MODE}], {HOST}",
    "mov eax, 4",
    "ENCLU_SITE",
    "ud2",
    // ---------------------------------------------------------------- leaving a slot
    ".globl leave_slot",
    ".type leave_slot, @function",
    "leave_slot:",
    "CLEAR_VECTORS",
    // The arguments are in rdi, rsi and rdx.
    "mov r8, rdx",
    "RESET_MXCSR",
    "RESET_EXTENDED",
    "mov rdx, r8",
    "xor ecx, ecx",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "xor r10d, r10d",
    "xor r11d, r11d",
    "xor r12d, r12d",
    "xor r13d, r13d",
    "xor r14d, r14d",
    "xor r15d, r15d",
    "mov rbx, gs:[{HOST_RETURN}]",
    "mov rsp, gs:[{HOST_RSP}]",
    "mov rbp, gs:[{HOST_RBP}]",
    "mov dword ptr gs:[{MODE}], {FREE}",
    "mov eax, 4",
    "ENCLU_SITE",
    "ud2",
    // ---------------------------------------------------------------- system calls
    // From a trampoline: rcx = canonical return address, r11 = where to resume.
    ".globl gate_entry",
    ".p2align 5",
    "gate_entry:",
    "mov gs:[{USER_RSP}], rsp",
    "mov gs:[{RESUME}], r11",
    "mov rsp, gs:[{FRAME}]",
    "mov dword ptr gs:[{MODE}], {KERNEL}",
    "SAVE_GENERAL",
    "mov [rsp + {RIP}], rcx",
    "pushfq",
    "pop r11",
    "mov [rsp + {RFLAGS}], r11",
    "mov [rsp + {R11}], r11",
    // Direction, alignment checks and the like are the program's; compiled code knows nothing of
    // them.
    "test r11d, {UNUSUAL_FLAGS}",
    "jne 42f",
    "43:",
    "mov rax, gs:[{USER_RSP}]",
    "mov [rsp + {RSP}], rax",
    "SAVE_VECTORS",
    "mov rdi, rsp",
    "call {gate_system_call}",
    "jmp return_check",
    "42:",
    "push 2",
    "popfq",
    "jmp 43b",
    // ---------------------------------------------------------------- other instructions
    // From a trampoline, which has left its address in the area; all registers are the program's.
    ".globl instruction_gate_entry",
    ".p2align 4",
    "instruction_gate_entry:",
    "mov gs:[{USER_RSP}], rsp",
    "mov rsp, gs:[{FRAME}]",
    "mov dword ptr gs:[{MODE}], {KERNEL}",
    "SAVE_GENERAL",
    "mov [rsp + {R11}], r11",
    "pushfq",
    "pop rax",
    "mov [rsp + {RFLAGS}], rax",
    "mov rax, gs:[{USER_RSP}]",
    "mov [rsp + {RSP}], rax",
    "push 2",
    "popfq",
    "SAVE_VECTORS",
    "mov rdi, rsp",
    "call {gate_instruction}",
    "jmp return_check",
    // ---------------------------------------------------------------- the end
    ".globl stop_entry",
    ".p2align 4",
    "stop_entry:",
    "mov dword ptr gs:[{MODE}], {KERNEL}",
    "call {stopped}",
    "ud2",
    // ---------------------------------------------------------------- exceptions, stage 2
    // Stage 1 has filled in the general registers of the frame; the vector state is the user's.
    ".globl stage2_entry",
    ".p2align 4",
    "stage2_entry:",
    "SAVE_VECTORS",
    "mov rdi, rsp",
    "call {stage2}",
    // Falls through.
    // ---------------------------------------------------------------- return to user code
    ".globl return_to_user",
    "return_to_user:",
    "mov rsp, gs:[{FRAME}]",
    ".globl return_check",
    "return_check:",
    "mov dword ptr gs:[{MODE}], {USER}",
    ".globl return_window",
    "return_window:",
    "mov rax, gs:[{WORK}]",
    "cmp dword ptr [rax], 0",
    "jne 50f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "movaps xmm\\n, [rsp + {XMM} + 16 * \\n]",
    ".endr",
    "mov rcx, [rsp + {RSP}]",
    "mov gs:[{USER_RSP}], rcx",
    // POPFQ takes longer than many a system call. Compiled code runs with the usual flags, so if
    // the program's are usual, too, only those of arithmetic differ: OF by an addition that
    // overflows if bit 11 was set, the others by SAHF.
    "mov rax, [rsp + {RFLAGS}]",
    "test eax, {UNUSUAL_FLAGS}",
    "jne 53f",
    "mov ecx, eax",
    "mov ah, al",
    "shr ecx, 11",
    "add cl, 0x7f",
    "sahf",
    "54:",
    "mov rax, [rsp + {RAX}]",
    "mov rbx, [rsp + {RBX}]",
    "mov rcx, [rsp + {RCX}]",
    "mov rdx, [rsp + {RDX}]",
    "mov rsi, [rsp + {RSI}]",
    "mov rdi, [rsp + {RDI}]",
    "mov rbp, [rsp + {RBP}]",
    "mov r8, [rsp + {R8}]",
    "mov r9, [rsp + {R9}]",
    "mov r10, [rsp + {R10}]",
    "mov r11, [rsp + {R11}]",
    "mov r12, [rsp + {R12}]",
    "mov r13, [rsp + {R13}]",
    "mov r14, [rsp + {R14}]",
    "mov r15, [rsp + {R15}]",
    "mov rsp, gs:[{USER_RSP}]",
    "jmp qword ptr gs:[{RESUME}]",
    "53:",
    "push rax",
    "popfq",
    "jmp 54b",
    ".globl return_window_end",
    "return_window_end:",
    "50:",
    "mov dword ptr gs:[{MODE}], {KERNEL}",
    "mov rdi, rsp",
    "call {pending_work}",
    "jmp return_check",
    HOST = const mode::HOST,
    FREE = const mode::FREE,
    KERNEL = const mode::KERNEL,
    USER = const mode::USER,
    REASON_RETURN = const REASON_RETURN,
    EXTENDED = const 5,
    UNUSUAL_FLAGS = const !USUAL_FLAGS,
    HOST_RETURN = const HOST_RETURN,
    HOST_RSP = const HOST_RSP,
    HOST_RBP = const HOST_RBP,
    MODE = const MODE,
    KERNEL_RSP = const KERNEL_RSP,
    SAVED_COMPONENTS = const SAVED_COMPONENTS,
    SAVED_FS = const SAVED_FS,
    SAVED_MXCSR = const SAVED_MXCSR,
    XSAVE_OFFSET = const XSAVE_OFFSET,
    FRAME = const FRAME,
    FRAME_SIZE = const FRAME_SIZE,
    AREA_TO_STACK_TOP = const bulla_abi::layout::slot::AREA
        - bulla_abi::layout::slot::KERNEL_STACK - bulla_abi::layout::slot::KERNEL_STACK_SIZE,
    EXCEPTION_STACK = const EXCEPTION_STACK,
    PANIC = const bulla_abi::hostcall::HostCall::Panic as u64,
    SSA_FRAME_SHIFT = const SSA_FRAME_SHIFT,
    NEWEST_EXITINFO = const NEWEST_EXITINFO,
    EXCEPTION_RETURN = const EXCEPTION_RETURN,
    EXCEPTION_RSP = const EXCEPTION_RSP,
    EXCEPTION_RBP = const EXCEPTION_RBP,
    USER_RSP = const USER_RSP,
    RESUME = const RESUME,
    WORK = const WORK,
    RAX = const offset_of!(Registers, rax),
    RBX = const offset_of!(Registers, rbx),
    RCX = const offset_of!(Registers, rcx),
    RDX = const offset_of!(Registers, rdx),
    RSI = const offset_of!(Registers, rsi),
    RDI = const offset_of!(Registers, rdi),
    RBP = const offset_of!(Registers, rbp),
    RSP = const offset_of!(Registers, rsp),
    R8 = const offset_of!(Registers, r8),
    R9 = const offset_of!(Registers, r9),
    R10 = const offset_of!(Registers, r10),
    R11 = const offset_of!(Registers, r11),
    R12 = const offset_of!(Registers, r12),
    R13 = const offset_of!(Registers, r13),
    R14 = const offset_of!(Registers, r14),
    R15 = const offset_of!(Registers, r15),
    RIP = const offset_of!(Registers, rip),
    RFLAGS = const offset_of!(Registers, rflags),
    XMM = const offset_of!(Frame, xmm),
    slot_main = sym crate::threads::slot_main,
    initial_state = sym INITIAL_STATE,
    stage1 = sym crate::exception::stage1,
    stage2 = sym crate::exception::stage2,
    stopped = sym crate::panic::stopped,
    gate_system_call = sym crate::exception::gate_system_call,
    gate_instruction = sym crate::exception::gate_instruction,
    pending_work = sym crate::exception::pending_work,
);
