//! What this machine's kernel says of its interfaces, addresses and routes (rtnetlink(7)).
//!
//! The messages go to the enclave as they came; it is the enclave that checks them.

use bulla_abi::network::query;

use super::raw::{Answer, Errno, plain};

/// Bytes of a `struct nlmsghdr`.
const HEADER: usize = 16;
/// The kernel makes datagrams no longer than the reader's buffer, and none of more than this.
const DATAGRAM: usize = 64 << 10;
/// Most bytes of one answer: a machine with more than some ten thousand routes says that it has too
/// many of them.
const ANSWER_MAX: usize = 8 << 20;

/// A socket that is closed at the end.
struct Socket(i32);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = super::file::close(self.0);
    }
}

/// The kernel's messages about `what`; `request` is what it is asked with, where one message is
/// enough ([`query::ROUTE_TO`]).
pub fn query(what: u64, request: &[u8]) -> Result<Vec<u8>, Errno> {
    let (kind, header_len) = match what {
        query::LINKS => (libc::RTM_GETLINK, 16),
        query::ADDRESSES => (libc::RTM_GETADDR, 8),
        query::ROUTES | query::ROUTE_TO => (libc::RTM_GETROUTE, 12),
        query::NEIGHBOURS => (libc::RTM_GETNEIGH, 12),
        query::RULES => (libc::RTM_GETRULE, 12),
        _ => return Err(Errno(libc::EINVAL)),
    };
    let is_dump = what != query::ROUTE_TO;
    if !is_dump && request.len() < header_len {
        return Err(Errno(libc::EINVAL));
    }
    let body = match is_dump {
        true => vec![0; header_len],
        false => request.to_vec(),
    };
    let dump = if is_dump { libc::NLM_F_DUMP } else { 0 };
    let mut message = ((HEADER + body.len()) as u32).to_le_bytes().to_vec();
    message.extend_from_slice(&kind.to_le_bytes());
    message.extend_from_slice(&((libc::NLM_F_REQUEST | dump) as u16).to_le_bytes());
    // Sequence number and port: there is one question and one answer.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&body);

    let socket = Socket(plain!(
        libc::SYS_socket,
        libc::AF_NETLINK,
        libc::SOCK_RAW | libc::SOCK_CLOEXEC,
        libc::NETLINK_ROUTE
    )? as i32);
    plain!(
        libc::SYS_sendto,
        socket.0,
        message.as_ptr(),
        message.len(),
        0,
        0,
        0
    )?;
    let mut answer = Vec::new();
    let mut datagram = vec![0u8; DATAGRAM];
    loop {
        let len = receive(&socket, &mut datagram)? as usize;
        let mut found = 0;
        for message in messages(&datagram[..len.min(DATAGRAM)]) {
            found += 1;
            match i32::from(u16::from_le_bytes([message[4], message[5]])) {
                libc::NLMSG_DONE => return Ok(answer),
                libc::NLMSG_ERROR => return Err(error_in(message)),
                _ => answer.extend_from_slice(message),
            }
            if !is_dump {
                return Ok(answer);
            }
            if answer.len() > ANSWER_MAX {
                return Err(Errno(libc::ENOBUFS));
            }
        }
        if found == 0 {
            return Err(Errno(libc::EIO));
        }
    }
}

fn receive(socket: &Socket, to: &mut [u8]) -> Answer {
    loop {
        // SAFETY of the kernel's write: the length is the buffer's.
        match plain!(
            libc::SYS_recvfrom,
            socket.0,
            to.as_mut_ptr(),
            to.len(),
            0,
            0,
            0
        ) {
            Err(Errno(libc::EINTR)) => {}
            other => return other,
        }
    }
}

fn error_in(message: &[u8]) -> Errno {
    match message.get(HEADER..HEADER + 4) {
        Some(code) => {
            let code = i32::from_le_bytes([code[0], code[1], code[2], code[3]]);
            Errno(
                code.checked_neg()
                    .filter(|code| *code > 0)
                    .unwrap_or(libc::EIO),
            )
        }
        None => Errno(libc::EIO),
    }
}

/// The whole messages in `bytes`, each with the padding that follows it.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = bytes.get(..4)?;
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        if len < HEADER || len > bytes.len() {
            return None;
        }
        let (message, rest) = bytes.split_at(len.next_multiple_of(4).min(bytes.len()));
        bytes = rest;
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_an_interface_with_an_address() {
        let links = query(query::LINKS, &[]).unwrap();
        let name = |message: &&[u8]| message.windows(4).any(|bytes| bytes == b"lo\0\0");
        assert_eq!(messages(&links).filter(name).count(), 1);
        let addresses = query(query::ADDRESSES, &[]).unwrap();
        assert!(
            messages(&addresses).any(|message| message.ends_with(&[127, 0, 0, 1])
                || message.windows(4).any(|bytes| bytes == [127, 0, 0, 1]))
        );
    }

    #[test]
    fn the_route_to_an_address() {
        // rtmsg: AF_INET, 32 bits of destination; RTA_DST 127.0.0.1.
        let mut request = vec![2, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        request.extend_from_slice(&[8, 0, 1, 0, 127, 0, 0, 1]);
        assert_eq!(
            messages(&query(query::ROUTE_TO, &request).unwrap()).count(),
            1
        );
        assert_eq!(query(query::ROUTE_TO, &[]), Err(Errno(libc::EINVAL)));
        assert_eq!(query(99, &[]), Err(Errno(libc::EINVAL)));
    }

    #[test]
    fn what_is_no_message_ends_the_list() {
        assert_eq!(messages(&[]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
        let mut bytes = [0; 40];
        bytes[0] = 17;
        bytes[20] = 99;
        let lengths: Vec<usize> = messages(&bytes).map(<[u8]>::len).collect();
        assert_eq!(lengths, [20]);
    }
}
