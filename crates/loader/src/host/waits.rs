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
use crate::waiting::Blocks;

/// Most events that one EpollWait brings.
const EVENTS_MAX: u64 = 512;
/// Size of an `EpollEvent`, and of the kernel's, which is packed on this architecture.
const EVENT: u64 = size_of::<EpollEvent>() as u64;
const KERNEL_EVENT: u64 = size_of::<libc::epoll_event>() as u64;
const _: () = assert!(KERNEL_EVENT == 12 && EVENTS_MAX * (EVENT + KERNEL_EVENT) <= DATA_SIZE);
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

    /// For a look that does not block: the enclave passes no wait word with it, and whatever the
    /// word is does not matter.
    fn onlooker(&self) -> Waiter<'_> {
        self.waiter(self.slot.area.wait_word().load(Ordering::SeqCst))
    }

    /// Tells wakers how this thread blocks while `wait` runs.
    #[inline(always)]
    pub(super) fn announced(
        &self,
        blocks: Blocks,
        waiter: Waiter<'_>,
        wait: impl FnOnce(Waiter<'_>) -> Answer,
    ) -> Answer {
        self.slot.waiting.begin(blocks, waiter.seen);
        let answer = wait(waiter);
        self.slot.waiting.end();
        answer
    }

    /// Wait(seen, timeout).
    pub fn wait(&self) -> Answer {
        let [seen, timeout, ..] = self.arguments;
        let waiter = self.waiter(seen as u32);
        if waiter.woken() {
            return Ok(0);
        }
        self.announced(Blocks::OnWord, waiter, |waiter| waiter.futex(timeout))
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
        let answer = if timeout == 0 || invalid > 0 {
            self.onlooker().poll(list, 0)
        } else {
            let waiter = self.waiter(seen as u32);
            self.announced(Blocks::InCall, waiter, |waiter| waiter.poll(list, timeout))
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
        let most = EVENTS_MAX.min(most);
        // The kernel's events are smaller than ours: it writes them behind where ours go.
        let raw = self.slot.area.data(most * EVENT, most * KERNEL_EVENT)?;
        let ready = if timeout == 0 {
            self.onlooker().epoll(epoll, raw, 0)
        } else {
            let waiter = self.waiter(seen as u32);
            self.announced(Blocks::InCall, waiter, |waiter| {
                waiter.epoll(epoll, raw, timeout)
            })
        }?;
        let list = self.data(ready * EVENT)?;
        for index in 0..ready as usize {
            let event: [u8; KERNEL_EVENT as usize] = raw.get(index * KERNEL_EVENT as usize);
            let mut bytes = [0; EVENT as usize];
            bytes[..4].copy_from_slice(&event[..4]);
            bytes[8..].copy_from_slice(&event[4..]);
            list.put(index * EVENT as usize, &bytes);
        }
        Ok(ready)
    }
}
