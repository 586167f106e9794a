//! io_setup, io_submit, io_getevents, io_pgetevents, io_destroy, io_cancel (Linux AIO).
//!
//! A request is done when it is submitted, as Linux does for files without O_DIRECT: io_submit may
//! block, io_getevents collects results. A context's id is the address of a page in user memory,
//! as on Linux; the page stays zero, so that libaio, which looks there for the kernel's ring, asks
//! by system call.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::io::{RWF_APPEND, RWF_DSYNC, RWF_HIPRI, RWF_NOWAIT, RWF_SYNC};
use super::poll::{SignalMask, Timeout, with_mask};
use super::{Arguments, Context, flush, io};
use crate::Result;
use crate::errno::{
    EAGAIN, EBADF, EINTR, EINVAL, EOPNOTSUPP, ERESTARTNOHAND, ERESTARTSYS, ETIMEDOUT,
};
use crate::fs::eventfd::EventFd;
use crate::fs::file::OpenFile;
use crate::mm::AddressSpace;
use crate::mm::map::Request;
use crate::platform::Protection;
use crate::sync::SpinLock;
use crate::sync::wait::{Events, WaitQueue, block_on};
use crate::user::{IoBuffer, UserPtr, check_range};

/// Most requests that all contexts together may hold (/proc/sys/fs/aio-max-nr).
const REQUESTS_MAX: usize = 65536;
/// Size of the page that stands for a context.
const PAGE: u64 = 4096;

const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const FSYNC: u16 = 2;
const FDSYNC: u16 = 3;
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;
/// IOCB_FLAG_RESFD.
const NOTIFY: u32 = 1;

/// `struct iocb`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct ControlBlock {
    data: u64,
    key: u32,
    rw_flags: u32,
    operation: u16,
    priority: i16,
    fd: i32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    notify_fd: i32,
}

/// `struct io_event`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Completion {
    data: u64,
    request: u64,
    result: i64,
    second: i64,
}

struct AioContext {
    space: Weak<AddressSpace>,
    most: usize,
    done: SpinLock<VecDeque<Completion>>,
    queue: Arc<WaitQueue>,
}

type Key = (usize, u64);

/// All contexts, by address space and address.
static CONTEXTS: SpinLock<BTreeMap<Key, Arc<AioContext>>> = SpinLock::new(BTreeMap::new());

fn key(mm: &Arc<AddressSpace>, address: u64) -> Key {
    (Arc::as_ptr(mm) as usize, address)
}

/// EINVAL when `id` is no context of the caller's.
fn find(context: &Context<'_>, id: u64) -> Result<Arc<AioContext>> {
    let found = CONTEXTS.lock().get(&key(&context.mm(), id)).cloned();
    found.ok_or(EINVAL.because("no such AIO context"))
}

pub fn io_setup(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let most = arguments.u32(0) as usize;
    let place = arguments.pointer::<u64>(1);
    let mm = context.mm();
    if place.read(&mm)? != 0 || most == 0 {
        return Err(EINVAL.because("no requests, or a context that is not zero"));
    }
    /// More events than Linux counts in bytes.
    const EVENTS_MAX: usize = 0x1000_0000 / 32;
    if most > EVENTS_MAX {
        return Err(EINVAL.because("too many requests for any context"));
    }
    let used: usize = {
        let mut contexts = CONTEXTS.lock();
        // Those of processes that have ended.
        contexts.retain(|_, context| context.space.strong_count() > 0);
        contexts.values().map(|context| context.most).sum()
    };
    if most > 0x1000_0000 / 32 {
        return Err(EINVAL.because("far too many requests"));
    }
    if most > REQUESTS_MAX - used.min(REQUESTS_MAX) {
        return Err(EAGAIN.because("more requests than aio-max-nr"));
    }
    let address = mm.map(Request::anonymous(PAGE, Protection::READ))?;
    if let Err(error) = place.write(&mm, &address) {
        mm.unmap(address, PAGE)?;
        return Err(error);
    }
    let fresh = Arc::new(AioContext {
        space: Arc::downgrade(&mm),
        most,
        done: SpinLock::new(VecDeque::new()),
        queue: WaitQueue::new(),
    });
    CONTEXTS.lock().insert(key(&mm, address), fresh);
    Ok(0)
}

