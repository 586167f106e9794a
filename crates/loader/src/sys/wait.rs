//! Blocking system calls that a kick always ends, without a window in which it could be lost.
//!
//! A thread that is about to block first looks at two words: its wait word (changed by wakers in
//! the enclave) and its kick word (set by the kick handler). Between that look and the kernel a
//! signal could arrive and be forgotten. So look and system call are one small piece of assembly,
//! and the kick handler moves a thread that it finds in there to the exit that reports EINTR
//! ([`restart_before_block`]). Once in the kernel the signal itself ends the call (no SA_RESTART).

use std::arch::global_asm;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::area::Area;
use super::raw::{Answer, Errno, check, plain};

/// Arguments of the stub, in the order in which it reads them.
#[repr(C)]
struct Blocking {
    word: *const AtomicU32,
    kicked: *const AtomicU32,
    seen: u32,
    number: i64,
    arguments: [usize; 6],
}

// All arguments are in registers before the look, so that it and the system call are adjacent.
global_asm!(
    ".pushsection .text.bulla_blocking,\"ax\",@progbits",
    ".balign 16",
    ".globl bulla_blocking",
    ".hidden bulla_blocking",
    "bulla_blocking:",
    "push rbx",
    "mov rbx, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov r11d, [rdi + 16]",
    "mov rax, [rdi + 24]",
    "mov rsi, [rdi + 40]",
    "mov rdx, [rdi + 48]",
    "mov r10, [rdi + 56]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov rdi, [rdi + 32]",
    ".globl bulla_blocking_look",
    ".hidden bulla_blocking_look",
    "bulla_blocking_look:",
    "cmp dword ptr [rcx], 0",
    "jne bulla_blocking_interrupted",
    "cmp dword ptr [rbx], r11d",
    "jne bulla_blocking_interrupted",
    "syscall",
    ".globl bulla_blocking_done",
    ".hidden bulla_blocking_done",
    "bulla_blocking_done:",
    "pop rbx",
    "ret",
    ".globl bulla_blocking_interrupted",
    ".hidden bulla_blocking_interrupted",
    "bulla_blocking_interrupted:",
    "mov rax, {eintr}",
    "pop rbx",
    "ret",
    ".popsection",
    eintr = const -(libc::EINTR as i64),
);

unsafe extern "C" {
    fn bulla_blocking(call: *const Blocking) -> i64;
    static bulla_blocking_look: u8;
    static bulla_blocking_done: u8;
    static bulla_blocking_interrupted: u8;
}

/// For the kick handler: where a thread interrupted at `rip` has to go on, when that is between
/// the look at the words and the system call.
pub fn restart_before_block(rip: u64) -> Option<u64> {
    // The symbols stand for addresses in the stub; nothing is read from them.
    let (look, done, interrupted) = (
        &raw const bulla_blocking_look as u64,
        &raw const bulla_blocking_done as u64,
        &raw const bulla_blocking_interrupted as u64,
    );
    (look..done).contains(&rip).then_some(interrupted)
}

/// A system call that ends with EINTR when `kicked` becomes non-zero or the wait word of `area`
/// differs from `seen`.
///
/// # Safety
/// As the system call demands.
unsafe fn blocking(
    area: &Area,
    seen: u32,
    kicked: &AtomicU32,
    number: libc::c_long,
    arguments: [usize; 6],
) -> Answer {
    let call = Blocking {
        word: area.wait_word(),
        kicked,
        seen,
        number,
        arguments,
    };
    // SAFETY: the stub reads `call` and the two words, and makes the system call that our caller
    // vouches for.
    check(unsafe { bulla_blocking(&call) })
}

/// A relative timeout in ns; `u64::MAX` is none.
fn timespec(timeout: u64) -> Option<libc::timespec> {
    (timeout != u64::MAX).then_some(libc::timespec {
        tv_sec: (timeout / 1_000_000_000) as i64,
        tv_nsec: (timeout % 1_000_000_000) as i64,
    })
}

/// For the kernel, which may write to it (ppoll leaves the time that is left).
fn pointer<T>(value: &mut Option<T>) -> usize {
    value.as_mut().map_or(0, |value| value as *mut T as usize)
}

/// Who blocks, and what ends it early.
#[derive(Clone, Copy)]
pub struct Waiter<'a> {
    pub area: &'a Area,
    pub kicked: &'a AtomicU32,
    pub seen: u32,
}

