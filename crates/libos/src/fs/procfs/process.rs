//! /proc/<pid>: what a process shows of itself.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::ops::Range;
use core::sync::atomic::Ordering;

use super::{Item, Kind, PidDirectory, ProcNode, tree};
use crate::errno::{EACCES, EINVAL, EIO, ENOENT, EPERM, ESRCH};
use crate::fs::context::FsContext;
use crate::fs::file::{OpenFile, flags};
use crate::fs::inode::Inode;
use crate::fs::lower::split_device;
use crate::fs::mount;
use crate::fs::path::PathRef;
use crate::fs::permission::Caller;
use crate::fs::table::FdTable;
use crate::mm::{AddressSpace, MapLine};
use crate::platform::Protection;
use crate::process::{Process, core_dump, exec, table};
use crate::user::IoBuffer;
use crate::{Result, Thread};

/// What a name in /proc/<pid> stands for.
#[derive(Clone, Copy)]
pub enum PidEntry {
    File(PidFile),
    Link(PidLink),
    Directory(PidDirectory),
    /// What is the same for every process.
    Common(&'static Item),
}

impl PidEntry {
    /// Whether /proc/<pid>/task/<tid> has it too.
    pub fn is_of_thread(self) -> bool {
        !matches!(self, PidEntry::Directory(PidDirectory::Task))
    }
}

/// Text files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PidFile {
    Auxv,
    Cgroup,
    CommandLine,
    Comm,
    CoreFilter,
    Environment,
    GidMap,
    Io,
    Limits,
    LoginUid,
    Maps,
    Memory,
    MountInfo,
    Mounts,
    OomAdjust,
    OomScore,
    OomScoreAdjust,
    PageMap,
    SessionId,
    SetGroups,
    Smaps,
    SmapsRollup,
    Stat,
    Statm,
    Status,
    UidMap,
    WaitChannel,
}

impl PidFile {
    pub fn mode(self) -> u32 {
        match self {
            PidFile::Auxv | PidFile::Environment | PidFile::Io => 0o400,
            PidFile::Memory => 0o600,
            PidFile::Comm
            | PidFile::CoreFilter
            | PidFile::OomScoreAdjust
            | PidFile::OomAdjust
            | PidFile::LoginUid => 0o644,
            PidFile::PageMap => 0o400,
            _ => 0o444,
        }
    }

    /// Whether only the process's own user may open it.
    pub fn is_private(self) -> bool {
        use PidFile::*;
        matches!(
            self,
            Auxv | Environment | Io | Maps | Memory | PageMap | Smaps | SmapsRollup
        )
    }

    pub fn is_writable(self) -> bool {
        matches!(
            self,
            PidFile::Comm
                | PidFile::CoreFilter
                | PidFile::LoginUid
                | PidFile::Memory
                | PidFile::OomScoreAdjust
                | PidFile::OomAdjust
        )
    }
}

/// Links to places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PidLink {
    WorkingDirectory,
    Executable,
    Root,
}

