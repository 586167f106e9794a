//! Servers under load: throughput of each side, counters per request.

use std::process::Command;

use bulla_test_apps::{Program, Server, Side, free_port, http, image};

use crate::model::Counters;
use crate::programs::runsc;
use crate::row::{BOTH, Figures, Party, Row, Target, Unit};
use crate::{Job, Settings, announce};

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
    runs_max: usize,
    /// Loads of each server, but one of runsc's.
    turns: usize,
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
                let limit = std::time::Duration::from_secs(10);
                Server::start(command, Side::Native, port, limit)
            }
        }
    }

    fn measure(&self, settings: &Settings) -> Result<Row, String> {
        let mut figures = Figures::default();
        let mut counters = Counters::default();
        for _ in 0..settings.runs.min(self.runs_max) {
            counters = self.run(&BOTH, self.turns, &mut figures)?;
        }
        counters.pages_before = 0.0;
        let row =
            |figures: &Figures| figures.row(self.name, counters, self.target, Unit::PerSecond);
        if self.has_peer && settings.has_peer {
            announce(&row(&figures)?)?;
            self.run(&[Party::Peer], 1, &mut figures)?;
        }
        row(&figures)
    }

    /// A server of each party, under load in turn: a neighbour of this machine then slows all. The
    /// enclave's counters per request.
    fn run(
        &self,
        parties: &[Party],
        turns: usize,
        figures: &mut Figures,
    ) -> Result<Counters, String> {
        let mut servers = Vec::new();
        for turn in 0..turns {
            for (index, &party) in parties.iter().enumerate() {
                if turn == 0 {
                    servers.push((party, self.start(party, free_port()), 0.0));
                }
                let (_, server, requests) = &mut servers[index];
                let (rate, made) = (self.drive)(server);
                if rate <= 0.0 {
                    let (_, server, _) = servers.remove(index);
                    return Err(format!("{party:?}: {}", server.stop()));
                }
                *requests += made;
                figures.add(party, rate);
            }
        }
        let mut counters = Counters::default();
        for (party, server, requests) in servers {
            let finished = server.stop();
            if party == Party::Enclave {
                let counted = Counters::parse(&finished.stderr);
                let counted = counted.ok_or_else(|| format!("no counters: {finished}"))?;
                counters = counted.per(requests.max(1.0));
            }
        }
        Ok(counters)
    }
}

/// The rows.
pub fn jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    for (pipeline, target) in [("1", Target::Rate(0.95)), ("16", Target::Rate(0.9))] {
        for kind in ["set", "get"] {
            let name = format!("redis {} (pipeline {pipeline})", kind.to_uppercase());
            jobs.push(Job::new(name.clone(), 150, move |settings| {
                redis(&name, kind, pipeline, target, settings)
            }));
        }
    }
    let name = "nginx, 10 KiB file, 16 connections";
    jobs.push(Job::new(name, 90, move |settings| nginx(name, settings)));
    for workers in [1, 4] {
        let plural = if workers == 1 { "" } else { "s" };
        let name = format!("gunicorn + Flask, {workers} worker{plural}");
        jobs.push(Job::new(name.clone(), 120, move |settings| {
            gunicorn(&name, workers, settings)
        }));
    }
    let name = "pgbench select-only, 8 clients";
    jobs.push(Job::new(name, 180, move |settings| {
        postgresql(name, settings)
    }));
    jobs
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn redis(
    name: &str,
    kind: &str,
    pipeline: &str,
    target: Target,
    settings: &Settings,
) -> Result<Row, String> {
    // A second or more of each.
    let requests = if pipeline == "1" { "100000" } else { "1000000" };
    let drive = |server: &Server| {
        let port = server.port.to_string();
        let report = server.client(&[
            "redis-benchmark",
            "-p",
            &port,
            "-t",
            kind,
            "-n",
            requests,
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
        (rate.unwrap_or(0.0), requests.parse().unwrap_or(1.0))
    };
    let argv = |port: &str| {
        words(&[
            "redis-server",
            "--port",
            port,
            "--save",
            "",
            "--dir",
            "/tmp",
        ])
    };
    Load {
        name,
        image: "redis",
        argv: &argv,
        drive: &drive,
        target,
        has_peer: true,
        runs_max: 5,
        turns: 3,
    }
    .measure(settings)
}

fn nginx(name: &str, settings: &Settings) -> Result<Row, String> {
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
        name,
        image: "tools",
        argv: &argv,
        drive: &|server| wrk(server, "/file", 16),
        target: Target::Rate(0.7),
        // gVisor shows no /dev/null in a chroot.
        has_peer: false,
        runs_max: 3,
        turns: 1,
    }
    .measure(settings)
}

fn wrk(server: &Server, path: &str, connections: u32) -> (f64, f64) {
    let load = http::wrk(server, path, connections, 3);
    match load.errors {
        0 => (load.per_second, load.requests as f64),
        _ => (0.0, 1.0),
    }
}

/// Flask under gunicorn: pre-forked workers take turns on one core in the enclave.
fn gunicorn(name: &str, workers: u32, settings: &Settings) -> Result<Row, String> {
    const APPLICATION: &str = "import flask
app = flask.Flask(__name__)
@app.route('/')
def hello(): return 'hello'
";
    let argv = |port: &str| {
        let script = format!(
            "mkdir -p /tmp/app && cd /tmp/app && printf '%s' \"$0\" > hello.py &&
            exec gunicorn -w {workers} -b 127.0.0.1:{port} --log-level error \
                --worker-tmp-dir /tmp hello:app"
        );
        words(&["sh", "-c", &script, APPLICATION])
    };
    Load {
        name,
        image: "servers",
        argv: &argv,
        drive: &|server| wrk(server, "/", 8),
        target: Target::None,
        has_peer: false,
        runs_max: 3,
        turns: 1,
    }
    .measure(settings)
}

/// PostgreSQL: pgbench's select-only transactions of 8 clients.
fn postgresql(name: &str, settings: &Settings) -> Result<Row, String> {
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
        name,
        image: "postgresql",
        argv: &|port| words(&["bash", "-c", START, port]),
        drive: &drive,
        target: Target::Rate(0.1),
        has_peer: false,
        // Making the cluster takes far longer than the load.
        runs_max: 1,
        turns: 1,
    }
    .measure(settings)
}
