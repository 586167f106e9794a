//! Programs that run to their end: shells, languages, a compiler, every kind of C library.

use bulla_test_apps::Program;

/// Nil pointers in several goroutines at once, while the collector runs.
#[test]
fn go_recovers_from_nil_pointers() {
    Program::new("programs", &["/bin/faults-go"])
        .env("GOMAXPROCS", "2")
        .expect("procs 2 recovered 7200 of 7200 wrong 0\n");
}

#[test]
fn busybox_static_shell() {
    let script = "set -e
        cd /tmp
        for i in 1 2 3; do echo line $i; done > file
        wc -l < file
        sort -r file | head -n 1
        sum=0; i=0
        while [ $i -lt 100 ]; do i=$((i+1)); sum=$((sum+i)); done
        echo sum $sum
        mkdir -p a/b && mv file a/b/ && find . -type f | sort
        case $(cat a/b/file | tr -d '\\n') in *2*) echo found;; esac
        rm -r a; ls | wc -l
        (exit 3) || echo status $?";
    Program::new("busybox", &["/bin/busybox", "sh", "-c", script])
        .expect("3\nline 3\nsum 5050\n./a/b/file\nfound\n0\nstatus 3\n");
}

#[test]
fn busybox_from_a_docker_archive() {
    Program::new("busybox", &["echo", "from", "an archive"])
        .from_archive()
        .expect("from an archive\n");
}

#[test]
fn bash_with_pipes_and_substitution() {
    let script = r#"set -euo pipefail
        words=$(printf '%s\n' delta alpha charlie bravo | sort | tr '\n' ' ')
        echo "sorted: $words"
        declare -A count
        while read -r word; do count[$word]=$(( ${count[$word]:-0} + 1 )); done \
            < <(printf '%s\n' a b a c a b)
        for key in a b c; do echo "$key=${count[$key]}"; done
        echo "nested: $(echo $(echo $(seq 1 5 | paste -sd+ | sed 's/+/ + /g')))"
        total=0
        for n in $(seq 1 200); do total=$((total + n * n)); done
        echo "total $total"
        cat <<< "here string" | tee /tmp/copy | md5sum | cut -d' ' -f1
        cat /tmp/copy
        trap 'echo trapped; exit 7' TERM
        kill -TERM $$
        echo never"#;
    let finished = Program::new("tools", &["bash", "-c", script]).compare();
    assert_eq!(finished.code, Some(7), "{finished}");
    let last = "here string\ntrapped\n";
    assert!(finished.stdout.contains("total 2686700\n") && finished.stdout.ends_with(last));
}

#[test]
fn bash_background_jobs() {
    let script = "for i in 1 2 3 4; do (sleep 0.0$i; echo job $i > /tmp/$i) & done
        wait; cat /tmp/[1-4]; sleep 30 & kill $!; wait $!; echo ended with $?";
    Program::new("tools", &["bash", "-c", script])
        .expect("job 1\njob 2\njob 3\njob 4\nended with 143\n");
}

#[test]
fn coreutils_on_many_files() {
    let script = "mkdir /tmp/d && cd /tmp/d && seq 1 300 | xargs -n 1 -P 2 touch
        ls | wc -l; ls -la /usr/bin/env | cut -c1-10; stat -c %s /etc/debian_version
        find /usr/lib/python3 -name '*.py' | wc -l
        tar -C /usr/share -cf - base-files | tar -tf - | wc -l
        sha256sum /bin/bash | cut -c1-16";
    let finished = Program::new("tools", &["sh", "-c", script])
        .limit(120)
        .compare();
    assert!(
        finished.stdout.starts_with("300\n-rwxr-xr-x\n"),
        "{finished}"
    );
}

const PYTHON: &str = r#"
import ssl, sqlite3, threading, subprocess, json, hashlib, os, sys, tempfile, zlib, socket

context = ssl.create_default_context()
print("ssl", ssl.OPENSSL_VERSION.split()[0], context.minimum_version.name)

db = sqlite3.connect(":memory:")
db.execute("create table t (n integer primary key, square integer)")
db.executemany("insert into t values (?, ?)", [(n, n * n) for n in range(1000)])
print("sqlite", db.execute("select sum(square), count(*) from t").fetchone())

with tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, "file.db")
    disk = sqlite3.connect(path)
    disk.execute("create table u (x text)")
    disk.execute("insert into u values ('kept')")
    disk.commit(); disk.close()
    print("on disk", sqlite3.connect(path).execute("select x from u").fetchall())

total, lock = 0, threading.Lock()
def work(n):
    global total
    for _ in range(1000):
        with lock:
            total += n
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print("threads", total)

