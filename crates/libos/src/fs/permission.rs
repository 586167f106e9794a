//! Who may do what: the checks of path_resolution(7) and capabilities(7).

use alloc::sync::Arc;

use super::acl;
use super::inode::{FileType, Inode, Metadata};
use crate::errno::{EACCES, EPERM};
use crate::process::credentials::{CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, Credentials};
use crate::{Result, Thread};

/// Execute a file, search a directory.
pub const EXECUTE: u32 = 1;
pub const WRITE: u32 = 2;
pub const READ: u32 = 4;

/// On whose behalf the file system is used.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// `None`: the kernel itself, which may do anything.
    pub thread: Option<&'a Arc<Thread>>,
    /// Instead of the process's own (access(2) checks with the real ids).
    pub credentials: Option<&'a Credentials>,
}

impl<'a> Caller<'a> {
    /// The kernel.
    pub const KERNEL: Caller<'static> = Caller {
        thread: None,
        credentials: None,
    };

    pub fn new(thread: &'a Arc<Thread>) -> Caller<'a> {
        Caller {
            thread: Some(thread),
            credentials: None,
        }
    }

    /// Runs `check` with the credentials in force; the kernel has none. They are locked: `check` asks
    /// no inode, since one of procfs asks for its process's credentials, which may be the same.
    fn with<R>(&self, kernel: R, check: impl FnOnce(&Credentials) -> R) -> R {
        match (self.credentials, self.thread) {
            (Some(credentials), _) => check(credentials),
            (None, Some(thread)) => check(&thread.process.credentials.lock()),
            (None, None) => kernel,
        }
    }

    /// File system uid and gid.
    pub fn ids(&self) -> (u32, u32) {
        self.with((0, 0), |credentials| (credentials.fsuid, credentials.fsgid))
    }

    /// What the caller's new files are not to grant; the kernel says what it means.
    pub fn umask(&self) -> u32 {
        self.thread.map_or(0, |thread| thread.fs().umask())
    }

    /// Whether the caller is in a group.
    pub fn in_group(&self, gid: u32) -> bool {
        self.with(true, |credentials| in_group(credentials, gid))
    }

    /// Whether the caller has a capability.
    pub fn has(&self, capability: u32) -> bool {
        self.with(true, |credentials| credentials.has(capability))
    }

    /// Checks read, write and execute permission; EACCES.
    pub fn check(&self, inode: &dyn Inode, wanted: u32) -> Result<()> {
        let mode = inode.mode();
        // Only where the group's bits, the mask, grant anything does a list matter.
        let acl = if mode & 0o070 != 0 {
            inode.acl(acl::Kind::Access)?
        } else {
            None
        };
        // Searching a directory that everyone may search is most of every path walk.
        if wanted == EXECUTE && mode & 0o111 == 0o111 && acl.is_none() {
            return Ok(());
        }
        if let Some(decided) = self.with(Some(Ok(())), |credentials| {
            check_capabilities(credentials, mode, wanted)
        }) {
            return decided;
        }
        if let Some(acl) = acl {
            let Metadata { uid, gid, .. } = inode.metadata();
            let granted = self.with(true, |credentials| {
                if uid == credentials.fsuid {
                    return mode >> 6 & wanted == wanted;
                }
                let member = |gid| in_group(credentials, gid);
                acl.permits(credentials.fsuid, gid, member, wanted)
            });
            return if granted {
                Ok(())
            } else {
                Err(EACCES.because("access control list"))
            };
        }
        // The three classes agree: no need to know whose it is.
        let class = if mode >> 6 & 7 == mode & 7 && mode >> 3 & 7 == mode & 7 {
            mode
        } else {
            let Metadata { uid, gid, .. } = inode.metadata();
            self.with(mode >> 6, |credentials| {
                if uid == credentials.fsuid {
                    mode >> 6
                } else if in_group(credentials, gid) {
                    mode >> 3
                } else {
                    mode
                }
            })
        };
        if class & wanted == wanted {
            Ok(())
        } else {
            Err(EACCES.because("permission bits"))
        }
    }

    /// Whether the caller owns the inode or stands above its owner; EPERM.
    pub fn check_owner(&self, inode: &dyn Inode) -> Result<()> {
        if self.has(CAP_FOWNER) || inode.metadata().uid == self.ids().0 {
            Ok(())
        } else {
            Err(EPERM.because("only the owner may"))
        }
    }

    /// Whether a name in `directory` that stands for `child` may be removed: write permission,
    /// and in sticky directories ownership.
    pub fn check_delete(&self, directory: &dyn Inode, child: &dyn Inode) -> Result<()> {
        self.check(directory, WRITE | EXECUTE)?;
        let sticky = directory.mode() & 0o1000 != 0;
        let owns = |inode: &dyn Inode| inode.metadata().uid == self.ids().0;
        if !sticky || self.has(CAP_FOWNER) || owns(child) || owns(directory) {
            Ok(())
        } else {
            Err(EPERM.because("sticky directory"))
        }
    }
}

fn in_group(credentials: &Credentials, gid: u32) -> bool {
    credentials.fsgid == gid || credentials.groups.contains(&gid)
}

/// What capabilities decide before anyone asks whose the file is.
fn check_capabilities(credentials: &Credentials, mode: u32, wanted: u32) -> Option<Result<()>> {
    let directory = FileType::from_mode(mode) == Some(FileType::Directory);
    if credentials.has(CAP_DAC_OVERRIDE) {
        // CAP_DAC_OVERRIDE: everything but executing a file that nobody may execute.
        if wanted & EXECUTE == 0 || directory || mode & 0o111 != 0 {
            return Some(Ok(()));
        }
        return Some(Err(EACCES.because("no execute permission")));
    }
    let reads = wanted == READ || directory && wanted & WRITE == 0;
    (credentials.has(CAP_DAC_READ_SEARCH) && reads).then_some(Ok(()))
}
