//! This machine's strace and gdb, on programs beside them in the enclave: the same commands are run on
//! the machine itself, and what they must say is the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use bulla_test_apps::{Side, bulla, platform_options, sides};

const CRASH: &str = "int *nowhere;\n\
    static int inner(int depth) {\n\
    if (depth == 0)\n\
    return *nowhere;\n\
    return inner(depth - 1) + depth;\n\
    }\n\
    int main(void) { return inner(2); }\n";

const WORK: &str = "#include <stdio.h>\n\
    #include <unistd.h>\n\
    int counter;\n\
    int square(int x) {\n\
    int result = x * x;\n\
    counter++;\n\
    return result;\n\
    }\n\
    int main(int argc, char **argv) {\n\
    int total = 0;\n\
    for (int i = 1; i <= 5; i++)\n\
    total += square(i);\n\
    printf(\"total %d\\n\", total);\n\
    fflush(stdout);\n\
    while (argc > 1 && counter)\n\
    usleep(1000);\n\
    return counter;\n\
    }\n";

const THREADS: &str = "#include <pthread.h>\n\
    #include <stdio.h>\n\
    static int hits;\n\
    __attribute__((noinline)) static void hit(void) { __atomic_add_fetch(&hits, 1, 5); }\n\
    static void *run(void *p) { for (int i = 0; i < 25; i++) hit(); return p; }\n\
    int main(void) {\n\
    pthread_t t[4];\n\
    for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, run, 0);\n\
    for (int i = 0; i < 4; i++) pthread_join(t[i], 0);\n\
    printf(\"hits %d\\n\", hits);\n\
    return 0;\n\
    }\n";

/// A root with both, a shell and the programs.
fn root() -> &'static Path {
    static ROOT: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = ROOT.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        build(&directory.path().join("root"));
        directory
    });
    // One path for as long as the tests run.
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| directory.path().join("root"))
}

fn build(root: &Path) {
    for directory in [
        "bin",
        "tmp",
        "proc",
        "dev",
        "usr/bin",
        "usr/lib",
        "usr/share",
    ] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    let mut libraries = BTreeSet::new();
    let mut bring = |from: &str, to: &str| {
        libraries.extend(libraries_of(from));
        fs::copy(from, root.join(to)).unwrap_or_else(|error| {
            panic!("{from}: {error} (scripts/packages.sh test installs it)");
        });
    };
    bring("/bin/sh", "bin/sh");
    for name in ["ls", "wc", "echo", "sleep"] {
        bring(&format!("/bin/{name}"), &format!("bin/{name}"));
    }
    bring("/usr/bin/strace", "usr/bin/strace");
    bring("/usr/bin/gdb", "usr/bin/gdb");
    // gdb's libthread_db is opened by name.
    libraries.insert("/lib/x86_64-linux-gnu/libthread_db.so.1".into());
    for library in &libraries {
        let to = root.join(library.strip_prefix("/").expect("an absolute path"));
        fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
        fs::copy(library, to).expect("a library");
    }
    // gdb starts Python, which wants its library.
    let python = libraries.iter().find_map(|library| {
        let name = library.file_name()?.to_str()?.strip_prefix("libpython")?;
        Some(format!("python{}", name.split(".so").next()?))
    });
    if let Some(python) = python {
        copy_all(&format!("/usr/lib/{python}"), &root.join("usr/lib"));
    }
    copy_all("/usr/share/gdb", &root.join("usr/share"));
    for (name, source) in [("crash", CRASH), ("work", WORK), ("threads", THREADS)] {
        let file = root.join(format!("tmp/{name}.c"));
        fs::write(&file, source).expect("a source file");
        let compiled = Command::new("cc")
            .args(["-g", "-O0", "-w", "-pthread", "-o"])
            .arg(root.join("bin").join(name))
            .arg(&file)
            .status();
        assert!(compiled.expect("a C compiler (package gcc)").success());
    }
}

fn libraries_of(program: &str) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(PathBuf::from).collect()
}

fn copy_all(from: &str, to: &Path) {
    let copied = Command::new("cp").arg("-rL").arg(from).arg(to).output();
    assert!(copied.expect("cp").status.success(), "{from}");
}

/// What a command says, on either side; `{}` stands for the root, `{tmp}` for where it may write.
fn said(side: Side, command: &[&str]) -> String {
    let path = |path: &Path| path.to_str().expect("a path that is text").to_owned();
    let (place, writable) = match side {
        Side::Native => (path(root()), path(root().parent().expect("a directory"))),
        Side::Enclave => (String::new(), "/tmp".to_owned()),
    };
    let words: Vec<String> = command
        .iter()
        .map(|word| word.replace("{}", &place).replace("{tmp}", &writable))
        .collect();
    // With all that it has started, should it not come to an end.
    let mut starting = Command::new("timeout");
    starting.args(["-s", "KILL", "100"]);
    match side {
        Side::Native => {
            starting.arg(&words[0]);
        }
        Side::Enclave => {
            starting.arg(bulla());
            starting.args(["run", "--quiet"]).args(platform_options());
            starting.arg("--rootfs").arg(root()).arg(&words[0]);
        }
    }
    let output = starting
        .args(&words[1..])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .expect("the command starts");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Runs a command on both sides, and demands these lines, each somewhere.
fn expect(command: &[&str], lines: &[&str]) {
    for side in sides() {
        let said = said(side, command);
        for line in lines {
            assert!(said.contains(line), "no {line:?} ({side:?}) in:\n{said}");
        }
    }
}

/// gdb's commands in batch mode.
fn gdb<'a>(commands: &[&'a str], program: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["/usr/bin/gdb", "-nx", "-batch"];
    for command in commands {
        words.extend(["-ex", command]);
    }
    words.push("--args");
    words.extend(program);
    words
}