pub fn io_destroy(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mm = context.mm();
    let id = arguments.u64(0);
    let removed = CONTEXTS.lock().remove(&key(&mm, id));
    let removed = removed.ok_or(EINVAL.because("no such AIO context"))?;
    removed.queue.wake(Events::empty());
    // The program may have unmapped the page itself.
    let _ = mm.unmap(id, PAGE);
    Ok(0)
}

/// What a request asks for, checked before it counts as submitted.
enum Operation {
    Read,
    Write,
    Flush,
}

fn check(context: &Context<'_>, block: &ControlBlock) -> Result<(Operation, Arc<OpenFile>)> {
    if block.reserved != 0 || i64::try_from(block.len).is_err() {
        return Err(EINVAL.because("a reserved field, or a negative length"));
    }
    let file = context.thread.files().get(block.fd)?;
    let operation = match block.operation {
        PREAD | PREADV if file.is_readable() => Operation::Read,
        PWRITE | PWRITEV if file.is_writable() => Operation::Write,
        PREAD | PREADV | PWRITE | PWRITEV => return Err(EBADF),
        FSYNC | FDSYNC
            if (block.buffer, block.len, block.offset, block.rw_flags) == (0, 0, 0, 0) =>
        {
            Operation::Flush
        }
        _ => return Err(EINVAL.because("unknown AIO operation")),
    };
    let known = match operation {
        Operation::Read => RWF_HIPRI | RWF_NOWAIT,
        Operation::Write if file.ops.is_seekable() => {
            RWF_HIPRI | RWF_NOWAIT | RWF_DSYNC | RWF_SYNC | RWF_APPEND
        }
        Operation::Write => RWF_HIPRI | RWF_NOWAIT,
        Operation::Flush => 0,
    };
    if block.rw_flags & !known != 0 {
        return Err(EOPNOTSUPP.because("unknown RWF flags"));
    }
    if block.flags & NOTIFY != 0 {
        eventfd(context, block.notify_fd)?;
    }
    Ok((operation, file))
}

/// Where a request reads or writes, refused if it could be nowhere.
fn buffer_of<'a>(mm: &'a AddressSpace, block: &ControlBlock) -> Result<IoBuffer<'a>> {
    let len = block.len as usize;
    match block.operation {
        PREADV | PWRITEV => IoBuffer::vector(mm, block.buffer, len),
        _ => {
            check_range(block.buffer, len)?;
            Ok(IoBuffer::user(mm, block.buffer, len))
        }
    }
}

fn eventfd(context: &Context<'_>, fd: i32) -> Result<Arc<OpenFile>> {
    let file = context.thread.files().get(fd)?;
    let is_eventfd = file.ops.as_any().is::<EventFd>();
    is_eventfd
        .then_some(file)
        .ok_or(EINVAL.because("not an eventfd"))
}

fn run(
    context: &mut Context<'_>,
    block: &ControlBlock,
    operation: Operation,
    file: &Arc<OpenFile>,
    buffer: &mut IoBuffer<'_>,
) -> Result<usize> {
    let offset = || u64::try_from(block.offset).map_err(|_| EINVAL);
    if block.rw_flags & RWF_NOWAIT != 0 {
        let wanted = match operation {
            Operation::Write => Events::OUT,
            _ => Events::IN,
        };
        io::check_ready(file, wanted)?;
    }
    let result = match operation {
        // What has no positions (pipes, sockets) is read and written as ever.
        Operation::Read if !file.ops.is_seekable() => io::read_file(context, file, buffer),
        Operation::Write if !file.ops.is_seekable() => io::write_file(context, file, buffer),
        Operation::Read => io::read_file_at(context, file, buffer, offset()?),
        Operation::Write => {
            let end = file.inode().map(|inode| inode.size());
            let at = match end.filter(|_| block.rw_flags & RWF_APPEND != 0) {
                Some(end) => end,
                None => offset()?,
            };
            let written = io::write_file_at(context, file, buffer, at);
            if block.rw_flags & (RWF_DSYNC | RWF_SYNC) != 0 && written.is_ok() {
                io::sync_written(context, file)?;
            }
            written
        }
        Operation::Flush => {
            let fd = block.fd as u64;
            return flush::fsync(context, Arguments([fd, 0, 0, 0, 0, 0]));
        }
    };
    // There is no call to restart any more.
    result.map_err(|error| if error == ERESTARTSYS { EINTR } else { error })
}

