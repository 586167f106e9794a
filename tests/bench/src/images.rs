//! Confidential images: how long until their program runs, whatever their size, and how fast their
//! files are read and verified.

use std::fs::File;
use std::io::{Read, copy};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use bulla_test_apps::{bulla, image, platform_options};

use crate::model::Counters;
use crate::row::{BOTH, Figures, Party, Row, Target, Unit};
use crate::{Job, Settings};

/// The class of machine that the promise is for is this one.
const START: Target = Target::Milliseconds(150.0);
const FILE: u64 = 512 << 20;

pub fn jobs() -> Vec<Job> {
    let start = |name: &'static str, bytes| {
        Job::new(name, 180, move |settings| {
            let built = Built::new(bytes)?;
            built.starts(name, settings)
        })
    };
    let read = "read 512 MiB from a confidential image, cold";
    vec![
        start("start of a confidential image of 50 MB", 48 << 20),
        start("start of a confidential image of 1.5 GB", 1430 << 20),
        Job::new(read, 120, move |settings| {
            Built::new(FILE)?.reads(read, settings)
        }),
    ]
}

/// A confidential image with busybox and a file, in a cache of its own.
struct Built {
    directory: tempfile::TempDir,
}

impl Built {
    fn new(bytes: u64) -> Result<Built, String> {
        let failed = |error: std::io::Error| error.to_string();
        let directory = tempfile::tempdir().map_err(failed)?;
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("bin")).map_err(failed)?;
        let busybox = image("busybox").rootfs.join("bin/busybox");
        std::fs::copy(busybox, root.join("bin/busybox")).map_err(failed)?;
        let mut random = File::open("/dev/urandom").map_err(failed)?.take(bytes);
        let mut file = File::create(root.join("file")).map_err(failed)?;
        copy(&mut random, &mut file).map_err(failed)?;
        let manifest = directory.path().join("bulla.toml");
        let text = "entrypoint = [\"/bin/busybox\"]\n[arguments]\nmode = \"host\"\n";
        std::fs::write(&manifest, text).map_err(failed)?;
        let built = Built { directory };
        let output = built
            .bulla()
            .args(["build", "-t", "bench", "--manifest"])
            .arg(&manifest)
            .arg("--rootfs")
            .arg(&root)
            .output()
            .map_err(failed)?;
        match output.status.success() {
            true => Ok(built),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn bulla(&self) -> Command {
        let mut command = Command::new(bulla());
        command.env("BULLA_CACHE", self.path().join("cache"));
        command
    }

    /// busybox with arguments.
    fn command(&self, party: Party, words: &[&str]) -> Command {
        let mut command = match party {
            Party::Enclave => {
                let mut command = self.bulla();
                command.args(["run", "--stats", "--json"]);
                command.args(platform_options()).arg("bench");
                command
            }
            _ => {
                // Not in a chroot, which would have no /dev/null.
                let root = self.path().join("root");
                let mut command = Command::new(root.join("bin/busybox"));
                command.current_dir(root);
                command
            }
        };
        command.args(words);
        command
    }

    /// From the command to the first byte that the program writes.
    fn starts(&self, name: &str, settings: &Settings) -> Result<Row, String> {
        let mut figures = Figures::default();
        let mut counters = Counters::default();
        // The first run unpacks the image.
        for turn in 0..settings.runs * 2 + 1 {
            for party in BOTH {
                let mut command = self.command(party, &["echo", "x"]);
                let start = Instant::now();
                let mut child = command
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .map_err(|error| error.to_string())?;
                let mut byte = [0];
                let stdout = child.stdout.as_mut().ok_or("no standard output")?;
                let read = stdout.read_exact(&mut byte);
                let took = start.elapsed().as_nanos() as f64;
                let output = child
                    .wait_with_output()
                    .map_err(|error| error.to_string())?;
                let said = String::from_utf8_lossy(&output.stderr);
                read.map_err(|error| format!("{party:?}: {error}\n{said}"))?;
                if turn > 0 {
                    figures.add(party, took);
                }
                if let Some(counted) = Counters::parse(&said) {
                    counters = counted;
                }
            }
        }
        figures.row(name, counters, START, Unit::Time)
    }

    /// Reading the file once, which is the first time in each enclave, beyond start and end.
    fn reads(&self, name: &str, settings: &Settings) -> Result<Row, String> {
        let mut figures = Figures::default();
        let mut counters = Counters::default();
        // The first run unpacks the image.
        self.time(Party::Enclave, &["true"])?;
        for _ in 0..settings.runs {
            for party in BOTH {
                let (idle, before) = self.time(party, &["true"])?;
                let words = ["dd", "if=file", "of=/dev/null", "bs=1M"];
                let (took, after) = self.time(party, &words)?;
                let seconds = (took - idle).max(1e-9);
                figures.add(party, FILE as f64 / 1e6 / seconds);
                if let (Some(before), Some(after)) = (before, after) {
                    counters = after.minus(before).per(FILE as f64 / 1e6);
                }
            }
        }
        let target = Target::Throughput(1000.0);
        figures.row(name, counters, target, Unit::MegabytesPerSecond)
    }

    /// Seconds that busybox takes, and what was counted.
    fn time(&self, party: Party, words: &[&str]) -> Result<(f64, Option<Counters>), String> {
        let mut command = self.command(party, words);
        let start = Instant::now();
        let output = command.output().map_err(|error| error.to_string())?;
        let seconds = start.elapsed().as_secs_f64();
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => Ok((seconds, Counters::parse(&said))),
            false => Err(format!("{party:?}: {said}")),
        }
    }
}
