//! MOVS, carried out by the kernel: the one instruction that copies memory from one view of a page
//! of shared memory to another (C libraries use it for long copies). See [`super::stuck::Views`].

use crate::{Registers, Thread};

/// Elements that are moved before the thread looks at its signals again.
const ELEMENTS_MAX: u64 = 1 << 14;
const FLAG_DIRECTION: u64 = 1 << 10;

/// A decoded MOVS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    /// Bytes of the instruction.
    len: u64,
    /// Bytes of an element.
    size: u64,
    repeated: bool,
}

/// Carries the instruction at `rip` out as far as memory allows; false if it is another one, or
/// nothing could be moved.
pub fn carry_out(thread: &Thread, registers: &mut Registers) -> bool {
    let mm = thread.mm();
    let mut code = [0; 8];
    if mm.read(registers.rip, &mut code).is_err() {
        return false;
    }
    let Some(instruction) = decode(&code) else {
        return false;
    };
    let size = instruction.size;
    let step = match registers.rflags & FLAG_DIRECTION {
        0 => size,
        _ => size.wrapping_neg(),
    };
    let mut left = if instruction.repeated {
        registers.rcx
    } else {
        1
    };
    let most = left.min(ELEMENTS_MAX);
    let mut moved = 0;
    let mut element = [0; 8];
    let element = &mut element[..size as usize];
    // One by one: source and target may overlap.
    while moved < most
        && mm.read(registers.rsi, element).is_ok()
        && mm.write(registers.rdi, element).is_ok()
    {
        registers.rsi = registers.rsi.wrapping_add(step);
        registers.rdi = registers.rdi.wrapping_add(step);
        left -= 1;
        moved += 1;
        if instruction.repeated {
            registers.rcx = left;
        }
    }
    if left == 0 {
        registers.rip += instruction.len;
    }
    moved > 0
}

/// MOVSB, W, D or Q with REP or without (SDM volume 2, MOVS); other segments and 32-bit addresses
/// are left alone.
fn decode(code: &[u8; 8]) -> Option<Move> {
    let (mut repeated, mut short, mut wide) = (false, false, false);
    for (at, &byte) in code.iter().enumerate() {
        match byte {
            0xf2 | 0xf3 => repeated = true,
            0x66 => short = true,
            0x26 | 0x2e | 0x36 | 0x3e => {}
            // REX stands right before the opcode.
            0x40..=0x4f if matches!(code.get(at + 1), Some(0xa4 | 0xa5)) => wide = byte & 8 != 0,
            0xa4 | 0xa5 => {
                let size = match (byte, wide, short) {
                    (0xa4, ..) => 1,
                    (_, true, _) => 8,
                    (_, _, true) => 2,
                    _ => 4,
                };
                let len = at as u64 + 1;
                return Some(Move {
                    len,
                    size,
                    repeated,
                });
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::PAGE;
    use crate::mm::map::Request;
    use crate::platform::Protection;
    use crate::process::tests::process;

    fn decoded(bytes: &[u8]) -> Option<(u64, u64, bool)> {
        let mut code = [0x90; 8];
        code[..bytes.len()].copy_from_slice(bytes);
        decode(&code).map(|one| (one.len, one.size, one.repeated))
    }

    #[test]
    fn moves_are_decoded() {
        assert_eq!(decoded(&[0xa4]), Some((1, 1, false)));
        assert_eq!(decoded(&[0xf3, 0xa4]), Some((2, 1, true)));
        assert_eq!(decoded(&[0xf3, 0x48, 0xa5]), Some((3, 8, true)));
        assert_eq!(decoded(&[0x66, 0xf3, 0xa5]), Some((3, 2, true)));
        assert_eq!(decoded(&[0xa5]), Some((1, 4, false)));
        assert_eq!(decoded(&[0x48, 0x89, 0xa5]), None);
        assert_eq!(decoded(&[0x65, 0xa4]), None);
        assert_eq!(decoded(&[0x67, 0xa4]), None);
        assert_eq!(decoded(&[0x66; 8]), None);
    }

    #[test]
    fn a_repeated_move_goes_on_where_it_stopped() {
        let thread = process();
        let mm = thread.mm();
        let rw = Protection::READ | Protection::WRITE;
        let at = mm.map(Request::anonymous(3 * PAGE, rw)).unwrap();
        mm.write(at, &[0xf3, 0xa4]).unwrap();
        mm.write(at + PAGE, b"abcdef").unwrap();
        let mut registers = Registers {
            rip: at,
            rsi: at + PAGE,
            rdi: at + PAGE + 2,
            rcx: 4,
            ..Registers::default()
        };
        assert!(carry_out(&thread, &mut registers));
        assert_eq!((registers.rip, registers.rcx), (at + 2, 0));
        let mut bytes = [0; 6];
        mm.read(at + PAGE, &mut bytes).unwrap();
        // As the instruction does with what overlaps.
        assert_eq!(&bytes, b"ababab");
        // To the end of the mapping and no further.
        registers = Registers {
            rip: at,
            rdi: at + 3 * PAGE - 2,
            rcx: 4,
            ..registers
        };
        assert!(carry_out(&thread, &mut registers));
        assert_eq!((registers.rip, registers.rcx), (at, 2));
        assert!(!carry_out(&thread, &mut registers));
    }
}
