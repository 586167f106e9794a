//! socket and its family: creation, names, options, messages.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{
    EAFNOSUPPORT, EBADF, EFAULT, EINVAL, EMSGSIZE, ENOTCONN, EOPNOTSUPP, EPERM, EPROTONOSUPPORT,
    ESOCKTNOSUPPORT,
};
use crate::fs::file::{OpenFile, flags};
use crate::mm::AddressSpace;
use crate::net::file::SocketFile;
use crate::net::inet::InetSocket;
use crate::net::unix::UnixSocket;
use crate::net::{Ancillary, Incoming, Outgoing, Received, Socket, family, kind, msg};
use crate::platform::platform;
use crate::process::credentials::{CAP_SETGID, CAP_SETUID};
use crate::user::{IOV_MAX, IoBuffer, RW_MAX, check_range};

/// Longest socket address (`struct sockaddr_storage`).
const ADDRESS_MAX: usize = 128;
/// Most ancillary bytes of one message.
const CONTROL_MAX: usize = 16 << 10;
/// Most descriptors in one message (SCM_MAX_FD).
const RIGHTS_MAX: usize = 253;
/// Most messages of one sendmmsg or recvmmsg (UIO_MAXIOV).
const MESSAGES_MAX: u32 = 1024;
const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const SCM_CREDENTIALS: i32 = 2;
/// capabilities(7).
const CAP_SYS_ADMIN: u32 = 21;
const SO_TYPE: i32 = 3;
const SO_PROTOCOL: i32 = 38;
const SO_DOMAIN: i32 = 39;

fn make(domain: i32, socket_kind: i32, protocol: i32) -> Result<Arc<dyn Socket>> {
    let domain = u16::try_from(domain).map_err(|_| EAFNOSUPPORT)?;
    match domain {
        family::UNIX => Ok(UnixSocket::new(socket_kind, protocol)?),
        family::INET | family::INET6 => Ok(InetSocket::new(domain, socket_kind, protocol)?),
        family::NETLINK => crate::net::netlink::NetlinkSocket::create(socket_kind, protocol),
        _ => Err(EAFNOSUPPORT),
    }
}

fn add(context: &mut Context<'_>, socket: Arc<dyn Socket>, wanted: i32) -> Result<usize> {
    let status = flags::RDWR | wanted as u32 & flags::NONBLOCK;
    let owner = {
        let credentials = context.thread.process.credentials.lock();
        (credentials.fsuid, credentials.fsgid)
    };
    let socket = SocketFile::new(socket, owner);
    let file = OpenFile::new(socket.clone(), status);
    socket.opened_as(&file);
    context.add_file(file, wanted & kind::CLOEXEC != 0)
}

fn split_kind(argument: i32) -> Result<(i32, i32)> {
    let wanted = argument & !kind::MASK;
    if wanted & !(kind::NONBLOCK | kind::CLOEXEC) != 0 {
        return Err(EINVAL.because("unknown socket flags"));
    }
    Ok((argument & kind::MASK, wanted))
}

pub fn socket(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (socket_kind, wanted) = split_kind(arguments.i32(1))?;
    if !matches!(socket_kind, 0..=10) {
        return Err(EINVAL.because("unknown socket type"));
    }
    let socket = make(arguments.i32(0), socket_kind, arguments.i32(2))?;
    add(context, socket, wanted)
}

/// Whether the Internet families have this protocol (0: the usual one) for sockets of this type.
fn fits(socket_kind: i32, protocol: i32) -> bool {
    const TCP: i32 = 6;
    const UDP: i32 = 17;
    match socket_kind {
        kind::STREAM => matches!(protocol, 0 | TCP),
        kind::DGRAM => matches!(protocol, 0 | UDP),
        kind::RAW => protocol != 0,
        _ => false,
    }
}

pub fn socketpair(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (socket_kind, wanted) = split_kind(arguments.i32(1))?;
    match arguments.i32(0) {
        known if known == i32::from(family::UNIX) => {}
        // The protocol is looked up first.
        2 | 10 if !fits(socket_kind, arguments.i32(2)) => return Err(EPROTONOSUPPORT),
        2 | 10 | 16 => return Err(EOPNOTSUPP),
        _ => return Err(EAFNOSUPPORT),
    }
    if arguments.i32(2) != 0 && arguments.i32(2) != i32::from(family::UNIX) {
        return Err(EPROTONOSUPPORT);
    }
    if !matches!(socket_kind, kind::STREAM | kind::DGRAM | kind::SEQPACKET) {
        return Err(ESOCKTNOSUPPORT);
    }
    let (first, second) = UnixSocket::pair(context.thread, socket_kind)?;
    let first = add(context, first, wanted)? as i32;
    let second = match add(context, second, wanted) {
        Ok(second) => second as i32,
        Err(error) => {
            let _ = context.thread.files().remove(first);
            return Err(error);
        }
    };
    let mut bytes = first.to_le_bytes().to_vec();
    bytes.extend_from_slice(&second.to_le_bytes());
    if let Err(error) = context.mm().write(arguments.u64(3), &bytes) {
        let _ = context.thread.files().remove(first);
        let _ = context.thread.files().remove(second);
        return Err(error);
    }
    Ok(0)
}

