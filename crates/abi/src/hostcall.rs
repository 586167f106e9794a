//! Host calls: what the enclave may ask of the untrusted host.
//!
//! # Registers
//! - **Enclave → host** (EEXIT): rdi = [`HostCall`] number, rsi, rdx, r8, r9 = arguments; every
//!   other register is zero (rbx and rcx as EEXIT demands).
//! - **Host → enclave** (EENTER): rdi = [`EnterReason`], rsi = value, rdx, r8 = reason-specific.
//!
//! # Shared memory
//! Each thread slot has one untrusted *shared area* of [`AREA_SIZE`] bytes, page aligned, outside
//! ELRANGE: a header of one page ([`header`]), then the data buffer. Arguments named `buf` are not
//! passed: data always starts at the beginning of that buffer unless the call says otherwise. The
//! enclave never follows a pointer that it finds in there.
//!
//! Errors are −errno as Linux numbers them; the enclave treats anything it cannot explain as EIO.

/// Size of a thread's shared area in bytes.
pub const AREA_SIZE: u64 = 256 << 10;
/// Size of its header in bytes.
pub const HEADER_SIZE: u64 = 4096;
/// Size of its data buffer in bytes.
pub const DATA_SIZE: u64 = AREA_SIZE - HEADER_SIZE;

/// Offsets in the header of a shared area.
pub mod header {
    /// u32: a waiting thread sleeps on this word; a waker adds 1 to it before it wakes.
    pub const WAIT_WORD: u64 = 0;
}

/// Why the host enters the enclave, in rdi.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum EnterReason {
    /// First entry of a thread slot. rsi = address of the shared area. In slot 0, the first time:
    /// rdx = address of [`BootParams`].
    Start = 1,
    /// A host call returns. rsi = result.
    Return = 2,
    /// An exception or a kick; looked for in SSA.EXITINFO and in trusted flags, nothing else counts.
    Exception = 3,
}

/// What the host tells the enclave once, at the first entry of slot 0. Untrusted: copied in once
/// and validated. Little endian, 8-byte fields.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BootParams {
    /// Size of this structure, so that both sides notice a mismatch.
    pub size: u64,
    /// The rootfs file (EROFS image, then hash tree) mapped by the loader, and its length in bytes.
    pub rootfs: u64,
    pub rootfs_len: u64,
    /// Hints, see [`features`]: what the CPU has. A lie can only make the enclave stop.
    pub features: u64,
    /// CPUs that the host lets us use.
    pub cpus: u64,
    /// TSC frequency in Hz; 0 when unknown or when RDTSC cannot be used in the enclave.
    pub tsc_hz: u64,
    /// Platform features of the emulated or real machine, see [`platform`].
    pub platform: u64,
    /// Host process id, for messages only.
    pub host_pid: u64,
    /// What the host adds to the configuration, where that lets it: a serialised
    /// [`HostInput`](crate::input::HostInput), and its length in bytes (0: nothing).
    pub input: u64,
    pub input_len: u64,
    pub reserved: [u64; 6],
}

/// Bits of [`BootParams::features`].
pub mod features {
    /// SHA-NI.
    pub const SHA: u64 = 1;
    /// AES-NI and PCLMULQDQ.
    pub const AES: u64 = 2;
    /// RDRAND. The runtime cannot do without; the emulator checks it at start.
    pub const RDRAND: u64 = 4;
    /// VPCLMULQDQ.
    pub const VPCLMULQDQ: u64 = 8;
}

/// Bits of [`BootParams::platform`].
pub mod platform {
    /// EDMM: EAUG, EMODT, EMODPR work.
    pub const EDMM: u64 = 1;
    /// EXINFO is reported for page faults (MISCSELECT bit 0).
    pub const EXINFO: u64 = 2;
    /// RDTSC works in the enclave.
    pub const RDTSC: u64 = 4;
    /// The platform is emulated. For messages: trust comes from the attestation, never from here.
    pub const EMULATED: u64 = 8;
    /// System-call sites are not rewritten: each one traps every time. For tests and comparisons; a
    /// host can slow a program down in many ways.
    pub const SITES_TRAP: u64 = 16;
}