/// The names in /proc/<pid>.
pub static ENTRIES: &[(&str, PidEntry)] = &[
    ("auxv", PidEntry::File(PidFile::Auxv)),
    ("cgroup", PidEntry::File(PidFile::Cgroup)),
    ("cmdline", PidEntry::File(PidFile::CommandLine)),
    ("comm", PidEntry::File(PidFile::Comm)),
    ("coredump_filter", PidEntry::File(PidFile::CoreFilter)),
    ("cwd", PidEntry::Link(PidLink::WorkingDirectory)),
    ("environ", PidEntry::File(PidFile::Environment)),
    ("exe", PidEntry::Link(PidLink::Executable)),
    ("fd", PidEntry::Directory(PidDirectory::Descriptors)),
    ("fdinfo", PidEntry::Directory(PidDirectory::DescriptorInfo)),
    ("gid_map", PidEntry::File(PidFile::GidMap)),
    ("io", PidEntry::File(PidFile::Io)),
    ("limits", PidEntry::File(PidFile::Limits)),
    ("loginuid", PidEntry::File(PidFile::LoginUid)),
    ("maps", PidEntry::File(PidFile::Maps)),
    ("mem", PidEntry::File(PidFile::Memory)),
    ("mountinfo", PidEntry::File(PidFile::MountInfo)),
    ("mounts", PidEntry::File(PidFile::Mounts)),
    ("net", PidEntry::Common(&tree::NET)),
    ("ns", PidEntry::Directory(PidDirectory::Namespaces)),
    ("oom_adj", PidEntry::File(PidFile::OomAdjust)),
    ("oom_score", PidEntry::File(PidFile::OomScore)),
    ("oom_score_adj", PidEntry::File(PidFile::OomScoreAdjust)),
    ("pagemap", PidEntry::File(PidFile::PageMap)),
    ("root", PidEntry::Link(PidLink::Root)),
    ("sessionid", PidEntry::File(PidFile::SessionId)),
    ("setgroups", PidEntry::File(PidFile::SetGroups)),
    ("smaps", PidEntry::File(PidFile::Smaps)),
    ("smaps_rollup", PidEntry::File(PidFile::SmapsRollup)),
    ("stat", PidEntry::File(PidFile::Stat)),
    ("statm", PidEntry::File(PidFile::Statm)),
    ("status", PidEntry::File(PidFile::Status)),
    ("task", PidEntry::Directory(PidDirectory::Task)),
    ("uid_map", PidEntry::File(PidFile::UidMap)),
    ("wchan", PidEntry::File(PidFile::WaitChannel)),
];

pub fn lookup(process: &Arc<Process>, tid: Option<u32>, name: &[u8]) -> Result<Arc<dyn Inode>> {
    let found = ENTRIES.iter().find(|(entry, _)| entry.as_bytes() == name);
    let (_, entry) = found.ok_or(ENOENT)?;
    if tid.is_some() && !entry.is_of_thread() {
        return Err(ENOENT);
    }
    let process = process.clone();
    Ok(ProcNode::make(match *entry {
        PidEntry::File(which) => Kind::PidFile {
            process,
            tid,
            which,
        },
        PidEntry::Link(which) => Kind::PidLink { process, which },
        PidEntry::Directory(which) => Kind::PidDirectory { process, which },
        PidEntry::Common(item) => Kind::Static(item),
    }))
}

/// A thread that stands for the process.
fn thread_of(process: &Process) -> Result<Arc<Thread>> {
    let main = process.main_thread();
    main.or_else(|| process.live_threads().first().cloned())
        .ok_or(ENOENT)
}

fn thread_or_main(process: &Process, tid: Option<u32>) -> Result<Arc<Thread>> {
    match tid {
        Some(tid) => process
            .live_threads()
            .into_iter()
            .find(|t| t.tid() == tid)
            .ok_or(ESRCH),
        None => thread_of(process).map_err(|_| ESRCH),
    }
}

pub fn files_of(process: &Process) -> Result<Arc<FdTable>> {
    Ok(thread_of(process)?.files())
}

pub fn file_of(process: &Process, fd: i32) -> Result<Arc<OpenFile>> {
    files_of(process)?.get(fd).map_err(|_| ENOENT)
}

fn context_of(process: &Process) -> Result<Arc<FsContext>> {
    Ok(thread_of(process)?.fs())
}

/// The root from which paths are shown.
pub fn view(caller: &Caller<'_>) -> PathRef {
    match caller.thread {
        Some(thread) => thread.fs().root(),
        None => crate::fs::root()
            .cloned()
            .unwrap_or_else(crate::fs::empty_root),
    }
}

pub fn link_target(process: &Process, which: PidLink) -> Result<PathRef> {
    match which {
        PidLink::WorkingDirectory => Ok(context_of(process)?.cwd()),
        PidLink::Root => Ok(context_of(process)?.root()),
        PidLink::Executable => process.mm().program().path.ok_or(ENOENT),
    }
}

