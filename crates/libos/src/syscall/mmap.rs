//! mmap, munmap, mprotect, mremap, pkeys.

use alloc::sync::Arc;

use super::{Arguments, Context, memory_limits};
use crate::Result;
use crate::errno::{EACCES, EBADF, EINVAL, ENODEV, ENOMEM, ENOSPC, EOPNOTSUPP, EOVERFLOW, EPERM};
use crate::fs::file::OpenFile;
use crate::fs::mount::flags::NOEXEC;
use crate::mm::map::{Placement, Request, Source};
use crate::mm::remap::{Keep, Move};
use crate::mm::vma::FileBacking;
use crate::mm::{PAGE, VmaFlags, page_down, page_up};
use crate::platform::Protection;
use crate::user::{ADDRESS_MAX, check_range};

/// Bits of mmap(2) and mprotect(2).
mod bits {
    pub const PROT_KNOWN: u32 = 7;
    pub const PROT_SEM: u32 = 8;
    pub const PROT_GROWSDOWN: u32 = 0x0100_0000;
    pub const PROT_GROWSUP: u32 = 0x0200_0000;
    pub const MAP_TYPE: u32 = 0xf;
    pub const MAP_SHARED: u32 = 1;
    pub const MAP_PRIVATE: u32 = 2;
    pub const MAP_SHARED_VALIDATE: u32 = 3;
    pub const MAP_FIXED: u32 = 0x10;
    pub const MAP_ANONYMOUS: u32 = 0x20;
    pub const MAP_32BIT: u32 = 0x40;
    pub const MAP_GROWSDOWN: u32 = 0x100;
    pub const MAP_DENYWRITE: u32 = 0x800;
    pub const MAP_EXECUTABLE: u32 = 0x1000;
    pub const MAP_LOCKED: u32 = 0x2000;
    pub const MAP_NORESERVE: u32 = 0x4000;
    pub const MAP_POPULATE: u32 = 0x8000;
    pub const MAP_NONBLOCK: u32 = 0x10000;
    pub const MAP_STACK: u32 = 0x20000;
    pub const MAP_HUGETLB: u32 = 0x40000;
    pub const MAP_FIXED_NOREPLACE: u32 = 0x10_0000;
    pub const MAP_VALIDATED: u32 = MAP_SHARED_VALIDATE
        | MAP_FIXED
        | MAP_ANONYMOUS
        | MAP_32BIT
        | MAP_GROWSDOWN
        | MAP_DENYWRITE
        | MAP_EXECUTABLE
        | MAP_LOCKED
        | MAP_NORESERVE
        | MAP_POPULATE
        | MAP_NONBLOCK
        | MAP_STACK
        | MAP_HUGETLB
        | MAP_FIXED_NOREPLACE;
    pub const MREMAP_MAYMOVE: u32 = 1;
    pub const MREMAP_FIXED: u32 = 2;
    pub const MREMAP_DONTUNMAP: u32 = 4;
}

use bits::*;

/// PROT_READ, PROT_WRITE, PROT_EXEC have the bits of [`Protection`].
fn protection(prot: u32) -> Protection {
    Protection::from_bits_truncate((prot & PROT_KNOWN) as u8)
}

