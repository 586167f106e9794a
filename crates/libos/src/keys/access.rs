//! What a caller finds among the keys, and whether he may use it.

use alloc::collections::BTreeMap;

use super::key::Index;
use super::operations::Owner;
use super::store::{DEPTH_MAX, Quota};
use super::{Key, Rings, State, Store, permission, special};
use crate::errno::{EACCES, EAGAIN, EINVAL, EKEYEXPIRED, EKEYREVOKED, ENOKEY, ENOTDIR};
use crate::process::credentials::Credentials;
use crate::{Errno, Result};

/// The keys as one caller sees them.
pub struct Access<'a> {
    pub store: &'a mut Store,
    pub rings: &'a mut Rings,
    pub who: &'a Credentials,
    /// Seconds since 1970.
    pub now: u64,
}

/// A key that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub serial: u32,
    pub is_possessed: bool,
}

impl Found {
    pub fn possessed(serial: u32) -> Found {
        Found {
            serial,
            is_possessed: true,
        }
    }
}

/// Whether the caller's own keyrings are made when they are named first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    Yes,
    No,
}

/// What a key is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To look at it from outside, or to change that: negative keys too.
    View,
    SetAttribute,
    Write,
    Search,
    Link,
    /// To name it only, whatever has become of it (KEYCTL_UNLINK), or to look later (KEYCTL_READ).
    Nothing,
}

impl Need {
    fn rights(self) -> u32 {
        match self {
            Need::View => permission::VIEW,
            Need::SetAttribute => permission::SETATTR,
            Need::Write => permission::WRITE,
            Need::Search => permission::SEARCH,
            Need::Link => permission::LINK,
            Need::Nothing => 0,
        }
    }
}

/// What a search looks for.
pub(super) struct Wanted {
    pub index: Index,
    /// This key and no other of its type and description, in whatever state.
    pub exactly: Option<u32>,
    /// A key that has expired is not worth an error.
    pub skip_expired: bool,
}

impl Wanted {
    pub fn by_name(index: Index) -> Wanted {
        Wanted {
            index,
            exactly: None,
            skip_expired: false,
        }
    }
}

