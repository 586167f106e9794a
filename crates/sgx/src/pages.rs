//! What enclaves are made of: SECS (SDM 35.7), TCS (35.8), SECINFO (35.11).

use crate::PAGE_SIZE;
use crate::attributes::Attributes;
use crate::bytes::{put, take, u16_at, u32_at, u64_at, zero};
use sgx_isa::PageType;

/// SGX enclave control structure. MRENCLAVE, MRSIGNER and the ISV fields are the CPU's to fill in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secs {
    /// Size of ELRANGE in bytes, a power of two.
    pub size: u64,
    /// First address of ELRANGE, a multiple of its size.
    pub base_addr: u64,
    /// Pages in one SSA frame.
    pub ssa_frame_size: u32,
    /// See [`crate::misc`].
    pub misc_select: u32,
    pub cet_leg_bitmap_offset: u64,
    pub cet_attributes: u8,
    pub attributes: Attributes,
    pub mrenclave: [u8; 32],
    pub mrsigner: [u8; 32],
    pub config_id: [u8; 64],
    pub isv_prod_id: u16,
    pub isv_svn: u16,
    pub config_svn: u16,
}

impl Secs {
    pub const SIZE: usize = PAGE_SIZE;

    /// All fields zero.
    pub const EMPTY: Secs = Secs {
        size: 0,
        base_addr: 0,
        ssa_frame_size: 0,
        misc_select: 0,
        cet_leg_bitmap_offset: 0,
        cet_attributes: 0,
        attributes: Attributes { flags: 0, xfrm: 0 },
        mrenclave: [0; 32],
        mrsigner: [0; 32],
        config_id: [0; 64],
        isv_prod_id: 0,
        isv_svn: 0,
        config_svn: 0,
    };

    /// The structure as ECREATE takes it.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        put(&mut out, 0, &self.size.to_le_bytes());
        put(&mut out, 8, &self.base_addr.to_le_bytes());
        put(&mut out, 16, &self.ssa_frame_size.to_le_bytes());
        put(&mut out, 20, &self.misc_select.to_le_bytes());
        put(&mut out, 24, &self.cet_leg_bitmap_offset.to_le_bytes());
        out[32] = self.cet_attributes;
        put(&mut out, 48, &self.attributes.to_bytes());
        put(&mut out, 64, &self.mrenclave);
        put(&mut out, 128, &self.mrsigner);
        put(&mut out, 192, &self.config_id);
        put(&mut out, 256, &self.isv_prod_id.to_le_bytes());
        put(&mut out, 258, &self.isv_svn.to_le_bytes());
        put(&mut out, 260, &self.config_svn.to_le_bytes());
        out
    }

    /// `None` when a reserved field is not zero, which ECREATE refuses.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let reserved = [(33, 48), (96, 128), (160, 192), (262, Self::SIZE)];
        if reserved
            .iter()
            .any(|&(start, end)| !zero(bytes, start, end))
        {
            return None;
        }
        Some(Self {
            size: u64_at(bytes, 0),
            base_addr: u64_at(bytes, 8),
            ssa_frame_size: u32_at(bytes, 16),
            misc_select: u32_at(bytes, 20),
            cet_leg_bitmap_offset: u64_at(bytes, 24),
            cet_attributes: bytes[32],
            attributes: Attributes::from_bytes(&take(bytes, 48)),
            mrenclave: take(bytes, 64),
            mrsigner: take(bytes, 128),
            config_id: take(bytes, 192),
            isv_prod_id: u16_at(bytes, 256),
            isv_svn: u16_at(bytes, 258),
            config_svn: u16_at(bytes, 260),
        })
    }
}

/// Thread control structure. All addresses are offsets from the enclave's base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcs {
    /// Bit 0 DBGOPTIN (set only by a debugger), bit 1 AEXNOTIFY.
    pub flags: u64,
    /// Where the SSA frames start.
    pub ossa: u64,
    /// The current SSA frame.
    pub cssa: u32,
    /// Number of SSA frames.
    pub nssa: u32,
    /// Entry point.
    pub oentry: u64,
    /// FS and GS bases on entry.
    pub ofs_base: u64,
    pub ogs_base: u64,
    /// Segment limits, for 32-bit enclaves; the low 12 bits must be set.
    pub fs_limit: u32,
    pub gs_limit: u32,
}

impl Tcs {
    pub const SIZE: usize = PAGE_SIZE;

    /// The page as EADD takes it.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        put(&mut out, 8, &self.flags.to_le_bytes());
        put(&mut out, 16, &self.ossa.to_le_bytes());
        put(&mut out, 24, &self.cssa.to_le_bytes());
        put(&mut out, 28, &self.nssa.to_le_bytes());
        put(&mut out, 32, &self.oentry.to_le_bytes());
        put(&mut out, 48, &self.ofs_base.to_le_bytes());
        put(&mut out, 56, &self.ogs_base.to_le_bytes());
        put(&mut out, 64, &self.fs_limit.to_le_bytes());
        put(&mut out, 68, &self.gs_limit.to_le_bytes());
        out
    }

    /// `None` when a reserved field is not zero, which EADD refuses.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        if !zero(bytes, 0, 8) || !zero(bytes, 40, 48) || !zero(bytes, 72, Self::SIZE) {
            return None;
        }
        Some(Self {
            flags: u64_at(bytes, 8),
            ossa: u64_at(bytes, 16),
            cssa: u32_at(bytes, 24),
            nssa: u32_at(bytes, 28),
            oentry: u64_at(bytes, 32),
            ofs_base: u64_at(bytes, 48),
            ogs_base: u64_at(bytes, 56),
            fs_limit: u32_at(bytes, 64),
            gs_limit: u32_at(bytes, 68),
        })
    }
}

