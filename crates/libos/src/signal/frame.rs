//! The signal frame of x86-64 (`struct rt_sigframe`): pushed before a handler, read back by
//! rt_sigreturn. The layout is ABI: unwinders, Go, the JVM and sanitizers read it.
//!
//! ```text
//! fpstate (XSAVE area, 64-byte aligned), then FP_XSTATE_MAGIC2
//! frame: 0 restorer | 8 ucontext (304 bytes) | 312 siginfo (128 bytes)      rsp ≡ 8 mod 16
//! ucontext: 0 flags | 8 link | 16 stack | 40 sigcontext (256 bytes) | 296 mask
//! ```

use alloc::sync::Arc;

use super::action::{Action, SA_ONSTACK, SA_RESTORER, SA_SIGINFO};
use super::{AlternateStack, SigInfo};
use crate::errno::EFAULT;
use crate::mm::AddressSpace;
use crate::platform::{FPU_STATE_MAX, platform};
use crate::{Registers, Result, Thread};

pub const SS_ONSTACK: u32 = 1;
pub const SS_DISABLE: u32 = 2;
pub const SS_AUTODISARM: u32 = 1 << 31;
/// Smallest alternate stack the kernel accepts (MINSIGSTKSZ).
pub const MINSIGSTKSZ: u64 = 2048;

/// Bytes below the stack pointer that leaf functions use (System V ABI).
const RED_ZONE: u64 = 128;
const FRAME_SIZE: usize = 8 + UCONTEXT_SIZE + super::info::SIGINFO_SIZE;
const UCONTEXT_SIZE: usize = 304;
const UCONTEXT: usize = 8;
const SIGINFO: usize = UCONTEXT + UCONTEXT_SIZE;
const STACK: usize = UCONTEXT + 16;
const SIGCONTEXT: usize = UCONTEXT + 40;
const MASK: usize = UCONTEXT + 296;
/// Offset of the fpstate pointer in sigcontext.
const FPSTATE: usize = SIGCONTEXT + 184;

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;

const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Offset of `sw_reserved` in the FXSAVE area.
const SW_RESERVED: usize = 464;
/// Bytes of the FXSAVE area; XSAVE's header follows.
const FXSAVE_SIZE: usize = 512;

const USER_CS: u64 = 0x33;
const USER_SS: u64 = 0x2b;

const FLAG_TRAP: u64 = 1 << 8;
const FLAG_DIRECTION: u64 = 1 << 10;
const FLAG_RESUME: u64 = 1 << 16;
/// Flags that sigreturn restores: AC, OF, DF, TF, SF, ZF, AF, PF, CF, RF.
const FLAGS_RESTORED: u64 = 0x40000 | 0x800 | 0x400 | 0x100 | 0x80 | 0x40 | 0x10 | 4 | 1 | 0x10000;

/// The extended state as it is saved, aligned as XSAVE wants it.
#[repr(align(64))]
struct FpuArea([u8; FPU_STATE_MAX]);

