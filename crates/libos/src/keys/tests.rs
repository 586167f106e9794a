use alloc::vec;
use alloc::vec::Vec;

use super::key::Payload;
use super::*;
use crate::errno::{
    EACCES, EDEADLK, EDQUOT, EEXIST, EINVAL, EKEYEXPIRED, EKEYREVOKED, ELOOP, ENODEV, ENOENT,
    ENOKEY, ENOTDIR, EOPNOTSUPP, EPERM,
};
use crate::process::credentials::Credentials;

/// A kernel's keys and one thread of a user.
struct World {
    store: Store,
    rings: Rings,
    who: Credentials,
    now: u64,
}

impl World {
    fn new(uid: u32) -> World {
        crate::testing::platform();
        World {
            store: Store::new(),
            rings: Rings::default(),
            who: Credentials::new(uid, uid, vec![]),
            now: 1000,
        }
    }

    fn access(&mut self) -> Access<'_> {
        self.store.collect(self.now);
        let mut access = Access {
            store: &mut self.store,
            rings: &mut self.rings,
            who: &self.who,
            now: self.now,
        };
        access.follow_ids();
        access
    }

    fn add(&mut self, kind: &str, name: &str, payload: &[u8], ring: i32) -> Result<i32> {
        let payload = Secret::new(payload.to_vec());
        let added = self
            .access()
            .add(kind.as_bytes(), name.as_bytes(), payload, ring);
        added.map(|serial| serial as i32)
    }

    fn ring(&mut self, name: &str, into: i32) -> i32 {
        self.add("keyring", name, b"", into).unwrap()
    }

    fn read(&mut self, id: i32) -> Result<Vec<u8>> {
        self.access().read(id).map(|secret| secret.to_vec())
    }

    /// All that is counted adds up, and all holders are there.
    fn check(&self) {
        let mut holders = alloc::collections::BTreeMap::new();
        let mut usage = alloc::collections::BTreeMap::<u32, store::Usage>::new();
        let mut hold = |serial: u32| *holders.entry(serial).or_insert(0) += 1;
        self.rings.all().for_each(&mut hold);
        self.store.kept().for_each(&mut hold);
        for (_, key) in self.store.iter() {
            let links = key.links().into_iter().flatten();
            links.for_each(|(_, &serial)| hold(serial));
            let of = usage.entry(key.uid).or_default();
            of.keys += 1;
            if key.is_counted {
                of.counted += 1;
                of.bytes += key.quota();
            }
        }
        for (serial, key) in self.store.iter() {
            assert_eq!(holders.get(&serial), Some(&key.holders), "{serial}");
        }
        assert_eq!(usage, self.store.usage);
    }
}

const THREAD: i32 = special::THREAD;
const PROCESS: i32 = special::PROCESS;
const SESSION: i32 = special::SESSION;

#[test]
fn types_take_what_is_theirs() {
    let mut world = World::new(0);
    let key = world.add("user", "a", b"secret", THREAD).unwrap();
    assert_eq!(world.read(key), Ok(b"secret".to_vec()));
    assert_eq!(world.add("user", "a", b"other", THREAD), Ok(key));
    assert_eq!(world.read(key), Ok(b"other".to_vec()));
    assert_eq!(world.add("user", "b", b"", THREAD), Err(EINVAL));
    assert_eq!(world.add("user", "", b"x", THREAD), Err(EINVAL));
    assert_eq!(world.add("keyring", "b", b"x", THREAD), Err(EINVAL));
    assert_eq!(world.add("asymmetric", "b", b"x", THREAD), Err(ENODEV));
    assert_eq!(world.add("logon", "b", b"x", THREAD), Err(EINVAL));
    assert_eq!(world.add("user", "b", b"x", key), Err(ENOTDIR));
    let logon = world.add("logon", "service:b", b"x", THREAD).unwrap();
    assert_eq!(world.read(logon), Err(EOPNOTSUPP));
    let big = world.add("big_key", "b", &[7; 100_000], THREAD).unwrap();
    assert_eq!(world.read(big).map(|bytes| bytes.len()), Ok(100_000));
    world.check();
}

