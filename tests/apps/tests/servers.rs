//! Servers under load: started, driven by an ordinary client, checked, stopped with SIGTERM.

use bulla_test_apps::{Program, Server, free_port, http, redis_command, sides};

#[test]
fn flask_serves_a_thousand_requests() {
    const APP: &str = r#"
import os, signal, sys, threading
from flask import Flask
# The first process of a container ignores signals that it has no handler for.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
app, count, lock = Flask(__name__), 0, threading.Lock()
import logging; logging.getLogger("werkzeug").disabled = True
@app.route("/hello/<name>")
def hello(name):
    global count
    with lock:
        count += 1
    return f"hello {name}\n"
@app.route("/count")
def counted():
    return str(count)
app.run(host="127.0.0.1", port=int(sys.argv[1]), threaded=True)
"#;
    for side in sides() {
        let port = free_port();
        let program = Program::new("tools", &["python3", "-c", APP, &port.to_string()]);
        let server = program.limit(90).serve(side, port);
        assert_eq!(http::get(port, "/hello/you"), (200, "hello you\n".into()));
        let load = http::wrk(&server, "/hello/wrk", 8, 5);
        println!("flask {side:?}: {load:?}");
        assert!(
            load.requests >= 1000 && load.errors == 0,
            "{side:?}: {load:?}"
        );
        let count: u64 = http::get(port, "/count").1.parse().unwrap();
        // The last requests of wrk may have been answered after it stopped counting.
        assert!(
            count > load.requests && count <= load.requests + 9,
            "{count}, {load:?}"
        );
        let finished = server.stop();
        assert_eq!(finished.code, Some(0), "{finished}");
    }
}

fn redis(pipeline: &str) {
    for side in sides() {
        let port = free_port();
        let text = port.to_string();
        let arguments = [
            "redis-server",
            "--port",
            &text,
            "--save",
            "",
            "--dir",
            "/tmp",
        ];
        let server = Program::new("redis", &arguments)
            .limit(120)
            .serve(side, port);
        for n in 0..100 {
            let (key, value) = (format!("mine:{n}"), format!("value {}", n * n));
            assert_eq!(redis_command(port, &["SET", &key, &value]), "+OK");
        }
        let report = server.client(&[
            "redis-benchmark",
            "-p",
            &text,
            "-t",
            "set,get",
            "-n",
            "200000",
            "-c",
            "50",
            "-P",
            pipeline,
            "-r",
            "1000",
            "-q",
        ]);
        let last = |line: &&str| line.contains("requests per second");
        let lines: Vec<&str> = report.split(['\r', '\n']).filter(last).collect();
        println!("redis -P {pipeline} {side:?}: {lines:?}");
        assert_eq!(lines.len(), 2, "{side:?}: {report}");
        // 1000 random keys of the benchmark, all of them hit by 200 000 requests.
        assert_eq!(redis_command(port, &["DBSIZE"]), ":1100");
        for n in 0..100 {
            let found = redis_command(port, &["GET", &format!("mine:{n}")]);
            assert_eq!(found, format!("value {}", n * n));
        }
        assert_eq!(redis_command(port, &["INCRBY", "number", "41"]), ":41");
        assert_eq!(redis_command(port, &["INCR", "number"]), ":42");
        let info = redis_command(port, &["INFO", "stats"]);
        let count = info
            .lines()
            .find_map(|line| line.strip_prefix("total_commands_processed:"));
        let count: u64 = count.unwrap().trim().parse().unwrap();
        assert!(count >= 400_000, "{count}");
        let finished = server.stop();
        assert_eq!(finished.code, Some(0), "{finished}");
        assert!(finished.stdout.contains("bye bye"), "{finished}");
    }
}

#[test]
fn redis_under_load() {
    redis("1");
}

#[test]
fn redis_under_pipelined_load() {
    redis("16");
}

