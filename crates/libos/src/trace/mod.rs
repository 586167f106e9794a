//! `--strace`: system calls, signals and exits on the host's log, as strace(1) with `-f` prints
//! them. Insecure, since it shows what the programs do: the choice is measured as part of the
//! configuration and announced at start.
//!
//! - [`Filter`]: which calls of which processes.
//! - [`Pending`]: a call that has begun. It is printed when it returns, or in two parts
//!   (`<unfinished ...>`, `<... resumed>`) when its thread sleeps in between.
//! - [`signatures`] says what a call's arguments are, [`values`] prints one, [`flags`] names bits.
//!
//! Every line begins with `[pid N]`, the thread's id in the container. Output arguments are read
//! from the program's memory after the call, like strace does; what cannot be read is shown as an
//! address.

mod filter;
mod flags;
mod report;
mod signatures;
mod structures;
#[cfg(test)]
mod tests;
mod values;

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use bulla_abi::config::Insecure;
use bulla_abi::hostcall::log_level;
use spin::Once;

use crate::platform::platform;
use crate::signal::SigInfo;
use crate::syscall::table::ROWS;
use crate::{Errno, Result, Thread, errno};
pub use filter::{Filter, FilterError};
pub use report::{is_reporting, note_refusal, write_report};
use values::View;

static FILTER: Once<Option<Filter>> = Once::new();

/// Sets the filter from the configuration; says what is wrong with it.
pub fn configure(config: &bulla_abi::config::Config) -> core::result::Result<(), FilterError> {
    let filter = match config.insecure.contains(&Insecure::Strace) {
        true => Some(Filter::new(&config.strace)?),
        false => None,
    };
    FILTER.call_once(|| filter);
    report::configure(config.insecure.contains(&Insecure::Report));
    Ok(())
}

/// Whether anything is traced.
#[inline(always)]
pub fn is_enabled() -> bool {
    matches!(FILTER.get(), Some(Some(_)))
}

fn filter() -> Option<&'static Filter> {
    FILTER.get()?.as_ref()
}

/// A traced call that has not returned.
pub struct Pending {
    number: u64,
    arguments: [u64; 6],
    /// What is known before the call returns.
    text: String,
    /// How many arguments `text` has.
    written: usize,
    /// The first part has been printed.
    is_split: bool,
}

/// The name of a system call.
pub fn name(number: u64) -> String {
    match ROWS.iter().find(|row| row.number as u64 == number) {
        Some(row) => String::from(row.name),
        None => format!("syscall_{number:#x}"),
    }
}

fn line(thread: &Thread, text: &str) {
    let text = format!("[pid {}] {text}", thread.tid());
    // The thread may be about to make a host call, with its arguments in the buffer that the line
    // goes through.
    let mut kept = alloc::vec![0; text.len()];
    let is_kept = platform().host_get(0, &mut kept).is_ok();
    platform().log(log_level::TRACE, &text);
    if is_kept {
        let _ = platform().host_put(0, &kept);
    }
}

/// The call begins.
pub fn enter(thread: &Thread, number: u64, arguments: &[u64; 6]) {
    if !filter().is_some_and(|filter| filter.wants(thread, number)) {
        return;
    }
    let mm = thread.mm();
    let view = View {
        mm: &mm,
        arguments,
        result: None,
    };
    let kinds = &signatures::of(number)[..values::arity(number, arguments)];
    let mut text = format!("{}(", name(number));
    let mut written = 0;
    for (index, kind) in kinds.iter().enumerate() {
        if kind.is_output() {
            break;
        }
        if index > 0 {
            text.push_str(", ");
        }
        values::write(&mut text, kind, index, &view);
        written += 1;
    }
    let mut pending = Pending {
        number,
        arguments: *arguments,
        text,
        written,
        is_split: false,
    };
    if signatures::never_returns(number) {
        let call = format!("{})", pending.text);
        line(thread, &format!("{call:<39} = ?"));
        return;
    }
    if number == signatures::EXECVE || number == signatures::EXECVEAT {
        // The program that it names replaces the memory its arguments are in.
        pending.written = kinds.len();
    }
    *thread.trace.lock() = Some(pending);
}

