//! /proc/net/dev, if_inet6, route, ipv6_route, arp.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use super::check::What;
use super::{Entry, Interface, entries, list};
use crate::net::family;

/// RT_TABLE_MAIN.
const TABLE_MAIN: u32 = 254;
/// RTN_*.
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;
const BROADCAST: u8 = 3;
const MULTICAST: u8 = 5;
const UNREACHABLE: u8 = 7;
const PROHIBIT: u8 = 8;

/// An error of the host leaves a file without lines: reads of /proc have no errors for it.
fn interfaces() -> Vec<Interface> {
    list().unwrap_or_default()
}

fn name_of(interfaces: &[Interface], index: u32) -> &str {
    let found = interfaces.iter().find(|interface| interface.index == index);
    found.map_or("*", |interface| &interface.name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// /proc/net/dev. Counters by their place in `struct rtnl_link_stats64`.
pub fn devices() -> String {
    let mut text = String::from(
        "Inter-|   Receive                                                |  Transmit\n \
         face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs \
         drop fifo colls carrier compressed\n",
    );
    for interface in interfaces() {
        let c = |at| interface.counter(at);
        let dropped = c(6).wrapping_add(c(15));
        let frame = c(10)
            .wrapping_add(c(11))
            .wrapping_add(c(12))
            .wrapping_add(c(13));
        let carrier = c(16)
            .wrapping_add(c(17))
            .wrapping_add(c(19))
            .wrapping_add(c(20));
        let _ = writeln!(
            text,
            "{:>6}: {:>7} {:>7} {:>4} {dropped:>4} {:>4} {frame:>5} {:>10} {:>9} {:>8} {:>7} {:>4} \
             {:>4} {:>4} {:>5} {carrier:>7} {:>10}",
            interface.name,
            c(2),
            c(0),
            c(4),
            c(14),
            c(21),
            c(8),
            c(3),
            c(1),
            c(5),
            c(7),
            c(18),
            c(9),
            c(22),
        );
    }
    text
}

/// /proc/net/if_inet6: address, index, prefix, scope, flags, name.
pub fn addresses6() -> String {
    let interfaces = interfaces();
    let mut text = String::new();
    for entry in entries(What::Address).unwrap_or_default() {
        if entry.family() != family::INET6 {
            continue;
        }
        // IPV6_ADDR_LINKLOCAL and its like, for the scopes of rtnetlink.
        let scope = match entry.body[3] {
            253 => 0x20,
            254 => 0x10,
            200 => 0x40,
            _ => 0,
        };
        let flags = entry.number(8).unwrap_or(u32::from(entry.body[2])) & 0xff;
        let _ = writeln!(
            text,
            "{} {:02x} {:02x} {scope:02x} {flags:02x} {:>8}",
            hex(entry.get(2).or(entry.get(1)).unwrap_or_default()),
            entry.index(),
            entry.body[1],
            name_of(&interfaces, entry.index()),
        );
    }
    text
}

/// A metric of RTA_METRICS.
fn metric(entry: &Entry, kind: u16) -> u32 {
    let nested = entry.get(8).unwrap_or_default();
    let mut found = super::attributes(nested).filter(|(found, _)| *found == kind);
    found
        .next()
        .and_then(|(_, value)| super::u32_at(value, 0))
        .unwrap_or(0)
}

/// /proc/net/route: the main table of IPv4.
pub fn routes() -> String {
    const WIDTH: usize = 127;
    let mut text = format!(
        "{:<WIDTH$}\n",
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
    );
    let interfaces = interfaces();
    for entry in entries(What::Route).unwrap_or_default() {
        let kind = entry.body[7];
        if entry.family() != family::INET
            || entry.table() != TABLE_MAIN
            || kind == BROADCAST
            || kind == MULTICAST
        {
            continue;
        }
        let address = |value: Option<&[u8]>| value.and_then(|value| super::u32_at(value, 0));
        let bits = u32::from(entry.body[1]);
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0).swap_bytes();
        let gateway = address(entry.get(5));
        let mut flags = 1;
        if gateway.is_some() {
            flags |= 2;
        }
        if bits == 32 {
            flags |= 4;
        }
        if kind == UNREACHABLE || kind == PROHIBIT {
            flags |= 0x200;
        }
        let advertised = match metric(&entry, 8) {
            0 => 0,
            mss => mss.saturating_add(40),
        };
        let line = format!(
            "{}\t{:08X}\t{:08X}\t{flags:04X}\t0\t0\t{}\t{mask:08X}\t{advertised}\t{}\t{}",
            name_of(&interfaces, entry.output()),
            address(entry.get(1)).unwrap_or(0),
            gateway.unwrap_or(0),
            entry.number(6).unwrap_or(0),
            metric(&entry, 3),
            metric(&entry, 4) >> 3,
        );
        let _ = writeln!(text, "{line:<WIDTH$}");
    }
    text
}

/// /proc/net/ipv6_route: every table of IPv6. Reference counts are not told: 1 and 0.
pub fn routes6() -> String {
    const NONE: &str = "00000000000000000000000000000000";
    let interfaces = interfaces();
    let mut text = String::new();
    for entry in entries(What::Route).unwrap_or_default() {
        if entry.family() != family::INET6 {
            continue;
        }
        let address = |kind| entry.get(kind).map_or(NONE.into(), hex);
        let mut flags: u32 = match entry.body[7] {
            LOCAL => 0x8020_0001,
            UNICAST | MULTICAST => 1,
            _ => 0x20_0200,
        };
        if entry.get(5).is_some() {
            flags |= 2;
        }
        let _ = writeln!(
            text,
            "{} {:02x} {} {:02x} {} {:08x} 00000001 00000000 {flags:08x} {:>8}",
            address(1),
            entry.body[1],
            address(2),
            entry.body[2],
            address(5),
            entry.number(6).unwrap_or(0),
            name_of(&interfaces, entry.output()),
        );
    }
    text
}

/// /proc/net/arp: IPv4 neighbours.
pub fn neighbours() -> String {
    const NUD_NOARP: u16 = 0x40;
    const NUD_PERMANENT: u16 = 0x80;
    /// NUD_REACHABLE, STALE, DELAY, PROBE and those that need no answer.
    const NUD_VALID: u16 = 0xde;
    let interfaces = interfaces();
    let mut text = String::from(
        "IP address       HW type     Flags       HW address            Mask     Device\n",
    );
    for entry in entries(What::Neighbour).unwrap_or_default() {
        let state = super::u16_at(&entry.body, 8).unwrap_or(0);
        let Some(&[a, b, c, d]) = entry.get(1) else {
            continue;
        };
        if entry.family() != family::INET || state & !NUD_NOARP == 0 {
            continue;
        }
        let interface = interfaces.iter().find(|each| each.index == entry.index());
        let hardware = interface.map_or(0, |interface| interface.hardware);
        let mut flags = if state & NUD_VALID != 0 { 2 } else { 0 };
        if state & NUD_PERMANENT != 0 {
            flags |= 4;
        }
        let address: Vec<String> = match entry.get(2) {
            Some(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            None => Vec::from(["00"; 6].map(String::from)),
        };
        let _ = writeln!(
            text,
            "{:<16} 0x{hardware:<10x}0x{flags:<10x}{}     *        {}",
            format!("{a}.{b}.{c}.{d}"),
            address.join(":"),
            name_of(&interfaces, entry.index()),
        );
    }
    text
}
