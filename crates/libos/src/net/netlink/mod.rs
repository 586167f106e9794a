//! Netlink sockets: NETLINK_ROUTE ([`route`]) and NETLINK_SOCK_DIAG ([`diag`]).
//!
//! A request is answered while it is sent; the answers wait in the socket, cut into datagrams as
//! Linux cuts them, until the program reads them. Nothing is told of later changes: a member of a
//! multicast group hears nothing.

mod diag;
mod route;

use alloc::collections::{BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use super::interfaces::message::{HEADER, Header, messages, put_message};
use super::listing::Description;
use super::timeout::{Timeouts, wait_error};
use super::{Incoming, Outgoing, Received, Socket, family, kind, msg};
use crate::errno::{
    EADDRINUSE, EAGAIN, EINVAL, EMSGSIZE, ENOBUFS, ENODATA, ENOPROTOOPT, ENOTTY, EOPNOTSUPP, EPERM,
    EPROTONOSUPPORT, ESOCKTNOSUPPORT,
};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, WaitQueue, block_on};
use crate::{Errno, Result, Thread};

const NETLINK_ROUTE: i32 = 0;
const NETLINK_SOCK_DIAG: i32 = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Types below are netlink's own.
const NLMSG_MIN_TYPE: u16 = 0x10;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_MULTI: u16 = 2;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// In an answer: the message that it is about is not repeated whole.
const NLM_F_CAPPED: u16 = 0x100;
/// Bytes of a datagram of a list: what fits into the page that glibc reads into (NLMSG_GOODSIZE).
const DATAGRAM: usize = 3776;
/// Longest request (the default of SO_SNDBUF).
const REQUEST_MAX: usize = 212_992 - 32;
/// Most bytes of answers that wait in one socket, and in all.
const WAITING_MAX: usize = 8 << 20;
const ALL_WAITING_MAX: usize = 64 << 20;

const SOL_SOCKET: i32 = 1;
const SOL_NETLINK: i32 = 270;
/// Bytes of a `struct sockaddr_nl`.
const ADDRESS: usize = 12;

/// Bytes of answers that wait in all sockets.
static WAITING: AtomicUsize = AtomicUsize::new(0);
/// Ports in use, with the protocol.
static PORTS: SpinLock<BTreeSet<(i32, u32)>> = SpinLock::new(BTreeSet::new());

/// What a program asks for.
struct Request<'a> {
    header: Header,
    body: &'a [u8],
    /// NETLINK_GET_STRICT_CHK: what the request names is to be filtered by.
    is_strict: bool,
}

/// What it gets: the one message, or a list.
enum Answer {
    One(u16, Vec<u8>),
    List(Vec<(u16, Vec<u8>)>),
    /// Nothing but the acknowledgement, where one is wanted.
    Nothing,
}

struct Waiting {
    datagrams: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Something was lost: the next receive says ENOBUFS.
    is_overrun: bool,
}

/// A netlink socket.
pub struct NetlinkSocket {
    kind: i32,
    protocol: i32,
    waiting: SpinLock<Waiting>,
    queue: Arc<WaitQueue>,
    /// 0: none yet.
    port: AtomicU32,
    groups: AtomicU32,
    is_strict: AtomicBool,
    is_capped: AtomicBool,
    buffers: [AtomicU32; 2],
    timeouts: Timeouts,
}

impl NetlinkSocket {
    pub fn create(kind: i32, protocol: i32) -> Result<Arc<dyn Socket>> {
        if !matches!(kind, kind::RAW | kind::DGRAM) {
            return Err(ESOCKTNOSUPPORT);
        }
        if !matches!(protocol, NETLINK_ROUTE | NETLINK_SOCK_DIAG) {
            return Err(EPROTONOSUPPORT);
        }
        Ok(Arc::new(NetlinkSocket {
            kind,
            protocol,
            waiting: SpinLock::new(Waiting {
                datagrams: VecDeque::new(),
                bytes: 0,
                is_overrun: false,
            }),
            queue: WaitQueue::new(),
            port: AtomicU32::new(0),
            groups: AtomicU32::new(0),
            is_strict: AtomicBool::new(false),
            is_capped: AtomicBool::new(false),
            buffers: [AtomicU32::new(212_992), AtomicU32::new(212_992)],
            timeouts: Timeouts::default(),
        }))
    }

