//! Debian's etcd, started here.

use super::b64;
use serde_json::Value;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Etcd {
    pub members: Vec<Child>,
    pub endpoints: Vec<String>,
    dir: tempfile::TempDir,
    starts: Vec<Vec<String>>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Etcd {
    pub fn start(count: usize) -> Etcd {
        let dir = tempfile::tempdir().unwrap();
        let listeners: Vec<_> = (0..count * 2)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let urls: Vec<String> = listeners
            .iter()
            .map(|listener| format!("http://{}", listener.local_addr().unwrap()))
            .collect();
        drop(listeners);
        let (endpoints, peers) = urls.split_at(count);
        let cluster: Vec<String> = (0..count).map(|n| format!("m{n}={}", peers[n])).collect();
        let starts = (0..count)
            .map(|n| {
                let member = dir.path().join(format!("m{n}"));
                let words = [
                    ["--name", &format!("m{n}")],
                    ["--data-dir", member.to_str().unwrap()],
                    ["--listen-client-urls", &endpoints[n]],
                    ["--advertise-client-urls", &endpoints[n]],
                    ["--listen-peer-urls", &peers[n]],
                    ["--initial-advertise-peer-urls", &peers[n]],
                    ["--initial-cluster", &cluster.join(",")],
                ];
                words
                    .concat()
                    .iter()
                    .map(|word| (*word).to_owned())
                    .collect()
            })
            .collect();
        let mut etcd = Etcd {
            members: Vec::new(),
            endpoints: endpoints.to_vec(),
            dir,
            starts,
        };
        etcd.go_on();
        etcd
    }

    /// Starts all members on what they have.
    pub fn go_on(&mut self) {
        self.members = self
            .starts
            .iter()
            .map(|words| {
                Command::new("etcd")
                    .args(words)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("etcd: install etcd-server")
            })
            .collect();
        let patience = Instant::now() + Duration::from_secs(60);
        while !self.ctl(&["endpoint", "health"], b"").status.success() {
            assert!(Instant::now() < patience, "etcd does not become healthy");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn kill(&mut self) {
        for mut member in self.members.drain(..) {
            let _ = member.kill();
            let _ = member.wait();
        }
    }

    /// Where it keeps everything; what a backup is made of.
    pub fn directory(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub fn ctl(&self, words: &[&str], input: &[u8]) -> std::process::Output {
        use std::io::Write;
        let mut child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoints.join(",")))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcdctl: install etcd-client");
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// The one entry whose key ends so: key and value.
    pub fn entry(&self, suffix: &str) -> (String, Vec<u8>) {
        let output = self.ctl(&["get", "/bulla", "--prefix", "-w", "json"], b"");
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        all["kvs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|kv| {
                (
                    String::from_utf8(b64(&kv["key"])).unwrap(),
                    b64(&kv["value"]),
                )
            })
            .find(|(key, _)| key.ends_with(suffix))
            .unwrap_or_else(|| panic!("no {suffix}"))
    }
}
