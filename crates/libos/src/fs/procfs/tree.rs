//! What in /proc belongs to no process.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use bulla_abi::cpu::{FEATURES, Feature};
use spin::Once;

use super::{configuration, sysvipc};
use crate::errno::{EINVAL, ENOENT};
use crate::fs::inode::FileType;
use crate::fs::{inotify, pipe};
use crate::mm::accounting;
use crate::net::{interfaces, listing};
use crate::platform::platform;
use crate::process::times::{CpuTime, ENDED};
use crate::process::{core_dump, limits, load, table};
use crate::{Kernel, Result, Thread, ipc, kernel, keys, mm};

/// A name and what it stands for.
pub type Children = &'static [(&'static str, Item)];

/// A node.
pub enum Item {
    /// The root: processes too.
    Root(Children),
    Directory(Children),
    Text(fn() -> String),
    /// What depends on who reads it.
    View(fn(&Arc<Thread>) -> Result<String>),
    Bytes(fn() -> Vec<u8>),
    Setting(&'static Setting),
    /// Text that may be written too.
    Variable(fn() -> String, fn(&[u8]) -> Result<()>),
    Link(&'static str),
}

impl Item {
    pub fn kind(&self) -> FileType {
        match self {
            Item::Root(_) | Item::Directory(_) => FileType::Directory,
            Item::Text(_)
            | Item::View(_)
            | Item::Bytes(_)
            | Item::Setting(_)
            | Item::Variable(..) => FileType::Regular,
            Item::Link(_) => FileType::Link,
        }
    }
}

/// A number under /proc/sys that may be written and reads back what was written: a limit that whoever
/// keeps to it asks for, or a setting that promises nothing else.
pub struct Setting {
    value: AtomicU64,
    min: u64,
    max: u64,
}

impl Setting {
    pub const fn new(default: u64, max: u64) -> Setting {
        Setting::between(default, 0, max)
    }

    pub const fn between(default: u64, min: u64, max: u64) -> Setting {
        Setting {
            value: AtomicU64::new(default),
            min,
            max,
        }
    }

    pub fn value(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    pub fn set(&self, bytes: &[u8]) -> Result<()> {
        let number: u64 = number_in(bytes)?;
        if number < self.min || number > self.max {
            return Err(EINVAL);
        }
        self.value.store(number, Ordering::Relaxed);
        Ok(())
    }
}

/// The number that was written to a setting, as C writes numbers: with a sign, octal, hexadecimal.
/// What follows after white space is left alone, as Linux does.
fn number_in<T: TryFrom<i128>>(bytes: &[u8]) -> Result<T> {
    let text = core::str::from_utf8(bytes).map_err(|_| EINVAL)?;
    let is_space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\0');
    let number = text.trim_start().split(is_space).next().unwrap_or("");
    let (sign, digits) = match number.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, number),
    };
    let hexadecimal = digits.strip_prefix("0x").or(digits.strip_prefix("0X"));
    let (digits, radix) = match hexadecimal {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        None => (digits, 10),
    };
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return Err(EINVAL);
    }
    let value = i128::from_str_radix(digits, radix).map_err(|_| EINVAL)?;
    T::try_from(sign * value).map_err(|_| EINVAL)
}

/// Whether the item is in /proc itself.
pub fn is_top(item: &'static Item) -> bool {
    match &ROOT {
        Item::Root(children) => children.iter().any(|(_, child)| core::ptr::eq(child, item)),
        _ => false,
    }
}

/// The child of this name.
pub fn find(children: Children, name: &[u8]) -> Result<&'static Item> {
    let found = children.iter().find(|(child, _)| child.as_bytes() == name);
    found.map(|(_, item)| item).ok_or(ENOENT)
}

macro_rules! fixed {
    ($text:expr) => {
        Item::Text(|| String::from(concat!($text, "\n")))
    };
}

