//! SHA-256 without CPUID: whether SHA-NI is there is told by the host. A lie makes the CPU fault
//! and the enclave stop; it cannot change a result.

use bulla_abi::hostcall::features;
use core::arch::x86_64::*;

const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

#[repr(align(16))]
struct RoundConstants([u32; 64]);

/// FIPS 180-4, section 4.2.2.
static K: RoundConstants = RoundConstants([
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
]);

/// An incremental hash.
pub struct Sha256 {
    state: [u32; 8],
    block: [u8; 64],
    filled: usize,
    total: u64,
    hardware: bool,
}

impl Sha256 {
    /// `hints` are bits of [`features`].
    pub fn new(hints: u64) -> Sha256 {
        let hardware = hints & features::SHA != 0;
        Sha256 {
            state: INITIAL,
            block: [0; 64],
            filled: 0,
            total: 0,
            hardware,
        }
    }

    pub fn update(&mut self, mut bytes: &[u8]) {
        self.total = self.total.wrapping_add(bytes.len() as u64);
        if self.filled > 0 {
            let take = bytes.len().min(64 - self.filled);
            self.block[self.filled..self.filled + take].copy_from_slice(&bytes[..take]);
            self.filled += take;
            bytes = &bytes[take..];
            if self.filled < 64 {
                return;
            }
            let block = self.block;
            self.compress(&block);
            self.filled = 0;
        }
        let whole = bytes.len() & !63;
        self.compress(&bytes[..whole]);
        let rest = &bytes[whole..];
        self.block[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    pub fn finish(mut self) -> [u8; 32] {
        let bits = self.total.wrapping_mul(8);
        let mut padding = [0u8; 72];
        padding[0] = 0x80;
        let len = if self.filled < 56 {
            56 - self.filled
        } else {
            120 - self.filled
        };
        padding[len..len + 8].copy_from_slice(&bits.to_be_bytes());
        self.update(&padding[..len + 8]);
        let mut out = [0; 32];
        for (bytes, word) in out.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        out
    }

    /// `blocks.len()` is a multiple of 64.
    fn compress(&mut self, blocks: &[u8]) {
        if self.hardware {
            // SAFETY: the host says that SHA-NI is there; if not, the CPU raises #UD, which ends
            // the enclave.
            unsafe { compress_sha_ni([&mut self.state], [blocks]) };
        } else {
            for block in blocks.chunks_exact(64) {
                let mut copy = [0u8; 64];
                copy.copy_from_slice(block);
                sha2::compress256(&mut self.state, &[copy.into()]);
            }
        }
    }
}

/// SHA-256 of `prefix` and `a`, and of `prefix` and `b`.
pub fn pair(hints: u64, prefix: &[u8; 32], [a, b]: [&[u8]; 2]) -> [[u8; 32]; 2] {
    let mut both = [Sha256::new(hints), Sha256::new(hints)];
    if a.len() >= 32 && b.len() >= 32 {
        let first = [a, b].map(|bytes| {
            let mut block = [0; 64];
            block[..32].copy_from_slice(prefix);
            block[32..].copy_from_slice(&bytes[..32]);
            block
        });
        update_both(&mut both, [&first[0], &first[1]]);
        update_both(&mut both, [&a[32..], &b[32..]]);
    } else {
        both.iter_mut().for_each(|hash| hash.update(prefix));
        update_both(&mut both, [a, b]);
    }
    both.map(Sha256::finish)
}

/// SHA-256 of the SHA-256 of all pieces of `ranges` (address and content): each range is cut where
/// addresses are multiples of `len`.
pub fn of_pieces<'a>(
    hints: u64,
    ranges: impl IntoIterator<Item = (u64, &'a [u8])>,
    len: usize,
) -> [u8; 32] {
    let mut outer = Sha256::new(hints);
    let mut pieces = ranges.into_iter().flat_map(|(address, range)| {
        let first = len - (address % len as u64) as usize;
        let (first, rest) = range.split_at(first.min(range.len()));
        // Of an empty range there is no piece.
        first.chunks(len).chain(rest.chunks(len))
    });
    while let Some(first) = pieces.next() {
        let mut both = [Sha256::new(hints), Sha256::new(hints)];
        let second = pieces.next();
        update_both(&mut both, [first, second.unwrap_or(&[])]);
        let [first, other] = both.map(Sha256::finish);
        outer.update(&first);
        if second.is_some() {
            outer.update(&other);
        }
    }
    outer.finish()
}

/// Goes on with two hashes. Blocks of equal length are hashed at the same time: SHA256RNDS2 depends
/// on the one before it, so a single hash leaves the unit idle half of the time.
fn update_both(both: &mut [Sha256; 2], [mut a, mut b]: [&[u8]; 2]) {
    let [one, other] = both;
    if one.hardware && one.filled == 0 && other.filled == 0 {
        let whole = a.len().min(b.len()) & !63;
        let states = [&mut one.state, &mut other.state];
        // SAFETY: as in `Sha256::compress`.
        unsafe { compress_sha_ni(states, [&a[..whole], &b[..whole]]) };
        one.total += whole as u64;
        other.total += whole as u64;
        (a, b) = (&a[whole..], &b[whole..]);
    }
    one.update(a);
    other.update(b);
}

/// Four constants from the one with this number on.
#[inline(always)]
fn constants(at: usize) -> __m128i {
    let four = &K.0[at..at + 4];
    // SAFETY: 16 bytes; unaligned load.
    unsafe { _mm_loadu_si128(four.as_ptr().cast()) }
}

/// Four rounds of each hash, and, if more follow, the words that are needed sixteen rounds later.
macro_rules! four_rounds {
    ($abef:ident, $cdgh:ident, $w:ident, $quarter:expr, $group:literal, $more:literal) => {{
        let constants = constants($quarter * 16 + $group * 4);
        let sums: [__m128i; N] = core::array::from_fn(|n| _mm_add_epi32($w[n][$group], constants));
        for n in 0..N {
            $cdgh[n] = _mm_sha256rnds2_epu32($cdgh[n], $abef[n], sums[n]);
        }
        for n in 0..N {
            let sum = _mm_shuffle_epi32(sums[n], 0x0E);
            $abef[n] = _mm_sha256rnds2_epu32($abef[n], $cdgh[n], sum);
        }
        if $more {
            for w in &mut $w {
                let next = w[($group + 1) % 4];
                let last = w[($group + 3) % 4];
                let partial = _mm_sha256msg1_epu32(w[$group], next);
                let shifted = _mm_alignr_epi8(last, w[($group + 2) % 4], 4);
                w[$group] = _mm_sha256msg2_epu32(_mm_add_epi32(partial, shifted), last);
            }
        }
    }};
}

/// The compression function with the SHA extensions (SDM volume 2, SHA256RNDS2 and following), of `N`
/// independent hashes over the same number of blocks. All encodings are legacy SSE: the upper halves
/// of vector registers survive.
///
/// # Safety
/// The CPU has SHA, SSSE3 and SSE4.1.
#[target_feature(enable = "sha,ssse3,sse4.1")]
unsafe fn compress_sha_ni<const N: usize>(states: [&mut [u32; 8]; N], blocks: [&[u8]; N]) {
    let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let mut abef = [_mm_setzero_si128(); N];
    let mut cdgh = abef;
    for n in 0..N {
        // SAFETY: 32 bytes of the state, unaligned loads.
        let (low, high) = unsafe {
            let at = states[n].as_ptr().cast::<__m128i>();
            (_mm_loadu_si128(at), _mm_loadu_si128(at.add(1)))
        };
        // The instructions want {a,b,e,f} and {c,d,g,h}.
        let low = _mm_shuffle_epi32(low, 0xB1);
        let high = _mm_shuffle_epi32(high, 0x1B);
        abef[n] = _mm_alignr_epi8(low, high, 8);
        cdgh[n] = _mm_blend_epi16(high, low, 0xF0);
    }
    let len = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
    for start in (0..len & !63).step_by(64) {
        let before = (abef, cdgh);
        let mut w = [[_mm_setzero_si128(); 4]; N];
        for n in 0..N {
            for (index, words) in w[n].iter_mut().enumerate() {
                // SAFETY: 16 bytes of the 64 at `start`, which lie within the length of each of
                // the blocks; unaligned load.
                let loaded = unsafe {
                    let at = blocks[n].as_ptr().add(start + index * 16);
                    _mm_loadu_si128(at.cast())
                };
                *words = _mm_shuffle_epi8(loaded, swap);
            }
        }
        // Sixteen groups of four rounds. The words' places are constants, so that they stay in registers.
        for quarter in 0..3 {
            four_rounds!(abef, cdgh, w, quarter, 0, true);
            four_rounds!(abef, cdgh, w, quarter, 1, true);
            four_rounds!(abef, cdgh, w, quarter, 2, true);
            four_rounds!(abef, cdgh, w, quarter, 3, true);
        }
        four_rounds!(abef, cdgh, w, 3, 0, false);
        four_rounds!(abef, cdgh, w, 3, 1, false);
        four_rounds!(abef, cdgh, w, 3, 2, false);
        four_rounds!(abef, cdgh, w, 3, 3, false);
        for n in 0..N {
            abef[n] = _mm_add_epi32(abef[n], before.0[n]);
            cdgh[n] = _mm_add_epi32(cdgh[n], before.1[n]);
        }
    }
    for (n, state) in states.into_iter().enumerate() {
        let low = _mm_shuffle_epi32(abef[n], 0x1B);
        let high = _mm_shuffle_epi32(cdgh[n], 0xB1);
        // SAFETY: 32 bytes of the state, unaligned stores.
        unsafe {
            let at = state.as_mut_ptr().cast::<__m128i>();
            _mm_storeu_si128(at, _mm_blend_epi16(low, high, 0xF0));
            _mm_storeu_si128(at.add(1), _mm_alignr_epi8(high, low, 8));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(bytes: &[u8]) -> [u8; 32] {
        use sha2::Digest;
        sha2::Sha256::digest(bytes).into()
    }

    #[test]
    fn both_ways_agree_with_the_reference_for_every_length() {
        let data: [u8; 300] = core::array::from_fn(|index| (index * 7 + 3) as u8);
        let hardware = if std::is_x86_feature_detected!("sha") {
            features::SHA
        } else {
            0
        };
        for hints in [0, hardware] {
            for len in 0..data.len() {
                let mut hash = Sha256::new(hints);
                let (first, second) = data[..len].split_at(len / 3);
                hash.update(first);
                hash.update(second);
                assert_eq!(hash.finish(), reference(&data[..len]), "length {len}");
            }
        }
    }

    #[test]
    fn pairs_agree_with_the_reference_for_every_length() {
        let data: [u8; 600] = core::array::from_fn(|index| (index * 11 + 5) as u8);
        let prefix = [0xa5; 32];
        let expected = |bytes: &[u8]| reference(&[&prefix[..], bytes].concat());
        let hardware = match std::is_x86_feature_detected!("sha") {
            true => features::SHA,
            false => 0,
        };
        for hints in [0, hardware] {
            for len in 0..300 {
                let (a, b) = (&data[..len], &data[300..][..len]);
                assert_eq!(
                    pair(hints, &prefix, [a, b]),
                    [expected(a), expected(b)],
                    "length {len}"
                );
            }
            let (a, b) = (&data[..64], &data[64..]);
            assert_eq!(pair(hints, &prefix, [a, b]), [expected(a), expected(b)]);
        }
    }

    #[test]
    fn pieces_agree_with_the_reference_whatever_their_number() {
        let data: [u8; 900] = core::array::from_fn(|index| (index * 13 + 1) as u8);
        let hardware = match std::is_x86_feature_detected!("sha") {
            true => features::SHA,
            false => 0,
        };
        for hints in [0, hardware] {
            for first in [0, 1, 63, 128, 200, 300, 640] {
                let (a, b) = data.split_at(first);
                for start in [0, 1, 50, 127] {
                    let (head, rest) = b.split_at((128 - start).min(b.len()));
                    let pieces = a.chunks(128).chain([head]).chain(rest.chunks(128));
                    let expected: std::vec::Vec<u8> = pieces.flat_map(reference).collect();
                    let ranges = [(0x1000, a), (0x2000 + start as u64, b)];
                    assert_eq!(
                        of_pieces(hints, ranges, 128),
                        reference(&expected),
                        "{first} {start}"
                    );
                }
            }
        }
    }
}