/// Where opening /proc/<pid>/fd/<n> leads: the file's place, or a place made for the occasion.
pub fn place_of_file(file: &Arc<OpenFile>) -> Result<PathRef> {
    match &file.path {
        Some(path) => Ok(path.clone()),
        None => crate::fs::anonymous::place(file),
    }
}

pub fn write(process: &Process, tid: Option<u32>, which: PidFile, bytes: &[u8]) -> Result<()> {
    let text = bytes
        .split(|&byte| byte == b'\n' || byte == 0)
        .next()
        .unwrap_or_default();
    match which {
        PidFile::Comm => {
            exec::set_name(&*thread_or_main(process, tid)?, text);
            Ok(())
        }
        PidFile::OomScoreAdjust | PidFile::OomAdjust => {
            let text = core::str::from_utf8(text).map_err(|_| EINVAL)?;
            let value: i32 = text.trim().parse().map_err(|_| EINVAL)?;
            if !(-1000..=1000).contains(&value) {
                return Err(EINVAL);
            }
            process.oom_score_adj.store(value as u32, Ordering::Relaxed);
            Ok(())
        }
        PidFile::CoreFilter => {
            let text = core::str::from_utf8(text).map_err(|_| EINVAL)?.trim();
            let (digits, radix) = match text.strip_prefix("0x") {
                Some(digits) => (digits, 16),
                None => (text, 10),
            };
            let value = u32::from_str_radix(digits, radix).map_err(|_| EINVAL)?;
            let kept = value & core_dump::FILTER_MASK;
            process.core_filter.store(kept, Ordering::Relaxed);
            Ok(())
        }
        PidFile::LoginUid => {
            // pam_loginuid writes it for every session of cron, sshd and login. Without
            // CAP_AUDIT_CONTROL it can be set once.
            let text = core::str::from_utf8(text).map_err(|_| EINVAL)?;
            let uid: u32 = text.trim().parse().map_err(|_| EINVAL)?;
            let unset = u32::MAX;
            process
                .login_uid
                .compare_exchange(unset, uid, Ordering::Relaxed, Ordering::Relaxed)
                .map_err(|_| EPERM.because("the login user is set already"))?;
            Ok(())
        }
        _ => Err(EACCES),
    }
}

/// /proc/<pid>/pagemap: a word for each page, from the address `offset` / 8 × 4096 on. Bit 63:
/// present; bit 61: of a file or shared. Frame numbers, which need CAP_SYS_ADMIN, read as 0.
pub fn read_page_map(process: &Process, to: &mut IoBuffer<'_>, offset: u64) -> Result<usize> {
    const WORD: u64 = 8;
    const PRESENT: u64 = 1 << 63;
    const FILE_OR_SHARED: u64 = 1 << 61;
    /// Pages looked at in one go.
    const STEP: u64 = 512;
    if !offset.is_multiple_of(WORD) || !(to.remaining() as u64).is_multiple_of(WORD) {
        return Err(EINVAL.because("pagemap has words of 8 bytes"));
    }
    let mm = process.mm();
    let last = crate::platform::platform().user_range().end / 4096;
    let mut page = offset / WORD;
    let mut done = 0;
    while !to.is_empty() && page < last {
        let count = (to.remaining() as u64 / WORD).min(STEP).min(last - page);
        let mut words = Vec::new();
        for (present, shared) in mm.presence(page * 4096, count) {
            let bits = |is: bool, bit| if is { bit } else { 0 };
            let word = bits(present, PRESENT) | bits(present && shared, FILE_OR_SHARED);
            words.extend_from_slice(&word.to_le_bytes());
        }
        done += to.put(&words)?;
        page += count;
    }
    Ok(done)
}

/// /proc/<pid>/mem.
pub fn read_memory(process: &Process, to: &mut IoBuffer<'_>, offset: u64) -> Result<usize> {
    let mm = process.mm();
    let mut chunk = [0u8; 4096];
    let mut at = offset;
    while !to.is_empty() {
        let len = to.remaining().min(4096 - (at & 4095) as usize);
        if mm.peek(at, &mut chunk[..len]).is_err() {
            return if at == offset {
                Err(EIO)
            } else {
                Ok((at - offset) as usize)
            };
        }
        at += to.put(&chunk[..len])? as u64;
    }
    Ok((at - offset) as usize)
}

