//! Start and end of an enclave: load it, run slot 0, pass signals on, wait for its exit.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulla_abi::hostcall::{BootParams, platform};
use bulla_abi::layout::SLOTS_MAX;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::descriptors::{Descriptors, Standard};
use crate::exec::Execs;
use crate::host::{Debugger, PassedDirectory, Quoter, VolumeFiles};
use crate::hostile::Hostile;
use crate::stats::{self, Phase, Stats};
use crate::sys::terminal::Settings;
use crate::sys::time::Moment;
use crate::sys::{file, map, signal, time};
use crate::threads::{Engine, Slots, Which};
use crate::{Content, Enclave, Error};

/// How the enclave is run.
pub struct Options {
    pub backend: Box<dyn Backend>,
    /// The root file system image, to be mapped for the enclave.
    pub rootfs: Option<File>,
    /// What the host adds to the measured configuration, as the enclave reads it.
    pub input: Vec<u8>,
    /// Whether [`Finished::stats`] is wanted.
    pub stats: bool,
    /// The host's descriptors for the enclave's 0, 1 and 2.
    pub standard: [i32; 3],
    /// Lines that the enclave logs: 0 errors only … 3 everything.
    pub log_level: u64,
    pub quoter: Option<Box<dyn Quoter>>,
    /// The files of protected volumes, in the order of the configuration.
    pub volumes: Vec<VolumeFiles>,
    /// The directories of passthrough mounts, likewise.
    pub directories: Vec<PassedDirectory>,
    /// Programs that the host wants to start in the running container.
    pub execs: Option<Arc<Execs>>,
    /// Who is told what is mapped where.
    pub debugger: Option<Box<dyn Debugger>>,
    /// The container uses the terminal behind its standard descriptors: SIGTSTP is forwarded, and
    /// the terminal's settings are put back at the end, whatever the end is.
    pub terminal: bool,
    /// For tests: no system-call site is rewritten, so that each call traps.
    pub sites_trap: bool,
    /// For tests: answer as a hostile host would, with this seed.
    pub hostile: Option<u64>,
}

impl Options {
    /// The usual ones: this process's standard descriptors, warnings are shown.
    pub fn new(backend: Box<dyn Backend>) -> Options {
        Options {
            backend,
            rootfs: None,
            input: Vec::new(),
            stats: false,
            standard: [0, 1, 2],
            log_level: 1,
            quoter: None,
            volumes: Vec::new(),
            directories: Vec::new(),
            execs: None,
            debugger: None,
            terminal: false,
            sites_trap: false,
            hostile: None,
        }
    }
}

/// How the container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// Its first process exited with this code.
    Exited(u8),
    /// A signal ended it.
    Signaled(u8),
    /// The enclave's runtime stopped itself and has said why.
    Stopped,
}

impl ExitStatus {
    /// From a status as `wait` reports it.
    pub(crate) fn from_wait(status: u64) -> ExitStatus {
        match status & 0x7f {
            0 => ExitStatus::Exited((status >> 8) as u8),
            signal => ExitStatus::Signaled(signal as u8),
        }
    }

    /// The exit code that container engines use: the process's own, 128 + signal, or 125 for a
    /// failure of ours.
    pub fn code(self) -> u8 {
        match self {
            ExitStatus::Exited(code) => code,
            ExitStatus::Signaled(signal) => 128 + signal,
            ExitStatus::Stopped => 125,
        }
    }
}

/// A finished run.
#[derive(Clone, Debug)]
pub struct Finished {
    pub status: ExitStatus,
    /// When they were asked for.
    pub stats: Option<Stats>,
}

static SLOTS: Slots = Slots::new();
static MADE: Descriptors = Descriptors::new();
static READ_ONLY: Descriptors = Descriptors::new();
static LAUNCHED: AtomicBool = AtomicBool::new(false);

