//! Every system call with bad pointers and integers out of range: the same errors natively and in
//! the enclave, and nothing crashes. `sweep/allowed.tsv` lists what may differ, and why.

use std::collections::BTreeMap;
use std::path::Path;

use bulla_test_apps::{Side, sides};
use bulla_test_linux::Program;

/// A case (call, argument, value) and its outcome.
fn outcomes(output: &str, side: Side) -> BTreeMap<&str, &str> {
    assert!(
        output.lines().any(|line| line == "sweep: ok"),
        "the sweep does not end ({side:?}); the end of its output:\n{}",
        tail(output)
    );
    let cases = output.lines().filter_map(|line| line.split_once(": "));
    cases.filter(|(case, _)| *case != "sweep").collect()
}

fn tail(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// A line of the list: the beginning of a case, what the enclave says instead (`*`: anything but a
/// signal or blocking), the reason.
struct Allowed {
    case: String,
    outcome: String,
}

impl Allowed {
    fn covers(&self, case: &str, outcome: &str) -> bool {
        let is_meant = case
            .strip_prefix(self.case.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
        let harmless = !outcome.starts_with("signal") && outcome != "blocks";
        is_meant && (self.outcome == outcome || self.outcome == "*" && harmless)
    }
}

fn allowed() -> Vec<Allowed> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("sweep/allowed.tsv");
    let text = std::fs::read_to_string(&path).expect("the list of allowed differences");
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match line.split('\t').collect::<Vec<_>>()[..] {
            [case, outcome, reason] if !reason.trim().is_empty() => Allowed {
                case: case.to_owned(),
                outcome: outcome.to_owned(),
            },
            _ => panic!("allowed.tsv: case, outcome and reason are needed: {line}"),
        })
        .collect()
}

#[test]
fn bad_arguments_end_in_the_same_errors() {
    let program = Program::compile("sweep/sweep.c", "sweep");
    if sides().len() < 2 {
        for side in sides() {
            outcomes(&program.run(side, &[]), side);
        }
        return;
    }
    let (native, enclave) = std::thread::scope(|scope| {
        let native = scope.spawn(|| program.run(Side::Native, &[]));
        let enclave = program.run(Side::Enclave, &[]);
        (native.join().expect("the native side"), enclave)
    });
    let native = outcomes(&native, Side::Native);
    let enclave = outcomes(&enclave, Side::Enclave);
    assert!(native.len() > 5000, "only {} cases", native.len());
    let allowed = allowed();
    let mut wrong = Vec::new();
    for (case, expected) in &native {
        let found = enclave.get(case).unwrap_or(&"missing");
        if found != expected && !allowed.iter().any(|one| one.covers(case, found)) {
            wrong.push(format!("{case}: {found}, natively {expected}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases differ:\n{}",
        wrong.len(),
        native.len(),
        wrong.join("\n")
    );
}
