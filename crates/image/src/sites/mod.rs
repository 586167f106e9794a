//! Finds `syscall`, `cpuid` and `rdtsc` in executables, and how each can be rewritten.
//!
//! Code is decoded instruction by instruction within the bounds of functions, as call frame
//! information, symbols or Go's function table give them; what lies between is decoded too, but
//! believed only where it is consistent. A form that moves instructions is chosen only if nothing
//! in the file is seen to branch into them. When in doubt a site keeps trapping: slow, never wrong.

mod bounds;
mod code;
mod landing;

use bulla_abi::sites::{Form, Site, SiteList, VERSION};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, elf};

pub use bulla_abi::sites::Kind;

const LE: LittleEndian = LittleEndian;
type Header = elf::FileHeader64<LittleEndian>;

/// Why a file has no list.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SitesError {
    /// Not an x86-64 ELF program or library; there is nothing to list.
    #[error("not an x86-64 ELF file")]
    NotElf,
    #[error("malformed ELF file: {0}")]
    Malformed(String),
}

fn malformed(what: impl ToString) -> SitesError {
    SitesError::Malformed(what.to_string())
}

/// How many sites of a file have which form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub number: usize,
    pub after: usize,
    pub before: usize,
    pub trap: usize,
}

impl Counts {
    /// Counts the sites of one kind.
    pub fn of(list: &SiteList, kind: Kind) -> Counts {
        let mut counts = Counts::default();
        for site in list.sites.iter().filter(|site| site.kind == kind) {
            *match site.form {
                Form::Number { .. } => &mut counts.number,
                Form::After { .. } => &mut counts.after,
                Form::Before { .. } => &mut counts.before,
                Form::Trap => &mut counts.trap,
            } += 1;
        }
        counts
    }

    /// All of them.
    pub fn total(&self) -> usize {
        self.number + self.after + self.before + self.trap
    }
}

/// A loaded, executable part of the file.
struct Segment<'data> {
    /// Address of the first byte, as linked.
    address: u64,
    /// Offset of the first byte in the file.
    offset: u64,
    data: &'data [u8],
}

/// Lists the sites of an executable file.
pub fn find_sites(file: &[u8]) -> Result<SiteList, SitesError> {
    let header = Header::parse(file).map_err(|_| SitesError::NotElf)?;
    if !header.is_little_endian() || header.e_machine(LE) != elf::EM_X86_64 {
        return Err(SitesError::NotElf);
    }
    let mut sites = Vec::new();
    for segment in executable_segments(header, file)? {
        if has_candidates(segment.data) {
            let bounds = bounds::functions(header, file, &segment);
            sites.extend(code::find(&segment, &bounds));
        }
    }
    sites.sort_by_key(|site: &Site| site.offset);
    // Segments may overlap in the file; the first description of an instruction counts.
    sites.dedup_by_key(|site| site.offset);
    Ok(SiteList {
        version: VERSION,
        sites,
    })
}

fn executable_segments<'data>(
    header: &Header,
    file: &'data [u8],
) -> Result<Vec<Segment<'data>>, SitesError> {
    let mut segments = Vec::new();
    for segment in header.program_headers(LE, file).map_err(malformed)? {
        if segment.p_type(LE) == elf::PT_LOAD && segment.p_flags(LE).contains(elf::PF_X) {
            let data = segment
                .data(LE, file)
                .map_err(|()| malformed("a segment is cut off"))?;
            let (address, offset) = (segment.p_vaddr(LE), segment.p_offset(LE));
            // Addresses near the end of the address space cannot be user code.
            if address
                .checked_add(data.len() as u64)
                .is_none_or(|end| end > 1 << 47)
            {
                return Err(malformed("a segment lies outside of user memory"));
            }
            segments.push(Segment {
                address,
                offset,
                data,
            });
        }
    }
    Ok(segments)
}

/// Whether the bytes of any instruction that we look for occur at all.
fn has_candidates(data: &[u8]) -> bool {
    data.windows(2).any(|pair| {
        // `rdtscp` starts with 0f 01.
        pair[0] == 0x0f && matches!(pair[1], 0x05 | 0xa2 | 0x31 | 0x01)
    })
}
