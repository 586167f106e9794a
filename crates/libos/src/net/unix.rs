//! UNIX sockets: stream, datagram, seqpacket; by path, abstract, or unnamed.
//!
//! They live in the enclave alone: data between processes of a container never reaches the host.
//! A socket receives into its own queue of packets; a sender charges its bytes against the
//! receiver's limit. A stream is a queue whose packets are joined when they carry no ancillary
//! data.
//!
//! Lock order: a socket's state is never held while another socket's is taken.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::{Ancillary, Incoming, Outgoing, Received, Socket, address_family, family, kind, msg};
use crate::errno::{
    EADDRINUSE, EAGAIN, ECONNREFUSED, ECONNRESET, EDESTADDRREQ, EEXIST, EINVAL, EISCONN, EMSGSIZE,
    ENOPROTOOPT, ENOTCONN, EOPNOTSUPP, EPIPE, EPROTONOSUPPORT, EPROTOTYPE, ESOCKTNOSUPPORT,
};
use crate::fs::inode::{FileId, FileType, NewNode};
use crate::fs::namei;
use crate::fs::path::{Follow, Walk};
use crate::fs::permission::Caller;
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, WaitQueue, block_on};
use crate::{Result, Thread};

/// Bytes that may wait in a socket: Linux's default for SO_RCVBUF (net.core.rmem_default).
const BUFFER_SIZE: usize = 212_992;
/// Most datagrams that may wait (net.unix.max_dgram_qlen).
const DATAGRAMS_MAX: usize = 512;
/// Longest path in a `struct sockaddr_un`.
const PATH_MAX: usize = 108;
/// Most connections that may wait to be accepted (net.core.somaxconn).
const BACKLOG_MAX: usize = 4096;
const CHUNK: usize = 64 << 10;
/// Permission to write, as access(2) numbers it.
const MAY_WRITE: u32 = 2;

const SOL_SOCKET: i32 = 1;
const SO_ERROR: i32 = 4;
const SO_SNDBUF: i32 = 7;
const SO_RCVBUF: i32 = 8;
const SO_PASSCRED: i32 = 16;
const SO_PEERCRED: i32 = 17;
const SO_ACCEPTCONN: i32 = 30;
const FIONREAD: u32 = 0x541b;
const SIOCOUTQ: u32 = 0x5411;

/// Where a name leads.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    /// Without the leading null byte.
    Abstract(Vec<u8>),
    File(FileId),
}

static NAMES: SpinLock<BTreeMap<Name, Weak<UnixSocket>>> = SpinLock::new(BTreeMap::new());
static NEXT_AUTOBIND: AtomicU32 = AtomicU32::new(0);

/// pid, uid, gid.
type Credentials = (u32, u32, u32);

/// One UNIX socket.
pub struct UnixSocket {
    kind: i32,
    state: SpinLock<State>,
    queue: Arc<WaitQueue>,
    pass_credentials: AtomicBool,
    this: Weak<UnixSocket>,
}

#[derive(Default)]
struct State {
    /// `struct sockaddr_un` as bound.
    address: Vec<u8>,
    name: Option<Name>,
    /// The connected peer (stream, seqpacket) or default destination (datagram).
    peer: Weak<UnixSocket>,
    peer_address: Vec<u8>,
    peer_credentials: Option<Credentials>,
    connected: bool,
    /// The peer has gone or shut down its sending side.
    end_of_input: bool,
    /// Sending is over: shut down, or the peer receives no more.
    send_closed: bool,
    /// The peer went away with data of ours unread.
    reset: bool,
    packets: VecDeque<Packet>,
    bytes: usize,
    /// Listening: most waiting connections, and those that wait.
    backlog: Option<usize>,
    waiting: VecDeque<Arc<UnixSocket>>,
    listener_credentials: Option<Credentials>,
}

struct Packet {
    data: Vec<u8>,
    /// Bytes of a stream's packet that have been read.
    read: usize,
    ancillary: Ancillary,
    credentials: Credentials,
    address: Vec<u8>,
}

fn credentials_of(thread: &Thread) -> Credentials {
    let credentials = thread.process.credentials.lock();
    (thread.process.pid, credentials.euid, credentials.egid)
}

