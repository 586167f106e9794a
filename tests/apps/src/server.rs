//! Programs that listen on a port.

use crate::process::{Finished, Running, Side};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A running server; killed when it is dropped.
pub struct Server {
    running: Option<Running>,
    side: Side,
    pub port: u16,
    limit: Duration,
}

impl Server {
    /// Starts a command; ready when `port` accepts connections.
    pub fn start(mut command: Command, side: Side, port: u16, limit: Duration) -> Server {
        command.stdin(Stdio::null());
        let shown = format!("{command:?}");
        let mut running = Running::start(command);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let end = Instant::now() + limit;
        while TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err() {
            let ended = running.wait(Duration::from_millis(20));
            if ended.is_some() || Instant::now() > end {
                running.kill();
                let output = running.output();
                panic!("{side:?}: not listening on port {port} ({ended:?}): {shown}\n{output}");
            }
        }
        Server {
            running: Some(running),
            side,
            port,
            limit,
        }
    }

    pub fn side(&self) -> Side {
        self.side
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        self.running.as_ref().map_or(String::new(), Running::output)
    }

    /// Sends SIGTERM and waits for its end.
    pub fn stop(mut self) -> Finished {
        let Some(mut running) = self.running.take() else {
            panic!("stopped twice");
        };
        running.signal("TERM");
        match running.wait(self.limit.min(Duration::from_secs(20))) {
            Some(status) => running.finish(status),
            None => {
                running.kill();
                panic!(
                    "{:?}: did not stop on SIGTERM\n{}",
                    self.side,
                    running.output()
                );
            }
        }
    }

    /// Runs a client program against it and returns its standard output.
    pub fn client(&self, argv: &[&str]) -> String {
        let output = Command::new("timeout")
            .arg(self.limit.as_secs().to_string())
            .args(argv)
            .output()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", argv[0]));
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{:?}: client {argv:?} failed ({}):\n{stdout}\n{}\n--- server:\n{}",
            self.side,
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.output()
        );
        stdout
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            running.kill();
        }
    }
}

/// A port that nobody listens on, and that stays this process's: no other test is given it, and no
/// outgoing connection takes it, since it lies below the ports that the kernel hands out.
pub fn free_port() -> u16 {
    const PORTS: Range<u16> = 20_000..32_000;
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let dir = std::env::temp_dir().join("bulla-test-ports");
    std::fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let first = std::process::id() as usize * 31 % PORTS.len();
    for port in PORTS.cycle().skip(first).take(PORTS.len()) {
        let lock = File::create(dir.join(port.to_string()));
        let lock = lock.unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            held.push(lock);
            return port;
        }
    }
    panic!("no free port of {PORTS:?}");
}

/// One command to Redis, and its reply as text (bulk strings without their length).
pub fn redis_command(port: u16, words: &[&str]) -> String {
    let attempt = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        stream.write_all(request.as_bytes())?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some(len) = line
            .strip_prefix('$')
            .and_then(|len| len.trim().parse::<usize>().ok())
        else {
            return Ok(line.trim_end().to_owned());
        };
        let mut bytes = vec![0; len];
        reader.read_exact(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    attempt().unwrap_or_else(|error| panic!("redis {words:?}: {error}"))
}
