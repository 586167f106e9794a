//! Host mappings: shared areas and the root file system image.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// Fresh zeroed memory that lives until the process ends.
pub fn anonymous(len: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

/// Maps all of `file` read-only until the process ends: address and length. The page cache is
/// shared with every other container of the same image. Nothing is read ahead as a whole: a start
/// must not take longer for a larger image.
pub fn read_only(file: &File) -> io::Result<(u64, u64)> {
    let len = file.metadata()?.len();
    if len == 0 {
        return Err(io::Error::other("it is empty"));
    }
    // SAFETY: a new read-only mapping at an address of the kernel's choice; only the enclave reads
    // it, and it treats every byte as hostile (a truncated file faults, which it turns into EIO).
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            len as usize,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok((address as u64, len))
    }
}

/// Zeroed memory, page aligned, given back when dropped.
pub struct Scratch {
    base: NonNull<u8>,
    len: usize,
}

impl Scratch {
    pub fn new(len: usize) -> io::Result<Scratch> {
        let base = anonymous(len)?;
        Ok(Scratch { base, len })
    }

    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Copies `bytes` to its start. Panics when they do not fit (a loader bug).
    pub fn fill(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len);
        // SAFETY: the mapping is ours, long enough, and distinct from any slice.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr(), bytes.len()) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
