//! Pipes and FIFOs: pipe(7).
//!
//! A [`Pipe`] is a ring of bytes with counts of its two ends. Writes of up to PIPE_BUF bytes are
//! atomic. User memory is copied through a small buffer on the kernel stack, never under the lock.
//!
//! A full pipe whose writer takes turns with another process (see [`crate::mm`]) grows instead of
//! making it wait, up to what any process may ask for: each turn costs more than the copies.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::file::{FileOps, OpenFile, flags};
use super::inode::Metadata;
use super::lock::Locks;
use super::permission::Caller;
use crate::errno::{EAGAIN, EBADF, EBUSY, EINVAL, ENOTTY, ENXIO, EPERM, EPIPE};
use crate::mm::accounting;
use crate::platform::platform;
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, WaitQueue, block_on};
use crate::syscall::Context;
use crate::user::{IoBuffer, UserPtr};
use crate::{Result, Thread};

/// Writes of up to this many bytes are not interleaved with others (PIPE_BUF).
pub const ATOMIC: usize = 4096;
/// Capacity of a new pipe.
const CAPACITY: usize = 64 << 10;
/// Largest capacity an unprivileged process may set (/proc/sys/fs/pipe-max-size).
pub const CAPACITY_MAX: usize = 1 << 20;

/// What pipes may have grown by themselves, all together.
const GROWTH_MAX: usize = 16 << 20;
/// By how much they have.
static GROWTH: AtomicUsize = AtomicUsize::new(0);

const READABLE: Events = Events::IN.union(Events::RDNORM);
const WRITABLE: Events = Events::OUT.union(Events::WRNORM);

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// Part of the capacity that nobody asked for; counted in [`GROWTH`].
    growth: usize,
    /// Bytes that readers have taken since it grew last.
    taken: usize,
    /// A process has chosen the capacity.
    chosen: bool,
    readers: usize,
    writers: usize,
    /// Ends opened so far, so that an open that waits for the other side sees one come and go.
    readers_ever: u64,
    writers_ever: u64,
    /// Lengths of the packets in `bytes`, for pipes in packet mode (O_DIRECT).
    packets: VecDeque<u32>,
}

impl State {
    fn room(&self) -> usize {
        self.capacity - self.bytes.len()
    }

    /// Grows fourfold if there is room for that, and readers who keep up: where nobody reads, a
    /// full pipe makes its writers wait.
    fn grow(&mut self) -> bool {
        let wanted = (self.capacity * 4).min(CAPACITY_MAX);
        let more = wanted.saturating_sub(self.capacity);
        let fits = |all: usize| (all + more <= GROWTH_MAX).then_some(all + more);
        let grown = !self.chosen
            && more > 0
            && self.taken >= self.capacity
            && GROWTH
                .try_update(Ordering::Relaxed, Ordering::Relaxed, fits)
                .is_ok();
        if grown {
            self.capacity = wanted;
            self.growth += more;
            self.taken = 0;
        }
        grown
    }

    fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
        GROWTH.fetch_sub(core::mem::take(&mut self.growth), Ordering::Relaxed);
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.set_capacity(0);
    }
}

/// A pipe.
pub struct Pipe {
    number: u64,
    state: SpinLock<State>,
    queue: Arc<WaitQueue>,
    locks: Locks,
}

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

impl Pipe {
    /// A pipe without ends.
    pub fn new(number: u64) -> Arc<Pipe> {
        let mut state = State::default();
        state.capacity = CAPACITY;
        Arc::new(Pipe {
            number,
            state: SpinLock::new(state),
            queue: WaitQueue::new(),
            locks: Locks::new(),
        })
    }

    fn attach(&self, read: bool, write: bool) {
        let mut state = self.state.lock();
        if read {
            state.readers += 1;
            state.readers_ever += 1;
        }
        if write {
            state.writers += 1;
            state.writers_ever += 1;
        }
    }

