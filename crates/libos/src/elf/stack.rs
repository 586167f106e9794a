//! The initial stack: strings, auxiliary vector, environment, arguments (System V ABI 3.4.1).

use alloc::vec::Vec;
use core::ops::Range;

use crate::Result;
use crate::errno::E2BIG;
use crate::mm::Space;

/// Entries of the auxiliary vector.
pub mod auxiliary {
    pub const NULL: u64 = 0;
    pub const PHDR: u64 = 3;
    pub const PHENT: u64 = 4;
    pub const PHNUM: u64 = 5;
    pub const PAGESZ: u64 = 6;
    pub const BASE: u64 = 7;
    pub const FLAGS: u64 = 8;
    pub const ENTRY: u64 = 9;
    pub const UID: u64 = 11;
    pub const EUID: u64 = 12;
    pub const GID: u64 = 13;
    pub const EGID: u64 = 14;
    pub const PLATFORM: u64 = 15;
    pub const HWCAP: u64 = 16;
    pub const CLKTCK: u64 = 17;
    pub const SECURE: u64 = 23;
    pub const RANDOM: u64 = 25;
    pub const HWCAP2: u64 = 26;
    pub const EXECFN: u64 = 31;
    pub const SYSINFO_EHDR: u64 = 33;
    pub const MINSIGSTKSZ: u64 = 51;
}

/// Longest single argument or environment string (MAX_ARG_STRLEN).
pub const STRING_MAX: usize = 128 << 10;

/// What goes onto the stack.
pub struct Content<'a> {
    pub arguments: &'a [Vec<u8>],
    pub environment: &'a [Vec<u8>],
    /// AT_EXECFN.
    pub file_name: &'a [u8],
    /// AT_RANDOM.
    pub random: [u8; 16],
    /// Everything that does not point into the stack.
    pub auxiliary: &'a [(u64, u64)],
}

/// Where things are on the stack.
pub struct Built {
    pub stack_pointer: u64,
    pub arguments: Range<u64>,
    pub environment: Range<u64>,
    pub auxv: Vec<u8>,
}

/// Checks the sizes of arguments and environment against the stack limit. E2BIG.
pub fn check(arguments: &[Vec<u8>], environment: &[Vec<u8>], stack_limit: u64) -> Result<()> {
    /// Linux allows a quarter of the stack, at least 128 KiB, at most 6 MiB.
    const LEAST: u64 = 128 << 10;
    const MOST: u64 = 6 << 20;
    let mut total = 0u64;
    for string in arguments.iter().chain(environment) {
        if string.len() >= STRING_MAX {
            return Err(E2BIG.because("an argument or environment string is too long"));
        }
        total += string.len() as u64 + 1 + 8;
    }
    if total > (stack_limit / 4).clamp(LEAST, MOST) {
        return Err(E2BIG.because("arguments and environment do not fit"));
    }
    Ok(())
}

/// Writes the initial stack below `top`.
pub fn build(mm: &Space, top: u64, content: &Content<'_>) -> Result<Built> {
    const PLATFORM: &[u8] = b"x86_64\0";
    // Strings first, from low to high: arguments, environment, file name, then a null word.
    let mut strings = Vec::new();
    let mut place = |string: &[u8]| {
        let at = strings.len() as u64;
        strings.extend_from_slice(string);
        strings.push(0);
        at
    };
    let arguments: Vec<u64> = content
        .arguments
        .iter()
        .map(|string| place(string))
        .collect();
    let arguments_len = content
        .arguments
        .iter()
        .map(|string| string.len() as u64 + 1)
        .sum::<u64>();
    let environment: Vec<u64> = content
        .environment
        .iter()
        .map(|string| place(string))
        .collect();
    let file_name = place(content.file_name);
    let environment_len = file_name - arguments_len;
    let base = top - 8 - strings.len() as u64;
    strings.extend_from_slice(&[0; 8]);
    mm.write(base, &strings)?;

    let random = (base - 16) & !15;
    mm.write(random, &content.random)?;
    let platform = (random - PLATFORM.len() as u64) & !15;
    mm.write(platform, PLATFORM)?;

    let mut auxv = Vec::new();
    let own = [
        (auxiliary::RANDOM, random),
        (auxiliary::EXECFN, base + file_name),
        (auxiliary::PLATFORM, platform),
        (auxiliary::NULL, 0),
    ];
    for (key, value) in content.auxiliary.iter().chain(&own) {
        auxv.extend_from_slice(&key.to_le_bytes());
        auxv.extend_from_slice(&value.to_le_bytes());
    }
    let mut words = Vec::new();
    words.push(arguments.len() as u64);
    words.extend(arguments.iter().map(|at| base + at));
    words.push(0);
    words.extend(environment.iter().map(|at| base + at));
    words.push(0);
    let mut vector: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    vector.extend_from_slice(&auxv);
    let stack_pointer = (platform - vector.len() as u64) & !15;
    mm.write(stack_pointer, &vector)?;
    Ok(Built {
        stack_pointer,
        arguments: base..base + arguments_len,
        environment: base + arguments_len..base + arguments_len + environment_len,
        auxv,
    })
}
