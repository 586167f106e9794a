//! `--report`: which calls and options were refused, and how often.
//!
//! A refusal is a call that does not exist here (ENOSYS), one that the table calls missing, and
//! one whose options were not understood: EINVAL, EOPNOTSUPP, ENOPROTOOPT, ENOTTY and the like.
//! Programs provoke the latter on purpose too; the report leaves judging to its reader.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use spin::Once;

use super::signatures::{self, Kind};
use super::values::{self, View};
use crate::errno::{
    EAFNOSUPPORT, EINVAL, ENOPROTOOPT, ENOSYS, ENOTTY, EOPNOTSUPP, EPROTONOSUPPORT, ESOCKTNOSUPPORT,
};
use crate::platform::platform;
use crate::sync::SpinLock;
use crate::syscall::Support;
use crate::syscall::table::ROWS;
use crate::{Errno, Thread, errno};
use bulla_abi::hostcall::log_level;

static ENABLED: Once<bool> = Once::new();
/// How often each refusal happened.
static COUNTS: SpinLock<BTreeMap<String, u64>> = SpinLock::new(BTreeMap::new());
/// Most different refusals that are kept.
const LINES_MAX: usize = 1000;

pub(super) fn configure(enabled: bool) {
    ENABLED.call_once(|| enabled);
}

/// Whether refusals are counted.
#[inline(always)]
pub fn is_reporting() -> bool {
    ENABLED.get() == Some(&true)
}

/// Whether a call that answers this was refused, rather than failed.
fn is_refusal(number: u64, error: Errno) -> bool {
    const OPTIONS: [Errno; 7] = [
        EINVAL,
        EOPNOTSUPP,
        ENOPROTOOPT,
        ENOTTY,
        EAFNOSUPPORT,
        EPROTONOSUPPORT,
        ESOCKTNOSUPPORT,
    ];
    let row = ROWS.iter().find(|row| row.number as u64 == number);
    error == ENOSYS
        || OPTIONS.contains(&error)
        || row.is_some_and(|row| row.support == Support::Missing)
}

/// A call has failed: counts it if it was refused.
#[cold]
pub fn note_refusal(thread: &Thread, number: u64, arguments: &[u64; 6], error: Errno) {
    if !is_refusal(number, error) {
        return;
    }
    // Only what names the option: addresses and descriptors differ from call to call.
    let mm = thread.mm();
    let view = View {
        mm: &mm,
        arguments,
        result: None,
    };
    let mut text = format!("{}(", super::name(number));
    for (index, kind) in signatures::of(number).iter().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        match kind {
            Kind::Flags(_)
            | Kind::Choice(_)
            | Kind::OpenFlags
            | Kind::Mapping
            | Kind::Clone
            | Kind::Signal
            | Kind::Futex
            | Kind::Fcntl
            | Kind::Ioctl
            | Kind::SocketType
            | Kind::Option
            | Kind::Level
            | Kind::Prctl => values::write(&mut text, kind, index, &view),
            _ => text.push('_'),
        }
    }
    let name = errno::name(error.code()).unwrap_or("E?");
    let _ = write!(text, ") = {name}");
    if !error.reason().is_empty() {
        let _ = write!(text, ": {}", error.reason());
    }
    let mut counts = COUNTS.lock();
    if let Some(count) = counts.get_mut(&text) {
        *count += 1;
    } else if counts.len() < LINES_MAX {
        counts.insert(text, 1);
    }
}

/// The report, when the container ends.
pub fn write_report() {
    if !is_reporting() {
        return;
    }
    let counts = core::mem::take(&mut *COUNTS.lock());
    let log = |text: &str| platform().log(log_level::TRACE, text);
    if counts.is_empty() {
        log("bulla: report: no system call or option was refused");
        return;
    }
    log(&format!(
        "bulla: report: {} different system calls or options were refused:",
        counts.len()
    ));
    let mut lines: alloc::vec::Vec<_> = counts.into_iter().collect();
    lines.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    for (text, count) in lines {
        log(&format!("bulla: report: {count:>7} x {text}"));
    }
}
