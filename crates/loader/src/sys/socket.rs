//! Host sockets and epoll instances.

use super::area::Span;
use super::raw::{Answer, Errno, plain};

const NEW: i32 = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;

pub fn socket(domain: i32, kind: i32, protocol: i32) -> Answer {
    plain!(libc::SYS_socket, domain, kind | NEW, protocol)
}

pub fn bind(fd: i32, address: Span<'_>) -> Answer {
    plain!(libc::SYS_bind, fd, address.pointer(), address.len())
}

pub fn connect(fd: i32, address: Span<'_>) -> Answer {
    plain!(libc::SYS_connect, fd, address.pointer(), address.len())
}

pub fn listen(fd: i32, backlog: i32) -> Answer {
    plain!(libc::SYS_listen, fd, backlog)
}

/// accept4: the new descriptor; the peer's address goes into `address`, its length is returned.
pub fn accept(fd: i32, address: Span<'_>) -> Result<(i32, u32), Errno> {
    let mut len = address.len() as u32;
    let new = plain!(libc::SYS_accept4, fd, address.pointer(), &raw mut len, NEW)?;
    Ok((new as i32, len))
}

/// sendto; never raises SIGPIPE.
pub fn send(
    fd: i32,
    flags: u32,
    data: Span<'_>,
    address: Option<Span<'_>>,
    control: Option<Span<'_>>,
) -> Answer {
    let flags = flags | libc::MSG_NOSIGNAL as u32;
    let (to, to_len) = address.map_or((0, 0), |to| (to.pointer(), to.len()));
    if let Some(control) = control {
        let mut vector = libc::iovec {
            iov_base: data.pointer() as *mut libc::c_void,
            iov_len: data.len(),
        };
        let message = libc::msghdr {
            msg_name: to as *mut libc::c_void,
            msg_namelen: to_len as u32,
            msg_iov: &raw mut vector,
            msg_iovlen: 1,
            msg_control: control.pointer() as *mut libc::c_void,
            msg_controllen: control.len(),
            msg_flags: 0,
        };
        return plain!(libc::SYS_sendmsg, fd, &raw const message, flags);
    }
    plain!(
        libc::SYS_sendto,
        fd,
        data.pointer(),
        data.len(),
        flags,
        to,
        to_len
    )
}

/// What recvmsg told beside the data.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    pub len: u64,
    pub flags: u32,
    pub address_len: u32,
    pub control_len: u32,
}

/// recvmsg; the peer's address goes into `address`, control messages into `control`.
pub fn receive(
    fd: i32,
    flags: u32,
    data: Span<'_>,
    address: Option<Span<'_>>,
    control: Option<Span<'_>>,
) -> Result<Received, Errno> {
    let mut vector = libc::iovec {
        iov_base: data.pointer() as *mut libc::c_void,
        iov_len: data.len(),
    };
    let (name, name_len) = address.map_or((0, 0), |from| (from.pointer(), from.len()));
    let (ancillary, ancillary_len) = control.map_or((0, 0), |to| (to.pointer(), to.len()));
    let mut message = libc::msghdr {
        msg_name: name as *mut libc::c_void,
        msg_namelen: name_len as u32,
        msg_iov: &raw mut vector,
        msg_iovlen: 1,
        msg_control: ancillary as *mut libc::c_void,
        msg_controllen: ancillary_len,
        msg_flags: 0,
    };
    let len = plain!(libc::SYS_recvmsg, fd, &raw mut message, flags)?;
    Ok(Received {
        len,
        flags: message.msg_flags as u32,
        address_len: message.msg_namelen,
        control_len: message.msg_controllen as u32,
    })
}

pub fn shutdown(fd: i32, how: i32) -> Answer {
    plain!(libc::SYS_shutdown, fd, how)
}

/// getsockopt into `value`; the length of what is there.
pub fn get_option(fd: i32, level: i32, name: i32, value: Span<'_>) -> Answer {
    let mut len = value.len() as u32;
    plain!(
        libc::SYS_getsockopt,
        fd,
        level,
        name,
        value.pointer(),
        &raw mut len
    )?;
    Ok(u64::from(len))
}

pub fn set_option(fd: i32, level: i32, name: i32, value: Span<'_>) -> Answer {
    plain!(
        libc::SYS_setsockopt,
        fd,
        level,
        name,
        value.pointer(),
        value.len()
    )
}

/// getsockname, or with `peer` getpeername: the length of the address.
pub fn name(fd: i32, peer: Peer, address: Span<'_>) -> Answer {
    let mut len = address.len() as u32;
    let number = match peer {
        Peer::Us => libc::SYS_getsockname,
        Peer::Them => libc::SYS_getpeername,
    };
    plain!(number, fd, address.pointer(), &raw mut len)?;
    Ok(u64::from(len))
}

/// Which end of a connection.
#[derive(Clone, Copy)]
pub enum Peer {
    Us,
    Them,
}

pub fn epoll_create() -> Answer {
    plain!(libc::SYS_epoll_create1, libc::EPOLL_CLOEXEC)
}

pub fn epoll_control(epoll: i32, operation: i32, fd: i32, events: u32, token: u64) -> Answer {
    let event = libc::epoll_event { events, u64: token };
    plain!(libc::SYS_epoll_ctl, epoll, operation, fd, &raw const event)
}
