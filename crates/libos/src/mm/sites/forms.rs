//! How an instruction can be rewritten, judged from the bytes around it.
//!
//! Nothing is decoded from a guessed start: a form is chosen only for byte patterns that leave one
//! reading. When in doubt the site goes on trapping: slow, never wrong.

use bulla_abi::sites::{Form, Kind};

/// Bytes before and after a site that are looked at.
pub const AROUND: usize = 16;
/// Bytes of a jump with a 32-bit distance.
pub const JUMP: usize = 5;
/// Unwinders know signal frames by the bytes of `mov $15, %rax; syscall`, which must stay.
const RT_SIGRETURN: u64 = 15;

/// The bytes of an instruction.
pub fn encoding(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Syscall => &[0x0f, 0x05],
        Kind::Cpuid => &[0x0f, 0xa2],
        Kind::Rdtsc => &[0x0f, 0x31],
        Kind::Rdtscp => &[0x0f, 0x01, 0xf9],
    }
}

/// The length of the instruction at the start of `code`, if it is one that is rewritten.
fn site_len(code: &[u8]) -> Option<usize> {
    [Kind::Syscall, Kind::Cpuid, Kind::Rdtsc, Kind::Rdtscp]
        .map(encoding)
        .into_iter()
        .find(|bytes| code.starts_with(bytes))
        .map(<[u8]>::len)
}

/// Where instructions that are rewritten may stand in code, and their lengths.
pub fn candidates(code: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let at = move |at: usize| Some((at, site_len(&code[at..])?));
    code.iter()
        .enumerate()
        .filter(|(_, byte)| **byte == 0x0f)
        .filter_map(move |(index, _)| at(index))
}

/// Chooses the form for an instruction that trapped with `number` in rax. `before` ends where the
/// instruction starts; `after` starts where it ends. [`Form::After`] is only a proposal: nothing
/// may branch into the bytes it moves.
pub fn choose(kind: Kind, before: &[u8], after: &[u8], number: u64) -> Form {
    if kind == Kind::Syscall && number == RT_SIGRETURN {
        return Form::Trap;
    }
    if let Some(len) = number_load(before, Some(number)) {
        return Form::Number { len };
    }
    if stack_move(before) {
        return Form::Before { len: 5 };
    }
    match movable_run(kind, after) {
        Some(len) => Form::After { len },
        None => Form::Trap,
    }
}

/// Whether the bytes are what `form` was chosen for. `whole` holds [`AROUND`] bytes, the site and
/// [`AROUND`] bytes.
pub fn matches(kind: Kind, form: Form, before: &[u8], site: &[u8], after: &[u8]) -> bool {
    if site != encoding(kind) {
        return false;
    }
    match form {
        Form::Trap => false,
        Form::Number { len } => number_load(before, None) == Some(len),
        Form::Before { len } => usize::from(len) >= JUMP && before.len() >= len.into(),
        Form::After { len } => usize::from(len) + site.len() >= JUMP && after.len() >= len.into(),
    }
}

/// The length of a `mov $number, %eax` (5) or `mov $number, %rax` (7) at the end of `before`.
fn number_load(before: &[u8], number: Option<u64>) -> Option<u8> {
    let (rest, immediate) = before.split_last_chunk::<4>()?;
    let value = i32::from_le_bytes(*immediate);
    let is = |loaded: u64| number.is_none_or(|number| number == loaded);
    if rest.ends_with(&[0x48, 0xc7, 0xc0]) && is(value as i64 as u64) {
        return Some(7);
    }
    let (&opcode, rest) = rest.split_last()?;
    // After a REX prefix with B it would load r8d.
    let extended = matches!(
        rest.last(),
        Some(0x41 | 0x43 | 0x45 | 0x47 | 0x49 | 0x4b | 0x4d | 0x4f)
    );
    (opcode == 0xb8 && !extended && is(u64::from(value as u32))).then_some(5)
}

/// A move between a 64-bit register and a stack slot, or `lea` of one, at the end of `before`:
/// REX.W, opcode, ModRM with SIB, SIB of rsp, displacement: 5 bytes. musl's and glibc's cancellable
/// and variadic calls have one there.
fn stack_move(before: &[u8]) -> bool {
    let Some((_, last)) = before.split_last_chunk::<5>() else {
        return false;
    };
    let [rex, opcode, modrm, sib, _] = *last;
    matches!(rex, 0x48 | 0x4c)
        && matches!(opcode, 0x89 | 0x8b | 0x8d)
        && modrm & 0xc7 == 0x44
        && sib == 0x24
}