pub static ROOT: Item = Item::Root(&[
    ("cmdline", fixed!("bulla")),
    ("config.gz", Item::Bytes(configuration::compressed)),
    ("cpuinfo", Item::Text(cpuinfo)),
    (
        "devices",
        fixed!("Character devices:\n  1 mem\n  5 /dev/tty\n136 pts\n\nBlock devices:"),
    ),
    ("filesystems", Item::Text(filesystems)),
    ("key-users", Item::Text(keys::users)),
    ("keys", Item::View(keys::keys)),
    ("loadavg", Item::Text(loadavg)),
    ("meminfo", Item::Text(meminfo)),
    ("mounts", Item::Link("self/mounts")),
    ("net", Item::Link("self/net")),
    ("partitions", fixed!("major minor  #blocks  name\n")),
    ("stat", Item::Text(stat)),
    (
        "swaps",
        fixed!("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"),
    ),
    ("sys", Item::Directory(SYS)),
    (
        "sysvipc",
        Item::Directory(&[
            ("msg", Item::Text(sysvipc::queues)),
            ("sem", Item::Text(sysvipc::semaphores)),
            ("shm", Item::Text(sysvipc::segments)),
        ]),
    ),
    ("uptime", Item::Text(uptime)),
    ("version", Item::Text(version)),
    ("vmstat", Item::Text(vmstat)),
]);

/// /proc/<pid>/net: the network is one for all processes.
pub static NET: Item = Item::Directory(&[
    ("arp", Item::Text(interfaces::text::neighbours)),
    ("dev", Item::Text(interfaces::text::devices)),
    ("if_inet6", Item::Text(interfaces::text::addresses6)),
    ("ipv6_route", Item::Text(interfaces::text::routes6)),
    ("netlink", Item::Text(listing::netlink_text)),
    (
        "packet",
        fixed!("sk               RefCnt Type Proto  Iface R Rmem   User   Inode"),
    ),
    ("raw", Item::Text(listing::raw)),
    ("raw6", Item::Text(listing::raw6)),
    ("route", Item::Text(interfaces::text::routes)),
    ("sockstat", Item::Text(listing::statistics)),
    ("sockstat6", Item::Text(listing::statistics6)),
    ("tcp", Item::Text(listing::tcp)),
    ("tcp6", Item::Text(listing::tcp6)),
    ("udp", Item::Text(listing::udp)),
    ("udp6", Item::Text(listing::udp6)),
    ("unix", Item::Text(listing::unix_text)),
]);

static SYS: Children = &[
    ("fs", Item::Directory(SYS_FS)),
    ("kernel", Item::Directory(SYS_KERNEL)),
    ("net", Item::Directory(SYS_NET)),
    ("vm", Item::Directory(SYS_VM)),
];

static SYS_FS: Children = &[
    ("aio-max-nr", fixed!("65536")),
    ("dir-notify-enable", fixed!("1")),
    ("file-max", Item::Setting(&FILE_MAX)),
    ("file-nr", fixed!("1024\t0\t9223372036854775807")),
    (
        "inotify",
        Item::Directory(&[
            ("max_queued_events", fixed!("16384")),
            (
                "max_user_instances",
                Item::Setting(&inotify::MAX_USER_INSTANCES),
            ),
            (
                "max_user_watches",
                Item::Setting(&inotify::MAX_USER_WATCHES),
            ),
        ]),
    ),
    ("lease-break-time", Item::Setting(&LEASE_BREAK_TIME)),
    ("leases-enable", fixed!("1")),
    (
        "mqueue",
        Item::Directory(&[
            ("msg_default", fixed!("10")),
            ("msg_max", fixed!("10")),
            ("msgsize_default", fixed!("8192")),
            ("msgsize_max", fixed!("8192")),
            ("queues_max", fixed!("256")),
        ]),
    ),
    ("nr_open", Item::Setting(&limits::FILES_MAX)),
    ("overflowgid", fixed!("65534")),
    ("overflowuid", fixed!("65534")),
    (
        "pipe-max-size",
        Item::Variable(
            || format!("{}\n", pipe::most()),
            |bytes| pipe::set_most(number_in(bytes)?),
        ),
    ),
    ("pipe-user-pages-hard", fixed!("0")),
    ("pipe-user-pages-soft", fixed!("16384")),
    ("protected_fifos", fixed!("1")),
    ("protected_hardlinks", fixed!("1")),
    ("protected_regular", fixed!("1")),
    ("protected_symlinks", fixed!("0")),
];

