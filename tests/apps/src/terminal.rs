//! A program on a pseudo-terminal, driven as a person would: text in, and what to wait for.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::{Program, Side};

/// The longest that one answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A terminal with a session on it.
pub struct Terminal {
    master: File,
    /// Keeps the terminal, and its settings, after the program has ended.
    slave: OwnedFd,
    child: Child,
    side: Side,
    shared: Arc<(Mutex<Output>, Condvar)>,
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    /// What [`Terminal::expect`] has passed.
    seen: usize,
}

impl Terminal {
    /// Starts a program of a test image; the enclave's side with `-it`.
    pub fn start(program: Program, side: Side) -> Terminal {
        let program = program.option(&["-it"]).env("TERM", "xterm");
        Terminal::run(program.command(side), side)
    }

    /// The same for any command.
    pub fn run(command: Command, side: Side) -> Terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a pseudo-terminal");
        grantpt(&master).expect("the right to the terminal");
        unlockpt(&master).expect("an unlocked terminal");
        let name = ptsname(&master, Vec::new()).expect("the terminal's name");
        let slave = || {
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
            let flags = flags | rustix::fs::OFlags::CLOEXEC;
            rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())
                .expect("the terminal's other side")
        };
        let size = size(24, 80);
        tcsetwinsize(&master, size).expect("a window size");
        // setsid makes the terminal the controlling one, and then becomes the program.
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program());
        session.args(command.get_args());
        if let Some(directory) = command.get_current_dir() {
            session.current_dir(directory);
        }
        let child = session
            .stdin(Stdio::from(slave()))
            .stdout(Stdio::from(slave()))
            .stderr(Stdio::from(slave()))
            .spawn()
            .expect("setsid (package util-linux)");
        let master = File::from(master);
        let shared = Arc::new((Mutex::new(Output::default()), Condvar::new()));
        let (mut reader, sink) = (master.try_clone().expect("a second handle"), shared.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                let mut output = sink.0.lock().unwrap_or_else(PoisonError::into_inner);
                output.bytes.extend_from_slice(&buffer[..count]);
                sink.1.notify_all();
            }
        });
        Terminal {
            master,
            slave: slave(),
            child,
            side,
            shared,
        }
    }

    /// Types.
    pub fn send(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("a terminal to type on");
    }

    /// Waits for a text that was not passed before.
    pub fn expect(&mut self, text: &str) {
        let end = Instant::now() + LIMIT;
        let mut output = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let fresh = &output.bytes[output.seen..];
            let found = fresh
                .windows(text.len())
                .position(|window| window == text.as_bytes());
            if let Some(at) = found {
                output.seen += at + text.len();
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let fresh = String::from_utf8_lossy(fresh).into_owned();
                drop(output);
                let _ = self.child.kill();
                panic!(
                    "{:?}: waiting for {text:?}, the terminal shows {fresh:?}",
                    self.side
                );
            }
            let waited = self.shared.1.wait_timeout(output, left);
            output = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Types and waits.
    pub fn step(&mut self, input: &str, answer: &str) {
        self.send(input);
        self.expect(answer);
    }

    /// Changes the window's size.
    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.master, size(rows, columns)).expect("a window size");
    }

    /// The terminal's settings.
    pub fn settings(&self) -> Termios {
        tcgetattr(&self.slave).expect("the terminal's settings")
    }

    /// Process id of the program (of `bulla`, in the enclave).
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end.
    pub fn wait(mut self) -> (ExitStatus, Termios) {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return (status, self.settings());
            }
            if Instant::now() > end {
                let _ = self.child.kill();
                panic!("{:?}: no end", self.side);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
