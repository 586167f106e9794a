//! Exceptions in two stages, and system calls and other instructions from trampolines.
//!
//! Stage 1 runs at CSSA 1 on its own stack, entered by the host after an AEX. It trusts only
//! SSA[0], which the CPU wrote: it either copies user registers to the frame and points SSA[0] at
//! stage 2, or sends a faulting copy routine to its fixup, or ends the container. Stage 2 is
//! ordinary kernel code at CSSA 0.
//!
//! EXITINFO decides what happened. An entry without a valid EXITINFO is a nudge: user code is
//! made to look at its pending work, anything else goes on. CPUs without EXINFO do not report page
//! faults at all: there the host's word may bring in a page that the application has mapped, which
//! harms nothing, and no more (unless the configuration says `insecure_host_faults`).

use core::sync::atomic::Ordering;

use bulla_abi::layout::{SSA_FRAME_PAGES, slot};
use bulla_abi::sites::Kind;
use bulla_libos::{Exception, Next, Registers, mm::sites};

use crate::area::{self, Area, Frame, mode};
use crate::panic::Fault;
use crate::{entry, threads};

const SSA_FRAME_SIZE: u64 = SSA_FRAME_PAGES * 4096;

/// GPRSGX, at the end of an SSA frame (SDM volume 3D, table 38-9).
#[repr(C)]
struct GprSgx {
    rax: u64,
    rcx: u64,
    rdx: u64,
    rbx: u64,
    rsp: u64,
    rbp: u64,
    rsi: u64,
    rdi: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rflags: u64,
    rip: u64,
    ursp: u64,
    urbp: u64,
    exitinfo: u32,
    reserved: u32,
    fsbase: u64,
    gsbase: u64,
}

const GPRSGX_SIZE: u64 = size_of::<GprSgx>() as u64;
/// EXINFO lies just below GPRSGX when MISCSELECT asks for it: MADDR (8), ERRCD (4), reserved (4).
const EXINFO_SIZE: u64 = 16;

/// Pseudo-vector of a nudge, in `Frame::vector`.
const NUDGE: u32 = 256;
/// Added to the vector of a fault that only the host reports.
const HOST_WORD: u32 = 512;
const DEBUG: u32 = 1;
const TRAP_FLAG: u64 = 1 << 8;
const PAGE_FAULT: u32 = 14;
const GENERAL_PROTECTION: u32 = 13;

/// Stage 1. Leaves by EEXIT; the host then executes ERESUME on SSA[0]. The arguments are the
/// host's word.
pub extern "C" fn stage1(host_vector: u64, host_address: u64, host_error: u64) {
    let area = area::current();
    let frame_end = area as *mut Area as u64 - slot::AREA + slot::SSA + SSA_FRAME_SIZE;
    // SAFETY: SSA frame 0 of this thread's own slot; the CPU has written it, and no one else
    // uses it while this thread is at CSSA 1.
    let gpr = unsafe { &mut *((frame_end - GPRSGX_SIZE) as *mut GprSgx) };
    // SAFETY: as above.
    let (fault_address, error_code) = unsafe {
        let exinfo = frame_end - GPRSGX_SIZE - EXINFO_SIZE;
        (*(exinfo as *const u64), *((exinfo + 8) as *const u32))
    };
    area.kick_ack.fetch_add(1, Ordering::SeqCst);
    if crate::panic::ended() {
        return stop(area, gpr);
    }
    let valid = gpr.exitinfo & 1 << 31 != 0;
    let vector = gpr.exitinfo & 0xff;
    // Consumed: a kick between this stage's EEXIT and the ERESUME enters once more, and must not
    // find the same exception again, now at stage 2's address.
    gpr.exitinfo = 0;
    // A jump out of the enclave faults with the target in RIP: that is the program's fault too.
    let in_user = gpr.rip < threads::user_end() || gpr.rip >= threads::elrange_end();

    if in_user {
        if area.mode.load(Ordering::Relaxed) != mode::USER {
            crate::panic::note(Fault::UserBesideKernel);
            return stop(area, gpr);
        }
        area.mode.store(mode::KERNEL, Ordering::Relaxed);
        let is_page_fault = valid && vector == 14;
        let frame = area.user_frame();
        save_registers(frame, gpr);
        frame.vector = if valid { vector } else { NUDGE };
        frame.fault_address = if is_page_fault { fault_address } else { 0 };
        frame.reserved = u64::from(if is_page_fault { error_code } else { 0 });
        if !valid && is_unreported(host_vector) {
            frame.vector = HOST_WORD + host_vector as u32;
            frame.fault_address = host_address;
            // Write and fetch, as the page-fault error code has them.
            frame.reserved = host_error & 0x12;
        }
        gpr.rip = &raw const entry::stage2_entry as u64;
        gpr.rsp = area.frame as u64;
        gpr.rflags = 2;
        return;
    }
    if !valid && is_unreported(host_vector) {
        // A copy that is said to have faulted fails; the kernel then looks at the page itself.
        // Anywhere else it would come again for ever, if it is true.
        match crate::usercopy::fixup(gpr.rip) {
            Some(fixup) => gpr.rip = fixup,
            None => give_up(area, gpr, host_vector as u32, host_address),
        }
        return;
    }
    if !valid {
        let window =
            &raw const entry::return_window as u64..&raw const entry::return_window_end as u64;
        if window.contains(&gpr.rip) {
            gpr.rip = &raw const entry::return_check as u64;
            gpr.rsp = area.frame as u64;
            gpr.rflags = 2;
        }
        return;
    }
    // A fault of the runtime: only user copies and host copies may.
    if let Some(fixup) = crate::usercopy::fixup(gpr.rip) {
        gpr.rip = fixup;
        return;
    }
    if vector == DEBUG {
        // The program had set TF when it came in through a trampoline: it steps its own code only.
        gpr.rflags &= !TRAP_FLAG;
        return;
    }
    give_up(area, gpr, vector, fault_address);
}

