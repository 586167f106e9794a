//! Extended state: which components this enclave has, where XSAVE puts them, and the program's.
//!
//! Nothing of this is the host's word. The components are those of XFRM, from the enclave's own
//! report; their places in the standard format, which differ between Intel's and AMD's CPUs, are
//! found by executing XSAVE.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bulla_libos::cpuid::{COMPONENTS, Layout, State};
use bulla_libos::platform::FPU_STATE_MAX;

use crate::area::{self, XSAVE_SIZE};
use crate::sgx;

/// Components that host calls save register by register: AVX-512's opmask and Hi16_ZMM.
pub const WIDE: u32 = 1 << 5 | 1 << 7;
/// Those that they save by XSAVEC: x87, AVX and AVX-512's ZMM_Hi256.
pub const XSAVED: u32 = 1 << 0 | 1 << 2 | 1 << 6;
/// Its registers are saved at each system call.
const SSE: u32 = 1;
/// The components that the runtime knows.
const KNOWN: u64 = (WIDE | XSAVED | 1 << SSE) as u64;

/// Bytes of the FXSAVE image, and of XSAVE's header behind it.
const FXSAVE_SIZE: usize = 512;
const HEADER_SIZE: usize = 64;
/// In the FXSAVE image.
const MXCSR: usize = 24;
const XMM: usize = 160;

const _: () = assert!(XSAVE_SIZE <= FPU_STATE_MAX);

/// Written once, by [`find_out`]; until then nothing saves or asks.
static OFFERED: AtomicU64 = AtomicU64::new(0);
static STARTS: [AtomicU32; COMPONENTS.len()] = [const { AtomicU32::new(0) }; COMPONENTS.len()];
static SIZE: AtomicU32 = AtomicU32::new(0);

/// XFRM, see [`find_out`].
pub fn offered() -> u64 {
    OFFERED.load(Ordering::Relaxed)
}

/// Bytes of the standard format.
pub fn size() -> usize {
    SIZE.load(Ordering::Relaxed) as usize
}

/// What programs are told.
pub fn state() -> State {
    State {
        offered: offered(),
        written: xcr0(),
        layout: Layout(core::array::from_fn(|index| {
            STARTS[index].load(Ordering::Relaxed)
        })),
    }
}

/// XCR0. In an enclave on hardware it is XFRM (SDM volume 3D, section 42.7.2); in emulation it is
/// whatever the machine's kernel allows.
fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Finds out which components there are and where XSAVE writes them. Once, before the first
/// program, on a thread whose state is initial but for SSE.
pub fn find_out() {
    /// ATTRIBUTES.XFRM in a report (SDM volume 3D, table 38-21).
    const XFRM: usize = 56;
    let report = sgx::ereport(&[0; 512], &[0; 64]);
    let mut word = [0; 8];
    word.copy_from_slice(&report[XFRM..XFRM + 8]);
    let offered = u64::from_le_bytes(word) & xcr0() & KNOWN;
    let layout = Layout::found_by(offered, find_component);
    let known = layout.filter(|layout| layout.size(offered) as usize <= XSAVE_SIZE);
    let Some(layout) = known else {
        crate::panic::fatal("XSAVE writes where this version does not expect it");
    };
    for (start, found) in STARTS.iter().zip(layout.0) {
        start.store(found, Ordering::Relaxed);
    }
    SIZE.store(layout.size(offered), Ordering::Relaxed);
    OFFERED.store(offered, Ordering::Relaxed);
}

/// Where XSAVE writes a component of `len` bytes, which is in its initial state: zero. `None` if it
/// writes something else.
fn find_component(bit: u32, len: u32) -> Option<u32> {
    /// A page, which is more than any CPU's area with the components that are asked for.
    #[repr(C, align(64))]
    struct Buffer([u8; 4096]);
    const PATTERN: u8 = 0xa5;
    let mut buffer = Buffer([PATTERN; 4096]);
    buffer.0[FXSAVE_SIZE..FXSAVE_SIZE + HEADER_SIZE].fill(0);
    // SAFETY: aligned; a component of AVX or AVX-512 lies within it.
    unsafe {
        asm!("xsave64 [{}]", in(reg) &raw mut buffer, in("eax") 1 << bit, in("edx") 0,
            options(nostack, preserves_flags));
    }
    let behind = &buffer.0[FXSAVE_SIZE + HEADER_SIZE..];
    let start = behind.iter().position(|&byte| byte != PATTERN)?;
    let (written, rest) = behind[start..].split_at_checked(len as usize)?;
    let exact = written.iter().all(|&byte| byte == 0) && rest.iter().all(|&byte| byte == PATTERN);
    exact.then_some((FXSAVE_SIZE + HEADER_SIZE + start) as u32)
}

/// Saves the program's extended state in standard format.
pub fn save(to: &mut [u8]) {
    let area = area::current();
    let buffer = area.xsave();
    let size = size();
    // SAFETY: the buffer is 64-byte aligned, in this thread's area, and large enough for XFRM, as
    // `find_out` has seen.
    let bytes = unsafe {
        // A clean header: XSAVE keeps bits that it does not write.
        core::ptr::write_bytes(buffer.add(FXSAVE_SIZE), 0, HEADER_SIZE);
        asm!("xsave64 [{}]", in(reg) buffer, in("eax") offered() as u32, in("edx") 0,
            options(nostack, preserves_flags));
        core::slice::from_raw_parts_mut(buffer, size)
    };
    // The CPU's xmm registers are the kernel's now; the user's are in the frame. MXCSR is the user's.
    let frame = area.user_frame();
    for (index, xmm) in frame.xmm.iter().enumerate() {
        let at = XMM + index * 16;
        bytes[at..at + 8].copy_from_slice(&xmm[0].to_le_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&xmm[1].to_le_bytes());
    }
    bytes[FXSAVE_SIZE] |= 1 << SSE;
    let len = to.len().min(size);
    to[..len].copy_from_slice(&bytes[..len]);
}

/// Loads an extended state in standard format; what is invalid is cleared.
pub fn restore(from: &[u8]) {
    let area = area::current();
    let buffer = area.xsave();
    // SAFETY: as in `save`.
    let bytes = unsafe { core::slice::from_raw_parts_mut(buffer, size()) };
    bytes.fill(0);
    let len = from.len().min(bytes.len());
    bytes[..len].copy_from_slice(&from[..len]);
    // Reserved bits of the header and of MXCSR would fault.
    bytes[FXSAVE_SIZE] &= offered() as u8;
    bytes[FXSAVE_SIZE + 1..FXSAVE_SIZE + HEADER_SIZE].fill(0);
    let word = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let has_sse = bytes[FXSAVE_SIZE] & 1 << SSE != 0;
    let mxcsr = if has_sse {
        word(bytes, MXCSR) & 0xffff
    } else {
        0x1f80
    };
    bytes[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
    // SAFETY: a valid standard-format area, sanitised; the kernel's own xmm registers are
    // call-clobbered across this statement.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) buffer, in("eax") offered() as u32, in("edx") 0,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
            out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _,
            out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _,
            out("xmm15") _, options(nostack, preserves_flags));
    }
    // The return path loads xmm from the frame; the rest and MXCSR are in the CPU now.
    let frame = area.user_frame();
    for (index, xmm) in frame.xmm.iter_mut().enumerate() {
        let at = XMM + index * 16;
        let half = |at: usize| u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32;
        *xmm = if has_sse {
            [half(at), half(at + 8)]
        } else {
            [0, 0]
        };
    }
}
