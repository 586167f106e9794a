//! The container's sockets as `ss` and `netstat` show them: /proc/net/tcp and its like, and what
//! NETLINK_SOCK_DIAG answers from.
//!
//! All open sockets are in one list, by inode number. State and queues of TCP and UDP are asked of
//! the host when somebody looks, and are its word. Connections that no descriptor stands for any
//! more (TIME_WAIT) are the host's and are not shown.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt::Write;

use super::file::SocketFile;
use super::{family, kind};
use crate::sync::SpinLock;

/// IPPROTO_*.
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// The states of tcp(7) that other sockets use too.
pub const ESTABLISHED: u8 = 1;
pub const CLOSE: u8 = 7;
pub const LISTEN: u8 = 10;

static SOCKETS: SpinLock<BTreeMap<u64, Weak<SocketFile>>> = SpinLock::new(BTreeMap::new());

pub fn add(number: u64, socket: Weak<SocketFile>) {
    SOCKETS.lock().insert(number, socket);
}

pub fn remove(number: u64) {
    SOCKETS.lock().remove(&number);
}

/// The open socket of a number.
pub fn find(number: u64) -> Option<Arc<SocketFile>> {
    SOCKETS.lock().get(&number).and_then(Weak::upgrade)
}

/// The host has urgent data for some socket: SIGURG for those whose it is.
pub fn host_urgent() {
    for file in sockets() {
        if file.is_owned() && file.socket.has_host_urgent() {
            file.urgent();
        }
    }
}

/// All open sockets, in the order in which they were made.
pub fn sockets() -> Vec<Arc<SocketFile>> {
    SOCKETS.lock().values().filter_map(Weak::upgrade).collect()
}

/// What there is to tell about a socket.
pub enum Description {
    Inet(Inet),
    Unix(Unix),
    Netlink {
        protocol: i32,
        port: u32,
        groups: u32,
        waiting: usize,
    },
}

/// Address (16 bytes, of IPv4 the first four) and port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    pub address: [u8; 16],
    pub port: u16,
}

impl End {
    /// From a `struct sockaddr_in` or `sockaddr_in6`; anything else is nowhere.
    pub fn parse(address: &[u8]) -> End {
        let mut end = End::default();
        let port = |bytes: &[u8]| u16::from_be_bytes([bytes[2], bytes[3]]);
        match super::address_family(address) {
            Ok(family::INET) if address.len() >= 8 => {
                end.address[..4].copy_from_slice(&address[4..8]);
                end.port = port(address);
            }
            Ok(family::INET6) if address.len() >= 24 => {
                end.address.copy_from_slice(&address[8..24]);
                end.port = port(address);
            }
            _ => {}
        }
        end
    }

    /// As /proc/net writes it: words of the machine's order, then the port.
    fn hex(&self, of: u16) -> String {
        let words = if of == family::INET { 1 } else { 4 };
        let mut text = String::new();
        for word in self.address.chunks_exact(4).take(words) {
            let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            let _ = write!(text, "{word:08X}");
        }
        let _ = write!(text, ":{:04X}", self.port);
        text
    }
}

/// A socket of the Internet families.
pub struct Inet {
    pub family: u16,
    pub protocol: u8,
    pub state: u8,
    pub local: End,
    pub remote: End,
    /// Bytes that wait to be received, or connections to be accepted.
    pub receive_queue: u32,
    /// Bytes that wait to be sent or acknowledged, or the most connections that may wait.
    pub send_queue: u32,
    /// `struct tcp_info`, of TCP.
    pub info: Vec<u8>,
    pub is_v6_only: bool,
}

/// A UNIX socket.
pub struct Unix {
    pub kind: i32,
    pub state: u8,
    /// As bound: a path, an abstract name that begins with a zero byte, or nothing.
    pub name: Vec<u8>,
    /// The inode number of the other end; 0 for none.
    pub peer: u64,
    pub receive_queue: u32,
    pub send_queue: u32,
    /// Of a pipe's two directions, which are closed: 1 receiving, 2 sending.
    pub shutdown: u8,
    pub references: usize,
}

/// Open sockets of one of the Internet's protocols, without those that Linux has in no table: TCP
/// that neither listens nor is connected, UDP without a port.
pub fn inet(of: u16, protocol: Option<u8>) -> Vec<(Arc<SocketFile>, Inet)> {
    let all = sockets().into_iter().filter(|file| {
        let is_raw = file.socket.kind() == kind::RAW;
        let fits = match protocol {
            Some(TCP) => file.socket.kind() == kind::STREAM,
            Some(_) => file.socket.kind() == kind::DGRAM,
            None => is_raw,
        };
        file.socket.family() == of && fits
    });
    let described = all.filter_map(|file| match file.socket.describe() {
        Some(Description::Inet(inet)) => Some((file, inet)),
        _ => None,
    });
    let is_listed = |inet: &Inet| match protocol {
        Some(TCP) => inet.protocol == TCP && inet.state != CLOSE,
        Some(protocol) => inet.protocol == protocol && inet.local.port != 0,
        None => true,
    };
    described.filter(|(_, inet)| is_listed(inet)).collect()
}

