//! Host calls on sockets. All sockets are non-blocking; waiting is done in the calls for that.

use bulla_abi::hostcall::{RECV_WAIT, RecvHeader};
use bulla_abi::network::REQUEST_MAX;

use super::Call;
use crate::sys::netlink;
use crate::sys::raw::{Answer, Errno};
use crate::sys::socket::{self, Peer};
use crate::sys::wait::Waiter;
use crate::waiting::Blocks;

/// Longest socket address (`struct sockaddr_storage`).
const ADDRESS_MAX: u64 = 128;

impl Call<'_> {
    /// Socket(domain, type, protocol).
    pub fn socket(&self) -> Answer {
        let [domain, kind, protocol, _] = self.arguments;
        if !matches!(domain as i32, libc::AF_INET | libc::AF_INET6) {
            return Err(Errno(libc::EAFNOSUPPORT));
        }
        self.made(socket::socket(domain as i32, kind as i32, protocol as i32)? as i32)
    }

    /// Bind(fd, address length).
    pub fn bind(&self) -> Answer {
        let fd = self.descriptor(self.arguments[0])?;
        socket::bind(fd, self.address(self.arguments[1])?)
    }

    /// Connect(fd, address length).
    pub fn connect(&self) -> Answer {
        let fd = self.descriptor(self.arguments[0])?;
        socket::connect(fd, self.address(self.arguments[1])?)
    }

    /// Listen(fd, backlog).
    pub fn listen(&self) -> Answer {
        let fd = self.descriptor(self.arguments[0])?;
        socket::listen(fd, self.arguments[1] as i32)
    }

    /// Accept(fd): the address's length, then the address into the buffer.
    pub fn accept(&self) -> Answer {
        let listener = self.descriptor(self.arguments[0])?;
        let (fd, len) = socket::accept(listener, self.slot.area.data(4, ADDRESS_MAX)?)?;
        self.data(4)?.put(0, &len.to_le_bytes());
        self.made(fd)
    }

    /// Send(fd, flags, data length, address and control length): address, control messages, then
    /// data in the buffer.
    pub fn send(&self) -> Answer {
        let [fd, flags, len, lengths] = self.arguments;
        let (address_len, control_len) = (lengths & 0xffff_ffff, lengths >> 32);
        let fd = self.descriptor(fd)?;
        let address = match address_len {
            0 => None,
            len => Some(self.address(len)?),
        };
        let control = match control_len {
            0 => None,
            len => Some(self.slot.area.data(address_len, len)?),
        };
        let data = self.slot.area.data(address_len + control_len, len)?;
        let sent = socket::send(fd, flags as u32, data, address, control)?;
        self.slot.counters.bytes_out.add(sent);
        Ok(sent)
    }

    /// Recv(fd, flags, most bytes, whether the address is wanted and room for control messages):
    /// header, control messages, then data.
    pub fn receive(&self) -> Answer {
        const ADDRESS_AT: u64 = RecvHeader::SIZE - ADDRESS_MAX;
        let [fd, flags, len, wanted] = self.arguments;
        let fd = self.descriptor(fd)?;
        let header = self.data(RecvHeader::SIZE)?;
        let control_len = wanted >> 32;
        let control = match control_len {
            0 => None,
            len => Some(self.slot.area.data(RecvHeader::SIZE, len)?),
        };
        let data_at = RecvHeader::SIZE + control_len.next_multiple_of(8);
        let data = self.slot.area.data(data_at, len)?;
        let address = match wanted & 1 {
            0 => None,
            _ => Some(self.slot.area.data(ADDRESS_AT, ADDRESS_MAX)?),
        };
        let seen = header.u32_at(0);
        let received = loop {
            match socket::receive(fd, flags as u32, data, address, control) {
                Err(Errno(libc::EAGAIN)) if flags & RECV_WAIT != 0 => {
                    let waiter = self.waiter(seen);
                    let wait = |waiter: Waiter<'_>| waiter.poll_one(fd, libc::POLLIN, u64::MAX);
                    if self.announced(Blocks::InCall, waiter, wait)? == 0 {
                        return Err(Errno(libc::EAGAIN));
                    }
                }
                other => break other?,
            }
        };
        let mut words = [0; 12];
        words[..4].copy_from_slice(&received.flags.to_le_bytes());
        words[4..8].copy_from_slice(&received.address_len.to_le_bytes());
        words[8..].copy_from_slice(&received.control_len.to_le_bytes());
        header.put(4, &words);
        self.slot.counters.bytes_in.add(received.len);
        Ok(received.len)
    }

    /// Shutdown(fd, how).
    pub fn shutdown(&self) -> Answer {
        let fd = self.descriptor(self.arguments[0])?;
        socket::shutdown(fd, self.arguments[1] as i32)
    }

    /// GetSockOpt(fd, level, name, most bytes).
    pub fn get_option(&self) -> Answer {
        let [fd, level, name, len] = self.arguments;
        let fd = self.descriptor(fd)?;
        let (level, name) = option_allowed(level, name)?;
        socket::get_option(fd, level, name, self.data(len)?)
    }

    /// SetSockOpt(fd, level, name, length).
    pub fn set_option(&self) -> Answer {
        let [fd, level, name, len] = self.arguments;
        let fd = self.descriptor(fd)?;
        let (level, name) = option_allowed(level, name)?;
        socket::set_option(fd, level, name, self.data(len)?)
    }

    /// GetSockName(fd).
    pub fn own_name(&self) -> Answer {
        let fd = self.descriptor(self.arguments[0])?;
        socket::name(fd, Peer::Us, self.data(ADDRESS_MAX)?)
    }

    /// GetPeerName(fd).
    pub fn peer_name(&self) -> Answer {
        let fd = self.descriptor(self.arguments[0])?;
        socket::name(fd, Peer::Them, self.data(ADDRESS_MAX)?)
    }

    /// NetQuery(what, messages to leave out, length of the request, room).
    pub fn network(&self) -> Answer {
        let [what, skip, request_len, room] = self.arguments;
        if request_len > REQUEST_MAX {
            return Err(Errno(libc::EINVAL));
        }
        let request = self.data(request_len)?.to_vec();
        let to = self.data(room)?;
        let messages = netlink::query(what, &request)?;
        let mut used = 0;
        for message in
            netlink::messages(&messages).skip(usize::try_from(skip).unwrap_or(usize::MAX))
        {
            if used + message.len() > to.len() {
                break;
            }
            to.put(used, message);
            used += message.len();
        }
        Ok(used as u64)
    }

    fn address(&self, len: u64) -> Result<crate::sys::area::Span<'_>, Errno> {
        if len > ADDRESS_MAX {
            return Err(Errno(libc::EINVAL));
        }
        self.data(len)
    }
}

