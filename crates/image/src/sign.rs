//! SIGSTRUCT: describing an enclave and signing the description, at once or in two steps.
//!
//! Two steps: [`Description::unsigned`] gives a structure whose
//! [`signed_bytes`](SigStruct::signed_bytes) go to whoever holds the key
//! (`openssl dgst -sha256 -sign`); [`Description::attach`] takes the signature back.

use crate::key::{KeyError, PublicKey, SigningKey};
use crate::layout::EnclaveImage;
use bulla_sgx::{Attributes, SigStruct, SignatureError, flags, misc, quotients};

/// Why an enclave cannot be signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the signature has {0} bytes, expected 384: sign with the 3072-bit key itself")]
    Length(usize),
    #[error("{0}; the signature was made by another key or over other bytes")]
    Signature(#[from] SignatureError),
    #[error("a family id or an extended product id needs the KSS attribute; turn it on")]
    NeedsKss,
    #[error("vendor {0:#x}: Linux accepts 0 and 0x8086 (Intel) only")]
    Vendor(u32),
    #[error("{0:04}-{1:02}-{2:02} is not a date")]
    Date(u16, u8, u8),
}

/// A calendar date, as SIGSTRUCT stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

impl Date {
    /// A date between 1970 and 9999.
    pub fn new(year: u16, month: u8, day: u8) -> Result<Date, SignError> {
        let multiple = |of: u16| year.is_multiple_of(of);
        let leap = multiple(4) && (!multiple(100) || multiple(400));
        let days = match month {
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            1..=12 => 31,
            _ => 0,
        };
        if !(1970..=9999).contains(&year) || !(1..=days).contains(&day) {
            return Err(SignError::Date(year, month, day));
        }
        Ok(Date { year, month, day })
    }

    /// The UTC date of a time in seconds since 1970, up to the year 9999.
    pub fn from_unix(seconds: u64) -> Date {
        let mut days = seconds / 86_400;
        let (mut year, mut month) = (1970, 1);
        loop {
            let left = |date: Result<Date, SignError>| u64::from(date.is_ok());
            let length = 28
                + (29..=31)
                    .map(|day| left(Date::new(year, month, day)))
                    .sum::<u64>();
            if days < length {
                return Date {
                    year,
                    month,
                    day: days as u8 + 1,
                };
            }
            if (year, month) == (9999, 12) {
                return Date {
                    year,
                    month,
                    day: 31,
                };
            }
            days -= length;
            (year, month) = if month == 12 {
                (year + 1, 1)
            } else {
                (year, month + 1)
            };
        }
    }

    /// The date that a SIGSTRUCT holds.
    pub fn from_bcd(bcd: u32) -> Option<Date> {
        let number = |byte: u32| byte / 16 * 10 + byte % 16;
        let [high, low, month, day] = bcd.to_be_bytes().map(u32::from).map(number);
        let date = Date::new((high * 100 + low) as u16, month as u8, day as u8).ok()?;
        (date.to_bcd() == bcd).then_some(date)
    }

    /// Binary coded decimal: 0xYYYYMMDD.
    pub fn to_bcd(self) -> u32 {
        let bcd = |number: u32| number + 6 * (number / 10);
        let year = u32::from(self.year);
        bcd(year / 100) << 24
            | bcd(year % 100) << 16
            | bcd(u32::from(self.month)) << 8
            | bcd(u32::from(self.day))
    }
}

/// What a SIGSTRUCT says, apart from key and signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub mrenclave: [u8; 32],
    pub date: Date,
    /// 0; 0x8086 is Intel's.
    pub vendor: u32,
    pub sw_defined: u32,
    pub isv_prod_id: u16,
    pub isv_svn: u16,
    /// KSS: which family of products, and which product.
    pub isv_family_id: [u8; 16],
    pub isv_ext_prod_id: [u8; 16],
    pub attributes: Attributes,
    /// Bits that EINIT compares.
    pub attribute_mask: Attributes,
    pub misc_select: u32,
    /// Bits that EINIT compares.
    pub misc_mask: u32,
}

