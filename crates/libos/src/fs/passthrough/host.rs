//! What the host is asked about files that are its own, and what is believed of its answers.
//!
//! Everything about such a file is the host's word; what is checked is that an answer is of the
//! form that the rest of the kernel relies on: lengths that fit, names that are names, sizes that
//! an offset can hold, types that exist.

use alloc::vec;
use alloc::vec::Vec;

use bulla_abi::hostcall::{DATA_SIZE, HostCall};

use crate::Result;
use crate::errno::{EINTR, EIO, ENAMETOOLONG, Errno};
use crate::fs::inode::{FileType, FsStatistics, NAME_MAX, Time};
use crate::platform::platform;

/// Longest target of a link (PATH_MAX).
const LINK_MAX: usize = 4096;
/// `struct stat` of x86-64.
const STAT_SIZE: usize = 144;
/// `struct dirent64` before the name: inode, offset, length, type.
const ENTRY_HEADER: usize = 19;
/// Bytes of entries asked for at once.
const ENTRIES_SIZE: usize = 32 << 10;

/// A descriptor of the host, closed when it is dropped.
#[derive(Debug)]
pub struct HostFd(u64);

impl Drop for HostFd {
    fn drop(&mut self) {
        platform().host_call(HostCall::Close, [self.0, 0, 0, 0], None);
    }
}

/// What the host says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Device and inode: what makes two names one file.
    pub key: (u64, u64),
    pub mode: u32,
    pub links: u64,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub blocks: u64,
    pub accessed: Time,
    pub modified: Time,
    pub changed: Time,
}

impl Status {
    /// Reads a `struct stat`; EIO where it cannot be one.
    pub fn parse(bytes: &[u8; STAT_SIZE]) -> Result<Status> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let half = |at: usize| (word(at & !7) >> (at % 8 * 8)) as u32;
        let time = |at: usize| Time {
            seconds: word(at) as i64,
            nanoseconds: (word(at + 8) % 1_000_000_000) as u32,
        };
        let mode = half(24) & 0o177777;
        FileType::from_mode(mode).ok_or(EIO.because("the host's file has no type"))?;
        let size = word(48);
        if size > i64::MAX as u64 {
            return Err(EIO.because("the host's file has an impossible size"));
        }
        Ok(Status {
            key: (word(0), word(8)),
            mode,
            links: word(16),
            uid: half(28),
            gid: half(32),
            size,
            blocks: word(64),
            accessed: time(72),
            modified: time(88),
            changed: time(104),
        })
    }
}

/// An answer that must lie in `0..=most`.
fn checked(answer: i64, most: u64) -> Result<u64> {
    if answer < 0 {
        return Err(Errno::from_host(answer));
    }
    let answer = answer as u64;
    if answer > most {
        return Err(EIO.because("the host's answer is longer than what was asked for"));
    }
    Ok(answer)
}

fn call(kind: HostCall, arguments: [u64; 4], most: u64) -> Result<u64> {
    loop {
        match checked(platform().host_call(kind, arguments, None), most) {
            // A wake-up that this call does not wait for.
            Err(error) if error == EINTR => {}
            other => return other,
        }
    }
}

fn descriptor(answer: u64) -> HostFd {
    HostFd(answer)
}

/// Largest number of a descriptor.
const FD_MAX: u64 = i32::MAX as u64;

fn put_name(name: &[u8]) -> Result<u64> {
    if name.len() > NAME_MAX {
        return Err(ENAMETOOLONG);
    }
    platform().host_put(0, name)?;
    Ok(name.len() as u64)
}

fn status_in_buffer() -> Result<Status> {
    let mut bytes = [0; STAT_SIZE];
    platform().host_get(0, &mut bytes)?;
    Status::parse(&bytes)
}

impl HostFd {
    /// The root of the mount of this number.
    pub fn root(number: u64) -> Result<HostFd> {
        call(HostCall::PassRoot, [number, 0, 0, 0], FD_MAX).map(descriptor)
    }

    /// The status of the object.
    pub fn status(&self) -> Result<Status> {
        call(HostCall::FdStat, [self.0, 0, 0, 0], 0)?;
        status_in_buffer()
    }

