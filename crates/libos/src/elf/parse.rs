//! ELF headers of x86-64 programs. Everything is checked: the file may be anything.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::Result;
use crate::errno::{EINVAL, ENOEXEC};
use crate::fs::inode::Inode;
use crate::mm::{page_down, page_up};
use crate::platform::Protection;

/// Position-dependent or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ET_EXEC.
    Fixed,
    /// ET_DYN.
    Relocatable,
}

/// A PT_LOAD segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub address: u64,
    pub offset: u64,
    pub file_size: u64,
    pub memory_size: u64,
    pub protection: Protection,
}

impl Segment {
    /// The pages it covers.
    pub fn pages(&self) -> Range<u64> {
        // `parse` has checked that the end does not overflow.
        let end = self.address + self.memory_size;
        page_down(self.address)..page_up(end).unwrap_or(u64::MAX)
    }
}

/// What a loader needs to know of an ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    pub kind: Kind,
    pub entry: u64,
    pub segments: Vec<Segment>,
    /// Largest alignment of a segment; a power of two.
    pub align: u64,
    /// PT_INTERP.
    pub interpreter: Option<Vec<u8>>,
    /// Where the program headers are once loaded, relative to the addresses in the file; 0 if
    /// nowhere.
    pub headers: u64,
    pub headers_count: u64,
    /// PT_GNU_STACK asks for an executable stack.
    pub executable_stack: bool,
}

/// Bytes at a file's beginning that `execve` looks at (BINPRM_BUF_SIZE).
pub const HEAD: usize = 256;
/// Size of an ELF64 program header.
pub const HEADER_SIZE: u64 = 56;
/// Linux refuses program headers that take more than a page... of 64 KiB.
const HEADERS_MAX: u64 = 65536 / HEADER_SIZE;
/// PATH_MAX.
const INTERPRETER_MAX: u64 = 4096;
/// No segment needs more than this.
const ALIGN_MAX: u64 = 1 << 30;

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;

/// A field of a header.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let part = bytes
        .get(at..)
        .and_then(|rest| rest.get(..N))
        .ok_or(ENOEXEC)?;
    part.try_into().map_err(|_| ENOEXEC)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

/// Whether a file's beginning is an ELF header.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

/// Reads all of a part of a file; ENOEXEC when it is not there.
fn read_exactly(file: &dyn Inode, offset: u64, to: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < to.len() {
        let at = offset.checked_add(done as u64).ok_or(ENOEXEC)?;
        match file.read_bytes(at, &mut to[done..])? {
            0 => return Err(ENOEXEC.because("the file ends within its headers")),
            read => done += read.min(to.len() - done),
        }
    }
    Ok(())
}

/// Reads the headers of an ELF file.
pub fn parse(file: &dyn Inode) -> Result<Elf> {
    let mut head = [0; 64];
    read_exactly(file, 0, &mut head)?;
    if !is_elf(&head) {
        return Err(ENOEXEC.because("not an ELF file"));
    }
    // Class 64, little endian, version 1.
    if head[4..7] != [2, 1, 1] {
        return Err(ENOEXEC.because("not a 64-bit little-endian ELF file"));
    }
    let kind = match u16_at(&head, 16)? {
        2 => Kind::Fixed,
        3 => Kind::Relocatable,
        _ => return Err(ENOEXEC.because("neither an executable nor a shared object")),
    };
    if u16_at(&head, 18)? != 62 {
        return Err(ENOEXEC.because("not for x86-64"));
    }
    let entry = u64_at(&head, 24)?;
    let table = u64_at(&head, 32)?;
    let count = u64::from(u16_at(&head, 56)?);
    if u64::from(u16_at(&head, 54)?) != HEADER_SIZE || count == 0 || count > HEADERS_MAX {
        return Err(ENOEXEC.because("bad program headers"));
    }
    let mut headers = vec![0; (count * HEADER_SIZE) as usize];
    read_exactly(file, table, &mut headers)?;
    let mut elf = Elf {
        kind,
        entry,
        segments: Vec::new(),
        align: crate::mm::PAGE,
        interpreter: None,
        headers: 0,
        headers_count: count,
        executable_stack: false,
    };
    let mut phdr = None;
    for header in headers.chunks_exact(HEADER_SIZE as usize) {
        match u32_at(header, 0)? {
            PT_LOAD => elf.add_segment(header)?,
            PT_INTERP if elf.interpreter.is_none() => {
                elf.interpreter = Some(read_interpreter(file, header)?);
            }
            PT_PHDR => phdr = Some(u64_at(header, 16)?),
            PT_GNU_STACK => elf.executable_stack = u32_at(header, 4)? & 1 != 0,
            _ => {}
        }
    }
    if elf.segments.is_empty() {
        return Err(ENOEXEC.because("no segment to load"));
    }
    elf.headers = phdr.unwrap_or_else(|| elf.address_of(table));
    Ok(elf)
}

fn read_interpreter(file: &dyn Inode, header: &[u8]) -> Result<Vec<u8>> {
    let (offset, size) = (u64_at(header, 8)?, u64_at(header, 32)?);
    if !(2..=INTERPRETER_MAX).contains(&size) {
        return Err(ENOEXEC.because("bad interpreter name"));
    }
    let mut name = vec![0; size as usize];
    read_exactly(file, offset, &mut name)?;
    if name.pop() != Some(0) {
        return Err(ENOEXEC.because("bad interpreter name"));
    }
    let end = name
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(name.len());
    name.truncate(end);
    Ok(name)
}

