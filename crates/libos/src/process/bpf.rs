//! Classic BPF as seccomp(2) uses it: a small machine without loops over `struct seccomp_data`.
//!
//! A [`Program`] is checked when it is made (`Documentation/networking/filter.rst`, and what Linux's
//! seccomp allows of it), so that running it cannot fail.

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Result;
use crate::errno::EINVAL;

/// Most instructions of a program (BPF_MAXINSNS).
pub const INSTRUCTIONS_MAX: usize = 4096;
/// Words of scratch memory.
const MEMORY_WORDS: usize = 16;
/// Bytes of `struct seccomp_data`.
pub const DATA_SIZE: usize = 64;

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub k: u32,
}

/// What a program looks at: `struct seccomp_data` as words.
pub type Data = [u32; DATA_SIZE / 4];

// Opcodes: class, size and mode, or operation and source.
const LD_W_ABS: u16 = 0x20;
const LD_W_LEN: u16 = 0x80;
const LD_IMM: u16 = 0x00;
const LD_MEM: u16 = 0x60;
const LDX_W_LEN: u16 = 0x81;
const LDX_IMM: u16 = 0x01;
const LDX_MEM: u16 = 0x61;
const ST: u16 = 0x02;
const STX: u16 = 0x03;
const ALU: u16 = 0x04;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const RET_K: u16 = 0x06;
const RET_A: u16 = 0x16;
const TAX: u16 = 0x07;
const TXA: u16 = 0x87;
/// The operand is X, not the constant.
const SOURCE_X: u16 = 0x08;
/// Operations of class ALU, from ADD on: ADD SUB MUL DIV OR AND LSH RSH NEG, and XOR.
const ADD: u16 = 0x00;
const SUB: u16 = 0x10;
const MUL: u16 = 0x20;
const DIV: u16 = 0x30;
const OR: u16 = 0x40;
const AND: u16 = 0x50;
const LSH: u16 = 0x60;
const RSH: u16 = 0x70;
const NEG: u16 = 0x80;
const XOR: u16 = 0xa0;

/// A checked program.
#[derive(Debug)]
pub struct Program(Vec<Instruction>);

impl Program {
    /// EINVAL for what Linux refuses: unknown instructions, jumps out of the program, loads from
    /// outside the data or of scratch words that were never stored, no return at the end.
    pub fn new(instructions: Vec<Instruction>) -> Result<Program> {
        let len = instructions.len();
        if len == 0 || len > INSTRUCTIONS_MAX {
            return Err(EINVAL.because("a filter has 1 to 4096 instructions"));
        }
        // Scratch words that are certainly stored when an instruction is reached.
        let mut stored: Vec<u16> = alloc::vec![u16::MAX; len];
        stored[0] = 0;
        let mut falls_to = 0;
        for (at, instruction) in instructions.iter().enumerate() {
            let known = if at == 0 { 0 } else { stored[at] & falls_to };
            falls_to = check(instruction, at, len, known, &mut stored)?;
        }
        match instructions[len - 1].code {
            RET_K | RET_A => Ok(Program(instructions)),
            _ => Err(EINVAL.because("a filter ends with a return")),
        }
    }

    /// How many instructions there are.
    pub fn instructions(&self) -> usize {
        self.0.len()
    }

    /// The value that the program returns.
    pub fn run(&self, data: &Data) -> u32 {
        let (mut a, mut x, mut at) = (0u32, 0u32, 0usize);
        let mut memory = [0u32; MEMORY_WORDS];
        while let Some(&Instruction {
            code,
            if_true,
            if_false,
            k,
        }) = self.0.get(at)
        {
            at += 1;
            let word = k as usize % MEMORY_WORDS;
            match code {
                LD_W_ABS => a = data[k as usize / 4],
                LD_W_LEN => a = DATA_SIZE as u32,
                LDX_W_LEN => x = DATA_SIZE as u32,
                LD_IMM => a = k,
                LDX_IMM => x = k,
                LD_MEM => a = memory[word],
                LDX_MEM => x = memory[word],
                ST => memory[word] = a,
                STX => memory[word] = x,
                TAX => x = a,
                TXA => a = x,
                RET_K => return k,
                RET_A => return a,
                JA => at += k as usize,
                code if code & 7 == ALU => {
                    let operand = if code & SOURCE_X != 0 { x } else { k };
                    match calculate(code & 0xf0, a, operand) {
                        Some(value) => a = value,
                        None => return 0,
                    }
                }
                code => {
                    let operand = if code & SOURCE_X != 0 { x } else { k };
                    let holds = match code & !SOURCE_X {
                        JEQ => a == operand,
                        JGT => a > operand,
                        JGE => a >= operand,
                        _ => a & operand != 0,
                    };
                    at += usize::from(if holds { if_true } else { if_false });
                }
            }
        }
        // Not reached: jumps stay inside, and the last instruction returns.
        0
    }
}

