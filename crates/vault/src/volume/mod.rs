//! Protected volumes: a file system's state kept by the host, which can neither read nor change it.
//!
//! - [`Volume`]: one volume. It maps inode numbers to [`Node`]s (attributes, directory entries, link
//!   targets, pages of files) and changes them by [`Volume::commit`], all at once or not at all.
//! - [`VolumeHost`]: what the host keeps: two log files and an anchor.
//!
//! # On the host
//! A log is a header block, then frames. A frame holds changed pages and one record that says what
//! changed; each page and the record are sealed with AES-256-GCM. A frame's record authenticates the
//! frame before it, so frames cannot be left out, reordered or exchanged, and the place, nonce and
//! tag of every page in use are in the enclave's memory, so a page cannot be changed, moved or
//! replaced by an older one. When too much of a log is garbage, what lives is written to the other
//! log (the next *generation*).
//!
//! The *anchor* is a small authenticated record of the newest frame, written after that frame is on
//! disk and before `commit` returns. On opening, the log must contain the anchor's frame: a volume
//! that was rolled back does not. Frames behind it are of a commit that was interrupted before it
//! was acknowledged; they count if whole. Whoever can roll back the anchor *and* the logs together
//! is found only by a keeper of anchors that is out of the host's reach.
//!
//! # Keys
//! A header holds what the key is derived from; the caller derives it. Every opening draws a random
//! session, whose key (HMAC of the volume's) seals what is written until it is closed, with a counter
//! as nonce: after a crash no nonce is ever used again under one key.
//!
//! Lock order: state → a node. Neither is held while the host is asked or a page is sealed, except
//! that one commit runs at a time.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "numbers were authenticated, or checked against the log's size, before they are used"
)]

mod compact;
mod crypto;
mod format;
mod open;

#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use spin::Mutex;

use crypto::{Sealer, TAG};
pub use format::KeyParameters;
use format::{Anchor, FRAME_HEADER, FrameHeader, Header};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Most bytes handed to the host at once.
const CHUNK: usize = 48 * PAGE;
/// Largest record of a frame.
const RECORD_MAX: usize = 64 << 20;
/// Garbage that is not worth a compaction.
const GARBAGE_MIN: u64 = 32 << 20;
/// The root directory's number.
pub const ROOT: u64 = 1;

/// What the host keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Object {
    /// The log of odd generations.
    First = 0,
    /// The log of even ones.
    Second = 1,
    /// The anchor.
    Anchor = 2,
}

/// The host did not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFault;

/// The untrusted keeper of a volume, and two services.
pub trait VolumeHost: Send + Sync {
    /// Bytes of an object; 0 when there is none.
    fn size(&self, object: Object) -> Result<u64, HostFault>;
    /// All of `to`, or a fault.
    fn read(&self, object: Object, offset: u64, to: &mut [u8]) -> Result<(), HostFault>;
    /// All of `from`, or a fault.
    fn write(&self, object: Object, offset: u64, from: &[u8]) -> Result<(), HostFault>;
    /// Cuts or extends.
    fn resize(&self, object: Object, len: u64) -> Result<(), HostFault>;
    /// What was written is on disk when this returns.
    fn sync(&self, object: Object) -> Result<(), HostFault>;
    /// SHA-256 of the parts, one after the other.
    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32];
    /// Random bytes.
    fn random(&self, to: &mut [u8]);
}

