//! Programs that measure themselves, and whole starts.

use std::process::{Command, Stdio};
use std::time::Instant;

use bulla_test_apps::{Program, Side, image};

use crate::Bench;
use crate::model::Counters;
use crate::row::{Party, Results, Target};

/// A micro-benchmark program: label, image, path.
struct Micro {
    label: &'static str,
    image: &'static str,
    path: &'static str,
}

const fn micro(label: &'static str, image: &'static str, path: &'static str) -> Micro {
    Micro { label, image, path }
}

const BENCH: [Micro; 5] = [
    micro("glibc", "tools", "/opt/bench/bench"),
    micro("glibc static", "programs", "/bin/bench-glibc-static"),
    micro("musl", "programs", "/bin/bench-musl"),
    micro("musl static", "programs", "/bin/bench-musl-static"),
    micro("Go static", "programs", "/bin/bench-go"),
];
const MORE: [Micro; 5] = [
    micro("glibc", "micro", "/bin/micro-glibc"),
    micro("glibc static", "micro", "/bin/micro-glibc-static"),
    micro("musl", "micro", "/bin/micro-musl"),
    micro("musl static", "micro", "/bin/micro-musl-static"),
    micro("Go static", "micro", "/bin/micro-go"),
];

/// Key of the program, name, target, and whether the Go program has it.
type Work = (&'static str, &'static str, Target, bool);
const BENCH_WORK: [Work; 9] = [
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
const MORE_WORK: [Work; 5] = [
    ("clock_gettime", "clock_gettime", Target::None, true),
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
pub fn starts(bench: &mut Bench) {
    for (name, argv, target) in [
        (
            "start: hello (C, dynamic)",
            &["/opt/bench/hello"][..],
            Target::Milliseconds(10.0),
        ),
        (
            "start: python3 -c 'print(1)'",
            &["/usr/bin/python3", "-c", "print(1)"],
            Target::Milliseconds(40.0),
        ),
    ] {
        if !bench.wanted(name) {
            continue;
        }
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
        let mut results = Results::default();
        for _ in 0..bench.runs * 4 + 1 {
            for party in bench.parties() {
                let mut command = command(party);
                let start = Instant::now();
                let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
                let took = start.elapsed().as_nanos() as f64;
                match status.is_ok_and(|status| status.success()) {
                    true => results.add(party, took),
                    false => bench.problem(format!("{name}: {party:?} failed")),
                }
            }
        }
        let counters = bench.counted(program.clone());
        bench.push(results.row(name, counters, target, false));
    }
}

/// gVisor, up to the command.
pub fn runsc() -> Command {
    let mut command = Command::new("runsc");
    command.args(["--platform=ptrace", "--network=host", "--ignore-cgroups"]);
    command.args(["do", "-quiet"]);
    command
}

/// The micro-benchmark programs: each of their benchmarks by itself, several times a side.
pub fn micros(bench: &mut Bench) {
    for (programs, works) in [(&BENCH, &BENCH_WORK[..]), (&MORE, &MORE_WORK[..])] {
        for program in programs {
            let wanted: Vec<&Work> = works
                .iter()
                .filter(|work| work.3 || program.label != "Go static")
                .filter(|work| bench.wanted(&format!("{}, {}", work.1, program.label)))
                .collect();
            if wanted.is_empty() {
                continue;
            }
            let idle = bench.counted(Program::new(program.image, &[program.path, "none"]));
            for work in wanted {
                measure(bench, program, work, idle);
            }
        }
    }
}

/// "NAME NANOSECONDS OPERATIONS" of a program's output.
fn figures(stdout: &str) -> Option<(f64, f64)> {
    let mut words = stdout.split_whitespace().skip(1);
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

fn measure(bench: &mut Bench, micro: &Micro, work: &Work, idle: Counters) {
    let (key, what, target, _) = *work;
    let name = format!("{what}, {}", micro.label);
    let program = Program::new(micro.image, &[micro.path, key]).limit(120);
    let mut results = Results::default();
    let mut operations = 1.0;
    for _ in 0..bench.runs {
        for party in bench.parties() {
            let stdout = match party {
                Party::Native => program.run(Side::Native).stdout,
                Party::Enclave => program.run(Side::Enclave).stdout,
                // gVisor shows no devices in a chroot; musl's loader and glibc are the machine's.
                Party::Peer => {
                    let path = image(micro.image).rootfs.join(&micro.path[1..]);
                    let output = runsc().arg(path).arg(key).output();
                    output.map_or_else(
                        |_| String::new(),
                        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
                    )
                }
            };
            match figures(&stdout) {
                Some((time, count)) => {
                    operations = count;
                    results.add(party, time);
                }
                None => bench.problem(format!("{name}: {party:?} printed {stdout:?}")),
            }
        }
    }
    let counters = bench.counted(program).minus(idle).per(operations);
    bench.push(results.row(&name, counters, target, false));
}
