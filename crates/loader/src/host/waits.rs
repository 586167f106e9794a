//! Host calls that wait: on the wait word, on descriptors, on epoll instances.
//!
//! All of them end early when the slot's wait word differs from the value the enclave saw (result
//! 0), or when the thread is kicked (EINTR).

use std::sync::atomic::Ordering;

use bulla_abi::hostcall::{DATA_SIZE, EpollEvent};

use super::Call;
use crate::sys::raw::{Answer, Errno};
use crate::sys::socket;
use crate::sys::wait::Waiter;
use crate::threads::waiting;

/// Most events that one EpollWait brings.
const EVENTS_MAX: usize = 512;
/// Size of a `PollFd`.
const POLL_FD: u64 = 8;

impl Call<'_> {
    pub(super) fn waiter(&self, seen: u32) -> Waiter<'_> {
        Waiter {
            area: &self.slot.area,
            kicked: &self.slot.kicked,
            seen,
        }
    }

    /// Tells wakers how this thread blocks while `wait` runs.
    #[inline(always)]
    pub(super) fn announced(&self, how: u32, wait: impl FnOnce() -> Answer) -> Answer {
        self.slot.waiting.store(how, Ordering::SeqCst);
        let answer = wait();
        self.slot.waiting.store(waiting::NOT, Ordering::Relaxed);
        answer
    }

    /// Wait(seen, timeout).
    pub fn wait(&self) -> Answer {
        let [seen, timeout, ..] = self.arguments;
        let waiter = self.waiter(seen as u32);
        if waiter.woken() {
            return Ok(0);
        }
        self.announced(waiting::FUTEX, || waiter.futex(timeout))
    }

    /// Poll(count, timeout, seen), descriptors in the buffer.
    pub fn poll(&self) -> Answer {
        let [count, timeout, seen, _] = self.arguments;
        if count > DATA_SIZE / POLL_FD {
            return Err(Errno(libc::EINVAL));
        }
        let list = self.data(count * POLL_FD)?;
        // Descriptors that the enclave may not use are hidden from the kernel (it skips negative
        // numbers) and reported as not open; the three standard ones are translated. Rare both.
        let mut invalid = 0u64;
        let mut changed: Vec<(usize, i32)> = Vec::new();
        for at in (0..list.len()).step_by(POLL_FD as usize) {
            let fd = list.u32_at(at) as i32;
            if fd < 0 {
                continue;
            }
            match self.descriptor(fd as u64) {
                Ok(host) if host == fd => {}
                Ok(host) => {
                    list.put(at, &host.to_le_bytes());
                    changed.push((at, fd));
                }
                Err(_) => {
                    list.put(at, &(-1i32).to_le_bytes());
                    changed.push((at, fd));
                    invalid += 1;
                }
            }
        }
        let waiter = self.waiter(seen as u32);
        let answer = if timeout == 0 || invalid > 0 {
            waiter.poll(list, 0)
        } else {
            self.announced(waiting::CALL, || waiter.poll(list, timeout))
        };
        for &(at, fd) in &changed {
            if self.descriptor(fd as u64).is_err() {
                list.put(at + 6, &libc::POLLNVAL.to_le_bytes());
            }
            list.put(at, &fd.to_le_bytes());
        }
        answer.map(|ready| ready + invalid)
    }

    /// EpollCreate().
    pub fn epoll_create(&self) -> Answer {
        self.made(socket::epoll_create()? as i32)
    }

    /// EpollCtl(epoll, operation << 32 | fd, events, token).
    pub fn epoll_control(&self) -> Answer {
        let [epoll, target, events, token] = self.arguments;
        let epoll = self.descriptor(epoll)?;
        let fd = self.descriptor(target & 0xffff_ffff)?;
        socket::epoll_control(epoll, (target >> 32) as i32, fd, events as u32, token)
    }

    /// EpollWait(epoll, most events, timeout, seen), events into the buffer.
    pub fn epoll_wait(&self) -> Answer {
        let [epoll, most, timeout, seen] = self.arguments;
        let epoll = self.descriptor(epoll)?;
        if most == 0 {
            return Err(Errno(libc::EINVAL));
        }
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        let events = &mut events[..EVENTS_MAX.min(most as usize)];
        let waiter = self.waiter(seen as u32);
        let ready = if timeout == 0 {
            waiter.epoll(epoll, events, 0)
        } else {
            self.announced(waiting::CALL, || waiter.epoll(epoll, events, timeout))
        }?;
        let list = self.data(ready * size_of::<EpollEvent>() as u64)?;
        for (index, event) in events[..ready as usize].iter().enumerate() {
            let at = index * size_of::<EpollEvent>();
            let (mask, token) = (event.events, event.u64);
            let mut bytes = [0; size_of::<EpollEvent>()];
            bytes[..4].copy_from_slice(&mask.to_le_bytes());
            bytes[8..].copy_from_slice(&token.to_le_bytes());
            list.put(at, &bytes);
        }
        Ok(ready)
    }
}
