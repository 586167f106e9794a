//! System-call sites in program text.

use core::ops::Range;

use super::Vma;
use super::vma::FileBacking;
use crate::Result;

/// Rewrites the known sites in text that was just brought in.
pub(super) fn prepare(_vma: &Vma, _file: &FileBacking, _range: Range<u64>) -> Result<()> {
    Ok(())
}

/// The pages of a mapping are going away.
pub(super) fn forget(_vma: &Vma) {}

/// Puts the original bytes back: the mapping becomes writable.
pub(super) fn undo(_vma: &Vma) {}

/// The address the unmodified program would be at: `rip`, or for an address in a trampoline the
/// one it stands for.
pub fn canonical(rip: u64) -> u64 {
    rip
}

/// Where to continue for a canonical address: itself, or its copy in a trampoline when the bytes
/// there were rewritten.
pub fn resume_address(rip: u64) -> u64 {
    rip
}

/// The `syscall` at `site` trapped, called with number `number`.
pub fn syscall_trapped(_thread: &alloc::sync::Arc<crate::Thread>, _site: u64, _number: u64) {}
