//! A volume against a host in memory, honest and hostile.

use super::*;
use alloc::vec;
use sha2::{Digest, Sha256};
use std::sync::Mutex as StdMutex;

#[derive(Default, Clone)]
struct Files([Vec<u8>; 3]);

/// A host that keeps files in memory; from a countdown on it does nothing any more (a crash).
struct Memory {
    files: Arc<StdMutex<Files>>,
    /// Writes that still work; the last one is torn in the middle.
    alive: StdMutex<Option<u64>>,
}

impl Memory {
    fn of(files: &Arc<StdMutex<Files>>) -> Memory {
        Memory {
            files: files.clone(),
            alive: StdMutex::new(None),
        }
    }
}

static SEED: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(1);

impl VolumeHost for Memory {
    fn size(&self, object: Object) -> Result<u64, HostFault> {
        Ok(self.files.lock().unwrap().0[object as usize].len() as u64)
    }

    fn read(&self, object: Object, offset: u64, to: &mut [u8]) -> Result<(), HostFault> {
        let files = self.files.lock().unwrap();
        let from = files.0[object as usize].get(offset as usize..offset as usize + to.len());
        to.copy_from_slice(from.ok_or(HostFault)?);
        Ok(())
    }

    fn write(&self, object: Object, offset: u64, from: &[u8]) -> Result<(), HostFault> {
        let mut from = from;
        let mut died = false;
        if let Some(left) = self.alive.lock().unwrap().as_mut() {
            if *left == 0 {
                return Err(HostFault);
            }
            *left -= 1;
            if *left == 0 {
                died = true;
                from = &from[..from.len() / 2];
            }
        }
        let mut files = self.files.lock().unwrap();
        let file = &mut files.0[object as usize];
        let end = offset as usize + from.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[offset as usize..end].copy_from_slice(from);
        if died { Err(HostFault) } else { Ok(()) }
    }

    fn resize(&self, object: Object, len: u64) -> Result<(), HostFault> {
        if *self.alive.lock().unwrap() == Some(0) {
            return Err(HostFault);
        }
        self.files.lock().unwrap().0[object as usize].resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self, _object: Object) -> Result<(), HostFault> {
        if *self.alive.lock().unwrap() == Some(0) {
            return Err(HostFault);
        }
        Ok(())
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
        }
        hash.finalize().into()
    }

    fn random(&self, to: &mut [u8]) {
        for byte in to {
            let seed = SEED.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
            *byte = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        }
    }
}

fn derive_with(secret: u8) -> impl Fn(&KeyParameters) -> Option<[u8; 32]> {
    move |parameters| {
        let mut key = parameters.key_id;
        key[0] ^= secret;
        Some(key)
    }
}

fn open(files: &Arc<StdMutex<Files>>) -> Result<Volume<Memory>> {
    open_host(Memory::of(files))
}

fn open_host(host: Memory) -> Result<Volume<Memory>> {
    let root = Attributes {
        mode: 0o040700,
        ..Attributes::default()
    };
    Volume::open(host, KeyParameters::default(), root, &derive_with(7))
}

fn page(fill: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    for (at, byte) in page.iter_mut().enumerate() {
        *byte = (fill.wrapping_mul(31).wrapping_add(at as u64 * 7)) as u8;
    }
    page
}

/// Writes file 2 with these pages, and an entry for it.
fn put(volume: &Volume<Memory>, size: u64, keep: u64, pages: &[(u64, u64)]) -> Result<()> {
    let pages = pages
        .iter()
        .map(|&(index, fill)| (index, page(fill)))
        .collect();
    let changes = vec![
        Change::Set {
            number: ROOT,
            attributes: Attributes {
                mode: 0o040700,
                ..Attributes::default()
            },
            content: Content::Directory(vec![Entry {
                name: b"file".to_vec(),
                number: 2,
                kind: 0o100000,
            }]),
        },
        Change::Set {
            number: 2,
            attributes: Attributes {
                mode: 0o100644,
                xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
                ..Attributes::default()
            },
            content: Content::File { size, keep, pages },
        },
    ];
    volume.commit(3, changes, |page| page)
}

fn read(volume: &Volume<Memory>, index: u64) -> Result<Option<[u8; PAGE]>> {
    let node = volume.node(2).unwrap();
    let mut to = [0xaa; PAGE];
    Ok(volume.read_page(&node, index, &mut to)?.then_some(to))
}

