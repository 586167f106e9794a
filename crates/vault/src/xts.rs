//! The cipher of confidential images: AES-256-XTS (IEEE 1619) over blocks of 4096 bytes, the tweak
//! being the block's number. It lies under the hash tree, which is made of the encrypted blocks:
//! integrity is the tree's, secrecy the cipher's.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "chunks of known size, and arithmetic in a Galois field"
)]

use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::{Block as CipherBlock, BlockDecrypt, BlockEncrypt, KeyInit};

type Block = CipherBlock<Aes256>;

/// Bytes of a block of the cipher.
const UNIT: usize = 16;
/// Blocks given to the CPU at once, as many as its pipeline holds.
const LANES: usize = 8;

/// Encrypts and decrypts blocks of an image.
pub struct ImageCipher {
    data: Aes256,
    tweak: Aes256,
}

impl ImageCipher {
    /// The cipher of an image's key. XTS needs two keys; both come from the one.
    pub fn new(hash: &dyn Fn(&[&[u8]]) -> [u8; 32], key: &[u8; 32]) -> ImageCipher {
        ImageCipher::of_keys(
            &hash(&[b"bulla image data", key]),
            &hash(&[b"bulla image tweak", key]),
        )
    }

    fn of_keys(data: &[u8; 32], tweak: &[u8; 32]) -> ImageCipher {
        ImageCipher {
            data: Aes256::new(&(*data).into()),
            tweak: Aes256::new(&(*tweak).into()),
        }
    }

    /// What the configuration says of a key, so that a wrong one is told from a changed image.
    pub fn check(hash: &dyn Fn(&[&[u8]]) -> [u8; 32], key: &[u8; 32]) -> [u8; 32] {
        hash(&[b"bulla image key check", key])
    }

    /// Encrypts block `number` in place; a multiple of 16 bytes.
    pub fn encrypt(&self, number: u64, bytes: &mut [u8]) {
        self.run(number, bytes, |blocks| self.data.encrypt_blocks(blocks));
    }

    /// Decrypts block `number` in place.
    pub fn decrypt(&self, number: u64, bytes: &mut [u8]) {
        self.run(number, bytes, |blocks| self.data.decrypt_blocks(blocks));
    }

    fn run(&self, number: u64, bytes: &mut [u8], cipher: impl Fn(&mut [Block])) {
        let mut first = Block::from(u128::from(number).to_le_bytes());
        self.tweak.encrypt_block(&mut first);
        let mut tweak = u128::from_le_bytes(first.into());
        for group in bytes.chunks_mut(UNIT * LANES) {
            let mut tweaks = [0u128; LANES];
            let mut blocks = [Block::default(); LANES];
            let count = group.len() / UNIT;
            for (at, part) in group.chunks_exact(UNIT).enumerate() {
                tweaks[at] = tweak;
                blocks[at] = xor(part, tweak);
                tweak = double(tweak);
            }
            cipher(&mut blocks[..count]);
            for (at, part) in group.chunks_exact_mut(UNIT).enumerate() {
                part.copy_from_slice(&xor(&blocks[at], tweaks[at]));
            }
        }
    }
}

fn xor(bytes: &[u8], tweak: u128) -> Block {
    let mut block = [0; UNIT];
    block.copy_from_slice(bytes);
    (u128::from_le_bytes(block) ^ tweak).to_le_bytes().into()
}

/// Times x in GF(2^128), with the polynomial of IEEE 1619.
fn double(tweak: u128) -> u128 {
    (tweak << 1) ^ ((tweak >> 127) * 0x87)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> std::vec::Vec<u8> {
        let pairs = text.as_bytes().chunks(2);
        let byte = |pair: &[u8]| u8::from_str_radix(core::str::from_utf8(pair).unwrap(), 16);
        pairs.map(|pair| byte(pair).unwrap()).collect()
    }

    /// IEEE 1619-2007, vector 10.
    #[test]
    fn the_standards_vector() {
        let data = hex("2718281828459045235360287471352662497757247093699959574966967627");
        let tweak = hex("3141592653589793238462643383279502884197169399375105820974944592");
        let cipher = ImageCipher::of_keys(&data.try_into().unwrap(), &tweak.try_into().unwrap());
        let plain: std::vec::Vec<u8> = (0..512).map(|at| at as u8).collect();
        let mut bytes = plain.clone();
        cipher.encrypt(0xff, &mut bytes);
        let expected = "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b\
                        5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd";
        assert_eq!(bytes[..64], hex(expected)[..]);
        cipher.decrypt(0xff, &mut bytes);
        assert_eq!(bytes, plain);
    }
}
