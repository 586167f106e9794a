//! Netlink, as far as getifaddrs(3) and `ip addr` need it: one loopback interface.
//!
//! The container's other interfaces are the host's word and its programs use them through host
//! sockets; names and addresses of those are not reported.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use super::{Incoming, Outgoing, Received, Socket, family, kind, msg};
use crate::errno::{EAGAIN, EOPNOTSUPP, EPROTONOSUPPORT, ESOCKTNOSUPPORT};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, WaitQueue, block_on};
use crate::{Result, Thread};

const NETLINK_ROUTE: i32 = 0;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_MULTI: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const HEADER: usize = 16;
/// Most answers that may wait: a program that never reads is told nothing more.
const QUEUE_MAX: usize = 64;

/// A NETLINK_ROUTE socket.
pub struct NetlinkSocket {
    kind: i32,
    answers: SpinLock<VecDeque<Vec<u8>>>,
    queue: Arc<WaitQueue>,
    port: SpinLock<u32>,
}

impl NetlinkSocket {
    pub fn create(kind: i32, protocol: i32) -> Result<Arc<dyn Socket>> {
        if !matches!(kind, kind::RAW | kind::DGRAM) {
            return Err(ESOCKTNOSUPPORT);
        }
        if protocol != NETLINK_ROUTE {
            return Err(EPROTONOSUPPORT);
        }
        Ok(Arc::new(NetlinkSocket {
            kind,
            answers: SpinLock::new(VecDeque::new()),
            queue: WaitQueue::new(),
            port: SpinLock::new(0),
        }))
    }

    /// A message from the kernel itself.
    pub fn deliver(&self, message: Vec<u8>) {
        let mut answers = self.answers.lock();
        if answers.len() < QUEUE_MAX {
            answers.push_back(message);
        }
        drop(answers);
        self.queue.wake(Events::IN);
    }

    fn answer(&self, request: &[u8]) {
        let Some(header) = request.get(..HEADER) else {
            return;
        };
        let kind = u16::from_le_bytes([header[4], header[5]]);
        let sequence = [header[8], header[9], header[10], header[11]];
        let port = self.port.lock().to_le_bytes();
        let mut out = Vec::new();
        let done = 0u32.to_le_bytes();
        match kind {
            RTM_GETLINK => {
                message(
                    &mut out,
                    RTM_NEWLINK,
                    NLM_F_MULTI,
                    sequence,
                    port,
                    &loopback_link(),
                );
                message(&mut out, NLMSG_DONE, NLM_F_MULTI, sequence, port, &done);
            }
            RTM_GETADDR => {
                for body in [loopback_v4(), loopback_v6()] {
                    message(&mut out, RTM_NEWADDR, NLM_F_MULTI, sequence, port, &body);
                }
                message(&mut out, NLMSG_DONE, NLM_F_MULTI, sequence, port, &done);
            }
            // Nobody is reached by way of the loopback.
            RTM_GETROUTE | RTM_GETNEIGH => {
                message(&mut out, NLMSG_DONE, NLM_F_MULTI, sequence, port, &done);
            }
            _ => {
                let code = -EOPNOTSUPP.code();
                let mut body = code.to_le_bytes().to_vec();
                body.extend_from_slice(header);
                message(&mut out, NLMSG_ERROR, 0, sequence, port, &body);
            }
        }
        self.deliver(out);
    }
}

fn message(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: [u8; 4],
    port: [u8; 4],
    body: &[u8],
) {
    out.extend_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&sequence);
    out.extend_from_slice(&port);
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// A route attribute: length, type, value.
fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&((4 + value.len()) as u16).to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// `struct ifinfomsg` of lo with IFLA_ADDRESS, IFLA_BROADCAST, IFLA_IFNAME, IFLA_MTU.
fn loopback_link() -> Vec<u8> {
    const ARPHRD_LOOPBACK: u16 = 772;
    // IFF_UP | IFF_LOOPBACK | IFF_RUNNING | IFF_LOWER_UP.
    const FLAGS: u32 = 0x1_0049;
    let mut out = Vec::new();
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&ARPHRD_LOOPBACK.to_le_bytes());
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&FLAGS.to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes());
    attribute(&mut out, 1, &[0; 6]);
    attribute(&mut out, 2, &[0; 6]);
    attribute(&mut out, 3, b"lo\0");
    attribute(&mut out, 4, &65536u32.to_le_bytes());
    out
}

