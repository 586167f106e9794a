//! A tar reader that tells where data lies instead of copying it.
//!
//! Reads POSIX ustar and pax, GNU (long names, sparse files, base-256 numbers) and old V7
//! archives, from anything that can be read and skipped. Names are bytes. Nothing is believed:
//! checksums are verified, extended headers are bounded, sizes are only ever used for skipping,
//! and offsets are computed with overflow checks. Errors are `io::Error`s: `InvalidData` with a
//! reason, or `UnexpectedEof` where the archive ends inside an entry.

use std::io::{self, Read, Seek, SeekFrom};

const BLOCK: u64 = 512;
/// Extended headers hold names (at most PATH_MAX) and xattrs (64 KiB each on Linux).
const EXTENDED_MAX: u64 = 4 << 20;
/// Pieces of one sparse file; more is an attack on memory.
const SEGMENTS_MAX: usize = 1 << 20;

/// What can be read forward and skipped.
pub trait Skip: Read {
    /// Moves forward by `count` bytes; may succeed beyond the end.
    fn skip(&mut self, count: u64) -> io::Result<()>;
}

/// Skips by reading, for what must be hashed or copied on the way.
pub struct ReadThrough<R>(pub R);

impl<R: Read> Read for ReadThrough<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Skip for ReadThrough<R> {
    fn skip(&mut self, mut count: u64) -> io::Result<()> {
        let mut buffer = [0; 64 << 10];
        while count > 0 {
            let wanted = count.min(buffer.len() as u64) as usize;
            match self.0.read(&mut buffer[..wanted])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => count -= read as u64,
            }
        }
        Ok(())
    }
}

/// Skips by seeking; knows the length, so that it notices an end inside the skipped part.
pub struct Seekable<R> {
    inner: R,
    position: u64,
    len: u64,
}

impl<R: Read + Seek> Seekable<R> {
    /// Starts at the beginning of `inner`.
    pub fn new(mut inner: R) -> io::Result<Seekable<R>> {
        let len = inner.seek(SeekFrom::End(0))?;
        inner.seek(SeekFrom::Start(0))?;
        Ok(Seekable {
            inner,
            position: 0,
            len,
        })
    }
}

impl<R: Read> Read for Seekable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl<R: Read + Seek> Skip for Seekable<R> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let target = self.position.checked_add(count).filter(|&t| t <= self.len);
        self.position = target.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.inner.seek(SeekFrom::Start(self.position))?;
        Ok(())
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// A stretch of a file's data: `len` bytes at `logical` in the file, at `stored` in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub logical: u64,
    pub stored: u64,
    pub len: u64,
}

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    pub kind: Kind,
    /// Permission bits, with set-user-id and the like.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Size of the file; for a sparse one the apparent size.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data lies, in order; holes in between are zeros.
    pub segments: Vec<Segment>,
}

/// Reads the entries of an archive one after another.
pub struct Reader<R> {
    inner: R,
    position: u64,
    /// Bytes of the current entry's data and padding that were not skipped yet.
    rest: u64,
    started: bool,
}

impl<R: Skip> Reader<R> {
    pub fn new(inner: R) -> Reader<R> {
        Reader {
            inner,
            position: 0,
            rest: 0,
            started: false,
        }
    }

