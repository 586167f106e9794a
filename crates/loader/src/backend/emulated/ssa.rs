//! The state save area: AEX writes it, ERESUME reads it (SDM 35.9, 36.3).
//!
//! Functions named in the assembly run with the host's FS and GS.

use std::ptr;
use std::sync::atomic::Ordering;

use super::enclave::Enclave;
use super::entry;
use super::epcm::{PAGE, VALID};
use super::thread::{Fault, Gprs, TcsState, Thread, count, mode};
use crate::backend::EnterLeaf;
use bulla_abi::hostcall::EnterReason;

/// Bytes of GPRSGX at the end of a frame, and of EXINFO in front of it.
pub const GPRS_SIZE: u64 = 184;
const EXINFO_SIZE: u64 = 16;

/// Offsets in GPRSGX after the 18 words of [`Gprs`].
const URSP: u64 = 144;
const URBP: u64 = 152;
const EXITINFO: u64 = 160;
/// GPRSGX.AEXNOTIFY, in the word of EXITINFO: byte 167, bit 0.
const NOTIFY: u64 = 1 << 56;
const FS_BASE: u64 = 168;
const GS_BASE: u64 = 176;

/// RFLAGS that user code can change: CF PF AF ZF SF TF DF OF NT RF AC ID.
const USER_FLAGS: u64 = 0x0025_4dd5;
const TRAP_FLAG: u64 = 1 << 8;
const MXCSR_RESERVED: u32 = 0xffff_0000;

/// Bytes that one frame needs for `xsave` bytes of extended state.
pub fn minimal_frame(xsave: u64, exinfo: bool) -> u64 {
    xsave + GPRS_SIZE + if exinfo { EXINFO_SIZE } else { 0 }
}

/// EENTER or ERESUME up to the jump: checks, takes the TCS, fills in what the assembly loads.
/// Returns what is to be done: an ERESUME of a frame that asks for AEX-Notify is an EENTER.
///
/// # Safety
/// `thread` is this host thread's.
pub unsafe fn prepare(
    enclave: &Enclave,
    thread: *mut Thread,
    address: u64,
    leaf: EnterLeaf,
) -> Result<EnterLeaf, Fault> {
    // SAFETY: nobody else uses the thread's structure; handlers only touch atomics of it while
    // RIP is in host code.
    let thread = unsafe { &mut *thread };
    let tcs = enclave.find_tcs(thread, address)?;
    if tcs.busy.swap(1, Ordering::Acquire) != 0 {
        return Err(Fault::GP);
    }
    let result = fill(enclave, thread, tcs, leaf);
    if result.is_err() {
        tcs.busy.store(0, Ordering::Release);
    }
    result
}

#[inline]
fn fill(
    enclave: &Enclave,
    thread: &mut Thread,
    tcs: &TcsState,
    mut leaf: EnterLeaf,
) -> Result<EnterLeaf, Fault> {
    if !tcs.valid.load(Ordering::Relaxed) {
        return Err(Fault::page(tcs.address, false));
    }
    let cssa = tcs.cssa.load(Ordering::Relaxed);
    if leaf == EnterLeaf::Eresume && tcs.aex_notify && cssa != 0 {
        let frame = tcs.ssa + u64::from(cssa - 1) * tcs.frame_size;
        enclave.check_frame(frame, tcs.frame_size)?;
        if word(frame + tcs.frame_size - GPRS_SIZE + EXITINFO) & NOTIFY != 0 {
            leaf = EnterLeaf::Eenter;
        }
    }
    let frame = match leaf {
        EnterLeaf::Eenter if cssa >= tcs.nssa => return Err(Fault::GP),
        EnterLeaf::Eenter => cssa,
        EnterLeaf::Eresume if cssa == 0 => return Err(Fault::GP),
        EnterLeaf::Eresume => cssa - 1,
    };
    let start = tcs.ssa + u64::from(frame) * tcs.frame_size;
    enclave.check_frame(start, tcs.frame_size)?;
    thread.tcs = tcs;
    thread.tcs_address = tcs.address;
    thread.cssa = u64::from(cssa);
    thread.xfrm = enclave.secs.attributes.xfrm;
    thread.ssa_frame = start;
    thread.ssa_gprs = start + tcs.frame_size - GPRS_SIZE;
    match leaf {
        EnterLeaf::Eenter => {
            thread.enclave_fs = tcs.fs;
            thread.enclave_gs = tcs.gs;
            thread.entry = tcs.entry;
            thread.kick_pending.store(0, Ordering::Relaxed);
            thread.mode.store(mode::HOST, Ordering::Relaxed);
            count(&tcs.entries);
        }
        EnterLeaf::Eresume => {
            load(thread)?;
            thread.mode.store(mode::RESUMING, Ordering::Relaxed);
            tcs.cssa.store(frame, Ordering::Relaxed);
            count(&tcs.resumes);
        }
    }
    tcs.thread.store(thread, Ordering::Relaxed);
    Ok(leaf)
}

