//! REPORT, TARGETINFO (SDM 35.15, 35.16) and KEYREQUEST (35.17).

use crate::attributes::Attributes;
use crate::bytes::{put, take, u16_at, u32_at, zero};

/// Bits of [`KeyRequest::key_policy`].
pub mod key_policy {
    pub const MRENCLAVE: u16 = 1 << 0;
    pub const MRSIGNER: u16 = 1 << 1;
    pub const NO_ISV_PROD_ID: u16 = 1 << 2;
    pub const CONFIG_ID: u16 = 1 << 3;
    pub const ISV_FAMILY_ID: u16 = 1 << 4;
    pub const ISV_EXT_PROD_ID: u16 = 1 << 5;
}

/// What EREPORT says about an enclave, for another enclave of the same machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub cpu_svn: [u8; 16],
    pub misc_select: u32,
    pub cet_attributes: u8,
    pub isv_ext_prod_id: [u8; 16],
    pub attributes: Attributes,
    pub mrenclave: [u8; 32],
    pub mrsigner: [u8; 32],
    pub config_id: [u8; 64],
    pub isv_prod_id: u16,
    pub isv_svn: u16,
    pub config_svn: u16,
    pub isv_family_id: [u8; 16],
    pub report_data: [u8; 64],
    /// What the report key was derived from.
    pub key_id: [u8; 32],
    /// AES-128-CMAC over the first [`Report::BODY_SIZE`] bytes.
    pub mac: [u8; 16],
}

impl Report {
    pub const SIZE: usize = 432;
    /// The part that is authenticated, and that a quote contains.
    pub const BODY_SIZE: usize = 384;

    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        put(&mut out, 0, &self.cpu_svn);
        put(&mut out, 16, &self.misc_select.to_le_bytes());
        out[20] = self.cet_attributes;
        put(&mut out, 32, &self.isv_ext_prod_id);
        put(&mut out, 48, &self.attributes.to_bytes());
        put(&mut out, 64, &self.mrenclave);
        put(&mut out, 128, &self.mrsigner);
        put(&mut out, 192, &self.config_id);
        put(&mut out, 256, &self.isv_prod_id.to_le_bytes());
        put(&mut out, 258, &self.isv_svn.to_le_bytes());
        put(&mut out, 260, &self.config_svn.to_le_bytes());
        put(&mut out, 304, &self.isv_family_id);
        put(&mut out, 320, &self.report_data);
        put(&mut out, 384, &self.key_id);
        put(&mut out, 416, &self.mac);
        out
    }

    /// Reserved fields are ignored: the MAC covers them, and later CPUs may use them.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            cpu_svn: take(bytes, 0),
            misc_select: u32_at(bytes, 16),
            cet_attributes: bytes[20],
            isv_ext_prod_id: take(bytes, 32),
            attributes: Attributes::from_bytes(&take(bytes, 48)),
            mrenclave: take(bytes, 64),
            mrsigner: take(bytes, 128),
            config_id: take(bytes, 192),
            isv_prod_id: u16_at(bytes, 256),
            isv_svn: u16_at(bytes, 258),
            config_svn: u16_at(bytes, 260),
            isv_family_id: take(bytes, 304),
            report_data: take(bytes, 320),
            key_id: take(bytes, 384),
            mac: take(bytes, 416),
        }
    }
}

/// For whom EREPORT makes a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetInfo {
    pub mrenclave: [u8; 32],
    pub attributes: Attributes,
    pub cet_attributes: u8,
    pub config_svn: u16,
    pub misc_select: u32,
    pub config_id: [u8; 64],
}

impl TargetInfo {
    pub const SIZE: usize = 512;

    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        put(&mut out, 0, &self.mrenclave);
        put(&mut out, 32, &self.attributes.to_bytes());
        out[48] = self.cet_attributes;
        put(&mut out, 50, &self.config_svn.to_le_bytes());
        put(&mut out, 52, &self.misc_select.to_le_bytes());
        put(&mut out, 64, &self.config_id);
        out
    }

    /// `None` when a reserved field is not zero, which EREPORT refuses.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        if bytes[49] != 0 || !zero(bytes, 56, 64) || !zero(bytes, 128, Self::SIZE) {
            return None;
        }
        Some(Self {
            mrenclave: take(bytes, 0),
            attributes: Attributes::from_bytes(&take(bytes, 32)),
            cet_attributes: bytes[48],
            config_svn: u16_at(bytes, 50),
            misc_select: u32_at(bytes, 52),
            config_id: take(bytes, 64),
        })
    }

    /// The target that is the enclave which this report describes.
    pub fn of(report: &Report) -> Self {
        Self {
            mrenclave: report.mrenclave,
            attributes: report.attributes,
            cet_attributes: report.cet_attributes,
            config_svn: report.config_svn,
            misc_select: report.misc_select,
            config_id: report.config_id,
        }
    }
}

