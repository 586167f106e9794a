//! Inodes of the in-memory file system.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use spin::Once;

use super::data::{self, Data, PAGE};
use super::directory::{Directory, Target};
use super::volume::Backing;
use super::{MemFs, NODE_COST, SYSFS_MAGIC};
use crate::errno::{
    EEXIST, EINVAL, EISDIR, EMLINK, ENODATA, ENODEV, ENOENT, ENOSPC, ENOTDIR, ENOTEMPTY, ENXIO,
    EOPNOTSUPP, EPERM, EXDEV, Errno,
};
use crate::fs::acl::{self, Acl};
use crate::fs::file::{FileOps, flags};
use crate::fs::inode::{
    Entry, FileId, FileType, Find, FsStatistics, Inode, InodeState, Metadata, NewNode, Owner,
    SetAttributes, Time,
};
use crate::fs::lower::LowerNode;
use crate::fs::path::PathRef;
use crate::fs::permission::Caller;
use crate::fs::pipe::{self, Pipe};
use crate::sync::SpinLock;
use crate::sync::mutex::SleepLock;
use crate::{Result, Thread};

/// Most hard links (as ext4).
const LINKS_MAX: u32 = 65000;
/// Most bytes of extended attributes of one inode.
const XATTRS_MAX: usize = 64 << 10;

/// An object that bind(2) left at a socket's inode.
type BoundSocket = Arc<dyn Any + Send + Sync>;

/// What an inode is made of.
pub enum Content {
    File {
        data: SpinLock<Data>,
        writing: SleepLock<()>,
    },
    Directory(SpinLock<Directory>),
    Link(core::result::Result<Box<[u8]>, Errno>),
    Fifo(Once<Arc<Pipe>>),
    Socket(SpinLock<Option<BoundSocket>>),
    Device,
}

impl Content {
    pub fn directory() -> Content {
        Content::Directory(SpinLock::new(Directory::new(None)))
    }

    fn file(data: Data) -> Content {
        Content::File {
            data: SpinLock::new(data),
            writing: SleepLock::new(()),
        }
    }

    pub fn sealed_file(seals: u32) -> Content {
        Content::file(Data::new(0, seals))
    }
}

struct Attributes {
    uid: u32,
    gid: u32,
    atime: Time,
    mtime: Time,
    ctime: Time,
    btime: Time,
}

type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Whether an inode has access control lists.
#[repr(u8)]
enum Lists {
    /// Nobody has asked the lower layer.
    Unknown,
    None,
    Some,
}

/// An inode.
pub struct Node {
    this: Weak<Node>,
    /// Whether it was charged to the file system.
    charged: bool,
    pub(super) fs: Arc<MemFs>,
    number: u64,
    mode: AtomicU32,
    links: AtomicU32,
    rdev: u64,
    attributes: SpinLock<Attributes>,
    xattrs: SpinLock<Option<Box<Xattrs>>>,
    /// Whether it has access control lists: a [`Lists`] as a number.
    lists: AtomicU8,
    /// The object of the lower layer that this inode stands over.
    pub(super) lower: Option<Arc<dyn LowerNode>>,
    pub(super) content: Content,
    state: InodeState,
}

impl Node {
    /// A new object; the caller has charged it.
    pub fn new(fs: &Arc<MemFs>, kind: u32, owner: Owner, content: Content, rdev: u64) -> Arc<Node> {
        let now = Time::now();
        let number = fs.next_number();
        let node = Arc::new_cyclic(|this| Node {
            this: this.clone(),
            charged: true,
            fs: fs.clone(),
            number,
            mode: AtomicU32::new(kind | owner.mode & 0o7777),
            links: AtomicU32::new(1),
            rdev,
            attributes: SpinLock::new(Attributes {
                uid: owner.uid,
                gid: owner.gid,
                atime: now,
                mtime: now,
                ctime: now,
                btime: now,
            }),
            xattrs: SpinLock::new(None),
            lists: AtomicU8::new(Lists::None as u8),
            lower: Backing::lower_of_new(fs, number),
            content,
            state: InodeState::default(),
        });
        node.mark();
        node
    }

