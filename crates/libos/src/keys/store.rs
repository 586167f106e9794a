//! All keys, what holds them, and quotas.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;

use super::key::{Index, Payload};
use super::{
    BYTES_MAX, COLLECT_DELAY, KEYS_MAX, Key, Kind, Owner, ROOT_BYTES_MAX, ROOT_KEYS_MAX, Secret,
    State, permission,
};
use crate::Result;
use crate::errno::{EDEADLK, EDQUOT, EKEYREVOKED, ELOOP, ENOENT, ENOTDIR, EPERM};
use crate::platform::platform;

/// How deep keyrings are searched below the first.
pub const DEPTH_MAX: usize = 6;
/// What a link counts for in the quota of the keyring's owner.
const LINK_BYTES: u64 = 4;
/// The least serial number.
const SERIAL_MIN: u32 = 3;

/// What a user has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub keys: u64,
    /// Of those, the ones that count, and their bytes.
    pub counted: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct UserRings {
    user: Option<u32>,
    session: Option<u32>,
}

/// How a new key counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    Keeps,
    /// Counts, but is made in any case.
    Overruns,
    DoesNotCount,
}

/// All keys.
pub struct Store {
    keys: BTreeMap<u32, Key>,
    pub usage: BTreeMap<u32, Usage>,
    /// The keyrings of users and of their sessions, by real user id; kept until they are invalidated.
    users: BTreeMap<u32, UserRings>,
    /// Persistent keyrings by user id, kept until they expire.
    persistent: BTreeMap<u32, u32>,
    /// When something may have to be unlinked again.
    collect_at: u64,
}

/// Most keys and bytes of a user.
pub fn limits(uid: u32) -> (u64, u64) {
    match uid {
        0 => (ROOT_KEYS_MAX.value(), ROOT_BYTES_MAX.value()),
        _ => (KEYS_MAX.value(), BYTES_MAX.value()),
    }
}

impl Store {
    pub const fn new() -> Store {
        Store {
            keys: BTreeMap::new(),
            usage: BTreeMap::new(),
            users: BTreeMap::new(),
            persistent: BTreeMap::new(),
            collect_at: u64::MAX,
        }
    }

    pub fn get(&self, serial: u32) -> Option<&Key> {
        self.keys.get(&serial)
    }

    /// A key that is known to be there, because something holds it.
    pub fn held(&self, serial: u32) -> &Key {
        self.keys.get(&serial).expect("a key that is held is kept")
    }

    pub fn held_mut(&mut self, serial: u32) -> &mut Key {
        let key = self.keys.get_mut(&serial);
        key.expect("a key that is held is kept")
    }

