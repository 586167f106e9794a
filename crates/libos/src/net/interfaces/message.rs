//! rtnetlink's form: messages, and attributes in them (netlink(7), rtnetlink(7)).

use alloc::vec::Vec;

/// Bytes of a `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// Everything is aligned to this.
const ALIGNMENT: usize = 4;
/// Bytes of a `struct rtattr`.
const ATTRIBUTE: usize = 4;
/// The bits of an attribute's type that are not the type: NLA_F_NESTED, NLA_F_NET_BYTEORDER.
const TYPE_MASK: u16 = 0x3fff;

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub port: u32,
}

/// A number of four bytes in the machine's order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes([word[0], word[1]]))
}

/// The whole messages in `bytes`: header, and what follows it. Ends at the first that is none.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    core::iter::from_fn(move || {
        let len = u32_at(bytes, 0)? as usize;
        if len < HEADER || len > bytes.len() {
            return None;
        }
        let header = Header {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            port: u32_at(bytes, 12)?,
        };
        let body = &bytes[HEADER..len];
        bytes = &bytes[len.next_multiple_of(ALIGNMENT).min(bytes.len())..];
        Some((header, body))
    })
}

/// Appends a message.
pub fn put_message(out: &mut Vec<u8>, header: Header, body: &[u8]) {
    out.extend_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    out.extend_from_slice(&header.kind.to_le_bytes());
    out.extend_from_slice(&header.flags.to_le_bytes());
    out.extend_from_slice(&header.sequence.to_le_bytes());
    out.extend_from_slice(&header.port.to_le_bytes());
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

/// The attributes in `bytes`: type and value. Ends at the first that is none.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    core::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(ATTRIBUTE..len)?;
        bytes = &bytes[len.next_multiple_of(ALIGNMENT).min(bytes.len())..];
        Some((kind, value))
    })
}

/// Appends an attribute. Values are far below 64 KiB: those of the host are checked, others ours.
pub fn put_attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&((ATTRIBUTE + value.len()) as u16).to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_found() {
        let mut body = Vec::new();
        put_attribute(&mut body, 3, b"lo\0");
        put_attribute(&mut body, 4, &7u32.to_le_bytes());
        let found: Vec<_> = attributes(&body).collect();
        assert_eq!(found, [(3, &b"lo\0"[..]), (4, &7u32.to_le_bytes()[..])]);
        let header = Header {
            kind: 16,
            flags: 2,
            sequence: 9,
            port: 4,
        };
        let mut out = Vec::new();
        put_message(&mut out, header, &body[..7]);
        put_message(&mut out, header, &body);
        let found: Vec<_> = messages(&out).collect();
        assert_eq!(found, [(header, &body[..7]), (header, &body[..])]);
    }

    #[test]
    fn bad_lengths_end_it() {
        for len in [0u16, 3, 9, 0xffff] {
            let mut bytes = len.to_le_bytes().to_vec();
            bytes.extend_from_slice(&[1, 0, 0, 0, 0, 0]);
            assert_eq!(attributes(&bytes).count(), 0, "{len}");
        }
        for len in [0u32, 15, 21, u32::MAX] {
            let mut bytes = len.to_le_bytes().to_vec();
            bytes.resize(20, 0);
            assert_eq!(messages(&bytes).count(), 0, "{len}");
        }
    }
}
