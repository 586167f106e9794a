//! What is believed of the host's messages: each attribute that is known here, in the form that
//! Linux gives it; all others are dropped. What a program gets is written anew from these.

use alloc::vec::Vec;

use super::message::{attributes, put_attribute, u16_at, u32_at};
use crate::Result;
use crate::errno::EIO;
use crate::net::family;

/// Longest name of an interface, with its zero byte (IFNAMSIZ).
pub const NAME_SIZE: usize = 16;
/// Longest address of the link layer (MAX_ADDR_LEN).
const LINK_ADDRESS_MAX: usize = 32;
/// Most bytes that one message keeps.
const MESSAGE_MAX: usize = 8 << 10;

/// The form of an attribute's value.
#[derive(Clone, Copy)]
enum Form {
    /// So many bytes.
    Bytes(usize),
    /// Numbers of this size, at most so many bytes.
    Numbers(usize, usize),
    /// An address of the link layer.
    Hardware,
    /// An address of the message's family.
    Address,
    /// An interface's name.
    Name,
    /// Other text with its zero byte, at most so many bytes.
    Text(usize),
    /// Attributes.
    Nested(&'static [(u16, Form)]),
    /// A chain of `struct rtnexthop`, each with attributes.
    Hops,
}

use Form::{Address, Bytes, Hardware, Hops, Name, Nested, Numbers, Text};

/// The kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Link,
    Address,
    Route,
    Neighbour,
    Rule,
}

/// IFLA_*.
const LINK: &[(u16, Form)] = &[
    (1, Hardware),                  // ADDRESS
    (2, Hardware),                  // BROADCAST
    (3, Name),                      // IFNAME
    (4, Bytes(4)),                  // MTU
    (5, Bytes(4)),                  // LINK
    (6, Text(32)),                  // QDISC
    (7, Numbers(4, 128)),           // STATS
    (10, Bytes(4)),                 // MASTER
    (13, Bytes(4)),                 // TXQLEN
    (14, Bytes(32)),                // MAP
    (16, Bytes(1)),                 // OPERSTATE
    (17, Bytes(1)),                 // LINKMODE
    (18, Nested(&[(1, Text(32))])), // LINKINFO: IFLA_INFO_KIND
    (20, Text(256)),                // IFALIAS
    (23, Numbers(8, 256)),          // STATS64
    // AF_SPEC: of AF_INET6, IFLA_INET6_FLAGS and IFLA_INET6_ADDR_GEN_MODE.
    (26, Nested(&[(10, Nested(&[(1, Bytes(4)), (8, Bytes(1))]))])),
    (27, Bytes(4)),                   // GROUP
    (30, Bytes(4)),                   // PROMISCUITY
    (31, Bytes(4)),                   // NUM_TX_QUEUES
    (32, Bytes(4)),                   // NUM_RX_QUEUES
    (33, Bytes(1)),                   // CARRIER
    (35, Bytes(4)),                   // CARRIER_CHANGES
    (37, Bytes(4)),                   // LINK_NETNSID
    (39, Bytes(1)),                   // PROTO_DOWN
    (40, Bytes(4)),                   // GSO_MAX_SEGS
    (41, Bytes(4)),                   // GSO_MAX_SIZE
    (47, Bytes(4)),                   // CARRIER_UP_COUNT
    (48, Bytes(4)),                   // CARRIER_DOWN_COUNT
    (50, Bytes(4)),                   // MIN_MTU
    (51, Bytes(4)),                   // MAX_MTU
    (52, Nested(&[(53, Text(128))])), // PROP_LIST: IFLA_ALT_IFNAME
    (54, Hardware),                   // PERM_ADDRESS
    (56, Text(64)),                   // PARENT_DEV_NAME
    (57, Text(64)),                   // PARENT_DEV_BUS_NAME
    (58, Bytes(4)),                   // GRO_MAX_SIZE
    (59, Bytes(4)),                   // TSO_MAX_SIZE
    (60, Bytes(4)),                   // TSO_MAX_SEGS
    (61, Bytes(4)),                   // ALLMULTI
];

/// IFA_*.
const ADDRESS: &[(u16, Form)] = &[
    (1, Address),   // ADDRESS
    (2, Address),   // LOCAL
    (3, Name),      // LABEL
    (4, Address),   // BROADCAST
    (6, Bytes(16)), // CACHEINFO
    (8, Bytes(4)),  // FLAGS
    (9, Bytes(4)),  // RT_PRIORITY
    (11, Bytes(1)), // PROTO
];

