//! `--strace`: system calls on the host's log. Insecure, since it shows what the program does;
//! it is measured as part of the configuration and announced at start.

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use super::table::ROWS;
use crate::kernel::kernel;
use crate::platform::platform;
use crate::{Errno, Result, Thread, errno};
use bulla_abi::config::Insecure;
use spin::Once;

static ENABLED: Once<bool> = Once::new();

/// Whether calls are traced.
#[inline(always)]
pub fn is_enabled() -> bool {
    match ENABLED.get() {
        Some(enabled) => *enabled,
        None => *ENABLED.call_once(|| kernel().config.insecure.contains(&Insecure::Strace)),
    }
}

fn name(number: u64) -> String {
    match ROWS.iter().find(|row| row.number as u64 == number) {
        Some(row) => String::from(row.name),
        None => format!("syscall_{number}"),
    }
}

/// The call begins: shown only when it may not return, or block.
pub fn enter(thread: &Thread, number: u64, arguments: &[u64; 6]) -> String {
    let mut line = format!(
        "[{}:{}] {}(",
        thread.process.pid,
        thread.tid(),
        name(number)
    );
    for (index, argument) in arguments.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        let _ = match argument {
            0..=4095 => write!(line, "{separator}{argument}"),
            _ => write!(line, "{separator}{argument:#x}"),
        };
    }
    line.push(')');
    platform().log(0, &line);
    line
}

/// The call returns.
pub fn leave(line: &str, result: &Result<usize>) {
    let text = match result {
        Ok(value @ 0..=4095) => format!("{line} = {value}"),
        Ok(value) => format!("{line} = {value:#x}"),
        Err(error) => format!("{line} = -1 {}", describe(*error)),
    };
    platform().log(0, &text);
}

fn describe(error: Errno) -> String {
    let name = errno::name(error.code()).unwrap_or("E?");
    match error.reason() {
        "" => String::from(name),
        reason => format!("{name} ({reason})"),
    }
}