    /// Takes up to `to.len()` bytes, and wakes writers where a pipe that was full has room again:
    /// Linux too says nothing while there was room all the time. `None` when a reader must wait.
    fn take(&self, to: &mut [u8], packet_mode: bool) -> Option<usize> {
        let mut state = self.state.lock();
        if state.bytes.is_empty() {
            return if state.writers == 0 { Some(0) } else { None };
        }
        let was_full = state.room() < ATOMIC;
        let mut len = to.len().min(state.bytes.len());
        let mut drop_rest = 0;
        if let Some(&packet) = state.packets.front() {
            let packet = packet as usize;
            len = len.min(packet);
            if packet_mode {
                drop_rest = packet - len;
                state.packets.pop_front();
            } else if len == packet {
                state.packets.pop_front();
            } else {
                state.packets[0] = (packet - len) as u32;
            }
        }
        let (front, back) = state.bytes.as_slices();
        let first = len.min(front.len());
        to[..first].copy_from_slice(&front[..first]);
        to[first..len].copy_from_slice(&back[..len - first]);
        state.bytes.drain(..len + drop_rest);
        state.taken = state.taken.saturating_add(len);
        let has_room = was_full && state.room() >= ATOMIC;
        drop(state);
        if has_room {
            self.queue.wake(WRITABLE);
        }
        Some(len)
    }

    /// Puts bytes back that could not be copied to the user.
    pub fn put_back(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        for &byte in bytes.iter().rev() {
            state.bytes.push_front(byte);
        }
    }

    /// Adds bytes: all when at most PIPE_BUF, else as many as fit. `None` when a writer must wait.
    fn give(&self, from: &[u8], whole: bool, packet: bool) -> Option<Result<usize>> {
        let mut state = self.state.lock();
        if state.readers == 0 {
            return Some(Err(EPIPE));
        }
        let room = state.room();
        if room == 0 || whole && room < from.len() {
            return None;
        }
        let len = from.len().min(room);
        state.bytes.extend(&from[..len]);
        if packet {
            state.packets.push_back(len as u32);
        }
        Some(Ok(len))
    }

    /// Bytes that can be written now.
    pub fn room(&self) -> usize {
        self.state.lock().room()
    }

    /// The first bytes, without taking them.
    pub fn peek(&self, most: usize) -> Vec<u8> {
        self.state.lock().bytes.iter().take(most).copied().collect()
    }