/// RTA_*.
const ROUTE: &[(u16, Form)] = &[
    (1, Address),  // DST
    (2, Address),  // SRC
    (3, Bytes(4)), // IIF
    (4, Bytes(4)), // OIF
    (5, Address),  // GATEWAY
    (6, Bytes(4)), // PRIORITY
    (7, Address),  // PREFSRC
    // METRICS: RTAX_MTU and its like.
    (
        8,
        Nested(&[
            (1, Bytes(4)),
            (2, Bytes(4)),
            (3, Bytes(4)),
            (4, Bytes(4)),
            (5, Bytes(4)),
            (6, Bytes(4)),
            (7, Bytes(4)),
            (8, Bytes(4)),
            (9, Bytes(4)),
            (10, Bytes(4)),
            (11, Bytes(4)),
            (12, Bytes(4)),
            (13, Bytes(4)),
            (14, Bytes(4)),
            (15, Bytes(4)),
            (17, Bytes(4)),
        ]),
    ),
    (9, Hops),       // MULTIPATH
    (11, Bytes(4)),  // FLOW
    (12, Bytes(32)), // CACHEINFO
    (15, Bytes(4)),  // TABLE
    (16, Bytes(4)),  // MARK
    (20, Bytes(1)),  // PREF
    (25, Bytes(4)),  // UID
    (30, Bytes(4)),  // NH_ID
];

/// Attributes of one hop of RTA_MULTIPATH.
const HOP: &[(u16, Form)] = &[(5, Address), (11, Bytes(4))];

/// NDA_*.
const NEIGHBOUR: &[(u16, Form)] = &[
    (1, Address),   // DST
    (2, Hardware),  // LLADDR
    (3, Bytes(16)), // CACHEINFO
    (4, Bytes(4)),  // PROBES
    (12, Bytes(1)), // PROTOCOL
];

/// FRA_*.
const RULE: &[(u16, Form)] = &[
    (1, Address),   // DST
    (2, Address),   // SRC
    (3, Name),      // IIFNAME
    (4, Bytes(4)),  // GOTO
    (6, Bytes(4)),  // PRIORITY
    (10, Bytes(4)), // FWMARK
    (11, Bytes(4)), // FLOW
    (13, Bytes(4)), // SUPPRESS_IFGROUP
    (14, Bytes(4)), // SUPPRESS_PREFIXLEN
    (15, Bytes(4)), // TABLE
    (16, Bytes(4)), // FWMASK
    (17, Name),     // OIFNAME
    (19, Bytes(1)), // L3MDEV
    (20, Bytes(8)), // UID_RANGE
    (21, Bytes(1)), // PROTOCOL
    (22, Bytes(1)), // IP_PROTO
    (23, Bytes(4)), // SPORT_RANGE
    (24, Bytes(4)), // DPORT_RANGE
];

impl What {
    /// The type of its messages: RTM_NEWLINK and so on.
    pub fn kind(self) -> u16 {
        match self {
            What::Link => 16,
            What::Address => 20,
            What::Route => 24,
            What::Neighbour => 28,
            What::Rule => 32,
        }
    }

    /// Bytes before the attributes: `struct ifinfomsg`, `ifaddrmsg`, `rtmsg`, `ndmsg`,
    /// `fib_rule_hdr`.
    pub fn header(self) -> usize {
        match self {
            What::Link => 16,
            What::Address => 8,
            What::Route | What::Neighbour | What::Rule => 12,
        }
    }

    fn forms(self) -> &'static [(u16, Form)] {
        match self {
            What::Link => LINK,
            What::Address => ADDRESS,
            What::Route => ROUTE,
            What::Neighbour => NEIGHBOUR,
            What::Rule => RULE,
        }
    }
}

/// Bytes of an address of this family; `None` for families that are not passed on.
pub fn address_size(of: u8) -> Option<usize> {
    match u16::from(of) {
        family::INET => Some(4),
        family::INET6 => Some(16),
        _ => None,
    }
}

/// Whether an interface may have this name (without its zero byte), as `dev_valid_name` wants it;
/// labels of addresses have a colon.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() < NAME_SIZE
        && name != b"."
        && name != b".."
        && name
            .iter()
            .all(|byte| byte.is_ascii_graphic() && *byte != b'/')
}

/// The text of a value, without its zero bytes.
pub fn text_of(value: &[u8]) -> &[u8] {
    let end = value.iter().position(|byte| *byte == 0);
    &value[..end.unwrap_or(value.len())]
}

