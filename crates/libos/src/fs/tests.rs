//! Tests of the file system as a whole, through system calls.

use alloc::sync::Arc;
use alloc::vec::Vec;
use std::vec;

use crate::errno::*;
use crate::fs::context::FsContext;
use crate::mm::map::Request;
use crate::platform::Protection;
use crate::process::credentials::Credentials;
use crate::syscall::{
    Arguments, Context, Handler, attribute, descriptor, directory, io, names, open, stat,
};
use crate::testing::setup;
use crate::{Registers, Result, Thread};

pub struct Machine {
    pub thread: Arc<Thread>,
    pub scratch: u64,
}

const SCRATCH: u64 = 1 << 20;
const AT_FDCWD: u64 = -100i64 as u64;

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    pub fn new() -> Machine {
        let thread = setup();
        let request = Request::anonymous(SCRATCH, Protection::READ | Protection::WRITE);
        let scratch = thread.mm().map(request).expect("memory");
        Machine { thread, scratch }
    }

    /// With /dev, /proc and /sys.
    pub fn full() -> Machine {
        let machine = Machine::new();
        let config = config();
        let context = crate::fs::populate(crate::fs::empty_root(), &config).expect("populates");
        machine.thread.set_fs(context);
        machine
    }

    /// Another process over the same tree, with other ids.
    pub fn other(&self, uid: u32, gid: u32) -> Machine {
        let machine = Machine::new();
        machine
            .thread
            .set_fs(Arc::new(FsContext::new(self.thread.fs().root())));
        let mut credentials = machine.thread.process.credentials.lock();
        *credentials = Credentials::new(uid, gid, Vec::new());
        drop(credentials);
        machine
    }

    pub fn put(&self, offset: u64, bytes: &[u8]) -> u64 {
        self.thread
            .mm()
            .write(self.scratch + offset, bytes)
            .expect("scratch");
        self.scratch + offset
    }

    pub fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.thread
            .mm()
            .read(self.scratch + offset, &mut bytes)
            .expect("scratch");
        bytes
    }

    fn string(&self, offset: u64, text: &str) -> u64 {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(offset, &bytes)
    }

    pub fn call(&self, handler: Handler, arguments: &[u64]) -> Result<usize> {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        let mut registers = Registers::default();
        let mut context = Context {
            thread: &self.thread,
            registers: &mut registers,
        };
        handler(&mut context, Arguments(all))
    }

    pub fn one(&self, handler: Handler, path: &str, rest: &[u64]) -> Result<usize> {
        let mut arguments = vec![self.string(0, path)];
        arguments.extend_from_slice(rest);
        self.call(handler, &arguments)
    }

    pub fn two(&self, handler: Handler, first: &str, second: &str) -> Result<usize> {
        let arguments = [self.string(0, first), self.string(8192, second)];
        self.call(handler, &arguments)
    }

    pub fn open(&self, path: &str, flags: u64, mode: u64) -> Result<u64> {
        self.one(open::open, path, &[flags, mode])
            .map(|fd| fd as u64)
    }

    pub fn create(&self, path: &str, content: &[u8]) -> u64 {
        let fd = self.open(path, 0o102, 0o644).expect("create");
        assert_eq!(self.write(fd, content), Ok(content.len()));
        fd
    }

    pub fn write(&self, fd: u64, bytes: &[u8]) -> Result<usize> {
        let at = self.put(65536, bytes);
        self.call(io::write, &[fd, at, bytes.len() as u64])
    }

    pub fn read(&self, fd: u64, len: usize) -> Result<Vec<u8>> {
        let read = self.call(io::read, &[fd, self.scratch + 65536, len as u64])?;
        Ok(self.get(65536, read))
    }

    pub fn content(&self, path: &str) -> Vec<u8> {
        let fd = self.open(path, 0, 0).expect("open");
        let mut all = Vec::new();
        loop {
            let bytes = self.read(fd, 4096).expect("read");
            if bytes.is_empty() {
                break;
            }
            all.extend(bytes);
        }
        self.call(open::close, &[fd]).expect("close");
        all
    }

    pub fn stat(&self, path: &str) -> Result<Vec<u64>> {
        self.one(stat::stat, path, &[self.scratch + 16384])?;
        let bytes = self.get(16384, 144);
        Ok(bytes
            .chunks(8)
            .map(|b| u64::from_le_bytes(b.try_into().expect("8")))
            .collect())
    }

    pub fn mode(&self, path: &str) -> u32 {
        self.stat(path).expect("stat")[3] as u32
    }

    pub fn list(&self, fd: u64, size: u64) -> Result<Vec<(std::string::String, u64)>> {
        let len = self.call(directory::getdents64, &[fd, self.scratch + 65536, size])?;
        let bytes = self.get(65536, len);
        let mut at = 0;
        let mut all = Vec::new();
        while at < len {
            let next = u64::from_le_bytes(bytes[at + 8..at + 16].try_into().expect("8"));
            let record = u16::from_le_bytes(bytes[at + 16..at + 18].try_into().expect("2"));
            let name = &bytes[at + 19..at + record as usize];
            let end = name.iter().position(|&b| b == 0).expect("terminated");
            all.push((
                std::string::String::from_utf8_lossy(&name[..end]).into_owned(),
                next,
            ));
            at += record as usize;
        }
        Ok(all)
    }
}