/// mmap(2).
pub fn mmap(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (address, len) = (arguments.u64(0), arguments.u64(1));
    let (prot, flags) = (arguments.u32(2), arguments.u32(3));
    let offset = arguments.u64(5);
    if !offset.is_multiple_of(PAGE) {
        return Err(EINVAL.because("the offset is not page aligned"));
    }
    let protection = protection(prot);
    let anonymous = flags & MAP_ANONYMOUS != 0;
    let file = match anonymous {
        true => None,
        false => Some(
            context
                .thread
                .files()
                .get(arguments.i32(4))
                .map_err(|_| EBADF)?,
        ),
    };
    if len == 0 {
        return Err(EINVAL.because("a mapping without length"));
    }
    if page_up(len).is_none_or(|len| len > ADDRESS_MAX) {
        return Err(ENOMEM.because("longer than any address space"));
    }
    let mut vma_flags = VmaFlags::empty();
    let shared = match flags & MAP_TYPE {
        MAP_PRIVATE => false,
        MAP_SHARED => true,
        MAP_SHARED_VALIDATE if anonymous => {
            return Err(EINVAL.because("flags are validated for files only"));
        }
        MAP_SHARED_VALIDATE if flags & !MAP_VALIDATED != 0 => {
            return Err(EOPNOTSUPP.because("unknown flags"));
        }
        MAP_SHARED_VALIDATE => true,
        _ => return Err(EINVAL.because("neither shared nor private")),
    };
    if flags & MAP_HUGETLB != 0 {
        return Err(ENOMEM.because("no huge pages are reserved"));
    }
    vma_flags.set(VmaFlags::GROWSDOWN, flags & MAP_GROWSDOWN != 0);
    vma_flags.set(VmaFlags::NORESERVE, flags & MAP_NORESERVE != 0);
    vma_flags.set(VmaFlags::LOCKED, flags & MAP_LOCKED != 0);
    vma_flags.set(VmaFlags::STACK, flags & (MAP_STACK | MAP_GROWSDOWN) != 0);
    if vma_flags.contains(VmaFlags::GROWSDOWN) && (shared || !anonymous) {
        return Err(EINVAL.because("only private anonymous memory grows down"));
    }
    let placement = if flags & MAP_FIXED_NOREPLACE != 0 {
        Placement::Free(address)
    } else if flags & MAP_FIXED != 0 {
        context.mm().check_sealed(address, len)?;
        Placement::Fixed(address)
    } else if flags & MAP_32BIT != 0 {
        Placement::Low(address)
    } else {
        Placement::Hint(address)
    };
    let source = match &file {
        None => {
            vma_flags.set(VmaFlags::SHARED, shared);
            Source::Anonymous
        }
        Some(file) => file_source(file, offset, len, protection, shared, &mut vma_flags)?,
    };
    let request = Request {
        placement,
        len,
        protection,
        flags: vma_flags,
        source,
        populate: flags & MAP_LOCKED != 0 || flags & MAP_POPULATE != 0 && flags & MAP_NONBLOCK == 0,
    };
    let replaced = match placement {
        Placement::Fixed(at) => Some(at..at.saturating_add(len)),
        _ => None,
    };
    let is_data = protection.contains(Protection::WRITE)
        && !request.flags.intersects(VmaFlags::SHARED | VmaFlags::STACK);
    memory_limits::check_growth(context, len, is_data, replaced.as_ref())?;
    memory_limits::check_locked_mapping(context, len, flags & MAP_LOCKED != 0)?;
    let is_code = protection.contains(Protection::EXECUTE) && !anonymous;
    let mapped = context.mm().map(request)?;
    if is_code && crate::debugger::is_wanted() {
        crate::debugger::announce(context.thread);
    }
    Ok(mapped as usize)
}

/// Checks that a file may be mapped so, and decides how.
fn file_source(
    file: &Arc<OpenFile>,
    offset: u64,
    len: u64,
    protection: Protection,
    shared: bool,
    flags: &mut VmaFlags,
) -> Result<Source> {
    use crate::fs::file::flags as open;
    use crate::fs::inode::FileType;
    use crate::fs::lower::make_device;
    if file.flags() & open::PATH == open::PATH {
        return Err(EBADF);
    }
    if offset
        .checked_add(len)
        .is_none_or(|end| end > i64::MAX as u64)
    {
        return Err(EOVERFLOW);
    }
    let inode = file.inode().cloned().ok_or(ENODEV)?;
    if !file.is_readable() {
        return Err(EACCES.because("the file was not opened for reading"));
    }
    let flags_of_mount = file.path.as_ref().map_or(0, |path| path.mount.flags());
    if protection.contains(Protection::EXECUTE) && flags_of_mount & NOEXEC != 0 {
        return Err(EPERM.because("the file system is mounted noexec"));
    }
    match inode.kind() {
        FileType::Regular => inode.check_mappable()?,
        // /dev/zero is anonymous memory.
        FileType::Character if inode.metadata().rdev == make_device(1, 5) => {
            if shared && protection.contains(Protection::WRITE) && !file.is_writable() {
                return Err(EACCES.because("the file was not opened for writing"));
            }
            flags.set(VmaFlags::SHARED, shared);
            flags.set(VmaFlags::NO_WRITE, shared && !file.is_writable());
            return Ok(Source::Anonymous);
        }
        _ => return Err(ENODEV.because("this kind of file cannot be mapped")),
    }
    if shared {
        let writable = file.is_writable();
        if protection.contains(Protection::WRITE) && !writable {
            return Err(EACCES.because("the file was not opened for writing"));
        }
        // F_SEAL_WRITE, F_SEAL_FUTURE_WRITE.
        let sealed = inode.seals().is_ok_and(|seals| seals & (8 | 16) != 0);
        if protection.contains(Protection::WRITE) && sealed {
            return Err(EPERM.because("the file is sealed against writing"));
        }
        flags.set(VmaFlags::NO_WRITE, !writable || sealed);
        // What cannot change looks the same in a private view, and can be mapped anywhere.
        flags.set(VmaFlags::SHARED, writable || !inode.is_immutable());
    }
    Ok(Source::File(FileBacking {
        inode,
        offset,
        path: file.path.clone(),
    }))
}

