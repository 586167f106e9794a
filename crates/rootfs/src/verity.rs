//! The hash tree, and the writer that hashes while it writes.
//!
//! The tree is dm-verity's, format 1: a hash block holds `SHA-256(salt ‖ block)` of 128 blocks of
//! the level below; on disk the top level comes first. One thread reads and writes, another hashes.

use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use bulla_abi::config::Rootfs;
use bulla_abi::sites::BLOB_MAX;
use sha2::{Digest, Sha256};

use crate::BLOCK;
use crate::content::Content;
use crate::error::{Error, Result, io_error};

/// Salt of all images. A salt keeps digests from being looked up in tables made for other uses of
/// SHA-256; it need not be secret or different for each image, and as a constant it lets blocks be
/// hashed before the image's size is known. It is SHA-256 of "bulla rootfs, version 1".
pub(crate) fn salt() -> [u8; 32] {
    Sha256::digest(b"bulla rootfs, version 1").into()
}

const DIGEST: usize = 32;
/// Bytes handed to the hashing thread at once: large enough that handing over costs nothing.
const BUFFER: usize = 1 << 20;
/// Buffers in flight.
const BUFFERS: usize = 4;

fn block_digest(salt: &[u8; 32], block: &[u8]) -> [u8; DIGEST] {
    Sha256::new()
        .chain_update(salt)
        .chain_update(block)
        .finalize()
        .into()
}

/// Appends to the image, hashing each block.
pub(crate) struct ImageWriter {
    out: File,
    /// Not yet written bytes, of a buffer of [`BUFFER`] bytes.
    buffer: Vec<u8>,
    filled: usize,
    /// Bytes written out.
    written: u64,
    to_hash: SyncSender<Vec<u8>>,
    hashed: Receiver<Vec<u8>>,
    hasher: JoinHandle<Vec<u8>>,
}

impl ImageWriter {
    /// Starts at position 0 of `out`.
    pub fn new(out: File) -> ImageWriter {
        let (to_hash, blocks) = sync_channel::<Vec<u8>>(BUFFERS);
        let (give_back, hashed) = sync_channel(BUFFERS + 1);
        for _ in 1..BUFFERS {
            give_back
                .send(vec![0; BUFFER])
                .expect("the channel has room");
        }
        let hasher = thread::spawn(move || {
            let salt = salt();
            let mut digests = Vec::new();
            for buffer in blocks {
                for block in buffer.chunks(BLOCK as usize) {
                    digests.extend(block_digest(&salt, block));
                }
                // Nobody takes it any more at the end.
                let _ = give_back.send(buffer);
            }
            digests
        });
        let buffer = vec![0; BUFFER];
        ImageWriter {
            out,
            buffer,
            filled: 0,
            written: 0,
            to_hash,
            hashed,
            hasher,
        }
    }

    /// Bytes appended so far.
    pub fn position(&self) -> u64 {
        self.written + self.filled as u64
    }

