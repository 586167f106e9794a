//! A thread slot's shared area: untrusted memory that both the enclave and the loader write.
//!
//! The loader sees it only through [`Span`]s, which lie within the data buffer by construction, so
//! whatever lengths the enclave asks for, no system call touches memory outside the area. All
//! accesses are copies through raw pointers: the other side may write at any time.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use bulla_abi::hostcall::{AREA_SIZE, DATA_SIZE, HEADER_SIZE, header};

use super::raw::Errno;

/// One shared area, never unmapped (the enclave may write to it until the process ends).
pub struct Area {
    base: NonNull<u8>,
}

// SAFETY: the memory is plain bytes that anyone may write at any time; it lives forever.
unsafe impl Send for Area {}
// SAFETY: as above; no references to its bytes are ever made but to the atomic wait word.
unsafe impl Sync for Area {}

impl Area {
    /// Maps a fresh area.
    pub fn new() -> std::io::Result<Area> {
        let base = super::map::anonymous(AREA_SIZE as usize)?;
        Ok(Area { base })
    }

    /// Its address, which the enclave is told.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The word on which this slot's thread sleeps.
    pub fn wait_word(&self) -> &AtomicU32 {
        // SAFETY: within the area and aligned (page-aligned base); both sides use it atomically.
        unsafe { &*(self.base.as_ptr().add(header::WAIT_WORD as usize) as *const AtomicU32) }
    }

    /// `len` bytes of the data buffer from `offset`. EFAULT when they are not all in it.
    #[inline(always)]
    pub fn data(&self, offset: u64, len: u64) -> Result<Span<'_>, Errno> {
        if offset > DATA_SIZE || len > DATA_SIZE - offset {
            return Err(Errno(libc::EFAULT));
        }
        // SAFETY: HEADER_SIZE + offset + len <= AREA_SIZE, checked above.
        let start = unsafe { self.base.as_ptr().add((HEADER_SIZE + offset) as usize) };
        Ok(Span {
            start,
            len: len as usize,
            area: PhantomData,
        })
    }
}

/// Bytes within an area's data buffer.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    start: *mut u8,
    len: usize,
    area: PhantomData<&'a Area>,
}

impl Span<'_> {
    /// For a system call: a pointer to `len()` bytes.
    #[inline(always)]
    pub fn pointer(&self) -> usize {
        self.start as usize
    }

    /// Its length in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies out `N` bytes at `offset`. Panics when they are not in the span (a loader bug).
    pub fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset <= self.len && N <= self.len - offset);
        // SAFETY: the range is within the span; bytes have no invalid values.
        unsafe { self.start.add(offset).cast::<[u8; N]>().read_volatile() }
    }

    /// Copies `bytes` in at `offset`. Panics when they do not fit (a loader bug).
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset);
        // SAFETY: the range is within the span, and `bytes` is the loader's own memory.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(offset), bytes.len())
        }
    }

    /// A copy of all of it.
    pub fn to_vec(self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        // SAFETY: both are `len` bytes and distinct.
        unsafe { std::ptr::copy_nonoverlapping(self.start, bytes.as_mut_ptr(), self.len) }
        bytes
    }

    pub fn u32_at(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_stay_inside_the_buffer() {
        let area = Area::new().unwrap();
        assert_eq!(area.address() % 4096, 0);
        assert!(area.data(0, DATA_SIZE).is_ok());
        assert!(area.data(DATA_SIZE, 0).is_ok());
        for (offset, len) in [
            (0, DATA_SIZE + 1),
            (1, DATA_SIZE),
            (DATA_SIZE + 1, 0),
            (u64::MAX, 2),
            (8, u64::MAX),
        ] {
            assert!(area.data(offset, len).is_err(), "{offset} {len}");
        }
        let span = area.data(16, 8).unwrap();
        span.put(4, &7u32.to_le_bytes());
        assert_eq!(span.u32_at(4), 7);
    }
}
