//! Runs tests of the Linux Test Project (LTP) natively and in the enclave, and compares with what
//! is expected.
//!
//! - `tags.tsv`: the tests, a tag and a command each; all pass natively. `beyond.tsv`: more of them,
//!   which are not in the list that the project is measured by and found faults.
//! - `expected.tsv`: where the enclave may differ: tag, outcome, and the reason.
//! - `build-ltp.sh` builds LTP and the files it runs in; see [`Suite::open`].
//!
//! Natively a test runs in a chroot under a throw-away overlay, in namespaces of its own, with the
//! privileges of a container's root (Docker's). What does not pass there is not compared. In the
//! enclave it is the child of a shell: LTP's library takes a parent with process id 1 for a sign
//! that its test is gone.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bulla_test_apps::{Side, bulla, platform_options};

/// The longest that one test may take. LTP's own limit is 30 s for most.
const LIMIT: Duration = Duration::from_secs(90);
/// What LTP exits with when a test does not apply (TCONF).
const NOT_APPLICABLE: i32 = 32;
/// What `bulla` exits with when the runtime itself failed.
const RUNTIME_FAILED: i32 = 125;
/// The privileges of a container's root, as Docker gives them: what the enclave's root has too.
/// Nothing among them lets a test change this machine.
const KEPT: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,\
                    +net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Pass,
    Fail,
    /// The test says that it does not apply here.
    Skip,
    /// Still running at the limit.
    Hang,
    /// The runtime stopped.
    Crash,
}

impl Outcome {
    fn parse(text: &str) -> Option<Outcome> {
        Some(match text {
            "pass" => Outcome::Pass,
            "fail" => Outcome::Fail,
            "skip" => Outcome::Skip,
            "hang" => Outcome::Hang,
            _ => return None,
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Pass => "pass",
            Outcome::Fail => "fail",
            Outcome::Skip => "skip",
            Outcome::Hang => "hang",
            Outcome::Crash => "crash",
        })
    }
}

/// A test: its name and the command that runs it.
#[derive(Clone, Debug)]
pub struct Tag {
    pub name: String,
    pub command: String,
}

/// What the enclave may do instead of passing, and why.
#[derive(Clone, Debug)]
pub struct Difference {
    /// `None` where it varies with the machine's load.
    pub outcome: Option<Outcome>,
    pub reason: String,
}

/// A tag's results.
#[derive(Clone, Debug)]
pub struct Report {
    pub tag: Tag,
    pub native: Option<Outcome>,
    pub enclave: Option<Outcome>,
}

/// LTP, built, and the lists.
pub struct Suite {
    root: PathBuf,
    logs: PathBuf,
    pub tags: Vec<Tag>,
    /// Tests beyond the list.
    pub beyond: Vec<Tag>,
    pub differences: HashMap<String, Difference>,
}