#[test]
fn what_nobody_holds_goes_with_its_quota() {
    let mut world = World::new(7);
    let outer = world.ring("outer", THREAD);
    let mut ring = outer;
    // Deeper than anything could follow by recursion.
    for _ in 0..150 {
        let inner = world.ring("inner", ring);
        // Out of the caller's sight it needs no possession.
        let access = world.access();
        access.store.held_mut(inner as u32).permissions = permission::MASK;
        ring = inner;
    }
    world.check();
    let key = world.add("user", "a", b"secret", ring).unwrap();
    assert_eq!(world.access().unlink(outer, THREAD), Ok(()));
    assert_eq!(world.read(key), Err(ENOKEY));
    assert_eq!(world.store.usage[&7].keys, 1);
    world.check();
}

#[test]
fn quotas_are_kept_to_the_byte() {
    let mut world = World::new(7);
    world
        .access()
        .lookup(THREAD, Create::Yes, Need::Write)
        .unwrap();
    let used = world.store.usage[&7].bytes;
    assert_eq!(used, 5);
    // The name with its null, and the link.
    let room = BYTES_MAX.value() - used - 2 - 4;
    let too_long = vec![1; room as usize + 1];
    assert_eq!(world.add("user", "a", &too_long, THREAD), Err(EDQUOT));
    world.check();
    let key = world.add("user", "a", &too_long[1..], THREAD).unwrap();
    assert_eq!(world.store.usage[&7].bytes, BYTES_MAX.value());
    assert_eq!(world.add("user", "b", b"x", THREAD), Err(EDQUOT));
    world.check();
    assert_eq!(world.access().revoke(key), Ok(()));
    for number in 2..KEYS_MAX.value() {
        let name = alloc::format!("key{number}");
        world.add("user", &name, b"x", THREAD).unwrap();
    }
    assert_eq!(world.add("user", "last", b"x", THREAD), Err(EDQUOT));
    assert_eq!(world.access().clear(THREAD), Ok(()));
    assert_eq!(
        world.store.usage[&7],
        store::Usage {
            keys: 1,
            counted: 1,
            bytes: used
        }
    );
    world.check();
}

#[test]
fn masks_and_possession_say_who_may() {
    let mut world = World::new(7);
    let key = world.add("user", "a", b"secret", PROCESS).unwrap();
    let mut other = World {
        store: world.store,
        ..World::new(8)
    };
    assert_eq!(other.read(key), Err(EACCES));
    assert_eq!(other.access().describe(key), Err(EACCES));
    other.access().store.held_mut(key as u32).permissions |= permission::READ;
    assert_eq!(other.read(key), Ok(b"secret".to_vec()));
    assert_eq!(other.access().set_permissions(key, 0), Err(EACCES));
    // The owner is told what it is, and without possession no more.
    let mut owner = World {
        store: other.store,
        ..World::new(7)
    };
    let described = owner.access().describe(key).unwrap();
    assert_eq!(described, b"user;7;7;3f010002;a\0");
    assert_eq!(owner.read(key), Err(EACCES));
    owner.rings = world.rings;
    assert_eq!(owner.read(key), Ok(b"secret".to_vec()));
    let group = permission::group(permission::VIEW)
        | permission::possessor(permission::SETATTR | permission::SEARCH);
    assert_eq!(owner.access().set_permissions(key, 1 << 7), Err(EINVAL));
    assert_eq!(owner.access().set_permissions(key, group), Ok(()));
    assert_eq!(owner.access().set_owner(key, Some(8), None), Err(EACCES));
    assert_eq!(owner.access().set_owner(key, None, Some(99)), Err(EACCES));
    owner.who.groups.push(99);
    assert_eq!(owner.access().set_owner(key, None, Some(99)), Ok(()));
    // The owner's part of the mask, which is empty, goes before the group's.
    assert_eq!(owner.access().describe(key), Err(EACCES));
}

