//! What the tests share: an image in memory as a block source, and descriptions of trees, read
//! through the vault or from a directory of this machine, that can be compared.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use bulla_abi::config::Rootfs;
use bulla_vault::{BlockSource, Erofs, FileKind, Inode, Options, SourceFault};
use sha2::{Digest, Sha256};

pub fn create(path: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .unwrap()
}

/// Bytes that do not repeat.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

/// An image in memory.
pub struct Memory(pub Vec<u8>);

impl BlockSource for Memory {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceFault> {
        let start = usize::try_from(offset).map_err(|_| SourceFault)?;
        let bytes = self.0.get(start..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(SourceFault)?);
        Ok(())
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut sha = Sha256::new();
        for part in parts {
            sha.update(part);
        }
        sha.finalize().into()
    }
}

pub fn open(image: &Path, rootfs: &Rootfs) -> Erofs<Memory> {
    Erofs::open(Memory(fs::read(image).unwrap()), rootfs, Options::default()).unwrap()
}

/// All that can be known of one path.
#[derive(Debug, PartialEq, Eq)]
pub struct Described {
    pub mode: u32,
    pub owner: (u32, u32),
    pub links: u64,
    /// Of directories 0: they differ between file systems.
    pub size: u64,
    pub modified: (i64, u32),
    pub device: (u32, u32),
    /// Digest of the content, or the target of a link.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub type Tree = BTreeMap<Vec<u8>, Described>;

/// The whole tree as the vault reads it.
pub fn describe_image<S: BlockSource>(fs: &Erofs<S>) -> Tree {
    try_describe_image(fs).unwrap()
}

/// The whole tree, or the first error.
pub fn try_describe_image<S: BlockSource>(fs: &Erofs<S>) -> bulla_vault::Result<Tree> {
    let mut tree = Tree::new();
    let mut waiting = vec![(Vec::new(), fs.root()?)];
    while let Some((path, inode)) = waiting.pop() {
        if inode.kind() == FileKind::Directory {
            for (name, nid) in try_list(fs, &inode)? {
                if name == b"." || name == b".." {
                    continue;
                }
                let found = fs.lookup(&inode, &name)?;
                assert_eq!(found.nid, nid);
                let child = fs.inode(nid)?;
                assert_eq!(child.kind(), found.kind);
                waiting.push(([&path[..], b"/", &name].concat(), child));
            }
        }
        tree.insert(path, describe_inode(fs, &inode)?);
    }
    Ok(tree)
}

pub fn list<S: BlockSource>(fs: &Erofs<S>, inode: &Inode) -> Vec<(Vec<u8>, u64)> {
    try_list(fs, inode).unwrap()
}

fn try_list<S: BlockSource>(
    fs: &Erofs<S>,
    inode: &Inode,
) -> bulla_vault::Result<Vec<(Vec<u8>, u64)>> {
    let mut names = Vec::new();
    fs.read_dir(inode, 0, &mut |entry| {
        names.push((entry.name.to_vec(), entry.nid));
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

fn describe_inode<S: BlockSource>(fs: &Erofs<S>, inode: &Inode) -> bulla_vault::Result<Described> {
    let content = match inode.kind() {
        FileKind::Regular => {
            let mut sha = Sha256::new();
            // A length that is no multiple of a block uses every way of reading.
            let mut buffer = vec![0; 100_000];
            let mut offset = 0;
            loop {
                let length = fs.read_at(inode, offset, &mut buffer)?;
                if length == 0 {
                    break;
                }
                sha.update(&buffer[..length]);
                offset += length as u64;
            }
            assert_eq!(offset, inode.size());
            sha.finalize().to_vec()
        }
        FileKind::Symlink => fs.read_link(inode)?,
        _ => Vec::new(),
    };
    let mut xattrs = BTreeMap::new();
    for name in fs.xattr_names(inode)? {
        let value = fs.xattr(inode, &name)?.expect("it was listed");
        xattrs.insert(name, value);
    }
    Ok(Described {
        mode: u32::from(inode.mode()),
        owner: (inode.uid(), inode.gid()),
        links: u64::from(inode.links()),
        size: if inode.kind() == FileKind::Directory {
            0
        } else {
            inode.size()
        },
        modified: inode.modified(),
        device: inode.device(),
        content,
        xattrs,
    })
}

/// The same of a directory of this machine.
pub fn describe_directory(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mut content = Vec::new();
        if metadata.is_dir() {
            waiting.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if metadata.is_file() {
            let mut sha = Sha256::new();
            std::io::copy(&mut File::open(&path).unwrap(), &mut sha).unwrap();
            content = sha.finalize().to_vec();
        } else if metadata.is_symlink() {
            content = fs::read_link(&path)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .to_vec();
        }
        let name = path.as_os_str().as_bytes()[root.as_os_str().len()..].to_vec();
        let described = Described {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            links: metadata.nlink(),
            size: if metadata.is_dir() {
                0
            } else {
                metadata.size()
            },
            modified: (metadata.mtime(), metadata.mtime_nsec() as u32),
            device: (
                rustix::fs::major(metadata.rdev()),
                rustix::fs::minor(metadata.rdev()),
            ),
            content,
            xattrs: xattrs(&path),
        };
        tree.insert(name, described);
    }
    tree
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    let mut value = vec![0u8; 64 << 10];
    names
        .map(|name| {
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

/// Says which path differs, not the whole of both trees.
pub fn assert_same(left: &Tree, right: &Tree) {
    for (path, described) in left {
        assert_eq!(Some(described), right.get(path), "{}", path.escape_ascii());
    }
    assert_eq!(left.len(), right.len());
}

/// Runs a program that must succeed. `None` where it is not installed.
pub fn run(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> Option<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed");
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Some(())
}

/// `fsck.erofs` and `veritysetup verify` accept the file.
pub fn check_with_tools(image: &Path, rootfs: &Rootfs) {
    run("fsck.erofs", &[&image]);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let arguments: [&dyn AsRef<OsStr>; 12] = [
        &"verify",
        &"--no-superblock",
        &"--format=1",
        &"--hash=sha256",
        &"--data-block-size=4096",
        &"--hash-block-size=4096",
        &format!("--data-blocks={}", rootfs.data_size / 4096),
        &format!("--hash-offset={}", rootfs.data_size),
        &format!("--salt={}", hex(&rootfs.salt)),
        &image,
        &image,
        &hex(&rootfs.root_hash),
    ];
    run("veritysetup", &arguments);
}

/// Mounts the image with the kernel while `visit` looks at it; says so where that cannot be done.
pub fn with_mounted(image: &Path, visit: impl FnOnce(&Path)) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    struct Mounted(tempfile::TempDir);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0.path()).status();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let arguments: [&dyn AsRef<OsStr>; 6] = [
        &"-t",
        &"erofs",
        &"-o",
        &"loop,ro",
        &image,
        &directory.path(),
    ];
    run("mount", &arguments).expect("root has mount");
    let mounted = Mounted(directory);
    visit(mounted.0.path());
}