    /// A message from the kernel itself.
    pub fn deliver(&self, message: Vec<u8>) {
        let mut waiting = self.waiting.lock();
        let len = message.len();
        if waiting.bytes + len > WAITING_MAX
            || WAITING.fetch_add(len, Ordering::Relaxed) + len > ALL_WAITING_MAX
        {
            if waiting.bytes + len <= WAITING_MAX {
                WAITING.fetch_sub(len, Ordering::Relaxed);
            }
            waiting.is_overrun = true;
        } else {
            waiting.bytes += len;
            waiting.datagrams.push_back(message);
        }
        drop(waiting);
        self.queue.wake(Events::IN);
    }

    fn take(&self, peek: bool) -> Option<Result<Vec<u8>>> {
        let mut waiting = self.waiting.lock();
        if core::mem::take(&mut waiting.is_overrun) {
            return Some(Err(ENOBUFS));
        }
        if peek {
            return waiting.datagrams.front().cloned().map(Ok);
        }
        let message = waiting.datagrams.pop_front()?;
        waiting.bytes -= message.len();
        WAITING.fetch_sub(message.len(), Ordering::Relaxed);
        Some(Ok(message))
    }

    /// Gives the socket a port: `wanted`, or the process's id, or when another has that any other.
    fn take_port(&self, thread: &Arc<Thread>, wanted: u32) -> Result<()> {
        let mut ports = PORTS.lock();
        let mut port = if wanted == 0 {
            thread.process.pid
        } else {
            wanted
        };
        if !ports.insert((self.protocol, port)) {
            if wanted != 0 {
                return Err(EADDRINUSE);
            }
            // As Linux does: negative ones, downwards.
            port = (-4097i32) as u32;
            while !ports.insert((self.protocol, port)) {
                port = port.wrapping_sub(1);
            }
        }
        self.port.store(port, Ordering::Relaxed);
        Ok(())
    }

    fn bind_if_needed(&self, thread: &Arc<Thread>) -> Result<()> {
        match self.port.load(Ordering::Relaxed) {
            0 => self.take_port(thread, 0),
            _ => Ok(()),
        }
    }

    /// Answers each request of a datagram.
    fn serve(&self, datagram: &[u8]) {
        let port = self.port.load(Ordering::Relaxed);
        for (header, body) in messages(datagram) {
            let is_request = header.flags & NLM_F_REQUEST != 0;
            let request = Request {
                header,
                body,
                is_strict: self.is_strict.load(Ordering::Relaxed),
            };
            let answer = if !is_request || header.kind < NLMSG_MIN_TYPE {
                Ok(Answer::Nothing)
            } else if self.protocol == NETLINK_ROUTE {
                route::answer(&request)
            } else {
                diag::answer(&request)
            };
            let mut is_acknowledged = header.flags & NLM_F_ACK != 0;
            let mut error = None;
            match answer {
                Ok(Answer::One(kind, body)) => {
                    let mut out = Vec::new();
                    put_message(&mut out, self.header_to(&header, kind, 0, port), &body);
                    self.deliver(out);
                }
                Ok(Answer::List(list)) => {
                    self.deliver_list(&header, port, &list);
                    // Its end is the acknowledgement.
                    is_acknowledged = false;
                }
                Ok(Answer::Nothing) => {}
                Err(reason) => error = Some(reason),
            }
            if is_acknowledged || error.is_some() {
                self.acknowledge(&header, body, port, error);
            }
        }
    }

    fn header_to(&self, request: &Header, kind: u16, flags: u16, port: u32) -> Header {
        Header {
            kind,
            flags,
            sequence: request.sequence,
            port,
        }
    }

    /// A list in datagrams that fit into a page, unless one message alone is longer.
    fn deliver_list(&self, request: &Header, port: u32, list: &[(u16, Vec<u8>)]) {
        let mut out = Vec::new();
        for (kind, body) in list {
            if !out.is_empty() && out.len() + HEADER + body.len() > DATAGRAM {
                self.deliver(core::mem::take(&mut out));
            }
            let header = self.header_to(request, *kind, NLM_F_MULTI, port);
            put_message(&mut out, header, body);
        }
        if !out.is_empty() && out.len() + HEADER + 4 > DATAGRAM {
            self.deliver(core::mem::take(&mut out));
        }
        let header = self.header_to(request, NLMSG_DONE, NLM_F_MULTI, port);
        put_message(&mut out, header, &0u32.to_le_bytes());
        self.deliver(out);
    }