/// SECINFO.FLAGS: what a page is and who may access it. The other 56 bytes of SECINFO are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecInfo(pub u64);

impl SecInfo {
    pub const R: u64 = 1 << 0;
    pub const W: u64 = 1 << 1;
    pub const X: u64 = 1 << 2;
    pub const PENDING: u64 = 1 << 3;
    pub const MODIFIED: u64 = 1 << 4;
    pub const PR: u64 = 1 << 5;
    /// Bytes of the whole structure.
    pub const SIZE: usize = 64;

    /// A regular page with these permissions (bits R, W and X).
    pub const fn regular(permissions: u64) -> Self {
        Self((permissions & 7) | ((PageType::Reg as u64) << 8))
    }

    /// A TCS page. EADD clears its permissions before it measures them.
    pub const fn tcs() -> Self {
        Self((PageType::Tcs as u64) << 8)
    }

    /// R, W and X only.
    pub const fn permissions(self) -> u64 {
        self.0 & 7
    }

    /// The number of the page type, see [`PageType`].
    pub const fn page_type(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Whether this is a TCS page.
    pub const fn is_tcs(self) -> bool {
        self.page_type() == PageType::Tcs as u8
    }

    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        put(&mut out, 0, &self.0.to_le_bytes());
        out
    }

    /// `None` when a reserved field is not zero.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let flags = u64_at(bytes, 0);
        (zero(bytes, 8, 64) && flags & !0xff3f == 0).then_some(Self(flags))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secs_layout_is_the_one_of_sgx_isa() {
        let ours = Secs {
            size: 1 << 40,
            base_addr: 0x1234_5000,
            ssa_frame_size: 4,
            misc_select: 1,
            cet_leg_bitmap_offset: 0,
            cet_attributes: 0,
            attributes: Attributes {
                flags: 0x84,
                xfrm: 7,
            },
            mrenclave: [1; 32],
            mrsigner: [2; 32],
            config_id: [3; 64],
            isv_prod_id: 0x1234,
            isv_svn: 0x5678,
            config_svn: 0x9abc,
        };
        let bytes = ours.to_bytes();
        let theirs = sgx_isa::Secs::try_copy_from(&bytes).unwrap();
        assert_eq!(theirs.size, ours.size);
        assert_eq!(theirs.baseaddr, ours.base_addr);
        assert_eq!(theirs.ssaframesize, 4);
        assert_eq!(theirs.miscselect.bits(), 1);
        assert_eq!(theirs.attributes.flags.bits(), 0x84);
        assert_eq!(theirs.attributes.xfrm, 7);
        assert_eq!(theirs.mrenclave, [1; 32]);
        assert_eq!(theirs.mrsigner, [2; 32]);
        assert_eq!((theirs.isvprodid, theirs.isvsvn), (0x1234, 0x5678));
        assert_eq!(Secs::from_bytes(&bytes), Some(ours));
        let mut bad = bytes;
        bad[4095] = 1;
        assert_eq!(Secs::from_bytes(&bad), None);
    }

    #[test]
    fn tcs_layout_is_the_one_of_sgx_isa() {
        let ours = Tcs {
            flags: 0,
            ossa: 0x2000,
            cssa: 0,
            nssa: 3,
            oentry: 0x1111,
            ofs_base: 0x2222,
            ogs_base: 0x3333,
            fs_limit: 0xfff,
            gs_limit: 0x1fff,
        };
        let bytes = ours.to_bytes();
        let theirs = sgx_isa::Tcs::try_copy_from(&bytes).unwrap();
        assert_eq!(
            (theirs.ossa, theirs.nssa, theirs.oentry),
            (0x2000, 3, 0x1111)
        );
        assert_eq!((theirs.ofsbasgx, theirs.ogsbasgx), (0x2222, 0x3333));
        assert_eq!((theirs.fslimit, theirs.gslimit), (0xfff, 0x1fff));
        assert_eq!(Tcs::from_bytes(&bytes), Some(ours));
    }

    #[test]
    fn secinfo_refuses_reserved_bits() {
        let info = SecInfo::regular(SecInfo::R | SecInfo::X);
        assert_eq!(info.0, 0x205);
        assert_eq!(SecInfo::tcs().0, 0x100);
        assert_eq!(SecInfo::from_bytes(&info.to_bytes()), Some(info));
        assert_eq!(SecInfo::from_bytes(&SecInfo(0x40).to_bytes()), None);
    }
}