/// The open file and its socket.
fn with<T>(
    context: &mut Context<'_>,
    fd: i32,
    action: impl FnOnce(&mut Context<'_>, &OpenFile, &SocketFile) -> Result<T>,
) -> Result<T> {
    let file = context.thread.files().get(fd)?;
    if file.is_path() {
        return Err(EBADF);
    }
    let socket = SocketFile::of(&file)?;
    action(context, &file, socket)
}

fn read_address(mm: &AddressSpace, address: u64, len: i32) -> Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| EINVAL)?;
    if len > ADDRESS_MAX {
        return Err(EINVAL.because("address too long"));
    }
    let mut bytes = vec![0; len];
    mm.read(address, &mut bytes)?;
    Ok(bytes)
}

/// Writes an address as getsockname does: cut to the room there is, the real length told.
fn write_address(mm: &AddressSpace, address: u64, len_at: u64, value: &[u8]) -> Result<()> {
    let mut room = [0; 4];
    mm.read(len_at, &mut room)?;
    let room = usize::try_from(i32::from_le_bytes(room)).map_err(|_| EINVAL)?;
    mm.write(address, &value[..value.len().min(room)])?;
    mm.write(len_at, &(value.len() as u32).to_le_bytes())
}

pub fn bind(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let address = read_address(&context.mm(), arguments.u64(1), arguments.i32(2))?;
    with(context, arguments.i32(0), |context, _, socket| {
        socket.socket.bind(context.thread, &address).map(|()| 0)
    })
}

pub fn connect(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let address = read_address(&context.mm(), arguments.u64(1), arguments.i32(2))?;
    with(context, arguments.i32(0), |context, file, socket| {
        let nonblocking = file.is_nonblocking();
        socket
            .socket
            .connect(context.thread, &address, nonblocking)
            .map(|()| 0)
    })
}

pub fn listen(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    with(context, arguments.i32(0), |context, _, socket| {
        socket
            .socket
            .listen(context.thread, arguments.i32(1))
            .map(|()| 0)
    })
}

pub fn accept(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    accept_common(context, arguments, 0)
}

pub fn accept4(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let wanted = arguments.i32(3);
    if wanted & !(kind::NONBLOCK | kind::CLOEXEC) != 0 {
        return Err(EINVAL.because("unknown flags"));
    }
    accept_common(context, arguments, wanted)
}

fn accept_common(context: &mut Context<'_>, arguments: Arguments, wanted: i32) -> Result<usize> {
    let (socket, address) = with(context, arguments.i32(0), |context, file, socket| {
        socket.socket.accept(context.thread, file.is_nonblocking())
    })?;
    if arguments.u64(1) != 0 {
        write_address(&context.mm(), arguments.u64(1), arguments.u64(2), &address)?;
    }
    add(context, socket, wanted)
}

pub fn getsockname(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let name = with(context, arguments.i32(0), |_, _, socket| {
        socket.socket.own_name()
    })?;
    write_address(&context.mm(), arguments.u64(1), arguments.u64(2), &name)?;
    Ok(0)
}

pub fn getpeername(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let name = with(context, arguments.i32(0), |_, _, socket| {
        socket.socket.peer_name()
    })?;
    if name.is_empty() {
        return Err(ENOTCONN);
    }
    write_address(&context.mm(), arguments.u64(1), arguments.u64(2), &name)?;
    Ok(0)
}

pub fn shutdown(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    if !(0..=2).contains(&arguments.i32(1)) {
        return Err(EINVAL);
    }
    with(context, arguments.i32(0), |_, _, socket| {
        socket.socket.shutdown(arguments.i32(1)).map(|()| 0)
    })
}

