//! add_key, request_key, keyctl.

use super::{Arguments, Context};
use crate::errno::{EFAULT, EINVAL, ENOKEY, ENOMEM, EOPNOTSUPP, EPERM};
use crate::keys::{
    self, Access, Create, DESCRIPTION_MAX, Destination, IfAbsent, IfTaken, Need, PAYLOAD_MAX,
    Restriction, Secret, TYPE_MAX,
};
use crate::mm::accounting;
use crate::sync::mutex::SleepLock;
use crate::user::{IoBuffer, RW_MAX, check_range, read_string};
use crate::{Errno, Result};
use alloc::vec::Vec;

/// Payloads beyond this come one at a time, so that calls in progress take a bounded part of the
/// kernel's memory.
const SMALL_PAYLOAD: usize = 64 << 10;
static LARGE_PAYLOAD: SleepLock<()> = SleepLock::new(());

/// keyctl's operations.
mod operation {
    pub const GET_KEYRING_ID: i32 = 0;
    pub const JOIN_SESSION_KEYRING: i32 = 1;
    pub const UPDATE: i32 = 2;
    pub const REVOKE: i32 = 3;
    pub const CHOWN: i32 = 4;
    pub const SETPERM: i32 = 5;
    pub const DESCRIBE: i32 = 6;
    pub const CLEAR: i32 = 7;
    pub const LINK: i32 = 8;
    pub const UNLINK: i32 = 9;
    pub const SEARCH: i32 = 10;
    pub const READ: i32 = 11;
    pub const INSTANTIATE: i32 = 12;
    pub const NEGATE: i32 = 13;
    pub const SET_REQKEY_KEYRING: i32 = 14;
    pub const SET_TIMEOUT: i32 = 15;
    pub const ASSUME_AUTHORITY: i32 = 16;
    pub const GET_SECURITY: i32 = 17;
    pub const SESSION_TO_PARENT: i32 = 18;
    pub const REJECT: i32 = 19;
    pub const INSTANTIATE_IOV: i32 = 20;
    pub const INVALIDATE: i32 = 21;
    pub const GET_PERSISTENT: i32 = 22;
    pub const RESTRICT_KEYRING: i32 = 29;
    pub const MOVE: i32 = 30;
    pub const CAPABILITIES: i32 = 31;
}

/// What KEYCTL_CAPABILITIES says: capabilities, persistent keyrings, big keys, invalidation,
/// restriction, moving; then that names and users' keyrings are of one namespace, as they are where
/// there is one only.
const CAPABILITIES: [u8; 2] = [0x01 | 0x02 | 0x10 | 0x20 | 0x40 | 0x80, 0x01 | 0x02];

const KEYCTL_MOVE_EXCL: u32 = 1;
/// KEY_REQKEY_DEFL_NO_CHANGE.
const NO_CHANGE: i32 = -1;
/// An id that stays as it is.
const UNCHANGED: u32 = u32::MAX;

impl Context<'_> {
    /// Does something with the keys as the caller sees them.
    fn keys<T>(&self, work: impl FnOnce(&mut Access<'_>) -> Result<T>) -> Result<T> {
        keys::with(self.thread, work)
    }

    /// The name of a key type: EINVAL, EPERM for one that is the kernel's own.
    fn key_type(&self, address: u64) -> Result<Vec<u8>> {
        let name = self.key_text(address, TYPE_MAX)?;
        match name.first() {
            None => Err(EINVAL.because("a key type without a name")),
            Some(b'.') => Err(EPERM.because("a key type of the kernel's own")),
            Some(_) => Ok(name),
        }
    }

    fn key_description(&self, address: u64) -> Result<Vec<u8>> {
        self.key_text(address, DESCRIPTION_MAX)
    }

    /// A string that fits with its null: EFAULT, EINVAL.
    fn key_text(&self, address: u64, max: usize) -> Result<Vec<u8>> {
        read_string(&self.mm(), address, max).map_err(|error| match error == EFAULT {
            true => error,
            false => EINVAL.because("a name that is too long"),
        })
    }

    /// A payload: EFAULT, ENOMEM.
    fn payload(&self, address: u64, len: usize) -> Result<Secret> {
        let mut payload = Secret::default();
        let room = payload.try_reserve_exact(len);
        room.map_err(|_| ENOMEM.because("no memory for a payload"))?;
        accounting::admit()?;
        payload.resize(len, 0);
        self.mm().read(address, &mut payload)?;
        Ok(payload)
    }
}

