//! /proc, generated from the kernel's state.
//!
//! Nothing is kept: every lookup makes a new inode, every read from the start makes new text.
//! [`tree`] holds what does not belong to a process, [`process`] what does. /sys/class/net is made in
//! the same way, and here.

mod configuration;
mod namespace;
mod process;
mod query;
mod sysvipc;
mod text;
mod tree;

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use spin::Once;

use super::file::{FileOps, flags};
use super::inode::{
    Entry, FileId, FileType, FsStatistics, Inode, LinkTarget, Metadata, SetAttributes, Time,
};
use super::memfs::{PROC_MAGIC, SYSFS_MAGIC, anonymous_device};
use super::path::PathRef;
use super::permission::Caller;
use crate::Result;
use crate::errno::{EACCES, EINVAL, EIO, ENODEV, ENOENT, ENOTDIR, EPERM};
use crate::net::interfaces::sysfs::Node;
use crate::process::credentials::By;
use crate::process::{Process, table};
use namespace::Namespace;
pub use namespace::{NamespaceFile, namespace_flag};
use process::{PidEntry, PidFile, PidLink};
use text::TextFile;
use tree::Item;
pub use tree::{Setting, filesystem_names};

/// The root directory.
pub fn root() -> Arc<dyn Inode> {
    ProcNode::make(Kind::Static(&tree::ROOT))
}

/// The directory /sys/class/net.
pub fn interfaces() -> Arc<dyn Inode> {
    ProcNode::make(Kind::Interfaces(Node::Root))
}

fn device() -> u64 {
    static DEVICE: Once<u64> = Once::new();
    *DEVICE.call_once(anonymous_device)
}

/// What a node of /proc is.
#[derive(Clone)]
pub(super) enum Kind {
    /// Something that belongs to no process.
    Static(&'static Item),
    /// /proc/self and /proc/thread-self.
    SelfLink { thread: bool },
    /// /proc/<pid>, or /proc/<pid>/task/<tid>.
    Process {
        process: Arc<Process>,
        tid: Option<u32>,
    },
    /// A directory of a process: task, fd, fdinfo.
    PidDirectory {
        process: Arc<Process>,
        which: PidDirectory,
    },
    PidFile {
        process: Arc<Process>,
        tid: Option<u32>,
        which: PidFile,
    },
    PidLink {
        process: Arc<Process>,
        which: PidLink,
    },
    /// /proc/<pid>/fd/<fd>.
    Descriptor { process: Arc<Process>, fd: i32 },
    /// /proc/<pid>/fdinfo/<fd>.
    DescriptorInfo { process: Arc<Process>, fd: i32 },
    /// /proc/<pid>/ns/<name>.
    Namespace {
        process: Arc<Process>,
        which: &'static Namespace,
    },
    /// /sys/class/net and what is in it.
    Interfaces(Node),
}

/// Directories of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PidDirectory {
    Task,
    Descriptors,
    DescriptorInfo,
    Namespaces,
}

/// An inode of /proc.
pub struct ProcNode {
    kind: Kind,
}

/// /proc/sys/vm/max_map_count.
pub fn max_map_count() -> usize {
    tree::MAX_MAP_COUNT.value() as usize
}

/// /proc/sys/fs/lease-break-time, in seconds.
pub fn lease_break_time() -> u64 {
    tree::LEASE_BREAK_TIME.value()
}

/// The process whose directory /proc/<pid> an inode is.
pub fn process_of(inode: &Arc<dyn Inode>) -> Option<Arc<Process>> {
    match &inode.as_any().downcast_ref::<ProcNode>()?.kind {
        Kind::Process { process, .. } => Some(process.clone()),
        _ => None,
    }
}

impl ProcNode {
    fn make(kind: Kind) -> Arc<dyn Inode> {
        Arc::new(ProcNode { kind })
    }

    fn process(&self) -> Option<&Arc<Process>> {
        match &self.kind {
            Kind::Static(_) | Kind::SelfLink { .. } | Kind::Interfaces(_) => None,
            Kind::Process { process, .. }
            | Kind::PidDirectory { process, .. }
            | Kind::PidFile { process, .. }
            | Kind::PidLink { process, .. }
            | Kind::Namespace { process, .. }
            | Kind::Descriptor { process, .. }
            | Kind::DescriptorInfo { process, .. } => Some(process),
        }
    }

