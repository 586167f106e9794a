//! memcpy and its family: there is no C library in an enclave.
//!
//! `rep movsb` is fast for long copies on every CPU with ERMS; short ones are a few moves. But where the
//! destination is 1 to 31 bytes ahead of the source, modulo 4096, AMD's takes each byte by itself, six
//! times as long: those go by vectors. Blocks of the heap are so against pages. Nothing
//! here may be compiled into a call of itself, hence the assembly.

use core::arch::global_asm;

/// What the functions are called: in tests there is a C library.
#[cfg(not(test))]
macro_rules! name {
    ($name:literal) => {
        $name
    };
}
#[cfg(test)]
macro_rules! name {
    ($name:literal) => {
        concat!("bulla_", $name)
    };
}

global_asm!(
    // Compares 64 bytes; goes on behind them if they are equal. The flags say whether 64 are left.
    ".macro EQUAL_64 otherwise",
    ".irp n, 0,1,2,3",
    "movups xmm\\n, [rdi + 16 * \\n]",
    "movups xmm4, [rsi + 16 * \\n]",
    "pcmpeqb xmm\\n, xmm4",
    ".endr",
    "pand xmm0, xmm1",
    "pand xmm2, xmm3",
    "pand xmm0, xmm2",
    "pmovmskb eax, xmm0",
    "cmp eax, 0xffff",
    "jne \\otherwise",
    "add rdi, 64",
    "add rsi, 64",
    "sub rdx, 64",
    "cmp rdx, 64",
    ".endm",
    concat!(".globl ", name!("memcpy")),
    concat!(".type ", name!("memcpy"), ", @function"),
    ".p2align 4",
    concat!(name!("memcpy"), ":"),
    "mov rax, rdi",
    "cmp rdx, 16",
    "jb 3f",
    "cmp rdx, 32",
    "ja 2f",
    "movups xmm0, [rsi]",
    "movups xmm1, [rsi + rdx - 16]",
    "movups [rdi], xmm0",
    "movups [rdi + rdx - 16], xmm1",
    "ret",
    "2:",
    "cmp rdx, 512",
    "ja 7f",
    // 33..512: sixteen at a time, the last sixteen overlapping.
    "movups xmm1, [rsi + rdx - 16]",
    "lea rcx, [rdi + rdx - 16]",
    "8:",
    "movups xmm0, [rsi]",
    "movups [rdi], xmm0",
    "add rsi, 16",
    "add rdi, 16",
    "cmp rdi, rcx",
    "jb 8b",
    "movups [rcx], xmm1",
    "ret",
    "7:",
    "mov rcx, rdx",
    // How far ahead of the source the destination is, within a page; 1 to 31 bytes are slow.
    "mov r8d, edi",
    "sub r8d, esi",
    "dec r8d",
    "and r8d, 0xfff",
    "cmp r8d, 31",
    "jb 9f",
    "rep movsb",
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
    "ret",
    "3:",
    "cmp edx, 8",
    "jb 4f",
    "mov rcx, [rsi]",
    "mov r8, [rsi + rdx - 8]",
    "mov [rdi], rcx",
    "mov [rdi + rdx - 8], r8",
    "ret",
    "4:",
    "cmp edx, 4",
    "jb 5f",
    "mov ecx, [rsi]",
    "mov r8d, [rsi + rdx - 4]",
    "mov [rdi], ecx",
    "mov [rdi + rdx - 4], r8d",
    "ret",
    "5:",
    "test edx, edx",
    "je 6f",
    "movzx ecx, byte ptr [rsi]",
    "movzx r8d, byte ptr [rsi + rdx - 1]",
    "cmp edx, 3",
    "jne 9f",
    "movzx r9d, byte ptr [rsi + 1]",
    "mov [rdi + 1], r9b",
    "9:",
    "mov [rdi], cl",
    "mov [rdi + rdx - 1], r8b",
    "6:",
    "ret",
    concat!(".globl ", name!("memmove")),
    concat!(".type ", name!("memmove"), ", @function"),
    ".p2align 4",
    concat!(name!("memmove"), ":"),
    "mov rax, rdi",
    "sub rax, rsi",
    "cmp rax, rdx",
    concat!("jae ", name!("memcpy")),
    // Overlap with the destination behind the source: from the end.
    "mov rax, rdi",
    "2:",
    "cmp rdx, 8",
    "jb 3f",
    "mov rcx, [rsi + rdx - 8]",
    "mov [rdi + rdx - 8], rcx",
    "sub rdx, 8",
    "jmp 2b",
    "3:",
    "test rdx, rdx",
    "je 4f",
    "mov cl, [rsi + rdx - 1]",
    "mov [rdi + rdx - 1], cl",
    "dec rdx",
    "jmp 3b",
    "4:",
    "ret",
    concat!(".globl ", name!("memset")),
    concat!(".type ", name!("memset"), ", @function"),
    ".p2align 4",
    concat!(name!("memset"), ":"),
    "mov r8, rdi",
    "movzx eax, sil",
    "cmp rdx, 16",
    "jb 3f",
    "mov rcx, 0x0101010101010101",
    "imul rax, rcx",
    "cmp rdx, 512",
    "ja 2f",
    "movq xmm0, rax",
    "punpcklqdq xmm0, xmm0",
    "lea rcx, [rdi + rdx - 16]",
    "4:",
    "movups [rdi], xmm0",
    "add rdi, 16",
    "cmp rdi, rcx",
    "jb 4b",
    "movups [rcx], xmm0",
    "mov rax, r8",
    "ret",
    "2:",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "3:",
    "mov rcx, rdx",
    "test rcx, rcx",
    "je 6f",
    "5:",
    "mov [rdi], al",
    "inc rdi",
    "dec rcx",
    "jne 5b",
    "6:",
    "mov rax, r8",
    "ret",
    concat!(".globl ", name!("memcmp")),
    concat!(".type ", name!("memcmp"), ", @function"),
    concat!(".globl ", name!("bcmp")),
    concat!(".type ", name!("bcmp"), ", @function"),
    ".p2align 4",
    concat!(name!("memcmp"), ":"),
    concat!(name!("bcmp"), ":"),
    "cmp rdx, 64",
    "jb 2f",
    "cmp rdx, 4096",
    "jb 7f",
    // Whoever compares a page will look at the next ones: they are fetched meanwhile.
    "8:",
    "prefetcht0 [rdi + 4096]",
    "prefetcht0 [rsi + 4096]",
    "EQUAL_64 2f",
    "jae 8b",
    "jmp 2f",
    "7:",
    "EQUAL_64 2f",
    "jae 7b",
    // What is left, or holds the difference.
    "2:",
    "cmp rdx, 8",
    "jb 4f",
    "mov rax, [rdi]",
    "mov rcx, [rsi]",
    "cmp rax, rcx",
    "jne 3f",
    "add rdi, 8",
    "add rsi, 8",
    "sub rdx, 8",
    "jmp 2b",
    "3:",
    "bswap rax",
    "bswap rcx",
    "cmp rax, rcx",
    "sbb eax, eax",
    "or eax, 1",
    "ret",
    "4:",
    "test rdx, rdx",
    "je 5f",
    "movzx eax, byte ptr [rdi]",
    "movzx ecx, byte ptr [rsi]",
    "sub eax, ecx",
    "jne 6f",
    "inc rdi",
    "inc rsi",
    "dec rdx",
    "jmp 4b",
    "5:",
    "xor eax, eax",
    "6:",
    "ret",
    concat!(".globl ", name!("strlen")),
    concat!(".type ", name!("strlen"), ", @function"),
    concat!(name!("strlen"), ":"),
    "mov rax, rdi",
    "2:",
    "cmp byte ptr [rax], 0",
    "je 3f",
    "inc rax",
    "jmp 2b",
    "3:",
    "sub rax, rdi",
    "ret",
);