/// munmap(2).
pub fn munmap(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    check_range(arguments.u64(0), arguments.usize(1)).map_err(|_| EINVAL)?;
    let mm = context.mm();
    mm.check_sealed(arguments.u64(0), arguments.u64(1))?;
    mm.unmap(arguments.u64(0), arguments.u64(1))?;
    Ok(0)
}

/// mprotect(2).
pub fn mprotect(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let prot = arguments.u32(2);
    if arguments.u64(2) & !u64::from(PROT_KNOWN | PROT_SEM | PROT_GROWSDOWN | PROT_GROWSUP) != 0 {
        return Err(EINVAL.because("unknown protection bits"));
    }
    let grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP);
    if grows & PROT_GROWSUP != 0 {
        return Err(EINVAL.because("nothing grows up on x86-64"));
    }
    let (mut address, mut len) = (arguments.u64(0), arguments.u64(1));
    let mm = context.mm();
    if grows != 0 {
        let start = mm.grows_down_from(address).ok_or(EINVAL)?;
        len = len.saturating_add(address - start);
        address = start;
    }
    mm.check_sealed(address, len)?;
    mm.protect(address, len, protection(prot))?;
    Ok(0)
}

/// mremap(2).
pub fn mremap(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let flags = arguments.u32(3);
    if arguments.u64(3) >> 32 != 0
        || flags & !(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) != 0
    {
        return Err(EINVAL.because("unknown flags"));
    }
    let may_move = flags & MREMAP_MAYMOVE != 0;
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) != 0 && !may_move {
        return Err(EINVAL.because("MREMAP_FIXED and MREMAP_DONTUNMAP need MREMAP_MAYMOVE"));
    }
    let how = match (flags & MREMAP_FIXED != 0, may_move) {
        (true, _) => Move::To(arguments.u64(4)),
        (false, true) => Move::May,
        (false, false) => Move::Never,
    };
    let keep = if flags & MREMAP_DONTUNMAP != 0 {
        Keep::Yes
    } else {
        Keep::No
    };
    let (address, old, new) = (arguments.u64(0), arguments.u64(1), arguments.u64(2));
    let mm = context.mm();
    mm.check_sealed(address, old)?;
    if let Move::To(to) = how {
        mm.check_sealed(to, new)?;
    }
    if new > old {
        let is_data = mm.usage(Some(&(address..address.saturating_add(1)))).data != 0;
        memory_limits::check_growth(context, new - old, is_data, None)?;
        if mm.has_locked(address, 1) {
            memory_limits::check_locked_mapping(context, new - old, true)?;
        }
    }
    mm.remap(address, old, new, how, keep)
        .map(|address| address as usize)
}

/// remap_file_pages(2): as in Linux since 4.0, another mapping over a part of a shared one.
pub fn remap_file_pages(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (start, len) = (page_down(arguments.u64(0)), page_down(arguments.u64(1)));
    let (prot, page) = (arguments.u64(2), arguments.u64(3));
    if prot != 0 {
        return Err(EINVAL.because("the protection cannot be changed so"));
    }
    let offset = page
        .checked_mul(PAGE)
        .filter(|at| at.checked_add(len).is_some());
    let offset = offset.ok_or(EINVAL)?;
    if len == 0 || start.checked_add(len).is_none() {
        return Err(EINVAL.because("nothing to map"));
    }
    let mm = context.mm();
    mm.check_sealed(start, len)?;
    mm.remap_shared(start, len, offset)?;
    Ok(0)
}

/// mseal(2).
pub fn mseal(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.u64(2) != 0 {
        return Err(EINVAL.because("no flags are known"));
    }
    context.mm().seal(arguments.u64(0), arguments.u64(1))?;
    Ok(0)
}

/// pkey_alloc(2): as on a CPU without protection keys.
pub fn pkey_alloc(_context: &mut Context<'_>, _arguments: Arguments) -> Result<usize> {
    Err(ENOSPC.because("no protection keys"))
}

/// pkey_free(2), likewise.
pub fn pkey_free(_context: &mut Context<'_>, _arguments: Arguments) -> Result<usize> {
    Err(EINVAL.because("no protection keys"))
}

/// pkey_mprotect(2): mprotect when the key is -1.
pub fn pkey_mprotect(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match arguments.i32(3) {
        -1 => mprotect(context, arguments),
        _ => Err(EINVAL.because("no protection keys")),
    }
}

/// process_madvise(2) needs a pidfd of another process; only hints are allowed, which change
/// nothing here.
pub fn process_madvise(_context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match arguments.u32(3) {
        3 | 20 | 21 | 25 => Err(EPERM.because("advice for another process")),
        _ => Err(EINVAL.because("unknown advice")),
    }
}
