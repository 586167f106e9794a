//! `make bench`: every figure in the enclave and natively, in the same run, written as a table to
//! docs/manual/performance.md.
//!
//! Options: `--runs N` (median of N, default 5), `--only WORD` (rows whose name has the word; prints
//! only), `--out FILE`.
#![forbid(unsafe_code)]

mod model;

use bulla_test_apps::{Program, Side, free_port, http, image};
use model::Counters;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// One line of the table. Times are nanoseconds per operation.
struct Row {
    name: String,
    native: f64,
    enclave: f64,
    counters: Counters,
    /// The most that the specification allows, as a multiple of native or in ns.
    target: Target,
    /// Shown as operations a second instead of time.
    rate: bool,
}

#[derive(Clone, Copy)]
enum Target {
    None,
    /// Time relative to native.
    Ratio(f64),
    /// Throughput relative to native.
    Rate(f64),
    Milliseconds(f64),
}

impl Row {
    fn modelled(&self) -> f64 {
        self.enclave + self.counters.hardware_ns()
    }

    fn met(&self) -> Option<bool> {
        let ratio = self.enclave / self.native;
        match self.target {
            Target::None => None,
            Target::Ratio(limit) => Some(ratio <= limit),
            Target::Rate(limit) => Some(1.0 / ratio >= limit),
            Target::Milliseconds(limit) => Some(self.enclave <= limit * 1e6),
        }
    }
}

struct Bench {
    runs: usize,
    only: Option<String>,
    rows: Vec<Row>,
    problems: Vec<String>,
}

/// A micro-benchmark program: label, image, path, and its `getppid` target.
const PROGRAMS: [(&str, &str, &str); 5] = [
    ("glibc", "tools", "/opt/bench/bench"),
    ("glibc static", "programs", "/bin/bench-glibc-static"),
    ("musl", "programs", "/bin/bench-musl"),
    ("musl static", "programs", "/bin/bench-musl-static"),
    ("Go static", "programs", "/bin/bench-go"),
];
const MICRO: [(&str, &str, Target); 9] = [
    ("getppid", "getppid", Target::Ratio(0.15)),
    ("read-zero", "read 1 byte of /dev/zero", Target::Ratio(0.6)),
    ("open-close", "open + close", Target::Ratio(1.2)),
    ("stat", "stat", Target::None),
    ("pipe", "pipe write + read", Target::Ratio(1.0)),
    ("mmap-touch-1m", "mmap + touch 1 MiB", Target::None),
    ("thread", "pthread create + join", Target::Ratio(2.0)),
    ("fork", "fork + wait", Target::None),
    ("spawn", "posix_spawn + wait", Target::None),
];

