//! TCP and UDP, IPv4 and IPv6, on host sockets.
//!
//! The host socket is always non-blocking; a blocking call waits on the host for readiness and
//! tries again. What the host says about addresses and options is passed on as its word: the
//! network is untrusted anyway.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};

use bulla_abi::hostcall::PollFd;

use super::host::{self, HostFd};
use super::{Incoming, Outgoing, Received, Socket, family, kind, msg};
use crate::errno::{EAFNOSUPPORT, EAGAIN, EALREADY, EINPROGRESS, EINVAL, EISCONN, ETIMEDOUT};
use crate::errno::{ERESTARTSYS, ESOCKTNOSUPPORT};
use crate::platform::platform;
use crate::sync::wait::{Events, PollTable};
use crate::{Result, Thread};

const SOL_SOCKET: i32 = 1;
const SO_TYPE: i32 = 3;
const SO_ERROR: i32 = 4;
const SO_RCVTIMEO: i32 = 20;
const SO_SNDTIMEO: i32 = 21;

/// One TCP or UDP socket.
pub struct InetSocket {
    fd: HostFd,
    family: u16,
    kind: i32,
    /// SO_RCVTIMEO and SO_SNDTIMEO in ns; 0 is none. Kept here: the host socket never blocks.
    receive_timeout: AtomicU64,
    send_timeout: AtomicU64,
}

impl InetSocket {
    pub fn new(domain: u16, kind: i32, protocol: i32) -> Result<Arc<InetSocket>> {
        if !matches!(domain, family::INET | family::INET6) {
            return Err(EAFNOSUPPORT);
        }
        if !matches!(kind, kind::STREAM | kind::DGRAM | kind::RAW) {
            return Err(ESOCKTNOSUPPORT);
        }
        let fd = host::socket(i32::from(domain), kind, protocol)?;
        Ok(Self::from_fd(fd, domain, kind))
    }

    fn from_fd(fd: HostFd, family: u16, kind: i32) -> Arc<InetSocket> {
        Arc::new(InetSocket {
            fd,
            family,
            kind,
            receive_timeout: AtomicU64::new(0),
            send_timeout: AtomicU64::new(0),
        })
    }

    /// Sleeps until the host socket is ready for `events`.
    fn wait(&self, thread: &Arc<Thread>, events: Events, deadline: Option<u64>) -> Result<()> {
        loop {
            let seen = thread.event_count();
            if thread.interrupted() {
                return Err(ERESTARTSYS);
            }
            if deadline.is_some_and(|deadline| platform().monotonic() >= deadline) {
                return Err(ETIMEDOUT);
            }
            let mut entry = [PollFd {
                fd: self.fd.number(),
                events: events.bits() as u16,
                revents: 0,
            }];
            if host::poll(&mut entry, deadline, thread, seen)? > 0 {
                return Ok(());
            }
        }
    }

    fn deadline(timeout: &AtomicU64) -> Option<u64> {
        match timeout.load(Ordering::Relaxed) {
            0 => None,
            timeout => Some(platform().monotonic().saturating_add(timeout)),
        }
    }

    /// SO_ERROR: reads and clears the pending error.
    fn take_error(&self) -> Result<()> {
        let value = host::get_option(&self.fd, SOL_SOCKET, SO_ERROR, 4)?;
        match value[..] {
            [0, 0, 0, 0] => Ok(()),
            [a, b, c, d] => {
                let code = i32::from_le_bytes([a, b, c, d]);
                Err(crate::Errno::from_host(-i64::from(code)))
            }
            _ => Err(crate::errno::EIO),
        }
    }
}

/// The timeout's end is EAGAIN for send and receive (socket(7)).
fn timed_out(error: crate::Errno) -> crate::Errno {
    if error == ETIMEDOUT { EAGAIN } else { error }
}

impl Socket for InetSocket {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn family(&self) -> u16 {
        self.family
    }

    fn kind(&self) -> i32 {
        self.kind
    }

    fn bind(&self, _thread: &Arc<Thread>, address: &[u8]) -> Result<()> {
        host::bind(&self.fd, address)
    }

    fn listen(&self, _thread: &Arc<Thread>, backlog: i32) -> Result<()> {
        host::listen(&self.fd, backlog)
    }

