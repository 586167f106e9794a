//! An image of a directory tree of this machine.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bulla_abi::config::Rootfs;
use rustix::fs::{lgetxattr, llistxattr, major, minor};
use rustix::io::Errno;

use crate::builder::{Attributes, Builder, Special};
use crate::error::{Error, Result, io_error};

/// Whose the files of an image are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// As in the directory.
    #[default]
    Keep,
    /// All of this user and group.
    Fixed {
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// How a directory becomes an image.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Owner of the files.
    pub ownership: Ownership,
    /// One modification time for all files, instead of their own.
    pub modified: Option<(i64, u32)>,
    /// Leave out extended attributes.
    pub without_xattrs: bool,
}

/// Builds the image of the tree at `path` into `out`, replacing what it held.
///
/// Needs no privilege beyond reading the files. Everything is taken as it is, mount points and
/// what is mounted on them included; what cannot be read or stored is an error.
pub fn from_directory(path: &Path, out: File, options: &Options) -> Result<Rootfs> {
    let mut builder = Builder::new();
    let image = out
        .metadata()
        .map_err(io_error("reading", Path::new("the image")))?;
    add_tree(&mut builder, path, (image.dev(), image.ino()), options)?;
    builder.finish(out)
}

fn add_tree(
    builder: &mut Builder,
    root: &Path,
    image: (u64, u64),
    options: &Options,
) -> Result<()> {
    let metadata = fs::metadata(root).map_err(io_error("reading", root))?;
    if !metadata.is_dir() {
        let reason = "not a directory; name the directory that holds the container's files";
        return Err(Error::Path {
            path: root.to_owned(),
            reason,
        });
    }
    builder.add_dir(b"", attributes(root, &metadata, options)?)?;
    // The first name of each file with several.
    let mut links = HashMap::<(u64, u64), PathBuf>::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let here = root.join(&directory);
        for entry in fs::read_dir(&here).map_err(io_error("listing", &here))? {
            let entry = entry.map_err(io_error("listing", &here))?;
            let name = directory.join(entry.file_name());
            let source = here.join(entry.file_name());
            let metadata = entry.metadata().map_err(io_error("reading", &source))?;
            let key = (metadata.dev(), metadata.ino());
            if key == image {
                let reason = "the image cannot be inside the directory; write it elsewhere";
                return Err(Error::Path {
                    path: source,
                    reason,
                });
            }
            if metadata.nlink() > 1 && !metadata.is_dir() {
                if let Some(first) = links.get(&key) {
                    builder.add_hardlink(bytes(&name), bytes(first))?;
                    continue;
                }
                links.insert(key, name.clone());
            }
            add_entry(builder, &name, &source, &metadata, options)?;
            if metadata.is_dir() {
                directories.push(name);
            }
        }
    }
    Ok(())
}

fn add_entry(
    builder: &mut Builder,
    name: &Path,
    source: &Path,
    metadata: &Metadata,
    options: &Options,
) -> Result<()> {
    let attributes = attributes(source, metadata, options)?;
    let name = bytes(name);
    let kind = metadata.file_type();
    let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
    if kind.is_dir() {
        builder.add_dir(name, attributes)
    } else if kind.is_file() {
        builder.add_file_from_path(name, attributes, metadata.len(), source)
    } else if kind.is_symlink() {
        let target = fs::read_link(source).map_err(io_error("reading", source))?;
        builder.add_symlink(name, attributes, bytes(&target))
    } else {
        let special = if kind.is_char_device() {
            Special::CharacterDevice { major, minor }
        } else if kind.is_block_device() {
            Special::BlockDevice { major, minor }
        } else if kind.is_fifo() {
            Special::Fifo
        } else if kind.is_socket() {
            Special::Socket
        } else {
            let reason = "a file of no known type; remove it";
            return Err(Error::Path {
                path: source.to_owned(),
                reason,
            });
        };
        builder.add_special(name, attributes, special)
    }
}

fn attributes(path: &Path, metadata: &Metadata, options: &Options) -> Result<Attributes> {
    let (uid, gid) = match options.ownership {
        Ownership::Keep => (metadata.uid(), metadata.gid()),
        Ownership::Fixed { uid, gid } => (uid, gid),
    };
    let own_time = (metadata.mtime(), metadata.mtime_nsec() as u32);
    let mut attributes = Attributes {
        mode: (metadata.mode() & 0o7777) as u16,
        uid,
        gid,
        modified: options.modified.unwrap_or(own_time),
        ..Attributes::default()
    };
    if !options.without_xattrs {
        read_xattrs(path, &mut attributes)?;
    }
    Ok(attributes)
}

fn read_xattrs(path: &Path, attributes: &mut Attributes) -> Result<()> {
    let error = |errno: Errno| Error::Io {
        action: "reading the extended attributes of",
        path: path.to_owned(),
        source: errno.into(),
    };
    // Most files have none. The kernel's limit for a list, as for a value, is 64 KiB.
    let mut few = [0u8; 256];
    let mut many = Vec::new();
    let names = match llistxattr(path, &mut few) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(length) => &few[..length],
        Err(Errno::RANGE) => {
            many.resize(64 << 10, 0);
            let length = llistxattr(path, &mut many[..]).map_err(error)?;
            &many[..length]
        }
        Err(errno) => return Err(error(errno)),
    };
    let mut value = vec![0u8; 64 << 10];
    for name in names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        let length = lgetxattr(path, name, &mut value).map_err(error)?;
        attributes
            .xattrs
            .insert(name.to_vec(), value[..length].to_vec());
    }
    Ok(())
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
