//! What the host may do to an image, and what a builder of images may: the vault answers with an
//! error and never with wrong data, a panic or an endless loop.

mod common;
#[path = "common/exercise.rs"]
mod exercise;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bulla_abi::config::Rootfs;
use bulla_rootfs::{Attributes, Builder, Special};
use bulla_vault::{BlockSource, Erofs, Error, Options, SourceFault};
use common::*;
use exercise::exercise;

/// A small image in which every kind of structure occurs.
fn small_image() -> (Vec<u8>, Rootfs) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let mut builder = Builder::new();
    let plain = Attributes::default;
    for size in [1, 3000, 5000, 9000, 40_000] {
        let name = format!("files/{size}");
        let content = noise(size, size as usize);
        builder
            .add_file(name.as_bytes(), plain(), size, &mut &content[..])
            .unwrap();
    }
    let mut sparse = vec![0; 1 << 20];
    sparse[400_000..410_000].copy_from_slice(&noise(3, 10_000));
    let size = sparse.len() as u64;
    builder
        .add_file(b"sparse", plain(), size, &mut &sparse[..])
        .unwrap();
    for index in 0..200 {
        let name = format!("many/{index}-{}", "n".repeat(100));
        builder
            .add_special(name.as_bytes(), plain(), Special::Fifo)
            .unwrap();
    }
    builder.add_symlink(b"link", plain(), b"files/1").unwrap();
    builder
        .add_symlink(b"long", plain(), &[b'l'; 4090])
        .unwrap();
    let xattrs = BTreeMap::from([
        (b"user.a".to_vec(), b"1".to_vec()),
        (b"user.large".to_vec(), noise(9, 5000)),
        (b"security.capability".to_vec(), vec![1; 20]),
    ]);
    builder
        .add_dir(
            b"attributes",
            Attributes {
                xattrs,
                uid: 1 << 20,
                ..plain()
            },
        )
        .unwrap();
    builder
        .add_special(
            b"null",
            plain(),
            Special::CharacterDevice { major: 1, minor: 3 },
        )
        .unwrap();
    let rootfs = builder.finish(create(&path)).unwrap();
    (fs::read(&path).unwrap(), rootfs)
}

/// Remembers which blocks were asked for.
struct Recording {
    memory: Memory,
    blocks: Mutex<BTreeSet<u64>>,
}

impl BlockSource for Recording {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceFault> {
        let end = offset + buf.len() as u64;
        self.blocks
            .lock()
            .unwrap()
            .extend(offset / 4096..end / 4096);
        self.memory.read(offset, buf)
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.memory.sha256(parts)
    }
}

fn open_and_describe(source: impl BlockSource, rootfs: &Rootfs) -> bulla_vault::Result<Tree> {
    try_describe_image(&Erofs::open(source, rootfs, Options::default())?)
}

#[test]
fn every_flipped_byte_in_a_used_block_is_noticed_and_named() {
    let (bytes, rootfs) = small_image();
    let source = Recording {
        memory: Memory(bytes.clone()),
        blocks: Mutex::default(),
    };
    let truth = open_and_describe(&source, &rootfs).unwrap();
    let used = source.blocks.into_inner().unwrap();
    let all = bytes.len() as u64 / 4096;
    assert!(
        used.len() as u64 >= all - 1,
        "only {} of {all} blocks are used",
        used.len()
    );
    let mut image = Memory(bytes);
    // Optimised, every byte; else a few of each block.
    let step = if cfg!(debug_assertions) { 509 } else { 7 };
    for at in (0..image.0.len()).step_by(step) {
        image.0[at] ^= 1 << (at % 8);
        let block = at as u64 / 4096;
        let found = open_and_describe(&image, &rootfs);
        match found {
            Err(Error::Integrity { block: named }) => {
                assert_eq!(named, block);
                assert!(block < rootfs.data_size / 4096);
            }
            Err(Error::TreeIntegrity { block: named, .. }) => {
                assert_eq!(named, block);
                assert!(block >= rootfs.data_size / 4096);
            }
            Err(error) => panic!("byte {at}: {error}"),
            Ok(tree) => {
                assert!(
                    !used.contains(&block),
                    "byte {at} of block {block} was not noticed"
                );
                assert_same(&tree, &truth);
            }
        }
        image.0[at] ^= 1 << (at % 8);
    }
}

#[test]
fn wrong_parameters_are_refused() {
    let (bytes, rootfs) = small_image();
    let open = |bytes: &[u8], rootfs: &Rootfs| {
        Erofs::open(Memory(bytes.to_vec()), rootfs, Options::default())
            .map(drop)
            .unwrap_err()
    };
    for change in 0..5 {
        let mut wrong = rootfs.clone();
        match change {
            0 => wrong.data_size += 1,
            1 => wrong.data_size = 0,
            2 => wrong.tree_size += 4096,
            3 => wrong.data_size = !4095,
            _ => (wrong.data_size, wrong.tree_size) = (1 << 62, 1 << 55),
        }
        assert!(
            matches!(open(&bytes, &wrong), Error::Parameters { .. }),
            "{wrong:?}"
        );
    }
    let wrong = Rootfs {
        salt: [1; 32],
        ..rootfs.clone()
    };
    assert!(matches!(open(&bytes, &wrong), Error::TreeIntegrity { .. }));
    let wrong = Rootfs {
        root_hash: [1; 32],
        ..rootfs.clone()
    };
    assert!(matches!(open(&bytes, &wrong), Error::TreeIntegrity { .. }));
    let short = &bytes[..bytes.len() - 4096];
    assert!(matches!(open(short, &rootfs), Error::Source { .. }));
}