fn table(of: u16, protocol: Option<u8>) -> String {
    let header = match (protocol, of) {
        (Some(TCP), family::INET) => {
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  \
             timeout inode"
        }
        (Some(TCP), _) => {
            "  sl  local_address                         remote_address                        st \
             tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
        }
        (Some(_), family::INET) => {
            "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  \
             timeout inode ref pointer drops"
        }
        (None, family::INET) => {
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  \
             timeout inode ref pointer drops"
        }
        (..) => {
            "  sl  local_address                         remote_address                        st \
             tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops"
        }
    };
    // Linux pads the lines of IPv4's tables.
    let width = match (protocol, of) {
        (Some(TCP), family::INET) => 149,
        (Some(_), family::INET) => 127,
        _ => 0,
    };
    let mut text = format!("{header:<width$}\n");
    for (at, (file, inet)) in inet(of, protocol).into_iter().enumerate() {
        let slot = match (protocol, of) {
            (Some(TCP), _) | (None, _) => format!("{at:4}"),
            _ => format!("{at:5}"),
        };
        // Of a listener /proc/net shows how many wait, and not how many may.
        let send_queue = if inet.state == LISTEN {
            0
        } else {
            inet.send_queue
        };
        let rest = match protocol {
            Some(TCP) => "1 0000000000000000 100 0 0 10 0",
            _ => "2 0000000000000000 0",
        };
        let line = format!(
            "{slot}: {} {} {:02X} {send_queue:08X}:{:08X} 00:00000000 00000000 {:5} {:8} {} {rest}",
            inet.local.hex(of),
            inet.remote.hex(of),
            inet.state,
            inet.receive_queue,
            file.owner.0,
            0,
            file.number(),
        );
        let _ = writeln!(text, "{line:<width$}");
    }
    text
}

pub fn tcp() -> String {
    table(family::INET, Some(TCP))
}

pub fn tcp6() -> String {
    table(family::INET6, Some(TCP))
}

pub fn udp() -> String {
    table(family::INET, Some(UDP))
}

pub fn udp6() -> String {
    table(family::INET6, Some(UDP))
}

pub fn raw() -> String {
    table(family::INET, None)
}

pub fn raw6() -> String {
    table(family::INET6, None)
}

/// UNIX sockets.
pub fn unix() -> Vec<(Arc<SocketFile>, Unix)> {
    let described = sockets().into_iter().filter_map(|file| {
        match (file.socket.family() == family::UNIX).then(|| file.socket.describe()) {
            Some(Some(Description::Unix(unix))) => Some((file, unix)),
            _ => None,
        }
    });
    described.collect()
}

/// A name as text: an abstract one begins with @, and has one for each zero byte.
pub fn name_text(name: &[u8]) -> String {
    let text: Vec<u8> = match name {
        [0, ..] => name
            .iter()
            .map(|&byte| if byte == 0 { b'@' } else { byte })
            .collect(),
        _ => name
            .split(|&byte| byte == 0)
            .next()
            .unwrap_or_default()
            .to_vec(),
    };
    String::from_utf8_lossy(&text).into_owned()
}

/// /proc/net/unix.
pub fn unix_text() -> String {
    const SO_ACCEPTCON: u32 = 0x10000;
    const UNCONNECTED: u8 = 1;
    const CONNECTED: u8 = 3;
    let mut text = String::from("Num       RefCount Protocol Flags    Type St Inode Path\n");
    for (file, unix) in unix() {
        let flags = if unix.state == LISTEN {
            SO_ACCEPTCON
        } else {
            0
        };
        let state = if unix.state == ESTABLISHED {
            CONNECTED
        } else {
            UNCONNECTED
        };
        let _ = write!(
            text,
            "0000000000000000: {:08X} 00000000 {flags:08X} {:04X} {state:02X} {:5}",
            unix.references,
            unix.kind,
            file.number(),
        );
        if !unix.name.is_empty() {
            let _ = write!(text, " {}", name_text(&unix.name));
        }
        text.push('\n');
    }
    text
}

/// /proc/net/netlink.
pub fn netlink_text() -> String {
    let mut text = String::from(
        "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n",
    );
    for file in sockets() {
        if file.socket.family() != family::NETLINK {
            continue;
        }
        if let Some(Description::Netlink {
            protocol,
            port,
            groups,
            waiting,
        }) = file.socket.describe()
        {
            let _ = writeln!(
                text,
                "0000000000000000 {protocol:<3} {port:<10} {groups:08x} {waiting:<8} {:<8} {:<5} \
                 {:<8} {:<8} {:<8}",
                0,
                0,
                2,
                0,
                file.number(),
            );
        }
    }
    text
}

/// How many sockets of a family are there of each type: stream, datagram, raw.
fn counts(of: u16) -> [usize; 3] {
    let mut counts = [0; 3];
    for file in sockets() {
        if file.socket.family() == of {
            match file.socket.kind() {
                kind::STREAM => counts[0] += 1,
                kind::DGRAM => counts[1] += 1,
                kind::RAW => counts[2] += 1,
                _ => {}
            }
        }
    }
    counts
}

/// /proc/net/sockstat.
pub fn statistics() -> String {
    let [tcp, udp, raw] = counts(family::INET);
    let all_tcp = tcp + counts(family::INET6)[0];
    let all = SOCKETS.lock().len();
    format!(
        "sockets: used {all}\nTCP: inuse {tcp} orphan 0 tw 0 alloc {all_tcp} mem 0\n\
         UDP: inuse {udp} mem 0\nUDPLITE: inuse 0\nRAW: inuse {raw}\nFRAG: inuse 0 memory 0\n"
    )
}

/// /proc/net/sockstat6.
pub fn statistics6() -> String {
    let [tcp, udp, raw] = counts(family::INET6);
    format!(
        "TCP6: inuse {tcp}\nUDP6: inuse {udp}\nUDPLITE6: inuse 0\nRAW6: inuse {raw}\n\
         FRAG6: inuse 0 memory 0\n"
    )
}
