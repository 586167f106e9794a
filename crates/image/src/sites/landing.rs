//! Landing pads of exceptions: places that the unwinder enters, so that no branch leads there.
//! Read from the language-specific data area, `.gcc_except_table`, whose form is GCC's
//! (`unwind-pe.h`, and the Itanium C++ ABI's exception handling).

use gimli::{EndianSlice, LittleEndian, Reader};

type Input<'data> = EndianSlice<'data, LittleEndian>;

/// Encoding that says "not there".
const OMITTED: u8 = 0xff;

/// Adds the landing pads of the function at `start` whose data area is `area` to `pads`. Stops at
/// whatever it cannot read.
pub(super) fn read(area: &[u8], start: u64, pads: &mut Vec<u64>) -> gimli::Result<()> {
    let mut input = EndianSlice::new(area, LittleEndian);
    let base = match input.read_u8()? {
        OMITTED => start,
        // An explicit base is legal, but no compiler writes one.
        _ => return Ok(()),
    };
    if input.read_u8()? != OMITTED {
        input.read_uleb128()?;
    }
    let encoding = input.read_u8()?;
    let len = input.read_uleb128()?;
    let mut table = input.split(len as usize)?;
    while !table.is_empty() {
        number(&mut table, encoding)?;
        number(&mut table, encoding)?;
        let pad = number(&mut table, encoding)?;
        table.read_uleb128()?;
        if pad != 0 {
            pads.push(base.wrapping_add(pad));
        }
    }
    Ok(())
}

fn number(input: &mut Input<'_>, encoding: u8) -> gimli::Result<u64> {
    Ok(match encoding & 0x0f {
        0x01 => input.read_uleb128()?,
        0x02 => input.read_u16()?.into(),
        0x03 => input.read_u32()?.into(),
        0x04 => input.read_u64()?,
        _ => {
            return Err(gimli::Error::UnknownPointerEncoding(gimli::DwEhPe(
                encoding,
            )));
        }
    })
}