/// Writes to /proc/<pid>/mem. EIO where not even a debugger may write.
pub fn write_memory(process: &Process, from: &mut IoBuffer<'_>, offset: u64) -> Result<usize> {
    let mm = process.mm();
    let mut chunk = [0u8; 4096];
    let mut at = offset;
    while !from.is_empty() {
        let len = from.remaining().min(4096 - (at & 4095) as usize);
        let taken = from.take(&mut chunk[..len])?;
        if mm.poke(at, &chunk[..taken]).is_err() {
            return if at == offset {
                Err(EIO)
            } else {
                Ok((at - offset) as usize)
            };
        }
        at += taken as u64;
    }
    Ok((at - offset) as usize)
}

fn user_range(mm: &AddressSpace, range: Range<u64>) -> Vec<u8> {
    const MOST: u64 = 2 << 20;
    let len = range.end.saturating_sub(range.start).min(MOST);
    let mut bytes = alloc::vec![0; len as usize];
    if mm.read(range.start, &mut bytes).is_err() {
        bytes.clear();
    }
    bytes
}

pub fn text(
    process: &Arc<Process>,
    tid: Option<u32>,
    which: PidFile,
    reader: Option<&Arc<Thread>>,
) -> Result<Vec<u8>> {
    let root = view(&Caller {
        thread: reader,
        credentials: None,
    });
    let ended = process.has_ended();
    Ok(match which {
        PidFile::Auxv => process.mm().program().auxv,
        PidFile::Cgroup => b"0::/\n".to_vec(),
        PidFile::CommandLine if ended => Vec::new(),
        PidFile::CommandLine => {
            let mm = process.mm();
            user_range(&mm, mm.program().arguments)
        }
        PidFile::Comm => {
            let mut name = thread_or_main(process, tid)?.name.lock().clone();
            name.push(b'\n');
            name
        }
        PidFile::Environment if ended => Vec::new(),
        PidFile::Environment => {
            let mm = process.mm();
            user_range(&mm, mm.program().environment)
        }
        PidFile::Io => b"rchar: 0\nwchar: 0\nsyscr: 0\nsyscw: 0\nread_bytes: 0\nwrite_bytes: 0\n\
            cancelled_write_bytes: 0\n"
            .to_vec(),
        PidFile::Limits => limits(process).into_bytes(),
        PidFile::LoginUid => {
            let uid = process.login_uid.load(Ordering::Relaxed);
            format!("{uid}").into_bytes()
        }
        PidFile::SessionId => b"4294967295".to_vec(),
        // There is one user namespace, with all ids.
        PidFile::UidMap | PidFile::GidMap => b"         0          0 4294967295\n".to_vec(),
        PidFile::SetGroups => b"allow\n".to_vec(),
        PidFile::Maps => maps(process, &root, false),
        PidFile::Smaps => maps(process, &root, true),
        PidFile::SmapsRollup => {
            let sizes = process.mm().sizes();
            let resident = sizes.resident * 4;
            format!("Rss: {resident:>20} kB\nPss: {resident:>20} kB\n").into_bytes()
        }
        PidFile::Memory | PidFile::PageMap => return Err(EIO),
        PidFile::CoreFilter => {
            format!("{:08x}\n", process.core_filter.load(Ordering::Relaxed)).into_bytes()
        }
        PidFile::MountInfo => mount_info(&root, true),
        PidFile::Mounts => mount_info(&root, false),
        PidFile::OomScore => b"0\n".to_vec(),
        PidFile::OomAdjust => b"0\n".to_vec(),
        PidFile::OomScoreAdjust => {
            format!("{}\n", process.oom_score_adj.load(Ordering::Relaxed) as i32).into_bytes()
        }
        PidFile::Stat => stat(process, tid)?.into_bytes(),
        PidFile::Statm => {
            let sizes = process.mm().sizes();
            let numbers = [
                sizes.total,
                sizes.resident,
                sizes.shared,
                sizes.text,
                0,
                sizes.data,
                0,
            ];
            let words: Vec<String> = numbers.iter().map(|number| format!("{number}")).collect();
            format!("{}\n", words.join(" ")).into_bytes()
        }
        PidFile::Status => status(process, tid)?.into_bytes(),
        PidFile::WaitChannel => b"0".to_vec(),
    })
}

