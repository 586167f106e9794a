//! Little-endian fields at fixed offsets of fixed-size arrays.
//!
//! Callers pass constant offsets that lie inside the array; the SDM fixes both.

/// Writes `value` at `at`.
pub(crate) fn put(out: &mut [u8], at: usize, value: &[u8]) {
    out[at..at + value.len()].copy_from_slice(value);
}

/// The `N` bytes at `at`.
pub(crate) fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(take(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

/// Whether all bytes in the range are zero.
pub(crate) fn zero(bytes: &[u8], start: usize, end: usize) -> bool {
    bytes[start..end].iter().all(|&byte| byte == 0)
}
