//! EENTER, EEXIT, ERESUME and the ENCLU gates: the code that runs between host and enclave.
//!
//! # The frame
//! `bulla_emu_enter` saves the host's registers and switches to the thread's entry stack, whose
//! lowest word in use is the address of the [`Thread`]. RSP points to it whenever host code runs
//! again: after EEXIT (the enclave restores RSP, as on hardware), at the AEP (the AEX takes it from
//! SSA.URSP) and after a kick.
//!
//! # FS and GS
//! Writing a base costs about 20 ns on some machines. EENTER writes FS and EEXIT restores it, for
//! host code uses it. GS stays the enclave's after EEXIT, since host code never uses GS, and EENTER
//! only writes it when it changes; this is the one register that the host does not get back.
//!
//! # Signals
//! Anywhere in this text a signal may arrive, with FS and GS the host's or the enclave's: the
//! signal stub leaves both as it found them. A kick matters at two places:
//! - in ERESUME after its last look at `kick_pending` (from `bulla_emu_resume_critical` on), where
//!   nothing of the SSA frame has been consumed yet: the handler undoes the CSSA decrement and
//!   continues at `bulla_emu_kicked`;
//! - in the ENCLU gate after its last look (from `bulla_emu_gate_critical` on), where the whole
//!   state of the enclave is in `Thread::gate` and the vector registers: the handler writes the
//!   AEX from there.
//!
//! # Gates
//! A patched ENCLU site reaches a gate through a pointer in the enclave's hole. Sites first seen
//! with EEXIT are *jumps* to one of [`EXIT_GATES`] gates, since a call without a return would
//! spoil the return predictor; all others are calls. Both dispatch on EAX without touching flags.

use std::arch::global_asm;
use std::mem::offset_of;

use super::leaves;
use super::signals;
use super::ssa;
use super::thread::{GATE_TABLE, Gprs, TcsState, Thread, mode};
use crate::backend::Registers;

/// First address that the emulator maps when ELRANGE starts at 0: a null pointer must fault.
pub const FIRST_ADDRESS: u64 = bulla_abi::layout::USER_START;
/// End of the widest ELRANGE: code from here on is the host's.
pub const HOST_START: u64 = bulla_abi::layout::LayoutKind::Dynamic.elrange_size();

/// Sites that EEXIT may be patched at, each with a gate of its own.
pub const EXIT_GATES: usize = 16;

#[allow(improper_ctypes)] // the structures are only passed on
unsafe extern "C" {
    /// Executes the entry that `ssa::prepare` set up; 0 after EEXIT, 1 after an exception.
    pub fn bulla_emu_enter(thread: *mut Thread, leaf: u32) -> u32;
    pub safe static bulla_emu_text: u8;
    pub safe static bulla_emu_text_end: u8;
    pub safe static bulla_emu_aep: u8;
    pub safe static bulla_emu_kicked: u8;
    pub safe static bulla_emu_resume_critical: u8;
    pub safe static bulla_emu_resume_end: u8;
    pub safe static bulla_emu_gate_critical: u8;
    pub safe static bulla_emu_gate_end: u8;
    pub safe static bulla_emu_gate: u8;
    pub safe static bulla_emu_exit_gates: u8;
    pub safe static bulla_emu_exit_gates_end: u8;
    pub safe static bulla_emu_trap: u8;
    /// Where the sites of the exit gates continue after another leaf; written when patching.
    pub static mut bulla_emu_sites: [u64; EXIT_GATES];
    /// The signal handler of the fault signals.
    pub fn bulla_emu_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void);
}

/// The address of one of the labels above.
pub fn address(label: &'static u8) -> u64 {
    std::ptr::from_ref(label) as u64
}

/// Whether `rip` is in [start, end).
pub fn between(rip: u64, start: &'static u8, end: &'static u8) -> bool {
    rip >= address(start) && rip < address(end)
}

/// Address of exit gate `index`.
pub fn exit_gate(index: usize) -> u64 {
    let start = address(&bulla_emu_exit_gates);
    let stride = (address(&bulla_emu_exit_gates_end) - start) / EXIT_GATES as u64;
    start + stride * index as u64
}

/// An XSAVE area in which every component is in its initial state; XRSTOR loads MXCSR (at byte 24)
/// whatever the header says.
#[repr(C, align(64))]
struct InitialState([u32; 144]);

