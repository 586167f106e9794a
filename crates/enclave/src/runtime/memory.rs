//! Which pages are committed, and how they become so.
//!
//! The bitmap is the truth: a page is accepted once per commit, whatever the host's page tables
//! say. It covers the application's part of the enclave in two levels; leaves appear on first use.

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use alloc::boxed::Box;
use bulla_abi::hostcall::HostCall;
use bulla_abi::layout::{LayoutKind, slot, slot_start, tcs_address};
use bulla_libos::Result;
use bulla_libos::errno::{EFAULT, EINVAL, ENOMEM};
use bulla_libos::platform::Protection;

use crate::sgx::{SecInfo, eaccept, emodpe, secinfo};
use crate::{hostcall, threads};

const PAGE: u64 = 4096;
/// Pages that one leaf covers: 512 words of 64 bits.
const LEAF_PAGES: u64 = 512 * 64;
/// Leaves for the widest ELRANGE, 2^40 bytes.
const LEAVES: usize = (1 << 28) / LEAF_PAGES as usize;

type Leaf = [AtomicU64; 512];

static COMMITTED: [AtomicPtr<Leaf>; LEAVES] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; LEAVES];

fn leaf(page: u64, create: bool) -> Option<&'static Leaf> {
    let entry = &COMMITTED[(page / LEAF_PAGES) as usize];
    let mut pointer = entry.load(Ordering::Acquire);
    if pointer.is_null() {
        if !create {
            return None;
        }
        let fresh = Box::into_raw(Box::new([const { AtomicU64::new(0) }; 512]));
        match entry.compare_exchange(
            core::ptr::null_mut(),
            fresh,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => pointer = fresh,
            Err(other) => {
                // SAFETY: `fresh` was not published.
                drop(unsafe { Box::from_raw(fresh) });
                pointer = other;
            }
        }
    }
    // SAFETY: leaves are never freed.
    Some(unsafe { &*pointer })
}

/// Whether the page at `address` is committed.
pub fn is_committed(address: u64) -> bool {
    let page = address / PAGE;
    match leaf(page, false) {
        Some(leaf) => {
            let index = page % LEAF_PAGES;
            leaf[(index / 64) as usize].load(Ordering::Relaxed) & 1 << (index % 64) != 0
        }
        None => false,
    }
}

/// Sets or clears the bits of a run of pages.
fn mark(address: u64, len: u64, committed: bool) {
    let (mut page, end) = (address / PAGE, (address + len) / PAGE);
    while page < end {
        let index = page % LEAF_PAGES;
        let count = (64 - index % 64).min(end - page);
        if let Some(leaf) = leaf(page, committed) {
            let ones = if count == 64 {
                u64::MAX
            } else {
                (1 << count) - 1
            };
            let mask = ones << (index % 64);
            let word = &leaf[(index / 64) as usize];
            if committed {
                word.fetch_or(mask, Ordering::Relaxed);
            } else {
                word.fetch_and(!mask, Ordering::Relaxed);
            }
        }
        page += count;
    }
}

/// Static layout: no page of the application is accessible until it is committed, as far as the
/// host plays along.
pub fn close_user_memory(start: u64, end: u64) {
    // A host that does not is dealt with by committing all mappings at once.
    let _ = host(HostCall::MemProtect, start, end - start, 0);
}

/// Calls `act` for each maximal run of pages in the range whose state is `committed`.
fn for_runs(
    address: u64,
    len: u64,
    committed: bool,
    mut act: impl FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let end = address + len;
    let mut at = address;
    while at < end {
        let page = at / PAGE;
        // A leaf that does not exist is a long uncommitted run.
        if leaf(page, false).is_none() {
            let run_end = ((page / LEAF_PAGES + 1) * LEAF_PAGES * PAGE).min(end);
            if !committed {
                act(at, run_end - at)?;
            }
            at = run_end;
            continue;
        }
        let start = at;
        let state = is_committed(at);
        while at < end && is_committed(at) == state && leaf(at / PAGE, false).is_some() {
            at += PAGE;
        }
        if state == committed {
            act(start, at - start)?;
        }
    }
    Ok(())
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
    for_runs(address, len, false, |start, len| {
        match threads::layout_kind() {
            LayoutKind::Dynamic => {
                accept_fresh(start, len, bits(protection))?;
            }
            LayoutKind::Static => {
                let writable = bits(Protection::READ | Protection::WRITE);
                host(HostCall::MemProtect, start, len, writable)?;
                // SAFETY: pages of the application that are in no mapping yet: nothing refers to
                // them, and they were added before EINIT.
                unsafe { core::ptr::write_bytes(start as *mut u8, 0, len as usize) };
                if bits(protection) != writable {
                    host(HostCall::MemProtect, start, len, bits(protection))?;
                }
            }
        }
        mark(start, len, true);
        Ok(())
    })
}

/// EAUG by the host, EACCEPT by us; EMODPE where code is to run.
fn accept_fresh(start: u64, len: u64, protection: u64) -> Result<()> {
    host(HostCall::MemCommit, start, len, protection)?;
    let fresh = SecInfo::new(secinfo::TYPE_REG | secinfo::R | secinfo::W | secinfo::PENDING);
    let extended = SecInfo::new(secinfo::TYPE_REG | secinfo::R | secinfo::W | secinfo::X);
    let mut page = start;
    while page < start + len {
        // SAFETY: a page that is not committed: nothing of ours is in it.
        let code = unsafe { eaccept(&fresh, page) };
        if code != 0 {
            return Err(ENOMEM.because("the host gave no page"));
        }
        if protection & secinfo::X != 0 {
            // SAFETY: the page was accepted just now.
            unsafe { emodpe(&extended, page) };
        }
        page += PAGE;
    }
    Ok(())
}

fn host(call: HostCall, address: u64, len: u64, argument: u64) -> Result<()> {
    match hostcall::call(call, [address, len, argument, 0]) {
        0 => Ok(()),
        error => Err(bulla_libos::Errno::from_host(error)),
    }
}

/// Gives pages back.
pub fn decommit(address: u64, len: u64) {
    if check(address, len).is_err() {
        return;
    }
    let kind = threads::layout_kind();
    let _ = for_runs(address, len, true, |start, len| {
        // Not committed from here on, whatever the host does: the pages are trimmed or cleared
        // before they are used again.
        if kind == LayoutKind::Dynamic {
            // The application has given them up and may map them anew, as zeros: a host that keeps
            // them cannot be lived with.
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
            mark(start, len, false);
            // A host that leaves them there cannot add them again, that is all.
            let _ = host(HostCall::MemRemove, start, len, 0);
        } else {
            mark(start, len, false);
            let _ = host(HostCall::MemProtect, start, len, 0);
        }
        Ok(())
    });
}

/// Changes the protection of committed pages.
pub fn protect(address: u64, len: u64, protection: Protection) -> Result<()> {
    check(address, len)?;
    let dynamic = threads::layout_kind() == LayoutKind::Dynamic;
    for_runs(address, len, true, |start, len| {
        if dynamic && protection.contains(Protection::EXECUTE) {
            let extended = SecInfo::new(secinfo::TYPE_REG | secinfo::R | secinfo::W | secinfo::X);
            let mut page = start;
            while page < start + len {
                // SAFETY: a committed page of the application; permissions are only extended.
                unsafe { emodpe(&extended, page) };
                page += PAGE;
            }
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
