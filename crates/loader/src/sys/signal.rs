//! Signals: kicks to enclave threads, and signals for the container.
//!
//! **Kicks** ([`KICK_SIGNAL`]) carry the index of the slot whose thread they are for. The handler
//! may run while FS is the application's and the stack is the alternate one: it uses atomics and
//! raw system calls only, nothing thread-local.
//!
//! **Container signals** are blocked in the supervisor (the thread that called `launch`) and hence
//! in all slot threads, which it starts; the supervisor takes them with sigtimedwait. Threads that
//! the caller had started before get a handler that hands the signal over.

use std::ffi::c_void;
use std::mem::{MaybeUninit, zeroed};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::{io, ptr};

use super::raw::{Errno, plain};
use super::wait::restart_before_block;
use crate::backend::{Backend, KICK_SIGNAL};

/// Ends the supervisor's wait: something other than a signal happened.
const NUDGE_SIGNAL: i32 = 61;

/// Signals that are handed to the container.
const CONTAINER_SIGNALS: &[i32] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCONT,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGWINCH,
    libc::SIGPWR,
    // SIGRTMIN+3, the stop signal of images that run systemd.
    37,
];

/// What the kick handler needs from the threads.
pub trait Kicked: Sync {
    fn backend(&self) -> &dyn Backend;
    /// The slot that host thread `tid` serves.
    fn slot_of(&self, tid: i32) -> Option<u32>;
    /// The thread of `slot` was kicked outside the enclave. Async-signal-safe.
    fn kicked(&self, slot: u32);
}

/// Whether SIGTSTP is the container's: the terminal is.
static HAS_TERMINAL: AtomicBool = AtomicBool::new(false);

static KICKED: OnceLock<&'static dyn Kicked> = OnceLock::new();
static SUPERVISOR: AtomicI32 = AtomicI32::new(0);
/// Container signals that arrived: bit n-1 is signal n.
static PENDING: AtomicU64 = AtomicU64::new(0);
/// How many requests to end arrived: SIGINT, SIGTERM and SIGQUIT.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// Makes this thread the supervisor and installs the handlers. Once per process.
pub fn install(kicked: &'static dyn Kicked, terminal: bool) -> io::Result<()> {
    if KICKED.set(kicked).is_err() {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    HAS_TERMINAL.store(terminal, Ordering::SeqCst);
    SUPERVISOR.store(super::time::thread_id(), Ordering::SeqCst);
    let mut block = supervised();
    // SAFETY: a valid set; only this thread's mask changes.
    let errno = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &block, ptr::null_mut()) };
    if errno != 0 {
        return Err(io::Error::from_raw_os_error(errno));
    }
    handle(KICK_SIGNAL, on_kick)?;
    handle(NUDGE_SIGNAL, on_container_signal)?;
    for signal in container_signals() {
        handle(signal, on_container_signal)?;
    }
    // The enclave decides about SIGPIPE; ours would end the process. Kicks must get through.
    // SAFETY: ignoring a signal, and a mask change with a valid set.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::sigemptyset(&mut block);
        for signal in [
            KICK_SIGNAL,
            libc::SIGSYS,
            libc::SIGSEGV,
            libc::SIGILL,
            libc::SIGBUS,
        ] {
            libc::sigaddset(&mut block, signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &block, ptr::null_mut());
    }
    Ok(())
}

/// The signals of the container that is running.
fn container_signals() -> impl Iterator<Item = i32> {
    let stop = HAS_TERMINAL.load(Ordering::SeqCst).then_some(libc::SIGTSTP);
    CONTAINER_SIGNALS.iter().copied().chain(stop)
}

