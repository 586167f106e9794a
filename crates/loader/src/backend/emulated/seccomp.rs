//! Catching the enclave's system calls by seccomp, for kernels without Syscall User Dispatch (before
//! Linux 5.11).
//!
//! The filter looks at the instruction pointer only: below [`entry::HOST_START`] a call raises SIGSYS
//! before anything is done, with RIP behind the instruction and RAX as it was, which is what user
//! dispatch does as well. It costs every system call of the host some 50 ns, cannot be taken away
//! from a thread again, and is inherited: threads and programs that a slot's thread starts have it
//! too, so a program that is linked to run below 2^40 cannot be started from there (ours are not).

use std::cell::Cell;

use super::entry;
use crate::backend::Error;

thread_local! {
    static IS_FILTERED: Cell<bool> = const { Cell::new(false) };
}

/// Upper half of `seccomp_data.instruction_pointer` (little-endian).
const POINTER_HIGH: u32 = 12;
const HOST_HIGH: u32 = (entry::HOST_START >> 32) as u32;
const _: () = assert!(entry::HOST_START & 0xffff_ffff == 0);

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

static FILTER: [libc::sock_filter; 4] = [
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, POINTER_HIGH),
    libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16,
        jt: 1,
        jf: 0,
        k: HOST_HIGH,
    },
    statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_TRAP),
    statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
];

/// Filters this thread, once.
pub fn filter() -> Result<(), Error> {
    if IS_FILTERED.get() {
        return Ok(());
    }
    let program = libc::sock_fprog {
        len: FILTER.len() as u16,
        filter: FILTER.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the filter, which allows every call of the host's own code. Without
    // new privileges a filter needs no capability.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if result != 0 {
        return Err(Error::System {
            call: "prctl",
            errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
            reason: "the emulated platform needs Syscall User Dispatch (Linux 5.11 or newer) or \
                     seccomp filters"
                .to_owned(),
        });
    }
    IS_FILTERED.set(true);
    Ok(())
}
