//! Host memory: one pair of routines.
//!
//! Every access is by aligned 8-byte loads and stores (INTEL-SA-00657, INTEL-SA-00615), after a
//! check that the range lies outside ELRANGE; a fault is EIO. What is copied in is a private copy:
//! check that, never the host's memory.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use bulla_libos::Result;
use bulla_libos::errno::EIO;

unsafe extern "C" {
    /// Copies `words` aligned 8-byte words; returns words not copied.
    fn host_copy_words(to: *mut u64, from: *const u64, words: usize) -> usize;
    fn host_add(at: *mut u32, value: u32) -> usize;
    static host_copy_start: u8;
    static host_copy_end: u8;
    static host_copy_fixup: u8;
}

global_asm!(
    ".p2align 4",
    "host_copy_start:",
    "host_copy_words:",
    "mov rcx, rdx",
    "cmp rdx, 64",
    "jb 3f",
    // Where string moves are slow: see `memfunctions`. Whole words here, too.
    "mov r8d, edi",
    "sub r8d, esi",
    "dec r8d",
    "and r8d, 0xfff",
    "cmp r8d, 31",
    "jae 3f",
    "2:",
    "mov r8, [rsi]",
    "mov r9, [rsi + 8]",
    "mov r10, [rsi + 16]",
    "mov r11, [rsi + 24]",
    "mov [rdi], r8",
    "mov [rdi + 8], r9",
    "mov [rdi + 16], r10",
    "mov [rdi + 24], r11",
    "add rsi, 32",
    "add rdi, 32",
    "sub rcx, 4",
    "cmp rcx, 4",
    "jae 2b",
    "3:",
    "rep movsq",
    "xor eax, eax",
    "ret",
    "host_add:",
    "mov ecx, 1",
    "lock add [rdi], esi",
    "xor eax, eax",
    "ret",
    "host_copy_end:",
    "host_copy_fixup:",
    "mov rax, rcx",
    "ret",
);

static ELRANGE: AtomicU64 = AtomicU64::new(u64::MAX);

/// Sets the size of ELRANGE, once at boot.
pub fn set_elrange(size: u64) {
    ELRANGE.store(size, Ordering::SeqCst);
}

/// The size of ELRANGE; u64::MAX before boot.
pub fn elrange() -> u64 {
    ELRANGE.load(Ordering::Relaxed)
}

/// Where a faulting host copy continues, if `rip` is in one.
pub fn fixup(rip: u64) -> Option<u64> {
    let range = &raw const host_copy_start as u64..&raw const host_copy_end as u64;
    range
        .contains(&rip)
        .then_some(&raw const host_copy_fixup as u64)
}

/// Whether a range lies outside the enclave, in the lower half of the address space.
pub fn is_outside(address: u64, len: u64) -> bool {
    let end = address.checked_add(len);
    address >= ELRANGE.load(Ordering::Relaxed) && end.is_some_and(|end| end <= 1 << 47)
}

/// Copies in from host memory.
pub fn copy_in(address: u64, to: &mut [u8]) -> Result<()> {
    // The words that hold the range lie outside the enclave as well: ELRANGE is page aligned.
    if !is_outside(address, to.len() as u64) {
        return Err(EIO.because("host range inside the enclave"));
    }
    let mut at = address;
    let mut to = to;
    // Head and tail that do not fill a word go through one.
    while !to.is_empty() {
        let shift = (at % 8) as usize;
        if shift == 0 && to.len() >= 8 {
            let words = to.len() / 8;
            // SAFETY: the source was checked to lie outside the enclave, so it aliases nothing of
            // ours; the destination is `words * 8` bytes of `to`; a fault is caught.
            let left = unsafe { host_copy_words(to.as_mut_ptr().cast(), at as *const u64, words) };
            if left != 0 {
                return Err(EIO.because("host memory faulted"));
            }
            at += words as u64 * 8;
            to = &mut to[words * 8..];
        } else {
            let mut word = 0u64;
            // SAFETY: as above; one word.
            let left = unsafe { host_copy_words(&mut word, (at & !7) as *const u64, 1) };
            if left != 0 {
                return Err(EIO.because("host memory faulted"));
            }
            let bytes = word.to_le_bytes();
            let len = to.len().min(8 - shift);
            to[..len].copy_from_slice(&bytes[shift..shift + len]);
            at += len as u64;
            to = &mut to[len..];
        }
    }
    Ok(())
}

/// Copies out to host memory. A tail that does not fill a word is padded with zeros, so the
/// destination's last word must be ours to overwrite; `address` is 8-byte aligned.
pub fn copy_out(address: u64, from: &[u8]) -> Result<()> {
    if !address.is_multiple_of(8) || !is_outside(address, (from.len() as u64).next_multiple_of(8)) {
        return Err(EIO.because("host range inside the enclave or not aligned"));
    }
    let words = from.len() / 8;
    // SAFETY: the destination was checked to lie outside the enclave; the source is `from`.
    let left = unsafe { host_copy_words(address as *mut u64, from.as_ptr().cast(), words) };
    if left != 0 {
        return Err(EIO.because("host memory faulted"));
    }
    let tail = &from[words * 8..];
    if !tail.is_empty() {
        let mut bytes = [0u8; 8];
        bytes[..tail.len()].copy_from_slice(tail);
        let word = u64::from_le_bytes(bytes);
        // SAFETY: as above; one word.
        let left = unsafe { host_copy_words((address + words as u64 * 8) as *mut u64, &word, 1) };
        if left != 0 {
            return Err(EIO.because("host memory faulted"));
        }
    }
    Ok(())
}

/// Adds to a 32-bit word of host memory, atomically.
pub fn add_u32(address: u64, value: u32) -> Result<()> {
    if !address.is_multiple_of(4) || !is_outside(address, 4) {
        return Err(EIO);
    }
    // SAFETY: aligned, outside the enclave; a fault is caught.
    match unsafe { host_add(address as *mut u32, value) } {
        0 => Ok(()),
        _ => Err(EIO),
    }
}