/// EDECCSSA: the interrupted frame becomes the current one.
pub fn edeccssa(enclave: &Enclave, tcs: &TcsState) -> Result<(), Fault> {
    let cssa = tcs.cssa.load(Ordering::Relaxed);
    if cssa == 0 {
        return Err(Fault::GP);
    }
    let frame = tcs.ssa + u64::from(cssa - 1) * tcs.frame_size;
    enclave.check_frame(frame, tcs.frame_size)?;
    let thread = tcs.thread.load(Ordering::Relaxed);
    // SAFETY: the TCS is in use by this host thread.
    let thread = unsafe { &mut *thread };
    // An AEX from now on returns to where the newest EENTER came from.
    let newest = thread.ssa_gprs;
    let gprs = frame + tcs.frame_size - GPRS_SIZE;
    set_word(gprs + URSP, word(newest + URSP));
    set_word(gprs + URBP, word(newest + URBP));
    thread.ssa_frame = frame;
    thread.ssa_gprs = gprs;
    tcs.cssa.store(cssa - 1, Ordering::Relaxed);
    Ok(())
}

/// Reads a word of enclave memory.
fn word(address: u64) -> u64 {
    // SAFETY: callers pass addresses in an SSA frame that `check_frame` found readable.
    unsafe { ptr::read_volatile(address as *const u64) }
}

fn set_word(address: u64, value: u64) {
    // SAFETY: callers pass addresses in an SSA frame that `check_frame` found writable.
    unsafe { ptr::write_volatile(address as *mut u64, value) };
}

/// ERESUME's part: everything but the general registers, which the assembly loads last.
fn load(thread: &mut Thread) -> Result<(), Fault> {
    let gprs = thread.ssa_gprs;
    let rip = word(gprs + 136);
    if rip >> 47 != 0 {
        return Err(Fault::GP);
    }
    // XRSTOR's own conditions: no compaction, reserved header bytes zero, MXCSR.
    let header = thread.ssa_frame + 512;
    let mxcsr = word(thread.ssa_frame + 24) as u32;
    if word(header) & !thread.xfrm != 0
        || (header + 8..header + 64).step_by(8).any(|at| word(at) != 0)
        || mxcsr & MXCSR_RESERVED != 0
    {
        return Err(Fault::GP);
    }
    thread.enclave_fs = word(gprs + FS_BASE);
    thread.enclave_gs = word(gprs + GS_BASE);
    if thread.enclave_fs >> 47 != 0 || thread.enclave_gs >> 47 != 0 {
        return Err(Fault::GP);
    }
    // An entry without debug opt-in suppresses single-stepping.
    let flags = word(gprs + 128) & USER_FLAGS & !TRAP_FLAG | 0x202;
    const USER_CS: u64 = 0x33;
    const USER_SS: u64 = 0x2b;
    thread.iret = [rip, USER_CS, flags, word(gprs + 32), USER_SS];
    Ok(())
}

/// What an AEX puts into EXITINFO for a vector: valid bit, type and vector; 0 where the SDM
/// reports nothing (table 35-10).
fn exit_info(vector: u16, exinfo: bool) -> u64 {
    const HARDWARE: u64 = 3;
    const SOFTWARE: u64 = 6;
    let kind = match vector {
        0 | 1 | 5 | 6 | 16 | 17 | 19 => HARDWARE,
        3 => SOFTWARE,
        13 | 14 if exinfo => HARDWARE,
        _ => return 0,
    };
    1 << 31 | kind << 8 | u64::from(vector)
}

/// The extended state that goes into a frame.
pub enum Extended<'a> {
    /// From a signal frame, which is then reset to the initial state.
    Signal(&'a mut libc::ucontext_t),
    /// Stored already.
    Stored,
}

