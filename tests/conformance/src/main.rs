//! Runs LTP tests by name, or the whole list, and prints a line for each.
//!
//! `cargo run --release -p bulla-test-conformance -- [--side native|enclave] [--list FILE] [TAG..]`
#![forbid(unsafe_code)]

use std::process::ExitCode;

use bulla_test_apps::{Side, sides};
use bulla_test_conformance::{Outcome, Suite, tags};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, String> {
    let mut suite = Suite::open()?;
    let mut chosen_sides = sides();
    let mut names = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--side" => {
                chosen_sides = match arguments.next().as_deref() {
                    Some("native") => vec![Side::Native],
                    Some("enclave") => vec![Side::Enclave],
                    _ => return Err("--side needs native or enclave".into()),
                }
            }
            "--list" => {
                let file = arguments.next().ok_or("--list needs a file")?;
                suite.tags = tags(file.as_ref())?;
            }
            _ => names.push(argument),
        }
    }
    let mut chosen = suite.tags.clone();
    if !names.is_empty() {
        chosen.extend(suite.beyond.iter().cloned());
        chosen.retain(|tag| names.contains(&tag.name));
    }
    let shown = |outcome: Option<Outcome>| outcome.map_or("-".to_owned(), |o| o.to_string());
    let reports = suite.run_all(&chosen, &chosen_sides, |report| {
        let (native, enclave) = (shown(report.native), shown(report.enclave));
        println!("{}\t{native}\t{enclave}", report.tag.name);
    });
    let passed = |outcome: Option<Outcome>| outcome == Some(Outcome::Pass);
    let native = reports.iter().filter(|r| passed(r.native)).count();
    let enclave = reports.iter().filter(|r| passed(r.enclave)).count();
    let both = reports
        .iter()
        .filter(|r| passed(r.native) && passed(r.enclave));
    let both = both.count();
    let wrong: Vec<String> = reports.iter().filter_map(|r| suite.judge(r)).collect();
    println!(
        "{} tests: {native} pass natively, {enclave} in the enclave, {} unexpected",
        reports.len(),
        wrong.len()
    );
    if let Some(tenths) = (both * 1000).checked_div(native) {
        println!(
            "{both} of the {native} that pass natively pass in the enclave: {}.{} %",
            tenths / 10,
            tenths % 10
        );
    }
    for line in &wrong {
        println!("{line}");
    }
    Ok(wrong.is_empty())
}
