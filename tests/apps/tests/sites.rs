//! System calls of all kinds of programs, by rewritten sites and by traps: the same answers.
//!
//! (Sites met by several threads at once, and cancellation, are in tests/linux: `sites`, `cancel`.)

use bulla_test_apps::{Finished, Program, Side, sides};

fn counter(finished: &Finished, name: &str) -> u64 {
    let end = finished
        .messages
        .lines()
        .chain(finished.stderr.lines())
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|value| value["event"] == "end")
        .unwrap_or_else(|| panic!("no counters: {finished}"));
    end["stats"][name]
        .as_u64()
        .unwrap_or_else(|| panic!("no {name}: {finished}"))
}

/// The words that do not depend on how fast something was.
fn words(finished: &Finished) -> Vec<String> {
    let is_figure = |word: &&str| !word.starts_with(|c: char| c.is_ascii_digit());
    let words = finished.stdout.split_whitespace();
    words.filter(is_figure).map(str::to_owned).collect()
}

/// Runs a program natively, with its sites rewritten, and with each call trapping. Of an image all
/// sites of its programs are listed, so with rewriting hardly any call traps: not even the first.
fn check(image: &'static str, argv: &[&str]) {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let native = Program::new(image, argv).run(Side::Native);
    assert_eq!(native.code, Some(0), "{argv:?}: {native}");
    let program = Program::new(image, argv).option(&["--json", "--stats"]);
    let rewritten = program.run(Side::Enclave);
    let trapping = program.clone().option(&["--no-site-rewriting"]);
    let trapping = trapping.run(Side::Enclave);
    for (finished, how) in [(&rewritten, "rewritten"), (&trapping, "trapping")] {
        assert_eq!(finished.code, Some(0), "{argv:?}, {how}: {finished}");
        assert_eq!(
            words(finished),
            words(&native),
            "{argv:?}, {how}: {finished}"
        );
    }
    assert!(counter(&rewritten, "sites_rewritten") > 0, "{rewritten}");
    assert_eq!(counter(&trapping, "sites_rewritten"), 0, "{trapping}");
    let [few, many] = [&rewritten, &trapping].map(|run| counter(run, "syscall_traps"));
    assert!(
        few * 3 < many,
        "{argv:?}: {few} traps, {many} without lists"
    );
}

#[test]
fn static_go() {
    check("programs", &["/bin/bench-go", "getppid"]);
}

#[test]
fn rust_static_pie() {
    check("programs", &["/bin/hello-rust", "argument"]);
}

#[test]
fn busybox_static() {
    let script = "for i in 1 2 3; do echo $i | cat; done; ls /bin | head -3; (exit 3) || echo no";
    check("busybox", &["/bin/sh", "-c", script]);
}

#[test]
fn musl_static_and_dynamic() {
    check("programs", &["/bin/threads-musl-static"]);
    check("programs", &["/bin/threads-musl"]);
}

#[test]
fn glibc_static_and_dynamic() {
    check("programs", &["/bin/threads-glibc-static"]);
    check("tools", &["/opt/bench/threads"]);
}
