//! `--strace`, `--report`, what is said about faults, and `--gdb`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bulla_test_apps::{Program, Side, bulla, platform_options, sides};

/// A directory with a program in it, compiled from source.
fn compiled(source: &str, options: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(directory.path().join("tmp")).expect("a directory");
    let file = directory.path().join("program.c");
    fs::write(&file, source).expect("a source file");
    let status = Command::new("cc")
        .args(["-O0", "-static", "-w"])
        .args(options)
        .arg("-o")
        .arg(directory.path().join("program"))
        .arg(&file)
        .status();
    assert!(status.expect("a C compiler (package gcc)").success());
    directory
}

fn run(options: &[&str], root: &Path) -> Output {
    Command::new(bulla())
        .args(["run", "--quiet"])
        .args(platform_options())
        .args(options)
        .arg("--rootfs")
        .arg(root)
        .arg("/program")
        .stdin(Stdio::null())
        .output()
        .expect("bulla starts")
}

/// A trace between the program's markers, without process ids, addresses and white space.
fn normalized(trace: &str) -> Vec<String> {
    let lines = trace.lines().map(|line| {
        let line = match line.strip_prefix("[pid ") {
            Some(rest) => rest.split_once("] ").map_or("", |(_, call)| call),
            None => line.trim_start_matches(|c: char| c.is_ascii_digit()),
        };
        let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        for word in &mut words {
            *word = without_addresses(word);
        }
        words.join(" ")
    });
    let lines = joined(lines);
    let from = lines
        .into_iter()
        .skip_while(|line| !line.starts_with("write(1, \"begin"));
    from.take_while(|line| !line.starts_with("write(1, \"end"))
        .collect()
}

/// Makes one line of a call that is printed in two parts, because its thread slept in between.
fn joined(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for line in lines {
        match (line.strip_prefix("<... "), out.last_mut()) {
            (Some(rest), Some(first)) if first.ends_with(" <unfinished ...>") => {
                first.truncate(first.len() - " <unfinished ...>".len());
                if first.ends_with(',') {
                    first.push(' ');
                }
                first.push_str(rest.split_once(" resumed>").map_or("", |(_, rest)| rest));
            }
            _ => out.push(line),
        }
    }
    out
}

/// Addresses and process ids are different in every run, and reasons are ours.
fn without_addresses(word: &str) -> String {
    let mut out = String::new();
    let mut rest = word;
    while let Some(at) = rest.find("0x") {
        let digits = rest[at + 2..]
            .bytes()
            .take_while(u8::is_ascii_hexdigit)
            .count();
        out.push_str(&rest[..at]);
        match digits {
            6.. => out.push_str("ADDRESS"),
            _ => out.push_str(&rest[at..at + 2 + digits]),
        }
        rest = &rest[at + 2 + digits..];
    }
    out.push_str(rest);
    out
}

#[test]
fn strace_prints_what_strace_prints() {
    let root = compiled(include_str!("../scripts/traced.c"), &[]);
    let log = root.path().join("log");
    let native = Command::new("strace")
        .arg("-o")
        .arg(&log)
        .arg(root.path().join("program"))
        .status();
    assert_eq!(native.expect("strace").code(), Some(7));
    let native = normalized(&fs::read_to_string(&log).expect("a trace"));
    fs::remove_file(&log).expect("the trace goes");
    let output = run(&["--strace"], root.path());
    assert_eq!(output.status.code(), Some(7));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("WARNING: insecure_strace"), "{text}");
    let ours: Vec<String> = normalized(&text)
        .into_iter()
        .map(|line| line.split(" /* ").next().unwrap_or_default().to_owned())
        .collect();
    assert!(native.len() > 60, "{native:#?}");
    let different: Vec<_> = native.iter().zip(&ours).filter(|(a, b)| a != b).collect();
    assert!(
        different.is_empty() && native.len() == ours.len(),
        "strace, then ours: {different:#?}\n{} and {} lines",
        native.len(),
        ours.len()
    );
}

