use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use std::time::Duration;

use super::{BUFFER_SIZE, PACKETS_MAX};
use crate::Result;
use crate::errno::*;
use crate::fs::tests::Machine;
use crate::net::{kind, msg};
use crate::signal::{SIGPIPE, bit};
use crate::syscall::{descriptor, io, open, poll, socket};

const STREAM: u64 = kind::STREAM as u64;
const DGRAM: u64 = kind::DGRAM as u64;
const SEQPACKET: u64 = kind::SEQPACKET as u64;
const NONBLOCK: u64 = kind::NONBLOCK as u64;
const UNIX: u64 = 1;

const POLLIN: u16 = 1;
const POLLOUT: u16 = 4;
const POLLERR: u16 = 8;
const POLLHUP: u16 = 16;
const POLLRDHUP: u16 = 0x2000;
const ALL: u16 = POLLIN | POLLOUT | POLLRDHUP;

/// Where tests keep what is neither data (65536…) nor paths (0…).
const PLACE: u64 = 32768;

struct Sockets(Machine);

impl core::ops::Deref for Sockets {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.0
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn path_address(path: &str) -> Vec<u8> {
    let mut address = vec![1, 0];
    address.extend_from_slice(path.as_bytes());
    address
}

impl Sockets {
    fn new() -> Sockets {
        Sockets(Machine::new())
    }

    /// Another thread of control with the same descriptors, for calls that block.
    fn companion(&self) -> Sockets {
        let other = Machine::new();
        other.thread.set_files(self.thread.files());
        other.thread.set_fs(self.thread.fs());
        Sockets(other)
    }

    fn pair(&self, kind: u64) -> [u64; 2] {
        self.call(socket::socketpair, &[UNIX, kind, 0, self.scratch + PLACE])
            .expect("socketpair");
        let bytes = self.get(PLACE, 8);
        [u64::from(word(&bytes, 0)), u64::from(word(&bytes, 4))]
    }

    fn socket(&self, kind: u64) -> u64 {
        self.call(socket::socket, &[UNIX, kind, 0]).expect("socket") as u64
    }

    fn at(&self, call: crate::syscall::Handler, fd: u64, address: &[u8]) -> Result<usize> {
        let at = self.put(PLACE, address);
        self.call(call, &[fd, at, address.len() as u64])
    }

    fn listener(&self, kind: u64, path: &str, backlog: u64) -> u64 {
        let fd = self.socket(kind);
        self.at(socket::bind, fd, &path_address(path))
            .expect("bind");
        self.call(socket::listen, &[fd, backlog]).expect("listen");
        fd
    }

    fn close(&self, fd: u64) {
        self.call(open::close, &[fd]).expect("close");
    }

    fn send(&self, fd: u64, bytes: &[u8], flags: u32) -> Result<usize> {
        let at = self.put(65536, bytes);
        self.call(
            socket::sendto,
            &[fd, at, bytes.len() as u64, u64::from(flags)],
        )
    }

    fn receive(&self, fd: u64, len: usize, flags: u32) -> Result<Vec<u8>> {
        let at = self.scratch + 65536;
        let got = self.call(socket::recvfrom, &[fd, at, len as u64, u64::from(flags)])?;
        Ok(self.get(65536, got.min(len)))
    }

    fn poll(&self, fd: u64, events: u16) -> u16 {
        let mut entry = (fd as u32).to_le_bytes().to_vec();
        entry.extend_from_slice(&events.to_le_bytes());
        entry.extend_from_slice(&[0; 2]);
        let at = self.put(PLACE, &entry);
        self.call(poll::poll, &[at, 1, 0]).expect("poll");
        (word(&self.get(PLACE + 4, 4), 0) >> 16) as u16
    }

    fn option(&self, fd: u64, name: u64) -> Result<Vec<u8>> {
        self.put(PLACE, &16u32.to_le_bytes());
        let place = self.scratch + PLACE;
        self.call(socket::getsockopt, &[fd, 1, name, place + 8, place])?;
        let len = word(&self.get(PLACE, 4), 0);
        Ok(self.get(PLACE + 8, len as usize))
    }

