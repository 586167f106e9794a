//! Modules of Python's own test suite: each test must end as it does on this machine, but for those
//! in `python/differences.txt`, which says why.

use std::collections::BTreeMap;

use bulla_test_apps::{Program, Side, sides};

/// Runs modules; the outcome of each test.
fn outcomes(side: Side, modules: &[&str], limit: u64) -> BTreeMap<String, String> {
    let mut argv = vec!["python3", "-c", include_str!("../python/run.py")];
    argv.extend(modules);
    let program = Program::new("servers", &argv)
        .env("LANG", "C.UTF-8")
        // test_many_processes has a hundred children at once, and each has memory of its own:
        // nothing is promised twice.
        .option(&["--memory", "12G"])
        .limit(limit);
    let finished = program.run(side);
    assert!(
        finished.stdout.ends_with("end\n"),
        "{side:?} {modules:?} did not finish: {finished}"
    );
    let lines = finished.stdout.lines();
    lines
        .filter_map(|line| line.split_once(' '))
        .map(|(outcome, test)| (test.to_owned(), outcome.to_owned()))
        .collect()
}

/// Tests whose outcome may differ.
fn known(test: &str) -> bool {
    let list = include_str!("../python/differences.txt");
    let names = list.lines().filter(|line| !line.starts_with('#'));
    names
        .filter_map(|line| line.split_whitespace().next())
        .any(|name| match name.strip_suffix('*') {
            Some(start) => test.starts_with(start),
            None => test == name,
        })
}

fn compare(modules: &[&str], limit: u64) {
    let mut results: Vec<_> = sides()
        .into_iter()
        .map(|side| outcomes(side, modules, limit))
        .collect();
    let (Some(enclave), Some(native)) = (results.pop(), results.pop()) else {
        return;
    };
    assert!(native.values().filter(|outcome| *outcome == "ok").count() > 3);
    let mut wrong = Vec::new();
    for test in native.keys().chain(enclave.keys()) {
        let (here, there) = (native.get(test), enclave.get(test));
        if here != there && !known(test) {
            wrong.push(format!(
                "{test}: natively {here:?}, in the enclave {there:?}"
            ));
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn test_mmap_select_and_posix() {
    compare(&["test_mmap", "test_select", "test_posix"], 120);
}

#[test]
#[ignore = "takes a minute: the tests wait for time-outs of handshakes"]
fn test_ssl() {
    compare(&["test_ssl"], 300);
}

#[test]
#[ignore = "takes minutes: the tests wait for timers and start hundreds of processes"]
fn test_threading_and_signal() {
    compare(&["test_threading"], 300);
    compare(&["test_signal"], 300);
}

#[test]
#[ignore = "takes minutes: the tests start hundreds of processes"]
fn test_os_and_subprocess() {
    compare(&["test_os"], 300);
    compare(&["test_subprocess"], 900);
}

#[test]
#[ignore = "takes minutes: the tests wait for timers"]
fn test_socket_and_asyncio() {
    compare(&["test_socket"], 600);
    compare(&["test_asyncio"], 900);
}

#[test]
#[ignore = "takes many minutes: every test forks servers that take turns with their parent"]
fn test_multiprocessing_fork() {
    compare(&["test_multiprocessing_fork"], 2400);
}