    /// The inode over an object of the lower layer.
    pub(super) fn over(fs: &Arc<MemFs>, lower: Arc<dyn LowerNode>) -> Arc<Node> {
        let metadata = lower.metadata();
        let content = match FileType::from_mode(metadata.mode) {
            Some(FileType::Directory) => {
                Content::Directory(SpinLock::new(Directory::new(Some(lower.clone()))))
            }
            Some(FileType::Link) => Content::Link(lower.read_link().map(Vec::into_boxed_slice)),
            Some(FileType::Fifo) => Content::Fifo(Once::new()),
            Some(FileType::Socket) => Content::Socket(SpinLock::new(None)),
            Some(FileType::Character | FileType::Block) => Content::Device,
            Some(FileType::Regular) | None => {
                Content::file(Data::new(metadata.size, data::SEAL_SEAL))
            }
        };
        let time = metadata.modified;
        Arc::new_cyclic(|this| Node {
            this: this.clone(),
            charged: false,
            fs: fs.clone(),
            number: metadata.number,
            mode: AtomicU32::new(metadata.mode),
            links: AtomicU32::new(metadata.links),
            rdev: metadata.rdev,
            attributes: SpinLock::new(Attributes {
                uid: metadata.uid,
                gid: metadata.gid,
                atime: time,
                mtime: time,
                ctime: time,
                btime: time,
            }),
            xattrs: SpinLock::new(None),
            lists: AtomicU8::new(Lists::Unknown as u8),
            lower: Some(lower),
            content,
            state: InodeState::default(),
        })
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn set_links(&self, links: u32) {
        self.links.store(links, Ordering::Relaxed);
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_mode(self.mode.load(Ordering::Relaxed)).unwrap_or(FileType::Regular)
    }

    fn directory(&self) -> Result<&SpinLock<Directory>> {
        match &self.content {
            Content::Directory(directory) => Ok(directory),
            _ => Err(ENOTDIR),
        }
    }

    pub(super) fn data(&self) -> Result<&SpinLock<Data>> {
        match &self.content {
            Content::File { data, .. } => Ok(data),
            Content::Directory(_) => Err(EISDIR),
            _ => Err(EINVAL),
        }
    }

    /// The content changed.
    pub(super) fn touch_modified(&self) {
        let now = Time::now();
        {
            let mut attributes = self.attributes.lock();
            attributes.mtime = now;
            attributes.ctime = now;
        }
        self.mark();
    }

    fn touch_changed(&self) {
        let now = Time::now();
        self.attributes.lock().ctime = now;
        self.mark();
    }

    /// It differs from what a volume keeps of it.
    fn mark(&self) {
        if let Some(backing) = &self.fs.backing
            && let Some(node) = self.this.upgrade()
        {
            backing.mark(node);
        }
    }

    /// Everything a volume keeps of it but its content.
    pub(super) fn kept_attributes(&self) -> Result<bulla_vault::volume::Attributes> {
        let xattrs = self.with_xattrs(|all| Ok(all.clone().into_iter().collect()))?;
        let attributes = self.attributes.lock();
        let stamp = |time: Time| (time.seconds, time.nanoseconds);
        Ok(bulla_vault::volume::Attributes {
            mode: self.mode(),
            uid: attributes.uid,
            gid: attributes.gid,
            links: self.links.load(Ordering::Relaxed),
            rdev: self.rdev,
            modified: stamp(attributes.mtime),
            changed: stamp(attributes.ctime),
            xattrs,
        })
    }

    /// Whether it has no name any more.
    pub(super) fn is_unnamed(&self) -> bool {
        self.links.load(Ordering::Relaxed) == 0
    }

    /// The content was read: the access time moves when it is not newer than the last change
    /// (relatime).
    pub(super) fn touch_accessed(&self) {
        let mut attributes = self.attributes.lock();
        if attributes.atime <= attributes.mtime || attributes.atime <= attributes.ctime {
            drop(attributes);
            let now = Time::now();
            attributes = self.attributes.lock();
            attributes.atime = now;
        }
    }

    fn add_child(&self, name: &[u8], node: Arc<Node>) -> Result<()> {
        let mut directory = self.directory()?.lock();
        directory.load()?;
        if directory.contains(name) {
            return Err(EEXIST);
        }
        if self.links.load(Ordering::Relaxed) == 0 {
            return Err(ENOENT.because("the directory was removed"));
        }
        directory.charge(&self.fs, name)?;
        directory.add(name, Target::Node(node));
        drop(directory);
        self.touch_modified();
        Ok(())
    }

    /// A name of this inode is gone.
    fn drop_link(&self) {
        if self.kind() == FileType::Directory {
            self.links.store(0, Ordering::Relaxed);
        } else {
            let links = self.links.load(Ordering::Relaxed);
            self.links.store(links.saturating_sub(1), Ordering::Relaxed);
        }
        self.touch_changed();
    }

    fn is_empty_directory(&self) -> Result<bool> {
        let mut directory = self.directory()?.lock();
        directory.load()?;
        Ok(directory.is_empty())
    }

    fn with_xattrs<R>(&self, run: impl FnOnce(&mut Xattrs) -> Result<R>) -> Result<R> {
        let mut xattrs = self.xattrs.lock();
        if xattrs.is_none() {
            let mut all = Xattrs::new();
            if let Some(lower) = &self.lower {
                all.extend(lower.xattrs()?);
            }
            *xattrs = Some(Box::new(all));
        }
        run(xattrs.as_mut().expect("filled above"))
    }

    /// Reads an access control list that may be there.
    fn read_list(&self, kind: acl::Kind) -> Result<Option<Acl>> {
        if self.lists.load(Ordering::Relaxed) == Lists::Unknown as u8 {
            // Most objects have no attributes: nothing is kept for them.
            let below = match &self.lower {
                Some(lower) if self.xattrs.lock().is_none() => !lower.xattrs()?.is_empty(),
                _ => true,
            };
            if below {
                self.with_xattrs(|all| {
                    self.note_lists(all);
                    Ok(())
                })?;
            } else {
                // Unless someone has set one meanwhile.
                let (unknown, none) = (Lists::Unknown as u8, Lists::None as u8);
                let order = Ordering::Relaxed;
                let settled = self.lists.compare_exchange(unknown, none, order, order);
                if settled.is_ok() {
                    return Ok(None);
                }
            }
        }
        let value = self.with_xattrs(|all| Ok(all.get(kind.attribute()).cloned()))?;
        value.map_or(Ok(None), |value| Acl::parse(&value))
    }

    fn note_lists(&self, all: &Xattrs) {
        let kinds = [acl::Kind::Access, acl::Kind::Default];
        let any = kinds
            .into_iter()
            .any(|kind| all.contains_key(kind.attribute()));
        let lists = if any { Lists::Some } else { Lists::None };
        self.lists.store(lists as u8, Ordering::Relaxed);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        match &self.content {
            Content::File { data, .. } => data.lock().clear(&self.fs),
            Content::Directory(directory) => directory.lock().clear(&self.fs),
            _ => {}
        }
        if self.charged {
            self.fs.release(NODE_COST);
        }
    }
}

/// The node behind an inode of the same file system; EXDEV.
fn same_fs(fs: &Arc<MemFs>, inode: &Arc<dyn Inode>) -> Result<Arc<Node>> {
    let any: Arc<dyn Any + Send + Sync> = inode.clone();
    let node = any.downcast::<Node>().map_err(|_| EXDEV)?;
    if Arc::ptr_eq(&node.fs, fs) {
        Ok(node)
    } else {
        Err(EXDEV)
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
        match &self.content {
            Content::File { data, .. } => data.lock().size,
            Content::Directory(directory) => directory.lock().len() as u64 * 20 + 40,
            Content::Link(target) => target.as_ref().map_or(0, |target| target.len() as u64),
            _ => 0,
        }
    }

    fn mode(&self) -> u32 {
        self.mode.load(Ordering::Relaxed)
    }

    fn metadata(&self) -> Metadata {
        let (size, blocks) = match &self.content {
            Content::File { data, .. } => {
                let data = data.lock();
                (
                    data.size,
                    (data.count + data.lower_size.div_ceil(PAGE)) * (PAGE / 512),
                )
            }
            _ => (self.size(), 0),
        };
        let mut links = u64::from(self.links.load(Ordering::Relaxed));
        if let Content::Directory(directory) = &self.content
            && links != 0
        {
            let mut directory = directory.lock();
            if directory.load().is_ok() {
                links = 2 + directory.subdirectories;
            }
        }
        let attributes = self.attributes.lock();
        Metadata {
            device: self.fs.device,
            inode: self.number,
            links,
            mode: self.mode(),
            uid: attributes.uid,
            gid: attributes.gid,
            rdev: self.rdev,
            size,
            block_size: PAGE as u32,
            blocks,
            atime: attributes.atime,
            mtime: attributes.mtime,
            ctime: attributes.ctime,
            btime: attributes.btime,
        }
    }

    fn set_attributes(&self, change: &SetAttributes) -> Result<()> {
        let now = Time::now();
        let mut attributes = self.attributes.lock();
        if let Some(mode) = change.mode {
            let kind = self.mode() & !0o7777;
            self.mode.store(kind | mode & 0o7777, Ordering::Relaxed);
        }
        attributes.uid = change.uid.unwrap_or(attributes.uid);
        attributes.gid = change.gid.unwrap_or(attributes.gid);
        attributes.atime = change.atime.unwrap_or(attributes.atime);
        attributes.mtime = change.mtime.unwrap_or(attributes.mtime);
        attributes.ctime = now;
        drop(attributes);
        // The list and the bits say the same.
        if let Some(mode) = change.mode
            && let Some(list) = self.acl(acl::Kind::Access)?
        {
            let name = acl::Kind::Access.attribute().to_vec();
            self.with_xattrs(|all| Ok(all.insert(name, list.with_mode(mode).bytes())))?;
        }
        self.mark();
        Ok(())
    }

    fn state(&self) -> Option<&InodeState> {
        Some(&self.state)
    }

    fn open(
        self: Arc<Self>,
        caller: &Caller<'_>,
        path: &PathRef,
        flags: u32,
    ) -> Result<Arc<dyn FileOps>> {
        match &self.content {
            Content::File { .. } => {
                if flags & flags::ACCESS_MODE != flags::RDONLY && !self.state.begin_write() {
                    return Err(crate::errno::ETXTBSY);
                }
                Ok(self)
            }
            Content::Directory(_) => Ok(self),
            Content::Fifo(pipe) => {
                pipe::open_fifo(caller, pipe.call_once(|| Pipe::new(self.number)), flags)
            }
            Content::Device => crate::fs::device::open(caller, path, self.kind(), self.rdev, flags),
            Content::Socket(_) => Err(ENXIO.because("a socket is not opened")),
            Content::Link(_) => Err(crate::errno::ELOOP),
        }
    }

    fn read_bytes(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        self.read_content(offset, &mut crate::user::IoBuffer::output(to))
    }

    fn write_bytes(&self, offset: u64, from: &[u8]) -> Result<usize> {
        self.write_content(Some(offset), &mut crate::user::IoBuffer::input(from))
            .map(|(n, _)| n)
    }

    fn sync(&self, thread: &Arc<Thread>) -> Result<()> {
        match &self.fs.backing {
            None => Ok(()),
            Some(backing) => {
                crate::mm::shared::flush_device(self.fs.device)?;
                backing.commit(&self.fs, thread)
            }
        }
    }

    fn is_immutable(&self) -> bool {
        if self.fs.backing.is_some() {
            return false;
        }
        match (&self.content, &self.lower) {
            (Content::File { data, .. }, Some(lower)) => {
                let data = data.lock();
                data.count == 0
                    && data.lower_size == data.size
                    && data.size == lower.metadata().size
            }
            _ => false,
        }
    }

    fn check_mappable(&self) -> Result<()> {
        // sysfs shows text, not memory.
        match self.fs.magic {
            SYSFS_MAGIC => Err(ENODEV),
            _ => Ok(()),
        }
    }

    fn accessed(&self) {
        self.touch_accessed();
    }

    fn truncate(&self, size: u64) -> Result<()> {
        self.before_cut(size)?;
        let mut data = self.data()?.lock();
        if size < data.size && data.seals & data::SEAL_SHRINK != 0
            || size > data.size && data.seals & data::SEAL_GROW != 0
        {
            return Err(EPERM.because("sealed"));
        }
        data.resize(&self.fs, size);
        drop(data);
        crate::mm::shared::truncate(self.id(), size);
        self.touch_modified();
        Ok(())
    }

    fn allocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.allocate_content(mode, offset, len)?;
        crate::mm::shared::refresh(self.id(), offset, len);
        Ok(())
    }

