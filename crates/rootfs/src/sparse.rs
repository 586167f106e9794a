//! Chunks of zeros are not stored.

use crate::content::Content;
use crate::error::Result;

/// Files from this size on are searched for chunks of zeros.
pub(crate) const SPARSE_MIN: u64 = 1 << 20;
/// Smallest chunk: large enough that programs with a page of zeros stay one run.
pub(crate) const PIECE: u64 = 64 << 10;
/// Most entries of a chunk map (1 MiB); larger files get larger chunks.
const MAP_MAX: u64 = 1 << 18;
/// The format has five bits for it.
const CHUNK_BITS_MAX: u32 = 31;

/// Chunk size for a file, as a power of two of blocks.
pub(crate) fn chunk_bits(size: u64) -> u32 {
    let mut bits = (PIECE / crate::BLOCK).trailing_zeros();
    while size.div_ceil(crate::BLOCK << bits) > MAP_MAX && bits < CHUNK_BITS_MAX {
        bits += 1;
    }
    bits
}

/// Visits the pieces of a content in order: `None` for one of zeros only, else its bytes.
///
/// Whether a piece is zero depends on its bytes alone, holes only save reading them.
pub(crate) fn for_each_piece(
    content: &mut Content<'_>,
    size: u64,
    mut visit: impl FnMut(u64, Option<&[u8]>) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; PIECE as usize];
    let mut position = 0;
    while position < size {
        let length = PIECE.min(size - position);
        let piece = &mut buffer[..length as usize];
        if size >= SPARSE_MIN && content.is_hole(position, length) {
            visit(length, None)?;
        } else {
            content.read(position, piece)?;
            visit(length, (!is_zero(piece)).then_some(piece))?;
        }
        position += length;
    }
    Ok(())
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    rest.iter().all(|&byte| byte == 0)
        && words
            .iter()
            .all(|word| word.iter().fold(0, |sum, &byte| sum | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_maps_are_bounded() {
        assert_eq!(chunk_bits(SPARSE_MIN), 4);
        assert_eq!(chunk_bits(MAP_MAX * PIECE), 4);
        assert_eq!(chunk_bits(MAP_MAX * PIECE + 1), 5);
        assert_eq!(chunk_bits(i64::MAX as u64), 31);
    }

    #[test]
    fn zero_test_sees_every_byte() {
        let mut bytes = vec![0u8; 200];
        assert!(is_zero(&bytes));
        for at in 0..bytes.len() {
            bytes[at] = 1;
            assert!(!is_zero(&bytes));
            bytes[at] = 0;
        }
    }
}
