//! What the arguments of each call are, in order.

use super::flags::{self, Table};
use crate::syscall::table::ROWS;

/// One argument. Those that the call fills in ([`Kind::is_output`]) are printed after it.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A signed number.
    Int,
    /// An unsigned number: sizes, counts, offsets.
    Size,
    /// An address, or NULL.
    Address,
    /// Bits that nobody named.
    Hex,
    Descriptor,
    /// A directory's, or AT_FDCWD.
    Directory,
    /// A null-terminated string.
    Text,
    /// Permission bits.
    Mode,
    Flags(Table),
    Choice(Table),
    OpenFlags,
    /// mmap's flags: a type and bits.
    Mapping,
    /// All of clone's arguments.
    Clone,
    Signal,
    Futex,
    Fcntl,
    /// What goes with fcntl's command.
    FcntlArgument,
    Ioctl,
    /// socket's type with its flags.
    SocketType,
    /// A protocol of IP.
    Protocol,
    Level,
    /// An option of the level in the argument before.
    Option,
    Prctl,
    /// A key's number, or one of the caller's keyrings.
    Key,
    /// What goes with keyctl's operation ([`of_keyctl`]).
    KeyArgument,
    User,
    /// Bytes that the call reads; the argument after this one is their number.
    Input,
    /// Bytes that it wrote: as many as the result says.
    Output,
    /// A path that it wrote.
    OutputText,
    InputVector,
    OutputVector,
    SignalSet,
    OutputSignalSet,
    Action,
    OutputAction,
    Stack,
    OutputStack,
    Time,
    OutputTime,
    /// What is left of a sleep: written only when it is interrupted.
    OutputRemaining,
    /// The same in microseconds.
    Microseconds,
    OutputMicroseconds,
    /// Two times: utimensat.
    TimePair,
    /// it_interval and it_value.
    TimerSetting,
    OutputTimerSetting,
    IntervalSetting,
    OutputIntervalSetting,
    OutputStat,
    OutputStatx,
    /// Two descriptors: pipe.
    OutputPair,
    /// A number behind a pointer.
    OutputInt,
    InputInt,
    OutputStatus,
    /// argv.
    Words,
    /// The environment, counted only.
    Environment,
    Limit,
    OutputLimit,
    /// pollfd; the argument after this one is their number.
    PollSet,
    Event,
    OutputEvents,
    /// struct sockaddr; the argument after this one is its length.
    SocketAddress,
    /// The same, filled in, with a pointer to its length.
    OutputSocketAddress,
    OutputNames,
    OutputEntries,
    /// What goes with ioctl's request.
    OutputRequest,
}

impl Kind {
    /// Whether the call fills it in.
    pub fn is_output(self) -> bool {
        use Kind::*;
        matches!(
            self,
            Output
                | OutputText
                | OutputVector
                | OutputSignalSet
                | OutputAction
                | OutputStack
                | OutputTime
                | OutputRemaining
                | OutputMicroseconds
                | OutputTimerSetting
                | OutputIntervalSetting
                | OutputStat
                | OutputStatx
                | OutputPair
                | OutputInt
                | OutputStatus
                | OutputLimit
                | OutputEvents
                | OutputSocketAddress
                | OutputNames
                | OutputEntries
                | OutputRequest
        )
    }
}

pub const EXECVE: u64 = 59;
pub const EXECVEAT: u64 = 322;

/// exit, exit_group, rt_sigreturn.
pub fn never_returns(number: u64) -> bool {
    matches!(number, 15 | 60 | 231)
}

/// The arguments of a call; six raw ones for those that nobody described.
pub fn of(number: u64) -> &'static [Kind] {
    let row = ROWS.iter().find(|row| row.number as u64 == number);
    let name = row.map_or("", |row| row.name);
    SIGNATURES
        .iter()
        .find(|(known, _)| *known == name)
        .map_or(&[Kind::Hex; 6], |(_, kinds)| kinds)
}

