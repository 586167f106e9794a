//! Sending to and receiving from UNIX sockets.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::flight::{self, Flight};
use super::{
    BUFFER_SIZE, Credentials, READABLE, State, UnixSocket, WRITABLE, credentials_of, name,
};
use crate::errno::{
    EAGAIN, ECONNREFUSED, ECONNRESET, EFAULT, EINVAL, EISCONN, EMSGSIZE, ENOTCONN, EOPNOTSUPP,
    EPIPE,
};
use crate::mm::accounting;
use crate::net::listing;
use crate::net::timeout::wait_error;
use crate::net::{Incoming, Outgoing, Received, msg};
use crate::sync::wait::block_on;
use crate::{Result, Thread};

/// Longest packet of a stream; what is sent at once is cut into such.
const CHUNK: usize = 64 << 10;

/// What one send left in a queue, or several of them (streams).
pub struct Packet {
    data: Bytes,
    pub files: Vec<Flight>,
    credentials: Credentials,
    /// The sender's, for datagrams.
    address: Vec<u8>,
    urgency: Urgency,
}

/// What a stream's packet has to do with urgent data (MSG_OOB).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Urgency {
    #[default]
    None,
    /// The one urgent byte.
    Urgent,
    /// Where it was until somebody received it: reads stop there.
    Mark,
}

/// Bytes that are read from the front and, for streams, added to at the end.
#[derive(Default)]
struct Bytes {
    bytes: Vec<u8>,
    read: usize,
}

impl Bytes {
    fn unread(&self) -> &[u8] {
        &self.bytes[self.read..]
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.read
    }
}

impl Packet {
    /// Unread bytes.
    pub fn len(&self) -> usize {
        self.data.len()
    }
}

impl UnixSocket {
    pub(super) fn send_message(
        &self,
        thread: &Arc<Thread>,
        message: Outgoing<'_, '_>,
        nonblocking: bool,
    ) -> Result<usize> {
        let is_urgent = message.flags & msg::OOB != 0;
        if is_urgent && (!self.is_stream() || message.data.is_empty()) {
            return Err(EOPNOTSUPP.because("only streams have urgent data"));
        }
        accounting::admit()?;
        if message.ancillary.is_unknown {
            return Err(EINVAL.because("unknown ancillary type"));
        }
        let (target, own) = self.target(thread, message.address)?;
        let limit = if self.is_stream() {
            CHUNK
        } else {
            self.send_buffer.load(Ordering::Relaxed)
        };
        if !self.is_stream() && message.data.remaining() > limit - 32 {
            return Err(EMSGSIZE);
        }
        if self.is_stream() && message.data.is_empty() {
            return Ok(0);
        }
        let credentials = message.ancillary.credentials;
        let credentials = credentials.unwrap_or_else(|| credentials_of(thread));
        let most = thread.process.limits.files();
        let (mut files, level) = flight::depart(message.ancillary.files, most)?;
        let deadline = self.timeouts.send_deadline();
        let mut sent = 0;
        loop {
            // The last byte is the urgent one, and travels alone.
            let remaining = message.data.remaining();
            let is_last = is_urgent && remaining == 1;
            let ordinary = remaining - usize::from(is_urgent && !is_last);
            let mut bytes = vec![0; ordinary.min(limit)];
            if message.data.peek(&mut bytes)? < bytes.len() {
                return Err(EFAULT);
            }
            let len = bytes.len();
            let mut packet = Some(Packet {
                data: Bytes { bytes, read: 0 },
                files: core::mem::take(&mut files),
                credentials,
                address: own.clone(),
                urgency: if is_last {
                    Urgency::Urgent
                } else {
                    Urgency::None
                },
            });
            let mut attempt = || {
                if self.state.lock().send_closed {
                    return Some(Err(EPIPE));
                }
                target.deliver(&mut packet, level)
            };
            let delivered = if nonblocking {
                attempt().unwrap_or(Err(EAGAIN))
            } else {
                // A connection's room is announced on our own queue, a datagram's on its.
                let queue = if self.is_connection() {
                    &self.queue
                } else {
                    &target.queue
                };
                block_on(thread, queue, WRITABLE, deadline, attempt)
                    .map_err(|error| wait_error(error, deadline))
                    .and_then(|result| result)
            };
            match delivered {
                Ok(()) => {
                    message.data.skip(len);
                    sent += len;
                }
                Err(_) if sent > 0 => return Ok(sent),
                Err(error) => return Err(error),
            }
            if message.data.is_empty() {
                if is_urgent && let Some(file) = listing::find(target.number) {
                    file.urgent();
                }
                return Ok(sent);
            }
        }
    }