    /// Bytes in the pipe.
    pub fn len(&self) -> usize {
        self.state.lock().bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn events(&self, read: bool, write: bool) -> Events {
        let state = self.state.lock();
        let mut events = Events::empty();
        if read {
            if !state.bytes.is_empty() {
                events |= READABLE;
            }
            if state.writers == 0 && state.writers_ever > 0 {
                events |= Events::HUP;
            }
        }
        if write {
            if state.room() >= ATOMIC {
                events |= WRITABLE;
            }
            if state.readers == 0 {
                events |= Events::ERR;
            }
        }
        events
    }
}

/// One end of a pipe, or both (a FIFO opened for reading and writing).
pub struct PipeEnd {
    pipe: Arc<Pipe>,
    read: bool,
    write: bool,
}

/// A new pipe: its read end and its write end. `flags`: O_NONBLOCK, O_DIRECT.
pub fn pipe(flags: u32) -> [Arc<OpenFile>; 2] {
    let pipe = Pipe::new(NEXT_NUMBER.fetch_add(1, Ordering::Relaxed));
    pipe.attach(true, true);
    let end = |read: bool, access: u32| {
        let ops = Arc::new(PipeEnd {
            pipe: pipe.clone(),
            read,
            write: !read,
        });
        OpenFile::new(ops, access | flags & (flags::NONBLOCK | flags::DIRECT))
    };
    [end(true, flags::RDONLY), end(false, flags::WRONLY)]
}

/// Whether an open file is an end of a pipe.
pub fn is_pipe(file: &OpenFile) -> bool {
    file.ops.as_any().is::<PipeEnd>()
}

/// open(2) of a pipe without a name, through /proc/self/fd: never waits (fs/pipe.c, `is_pipe`).
pub fn reopen(pipe: &Arc<Pipe>, flags: u32) -> Arc<dyn FileOps> {
    let access = flags & flags::ACCESS_MODE;
    let (read, write) = (access != flags::WRONLY, access != flags::RDONLY);
    pipe.attach(read, write);
    pipe.queue.wake(Events::empty());
    Arc::new(PipeEnd {
        pipe: pipe.clone(),
        read,
        write,
    })
}

/// open(2) of a FIFO: waits for the other side unless O_NONBLOCK or O_RDWR says otherwise.
pub fn open_fifo(caller: &Caller<'_>, pipe: &Arc<Pipe>, flags: u32) -> Result<Arc<dyn FileOps>> {
    let (read, write) = match flags & flags::ACCESS_MODE {
        flags::RDONLY => (true, false),
        flags::WRONLY => (false, true),
        _ => (true, true),
    };
    let nonblocking = flags & flags::NONBLOCK != 0;
    if write && !read && nonblocking && pipe.state.lock().readers == 0 {
        return Err(ENXIO.because("no reader"));
    }
    let (readers_ever, writers_ever) = {
        let state = pipe.state.lock();
        (state.readers_ever, state.writers_ever)
    };
    pipe.attach(read, write);
    let end = Arc::new(PipeEnd {
        pipe: pipe.clone(),
        read,
        write,
    });
    pipe.queue.wake(Events::empty());
    if read && write || nonblocking {
        return Ok(end);
    }
    let thread = caller.thread.ok_or(EAGAIN)?;
    let opened = block_on(thread, &pipe.queue, READABLE | WRITABLE, None, || {
        let state = pipe.state.lock();
        let there = if read {
            state.writers > 0 || state.writers_ever != writers_ever
        } else {
            state.readers > 0 || state.readers_ever != readers_ever
        };
        there.then_some(())
    });
    if let Err(error) = opened {
        end.release(flags);
        return Err(error);
    }
    Ok(end)
}

impl PipeEnd {
    pub fn pipe(&self) -> &Arc<Pipe> {
        &self.pipe
    }

    /// Whether a read would have to wait.
    pub fn would_block_read(&self) -> bool {
        let state = self.pipe.state.lock();
        state.bytes.is_empty() && state.writers > 0
    }

    /// Whether a write of one byte would have to wait.
    pub fn would_block_write(&self) -> bool {
        let state = self.pipe.state.lock();
        state.room() == 0 && state.readers > 0
    }

    /// Waits until a read would not.
    pub fn wait_for_data(&self, thread: &Arc<Thread>, file: &OpenFile) -> Result<()> {
        if self.would_block_read() {
            self.wait_readable(thread, file)
        } else {
            Ok(())
        }
    }

    /// Waits until a write of one byte would not.
    pub fn wait_for_room(&self, thread: &Arc<Thread>, file: &OpenFile) -> Result<()> {
        if self.would_block_write() {
            self.wait_writable(thread, file, 1)
        } else {
            Ok(())
        }
    }

    fn wait_readable(&self, thread: &Arc<Thread>, file: &OpenFile) -> Result<()> {
        if file.is_nonblocking() {
            return Err(EAGAIN);
        }
        block_on(thread, &self.pipe.queue, READABLE, None, || {
            let state = self.pipe.state.lock();
            (!state.bytes.is_empty() || state.writers == 0).then_some(())
        })
    }

    fn wait_writable(&self, thread: &Arc<Thread>, file: &OpenFile, wanted: usize) -> Result<()> {
        if file.is_nonblocking() {
            return Err(EAGAIN);
        }
        block_on(thread, &self.pipe.queue, WRITABLE, None, || {
            let state = self.pipe.state.lock();
            (state.room() >= wanted || state.readers == 0).then_some(())
        })
    }

