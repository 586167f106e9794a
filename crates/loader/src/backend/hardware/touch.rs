//! Reading pages from outside the enclave so that the driver adds them.
//!
//! Two threads that fault on one fresh page at the same time race in the driver: the loser gets
//! SIGBUS, as does everybody when the enclave page cache is full. Neither may end the process: the
//! handler steps over the read, and the enclave's own EACCEPT decides later.

use std::arch::global_asm;
use std::ffi::c_void;
use std::mem::{MaybeUninit, zeroed};
use std::ptr;
use std::sync::Once;

global_asm!(
    // (address rdi, length rsi) -> number of pages that could not be read
    ".pushsection .text.bulla_touch,\"ax\",@progbits",
    ".balign 16",
    ".globl bulla_touch, bulla_touch_read, bulla_touch_failed",
    ".hidden bulla_touch, bulla_touch_read, bulla_touch_failed",
    "bulla_touch:",
    "xor eax, eax",
    "2:",
    "test rsi, rsi",
    "jz 4f",
    "bulla_touch_read:",
    "mov cl, [rdi]",
    "3:",
    "add rdi, 4096",
    "sub rsi, 4096",
    "jmp 2b",
    "bulla_touch_failed:",
    "inc rax",
    "jmp 3b",
    "4:",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn bulla_touch(address: u64, len: u64) -> u64;
    static bulla_touch_read: u8;
    static bulla_touch_failed: u8;
}

/// Reads a byte of each page of [address, address + len), multiples of 4096. Returns how many
/// pages had SIGBUS instead.
pub fn touch(address: u64, len: u64) -> u64 {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(install);
    // SAFETY: a read of memory that is mapped readable; what it gets is thrown away, and SIGBUS
    // skips it.
    unsafe { bulla_touch(address, len & !4095) }
}

/// What handled SIGBUS before us.
static mut PREVIOUS: MaybeUninit<libc::sigaction> = MaybeUninit::zeroed();

fn install() {
    // SAFETY: a valid action; the old one is stored before the handler can need it but for a
    // SIGBUS in this very moment, which then has the default action.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let previous = (&raw mut PREVIOUS).cast::<libc::sigaction>();
        libc::sigaction(libc::SIGBUS, &action, previous);
    }
}

extern "C" fn on_bus_error(_: i32, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's context of this signal, which nobody else uses now.
    let registers = unsafe { &mut (*(context as *mut libc::ucontext_t)).uc_mcontext.gregs };
    let rip = &mut registers[libc::REG_RIP as usize];
    if *rip as u64 == &raw const bulla_touch_read as u64 {
        *rip = &raw const bulla_touch_failed as i64;
        return;
    }
    // Somebody else's: it happens again, with the previous action.
    // SAFETY: written by `install` before this handler could run.
    unsafe {
        let previous = (&raw const PREVIOUS).cast::<libc::sigaction>();
        libc::sigaction(libc::SIGBUS, previous, ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn pages_that_are_not_there_are_counted() {
        let path = std::env::temp_dir().join(format!("bulla-touch-{}", std::process::id()));
        std::fs::write(&path, [1; 8192]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        // SAFETY: a fresh mapping; its pages behind the end of the file raise SIGBUS.
        let address = unsafe {
            let (len, fd) = (5 * 4096, file.as_raw_fd());
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        assert_ne!(address, libc::MAP_FAILED);
        assert_eq!(touch(address as u64, 2 * 4096), 0);
        assert_eq!(touch(address as u64, 5 * 4096), 3);
        assert_eq!(touch(address as u64, 0), 0);
        // SAFETY: our own mapping.
        unsafe { libc::munmap(address, 5 * 4096) };
    }
}
