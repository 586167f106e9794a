//! Process file descriptors.

use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::any::Any;

use super::{Process, table};
use crate::errno::{EBADF, ESRCH};
use crate::fs::file::{FileOps, OpenFile, flags};
use crate::sync::wait::{Events, PollTable};
use crate::{Result, Thread};

/// PIDFD_THREAD (O_EXCL): the descriptor stands for one thread.
pub const PIDFD_THREAD: u32 = flags::EXCL;

/// What a process file descriptor stands for.
pub struct PidFile {
    process: Arc<Process>,
    /// The one thread of a PIDFD_THREAD descriptor.
    thread: Option<Weak<Thread>>,
}

/// A descriptor for a thread's process, or for the thread alone.
pub fn open(thread: &Arc<Thread>, of_thread: bool, status_flags: u32) -> Arc<OpenFile> {
    let of = of_thread.then(|| Arc::downgrade(thread));
    let file = PidFile {
        process: thread.process.clone(),
        thread: of,
    };
    OpenFile::new(Arc::new(file), flags::RDWR | status_flags)
}

/// A descriptor for a process.
pub fn open_process(process: &Arc<Process>, status_flags: u32) -> Arc<OpenFile> {
    let file = PidFile {
        process: process.clone(),
        thread: None,
    };
    OpenFile::new(Arc::new(file), flags::RDWR | status_flags)
}

impl PidFile {
    /// The file behind a descriptor; EBADF when it is none.
    pub fn process_of(file: &OpenFile) -> Result<Arc<Process>> {
        let ops: &dyn Any = file.ops.as_any();
        let file = ops
            .downcast_ref::<PidFile>()
            .ok_or(EBADF.because("not a pidfd"))?;
        Ok(file.process.clone())
    }

    /// The thread of a PIDFD_THREAD descriptor; ESRCH when it has ended.
    pub fn thread_of(file: &OpenFile) -> Result<Option<Arc<Thread>>> {
        let file = file.ops.as_any().downcast_ref::<PidFile>().ok_or(EBADF)?;
        match &file.thread {
            None => Ok(None),
            Some(thread) => thread.upgrade().map(Some).ok_or(ESRCH),
        }
    }

    /// What /proc/self/fdinfo shows beside the usual.
    pub fn info(&self) -> String {
        let pid = if table::process(self.process.pid).is_some() {
            i64::from(self.process.pid)
        } else {
            -1
        };
        format!("Pid:\t{pid}\nNSpid:\t{pid}\n")
    }
}

impl FileOps for PidFile {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn poll(&self, poll: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(poll) = poll {
            poll.register(&self.process.ended, interest);
        }
        let ended = match &self.thread {
            Some(thread) => thread.strong_count() == 0 || self.process.has_ended(),
            None => self.process.has_ended(),
        };
        if !ended {
            Events::empty()
        } else if table::process(self.process.pid).is_some() {
            Events::IN | Events::RDNORM
        } else {
            Events::IN | Events::RDNORM | Events::HUP
        }
    }

    fn describe_more(&self) -> String {
        self.info()
    }

    fn describe(&self) -> String {
        String::from("anon_inode:[pidfd]")
    }
}