    /// Makes room instead of waiting for a reader who would have to wait for this process.
    fn grow(&self, thread: &Thread, file: &OpenFile) -> bool {
        // What one call allocates is bounded (docs/design/runtime.md), unless there is plenty.
        let plenty = || platform().heap_usage().1 >= 4 * GROWTH_MAX as u64;
        let grown = !file.is_nonblocking()
            && thread.mm().takes_turns()
            && plenty()
            && self.pipe.state.lock().grow();
        if grown {
            self.pipe.queue.wake(WRITABLE);
        }
        grown
    }

    fn read_with(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        to: &mut IoBuffer<'_>,
        bounce: &mut [u8],
    ) -> Result<usize> {
        let packet_mode = file.flags() & flags::DIRECT != 0;
        let start = to.done();
        loop {
            let wanted = to.remaining().min(bounce.len());
            match self.pipe.take(&mut bounce[..wanted], packet_mode) {
                Some(0) => break,
                Some(len) => {
                    let put = to.put(&bounce[..len]).unwrap_or(0);
                    if put < len {
                        self.pipe.put_back(&bounce[put..len]);
                        if to.done() == start {
                            return Err(crate::errno::EFAULT);
                        }
                        break;
                    }
                    if to.is_empty() || packet_mode {
                        break;
                    }
                }
                None if to.done() > start => break,
                None => self.wait_readable(thread, file)?,
            }
        }
        Ok(to.done() - start)
    }

    fn write_with(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
        bounce: &mut [u8],
    ) -> Result<usize> {
        let packet = file.flags() & flags::DIRECT != 0;
        let whole = from.remaining() <= ATOMIC || packet;
        let mut written = 0;
        loop {
            let wanted = from.remaining().min(bounce.len());
            if wanted == 0 {
                return Ok(written);
            }
            let taken = match from.take(&mut bounce[..wanted]) {
                Ok(taken) => taken,
                Err(error) if written == 0 => return Err(error),
                Err(_) => return Ok(written),
            };
            let mut at = 0;
            while at < taken {
                match self.pipe.give(&bounce[at..taken], whole, packet) {
                    Some(Ok(len)) => {
                        at += len;
                        written += len;
                        self.pipe.queue.wake(READABLE);
                    }
                    Some(Err(error)) => {
                        super::hooks::raise_sigpipe(thread);
                        return if written == 0 {
                            Err(error)
                        } else {
                            Ok(written)
                        };
                    }
                    None if self.grow(thread, file) => {}
                    None => {
                        let room = if whole { taken } else { 1 };
                        match self.wait_writable(thread, file, room) {
                            Ok(()) => {}
                            Err(error) if written == 0 => return Err(error),
                            Err(_) => return Ok(written),
                        }
                    }
                }
            }
        }
    }
}

impl FileOps for PipeEnd {
    fn is_async(&self) -> bool {
        true
    }

    fn locks(&self) -> &Locks {
        &self.pipe.locks
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        if !self.read {
            return Err(EBADF);
        }
        match to.remaining() {
            0 => Ok(0),
            1..=256 => self.read_with(thread, file, to, &mut [0; 256]),
            257..=4096 => self.read_with(thread, file, to, &mut [0; 4096]),
            len => self.read_with(thread, file, to, &mut vec![0; len.min(CAPACITY)]),
        }
    }

    fn write(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        if !self.write {
            return Err(EBADF);
        }
        accounting::admit()?;
        match from.remaining() {
            0 => Ok(0),
            1..=256 => self.write_with(thread, file, from, &mut [0; 256]),
            257..=4096 => self.write_with(thread, file, from, &mut [0; 4096]),
            _ if file.flags() & flags::DIRECT != 0 => {
                self.write_with(thread, file, from, &mut [0; ATOMIC])
            }
            len => self.write_with(thread, file, from, &mut vec![0; len.min(CAPACITY)]),
        }
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table {
            table.register(&self.pipe.queue, interest);
        }
        self.pipe.events(self.read, self.write)
    }