/// State letter and word.
fn state(process: &Process, thread: Option<&Thread>) -> (char, &'static str) {
    let table = table::lock();
    let node = table.node(process.pid);
    if node.is_some_and(|node| node.zombie.is_some()) || thread.is_none() {
        return ('Z', "zombie");
    }
    drop(table);
    match thread.and_then(|thread| thread.tracee.get()) {
        Some(tracee) if tracee.is_stopped() => return ('t', "tracing stop"),
        // Its tracer lets it run in a process that has stopped.
        Some(_) => {}
        None if process.signals.group.lock().stop_complete => return ('T', "stopped"),
        None => {}
    }
    match thread {
        Some(thread) if thread.asleep.load(Ordering::Relaxed) => ('S', "sleeping"),
        _ => ('R', "running"),
    }
}

fn name_of(thread: Option<&Arc<Thread>>) -> String {
    let name = thread
        .map(|thread| thread.name.lock().clone())
        .unwrap_or_default();
    String::from_utf8_lossy(&name).into_owned()
}

fn signal_masks(process: &Process) -> (u64, u64) {
    let (mut ignored, mut caught) = (0, 0);
    for signal in 1..=crate::signal::SIGNAL_MAX {
        let action = process.signals.action(signal);
        match action.handler {
            0 => {}
            1 => ignored |= crate::signal::bit(signal),
            _ => caught |= crate::signal::bit(signal),
        }
    }
    (ignored, caught)
}

fn stat(process: &Arc<Process>, tid: Option<u32>) -> Result<String> {
    let thread = thread_or_main(process, tid).ok();
    let terminal = crate::fs::tty::of_session(process.session());
    let sizes = process.mm().sizes();
    let program = process.mm().program();
    let ticks = |ns: u64| ns / crate::process::times::TICK_NS;
    let cpu = match (tid, &thread) {
        (Some(_), Some(thread)) => thread.clock.times(),
        _ => process.cpu_times(),
    };
    let [user, system] = cpu.ticks();
    let [children, children_system] = process.times.children.get().ticks();
    let priority = thread.as_ref().map_or(20, |thread| {
        i64::from(thread.priority.load(Ordering::Relaxed))
    });
    let (ignored, caught) = signal_masks(process);
    let (blocked, pending) = thread
        .as_ref()
        .map_or((0, 0), |t| (t.signals.blocked(), t.signals.pending_mask()));
    let heap = process.mm().heap();
    let status = process.group_exit().unwrap_or(0);
    let fields: [i128; 50] = [
        process.parent_pid().into(),
        process.group().into(),
        process.session().into(),
        terminal.map_or(0, |(device, _)| device.into()),
        terminal.map_or(-1, |(_, foreground)| i128::from(foreground)),
        0x40_0000, // flags: PF_RANDOMIZE
        0,
        0,
        0,
        0,
        user.into(),
        system.into(),
        children.into(),
        children_system.into(),
        40 - i128::from(priority),
        20 - i128::from(priority),
        process.live_threads().len() as i128,
        0,
        ticks(process.times.started.load(Ordering::Relaxed)).into(),
        (sizes.total * 4096).into(),
        sizes.resident.into(),
        u64::MAX.into(),
        program.code.start.into(),
        program.code.end.into(),
        program.stack_start.into(),
        0,
        0,
        (pending & 0x7fff_ffff).into(),
        (blocked & 0x7fff_ffff).into(),
        (ignored & 0x7fff_ffff).into(),
        (caught & 0x7fff_ffff).into(),
        0,
        0,
        0,
        17, // exit signal SIGCHLD
        0,
        0,
        thread
            .as_ref()
            .map_or(0, |t| t.policy.load(Ordering::Relaxed) & 0xff)
            .into(),
        0,
        0,
        0,
        program.data.start.into(),
        program.data.end.into(),
        heap.start.into(),
        program.arguments.start.into(),
        program.arguments.end.into(),
        program.environment.start.into(),
        program.environment.end.into(),
        status.into(),
        0,
    ];
    let (letter, _) = state(process, thread.as_deref());
    let mut text = format!(
        "{} ({}) {letter}",
        tid.unwrap_or(process.pid),
        name_of(thread.as_ref())
    );
    for field in &fields[..49] {
        let _ = write!(text, " {field}");
    }
    text.push('\n');
    Ok(text)
}

