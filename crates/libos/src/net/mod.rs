//! Sockets.
//!
//! - [`Socket`]: what an address family implements; [`file::SocketFile`] makes it a file.
//! - [`inet`]: TCP and UDP on host sockets. [`unix`]: UNIX sockets, entirely in the enclave.
//! - [`listing`]: the open sockets, as `ss` and `netstat` see them.
//! - [`interfaces`]: those of the host, its addresses and routes; [`netlink`]: how programs ask for them.
//! - [`host`]: the host calls behind `inet` and behind readiness of host descriptors.

pub mod file;
pub mod host;
pub mod inet;
pub mod interfaces;
pub mod listing;
pub mod netlink;
pub mod timeout;
pub mod unix;

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::errno::{EINVAL, EOPNOTSUPP};
use crate::fs::file::OpenFile;
use crate::sync::wait::{Events, PollTable};
use crate::user::IoBuffer;
use crate::{Result, Thread};

/// Address families.
pub mod family {
    pub const UNSPEC: u16 = 0;
    pub const UNIX: u16 = 1;
    pub const INET: u16 = 2;
    pub const INET6: u16 = 10;
    pub const NETLINK: u16 = 16;
}

/// Socket types, and the flags that socket(2) takes with them.
pub mod kind {
    pub const STREAM: i32 = 1;
    pub const DGRAM: i32 = 2;
    pub const RAW: i32 = 3;
    pub const SEQPACKET: i32 = 5;
    pub const MASK: i32 = 0xf;
    pub const NONBLOCK: i32 = 0o4000;
    pub const CLOEXEC: i32 = 0o2000000;
}

/// Flags of send and recv.
pub mod msg {
    pub const OOB: u32 = 0x1;
    pub const PEEK: u32 = 0x2;
    pub const CTRUNC: u32 = 0x8;
    pub const TRUNC: u32 = 0x20;
    pub const DONTWAIT: u32 = 0x40;
    pub const WAITALL: u32 = 0x100;
    pub const ERRQUEUE: u32 = 0x2000;
    pub const NOSIGNAL: u32 = 0x4000;
    pub const ZEROCOPY: u32 = 0x400_0000;
    pub const CMSG_CLOEXEC: u32 = 0x4000_0000;
}

/// Ancillary data of a message on a UNIX socket.
#[derive(Default)]
pub struct Ancillary {
    /// SCM_RIGHTS.
    pub files: Vec<Arc<OpenFile>>,
    /// SCM_CREDENTIALS: pid, uid, gid.
    pub credentials: Option<(u32, u32, u32)>,
    /// All other control messages, as the program wrote them or is to see them: IP_PKTINFO,
    /// IPV6_HOPLIMIT, timestamps … Only sockets of the host have them.
    pub other: Vec<u8>,
    /// One of `other` is of SOL_SOCKET.
    pub is_unknown: bool,
}

/// A message to send.
pub struct Outgoing<'a, 'b> {
    pub data: &'a mut IoBuffer<'b>,
    pub address: Option<&'a [u8]>,
    pub ancillary: Ancillary,
    pub flags: u32,
}

/// A message to receive.
pub struct Incoming<'a, 'b> {
    pub data: &'a mut IoBuffer<'b>,
    pub flags: u32,
    pub want_address: bool,
    /// Room for control messages.
    pub control: usize,
}

/// What was received.
#[derive(Default)]
pub struct Received {
    /// Bytes received, or with MSG_TRUNC the real length of the datagram.
    pub len: usize,
    pub address: Vec<u8>,
    pub ancillary: Ancillary,
    /// msg_flags.
    pub flags: u32,
}

/// A socket of some family. `nonblocking` is O_NONBLOCK or MSG_DONTWAIT.
pub trait Socket: Send + Sync + core::any::Any {
    fn as_any(&self) -> &dyn core::any::Any;
    fn family(&self) -> u16;
    /// SOCK_STREAM …
    fn kind(&self) -> i32;
    fn bind(&self, thread: &Arc<Thread>, address: &[u8]) -> Result<()>;
    fn listen(&self, thread: &Arc<Thread>, backlog: i32) -> Result<()>;
    fn accept(&self, thread: &Arc<Thread>, nonblocking: bool)
    -> Result<(Arc<dyn Socket>, Vec<u8>)>;
    fn connect(&self, thread: &Arc<Thread>, address: &[u8], nonblocking: bool) -> Result<()>;
    fn send(
        &self,
        thread: &Arc<Thread>,
        message: Outgoing<'_, '_>,
        nonblocking: bool,
    ) -> Result<usize>;
    fn receive(
        &self,
        thread: &Arc<Thread>,
        message: Incoming<'_, '_>,
        nonblocking: bool,
    ) -> Result<Received>;
    fn shutdown(&self, how: i32) -> Result<()>;

    /// The last descriptor is gone. Sockets that others hold on to (their peers) end here.
    fn close(&self) {}

    fn own_name(&self) -> Result<Vec<u8>>;
    fn peer_name(&self) -> Result<Vec<u8>>;

    fn get_option(&self, _level: i32, _name: i32, _max: usize) -> Result<Vec<u8>> {
        Err(crate::errno::ENOPROTOOPT)
    }

    fn set_option(&self, _level: i32, _name: i32, _value: &[u8]) -> Result<()> {
        Err(crate::errno::ENOPROTOOPT)
    }

    /// Interface and queue ioctls (SIOCGIFCONF, SIOCINQ …): argument in and out.
    fn ioctl(&self, _request: u32, _value: &mut [u8]) -> Result<usize> {
        Err(EOPNOTSUPP)
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events;

    /// Somebody wants SIGURG: see to it that urgent data is heard of.
    fn watch_urgent(&self) {}

    /// Whether urgent data is there, for sockets of the host.
    fn has_host_urgent(&self) -> bool {
        false
    }

    /// Its inode number, where the socket needs to know it.
    fn number(&self) -> Option<u64> {
        None
    }

    /// What `ss` shows of it.
    fn describe(&self) -> Option<listing::Description> {
        None
    }

    fn host_fd(&self) -> Option<i32> {
        None
    }
}

/// The family of a socket address; EINVAL when it is too short for one.
pub fn address_family(address: &[u8]) -> Result<u16> {
    match address {
        [low, high, ..] => Ok(u16::from_le_bytes([*low, *high])),
        _ => Err(EINVAL),
    }
}
