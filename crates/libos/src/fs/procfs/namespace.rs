//! /proc/<pid>/ns: the container has one namespace of each kind, which all its processes are in. They
//! have the numbers of a machine's first ones.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::any::Any;

use crate::Result;
use crate::errno::{EINVAL, ENOTTY, EPERM};
use crate::fs::file::{ANONYMOUS_DEVICE, FileOps, OpenFile, anonymous_metadata, flags};
use crate::fs::inode::Metadata;
use crate::fs::path::PathRef;
use crate::process::clone::CloneFlags;
use crate::syscall::Context;

/// A kind of namespace: its name, what /proc shows, its number (PROC_*_INIT_INO of linux/proc_ns.h and
/// its successors), and the flag of clone(2) that would make a new one.
#[derive(Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: &'static str,
    kind: &'static str,
    number: u64,
    flag: u32,
}

const fn row(name: &'static str, kind: &'static str, number: u64, flag: u32) -> Namespace {
    Namespace {
        name,
        kind,
        number,
        flag,
    }
}

pub static ALL: [Namespace; 10] = [
    row("cgroup", "cgroup", 4_026_531_835, 0x0200_0000),
    row("ipc", "ipc", 4_026_531_839, 0x0800_0000),
    row("mnt", "mnt", 4_026_531_841, 0x0002_0000),
    row("net", "net", 4_026_531_840, 0x4000_0000),
    row("pid", "pid", 4_026_531_836, 0x2000_0000),
    row("pid_for_children", "pid", 4_026_531_836, 0x2000_0000),
    row("time", "time", 4_026_531_834, 0x80),
    row("time_for_children", "time", 4_026_531_834, 0x80),
    row("user", "user", 4_026_531_837, 0x1000_0000),
    row("uts", "uts", 4_026_531_838, 0x0400_0000),
];

impl Namespace {
    /// What the link says.
    pub fn target(&self) -> String {
        format!("{}:[{}]", self.kind, self.number)
    }

    /// Where it leads.
    pub fn place(&'static self) -> Result<PathRef> {
        crate::fs::anonymous::place(&OpenFile::new(Arc::new(NamespaceFile(self)), 0))
    }
}

/// A namespace as a file: something to compare.
pub struct NamespaceFile(&'static Namespace);

/// The flag of clone(2) for an open namespace; `None` for any other file.
pub fn namespace_flag(file: &Arc<dyn FileOps>) -> Option<u32> {
    let namespace = file.as_any().downcast_ref::<NamespaceFile>()?;
    Some(namespace.0.flag)
}

impl FileOps for NamespaceFile {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Metadata {
        Metadata {
            device: ANONYMOUS_DEVICE + 2,
            inode: self.0.number,
            mode: 0o100_444,
            ..anonymous_metadata()
        }
    }

    /// ioctl_nsfs(2).
    fn ioctl(
        &self,
        context: &mut Context<'_>,
        _file: &OpenFile,
        request: u32,
        argument: u64,
    ) -> Result<usize> {
        const NS_GET_USERNS: u32 = 0xb701;
        const NS_GET_PARENT: u32 = 0xb702;
        const NS_GET_NSTYPE: u32 = 0xb703;
        const NS_GET_OWNER_UID: u32 = 0xb704;
        const CLONE_NEWUSER: u32 = CloneFlags::NEWUSER.bits() as u32;
        const CLONE_NEWPID: u32 = CloneFlags::NEWPID.bits() as u32;
        match request {
            // The container's root owns it.
            NS_GET_OWNER_UID if self.0.flag == CLONE_NEWUSER => {
                context.mm().write(argument, &[0; 4])?;
                Ok(0)
            }
            NS_GET_OWNER_UID => Err(EINVAL.because("not a user namespace")),
            NS_GET_NSTYPE => Ok(self.0.flag as usize),
            NS_GET_PARENT if !matches!(self.0.flag, CLONE_NEWUSER | CLONE_NEWPID) => {
                Err(EINVAL.because("such namespaces have no parent"))
            }
            NS_GET_USERNS if self.0.flag != CLONE_NEWUSER => {
                let user = ALL.iter().find(|each| each.flag == CLONE_NEWUSER);
                let file = NamespaceFile(user.ok_or(EPERM)?);
                context.add_file(OpenFile::new(Arc::new(file), flags::RDONLY), true)
            }
            NS_GET_PARENT | NS_GET_USERNS => Err(EPERM.because("outside of the container")),
            _ => Err(ENOTTY),
        }
    }

    fn describe(&self) -> String {
        self.0.target()
    }
}