static SYS_KERNEL: Children = &[
    ("cap_last_cap", fixed!("40")),
    (
        "core_pattern",
        Item::Variable(core_dump::pattern, core_dump::set_pattern),
    ),
    ("core_uses_pid", fixed!("0")),
    (
        "domainname",
        Item::Variable(|| line(&kernel().names().1), Kernel::set_domain_name),
    ),
    (
        "hostname",
        Item::Variable(|| line(&kernel().names().0), Kernel::set_host_name),
    ),
    (
        "keys",
        Item::Directory(&[
            ("gc_delay", Item::Setting(&keys::COLLECT_DELAY)),
            ("maxbytes", Item::Setting(&keys::BYTES_MAX)),
            ("maxkeys", Item::Setting(&keys::KEYS_MAX)),
            (
                "persistent_keyring_expiry",
                Item::Setting(&keys::PERSISTENT_EXPIRY),
            ),
            ("root_maxbytes", Item::Setting(&keys::ROOT_BYTES_MAX)),
            ("root_maxkeys", Item::Setting(&keys::ROOT_KEYS_MAX)),
        ]),
    ),
    ("msgmax", fixed!("8192")),
    ("msgmnb", fixed!("16384")),
    (
        "msg_next_id",
        Item::Variable(
            || format!("{}\n", ipc::message::QUEUES.next.get()),
            |bytes| ipc::message::QUEUES.next.set(number_in(bytes)?),
        ),
    ),
    ("msgmni", Item::Setting(&ipc::message::QUEUES_MAX)),
    ("ngroups_max", fixed!("65536")),
    (
        "ns_last_pid",
        Item::Variable(
            || format!("{}\n", table::lock().last()),
            |bytes| table::lock().set_last(number_in(bytes)?),
        ),
    ),
    ("osrelease", Item::Text(|| line(RELEASE.as_bytes()))),
    ("ostype", fixed!("Linux")),
    ("overflowgid", fixed!("65534")),
    ("overflowuid", fixed!("65534")),
    ("pid_max", fixed!("4194304")),
    (
        "random",
        Item::Directory(&[
            ("boot_id", Item::Text(boot_id)),
            ("entropy_avail", fixed!("256")),
            ("poolsize", fixed!("256")),
            ("uuid", Item::Text(uuid)),
        ]),
    ),
    ("randomize_va_space", fixed!("2")),
    (
        "sched_rr_timeslice_ms",
        Item::Variable(
            || format!("{}\n", ROUND_ROBIN_SLICE.value()),
            set_round_robin_slice,
        ),
    ),
    ("sched_rt_period_us", Item::Setting(&REAL_TIME_PERIOD)),
    ("sched_rt_runtime_us", Item::Setting(&REAL_TIME_RUN)),
    (
        "sem",
        Item::Variable(ipc::semaphore::limits_text, ipc::semaphore::set_limits),
    ),
    (
        "sem_next_id",
        Item::Variable(
            || format!("{}\n", ipc::semaphore::SETS.next.get()),
            |bytes| ipc::semaphore::SETS.next.set(number_in(bytes)?),
        ),
    ),
    (
        "shm_next_id",
        Item::Variable(
            || format!("{}\n", mm::sysv::NEXT_ID.get()),
            |bytes| mm::sysv::NEXT_ID.set(number_in(bytes)?),
        ),
    ),
    ("shmall", fixed!("18446744073692774399")),
    ("shmmax", Item::Setting(&mm::sysv::SEGMENT_BYTES)),
    ("shmmni", Item::Setting(&mm::sysv::SEGMENTS_MAX)),
    (
        "threads-max",
        Item::Text(|| format!("{}\n", kernel().max_threads())),
    ),
    ("tainted", fixed!("0")),
    ("version", Item::Text(|| line(VERSION.as_bytes()))),
];

static SYS_NET: Children = &[
    (
        "core",
        Item::Directory(&[
            ("rmem_default", fixed!("212992")),
            ("rmem_max", fixed!("212992")),
            ("somaxconn", fixed!("4096")),
            ("wmem_default", fixed!("212992")),
            ("wmem_max", fixed!("212992")),
        ]),
    ),
    (
        "ipv4",
        Item::Directory(&[
            ("ip_local_port_range", fixed!("32768\t60999")),
            ("ip_unprivileged_port_start", fixed!("0")),
            ("tcp_fin_timeout", fixed!("60")),
            ("tcp_keepalive_intvl", fixed!("75")),
            ("tcp_keepalive_probes", fixed!("9")),
            ("tcp_keepalive_time", fixed!("7200")),
            ("tcp_max_syn_backlog", fixed!("4096")),
            ("tcp_rmem", fixed!("4096\t131072\t6291456")),
            ("tcp_wmem", fixed!("4096\t16384\t4194304")),
        ]),
    ),
    (
        "unix",
        Item::Directory(&[("max_dgram_qlen", fixed!("512"))]),
    ),
];

