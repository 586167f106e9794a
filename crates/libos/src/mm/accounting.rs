//! The container's memory limit, and the limit of what the kernel needs for itself.
//!
//! Pages of programs are charged one by one. The kernel's own objects are too many and too
//! different for that: calls that make some ask first ([`admit`]) whether the kernel's heap has
//! room for a call's worth of them and are refused if not. What a call may allocate is bounded, and
//! the heap keeps a reserve for the calls in progress, so that no program can use it up.

use core::sync::atomic::{AtomicU64, Ordering};

use super::PAGE;
use crate::Result;
use crate::errno::ENOMEM;
use crate::platform::platform;

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

/// Whether there is kernel memory for what the caller is about to make. ENOMEM. Not to be called
/// with a lock held.
pub(crate) fn admit() -> Result<()> {
    if platform().heap_is_short() {
        super::residency::forget_kept();
    }
    if platform().heap_is_short() {
        return Err(ENOMEM.because("the kernel's memory for objects is used up"));
    }
    Ok(())
}

/// Least kernel memory for objects, beside files and cached pages, and its share of the limit.
const OBJECTS_MIN: u64 = 64 << 20;
const OBJECTS_SHARE: u64 = 4;

/// Sets how large the kernel's heap may get, with `files` bytes for files in memory and cached
/// pages. What forked processes keep apart lies there as well, charged as memory of programs.
pub fn set_kernel_limit(files: u64) {
    let programs = limit();
    let objects = (programs / OBJECTS_SHARE).max(OBJECTS_MIN);
    platform().limit_heap(objects.saturating_add(files).saturating_add(programs));
}

/// Gives it back.
pub(crate) fn uncharge(bytes: u64) {
    USED.fetch_sub(bytes, Ordering::Relaxed);
}