    /// Where a message goes, and the address that it comes from.
    fn target(
        &self,
        thread: &Arc<Thread>,
        address: Option<&[u8]>,
    ) -> Result<(Arc<UnixSocket>, Vec<u8>)> {
        let (peer, connected, own) = {
            let state = self.state.lock();
            if state.send_closed {
                return Err(EPIPE);
            }
            (state.peer.upgrade(), state.connected, state.address.clone())
        };
        let target = match (address, peer) {
            (Some(_), _) if self.is_stream() => {
                return Err(if connected { EISCONN } else { EOPNOTSUPP });
            }
            // Of a seqpacket socket the address means nothing.
            (Some(_), None) if self.is_connection() => {
                return Err(if connected { EPIPE } else { ENOTCONN });
            }
            (Some(_), Some(peer)) if self.is_connection() => peer,
            (Some(address), _) => {
                let target = name::find(thread, address, self.kind)?;
                target.admits(self)?;
                target
            }
            (None, Some(peer)) => peer,
            (None, None) if self.is_connection() => {
                return Err(if connected { EPIPE } else { ENOTCONN });
            }
            (None, None) if connected => return Err(ECONNREFUSED),
            (None, None) => return Err(ENOTCONN),
        };
        Ok((target, own))
    }

    /// Puts a packet into this socket's queue. `None` while there is no room.
    fn deliver(&self, packet: &mut Option<Packet>, level: u8) -> Option<Result<()>> {
        let mut state = self.state.lock();
        if state.receive_closed {
            let gone = state.closed && !self.is_connection();
            return Some(Err(if gone { ECONNREFUSED } else { EPIPE }));
        }
        if state.is_full() {
            return None;
        }
        let Some(new) = packet.take() else {
            return Some(Err(EINVAL));
        };
        state.level = state.level.max(level);
        state.bytes += new.len();
        if new.urgency == Urgency::Urgent {
            // An older urgent byte becomes an ordinary one.
            for packet in &mut state.packets {
                if packet.urgency == Urgency::Urgent {
                    packet.urgency = Urgency::None;
                }
            }
        }
        match state.packets.back_mut() {
            Some(last) if self.is_stream() && last.continues(&new) => {
                last.data.bytes.extend_from_slice(&new.data.bytes);
            }
            _ => state.packets.push_back(new),
        }
        drop(state);
        self.queue.wake(READABLE);
        Some(Ok(()))
    }

    pub(super) fn receive_message(
        &self,
        thread: &Arc<Thread>,
        mut message: Incoming<'_, '_>,
        nonblocking: bool,
    ) -> Result<Received> {
        if message.flags & msg::OOB != 0 {
            return self.receive_urgent(message);
        }
        let peek = message.flags & msg::PEEK != 0;
        let wait_all = message.flags & msg::WAITALL != 0 && self.is_stream() && !peek;
        let deadline = self.timeouts.receive_deadline();
        let mut total: Option<Received> = None;
        loop {
            let received = if nonblocking {
                self.take(&mut message, nonblocking).unwrap_or(Err(EAGAIN))
            } else {
                block_on(thread, &self.queue, READABLE, deadline, || {
                    self.take(&mut message, nonblocking)
                })
                .map_err(|error| wait_error(error, deadline))
                .and_then(|result| result)
            };
            let mut sum = match (received, total.take()) {
                (Ok(new), None) if new.len > 0 => new,
                (Ok(new), Some(mut sum)) if new.len > 0 => {
                    sum.len += new.len;
                    sum.ancillary.files.extend(new.ancillary.files);
                    sum
                }
                (Ok(end), None) => return Ok(end),
                (Err(error), None) => return Err(error),
                (_, Some(sum)) => return Ok(sum),
            };
            if !wait_all || message.data.is_empty() {
                return Ok(core::mem::take(&mut sum));
            }
            total = Some(sum);
        }
    }

