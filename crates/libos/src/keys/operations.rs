//! What add_key(2), request_key(2) and keyctl(2) do.

use alloc::format;
use alloc::vec::Vec;

use super::access::Wanted;
use super::key::{Index, Payload};
use super::store::Quota;
use super::{Access, Create, Found, Kind, Need, PERSISTENT_EXPIRY, Secret, State, permission};
use crate::Result;
use crate::errno::{
    EACCES, EAGAIN, EEXIST, EINVAL, ENODEV, ENOENT, ENOKEY, ENOTDIR, EOPNOTSUPP, EPERM,
};
use crate::process::credentials::{CAP_SETUID, CAP_SYS_ADMIN, Credentials};

/// Seconds that a key which nobody could make is known not to be there.
const NEGATIVE_SECONDS: u64 = 60;

/// Who owns a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    /// `u32::MAX`: no group.
    pub gid: u32,
}

impl Owner {
    /// Of a thread's own keyrings.
    pub fn of(who: &Credentials) -> Owner {
        Owner {
            uid: who.ruid,
            gid: who.rgid,
        }
    }

    /// Of the keys it makes.
    fn of_keys(who: &Credentials) -> Owner {
        Owner {
            uid: who.fsuid,
            gid: who.fsgid,
        }
    }
}

/// Where request_key puts new keys if it is not told (KEY_REQKEY_DEFL_…).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// The first that there is of thread's, process's and session's.
    #[default]
    Any = 0,
    Thread = 1,
    Process = 2,
    Session = 3,
    User = 4,
    UserSession = 5,
    Requestor = 7,
}

impl Destination {
    /// EINVAL for a number that means none.
    pub fn from_number(number: i32) -> Result<Destination> {
        let all = [
            Destination::Any,
            Destination::Thread,
            Destination::Process,
            Destination::Session,
            Destination::User,
            Destination::UserSession,
            Destination::Requestor,
        ];
        let found = all
            .into_iter()
            .find(|&destination| destination as i32 == number);
        found.ok_or(EINVAL.because("no such keyring"))
    }
}

/// What request_key does where there is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfAbsent {
    Fail,
    Make,
}

/// What KEYCTL_MOVE does where another key of the same type and description is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfTaken {
    Replace,
    Refuse,
}

/// What KEYCTL_RESTRICT_KEYRING asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restriction<'a> {
    /// No more links.
    Everything,
    /// Keys as a type's own rule says; no type here has one.
    OfType(&'a [u8]),
}