/// `None` for a division by zero, which returns 0 from the program.
fn calculate(operation: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match operation {
        ADD => a.wrapping_add(operand),
        SUB => a.wrapping_sub(operand),
        MUL => a.wrapping_mul(operand),
        DIV => return a.checked_div(operand),
        OR => a | operand,
        AND => a & operand,
        LSH => a.wrapping_shl(operand),
        RSH => a.wrapping_shr(operand),
        NEG => a.wrapping_neg(),
        _ => a ^ operand,
    })
}

/// Checks one instruction; the scratch words that are stored when it falls through to the next.
fn check(
    instruction: &Instruction,
    at: usize,
    len: usize,
    known: u16,
    stored: &mut [u16],
) -> Result<u16> {
    let bad = EINVAL.because("not an instruction of a seccomp filter");
    let Instruction {
        code,
        if_true,
        if_false,
        k,
    } = *instruction;
    let scratch = |k: u32| match (k as usize) < MEMORY_WORDS {
        true => Ok(1u16 << k),
        false => Err(bad),
    };
    let mut jump = |by: usize| match at + 1 + by {
        to if to < len => {
            stored[to] &= known;
            Ok(())
        }
        _ => Err(EINVAL.because("a jump out of the filter")),
    };
    match code {
        LD_W_ABS if k.is_multiple_of(4) && (k as usize) < DATA_SIZE => {}
        LD_W_LEN | LDX_W_LEN | LD_IMM | LDX_IMM | TAX | TXA => {}
        LD_MEM | LDX_MEM => {
            if known & scratch(k)? == 0 {
                return Err(EINVAL.because("a scratch word is read before it is stored"));
            }
        }
        ST | STX => return Ok(known | scratch(k)?),
        // What follows is reached by jumps only.
        RET_K | RET_A => return Ok(u16::MAX),
        JA => {
            jump(k as usize)?;
            return Ok(u16::MAX);
        }
        code if matches!(code & !SOURCE_X, JEQ | JGT | JGE | JSET) => {
            jump(usize::from(if_true))?;
            jump(usize::from(if_false))?;
            return Ok(u16::MAX);
        }
        code if code & 7 == ALU && code < 0x100 => {
            let constant = code & SOURCE_X == 0;
            match code & 0xf0 {
                DIV if constant && k == 0 => return Err(bad),
                LSH | RSH if constant && k >= 32 => return Err(bad),
                NEG if !constant => return Err(bad),
                ADD | SUB | MUL | DIV | OR | AND | LSH | RSH | NEG | XOR => {}
                _ => return Err(bad),
            }
        }
        _ => return Err(bad),
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(code: u16, if_true: u8, if_false: u8, k: u32) -> Instruction {
        Instruction {
            code,
            if_true,
            if_false,
            k,
        }
    }

    fn run(code: &[Instruction], data: &Data) -> u32 {
        Program::new(code.to_vec()).unwrap().run(data)
    }

    #[test]
    fn jumps_and_loads() {
        let program = [
            op(LD_W_ABS, 0, 0, 0),
            op(JEQ, 1, 0, 39),
            op(RET_K, 0, 0, 1),
            op(LD_W_ABS, 0, 0, 16),
            op(JGT | SOURCE_X, 0, 1, 0),
            op(RET_K, 0, 0, 2),
            op(RET_A, 0, 0, 0),
        ];
        let mut data = Data::default();
        assert_eq!(run(&program, &data), 1);
        data[0] = 39;
        assert_eq!(run(&program, &data), 0);
        data[4] = 7;
        assert_eq!(run(&program, &data), 2);
    }

    #[test]
    fn arithmetic() {
        let with = |operation: u16, a: u32, k: u32| {
            let program = [
                op(LD_IMM, 0, 0, a),
                op(ALU | operation, 0, 0, k),
                op(RET_A, 0, 0, 0),
            ];
            run(&program, &Data::default())
        };
        assert_eq!(with(ADD, u32::MAX, 2), 1);
        assert_eq!(with(SUB, 1, 2), u32::MAX);
        assert_eq!(with(MUL, 1 << 31, 2), 0);
        assert_eq!(with(DIV, 9, 2), 4);
        assert_eq!(with(LSH, 1, 31), 1 << 31);
        assert_eq!(with(RSH, 1 << 31, 31), 1);
        assert_eq!(with(NEG, 1, 0), u32::MAX);
        assert_eq!(with(XOR, 6, 3), 5);
        let by_zero = [
            op(LD_IMM, 0, 0, 5),
            op(ALU | DIV | SOURCE_X, 0, 0, 0),
            op(RET_K, 0, 0, 9),
        ];
        assert_eq!(run(&by_zero, &Data::default()), 0);
        let scratch = [
            op(LD_IMM, 0, 0, 5),
            op(ST, 0, 0, 15),
            op(LDX_MEM, 0, 0, 15),
            op(TXA, 0, 0, 0),
            op(RET_A, 0, 0, 0),
        ];
        assert_eq!(run(&scratch, &Data::default()), 5);
    }

    #[test]
    fn bad_programs_are_refused() {
        let end = op(RET_K, 0, 0, 0);
        for bad in [
            op(LD_W_ABS, 0, 0, 64),
            op(LD_W_ABS, 0, 0, 2),
            op(0x28, 0, 0, 0),
            op(JEQ, 1, 0, 0),
            op(JA, 0, 0, 1),
            op(JA, 0, 0, u32::MAX),
            op(LD_MEM, 0, 0, 0),
            op(ST, 0, 0, 16),
            op(ALU | DIV, 0, 0, 0),
            op(ALU | LSH, 0, 0, 32),
            op(ALU | 0x90, 0, 0, 3),
            op(0xffff, 0, 0, 0),
        ] {
            assert!(Program::new(alloc::vec![bad, end]).is_err(), "{bad:?}");
        }
        assert!(Program::new(Vec::new()).is_err());
        assert!(Program::new(alloc::vec![op(LD_IMM, 0, 0, 0)]).is_err());
        // Stored on one of two ways only.
        let half = alloc::vec![op(JEQ, 1, 0, 0), op(ST, 0, 0, 3), op(LD_MEM, 0, 0, 3), end,];
        assert!(Program::new(half).is_err());
    }

    #[test]
    fn no_program_that_is_accepted_panics() {
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as u32
        };
        let codes = [
            LD_W_ABS, LD_W_LEN, LDX_W_LEN, LD_IMM, LDX_IMM, LD_MEM, LDX_MEM, ST, STX, TAX, TXA, JA,
            JEQ, JGT, JGE, JSET, RET_K, RET_A,
        ];
        let mut accepted = 0;
        for _ in 0..20_000 {
            let len = random() as usize % 6;
            let mut code: Vec<Instruction> = (0..len)
                .map(|_| {
                    let code = match random() % 3 {
                        0 => ALU | (random() as u16 & 0xf8),
                        1 => codes[random() as usize % codes.len()],
                        _ => codes[random() as usize % codes.len()] | (random() as u16 & 8),
                    };
                    op(code, random() as u8 % 4, random() as u8 % 4, random() % 20)
                })
                .collect();
            code.push(op(RET_A, 0, 0, 0));
            if let Ok(program) = Program::new(code) {
                program.run(&[random(); 16]);
                accepted += 1;
            }
        }
        assert!(accepted > 100);
    }
}