pub fn getsockopt(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mm = context.mm();
    let mut room = [0; 4];
    mm.read(arguments.u64(4), &mut room)?;
    let room = usize::try_from(i32::from_le_bytes(room)).map_err(|_| EINVAL)?;
    let value = with(context, arguments.i32(0), |_, _, socket| {
        let socket = &socket.socket;
        match (arguments.i32(1), arguments.i32(2)) {
            (SOL_SOCKET, SO_TYPE) => Ok(socket.kind().to_le_bytes().to_vec()),
            (SOL_SOCKET, SO_DOMAIN) => Ok(i32::from(socket.family()).to_le_bytes().to_vec()),
            (SOL_SOCKET, SO_PROTOCOL) if socket.family() == family::UNIX => Ok(vec![0; 4]),
            (level, name) => socket.get_option(level, name, room),
        }
    })?;
    let len = value.len().min(room);
    mm.write(arguments.u64(3), &value[..len])?;
    mm.write(arguments.u64(4), &(len as u32).to_le_bytes())?;
    Ok(0)
}

pub fn setsockopt(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let len = usize::try_from(arguments.i32(4)).map_err(|_| EINVAL)?;
    let mut value = vec![0; len.min(4096)];
    context.mm().read(arguments.u64(3), &mut value)?;
    with(context, arguments.i32(0), |_, _, socket| {
        socket
            .socket
            .set_option(arguments.i32(1), arguments.i32(2), &value)
            .map(|()| 0)
    })
}

pub fn sendto(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    check_range(arguments.u64(1), arguments.usize(2).min(RW_MAX))?;
    let mm = context.mm();
    let address = match arguments.u64(4) {
        0 => None,
        at => Some(read_address(&mm, at, arguments.i32(5))?),
    };
    let address = address.filter(|address| !address.is_empty());
    let message_flags = arguments.u32(3);
    with(context, arguments.i32(0), |context, file, socket| {
        let mut data = IoBuffer::user(&mm, arguments.u64(1), arguments.usize(2));
        let message = Outgoing {
            data: &mut data,
            address: address.as_deref(),
            ancillary: Ancillary::default(),
            flags: message_flags,
        };
        let nonblocking = file.is_nonblocking() || message_flags & msg::DONTWAIT != 0;
        socket.send(context.thread, message, nonblocking)
    })
}

pub fn recvfrom(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    check_range(arguments.u64(1), arguments.usize(2).min(RW_MAX))?;
    let mm = context.mm();
    let message_flags = arguments.u32(3);
    let want_address = arguments.u64(4) != 0;
    let received = with(context, arguments.i32(0), |context, file, socket| {
        let mut data = IoBuffer::user(&mm, arguments.u64(1), arguments.usize(2));
        let message = Incoming {
            data: &mut data,
            flags: message_flags,
            want_address,
            control: 0,
        };
        let nonblocking = file.is_nonblocking() || message_flags & msg::DONTWAIT != 0;
        socket.socket.receive(context.thread, message, nonblocking)
    })?;
    if want_address {
        write_address(&mm, arguments.u64(4), arguments.u64(5), &received.address)?;
    }
    Ok(received.len)
}

/// `struct msghdr`.
struct MessageHeader {
    at: u64,
    name: u64,
    name_len: u32,
    vectors: u64,
    vector_count: u64,
    control: u64,
    control_len: u64,
}

impl MessageHeader {
    fn read(mm: &AddressSpace, at: u64) -> Result<MessageHeader> {
        let mut bytes = [0u8; 56];
        mm.read(at, &mut bytes)?;
        let word = |offset: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[offset..offset + 8]);
            u64::from_le_bytes(word)
        };
        let header = MessageHeader {
            at,
            name: word(0),
            name_len: word(8) as u32,
            vectors: word(16),
            vector_count: word(24),
            control: word(32),
            control_len: word(40),
        };
        if header.vector_count > IOV_MAX as u64 {
            return Err(EMSGSIZE);
        }
        if i32::try_from(header.name_len).is_err() {
            return Err(EINVAL);
        }
        Ok(header)
    }

    /// Room for control messages.
    fn control_room(&self) -> usize {
        match self.control {
            0 => 0,
            _ => self.control_len.min(CONTROL_MAX as u64) as usize,
        }
    }

    fn data<'a>(&self, mm: &'a AddressSpace) -> Result<IoBuffer<'a>> {
        IoBuffer::vector(mm, self.vectors, self.vector_count as usize)
    }
}

