//! `/dev/attestation`, as Gramine has it.
//!
//! | File | Access | Content |
//! |---|---|---|
//! | `attestation_type` | r | `dcap`, or `none` where the host has no quoting service |
//! | `user_report_data` | rw | 64 bytes for the next report or quote |
//! | `target_info` | rw | TARGETINFO for the next report, 512 bytes |
//! | `my_target_info` | r | this enclave's |
//! | `report` | r | EREPORT, 432 bytes |
//! | `quote` | r | a quote |
//! | `keys/NAME` | rw | 16 bytes; `_sgx_mrenclave` and `_sgx_mrsigner` are the CPU's sealing keys |
//! | `image_key` | w | ours, while an encrypted image waits for it: its key, 32 bytes, from the agent |
//! | `collateral` | r | ours: what the host has to verify this machine's quotes with |
//!
//! Content is made when a file is opened. What is written counts at once; shorter writes are filled
//! up with zeros, longer ones cut off. Gramine has an enclave per process, hence these inputs are
//! each process's own here: two programs cannot get each other's quote. A child begins with a copy of
//! its parent's, and execve keeps them, so that what a shell writes is what its commands quote; in
//! Gramine a child begins with zeros. Errors are EACCES, as there.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicU32, Ordering};

use spin::Once;

use super::{Inputs, keys};
use crate::errno::{EACCES, EINVAL, EIO, EISDIR, ENOENT, ENOTDIR};
use crate::fs::file::{FileOps, OpenFile, SEEK, flags};
use crate::fs::inode::{
    Entry, FileId, FileType, FsStatistics, Inode, Metadata, NewNode, Owner, SetAttributes, Time,
};
use crate::fs::memfs::{PROC_MAGIC, anonymous_device};
use crate::fs::path::PathRef;
use crate::fs::permission::Caller;
use crate::fs::sealed;
use crate::sync::SpinLock;
use crate::user::IoBuffer;
use crate::{Result, Thread, attestation};

/// The root directory.
pub fn root() -> Arc<dyn Inode> {
    Node::make(Kind::Root)
}

/// Who owns the keys: the user that the container's first process runs as.
pub fn set_owner(uid: u32, gid: u32) {
    OWNER.0.store(uid, Ordering::Relaxed);
    OWNER.1.store(gid, Ordering::Relaxed);
}

static OWNER: (AtomicU32, AtomicU32) = (AtomicU32::new(0), AtomicU32::new(0));

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Root,
    Keys,
    Key(String),
    File(File),
    /// Not listed: no program ever sees it.
    ImageKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    AttestationType,
    Collateral,
    MyTargetInfo,
    Quote,
    Report,
    TargetInfo,
    UserReportData,
}

const KEYS: &str = "keys";
const IMAGE_KEY: &str = "image_key";
const FILES: [(&str, File); 7] = [
    ("attestation_type", File::AttestationType),
    ("collateral", File::Collateral),
    ("my_target_info", File::MyTargetInfo),
    ("quote", File::Quote),
    ("report", File::Report),
    ("target_info", File::TargetInfo),
    ("user_report_data", File::UserReportData),
];

impl Kind {
    fn is_writable(&self) -> bool {
        match self {
            Kind::Key(name) => !keys::is_sealing(name),
            Kind::ImageKey => true,
            Kind::File(File::TargetInfo | File::UserReportData) => true,
            _ => false,
        }
    }
}

struct Node {
    kind: Kind,
}

impl Node {
    fn make(kind: Kind) -> Arc<dyn Inode> {
        Arc::new(Node { kind })
    }

    fn number(&self) -> u64 {
        match &self.kind {
            Kind::Root => 1,
            Kind::Keys => 2,
            Kind::ImageKey => 3,
            Kind::File(file) => 16 + *file as u64,
            // Names differ; their numbers nearly always do.
            Kind::Key(name) => name.bytes().fold(1 << 32, |number: u64, byte| {
                number.wrapping_mul(31).wrapping_add(u64::from(byte))
            }),
        }
    }
}

fn device() -> u64 {
    static DEVICE: Once<u64> = Once::new();
    *DEVICE.call_once(anonymous_device)
}