    /// `struct nlmsgerr`: the error's number, and the message; of one that went well, or where the
    /// program wants it so (NETLINK_CAP_ACK), only its header.
    fn acknowledge(&self, request: &Header, body: &[u8], port: u32, error: Option<Errno>) {
        let is_capped = error.is_none() || self.is_capped.load(Ordering::Relaxed);
        let code = error.map_or(0, |error| -error.code());
        let mut answer = code.to_le_bytes().to_vec();
        let mut repeated = Vec::new();
        put_message(&mut repeated, *request, body);
        if is_capped {
            repeated.truncate(HEADER);
        }
        answer.extend_from_slice(&repeated);
        let flags = if is_capped { NLM_F_CAPPED } else { 0 };
        let mut out = Vec::new();
        let header = self.header_to(request, NLMSG_ERROR, flags, port);
        put_message(&mut out, header, &answer);
        self.deliver(out);
    }
}

impl Drop for NetlinkSocket {
    fn drop(&mut self) {
        let port = self.port.load(Ordering::Relaxed);
        if port != 0 {
            PORTS.lock().remove(&(self.protocol, port));
        }
        WAITING.fetch_sub(self.waiting.lock().bytes, Ordering::Relaxed);
    }
}

/// `struct sockaddr_nl`: port and groups; EINVAL.
fn parse_address(address: &[u8]) -> Result<(u32, u32)> {
    let address: &[u8; ADDRESS] = match address.first_chunk() {
        Some(address) => address,
        None => return Err(EINVAL),
    };
    if super::address_family(address)? != family::NETLINK {
        return Err(EINVAL);
    }
    let word = |at: usize| {
        u32::from_le_bytes([
            address[at],
            address[at + 1],
            address[at + 2],
            address[at + 3],
        ])
    };
    Ok((word(4), word(8)))
}

fn make_address(port: u32, groups: u32) -> Vec<u8> {
    let mut address = vec![family::NETLINK as u8, 0, 0, 0];
    address.extend_from_slice(&port.to_le_bytes());
    address.extend_from_slice(&groups.to_le_bytes());
    address
}

fn int(value: &[u8]) -> Result<u32> {
    match value {
        [a, b, c, d, ..] => Ok(u32::from_le_bytes([*a, *b, *c, *d])),
        _ => Err(EINVAL),
    }
}

impl Socket for NetlinkSocket {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn family(&self) -> u16 {
        family::NETLINK
    }

    fn kind(&self) -> i32 {
        self.kind
    }

    fn bind(&self, thread: &Arc<Thread>, address: &[u8]) -> Result<()> {
        let (port, groups) = parse_address(address)?;
        match self.port.load(Ordering::Relaxed) {
            0 => self.take_port(thread, port)?,
            bound if bound != port => return Err(EINVAL.because("bound already")),
            _ => {}
        }
        self.groups.store(groups, Ordering::Relaxed);
        Ok(())
    }

    fn listen(&self, _thread: &Arc<Thread>, _backlog: i32) -> Result<()> {
        Err(EOPNOTSUPP)
    }

    fn accept(&self, _: &Arc<Thread>, _: bool) -> Result<(Arc<dyn Socket>, Vec<u8>)> {
        Err(EOPNOTSUPP)
    }

    fn connect(&self, thread: &Arc<Thread>, address: &[u8], _: bool) -> Result<()> {
        if super::address_family(address)? == family::UNSPEC {
            return Ok(());
        }
        let (port, groups) = parse_address(address)?;
        if port != 0 || groups != 0 {
            return Err(EPERM.because("only the kernel can be spoken to"));
        }
        self.bind_if_needed(thread)
    }

    fn send(&self, thread: &Arc<Thread>, message: Outgoing<'_, '_>, _: bool) -> Result<usize> {
        if message.flags & msg::OOB != 0 {
            return Err(EOPNOTSUPP);
        }
        if let Some(address) = message.address {
            let (port, groups) = parse_address(address)?;
            if port != 0 || groups != 0 {
                return Err(EPERM.because("only the kernel can be spoken to"));
            }
        }
        self.bind_if_needed(thread)?;
        if message.data.is_empty() {
            return Err(ENODATA);
        }
        if message.data.remaining() > REQUEST_MAX {
            return Err(EMSGSIZE);
        }
        let mut request = vec![0; message.data.remaining()];
        let len = message.data.take(&mut request)?;
        self.serve(&request[..len]);
        Ok(len)
    }

