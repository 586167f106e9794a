//! Typed wrappers of the host calls on sockets and readiness.
//!
//! Every answer is the host's: lengths are checked against what was asked for, numbers against
//! their ranges, before anything is used.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use bulla_abi::hostcall::{DATA_SIZE, HostCall, PollFd, RECV_WAIT, RecvHeader};

use super::msg;
use crate::errno::{EIO, EMSGSIZE};
use crate::mm::residency;
use crate::platform::platform;
use crate::user::IoBuffer;
use crate::{Errno, Result, Thread};

/// Longest socket address that the host may give (`struct sockaddr_storage`).
pub const ADDRESS_MAX: usize = 128;
/// Most bytes that one receive or send moves through the shared buffer.
pub const TRANSFER_MAX: usize = 128 << 10;

/// No datagram of IP is longer.
const DATAGRAM_MAX: usize = 0xffff;

/// Bytes of a `RecvHeader` before the address.
const HEADER_WORDS: usize = RecvHeader::SIZE as usize - ADDRESS_MAX;
const _: () = assert!(TRANSFER_MAX as u64 + RecvHeader::SIZE <= DATA_SIZE);

/// A descriptor on the host; closed when dropped.
pub struct HostFd(i32);

impl HostFd {
    fn new(answer: i64) -> Result<HostFd> {
        Ok(HostFd(i32::try_from(check(answer)?).map_err(|_| EIO)?))
    }

    pub fn number(&self) -> i32 {
        self.0
    }