fn submit(context: &mut Context<'_>, aio: &AioContext, at: u64) -> Result<()> {
    let block = UserPtr::<ControlBlock>::new(at).read(&context.mm())?;
    let (operation, file) = check(context, &block)?;
    let mm = context.mm();
    // Linux marks the request as its own (KIOCB_KEY).
    UserPtr::<u32>::new(at.wrapping_add(offset_of!(ControlBlock, key) as u64)).write(&mm, &0)?;
    let mut buffer = buffer_of(&mm, &block)?;
    if aio.done.lock().len() >= aio.most {
        return Err(EAGAIN.because("as many results wait as the context may hold"));
    }
    let result = match run(context, &block, operation, &file, &mut buffer) {
        Ok(moved) => moved as i64,
        Err(error) => -i64::from(error.code()),
    };
    aio.done.lock().push_back(Completion {
        data: block.data,
        request: at,
        result,
        second: 0,
    });
    aio.queue.wake(Events::IN);
    if block.flags & NOTIFY != 0
        && let Ok(file) = eventfd(context, block.notify_fd)
        && let Some(eventfd) = file.ops.as_any().downcast_ref::<EventFd>()
    {
        eventfd.signal(1);
    }
    Ok(())
}

pub fn io_submit(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let count = usize::try_from(arguments.i64(1)).map_err(|_| EINVAL)?;
    let aio = find(context, arguments.u64(0))?;
    let list = arguments.pointer::<u64>(2);
    let mm = context.mm();
    for index in 0..count.min(aio.most) {
        let at = list.add(index).read(&mm);
        match at.and_then(|at| submit(context, &aio, at)) {
            Ok(()) => {}
            Err(error) if index == 0 => return Err(error),
            Err(_) => return Ok(index),
        }
    }
    Ok(count.min(aio.most))
}

/// Every request is done by the time that anybody could cancel it.
pub fn io_cancel(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    UserPtr::<ControlBlock>::new(arguments.u64(1)).read(&context.mm())?;
    find(context, arguments.u64(0))?;
    Err(EINVAL.because("the request is done"))
}

pub fn io_getevents(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let timeout = Timeout::from_timespec(context, arguments.u64(4))?;
    get_events(context, arguments, timeout, None)
}

pub fn io_pgetevents(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let timeout = Timeout::from_timespec(context, arguments.u64(4))?;
    let mask = match arguments.pointer::<[u64; 2]>(5).option() {
        None => None,
        Some(from) => {
            let [address, size] = from.read(&context.mm())?;
            SignalMask::read(context, address, size as usize)?
        }
    };
    get_events(context, arguments, timeout, mask)
}

