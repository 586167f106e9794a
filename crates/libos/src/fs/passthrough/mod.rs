//! A directory of the host, used as it is (`insecure_passthrough`).
//!
//! The host sees and may change everything in it, at any time: nothing is kept of its names, and
//! attributes are asked for again at each walk. A node is a *place* of the host (see
//! [`bulla_abi::passthrough`]) that stays the same file when it is renamed or removed. Two names of
//! one file are one node, so that locks and shared mappings inside the container agree.
//!
//! Links are followed by our own walk, in the container's tree; the host's kernel never walks a
//! path. Programs cannot be started from here, and devices, sockets and pipes of the host cannot
//! be opened.

mod host;

use alloc::sync::{Arc, Weak};
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};

use bulla_abi::passthrough::change;
use hashbrown::HashMap;

use self::host::{HostFd, Status};
use super::file::{FileOps, OpenFile, flags, seek};
use super::inode::{
    Entry, FileId, FileType, FsStatistics, Inode, InodeState, Metadata, NewNode, Owner,
    SetAttributes, Time,
};
use super::memfs::anonymous_device;
use super::path::PathRef;
use super::permission::Caller;
use crate::errno::{EACCES, EBADF, EINVAL, EIO, EISDIR, ENOTDIR, ENXIO, EPERM, ETXTBSY, EXDEV};
use crate::mm::shared;
use crate::sync::SpinLock;
use crate::sync::mutex::SleepLock;
use crate::user::IoBuffer;
use crate::{Result, Thread};

/// Bytes moved by one call of the host.
const CHUNK: usize = 64 << 10;
/// V9FS_MAGIC of Linux: the nearest relative that programs know of.
const MAGIC: u64 = 0x0102_1997;
/// EXCHANGE of renameat2(2).
const EXCHANGE: u64 = 2;
/// Directory positions of the kernel start at 2, "." and ".." being 0 and 1; the host's at 0.
const FIRST: u64 = 2;

/// A mounted directory.
struct Passthrough {
    device: u64,
    next: AtomicU64,
    /// The nodes in use, by what the host calls them.
    nodes: SpinLock<HashMap<(u64, u64), Weak<Node>>>,
}

/// A file, directory or link of the host.
struct Node {
    fs: Arc<Passthrough>,
    number: u64,
    kind: FileType,
    place: HostFd,
    status: SpinLock<Status>,
    /// Descriptors for content (or entries) and for writing, opened when they are needed.
    reader: SpinLock<Option<Arc<HostFd>>>,
    writer: SpinLock<Option<Arc<HostFd>>>,
    writing: SleepLock<()>,
    state: InodeState,
}

/// The root of the passed-through directory of this number.
pub fn root(number: u64) -> Result<Arc<dyn Inode>> {
    let place = HostFd::root(number)?;
    let status = place.status()?;
    if FileType::from_mode(status.mode) != Some(FileType::Directory) {
        return Err(ENOTDIR);
    }
    let fs = Arc::new(Passthrough {
        device: anonymous_device(),
        next: AtomicU64::new(1),
        nodes: SpinLock::new(HashMap::new()),
    });
    Ok(fs.node(place, status)?)
}

impl Passthrough {
    /// The node of a place: the one there is, or a new one.
    fn node(self: &Arc<Self>, place: HostFd, status: Status) -> Result<Arc<Node>> {
        let kind = FileType::from_mode(status.mode).ok_or(EIO)?;
        let mut nodes = self.nodes.lock();
        let known = nodes.get(&status.key).and_then(Weak::upgrade);
        if let Some(known) = &known
            && known.kind == kind
        {
            drop(nodes);
            *known.status.lock() = status;
            return Ok(known.clone());
        }
        let node = Arc::new(Node {
            fs: self.clone(),
            number: self.next.fetch_add(1, Ordering::Relaxed),
            kind,
            place,
            status: SpinLock::new(status),
            reader: SpinLock::new(None),
            writer: SpinLock::new(None),
            writing: SleepLock::new(()),
            state: InodeState::default(),
        });
        nodes.insert(status.key, Arc::downgrade(&node));
        Ok(node)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let key = self.status.lock().key;
        let mut nodes = self.fs.nodes.lock();
        // Another node may have taken its place.
        if nodes.get(&key).is_some_and(|node| node.strong_count() == 0) {
            nodes.remove(&key);
        }
    }
}

