//! Calls that make objects of the kernel are refused with ENOMEM while there is no memory for them
//! (see [`crate::mm::accounting`]). All others go on, so that a program can still clean up, write
//! and end.

use super::table::ROWS;
use super::{Arguments, Context, Handler, NUMBERS, missing};
use crate::Result;
use crate::mm::accounting;

/// What is refused: calls that leave something behind in the kernel, by number. `brk` is not among
/// them, since it has no way to say so, nor are reads and writes: what they leave is limited by
/// object (pipes, sockets) or charged to the file systems.
const MAKING: &[usize] = &[
    2,   // open
    9,   // mmap
    10,  // mprotect: splits mappings
    22,  // pipe
    25,  // mremap
    29,  // shmget
    30,  // shmat
    32,  // dup
    33,  // dup2
    41,  // socket
    42,  // connect: waits in a listener's queue
    43,  // accept
    44,  // sendto
    46,  // sendmsg
    53,  // socketpair
    56,  // clone
    57,  // fork
    58,  // vfork
    59,  // execve
    64,  // semget
    65,  // semop: undo lists
    68,  // msgget
    69,  // msgsnd
    73,  // flock
    82,  // rename
    83,  // mkdir
    85,  // creat
    86,  // link
    88,  // symlink
    129, // rt_sigqueueinfo
    133, // mknod
    165, // mount
    188, // setxattr
    189, // lsetxattr
    190, // fsetxattr
    206, // io_setup
    209, // io_submit
    213, // epoll_create
    220, // semtimedop
    222, // timer_create
    233, // epoll_ctl
    240, // mq_open
    242, // mq_timedsend
    248, // add_key
    249, // request_key
    253, // inotify_init
    254, // inotify_add_watch
    257, // openat
    258, // mkdirat
    259, // mknodat
    264, // renameat
    265, // linkat
    266, // symlinkat
    282, // signalfd
    283, // timerfd_create
    284, // eventfd
    288, // accept4
    289, // signalfd4
    290, // eventfd2
    291, // epoll_create1
    292, // dup3
    293, // pipe2
    294, // inotify_init1
    297, // rt_tgsigqueueinfo
    307, // sendmmsg
    316, // renameat2
    319, // memfd_create
    322, // execveat
    434, // pidfd_open
    435, // clone3
    437, // openat2
    438, // pidfd_getfd
];

/// Whether a call makes objects.
pub const fn is_needed(number: usize) -> bool {
    let mut at = 0;
    while at < MAKING.len() {
        if MAKING[at] == number {
            return true;
        }
        at += 1;
    }
    false
}

/// The handlers of those calls, by number.
static HANDLERS: [Handler; NUMBERS] = {
    let mut handlers: [Handler; NUMBERS] = [missing; NUMBERS];
    let mut at = 0;
    while at < ROWS.len() {
        handlers[ROWS[at].number] = ROWS[at].handler;
        at += 1;
    }
    handlers
};

/// Stands in the table for the handler of such a call.
pub fn admitted(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let number = context.registers.orig_rax as usize;
    accounting::admit()?;
    HANDLERS.get(number).unwrap_or(&(missing as Handler))(context, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::{EBADF, ENOMEM};
    use crate::{Registers, testing};

    fn call(thread: &alloc::sync::Arc<crate::Thread>, number: u64) -> i64 {
        let mut registers = Registers {
            rax: number,
            rdi: u64::from(u32::MAX),
            ..Registers::default()
        };
        super::super::dispatch(thread, &mut registers);
        registers.rax as i64
    }

    #[test]
    fn without_memory_objects_are_refused_and_the_rest_goes_on() {
        let thread = testing::setup();
        let refused = -i64::from(ENOMEM.code());
        testing::set_heap_is_short(true);
        for &number in MAKING {
            assert_eq!(call(&thread, number as u64), refused, "{number}");
        }
        const CLOSE: u64 = 3;
        const GETPID: u64 = 39;
        assert_eq!(call(&thread, CLOSE), -i64::from(EBADF.code()));
        assert!(call(&thread, GETPID) > 0);
        testing::set_heap_is_short(false);
        const DUP: u64 = 32;
        assert_eq!(call(&thread, DUP), -i64::from(EBADF.code()));
    }

    #[test]
    fn the_numbers_are_of_calls_that_make_something() {
        // In order and without repetition, so that none is missed by eye; each is in the table.
        assert!(MAKING.is_sorted_by(|a, b| a < b));
        for &number in MAKING {
            let row = ROWS.iter().find(|row| row.number == number);
            assert!(row.is_some(), "{number}");
        }
    }
}