    fn number(&self) -> u64 {
        // By serial number: a process id that is used again is another directory.
        let of = |process: &Process, low: u64| (process.serial & 0xffff_ffff) << 20 | low | 1 << 52;
        match &self.kind {
            Kind::Static(item) => core::ptr::from_ref::<Item>(item) as u64 & 0xffff_ffff,
            Kind::SelfLink { thread } => 2 + u64::from(*thread),
            Kind::Interfaces(node) => node.number() | 1 << 40,
            Kind::Process { process, tid } => {
                of(process, 0) ^ tid.map_or(0, |tid| u64::from(tid) << 53)
            }
            Kind::PidDirectory { process, which, .. } => of(process, 1 + *which as u64),
            Kind::Namespace { process, which } => of(
                process,
                0x80 + (core::ptr::from_ref(*which) as u64 & 0x7fff),
            ),
            Kind::PidFile { process, which, .. } => of(process, 16 + *which as u64),
            Kind::PidLink { process, which } => of(process, 8 + *which as u64),
            Kind::Descriptor { process, fd } => of(process, 0x10000 + *fd as u64),
            Kind::DescriptorInfo { process, fd } => of(process, 0x40000 + *fd as u64),
        }
    }

    /// Whether the caller may look into the process (PTRACE_MODE_READ_FSCREDS).
    fn check_access(&self, caller: &Caller<'_>) -> Result<()> {
        let Some(process) = self.process() else {
            return Ok(());
        };
        match caller.thread {
            Some(thread) if !process.may_be_examined(&thread.process, By::FileIds) => {
                Err(EACCES.because("a process with other rights"))
            }
            _ => Ok(()),
        }
    }
}

fn decimal(name: &[u8]) -> Option<u32> {
    if name.is_empty() || name.len() > 10 || name[0] == b'0' && name.len() > 1 {
        return None;
    }
    core::str::from_utf8(name)
        .ok()?
        .parse()
        .ok()
        .filter(|_| name[0] != b'+')
}

impl Inode for ProcNode {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn id(&self) -> FileId {
        FileId {
            device: device(),
            inode: self.number(),
        }
    }

    fn size(&self) -> u64 {
        0
    }

    fn mode(&self) -> u32 {
        match &self.kind {
            Kind::Static(Item::Directory(_) | Item::Root(_)) => 0o040555,
            Kind::Static(Item::Text(_) | Item::View(_) | Item::Bytes(_)) => 0o100444,
            Kind::Static(Item::Setting(_) | Item::Variable(..)) => 0o100644,
            Kind::Static(Item::Link(_))
            | Kind::SelfLink { .. }
            | Kind::PidLink { .. }
            | Kind::Namespace { .. } => 0o120777,
            Kind::Process { .. } => 0o040555,
            Kind::PidDirectory {
                which: PidDirectory::Task,
                ..
            } => 0o040555,
            Kind::PidDirectory {
                which: PidDirectory::Namespaces,
                ..
            } => 0o040511,
            Kind::PidDirectory { .. } => 0o040500,
            Kind::PidFile { which, .. } => 0o100000 | which.mode(),
            Kind::Descriptor { process, fd } => {
                let file = process::file_of(process, *fd);
                let read = file.as_ref().is_ok_and(|file| file.is_readable());
                let write = file.as_ref().is_ok_and(|file| file.is_writable());
                0o120000 | if read { 0o500 } else { 0 } | if write { 0o300 } else { 0 }
            }
            Kind::DescriptorInfo { .. } => 0o100444,
            Kind::Interfaces(node) => match node.kind() {
                FileType::Directory => 0o040555,
                _ => 0o100444,
            },
        }
    }

    fn metadata(&self) -> Metadata {
        let (uid, gid) = self.process().map_or((0, 0), |process| {
            let credentials = process.credentials.lock();
            (credentials.euid, credentials.egid)
        });
        let now = Time::now();
        let mode = self.mode();
        let is_directory = FileType::from_mode(mode) == Some(FileType::Directory);
        Metadata {
            device: device(),
            inode: self.number(),
            links: if is_directory { 2 } else { 1 },
            mode,
            uid,
            gid,
            rdev: 0,
            size: if matches!(self.kind, Kind::Descriptor { .. }) {
                64
            } else {
                0
            },
            block_size: 1024,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
        }
    }

    fn set_attributes(&self, _change: &SetAttributes) -> Result<()> {
        Err(EPERM)
    }

    fn is_stable(&self) -> bool {
        false
    }

