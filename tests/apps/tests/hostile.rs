//! A host that lies (`bulla run --hostile-host SEED`; what a seed means is told in
//! crates/loader/src/hostile.rs). It may stop the container, with a clear message, or let it fail;
//! it must not make the runtime crash, nor keep a container for ever that it does not keep from
//! being woken.

use bulla_test_apps::{Side, bulla, image, sides};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SHELL: &str = "for i in 1 2 3 4 5 6; do echo $i | cat | wc -c; done; ls -R /etc > /tmp/list; \
    for i in 1 2 3; do ip addr; ip route; ifconfig -a; cat /proc/net/dev /sys/class/net/*/mtu; done \
    > /tmp/network 2>&1; sleep 0.01 & wait; wc -l < /tmp/list";

const PYTHON: &str = "
import os, socket, subprocess, threading
threads = [threading.Thread(target=lambda: sum(range(1000))) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(subprocess.run(['/bin/echo', 'hi'], capture_output=True).stdout)
pid = os.fork()
if pid == 0: os._exit(3)
print(os.waitpid(pid, 0)[1])
a = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(a.getsockname())
d, _ = a.accept(); c.sendall(b'x' * 5000); print(len(d.recv(9000)))
print(len([socket.if_nameindex() for _ in range(8)]))
print(open('/etc/passwd').read()[:4])";

/// Longest time for a container that nothing keeps from being woken.
const LIMIT: Duration = Duration::from_secs(60);
/// Time for one that the host may keep asleep, before it is asked to end.
const PATIENCE: Duration = Duration::from_secs(4);

fn start(seed: u64, profile: &str, words: &[&str], name: &'static str) -> Child {
    let mut command = Command::new(bulla());
    command
        .args([
            "run",
            "--quiet",
            "--platform",
            "emulated",
            "--profile",
            profile,
        ])
        .args(["--hostile-host", &seed.to_string(), "--rootfs"])
        .arg(&image(name).rootfs)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start bulla: {error}"))
}

/// Waits for the end, collecting what is written to standard error; `None` when it takes too long.
fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            Ok(None) => return None,
            Err(error) => panic!("cannot wait for bulla: {error}"),
        }
    }
}

/// One container on one lying host.
fn run(seed: u64, profile: &str, words: &[&str], name: &'static str) {
    let mut child = start(seed, profile, words, name);
    let mut stderr = child.stderr.take().expect("it is piped");
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stderr, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let about_waiting = seed.is_multiple_of(3);
    let limit = if about_waiting { PATIENCE } else { LIMIT };
    let mut status = wait(&mut child, limit);
    if status.is_none() && about_waiting {
        // Asleep for ever, as the host wants it. Whoever runs it can still end it.
        for _ in 0..3 {
            let id = child.id().to_string();
            let _ = Command::new("kill").args(["-TERM", &id]).status();
            std::thread::sleep(Duration::from_millis(100));
        }
        status = wait(&mut child, Duration::from_secs(20));
    }
    if status.is_none() {
        let _ = child.kill();
    }
    let text = reader.join().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(12)..].join("\n");
    let about = format!("seed {seed}, {profile}, {name}:\n{end}");
    let status = status.unwrap_or_else(|| panic!("does not end: {about}"));
    // 125 and a reason, or whatever the program made of it; but the loader itself never dies.
    assert_eq!(status.signal(), None, "the loader crashed: {about}");
    if status.code() == Some(125) {
        let told = lines
            .iter()
            .any(|line| line.starts_with("bulla: ") && !line.starts_with("bulla: hostile"));
        assert!(told, "no reason given: {about}");
    }
    // A host that gives no memory may end the container where the kernel's own heap cannot grow, while
    // a call is in progress that was admitted before; the reason says so.
    let no_memory = text.contains("the runtime's memory is used up");
    assert!(!text.contains("panicked at") || no_memory, "{about}");
}

fn run_all(seeds: impl Iterator<Item = u64>) {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    const PROFILES: [&str; 4] = ["full", "dcsv3-6.8", "dcsv3-5.15", "dcsv2"];
    for seed in seeds {
        let profile = PROFILES[(seed / 2 % 4) as usize];
        match seed % 2 {
            0 => run(seed, profile, &["/bin/sh", "-c", SHELL], "busybox"),
            _ => run(seed, profile, &["python3", "-c", PYTHON], "python"),
        }
    }
}

// Four tests, so that they run side by side.
#[test]
fn lies_first_part() {
    run_all(1000..1011);
}

#[test]
fn lies_second_part() {
    run_all(1011..1022);
}

#[test]
fn lies_third_part() {
    run_all(1022..1033);
}

#[test]
fn lies_fourth_part() {
    run_all(1033..1044);
}

#[test]
#[ignore = "takes several minutes"]
fn many_lies() {
    run_all(2000..2400);
}