    fn argument(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for HostFd {
    fn drop(&mut self) {
        platform().host_call(HostCall::Close, [self.argument(), 0, 0, 0], None);
    }
}

/// A host call that may wait: its time is not the thread's, nor is its turn in memory.
fn call_waiting(
    call: HostCall,
    arguments: [u64; 4],
    waiting: Option<(&Arc<Thread>, u32)>,
) -> Result<u64> {
    let Some((thread, seen)) = waiting else {
        return check(platform().host_call(call, arguments, None));
    };
    if let Some(answer) = linger(call, arguments, thread, seen) {
        return answer;
    }
    check(thread.waiting(|| platform().host_call(call, arguments, Some((&**thread, seen)))))
}

/// Waits a little without giving up the turn in memory, where that may pay; `None` when nothing came.
fn linger(
    call: HostCall,
    arguments: [u64; 4],
    thread: &Arc<Thread>,
    seen: u32,
) -> Option<Result<u64>> {
    let longest = residency::linger(thread)?;
    let [first, second, third, fourth] = arguments;
    let (wait, short) = match call {
        HostCall::Poll => (call, [first, second.min(longest), third, fourth]),
        HostCall::EpollWait => (call, [first, second, third.min(longest), fourth]),
        _ => {
            const IN: u16 = 1;
            let mut entry = [0; 8];
            entry[..4].copy_from_slice(&(first as i32).to_le_bytes());
            entry[4..6].copy_from_slice(&IN.to_le_bytes());
            platform().host_put(0, &entry).ok()?;
            (HostCall::Poll, [1, longest, 0, 0])
        }
    };
    let waiting = Some((&**thread, seen));
    let answer = thread
        .clock
        .asleep(|| platform().host_call(wait, short, waiting));
    residency::lingered(thread, answer > 0);
    match (call, answer) {
        (_, 0) => None,
        // EAGAIN if somebody else was faster: the caller looks again.
        (HostCall::Recv, 1..) => {
            let at_once = [first, second & !RECV_WAIT, third, fourth];
            Some(check(platform().host_call(call, at_once, None)))
        }
        (HostCall::Recv, _) => None,
        _ => Some(check(answer)),
    }
}

/// A result or an error number.
fn check(answer: i64) -> Result<u64> {
    u64::try_from(answer).map_err(|_| Errno::from_host(answer))
}

fn call(call: HostCall, arguments: [u64; 4]) -> Result<u64> {
    check(platform().host_call(call, arguments, None))
}

pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<HostFd> {
    HostFd::new(platform().host_call(
        HostCall::Socket,
        [domain as u64, kind as u64, protocol as u64, 0],
        None,
    ))
}

pub fn bind(fd: &HostFd, address: &[u8]) -> Result<()> {
    platform().host_put(0, address)?;
    call(HostCall::Bind, [fd.argument(), address.len() as u64, 0, 0]).map(drop)
}

pub fn connect(fd: &HostFd, address: &[u8]) -> Result<()> {
    platform().host_put(0, address)?;
    call(
        HostCall::Connect,
        [fd.argument(), address.len() as u64, 0, 0],
    )
    .map(drop)
}

pub fn listen(fd: &HostFd, backlog: i32) -> Result<()> {
    call(HostCall::Listen, [fd.argument(), backlog as u64, 0, 0]).map(drop)
}

/// The new descriptor and the peer's address.
pub fn accept(fd: &HostFd) -> Result<(HostFd, Vec<u8>)> {
    let new = HostFd::new(platform().host_call(HostCall::Accept, [fd.argument(), 0, 0, 0], None))?;
    let mut bytes = [0u8; 4 + ADDRESS_MAX];
    platform().host_get(0, &mut bytes)?;
    let len = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let address = bytes
        .get(4..4 + len)
        .ok_or(EIO.because("host address too long"))?;
    Ok((new, address.to_vec()))
}

/// Sends what `from` holds (at most [`TRANSFER_MAX`] of it for a stream).
pub fn send(
    fd: &HostFd,
    from: &mut IoBuffer<'_>,
    flags: u32,
    address: Option<&[u8]>,
    control: &[u8],
    is_stream: bool,
) -> Result<usize> {
    let wanted = from.remaining();
    if !is_stream && wanted > TRANSFER_MAX {
        return Err(EMSGSIZE);
    }
    let len = wanted.min(TRANSFER_MAX);
    let address = address.unwrap_or(&[]);
    // One user range and no address: without a stop in between.
    let direct = match from.next_user_range() {
        Some((mm, start, available))
            if address.is_empty() && control.is_empty() && available >= len =>
        {
            mm.host_put(0, start, len).is_ok()
        }
        _ => false,
    };
    if !direct {
        let mut bytes = [address, control].concat();
        let data_at = bytes.len();
        bytes.resize(data_at + len, 0);
        // The position must not move unless the data is sent: look ahead only.
        let taken = from.peek(&mut bytes[data_at..])?;
        if taken < len {
            return Err(crate::errno::EFAULT);
        }
        platform().host_put(0, &bytes)?;
    }
    let arguments = [
        fd.argument(),
        u64::from(flags),
        len as u64,
        address.len() as u64 | (control.len() as u64) << 32,
    ];
    let sent = call(HostCall::Send, arguments)? as usize;
    if sent > len {
        return Err(EIO.because("host sent more than there was"));
    }
    if sent == 0 && len > 0 {
        return Err(EIO.because("host sent nothing and gave no reason"));
    }
    from.skip(sent);
    Ok(sent)
}

/// What a receive brought beside the data.
pub struct Received {
    pub len: usize,
    pub flags: u32,
    pub address: Vec<u8>,
    /// Control messages.
    pub control: Vec<u8>,
}

/// What a receive asks for beside the data.
#[derive(Clone, Copy)]
pub struct Wanted {
    pub address: bool,
    /// Room for control messages.
    pub control: usize,
}

/// Receives into `to`. With `wait` the host waits for data; EAGAIN when something woke the thread.
pub fn receive(
    fd: &HostFd,
    to: &mut IoBuffer<'_>,
    flags: u32,
    is_stream: bool,
    wanted: Wanted,
    wait: Option<(&Arc<Thread>, u32)>,
) -> Result<Received> {
    let len = to.remaining().min(TRANSFER_MAX);
    let wait_flag = if wait.is_some() { RECV_WAIT } else { 0 };
    let arguments = [
        fd.argument(),
        u64::from(flags) | wait_flag,
        len as u64,
        u64::from(wanted.address) | (wanted.control as u64) << 32,
    ];
    // A datagram may be longer than the buffer when MSG_TRUNC asks for its real length.
    let answer = call_waiting(HostCall::Recv, arguments, wait)? as usize;
    let got = answer.min(len);
    if answer > len && (is_stream || flags & msg::TRUNC == 0 || answer > DATAGRAM_MAX) {
        return Err(EIO.because("host received more than there was room"));
    }
    let mut received = Received {
        len: answer,
        flags: 0,
        address: Vec::new(),
        control: Vec::new(),
    };
    let mut header = [0u8; HEADER_WORDS];
    platform().host_get(0, &mut header)?;
    received.flags = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    if wanted.address {
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let mut address = [0; ADDRESS_MAX];
        let address = address
            .get_mut(..len)
            .ok_or(EIO.because("host address too long"))?;
        platform().host_get(HEADER_WORDS as u64, address)?;
        received.address = address.to_vec();
    }
    if wanted.control > 0 {
        let len = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
        let mut control = vec![0; wanted.control];
        let control_read = control
            .get_mut(..len)
            .ok_or(EIO.because("host control messages too long"))?;
        platform().host_get(RecvHeader::SIZE, control_read)?;
        control.truncate(len);
        check_control(&control)?;
        received.control = control;
    }
    let data_at = RecvHeader::SIZE + wanted.control.next_multiple_of(8) as u64;
    if is_stream && flags & msg::TRUNC != 0 {
        // The host has thrown the bytes away (tcp(7)).
        return Ok(received);
    }
    let mut moved = 0;
    while moved < got {
        let offset = data_at + moved as u64;
        let step = match to.next_user_range() {
            Some((mm, start, available)) => {
                let step = available.min(got - moved);
                mm.host_get(offset, start, step)?;
                to.advance(step);
                step
            }
            None => {
                let step = (got - moved).min(4096);
                let mut bytes = [0u8; 4096];
                platform().host_get(offset, &mut bytes[..step])?;
                to.put(&bytes[..step])?
            }
        };
        if step == 0 {
            break;
        }
        moved += step;
    }
    Ok(received)
}

/// Control messages of the host must be a chain of whole messages, and none may pretend to carry
/// descriptors or credentials, which only this kernel gives.
fn check_control(mut control: &[u8]) -> Result<()> {
    const HEADER: usize = 16;
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    const SCM_CREDENTIALS: i32 = 2;
    while !control.is_empty() {
        let Some((len, rest)) = control.split_first_chunk::<8>() else {
            return Err(EIO.because("host control message cut"));
        };
        let len = u64::from_le_bytes(*len);
        let word = |at: usize| {
            let bytes = rest.get(at..at + 4)?;
            Some(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        let (Some(level), Some(kind)) = (word(0), word(4)) else {
            return Err(EIO.because("host control message cut"));
        };
        if level == SOL_SOCKET && matches!(kind, SCM_RIGHTS | SCM_CREDENTIALS) {
            return Err(EIO.because("host control message of a kind that it cannot give"));
        }
        if len < HEADER as u64 || len > control.len() as u64 {
            return Err(EIO.because("host control message of a bad length"));
        }
        control = &control[(len as usize).next_multiple_of(8).min(control.len())..];
    }
    Ok(())
}

pub fn shutdown(fd: &HostFd, how: i32) -> Result<()> {
    call(HostCall::Shutdown, [fd.argument(), how as u64, 0, 0]).map(drop)
}

pub fn get_option(fd: &HostFd, level: i32, name: i32, max: usize) -> Result<Vec<u8>> {
    let max = max.min(4096);
    let arguments = [fd.argument(), level as u64, name as u64, max as u64];
    let len = call(HostCall::GetSockOpt, arguments)? as usize;
    read_back(len, max)
}

pub fn set_option(fd: &HostFd, level: i32, name: i32, value: &[u8]) -> Result<()> {
    platform().host_put(0, value)?;
    let arguments = [fd.argument(), level as u64, name as u64, value.len() as u64];
    call(HostCall::SetSockOpt, arguments).map(drop)
}

pub fn own_name(fd: &HostFd) -> Result<Vec<u8>> {
    let len = call(HostCall::GetSockName, [fd.argument(), 0, 0, 0])? as usize;
    read_back(len, ADDRESS_MAX)
}

pub fn peer_name(fd: &HostFd) -> Result<Vec<u8>> {
    let len = call(HostCall::GetPeerName, [fd.argument(), 0, 0, 0])? as usize;
    read_back(len, ADDRESS_MAX)
}

/// An ioctl whose argument is `value`, in and out.
pub fn ioctl(fd: &HostFd, request: u32, value: &mut [u8]) -> Result<usize> {
    platform().host_put(0, value)?;
    let arguments = [fd.argument(), u64::from(request), value.len() as u64, 0];
    // None of the requests that sockets have has another result.
    if call(HostCall::Ioctl, arguments)? != 0 {
        return Err(EIO.because("host gave an ioctl a result that it cannot have"));
    }
    platform().host_get(0, value)?;
    Ok(0)
}

fn read_back(len: usize, max: usize) -> Result<Vec<u8>> {
    if len > max {
        return Err(EIO.because("host value too long"));
    }
    let mut bytes = vec![0; len];
    platform().host_get(0, &mut bytes)?;
    Ok(bytes)
}

/// Waits for host descriptors; returns whether anything is ready (`revents` filled in). 0 when the
/// thread was notified or the time is over.
pub fn poll(
    descriptors: &mut [PollFd],
    deadline: Option<u64>,
    thread: &Arc<Thread>,
    seen: u32,
) -> Result<usize> {
    let mut bytes = Vec::with_capacity(descriptors.len() * 8);
    for entry in descriptors.iter() {
        bytes.extend_from_slice(&entry.fd.to_le_bytes());
        bytes.extend_from_slice(&entry.events.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
    }
    platform().host_put(0, &bytes)?;
    let (timeout, waiting) = timeout(deadline, thread, seen);
    let arguments = [descriptors.len() as u64, timeout, 0, 0];
    let ready = match call_waiting(HostCall::Poll, arguments, waiting) {
        Ok(ready) => ready as usize,
        Err(error) if error == crate::errno::EINTR => return Ok(0),
        Err(error) => return Err(error),
    };
    if ready == 0 {
        return Ok(0);
    }
    platform().host_get(0, &mut bytes)?;
    for (entry, chunk) in descriptors.iter_mut().zip(bytes.chunks_exact(8)) {
        // What was asked for, or what poll(2) always reports: ERR, HUP, NVAL.
        const ALWAYS: u16 = 0x38;
        let asked = if entry.fd < 0 {
            0
        } else {
            entry.events | ALWAYS
        };
        entry.revents = u16::from_le_bytes([chunk[6], chunk[7]]) & asked;
    }
    Ok(descriptors
        .iter()
        .filter(|entry| entry.revents != 0)
        .count())
}

/// Whether urgent data is there now.
pub fn is_urgent(fd: &HostFd) -> bool {
    const PRI: u16 = 2;
    let mut entry = [0; 8];
    entry[..4].copy_from_slice(&fd.number().to_le_bytes());
    entry[4..6].copy_from_slice(&PRI.to_le_bytes());
    let asked = platform()
        .host_put(0, &entry)
        .and_then(|()| call(HostCall::Poll, [1, 0, 0, 0]))
        .and_then(|ready| platform().host_get(0, &mut entry).map(|()| ready));
    asked == Ok(1) && u16::from_le_bytes([entry[6], entry[7]]) & PRI != 0
}

fn timeout(
    deadline: Option<u64>,
    thread: &Arc<Thread>,
    seen: u32,
) -> (u64, Option<(&Arc<Thread>, u32)>) {
    match deadline {
        Some(0) => (0, None),
        Some(deadline) => {
            let left = deadline.saturating_sub(platform().monotonic());
            (left, (left > 0).then_some((thread, seen)))
        }
        None => (u64::MAX, Some((thread, seen))),
    }
}

/// A host epoll instance.
pub fn epoll_create() -> Result<HostFd> {
    HostFd::new(platform().host_call(HostCall::EpollCreate, [0; 4], None))
}

/// `operation`: 1 add, 2 delete, 3 modify.
pub fn epoll_control(
    epoll: &HostFd,
    operation: u32,
    fd: i32,
    events: u32,
    token: u64,
) -> Result<()> {
    let target = u64::from(operation) << 32 | u64::from(fd as u32);
    call(
        HostCall::EpollCtl,
        [epoll.argument(), target, u64::from(events), token],
    )
    .map(drop)
}

/// Ready (events, token) pairs; empty when the thread was notified or the time is over.
pub fn epoll_wait(
    epoll: &HostFd,
    most: usize,
    deadline: Option<u64>,
    thread: &Arc<Thread>,
    seen: u32,
    mut each: impl FnMut(u32, u64),
) -> Result<usize> {
    const MOST: usize = 256;
    let most = most.min(MOST);
    let (timeout, waiting) = timeout(deadline, thread, seen);
    let arguments = [epoll.argument(), most as u64, timeout, 0];
    let ready = match call_waiting(HostCall::EpollWait, arguments, waiting) {
        Ok(ready) => ready as usize,
        Err(error) if error == crate::errno::EINTR => return Ok(0),
        Err(error) => return Err(error),
    };
    if ready > most {
        return Err(EIO.because("host reported more events than asked for"));
    }
    let mut bytes = [0u8; 16 * 64];
    let mut done = 0;
    while done < ready {
        let count = (ready - done).min(64);
        let chunk = &mut bytes[..count * 16];
        platform().host_get(done as u64 * 16, chunk)?;
        for event in chunk.chunks_exact(16) {
            let mut token = [0; 8];
            token.copy_from_slice(&event[8..]);
            let events = u32::from_le_bytes([event[0], event[1], event[2], event[3]]);
            each(events, u64::from_le_bytes(token));
        }
        done += count;
    }
    Ok(ready)
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