    fn open(
        self: Arc<Self>,
        caller: &Caller<'_>,
        _path: &PathRef,
        open_flags: u32,
    ) -> Result<Arc<dyn FileOps>> {
        let writes = open_flags & flags::ACCESS_MODE != flags::RDONLY;
        match &self.kind {
            Kind::PidFile { which, .. } => {
                if which.is_private() {
                    self.check_access(caller)?;
                }
                if writes && !which.is_writable() {
                    return Err(EACCES);
                }
            }
            Kind::Static(Item::Text(_) | Item::View(_) | Item::Bytes(_))
            | Kind::DescriptorInfo { .. }
            | Kind::Interfaces(_)
                if writes =>
            {
                return Err(EACCES);
            }
            _ => {}
        }
        Ok(TextFile::new(self.kind.clone()))
    }

    fn read_bytes(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        let text = text::generate(&self.kind, None)?;
        let from = text.get(offset as usize..).unwrap_or_default();
        let len = from.len().min(to.len());
        to[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }

    fn check_mappable(&self) -> Result<()> {
        // As Linux has it: the files of the root alone know mappings, and refuse them.
        match &self.kind {
            Kind::Static(item) if tree::is_top(item) => Err(EIO),
            _ => Err(ENODEV),
        }
    }

    fn truncate(&self, _size: u64) -> Result<()> {
        // O_TRUNC on a setting means nothing.
        Ok(())
    }

    fn lookup(&self, caller: &Caller<'_>, name: &[u8]) -> Result<Arc<dyn Inode>> {
        match &self.kind {
            Kind::Static(Item::Root(children)) => {
                match name {
                    b"self" => return Ok(ProcNode::make(Kind::SelfLink { thread: false })),
                    b"thread-self" => return Ok(ProcNode::make(Kind::SelfLink { thread: true })),
                    _ => {}
                }
                if let Some(pid) = decimal(name) {
                    if let Some(process) = table::process(pid) {
                        return Ok(ProcNode::make(Kind::Process { process, tid: None }));
                    }
                    // Threads have directories here too, only not listed.
                    let thread = table::thread(pid).ok_or(ENOENT)?;
                    let process = thread.process.clone();
                    return Ok(ProcNode::make(Kind::Process {
                        process,
                        tid: Some(pid),
                    }));
                }
                tree::find(children, name).map(|item| ProcNode::make(Kind::Static(item)))
            }
            Kind::Static(Item::Directory(children)) => {
                tree::find(children, name).map(|item| ProcNode::make(Kind::Static(item)))
            }
            Kind::Process { process, tid } => process::lookup(process, *tid, name),
            Kind::Interfaces(node) => Ok(ProcNode::make(Kind::Interfaces(node.lookup(name)?))),
            Kind::PidDirectory { process, which, .. } => match which {
                PidDirectory::Task => {
                    let tid = decimal(name).ok_or(ENOENT)?;
                    let threads = process.live_threads();
                    if !threads.iter().any(|thread| thread.tid() == tid) {
                        return Err(ENOENT);
                    }
                    let process = process.clone();
                    Ok(ProcNode::make(Kind::Process {
                        process,
                        tid: Some(tid),
                    }))
                }
                PidDirectory::Namespaces => {
                    let found = namespace::ALL
                        .iter()
                        .find(|each| each.name.as_bytes() == name);
                    Ok(ProcNode::make(Kind::Namespace {
                        process: process.clone(),
                        which: found.ok_or(ENOENT)?,
                    }))
                }
                PidDirectory::Descriptors | PidDirectory::DescriptorInfo => {
                    self.check_access(caller)?;
                    let fd = decimal(name)
                        .and_then(|fd| i32::try_from(fd).ok())
                        .ok_or(ENOENT)?;
                    process::file_of(process, fd)?;
                    let process = process.clone();
                    Ok(ProcNode::make(match which {
                        PidDirectory::Descriptors => Kind::Descriptor { process, fd },
                        _ => Kind::DescriptorInfo { process, fd },
                    }))
                }
            },
            _ => Err(ENOTDIR),
        }
    }

    fn read_dir(
        &self,
        caller: &Caller<'_>,
        from: u64,
        emit: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> Result<()> {
        // Positions: fixed names from 2 on, then numbers (pids, descriptors) from NUMBERS on.
        const NUMBERS: u64 = 0x1000;
        let mut fixed: Vec<(Cow<'_, str>, FileType)> = Vec::new();
        let named = |(name, item): &(&'static str, Item)| (Cow::from(*name), item.kind());
        let mut numbers: Vec<u32> = Vec::new();
        let mut number_kind = FileType::Directory;
        match &self.kind {
            Kind::Static(Item::Root(children)) => {
                fixed.push(("self".into(), FileType::Link));
                fixed.push(("thread-self".into(), FileType::Link));
                fixed.extend(children.iter().map(named));
                numbers.extend(table::processes().iter().map(|process| process.pid));
            }
            Kind::Static(Item::Directory(children)) => {
                fixed.extend(children.iter().map(named));
            }
            Kind::Process { tid, .. } => {
                let entries = process::ENTRIES.iter();
                fixed.extend(
                    entries
                        .filter(|(_, entry)| tid.is_none() || entry.is_of_thread())
                        .map(|(name, entry)| {
                            let kind = match entry {
                                PidEntry::File(_) => FileType::Regular,
                                PidEntry::Link(_) => FileType::Link,
                                PidEntry::Directory(_) | PidEntry::Common(_) => FileType::Directory,
                            };
                            (Cow::from(*name), kind)
                        }),
                );
            }
            Kind::Interfaces(node) => {
                let children = node.children()?.into_iter();
                fixed.extend(children.map(|(name, kind)| (Cow::from(name), kind)));
            }
            Kind::PidDirectory {
                process,
                which: PidDirectory::Task,
                ..
            } => {
                numbers.extend(process.live_threads().iter().map(|thread| thread.tid()));
            }
            Kind::PidDirectory {
                which: PidDirectory::Namespaces,
                ..
            } => {
                self.check_access(caller)?;
                let names = namespace::ALL.iter();
                fixed.extend(names.map(|each| (Cow::from(each.name), FileType::Link)));
            }
            Kind::PidDirectory { process, which, .. } => {
                self.check_access(caller)?;
                number_kind = match which {
                    PidDirectory::Descriptors => FileType::Link,
                    _ => FileType::Regular,
                };
                let list = process::files_of(process)?.list();
                numbers.extend(list.iter().map(|(fd, _)| *fd as u32));
            }
            _ => return Err(ENOTDIR),
        }
        numbers.sort_unstable();
        for (at, (name, kind)) in fixed.iter().enumerate() {
            let position = 2 + at as u64;
            if position < from {
                continue;
            }
            let name = name.as_bytes();
            let inode = self.number() + position;
            if !emit(Entry {
                name,
                inode,
                kind: *kind,
                next: position + 1,
            }) {
                return Ok(());
            }
        }
        for number in numbers {
            let position = NUMBERS + u64::from(number);
            if position < from {
                continue;
            }
            let name: String = format!("{number}");
            let inode = self.number() + position;
            let entry = Entry {
                name: name.as_bytes(),
                inode,
                kind: number_kind,
                next: position + 1,
            };
            if !emit(entry) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn read_link(&self, caller: &Caller<'_>) -> Result<Vec<u8>> {
        match &self.kind {
            Kind::Static(Item::Link(target)) => Ok(target.as_bytes().to_vec()),
            Kind::SelfLink { thread: is_thread } => {
                let thread = caller.thread.ok_or(ENOENT)?;
                let pid = thread.process.pid;
                Ok(match is_thread {
                    true => format!("{pid}/task/{}", thread.tid()),
                    false => format!("{pid}"),
                }
                .into_bytes())
            }
            Kind::PidLink { process, which } => {
                self.check_access(caller)?;
                let root = process::view(caller);
                Ok(process::link_target(process, *which)?.display_path(&root))
            }
            Kind::Namespace { which, .. } => {
                self.check_access(caller)?;
                Ok(which.target().into_bytes())
            }
            Kind::Descriptor { process, fd } => {
                self.check_access(caller)?;
                let root = process::view(caller);
                Ok(process::file_of(process, *fd)?.display_path(&root))
            }
            _ => Err(EINVAL),
        }
    }

    fn follow(&self, caller: &Caller<'_>) -> Result<LinkTarget> {
        match &self.kind {
            Kind::PidLink { process, which } => {
                self.check_access(caller)?;
                process::link_target(process, *which).map(LinkTarget::Jump)
            }
            Kind::Namespace { which, .. } => {
                self.check_access(caller)?;
                which.place().map(LinkTarget::Jump)
            }
            Kind::Descriptor { process, fd } => {
                self.check_access(caller)?;
                let file = process::file_of(process, *fd)?;
                process::place_of_file(&file).map(LinkTarget::Jump)
            }
            _ => self.read_link(caller).map(LinkTarget::Path),
        }
    }

    fn statistics(&self) -> FsStatistics {
        FsStatistics {
            magic: match self.kind {
                Kind::Interfaces(_) => SYSFS_MAGIC,
                _ => PROC_MAGIC,
            },
            block_size: 4096,
            ..FsStatistics::default()
        }
    }
}

#[cfg(test)]
mod tests;