/// Now and then gives a block with a flipped bit, or none.
struct Unsteady {
    memory: Memory,
    state: AtomicU64,
}

impl Unsteady {
    fn random(&self) -> u64 {
        let state = self
            .state
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 31)
    }
}

impl BlockSource for Unsteady {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceFault> {
        self.memory.read(offset, buf)?;
        let random = self.random();
        match random % 29 {
            0 => {
                let at = (random >> 8) as usize % buf.len();
                buf[at] ^= 1 << (random >> 32 & 7);
                Ok(())
            }
            1 => Err(SourceFault),
            _ => Ok(()),
        }
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.memory.sha256(parts)
    }
}

#[test]
fn many_threads_read_right_data_or_none_from_a_host_that_changes_its_mind() {
    // Without caches blocks are read again and again; small ones are fought for.
    for bytes in [0, 32 << 10] {
        read_from_unsteady_host(Options {
            hash_cache: bytes,
            block_cache: bytes,
            content_cache: bytes,
        });
    }
}

fn read_from_unsteady_host(options: Options) {
    let (bytes, rootfs) = small_image();
    let truth = open(&bytes, &rootfs);
    let files = truth
        .inode(truth.lookup(&truth.root().unwrap(), b"files").unwrap().nid)
        .unwrap();
    let inode = truth
        .inode(truth.lookup(&files, b"40000").unwrap().nid)
        .unwrap();
    let mut content = vec![0; 40_000];
    truth.read_at(&inode, 0, &mut content).unwrap();
    let source = Unsteady {
        memory: Memory(bytes),
        state: AtomicU64::new(1),
    };
    let fs = std::iter::repeat_with(|| Erofs::open(&source, &rootfs, options))
        .find_map(Result::ok)
        .unwrap();
    let (good, bad) = (AtomicU64::new(0), AtomicU64::new(0));
    let reader = |seed: usize| {
        let mut buffer = vec![0; 20_000];
        for round in 0..300 {
            let offset = (round * 1237 + seed * 4096) % 40_000;
            let length = 1 + (round * 733) % 20_000;
            let result = fs
                .inode(inode.nid())
                .and_then(|inode| fs.read_at(&inode, offset as u64, &mut buffer[..length]));
            match result {
                Ok(read) => {
                    assert_eq!(read, length.min(40_000 - offset));
                    assert_eq!(buffer[..read], content[offset..][..read]);
                    good.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    assert_eq!(error.errno(), 5);
                    bad.fetch_add(1, Ordering::Relaxed);
                }
            }
            match fs.lookup(&files, b"9000") {
                Ok(entry) => assert_eq!(entry, truth.lookup(&files, b"9000").unwrap()),
                Err(error) => assert_eq!(error.errno(), 5),
            }
        }
    };
    std::thread::scope(|scope| {
        for seed in 0..8 {
            scope.spawn(move || reader(seed));
        }
    });
    // What is in the cache needs no host.
    assert!(good.into_inner() > 100 && bad.into_inner() > 5);

    fn open(bytes: &[u8], rootfs: &Rootfs) -> Erofs<Memory> {
        Erofs::open(Memory(bytes.to_vec()), rootfs, Options::default()).unwrap()
    }
}

#[test]
fn malformed_images_with_right_hashes_give_errors_only() {
    let (bytes, rootfs) = small_image();
    let image = &bytes[..rootfs.data_size as usize];
    assert!(exercise(image).unwrap() > 200);
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    };
    // Changes go where structures are: the superblock and the metadata at the end.
    let metadata = u32::from_le_bytes(image[1064..1068].try_into().unwrap()) as usize * 4096;
    let mut opened = 0;
    for _ in 0..if cfg!(debug_assertions) { 600 } else { 20_000 } {
        let mut mutant = image.to_vec();
        for _ in 0..1 + random(8) {
            let at = match random(16) {
                0 => 1024 + random(128),
                1..3 => random(mutant.len()),
                _ => metadata + random(mutant.len() - metadata),
            };
            let value = match random(4) {
                0 => 0xff,
                1 => 0,
                2 => mutant[at] ^ 1 << random(8),
                _ => random(256) as u8,
            };
            let length = [1, 1, 2, 4, 8][random(5)].min(mutant.len() - at);
            mutant[at..at + length].fill(value);
        }
        opened += usize::from(exercise(&mutant).is_some());
    }
    assert!(opened > 100, "only {opened} mutants could be opened");
    for length in (0..image.len()).step_by(4001) {
        exercise(&image[..length]);
    }
}
