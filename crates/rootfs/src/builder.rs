//! The description of an image, entry by entry.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bulla_abi::config::Rootfs;

use crate::content::{Source, Spool};
use crate::error::{Error, Result, image_path, io_error};
use crate::format;
use crate::image;
use crate::tree::{Directory, Kind, Node, NodeId, ROOT, Tree};

/// What every inode has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, with set-user-ID, set-group-ID and sticky: at most 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970, nanoseconds below 10^9. EROFS knows no other time.
    pub modified: (i64, u32),
    /// Extended attributes by full name (`security.capability`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Whether EROFS can hold an extended attribute of this name; adding another one is an error.
pub fn xattr_is_supported(name: &[u8]) -> bool {
    format::split_xattr(name).is_some_and(|(_, suffix)| suffix.len() <= 255)
}

/// Inodes without content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Character device.
    CharacterDevice {
        /// At most 4095.
        major: u32,
        /// At most 1048575.
        minor: u32,
    },
    /// Block device.
    BlockDevice {
        /// At most 4095.
        major: u32,
        /// At most 1048575.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
    /// UNIX socket.
    Socket,
}

/// Collects the entries of an image; their order means nothing.
///
/// Paths are relative to the root of the image (a leading slash is ignored). Directories that
/// were never added but have entries exist with mode 0755, owner 0:0 and time 0. Adding a path
/// twice is an error, except giving such a directory its attributes later.
pub struct Builder {
    tree: Tree,
    /// Hard links whose target may still come: path, target.
    links: Vec<(Vec<u8>, Vec<u8>)>,
    spool: Spool,
}

impl Builder {
    /// An empty image; content from readers waits in an unnamed file in the directory for
    /// temporary files.
    pub fn new() -> Builder {
        Builder::with_spool_in(std::env::temp_dir())
    }

    /// Like [`Builder::new`], with the waiting content in a file system of the caller's choice.
    pub fn with_spool_in(directory: impl Into<PathBuf>) -> Builder {
        Builder {
            tree: Tree::new(),
            links: Vec::new(),
            spool: Spool::new(directory.into()),
        }
    }

    /// Adds a directory; `""` or `"/"` is the root.
    pub fn add_dir(&mut self, path: &[u8], attributes: Attributes) -> Result<()> {
        let directory = Directory {
            parent: ROOT,
            children: BTreeMap::new(),
            implicit: false,
        };
        self.insert(path, attributes, Kind::Directory(directory))
    }

    /// Adds a regular file whose content is read now: exactly `size` bytes.
    pub fn add_file(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<()> {
        let source = self.spool.take(content, size, &image_path(path))?;
        self.insert(path, attributes, Kind::File { size, source })
    }

    /// Adds a regular file whose content is read from `source` when the image is written; it must
    /// still have `size` bytes then.
    pub fn add_file_from_path(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        size: u64,
        source: &Path,
    ) -> Result<()> {
        let source = Source::Path(source.into());
        self.insert(path, attributes, Kind::File { size, source })
    }

    /// Adds a regular file whose content is `size` bytes at `offset` of `file`, read when the image
    /// is written: for example a member of an uncompressed layer.
    pub fn add_file_from_range(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        size: u64,
        file: Arc<File>,
        offset: u64,
    ) -> Result<()> {
        self.insert(
            path,
            attributes,
            Kind::File {
                size,
                source: Source::Range { file, offset },
            },
        )
    }

    /// Adds a symbolic link.
    pub fn add_symlink(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        target: &[u8],
    ) -> Result<()> {
        if target.is_empty() || target.len() > format::SYMLINK_MAX || target.contains(&0) {
            let reason = "the target of a symbolic link must have 1 to 4095 bytes and no NUL";
            return Err(Error::Path {
                path: image_path(path),
                reason,
            });
        }
        self.insert(path, attributes, Kind::Symlink(target.into()))
    }

    /// Adds another name for `target`, which may be added later but must not be a directory.
    pub fn add_hardlink(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        if !self.tree.link(path, target)? {
            self.links.push((path.to_vec(), target.to_vec()));
        }
        Ok(())
    }

    /// Adds a device, named pipe or socket.
    pub fn add_special(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        special: Special,
    ) -> Result<()> {
        let device = |major, minor| {
            format::device_number(major, minor).ok_or_else(|| Error::Unsupported {
                path: image_path(path),
                reason: format!("device number {major}:{minor} is out of range"),
            })
        };
        let kind = match special {
            Special::CharacterDevice { major, minor } => {
                Kind::CharacterDevice(device(major, minor)?)
            }
            Special::BlockDevice { major, minor } => Kind::BlockDevice(device(major, minor)?),
            Special::Fifo => Kind::Fifo,
            Special::Socket => Kind::Socket,
        };
        self.insert(path, attributes, kind)
    }

    /// The inode that the last call but [`Builder::add_hardlink`] and [`Builder::add_dir`] made.
    pub fn last_added(&self) -> Option<Inode> {
        let id = self.tree.nodes.len().checked_sub(1)?;
        Some(Inode(NodeId::try_from(id).ok()?))
    }

    /// Writes the image and its hash tree to `out`, replacing what it held.
    pub fn finish(self, out: File) -> Result<Rootfs> {
        self.finish_numbered(out).map(|(rootfs, _)| rootfs)
    }

    /// Like [`Builder::finish`]; also says which inode number each path got.
    pub fn finish_numbered(mut self, out: File) -> Result<(Rootfs, Numbers)> {
        // A link may name another link: go on while that helps.
        while !self.links.is_empty() {
            let waiting = std::mem::take(&mut self.links);
            let before = waiting.len();
            for (path, target) in waiting {
                self.add_hardlink(&path, &target)?;
            }
            if self.links.len() == before {
                let path = image_path(&self.links[0].0);
                return Err(Error::Path {
                    path,
                    reason: "hard link to a file that is not there",
                });
            }
        }
        out.set_len(0)
            .map_err(io_error("truncating", Path::new("the image")))?;
        let (rootfs, numbers) = image::write(&self.tree, out, self.spool.directory)?;
        let tree = self.tree;
        Ok((rootfs, Numbers { tree, numbers }))
    }

    fn insert(&mut self, path: &[u8], attributes: Attributes, kind: Kind) -> Result<()> {
        format::check_attributes(&attributes).map_err(|reason| Error::Unsupported {
            path: image_path(path),
            reason,
        })?;
        self.tree.insert(path, Node { attributes, kind })
    }
}

/// An inode of an image that is being described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inode(NodeId);

/// The inode numbers of a written image.
pub struct Numbers {
    tree: Tree,
    numbers: Vec<u64>,
}

impl Numbers {
    /// The inode number of an inode of this image.
    pub fn of(&self, inode: Inode) -> Option<u64> {
        self.numbers.get(inode.0 as usize).copied()
    }

    /// The inode number of a path, which is unique in the image and never 0. Symbolic links are
    /// not followed.
    pub fn get(&self, path: &[u8]) -> Option<u64> {
        let id = self.tree.find(path).ok()??;
        self.numbers.get(id as usize).copied()
    }
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::new()
    }
}