/// `struct ifaddrmsg` with IFA_ADDRESS, IFA_LOCAL, IFA_LABEL.
fn loopback_v4() -> Vec<u8> {
    let mut out = alloc::vec![family::INET as u8, 8, 0x80, 254];
    out.extend_from_slice(&1u32.to_le_bytes());
    attribute(&mut out, 1, &[127, 0, 0, 1]);
    attribute(&mut out, 2, &[127, 0, 0, 1]);
    attribute(&mut out, 3, b"lo\0");
    out
}

fn loopback_v6() -> Vec<u8> {
    let mut out = alloc::vec![family::INET6 as u8, 128, 0x80, 254];
    out.extend_from_slice(&1u32.to_le_bytes());
    let mut address = [0; 16];
    address[15] = 1;
    attribute(&mut out, 1, &address);
    out
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
        let wanted = match address.get(4..8) {
            Some(bytes) => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            None => 0,
        };
        *self.port.lock() = if wanted == 0 {
            thread.process.pid
        } else {
            wanted
        };
        Ok(())
    }

    fn listen(&self, _thread: &Arc<Thread>, _backlog: i32) -> Result<()> {
        Err(EOPNOTSUPP)
    }

    fn accept(&self, _: &Arc<Thread>, _: bool) -> Result<(Arc<dyn Socket>, Vec<u8>)> {
        Err(EOPNOTSUPP)
    }

    fn connect(&self, _: &Arc<Thread>, _: &[u8], _: bool) -> Result<()> {
        Ok(())
    }

    fn send(&self, _: &Arc<Thread>, message: Outgoing<'_, '_>, _: bool) -> Result<usize> {
        let mut request = alloc::vec![0; message.data.remaining().min(64 << 10)];
        let len = message.data.take(&mut request)?;
        self.answer(&request[..len]);
        Ok(len)
    }

    fn receive(
        &self,
        thread: &Arc<Thread>,
        message: Incoming<'_, '_>,
        nonblocking: bool,
    ) -> Result<Received> {
        let peek = message.flags & msg::PEEK != 0;
        let take = || {
            let mut answers = self.answers.lock();
            if peek {
                answers.front().cloned()
            } else {
                answers.pop_front()
            }
        };
        let answer = if nonblocking {
            take().ok_or(EAGAIN)?
        } else {
            block_on(thread, &self.queue, Events::IN, None, take)?
        };
        let put = message.data.put(&answer)?;
        let truncated = put < answer.len();
        let whole = message.flags & msg::TRUNC != 0;
        Ok(Received {
            len: if whole { answer.len() } else { put },
            // struct sockaddr_nl of the kernel: port 0.
            address: alloc::vec![family::NETLINK as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            flags: if truncated { msg::TRUNC } else { 0 },
            ..Received::default()
        })
    }

    fn shutdown(&self, _how: i32) -> Result<()> {
        Err(EOPNOTSUPP)
    }

    fn own_name(&self) -> Result<Vec<u8>> {
        let mut address = alloc::vec![family::NETLINK as u8, 0, 0, 0];
        address.extend_from_slice(&self.port.lock().to_le_bytes());
        address.extend_from_slice(&[0; 4]);
        Ok(address)
    }

    fn peer_name(&self) -> Result<Vec<u8>> {
        Ok(alloc::vec![
            family::NETLINK as u8,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0
        ])
    }

    fn get_option(&self, _level: i32, _name: i32, _max: usize) -> Result<Vec<u8>> {
        Ok(alloc::vec![0; 4])
    }

    fn set_option(&self, _level: i32, _name: i32, _value: &[u8]) -> Result<()> {
        Ok(())
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table {
            table.register(&self.queue, interest);
        }
        let mut events = Events::OUT | Events::WRNORM;
        if !self.answers.lock().is_empty() {
            events |= Events::IN | Events::RDNORM;
        }
        events
    }
}
