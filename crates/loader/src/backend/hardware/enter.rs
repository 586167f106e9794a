//! Entering through `__vdso_sgx_enter_enclave`, and turning a pending ERESUME into an entry.
//!
//! The vDSO function keeps rbp and rbx only. Everything else that the C ABI wants back (r12 to r15,
//! flags, MXCSR, the x87 control word) the enclave may leave as it likes, so the stub here saves
//! it. The enclave has to give back rsp and rbp (it finds them in SSA.URSP and URBP).

use std::arch::global_asm;
use std::ffi::c_void;

use super::uapi::Run;
use super::vdso::Function;
use crate::backend::{EnterLeaf, Outcome, Registers};

/// EENTER and ERESUME, and EEXIT as the vDSO reports it.
const EENTER: u32 = 2;
const ERESUME: i64 = 3;
/// The vDSO's result when ENCLU or the enclave raised an exception.
const EFAULT: i32 = -libc::EFAULT;
/// Rdi of an entry after a kick: EnterReason::Exception.
const EXCEPTION: i64 = 3;

global_asm!(
    // (function rdi, registers rsi, leaf edx, run rcx) -> eax
    ".pushsection .text.bulla_vdso_enter,\"ax\",@progbits",
    ".balign 16",
    ".globl bulla_vdso_enter",
    ".hidden bulla_vdso_enter",
    "bulla_vdso_enter:",
    "push rbp",
    "mov rbp, rsp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rsi",    // rbp - 48: registers
    "pushfq",      // rbp - 56
    "sub rsp, 24", // rbp - 64: MXCSR, rbp - 60: x87 control word; rsp = rbp - 80: run
    "stmxcsr [rbp - 64]",
    "fnstcw [rbp - 60]",
    "mov [rsp], rcx",
    "mov rax, rdi",
    "mov ecx, edx",
    "mov rdi, [rsi]",
    "mov rdx, [rsi + 16]",
    "mov r8, [rsi + 24]",
    "mov r9, [rsi + 32]",
    "mov rsi, [rsi + 8]",
    "call rax",
    "mov rcx, [rbp - 48]",
    "mov [rcx], rdi",
    "mov [rcx + 8], rsi",
    "mov [rcx + 16], rdx",
    "mov [rcx + 24], r8",
    "mov [rcx + 32], r9",
    "fninit",
    "fldcw [rbp - 60]",
    "ldmxcsr [rbp - 64]",
    "lea rsp, [rbp - 56]",
    "popfq",
    "pop rsi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn bulla_vdso_enter(function: u64, registers: *mut Registers, leaf: u32, run: *mut Run) -> i32;
}

/// Enters at `tcs` through `function`.
///
/// # Safety
/// `function` is `__vdso_sgx_enter_enclave` or behaves like it.
pub unsafe fn enter(
    function: Function,
    tcs: u64,
    leaf: EnterLeaf,
    registers: &mut Registers,
) -> Outcome {
    let mut run = Run::new(tcs);
    // SAFETY: the caller vouches for the function; `run` and `registers` are ours.
    let result = unsafe { bulla_vdso_enter(function.address, registers, leaf as u32, &mut run) };
    if result == EFAULT {
        // An exception inside is reported with ERESUME as the function, since that is what the AEX
        // left in RAX. A failed ERESUME looks the same; the entry that follows will tell.
        let leaf = if run.function == EENTER { EENTER } else { 0 };
        return Outcome::Exception {
            leaf,
            vector: run.exception_vector,
            error_code: run.exception_error_code,
            address: run.exception_addr,
        };
    }
    Outcome::Exit
}

