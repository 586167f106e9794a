//! Runs small C programs that check what Linux promises, first on this machine, then in the
//! enclave. A program passes natively, or it is the program that is wrong.
//!
//! Each program in `programs/` prints `name: ok`, or a line per failed check. They are linked
//! statically by the machine's C compiler. BULLA_TEST_SIDE=native or enclave runs one side only;
//! BULLA_BIN names a ready `bulla`.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulla_test_apps::{Side, bulla, platform_options, sides};

/// The longest that one program may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Compiles `programs/NAME.c` and runs it on both sides.
pub fn check(name: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("programs")
        .join(format!("{name}.c"));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let root = directory.path().join("root");
    std::fs::create_dir_all(root.join("bin")).expect("a directory for the program");
    let program = root.join("bin").join(name);
    let compiled = Command::new("cc")
        .args(["-O1", "-static", "-pthread", "-o"])
        .arg(&program)
        .arg(&source)
        .status()
        .expect("a C compiler (package gcc)");
    assert!(compiled.success(), "{name}.c does not compile");
    for side in sides() {
        let mut command = match side {
            Side::Native => Command::new(&program),
            Side::Enclave => {
                let mut command = Command::new(bulla());
                command
                    .arg("run")
                    .args(platform_options())
                    .arg("--rootfs")
                    .arg(&root);
                command.arg(format!("/bin/{name}"));
                command
            }
        };
        let output = run(&mut command, directory.path().join("output"));
        assert!(
            output.lines().any(|line| line == format!("{name}: ok")),
            "{name} fails ({side:?}):\n{output}"
        );
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
