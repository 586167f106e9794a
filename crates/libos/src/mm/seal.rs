//! mseal(2): mappings that can no longer be unmapped, moved, replaced or given other rights.

use super::map::checked_range;
use super::{Backing, PAGE, Space, VmaFlags, page_up};
use crate::Result;
use crate::errno::{EINVAL, ENOMEM, EPERM};
use crate::platform::Protection;

impl Space {
    /// Seals a range. EINVAL for a bad range, ENOMEM where nothing is mapped.
    pub fn seal(&self, address: u64, len: u64) -> Result<()> {
        if !address.is_multiple_of(PAGE) {
            return Err(EINVAL.because("the address is not page aligned"));
        }
        let len = page_up(len).ok_or(EINVAL)?;
        address.checked_add(len).ok_or(EINVAL)?;
        if len == 0 {
            return Ok(());
        }
        let range = checked_range(address, len).map_err(|_| ENOMEM)?;
        let mut locked = self.lock();
        if !locked.vmas.covers(&range) {
            return Err(ENOMEM.because("a part of the range is not mapped"));
        }
        let seal = |vma: &mut super::Vma| vma.flags |= VmaFlags::SEALED;
        locked.vmas.update(&range, seal);
        Ok(())
    }

    /// Whether a call may change the mappings in a range; EPERM where one is sealed.
    pub fn check_sealed(&self, address: u64, len: u64) -> Result<()> {
        let range = address..address.saturating_add(page_up(len).unwrap_or(u64::MAX));
        let locked = self.lock();
        let mut found = locked.vmas.overlapping(&range);
        match found.any(|vma| vma.flags.contains(VmaFlags::SEALED)) {
            true => Err(EPERM.because("the mapping is sealed")),
            false => Ok(()),
        }
    }

    /// Whether madvise may discard a range: of a sealed mapping only what could be written anyway.
    pub fn check_discard(&self, address: u64, len: u64) -> Result<()> {
        let range = address..address.saturating_add(page_up(len).unwrap_or(u64::MAX));
        let locked = self.lock();
        let mut found = locked.vmas.overlapping(&range);
        let refused = found.any(|vma| {
            vma.flags.contains(VmaFlags::SEALED)
                && matches!(vma.backing, Backing::Anonymous)
                && !vma.protection.contains(Protection::WRITE)
        });
        match refused {
            true => Err(EPERM.because("the mapping is sealed")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::map::Request;
    use super::*;
    use crate::process::tests::process;

    #[test]
    fn sealed_mappings_are_found() {
        let mm = process().mm();
        let at = mm
            .map(Request::anonymous(4 * PAGE, Protection::READ))
            .unwrap();
        assert_eq!(mm.seal(at + 1, PAGE), Err(EINVAL));
        assert_eq!(mm.seal(at + 3 * PAGE, 1 << 40), Err(ENOMEM));
        mm.seal(at + PAGE, 1).unwrap();
        assert_eq!(mm.check_sealed(at, PAGE), Ok(()));
        assert_eq!(mm.check_sealed(at, PAGE + 1), Err(EPERM));
        assert_eq!(mm.check_discard(at + PAGE, PAGE), Err(EPERM));
        assert_eq!(mm.check_sealed(at + 2 * PAGE, PAGE), Ok(()));
    }
}