#[test]
fn strace_filters_by_call_and_process() {
    let script = "cat /etc/hostname > /dev/null; sleep 0.01; (exit 3); kill -USR1 $$; trap '' USR1; kill -USR1 $$";
    let traced = |options: &[&str]| {
        let finished = Program::new("busybox", &["/bin/sh", "-c", script])
            .option(options)
            .run(Side::Enclave);
        let lines: Vec<String> = finished.stderr.lines().map(str::to_owned).collect();
        assert!(
            lines.iter().all(|line| line.starts_with("[pid ")),
            "{finished}"
        );
        lines
    };
    let calls = |lines: &[String]| -> Vec<String> {
        let call = |line: &String| Some(line.split_once("] ")?.1.split_once('(')?.0.to_owned());
        let mut names: Vec<_> = lines
            .iter()
            .filter_map(call)
            .filter(|name| !name.starts_with('+'))
            .collect();
        names.sort();
        names.dedup();
        names
    };
    let execs = traced(&["--strace=execve"]);
    assert_eq!(calls(&execs), ["execve"], "{execs:#?}");
    let cat = "[\"cat\", \"/etc/hostname\"], 0x";
    assert!(
        execs
            .iter()
            .any(|line| line.contains(cat) && line.contains(" vars */) = 0")),
        "{execs:#?}"
    );
    assert!(
        execs
            .iter()
            .any(|line| line.contains("+++ exited with 3 +++")),
        "{execs:#?}"
    );
    let child = "--- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=";
    assert!(execs.iter().any(|line| line.contains(child)), "{execs:#?}");
    let of_cat = traced(&["--strace=open,openat,read", "--strace-pid=cat"]);
    assert!(
        of_cat
            .iter()
            .any(|line| line.contains("\"/etc/hostname\", O_RDONLY")),
        "{of_cat:#?}"
    );
    assert!(
        of_cat.iter().all(|line| !line.starts_with("[pid 1]")),
        "{of_cat:#?}"
    );
    let first = traced(&["--strace=!rt_sigaction,rt_sigprocmask", "--strace-pid=1"]);
    assert!(
        first.iter().all(|line| line.starts_with("[pid 1]")),
        "{first:#?}"
    );
    assert!(
        !calls(&first).contains(&"rt_sigaction".to_owned()),
        "{first:#?}"
    );
    // The shell waits: seen before the child has ended.
    assert!(
        first
            .iter()
            .any(|line| line.contains("wait4(-1,  <unfinished ...>")),
        "{first:#?}"
    );
    assert!(first.iter().any(|line| line.contains("<... wait4 resumed>[{WIFEXITED(s) && WEXITSTATUS(s) == 0}]")), "{first:#?}");

    let wrong = Program::new("busybox", &["/bin/true"])
        .option(&["--strace=opne"])
        .run(Side::Enclave);
    assert_eq!(wrong.code, Some(125));
    assert!(
        wrong.messages.contains("\"opne\" is no system call"),
        "{wrong}"
    );
}

#[test]
fn the_report_counts_refusals() {
    let source = r#"
        #include <sys/socket.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int main(void) {
            for (int i = 0; i < 3; i++) syscall(425, 1, 0); // io_uring_setup
            syscall(999);
            socket(AF_INET, SOCK_STREAM | 0x100000, 0);
            int none = open("/nowhere", 0);
            return 0;
        }"#;
    let root = compiled(source, &[]);
    let output = run(&["--report"], root.path());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("WARNING: insecure_report"), "{text}");
    for line in [
        "3 x io_uring_setup(",
        "1 x syscall_0x3e7(",
        "1 x socket(AF_INET, SOCK_STREAM|0x100000, _) = EINVAL",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(
        !text.contains("open"),
        "a file that is missing is no refusal: {text}"
    );
}

#[test]
fn faults_name_the_place() {
    let source = r#"
        #include <sys/mman.h>
        #include <unistd.h>
        #include <sys/wait.h>
        __attribute__((noinline)) void broken(volatile int *where) { *where = 1; }
        int main(int argc, char **argv) {
            if (fork() == 0) broken((int *)0x40);
            wait(0);
            if (fork() == 0) broken((int *)main);
            wait(0);
            __asm__ volatile("ud2");
        }"#;
    let root = compiled(source, &["-g"]);
    let output = run(&[], root.path());
    assert_eq!(output.status.code(), Some(132), "SIGILL");
    let text = String::from_utf8_lossy(&output.stderr);
    let line = |needle: &str| {
        let found = text.lines().find(|line| line.contains(needle));
        found
            .unwrap_or_else(|| panic!("no {needle} in {text}"))
            .to_owned()
    };
    let first = line("SIGSEGV (SEGV_MAPERR)");
    assert!(
        first.contains("writing address 0x40 (no mapping)"),
        "{first}"
    );
    let second = line("SIGSEGV (SEGV_ACCERR)");
    assert!(second.matches("(/program+0x").count() == 2, "{second}");
    line("SIGILL (ILL_ILLOPN)");
    // The offset leads to the function.
    let offset = first
        .split("(/program+")
        .nth(1)
        .and_then(|rest| rest.split(')').next());
    let offset = offset.unwrap_or_else(|| panic!("no offset in {first}"));
    let offset = u64::from_str_radix(offset.trim_start_matches("0x"), 16).expect("a number");
    let resolved = Command::new("addr2line")
        .args(["-f", "-e"])
        .arg(root.path().join("program"))
        .arg(format!("{:#x}", offset + 0x400000))
        .output()
        .expect("addr2line (package binutils)");
    let resolved = String::from_utf8_lossy(&resolved.stdout);
    assert!(resolved.starts_with("broken\n"), "{resolved}");
}