pub fn config() -> bulla_abi::config::Config {
    bulla_abi::config::Config {
        version: 1,
        rootfs: bulla_abi::config::Rootfs {
            data_size: 0,
            tree_size: 0,
            salt: [0; 32],
            root_hash: [0; 32],
            sites: None,
        },
        argv: Vec::new(),
        env: Vec::new(),
        cwd: b"/srv/app".to_vec(),
        user: Default::default(),
        hostname: "box".into(),
        memory: 1 << 30,
        threads: 4,
        terminal: false,
        files: vec![bulla_abi::config::FixedFile {
            path: b"/etc/hosts".to_vec(),
            content: b"127.0.0.1 localhost\n".to_vec(),
            mode: 0o644,
        }],
        stop_signal: 15,
        insecure: Vec::new(),
        ..bulla_abi::config::Config::default()
    }
}

#[test]
fn files_keep_what_is_written() {
    let m = Machine::new();
    let fd = m.create("/a", b"hello");
    assert_eq!(m.call(io::lseek, &[fd, 0, 0]), Ok(0));
    assert_eq!(m.read(fd, 100).as_deref(), Ok(&b"hello"[..]));
    assert_eq!(m.read(fd, 100).as_deref(), Ok(&b""[..]));
    // A hole reads as zeros.
    assert_eq!(m.call(io::lseek, &[fd, 10000, 0]), Ok(10000));
    assert_eq!(m.write(fd, b"x"), Ok(1));
    let all = m.content("/a");
    assert_eq!(all.len(), 10001);
    assert_eq!(&all[..6], b"hello\0");
    assert_eq!(m.call(attribute::ftruncate, &[fd, 3]), Ok(0));
    assert_eq!(m.call(attribute::ftruncate, &[fd, 6]), Ok(0));
    assert_eq!(m.content("/a"), b"hel\0\0\0");
}

#[test]
fn walks_as_linux_does() {
    let m = Machine::new();
    m.one(directory::mkdir, "/d", &[0o755]).expect("mkdir");
    m.one(directory::mkdir, "/d/e/", &[0o755])
        .expect("a slash is fine for a directory");
    m.create("/d/f", b"1");
    assert_eq!(m.content("/d/e/../f"), b"1");
    assert_eq!(m.content("/../../d/./f"), b"1");
    assert_eq!(m.open("/d/f/", 0, 0), Err(ENOTDIR));
    assert_eq!(m.open("/d/f/x", 0, 0), Err(ENOTDIR));
    assert_eq!(m.open("", 0, 0), Err(ENOENT));
    assert_eq!(m.open(&"x".repeat(256), 0, 0), Err(ENAMETOOLONG));
    assert_eq!(m.open(&"x/".repeat(2048), 0, 0), Err(ENAMETOOLONG));
    assert_eq!(m.open("/d", 1, 0), Err(EISDIR));
    assert_eq!(m.open("/d/new/", 0o101, 0o644), Err(EISDIR));
    m.two(names::symlink, "f", "/d/l").expect("symlink");
    m.two(names::symlink, "/d/e", "/d/le").expect("symlink");
    m.two(names::symlink, "loop", "/d/loop").expect("symlink");
    m.two(names::symlink, "/d/gone", "/d/dangling")
        .expect("symlink");
    assert_eq!(m.content("/d/l"), b"1");
    assert_eq!(m.open("/d/l", 0o400000, 0), Err(ELOOP));
    assert_eq!(m.open("/d/l/", 0, 0), Err(ENOTDIR));
    assert_eq!(m.open("/d/loop", 0, 0), Err(ELOOP));
    assert_eq!(m.open("/d/le/../l", 0, 0).map(drop), Ok(()));
    // O_CREAT follows a dangling link, O_EXCL does not.
    assert_eq!(m.open("/d/dangling", 0o301, 0o644), Err(EEXIST));
    assert_eq!(m.open("/d/dangling", 0o101, 0o644).map(drop), Ok(()));
    assert!(m.stat("/d/gone").is_ok());
    // Forty links are followed, one more is not.
    m.create("/c0", b"end");
    for i in 1..=41 {
        m.two(
            names::symlink,
            &std::format!("/c{}", i - 1),
            &std::format!("/c{i}"),
        )
        .expect("link");
    }
    assert_eq!(m.content("/c40"), b"end");
    assert_eq!(m.open("/c41", 0, 0), Err(ELOOP));
}

