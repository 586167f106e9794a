//! The container's tree at start.

pub mod sealed;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use bulla_abi::config::{Config, Mount, MountKind, VolumeKey};
use spin::Once;

use super::context::FsContext;
use super::dentry::Dentry;
use super::file::{OpenFile, flags};
use super::host;
use super::inode::{FileType, Inode, NewNode, Owner};
use super::lower;
use super::memfs::volume::Backing;
use super::memfs::{Budget, DEVPTS_MAGIC, MemFs, OVERLAY_MAGIC, SYSFS_MAGIC, TMPFS_MAGIC};
use super::mount::{self, MountSpec};
use super::namei;
use super::passthrough;
use super::path::{Follow, Last, PathRef, Walk};
use super::permission::Caller;
use super::procfs;
use super::table::FdTable;
use crate::errno::{EEXIST, EIO, ENOENT, EROFS};
use crate::mm::accounting;
use crate::mm::sites::measured;
use crate::platform::platform;
use crate::sync::SpinLock;
use crate::{Result, Thread};

/// The tree could not be built: one line that names what failed and why.
#[derive(Debug)]
pub struct InitError {
    pub message: String,
}

static BUDGET: Once<Arc<Budget>> = Once::new();
static ROOT: Once<PathRef> = Once::new();
static TERMINAL: AtomicBool = AtomicBool::new(false);

/// Memory budget when the configuration says nothing (tests).
const DEFAULT_BUDGET: u64 = 256 << 20;

/// The memory that all in-memory file systems share.
pub fn budget() -> Arc<Budget> {
    BUDGET
        .call_once(|| Arc::new(Budget::new(DEFAULT_BUDGET)))
        .clone()
}

/// Whether the standard streams are a terminal of the host.
pub fn has_terminal() -> bool {
    TERMINAL.load(Ordering::Relaxed)
}

/// The container's root (not a process's, which chroot may have changed).
pub fn root() -> Option<&'static PathRef> {
    ROOT.get()
}

/// An empty in-memory root.
pub fn empty_root() -> PathRef {
    let root = MemFs::new(TMPFS_MAGIC, budget(), budget().limit()).empty_root(0o755);
    detached_root(root, "tmpfs")
}

/// A root that is not mounted anywhere.
pub fn detached_root(inode: Arc<dyn Inode>, kind: &'static str) -> PathRef {
    let dentry = Dentry::root(inode);
    let mount = mount::detached(MountSpec {
        root: dentry.clone(),
        flags: mount::flags::RELATIME,
        kind,
        source: kind.to_string(),
        options: String::new(),
    });
    PathRef { mount, dentry }
}

/// A file in memory without a name (memfd_create), at a place of its own.
pub fn memory_file(name: &[u8], owner: Owner, sealable: bool) -> Result<PathRef> {
    static HOME: Once<(Arc<MemFs>, PathRef)> = Once::new();
    let (fs, home) = HOME.call_once(|| {
        let fs = MemFs::new(TMPFS_MAGIC, budget(), budget().limit());
        let root = detached_root(fs.empty_root(0o700), "tmpfs");
        (fs, root)
    });
    let inode = super::memfs::memory_file(fs, owner, sealable)?;
    let shown = [b"memfd:", name].concat();
    Ok(PathRef {
        mount: home.mount.clone(),
        dentry: Dentry::unnamed(inode, &shown),
    })
}

/// Builds the tree of the configuration; the root and working directory of the first process.
pub fn init(config: &Config) -> core::result::Result<Arc<FsContext>, InitError> {
    let (_, heap) = platform().heap_usage();
    // Files may not take the memory that the kernel needs for everything else.
    let limit = (config.memory / 2).min(heap / 4 * 3).max(1 << 20);
    BUDGET.call_once(|| Arc::new(Budget::new(limit)));
    // A sixteenth of the kernel's heap for verified pages that may be read again, but no more than
    // a quarter of what the container has.
    let cache = (heap / 16).min(config.memory / 4).clamp(4 << 20, 256 << 20);
    super::memfs::cache::set_limit(cache);
    accounting::set_kernel_limit(limit + cache);
    TERMINAL.store(config.terminal, Ordering::Relaxed);
    if sealed::awaits_key(config) {
        return sealed::init(config);
    }
    let root = open_image(config)?;
    let context = populate(root, config).map_err(unpopulated)?;
    ROOT.call_once(|| context.root());
    Ok(context)
}