    /// recv(2) with MSG_OOB: the urgent byte.
    fn receive_urgent(&self, message: Incoming<'_, '_>) -> Result<Received> {
        if !self.is_stream() {
            return Err(EOPNOTSUPP.because("only streams have urgent data"));
        }
        let byte = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let is_inline = state.is_urgent_inline;
            let mut packets = state.packets.iter_mut();
            let packet = packets
                .find(|packet| packet.urgency == Urgency::Urgent && !is_inline)
                .ok_or(EINVAL.because("no urgent data"))?;
            let byte = packet.data.unread().first().copied().unwrap_or(0);
            if message.flags & msg::PEEK == 0 {
                state.bytes -= packet.len();
                packet.data = Bytes::default();
                packet.urgency = Urgency::Mark;
            }
            byte
        };
        Ok(Received {
            len: message.data.put(&[byte])?,
            flags: msg::OOB,
            ..Received::default()
        })
    }

    /// Receives what is there; `None` when there is nothing yet.
    fn take(&self, message: &mut Incoming<'_, '_>, nonblocking: bool) -> Option<Result<Received>> {
        let pass = self.pass_credentials.load(Ordering::Relaxed);
        let peek = message.flags & msg::PEEK != 0;
        let mut received = Received::default();
        let mut finished: Vec<Packet> = Vec::new();
        let (data, peer, credentials) = {
            let mut state = self.state.lock();
            let room = message.data.remaining();
            let (first, offset) = match self.is_stream() {
                true => state.first_of_stream(peek, &mut finished),
                false => state.at_peek_offset(0, peek),
            };
            let Some(packet) = state.packets.get(first) else {
                return self.nothing(&mut state, nonblocking);
            };
            let credentials = packet.credentials;
            if pass {
                received.ancillary.credentials = Some(credentials);
            }
            let data = if self.is_stream() {
                let from = Place { first, offset };
                state.take_stream(from, room, peek, pass, &mut received, &mut finished)
            } else {
                if message.want_address && !self.is_connection() {
                    received.address.clone_from(&packet.address);
                }
                let from = Place { first, offset };
                state.take_packet(from, room, message.flags, &mut received, &mut finished)
            };
            state.move_peek_offset(peek, &data, &finished, self.is_stream());
            if state.packets.is_empty() {
                state.level = 0;
            }
            (data, state.peer.upgrade(), credentials)
        };
        drop(finished);
        if !peek {
            if self.is_connection() {
                if let Some(peer) = peer {
                    peer.queue.wake(WRITABLE);
                }
            } else {
                self.queue.wake(WRITABLE);
            }
        }
        let put = message.data.put(&data);
        let moved = *put.as_ref().unwrap_or(&0);
        if self.is_stream() && !peek && moved < data.len() {
            self.give_back(&data[moved..], credentials);
        }
        Some(put.map(|put| {
            if self.is_stream() {
                received.len = put;
            }
            received
        }))
    }

    /// A stream's bytes that could not be copied to the program are the next ones again.
    fn give_back(&self, bytes: &[u8], credentials: Credentials) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.bytes += bytes.len();
        state.packets.push_front(Packet {
            data: Bytes {
                bytes: bytes.to_vec(),
                read: 0,
            },
            files: Vec::new(),
            credentials,
            address: Vec::new(),
            urgency: Urgency::None,
        });
    }

    /// What a receive finds on an empty queue.
    fn nothing(&self, state: &mut State, nonblocking: bool) -> Option<Result<Received>> {
        if state.reset {
            state.reset = false;
            return Some(Err(ECONNRESET));
        }
        if state.receive_closed {
            // A datagram socket that shall not wait is told to try again for ever, as on Linux.
            let is_end = self.is_connection() || !nonblocking;
            return is_end.then(|| Ok(Received::default()));
        }
        if self.is_connection() && !state.connected {
            // As Linux has it: only a seqpacket socket is told what is wrong.
            return Some(Err(if self.is_stream() { EINVAL } else { ENOTCONN }));
        }
        None
    }
}

impl Packet {
    /// Whether `next` may be joined to this packet of a stream.
    fn continues(&self, next: &Packet) -> bool {
        self.urgency == Urgency::None
            && next.urgency == Urgency::None
            && self.files.is_empty()
            && next.files.is_empty()
            && self.credentials == next.credentials
            && self.data.bytes.len() + next.len() <= CHUNK
    }
}

/// Where a receive begins: a packet, and bytes of it to leave out.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    offset: usize,
}

impl State {
    /// Whether there is something to receive: marks are nothing.
    pub(super) fn has_data(&self) -> bool {
        let mut packets = self.packets.iter();
        packets.any(|packet| packet.urgency != Urgency::Mark)
    }

    pub(super) fn has_urgent(&self) -> bool {
        let mut packets = self.packets.iter();
        packets.any(|packet| packet.urgency == Urgency::Urgent)
    }

    /// SIOCATMARK: whether the next byte is the urgent one, or was.
    pub(super) fn is_at_mark(&self) -> bool {
        let urgency = |at: usize| self.packets.get(at).map(|packet| packet.urgency);
        match urgency(0) {
            Some(Urgency::Urgent) => true,
            Some(Urgency::Mark) => !self.has_urgent() || urgency(1) == Some(Urgency::Urgent),
            _ => false,
        }
    }

