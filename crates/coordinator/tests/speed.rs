//! How fast the coordinator is: `cargo test --release -p bulla-coordinator --test speed -- --ignored
//! --nocapture`, alone on a machine. Quotes are real ones of an emulated platform, verified to
//! their root with collateral in memory; the coordinator is a process of its own.

mod common;

use bulla_coordinator::api::marble::ActivationReq;
use bulla_coordinator::attested::Verifier;
use bulla_coordinator::client::marble::activate;
use bulla_coordinator::client::{Identity, Trust, connect};
use common::machine::Machine;
use common::{Server, TestPlatform};
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHILD: &str = "BULLA_SPEED_CHILD";
/// Requests that are on their way at once.
const AT_ONCE: usize = 16;
/// Activations for one figure.
const SAMPLE: usize = 1500;
/// What the issue asks for.
const ACTIVATIONS_PER_SECOND: f64 = 300.0;
const STATUS_P99: Duration = Duration::from_millis(20);
const MEMORY_KIB: u64 = 100 << 10;

/// The coordinator; says where it is, and runs until its input ends.
#[test]
fn server_child() {
    let Ok(dir) = std::env::var(CHILD) else {
        return;
    };
    let dir = Path::new(&dir);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let verifier = Verifier::new(Some(&dir.join("collateral.json")));
        let server = Server::on(dir, Box::new(verifier), Box::new(TestPlatform)).await;
        println!("\nat {} {}", server.client, server.mesh);
        tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()))
            .await
            .unwrap()
            .unwrap();
    });
}

struct Coordinator {
    child: Child,
    client: String,
    mesh: String,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Coordinator {
    fn start(dir: &Path) -> Coordinator {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server_child", "--nocapture"])
            .env(CHILD, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines
            .find_map(|line| line.unwrap().strip_prefix("at ").map(str::to_owned))
            .unwrap();
        // What it says after that must go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        let (client, mesh) = line.split_once(' ').unwrap();
        Coordinator {
            client: client.to_owned(),
            mesh: mesh.to_owned(),
            child,
        }
    }

    fn status(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Seconds of processor time so far.
    fn processor(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        ticks as f64 / 100.0
    }
}

/// Activates all, some at once; returns the seconds it took.
async fn activate_all(mesh: &str, marbles: Vec<(Identity, ActivationReq)>) -> f64 {
    let next = Arc::new(AtomicUsize::new(0));
    let marbles = Arc::new(marbles);
    let start = Instant::now();
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (next, marbles, mesh) = (next.clone(), marbles.clone(), mesh.to_owned());
            tokio::spawn(async move {
                while let Some((identity, request)) =
                    marbles.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    activate(&mesh, Trust::Any, identity, request)
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    start.elapsed().as_secs_f64()
}

/// How long GET /status takes, on a connection that stays.
async fn status_times(address: &str, count: usize) -> Vec<Duration> {
    let (mut stream, _) = connect(address, Trust::Any, None, b"http/1.1")
        .await
        .unwrap();
    let mut times = Vec::new();
    let mut buffer = [0; 4096];
    for _ in 0..count {
        let start = Instant::now();
        stream
            .write_all(b"GET /api/v2/status HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let length = stream.read(&mut buffer).await.unwrap();
        assert!(buffer[..length].starts_with(b"HTTP/1.1 200"));
        times.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    times.sort();
    times
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: run it alone, with --release and --nocapture"]
async fn activations_status_and_memory() {
    let machine = Machine::new();
    let dir = tempfile::tempdir().unwrap();
    let collateral = machine.provisioning.collateral().to_json();
    std::fs::write(dir.path().join("collateral.json"), collateral).unwrap();
    let coordinator = Coordinator::start(dir.path());
    let rest = bulla_coordinator::client::Rest {
        address: coordinator.client.clone(),
        trust: Trust::Any,
        identity: None,
        token: None,
    };
    let manifest = json!({
        "Packages": {"p": {"SignerID": "88".repeat(32), "ProductID": 5, "SecurityVersion": 6,
            "InsecureAllowEmulated": true}},
        "Marbles": {"m": {"Package": "p", "Parameters": {"Env": {"K": "{{ hex .Secrets.k }}"}}}},
        "Secrets": {"k": {"Type": "symmetric-key", "Size": 256}},
    });
    rest.call("POST", "/manifest", Some(common::manifest_body(&manifest)))
        .await
        .unwrap();
    let mut registered = 0;
    let mut rates = Vec::new();
    let batch = |count: usize| {
        (0..count)
            .map(|_| machine.marble(&uuid::Uuid::new_v4().to_string()))
            .collect::<Vec<_>>()
    };
    for until in [10, 1000, 10_000 - SAMPLE] {
        while registered < until {
            let count = (until - registered).min(SAMPLE);
            activate_all(&coordinator.mesh, batch(count)).await;
            registered += count;
        }
        let before = coordinator.processor();
        let seconds = activate_all(&coordinator.mesh, batch(SAMPLE)).await;
        let each = (coordinator.processor() - before) / SAMPLE as f64;
        registered += SAMPLE;
        let rate = SAMPLE as f64 / seconds;
        println!(
            "from {until} to {registered} marbles: {rate:.0} activations per second beside their \
             clients; {:.2} ms of processor each, so {:.0} per second on two processors",
            each * 1000.0,
            2.0 / each
        );
        rates.push((rate, 2.0 / each));
    }
    let resident = coordinator.status("VmRSS");
    println!("{registered} marbles: {} MiB resident", resident >> 10);
    let quiet = status_times(&coordinator.client, 500).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let marbles = batch(600);
        let (stop, mesh) = (stop.clone(), coordinator.mesh.clone());
        tokio::spawn(async move {
            let mut count = 0;
            let start = Instant::now();
            // A hundred in a second, whatever that takes.
            for (identity, request) in &marbles {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                activate(&mesh, Trust::Any, identity, request)
                    .await
                    .unwrap();
                count += 1;
                let due = Duration::from_millis(10 * count);
                tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
            }
            count as f64 / start.elapsed().as_secs_f64()
        })
    };
    let busy = status_times(&coordinator.client, 500).await;
    stop.store(true, Ordering::Relaxed);
    let load = load.await.unwrap();
    for (name, times) in [("quiet", &quiet), ("under load", &busy)] {
        println!(
            "GET /status, {name}: p50 {:?}, p99 {:?}",
            times[times.len() / 2],
            times[times.len() * 99 / 100]
        );
    }
    println!("the load was {load:.0} activations per second");
    let (first, last) = (rates[0], rates[rates.len() - 1]);
    // Beside the clients, which have the same processors.
    assert!(last.0 >= ACTIVATIONS_PER_SECOND, "too slow: {last:?}");
    assert!(last.1 > first.1 * 0.8, "not flat: {first:?} to {last:?}");
    assert!(busy[busy.len() * 99 / 100] < STATUS_P99);
    assert!(resident < MEMORY_KIB, "{resident} KiB");
}
