//! Writing what lives to the other log.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::format::{Header, LOG_HEADER};
use super::open::write_header;
use super::{
    Change, Content, Node, Object, PAGE, PagePlace, Result, State, Stored, Volume, VolumeHost,
};

/// Pages in a frame of a compaction: 1 MiB.
const BATCH: usize = 256;
/// Inodes in one.
const NODES: usize = 1024;

impl<H: VolumeHost> Volume<H> {
    /// Runs inside a commit. Until the anchor is written the old log counts; a failure before that
    /// changes nothing.
    pub(super) fn compact(&self) -> Result<()> {
        let (old, sessions, nodes, orphans) = {
            let state = self.state.lock();
            let orphans: Vec<Arc<Node>> =
                state.orphans.iter().filter_map(|o| o.upgrade()).collect();
            let nodes: Vec<Arc<Node>> = state.nodes.values().cloned().collect();
            (state.header, state.sessions.clone(), nodes, orphans)
        };
        let header = Header {
            generation: old.generation + 1,
            ..old
        };
        let tag = write_header(&self.host, &header, &self.key)?;
        let next = {
            let state = self.state.lock();
            State {
                header,
                version: state.version,
                tag,
                end: LOG_HEADER,
                sessions,
                nonce: state.nonce,
                nodes: BTreeMap::new(),
                orphans: Vec::new(),
                pages: 0,
                next_number: state.next_number,
            }
        };
        let target = Volume {
            host: &self.host,
            key: self.key,
            state: spin::Mutex::new(next),
            committing: spin::Mutex::new(()),
        };
        let copied = self.copy_to(&target, &nodes, &orphans);
        let mut next = {
            let mut made = target.state.lock();
            let empty = State {
                nodes: BTreeMap::new(),
                orphans: Vec::new(),
                sessions: Vec::new(),
                ..*made
            };
            core::mem::replace(&mut *made, empty)
        };
        if let Err(error) = copied {
            // Its nonces are used up all the same.
            self.state.lock().nonce = next.nonce;
            return Err(error);
        }
        // The nodes that everyone holds take over the new places.
        let mut state = self.state.lock();
        let moved: Vec<(Arc<Node>, Arc<Node>)> = nodes
            .iter()
            .chain(&orphans)
            .filter_map(|node| Some((node.clone(), next.nodes.get(&node.number)?.clone())))
            .collect();
        for (node, copy) in moved {
            core::mem::swap(&mut *node.inner.lock(), &mut *copy.inner.lock());
        }
        let orphaned: u64 = orphans.iter().map(|node| pages_of(node).len() as u64).sum();
        next.pages -= orphaned;
        next.nodes = nodes
            .iter()
            .map(|node| (node.number, node.clone()))
            .collect();
        next.orphans = orphans.iter().map(Arc::downgrade).collect();
        *state = next;
        drop(state);
        self.write_anchor()?;
        self.host.resize(old.object(), 0)?;
        Ok(())
    }

    /// Writes all inodes and pages as frames of another log.
    fn copy_to(
        &self,
        target: &Volume<&H>,
        nodes: &[Arc<Node>],
        orphans: &[Arc<Node>],
    ) -> Result<()> {
        let next_number = self.next_number();
        let write = |changes: Vec<Change<Box<[u8; PAGE]>>>| {
            target.append(next_number, changes, |page| page)
        };
        for batch in nodes.chunks(NODES) {
            write(batch.iter().map(|node| without_pages(node)).collect())?;
        }
        for node in orphans {
            write(Vec::from([without_pages(node)]))?;
        }
        let mut changes = Vec::new();
        let mut count = 0;
        for node in nodes.iter().chain(orphans) {
            for part in pages_of(node).chunks(BATCH) {
                let mut pages = Vec::with_capacity(part.len());
                for (index, _) in part {
                    let mut page = Box::new([0; PAGE]);
                    self.read_page(node, *index, &mut page)?;
                    pages.push((*index, page));
                }
                count += pages.len();
                changes.push(Change::Pages {
                    number: node.number,
                    pages,
                });
                if count >= BATCH {
                    write(core::mem::take(&mut changes))?;
                    count = 0;
                }
            }
        }
        // Removed again, so that they are gone when the log is read.
        changes.extend(orphans.iter().map(|node| Change::Remove(node.number)));
        if !changes.is_empty() {
            // Their places are still needed here.
            let kept: Vec<Arc<Node>> = {
                let state = target.state.lock();
                let found = orphans
                    .iter()
                    .filter_map(|node| state.nodes.get(&node.number));
                found.cloned().collect()
            };
            write(changes)?;
            let mut state = target.state.lock();
            for node in kept {
                state.pages += pages_of(&node).len() as u64;
                state.nodes.insert(node.number, node);
            }
        }
        Ok(())
    }
}

fn pages_of(node: &Node) -> Vec<(u64, PagePlace)> {
    match &node.inner.lock().stored {
        Stored::File { pages, .. } => pages
            .iter()
            .map(|(index, place)| (*index, *place))
            .collect(),
        _ => Vec::new(),
    }
}

fn without_pages(node: &Node) -> Change<Box<[u8; PAGE]>> {
    let inner = node.inner.lock();
    Change::Set {
        number: node.number,
        attributes: inner.attributes.clone(),
        content: match &inner.stored {
            Stored::File { size, .. } => Content::File {
                size: *size,
                keep: 0,
                pages: Vec::new(),
            },
            Stored::Directory(entries) => Content::Directory(entries.clone()),
            Stored::Link(target) => Content::Link(target.clone()),
            Stored::Other => Content::Other,
        },
    }
}

impl<H: VolumeHost> VolumeHost for &H {
    fn size(&self, object: Object) -> core::result::Result<u64, super::HostFault> {
        (**self).size(object)
    }

    fn read(
        &self,
        object: Object,
        offset: u64,
        to: &mut [u8],
    ) -> core::result::Result<(), super::HostFault> {
        (**self).read(object, offset, to)
    }

    fn write(
        &self,
        object: Object,
        offset: u64,
        from: &[u8],
    ) -> core::result::Result<(), super::HostFault> {
        (**self).write(object, offset, from)
    }

    fn resize(&self, object: Object, len: u64) -> core::result::Result<(), super::HostFault> {
        (**self).resize(object, len)
    }

    fn sync(&self, object: Object) -> core::result::Result<(), super::HostFault> {
        (**self).sync(object)
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        (**self).sha256(parts)
    }

    fn random(&self, to: &mut [u8]) {
        (**self).random(to)
    }
}