    /// The reader below, wherever it stands.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the end.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut pax = Pax::default();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            self.inner.skip(self.rest)?;
            self.position = add(self.position, self.rest)?;
            self.rest = 0;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = number(&header[124..136])?;
            match header[156] {
                b'L' => long_path = Some(until_nul(&self.extended(size)?).to_vec()),
                b'K' => long_link = Some(until_nul(&self.extended(size)?).to_vec()),
                b'x' => pax = Pax::parse(&self.extended(size)?)?,
                b'g' | b'V' | b'M' | b'X' => self.rest = padded(size)?,
                _ => return self.entry(&header, pax, long_path, long_link).map(Some),
            }
        }
    }

    /// The next header block with a right checksum; `None` at a block of zeros or at the end.
    fn header(&mut self) -> io::Result<Option<[u8; 512]>> {
        let mut block = [0; 512];
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..])? {
                0 if filled == 0 && self.started => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        self.position = add(self.position, BLOCK)?;
        self.started = true;
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let stored = number(&block[148..156])?;
        let sum = |value: fn(u8) -> i64| -> i64 {
            let spaces = 8 * i64::from(b' ');
            let before: i64 = block[..148].iter().map(|&byte| value(byte)).sum();
            before + spaces + block[156..].iter().map(|&byte| value(byte)).sum::<i64>()
        };
        let stored = i64::try_from(stored).unwrap_or(-1);
        // Ancient tar programs summed signed bytes.
        if stored != sum(i64::from) && stored != sum(|byte| i64::from(byte as i8)) {
            return Err(invalid("a tar header has a wrong checksum"));
        }
        Ok(Some(block))
    }

    /// The content of an extended header.
    fn extended(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENDED_MAX {
            return Err(invalid("an extended tar header is too large"));
        }
        let mut content = Vec::new();
        (&mut self.inner).take(size).read_to_end(&mut content)?;
        if (content.len() as u64) < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position = add(self.position, size)?;
        self.rest = padded(size)? - size;
        Ok(content)
    }

    fn entry(
        &mut self,
        header: &[u8; 512],
        pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> io::Result<Entry> {
        let gnu = &header[257..265] == b"ustar  \0";
        let ustar = &header[257..263] == b"ustar\0";
        let path = pax.path.or(long_path).unwrap_or_else(|| {
            let name = until_nul(&header[..100]);
            let prefix = until_nul(&header[345..500]);
            if ustar && !prefix.is_empty() {
                [prefix, b"/", name].concat()
            } else {
                name.to_vec()
            }
        });
        let kind = match header[156] {
            b'0' | 0 | b'7' | b'S' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(invalid("a tar entry has an unknown type")),
        };
        let stored = match pax.size {
            Some(size) => size,
            None => number(&header[124..136])?,
        };
        // Links and devices have no data, whatever their size field says; pax hard links may.
        let has_data = matches!(kind, Kind::File | Kind::HardLink | Kind::Directory);
        let stored = if has_data { stored } else { 0 };
        let seconds = signed(&header[136..148])?;
        let mut entry = Entry {
            path,
            link: pax
                .link
                .or(long_link)
                .unwrap_or_else(|| until_nul(&header[157..257]).to_vec()),
            kind,
            mode: (number(&header[100..108])? & 0o7777) as u32,
            uid: id(pax.uid.map_or_else(|| number(&header[108..116]), Ok)?)?,
            gid: id(pax.gid.map_or_else(|| number(&header[116..124]), Ok)?)?,
            mtime: pax.mtime.unwrap_or((seconds, 0)),
            size: if kind == Kind::File { stored } else { 0 },
            device: (0, 0),
            xattrs: pax.xattrs,
            segments: Vec::new(),
        };
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            entry.device = (
                id(number(&header[329..337])?)?,
                id(number(&header[337..345])?)?,
            );
        }
        let sparse = match pax.sparse {
            // Extension blocks come before the data and are not part of its size.
            _ if kind == Kind::File && header[156] == b'S' && gnu => Some(self.old_sparse(header)?),
            sparse => sparse,
        };
        let end = add(self.position, padded(stored)?)?;
        if kind == Kind::File {
            match sparse {
                None if stored > 0 => entry.segments.push(Segment {
                    logical: 0,
                    stored: self.position,
                    len: stored,
                }),
                None => {}
                Some(sparse) => self.place(&mut entry, sparse, stored)?,
            }
        }
        // A map at the start of the data may have been read.
        self.rest = end.saturating_sub(self.position);
        Ok(entry)
    }

    /// The map of a GNU sparse entry: 4 pieces in the header, 21 in each extension block.
    fn old_sparse(&mut self, header: &[u8; 512]) -> io::Result<Sparse> {
        let mut pieces = Vec::new();
        let mut take = |bytes: &[u8]| -> io::Result<()> {
            for piece in bytes.chunks_exact(24) {
                if piece[12] != 0 {
                    pieces.push((number(&piece[..12])?, number(&piece[12..])?));
                }
            }
            Ok(())
        };
        take(&header[386..482])?;
        let mut more = header[482] != 0;
        let mut count = 0;
        while more {
            let mut block = [0; 512];
            self.inner.read_exact(&mut block)?;
            self.position = add(self.position, BLOCK)?;
            take(&block[..504])?;
            more = block[504] != 0;
            count += 21;
            if count > SEGMENTS_MAX {
                return Err(invalid("a sparse file has too many pieces"));
            }
        }
        Ok(Sparse {
            name: None,
            size: number(&header[483..495])?,
            pieces,
            map_in_data: false,
        })
    }

    /// Checks a sparse map and turns it into segments.
    fn place(&mut self, entry: &mut Entry, sparse: Sparse, stored: u64) -> io::Result<()> {
        let mut pieces = sparse.pieces;
        let mut consumed = 0;
        if sparse.map_in_data {
            // Version 1.0: decimal numbers, one a line, padded to a block, before the data.
            let mut text = Vec::new();
            let mut block = [0; 512];
            loop {
                self.inner.read_exact(&mut block)?;
                self.position = add(self.position, BLOCK)?;
                consumed += BLOCK;
                text.extend_from_slice(&block);
                if consumed > stored || text.len() > SEGMENTS_MAX * 20 {
                    return Err(invalid("the map of a sparse file is malformed"));
                }
                if let Some(map) = sparse_map(&text)? {
                    pieces = map;
                    break;
                }
            }
        }
        let mut at = self.position;
        let mut left = stored - consumed;
        let mut logical = 0;
        for (offset, len) in pieces {
            let end = add(offset, len)?;
            if offset < logical || end > sparse.size || len > left {
                return Err(invalid("the map of a sparse file is malformed"));
            }
            if len > 0 {
                entry.segments.push(Segment {
                    logical: offset,
                    stored: at,
                    len,
                });
            }
            logical = end;
            at = add(at, len)?;
            left -= len;
        }
        if let Some(name) = sparse.name {
            entry.path = name;
        }
        entry.size = sparse.size;
        Ok(())
    }
}

