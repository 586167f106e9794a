//! Our vDSO: a one-page shared object whose functions make system calls through the runtime's
//! gate, without a trap.
//!
//! Each function is `mov eax, number`, then what a system-call trampoline ends with: rcx and r11
//! are the address after the (never reached) `syscall` instruction, and the jump goes through the
//! thread area. A call that the kernel restarts finds a real `syscall` before that address.

use alloc::vec;
use alloc::vec::Vec;

use crate::Result;
use crate::mm::map::Request;
use crate::mm::{PAGE, Space, VmaFlags};
use crate::platform::{Protection, platform};

/// Names (without and with `__vdso_`) and system-call numbers. getrandom is not among them: the
/// C libraries give it a state argument, and a plain system call is what they use without it.
const FUNCTIONS: [(&str, u32); 5] = [
    ("clock_gettime", 228),
    ("gettimeofday", 96),
    ("time", 201),
    ("getcpu", 309),
    ("clock_getres", 229),
];

const CODE: usize = 0x800;
const CODE_STRIDE: usize = 0x40;

/// Maps the vDSO into a space; its address.
pub fn map(mm: &Space) -> Result<u64> {
    let read_write = Protection::READ | Protection::WRITE;
    let mut request = Request::anonymous(PAGE, read_write);
    request.flags = VmaFlags::VDSO;
    let address = mm.map(request)?;
    mm.write(address, &image(platform().gate_offset()))?;
    mm.protect(address, PAGE, Protection::READ | Protection::EXECUTE)?;
    Ok(address)
}

/// The hash of System V symbol tables and versions.
fn elf_hash(name: &str) -> u32 {
    name.bytes().fold(0u32, |hash, byte| {
        let hash = (hash << 4).wrapping_add(u32::from(byte));
        let high = hash & 0xf000_0000;
        (hash ^ high >> 24) & !high
    })
}

/// Strings of the symbol table.
struct Strings(Vec<u8>);

impl Strings {
    fn add(&mut self, string: &str) -> u32 {
        let at = self.0.len() as u32;
        self.0.extend_from_slice(string.as_bytes());
        self.0.push(0);
        at
    }
}

