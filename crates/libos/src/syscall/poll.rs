//! poll, ppoll, select, pselect6.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use bulla_abi::hostcall::PollFd;

use super::{Arguments, Context};
use crate::errno::{EBADF, EINVAL, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ETIMEDOUT};
use crate::fs::file::OpenFile;
use crate::net::host;
use crate::platform::platform;
use crate::signal::{self, Restart};
use crate::sync::wait::{Events, PollTable, ThreadWaker, sleep_once};
use crate::{Result, Thread};

/// When a wait ends.
#[derive(Clone, Copy)]
pub enum Timeout {
    Never,
    AtOnce,
    /// Monotonic time in ns.
    At(u64),
}

impl Timeout {
    fn after(ns: u64) -> Timeout {
        match ns {
            0 => Timeout::AtOnce,
            ns => Timeout::At(platform().monotonic().saturating_add(ns)),
        }
    }

    /// Milliseconds; negative is never.
    pub fn from_millis(millis: i32) -> Timeout {
        match u64::try_from(millis) {
            Ok(millis) => Self::after(millis * 1_000_000),
            Err(_) => Timeout::Never,
        }
    }

    /// A `struct timespec` in user memory; null is never. EINVAL for a bad one.
    pub fn from_timespec(context: &Context<'_>, address: u64) -> Result<Timeout> {
        match read_pair(context, address)? {
            None => Ok(Timeout::Never),
            Some((seconds, ns)) if (0..1_000_000_000).contains(&ns) => {
                let seconds = u64::try_from(seconds).map_err(|_| EINVAL)?;
                Ok(Self::after(
                    seconds
                        .saturating_mul(1_000_000_000)
                        .saturating_add(ns as u64),
                ))
            }
            Some(_) => Err(EINVAL.because("bad timespec")),
        }
    }

    /// A `struct timeval`, likewise.
    fn from_timeval(context: &Context<'_>, address: u64) -> Result<Timeout> {
        match read_pair(context, address)? {
            None => Ok(Timeout::Never),
            Some((seconds, micros)) => {
                let seconds = u64::try_from(seconds).map_err(|_| EINVAL)?;
                let micros = u64::try_from(micros).map_err(|_| EINVAL)?;
                let ns = micros.saturating_mul(1000);
                Ok(Self::after(
                    seconds.saturating_mul(1_000_000_000).saturating_add(ns),
                ))
            }
        }
    }

    /// As `Platform::sleep` wants it; 0 is at once.
    pub fn deadline(self) -> Option<u64> {
        match self {
            Timeout::Never => None,
            Timeout::AtOnce => Some(0),
            Timeout::At(at) => Some(at.max(1)),
        }
    }

    /// ns left.
    fn left(self) -> u64 {
        match self {
            Timeout::At(at) => at.saturating_sub(platform().monotonic()),
            _ => 0,
        }
    }
}

fn read_pair(context: &Context<'_>, address: u64) -> Result<Option<(i64, i64)>> {
    if address == 0 {
        return Ok(None);
    }
    let mut bytes = [0u8; 16];
    context.mm().read(address, &mut bytes)?;
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        i64::from_le_bytes(word)
    };
    Ok(Some((word(0), word(8))))
}

fn write_pair(context: &Context<'_>, address: u64, seconds: u64, rest: u64) {
    let mut bytes = [0u8; 16];
    bytes[..8].copy_from_slice(&seconds.to_le_bytes());
    bytes[8..].copy_from_slice(&rest.to_le_bytes());
    // As on Linux, the time left is a courtesy: a fault here does not change the result.
    let _ = context.mm().write(address, &bytes);
}

/// A signal mask for the time of a wait.
#[derive(Clone, Copy)]
pub struct SignalMask(pub u64);

impl SignalMask {
    /// `None` for a null pointer; EINVAL for a wrong size.
    pub fn read(context: &Context<'_>, address: u64, size: usize) -> Result<Option<SignalMask>> {
        if address == 0 {
            return Ok(None);
        }
        if size != 8 {
            return Err(EINVAL.because("bad sigset size"));
        }
        let mut bytes = [0; 8];
        context.mm().read(address, &mut bytes)?;
        Ok(Some(SignalMask(u64::from_le_bytes(bytes))))
    }
}