fn status(process: &Arc<Process>, tid: Option<u32>) -> Result<String> {
    let thread = thread_or_main(process, tid).ok();
    let credentials = process.credentials.lock().clone();
    let mut text = String::new();
    let (letter, word) = state(process, thread.as_deref());
    let umask = thread.as_ref().map_or(0o022, |thread| thread.fs().umask());
    let pid = process.pid;
    let _ = write!(
        text,
        "Name:\t{}\nUmask:\t{umask:04o}\nState:\t{letter} ({word})\nTgid:\t{pid}\nNgid:\t0\n\
         Pid:\t{}\nPPid:\t{}\nTracerPid:\t{}\n",
        name_of(thread.as_ref()),
        tid.unwrap_or(pid),
        process.parent_pid(),
        thread
            .as_ref()
            .and_then(|thread| thread.tracee.get())
            .map_or(0, |tracee| tracee.tracer_id()),
    );
    let c = &credentials;
    let _ = write!(
        text,
        "Uid:\t{}\t{}\t{}\t{}\nGid:\t{}\t{}\t{}\t{}\n",
        c.ruid, c.euid, c.suid, c.fsuid, c.rgid, c.egid, c.sgid, c.fsgid,
    );
    let size = thread
        .as_ref()
        .map_or(0, |t| t.files().len().next_power_of_two().max(64));
    let groups: Vec<String> = c.groups.iter().map(|gid| format!("{gid} ")).collect();
    let _ = write!(text, "FDSize:\t{size}\nGroups:\t{}\n", groups.concat());
    let _ = write!(
        text,
        "NStgid:\t{pid}\nNSpid:\t{}\nNSpgid:\t{}\nNSsid:\t{}\n",
        tid.unwrap_or(pid),
        process.group(),
        process.session(),
    );
    if letter != 'Z' {
        let sizes = process.mm().sizes();
        for (name, pages) in [
            ("VmPeak", sizes.total),
            ("VmSize", sizes.total),
            ("VmLck", process.mm().locked_bytes() / 4096),
            ("VmPin", 0),
            ("VmHWM", sizes.peak.max(sizes.resident)),
            ("VmRSS", sizes.resident),
            ("RssAnon", sizes.resident.saturating_sub(sizes.shared)),
            ("RssFile", sizes.shared),
            ("RssShmem", 0),
            ("VmData", sizes.data),
            ("VmStk", 33),
            ("VmExe", sizes.text),
            ("VmLib", 0),
            ("VmPTE", 0),
            ("VmSwap", 0),
        ] {
            let _ = writeln!(text, "{name}:\t{:>8} kB", pages * 4);
        }
        text.push_str("HugetlbPages:\t       0 kB\nCoreDumping:\t0\nTHP_enabled:\t0\n");
    }
    let (ignored, caught) = signal_masks(process);
    let (blocked, pending) = thread
        .as_ref()
        .map_or((0, 0), |t| (t.signals.blocked(), t.signals.pending_mask()));
    let _ = write!(
        text,
        "Threads:\t{}\nSigQ:\t0/{}\nSigPnd:\t{pending:016x}\nShdPnd:\t{:016x}\n\
         SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n",
        process.live_threads().len().max(1),
        crate::process::limits::RESOURCES * 1000,
        process.signals.pending_mask(),
    );
    let _ = write!(
        text,
        "CapInh:\t{:016x}\nCapPrm:\t{:016x}\nCapEff:\t{:016x}\nCapBnd:\t{:016x}\n\
         CapAmb:\t{:016x}\n",
        c.inheritable, c.permitted, c.effective, c.bounding, c.ambient,
    );
    let cpus = crate::platform::platform().cpus().clamp(1, 64);
    let _ = write!(
        text,
        "NoNewPrivs:\t{}\nSeccomp:\t{}\nSeccomp_filters:\t{}\n\
         Speculation_Store_Bypass:\tunknown\nCpus_allowed:\t{:x}\nCpus_allowed_list:\t{}\n\
         Mems_allowed:\t1\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t{}\n\
         nonvoluntary_ctxt_switches:\t0\n",
        u8::from(process.no_new_privileges.load(Ordering::Relaxed)),
        thread.as_ref().map_or(0, |t| t.seccomp.mode()),
        thread.as_ref().map_or(0, |t| t.seccomp.count()),
        u64::MAX >> (64 - cpus),
        if cpus == 1 {
            String::from("0")
        } else {
            format!("0-{}", cpus - 1)
        },
        process.sleeps(),
    );
    Ok(text)
}