macro_rules! host_calls {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// Host calls. Arguments are named in the order rsi, rdx, r8, r9.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u64)]
        pub enum HostCall { $($(#[$doc])* $name = $number,)* }

        impl HostCall {
            /// All calls, in order.
            pub const ALL: &'static [HostCall] = &[$(HostCall::$name,)*];

            /// The call with this number.
            pub fn from_number(number: u64) -> Option<HostCall> {
                match number { $($number => Some(HostCall::$name),)* _ => None }
            }

            /// Its name, for counters and messages.
            pub fn name(self) -> &'static str {
                match self { $(HostCall::$name => stringify!($name),)* }
            }
        }
    };
}

host_calls! {
    /// Exception stage 1 is done: the host executes ERESUME.
    Resume = 0,
    /// The container ends. (status as `wait` reports it: exit code << 8, or signal number;
    /// system-call sites that were rewritten; calls that trapped).
    Exit = 1,
    /// The runtime stopped itself. (len): message in the buffer.
    Panic = 2,
    /// A line for the host's log. (len, level 0 error … 3 debug).
    Log = 3,
    /// Enter thread slot (slot) on another host thread.
    ThreadStart = 4,
    /// This thread is done with its slot; the host thread may park and be used again.
    ThreadExit = 5,
    /// Sleep until the wait word differs from (seen) or (timeout in ns, u64::MAX none) passes.
    /// 0, −ETIMEDOUT, or −EINTR.
    Wait = 6,
    /// The enclave has changed the wait word of (slot): wake its host thread, whether it sleeps in
    /// `Wait`, `Poll`, `EpollWait` or a call with a wait flag.
    Wake = 7,
    /// Make the host thread of (slot) leave and re-enter the enclave, or return from a wait.
    Kick = 8,
    /// Let other host threads run.
    Yield = 9,
    /// Time of (clock id: 0 realtime, 1 monotonic, 7 boottime) in ns since its epoch.
    Clock = 10,
    /// Make (addr, len, prot) accessible: EAUG where needed, page tables to prot (bit 0 read, 1
    /// write, 2 execute). The enclave EACCEPTs afterwards.
    MemCommit = 11,
    /// Page tables of (addr, len) to (prot); EPCM unchanged.
    MemProtect = 12,
    /// EMODPR: restrict EPCM permissions of (addr, len) to (prot); the enclave EACCEPTs.
    MemRestrict = 13,
    /// EMODT: change the type of (addr, len) to (page type 1 TCS, 4 TRIM); the enclave EACCEPTs.
    MemType = 14,
    /// Remove the trimmed pages (addr, len).
    MemRemove = 15,
    /// Signals that arrived for the container since the last call: a bit mask, bit n−1 = signal n.
    TakeSignals = 16,
    /// CPUID (leaf, subleaf): eax, ebx, ecx, edx as four u32 in the buffer.
    Cpuid = 17,

    /// Read from (fd, at most len, offset or u64::MAX for the file position) into the buffer.
    Read = 20,
    /// Write (fd, len, offset or u64::MAX) from the buffer.
    Write = 21,
    /// Close (fd).
    Close = 22,
    /// Wait for (count) `PollFd`s (see [`PollFd`]) in the buffer until one is ready, (timeout in ns,
    /// u64::MAX none) passes, or the wait word differs from (seen). Number ready; revents filled in.
    Poll = 23,
    /// ioctl (fd, request, len): argument in and out through the buffer. The loader allows
    /// TCGETS, TCSETS*, TIOCGWINSZ, TIOCSWINSZ, FIONREAD, TIOCOUTQ, SIOCATMARK only, and
    /// FIOSETOWN, after which urgent data at the socket comes as SIGURG by `TakeSignals`.
    Ioctl = 24,
    /// Non-blocking flag: a readable/writable test costs nothing. (fd): file type and flags as
    /// (st_mode << 32 | fcntl F_GETFL).
    FdInfo = 25,
    /// fstat of a host fd: `struct stat` in the buffer. (fd).
    FdStat = 26,

    /// socket(domain, type, protocol): a non-blocking, close-on-exec host socket.
    Socket = 40,
    /// bind (fd, addrlen), address in the buffer.
    Bind = 41,
    /// listen (fd, backlog).
    Listen = 42,
    /// accept4 (fd): new fd (non-blocking); address length u32 then address in the buffer.
    Accept = 43,
    /// connect (fd, addrlen), address in the buffer.
    Connect = 44,
    /// sendmsg (fd, flags, data len, addrlen | control length << 32): address, control messages, data.
    /// Result: bytes sent.
    Send = 45,
    /// recvmsg (fd, flags, max len, addr 0/1 | control length << 32): buffer receives
    /// [`RecvHeader`], then room for control messages (its length rounded up to 8), then data.
    /// Result: bytes of data. With [`RECV_WAIT`] in flags the host waits until data is there or
    /// the wait word differs from the value in `RecvHeader::seen` at the call.
    Recv = 46,
    /// shutdown (fd, how).
    Shutdown = 47,
    /// getsockopt (fd, level, name, max len): value in the buffer; result is its length.
    GetSockOpt = 48,
    /// setsockopt (fd, level, name, len): value in the buffer.
    SetSockOpt = 49,
    /// getsockname (fd): result is the length, address in the buffer.
    GetSockName = 50,
    /// getpeername (fd), likewise.
    GetPeerName = 51,
    /// A host epoll instance.
    EpollCreate = 52,
    /// epoll_ctl (epfd, op << 32 | fd, events, token).
    EpollCtl = 53,
    /// epoll_wait (epfd, max events, timeout ns or u64::MAX, seen): number; `EpollEvent`s (see
    /// [`EpollEvent`]) in the buffer. Returns early, with 0, when the wait word differs from seen.
    EpollWait = 54,
    /// Interfaces, addresses, routes … of the host (what: see [`crate::network::query`], messages to
    /// leave out, length of a request in the buffer, room): whole rtnetlink messages in the buffer, as
    /// many as there is room for; their length in bytes, 0 after the last.
    NetQuery = 55,
    /// Write (fd, iovecs already gathered) then wait … reserved.
    Reserved = 63,

    /// A quote over the REPORT in the buffer: (len in); quote in the buffer; result its length.
    Quote = 80,
    /// TARGETINFO of the quoting enclave in the buffer (512 bytes).
    QuoteTarget = 81,
    /// What verifies this machine's quotes, as JSON in the buffer; result its length.
    QuoteCollateral = 82,

    /// Bytes of (object of a volume), see [`crate::volume`].
    VolumeSize = 84,
    /// Read from (object, at most len, offset) into the buffer; the number of bytes.
    VolumeRead = 85,
    /// Write (object, len, offset) from the buffer; the number of bytes.
    VolumeWrite = 86,
    /// Cut or extend (object) to (len).
    VolumeResize = 87,
    /// What was written to (object) is on disk when this returns.
    VolumeSync = 88,

    /// The root of a passed-through directory (number): a place, see [`crate::passthrough`].
    PassRoot = 96,
    /// The object (directory, len of the name in the buffer): a place; `struct stat` in the buffer.
    PassLookup = 97,
    /// Opens (place, flags: access mode and O_DIRECTORY): a descriptor.
    PassOpen = 98,
    /// Makes (directory, st_mode, len of the name, len of a link's target): both in the buffer.
    PassCreate = 99,
    /// Removes (directory, len of the name, 1 for a directory).
    PassRemove = 100,
    /// Renames (directory, other directory, len of the name << 32 | len of the other, flags of
    /// renameat2): both names in the buffer.
    PassRename = 101,
    /// Another name for (place, directory, len of the name).
    PassLink = 102,
    /// The target of the link (place): its length, the text in the buffer.
    PassReadLink = 103,
    /// Entries of (descriptor of a directory, offset or 0, room): bytes of `struct dirent64`.
    PassReadDir = 104,
    /// Changes (place, what: see [`crate::passthrough::change`], value, value).
    PassChange = 105,
    /// What was written to (descriptor) is on disk when this returns.
    PassSync = 106,
    /// fstatfs (place): block size, blocks, free blocks, files, free files as five u64.
    PassStatistics = 107,

    /// The next program that the host wants to start in the running container, as the bytes of an
    /// [`ExecRequest`](crate::input::ExecRequest) in the buffer; its length, 0 when there is none.
    ExecTake = 112,
    /// A program that the host wanted (token) has ended: (status as `wait` reports it, or
    /// [`EXEC_REFUSED`] and the length of the reason in the buffer).
    ExecDone = 113,
}

/// Status of [`HostCall::ExecDone`] for a program that could not be started: with its exit code in
/// the low byte.
pub const EXEC_REFUSED: u64 = 1 << 32;

/// Levels of [`HostCall::Log`].
pub mod log_level {
    /// Up to here: 0 errors, 1 warnings, 2 information, 3 for developers.
    pub const DEBUG: u8 = 3;
    /// A line that the user asked for (`--strace`, `--report`): printed as it is.
    pub const TRACE: u8 = 8;
    /// For a debugger: an object that has been mapped, as "ADDRESS PATH", the address in
    /// hexadecimal being that of the object's first byte.
    pub const OBJECT: u8 = 9;
    /// For a debugger: the first process is about to run. The call returns when it may.
    pub const ATTACH: u8 = 10;
}

/// Flag of [`HostCall::Recv`]: wait on the host until there is something to receive.
pub const RECV_WAIT: u64 = 1 << 32;

/// Element of [`HostCall::Poll`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollFd {
    pub fd: i32,
    pub events: u16,
    pub revents: u16,
}

/// Element of [`HostCall::EpollWait`]'s answer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpollEvent {
    pub events: u32,
    pub reserved: u32,
    pub token: u64,
}

/// Start of the buffer in [`HostCall::Recv`], 160 bytes; the data follows at [`RecvHeader::SIZE`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RecvHeader {
    /// In: the wait word's value at the call.
    pub seen: u32,
    /// Out: msg_flags.
    pub flags: u32,
    /// Out: address length.
    pub addr_len: u32,
    /// Out: bytes of control messages.
    pub control_len: u32,
    /// Out: the peer's address.
    pub addr: [u8; 128],
}

impl RecvHeader {
    /// Its size in bytes.
    pub const SIZE: u64 = 144;
}

const _: () = assert!(RecvHeader::SIZE as usize == core::mem::size_of::<RecvHeader>());
