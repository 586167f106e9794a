//! The writable layer over a read-only one.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use std::string::ToString;

use crate::Result;
use crate::errno::*;
use crate::fs::acl;
use crate::fs::context::FsContext;
use crate::fs::inode::{FileType, Inode, Time};
use crate::fs::lower::{LowerMetadata, LowerNode, Visit};
use crate::fs::memfs::{Budget, MemFs, OVERLAY_MAGIC};
use crate::fs::tests::Machine;
use crate::syscall::{attribute, directory, io, names};

enum Content {
    File(Vec<u8>),
    Link(String),
    Directory(Vec<(String, u64)>),
}

struct Tree(Vec<(u32, Content)>);

struct FakeNode {
    tree: Arc<Tree>,
    number: u64,
}

impl FakeNode {
    fn content(&self) -> &Content {
        &self.tree.0[self.number as usize - 1].1
    }
}

impl LowerNode for FakeNode {
    fn metadata(&self) -> LowerMetadata {
        let (links, content) = &self.tree.0[self.number as usize - 1];
        let (mode, size) = match content {
            Content::File(bytes) => (0o100644, bytes.len()),
            Content::Link(target) => (0o120777, target.len()),
            Content::Directory(_) => (0o040755, 0),
        };
        LowerMetadata {
            number: self.number,
            mode,
            uid: 0,
            gid: 0,
            links: *links,
            size: size as u64,
            rdev: 0,
            modified: Time {
                seconds: 1,
                nanoseconds: 0,
            },
        }
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        let Content::File(bytes) = self.content() else {
            return Err(EINVAL);
        };
        let from = bytes.get(offset as usize..).unwrap_or_default();
        let len = from.len().min(to.len());
        to[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        let Content::Link(target) = self.content() else {
            return Err(EINVAL);
        };
        Ok(target.as_bytes().to_vec())
    }

    fn read_dir(&self, visit: &mut Visit<'_>) -> Result<()> {
        let Content::Directory(entries) = self.content() else {
            return Err(ENOTDIR);
        };
        for (name, number) in entries {
            let kind = match &self.tree.0[*number as usize - 1].1 {
                Content::File(_) => FileType::Regular,
                Content::Link(_) => FileType::Link,
                Content::Directory(_) => FileType::Directory,
            };
            visit(name.as_bytes(), *number, kind);
        }
        Ok(())
    }

    fn xattrs(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut all = std::vec![(b"user.k".to_vec(), b"v".to_vec())];
        if self.number == 6 {
            all.push((acl::Kind::Access.attribute().to_vec(), LIST.to_vec()));
        }
        Ok(all)
    }

    fn open(&self, number: u64) -> Result<Arc<dyn LowerNode>> {
        Ok(Arc::new(FakeNode {
            tree: self.tree.clone(),
            number,
        }))
    }
}

/// Owner rw-, user 1001 r--, group ---, mask r--, others ---.
const LIST: [u8; 44] = [
    2, 0, 0, 0, //
    1, 0, 6, 0, 255, 255, 255, 255, //
    2, 0, 4, 0, 0xe9, 3, 0, 0, //
    4, 0, 0, 0, 255, 255, 255, 255, //
    16, 0, 4, 0, 255, 255, 255, 255, //
    32, 0, 0, 0, 255, 255, 255, 255,
];

fn entry(name: &str, number: u64) -> (String, u64) {
    (name.to_string(), number)
}

/// / with big (3 pages and a bit), two names of one file, a link and a directory with a file.
fn machine_with(limit: u64) -> (Machine, Arc<MemFs>) {
    let m = Machine::new();
    let root = std::vec![
        entry("big", 2),
        entry("one", 3),
        entry("two", 3),
        entry("link", 4),
        entry("dir", 5)
    ];
    let big: Vec<u8> = (0..13000u32).map(|i| (i / 100) as u8).collect();
    let tree = Tree(std::vec![
        (3, Content::Directory(root)),
        (1, Content::File(big)),
        (2, Content::File(b"shared".to_vec())),
        (1, Content::Link("one".to_string())),
        (2, Content::Directory(std::vec![entry("inner", 6)])),
        (1, Content::File(b"inner".to_vec())),
    ]);
    let fs = MemFs::new(OVERLAY_MAGIC, Arc::new(Budget::new(limit)), limit);
    let root = fs.root_over(Arc::new(FakeNode {
        tree: Arc::new(tree),
        number: 1,
    }));
    let root = crate::fs::detached_root(root, "overlay");
    m.thread.set_fs(Arc::new(FsContext::new(root)));
    (m, fs)
}

fn machine() -> Machine {
    machine_with(1 << 30).0
}

#[test]
fn the_lower_layer_shows_until_it_is_written() {
    let m = machine();
    let before = m.content("/big");
    assert_eq!(before.len(), 13000);
    let fd = m.open("/big", 2, 0).expect("open");
    assert_eq!(
        m.call(io::pwrite64, &[fd, m.put(65536, b"XYZ"), 3, 5000]),
        Ok(3)
    );
    let mut wanted = before.clone();
    wanted[5000..5003].copy_from_slice(b"XYZ");
    assert_eq!(m.content("/big"), wanted);
    // Cut short and grown again: what was cut does not come back.
    assert_eq!(m.call(attribute::ftruncate, &[fd, 4100]), Ok(0));
    assert_eq!(m.call(attribute::ftruncate, &[fd, 13000]), Ok(0));
    let after = m.content("/big");
    assert_eq!(&after[..4100], &before[..4100]);
    assert!(after[4100..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_hole_punched_hides_the_lower_layer() {
    let m = machine();
    let before = m.content("/big");
    let fd = m.open("/big", 2, 0).expect("open");
    assert_eq!(m.call(attribute::fallocate, &[fd, 3, 100, 9000]), Ok(0));
    let after = m.content("/big");
    assert_eq!(&after[..100], &before[..100]);
    assert!(after[100..9100].iter().all(|&byte| byte == 0));
    assert_eq!(&after[9100..], &before[9100..]);
}

#[test]
fn hard_links_of_the_lower_layer_stay_one_file() {
    let m = machine();
    let one = m.stat("/one").expect("stat");
    let two = m.stat("/two").expect("stat");
    assert_eq!((one[1], one[2]), (two[1], 2));
    let fd = m.open("/one", 1, 0).expect("open");
    m.write(fd, b"SH").expect("write");
    assert_eq!(m.content("/two"), b"SHared");
    assert_eq!(m.content("/link"), b"SHared");
    m.one(names::unlink, "/one", &[]).expect("unlink");
    assert_eq!(m.stat("/two").map(|s| s[2]), Ok(1));
    assert_eq!(m.open("/link", 0, 0), Err(ENOENT));
}

#[test]
fn removed_names_stay_removed_and_can_be_used_again() {
    let m = machine();
    assert_eq!(m.one(directory::rmdir, "/dir", &[]), Err(ENOTEMPTY));
    m.one(names::unlink, "/dir/inner", &[]).expect("unlink");
    m.one(directory::rmdir, "/dir", &[]).expect("rmdir");
    m.one(directory::mkdir, "/dir", &[0o755]).expect("mkdir");
    assert_eq!(m.stat("/dir/inner"), Err(ENOENT));
    m.two(names::rename, "/big", "/dir/moved").expect("rename");
    assert_eq!(m.content("/dir/moved").len(), 13000);
    assert_eq!(m.stat("/big"), Err(ENOENT));
    let fd = m.open("/", 0o200000, 0).expect("open");
    let names: Vec<String> = m
        .list(fd, 4096)
        .expect("list")
        .into_iter()
        .map(|e| e.0)
        .collect();
    assert_eq!(names, [".", "..", "one", "two", "link", "dir"]);
}

#[test]
fn space_runs_out_with_an_error() {
    let (m, fs) = machine_with(64 << 10);
    let fd = m.create("/new", b"x");
    let chunk = std::vec![7u8; 100 << 10];
    let written = m.write(fd, &chunk).expect("a short write");
    assert!(written < chunk.len() && written > 32 << 10, "{written}");
    assert_eq!(m.write(fd, &chunk), Err(ENOSPC));
    assert_eq!(m.call(attribute::ftruncate, &[fd, 0]), Ok(0));
    assert!(m.write(fd, &chunk[..4096]).is_ok());
    m.one(names::unlink, "/new", &[]).expect("unlink");
    m.call(crate::syscall::open::close, &[fd]).expect("close");
    assert_eq!(fs.used(), 0);
    // Names cost too.
    let result = (0..1000).find_map(|i| m.open(&std::format!("/f{i}"), 0o102, 0o644).err());
    assert!(
        matches!(result, Some(error) if error == ENOSPC || error == EMFILE),
        "{result:?}"
    );
}

#[test]
fn attributes_of_the_lower_layer_can_be_changed() {
    let m = machine();
    m.one(attribute::chmod, "/one", &[0o600]).expect("chmod");
    m.one(attribute::chown, "/one", &[5, 6]).expect("chown");
    assert_eq!(m.mode("/two"), 0o100600);
    let inode = crate::fs::path::Walk::new(crate::fs::permission::Caller::KERNEL, &m.thread.fs())
        .find(b"/one", crate::fs::path::Follow::Yes)
        .expect("found");
    let inode: &dyn Inode = &**inode.inode();
    assert_eq!(inode.get_xattr(b"user.k"), Ok(b"v".to_vec()));
    assert!(inode.is_immutable());
    inode.set_xattr(b"user.k", b"w", 1).expect_err("exists");
    inode.remove_xattr(b"user.k").expect("removed");
    assert_eq!(inode.get_xattr(b"user.k"), Err(ENODATA));
    inode.write_bytes(0, b"x").expect("write");
    assert!(!inode.is_immutable());
}

#[test]
fn lists_of_the_lower_layer_are_asked() {
    let m = machine();
    let found = |path: &[u8]| {
        crate::fs::path::Walk::new(crate::fs::permission::Caller::KERNEL, &m.thread.fs())
            .find(path, crate::fs::path::Follow::Yes)
            .expect("found")
    };
    let inner = found(b"/dir/inner");
    let list = inner.inode().acl(acl::Kind::Access).expect("read");
    let list = list.expect("a list");
    assert!(list.permits(1001, 0, |_| false, 4));
    assert!(!list.permits(1002, 0, |_| false, 4));
    m.one(attribute::chmod, "/dir/inner", &[0o600])
        .expect("chmod");
    let list = inner.inode().acl(acl::Kind::Access).expect("read");
    assert!(!list.expect("a list").permits(1001, 0, |_| false, 4));
    assert_eq!(found(b"/one").inode().acl(acl::Kind::Access), Ok(None));
}

#[test]
fn data_and_holes_are_found() {
    let m = machine();
    let fd = m.create("/sparse", b"");
    m.call(io::pwrite64, &[fd, m.put(65536, b"d"), 1, 1 << 20])
        .expect("write");
    assert_eq!(m.call(io::lseek, &[fd, 0, 3]), Ok(1 << 20));
    assert_eq!(m.call(io::lseek, &[fd, 0, 4]), Ok(0));
    assert_eq!(m.call(io::lseek, &[fd, 1 << 20, 4]), Ok((1 << 20) + 1));
    assert_eq!(m.call(io::lseek, &[fd, (1 << 20) + 1, 3]), Err(ENXIO));
    let big = m.open("/big", 0, 0).expect("open");
    assert_eq!(m.call(io::lseek, &[big, 10, 4]), Ok(13000));
}