fn limits(process: &Process) -> String {
    const NAMES: [(&str, &str); 16] = [
        ("Max cpu time", "seconds"),
        ("Max file size", "bytes"),
        ("Max data size", "bytes"),
        ("Max stack size", "bytes"),
        ("Max core file size", "bytes"),
        ("Max resident set", "bytes"),
        ("Max processes", "processes"),
        ("Max open files", "files"),
        ("Max locked memory", "bytes"),
        ("Max address space", "bytes"),
        ("Max file locks", "locks"),
        ("Max pending signals", "signals"),
        ("Max msgqueue size", "bytes"),
        ("Max nice priority", ""),
        ("Max realtime priority", ""),
        ("Max realtime timeout", "us"),
    ];
    let shown = |value: u64| match value {
        u64::MAX => String::from("unlimited"),
        value => format!("{value}"),
    };
    let mut text = format!(
        "{:<25} {:<20} {:<20} {:<10}\n",
        "Limit", "Soft Limit", "Hard Limit", "Units"
    );
    for (number, (name, unit)) in NAMES.iter().enumerate() {
        if let Ok(limit) = process.limits.get_by_number(number as u32) {
            let _ = writeln!(
                text,
                "{name:<25} {:<20} {:<20} {unit:<10}",
                shown(limit.soft),
                shown(limit.hard)
            );
        }
    }
    text
}

/// Octal escapes for what would break a line of /proc/mounts or /proc/<pid>/maps.
fn escape(path: &[u8], also: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for &byte in path {
        if byte == b'\n' || also.contains(&byte) {
            out.extend_from_slice(format!("\\{byte:03o}").as_bytes());
        } else {
            out.push(byte);
        }
    }
    out
}

/// What a mapping shows, or what it is for; empty for nameless memory.
pub fn map_name(map: &MapLine, root: &PathRef) -> Vec<u8> {
    match &map.path {
        Some(path) => path.display_path(root),
        None => map.name.as_bytes().to_vec(),
    }
}

