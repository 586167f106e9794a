//! Static PIE programs, loaded as the enclave will see them.
//!
//! [`Program::load`] copies the segments of an ELF file to the address where they will run and
//! applies `R_X86_64_RELATIVE` relocations. Their table is left out then, as are those for unwinding;
//! whatever else a dynamic linker would have to do is an error. The files come from our own build, but
//! nothing here trusts them: every offset is checked.

use bytes::Bytes;
use object::elf::{
    DT_JMPREL, DT_NEEDED, DT_REL, DT_RELA, DT_RELAENT, DT_RELASZ, DT_RELR, EM_X86_64, ET_DYN,
    FileHeader64, PF_R, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_TLS, R_X86_64_NONE,
    R_X86_64_RELATIVE, Rela64,
};
use object::read::elf::{Dyn, FileHeader, ProgramHeader, Rela, SectionHeader, Sym};
use object::{LittleEndian, elf};
use std::ops::Range;

const LE: LittleEndian = LittleEndian;
const PAGE: u64 = bulla_abi::PAGE_SIZE;

/// Why an ELF file cannot become part of an enclave.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// The file is not what its headers say.
    #[error("malformed ELF file: {0}")]
    Malformed(String),
    /// Not x86-64, or not position independent.
    #[error("not a static position-independent x86-64 program (build it with -static-pie)")]
    NotStaticPie,
    /// Something only a dynamic linker or a C library could provide.
    #[error("the program has {0}, which nothing in the enclave can provide: link it statically")]
    NeedsLoader(&'static str),
    /// A relocation other than R_X86_64_RELATIVE.
    #[error("relocation of type {kind} at {offset:#x}; only R_X86_64_RELATIVE is supported")]
    Relocation { kind: u32, offset: u64 },
    /// A relocation outside writable, file-backed data.
    #[error("a relocation at {0:#x} lies outside of the writable data")]
    RelocationOutside(u64),
    /// Two segments that cannot share a page do.
    #[error("segments share the page at {0:#x}: align them to 4096")]
    SharedPage(u64),
    /// A segment is both writable and executable.
    #[error("the segment at {0:#x} is writable and executable")]
    WritableCode(u64),
    /// The program does not fit its place in the enclave.
    #[error("the program needs {need} bytes of address space, only {have} are there")]
    TooLarge { need: u64, have: u64 },
    /// The entry point is not in executable memory.
    #[error("the entry point {0:#x} is not in an executable segment")]
    Entry(u64),
}

fn malformed(what: impl ToString) -> ElfError {
    ElfError::Malformed(what.to_string())
}

/// Consecutive pages of a program with equal permissions.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    pub address: u64,
    /// SECINFO bits: R 1, W 2, X 4.
    pub permissions: u64,
    pub content: PagesContent,
}

#[derive(Clone, Debug)]
pub(crate) enum PagesContent {
    /// Whole pages from the file, relocated.
    Data(Bytes),
    /// Whole pages of zeroes: this many bytes.
    Zero(u64),
}

/// A program at its address in the enclave.
#[derive(Debug)]
pub(crate) struct Program {
    base: u64,
    pub entry: u64,
    file: Bytes,
    /// Memory from `base` on, segments in place, but for pages that are taken from the file as
    /// they are.
    memory: Vec<u8>,
    pages: Vec<Page>,
}

/// What one page of [`Program::memory`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Page {
    /// 0: not part of the program.
    permissions: u64,
    /// Has bytes from the file.
    from_file: bool,
    /// Where in the file the page is, whole and unchanged: code and constants, which nothing
    /// relocates.
    as_is: Option<u64>,
}