    /// The object of this name in a directory.
    pub fn lookup(&self, name: &[u8]) -> Result<(HostFd, Status)> {
        let len = put_name(name)?;
        let found = call(HostCall::PassLookup, [self.0, len, 0, 0], FD_MAX)?;
        let found = descriptor(found);
        let status = status_in_buffer()?;
        Ok((found, status))
    }

    /// Opens a place; `flags`: access mode, O_DIRECTORY.
    pub fn open(&self, flags: u32) -> Result<HostFd> {
        let arguments = [self.0, u64::from(flags), 0, 0];
        call(HostCall::PassOpen, arguments, FD_MAX).map(descriptor)
    }

    /// Makes an object; `mode` has its type.
    pub fn create(&self, name: &[u8], mode: u32, target: &[u8]) -> Result<()> {
        if target.len() > LINK_MAX {
            return Err(ENAMETOOLONG);
        }
        let both = [name, target].concat();
        if name.len() > NAME_MAX {
            return Err(ENAMETOOLONG);
        }
        platform().host_put(0, &both)?;
        let lens = [name.len() as u64, target.len() as u64];
        let arguments = [self.0, u64::from(mode), lens[0], lens[1]];
        call(HostCall::PassCreate, arguments, 0).map(drop)
    }

    /// Removes a name.
    pub fn remove(&self, name: &[u8], kind: FileType) -> Result<()> {
        let len = put_name(name)?;
        let directory = u64::from(kind == FileType::Directory);
        call(HostCall::PassRemove, [self.0, len, directory, 0], 0).map(drop)
    }

    /// Renames, with the flags of renameat2.
    pub fn rename(&self, name: &[u8], to: &HostFd, to_name: &[u8], flags: u64) -> Result<()> {
        if name.len() > NAME_MAX || to_name.len() > NAME_MAX {
            return Err(ENAMETOOLONG);
        }
        platform().host_put(0, &[name, to_name].concat())?;
        let lens = (name.len() as u64) << 32 | to_name.len() as u64;
        call(HostCall::PassRename, [self.0, to.0, lens, flags], 0).map(drop)
    }

    /// Gives the object another name.
    pub fn link(&self, directory: &HostFd, name: &[u8]) -> Result<()> {
        let len = put_name(name)?;
        call(HostCall::PassLink, [self.0, directory.0, len, 0], 0).map(drop)
    }

    /// The target of a link.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        let len = call(HostCall::PassReadLink, [self.0, 0, 0, 0], LINK_MAX as u64)?;
        let mut target = vec![0; len as usize];
        platform().host_get(0, &mut target)?;
        if target.is_empty() || target.contains(&0) {
            return Err(EIO.because("the host's link leads nowhere"));
        }
        Ok(target)
    }

    /// Entries of an open directory from the host's position on; none at the end.
    pub fn read_dir(&self, position: u64) -> Result<Vec<Entry>> {
        let arguments = [self.0, position, ENTRIES_SIZE as u64, 0];
        let len = call(HostCall::PassReadDir, arguments, ENTRIES_SIZE as u64)?;
        let mut bytes = vec![0; len as usize];
        platform().host_get(0, &mut bytes)?;
        entries(&bytes)
    }

    /// See [`bulla_abi::passthrough::change`].
    pub fn change(&self, what: u64, values: [u64; 2]) -> Result<()> {
        let arguments = [self.0, what, values[0], values[1]];
        call(HostCall::PassChange, arguments, 0).map(drop)
    }

    pub fn sync(&self) -> Result<()> {
        call(HostCall::PassSync, [self.0, 0, 0, 0], 0).map(drop)
    }

    pub fn statistics(&self) -> Result<FsStatistics> {
        call(HostCall::PassStatistics, [self.0, 0, 0, 0], 0)?;
        let mut bytes = [0; 40];
        platform().host_get(0, &mut bytes)?;
        let mut words = [0; 5];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut raw = [0; 8];
            raw.copy_from_slice(bytes);
            *word = u64::from_le_bytes(raw) & i64::MAX as u64;
        }
        let [block_size, blocks, free, files, files_free] = words;
        Ok(FsStatistics {
            // A program divides by it.
            block_size: block_size.clamp(512, 1 << 20),
            blocks,
            free,
            files,
            files_free,
            ..FsStatistics::default()
        })
    }

    /// Reads into trusted memory; 0 at the end.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        let len = to.len().min(DATA_SIZE as usize);
        let read = call(HostCall::Read, [self.0, len as u64, offset, 0], len as u64)? as usize;
        platform().host_get(0, &mut to[..read])?;
        Ok(read)
    }

    /// Writes from trusted memory: bytes written.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<usize> {
        let len = from.len().min(DATA_SIZE as usize);
        platform().host_put(0, &from[..len])?;
        let arguments = [self.0, len as u64, offset, 0];
        Ok(call(HostCall::Write, arguments, len as u64)? as usize)
    }
}

