//! Programs that the host wants to start in the running container (`bulla exec`).
//!
//! Whoever serves them (the command line) puts them into the queue; the enclave takes them one by
//! one, if its configuration lets it, and reports each one's end.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bulla_abi::hostcall::EXEC_REFUSED;
use bulla_abi::input::ExecRequest;

use crate::launch::ExitStatus;
use crate::sys::signal;

/// How such a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    Ended(ExitStatus),
    /// It was not started: exit code and reason.
    Refused(u8, String),
}

/// A program to start.
pub struct Exec {
    /// Without token and descriptors, which are filled in here.
    pub request: ExecRequest,
    /// Its standard streams.
    pub standard: [OwnedFd; 3],
    /// Who is told of its end.
    pub end: Sender<ExecEnd>,
}

#[derive(Default)]
struct State {
    next: u64,
    waiting: VecDeque<(ExecRequest, Vec<OwnedFd>)>,
    running: HashMap<u64, Sender<ExecEnd>>,
}

/// The queue.
#[derive(Default)]
pub struct Execs(Mutex<State>);

impl Execs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the enclave to start a program; its token, for signals.
    pub fn start(&self, exec: Exec) -> u64 {
        let mut state = self.state();
        state.next += 1;
        let token = state.next;
        let request = ExecRequest {
            token,
            ..exec.request
        };
        state
            .waiting
            .push_back((request, exec.standard.into_iter().collect()));
        state.running.insert(token, exec.end);
        drop(state);
        signal::nudge_supervisor();
        token
    }

    /// Sends a signal to a program that was started so.
    pub fn signal(&self, token: u64, number: u32) {
        let request = ExecRequest {
            token,
            signal: number,
            ..ExecRequest::default()
        };
        self.state().waiting.push_back((request, Vec::new()));
        signal::nudge_supervisor();
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.state().waiting.is_empty()
    }

    /// The next request. Its descriptors become the enclave's by `made`, which closes them itself
    /// where it fails.
    pub(crate) fn take(&self, mut made: impl FnMut(i32) -> bool) -> Option<Vec<u8>> {
        use std::os::fd::IntoRawFd;
        let (mut request, standard) = self.state().waiting.pop_front()?;
        for (at, fd) in standard.into_iter().enumerate() {
            // Low numbers are the container's own streams.
            let fd = match fd.as_raw_fd() {
                0..=2 => File::from(fd).try_clone().ok()?.into(),
                _ => fd,
            };
            request.standard[at] = fd.as_raw_fd() as u32;
            if !made(fd.into_raw_fd()) {
                return None;
            }
        }
        Some(request.to_bytes())
    }

    pub(crate) fn done(&self, token: u64, status: u64, reason: impl FnOnce() -> String) {
        let Some(end) = self.state().running.remove(&token) else {
            return;
        };
        let how = match status & EXEC_REFUSED {
            0 => ExecEnd::Ended(ExitStatus::from_wait(status)),
            _ => ExecEnd::Refused(status as u8, reason()),
        };
        // Nobody waits any more: nothing to tell.
        let _ = end.send(how);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn taken_once_and_told_once() {
        let execs = Execs::default();
        let (end, told) = channel();
        let request = ExecRequest {
            arguments: vec![b"ls".to_vec()],
            ..ExecRequest::default()
        };
        let token = execs.start(Exec {
            request,
            standard: [null(), null(), null()],
            end,
        });
        execs.signal(token, 2);
        let mut given = Vec::new();
        let mut take = || {
            execs.take(|fd| {
                given.push(fd);
                true
            })
        };
        let first = ExecRequest::from_bytes(&take().unwrap()).unwrap();
        assert_eq!(first.token, token);
        assert_eq!(first.arguments, [b"ls".to_vec()]);
        let second = ExecRequest::from_bytes(&take().unwrap()).unwrap();
        assert_eq!((second.token, second.signal), (token, 2));
        assert!(take().is_none());
        assert_eq!(first.standard.map(|fd| fd as i32)[..], given[..]);
        execs.done(token, 7 << 8, String::new);
        execs.done(token, 0, String::new);
        assert_eq!(told.recv(), Ok(ExecEnd::Ended(ExitStatus::Exited(7))));
        assert!(told.recv().is_err(), "told twice");
        for fd in given {
            crate::sys::file::close(fd).unwrap();
        }
    }
}
