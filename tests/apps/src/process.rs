//! Processes with a limit: whatever happens, they end.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Native,
    Enclave,
}

/// The sides to run: both, unless BULLA_TEST_SIDE names one.
pub fn sides() -> Vec<Side> {
    match std::env::var("BULLA_TEST_SIDE").as_deref() {
        Ok("native") => vec![Side::Native],
        Ok("enclave") => vec![Side::Enclave],
        _ => vec![Side::Native, Side::Enclave],
    }
}

/// What a program left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    pub stdout: String,
    /// Without bulla's own lines.
    pub stderr: String,
    /// Bulla's own lines.
    pub messages: String,
    /// `None` after a signal.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub took: Duration,
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (_, signal) => write!(f, "signal {}", signal.unwrap_or(0))?,
        }
        writeln!(f, " after {:.2} s", self.took.as_secs_f64())?;
        writeln!(
            f,
            "stdout: {}\nstderr: {}",
            tail(&self.stdout),
            tail(&self.stderr)
        )?;
        write!(f, "bulla: {}", tail(&self.messages))
    }
}

/// The end of a long text.
pub(crate) fn tail(text: &str) -> String {
    const LINES: usize = 40;
    let lines: Vec<&str> = text.lines().collect();
    match lines.len() {
        count if count > LINES => format!("…\n{}", lines[count - LINES..].join("\n")),
        _ => lines.join("\n"),
    }
}

/// A child in a process group of its own, with its output collected.
pub(crate) struct Running {
    pub child: Child,
    started: Instant,
    stdout: Collector,
    stderr: Collector,
}

impl Running {
    pub fn start(mut command: Command) -> Running {
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let stdout = Collector::start(child.stdout.take());
        let stderr = Collector::start(child.stderr.take());
        Running {
            child,
            started: Instant::now(),
            stdout,
            stderr,
        }
    }

    /// Waits; `None` when it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        let mut pause = Duration::from_micros(200);
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < end => thread::sleep(pause),
                Ok(None) => return None,
                Err(error) => panic!("cannot wait for a child: {error}"),
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Sends a signal to the program itself (not its group).
    pub fn signal(&self, signal: &str) {
        kill(signal, &self.child.id().to_string());
    }

    /// Ends everything in the group.
    pub fn kill(&mut self) {
        kill("KILL", &format!("-{}", self.child.id()));
        let _ = self.child.wait();
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        format!(
            "stdout: {}\nstderr: {}",
            tail(&self.stdout.text()),
            tail(&self.stderr.text())
        )
    }

    pub fn finish(self, status: ExitStatus) -> Finished {
        let took = self.started.elapsed();
        let stderr = self.stderr.finish();
        let (messages, stderr): (Vec<&str>, Vec<&str>) =
            stderr.lines().partition(|line| line.starts_with("bulla: "));
        Finished {
            stdout: self.stdout.finish(),
            stderr: stderr.join("\n"),
            messages: messages.join("\n"),
            code: status.code(),
            signal: status.signal(),
            took,
        }
    }
}

fn kill(signal: &str, target: &str) {
    let _ = Command::new("kill")
        .args(["-s", signal, "--", target])
        .status();
}

/// Runs a command to its end, or kills it and panics.
pub(crate) fn run(command: Command, stdin: Option<&[u8]>, limit: Duration, side: Side) -> Finished {
    let shown = format!("{command:?}");
    let mut running = Running::start(command);
    if let (Some(bytes), Some(mut pipe)) = (stdin, running.child.stdin.take()) {
        let bytes = bytes.to_vec();
        // Detached: a program that never reads must not block us.
        thread::spawn(move || {
            let _ = pipe.write_all(&bytes);
        });
    }
    match running.wait(limit) {
        Some(status) => running.finish(status),
        None => {
            running.kill();
            panic!(
                "{side:?}: still running after {} s: {shown}\n{}",
                limit.as_secs(),
                running.output()
            );
        }
    }
}

/// Reads a pipe to its end in the background.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn start(pipe: Option<impl Read + Send + 'static>) -> Collector {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = bytes.clone();
        let thread = pipe.map(|mut pipe| {
            thread::spawn(move || {
                let mut buffer = [0; 64 << 10];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
                    sink.extend_from_slice(&buffer[..count]);
                }
            })
        });
        Collector { bytes, thread }
    }

    fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Everything, once the pipe is closed; a background process that holds it open is not waited
    /// for.
    fn finish(self) -> String {
        if let Some(thread) = &self.thread {
            let end = Instant::now() + Duration::from_secs(2);
            while !thread.is_finished() && Instant::now() < end {
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.text()
    }
}
