//! What files need of processes: one place, so that the rest of `fs` does not depend on how
//! processes are made.

use alloc::sync::Arc;

use crate::errno::{EIO, ERESTARTSYS};
use crate::process::credentials::Credentials;
use crate::process::limits::Resource;
use crate::process::table;
use crate::signal::send::{Origin, to_group, to_thread, user_info};
use crate::signal::{SIGCONT, SIGHUP, SIGPIPE, SIGTTIN, SIGTTOU, SIGXFSZ, SigInfo, bit};
use crate::{Result, Thread};

/// RLIMIT_NOFILE of the calling process.
pub fn file_limit(thread: &Thread) -> usize {
    thread.process.limits.files()
}

/// RLIMIT_FSIZE of the calling process, in bytes.
pub fn size_limit(thread: &Thread) -> u64 {
    thread.process.limits.get(Resource::FileSize).soft
}

/// A write to a pipe without readers.
pub fn raise_sigpipe(thread: &Arc<Thread>) {
    let _ = to_thread(thread, user_info(thread, SIGPIPE), Origin::Inside);
}

/// A write beyond RLIMIT_FSIZE.
pub fn raise_sigxfsz(thread: &Arc<Thread>) {
    let _ = to_thread(thread, user_info(thread, SIGXFSZ), Origin::Inside);
}

/// The session of a process.
pub fn session(thread: &Thread) -> u32 {
    thread.process.session()
}

/// The process group of a process.
pub fn group(thread: &Thread) -> u32 {
    thread.process.group()
}

pub fn is_session_leader(thread: &Thread) -> bool {
    session(thread) == thread.process.pid
}

/// Whether a process group exists.
pub fn group_exists(group: u32) -> bool {
    table::lock().group_exists(group)
}

/// Whether a process group exists and is part of the session.
pub fn group_in_session(group: u32, session: u32) -> bool {
    table::lock().group_in_session(group, session)
}

/// How a process uses a terminal of which it is in the background.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Background {
    Read,
    Change,
}

/// A background process uses its terminal: SIGTTIN or SIGTTOU to its group and the call starts
/// again, unless it ignores or blocks the signal or nobody could continue it (tty_ioctl(4)).
pub fn stop_background(thread: &Arc<Thread>, how: Background) -> Result<()> {
    let signal = if how == Background::Read {
        SIGTTIN
    } else {
        SIGTTOU
    };
    let ignored = thread.signals.blocked() & bit(signal) != 0
        || thread.process.signals.action(signal).ignores(signal);
    if ignored {
        return if how == Background::Read {
            Err(EIO)
        } else {
            Ok(())
        };
    }
    if table::lock().is_orphaned_group(group(thread), 0) {
        return Err(EIO.because("orphaned process group"));
    }
    to_group(group(thread), SigInfo::kernel(signal), Origin::Inside)?;
    Err(ERESTARTSYS)
}

/// The terminal is gone: SIGHUP and SIGCONT to the foreground group.
pub fn hang_up(group: u32) {
    for signal in [SIGHUP, SIGCONT] {
        signal_group(group, signal);
    }
}

/// A signal from a terminal to its foreground group.
pub fn signal_group(group: u32, signal: u32) {
    if group != 0 {
        let _ = to_group(group, SigInfo::kernel(signal), Origin::Inside);
    }
}

/// The capabilities that go with the real user id: access(2) asks with these.
pub fn credentials_for_access(mut credentials: Credentials) -> Credentials {
    credentials.effective = if credentials.ruid == 0 {
        credentials.permitted
    } else {
        0
    };
    credentials
}
