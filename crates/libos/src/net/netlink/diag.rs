//! NETLINK_SOCK_DIAG (sock_diag(7)): the container's sockets, for `ss`.

use alloc::vec::Vec;

use super::{Answer, NLM_F_DUMP, Request};
use crate::Result;
use crate::errno::{EINVAL, ENOENT, EOPNOTSUPP};
use crate::net::file::SocketFile;
use crate::net::interfaces::message::{attributes, put_attribute, u32_at};
use crate::net::listing::{self, Inet, LISTEN, TCP, UDP, Unix};
use crate::net::{family, kind};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// IPPROTO_RAW, by which `ss` asks for raw sockets.
const RAW: u8 = 255;
/// Bytes of a `struct inet_diag_req_v2` and a `struct unix_diag_req`.
const INET_REQUEST: usize = 56;
const UNIX_REQUEST: usize = 24;

/// INET_DIAG_REQ_PROTOCOL.
const REQUEST_PROTOCOL: u16 = 3;
/// INET_DIAG_*.
const INFO: u16 = 2;
const SOCKET_MEMORY: u16 = 7;
const V6_ONLY: u16 = 11;

/// UNIX_DIAG_*.
const NAME: u16 = 0;
const PEER: u16 = 2;
const QUEUES: u16 = 4;
const MEMORY: u16 = 5;
const SHUTDOWN: u16 = 6;
const UID: u16 = 7;
/// UDIAG_SHOW_*.
const SHOW_NAME: u32 = 1;
const SHOW_PEER: u32 = 4;
const SHOW_QUEUES: u32 = 0x10;
const SHOW_MEMORY: u32 = 0x20;
const SHOW_UID: u32 = 0x40;

pub fn answer(request: &Request<'_>) -> Result<Answer> {
    if request.header.kind != SOCK_DIAG_BY_FAMILY {
        // The older form is asked for only where this one is unknown.
        return Err(EINVAL);
    }
    if request.header.flags & NLM_F_DUMP == 0 {
        return Err(EOPNOTSUPP.because("one socket by its cookie: only lists are given"));
    }
    let body = request.body;
    let list = match body.first().map(|of| u16::from(*of)) {
        Some(of @ (family::INET | family::INET6)) => inet(of, body)?,
        Some(family::UNIX) => unix(body)?,
        Some(_) => return Err(ENOENT),
        None => return Err(EINVAL),
    };
    let kind = SOCK_DIAG_BY_FAMILY;
    Ok(Answer::List(
        list.into_iter().map(|body| (kind, body)).collect(),
    ))
}

/// The bit of a state in the set that is asked for.
fn is_wanted(states: u32, state: u8) -> bool {
    states & 1u32.checked_shl(u32::from(state)).unwrap_or(0) != 0
}

fn inet(of: u16, body: &[u8]) -> Result<Vec<Vec<u8>>> {
    let asked = body.get(..INET_REQUEST).ok_or(EINVAL)?;
    let (protocol, extensions) = (asked[1], asked[2]);
    let states = u32_at(asked, 4).ok_or(EINVAL)?;
    // A longer number than fits into the header: of MPTCP, which has no sockets here.
    let longer = attributes(&body[INET_REQUEST..])
        .find(|(kind, _)| *kind == REQUEST_PROTOCOL)
        .and_then(|(_, value)| u32_at(value, 0));
    if longer.is_some_and(|longer| longer != u32::from(protocol)) {
        return Err(ENOENT);
    }
    let protocol = match protocol {
        TCP | UDP => Some(protocol),
        RAW => None,
        // Others have no sockets here (UDP-Lite, DCCP, SCTP, MPTCP).
        _ => return Err(ENOENT),
    };
    let all = listing::inet(of, protocol).into_iter();
    let wanted = all.filter(|(_, inet)| is_wanted(states, inet.state));
    Ok(wanted
        .map(|(file, inet)| inet_message(&file, &inet, extensions))
        .collect())
}

/// `struct inet_diag_msg` and its attributes.
fn inet_message(file: &SocketFile, inet: &Inet, extensions: u8) -> Vec<u8> {
    let mut out = Vec::from([inet.family as u8, inet.state, 0, 0]);
    out.extend_from_slice(&inet.local.port.to_be_bytes());
    out.extend_from_slice(&inet.remote.port.to_be_bytes());
    out.extend_from_slice(&inet.local.address);
    out.extend_from_slice(&inet.remote.address);
    // The interface, and the cookie: the inode number.
    out.extend_from_slice(&0u32.to_le_bytes());
    out.extend_from_slice(&file.number().to_le_bytes());
    let words = [
        0,
        inet.receive_queue,
        inet.send_queue,
        file.owner.0,
        file.number() as u32,
    ];
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let is_asked = |kind: u16| extensions & 1u8.checked_shl(u32::from(kind) - 1).unwrap_or(0) != 0;
    if inet.family == family::INET6 {
        put_attribute(&mut out, V6_ONLY, &[u8::from(inet.is_v6_only)]);
    }
    if is_asked(SOCKET_MEMORY) {
        put_attribute(
            &mut out,
            SOCKET_MEMORY,
            &memory(inet.receive_queue, inet.send_queue),
        );
    }
    if is_asked(INFO) && !inet.info.is_empty() {
        put_attribute(&mut out, INFO, &inet.info);
    }
    out
}

/// SK_MEMINFO_*: bytes in and out, and what there is room for.
fn memory(receive: u32, send: u32) -> Vec<u8> {
    const ROOM: u32 = 212_992;
    let words = [receive, ROOM, send, ROOM, 0, 0, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn unix(body: &[u8]) -> Result<Vec<Vec<u8>>> {
    let asked = body.get(..UNIX_REQUEST).ok_or(EINVAL)?;
    let states = u32_at(asked, 4).ok_or(EINVAL)?;
    let show = u32_at(asked, 12).ok_or(EINVAL)?;
    let all = listing::unix().into_iter();
    let wanted = all.filter(|(_, unix)| is_wanted(states, unix.state));
    Ok(wanted
        .map(|(file, unix)| unix_message(&file, &unix, show))
        .collect())
}

/// `struct unix_diag_msg` and its attributes.
fn unix_message(file: &SocketFile, unix: &Unix, show: u32) -> Vec<u8> {
    let mut out = Vec::from([family::UNIX as u8, unix.kind as u8, unix.state, 0]);
    out.extend_from_slice(&(file.number() as u32).to_le_bytes());
    out.extend_from_slice(&file.number().to_le_bytes());
    if show & SHOW_NAME != 0 && !unix.name.is_empty() {
        put_attribute(&mut out, NAME, &unix.name);
    }
    if show & SHOW_PEER != 0 && unix.peer != 0 {
        put_attribute(&mut out, PEER, &(unix.peer as u32).to_le_bytes());
    }
    if show & SHOW_QUEUES != 0 {
        let queues = [unix.receive_queue, unix.send_queue];
        let bytes: Vec<u8> = queues.iter().flat_map(|len| len.to_le_bytes()).collect();
        put_attribute(&mut out, QUEUES, &bytes);
    }
    if show & SHOW_MEMORY != 0 {
        let listens = unix.state == LISTEN;
        let queued = if listens { 0 } else { unix.receive_queue };
        put_attribute(&mut out, MEMORY, &memory(queued, unix.send_queue));
    }
    if show & SHOW_UID != 0 {
        put_attribute(&mut out, UID, &file.owner.0.to_le_bytes());
    }
    put_attribute(&mut out, SHUTDOWN, &[unix.shutdown]);
    debug_assert!(unix.kind != kind::RAW);
    out
}