impl Node {
    /// Asks the host again; what it said last where it does not answer.
    fn refreshed(&self) -> Status {
        if let Ok(status) = self.place.status()
            && FileType::from_mode(status.mode) == Some(self.kind)
            && status.key == self.status.lock().key
        {
            *self.status.lock() = status;
        }
        *self.status.lock()
    }

    fn of(inode: &Arc<dyn Inode>) -> Result<&Node> {
        inode.as_any().downcast_ref::<Node>().ok_or(EXDEV)
    }

    /// The descriptor for reading content or entries.
    fn reader(&self) -> Result<Arc<HostFd>> {
        self.opened(&self.reader, flags::RDONLY)
    }

    /// The descriptor for writing.
    fn writer(&self) -> Result<Arc<HostFd>> {
        self.opened(&self.writer, flags::WRONLY)
    }

    fn opened(&self, slot: &SpinLock<Option<Arc<HostFd>>>, access: u32) -> Result<Arc<HostFd>> {
        if let Some(fd) = &*slot.lock() {
            return Ok(fd.clone());
        }
        let directory = if self.kind == FileType::Directory {
            flags::DIRECTORY
        } else {
            0
        };
        let fd = Arc::new(self.place.open(access | directory)?);
        Ok(slot.lock().get_or_insert(fd).clone())
    }

    fn child(&self, name: &[u8]) -> Result<Arc<Node>> {
        let (place, status) = self.place.lookup(name)?;
        self.fs.node(place, status)
    }

    /// Content to where a read goes. User memory is touched only when nothing is left in the buffer
    /// that is shared with the host: a page that comes in from here would replace it.
    fn read_content(&self, offset: u64, to: &mut IoBuffer<'_>) -> Result<usize> {
        let reader = self.reader()?;
        let start = to.done();
        let mut at = offset;
        let mut bounce = vec![0; to.remaining().min(CHUNK)];
        while !to.is_empty() {
            let wanted = to.remaining().min(CHUNK);
            let read = match reader.read(at, &mut bounce[..wanted]) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if to.done() == start => return Err(error),
                Err(_) => break,
            };
            match to.put(&bounce[..read]) {
                Ok(put) if put == read => at += put as u64,
                Err(error) if to.done() == start => return Err(error),
                _ => break,
            }
        }
        Ok(to.done() - start)
    }

    /// Writes at `offset`; bytes written.
    fn write_content(&self, offset: u64, from: &mut IoBuffer<'_>) -> Result<usize> {
        let writer = self.writer()?;
        let mut done = 0;
        let mut bounce = vec![0; from.remaining().min(CHUNK)];
        while !from.is_empty() {
            let wanted = from.remaining().min(CHUNK);
            let taken = match from.take(&mut bounce[..wanted]) {
                Ok(0) => break,
                Ok(taken) => taken,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            let mut sent = 0;
            while sent < taken {
                match writer.write(offset + (done + sent) as u64, &bounce[sent..taken]) {
                    Ok(written @ 1..) => sent += written,
                    Err(error) if done + sent == 0 => return Err(error),
                    _ => return Ok(done + sent),
                }
            }
            done += taken;
        }
        Ok(done)
    }

    fn regular(&self) -> Result<()> {
        match self.kind {
            FileType::Regular => Ok(()),
            FileType::Directory => Err(EISDIR),
            _ => Err(EBADF),
        }
    }
}