#[test]
fn renames_as_linux_does() {
    let m = Machine::new();
    for dir in ["/a", "/a/b", "/c"] {
        m.one(directory::mkdir, dir, &[0o755]).expect("mkdir");
    }
    m.create("/f", b"f");
    m.create("/g", b"g");
    assert_eq!(m.two(names::rename, "/a", "/a/b/x"), Err(EINVAL));
    assert_eq!(m.two(names::rename, "/a/b", "/a"), Err(ENOTEMPTY));
    assert_eq!(m.two(names::rename, "/f", "/c"), Err(EISDIR));
    assert_eq!(m.two(names::rename, "/c", "/f"), Err(ENOTDIR));
    assert_eq!(m.two(names::rename, "/c", "/a"), Err(ENOTEMPTY));
    assert_eq!(m.two(names::rename, "/f", "/g/"), Err(ENOTDIR));
    assert_eq!(m.two(names::rename, "/a/.", "/z"), Err(EBUSY));
    assert_eq!(m.two(names::rename, "/f", "/g"), Ok(0));
    assert_eq!(m.content("/g"), b"f");
    assert_eq!(m.stat("/f"), Err(ENOENT));
    assert_eq!(m.two(names::rename, "/a/b", "/c"), Ok(0));
    assert_eq!(m.stat("/c").map(|s| s[2]), Ok(2));
    assert_eq!(m.stat("/a").map(|s| s[2]), Ok(2));
    // Two names of one file: nothing happens.
    m.two(names::link, "/g", "/h").expect("link");
    assert_eq!(m.two(names::rename, "/g", "/h"), Ok(0));
    assert_eq!(m.stat("/g").map(|s| s[2]), Ok(2));
    let exchange = |m: &Machine, a: &str, b: &str, flags: u64| {
        let (a, b) = (m.string(0, a), m.string(8192, b));
        m.call(names::renameat2, &[AT_FDCWD, a, AT_FDCWD, b, flags])
    };
    assert_eq!(exchange(&m, "/g", "/c", 1), Err(EEXIST));
    assert_eq!(exchange(&m, "/g", "/nothing", 2), Err(ENOENT));
    assert_eq!(exchange(&m, "/g", "/c", 2), Ok(0));
    assert_eq!(m.content("/c"), b"f");
    assert_eq!(m.mode("/g") & 0o170000, 0o040000);
    assert_eq!(exchange(&m, "/g", "/c", 3), Err(EINVAL));
}

