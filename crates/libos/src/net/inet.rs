//! TCP and UDP, IPv4 and IPv6, on host sockets.
//!
//! The host socket is always non-blocking; a blocking call waits on the host for readiness and
//! tries again. What the host says about addresses and options is passed on as its word: the
//! network is untrusted anyway.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use bulla_abi::hostcall::PollFd;

use super::host::{self, HostFd};
use super::listing::{self, Description, End};
use super::timeout::{Timeouts, wait_error};
use super::{Incoming, Outgoing, Received, Socket, family, interfaces, kind, msg};
use crate::errno::{
    EAFNOSUPPORT, EAGAIN, EALREADY, EINPROGRESS, EINTR, EISCONN, EOPNOTSUPP, ERESTARTSYS,
    ESOCKTNOSUPPORT, ETIMEDOUT,
};
use crate::platform::platform;
use crate::sync::wait::{Events, PollTable};
use crate::{Result, Thread};

const SOL_SOCKET: i32 = 1;
const SO_TYPE: i32 = 3;

/// One TCP or UDP socket.
pub struct InetSocket {
    fd: HostFd,
    family: u16,
    kind: i32,
    timeouts: Timeouts,
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
            timeouts: Timeouts::default(),
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
        let deadline = self.timeouts.receive_deadline();
        loop {
            match host::accept(&self.fd) {
                Ok((fd, address)) => {
                    let socket = Self::from_fd(fd, self.family, self.kind);
                    socket.timeouts.inherit(&self.timeouts);
                    return Ok((socket, address));
                }
                Err(error) if error == EAGAIN && !nonblocking => {
                    self.wait(thread, Events::IN, deadline)
                        .map_err(|error| wait_error(error, deadline))?;
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
        let deadline = self.timeouts.send_deadline();
        self.wait(thread, Events::OUT, deadline).map_err(|error| {
            // Unlike elsewhere, the end of the timeout is EINPROGRESS (socket(7)).
            if error == ETIMEDOUT {
                EINPROGRESS
            } else {
                wait_error(error, deadline)
            }
        })?;
        // Asking again tells the host that the answer was seen: SO_ERROR would leave its socket
        // between connecting and connected.
        match host::connect(&self.fd, address) {
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
        // Descriptors travel on UNIX sockets only: here they are dropped, as on Linux.
        let deadline = self.timeouts.send_deadline();
        let is_stream = self.kind == kind::STREAM;
        let flags = message.flags & !(msg::DONTWAIT | msg::ZEROCOPY);
        loop {
            let control = &message.ancillary.other;
            match host::send(
                &self.fd,
                message.data,
                flags,
                message.address,
                control,
                is_stream,
            ) {
                // A stream takes all that the host has room for: programs that wait for edges
                // conclude from a short count that the socket is full.
                Ok(_) if is_stream && !message.data.is_empty() => {}
                Ok(_) => return Ok(message.data.done()),
                Err(error) if error == EAGAIN && !nonblocking => {
                    if let Err(error) = self.wait(thread, Events::OUT, deadline) {
                        return match message.data.done() {
                            0 => Err(wait_error(error, deadline)),
                            done => Ok(done),
                        };
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
        let nonblocking = nonblocking || message.flags & msg::ERRQUEUE != 0;
        let deadline = self.timeouts.receive_deadline();
        let flags = message.flags & !(msg::DONTWAIT | msg::WAITALL | msg::CMSG_CLOEXEC);
        let is_plain_stream =
            self.kind == kind::STREAM && flags & (msg::PEEK | msg::OOB | msg::ERRQUEUE) == 0;
        let wait_all = message.flags & msg::WAITALL != 0 && is_plain_stream;
        let mut total = Received::default();
        loop {
            let seen = thread.event_count();
            // Without a timeout the host can wait for us, which saves two exits.
            let must_wait = !nonblocking && (total.len == 0 || wait_all);
            let wait = (must_wait && deadline.is_none()).then_some((thread, seen));
            let asked = message.data.remaining();
            let wanted = host::Wanted {
                address: message.want_address,
                control: message.control,
            };
            let is_stream = self.kind == kind::STREAM;
            match host::receive(&self.fd, message.data, flags, is_stream, wanted, wait) {
                Ok(received) => {
                    let end = received.len == 0;
                    total.len += received.len;
                    total.flags = received.flags;
                    total.address = received.address;
                    total.ancillary.other = received.control;
                    // More may be there than one transfer carries: a short count would tell
                    // programs that wait for edges that the socket is empty.
                    let cut = received.len == host::TRANSFER_MAX && asked > received.len;
                    let go_on = is_plain_stream && !end && !message.data.is_empty();
                    if go_on && (cut || wait_all) {
                        continue;
                    }
                    return Ok(total);
                }
                Err(error) if must_wait && (error == EAGAIN || error == EINTR) => {
                    let waited = if thread.interrupted() {
                        Err(ERESTARTSYS)
                    } else if deadline.is_some() {
                        self.wait(thread, Events::IN, deadline)
                    } else {
                        Ok(())
                    };
                    match waited {
                        Err(_) if total.len > 0 => return Ok(total),
                        Err(error) => return Err(wait_error(error, deadline)),
                        Ok(()) => {}
                    }
                }
                Err(_) if total.len > 0 => return Ok(total),
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
        if level == SOL_SOCKET {
            if name == SO_TYPE {
                return Ok(self.kind.to_le_bytes().to_vec());
            }
            if let Some(value) = self.timeouts.get(name) {
                return Ok(value);
            }
        }
        const LEVELS: [i32; 5] = [SOL_SOCKET, 0, 6, 17, 41];
        if self.family == family::INET && !LEVELS.contains(&level) {
            return Err(EOPNOTSUPP.because("unknown level"));
        }
        host::get_option(&self.fd, level, name, max)
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        if level == SOL_SOCKET
            && let Some(result) = self.timeouts.set(name, value)
        {
            return result;
        }
        host::set_option(&self.fd, level, name, value)
    }

    fn ioctl(&self, request: u32, value: &mut [u8]) -> Result<usize> {
        host::ioctl(&self.fd, request, value)
    }

    fn poll(&self, _table: Option<&mut PollTable>, _interest: Events) -> Events {
        // Only the host knows.
        Events::empty()
    }

    fn watch_urgent(&self) {
        const FIOSETOWN: u32 = 0x8901;
        // Where the host refuses there are no signals.
        let _ = host::ioctl(&self.fd, FIOSETOWN, &mut [0; 4]);
    }

    fn has_host_urgent(&self) -> bool {
        self.kind == kind::STREAM && host::is_urgent(&self.fd)
    }

    fn describe(&self) -> Option<Description> {
        const SO_PROTOCOL: i32 = 38;
        const IPPROTO_TCP: i32 = 6;
        const TCP_INFO: i32 = 11;
        /// Of `struct tcp_info`: the state, how many wait to be accepted and how many may.
        const STATE: usize = 0;
        const UNACKED: usize = 24;
        const SACKED: usize = 28;
        const IPPROTO_IPV6: i32 = 41;
        const IPV6_V6ONLY: i32 = 26;
        const FIONREAD: u32 = 0x541b;
        const TIOCOUTQ: u32 = 0x5411;
        let option = |level, name, most| host::get_option(&self.fd, level, name, most);
        let number = |bytes: Vec<u8>| interfaces::message::u32_at(&bytes, 0);
        let queue = |request| {
            let mut value = [0; 4];
            let asked = host::ioctl(&self.fd, request, &mut value);
            asked.map_or(0, |_| u32::from_le_bytes(value))
        };
        let local = host::own_name(&self.fd).map_or(End::default(), |name| End::parse(&name));
        let peer = host::peer_name(&self.fd);
        let remote = peer
            .as_ref()
            .map_or(End::default(), |name| End::parse(name));
        let protocol = option(SOL_SOCKET, SO_PROTOCOL, 4).ok().and_then(number);
        let info = match self.kind {
            kind::STREAM => option(IPPROTO_TCP, TCP_INFO, 256).unwrap_or_default(),
            _ => Vec::new(),
        };
        let state = match info.get(STATE) {
            // The states of tcp(7) are 1 to 12.
            Some(state) => (*state).clamp(listing::ESTABLISHED, 12),
            None if peer.is_ok() => listing::ESTABLISHED,
            None => listing::CLOSE,
        };
        let of_info = |at| interfaces::message::u32_at(&info, at).unwrap_or(0);
        let (receive_queue, send_queue) = match state {
            listing::LISTEN => (of_info(UNACKED), of_info(SACKED)),
            _ => (queue(FIONREAD), queue(TIOCOUTQ)),
        };
        let is_v6_only = self.family == family::INET6
            && option(IPPROTO_IPV6, IPV6_V6ONLY, 4).ok().and_then(number) == Some(1);
        Some(Description::Inet(listing::Inet {
            family: self.family,
            protocol: protocol.unwrap_or(0) as u8,
            state,
            local,
            remote,
            receive_queue,
            send_queue,
            info,
            is_v6_only,
        }))
    }

    fn host_fd(&self) -> Option<i32> {
        Some(self.fd.number())
    }
}