fn send_message(context: &mut Context<'_>, fd: i32, at: u64, wanted: u32) -> Result<usize> {
    let mm = context.mm();
    // Before anything is read: EBADF, ENOTSOCK.
    let file = context.thread.file(fd)?;
    SocketFile::of(&file)?;
    drop(file);
    let header = MessageHeader::read(&mm, at)?;
    let address = match header.name {
        0 => None,
        name => {
            let len = header.name_len.min(ADDRESS_MAX as u32) as i32;
            Some(read_address(&mm, name, len)?)
        }
    };
    let address = address.filter(|address| !address.is_empty());
    let mut ancillary = Ancillary::default();
    if header.control_len > 0 {
        if header.control_len > CONTROL_MAX as u64 {
            return Err(crate::errno::ENOBUFS);
        }
        let mut control = vec![0; header.control_len as usize];
        mm.read(header.control, &mut control)?;
        ancillary = parse_control(context, &control)?;
    }
    with(context, fd, |context, file, socket| {
        let mut data = header.data(&mm)?;
        let message = Outgoing {
            data: &mut data,
            address: address.as_deref(),
            ancillary,
            flags: wanted,
        };
        let nonblocking = file.is_nonblocking() || wanted & msg::DONTWAIT != 0;
        socket.send(context.thread, message, nonblocking)
    })
}

/// Size of `struct cmsghdr`; entries are aligned to 8.
const CMSG_HEADER: usize = 16;

fn parse_control(context: &Context<'_>, mut control: &[u8]) -> Result<Ancillary> {
    let mut ancillary = Ancillary::default();
    let files = context.thread.files();
    while control.len() >= CMSG_HEADER {
        let mut word = [0; 8];
        word.copy_from_slice(&control[..8]);
        let len = usize::try_from(u64::from_le_bytes(word)).map_err(|_| EINVAL)?;
        if len < CMSG_HEADER || len > control.len() {
            return Err(EINVAL.because("bad ancillary length"));
        }
        let int = |at: usize| {
            i32::from_le_bytes([
                control[at],
                control[at + 1],
                control[at + 2],
                control[at + 3],
            ])
        };
        let body = &control[CMSG_HEADER..len];
        let step = len.next_multiple_of(8).min(control.len());
        if int(8) != SOL_SOCKET {
            ancillary.other.extend_from_slice(&control[..step]);
        } else {
            match int(12) {
                SCM_RIGHTS => {
                    for fd in body.chunks_exact(4) {
                        let fd = i32::from_le_bytes([fd[0], fd[1], fd[2], fd[3]]);
                        ancillary.files.push(files.get(fd)?);
                    }
                    if ancillary.files.len() > RIGHTS_MAX {
                        return Err(EINVAL.because("too many descriptors"));
                    }
                }
                SCM_CREDENTIALS if body.len() == 12 => {
                    let word = |at: usize| {
                        u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]])
                    };
                    let claimed = (word(0), word(4), word(8));
                    check_credentials(context, claimed)?;
                    ancillary.credentials = Some(claimed);
                }
                _ => {
                    ancillary.is_unknown = true;
                    ancillary.other.extend_from_slice(&control[..step]);
                }
            }
        }
        control = &control[step..];
    }
    Ok(ancillary)
}

/// Whether a process may send these as its own (unix(7)): EPERM.
fn check_credentials(context: &Context<'_>, (pid, uid, gid): (u32, u32, u32)) -> Result<()> {
    let process = &context.thread.process;
    let own = process.credentials.lock();
    let has = |capability: u32| own.effective & 1 << capability != 0;
    let may_pid = pid == process.pid || has(CAP_SYS_ADMIN);
    let may_uid = [own.ruid, own.euid, own.suid].contains(&uid) || has(CAP_SETUID);
    let may_gid = [own.rgid, own.egid, own.sgid].contains(&gid) || has(CAP_SETGID);
    if may_pid && may_uid && may_gid {
        Ok(())
    } else {
        Err(EPERM.because("credentials of somebody else"))
    }
}

pub fn sendmsg(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    send_message(
        context,
        arguments.i32(0),
        arguments.u64(1),
        arguments.u32(2),
    )
}

fn receive_message(context: &mut Context<'_>, fd: i32, at: u64, wanted: u32) -> Result<usize> {
    let mm = context.mm();
    let header = MessageHeader::read(&mm, at)?;
    let received = with(context, fd, |context, file, socket| {
        let mut data = header.data(&mm)?;
        let message = Incoming {
            data: &mut data,
            flags: wanted,
            want_address: header.name != 0,
            control: header.control_room(),
        };
        let nonblocking = file.is_nonblocking() || wanted & msg::DONTWAIT != 0;
        socket.socket.receive(context.thread, message, nonblocking)
    })?;
    if header.name != 0 {
        let room = (header.name_len as usize).min(received.address.len());
        mm.write(header.name, &received.address[..room])?;
        let len = received.address.len() as u32;
        mm.write(header.at + 8, &len.to_le_bytes())?;
    }
    let mut message_flags = received.flags & !msg::CMSG_CLOEXEC | wanted & msg::CMSG_CLOEXEC;
    let len = received.len;
    let used = write_control(context, &header, received, wanted, &mut message_flags)?;
    mm.write(header.at + 40, &(used as u64).to_le_bytes())?;
    mm.write(header.at + 48, &message_flags.to_le_bytes())?;
    Ok(len)
}