pub fn add_key(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let len = arguments.usize(3);
    if len > PAYLOAD_MAX {
        return Err(EINVAL.because("a payload beyond 1 MiB"));
    }
    let kind = context.key_type(arguments.u64(0))?;
    let description = match arguments.u64(1) {
        0 => Vec::new(),
        address => context.key_description(address)?,
    };
    if kind == b"keyring" && description.first() == Some(&b'.') {
        return Err(EPERM.because("the name of a keyring of the kernel's own"));
    }
    let _turn = (len > SMALL_PAYLOAD).then(|| LARGE_PAYLOAD.lock(context.thread));
    let payload = context.payload(arguments.u64(2), len)?;
    let ring = arguments.i32(4);
    let serial = context.keys(|keys| keys.add(&kind, &description, payload, ring))?;
    Ok(serial as usize)
}

pub fn request_key(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let kind = context.key_type(arguments.u64(0))?;
    let description = context.key_description(arguments.u64(1))?;
    let absent = match arguments.u64(2) {
        0 => IfAbsent::Fail,
        callout => {
            // For the program that would make the key.
            context.key_description(callout)?;
            IfAbsent::Make
        }
    };
    let ring = arguments.i32(3);
    let serial = context.keys(|keys| keys.request(&kind, &description, absent, ring))?;
    Ok(serial as usize)
}

pub fn keyctl(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let [id, second, third] = [1, 2, 3].map(|index| arguments.i32(index));
    let done = |()| 0;
    let number = |serial: u32| serial as usize;
    match arguments.i32(0) {
        operation::GET_KEYRING_ID => {
            let create = if second == 0 { Create::No } else { Create::Yes };
            ring_number(context, id, create)
        }
        operation::JOIN_SESSION_KEYRING => join_session(context, arguments.u64(1)),
        operation::UPDATE => update(context, arguments),
        operation::REVOKE => context.keys(|keys| keys.revoke(id)).map(done),
        operation::CHOWN => {
            let changed = |id: u32| (id != UNCHANGED).then_some(id);
            match (changed(second as u32), changed(third as u32)) {
                (None, None) => Ok(0),
                (uid, gid) => context.keys(|keys| keys.set_owner(id, uid, gid)).map(done),
            }
        }
        operation::SETPERM => context
            .keys(|keys| keys.set_permissions(id, second as u32))
            .map(done),
        operation::DESCRIBE => {
            let text = context.keys(|keys| keys.describe(id))?;
            give(context, arguments, &text)
        }
        operation::CLEAR => context.keys(|keys| keys.clear(id)).map(done),
        operation::LINK => {
            accounting::admit()?;
            context.keys(|keys| keys.link(id, second)).map(done)
        }
        operation::UNLINK => context.keys(|keys| keys.unlink(id, second)).map(done),
        operation::SEARCH => search(context, arguments),
        operation::READ => {
            let payload = context.keys(|keys| keys.read(id))?;
            give(context, arguments, &payload)
        }
        operation::INSTANTIATE | operation::INSTANTIATE_IOV => instantiate(context, arguments),
        operation::NEGATE => Err(without_authority()),
        operation::REJECT => reject(third),
        operation::SET_REQKEY_KEYRING => set_destination(context, id),
        operation::SET_TIMEOUT => context
            .keys(|keys| keys.set_timeout(id, second as u32))
            .map(done),
        operation::ASSUME_AUTHORITY => match id {
            0 => Ok(0),
            ..0 => Err(EINVAL.because("not the number of a key")),
            _ => Err(ENOKEY.because("nobody was asked to make this key")),
        },
        operation::GET_SECURITY => {
            context.keys(|keys| keys.lookup(id, Create::No, Need::View))?;
            // There is no security module: an empty string.
            give(context, arguments, b"\0")
        }
        operation::SESSION_TO_PARENT => keys::session_to_parent(context.thread).map(done),
        operation::INVALIDATE => context.keys(|keys| keys.invalidate(id)).map(done),
        operation::GET_PERSISTENT => {
            accounting::admit()?;
            let uid = (id as u32 != UNCHANGED).then_some(id as u32);
            context
                .keys(|keys| keys.persistent(uid, second))
                .map(number)
        }
        operation::RESTRICT_KEYRING => restrict(context, arguments),
        operation::MOVE => {
            accounting::admit()?;
            let flags = arguments.u32(4);
            if flags & !KEYCTL_MOVE_EXCL != 0 {
                return Err(EINVAL.because("unknown flags"));
            }
            let taken = match flags {
                0 => IfTaken::Replace,
                _ => IfTaken::Refuse,
            };
            let moved = context.keys(|keys| keys.move_key(id, second, third, taken));
            moved.map(done)
        }
        operation::CAPABILITIES => capabilities(context, arguments),
        // Diffie-Hellman, public keys, watches: as a kernel that was built without.
        _ => Err(EOPNOTSUPP.because("an operation on keys that is not offered")),
    }
}

fn ring_number(context: &Context<'_>, id: i32, create: Create) -> Result<usize> {
    if create == Create::Yes {
        accounting::admit()?;
    }
    let found = context.keys(|keys| keys.lookup(id, create, Need::Search))?;
    Ok(found.serial as usize)
}

