//! The container's memory limit.

use core::sync::atomic::{AtomicU64, Ordering};

use super::PAGE;
use crate::Result;
use crate::errno::ENOMEM;

static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);
static USED: AtomicU64 = AtomicU64::new(0);

/// Sets how many bytes of user memory the container may commit (`config.memory`).
pub fn set_limit(bytes: u64) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// Bytes that user memory may take.
pub fn limit() -> u64 {
    LIMIT.load(Ordering::Relaxed)
}

/// Bytes of user memory in use, live or saved.
pub fn used() -> u64 {
    USED.load(Ordering::Relaxed)
}

/// Whether memory is getting scarce, so that nothing should be brought in ahead of need.
pub fn is_scarce() -> bool {
    used() / 4 >= limit() / 16 * 3
}

/// Takes memory from the budget. ENOMEM.
pub(crate) fn charge(bytes: u64) -> Result<()> {
    debug_assert!(bytes.is_multiple_of(PAGE));
    let limit = limit();
    USED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
        used.checked_add(bytes).filter(|&total| total <= limit)
    })
    .map(drop)
    .map_err(|_| ENOMEM.because("the container's memory limit is reached"))
}

/// Gives it back.
pub(crate) fn uncharge(bytes: u64) {
    USED.fetch_sub(bytes, Ordering::Relaxed);
}
