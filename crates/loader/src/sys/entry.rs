//! Where a statically linked program of ours starts, before the C library's own start.
//!
//! A program of 30 MB has some 200 pages of constants with addresses in them. The C library's start
//! adds the load address to each, and so takes a page fault in each, which is a good part of the
//! time that `bulla run` needs for a small container. Here all are brought in by one system call.
//! `build.rs` of the command makes this the entry point.

use std::arch::global_asm;

const MADV_POPULATE_WRITE: i32 = 23;

global_asm!(
    ".pushsection .text.bulla_entry, \"ax\", @progbits",
    ".globl bulla_entry",
    ".type bulla_entry, @function",
    "bulla_entry:",
    // What relocations change lies between these two, whichever linker it was.
    "lea rdi, [rip + __init_array_start]",
    "and rdi, -4096",
    "lea rsi, [rip + _GLOBAL_OFFSET_TABLE_]",
    "sub rsi, rdi",
    "jbe 2f",
    // RDX is for _start. A kernel that does not know it (before Linux 5.14) refuses, and no harm is
    // done.
    "mov r8, rdx",
    "mov edx, {MADV_POPULATE_WRITE}",
    "mov eax, {MADVISE}",
    "syscall",
    "mov rdx, r8",
    "2:",
    "jmp _start",
    ".popsection",
    MADV_POPULATE_WRITE = const MADV_POPULATE_WRITE,
    MADVISE = const libc::SYS_madvise,
);