/// A fault of the runtime that has no fixup ends the container.
fn give_up(area: &mut Area, gpr: &mut GprSgx, vector: u32, address: u64) {
    let rip = gpr.rip;
    crate::panic::note(if rip == &raw const entry::unexpected_entry as u64 {
        Fault::UnexpectedEntry
    } else if vector == PAGE_FAULT && address < threads::user_end() {
        Fault::PageTaken { rip, address }
    } else {
        Fault::Exception {
            vector,
            rip,
            address,
            rsp: gpr.rsp,
        }
    });
    stop(area, gpr);
}

/// Lets the interrupted thread continue, at CSSA 0, with the end of the container: whatever it was
/// doing is over, so its kernel stack starts anew.
fn stop(area: &mut Area, gpr: &mut GprSgx) {
    gpr.rip = &raw const entry::stop_entry as u64;
    gpr.rsp = area.frame as u64;
    gpr.rflags = 2;
}

/// Vectors that EXITINFO reports only with EXINFO (SDM volume 3D, section 38.9.1.1).
fn is_unreported(host_vector: u64) -> bool {
    let unreported = [u64::from(PAGE_FAULT), u64::from(GENERAL_PROTECTION)].contains(&host_vector);
    unreported && !crate::boot::has_exinfo()
}

fn save_registers(frame: &mut Frame, gpr: &GprSgx) {
    let registers = &mut frame.registers;
    registers.rax = gpr.rax;
    registers.rbx = gpr.rbx;
    registers.rcx = gpr.rcx;
    registers.rdx = gpr.rdx;
    registers.rsi = gpr.rsi;
    registers.rdi = gpr.rdi;
    registers.rbp = gpr.rbp;
    registers.rsp = gpr.rsp;
    registers.r8 = gpr.r8;
    registers.r9 = gpr.r9;
    registers.r10 = gpr.r10;
    registers.r11 = gpr.r11;
    registers.r12 = gpr.r12;
    registers.r13 = gpr.r13;
    registers.r14 = gpr.r14;
    registers.r15 = gpr.r15;
    registers.rip = gpr.rip;
    registers.rflags = gpr.rflags;
    registers.orig_rax = u64::MAX;
}

/// Stage 2: user code was interrupted; its state is in `frame`.
pub extern "C" fn stage2(frame: &mut Frame) {
    let area = area::current();
    let vector = frame.vector;
    let address = frame.fault_address;
    let error_code = frame.reserved as u32;
    frame.registers.rip = sites::canonical(frame.registers.rip);
    let Some(thread) = threads::current_thread(area) else {
        crate::panic::fatal("an exception in a slot without a thread");
    };
    match vector {
        NUDGE => crate::hostcall::take_signals(),
        6 => undefined_instruction(frame, thread),
        vector if vector >= HOST_WORD => {
            let vector = (vector - HOST_WORD) as u8;
            let exception = Exception {
                vector,
                address,
                error_code,
            };
            bulla_libos::handle_host_fault(thread, &mut frame.registers, exception);
        }
        _ => {
            let exception = Exception {
                vector: vector as u8,
                address,
                error_code,
            };
            bulla_libos::handle_exception(thread, &mut frame.registers, exception);
        }
    }
    finish(area, frame);
}

