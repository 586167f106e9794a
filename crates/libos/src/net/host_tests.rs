//! A host that answers socket calls with what it must not: out of range, lengths that lie, more than
//! was asked for, in the wrong order. Each is an error (EIO) or cut to what is possible; memory that
//! was not asked for is never touched.

use alloc::vec::Vec;
use core::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::errno::{EAGAIN, EBADF};
use crate::mm::map::Request;
use crate::platform::Protection;
use crate::testing::{self, on_host_call};

const DATA: Wanted = Wanted {
    address: false,
    control: 0,
};
const WITH_ADDRESS: Wanted = Wanted {
    address: true,
    control: 0,
};

const LEN: usize = 256;
const MARK: u8 = 0x5a;
/// Numbers that no answer may be: above what was asked for, or beyond any range.
const BEYOND: [i64; 6] = [
    LEN as i64 + 1,
    DATA_SIZE as i64 + 1,
    1 << 31,
    1 << 32,
    i64::MAX,
    (1 << 32) + 5,
];
/// Numbers that are no error.
const NO_ERRORS: [i64; 4] = [i64::MIN, -4096, -512, -134];

fn answering(answer: i64) {
    on_host_call(move |call, _, _| match call {
        HostCall::Close => 0,
        _ => answer,
    });
}

fn fd() -> HostFd {
    HostFd(7)
}

fn user_memory() -> (Arc<Thread>, u64) {
    let thread = testing::setup();
    let request = Request::anonymous(2 * 4096, Protection::READ | Protection::WRITE);
    let address = thread.mm().map(request).unwrap();
    let marks = [MARK; 2 * 4096];
    thread.mm().write(address, &marks).unwrap();
    (thread, address)
}

fn get(thread: &Arc<Thread>, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    thread.mm().read(address, &mut bytes).unwrap();
    bytes
}

#[test]
fn descriptors_out_of_range_are_refused() {
    testing::setup();
    for answer in [1 << 31, 1 << 32, i64::MAX, (1 << 32) | 3] {
        answering(answer);
        assert_eq!(socket(2, 1, 0).err(), Some(EIO), "{answer:#x}");
        assert_eq!(accept(&fd()).err(), Some(EIO), "{answer:#x}");
        assert_eq!(epoll_create().err(), Some(EIO), "{answer:#x}");
    }
    // What looks like an error number is one; anything else negative is EIO.
    answering(-9);
    assert_eq!(socket(2, 1, 0).err(), Some(EBADF));
    for answer in NO_ERRORS {
        answering(answer);
        assert_eq!(socket(2, 1, 0).err(), Some(EIO), "{answer}");
        assert_eq!(listen(&fd(), 1).err(), Some(EIO), "{answer}");
    }
}

#[test]
fn a_descriptor_that_is_refused_is_not_closed() {
    testing::setup();
    let closed = Rc::new(RefCell::new(Vec::new()));
    let seen = closed.clone();
    on_host_call(move |call, arguments, _| match call {
        HostCall::Close => {
            seen.borrow_mut().push(arguments[0]);
            0
        }
        HostCall::Socket => 1 << 31,
        _ => 12,
    });
    assert!(socket(2, 1, 0).is_err());
    assert!(closed.borrow().is_empty());
    drop(epoll_create().unwrap());
    assert_eq!(*closed.borrow(), [12]);
}

#[test]
fn an_accepted_address_is_cut_to_its_bounds() {
    testing::setup();
    for len in [129u32, 4096, u32::MAX] {
        on_host_call(move |call, _, data| {
            if call == HostCall::Accept {
                data[..4].copy_from_slice(&len.to_le_bytes());
            }
            9
        });
        assert_eq!(accept(&fd()).err(), Some(EIO), "{len}");
    }
    on_host_call(|_, _, data| {
        data[..8].copy_from_slice(&[4, 0, 0, 0, 1, 2, 3, 4]);
        9
    });
    assert_eq!(accept(&fd()).unwrap().1, [1, 2, 3, 4]);
}

#[test]
fn more_sent_than_there_was() {
    let (thread, address) = user_memory();
    let mm = thread.mm();
    for answer in BEYOND.into_iter().chain([0]) {
        answering(answer);
        for (is_stream, to) in [(true, None), (false, Some(&[2u8, 0, 0, 0][..]))] {
            let mut from = IoBuffer::user(&mm, address, LEN);
            let sent = send(&fd(), &mut from, 0, to, &[], is_stream);
            assert_eq!(sent.err(), Some(EIO), "{answer:#x}");
            assert_eq!(from.done(), 0, "nothing counts as sent");
        }
    }
    answering(100);
    let mut from = IoBuffer::user(&mm, address, LEN);
    assert_eq!(send(&fd(), &mut from, 0, None, &[], true), Ok(100));
    assert_eq!(from.done(), 100);
}