#[test]
fn keyrings_make_no_cycles_and_are_searched_six_deep() {
    let mut world = World::new(0);
    let top = world.ring("top", PROCESS);
    let mut rings = vec![top];
    for _ in 0..6 {
        let ring = world.ring("below", rings[rings.len() - 1]);
        rings.push(ring);
    }
    let bottom = rings[6];
    assert_eq!(world.access().link(top, top), Err(EDEADLK));
    assert_eq!(world.access().link(top, rings[5]), Err(EDEADLK));
    let aside = world.ring("aside", PROCESS);
    assert_eq!(world.access().link(top, aside), Ok(()));
    // What is in the last is found from the top; from the process's keyring it is one too deep.
    let deep = world.add("user", "deep", b"x", bottom).unwrap();
    let found = world.access().search_in(top, b"user", b"deep", 0);
    assert_eq!(found, Ok(deep as u32));
    let found = world.access().search_in(PROCESS, b"user", b"deep", 0);
    assert_eq!(found, Err(ENOKEY));
    assert_eq!(world.read(deep), Err(EACCES));
    world.ring("below", bottom);
    let new = world.ring("new", PROCESS);
    assert_eq!(world.access().link(top, new), Err(ELOOP));
    world.check();
}

#[test]
fn a_moved_key_may_take_the_place_of_the_keyring_it_was_in() {
    let mut world = World::new(0);
    let outer = world.ring("a", PROCESS);
    let inner = world.ring("a", outer);
    let mut access = world.access();
    assert_eq!(
        access.move_key(inner, outer, PROCESS, IfTaken::Refuse),
        Err(EEXIST)
    );
    assert_eq!(
        access.move_key(inner, outer, PROCESS, IfTaken::Replace),
        Ok(())
    );
    assert_eq!(access.describe(outer), Err(ENOKEY));
    assert_eq!(
        access.move_key(inner, PROCESS, PROCESS, IfTaken::Replace),
        Ok(())
    );
    world.check();
}

#[test]
fn ends_come_by_time_and_by_word() {
    let mut world = World::new(0);
    let key = world.add("user", "a", b"secret", PROCESS).unwrap();
    assert_eq!(world.access().set_timeout(key, 10), Ok(()));
    world.now += 9;
    assert_eq!(world.read(key), Ok(b"secret".to_vec()));
    world.now += 1;
    assert_eq!(world.read(key), Err(EKEYEXPIRED));
    assert_eq!(
        world.access().request(b"user", b"a", IfAbsent::Fail, 0),
        Err(ENOKEY)
    );
    assert_eq!(
        world.access().search_in(PROCESS, b"user", b"a", 0),
        Err(EKEYEXPIRED)
    );
    // A new payload, a new life.
    assert_eq!(world.add("user", "a", b"again", PROCESS), Ok(key));
    assert_eq!(world.read(key), Ok(b"again".to_vec()));
    assert_eq!(world.access().revoke(key), Ok(()));
    assert_eq!(world.read(key), Err(EKEYREVOKED));
    let payload = &world.store.held(key as u32).payload;
    assert!(matches!(payload, Payload::Bytes(bytes) if bytes.is_empty()));
    let next = world.add("user", "a", b"next", PROCESS).unwrap();
    assert_ne!(next, key);
    assert_eq!(world.access().invalidate(next), Ok(()));
    assert_eq!(world.read(next), Err(ENOKEY));
    assert_eq!(world.read(PROCESS), Ok(vec![]));
    world.check();
    // What has expired is unlinked after a while.
    let key = world.add("user", "a", b"secret", PROCESS).unwrap();
    assert_eq!(world.access().set_timeout(key, 10), Ok(()));
    world.now += 10 + COLLECT_DELAY.value();
    assert_eq!(world.read(PROCESS), Ok(vec![]));
    world.check();
}

#[test]
fn what_nobody_could_make_is_known_for_a_minute() {
    let mut world = World::new(0);
    let request = |world: &mut World, absent: IfAbsent| {
        world.access().request(b"user", b"a", absent, PROCESS)
    };
    assert_eq!(request(&mut world, IfAbsent::Fail), Err(ENOKEY));
    assert_eq!(request(&mut world, IfAbsent::Make), Err(ENOENT));
    assert_eq!(request(&mut world, IfAbsent::Make), Err(ENOKEY));
    world.now += 60;
    assert_eq!(request(&mut world, IfAbsent::Make), Err(ENOENT));
    let key = world.add("user", "a", b"secret", PROCESS).unwrap();
    assert_eq!(request(&mut world, IfAbsent::Make), Ok(key as u32));
    assert_eq!(
        world.access().request(b"keyring", b"a", IfAbsent::Make, 0),
        Err(EPERM)
    );
    world.check();
}