impl Program {
    /// Loads `file` at `base`, where `room` bytes are free.
    pub(crate) fn load(bytes: Bytes, base: u64, room: u64) -> Result<Program, ElfError> {
        let file = &bytes[..];
        let header = FileHeader64::<LittleEndian>::parse(file).map_err(malformed)?;
        let endian_ok = header.is_little_endian() && header.e_ident().class == elf::ELFCLASS64;
        if !endian_ok || header.e_machine(LE) != EM_X86_64 || header.e_type(LE) != ET_DYN {
            return Err(ElfError::NotStaticPie);
        }
        let segments = header.program_headers(LE, file).map_err(malformed)?;
        let mut end = 0u64;
        for segment in segments {
            match segment.p_type(LE) {
                PT_INTERP => return Err(ElfError::NeedsLoader("an interpreter")),
                PT_TLS => return Err(ElfError::NeedsLoader("thread-local storage")),
                PT_LOAD => {
                    let last = segment.p_vaddr(LE).checked_add(segment.p_memsz(LE));
                    let last = last.and_then(|last| last.checked_next_multiple_of(PAGE));
                    end = end.max(last.ok_or_else(|| malformed("a segment wraps around"))?);
                }
                _ => {}
            }
        }
        if end > room {
            return Err(ElfError::TooLarge {
                need: end,
                have: room,
            });
        }
        if end == 0 {
            return Err(malformed("nothing to load"));
        }
        let mut program = Program {
            base,
            entry: base + header.e_entry(LE).min(room),
            file: bytes.clone(),
            memory: vec![0; end as usize],
            pages: vec![Page::default(); (end / PAGE) as usize],
        };
        for segment in segments
            .iter()
            .filter(|segment| segment.p_type(LE) == PT_LOAD)
        {
            program.place(file, segment)?;
        }
        program.relocate(file, segments)?;
        program.leave_out_unwinding(file, header)?;
        let entry_page = program.pages.get((header.e_entry(LE) / PAGE) as usize);
        if entry_page.is_none_or(|page| page.permissions & 4 == 0) {
            return Err(ElfError::Entry(header.e_entry(LE)));
        }
        Ok(program)
    }

    /// Copies one PT_LOAD segment to its place.
    fn place(
        &mut self,
        file: &[u8],
        segment: &elf::ProgramHeader64<LittleEndian>,
    ) -> Result<(), ElfError> {
        let (start, size) = (segment.p_vaddr(LE), segment.p_memsz(LE));
        if size == 0 {
            return Ok(());
        }
        let data = segment
            .data(LE, file)
            .map_err(|()| malformed("a segment is cut off"))?;
        if data.len() as u64 > size {
            return Err(malformed(
                "a segment has more bytes in the file than in memory",
            ));
        }
        let flags = segment.p_flags(LE);
        let bit = |flag, value| if flags.contains(flag) { value } else { 0 };
        let permissions = bit(PF_R, 1) | bit(PF_W, 2) | bit(PF_X, 4);
        // EPCM pages must be readable to be anything else.
        if permissions & 1 == 0 {
            return Err(malformed("a segment is not readable"));
        }
        if permissions & 6 == 6 {
            return Err(ElfError::WritableCode(start));
        }
        let file_end = start + data.len() as u64;
        let (offset, _) = segment.file_range(LE);
        let whole = match permissions & 2 == 0 && (offset ^ start).is_multiple_of(PAGE) {
            true => start.next_multiple_of(PAGE)..file_end / PAGE * PAGE,
            false => start..start,
        };
        // `load` has checked that the segment ends inside `memory`.
        for part in [
            start..whole.start.min(file_end),
            whole.end.max(start)..file_end,
        ] {
            if part.start < part.end {
                let from = (part.start - start) as usize..(part.end - start) as usize;
                self.memory[part.start as usize..part.end as usize].copy_from_slice(&data[from]);
            }
        }
        for number in start / PAGE..(start + size).div_ceil(PAGE) {
            let page = &mut self.pages[number as usize];
            let is_whole = page.as_is.is_some() || whole.contains(&(number * PAGE));
            if page.permissions != 0 && (page.permissions != permissions || is_whole) {
                return Err(ElfError::SharedPage(number * PAGE));
            }
            if whole.contains(&(number * PAGE)) {
                page.as_is = Some(offset + (number * PAGE - start));
            }
            page.permissions = permissions;
            page.from_file |= number * PAGE < file_end;
        }
        Ok(())
    }