/// Why a volume cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VolumeError {
    /// The host failed.
    Host,
    /// The key is not the one the volume was made with, or the header was changed.
    WrongKey,
    /// A version of this format that is not known.
    Format,
    /// Bytes at this offset were changed.
    Tampered {
        /// Which file.
        object: Object,
        /// Byte offset.
        offset: u64,
    },
    /// The volume is older than the anchor says.
    RolledBack {
        /// The newest version found; 0 when there is nothing at all.
        found: u64,
        /// The version of the anchor.
        expected: u64,
    },
    /// There is no anchor that belongs to the volume.
    NoAnchor,
    /// A record contradicts itself.
    Malformed,
    /// Too much changes at once.
    TooLarge,
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VolumeError::Host => f.write_str("the host could not read or write it: see its disk"),
            VolumeError::WrongKey => f.write_str(
                "it was made with another key, or its header was changed: run the enclave (and \
                 machine, where the key is sealed) that made it, or give its key file",
            ),
            VolumeError::Format => f.write_str(
                "it has a format that this version does not know: use the version that made it",
            ),
            VolumeError::Tampered { object, offset } => write!(
                f,
                "it was changed from outside, at byte {offset} of {}: restore a copy",
                match object {
                    Object::First => "log.0",
                    Object::Second => "log.1",
                    Object::Anchor => "its anchor",
                }
            ),
            VolumeError::RolledBack { found, expected } => write!(
                f,
                "it was rolled back: version {found} is there, but version {expected} was the \
                 newest: restore the newest copy"
            ),
            VolumeError::NoAnchor => f.write_str(
                "its anchor is missing or of another volume, so an old copy could not be told from \
                 the newest: bring the anchor file that belongs to it",
            ),
            VolumeError::Malformed => {
                f.write_str("it contradicts itself: report this, and restore a copy")
            }
            VolumeError::TooLarge => {
                f.write_str("too much changes at once: synchronise more often")
            }
        }
    }
}

impl core::error::Error for VolumeError {}

impl From<HostFault> for VolumeError {
    fn from(_: HostFault) -> Self {
        VolumeError::Host
    }
}

type Result<T, E = VolumeError> = core::result::Result<T, E>;

/// Seconds and nanoseconds since 1970.
pub type Stamp = (i64, u32);

/// Attributes of an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Type and permissions, as st_mode.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names.
    pub links: u32,
    /// Number of a device.
    pub rdev: u64,
    /// Last change of content.
    pub modified: Stamp,
    /// Last change.
    pub changed: Stamp,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: Vec<u8>,
    /// Inode number.
    pub number: u64,
    /// Type, as in st_mode.
    pub kind: u32,
}

/// New content of an inode; `P` stands for a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content<P> {
    /// A regular file: its size, up to which byte pages that were there stay, and changed pages.
    File {
        /// Bytes.
        size: u64,
        /// Pages that begin at or behind this byte go, unless they are among `pages`.
        keep: u64,
        /// By index, in ascending order.
        pages: Vec<(u64, P)>,
    },
    /// A directory: all of its entries.
    Directory(Vec<Entry>),
    /// A symbolic link.
    Link(Vec<u8>),
    /// Anything without content.
    Other,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change<P> {
    /// An inode is new or different.
    Set {
        /// Its number.
        number: u64,
        /// Its attributes.
        attributes: Attributes,
        /// Its content.
        content: Content<P>,
    },
    /// More pages of a file.
    Pages {
        /// The file.
        number: u64,
        /// By index.
        pages: Vec<(u64, P)>,
    },
    /// An inode without a name.
    Remove(u64),
}

/// The record of a frame.
#[derive(Serialize, Deserialize)]
struct Record {
    next_number: u64,
    changes: Vec<Change<[u8; TAG]>>,
}

/// Where a page is, and how it was sealed.
#[derive(Clone, Copy, Debug)]
struct PagePlace {
    offset: u64,
    nonce: u64,
    session: u32,
    tag: [u8; TAG],
}

enum Stored {
    File {
        size: u64,
        pages: BTreeMap<u64, PagePlace>,
    },
    Directory(Vec<Entry>),
    Link(Vec<u8>),
    Other,
}

struct Inner {
    attributes: Attributes,
    stored: Stored,
}

/// An inode of a volume.
pub struct Node {
    number: u64,
    inner: Mutex<Inner>,
}

impl Node {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Attributes as of the last commit.
    pub fn attributes(&self) -> Attributes {
        self.inner.lock().attributes.clone()
    }

    /// Bytes of a file or link.
    pub fn size(&self) -> u64 {
        match &self.inner.lock().stored {
            Stored::File { size, .. } => *size,
            Stored::Link(target) => target.len() as u64,
            _ => 0,
        }
    }

    /// Entries of a directory; none of anything else.
    pub fn entries(&self) -> Vec<Entry> {
        match &self.inner.lock().stored {
            Stored::Directory(entries) => entries.clone(),
            _ => Vec::new(),
        }
    }