impl Suite {
    /// Finds LTP and reads the lists. The error says what to do.
    pub fn open() -> Result<Suite, String> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = root();
        if !root.join("opt/ltp/ready").exists() {
            return Err(format!(
                "LTP is not built in {}: run tests/conformance/build-ltp.sh [SOURCE], where SOURCE \
                 is a copy or clone of https://github.com/linux-test-project/ltp; without it the \
                 script clones that address",
                root.display()
            ));
        }
        let logs = here.join("../../target/conformance");
        fs::create_dir_all(&logs).map_err(|error| format!("{}: {error}", logs.display()))?;
        Ok(Suite {
            root,
            logs,
            tags: tags(&here.join("tags.tsv"))?,
            beyond: tags(&here.join("beyond.tsv"))?,
            differences: differences(&here.join("expected.tsv"))?,
        })
    }

    /// Runs one test on one side. Its output is in `target/conformance/TAG.SIDE.log`.
    pub fn run(&self, tag: &Tag, side: Side) -> Outcome {
        let name = match side {
            Side::Native => "native",
            Side::Enclave => "enclave",
        };
        let path = self.logs.join(format!("{}.{name}.log", tag.name));
        let log = File::create(&path).expect("a log file");
        let mut command = match side {
            Side::Native => self.native(&tag.command),
            Side::Enclave => self.enclave(&tag.command),
        };
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second descriptor"))
            .stderr(log)
            .process_group(0);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let code = wait(&mut child);
        // Whatever the test left behind.
        kill_group(&child);
        let _ = child.wait();
        match code {
            None => Outcome::Hang,
            Some(Some(0)) => Outcome::Pass,
            Some(Some(NOT_APPLICABLE)) => Outcome::Skip,
            Some(Some(RUNTIME_FAILED)) if side == Side::Enclave => Outcome::Crash,
            Some(_) => Outcome::Fail,
        }
    }

    fn enclave(&self, test: &str) -> Command {
        let mut command = Command::new(bulla());
        command.args(["run", "--quiet"]).args(platform_options());
        for (name, value) in environment() {
            command.arg("-e").arg(format!("{name}={value}"));
        }
        command.args(["-w", "/tmp", "--rootfs"]).arg(&self.root);
        command.args(["/bin/sh", "-c", &format!("{test}; exit $?")]);
        command
    }

    fn native(&self, test: &str) -> Command {
        const SCRIPT: &str = "set -e
            work=$(mktemp -d)
            mount -t tmpfs tmpfs \"$work\"
            mkdir \"$work/upper\" \"$work/work\" \"$work/root\"
            mount -t overlay overlay -o \
                \"lowerdir=$0,upperdir=$work/upper,workdir=$work/work\" \"$work/root\"
            mount -t proc proc \"$work/root/proc\"
            mount --rbind /dev \"$work/root/dev\"
            mount -t tmpfs tmpfs \"$work/root/dev/shm\"
            cd \"$work/root\"
            setpriv --bounding-set \"$1\" env -i \"$3\" \"$4\" \"$5\" \"$6\" \"$7\" \"$8\" \
                /usr/sbin/chroot . /bin/sh -c \"cd /tmp; $2; exit \\$?\"
            exit $?";
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
        ]);
        command.args(["--propagation", "private", "sh", "-c", SCRIPT]);
        command.arg(&self.root).arg(KEPT).arg(test);
        for (name, value) in environment() {
            command.arg(format!("{name}={value}"));
        }
        command
    }

    /// Runs tests on the sides, a few at a time, and calls `done` with each result.
    pub fn run_all(
        &self,
        tags: &[Tag],
        sides: &[Side],
        done: impl Fn(&Report) + Sync,
    ) -> Vec<Report> {
        let next = AtomicUsize::new(0);
        let reports = Mutex::new(Vec::new());
        let workers = thread::available_parallelism().map_or(2, usize::from) + 1;
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some(tag) = tags.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let on = |side| sides.contains(&side).then(|| self.run(tag, side));
                        let report = Report {
                            tag: tag.clone(),
                            native: on(Side::Native),
                            enclave: on(Side::Enclave),
                        };
                        done(&report);
                        let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
                        reports.push(report);
                    }
                });
            }
        });
        let mut reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
        reports.sort_by(|a, b| a.tag.name.cmp(&b.tag.name));
        reports
    }

    /// What is wrong with a report, if anything: an outcome in the enclave that is not expected.
    pub fn judge(&self, report: &Report) -> Option<String> {
        let name = &report.tag.name;
        let enclave = report.enclave?;
        if report.native.is_some_and(|native| native != Outcome::Pass) {
            // Nothing to compare with; but the runtime must stand.
            return (enclave == Outcome::Crash).then(|| format!("{name}: the runtime crashes"));
        }
        match self.differences.get(name) {
            None if enclave == Outcome::Pass => None,
            None => Some(format!("{name}: {enclave}, expected pass")),
            Some(Difference { outcome: None, .. }) if enclave != Outcome::Crash => None,
            Some(difference) if difference.outcome == Some(enclave) => None,
            Some(_) if enclave == Outcome::Pass => {
                Some(format!("{name}: passes now; take it out of expected.tsv"))
            }
            Some(difference) => Some(format!(
                "{name}: {enclave}, expected.tsv says otherwise ({})",
                difference.reason
            )),
        }
    }
}

/// The directory that `build-ltp.sh` makes.
fn root() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = absolute("BULLA_TEST_CACHE").unwrap_or_else(|| {
        absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(std::env::temp_dir)
            .join("bulla-tests")
    });
    cache.join("ltp/root")
}

fn environment() -> [(&'static str, &'static str); 6] {
    [
        (
            "PATH",
            "/opt/ltp/testcases/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        ("LTPROOT", "/opt/ltp"),
        ("TMPDIR", "/tmp"),
        ("LTP_COLORIZE_OUTPUT", "n"),
        ("HOME", "/root"),
        ("LANG", "C"),
    ]
}

/// `None` at the limit; else the exit code, `None` after a signal.
fn wait(child: &mut Child) -> Option<Option<i32>> {
    let start = Instant::now();
    loop {
        match child.try_wait().expect("a child to wait for") {
            Some(status) => return Some(status.code()),
            None if start.elapsed() > LIMIT => return None,
            None => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn kill_group(child: &Child) {
    let _ = Command::new("kill")
        .args(["-s", "KILL", "--", &format!("-{}", child.id())])
        .stderr(Stdio::null())
        .status();
}

fn lines(path: &Path) -> Result<Vec<Vec<String>>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let used = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(used
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect())
}

/// A list of tests: a tag, a tab, a command.
pub fn tags(path: &Path) -> Result<Vec<Tag>, String> {
    lines(path)?
        .into_iter()
        .map(|fields| match &fields[..] {
            [name, command, ..] => Ok(Tag {
                name: name.clone(),
                command: command.clone(),
            }),
            _ => Err(format!("{}: a line without a command", path.display())),
        })
        .collect()
}

fn differences(path: &Path) -> Result<HashMap<String, Difference>, String> {
    lines(path)?
        .into_iter()
        .map(|fields| match &fields[..] {
            [name, outcome, reason] if !reason.trim().is_empty() => {
                let outcome = match outcome.as_str() {
                    "varies" => None,
                    other => Some(
                        Outcome::parse(other)
                            .ok_or_else(|| format!("{name}: unknown outcome {other}"))?,
                    ),
                };
                let reason = reason.clone();
                Ok((name.clone(), Difference { outcome, reason }))
            }
            _ => Err(format!(
                "{}: tag, outcome and reason are needed: {fields:?}",
                path.display()
            )),
        })
        .collect()
}
