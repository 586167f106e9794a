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
