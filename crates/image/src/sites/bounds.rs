//! Where functions start and end: call frame information (`.eh_frame`), symbols, and the function
//! table of Go programs (`.gopclntab`). Every source is optional and none is trusted: bounds only
//! say where decoding may begin.

use super::{Header, LE, Segment, landing};
use gimli::{
    BaseAddresses, CieOrFde, EhFrame, LittleEndian as GimliLittle, Pointer, UnwindSection,
};
use object::elf;
use object::read::elf::{FileHeader, SectionHeader, SectionTable, Sym};

/// Ascending, disjoint parts of a segment, together covering all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub start: u64,
    pub end: u64,
    /// The file says that this is a function; otherwise it is what lies between functions.
    pub known: bool,
}

/// What is known about a segment before it is decoded.
pub(super) struct Bounds {
    pub parts: Vec<Part>,
    /// Where the unwinder may enter.
    pub landing_pads: Vec<u64>,
}

/// Splits a segment into functions and what lies between them.
pub(super) fn functions(header: &Header, file: &[u8], segment: &Segment<'_>) -> Bounds {
    let (mut known, mut landing_pads) = (Vec::new(), Vec::new());
    // A file without usable section headers has one part, which is not known to be a function.
    if let Ok(sections) = header.sections(LE, file) {
        from_eh_frame(&sections, file, &mut known, &mut landing_pads);
        from_symbols(&sections, file, &mut known);
        from_go(&sections, file, &mut known);
    }
    let end = segment.address + segment.data.len() as u64;
    Bounds {
        parts: split(segment.address, end, known),
        landing_pads,
    }
}

/// Turns claimed ranges, which may overlap or lie anywhere, into parts of `[start, end)`.
fn split(start: u64, end: u64, mut known: Vec<(u64, u64)>) -> Vec<Part> {
    known.retain(|&(from, to)| from < to && from >= start && to <= end);
    // The longest of several that start together comes first; the others change nothing.
    known.sort_by_key(|&(from, to)| (from, u64::MAX - to));
    known.dedup_by_key(|&mut (from, _)| from);
    let mut parts = Vec::with_capacity(known.len() * 2 + 1);
    let mut at = start;
    for (index, &(from, to)) in known.iter().enumerate() {
        // An entry inside of the function before it (another symbol of hand-written code) is part
        // of that function.
        if from < at {
            continue;
        }
        if at < from {
            parts.push(Part {
                start: at,
                end: from,
                known: false,
            });
        }
        let next = known[index + 1..]
            .iter()
            .map(|&(next, _)| next)
            .find(|&next| next >= to);
        let to = to.min(next.unwrap_or(to));
        parts.push(Part {
            start: from,
            end: to,
            known: true,
        });
        at = to;
    }
    if at < end {
        parts.push(Part {
            start: at,
            end,
            known: false,
        });
    }
    parts
}

type Sections<'data> = SectionTable<'data, Header>;

/// Address and content of a section.
fn section<'data>(
    sections: &Sections<'data>,
    file: &'data [u8],
    name: &str,
) -> Option<(u64, &'data [u8])> {
    let (_, section) = sections.section_by_name(LE, name.as_bytes())?;
    Some((section.sh_addr(LE), section.data(LE, file).ok()?))
}

fn from_eh_frame(
    sections: &Sections<'_>,
    file: &[u8],
    known: &mut Vec<(u64, u64)>,
    landing_pads: &mut Vec<u64>,
) {
    let Some((address, data)) = section(sections, file, ".eh_frame") else {
        return;
    };
    let frames = EhFrame::new(data, GimliLittle);
    let text = section(sections, file, ".text").map_or(0, |(address, _)| address);
    let areas = section(sections, file, ".gcc_except_table");
    let bases = BaseAddresses::default()
        .set_eh_frame(address)
        .set_text(text);
    let mut entries = frames.entries(&bases);
    while let Ok(Some(entry)) = entries.next() {
        if let CieOrFde::Fde(partial) = entry
            && let Ok(fde) = partial.parse(EhFrame::cie_from_offset)
        {
            let start = fde.initial_address();
            known.push((start, start.saturating_add(fde.len())));
            if let (Some(Pointer::Direct(area)), Some((address, data))) = (fde.lsda(), areas)
                && let Some(area) = data.get(area.wrapping_sub(address) as usize..)
            {
                // What cannot be read has no landing pads that we could know.
                let _ = landing::read(area, start, landing_pads);
            }
        }
    }
}

fn from_symbols(sections: &Sections<'_>, file: &[u8], known: &mut Vec<(u64, u64)>) {
    for kind in [elf::SHT_SYMTAB, elf::SHT_DYNSYM] {
        let Ok(symbols) = sections.symbols(LE, file, kind) else {
            continue;
        };
        for symbol in symbols.iter() {
            let function = matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC);
            if function && symbol.st_shndx(LE) != elf::SHN_UNDEF {
                let start = symbol.st_value(LE);
                known.push((start, start.saturating_add(symbol.st_size(LE))));
            }
        }
    }
}

/// Go 1.18 and later: `runtime.pcHeader`, then a table of (start, function) offsets from the start
/// of the text. Functions follow each other without gaps but padding.
fn from_go(sections: &Sections<'_>, file: &[u8], known: &mut Vec<(u64, u64)>) {
    // Magic numbers of Go 1.18 and 1.20 (internal/abi or debug/gosym of the Go distribution).
    const MAGICS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
    let named = [".gopclntab", ".data.rel.ro.gopclntab"];
    let Some((_, data)) = named.iter().find_map(|name| section(sections, file, name)) else {
        return;
    };
    let word = |at: usize| {
        let bytes = data.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let half = |at: usize| {
        let bytes = data.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let sizes = (data.get(6), data.get(7));
    if !half(0).is_some_and(|magic| MAGICS.contains(&magic)) || sizes != (Some(&1), Some(&8)) {
        return;
    }
    let (Some(count), Some(base), Some(table)) = (word(8), word(24), word(64)) else {
        return;
    };
    let text = section(sections, file, ".text").map_or(0, |(address, _)| address);
    let base = if base == 0 { text } else { base };
    let Ok(table) = usize::try_from(table) else {
        return;
    };
    let mut last = None;
    for index in 0..count.min(data.len() as u64 / 8) as usize + 1 {
        let at = table.checked_add(index * 8);
        let Some(offset) = at.and_then(half) else {
            break;
        };
        let start = base.saturating_add(offset.into());
        if let Some(last) = last.replace(start) {
            known.push((last, start));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_segment_whatever_is_claimed() {
        let claims = vec![
            (30, 40),
            (10, 20),
            (10, 15),
            (12, 13),
            (35, 60),
            (90, 300),
            (0, 5),
        ];
        let parts = split(5, 100, claims);
        let mut at = 5;
        for part in &parts {
            assert_eq!(part.start, at);
            assert!(part.end > part.start);
            at = part.end;
        }
        assert_eq!(at, 100);
        let known: Vec<_> = parts.iter().filter(|part| part.known).collect();
        assert_eq!(
            known[0],
            &Part {
                start: 10,
                end: 20,
                known: true
            }
        );
        assert_eq!(
            known[1],
            &Part {
                start: 30,
                end: 40,
                known: true
            }
        );
    }
}
