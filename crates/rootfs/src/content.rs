//! Where the content of files comes from.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, SeekFrom};

use crate::error::{Error, Result, io_error};
use crate::sparse::is_zero;

/// Content of a file, not yet read.
pub(crate) enum Source {
    /// A file of this machine.
    Path(Box<Path>),
    /// A part of an open file.
    Range { file: Arc<File>, offset: u64 },
}

/// An open source.
pub(crate) struct Content<'a> {
    file: Opened,
    offset: u64,
    size: u64,
    name: Name<'a>,
    /// No data lies before this position of the content, as far as asked.
    next_data: u64,
}

/// For messages only. The path of a node is looked for when there is something to say: doing it for
/// each file takes time that grows with the square of their number.
enum Name<'a> {
    Path(&'a Path),
    Node(&'a dyn Fn() -> PathBuf),
}

enum Opened {
    Own(File),
    Shared(Arc<File>),
}

impl Source {
    /// Opens the source, checking that it still has `size` bytes. `name` is for messages.
    pub fn open<'a>(&'a self, size: u64, name: &'a dyn Fn() -> PathBuf) -> Result<Content<'a>> {
        match self {
            Source::Range { file, offset } => Ok(Content {
                file: Opened::Shared(file.clone()),
                offset: *offset,
                size,
                name: Name::Node(name),
                next_data: 0,
            }),
            Source::Path(path) => {
                // Should it have become a link or a pipe since, neither follow nor wait.
                let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
                let file = OpenOptions::new()
                    .read(true)
                    .custom_flags(flags.bits() as i32)
                    .open(path)
                    .map_err(io_error("opening", path))?;
                let metadata = file.metadata().map_err(io_error("reading", path))?;
                if !metadata.is_file() || metadata.len() != size {
                    return Err(Error::Size {
                        path: path.to_path_buf(),
                        expected: size,
                    });
                }
                Ok(Content {
                    file: Opened::Own(file),
                    offset: 0,
                    size,
                    name: Name::Path(path),
                    next_data: 0,
                })
            }
        }
    }
}

impl Content<'_> {
    fn path(&self) -> PathBuf {
        match self.name {
            Name::Path(path) => path.to_path_buf(),
            Name::Node(find) => find(),
        }
    }

    fn file(&self) -> &File {
        match &self.file {
            Opened::Own(file) => file,
            Opened::Shared(file) => file,
        }
    }

    /// Fills `buffer` from `position` on.
    pub fn read(&self, position: u64, buffer: &mut [u8]) -> Result<()> {
        self.file()
            .read_exact_at(buffer, self.offset + position)
            .map_err(|source| {
                if source.kind() == io::ErrorKind::UnexpectedEof {
                    Error::Size {
                        path: self.path(),
                        expected: self.size,
                    }
                } else {
                    Error::Io {
                        action: "reading",
                        path: self.path(),
                        source,
                    }
                }
            })
    }

    /// Whether the file system knows that this range holds nothing but zeros. It need not know.
    pub fn is_hole(&mut self, position: u64, length: u64) -> bool {
        if position + length <= self.next_data {
            return true;
        }
        match rustix::fs::seek(self.file(), SeekFrom::Data(self.offset + position)) {
            Ok(data) => self.next_data = data.saturating_sub(self.offset),
            // ENXIO: no data up to the end of the file, which must be where we think it is.
            Err(rustix::io::Errno::NXIO) => {
                let length = self.file().metadata().map(|metadata| metadata.len());
                if length.is_ok_and(|length| length >= self.offset + self.size) {
                    self.next_data = self.size;
                }
            }
            Err(_) => {}
        }
        position + length <= self.next_data
    }
}

/// Content that came from readers, waiting in one unnamed file.
pub(crate) struct Spool {
    pub directory: PathBuf,
    file: Option<Arc<File>>,
    length: u64,
    buffer: Vec<u8>,
}

const SPOOL_BUFFER: usize = 64 << 10;

