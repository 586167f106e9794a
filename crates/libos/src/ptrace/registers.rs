//! `struct user_regs_struct`, and a stopped thread's registers.

use alloc::vec::Vec;

use crate::errno::EIO;
use crate::platform::platform;
use crate::user::ADDRESS_MAX;
use crate::{Registers, Result};

/// Words of `struct user_regs_struct`.
pub const WORDS: usize = 27;
/// Bytes of `struct user`, and where the debug registers lie in it.
pub const USER_SIZE: u64 = 928;
pub const DEBUG_REGISTERS: core::ops::Range<u64> = 848..912;
/// Bytes of `struct user_fpregs_struct`.
pub const FPREGS_SIZE: usize = 512;
/// Where debuggers look for XCR0 in an XSAVE area.
const XCR0_AT: usize = 464;

const USER_CS: u64 = 0x33;
const USER_SS: u64 = 0x2b;
/// Flags that a tracer may change: CF, PF, AF, ZF, SF, DF, OF, RF, AC. Not TF: see [`super::step`].
const FLAGS: u64 = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;

const ORIG_RAX: usize = 15;
const CS: usize = 17;
const EFLAGS: usize = 18;
const SS: usize = 20;
const FS_BASE: usize = 21;
const GS_BASE: usize = 22;

/// All registers of a stopped thread.
pub struct Snapshot {
    pub registers: Registers,
    pub fs_base: u64,
    /// XSAVE standard format.
    pub fpu: Vec<u8>,
    /// The extended state was changed.
    pub has_new_fpu: bool,
}

impl Snapshot {
    /// Those of the calling thread.
    pub fn take(registers: &Registers) -> Snapshot {
        let mut fpu = alloc::vec![0; platform().fpu_size()];
        platform().fpu_save(&mut fpu);
        Snapshot {
            registers: *registers,
            fs_base: platform().fs_base(),
            fpu,
            has_new_fpu: false,
        }
    }

    /// Gives them back to the calling thread.
    pub fn put_back(&self, registers: &mut Registers) {
        *registers = self.registers;
        if platform().fs_base() != self.fs_base {
            platform().set_fs_base(self.fs_base);
        }
        if self.has_new_fpu {
            platform().fpu_restore(&self.fpu);
        }
    }

    /// `struct user_regs_struct`.
    pub fn words(&self) -> [u64; WORDS] {
        words(&self.registers, self.fs_base)
    }

    /// Changes one word. EIO for what no program can have.
    pub fn set_word(&mut self, index: usize, value: u64) -> Result<()> {
        let r = &mut self.registers;
        let selector = |may_be_null: bool| match value & 0xffff {
            0 if may_be_null => Ok(()),
            value if value & 3 == 3 => Ok(()),
            _ => Err(EIO.because("not a selector of user code")),
        };
        match index {
            // Long mode has these two for good, and no use for the others.
            CS | SS => return selector(false),
            23..=26 => return selector(true),
            EFLAGS => r.rflags = r.rflags & !FLAGS | value & FLAGS,
            FS_BASE if value < ADDRESS_MAX => self.fs_base = value,
            // The enclave needs it itself.
            GS_BASE if value == 0 => {}
            FS_BASE | GS_BASE => return Err(EIO.because("no base that a program can have")),
            ORIG_RAX => r.orig_rax = value,
            _ => match general(r, index) {
                Some(register) => *register = value,
                None => return Err(EIO.because("no such register")),
            },
        }
        Ok(())
    }

    /// Changes the first of them; those before a bad one are changed.
    pub fn set_words(&mut self, words: &[u64]) -> Result<()> {
        for (index, &word) in words.iter().enumerate() {
            self.set_word(index, word)?;
        }
        Ok(())
    }

    /// NT_X86_XSTATE.
    pub fn extended(&self) -> Vec<u8> {
        let mut area = self.fpu.clone();
        if area.len() > FPREGS_SIZE {
            area[XCR0_AT..XCR0_AT + 8].copy_from_slice(&platform().fpu_features().to_le_bytes());
            area[XCR0_AT + 8..FPREGS_SIZE].fill(0);
        }
        area
    }

    /// NT_X86_XSTATE, whole, or NT_PRFPREG: x87 and SSE only.
    pub fn set_extended(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(self.fpu.len());
        self.fpu[..len].copy_from_slice(&bytes[..len]);
        if self.fpu.len() > FPREGS_SIZE {
            self.fpu[XCR0_AT..FPREGS_SIZE].fill(0);
            if len <= FPREGS_SIZE {
                // What was written is in use from now on.
                self.fpu[FPREGS_SIZE] |= 3;
            }
        }
        self.has_new_fpu = true;
    }
}

fn general(r: &mut Registers, index: usize) -> Option<&mut u64> {
    let all = [
        &mut r.r15, &mut r.r14, &mut r.r13, &mut r.r12, &mut r.rbp, &mut r.rbx, &mut r.r11,
        &mut r.r10, &mut r.r9, &mut r.r8, &mut r.rax, &mut r.rcx, &mut r.rdx, &mut r.rsi,
        &mut r.rdi,
    ];
    match index {
        16 => Some(&mut r.rip),
        19 => Some(&mut r.rsp),
        _ => all.into_iter().nth(index),
    }
}

/// `struct user_regs_struct`; CS and SS are those of user code.
pub fn words(r: &Registers, fs_base: u64) -> [u64; WORDS] {
    [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx,
        r.rsi, r.rdi, r.orig_rax, r.rip, USER_CS, r.rflags, r.rsp, USER_SS, fs_base, 0, 0, 0, 0, 0,
    ]
}