fn put(frame: &mut [u8], at: usize, value: u64) {
    frame[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(frame: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&frame[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// Offset in sigcontext of each general register, rip and rflags.
fn slots(registers: &mut Registers) -> [(usize, &mut u64); 18] {
    let r = registers;
    [
        (0, &mut r.r8),
        (8, &mut r.r9),
        (16, &mut r.r10),
        (24, &mut r.r11),
        (32, &mut r.r12),
        (40, &mut r.r13),
        (48, &mut r.r14),
        (56, &mut r.r15),
        (64, &mut r.rdi),
        (72, &mut r.rsi),
        (80, &mut r.rbp),
        (88, &mut r.rbx),
        (96, &mut r.rdx),
        (104, &mut r.rax),
        (112, &mut r.rcx),
        (120, &mut r.rsp),
        (128, &mut r.rip),
        (136, &mut r.rflags),
    ]
}

/// Flags that sigaltstack and the frame show for a stack pointer.
pub fn stack_flags(stack: &AlternateStack, rsp: u64) -> u32 {
    if stack.size == 0 {
        SS_DISABLE
    } else if stack.contains(rsp) {
        SS_ONSTACK
    } else {
        0
    }
}

/// Writes a frame and points the registers at the handler. `mask` is what sigreturn restores.
pub fn push(
    thread: &Arc<Thread>,
    registers: &mut Registers,
    info: &SigInfo,
    action: &Action,
    mask: u64,
) -> Result<()> {
    if action.flags & SA_RESTORER == 0 {
        return Err(EFAULT.because("a handler without SA_RESTORER cannot return"));
    }
    let mm = thread.mm();
    let stack = *thread.signals.alternate_stack.lock();
    let mut sp = registers.rsp.wrapping_sub(RED_ZONE);
    let nested = stack.contains(registers.rsp);
    let entering = action.flags & SA_ONSTACK != 0 && stack_flags(&stack, registers.rsp) == 0;
    if entering {
        sp = stack.base.wrapping_add(stack.size);
    }

    // Extended state: topmost, 64-byte aligned.
    let fpu_size = platform().fpu_size();
    let with_xsave = fpu_size > FXSAVE_SIZE;
    let trailer = if with_xsave { 4 } else { 0 };
    sp = sp.wrapping_sub((fpu_size + trailer) as u64) & !63;
    let fpstate = sp;
    sp = (sp.wrapping_sub(FRAME_SIZE as u64) & !15).wrapping_sub(8);
    if (nested || entering) && !stack.spans(sp) {
        return Err(EFAULT.because("the alternate signal stack overflowed"));
    }
    write_fpstate(&mm, fpstate, fpu_size)?;

    let mut frame = [0u8; FRAME_SIZE];
    put(&mut frame, 0, action.restorer);
    let flags = UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
    put(
        &mut frame,
        UCONTEXT,
        flags | if with_xsave { UC_FP_XSTATE } else { 0 },
    );
    put(&mut frame, STACK, stack.base);
    let shown = stack_flags(&stack, registers.rsp) | stack.flags;
    put(&mut frame, STACK + 8, u64::from(shown));
    put(&mut frame, STACK + 16, stack.size);
    for (at, register) in slots(registers) {
        put(&mut frame, SIGCONTEXT + at, *register);
    }
    put(&mut frame, SIGCONTEXT + 144, USER_CS | USER_SS << 48);
    if let Some(fault) = *thread.signals.last_fault.lock() {
        put(&mut frame, SIGCONTEXT + 152, u64::from(fault.error_code));
        put(&mut frame, SIGCONTEXT + 160, u64::from(fault.vector));
        put(&mut frame, SIGCONTEXT + 176, fault.address);
    }
    put(&mut frame, SIGCONTEXT + 168, mask);
    put(&mut frame, FPSTATE, fpstate);
    put(&mut frame, MASK, mask);
    let written = if action.flags & SA_SIGINFO != 0 {
        frame[SIGINFO..].copy_from_slice(&info.to_user());
        FRAME_SIZE
    } else {
        SIGINFO
    };
    mm.write(sp, &frame[..written])?;

    if stack.flags & SS_AUTODISARM != 0 {
        *thread.signals.alternate_stack.lock() = AlternateStack::default();
    }
    registers.rdi = u64::from(info.number());
    registers.rsi = sp + SIGINFO as u64;
    registers.rdx = sp + UCONTEXT as u64;
    registers.rax = 0;
    registers.rsp = sp;
    registers.rip = action.handler;
    registers.rflags &= !(FLAG_DIRECTION | FLAG_RESUME | FLAG_TRAP);
    registers.orig_rax = u64::MAX;
    Ok(())
}

fn write_fpstate(mm: &AddressSpace, address: u64, size: usize) -> Result<()> {
    let mut area = FpuArea([0; FPU_STATE_MAX]);
    let area = &mut area.0[..size];
    platform().fpu_save(area);
    if size > FXSAVE_SIZE {
        let features = platform().fpu_features();
        area[SW_RESERVED..SW_RESERVED + 4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
        area[SW_RESERVED + 4..SW_RESERVED + 8].copy_from_slice(&(size as u32 + 4).to_le_bytes());
        put(area, SW_RESERVED + 8, features);
        area[SW_RESERVED + 16..SW_RESERVED + 20].copy_from_slice(&(size as u32).to_le_bytes());
        area[SW_RESERVED + 20..FXSAVE_SIZE].fill(0);
        // Legacy handlers change x87 and SSE state without knowing of the header.
        let present = get(area, FXSAVE_SIZE) | 3;
        put(area, FXSAVE_SIZE, present);
        mm.write(address + size as u64, &FP_XSTATE_MAGIC2.to_le_bytes())?;
    }
    mm.write(address, area)
}

/// Fills a zeroed area with the state that a program starts with: x87 and SSE at their defaults,
/// everything else in its initial configuration.
pub fn initial_fpu(area: &mut [u8]) {
    area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
}

/// rt_sigreturn: restores what [`push`] saved, as the handler left it. An error is a fatal SIGSEGV.
pub fn pop(thread: &Arc<Thread>, registers: &mut Registers) -> Result<()> {
    let mm = thread.mm();
    let mut frame = [0u8; SIGINFO];
    // The handler's `ret` has popped the restorer's address.
    mm.read(registers.rsp.wrapping_sub(8), &mut frame)?;
    let flags = registers.rflags;
    for (at, register) in slots(registers) {
        *register = get(&frame, SIGCONTEXT + at);
    }
    registers.rflags = flags & !FLAGS_RESTORED | registers.rflags & FLAGS_RESTORED;
    registers.orig_rax = u64::MAX;
    match get(&frame, FPSTATE) {
        0 => {
            // No state: the initial one.
            let size = platform().fpu_size();
            let mut area = FpuArea([0; FPU_STATE_MAX]);
            initial_fpu(&mut area.0[..size]);
            platform().fpu_restore(&area.0[..size]);
        }
        fpstate => restore_fpstate(&mm, fpstate)?,
    }
    let stack = AlternateStack {
        base: get(&frame, STACK),
        size: get(&frame, STACK + 16),
        flags: get(&frame, STACK + 8) as u32,
    };
    // As on Linux, a bad stack here is not an error.
    let _ = set_alternate_stack(thread, stack, registers.rsp);
    super::set_blocked(thread, get(&frame, MASK));
    Ok(())
}

fn restore_fpstate(mm: &AddressSpace, address: u64) -> Result<()> {
    let size = platform().fpu_size();
    let mut area = FpuArea([0; FPU_STATE_MAX]);
    let area = &mut area.0[..size];
    mm.read(address, &mut area[..FXSAVE_SIZE.min(size)])?;
    if size <= FXSAVE_SIZE {
        platform().fpu_restore(area);
        return Ok(());
    }
    let word = |area: &[u8], at: usize| get(area, at) as u32;
    let mut magic2 = [0; 4];
    let extended = word(area, SW_RESERVED) == FP_XSTATE_MAGIC1
        && word(area, SW_RESERVED + 16) as usize == size
        && mm
            .read(address.wrapping_add(size as u64), &mut magic2)
            .is_ok()
        && u32::from_le_bytes(magic2) == FP_XSTATE_MAGIC2;
    if extended {
        mm.read(address, area)?;
        // Only what the frame declares and the platform has (sw_reserved.xfeatures).
        let declared = get(area, SW_RESERVED + 8) & platform().fpu_features();
        let present = get(area, FXSAVE_SIZE) & declared;
        put(area, FXSAVE_SIZE, present);
    } else {
        // Only the legacy part is there: the rest is in its initial state.
        put(area, FXSAVE_SIZE, 3);
    }
    area[SW_RESERVED..FXSAVE_SIZE].fill(0);
    platform().fpu_restore(area);
    Ok(())
}

/// sigaltstack: EPERM while running on the present one, ENOMEM if too small, EINVAL.
pub fn set_alternate_stack(thread: &Thread, new: AlternateStack, rsp: u64) -> Result<()> {
    let mut stack = thread.signals.alternate_stack.lock();
    if stack.contains(rsp) {
        return Err(crate::errno::EPERM.because("running on the alternate stack"));
    }
    let shown = stack_flags(&stack, rsp) | stack.flags;
    if (stack.base, stack.size, shown & !SS_DISABLE) == (new.base, new.size, new.flags) {
        // No change is asked for, so nothing can be wrong with it.
        return Ok(());
    }
    let mode = new.flags & !SS_AUTODISARM;
    if mode != 0 && mode != SS_DISABLE && mode != SS_ONSTACK {
        return Err(crate::errno::EINVAL.because("unknown sigaltstack flags"));
    }
    *stack = if mode == SS_DISABLE {
        AlternateStack::default()
    } else if new.size < MINSIGSTKSZ {
        return Err(crate::errno::ENOMEM.because("alternate stack below MINSIGSTKSZ"));
    } else {
        AlternateStack {
            flags: new.flags & SS_AUTODISARM,
            ..new
        }
    };
    Ok(())
}