/// An entry of a directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub inode: u64,
    pub kind: FileType,
    /// The host's position after it.
    pub next: u64,
}

/// Reads `struct dirent64`s, without "." and "..". EIO for what no directory can hold.
pub fn entries(bytes: &[u8]) -> Result<Vec<Entry>> {
    const BAD: Errno = EIO.because("the host's directory has impossible entries");
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let header = rest.get(..ENTRY_HEADER).ok_or(BAD)?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let len = usize::from(u16::from_le_bytes([header[16], header[17]]));
        let name = rest.get(ENTRY_HEADER..len).ok_or(BAD)?;
        let end = name.iter().position(|&byte| byte == 0).ok_or(BAD)?;
        let name = &name[..end];
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&b'/') {
            return Err(BAD);
        }
        if name != b"." && name != b".." {
            found.push(Entry {
                name: name.to_vec(),
                inode: word(0),
                // DT_UNKNOWN, which some file systems give, is looked up by programs.
                kind: FileType::from_mode(u32::from(header[18]) << 12).unwrap_or(FileType::Regular),
                next: word(8),
            });
        }
        rest = &rest[len..];
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8], len: usize, kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes[0] = 7;
        bytes[8] = 9;
        bytes.extend_from_slice(&(len as u16).to_le_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(name);
        bytes.resize(len.max(bytes.len()), 0);
        bytes
    }

    #[test]
    fn entries_are_names() {
        let mut bytes = entry(b".", 24, 4);
        bytes.extend(entry(b"file", 24, 8));
        bytes.extend(entry(b"link", 32, 10));
        let found = entries(&bytes).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].inode, found[0].next), (7, 9));
        assert_eq!(found[0].name, b"file");
        assert_eq!(found[1].kind, FileType::Link);
        assert!(entries(&[]).unwrap().is_empty());
        for bad in [
            entry(b"a/b", 24, 8),
            entry(b"", 24, 8),
            // No end of the name, a length of nothing, one beyond the end.
            entry(b"abcde", 24, 8),
            entry(b"a", 0, 8),
            entry(b"a", 18, 8),
            entry(b"a", 24, 8)[..23].to_vec(),
            entry(&[b'x'; 256], 280, 8),
        ] {
            assert_eq!(entries(&bad), Err(EIO), "{bad:?}");
        }
    }

    #[test]
    fn a_status_has_a_type_and_a_size() {
        let mut bytes = [0; STAT_SIZE];
        assert_eq!(Status::parse(&bytes), Err(EIO), "no type");
        bytes[24..28].copy_from_slice(&0o100644u32.to_le_bytes());
        bytes[28..32].copy_from_slice(&5u32.to_le_bytes());
        bytes[32..36].copy_from_slice(&6u32.to_le_bytes());
        bytes[48..56].copy_from_slice(&77u64.to_le_bytes());
        bytes[80..88].copy_from_slice(&u64::MAX.to_le_bytes());
        let status = Status::parse(&bytes).unwrap();
        assert_eq!((status.mode, status.uid, status.gid), (0o100644, 5, 6));
        assert_eq!(status.size, 77);
        assert!(status.accessed.nanoseconds < 1_000_000_000);
        bytes[55] = 0x80;
        assert_eq!(Status::parse(&bytes), Err(EIO), "a negative size");
    }
}