/// Writes SSA[CSSA], frees the TCS and returns (URSP, URBP).
///
/// # Safety
/// `thread` is this host thread, in the enclave with this state.
pub unsafe fn save(
    thread: *mut Thread,
    gprs: &Gprs,
    bases: (u64, u64),
    extended: Extended,
    fault: Option<Fault>,
) -> (u64, u64) {
    // SAFETY: as for this function; the TCS lives as long as the enclave.
    let (thread, tcs) = unsafe { (&mut *thread, &*(*thread).tcs) };
    // SAFETY: likewise.
    let enclave = unsafe { &*tcs.enclave };
    let cssa = tcs.cssa.load(Ordering::Relaxed);
    let frame = tcs.ssa + u64::from(cssa) * tcs.frame_size;
    let area = frame + tcs.frame_size - GPRS_SIZE;
    let words: [u64; 18] = {
        let r = &gprs.r8_r15;
        [
            gprs.rax,
            gprs.rcx,
            gprs.rdx,
            gprs.rbx,
            gprs.rsp,
            gprs.rbp,
            gprs.rsi,
            gprs.rdi,
            r[0],
            r[1],
            r[2],
            r[3],
            r[4],
            r[5],
            r[6],
            r[7],
            gprs.rflags,
            gprs.rip,
        ]
    };
    for (index, value) in words.into_iter().enumerate() {
        set_word(area + 8 * index as u64, value);
    }
    set_word(area + FS_BASE, bases.0);
    set_word(area + GS_BASE, bases.1);
    let exinfo = enclave.exinfo();
    let info = fault.map_or(0, |fault| exit_info(fault.vector, exinfo));
    // AEXNOTIFY shares the word and is the enclave's.
    set_word(area + EXITINFO, info | word(area + EXITINFO) & NOTIFY);
    if exinfo
        && let Some(fault) = fault
        && matches!(fault.vector, 13 | 14)
    {
        set_word(area - EXINFO_SIZE, fault.address);
        set_word(area - EXINFO_SIZE + 8, u64::from(fault.error_code));
    }
    if let Extended::Signal(context) = extended {
        // SAFETY: the frame is writable (checked on entry), the context is the kernel's.
        unsafe { save_extended(frame, enclave, context) };
    }
    tcs.cssa.store(cssa + 1, Ordering::Relaxed);
    match fault {
        Some(fault) => {
            count(&tcs.aex[usize::from(fault.vector) & 31]);
            thread.fault = fault;
            thread.fault_leaf = EnterLeaf::Eresume as u32;
            thread.mode.store(mode::EXCEPTION, Ordering::Relaxed);
        }
        None => {
            count(&tcs.aex_asynchronous);
            thread.mode.store(mode::RESUMING, Ordering::Relaxed);
        }
    }
    let outside = (word(area + URSP), word(area + URBP));
    tcs.busy.store(0, Ordering::Release);
    outside
}

/// # Safety
/// `frame` is a writable SSA frame; the context is the kernel's.
unsafe fn save_extended(frame: u64, enclave: &Enclave, context: &mut libc::ucontext_t) {
    let xfrm = enclave.secs.attributes.xfrm;
    let source = context.uc_mcontext.fpregs.cast::<u8>();
    let target = frame as *mut u8;
    // SAFETY: the kernel wrote at least the 512 bytes of FXSAVE, and `size` bytes if it says so;
    // the SSA frame was found large enough for XFRM by ECREATE.
    unsafe {
        ptr::copy_nonoverlapping(source, target, SOFTWARE_BYTES);
        ptr::write_bytes(target.add(SOFTWARE_BYTES), 0, 576 - SOFTWARE_BYTES);
        if let Some(header) = header(context) {
            let size = u64::from(source.add(SOFTWARE_BYTES + 16).cast::<u32>().read());
            let size = size.min(enclave.xsave.size);
            if size > 576 {
                let len = size as usize - 576;
                ptr::copy_nonoverlapping(source.add(576), target.add(576), len);
            }
            let components = header.read();
            target.add(512).cast::<u64>().write(components & xfrm);
        } else {
            target.add(512).cast::<u64>().write(3 & xfrm);
        }
        clear_extended(context, xfrm);
    }
}

/// MXCSR after reset, and after an AEX.
pub const INITIAL_MXCSR: u32 = 0x1f80;
/// Where a signal frame's floating-point state says how long it is.
const SOFTWARE_BYTES: usize = 464;