    fn find(&self, what: Find, offset: u64) -> Option<u64> {
        self.data().ok()?.lock().find(what, offset)
    }

    fn lookup(&self, _caller: &Caller<'_>, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let mut directory = self.directory()?.lock();
        directory.load()?;
        Ok(directory.get(&self.fs, name)?)
    }

    fn create(&self, name: &[u8], node: NewNode<'_>, owner: Owner) -> Result<Arc<dyn Inode>> {
        let content = match node {
            NewNode::Regular => Content::sealed_file(data::SEAL_SEAL),
            NewNode::Directory => Content::directory(),
            NewNode::Link(target) => Content::Link(Ok(target.into())),
            NewNode::Fifo => Content::Fifo(Once::new()),
            NewNode::Socket => Content::Socket(SpinLock::new(None)),
            NewNode::Character(_) | NewNode::Block(_) => Content::Device,
        };
        let rdev = match node {
            NewNode::Character(rdev) | NewNode::Block(rdev) => rdev,
            _ => 0,
        };
        self.fs.charge(NODE_COST)?;
        let child = Node::new(&self.fs, node.kind().mode(), owner, content, rdev);
        self.add_child(name, child.clone())?;
        Ok(child)
    }

    fn create_unnamed(&self, owner: Owner) -> Result<Arc<dyn Inode>> {
        self.fs.charge(NODE_COST)?;
        let content = Content::sealed_file(data::SEAL_SEAL);
        let node = Node::new(&self.fs, FileType::Regular.mode(), owner, content, 0);
        node.set_links(0);
        Ok(node)
    }

