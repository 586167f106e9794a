//! mq_open, mq_unlink, mq_timedsend, mq_timedreceive, mq_notify, mq_getsetattr.

use alloc::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::timer::{SIGEV_NONE, SIGEV_SIGNAL, SIGEV_THREAD, SignalEvent};
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EBADF, EINVAL, EMSGSIZE};
use crate::fs::file::{OpenFile, flags};
use crate::ipc::mqueue::{COOKIE, MessageQueue, NAMES, Notice, Open, PRIORITIES, QueueFile, Size};
use crate::net::file::SocketFile;
use crate::net::netlink::NetlinkSocket;
use crate::process::limits::Resource;
use crate::signal;
use crate::time::{Clock, Timespec};

/// `struct mq_attr`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct QueueAttributes {
    flags: i64,
    messages_max: i64,
    size_max: i64,
    messages: i64,
    reserved: [i64; 4],
}

pub fn mq_open(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mm = context.mm();
    let wanted = arguments.u32(1);
    let size = match arguments.pointer::<QueueAttributes>(3).option() {
        Some(from) => Some(from.read(&mm)?),
        None => None,
    };
    let name = context.path(arguments.u64(0))?;
    let process = &context.thread.process;
    let access = match wanted & flags::ACCESS_MODE {
        flags::RDONLY => 4,
        flags::WRONLY => 2,
        flags::RDWR => 6,
        _ => return Err(EINVAL.because("bad access mode")),
    };
    let open = Open {
        create: wanted & flags::CREAT != 0,
        exclusive: wanted & flags::EXCL != 0,
        wanted: access,
        mode: arguments.u32(2) & !context.thread.fs().umask(),
        size: size.map(|size| Size {
            messages: size.messages_max,
            bytes: size.size_max,
        }),
        limit: process.limits.get(Resource::MessageQueues).soft,
    };
    let credentials = process.credentials.lock().clone();
    let queue = NAMES.lock().open(&name, &open, &credentials)?;
    let status = wanted & (flags::ACCESS_MODE | flags::NONBLOCK);
    let file = OpenFile::new(Arc::new(QueueFile(queue)), status);
    // Whatever the flags say, it ends at execve.
    context.add_file(file, true)
}

pub fn mq_unlink(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let name = context.path(arguments.u64(0))?;
    let credentials = context.thread.process.credentials.lock().clone();
    // Dropped after the lock: the queue's end takes it again.
    let queue = NAMES.lock().unlink(&name, &credentials);
    queue.map(|_| 0)
}

/// The deadline on the monotonic clock.
fn deadline(context: &Context<'_>, arguments: Arguments) -> Result<Option<u64>> {
    match arguments.pointer::<Timespec>(4).option() {
        Some(from) => {
            let time = from.read(&context.mm())?.to_ns()?;
            Ok(Some(Clock::Realtime.to_monotonic(time)))
        }
        None => Ok(None),
    }
}

/// The open queue behind the first argument; EBADF for any other file.
fn queue_of(
    context: &Context<'_>,
    arguments: Arguments,
) -> Result<(Arc<OpenFile>, Arc<MessageQueue>)> {
    let file = context.thread.file(arguments.i32(0))?;
    let queue = MessageQueue::of(&file).ok_or(EBADF)?.clone();
    Ok((file, queue))
}

pub fn mq_timedsend(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let deadline = deadline(context, arguments)?;
    let priority = arguments.u32(3);
    if priority >= PRIORITIES {
        return Err(EINVAL.because("priority beyond MQ_PRIO_MAX"));
    }
    let (file, queue) = queue_of(context, arguments)?;
    if !file.is_writable() {
        return Err(EBADF);
    }
    if arguments.u64(2) > queue.size_max() as u64 {
        return Err(EMSGSIZE);
    }
    let mut data = alloc::vec![0; arguments.usize(2)];
    context.mm().read(arguments.u64(1), &mut data)?;
    let nonblocking = file.is_nonblocking();
    queue.send(context.thread, data, priority, deadline, nonblocking)?;
    Ok(0)
}

pub fn mq_timedreceive(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let deadline = deadline(context, arguments)?;
    let (file, queue) = queue_of(context, arguments)?;
    if !file.is_readable() {
        return Err(EBADF);
    }
    if arguments.u64(2) < queue.size_max() as u64 {
        return Err(EMSGSIZE);
    }
    let (data, priority) = queue.receive(context.thread, deadline, file.is_nonblocking())?;
    let mm = context.mm();
    if let Some(to) = arguments.pointer::<u32>(3).option() {
        to.write(&mm, &priority)?;
    }
    mm.write(arguments.u64(1), &data)?;
    Ok(data.len())
}

pub fn mq_notify(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mm = context.mm();
    let notice = match arguments.pointer::<SignalEvent>(1).option() {
        None => None,
        Some(from) => {
            let event = from.read(&mm)?;
            Some(match event.notify {
                SIGEV_NONE => Notice::Nothing,
                SIGEV_SIGNAL => {
                    let signal = event.signal as u32;
                    if signal > signal::SIGNAL_MAX {
                        return Err(EINVAL.because("no such signal"));
                    }
                    let value = event.value;
                    Notice::Signal { signal, value }
                }
                SIGEV_THREAD => {
                    let mut cookie = [0; COOKIE];
                    mm.read(event.value, &mut cookie)?;
                    let file = context.thread.file(event.signal)?;
                    let socket = SocketFile::of(&file)?.socket.clone();
                    if !socket.as_any().is::<NetlinkSocket>() {
                        return Err(EINVAL.because("notification needs a netlink socket"));
                    }
                    Notice::Thread { socket, cookie }
                }
                _ => return Err(EINVAL.because("unknown kind of notification")),
            })
        }
    };
    let (_, queue) = queue_of(context, arguments)?;
    let process = &context.thread.process;
    match notice {
        Some(notice) => queue.register(process, notice)?,
        None => queue.unregister(process.pid),
    }
    Ok(0)
}

pub fn mq_getsetattr(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mm = context.mm();
    let nonblock = i64::from(flags::NONBLOCK);
    let new = match arguments.pointer::<QueueAttributes>(1).option() {
        Some(from) => Some(from.read(&mm)?.flags),
        None => None,
    };
    if new.is_some_and(|flags| flags & !nonblock != 0) {
        return Err(EINVAL.because("only O_NONBLOCK can change"));
    }
    let (file, queue) = queue_of(context, arguments)?;
    let [messages_max, size_max, messages] = queue.attributes();
    let old = QueueAttributes {
        flags: i64::from(file.flags() & flags::NONBLOCK),
        messages_max,
        size_max,
        messages,
        reserved: [0; 4],
    };
    if let Some(new) = new {
        file.set_flags(flags::NONBLOCK, new as u32);
    }
    if let Some(to) = arguments.pointer::<QueueAttributes>(2).option() {
        to.write(&mm, &old)?;
    }
    Ok(0)
}
