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
        if message.flags & msg::OOB != 0 {
            return Err(EOPNOTSUPP.because("no out-of-band data on UNIX sockets"));
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
            let mut bytes = vec![0; message.data.remaining().min(limit)];
            if message.data.peek(&mut bytes)? < bytes.len() {
                return Err(EFAULT);
            }
            let len = bytes.len();
            let mut packet = Some(Packet {
                data: Bytes { bytes, read: 0 },
                files: core::mem::take(&mut files),
                credentials,
                address: own.clone(),
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
            (Some(_), _) if self.is_connection() => {
                return Err(if connected { EISCONN } else { EOPNOTSUPP });
            }
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
            return Err(EOPNOTSUPP.because("no out-of-band data on UNIX sockets"));
        }
        if message.flags & msg::ERRQUEUE != 0 {
            return Err(EAGAIN);
        }
        let peek = message.flags & msg::PEEK != 0;
        let wait_all = message.flags & msg::WAITALL != 0 && self.is_stream() && !peek;
        let deadline = self.timeouts.receive_deadline();
        let mut total: Option<Received> = None;
        loop {
            let received = if nonblocking {
                self.take(&mut message).unwrap_or(Err(EAGAIN))
            } else {
                block_on(thread, &self.queue, READABLE, deadline, || {
                    self.take(&mut message)
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

    /// Receives what is there; `None` when there is nothing yet.
    fn take(&self, message: &mut Incoming<'_, '_>) -> Option<Result<Received>> {
        let pass = self.pass_credentials.load(Ordering::Relaxed);
        let peek = message.flags & msg::PEEK != 0;
        let mut received = Received::default();
        let mut finished: Vec<Packet> = Vec::new();
        let (data, peer, credentials) = {
            let mut state = self.state.lock();
            let Some(first) = state.packets.front() else {
                return self.nothing(&mut state);
            };
            let credentials = first.credentials;
            if pass {
                received.ancillary.credentials = Some(first.credentials);
            }
            let room = message.data.remaining();
            let data = if self.is_stream() {
                state.take_stream(room, peek, pass, &mut received, &mut finished)
            } else {
                if message.want_address && !self.is_connection() {
                    received.address.clone_from(&first.address);
                }
                state.take_packet(room, peek, message.flags, &mut received, &mut finished)
            };
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
        });
    }

    /// What a receive finds on an empty queue.
    fn nothing(&self, state: &mut State) -> Option<Result<Received>> {
        if state.reset {
            state.reset = false;
            return Some(Err(ECONNRESET));
        }
        if state.receive_closed {
            return Some(Ok(Received::default()));
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
        self.files.is_empty()
            && next.files.is_empty()
            && self.credentials == next.credentials
            && self.data.bytes.len() + next.len() <= CHUNK
    }
}

impl State {
    /// Bytes of a stream, up to the next descriptors or (`pass`) another sender's bytes. What
    /// was emptied goes to `finished`, to be dropped without the lock.
    fn take_stream(
        &mut self,
        room: usize,
        peek: bool,
        pass: bool,
        received: &mut Received,
        finished: &mut Vec<Packet>,
    ) -> Vec<u8> {
        let mut data = Vec::with_capacity(room.min(self.bytes).min(BUFFER_SIZE + CHUNK));
        let sender = self.packets.front().map(|packet| packet.credentials);
        let mut index = 0;
        while let Some(packet) = self.packets.get_mut(index) {
            let foreign = pass && Some(packet.credentials) != sender;
            let stop = index > 0 || !finished.is_empty();
            if stop && (data.len() == room || foreign || !packet.files.is_empty()) {
                break;
            }
            let part = packet.data.unread();
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
        room: usize,
        peek: bool,
        flags: u32,
        received: &mut Received,
        finished: &mut Vec<Packet>,
    ) -> Vec<u8> {
        let Some(packet) = self.packets.front() else {
            return Vec::new();
        };
        let whole = packet.len();
        let len = whole.min(room);
        let data = packet.data.unread()[..len].to_vec();
        received.len = if flags & msg::TRUNC != 0 { whole } else { len };
        if whole > len {
            received.flags |= msg::TRUNC;
        }
        let files = packet.files.iter().map(Flight::file);
        received.ancillary.files.extend(files);
        if !peek {
            self.bytes -= whole;
            finished.extend(self.packets.pop_front());
        }
        data
    }
}
