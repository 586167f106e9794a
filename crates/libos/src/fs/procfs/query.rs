//! PROCMAP_QUERY: one mapping of /proc/<pid>/maps without its text.

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::process::map_name;
use crate::errno::{E2BIG, EINVAL, ENAMETOOLONG, ENOENT};
use crate::fs::lower::split_device;
use crate::mm::{MapLine, PAGE};
use crate::platform::Protection;
use crate::process::Process;
use crate::syscall::Context;
use crate::{Errno, Result};

/// The ioctl with the size of its argument taken out: _IOWR('f', 17, ..).
const REQUEST: u32 = 0xc000_6611;
const SIZE_BITS: u32 = 0x3fff << 16;

const SHARED: u64 = 8;
/// Readable, writable, executable, shared.
const KINDS: u64 = 15;
const OR_NEXT: u64 = 16;
const OF_FILE: u64 = 32;

/// `struct procmap_query`.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Query {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    map_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

/// Whether an ioctl asks for a mapping.
pub fn is_query(request: u32) -> bool {
    request & !SIZE_BITS == REQUEST
}

/// PROCMAP_QUERY; ENOENT where no mapping is as asked for.
pub fn answer(context: &Context<'_>, process: &Process, argument: u64) -> Result<()> {
    const SMALLEST: u64 = 24;
    const SIZE: usize = size_of::<Query>();
    let mm = context.mm();
    let mut size = [0; 8];
    mm.read(argument, &mut size)?;
    let size = u64::from_le_bytes(size);
    if size > PAGE {
        return Err(E2BIG.because("no version of the query is so long"));
    }
    if size < SMALLEST {
        return Err(EINVAL.because("shorter than any version of the query"));
    }
    let known = SIZE.min(size as usize);
    let mut query = Query::default();
    mm.read(argument, &mut query.as_mut_bytes()[..known])?;
    if query.flags & !(KINDS | OR_NEXT | OF_FILE) != 0
        || (query.name_size == 0) != (query.name == 0)
        || (query.build_id_size == 0) != (query.build_id == 0)
    {
        return Err(EINVAL.because("unknown flags, or a buffer without a size"));
    }
    let map = find(process, &query)?;
    let (device, inode) = map.file.map_or((0, 0), |file| (file.device, file.inode));
    (query.major, query.minor) = split_device(device);
    (query.start, query.end, query.inode) = (map.start, map.end, inode);
    query.offset = if inode == 0 { 0 } else { map.offset };
    query.page_size = PAGE;
    query.map_flags = flags_of(&map);
    query.build_id_size = 0;
    if query.name_size > 0 {
        let mut name: Vec<u8> = map_name(&map, &context.thread.fs().root());
        let most = query.name_size as usize;
        if name.is_empty() {
            query.name_size = 0;
        } else {
            name.push(0);
            if name.len() > most {
                return Err(ENAMETOOLONG.because("the name needs more room"));
            }
            query.name_size = name.len() as u32;
            mm.write(query.name, &name)?;
        }
    }
    query.size = known as u64;
    mm.write(argument, &query.as_bytes()[..known])
}

fn flags_of(map: &MapLine) -> u64 {
    let bit = |protection, bit| {
        if map.protection.contains(protection) {
            bit
        } else {
            0
        }
    };
    bit(Protection::READ, 1)
        | bit(Protection::WRITE, 2)
        | bit(Protection::EXECUTE, 4)
        | if map.shared { SHARED } else { 0 }
}

fn find(process: &Process, query: &Query) -> core::result::Result<MapLine, Errno> {
    let wanted = query.flags & KINDS;
    let fits = |map: &MapLine| {
        let near = map.start <= query.address || query.flags & OR_NEXT != 0;
        // Of what covers the address the kinds must be right; with OR_NEXT any later one will do.
        near && flags_of(map) & wanted == wanted
            && (query.flags & OF_FILE == 0 || map.file.is_some())
    };
    let mut maps = process.mm().maps().into_iter();
    let found = maps.find(|map| map.end > query.address && fits(map));
    found.ok_or(ENOENT.because("no such mapping"))
}
