//! Host calls and threads, driven by tests that play the enclave.

use std::io::Write;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::time::{Duration, Instant};

use bulla_abi::hostcall::{DATA_SIZE, EnterReason, EpollEvent, HostCall, RECV_WAIT, RecvHeader};

use crate::backend::EnterLeaf;
use crate::fake::{Inside, engine, new_engine};
use crate::{Error, ExitStatus};

const NONE: u64 = u64::MAX;
const ELRANGE: u64 = bulla_abi::layout::LayoutKind::Dynamic.elrange_size();
const EFAULT: i64 = -(libc::EFAULT as i64);
const EBADF: i64 = -(libc::EBADF as i64);
const EINVAL: i64 = -(libc::EINVAL as i64);
const EINTR: i64 = -(libc::EINTR as i64);
const EAGAIN: i64 = -(libc::EAGAIN as i64);

/// 127.0.0.1 as a sockaddr_in.
fn loopback(port: u16) -> Vec<u8> {
    let mut address = vec![libc::AF_INET as u8, 0];
    address.extend(port.to_be_bytes());
    address.extend([127, 0, 0, 1]);
    address.extend([0; 8]);
    address
}

fn stream(inside: &Inside) -> u64 {
    let fd = inside.call(
        HostCall::Socket,
        [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0],
    );
    assert!(fd > 2, "{fd}");
    fd as u64
}

/// A connected pair: the client's descriptor and the server's.
fn connection(inside: &Inside) -> (u64, u64) {
    let listener = stream(inside);
    inside.put(0, &loopback(0));
    assert_eq!(inside.call(HostCall::Bind, [listener, 16, 0, 0]), 0);
    assert_eq!(inside.call(HostCall::Listen, [listener, 8, 0, 0]), 0);
    assert_eq!(inside.call(HostCall::Accept, [listener, 0, 0, 0]), EAGAIN);
    assert_eq!(inside.call(HostCall::GetSockName, [listener, 0, 0, 0]), 16);
    let name = inside.get(0, 16);
    let client = stream(inside);
    inside.put(0, &name);
    let connected = inside.call(HostCall::Connect, [client, 16, 0, 0]);
    assert!(connected == 0 || connected == -(libc::EINPROGRESS as i64));
    let server = inside.call(HostCall::Accept, [listener, 0, 0, 0]) as u64;
    assert_eq!(inside.get(0, 6), [16, 0, 0, 0, libc::AF_INET as u8, 0]);
    assert_eq!(inside.call(HostCall::Close, [listener, 0, 0, 0]), 0);
    assert_eq!(inside.call(HostCall::Listen, [listener, 8, 0, 0]), EBADF);
    (client, server)
}

fn receive(inside: &Inside, fd: u64, flags: u64, len: u64, seen: u32) -> i64 {
    inside.put(0, &seen.to_le_bytes());
    inside.call(HostCall::Recv, [fd, flags, len, 0])
}

#[test]
fn sockets_carry_data() {
    let inside = Inside::fresh();
    let (client, server) = connection(&inside);
    assert_eq!(receive(&inside, server, 0, 100, 0), EAGAIN);
    inside.put(0, b"a clay envelope");
    assert_eq!(inside.call(HostCall::Send, [client, 0, 15, 0]), 15);
    assert_eq!(receive(&inside, server, RECV_WAIT, 100, 0), 15);
    assert_eq!(inside.get(RecvHeader::SIZE, 15), b"a clay envelope");
    // Options pass through; those with pointers in them do not.
    let (level, reuse) = (libc::SOL_SOCKET as u64, libc::SO_REUSEPORT as u64);
    inside.put(0, &1u32.to_le_bytes());
    assert_eq!(
        inside.call(HostCall::SetSockOpt, [client, level, reuse, 4]),
        0
    );
    inside.put(0, &[0; 4]);
    assert_eq!(
        inside.call(HostCall::GetSockOpt, [client, level, reuse, 4]),
        4
    );
    assert_eq!(inside.get(0, 4), [1, 0, 0, 0]);
    let filter = libc::SO_ATTACH_FILTER as u64;
    let refused = inside.call(HostCall::SetSockOpt, [client, level, filter, 16]);
    assert_eq!(refused, -(libc::ENOPROTOOPT as i64));
    // A peer that is gone is an error, never SIGPIPE.
    assert_eq!(inside.call(HostCall::Close, [server, 0, 0, 0]), 0);
    let sent: Vec<i64> = (0..3)
        .map(|_| inside.call(HostCall::Send, [client, 0, 15, 0]))
        .collect();
    assert!(sent.contains(&-(libc::EPIPE as i64)), "{sent:?}");
    let unix = inside.call(HostCall::Socket, [libc::AF_UNIX as u64, 1, 0, 0]);
    assert_eq!(unix, -(libc::EAFNOSUPPORT as i64));
}

