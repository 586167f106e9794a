//! eventfd(2).

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::any::Any;

use super::file::{FileOps, OpenFile};
use crate::errno::{EAGAIN, EINVAL};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, WaitQueue, block_on};
use crate::user::IoBuffer;
use crate::{Result, Thread};

/// A 64-bit counter that can be waited for.
pub struct EventFd {
    counter: SpinLock<u64>,
    semaphore: bool,
    queue: Arc<WaitQueue>,
}

impl EventFd {
    pub fn new(initial: u64, semaphore: bool) -> Arc<EventFd> {
        let counter = SpinLock::new(initial);
        Arc::new(EventFd {
            counter,
            semaphore,
            queue: WaitQueue::new(),
        })
    }

    fn take(&self) -> Option<u64> {
        let mut counter = self.counter.lock();
        if *counter == 0 {
            return None;
        }
        let value = if self.semaphore { 1 } else { *counter };
        *counter -= value;
        Some(value)
    }

    fn add(&self, value: u64) -> Option<()> {
        let mut counter = self.counter.lock();
        // The counter never reaches u64::MAX (eventfd(2)).
        *counter = counter.checked_add(value).filter(|&sum| sum < u64::MAX)?;
        Some(())
    }

    /// Adds to the counter from within the kernel (AIO completions). Beyond the most that a write
    /// can make it, it stands at u64::MAX, and polling tells of an error.
    pub fn signal(&self, value: u64) {
        if self.add(value).is_none() {
            *self.counter.lock() = u64::MAX;
        }
        self.queue.wake(Events::IN);
    }
}

impl FileOps for EventFd {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        if to.remaining() < 8 {
            return Err(EINVAL.because("an eventfd is read 8 bytes at a time"));
        }
        let value = if file.is_nonblocking() {
            self.take().ok_or(EAGAIN)?
        } else {
            block_on(thread, &self.queue, Events::IN, None, || self.take())?
        };
        self.queue.wake(Events::OUT);
        to.put(&value.to_le_bytes())
    }

    fn write(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        let mut bytes = [0; 8];
        if from.remaining() < 8 || from.take(&mut bytes)? < 8 {
            return Err(EINVAL.because("an eventfd is written 8 bytes at a time"));
        }
        let value = u64::from_le_bytes(bytes);
        if value == u64::MAX {
            return Err(EINVAL);
        }
        if file.is_nonblocking() {
            self.add(value).ok_or(EAGAIN)?;
        } else {
            block_on(thread, &self.queue, Events::OUT, None, || self.add(value))?;
        }
        self.queue.wake(Events::IN);
        Ok(8)
    }

    /// There is no position; seeking does nothing, and says so by succeeding.
    fn seek(&self, _: &Arc<Thread>, _: &OpenFile, _: i64, _: u32) -> Result<u64> {
        Ok(0)
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table {
            table.register(&self.queue, interest);
        }
        let counter = *self.counter.lock();
        let mut events = Events::empty();
        if counter > 0 {
            events |= Events::IN | Events::RDNORM;
        }
        if counter == u64::MAX {
            events |= Events::ERR;
        }
        if counter < u64::MAX - 1 {
            events |= Events::OUT | Events::WRNORM;
        }
        events
    }

    fn describe_more(&self) -> String {
        let count = *self.counter.lock();
        let semaphore = u8::from(self.semaphore);
        format!("eventfd-count: {count:16x}\neventfd-semaphore: {semaphore}\n")
    }

    fn describe(&self) -> String {
        String::from("anon_inode:[eventfd]")
    }
}
