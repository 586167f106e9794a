//! `make bench`: every figure in the enclave, natively and under gVisor in the same run, in turn,
//! written as a table to docs/manual/performance.md.
//!
//! Options: `--runs N` (median of N, default 5), `--only WORD` (rows whose name has the word; prints
//! only), `--json` (prints JSON instead of the table), `--out FILE`.
#![forbid(unsafe_code)]

mod memory;
mod model;
mod programs;
mod row;
mod servers;
mod table;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use bulla_test_apps::{Program, Side};
use model::Counters;
use row::{Party, Row};

/// What is measured, and what came of it.
struct Bench {
    runs: usize,
    only: Option<String>,
    has_peer: bool,
    rows: Vec<Row>,
    problems: Vec<String>,
}

impl Bench {
    fn wanted(&self, name: &str) -> bool {
        let only = self.only.as_ref();
        only.is_none_or(|word| name.contains(word.as_str()))
    }

    /// In the order of each turn.
    fn parties(&self) -> Vec<Party> {
        let peer = self.has_peer.then_some(Party::Peer);
        [Party::Native, Party::Enclave]
            .into_iter()
            .chain(peer)
            .collect()
    }

    fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    fn push(&mut self, row: Option<Row>) {
        self.rows.extend(row);
    }

    /// The counters of a run of its own.
    fn counted(&mut self, program: Program) -> Counters {
        let finished = program
            .limit(120)
            .option(&["--stats", "--json"])
            .run(Side::Enclave);
        match Counters::parse(&finished.stderr) {
            Some(counters) => counters,
            None => {
                self.problem(format!("no counters: {finished}"));
                Counters::default()
            }
        }
    }
}

fn main() -> ExitCode {
    let mut bench = Bench {
        runs: 5,
        only: None,
        has_peer: Command::new("runsc").arg("help").output().is_ok(),
        rows: Vec::new(),
        problems: Vec::new(),
    };
    let mut out = PathBuf::from("docs/manual/performance.md");
    let mut as_json = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        if option == "--json" {
            as_json = true;
            continue;
        }
        let value = arguments.next();
        match (option.as_str(), value) {
            ("--runs", Some(value)) => bench.runs = value.parse().unwrap_or(5).max(1),
            ("--only", Some(value)) => bench.only = Some(value),
            ("--out", Some(value)) => out = PathBuf::from(value),
            _ => {
                eprintln!("usage: bulla-bench [--runs N] [--only WORD] [--json] [--out FILE]");
                return ExitCode::FAILURE;
            }
        }
    }
    programs::starts(&mut bench);
    programs::micros(&mut bench);
    servers::redis(&mut bench);
    servers::nginx(&mut bench);
    servers::gunicorn(&mut bench);
    servers::postgresql(&mut bench);
    let overhead = memory::overhead(&mut bench);

    let mut table = table::markdown(&bench.rows);
    if let Some(mebibytes) = overhead {
        table += &format!(
            "\nMemory that the runtime takes beyond what a program of 64 MiB touches: {mebibytes:.1} \
             MiB (target: at most {} MiB).\n",
            memory::LIMIT
        );
    }
    if as_json {
        let rows = table::json(&bench.rows);
        println!(
            "{}",
            serde_json::json!({ "rows": rows, "runtime_mebibytes": overhead })
        );
    } else {
        println!("{table}");
    }
    if bench.only.is_none() {
        let text = format!("{}\n{table}", table::preface(bench.runs));
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