    /// Target of a link; empty of anything else.
    pub fn link(&self) -> Vec<u8> {
        match &self.inner.lock().stored {
            Stored::Link(target) => target.clone(),
            _ => Vec::new(),
        }
    }

    fn place(&self, index: u64) -> Option<PagePlace> {
        match &self.inner.lock().stored {
            Stored::File { pages, .. } => pages.get(&index).copied(),
            _ => None,
        }
    }
}

struct State {
    header: Header,
    /// Version and tag of the newest frame.
    version: u64,
    tag: [u8; TAG],
    /// Where the next frame goes.
    end: u64,
    /// Keys by session; the last is this opening's.
    sessions: Vec<([u8; 16], Arc<Sealer>)>,
    /// The next nonce of this opening's session.
    nonce: u64,
    nodes: BTreeMap<u64, Arc<Node>>,
    /// Removed while in use: their pages must stay readable.
    orphans: Vec<Weak<Node>>,
    pages: u64,
    next_number: u64,
}

/// A protected volume.
pub struct Volume<H> {
    host: H,
    key: [u8; 32],
    state: Mutex<State>,
    committing: Mutex<()>,
}

impl<H> Drop for Volume<H> {
    fn drop(&mut self) {
        // Best effort: without unsafe code the compiler could drop these stores, the black box
        // keeps them.
        self.key = [0; 32];
        core::hint::black_box(&self.key);
    }
}

/// What a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Version of the newest commit.
    pub version: u64,
    /// Pages of files.
    pub pages: u64,
    /// Inodes.
    pub nodes: u64,
    /// Bytes of the log.
    pub log: u64,
}

impl<H: VolumeHost> Volume<H> {
    /// The inode of this number.
    pub fn node(&self, number: u64) -> Option<Arc<Node>> {
        self.state.lock().nodes.get(&number).cloned()
    }

    /// The number that the next new inode may have.
    pub fn next_number(&self) -> u64 {
        self.state.lock().next_number
    }

    /// What it holds.
    pub fn usage(&self) -> Usage {
        let state = self.state.lock();
        Usage {
            version: state.version,
            pages: state.pages,
            nodes: state.nodes.len() as u64,
            log: state.end,
        }
    }

    /// Whatever keeps it.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// Reads a page as of the last commit; false, and zeros, where the file has a hole.
    pub fn read_page(&self, node: &Node, index: u64, to: &mut [u8; PAGE]) -> Result<bool> {
        // A compaction may move the page while it is read: then it is looked up again.
        loop {
            let (place, object, sealer, generation) = {
                let state = self.state.lock();
                let Some(place) = node.place(index) else {
                    to.fill(0);
                    return Ok(false);
                };
                let sealer = state.sealer(place.session)?;
                (place, state.object(), sealer, state.header.generation)
            };
            let read = self.host.read(object, place.offset, to);
            let opened = read.is_ok() && sealer.open(place.nonce, &[], to, &place.tag);
            if opened {
                return Ok(true);
            }
            to.fill(0);
            if self.state.lock().header.generation == generation {
                read?;
                return Err(VolumeError::Tampered {
                    object,
                    offset: place.offset,
                });
            }
        }
    }

    /// Makes changes durable, all or none. `bytes` gives the content of a page.
    pub fn commit<P>(
        &self,
        next_number: u64,
        changes: Vec<Change<P>>,
        bytes: impl Fn(&P) -> &[u8; PAGE],
    ) -> Result<()> {
        let _one = self.committing.lock();
        self.append(next_number, changes, bytes)?;
        self.write_anchor()?;
        let garbage = {
            let state = self.state.lock();
            let live = (state.pages + state.nodes.len() as u64 / 8) * PAGE as u64;
            state.end.saturating_sub(live) > live + GARBAGE_MIN
        };
        if garbage {
            self.compact()?;
        }
        Ok(())
    }

