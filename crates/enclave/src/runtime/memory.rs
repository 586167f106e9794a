//! Which pages are committed, and how they become so.
//!
//! The bitmap is the truth: a page is accepted once per commit, whatever the host's page tables
//! say. Pages that were given back may stay accepted for a while, to be used again ([`kept`]).

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use bulla_abi::hostcall::HostCall;
use bulla_abi::layout::{LayoutKind, slot, slot_start, tcs_address};
use bulla_libos::Result;
use bulla_libos::errno::{EFAULT, EINVAL, ENOMEM};
use bulla_libos::platform::Protection;

use crate::bitmap::{self, Mark, PAGE, for_runs};
use crate::kept::{self, Access, Piece};
use crate::sgx::{SecInfo, eaccept, emodpe, secinfo};
use crate::{hostcall, threads};

const READ_WRITE: u64 = secinfo::R | secinfo::W;

/// Whether the page at `address` is committed.
pub fn is_committed(address: u64) -> bool {
    bitmap::has(Mark::Committed, address)
}

/// Static layout: no page of the application is accessible until it is committed, as far as the
/// host plays along.
pub fn close_user_memory(start: u64, end: u64) {
    // A host that does not is dealt with by committing all mappings at once.
    let _ = host(HostCall::MemProtect, start, end - start, 0);
}

fn check(address: u64, len: u64) -> Result<()> {
    if !address.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
        return Err(EINVAL.because("not page aligned"));
    }
    if !crate::usercopy::in_user_range(address, len as usize) {
        return Err(EFAULT.because("not the application's memory"));
    }
    Ok(())
}

fn bits(protection: Protection) -> u64 {
    u64::from(protection.bits())
}

/// Commits pages that are not committed: zeroed.
pub fn commit(address: u64, len: u64, protection: Protection) -> Result<()> {
    check(address, len)?;
    // Pages are committed all or none: one that stays committed here, unknown to the caller, would
    // have old content when it is wanted again.
    let (mut first, mut others) = (None, Vec::new());
    let result = for_runs(Mark::Committed, address, len, false, |start, len| {
        match threads::layout_kind() {
            LayoutKind::Dynamic => bring(start, len, bits(protection))?,
            LayoutKind::Static => {
                host(HostCall::MemProtect, start, len, READ_WRITE)?;
                clear(start, len);
                if bits(protection) != READ_WRITE {
                    host(HostCall::MemProtect, start, len, bits(protection))?;
                }
            }
        }
        bitmap::set(Mark::Committed, start, len, true);
        // Nearly always there is only one.
        match first {
            None => first = Some((start, len)),
            Some(_) => others.push((start, len)),
        }
        Ok(())
    });
    if result.is_err() {
        for (start, len) in first.into_iter().chain(others) {
            decommit(start, len);
        }
    }
    result
}

/// Writes zeros over pages that are in the enclave and that nobody uses.
fn clear(start: u64, len: u64) {
    // SAFETY: pages of the application that are in no mapping yet: nothing refers to them, and
    // they were accepted, or added before EINIT. A host that has not made them accessible only
    // makes this fault, which ends the container.
    unsafe { core::ptr::write_bytes(start as *mut u8, 0, len as usize) };
}

/// Pages for a range that has none in use: those that were kept are cleared, the others are new.
fn bring(start: u64, len: u64, protection: u64) -> Result<()> {
    let kept = kept::take(start, len);
    if kept.is_empty() {
        return accept_with_room(start, len, protection);
    }
    let give_back = |errno| {
        for piece in &kept {
            kept::put(Piece {
                access: Access::Other,
                ..*piece
            });
        }
        Err(errno)
    };
    let whole = kept.iter().map(|piece| piece.len).sum::<u64>() == len;
    let accessible = if protection & secinfo::W != 0 {
        protection
    } else {
        READ_WRITE
    };
    let open = whole
        && kept.iter().all(|piece| piece.access == Access::ReadWrite)
        && accessible == READ_WRITE;
    if !open {
        // One call for all: it adds what is missing and opens the rest.
        if let Err(errno) = host(HostCall::MemCommit, start, len, accessible) {
            return give_back(errno);
        }
        let mut at = start;
        for piece in kept.iter().chain([&Piece::closed(start + len, 0)]) {
            if let Err(errno) = accept(at, piece.start - at) {
                return give_back(errno);
            }
            at = piece.start + piece.len;
        }
    }
    for piece in &kept {
        clear(piece.start, piece.len);
    }
    if protection & secinfo::X != 0 {
        extend(start, len);
    }
    if accessible != protection {
        host(HostCall::MemProtect, start, len, protection)?;
    }
    Ok(())
}