#[test]
fn datagrams_carry_addresses() {
    let inside = Inside::fresh();
    let new = [libc::AF_INET as u64, libc::SOCK_DGRAM as u64, 0, 0];
    let fd = inside.call(HostCall::Socket, new) as u64;
    inside.put(0, &loopback(0));
    assert_eq!(inside.call(HostCall::Bind, [fd, 16, 0, 0]), 0);
    assert_eq!(inside.call(HostCall::GetSockName, [fd, 0, 0, 0]), 16);
    let name = inside.get(0, 16);
    inside.put(16, b"hello");
    assert_eq!(inside.call(HostCall::Send, [fd, 0, 5, 16]), 5);
    inside.put(0, &[0; 144]);
    assert_eq!(inside.call(HostCall::Recv, [fd, 0, 3, 1]), 3);
    let header = inside.get(0, RecvHeader::SIZE);
    assert_eq!(header[4..8], (libc::MSG_TRUNC as u32).to_le_bytes());
    assert_eq!(header[8..12], 16u32.to_le_bytes());
    assert_eq!(header[16..32], name[..]);
    assert_eq!(inside.get(RecvHeader::SIZE, 3), b"hel");
}

#[test]
fn nothing_outside_the_area_or_the_own_descriptors() {
    let inside = Inside::fresh();
    let secret = std::fs::File::open("/dev/zero").unwrap().into_raw_fd() as u64;
    let (client, _) = connection(&inside);
    for len in [DATA_SIZE + 1, u64::MAX, 1 << 63] {
        assert_eq!(inside.call(HostCall::Read, [client, len, NONE, 0]), EFAULT);
        assert_eq!(inside.call(HostCall::Write, [client, len, NONE, 0]), EFAULT);
        assert_eq!(inside.call(HostCall::Send, [client, 0, len, 0]), EFAULT);
        assert_eq!(inside.call(HostCall::Recv, [client, 0, len, 0]), EFAULT);
        assert_eq!(inside.call(HostCall::Bind, [client, len, 0, 0]), EINVAL);
        assert_eq!(inside.call(HostCall::Poll, [len, 0, 0, 0]), EINVAL);
        let option = [client, libc::SOL_SOCKET as u64, libc::SO_TYPE as u64, len];
        assert_eq!(inside.call(HostCall::GetSockOpt, option), EFAULT);
        assert_eq!(inside.call(HostCall::Log, [len, 0, 0, 0]), EFAULT);
    }
    // Lengths of an address and of control messages share a word.
    for (lengths, refused) in [
        (129, EINVAL),
        (u64::from(u32::MAX), EINVAL),
        ((DATA_SIZE + 1) << 32, EFAULT),
        (16 | (DATA_SIZE - 8) << 32, EFAULT),
        (u64::from(u32::MAX) << 32, EFAULT),
    ] {
        let sent = inside.call(HostCall::Send, [client, 0, 1, lengths]);
        assert_eq!(sent, refused, "{lengths:#x}");
        if refused == EFAULT {
            let received = inside.call(HostCall::Recv, [client, 0, 1, lengths]);
            assert_eq!(received, EFAULT, "{lengths:#x}");
        }
    }
    for fd in [secret, u64::MAX, 1 << 40, secret | 1 << 32] {
        assert_eq!(inside.call(HostCall::Read, [fd, 8, NONE, 0]), EBADF, "{fd}");
        assert_eq!(inside.call(HostCall::Close, [fd, 0, 0, 0]), EBADF);
        assert_eq!(inside.call(HostCall::FdStat, [fd, 0, 0, 0]), EBADF);
        assert_eq!(inside.call(HostCall::FdInfo, [fd, 0, 0, 0]), EBADF);
    }
    // A descriptor of the loader's is not open for Poll either.
    let mut list = (secret as u32).to_le_bytes().to_vec();
    list.extend([libc::POLLIN as u8, 0, 0, 0]);
    inside.put(0, &list);
    assert_eq!(inside.call(HostCall::Poll, [1, NONE, 0, 0]), 1);
    assert_eq!(inside.get(0, 8)[..4], (secret as u32).to_le_bytes());
    assert_eq!(inside.get(6, 2), [libc::POLLNVAL as u8, 0]);
    // TIOCSTI pushes input into the terminal of whoever started us.
    assert_eq!(
        inside.call(HostCall::Ioctl, [client, 0x5412, 8, 0]),
        -(libc::ENOTTY as i64)
    );
    assert_eq!(
        inside.call(HostCall::Ioctl, [client, libc::FIONREAD, 3, 0]),
        EINVAL
    );
    assert_eq!(
        inside.call(HostCall::Ioctl, [client, libc::FIONREAD, 4, 0]),
        0
    );
    // Interfaces are asked for by NetQuery, which has no pointers.
    for request in [libc::SIOCGIFCONF, libc::SIOCGIFFLAGS, libc::SIOCSIFFLAGS] {
        let answer = inside.call(HostCall::Ioctl, [client, request, 64, 0]);
        assert_eq!(answer, -(libc::ENOTTY as i64));
    }
    let size = size_of::<libc::stat>() as u64;
    assert_eq!(inside.call(HostCall::FdStat, [client, 0, 0, 0]), 0);
    assert!(inside.get(0, size).iter().any(|byte| *byte != 0));
    let info = inside.call(HostCall::FdInfo, [client, 0, 0, 0]) as u64;
    assert_eq!((info >> 32) as u32 & libc::S_IFMT, libc::S_IFSOCK);
    assert_ne!(info as i32 & libc::O_NONBLOCK, 0);
    assert_eq!(inside.call(HostCall::Clock, [9, 0, 0, 0]), EINVAL);
    assert!(inside.call(HostCall::Clock, [1, 0, 0, 0]) > 0);
    assert_eq!(
        inside.call(HostCall::Reserved, [0; 4]),
        -(libc::ENOSYS as i64)
    );
}