    /// Applies the relocations that the dynamic section lists.
    fn relocate(
        &mut self,
        file: &[u8],
        segments: &[elf::ProgramHeader64<LittleEndian>],
    ) -> Result<(), ElfError> {
        let dynamic = segments
            .iter()
            .find(|segment| segment.p_type(LE) == PT_DYNAMIC);
        let Some(dynamic) = dynamic else {
            return Ok(());
        };
        let entries = dynamic
            .dynamic(LE, file)
            .map_err(malformed)?
            .unwrap_or_default();
        let (mut table, mut size, mut entry_size) = (0, 0, 24);
        for entry in entries {
            let value = entry.d_val(LE);
            match entry.d_tag(LE) {
                elf::DT_NULL => break,
                DT_RELA => table = value,
                DT_RELASZ => size = value,
                DT_RELAENT => entry_size = value,
                DT_NEEDED => return Err(ElfError::NeedsLoader("a shared library")),
                DT_JMPREL => return Err(ElfError::NeedsLoader("a procedure linkage table")),
                DT_REL | DT_RELR => {
                    return Err(ElfError::NeedsLoader(
                        "packed relocations (DT_RELR or DT_REL)",
                    ));
                }
                _ => {}
            }
        }
        if size == 0 {
            return Ok(());
        }
        if entry_size != 24 || size % 24 != 0 {
            return Err(malformed("relocation entries are not 24 bytes long"));
        }
        let cut_off = || malformed("relocations are cut off");
        let range = self.range(table, size).ok_or_else(cut_off)?;
        let pages = range.start as u64 / PAGE..(range.end as u64).div_ceil(PAGE);
        if pages
            .clone()
            .any(|page| self.pages[page as usize].permissions & 6 != 0)
        {
            return Err(malformed("the relocation table is not in constant data"));
        }
        // Constants of a loaded segment, read from the file: no relocation can change them.
        let table = segments
            .iter()
            .filter(|segment| segment.p_type(LE) == PT_LOAD)
            .find_map(|segment| segment.data_range(LE, file, table, size).ok().flatten());
        let table = table.ok_or_else(cut_off)?;
        for head in table.chunks_exact(24) {
            let (head, _) =
                object::from_bytes::<Rela64<LittleEndian>>(head).map_err(|()| cut_off())?;
            let (offset, kind) = (head.r_offset(LE), head.r_type(LE, false));
            if kind == R_X86_64_NONE {
                continue;
            }
            if kind != R_X86_64_RELATIVE || head.r_sym(LE, false) != 0 {
                return Err(ElfError::Relocation {
                    kind: kind.0,
                    offset,
                });
            }
            let value = self.base.wrapping_add_signed(head.r_addend(LE));
            let target = self
                .range(offset, 8)
                .ok_or(ElfError::RelocationOutside(offset))?;
            for page in [target.start as u64 / PAGE, (target.end as u64 - 1) / PAGE] {
                let page = self.pages[page as usize];
                if page.permissions & 2 == 0 || !page.from_file {
                    return Err(ElfError::RelocationOutside(offset));
                }
            }
            self.memory[target].copy_from_slice(&value.to_le_bytes());
        }
        self.leave_out(&range);
        Ok(())
    }

    /// Leaves out tables by which programs are unwound: nothing in an enclave is.
    fn leave_out_unwinding(
        &mut self,
        file: &[u8],
        header: &FileHeader64<LittleEndian>,
    ) -> Result<(), ElfError> {
        let sections = header.sections(LE, file).map_err(malformed)?;
        for name in [".eh_frame_hdr", ".eh_frame"] {
            let Some((_, section)) = sections.section_by_name(LE, name.as_bytes()) else {
                continue;
            };
            let (at, len) = (section.sh_addr(LE), section.sh_size(LE));
            let range = self.range(at, len);
            self.leave_out(&range.ok_or_else(|| malformed(format!("{name} is cut off")))?);
        }
        Ok(())
    }

