//! ENCLU that traps: serving the leaf, and patching the site so that it does not trap again.
//!
//! A site that is 8-byte aligned and followed by a 5-byte NOP becomes, in one store, a jump or call
//! through a pointer in the enclave's hole (see `entry`). Measurement is over by then. Another
//! thread that trapped at the old instruction finds the new one and executes it.

use std::ptr;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use super::enclave::Enclave;
use super::entry;
use super::epcm::PAGE;
use super::exits;
use super::leaves::{self, EEXIT, Operands};
use super::signals::exit_asynchronously;
use super::ssa;
use super::sys;
use super::thread::{Fault, TcsState, Thread, count};

/// A leaf that a gate did not serve: [RSP] is the address behind the patched site.
///
/// # Safety
/// The context is that of `bulla_emu_trap`.
pub unsafe fn gate_trap(context: &mut libc::ucontext_t, thread: *mut Thread, tcs: &TcsState) {
    const SITE_SIZE: u64 = 6;
    let registers = &mut context.uc_mcontext.gregs;
    let rsp = registers[libc::REG_RSP as usize];
    // SAFETY: the gate just pushed it.
    let site = unsafe { *(rsp as *const u64) } - SITE_SIZE;
    registers[libc::REG_RSP as usize] = rsp + 8;
    registers[libc::REG_RIP as usize] = site as i64;
    // SAFETY: the context now is the enclave's at the site.
    unsafe { enclu(context, thread, tcs, site, SITE_SIZE) };
}

/// Serves an ENCLU of `len` bytes at `rip`.
///
/// # Safety
/// The context is the enclave's at `rip`.
pub unsafe fn enclu(
    context: &mut libc::ucontext_t,
    thread: *mut Thread,
    tcs: &TcsState,
    rip: u64,
    len: u64,
) {
    count(&tcs.traps);
    // SAFETY: the enclave outlives its TCSs.
    let enclave = unsafe { &*tcs.enclave };
    let gprs = ssa::context_gprs(context);
    let leaf = gprs.rax as u32;
    // A patched site continues behind its eight bytes, whose tail is no instruction any more.
    let stays = leaf == EEXIT && enclave.profile.examined;
    let len = if len == 3 && !stays && patch(enclave, rip, leaf) {
        8
    } else {
        len
    };
    if stays {
        // SAFETY: the context is the kernel's, of an enclave that this thread entered.
        unsafe { exits::examine(context, &gprs, &*thread, enclave) };
    }
    let registers = &mut context.uc_mcontext.gregs;
    let result = if leaf == EEXIT {
        if gprs.rbx >> 47 == 0 {
            registers[libc::REG_RIP as usize] = gprs.rbx as i64;
            registers[libc::REG_RCX as usize] = thread as i64;
            count(&tcs.exits);
            // SAFETY: this thread's structure.
            unsafe {
                (*thread).signal_fs = (*thread).host_fs;
                (*thread).signal_gs = (*thread).host_gs;
            }
            tcs.busy.store(0, Ordering::Release);
            return;
        }
        Err(Fault::GP)
    } else {
        let operands = Operands {
            rbx: gprs.rbx,
            rcx: gprs.rcx,
            rdx: gprs.rdx,
        };
        leaves::execute(enclave, tcs, leaf, operands)
    };
    match result {
        Ok(output) => {
            let (mut rax, mut flags) = (gprs.rax, gprs.rflags);
            output.apply(&mut rax, &mut flags);
            registers[libc::REG_RAX as usize] = rax as i64;
            registers[libc::REG_EFL as usize] = flags as i64;
            registers[libc::REG_RIP as usize] = (rip + len) as i64;
        }
        // SAFETY: as for this function.
        Err(fault) => unsafe { exit_asynchronously(context, thread, Some(fault)) },
    }
}

/// Rewrites a site `enclu; nop5` that is 8-byte aligned into a jump (EEXIT) or call through the
/// hole, in one store. Returns whether that is what stands there now.
fn patch(enclave: &Enclave, site: u64, leaf: u32) -> bool {
    const SITE: [u8; 8] = [0x0f, 0x01, 0xd7, 0x0f, 0x1f, 0x44, 0x00, 0x00];
    let mut sites = enclave.sites.lock().unwrap_or_else(PoisonError::into_inner);
    if !site.is_multiple_of(8) || code_at::<8>(enclave, site) != Some(SITE) {
        return patched_meanwhile(enclave, site);
    }
    let exit = (leaf == EEXIT && sites.len() < entry::EXIT_GATES).then_some(sites.len());
    let Some(pointer) = enclave.gate_pointer(exit) else {
        return false;
    };
    let Ok(displacement) = i32::try_from(pointer as i64 - (site + 6) as i64) else {
        return false;
    };
    let mut code = [0xff, 0x15, 0, 0, 0, 0, 0x66, 0x90];
    if let Some(index) = exit {
        code[1] = 0x25;
        sites.push(site);
        // SAFETY: an aligned store of a word that is only read through the gate patched below.
        unsafe { (&raw mut entry::bulla_emu_sites[index]).write_volatile(site + 6) };
    }
    code[2..6].copy_from_slice(&displacement.to_le_bytes());
    let _guard = enclave.epcm.lock();
    let page = site & !(PAGE - 1);
    let host = enclave.epcm.get(page).host();
    // Still executable meanwhile, so that other threads go on.
    if sys::protect(page, PAGE, 7).is_err() {
        return false;
    }
    // SAFETY: the page is writable now; an aligned 8-byte store within one cache line, so every
    // CPU executes either the old or the new instruction.
    unsafe { AtomicU64::from_ptr(site as *mut u64) }
        .store(u64::from_le_bytes(code), Ordering::SeqCst);
    let _ = sys::protect(page, PAGE, host);
    enclave.patched.fetch_add(1, Ordering::Relaxed);
    true
}

/// Whether another thread patched the site between this thread's trap and its handler.
pub fn patched_meanwhile(enclave: &Enclave, site: u64) -> bool {
    site.is_multiple_of(8)
        && matches!(
            code_at::<8>(enclave, site),
            Some([0xff, 0x15 | 0x25, .., 0x66, 0x90])
        )
}

/// The `N` bytes of code at `rip`, if they are in accessible pages of the enclave.
pub fn code_at<const N: usize>(enclave: &Enclave, rip: u64) -> Option<[u8; N]> {
    let last = rip.checked_add(N as u64 - 1)?;
    let readable = |at: u64| enclave.contains(at) && enclave.epcm.get(at).host() & 5 != 0;
    if !readable(rip) || !readable(last) {
        return None;
    }
    // SAFETY: both pages are mapped for reading (execution implies it).
    Some(unsafe { ptr::read_unaligned(rip as *const [u8; N]) })
}