#[test]
fn interfaces_come_as_whole_messages() {
    use bulla_abi::network::query;
    let inside = Inside::fresh();
    let all = inside.call(HostCall::NetQuery, [query::LINKS, 0, 0, 64 << 10]) as u64;
    assert!(all > 32);
    let bytes = inside.get(0, all);
    assert!(bytes.windows(4).any(|bytes| bytes == b"lo\0\0"));
    let first = u64::from(u32::from_le_bytes(bytes[..4].try_into().unwrap())).next_multiple_of(4);
    // Room for the first only, less than that, and what comes after it.
    let call = |skip, room| inside.call(HostCall::NetQuery, [query::LINKS, skip, 0, room]) as u64;
    assert_eq!(call(0, first), first);
    assert_eq!(call(0, first - 1), 0);
    assert_eq!(call(1, 64 << 10), all - first);
    assert_eq!(call(1 << 40, 64 << 10), 0);
    let invalid = -(libc::EINVAL as i64);
    assert_eq!(inside.call(HostCall::NetQuery, [99, 0, 0, 4096]), invalid);
    // A route is asked for with a header, and with no more than fits.
    for len in [0, 11, 257] {
        let asked = inside.call(HostCall::NetQuery, [query::ROUTE_TO, 0, len, 4096]);
        assert_eq!(asked, invalid);
    }
}