    /// Nobody in the enclave needs these bytes: constants in pages of their own are not added, and so
    /// not hashed at every start.
    fn leave_out(&mut self, range: &Range<usize>) {
        let whole = range.start.div_ceil(PAGE as usize)..range.end / PAGE as usize;
        let pages = self.pages.get_mut(whole).unwrap_or_default();
        for page in pages.iter_mut().filter(|page| page.permissions & 6 == 0) {
            *page = Page::default();
        }
    }

    /// Offsets in memory of `len` bytes at the file's address `at`.
    fn range(&self, at: u64, len: u64) -> Option<Range<usize>> {
        let end = at.checked_add(len)?;
        (end <= self.memory.len() as u64).then_some(at as usize..end as usize)
    }

    /// The bytes of the symbol `name`, found in the symbol table of `file`, which must be the file
    /// that was loaded. Only objects in pages that come from the file count.
    pub(crate) fn object_mut(
        &mut self,
        file: &[u8],
        name: &str,
        len: u64,
    ) -> Result<Option<&mut [u8]>, ElfError> {
        let Some(at) = symbol(file, name)? else {
            return Ok(None);
        };
        let Some(range) = self.range(at, len) else {
            return Err(malformed(format!("{name} lies outside of the program")));
        };
        let pages = range.start as u64 / PAGE..(range.end as u64).div_ceil(PAGE);
        if pages
            .clone()
            .map(|page| self.pages[page as usize])
            .any(|page| !page.from_file || page.as_is.is_some())
        {
            return Err(malformed(format!("{name} has no content in the file")));
        }
        Ok(Some(&mut self.memory[range]))
    }

    /// The program's pages in ascending order, in runs as long as possible.
    pub(crate) fn into_pages(self) -> Vec<Pages> {
        let memory = Bytes::from(self.memory);
        let mut runs = Vec::new();
        let mut start = 0;
        while start < self.pages.len() {
            let page = self.pages[start];
            let same = self.pages[start..]
                .iter()
                .enumerate()
                .take_while(|&(index, &next)| {
                    let as_is = page.as_is.map(|at| at + index as u64 * PAGE);
                    next == Page { as_is, ..page }
                })
                .count();
            let (from, len) = (start * PAGE as usize, same * PAGE as usize);
            if page.permissions != 0 {
                let content = match (page.as_is, page.from_file) {
                    (Some(at), _) => {
                        PagesContent::Data(self.file.slice(at as usize..at as usize + len))
                    }
                    (None, true) => PagesContent::Data(memory.slice(from..from + len)),
                    (None, false) => PagesContent::Zero(len as u64),
                };
                let address = self.base + from as u64;
                runs.push(Pages {
                    address,
                    permissions: page.permissions,
                    content,
                });
            }
            start += same;
        }
        runs
    }
}

/// The address of a defined symbol in the file's symbol table.
fn symbol(file: &[u8], name: &str) -> Result<Option<u64>, ElfError> {
    let header = FileHeader64::<LittleEndian>::parse(file).map_err(malformed)?;
    let sections = header.sections(LE, file).map_err(malformed)?;
    for kind in [elf::SHT_SYMTAB, elf::SHT_DYNSYM] {
        let symbols = sections.symbols(LE, file, kind).map_err(malformed)?;
        for symbol in symbols.iter() {
            if symbol.st_shndx(LE) == elf::SHN_UNDEF || symbol.st_value(LE) == 0 {
                continue;
            }
            if symbol
                .name(LE, symbols.strings())
                .is_ok_and(|found| found == name.as_bytes())
            {
                return Ok(Some(symbol.st_value(LE)));
            }
        }
    }
    Ok(None)
}