/// The length of whole instructions at the start of `after` that do the same anywhere and together
/// make room for a jump.
fn movable_run(kind: Kind, after: &[u8]) -> Option<u8> {
    let mut len = 0;
    while len + (kind.size() as usize) < JUMP {
        len += movable(after.get(len..)?)?;
    }
    Some(len as u8)
}

/// Where the instructions that [`Form::After`] moves start: bit n for the n-th byte after the site.
/// Only there can a branch lead.
pub fn starts(after: &[u8], len: u8) -> u32 {
    let (mut at, mut bits) = (0, 0);
    while at < usize::from(len) {
        bits |= 1 << at;
        match after.get(at..).and_then(movable) {
            Some(len) => at += len,
            // Not what was chosen: no start is sure.
            None => return u32::MAX,
        }
    }
    bits
}

/// The length of the instruction at the start of `code`, if it is one of those that usually follow
/// a site and does the same anywhere.
fn movable(code: &[u8]) -> Option<usize> {
    let at = |index: usize| code.get(index).copied();
    let (rex, opcode, next) = match at(0)? {
        rex @ 0x40..=0x4f => (rex, at(1)?, 2),
        opcode => (0, opcode, 1),
    };
    let len = match opcode {
        // push, pop
        0x50..=0x5f => next,
        // cmp $imm32, %eax / %rax
        0x3d => next + 4,
        // mov $imm32
        0xb8..=0xbf if rex & 8 == 0 => next + 4,
        // mov, test, cmp, xor, xchg, or, add, sub, movslq with a ModRM byte and no immediate
        0x01 | 0x03 | 0x09 | 0x0b | 0x21 | 0x23 | 0x29 | 0x2b | 0x31 | 0x33 | 0x39 | 0x3b
        | 0x63 | 0x85 | 0x87 | 0x89 | 0x8b => next + modrm(code.get(next..)?)?,
        // add, or, and, sub, cmp with an 8-bit immediate; shifts by one
        0x83 | 0xc1 => next + modrm(code.get(next..)?)? + 1,
        _ => return None,
    };
    // A REX prefix before push and pop is only ever B.
    let plain = rex == 0 || !matches!(opcode, 0x50..=0x5f) || rex == 0x41;
    (plain && len <= code.len()).then_some(len)
}

/// The length of a ModRM byte and what belongs to it; `None` for addresses relative to rip and
/// absolute ones.
fn modrm(code: &[u8]) -> Option<usize> {
    let modrm = *code.first()?;
    let (mode, base) = (modrm >> 6, modrm & 7);
    let sib = usize::from(mode != 3 && base == 4);
    if sib == 1 && mode == 0 && code.get(1)? & 7 == 5 {
        return None;
    }
    match mode {
        3 => Some(1),
        2 => Some(1 + sib + 4),
        1 => Some(1 + sib + 1),
        _ if base == 5 => None,
        _ => Some(1 + sib),
    }
}

