//! What an EEXIT shows the host, for machines that examine it ([`super::Profile::examined`]).
//!
//! There every EEXIT traps, so that the signal frame holds the registers as the host would find
//! them. Whatever is not the host's own, an argument of the call or a constant counts as a leak: it
//! is counted, and the first ones are told on standard error. Nothing is changed.
//!
//! RCX is not looked at, since EEXIT replaces it: by the AEP on hardware, here by the address of the
//! host's [`Thread`], which needs no AEP there. Nor are FS and GS, which EEXIT puts back. State that
//! XFRM does not give to the enclave is the host's.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use super::enclave::Enclave;
use super::entry;
use super::leaves::EEXIT;
use super::sys::XsaveLayout;
use super::thread::{Gprs, Thread};
use bulla_sgx::xfrm;

/// What a test's program fills registers with, but for the lowest byte of each half: nothing that a
/// host call has as an argument.
pub const CANARY: u64 = 0x5ec2_e700_5ec2_e700;
const HALF: u64 = 0xffff_ff00;

static EXAMINED: AtomicU64 = AtomicU64::new(0);
static UNCLEAN: AtomicU64 = AtomicU64::new(0);
/// Leaks that are told of, at most.
const LINES: u64 = 20;

/// Exits that were examined, and those with a leak.
pub fn counts() -> (u64, u64) {
    (
        EXAMINED.load(Ordering::Relaxed),
        UNCLEAN.load(Ordering::Relaxed),
    )
}

/// Examines the registers of an EEXIT that trapped.
///
/// # Safety
/// The context is the kernel's, of a signal in the enclave that `thread` entered.
pub unsafe fn examine(context: &libc::ucontext_t, gprs: &Gprs, thread: &Thread, enclave: &Enclave) {
    EXAMINED.fetch_add(1, Ordering::Relaxed);
    let general = general(gprs, thread.host_rsp);
    // SAFETY: as for this function.
    let leak = general.or_else(|| unsafe { extended(context, enclave) });
    let Some((name, value)) = leak else {
        return;
    };
    if UNCLEAN.fetch_add(1, Ordering::Relaxed) < LINES {
        let mut line = Line::default();
        // It fits, and what does not is cut off.
        let _ = writeln!(line, "bulla: an exit shows {name} = {value:#x}");
        // SAFETY: writes bytes of this frame to standard error; a failure cannot be told.
        unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.len) };
    }
}