#[test]
fn sessions_are_joined_by_name_where_they_may_be_searched() {
    let mut world = World::new(0);
    let users = world.access().lookup(SESSION, Create::No, Need::Search);
    assert!(world.store.held(users.unwrap().serial).is_users);
    // To put something there makes an own one.
    let key = world.add("user", "a", b"x", SESSION).unwrap();
    assert_ne!(world.rings.session, Some(users.unwrap().serial));
    let named = world.access().join_session(Some(b"name")).unwrap();
    assert_eq!(world.read(key), Err(ENOKEY));
    assert_ne!(world.access().join_session(Some(b"name")), Ok(named));
    let named = world.rings.session.unwrap();
    let all = permission::MASK;
    assert_eq!(world.access().set_permissions(named as i32, all), Ok(()));
    assert_eq!(world.access().join_session(Some(b"name")), Ok(0));
    world.access().link(named as i32, special::USER).unwrap();
    world.access().join_session(None).unwrap();
    assert_eq!(world.access().join_session(Some(b"name")), Ok(named));
    world.check();
}

#[test]
fn restricted_keyrings_take_nothing_more() {
    let mut world = World::new(0);
    let ring = world.ring("a", PROCESS);
    let key = world.add("user", "a", b"x", ring).unwrap();
    let mut access = world.access();
    assert_eq!(
        access.restrict(ring, Restriction::OfType(b"user")),
        Err(ENOENT)
    );
    assert_eq!(access.restrict(key, Restriction::Everything), Err(ENOTDIR));
    assert_eq!(access.restrict(ring, Restriction::Everything), Ok(()));
    assert_eq!(access.restrict(ring, Restriction::Everything), Err(EEXIST));
    assert_eq!(access.link(PROCESS, ring), Err(EPERM));
    assert_eq!(access.unlink(key, ring), Ok(()));
    assert_eq!(world.add("user", "a", b"x", ring), Err(EPERM));
    world.check();
}

#[test]
fn persistent_keyrings_last_a_while() {
    let mut world = World::new(7);
    let ring = world.access().persistent(None, PROCESS).unwrap();
    assert_eq!(world.access().persistent(Some(8), PROCESS), Err(EPERM));
    let key = world.add("user", "a", b"x", ring as i32).unwrap();
    world.access().clear(PROCESS).unwrap();
    assert_eq!(world.read(key), Err(EACCES));
    assert_eq!(world.access().persistent(Some(7), PROCESS), Ok(ring));
    assert_eq!(world.read(key), Ok(b"x".to_vec()));
    world.now += PERSISTENT_EXPIRY.value() + COLLECT_DELAY.value();
    let next = world.access().persistent(None, PROCESS).unwrap();
    assert_ne!(next, ring);
    world.check();
}

#[test]
fn a_thread_passes_on_its_session_and_drops_its_own() {
    let thread = crate::testing::setup();
    let before = |kind: i32| {
        with(&thread, |access| {
            Ok(access.lookup(kind, Create::Yes, Need::Write)?.serial)
        })
        .unwrap()
    };
    let [own, process, session] = [THREAD, PROCESS, SESSION].map(before);
    let child = crate::testing::setup();
    child.keys.inherit(&thread, Child::Process);
    let rings = child.keys.0.lock();
    assert_eq!((rings.thread, rings.process), (None, None));
    assert_eq!(rings.session, Some(session));
    drop(rings);
    let sibling = crate::testing::setup();
    sibling.keys.inherit(&thread, Child::Thread);
    let rings = sibling.keys.0.lock();
    assert_eq!(rings.process, Some(process));
    assert!(rings.thread.is_some_and(|ring| ring != own));
    drop(rings);
    drop((child, sibling));
    thread.keys.forget_own();
    let store = STORE.lock();
    assert!(store.get(own).is_none() && store.get(process).is_none());
    assert_eq!(store.held(session).holders, 1);
}