fn main() -> ExitCode {
    let mut bench = Bench {
        runs: 5,
        only: None,
        rows: Vec::new(),
        problems: Vec::new(),
    };
    let mut out = PathBuf::from("docs/manual/performance.md");
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next();
        match (option.as_str(), value) {
            ("--runs", Some(value)) => bench.runs = value.parse().unwrap_or(5).max(1),
            ("--only", Some(value)) => bench.only = Some(value),
            ("--out", Some(value)) => out = PathBuf::from(value),
            _ => {
                eprintln!("usage: bulla-bench [--runs N] [--only WORD] [--out FILE]");
                return ExitCode::FAILURE;
            }
        }
    }
    bench.starts();
    for (label, image, path) in PROGRAMS {
        bench.micro(label, image, path);
    }
    bench.redis("1", Target::Rate(0.95));
    bench.redis("16", Target::Rate(0.9));
    bench.nginx();

    let table = bench.table();
    println!("{table}");
    if bench.only.is_none() {
        let text = format!("{}\n{table}", preface(bench.runs));
        if let Err(error) = std::fs::write(&out, text) {
            eprintln!("cannot write {}: {error}", out.display());
            return ExitCode::FAILURE;
        }
    }
    for problem in &bench.problems {
        eprintln!("bench: {problem}");
    }
    match bench.problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Bench {
    fn wanted(&self, name: &str) -> bool {
        self.only
            .as_ref()
            .is_none_or(|word| name.contains(word.as_str()))
    }

    /// Whole processes: from spawn to end, as a shell would see it.
    fn starts(&mut self) {
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
            if !self.wanted(name) {
                continue;
            }
            // An image, as users run it: a directory would be looked through for changes each time.
            let program = Program::new("tools", argv).from_archive();
            let rootfs = image("tools").rootfs;
            let native = || {
                // Without the overlay of the tests, whose mounts take longer than the program.
                let mut command = Command::new("/usr/sbin/chroot");
                command.arg(&rootfs).args(argv);
                command
            };
            let time = |mut command: Command| {
                let start = Instant::now();
                let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
                let took = start.elapsed().as_nanos() as f64;
                status.is_ok_and(|status| status.success()).then_some(took)
            };
            let times = |side: Side| -> Option<f64> {
                let times = (0..self.runs * 4 + 1).map(|_| match side {
                    Side::Native => time(native()),
                    Side::Enclave => time(program.command(side)),
                });
                times.collect::<Option<Vec<f64>>>().map(median)
            };
            let counted = program
                .clone()
                .option(&["--stats", "--json"])
                .run(Side::Enclave);
            let counters = Counters::parse(&counted.stderr);
            match (times(Side::Native), times(Side::Enclave), counters) {
                (Some(native), Some(enclave), Some(counters)) => self.rows.push(Row {
                    name: name.to_owned(),
                    native,
                    enclave,
                    counters,
                    target,
                    rate: false,
                }),
                _ => self.problems.push(format!("{name}: failed: {counted}")),
            }
        }
    }

    /// One micro-benchmark program: each of its benchmarks by itself, several times a side.
    fn micro(&mut self, label: &str, image: &'static str, path: &str) {
        let idle = self.counted(Program::new(image, &[path, "none"]));
        for (key, what, target) in MICRO {
            let name = format!("{what}, {label}");
            if !self.wanted(&name)
                || (label == "Go static"
                    && matches!(key, "mmap-touch-1m" | "thread" | "fork" | "spawn"))
            {
                continue;
            }
            let program = Program::new(image, &[path, key]).limit(120);
            let mut results: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            let mut operations = 1.0;
            for _ in 0..self.runs {
                for (side_name, side) in [("native", Side::Native), ("enclave", Side::Enclave)] {
                    let finished = program.run(side);
                    let mut words = finished.stdout.split_whitespace().skip(1);
                    let time = words.next().and_then(|word| word.parse().ok());
                    if let Some(count) = words.next().and_then(|word| word.parse().ok()) {
                        operations = count;
                    }
                    match time {
                        Some(time) => results.entry(side_name).or_default().push(time),
                        None => self.problems.push(format!("{name}: {side:?}: {finished}")),
                    }
                }
                if results.len() < 2 {
                    break;
                }
            }
            let counters = self.counted(program);
            let (Some(native), Some(enclave)) =
                (results.remove("native"), results.remove("enclave"))
            else {
                continue;
            };
            self.rows.push(Row {
                name,
                native: median(native),
                enclave: median(enclave),
                counters: counters.minus(idle).per(operations),
                target,
                rate: false,
            });
        }
    }

    fn counted(&self, program: Program) -> Counters {
        let finished = program
            .limit(120)
            .option(&["--stats", "--json"])
            .run(Side::Enclave);
        Counters::parse(&finished.stderr).unwrap_or_default()
    }

    fn redis(&mut self, pipeline: &str, target: Target) {
        const REQUESTS: f64 = 200_000.0;
        for kind in ["set", "get"] {
            let name = format!("redis {} (pipeline {pipeline})", kind.to_uppercase());
            if !self.wanted(&name) {
                continue;
            }
            let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            let mut counters = Counters::default();
            for _ in 0..self.runs.min(3) {
                for (side_name, side) in [("native", Side::Native), ("enclave", Side::Enclave)] {
                    let port = free_port();
                    let text = port.to_string();
                    let arguments = [
                        "redis-server",
                        "--port",
                        &text,
                        "--save",
                        "",
                        "--dir",
                        "/tmp",
                    ];
                    let program = Program::new("redis", &arguments).limit(120);
                    let server = program.option(&["--stats", "--json"]).serve(side, port);
                    let report = server.client(&[
                        "redis-benchmark",
                        "-p",
                        &text,
                        "-t",
                        kind,
                        "-n",
                        "200000",
                        "-c",
                        "50",
                        "-P",
                        pipeline,
                        "-q",
                    ]);
                    let line = report
                        .split(['\r', '\n'])
                        .find(|l| l.contains("requests per second"));
                    let rate = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
                    let finished = server.stop();
                    match rate {
                        Some(rate) => rates.entry(side_name).or_default().push(rate),
                        None => self
                            .problems
                            .push(format!("{name}: {side:?}: {report} {finished}")),
                    }
                    if side == Side::Enclave {
                        counters = Counters::parse(&finished.stderr).unwrap_or_default();
                    }
                }
            }
            let (Some(native), Some(enclave)) = (rates.remove("native"), rates.remove("enclave"))
            else {
                continue;
            };
            counters.pages_before = 0.0;
            self.rows.push(Row {
                name,
                native: 1e9 / median(native),
                enclave: 1e9 / median(enclave),
                counters: counters.per(REQUESTS),
                target,
                rate: true,
            });
        }
    }

    fn nginx(&mut self) {
        let name = "nginx, small file, 16 connections".to_owned();
        if !self.wanted(&name) {
            return;
        }
        let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut counters = Counters::default();
        let mut requests = 1.0;
        for _ in 0..self.runs.min(3) {
            for (side_name, side) in [("native", Side::Native), ("enclave", Side::Enclave)] {
                let port = free_port();
                let script = format!(
                    "mkdir -p /tmp/www && head -c 1024 /bin/bash > /tmp/www/file
                    cat > /tmp/nginx.conf <<END
daemon off; master_process off; pid /tmp/nginx.pid; error_log stderr; user root;
events {{ worker_connections 256; }}
http {{ access_log off; keepalive_requests 1000000;
  client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3;
  uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
  server {{ listen 127.0.0.1:{port}; root /tmp/www; }} }}
END
                    exec nginx -c /tmp/nginx.conf"
                );
                let program = Program::new("tools", &["sh", "-c", &script]).limit(60);
                let server = program.option(&["--stats", "--json"]).serve(side, port);
                let load = http::wrk(&server, "/file", 16, 3);
                let finished = server.stop();
                if load.errors > 0 {
                    self.problems
                        .push(format!("{name}: {side:?}: {load:?} {finished}"));
                }
                rates.entry(side_name).or_default().push(load.per_second);
                if side == Side::Enclave {
                    counters = Counters::parse(&finished.stderr).unwrap_or_default();
                    requests = load.requests.max(1) as f64;
                }
            }
        }
        let (Some(native), Some(enclave)) = (rates.remove("native"), rates.remove("enclave"))
        else {
            return;
        };
        counters.pages_before = 0.0;
        self.rows.push(Row {
            name,
            native: 1e9 / median(native),
            enclave: 1e9 / median(enclave),
            counters: counters.per(requests),
            target: Target::None,
            rate: true,
        });
    }

    fn table(&self) -> String {
        let mut out = String::from(
            "| Work | native | emulated | of native | modelled | of native | transitions | host calls \
             | target | met |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|:-:|\n",
        );
        for row in &self.rows {
            let show = |ns: f64| {
                if row.rate {
                    rate(1e9 / ns)
                } else {
                    duration(ns)
                }
            };
            let relative = |ns: f64| {
                let ratio = if row.rate {
                    row.native / ns
                } else {
                    ns / row.native
                };
                format!("{ratio:.2} ×")
            };
            let counters = row.counters;
            let target = match row.target {
                Target::None => String::new(),
                Target::Ratio(limit) => format!("≤ {limit} ×"),
                Target::Rate(limit) => format!("≥ {limit} ×"),
                Target::Milliseconds(limit) => format!("≤ {limit} ms"),
            };
            let met = match row.met() {
                None => "",
                Some(true) => "yes",
                Some(false) => "no",
            };
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {target} | {met} |",
                row.name,
                show(row.native),
                show(row.enclave),
                relative(row.enclave),
                show(row.modelled()),
                relative(row.modelled()),
                count(counters.entries + counters.aexs),
                count(counters.host_calls),
            );
        }
        out
    }
}