    fn set_option(&self, fd: u64, name: u64, value: &[u8]) -> Result<usize> {
        let at = self.put(PLACE, value);
        self.call(socket::setsockopt, &[fd, 1, name, at, value.len() as u64])
    }

    /// Writes a msghdr for `len` data bytes and `control_len` bytes of ancillary data.
    fn header(&self, len: usize, control_len: usize) -> u64 {
        let words =
            |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
        self.put(PLACE + 64, &words(&[self.scratch + 65536, len as u64]));
        let (vector, control) = (self.scratch + PLACE + 64, self.scratch + PLACE + 128);
        let header = [0, 0, vector, 1, control, control_len as u64, 0];
        self.put(PLACE, &words(&header))
    }

    fn send_with(&self, fd: u64, bytes: &[u8], kind: u32, body: &[u32]) -> Result<usize> {
        let mut control = (16 + 4 * body.len() as u64).to_le_bytes().to_vec();
        control.extend_from_slice(&1u32.to_le_bytes());
        control.extend_from_slice(&kind.to_le_bytes());
        body.iter()
            .for_each(|word| control.extend_from_slice(&word.to_le_bytes()));
        self.put(PLACE + 128, &control);
        self.put(65536, bytes);
        let header = self.header(bytes.len(), control.len());
        self.call(socket::sendmsg, &[fd, header, u64::from(msg::DONTWAIT)])
    }

    fn send_files(&self, fd: u64, bytes: &[u8], files: &[u64]) -> Result<usize> {
        let files: Vec<u32> = files.iter().map(|&fd| fd as u32).collect();
        self.send_with(fd, bytes, 1, &files)
    }

    /// Data, ancillary data (without padding) and msg_flags.
    fn receive_with(&self, fd: u64, len: usize, room: usize) -> Result<(Vec<u8>, Vec<u8>, u32)> {
        let header = self.header(len, room);
        let got = self.call(socket::recvmsg, &[fd, header, u64::from(msg::DONTWAIT)])?;
        let control_len = word(&self.get(PLACE + 40, 4), 0) as usize;
        let flags = word(&self.get(PLACE + 48, 4), 0);
        Ok((
            self.get(65536, got),
            self.get(PLACE + 128, control_len),
            flags,
        ))
    }

