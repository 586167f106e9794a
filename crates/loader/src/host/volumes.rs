//! Protected volumes: the enclave's encrypted logs and anchors are files here.

use std::fs::File;
use std::os::fd::AsRawFd;

use bulla_abi::volume::{KEY, OBJECTS};

use super::Call;
use crate::sys::file;
use crate::sys::raw::{Answer, Errno};

/// The files of one volume: two logs, the anchor, the key where this host gives it.
#[derive(Debug, Default)]
pub struct VolumeFiles(pub [Option<File>; OBJECTS as usize]);

impl Call<'_> {
    /// The file behind an object's number.
    fn object(&self) -> Result<i32, Errno> {
        let number = self.arguments[0];
        let volume = self.engine.volumes.get((number / OBJECTS) as usize);
        let file = volume.and_then(|volume| volume.0[(number % OBJECTS) as usize].as_ref());
        file.map(AsRawFd::as_raw_fd).ok_or(Errno(libc::ENOENT))
    }

    /// The same, for a change of it.
    fn changeable(&self) -> Result<i32, Errno> {
        match self.arguments[0] % OBJECTS {
            KEY => Err(Errno(libc::EPERM)),
            _ => self.object(),
        }
    }

    /// VolumeSize(object).
    pub(super) fn volume_size(&self) -> Answer {
        match self.object() {
            Ok(fd) => Ok(file::status(fd)?.st_size as u64),
            Err(Errno(libc::ENOENT)) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// VolumeRead(object, len, offset).
    pub(super) fn volume_read(&self) -> Answer {
        let [_, len, offset, _] = self.arguments;
        let read = file::read_at(self.object()?, self.data(len)?, offset)?;
        self.slot.counters.bytes_in.add(read);
        Ok(read)
    }

    /// VolumeWrite(object, len, offset).
    pub(super) fn volume_write(&self) -> Answer {
        let [_, len, offset, _] = self.arguments;
        let written = file::write_at(self.changeable()?, self.data(len)?, offset)?;
        self.slot.counters.bytes_out.add(written);
        Ok(written)
    }

    /// VolumeResize(object, len).
    pub(super) fn volume_resize(&self) -> Answer {
        file::resize(self.changeable()?, self.arguments[1])
    }

    /// VolumeSync(object).
    pub(super) fn volume_sync(&self) -> Answer {
        file::sync(self.changeable()?)
    }
}