impl Access<'_> {
    /// The thread's keyring belongs to whom the thread's file ids name.
    pub(super) fn follow_ids(&mut self) {
        let ids = (self.who.fsuid, self.who.fsgid);
        let before = self.rings.owner.replace(ids);
        if before.is_some_and(|before| before != ids)
            && let Some(ring) = self.rings.thread
        {
            self.store.move_to_owner(ring, ids.0);
            self.store.held_mut(ring).gid = ids.1;
        }
    }

    pub fn key(&self, found: Found) -> &Key {
        self.store.held(found.serial)
    }

    /// Whether the caller has these rights over a key; EACCES.
    pub fn check(&self, found: Found, rights: u32) -> Result<()> {
        let key = self.key(found);
        match key.allows(self.who, found.is_possessed, rights) {
            true => Ok(()),
            false => Err(EACCES.because("the key's permissions")),
        }
    }

    /// The key with an id, if the caller may use it so: EINVAL, ENOKEY, EKEYREVOKED, EKEYEXPIRED,
    /// EACCES, EDQUOT for a keyring that cannot be made.
    pub fn lookup(&mut self, id: i32, create: Create, need: Need) -> Result<Found> {
        let found = match id {
            1.. => self.by_serial(id as u32)?,
            _ => Found::possessed(self.special(id, create)?),
        };
        let key = self.key(found);
        if let (State::Negative(error), Need::Write | Need::Search | Need::Link) = (key.state, need)
        {
            return Err(error);
        }
        if need != Need::Nothing {
            key.check_valid(self.now)?;
        }
        self.check(found, need.rights())?;
        Ok(found)
    }

    /// A key by its number, and whether the caller possesses it.
    fn by_serial(&self, serial: u32) -> Result<Found> {
        let key = self
            .store
            .get(serial)
            .ok_or(ENOKEY.because("no such key"))?;
        let wanted = Wanted {
            exactly: Some(serial),
            ..Wanted::by_name(key.index.clone())
        };
        Ok(Found {
            serial,
            is_possessed: self.search_own(&wanted).is_ok(),
        })
    }

    fn special(&mut self, id: i32, create: Create) -> Result<u32> {
        let absent = ENOKEY.because("the caller has no such keyring");
        match id {
            special::THREAD if create == Create::Yes => Ok(self.thread_ring()),
            special::PROCESS if create == Create::Yes => Ok(self.process_ring()),
            special::THREAD => self.rings.thread.ok_or(absent),
            special::PROCESS => self.rings.process.ok_or(absent),
            special::SESSION => self.session_ring(create),
            special::USER => Ok(self.user_rings()?.0),
            special::USER_SESSION => Ok(self.user_rings()?.1),
            // There is none without /sbin/request-key.
            special::AUTHORITY | special::REQUESTOR => Err(absent),
            _ => Err(EINVAL.because("no keyring has this id")),
        }
    }

    /// The user's keyrings; for whatever reason they are not there, there is no such key.
    fn user_rings(&mut self) -> Result<(u32, u32)> {
        let rings = self.store.user_rings(self.who.ruid, self.now);
        rings.map_err(|_| ENOKEY.because("the user's keyrings cannot be made, or were revoked"))
    }

    pub(super) fn thread_ring(&mut self) -> u32 {
        let owner = Owner::of(self.who);
        let store = &mut *self.store;
        *self
            .rings
            .thread
            .get_or_insert_with(|| store.thread_ring(owner))
    }

    pub(super) fn process_ring(&mut self) -> u32 {
        let owner = Owner::of(self.who);
        let store = &mut *self.store;
        *self
            .rings
            .process
            .get_or_insert_with(|| store.own_ring("_pid", owner))
    }

    /// The session's keyring: the user's serves until something is to be put there.
    fn session_ring(&mut self, create: Create) -> Result<u32> {
        match self.rings.session {
            Some(ring) if create == Create::No || !self.store.held(ring).is_users => Ok(ring),
            None if create == Create::No => {
                let (_, ring) = self.user_rings()?;
                self.store.hold(ring);
                self.rings.session = Some(ring);
                Ok(ring)
            }
            _ => {
                self.user_rings()?;
                self.new_session()
            }
        }
    }

    /// A new session keyring without a name.
    pub(super) fn new_session(&mut self) -> Result<u32> {
        let quota = match self.rings.session {
            Some(_) => Quota::Keeps,
            None => Quota::Overruns,
        };
        let mask = permission::possessor(permission::ALL)
            | permission::owner(permission::VIEW | permission::READ);
        let ring = self.store.ring("_ses", Owner::of(self.who), mask, quota)?;
        self.set_session(ring);
        Ok(ring)
    }

    /// `ring` is held for this.
    pub(super) fn set_session(&mut self, ring: u32) {
        if let Some(old) = self.rings.session.replace(ring) {
            self.store.release(old);
        }
    }

    /// Searches the caller's keyrings: EAGAIN where there is no such key, ENOKEY where it is negative
    /// or was revoked, or the reason why nothing could be searched.
    pub(super) fn search_own(&self, wanted: &Wanted) -> Result<Found> {
        let user = || self.store.user_session(self.who.ruid);
        let session = self.rings.session.or_else(user);
        let (mut absent, mut other) = (None, EAGAIN);
        for ring in [self.rings.thread, self.rings.process, session] {
            let Some(ring) = ring else { continue };
            match self.search(Found::possessed(ring), wanted) {
                Ok(found) => return Ok(found),
                // A key that is known not to be there says more than none.
                Err(error) if error == EAGAIN => absent = absent.or(Some(error)),
                Err(error) if error == ENOKEY => absent = Some(error),
                Err(error) => other = error,
            }
        }
        Err(absent.unwrap_or(other))
    }

    /// Searches a keyring and those below it, where the caller has Search permission.
    pub(super) fn search(&self, ring: Found, wanted: &Wanted) -> Result<Found> {
        if self.key(ring).links().is_none() {
            return Err(ENOTDIR);
        }
        self.check(ring, permission::SEARCH)?;
        let mut result = EAGAIN;
        if self.key(ring).index == wanted.index {
            match self.consider(ring, wanted) {
                Some(Err(error)) => return Err(error),
                Some(found) => return found,
                None => {}
            }
        }
        // The least depth at which each was met: again only if it is met further up.
        let mut met = BTreeMap::new();
        let mut ahead = alloc::vec![(ring.serial, 0)];
        while let Some((serial, depth)) = ahead.pop() {
            if met.get(&serial).is_some_and(|&before| before <= depth) {
                continue;
            }
            met.insert(serial, depth);
            let key = self.store.held(serial);
            if key.is_revoked || key.is_invalidated {
                continue;
            }
            let linked = key.links().and_then(|links| links.get(&wanted.index));
            let candidate = linked.map(|&serial| Found { serial, ..ring });
            match candidate.and_then(|candidate| self.consider(candidate, wanted)) {
                Some(Ok(found)) => return Ok(found),
                Some(Err(error)) => result = error,
                None => {}
            }
            if depth == DEPTH_MAX {
                continue;
            }
            for child in self.store.keyrings_in(serial).rev() {
                let child = Found {
                    serial: child,
                    ..ring
                };
                if self.check(child, permission::SEARCH).is_ok() {
                    ahead.push((child.serial, depth + 1));
                }
            }
        }
        Err(result)
    }

    /// Whether a key of the right type and description is what is looked for; why not.
    fn consider(&self, found: Found, wanted: &Wanted) -> Option<Result<Found>> {
        let key = self.key(found);
        if let Some(serial) = wanted.exactly {
            if serial != found.serial {
                return None;
            }
            return Some(self.check(found, permission::SEARCH).map(|()| found));
        }
        if key.is_revoked || key.is_invalidated {
            return Some(Err(EKEYREVOKED));
        }
        if key.has_expired(self.now) {
            let reason: Errno = match wanted.skip_expired {
                true => return None,
                false => EKEYEXPIRED,
            };
            return Some(Err(reason));
        }
        if let Err(error) = self.check(found, permission::SEARCH) {
            return Some(Err(error));
        }
        match key.state {
            State::Negative(error) => Some(Err(error)),
            State::Positive => Some(Ok(found)),
        }
    }
}