    /// Writes one frame behind the last and applies it.
    fn append<P>(
        &self,
        next_number: u64,
        changes: Vec<Change<P>>,
        bytes: impl Fn(&P) -> &[u8; PAGE],
    ) -> Result<()> {
        let (sealer, object, start, version, previous, mut nonce) = {
            let mut state = self.state.lock();
            let pages: u64 = changes.iter().map(|change| change.pages() as u64).sum();
            let nonce = state.nonce;
            // Used up even when this fails.
            state.nonce += pages + 1;
            let (_, sealer) = state.sessions.last().ok_or(VolumeError::Malformed)?;
            let version = state.version + 1;
            (
                sealer.clone(),
                state.object(),
                state.end,
                version,
                state.tag,
                nonce,
            )
        };
        let first_nonce = nonce;
        let mut out = Output {
            host: &self.host,
            object,
            start,
            buffer: alloc::vec![0; FRAME_HEADER],
            flushed: 0,
        };
        let mut sealed = Vec::with_capacity(changes.len());
        let mut pages = 0u64;
        for change in changes {
            sealed.push(change.map(|page| {
                nonce += 1;
                pages += 1;
                let at = out.buffer.len();
                out.buffer.extend_from_slice(bytes(&page));
                let tag = sealer.seal(nonce, &[], &mut out.buffer[at..]);
                out.flush_full()?;
                Ok(tag)
            })?);
        }
        let record = Record {
            next_number,
            changes: sealed,
        };
        let mut text = postcard::to_allocvec(&record).map_err(|_| VolumeError::Malformed)?;
        if text.len() > RECORD_MAX {
            return Err(VolumeError::TooLarge);
        }
        let header = FrameHeader {
            record: text.len() as u32,
            pages: pages.try_into().map_err(|_| VolumeError::TooLarge)?,
            version,
            nonce: first_nonce,
            session: self.state.lock().session()?,
        };
        let header = header.to_bytes();
        let tag = sealer.seal(first_nonce, &[&header, &previous], &mut text);
        out.buffer.extend_from_slice(&text);
        out.buffer.extend_from_slice(&tag);
        let end = out.finish(&header)?;
        self.host.sync(object)?;
        let mut state = self.state.lock();
        let session = state.sessions.len() as u32 - 1;
        state.apply(record, start + FRAME_HEADER as u64, first_nonce, session)?;
        (state.version, state.tag, state.end) = (version, tag, end);
        Ok(())
    }

    /// The newest frame is the one to ask for from now on.
    fn write_anchor(&self) -> Result<()> {
        let anchor = {
            let state = self.state.lock();
            Anchor {
                id: state.header.id,
                generation: state.header.generation,
                version: state.version,
                tag: state.tag,
            }
        };
        let bytes = anchor.to_bytes(&|parts| self.host.sha256(parts), &self.key);
        self.host.write(Object::Anchor, anchor.slot(), &bytes)?;
        self.host.sync(Object::Anchor)?;
        Ok(())
    }
}

impl<P> Change<P> {
    fn pages(&self) -> usize {
        match self {
            Change::Set {
                content: Content::File { pages, .. },
                ..
            }
            | Change::Pages { pages, .. } => pages.len(),
            _ => 0,
        }
    }

    /// The same change with other pages.
    fn map<Q>(self, mut convert: impl FnMut(P) -> Result<Q>) -> Result<Change<Q>> {
        let mut all = |pages: Vec<(u64, P)>| -> Result<Vec<(u64, Q)>> {
            let converted = pages.into_iter();
            converted
                .map(|(index, page)| Ok((index, convert(page)?)))
                .collect()
        };
        Ok(match self {
            Change::Set {
                number,
                attributes,
                content,
            } => Change::Set {
                number,
                attributes,
                content: match content {
                    Content::File { size, keep, pages } => Content::File {
                        size,
                        keep,
                        pages: all(pages)?,
                    },
                    Content::Directory(entries) => Content::Directory(entries),
                    Content::Link(target) => Content::Link(target),
                    Content::Other => Content::Other,
                },
            },
            Change::Pages { number, pages } => Change::Pages {
                number,
                pages: all(pages)?,
            },
            Change::Remove(number) => Change::Remove(number),
        })
    }
}

/// A frame on its way to the host.
struct Output<'a, H> {
    host: &'a H,
    object: Object,
    start: u64,
    buffer: Vec<u8>,
    flushed: u64,
}

