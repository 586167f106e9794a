//! One key: what it is, who may do what with it, whether it still counts.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use super::Secret;
use crate::errno::{EINVAL, EKEYEXPIRED, EKEYREVOKED, ENOKEY};
use crate::process::credentials::Credentials;
use crate::{Errno, Result};

/// Rights over a key. A mask has them four times, a byte each: for possessors, the owner, the group,
/// others, from the top.
pub mod permission {
    pub const VIEW: u32 = 0x01;
    pub const READ: u32 = 0x02;
    pub const WRITE: u32 = 0x04;
    pub const SEARCH: u32 = 0x08;
    pub const LINK: u32 = 0x10;
    pub const SETATTR: u32 = 0x20;
    pub const ALL: u32 = 0x3f;

    /// Every bit that a mask may have.
    pub const MASK: u32 = 0x3f3f_3f3f;

    pub const fn possessor(rights: u32) -> u32 {
        rights << 24
    }

    pub const fn owner(rights: u32) -> u32 {
        rights << 16
    }

    pub const fn group(rights: u32) -> u32 {
        rights << 8
    }
}

/// The key types that are offered. In keyrings the keyrings stand first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Keyring,
    User,
    /// Written by programs, read by the kernel only.
    Logon,
    BigKey,
}

impl Kind {
    pub fn find(name: &[u8]) -> Option<Kind> {
        let all = [Kind::Keyring, Kind::User, Kind::Logon, Kind::BigKey];
        all.into_iter().find(|kind| kind.name().as_bytes() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Keyring => "keyring",
            Kind::User => "user",
            Kind::Logon => "logon",
            Kind::BigKey => "big_key",
        }
    }

    pub fn can_be_read(self) -> bool {
        self != Kind::Logon
    }

    pub fn can_be_updated(self) -> bool {
        self != Kind::Keyring
    }

    /// Whether `payload` can be that of a new key; EINVAL.
    pub fn check_payload(self, payload: &[u8]) -> Result<()> {
        // A user's key has a length of 16 bits, signed; a big one what a call can bring.
        let fits = match self {
            Kind::Keyring => payload.is_empty(),
            Kind::User | Kind::Logon => (1..=32_767).contains(&payload.len()),
            Kind::BigKey => !payload.is_empty(),
        };
        match fits {
            true => Ok(()),
            false => Err(EINVAL.because("a payload that the key's type cannot have")),
        }
    }

    /// EINVAL for a description that a key cannot have: none, or that of a logon key without the
    /// service before a colon.
    pub fn check_description(self, description: &[u8]) -> Result<()> {
        let service = description.iter().position(|&byte| byte == b':');
        let lacks = self == Kind::Logon && service.unwrap_or(0) == 0;
        match description.is_empty() || lacks {
            true => Err(EINVAL.because("a description that the key's type cannot have")),
            false => Ok(()),
        }
    }

    /// What a payload counts for in its owner's quota. Linux keeps big ones where they may be
    /// swapped, and counts next to nothing; so does this.
    pub fn charge(self, payload: usize) -> u64 {
        match self {
            Kind::BigKey => 16,
            _ => payload as u64,
        }
    }

    /// The mask of a key that a program makes.
    pub fn first_permissions(self) -> u32 {
        use permission::{LINK, READ, SEARCH, SETATTR, VIEW, WRITE};
        let read = if self.can_be_read() { READ } else { 0 };
        let own = VIEW | SEARCH | LINK | SETATTR | WRITE | read;
        permission::possessor(own) | permission::owner(VIEW)
    }
}

/// By what a key is found in a keyring.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Index {
    pub kind: Kind,
    pub description: Arc<[u8]>,
}

impl Index {
    pub fn new(kind: Kind, description: &[u8]) -> Index {
        Index {
            kind,
            description: description.into(),
        }
    }
}

/// Whether a key has a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Positive,
    /// Asked for in vain; what a search says that finds it.
    Negative(Errno),
}

/// What a key holds.
pub enum Payload {
    Bytes(Secret),
    Links(BTreeMap<Index, u32>),
}

/// A key.
pub struct Key {
    pub index: Index,
    pub uid: u32,
    /// `u32::MAX`: no group.
    pub gid: u32,
    pub permissions: u32,
    pub state: State,
    pub payload: Payload,
    /// Seconds since 1970 when it ends.
    pub expiry: Option<u64>,
    pub is_revoked: bool,
    pub is_invalidated: bool,
    /// A user's keyring, which gives way to a session of its own.
    pub is_users: bool,
    /// Nothing more may be linked to it (KEYCTL_RESTRICT_KEYRING).
    pub is_restricted: bool,
    /// It counts in its owner's quota.
    pub is_counted: bool,
    /// Bytes that count there for the payload.
    pub charged: u64,
    /// How many hold it.
    pub holders: u32,
}

impl Key {
    pub fn kind(&self) -> Kind {
        self.index.kind
    }

    /// Bytes that count in the owner's quota.
    pub fn quota(&self) -> u64 {
        self.index.description.len() as u64 + 1 + self.charged
    }

    /// Links of a keyring.
    pub fn links(&self) -> Option<&BTreeMap<Index, u32>> {
        match &self.payload {
            Payload::Links(links) => Some(links),
            Payload::Bytes(_) => None,
        }
    }

    /// Whether `who` has these rights, as a possessor or not.
    pub fn allows(&self, who: &Credentials, is_possessed: bool, rights: u32) -> bool {
        let mask = self.permissions;
        let by_id = if self.uid == who.fsuid {
            mask >> 16
        } else if self.gid != u32::MAX
            && mask & permission::group(permission::ALL) != 0
            && who.in_group(self.gid)
        {
            mask >> 8
        } else {
            mask
        };
        let by_possession = if is_possessed { mask >> 24 } else { 0 };
        (by_id | by_possession) & rights == rights
    }

    pub fn has_expired(&self, now: u64) -> bool {
        self.expiry.is_some_and(|expiry| now >= expiry)
    }

    /// ENOKEY, EKEYREVOKED, EKEYEXPIRED for one that counts no more.
    pub fn check_valid(&self, now: u64) -> Result<()> {
        if self.is_invalidated {
            return Err(ENOKEY.because("the key was invalidated"));
        }
        if self.is_revoked {
            return Err(EKEYREVOKED);
        }
        match self.has_expired(now) {
            true => Err(EKEYEXPIRED),
            false => Ok(()),
        }
    }
}