static INITIAL_STATE: InitialState = {
    let mut words = [0; 144];
    words[6] = ssa::INITIAL_MXCSR;
    InitialState(words)
};

global_asm!(
    // Saves rax and rcx; rcx = GS base; rax = its TcsState; jumps to \fail if it has none.
    ".macro BULLA_FIND_TCS fail",
    "rdgsbase rcx",
    "mov rax, rcx",
    "shr rax, 14",
    "and eax, 0xfff0",
    "add rax, [rip + bulla_emu_table]",
    "cmp [rax], rcx",
    "jne \\fail",
    "mov rax, [rax + 8]",
    "test rax, rax",
    "jz \\fail",
    ".endm",
    ".pushsection .data.rel.ro.bulla_emu, \"aw\"",
    ".balign 8",
    "bulla_emu_table: .quad {table}",
    ".popsection",
    ".pushsection .bss.bulla_emu, \"aw\", @nobits",
    ".balign 8",
    ".globl bulla_emu_sites",
    "bulla_emu_sites: .zero 8 * {exit_gates}",
    ".popsection",
    ".pushsection .text.bulla_emu, \"ax\"",
    ".balign 64",
    ".globl bulla_emu_text",
    "bulla_emu_text:",
    // -- EENTER ----------------------------------------------------------------------------
    ".globl bulla_emu_enter",
    "bulla_emu_enter:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "xor ebp, ebp", // the same at every entry, so that exits can be examined
    "mov [rdi + {caller_rsp}], rsp",
    "mov rsp, [rdi + {host_rsp}]",
    "mov [rsp], rdi",
    "cmp esi, 3",
    "je 30f",
    "20:", // EENTER; rdi = thread, rsp = frame
    "mov rax, [rdi + {ssa_gprs}]",
    "mov [rax + 144], rsp", // URSP
    "mov [rax + 152], rbp", // URBP
    "mov rax, [rdi + {enclave_fs}]",
    "wrfsbase rax",
    "mov rax, [rdi + {enclave_gs}]",
    "rdgsbase rcx", // often still there from the last time
    "cmp rax, rcx",
    "je 28f",
    "wrgsbase rax",
    "28:",
    "mov rbx, [rdi + {tcs_address}]",
    "mov r11, [rdi + {entry}]",
    "mov rax, [rdi + {cssa}]",
    "lea rcx, [rip + 21f]",
    "mov rsi, [rdi + {registers} + {rsi}]",
    "mov rdx, [rdi + {registers} + {rdx}]",
    "mov r8, [rdi + {registers} + {r8}]",
    "mov r9, [rdi + {registers} + {r9}]",
    "mov rdi, [rdi + {registers} + {rdi}]",
    "xor r10d, r10d",
    "jmp r11",
    // After EEXIT. RSP is the enclave's word; a host that mixes up its threads gets another's.
    "21:",
    "mov rax, rcx",
    "mov rsp, [rcx + {host_rsp}]",
    "mov [rax + {registers} + {rdi}], rdi",
    "mov [rax + {registers} + {rsi}], rsi",
    "mov [rax + {registers} + {rdx}], rdx",
    "mov [rax + {registers} + {r8}], r8",
    "mov [rax + {registers} + {r9}], r9",
    "xor eax, eax",
    "22:", // back to the caller; eax = result
    "cld",
    "mov rcx, [rsp]",
    "ldmxcsr [rcx + {host_mxcsr}]",
    "fnstcw [rsp + 16]",
    "mov dx, [rsp + 16]",
    "cmp dx, [rcx + {host_fcw}]",
    "jne 25f",
    "26:",
    "mov rsp, [rcx + {caller_rsp}]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    "25:",
    "fninit",
    "fldcw [rcx + {host_fcw}]",
    "jmp 26b",
    // -- the AEP ---------------------------------------------------------------------------
    ".globl bulla_emu_aep",
    "bulla_emu_aep:",
    "mov rdi, [rsp]",
    "call {at_aep}",
    "27:", // eax: 1 = exception, 2 = EENTER, 3 = ERESUME
    "mov rdi, [rsp]",
    "cmp eax, 2",
    "je 20b",
    "cmp eax, 3",
    "je 30f",
    "mov eax, 1",
    "jmp 22b",
    ".globl bulla_emu_kicked",
    "bulla_emu_kicked:", // as at the AEP, but a kick is to be delivered
    "cld",
    "mov rdi, [rsp]",
    "call {at_kick}",
    "jmp 27b",
    // -- ERESUME; rdi = thread, rsp = frame ------------------------------------------------
    "30:",
    "mov rsi, [rdi + {ssa_gprs}]",
    "mov [rsi + 144], rsp", // URSP
    "mov [rsi + 152], rbp", // URBP
    "mov rcx, [rdi + {ssa_frame}]",
    "mov eax, [rdi + {xfrm}]",
    "mov edx, [rdi + {xfrm} + 4]",
    "xrstor64 [rcx]",
    "cmp dword ptr [rdi + {kick_pending}], 0",
    ".globl bulla_emu_resume_critical",
    "bulla_emu_resume_critical:",
    "jne 31f",
    "mov rax, [rdi + {enclave_fs}]",
    "wrfsbase rax",
    "mov rax, [rdi + {enclave_gs}]",
    "wrgsbase rax",
    "mov dword ptr [rdi + {mode}], {mode_host}",
    "lea rsp, [rdi + {iret}]",
    "mov rax, [rsi + 0]",
    "mov rcx, [rsi + 8]",
    "mov rdx, [rsi + 16]",
    "mov rbx, [rsi + 24]",
    "mov rbp, [rsi + 40]",
    "mov rdi, [rsi + 56]",
    "mov r8, [rsi + 64]",
    "mov r9, [rsi + 72]",
    "mov r10, [rsi + 80]",
    "mov r11, [rsi + 88]",
    "mov r12, [rsi + 96]",
    "mov r13, [rsi + 104]",
    "mov r14, [rsi + 112]",
    "mov r15, [rsi + 120]",
    "mov rsi, [rsi + 48]",
    "iretq",
    ".globl bulla_emu_resume_end",
    "bulla_emu_resume_end:",
    "31:", // a kick arrived in time: the vector state is the enclave's already
    "mov eax, [rdi + {xfrm}]",
    "mov edx, [rdi + {xfrm} + 4]",
    "xrstor64 [rip + {initial_state}]",
    "call {undo_resume}",
    "jmp bulla_emu_kicked",
    // -- exit gates: EEXIT by jump ---------------------------------------------------------
    ".balign 64",
    ".globl bulla_emu_exit_gates",
    "bulla_emu_exit_gates:",
    ".set bulla_emu_index, 0",
    ".rept {exit_gates}",
    ".balign 32",
    "push rcx",
    "lea ecx, [rax - 4]",
    "jrcxz 41f",
    "pop rcx",
    "push qword ptr [rip + bulla_emu_sites + 8 * bulla_emu_index]",
    "jmp bulla_emu_gate",
    "41: push qword ptr [rip + bulla_emu_sites + 8 * bulla_emu_index]",
    "jmp 50f",
    ".set bulla_emu_index, bulla_emu_index + 1",
    ".balign 32",
    ".endr",
    ".globl bulla_emu_exit_gates_end",
    "bulla_emu_exit_gates_end:",
    ".balign 64",
    "50:", // EEXIT by jump: [return][rcx]
    "BULLA_FIND_TCS 59f",
    "mov rcx, rbx",
    "shr rcx, 47", // EEXIT to a non-canonical address is #GP, which the trap raises
    "jnz 59f",
    "add rsp, 16",
    "51:", // rax = TCS
    "inc qword ptr [rax + {exits}]",
    "mov rcx, [rax + {tcs_thread}]",
    "mov dword ptr [rax + {busy}], 0",
    "mov rax, [rcx + {host_fs}]",
    "wrfsbase rax",
    "mov eax, 4",
    "jmp rbx", // RCX: this thread, see `exits`
    "59:", // no TCS found: as if the site were not patched
    "mov eax, 4",
    "pop rcx",
    "xchg [rsp], rcx",
    "jmp bulla_emu_trap",
    // -- the gate for all leaves, by call --------------------------------------------------
    ".balign 64",
    "61: jmp 60f",
    ".balign 32",
    ".globl bulla_emu_gate",
    "bulla_emu_gate:", // [return]
    "push rcx",
    "lea ecx, [rax - 4]",
    "jrcxz 61b",
    "push rax",
    "pushfq", // [flags][rax][rcx][return]
    "lea ecx, [rax - 5]",
    "cmp ecx, 2", // EACCEPT, EMODPE, EACCEPTCOPY; the others are rare and trap
    "ja 69f",
    "BULLA_FIND_TCS 69f",
    "mov rax, [rax + {tcs_thread}]",
    "pop qword ptr [rax + {gate} + {g_rflags}]",
    "pop qword ptr [rax + {gate} + {g_rax}]",
    "pop qword ptr [rax + {gate} + {g_rcx}]",
    "pop qword ptr [rax + {gate} + {g_rip}]",
    "mov [rax + {gate} + {g_rsp}], rsp",
    "mov [rax + {gate} + 16], rdx",
    "mov [rax + {gate} + 24], rbx",
    "mov [rax + {gate} + 40], rbp",
    "mov [rax + {gate} + 48], rsi",
    "mov [rax + {gate} + 56], rdi",
    "mov [rax + {gate} + 64], r8",
    "mov [rax + {gate} + 72], r9",
    "mov [rax + {gate} + 80], r10",
    "mov [rax + {gate} + 88], r11",
    "mov [rax + {gate} + 96], r12",
    "mov [rax + {gate} + 104], r13",
    "mov [rax + {gate} + 112], r14",
    "mov [rax + {gate} + 120], r15",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "movaps [rax + {gate_xmm} + 16 * \\n], xmm\\n",
    ".endr",
    "mov dword ptr [rax + {mode}], {mode_gate}",
    "rdfsbase rcx",
    "mov [rax + {gate_fs}], rcx",
    "mov rcx, [rax + {host_fs}]",
    "wrfsbase rcx",
    "mov rsp, [rax + {gate_stack}]",
    "cld",
    "mov rdi, rax",
    "mov rbx, rax",
    "call {enclu_gate}", // eax: 0 = done, 1 = fault in Thread::fault
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "movaps xmm\\n, [rbx + {gate_xmm} + 16 * \\n]",
    ".endr",
    "test eax, eax",
    "jnz 68f",
    "mov rax, [rbx + {gate_fs}]",
    "wrfsbase rax",
    "mov rcx, [rbx + {gate} + {g_rsp}]",
    "mov rax, [rbx + {gate} + {g_rip}]",
    "mov [rcx - 8], rax",
    "mov rax, [rbx + {gate} + {g_rflags}]",
    "mov [rcx - 16], rax",
    "mov rsi, [rbx + {gate} + 48]",
    "mov rdi, [rbx + {gate} + 56]",
    "mov r8, [rbx + {gate} + 64]",
    "mov r9, [rbx + {gate} + 72]",
    "mov r10, [rbx + {gate} + 80]",
    "mov r11, [rbx + {gate} + 88]",
    "mov rdx, [rbx + {gate} + 16]",
    "mov rbp, [rbx + {gate} + 40]",
    "mov r12, [rbx + {gate} + 96]",
    "mov r13, [rbx + {gate} + 104]",
    "mov r14, [rbx + {gate} + 112]",
    "mov r15, [rbx + {gate} + 120]",
    "cmp dword ptr [rbx + {kick_pending}], 0",
    ".globl bulla_emu_gate_critical",
    "bulla_emu_gate_critical:",
    "jne 67f",
    "mov dword ptr [rbx + {mode}], {mode_host}",
    "lea rsp, [rcx - 16]",
    "mov rax, [rbx + {gate} + {g_rax}]",
    "mov rcx, [rbx + {gate} + {g_rcx}]",
    "mov rbx, [rbx + {gate} + 24]",
    "popfq",
    "ret",
    ".globl bulla_emu_gate_end",
    "bulla_emu_gate_end:",
    "60:", // EEXIT by call: [rcx][return]
    "BULLA_FIND_TCS 66f",
    "mov rcx, rbx",
    "shr rcx, 47",
    "jnz 66f",
    "add rsp, 16",
    "jmp 51b",
    "66:",
    "mov eax, 4",
    "pop rcx",
    "jmp bulla_emu_trap",
    "67:", // a kick: AEX after the leaf
    "mov rsp, [rbx + {gate_stack}]",
    "mov rax, [rbx + {host_fs}]",
    "wrfsbase rax",
    "68:", // a fault of the leaf (or a kick): AEX
    "mov rcx, [rbx + {ssa_frame}]",
    "mov eax, [rbx + {xfrm}]",
    "mov edx, [rbx + {xfrm} + 4]",
    "xsave64 [rcx]",
    "mov rax, [rbx + {host_gs}]",
    "rdgsbase rsi",
    "wrgsbase rax",
    "mov rdi, rbx",
    "call {gate_aex}",
    "mov rsp, rax", // SSA.URSP
    "mov rbp, rdx", // SSA.URBP
    "jmp bulla_emu_aep",
    "69:", // [flags][rax][rcx][return]: as if the site were not patched
    "popfq",
    "pop rax",
    "pop rcx",
    ".globl bulla_emu_trap",
    "bulla_emu_trap:", // [return]; the SIGILL handler serves the leaf
    "ud2",
    // -- signals: rdi = signal, rsi = siginfo, rdx = ucontext ------------------------------
    ".balign 16",
    ".globl bulla_emu_signal",
    "bulla_emu_signal:",
    "cmp qword ptr [rdx + 32], {signal_stack_size}", // uc_stack.ss_size
    "jne 70f",
    "mov rcx, [rdx + 16]", // uc_stack.ss_sp
    "sub rcx, {signal_stack}",
    "rdfsbase rax",
    "mov [rcx + {signal_fs}], rax",
    "rdgsbase rax",
    "mov [rcx + {signal_gs}], rax",
    "mov rax, [rcx + {host_fs}]",
    "wrfsbase rax",
    "mov rax, [rcx + {host_gs}]",
    "wrgsbase rax",
    "push rcx",
    "call {on_signal}",
    "pop rcx",
    "mov rax, [rcx + {signal_fs}]",
    "wrfsbase rax",
    "mov rax, [rcx + {signal_gs}]",
    "wrgsbase rax",
    "ret",
    "70:",
    "xor ecx, ecx",
    "jmp {on_signal}",
    ".globl bulla_emu_text_end",
    "bulla_emu_text_end:",
    ".popsection",
    ".purgem BULLA_FIND_TCS",
    table = sym GATE_TABLE,
    exit_gates = const EXIT_GATES,
    at_aep = sym ssa::at_aep,
    at_kick = sym ssa::at_kick,
    initial_state = sym INITIAL_STATE,
    undo_resume = sym ssa::undo_resume,
    gate_aex = sym ssa::gate_aex,
    enclu_gate = sym leaves::enclu_gate,
    on_signal = sym signals::on_signal,
    signal_stack = const super::thread::SIGNAL_STACK,
    signal_stack_size = const super::thread::SIGNAL_STACK_SIZE,
    mode_host = const mode::HOST,
    mode_gate = const mode::GATE,
    host_fs = const offset_of!(Thread, host_fs),
    host_gs = const offset_of!(Thread, host_gs),
    caller_rsp = const offset_of!(Thread, caller_rsp),
    host_mxcsr = const offset_of!(Thread, host_mxcsr),
    host_fcw = const offset_of!(Thread, host_fcw),
    host_rsp = const offset_of!(Thread, host_rsp),
    signal_fs = const offset_of!(Thread, signal_fs),
    signal_gs = const offset_of!(Thread, signal_gs),
    enclave_fs = const offset_of!(Thread, enclave_fs),
    enclave_gs = const offset_of!(Thread, enclave_gs),
    entry = const offset_of!(Thread, entry),
    cssa = const offset_of!(Thread, cssa),
    tcs_address = const offset_of!(Thread, tcs_address),
    ssa_gprs = const offset_of!(Thread, ssa_gprs),
    ssa_frame = const offset_of!(Thread, ssa_frame),
    xfrm = const offset_of!(Thread, xfrm),
    kick_pending = const offset_of!(Thread, kick_pending),
    mode = const offset_of!(Thread, mode),
    registers = const offset_of!(Thread, registers),
    rdi = const offset_of!(Registers, rdi),
    rsi = const offset_of!(Registers, rsi),
    rdx = const offset_of!(Registers, rdx),
    r8 = const offset_of!(Registers, r8),
    r9 = const offset_of!(Registers, r9),
    iret = const offset_of!(Thread, iret),
    gate_stack = const offset_of!(Thread, gate_stack),
    gate = const offset_of!(Thread, gate),
    gate_fs = const offset_of!(Thread, gate_fs),
    gate_xmm = const offset_of!(Thread, gate_xmm),
    g_rax = const offset_of!(Gprs, rax),
    g_rcx = const offset_of!(Gprs, rcx),
    g_rsp = const offset_of!(Gprs, rsp),
    g_rflags = const offset_of!(Gprs, rflags),
    g_rip = const offset_of!(Gprs, rip),
    tcs_thread = const offset_of!(TcsState, thread),
    exits = const offset_of!(TcsState, exits),
    busy = const offset_of!(TcsState, busy),
);
