//! Further services of Debian, as their packages make them: proxies, brokers, stores, mail, remote
//! shells. Each script starts a service, uses it with its own clients, and stops it.

use bulla_test_apps::{Program, free_port};

/// Runs a script on both sides with four free ports as `$0` to `$3`, and demands these lines, in
/// this order, besides equality.
fn expect(script: &str, lines: &[&str]) {
    let ports: Vec<String> = (0..4).map(|_| free_port().to_string()).collect();
    let mut argv = vec!["bash", "-c", script];
    argv.extend(ports.iter().map(String::as_str));
    let finished = Program::new("services", &argv)
        .env("LANG", "C.UTF-8")
        .limit(240)
        .compare();
    assert_eq!(finished.code, Some(0), "{finished}");
    let mut output = finished.stdout.lines();
    for line in lines {
        assert!(
            output.any(|found| found.trim() == *line),
            "no line {line:?} (in this order) in {finished}"
        );
    }
}

#[test]
#[ignore = "makes a large image"]
fn haproxy_balances_checks_and_reloads() {
    let script = include_str!("../scripts/services/haproxy.sh");
    expect(script, &["2 A", "403", "2 200", "3 B", "ended 0"]);
}

#[test]
#[ignore = "makes a large image"]
fn squid_caches() {
    let script = include_str!("../scripts/services/squid.sh");
    expect(script, &["z 0", "page", "X-Cache: HIT", "503", "ended 0"]);
}

#[test]
#[ignore = "makes a large image"]
fn mosquitto_publishes_and_keeps() {
    let script = include_str!("../scripts/services/mosquitto.sh");
    expect(script, &["a/1 m1", "a/3 m3", "ended 0", "kept"]);
}

#[test]
#[ignore = "makes a large image"]
fn etcd_stores_watches_and_recovers() {
    let script = include_str!("../scripts/services/etcd.sh");
    expect(script, &["v", "PUT", "SUCCESS", "v2", "137", "v2"]);
}

#[test]
#[ignore = "makes a large image"]
fn prometheus_scrapes_and_answers() {
    let script = include_str!("../scripts/services/prometheus.sh");
    expect(script, &["self 1", "True", "ended 0", "1"]);
}

#[test]
#[ignore = "makes a large image"]
fn postfix_delivers() {
    let script = include_str!("../scripts/services/postfix.sh");
    expect(script, &["250", "body2", "hello body"]);
}

#[test]
#[ignore = "makes a large image"]
fn openssh_and_rsync() {
    let script = include_str!("../scripts/services/ssh.sh");
    let lines = ["9", "pty", "scp", "tunnel", "rsync", "daemon"];
    expect(script, &lines);
}
