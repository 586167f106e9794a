//! What the CPU and its kernel offer, beyond CPUID.

use std::arch::asm;

/// XCR0: the components of extended state that the kernel has enabled.
pub fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE is set on every x86-64 Linux that runs SGX or this emulator's baseline.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
             options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}
