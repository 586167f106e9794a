//! SIGSTRUCT (SDM 35.14): what the signer says about an enclave. 1808 bytes.

use crate::attributes::Attributes;
use crate::bytes::{put, take, u16_at, u32_at, zero};
use sgx_isa::{SIGSTRUCT_HEADER1, SIGSTRUCT_HEADER2};

/// The signed description of an enclave. Numbers of the key are little endian, as in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigStruct {
    /// 0, or 0x8086 for Intel's own.
    pub vendor: u32,
    /// Build date as binary coded decimal: 0xYYYYMMDD.
    pub date: u32,
    pub sw_defined: u32,
    pub modulus: [u8; 384],
    /// Always 3.
    pub exponent: u32,
    pub signature: [u8; 384],
    pub misc_select: u32,
    /// Bits of MISCSELECT that EINIT compares.
    pub misc_mask: u32,
    pub cet_attributes: u8,
    pub cet_attributes_mask: u8,
    pub isv_family_id: [u8; 16],
    pub attributes: Attributes,
    /// Bits of ATTRIBUTES that EINIT compares.
    pub attribute_mask: Attributes,
    /// MRENCLAVE.
    pub enclave_hash: [u8; 32],
    pub isv_ext_prod_id: [u8; 16],
    pub isv_prod_id: u16,
    pub isv_svn: u16,
    /// Quotients that save the CPU a division, see [`crate::quotients`].
    pub q1: [u8; 384],
    pub q2: [u8; 384],
}

impl SigStruct {
    pub const SIZE: usize = 1808;
    /// Bytes of [`SigStruct::signed_bytes`].
    pub const SIGNED_SIZE: usize = 256;

    /// A structure that describes nothing and is not signed.
    pub const EMPTY: SigStruct = SigStruct {
        vendor: 0,
        date: 0,
        sw_defined: 0,
        modulus: [0; 384],
        exponent: 3,
        signature: [0; 384],
        misc_select: 0,
        misc_mask: 0,
        cet_attributes: 0,
        cet_attributes_mask: 0,
        isv_family_id: [0; 16],
        attributes: Attributes { flags: 0, xfrm: 0 },
        attribute_mask: Attributes { flags: 0, xfrm: 0 },
        enclave_hash: [0; 32],
        isv_ext_prod_id: [0; 16],
        isv_prod_id: 0,
        isv_svn: 0,
        q1: [0; 384],
        q2: [0; 384],
    };