impl Inode for Node {
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
            Kind::Root => 0o040555,
            Kind::Keys => 0o040755,
            Kind::Key(name) if keys::is_sealing(name) => 0o100400,
            Kind::Key(_) => 0o100600,
            Kind::ImageKey => 0o100200,
            Kind::File(_) if self.kind.is_writable() => 0o100666,
            Kind::File(_) => 0o100444,
        }
    }

    fn metadata(&self) -> Metadata {
        let now = Time::now();
        let mode = self.mode();
        let is_directory = FileType::from_mode(mode) == Some(FileType::Directory);
        let of_user = matches!(self.kind, Kind::Keys | Kind::Key(_));
        let (uid, gid) = if of_user {
            let (uid, gid) = &OWNER;
            (uid.load(Ordering::Relaxed), gid.load(Ordering::Relaxed))
        } else {
            (0, 0)
        };
        Metadata {
            device: device(),
            inode: self.number(),
            links: if is_directory { 2 } else { 1 },
            mode,
            uid,
            gid,
            rdev: 0,
            size: 0,
            block_size: 4096,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
        }
    }

    fn set_attributes(&self, _change: &SetAttributes) -> Result<()> {
        Err(EACCES)
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
        let mode = open_flags & flags::ACCESS_MODE;
        if mode != flags::RDONLY && !self.kind.is_writable() {
            return Err(EACCES);
        }
        let is_directory = matches!(self.kind, Kind::Root | Kind::Keys);
        let content = if mode == flags::WRONLY || is_directory {
            Vec::new()
        } else {
            content(&self.kind, caller.thread)?
        };
        Ok(Arc::new(Open {
            kind: self.kind.clone(),
            content: SpinLock::new(content),
        }))
    }

    fn read_bytes(&self, _offset: u64, _to: &mut [u8]) -> Result<usize> {
        Err(EIO)
    }

    fn truncate(&self, _size: u64) -> Result<()> {
        // O_TRUNC: what is written next counts.
        Ok(())
    }

    fn lookup(&self, _caller: &Caller<'_>, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let name = core::str::from_utf8(name).map_err(|_| ENOENT)?;
        match &self.kind {
            Kind::Root if name == KEYS => Ok(Node::make(Kind::Keys)),
            Kind::Root if name == IMAGE_KEY && sealed::is_waiting() => {
                Ok(Node::make(Kind::ImageKey))
            }
            Kind::Root => FILES
                .iter()
                .find(|(file, _)| *file == name)
                .map(|(_, file)| Node::make(Kind::File(*file)))
                .ok_or(ENOENT),
            Kind::Keys if keys::exists(name) => Ok(Node::make(Kind::Key(name.to_string()))),
            Kind::Keys => Err(ENOENT),
            _ => Err(ENOTDIR),
        }
    }

    fn create(&self, name: &[u8], node: NewNode<'_>, _owner: Owner) -> Result<Arc<dyn Inode>> {
        let (Kind::Keys, NewNode::Regular) = (&self.kind, node) else {
            return Err(EACCES);
        };
        let name = core::str::from_utf8(name).map_err(|_| EINVAL)?;
        keys::create(name)?;
        Ok(Node::make(Kind::Key(name.to_string())))
    }

    fn read_dir(
        &self,
        _caller: &Caller<'_>,
        from: u64,
        emit: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> Result<()> {
        let entries: Vec<(String, Kind)> = match &self.kind {
            Kind::Root => FILES
                .iter()
                .map(|(name, file)| (name.to_string(), Kind::File(*file)))
                .chain([(KEYS.to_string(), Kind::Keys)])
                .collect(),
            Kind::Keys => keys::names()
                .into_iter()
                .map(|name| (name.clone(), Kind::Key(name)))
                .collect(),
            _ => return Err(ENOTDIR),
        };
        for ((name, kind), position) in entries.into_iter().zip(2..) {
            if position < from {
                continue;
            }
            let node = Node { kind };
            let entry = Entry {
                name: name.as_bytes(),
                inode: node.number(),
                kind: FileType::from_mode(node.mode()).unwrap_or(FileType::Regular),
                next: position + 1,
            };
            if !emit(entry) {
                break;
            }
        }
        Ok(())
    }

    fn statistics(&self) -> FsStatistics {
        FsStatistics {
            magic: PROC_MAGIC,
            block_size: 4096,
            ..FsStatistics::default()
        }
    }
}

/// The process's inputs.
fn inputs(thread: Option<&Arc<Thread>>) -> Inputs {
    thread
        .and_then(|thread| thread.process.attestation.lock().clone())
        .map_or_else(Inputs::default, |inputs| *inputs)
}