/// [`accept_fresh`]; when the host has no page left, kept ones make room.
fn accept_with_room(start: u64, len: u64, protection: u64) -> Result<()> {
    match accept_fresh(start, len, protection) {
        Err(errno) if errno == ENOMEM && kept::release_all() => {
            accept_fresh(start, len, protection)
        }
        result => result,
    }
}

/// EAUG by the host, EACCEPT by us; EMODPE where code is to run.
fn accept_fresh(start: u64, len: u64, protection: u64) -> Result<()> {
    host(HostCall::MemCommit, start, len, protection)?;
    accept(start, len)?;
    if protection & secinfo::X != 0 {
        extend(start, len);
    }
    Ok(())
}

/// EACCEPT of new pages.
fn accept(start: u64, len: u64) -> Result<()> {
    let fresh = SecInfo::new(secinfo::TYPE_REG | secinfo::R | secinfo::W | secinfo::PENDING);
    let mut page = start;
    while page < start + len {
        // SAFETY: a page that is not committed: nothing of ours is in it.
        let code = unsafe { eaccept(&fresh, page) };
        if code != 0 {
            return Err(ENOMEM.because("the host gave no page"));
        }
        page += PAGE;
    }
    Ok(())
}

/// Lets accepted pages hold code.
fn extend(start: u64, len: u64) {
    let extended = SecInfo::new(secinfo::TYPE_REG | secinfo::R | secinfo::W | secinfo::X);
    let _ = for_runs(Mark::Code, start, len, false, |start, len| {
        let mut page = start;
        while page < start + len {
            // SAFETY: an accepted page of the application; permissions are only extended.
            unsafe { emodpe(&extended, page) };
            page += PAGE;
        }
        Ok(())
    });
    bitmap::set(Mark::Code, start, len, true);
}

fn host(call: HostCall, address: u64, len: u64, argument: u64) -> Result<()> {
    match hostcall::call(call, [address, len, argument, 0]) {
        0 => Ok(()),
        error => Err(bulla_libos::Errno::from_host(error)),
    }
}

/// Gives pages back. Nobody can reach them afterwards, if the host plays along.
pub fn decommit(address: u64, len: u64) {
    if check(address, len).is_err() {
        return;
    }
    let dynamic = threads::layout_kind() == LayoutKind::Dynamic;
    let _ = for_runs(Mark::Committed, address, len, true, |start, len| {
        // Not committed from here on, whatever the host does: the pages are trimmed or cleared
        // before they are used again.
        bitmap::set(Mark::Committed, start, len, false);
        // A host that does not close them changes nothing: whatever it says, all of the range is
        // given up. A page that stayed committed would have old content when it is mapped again.
        let close = |start, len| host(HostCall::MemProtect, start, len, 0).is_ok();
        if !dynamic {
            close(start, len);
            return Ok(());
        }
        give_up(start, len, |start, len| match close(start, len) {
            true => Piece::closed(start, len),
            false => Piece {
                start,
                len,
                access: Access::Other,
            },
        })
    });
}

/// Gives back pages of a process that has ended, which have this protection: they may stay
/// accessible until the addresses are taken again ([`kept::close`]).
pub fn abandon(address: u64, len: u64, protection: Protection) {
    if threads::layout_kind() != LayoutKind::Dynamic {
        return decommit(address, len);
    }
    if check(address, len).is_err() {
        return;
    }
    let access = match bits(protection) {
        0 => Access::None,
        READ_WRITE => Access::ReadWrite,
        _ => Access::Other,
    };
    let _ = for_runs(Mark::Committed, address, len, true, |start, len| {
        bitmap::set(Mark::Committed, start, len, false);
        give_up(start, len, |start, len| Piece { start, len, access })
    });
}

/// Asks the host to make pages inaccessible that are not in use. If it does not, whoever finds
/// them sees what a process left that has ended: all of a container is one trust domain.
pub fn hide(start: u64, len: u64) {
    let _ = host(HostCall::MemProtect, start, len, 0);
}

/// Keeps pages for later as `keep` says, or gives them to the host: code, and what is too much.
fn give_up(start: u64, len: u64, mut keep: impl FnMut(u64, u64) -> Piece) -> Result<()> {
    if len > kept::LARGEST {
        return remove(start, len);
    }
    for_runs(Mark::Code, start, len, false, |start, len| {
        kept::put(keep(start, len));
        Ok(())
    })?;
    for_runs(Mark::Code, start, len, true, remove)
}

