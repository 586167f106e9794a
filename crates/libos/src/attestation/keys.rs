//! Keys by name: two sealing keys of the CPU, and those that programs put here (a coordinator's
//! agent, for protected volumes).

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use bulla_sgx::{Attributes, KeyName, KeyRequest, flags, key_policy};

use super::own_report;
use crate::Result;
use crate::errno::{EACCES, EEXIST, ENOENT, ENOSPC};
use crate::platform::platform;
use crate::sync::SpinLock;

/// Bytes of a key.
pub const KEY_SIZE: usize = 16;
/// Most keys that programs can put here; a manifest names a few.
const KEYS_MAX: usize = 256;
const NAME_MAX: usize = 128;

/// The sealing keys, by Gramine's names.
const SEALING: [(&str, u16); 2] = [
    ("_sgx_mrenclave", key_policy::MRENCLAVE),
    ("_sgx_mrsigner", key_policy::MRSIGNER),
];

struct Named {
    name: String,
    key: Option<[u8; KEY_SIZE]>,
}

static KEYS: SpinLock<Vec<Named>> = SpinLock::new(Vec::new());

/// Names of all keys.
pub fn names() -> Vec<String> {
    let sealing = SEALING.iter().map(|(name, _)| name.to_string());
    let keys = KEYS.lock();
    sealing
        .chain(keys.iter().map(|key| key.name.clone()))
        .collect()
}

/// Whether a key of this name exists (it may not be set yet).
pub fn exists(name: &str) -> bool {
    is_sealing(name) || KEYS.lock().iter().any(|key| key.name == name)
}

/// Whether it is one of the CPU's, which cannot be written.
pub fn is_sealing(name: &str) -> bool {
    SEALING.iter().any(|(sealing, _)| *sealing == name)
}

/// A key without a value.
pub fn create(name: &str) -> Result<()> {
    let mut keys = KEYS.lock();
    if keys.iter().any(|key| key.name == name) || is_sealing(name) {
        return Err(EEXIST);
    }
    if keys.len() >= KEYS_MAX || name.len() > NAME_MAX || name.is_empty() {
        return Err(ENOSPC.because("too many keys, or too long a name"));
    }
    keys.push(Named {
        name: name.to_string(),
        key: None,
    });
    Ok(())
}

/// Sets a key.
pub fn set(name: &str, bytes: &[u8]) -> Result<()> {
    let value = bytes
        .try_into()
        .map_err(|_| EACCES.because("a key has 16 bytes"))?;
    let mut keys = KEYS.lock();
    let key = keys.iter_mut().find(|key| key.name == name).ok_or(ENOENT)?;
    key.key = Some(value);
    Ok(())
}

/// A key; `None` while it is not set.
pub fn get(name: &str) -> Result<Option<[u8; KEY_SIZE]>> {
    if let Some((_, policy)) = SEALING.iter().find(|(sealing, _)| *sealing == name) {
        return sealing_key(*policy).map(Some);
    }
    let keys = KEYS.lock();
    let key = keys.iter().find(|key| key.name == name).ok_or(ENOENT)?;
    Ok(key.key)
}

/// EGETKEY for sealing. Debug and production enclaves never share one, nor do enclaves of other
/// attributes, extended state, security versions or configuration ids.
fn sealing_key(policy: u16) -> Result<[u8; KEY_SIZE]> {
    let own = own_report()?;
    let kss = own.attributes.flags & flags::KSS != 0;
    let request = KeyRequest {
        key_name: KeyName::Seal as u16,
        key_policy: policy | if kss { key_policy::CONFIG_ID } else { 0 },
        isv_svn: own.isv_svn,
        cet_attributes_mask: 0,
        cpu_svn: own.cpu_svn,
        attribute_mask: Attributes {
            flags: u64::MAX,
            xfrm: u64::MAX,
        },
        key_id: [0; 32],
        misc_mask: u32::MAX,
        config_svn: own.config_svn,
    };
    platform().key(&request.to_bytes())
}
