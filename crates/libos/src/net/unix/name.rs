//! Names of UNIX sockets: abstract, or a socket file.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use super::UnixSocket;
use crate::errno::{EADDRINUSE, ECONNREFUSED, EEXIST, EINVAL, ENOSPC, EPROTOTYPE};
use crate::fs::inode::{FileId, FileType, NewNode};
use crate::fs::namei;
use crate::fs::path::{Follow, Walk};
use crate::fs::permission::Caller;
use crate::net::{address_family, family};
use crate::sync::SpinLock;
use crate::{Result, Thread};

/// Longest path in a `struct sockaddr_un`.
const PATH_MAX: usize = 108;
/// Permission to write, as access(2) numbers it.
const MAY_WRITE: u32 = 2;

/// Where a name leads.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Without the leading null byte.
    Abstract(Vec<u8>),
    File(FileId),
}

static NAMES: SpinLock<BTreeMap<Name, Weak<UnixSocket>>> = SpinLock::new(BTreeMap::new());
static NEXT_AUTOBIND: AtomicU32 = AtomicU32::new(0);

/// The address of a socket that has none.
pub fn unnamed() -> Vec<u8> {
    (family::UNIX).to_le_bytes().to_vec()
}

enum Parsed<'a> {
    Unnamed,
    Abstract(&'a [u8]),
    Path(&'a [u8]),
}

fn parse(address: &[u8]) -> Result<Parsed<'_>> {
    if address_family(address)? != family::UNIX {
        return Err(EINVAL.because("not the address of a UNIX socket"));
    }
    let path = &address[2..];
    if path.len() > PATH_MAX {
        return Err(EINVAL.because("address too long"));
    }
    match path {
        [] => Ok(Parsed::Unnamed),
        [0, name @ ..] => Ok(Parsed::Abstract(name)),
        path => {
            let end = path.iter().position(|&byte| byte == 0);
            Ok(Parsed::Path(&path[..end.unwrap_or(path.len())]))
        }
    }
}

fn claim(name: &Name, socket: &Weak<UnixSocket>) -> Result<()> {
    let mut names = NAMES.lock();
    let taken = names.get(name);
    if taken.is_some_and(|socket| socket.strong_count() > 0) {
        return Err(EADDRINUSE);
    }
    names.insert(name.clone(), socket.clone());
    Ok(())
}

/// Gives a socket the name in `address`: the name, and the address as getsockname tells it.
pub fn bind(
    thread: &Arc<Thread>,
    socket: &Weak<UnixSocket>,
    address: &[u8],
) -> Result<(Name, Vec<u8>)> {
    match parse(address)? {
        Parsed::Unnamed => {
            // Autobind: five hexadecimal digits (unix(7)).
            for _ in 0..1 << 20 {
                let number = NEXT_AUTOBIND.fetch_add(1, Ordering::Relaxed) & 0xf_ffff;
                let digits = alloc::format!("{number:05x}").into_bytes();
                let mut address = vec![1, 0, 0];
                address.extend_from_slice(&digits);
                let name = Name::Abstract(digits);
                if claim(&name, socket).is_ok() {
                    return Ok((name, address));
                }
            }
            Err(ENOSPC.because("all automatic names are taken"))
        }
        Parsed::Abstract(bytes) => {
            let name = Name::Abstract(bytes.to_vec());
            claim(&name, socket)?;
            Ok((name, address.to_vec()))
        }
        Parsed::Path(path) => {
            let name = Name::File(make_file(thread, path)?);
            claim(&name, socket)?;
            let mut address = unnamed();
            address.extend_from_slice(path);
            address.push(0);
            Ok((name, address))
        }
    }
}

/// bind(2) of a socket that has a name.
pub fn bind_again(thread: &Arc<Thread>, address: &[u8]) -> Result<()> {
    match parse(address)? {
        Parsed::Unnamed => return Ok(()),
        Parsed::Path(path) => {
            let context = thread.fs();
            if Walk::new(Caller::new(thread), &context)
                .find(path, Follow::No)
                .is_ok()
            {
                return Err(EADDRINUSE);
            }
        }
        Parsed::Abstract(_) => {}
    }
    Err(EINVAL.because("already bound"))
}

/// Forgets a name, unless another socket has it by now.
pub fn release(name: &Name, socket: &UnixSocket) {
    let mut names = NAMES.lock();
    let ours = |found: &Weak<UnixSocket>| core::ptr::eq(found.as_ptr(), socket);
    if names.get(name).is_some_and(ours) {
        names.remove(name);
    }
}

/// The socket that an address names, which must be of the caller's kind.
pub fn find(thread: &Arc<Thread>, address: &[u8], kind: i32) -> Result<Arc<UnixSocket>> {
    let name = match parse(address)? {
        Parsed::Unnamed => return Err(EINVAL.because("no name to connect to")),
        Parsed::Abstract(name) => Name::Abstract(name.to_vec()),
        Parsed::Path(path) => Name::File(find_file(thread, path)?),
    };
    let found = NAMES.lock().get(&name).and_then(Weak::upgrade);
    let found = found.ok_or(ECONNREFUSED)?;
    if found.kind != kind {
        return Err(EPROTOTYPE);
    }
    Ok(found)
}

/// The socket file at `path`, which the caller must be allowed to write.
fn find_file(thread: &Arc<Thread>, path: &[u8]) -> Result<FileId> {
    let caller = Caller::new(thread);
    let found = Walk::new(Caller::new(thread), &thread.fs()).find(path, Follow::Yes)?;
    caller.check(&**found.inode(), MAY_WRITE)?;
    if found.inode().kind() != FileType::Socket {
        return Err(ECONNREFUSED);
    }
    Ok(found.inode().id())
}

/// Makes a socket file at `path`; EADDRINUSE when there is something already.
fn make_file(thread: &Arc<Thread>, path: &[u8]) -> Result<FileId> {
    let context = thread.fs();
    let mut walk = Walk::new(Caller::new(thread), &context);
    let mode = 0o777 & !context.umask();
    let made = namei::create(&mut walk, path, NewNode::Socket, mode);
    let path = made.map_err(|error| if error == EEXIST { EADDRINUSE } else { error })?;
    Ok(path.inode().id())
}
