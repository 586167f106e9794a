//! The standard streams: files of the host that the loader lets the container use (0, 1, 2).
//!
//! What is read from them is the host's word and what is written to them the host sees. Host
//! answers are checked: a length beyond what was asked for is EIO.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::any::Any;

use bulla_abi::hostcall::{DATA_SIZE, HostCall, PollFd};

use super::file::{FileOps, OpenFile, anonymous_metadata};
use super::inode::Metadata;
use super::ioctl;
use super::permission::Caller;
use super::tty::{self, Terminal};
use crate::errno::{EAGAIN, EINTR, EINVAL, EIO, ENOTTY, ENXIO, EPIPE, ERESTARTSYS, ESPIPE, Errno};
use crate::platform::platform;
use crate::sync::wait::{Events, PollTable};
use crate::syscall::Context;
use crate::user::{IoBuffer, UserPtr};
use crate::{Result, Thread};

/// `struct termios` as the kernel sees it (36 bytes on x86-64).
const TERMIOS_SIZE: usize = 36;
/// `struct winsize`.
const WINSIZE_SIZE: usize = 8;

/// A host descriptor.
pub struct HostFile {
    fd: i32,
    /// File type and flags as the host told at start.
    mode: u32,
    /// Set when the stream is a terminal and the configuration allows one.
    terminal: Option<Arc<Terminal>>,
}

/// The three standard streams stay as long as the container; those that came with a program of
/// the host's go with it, so that whoever reads them sees their end.
impl Drop for HostFile {
    fn drop(&mut self) {
        if self.fd > 2 {
            platform().host_call(HostCall::Close, [self.fd as u64, 0, 0, 0], None);
        }
    }
}

impl HostFile {
    /// Whether it is the container's terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }
}

/// A host descriptor for a standard stream. `None` when the host has closed it.
pub fn open_stream(fd: i32, terminal: bool) -> Option<Arc<HostFile>> {
    let info = platform().host_call(HostCall::FdInfo, [fd as u64, 0, 0, 0], None);
    if info < 0 {
        return None;
    }
    let mode = (info >> 32) as u32;
    let is_terminal = terminal && mode & 0o170000 == 0o020000;
    let terminal = is_terminal.then(tty::host_terminal);
    Some(Arc::new(HostFile { fd, mode, terminal }))
}

/// A host descriptor that came with a program of the host's; `terminal` when it is one.
pub fn open_passed(fd: i32, terminal: Option<Arc<Terminal>>) -> Option<Arc<HostFile>> {
    let info = platform().host_call(HostCall::FdInfo, [fd as u64, 0, 0, 0], None);
    let mode = u32::try_from(info >> 32).ok()?;
    Some(Arc::new(HostFile {
        fd,
        mode,
        terminal: terminal.filter(|_| mode & 0o170000 == 0o020000),
    }))
}

/// /dev/console: the host's terminal; for a program of the host's, the one that it came with.
pub fn open_console(caller: &Caller<'_>, _flags: u32) -> Result<Arc<dyn FileOps>> {
    if let Some(passed) = caller.thread.and_then(|thread| tty::passed_to(thread)) {
        return Ok(passed);
    }
    if !crate::fs::has_terminal() {
        return Err(ENXIO.because("the container has no terminal"));
    }
    let file = (0..3)
        .filter_map(|fd| open_stream(fd, true))
        .find(|f| f.terminal.is_some());
    file.map(|file| file as Arc<dyn FileOps>).ok_or(ENXIO)
}

/// An answer that must lie in `0..=most`.
fn checked(answer: i64, most: usize) -> Result<usize> {
    if answer < 0 {
        return Err(Errno::from_host(answer));
    }
    usize::try_from(answer)
        .ok()
        .filter(|&len| len <= most)
        .ok_or(EIO)
}

impl HostFile {
    /// Readiness now, the host's word.
    fn host_events(&self, interest: Events) -> Events {
        self.poll_host(interest, 0, None).unwrap_or(Events::ERR)
    }

    fn poll_host(
        &self,
        interest: Events,
        timeout: u64,
        waiting: Option<(&Thread, u32)>,
    ) -> Result<Events> {
        let entry = PollFd {
            fd: self.fd,
            events: interest.bits() as u16,
            revents: 0,
        };
        let mut bytes = [0u8; 8];
        bytes[..4].copy_from_slice(&entry.fd.to_le_bytes());
        bytes[4..6].copy_from_slice(&entry.events.to_le_bytes());
        platform().host_put(0, &bytes)?;
        let answer = platform().host_call(HostCall::Poll, [1, timeout, 0, 0], waiting);
        if checked(answer, 1)? == 0 {
            return Ok(Events::empty());
        }
        platform().host_get(0, &mut bytes)?;
        Ok(Events::from_bits_truncate(u32::from(u16::from_le_bytes([
            bytes[6], bytes[7],
        ]))))
    }