#[test]
fn strace_follows_a_pipeline() {
    for side in sides() {
        let command = "{}/bin/ls {}/bin | {}/bin/wc -l";
        let trace = said(side, &["/usr/bin/strace", "-f", "/bin/sh", "-c", command]);
        let count = |what: &str| trace.matches(what).count();
        assert_eq!(count("+++ exited with 0 +++"), 3, "{side:?}: {trace}");
        assert_eq!(count("execve("), 3, "{side:?}: {trace}");
        assert!(trace.contains("getdents64("), "{side:?}: {trace}");
        assert!(trace.contains("/bin/wc\", \"-l\"]"), "{side:?}: {trace}");
        assert!(trace.contains("SIGCHLD {si_signo=SIGCHLD"), "{trace}");
    }
}

#[test]
fn strace_counts_and_chooses_by_filters() {
    let counting = ["/usr/bin/strace", "-c", "{}/bin/ls", "{}/bin"];
    expect(&counting, &["% time", "getdents64", "100.00"]);
    let choosing = [
        "/usr/bin/strace",
        "-f",
        "--seccomp-bpf",
        "-e",
        "trace=write",
        "/bin/sh",
        "-c",
        "{}/bin/echo one; {}/bin/echo two; true",
    ];
    for side in sides() {
        let trace = said(side, &choosing);
        for line in ["write(1, \"one\\n\", 4", "write(1, \"two\\n\", 4"] {
            assert!(trace.contains(line), "{side:?}: {trace}");
        }
        assert!(!trace.contains("openat("), "{side:?}: {trace}");
    }
}

/// No processes in the loop: where one stops on its way to execve while strace leaves, strace waits for
/// its vforking parent for ever, on Linux too.
#[test]
fn strace_attaches_to_a_loop_and_leaves_it() {
    let script = "(while :; do [ -e {tmp}/none ]; done) & loop=$!; sleep 0.2; \
        strace -f -o {tmp}/log -p $loop & tracer=$!; \
        while [ ! -s {tmp}/log ]; do sleep 0.1; done; sleep 1; kill -INT $tracer; wait $tracer; \
        kill -0 $loop && echo it runs; kill $loop; wait $loop; echo over $?; \
        [ $({}/bin/wc -l < {tmp}/log) -gt 100 ] && echo many lines";
    expect(
        &["/bin/sh", "-c", script],
        &["detached", "it runs", "over 143", "many lines"],
    );
}

#[test]
fn gdb_shows_where_a_program_crashed() {
    expect(
        &gdb(&["run", "bt"], &["{}/bin/crash"]),
        &[
            "Program received signal SIGSEGV",
            "in inner (depth=0) at ",
            "#1 ",
            "#3 ",
            "in main () at ",
        ],
    );
}

#[test]
fn gdb_breaks_steps_calls_and_watches() {
    let commands = [
        "set can-use-hw-watchpoints 0",
        "break main",
        "run",
        "next",
        "next",
        "info locals",
        "break square if x == 3",
        "continue",
        "backtrace",
        "finish",
        "print square(7)",
        "stepi",
        "next",
        "watch total",
        "continue",
        "delete",
        "continue",
    ];
    expect(
        &gdb(&commands, &["{}/bin/work"]),
        &[
            "Breakpoint 1, main (argc=1",
            "i = 1",
            "total = 0",
            "Breakpoint 2, square (x=3) at ",
            "#1 ",
            "Value returned is $1 = 9",
            "$2 = 49",
            "Old value = ",
            "total 55",
            "exited with code 06",
        ],
    );
}

#[test]
fn gdb_counts_the_threads_that_pass_a_breakpoint() {
    let commands = ["break hit", "ignore 1 1000", "run", "info breakpoints"];
    expect(
        &gdb(&commands, &["{}/bin/threads"]),
        &["breakpoint already hit 100 times", "exited normally"],
    );
}

#[test]
fn gdb_attaches_changes_a_variable_and_leaves() {
    let script = "{}/bin/work wait & work=$!; sleep 0.3; \
        gdb -nx -batch -p $work -ex bt -ex 'print counter' -ex 'set variable counter = 0'; \
        wait $work; echo status $?";
    expect(
        &["/bin/sh", "-c", script],
        &["in main (argc=2", "$1 = 5", "detached]", "status 0"],
    );
}
