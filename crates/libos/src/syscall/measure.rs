//! System time: how long calls take.
//!
//! A clock reading costs as much as the fastest calls, so those are not measured at all, and of the
//! other fast ones a few stand for all. Where the clock is the host's, nothing is measured: all CPU
//! time is user time.

use super::table::ROWS;
use super::{Arguments, Context, Handler, NUMBERS, admission, missing};
use crate::Result;
use crate::platform::platform;

/// Calls that only read a number.
const UNMEASURED: &[usize] = &[
    24,  // sched_yield
    39,  // getpid
    96,  // gettimeofday
    102, // getuid
    104, // getgid
    107, // geteuid
    108, // getegid
    110, // getppid
    111, // getpgrp
    186, // gettid
    201, // time
    228, // clock_gettime
    309, // getcpu
];

/// Fast calls, of which one in [`EVERY`] is measured.
const SAMPLED: &[usize] = &[
    0,   // read
    1,   // write
    7,   // poll
    8,   // lseek
    13,  // rt_sigaction
    14,  // rt_sigprocmask
    15,  // rt_sigreturn
    17,  // pread64
    18,  // pwrite64
    19,  // readv
    20,  // writev
    23,  // select
    44,  // sendto
    45,  // recvfrom
    46,  // sendmsg
    47,  // recvmsg
    202, // futex
    232, // epoll_wait
    233, // epoll_ctl
    270, // pselect6
    271, // ppoll
    281, // epoll_pwait
];
const EVERY: u32 = 32;

const fn contains(list: &[usize], number: usize) -> bool {
    let mut at = 0;
    while at < list.len() {
        if list[at] == number {
            return true;
        }
        at += 1;
    }
    false
}

/// What stands in the table of handlers for a call.
pub const fn handler(number: usize, own: Handler) -> Handler {
    if contains(UNMEASURED, number) {
        return admitting(number, own);
    }
    match contains(SAMPLED, number) {
        true => sampled,
        false => measured,
    }
}

const fn admitting(number: usize, own: Handler) -> Handler {
    match admission::is_needed(number) {
        true => admission::admitted,
        false => own,
    }
}

/// The handlers behind them, by number.
static HANDLERS: [Handler; NUMBERS] = {
    let mut handlers: [Handler; NUMBERS] = [missing; NUMBERS];
    let mut at = 0;
    while at < ROWS.len() {
        let number = ROWS[at].number;
        handlers[number] = admitting(number, ROWS[at].handler);
        at += 1;
    }
    handlers
};

fn run(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let number = context.registers.orig_rax as usize;
    HANDLERS.get(number).unwrap_or(&(missing as Handler))(context, arguments)
}

fn measured(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    timed(context, arguments, 1)
}

fn sampled(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    match context.thread.clock.is_sample(EVERY) {
        true => timed(context, arguments, u64::from(EVERY)),
        false => run(context, arguments),
    }
}

fn timed(context: &mut Context<'_>, arguments: Arguments, weight: u64) -> Result<usize> {
    if platform().clock_page().is_none() {
        return run(context, arguments);
    }
    let thread = context.thread;
    thread.clock.in_kernel(weight, || run(context, arguments))
}