fn maps(process: &Process, root: &PathRef, detailed: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for map in process.mm().maps() {
        let flag = |bit: Protection, letter: char| {
            if map.protection.contains(bit) {
                letter
            } else {
                '-'
            }
        };
        let (device, inode) = map.file.map_or((0, 0), |file| (file.device, file.inode));
        let (major, minor) = split_device(device);
        let line = format!(
            "{:08x}-{:08x} {}{}{}{} {:08x} {major:02x}:{minor:02x} {inode} ",
            map.start,
            map.end,
            flag(Protection::READ, 'r'),
            flag(Protection::WRITE, 'w'),
            flag(Protection::EXECUTE, 'x'),
            if map.shared { 's' } else { 'p' },
            map.offset,
        );
        let start = out.len();
        out.extend_from_slice(line.as_bytes());
        let name = escape(&map_name(&map, root), b"");
        if !name.is_empty() {
            // Names stand in a column.
            out.resize(out.len().max(start + 73), b' ');
            out.extend_from_slice(&name);
        }
        out.push(b'\n');
        if detailed {
            let size = (map.end - map.start) / 1024;
            let resident = map.resident / 1024;
            let locked = map.locked / 1024;
            let more = format!(
                "Size:           {size:>8} kB\nKernelPageSize:        4 kB\n\
                 MMUPageSize:           4 kB\nRss:            {resident:>8} kB\n\
                 Pss:            {resident:>8} kB\nPrivate_Dirty:  {resident:>8} kB\n\
                 Referenced:     {resident:>8} kB\nAnonymous:      {resident:>8} kB\n\
                 Swap:                  0 kB\nLocked:         {locked:>8} kB\nVmFlags: rd wr mr mw me\n",
            );
            out.extend_from_slice(more.as_bytes());
        }
    }
    out
}

fn mount_options(flags: u32) -> String {
    let mut text = String::from(if flags & mount::flags::RDONLY != 0 {
        "ro"
    } else {
        "rw"
    });
    for (bit, name) in [
        (mount::flags::NOSUID, ",nosuid"),
        (mount::flags::NODEV, ",nodev"),
        (mount::flags::NOEXEC, ",noexec"),
        (mount::flags::NOATIME, ",noatime"),
        (mount::flags::RELATIME, ",relatime"),
    ] {
        if flags & bit != 0 {
            text.push_str(name);
        }
    }
    text
}

fn mount_info(root: &PathRef, detailed: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut all = alloc::vec![root.mount.clone()];
    all.extend(
        mount::all()
            .into_iter()
            .filter(|mount| !Arc::ptr_eq(mount, &root.mount)),
    );
    for mount in all {
        let place = PathRef {
            mount: mount.clone(),
            dentry: mount.root.clone(),
        };
        // Mounts of other roots are not shown.
        let Some(path) = place.path_from(root) else {
            continue;
        };
        let path = String::from_utf8_lossy(&escape(&path, b" \t\\")).into_owned();
        let options = mount_options(mount.flags());
        let device = place.inode().id().device;
        let (major, minor) = split_device(device);
        let own = if mount.flags() & mount::flags::RDONLY != 0 {
            "ro"
        } else {
            "rw"
        };
        let extra = match mount.options.is_empty() {
            true => String::from(own),
            false => format!("{own},{}", mount.options),
        };
        let (kind, source) = (mount.kind, &mount.source);
        let line = if detailed {
            let parent = mount.point.as_ref().map_or(1, |point| point.mount.id);
            let id = mount.id;
            format!("{id} {parent} {major}:{minor} / {path} {options} - {kind} {source} {extra}\n")
        } else {
            format!("{source} {path} {kind} {options} 0 0\n")
        };
        out.extend_from_slice(line.as_bytes());
    }
    out
}

/// /proc/<pid>/fdinfo/<fd>.
pub fn descriptor_info(process: &Process, fd: i32) -> Result<Vec<u8>> {
    let files = files_of(process)?;
    let file = files.get(fd).map_err(|_| ENOENT)?;
    let mut shown = file.shown_flags();
    if files.close_on_exec(fd).unwrap_or(false) {
        shown |= flags::CLOEXEC;
    }
    let position = file.position.peek().unwrap_or(0);
    let (mount, inode) = match &file.path {
        Some(path) => (path.mount.id, path.inode().id().inode),
        None => (15, file.ops.metadata().inode),
    };
    let mut text =
        format!("pos:\t{position}\nflags:\t0{shown:o}\nmnt_id:\t{mount}\nino:\t{inode}\n");
    text.push_str(&file.ops.describe_more());
    Ok(text.into_bytes())
}
