//! Lengths as another decoder finds them, branches as a CPU carries them out.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic};
use rand::{Rng, SeedableRng};

use super::*;
use crate::testing;

/// Opcodes with operands of every kind, and whatever follows.
fn random(code: &mut [u8; INSTRUCTION_MAX], random: &mut impl Rng) {
    random.fill(&mut code[..]);
    let starts: &[&[u8]] = &[
        &[],
        &[0x48],
        &[0x41],
        &[0x66],
        &[0x0f],
        &[0x0f, 0x38],
        &[0x0f, 0x3a],
        &[0xc5],
        &[0xc4, 0xe2],
        &[0xc4, 0xe3],
        &[0x62, 0xf1],
        &[0x62, 0xf2],
        &[0xf3, 0x0f],
        &[0x64, 0x67],
    ];
    let start = starts[random.random_range(0..starts.len())];
    code[..start.len()].copy_from_slice(start);
}

/// A two-byte opcode after the prefixes.
fn code_of(code: &[u8]) -> Option<[u8; 2]> {
    let prefixes = [
        0x66, 0x67, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0xf0,
    ];
    let is_prefix = |byte: &u8| prefixes.contains(byte) || (0x40..0x50).contains(byte);
    let at = code.iter().position(|byte| !is_prefix(byte))?;
    code.get(at..at + 2)?.try_into().ok()
}

#[test]
fn lengths_are_those_of_another_decoder() {
    let mut source = rand::rngs::StdRng::seed_from_u64(7);
    let (mut code, mut compared) = ([0; INSTRUCTION_MAX], 0);
    let mut wrong = alloc::collections::BTreeMap::new();
    for _ in 0..400_000 {
        random(&mut code, &mut source);
        let mut decoder = Decoder::new(64, &code, DecoderOptions::NONE);
        let expected = decoder.decode();
        if expected.is_invalid() {
            continue;
        }
        let is_near = matches!(
            expected.flow_control(),
            FlowControl::UnconditionalBranch
                | FlowControl::ConditionalBranch
                | FlowControl::IndirectBranch
                | FlowControl::Call
                | FlowControl::IndirectCall
                | FlowControl::Return
        );
        // Those between virtual machines, which the other decoder takes for calls.
        let is_of_machines = code_of(&code) == Some([0x0f, 0x01]);
        let is_near = is_near && !is_of_machines;
        let is_call = expected.mnemonic() == Mnemonic::Syscall;
        let len = expected.len();
        let found = decode(&code);
        let right = match found {
            Some(Instruction::Plain { len: found }) => found == len && !is_near && !is_call,
            Some(Instruction::Branch(branch)) => branch.len == len && is_near,
            Some(Instruction::Call) => is_call,
            None => continue,
        };
        compared += 1;
        if !right {
            let what = alloc::format!("{found:?}, not {len}: {:02x?}", &code);
            wrong.insert(alloc::format!("{:?}", expected.code()), what);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(compared > 100_000, "{compared}");
}

#[test]
fn branches_go_where_a_cpu_goes() {
    let thread = testing::setup();
    let stack = testing::alloc_user(&thread, 0x1000) + 0x800;
    let mm = thread.mm();
    mm.write(stack, &0x5555u64.to_le_bytes()).unwrap();
    mm.write(stack + 0x10, &0x6666u64.to_le_bytes()).unwrap();
    let start = Registers {
        rip: 0x1000,
        rsp: stack,
        rbx: stack,
        rcx: 2,
        rax: 0x7777,
        r9: 0x8888,
        ..Registers::default()
    };
    let go = |code: &[u8], registers: Registers| {
        let Some(Instruction::Branch(branch)) = decode(code) else {
            panic!("{code:02x?} is no branch");
        };
        let mut after = registers;
        assert!(branch.carry_out(&mm, &mut after, 0x10));
        after
    };
    let rip = |code: &[u8], registers| go(code, registers).rip;
    assert_eq!(rip(&[0xeb, 0xfe], start), 0x1000);
    assert_eq!(rip(&[0xe9, 0, 1, 0, 0], start), 0x1105);
    assert_eq!(rip(&[0x0f, 0x84, 0, 1, 0, 0], start), 0x1006, "je");
    let zero = Registers {
        rflags: 0x40,
        ..start
    };
    assert_eq!(rip(&[0x0f, 0x84, 0, 1, 0, 0], zero), 0x1106);
    assert_eq!(rip(&[0x7e, 0x10], zero), 0x1012, "jle");
    assert_eq!(rip(&[0x7f, 0x10], zero), 0x1002, "jg");
    let less = Registers {
        rflags: 0x80,
        ..start
    };
    assert_eq!(rip(&[0x7c, 0x10], less), 0x1012, "jl");
    let after = go(&[0xe2, 0x10], start);
    assert_eq!((after.rip, after.rcx), (0x1012, 1), "loop");
    let after = go(&[0xe2, 0x10], after);
    assert_eq!((after.rip, after.rcx), (0x1014, 0));
    assert_eq!(rip(&[0xe3, 0x10], after), 0x1026, "jrcxz");
    assert_eq!(rip(&[0xff, 0xe0], start), 0x7777, "jmp *%rax");
    assert_eq!(rip(&[0x41, 0xff, 0xe1], start), 0x8888, "jmp *%r9");
    assert_eq!(rip(&[0xff, 0x63, 0x10], start), 0x6666, "jmp *16(%rbx)");
    assert_eq!(
        rip(&[0xff, 0x64, 0xcb, 0], start),
        0x6666,
        "jmp *(%rbx,%rcx,8)"
    );
    assert_eq!(rip(&[0x64, 0xff, 0x23], start), 0x6666, "jmp *%fs:(%rbx)");
    let after = go(&[0xff, 0xd0], start);
    let mut pushed = [0; 8];
    mm.read(after.rsp, &mut pushed).unwrap();
    let pushed = u64::from_le_bytes(pushed);
    assert_eq!((after.rip, after.rsp, pushed), (0x7777, stack - 8, 0x1002));
    mm.write(stack, &0x5555u64.to_le_bytes()).unwrap();
    let after = go(&[0xc3], start);
    assert_eq!((after.rip, after.rsp), (0x5555, stack + 8));
    let after = go(&[0xc2, 0x10, 0], start);
    assert_eq!((after.rip, after.rsp), (0x5555, stack + 24));
    // Memory that is not there, far branches.
    let Some(Instruction::Branch(branch)) = decode(&[0xff, 0x20]) else {
        panic!("a branch");
    };
    let mut registers = start;
    assert!(!branch.carry_out(&mm, &mut registers, 0));
    assert_eq!(registers, start);
    assert_eq!(decode(&[0xff, 0x28]), None);
    assert_eq!(decode(&[0xcb]), None);
    assert_eq!(decode(&[0x0f]), None, "cut off");
    assert_eq!(decode(&[0x0f, 0x05]), Some(Instruction::Call));
}