/// What a file holds now.
fn content(kind: &Kind, thread: Option<&Arc<Thread>>) -> Result<Vec<u8>> {
    let refused = |_| EACCES.because("the platform gives no report");
    Ok(match kind {
        Kind::Root | Kind::Keys => return Err(EISDIR),
        Kind::ImageKey => return Err(EACCES),
        Kind::Key(name) => keys::get(name)?.map_or_else(Vec::new, |key| key.to_vec()),
        Kind::File(file) => match file {
            File::AttestationType if attestation::has_quotes() => b"dcap".to_vec(),
            File::AttestationType => b"none".to_vec(),
            File::Collateral => attestation::collateral()?,
            File::MyTargetInfo => {
                let target = attestation::own_target().map_err(refused)?;
                target.to_bytes().to_vec()
            }
            File::UserReportData => inputs(thread).report_data.to_vec(),
            File::TargetInfo => inputs(thread).target.to_vec(),
            File::Report => {
                let inputs = inputs(thread);
                attestation::report(&inputs.target, &inputs.report_data)
                    .map_err(refused)?
                    .to_vec()
            }
            File::Quote => attestation::quote(&inputs(thread).report_data)
                .map_err(|_| EACCES.because("no quote can be had"))?,
        },
    })
}

/// An open file.
struct Open {
    kind: Kind,
    content: SpinLock<Vec<u8>>,
}

/// Most bytes that one open file takes.
const WRITE_MAX: usize = 1024;

impl Open {
    /// Takes what has been written so far.
    fn save(&self, thread: &Arc<Thread>, bytes: &[u8]) -> Result<()> {
        let fill = |field: &mut [u8]| {
            let len = bytes.len().min(field.len());
            field.fill(0);
            field[..len].copy_from_slice(&bytes[..len]);
        };
        match &self.kind {
            Kind::Key(name) => keys::set(name, bytes),
            Kind::ImageKey => sealed::open(thread, bytes),
            Kind::File(file @ (File::UserReportData | File::TargetInfo)) => {
                let mut inputs = thread.process.attestation.lock();
                let inputs = inputs.get_or_insert_default();
                match file {
                    File::UserReportData => fill(&mut inputs.report_data),
                    _ => fill(&mut inputs.target),
                }
                Ok(())
            }
            _ => Err(EACCES),
        }
    }
}

impl FileOps for Open {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        let mut position = file.position.lock(thread);
        let read = self.read_at(thread, file, to, *position)?;
        *position += read as u64;
        Ok(read)
    }

    fn read_at(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        to: &mut IoBuffer<'_>,
        offset: u64,
    ) -> Result<usize> {
        if matches!(self.kind, Kind::Root | Kind::Keys) {
            return Err(EISDIR);
        }
        // Copied out of the lock: user memory may have to be brought in.
        let content = self.content.lock().clone();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| content.get(offset..))
            .unwrap_or_default();
        if rest.is_empty() { Ok(0) } else { to.put(rest) }
    }

    fn write(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        let mut position = file.position.lock(thread);
        let written = self.write_at(thread, file, from, *position)?;
        *position += written as u64;
        Ok(written)
    }

    fn write_at(
        &self,
        thread: &Arc<Thread>,
        _file: &OpenFile,
        from: &mut IoBuffer<'_>,
        offset: u64,
    ) -> Result<usize> {
        let offset = usize::try_from(offset).map_err(|_| EINVAL)?;
        let end = offset.checked_add(from.remaining()).ok_or(EINVAL)?;
        if end > WRITE_MAX {
            return Err(EACCES.because("more than any of these files holds"));
        }
        let mut bytes = alloc::vec![0; from.remaining()];
        let taken = from.take(&mut bytes)?;
        let mut content = if offset == 0 {
            Vec::new()
        } else {
            self.content.lock().clone()
        };
        content.resize(content.len().max(offset + taken), 0);
        content[offset..offset + taken].copy_from_slice(&bytes[..taken]);
        self.save(thread, &content)?;
        *self.content.lock() = content;
        Ok(taken)
    }

    fn seek(&self, thread: &Arc<Thread>, file: &OpenFile, offset: i64, whence: u32) -> Result<u64> {
        let mut position = file.position.lock(thread);
        let from = match whence {
            SEEK::SET => 0,
            SEEK::CUR => *position,
            SEEK::END => self.content.lock().len() as u64,
            _ => return Err(EINVAL),
        };
        *position = from.checked_add_signed(offset).ok_or(EINVAL)?;
        Ok(*position)
    }

    fn is_seekable(&self) -> bool {
        true
    }
}
