//! Where a statically linked program of ours starts, before the C library's own start.
//!
//! `bulla` has 30 MB, and some 200 pages of constants with addresses in them. The C library's start
//! adds the load address to each, and so takes a page fault in each, which is a good part of the
//! time that a small container needs.
//! - `bulla run` needs little of all that: the program `bulla-run` beside it takes over, if it is
//!   there, with the same arguments. What it cannot do it hands back, with [`WHOLE`] in the
//!   environment, which says not to try again.
//! - Otherwise all those pages are brought in by one system call.
//!
//! `build.rs` of the command makes this the entry point. Nothing is relocated here yet.

use std::arch::global_asm;

/// Environment variable of which `bulla` takes no other program's help.
pub const WHOLE: &str = "BULLA_WHOLE";

/// Names this build; see [`is_of_this_build`].
const BUILD: &str = env!("BULLA_BUILD");

const MADV_POPULATE_WRITE: i32 = 23;

/// `run` and its end, as a word in memory.
const RUN: u32 = u32::from_le_bytes(*b"run\0");
/// What is added to this program's path.
const SUFFIX: u64 = u64::from_le_bytes(*b"-run\0\0\0\0");
/// The beginning of [`WHOLE`].
const WHOLE_START: u64 = u64::from_le_bytes(*b"BULLA_WH");

/// Room for a path on the stack, and for what is added.
const PATH_MAX: usize = 4096;
const ROOM: usize = PATH_MAX + 16;

global_asm!(
    ".pushsection .text.bulla_entry, \"ax\", @progbits",
    ".globl bulla_entry",
    ".type bulla_entry, @function",
    "bulla_entry:",
    // RDX is for _start. The stack: argc, argv, 0, envp, 0. System calls change RAX, RCX and R11.
    "mov r8, rdx",
    "mov rcx, [rsp]",
    "cmp rcx, 2",
    "jb 5f",
    "mov rax, [rsp + 16]",
    "cmp dword ptr [rax], {RUN}",
    "jne 5f",
    "lea r9, [rsp + 8 * rcx + 16]",
    "mov r10, {WHOLE_START}",
    "mov rdx, r9",
    "2:",
    "mov rax, [rdx]",
    "test rax, rax",
    "jz 3f",
    "add rdx, 8",
    "cmp [rax], r10",
    "jne 2b",
    "jmp 5f",
    "3:",
    "sub rsp, {ROOM}",
    "lea rdi, [rip + bulla_entry_self]",
    "mov rsi, rsp",
    "mov edx, {PATH_MAX}",
    "mov eax, {READLINK}",
    "syscall",
    "test rax, rax",
    "jle 4f",
    "cmp rax, {PATH_MAX}",
    "jae 4f",
    "mov rcx, {SUFFIX}",
    "mov [rsp + rax], rcx",
    "mov rdi, rsp",
    "lea rsi, [rsp + {ROOM} + 8]",
    "mov rdx, r9",
    "mov eax, {EXECVE}",
    "syscall",
    "4:",
    "add rsp, {ROOM}",
    "5:",
    // What relocations change lies between these two, whichever linker it was.
    "lea rdi, [rip + __init_array_start]",
    "and rdi, -4096",
    "lea rsi, [rip + _GLOBAL_OFFSET_TABLE_]",
    "sub rsi, rdi",
    "jbe 6f",
    // A kernel that does not know it (before Linux 5.14) refuses, and no harm is done.
    "mov edx, {MADV_POPULATE_WRITE}",
    "mov eax, {MADVISE}",
    "syscall",
    "6:",
    "mov rdx, r8",
    "jmp _start",
    "bulla_entry_self:",
    ".asciz \"/proc/self/exe\"",
    ".popsection",
    RUN = const RUN,
    SUFFIX = const SUFFIX,
    WHOLE_START = const WHOLE_START,
    ROOM = const ROOM,
    PATH_MAX = const PATH_MAX,
    READLINK = const libc::SYS_readlink,
    EXECVE = const libc::SYS_execve,
    MADV_POPULATE_WRITE = const MADV_POPULATE_WRITE,
    MADVISE = const libc::SYS_madvise,
);

// An ELF note, which linkers put at the beginning of the file.
global_asm!(
    ".pushsection .note.bulla, \"a\", @note",
    ".p2align 2",
    ".long 6, {LEN}, 1",
    ".asciz \"bulla\"",
    ".p2align 2",
    concat!(".ascii \"", env!("BULLA_BUILD"), "\""),
    ".p2align 2",
    ".popsection",
    LEN = const BUILD.len(),
);

/// Whether the beginning of a program's file says that it is of this build.
pub fn is_of_this_build(beginning: &[u8]) -> bool {
    let name = BUILD.as_bytes();
    beginning.windows(name.len()).any(|part| part == name)
}