impl Access<'_> {
    /// add_key: a new key in a keyring, or the payload of the one that is there.
    pub fn add(
        &mut self,
        kind: &[u8],
        description: &[u8],
        payload: Secret,
        ring: i32,
    ) -> Result<u32> {
        let ring = self.lookup(ring, Create::Yes, Need::Write)?;
        let kind = Kind::find(kind).ok_or(ENODEV.because("key types: see keyrings(7)"))?;
        if description.is_empty() {
            return Err(EINVAL.because("a key needs a description"));
        }
        self.store.links(ring.serial)?;
        kind.check_payload(&payload)?;
        let index = Index::new(kind, description);
        self.store.check_link(ring.serial, &index)?;
        if kind.can_be_updated()
            && let Some(&serial) = self.store.links(ring.serial)?.get(&index)
        {
            let key = self.store.held(serial);
            if !key.is_revoked && !key.is_invalidated {
                let found = Found { serial, ..ring };
                self.check(found, permission::WRITE)?;
                self.set_payload(serial, payload)?;
                return Ok(serial);
            }
        }
        kind.check_description(description)?;
        let owner = Owner::of_keys(self.who);
        let mask = kind.first_permissions();
        let serial = self.store.add(index, owner, mask, Quota::Keeps)?;
        let filled = self.set_payload(serial, payload);
        let linked = filled.and_then(|()| self.store.link(ring.serial, serial));
        linked.inspect_err(|_| self.store.discard(serial))?;
        Ok(serial)
    }

    /// A key's payload, which also makes a negative key one, for as long as it lasts.
    fn set_payload(&mut self, serial: u32, payload: Secret) -> Result<()> {
        let kind = self.store.held(serial).kind();
        if kind != Kind::Keyring {
            self.store.charge(serial, kind.charge(payload.len()))?;
            self.store.held_mut(serial).payload = Payload::Bytes(payload);
        }
        let key = self.store.held_mut(serial);
        key.state = State::Positive;
        key.expiry = None;
        Ok(())
    }

    /// request_key: a key that the caller's keyrings lead to, linked to `ring` if that is not 0.
    ///
    /// Where there is none and [`IfAbsent::Make`] says to have one made, Linux runs /sbin/request-key. This is
    /// a machine without that program: ENOENT, and for a minute ENOKEY, as a negative key says.
    pub fn request(
        &mut self,
        kind: &[u8],
        description: &[u8],
        absent: IfAbsent,
        ring: i32,
    ) -> Result<u32> {
        let ring = match ring {
            0 => None,
            _ => Some(self.lookup(ring, Create::Yes, Need::Write)?),
        };
        let kind = Kind::find(kind).ok_or(ENOKEY.because("no such key type"))?;
        let index = Index::new(kind, description);
        let wanted = Wanted {
            skip_expired: true,
            ..Wanted::by_name(index.clone())
        };
        match self.search_own(&wanted) {
            Ok(found) => {
                if let Some(ring) = ring {
                    self.check(found, permission::LINK)?;
                    self.store.link(ring.serial, found.serial)?;
                }
                self.key(found).check_valid(self.now)?;
                Ok(found.serial)
            }
            Err(error) if error != EAGAIN => Err(error),
            Err(_) if absent == IfAbsent::Fail => Err(ENOKEY.because("no such key")),
            Err(_) => self.negate(index, ring),
        }
    }

    /// Remembers that a key could not be made.
    fn negate(&mut self, index: Index, ring: Option<Found>) -> Result<u32> {
        let kind = index.kind;
        if kind == Kind::Keyring {
            return Err(EPERM.because("keyrings are not requested"));
        }
        let ring = match ring {
            Some(ring) => ring,
            None => self.default_ring()?,
        };
        kind.check_description(&index.description)?;
        self.store.check_link(ring.serial, &index)?;
        let owner = Owner::of_keys(self.who);
        let mask = kind.first_permissions();
        let serial = self.store.add(index, owner, mask, Quota::Keeps)?;
        let key = self.store.held_mut(serial);
        key.state = State::Negative(ENOKEY.because("nobody could make this key"));
        let linked = self.store.link(ring.serial, serial);
        linked.inspect_err(|_| self.store.discard(serial))?;
        self.expire(serial, NEGATIVE_SECONDS);
        // That program would be told of the user's keyrings.
        self.store.user_rings(self.who.ruid, self.now)?;
        Err(ENOENT.because("no /sbin/request-key"))
    }

    /// Where request_key puts what it makes. EACCES.
    fn default_ring(&mut self) -> Result<Found> {
        let rings = &*self.rings;
        let first = match rings.destination {
            Destination::Any | Destination::Requestor | Destination::Thread => {
                rings.thread.or(rings.process).or(rings.session)
            }
            Destination::Process => rings.process.or(rings.session),
            Destination::Session => rings.session,
            Destination::User | Destination::UserSession => None,
        };
        let ring = match (first, rings.destination) {
            (Some(ring), _) => ring,
            (None, Destination::User) => self.store.user_rings(self.who.ruid, self.now)?.0,
            (None, _) => self.store.user_rings(self.who.ruid, self.now)?.1,
        };
        let ring = Found::possessed(ring);
        self.check(ring, permission::WRITE)?;
        Ok(ring)
    }

    /// KEYCTL_JOIN_SESSION_KEYRING: a new session, or one that has this name and may be searched.
    /// What keyctl(2) returns for it.
    pub fn join_session(&mut self, name: Option<&[u8]>) -> Result<u32> {
        let Some(name) = name else {
            return self.new_session();
        };
        let index = Index::new(Kind::Keyring, name);
        let joins = |&(serial, key): &(u32, &super::Key)| {
            let found = Found {
                serial,
                is_possessed: false,
            };
            key.index == index && !key.is_revoked && self.check(found, permission::SEARCH).is_ok()
        };
        let found = self.store.iter().find(joins).map(|(serial, _)| serial);
        let ring = match found {
            // Linux says so.
            Some(ring) if self.rings.session == Some(ring) => return Ok(0),
            Some(ring) => {
                self.store.hold(ring);
                ring
            }
            None => {
                index.kind.check_description(name)?;
                let all = permission::possessor(permission::ALL);
                let own = permission::VIEW | permission::READ | permission::LINK;
                let mask = all | permission::owner(own);
                let owner = Owner::of(self.who);
                let serial = self.store.add(index, owner, mask, Quota::Keeps)?;
                self.store.hold(serial);
                serial
            }
        };
        self.set_session(ring);
        Ok(ring)
    }

    /// KEYCTL_SET_REQKEY_KEYRING; what it was before.
    pub fn set_destination(&mut self, destination: Destination) -> Destination {
        match destination {
            Destination::Thread => drop(self.thread_ring()),
            Destination::Process => drop(self.process_ring()),
            _ => {}
        }
        core::mem::replace(&mut self.rings.destination, destination)
    }

    /// KEYCTL_UPDATE.
    pub fn update(&mut self, id: i32, payload: Secret) -> Result<()> {
        let found = self.lookup(id, Create::No, Need::Write)?;
        let kind = self.key(found).kind();
        if !kind.can_be_updated() {
            return Err(EOPNOTSUPP.because("keyrings have no payload"));
        }
        kind.check_payload(&payload)?;
        self.set_payload(found.serial, payload)
    }

    /// KEYCTL_REVOKE: what the key holds goes at once.
    pub fn revoke(&mut self, id: i32) -> Result<()> {
        let found = match self.lookup(id, Create::No, Need::Write) {
            Err(error) if error == EACCES => self.lookup(id, Create::No, Need::SetAttribute)?,
            found => found?,
        };
        let serial = found.serial;
        // It is unlinked as what has expired is.
        let end = self.key(found).expiry.unwrap_or(u64::MAX).min(self.now);
        self.store.held_mut(serial).is_revoked = true;
        self.store.expire(serial, end);
        match self.key(found).kind() {
            Kind::Keyring => self.store.clear(serial),
            _ => {
                self.store.held_mut(serial).payload = Payload::Bytes(Secret::default());
                self.store.charge(serial, 0)
            }
        }
    }

    /// KEYCTL_INVALIDATE: the key goes from every keyring.
    pub fn invalidate(&mut self, id: i32) -> Result<()> {
        let found = self.lookup(id, Create::No, Need::Search)?;
        self.store.held_mut(found.serial).is_invalidated = true;
        self.store.collect_by(self.now);
        self.store.collect(self.now);
        Ok(())
    }

    /// KEYCTL_DESCRIBE: type, owner, mask and description, with a null.
    pub fn describe(&mut self, id: i32) -> Result<Vec<u8>> {
        let found = self.lookup(id, Create::No, Need::View)?;
        let key = self.key(found);
        let mut text = format!(
            "{};{};{};{:08x};",
            key.kind().name(),
            key.uid,
            super::text::group(key.gid),
            key.permissions
        )
        .into_bytes();
        text.extend_from_slice(&key.index.description);
        text.push(0);
        Ok(text)
    }

    /// KEYCTL_CLEAR.
    pub fn clear(&mut self, id: i32) -> Result<()> {
        let ring = self.lookup(id, Create::Yes, Need::Write)?;
        self.store.clear(ring.serial)
    }

    /// KEYCTL_LINK.
    pub fn link(&mut self, id: i32, ring: i32) -> Result<()> {
        let ring = self.lookup(ring, Create::Yes, Need::Write)?;
        let key = self.lookup(id, Create::Yes, Need::Link)?;
        self.store.link(ring.serial, key.serial)
    }

    /// KEYCTL_UNLINK.
    pub fn unlink(&mut self, id: i32, ring: i32) -> Result<()> {
        let ring = self.lookup(ring, Create::No, Need::Write)?;
        let key = self.lookup(id, Create::No, Need::Nothing)?;
        let index = self.key(key).index.clone();
        self.store.unlink(ring.serial, &index)
    }

    /// KEYCTL_MOVE.
    pub fn move_key(&mut self, id: i32, from: i32, to: i32, taken: IfTaken) -> Result<()> {
        let key = self.lookup(id, Create::Yes, Need::Link)?;
        let from = self.lookup(from, Create::No, Need::Write)?;
        let to = self.lookup(to, Create::Yes, Need::Write)?;
        if from.serial == to.serial {
            return Ok(());
        }
        let index = self.key(key).index.clone();
        let is_there = self.store.links(from.serial)?.contains_key(&index);
        let is_taken = self.store.links(to.serial)?.contains_key(&index);
        if !is_there {
            return Err(ENOENT.because("not in that keyring"));
        }
        if is_taken && taken == IfTaken::Refuse {
            return Err(EEXIST);
        }
        // The one may be in the other, where what is moved takes its place.
        self.store.hold(from.serial);
        let linked = self.store.link(to.serial, key.serial);
        let moved = linked.and_then(|()| self.store.unlink(from.serial, &index));
        self.store.release(from.serial);
        moved
    }

    /// KEYCTL_SEARCH: what a keyring and those below lead to, linked to `into` if that is not 0.
    pub fn search_in(
        &mut self,
        ring: i32,
        kind: &[u8],
        description: &[u8],
        into: i32,
    ) -> Result<u32> {
        let ring = self.lookup(ring, Create::No, Need::Search)?;
        let into = match into {
            0 => None,
            _ => Some(self.lookup(into, Create::Yes, Need::Write)?),
        };
        let kind = Kind::find(kind).ok_or(ENOKEY.because("no such key type"))?;
        let wanted = Wanted::by_name(Index::new(kind, description));
        let found = self.search(ring, &wanted);
        let found = found.map_err(|error| if error == EAGAIN { ENOKEY } else { error })?;
        if let Some(into) = into {
            self.check(found, permission::LINK)?;
            self.store.link(into.serial, found.serial)?;
        }
        Ok(found.serial)
    }

    /// KEYCTL_READ: the payload, or a keyring's numbers. What the caller possesses it may read.
    pub fn read(&mut self, id: i32) -> Result<Secret> {
        let found = self.lookup(id, Create::No, Need::Nothing);
        let found = found.map_err(|_| ENOKEY.because("no such key"))?;
        let key = self.key(found);
        if let State::Negative(error) = key.state {
            return Err(error);
        }
        if !found.is_possessed {
            self.check(found, permission::READ)?;
        }
        if !key.kind().can_be_read() {
            return Err(EOPNOTSUPP.because("programs do not read logon keys"));
        }
        key.check_valid(self.now)?;
        Ok(match &key.payload {
            Payload::Bytes(bytes) => bytes.clone(),
            Payload::Links(links) => {
                let numbers = links.values().flat_map(|serial| serial.to_le_bytes());
                Secret::new(numbers.collect())
            }
        })
    }

    /// KEYCTL_CHOWN; `None` leaves as it is.
    pub fn set_owner(&mut self, id: i32, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let found = self.lookup(id, Create::Yes, Need::SetAttribute)?;
        let key = self.key(found);
        let gives_away = uid.is_some_and(|uid| uid != key.uid)
            || gid.is_some_and(|gid| gid != key.gid && !self.who.in_group(gid));
        if gives_away && !self.who.has(CAP_SYS_ADMIN) {
            return Err(EACCES.because("to give a key away takes CAP_SYS_ADMIN"));
        }
        if let Some(uid) = uid {
            self.store.set_owner(found.serial, uid)?;
        }
        if let Some(gid) = gid {
            self.store.held_mut(found.serial).gid = gid;
        }
        Ok(())
    }

    /// KEYCTL_SETPERM.
    pub fn set_permissions(&mut self, id: i32, mask: u32) -> Result<()> {
        if mask & !permission::MASK != 0 {
            return Err(EINVAL.because("unknown permissions"));
        }
        let found = self.lookup(id, Create::Yes, Need::SetAttribute)?;
        if self.key(found).uid != self.who.fsuid && !self.who.has(CAP_SYS_ADMIN) {
            return Err(EACCES.because("another user's key"));
        }
        self.store.held_mut(found.serial).permissions = mask;
        Ok(())
    }

    /// KEYCTL_SET_TIMEOUT: seconds from now, 0 for none.
    pub fn set_timeout(&mut self, id: i32, seconds: u32) -> Result<()> {
        let found = self.lookup(id, Create::Yes, Need::SetAttribute)?;
        match seconds {
            0 => self.store.held_mut(found.serial).expiry = None,
            _ => self.expire(found.serial, seconds.into()),
        }
        Ok(())
    }

    fn expire(&mut self, serial: u32, seconds: u64) {
        let expiry = self.now.saturating_add(seconds);
        self.store.expire(serial, expiry);
    }

    /// KEYCTL_GET_PERSISTENT: a user's keyring that outlasts his sessions, linked to `into`; it lasts
    /// some days from now on.
    pub fn persistent(&mut self, uid: Option<u32>, into: i32) -> Result<u32> {
        let uid = uid.unwrap_or(self.who.ruid);
        let is_own = uid == self.who.ruid || uid == self.who.euid;
        if !is_own && !self.who.has(CAP_SETUID) {
            return Err(EPERM.because("another user's keyring takes CAP_SETUID"));
        }
        let into = self.lookup(into, Create::Yes, Need::Write)?;
        if self.key(into).kind() != Kind::Keyring {
            return Err(ENOTDIR);
        }
        let ring = self.store.persistent_ring(uid)?;
        self.check(Found::possessed(ring), permission::LINK)?;
        self.store.link(into.serial, ring)?;
        self.expire(ring, PERSISTENT_EXPIRY.value());
        Ok(ring)
    }

    /// KEYCTL_RESTRICT_KEYRING.
    pub fn restrict(&mut self, id: i32, restriction: Restriction<'_>) -> Result<()> {
        let found = self.lookup(id, Create::No, Need::SetAttribute)?;
        self.store.links(found.serial)?;
        if let Restriction::OfType(kind) = restriction {
            return Err(match Kind::find(kind) {
                Some(_) => ENOENT.because("the key type has no rule of its own"),
                None => ENOKEY.because("no such key type"),
            });
        }
        let ring = self.store.held_mut(found.serial);
        if ring.is_restricted {
            return Err(EEXIST);
        }
        ring.is_restricted = true;
        Ok(())
    }
}