/// The value in the form that it must have; `None` when it has another.
fn normal(form: Form, value: &[u8], address: usize, depth: u32) -> Option<Vec<u8>> {
    let fits = |is: bool| is.then(|| value.to_vec());
    match form {
        Bytes(size) => fits(value.len() == size),
        Numbers(size, most) => fits(value.len() <= most && value.len().is_multiple_of(size)),
        Hardware => fits(value.len() <= LINK_ADDRESS_MAX),
        Address => fits(value.len() == address && address > 0),
        Name | Text(_) => {
            let text = text_of(value);
            let good = match form {
                Text(most) => {
                    text.len() < most && text.iter().all(|byte| matches!(byte, b' '..=b'~'))
                }
                _ => is_name(text),
            };
            let mut text = good.then(|| text.to_vec())?;
            text.push(0);
            Some(text)
        }
        Nested(forms) => Some(kept(forms, value, address, depth + 1)),
        Hops => hops(value, address, depth + 1),
    }
}

/// The attributes that are of a known form, written anew.
fn kept(forms: &[(u16, Form)], bytes: &[u8], address: usize, depth: u32) -> Vec<u8> {
    let mut out = Vec::new();
    // The tables nest twice at most.
    if depth > 3 {
        return out;
    }
    for (kind, value) in attributes(bytes) {
        let Some((_, form)) = forms.iter().find(|(known, _)| *known == kind) else {
            continue;
        };
        if let Some(value) = normal(*form, value, address, depth)
            && out.len() + value.len() < MESSAGE_MAX
        {
            put_attribute(&mut out, kind, &value);
        }
    }
    out
}

/// RTA_MULTIPATH: length, flags, weight, interface; then attributes.
fn hops(mut bytes: &[u8], address: usize, depth: u32) -> Option<Vec<u8>> {
    const HEADER: usize = 8;
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let len = usize::from(u16_at(bytes, 0)?);
        let hop = bytes.get(..len)?;
        let fixed = hop.get(2..HEADER)?;
        let attributes = kept(HOP, &hop[HEADER..], address, depth);
        out.extend_from_slice(&((HEADER + attributes.len()) as u16).to_le_bytes());
        out.extend_from_slice(fixed);
        out.extend_from_slice(&attributes);
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
    Some(out)
}

/// The message of a host about `what`, written anew; `None` for one of a family that is not passed
/// on; EIO for one that Linux does not send.
pub fn message(what: What, kind: u16, body: &[u8]) -> Result<Option<Vec<u8>>> {
    if kind != what.kind() {
        return Err(EIO.because("host message of another kind than was asked for"));
    }
    let header = body
        .get(..what.header())
        .ok_or(EIO.because("host message cut"))?;
    let mut out = header.to_vec();
    let size = match what {
        What::Link => Some(0),
        _ => address_size(header[0]),
    };
    let Some(address) = size else {
        return Ok(None);
    };
    let bits = address * 8;
    let is_possible = match what {
        // Padding, and an interface's index is positive.
        What::Link => {
            out[1] = 0;
            index_at(header, 4).is_some()
        }
        What::Address => usize::from(header[1]) <= bits && index_at(header, 4).is_some(),
        What::Route | What::Rule => {
            usize::from(header[1]) <= bits && usize::from(header[2]) <= bits
        }
        What::Neighbour => {
            out[1..4].fill(0);
            index_at(header, 4).is_some()
        }
    };
    if !is_possible {
        return Err(EIO.because("host message with a number out of range"));
    }
    out.extend_from_slice(&kept(what.forms(), &body[what.header()..], address, 0));
    Ok(Some(out))
}