    fn ioctl(
        &self,
        context: &mut Context<'_>,
        _file: &OpenFile,
        request: u32,
        argument: u64,
    ) -> Result<usize> {
        match request {
            super::ioctl::FIONREAD => {
                let len = self.pipe.len() as i32;
                UserPtr::<i32>::new(argument).write(&context.mm(), &len)?;
                Ok(0)
            }
            _ => Err(ENOTTY),
        }
    }

    fn release(&self, _flags: u32) {
        let mut state = self.pipe.state.lock();
        state.readers -= usize::from(self.read);
        state.writers -= usize::from(self.write);
        if state.readers == 0 && state.writers == 0 {
            state.bytes = VecDeque::new();
            state.packets.clear();
            state.writers_ever = 0;
            if !state.chosen {
                state.set_capacity(CAPACITY);
            }
        }
        drop(state);
        self.pipe.queue.wake(Events::HUP | Events::ERR);
    }

    fn describe(&self) -> String {
        format!("pipe:[{}]", self.pipe.number)
    }

    fn metadata(&self) -> Metadata {
        Metadata {
            device: super::file::ANONYMOUS_DEVICE + 1,
            inode: self.pipe.number,
            mode: 0o010600,
            ..super::file::anonymous_metadata()
        }
    }
}

/// The pipe behind an open file.
pub fn of(file: &OpenFile) -> Option<&PipeEnd> {
    file.ops.as_any().downcast_ref::<PipeEnd>()
}

/// F_GETPIPE_SZ.
pub fn capacity(file: &OpenFile) -> Result<usize> {
    Ok(of(file).ok_or(EBADF)?.pipe.state.lock().capacity)
}

/// What F_SETPIPE_SZ may ask for without CAP_SYS_RESOURCE (/proc/sys/fs/pipe-max-size).
static MOST: AtomicUsize = AtomicUsize::new(CAPACITY_MAX);

pub fn most() -> usize {
    MOST.load(Ordering::Relaxed)
}

/// Rounded up as capacities are; EINVAL for none and for more than 2 GiB.
pub fn set_most(size: usize) -> Result<()> {
    if size == 0 || size > 1 << 31 {
        return Err(EINVAL.because("no capacity of a pipe"));
    }
    let rounded = size.max(ATOMIC).next_power_of_two();
    MOST.store(rounded, Ordering::Relaxed);
    Ok(())
}

/// F_SETPIPE_SZ: rounded up to a power of two pages; the new capacity.
pub fn set_capacity(file: &OpenFile, size: usize, privileged: bool) -> Result<usize> {
    let end = of(file).ok_or(EBADF)?;
    if size > i32::MAX as usize {
        return Err(EINVAL);
    }
    let capacity = size.max(ATOMIC).next_power_of_two();
    if capacity > most() && !privileged {
        return Err(EPERM);
    }
    let mut state = end.pipe.state.lock();
    if state.bytes.len() > capacity {
        return Err(EBUSY);
    }
    state.set_capacity(capacity);
    state.chosen = true;
    drop(state);
    end.pipe.queue.wake(WRITABLE);
    Ok(capacity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_ends_with_what_all_pipes_may_have_together() {
        let mut pipes = Vec::new();
        let mut grown = 0;
        while grown <= GROWTH_MAX {
            let pipe = Pipe::new(0);
            assert!(!pipe.state.lock().grow());
            loop {
                let mut state = pipe.state.lock();
                state.taken = state.capacity;
                if !state.grow() {
                    break;
                }
            }
            let growth = pipe.state.lock().growth;
            assert_eq!(pipe.state.lock().capacity, CAPACITY + growth);
            pipes.push(pipe);
            if growth == 0 {
                break;
            }
            grown += growth;
        }
        assert!(grown <= GROWTH_MAX && grown > GROWTH_MAX - CAPACITY_MAX);
        pipes.clear();
        let pipe = Pipe::new(0);
        pipe.state.lock().taken = CAPACITY;
        assert!(pipe.state.lock().grow());
        pipe.state.lock().taken = CAPACITY_MAX;
        pipe.state.lock().chosen = true;
        assert!(!pipe.state.lock().grow());
    }
}