/// Hands over ancillary data: descriptors enter the table as far as there is room for them.
fn write_control(
    context: &mut Context<'_>,
    header: &MessageHeader,
    received: Received,
    wanted: u32,
    message_flags: &mut u32,
) -> Result<usize> {
    let mm = context.mm();
    let room = if header.control == 0 {
        0
    } else {
        header.control_len as usize
    };
    let other = &received.ancillary.other;
    if !other.is_empty() {
        let len = other.len().min(room);
        mm.write(header.control, &other[..len])
            .map_err(|_| EFAULT)?;
        return Ok(len);
    }
    let mut out: Vec<u8> = Vec::new();
    let push = |kind: i32, body: &[u8], out: &mut Vec<u8>| {
        out.extend_from_slice(&((CMSG_HEADER + body.len()) as u64).to_le_bytes());
        out.extend_from_slice(&SOL_SOCKET.to_le_bytes());
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(body);
        out.resize(out.len().next_multiple_of(8), 0);
    };
    if let Some((pid, uid, gid)) = received.ancillary.credentials {
        if room >= CMSG_HEADER + 12 {
            let body: Vec<u8> = [pid, uid, gid]
                .iter()
                .flat_map(|id| id.to_le_bytes())
                .collect();
            push(SCM_CREDENTIALS, &body, &mut out);
        } else {
            *message_flags |= msg::CTRUNC;
        }
    }
    if !received.ancillary.files.is_empty() {
        let fits = room.saturating_sub(out.len() + CMSG_HEADER) / 4;
        let close_on_exec = wanted & msg::CMSG_CLOEXEC != 0;
        let mut body = Vec::new();
        for file in received.ancillary.files {
            if body.len() / 4 >= fits {
                *message_flags |= msg::CTRUNC;
                break;
            }
            match context.add_file(file, close_on_exec) {
                Ok(fd) => body.extend_from_slice(&(fd as i32).to_le_bytes()),
                Err(_) => {
                    *message_flags |= msg::CTRUNC;
                    break;
                }
            }
        }
        if !body.is_empty() {
            push(SCM_RIGHTS, &body, &mut out);
        }
    }
    let len = out.len().min(room);
    if len > 0 {
        mm.write(header.control, &out[..len]).map_err(|_| EFAULT)?;
    }
    Ok(len)
}

pub fn recvmsg(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    receive_message(
        context,
        arguments.i32(0),
        arguments.u64(1),
        arguments.u32(2),
    )
}

/// Size of `struct mmsghdr`.
const MMSGHDR_SIZE: u64 = 64;

pub fn sendmmsg(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let count = arguments.u32(2).min(MESSAGES_MAX);
    let mut sent = 0;
    for index in 0..u64::from(count) {
        let at = arguments.u64(1) + index * MMSGHDR_SIZE;
        match send_message(context, arguments.i32(0), at, arguments.u32(3)) {
            Ok(len) => {
                context.mm().write(at + 56, &(len as u32).to_le_bytes())?;
                sent += 1;
            }
            Err(error) if sent == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(sent)
}

pub fn recvmmsg(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    const WAITFORONE: u32 = 0x10000;
    let count = arguments.u32(2).min(MESSAGES_MAX);
    let timeout = super::poll::Timeout::from_timespec(context, arguments.u64(4))?;
    let mut wanted = arguments.u32(3) & !WAITFORONE;
    let mut received = 0;
    for index in 0..u64::from(count) {
        let at = arguments.u64(1) + index * MMSGHDR_SIZE;
        match receive_message(context, arguments.i32(0), at, wanted) {
            Ok(len) => {
                context.mm().write(at + 56, &(len as u32).to_le_bytes())?;
                received += 1;
            }
            Err(error) if received == 0 => return Err(error),
            Err(_) => break,
        }
        if arguments.u32(3) & WAITFORONE != 0 {
            wanted |= msg::DONTWAIT;
        }
        // As on Linux, the timeout is looked at only after a message has come.
        if timeout
            .deadline()
            .is_some_and(|at| platform().monotonic() >= at)
        {
            break;
        }
    }
    Ok(received)
}
