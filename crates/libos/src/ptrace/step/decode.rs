//! As much of an instruction as a step needs (SDM volume 2, chapter 2 and appendix A): its length,
//! and what a branch does.

#[cfg(test)]
mod tests;

use crate::Registers;
use crate::mm::AddressSpace;

/// The longest instruction.
pub const INSTRUCTION_MAX: usize = 15;

/// What an instruction means for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    Branch(Branch),
    /// SYSCALL.
    Call,
    /// The one after it is next.
    Plain {
        len: usize,
    },
}

/// A near branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    len: usize,
    condition: Condition,
    target: Target,
    /// CALL.
    pushes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Always,
    /// Jcc, by the lower half of its opcode.
    Flags(u8),
    /// LOOPNE, LOOPE, LOOP, JRCXZ, by the lower half of the opcode; `narrow`: ECX.
    Count {
        kind: u8,
        narrow: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// From the next instruction.
    Relative(i64),
    Register(u8),
    Memory(Memory),
    /// RET, with the bytes that it drops.
    Return(u16),
}

/// A memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    base: Option<u8>,
    index: Option<(u8, u8)>,
    displacement: i64,
    relative_to_rip: bool,
    /// FS is its segment.
    of_thread: bool,
    narrow: bool,
}

/// Prefixes before an opcode.
#[derive(Clone, Copy, Default)]
struct Prefixes {
    operand: bool,
    address: bool,
    fs: bool,
    gs: bool,
    rex: u8,
}

struct Reader<'a> {
    code: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = *self.code.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn skip(&mut self, len: usize) -> Option<()> {
        self.at += len;
        (self.at <= self.code.len()).then_some(())
    }

    fn signed(&mut self, len: usize) -> Option<i64> {
        let start = self.at;
        self.skip(len)?;
        let bytes = &self.code[start..self.at];
        Some(match *bytes {
            [byte] => i64::from(byte as i8),
            [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
            _ => 0,
        })
    }

    fn prefixes(&mut self) -> Option<Prefixes> {
        let mut found = Prefixes::default();
        loop {
            let byte = *self.code.get(self.at)?;
            match byte {
                0x66 => found.operand = true,
                0x67 => found.address = true,
                0x64 => (found.fs, found.gs) = (true, false),
                0x65 => (found.fs, found.gs) = (false, true),
                0x26 | 0x2e | 0x36 | 0x3e | 0xf0 | 0xf2 | 0xf3 => {}
                0x40..=0x4f => {
                    // It counts only right before the opcode.
                    found.rex = byte;
                    self.at += 1;
                    continue;
                }
                _ => return Some(found),
            }
            found.rex = 0;
            self.at += 1;
        }
    }

    /// ModRM and what belongs to it: its register field, and the operand.
    fn operand(&mut self, prefixes: Prefixes) -> Option<(u8, Operand)> {
        let modrm = self.next()?;
        let (mode, field, low) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
        let (x, b) = (prefixes.rex << 2 & 8, prefixes.rex << 3 & 8);
        if mode == 3 {
            return Some((field, Operand::Register(low | b)));
        }
        let mut memory = Memory {
            base: Some(low | b),
            index: None,
            displacement: 0,
            relative_to_rip: false,
            of_thread: prefixes.fs,
            narrow: prefixes.address,
        };
        let mut displacement = [0, 1, 4][usize::from(mode)];
        if low == 4 {
            let sib = self.next()?;
            let index = sib >> 3 & 7 | x;
            memory.index = (index != 4).then_some((index, sib >> 6));
            memory.base = Some(sib & 7 | b);
            if sib & 7 == 5 && mode == 0 {
                memory.base = None;
                displacement = 4;
            }
        } else if low == 5 && mode == 0 {
            memory.base = None;
            memory.relative_to_rip = true;
            displacement = 4;
        }
        if displacement > 0 {
            memory.displacement = self.signed(displacement)?;
        }
        // The enclave's own segment.
        let operand = match prefixes.gs {
            true => Operand::Unknown,
            false => Operand::Memory(memory),
        };
        Some((field, operand))
    }
}

enum Operand {
    Register(u8),
    Memory(Memory),
    Unknown,
}

/// What follows the opcode of an instruction that is no branch.
#[derive(Clone, Copy)]
struct Shape {
    modrm: bool,
    immediate: usize,
}

const fn shape(modrm: bool, immediate: usize) -> Option<Shape> {
    Some(Shape { modrm, immediate })
}

