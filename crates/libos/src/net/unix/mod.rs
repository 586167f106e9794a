//! UNIX sockets: stream, datagram, seqpacket; by path, abstract, or unnamed.
//!
//! They live in the enclave alone: data between processes of a container never reaches the host.
//! A socket receives into its own queue of packets; a sender charges its bytes against the
//! receiver's limit. A stream is a queue whose packets are joined when they carry nothing else.
//!
//! - [`message`]: sending and receiving. [`name`]: names. [`flight`]: descriptors on their way.
//! - [`option`]: options and ioctls.
//!
//! Lock order: a socket's state is never held while another socket's is taken, with one
//! exception: a listener's before those of the two ends of a new connection.

mod flight;
mod message;
mod name;
mod option;
#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use self::message::Packet;
use self::name::Name;
use super::file::next_number;
use super::listing::{self, Description};
use super::timeout::{Timeouts, wait_error};
use super::{Incoming, Outgoing, Received, Socket, address_family, family, kind};
use crate::errno::{
    EAGAIN, ECONNREFUSED, EINVAL, EISCONN, ENOTCONN, EOPNOTSUPP, EPERM, EPROTONOSUPPORT,
    ESOCKTNOSUPPORT,
};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, WaitQueue, block_on};
use crate::{Result, Thread};

/// Bytes that may wait in a socket: Linux's default for SO_RCVBUF (net.core.rmem_default).
const BUFFER_SIZE: usize = 212_992;
/// Most packets that may wait, however short (net.unix.max_dgram_qlen).
const PACKETS_MAX: usize = 512;
/// Most connections that may wait to be accepted (net.core.somaxconn).
const BACKLOG_MAX: usize = 4096;

const READABLE: Events = Events::IN.union(Events::RDNORM);
const WRITABLE: Events = Events::OUT.union(Events::WRNORM).union(Events::WRBAND);

/// pid, uid, gid.
type Credentials = (u32, u32, u32);

/// One UNIX socket.
pub struct UnixSocket {
    kind: i32,
    /// The inode number that its file has, or will have.
    number: u64,
    state: SpinLock<State>,
    queue: Arc<WaitQueue>,
    pass_credentials: AtomicBool,
    /// Options that do nothing here, to be shown again.
    inert: SpinLock<BTreeMap<i32, Vec<u8>>>,
    /// SO_SNDBUF: the longest message.
    send_buffer: AtomicUsize,
    timeouts: Timeouts,
    this: Weak<UnixSocket>,
}

struct State {
    /// `struct sockaddr_un` as bound.
    address: Vec<u8>,
    name: Option<Name>,
    /// The connected peer (stream, seqpacket) or default destination (datagram).
    peer: Weak<UnixSocket>,
    peer_address: Vec<u8>,
    peer_credentials: Option<Credentials>,
    /// Has been connected; stays so when the peer goes.
    connected: bool,
    /// Nothing more will be received: shut down, or the peer has gone or sends no more.
    receive_closed: bool,
    /// Sending is over: shut down, or the peer receives no more.
    send_closed: bool,
    /// The peer went away with data of ours unread: told once (SO_ERROR).
    reset: bool,
    /// The last descriptor is gone.
    closed: bool,
    packets: VecDeque<Packet>,
    bytes: usize,
    /// SO_PEEK_OFF: where the next peek begins; negative for always at the front.
    peek_offset: i32,
    /// SO_OOBINLINE.
    is_urgent_inline: bool,
    /// How deep sockets in flight are nested in this queue.
    level: u8,
    /// Listening: most waiting connections, and those that wait.
    backlog: Option<usize>,
    waiting: VecDeque<Arc<UnixSocket>>,
    listener_credentials: Option<Credentials>,
}

impl Default for State {
    fn default() -> State {
        State {
            address: Vec::new(),
            name: None,
            peer: Weak::new(),
            peer_address: Vec::new(),
            peer_credentials: None,
            connected: false,
            receive_closed: false,
            send_closed: false,
            reset: false,
            closed: false,
            packets: VecDeque::new(),
            bytes: 0,
            peek_offset: -1,
            is_urgent_inline: false,
            level: 0,
            backlog: None,
            waiting: VecDeque::new(),
            listener_credentials: None,
        }
    }
}

impl State {
    fn is_full(&self) -> bool {
        self.bytes >= BUFFER_SIZE || self.packets.len() >= PACKETS_MAX
    }
}

fn credentials_of(thread: &Thread) -> Credentials {
    let credentials = thread.process.credentials.lock();
    (thread.process.pid, credentials.euid, credentials.egid)
}

