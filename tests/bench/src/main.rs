//! `make bench`: every figure in the enclave, natively and under gVisor in the same run, in turn,
//! written as a table to docs/manual/performance.md, above the notes that are there.
//!
//! Each row is measured by a process of its own (this program with `--row`), so that one that fails
//! or hangs costs its row only. What was measured is kept in a file of results: a row measured
//! again replaces the old one.
//!
//! Options: `--runs N` (median of N, default 5), `--only WORD` (rows whose name has the word; may be
//! repeated), `--minutes N` (rows that have not begun by then are left out, default 13), `--results
//! FILE`, `--table FILE` (also with `--only`), `--json` (prints JSON instead of the table), `--list`.
#![forbid(unsafe_code)]

mod child;
mod conversion;
mod images;
mod memory;
mod model;
mod programs;
mod results;
mod row;
mod servers;
mod table;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use bulla_test_apps::{Program, Side};
use model::Counters;
use results::Results;
use row::Row;

/// How rows are measured.
pub struct Settings {
    pub runs: usize,
    has_peer: bool,
}

/// Prints a row for the process that keeps them; the last one counts. What only adds to a row, as
/// gVisor does, comes after a first one, so that its failure costs nothing else.
fn announce(row: &Row) -> Result<(), String> {
    let text = serde_json::to_string(row).map_err(|error| error.to_string())?;
    println!("{text}");
    Ok(())
}

/// What a row is measured by; the error says what went wrong.
type Measure = Box<dyn FnOnce(&Settings) -> Result<Row, String>>;

/// A row to be measured.
pub struct Job {
    name: String,
    /// The longest that it may take.
    limit: Duration,
    measure: Measure,
}

impl Job {
    fn new(
        name: impl Into<String>,
        seconds: u64,
        measure: impl FnOnce(&Settings) -> Result<Row, String> + 'static,
    ) -> Job {
        Job {
            name: name.into(),
            limit: Duration::from_secs(seconds),
            measure: Box::new(measure),
        }
    }
}

/// The counters of a run of its own.
fn counted(program: Program) -> Result<Counters, String> {
    let finished = program
        .limit(120)
        .option(&["--stats", "--json"])
        .run(Side::Enclave);
    Counters::parse(&finished.stderr).ok_or_else(|| format!("no counters: {finished}"))
}

fn jobs() -> Vec<Job> {
    let mut jobs = programs::starts();
    jobs.extend(images::jobs());
    jobs.extend(conversion::jobs());
    jobs.push(memory::job());
    jobs.push(programs::quotes());
    jobs.extend(servers::jobs());
    jobs.extend(programs::micros());
    jobs
}

struct Options {
    settings: Settings,
    only: Vec<String>,
    minutes: u64,
    results: PathBuf,
    table: Option<PathBuf>,
    json: bool,
    list: bool,
    row: Option<String>,
}

impl Options {
    fn parse() -> Option<Options> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
        let mut options = Options {
            settings: Settings {
                runs: 5,
                has_peer: Command::new("runsc").arg("help").output().is_ok(),
            },
            only: Vec::new(),
            minutes: 13,
            results: target.join("bench-results.json"),
            table: None,
            json: false,
            list: false,
            row: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(option) = arguments.next() {
            match option.as_str() {
                "--json" => options.json = true,
                "--list" => options.list = true,
                "--runs" => options.settings.runs = arguments.next()?.parse().ok()?,
                "--minutes" => options.minutes = arguments.next()?.parse().ok()?,
                "--only" => options.only.push(arguments.next()?),
                "--results" => options.results = arguments.next()?.into(),
                "--table" => options.table = Some(arguments.next()?.into()),
                "--row" => options.row = Some(arguments.next()?),
                _ => return None,
            }
        }
        if options.only.is_empty() && options.table.is_none() {
            options.table = Some("docs/manual/performance.md".into());
        }
        options.settings.runs = options.settings.runs.max(1);
        Some(options)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| name.contains(word.as_str()))
    }
}

fn main() -> ExitCode {
    let Some(options) = Options::parse() else {
        eprintln!(
            "usage: bulla-bench [--runs N] [--only WORD].. [--minutes N] [--results FILE] \
             [--table FILE] [--json] [--list]"
        );
        return ExitCode::FAILURE;
    };
    match &options.row {
        Some(name) => measure_here(name, &options.settings),
        None => measure_all(&options),
    }
}

/// One row, in this process; prints it as JSON.
fn measure_here(name: &str, settings: &Settings) -> ExitCode {
    let Some(job) = jobs().into_iter().find(|job| job.name == name) else {
        eprintln!("there is no row {name:?}");
        return ExitCode::FAILURE;
    };
    match (job.measure)(settings).and_then(|row| announce(&row)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// All rows that are wanted, each in a process of its own.
fn measure_all(options: &Options) -> ExitCode {
    let names = jobs();
    let order: Vec<String> = names.iter().map(|job| job.name.clone()).collect();
    let mut results = match options.only.is_empty() {
        true => Results::default(),
        false => Results::read(&options.results),
    };
    results.runs = options.settings.runs;
    let end = Instant::now() + Duration::from_secs(60 * options.minutes);
    let mut problems = Vec::new();
    for job in names.into_iter().filter(|job| options.wants(&job.name)) {
        if options.list {
            println!("{}", job.name);
            continue;
        }
        let left = end.saturating_duration_since(Instant::now());
        let start = Instant::now();
        let measured = match left.is_zero() {
            true => Err(format!("left out: {} minutes are over", options.minutes)),
            false => child::measure(&job.name, options.settings.runs, job.limit),
        };
        let seconds = start.elapsed().as_secs_f64();
        match measured {
            Ok(row) => {
                eprintln!("{seconds:6.1} s  {}", table::line(&row));
                results.put(row, &order);
            }
            Err(problem) => {
                eprintln!("{seconds:6.1} s  {}: {problem}", job.name);
                results.failed(&job.name);
                problems.push(job.name);
            }
        }
        // Also kept if this is interrupted.
        if let Err(error) = results.write(&options.results) {
            eprintln!("cannot write {}: {error}", options.results.display());
            return ExitCode::FAILURE;
        }
    }
    if options.list {
        return ExitCode::SUCCESS;
    }
    match options.json {
        true => println!("{}", table::json(&results.rows)),
        false => println!("{}", table::markdown(&results)),
    }
    if let Some(out) = &options.table {
        let old = std::fs::read_to_string(out).unwrap_or_default();
        let text = format!(
            "{}\n{}{}",
            table::preface(&results),
            table::markdown(&results),
            table::notes(&old)
        );
        if let Err(error) = std::fs::write(out, text) {
            eprintln!("cannot write {}: {error}", out.display());
            return ExitCode::FAILURE;
        }
    }
    match problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => {
            eprintln!("bench: not measured: {}", problems.join("; "));
            ExitCode::FAILURE
        }
    }
}