#[cfg(test)]
mod tests {
    use core::cmp::Ordering;
    use std::vec::Vec;

    unsafe extern "C" {
        fn bulla_memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8;
        fn bulla_memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8;
        fn bulla_memset(to: *mut u8, byte: i32, len: usize) -> *mut u8;
        fn bulla_memcmp(a: *const u8, b: *const u8, len: usize) -> i32;
        fn bulla_bcmp(a: *const u8, b: *const u8, len: usize) -> i32;
        fn bulla_strlen(text: *const u8) -> usize;
    }

    /// Around every size at which a function does something else.
    const LENGTHS: [usize; 27] = [
        0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 130, 511, 512, 513,
        1000, 4095, 4096, 8250,
    ];

    fn pattern(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 + i / 256 + seed) as u8).collect()
    }

    #[test]
    fn comparisons_find_the_first_difference() {
        for len in LENGTHS {
            for offset in [0, 1, 13] {
                let a = pattern(len + offset, 5);
                let mut b = pattern(len, 5 + offset * 31);
                b[..].copy_from_slice(&a[offset..]);
                let (left, right) = (a[offset..].as_ptr(), b.as_mut_ptr());
                // SAFETY: both are of this length.
                assert_eq!(unsafe { bulla_memcmp(left, right, len) }, 0, "{len}");
                // SAFETY: as above.
                assert_eq!(unsafe { bulla_bcmp(left, right, len) }, 0, "{len}");
                for at in (0..len).filter(|at| at % 61 == 0 || at + 70 > len) {
                    for change in [1, 0x80] {
                        b[at] ^= change;
                        // A second difference that must not decide.
                        let last = b[len - 1];
                        b[len - 1] = if at + 1 < len { !last } else { last };
                        let expected = a[offset..].cmp(&b[..]);
                        // SAFETY: as above.
                        let found = unsafe { bulla_memcmp(left, b.as_ptr(), len) };
                        assert_eq!(found.cmp(&0), expected, "{len}, at {at}");
                        assert_ne!(expected, Ordering::Equal);
                        // SAFETY: as above.
                        let differs = unsafe { bulla_bcmp(left, b.as_ptr(), len) };
                        assert_ne!(differs, 0, "{len}, at {at}");
                        b[len - 1] = last;
                        b[at] ^= change;
                    }
                }
            }
        }
    }

    #[test]
    fn copies_write_what_they_should_and_nothing_else() {
        for len in LENGTHS {
            let from = pattern(len, 1);
            for offset in [0, 1, 16, 40] {
                let mut to = pattern(len + 100, 77);
                let mut expected = to.clone();
                expected[offset..offset + len].copy_from_slice(&from);
                // SAFETY: `to` is longer by more than the offset.
                unsafe { bulla_memcpy(to[offset..].as_mut_ptr(), from.as_ptr(), len) };
                assert!(to == expected, "memcpy of {len} to {offset}");
                for (source, target) in [(0, offset), (offset, 0), (offset, 50)] {
                    expected.copy_within(source..source + len, target);
                    let base = to.as_mut_ptr();
                    // SAFETY: both lie in `to`, and may overlap.
                    unsafe { bulla_memmove(base.add(target), base.add(source), len) };
                    assert!(to == expected, "memmove of {len} from {source} to {target}");
                }
                expected[offset..offset + len].fill(0x9e);
                // SAFETY: as for memcpy.
                unsafe { bulla_memset(to[offset..].as_mut_ptr(), 0x79e, len) };
                assert!(to == expected, "memset of {len} at {offset}");
            }
        }
    }

    #[test]
    fn a_text_ends_at_the_first_zero() {
        for (text, len) in [(&b"\0a"[..], 0), (b"abc\0d\0", 3)] {
            // SAFETY: there is a zero.
            assert_eq!(unsafe { bulla_strlen(text.as_ptr()) }, len);
        }
    }
}
