//! Verification of SIGSTRUCT as EINIT does it (SDM 36.1.3, 37.3 EINIT): RSA-3072 with exponent 3,
//! PKCS #1 v1.5 with SHA-256, by way of the quotients q1 and q2.

use crate::sigstruct::SigStruct;
use core::fmt;
use crypto_bigint::{NonZero, U3072, U6144};
use sha2::{Digest, Sha256};

/// Why a SIGSTRUCT is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureError {
    /// The exponent is not 3.
    Exponent,
    /// The modulus does not have 3072 bits, is even, or is not greater than the signature.
    Modulus,
    /// q1 or q2 is not what the signature and the modulus give.
    Quotients,
    /// The signature is not one of these bytes by this key.
    Signature,
}

impl fmt::Display for SignatureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exponent => "the public exponent of the signing key is not 3",
            Self::Modulus => "the signing key's modulus is not a proper 3072-bit one",
            Self::Quotients => "q1 and q2 do not belong to this signature; sign again",
            Self::Signature => "the signature does not match the enclave's description; sign again",
        })
    }
}

impl core::error::Error for SignatureError {}

/// signature³ mod modulus together with the quotients q1 = ⌊s² / n⌋ and
/// q2 = ⌊(s² mod n) · s / n⌋. Everything little endian. `None` for an improper modulus.
pub fn quotients(
    signature: &[u8; 384],
    modulus: &[u8; 384],
) -> Option<([u8; 384], [u8; 384], [u8; 384])> {
    // An RSA-3072 modulus has its highest and its lowest bit set.
    if modulus[383] & 0x80 == 0 || modulus[0] & 1 == 0 {
        return None;
    }
    let s = U3072::from_le_slice(signature);
    let n = U3072::from_le_slice(modulus);
    if s >= n {
        return None;
    }
    let n = NonZero::new(n).into_option()?;
    let square: U6144 = s.concatenating_mul(&s);
    let (q1, rest) = square.div_rem_vartime(&n);
    let cube: U6144 = rest.concatenating_mul(&s);
    let (q2, message) = cube.div_rem_vartime(&n);
    // s < n, so both quotients are below n and fit.
    let low = |wide: U6144| little_endian(&wide.resize());
    Some((low(q1), low(q2), little_endian(&message)))
}

fn little_endian(number: &U3072) -> [u8; 384] {
    let mut out = [0; 384];
    out.copy_from_slice(number.to_le_bytes().as_ref());
    out
}

/// The PKCS #1 v1.5 encoding of a SHA-256 digest for a 3072-bit key, little endian.
fn encoded_digest(digest: &[u8; 32]) -> [u8; 384] {
    // DigestInfo for SHA-256, RFC 8017 section 9.2 note 1.
    const DIGEST_INFO: [u8; 19] = [
        0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01,
        0x05, 0x00, 0x04, 0x20,
    ];
    let mut out = [0xff; 384];
    out[0] = 0;
    out[1] = 1;
    out[384 - 52] = 0;
    out[384 - 51..384 - 32].copy_from_slice(&DIGEST_INFO);
    out[384 - 32..].copy_from_slice(digest);
    out.reverse();
    out
}

impl SigStruct {
    /// Checks the signature and the quotients, as EINIT does. Says nothing about who signed.
    pub fn verify(&self) -> Result<(), SignatureError> {
        if self.exponent != 3 {
            return Err(SignatureError::Exponent);
        }
        let (q1, q2, message) =
            quotients(&self.signature, &self.modulus).ok_or(SignatureError::Modulus)?;
        if message != encoded_digest(&Sha256::digest(self.signed_bytes()).into()) {
            return Err(SignatureError::Signature);
        }
        if q1 != self.q1 || q2 != self.q2 {
            return Err(SignatureError::Quotients);
        }
        Ok(())
    }

    /// MRSIGNER: SHA-256 of the modulus.
    pub fn mrsigner(&self) -> [u8; 32] {
        Sha256::digest(self.modulus).into()
    }
}
