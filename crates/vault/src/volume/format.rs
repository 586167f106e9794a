//! Bytes of headers, frames and anchors. All numbers little endian.

use super::crypto::{Hash, TAG, equal, hmac};
use super::{Object, Result, VolumeError};

const MAGIC: &[u8; 8] = b"BULLAVOL";
const FORMAT: u32 = 1;
/// Room of a log's header; frames start behind it.
pub const LOG_HEADER: u64 = 4096;
/// Bytes of it that are used.
pub const HEADER_SIZE: usize = 160;
const FRAME_MAGIC: u32 = 0x4d52_4642;
/// Bytes of a frame's header.
pub const FRAME_HEADER: usize = 48;
/// Bytes of an anchor.
pub const ANCHOR_SIZE: usize = 96;
/// The anchor's two places, in sectors of their own: a torn write leaves the other.
const ANCHOR_SLOT: u64 = 4096;

/// What the caller derives the key from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyParameters {
    /// Random, drawn when the volume was made.
    pub key_id: [u8; 32],
    /// CPU security version at that time.
    pub cpu_svn: [u8; 16],
    /// Security version of the enclave at that time.
    pub isv_svn: u16,
    /// Of its configuration.
    pub config_svn: u16,
}

/// A log's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub id: [u8; 16],
    pub generation: u64,
    pub parameters: KeyParameters,
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

impl Header {
    pub fn object(&self) -> Object {
        if self.generation % 2 == 1 {
            Object::First
        } else {
            Object::Second
        }
    }

    pub fn to_bytes(self, hash: &Hash<'_>, key: &[u8; 32]) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id);
        bytes[32..40].copy_from_slice(&self.generation.to_le_bytes());
        bytes[40..72].copy_from_slice(&self.parameters.key_id);
        bytes[72..88].copy_from_slice(&self.parameters.cpu_svn);
        bytes[88..90].copy_from_slice(&self.parameters.isv_svn.to_le_bytes());
        bytes[90..92].copy_from_slice(&self.parameters.config_svn.to_le_bytes());
        let mac = hmac(hash, key, &[b"bulla volume header", &bytes[..128]]);
        bytes[128..].copy_from_slice(&mac);
        bytes
    }

    /// What the bytes say, not authenticated; `None` when they are no header.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Option<Result<Header>> {
        if &bytes[..8] != MAGIC {
            return None;
        }
        if u32::from_le_bytes(field(bytes, 8)) != FORMAT {
            return Some(Err(VolumeError::Format));
        }
        Some(Ok(Header {
            id: field(bytes, 16),
            generation: u64::from_le_bytes(field(bytes, 32)),
            parameters: KeyParameters {
                key_id: field(bytes, 40),
                cpu_svn: field(bytes, 72),
                isv_svn: u16::from_le_bytes(field(bytes, 88)),
                config_svn: u16::from_le_bytes(field(bytes, 90)),
            },
        }))
    }

    /// Whether the bytes were made with this key.
    pub fn is_authentic(bytes: &[u8; HEADER_SIZE], hash: &Hash<'_>, key: &[u8; 32]) -> bool {
        let mac = hmac(hash, key, &[b"bulla volume header", &bytes[..128]]);
        equal(&mac, &field(bytes, 128))
    }

    /// What the first frame authenticates in the place of a frame before it.
    pub fn chain_start(bytes: &[u8; HEADER_SIZE]) -> [u8; TAG] {
        field(bytes, 128)
    }
}

/// The start of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the record.
    pub record: u32,
    pub pages: u32,
    pub version: u64,
    /// Of the record; pages use those behind it.
    pub nonce: u64,
    pub session: [u8; 16],
}

impl FrameHeader {
    pub fn to_bytes(self) -> [u8; FRAME_HEADER] {
        let mut bytes = [0; FRAME_HEADER];
        bytes[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.record.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.pages.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.version.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[32..].copy_from_slice(&self.session);
        bytes
    }

    pub fn parse(bytes: &[u8; FRAME_HEADER]) -> Option<FrameHeader> {
        (u32::from_le_bytes(field(bytes, 0)) == FRAME_MAGIC).then(|| FrameHeader {
            record: u32::from_le_bytes(field(bytes, 4)),
            pages: u32::from_le_bytes(field(bytes, 8)),
            version: u64::from_le_bytes(field(bytes, 16)),
            nonce: u64::from_le_bytes(field(bytes, 24)),
            session: field(bytes, 32),
        })
    }
}

/// The newest frame of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    pub id: [u8; 16],
    pub generation: u64,
    pub version: u64,
    pub tag: [u8; TAG],
}

impl Anchor {
    /// Where it goes: the two places take turns.
    pub fn slot(&self) -> u64 {
        self.version % 2 * ANCHOR_SLOT
    }

    /// Both places.
    pub const SLOTS: [u64; 2] = [0, ANCHOR_SLOT];

    pub fn to_bytes(self, hash: &Hash<'_>, key: &[u8; 32]) -> [u8; ANCHOR_SIZE] {
        let mut bytes = [0; ANCHOR_SIZE];
        bytes[..8].copy_from_slice(b"BULLAANC");
        bytes[8..24].copy_from_slice(&self.id);
        bytes[24..32].copy_from_slice(&self.generation.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.version.to_le_bytes());
        bytes[40..56].copy_from_slice(&self.tag);
        let mac = hmac(hash, key, &[b"bulla volume anchor", &bytes[..64]]);
        bytes[64..].copy_from_slice(&mac);
        bytes
    }

    /// `None` unless it was made with this key.
    pub fn open(bytes: &[u8; ANCHOR_SIZE], hash: &Hash<'_>, key: &[u8; 32]) -> Option<Anchor> {
        let mac = hmac(hash, key, &[b"bulla volume anchor", &bytes[..64]]);
        equal(&mac, &field(bytes, 64)).then(|| Anchor {
            id: field(bytes, 8),
            generation: u64::from_le_bytes(field(bytes, 24)),
            version: u64::from_le_bytes(field(bytes, 32)),
            tag: field(bytes, 40),
        })
    }
}
