//! The hash in the boot header: over the hashes of pieces, so that the bootstrap can hash two at a
//! time, and so that pieces of the embedded runtime, most of the enclave, need no hashing when a
//! container starts. Pieces end where addresses are multiples of their length, so that what is left
//! out of a program does not move those behind it.

use bulla_abi::boot::HASH_PIECE;
use bytes::Bytes;
use sha2::{Digest, Sha256};

/// A program's pieces whose hashes are known: what stands in the file where it stands in memory.
#[derive(Clone, Copy)]
pub(crate) struct Known<'a> {
    pub file: &'a [u8],
    /// SHA-256 of every whole piece of the file.
    pub hashes: &'a [[u8; 32]],
}

impl Known<'_> {
    const NONE: Known<'static> = Known {
        file: &[],
        hashes: &[],
    };

    /// The hash of a piece that lies `offset` bytes into the program, if it is the file's.
    fn find(&self, offset: u64, parts: &[&[u8]]) -> Option<[u8; 32]> {
        let hash = self.hashes.get((offset / HASH_PIECE) as usize)?;
        let mut file = self.file.get(offset as usize..)?;
        let whole: usize = parts.iter().map(|part| part.len()).sum();
        let equal = whole as u64 == HASH_PIECE
            && offset.is_multiple_of(HASH_PIECE)
            && parts.iter().all(|part| {
                let next = file.split_off(..part.len());
                // Mostly it is the file itself, which need not be read for that.
                next.is_some_and(|next| std::ptr::eq(next, *part) || next == *part)
            });
        equal.then_some(*hash)
    }
}

/// Hashes consecutive memory, piece by piece, into the hash of everything.
pub(crate) struct Pieces<'a> {
    known: Known<'a>,
    /// Where the program with the known pieces starts.
    start: u64,
    outer: Sha256,
    /// Memory that is not hashed yet: its address, and its content.
    address: u64,
    waiting: Vec<Bytes>,
}

impl<'a> Pieces<'a> {
    /// `start` is the address of the program that `known` speaks of.
    pub(crate) fn new(known: Option<Known<'a>>, start: u64) -> Pieces<'a> {
        Pieces {
            known: known.unwrap_or(Known::NONE),
            start,
            outer: Sha256::new(),
            address: 0,
            waiting: Vec::new(),
        }
    }

    /// Adds content at an address: a new range if it is not where the last one ended.
    pub(crate) fn add(&mut self, address: u64, content: &Bytes) {
        let waiting: u64 = self.waiting.iter().map(|part| part.len() as u64).sum();
        if self.waiting.is_empty() || self.address + waiting != address {
            self.end_range();
            self.address = address;
        }
        self.waiting.push(content.clone());
    }

    fn end_range(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let mut parts = waiting.iter().map(|part| &part[..]);
        let mut rest: &[u8] = &[];
        loop {
            let mut piece = Vec::with_capacity(2);
            let len = (HASH_PIECE - self.address % HASH_PIECE) as usize;
            let mut room = len;
            while room > 0 {
                if rest.is_empty() {
                    let Some(next) = parts.next() else { break };
                    rest = next;
                }
                let (taken, left) = rest.split_at(rest.len().min(room));
                piece.push(taken);
                room -= taken.len();
                rest = left;
            }
            if piece.is_empty() {
                return;
            }
            let offset = self.address.wrapping_sub(self.start);
            let hash = self.known.find(offset, &piece).unwrap_or_else(|| {
                let mut hash = Sha256::new();
                piece.iter().for_each(|part| hash.update(part));
                hash.finalize().into()
            });
            self.outer.update(hash);
            self.address += (len - room) as u64;
        }
    }

    pub(crate) fn finish(mut self) -> [u8; 32] {
        self.end_range();
        self.outer.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = HASH_PIECE as usize;

    fn plainly(ranges: &[(u64, &[u8])]) -> [u8; 32] {
        let mut outer = Sha256::new();
        for (address, range) in ranges {
            let first = PIECE - *address as usize % PIECE;
            let (first, rest) = range.split_at(first.min(range.len()));
            for piece in std::iter::once(first).chain(rest.chunks(PIECE)) {
                outer.update(Sha256::digest(piece));
            }
        }
        outer.finalize().into()
    }

    #[test]
    fn pieces_go_on_over_parts_of_one_range_and_end_with_it() {
        let bytes: Vec<u8> = (0..3 * PIECE + 100).map(|n| (n / 7) as u8).collect();
        let part = |range: std::ops::Range<usize>| Bytes::copy_from_slice(&bytes[range]);
        let mut pieces = Pieces::new(None, 0);
        pieces.add(0x1000, &part(0..PIECE / 2));
        pieces.add(0x1000 + PIECE as u64 / 2, &part(PIECE / 2..2 * PIECE + 50));
        pieces.add(0x9000_0000, &part(2 * PIECE + 50..bytes.len()));
        let (first, second) = bytes.split_at(2 * PIECE + 50);
        let ranges = [(0x1000, first), (0x9000_0000, second)];
        assert_eq!(pieces.finish(), plainly(&ranges));
    }

    #[test]
    fn known_hashes_are_used_only_for_what_they_are_of() {
        let file: Vec<u8> = (0..2 * PIECE + 9).map(|n| (n / 5) as u8).collect();
        let wrong = [[1; 32], [2; 32]];
        let known = Known {
            file: &file,
            hashes: &wrong,
        };
        let hash = |start, bytes: &[u8]| {
            let mut pieces = Pieces::new(Some(known), start);
            pieces.add(0x10_0000, &Bytes::copy_from_slice(bytes));
            pieces.finish()
        };
        let mut outer = Sha256::new();
        outer.update(wrong.concat());
        outer.update(Sha256::digest(&file[2 * PIECE..]));
        assert_eq!(hash(0x10_0000, &file), outer.finalize()[..]);
        // Elsewhere, or not the same: hashed.
        assert_eq!(
            hash(0xf_0000, &file[PIECE..][..PIECE]),
            Sha256::digest([2; 32])[..]
        );
        assert_eq!(hash(0, &file), plainly(&[(0x10_0000, &file)]));
        assert_eq!(hash(0xf_f000, &file), plainly(&[(0x10_0000, &file)]));
        let mut other = file.clone();
        other[PIECE - 1] ^= 1;
        other[PIECE] ^= 1;
        assert_eq!(hash(0x10_0000, &other), plainly(&[(0x10_0000, &other)]));
    }
}
