//! Copies between kernel memory and user memory. User pages may be missing or protected: a fault
//! in one of the routines continues at its fixup (see `exception::stage1`).

use core::arch::global_asm;

use bulla_libos::platform::{Atomic, UserFault};

unsafe extern "C" {
    fn user_copy(to: *mut u8, from: *const u8, len: usize) -> usize;
    fn user_copy_exact(to: *mut u8, from: *const u8, len: usize) -> usize;
    fn user_fill(to: *mut u8, len: usize) -> usize;
    fn user_load(at: *const u32, value: *mut u32) -> usize;
    fn user_compare_exchange(at: *mut u32, expected: *mut u32, new: u32) -> usize;
    static user_copy_start: u8;
    static user_copy_end: u8;
    static user_copy_fixup: u8;
    static user_simple_start: u8;
    static user_simple_end: u8;
    static user_simple_fixup: u8;
}

global_asm!(
    // Returns the number of bytes not copied: exact for the string instructions, else at least
    // one.
    ".p2align 4",
    ".globl user_copy_start",
    "user_copy_start:",
    ".globl user_copy",
    "user_copy:",
    "mov rcx, rdx",
    "cmp rdx, 16",
    "jb 3f",
    "cmp rdx, 32",
    "ja 2f",
    "movups xmm0, [rsi]",
    "movups xmm1, [rsi + rdx - 16]",
    "movups [rdi], xmm0",
    "movups [rdi + rdx - 16], xmm1",
    "xor eax, eax",
    "ret",
    "2:",
    "cmp rdx, 384",
    "ja 7f",
    "movups xmm1, [rsi + rdx - 16]",
    "lea r8, [rdi + rdx - 16]",
    "8:",
    "movups xmm0, [rsi]",
    "movups [rdi], xmm0",
    "add rsi, 16",
    "add rdi, 16",
    "sub rcx, 16",
    "cmp rdi, r8",
    "jb 8b",
    "movups [r8], xmm1",
    "xor eax, eax",
    "ret",
    "7:",
    // Where `rep movsb` is slow: see `memfunctions`.
    "mov r8d, edi",
    "sub r8d, esi",
    "dec r8d",
    "and r8d, 0xfff",
    "cmp r8d, 31",
    "jb 9f",
    "rep movsb",
    "xor eax, eax",
    "ret",
    "9:",
    "movups xmm0, [rsi]",
    "movups xmm1, [rsi + 16]",
    "movups xmm2, [rsi + 32]",
    "movups xmm3, [rsi + 48]",
    "movups [rdi], xmm0",
    "movups [rdi + 16], xmm1",
    "movups [rdi + 32], xmm2",
    "movups [rdi + 48], xmm3",
    "add rsi, 64",
    "add rdi, 64",
    "sub rcx, 64",
    "cmp rcx, 64",
    "jae 9b",
    "rep movsb",
    "xor eax, eax",
    "ret",
    "3:",
    "cmp edx, 8",
    "jb 4f",
    "mov rax, [rsi]",
    "mov r8, [rsi + rdx - 8]",
    "mov [rdi], rax",
    "mov [rdi + rdx - 8], r8",
    "xor eax, eax",
    "ret",
    "4:",
    "cmp edx, 4",
    "jb 5f",
    "mov eax, [rsi]",
    "mov r8d, [rsi + rdx - 4]",
    "mov [rdi], eax",
    "mov [rdi + rdx - 4], r8d",
    "xor eax, eax",
    "ret",
    "5:",
    "test ecx, ecx",
    "je 6f",
    "movzx eax, byte ptr [rsi]",
    "mov [rdi], al",
    "inc rsi",
    "inc rdi",
    "dec ecx",
    "jmp 5b",
    "6:",
    "xor eax, eax",
    "ret",
    // The same, byte by byte: how far it came is exact.
    ".globl user_copy_exact",
    "user_copy_exact:",
    "mov rcx, rdx",
    "rep movsb",
    "xor eax, eax",
    "ret",
    "user_fill:",
    "mov rcx, rsi",
    "xor eax, eax",
    "rep stosb",
    "ret",
    ".globl user_copy_end",
    "user_copy_end:",
    ".globl user_copy_fixup",
    "user_copy_fixup:",
    "mov rax, rcx",
    "cld",
    "ret",
    "user_simple_start:",
    "user_load:",
    "mov eax, [rdi]",
    "mov [rsi], eax",
    "xor eax, eax",
    "ret",
    "user_compare_exchange:",
    "mov eax, [rsi]",
    "lock cmpxchg [rdi], edx",
    "mov [rsi], eax",
    "xor eax, eax",
    "ret",
    "user_simple_end:",
    "user_simple_fixup:",
    "mov eax, 4",
    "ret",
);