/// Refuses options whose value holds a pointer, which would be one of the enclave's choosing, and
/// levels that have nothing to do with ordinary sockets.
fn option_allowed(level: u64, name: u64) -> Result<(i32, i32), Errno> {
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    // SO_GET_FILTER is SO_ATTACH_FILTER.
    const SO_ATTACH_BPF: i32 = 50;
    const SO_ATTACH_REUSEPORT_CBPF: i32 = 51;
    const SO_ATTACH_REUSEPORT_EBPF: i32 = 52;
    // Packet filter tables (IPT_SO_*, IP6T_SO_*) start here; the newer IPV6_* lie among them.
    const TABLES: i32 = 64;
    let (Ok(level), Ok(name)) = (i32::try_from(level as u32), i32::try_from(name as u32)) else {
        return Err(Errno(libc::ENOPROTOOPT));
    };
    // SOL_SOCKET is 1, and so is IPPROTO_ICMP, which has no options but ICMP_FILTER, level RAW.
    let allowed = match level {
        libc::SOL_SOCKET => !matches!(
            name,
            libc::SO_ATTACH_FILTER
                | SO_ATTACH_BPF
                | SO_ATTACH_REUSEPORT_CBPF
                | SO_ATTACH_REUSEPORT_EBPF
        ),
        libc::IPPROTO_TCP => name != TCP_ZEROCOPY_RECEIVE,
        libc::IPPROTO_IP => name < TABLES,
        libc::IPPROTO_IPV6 => name < TABLES || matches!(name, 66 | 67 | 70..=80),
        libc::IPPROTO_UDP | libc::IPPROTO_ICMPV6 | libc::IPPROTO_RAW => true,
        _ => false,
    };
    if allowed {
        Ok((level, name))
    } else {
        Err(Errno(libc::ENOPROTOOPT))
    }
}
