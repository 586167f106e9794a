//! Layer blobs: recognising their compression, verifying their digests, making them seekable.

use crate::digest::{Digest, HashingReader};
use crate::error::Error;
use crate::flatten::Flattener;
use crate::tar;
use crate::tree::Layer;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A blob inside a file: an entry of an archive, or a file of a layout directory.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    /// For messages.
    pub path: PathBuf,
    pub file: Arc<File>,
    pub offset: u64,
    pub len: u64,
    /// What its bytes must hash to, where the image says so.
    pub digest: Option<Digest>,
}

/// Largest configuration, manifest or index that is read into memory.
const METADATA_MAX: u64 = 16 << 20;

impl Blob {
    pub fn reader(&self) -> BlobReader {
        BlobReader {
            file: self.file.clone(),
            offset: self.offset,
            left: self.len,
        }
    }

    /// The whole of a small blob, verified.
    pub fn read(&self, what: &str) -> Result<Vec<u8>, Error> {
        if self.len > METADATA_MAX {
            return Err(Error::TooLarge {
                what: format!("{what} of {} MiB", self.len >> 20),
            });
        }
        let mut bytes = Vec::new();
        let read = self.reader().read_to_end(&mut bytes);
        read.map_err(Error::io(&self.path))?;
        self.check(what, Digest::of(&bytes))?;
        Ok(bytes)
    }

    fn check(&self, what: &str, found: Digest) -> Result<(), Error> {
        match self.digest {
            Some(expected) if expected != found => Err(Error::Digest {
                path: self.path.clone(),
                what: what.to_owned(),
                expected: expected.to_string(),
                found: found.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

/// Reads a blob from its beginning, independently of other readers of the same file.
pub(crate) struct BlobReader {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = self.left.min(buffer.len() as u64) as usize;
        if limit == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..limit], self.offset)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// How a stream is compressed, told from its first bytes (media types are often wrong).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn of(start: &[u8]) -> Compression {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// Sniffs the compression of a blob.
    pub fn of_blob(blob: &Blob) -> Result<Compression, Error> {
        let mut start = Vec::new();
        let read = blob.reader().take(4).read_to_end(&mut start);
        read.map_err(Error::io(&blob.path))?;
        Ok(Compression::of(&start))
    }
}

/// Copies what is read through it to a file, up to a limit.
struct Tee<R> {
    inner: R,
    copy: Option<File>,
    left: u64,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count as u64 > self.left {
            let reason = "it unpacks to more bytes than the limit allows";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        self.left -= count as u64;
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..count])?;
        }
        Ok(count)
    }
}

/// All frames of a zstd stream (the decoder stops after each).
struct ZstdFrames<R: Read> {
    decoder: Option<ruzstd::decoding::StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>,
}

impl<R: Read> ZstdFrames<R> {
    fn new(inner: R) -> io::Result<ZstdFrames<R>> {
        let decoder = ruzstd::decoding::StreamingDecoder::new(inner).map_err(zstd_error)?;
        Ok(ZstdFrames {
            decoder: Some(decoder),
        })
    }
}

fn zstd_error(error: ruzstd::decoding::errors::FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl<R: io::BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(decoder) = &mut self.decoder else {
                return Ok(0);
            };
            let count = decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let Some(decoder) = self.decoder.take() else {
                return Ok(0);
            };
            let mut inner = decoder.into_inner();
            if inner.fill_buf()?.is_empty() {
                return Ok(0);
            }
            self.decoder =
                Some(ruzstd::decoding::StreamingDecoder::new(inner).map_err(zstd_error)?);
        }
    }
}

fn decompress<'a>(
    compression: Compression,
    inner: impl io::BufRead + 'a,
) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(inner),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(inner)),
        Compression::Zstd => Box::new(ZstdFrames::new(inner)?),
    })
}

/// An unnamed file in `dir`: it vanishes with its last descriptor, whatever happens.
pub(crate) fn scratch_file(dir: &Path) -> Result<File, Error> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(File::from(fd)),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            // A file system without O_TMPFILE.
            let path = dir.join(format!(".scratch-{}", std::process::id()));
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).open(&path);
            let file = file.map_err(Error::io(&path))?;
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
            Ok(file)
        }
        Err(errno) => Err(Error::Io {
            path: dir.to_owned(),
            source: errno.into(),
        }),
    }
}