impl UnixSocket {
    pub fn new(kind: i32, protocol: i32) -> Result<Arc<UnixSocket>> {
        if protocol != 0 && protocol != i32::from(family::UNIX) {
            return Err(EPROTONOSUPPORT);
        }
        // Linux takes SOCK_RAW for SOCK_DGRAM here.
        let kind = if kind == kind::RAW { kind::DGRAM } else { kind };
        if !matches!(kind, kind::STREAM | kind::DGRAM | kind::SEQPACKET) {
            return Err(ESOCKTNOSUPPORT);
        }
        Ok(Self::make(kind))
    }

    fn make(kind: i32) -> Arc<UnixSocket> {
        Arc::new_cyclic(|this| UnixSocket {
            kind,
            state: SpinLock::new(State::default()),
            queue: WaitQueue::new(),
            pass_credentials: AtomicBool::new(false),
            this: this.clone(),
        })
    }

    /// socketpair(2).
    pub fn pair(thread: &Thread, kind: i32) -> Result<(Arc<UnixSocket>, Arc<UnixSocket>)> {
        let (first, second) = (Self::make(kind), Self::make(kind));
        let credentials = credentials_of(thread);
        first.join(&second, Vec::new(), credentials);
        second.join(&first, Vec::new(), credentials);
        Ok((first, second))
    }

    fn join(&self, peer: &Arc<UnixSocket>, address: Vec<u8>, credentials: Credentials) {
        let mut state = self.state.lock();
        state.peer = Arc::downgrade(peer);
        state.peer_address = address;
        state.peer_credentials = Some(credentials);
        state.connected = true;
    }

    fn is_stream(&self) -> bool {
        self.kind == kind::STREAM
    }

    fn is_connection(&self) -> bool {
        self.kind != kind::DGRAM
    }

    fn claim(&self, name: Name) -> Result<()> {
        let mut names = NAMES.lock();
        if names
            .get(&name)
            .is_some_and(|socket| socket.strong_count() > 0)
        {
            return Err(EADDRINUSE);
        }
        names.insert(name, self.this.clone());
        Ok(())
    }

    /// The socket that an address names.
    fn find(&self, thread: &Arc<Thread>, address: &[u8]) -> Result<Arc<UnixSocket>> {
        if address_family(address)? != family::UNIX {
            return Err(EINVAL);
        }
        let name = match parse(address)? {
            Parsed::Unnamed => return Err(EINVAL),
            Parsed::Abstract(name) => Name::Abstract(name.to_vec()),
            Parsed::Path(path) => Name::File(find_file(thread, path)?),
        };
        let found = NAMES
            .lock()
            .get(&name)
            .and_then(Weak::upgrade)
            .ok_or(ECONNREFUSED)?;
        if found.kind != self.kind {
            return Err(EPROTOTYPE);
        }
        Ok(found)
    }

    /// Puts a packet into this socket's queue, or says why not.
    fn deliver(&self, packet: &mut Option<Packet>) -> Result<Option<usize>> {
        let mut state = self.state.lock();
        let full = if self.is_connection() {
            state.bytes >= BUFFER_SIZE
        } else {
            state.packets.len() >= DATAGRAMS_MAX || state.bytes >= BUFFER_SIZE
        };
        if full {
            return Ok(None);
        }
        let Some(new) = packet.take() else {
            return Ok(Some(0));
        };
        let len = new.data.len();
        state.bytes += len;
        let plain = new.ancillary.files.is_empty() && new.ancillary.credentials.is_none();
        if self.is_stream()
            && plain
            && let Some(last) = state.packets.back_mut()
            && last.ancillary.files.is_empty()
            && last.ancillary.credentials.is_none()
            && last.credentials == new.credentials
            && last.data.len() + len <= CHUNK
        {
            last.data.extend_from_slice(&new.data);
        } else {
            state.packets.push_back(new);
        }
        drop(state);
        self.queue.wake(Events::IN | Events::RDNORM);
        Ok(Some(len))
    }

