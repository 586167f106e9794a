//! The read-only layer below the writable one: what [`super::memfs`] asks of it, and EROFS.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use bulla_abi::config::{Config, Rootfs};
use bulla_vault::{BlockSource, Erofs, ImageCipher, Options, SourceFault};

use super::inode::{FileType, Time};
use crate::Result;
use crate::errno::{EIO, Errno};
use crate::platform::platform;

/// Attributes of an object in the lower layer.
#[derive(Clone, Copy, Debug)]
pub struct LowerMetadata {
    /// Unique in the layer; 0 never.
    pub number: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub size: u64,
    pub rdev: u64,
    pub modified: Time,
}

/// Receives a directory's entries: name, number, type.
pub type Visit<'a> = dyn FnMut(&[u8], u64, FileType) + 'a;

/// An object of the lower layer.
pub trait LowerNode: Send + Sync {
    fn metadata(&self) -> LowerMetadata;
    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<usize>;
    fn read_link(&self) -> Result<Vec<u8>>;
    /// All entries but "." and "..".
    fn read_dir(&self, visit: &mut Visit<'_>) -> Result<()>;
    fn xattrs(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>>;
    /// The object of this number in the same layer.
    fn open(&self, number: u64) -> Result<Arc<dyn LowerNode>>;
    /// The object will be needed although it is removed from its layer.
    fn pin(&self) {}
    /// Bytes that the layer's content takes.
    fn layer_size(&self) -> u64 {
        0
    }
}

/// The platform's rootfs file, and the cipher of its blocks where they are encrypted.
struct HostSource {
    cipher: Option<ImageCipher>,
}

impl BlockSource for HostSource {
    fn read(&self, offset: u64, buf: &mut [u8]) -> core::result::Result<(), SourceFault> {
        platform().rootfs_read(offset, buf).map_err(|_| SourceFault)
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        platform().sha256(parts)
    }

    fn decrypt(&self, first: u64, blocks: &mut [u8]) {
        if let Some(cipher) = &self.cipher {
            for (number, block) in (first..).zip(blocks.chunks_mut(4096)) {
                cipher.decrypt(number, block);
            }
        }
    }

    fn sha256_pair(&self, salt: &[u8; 32], blocks: [&[u8]; 2]) -> [[u8; 32]; 2] {
        platform().sha256_pair(salt, blocks)
    }
}

type HostErofs = Erofs<HostSource>;

struct ErofsNode {
    fs: Arc<HostErofs>,
    inode: bulla_vault::Inode,
}

/// The cipher of an encrypted image; an error text when the key is another one's.
pub fn image_cipher(config: &Config) -> core::result::Result<Option<ImageCipher>, &'static str> {
    let hash = |parts: &[&[u8]]| platform().sha256(parts);
    match (&config.encryption, &config.image_key) {
        (None, _) => Ok(None),
        (Some(_), None) => Err("its files are encrypted, and nobody gave the key"),
        (Some(encryption), Some(key)) => {
            if ImageCipher::check(&hash, &key.0) != encryption.check {
                return Err("the key is not that of its files");
            }
            Ok(Some(ImageCipher::new(&hash, &key.0)))
        }
    }
}

/// Opens the verified root file system of the configuration.
pub fn open_rootfs(
    rootfs: &Rootfs,
    cipher: Option<ImageCipher>,
) -> core::result::Result<Arc<dyn LowerNode>, bulla_vault::Error> {
    let source = HostSource { cipher };
    let fs = Arc::new(Erofs::open(source, rootfs, Options::default())?);
    let inode = fs.root()?;
    Ok(Arc::new(ErofsNode { fs, inode }))
}

/// The error number, and for integrity failures a line in the host's log: the image was changed.
fn errno(error: bulla_vault::Error) -> Errno {
    let errno = Errno::from_host(-i64::from(error.errno()));
    if errno == EIO {
        platform().log(0, &alloc::format!("root file system: {error}"));
    }
    errno
}

impl LowerNode for ErofsNode {
    fn metadata(&self) -> LowerMetadata {
        let inode = &self.inode;
        let (seconds, nanoseconds) = inode.modified();
        let (major, minor) = inode.device();
        LowerMetadata {
            number: inode.nid(),
            mode: u32::from(inode.mode()),
            uid: inode.uid(),
            gid: inode.gid(),
            links: inode.links(),
            size: inode.size(),
            rdev: make_device(major, minor),
            modified: Time {
                seconds,
                nanoseconds,
            },
        }
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        self.fs.read_at(&self.inode, offset, to).map_err(errno)
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        self.fs.read_link(&self.inode).map_err(errno)
    }

    fn read_dir(&self, visit: &mut Visit<'_>) -> Result<()> {
        let mut each = |entry: bulla_vault::DirEntry<'_>| {
            if entry.name != b"." && entry.name != b".." {
                let kind = FileType::from_mode(u32::from(entry.kind.dirent_type()) << 12);
                visit(entry.name, entry.nid, kind.unwrap_or(FileType::Regular));
            }
            ControlFlow::Continue(())
        };
        self.fs.read_dir(&self.inode, 0, &mut each).map_err(errno)
    }

    fn xattrs(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let names = self.fs.xattr_names(&self.inode).map_err(errno)?;
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            if let Some(value) = self.fs.xattr(&self.inode, &name).map_err(errno)? {
                all.push((name, value));
            }
        }
        Ok(all)
    }

    fn open(&self, number: u64) -> Result<Arc<dyn LowerNode>> {
        let inode = self.fs.inode(number).map_err(errno)?;
        Ok(Arc::new(ErofsNode {
            fs: self.fs.clone(),
            inode,
        }))
    }

    fn layer_size(&self) -> u64 {
        self.fs.statistics().blocks * 4096
    }
}

/// dev_t as user space sees it.
pub const fn make_device(major: u32, minor: u32) -> u64 {
    let (major, minor) = (major as u64, minor as u64);
    (major & 0xfff) << 8 | (major & !0xfff) << 32 | minor & 0xff | (minor & !0xff) << 12
}

/// (major, minor) of a dev_t.
pub const fn split_device(device: u64) -> (u32, u32) {
    let major = (device >> 8 & 0xfff) | (device >> 32 & !0xfff);
    let minor = (device & 0xff) | (device >> 12 & !0xff);
    (major as u32, minor as u32)
}
