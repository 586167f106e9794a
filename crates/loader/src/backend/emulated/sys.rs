//! System calls of the emulator. Raw ones, so that nothing here touches errno: some run in signal
//! handlers and in the ENCLU gate.

use std::arch::asm;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::backend::Error;

/// A raw system call; negative results are −errno.
///
/// # Safety
/// As the system call demands.
pub unsafe fn syscall(number: i64, arguments: [u64; 6]) -> i64 {
    let result: i64;
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the kernel preserves all registers but these; the caller answers for the call.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

fn check(call: &'static str, reason: &str, result: i64) -> Result<u64, Error> {
    if (-4095..0).contains(&result) {
        return Err(Error::System {
            call,
            errno: -result as i32,
            reason: reason.to_owned(),
        });
    }
    Ok(result as u64)
}

const RESERVED: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;

/// Reserves an address range without access.
pub fn reserve(address: u64, len: u64) -> Result<(), Error> {
    let flags = RESERVED | libc::MAP_FIXED_NOREPLACE as u64;
    // SAFETY: MAP_FIXED_NOREPLACE never touches what is mapped already.
    let result = unsafe { syscall(libc::SYS_mmap, [address, len, 0, flags, u64::MAX, 0]) };
    check(
        "mmap",
        "the enclave's address range is not free; raise `ulimit -v`, and do not run under a \
         sanitizer or a debugger that uses low addresses",
        result,
    )?;
    // SAFETY: a hint about memory that is ours; a refusal changes nothing.
    unsafe {
        let advice = libc::MADV_HUGEPAGE as u64;
        syscall(libc::SYS_madvise, [address, len, advice, 0, 0, 0]);
        let advice = libc::MADV_DONTDUMP as u64;
        syscall(libc::SYS_madvise, [address, len, advice, 0, 0, 0]);
    }
    Ok(())
}

/// Backs a part of a reservation by pages of 4 KiB: for memory of which less than a huge page may be
/// used, whose clearing would take longer than all else before the program starts.
pub fn small_pages(address: u64, len: u64) {
    // SAFETY: a hint about memory that is ours; a refusal changes nothing.
    unsafe {
        let advice = libc::MADV_NOHUGEPAGE as u64;
        syscall(libc::SYS_madvise, [address, len, advice, 0, 0, 0]);
    }
}

/// Zeroed memory anywhere, backed only where it is touched.
pub fn map_sparse(len: u64) -> Result<u64, Error> {
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let result = unsafe { syscall(libc::SYS_mmap, [0, len, protection, RESERVED, u64::MAX, 0]) };
    check(
        "mmap",
        "no address space for the emulator's tables; raise `ulimit -v`",
        result,
    )
}

/// Removes a mapping that this module made.
pub fn unmap(address: u64, len: u64) {
    // SAFETY: callers pass ranges that they own and no longer use.
    unsafe { syscall(libc::SYS_munmap, [address, len, 0, 0, 0, 0]) };
}

/// mprotect with the bits of SECINFO (1 read, 2 write, 4 execute), which are also PROT_*.
pub fn protect(address: u64, len: u64, protection: u64) -> Result<(), Error> {
    // SAFETY: callers pass ranges in memory that this backend mapped.
    let result = unsafe { syscall(libc::SYS_mprotect, [address, len, protection & 7, 0, 0, 0]) };
    check(
        "mprotect",
        "cannot change enclave pages; raise vm.max_map_count if it says out of memory",
        result,
    )
    .map(|_| ())
}

/// Backs a writable range with memory at once.
pub fn populate(address: u64, len: u64) -> Result<(), Error> {
    // In chunks, so that one call does not hold the address space for long.
    const CHUNK: u64 = 64 << 20;
    let mut at = address;
    while at < address + len {
        let size = CHUNK.min(address + len - at);
        let advice = libc::MADV_POPULATE_WRITE as u64;
        // SAFETY: the range is ours; populating does not change what it holds.
        let result = unsafe { syscall(libc::SYS_madvise, [at, size, advice, 0, 0, 0]) };
        match -result as i32 {
            libc::EINTR | libc::EAGAIN => continue,
            // Kernels before 5.14 do not know the advice: pages come with the first touch.
            libc::EINVAL => return Ok(()),
            _ => check("madvise", "no memory left for enclave pages", result)?,
        };
        at += size;
    }
    Ok(())
}

/// Gives pages back; they hold zeros when they are next made accessible.
pub fn discard(address: u64, len: u64) -> Result<(), Error> {
    protect(address, len, 0)?;
    let advice = libc::MADV_DONTNEED as u64;
    // SAFETY: the caller owns the range and gives its content up.
    let result = unsafe { syscall(libc::SYS_madvise, [address, len, advice, 0, 0, 0]) };
    check("madvise", "cannot discard enclave pages", result).map(|_| ())
}

/// Where in the file of this program constant bytes of it are, if they are whole pages there.
pub fn place_in_program(bytes: &[u8]) -> Option<u64> {
    struct Search {
        start: u64,
        end: u64,
        found: Option<u64>,
    }
    /// Looks at the first object only, which is the program.
    unsafe extern "C" fn visit(
        info: *mut libc::dl_phdr_info,
        _: libc::size_t,
        search: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the C library's promise, and `search` is the caller's, which waits.
        let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
        // SAFETY: the program's own headers, which stay mapped.
        let headers =
            unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        let constant = |header: &&libc::Elf64_Phdr| {
            header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
        };
        for header in headers.iter().filter(constant) {
            let start = info.dlpi_addr + header.p_vaddr;
            if start <= search.start && search.end <= start + header.p_filesz {
                search.found = Some(header.p_offset + (search.start - start));
            }
        }
        1
    }
    let start = bytes.as_ptr() as u64;
    let mut search = Search {
        start,
        end: start + bytes.len() as u64,
        found: None,
    };
    // SAFETY: the callback takes what it is given here.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    let offset = search.found?;
    let are_pages = (search.start | search.end | offset).is_multiple_of(super::epcm::PAGE);
    are_pages.then_some(offset)
}

/// Maps pages of a file over pages of the reservation, for this process alone.
pub fn map_file(address: u64, len: u64, file: BorrowedFd<'_>, offset: u64) -> Result<(), Error> {
    let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED) as u64;
    let descriptor = file.as_raw_fd() as u64;
    let protection = libc::PROT_READ as u64;
    // SAFETY: the caller owns the range, which nothing uses.
    let result = unsafe {
        syscall(
            libc::SYS_mmap,
            [address, len, protection, flags, descriptor, offset],
        )
    };
    check("mmap", "cannot map this program's own file", result)?;
    // SAFETY: a hint about memory that is ours; a refusal changes nothing.
    unsafe {
        let advice = libc::MADV_DONTDUMP as u64;
        syscall(libc::SYS_madvise, [address, len, advice, 0, 0, 0]);
    }
    Ok(())
}