type Leak = Option<(&'static str, u64)>;

/// The flags after a register was cleared with XOR, but for AF, which that leaves undefined.
const CLEARED_FLAGS: u64 = 0x246;
const AUXILIARY: u64 = 1 << 4;
/// RF is set in the frame of a fault, whatever it was before.
const RESUME: u64 = 1 << 16;

fn general(gprs: &Gprs, host_rsp: u64) -> Leak {
    let [r8, r9, r10, r11, r12, r13, r14, r15] = gprs.r8_r15;
    let arguments = [
        ("rdi", gprs.rdi),
        ("rsi", gprs.rsi),
        ("rdx", gprs.rdx),
        ("r8", r8),
        ("r9", r9),
    ];
    let is_canary =
        |value: u64| value & HALF == CANARY & HALF || value >> 32 & HALF == CANARY & HALF;
    let leaked = arguments.into_iter().find(|&(_, value)| is_canary(value));
    let exact = [
        ("rax", gprs.rax, u64::from(EEXIT)),
        ("rsp", gprs.rsp, host_rsp),
        // As at every entry, see `entry`.
        ("rbp", gprs.rbp, 0),
        ("r10", r10, 0),
        ("r11", r11, 0),
        ("r12", r12, 0),
        ("r13", r13, 0),
        ("r14", r14, 0),
        ("r15", r15, 0),
        ("rflags", gprs.rflags & !(AUXILIARY | RESUME), CLEARED_FLAGS),
    ];
    leaked
        .or_else(|| {
            exact
                .into_iter()
                .find(|(_, value, expected)| value != expected)
                .map(|(name, value, _)| (name, value))
        })
        .or_else(|| (gprs.rbx < entry::HOST_START).then_some(("rbx", gprs.rbx)))
}

/// Places in the FXSAVE image (SDM volume 1, 10.5.1) and in the XSAVE area after it.
mod place {
    pub const CONTROL: usize = 0;
    /// Status, abridged tag word, opcode.
    pub const STATUS: usize = 2;
    pub const STATUS_END: usize = 8;
    pub const INSTRUCTION_END: usize = 16;
    pub const OPERAND_END: usize = 24;
    pub const MXCSR: usize = 24;
    pub const STACK: usize = 32;
    pub const XMM: usize = 160;
    pub const XMM_END: usize = 416;
    /// The kernel's note that an XSAVE area follows.
    pub const SOFTWARE: usize = 464;
    pub const COMPONENTS: usize = 512;
}

/// Components after the legacy ones: number, bytes, what is found there.
const UPPER: [(usize, usize, &str); 4] = [
    (2, 256, "the upper half of a ymm register"),
    (5, 64, "an opmask register"),
    (6, 512, "the upper half of a zmm register"),
    (7, 1024, "one of zmm16 to zmm31"),
];

/// # Safety
/// As for [`examine`].
unsafe fn extended(context: &libc::ucontext_t, enclave: &Enclave) -> Leak {
    use place::*;
    const MAGIC1: u32 = 0x4650_5853;
    const INITIAL_CONTROL: u64 = 0x37f;
    const INITIAL_MXCSR: u64 = 0x1f80;
    let area = context.uc_mcontext.fpregs.cast::<u8>();
    let bytes = |from: usize, len: usize| {
        let mut value = [0; 8];
        for (index, byte) in value[..len].iter_mut().enumerate() {
            // SAFETY: callers ask for bytes that the kernel wrote.
            *byte = unsafe { area.add(from + index).read() };
        }
        u64::from_le_bytes(value)
    };
    let has_header = bytes(SOFTWARE, 4) == u64::from(MAGIC1);
    let present = match has_header {
        true => bytes(COMPONENTS, 8) & enclave.secs.attributes.xfrm,
        false => xfrm::LEGACY,
    };
    let any = |name, range: std::ops::Range<usize>| {
        let mut words = range.step_by(8).map(|at| bytes(at, 8));
        words.find(|&word| word != 0).map(|word| (name, word))
    };
    let mut leak = None;
    if present & 1 != 0 {
        let control = bytes(CONTROL, 2);
        let status = bytes(STATUS, STATUS_END - STATUS);
        leak = (control != INITIAL_CONTROL)
            .then_some(("the x87 control word", control))
            .or_else(|| (status != 0).then_some(("the x87 status", status)))
            .or_else(|| any("the x87 instruction pointer", STATUS_END..INSTRUCTION_END))
            .or_else(|| any("the x87 operand pointer", INSTRUCTION_END..OPERAND_END))
            .or_else(|| any("an x87 register", STACK..XMM));
    }
    let mxcsr = bytes(MXCSR, 4);
    leak = leak.or_else(|| (mxcsr != INITIAL_MXCSR).then_some(("mxcsr", mxcsr)));
    if present & 2 != 0 {
        leak = leak.or_else(|| any("an xmm register", XMM..XMM_END));
    }
    let XsaveLayout { starts, .. } = enclave.xsave;
    for (component, len, name) in UPPER {
        if present >> component & 1 != 0 {
            let start = starts[component] as usize;
            leak = leak.or_else(|| any(name, start..start + len));
        }
    }
    leak
}

/// A line of text on the stack: signal handlers do not allocate.
struct Line {
    bytes: [u8; 96],
    len: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line {
            bytes: [0; 96],
            len: 0,
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = &mut self.bytes[self.len..];
        let len = room.len().min(text.len());
        room[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}
