//! Processes and threads.
//!
//! A [`Process`] is what Linux calls a thread group; a [`thread::Thread`] runs on one thread slot
//! of the enclave for its whole life.

pub mod credentials;
pub mod exit;
pub mod thread;

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use crate::mm::AddressSpace;
use crate::sync::SpinLock;
use thread::Thread;

/// A thread group.
pub struct Process {
    pub pid: u32,
    /// User memory. Replaced by execve; shared with the parent under CLONE_VM.
    mm: SpinLock<Arc<AddressSpace>>,
    pub parent: SpinLock<Weak<Process>>,
    pub threads: SpinLock<Vec<Weak<Thread>>>,
    pub credentials: SpinLock<credentials::Credentials>,
}

impl Process {
    pub fn new(pid: u32, mm: Arc<AddressSpace>) -> Arc<Process> {
        Arc::new(Process {
            pid,
            mm: SpinLock::new(mm),
            parent: SpinLock::new(Weak::new()),
            threads: SpinLock::new(Vec::new()),
            credentials: SpinLock::new(credentials::Credentials::default()),
        })
    }

    pub fn mm(&self) -> Arc<AddressSpace> {
        self.mm.lock().clone()
    }

    /// execve: replaces the address space.
    pub fn set_mm(&self, mm: Arc<AddressSpace>) {
        *self.mm.lock() = mm;
    }
}