/// A host call has no addresses: whatever is passed, memory outside the slot's area is neither read
/// (it would come back in the area, or leave through a descriptor) nor written. So no call shows the
/// kernel a page of the enclave, nor lets one be changed.
#[test]
fn no_host_call_reaches_memory_by_its_address() {
    const PATTERN: u8 = 0xa7;
    const LEN: usize = 64 << 10;
    let secret: &'static [u8] = vec![PATTERN; LEN].leak();
    let address = secret.as_ptr() as u64;
    let inside = Inside::fresh();
    let (client, server) = connection(&inside);
    let is_shown = |bytes: &[u8]| bytes.windows(8).any(|window| window == [PATTERN; 8]);
    let endless = |call: HostCall| {
        use HostCall::*;
        // They do not return, wait for somebody, or change other threads.
        matches!(
            call,
            Resume | Exit | Panic | ThreadStart | ThreadExit | Wait | Wake | Kick | Close
                // Logged text goes to standard error, from the area.
                | Log
        )
    };
    for &call in HostCall::ALL.iter().filter(|&&call| !endless(call)) {
        for place in 0..4 {
            for (other, len) in [(client, 64), (client, 4096), (server, 8), (address, 64)] {
                inside.put(0, &[0; 4096]);
                // Also where structures have pointers or lengths.
                for at in (0..256).step_by(8) {
                    inside.put(at, &address.to_le_bytes());
                }
                if call == HostCall::Poll {
                    // One that is ready: as a time to wait an address is many hours.
                    inside.put(0, &(server as u32).to_le_bytes());
                    inside.put(4, &(libc::POLLOUT as u16).to_le_bytes());
                }
                let mut arguments = [other, len, 0, 0];
                arguments[place] = address;
                inside.call(call, arguments);
                let data = inside.get(0, DATA_SIZE.min(1 << 20));
                assert!(!is_shown(&data), "{call:?} with the address at {place}");
                assert!(
                    secret.iter().all(|byte| *byte == PATTERN),
                    "{call:?} wrote to it"
                );
                // And what went out through the connection comes in again here.
                for end in [client, server] {
                    while inside.call(HostCall::Recv, [end, 0, 65536, 0]) > 0 {
                        let data = inside.get(RecvHeader::SIZE, 65536);
                        assert!(!is_shown(&data), "{call:?} sent it");
                    }
                }
            }
        }
    }
}

#[test]
fn memory_calls_are_checked_and_passed_on() {
    use std::sync::atomic::Ordering;
    let inside = Inside::fresh();
    let (_, fake) = engine();
    assert_eq!(inside.call(HostCall::MemCommit, [0x10000, 0x3000, 3, 0]), 0);
    assert_eq!(fake.committed.load(Ordering::SeqCst), 0x3000);
    for arguments in [
        [0x10001, 0x1000, 3, 0],
        [0x10000, 0x1001, 3, 0],
        [0x10000, 0, 3, 0],
        [0x10000, 0x1000, 8, 0],
        [ELRANGE, 0x1000, 3, 0],
        [ELRANGE - 0x1000, 0x2000, 3, 0],
        [0x1000, u64::MAX - 0xfff, 3, 0],
    ] {
        assert_eq!(
            inside.call(HostCall::MemCommit, arguments),
            EINVAL,
            "{arguments:x?}"
        );
    }
    assert_eq!(
        inside.call(HostCall::MemType, [0x10000, 0x1000, 2, 0]),
        EINVAL
    );
    assert_eq!(
        inside.call(HostCall::MemProtect, [0x10000, 0x1000, 1, 0]),
        EINVAL
    );
    assert_eq!(fake.committed.load(Ordering::SeqCst), 0x3000);
}

#[test]
fn wakes_end_every_wait_and_none_is_lost() {
    let waiter = Inside::fresh();
    let waker = Inside::fresh();
    let (client, server) = connection(&waiter);
    let epoll = waiter.call(HostCall::EpollCreate, [0; 4]) as u64;
    let add = (libc::EPOLL_CTL_ADD as u64) << 32 | server;
    assert_eq!(waiter.call(HostCall::EpollCtl, [epoll, add, 1, 77]), 0);
    let mut list = (server as u32).to_le_bytes().to_vec();
    list.extend([libc::POLLIN as u8, 0, 0, 0]);
    let mut seen = 0u32;
    for round in 0..4000u32 {
        let arguments = match round % 4 {
            0 => (HostCall::Wait, [u64::from(seen), NONE, 0, 0]),
            1 => (HostCall::Poll, [1, NONE, u64::from(seen), 0]),
            2 => (HostCall::EpollWait, [epoll, 8, NONE, u64::from(seen)]),
            _ => (HostCall::Recv, [server, RECV_WAIT, 8, 0]),
        };
        let begin = || {
            waiter.put(0, &list);
            if arguments.0 == HostCall::Recv {
                waiter.put(0, &seen.to_le_bytes());
            }
            waiter.exit(arguments.0, arguments.1);
        };
        begin();
        // Hit the waiter at every stage of falling asleep.
        let until = Instant::now() + Duration::from_nanos(u64::from(round * 97 % 40_000));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let bumped = waiter.bump();
        assert_eq!(waker.call(HostCall::Wake, [waiter.index, 0, 0, 0]), 0);
        let mut result = waiter.returned();
        if result == EINTR {
            // The signal of the round before came late. Such a wait is simply repeated, and now
            // ends at once.
            begin();
            result = waiter.returned();
        }
        seen = bumped;
        let expected = if round % 4 == 3 { EAGAIN } else { 0 };
        assert_eq!(result, expected, "round {round}");
    }
    // What is ready is reported.
    waiter.put(0, b"x");
    assert_eq!(waiter.call(HostCall::Send, [client, 0, 1, 0]), 1);
    let ready = waiter.call(HostCall::EpollWait, [epoll, 8, NONE, u64::from(seen)]);
    assert_eq!(ready, 1);
    let event = waiter.get(0, size_of::<EpollEvent>() as u64);
    assert_eq!(event[..4], 1u32.to_le_bytes());
    assert_eq!(event[8..], 77u64.to_le_bytes());
    waiter.put(0, &list);
    assert_eq!(
        waiter.call(HostCall::Poll, [1, NONE, u64::from(seen), 0]),
        1
    );
    assert_eq!(waiter.get(6, 2), [libc::POLLIN as u8, 0]);
    // Timeouts are kept.
    let wait = [u64::from(seen), 3_000_000, 0, 0];
    let start = Instant::now();
    assert_eq!(waiter.call(HostCall::Wait, wait), -(libc::ETIMEDOUT as i64));
    assert!(start.elapsed() >= Duration::from_millis(3));
}