/// Runs `wait` under a temporary mask: restored at its end, or after the handlers when a signal
/// has interrupted it.
pub fn with_mask<T>(
    context: &mut Context<'_>,
    mask: Option<SignalMask>,
    wait: impl FnOnce(&mut Context<'_>) -> Result<T>,
) -> Result<T> {
    let Some(SignalMask(mask)) = mask else {
        return wait(context);
    };
    signal::begin_temporary_mask(context.thread, mask);
    let result = wait(context);
    let interrupted = matches!(&result, Err(error) if *error == ERESTARTNOHAND);
    signal::end_temporary_mask(context.thread, interrupted);
    result
}

/// One descriptor to wait for.
struct Watched {
    file: Option<Arc<OpenFile>>,
    interest: Events,
    /// What is reported without being asked for: errors and hang-ups, for poll.
    unasked: Events,
    ready: Events,
}

impl Watched {
    fn wanted(&self) -> Events {
        self.interest | self.unasked
    }
}

/// What one call waits for.
struct Poll<'a> {
    watched: &'a mut [Watched],
    /// Those that the host knows, and where they are in `watched`.
    host: Vec<PollFd>,
    host_index: Vec<usize>,
}

impl<'a> Poll<'a> {
    fn new(watched: &'a mut [Watched]) -> Poll<'a> {
        let mut host = Vec::new();
        let mut host_index = Vec::new();
        for (index, entry) in watched.iter().enumerate() {
            if let Some(fd) = entry.file.as_ref().and_then(|file| file.ops.host_fd()) {
                let events = (entry.interest.bits() & 0xffff) as u16;
                host.push(PollFd {
                    fd,
                    events,
                    revents: 0,
                });
                host_index.push(index);
            }
        }
        Poll {
            watched,
            host,
            host_index,
        }
    }

    /// How many are ready, as far as is known here.
    fn look(&mut self) -> usize {
        for entry in self.watched.iter_mut() {
            if let Some(file) = &entry.file {
                let wanted = entry.wanted();
                entry.ready = file.ops.poll(None, wanted) & wanted;
            }
        }
        self.count()
    }

    fn count(&self) -> usize {
        let ready = self.watched.iter().filter(|entry| !entry.ready.is_empty());
        ready.count()
    }

    /// Asks the host, which waits until `deadline`; how many are ready in all.
    fn ask_host(
        &mut self,
        deadline: Option<u64>,
        thread: &Arc<Thread>,
        seen: u32,
    ) -> Result<usize> {
        if host::poll(&mut self.host, deadline, thread, seen)? > 0 {
            for (entry, &index) in self.host.iter_mut().zip(&self.host_index) {
                let watched = &mut self.watched[index];
                let wanted = watched.wanted() | Events::NVAL;
                let events = Events::from_bits_truncate(u32::from(entry.revents)) & wanted;
                if events.is_empty() && entry.revents != 0 {
                    // A hang-up that select is not asked for would end every wait at once. It
                    // is final: the descriptor has nothing more to say.
                    entry.fd = -1;
                }
                watched.ready |= events;
            }
        }
        Ok(self.count())
    }

    /// Whether anything is ready still. An error counts: the next look meets it.
    fn is_ready(&mut self, thread: &Arc<Thread>) -> bool {
        let seen = thread.event_count();
        self.look() > 0
            || !self.host.is_empty() && self.ask_host(Some(0), thread, seen).unwrap_or(1) > 0
    }
}

/// Waits until one of `watched` is ready; how many are.
fn wait(thread: &Arc<Thread>, watched: &mut [Watched], timeout: Timeout) -> Result<usize> {
    let mut poll = Poll::new(watched);
    let mut table: Option<PollTable> = None;
    loop {
        let seen = thread.event_count();
        // The first time without registering: often something is ready already.
        let register = table.is_none() && !matches!(timeout, Timeout::AtOnce);
        let mut count = poll.look();
        if count == 0 && register {
            let fresh = table.insert(PollTable::new(ThreadWaker::new(thread)));
            for entry in poll.watched.iter() {
                if let Some(file) = &entry.file {
                    file.ops.poll(Some(&mut *fresh), entry.interest);
                }
            }
            // Something may have become ready in between.
            continue;
        }
        if count == 0 && thread.interrupted() {
            return Err(ERESTARTNOHAND);
        }
        let over = match timeout {
            Timeout::At(at) => platform().monotonic() >= at,
            Timeout::AtOnce => true,
            Timeout::Never => false,
        };
        if !poll.host.is_empty() {
            let deadline = if count > 0 || over {
                Some(0)
            } else {
                timeout.deadline()
            };
            count = poll.ask_host(deadline, thread, seen)?;
        }
        if count > 0 && table.is_some() {
            // Siblings that wait for the same take turns: what one of them has taken while the others
            // stood in the queue is nothing to run them for.
            let wanted = thread.mm().enter_if(thread, || poll.is_ready(thread));
            if wanted && poll.count() > 0 {
                return Ok(poll.count());
            }
            continue;
        }
        if count > 0 || over {
            return Ok(count);
        }
        if poll.host.is_empty() {
            match sleep_once(thread, seen, timeout.deadline()) {
                Ok(()) => {}
                Err(error) if error == ETIMEDOUT => {}
                Err(_) => return Err(ERESTARTNOHAND),
            }
        }
    }
}

/// `struct pollfd`, 8 bytes.
const POLLFD_SIZE: usize = 8;

fn poll_common(
    context: &mut Context<'_>,
    address: u64,
    count: usize,
    timeout: Timeout,
    mask: Option<SignalMask>,
) -> Result<usize> {
    if count > context.file_limit() {
        return Err(EINVAL.because("more descriptors than RLIMIT_NOFILE"));
    }
    let mut bytes = vec![0; count * POLLFD_SIZE];
    let mm = context.mm();
    mm.read(address, &mut bytes)?;
    let files = context.thread.files();
    let mut watched: Vec<Watched> = bytes
        .chunks_exact(POLLFD_SIZE)
        .map(|entry| {
            let fd = i32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
            let interest = u16::from_le_bytes([entry[4], entry[5]]);
            let interest = Events::from_bits_truncate(u32::from(interest));
            let (file, ready) = match (fd, files.get(fd)) {
                (fd, _) if fd < 0 => (None, Events::empty()),
                (_, Ok(file)) if !file.is_path() => (Some(file), Events::empty()),
                _ => (None, Events::NVAL),
            };
            Watched {
                file,
                interest,
                unasked: Events::ERR | Events::HUP,
                ready,
            }
        })
        .collect();
    drop(files);
    let ready = with_mask(context, mask, |context| {
        wait(context.thread, &mut watched, timeout)
    })?;
    for (entry, watched) in bytes.chunks_exact_mut(POLLFD_SIZE).zip(&watched) {
        entry[6..].copy_from_slice(&(watched.ready.bits() as u16).to_le_bytes());
    }
    mm.write(address, &bytes)?;
    Ok(ready)
}

pub fn poll(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let timeout = Timeout::from_millis(arguments.i32(2));
    poll_until(context, arguments.u64(0), arguments.u32(1), timeout)
}

/// poll with a deadline, which stays the same when a signal without a handler interrupts it.
pub fn poll_until(
    context: &mut Context<'_>,
    fds: u64,
    count: u32,
    timeout: Timeout,
) -> Result<usize> {
    let result = poll_common(context, fds, count as usize, timeout, None);
    match (result, timeout) {
        (Err(error), Timeout::At(deadline)) if error == ERESTARTNOHAND => {
            let restart = Restart::Poll {
                fds,
                count,
                deadline,
            };
            *context.thread.signals.restart.lock() = restart;
            Err(ERESTART_RESTARTBLOCK)
        }
        (result, _) => result,
    }
}

pub fn ppoll(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let timeout = Timeout::from_timespec(context, arguments.u64(2))?;
    let mask = SignalMask::read(context, arguments.u64(3), arguments.usize(4))?;
    let result = poll_common(
        context,
        arguments.u64(0),
        arguments.u32(1) as usize,
        timeout,
        mask,
    );
    if arguments.u64(2) != 0 {
        let left = timeout.left();
        write_pair(
            context,
            arguments.u64(2),
            left / 1_000_000_000,
            left % 1_000_000_000,
        );
    }
    result
}

/// Bytes of an fd_set that `count` descriptors need, in whole words.
fn set_size(count: usize) -> usize {
    count.div_ceil(64) * 8
}

const READ_EVENTS: Events = Events::IN
    .union(Events::RDNORM)
    .union(Events::RDBAND)
    .union(Events::HUP)
    .union(Events::ERR);
const WRITE_EVENTS: Events = Events::OUT
    .union(Events::WRNORM)
    .union(Events::WRBAND)
    .union(Events::ERR);

fn select_common(
    context: &mut Context<'_>,
    arguments: Arguments,
    timeout: Timeout,
    mask: Option<SignalMask>,
) -> Result<usize> {
    let count = usize::try_from(arguments.i32(0)).map_err(|_| EINVAL)?;
    let count = count.min(context.file_limit());
    let size = set_size(count);
    let mm = context.mm();
    let mut sets: [Option<Vec<u8>>; 3] = [None, None, None];
    for (index, set) in sets.iter_mut().enumerate() {
        let address = arguments.u64(1 + index);
        if address != 0 {
            let mut bytes = vec![0; size];
            mm.read(address, &mut bytes)?;
            *set = Some(bytes);
        }
    }
    let is_in = |set: &Option<Vec<u8>>, fd: usize| {
        set.as_ref()
            .is_some_and(|bytes| bytes[fd / 8] & 1 << (fd % 8) != 0)
    };
    let files = context.thread.files();
    let mut numbers = Vec::new();
    let mut watched = Vec::new();
    for fd in 0..count {
        let mut interest = Events::empty();
        if is_in(&sets[0], fd) {
            interest |= READ_EVENTS;
        }
        if is_in(&sets[1], fd) {
            interest |= WRITE_EVENTS;
        }
        if is_in(&sets[2], fd) {
            interest |= Events::PRI;
        }
        if interest.is_empty() {
            continue;
        }
        let file = files.get(fd as i32).map_err(|_| EBADF)?;
        watched.push(Watched {
            file: Some(file),
            interest,
            unasked: Events::empty(),
            ready: Events::empty(),
        });
        numbers.push(fd);
    }
    drop(files);
    with_mask(context, mask, |context| {
        wait(context.thread, &mut watched, timeout)
    })?;
    let mut total = 0;
    let classes = [READ_EVENTS, WRITE_EVENTS, Events::PRI];
    for (index, set) in sets.iter_mut().enumerate() {
        let Some(bytes) = set else { continue };
        let mut out = vec![0u8; size];
        for (&fd, entry) in numbers.iter().zip(&watched) {
            let asked = bytes[fd / 8] & 1 << (fd % 8) != 0;
            if asked && entry.ready.intersects(classes[index]) {
                out[fd / 8] |= 1 << (fd % 8);
                total += 1;
            }
        }
        mm.write(arguments.u64(1 + index), &out)?;
    }
    Ok(total)
}

/// personality(2): whether the time that is left stays untold.
fn has_sticky_timeouts(context: &Context<'_>) -> bool {
    let personality = &context.thread.process.personality;
    personality.load(core::sync::atomic::Ordering::Relaxed) & super::system::STICKY_TIMEOUTS != 0
}

pub fn select(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let timeout = Timeout::from_timeval(context, arguments.u64(4))?;
    let result = select_common(context, arguments, timeout, None);
    if arguments.u64(4) != 0 && !has_sticky_timeouts(context) {
        let left = timeout.left();
        write_pair(
            context,
            arguments.u64(4),
            left / 1_000_000_000,
            left % 1_000_000_000 / 1000,
        );
    }
    result
}

pub fn pselect6(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let timeout = Timeout::from_timespec(context, arguments.u64(4))?;
    let mask = match read_pair(context, arguments.u64(5))? {
        None => None,
        Some((address, size)) => SignalMask::read(context, address as u64, size as usize)?,
    };
    let result = select_common(context, arguments, timeout, mask);
    if arguments.u64(4) != 0 && !has_sticky_timeouts(context) {
        let left = timeout.left();
        write_pair(
            context,
            arguments.u64(4),
            left / 1_000_000_000,
            left % 1_000_000_000,
        );
    }
    result
}