    fn take(&self, message: &mut Incoming<'_, '_>) -> Option<Result<Received>> {
        let peek = message.flags & msg::PEEK != 0;
        let mut received = Received::default();
        let mut drained = false;
        let data: Vec<u8> = {
            let mut state = self.state.lock();
            let Some(packet) = state.packets.front_mut() else {
                if state.reset {
                    state.reset = false;
                    return Some(Err(ECONNRESET));
                }
                if self.is_connection() && !state.connected && !state.end_of_input {
                    return Some(Err(if state.backlog.is_some() {
                        EINVAL
                    } else {
                        ENOTCONN
                    }));
                }
                return state.end_of_input.then(|| Ok(Received::default()));
            };
            let room = message.data.remaining();
            let available = &packet.data[packet.read..];
            let len = available.len().min(room);
            let data = available[..len].to_vec();
            if self.pass_credentials.load(Ordering::Relaxed) {
                let sent = packet.ancillary.credentials.unwrap_or(packet.credentials);
                received.ancillary.credentials = Some(sent);
            }
            if !self.is_connection() && message.want_address {
                received.address = packet.address.clone();
            }
            if self.is_stream() {
                received.len = len;
                if peek {
                    received.ancillary.files = packet.ancillary.files.clone();
                } else {
                    received.ancillary.files = core::mem::take(&mut packet.ancillary.files);
                    packet.read += len;
                    let empty = packet.read == packet.data.len();
                    state.bytes -= len;
                    drained = true;
                    if empty {
                        state.packets.pop_front();
                    }
                }
            } else {
                let whole = available.len();
                received.len = if message.flags & msg::TRUNC != 0 {
                    whole
                } else {
                    len
                };
                if whole > len {
                    received.flags |= msg::TRUNC;
                }
                if peek {
                    received.ancillary.files = packet.ancillary.files.clone();
                } else {
                    received.ancillary.files = core::mem::take(&mut packet.ancillary.files);
                    state.bytes -= whole;
                    state.packets.pop_front();
                    drained = true;
                }
            }
            data
        };
        if drained {
            self.queue.wake(Events::empty());
            let peer = self.state.lock().peer.upgrade();
            if let Some(peer) = peer {
                peer.queue.wake(Events::OUT | Events::WRNORM);
            }
        }
        Some(message.data.put(&data).map(|_| received))
    }

    /// The end of one direction or both, seen from the other side.
    fn peer_closed(&self, reads: bool, writes: bool) {
        let mut state = self.state.lock();
        state.end_of_input |= writes;
        state.send_closed |= reads;
        drop(state);
        self.queue.wake(Events::empty());
    }
}

/// The socket file at `path`, which the caller must be allowed to write.
fn find_file(thread: &Arc<Thread>, path: &[u8]) -> Result<FileId> {
    let caller = Caller::new(thread);
    let found = Walk::new(Caller::new(thread), &thread.fs()).find(path, Follow::Yes)?;
    caller.check(&**found.inode(), MAY_WRITE)?;
    if found.inode().kind() != FileType::Socket {
        return Err(ECONNREFUSED);
    }
    Ok(found.inode().id())
}

/// Makes a socket file at `path`; EADDRINUSE when there is something already.
fn make_file(thread: &Arc<Thread>, path: &[u8]) -> Result<FileId> {
    let context = thread.fs();
    let mut walk = Walk::new(Caller::new(thread), &context);
    let mode = 0o777 & !context.umask();
    let made = namei::create(&mut walk, path, NewNode::Socket, mode);
    let path = made.map_err(|error| if error == EEXIST { EADDRINUSE } else { error })?;
    Ok(path.inode().id())
}