#[test]
fn kicks_end_every_wait_and_none_is_lost() {
    let waiter = Inside::fresh();
    let kicker = Inside::fresh();
    let (_, server) = connection(&waiter);
    for round in 0..2000u32 {
        if round % 2 == 0 {
            waiter.exit(HostCall::Wait, [0, NONE, 0, 0]);
        } else {
            waiter.put(0, &0u32.to_le_bytes());
            waiter.exit(HostCall::Recv, [server, RECV_WAIT, 8, 0]);
        }
        let until = Instant::now() + Duration::from_nanos(u64::from(round * 89 % 30_000));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        // A kick before the host thread has left the fake enclave counts as having looked at the
        // flags inside, so it is repeated, as the supervisor does with signals.
        loop {
            assert_eq!(kicker.call(HostCall::Kick, [waiter.index, 0, 0, 0]), 0);
            match waiter.try_returned(Duration::from_millis(5)) {
                Some(result) => break assert_eq!(result, EINTR, "round {round}"),
                None => continue,
            }
        }
    }
}

#[test]
fn a_kick_before_a_resume_becomes_an_entry() {
    let inside = Inside::fresh();
    let kicker = Inside::fresh();
    // An exception is brought back, with what the host saw as a hint.
    inside.exception(0);
    let (leaf, registers) = inside.entry();
    assert_eq!(
        (leaf, registers.rdi),
        (EnterLeaf::Eenter, EnterReason::Exception as u64)
    );
    assert_eq!(
        (registers.rsi, registers.rdx, registers.r8),
        (14, 0x1234_5000, 6)
    );
    inside.exit(HostCall::Resume, [0; 4]);
    assert_eq!(inside.entry().0, EnterLeaf::Eresume);
    // The fake cannot be interrupted, so the signal is taken as one outside the enclave.
    assert_eq!(kicker.call(HostCall::Kick, [inside.index, 0, 0, 0]), 0);
    std::thread::sleep(Duration::from_millis(50));
    inside.exit(HostCall::Resume, [0; 4]);
    let (leaf, registers) = inside.entry();
    assert_eq!(
        (leaf, registers.rdi),
        (EnterLeaf::Eenter, EnterReason::Exception as u64)
    );
    // It may have been sent again meanwhile (it came while the thread was said to resume).
    for _ in 0..100 {
        inside.exit(HostCall::Resume, [0; 4]);
        if inside.entry().0 == EnterLeaf::Eresume {
            break;
        }
    }
    assert!(inside.call(HostCall::Clock, [0; 4]) > 0);
}