/// The vDSO's bytes.
fn image(gate_offset: u32) -> Vec<u8> {
    let mut strings = Strings(vec![0]);
    let soname = strings.add("linux-vdso.so.1");
    let version = strings.add("LINUX_2.6");
    let mut symbols = vec![0u8; 24];
    for (index, (name, _)) in FUNCTIONS.iter().enumerate() {
        let value = (CODE + index * CODE_STRIDE) as u64;
        for (prefix, binding) in [("__vdso_", 1u8), ("", 2)] {
            let name = strings.add(&alloc::format!("{prefix}{name}"));
            symbols.extend_from_slice(&name.to_le_bytes());
            // A function, in section 1 (any that is not undefined).
            symbols.extend_from_slice(&[binding << 4 | 2, 0, 1, 0]);
            symbols.extend_from_slice(&value.to_le_bytes());
            symbols.extend_from_slice(&(CODE_STRIDE as u64).to_le_bytes());
        }
    }
    let count = (symbols.len() / 24) as u32;
    // One bucket: a chain through all symbols.
    let mut hash: Vec<u32> = vec![1, count, 1, 0];
    hash.extend((1..count).map(|index| (index + 1) % count));
    let hash: Vec<u8> = hash.iter().flat_map(|word| word.to_le_bytes()).collect();
    let versions: Vec<u8> = (0..count as u16)
        .flat_map(|index| if index == 0 { [0, 0] } else { [2, 0] })
        .collect();
    let mut definitions = Vec::new();
    for (flags, index, name, string, next) in [
        (1u16, 1u16, "linux-vdso.so.1", soname, 28u32),
        (0, 2, "LINUX_2.6", version, 0),
    ] {
        for half in [1, flags, index, 1] {
            definitions.extend_from_slice(&half.to_le_bytes());
        }
        for word in [elf_hash(name), 20, next, string, 0] {
            definitions.extend_from_slice(&word.to_le_bytes());
        }
    }

    let mut page = vec![0u8; PAGE as usize];
    let mut at: usize = 64 + 3 * 56;
    let mut put = |page: &mut Vec<u8>, bytes: &[u8]| {
        at = at.next_multiple_of(8);
        page[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
        (at - bytes.len()) as u64
    };
    let hash_at = put(&mut page, &hash);
    let symbols_at = put(&mut page, &symbols);
    let strings_at = put(&mut page, &strings.0);
    let versions_at = put(&mut page, &versions);
    let definitions_at = put(&mut page, &definitions);
    let dynamic: Vec<u8> = [
        (14, u64::from(soname)),
        (4, hash_at),
        (5, strings_at),
        (6, symbols_at),
        (10, strings.0.len() as u64),
        (11, 24),
        (0x6fff_fff0, versions_at),
        (0x6fff_fffc, definitions_at),
        (0x6fff_fffd, 2),
        (0u64, 0u64),
    ]
    .iter()
    .flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat())
    .collect();
    let dynamic_at = put(&mut page, &dynamic);
    debug_assert!(dynamic_at as usize + dynamic.len() <= CODE);

    page[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    page[16..24].copy_from_slice(&[3, 0, 62, 0, 1, 0, 0, 0]);
    page[32..40].copy_from_slice(&64u64.to_le_bytes());
    page[52..58].copy_from_slice(&[64, 0, 56, 0, 3, 0]);
    let headers: [(u32, u32, u64, u64); 3] = [
        (1, 5, 0, PAGE),
        (2, 4, dynamic_at, dynamic.len() as u64),
        // PT_GNU_STACK
        (0x6474_e551, 6, 0, 0),
    ];
    for (index, (kind, flags, offset, size)) in headers.iter().enumerate() {
        let header = &mut page[64 + index * 56..][..56];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[4..8].copy_from_slice(&flags.to_le_bytes());
        for (field, value) in [offset, offset, offset, size, size, &8]
            .into_iter()
            .enumerate()
        {
            header[8 + field * 8..][..8].copy_from_slice(&value.to_le_bytes());
        }
    }
    for (index, (_, number)) in FUNCTIONS.iter().enumerate() {
        let code = function(*number, gate_offset);
        page[CODE + index * CODE_STRIDE..][..code.len()].copy_from_slice(&code);
    }
    page
}

/// One function: see the module's description.
fn function(number: u32, gate_offset: u32) -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend_from_slice(&number.to_le_bytes());
    // lea rcx, [rip + 17]: past lea r11 (7), jmp (8) and syscall (2).
    code.extend_from_slice(&[0x48, 0x8d, 0x0d, 17, 0, 0, 0]);
    code.extend_from_slice(&[0x4c, 0x8d, 0x1d, 10, 0, 0, 0]);
    code.extend_from_slice(&[0x65, 0xff, 0x24, 0x25]);
    code.extend_from_slice(&gate_offset.to_le_bytes());
    code.extend_from_slice(&[0x0f, 0x05, 0xc3]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_can_be_found_as_the_c_libraries_do() {
        let page = image(0x100);
        let u64_at = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let dynamic = u64_at(64 + 56 + 8) as usize;
        let entry = |tag: u64| {
            (0..10)
                .map(|i| dynamic + i * 16)
                .find(|&at| u64_at(at) == tag)
                .map(|at| u64_at(at + 8))
        };
        let (hash, symbols, strings) = (
            entry(4).unwrap() as usize,
            entry(6).unwrap() as usize,
            entry(5).unwrap() as usize,
        );
        let name = |at: usize| {
            let rest = &page[at..];
            std::str::from_utf8(&rest[..rest.iter().position(|&b| b == 0).unwrap()]).unwrap()
        };
        let mut index = u32_at(hash + 8) as usize;
        let mut found = None;
        while index != 0 {
            let symbol = symbols + index * 24;
            if name(strings + u32_at(symbol) as usize) == "__vdso_clock_gettime" {
                found = Some(u64_at(symbol + 8));
            }
            index = u32_at(hash + 16 + (index - 1) * 4) as usize;
        }
        assert_eq!(found, Some(CODE as u64));
        let version = entry(0x6fff_fffc).unwrap() as usize + 28;
        // The hash that Go compares with.
        assert_eq!(u32_at(version + 8), 0x3ae75f6);
        assert_eq!(name(strings + u32_at(version + 20) as usize), "LINUX_2.6");
        assert_eq!(&page[CODE..CODE + 5], &[0xb8, 228, 0, 0, 0]);
    }
}