/// #UD: an instruction that the enclave serves, or a fault.
fn undefined_instruction(frame: &mut Frame, thread: &alloc::sync::Arc<bulla_libos::Thread>) {
    let registers = &mut frame.registers;
    let site = registers.rip;
    let Some(kind) = instruction_at(site) else {
        return illegal_instruction(registers, thread);
    };
    // The site may be rewritten now; the frame's address stays the canonical one.
    sites::trapped(thread, site, kind, registers.rax);
    registers.rip = site + kind.size();
    if kind == Kind::Syscall {
        registers.rcx = registers.rip;
        registers.r11 = registers.rflags;
        bulla_libos::handle_syscall(thread, registers);
    } else {
        answer(kind, registers);
    }
}

fn illegal_instruction(registers: &mut Registers, thread: &alloc::sync::Arc<bulla_libos::Thread>) {
    let exception = Exception {
        vector: 6,
        address: 0,
        error_code: 0,
    };
    bulla_libos::handle_exception(thread, registers, exception);
}

/// Which of the instructions that the enclave serves stands at an address.
fn instruction_at(address: u64) -> Option<Kind> {
    let mut bytes = [0u8; 2];
    crate::usercopy::copy_from_user(address, &mut bytes).ok()?;
    match bytes {
        [0x0f, 0x05] => Some(Kind::Syscall),
        [0x0f, 0xa2] => Some(Kind::Cpuid),
        [0x0f, 0x31] => Some(Kind::Rdtsc),
        [0x0f, 0x01] => {
            let mut last = [0u8; 1];
            crate::usercopy::copy_from_user(address + 2, &mut last).ok()?;
            (last[0] == 0xf9).then_some(Kind::Rdtscp)
        }
        _ => None,
    }
}

/// What an instruction other than a system call leaves in registers.
fn answer(kind: Kind, registers: &mut Registers) {
    match kind {
        Kind::Syscall => {}
        Kind::Cpuid => {
            let leaf = crate::hostcall::cpuid(registers.rax as u32, registers.rcx as u32);
            let [eax, ebx, ecx, edx] = leaf.map(u64::from);
            (registers.rax, registers.rbx, registers.rcx, registers.rdx) = (eax, ebx, ecx, edx);
        }
        Kind::Rdtsc | Kind::Rdtscp => {
            let ticks = crate::clock::monotonic();
            registers.rax = ticks & 0xffff_ffff;
            registers.rdx = ticks >> 32;
            if kind == Kind::Rdtscp {
                // As on processor 0.
                registers.rcx = 0;
            }
        }
    }
}

/// A system call from a trampoline.
pub extern "C" fn gate_system_call(frame: &mut Frame) {
    let area = area::current();
    let canonical = frame.registers.rip;
    let Some(thread) = threads::current_thread(area) else {
        crate::panic::fatal("a system call in a slot without a thread");
    };
    bulla_libos::handle_syscall(thread, &mut frame.registers);
    if frame.registers.rip != canonical {
        area.resume = sites::resume_address(frame.registers.rip);
    }
}

/// Another instruction, from a trampoline.
pub extern "C" fn gate_instruction(frame: &mut Frame) {
    let area = area::current();
    let registers = &mut frame.registers;
    registers.orig_rax = u64::MAX;
    match sites::of_trampoline(area.trampoline) {
        Some(site) => {
            answer(site.kind, registers);
            registers.rip = site.next;
            area.resume = site.resume;
        }
        // A program found the gate by itself.
        None => {
            let Some(thread) = threads::current_thread(area) else {
                crate::panic::fatal("an instruction in a slot without a thread");
            };
            registers.rip = area.trampoline;
            illegal_instruction(registers, thread);
            finish(area, frame);
        }
    }
}

/// The work word is not 0 on the way to user code.
pub extern "C" fn pending_work(frame: &mut Frame) {
    let area = area::current();
    finish(area, frame);
}

/// Pending work, then where user code continues.
fn finish(area: &mut Area, frame: &mut Frame) {
    let Some(thread) = threads::current_thread(area) else {
        crate::panic::fatal("work in a slot without a thread");
    };
    if !thread.work().is_empty()
        && bulla_libos::before_user(thread, &mut frame.registers) == Next::Exit
    {
        threads::exit_current();
    }
    area.resume = sites::resume_address(frame.registers.rip);
}
