//! The ENCLU leaves (SDM volume 3D, chapter 40).
//!
//! Each site is 8-byte aligned and followed by a 5-byte NOP, so that an emulated platform can
//! replace it in one store; on hardware that costs nothing.

use core::arch::asm;

/// SECINFO, 64 bytes, 64-byte aligned.
#[repr(C, align(64))]
pub struct SecInfo {
    pub flags: u64,
    reserved: [u64; 7],
}

impl SecInfo {
    pub const fn new(flags: u64) -> SecInfo {
        SecInfo {
            flags,
            reserved: [0; 7],
        }
    }
}

/// Bits of SECINFO.FLAGS.
pub mod secinfo {
    pub const R: u64 = 1;
    pub const W: u64 = 2;
    pub const X: u64 = 4;
    pub const PENDING: u64 = 8;
    pub const MODIFIED: u64 = 0x10;
    pub const TYPE_TCS: u64 = 1 << 8;
    pub const TYPE_REG: u64 = 2 << 8;
    pub const TYPE_TRIM: u64 = 4 << 8;
}

/// One ENCLU with rax = leaf, rbx, rcx, rdx; returns rax.
///
/// # Safety
/// The operands are what the leaf demands.
#[inline(always)]
unsafe fn enclu(leaf: u32, rbx: u64, rcx: u64, rdx: u64) -> u32 {
    let mut result = leaf as u64;
    // SAFETY: the caller's promise. rbx is reserved by the compiler, hence the exchange. An
    // emulated platform calls through the stack here, so no red zone may be assumed (the default
    // without `nostack`).
    unsafe {
        asm!(
            "xchg {rbx}, rbx",
            ".p2align 3",
            ".byte 0x0f, 0x01, 0xd7",
            ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00",
            "mov rbx, {rbx}",
            rbx = inout(reg) rbx => _,
            inout("rax") result,
            inout("rcx") rcx => _,
            inout("rdx") rdx => _,
        );
    }
    result as u32
}

/// EACCEPT: 0, or the SDM's error code.
///
/// # Safety
/// `page` is a page of the application or the runtime that the caller owns.
pub unsafe fn eaccept(info: &SecInfo, page: u64) -> u32 {
    // SAFETY: SECINFO is aligned and readable; EACCEPT changes only the EPCM. A page that is not
    // there faults, which is fatal: a host that does not do what it answered is hostile.
    unsafe { enclu(5, info as *const SecInfo as u64, page, 0) }
}

/// EMODPE: extends the EPCM permissions of a page.
///
/// # Safety
/// As `eaccept`.
pub unsafe fn emodpe(info: &SecInfo, page: u64) {
    // SAFETY: as above.
    unsafe { enclu(6, info as *const SecInfo as u64, page, 0) };
}

#[repr(C, align(512))]
struct Aligned512<const N: usize>([u8; N]);
#[repr(C, align(128))]
struct Aligned128<const N: usize>([u8; N]);
#[repr(C, align(16))]
struct Aligned16<const N: usize>([u8; N]);

/// EREPORT. The target's reserved bits are zero, else the instruction faults, which is fatal.
pub fn ereport(target: &[u8; 512], data: &[u8; 64]) -> [u8; 432] {
    let target = Aligned512(*target);
    let data = Aligned128(*data);
    let mut report = Aligned512([0; 432]);
    // SAFETY: all three are aligned as the leaf demands and live on this stack, inside the enclave;
    // it writes 432 bytes at rdx and nothing else.
    unsafe {
        enclu(
            0,
            &raw const target as u64,
            &raw const data as u64,
            &raw mut report as u64,
        )
    };
    report.0
}

/// EGETKEY. The request's reserved bits are zero, else the instruction faults, which is fatal.
/// `Err` is the SDM's error code.
pub fn egetkey(request: &[u8; 512]) -> Result<[u8; 16], u32> {
    let request = Aligned512(*request);
    let mut key = Aligned16([0; 16]);
    // SAFETY: both are aligned and inside the enclave; the leaf writes 16 bytes at rcx.
    let code = unsafe { enclu(1, &raw const request as u64, &raw mut key as u64, 0) };
    if code == 0 { Ok(key.0) } else { Err(code) }
}
