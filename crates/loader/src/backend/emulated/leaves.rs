//! ENCLU leaves that an enclave executes: EACCEPT, EMODPE, EACCEPTCOPY, and the way to EREPORT and
//! EGETKEY (SDM 38.4).
//!
//! The gate calls [`enclu_gate`] with the enclave's upper vector state live: what it reaches must
//! not use VEX instructions, so it copies with `rep movsb` and calls nothing of libc.

use std::arch::asm;

use super::enclave::Enclave;
use super::epcm::{
    Entry, MODIFIED, PAGE, PENDING, PR, TYPE_MASK, TYPE_REG, TYPE_TCS, TYPE_TRIM, VALID,
};
use super::thread::{Fault, TcsState, Thread, count};
use super::{keys, report, ssa};
use bulla_sgx::{ErrorCode, SecInfo};

pub const EREPORT: u32 = 0;
pub const EGETKEY: u32 = 1;
pub const EEXIT: u32 = 4;
pub const EACCEPT: u32 = 5;
pub const EMODPE: u32 = 6;
pub const EACCEPTCOPY: u32 = 7;
pub const EDECCSSA: u32 = 9;

const ZERO_FLAG: u64 = 1 << 6;
/// CF PF AF ZF SF OF.
const ARITHMETIC_FLAGS: u64 = 0x8d5;

/// What a leaf does to RAX and the arithmetic flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// RAX = 0 and the flags clear, or RAX = code and ZF set.
    Code(u64),
    /// Registers and flags stay.
    Nothing,
}

impl Output {
    pub const DONE: Output = Output::Code(0);

    pub fn error(code: ErrorCode) -> Output {
        Output::Code(code as u64)
    }

    /// Applies it.
    pub fn apply(self, rax: &mut u64, rflags: &mut u64) {
        if let Output::Code(code) = self {
            *rax = code;
            *rflags &= !ARITHMETIC_FLAGS;
            if code != 0 {
                *rflags |= ZERO_FLAG;
            }
        }
    }
}

/// Operands of a leaf.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
}

/// Executes a leaf other than EEXIT.
pub fn execute(
    enclave: &Enclave,
    tcs: &TcsState,
    leaf: u32,
    operands: Operands,
) -> Result<Output, Fault> {
    let edmm = enclave.profile.features.edmm;
    match leaf {
        EREPORT => {
            count(&tcs.reports);
            report::ereport(enclave, operands)
        }
        EGETKEY => {
            count(&tcs.keys);
            keys::egetkey(enclave, operands)
        }
        EACCEPT | EMODPE | EACCEPTCOPY if edmm => memory_leaf(enclave, tcs, leaf, operands),
        EDECCSSA if enclave.profile.features.aex_notify => {
            ssa::edeccssa(enclave, tcs).map(|()| Output::Nothing)
        }
        _ => Err(Fault::GP),
    }
}

fn memory_leaf(
    enclave: &Enclave,
    tcs: &TcsState,
    leaf: u32,
    operands: Operands,
) -> Result<Output, Fault> {
    count(&tcs.accepts);
    match leaf {
        EACCEPT => eaccept(enclave, operands),
        EMODPE => emodpe(enclave, operands),
        _ => eacceptcopy(enclave, operands),
    }
}

/// For the patched gate: 0, or 1 with the fault in the thread.
pub extern "C" fn enclu_gate(thread: *mut Thread) -> u32 {
    const SITE_SIZE: u64 = 6;
    // SAFETY: this host thread's structure; it is in the enclave of its TCS.
    let (thread, tcs) = unsafe { (&mut *thread, &*(*thread).tcs) };
    // SAFETY: the enclave outlives its TCSs.
    let enclave = unsafe { &*tcs.enclave };
    let gate = &mut thread.gate;
    let operands = Operands {
        rbx: gate.rbx,
        rcx: gate.rcx,
        rdx: gate.rdx,
    };
    let result = if enclave.profile.features.edmm {
        memory_leaf(enclave, tcs, gate.rax as u32, operands)
    } else {
        Err(Fault::GP)
    };
    match result {
        Ok(output) => {
            output.apply(&mut gate.rax, &mut gate.rflags);
            thread.fault.vector = u16::MAX;
            0
        }
        Err(fault) => {
            gate.rip -= SITE_SIZE;
            thread.fault = fault;
            1
        }
    }
}

/// Copies without vector instructions.
///
/// # Safety
/// As for `ptr::copy_nonoverlapping`.
unsafe fn copy(source: u64, target: u64, len: u64) {
    // SAFETY: the direction flag is clear in compiled code; the caller answers for the ranges.
    unsafe {
        asm!("rep movsb", inout("rsi") source => _, inout("rdi") target => _,
             inout("rcx") len => _, options(nostack, preserves_flags));
    }
}

impl Enclave {
    /// Checks that the enclave may access a range, and makes the host mapping follow.
    pub fn check_access(&self, address: u64, len: u64, access: u64) -> Result<(), Fault> {
        let end = address.checked_add(len).ok_or(Fault::GP)?;
        if !self.contains(address) || !self.contains(end - 1) {
            return Err(Fault::GP);
        }
        let mut page = address & !(PAGE - 1);
        while page < end {
            let entry = self.epcm.get(page);
            if !entry.is(VALID) {
                return Err(Fault::absent(address.max(page)));
            }
            if entry.host() & access != access && !self.epcm.widen(page, access) {
                return Err(Fault::page(address.max(page), access & 2 != 0));
            }
            page += PAGE;
        }
        Ok(())
    }