/// Seconds that a lease may stand in the way of an open.
pub static LEASE_BREAK_TIME: Setting = Setting::new(45, 3600);

/// Kept, without effect: each container has its own limits of descriptors.
static FILE_MAX: Setting = Setting::new(i64::MAX as u64, i64::MAX as u64);

/// Microseconds of real-time scheduling, which there is none of.
static REAL_TIME_PERIOD: Setting = Setting::between(1_000_000, 1_000_000, 1_000_000);
static REAL_TIME_RUN: Setting = Setting::new(950_000, 1_000_000);
/// Milliseconds that a round-robin thread would have.
static ROUND_ROBIN_SLICE: Setting = Setting::between(100, 1, 1000);

/// Nothing or less is the default again.
fn set_round_robin_slice(bytes: &[u8]) -> Result<()> {
    match number_in::<i64>(bytes)? {
        ..=0 => ROUND_ROBIN_SLICE.set(b"100"),
        _ => ROUND_ROBIN_SLICE.set(bytes),
    }
}

static OVERCOMMIT: Setting = Setting::new(1, 2);
/// Most mappings of a process.
pub static MAX_MAP_COUNT: Setting = Setting::new(65_530, 1 << 20);
static SWAPPINESS: Setting = Setting::new(60, 200);

static SYS_VM: Children = &[
    ("max_map_count", Item::Setting(&MAX_MAP_COUNT)),
    ("min_free_kbytes", fixed!("67584")),
    ("mmap_min_addr", fixed!("65536")),
    ("nr_hugepages", fixed!("0")),
    ("overcommit_memory", Item::Setting(&OVERCOMMIT)),
    ("overcommit_ratio", fixed!("50")),
    ("swappiness", Item::Setting(&SWAPPINESS)),
];

/// The kernel release that programs see.
pub const RELEASE: &str = "6.13.0-bulla";
/// What uname and /proc/version show as the version.
const VERSION: &str = "#1 SMP PREEMPT_DYNAMIC Bulla";

/// The kinds of file systems that there are; none needs a device.
const FILESYSTEMS: [&str; 5] = ["sysfs", "tmpfs", "proc", "devpts", "overlay"];

/// Their names, in the order of sysfs(2).
pub fn filesystem_names() -> impl Iterator<Item = &'static str> {
    FILESYSTEMS.into_iter()
}

fn filesystems() -> String {
    FILESYSTEMS.map(|name| format!("nodev\t{name}\n")).concat()
}

fn line(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    text.push('\n');
    text
}

fn version() -> String {
    format!("Linux version {RELEASE} (bulla@enclave) (rustc) {VERSION}\n")
}

/// Monotonic nanoseconds, as seconds with two decimals.
fn seconds(ns: u64) -> String {
    format!("{}.{:02}", ns / 1_000_000_000, ns / 10_000_000 % 100)
}

/// CPU time of all threads there are and have been.
fn container_times() -> CpuTime {
    let processes = table::processes();
    let threads = processes.iter().flat_map(|process| process.live_threads());
    let times = threads.map(|thread| thread.clock.times());
    times.fold(ENDED.get(), |sum, time| sum + time)
}

fn uptime() -> String {
    let now = platform().monotonic();
    let busy = container_times().all();
    let idle = (now * u64::from(platform().cpus().max(1))).saturating_sub(busy);
    format!("{} {}\n", seconds(now), seconds(idle))
}

fn loadavg() -> String {
    let text = load::averages().map(|average| {
        // Rounded to two places.
        let average = average + (1 << load::FRACTION) / 200;
        let fraction = average & ((1 << load::FRACTION) - 1);
        let hundredths = (fraction * 100) >> load::FRACTION;
        format!("{}.{hundredths:02}", average >> load::FRACTION)
    });
    let [one, five, fifteen] = text;
    let (running, all) = load::running();
    let last = table::lock().last();
    format!("{one} {five} {fifteen} {running}/{all} {last}\n")
}