    fn link(&self, name: &[u8], inode: &Arc<dyn Inode>) -> Result<()> {
        let node = same_fs(&self.fs, inode)?;
        let links = node.links.load(Ordering::Relaxed);
        if links >= LINKS_MAX {
            return Err(EMLINK);
        }
        self.add_child(name, node.clone())?;
        node.set_links(links + 1);
        node.touch_changed();
        Ok(())
    }

    fn unlink(&self, name: &[u8]) -> Result<()> {
        let mut directory = self.directory()?.lock();
        directory.load()?;
        let node = directory.get(&self.fs, name)?;
        if node.kind() == FileType::Directory {
            return Err(EISDIR);
        }
        let removed = directory.remove(&self.fs, name)?;
        drop(directory);
        drop(removed);
        node.drop_link();
        self.touch_modified();
        Ok(())
    }

    fn rmdir(&self, name: &[u8]) -> Result<()> {
        let mut directory = self.directory()?.lock();
        directory.load()?;
        let node = directory.get(&self.fs, name)?;
        if !node.is_empty_directory()? {
            return Err(ENOTEMPTY);
        }
        let removed = directory.remove(&self.fs, name)?;
        drop(directory);
        drop(removed);
        node.drop_link();
        self.touch_modified();
        Ok(())
    }

