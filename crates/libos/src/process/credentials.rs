//! Who a process is: user and group ids, capabilities.
//!
//! Credentials belong to the process, not to each thread as on Linux: every libc changes them for
//! all threads together.

use alloc::vec::Vec;

use crate::Result;
use crate::errno::EPERM;

/// What a container under Docker's defaults may do: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL,
/// SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

pub const CAP_CHOWN: u32 = 0;
pub const CAP_DAC_OVERRIDE: u32 = 1;
pub const CAP_DAC_READ_SEARCH: u32 = 2;
pub const CAP_FOWNER: u32 = 3;
pub const CAP_FSETID: u32 = 4;
pub const CAP_KILL: u32 = 5;
pub const CAP_SETGID: u32 = 6;
pub const CAP_SETUID: u32 = 7;
pub const CAP_SETPCAP: u32 = 8;
pub const CAP_IPC_LOCK: u32 = 14;
pub const CAP_SYS_PTRACE: u32 = 19;
pub const CAP_SYS_ADMIN: u32 = 21;

/// The secure bits of capabilities(7); each is followed by its lock.
pub mod secure {
    pub const NOROOT: u32 = 1 << 0;
    pub const NO_SETUID_FIXUP: u32 = 1 << 2;
    pub const KEEP_CAPS: u32 = 1 << 4;
    pub const NO_CAP_AMBIENT_RAISE: u32 = 1 << 6;
    pub const BITS: u32 = NOROOT | NO_SETUID_FIXUP | KEEP_CAPS | NO_CAP_AMBIENT_RAISE;
    pub const LOCKS: u32 = BITS << 1;
}
pub const CAP_SYS_CHROOT: u32 = 18;
pub const CAP_SYS_NICE: u32 = 23;
pub const CAP_SYS_RESOURCE: u32 = 24;
/// Highest capability number known.
pub const CAP_LAST: u32 = 40;

/// By which of its ids a caller asks (ptrace(2), "Ptrace access mode checking").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    FileIds,
    RealIds,
}

/// Ids as setresuid(2) and setfsuid(2) know them, and capabilities(7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub ruid: u32,
    pub euid: u32,
    pub suid: u32,
    pub fsuid: u32,
    pub rgid: u32,
    pub egid: u32,
    pub sgid: u32,
    pub fsgid: u32,
    pub groups: Vec<u32>,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
    pub bounding: u64,
    /// PR_SET_SECUREBITS, PR_SET_KEEPCAPS: [`secure`].
    pub secure_bits: u32,
}

impl Default for Credentials {
    fn default() -> Credentials {
        Credentials::new(0, 0, Vec::new())
    }
}

impl Credentials {
    /// A user as a container starts with it: root has Docker's default capabilities.
    pub fn new(uid: u32, gid: u32, groups: Vec<u32>) -> Credentials {
        let own = if uid == 0 { DEFAULT_CAPABILITIES } else { 0 };
        Credentials {
            ruid: uid,
            euid: uid,
            suid: uid,
            fsuid: uid,
            rgid: gid,
            egid: gid,
            sgid: gid,
            fsgid: gid,
            groups,
            effective: own,
            permitted: own,
            inheritable: 0,
            ambient: 0,
            bounding: DEFAULT_CAPABILITIES,
            secure_bits: 0,
        }
    }

    /// Whether a capability is effective.
    pub fn has(&self, capability: u32) -> bool {
        self.effective >> capability & 1 != 0
    }

    /// Whether a signal from this user to `target` is allowed (kill(2)).
    pub fn may_signal(&self, target: &Credentials) -> bool {
        self.has(CAP_KILL)
            || [self.euid, self.ruid]
                .iter()
                .any(|&id| id == target.ruid || id == target.suid)
    }

    /// Whether a process with these credentials may look into another one: the same user's and
    /// group's with no capability more, that has not changed its ids since it was executed
    /// (`dumpable`); or any, with CAP_SYS_PTRACE.
    pub fn may_examine(&self, by: By, target: &Credentials, dumpable: bool) -> bool {
        let (uid, gid, capabilities) = match by {
            By::FileIds => (self.fsuid, self.fsgid, self.effective),
            By::RealIds => (self.ruid, self.rgid, self.permitted),
        };
        let same = [target.ruid, target.euid, target.suid] == [uid; 3]
            && [target.rgid, target.egid, target.sgid] == [gid; 3];
        same && dumpable && target.permitted & !capabilities == 0 || self.has(CAP_SYS_PTRACE)
    }

    /// Whether `gid` is the effective or a supplementary group.
    pub fn in_group(&self, gid: u32) -> bool {
        self.fsgid == gid || self.groups.contains(&gid)
    }

    /// After a change of user ids: what capabilities(7) says of transitions from and to 0.
    pub fn adjust_capabilities(&mut self, old: &Credentials) {
        if self.secure_bits & secure::NO_SETUID_FIXUP != 0 {
            return;
        }
        let was_root = [old.ruid, old.euid, old.suid].contains(&0);
        let is_root = [self.ruid, self.euid, self.suid].contains(&0);
        if was_root && !is_root {
            if self.secure_bits & secure::KEEP_CAPS == 0 {
                self.permitted = 0;
                self.effective = 0;
            }
            self.ambient = 0;
        }
        if old.euid == 0 && self.euid != 0 {
            self.effective = 0;
        }
        if old.euid != 0 && self.euid == 0 {
            self.effective = self.permitted;
        }
    }

