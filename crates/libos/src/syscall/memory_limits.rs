//! What limits the memory of a process: RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK.

use core::ops::Range;

use super::Context;
use crate::Result;
use crate::errno::{EAGAIN, ENOMEM, EPERM};
use crate::mm::page_up;
use crate::process::credentials::CAP_IPC_LOCK;
use crate::process::limits::{RLIM_INFINITY, Resource};

fn limit(context: &Context<'_>, resource: Resource) -> u64 {
    context.thread.process.limits.get(resource).soft
}

/// ENOMEM where `len` more bytes of mappings, `is_data` if private and writable, are too many. What
/// is in `replaced` goes.
pub fn check_growth(
    context: &Context<'_>,
    len: u64,
    is_data: bool,
    replaced: Option<&Range<u64>>,
) -> Result<()> {
    let (all, data) = (
        limit(context, Resource::AddressSpace),
        limit(context, Resource::Data),
    );
    if all == RLIM_INFINITY && (data == RLIM_INFINITY || !is_data) {
        return Ok(());
    }
    let len = page_up(len).ok_or(ENOMEM)?;
    let mm = context.mm();
    let used = mm.usage(None);
    let gone = replaced
        .map(|range| mm.usage(Some(range)))
        .unwrap_or_default();
    if (used.total - gone.total).saturating_add(len) > all {
        return Err(ENOMEM.because("RLIMIT_AS"));
    }
    if is_data && (used.data - gone.data).saturating_add(len) > data {
        return Err(ENOMEM.because("RLIMIT_DATA"));
    }
    Ok(())
}

/// How much a process may lock; EPERM where it may lock nothing at all.
fn lockable(context: &Context<'_>) -> Result<u64> {
    if context.thread.process.credentials.lock().has(CAP_IPC_LOCK) {
        return Ok(RLIM_INFINITY);
    }
    match limit(context, Resource::LockedMemory) {
        0 => Err(EPERM.because("RLIMIT_MEMLOCK is 0")),
        most => Ok(most),
    }
}

/// mlock. ENOMEM beyond RLIMIT_MEMLOCK; what is locked already does not count twice.
pub fn check_lock(context: &Context<'_>, address: u64, len: u64) -> Result<()> {
    let most = lockable(context)?;
    if most == RLIM_INFINITY {
        return Ok(());
    }
    let start = crate::mm::page_down(address);
    let len = len.wrapping_add(address - start);
    let Some(end) = page_up(len).and_then(|len| start.checked_add(len)) else {
        // Not a range at all: what locks it says so.
        return Ok(());
    };
    let mm = context.mm();
    let already = mm.usage(Some(&(start..end))).locked;
    let more = (end - start).saturating_sub(already);
    match mm.usage(None).locked.saturating_add(more) > most {
        true => Err(ENOMEM.because("RLIMIT_MEMLOCK")),
        false => Ok(()),
    }
}

/// mlockall: all that is mapped.
pub fn check_lock_all(context: &Context<'_>, current: bool) -> Result<()> {
    let most = lockable(context)?;
    match current && most != RLIM_INFINITY && context.mm().usage(None).total > most {
        true => Err(ENOMEM.because("RLIMIT_MEMLOCK")),
        false => Ok(()),
    }
}

/// A new mapping that is locked, by MAP_LOCKED (`asked`) or because mlockall said so of all. EPERM,
/// EAGAIN.
pub fn check_locked_mapping(context: &Context<'_>, len: u64, asked: bool) -> Result<()> {
    let mm = context.mm();
    if !asked && !mm.locks_future() {
        return Ok(());
    }
    let most = match lockable(context) {
        Err(error) if asked => return Err(error),
        other => other.unwrap_or(0),
    };
    let len = page_up(len).ok_or(ENOMEM)?;
    match most != RLIM_INFINITY && mm.usage(None).locked.saturating_add(len) > most {
        true => Err(EAGAIN.because("RLIMIT_MEMLOCK")),
        false => Ok(()),
    }
}
