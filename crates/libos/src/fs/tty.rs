//! Terminals: what the host's terminal and pseudo-terminals share: sessions, the foreground group,
//! job control.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use alloc::vec::Vec;
use spin::Once;

use super::file::{FileOps, OpenFile};
use super::hooks::Background;
use super::ioctl;
use super::permission::Caller;
use crate::errno::{ENOTTY, ENXIO, EPERM, ESRCH};
use crate::sync::SpinLock;
use crate::syscall::Context;
use crate::user::UserPtr;
use crate::{Result, Thread};

/// The job-control side of a terminal.
#[derive(Default)]
pub struct Terminal {
    /// Session that the terminal controls; 0 none.
    session: AtomicU32,
    /// Foreground process group; 0 none.
    foreground: AtomicU32,
}

static HOST: Once<Arc<Terminal>> = Once::new();

/// The host's terminal.
pub fn host_terminal() -> Arc<Terminal> {
    HOST.call_once(|| Arc::new(Terminal::default())).clone()
}

/// Terminals that came with programs of the host's (`bulla exec`).
static PASSED: SpinLock<Vec<Passed>> = SpinLock::new(Vec::new());

struct Passed {
    terminal: Arc<Terminal>,
    file: Arc<dyn FileOps>,
}

/// Makes such a terminal known, with the file that it is.
pub fn add_passed(terminal: &Arc<Terminal>, file: Arc<dyn FileOps>) {
    PASSED.lock().push(Passed {
        terminal: terminal.clone(),
        file,
    });
}

/// It goes with its program.
pub fn remove_passed(terminal: &Arc<Terminal>) {
    let gone = {
        let mut passed = PASSED.lock();
        let found = passed
            .iter()
            .position(|other| Arc::ptr_eq(&other.terminal, terminal));
        found.map(|at| passed.swap_remove(at))
    };
    drop(gone);
}

/// The terminal of the host's that controls a session.
fn host_terminal_of(session: u32) -> Option<Arc<Terminal>> {
    let host = host_terminal();
    if session == 0 || host.session() == session {
        return Some(host).filter(|_| session != 0);
    }
    let passed = PASSED.lock();
    let found = passed
        .iter()
        .find(|passed| passed.terminal.session() == session);
    found.map(|passed| passed.terminal.clone())
}

/// The terminal that came with a program of the host's and controls the session of `thread`.
pub fn passed_to(thread: &Thread) -> Option<Arc<dyn FileOps>> {
    let session = super::hooks::session(thread);
    let passed = PASSED.lock();
    let found = passed
        .iter()
        .find(|passed| session != 0 && passed.terminal.session() == session);
    found.map(|passed| passed.file.clone())
}

/// /dev/tty: the controlling terminal of the caller's session.
pub fn open_controlling(caller: &Caller<'_>) -> Result<Arc<dyn FileOps>> {
    let thread = caller.thread.ok_or(ENXIO)?;
    let session = super::hooks::session(thread);
    if let Some(slave) = super::pty::controlled_by(session) {
        return Ok(slave);
    }
    if host_terminal().session() == session {
        return super::host::open_console(caller, 0);
    }
    passed_to(thread).ok_or(ENXIO.because("no controlling terminal"))
}

/// The controlling terminal of a session: its device number and foreground group.
pub fn of_session(session: u32) -> Option<(u64, u32)> {
    if let Some(host) = host_terminal_of(session) {
        return Some((super::lower::make_device(5, 1), host.foreground()));
    }
    super::pty::of_session(session)
}

impl Terminal {
    pub fn session(&self) -> u32 {
        self.session.load(Ordering::Relaxed)
    }

    pub fn foreground(&self) -> u32 {
        self.foreground.load(Ordering::Relaxed)
    }

    /// Makes the terminal the controlling one of a session (boot, setsid + TIOCSCTTY).
    pub fn set_session(&self, session: u32, foreground: u32) {
        self.session.store(session, Ordering::Relaxed);
        self.foreground.store(foreground, Ordering::Relaxed);
    }

    /// A read from the background stops the reader (SIGTTIN).
    pub fn check_read(&self, thread: &Arc<Thread>) -> Result<()> {
        self.check(thread, Background::Read)
    }

    /// A change of the terminal from the background stops the caller (SIGTTOU).
    pub fn check_change(&self, thread: &Arc<Thread>) -> Result<()> {
        self.check(thread, Background::Change)
    }

    fn check(&self, thread: &Arc<Thread>, how: Background) -> Result<()> {
        let foreground = self.foreground();
        if foreground == 0 || self.session() != super::hooks::session(thread) {
            return Ok(());
        }
        if super::hooks::group(thread) == foreground {
            return Ok(());
        }
        super::hooks::stop_background(thread, how)
    }

    /// The requests of tty_ioctl(4) about sessions and groups.
    pub fn ioctl(
        &self,
        context: &mut Context<'_>,
        _file: &OpenFile,
        request: u32,
        argument: u64,
    ) -> Result<usize> {
        let thread = context.thread;
        let session = super::hooks::session(thread);
        let mm = context.mm();
        let user = UserPtr::<i32>::new(argument);
        match request {
            ioctl::TIOCGPGRP => {
                if self.session() != session {
                    return Err(ENOTTY);
                }
                user.write(&mm, &(self.foreground() as i32))?;
            }
            ioctl::TIOCSPGRP => {
                if self.session() != session {
                    return Err(ENOTTY);
                }
                let group = user.read(&mm)?;
                if group < 0 {
                    return Err(crate::errno::EINVAL);
                }
                self.check_change(thread)?;
                if !super::hooks::group_exists(group as u32) {
                    return Err(ESRCH);
                }
                if !super::hooks::group_in_session(group as u32, session) {
                    return Err(EPERM);
                }
                self.foreground.store(group as u32, Ordering::Relaxed);
            }
            ioctl::TIOCGSID => {
                if self.session() != session {
                    return Err(ENOTTY);
                }
                user.write(&mm, &(session as i32))?;
            }
            ioctl::TIOCSCTTY => {
                if self.session() == session {
                    return Ok(0);
                }
                if !super::hooks::is_session_leader(thread) || self.session() != 0 {
                    return Err(EPERM);
                }
                self.set_session(session, super::hooks::group(thread));
            }
            ioctl::TIOCNOTTY => {
                if self.session() != session {
                    return Err(ENOTTY);
                }
                if super::hooks::is_session_leader(thread) {
                    super::hooks::hang_up(self.foreground());
                    self.set_session(0, 0);
                }
            }
            ioctl::TIOCEXCL | ioctl::TIOCNXCL => {}
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}