fn supervised() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set; the numbers are valid.
    unsafe {
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        for signal in container_signals().chain([NUDGE_SIGNAL]) {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);

fn handle(signal: i32, handler: Handler) -> io::Result<()> {
    // SAFETY: a valid action. All but the synchronous signals are blocked while it runs: those
    // are faults, which must never be blocked. No SA_RESTART: a kick ends a blocking call.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&mut action.sa_mask);
        for fault in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGSYS,
            libc::SIGTRAP,
        ] {
            libc::sigdelset(&mut action.sa_mask, fault);
        }
        if libc::sigaction(signal, &action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// siginfo_t as rt_tgsigqueueinfo takes it, for SI_QUEUE.
#[repr(C)]
struct Queued {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    pid: i32,
    uid: u32,
    value: u64,
    rest: [u64; 12],
}

const _: () = assert!(size_of::<Queued>() == 128 && size_of::<libc::siginfo_t>() == 128);

/// Sends a kick to thread `tid`, which serves `slot`.
pub fn kick(tid: i32, slot: u32) -> Result<(), Errno> {
    let pid = std::process::id() as i32;
    let info = Queued {
        signal: KICK_SIGNAL,
        errno: 0,
        code: libc::SI_QUEUE,
        padding: 0,
        pid,
        uid: 0,
        value: u64::from(slot),
        rest: [0; 12],
    };
    plain!(
        libc::SYS_rt_tgsigqueueinfo,
        pid,
        tid,
        KICK_SIGNAL,
        &raw const info
    )
    .map(|_| ())
}

/// Wakes the supervisor. Async-signal-safe.
pub fn nudge_supervisor() {
    let tid = SUPERVISOR.load(Ordering::SeqCst);
    if tid != 0 {
        let pid = plain!(libc::SYS_getpid).unwrap_or(0);
        let _ = plain!(libc::SYS_tgkill, pid, tid, NUDGE_SIGNAL);
    }
}

/// The supervisor sleeps until a container signal or a nudge arrives, at most `limit_ns`.
/// Returns whether container signals are pending.
pub fn supervise(limit_ns: u64) -> bool {
    let set = supervised();
    let limit = libc::timespec {
        tv_sec: (limit_ns / 1_000_000_000) as i64,
        tv_nsec: (limit_ns % 1_000_000_000) as i64,
    };
    // SAFETY: a valid set and timeout; no information is asked for.
    let signal = unsafe { libc::sigtimedwait(&set, ptr::null_mut(), &limit) };
    if signal > 0 {
        arrived(signal);
    }
    PENDING.load(Ordering::SeqCst) != 0
}

fn arrived(signal: i32) {
    if signal == NUDGE_SIGNAL {
        return;
    }
    if matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGQUIT) {
        REQUESTS.fetch_add(1, Ordering::SeqCst);
    }
    PENDING.fetch_or(1 << (signal - 1), Ordering::SeqCst);
}

/// How often the container was asked to end (SIGINT, SIGTERM, SIGQUIT).
pub fn requests_to_end() -> u64 {
    REQUESTS.load(Ordering::SeqCst)
}

/// Takes the signals that arrived for the container: bit n-1 is signal n.
pub fn take_pending() -> u64 {
    PENDING.swap(0, Ordering::SeqCst)
}

extern "C" fn on_container_signal(signal: i32, _: *mut libc::siginfo_t, _: *mut c_void) {
    arrived(signal);
    nudge_supervisor();
}

extern "C" fn on_kick(_: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(kicked) = KICKED.get() else { return };
    // SAFETY: the kernel fills in a whole siginfo; `Queued` has its size and layout.
    let queued = unsafe { &*(info as *const Queued) };
    // Kicks are queued by us. SIGURG from the kernel itself tells of urgent data at a socket that the
    // enclave has asked about.
    if KICK_SIGNAL == libc::SIGURG && queued.code == libc::SI_KERNEL {
        arrived(libc::SIGURG);
        nudge_supervisor();
        return;
    }
    // SAFETY: the kernel's context of the signal that is being delivered to this thread.
    if unsafe { kicked.backend().kick_in_handler(context) } {
        return;
    }
    let slot = if queued.code == libc::SI_QUEUE {
        Some(queued.value as u32)
    } else {
        // The queue was full or somebody else sent it: only the thread itself is known.
        kicked.slot_of(super::time::thread_id())
    };
    if let Some(slot) = slot {
        kicked.kicked(slot);
    }
    // SAFETY: as above; nobody else uses the context while the handler runs.
    let machine = unsafe { &mut (*(context as *mut libc::ucontext_t)).uc_mcontext };
    let rip = &mut machine.gregs[libc::REG_RIP as usize];
    if let Some(there) = restart_before_block(*rip as u64) {
        *rip = there as i64;
    }
}
