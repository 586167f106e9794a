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
use core::arch::asm;
use core::mem::MaybeUninit;

/// Bytes of a page.
pub const PAGE: usize = 4096;

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

/// The program's registers while they are in use.
#[repr(C, align(64))]
struct Saved([MaybeUninit<u8>; 512]);

impl Saved {
    fn new() -> Saved {
        Saved([MaybeUninit::uninit(); 512])
    }
}

/// The fingerprints of the first whole pages, one for each of `out`.
///
/// # Safety
/// The CPU has VPCLMULQDQ, and this enclave the registers: AVX, or AVX-512.
///
/// # Panics
/// If there are fewer pages than that.
pub unsafe fn of_pages(width: Width, key: &Key, pages: &[u8], out: &mut [u128]) {
    assert!(pages.len() >= out.len() * PAGE);
    let mut saved = Saved::new();
    // SAFETY: the registers are there, by contract. Compiled code in between uses no upper halves and
    // none of AVX-512's own registers; what it has in lower halves it knows to be lost.
    unsafe {
        save(width, &mut saved);
        let (pages, _) = pages.as_chunks::<PAGE>();
        for (page, out) in pages.iter().zip(out) {
            *out = sum(width, key, page);
        }
        restore(width, &saved);
    }
}

/// # Safety
/// As for [`of_pages`].
unsafe fn save(width: Width, to: &mut Saved) {
    // SAFETY: eight registers of 32 or 64 bytes into 512 bytes, aligned to 64.
    unsafe {
        match width {
            Width::Ymm => asm!(
                ".irp n, 0,1,2,3,4,5,6,7",
                "vmovdqa [{to} + 32 * \\n], ymm\\n",
                ".endr",
                to = in(reg) to, options(nostack, preserves_flags)),
            Width::Zmm => asm!(
                ".irp n, 16,17,18,19,20,21,22,23",
                "vmovdqa64 [{to} + 64 * (\\n - 16)], zmm\\n",
                ".endr",
                to = in(reg) to, options(nostack, preserves_flags)),
        }
    }
}

/// # Safety
/// As for [`of_pages`], after [`save`].
unsafe fn restore(width: Width, from: &Saved) {
    // SAFETY: what `save` has written.
    unsafe {
        match width {
            Width::Ymm => asm!(
                ".irp n, 0,1,2,3,4,5,6,7",
                "vmovdqa ymm\\n, [{from} + 32 * \\n]",
                ".endr",
                from = in(reg) from,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                options(nostack, preserves_flags)),
            Width::Zmm => asm!(
                ".irp n, 16,17,18,19,20,21,22,23",
                "vmovdqa64 zmm\\n, [{from} + 64 * (\\n - 16)]",
                ".endr",
                from = in(reg) from, options(nostack, preserves_flags)),
        }
    }
}

/// The sums of a page, one for each 128 bits of a register.
#[repr(C, align(64))]
#[derive(Default)]
struct Sums([[u64; 2]; 4]);

/// # Safety
/// As for [`of_pages`], between [`save`] and [`restore`].
unsafe fn sum(width: Width, key: &Key, page: &[u8; PAGE]) -> u128 {
    let mut sums = Sums::default();
    // SAFETY: reads `PAGE` bytes of the page, aligned or not, and of the key; writes the sums.
    unsafe {
        match width {
            Width::Ymm => asm!(
                ".irp n, 0,1,2,3",
                "vpxor xmm\\n, xmm\\n, xmm\\n",
                ".endr",
                "2:",
                ".irp n, 0,1,2,3",
                "vmovdqu ymm4, [{page} + {at} + 32 * \\n]",
                "vpxor ymm4, ymm4, [{key} + {at} + 32 * \\n]",
                "vpclmulqdq ymm4, ymm4, ymm4, 0x10",
                "vpxor ymm\\n, ymm\\n, ymm4",
                ".endr",
                "add {at}, 128",
                "cmp {at}, {len}",
                "jb 2b",
                "vpxor ymm0, ymm0, ymm1",
                "vpxor ymm2, ymm2, ymm3",
                "vpxor ymm0, ymm0, ymm2",
                "vmovdqa [{sums}], ymm0",
                page = in(reg) page, key = in(reg) key, sums = in(reg) &raw mut sums,
                at = inout(reg) 0usize => _, len = const PAGE,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
                options(nostack)),
            Width::Zmm => asm!(
                ".irp n, 16,17,18,19",
                "vpxorq zmm\\n, zmm\\n, zmm\\n",
                ".endr",
                "2:",
                ".irp n, 16,17,18,19",
                "vmovdqu64 zmm20, [{page} + {at} + 64 * (\\n - 16)]",
                "vpxorq zmm20, zmm20, [{key} + {at} + 64 * (\\n - 16)]",
                "vpclmulqdq zmm20, zmm20, zmm20, 0x10",
                "vpxorq zmm\\n, zmm\\n, zmm20",
                ".endr",
                "add {at}, 256",
                "cmp {at}, {len}",
                "jb 2b",
                "vpxorq zmm16, zmm16, zmm17",
                "vpxorq zmm18, zmm18, zmm19",
                "vpxorq zmm16, zmm16, zmm18",
                "vmovdqa64 [{sums}], zmm16",
                page = in(reg) page, key = in(reg) key, sums = in(reg) &raw mut sums,
                at = inout(reg) 0usize => _, len = const PAGE,
                options(nostack)),
        }
    }
    let words = sums.0.iter();
    words.fold(0, |sum, [low, high]| {
        sum ^ (u128::from(*high) << 64 | u128::from(*low))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn the_programs_registers_survive() {
        let key = Key::from_seed(0, &[3; 32]);
        let page = pages(1);
        for width in widths() {
            let mut before = Saved::new();
            for (at, byte) in before.0.iter_mut().enumerate() {
                byte.write(at as u8 ^ 0x5a);
            }
            let mut after = Saved::new();
            let mut out = [0];
            // SAFETY: the CPU has it; nothing of this test is in those registers.
            unsafe {
                restore(width, &before);
                of_pages(width, &key, &page, &mut out);
                save(width, &mut after);
            }
            // Of YMM registers the lower halves are the compiler's.
            let (len, kept) = match width {
                Width::Zmm => (64, 0..64),
                Width::Ymm => (32, 16..32),
            };
            let upper = |saved: &Saved| -> Vec<u8> {
                let registers = saved.0.chunks_exact(len).take(8);
                let kept = registers.flat_map(|whole| &whole[kept.clone()]);
                // SAFETY: written by `save`, or above.
                kept.map(|byte| unsafe { byte.assume_init() }).collect()
            };
            assert_eq!(upper(&after), upper(&before), "{width:?}");
        }
    }
}