    fn rename(
        &self,
        name: &[u8],
        to: &Arc<dyn Inode>,
        to_name: &[u8],
        exchange: bool,
    ) -> Result<()> {
        let to = same_fs(&self.fs, to)?;
        // The namespace lock is held, so nothing moves between the steps.
        let node = self.directory()?.lock().get(&self.fs, name)?;
        let replaced = {
            let mut directory = to.directory()?.lock();
            directory.load()?;
            match directory.get(&self.fs, to_name) {
                Ok(replaced) => Some(replaced),
                Err(error) if error == ENOENT => None,
                Err(error) => return Err(error),
            }
        };
        if exchange {
            let replaced = replaced.ok_or(ENOENT)?;
            self.directory()?
                .lock()
                .replace(name, Target::Node(replaced.clone()))?;
            to.directory()?
                .lock()
                .replace(to_name, Target::Node(node.clone()))?;
            replaced.touch_changed();
        } else {
            if let Some(replaced) = &replaced {
                let is_directory = |node: &Arc<Node>| node.kind() == FileType::Directory;
                match (is_directory(&node), is_directory(replaced)) {
                    (true, false) => return Err(ENOTDIR),
                    (false, true) => return Err(EISDIR),
                    (true, true) if !replaced.is_empty_directory()? => return Err(ENOTEMPTY),
                    _ => {}
                }
                to.directory()?
                    .lock()
                    .replace(to_name, Target::Node(node.clone()))?;
                replaced.drop_link();
            } else {
                if to.links.load(Ordering::Relaxed) == 0 {
                    return Err(ENOENT.because("the directory was removed"));
                }
                let mut directory = to.directory()?.lock();
                directory.charge(&self.fs, to_name)?;
                directory.add(to_name, Target::Node(node.clone()));
            }
            self.directory()?.lock().remove(&self.fs, name)?;
        }
        node.touch_changed();
        self.touch_modified();
        to.touch_modified();
        Ok(())
    }