fn address_or_unnamed(address: &[u8]) -> Vec<u8> {
    if address.is_empty() {
        name::unnamed()
    } else {
        address.to_vec()
    }
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
            number: next_number(),
            state: SpinLock::new(State::default()),
            queue: WaitQueue::new(),
            pass_credentials: AtomicBool::new(false),
            inert: SpinLock::new(BTreeMap::new()),
            send_buffer: AtomicUsize::new(BUFFER_SIZE),
            timeouts: Timeouts::default(),
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

    /// Whether a datagram socket that is connected elsewhere may be sent to.
    fn admits(&self, sender: &UnixSocket) -> Result<()> {
        let state = self.state.lock();
        let peer_lives = state.peer.strong_count() > 0;
        if state.connected && peer_lives && !core::ptr::eq(state.peer.as_ptr(), sender) {
            return Err(EPERM.because("the receiver is connected to another socket"));
        }
        Ok(())
    }

    /// The end of one direction or both, seen from the other side. `reset`: our data went unread.
    fn peer_closed(&self, reads: bool, writes: bool, reset: bool) {
        let mut state = self.state.lock();
        state.receive_closed |= writes;
        state.send_closed |= reads;
        state.reset |= reset;
        drop(state);
        self.queue.wake(Events::empty());
    }

    /// connect(2) of a datagram socket: only a default destination.
    fn connect_datagram(&self, thread: &Arc<Thread>, address: &[u8]) -> Result<()> {
        let (mut peer, mut peer_address) = (Weak::new(), Vec::new());
        let connected = address_family(address)? != family::UNSPEC;
        if connected {
            let found = name::find(thread, address, self.kind)?;
            found.admits(self)?;
            peer_address = found.state.lock().address.clone();
            peer = Arc::downgrade(&found);
        }
        let mut state = self.state.lock();
        (state.peer, state.connected, state.peer_address) = (peer, connected, peer_address);
        drop(state);
        self.queue.wake(WRITABLE);
        Ok(())
    }

    /// Enters the listener's queue. `None` while it is full.
    fn enqueue_at(
        &self,
        listener: &UnixSocket,
        accepted: &Arc<UnixSocket>,
        own: Credentials,
    ) -> Option<Result<()>> {
        let this = self.this.upgrade()?;
        let mut listening = listener.state.lock();
        let Some(most) = listening.backlog.filter(|_| !listening.receive_closed) else {
            return Some(Err(ECONNREFUSED));
        };
        if listening.waiting.len() > most {
            return None;
        }
        let address = listening.address.clone();
        let credentials = listening.listener_credentials.unwrap_or_default();
        let own_address = {
            let mut state = self.state.lock();
            if state.connected {
                return Some(Err(EISCONN));
            }
            state.peer = Arc::downgrade(accepted);
            state.peer_address = address.clone();
            state.peer_credentials = Some(credentials);
            state.connected = true;
            state.address.clone()
        };
        accepted.join(&this, own_address, own);
        accepted.state.lock().address = address;
        accepted.timeouts.inherit(&listener.timeouts);
        listening.waiting.push_back(accepted.clone());
        Some(Ok(()))
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // For those that never had a descriptor.
        self.close();
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
        if self.state.lock().name.is_some() {
            // A path is looked at first, and to ask for just any name is no mistake (unix_bind).
            return name::bind_again(thread, address);
        }
        let (name, address) = name::bind(thread, &self.this, address)?;
        let mut state = self.state.lock();
        if state.name.is_some() {
            drop(state);
            name::release(&name, self);
            return Err(EINVAL.because("already bound"));
        }
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
            return Err(EINVAL.because("not bound, or connected"));
        }
        let most = usize::try_from(backlog).unwrap_or(BACKLOG_MAX);
        state.backlog = Some(most.min(BACKLOG_MAX));
        state.listener_credentials = Some(credentials);
        drop(state);
        self.queue.wake(WRITABLE);
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
        let take = || {
            let mut state = self.state.lock();
            if let Some(socket) = state.waiting.pop_front() {
                return Some(Ok(socket));
            }
            (state.backlog.is_none() || state.receive_closed)
                .then(|| Err(EINVAL.because("not listening")))
        };
        let socket = if nonblocking {
            take().ok_or(EAGAIN)??
        } else {
            let deadline = self.timeouts.receive_deadline();
            block_on(thread, &self.queue, READABLE, deadline, take)
                .map_err(|error| wait_error(error, deadline))??
        };
        self.queue.wake(WRITABLE);
        let pass = self.pass_credentials.load(Ordering::Relaxed);
        socket.pass_credentials.store(pass, Ordering::Relaxed);
        let address = address_or_unnamed(&socket.state.lock().peer_address);
        Ok((socket, address))
    }

    fn connect(&self, thread: &Arc<Thread>, address: &[u8], nonblocking: bool) -> Result<()> {
        if !self.is_connection() {
            return self.connect_datagram(thread, address);
        }
        {
            let state = self.state.lock();
            if state.connected {
                return Err(EISCONN);
            }
            if state.backlog.is_some() {
                return Err(EINVAL.because("a listening socket cannot connect"));
            }
        }
        let listener = name::find(thread, address, self.kind)?;
        let credentials = credentials_of(thread);
        let accepted = Self::make(self.kind);
        let enqueue = || self.enqueue_at(&listener, &accepted, credentials);
        if nonblocking {
            enqueue().ok_or(EAGAIN)??;
        } else {
            let deadline = self.timeouts.send_deadline();
            block_on(thread, &listener.queue, WRITABLE, deadline, enqueue)
                .map_err(|error| wait_error(error, deadline))??;
        }
        listener.queue.wake(READABLE);
        self.queue.wake(WRITABLE);
        Ok(())
    }

    fn send(
        &self,
        thread: &Arc<Thread>,
        message: Outgoing<'_, '_>,
        nonblocking: bool,
    ) -> Result<usize> {
        self.send_message(thread, message, nonblocking)
    }

    fn receive(
        &self,
        thread: &Arc<Thread>,
        message: Incoming<'_, '_>,
        nonblocking: bool,
    ) -> Result<Received> {
        self.receive_message(thread, message, nonblocking)
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        let (reads, writes) = (how != 1, how != 0);
        let peer = {
            let mut state = self.state.lock();
            state.receive_closed |= reads;
            state.send_closed |= writes;
            state.peer.upgrade()
        };
        self.queue.wake(Events::empty());
        if let Some(peer) = peer
            && self.is_connection()
        {
            peer.peer_closed(reads, writes, false);
        }
        Ok(())
    }

    fn close(&self) {
        let (packets, waiting, name, peer) = {
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            state.closed = true;
            state.receive_closed = true;
            state.send_closed = true;
            state.backlog = None;
            state.bytes = 0;
            (
                core::mem::take(&mut state.packets),
                core::mem::take(&mut state.waiting),
                state.name.take(),
                state.peer.upgrade(),
            )
        };
        if let Some(name) = name {
            name::release(&name, self);
        }
        self.queue.wake(Events::empty());
        if let Some(peer) = peer {
            if self.is_connection() {
                peer.peer_closed(true, true, !packets.is_empty());
            } else {
                // Whoever waits for room must learn that there is nobody.
                peer.queue.wake(WRITABLE);
            }
        }
        for socket in waiting {
            // Nobody accepted them: their other ends are reset (ECONNRESET).
            let peer = socket.state.lock().peer.upgrade();
            if let Some(peer) = peer {
                peer.state.lock().reset = true;
            }
            socket.close();
        }
        drop(packets);
        flight::collect_garbage();
    }

    fn number(&self) -> Option<u64> {
        Some(self.number)
    }

    fn describe(&self) -> Option<Description> {
        let state = self.state.lock();
        let peer = state.peer.upgrade().filter(|_| state.connected);
        let (state_number, receive_queue, send_queue) = match state.backlog {
            Some(most) => (listing::LISTEN, state.waiting.len(), most),
            None if state.connected => (listing::ESTABLISHED, state.bytes, 0),
            None => (listing::CLOSE, state.bytes, 0),
        };
        Some(Description::Unix(listing::Unix {
            kind: self.kind,
            state: state_number,
            name: state.address.get(2..).unwrap_or_default().to_vec(),
            peer: peer.map_or(0, |peer| peer.number),
            receive_queue: receive_queue as u32,
            send_queue: send_queue as u32,
            shutdown: u8::from(state.receive_closed) | u8::from(state.send_closed) << 1,
            references: 2 + usize::from(state.connected),
        }))
    }

    fn own_name(&self) -> Result<Vec<u8>> {
        Ok(address_or_unnamed(&self.state.lock().address))
    }

    fn peer_name(&self) -> Result<Vec<u8>> {
        let state = self.state.lock();
        if !state.connected {
            return Err(ENOTCONN);
        }
        Ok(address_or_unnamed(&state.peer_address))
    }

    fn get_option(&self, level: i32, name: i32, _max: usize) -> Result<Vec<u8>> {
        self.option(level, name)
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        self.change_option(level, name, value)
    }

    fn ioctl(&self, request: u32, value: &mut [u8]) -> Result<usize> {
        self.control(request, value)
    }

    fn poll(&self, mut table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table.as_deref_mut() {
            table.register(&self.queue, interest);
        }
        let mut events = Events::empty();
        let peer = {
            let state = self.state.lock();
            if state.has_data() || !state.waiting.is_empty() || state.receive_closed {
                events |= READABLE;
            }
            if state.has_urgent() {
                events |= Events::PRI;
            }
            if state.receive_closed {
                events |= Events::RDHUP;
            }
            if state.reset {
                events |= Events::ERR;
            }
            let unconnected = self.is_connection() && !state.connected && state.backlog.is_none();
            if state.receive_closed && state.send_closed || unconnected {
                events |= Events::HUP;
            }
            if state.backlog.is_some() {
                return events;
            }
            state.peer.upgrade()
        };
        let has_room = match peer {
            Some(peer) => {
                // A datagram receiver announces its room on its own queue.
                if let Some(table) = table
                    && !self.is_connection()
                    && interest.intersects(WRITABLE)
                {
                    table.register(&peer.queue, WRITABLE);
                }
                !peer.state.lock().is_full()
            }
            None => true,
        };
        if has_room {
            events |= WRITABLE;
        }
        events
    }
}