enum Parsed<'a> {
    Unnamed,
    Abstract(&'a [u8]),
    Path(&'a [u8]),
}

fn parse(address: &[u8]) -> Result<Parsed<'_>> {
    let path = address.get(2..).ok_or(EINVAL)?;
    if path.len() > PATH_MAX {
        return Err(EINVAL);
    }
    match path {
        [] => Ok(Parsed::Unnamed),
        [0, name @ ..] => Ok(Parsed::Abstract(name)),
        path => {
            let len = path
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(path.len());
            Ok(Parsed::Path(&path[..len]))
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let state = core::mem::take(&mut *self.state.lock());
        if let Some(name) = &state.name {
            let mut names = NAMES.lock();
            if names
                .get(name)
                .is_some_and(|socket| socket.strong_count() == 0)
            {
                names.remove(name);
            }
        }
        if self.is_connection()
            && let Some(peer) = state.peer.upgrade()
        {
            if state.bytes > 0 {
                peer.state.lock().reset = true;
            }
            peer.state.lock().connected = false;
            peer.peer_closed(true, true);
        }
    }
}

impl Socket for UnixSocket {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn family(&self) -> u16 {
        family::UNIX
    }

    fn kind(&self) -> i32 {
        self.kind
    }

    fn bind(&self, thread: &Arc<Thread>, address: &[u8]) -> Result<()> {
        if address_family(address)? != family::UNIX {
            return Err(EINVAL);
        }
        if self.state.lock().name.is_some() {
            return Err(EINVAL.because("already bound"));
        }
        let (name, address) = match parse(address)? {
            Parsed::Unnamed => loop {
                // Autobind: five hexadecimal digits (unix(7)).
                let number = NEXT_AUTOBIND.fetch_add(1, Ordering::Relaxed) & 0xf_ffff;
                let digits = alloc::format!("{number:05x}").into_bytes();
                let name = Name::Abstract(digits.clone());
                if self.claim(name.clone()).is_ok() {
                    let mut address = vec![1, 0, 0];
                    address.extend_from_slice(&digits);
                    break (name, address);
                }
            },
            Parsed::Abstract(bytes) => {
                let name = Name::Abstract(bytes.to_vec());
                self.claim(name.clone())?;
                (name, address.to_vec())
            }
            Parsed::Path(path) => {
                let name = Name::File(make_file(thread, path)?);
                self.claim(name.clone())?;
                let mut address = vec![1, 0];
                address.extend_from_slice(path);
                address.push(0);
                (name, address)
            }
        };
        let mut state = self.state.lock();
        state.name = Some(name);
        state.address = address;
        Ok(())
    }

    fn listen(&self, thread: &Arc<Thread>, backlog: i32) -> Result<()> {
        if !self.is_connection() {
            return Err(EOPNOTSUPP);
        }
        let credentials = credentials_of(thread);
        let mut state = self.state.lock();
        if state.name.is_none() || state.connected {
            return Err(EINVAL);
        }
        state.backlog = Some(
            usize::try_from(backlog)
                .unwrap_or(BACKLOG_MAX)
                .min(BACKLOG_MAX),
        );
        state.listener_credentials = Some(credentials);
        Ok(())
    }

    fn accept(
        &self,
        thread: &Arc<Thread>,
        nonblocking: bool,
    ) -> Result<(Arc<dyn Socket>, Vec<u8>)> {
        if !self.is_connection() {
            return Err(EOPNOTSUPP);
        }
        if self.state.lock().backlog.is_none() {
            return Err(EINVAL.because("not listening"));
        }
        let take = || self.state.lock().waiting.pop_front();
        let socket = if nonblocking {
            take().ok_or(EAGAIN)?
        } else {
            block_on(thread, &self.queue, Events::IN, None, take)?
        };
        self.queue.wake(Events::OUT);
        let address = socket.state.lock().peer_address.clone();
        let address = if address.is_empty() {
            vec![1, 0]
        } else {
            address
        };
        Ok((socket, address))
    }

    fn connect(&self, thread: &Arc<Thread>, address: &[u8], nonblocking: bool) -> Result<()> {
        if !self.is_connection() {
            let mut peer = Weak::new();
            let mut connected = false;
            let mut peer_address = Vec::new();
            if address_family(address)? != family::UNSPEC {
                peer = Arc::downgrade(&self.find(thread, address)?);
                peer_address = address.to_vec();
                connected = true;
            }
            let mut state = self.state.lock();
            (state.peer, state.connected, state.peer_address) = (peer, connected, peer_address);
            return Ok(());
        }
        {
            let state = self.state.lock();
            if state.connected {
                return Err(EISCONN);
            }
            if state.backlog.is_some() {
                return Err(EINVAL);
            }
        }
        let listener = self.find(thread, address)?;
        let this = self.this.upgrade().ok_or(EINVAL)?;
        let credentials = credentials_of(thread);
        let accepted = Self::make(self.kind);
        let (own, theirs) = {
            let state = listener.state.lock();
            (self.state.lock().address.clone(), state.address.clone())
        };
        let enqueue = || {
            let mut state = listener.state.lock();
            match state.backlog {
                None => Some(Err(ECONNREFUSED)),
                Some(most) if state.waiting.len() > most => None,
                Some(_) => {
                    let listener_credentials = state.listener_credentials.unwrap_or((0, 0, 0));
                    accepted.join(&this, own.clone(), credentials);
                    accepted.state.lock().address = theirs.clone();
                    self.join(&accepted, theirs.clone(), listener_credentials);
                    state.waiting.push_back(accepted.clone());
                    Some(Ok(()))
                }
            }
        };
        if nonblocking {
            enqueue().ok_or(EAGAIN)??;
        } else {
            block_on(thread, &listener.queue, Events::OUT, None, enqueue)??;
        }
        listener.queue.wake(Events::IN | Events::RDNORM);
        Ok(())
    }

    fn send(
        &self,
        thread: &Arc<Thread>,
        message: Outgoing<'_, '_>,
        nonblocking: bool,
    ) -> Result<usize> {
        let (peer, connected, own) = {
            let state = self.state.lock();
            if state.send_closed {
                return Err(EPIPE);
            }
            (state.peer.upgrade(), state.connected, state.address.clone())
        };
        let target = match (message.address, peer) {
            (Some(_), _) if self.is_connection() => {
                return Err(if connected { EISCONN } else { EOPNOTSUPP });
            }
            (Some(address), _) => self.find(thread, address)?,
            (None, Some(peer)) => peer,
            (None, None) if self.is_connection() => {
                return Err(if connected { EPIPE } else { ENOTCONN });
            }
            (None, None) => {
                return Err(if connected {
                    ECONNREFUSED
                } else {
                    EDESTADDRREQ
                });
            }
        };
        let limit = if self.is_stream() { CHUNK } else { BUFFER_SIZE };
        if !self.is_stream() && message.data.remaining() > limit {
            return Err(EMSGSIZE);
        }
        let credentials = credentials_of(thread);
        let mut ancillary = message.ancillary;
        let mut sent = 0;
        loop {
            let mut data = vec![0; message.data.remaining().min(limit)];
            let len = message.data.take(&mut data)?;
            data.truncate(len);
            let mut packet = Some(Packet {
                data,
                read: 0,
                ancillary: core::mem::take(&mut ancillary),
                credentials,
                address: own.clone(),
            });
            let mut attempt = || {
                if self.state.lock().send_closed {
                    return Some(Err(EPIPE));
                }
                target.deliver(&mut packet).transpose()
            };
            let delivered = if nonblocking {
                attempt().ok_or(EAGAIN).and_then(|result| result)
            } else {
                // A connection's room is announced on our own queue, a datagram's on its.
                let queue = if self.is_connection() {
                    &self.queue
                } else {
                    &target.queue
                };
                block_on(thread, queue, Events::OUT, None, attempt).and_then(|result| result)
            };
            match delivered {
                Ok(len) => sent += len,
                Err(_) if sent > 0 => return Ok(sent),
                Err(error) => return Err(error),
            }
            if message.data.is_empty() {
                return Ok(sent);
            }
        }
    }

    fn receive(
        &self,
        thread: &Arc<Thread>,
        mut message: Incoming<'_, '_>,
        nonblocking: bool,
    ) -> Result<Received> {
        let wait_all = message.flags & msg::WAITALL != 0 && self.is_stream();
        let mut total: Option<Received> = None;
        loop {
            let received = if nonblocking {
                self.take(&mut message).unwrap_or(Err(EAGAIN))
            } else {
                let interest = Events::IN | Events::RDNORM;
                block_on(thread, &self.queue, interest, None, || {
                    self.take(&mut message)
                })
                .and_then(|result| result)
            };
            match (received, total.as_mut()) {
                (Ok(received), Some(total)) if received.len == 0 => {
                    return Ok(core::mem::take(total));
                }
                (Ok(received), Some(total)) => {
                    total.len += received.len;
                    total.ancillary.files.extend(received.ancillary.files);
                }
                (Ok(received), None) => {
                    let end = received.len == 0;
                    total = Some(received);
                    if end {
                        return Ok(total.unwrap_or_default());
                    }
                }
                (Err(_), Some(total)) => return Ok(core::mem::take(total)),
                (Err(error), None) => return Err(error),
            }
            if !wait_all || message.data.is_empty() {
                return Ok(total.unwrap_or_default());
            }
        }
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        let (reads, writes) = (how != 1, how != 0);
        let peer = {
            let mut state = self.state.lock();
            if self.is_connection() && !state.connected {
                return Err(ENOTCONN);
            }
            state.end_of_input |= reads;
            state.send_closed |= writes;
            state.peer.upgrade()
        };
        self.queue.wake(Events::empty());
        if self.is_connection()
            && let Some(peer) = peer
        {
            peer.peer_closed(reads, writes);
        }
        Ok(())
    }

    fn own_name(&self) -> Result<Vec<u8>> {
        let address = self.state.lock().address.clone();
        Ok(if address.is_empty() {
            vec![1, 0]
        } else {
            address
        })
    }

    fn peer_name(&self) -> Result<Vec<u8>> {
        let state = self.state.lock();
        if !state.connected {
            return Err(ENOTCONN);
        }
        Ok(if state.peer_address.is_empty() {
            vec![1, 0]
        } else {
            state.peer_address.clone()
        })
    }

    fn get_option(&self, level: i32, name: i32, _max: usize) -> Result<Vec<u8>> {
        if level != SOL_SOCKET {
            return Err(EOPNOTSUPP);
        }
        let int = |value: u32| Ok(value.to_le_bytes().to_vec());
        match name {
            SO_ERROR => int(0),
            SO_SNDBUF | SO_RCVBUF => int(BUFFER_SIZE as u32),
            SO_PASSCRED => int(u32::from(self.pass_credentials.load(Ordering::Relaxed))),
            SO_ACCEPTCONN => int(u32::from(self.state.lock().backlog.is_some())),
            SO_PEERCRED => {
                let unknown = (0, u32::MAX, u32::MAX);
                let (pid, uid, gid) = self.state.lock().peer_credentials.unwrap_or(unknown);
                Ok([pid, uid, gid]
                    .iter()
                    .flat_map(|id| id.to_le_bytes())
                    .collect())
            }
            // Timeouts, linger, keep-alive and priorities read as unset.
            13 | 20 | 21 => Ok(vec![0; 16]),
            _ => int(0),
        }
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        if level != SOL_SOCKET {
            return Err(EOPNOTSUPP);
        }
        match name {
            SO_PASSCRED => {
                let on = value.iter().take(4).any(|&byte| byte != 0);
                self.pass_credentials.store(on, Ordering::Relaxed);
                Ok(())
            }
            // REUSEADDR, BROADCAST, SNDBUF, RCVBUF, KEEPALIVE, LINGER, RCVTIMEO, SNDTIMEO: no
            // effect on a UNIX socket, or a limit that is fixed here.
            2 | 6..=9 | 13 | 15 | 20 | 21 | 32 | 33 => Ok(()),
            _ => Err(ENOPROTOOPT),
        }
    }

    fn ioctl(&self, request: u32, value: &mut [u8]) -> Result<usize> {
        let bytes = match request {
            FIONREAD => {
                let state = self.state.lock();
                let first = state.packets.front().map_or(0, |packet| packet.data.len());
                if self.is_stream() { state.bytes } else { first }
            }
            SIOCOUTQ => 0,
            _ => return Err(crate::errno::ENOTTY),
        };
        value[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
        Ok(0)
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table {
            table.register(&self.queue, interest);
        }
        let mut events = Events::empty();
        let peer = {
            let state = self.state.lock();
            if !state.packets.is_empty() || !state.waiting.is_empty() || state.end_of_input {
                events |= Events::IN | Events::RDNORM;
            }
            if state.end_of_input {
                events |= Events::RDHUP;
            }
            let unconnected = self.is_connection() && !state.connected && state.backlog.is_none();
            if state.end_of_input && state.send_closed || unconnected {
                events |= Events::HUP;
            }
            if state.backlog.is_some() {
                return events;
            }
            state.peer.upgrade()
        };
        let writable = match peer {
            Some(peer) => peer.state.lock().bytes < BUFFER_SIZE,
            None => true,
        };
        if writable {
            events |= Events::OUT | Events::WRNORM | Events::WRBAND;
        }
        events
    }
}