    /// SECINFO at `address`, checked as all leaves with a SECINFO do.
    fn secinfo(&self, address: u64) -> Result<u64, Fault> {
        if address & 63 != 0 {
            return Err(Fault::GP);
        }
        self.check_access(address, 64, 1)?;
        let word = |index: u64| {
            // SAFETY: readable as just checked, and aligned.
            unsafe { ((address + 8 * index) as *const u64).read_volatile() }
        };
        const KNOWN: u64 = 0xff3f;
        let flags = word(0);
        if flags & !KNOWN != 0 || (1..8).any(|index| word(index) != 0) {
            return Err(Fault::GP);
        }
        Ok(flags)
    }

    fn check_page(&self, address: u64) -> Result<(), Fault> {
        if address & (PAGE - 1) != 0 || !self.contains(address) {
            return Err(Fault::GP);
        }
        Ok(())
    }
}

/// The EPCM word with the fields that SECINFO has, in SECINFO's places.
fn as_secinfo(entry: Entry) -> u64 {
    let mut flags = entry.permissions() | u64::from(entry.page_type() >> 4) << 8;
    if entry.is(PENDING) {
        flags |= SecInfo::PENDING;
    }
    if entry.is(MODIFIED) {
        flags |= SecInfo::MODIFIED;
    }
    flags
}

fn eaccept(enclave: &Enclave, operands: Operands) -> Result<Output, Fault> {
    let page = operands.rcx;
    enclave.check_page(page)?;
    let wanted = enclave.secinfo(operands.rbx)?;
    let (pending, modified, restricted) = (
        wanted & SecInfo::PENDING,
        wanted & SecInfo::MODIFIED,
        wanted & SecInfo::PR,
    );
    let legal = match ((wanted >> 8) as u16) << 4 {
        TYPE_REG => (pending | restricted) != 0 && modified == 0,
        TYPE_TCS | TYPE_TRIM => modified != 0 && pending == 0 && restricted == 0,
        _ => false,
    };
    if !legal {
        return Err(Fault::GP);
    }
    let entry = enclave.epcm.get(page);
    if !entry.is(VALID) {
        return Err(Fault::absent(page));
    }
    if !matches!(entry.page_type(), TYPE_REG | TYPE_TCS | TYPE_TRIM) {
        return Err(Fault::page(page, true));
    }
    if as_secinfo(entry) != wanted & !SecInfo::PR {
        return Ok(Output::error(ErrorCode::PageAttributesMismatch));
    }
    if entry.page_type() == TYPE_TCS {
        enclave.accept_tcs(page)?;
    }
    let accepted = enclave.epcm.replace(page, |now| {
        (as_secinfo(now) == as_secinfo(entry)).then_some(Entry(now.0 & !(PENDING | MODIFIED | PR)))
    });
    Ok(match accepted {
        Some(_) => Output::DONE,
        None => Output::error(ErrorCode::PageAttributesMismatch),
    })
}

fn emodpe(enclave: &Enclave, operands: Operands) -> Result<Output, Fault> {
    let page = operands.rcx;
    enclave.check_page(page)?;
    let permissions = enclave.secinfo(operands.rbx)? & 7;
    if permissions & 3 == 2 {
        return Err(Fault::GP);
    }
    let usable =
        |entry: Entry| entry.0 & (VALID | PENDING | MODIFIED | TYPE_MASK) == VALID | TYPE_REG;
    let changed = enclave.epcm.replace(page, |entry| {
        usable(entry).then(|| entry.with_permissions(entry.permissions() | permissions))
    });
    match changed {
        Some(_) => Ok(Output::Nothing),
        None if enclave.epcm.get(page).is(VALID) => Err(Fault::page(page, true)),
        None => Err(Fault::absent(page)),
    }
}

fn eacceptcopy(enclave: &Enclave, operands: Operands) -> Result<Output, Fault> {
    let (page, source) = (operands.rcx, operands.rdx);
    enclave.check_page(page)?;
    enclave.check_page(source)?;
    let wanted = enclave.secinfo(operands.rbx)?;
    if wanted & 3 == 2 || wanted & !7 != u64::from(TYPE_REG >> 4) << 8 {
        return Err(Fault::GP);
    }
    enclave.check_access(source, PAGE, 1)?;
    let entry = enclave.epcm.get(page);
    if !entry.is(VALID) {
        return Err(Fault::absent(page));
    }
    if entry.page_type() != TYPE_REG {
        return Err(Fault::page(page, true));
    }
    let fresh =
        |entry: Entry| entry.0 & (PENDING | MODIFIED) == PENDING && entry.permissions() == 3;
    if !fresh(entry) {
        return Ok(Output::error(ErrorCode::PageAttributesMismatch));
    }
    let _guard = enclave.epcm.lock();
    // SAFETY: both are whole pages of the enclave, readable and (inside) writable.
    let copied = enclave
        .epcm
        .writable(page, || unsafe { copy(source, page, PAGE) });
    if copied.is_err() {
        return Err(Fault::page(page, true));
    }
    let accepted = enclave.epcm.replace(page, |now| {
        fresh(now).then(|| {
            Entry(now.0 & !(PENDING | PR)).with_permissions(now.permissions() | wanted & 7)
        })
    });
    Ok(match accepted {
        Some(_) => Output::DONE,
        None => Output::error(ErrorCode::PageAttributesMismatch),
    })
}