/// Loads the enclave, runs it and returns when the container has ended.
///
/// One per process. The calling thread is the supervisor: signals for the container are blocked in
/// it and stay so. When this returns, host threads may still be in the enclave or asleep, so the
/// process should exit soon; nothing else is left behind.
pub fn launch(enclave: Enclave, options: Options) -> Result<Finished, Error> {
    if LAUNCHED.swap(true, Ordering::SeqCst) {
        return Err(Error::Busy);
    }
    let mut clock = Stopwatch::start();
    file::reserve_standard().map_err(Error::Memory)?;
    let mut terminal = options.standard.into_iter().find_map(Settings::of);
    if let (true, Some(terminal)) = (options.terminal, &mut terminal) {
        terminal.guard().map_err(Error::Terminal)?;
    }
    let rootfs = match &options.rootfs {
        Some(file) => map::read_only(file).map_err(Error::Rootfs)?,
        None => (0, 0),
    };
    clock.lap("map rootfs");

    let backend = options.backend;
    let added_bytes = load(&*backend, &enclave, &mut clock)?;

    let hostile = options.hostile.map(Hostile::new);
    let mut parameters = boot_parameters(&*backend, rootfs, options.input, clock.moment);
    if options.sites_trap {
        parameters.platform |= platform::SITES_TRAP;
    }
    if let Some(hostile) = &hostile {
        hostile.spoil(&mut parameters);
    }
    let parameters = Box::leak(Box::new(parameters));
    let engine: &'static Engine = Box::leak(Box::new(Engine {
        kind: enclave.kind,
        rdtsc: backend.features().rdtsc,
        backend,
        slots: &SLOTS,
        made: &MADE,
        standard: Standard::new(options.standard),
        quoter: options.quoter,
        volumes: options.volumes,
        directories: options.directories,
        read_only: &READ_ONLY,
        execs: options.execs,
        debugger: options.debugger,
        hostile,
        log_level: options.log_level,
        boot: AtomicU64::new(std::ptr::from_ref(parameters) as u64),
        first_entry: AtomicU64::new(0),
        ending: AtomicBool::new(false),
        end: Mutex::new(None),
    }));
    drop(enclave);
    signal::install(engine, options.terminal).map_err(Error::Signals)?;
    engine
        .start(0)
        .map_err(|errno| Error::Thread(errno.into()))?;
    Hostile::start(engine).map_err(|errno| Error::Thread(errno.into()))?;
    clock.lap("threads");

    let end = supervise(engine);
    if let Some(terminal) = terminal {
        terminal.restore();
    }
    clock.lap("run");
    Ok(Finished {
        status: end?,
        stats: options.stats.then(|| collect(engine, clock, added_bytes)),
    })
}

/// ECREATE, EADD, EINIT. Returns the bytes of pages added.
fn load(backend: &dyn Backend, enclave: &Enclave, clock: &mut Stopwatch) -> Result<u64, Error> {
    let failed = |step| move |source| Error::Load { step, source };
    if enclave.slots == 0 || enclave.slots > SLOTS_MAX {
        let reason = format!(
            "{} thread slots, 1 to {SLOTS_MAX} are possible",
            enclave.slots
        );
        return Err(Error::Image(reason));
    }
    backend.create(&enclave.secs).map_err(failed("ECREATE"))?;
    clock.lap("create");
    let mut added = 0;
    for run in &enclave.runs {
        let len = run.content.len();
        let end = run.address.checked_add(len);
        let fits = end.is_some_and(|end| end <= enclave.kind.elrange_size());
        if !fits || (run.address | len) % 4096 != 0 {
            let reason = format!("{len} bytes of pages at {:#x}", run.address);
            return Err(Error::Image(reason));
        }
        match &run.content {
            Content::Data(data) => backend.add_pages(run.address, data, run.flags, run.measured),
            Content::Zero(len) => {
                backend.add_zero_pages(run.address, *len, run.flags, run.measured)
            }
        }
        .map_err(failed("EADD"))?;
        added += len;
    }
    clock.lap("add");
    backend.init(&enclave.sigstruct).map_err(failed("EINIT"))?;
    clock.lap("init");
    Ok(added)
}

fn boot_parameters(
    backend: &dyn Backend,
    rootfs: (u64, u64),
    input: Vec<u8>,
    start: Moment,
) -> BootParams {
    let input_len = input.len() as u64;
    let features = backend.features();
    let mut bits = 0;
    for (present, bit) in [
        (features.edmm, platform::EDMM),
        (features.exinfo, platform::EXINFO),
        (features.rdtsc, platform::RDTSC),
        (backend.name() == "emulated", platform::EMULATED),
    ] {
        if present {
            bits |= bit;
        }
    }
    BootParams {
        size: size_of::<BootParams>() as u64,
        rootfs: rootfs.0,
        rootfs_len: rootfs.1,
        features: time::cpu_features(),
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
        tsc_hz: if features.rdtsc { start.frequency() } else { 0 },
        platform: bits,
        host_pid: u64::from(std::process::id()),
        // Never freed: the enclave copies it at its first entry.
        input: input.leak().as_ptr() as u64,
        input_len,
        reserved: [0; 6],
    }
}

/// Requests to end within a short time after which a container that goes on is killed, and that
/// time. The first two are for the program, which may need them for itself (a shell at ^C) or may
/// have handlers that take a while; process 1 ignores those it has no handler for.
const REQUESTS: usize = 3;
const REQUESTS_WITHIN: Duration = Duration::from_secs(5);

