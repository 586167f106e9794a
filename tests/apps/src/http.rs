//! A small HTTP client, and `wrk`.

use crate::Server;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// GET, and the status and body of the answer.
pub fn get(port: u16, path: &str) -> (u16, String) {
    let attempt = || -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        Ok((status.unwrap_or(0), body.to_owned()))
    };
    attempt().unwrap_or_else(|error| panic!("GET {path} on port {port}: {error}"))
}

/// What `wrk` counted.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub requests: u64,
    pub per_second: f64,
    /// Errors of connections and answers other than 2xx and 3xx.
    pub errors: u64,
}

/// Loads the server with `wrk`.
pub fn wrk(server: &Server, path: &str, connections: u32, seconds: u32) -> Load {
    let (connections, duration) = (connections.to_string(), format!("{seconds}s"));
    let url = format!("http://127.0.0.1:{}{path}", server.port);
    let text = server.client(&[
        "wrk",
        "-t",
        "1",
        "-c",
        &connections,
        "-d",
        &duration,
        "--timeout",
        "10s",
        &url,
    ]);
    let number = |line: &str, at: usize| {
        let word = line.split_whitespace().nth(at).unwrap_or("");
        word.trim_end_matches(',').parse::<f64>().unwrap_or(0.0)
    };
    let mut load = Load {
        requests: 0,
        per_second: 0.0,
        errors: 0,
    };
    for line in text.lines() {
        if line.contains("requests in") {
            load.requests = number(line, 0) as u64;
        } else if line.contains("Requests/sec") {
            load.per_second = number(line, 1);
        } else if line.contains("Socket errors") {
            load.errors += [3, 5, 7, 9]
                .iter()
                .map(|&at| number(line, at) as u64)
                .sum::<u64>();
        } else if let Some((_, count)) = line.split_once("Non-2xx or 3xx responses:") {
            load.errors += count.trim().parse::<u64>().unwrap_or(1);
        }
    }
    load
}
