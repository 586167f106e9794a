//! Fingerprints of pages: whether one is as it was, for half of what a comparison reads.
//!
//! CLNH (Lemire and Kaser, "Faster 64-bit universal hashing using carry-less multiplications"): the
//! sum of `(word ^ key) * (next word ^ next key)`, without carries, over all pairs of a page's words.
//! Of two pages that differ in a word, all but one of 2^64 keys for its neighbour tell them apart,
//! whatever else the pages have: no content makes two fingerprints meet but by chance.
//!
//! Only with VPCLMULQDQ is this faster than copying and comparing. The registers that are used are
//! given back as they were, upper halves included: they are the program's.

use crate::sha256::Sha256;
use core::arch::global_asm;

const PAGE: usize = bulla_abi::PAGE_SIZE as usize;

/// As many random bytes as a page has.
#[repr(C, align(64))]
pub struct Key([u8; PAGE]);

/// Registers of which VPCLMULQDQ is used; both need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// AVX.
    Ymm,
    /// AVX-512.
    Zmm,
}

impl Key {
    /// Stretches a random seed; `hints` as for [`Sha256::new`].
    pub fn from_seed(hints: u64, seed: &[u8; 32]) -> Key {
        let mut key = Key([0; PAGE]);
        for (number, part) in key.0.chunks_exact_mut(32).enumerate() {
            let mut hash = Sha256::new(hints);
            hash.update(seed);
            hash.update(&[number as u8]);
            part.copy_from_slice(&hash.finish());
        }
        key
    }
}

global_asm!(
    // `bulla_fingerprint_…(pages, count, key, out)`: each saves the registers that it uses, all of
    // them, and gives them back. In sections of their own, which the bootstrap is linked without.
    ".macro FINGERPRINT_BEGIN name",
    ".pushsection .text.\\name, \"ax\", @progbits",
    ".globl \\name",
    ".type \\name, @function",
    ".p2align 5",
    "\\name:",
    "push rbp",
    "mov rbp, rsp",
    "and rsp, -64",
    "sub rsp, 64 * 5",
    ".endm",
    // The sums are complete: the next page, or the end.
    ".macro FINGERPRINT_NEXT",
    "add rdi, {PAGE}",
    "add rcx, 16",
    "dec rsi",
    "jnz 2b",
    "4:",
    ".endm",
    ".macro FINGERPRINT_END name",
    "mov rsp, rbp",
    "pop rbp",
    "ret",
    ".size \\name, . - \\name",
    ".popsection",
    ".endm",
    //
    "FINGERPRINT_BEGIN bulla_fingerprint_ymm",
    ".irp n, 0,1,2,3,4",
    "vmovdqa [rsp + 64 * \\n], ymm\\n",
    ".endr",
    "test rsi, rsi",
    "jz 4f",
    "2:",
    ".irp n, 0,1,2,3",
    "vpxor ymm\\n, ymm\\n, ymm\\n",
    ".endr",
    "xor eax, eax",
    "3:",
    ".irp n, 0,1,2,3",
    "vmovdqu ymm4, [rdi + rax + 32 * \\n]",
    "vpxor ymm4, ymm4, [rdx + rax + 32 * \\n]",
    "vpclmulqdq ymm4, ymm4, ymm4, 0x10",
    "vpxor ymm\\n, ymm\\n, ymm4",
    ".endr",
    "add rax, 128",
    "cmp rax, {PAGE}",
    "jb 3b",
    "vpxor ymm0, ymm0, ymm1",
    "vpxor ymm2, ymm2, ymm3",
    "vpxor ymm0, ymm0, ymm2",
    "vextracti128 xmm1, ymm0, 1",
    "vpxor xmm0, xmm0, xmm1",
    "vmovdqu [rcx], xmm0",
    "FINGERPRINT_NEXT",
    ".irp n, 0,1,2,3,4",
    "vmovdqa ymm\\n, [rsp + 64 * \\n]",
    ".endr",
    "FINGERPRINT_END bulla_fingerprint_ymm",
    //
    "FINGERPRINT_BEGIN bulla_fingerprint_zmm",
    ".irp n, 16,17,18,19,20",
    "vmovdqa64 [rsp + 64 * (\\n - 16)], zmm\\n",
    ".endr",
    "test rsi, rsi",
    "jz 4f",
    "2:",
    ".irp n, 16,17,18,19",
    "vpxorq zmm\\n, zmm\\n, zmm\\n",
    ".endr",
    "xor eax, eax",
    "3:",
    ".irp n, 16,17,18,19",
    "vmovdqu64 zmm20, [rdi + rax + 64 * (\\n - 16)]",
    "vpxorq zmm20, zmm20, [rdx + rax + 64 * (\\n - 16)]",
    "vpclmulqdq zmm20, zmm20, zmm20, 0x10",
    "vpxorq zmm\\n, zmm\\n, zmm20",
    ".endr",
    "add rax, 256",
    "cmp rax, {PAGE}",
    "jb 3b",
    "vpxorq zmm16, zmm16, zmm17",
    "vpxorq zmm18, zmm18, zmm19",
    "vpxorq zmm16, zmm16, zmm18",
    // The upper parts stay as they are while the lowest collects them.
    ".irp n, 1,2,3",
    "vextracti32x4 xmm17, zmm16, \\n",
    "vpxorq zmm16, zmm16, zmm17",
    ".endr",
    "vextracti32x4 [rcx], zmm16, 0",
    "FINGERPRINT_NEXT",
    ".irp n, 16,17,18,19,20",
    "vmovdqa64 zmm\\n, [rsp + 64 * (\\n - 16)]",
    ".endr",
    "FINGERPRINT_END bulla_fingerprint_zmm",
    ".purgem FINGERPRINT_BEGIN",
    ".purgem FINGERPRINT_NEXT",
    ".purgem FINGERPRINT_END",
    PAGE = const PAGE,
);