fn duration(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.1} ns"),
        ns if ns < 1e6 => format!("{:.2} µs", ns / 1e3),
        ns => format!("{:.2} ms", ns / 1e6),
    }
}

fn rate(per_second: f64) -> String {
    format!("{:.0} /s", per_second)
}

fn count(number: f64) -> String {
    match number {
        n if n < 0.005 => "0".to_owned(),
        n if n < 10.0 => format!("{n:.2}"),
        n => format!("{n:.0}"),
    }
}

fn preface(runs: usize) -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |model| {
        model.trim_start_matches([' ', '\t', ':'])
    });
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "# Performance

Written by `make bench`; every figure is a median of {runs} runs, native and enclave in turn on the
same machine ({model}, {cpus} CPUs, Linux {}). Native is a chroot of the same files.

*Emulated* is what was measured. *Modelled* adds what SGX hardware would add for the transitions that
were counted: {} µs for an entry and exit, {} µs for an asynchronous exit and resume, {} µs for a page
added before the start or while running. The numbers and their sources are in
`tests/bench/src/model.rs`; they have not been confirmed on hardware. Transitions and host calls are
per operation; for whole programs they are those of the run. For servers *of native* is throughput
(higher is better), for the rest it is time (lower is better).
",
        kernel.trim(),
        model::ENTRY_EXIT_NS / 1e3,
        model::AEX_RESUME_NS / 1e3,
        model::PAGE_NS / 1e3,
    )
}
