//! A socket as an open file.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};

use super::interfaces::ioctl;
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

/// SIOCGIFCONF. `struct ifconf`: bytes of room, and where the list goes (0: only its length is asked
/// for). As many whole entries as there is room for.
fn interface_list(context: &mut Context<'_>, argument: u64) -> Result<usize> {
    const POINTER: u64 = 8;
    let mm = context.mm();
    let room = UserPtr::<i32>::new(argument).read(&mm)?;
    let at = UserPtr::<u64>::new(argument.wrapping_add(POINTER)).read(&mm)?;
    let mut list = ioctl::list()?;
    if at != 0 {
        list.truncate(usize::try_from(room).unwrap_or(0) / ioctl::REQUEST);
        mm.write(at, &list.concat())?;
    }
    let used = list.len() * ioctl::REQUEST;
    UserPtr::<i32>::new(argument).write(&mm, &(used as i32))?;
    Ok(0)
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
        let mm = context.mm();
        if request == ioctl::SIOCGIFCONF {
            return interface_list(context, argument);
        }
        if ioctl::is_about_interfaces(request) {
            let mut value = [0u8; ioctl::REQUEST];
            mm.read(argument, &mut value)?;
            ioctl::answer(self.socket.family(), request, &mut value)?;
            mm.write(argument, &value)?;
            return Ok(0);
        }
        if !matches!(request, FIONREAD | SIOCOUTQ | SIOCATMARK) {
            return Err(ENOTTY);
        }
        let mut value = [0u8; 4];
        let answer = self.socket.ioctl(request, &mut value)?;
        mm.write(argument, &value).map_err(|_| EFAULT)?;
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
