//! Programs that measure themselves, and whole starts.

use std::process::{Command, Stdio};
use std::time::Instant;

use bulla_test_apps::{Program, Side, image};

use crate::row::{BOTH, Figures, Party, Row, Target, Unit};
use crate::{Job, Settings, counted};

/// A micro-benchmark program: label, image, path.
struct Micro {
    label: &'static str,
    image: &'static str,
    path: &'static str,
}

const fn micro(label: &'static str, image: &'static str, path: &'static str) -> Micro {
    Micro { label, image, path }
}

static BENCH: [Micro; 5] = [
    micro("glibc", "tools", "/opt/bench/bench"),
    micro("glibc static", "programs", "/bin/bench-glibc-static"),
    micro("musl", "programs", "/bin/bench-musl"),
    micro("musl static", "programs", "/bin/bench-musl-static"),
    micro("Go static", "programs", "/bin/bench-go"),
];
static MORE: [Micro; 5] = [
    micro("glibc", "micro", "/bin/micro-glibc"),
    micro("glibc static", "micro", "/bin/micro-glibc-static"),
    micro("musl", "micro", "/bin/micro-musl"),
    micro("musl static", "micro", "/bin/micro-musl-static"),
    micro("Go static", "micro", "/bin/micro-go"),
];

/// Key of the program, name, target, and whether the Go program has it.
type Work = (&'static str, &'static str, Target, bool);
static BENCH_WORK: [Work; 9] = [
    ("getppid", "getppid", Target::Ratio(0.15), true),
    (
        "read-zero",
        "read 1 byte of /dev/zero",
        Target::Ratio(0.5),
        true,
    ),
    ("open-close", "open + close", Target::Ratio(1.2), true),
    ("stat", "stat", Target::None, true),
    ("pipe", "pipe write + read", Target::Ratio(0.5), true),
    ("mmap-touch-1m", "mmap + touch 1 MiB", Target::None, false),
    ("thread", "pthread create + join", Target::Ratio(2.0), false),
    ("fork", "fork + wait", Target::None, false),
    ("spawn", "posix_spawn + wait", Target::Ratio(2.0), false),
];
static MORE_WORK: [Work; 6] = [
    ("clock_gettime", "clock_gettime (vDSO)", Target::None, true),
    (
        "clock-call",
        "clock_gettime (system call)",
        Target::Ratio(0.5),
        true,
    ),
    ("futex-wake", "futex wake", Target::Ratio(0.5), true),
    ("eventfd", "eventfd write + read", Target::Ratio(0.5), true),
    (
        "pipe-16m",
        "16 MiB through a pipe",
        Target::Ratio(1.0),
        false,
    ),
    (
        "fork-10m",
        "fork + wait of 10 MiB",
        Target::Ratio(3.0),
        false,
    ),
];

/// Whole processes: from spawn to end, as a shell would see it.
pub fn starts() -> Vec<Job> {
    let job = |name: &'static str, argv: &'static [&'static str], target| {
        Job::new(name, 120, move |settings| {
            start(name, argv, target, settings)
        })
    };
    vec![
        job(
            "start: hello (C, dynamic)",
            &["/opt/bench/hello"],
            Target::Milliseconds(10.0),
        ),
        job(
            "start: python3 -c 'print(1)'",
            &["/usr/bin/python3", "-c", "print(1)"],
            Target::Milliseconds(40.0),
        ),
    ]
}

fn start(name: &str, argv: &[&str], target: Target, settings: &Settings) -> Result<Row, String> {
    // An image, as users run it: a directory would be looked through for changes each time.
    let program = Program::new("tools", argv).from_archive();
    let rootfs = image("tools").rootfs;
    // Without the overlay of the tests, whose mounts take longer than the program.
    let command = |party| match party {
        Party::Enclave => program.command(Side::Enclave),
        Party::Native => {
            let mut command = Command::new("/usr/sbin/chroot");
            command.arg(&rootfs).args(argv);
            command
        }
        Party::Peer => {
            let mut command = runsc();
            command.arg("chroot").arg(&rootfs).args(argv);
            command
        }
    };
    let counters = counted(program.clone())?;
    let mut figures = Figures::default();
    let mut measure = |party| {
        let mut command = command(party);
        let start = Instant::now();
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let took = start.elapsed().as_nanos() as f64;
        match status.is_ok_and(|status| status.success()) {
            true => figures.add(party, took),
            false => return Err(format!("{party:?} failed")),
        }
        Ok(())
    };
    for _ in 0..settings.runs * 4 + 1 {
        BOTH.into_iter().try_for_each(&mut measure)?;
    }
    if settings.has_peer {
        // Without it there is a row, too.
        let _ = measure(Party::Peer);
    }
    figures.row(name, counters, target, Unit::Time)
}