/// An interface's index.
fn index_at(bytes: &[u8], at: usize) -> Option<u32> {
    u32_at(bytes, at).filter(|index| (1..=i32::MAX as u32).contains(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &[u8]) -> Vec<u8> {
        let mut body = alloc::vec![0, 9, 1, 0];
        body.extend_from_slice(&2u32.to_le_bytes());
        body.extend_from_slice(&[0; 8]);
        put_attribute(&mut body, 3, name);
        body
    }

    fn kinds(body: &[u8], what: What) -> Vec<u16> {
        attributes(&body[what.header()..])
            .map(|(kind, _)| kind)
            .collect()
    }

    #[test]
    fn known_attributes_of_the_right_form_are_kept() {
        let mut body = link(b"eth0\0");
        put_attribute(&mut body, 4, &1500u32.to_le_bytes());
        put_attribute(&mut body, 4, &[0; 3]);
        put_attribute(&mut body, 1, &[0; 33]);
        put_attribute(&mut body, 999, &[1, 2, 3, 4]);
        let mut nested = Vec::new();
        put_attribute(&mut nested, 1, b"veth\0");
        put_attribute(&mut nested, 2, &[0; 8]);
        put_attribute(&mut body, 18 | 0x8000, &nested);
        let kept = message(What::Link, 16, &body).unwrap().unwrap();
        assert_eq!(kinds(&kept, What::Link), [3, 4, 18]);
        // Padding is ours, and of the nested ones the kind's name stays.
        assert_eq!(kept[1], 0);
        let (_, inner) = attributes(&kept[16..]).last().unwrap();
        assert_eq!(attributes(inner).count(), 1);
    }

    #[test]
    fn names_are_names() {
        for bad in [
            &b"\0"[..],
            b".\0",
            b"..\0",
            b"a/b\0",
            b"a b\0",
            b"\x1b[2J\0",
            b"sixteen-letters-\0",
        ] {
            let kept = message(What::Link, 16, &link(bad)).unwrap().unwrap();
            assert!(kinds(&kept, What::Link).is_empty(), "{bad:?}");
        }
        // Without its zero byte, or with more of them: as Linux would write it.
        for good in [&b"eth0"[..], b"eth0\0\0\0"] {
            let kept = message(What::Link, 16, &link(good)).unwrap().unwrap();
            assert_eq!(attributes(&kept[16..]).next(), Some((3, &b"eth0\0"[..])));
        }
    }

    #[test]
    fn impossible_messages_are_refused() {
        assert!(message(What::Link, 20, &link(b"lo\0")).is_err());
        assert!(message(What::Link, 16, &[0; 15]).is_err());
        // Interface 0.
        assert!(message(What::Link, 16, &[0; 16]).is_err());
        let mut negative = link(b"lo\0");
        negative[4..8].fill(0xff);
        assert!(message(What::Link, 16, &negative).is_err());
        // 33 bits of an IPv4 address.
        assert!(message(What::Address, 20, &[2, 33, 0, 0, 1, 0, 0, 0]).is_err());
        // Other families are left out.
        assert_eq!(
            message(What::Address, 20, &[28, 8, 0, 0, 1, 0, 0, 0]),
            Ok(None)
        );
        let mut route = alloc::vec![2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0];
        put_attribute(&mut route, 9, &[0; 8]);
        put_attribute(&mut route, 5, &[0; 16]);
        let kept = message(What::Route, 24, &route).unwrap().unwrap();
        assert!(kinds(&kept, What::Route).is_empty());
    }

    #[test]
    fn hops_are_written_anew() {
        let mut hop = alloc::vec![0, 0, 0, 1];
        hop.extend_from_slice(&3u32.to_le_bytes());
        put_attribute(&mut hop, 5, &[10, 0, 0, 1]);
        put_attribute(&mut hop, 77, &[1; 4]);
        let len = hop.len() as u16;
        hop[..2].copy_from_slice(&len.to_le_bytes());
        let out = hops(&hop, 4, 0).unwrap();
        assert_eq!(out.len(), 16);
        assert_eq!(u16_at(&out, 0), Some(16));
        assert_eq!(hops(&hop[..12], 4, 0), None);
    }

    /// Whatever the host sends, what is kept of it is of the right form: looked at once more, all of it
    /// stays as it is.
    #[test]
    fn what_is_kept_stays() {
        let kinds = [
            What::Link,
            What::Address,
            What::Route,
            What::Neighbour,
            What::Rule,
        ];
        let mut state = 1u64;
        let mut random = move |below: usize| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        let mut accepted = 0;
        for turn in 0..40_000 {
            let what = kinds[turn % kinds.len()];
            let mut body: Vec<u8> = (0..what.header()).map(|_| random(3) as u8).collect();
            body[0] = [2, 10, 0, random(256) as u8][random(4)];
            for _ in 0..random(8) {
                let len = [1, 4, 8, 16, 32, random(300)][random(6)];
                let value: Vec<u8> = (0..len).map(|_| random(256) as u8).collect();
                put_attribute(&mut body, random(70) as u16, &value);
            }
            // Lengths and types too, and cut anywhere.
            for _ in 0..random(4) {
                let at = random(body.len());
                body[at] = random(256) as u8;
            }
            if random(4) == 0 {
                body.truncate(random(body.len() + 1));
            }
            let Ok(Some(kept)) = message(what, what.kind(), &body) else {
                continue;
            };
            accepted += 1;
            assert!(kept.len() < 4 * MESSAGE_MAX);
            let again = message(what, what.kind(), &kept);
            assert_eq!(again, Ok(Some(kept)), "{what:?} of {body:?}");
        }
        assert!(accepted > 5_000, "{accepted}");
    }
}
