//! The same programs on every emulated machine: with and without dynamic memory and reported faults.

use bulla_test_apps::{Side, sides};
use bulla_test_linux::Program;

fn on(profiles: &[&str], names: &[&str], more: &[&str]) {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    for name in names {
        let program = Program::compile(&format!("programs/{name}.c"), name);
        for profile in profiles {
            let mut options = vec!["--profile", profile, "--memory", "512M"];
            options.extend(more);
            let output = program.run(Side::Enclave, &options);
            assert!(
                output.lines().any(|line| line == format!("{name}: ok")),
                "{name} fails on {profile}:\n{output}"
            );
        }
    }
}

/// Machines without EDMM, where a second view of shared memory is refused.
#[test]
fn without_dynamic_memory() {
    let names = [
        "signals",
        "timers",
        "ipc",
        "processes",
        "restrictions",
        "siblings",
        "tracing",
        "keys",
    ];
    on(&["dcsv3-5.15"], &names, &["--threads", "128"]);
    // Some of the signals are of faults.
    let believing = ["--threads", "128", "--insecure-host-faults"];
    on(&["dcsv2"], &names, &believing);
}

#[test]
fn with_dynamic_memory() {
    let names = [
        "signals",
        "timers",
        "ipc",
        "futexes",
        "restrictions",
        "tracing",
        "aliases",
    ];
    on(&["dcsv3-6.8", "full"], &names, &[]);
}

/// With AVX-512 and on a machine without it.
#[test]
fn extended_state() {
    let names = ["vectors", "registers", "signals"];
    on(&["dcsv3-6.8", "dcsv3-5.15"], &names, &["--threads", "128"]);
    let believing = ["--threads", "128", "--insecure-host-faults"];
    on(&["dcsv2"], &names, &believing);
}

/// DCsv2 does not report page faults to the enclave: handlers run only where the host is believed.
#[test]
fn faults_where_they_are_reported() {
    on(&["dcsv3-5.15", "dcsv3-6.8", "full"], &["faults"], &[]);
    on(&["dcsv2"], &["faults"], &["--insecure-host-faults"]);
}