/// Trims pages that are not in use and lets the host have them.
pub fn remove(start: u64, len: u64) -> Result<()> {
    // The application has given them up and may map them anew, as zeros: a host that keeps them
    // cannot be lived with.
    if host(HostCall::MemType, start, len, secinfo::TYPE_TRIM >> 8).is_err() {
        crate::panic::fatal("the host did not take back memory");
    }
    let trimmed = SecInfo::new(secinfo::TYPE_TRIM | secinfo::MODIFIED);
    let mut page = start;
    while page < start + len {
        // SAFETY: a page that the application has given up.
        if unsafe { eaccept(&trimmed, page) } != 0 {
            crate::panic::fatal("the host did not trim a page");
        }
        page += PAGE;
    }
    bitmap::set(Mark::Code, start, len, false);
    // A host that leaves them there cannot add them again, that is all.
    let _ = host(HostCall::MemRemove, start, len, 0);
    Ok(())
}

/// Changes the protection of committed pages.
pub fn protect(address: u64, len: u64, protection: Protection) -> Result<()> {
    check(address, len)?;
    let dynamic = threads::layout_kind() == LayoutKind::Dynamic;
    for_runs(Mark::Committed, address, len, true, |start, len| {
        if dynamic && protection.contains(Protection::EXECUTE) {
            extend(start, len);
        }
        host(HostCall::MemProtect, start, len, bits(protection))
    })
}

/// Writes into committed pages of text; they are readable and executable afterwards.
pub fn write_protected(address: u64, bytes: &[u8]) -> Result<()> {
    let start = address / PAGE * PAGE;
    let end = (address + bytes.len() as u64).next_multiple_of(PAGE);
    check(start, end - start)?;
    let mut page = start;
    while page < end {
        if !is_committed(page) {
            return Err(EFAULT);
        }
        page += PAGE;
    }
    let all = Protection::READ | Protection::WRITE | Protection::EXECUTE;
    host(HostCall::MemProtect, start, end - start, bits(all))?;
    let written = if bytes.len() == 8 && address.is_multiple_of(8) {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        // SAFETY: an aligned word of a committed page of the application; other threads may
        // execute it meanwhile, which one store allows.
        let word_at = unsafe { AtomicU64::from_ptr(address as *mut u64) };
        word_at.store(u64::from_le_bytes(word), Ordering::SeqCst);
        Ok(())
    } else {
        crate::usercopy::copy_to_user(address, bytes).map_err(|_| EFAULT)
    };
    host(
        HostCall::MemProtect,
        start,
        end - start,
        bits(Protection::READ | Protection::EXECUTE),
    )?;
    written
}

/// Lets `fill` write committed, writable pages.
pub fn fill(address: u64, len: u64, fill: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
    check(address, len)?;
    let mut page = address;
    while page < address + len {
        if !is_committed(page) {
            return Err(EFAULT);
        }
        page += PAGE;
    }
    // SAFETY: committed pages of the application that are being brought in: no user code can
    // reach them in an orderly way, and no other kernel code has a reference.
    fill(unsafe { core::slice::from_raw_parts_mut(address as *mut u8, len as usize) })
}

/// Extends the kernel heap (dynamic layout).
pub fn extend_heap(address: u64, len: u64) -> Result<()> {
    accept_fresh(address, len, secinfo::R | secinfo::W)
}

/// Adds a thread slot with EDMM.
pub fn add_slot(kind: LayoutKind, index: u32, entry: u64) -> Result<()> {
    let start = slot_start(kind, index);
    for (offset, len) in [
        (slot::KERNEL_STACK, slot::KERNEL_STACK_SIZE),
        (slot::EXCEPTION_STACK, slot::EXCEPTION_STACK_SIZE),
        (slot::AREA, slot::AREA_SIZE),
        (slot::SSA, slot::SSA_SIZE),
    ] {
        accept_fresh(start + offset, len, secinfo::R | secinfo::W)?;
    }
    let tcs = tcs_address(kind, index);
    accept_fresh(tcs, PAGE, secinfo::R | secinfo::W)?;
    // TCS (SDM table 38-8): OSSA at 16, CSSA 24, NSSA 28, OENTRY 32, OFSBASGX 48, OGSBASGX 56,
    // FSLIMIT 64, GSLIMIT 68. ELRANGE starts at 0, so offsets are addresses.
    let area = start + slot::AREA;
    // SAFETY: the page was accepted just now, zeroed, and nobody else knows it.
    unsafe {
        let word = |offset: u64| (tcs + offset) as *mut u64;
        word(16).write(start + slot::SSA);
        ((tcs + 28) as *mut u32).write(bulla_abi::layout::NSSA as u32);
        word(32).write(entry);
        word(48).write(area);
        word(56).write(area);
        word(64).write(0xfff | 0xfff << 32);
    }
    host(HostCall::MemType, tcs, PAGE, secinfo::TYPE_TCS >> 8)?;
    let modified = SecInfo::new(secinfo::TYPE_TCS | secinfo::MODIFIED);
    // SAFETY: our own page, to become a TCS.
    match unsafe { eaccept(&modified, tcs) } {
        0 => Ok(()),
        _ => Err(ENOMEM.because("the host did not make the page a TCS")),
    }
}
