//! Runs a program of a test image on this machine (natively, in a chroot of the image's files under
//! a throw-away overlay) and in the enclave (`bulla run`), and compares what it says.
//!
//! - [`Program`]: what to run; [`Program::compare`] runs both sides and demands equal output.
//! - [`Server`]: a program that listens; stopped with SIGTERM.
//! - Every run has a hard limit: past it the process group is killed and the tail of its output is
//!   in the panic message.
//!
//! Environment: BULLA_BIN (a ready `bulla`, else it is built), BULLA_TEST_CACHE, and
//! BULLA_TEST_SIDE=native or enclave to run one side only.
#![forbid(unsafe_code)]

pub mod http;
mod images;
mod process;
mod server;
mod terminal;

pub use images::{Image, bulla, image, platform_options};
pub use process::{Finished, Side, sides};
pub use server::{Server, free_port, redis_command};
pub use terminal::Terminal;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A program of a test image and how to run it.
#[derive(Clone, Debug)]
pub struct Program {
    image: &'static str,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    options: Vec<String>,
    stdin: Option<Vec<u8>>,
    limit: Duration,
    archive: bool,
}

impl Program {
    /// A program with arguments, in an image of tests/images.
    pub fn new(image: &'static str, argv: &[&str]) -> Program {
        Program {
            image,
            argv: argv.iter().map(|word| word.to_string()).collect(),
            env: Vec::new(),
            options: Vec::new(),
            stdin: None,
            limit: Duration::from_secs(60),
            archive: false,
        }
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Program {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// An option of `bulla run`, for the enclave's side only.
    pub fn option(mut self, words: &[&str]) -> Program {
        self.options
            .extend(words.iter().map(|word| word.to_string()));
        self
    }

    /// Gives it input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Program {
        self.stdin = Some(bytes.into());
        self
    }

    /// The longest that it may take.
    pub fn limit(mut self, seconds: u64) -> Program {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Run from the docker-archive, with its entry point replaced, instead of the directory.
    pub fn from_archive(mut self) -> Program {
        self.archive = true;
        self
    }

    /// The command for one side, with nothing connected yet.
    pub fn command(&self, side: Side) -> Command {
        let image = image(self.image);
        let mut command = match side {
            Side::Native => native(&image.rootfs),
            Side::Enclave => {
                let mut command = Command::new(bulla());
                command.args(["run", "--quiet"]).args(platform_options());
                command.args(&self.options);
                for (name, value) in &self.env {
                    command.arg("-e").arg(format!("{name}={value}"));
                }
                if self.stdin.is_some() {
                    command.arg("-i");
                }
                if self.archive {
                    command.args(["--entrypoint", ""]).arg(&image.archive);
                } else {
                    command.arg("--rootfs").arg(&image.rootfs);
                }
                command.args(&self.argv);
                return command;
            }
        };
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        command.args([&format!("PATH={path}"), "HOSTNAME=bulla", "HOME=/root"]);
        for (name, value) in &self.env {
            command.arg(format!("{name}={value}"));
        }
        command.args(["/usr/sbin/chroot", "."]).args(&self.argv);
        command
    }

    /// Runs one side to its end.
    pub fn run(&self, side: Side) -> Finished {
        let mut command = self.command(side);
        command.stdin(match self.stdin {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        });
        process::run(command, self.stdin.as_deref(), self.limit, side)
    }

    /// Runs both sides, demands equal standard output and exit code, and returns the last.
    pub fn compare(&self) -> Finished {
        let mut results: Vec<Finished> = sides().into_iter().map(|side| self.run(side)).collect();
        if let [native, enclave] = &results[..] {
            assert!(
                native.code == enclave.code && native.stdout == enclave.stdout,
                "{:?} differs\n--- native: {native}\n--- enclave: {enclave}",
                self.argv
            );
        }
        results.pop().unwrap_or_else(|| panic!("no side was run"))
    }

    /// Runs both sides and demands this output and exit code 0.
    pub fn expect(&self, stdout: &str) {
        let finished = self.compare();
        assert!(
            finished.code == Some(0) && finished.stdout == stdout,
            "{:?}: expected {stdout:?}, got {finished}",
            self.argv
        );
    }

    /// Starts it as a server; ready when `port` accepts connections.
    pub fn serve(&self, side: Side, port: u16) -> Server {
        Server::start(self.command(side), side, port, self.limit)
    }
}

/// A shell that makes a root file system out of the image's files and an overlay in memory, all in
/// a mount namespace that vanishes with it, and then becomes the program. Devices are nodes of its
/// own: a program that changes their mode must not change this machine's.
fn native(rootfs: &Path) -> Command {
    const SCRIPT: &str = "set -e
        work=$(mktemp -d)
        mount -t tmpfs tmpfs \"$work\"
        mkdir \"$work/upper\" \"$work/work\" \"$work/root\"
        mount -t overlay overlay -o \
            \"lowerdir=$0,upperdir=$work/upper,workdir=$work/work\" \"$work/root\"
        mkdir -p \"$work/root/proc\" \"$work/root/dev\" \"$work/root/tmp\"
        mount -t proc proc \"$work/root/proc\"
        mount -t tmpfs -o mode=755 tmpfs \"$work/root/dev\"
        cd \"$work/root/dev\"
        for node in null:3 zero:5 full:7 random:8 urandom:9; do
            mknod -m 666 ${node%:*} c 1 ${node#*:}
        done
        mknod -m 666 tty c 5 0
        mkdir pts shm mqueue
        mount --bind /dev/pts pts
        mount -t tmpfs -o mode=1777 tmpfs shm
        mount -t mqueue mqueue mqueue
        mknod -m 666 ptmx c 5 2
        ln -s /proc/self/fd fd
        for n in 0:stdin 1:stdout 2:stderr; do ln -s /proc/self/fd/${n%:*} ${n#*:}; done
        mkdir -p \"$work/root/etc\"
        [ -e \"$work/root/etc/hosts\" ] || cp /etc/hosts \"$work/root/etc/hosts\"
        cd \"$work/root\"
        exec env -i \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT])
        .arg(rootfs);
    command
}
