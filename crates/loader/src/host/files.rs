//! Host calls on descriptors of any kind; in practice the three standard ones.

use std::sync::atomic::Ordering;

use super::Call;
use crate::sys::file;
use crate::sys::raw::{Answer, Errno};
use crate::sys::wait::Waiter;
use crate::waiting::Blocks;

/// Requests of the newer terminal interface, which libc has no names for: TCGETS2, TCSETS2,
/// TCSETSW2, TCSETSF2 (asm-generic/ioctls.h).
const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
const TCSETSF2: u64 = 0x402c_542d;
/// Whom signals about a socket go to: always us, whatever the argument says.
const FIOSETOWN: u64 = 0x8901;
/// Whether the next byte is the urgent one.
const SIOCATMARK: u64 = 0x8905;

impl Call<'_> {
    /// Read(fd, len, offset).
    pub fn read(&self) -> Answer {
        let [fd, len, offset, _] = self.arguments;
        let fd = self.descriptor(fd)?;
        let to = self.data(len)?;
        let read = self.unless_kicked(fd, libc::POLLIN, |waiter| waiter.read(fd, to, offset))?;
        self.slot.counters.bytes_in.add(read);
        Ok(read)
    }

    /// Write(fd, len, offset).
    pub fn write(&self) -> Answer {
        let [fd, len, offset, _] = self.arguments;
        let fd = self.descriptor(fd)?;
        let from = self.data(len)?;
        let written =
            self.unless_kicked(fd, libc::POLLOUT, |waiter| waiter.write(fd, from, offset))?;
        self.slot.counters.bytes_out.add(written);
        Ok(written)
    }

    /// A call on a descriptor that may block. Wakes and kicks end it with EINTR, but only when it
    /// would really have blocked: programs do not expect EINTR from an ordinary write.
    fn unless_kicked(&self, fd: i32, ready: i16, call: impl Fn(Waiter<'_>) -> Answer) -> Answer {
        loop {
            // The caller gave no `seen`: a wake from now on ends it, one before was looked at.
            let seen = self.slot.area.wait_word().load(Ordering::SeqCst);
            let waiter = self.waiter(seen);
            let answer = self.announced(Blocks::InCall, waiter, &call);
            if answer != Err(Errno(libc::EINTR)) {
                return answer;
            }
            self.slot.kicked.store(0, Ordering::SeqCst);
            let seen = self.slot.area.wait_word().load(Ordering::SeqCst);
            match self.waiter(seen).poll_one(fd, ready, 0) {
                Ok(1..) => continue,
                _ => return answer,
            }
        }
    }

    /// Close(fd). The loader goes on using stderr for its own messages; for stdin and stdout the
    /// other end sees the close, while the number stays taken.
    pub fn close(&self) -> Answer {
        let fd = self.arguments[0];
        if fd <= 2 {
            return match self.engine.standard.close(fd) {
                Some(_) if fd == 2 => Ok(0),
                Some(host) => file::replace_by_null(host),
                None => Err(Errno(libc::EBADF)),
            };
        }
        let host = self.descriptor(fd)?;
        // Before the close: the number may be someone else's right after it.
        if !self.engine.made.remove(host) {
            return Err(Errno(libc::EBADF));
        }
        file::close(host)
    }

    /// Ioctl(fd, request, len).
    pub fn ioctl(&self) -> Answer {
        let [fd, request, len, _] = self.arguments;
        let fd = self.descriptor(fd)?;
        let argument = self.data(len)?;
        let size = match request {
            libc::TCGETS | libc::TCSETS | libc::TCSETSW | libc::TCSETSF => 36,
            TCGETS2 | TCSETS2..=TCSETSF2 => 44,
            libc::TIOCGWINSZ | libc::TIOCSWINSZ => 8,
            FIOSETOWN => return file::own_signals(fd),
            libc::FIONREAD | libc::TIOCOUTQ | SIOCATMARK => 4,
            _ => return Err(Errno(libc::ENOTTY)),
        };
        if argument.len() < size {
            return Err(Errno(libc::EINVAL));
        }
        file::ioctl(fd, request, argument)
    }

    /// FdInfo(fd).
    pub fn info(&self) -> Answer {
        file::info(self.descriptor(self.arguments[0])?)
    }

    /// FdStat(fd), `struct stat` into the buffer.
    pub fn status(&self) -> Answer {
        let fd = self.descriptor(self.arguments[0])?;
        file::status_into(fd, self.data(size_of::<libc::stat>() as u64)?)
    }

    /// Lets the enclave use a new descriptor.
    pub(super) fn made(&self, fd: i32) -> Answer {
        if let Err(error) = self.engine.made.add(fd) {
            file::close(fd)?;
            return Err(error);
        }
        Ok(fd as u64)
    }
}
