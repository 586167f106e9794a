//! Servers under load: throughput of each side, counters per request.

use std::process::Command;

use bulla_test_apps::{Program, Server, Side, free_port, http, image};

use crate::Bench;
use crate::model::Counters;
use crate::programs::runsc;
use crate::row::{Party, Results, Target};

/// A server and its load.
struct Load<'a> {
    name: &'a str,
    image: &'static str,
    /// From a port.
    argv: &'a dyn Fn(&str) -> Vec<String>,
    /// Requests a second, and how many there were.
    drive: &'a dyn Fn(&Server) -> (f64, f64),
    target: Target,
    has_peer: bool,
}

impl Load<'_> {
    fn start(&self, party: Party, port: u16) -> Server {
        let argv = (self.argv)(&port.to_string());
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let program = Program::new(self.image, &words).limit(180);
        match party {
            Party::Native => program.serve(Side::Native, port),
            Party::Enclave => program
                .option(&["--stats", "--json"])
                .serve(Side::Enclave, port),
            Party::Peer => {
                let mut command: Command = runsc();
                command.arg("chroot").arg(image(self.image).rootfs);
                command.args(&argv);
                let limit = std::time::Duration::from_secs(60);
                Server::start(command, Side::Native, port, limit)
            }
        }
    }

    fn measure(&self, bench: &mut Bench) {
        if !bench.wanted(self.name) {
            return;
        }
        let mut results = Results::default();
        let mut counters = Counters::default();
        for _ in 0..bench.runs.min(3) {
            for party in bench.parties() {
                if party == Party::Peer && !self.has_peer {
                    continue;
                }
                let server = self.start(party, free_port());
                let (rate, requests) = (self.drive)(&server);
                let finished = server.stop();
                match rate > 0.0 {
                    true => results.add(party, rate),
                    false => bench.problem(format!("{}: {party:?}: {finished}", self.name)),
                }
                if party == Party::Enclave {
                    counters = Counters::parse(&finished.stderr)
                        .unwrap_or_default()
                        .per(requests.max(1.0));
                }
            }
        }
        counters.pages_before = 0.0;
        bench.push(results.row(self.name, counters, self.target, true));
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

pub fn redis(bench: &mut Bench) {
    const REQUESTS: &str = "200000";
    for (pipeline, target) in [("1", Target::Rate(0.95)), ("16", Target::Rate(0.9))] {
        for kind in ["set", "get"] {
            let drive = |server: &Server| {
                let port = server.port.to_string();
                let report = server.client(&[
                    "redis-benchmark",
                    "-p",
                    &port,
                    "-t",
                    kind,
                    "-n",
                    REQUESTS,
                    "-c",
                    "50",
                    "-P",
                    pipeline,
                    "-q",
                ]);
                let line = report
                    .split(['\r', '\n'])
                    .find(|line| line.contains("requests per second"));
                let rate = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
                (rate.unwrap_or(0.0), REQUESTS.parse().unwrap_or(1.0))
            };
            Load {
                name: &format!("redis {} (pipeline {pipeline})", kind.to_uppercase()),
                image: "redis",
                argv: &|port| {
                    words(&[
                        "redis-server",
                        "--port",
                        port,
                        "--save",
                        "",
                        "--dir",
                        "/tmp",
                    ])
                },
                drive: &drive,
                target,
                has_peer: true,
            }
            .measure(bench);
        }
    }
}

pub fn nginx(bench: &mut Bench) {
    let argv = |port: &str| {
        let script = format!(
            "mkdir -p /tmp/www && head -c 10240 /bin/bash > /tmp/www/file
            cat > /tmp/nginx.conf <<END
daemon off; master_process off; pid /tmp/nginx.pid; error_log stderr; user root;
events {{ worker_connections 256; }}
http {{ access_log off; keepalive_requests 1000000;
  client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3;
  uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
  server {{ listen 127.0.0.1:{port}; root /tmp/www; }} }}
END
            exec nginx -c /tmp/nginx.conf"
        );
        words(&["sh", "-c", &script])
    };
    Load {
        name: "nginx, 10 KiB file, 16 connections",
        image: "tools",
        argv: &argv,
        drive: &|server| wrk(server, "/file", 16),
        target: Target::Rate(0.7),
        // gVisor shows no /dev/null in a chroot.
        has_peer: false,
    }
    .measure(bench);
}

fn wrk(server: &Server, path: &str, connections: u32) -> (f64, f64) {
    let load = http::wrk(server, path, connections, 3);
    match load.errors {
        0 => (load.per_second, load.requests as f64),
        _ => (0.0, 1.0),
    }
}

/// Flask under gunicorn: pre-forked workers take turns on one core in the enclave.
pub fn gunicorn(bench: &mut Bench) {
    const APPLICATION: &str = "import flask
app = flask.Flask(__name__)
@app.route('/')
def hello(): return 'hello'
";
    for workers in ["1", "4"] {
        let argv = |port: &str| {
            let script = format!(
                "mkdir -p /tmp/app && cd /tmp/app && printf '%s' \"$0\" > hello.py &&
                exec gunicorn -w {workers} -b 127.0.0.1:{port} --log-level error \
                    --worker-tmp-dir /tmp hello:app"
            );
            words(&["sh", "-c", &script, APPLICATION])
        };
        let plural = if workers == "1" { "" } else { "s" };
        Load {
            name: &format!("gunicorn + Flask, {workers} worker{plural}"),
            image: "servers",
            argv: &argv,
            drive: &|server| wrk(server, "/", 8),
            target: Target::None,
            has_peer: false,
        }
        .measure(bench);
    }
}

/// PostgreSQL: pgbench's select-only transactions of 8 clients.
pub fn postgresql(bench: &mut Bench) {
    const START: &str = r#"set -e
        export PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/tmp/data LC_ALL=C
        mkdir $PGDATA; chown postgres $PGDATA; cd /tmp
        as="setpriv --reuid=postgres --regid=postgres --clear-groups"
        $as initdb --auth=trust --no-sync --no-instructions > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }
        echo "port=$0
listen_addresses='127.0.0.1'
unix_socket_directories=''" >> $PGDATA/postgresql.conf
        exec $as postgres"#;
    let drive = |server: &Server| {
        let port = server.port.to_string();
        let rootfs = image("postgresql").rootfs.display().to_string();
        let run = |script: &str| {
            let path = "PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin";
            let shell = [
                "chroot", &rootfs, "env", "-i", "LC_ALL=C", path, "bash", "-c",
            ];
            server.client(&[&shell[..], &[script, &port]].concat())
        };
        // It may listen before it takes queries.
        run("for i in $(seq 600); do
            psql -h 127.0.0.1 -p $0 -U postgres -Atc 'select 1' 2> /dev/null && exit; sleep 0.1
            done; exit 1");
        run("pgbench -h 127.0.0.1 -p $0 -U postgres -i -q postgres 2>&1");
        let report =
            run("pgbench -h 127.0.0.1 -p $0 -U postgres -S -n -c 8 -j 1 -T 5 postgres 2>&1");
        let number = |label: &str| -> Option<f64> {
            let line = report.lines().find_map(|line| line.strip_prefix(label))?;
            let word = line.split_whitespace().next()?;
            word.split('/').next()?.parse().ok()
        };
        let count = number("number of transactions actually processed: ");
        (number("tps = ").unwrap_or(0.0), count.unwrap_or(1.0))
    };
    Load {
        name: "pgbench select-only, 8 clients",
        image: "postgresql",
        argv: &|port| words(&["bash", "-c", START, port]),
        drive: &drive,
        target: Target::Rate(0.1),
        has_peer: false,
    }
    .measure(bench);
}
