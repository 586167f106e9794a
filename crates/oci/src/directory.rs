//! A directory of the host as a tree (`--rootfs`), and a fingerprint to recognise it by.

use crate::digest::Digest;
use crate::error::Error;
use crate::tree::{Attributes, Content, Kind, Node, NodeId, Source, Tree};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Names of a directory in byte order.
fn names(dir: &Path) -> Result<Vec<OsString>, Error> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        names.push(entry.map_err(Error::io(dir))?.file_name());
    }
    names.sort();
    Ok(names)
}

/// What tells whether anything below `dir` changed: names, attributes and times of all files.
/// Contents are not read; whoever changes a file without changing its times is not noticed.
pub fn fingerprint(dir: &Path) -> Result<Digest, Error> {
    let mut hasher = Sha256::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for name in names(&dir)? {
            let path = dir.join(&name);
            let metadata = std::fs::symlink_metadata(&path).map_err(Error::io(&path))?;
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            for value in [
                metadata.dev(),
                metadata.ino(),
                u64::from(metadata.mode()),
                metadata.size(),
                metadata.mtime() as u64,
                metadata.mtime_nsec() as u64,
                metadata.ctime() as u64,
                metadata.ctime_nsec() as u64,
            ] {
                hasher.update(value.to_le_bytes());
            }
            if metadata.is_dir() {
                todo.push(path);
            }
        }
        hasher.update([0xff; 8]);
    }
    let text: String = hasher
        .finalize()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    Digest::parse(&text).ok_or(Error::NotFound(PathBuf::new()))
}

/// The files below `dir`, hard links kept. Does not follow symbolic links, nor leave `dir`.
pub fn tree(dir: &Path) -> Result<Tree, Error> {
    let metadata = std::fs::metadata(dir).map_err(Error::io(dir))?;
    if !metadata.is_dir() {
        return Err(Error::Unsupported {
            path: dir.to_owned(),
            what: "--rootfs needs a directory; give an image without --rootfs".to_owned(),
        });
    }
    let mut tree = Tree::new();
    tree.node_mut(NodeId::ROOT).attributes = attributes(dir, &metadata);
    let mut linked: HashMap<(u64, u64), NodeId> = HashMap::new();
    let mut todo = vec![(dir.to_owned(), NodeId::ROOT)];
    while let Some((dir, id)) = todo.pop() {
        let mut children = BTreeMap::new();
        for name in names(&dir)? {
            let path = dir.join(&name);
            let metadata = std::fs::symlink_metadata(&path).map_err(Error::io(&path))?;
            let key = (metadata.dev(), metadata.ino());
            let shared = !metadata.is_dir() && metadata.nlink() > 1;
            let child = match linked.get(&key) {
                Some(&child) if shared => child,
                _ => {
                    let kind = kind(&path, &metadata)?;
                    let attributes = attributes(&path, &metadata);
                    tree.add(Node { attributes, kind })
                }
            };
            if shared {
                linked.insert(key, child);
            }
            if metadata.is_dir() {
                todo.push((path, child));
            }
            children.insert(name.into_vec().into(), child);
        }
        tree.node_mut(id).kind = Kind::Directory(children);
    }
    Ok(tree)
}

fn kind(path: &Path, metadata: &Metadata) -> Result<Kind, Error> {
    let file_type = metadata.file_type();
    let device = metadata.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    Ok(if file_type.is_dir() {
        Kind::Directory(BTreeMap::new())
    } else if file_type.is_symlink() {
        let target = std::fs::read_link(path).map_err(Error::io(path))?;
        Kind::Symlink(target.into_os_string().into_vec())
    } else if file_type.is_char_device() {
        Kind::CharDevice { major, minor }
    } else if file_type.is_block_device() {
        Kind::BlockDevice { major, minor }
    } else if file_type.is_fifo() {
        Kind::Fifo
    } else if file_type.is_socket() {
        Kind::Socket
    } else {
        Kind::File(Content {
            size: metadata.size(),
            source: Source::Host(path.to_owned()),
        })
    })
}

fn attributes(path: &Path, metadata: &Metadata) -> Attributes {
    Attributes {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), metadata.mtime_nsec() as u32),
        xattrs: xattrs(path).unwrap_or_default(),
    }
}

/// Extended attributes that belong to the file rather than to this host.
fn xattrs(path: &Path) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut list)?;
    let mut found = Vec::new();
    for name in list[..len]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        if name == b"security.selinux" || name.starts_with(b"trusted.") {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)?;
        value.truncate(len);
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}