    /// Appends bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let length = bytes.len().min(BUFFER - self.filled);
            let (now, later) = bytes.split_at(length);
            self.buffer[self.filled..][..length].copy_from_slice(now);
            self.advance(length)?;
            bytes = later;
        }
        Ok(())
    }

    /// Appends a part of a content, without a copy in between.
    pub fn copy(
        &mut self,
        content: &Content<'_>,
        mut position: u64,
        mut length: u64,
    ) -> Result<()> {
        while length > 0 {
            let part = length.min((BUFFER - self.filled) as u64) as usize;
            content.read(position, &mut self.buffer[self.filled..][..part])?;
            self.advance(part)?;
            position += part as u64;
            length -= part as u64;
        }
        Ok(())
    }

    /// Appends zeros up to `position`.
    pub fn pad_to(&mut self, position: u64) -> Result<()> {
        while self.position() < position {
            let missing = position - self.position();
            let length = missing.min((BUFFER - self.filled) as u64) as usize;
            self.buffer[self.filled..][..length].fill(0);
            self.advance(length)?;
        }
        Ok(())
    }

    /// Appends zeros up to the next block; its number.
    pub fn align(&mut self) -> Result<u32> {
        self.pad_to(self.position().next_multiple_of(BLOCK))?;
        u32::try_from(self.position() / BLOCK).map_err(|_| Error::TooLarge)
    }

    fn advance(&mut self, length: usize) -> Result<()> {
        self.filled += length;
        if self.filled == BUFFER {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<()> {
        let next = self
            .hashed
            .recv()
            .expect("the hashing thread gives every buffer back");
        let mut full = mem::replace(&mut self.buffer, next);
        self.out
            .write_all_at(&full[..self.filled], self.written)
            .map_err(write_error())?;
        full.truncate(self.filled);
        self.buffer.resize(BUFFER, 0);
        self.written += self.filled as u64;
        self.filled = 0;
        self.to_hash
            .send(full)
            .expect("the hashing thread takes every buffer");
        Ok(())
    }

    /// Replaces the first block by `first` and appends the hash tree.
    pub fn finish(mut self, first: &[u8]) -> Result<Rootfs> {
        self.align()?;
        self.flush()?;
        let ImageWriter {
            out,
            written: data_size,
            to_hash,
            hashed,
            hasher,
            ..
        } = self;
        drop(hashed);
        drop(to_hash);
        let mut level = hasher.join().expect("hashing does not panic");
        let salt = salt();
        out.write_all_at(first, 0).map_err(write_error())?;
        level[..DIGEST].copy_from_slice(&block_digest(&salt, first));
        // Digests become a level of hash blocks, whose digests become the next, up to one digest.
        let mut levels = Vec::new();
        while level.len() > DIGEST {
            level.resize(level.len().next_multiple_of(BLOCK as usize), 0);
            let blocks = level.chunks(BLOCK as usize);
            let above = blocks
                .flat_map(|block| block_digest(&salt, block))
                .collect();
            levels.push(mem::replace(&mut level, above));
        }
        let mut position = data_size;
        for level in levels.iter().rev() {
            out.write_all_at(level, position).map_err(write_error())?;
            position += level.len() as u64;
        }
        let root_hash = *level.first_chunk().expect("one digest is left");
        Ok(Rootfs {
            data_size,
            tree_size: position - data_size,
            salt,
            root_hash,
            sites: None,
        })
    }
}

fn write_error() -> impl FnOnce(io::Error) -> Error {
    io_error("writing", Path::new("the image"))
}

/// Checks the whole file against its parameters: site lists, tree, then data (with two threads).
pub fn verify(path: &Path, rootfs: &Rootfs) -> Result<()> {
    let file = File::open(path).map_err(io_error("opening", path))?;
    let length = file.metadata().map_err(io_error("reading", path))?.len();
    let Rootfs {
        data_size,
        tree_size,
        ref salt,
        root_hash,
        ref sites,
    } = *rootfs;
    let blocks = data_size / BLOCK;
    let geometry = level_sizes(blocks);
    if blocks == 0
        || !data_size.is_multiple_of(BLOCK)
        || geometry.iter().sum::<u64>() * BLOCK != tree_size
        || rootfs.file_size() != Some(length)
        || sites.as_ref().is_some_and(|sites| sites.size > BLOB_MAX)
    {
        return Err(Error::Parameters {
            path: path.to_owned(),
        });
    }
    if let Some(sites) = sites {
        let mut blob = vec![0; sites.size as usize];
        file.read_exact_at(&mut blob, sites.offset)
            .map_err(io_error("reading", path))?;
        if Sha256::digest(&blob)[..] != sites.sha256 {
            return Err(Error::CorruptSites {
                path: path.to_owned(),
            });
        }
    }
    // From the top: what the level above says of the level that comes next in the file.
    let mut expected = root_hash.to_vec();
    let mut position = data_size;
    for size in geometry.iter().rev() {
        let mut level = vec![0; (size * BLOCK) as usize];
        file.read_exact_at(&mut level, position)
            .map_err(io_error("reading", path))?;
        position += size * BLOCK;
        let mut hashes = level.chunks(BLOCK as usize).zip(expected.chunks(DIGEST));
        if !hashes.all(|(block, digest)| block_digest(salt, block) == digest) {
            return Err(Error::CorruptTree {
                path: path.to_owned(),
            });
        }
        expected = level;
    }
    let next = AtomicU64::new(0);
    let wrong = AtomicU64::new(u64::MAX);
    let check = || -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let start = next.fetch_add(BUFFER as u64, Ordering::Relaxed);
            if start >= data_size {
                return Ok(());
            }
            let part = &mut buffer[..(data_size - start).min(BUFFER as u64) as usize];
            file.read_exact_at(part, start)?;
            let first = start / BLOCK;
            let digests = expected[first as usize * DIGEST..].chunks(DIGEST);
            for (number, (block, digest)) in part.chunks(BLOCK as usize).zip(digests).enumerate() {
                if block_digest(salt, block) != digest {
                    wrong.fetch_min(first + number as u64, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(check);
        check().and(other.join().expect("checking does not panic"))
    })
    .map_err(io_error("reading", path))?;
    match wrong.into_inner() {
        u64::MAX => Ok(()),
        block => Err(Error::Corrupt {
            path: path.to_owned(),
            block,
        }),
    }
}

/// Blocks of each level of a tree, the one next to the data first.
fn level_sizes(data_blocks: u64) -> Vec<u64> {
    let mut sizes = Vec::new();
    let mut blocks = data_blocks;
    while blocks > 1 {
        blocks = blocks.div_ceil(BLOCK / DIGEST as u64);
        sizes.push(blocks);
    }
    sizes
}