/// Break at main in a program and in a library that comes later, print variables, go on.
#[test]
fn gdb_stops_in_main_and_prints_variables() {
    if sides() == [Side::Native] {
        return;
    }
    let build = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| -> PathBuf { build.path().join(name) };
    fs::write(
        path("lib.c"),
        "int twice(int number) {\nint result = 2 * number;\nreturn result;\n}\n",
    )
    .expect("a file");
    fs::write(
        path("main.c"),
        "#include <stdio.h>\n#include <dlfcn.h>\nint answer = 41;\nint main(int argc, char **argv) {\n\
         int local = argc + 4;\nanswer++;\nvoid *l = dlopen(\"/libtwice.so\", RTLD_NOW);\n\
         int (*f)(int) = l ? dlsym(l, \"twice\") : 0;\nprintf(\"answer %d\\n\", f ? f(answer + local) : -1);\nreturn 3;\n}\n",
    )
    .expect("a file");
    let cc = |arguments: &[&str]| {
        let status = Command::new("cc")
            .current_dir(build.path())
            .args(arguments)
            .status();
        assert!(status.expect("a C compiler (package gcc)").success());
    };
    let root = path("root");
    fs::create_dir_all(root.join("lib/x86_64-linux-gnu")).expect("a directory");
    cc(&[
        "-g",
        "-O0",
        "-shared",
        "-fPIC",
        "-o",
        "root/libtwice.so",
        "lib.c",
    ]);
    cc(&["-g", "-O0", "-pie", "-fPIE", "-o", "root/program", "main.c"]);
    for library in ["libc.so.6", "ld-linux-x86-64.so.2"] {
        let from =
            ["/lib/x86_64-linux-gnu", "/lib64"].map(|directory| Path::new(directory).join(library));
        let from = from
            .iter()
            .find(|file| file.exists())
            .expect("the C library");
        fs::copy(from, root.join("lib/x86_64-linux-gnu").join(library)).expect("a copy");
    }
    std::os::unix::fs::symlink("lib/x86_64-linux-gnu", root.join("lib64")).expect("a link");
    let mut child = Command::new(bulla())
        .args(["run", "--platform", "emulated", "--gdb", "--rootfs"])
        .arg(&root)
        .args(["/program", "x"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bulla starts");
    let mut stderr = std::io::BufReader::new(child.stderr.take().expect("a pipe"));
    let mut said = String::new();
    let script = loop {
        let mut line = String::new();
        let read = std::io::BufRead::read_line(&mut stderr, &mut line).expect("text");
        said.push_str(&line);
        assert!(read > 0, "no word of gdb: {said}");
        if let Some((_, rest)) = line.split_once("gdb -x ") {
            break rest.split(' ').next().unwrap_or_default().to_owned();
        }
    };
    assert!(said.contains("WARNING: insecure_debugger"), "{said}");
    let commands = [
        "break main.c:6",
        "break twice",
        "continue",
        "print local",
        "print answer",
        "backtrace",
        "continue",
        "next",
        "print result",
        "info symbol twice",
        "continue",
    ];
    let mut gdb = Command::new("timeout");
    gdb.args([
        "-s",
        "KILL",
        "100",
        "gdb",
        "-q",
        "-nx",
        "-batch",
        "-x",
        &script,
        "-p",
        &child.id().to_string(),
    ]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let output = gdb.stdin(Stdio::null()).output().expect("gdb");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let all = format!("{text}\n--- {errors}");
    if !text.contains("exited with code") {
        let _ = child.kill();
    }
    let finished = child.wait_with_output().expect("an end");
    for line in [
        "$1 = 6",
        "$2 = 41",
        "#0  main (argc=2",
        "twice (number=48)",
        "$3 = 96",
        "exited with code 03",
    ] {
        assert!(all.contains(line), "{line}: {all}");
    }
    assert_eq!(String::from_utf8_lossy(&finished.stdout), "answer 96\n");
}
