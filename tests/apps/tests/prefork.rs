//! Servers of several processes or threads that share memory: pre-forked workers, children that
//! save, databases that several processes write.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bulla_test_apps::{Program, free_port, http, redis_command, sides};

/// Waits until `done` says so.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Loads the application once and forks: every worker counts its requests in memory that all share.
const FLASK: &str = r#"
import mmap, multiprocessing, os, struct
from flask import Flask
app = Flask(__name__)
total = multiprocessing.Value("q", 0)
slots = mmap.mmap(-1, 4096)
private = {"requests": 0}
@app.route("/work/<int:n>")
def work(n):
    with total.get_lock():
        total.value += 1
    private["requests"] += 1
    return f"{sum(i * i for i in range(n))}\n"
@app.route("/me")
def me():
    return f"{os.getpid()} {private['requests']}\n"
@app.route("/total")
def shared():
    return str(total.value)
@app.route("/die")
def die():
    os.kill(os.getpid(), 9)
"#;

fn gunicorn(workers: usize, seconds: u32) {
    for side in sides() {
        let port = free_port();
        let script = format!(
            "cd /tmp && cat > app.py <<'END'\n{FLASK}\nEND\n
            exec gunicorn --preload --workers {workers} --bind 127.0.0.1:{port} --log-level warning app:app"
        );
        let server = Program::new("servers", &["bash", "-c", &script])
            .limit(120)
            .serve(side, port);
        assert_eq!(http::get(port, "/work/1000"), (200, "332833500\n".into()));
        let load = http::wrk(&server, "/work/100", 16, seconds);
        println!("gunicorn with {workers} workers {side:?}: {load:?}");
        assert!(load.requests >= 100 && load.errors == 0, "{load:?}");
        // The last requests of wrk may have been answered after it stopped counting.
        let total: u64 = http::get(port, "/total").1.parse().unwrap();
        let expected = load.requests + 1..=load.requests + 17;
        assert!(expected.contains(&total), "{total}, {load:?}");
        let see = |pids: &mut BTreeSet<String>| {
            let streams: Vec<TcpStream> = (0..8).map(|_| ask(port, "/me")).collect();
            for stream in streams {
                let line = BufReader::new(stream).lines().last();
                let line = line.and_then(Result::ok).unwrap_or_default();
                pids.extend(line.split(' ').next().map(str::to_owned));
            }
        };
        let mut pids = BTreeSet::new();
        eventually("all workers answer", || {
            see(&mut pids);
            pids.len() >= workers
        });
        assert_eq!(pids.len(), workers, "{pids:?}");
        // One dies; the master forks another.
        drop(ask(port, "/die"));
        eventually("a new worker answers", || {
            see(&mut pids);
            pids.len() > workers
        });
        let finished = server.stop();
        assert_eq!(finished.code, Some(0), "{finished}");
    }
}

fn ask(port: u16, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    stream
}

#[test]
fn flask_under_gunicorn_with_four_workers() {
    gunicorn(4, 4);
}

#[test]
fn nginx_with_two_workers() {
    for side in sides() {
        let port = free_port();
        let script = format!(
            "mkdir -p /tmp/www && head -c 10240 /bin/bash > /tmp/www/file
            cat > /tmp/nginx.conf <<'END'
daemon off; worker_processes 2; pid /tmp/nginx.pid; error_log stderr; user root;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; keepalive_requests 1000000;
  client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3;
  uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
  server {{
    listen 127.0.0.1:{port} reuseport; root /tmp/www;
    location /pid {{ return 200 $pid; }}
  }}
}}
END
            exec nginx -c /tmp/nginx.conf"
        );
        let server = Program::new("servers", &["bash", "-c", &script])
            .limit(60)
            .serve(side, port);
        let mut pids = BTreeSet::new();
        eventually("both workers answer", || {
            pids.insert(http::get(port, "/pid").1);
            pids.len() >= 2
        });
        let bash = bulla_test_apps::image("servers").rootfs.join("bin/bash");
        let bash = std::fs::read(bash).unwrap();
        let file = http::get(port, "/file");
        assert_eq!(file.0, 200);
        assert_eq!(file.1, String::from_utf8_lossy(&bash[..10240]));
        let load = http::wrk(&server, "/file", 16, 4);
        println!("nginx with two workers {side:?}: {load:?}");
        assert!(load.requests > 1000 && load.errors == 0, "{load:?}");
        let finished = server.stop();
        assert_eq!(finished.code, Some(0), "{finished}");
    }
}