/// Makes pages that [`map_file`] has mapped into ones of the reservation again.
pub fn unmap_file(address: u64, len: u64) -> Result<(), Error> {
    let flags = RESERVED | libc::MAP_FIXED as u64;
    // SAFETY: the caller owns the range and gives its content up.
    let result = unsafe { syscall(libc::SYS_mmap, [address, len, 0, flags, u64::MAX, 0]) };
    check("mmap", "cannot give enclave pages back", result).map(|_| ())
}

/// Makes a page of the reservation into one that points to the emulator's gates.
pub fn map_fixed(address: u64, len: u64) -> Result<(), Error> {
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    // SAFETY: the caller owns the range, which nothing uses.
    let result = unsafe {
        syscall(
            libc::SYS_mmap,
            [address, len, protection, flags, u64::MAX, 0],
        )
    };
    check(
        "mmap",
        "cannot map the emulator's page in the enclave's range",
        result,
    )
    .map(|_| ())
}

macro_rules! base_registers {
    ($($(#[$doc:meta])* $read:ident, $write:ident, $rd:literal, $wr:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: FSGSBASE is enabled (checked when the backend is made); reads a register.
            unsafe { asm!($rd, out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        /// Sets it.
        ///
        /// # Safety
        /// The code that runs next must expect the new base.
        #[inline(always)]
        pub unsafe fn $write(value: u64) {
            // SAFETY: FSGSBASE is enabled; the caller answers for the effect.
            unsafe { asm!($wr, in(reg) value, options(nostack, preserves_flags)) };
        }
    )*};
}

base_registers! {
    /// The FS base.
    fs_base, set_fs_base, "rdfsbase {}", "wrfsbase {}";
    /// The GS base.
    gs_base, set_gs_base, "rdgsbase {}", "wrgsbase {}";
}

/// MXCSR without the exception flags.
pub fn mxcsr() -> u32 {
    let mut value = 0u32;
    // SAFETY: stores a register.
    unsafe { asm!("stmxcsr [{}]", in(reg) &mut value, options(nostack, preserves_flags)) };
    value & !0x3f
}

/// The x87 control word.
pub fn x87_control() -> u32 {
    let mut value = 0u16;
    // SAFETY: stores a register.
    unsafe { asm!("fnstcw [{}]", in(reg) &mut value, options(nostack, preserves_flags)) };
    u32::from(value)
}

/// Whether user code may use RDFSBASE and its kin (Linux 5.9 or newer).
pub fn has_fsgsbase() -> bool {
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    // SAFETY: reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
}

/// Where XSAVE writes the extended state in the standard format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XsaveLayout {
    /// Bytes of the whole area.
    pub size: u64,
    /// Start of each component from 2 (AVX) on; 0 for those that XFRM does not have.
    pub starts: [u64; 8],
}

impl XsaveLayout {
    /// This machine's for `xfrm`. CPUID may fault later, when the thread enters enclaves.
    pub fn of(xfrm: u64) -> XsaveLayout {
        let mut layout = XsaveLayout {
            size: 576,
            starts: [0; 8],
        };
        for component in (2..63).filter(|component| xfrm >> component & 1 != 0) {
            let leaf = std::arch::x86_64::__cpuid_count(0xd, component);
            let (len, start) = (u64::from(leaf.eax), u64::from(leaf.ebx));
            layout.size = layout.size.max(start + len);
            if let Some(known) = layout.starts.get_mut(component as usize) {
                *known = start;
            }
        }
        layout
    }
}