impl Elf {
    fn add_segment(&mut self, header: &[u8]) -> Result<()> {
        let flags = u32_at(header, 4)?;
        let mut protection = Protection::empty();
        protection.set(Protection::EXECUTE, flags & 1 != 0);
        protection.set(Protection::WRITE, flags & 2 != 0);
        protection.set(Protection::READ, flags & 4 != 0);
        let segment = Segment {
            offset: u64_at(header, 8)?,
            address: u64_at(header, 16)?,
            file_size: u64_at(header, 32)?,
            memory_size: u64_at(header, 40)?,
            protection,
        };
        let align = u64_at(header, 48)?;
        let bad = EINVAL.because("bad segment");
        if segment.file_size > segment.memory_size
            || page_up(
                segment
                    .address
                    .checked_add(segment.memory_size)
                    .ok_or(bad)?,
            )
            .is_none()
            || segment
                .offset
                .checked_add(segment.file_size)
                .and_then(page_up)
                .is_none()
        {
            return Err(bad);
        }
        if segment.memory_size == 0 {
            return Ok(());
        }
        if segment.file_size > 0
            && !(segment.address ^ segment.offset).is_multiple_of(crate::mm::PAGE)
        {
            return Err(EINVAL.because("a segment's address and offset do not agree"));
        }
        if align.is_power_of_two() && align <= ALIGN_MAX {
            self.align = self.align.max(align);
        }
        if self
            .segments
            .last()
            .is_some_and(|last| segment.address < last.pages().start)
        {
            return Err(EINVAL.because("segments are not in order"));
        }
        self.segments.push(segment);
        Ok(())
    }

    /// The address at which a file offset is loaded, or 0.
    fn address_of(&self, offset: u64) -> u64 {
        let has = |segment: &&Segment| {
            segment.offset <= offset && offset - segment.offset < segment.file_size
        };
        let segment = self.segments.iter().find(has);
        segment.map_or(0, |segment| offset - segment.offset + segment.address)
    }

    /// All the pages of the program, as addressed in the file.
    pub fn span(&self) -> Range<u64> {
        let start = self
            .segments
            .iter()
            .map(|segment| segment.pages().start)
            .min()
            .unwrap_or(0);
        let end = self
            .segments
            .iter()
            .map(|segment| segment.pages().end)
            .max()
            .unwrap_or(0);
        start..end
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::testing::MemoryFile;

    /// An ELF file with these program headers: type, flags, offset, address, file and memory size.
    pub fn build(kind: u16, entry: u64, headers: &[(u32, u32, u64, u64, u64, u64)]) -> Vec<u8> {
        let mut file = Vec::new();
        file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend(kind.to_le_bytes());
        file.extend(62u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(entry.to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend([0; 12]);
        file.extend(64u16.to_le_bytes());
        file.extend(56u16.to_le_bytes());
        file.extend((headers.len() as u16).to_le_bytes());
        file.extend([0; 6]);
        for &(kind, flags, offset, address, file_size, memory_size) in headers {
            file.extend(kind.to_le_bytes());
            file.extend(flags.to_le_bytes());
            for value in [offset, address, address, file_size, memory_size, 0x1000] {
                file.extend(value.to_le_bytes());
            }
        }
        file
    }

    fn parse_bytes(bytes: Vec<u8>) -> Result<Elf> {
        parse(&*MemoryFile::new(bytes))
    }

    #[test]
    fn reads_a_program() {
        let mut bytes = build(
            2,
            0x401000,
            &[
                (1, 4, 0, 0x400000, 0x200, 0x200),
                (1, 6, 0x1200, 0x402200, 0x10, 0x3000),
                (3, 4, 0x100, 0, 5, 5),
            ],
        );
        bytes.resize(0x100, 0);
        bytes.extend(b"/ld\0\0");
        // The name may end early, but its last byte must be the null.
        let elf = parse_bytes(bytes.clone()).unwrap();
        assert_eq!(elf.kind, Kind::Fixed);
        assert_eq!(elf.span(), 0x400000..0x406000);
        assert_eq!(elf.headers, 0x400040);
        assert_eq!(elf.interpreter.as_deref(), Some(&b"/ld"[..]));
        assert!(!elf.executable_stack);
        bytes[0x104] = b'x';
        assert_eq!(parse_bytes(bytes), Err(ENOEXEC));
    }

    #[test]
    fn refuses_hostile_headers() {
        let good = build(3, 0, &[(1, 5, 0, 0, 0x78, 0x78)]);
        assert!(parse_bytes(good.clone()).is_ok());
        for (at, value) in [
            (0, 0),
            (4, 1),
            (5, 2),
            (16, 1),
            (18, 3),
            (54, 55),
            (56, 0),
            (57, 255),
        ] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(parse_bytes(bad), Err(ENOEXEC), "byte {at}");
        }
        for len in 0..good.len() {
            assert_eq!(parse_bytes(good[..len].to_vec()), Err(ENOEXEC));
        }
        let top = u64::MAX;
        for header in [
            (1, 5, 0, top - 10, 5, 100),
            (1, 5, top - 10, 0xff5, 100, 100),
            (1, 5, 0, 0, 100, 50),
            (1, 5, 0, 0x10, 100, 100),
            (1, 5, 0, top & !0xfff, 0, 0xfff),
        ] {
            assert_eq!(
                parse_bytes(build(3, 0, &[header])),
                Err(EINVAL),
                "{header:x?}"
            );
        }
        assert_eq!(
            parse_bytes(build(3, 0, &[(3, 4, 0, 0, top, top)])),
            Err(ENOEXEC)
        );
        let unordered = [(1, 5, 0, 0x5000, 9, 9), (1, 5, 0, 0x1000, 9, 9)];
        assert_eq!(parse_bytes(build(3, 0, &unordered)), Err(EINVAL));
    }
}