unsafe extern "sysv64" {
    fn bulla_fingerprint_ymm(pages: *const u8, count: usize, key: *const Key, out: *mut u128);
    fn bulla_fingerprint_zmm(pages: *const u8, count: usize, key: *const Key, out: *mut u128);
}

/// The fingerprints of the first whole pages, one for each of `out`.
///
/// # Safety
/// The CPU has VPCLMULQDQ (and AVX2, as each that has it), and this enclave the registers: AVX, or
/// AVX-512.
///
/// # Panics
/// If there are fewer pages than that.
pub unsafe fn of_pages(width: Width, key: &Key, pages: &[u8], out: &mut [u128]) {
    assert!(pages.len() >= out.len() * PAGE);
    let find = match width {
        Width::Ymm => bulla_fingerprint_ymm,
        Width::Zmm => bulla_fingerprint_zmm,
    };
    // SAFETY: as many pages, a key, and room for as many fingerprints; the registers are there, by
    // contract.
    unsafe { find(pages.as_ptr(), out.len(), key, out.as_mut_ptr()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::arch::asm;
    use std::vec::Vec;

    fn multiply(a: u64, b: u64) -> u128 {
        let set = (0..64).filter(|bit| b >> bit & 1 != 0);
        set.fold(0, |product, bit| product ^ u128::from(a) << bit)
    }

    fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
        let words = bytes.chunks_exact(8);
        words.map(|word| u64::from_le_bytes(word.try_into().unwrap()))
    }

    fn reference(key: &Key, page: &[u8]) -> u128 {
        let mixed: Vec<u64> = words(page).zip(words(&key.0)).map(|(a, b)| a ^ b).collect();
        let pairs = mixed.chunks_exact(2);
        pairs.fold(0, |sum, pair| sum ^ multiply(pair[0], pair[1]))
    }

    /// What this CPU has.
    fn widths() -> Vec<Width> {
        let mut widths = Vec::new();
        if std::is_x86_feature_detected!("vpclmulqdq") {
            if std::is_x86_feature_detected!("avx") {
                widths.push(Width::Ymm);
            }
            if std::is_x86_feature_detected!("avx512f") {
                widths.push(Width::Zmm);
            }
        }
        widths
    }

    fn pages(count: usize) -> Vec<u8> {
        let bytes = (0..count * PAGE).map(|at| (at * 37 + at / 251 * 11) as u8);
        bytes.collect()
    }

    #[test]
    fn every_width_agrees_with_the_reference_for_aligned_pages_and_others() {
        let key = Key::from_seed(0, &[7; 32]);
        let bytes = pages(4);
        for width in widths() {
            for start in [0, 1, 8, 100] {
                let mut found = [0; 3];
                // SAFETY: the CPU has it.
                unsafe { of_pages(width, &key, &bytes[start..], &mut found) };
                for (number, found) in found.into_iter().enumerate() {
                    let page = &bytes[start + number * PAGE..][..PAGE];
                    assert_eq!(found, reference(&key, page), "{width:?} {start} {number}");
                }
            }
        }
    }

    #[test]
    fn every_bit_counts_and_so_does_the_key() {
        let (key, other) = (Key::from_seed(0, &[1; 32]), Key::from_seed(0, &[2; 32]));
        for width in widths() {
            let mut page = pages(1);
            let of = |page: &[u8], key: &Key| {
                let mut found = [0];
                // SAFETY: the CPU has it.
                unsafe { of_pages(width, key, page, &mut found) };
                found[0]
            };
            let before = of(&page, &key);
            assert_ne!(before, of(&page, &other));
            for bit in (0..PAGE * 8).step_by(7) {
                page[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(of(&page, &key), before, "{width:?} bit {bit}");
                page[bit / 8] ^= 1 << (bit % 8);
            }
            assert_eq!(of(&page, &key), before);
        }
    }

    /// Fills the registers, calls, and looks at them: nothing compiled comes in between.
    macro_rules! survive {
        ($function:path, $load:literal, $store:literal, $numbers:literal, $arguments:expr) => {{
            let (pages, key, out): (&[u8], &Key, &mut [u128]) = $arguments;
            let mut registers = Registers([0; 32 * 64]);
            for (at, byte) in registers.0.iter_mut().enumerate() {
                *byte = (at * 7 + at / 64) as u8;
            }
            let before = registers.0;
            // SAFETY: every register that is loaded is lost by declaration or was so before: sysv64
            // preserves none of them.
            unsafe {
                asm!(
                    concat!(".irp n, ", $numbers), $load, ".endr",
                    "call {function}",
                    concat!(".irp n, ", $numbers), $store, ".endr",
                    function = sym $function,
                    in("rdi") pages.as_ptr(), in("rsi") out.len(), in("rdx") key,
                    in("rcx") out.as_mut_ptr(), in("r12") &raw mut registers,
                    clobber_abi("sysv64"));
            }
            registers.0 == before
        }};
    }

    #[repr(C, align(64))]
    struct Registers([u8; 32 * 64]);

    #[test]
    fn the_programs_registers_survive() {
        let key = Key::from_seed(0, &[3; 32]);
        let page = pages(2);
        let mut out = [0; 2];
        for width in widths() {
            let survive = match width {
                Width::Ymm => survive!(
                    bulla_fingerprint_ymm,
                    "vmovdqa ymm\\n, [r12 + 64 * \\n]",
                    "vmovdqa [r12 + 64 * \\n], ymm\\n",
                    "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                    (&page, &key, &mut out)
                ),
                Width::Zmm => survive!(
                    bulla_fingerprint_zmm,
                    "vmovdqa64 zmm\\n, [r12 + 64 * \\n]",
                    "vmovdqa64 [r12 + 64 * \\n], zmm\\n",
                    "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                    (&page, &key, &mut out)
                ),
            };
            assert!(survive, "{width:?}");
        }
    }
}