fn get_events(
    context: &mut Context<'_>,
    arguments: Arguments,
    timeout: Timeout,
    mask: Option<SignalMask>,
) -> Result<usize> {
    let least = usize::try_from(arguments.i64(1)).map_err(|_| EINVAL)?;
    let most = usize::try_from(arguments.i64(2)).map_err(|_| EINVAL)?;
    if least > most {
        return Err(EINVAL);
    }
    let id = arguments.u64(0);
    let aio = find(context, id)?;
    let enough = |context: &Context<'_>| {
        let waiting = aio.done.lock().len();
        (waiting >= least || find(context, id).is_err()).then_some(())
    };
    let waited = with_mask(context, mask, |context| {
        let thread = context.thread;
        if enough(context).is_some() {
            return Ok(());
        }
        let deadline = timeout.deadline();
        block_on(thread, &aio.queue, Events::IN, deadline, || enough(context)).map_err(|error| {
            if error == ERESTARTSYS {
                ERESTARTNOHAND
            } else {
                error
            }
        })
    });
    let list = arguments.pointer::<Completion>(3);
    let mut taken = 0;
    while taken < most {
        let Some(completion) = aio.done.lock().pop_front() else {
            break;
        };
        if let Err(error) = list.add(taken).write(&context.mm(), &completion) {
            aio.done.lock().push_front(completion);
            return if taken > 0 { Ok(taken) } else { Err(error) };
        }
        taken += 1;
    }
    match waited {
        Err(error) if taken == 0 && error != ETIMEDOUT => Err(if error == ERESTARTNOHAND {
            EINTR
        } else {
            error
        }),
        _ => Ok(taken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::EFAULT;
    use crate::fs::tests::Machine;
    use crate::syscall::epoll;
    use alloc::vec::Vec;

    fn block(it: &Machine, slot: u64, operation: u16, fd: u64, offset: i64, notify: u64) -> u64 {
        let block = ControlBlock {
            data: slot,
            key: 0,
            rw_flags: 0,
            operation,
            priority: 0,
            fd: fd as i32,
            buffer: it.scratch + 65536,
            len: 5,
            offset,
            reserved: 0,
            flags: u32::from(notify != 0),
            notify_fd: notify as i32,
        };
        it.put(4096 + slot * 64, block.as_bytes())
    }

    #[test]
    fn requests_are_done_and_collected() {
        let it = Machine::new();
        assert_eq!(it.call(io_setup, &[0, it.scratch]), Err(EINVAL));
        assert_eq!(it.call(io_setup, &[70_000, it.scratch]), Err(EAGAIN));
        it.call(io_setup, &[4, it.scratch]).unwrap();
        let id = u64::read_from_bytes(&it.get(0, 8)).unwrap();
        let file = it.create("/file", b"0123456789");
        // create() uses the scratch memory.
        it.put(65536, b"abcde");
        let eventfd = it.call(epoll::eventfd2, &[0, 0]).unwrap() as u64;
        let requests = [
            block(&it, 1, PWRITE, file, 10, 0),
            block(&it, 2, PREAD, file, 3, eventfd),
            block(&it, 3, PREAD, 77, 0, 0),
        ];
        let list: Vec<u8> = requests.iter().flat_map(|at| at.to_le_bytes()).collect();
        let list = it.put(2048, &list);
        // The third is refused at once: two are submitted.
        assert_eq!(it.call(io_submit, &[id, 3, list]), Ok(2));
        assert_eq!(it.call(io_submit, &[id, 1, list + 16]), Err(EBADF));
        assert_eq!(it.get(65536, 5), b"34567");
        assert_eq!(it.read(eventfd, 8), Ok(1u64.to_le_bytes().to_vec()));
        let to = it.scratch + 8192;
        assert_eq!(it.call(io_getevents, &[id, 1, 10, to, 0]), Ok(2));
        let event = |at| Completion::read_from_bytes(&it.get(at, 32)).unwrap();
        let (first, second) = (event(8192), event(8192 + 32));
        assert_eq!(
            (first.data, first.request, first.result),
            (1, requests[0], 5)
        );
        assert_eq!((second.data, second.result), (2, 5));
        assert_eq!(it.content("/file"), b"0123456789abcde");
        // Nothing more: the timeout ends the wait.
        let timeout = it.put(
            0,
            &[0u64.to_le_bytes(), 1_000_000u64.to_le_bytes()].concat(),
        );
        assert_eq!(it.call(io_getevents, &[id, 1, 10, to, timeout]), Ok(0));
        assert_eq!(it.call(io_cancel, &[id, requests[0], to]), Err(EINVAL));
        // What is wrong with a request is told at once.
        let submit = |change: &dyn Fn(&mut ControlBlock)| {
            let at = block(&it, 1, PREAD, file, 0, 0);
            let mut request = ControlBlock::read_from_bytes(&it.get(4096 + 64, 64)).unwrap();
            change(&mut request);
            it.put(4096 + 64, request.as_bytes());
            let list = it.put(2048, &at.to_le_bytes());
            it.call(io_submit, &[id, 1, list])
        };
        assert_eq!(submit(&|request| request.rw_flags = RWF_NOWAIT), Ok(1));
        assert_eq!(submit(&|request| request.rw_flags = 0x100), Err(EOPNOTSUPP));
        assert_eq!(submit(&|request| request.len = 1 << 63), Err(EINVAL));
        assert_eq!(submit(&|request| request.buffer = 1 << 63), Err(EFAULT));
        assert_eq!(submit(&|request| request.operation = FSYNC), Err(EINVAL));
        let vectors = |request: &mut ControlBlock| {
            request.operation = PREADV;
            request.buffer = 0x8000;
        };
        assert_eq!(submit(&vectors), Err(EFAULT));
        let append = |request: &mut ControlBlock| {
            request.operation = PWRITE;
            request.rw_flags = RWF_APPEND | RWF_DSYNC;
        };
        assert_eq!(submit(&append), Ok(1));
        assert_eq!(it.content("/file").len(), 20);
        assert_eq!(it.call(io_destroy, &[id]), Ok(0));
        assert_eq!(it.call(io_destroy, &[id]), Err(EINVAL));
    }
}