    /// Sleeps until the host says that the stream is ready.
    fn wait(&self, thread: &Arc<Thread>, file: &OpenFile, interest: Events) -> Result<()> {
        if self.mode & 0o170000 == 0o100000 {
            return Ok(());
        }
        if file.is_nonblocking() {
            let ready = self.host_events(interest);
            return if ready.is_empty() {
                Err(EAGAIN)
            } else {
                Ok(())
            };
        }
        loop {
            let seen = thread.event_count();
            if thread.interrupted() {
                return Err(ERESTARTSYS);
            }
            match self.poll_host(interest, u64::MAX, Some((thread, seen))) {
                Ok(events) if !events.is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) if error == EINTR || error == EAGAIN => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn transfer_in(&self, to: &mut IoBuffer<'_>, offset: u64) -> Result<usize> {
        let len = to.remaining().min(DATA_SIZE as usize);
        let arguments = [self.fd as u64, len as u64, offset, 0];
        let answer = platform().host_call(HostCall::Read, arguments, None);
        let read = checked(answer, len)?;
        copy_from_host(to, read)
    }

    fn transfer_out(&self, from: &mut IoBuffer<'_>, offset: u64) -> Result<usize> {
        let mut done = 0;
        while !from.is_empty() {
            let mut chunk = [0u8; 4096];
            let mut len = 0;
            while len < DATA_SIZE as usize && !from.is_empty() {
                let wanted = chunk.len().min(DATA_SIZE as usize - len);
                match from.take(&mut chunk[..wanted]) {
                    Ok(0) => break,
                    Ok(taken) => {
                        platform().host_put(len as u64, &chunk[..taken])?;
                        len += taken;
                    }
                    Err(error) if len == 0 && done == 0 => return Err(error),
                    Err(_) => break,
                }
            }
            if len == 0 {
                break;
            }
            let at = if offset == u64::MAX {
                offset
            } else {
                offset + done as u64
            };
            let mut sent = 0;
            while sent < len {
                // The host takes from the start of the buffer: what is left moves there.
                if sent > 0 {
                    shift_buffer(sent, len - sent)?;
                }
                let left = len - sent;
                let arguments = [self.fd as u64, left as u64, at, 0];
                match checked(platform().host_call(HostCall::Write, arguments, None), left) {
                    Ok(0) => return Ok(done + sent),
                    Ok(written) => {
                        sent += written;
                        if offset != u64::MAX {
                            return Ok(done + sent);
                        }
                    }
                    Err(error) if error == EINTR => continue,
                    Err(error) if done + sent == 0 => return Err(error),
                    Err(_) => return Ok(done + sent),
                }
            }
            done += len;
        }
        Ok(done)
    }

    /// An ioctl whose argument is `size` bytes of user memory, in or out.
    fn pass_ioctl(
        &self,
        context: &Context<'_>,
        request: u32,
        argument: u64,
        size: usize,
        writes: bool,
    ) -> Result<usize> {
        let mm = context.mm();
        let mut bytes = [0u8; 64];
        let bytes = &mut bytes[..size];
        if writes {
            mm.read(argument, bytes)?;
            platform().host_put(0, bytes)?;
        }
        let arguments = [self.fd as u64, u64::from(request), size as u64, 0];
        checked(
            platform().host_call(HostCall::Ioctl, arguments, None),
            usize::MAX,
        )?;
        if !writes {
            platform().host_get(0, bytes)?;
            mm.write(argument, bytes)?;
        }
        Ok(0)
    }
}

/// Copies `len` bytes of the data buffer to where a read goes.
fn copy_from_host(to: &mut IoBuffer<'_>, len: usize) -> Result<usize> {
    let mut chunk = [0u8; 4096];
    let mut at = 0;
    while at < len {
        let step = chunk.len().min(len - at);
        platform().host_get(at as u64, &mut chunk[..step])?;
        match to.put(&chunk[..step]) {
            Ok(put) => {
                at += put;
                if put < step {
                    break;
                }
            }
            Err(error) if at == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(at)
}

fn shift_buffer(from: usize, len: usize) -> Result<()> {
    let mut chunk = [0u8; 4096];
    let mut at = 0;
    while at < len {
        let step = chunk.len().min(len - at);
        platform().host_get((from + at) as u64, &mut chunk[..step])?;
        platform().host_put(at as u64, &chunk[..step])?;
        at += step;
    }
    Ok(())
}

impl FileOps for HostFile {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        if to.is_empty() {
            return Ok(0);
        }
        if let Some(terminal) = &self.terminal {
            terminal.check_read(thread)?;
        }
        loop {
            self.wait(thread, file, Events::IN)?;
            match self.transfer_in(to, u64::MAX) {
                Err(error) if error == EINTR || error == EAGAIN && !file.is_nonblocking() => {}
                other => return other,
            }
        }
    }

    fn write(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        if file.is_nonblocking() {
            self.wait(thread, file, Events::OUT)?;
        }
        let result = self.transfer_out(from, u64::MAX);
        if result == Err(EPIPE) {
            super::hooks::raise_sigpipe(thread);
        }
        result
    }

    fn read_at(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        to: &mut IoBuffer<'_>,
        offset: u64,
    ) -> Result<usize> {
        if !self.is_seekable() {
            return Err(ESPIPE);
        }
        self.transfer_in(to, offset)
    }

    fn write_at(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        from: &mut IoBuffer<'_>,
        offset: u64,
    ) -> Result<usize> {
        if !self.is_seekable() {
            return Err(ESPIPE);
        }
        self.transfer_out(from, offset)
    }

    fn is_seekable(&self) -> bool {
        self.mode & 0o170000 == 0o100000
    }

    fn poll(&self, _table: Option<&mut PollTable>, _interest: Events) -> Events {
        // Readiness is the host's: see `host_fd`.
        Events::empty()
    }

    fn host_fd(&self) -> Option<i32> {
        Some(self.fd)
    }

    fn ioctl(
        &self,
        context: &mut Context<'_>,
        file: &OpenFile,
        request: u32,
        argument: u64,
    ) -> Result<usize> {
        if request == ioctl::FIONREAD {
            return self.pass_ioctl(context, request, argument, 4, false);
        }
        let terminal = self.terminal.as_ref().ok_or(ENOTTY)?;
        match request {
            ioctl::TCGETS => self.pass_ioctl(context, request, argument, TERMIOS_SIZE, false),
            ioctl::TCSETS | ioctl::TCSETSW | ioctl::TCSETSF => {
                terminal.check_change(context.thread)?;
                self.pass_ioctl(context, request, argument, TERMIOS_SIZE, true)
            }
            ioctl::TIOCGWINSZ => self.pass_ioctl(context, request, argument, WINSIZE_SIZE, false),
            ioctl::TIOCSWINSZ => self.pass_ioctl(context, request, argument, WINSIZE_SIZE, true),
            // The host's terminal is not ours to type into.
            ioctl::TIOCSTI => Err(EIO),
            ioctl::TCSBRK | ioctl::TCSBRKP | ioctl::TCXONC | ioctl::TCFLSH => Ok(0),
            ioctl::TIOCOUTQ => {
                UserPtr::<i32>::new(argument).write(&context.mm(), &0)?;
                Ok(0)
            }
            _ => terminal.ioctl(context, file, request, argument),
        }
    }

    fn metadata(&self) -> Metadata {
        let rdev = if self.terminal.is_some() {
            super::lower::make_device(5, 1)
        } else {
            0
        };
        // A host device that is not our terminal is shown as a pipe: its number means nothing here.
        let kind = match self.mode & 0o170000 {
            0o020000 if self.terminal.is_none() => 0o010000,
            kind => kind,
        };
        Metadata {
            inode: 100 + self.fd as u64,
            mode: kind | 0o620,
            rdev,
            size: 0,
            ..anonymous_metadata()
        }
    }

    fn seek(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        _offset: i64,
        _whence: u32,
    ) -> Result<u64> {
        Err(if self.is_seekable() { EINVAL } else { ESPIPE })
    }

    fn describe(&self) -> String {
        match (&self.terminal, self.mode & 0o170000) {
            (Some(_), _) => String::from("/dev/console"),
            (None, 0o100000) => format!("/host:[{}]", self.fd),
            (None, 0o140000) => format!("socket:[{}]", self.fd),
            _ => format!("pipe:[{}]", (1u64 << 32) + self.fd as u64),
        }
    }
}