/// (total, free) bytes: user memory and what the file systems hold, together.
fn memory() -> (u64, u64) {
    let limit = accounting::limit();
    let limit = if limit == u64::MAX {
        crate::fs::budget().limit() * 2
    } else {
        limit
    };
    let used = accounting::used() + crate::fs::budget().used();
    (limit, limit.saturating_sub(used))
}

fn meminfo() -> String {
    let (total, free) = memory();
    let files = crate::fs::budget().used();
    let mut text = String::new();
    let zero = [
        "SwapCached",
        "Unevictable",
        "Mlocked",
        "SwapTotal",
        "SwapFree",
        "Dirty",
        "Writeback",
    ];
    for (name, bytes) in [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", free),
        ("Buffers", 0),
        ("Cached", files),
        ("Active", accounting::used()),
        ("Inactive", 0),
        ("AnonPages", accounting::used()),
        ("Mapped", 0),
        ("Shmem", files),
        ("Slab", 0),
        ("PageTables", 0),
        ("CommitLimit", total),
        ("Committed_AS", total - free),
    ] {
        let _ = writeln!(text, "{:<15} {:>8} kB", format!("{name}:"), bytes / 1024);
    }
    for name in zero {
        let _ = writeln!(text, "{:<15} {:>8} kB", format!("{name}:"), 0);
    }
    text.push_str(
        "HugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:       2048 kB\n",
    );
    text
}

fn vmstat() -> String {
    let (_, free) = memory();
    format!(
        "nr_free_pages {}\nnr_anon_pages {}\n",
        free / 4096,
        accounting::used() / 4096
    )
}

/// CPU time in ticks of 10 ms.
fn stat() -> String {
    let cpus = u64::from(platform().cpus().max(1));
    let now = platform().monotonic();
    let used = container_times();
    let ([user, system], all) = (used.ticks(), now * cpus / 10_000_000);
    let idle = all.saturating_sub(user + system);
    let mut text = format!("cpu  {user} 0 {system} {idle} 0 0 0 0 0 0\n");
    for cpu in 0..cpus {
        let _ = writeln!(
            text,
            "cpu{cpu} {} 0 {} {} 0 0 0 0 0 0",
            user / cpus,
            system / cpus,
            idle / cpus
        );
    }
    let boot = (platform().realtime().saturating_sub(now)) / 1_000_000_000;
    let (running, _) = load::running();
    let _ = write!(
        text,
        "intr 0\nctxt 0\nbtime {boot}\nprocesses {}\nprocs_running {}\nprocs_blocked 0\n",
        table::processes().len(),
        running,
    );
    text
}

fn cpuinfo() -> String {
    let has = |feature: &Feature| {
        let words = platform().cpuid(feature.leaf, feature.subleaf);
        words[feature.register] >> feature.bit & 1 == 1
    };
    let mut flags = String::new();
    for feature in FEATURES.iter().filter(|feature| has(feature)) {
        let _ = write!(flags, " {}", feature.name);
    }
    let mut text = String::new();
    let cpus = platform().cpus().max(1);
    for cpu in 0..cpus {
        let _ = write!(
            text,
            "processor\t: {cpu}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\n\
             model name\t: SGX enclave\nstepping\t: 6\nphysical id\t: 0\nsiblings\t: {cpus}\n\
             core id\t\t: {cpu}\ncpu cores\t: {cpus}\nfpu\t\t: yes\ncpuid level\t: 27\nwp\t\t: yes\n\
             flags\t\t: fpu tsc cx8 cmov mmx fxsr sse sse2 syscall nx lm constant_tsc nonstop_tsc \
             pni xsave{flags}\n\
             clflush size\t: 64\ncache_alignment\t: 64\n\
             address sizes\t: 46 bits physical, 48 bits virtual\n\n",
        );
    }
    text
}

fn random_uuid() -> String {
    let mut bytes = [0u8; 16];
    platform().random(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let hex = hex.concat();
    format!(
        "{}-{}-{}-{}-{}\n",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

fn uuid() -> String {
    random_uuid()
}

fn boot_id() -> String {
    static ID: Once<String> = Once::new();
    ID.call_once(random_uuid).clone()
}