#[test]
fn redis_saves_in_a_forked_child() {
    for side in sides() {
        let port = free_port();
        let text = port.to_string();
        let arguments = [
            "redis-server",
            "--port",
            &text,
            "--save",
            "",
            "--dir",
            "/tmp",
        ];
        let server = Program::new("redis", &arguments)
            .limit(60)
            .serve(side, port);
        redis_command(port, &["SET", "kept", "yes"]);
        assert_eq!(
            redis_command(port, &["BGSAVE"]),
            "+Background saving started"
        );
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while redis_command(port, &["LASTSAVE"]).is_empty()
            || !redis_command(port, &["INFO", "persistence"]).contains("rdb_bgsave_in_progress:0")
        {
            assert!(std::time::Instant::now() < deadline, "{}", server.output());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let info = redis_command(port, &["INFO", "persistence"]);
        assert!(
            info.contains("rdb_last_bgsave_status:ok"),
            "{side:?}: {info}"
        );
        assert_eq!(redis_command(port, &["GET", "kept"]), "yes");
        server.stop();
    }
}

#[test]
fn nginx_serves_files() {
    for side in sides() {
        let port = free_port();
        let script = format!(
            "mkdir -p /tmp/www && echo '<p>hello</p>' > /tmp/www/index.html
            head -c 300000 /bin/bash > /tmp/www/large
            cat > /tmp/nginx.conf <<END
daemon off; master_process off; pid /tmp/nginx.pid; error_log stderr; user root;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; keepalive_requests 1000000;
  client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3;
  uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
  server {{ listen 127.0.0.1:{port}; root /tmp/www; }}
}}
END
            exec nginx -c /tmp/nginx.conf"
        );
        let server = Program::new("tools", &["sh", "-c", &script])
            .limit(60)
            .serve(side, port);
        assert_eq!(http::get(port, "/"), (200, "<p>hello</p>\n".into()));
        assert_eq!(http::get(port, "/absent").0, 404);
        let url = format!("http://127.0.0.1:{port}/large");
        let sum = server.client(&[
            "sh",
            "-c",
            &format!("curl -s {url} | sha256sum | cut -c1-64"),
        ]);
        let bash = bulla_test_apps::image("tools").rootfs.join("bin/bash");
        let bash = bash.display();
        let expected = server.client(&[
            "sh",
            "-c",
            &format!("head -c 300000 {bash} | sha256sum | cut -c1-64"),
        ]);
        assert_eq!(sum, expected, "{side:?}");
        let load = http::wrk(&server, "/", 16, 3);
        println!("nginx {side:?}: {load:?}");
        assert!(
            load.requests > 1000 && load.errors == 0,
            "{side:?}: {load:?}"
        );
        let finished = server.stop();
        assert_eq!(finished.code, Some(0), "{finished}");
    }
}

#[test]
fn node_serves_http() {
    const APP: &str = r#"
const http = require('http');
let count = 0;
const server = http.createServer((request, response) => {
    count++;
    response.end(JSON.stringify({ url: request.url, sum: [1, 2, 3].reduce((a, b) => a + b) }));
});
server.listen(+process.argv[1], '127.0.0.1');
process.on('SIGTERM', () => { console.log('served', count > 0); process.exit(0); });
"#;
    for side in sides() {
        let port = free_port();
        let program = Program::new("tools", &["node", "-e", APP, &port.to_string()]);
        let server = program.limit(90).serve(side, port);
        assert_eq!(
            http::get(port, "/x?y"),
            (200, r#"{"url":"/x?y","sum":6}"#.into())
        );
        let load = http::wrk(&server, "/", 8, 3);
        println!("node {side:?}: {load:?}");
        assert!(
            load.requests > 500 && load.errors == 0,
            "{side:?}: {load:?}"
        );
        let finished = server.stop();
        assert!(
            finished.code == Some(0) && finished.stdout == "served true\n",
            "{finished}"
        );
    }
}

#[test]
fn static_go_serves_http() {
    for side in sides() {
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let server = Program::new("programs", &["/bin/http-go", &address])
            .env("GOMAXPROCS", "2")
            .limit(60)
            .serve(side, port);
        go_checks(&server);
        let load = http::wrk(&server, "/load", 16, 3);
        println!("go {side:?}: {load:?}");
        assert!(
            load.requests > 1000 && load.errors == 0,
            "{side:?}: {load:?}"
        );
        let finished = server.stop();
        let expected = format!("listening on {address}\nstopped\n");
        assert!(
            finished.code == Some(0) && finished.stdout == expected,
            "{finished}"
        );
    }
}

fn go_checks(server: &Server) {
    assert_eq!(
        http::get(server.port, "/a/b"),
        (200, "hello from Go: /a/b\n".into())
    );
    let (status, body) = http::get(server.port, "/large");
    assert_eq!((status, body.len()), (200, 1 << 20));
    assert_eq!(http::get(server.port, "/count"), (200, "1\n".into()));
}