fn join_session(context: &Context<'_>, name: u64) -> Result<usize> {
    let name = match name {
        0 => None,
        address => Some(context.key_description(address)?),
    };
    if name
        .as_ref()
        .is_some_and(|name| name.first() == Some(&b'.'))
    {
        return Err(EPERM.because("the name of a keyring of the kernel's own"));
    }
    accounting::admit()?;
    let serial = context.keys(|keys| keys.join_session(name.as_deref()))?;
    Ok(serial as usize)
}

fn update(context: &Context<'_>, arguments: Arguments) -> Result<usize> {
    // A page, as Linux has it.
    const UPDATE_MAX: usize = 4096;
    let len = arguments.usize(3);
    if len > UPDATE_MAX {
        return Err(EINVAL.because("a payload beyond a page"));
    }
    let payload = context.payload(arguments.u64(2), len)?;
    context.keys(|keys| keys.update(arguments.i32(1), payload))?;
    Ok(0)
}

fn search(context: &Context<'_>, arguments: Arguments) -> Result<usize> {
    let kind = context.key_type(arguments.u64(2))?;
    let description = context.key_description(arguments.u64(3))?;
    let (ring, into) = (arguments.i32(1), arguments.i32(4));
    let found = context.keys(|keys| keys.search_in(ring, &kind, &description, into))?;
    Ok(found as usize)
}

/// Bytes for the buffer in the third and fourth argument, if all fit there; how many there are.
fn give(context: &Context<'_>, arguments: Arguments, bytes: &[u8]) -> Result<usize> {
    let (to, room) = (arguments.u64(2), arguments.usize(3));
    if to != 0 && room >= bytes.len() {
        context.mm().write(to, bytes)?;
    }
    Ok(bytes.len())
}

/// Only who was asked by the kernel makes keys for others, and it asks nobody.
fn without_authority() -> Errno {
    EPERM.because("the caller was not asked to make a key")
}

fn instantiate(context: &Context<'_>, arguments: Arguments) -> Result<usize> {
    let (from, count) = (arguments.u64(2), arguments.usize(3));
    let len = match (arguments.i32(0), from) {
        (operation::INSTANTIATE_IOV, 0) => 0,
        (operation::INSTANTIATE_IOV, _) => {
            IoBuffer::vector(&context.mm(), from, count as u32 as usize)?.remaining()
        }
        _ => {
            if from != 0 {
                check_range(from, count.min(RW_MAX))?;
            }
            count
        }
    };
    match len > PAYLOAD_MAX {
        true => Err(EINVAL.because("a payload beyond 1 MiB")),
        false => Err(without_authority()),
    }
}

fn reject(error: i32) -> Result<usize> {
    // MAX_ERRNO, and what only the kernel may say to itself (ERESTARTSYS and its kin).
    const ERRNO_MAX: i32 = 4095;
    const OWN: [i32; 4] = [512, 513, 514, 516];
    match (1..ERRNO_MAX).contains(&error) && !OWN.contains(&error) {
        true => Err(without_authority()),
        false => Err(EINVAL.because("not an error")),
    }
}

fn set_destination(context: &Context<'_>, number: i32) -> Result<usize> {
    if number == NO_CHANGE {
        return context.keys(|keys| Ok(keys.rings.destination as usize));
    }
    let destination = Destination::from_number(number)?;
    let old = context.keys(|keys| Ok(keys.set_destination(destination)))?;
    Ok(old as usize)
}

fn restrict(context: &Context<'_>, arguments: Arguments) -> Result<usize> {
    let (kind, rule) = (arguments.u64(2), arguments.u64(3));
    // The keyring is looked at first.
    let id = arguments.i32(1);
    context.keys(|keys| keys.lookup(id, Create::No, Need::SetAttribute))?;
    if (kind == 0) != (rule == 0) {
        return Err(EINVAL.because("a rule needs a key type, and a key type a rule"));
    }
    if kind == 0 {
        context.keys(|keys| keys.restrict(id, Restriction::Everything))?;
        return Ok(0);
    }
    let kind = context.key_type(kind)?;
    context.key_description(rule)?;
    context.keys(|keys| keys.restrict(id, Restriction::OfType(&kind)))?;
    Ok(0)
}

fn capabilities(context: &Context<'_>, arguments: Arguments) -> Result<usize> {
    let (to, room) = (arguments.u64(1), arguments.usize(2));
    let mm = context.mm();
    mm.write(to, &CAPABILITIES[..room.min(CAPABILITIES.len())])?;
    // What a later kernel might say is not there.
    const ZEROS: [u8; 64] = [0; 64];
    let mut at = CAPABILITIES.len();
    while at < room {
        let some = ZEROS.len().min(room - at);
        mm.write(to.wrapping_add(at as u64), &ZEROS[..some])?;
        at += some;
    }
    Ok(CAPABILITIES.len())
}
