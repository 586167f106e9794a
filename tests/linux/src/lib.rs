//! Runs small C programs that check what Linux promises, first on this machine, then in the
//! enclave. A program passes natively, or it is the program that is wrong.
//!
//! Each program in `programs/` prints `name: ok`, or a line per failed check. They are linked
//! statically by the machine's C compiler unless [`Linked`] says otherwise. BULLA_TEST_SIDE=native or enclave runs one side only;
//! BULLA_BIN names a ready `bulla`.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulla_test_apps::{Side, bulla, platform_options, sides};

/// The longest that one program may take.
const LIMIT: Duration = Duration::from_secs(120);

/// How a program is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linked {
    GlibcStatic,
    GlibcDynamic,
    MuslStatic,
    MuslDynamic,
}

impl Linked {
    pub const ALL: [Linked; 4] = [
        Linked::GlibcStatic,
        Linked::GlibcDynamic,
        Linked::MuslStatic,
        Linked::MuslDynamic,
    ];

    /// The compiler with its options.
    fn compiler(self) -> Command {
        // musl has no headers of the kernel's own.
        let musl = [
            "-idirafter",
            "/usr/include",
            "-idirafter",
            "/usr/include/x86_64-linux-gnu",
        ];
        let mut command = match self {
            Linked::GlibcStatic | Linked::GlibcDynamic => Command::new("cc"),
            Linked::MuslStatic | Linked::MuslDynamic => {
                let mut command = Command::new("musl-gcc");
                command.args(musl);
                command
            }
        };
        if matches!(self, Linked::GlibcStatic | Linked::MuslStatic) {
            command.arg("-static");
        }
        command.args(["-O1", "-pthread"]);
        command
    }

    /// What the program needs beside itself: on this machine, and in its root.
    fn libraries(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Linked::GlibcStatic | Linked::MuslStatic => &[],
            Linked::GlibcDynamic => &[
                ("/lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2"),
                (
                    "/lib/x86_64-linux-gnu/libc.so.6",
                    "lib/x86_64-linux-gnu/libc.so.6",
                ),
                // Of pthread_cancel.
                (
                    "/lib/x86_64-linux-gnu/libgcc_s.so.1",
                    "lib/x86_64-linux-gnu/libgcc_s.so.1",
                ),
            ],
            Linked::MuslDynamic => &[("/lib/x86_64-linux-musl/libc.so", "lib/ld-musl-x86_64.so.1")],
        }
    }
}

/// A program to run.
#[derive(Clone, Copy, Debug)]
pub struct Check<'a> {
    pub name: &'a str,
    pub linked: Linked,
    /// Options of `bulla run`, and arguments, for the enclave's side only.
    pub options: &'a [&'a str],
    pub arguments: &'a [&'a str],
}

/// Compiles `programs/NAME.c` and runs it on both sides.
pub fn check(name: &str) {
    Check::new(name).run();
}

impl<'a> Check<'a> {
    pub fn new(name: &'a str) -> Check<'a> {
        Check {
            name,
            linked: Linked::GlibcStatic,
            options: &[],
            arguments: &[],
        }
    }

    /// Runs both sides; what the enclave's run wrote, if there was one.
    pub fn run(&self) -> Option<String> {
        let name = self.name;
        let program = Program::link(&format!("programs/{name}.c"), name, self.linked);
        let mut of_enclave = None;
        for side in sides() {
            let output = program.run_with(side, self.options, self.arguments);
            assert!(
                output.lines().any(|line| line == format!("{name}: ok")),
                "{self:?} fails ({side:?}):\n{output}"
            );
            if matches!(side, Side::Enclave) {
                of_enclave = Some(output);
            }
        }
        of_enclave
    }
}

/// A counter in what a run with `--json --stats` wrote.
pub fn counter(output: &str, name: &str) -> u64 {
    let end = output
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|value| value["event"] == "end")
        .unwrap_or_else(|| panic!("no counters:\n{output}"));
    let stats = &end["stats"];
    [
        &stats[name],
        &stats["platform_counters"][name],
        &stats["host_calls"][name],
    ]
    .into_iter()
    .find_map(serde_json::Value::as_u64)
    .unwrap_or_else(|| panic!("no counter {name}:\n{stats}"))
}

/// A compiled C program, alone in a root directory.
pub struct Program {
    name: String,
    directory: tempfile::TempDir,
}

impl Program {
    /// Compiles a source file of this crate, linked statically with glibc.
    pub fn compile(source: &str, name: &str) -> Program {
        Program::link(source, name, Linked::GlibcStatic)
    }

    /// Compiles a source file of this crate and lays what it needs beside it.
    pub fn link(source: &str, name: &str, linked: Linked) -> Program {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let name = name.to_owned();
        let program = Program { name, directory };
        for directory in ["bin", "tmp", "proc", "dev"] {
            std::fs::create_dir_all(program.root().join(directory)).expect("a directory");
        }
        let compiled = linked
            .compiler()
            .arg("-o")
            .arg(program.root().join("bin").join(&program.name))
            .arg(&source)
            .status()
            .expect("a C compiler (packages gcc, musl-tools)");
        assert!(compiled.success(), "{} does not compile", source.display());
        for (from, to) in linked.libraries() {
            let to = program.root().join(to);
            let parent = to.parent().expect("a file in a directory");
            std::fs::create_dir_all(parent).expect("a directory for a library");
            std::fs::copy(from, &to).unwrap_or_else(|error| panic!("{from}: {error}"));
        }
        program
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Runs it to its end; what it wrote.
    pub fn run(&self, side: Side, options: &[&str]) -> String {
        self.run_with(side, options, &[])
    }

    /// The same with arguments for the enclave's side.
    pub fn run_with(&self, side: Side, options: &[&str], arguments: &[&str]) -> String {
        let path = format!("bin/{}", self.name);
        let mut command = match side {
            Side::Native => Command::new(self.root().join(path)),
            Side::Enclave => {
                let mut command = Command::new(bulla());
                command.arg("run").args(platform_options()).args(options);
                command.arg("--rootfs").arg(self.root());
                command.arg(format!("/{path}")).args(arguments);
                command
            }
        };
        let log = format!("output-{side:?}");
        run(&mut command, self.directory.path().join(log))
    }
}

/// Runs a command to its end and returns what it wrote; kills it at the limit.
fn run(command: &mut Command, log: PathBuf) -> String {
    let file = std::fs::File::create(&log).expect("a file for the output");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("a second descriptor"))
        .stderr(file)
        .spawn()
        .expect("the program starts");
    let start = Instant::now();
    while child.try_wait().expect("a child to wait for").is_none() {
        if start.elapsed() > LIMIT {
            child.kill().expect("a child to kill");
            child.wait().expect("a child to wait for");
            let output = std::fs::read_to_string(&log).unwrap_or_default();
            panic!("no end after {LIMIT:?}:\n{output}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::read_to_string(&log).expect("the output is text")
}