/// Where a faulting copy continues, if `rip` is in one.
pub fn fixup(rip: u64) -> Option<u64> {
    let within = |start: *const u8, end: *const u8| (start as u64..end as u64).contains(&rip);
    if within(&raw const user_copy_start, &raw const user_copy_end) {
        return Some(&raw const user_copy_fixup as u64);
    }
    if within(&raw const user_simple_start, &raw const user_simple_end) {
        return Some(&raw const user_simple_fixup as u64);
    }
    crate::untrusted::fixup(rip)
}

/// Whether `[address, address + len)` lies in the application's part of the enclave.
#[inline(always)]
pub fn in_user_range(address: u64, len: usize) -> bool {
    address >= bulla_abi::layout::USER_START
        && address
            .checked_add(len as u64)
            .is_some_and(|end| end <= crate::threads::user_end())
}

#[inline]
pub fn copy_from_user(address: u64, to: &mut [u8]) -> Result<(), UserFault> {
    if !in_user_range(address, to.len()) {
        return Err(UserFault {
            remaining: to.len(),
        });
    }
    // SAFETY: the source is user memory, which no Rust reference covers; a fault is caught.
    unsafe { copy(to.as_mut_ptr(), address as *const u8, to.len()) }
}

#[inline]
pub fn copy_to_user(address: u64, from: &[u8]) -> Result<(), UserFault> {
    if !in_user_range(address, from.len()) {
        return Err(UserFault {
            remaining: from.len(),
        });
    }
    // SAFETY: the destination is user memory, which no Rust reference covers; a fault is caught.
    unsafe { copy(address as *mut u8, from.as_ptr(), from.len()) }
}

pub fn clear_user(address: u64, len: usize) -> Result<(), UserFault> {
    if !in_user_range(address, len) {
        return Err(UserFault { remaining: len });
    }
    // SAFETY: as above.
    done(unsafe { user_fill(address as *mut u8, len) })
}

/// The fast copy; after a fault the exact one, whose count says which page is missing.
///
/// # Safety
/// One side is kernel memory of `len` bytes, the other user memory that nothing refers to.
#[inline(always)]
unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> Result<(), UserFault> {
    // SAFETY: the caller's promise.
    if unsafe { user_copy(to, from, len) } == 0 {
        return Ok(());
    }
    // SAFETY: as above.
    done(unsafe { user_copy_exact(to, from, len) })
}

#[inline(always)]
fn done(remaining: usize) -> Result<(), UserFault> {
    if remaining == 0 {
        Ok(())
    } else {
        Err(UserFault { remaining })
    }
}

/// One atomic operation; the old value.
pub fn atomic_user(address: u64, operation: Atomic) -> Result<u32, UserFault> {
    if !address.is_multiple_of(4) || !in_user_range(address, 4) {
        return Err(UserFault { remaining: 4 });
    }
    let at = address as *mut u32;
    let mut old = 0;
    // SAFETY: aligned user memory; a fault is caught.
    done(unsafe { user_load(at, &mut old) })?;
    loop {
        let new = match operation {
            Atomic::Load => return Ok(old),
            Atomic::Swap(value) => value,
            Atomic::Add(value) => old.wrapping_add(value),
            Atomic::Or(value) => old | value,
            Atomic::And(value) => old & value,
            Atomic::Xor(value) => old ^ value,
            Atomic::CompareExchange { expected, new } => {
                let mut found = expected;
                // SAFETY: as above.
                done(unsafe { user_compare_exchange(at, &mut found, new) })?;
                return Ok(found);
            }
        };
        let mut found = old;
        // SAFETY: as above.
        done(unsafe { user_compare_exchange(at, &mut found, new) })?;
        if found == old {
            return Ok(old);
        }
        old = found;
    }
}