/// The header of the XSAVE area in a signal frame, if there is one.
///
/// # Safety
/// The context is the kernel's.
unsafe fn header(context: &libc::ucontext_t) -> Option<*mut u64> {
    const MAGIC1: u32 = 0x4650_5853;
    let area = context.uc_mcontext.fpregs.cast::<u8>();
    // SAFETY: the kernel wrote at least the 512 bytes of FXSAVE, and the header if it says so.
    unsafe {
        (area.add(SOFTWARE_BYTES).cast::<u32>().read() == MAGIC1).then(|| area.add(512).cast())
    }
}

/// Makes the enclave's part of the vector state in a signal frame into what an AEX leaves.
///
/// # Safety
/// The context is the kernel's.
pub unsafe fn clear_extended(context: &mut libc::ucontext_t, xfrm: u64) {
    let area = context.uc_mcontext.fpregs.cast::<u8>();
    // SAFETY: as for this function.
    unsafe {
        if let Some(header) = header(context) {
            header.write(header.read() & !xfrm);
        }
        area.add(24).cast::<u32>().write(INITIAL_MXCSR);
    }
}

/// The general registers in a signal frame.
pub fn context_gprs(context: &libc::ucontext_t) -> Gprs {
    let register = |index: i32| context.uc_mcontext.gregs[index as usize] as u64;
    Gprs {
        rax: register(libc::REG_RAX),
        rcx: register(libc::REG_RCX),
        rdx: register(libc::REG_RDX),
        rbx: register(libc::REG_RBX),
        rsp: register(libc::REG_RSP),
        rbp: register(libc::REG_RBP),
        rsi: register(libc::REG_RSI),
        rdi: register(libc::REG_RDI),
        r8_r15: [
            register(libc::REG_R8),
            register(libc::REG_R9),
            register(libc::REG_R10),
            register(libc::REG_R11),
            register(libc::REG_R12),
            register(libc::REG_R13),
            register(libc::REG_R14),
            register(libc::REG_R15),
        ],
        rflags: register(libc::REG_EFL),
        rip: register(libc::REG_RIP),
    }
}

/// The machine state after an AEX, in a signal frame (SDM 36.3.2): synthetic registers, the host's
/// stack, RIP at `there`.
pub fn leave(context: &mut libc::ucontext_t, tcs: u64, outside: (u64, u64), there: &'static u8) {
    let registers = &mut context.uc_mcontext.gregs;
    for index in [
        libc::REG_RDX,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ] {
        registers[index as usize] = 0;
    }
    registers[libc::REG_RAX as usize] = EnterLeaf::Eresume as i64;
    registers[libc::REG_RBX as usize] = tcs as i64;
    registers[libc::REG_RCX as usize] = entry::address(&entry::bulla_emu_aep) as i64;
    registers[libc::REG_RSP as usize] = outside.0 as i64;
    registers[libc::REG_RBP as usize] = outside.1 as i64;
    registers[libc::REG_RIP as usize] = entry::address(there) as i64;
    registers[libc::REG_EFL as usize] = 0x202;
}

/// Result of [`at_aep`] and [`at_kick`] for the assembly.
const EXCEPTION: u32 = 1;

fn next(thread: *mut Thread, leaf: EnterLeaf) -> u32 {
    // SAFETY: this host thread's structure; its TCS and enclave live while `enter` runs.
    unsafe {
        let tcs = &*(*thread).tcs;
        match prepare(&*tcs.enclave, thread, tcs.address, leaf) {
            Ok(leaf) => leaf as u32,
            Err(fault) => {
                (*thread).fault = fault;
                (*thread).fault_leaf = leaf as u32;
                (*thread).mode.store(mode::HOST, Ordering::Relaxed);
                EXCEPTION
            }
        }
    }
}

/// The code at the AEP: an exception goes to the caller of `enter`, anything else ERESUMEs.
pub extern "C" fn at_aep(thread: *mut Thread) -> u32 {
    // SAFETY: this host thread's structure.
    let (state, kicked) = unsafe {
        let thread = &*thread;
        (
            thread.mode.load(Ordering::Relaxed),
            thread.kick_pending.load(Ordering::Relaxed),
        )
    };
    match state {
        mode::EXCEPTION => {
            // SAFETY: as above.
            unsafe { (*thread).mode.store(mode::HOST, Ordering::Relaxed) };
            EXCEPTION
        }
        _ if kicked != 0 => at_kick(thread),
        _ => next(thread, EnterLeaf::Eresume),
    }
}

