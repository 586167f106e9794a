//! The user that an image names, resolved from its own /etc/passwd and /etc/group.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// A resolved user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Home directory, when the user is in /etc/passwd.
    pub home: Option<Vec<u8>>,
}

fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty() && line[0] != b'#')
        .map(|line| line.split(|&byte| byte == b':').collect())
}

fn number(text: &[u8]) -> Option<u32> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// Resolves `user` as image configurations write it: empty, `name`, `uid`, `name:group`, `uid:gid`.
/// Numbers need no entry in the files. The error is one line that names the remedy.
pub fn resolve(user: &str, passwd: &[u8], group: &[u8]) -> Result<User, String> {
    let (name, wanted_group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let by_name = lines(passwd).find(|f| f.len() >= 4 && f[0] == name.as_bytes());
    let id = number(name.as_bytes());
    let entry = match (by_name, id) {
        (Some(entry), _) => Some(entry),
        (None, Some(id)) => lines(passwd).find(|f| f.len() >= 4 && number(f[2]) == Some(id)),
        (None, None) => None,
    };
    let (uid, mut gid, login, home) = match (&entry, id) {
        (Some(fields), _) => (
            number(fields[2]).ok_or_else(|| format!("/etc/passwd: bad uid of user {name:?}"))?,
            number(fields[3]).ok_or_else(|| format!("/etc/passwd: bad gid of user {name:?}"))?,
            Some(fields[0]),
            fields.get(5).map(|home| home.to_vec()),
        ),
        (None, Some(id)) => (id, 0, None, None),
        (None, None) => {
            return Err(format!(
                "unknown user {name:?}: no such name in the image's /etc/passwd; \
                 set `user` to one that exists, or to a number"
            ));
        }
    };
    let mut groups = Vec::new();
    if let Some(wanted) = wanted_group {
        let by_name = lines(group).find(|f| f.len() >= 3 && f[0] == wanted.as_bytes());
        gid = by_name
            .and_then(|fields| number(fields[2]))
            .or_else(|| number(wanted.as_bytes()))
            .ok_or_else(|| {
                format!(
                    "unknown group {wanted:?}: no such name in the image's /etc/group; \
                     set `user` to a group that exists, or to a number"
                )
            })?;
    } else if let Some(login) = login {
        // Supplementary groups only without an explicit group, as runc does it.
        for fields in lines(group).filter(|f| f.len() >= 4) {
            if fields[3]
                .split(|&byte| byte == b',')
                .any(|member| member == login)
            {
                groups.extend(number(fields[2]));
            }
        }
    }
    if !groups.contains(&gid) {
        groups.insert(0, gid);
    }
    Ok(User {
        uid,
        gid,
        groups,
        home,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nredis:x:999:1000::/data:/bin/false\n";
    const GROUP: &[u8] = b"root:x:0:\nredis:x:1000:\nssl:x:77:redis,www\n";

    #[test]
    fn names_numbers_and_groups() {
        let root = resolve("", PASSWD, GROUP).unwrap();
        assert_eq!(
            (root.uid, root.gid, root.home.as_deref()),
            (0, 0, Some(&b"/root"[..]))
        );
        let redis = resolve("redis", PASSWD, GROUP).unwrap();
        assert_eq!(
            (redis.uid, redis.gid, &redis.groups[..]),
            (999, 1000, &[1000, 77][..])
        );
        let number = resolve("5000:6000", PASSWD, GROUP).unwrap();
        assert_eq!((number.uid, number.gid, number.home), (5000, 6000, None));
        assert_eq!(resolve("999", PASSWD, GROUP).unwrap().gid, 1000);
        assert_eq!(resolve("redis:ssl", PASSWD, GROUP).unwrap().gid, 77);
        assert!(
            resolve("nobody", PASSWD, GROUP)
                .unwrap_err()
                .contains("unknown user")
        );
        assert!(
            resolve("root:none", PASSWD, GROUP)
                .unwrap_err()
                .contains("unknown group")
        );
    }
}
