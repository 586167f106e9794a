//! What the runtime takes beyond the program's own memory.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use bulla_test_apps::{Program, Side};

use crate::model::Counters;
use crate::row::{Figures, Party, Target, Unit};
use crate::{Job, Settings};

/// The promise in MiB.
const LIMIT: f64 = 32.0;

/// A program that touches 64 MiB: enclave pages and the loader's own memory. Files that are only
/// mapped do not count.
pub fn job() -> Job {
    let name = "memory of a program of 64 MiB";
    Job::new(name, 60, move |_: &Settings| {
        let mut figures = Figures::default();
        for (party, side) in [
            (Party::Native, Side::Native),
            (Party::Enclave, Side::Enclave),
        ] {
            let resident = resident(side).ok_or_else(|| format!("{party:?} said nothing"))?;
            figures.add(party, resident);
        }
        let target = Target::MoreMebibytes(LIMIT);
        figures.row(name, Counters::default(), target, Unit::Mebibytes)
    })
}

fn resident(side: Side) -> Option<f64> {
    let program = Program::new("micro", &["/bin/micro-glibc", "memory"]).stdin("");
    let mut command = program.command(side);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().ok()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take()?)
        .read_line(&mut line)
        .ok()?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
    // It ends with its input.
    drop(child.stdin.take());
    child.wait().ok()?;
    let kilobytes = |name: &str| {
        let text = status.as_ref().ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    Some((kilobytes("RssAnon:")? + kilobytes("RssShmem:")?) / 1024.0)
}