/// What EGETKEY derives a key from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRequest {
    /// See [`crate::KeyName`].
    pub key_name: u16,
    /// See [`key_policy`].
    pub key_policy: u16,
    pub isv_svn: u16,
    pub cet_attributes_mask: u8,
    pub cpu_svn: [u8; 16],
    pub attribute_mask: Attributes,
    pub key_id: [u8; 32],
    pub misc_mask: u32,
    pub config_svn: u16,
}

impl KeyRequest {
    pub const SIZE: usize = 512;

    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        put(&mut out, 0, &self.key_name.to_le_bytes());
        put(&mut out, 2, &self.key_policy.to_le_bytes());
        put(&mut out, 4, &self.isv_svn.to_le_bytes());
        out[6] = self.cet_attributes_mask;
        put(&mut out, 8, &self.cpu_svn);
        put(&mut out, 24, &self.attribute_mask.to_bytes());
        put(&mut out, 40, &self.key_id);
        put(&mut out, 72, &self.misc_mask.to_le_bytes());
        put(&mut out, 76, &self.config_svn.to_le_bytes());
        out
    }

    /// `None` when a reserved field is not zero, which EGETKEY refuses.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        if bytes[7] != 0 || !zero(bytes, 78, Self::SIZE) || u16_at(bytes, 2) & !0x3f != 0 {
            return None;
        }
        Some(Self {
            key_name: u16_at(bytes, 0),
            key_policy: u16_at(bytes, 2),
            isv_svn: u16_at(bytes, 4),
            cet_attributes_mask: bytes[6],
            cpu_svn: take(bytes, 8),
            attribute_mask: Attributes::from_bytes(&take(bytes, 24)),
            key_id: take(bytes, 40),
            misc_mask: u32_at(bytes, 72),
            config_svn: u16_at(bytes, 76),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_sgx_isa() {
        let mut bytes = [0u8; Report::SIZE];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = index as u8 ^ 0x5a;
        }
        let ours = Report::from_bytes(&bytes);
        let theirs = sgx_isa::Report::try_copy_from(&bytes).unwrap();
        assert_eq!(ours.cpu_svn, theirs.cpusvn);
        assert_eq!(ours.cet_attributes, theirs.cet_attributes);
        assert_eq!(ours.isv_ext_prod_id, theirs.isvextnprodid);
        assert_eq!(ours.attributes.xfrm, theirs.attributes.xfrm);
        assert_eq!(ours.mrenclave, theirs.mrenclave);
        assert_eq!(ours.mrsigner, theirs.mrsigner);
        assert_eq!(ours.config_id, theirs.configid);
        assert_eq!(ours.isv_prod_id, theirs.isvprodid);
        assert_eq!(ours.isv_svn, theirs.isvsvn);
        assert_eq!(ours.config_svn, theirs.configsvn);
        assert_eq!(ours.isv_family_id, theirs.isvfamilyid);
        assert_eq!(ours.report_data, theirs.reportdata);
        assert_eq!(ours.key_id, theirs.keyid);
        assert_eq!(ours.mac, theirs.mac);
        assert_eq!(Report::from_bytes(&ours.to_bytes()), ours);

        let target = TargetInfo::of(&ours);
        let bytes = target.to_bytes();
        let theirs = sgx_isa::Targetinfo::try_copy_from(&bytes).unwrap();
        assert_eq!(theirs.measurement, ours.mrenclave);
        assert_eq!(theirs.attributes.xfrm, ours.attributes.xfrm);
        assert_eq!(TargetInfo::from_bytes(&bytes), Some(target));

        let request = KeyRequest {
            key_name: 4,
            key_policy: key_policy::MRSIGNER,
            isv_svn: 7,
            cet_attributes_mask: 0,
            cpu_svn: [9; 16],
            attribute_mask: Attributes { flags: 3, xfrm: 4 },
            key_id: [8; 32],
            misc_mask: 0xff,
            config_svn: 5,
        };
        let bytes = request.to_bytes();
        let theirs = sgx_isa::Keyrequest::try_copy_from(&bytes).unwrap();
        assert_eq!((theirs.keyname, theirs.isvsvn), (4, 7));
        assert_eq!(theirs.keypolicy.bits(), 2);
        assert_eq!(theirs.cpusvn, [9; 16]);
        assert_eq!(theirs.attributemask, [3, 4]);
        assert_eq!(theirs.keyid, [8; 32]);
        assert_eq!(theirs.miscmask, 0xff);
        assert_eq!(KeyRequest::from_bytes(&bytes), Some(request));
    }
}
