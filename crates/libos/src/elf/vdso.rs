//! Our vDSO: a one-page shared object whose functions make system calls through the runtime's
//! gate, without a trap.
//!
//! Each function is `mov eax, number`, then what a system-call trampoline ends with: rcx and r11
//! are the address after the (never reached) `syscall` instruction, and the jump goes through the
//! thread area. A call that the kernel restarts finds a real `syscall` before that address.
//!
//! Reading a clock does not even enter the kernel while the runtime's *clock page* is fresh
//! ([`ClockPage`]): the time is computed from the TSC, as Linux's vDSO does it.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::Result;
use crate::fs::inode::{FileId, Inode, Metadata};
use crate::mm::map::{Request, Source};
use crate::mm::vma::FileBacking;
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
const CODE_STRIDE: usize = 0x100;

/// What the fast clocks read, at the address that [`Platform::clock_page`] gives. Readers take
/// `sequence`, the rest, the TSC, and `sequence` again: odd or changed means that it is being
/// written.
///
/// [`Platform::clock_page`]: crate::platform::Platform::clock_page
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct ClockPage {
    pub sequence: AtomicU64,
    /// Ticks at which the times below were true.
    pub tsc: AtomicU64,
    /// ns.
    pub monotonic: AtomicU64,
    /// ns since 1970.
    pub realtime: AtomicU64,
    /// ns per tick, 32.32 fixed point.
    pub rate: AtomicU64,
    /// Ticks after `tsc` for which that holds; 0: never.
    pub fresh: AtomicU64,
}

impl ClockPage {
    pub const fn new() -> ClockPage {
        ClockPage {
            sequence: AtomicU64::new(0),
            tsc: AtomicU64::new(0),
            monotonic: AtomicU64::new(0),
            realtime: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            fresh: AtomicU64::new(0),
        }
    }

    /// Replaces all fields. Callers exclude each other.
    pub fn publish(&self, [tsc, monotonic, realtime, rate, fresh]: [u64; 5]) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.tsc.store(tsc, Ordering::Relaxed);
        self.monotonic.store(monotonic, Ordering::Relaxed);
        self.realtime.store(realtime, Ordering::Relaxed);
        self.rate.store(rate, Ordering::Relaxed);
        self.fresh.store(fresh, Ordering::Relaxed);
        self.sequence
            .store((sequence | 1).wrapping_add(1), Ordering::Release);
    }
}

/// Maps the vDSO into a space; its address.
pub fn map(mm: &Space) -> Result<u64> {
    let mut request = Request::anonymous(PAGE, Protection::READ | Protection::EXECUTE);
    request.flags = VmaFlags::VDSO;
    request.source = Source::File(FileBacking {
        inode: Arc::new(Image),
        offset: 0,
        path: None,
    });
    mm.map(request)
}

/// The vDSO as a file that never changes, so that its page is treated as other text is.
struct Image;

impl Inode for Image {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn id(&self) -> FileId {
        FileId {
            // No file system has this number.
            device: u64::MAX,
            inode: 1,
        }
    }

    fn size(&self) -> u64 {
        PAGE
    }

    fn mode(&self) -> u32 {
        0o100_555
    }

    fn metadata(&self) -> Metadata {
        Metadata {
            mode: self.mode(),
            size: PAGE,
            ..crate::fs::file::anonymous_metadata()
        }
    }

