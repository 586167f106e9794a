//! Process file descriptors.

use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::any::Any;

use zerocopy::{Immutable, IntoBytes};

use super::{Process, table};
use crate::errno::{EBADF, EINVAL, ENOTTY, ESRCH};
use crate::fs::file::{FileOps, OpenFile, flags};
use crate::sync::wait::{Events, PollTable};
use crate::syscall::Context;
use crate::{Result, Thread};

/// PIDFD_THREAD (O_EXCL): the descriptor stands for one thread.
pub const PIDFD_THREAD: u32 = flags::EXCL;

/// What a process file descriptor stands for.
pub struct PidFile {
    process: Arc<Process>,
    /// The one thread of a PIDFD_THREAD descriptor.
    thread: Option<Weak<Thread>>,
}

/// `struct pidfd_info`, its first version. Ids are user and group.
#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct PidInfo {
    mask: u64,
    control_group: u64,
    pid: u32,
    tgid: u32,
    parent: u32,
    real: [u32; 2],
    effective: [u32; 2],
    saved: [u32; 2],
    of_files: [u32; 2],
    status: u32,
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

    /// PIDFD_GET_INFO. Of a process that has been waited for only its status can be asked; ESRCH.
    fn get_info(&self, context: &Context<'_>, argument: u64) -> Result<()> {
        const IDS: u64 = 1;
        const CREDENTIALS: u64 = 2;
        const EXIT: u64 = 8;
        let mm = context.mm();
        let mut wanted = [0; 8];
        mm.read(argument, &mut wanted)?;
        let mut info = PidInfo::default();
        if table::process(self.process.pid).is_some_and(|it| Arc::ptr_eq(&it, &self.process)) {
            let who = self.process.credentials.lock().clone();
            info.mask = IDS | CREDENTIALS;
            info.tgid = self.process.pid;
            info.pid = match &self.thread {
                Some(thread) => thread.upgrade().ok_or(ESRCH)?.tid(),
                None => self.process.pid,
            };
            info.parent = self.process.parent_pid();
            info.real = [who.ruid, who.rgid];
            info.effective = [who.euid, who.egid];
            info.saved = [who.suid, who.sgid];
            info.of_files = [who.fsuid, who.fsgid];
        } else if u64::from_le_bytes(wanted) & EXIT != 0 {
            info.mask = EXIT;
            info.status = self.process.group_exit().unwrap_or(0);
        } else {
            return Err(ESRCH.because("the process has been waited for"));
        }
        mm.write(argument, info.as_bytes())
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

    fn ioctl(
        &self,
        context: &mut Context<'_>,
        _file: &OpenFile,
        request: u32,
        argument: u64,
    ) -> Result<usize> {
        /// _IOWR(0xff, 11, ..), the size of the argument taken out.
        const GET_INFO: u32 = 0xc000_ff0b;
        const SIZE_BITS: u32 = 0x3fff << 16;
        if request & !SIZE_BITS != GET_INFO {
            return Err(ENOTTY);
        }
        let size = (request & SIZE_BITS) >> 16;
        if argument == 0 || size < size_of::<PidInfo>() as u32 {
            return Err(EINVAL.because("no room for what there is to say"));
        }
        self.get_info(context, argument).map(|()| 0)
    }

    fn describe_more(&self) -> String {
        self.info()
    }

    fn describe(&self) -> String {
        String::from("anon_inode:[pidfd]")
    }
}