/// Unpacks a compressed archive into an unnamed file, so that it can be read at any offset.
pub(crate) fn spool(blob: &Blob, compression: Compression, dir: &Path) -> Result<Blob, Error> {
    let file = scratch_file(dir)?;
    let mut copy = file.try_clone().map_err(Error::io(&blob.path))?;
    let inner = BufReader::with_capacity(256 << 10, blob.reader());
    let mut reader = decompress(compression, inner).map_err(Error::io(&blob.path))?;
    let len = io::copy(&mut reader, &mut copy).map_err(Error::io(&blob.path))?;
    Ok(Blob {
        path: blob.path.clone(),
        file: Arc::new(file),
        offset: 0,
        len,
        digest: None,
    })
}

/// Reads one layer, verifies its blob digest and `diff_id`, and applies it to the tree.
///
/// A compressed layer is unpacked into an unnamed file in `dir` on the way, so that file contents
/// can be read later in any order; an uncompressed one stays where it is.
pub(crate) fn layer(
    blob: &Blob,
    diff_id: Option<Digest>,
    flattener: &mut Flattener,
    bytes_max: u64,
    dir: &Path,
) -> Result<(), Error> {
    let io_error = Error::io(&blob.path);
    let index = flattener.tree.layers.len();
    let layer_number = u16::try_from(index).map_err(|_| Error::TooLarge {
        what: "more than 65535 layers".to_owned(),
    })?;
    let compression = Compression::of_blob(blob)?;
    let scratch = match compression {
        Compression::None => None,
        _ => Some(scratch_file(dir)?),
    };
    let copy = scratch.as_ref().map(File::try_clone).transpose();
    let copy = copy.map_err(&io_error)?;
    flattener.tree.layers.push(match scratch {
        None => Layer {
            file: blob.file.clone(),
            offset: blob.offset,
        },
        Some(file) => Layer {
            file: Arc::new(file),
            offset: 0,
        },
    });

    // For an uncompressed layer the two digests are the same.
    let blob_hash = compression != Compression::None && blob.digest.is_some();
    let mut raw = MaybeHashing::new(blob.reader(), blob_hash);
    let unpacked = {
        let buffered = BufReader::with_capacity(256 << 10, &mut raw);
        let tee = Tee {
            inner: decompress(compression, buffered).map_err(&io_error)?,
            copy,
            left: bytes_max,
        };
        let hashing = HashingReader::new(tee);
        let source = tar::ReadThrough(BufReader::with_capacity(256 << 10, hashing));
        let mut reader = tar::Reader::new(source);
        while let Some(entry) = reader.next_entry().map_err(&io_error)? {
            flattener.apply(layer_number, entry)?;
        }
        let hashing = reader.into_inner().0.into_inner();
        hashing.finish().map_err(&io_error)?
    };
    if let Some(found) = raw.finish().map_err(&io_error)? {
        blob.check(&format!("layer {}", index + 1), found)?;
    } else if compression == Compression::None {
        blob.check(&format!("layer {}", index + 1), unpacked)?;
    }
    let what = format!("layer {} (uncompressed)", index + 1);
    Blob {
        digest: diff_id,
        ..blob.clone()
    }
    .check(&what, unpacked)
}

/// Hashes on request only.
enum MaybeHashing<R> {
    Plain(R),
    Hashing(HashingReader<R>),
}

impl<R: Read> MaybeHashing<R> {
    fn new(inner: R, hash: bool) -> MaybeHashing<R> {
        match hash {
            true => MaybeHashing::Hashing(HashingReader::new(inner)),
            false => MaybeHashing::Plain(inner),
        }
    }

    fn finish(self) -> io::Result<Option<Digest>> {
        match self {
            MaybeHashing::Plain(_) => Ok(None),
            MaybeHashing::Hashing(reader) => reader.finish().map(Some),
        }
    }
}

impl<R: Read> Read for MaybeHashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            MaybeHashing::Plain(inner) => inner.read(buffer),
            MaybeHashing::Hashing(inner) => inner.read(buffer),
        }
    }
}