/// Enters the enclave so that it looks at its flags.
pub extern "C" fn at_kick(thread: *mut Thread) -> u32 {
    // SAFETY: this host thread's structure.
    unsafe {
        (*thread).registers = Default::default();
        (*thread).registers.rdi = EnterReason::Exception as u64;
        count(&(*(*thread).tcs).kicks);
    }
    next(thread, EnterLeaf::Eenter)
}

/// Takes back what `prepare` did for ERESUME; the SSA frame is as it was.
pub extern "C" fn undo_resume(thread: *mut Thread) {
    // SAFETY: this host thread's structure and the TCS that it holds.
    let tcs = unsafe { &*(*thread).tcs };
    tcs.cssa.fetch_add(1, Ordering::Relaxed);
    tcs.busy.store(0, Ordering::Release);
}

/// URSP and URBP in RAX and RDX.
#[repr(C)]
pub struct Outside(u64, u64);

/// AEX from the ENCLU gate: for the leaf's fault, or for a kick after it. The extended state is in
/// the frame already.
pub extern "C" fn gate_aex(thread: *mut Thread, gs: u64) -> Outside {
    // SAFETY: this host thread, whose enclave state the gate saved.
    unsafe {
        let gprs = (*thread).gate;
        let kicked = (*thread).fault.vector == u16::MAX;
        let fault = if kicked { None } else { Some((*thread).fault) };
        let outside = save(
            thread,
            &gprs,
            ((*thread).gate_fs, gs),
            Extended::Stored,
            fault,
        );
        Outside(outside.0, outside.1)
    }
}

impl Enclave {
    /// Whether an SSA frame can be used; EENTER faults on the page that cannot.
    pub fn check_frame(&self, start: u64, len: u64) -> Result<(), Fault> {
        let mut page = start;
        while page < start + len {
            let entry = self.epcm.get(page);
            if entry.effective() & 3 != 3 {
                return Err(if entry.is(VALID) {
                    Fault::page(page, true)
                } else {
                    Fault::absent(page)
                });
            }
            if entry.host() & 3 != 3 && !self.epcm.widen(page, 3) {
                return Err(Fault::page(page, true));
            }
            page += PAGE;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_aex_the_registers_are_synthetic() {
        // SAFETY: plain data, for which zero is valid.
        let mut context: libc::ucontext_t = unsafe { std::mem::zeroed() };
        context.uc_mcontext.gregs.fill(0x5ec2_e75a);
        leave(
            &mut context,
            0x7000,
            (0x1111, 0x2222),
            &entry::bulla_emu_aep,
        );
        let gprs = context_gprs(&context);
        let aep = entry::address(&entry::bulla_emu_aep);
        assert_eq!(
            (gprs.rax, gprs.rbx, gprs.rcx, gprs.rip),
            (3, 0x7000, aep, aep)
        );
        assert_eq!((gprs.rsp, gprs.rbp), (0x1111, 0x2222));
        assert_eq!((gprs.rdx, gprs.rsi, gprs.rdi), (0, 0, 0));
        assert_eq!((gprs.r8_r15, gprs.rflags), ([0; 8], 0x202));
    }

    #[test]
    fn exit_information_is_as_in_the_sdm() {
        // Table 35-10: valid, type and vector; what needs EXINFO; what is never reported.
        for (vector, without, with) in [
            (0, 0x8000_0300, 0x8000_0300),
            (1, 0x8000_0301, 0x8000_0301),
            (3, 0x8000_0603, 0x8000_0603),
            (5, 0x8000_0305, 0x8000_0305),
            (6, 0x8000_0306, 0x8000_0306),
            (13, 0, 0x8000_030d),
            (14, 0, 0x8000_030e),
            (16, 0x8000_0310, 0x8000_0310),
            (17, 0x8000_0311, 0x8000_0311),
            (19, 0x8000_0313, 0x8000_0313),
            (2, 0, 0),
            (4, 0, 0),
            (8, 0, 0),
            (18, 0, 0),
        ] {
            assert_eq!(exit_info(vector, false), without, "{vector}");
            assert_eq!(exit_info(vector, true), with, "{vector}");
        }
    }
}
