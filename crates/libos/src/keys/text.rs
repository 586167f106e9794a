//! /proc/keys and /proc/key-users (keyrings(7)).

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use super::store::limits;
use super::{Access, Found, Key, STORE, State, access::Wanted, permission, with};
use crate::{Result, Thread};

/// What Linux shows for no group (/proc/sys/kernel/overflowgid).
const NO_GROUP: u32 = 65_534;

/// A key's group as it is shown.
pub(super) fn group(gid: u32) -> u32 {
    if gid == u32::MAX { NO_GROUP } else { gid }
}

/// /proc/keys: the keys that the reader may view.
pub fn keys(thread: &Arc<Thread>) -> Result<String> {
    with(thread, |access| {
        let mut text = String::new();
        for (serial, key) in access.store.iter() {
            let wanted = Wanted {
                exactly: Some(serial),
                ..Wanted::by_name(key.index.clone())
            };
            let found = Found {
                serial,
                is_possessed: access.search_own(&wanted).is_ok(),
            };
            if access.check(found, permission::VIEW).is_ok() {
                text.push_str(&line(access, serial, key));
            }
        }
        Ok(text)
    })
}

fn line(access: &Access<'_>, serial: u32, key: &Key) -> String {
    let flag = |is_set: bool, letter: char| if is_set { letter } else { '-' };
    let is_negative = matches!(key.state, State::Negative(_));
    // Instantiated, revoked, dead, counted, under construction, negative, invalidated.
    let flags: String = [
        'I',
        flag(key.is_revoked, 'R'),
        '-',
        flag(key.is_counted, 'Q'),
        '-',
        flag(is_negative, 'N'),
        flag(key.is_invalidated, 'i'),
    ]
    .into_iter()
    .collect();
    format!(
        "{serial:08x} {flags} {:5} {:>4} {:08x} {:5} {:5} {:<9.9} {}\n",
        key.holders,
        remaining(key, access.now),
        key.permissions,
        key.uid,
        group(key.gid),
        key.kind().name(),
        description(key, is_negative)
    )
}

/// The time that is left, in the largest unit of which there is one.
fn remaining(key: &Key, now: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const WEEK: u64 = 7 * DAY;
    let Some(expiry) = key.expiry else {
        return String::from("perm");
    };
    match expiry.saturating_sub(now) {
        0 => String::from("expd"),
        left @ ..MINUTE => format!("{left}s"),
        left @ MINUTE..HOUR => format!("{}m", left / MINUTE),
        left @ HOUR..DAY => format!("{}h", left / HOUR),
        left @ DAY..WEEK => format!("{}d", left / DAY),
        left => format!("{}w", left / WEEK),
    }
}

fn description(key: &Key, is_negative: bool) -> String {
    use super::key::Payload;
    let name = String::from_utf8_lossy(&key.index.description);
    if is_negative {
        return name.into_owned();
    }
    match &key.payload {
        Payload::Links(links) if links.is_empty() => format!("{name}: empty"),
        Payload::Links(links) => format!("{name}: {}", links.len()),
        Payload::Bytes(bytes) if key.kind() == super::Kind::BigKey => {
            format!("{name}: {} [buff]", bytes.len())
        }
        Payload::Bytes(bytes) => format!("{name}: {}", bytes.len()),
    }
}

/// /proc/key-users: what each user has of what he may have.
pub fn users() -> String {
    let store = STORE.lock();
    let line = |(uid, usage): (&u32, &super::store::Usage)| {
        let (keys_max, bytes_max) = limits(*uid);
        format!(
            "{uid:5}: {:5} {keys}/{keys} {}/{keys_max} {}/{bytes_max}\n",
            // The kernel's own reference is one more.
            usage.keys + 1,
            usage.counted,
            usage.bytes,
            keys = usage.keys,
        )
    };
    store.usage.iter().map(line).collect()
}
