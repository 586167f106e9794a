//! signalfd(2).

use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};

use super::file::{FileOps, OpenFile};
use crate::errno::{EAGAIN, EINVAL};
use crate::process::Process;
use crate::signal::{self, UNBLOCKABLE};
use crate::sync::wait::{Events, PollTable, block_on};
use crate::user::IoBuffer;
use crate::{Result, Thread};

/// Size of `struct signalfd_siginfo`.
const INFO_SIZE: usize = 128;

/// Pending signals as a file. A read takes the reader's signals, as on Linux; poll looks at those
/// of the process that made it (Linux: of the process that polls; the two differ only when a
/// descriptor is inherited and polled by a child).
pub struct SignalFd {
    mask: AtomicU64,
    owner: Weak<Process>,
}

impl SignalFd {
    pub fn new(owner: &Arc<Process>, mask: u64) -> Arc<SignalFd> {
        let file = SignalFd {
            mask: AtomicU64::new(0),
            owner: Arc::downgrade(owner),
        };
        file.set_mask(mask);
        Arc::new(file)
    }

    /// Changes which signals it takes.
    pub fn set_mask(&self, mask: u64) {
        self.mask.store(mask & !UNBLOCKABLE, Ordering::Relaxed);
        if let Some(owner) = self.owner.upgrade() {
            owner.signals.queued.wake(Events::IN);
        }
    }

    fn mask(&self) -> u64 {
        self.mask.load(Ordering::Relaxed)
    }
}

impl FileOps for SignalFd {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        if to.remaining() < INFO_SIZE {
            return Err(EINVAL.because("a signalfd is read 128 bytes at a time"));
        }
        let next = || signal::next_of(thread, self.mask());
        let first = if file.is_nonblocking() {
            next().ok_or(EAGAIN)?
        } else {
            block_on(
                thread,
                &thread.process.signals.queued,
                Events::IN,
                None,
                next,
            )?
        };
        let mut done = to.put(&first.to_signalfd())?;
        while to.remaining() >= INFO_SIZE
            && let Some(info) = next()
        {
            done += to.put(&info.to_signalfd())?;
        }
        Ok(done)
    }

    /// There is no position; seeking does nothing, and says so by succeeding.
    fn seek(&self, _: &Arc<Thread>, _: &OpenFile, _: i64, _: u32) -> Result<u64> {
        Ok(0)
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        let Some(owner) = self.owner.upgrade() else {
            return Events::empty();
        };
        if let Some(table) = table {
            table.register(&owner.signals.queued, interest);
        }
        let mut pending = owner.signals.pending_mask();
        for thread in owner.live_threads() {
            pending |= thread.signals.pending_mask();
        }
        if pending & self.mask() != 0 {
            Events::IN | Events::RDNORM
        } else {
            Events::empty()
        }
    }

    fn describe_more(&self) -> String {
        format!("sigmask:\t{:016x}\n", self.mask())
    }

    fn describe(&self) -> String {
        String::from("anon_inode:[signalfd]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::file::flags;
    use crate::process::tests::process;
    use crate::signal::send::{Origin, to_process};
    use crate::signal::{SIGCHLD, SIGTERM, SigInfo, bit};

    #[test]
    fn a_read_takes_pending_signals() {
        let thread = process();
        signal::set_blocked(&thread, bit(SIGTERM) | bit(SIGCHLD));
        let signals = SignalFd::new(&thread.process, bit(SIGTERM));
        let file = OpenFile::new(signals.clone(), flags::RDWR | flags::NONBLOCK);
        let mut bytes = [0u8; 300];
        let read = signals.read(&thread, &file, &mut IoBuffer::output(&mut bytes));
        assert_eq!(read, Err(EAGAIN));
        assert_eq!(signals.poll(None, Events::IN), Events::empty());
        for signal in [SIGCHLD, SIGTERM] {
            to_process(&thread.process, SigInfo::kernel(signal), Origin::Inside).unwrap();
        }
        assert_eq!(signals.poll(None, Events::IN), Events::IN | Events::RDNORM);
        let read = signals.read(&thread, &file, &mut IoBuffer::output(&mut bytes));
        assert_eq!((read, u32::from(bytes[0])), (Ok(128), SIGTERM));
        signals.set_mask(!0);
        let read = signals.read(&thread, &file, &mut IoBuffer::output(&mut bytes));
        assert_eq!((read, u32::from(bytes[0])), (Ok(128), SIGCHLD));
    }
}
