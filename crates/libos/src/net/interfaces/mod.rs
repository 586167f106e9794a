//! The container's network interfaces, addresses and routes: those of the host, whose network it
//! uses, by the host's word.
//!
//! Every question is a host call; nothing is kept. Netlink, the ioctls, /proc/net and
//! /sys/class/net all answer from here, so they agree. What the host says is checked message by
//! message ([`check`]) and written anew, at most [`ENTRIES_MAX`] messages and [`BYTES_MAX`] bytes.
//! A host that says nothing of its network leaves the loopback.
//!
//! Nothing relies on the answers: they are what the host could as well put into a packet.

pub mod check;
pub mod ioctl;
pub mod message;
pub mod sysfs;
pub mod text;

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use bulla_abi::hostcall::HostCall;
use bulla_abi::network::{REQUEST_MAX, query};

use self::check::{What, text_of};
use self::message::{attributes, put_attribute, u16_at, u32_at};
use super::family;
use crate::errno::{EIO, ENOBUFS, ENODEV};
use crate::platform::platform;
use crate::{Errno, Result};

/// Most messages about one thing: a machine that is a router of the Internet has more routes.
const ENTRIES_MAX: u64 = 32 << 10;
/// Most bytes of them.
const BYTES_MAX: usize = 4 << 20;
/// Room for one answer.
const ROOM: u64 = 128 << 10;

/// A checked message: its fixed header, then attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub what: What,
    pub body: Vec<u8>,
}

impl Entry {
    /// The value of an attribute.
    pub fn get(&self, kind: u16) -> Option<&[u8]> {
        attributes(&self.body[self.what.header()..])
            .find(|(found, _)| *found == kind)
            .map(|(_, value)| value)
    }

    fn number(&self, kind: u16) -> Option<u32> {
        u32_at(self.get(kind)?, 0)
    }

    fn byte(&self, kind: u16) -> u8 {
        self.get(kind)
            .and_then(|value| value.first())
            .map_or(0, |byte| *byte)
    }

    fn text(&self, kind: u16) -> String {
        String::from_utf8_lossy(text_of(self.get(kind).unwrap_or_default())).into_owned()
    }

    /// AF_*.
    pub fn family(&self) -> u16 {
        u16::from(self.body[0])
    }

    /// The interface that a link, an address or a neighbour names in its header.
    pub fn index(&self) -> u32 {
        u32_at(&self.body, 4).unwrap_or(0)
    }

    /// The number of a route's table.
    pub fn table(&self) -> u32 {
        const RTA_TABLE: u16 = 15;
        self.number(RTA_TABLE).unwrap_or(u32::from(self.body[4]))
    }

    /// The interface that a route leads to.
    pub fn output(&self) -> u32 {
        const RTA_OIF: u16 = 4;
        self.number(RTA_OIF).unwrap_or(0)
    }
}

/// All messages about `what`.
pub fn entries(what: What) -> Result<Vec<Entry>> {
    let number = match what {
        What::Link => query::LINKS,
        What::Address => query::ADDRESSES,
        What::Route => query::ROUTES,
        What::Neighbour => query::NEIGHBOURS,
        What::Rule => query::RULES,
    };
    let mut found: Vec<Entry> = Vec::new();
    let (mut seen, mut kept) = (0, 0);
    loop {
        let bytes = match ask([number, seen, 0, ROOM]) {
            Ok(bytes) => bytes,
            // A host without an answer: where it has none to the first question, the loopback.
            Err(_) if seen == 0 => return Ok(loopback(what)),
            Err(error) => return Err(error),
        };
        if bytes.is_empty() {
            break;
        }
        let before = seen;
        for (header, body) in message::messages(&bytes) {
            seen += 1;
            if let Some(body) = check::message(what, header.kind, body)? {
                kept += body.len();
                let entry = Entry { what, body };
                // Between two answers an interface may have moved to another place in the list.
                if what != What::Link || is_new(&found, &entry) {
                    found.push(entry);
                }
            }
        }
        if seen == before {
            return Err(EIO.because("host answer that is no message"));
        }
        if seen > ENTRIES_MAX || kept > BYTES_MAX {
            return Err(ENOBUFS.because("more of the host's network than there is room for"));
        }
    }
    Ok(found)
}

/// Whether an interface has a name, and index and name that no other has.
fn is_new(found: &[Entry], link: &Entry) -> bool {
    const IFLA_IFNAME: u16 = 3;
    let name = link.get(IFLA_IFNAME);
    name.is_some()
        && !found
            .iter()
            .any(|other| other.index() == link.index() || other.get(IFLA_IFNAME) == name)
}