    /// The structure as EINIT takes it.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        put(&mut out, 0, &SIGSTRUCT_HEADER1);
        put(&mut out, 16, &self.vendor.to_le_bytes());
        put(&mut out, 20, &self.date.to_le_bytes());
        put(&mut out, 24, &SIGSTRUCT_HEADER2);
        put(&mut out, 40, &self.sw_defined.to_le_bytes());
        put(&mut out, 128, &self.modulus);
        put(&mut out, 512, &self.exponent.to_le_bytes());
        put(&mut out, 516, &self.signature);
        put(&mut out, 900, &self.misc_select.to_le_bytes());
        put(&mut out, 904, &self.misc_mask.to_le_bytes());
        out[908] = self.cet_attributes;
        out[909] = self.cet_attributes_mask;
        put(&mut out, 912, &self.isv_family_id);
        put(&mut out, 928, &self.attributes.to_bytes());
        put(&mut out, 944, &self.attribute_mask.to_bytes());
        put(&mut out, 960, &self.enclave_hash);
        put(&mut out, 1008, &self.isv_ext_prod_id);
        put(&mut out, 1024, &self.isv_prod_id.to_le_bytes());
        put(&mut out, 1026, &self.isv_svn.to_le_bytes());
        put(&mut out, 1040, &self.q1);
        put(&mut out, 1424, &self.q2);
        out
    }

    /// `None` when a header or a reserved field is not as EINIT demands.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let reserved = [(44, 128), (910, 912), (992, 1008), (1028, 1040)];
        if bytes[..16] != SIGSTRUCT_HEADER1
            || bytes[24..40] != SIGSTRUCT_HEADER2
            || reserved
                .iter()
                .any(|&(start, end)| !zero(bytes, start, end))
        {
            return None;
        }
        Some(Self {
            vendor: u32_at(bytes, 16),
            date: u32_at(bytes, 20),
            sw_defined: u32_at(bytes, 40),
            modulus: take(bytes, 128),
            exponent: u32_at(bytes, 512),
            signature: take(bytes, 516),
            misc_select: u32_at(bytes, 900),
            misc_mask: u32_at(bytes, 904),
            cet_attributes: bytes[908],
            cet_attributes_mask: bytes[909],
            isv_family_id: take(bytes, 912),
            attributes: Attributes::from_bytes(&take(bytes, 928)),
            attribute_mask: Attributes::from_bytes(&take(bytes, 944)),
            enclave_hash: take(bytes, 960),
            isv_ext_prod_id: take(bytes, 1008),
            isv_prod_id: u16_at(bytes, 1024),
            isv_svn: u16_at(bytes, 1026),
            q1: take(bytes, 1040),
            q2: take(bytes, 1424),
        })
    }

    /// The bytes that the signature covers: all but the key, the signature, the quotients and
    /// 12 reserved bytes. Two-step signing hands these out.
    pub fn signed_bytes(&self) -> [u8; Self::SIGNED_SIZE] {
        let bytes = self.to_bytes();
        let mut out = [0; Self::SIGNED_SIZE];
        out[..128].copy_from_slice(&bytes[..128]);
        out[128..].copy_from_slice(&bytes[900..1028]);
        out
    }

    /// Whether EINIT accepts these attributes and this MISCSELECT for this signature.
    pub fn allows(&self, attributes: &Attributes, misc_select: u32) -> bool {
        attributes.masked(&self.attribute_mask) == self.attributes.masked(&self.attribute_mask)
            && misc_select & self.misc_mask == self.misc_select & self.misc_mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_one_of_sgx_isa() {
        let ours = SigStruct {
            vendor: 1,
            date: 0x2026_1123,
            sw_defined: 2,
            modulus: [3; 384],
            signature: [4; 384],
            misc_select: 1,
            misc_mask: 0xffff_fffe,
            isv_family_id: [5; 16],
            attributes: Attributes {
                flags: 0x84,
                xfrm: 7,
            },
            attribute_mask: Attributes { flags: 8, xfrm: 9 },
            enclave_hash: [6; 32],
            isv_ext_prod_id: [7; 16],
            isv_prod_id: 8,
            isv_svn: 9,
            q1: [10; 384],
            q2: [11; 384],
            ..SigStruct::EMPTY
        };
        let bytes = ours.to_bytes();
        let theirs = sgx_isa::Sigstruct::try_copy_from(&bytes).unwrap();
        assert_eq!(
            (theirs.vendor, theirs.date, theirs.swdefined),
            (1, 0x2026_1123, 2)
        );
        assert_eq!(theirs.modulus, [3; 384]);
        assert_eq!(theirs.exponent, 3);
        assert_eq!(theirs.signature, [4; 384]);
        assert_eq!(
            (theirs.miscselect.bits(), theirs.miscmask),
            (1, 0xffff_fffe)
        );
        assert_eq!(theirs.isvfamilyid, [5; 16]);
        assert_eq!(theirs.attributes.flags.bits(), 0x84);
        assert_eq!(theirs.attributemask, [8, 9]);
        assert_eq!(theirs.enclavehash, [6; 32]);
        assert_eq!(theirs.isvextprodid, [7; 16]);
        assert_eq!((theirs.isvprodid, theirs.isvsvn), (8, 9));
        assert_eq!((theirs.q1, theirs.q2), ([10; 384], [11; 384]));
        let (first, second) = theirs.signature_data();
        assert_eq!(ours.signed_bytes(), *[first, second].concat());
        assert_eq!(SigStruct::from_bytes(&bytes), Some(ours));
        let mut bad = bytes;
        bad[1030] = 1;
        assert_eq!(SigStruct::from_bytes(&bad), None);
    }
}