/// A sparse file's size and pieces (offset, length).
#[derive(Default)]
struct Sparse {
    name: Option<Vec<u8>>,
    size: u64,
    pieces: Vec<(u64, u64)>,
    map_in_data: bool,
}

/// The complete map of a version 1.0 sparse file, or `None` when more text is needed.
fn sparse_map(text: &[u8]) -> io::Result<Option<Vec<(u64, u64)>>> {
    let mut lines = text.split_inclusive(|&byte| byte == b'\n');
    let mut next = || -> io::Result<Option<u64>> {
        match lines.next().and_then(|line| line.strip_suffix(b"\n")) {
            Some(line) => decimal(line).map(Some),
            None => Ok(None),
        }
    };
    let Some(count) = next()? else {
        return Ok(None);
    };
    if count > SEGMENTS_MAX as u64 {
        return Err(invalid("a sparse file has too many pieces"));
    }
    let mut pieces = Vec::new();
    for _ in 0..count {
        match (next()?, next()?) {
            (Some(offset), Some(len)) => pieces.push((offset, len)),
            _ => return Ok(None),
        }
    }
    Ok(Some(pieces))
}

/// What a pax header says about the next entry.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<Sparse>,
}

impl Pax {
    fn parse(mut content: &[u8]) -> io::Result<Pax> {
        let malformed = || invalid("a pax header is malformed");
        let mut pax = Pax::default();
        while !content.is_empty() && content[0] != 0 {
            let space = content.iter().position(|&byte| byte == b' ');
            let space = space.filter(|&at| at < 20).ok_or_else(malformed)?;
            let len = usize::try_from(decimal(&content[..space])?).map_err(|_| malformed())?;
            if len <= space + 1 || len > content.len() || content[len - 1] != b'\n' {
                return Err(malformed());
            }
            let record = &content[space + 1..len - 1];
            let equals = record.iter().position(|&byte| byte == b'=');
            let (key, value) = record.split_at(equals.ok_or_else(malformed)?);
            pax.record(key, &value[1..])?;
            content = &content[len..];
        }
        Ok(pax)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.name" => self.sparse().name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse().size = decimal(value)?,
            b"GNU.sparse.major" => self.sparse().map_in_data = decimal(value)? == 1,
            b"GNU.sparse.offset" => {
                let offset = decimal(value)?;
                let pieces = &mut self.sparse().pieces;
                if pieces.len() >= SEGMENTS_MAX {
                    return Err(invalid("a sparse file has too many pieces"));
                }
                pieces.push((offset, 0));
            }
            b"GNU.sparse.numbytes" => {
                let len = decimal(value)?;
                if let Some(piece) = self.sparse().pieces.last_mut() {
                    piece.1 = len;
                }
            }
            b"GNU.sparse.map" => {
                let numbers = value.split(|&byte| byte == b',').map(decimal);
                let numbers: Vec<u64> = numbers.collect::<io::Result<_>>()?;
                self.sparse().pieces = numbers
                    .chunks_exact(2)
                    .map(|pair| (pair[0], pair[1]))
                    .collect();
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    fn sparse(&mut self) -> &mut Sparse {
        self.sparse.get_or_insert_default()
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn add(a: u64, b: u64) -> io::Result<u64> {
    // Offsets are handed to pread, which takes signed numbers.
    a.checked_add(b)
        .filter(|&sum| sum <= i64::MAX as u64)
        .ok_or_else(|| invalid("a size in a tar header is too large"))
}

fn padded(size: u64) -> io::Result<u64> {
    Ok(add(size, BLOCK - 1)? / BLOCK * BLOCK)
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&byte| byte == 0);
    &bytes[..end.unwrap_or(bytes.len())]
}

fn id(value: u64) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| invalid("a user, group or device number is too large"))
}

fn decimal(text: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(text).ok();
    text.filter(|text| text.bytes().all(|c| c.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid("a number in a pax header is malformed"))
}

/// A pax time: seconds with an optional sign and fraction.
fn time(text: &[u8]) -> io::Result<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let dot = text.iter().position(|&byte| byte == b'.');
    let (seconds, fraction) = match dot {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(seconds)?).map_err(|_| invalid("a time is too large"))?;
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = match fraction.get(place) {
            Some(digit) if digit.is_ascii_digit() => digit - b'0',
            Some(_) => return Err(invalid("a time in a pax header is malformed")),
            None => 0,
        };
        nanoseconds = nanoseconds * 10 + u32::from(digit);
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

/// A numeric field: octal digits, or base 256 when the first bit is set.
fn number(field: &[u8]) -> io::Result<u64> {
    u64::try_from(signed(field)?).map_err(|_| invalid("a number in a tar header is negative"))
}

fn signed(field: &[u8]) -> io::Result<i64> {
    let malformed = || invalid("a number in a tar header is malformed");
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, &byte) in field.iter().enumerate() {
            let byte = if at == 0 && !negative {
                byte & 0x7f
            } else {
                byte
            };
            value = (value << 8) | i128::from(byte);
            if i64::try_from(value).is_err() {
                return Err(malformed());
            }
        }
        return i64::try_from(value).map_err(|_| malformed());
    }
    let text = until_nul(field).trim_ascii();
    let mut value: i64 = 0;
    for &digit in text {
        if !(b'0'..=b'7').contains(&digit) {
            return Err(malformed());
        }
        value = value.checked_mul(8).ok_or_else(malformed)? + i64::from(digit - b'0');
    }
    Ok(value)
}
