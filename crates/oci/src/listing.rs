//! The files of a root file system image, read back through the same verifying reader that the
//! enclave uses.

use crate::error::Error;
use bulla_abi::config::Rootfs;
pub use bulla_vault::FileKind;
use bulla_vault::{BlockSource, Erofs, Inode, Options, SourceFault};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// From the root on; bytes that are not UTF-8 are escaped.
    pub path: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Octal.
    pub mode: String,
    pub uid: u32,
    pub gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// A rootfs image as a file of this machine.
pub struct ImageFile(File);

impl ImageFile {
    /// Opens it.
    pub fn open(path: &Path) -> Result<ImageFile, Error> {
        File::open(path).map(ImageFile).map_err(Error::io(path))
    }
}

impl BlockSource for ImageFile {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceFault> {
        self.0.read_exact_at(buf, offset).map_err(|_| SourceFault)
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
        }
        hash.finalize().into()
    }
}

/// A verified root file system.
pub struct Files {
    fs: Erofs<ImageFile>,
}

/// A file and its name.
pub struct Found {
    pub path: Vec<u8>,
    pub inode: Inode,
}

impl Files {
    /// Opens the image that `rootfs` describes.
    pub fn open(path: &Path, rootfs: &Rootfs) -> Result<Files, Error> {
        let source = ImageFile::open(path)?;
        let fs = Erofs::open(source, rootfs, Options::default()).map_err(failed(path))?;
        Ok(Files { fs })
    }

    /// All files, sorted by path.
    pub fn walk(&self) -> Result<Vec<Found>, Error> {
        let failed = failed(Path::new("the root file system image"));
        let mut found = Vec::new();
        let mut todo = vec![(Vec::new(), self.fs.root().map_err(&failed)?)];
        while let Some((path, inode)) = todo.pop() {
            if inode.kind() == FileKind::Directory {
                let mut entries = Vec::new();
                let listed = self.fs.read_dir(&inode, 0, &mut |entry| {
                    if entry.name != b"." && entry.name != b".." {
                        entries.push((entry.name.to_vec(), entry.nid));
                    }
                    ControlFlow::Continue(())
                });
                listed.map_err(&failed)?;
                for (name, nid) in entries {
                    let child = self.fs.inode(nid).map_err(&failed)?;
                    todo.push(([&path[..], b"/", &name].concat(), child));
                }
            }
            let path = if path.is_empty() { b"/".to_vec() } else { path };
            found.push(Found { path, inode });
        }
        found.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(found)
    }

    /// Reads part of a file.
    pub fn read(&self, inode: &Inode, offset: u64, to: &mut [u8]) -> Result<usize, Error> {
        let read = self.fs.read_at(inode, offset, to);
        read.map_err(failed(Path::new("the root file system image")))
    }

    /// Where a symbolic link points.
    pub fn link(&self, inode: &Inode) -> Result<Vec<u8>, Error> {
        let read = self.fs.read_link(inode);
        read.map_err(failed(Path::new("the root file system image")))
    }

    /// The list with digests. Reads everything, so every block is checked.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut digests: HashMap<u64, String> = HashMap::new();
        let mut list = Vec::new();
        for Found { path, inode } in self.walk()? {
            let regular = inode.kind() == FileKind::Regular;
            let sha256 = match (regular, digests.get(&inode.nid())) {
                (false, _) => None,
                (true, Some(known)) => Some(known.clone()),
                (true, None) => {
                    let digest = self.digest(&inode)?;
                    digests.insert(inode.nid(), digest.clone());
                    Some(digest)
                }
            };
            let target = match inode.kind() {
                FileKind::Symlink => Some(shown(&self.link(&inode)?)),
                _ => None,
            };
            list.push(Listed {
                path: shown(&path),
                kind: kind_name(inode.kind()),
                mode: format!("{:04o}", inode.mode() & 0o7777),
                uid: inode.uid(),
                gid: inode.gid(),
                size: regular.then(|| inode.size()),
                sha256,
                target,
            });
        }
        Ok(list)
    }

    fn digest(&self, inode: &Inode) -> Result<String, Error> {
        let mut buffer = vec![0; 256 << 10];
        let mut hash = Sha256::new();
        let mut offset = 0;
        while offset < inode.size() {
            let read = self.read(inode, offset, &mut buffer)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            offset += read as u64;
        }
        let digest: [u8; 32] = hash.finalize().into();
        Ok(crate::Digest::from(digest).hex())
    }
}

fn failed(path: &Path) -> impl Fn(bulla_vault::Error) -> Error + '_ {
    move |error| Error::Damaged {
        path: path.to_owned(),
        what: error.to_string(),
    }
}

/// Text for people and JSON.
pub fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::CharacterDevice => "character device",
        FileKind::BlockDevice => "block device",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}