#[test]
fn what_was_committed_is_there_again() {
    let files = Arc::default();
    let volume = open(&files).unwrap();
    put(&volume, 3 * PAGE as u64, 0, &[(0, 1), (2, 3)]).unwrap();
    put(&volume, 3 * PAGE as u64, u64::MAX, &[(2, 4)]).unwrap();
    drop(volume);
    let volume = open(&files).unwrap();
    let root = volume.node(ROOT).unwrap();
    assert_eq!(root.attributes().mode, 0o040700);
    assert_eq!(root.entries()[0].name, b"file");
    assert_eq!(volume.node(2).unwrap().attributes().xattrs[0].1, b"b");
    assert_eq!(read(&volume, 0).unwrap(), Some(page(1)));
    assert_eq!(read(&volume, 1).unwrap(), None);
    assert_eq!(read(&volume, 2).unwrap(), Some(page(4)));
    assert_eq!(volume.next_number(), 3);
    assert_eq!(volume.usage().pages, 2);
    // Cut to one page; the rest is gone for good.
    put(&volume, PAGE as u64, PAGE as u64, &[]).unwrap();
    let volume = open(&files).unwrap();
    assert_eq!(volume.node(2).unwrap().size(), PAGE as u64);
    assert_eq!(read(&volume, 2).unwrap(), None);
    assert_eq!(read(&volume, 0).unwrap(), Some(page(1)));
}

#[test]
fn nothing_is_written_in_the_clear() {
    let files: Arc<StdMutex<Files>> = Arc::default();
    let volume = open(&files).unwrap();
    let text = *b"a sentence that nobody outside may read";
    let mut content = [0; PAGE];
    content[..text.len()].copy_from_slice(&text);
    let change = Change::Set {
        number: 2,
        attributes: Attributes {
            xattrs: vec![(text.to_vec(), text.to_vec())],
            ..Attributes::default()
        },
        content: Content::File {
            size: 10,
            keep: 0,
            pages: vec![(0, content)],
        },
    };
    volume.commit(3, vec![change], |page| page).unwrap();
    for file in &files.lock().unwrap().0 {
        assert!(!file.windows(8).any(|window| window == &text[..8]));
    }
}

#[test]
fn another_key_opens_nothing() {
    let files = Arc::default();
    drop(open(&files).unwrap());
    let other = Volume::open(
        Memory::of(&files),
        KeyParameters::default(),
        Attributes::default(),
        &derive_with(8),
    );
    assert_eq!(other.err(), Some(VolumeError::WrongKey));
}

/// Flips of every kind of byte, one at a time: each is an error when the volume is opened or the
/// page is read, and never other content.
#[test]
fn every_flip_is_found() {
    let files: Arc<StdMutex<Files>> = Arc::default();
    let volume = open(&files).unwrap();
    put(&volume, 2 * PAGE as u64, 0, &[(0, 1), (1, 2)]).unwrap();
    drop(volume);
    let good = files.lock().unwrap().clone();
    let used = good.0[0].len();
    let mut step = 0usize;
    let mut found = 0;
    for at in (0..160).chain(4096..used) {
        // Every bit of headers and records, a part of the pages' bytes.
        step += 1;
        if at > 4400 && at < used - 400 && !step.is_multiple_of(37) {
            continue;
        }
        let mut bad = good.clone();
        bad.0[0][at] ^= 1 << (step % 8);
        let files = Arc::new(StdMutex::new(bad));
        let outcome = open(&files).and_then(|volume| {
            let pages = (read(&volume, 0)?, read(&volume, 1)?);
            assert_eq!(pages, (Some(page(1)), Some(page(2))), "byte {at}");
            Ok(())
        });
        // Unused bytes of the header block are authenticated too, so nothing may pass.
        assert!(outcome.is_err(), "a flip at byte {at} went unnoticed");
        found += 1;
    }
    assert!(found > 700, "{found}");
}

#[test]
fn pages_cannot_be_exchanged_or_replaced_by_older_ones() {
    let files: Arc<StdMutex<Files>> = Arc::default();
    let volume = open(&files).unwrap();
    put(&volume, 2 * PAGE as u64, 0, &[(0, 1), (1, 2)]).unwrap();
    let node = volume.node(2).unwrap();
    let (a, b) = (node.place(0).unwrap().offset, node.place(1).unwrap().offset);
    put(&volume, 2 * PAGE as u64, u64::MAX, &[(0, 9)]).unwrap();
    let newer = node.place(0).unwrap().offset;
    let copy = |from: u64, to: u64| {
        let mut files = files.lock().unwrap();
        let old = files.0[0].clone();
        let (from, to) = (from as usize, to as usize);
        files.0[0][to..to + PAGE].copy_from_slice(&old[from..from + PAGE]);
        old
    };
    for (from, to, index) in [(a, newer, 0), (a, b, 1), (newer, b, 1)] {
        let old = copy(from, to);
        let error = read(&volume, index).unwrap_err();
        assert!(matches!(error, VolumeError::Tampered { offset, .. } if offset == to));
        files.lock().unwrap().0[0] = old;
        assert!(read(&volume, index).unwrap().is_some());
    }
}