impl<H: VolumeHost> Output<'_, H> {
    fn flush_full(&mut self) -> Result<()> {
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        for part in self.buffer.chunks(CHUNK) {
            let at = self.start + self.flushed;
            self.host.write(self.object, at, part)?;
            self.flushed += part.len() as u64;
        }
        self.buffer.clear();
        Ok(())
    }

    /// The header goes last, unless all of it is one write.
    fn finish(&mut self, header: &[u8; FRAME_HEADER]) -> Result<u64> {
        if self.flushed == 0 {
            self.buffer[..FRAME_HEADER].copy_from_slice(header);
            self.flush()?;
        } else {
            self.flush()?;
            self.host.write(self.object, self.start, header)?;
        }
        Ok(self.start + self.flushed)
    }
}

impl State {
    fn object(&self) -> Object {
        self.header.object()
    }

    fn sealer(&self, session: u32) -> Result<Arc<Sealer>> {
        let found = self.sessions.get(session as usize);
        found
            .map(|(_, sealer)| sealer.clone())
            .ok_or(VolumeError::Malformed)
    }

    fn session(&self) -> Result<[u8; 16]> {
        let last = self.sessions.last();
        last.map(|(id, _)| *id).ok_or(VolumeError::Malformed)
    }

    /// Makes the changes of a frame whose pages start at `offset`.
    fn apply(&mut self, record: Record, offset: u64, nonce: u64, session: u32) -> Result<()> {
        let mut next = PagePlace {
            offset,
            nonce: nonce + 1,
            session,
            tag: [0; TAG],
        };
        let mut place = |tag: [u8; TAG]| {
            let place = PagePlace { tag, ..next };
            next.offset += PAGE as u64;
            next.nonce += 1;
            place
        };
        for change in record.changes {
            match change {
                Change::Set {
                    number,
                    attributes,
                    content,
                } => self.set(number, attributes, content, &mut place),
                Change::Pages { number, pages } => {
                    let node = self.nodes.get(&number).ok_or(VolumeError::Malformed)?;
                    let mut inner = node.inner.lock();
                    let Stored::File { pages: stored, .. } = &mut inner.stored else {
                        return Err(VolumeError::Malformed);
                    };
                    for (index, tag) in pages {
                        self.pages += u64::from(stored.insert(index, place(tag)).is_none());
                    }
                }
                Change::Remove(number) => {
                    if let Some(node) = self.nodes.remove(&number) {
                        if let Stored::File { pages, .. } = &node.inner.lock().stored {
                            self.pages -= pages.len() as u64;
                        }
                        self.orphans.retain(|orphan| orphan.strong_count() > 0);
                        self.orphans.push(Arc::downgrade(&node));
                    }
                }
            }
        }
        self.next_number = self.next_number.max(record.next_number);
        Ok(())
    }

    fn set(
        &mut self,
        number: u64,
        attributes: Attributes,
        content: Content<[u8; TAG]>,
        place: &mut dyn FnMut([u8; TAG]) -> PagePlace,
    ) {
        let node = self.nodes.entry(number).or_insert_with(|| {
            Arc::new(Node {
                number,
                inner: Mutex::new(Inner {
                    attributes: Attributes::default(),
                    stored: Stored::Other,
                }),
            })
        });
        let mut inner = node.inner.lock();
        inner.attributes = attributes;
        match content {
            Content::File { size, keep, pages } => {
                let mut stored = match core::mem::replace(&mut inner.stored, Stored::Other) {
                    Stored::File { pages, .. } => pages,
                    _ => BTreeMap::new(),
                };
                self.pages -= stored.len() as u64;
                stored.split_off(&keep.div_ceil(PAGE as u64));
                for (index, tag) in pages {
                    stored.insert(index, place(tag));
                }
                self.pages += stored.len() as u64;
                inner.stored = Stored::File {
                    size,
                    pages: stored,
                };
            }
            Content::Directory(entries) => inner.stored = Stored::Directory(entries),
            Content::Link(target) => inner.stored = Stored::Link(target),
            Content::Other => inner.stored = Stored::Other,
        }
    }
}