#[test]
fn permissions_as_linux_does() {
    let root = Machine::new();
    root.one(directory::mkdir, "/tmp", &[0o777]).expect("mkdir");
    root.one(attribute::chmod, "/tmp", &[0o1777])
        .expect("chmod");
    root.one(directory::mkdir, "/private", &[0o700])
        .expect("mkdir");
    root.create("/private/f", b"secret");
    root.create("/readable", b"x");
    let alice = root.other(1000, 1000);
    let bob = root.other(1001, 1001);
    assert_eq!(alice.open("/private/f", 0, 0), Err(EACCES));
    assert_eq!(alice.open("/readable", 1, 0), Err(EACCES));
    assert_eq!(alice.open("/readable", 0, 0).map(drop), Ok(()));
    assert_eq!(alice.open("/new", 0o101, 0o644), Err(EACCES));
    alice.create("/tmp/a", b"a");
    assert_eq!(bob.one(names::unlink, "/tmp/a", &[]), Err(EPERM));
    assert_eq!(bob.two(names::rename, "/tmp/a", "/tmp/b"), Err(EPERM));
    assert_eq!(bob.one(attribute::chmod, "/tmp/a", &[0o777]), Err(EPERM));
    assert_eq!(
        bob.one(attribute::chown, "/tmp/a", &[1001, 1001]),
        Err(EPERM)
    );
    assert_eq!(bob.two(names::link, "/tmp/a", "/tmp/l"), Err(EPERM));
    assert_eq!(
        alice.one(attribute::chown, "/tmp/a", &[1001, u64::MAX]),
        Err(EPERM)
    );
    assert_eq!(alice.one(attribute::chown, "/tmp/a", &[1000, 1000]), Ok(0));
    assert_eq!(alice.one(attribute::chmod, "/tmp/a", &[0]), Ok(0));
    assert_eq!(alice.open("/tmp/a", 0, 0), Err(EACCES));
    assert_eq!(root.open("/tmp/a", 2, 0).map(drop), Ok(()));
    assert_eq!(root.one(stat::access, "/tmp/a", &[1]), Err(EACCES));
    assert_eq!(root.one(stat::access, "/tmp/a", &[6]), Ok(0));
    // A new file may be opened for writing whatever its mode.
    assert_eq!(alice.open("/tmp/ro", 0o102, 0o444).map(drop), Ok(()));
    assert_eq!(alice.open("/tmp/ro", 2, 0), Err(EACCES));
    // The owner's class counts, even if it is the weakest.
    alice.create("/tmp/own", b"x");
    assert_eq!(alice.one(attribute::chmod, "/tmp/own", &[0o077]), Ok(0));
    assert_eq!(alice.open("/tmp/own", 0, 0), Err(EACCES));
    assert_eq!(bob.open("/tmp/own", 0, 0).map(drop), Ok(()));
    assert_eq!(alice.one(names::unlink, "/tmp/a", &[]), Ok(0));
}

#[test]
fn set_user_id_goes_with_writes_and_chown() {
    let root = Machine::new();
    root.create("/s", b"x");
    root.one(attribute::chmod, "/s", &[0o6777]).expect("chmod");
    let alice = root.other(1000, 1000);
    let fd = alice.open("/s", 1, 0).expect("open");
    assert_eq!(alice.write(fd, b"y"), Ok(1));
    assert_eq!(root.mode("/s") & 0o7777, 0o777);
    root.one(attribute::chmod, "/s", &[0o6777]).expect("chmod");
    root.one(attribute::chown, "/s", &[1, 1]).expect("chown");
    assert_eq!(root.mode("/s") & 0o7777, 0o777);
}

#[test]
fn listings_survive_changes() {
    let m = Machine::new();
    m.one(directory::mkdir, "/d", &[0o755]).expect("mkdir");
    for i in 0..100 {
        m.create(&std::format!("/d/file{i:03}"), b"");
    }
    let fd = m.open("/d", 0o200000, 0).expect("open");
    assert_eq!(m.list(fd, 16), Err(EINVAL));
    let mut seen = Vec::new();
    let mut round = 0;
    loop {
        let entries = m.list(fd, 200).expect("list");
        if entries.is_empty() {
            break;
        }
        seen.extend(entries.into_iter().map(|(name, _)| name));
        // What was not listed yet goes, what was listed goes, new things come.
        round += 1;
        if round == 2 {
            m.one(names::unlink, "/d/file099", &[]).expect("unlink");
            m.one(names::unlink, "/d/file000", &[]).expect("unlink");
        }
    }
    assert_eq!(seen.len(), 2 + 99);
    let unique: std::collections::HashSet<_> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len());
    // Back to a position.
    let (_, next) = {
        m.call(io::lseek, &[fd, 0, 0]).expect("rewind");
        m.list(fd, 300).expect("list").pop().expect("entries")
    };
    let after = m.list(fd, 64).expect("list");
    m.call(io::lseek, &[fd, next, 0]).expect("seek");
    assert_eq!(m.list(fd, 64).expect("list"), after);
}