out = subprocess.run(["sh", "-c", "echo $0 | tr a-z A-Z; exit 3", "child"], capture_output=True)
print("subprocess", out.returncode, out.stdout)
child = subprocess.Popen([sys.executable, "-c", "print(sum(map(int, input().split())))"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
print("python child", child.communicate("1 2 3 4\n")[0].strip())

a, b = socket.socketpair()
a.sendall(b"x" * 100000); a.close()
received = b""
while chunk := b.recv(65536):
    received += chunk
print("socketpair", len(received), zlib.crc32(received))
print("hash", hashlib.sha256(json.dumps({"k": list(range(100))}).encode()).hexdigest()[:16])
pid = os.fork()
if pid == 0:
    os._exit(42)
print("fork", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

#[test]
fn python_with_ssl_sqlite_threads_and_subprocesses() {
    let finished = Program::new("tools", &["python3", "-c", PYTHON])
        .limit(120)
        .compare();
    assert_eq!(finished.code, Some(0), "{finished}");
    for line in [
        "ssl OpenSSL",
        "sqlite (332833500, 1000)",
        "on disk [('kept',)]",
        "threads 28000",
        "subprocess 3 b'CHILD\\n'",
        "python child 10",
        "fork 42",
    ] {
        assert!(finished.stdout.contains(line), "no {line:?} in {finished}");
    }
}

#[test]
fn python_reads_standard_input() {
    let program = "import sys; data = sys.stdin.buffer.read(); print(len(data), sum(data))";
    let input: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    let sum: u64 = input.iter().map(|&byte| u64::from(byte)).sum();
    let expected = format!("200000 {sum}\n");
    Program::new("tools", &["python3", "-c", program])
        .stdin(input)
        .expect(&expected);
}

#[test]
fn python_from_the_demo_image() {
    Program::new("python", &["python3", "-c", "print(1)"])
        .from_archive()
        .expect("1\n");
}

#[test]
fn node_evaluates() {
    let script = r#"
        const { createHash } = require('crypto');
        const { execFileSync } = require('child_process');
        const fs = require('fs');
        fs.writeFileSync('/tmp/n', 'x'.repeat(1000));
        console.log(fs.readFileSync('/tmp/n').length, createHash('sha1').update('a').digest('hex'));
        console.log([...Array(1000).keys()].map(n => n * n).reduce((a, b) => a + b));
        console.log(execFileSync('sh', ['-c', 'echo from a child']).toString().trim());
        setTimeout(() => Promise.resolve('later').then(console.log), 10);
        let n = 0; for (let i = 0; i < 5e6; i++) n = (n * 31 + i) | 0; console.log(n);"#;
    let finished = Program::new("tools", &["node", "-e", script])
        .limit(120)
        .compare();
    assert_eq!(finished.code, Some(0), "{finished}");
    let start = "1000 86f7e437faa5a7fce15d1ddcb9eaeaea377667b8\n332833500\nfrom a child\n";
    assert!(finished.stdout.starts_with(start) && finished.stdout.ends_with("later\n"));
}

#[test]
fn gcc_compiles_and_the_program_runs() {
    let script = r#"cat > /tmp/p.c <<'END'
#include <math.h>
#include <pthread.h>
#include <stdio.h>
static void *square_root(void *x) { *(double *)x = sqrt(*(double *)x); return x; }
int main(int argc, char **argv) {
    double x = argc * 100;
    pthread_t thread;
    pthread_create(&thread, NULL, square_root, &x);
    pthread_join(thread, NULL);
    printf("%s says %.3f\n", argv[1], x);
    return 5;
}
END
        gcc -O2 -Wall -o /tmp/p /tmp/p.c -lm -lpthread && /tmp/p compiled; echo status $?
        gcc -O1 -static -o /tmp/s /tmp/p.c -lm && /tmp/s static; echo status $?"#;
    Program::new("tools", &["sh", "-c", script])
        .limit(180)
        .expect("compiled says 14.142\nstatus 5\nstatic says 14.142\nstatus 5\n");
}

fn hello(program: &str) {
    Program::new("programs", &[program, "one", "two words"])
        .env("GREETING", "with environment")
        .expect("hello from C: one two words (with environment)\n");
}

fn threads(image: &'static str, program: &str) {
    let expected = "sum 360000 returned 36 cancelled 1 signals 10\n";
    Program::new(image, &[program]).expect(expected);
}

#[test]
fn musl_static() {
    hello("/bin/hello-musl-static");
}

#[test]
fn musl_dynamic() {
    hello("/bin/hello-musl");
}

#[test]
fn glibc_static() {
    hello("/bin/hello-glibc-static");
}

#[test]
fn musl_static_threads() {
    threads("programs", "/bin/threads-musl-static");
}

#[test]
fn musl_dynamic_threads() {
    threads("programs", "/bin/threads-musl");
}

#[test]
fn glibc_static_threads() {
    threads("programs", "/bin/threads-glibc-static");
}

#[test]
fn glibc_dynamic_threads() {
    threads("tools", "/opt/bench/threads");
}

#[test]
fn rust_static_pie() {
    Program::new("programs", &["/bin/hello-rust", "argument"]).expect(
        "hello from Rust: [500500, 2001000, 4501500, 8002000] \
         {\"and\": 3, \"back\": 4, \"read\": 4, \"written\": 7} [\"argument\"]\n",
    );
}