/// gVisor, up to the command.
pub fn runsc() -> Command {
    let mut command = Command::new("runsc");
    command.args(["--platform=ptrace", "--network=host", "--ignore-cgroups"]);
    command.args(["do", "-quiet"]);
    command
}

/// The micro-benchmark programs: each of their benchmarks by itself.
pub fn micros() -> Vec<Job> {
    let mut jobs = Vec::new();
    for (programs, works) in [(&BENCH, &BENCH_WORK[..]), (&MORE, &MORE_WORK[..])] {
        for program in programs {
            let works = works.iter();
            for work in works.filter(|work| work.3 || program.label != "Go static") {
                let name = format!("{}, {}", work.1, program.label);
                jobs.push(Job::new(name.clone(), 90, move |settings| {
                    measure(&name, program, work, settings)
                }));
            }
        }
    }
    jobs
}

/// Report data in, quote out, as any program of a container does it. Outside of an enclave there are no
/// quotes: the same bytes go through plain files, for what Python itself takes.
const QUOTES: &str = r#"
import os, sys, tempfile, time
place, count = "/dev/attestation/", int(sys.argv[1])
if not os.path.exists(place + "quote"):
    place = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) + "/"
    with open(place + "quote", "wb") as file: file.write(bytes(4600))
def quote(number):
    with open(place + "user_report_data", "wb") as file: file.write(number.to_bytes(64, "big"))
    with open(place + "quote", "rb") as file: return file.read()
quotes = {quote(number) for number in range(3)}
start = time.perf_counter_ns()
for number in range(count): quotes.add(quote(number))
taken = time.perf_counter_ns() - start
assert len(quotes) in (1, count + 3), len(quotes)
print("quote", taken / max(count, 1), max(count, 1))
"#;

/// Quotes of the emulated platform, from the first byte that is written to the last that is read.
pub fn quotes() -> Job {
    let name = "DCAP quote by /dev/attestation (native: plain files)";
    Job::new(name, 90, move |settings| {
        let program = |count| {
            let argv = ["/usr/bin/python3", "-c", QUOTES, count];
            Program::new("tools", &argv).limit(60)
        };
        let mut measured = Figures::default();
        let mut operations = 1.0;
        for _ in 0..settings.runs {
            for (party, side) in [
                (Party::Native, Side::Native),
                (Party::Enclave, Side::Enclave),
            ] {
                let finished = program("300").run(side);
                let figures = figures(&finished.stdout);
                let (time, count) = figures.ok_or_else(|| format!("{party:?}: {finished}"))?;
                operations = count;
                measured.add(party, time);
            }
        }
        let idle = counted(program("0"))?;
        let counters = counted(program("300"))?.minus(idle).per(operations);
        measured.row(name, counters, Target::Milliseconds(2.0), Unit::Time)
    })
}

/// "NAME NANOSECONDS OPERATIONS" of a program's output.
fn figures(stdout: &str) -> Option<(f64, f64)> {
    let mut words = stdout.split_whitespace().skip(1);
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

fn measure(name: &str, micro: &Micro, work: &Work, settings: &Settings) -> Result<Row, String> {
    let (key, _, target, _) = *work;
    let program = Program::new(micro.image, &[micro.path, key]).limit(60);
    let mut measured = Figures::default();
    let mut operations = 1.0;
    for _ in 0..settings.runs {
        for (party, side) in [
            (Party::Native, Side::Native),
            (Party::Enclave, Side::Enclave),
        ] {
            let finished = program.run(side);
            let figures = figures(&finished.stdout);
            let (time, count) = figures.ok_or_else(|| format!("{party:?}: {finished}"))?;
            operations = count;
            measured.add(party, time);
        }
    }
    let idle = counted(Program::new(micro.image, &[micro.path, "none"]))?;
    let counters = counted(program)?.minus(idle).per(operations);
    if settings.has_peer
        && let Some((time, _)) = figures(&peer(micro, key))
    {
        measured.add(Party::Peer, time);
    }
    measured.row(name, counters, target, Unit::Time)
}

/// gVisor shows no devices in a chroot, so the program runs in its tree of the machine; musl's loader
/// and glibc are the machine's. With ptrace a system call takes tens of microseconds: rows of many
/// calls have no figure rather than a minute each.
fn peer(micro: &Micro, key: &str) -> String {
    let mut command = Command::new("timeout");
    command.arg("5").arg(runsc().get_program());
    command.args(runsc().get_args());
    command
        .arg(image(micro.image).rootfs.join(&micro.path[1..]))
        .arg(key);
    let output = command.output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}