#[test]
fn removed_directories_are_dead() {
    let m = Machine::new();
    m.one(directory::mkdir, "/d", &[0o755]).expect("mkdir");
    let fd = m.open("/d", 0o200000, 0).expect("open");
    m.one(directory::chdir, "/d", &[]).expect("chdir");
    assert_eq!(m.one(directory::rmdir, "/d/.", &[]), Err(EINVAL));
    assert_eq!(m.one(directory::rmdir, "/d/..", &[]), Err(ENOTEMPTY));
    assert_eq!(m.one(directory::rmdir, "/", &[]), Err(EBUSY));
    assert_eq!(m.one(directory::rmdir, "/d", &[]), Ok(0));
    assert_eq!(m.list(fd, 1000), Err(ENOENT));
    assert_eq!(m.open("x", 0o101, 0o644), Err(ENOENT));
    assert_eq!(m.one(directory::mkdir, "x", &[0o755]), Err(ENOENT));
    assert_eq!(m.call(directory::getcwd, &[m.scratch, 100]), Err(ENOENT));
    assert_eq!(m.open("..", 0o200000, 0).map(drop), Ok(()));
}

#[test]
fn devices_and_the_standard_tree() {
    let m = Machine::full();
    let zero = m.open("/dev/zero", 0, 0).expect("open");
    assert_eq!(m.read(zero, 3).as_deref(), Ok(&[0u8, 0, 0][..]));
    let null = m.open("/dev/null", 2, 0).expect("open");
    assert_eq!(m.write(null, b"abc"), Ok(3));
    assert_eq!(m.read(null, 3).as_deref(), Ok(&b""[..]));
    let full = m.open("/dev/full", 1, 0).expect("open");
    assert_eq!(m.write(full, b"abc"), Err(ENOSPC));
    assert_eq!(m.open("/dev/tty", 0, 0), Err(ENXIO));
    assert_eq!(m.content("/etc/hosts"), b"127.0.0.1 localhost\n");
    let len = m
        .call(directory::getcwd, &[m.scratch, 100])
        .expect("getcwd");
    assert_eq!(m.get(0, len), b"/srv/app\0");
    assert_eq!(m.stat("/dev/null").map(|s| s[5]), Ok(0x103));
    assert_eq!(m.one(names::unlink, "/proc", &[]), Err(EISDIR));
    assert_eq!(m.one(directory::rmdir, "/proc", &[]), Err(EBUSY));
    assert_eq!(m.two(names::rename, "/etc/hosts", "/dev/hosts"), Err(EXDEV));
}

#[test]
fn descriptors_come_lowest_first() {
    let m = Machine::new();
    let a = m.create("/a", b"");
    let b = m.call(descriptor::dup, &[a]).expect("dup") as u64;
    let c = m.call(descriptor::dup, &[a]).expect("dup") as u64;
    m.call(open::close, &[b]).expect("close");
    assert_eq!(m.call(descriptor::dup, &[a]), Ok(b as usize));
    assert_eq!(m.call(descriptor::dup2, &[a, c + 10]), Ok(c as usize + 10));
    assert_eq!(m.call(descriptor::fcntl, &[a, 0, c]), Ok(c as usize + 1));
    assert_eq!(m.call(descriptor::dup2, &[99, 1]), Err(EBADF));
    assert_eq!(m.call(descriptor::dup3, &[a, a, 0]), Err(EINVAL));
    assert_eq!(m.call(open::close, &[u64::MAX]), Err(EBADF));
    assert_eq!(
        m.call(open::close_range, &[b, u64::from(u32::MAX), 0]),
        Ok(0)
    );
    assert_eq!(m.call(descriptor::dup, &[a]), Ok(b as usize));
}

