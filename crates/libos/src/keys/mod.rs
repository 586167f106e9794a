//! The kernel's keyrings (keyrings(7)): keys that programs leave with the kernel, which here is the
//! enclave. No key leaves it.
//!
//! - [`Key`]: a type, a description, an owner, a permission mask, a payload. [`key`]
//! - [`Store`]: all keys by serial number, what links to them, and what their owners have used up of
//!   their quotas. [`store`]
//! - [`Rings`]: the keyrings that a thread has: its own, its process's, its session's. What can be
//!   reached from them the thread *possesses*.
//! - [`Access`]: what a caller finds and may do ([`access`]); the calls' work is in [`operations`].
//! - [`text`]: /proc/keys and /proc/key-users.
//!
//! # Invariants
//! - A key lives as long as something holds it: links in keyrings, threads' rings, and the kernel's
//!   own places for users' and persistent keyrings ([`Key::holders`] counts them). With its last
//!   holder it goes at once, and gives back its quota.
//! - The keyrings make no cycles ([`Store::check_no_cycle`]), so counting is enough. Chains may be
//!   longer than the kernel's stack allows to follow: releasing and searching do not recurse without
//!   bound.
//! - A key is always instantiated, or negative: without /sbin/request-key nobody could do it later.
//! - Payloads are overwritten with zeros when they go ([`Zeroizing`]), and never written to a log.
//!
//! # Lock order
//! a thread's rings → the store, both innermost. User memory is touched under neither.

mod access;
mod key;
mod operations;
mod store;
#[cfg(test)]
mod tests;
mod text;

use alloc::sync::Arc;
use alloc::vec::Vec;

use zeroize::Zeroizing;

pub use access::{Access, Create, Found, Need};
pub use key::{Key, Kind, State, permission};
pub use operations::{Destination, IfAbsent, IfTaken, Owner, Restriction};
pub use store::Store;
pub use text::{keys, users};

use crate::errno::EPERM;
use crate::fs::procfs::Setting;
use crate::sync::SpinLock;
use crate::{Result, Thread};

/// A payload on its way in or out.
pub type Secret = Zeroizing<Vec<u8>>;

/// Ids that stand for the caller's own keyrings.
pub mod special {
    pub const THREAD: i32 = -1;
    pub const PROCESS: i32 = -2;
    pub const SESSION: i32 = -3;
    pub const USER: i32 = -4;
    pub const USER_SESSION: i32 = -5;
    pub const AUTHORITY: i32 = -7;
    pub const REQUESTOR: i32 = -8;
}

/// Longest description, and longest name of a type, with the null.
pub const DESCRIPTION_MAX: usize = 4096;
pub const TYPE_MAX: usize = 32;
/// Most bytes that a call takes as a payload.
pub const PAYLOAD_MAX: usize = (1 << 20) - 1;

/// /proc/sys/kernel/keys: most keys and bytes of a user, and of root; seconds until what has expired
/// is unlinked, and until a persistent keyring that nobody asks for goes.
pub static KEYS_MAX: Setting = Setting::new(200, i32::MAX as u64);
pub static BYTES_MAX: Setting = Setting::new(20_000, i32::MAX as u64);
pub static ROOT_KEYS_MAX: Setting = Setting::new(1_000_000, i32::MAX as u64);
pub static ROOT_BYTES_MAX: Setting = Setting::new(25_000_000, i32::MAX as u64);
pub static COLLECT_DELAY: Setting = Setting::new(300, i32::MAX as u64);
pub static PERSISTENT_EXPIRY: Setting = Setting::new(3 * 24 * 3600, i32::MAX as u64);

static STORE: SpinLock<Store> = SpinLock::new(Store::new());

/// The keyrings of a thread, by serial number; each is held.
#[derive(Debug, Default)]
pub struct Rings {
    pub thread: Option<u32>,
    pub process: Option<u32>,
    pub session: Option<u32>,
    /// Where request_key puts what it makes (KEYCTL_SET_REQKEY_KEYRING).
    pub destination: Destination,
    /// The file ids that the thread's keyring was given last: it follows them.
    pub owner: Option<(u32, u32)>,
}

