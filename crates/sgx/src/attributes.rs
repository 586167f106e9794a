//! ATTRIBUTES and MISCSELECT (SDM 35.7.1, 35.7.2). Unknown bits are kept: a verifier must see them.

use crate::bytes::u64_at;

/// Bits of [`Attributes::flags`].
pub mod flags {
    /// Set by EINIT.
    pub const INIT: u64 = 1 << 0;
    /// The host may read and write the enclave with EDBGRD and EDBGWR.
    pub const DEBUG: u64 = 1 << 1;
    pub const MODE64BIT: u64 = 1 << 2;
    /// Access to the provisioning key. Bulla never asks for it.
    pub const PROVISION_KEY: u64 = 1 << 4;
    pub const EINITTOKEN_KEY: u64 = 1 << 5;
    pub const CET: u64 = 1 << 6;
    /// Key separation and sharing: CONFIGID, ISVEXTPRODID, ISVFAMILYID, CONFIGSVN.
    pub const KSS: u64 = 1 << 7;
    pub const AEX_NOTIFY: u64 = 1 << 10;
}

/// Bits of MISCSELECT.
pub mod misc {
    /// Page faults and general protection faults report their address in the SSA.
    pub const EXINFO: u32 = 1 << 0;
}

/// Bits of [`Attributes::xfrm`], as in XCR0.
pub mod xfrm {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
    /// Opmask, the upper halves of ZMM0–15, and ZMM16–31; they come together.
    pub const AVX512: u64 = 0b111 << 5;
    /// What no enclave may be without.
    pub const LEGACY: u64 = X87 | SSE;
    /// What Bulla's enclaves use where the CPU has it, and do without elsewhere.
    pub const OPTIONAL: u64 = AVX | AVX512;

    /// The most of `wanted` that a CPU with the components `offered` takes: AVX-512's come
    /// together, and only with AVX.
    pub const fn most(wanted: u64, offered: u64) -> u64 {
        let both = wanted & offered;
        let has_avx512 = both & AVX512 == AVX512 && both & AVX != 0;
        if has_avx512 { both } else { both & !AVX512 }
    }
}

/// ATTRIBUTES: 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// See [`flags`].
    pub flags: u64,
    /// Which extended state the enclave may use, see [`xfrm`].
    pub xfrm: u64,
}

impl Attributes {
    pub const SIZE: usize = 16;

    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[..8].copy_from_slice(&self.flags.to_le_bytes());
        out[8..].copy_from_slice(&self.xfrm.to_le_bytes());
        out
    }

    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            flags: u64_at(bytes, 0),
            xfrm: u64_at(bytes, 8),
        }
    }

    /// Field by field AND, as masks are applied.
    pub fn masked(&self, mask: &Attributes) -> Attributes {
        Attributes {
            flags: self.flags & mask.flags,
            xfrm: self.xfrm & mask.xfrm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::xfrm::most;

    #[test]
    fn extended_state_is_what_both_sides_have() {
        for (wanted, offered, expected) in [
            (0xe7, 0xe7, 0xe7),
            (0xe7, 7, 7),
            (0xe7, 3, 3),
            (7, 0xe7, 7),
            // Neither a part of AVX-512 nor AVX-512 without AVX.
            (0xe7, 0x67, 7),
            (0xe7, 0xe3, 3),
            (0xe7, 0x602e7, 0xe7),
        ] {
            assert_eq!(
                most(wanted, offered),
                expected,
                "{wanted:#x} of {offered:#x}"
            );
        }
    }
}
