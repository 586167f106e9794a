//! What files need of processes: one place, so that the rest of `fs` does not depend on how
//! processes are made.

use alloc::sync::Arc;

use crate::Thread;
use crate::process::credentials::Credentials;

/// RLIMIT_NOFILE of the calling process.
pub fn file_limit(_thread: &Thread) -> usize {
    1 << 20
}

/// RLIMIT_FSIZE of the calling process, in bytes.
pub fn size_limit(_thread: &Thread) -> u64 {
    u64::MAX
}

/// A write to a pipe without readers.
pub fn raise_sigpipe(_thread: &Arc<Thread>) {}

pub const SIGTTIN: u32 = 21;
pub const SIGTTOU: u32 = 22;

/// The session of a process.
pub fn session(thread: &Thread) -> u32 {
    let _ = thread;
    1
}

/// The process group of a process.
pub fn group(thread: &Thread) -> u32 {
    let _ = thread;
    1
}

pub fn is_session_leader(thread: &Thread) -> bool {
    session(thread) == thread.process.pid
}

/// Whether a process group exists and is part of the session.
pub fn group_in_session(_group: u32, _session: u32) -> bool {
    true
}

/// A background process uses its terminal: SIGTTIN or SIGTTOU to its group, unless it ignores or
/// blocks the signal.
pub fn stop_background(_thread: &Arc<Thread>, _signal: u32) -> crate::Result<()> {
    Ok(())
}

/// The terminal is gone: SIGHUP and SIGCONT to the foreground group.
pub fn hang_up(_group: u32) {}

/// A write beyond RLIMIT_FSIZE.
pub fn raise_sigxfsz(_thread: &Arc<Thread>) {}

/// The capabilities that go with the real user id.
pub fn credentials_for_access(credentials: Credentials) -> Credentials {
    credentials
}