impl Inode for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn id(&self) -> FileId {
        FileId {
            device: self.fs.device,
            inode: self.number,
        }
    }

    fn size(&self) -> u64 {
        self.refreshed().size
    }

    fn mode(&self) -> u32 {
        self.status.lock().mode
    }

    fn metadata(&self) -> Metadata {
        let status = self.refreshed();
        Metadata {
            device: self.fs.device,
            inode: status.key.1,
            links: status.links,
            mode: status.mode,
            uid: status.uid,
            gid: status.gid,
            rdev: 0,
            size: status.size,
            block_size: 4096,
            blocks: status.blocks,
            atime: status.accessed,
            mtime: status.modified,
            ctime: status.changed,
            btime: Time::default(),
        }
    }

    fn set_attributes(&self, wanted: &SetAttributes) -> Result<()> {
        if wanted.uid.is_some() || wanted.gid.is_some() {
            let id = |id: Option<u32>| u64::from(id.unwrap_or(u32::MAX));
            self.place
                .change(change::OWNER, [id(wanted.uid), id(wanted.gid)])?;
        }
        if let Some(mode) = wanted.mode {
            let mode = u64::from(mode & 0o7777);
            self.place.change(change::MODE, [mode, 0])?;
        }
        for (what, time) in [
            (change::ACCESSED, wanted.atime),
            (change::MODIFIED, wanted.mtime),
        ] {
            if let Some(time) = time {
                let values = [time.seconds as u64, u64::from(time.nanoseconds)];
                self.place.change(what, values)?;
            }
        }
        self.refreshed();
        Ok(())
    }

    fn state(&self) -> Option<&InodeState> {
        Some(&self.state)
    }

    fn open(
        self: Arc<Self>,
        _caller: &Caller<'_>,
        _path: &PathRef,
        flags: u32,
    ) -> Result<Arc<dyn FileOps>> {
        let access = flags & flags::ACCESS_MODE;
        match self.kind {
            FileType::Regular => {
                if access != flags::WRONLY {
                    self.reader()?;
                }
                if access != flags::RDONLY {
                    self.writer()?;
                    if !self.state.begin_write() {
                        return Err(ETXTBSY);
                    }
                }
                Ok(self)
            }
            FileType::Directory => {
                self.reader()?;
                Ok(self)
            }
            FileType::Link => Err(crate::errno::ELOOP),
            _ => Err(ENXIO.because("not a file or directory of the host")),
        }
    }

    fn read_bytes(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        self.read_content(offset, &mut IoBuffer::output(to))
    }

    fn write_bytes(&self, offset: u64, from: &[u8]) -> Result<usize> {
        self.write_content(offset, &mut IoBuffer::input(from))
    }

    fn truncate(&self, size: u64) -> Result<()> {
        self.regular()?;
        self.writer()?.change(change::SIZE, [size, 0])?;
        shared::truncate(self.id(), size);
        Ok(())
    }

    fn sync(&self, _thread: &Arc<Thread>) -> Result<()> {
        shared::flush_device(self.fs.device)?;
        match self.kind {
            FileType::Regular | FileType::Directory => {
                let writer = self.writer.lock().clone();
                writer.map_or_else(|| self.reader(), Ok)?.sync()
            }
            _ => Ok(()),
        }
    }

    fn lookup(&self, _caller: &Caller<'_>, name: &[u8]) -> Result<Arc<dyn Inode>> {
        if self.kind != FileType::Directory {
            return Err(ENOTDIR);
        }
        Ok(self.child(name)?)
    }

    fn is_stable(&self) -> bool {
        false
    }

    fn create(&self, name: &[u8], node: NewNode<'_>, owner: Owner) -> Result<Arc<dyn Inode>> {
        let target = match node {
            NewNode::Regular | NewNode::Directory => &[][..],
            NewNode::Link(target) => target,
            _ => return Err(EPERM.because("the host's directories take files and links only")),
        };
        let kind = node.kind();
        self.place
            .create(name, kind.mode() | owner.mode & 0o7777, target)?;
        let made = self.child(name)?;
        if made.kind != kind {
            return Err(EIO.because("the host made something else"));
        }
        let status = *made.status.lock();
        if (status.uid, status.gid) != (owner.uid, owner.gid) {
            // A host that is not root keeps what it makes: then it is shown as its own.
            let owner = [u64::from(owner.uid), u64::from(owner.gid)];
            let _ = made.place.change(change::OWNER, owner);
            made.refreshed();
        }
        Ok(made)
    }

    fn link(&self, name: &[u8], inode: &Arc<dyn Inode>) -> Result<()> {
        Node::of(inode)?.place.link(&self.place, name)
    }

    fn unlink(&self, name: &[u8]) -> Result<()> {
        self.place.remove(name, FileType::Regular)
    }

    fn rmdir(&self, name: &[u8]) -> Result<()> {
        self.place.remove(name, FileType::Directory)
    }

    fn rename(
        &self,
        name: &[u8],
        to: &Arc<dyn Inode>,
        to_name: &[u8],
        exchange: bool,
    ) -> Result<()> {
        let flags = if exchange { EXCHANGE } else { 0 };
        self.place
            .rename(name, &Node::of(to)?.place, to_name, flags)
    }

    fn read_dir(
        &self,
        _caller: &Caller<'_>,
        from: u64,
        emit: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> Result<()> {
        // The last position there can be is the end.
        const END: u64 = i64::MAX as u64;
        let reader = self.reader()?;
        let mut position = from.saturating_sub(FIRST);
        while position < END - FIRST {
            let entries = reader.read_dir(position)?;
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                let next = entry.next.min(END - FIRST);
                position = next;
                let more = emit(Entry {
                    name: &entry.name,
                    inode: entry.inode,
                    kind: entry.kind,
                    next: next + FIRST,
                });
                if !more {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn read_link(&self, _caller: &Caller<'_>) -> Result<Vec<u8>> {
        match self.kind {
            FileType::Link => self.place.read_link(),
            _ => Err(EINVAL),
        }
    }

    fn statistics(&self) -> FsStatistics {
        let known = self.place.statistics().unwrap_or_default();
        FsStatistics {
            magic: MAGIC,
            ..known
        }
    }

    fn set_socket(&self, _socket: Arc<dyn Any + Send + Sync>) -> Result<()> {
        Err(EACCES)
    }
}

impl FileOps for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        self.regular()?;
        let mut position = file.position.lock(thread);
        shared::flush(self.id(), *position, to.remaining() as u64)?;
        let read = self.read_content(*position, to)?;
        *position += read as u64;
        Ok(read)
    }

    fn write(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        self.regular()?;
        let mut position = file.position.lock(thread);
        let (written, end) = self.write_locked(thread, file, *position, from)?;
        *position = end;
        Ok(written)
    }

    fn read_at(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        to: &mut IoBuffer<'_>,
        offset: u64,
    ) -> Result<usize> {
        self.regular()?;
        shared::flush(self.id(), offset, to.remaining() as u64)?;
        self.read_content(offset, to)
    }

    fn write_at(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
        offset: u64,
    ) -> Result<usize> {
        self.regular()?;
        Ok(self.write_locked(thread, file, offset, from)?.0)
    }

    fn seek(&self, thread: &Arc<Thread>, file: &OpenFile, offset: i64, whence: u32) -> Result<u64> {
        let is_directory = self.kind == FileType::Directory;
        seek(self, is_directory, thread, file, offset, whence)
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn release(&self, flags: u32) {
        let writable = flags & flags::ACCESS_MODE != flags::RDONLY;
        if writable && self.kind == FileType::Regular {
            self.state.end_write();
        }
    }
}

impl Node {
    /// A write with its effects: bytes written, and the offset after them.
    fn write_locked(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        offset: u64,
        from: &mut IoBuffer<'_>,
    ) -> Result<(usize, u64)> {
        let held = self.writing.lock(thread);
        let offset = if file.flags() & flags::APPEND != 0 {
            self.refreshed().size
        } else {
            offset
        };
        let room = (i64::MAX as u64).saturating_sub(offset);
        from.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        let written = self.write_content(offset, from)?;
        shared::refresh(self.id(), offset, written as u64);
        drop(held);
        if file.flags() & (flags::DSYNC | flags::SYNC) != 0 {
            self.writer()?.sync()?;
        }
        Ok((written, offset + written as u64))
    }
}