    fn read_bytes(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        let bytes = image(platform().gate_offset(), platform().clock_page());
        let from = bytes.get(offset as usize..).unwrap_or_default();
        let len = from.len().min(to.len());
        to[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }

    fn is_immutable(&self) -> bool {
        true
    }
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
fn image(gate_offset: u32, clock: Option<u64>) -> Vec<u8> {
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
    for (index, (name, number)) in FUNCTIONS.iter().enumerate() {
        let mut code = match (*name, clock) {
            ("clock_gettime", Some(clock)) => clock_gettime(clock),
            ("gettimeofday", Some(clock)) => gettimeofday(clock),
            _ => Vec::new(),
        };
        code.extend_from_slice(&function(*number, gate_offset));
        page[CODE + index * CODE_STRIDE..][..code.len()].copy_from_slice(&code);
    }
    page
}

/// Appends a jump to the system call, which follows `rest` bytes after the jump.
fn slow(code: &mut Vec<u8>, opcode: u8, rest: usize) {
    code.extend_from_slice(&[opcode, rest as u8]);
}

/// rax = ns passed since the base, with the page's address in r8 and its sequence in r9; `rest`
/// bytes follow up to the system call.
fn passed(code: &mut Vec<u8>, clock: u64, rest: usize) {
    // movabs r8, clock; mov r9, [r8]; test r9b, 1; jnz slow
    code.extend_from_slice(&[0x49, 0xb8]);
    code.extend_from_slice(&clock.to_le_bytes());
    code.extend_from_slice(&[0x4d, 0x8b, 0x08, 0x41, 0xf6, 0xc1, 0x01]);
    slow(code, 0x75, rest + 31);
    // lfence; rdtsc; shl rdx, 32; or rax, rdx
    code.extend_from_slice(&[
        0x0f, 0xae, 0xe8, 0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0,
    ]);
    // sub rax, [r8 + 8] (tsc); cmp rax, [r8 + 40] (fresh); jae slow
    code.extend_from_slice(&[0x49, 0x2b, 0x40, 0x08, 0x49, 0x3b, 0x40, 0x28]);
    slow(code, 0x73, rest + 9);
    // mul qword [r8 + 32] (rate); shrd rax, rdx, 32
    code.extend_from_slice(&[0x49, 0xf7, 0x60, 0x20, 0x48, 0x0f, 0xac, 0xd0, 0x20]);
}

/// Seconds of the ns in rax to rdx, the rest of the ns to r9; `store` is `mov [pointer], rdx`.
fn split(code: &mut Vec<u8>, store: [u8; 3]) {
    // rdx = rax / 10^9, as (rax >> 9) * 0x44b82fa09b5a53 >> 75: exact for 64 bits.
    code.extend_from_slice(&[0x49, 0x89, 0xc1, 0x48, 0xc1, 0xe8, 0x09, 0x48, 0xb9]);
    code.extend_from_slice(&0x44_b82f_a09b_5a53u64.to_le_bytes());
    code.extend_from_slice(&[0x48, 0xf7, 0xe1, 0x48, 0xc1, 0xea, 0x0b]);
    code.extend_from_slice(&store);
    // imul rdx, rdx, 10^9; sub r9, rdx
    code.extend_from_slice(&[0x48, 0x69, 0xd2, 0x00, 0xca, 0x9a, 0x3b, 0x49, 0x29, 0xd1]);
}

/// clock_gettime(edi, rsi) of CLOCK_REALTIME (0) and CLOCK_MONOTONIC (1) without a system call;
/// what it cannot do falls out at its end.
fn clock_gettime(clock: u64) -> Vec<u8> {
    // cmp edi, 1; ja slow
    let mut code = vec![0x83, 0xff, 0x01];
    slow(&mut code, 0x77, 109);
    passed(&mut code, clock, 59);
    // mov ecx, edi; xor ecx, 1; add rax, [r8 + rcx * 8 + 16]; cmp r9, [r8]; jne slow
    code.extend_from_slice(&[0x89, 0xf9, 0x83, 0xf1, 0x01, 0x49, 0x03, 0x44, 0xc8, 0x10]);
    code.extend_from_slice(&[0x4d, 0x3b, 0x08]);
    slow(&mut code, 0x75, 44);
    split(&mut code, [0x48, 0x89, 0x16]);
    // mov [rsi + 8], r9; xor eax, eax; ret
    code.extend_from_slice(&[0x4c, 0x89, 0x4e, 0x08, 0x31, 0xc0, 0xc3]);
    code
}

/// gettimeofday(rdi, NULL), in the same way.
fn gettimeofday(clock: u64) -> Vec<u8> {
    // test rdi, rdi; jz slow; test rsi, rsi; jnz slow
    let mut code = vec![0x48, 0x85, 0xff];
    slow(&mut code, 0x74, 119);
    code.extend_from_slice(&[0x48, 0x85, 0xf6]);
    slow(&mut code, 0x75, 114);
    passed(&mut code, clock, 64);
    // add rax, [r8 + 24] (realtime); cmp r9, [r8]; jne slow
    code.extend_from_slice(&[0x49, 0x03, 0x40, 0x18, 0x4d, 0x3b, 0x08]);
    slow(&mut code, 0x75, 55);
    split(&mut code, [0x48, 0x89, 0x17]);
    // r9 = r9 / 1000, as r9 * 274877907 >> 38: exact below 10^9. mov [rdi + 8], r9; xor eax, eax;
    // ret
    code.extend_from_slice(&[
        0x4d, 0x69, 0xc9, 0xd3, 0x4d, 0x62, 0x10, 0x49, 0xc1, 0xe9, 0x26,
    ]);
    code.extend_from_slice(&[0x4c, 0x89, 0x4f, 0x08, 0x31, 0xc0, 0xc3]);
    code
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
        let page = image(0x100, None);
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

    /// What an assembler makes of the same instructions.
    #[test]
    fn clocks_are_the_instructions_that_the_comments_say() {
        let hex = |code: Vec<u8>| -> std::string::String {
            code.iter().map(|byte| std::format!("{byte:02x}")).collect()
        };
        assert_eq!(
            hex(clock_gettime(0x1122_3344_5566_7788)),
            "83ff01776d49b888776655443322114d8b0841f6c101755a0faee80f3148c1e2204809d0\
             492b4008493b4028734449f76020480facd02089f983f101490344c8104d3b08752c4989\
             c148c1e80948b9535a9ba02fb8440048f7e148c1ea0b4889164869d200ca9a3b4929d14c\
             894e0831c0c3"
        );
        assert_eq!(
            hex(gettimeofday(0x1122_3344_5566_7788)),
            "4885ff74774885f6757249b888776655443322114d8b0841f6c101755f0faee80f3148c1\
             e2204809d0492b4008493b4028734949f76020480facd020490340184d3b0875374989c1\
             48c1e80948b9535a9ba02fb8440048f7e148c1ea0b4889174869d200ca9a3b4929d14d69\
             c9d34d621049c1e9264c894f0831c0c3"
        );
        let page = image(0x100, Some(0x1000));
        let end = CODE + clock_gettime(0).len();
        assert_eq!(page[end..end + 5], [0xb8, 228, 0, 0, 0]);
    }
}
