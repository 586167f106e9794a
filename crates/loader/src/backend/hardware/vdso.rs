//! Finding a function in the vDSO that the kernel maps into every process.
//!
//! The C library does not hand out `__vdso_sgx_enter_enclave`, so its symbol table is searched
//! here, through the GNU hash table that kernels have always built in.

use std::ffi::CStr;

/// ELF constants (elf.h).
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;

/// A function in the vDSO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    pub address: u64,
    pub len: u64,
}

/// The function `name`, when this kernel has it.
pub fn find(name: &CStr) -> Option<Function> {
    // SAFETY: getauxval only reads the auxiliary vector.
    let base = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    if base == 0 {
        return None;
    }
    // SAFETY: the kernel's own, well-formed ELF image, mapped for the life of the process.
    unsafe { search(base, name) }
}

/// # Safety
/// A well-formed ELF64 image with a GNU hash table is mapped at `base`.
unsafe fn search(base: u64, name: &CStr) -> Option<Function> {
    /// # Safety
    /// `address` is within the image and aligned for `T`.
    unsafe fn at<T: Copy>(address: u64) -> T {
        // SAFETY: the caller's promise.
        unsafe { *(address as *const T) }
    }
    // SAFETY: the offsets below are those of the ELF format, in an image that is well formed.
    unsafe {
        let headers = base + at::<u64>(base + 32);
        let (mut bias, mut dynamic) = (None, None);
        for index in 0..u64::from(at::<u16>(base + 56)) {
            let header = headers + index * 56;
            let (offset, address) = (at::<u64>(header + 8), at::<u64>(header + 16));
            match at::<u32>(header) {
                PT_LOAD if bias.is_none() => {
                    bias = Some((base + offset).wrapping_sub(address));
                }
                PT_DYNAMIC => dynamic = Some(base + offset),
                _ => {}
            }
        }
        let (bias, mut entry) = (bias?, dynamic?);
        let (mut strings, mut symbols, mut hash) = (0, 0, 0);
        loop {
            let value = at::<u64>(entry + 8);
            match at::<u64>(entry) {
                0 => break,
                DT_STRTAB => strings = bias.wrapping_add(value),
                DT_SYMTAB => symbols = bias.wrapping_add(value),
                DT_GNU_HASH => hash = bias.wrapping_add(value),
                _ => {}
            }
            entry += 16;
        }
        if strings == 0 || symbols == 0 || hash == 0 {
            return None;
        }
        // nbuckets, symoffset, bloom_size, bloom_shift, bloom[], buckets[], chains[].
        let buckets = at::<u32>(hash);
        let first = at::<u32>(hash + 4);
        let bucket_table = hash + 16 + 8 * u64::from(at::<u32>(hash + 8));
        let chains = bucket_table + 4 * u64::from(buckets);
        let wanted = gnu_hash(name.to_bytes());
        let mut symbol = at::<u32>(bucket_table + 4 * u64::from(wanted % buckets.max(1)));
        if symbol < first {
            return None;
        }
        loop {
            let chain = at::<u32>(chains + 4 * u64::from(symbol - first));
            let record = symbols + 24 * u64::from(symbol);
            let text = (strings + u64::from(at::<u32>(record))) as *const libc::c_char;
            if chain | 1 == wanted | 1 && CStr::from_ptr(text) == name {
                return Some(Function {
                    address: bias.wrapping_add(at::<u64>(record + 8)),
                    len: at::<u64>(record + 16),
                });
            }
            if chain & 1 == 1 {
                return None;
            }
            symbol += 1;
        }
    }
}

/// The hash function of DT_GNU_HASH.
fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381, |hash: u32, byte| {
        hash.wrapping_mul(33).wrapping_add(u32::from(*byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_every_vdso_has() {
        let clock = find(c"__vdso_clock_gettime").expect("a vDSO");
        let time = find(c"__vdso_time").expect("a vDSO");
        assert_ne!(clock.address, time.address);
        assert!(clock.len > 0);
        assert_eq!(find(c"__vdso_no_such_function"), None);
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: it is the function of that name, which has this type.
        let result = unsafe {
            let clock: extern "C" fn(i32, *mut libc::timespec) -> i32 =
                std::mem::transmute(clock.address as *const ());
            clock(libc::CLOCK_REALTIME, &mut now)
        };
        assert_eq!(result, 0);
        assert!(now.tv_sec > 1_600_000_000);
    }
}