#[test]
fn more_received_than_there_was_room() {
    let (thread, address) = user_memory();
    let mm = thread.mm();
    for answer in BEYOND {
        for is_stream in [true, false] {
            on_host_call(move |_, _, data| {
                data.fill(0xee);
                answer
            });
            let mut to = IoBuffer::user(&mm, address, LEN);
            let got = receive(&fd(), &mut to, 0, is_stream, DATA, None);
            assert_eq!(got.err(), Some(EIO), "{answer:#x}");
            assert_eq!(get(&thread, address, 2 * LEN), [MARK; 2 * LEN]);
        }
        // A datagram may be longer than the buffer; what is beyond is not touched.
        let mut to = IoBuffer::user(&mm, address, LEN);
        let got = receive(&fd(), &mut to, msg::TRUNC, false, DATA, None);
        if answer > DATAGRAM_MAX as i64 {
            assert_eq!(got.err(), Some(EIO), "{answer:#x}");
            continue;
        }
        assert_eq!(got.unwrap().len as i64, answer);
        assert_eq!(get(&thread, address, LEN), [0xee; LEN]);
        assert_eq!(get(&thread, address + LEN as u64, LEN), [MARK; LEN]);
        mm.write(address, &[MARK; LEN]).unwrap();
    }
}

#[test]
fn a_received_address_is_cut_to_its_bounds() {
    let (thread, address) = user_memory();
    let mm = thread.mm();
    for len in [129u32, 1 << 16, u32::MAX] {
        on_host_call(move |_, _, data| {
            data[8..12].copy_from_slice(&len.to_le_bytes());
            8
        });
        let mut to = IoBuffer::user(&mm, address, LEN);
        let got = receive(&fd(), &mut to, 0, false, WITH_ADDRESS, None);
        assert_eq!(got.err(), Some(EIO), "{len}");
        assert_eq!(get(&thread, address, 8), [MARK; 8]);
    }
}

#[test]
fn names_and_options_that_are_too_long() {
    testing::setup();
    for answer in [ADDRESS_MAX as i64 + 1, 5000, i64::MAX] {
        answering(answer);
        assert_eq!(own_name(&fd()).err(), Some(EIO));
        assert_eq!(peer_name(&fd()).err(), Some(EIO));
        assert_eq!(get_option(&fd(), 1, 4, 4).err(), Some(EIO));
        assert_eq!(get_option(&fd(), 1, 4, usize::MAX).is_err(), answer > 4096);
    }
    answering(3);
    assert_eq!(get_option(&fd(), 1, 4, 4).unwrap().len(), 3);
}

#[test]
fn ioctls_have_no_other_result() {
    testing::setup();
    for answer in [1, 4096, i64::MAX] {
        answering(answer);
        assert_eq!(ioctl(&fd(), 0x541b, &mut [0; 4]), Err(EIO));
    }
}

#[test]
fn poll_reports_only_what_was_asked_for() {
    let thread = testing::setup();
    let seen = thread.event_count();
    let entries = || {
        [(3, 1), (-1, 5), (4, 4)].map(|(fd, events)| PollFd {
            fd,
            events,
            revents: 0,
        })
    };
    for answer in [1, 3, 1000, i64::MAX] {
        on_host_call(move |_, arguments, data| {
            assert_eq!(arguments[0], 3);
            // Other descriptors, other events, everything ready.
            for entry in data[..24].chunks_exact_mut(8) {
                entry.copy_from_slice(&[99, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
            }
            answer
        });
        let mut list = entries();
        let ready = poll(&mut list, Some(0), &thread, seen).unwrap();
        assert_eq!(ready, 2, "{answer}");
        let revents = list.map(|entry| entry.revents);
        assert_eq!(revents, [0x39, 0, 0x3c]);
        assert_eq!(list.map(|entry| entry.fd), [3, -1, 4]);
    }
    // Ready, says the number; nothing, says the list.
    answering(2);
    let mut list = entries();
    assert_eq!(poll(&mut list, Some(0), &thread, seen), Ok(0));
    answering(-4);
    assert_eq!(poll(&mut list, Some(0), &thread, seen), Ok(0));
    answering(-11);
    assert_eq!(poll(&mut list, Some(0), &thread, seen), Err(EAGAIN));
}

#[test]
fn epoll_gives_no_more_events_than_asked_for() {
    let thread = testing::setup();
    let seen = thread.event_count();
    for answer in [5, 257, i64::MAX] {
        answering(answer);
        let mut count = 0;
        let result = epoll_wait(&fd(), 4, Some(0), &thread, seen, |_, _| count += 1);
        assert_eq!((result.err(), count), (Some(EIO), 0), "{answer}");
    }
    answering(4);
    let mut count = 0;
    assert_eq!(
        epoll_wait(&fd(), 4, Some(0), &thread, seen, |_, _| count += 1),
        Ok(4)
    );
    assert_eq!(count, 4);
}

fn message(len: u64, level: i32, kind: i32, body: &[u8]) -> Vec<u8> {
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend_from_slice(&level.to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn control_messages_of_the_host_are_checked() {
    let hop_limit = message(20, 41, 52, &[64, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(check_control(&[]), Ok(()));
    assert_eq!(check_control(&hop_limit), Ok(()));
    let cut = message(18, 41, 67, &[1, 2]);
    assert_eq!(check_control(&[hop_limit.clone(), cut].concat()), Ok(()));
    for bad in [
        message(20, 1, 1, &[3, 0, 0, 0]),
        message(28, 1, 2, &[0; 12]),
        message(24, 41, 52, &[0; 4]),
        message(15, 41, 52, &[0; 8]),
        message(u64::MAX, 41, 52, &[0; 8]),
        hop_limit[..12].to_vec(),
    ] {
        assert_eq!(check_control(&bad), Err(EIO), "{bad:?}");
    }
}
