//! What the runtime takes beyond the program's own memory.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use bulla_test_apps::{Program, Side};

use crate::Bench;

/// The promise in MiB.
pub const LIMIT: f64 = 32.0;

/// MiB beyond what a program of 64 MiB takes natively: enclave pages and the loader's own memory.
/// Files that are only mapped do not count.
pub fn overhead(bench: &mut Bench) -> Option<f64> {
    if !bench.wanted("memory of the runtime") {
        return None;
    }
    let program = Program::new("micro", &["/bin/micro-glibc", "memory"]).stdin("");
    let resident = |side| -> Option<f64> {
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
    };
    match (resident(Side::Native), resident(Side::Enclave)) {
        (Some(native), Some(enclave)) => Some(enclave - native),
        other => {
            bench.problem(format!("memory of the runtime: {other:?}"));
            None
        }
    }
}