    fn read_dir(
        &self,
        _caller: &Caller<'_>,
        from: u64,
        emit: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> Result<()> {
        let mut directory = self.directory()?.lock();
        directory.load()?;
        directory.list(from, emit);
        Ok(())
    }

    fn read_link(&self, _caller: &Caller<'_>) -> Result<Vec<u8>> {
        match &self.content {
            Content::Link(target) => target
                .as_ref()
                .map(|target| target.to_vec())
                .map_err(|e| *e),
            _ => Err(EINVAL),
        }
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.with_xattrs(|all| all.get(name).cloned().ok_or(ENODATA))
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        self.with_xattrs(|all| {
            match (flags, all.contains_key(name)) {
                (1, true) => return Err(EEXIST),
                (2, false) => return Err(ENODATA),
                _ => {}
            }
            let others = all.iter().filter(|(other, _)| *other != name);
            let used: usize = others.map(|(name, value)| name.len() + value.len()).sum();
            if used + name.len() + value.len() > XATTRS_MAX {
                return Err(ENOSPC.because("extended attributes too large"));
            }
            all.insert(name.to_vec(), value.to_vec());
            self.note_lists(all);
            Ok(())
        })?;
        self.touch_changed();
        Ok(())
    }

    fn list_xattrs(&self) -> Result<Vec<Vec<u8>>> {
        self.with_xattrs(|all| Ok(all.keys().cloned().collect()))
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.with_xattrs(|all| {
            all.remove(name).ok_or(ENODATA)?;
            self.note_lists(all);
            Ok(())
        })?;
        self.touch_changed();
        Ok(())
    }

    fn acl(&self, kind: acl::Kind) -> Result<Option<Acl>> {
        if self.lists.load(Ordering::Relaxed) == Lists::None as u8 {
            return Ok(None);
        }
        self.read_list(kind)
    }

    fn statistics(&self) -> FsStatistics {
        self.fs.statistics()
    }

    fn seals(&self) -> Result<u32> {
        Ok(self.data()?.lock().seals)
    }

    fn add_seals(&self, seals: u32) -> Result<()> {
        let all = data::SEAL_SEAL
            | data::SEAL_SHRINK
            | data::SEAL_GROW
            | data::SEAL_WRITE
            | data::SEAL_FUTURE_WRITE;
        if seals & !all != 0 {
            return Err(EINVAL);
        }
        let mut data = self.data()?.lock();
        if data.seals & data::SEAL_SEAL != 0 {
            return Err(EPERM.because("sealed"));
        }
        data.seals |= seals;
        Ok(())
    }

    fn socket(&self) -> Option<BoundSocket> {
        match &self.content {
            Content::Socket(socket) => socket.lock().clone(),
            _ => None,
        }
    }

    fn set_socket(&self, socket: BoundSocket) -> Result<()> {
        match &self.content {
            Content::Socket(slot) => {
                *slot.lock() = Some(socket);
                Ok(())
            }
            _ => Err(EOPNOTSUPP),
        }
    }
}
