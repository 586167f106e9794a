//! What people do in a shell: scripts, files, git, make; and the large languages: Node, Java.

use bulla_test_apps::{Program, free_port};

const TLS: &str = include_str!("../scripts/tls.sh");

fn script(image: &'static str, text: &str) -> Program {
    Program::new(image, &["bash", "-c", text]).limit(240)
}

/// Runs a script on both sides and demands these lines, in this order, besides equality.
fn expect(program: Program, code: i32, lines: &[&str]) {
    let finished = program.compare();
    assert_eq!(finished.code, Some(code), "{finished}");
    let mut output = finished.stdout.lines();
    for line in lines {
        assert!(
            output.any(|found| found == *line),
            "no line {line:?} (in this order) in {finished}"
        );
    }
}

#[test]
fn bash_scripts_with_traps_jobs_and_limits() {
    let lines = [
        "HERE 42 NESTED",
        "quoted $HOME",
        "from fd 3",
        "usr1",
        "got chld",
        "co:hello",
        "status 3",
        "wait-n 0",
        "through fifo",
        "pipestatus 1 0 5",
        "timeout 124",
        "cpu 137",
        "survived",
        "segv 139",
        "int",
    ];
    expect(
        script("shell", include_str!("../scripts/bash.sh")),
        9,
        &lines,
    );
}

#[test]
fn files_with_find_tar_and_gzip() {
    let lines = [
        "same",
        "/tmp/x/a/b/f3 644 12:34 1293840000",
        "1234567890: 2 3 3 5 3607 3803",
        "gz",
        "fifo",
    ];
    expect(
        script("shell", include_str!("../scripts/files.sh")),
        0,
        &lines,
    );
}

#[test]
fn git_clones_merges_and_packs() {
    let lines = ["7", "* main", "packs: 1", "f1"];
    expect(
        script("shell", include_str!("../scripts/git.sh")),
        0,
        &lines,
    );
}

#[test]
fn make_builds_a_project_with_gcc() {
    let lines = ["6 2.0 x42", "make: 'prog' is up to date.", "failed 2"];
    expect(
        script("shell", include_str!("../scripts/make.sh")),
        0,
        &lines,
    );
}

#[test]
fn node_workers_children_and_http() {
    let program = script("shell", "cat > /tmp/w.js; node /tmp/w.js")
        .stdin(include_str!("../scripts/node.js"));
    let lines = [
        "http 200 POST /0 0 200 POST /39 39000 40",
        "kill SIGTERM",
        "fork 42",
        "watch rename file",
        "signal",
    ];
    expect(program, 4, &lines);
}

#[test]
fn curl_against_openssl_s_server() {
    let port = free_port().to_string();
    let lines = ["same", "200 0 HTTPS", "curl 77", "100000", "sha256 1"];
    expect(
        Program::new("shell", &["bash", "-c", TLS, &port]).limit(240),
        0,
        &lines,
    );
}

/// javac, then a program with implicit null checks in compiled code, stack overflows, and eight
/// threads whose garbage G1 collects.
#[test]
fn java_compiles_and_runs_threads() {
    let build = "cd /tmp && cat > Threads.java && javac Threads.java && java -XX:+UseG1GC \
         -Xmx256m Threads";
    let program = script("java", build).stdin(include_str!("../scripts/Threads.java"));
    let lines = [
        "null checks 2100700100",
        "overflow true true",
        "churn 269998200000",
        "counter 64000 map 64000",
        "collector G1 Young Generation",
        "collected true",
        "interrupted",
        "hook",
    ];
    expect(program, 3, &lines);
}

#[test]
fn java_with_other_collectors_and_modes() {
    let run = "cd /tmp && cat > Threads.java && javac Threads.java
        for options in -XX:+UseSerialGC '-XX:+UseParallelGC -XX:-UseCompressedOops' -Xint; do
            java $options -Xmx256m Threads | grep -E '^(null|counter|overflow)'
        done";
    // Interpreting takes long; the loops are short enough for it.
    expect(
        script("java", run).stdin(include_str!("../scripts/Threads.java")),
        0,
        &["null checks 2100700100"],
    );
}