#[test]
fn an_old_state_is_refused() {
    let files: Arc<StdMutex<Files>> = Arc::default();
    let volume = open(&files).unwrap();
    put(&volume, PAGE as u64, 0, &[(0, 1)]).unwrap();
    let old = files.lock().unwrap().clone();
    put(&volume, PAGE as u64, 0, &[(0, 2)]).unwrap();
    drop(volume);
    let new = files.lock().unwrap().clone();
    let opened = |logs: &Files, anchor: &Files| {
        let mut mixed = logs.clone();
        mixed.0[2] = anchor.0[2].clone();
        open(&Arc::new(StdMutex::new(mixed))).map(|volume| volume.usage().version)
    };
    assert_eq!(
        opened(&old, &new),
        Err(VolumeError::RolledBack {
            found: 2,
            expected: 3
        })
    );
    // All of it gone.
    let nothing = Files::default();
    assert!(matches!(
        opened(&nothing, &new),
        Err(VolumeError::RolledBack { found: 0, .. })
    ));
    // Cut anywhere.
    for len in [4096, 5000, new.0[0].len() - 1, old.0[0].len() + 1] {
        let mut cut = new.clone();
        cut.0[0].truncate(len);
        assert!(opened(&cut, &new).is_err(), "{len}");
    }
    // The anchor away, or of another volume.
    assert_eq!(opened(&new, &nothing), Err(VolumeError::NoAnchor));
    let others = Arc::default();
    drop(open(&others).unwrap());
    let others = others.lock().unwrap().clone();
    assert_eq!(opened(&new, &others), Err(VolumeError::NoAnchor));
    assert_eq!(opened(&new, &new), Ok(3));
    // An older anchor with the newest logs: a crash may have left it so, nothing is lost.
    assert_eq!(opened(&new, &old), Ok(3));
}

/// The host dies at every possible write, the last one torn: what was acknowledged is there, and
/// what was not is there as a whole or not at all.
#[test]
fn a_crash_at_any_write_leaves_a_whole_state() {
    let mut done = false;
    for alive in 1.. {
        let files: Arc<StdMutex<Files>> = Arc::default();
        let volume = open(&files).unwrap();
        put(&volume, 8 * PAGE as u64, 0, &[(0, 0), (7, 0)]).unwrap();
        drop(volume);
        let volume = open(&files).unwrap();
        *volume.host.alive.lock().unwrap() = Some(alive);
        let mut acknowledged = 0;
        for fill in 1..=5 {
            // 100 pages: several writes for a frame.
            let pages: Vec<(u64, u64)> = (0..100).map(|index| (index, fill)).collect();
            match put(&volume, 100 * PAGE as u64, u64::MAX, &pages) {
                Ok(()) => acknowledged = fill,
                Err(VolumeError::Host) => break,
                Err(error) => panic!("{error}"),
            }
        }
        drop(volume);
        let volume = open(&files).unwrap_or_else(|error| panic!("after {alive} writes: {error}"));
        let first = read(&volume, 0).unwrap().unwrap();
        let fill = (0..=5).find(|&fill| page(fill) == first).unwrap();
        assert!(fill == acknowledged || fill == acknowledged + 1);
        for index in if fill == 0 { 0..1 } else { 0..100 } {
            assert_eq!(
                read(&volume, index).unwrap(),
                Some(page(fill)),
                "page {index}"
            );
        }
        // And it goes on from there.
        put(&volume, PAGE as u64, u64::MAX, &[(0, 77)]).unwrap();
        drop(volume);
        let volume = open(&files).unwrap();
        assert_eq!(read(&volume, 0).unwrap(), Some(page(77)));
        if acknowledged == 5 {
            done = true;
            break;
        }
    }
    assert!(done);
}

#[test]
fn garbage_is_collected_and_removed_files_stay_readable() {
    let files: Arc<StdMutex<Files>> = Arc::default();
    let volume = open(&files).unwrap();
    put(&volume, PAGE as u64, 0, &[(0, 5)]).unwrap();
    let open_file = volume.node(2).unwrap();
    volume
        .commit::<[u8; PAGE]>(3, vec![Change::Remove(2)], |page| page)
        .unwrap();
    for fill in 0..40 {
        let pages = (0..300).map(|index| (index, page(fill))).collect();
        let change = Change::Set {
            number: 3,
            attributes: Attributes::default(),
            content: Content::File {
                size: 300 * PAGE as u64,
                keep: 0,
                pages,
            },
        };
        volume.commit(4, vec![change], |page| page).unwrap();
    }
    let usage = volume.usage();
    assert_eq!((usage.pages, usage.nodes), (300, 2));
    assert!(
        usage.log < 300 * 4096 * 2 + GARBAGE_MIN + (2 << 20),
        "{usage:?}"
    );
    let mut bytes = [0; PAGE];
    assert!(volume.read_page(&open_file, 0, &mut bytes).unwrap());
    assert_eq!(bytes, page(5));
    drop(volume);
    let volume = open(&files).unwrap();
    assert_eq!(volume.usage().nodes, 2);
    assert!(volume.node(2).is_none());
    let node = volume.node(3).unwrap();
    assert!(volume.read_page(&node, 299, &mut bytes).unwrap());
    assert_eq!(bytes, page(39));
    assert!(
        files
            .lock()
            .unwrap()
            .0
            .iter()
            .filter(|file| file.len() > 9000)
            .count()
            == 1
    );
}