    /// All keys by serial number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Key)> {
        self.keys.iter().map(|(&serial, key)| (serial, key))
    }

    /// What the kernel itself holds.
    #[cfg(test)]
    pub fn kept(&self) -> impl Iterator<Item = u32> {
        let users = self.users.values();
        let users = users
            .flat_map(|rings| [rings.user, rings.session])
            .flatten();
        users.chain(self.persistent.values().copied())
    }

    /// A number that no key has, and that tells nothing of how many there are.
    fn free_serial(&self) -> u32 {
        loop {
            let mut bytes = [0; 4];
            platform().random(&mut bytes);
            let serial = u32::from_le_bytes(bytes) >> 1;
            if serial >= SERIAL_MIN && !self.keys.contains_key(&serial) {
                return serial;
            }
        }
    }

    /// A new key that nothing holds yet. EDQUOT.
    pub fn add(
        &mut self,
        index: Index,
        owner: Owner,
        permissions: u32,
        quota: Quota,
    ) -> Result<u32> {
        let payload = match index.kind {
            Kind::Keyring => Payload::Links(BTreeMap::new()),
            _ => Payload::Bytes(Secret::default()),
        };
        let key = Key {
            index,
            uid: owner.uid,
            gid: owner.gid,
            permissions,
            state: State::Positive,
            payload,
            expiry: None,
            is_revoked: false,
            is_invalidated: false,
            is_users: false,
            is_restricted: false,
            is_counted: quota != Quota::DoesNotCount,
            charged: 0,
            holders: 0,
        };
        if quota == Quota::Keeps {
            self.check_quota(owner.uid, 1, key.quota())?;
        }
        self.count(&key);
        let serial = self.free_serial();
        self.keys.insert(serial, key);
        Ok(serial)
    }

    /// Whether a user may have so many keys and bytes more. EDQUOT.
    fn check_quota(&self, uid: u32, keys: u64, bytes: u64) -> Result<()> {
        let usage = self.usage.get(&uid).copied().unwrap_or_default();
        let (keys_max, bytes_max) = limits(uid);
        match usage.counted + keys > keys_max || usage.bytes + bytes > bytes_max {
            true => Err(EDQUOT.because("the user's quota of keys")),
            false => Ok(()),
        }
    }

    fn count(&mut self, key: &Key) {
        let usage = self.usage.entry(key.uid).or_default();
        usage.keys += 1;
        if key.is_counted {
            usage.counted += 1;
            usage.bytes += key.quota();
        }
    }

    fn uncount(&mut self, key: &Key) {
        let Some(usage) = self.usage.get_mut(&key.uid) else {
            return;
        };
        usage.keys -= 1;
        if key.is_counted {
            usage.counted -= 1;
            usage.bytes -= key.quota();
        }
        if usage.keys == 0 {
            self.usage.remove(&key.uid);
        }
    }

    /// Another owner, with his quota. EDQUOT.
    pub fn set_owner(&mut self, serial: u32, uid: u32) -> Result<()> {
        let key = self.held(serial);
        if key.uid == uid {
            return Ok(());
        }
        if key.is_counted {
            self.check_quota(uid, 1, key.quota())?;
        }
        self.move_to_owner(serial, uid);
        Ok(())
    }

    /// The same whatever the quota says.
    pub fn move_to_owner(&mut self, serial: u32, uid: u32) {
        if let Some(mut key) = self.keys.remove(&serial) {
            self.uncount(&key);
            key.uid = uid;
            self.count(&key);
            self.keys.insert(serial, key);
        }
    }

    /// What the payload counts for from now on. EDQUOT if it is more than there is left.
    pub fn charge(&mut self, serial: u32, bytes: u64) -> Result<()> {
        let key = self.held(serial);
        let (uid, old) = (key.uid, key.charged);
        if key.is_counted {
            if bytes > old {
                self.check_quota(uid, 0, bytes - old)?;
            }
            let usage = self.usage.entry(uid).or_default();
            usage.bytes = usage.bytes + bytes - old;
        }
        self.held_mut(serial).charged = bytes;
        Ok(())
    }

    /// One more holder.
    pub fn hold(&mut self, serial: u32) {
        self.held_mut(serial).holders += 1;
    }

    /// One holder less; the last takes the key with it, and what only that held.
    pub fn release(&mut self, serial: u32) {
        let mut released = alloc::vec![serial];
        while let Some(serial) = released.pop() {
            let key = self.held_mut(serial);
            key.holders -= 1;
            if key.holders == 0 {
                self.discard_into(serial, &mut released);
            }
        }
    }

    /// A key that was made and that nothing holds.
    pub fn discard(&mut self, serial: u32) {
        self.hold(serial);
        self.release(serial);
    }

    fn discard_into(&mut self, serial: u32, released: &mut Vec<u32>) {
        if let Some(key) = self.keys.remove(&serial) {
            self.uncount(&key);
            released.extend(key.links().into_iter().flat_map(BTreeMap::values));
        }
    }

    /// The links of a keyring; ENOTDIR for another key.
    pub fn links(&self, serial: u32) -> Result<&BTreeMap<Index, u32>> {
        self.held(serial).links().ok_or(ENOTDIR)
    }

    fn links_mut(&mut self, serial: u32) -> &mut BTreeMap<Index, u32> {
        match &mut self.held_mut(serial).payload {
            Payload::Links(links) => links,
            Payload::Bytes(_) => unreachable!("checked to be a keyring"),
        }
    }

    /// Whether a link could be made: ENOTDIR, EKEYREVOKED, EDQUOT; EPERM for a restricted keyring.
    pub fn check_link(&self, ring: u32, index: &Index) -> Result<()> {
        let is_new = !self.links(ring)?.contains_key(index);
        let key = self.held(ring);
        if key.is_revoked {
            return Err(EKEYREVOKED);
        }
        if is_new && key.is_counted {
            self.check_quota(key.uid, 0, LINK_BYTES)?;
        }
        match key.is_restricted {
            true => Err(EPERM.because("the keyring is restricted")),
            false => Ok(()),
        }
    }

    /// Links a key into a keyring, in the place of one of the same type and description.
    pub fn link(&mut self, ring: u32, serial: u32) -> Result<()> {
        let key = self.held(serial);
        let index = key.index.clone();
        self.check_link(ring, &index)?;
        if index.kind == Kind::Keyring {
            self.check_no_cycle(ring, serial)?;
        }
        self.hold(serial);
        match self.links_mut(ring).insert(index, serial) {
            Some(replaced) => self.release(replaced),
            None => {
                let bytes = self.held(ring).charged + LINK_BYTES;
                let charged = self.charge(ring, bytes);
                debug_assert!(charged.is_ok(), "check_link looked at the quota");
            }
        }
        Ok(())
    }

    /// Takes out what has this type and description: ENOTDIR, ENOENT.
    pub fn unlink(&mut self, ring: u32, index: &Index) -> Result<()> {
        self.links(ring)?;
        let linked = self.links_mut(ring).remove(index).ok_or(ENOENT)?;
        let bytes = self.held(ring).charged - LINK_BYTES;
        self.charge(ring, bytes)?;
        self.release(linked);
        Ok(())
    }

    /// Takes out everything: ENOTDIR.
    pub fn clear(&mut self, ring: u32) -> Result<()> {
        self.links(ring)?;
        let links = core::mem::take(self.links_mut(ring));
        self.charge(ring, 0)?;
        links.into_values().for_each(|serial| self.release(serial));
        Ok(())
    }

    /// EDEADLK if `below` leads to `ring`, ELOOP if it leads further down than is searched.
    pub fn check_no_cycle(&self, ring: u32, below: u32) -> Result<()> {
        // The greatest depth at which each was met: again only if it is met deeper.
        let mut met = BTreeMap::new();
        let mut ahead = alloc::vec![(below, 0)];
        while let Some((serial, depth)) = ahead.pop() {
            if serial == ring {
                return Err(EDEADLK);
            }
            if met.get(&serial).is_some_and(|&before| before >= depth) {
                continue;
            }
            met.insert(serial, depth);
            for child in self.keyrings_in(serial).rev() {
                if child == ring {
                    return Err(EDEADLK);
                }
                if depth == DEPTH_MAX {
                    return Err(ELOOP);
                }
                ahead.push((child, depth + 1));
            }
        }
        Ok(())
    }

    /// The keyrings that a keyring links to.
    pub fn keyrings_in(&self, serial: u32) -> impl DoubleEndedIterator<Item = u32> {
        let links = self.held(serial).links();
        let rings = links.into_iter().flat_map(|links| {
            let end = Index::new(Kind::User, b"");
            links.range(..end).map(|(_, &serial)| serial)
        });
        rings.collect::<Vec<_>>().into_iter()
    }

    /// A keyring of the kernel's own making, held once.
    pub fn ring(
        &mut self,
        description: &str,
        owner: Owner,
        permissions: u32,
        quota: Quota,
    ) -> Result<u32> {
        let index = Index::new(Kind::Keyring, description.as_bytes());
        let serial = self.add(index, owner, permissions, quota)?;
        self.hold(serial);
        Ok(serial)
    }

    /// A thread's keyring, held once.
    pub fn thread_ring(&mut self, owner: Owner) -> u32 {
        self.own_ring("_tid", owner)
    }

    /// A keyring for a thread or a process, held once. It is made whatever the quota says.
    pub fn own_ring(&mut self, description: &str, owner: Owner) -> u32 {
        let mask = permission::possessor(permission::ALL) | permission::owner(permission::VIEW);
        let made = self.ring(description, owner, mask, Quota::Overruns);
        made.expect("only a quota that is kept refuses")
    }

    /// The keyrings of a user and of his sessions: EDQUOT when they are made, EKEYREVOKED or
    /// EKEYEXPIRED while one of them counts no more.
    pub fn user_rings(&mut self, uid: u32, now: u64) -> Result<(u32, u32)> {
        let rings = self.users.get(&uid).copied().unwrap_or_default();
        for ring in [rings.user, rings.session].into_iter().flatten() {
            self.held(ring).check_valid(now)?;
        }
        let user = match rings.user {
            Some(user) => user,
            None => self.user_ring(&format!("_uid.{uid}"), uid)?,
        };
        self.users.entry(uid).or_default().user = Some(user);
        if let Some(session) = rings.session {
            return Ok((user, session));
        }
        let session = self.user_ring(&format!("_uid_ses.{uid}"), uid)?;
        self.link(session, user)
            .inspect_err(|_| self.release(session))?;
        self.users.entry(uid).or_default().session = Some(session);
        Ok((user, session))
    }

    fn user_ring(&mut self, name: &str, uid: u32) -> Result<u32> {
        let all = permission::ALL;
        let mask = permission::possessor(all & !permission::SETATTR) | permission::owner(all);
        let owner = Owner { uid, gid: u32::MAX };
        let ring = self.ring(name, owner, mask, Quota::Keeps)?;
        self.held_mut(ring).is_users = true;
        Ok(ring)
    }

    /// The keyring of a user's sessions, if there is one.
    pub fn user_session(&self, uid: u32) -> Option<u32> {
        self.users.get(&uid)?.session
    }

    /// A user's persistent keyring.
    pub fn persistent_ring(&mut self, uid: u32) -> Result<u32> {
        if let Some(&ring) = self.persistent.get(&uid)
            && !self.held(ring).is_revoked
        {
            return Ok(ring);
        }
        let own = permission::ALL & !permission::SETATTR;
        let mask =
            permission::possessor(own) | permission::owner(permission::VIEW | permission::READ);
        let owner = Owner { uid, gid: u32::MAX };
        let name = format!("_persistent.{uid}");
        let ring = self.ring(&name, owner, mask, Quota::DoesNotCount)?;
        if let Some(revoked) = self.persistent.insert(uid, ring) {
            self.release(revoked);
        }
        Ok(ring)
    }

    /// The key's last second, after which it is unlinked some time later.
    pub fn expire(&mut self, serial: u32, expiry: u64) {
        self.held_mut(serial).expiry = Some(expiry);
        self.collect_by(expiry.saturating_add(COLLECT_DELAY.value()));
    }

    /// Something will have to be unlinked at that second.
    pub fn collect_by(&mut self, second: u64) {
        self.collect_at = self.collect_at.min(second);
    }

    /// Unlinks what was invalidated, and what expired a while ago.
    pub fn collect(&mut self, now: u64) {
        if now < self.collect_at {
            return;
        }
        self.collect_at = u64::MAX;
        let delay = COLLECT_DELAY.value();
        let mut ended = Vec::new();
        let mut next = u64::MAX;
        for (&serial, key) in &self.keys {
            let end = key.expiry.map_or(u64::MAX, |end| end.saturating_add(delay));
            match key.is_invalidated || now >= end {
                true => ended.push(serial),
                false => next = next.min(end),
            }
        }
        self.collect_at = next;
        if ended.is_empty() {
            return;
        }
        let has_ended = |serial: &u32| ended.binary_search(serial).is_ok();
        let mut links = Vec::new();
        for (&ring, key) in &self.keys {
            let dead = key.links().into_iter().flatten();
            links.extend(
                dead.filter(|(_, serial)| has_ended(serial))
                    .map(|(index, _)| (ring, index.clone())),
            );
        }
        for (ring, index) in links {
            // An earlier one may have taken the keyring along.
            if self.keys.contains_key(&ring) {
                let _ = self.unlink(ring, &index);
            }
        }
        // The kernel's own places are places too.
        let mut gone = Vec::new();
        self.persistent.retain(|_, &mut ring| {
            let stays = !has_ended(&ring);
            gone.extend((!stays).then_some(ring));
            stays
        });
        for rings in self.users.values_mut() {
            for place in [&mut rings.user, &mut rings.session] {
                gone.extend(place.take_if(|ring| has_ended(ring)));
            }
        }
        gone.into_iter().for_each(|ring| self.release(ring));
    }
}