impl Spool {
    pub fn new(directory: PathBuf) -> Spool {
        Spool {
            directory,
            file: None,
            length: 0,
            buffer: Vec::new(),
        }
    }

    /// Takes exactly `size` bytes from `reader`, which must end there. Zeros become holes.
    pub fn take(&mut self, reader: &mut dyn Read, size: u64, name: &Path) -> Result<Source> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => {
                let file = tempfile::tempfile_in(&self.directory)
                    .map_err(io_error("making a temporary file in", &self.directory))?;
                self.file.insert(Arc::new(file)).clone()
            }
        };
        self.buffer.resize(SPOOL_BUFFER, 0);
        let offset = self.length;
        let mut taken = 0;
        while taken < size {
            let length = (size - taken).min(SPOOL_BUFFER as u64) as usize;
            let part = &mut self.buffer[..length];
            reader.read_exact(part).map_err(|source| {
                if source.kind() == io::ErrorKind::UnexpectedEof {
                    Error::Size {
                        path: name.to_owned(),
                        expected: size,
                    }
                } else {
                    Error::Io {
                        action: "reading",
                        path: name.to_owned(),
                        source,
                    }
                }
            })?;
            if !is_zero(part) {
                file.write_all_at(part, offset + taken)
                    .map_err(io_error("writing a temporary file in", &self.directory))?;
            }
            taken += length as u64;
        }
        if reader
            .read(&mut self.buffer[..1])
            .map_err(io_error("reading", name))?
            != 0
        {
            return Err(Error::Size {
                path: name.to_owned(),
                expected: size,
            });
        }
        // Aligned, so that holes stay holes.
        self.length = (offset + size).next_multiple_of(crate::BLOCK);
        file.set_len(self.length)
            .map_err(io_error("writing a temporary file in", &self.directory))?;
        Ok(Source::Range { file, offset })
    }
}

/// Small pieces of content kept until the metadata is written: in memory up to a bound, then in an
/// unnamed file.
pub(crate) struct Tails {
    directory: PathBuf,
    memory: Vec<u8>,
    file: Option<File>,
    length: u64,
}

const TAILS_IN_MEMORY: usize = 64 << 20;

impl Tails {
    pub fn new(directory: PathBuf) -> Tails {
        Tails {
            directory,
            memory: Vec::new(),
            file: None,
            length: 0,
        }
    }

    /// Keeps `bytes`; the result finds them again.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let position = self.length;
        if self.file.is_none() && self.memory.len() + bytes.len() <= TAILS_IN_MEMORY {
            self.memory.extend_from_slice(bytes);
        } else {
            if self.file.is_none() {
                self.file = Some(tempfile::tempfile_in(&self.directory)?);
            }
            let file = self.file.as_ref().expect("made above");
            file.write_all_at(bytes, position - self.memory.len() as u64)?;
        }
        self.length += bytes.len() as u64;
        Ok(position)
    }

    /// The bytes kept at `position`.
    pub fn get(&self, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        let in_memory = self.memory.len() as u64;
        match &self.file {
            Some(file) if position >= in_memory => file.read_exact_at(buffer, position - in_memory),
            _ => {
                let start = position as usize;
                buffer.copy_from_slice(&self.memory[start..start + buffer.len()]);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_only_when_there_is_something_to_say() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"content", 0).unwrap();
        let source = Source::Range {
            file: Arc::new(file),
            offset: 3,
        };
        let asked = std::cell::Cell::new(0);
        let name = || {
            asked.set(asked.get() + 1);
            PathBuf::from("the name")
        };
        let mut content = source.open(4, &name).unwrap();
        let mut bytes = [0; 4];
        content.read(0, &mut bytes).unwrap();
        assert_eq!((&bytes, content.is_hole(0, 4)), (b"tent", false));
        assert_eq!(asked.get(), 0);
        let error = content.read(2, &mut bytes).unwrap_err().to_string();
        assert!(error.contains("the name"), "{error}");
        assert_eq!(asked.get(), 1);
    }
}