    fn accept(
        &self,
        thread: &Arc<Thread>,
        nonblocking: bool,
    ) -> Result<(Arc<dyn Socket>, Vec<u8>)> {
        let deadline = Self::deadline(&self.receive_timeout);
        loop {
            match host::accept(&self.fd) {
                Ok((fd, address)) => {
                    return Ok((Self::from_fd(fd, self.family, self.kind), address));
                }
                Err(error) if error == EAGAIN && !nonblocking => {
                    self.wait(thread, Events::IN, deadline).map_err(timed_out)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn connect(&self, thread: &Arc<Thread>, address: &[u8], nonblocking: bool) -> Result<()> {
        match host::connect(&self.fd, address) {
            Err(error) if error == EINPROGRESS && !nonblocking => {}
            // An interrupted connect that is called again goes on waiting.
            Err(error) if error == EALREADY && !nonblocking => {}
            other => return other,
        }
        let deadline = Self::deadline(&self.send_timeout);
        self.wait(thread, Events::OUT, deadline).map_err(|error| {
            if error == ETIMEDOUT {
                EINPROGRESS
            } else {
                error
            }
        })?;
        match self.take_error() {
            Err(error) if error == EISCONN => Ok(()),
            other => other,
        }
    }

    fn send(
        &self,
        thread: &Arc<Thread>,
        message: Outgoing<'_, '_>,
        nonblocking: bool,
    ) -> Result<usize> {
        let deadline = Self::deadline(&self.send_timeout);
        let is_stream = self.kind == kind::STREAM;
        let flags = message.flags & !msg::DONTWAIT;
        loop {
            let sent = host::send(&self.fd, message.data, flags, message.address, is_stream);
            match sent {
                // A blocking stream sends everything.
                Ok(_) if is_stream && !nonblocking && !message.data.is_empty() => {}
                Ok(0) => return Ok(message.data.done()),
                Ok(_) => return Ok(message.data.done()),
                Err(error) if error == EAGAIN && !nonblocking => {
                    if let Err(error) = self.wait(thread, Events::OUT, deadline) {
                        match message.data.done() {
                            0 => return Err(timed_out(error)),
                            done => return Ok(done),
                        }
                    }
                }
                Err(_) if message.data.done() > 0 => return Ok(message.data.done()),
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(
        &self,
        thread: &Arc<Thread>,
        message: Incoming<'_, '_>,
        nonblocking: bool,
    ) -> Result<Received> {
        let deadline = Self::deadline(&self.receive_timeout);
        let flags = message.flags & !(msg::DONTWAIT | msg::WAITALL | msg::CMSG_CLOEXEC);
        let wait_all = message.flags & msg::WAITALL != 0 && self.kind == kind::STREAM;
        let mut total = 0;
        loop {
            let seen = thread.event_count();
            // Without a timeout the host can wait for us, which saves two exits.
            let wait = (!nonblocking && deadline.is_none()).then_some((&**thread, seen));
            let received = host::receive(&self.fd, message.data, flags, message.want_address, wait);
            match received {
                Ok(received) => {
                    total += received.len;
                    if received.len > 0 && wait_all && !message.data.is_empty() {
                        continue;
                    }
                    return Ok(Received {
                        len: total,
                        address: received.address,
                        flags: received.flags,
                        ..Received::default()
                    });
                }
                Err(error) if (error == EAGAIN || error == crate::errno::EINTR) && !nonblocking => {
                    let waited = if thread.interrupted() {
                        Err(ERESTARTSYS)
                    } else if deadline.is_some() {
                        self.wait(thread, Events::IN, deadline).map_err(timed_out)
                    } else {
                        Ok(())
                    };
                    if let Err(error) = waited {
                        if total > 0 {
                            return Ok(Received {
                                len: total,
                                ..Received::default()
                            });
                        }
                        return Err(error);
                    }
                }
                Err(_) if total > 0 => {
                    return Ok(Received {
                        len: total,
                        ..Received::default()
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        host::shutdown(&self.fd, how)
    }

    fn own_name(&self) -> Result<Vec<u8>> {
        host::own_name(&self.fd)
    }

    fn peer_name(&self) -> Result<Vec<u8>> {
        host::peer_name(&self.fd)
    }

    fn get_option(&self, level: i32, name: i32, max: usize) -> Result<Vec<u8>> {
        match (level, name) {
            (SOL_SOCKET, SO_TYPE) => Ok(self.kind.to_le_bytes().to_vec()),
            (SOL_SOCKET, SO_RCVTIMEO) => Ok(timeval(&self.receive_timeout)),
            (SOL_SOCKET, SO_SNDTIMEO) => Ok(timeval(&self.send_timeout)),
            _ => host::get_option(&self.fd, level, name, max),
        }
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        match (level, name) {
            (SOL_SOCKET, SO_RCVTIMEO) => set_timeval(&self.receive_timeout, value),
            (SOL_SOCKET, SO_SNDTIMEO) => set_timeval(&self.send_timeout, value),
            _ => host::set_option(&self.fd, level, name, value),
        }
    }

    fn ioctl(&self, request: u32, value: &mut [u8]) -> Result<usize> {
        host::ioctl(&self.fd, request, value)
    }

    fn poll(&self, _table: Option<&mut PollTable>, _interest: Events) -> Events {
        // Only the host knows.
        Events::empty()
    }

    fn host_fd(&self) -> Option<i32> {
        Some(self.fd.number())
    }
}

/// `struct timeval` of a timeout.
fn timeval(timeout: &AtomicU64) -> Vec<u8> {
    let ns = timeout.load(Ordering::Relaxed);
    let mut bytes = (ns / 1_000_000_000).to_le_bytes().to_vec();
    bytes.extend_from_slice(&(ns % 1_000_000_000 / 1000).to_le_bytes());
    bytes
}

fn set_timeval(timeout: &AtomicU64, value: &[u8]) -> Result<()> {
    let (Some(seconds), Some(micros)) = (word(value, 0), word(value, 8)) else {
        return Err(EINVAL);
    };
    if !(0..1_000_000).contains(&micros) {
        return Err(crate::errno::EDOM);
    }
    let ns = u64::try_from(seconds)
        .unwrap_or(0)
        .saturating_mul(1_000_000_000);
    timeout.store(ns.saturating_add(micros as u64 * 1000), Ordering::Relaxed);
    Ok(())
}

fn word(value: &[u8], at: usize) -> Option<i64> {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(value.get(at..at + 8)?);
    Some(i64::from_le_bytes(bytes))
}
