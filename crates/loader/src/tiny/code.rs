//! The code of the tiny enclave: an interpreter of scripts.
//!
//! A script is a list of steps of 48 bytes: operation, four arguments, result. Operations below
//! [`op::SPIN`] are host calls; the others are described there. Each slot has an area that GS
//! points to, with the fields of [`field`].

use std::arch::global_asm;

/// Operations that are no host calls.
pub mod op {
    /// In user code until an entry for an exception or a kick comes.
    pub const SPIN: u64 = 1000;
    /// UD2; the handler skips it.
    pub const FAULT: u64 = 1001;
    /// Exits with code 99 unless the last result is the first argument.
    pub const EXPECT: u64 = 1002;
    /// Stores the second argument at offset (first) of the data buffer.
    pub const STORE: u64 = 1003;
    /// Adds one to the wait word of the shared area whose address is stored at (first).
    pub const BUMP: u64 = 1004;
    /// Goes to the step at (first) unless the last result is the second argument.
    pub const UNLESS: u64 = 1005;
    /// Loads eight bytes at offset (first) of the boot parameters as the last result.
    pub const PARAMETER: u64 = 1006;
}

/// Offsets in a slot's area.
pub mod field {
    /// Address of the present step.
    pub const STEP: usize = 8;
    /// Address of the shared area.
    pub const SHARED: u64 = 16;
    /// Address of the GPRSGX part of SSA frame 0.
    pub const GPRS: usize = 64;
}

unsafe extern "C" {
    static bulla_tiny: u8;
    static bulla_tiny_end: u8;
}

/// Its bytes; the entry point is the first.
pub fn bytes() -> &'static [u8] {
    // SAFETY: the two symbols enclose the code below.
    unsafe {
        let start = &raw const bulla_tiny;
        let end = &raw const bulla_tiny_end;
        std::slice::from_raw_parts(start, end as usize - start as usize)
    }
}

global_asm!(
    ".pushsection .text.bulla_tiny,\"ax\",@progbits",
    ".balign 64",
    ".globl bulla_tiny, bulla_tiny_end",
    ".hidden bulla_tiny, bulla_tiny_end",
    "bulla_tiny:",
    "cld",
    "test eax, eax",
    "jnz 90f",
    "mov gs:[40], rcx",
    "cmp rdi, 1",
    "jne 20f",
    "mov gs:[16], rsi",
    "mov gs:[24], rdx",
    "jmp 30f",
    "20:", // a host call returns
    "mov rax, gs:[8]",
    "mov [rax + 40], rsi",
    "mov gs:[32], rsi",
    "25:",
    "add qword ptr gs:[8], 48",
    "30:",
    "mov rax, gs:[8]",
    "mov rdx, [rax]",
    "cmp rdx, 1000",
    "je 40f",
    "cmp rdx, 1001",
    "je 41f",
    "cmp rdx, 1002",
    "je 42f",
    "cmp rdx, 1003",
    "je 43f",
    "cmp rdx, 1004",
    "je 44f",
    "cmp rdx, 1005",
    "je 45f",
    "cmp rdx, 1006",
    "je 46f",
    "mov rdi, rdx",
    "mov rsi, [rax + 8]",
    "mov rdx, [rax + 16]",
    "mov r8, [rax + 24]",
    "mov r9, [rax + 32]",
    "38:",
    "mov rbx, gs:[40]",
    "mov eax, 4",
    ".p2align 3",
    ".byte 0x0f, 0x01, 0xd7, 0x0f, 0x1f, 0x44, 0x00, 0x00",
    "ud2",
    "40:",
    "pause",
    "cmp qword ptr gs:[48], 0",
    "je 40b",
    "mov qword ptr gs:[48], 0",
    "jmp 25b",
    "41:",
    "ud2",
    "jmp 25b",
    "42:",
    "mov rcx, [rax + 8]",
    "cmp rcx, gs:[32]",
    "je 25b",
    "mov edi, 1",
    "mov esi, 99 << 8",
    "jmp 38b",
    "43:",
    "mov rcx, gs:[16]",
    "add rcx, [rax + 8]",
    "mov rdx, [rax + 16]",
    "mov [rcx + 4096], rdx",
    "jmp 25b",
    "44:",
    "mov rcx, [rax + 8]",
    "mov rcx, [rcx]",
    "lock inc dword ptr [rcx]",
    "jmp 25b",
    "45:",
    "mov rcx, gs:[32]",
    "cmp rcx, [rax + 16]",
    "je 25b",
    "mov rcx, [rax + 8]",
    "mov gs:[8], rcx",
    "jmp 30b",
    "46:",
    "mov rcx, gs:[24]",
    "add rcx, [rax + 8]",
    "mov rcx, [rcx]",
    "mov gs:[32], rcx",
    "jmp 25b",
    "90:", // an exception or a kick
    "mov qword ptr gs:[48], 1",
    "mov rdx, gs:[64]",
    "mov eax, [rdx + 160]", // EXITINFO, bit 31: valid
    "test eax, eax",
    "jns 91f",
    "add qword ptr [rdx + 136], 2", // RIP
    "91:",
    "xor edi, edi",
    "xor esi, esi",
    "mov rbx, rcx",
    "mov eax, 4",
    ".p2align 3",
    ".byte 0x0f, 0x01, 0xd7, 0x0f, 0x1f, 0x44, 0x00, 0x00",
    "ud2",
    "bulla_tiny_end:",
    ".popsection",
);