/// The calling thread is about to sleep.
pub fn unfinished(thread: &Thread) {
    // Never held across a sleep; and a signal handler of the kernel's own does not exist.
    let Some(mut pending) = thread.trace.lock().take() else {
        return;
    };
    if !pending.is_split {
        pending.is_split = true;
        let comma = match pending.written {
            0 => "",
            _ if pending.written < values::arity(pending.number, &pending.arguments) => ", ",
            _ => "",
        };
        line(thread, &format!("{}{comma} <unfinished ...>", pending.text));
        pending.text = format!("<... {} resumed>", name(pending.number));
    }
    *thread.trace.lock() = Some(pending);
}

/// The call returns.
pub fn leave(thread: &Thread, result: &Result<usize>) {
    let Some(mut pending) = thread.trace.lock().take() else {
        return;
    };
    let mm = thread.mm();
    let view = View {
        mm: &mm,
        arguments: &pending.arguments,
        result: Some(result),
    };
    let kinds =
        &signatures::of(pending.number)[..values::arity(pending.number, &pending.arguments)];
    for (index, kind) in kinds.iter().enumerate().skip(pending.written) {
        if index > 0 && !(pending.is_split && index == pending.written) {
            pending.text.push_str(", ");
        }
        values::write(&mut pending.text, kind, index, &view);
    }
    // strace aligns results.
    pending.text = format!("{:<39} = ", format!("{})", pending.text));
    write_result(&mut pending.text, pending.number, &view, result);
    line(thread, &pending.text);
}

fn write_result(text: &mut String, number: u64, view: &View<'_>, result: &Result<usize>) {
    match result {
        Ok(value) => values::write_return(text, number, *value as u64, view),
        Err(error) => write_error(text, *error),
    }
}

fn write_error(text: &mut String, error: Errno) {
    const SYS: i32 = errno::ERESTARTSYS.code();
    const NO_HANDLER: i32 = errno::ERESTARTNOHAND.code();
    const BLOCK: i32 = errno::ERESTART_RESTARTBLOCK.code();
    let restart = match error.code() {
        SYS => "ERESTARTSYS (To be restarted if SA_RESTART is set)",
        NO_HANDLER => "ERESTARTNOHAND (To be restarted if no handler)",
        BLOCK => "ERESTART_RESTARTBLOCK (Interrupted by signal)",
        _ => "",
    };
    if !restart.is_empty() {
        let _ = write!(text, "? {restart}");
        return;
    }
    let name = errno::name(error.code()).unwrap_or("E?");
    let _ = write!(
        text,
        "-1 {name} ({})",
        errno::description(error.code()).unwrap_or("Unknown error")
    );
    if !error.reason().is_empty() {
        let _ = write!(text, " /* {} */", error.reason());
    }
}

/// A signal is about to be delivered: to a handler, or to its default action.
pub fn signal(thread: &Thread, info: &SigInfo) {
    if filter().is_some_and(|filter| filter.wants_process(thread)) {
        let mut text = String::from("--- ");
        structures::write_signal(&mut text, info);
        text.push_str(" ---");
        line(thread, &text);
    }
}

/// A signal with the name of its reason, as in `SIGSEGV (SEGV_MAPERR)`.
pub fn describe_signal(info: &SigInfo) -> String {
    let mut text = structures::signal_name(info.number());
    text.push_str(" (");
    structures::write_code(&mut text, info);
    text.push(')');
    text
}

/// A process has ended with this wait status.
pub fn ended(thread: &Thread, status: u32) {
    if !filter().is_some_and(|filter| filter.wants_process(thread)) {
        return;
    }
    // A call that a signal ended for good.
    unfinished(thread);
    let text = match status & 0x7f {
        0 => format!("+++ exited with {} +++", status >> 8 & 0xff),
        number => {
            let core = if status & 0x80 != 0 {
                " (core dumped)"
            } else {
                ""
            };
            format!(
                "+++ killed by {}{core} +++",
                structures::signal_name(number)
            )
        }
    };
    line(thread, &text);
}