/// Decodes the instruction at the start of `code`. `None` for what is none, is cut off, or leads away
/// in a way that no program of today uses (far branches).
pub fn decode(code: &[u8]) -> Option<Instruction> {
    let code = &code[..code.len().min(INSTRUCTION_MAX)];
    let mut reader = Reader { code, at: 0 };
    let prefixes = reader.prefixes()?;
    let opcode = reader.next()?;
    if let Some(branch) = branch(&mut reader, prefixes, opcode) {
        return branch.map(Instruction::Branch);
    }
    let shape = match opcode {
        0x0f => match reader.next()? {
            0x05 => return Some(Instruction::Call),
            0x38 => {
                reader.next()?;
                shape(true, 0)
            }
            0x3a => {
                reader.next()?;
                shape(true, 1)
            }
            0x0f => shape(true, 1),
            second => two_bytes(second),
        },
        0xc5 => {
            reader.skip(1)?;
            vector(1, reader.next()?)
        }
        0xc4 => {
            let map = reader.next()? & 0x1f;
            reader.skip(1)?;
            vector(map, reader.next()?)
        }
        0x62 => {
            let map = reader.next()? & 7;
            reader.skip(2)?;
            vector(map, reader.next()?)
        }
        opcode => one_byte(opcode, prefixes),
    }?;
    let mut immediate = shape.immediate;
    if shape.modrm {
        let (field, _) = reader.operand(prefixes)?;
        // TEST among NOT, NEG, MUL and DIV.
        match (opcode, field) {
            (0xf6, 0 | 1) => immediate = 1,
            (0xf7, 0 | 1) => immediate = wide(prefixes),
            _ => {}
        }
    }
    reader.skip(immediate)?;
    Some(Instruction::Plain { len: reader.at })
}

/// Bytes of an immediate that is at most 32 bits wide.
fn wide(prefixes: Prefixes) -> usize {
    match prefixes.operand && prefixes.rex & 8 == 0 {
        true => 2,
        false => 4,
    }
}

fn one_byte(opcode: u8, prefixes: Prefixes) -> Option<Shape> {
    let wide = wide(prefixes);
    match opcode {
        0x00..=0x3f => match opcode & 7 {
            0..=3 => shape(true, 0),
            4 => shape(false, 1),
            5 => shape(false, wide),
            _ => None,
        },
        0x63 | 0x84..=0x8f | 0xd0..=0xd3 | 0xd8..=0xdf | 0xf6 | 0xf7 | 0xfe | 0xff => {
            shape(true, 0)
        }
        0x50..=0x5f | 0x6c..=0x6f | 0x90..=0x99 | 0x9b..=0x9f | 0xa4..=0xa7 | 0xaa..=0xaf => {
            shape(false, 0)
        }
        0xc9 | 0xcc | 0xd7 | 0xec..=0xef | 0xf1 | 0xf4 | 0xf5 | 0xf8..=0xfd => shape(false, 0),
        0x68 | 0xa9 => shape(false, wide),
        0x69 | 0x81 | 0xc7 => shape(true, wide),
        0x6a | 0xa8 | 0xb0..=0xb7 | 0xcd | 0xe4..=0xe7 => shape(false, 1),
        0x6b | 0x80 | 0x83 | 0xc0 | 0xc1 | 0xc6 => shape(true, 1),
        0xa0..=0xa3 => shape(false, if prefixes.address { 4 } else { 8 }),
        0xb8..=0xbf if prefixes.rex & 8 != 0 => shape(false, 8),
        0xb8..=0xbf => shape(false, wide),
        0xc8 => shape(false, 3),
        _ => None,
    }
}

/// Opcodes after 0F.
fn two_bytes(opcode: u8) -> Option<Shape> {
    match opcode {
        0x04 | 0x07 | 0x0a | 0x0c | 0x20..=0x27 | 0x34..=0x36 | 0x39 | 0x3b..=0x3f | 0xaa => None,
        0x06 | 0x08 | 0x09 | 0x0b | 0x0e | 0x30..=0x33 | 0x37 | 0x77 => shape(false, 0),
        0xa0..=0xa2 | 0xa8 | 0xa9 | 0xc8..=0xcf => shape(false, 0),
        0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => shape(true, 1),
        _ => shape(true, 0),
    }
}

/// VEX and EVEX, by opcode map.
fn vector(map: u8, opcode: u8) -> Option<Shape> {
    match (map, opcode) {
        (1, 0x77) => shape(false, 0),
        (1, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) | (3, _) => shape(true, 1),
        (1 | 2 | 5 | 6, _) => shape(true, 0),
        _ => None,
    }
}