#[test]
fn pipes_carry_bytes_and_end() {
    let m = Machine::new();
    m.call(descriptor::pipe2, &[m.scratch, 0o4000])
        .expect("pipe");
    let fds = m.get(0, 8);
    let (r, w) = (u64::from(fds[0]), u64::from(fds[4]));
    assert_eq!(m.read(r, 10), Err(EAGAIN));
    assert_eq!(m.write(w, b"abc"), Ok(3));
    assert_eq!(m.read(r, 2).as_deref(), Ok(&b"ab"[..]));
    assert_eq!(m.read(r, 2).as_deref(), Ok(&b"c"[..]));
    assert_eq!(m.write(r, b"x"), Err(EBADF));
    assert_eq!(m.write(w, &vec![1; 70000]), Ok(65536));
    assert_eq!(m.write(w, b"x"), Err(EAGAIN));
    assert_eq!(m.read(r, 100).map(|b| b.len()), Ok(100));
    // Up to PIPE_BUF bytes are written whole or not at all.
    assert_eq!(m.write(w, &[2; 4096]), Err(EAGAIN));
    assert_eq!(m.write(w, &[2; 100]), Ok(100));
    assert_eq!(m.call(descriptor::fcntl, &[r, 1032]), Ok(65536));
    assert_eq!(m.call(io::lseek, &[r, 0, 0]), Err(ESPIPE));
    assert_eq!(m.call(io::pread64, &[r, m.scratch, 1, 0]), Err(ESPIPE));
    m.call(open::close, &[w]).expect("close");
    assert_eq!(m.read(r, 70000).map(|b| b.len()), Ok(65536));
    assert_eq!(m.read(r, 10).as_deref(), Ok(&b""[..]));
    m.call(descriptor::pipe, &[m.scratch]).expect("pipe");
    let fds = m.get(0, 8);
    m.call(open::close, &[u64::from(fds[0])]).expect("close");
    assert_eq!(m.write(u64::from(fds[4]), b"x"), Err(EPIPE));
}

#[test]
fn record_locks_split_and_conflict() {
    let a = Machine::new();
    let fd = a.create("/l", b"0123456789");
    let b = a.other(0, 0);
    let other = b.open("/l", 2, 0).expect("open");
    let lock = |m: &Machine, fd: u64, command: u64, kind: i16, start: i64, len: i64| {
        let mut raw = [0u8; 32];
        raw[..2].copy_from_slice(&kind.to_le_bytes());
        raw[8..16].copy_from_slice(&start.to_le_bytes());
        raw[16..24].copy_from_slice(&len.to_le_bytes());
        let at = m.put(200, &raw);
        m.call(descriptor::fcntl, &[fd, command, at])
    };
    assert_eq!(lock(&a, fd, 6, 1, 0, 10), Ok(0));
    assert_eq!(lock(&b, other, 6, 0, 5, 1), Err(EAGAIN));
    // The middle is given up.
    assert_eq!(lock(&a, fd, 6, 2, 4, 2), Ok(0));
    assert_eq!(lock(&b, other, 6, 1, 4, 2), Ok(0));
    assert_eq!(lock(&b, other, 6, 1, 4, 3), Err(EAGAIN));
    assert_eq!(lock(&b, other, 5, 1, 0, 0), Ok(0));
    let found = b.get(200, 32);
    assert_eq!(i16::from_le_bytes([found[0], found[1]]), 1);
    assert_eq!(found[16], 4);
    let pid = u32::from_le_bytes([found[24], found[25], found[26], found[27]]);
    assert_eq!(pid, a.thread.process.pid);
    // Closing any descriptor of the file gives all up.
    let again = a.open("/l", 0, 0).expect("open");
    a.call(open::close, &[again]).expect("close");
    assert_eq!(lock(&b, other, 6, 1, 0, 0), Ok(0));
    assert_eq!(a.call(descriptor::flock, &[fd, 2]), Ok(0));
    assert_eq!(b.call(descriptor::flock, &[other, 6]), Err(EAGAIN));
    a.call(open::close, &[fd]).expect("close");
    assert_eq!(b.call(descriptor::flock, &[other, 6]), Ok(0));
}

