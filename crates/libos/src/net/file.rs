//! A socket as an open file.

use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;

use super::interfaces::ioctl;
use super::listing;
use super::{Ancillary, Incoming, Outgoing, Socket, msg};
use crate::errno::{EFAULT, ENOTSOCK, ENOTTY, EPIPE};
use crate::fs::async_io::Target;
use crate::fs::file::{FileOps, OpenFile, anonymous_metadata};
use crate::fs::inode::Metadata;
use crate::fs::lock::Locks;
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

/// A number that no other socket has.
pub fn next_number() -> u64 {
    // netstat(8) takes no number of one digit for an inode's.
    static NEXT: AtomicU64 = AtomicU64::new(20_001);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A socket behind a descriptor.
pub struct SocketFile {
    pub socket: Arc<dyn Socket>,
    /// User and group of whoever made it.
    pub owner: (u32, u32),
    number: u64,
    locks: Locks,
    /// The open file, of which a socket has only one: it knows whom SIGURG goes to.
    open: Once<Weak<OpenFile>>,
}

impl SocketFile {
    pub fn new(socket: Arc<dyn Socket>, owner: (u32, u32)) -> Arc<SocketFile> {
        let number = socket.number().unwrap_or_else(next_number);
        let file = Arc::new(SocketFile {
            socket,
            owner,
            number,
            locks: Locks::new(),
            open: Once::new(),
        });
        listing::add(number, Arc::downgrade(&file));
        file
    }

    /// Told once, when it has been opened.
    pub fn opened_as(&self, file: &Arc<OpenFile>) {
        self.open.call_once(|| Arc::downgrade(file));
    }

    /// Whether SIGURG goes to anybody.
    pub fn is_owned(&self) -> bool {
        let file = self.open.get().and_then(Weak::upgrade);
        file.is_some_and(|file| file.owner.target() != Target::Nobody)
    }

    /// Urgent data has come.
    pub fn urgent(&self) {
        if let Some(file) = self.open.get().and_then(Weak::upgrade) {
            file.owner.urgent();
        }
    }

    /// Its inode number.
    pub fn number(&self) -> u64 {
        self.number
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

impl Drop for SocketFile {
    fn drop(&mut self) {
        listing::remove(self.number);
    }
}

impl FileOps for SocketFile {
    fn is_async(&self) -> bool {
        true
    }

    fn locks(&self) -> &Locks {
        &self.locks
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
            uid: self.owner.0,
            gid: self.owner.1,
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