#[test]
fn memcached_with_threads() {
    for side in sides() {
        let port = free_port();
        let text = port.to_string();
        let argv = [
            "memcached",
            "-u",
            "root",
            "-p",
            &text,
            "-t",
            "4",
            "-m",
            "64",
        ];
        let server = Program::new("servers", &argv).limit(60).serve(side, port);
        let clients: Vec<_> = (0..8)
            .map(|client| {
                std::thread::spawn(move || {
                    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                    stream
                        .set_read_timeout(Some(Duration::from_secs(20)))
                        .unwrap();
                    let mut reader = BufReader::new(stream);
                    let mut say = |text: &str, lines: usize| {
                        reader.get_mut().write_all(text.as_bytes()).unwrap();
                        let mut answer = String::new();
                        for _ in 0..lines {
                            reader.read_line(&mut answer).unwrap();
                        }
                        answer
                    };
                    for n in 0..300 {
                        let value = "v".repeat(n * 7 % 1000 + 1);
                        let set = format!("set {client}:{n} 5 0 {}\r\n{value}\r\n", value.len());
                        assert_eq!(say(&set, 1), "STORED\r\n");
                        let expected =
                            format!("VALUE {client}:{n} 5 {}\r\n{value}\r\nEND\r\n", value.len());
                        assert_eq!(say(&format!("get {client}:{n}\r\n"), 3), expected);
                    }
                    say("add sum 0 0 1\r\n0\r\n", 1);
                    for _ in 0..100 {
                        say("incr sum 1\r\n", 1);
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream
            .write_all(b"get sum\r\nget 3:299\r\nquit\r\n")
            .unwrap();
        let lines: Vec<String> = BufReader::new(stream).lines().map(Result::unwrap).collect();
        assert_eq!(lines[1].trim(), "800", "{lines:?}");
        assert_eq!(lines[4], "v".repeat(299 * 7 % 1000 + 1));
        let finished = server.stop();
        assert_eq!(finished.code, Some(0), "{finished}");
    }
}

#[test]
fn redis_appends_saves_and_loads_it_again() {
    for side in sides() {
        let port = free_port();
        let text = port.to_string();
        let argv = [
            "redis-server",
            "--port",
            &text,
            "--dir",
            "/tmp",
            "--appendonly",
            "yes",
            "--enable-debug-command",
            "yes",
        ];
        let server = Program::new("redis", &argv).limit(120).serve(side, port);
        for n in 0..200 {
            redis_command(port, &["SET", &format!("key:{n}"), &"x".repeat(n * 50)]);
        }
        let persistence = |field: &str| {
            let info = redis_command(port, &["INFO", "persistence"]);
            let line = info.lines().find_map(|line| line.strip_prefix(field));
            line.unwrap_or_default().trim().to_owned()
        };
        // Children save and rewrite while the parent goes on writing.
        let mut extra = 0;
        for (command, running, status) in [
            (
                "BGSAVE",
                "rdb_bgsave_in_progress:",
                "rdb_last_bgsave_status:",
            ),
            (
                "BGREWRITEAOF",
                "aof_rewrite_in_progress:",
                "aof_last_bgrewrite_status:",
            ),
        ] {
            let answer = redis_command(port, &[command]);
            assert!(answer.starts_with("+Background"), "{answer}");
            eventually(command, || {
                for _ in 0..20 {
                    redis_command(port, &["SET", &format!("extra:{extra}"), "while saving"]);
                    extra += 1;
                }
                persistence(running) == "0"
            });
            assert_eq!(persistence(status), "ok");
        }
        let digest = redis_command(port, &["DEBUG", "DIGEST"]);
        assert_eq!(redis_command(port, &["DEBUG", "LOADAOF"]), "+OK");
        assert_eq!(redis_command(port, &["DEBUG", "DIGEST"]), digest);
        assert_eq!(redis_command(port, &["DEBUG", "RELOAD"]), "+OK");
        assert_eq!(redis_command(port, &["DEBUG", "DIGEST"]), digest);
        let count = redis_command(port, &["DBSIZE"]);
        assert_eq!(count, format!(":{}", 200 + extra));
        let finished = server.stop();
        assert_eq!(finished.code, Some(0), "{finished}");
    }
}

#[test]
fn sqlite_in_several_processes_with_a_shared_log_index() {
    const SCRIPT: &str = r#"
import multiprocessing, os, sqlite3
PATH = "/tmp/test.db"
def connect():
    db = sqlite3.connect(PATH, timeout=60, isolation_level=None)
    db.execute("pragma synchronous=normal")
    return db
def write(me):
    db = connect()
    for n in range(150):
        db.execute("begin immediate")
        db.execute("insert into t values (?, ?, ?)", (me, n, "x" * (n * 13 % 700)))
        db.execute("update total set n = n + 1")
        db.execute("commit")
def read(me):
    db, last = connect(), 0
    while last < 600:
        db.execute("begin")
        rows = db.execute("select count(*) from t").fetchone()[0]
        total = db.execute("select n from total").fetchone()[0]
        db.execute("commit")
        assert rows == total >= last, (rows, total, last)
        last = rows
db = connect()
print(db.execute("pragma journal_mode=wal").fetchone())
db.execute("create table t (who, n, text)")
db.execute("create table total (n)")
db.execute("insert into total values (0)")
context = multiprocessing.get_context("fork")
processes = [context.Process(target=write, args=(i,)) for i in range(4)]
processes += [context.Process(target=read, args=(i,)) for i in range(2)]
for process in processes: process.start()
for process in processes: process.join()
print([process.exitcode for process in processes])
print(db.execute("select who, count(*), sum(n), sum(length(text)) from t group by who").fetchall())
print(db.execute("select n from total").fetchone(), db.execute("pragma integrity_check").fetchone())
print(db.execute("pragma wal_checkpoint(truncate)").fetchone(), os.path.getsize(PATH + "-wal"))
"#;
    let finished = Program::new("servers", &["python3", "-c", SCRIPT])
        .limit(120)
        .compare();
    assert!(
        finished.stdout.contains("[0, 0, 0, 0, 0, 0]\n")
            && finished.stdout.contains("(600,) ('ok',)"),
        "{finished}"
    );
}

/// The kinds of statements of SQLite's own speedtest1, from its command line tool.
#[test]
fn sqlite_under_a_mixed_load() {
    const SCRIPT: &str = r#"cd /tmp; python3 - > load.sql <<'END'
import random
random.seed(7)
rows = 8000
print("pragma journal_mode=wal; pragma synchronous=normal; begin;")
print("create table t1 (a integer, b integer, c text); create table t2 (a integer primary key, b, c);")
words = ["zero","one","two","three","four","five","six","seven","eight","nine"]
spell = lambda n: " ".join(words[int(d)] for d in str(n))
for i in range(rows):
    n = random.randrange(10**6)
    print(f"insert into t1 values ({i}, {n}, '{spell(n)}');")
print("commit; begin; insert into t2 select a, b, c from t1 order by b; commit;")
for i in range(20):
    print(f"select count(*), avg(b), sum(length(c)) from t1 where b between {i*1000} and {i*9000};")
    print(f"select count(*) from t1 where c like '%{spell(i)}%';")
print("create index i1 on t1(b); create index i2 on t1(c, b);")
for i in range(300):
    print(f"select sum(b), max(c) from t1 where b between {i*100} and {i*100+5000};")
print("begin;")
for i in range(2000): print(f"update t2 set b = b * 2, c = c || ' more' where a = {i*3 % rows};")
for i in range(1000): print(f"delete from t2 where a = {i*7 % rows};")
print("commit; replace into t2 select a, b, c from t1 where a % 5 = 0;")
print("with recursive c(x) as (values(1) union all select x+1 from c where x<100000) select sum(x*x) from c;")
print("select t1.a, t2.c from t1, t2 where t1.b = t2.b and t1.a % 500 = 0 order by 1, 2;")
print("alter table t2 add column d default 'd'; vacuum; analyze; pragma integrity_check;")
print("select count(*), sum(a), sum(b), sum(length(c)), max(d) from t2;")
END
sqlite3 test.db < load.sql > out; tail -n 5 out; sha256sum < out; wc -c < test.db"#;
    let finished = Program::new("servers", &["bash", "-c", SCRIPT])
        .limit(120)
        .compare();
    println!(
        "sqlite: {:.2} s in the enclave",
        finished.took.as_secs_f64()
    );
    assert!(finished.stdout.contains("\nok\n"), "{finished}");
}
