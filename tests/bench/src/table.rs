//! The table for people, and the same as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::model;
use crate::results::Results;
use crate::row::{Row, Target, Unit};

pub fn markdown(results: &Results) -> String {
    let mut out = String::from(
        "| Work | native | emulated | of native | modelled | of native | runsc | transitions \
         | host calls | exceptions | target | met |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|:-:|\n",
    );
    for row in &results.rows {
        out += &line(row);
        out.push('\n');
    }
    if !results.missing.is_empty() {
        let _ = writeln!(
            out,
            "\nNot measured this time: {}.",
            results.missing.join("; ")
        );
    }
    out
}

/// A row's line.
pub fn line(row: &Row) -> String {
    let show = |value: f64| match row.unit {
        Unit::Time => duration(value),
        Unit::PerSecond => format!("{:.0} /s", 1e9 / value),
        Unit::MegabytesPerSecond => format!("{:.0} MB/s", 1e9 / value),
        Unit::Mebibytes => format!("{value:.1} MiB"),
    };
    let relative = |value: f64| format!("{:.2} ×", ratio(row, value));
    let counters = row.counters;
    let met = match row.met() {
        None => "",
        Some(true) => "yes",
        Some(false) => "no",
    };
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {met} |",
        row.name,
        show(row.native),
        show(row.enclave),
        relative(row.enclave),
        show(row.modelled()),
        relative(row.modelled()),
        row.peer.map_or_else(|| "–".to_owned(), relative),
        count(counters.transitions()),
        count(counters.host_calls),
        count(counters.aexs),
        target(row.target),
    )
}

fn ratio(row: &Row, value: f64) -> f64 {
    if row.unit.is_rate() {
        row.native / value
    } else {
        value / row.native
    }
}

fn target(target: Target) -> String {
    match target {
        Target::None => String::new(),
        Target::Ratio(limit) => format!("≤ {limit} ×"),
        Target::Rate(limit) => format!("≥ {limit} ×"),
        Target::Milliseconds(limit) => format!("≤ {limit} ms"),
        Target::Throughput(limit) => format!("≥ {limit} MB/s"),
        Target::MoreMebibytes(limit) => format!("≤ {limit} MiB more"),
    }
}

/// An object per row; times in nanoseconds per operation (or megabyte), counters per operation.
pub fn json(rows: &[Row]) -> Value {
    let row = |row: &Row| {
        json!({
            "name": row.name,
            "native": row.native,
            "emulated": row.enclave,
            "modelled": row.modelled(),
            "runsc": row.peer,
            "unit": row.unit,
            "emulated_of_native": ratio(row, row.enclave),
            "modelled_of_native": ratio(row, row.modelled()),
            "transitions": row.counters.transitions(),
            "host_calls": row.counters.host_calls,
            "exceptions": row.counters.aexs,
            "pages_added": row.counters.pages_added,
            "target": target(row.target),
            "met": row.met(),
        })
    };
    Value::Array(rows.iter().map(row).collect())
}

fn duration(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.1} ns"),
        ns if ns < 1e6 => format!("{:.2} µs", ns / 1e3),
        ns => format!("{:.2} ms", ns / 1e6),
    }
}

fn count(number: f64) -> String {
    match number {
        n if n < 0.005 => "0".to_owned(),
        n if n < 10.0 => format!("{n:.2}"),
        n => format!("{n:.0}"),
    }
}

/// What people have written below the table that is there.
pub fn notes(old: &str) -> &str {
    old.find("\n## Notes\n").map_or("", |start| &old[start..])
}

/// What stands above the table.
pub fn preface(results: &Results) -> String {
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

Written by `make bench`; every figure is the median of {} runs (servers: of 3), native and enclave in turn
on the same machine ({model}, {cpus} CPUs, Linux {}). Native is a chroot of the same files.

*Emulated* is what was measured. *Modelled* adds what SGX hardware would add for the transitions that
were counted: {} µs for an entry and exit, {} µs for an asynchronous exit and resume, {} µs for a page
added before the start or while running. The numbers and their sources are in
`tests/bench/src/model.rs`; they have not been confirmed on hardware. *runsc* is gVisor with ptrace,
of native. Transitions (entries and asynchronous exits), host calls and exceptions are per operation;
for whole programs they are those of the run. For servers *of native* is throughput (higher is
better), for the rest it is time (lower is better).
",
        results.runs,
        kernel.trim(),
        model::ENTRY_EXIT_NS / 1e3,
        model::AEX_RESUME_NS / 1e3,
        model::PAGE_NS / 1e3,
    )
}