    /// After a change of fsuid alone: the capabilities over files come and go with user 0.
    pub fn adjust_file_capabilities(&mut self, old: u32) {
        // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, LINUX_IMMUTABLE, MKNOD, MAC_OVERRIDE.
        const OVER_FILES: u64 = 0b1_1111 | 1 << 9 | 1 << 27 | 1 << 32;
        if self.secure_bits & secure::NO_SETUID_FIXUP != 0 {
            return;
        }
        if old == 0 && self.fsuid != 0 {
            self.effective &= !OVER_FILES;
        }
        if old != 0 && self.fsuid == 0 {
            self.effective |= self.permitted & OVER_FILES;
        }
    }

    /// execve: a set-user-ID or set-group-ID program (`None`: not one), capabilities anew.
    pub fn exec(&mut self, set_uid: Option<u32>, set_gid: Option<u32>) {
        if let Some(uid) = set_uid {
            self.euid = uid;
        }
        if let Some(gid) = set_gid {
            self.egid = gid;
        }
        (self.suid, self.fsuid) = (self.euid, self.euid);
        (self.sgid, self.fsgid) = (self.egid, self.egid);
        let privileged = set_uid.is_some() || set_gid.is_some();
        if privileged {
            self.ambient = 0;
        }
        let root_counts = self.secure_bits & secure::NOROOT == 0;
        if root_counts && (self.euid == 0 || self.ruid == 0) {
            self.permitted = self.bounding | self.inheritable;
            self.effective = if self.euid == 0 { self.permitted } else { 0 };
        } else {
            self.permitted = self.ambient;
            self.effective = self.ambient;
        }
        self.secure_bits &= !secure::KEEP_CAPS;
    }

    /// PR_SET_SECUREBITS: EPERM without CAP_SETPCAP, for unknown bits, locked ones and locks that are
    /// taken back.
    pub fn set_secure_bits(&mut self, bits: u64) -> Result<()> {
        let known = u64::from(secure::BITS | secure::LOCKS);
        let old = self.secure_bits;
        let new = (bits & known) as u32;
        let locked = (old & secure::LOCKS) >> 1;
        if bits & !known != 0
            || locked & (old ^ new) != 0
            || old & secure::LOCKS & !new != 0
            || !self.has(CAP_SETPCAP)
        {
            return Err(EPERM.because("secure bits"));
        }
        self.secure_bits = new;
        Ok(())
    }

    /// PR_SET_KEEPCAPS: EPERM where the bit is locked.
    pub fn keep_capabilities(&mut self, keep: bool) -> Result<()> {
        if self.secure_bits & secure::KEEP_CAPS << 1 != 0 {
            return Err(EPERM.because("SECBIT_KEEP_CAPS_LOCKED is set"));
        }
        self.secure_bits &= !secure::KEEP_CAPS;
        self.secure_bits |= if keep { secure::KEEP_CAPS } else { 0 };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_root_drops_capabilities() {
        let root = Credentials::default();
        assert!(root.has(CAP_KILL));
        let mut user = root.clone();
        (user.ruid, user.euid, user.suid, user.fsuid) = (1000, 1000, 1000, 1000);
        user.adjust_capabilities(&root);
        assert_eq!((user.effective, user.permitted), (0, 0));
        assert!(!user.may_signal(&root));
        assert!(root.may_signal(&user));
    }

    #[test]
    fn secure_bits_take_root_its_place() {
        let root = Credentials::new(0, 0, Vec::new());
        let mut user = root.clone();
        assert_eq!(user.set_secure_bits(1 << 8), Err(EPERM));
        assert_eq!(user.set_secure_bits(0x14 | 0x20), Ok(()));
        assert_eq!(user.set_secure_bits(0x14), Err(EPERM));
        assert_eq!(user.set_secure_bits(0x24), Err(EPERM));
        assert_eq!(user.keep_capabilities(false), Err(EPERM));
        (user.ruid, user.euid, user.suid, user.fsuid) = (7, 7, 7, 7);
        user.adjust_capabilities(&root);
        assert_eq!(user.effective, root.effective);
        let mut fixed = root.clone();
        assert_eq!(fixed.set_secure_bits(u64::from(secure::NOROOT)), Ok(()));
        fixed.exec(None, None);
        assert_eq!((fixed.permitted, fixed.effective), (0, 0));
        assert_eq!(fixed.set_secure_bits(0), Err(EPERM));
    }

    #[test]
    fn only_equals_look_into_each_other() {
        let root = Credentials::default();
        let user = Credentials::new(1000, 1000, Vec::new());
        assert!(user.may_examine(By::FileIds, &user, true));
        assert!(!user.may_examine(By::FileIds, &user, false));
        assert!(!root.may_examine(By::RealIds, &user, true));
        let mut more = user.clone();
        more.permitted = 1 << CAP_KILL;
        assert!(!user.may_examine(By::RealIds, &more, true));
        let mut tracer = root.clone();
        tracer.effective |= 1 << CAP_SYS_PTRACE;
        assert!(tracer.may_examine(By::RealIds, &user, false));
    }

    #[test]
    fn a_set_user_id_program_gains_root() {
        let mut user = Credentials::new(1000, 1000, Vec::new());
        user.exec(Some(0), None);
        assert_eq!(
            (user.ruid, user.euid, user.suid, user.fsuid),
            (1000, 0, 0, 0)
        );
        assert!(user.has(CAP_SETUID));
    }
}