impl Rings {
    fn all(&self) -> impl Iterator<Item = u32> {
        [self.thread, self.process, self.session]
            .into_iter()
            .flatten()
    }
}

/// What clone makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    Thread,
    Process,
}

/// A thread's keyrings, released with it.
#[derive(Default)]
pub struct ThreadRings(SpinLock<Rings>);

impl ThreadRings {
    /// A new thread or process: the session is shared, the process's keyring within the process. A
    /// thread gets a keyring of its own if its creator has one.
    pub fn inherit(&self, parent: &Thread, child: Child) {
        let owner = Owner::of(&parent.process.credentials.lock());
        let from = parent.keys.0.lock();
        let mut rings = Rings {
            session: from.session,
            process: from.process.filter(|_| child == Child::Thread),
            destination: from.destination,
            owner: from.owner,
            ..Rings::default()
        };
        // Most threads have none.
        if from.all().next().is_some() {
            let mut store = STORE.lock();
            rings.all().for_each(|ring| store.hold(ring));
            if child == Child::Thread && from.thread.is_some() {
                rings.thread = Some(store.thread_ring(owner));
            }
        }
        drop(from);
        // What was there before is nothing: the thread is new.
        *self.0.lock() = rings;
    }

    /// execve: only the session stays.
    pub fn forget_own(&self) {
        let mut rings = self.0.lock();
        let own = [rings.thread.take(), rings.process.take()];
        for ring in own.into_iter().flatten() {
            STORE.lock().release(ring);
        }
    }

    /// Takes the session that another thread gives, if `may_change` allows it for what was there.
    fn take_session(
        &self,
        session: u32,
        may_change: impl Fn(&Store, Option<u32>) -> Result<()>,
    ) -> Result<()> {
        let mut rings = self.0.lock();
        if rings.session == Some(session) {
            return Ok(());
        }
        let mut store = STORE.lock();
        may_change(&store, rings.session)?;
        store.hold(session);
        if let Some(old) = rings.session.replace(session) {
            store.release(old);
        }
        Ok(())
    }
}

impl Drop for ThreadRings {
    fn drop(&mut self) {
        let rings = self.0.lock();
        if rings.all().next().is_some() {
            let mut store = STORE.lock();
            rings.all().for_each(|ring| store.release(ring));
        }
    }
}

/// Does something with the keys as the calling thread sees them.
pub fn with<T>(thread: &Arc<Thread>, work: impl FnOnce(&mut Access<'_>) -> Result<T>) -> Result<T> {
    let who = thread.process.credentials.lock().clone();
    let mut rings = thread.keys.0.lock();
    let mut store = STORE.lock();
    let now = crate::ipc::seconds();
    store.collect(now);
    let mut access = Access {
        store: &mut store,
        rings: &mut rings,
        who: &who,
        now,
    };
    access.follow_ids();
    work(&mut access)
}

/// KEYCTL_SESSION_TO_PARENT: the parent gets the caller's session. EPERM unless the parent has one
/// thread and the caller's effective ids, three times each, as the sessions have.
pub fn session_to_parent(thread: &Arc<Thread>) -> Result<()> {
    let process = &thread.process;
    let parent = process
        .parent()
        .ok_or(EPERM.because("started by the host"))?;
    let threads = parent.live_threads();
    let [parent_thread] = &threads[..] else {
        return Err(EPERM.because("the parent has threads"));
    };
    let theirs = parent.credentials.lock().clone();
    let own = process.credentials.lock().clone();
    let same = [theirs.ruid, theirs.euid, theirs.suid] == [own.euid; 3]
        && [theirs.rgid, theirs.egid, theirs.sgid] == [own.egid; 3];
    // Held, so that another thread of the caller's cannot end it meanwhile.
    let session = with(thread, |access| {
        let session = access.lookup(special::SESSION, Create::No, Need::Link)?;
        access.store.hold(session.serial);
        Ok(session.serial)
    })?;
    let taken = parent_thread.keys.take_session(session, |store, old| {
        let is_own = |ring: u32| store.held(ring).uid == own.euid;
        match same && is_own(session) && old.is_none_or(is_own) {
            true => Ok(()),
            false => Err(EPERM.because("the parent or its session has another owner")),
        }
    });
    STORE.lock().release(session);
    taken
}
