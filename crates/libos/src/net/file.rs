//! A socket as an open file.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{Ancillary, Incoming, Outgoing, Socket, msg};
use crate::errno::{EFAULT, ENOTSOCK, ENOTTY, EPIPE};
use crate::fs::file::{FileOps, OpenFile, anonymous_metadata};
use crate::fs::inode::Metadata;
use crate::signal::info::SigInfo;
use crate::signal::send::{self, Origin};
use crate::sync::wait::{Events, PollTable};
use crate::syscall::Context;
use crate::user::{IoBuffer, UserPtr};
use crate::{Result, Thread};

const SIGPIPE: u32 = 13;
/// S_IFSOCK, and access for all.
const SOCKET_MODE: u32 = 0o140777;
const FIONREAD: u32 = 0x541b;
const SIOCOUTQ: u32 = 0x5411;
const SIOCATMARK: u32 = 0x8905;
const SIOCGIFCONF: u32 = 0x8912;
/// Bytes of a `struct ifreq`, one for each interface with an IPv4 address.
const INTERFACE: usize = 40;
/// Most interfaces that are told of.
const INTERFACES_MAX: usize = 64;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A socket behind a descriptor.
pub struct SocketFile {
    pub socket: Arc<dyn Socket>,
    number: u64,
}

impl SocketFile {
    pub fn new(socket: Arc<dyn Socket>) -> Arc<SocketFile> {
        Arc::new(SocketFile {
            socket,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// The socket behind an open file; ENOTSOCK.
    pub fn of(file: &OpenFile) -> Result<&SocketFile> {
        file.ops.as_any().downcast_ref().ok_or(ENOTSOCK)
    }

    /// Sends, and raises SIGPIPE where Linux does.
    pub fn send(
        &self,
        thread: &Arc<Thread>,
        message: Outgoing<'_, '_>,
        nonblocking: bool,
    ) -> Result<usize> {
        let quiet = message.flags & msg::NOSIGNAL != 0;
        let result = self.socket.send(thread, message, nonblocking);
        if result.is_err_and(|error| error == EPIPE)
            && !quiet
            && self.socket.kind() != super::kind::DGRAM
        {
            // A full queue cannot be: SIGPIPE is not a real-time signal.
            let _ = send::to_thread(thread, SigInfo::kernel(SIGPIPE), Origin::Inside);
        }
        result
    }
}

impl SocketFile {
    /// SIOCGIFCONF. `struct ifconf`: bytes of room, and where the list goes (0: only its length is
    /// asked for).
    fn interface_list(&self, context: &mut Context<'_>, argument: u64) -> Result<usize> {
        const POINTER: u64 = 8;
        /// Where the list begins in what the host gets.
        const LIST: usize = 16;
        let mm = context.mm();
        let room = UserPtr::<i32>::new(argument).read(&mm)?;
        let list = UserPtr::<u64>::new(argument.wrapping_add(POINTER)).read(&mm)?;
        let most = INTERFACES_MAX * INTERFACE;
        let room = match list {
            0 => most,
            _ => usize::try_from(room).unwrap_or(0).min(most),
        };
        let mut value = alloc::vec![0; LIST + most];
        value[..4].copy_from_slice(&(room as u32).to_le_bytes());
        self.socket.ioctl(SIOCGIFCONF, &mut value)?;
        let used = u32::from_le_bytes([value[0], value[1], value[2], value[3]]) as usize;
        // The host's word: whole entries, no more than there is room for.
        let used = used.min(room) / INTERFACE * INTERFACE;
        if list != 0 {
            mm.write(list, &value[LIST..LIST + used])?;
        }
        UserPtr::<i32>::new(argument).write(&mm, &(used as i32))?;
        Ok(0)
    }
}

impl FileOps for SocketFile {
    fn is_async(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        // read(2) of nothing never waits, unlike recv(2).
        if to.is_empty() {
            return Ok(0);
        }
        let message = Incoming {
            data: to,
            flags: 0,
            want_address: false,
            control: 0,
        };
        Ok(self
            .socket
            .receive(thread, message, file.is_nonblocking())?
            .len)
    }

    fn write(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        let message = Outgoing {
            data: from,
            address: None,
            ancillary: Ancillary::default(),
            flags: 0,
        };
        self.send(thread, message, file.is_nonblocking())
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        self.socket.poll(table, interest)
    }

    fn host_fd(&self) -> Option<i32> {
        self.socket.host_fd()
    }

    fn ioctl(
        &self,
        context: &mut Context<'_>,
        _file: &OpenFile,
        request: u32,
        argument: u64,
    ) -> Result<usize> {
        if request == SIOCGIFCONF {
            return self.interface_list(context, argument);
        }
        let len = match request {
            FIONREAD | SIOCOUTQ | SIOCATMARK => 4,
            // SIOCGIFNAME … SIOCGIFTXQLEN: struct ifreq.
            0x8910 | 0x8913..=0x8942 => 40,
            _ => return Err(ENOTTY),
        };
        let mm = context.mm();
        let mut value = [0u8; 40];
        mm.read(argument, &mut value[..len])?;
        let answer = self.socket.ioctl(request, &mut value[..len])?;
        mm.write(argument, &value[..len]).map_err(|_| EFAULT)?;
        Ok(answer)
    }

    fn metadata(&self) -> Metadata {
        Metadata {
            inode: self.number,
            mode: SOCKET_MODE,
            ..anonymous_metadata()
        }
    }

    fn release(&self, _flags: u32) {
        self.socket.close();
    }

    fn describe(&self) -> String {
        format!("socket:[{}]", self.number)
    }
}
