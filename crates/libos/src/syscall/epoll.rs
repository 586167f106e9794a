//! epoll_create, epoll_ctl, epoll_wait and their variants; eventfd.

use alloc::sync::Arc;

use super::poll::{SignalMask, Timeout};
use super::{Arguments, Context};
use crate::errno::{EBADF, EFAULT, EINTR, EINVAL, ERESTARTNOHAND};
use crate::fs::epoll::{Epoll, Interest};
use crate::fs::eventfd::EventFd;
use crate::fs::file::{OpenFile, flags};
use crate::sync::wait::Events;
use crate::{Result, user::UserPtr};

/// End of the addresses that a program on x86-64 Linux can have.
const ADDRESSES_END: u64 = 0x7fff_ffff_f000;

const CONTROL_ADD: i32 = 1;
const CONTROL_DELETE: i32 = 2;
const CONTROL_MODIFY: i32 = 3;
/// `struct epoll_event` is packed on x86-64.
const EVENT_SIZE: usize = 12;
/// Most events that one call may ask for (EP_MAX_EVENTS).
const EVENTS_MAX: usize = i32::MAX as usize / EVENT_SIZE;
/// Events reported by one call: more are there at the next.
const BATCH: usize = 256;

pub fn epoll_create(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if arguments.i32(0) <= 0 {
        return Err(EINVAL);
    }
    create(context, 0)
}

pub fn epoll_create1(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let wanted = arguments.u32(0);
    if wanted & !flags::CLOEXEC != 0 {
        return Err(EINVAL.because("unknown flags"));
    }
    create(context, wanted)
}

fn create(context: &mut Context<'_>, wanted: u32) -> Result<usize> {
    let file = OpenFile::new(Epoll::new(), flags::RDWR);
    context.add_file(file, wanted & flags::CLOEXEC != 0)
}

fn instance(file: &OpenFile) -> Result<&Epoll> {
    file.ops
        .as_any()
        .downcast_ref()
        .ok_or(EINVAL.because("not an epoll instance"))
}

pub fn epoll_ctl(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let [operation, fd] = [arguments.i32(1), arguments.i32(2)];
    let mut interest = Interest {
        events: Events::empty(),
        data: 0,
    };
    if operation != CONTROL_DELETE {
        let mut bytes = [0u8; EVENT_SIZE];
        context.mm().read(arguments.u64(3), &mut bytes)?;
        let events = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let mut data = [0; 8];
        data.copy_from_slice(&bytes[4..]);
        interest.events = Events::from_bits_truncate(events);
        interest.data = u64::from_le_bytes(data);
    }
    let files = context.thread.files();
    let epoll = files.get(arguments.i32(0))?;
    let target = files.get(fd)?;
    if epoll.is_path() || target.is_path() {
        return Err(EBADF);
    }
    if Arc::ptr_eq(&epoll, &target) {
        return Err(EINVAL.because("an epoll instance cannot watch itself"));
    }
    let instance = instance(&epoll)?;
    match operation {
        CONTROL_ADD => instance.add(fd, &target, interest)?,
        CONTROL_MODIFY => instance.modify(fd, &target, interest)?,
        CONTROL_DELETE => instance.delete(fd, &target)?,
        _ => return Err(EINVAL.because("unknown operation")),
    }
    Ok(0)
}

pub fn epoll_wait(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    wait(
        context,
        arguments,
        Timeout::from_millis(arguments.i32(3)),
        None,
    )
}

pub fn epoll_pwait(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mask = SignalMask::read(context, arguments.u64(4), arguments.usize(5))?;
    wait(
        context,
        arguments,
        Timeout::from_millis(arguments.i32(3)),
        mask,
    )
}

pub fn epoll_pwait2(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let timeout = Timeout::from_timespec(context, arguments.u64(3))?;
    let mask = SignalMask::read(context, arguments.u64(4), arguments.usize(5))?;
    wait(context, arguments, timeout, mask)
}

fn wait(
    context: &mut Context<'_>,
    arguments: Arguments,
    timeout: Timeout,
    mask: Option<SignalMask>,
) -> Result<usize> {
    let most = arguments.i32(2);
    if most <= 0 || most as usize > EVENTS_MAX {
        return Err(EINVAL);
    }
    // Whether or not there is anything to write.
    let room = most as u64 * EVENT_SIZE as u64;
    if arguments
        .u64(1)
        .checked_add(room)
        .is_none_or(|end| end > ADDRESSES_END)
    {
        return Err(EFAULT);
    }
    let file = context.thread.files().get(arguments.i32(0))?;
    let instance = instance(&file)?;
    let most = (most as usize).min(BATCH);
    let ready = super::poll::with_mask(context, mask, |context| {
        instance.wait(context.thread, most, timeout.deadline())
    });
    // Never restarted, not even after a stop (signal(7)).
    let ready = ready.map_err(|error| {
        if error == ERESTARTNOHAND {
            EINTR
        } else {
            error
        }
    })?;
    let mut bytes = [0u8; BATCH * EVENT_SIZE];
    for (event, chunk) in ready.iter().zip(bytes.chunks_exact_mut(EVENT_SIZE)) {
        chunk[..4].copy_from_slice(&event.events.bits().to_le_bytes());
        chunk[4..].copy_from_slice(&event.data.to_le_bytes());
    }
    let len = ready.len() * EVENT_SIZE;
    context
        .mm()
        .write(UserPtr::<u8>::new(arguments.u64(1)).address, &bytes[..len])?;
    Ok(ready.len())
}

pub fn eventfd(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    make_eventfd(context, arguments.u32(0), 0)
}

pub fn eventfd2(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    make_eventfd(context, arguments.u32(0), arguments.u32(1))
}

fn make_eventfd(context: &mut Context<'_>, initial: u32, wanted: u32) -> Result<usize> {
    const SEMAPHORE: u32 = 1;
    if wanted & !(SEMAPHORE | flags::CLOEXEC | flags::NONBLOCK) != 0 {
        return Err(EINVAL.because("unknown flags"));
    }
    let eventfd = EventFd::new(u64::from(initial), wanted & SEMAPHORE != 0);
    let file = OpenFile::new(eventfd, flags::RDWR | wanted & flags::NONBLOCK);
    context.add_file(file, wanted & flags::CLOEXEC != 0)
}