/// Calls `visit` for every address that a direct branch in a chunk of code at `start` could lead
/// to. Every byte is taken for the start of a branch, so that none can be missed; `lea` counts as
/// one, because it makes the addresses of jump tables and handlers.
pub fn branch_targets(code: &[u8], start: u64, mut visit: impl FnMut(u64)) {
    let long = |at: usize, end: u64| {
        let distance = code.get(at..)?.first_chunk::<4>()?;
        Some(end.wrapping_add_signed(i64::from(i32::from_le_bytes(*distance))))
    };
    for (index, &opcode) in code.iter().enumerate() {
        let address = start + index as u64;
        let next = code.get(index + 1).copied();
        let target = match (opcode, next) {
            // jcc, jmp, loop, jrcxz with 8 bits
            (0x70..=0x7f | 0xeb | 0xe0..=0xe3, Some(distance)) => {
                Some((address + 2).wrapping_add_signed(i64::from(distance as i8)))
            }
            // call, jmp
            (0xe8 | 0xe9, _) => long(index + 1, address + 5),
            // jcc with 32 bits
            (0x0f, Some(0x80..=0x8f)) => long(index + 2, address + 6),
            // lea with an address relative to rip
            (0x8d, Some(modrm)) if modrm & 0xc7 == 5 => long(index + 2, address + 6),
            _ => None,
        };
        if let Some(target) = target {
            visit(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let load = [0x90, 0xb8, 0x27, 0, 0, 0];
        assert_eq!(
            choose(Kind::Syscall, &load, &[], 0x27),
            Form::Number { len: 5 }
        );
        assert_eq!(choose(Kind::Syscall, &load, &[], 0x28), Form::Trap);
        // mov $39, %r8d
        assert_eq!(
            choose(Kind::Syscall, &[0x41, 0xb8, 0x27, 0, 0, 0], &[], 0x27),
            Form::Trap
        );
        let go = [0x48, 0xc7, 0xc0, 0xe7, 0, 0, 0];
        assert_eq!(
            choose(Kind::Syscall, &go, &[], 231),
            Form::Number { len: 7 }
        );
        assert_eq!(
            choose(Kind::Syscall, &[0x48, 0xc7, 0xc0, 15, 0, 0, 0], &[0xc3], 15),
            Form::Trap
        );
        assert_eq!(choose(Kind::Syscall, &[], &[], 0), Form::Trap);
    }

    #[test]
    fn stack_slots() {
        // musl's __syscall_cp_asm: mov %r11, 8(%rsp)
        let cancel = [0x4c, 0x89, 0x5c, 0x24, 0x08];
        assert_eq!(
            choose(Kind::Syscall, &cancel, &[0xc3], 1),
            Form::Before { len: 5 }
        );
        // glibc's syscall: mov 8(%rsp), %r9
        let variadic = [0x4c, 0x8b, 0x4c, 0x24, 0x08];
        assert_eq!(
            choose(Kind::Syscall, &variadic, &[0x48, 0x3d], 1),
            Form::Before { len: 5 }
        );
    }

    #[test]
    fn what_follows() {
        // glibc's read: xor %eax, %eax; syscall; cmp $-4096, %rax; ja
        let read = [0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0x77, 0x10];
        assert_eq!(
            choose(Kind::Syscall, &[0x31, 0xc0], &read, 0),
            Form::After { len: 6 }
        );
        // mov %rax, %rdi; call
        assert_eq!(
            choose(Kind::Syscall, &[], &[0x48, 0x89, 0xc7, 0xe8], 0),
            Form::After { len: 3 }
        );
        // mov %rax, 8(%rsp)
        assert_eq!(
            choose(Kind::Syscall, &[], &[0x48, 0x89, 0x44, 0x24, 8], 0),
            Form::After { len: 5 }
        );
        // mov %eax, disp(%rip); pop %rbx and a jump.
        assert_eq!(
            choose(Kind::Syscall, &[], &[0x89, 0x05, 1, 2, 3, 4], 0),
            Form::Trap
        );
        assert_eq!(
            choose(Kind::Syscall, &[], &[0x5b, 0xeb, 3, 4], 0),
            Form::Trap
        );
        assert_eq!(
            choose(Kind::Syscall, &[], &[0x5b, 0x5d, 0x41, 0x5c], 0),
            Form::After { len: 4 }
        );
        assert_eq!(
            choose(Kind::Syscall, &[], &[0xc3, 0x90, 0x90, 0x90], 0),
            Form::Trap
        );
        assert_eq!(
            choose(Kind::Syscall, &[], &[0x48, 0x3d, 0, 0xf0], 0),
            Form::Trap
        );
    }

    #[test]
    fn starts_of_moved_instructions() {
        assert_eq!(starts(&[0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0x77], 6), 1);
        assert_eq!(starts(&[0x5b, 0x5d, 0x41, 0x5c], 4), 0b111);
        assert_eq!(starts(&[0xeb, 0], 4), u32::MAX);
    }

    #[test]
    fn branches() {
        let into = |code: &[u8], start: u64| {
            let mut found = false;
            branch_targets(code, start, |target| {
                found |= (0x1012..0x1015).contains(&target)
            });
            found
        };
        // jne to 0x1012 from 0x1000, and one byte before and three after.
        assert!(into(&[0x75, 0x10], 0x1000));
        assert!(!into(&[0x75, 0x0f], 0x1000));
        assert!(!into(&[0x75, 0x13], 0x1000));
        assert!(into(&[0xe9, 0x0d, 0, 0, 0], 0x1000));
        assert!(into(&[0x0f, 0x84, 0x0c, 0, 0, 0], 0x1000));
        assert!(into(&[0x48, 0x8d, 0x05, 0x0b, 0, 0, 0], 0x1000));
        assert!(into(&[0xeb, 0xf0], 0x1020));
        assert!(!into(&[0xe9, 0x0d], 0x1000));
    }
}