    fn receive_file(&self, fd: u64) -> u64 {
        let (_, control, flags) = self.receive_with(fd, 100, 24).expect("a message");
        assert_eq!(flags, 0);
        assert_eq!((word(&control, 0), word(&control, 12)), (20, 1));
        u64::from(word(&control, 16))
    }
}

#[test]
fn a_stream_joins_and_cuts() {
    let it = Sockets::new();
    let [a, b] = it.pair(STREAM | NONBLOCK);
    assert_eq!(it.receive(b, 10, 0), Err(EAGAIN));
    it.send(a, b"hello ", 0).unwrap();
    it.send(a, b"world", 0).unwrap();
    assert_eq!(it.receive(b, 4, msg::PEEK), Ok(b"hell".to_vec()));
    assert_eq!(it.receive(b, 4, 0), Ok(b"hell".to_vec()));
    assert_eq!(it.receive(b, 100, 0), Ok(b"o world".to_vec()));
    assert_eq!(it.receive(b, 100, 0), Err(EAGAIN));
    // read(2) of nothing does not wait.
    assert_eq!(it.call(io::read, &[b, it.scratch, 0]), Ok(0));
    assert_eq!(it.send(a, b"", 0), Ok(0));
    assert_eq!(it.poll(b, ALL), POLLOUT);
}

#[test]
fn a_full_stream_takes_a_part_and_then_nothing() {
    let it = Sockets::new();
    let [a, b] = it.pair(STREAM | NONBLOCK);
    let big: Vec<u8> = (0..400_000u32).map(|i| (i % 251) as u8).collect();
    let mut other = Machine::new();
    other.thread.set_files(it.thread.files());
    other.scratch = crate::testing::alloc_user(&other.thread, 1 << 20);
    let at = other.put(0, &big);
    let sent = other.call(io::write, &[a, at, big.len() as u64]).unwrap();
    assert!((BUFFER_SIZE..BUFFER_SIZE + 65536).contains(&sent));
    assert_eq!(it.send(a, b"x", 0), Err(EAGAIN));
    assert_eq!(it.poll(a, ALL), 0);
    let at = other.put(0, &vec![0; 400_000]);
    // All that is there comes at once, across packets.
    assert_eq!(other.call(io::read, &[b, at, 400_000]), Ok(sent));
    assert_eq!(other.get(0, sent), big[..sent]);
    assert_eq!(it.poll(a, ALL), POLLOUT);
}

#[test]
fn the_end_of_a_stream() {
    let it = Sockets::new();
    let [a, b] = it.pair(STREAM);
    it.send(a, b"last", 0).unwrap();
    it.close(a);
    assert_eq!(it.poll(b, ALL), POLLIN | POLLOUT | POLLHUP | POLLRDHUP);
    assert_eq!(it.receive(b, 10, 0), Ok(b"last".to_vec()));
    assert_eq!(it.receive(b, 10, 0), Ok(vec![]));
    assert_eq!(it.send(b, b"x", msg::NOSIGNAL), Err(EPIPE));
    assert_eq!(it.thread.signals.pending_mask(), 0);
    assert_eq!(it.send(b, b"x", 0), Err(EPIPE));
    assert_eq!(it.thread.signals.pending_mask(), bit(SIGPIPE));
    // getpeername still knows.
    it.put(PLACE, &16u32.to_le_bytes());
    let place = it.scratch + PLACE;
    assert_eq!(it.call(socket::getpeername, &[b, place + 8, place]), Ok(0));

    // Unread data of ours: a reset, told once.
    let [a, b] = it.pair(STREAM);
    it.send(b, b"never read", 0).unwrap();
    it.close(a);
    assert_eq!(it.poll(b, ALL) & POLLERR, POLLERR);
    assert_eq!(it.receive(b, 10, 0), Err(ECONNRESET));
    assert_eq!(it.receive(b, 10, 0), Ok(vec![]));
    let [a, b] = it.pair(STREAM);
    it.send(b, b"never read", 0).unwrap();
    it.close(a);
    assert_eq!(it.option(b, 4), Ok(104u32.to_le_bytes().to_vec()));
    assert_eq!(it.option(b, 4), Ok(vec![0; 4]));
}

#[test]
fn shutdown_of_one_direction() {
    let it = Sockets::new();
    let [a, b] = it.pair(STREAM | NONBLOCK);
    assert_eq!(it.call(socket::shutdown, &[a, 3]), Err(EINVAL));
    assert_eq!(it.call(socket::shutdown, &[a, 1]), Ok(0));
    assert_eq!(it.send(a, b"x", msg::NOSIGNAL), Err(EPIPE));
    assert_eq!(it.receive(b, 10, 0), Ok(vec![]));
    assert_eq!(it.poll(b, ALL), POLLIN | POLLOUT | POLLRDHUP);
    assert_eq!(it.send(b, b"still", 0), Ok(5));
    assert_eq!(it.receive(a, 10, 0), Ok(b"still".to_vec()));
}

#[test]
fn blocking_calls_wait_for_each_other() {
    let it = Sockets::new();
    let [a, b] = it.pair(STREAM);
    let other = it.companion();
    let reader = std::thread::spawn(move || other.receive(b, 10, msg::WAITALL));
    std::thread::sleep(Duration::from_millis(20));
    it.send(a, b"01234", 0).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    it.send(a, b"56789", 0).unwrap();
    assert_eq!(reader.join().unwrap(), Ok(b"0123456789".to_vec()));

    // A close ends a wait.
    let other = it.companion();
    let reader = std::thread::spawn(move || other.receive(b, 10, 0));
    std::thread::sleep(Duration::from_millis(20));
    it.close(a);
    assert_eq!(reader.join().unwrap(), Ok(vec![]));

    // So does a timeout, with EAGAIN.
    let [_a, b] = it.pair(STREAM);
    let mut short = 0u64.to_le_bytes().to_vec();
    short.extend_from_slice(&10_000u64.to_le_bytes());
    it.set_option(b, 20, &short).unwrap();
    assert_eq!(it.option(b, 20), Ok(short));
    assert_eq!(it.receive(b, 10, 0), Err(EAGAIN));
}

#[test]
fn packets_keep_their_bounds() {
    let it = Sockets::new();
    for kind in [DGRAM, SEQPACKET] {
        let [a, b] = it.pair(kind | NONBLOCK);
        it.send(a, b"first", 0).unwrap();
        it.send(a, b"", 0).unwrap();
        it.send(a, b"third", 0).unwrap();
        assert_eq!(it.receive(b, 3, msg::PEEK), Ok(b"fir".to_vec()));
        let at = it.scratch + 65536;
        let truncated = it.call(socket::recvfrom, &[b, at, 3, u64::from(msg::TRUNC)]);
        assert_eq!(truncated, Ok(5));
        assert_eq!(it.receive(b, 10, 0), Ok(vec![]));
        let (data, _, flags) = it.receive_with(b, 4, 0).unwrap();
        assert_eq!((&data[..], flags), (&b"thir"[..], msg::TRUNC));
        assert_eq!(it.receive(b, 10, 0), Err(EAGAIN));
        for _ in 0..PACKETS_MAX {
            it.send(a, b"x", 0).unwrap();
        }
        assert_eq!(it.send(a, b"x", 0), Err(EAGAIN));
        assert_eq!(it.poll(a, ALL), 0);
        it.receive(b, 1, 0).unwrap();
        assert_eq!(it.poll(a, ALL), POLLOUT);
    }
    // The far end of a datagram pair closes: refused, not broken.
    let [a, b] = it.pair(DGRAM | NONBLOCK);
    it.close(b);
    assert_eq!(it.send(a, b"x", 0), Err(ECONNREFUSED));
    assert_eq!(it.receive(a, 1, 0), Err(EAGAIN));
    assert_eq!(it.thread.signals.pending_mask(), 0);
    let [a, _b] = it.pair(DGRAM);
    it.set_option(a, 7, &1000u32.to_le_bytes()).unwrap();
    assert_eq!(it.send(a, &vec![0; 5000], 0), Err(EMSGSIZE));
}

#[test]
fn listening_by_path() {
    let it = Sockets::new();
    let address = path_address("/server");
    let client = it.socket(STREAM);
    assert_eq!(it.at(socket::connect, client, &address), Err(ENOENT));
    assert_eq!(it.receive(client, 1, 0), Err(EINVAL));
    assert_eq!(it.send(client, b"x", 0), Err(ENOTCONN));
    assert_eq!(it.poll(client, ALL), POLLOUT | POLLHUP);
    let server = it.listener(STREAM, "/server", 1);
    assert_eq!(it.at(socket::bind, client, &address), Err(EADDRINUSE));
    let wrong = it.socket(SEQPACKET);
    assert_eq!(it.at(socket::connect, wrong, &address), Err(EPROTOTYPE));
    assert_eq!(it.poll(server, ALL), 0);
    assert_eq!(it.at(socket::connect, client, &address), Ok(0));
    assert_eq!(it.at(socket::connect, client, &address), Err(EISCONN));
    assert_eq!(it.poll(server, ALL), POLLIN);
    // What is sent before accept arrives.
    it.send(client, b"early", 0).unwrap();
    it.put(PLACE, &110u32.to_le_bytes());
    let place = it.scratch + PLACE;
    let arguments = [server, place + 8, place, NONBLOCK];
    let accepted = it.call(socket::accept4, &arguments).unwrap() as u64;
    assert_eq!(it.get(PLACE, 4), 2u32.to_le_bytes());
    assert_eq!(it.receive(accepted, 10, 0), Ok(b"early".to_vec()));
    assert_eq!(it.receive(accepted, 10, 0), Err(EAGAIN));
    // Names: the server's on the client's side.
    it.put(PLACE, &110u32.to_le_bytes());
    it.call(socket::getpeername, &[client, place + 8, place])
        .unwrap();
    assert_eq!(it.get(PLACE + 8, 9), address);
    assert_eq!(it.get(PLACE, 4), 10u32.to_le_bytes());
    // Credentials.
    let pid = it.thread.process.pid;
    assert_eq!(word(&it.option(client, 17).unwrap(), 0), pid);
    assert_eq!(word(&it.option(accepted, 17).unwrap(), 0), pid);
    // backlog 1 holds two.
    for expected in [Ok(0), Ok(0), Err(EAGAIN)] {
        let more = it.socket(STREAM | NONBLOCK);
        assert_eq!(it.at(socket::connect, more, &address), expected);
    }
    // A blocking connect waits for room; the listener's end ends it.
    let other = it.companion();
    let last = it.socket(STREAM);
    let to = address.clone();
    let waiting = std::thread::spawn(move || other.at(socket::connect, last, &to));
    std::thread::sleep(Duration::from_millis(20));
    it.close(server);
    assert_eq!(waiting.join().unwrap(), Err(ECONNREFUSED));
    let fresh = it.socket(STREAM);
    assert_eq!(it.at(socket::connect, fresh, &address), Err(ECONNREFUSED));
}

#[test]
fn a_listener_that_goes_resets_who_waits() {
    let it = Sockets::new();
    let server = it.listener(STREAM, "/short", 5);
    let client = it.socket(STREAM);
    it.at(socket::connect, client, &path_address("/short"))
        .unwrap();
    it.close(server);
    assert_eq!(it.receive(client, 1, 0), Err(ECONNRESET));
    assert_eq!(it.receive(client, 1, 0), Ok(vec![]));
    // And one that is shut down wakes its accept.
    let server = it.listener(STREAM, "/shut", 5);
    let other = it.companion();
    let accept = std::thread::spawn(move || other.call(socket::accept, &[server, 0, 0]));
    std::thread::sleep(Duration::from_millis(20));
    it.call(socket::shutdown, &[server, 2]).unwrap();
    assert_eq!(accept.join().unwrap(), Err(EINVAL));
}

#[test]
fn datagrams_by_abstract_name() {
    let it = Sockets::new();
    let server = it.socket(DGRAM | NONBLOCK);
    let mut name = vec![1, 0, 0];
    name.extend_from_slice(b"datagrams by abstract name");
    it.at(socket::bind, server, &name).unwrap();
    let client = it.socket(DGRAM);
    assert_eq!(it.send(client, b"x", 0), Err(ENOTCONN));
    // Autobind gives a name of five digits.
    it.at(socket::bind, client, &[1, 0]).unwrap();
    it.at(socket::connect, client, &name).unwrap();
    it.send(client, b"question", 0).unwrap();
    let place = it.scratch + PLACE;
    it.put(PLACE, &110u32.to_le_bytes());
    let arguments = [server, it.scratch + 65536, 100, 0, place + 8, place];
    assert_eq!(it.call(socket::recvfrom, &arguments), Ok(8));
    let len = word(&it.get(PLACE, 4), 0) as usize;
    assert_eq!(len, 8);
    let back = it.get(PLACE + 8, len);
    it.put(PLACE, &back);
    it.put(65536, b"answer");
    let arguments = [server, it.scratch + 65536, 6, 0, place, len as u64];
    assert_eq!(it.call(socket::sendto, &arguments), Ok(6));
    assert_eq!(it.receive(client, 10, 0), Ok(b"answer".to_vec()));
    // A stranger may not send to a socket that is connected elsewhere.
    let stranger = it.socket(DGRAM);
    assert_eq!(it.at(socket::connect, stranger, &back), Err(EPERM));
    it.put(PLACE, &back);
    let arguments = [stranger, it.scratch + 65536, 6, 0, place, len as u64];
    assert_eq!(it.call(socket::sendto, &arguments), Err(EPERM));
    // The name is free again after the close.
    it.close(server);
    let again = it.socket(DGRAM);
    assert_eq!(it.at(socket::bind, again, &name), Ok(0));
}

#[test]
fn descriptors_travel() {
    let it = Sockets::new();
    let [a, b] = it.pair(STREAM | NONBLOCK);
    let [near, far] = it.pair(STREAM | NONBLOCK);
    assert_eq!(it.send_files(a, b"", &[far]), Ok(0));
    assert_eq!(it.send_files(a, b"x", &[far, 99]), Err(EBADF));
    it.send(a, b"before", 0).unwrap();
    it.send_files(a, b"with", &[far]).unwrap();
    it.send(a, b"after", 0).unwrap();
    it.close(far);
    // The one in flight keeps the connection.
    it.send(near, b"in flight", 0).unwrap();
    // Bytes before and with the descriptors are apart.
    let (data, control, _) = it.receive_with(b, 100, 100).unwrap();
    assert_eq!((&data[..], control.len()), (&b"before"[..], 0));
    let got = it.receive_file(b);
    assert_eq!(it.receive(b, 100, 0), Ok(b"after".to_vec()));
    assert_eq!(it.receive(got, 100, 0), Ok(b"in flight".to_vec()));
    // Without room they are closed, and it is said.
    it.send_files(a, b"x", &[got]).unwrap();
    it.close(got);
    let (_, control, flags) = it.receive_with(b, 10, 0).unwrap();
    assert_eq!((control.len(), flags), (0, msg::CTRUNC));
    assert_eq!(it.receive(near, 1, 0), Ok(vec![]));
}

#[test]
fn what_travels_in_circles_is_freed() {
    let it = Sockets::new();
    let [a, b] = it.pair(STREAM | NONBLOCK);
    let [witness, inside] = it.pair(STREAM | NONBLOCK);
    // b waits in its own queue, with a file whose other end tells when it is gone.
    it.send_files(a, b"x", &[b, inside]).unwrap();
    it.close(inside);
    it.close(b);
    assert_eq!(it.receive(witness, 1, 0), Err(EAGAIN));
    it.close(a);
    // Some later close collects: this one's was early, the circle's files were not yet alone.
    assert_eq!(it.receive(witness, 1, 0), Ok(vec![]));

    // Two that wait in each other's queue.
    let [a, b] = it.pair(DGRAM | NONBLOCK);
    let [witness, inside] = it.pair(STREAM | NONBLOCK);
    it.send_files(a, b"x", &[a, inside]).unwrap();
    it.send_files(b, b"x", &[b]).unwrap();
    it.close(inside);
    it.close(a);
    it.close(b);
    let [c, _d] = it.pair(STREAM);
    it.close(c);
    assert_eq!(it.receive(witness, 1, 0), Ok(vec![]));

    // What somebody can still receive stays.
    let [a, b] = it.pair(STREAM | NONBLOCK);
    let [near, far] = it.pair(STREAM | NONBLOCK);
    it.send_files(a, b"x", &[far]).unwrap();
    it.send(near, b"kept", 0).unwrap();
    it.close(far);
    let [c, _d] = it.pair(STREAM);
    it.close(c);
    let far = it.receive_file(b);
    assert_eq!(it.receive(far, 10, 0), Ok(b"kept".to_vec()));
}

#[test]
fn nesting_in_flight_is_bounded() {
    let it = Sockets::new();
    let [mut a, mut b] = it.pair(STREAM | NONBLOCK);
    let mut refused = false;
    for _ in 0..10 {
        let [next, next_end] = it.pair(STREAM | NONBLOCK);
        it.send(a, b"", 0).unwrap();
        match it.send_files(next, b"x", &[b]) {
            Ok(_) => (a, b) = (next, next_end),
            Err(error) => {
                assert_eq!(error, ETOOMANYREFS);
                refused = true;
                break;
            }
        }
    }
    assert!(refused);
}

#[test]
fn credentials_travel() {
    let it = Sockets::new();
    let [a, b] = it.pair(DGRAM | NONBLOCK);
    it.set_option(b, 16, &1u32.to_le_bytes()).unwrap();
    let pid = it.thread.process.pid;
    it.send(a, b"implied", 0).unwrap();
    let (_, control, _) = it.receive_with(b, 100, 100).unwrap();
    assert_eq!((word(&control, 12), word(&control, 16)), (2, pid));
    assert_eq!(it.send_with(a, b"said", 2, &[pid, 0, 0]), Ok(4));
    it.receive_with(b, 100, 100).unwrap();
    assert_eq!(it.send_with(a, b"lied", 2, &[pid + 1, 0, 0]), Err(EPERM));
    *it.thread.process.credentials.lock() =
        crate::process::credentials::Credentials::new(1000, 1000, Vec::new());
    assert_eq!(it.send_with(a, b"lied", 2, &[pid, 0, 1000]), Err(EPERM));
    assert_eq!(it.send_with(a, b"said", 2, &[pid, 1000, 1000]), Ok(4));
    // Accepted sockets take the option from the listener.
    let server = it.listener(STREAM, "\0passes", 1);
    it.set_option(server, 16, &1u32.to_le_bytes()).unwrap();
    let client = it.socket(STREAM);
    it.at(socket::connect, client, &path_address("\0passes"))
        .unwrap();
    let accepted = it.call(socket::accept, &[server, 0, 0]).unwrap() as u64;
    assert_eq!(it.option(accepted, 16), Ok(1u32.to_le_bytes().to_vec()));
}

#[test]
fn options_and_ioctls() {
    let it = Sockets::new();
    let [a, b] = it.pair(STREAM);
    assert_eq!(it.option(a, 3), Ok(1u32.to_le_bytes().to_vec()));
    assert_eq!(it.option(a, 39), Ok(1u32.to_le_bytes().to_vec()));
    assert_eq!(it.option(a, 999), Err(ENOPROTOOPT));
    it.send(a, b"1234567", 0).unwrap();
    let place = it.scratch + PLACE;
    assert_eq!(it.call(descriptor::ioctl, &[b, 0x541b, place]), Ok(0));
    assert_eq!(it.get(PLACE, 4), 7u32.to_le_bytes());
    assert_eq!(it.call(descriptor::ioctl, &[b, 0x5401, place]), Err(ENOTTY));
    it.put(PLACE, &1u32.to_le_bytes());
    it.call(descriptor::ioctl, &[a, 0x5421, place]).unwrap();
    assert_eq!(it.receive(a, 1, 0), Err(EAGAIN));
    // fstat says socket.
    let place = it.scratch + PLACE;
    it.call(crate::syscall::stat::fstat, &[a, place]).unwrap();
    assert_eq!(word(&it.get(PLACE + 24, 4), 0) & 0o170000, 0o140000);
    assert_eq!(it.call(io::lseek, &[a, 0, 0]), Err(ESPIPE));
    // Arguments that no socket takes.
    assert_eq!(it.call(socket::socket, &[99, STREAM, 0]), Err(EAFNOSUPPORT));
    assert_eq!(it.call(socket::socket, &[UNIX, 0x1000001, 0]), Err(EINVAL));
    assert_eq!(it.call(socket::listen, &[a, 1]), Err(EINVAL));
    let open_file = Arc::strong_count(&it.thread.files().get(a as i32).unwrap());
    assert_eq!(open_file, 2);
}