/// The route that the host would take: `request` is a `struct rtmsg` with attributes.
pub fn route_to(request: &[u8]) -> Result<Entry> {
    // The header, and what a program may say of where it wants to go and how: RTA_DST, RTA_SRC,
    // RTA_IIF, RTA_OIF, RTA_MARK, RTA_UID … as far as they have the right form.
    let checked = check::message(What::Route, What::Route.kind(), request)
        .map_err(|_| crate::errno::EINVAL)?
        .ok_or(crate::errno::EAFNOSUPPORT)?;
    if checked.len() as u64 > REQUEST_MAX {
        return Err(crate::errno::EINVAL.because("request too long"));
    }
    platform().host_put(0, &checked)?;
    let bytes = ask([query::ROUTE_TO, 0, checked.len() as u64, ROOM])?;
    let Some((header, body)) = message::messages(&bytes).next() else {
        return Err(EIO.because("host answer that is no message"));
    };
    let body = check::message(What::Route, header.kind, body)?.ok_or(EIO)?;
    Ok(Entry {
        what: What::Route,
        body,
    })
}

fn ask(arguments: [u64; 4]) -> Result<Vec<u8>> {
    let answer = platform().host_call(HostCall::NetQuery, arguments, None);
    let len = u64::try_from(answer).map_err(|_| Errno::from_host(answer))?;
    if len > ROOM {
        return Err(EIO.because("host answer longer than there was room for"));
    }
    let mut bytes = vec![0; len as usize];
    platform().host_get(0, &mut bytes)?;
    Ok(bytes)
}

/// What there is where the host does not tell: interface 1 with 127.0.0.1 and ::1.
fn loopback(what: What) -> Vec<Entry> {
    const ARPHRD_LOOPBACK: u16 = 772;
    // IFF_UP | IFF_LOOPBACK | IFF_RUNNING | IFF_LOWER_UP.
    const FLAGS: u32 = 0x1_0049;
    const PERMANENT: u8 = 0x80;
    const SCOPE_HOST: u8 = 254;
    let index = 1u32.to_le_bytes();
    let bodies = match what {
        What::Link => {
            let mut body = vec![0, 0];
            body.extend_from_slice(&ARPHRD_LOOPBACK.to_le_bytes());
            body.extend_from_slice(&index);
            body.extend_from_slice(&FLAGS.to_le_bytes());
            body.extend_from_slice(&[0; 4]);
            put_attribute(&mut body, 3, b"lo\0");
            put_attribute(&mut body, 13, &1000u32.to_le_bytes());
            put_attribute(&mut body, 16, &[0]);
            put_attribute(&mut body, 4, &65536u32.to_le_bytes());
            put_attribute(&mut body, 33, &[1]);
            put_attribute(&mut body, 6, b"noqueue\0");
            put_attribute(&mut body, 1, &[0; 6]);
            put_attribute(&mut body, 2, &[0; 6]);
            vec![body]
        }
        What::Address => {
            let mut four = vec![family::INET as u8, 8, PERMANENT, SCOPE_HOST];
            four.extend_from_slice(&index);
            put_attribute(&mut four, 1, &[127, 0, 0, 1]);
            put_attribute(&mut four, 2, &[127, 0, 0, 1]);
            put_attribute(&mut four, 3, b"lo\0");
            let mut six = vec![family::INET6 as u8, 128, PERMANENT, SCOPE_HOST];
            six.extend_from_slice(&index);
            let mut address = [0; 16];
            address[15] = 1;
            put_attribute(&mut six, 1, &address);
            vec![four, six]
        }
        _ => Vec::new(),
    };
    let entry = |body| Entry { what, body };
    bodies.into_iter().map(entry).collect()
}

/// An interface.
#[derive(Clone, Debug)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// IFF_*.
    pub flags: u32,
    /// ARPHRD_*.
    pub hardware: u16,
    pub mtu: u32,
    pub queue_len: u32,
    pub address: Vec<u8>,
    pub broadcast: Vec<u8>,
    entry: Entry,
}

impl Interface {
    fn new(entry: Entry) -> Interface {
        let bytes = |kind| entry.get(kind).unwrap_or_default().to_vec();
        Interface {
            index: entry.index(),
            name: entry.text(3),
            flags: u32_at(&entry.body, 8).unwrap_or(0),
            hardware: u16_at(&entry.body, 2).unwrap_or(0),
            mtu: entry.number(4).unwrap_or(0),
            queue_len: entry.number(13).unwrap_or(0),
            address: bytes(1),
            broadcast: bytes(2),
            entry,
        }
    }

    /// A counter of `struct rtnl_link_stats64`.
    fn counter(&self, at: usize) -> u64 {
        let word = self
            .entry
            .get(23)
            .and_then(|all| all.get(at * 8..at * 8 + 8));
        word.map_or(0, |word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_le_bytes(bytes)
        })
    }
}

/// All interfaces.
pub fn list() -> Result<Vec<Interface>> {
    Ok(entries(What::Link)?
        .into_iter()
        .map(Interface::new)
        .collect())
}

/// The interface of this name, or with an alias such as `eth0:1` the one that has it; ENODEV.
pub fn named(name: &str) -> Result<Interface> {
    let base = name.split(':').next().unwrap_or_default();
    let mut all = list()?.into_iter();
    all.find(|interface| interface.name == base).ok_or(ENODEV)
}

#[cfg(test)]
mod tests;