impl Description {
    /// Describes `image`. The CPU compares all attributes with what the image asks for. EXINFO
    /// alone may be there or not: the runtime reads its own REPORT and adapts.
    pub fn of(image: &EnclaveImage, date: Date) -> Description {
        Description {
            mrenclave: image.mrenclave,
            date,
            vendor: 0,
            sw_defined: 0,
            isv_prod_id: 0,
            isv_svn: 0,
            isv_family_id: [0; 16],
            isv_ext_prod_id: [0; 16],
            attributes: image.secs.attributes,
            attribute_mask: Attributes {
                flags: !(flags::AEX_NOTIFY | flags::INIT),
                xfrm: !0,
            },
            misc_select: 0,
            misc_mask: !misc::EXINFO,
        }
    }

    /// Lets the host leave out parts of the extended state, so that the image starts on CPUs
    /// without them. The runtime takes what is there from its REPORT.
    pub fn allow_less_state(mut self, xfrm: u64) -> Description {
        self.attribute_mask.xfrm &= !(xfrm & !bulla_sgx::xfrm::LEGACY);
        self
    }

    /// The structure without key and signature.
    pub fn unsigned(&self) -> Result<SigStruct, SignError> {
        let kss = self.attributes.flags & self.attribute_mask.flags & flags::KSS != 0;
        if !kss && (self.isv_family_id != [0; 16] || self.isv_ext_prod_id != [0; 16]) {
            return Err(SignError::NeedsKss);
        }
        if ![0, 0x8086].contains(&self.vendor) {
            return Err(SignError::Vendor(self.vendor));
        }
        Ok(SigStruct {
            vendor: self.vendor,
            date: self.date.to_bcd(),
            sw_defined: self.sw_defined,
            misc_select: self.misc_select,
            misc_mask: self.misc_mask,
            isv_family_id: self.isv_family_id,
            // Bits that are not compared are left out.
            attributes: self.attributes.masked(&self.attribute_mask),
            attribute_mask: self.attribute_mask,
            enclave_hash: self.mrenclave,
            isv_ext_prod_id: self.isv_ext_prod_id,
            isv_prod_id: self.isv_prod_id,
            isv_svn: self.isv_svn,
            ..SigStruct::EMPTY
        })
    }

    /// Signs.
    pub fn sign(&self, key: &SigningKey) -> Result<SigStruct, SignError> {
        let signature = key.sign(&self.unsigned()?.signed_bytes())?;
        self.attach(&key.public(), &signature)
    }

    /// Puts a signature (big endian, as every tool writes it) made elsewhere in place and checks
    /// it.
    pub fn attach(&self, key: &PublicKey, signature: &[u8]) -> Result<SigStruct, SignError> {
        let mut signature: [u8; 384] = signature
            .try_into()
            .map_err(|_| SignError::Length(signature.len()))?;
        signature.reverse();
        let (q1, q2, _) = quotients(&signature, key.modulus()).ok_or(SignatureError::Modulus)?;
        let signed = SigStruct {
            modulus: *key.modulus(),
            signature,
            q1,
            q2,
            ..self.unsigned()?
        };
        signed.verify()?;
        Ok(signed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(Date::from_unix(0).to_bcd(), 0x1970_0101);
        assert_eq!(Date::from_unix(951_782_400).to_bcd(), 0x2000_0229);
        assert_eq!(Date::from_unix(1_795_478_399).to_bcd(), 0x2026_1123);
        let date = Date::new(2026, 12, 31).unwrap();
        assert_eq!(Date::from_bcd(date.to_bcd()), Some(date));
        assert_eq!(Date::from_bcd(0x2026_12a1), None);
        assert_eq!(Date::new(2026, 12, 31).unwrap().to_bcd(), 0x2026_1231);
        assert_eq!(Date::from_unix(u64::MAX).to_bcd(), 0x9999_1231);
        for (year, month, day) in [(2025, 2, 29), (2026, 13, 1), (2026, 0, 1), (2026, 4, 31)] {
            assert!(Date::new(year, month, day).is_err());
        }
    }
}