/// The arguments of keyctl after the operation. Payloads are secrets: their addresses are shown, and
/// their lengths.
pub fn of_keyctl(operation: u64) -> &'static [Kind] {
    use Kind::{Address, Choice, Flags, Hex, Int, Key, Size, Text, User};
    match operation as u32 {
        0 => &[Key, Int],
        1 => &[Text],
        2 | 6 | 11 | 17 => &[Key, Address, Size],
        3 | 7 | 16 | 21 => &[Key],
        4 => &[Key, User, User],
        5 => &[Key, Flags(flags::KEY_PERMISSION)],
        8 | 9 => &[Key, Key],
        10 => &[Key, Text, Text, Key],
        12 | 20 => &[Key, Address, Size, Key],
        13 => &[Key, Size, Key],
        14 => &[Choice(flags::KEY_DESTINATION)],
        15 => &[Key, Size],
        18 => &[],
        19 => &[Key, Size, Int, Key],
        22 => &[User, Key],
        29 => &[Key, Text, Text],
        30 => &[Key, Key, Key, Flags(flags::KEY_MOVE)],
        31 => &[Address, Size],
        _ => &[Hex; 4],
    }
}

macro_rules! signatures {
    ($($($name:ident),+: $kinds:tt;)*) => {
        const SIGNATURES: &[(&str, &[Kind])] = {
            use Kind::*;
            &[$($((stringify!($name), &$kinds),)+)*]
        };
    };
}