/// The thread was interrupted with this context: if ERESUME comes next (at the asynchronous exit
/// pointer, or before the first one), makes it an EENTER. Returns whether it was.
///
/// # Safety
/// `context` is the kernel's, of a signal being delivered to this thread; `function` is the vDSO's.
pub unsafe fn redirect(function: Function, context: *mut c_void) -> bool {
    const ENCLU: [u8; 3] = [0x0f, 0x01, 0xd7];
    // SAFETY: the caller's promise.
    let registers = unsafe { &mut (*(context as *mut libc::ucontext_t)).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize] as u64;
    let within = function.address..(function.address + function.len).saturating_sub(2);
    if !within.contains(&rip) {
        return false;
    }
    // SAFETY: three bytes inside the function.
    let bytes = unsafe { (rip as *const [u8; 3]).read_unaligned() };
    if bytes != ENCLU || registers[libc::REG_RAX as usize] & 0xffff_ffff != ERESUME {
        return false;
    }
    registers[libc::REG_RAX as usize] = i64::from(EENTER);
    registers[libc::REG_RDI as usize] = EXCEPTION;
    for register in [libc::REG_RSI, libc::REG_RDX, libc::REG_R8, libc::REG_R9] {
        registers[register as usize] = 0;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    // Stands in for the vDSO function with an enclave that leaves everything in disorder: it adds
    // one to what it is given, and checks alignment and the place of `run`. Leaf 3 "faults".
    global_asm!(
        ".pushsection .text.bulla_fake_vdso,\"ax\",@progbits",
        ".globl bulla_fake_vdso",
        "bulla_fake_vdso:",
        "push rbp",
        "mov rbp, rsp",
        "push rbx",
        "mov rbx, [rbp + 16]",
        "lea rax, [rsp + 8]",
        "test al, 15",
        "jz 2f",
        "ud2",
        "2:",
        "xor r12d, r12d",
        "xor r13d, r13d",
        "xor r14d, r14d",
        "mov r15, -1",
        "std",
        "push 0x1f00",
        "ldmxcsr [rsp]",
        "fldcw [rsp]",
        "fldz",
        "cmp ecx, 3",
        "je 3f",
        "mov dword ptr [rbx + 8], 4",
        "inc rdi",
        "inc rsi",
        "inc rdx",
        "inc r8",
        "inc r9",
        "mov rax, [rbx]",
        "add r9, rax",
        "xor eax, eax",
        "jmp 4f",
        "3:",
        "mov dword ptr [rbx + 8], 3",
        "mov word ptr [rbx + 12], 14",
        "mov word ptr [rbx + 14], 6",
        "mov qword ptr [rbx + 16], 0x5000",
        "mov eax, -14",
        "4:",
        "pop rbx",
        "pop rbx",
        "leave",
        "ret",
        ".globl bulla_fake_vdso_end",
        "bulla_fake_vdso_end:",
        ".popsection",
    );

    unsafe extern "C" {
        static bulla_fake_vdso: u8;
    }

    #[test]
    fn the_stub_restores_what_the_abi_wants() {
        let function = Function {
            address: &raw const bulla_fake_vdso as u64,
            len: 0,
        };
        let mut registers = Registers {
            rdi: 10,
            rsi: 20,
            rdx: 30,
            r8: 40,
            r9: 50,
        };
        let before = control_words();
        // SAFETY: a function with the vDSO's convention.
        let outcome = unsafe { enter(function, 0x1000, EnterLeaf::Eenter, &mut registers) };
        assert_eq!(outcome, Outcome::Exit);
        let expected = Registers {
            rdi: 11,
            rsi: 21,
            rdx: 31,
            r8: 41,
            r9: 51 + 0x1000,
        };
        assert_eq!(registers, expected);
        // SAFETY: as above.
        let outcome = unsafe { enter(function, 0x1000, EnterLeaf::Eresume, &mut registers) };
        let fault = Outcome::Exception {
            leaf: 0,
            vector: 14,
            error_code: 6,
            address: 0x5000,
        };
        assert_eq!(outcome, fault);
        assert_eq!(control_words(), before);
        // The x87 stack is usable.
        assert_eq!(std::hint::black_box(2.0f64).sqrt() * 0.0, 0.0);
    }

    fn control_words() -> (u32, u16, u64) {
        let (mut mxcsr, mut control, flags) = (0u32, 0u16, 0u64);
        // SAFETY: reads control registers into locals.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &mut mxcsr);
            std::arch::asm!("fnstcw [{}]", in(reg) &mut control);
        }
        let flags = {
            let mut now = flags;
            // SAFETY: reads the flags.
            unsafe { std::arch::asm!("pushfq", "pop {}", out(reg) now) };
            now & (1 << 10)
        };
        // Sticky exception flags of MXCSR are not control bits.
        (mxcsr & !0x3f, control, flags)
    }

    #[test]
    fn a_kick_at_the_exit_pointer_becomes_an_entry() {
        let code: [u8; 8] = [0x90, 0x0f, 0x01, 0xd7, 0x90, 0x90, 0x90, 0x90];
        let function = Function {
            address: code.as_ptr() as u64,
            len: 8,
        };
        let kick = |rip: u64, rax: i64| {
            // SAFETY: all zeros is a valid context.
            let mut context: libc::ucontext_t = unsafe { std::mem::zeroed() };
            context.uc_mcontext.gregs[libc::REG_RIP as usize] = rip as i64;
            context.uc_mcontext.gregs[libc::REG_RAX as usize] = rax;
            // SAFETY: a context of ours, and code that can be read.
            let done = unsafe { redirect(function, (&raw mut context).cast()) };
            let registers = context.uc_mcontext.gregs;
            (
                done,
                registers[libc::REG_RAX as usize],
                registers[libc::REG_RDI as usize],
            )
        };
        assert_eq!(kick(function.address + 1, 3), (true, 2, 3));
        assert_eq!(kick(function.address + 1, 2), (false, 2, 0));
        assert_eq!(kick(function.address, 3), (false, 3, 0));
        assert_eq!(kick(function.address + 7, 3), (false, 3, 0));
        assert_eq!(kick(0, 3), (false, 3, 0));
    }
}