    fn receive(
        &self,
        thread: &Arc<Thread>,
        message: Incoming<'_, '_>,
        nonblocking: bool,
    ) -> Result<Received> {
        if message.flags & msg::OOB != 0 {
            return Err(EOPNOTSUPP);
        }
        let peek = message.flags & msg::PEEK != 0;
        let answer = if nonblocking {
            self.take(peek).ok_or(EAGAIN)?
        } else {
            let deadline = self.timeouts.receive_deadline();
            block_on(thread, &self.queue, Events::IN, deadline, || {
                self.take(peek)
            })
            .map_err(|error| wait_error(error, deadline))?
        }?;
        let put = message.data.put(&answer)?;
        let is_cut = put < answer.len();
        let whole = message.flags & msg::TRUNC != 0;
        Ok(Received {
            len: if whole { answer.len() } else { put },
            // The kernel's.
            address: make_address(0, 0),
            flags: if is_cut { msg::TRUNC } else { 0 },
            ..Received::default()
        })
    }

    fn shutdown(&self, _how: i32) -> Result<()> {
        Err(EOPNOTSUPP)
    }

    fn own_name(&self) -> Result<Vec<u8>> {
        let port = self.port.load(Ordering::Relaxed);
        Ok(make_address(port, self.groups.load(Ordering::Relaxed)))
    }

    fn peer_name(&self) -> Result<Vec<u8>> {
        Ok(make_address(0, 0))
    }

    fn get_option(&self, level: i32, name: i32, _max: usize) -> Result<Vec<u8>> {
        if level == SOL_SOCKET
            && let Some(value) = self.timeouts.get(name)
        {
            return Ok(value);
        }
        let flag = |is: &AtomicBool| u32::from(is.load(Ordering::Relaxed));
        let value = match (level, name) {
            // SO_SNDBUF, SO_RCVBUF.
            (SOL_SOCKET, 7 | 8) => self.buffers[name as usize - 7].load(Ordering::Relaxed),
            // SO_PROTOCOL.
            (SOL_SOCKET, 38) => self.protocol as u32,
            // SO_REUSEADDR, SO_ERROR and others that say nothing here.
            (SOL_SOCKET, 2 | 4 | 5 | 6 | 9 | 12 | 15 | 16 | 29 | 30) => 0,
            // NETLINK_LIST_MEMBERSHIPS, as far as bind(2) can join groups.
            (SOL_NETLINK, 9) => self.groups.load(Ordering::Relaxed),
            (SOL_NETLINK, 10) => flag(&self.is_capped),
            (SOL_NETLINK, 12) => flag(&self.is_strict),
            // NETLINK_PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, EXT_ACK.
            (SOL_NETLINK, 3 | 4 | 5 | 11) => 0,
            _ => return Err(ENOPROTOOPT),
        };
        Ok(value.to_le_bytes().to_vec())
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        if level == SOL_SOCKET
            && let Some(result) = self.timeouts.set(name, value)
        {
            return result;
        }
        match (level, name) {
            (SOL_SOCKET, 7 | 8) => {
                let wanted = int(value)?.min(212_992) * 2;
                self.buffers[name as usize - 7].store(wanted.max(4608), Ordering::Relaxed);
            }
            // SO_SNDBUFFORCE, SO_RCVBUFFORCE need CAP_NET_ADMIN.
            (SOL_SOCKET, 32 | 33) => return Err(EPERM),
            (SOL_SOCKET, 2 | 5 | 6 | 9 | 12 | 15 | 16) => {
                int(value)?;
            }
            (SOL_NETLINK, 10) => self.is_capped.store(int(value)? != 0, Ordering::Relaxed),
            (SOL_NETLINK, 12) => self.is_strict.store(int(value)? != 0, Ordering::Relaxed),
            // Memberships of groups that never hear anything, and details that no answer has.
            (SOL_NETLINK, 1..=5 | 11) => {
                int(value)?;
            }
            _ => return Err(ENOPROTOOPT),
        }
        Ok(())
    }

    fn ioctl(&self, _request: u32, _value: &mut [u8]) -> Result<usize> {
        Err(ENOTTY)
    }

    fn describe(&self) -> Option<Description> {
        Some(Description::Netlink {
            protocol: self.protocol,
            port: self.port.load(Ordering::Relaxed),
            groups: self.groups.load(Ordering::Relaxed),
            waiting: self.waiting.lock().bytes,
        })
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table {
            table.register(&self.queue, interest);
        }
        let mut events = Events::OUT | Events::WRNORM;
        let waiting = self.waiting.lock();
        if !waiting.datagrams.is_empty() || waiting.is_overrun {
            events |= Events::IN | Events::RDNORM;
        }
        events
    }
}