signatures! {
    read: [Descriptor, Output, Size];
    write: [Descriptor, Input, Size];
    pread64: [Descriptor, Output, Size, Int];
    pwrite64: [Descriptor, Input, Size, Int];
    readv: [Descriptor, OutputVector, Size];
    writev: [Descriptor, InputVector, Size];
    preadv: [Descriptor, OutputVector, Size, Int];
    pwritev: [Descriptor, InputVector, Size, Int];
    open: [Text, OpenFlags, Mode];
    openat: [Directory, Text, OpenFlags, Mode];
    creat: [Text, Mode];
    close, fsync, fdatasync, syncfs, fchdir, epoll_create: [Descriptor];
    close_range: [Size, Size, Flags(flags::CLOSE_RANGE)];
    stat, lstat: [Text, OutputStat];
    fstat: [Descriptor, OutputStat];
    newfstatat: [Directory, Text, OutputStat, Flags(flags::AT)];
    statx: [Directory, Text, Flags(flags::AT), Flags(flags::STATX_MASK), OutputStatx];
    statfs: [Text, Address];
    fstatfs: [Descriptor, Address];
    poll: [PollSet, Size, Int];
    ppoll: [PollSet, Size, Time, SignalSet, Size];
    select: [Int, Address, Address, Address, Microseconds];
    pselect6: [Int, Address, Address, Address, Time, Address];
    lseek: [Descriptor, Int, Choice(flags::WHENCE)];
    mmap: [Address, Size, Flags(flags::PROTECTION), Mapping, Descriptor, Hex];
    mprotect: [Address, Size, Flags(flags::PROTECTION)];
    munmap, mlock, munlock: [Address, Size];
    brk, shmdt, set_tid_address: [Address];
    mremap: [Address, Size, Size, Flags(flags::MREMAP), Address];
    msync: [Address, Size, Flags(flags::MSYNC)];
    mincore: [Address, Size, Address];
    madvise: [Address, Size, Choice(flags::MADVISE)];
    rt_sigaction: [Signal, Action, OutputAction, Size];
    rt_sigprocmask: [Choice(flags::SIGMASK), SignalSet, OutputSignalSet, Size];
    rt_sigpending: [OutputSignalSet, Size];
    rt_sigsuspend: [SignalSet, Size];
    rt_sigtimedwait: [SignalSet, Address, Time, Size];
    rt_sigqueueinfo: [Int, Signal, Address];
    rt_tgsigqueueinfo: [Int, Int, Signal, Address];
    sigaltstack: [Stack, OutputStack];
    signalfd4: [Descriptor, SignalSet, Size, Flags(flags::SIGNALFD)];
    rt_sigreturn, pause, sched_yield, getpid, getppid, gettid, fork, vfork, setsid, getpgrp,
        getuid, geteuid, getgid, getegid, sync, munlockall, inotify_init, restart_syscall: [];
    ioctl: [Descriptor, Ioctl, OutputRequest];
    access: [Text, Flags(flags::ACCESS)];
    faccessat: [Directory, Text, Flags(flags::ACCESS)];
    faccessat2: [Directory, Text, Flags(flags::ACCESS), Flags(flags::AT_ACCESS)];
    pipe: [OutputPair];
    pipe2: [OutputPair, Flags(flags::PIPE)];
    shmget: [Hex, Size, Flags(flags::IPC)];
    shmat: [Int, Address, Hex];
    semget: [Hex, Int, Flags(flags::IPC)];
    msgget: [Hex, Flags(flags::IPC)];
    dup: [Descriptor];
    dup2: [Descriptor, Descriptor];
    dup3: [Descriptor, Descriptor, Flags(flags::DUP)];
    nanosleep: [Time, OutputRemaining];
    clock_nanosleep: [Choice(flags::CLOCK), Flags(flags::TIMER_SET), Time, OutputRemaining];
    clock_gettime, clock_getres: [Choice(flags::CLOCK), OutputTime];
    clock_settime: [Choice(flags::CLOCK), Time];
    gettimeofday: [OutputMicroseconds, Address];
    getitimer: [Choice(flags::ITIMER), OutputIntervalSetting];
    setitimer: [Choice(flags::ITIMER), IntervalSetting, OutputIntervalSetting];
    timer_create: [Choice(flags::CLOCK), Address, OutputInt];
    timer_settime: [Int, Flags(flags::TIMER_SET), TimerSetting, OutputTimerSetting];
    timer_gettime: [Int, OutputTimerSetting];
    timer_getoverrun, timer_delete: [Int];
    timerfd_create: [Choice(flags::CLOCK), Flags(flags::TIMERFD)];
    timerfd_settime: [Descriptor, Flags(flags::TIMERFD_SET), TimerSetting, OutputTimerSetting];
    timerfd_gettime: [Descriptor, OutputTimerSetting];
    alarm: [Size];
    sendfile: [Descriptor, Descriptor, InputInt, Size];
    socket: [Choice(flags::DOMAIN), SocketType, Protocol];
    socketpair: [Choice(flags::DOMAIN), SocketType, Int, OutputPair];
    connect, bind: [Descriptor, SocketAddress, Size];
    listen: [Descriptor, Int];
    accept, getsockname, getpeername: [Descriptor, OutputSocketAddress, OutputInt];
    accept4: [Descriptor, OutputSocketAddress, OutputInt, Flags(flags::SOCKET_FLAGS)];
    sendto: [Descriptor, Input, Size, Flags(flags::MESSAGE), SocketAddress, Size];
    recvfrom: [Descriptor, Output, Size, Flags(flags::MESSAGE), OutputSocketAddress, OutputInt];
    sendmsg, recvmsg: [Descriptor, Address, Flags(flags::MESSAGE)];
    shutdown: [Descriptor, Choice(flags::SHUTDOWN)];
    setsockopt: [Descriptor, Level, Option, InputInt, Size];
    getsockopt: [Descriptor, Level, Option, OutputInt, OutputInt];
    clone: [Clone];
    clone3: [Address, Size];
    execve: [Text, Words, Environment];
    execveat: [Directory, Text, Words, Environment, Flags(flags::AT)];
    exit, exit_group: [Int];
    wait4: [Int, OutputStatus, Flags(flags::WAIT), Address];
    waitid: [Choice(flags::WAIT_ID), Int, Address, Flags(flags::WAIT), Address];
    kill, tkill: [Int, Signal];
    tgkill: [Int, Int, Signal];
    pidfd_open: [Int, Hex];
    pidfd_send_signal: [Descriptor, Signal, Address, Hex];
    uname: [OutputNames];
    fcntl: [Descriptor, Fcntl, FcntlArgument];
    flock: [Descriptor, Flags(flags::FLOCK)];
    truncate: [Text, Int];
    ftruncate: [Descriptor, Int];
    fallocate: [Descriptor, Flags(flags::FALLOCATE), Int, Int];
    fadvise64: [Descriptor, Int, Int, Choice(flags::FADVISE)];
    getdents, getdents64: [Descriptor, OutputEntries, Size];
    getcwd: [OutputText, Size];
    chdir, rmdir, unlink, chroot: [Text];
    unlinkat: [Directory, Text, Flags(flags::AT)];
    rename, link, symlink: [Text, Text];
    renameat: [Directory, Text, Directory, Text];
    renameat2: [Directory, Text, Directory, Text, Flags(flags::RENAME)];
    linkat: [Directory, Text, Directory, Text, Flags(flags::AT)];
    symlinkat: [Text, Directory, Text];
    mkdir, chmod: [Text, Mode];
    mkdirat, fchmodat: [Directory, Text, Mode];
    fchmod: [Descriptor, Mode];
    readlink: [Text, Output, Size];
    readlinkat: [Directory, Text, Output, Size];
    chown, lchown: [Text, User, User];
    fchown: [Descriptor, User, User];
    fchownat: [Directory, Text, User, User, Flags(flags::AT)];
    utimensat: [Directory, Text, TimePair, Flags(flags::AT)];
    umask: [Mode];
    getrlimit: [Choice(flags::RESOURCE), OutputLimit];
    setrlimit: [Choice(flags::RESOURCE), Limit];
    prlimit64: [Int, Choice(flags::RESOURCE), Limit, OutputLimit];
    getrusage: [Choice(flags::USAGE), Address];
    sysinfo, times: [Address];
    setuid, setgid, setfsuid, setfsgid: [User];
    setreuid, setregid: [User, User];
    setresuid, setresgid: [User, User, User];
    getresuid, getresgid: [OutputInt, OutputInt, OutputInt];
    getgroups, setgroups: [Size, Address];
    setpgid: [Int, Int];
    getpgid, getsid: [Int];
    prctl: [Prctl, Hex, Hex, Hex, Hex];
    add_key: [Text, Text, Address, Size, Key];
    request_key: [Text, Text, Text, Key];
    keyctl: [Choice(flags::KEYCTL), KeyArgument, KeyArgument, KeyArgument, KeyArgument];
    ptrace: [Choice(flags::PTRACE), Int, Hex, Hex];
    arch_prctl: [Choice(flags::ARCH_PRCTL), Address];
    futex: [Address, Futex, Int, Time, Address, Hex];
    set_robust_list: [Address, Size];
    get_robust_list: [Int, Address, Address];
    rseq: [Address, Size, Hex, Hex];
    sched_setaffinity, sched_getaffinity: [Int, Size, Address];
    sched_getscheduler: [Int];
    sched_setscheduler: [Int, Choice(flags::SCHEDULER), Address];
    sched_getparam, sched_setparam: [Int, Address];
    getpriority: [Choice(flags::PRIORITY), Int];
    setpriority: [Choice(flags::PRIORITY), Int, Int];
    epoll_create1: [Flags(flags::EPOLL_CREATE)];
    epoll_ctl: [Descriptor, Choice(flags::EPOLL_CONTROL), Descriptor, Event];
    epoll_wait: [Descriptor, OutputEvents, Int, Int];
    epoll_pwait: [Descriptor, OutputEvents, Int, Int, SignalSet, Size];
    eventfd2: [Size, Flags(flags::EVENTFD)];
    eventfd: [Size];
    inotify_init1: [Flags(flags::INOTIFY_INIT)];
    inotify_add_watch: [Descriptor, Text, Flags(flags::INOTIFY)];
    inotify_rm_watch: [Descriptor, Int];
    splice: [Descriptor, InputInt, Descriptor, InputInt, Size, Flags(flags::SPLICE)];
    tee: [Descriptor, Descriptor, Size, Flags(flags::SPLICE)];
    copy_file_range: [Descriptor, InputInt, Descriptor, InputInt, Size, Hex];
    getrandom: [Output, Size, Flags(flags::RANDOM)];
    memfd_create: [Text, Flags(flags::MEMFD)];
    membarrier: [Choice(flags::MEMBARRIER), Hex, Int];
    getcpu: [OutputInt, OutputInt, Address];
    setxattr, lsetxattr: [Text, Text, Input, Size, Hex];
    getxattr, lgetxattr: [Text, Text, Output, Size];
    fgetxattr: [Descriptor, Text, Output, Size];
    listxattr, llistxattr: [Text, Output, Size];
    removexattr, lremovexattr: [Text, Text];
    mount: [Text, Text, Text, Hex, Address];
    umount2: [Text, Hex];
    sethostname, setdomainname: [Input, Size];
}
