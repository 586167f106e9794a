//! The ioctls about interfaces (netdevice(7)): on sockets of every family, those about addresses on
//! IPv4's only.

use alloc::string::String;
use alloc::vec::Vec;

use super::check::{What, text_of};
use super::{Entry, Interface};
use crate::Result;
use crate::errno::{EADDRNOTAVAIL, EINVAL, ENODEV, ENOTTY, EOPNOTSUPP, EPERM};
use crate::net::family;

/// Bytes of a `struct ifreq`.
pub const REQUEST: usize = 40;
pub const SIOCGIFCONF: u32 = 0x8912;
const SIOCGIFNAME: u32 = 0x8910;
const SIOCGIFFLAGS: u32 = 0x8913;
const SIOCGIFADDR: u32 = 0x8915;
const SIOCGIFDSTADDR: u32 = 0x8917;
const SIOCGIFBRDADDR: u32 = 0x8919;
const SIOCGIFNETMASK: u32 = 0x891b;
const SIOCGIFMETRIC: u32 = 0x891d;
const SIOCGIFMTU: u32 = 0x8921;
const SIOCGIFHWADDR: u32 = 0x8927;
const SIOCGIFSLAVE: u32 = 0x8929;
const SIOCGIFINDEX: u32 = 0x8933;
const SIOCGIFBR: u32 = 0x8940;
const SIOCGIFTXQLEN: u32 = 0x8942;
const SIOCETHTOOL: u32 = 0x8946;
const SIOCGIFMAP: u32 = 0x8970;

/// Whether the request is one of these, so that its argument is a `struct ifreq`.
pub fn is_about_interfaces(request: u32) -> bool {
    // SIOCADDRT to the ioctls of bonds and bridges (linux/sockios.h).
    (0x890b..=0x890c).contains(&request) || (0x8910..=0x89a3).contains(&request)
}

/// Requests that change something, which a container may not.
fn is_change(of: u16, request: u32) -> bool {
    match request {
        0x8914 | 0x8922..=0x8924 | 0x8930..=0x8932 | 0x8937 | 0x8943 | 0x8947..=0x894c | 0x8971 => {
            true
        }
        0x8990..=0x8995 | 0x89a0..=0x89a3 => true,
        // Routes, addresses and the ARP table are the family's own.
        0x890b | 0x890c | 0x8916 | 0x8936 => of == family::INET || of == family::INET6,
        0x8918 | 0x891a | 0x891c | 0x8953 | 0x8955 => of == family::INET,
        _ => false,
    }
}

/// Answers in place.
pub fn answer(of: u16, request: u32, value: &mut [u8; REQUEST]) -> Result<()> {
    if is_change(of, request) {
        return Err(EPERM.because("the host's network cannot be changed from a container"));
    }
    match request {
        SIOCGIFADDR | SIOCGIFDSTADDR | SIOCGIFBRDADDR | SIOCGIFNETMASK if of != family::INET => {
            return Err(ENOTTY);
        }
        SIOCGIFSLAVE => return Err(EINVAL),
        SIOCGIFBR | SIOCETHTOOL => return Err(EOPNOTSUPP),
        SIOCGIFNAME | SIOCGIFFLAGS | SIOCGIFADDR | SIOCGIFDSTADDR | SIOCGIFBRDADDR
        | SIOCGIFNETMASK | SIOCGIFMETRIC | SIOCGIFMTU | SIOCGIFHWADDR | SIOCGIFINDEX
        | SIOCGIFTXQLEN | SIOCGIFMAP => {}
        _ => return Err(ENOTTY),
    }
    if request == SIOCGIFNAME {
        let index = u32::from_le_bytes([value[16], value[17], value[18], value[19]]);
        let all = super::list()?;
        let found = all.iter().find(|interface| interface.index == index);
        put_name(value, &found.ok_or(ENODEV)?.name);
        return Ok(());
    }
    value[15] = 0;
    let name = String::from_utf8_lossy(text_of(&value[..16])).into_owned();
    let interface = super::named(&name)?;
    let to = &mut value[16..];
    match request {
        SIOCGIFFLAGS => to[..2].copy_from_slice(&(interface.flags as u16).to_le_bytes()),
        SIOCGIFMETRIC => to[..4].fill(0),
        SIOCGIFMTU => to[..4].copy_from_slice(&interface.mtu.to_le_bytes()),
        SIOCGIFINDEX => to[..4].copy_from_slice(&interface.index.to_le_bytes()),
        SIOCGIFTXQLEN => to[..4].copy_from_slice(&interface.queue_len.to_le_bytes()),
        SIOCGIFHWADDR => {
            to[..2].copy_from_slice(&interface.hardware.to_le_bytes());
            let len = interface.address.len().min(14);
            to[2..2 + len].copy_from_slice(&interface.address[..len]);
        }
        SIOCGIFMAP => {
            // mem_start, mem_end, base_addr, irq, dma, port without padding between them and behind.
            let map = interface.entry.get(14).unwrap_or(&[0; 32]);
            to[..16].copy_from_slice(&map[..16]);
            to[16..18].copy_from_slice(&map[16..18]);
            to[18] = map[24];
            to[19..21].copy_from_slice(&map[26..28]);
        }
        _ => to[..16].copy_from_slice(&socket_address(&interface, &name, request)?),
    }
    Ok(())
}