impl Waiter<'_> {
    /// Whether the wait word has changed.
    pub fn woken(&self) -> bool {
        self.area.wait_word().load(Ordering::SeqCst) != self.seen
    }

    /// Sleeps on the wait word. 0, ETIMEDOUT or EINTR.
    pub fn futex(&self, timeout: u64) -> Answer {
        let mut limit = timespec(timeout);
        let word = self.area.wait_word() as *const AtomicU32 as usize;
        // SAFETY: the word and the timeout are valid for the call.
        let answer = unsafe {
            blocking(
                self.area,
                self.seen,
                self.kicked,
                libc::SYS_futex,
                [
                    word,
                    (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize,
                    self.seen as usize,
                    pointer(&mut limit),
                    0,
                    0,
                ],
            )
        };
        match answer {
            Err(Errno(libc::EAGAIN)) => Ok(0),
            Err(Errno(libc::EINTR)) if self.woken() => Ok(0),
            other => other,
        }
    }

    /// ppoll over `count` `struct pollfd` at `list`, which lies in a shared area.
    pub fn poll(&self, list: super::area::Span<'_>, timeout: u64) -> Answer {
        let limit = timespec(timeout);
        // SAFETY: `list` is valid memory of its length; ppoll writes to the timeout, ours to give.
        unsafe { self.poll_raw(list.pointer(), list.len() / 8, limit) }
    }

    /// Waits for `events` on one descriptor.
    pub fn poll_one(&self, fd: i32, events: i16, timeout: u64) -> Answer {
        let mut one = libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        // SAFETY: one element.
        unsafe { self.poll_raw(&raw mut one as usize, 1, timespec(timeout)) }
    }

    /// # Safety
    /// `list` points to `count` elements.
    unsafe fn poll_raw(
        &self,
        list: usize,
        count: usize,
        mut limit: Option<libc::timespec>,
    ) -> Answer {
        // SAFETY: the caller's promise.
        let answer = unsafe {
            blocking(
                self.area,
                self.seen,
                self.kicked,
                libc::SYS_ppoll,
                [list, count, pointer(&mut limit), 0, 8, 0],
            )
        };
        self.early(answer)
    }

    /// epoll_pwait2 into `events`, room for a number of `struct epoll_event`.
    pub fn epoll(&self, epoll: i32, events: super::area::Span<'_>, timeout: u64) -> Answer {
        /// Set once the kernel, or a container's seccomp filter, has refused epoll_pwait2.
        static OLD: AtomicBool = AtomicBool::new(false);
        let mut limit = timespec(timeout);
        let count = events.len() / size_of::<libc::epoll_event>();
        let (epoll, list) = (epoll as usize, events.pointer());
        if !OLD.load(Ordering::Relaxed) {
            // SAFETY: `events` is valid memory for `count` elements.
            let answer = unsafe {
                blocking(
                    self.area,
                    self.seen,
                    self.kicked,
                    libc::SYS_epoll_pwait2,
                    [epoll, list, count, pointer(&mut limit), 0, 8],
                )
            };
            match answer {
                Err(Errno(libc::ENOSYS | libc::EPERM)) => OLD.store(true, Ordering::Relaxed),
                answer => return self.early(answer),
            }
        }
        // Linux before 5.11: milliseconds, rounded up so that nobody wakes before the time.
        let milliseconds = match timeout {
            u64::MAX => -1,
            _ => timeout.div_ceil(1_000_000).min(i32::MAX as u64) as i32,
        };
        // SAFETY: as above.
        let answer = unsafe {
            blocking(
                self.area,
                self.seen,
                self.kicked,
                libc::SYS_epoll_pwait,
                [epoll, list, count, milliseconds as usize, 0, 8],
            )
        };
        self.early(answer)
    }

    /// read or pread of a descriptor that may block.
    pub fn read(&self, fd: i32, to: super::area::Span<'_>, offset: u64) -> Answer {
        let number = if offset == u64::MAX {
            libc::SYS_read
        } else {
            libc::SYS_pread64
        };
        let arguments = [fd as usize, to.pointer(), to.len(), offset as usize, 0, 0];
        // SAFETY: `to` is valid memory of its length.
        unsafe { blocking(self.area, self.seen, self.kicked, number, arguments) }
    }

    /// write or pwrite to a descriptor that may block.
    pub fn write(&self, fd: i32, from: super::area::Span<'_>, offset: u64) -> Answer {
        let number = if offset == u64::MAX {
            libc::SYS_write
        } else {
            libc::SYS_pwrite64
        };
        let arguments = [
            fd as usize,
            from.pointer(),
            from.len(),
            offset as usize,
            0,
            0,
        ];
        // SAFETY: `from` is valid memory of its length.
        unsafe { blocking(self.area, self.seen, self.kicked, number, arguments) }
    }

    /// A wait that the wait word ended has simply found nothing.
    fn early(&self, answer: Answer) -> Answer {
        match answer {
            Err(Errno(libc::EINTR)) if self.woken() => Ok(0),
            other => other,
        }
    }
}

/// Sleeps while `word` is `value`; spurious returns are allowed.
pub fn futex_wait(word: &AtomicU32, value: u32) {
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    let word = word as *const AtomicU32;
    let _ = plain!(libc::SYS_futex, word, operation, value, 0);
}

/// Wakes at most one sleeper on `word`.
pub fn futex_wake(word: &AtomicU32) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    let word = word as *const AtomicU32;
    let _ = plain!(libc::SYS_futex, word, operation, 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_before_it_blocks() {
        let area = Area::new().unwrap();
        let kicked = AtomicU32::new(0);
        let mut waiter = Waiter {
            area: &area,
            kicked: &kicked,
            seen: 1,
        };
        // The word is 0, not 1: none of these may block.
        assert_eq!(waiter.futex(u64::MAX), Ok(0));
        assert_eq!(waiter.poll_one(-1, 0, u64::MAX), Ok(0));
        waiter.seen = 0;
        assert_eq!(waiter.futex(1_000_000), Err(Errno(libc::ETIMEDOUT)));
        assert_eq!(waiter.poll_one(-1, 0, 1_000_000), Ok(0));
        kicked.store(1, Ordering::Relaxed);
        assert_eq!(waiter.futex(u64::MAX), Err(Errno(libc::EINTR)));
        assert_eq!(waiter.poll_one(-1, 0, u64::MAX), Err(Errno(libc::EINTR)));
    }

    #[test]
    fn the_stub_is_where_the_handler_looks() {
        let look = &raw const bulla_blocking_look as u64;
        let done = &raw const bulla_blocking_done as u64;
        let interrupted = &raw const bulla_blocking_interrupted as u64;
        assert_eq!(restart_before_block(look), Some(interrupted));
        assert_eq!(restart_before_block(done - 2), Some(interrupted));
        assert_eq!(restart_before_block(done), None);
        assert_eq!(restart_before_block(look - 1), None);
        // cmp, jne, cmp, jne, syscall.
        assert!((10..=24).contains(&(done - look)));
    }
}
