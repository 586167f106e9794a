//! timerfd(2).

use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::any::Any;

use super::file::{FileOps, OpenFile};
use crate::errno::{EAGAIN, EINVAL};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, WaitQueue, block_on};
use crate::time::interval::Setting;
use crate::time::timers::{Expire, Timer};
use crate::time::{Clock, SECOND_NS};
use crate::user::IoBuffer;
use crate::{Result, Thread};

/// A timer that is read as a file.
pub struct TimerFd {
    clock: Clock,
    clock_id: i32,
    state: SpinLock<State>,
    timer: Arc<Timer>,
    queue: Arc<WaitQueue>,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// Time of the next expiry that has not been counted, on the clock; 0 when disarmed.
    expiry: u64,
    interval: u64,
    /// Expiries since the last read.
    ticks: u64,
}

impl State {
    /// Counts what has expired by `now`.
    fn count(&mut self, now: u64) {
        if self.expiry == 0 || now < self.expiry {
            return;
        }
        match (now - self.expiry).checked_div(self.interval) {
            // Not periodic.
            None => {
                self.ticks += 1;
                self.expiry = 0;
            }
            Some(whole) => {
                let missed = whole + 1;
                self.ticks = self.ticks.saturating_add(missed);
                let later = missed.saturating_mul(self.interval);
                self.expiry = self.expiry.saturating_add(later);
            }
        }
    }
}

impl TimerFd {
    pub fn new(clock: Clock, clock_id: i32) -> Arc<TimerFd> {
        Arc::new(TimerFd {
            clock,
            clock_id,
            state: SpinLock::new(State::default()),
            timer: Timer::new(),
            queue: WaitQueue::new(),
        })
    }

    /// Time to the next expiry, and the period.
    pub fn get(&self) -> Setting {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.count(now);
        let value = match state.expiry {
            0 => 0,
            expiry => expiry.saturating_sub(now).max(1),
        };
        Setting {
            value,
            interval: state.interval,
        }
    }

    /// Arms or disarms it; the old setting. `absolute`: the value is a time on the clock.
    pub fn set(self: &Arc<Self>, new: Setting, absolute: bool) -> Setting {
        let old = self.get();
        let now = self.clock.now();
        let expiry = match (new.value, absolute) {
            (0, _) => 0,
            (value, true) => value,
            (value, false) => now.saturating_add(value),
        };
        *self.state.lock() = State {
            expiry,
            interval: new.interval,
            ticks: 0,
        };
        if expiry == 0 {
            self.timer.disarm();
        } else {
            let target: Weak<dyn Expire> = Arc::<Self>::downgrade(self);
            self.timer.arm(self.clock.to_monotonic(expiry), target);
        }
        old
    }

    fn take(&self) -> Option<u64> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.count(now);
        let ticks = core::mem::take(&mut state.ticks);
        (ticks > 0).then_some(ticks)
    }
}

impl Expire for TimerFd {
    fn expire(&self, _now: u64) -> Option<u64> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        if state.expiry == 0 {
            return None;
        }
        if now < state.expiry {
            let expiry = state.expiry;
            drop(state);
            return Some(self.clock.to_monotonic(expiry));
        }
        state.count(now);
        let again = (state.expiry != 0).then_some(state.expiry);
        drop(state);
        self.queue.wake(Events::IN | Events::RDNORM);
        again.map(|expiry| self.clock.to_monotonic(expiry))
    }
}

impl FileOps for TimerFd {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        if to.remaining() < 8 {
            return Err(EINVAL.because("a timerfd is read 8 bytes at a time"));
        }
        let ticks = if file.is_nonblocking() {
            self.take().ok_or(EAGAIN)?
        } else {
            block_on(thread, &self.queue, Events::IN, None, || self.take())?
        };
        to.put(&ticks.to_le_bytes())
    }

    /// There is no position; seeking does nothing, and says so by succeeding.
    fn seek(&self, _: &Arc<Thread>, _: &OpenFile, _: i64, _: u32) -> Result<u64> {
        Ok(0)
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table {
            table.register(&self.queue, interest);
        }
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.count(now);
        if state.ticks > 0 {
            Events::IN | Events::RDNORM
        } else {
            Events::empty()
        }
    }

    fn describe_more(&self) -> String {
        self.info()
    }

    fn describe(&self) -> String {
        String::from("anon_inode:[timerfd]")
    }
}

impl TimerFd {
    /// What /proc/self/fdinfo shows beside the usual.
    pub fn info(&self) -> String {
        let setting = self.get();
        let time = |ns: u64| format!("({}, {})", ns / SECOND_NS, ns % SECOND_NS);
        let ticks = self.state.lock().ticks;
        format!(
            "clockid: {}\nticks: {ticks}\nsettime flags: 00\nit_value: {}\nit_interval: {}\n",
            self.clock_id,
            time(setting.value),
            time(setting.interval)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::file::flags;
    use crate::testing;

    #[test]
    fn expiries_are_counted_once() {
        let thread = testing::setup();
        let timer = TimerFd::new(Clock::Monotonic, 1);
        let file = OpenFile::new(timer.clone(), flags::RDWR | flags::NONBLOCK);
        let read = || {
            let mut bytes = [0u8; 8];
            let result = timer.read(&thread, &file, &mut IoBuffer::output(&mut bytes));
            result.map(|_| u64::from_le_bytes(bytes))
        };
        assert_eq!(read(), Err(EAGAIN));
        let now = Clock::Monotonic.now();
        timer.set(
            Setting {
                value: now - 25_000_000,
                interval: 10_000_000,
            },
            true,
        );
        assert_eq!(timer.poll(None, Events::IN), Events::IN | Events::RDNORM);
        let ticks = read().unwrap();
        assert!(ticks >= 3, "{ticks}");
        let old = timer.set(Setting::default(), false);
        assert!(old.value > 0 && old.interval == 10_000_000);
        assert_eq!(read(), Err(EAGAIN));
        timer.set(
            Setting {
                value: 1,
                interval: 0,
            },
            false,
        );
        std::thread::sleep(core::time::Duration::from_millis(1));
        assert_eq!(read(), Ok(1));
        assert_eq!(timer.get(), Setting::default());
    }
}