/// The latest requests to end (SIGINT, SIGTERM, SIGQUIT).
#[derive(Default)]
struct Requests {
    seen: u64,
    times: Vec<Instant>,
}

impl Requests {
    /// Notes those that came since the last look; whether it is time to give up.
    fn enough(&mut self, total: u64, now: Instant) -> bool {
        self.times.retain(|time| now - *time < REQUESTS_WITHIN);
        let fresh = (total - self.seen).min(REQUESTS as u64);
        self.seen = total;
        self.times.extend((0..fresh).map(|_| now));
        self.times.len() >= REQUESTS
    }
}

/// Until the container ends: makes the enclave look when signals have arrived for it, and repeats
/// kicks that came at a bad moment.
fn supervise(engine: &'static Engine) -> Result<ExitStatus, Error> {
    const IDLE: Duration = Duration::from_secs(3600);
    /// How long the enclave may leave a signal lying before it is made to look again.
    const REMIND: Duration = Duration::from_millis(20);
    let waiting = || {
        engine
            .execs
            .as_ref()
            .is_some_and(|execs| execs.is_waiting())
    };
    // One that was there before this thread could be woken has woken nobody.
    let mut limit = if waiting() { REMIND } else { IDLE };
    let mut requests = Requests::default();
    loop {
        let pending = signal::supervise(limit.as_nanos() as u64) || waiting();
        if let Some(end) = engine.take_end() {
            return end;
        }
        if requests.enough(signal::requests_to_end(), Instant::now()) {
            eprintln!("bulla: the container was asked {REQUESTS} times to end and goes on: killed");
            return Ok(ExitStatus::Signaled(libc::SIGKILL as u8));
        }
        engine.kick_again();
        // The first thread has been asked already: now all of them.
        let which = if limit == REMIND {
            Which::All
        } else {
            Which::First
        };
        let reminded = pending && engine.kick_some(which);
        // A request that came before the enclave could look goes on waiting.
        limit = if reminded || waiting() { REMIND } else { IDLE };
    }
}

fn collect(engine: &Engine, clock: Stopwatch, added_bytes: u64) -> Stats {
    let first_entry = engine.first_entry.load(Ordering::Relaxed);
    let mut stats = Stats {
        platform: engine.backend.name().to_string(),
        phases: clock.finish(first_entry),
        added_bytes,
        ..Stats::default()
    };
    (stats.sites_rewritten, stats.syscall_traps) = stats::sites();
    for slot in engine.slots.used() {
        stats.add(&slot.counters);
    }
    let counters = engine.backend.counters().into_iter();
    stats.platform_counters = counters
        .map(|(name, count)| (name.to_string(), count))
        .collect();
    stats
}

/// Wall time of the steps.
struct Stopwatch {
    start: Instant,
    last: Instant,
    moment: Moment,
    phases: Vec<Phase>,
}

impl Stopwatch {
    fn start() -> Stopwatch {
        let start = Instant::now();
        Stopwatch {
            start,
            last: start,
            moment: Moment::now(),
            phases: Vec::new(),
        }
    }

    /// The step that ends now.
    fn lap(&mut self, name: &str) {
        let now = Instant::now();
        self.push(name, now - self.last);
        self.last = now;
    }

    fn push(&mut self, name: &str, time: Duration) {
        self.phases.push(Phase {
            name: name.to_string(),
            milliseconds: time.as_secs_f64() * 1e3,
        });
    }

    fn finish(mut self, first_entry_ns: u64) -> Vec<Phase> {
        let to_entry = first_entry_ns.saturating_sub(self.moment.nanoseconds());
        self.push("until first entry", Duration::from_nanos(to_entry));
        self.push("total", self.start.elapsed());
        self.phases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_requests_within_a_short_time_are_enough() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut requests = Requests::default();
        // One in four seconds never is.
        for turn in 0..10 {
            assert!(!requests.enough(turn + 1, at(4 * turn)), "{turn}");
        }
        assert!(!requests.enough(11, at(100)) && !requests.enough(11, at(100)));
        assert!(!requests.enough(12, at(101)));
        assert!(requests.enough(13, at(102)));
        assert!(Requests::default().enough(3, at(0)));
    }

    #[test]
    fn exit_statuses() {
        assert_eq!(ExitStatus::from_wait(3 << 8), ExitStatus::Exited(3));
        assert_eq!(ExitStatus::from_wait(9).code(), 137);
        assert_eq!(ExitStatus::from_wait(0x80 | 11).code(), 139);
        assert_eq!(ExitStatus::Stopped.code(), 125);
    }
}
