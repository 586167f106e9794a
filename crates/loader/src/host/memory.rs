//! Host calls about enclave memory: page tables and EPC pages, by way of the backend.

use super::Call;
use crate::backend::{Error, Protection, page_type};
use crate::sys::raw::{Answer, Errno};

impl Call<'_> {
    /// MemCommit(address, len, protection).
    pub fn commit(&self) -> Answer {
        let (address, len) = self.pages()?;
        let protection = self.protection()?;
        answer(self.engine.backend.commit(address, len, protection))
    }

    /// MemProtect(address, len, protection).
    pub fn protect(&self) -> Answer {
        let (address, len) = self.pages()?;
        let protection = self.protection()?;
        answer(self.engine.backend.protect(address, len, protection))
    }

    /// MemRestrict(address, len, protection).
    pub fn restrict(&self) -> Answer {
        let (address, len) = self.pages()?;
        let protection = self.protection()?;
        answer(self.engine.backend.restrict(address, len, protection))
    }

    /// MemType(address, len, page type).
    pub fn modify_type(&self) -> Answer {
        let (address, len) = self.pages()?;
        match self.arguments[2] {
            kind @ (page_type::TCS | page_type::TRIM) => {
                answer(self.engine.backend.modify_type(address, len, kind))
            }
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    /// MemRemove(address, len).
    pub fn remove(&self) -> Answer {
        let (address, len) = self.pages()?;
        answer(self.engine.backend.remove(address, len))
    }

    /// The first two arguments as a range of pages in ELRANGE.
    fn pages(&self) -> Result<(u64, u64), Errno> {
        let [address, len, ..] = self.arguments;
        let size = self.engine.kind.elrange_size();
        let aligned = (address | len) & 0xfff == 0;
        if !aligned || len == 0 || address >= size || len > size - address {
            return Err(Errno(libc::EINVAL));
        }
        Ok((address, len))
    }

    fn protection(&self) -> Result<Protection, Errno> {
        match self.arguments[2] {
            protection @ 0..=7 => Ok(protection),
            _ => Err(Errno(libc::EINVAL)),
        }
    }
}

fn answer(result: Result<(), Error>) -> Answer {
    match result {
        Ok(()) => Ok(0),
        Err(Error::System { errno, .. }) => Err(Errno(errno)),
        Err(Error::Refused(_)) => Err(Errno(libc::EINVAL)),
        Err(Error::Sgx { .. }) => Err(Errno(libc::EIO)),
    }
}