/// `None` for what is no near branch; `Some(None)` for a branch that is not carried out here.
fn branch(reader: &mut Reader<'_>, prefixes: Prefixes, opcode: u8) -> Option<Option<Branch>> {
    let start = reader.at;
    let (condition, target, pushes) = match opcode {
        0x70..=0x7f => (Condition::Flags(opcode & 15), relative(reader, 1), false),
        0x0f if matches!(reader.code.get(reader.at), Some(0x80..=0x8f)) => {
            let kind = reader.next()? & 15;
            (Condition::Flags(kind), relative(reader, 4), false)
        }
        0xe0..=0xe3 => {
            let condition = Condition::Count {
                kind: opcode & 3,
                narrow: prefixes.address,
            };
            (condition, relative(reader, 1), false)
        }
        0xe8 | 0xe9 => (Condition::Always, relative(reader, 4), opcode == 0xe8),
        0xeb => (Condition::Always, relative(reader, 1), false),
        0xc3 => (Condition::Always, Some(Target::Return(0)), false),
        0xc2 => {
            let dropped = reader.next().zip(reader.next());
            let target = dropped.map(|(low, high)| Target::Return(u16::from_le_bytes([low, high])));
            (Condition::Always, target, false)
        }
        0xff => match reader.operand(prefixes) {
            Some((field @ (2 | 4), operand)) => {
                let target = match operand {
                    Operand::Register(register) => Some(Target::Register(register)),
                    Operand::Memory(memory) => Some(Target::Memory(memory)),
                    Operand::Unknown => None,
                };
                (Condition::Always, target, field == 2)
            }
            // Far branches.
            Some((3 | 5, _)) => return Some(None),
            _ => {
                reader.at = start;
                return None;
            }
        },
        0xca | 0xcb | 0xcf => return Some(None),
        _ => return None,
    };
    // With this prefix makers of CPUs do not agree.
    let target = target.filter(|_| !prefixes.operand);
    Some(target.map(|target| Branch {
        len: reader.at,
        condition,
        target,
        pushes,
    }))
}

fn relative(reader: &mut Reader<'_>, len: usize) -> Option<Target> {
    reader.signed(len).map(Target::Relative)
}

impl Branch {
    /// Does what the instruction does; false, and nothing, where memory does not allow it.
    pub fn carry_out(&self, mm: &AddressSpace, registers: &mut Registers, fs_base: u64) -> bool {
        let next = registers.rip.wrapping_add(self.len as u64);
        let mut after = *registers;
        after.rip = next;
        if self.is_taken(&mut after) {
            let word = |address: u64| {
                let mut bytes = [0; 8];
                let read = mm.read(address, &mut bytes);
                read.is_ok().then(|| u64::from_le_bytes(bytes))
            };
            let target = match self.target {
                Target::Relative(distance) => Some(next.wrapping_add_signed(distance)),
                Target::Register(register) => Some(general(registers, register)),
                Target::Memory(memory) => word(memory.address(registers, next, fs_base)),
                Target::Return(dropped) => {
                    after.rsp = after.rsp.wrapping_add(8 + u64::from(dropped));
                    word(registers.rsp)
                }
            };
            let Some(target) = target else { return false };
            after.rip = target;
        }
        if self.pushes {
            after.rsp = after.rsp.wrapping_sub(8);
            if mm.write(after.rsp, &next.to_le_bytes()).is_err() {
                return false;
            }
        }
        *registers = after;
        true
    }

    fn is_taken(&self, registers: &mut Registers) -> bool {
        let zero = registers.rflags & 0x40 != 0;
        match self.condition {
            Condition::Always => true,
            Condition::Flags(kind) => holds(kind, registers.rflags),
            Condition::Count { kind: 3, narrow } => match narrow {
                true => registers.rcx as u32 == 0,
                false => registers.rcx == 0,
            },
            Condition::Count { kind, narrow } => {
                registers.rcx = match narrow {
                    true => u64::from((registers.rcx as u32).wrapping_sub(1)),
                    false => registers.rcx.wrapping_sub(1),
                };
                registers.rcx != 0 && (kind == 2 || zero == (kind == 1))
            }
        }
    }
}

/// Whether a condition of Jcc holds.
fn holds(kind: u8, flags: u64) -> bool {
    let flag = |bit: u32| flags >> bit & 1 != 0;
    let (carry, parity, zero, sign, overflow) = (flag(0), flag(2), flag(6), flag(7), flag(11));
    let holds = match kind >> 1 {
        0 => overflow,
        1 => carry,
        2 => zero,
        3 => carry || zero,
        4 => sign,
        5 => parity,
        6 => sign != overflow,
        _ => zero || sign != overflow,
    };
    holds != (kind & 1 != 0)
}

fn general(r: &Registers, number: u8) -> u64 {
    match number {
        0 => r.rax,
        1 => r.rcx,
        2 => r.rdx,
        3 => r.rbx,
        4 => r.rsp,
        5 => r.rbp,
        6 => r.rsi,
        7 => r.rdi,
        8 => r.r8,
        9 => r.r9,
        10 => r.r10,
        11 => r.r11,
        12 => r.r12,
        13 => r.r13,
        14 => r.r14,
        _ => r.r15,
    }
}

impl Memory {
    fn address(&self, registers: &Registers, next: u64, fs_base: u64) -> u64 {
        let mut address = self.displacement as u64;
        if self.relative_to_rip {
            address = address.wrapping_add(next);
        }
        if let Some(base) = self.base {
            address = address.wrapping_add(general(registers, base));
        }
        if let Some((index, scale)) = self.index {
            address = address.wrapping_add(general(registers, index) << scale);
        }
        if self.narrow {
            address &= 0xffff_ffff;
        }
        if self.of_thread {
            address = address.wrapping_add(fs_base);
        }
        address
    }
}