    /// Where a receive from a stream begins: beyond marks and an urgent byte that nobody wanted, which
    /// a receive that does not only look throws away, and as far in as SO_PEEK_OFF says.
    fn first_of_stream(&mut self, peek: bool, finished: &mut Vec<Packet>) -> (usize, usize) {
        let mut first = 0;
        while let Some(packet) = self.packets.get_mut(first) {
            match packet.urgency {
                Urgency::None => break,
                Urgency::Urgent if self.is_urgent_inline => {
                    if !peek {
                        packet.urgency = Urgency::None;
                    }
                    break;
                }
                _ if peek => first += 1,
                _ => {
                    self.bytes -= packet.len();
                    finished.extend(self.packets.remove(first));
                }
            }
        }
        self.at_peek_offset(first, peek)
    }

    /// The packet, and the place in it, that SO_PEEK_OFF means, counted from packet `first` on; only
    /// looking minds it.
    fn at_peek_offset(&self, mut first: usize, peek: bool) -> (usize, usize) {
        let mut offset = if peek {
            self.peek_offset.max(0) as usize
        } else {
            0
        };
        while offset > 0
            && let Some(packet) = self.packets.get(first)
        {
            if offset < packet.len() {
                break;
            }
            offset -= packet.len();
            first += 1;
        }
        (first, offset)
    }

    /// SO_PEEK_OFF moves on with what was looked at, and back with what was taken away.
    fn move_peek_offset(&mut self, peek: bool, data: &[u8], finished: &[Packet], is_stream: bool) {
        if self.peek_offset < 0 {
            return;
        }
        let moved = match finished.last() {
            // Of a datagram all goes, also what did not fit.
            Some(packet) if !peek && !is_stream => packet.len(),
            _ => data.len(),
        };
        let moved = i32::try_from(moved).unwrap_or(i32::MAX);
        self.peek_offset = match peek {
            true => self.peek_offset.saturating_add(moved),
            false => self.peek_offset.saturating_sub(moved).max(0),
        };
    }

    /// Bytes of a stream, up to the next descriptors, urgent byte or (`pass`) another sender's bytes.
    /// What was emptied goes to `finished`, to be dropped without the lock.
    fn take_stream(
        &mut self,
        from: Place,
        room: usize,
        peek: bool,
        pass: bool,
        received: &mut Received,
        finished: &mut Vec<Packet>,
    ) -> Vec<u8> {
        let mut data = Vec::with_capacity(room.min(self.bytes).min(BUFFER_SIZE + CHUNK));
        let Place { first, mut offset } = from;
        let sender = self.packets.get(first).map(|packet| packet.credentials);
        let mut index = first;
        let mut is_first = true;
        while let Some(packet) = self.packets.get_mut(index) {
            let foreign = pass && Some(packet.credentials) != sender;
            let is_urgent = packet.urgency != Urgency::None;
            let ends = data.len() == room || foreign || is_urgent || !packet.files.is_empty();
            if !is_first && ends {
                break;
            }
            is_first = false;
            let part = &packet.data.unread()[offset.min(packet.data.len())..];
            offset = 0;
            let len = part.len().min(room - data.len());
            data.extend_from_slice(&part[..len]);
            let has_files = !packet.files.is_empty();
            let files = packet.files.iter().map(Flight::file);
            received.ancillary.files.extend(files);
            if peek {
                index += 1;
            } else {
                packet.data.read += len;
                self.bytes -= len;
                if packet.data.len() > 0 {
                    if has_files {
                        let data = core::mem::take(&mut packet.data);
                        let rest = Packet {
                            data,
                            files: Vec::new(),
                            credentials: packet.credentials,
                            address: Vec::new(),
                            urgency: Urgency::None,
                        };
                        finished.push(core::mem::replace(packet, rest));
                    }
                    break;
                }
                finished.extend(self.packets.pop_front());
            }
            if has_files {
                break;
            }
        }
        data
    }

    /// One datagram, cut to the room there is.
    fn take_packet(
        &mut self,
        from: Place,
        room: usize,
        flags: u32,
        received: &mut Received,
        finished: &mut Vec<Packet>,
    ) -> Vec<u8> {
        let Some(packet) = self.packets.get(from.first) else {
            return Vec::new();
        };
        let unread = &packet.data.unread()[from.offset.min(packet.len())..];
        let whole = unread.len();
        let len = whole.min(room);
        let data = unread[..len].to_vec();
        received.len = if flags & msg::TRUNC != 0 { whole } else { len };
        if whole > len {
            received.flags |= msg::TRUNC;
        }
        let files = packet.files.iter().map(Flight::file);
        received.ancillary.files.extend(files);
        if flags & msg::PEEK == 0 {
            self.bytes -= whole;
            finished.extend(self.packets.pop_front());
        }
        data
    }
}