fn put_name(value: &mut [u8; REQUEST], name: &str) {
    value[..16].fill(0);
    // Checked to have fewer bytes.
    let len = name.len().min(15);
    value[..len].copy_from_slice(&name.as_bytes()[..len]);
}

/// The IPv4 addresses of an interface.
fn addresses_of(index: u32) -> Result<Vec<Entry>> {
    let mut all = super::entries(What::Address)?;
    all.retain(|entry| entry.family() == family::INET && entry.index() == index);
    Ok(all)
}

/// `struct sockaddr_in`.
fn inet(address: [u8; 4]) -> [u8; 16] {
    let mut value = [0; 16];
    value[0] = family::INET as u8;
    value[4..8].copy_from_slice(&address);
    value
}

fn four(value: Option<&[u8]>) -> [u8; 4] {
    match value {
        Some(&[a, b, c, d]) => [a, b, c, d],
        _ => [0; 4],
    }
}

/// The name under which an address is known: its label.
fn label(entry: &Entry, interface: &str) -> String {
    match entry.get(3) {
        Some(_) => entry.text(3),
        None => interface.into(),
    }
}

fn socket_address(interface: &Interface, name: &str, request: u32) -> Result<[u8; 16]> {
    let all = addresses_of(interface.index)?;
    let mut all = all.iter();
    let found = all.find(|entry| label(entry, &interface.name) == name);
    let entry = found.ok_or(EADDRNOTAVAIL)?;
    let local = entry.get(2).or(entry.get(1));
    Ok(inet(match request {
        SIOCGIFADDR => four(local),
        SIOCGIFDSTADDR => four(entry.get(1).or(local)),
        SIOCGIFBRDADDR => four(entry.get(4)),
        _ => {
            let bits = u32::from(entry.body[1]);
            u32::MAX.checked_shl(32 - bits).unwrap_or(0).to_be_bytes()
        }
    }))
}

/// SIOCGIFCONF: a `struct ifreq` for each IPv4 address.
pub fn list() -> Result<Vec<[u8; REQUEST]>> {
    let mut out = Vec::new();
    let addresses = super::entries(What::Address)?;
    for interface in super::list()? {
        for entry in &addresses {
            if entry.family() != family::INET || entry.index() != interface.index {
                continue;
            }
            let mut value = [0; REQUEST];
            put_name(&mut value, &label(entry, &interface.name));
            value[16..32].copy_from_slice(&inet(four(entry.get(2).or(entry.get(1)))));
            out.push(value);
        }
    }
    Ok(out)
}