#[test]
fn changes_are_told() {
    use crate::syscall::inotify;
    let m = Machine::new();
    m.one(directory::mkdir, "/w", &[0o755]).expect("mkdir");
    let fd = m.call(inotify::inotify_init1, &[0o4000]).expect("init") as u64;
    let path = m.string(0, "/w");
    assert_eq!(
        m.call(inotify::inotify_add_watch, &[fd, path, 0xfff]),
        Ok(1)
    );
    assert_eq!(m.read(fd, 1000), Err(EAGAIN));
    let file = m.create("/w/a", b"x");
    m.call(open::close, &[file]).expect("close");
    m.two(names::rename, "/w/a", "/w/b").expect("rename");
    m.one(names::unlink, "/w/b", &[]).expect("unlink");
    m.one(directory::rmdir, "/w", &[]).expect("rmdir");
    assert_eq!(m.read(fd, 10), Err(EINVAL));
    let bytes = m.read(fd, 4096).expect("events");
    let mut at = 0;
    let mut masks = Vec::new();
    while at < bytes.len() {
        let word = |i: usize| u32::from_le_bytes(bytes[at + i..at + i + 4].try_into().expect("4"));
        masks.push(word(4));
        at += 16 + word(12) as usize;
    }
    let wanted = [0x100, 0x20, 0x2, 0x8, 0x40, 0x80, 0x200, 0x400, 0x8000];
    assert_eq!(masks, wanted);
}

#[test]
fn memory_files_and_their_seals() {
    use crate::syscall::memfd;
    let m = Machine::new();
    let fd = m.one(memfd::memfd_create, "box", &[2]).expect("memfd") as u64;
    m.write(fd, b"abc").expect("write");
    assert_eq!(m.call(descriptor::fcntl, &[fd, 1034]), Ok(0));
    assert_eq!(m.call(descriptor::fcntl, &[fd, 1033, 2 | 4]), Ok(0));
    assert_eq!(m.call(attribute::ftruncate, &[fd, 1]), Err(EPERM));
    assert_eq!(m.call(attribute::ftruncate, &[fd, 9]), Err(EPERM));
    assert_eq!(m.write(fd, b"d"), Err(EPERM));
    assert_eq!(
        m.call(io::pwrite64, &[fd, m.put(65536, b"zz"), 2, 2]),
        Ok(1)
    );
    assert_eq!(m.call(descriptor::fcntl, &[fd, 1033, 8 | 1]), Ok(0));
    assert_eq!(
        m.call(io::pwrite64, &[fd, m.put(65536, b"zz"), 2, 0]),
        Err(EPERM)
    );
    assert_eq!(m.call(descriptor::fcntl, &[fd, 1033, 16]), Err(EPERM));
    let plain = m.one(memfd::memfd_create, "plain", &[0]).expect("memfd") as u64;
    assert_eq!(m.call(descriptor::fcntl, &[plain, 1033, 8]), Err(EPERM));
}

#[test]
fn data_moves_between_files_and_pipes() {
    use crate::syscall::copy;
    let m = Machine::new();
    let from = m.create("/from", b"0123456789");
    let to = m.create("/to", b"");
    m.call(io::lseek, &[from, 2, 0]).expect("seek");
    assert_eq!(m.call(copy::sendfile, &[to, from, 0, 100]), Ok(8));
    assert_eq!(m.content("/to"), b"23456789");
    assert_eq!(m.call(io::lseek, &[from, 0, 1]), Ok(10));
    let offset = m.put(300, &3u64.to_le_bytes());
    assert_eq!(
        m.call(copy::copy_file_range, &[from, offset, to, 0, 2, 0]),
        Ok(2)
    );
    assert_eq!(m.content("/to"), b"2345678934");
    assert_eq!(m.get(300, 8), 5u64.to_le_bytes());
    m.call(descriptor::pipe, &[m.scratch]).expect("pipe");
    let fds = m.get(0, 8);
    let (r, w) = (u64::from(fds[0]), u64::from(fds[4]));
    let offset = m.put(300, &0u64.to_le_bytes());
    assert_eq!(m.call(copy::splice, &[from, offset, w, 0, 4, 0]), Ok(4));
    m.call(descriptor::pipe, &[m.scratch]).expect("pipe");
    let fds = m.get(0, 8);
    let (r2, w2) = (u64::from(fds[0]), u64::from(fds[4]));
    assert_eq!(m.call(copy::tee, &[r, w2, 3, 0]), Ok(3));
    assert_eq!(m.call(copy::splice, &[r, 0, to, 0, 10, 0]), Ok(4));
    assert_eq!(m.read(r2, 10).as_deref(), Ok(&b"012"[..]));
    assert_eq!(m.content("/to"), b"23456789340123");
    assert_eq!(m.call(copy::splice, &[r, 0, to, 0, 10, 2]), Err(EAGAIN));
    assert_eq!(m.call(copy::splice, &[from, 0, to, 0, 10, 0]), Err(EINVAL));
}