fn unpopulated((what, error): (&'static str, crate::Errno)) -> InitError {
    InitError {
        message: format!("{what} cannot be set up: {error:?}"),
    }
}

/// The image's files under a writable layer, as a root with nothing mounted.
fn open_image(config: &Config) -> core::result::Result<PathRef, InitError> {
    let cipher = lower::image_cipher(config).map_err(|reason| InitError {
        message: format!("the image cannot be opened: {reason}"),
    })?;
    let lower = lower::open_rootfs(&config.rootfs, cipher).map_err(|error| InitError {
        message: format!("the root file system cannot be opened: {error}"),
    })?;
    let fs = MemFs::new(OVERLAY_MAGIC, budget(), budget().limit());
    if let Some(sites) = &config.rootfs.sites {
        measured::load(fs.device, sites).map_err(|message| InitError { message })?;
    }
    Ok(detached_root(fs.root_over(lower), "overlay"))
}

type Named<T> = core::result::Result<T, (&'static str, crate::Errno)>;

/// Mounts and fills everything over a root.
pub fn populate(root: PathRef, config: &Config) -> Named<Arc<FsContext>> {
    let context = Arc::new(FsContext::new(root));
    context.set_umask(0);
    populate_kernels(&context, config)?;
    populate_configured(&context, config)?;
    Ok(context)
}

/// What the kernel itself shows.
fn populate_kernels(context: &Arc<FsContext>, config: &Config) -> Named<()> {
    let named = |what: &'static str| move |error| (what, error);
    mount_devices(context).map_err(named("/dev"))?;
    let proc_root = Dentry::root(procfs::root());
    attach(context, b"/proc", proc_root, "proc", NOSUID_NODEV_NOEXEC).map_err(named("/proc"))?;
    mount_system(context).map_err(named("/sys"))?;
    write_cgroup(context, config.memory).map_err(named("/sys/fs/cgroup"))
}

/// What the configuration asks for, and the working directory.
fn populate_configured(context: &Arc<FsContext>, config: &Config) -> Named<()> {
    let named = |what: &'static str| move |error| (what, error);
    let (mut volumes, mut directories) = (0, 0);
    for wanted in &config.mounts {
        let mounted = match wanted.kind {
            MountKind::Tmpfs { size, mode } => mount_tmpfs(context, wanted, size, mode),
            MountKind::Volume { key } => {
                volumes += 1;
                mount_volume(context, wanted, volumes - 1, key)
            }
            MountKind::InsecurePassthrough => {
                directories += 1;
                mount_passthrough(context, wanted, directories - 1)
            }
        };
        mounted.map_err(named("a mount of the manifest"))?;
    }
    for file in &config.files {
        replace_file(context, &file.path, &file.content, file.mode)
            .map_err(named("a file of the configuration"))?;
    }
    context.set_umask(0o022);
    let mut walk = Walk::new(Caller::KERNEL, context);
    let cwd: &[u8] = if config.cwd.is_empty() {
        b"/"
    } else {
        &config.cwd
    };
    let cwd = match walk.find(cwd, Follow::Yes) {
        Err(error) if error == ENOENT => {
            make_directories(context, cwd, 0o755).map_err(named("the working directory"))?;
            Walk::new(Caller::KERNEL, context).find(cwd, Follow::Yes)
        }
        other => other,
    };
    context.set_cwd(cwd.map_err(named("the working directory"))?);
    Ok(())
}

fn configured_flags(wanted: &Mount) -> u32 {
    let mut flags = mount::flags::NOSUID | mount::flags::NODEV | mount::flags::RELATIME;
    if wanted.read_only {
        flags |= mount::flags::RDONLY;
    }
    flags
}

/// A mount that the manifest asks for; what the image has below it is hidden.
fn mount_tmpfs(context: &FsContext, wanted: &Mount, size: u64, mode: u32) -> Result<()> {
    let limit = match size {
        0 => budget().limit(),
        size => size.min(budget().limit()),
    };
    let root = MemFs::new(TMPFS_MAGIC, budget(), limit).empty_root(mode & 0o7777);
    let flags = configured_flags(wanted);
    attach(context, &wanted.target, Dentry::root(root), "tmpfs", flags)
}

/// A protected volume. One that cannot be trusted ends the container: to go on with an empty
/// directory could lose data.
fn mount_volume(context: &FsContext, wanted: &Mount, number: u64, key: VolumeKey) -> Result<()> {
    let target = String::from_utf8_lossy(&wanted.target);
    let over = Walk::new(Caller::KERNEL, context).find(&wanted.target, Follow::Yes);
    let over = over.ok().filter(|over| over.inode().is_directory());
    let over = over.map(|over| over.inode().metadata());
    let backing = Backing::open(number, key, &target, over).map_err(|error| {
        let text = format!("the volume at {target} cannot be opened: {error}");
        platform().log(0, &text);
        EIO.because("a protected volume cannot be opened")
    })?;
    let root = backing.root();
    let fs = MemFs::of_volume(backing, budget());
    let root = fs.root_over(root);
    VOLUMES.lock().push(root.clone());
    let flags = configured_flags(wanted);
    attach(context, &wanted.target, Dentry::root(root), "volume", flags)
}

/// A directory of the host. Programs are not started from there: what runs is measured.
fn mount_passthrough(context: &FsContext, wanted: &Mount, number: u64) -> Result<()> {
    let root = passthrough::root(number).inspect_err(|error| {
        let target = String::from_utf8_lossy(&wanted.target);
        let text = format!("the host's directory for {target} cannot be used: {error:?}");
        platform().log(0, &text);
    })?;
    let flags = configured_flags(wanted) | mount::flags::NOEXEC;
    let kind = "passthrough";
    attach(context, &wanted.target, Dentry::root(root), kind, flags)
}

/// The root directories of all volumes.
static VOLUMES: SpinLock<Vec<Arc<dyn Inode>>> = SpinLock::new(Vec::new());

/// Makes durable what was written to volumes; the first error if there are several.
pub fn sync_volumes(thread: &Arc<Thread>) -> Result<()> {
    let volumes = VOLUMES.lock().clone();
    let mut result = Ok(());
    for root in &volumes {
        // Each of them, also after one that failed.
        result = result.and(root.sync(thread));
    }
    result
}

const NOSUID_NODEV_NOEXEC: u32 =
    mount::flags::NOSUID | mount::flags::NODEV | mount::flags::NOEXEC | mount::flags::RELATIME;

/// mkdir -p.
pub fn make_directories(context: &FsContext, path: &[u8], mode: u32) -> Result<()> {
    for end in (1..=path.len()).filter(|&at| at == path.len() || path[at] == b'/') {
        let mut walk = Walk::new(Caller::KERNEL, context);
        match namei::create(&mut walk, &path[..end], NewNode::Directory, mode) {
            Ok(_) => {}
            Err(error) if error == EEXIST => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn attach(
    context: &FsContext,
    path: &[u8],
    root: Arc<Dentry>,
    kind: &'static str,
    flags: u32,
) -> Result<()> {
    make_directories(context, path, 0o755)?;
    let point = Walk::new(Caller::KERNEL, context).find(path, Follow::Yes)?;
    mount::attach(
        &point,
        MountSpec {
            root,
            flags,
            kind,
            source: kind.to_string(),
            options: String::new(),
        },
    )?;
    Ok(())
}

fn make(context: &FsContext, path: &[u8], node: NewNode<'_>, mode: u32) -> Result<()> {
    let mut walk = Walk::new(Caller::KERNEL, context);
    namei::create(&mut walk, path, node, mode).map(drop)
}

fn tmpfs(
    context: &FsContext,
    path: &[u8],
    mode: u32,
    magic: u64,
    kind: &'static str,
) -> Result<()> {
    let root = MemFs::new(magic, budget(), budget().limit()).empty_root(mode);
    let restriction = if kind == "devpts" {
        mount::flags::NOEXEC
    } else {
        mount::flags::NODEV
    };
    let flags = mount::flags::NOSUID | restriction | mount::flags::RELATIME;
    attach(context, path, Dentry::root(root), kind, flags)
}

fn mount_devices(context: &FsContext) -> Result<()> {
    let root = MemFs::new(TMPFS_MAGIC, budget(), budget().limit()).empty_root(0o755);
    let flags = mount::flags::NOSUID | mount::flags::RELATIME;
    attach(context, b"/dev", Dentry::root(root), "tmpfs", flags)?;
    let devices: [(&[u8], u32, u32, u32); 8] = [
        (b"/dev/null", 1, 3, 0o666),
        (b"/dev/zero", 1, 5, 0o666),
        (b"/dev/full", 1, 7, 0o666),
        (b"/dev/random", 1, 8, 0o666),
        (b"/dev/urandom", 1, 9, 0o666),
        (b"/dev/tty", 5, 0, 0o666),
        (b"/dev/console", 5, 1, 0o620),
        (b"/dev/ptmx", 5, 2, 0o666),
    ];
    for (path, major, minor, mode) in devices {
        make(
            context,
            path,
            NewNode::Character(lower::make_device(major, minor)),
            mode,
        )?;
    }
    let links: [(&[u8], &[u8]); 4] = [
        (b"/dev/fd", b"/proc/self/fd"),
        (b"/dev/stdin", b"/proc/self/fd/0"),
        (b"/dev/stdout", b"/proc/self/fd/1"),
        (b"/dev/stderr", b"/proc/self/fd/2"),
    ];
    for (path, target) in links {
        make(context, path, NewNode::Link(target), 0o777)?;
    }
    tmpfs(context, b"/dev/shm", 0o1777, TMPFS_MAGIC, "tmpfs")?;
    tmpfs(context, b"/dev/pts", 0o755, DEVPTS_MAGIC, "devpts")?;
    let attestation = Dentry::root(crate::attestation::file::root());
    let flags = NOSUID_NODEV_NOEXEC;
    attach(
        context,
        b"/dev/attestation",
        attestation,
        "attestation",
        flags,
    )
}

/// CPUs `first` to `last` of so many as the masks under /sys show them: words of 32 bits in hexadecimal,
/// the highest first.
fn cpu_mask(first: u32, last: u32, cpus: u32) -> String {
    let words = cpus.div_ceil(32);
    let word = |at: u32| {
        let bits = (0..32).filter(|bit| (first..=last).contains(&(at * 32 + bit)));
        bits.fold(0u32, |word, bit| word | 1 << bit)
    };
    let width = |at: u32| match at + 1 == words {
        // Of the first one only the digits that there are CPUs for.
        true => (cpus - at * 32).div_ceil(4) as usize,
        false => 8,
    };
    let text: Vec<String> = (0..words)
        .rev()
        .map(|at| format!("{:0width$x}", word(at), width = width(at)))
        .collect();
    text.join(",") + "\n"
}

fn mount_system(context: &FsContext) -> Result<()> {
    tmpfs(context, b"/sys", 0o555, SYSFS_MAGIC, "sysfs")?;
    let cpus = platform().cpus().max(1);
    let range = if cpus == 1 {
        String::from("0\n")
    } else {
        format!("0-{}\n", cpus - 1)
    };
    for name in ["online", "possible", "present"] {
        let path = format!("/sys/devices/system/cpu/{name}");
        write_file(context, path.as_bytes(), range.as_bytes(), 0o444)?;
    }
    for cpu in 0..cpus {
        let base = format!("/sys/devices/system/cpu/cpu{cpu}/topology");
        let files = [
            ("core_id", format!("{cpu}\n")),
            ("physical_package_id", String::from("0\n")),
            ("die_id", String::from("0\n")),
            ("thread_siblings_list", format!("{cpu}\n")),
            ("core_cpus_list", format!("{cpu}\n")),
            ("core_siblings_list", range.clone()),
            ("package_cpus_list", range.clone()),
            ("die_cpus_list", range.clone()),
            ("thread_siblings", cpu_mask(cpu, cpu, cpus)),
            ("core_cpus", cpu_mask(cpu, cpu, cpus)),
            ("core_siblings", cpu_mask(0, cpus - 1, cpus)),
            ("package_cpus", cpu_mask(0, cpus - 1, cpus)),
            ("die_cpus", cpu_mask(0, cpus - 1, cpus)),
        ];
        for (name, text) in files {
            let path = format!("{base}/{name}");
            write_file(context, path.as_bytes(), text.as_bytes(), 0o444)?;
        }
    }
    write_file(context, b"/sys/devices/system/node/online", b"0\n", 0o444)?;
    write_file(context, b"/sys/devices/system/node/possible", b"0\n", 0o444)?;
    let page: &[u8] = b"always madvise [never]\n";
    write_file(
        context,
        b"/sys/kernel/mm/transparent_hugepage/enabled",
        page,
        0o444,
    )?;
    write_file(
        context,
        b"/sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
        b"2097152\n",
        0o444,
    )?;
    make_directories(context, b"/sys/fs/cgroup", 0o555)?;
    let interfaces = Dentry::root(procfs::interfaces());
    attach(
        context,
        b"/sys/class/net",
        interfaces,
        "sysfs",
        NOSUID_NODEV_NOEXEC,
    )?;
    Ok(())
}

/// The cgroup (version 2) that the container sees: its memory and CPUs.
fn write_cgroup(context: &FsContext, memory: u64) -> Result<()> {
    let files = [
        ("cgroup.controllers", String::from("cpu memory pids\n")),
        ("cgroup.procs", String::from("1\n")),
        ("memory.max", format!("{memory}\n")),
        ("memory.high", String::from("max\n")),
        ("memory.swap.max", String::from("0\n")),
        ("cpu.max", String::from("max 100000\n")),
        ("pids.max", String::from("max\n")),
    ];
    for (name, text) in files {
        let path = format!("/sys/fs/cgroup/{name}");
        write_file(context, path.as_bytes(), text.as_bytes(), 0o444)?;
    }
    Ok(())
}

/// Writes a file, making its directories.
pub fn write_file(context: &FsContext, path: &[u8], content: &[u8], mode: u32) -> Result<()> {
    if let Some(slash) = path
        .iter()
        .rposition(|&byte| byte == b'/')
        .filter(|&at| at > 0)
    {
        make_directories(context, &path[..slash], 0o755)?;
    }
    let mut walk = Walk::new(Caller::KERNEL, context);
    let created = namei::create(&mut walk, path, NewNode::Regular, mode)?;
    let written = created.inode().write_bytes(0, content)?;
    if written < content.len() {
        Err(EROFS)
    } else {
        Ok(())
    }
}

/// Puts a fixed file in the place of whatever the image has there.
fn replace_file(context: &FsContext, path: &[u8], content: &[u8], mode: u32) -> Result<()> {
    let mut walk = Walk::new(Caller::KERNEL, context);
    match walk.find(path, Follow::No) {
        Ok(found) if found.inode().kind() != FileType::Directory => {
            let parent = walk.find_parent(path)?;
            if matches!(parent.last, Last::Name(_)) {
                namei::unlink(&mut Walk::new(Caller::KERNEL, context), path)?;
            }
        }
        Ok(_) => return Err(crate::errno::EISDIR),
        Err(error) if error == ENOENT => {}
        Err(error) => return Err(error),
    }
    write_file(context, path, content, mode & 0o7777)
}

/// Descriptors 0, 1 and 2 of the first process. A stream that the host has closed is /dev/null.
pub fn standard_files(config: &Config, context: &FsContext) -> Result<Arc<FdTable>> {
    let table = FdTable::default();
    let find = |path: &[u8]| Walk::new(Caller::KERNEL, context).find(path, Follow::Yes);
    for fd in 0..3 {
        let file = match host::open_stream(fd, config.terminal) {
            // Opened by its name, so that ttyname(3) finds it.
            Some(stream) if stream.is_terminal() => {
                let console = find(b"/dev/console")?;
                namei::open_path(&Caller::KERNEL, console, flags::RDWR | flags::NOCTTY)?
            }
            Some(stream) if config.terminal => OpenFile::new(stream, flags::RDWR),
            Some(stream) => OpenFile::new(
                stream,
                if fd == 0 {
                    flags::RDONLY
                } else {
                    flags::WRONLY
                },
            ),
            None => {
                let path = find(b"/dev/null")?;
                namei::open_path(&Caller::KERNEL, path, flags::RDWR)?
            }
        };
        table.add(file, false, usize::MAX)?;
    }
    Ok(Arc::new(table))
}
