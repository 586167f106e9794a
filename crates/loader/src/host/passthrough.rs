//! Directories that the container uses as they are.
//!
//! The enclave gets places (O_PATH) and single names only, so even one that went wrong does not
//! leave the directories that the user named; what was given read-only stays so.

use std::os::fd::{AsRawFd, OwnedFd};

use bulla_abi::passthrough::change;

use super::Call;
use crate::sys::raw::{Answer, Errno};
use crate::sys::{file, place};

/// A directory of this machine that the container uses.
#[derive(Debug)]
pub struct PassedDirectory {
    place: OwnedFd,
    read_only: bool,
}

impl PassedDirectory {
    /// Opens a directory.
    pub fn open(path: &std::path::Path, read_only: bool) -> std::io::Result<PassedDirectory> {
        Ok(PassedDirectory {
            place: place::directory(path)?,
            read_only,
        })
    }
}

impl Call<'_> {
    /// The descriptor `fd`, of something that may be changed.
    fn changeable_place(&self, fd: u64) -> Result<i32, Errno> {
        let host = self.descriptor(fd)?;
        if self.engine.read_only.has(fd) {
            return Err(Errno(libc::EROFS));
        }
        Ok(host)
    }

    fn name_at(&self, from: usize, len: u64) -> Result<std::ffi::CString, Errno> {
        let end = (from as u64).checked_add(len).ok_or(Errno(libc::EINVAL))?;
        let bytes = self.data(end)?.to_vec();
        place::name(&bytes[from..])
    }

    /// Lets the enclave use a descriptor that came from `parent`.
    fn made_below(&self, fd: i32, read_only: bool) -> Answer {
        if read_only {
            if let Err(error) = self.engine.read_only.add(fd) {
                file::close(fd)?;
                return Err(error);
            }
        } else {
            // The number may have been another's.
            self.engine.read_only.remove(fd);
        }
        self.made(fd)
    }

    /// PassRoot(number).
    pub(super) fn pass_root(&self) -> Answer {
        let wanted = self.engine.directories.get(self.arguments[0] as usize);
        let directory = wanted.ok_or(Errno(libc::ENOENT))?;
        let fd = place::duplicate(directory.place.as_raw_fd())? as i32;
        self.made_below(fd, directory.read_only)
    }

    /// PassLookup(directory, len).
    pub(super) fn pass_lookup(&self) -> Answer {
        let [directory, len, ..] = self.arguments;
        let name = self.name_at(0, len)?;
        let fd = place::lookup(self.descriptor(directory)?, &name)? as i32;
        let status = self.data(size_of::<libc::stat>() as u64);
        if let Err(error) = status.and_then(|to| file::status_into(fd, to)) {
            file::close(fd)?;
            return Err(error);
        }
        self.made_below(fd, self.engine.read_only.has(directory))
    }

    /// PassOpen(place, flags).
    pub(super) fn pass_open(&self) -> Answer {
        let [place, flags, ..] = self.arguments;
        let host = self.descriptor(place)?;
        let access = flags as i32 & libc::O_ACCMODE;
        let read_only = self.engine.read_only.has(place);
        if read_only && access != libc::O_RDONLY {
            return Err(Errno(libc::EROFS));
        }
        let directory = flags as i32 & libc::O_DIRECTORY;
        // A device or pipe that the host has there is not for the container: opening one may wait,
        // or do something.
        let kind = file::status(host)?.st_mode & libc::S_IFMT;
        let wanted = match directory {
            0 => libc::S_IFREG,
            _ => libc::S_IFDIR,
        };
        if kind != wanted {
            return Err(Errno(libc::ENXIO));
        }
        let fd = place::open(host, access | directory)? as i32;
        self.made_below(fd, read_only)
    }

    /// PassCreate(directory, st_mode, len, len of the target).
    pub(super) fn pass_create(&self) -> Answer {
        let [directory, mode, len, target_len] = self.arguments;
        let directory = self.changeable_place(directory)?;
        let name = self.name_at(0, len)?;
        let bits = mode as u32 & 0o7777;
        match mode as u32 & libc::S_IFMT {
            libc::S_IFREG => place::make_file(directory, &name, bits)?,
            libc::S_IFDIR => place::make_directory(directory, &name, bits)?,
            libc::S_IFLNK => {
                let end = len.checked_add(target_len).ok_or(Errno(libc::EINVAL))?;
                let bytes = self.data(end)?.to_vec();
                let target = std::ffi::CString::new(&bytes[len as usize..]);
                let target = target.map_err(|_| Errno(libc::EINVAL))?;
                return place::make_link(directory, &name, &target);
            }
            _ => return Err(Errno(libc::EPERM)),
        };
        // What the umask of this process took away.
        let made = place::lookup(directory, &name)? as i32;
        let changed = match file::status(made) {
            Ok(status) if status.st_mode & libc::S_IFMT == mode as u32 & libc::S_IFMT => {
                place::change_mode(made, bits)
            }
            // Somebody else was there in between.
            _ => Ok(0),
        };
        file::close(made)?;
        changed.map(|_| 0)
    }

    /// PassRemove(directory, len, whether a directory).
    pub(super) fn pass_remove(&self) -> Answer {
        let [directory, len, is_directory, _] = self.arguments;
        let name = self.name_at(0, len)?;
        place::remove(self.changeable_place(directory)?, &name, is_directory == 1)
    }

    /// PassRename(directory, other, lens, flags).
    pub(super) fn pass_rename(&self) -> Answer {
        let [from, to, lens, flags] = self.arguments;
        let (len, to_len) = (lens >> 32, lens & 0xffff_ffff);
        let name = self.name_at(0, len)?;
        let to_name = self.name_at(len as usize, to_len)?;
        let from = self.changeable_place(from)?;
        place::rename(from, &name, self.changeable_place(to)?, &to_name, flags)
    }

    /// PassLink(place, directory, len).
    pub(super) fn pass_link(&self) -> Answer {
        let [object, directory, len, _] = self.arguments;
        let name = self.name_at(0, len)?;
        let object = self.changeable_place(object)?;
        place::link(object, self.changeable_place(directory)?, &name)
    }

    /// PassReadLink(place).
    pub(super) fn pass_read_link(&self) -> Answer {
        place::read_link(self.descriptor(self.arguments[0])?, self.data(4096)?)
    }

    /// PassReadDir(fd, position, room).
    pub(super) fn pass_read_directory(&self) -> Answer {
        let [fd, position, room, _] = self.arguments;
        place::read_directory(self.descriptor(fd)?, position, self.data(room)?)
    }

    /// PassChange(place, what, value, value).
    pub(super) fn pass_change(&self) -> Answer {
        let [place, what, first, second] = self.arguments;
        let fd = self.changeable_place(place)?;
        match what {
            change::MODE => place::change_mode(fd, first as u32 & 0o7777),
            change::OWNER => place::change_owner(fd, first as u32, second as u32),
            change::ACCESSED => place::change_time(fd, false, first as i64, second as i64),
            change::MODIFIED => place::change_time(fd, true, first as i64, second as i64),
            change::SIZE => file::resize(fd, first),
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    /// PassSync(fd).
    pub(super) fn pass_sync(&self) -> Answer {
        place::sync(self.descriptor(self.arguments[0])?)
    }

    /// PassStatistics(place).
    pub(super) fn pass_statistics(&self) -> Answer {
        let words = place::statistics(self.descriptor(self.arguments[0])?)?;
        let to = self.data(40)?;
        for (index, word) in words.iter().enumerate() {
            to.put(index * 8, &word.to_le_bytes());
        }
        Ok(0)
    }
}