#[test]
fn slots_are_started_again() {
    let parent = Inside::fresh();
    let child = Inside::fresh();
    for round in 0..200 {
        // The enclave gives the slot to a new thread as soon as the old one is about to leave.
        if round % 2 == 0 {
            child.exit(HostCall::ThreadExit, [0; 4]);
            std::thread::sleep(Duration::from_micros(round * 5));
            assert_eq!(
                parent.call(HostCall::ThreadStart, [child.index, 0, 0, 0]),
                0
            );
        } else {
            assert_eq!(
                parent.call(HostCall::ThreadStart, [child.index, 0, 0, 0]),
                0
            );
            let busy = parent.call(HostCall::ThreadStart, [child.index, 0, 0, 0]);
            assert_eq!(busy, -(libc::EBUSY as i64));
            child.exit(HostCall::ThreadExit, [0; 4]);
        }
        child.started();
    }
    assert_eq!(parent.call(HostCall::ThreadStart, [4096, 0, 0, 0]), EINVAL);
    assert_eq!(parent.call(HostCall::Wake, [4000, 0, 0, 0]), EINVAL);
    assert_eq!(parent.call(HostCall::Kick, [u64::MAX, 0, 0, 0]), EINVAL);
}

#[test]
fn signals_wait_for_the_enclave() {
    let inside = Inside::fresh();
    // Another kind of signal does not count, and taking clears.
    let pid = std::process::id().to_string();
    let status = std::process::Command::new("kill")
        .args(["-USR1", &pid])
        .status();
    assert!(status.unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut taken = 0;
    while taken == 0 && Instant::now() < deadline {
        taken = inside.call(HostCall::TakeSignals, [0; 4]);
    }
    assert_eq!(taken, 1 << (libc::SIGUSR1 - 1));
    assert_eq!(inside.call(HostCall::TakeSignals, [0; 4]), 0);
}

#[test]
fn the_first_exit_decides() {
    let (engine, fake) = new_engine();
    let first = Inside::start_first(engine, fake, 0xb007);
    let second = Inside::start(engine, fake, 1);
    first.exit(HostCall::Exit, [7 << 8, 0, 0, 0]);
    while !engine.ending.load(std::sync::atomic::Ordering::SeqCst) {
        std::thread::yield_now();
    }
    second.exception(2);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(engine.take_end().unwrap().unwrap(), ExitStatus::Exited(7));
}

#[test]
fn a_slot_that_cannot_be_entered_ends_it() {
    let (engine, fake) = new_engine();
    let inside = Inside::start(engine, fake, 3);
    inside.exception(2);
    let deadline = Instant::now() + Duration::from_secs(5);
    let end = loop {
        match engine.take_end() {
            Some(end) => break end,
            None if Instant::now() > deadline => panic!("nothing happened"),
            None => std::thread::yield_now(),
        }
    };
    let error = end.unwrap_err();
    assert!(matches!(error, Error::Entry { slot: 3, .. }));
    assert!(error.to_string().contains("EENTER"), "{error}");
}

#[test]
fn blocking_reads_of_standard_input_can_be_interrupted() {
    let (engine, fake, mut input) = crate::fake::engine_with_input();
    // A slot that no test of the common engine uses, since signals name slots of that one.
    let inside = Inside::start(engine, fake, 60);
    input.write_all(b"line\n").unwrap();
    assert_eq!(inside.call(HostCall::Read, [0, 100, NONE, 0]), 5);
    assert_eq!(inside.get(0, 5), b"line\n");
    let mut list = 0u32.to_le_bytes().to_vec();
    list.extend([libc::POLLIN as u8, 0, 0, 0]);
    inside.put(0, &list);
    assert_eq!(inside.call(HostCall::Poll, [1, 0, 0, 0]), 0);
    assert_eq!(inside.get(0, 4), [0; 4]);
    // A wake (here by the engine, since signals go to the common one) ends the read.
    inside.exit(HostCall::Read, [0, 100, NONE, 0]);
    std::thread::sleep(Duration::from_millis(30));
    inside.bump();
    let slot = engine.slots.used().next().unwrap();
    assert_eq!(engine.wake(slot, 60), Ok(0));
    assert_eq!(inside.returned(), EINTR);
    // Closing lets go of the pipe.
    assert_eq!(inside.call(HostCall::Close, [0; 4]), 0);
    assert_eq!(inside.call(HostCall::Read, [0, 1, NONE, 0]), EBADF);
    assert_eq!(
        input.write_all(b"x").unwrap_err().kind(),
        std::io::ErrorKind::BrokenPipe
    );
    assert!(input.as_raw_fd() > 2);
}
