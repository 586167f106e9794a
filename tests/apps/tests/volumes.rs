//! Protected volumes: what programs wrote is there again, nobody else can read it, and whatever
//! is done to it outside is noticed.

use bulla_test_apps::{bulla, free_port, image, platform_options, redis_command};
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// A place with its own state, and the options of `bulla run`.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `-v` of a directory of this place.
    fn volume(&self, name: &str, target: &str) -> String {
        format!("{}:{target}", self.path(name).display())
    }

    fn command(&self, options: &[&str], rootfs: &str, words: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["120".as_ref(), bulla().as_os_str()])
            .args(["run", "--quiet"])
            .args(platform_options())
            .args(options)
            .arg("--rootfs")
            .arg(image_of(rootfs))
            .args(words)
            .env("BULLA_STATE", self.path("state"));
        command
    }

    fn run(&self, options: &[&str], rootfs: &str, words: &[&str]) -> Output {
        self.command(options, rootfs, words).output().unwrap()
    }

    fn shell(&self, options: &[&str], script: &str) -> Output {
        self.run(options, "busybox", &["busybox", "sh", "-c", script])
    }

    fn succeed(&self, options: &[&str], script: &str) -> String {
        let output = self.shell(options, script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// It must not succeed; what it says.
    fn fail(&self, options: &[&str], script: &str) -> String {
        let output = self.shell(options, script);
        assert!(!output.status.success(), "{script}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn image_of(name: &str) -> PathBuf {
    match name {
        "busybox" => image("busybox").rootfs,
        "python" => image("python").rootfs,
        "redis" => image("redis").rootfs,
        other => panic!("no image {other}"),
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

const WRITE: &str = "set -e; cd /data; mkdir -p a/b; echo a-sentence-nobody-may-read > a/b/file
    ln a/b/file a/hard; ln -s b/file a/soft; chmod 640 a/hard; chown 7:8 a/b
    i=0; while [ $i -lt 3000 ]; do echo \"line $i of a longer file\"; i=$((i+1)); done > long
    cp long cut; truncate -s 5000 cut; truncate -s 9000 cut
    mv long longer; echo gone > gone; sync; rm gone; touch -d 2001-02-03 old; mkfifo pipe";
const READ: &str =
    "cd /data; find . | sort; cat a/soft; cat a/hard; stat -c '%a %h %u:%g %F' a/hard a/b pipe
    stat -c %Y old; md5sum longer cut; tail -c 4000 cut | tr -d '\\0' | wc -c";

#[test]
fn files_are_there_again_and_unreadable_outside() {
    let place = Place::new();
    let volume = place.volume("data", "/data");
    let options = ["-v", &*volume];
    let before = place.succeed(&options, &format!("{WRITE}\n{READ}"));
    assert!(
        before.contains("./a/b/file\n") && before.contains("640 2 0:0 regular file"),
        "{before}"
    );
    assert!(
        before.contains("7:8 directory") && !before.contains("gone"),
        "{before}"
    );
    assert!(before.trim_end().ends_with("\n0"), "{before}");
    let after = place.succeed(&options, READ);
    assert_eq!(after, before);
    for entry in fs::read_dir(place.path("data")).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        for secret in ["a-sentence", "longer", "of a lo", "soft"] {
            assert!(
                !bytes
                    .windows(secret.len())
                    .any(|window| window == secret.as_bytes())
            );
        }
    }
    // Read-only is read-only.
    let read_only = format!("{volume}:ro");
    let text = place.fail(&["-v", &read_only], "echo x > /data/x");
    assert!(text.contains("Read-only file system"), "{text}");
    // What is deleted stays deleted.
    place.succeed(&options, "rm -r /data/a /data/longer");
    assert!(!place.succeed(&options, "ls /data").contains("longer"));
}

#[test]
fn a_new_volume_has_owner_and_mode_of_the_directory_it_covers() {
    let place = Place::new();
    let stat = |target: &str| {
        let volume = place.volume(&target.replace('/', "_"), target);
        let words = ["stat", "-c", "%u:%g %a", target];
        let output = place.run(&["-v", &volume], "redis", &words);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let image = image("redis").rootfs;
    for target in ["/var/lib/redis", "/tmp"] {
        use std::os::unix::fs::MetadataExt;
        let own = fs::metadata(image.join(&target[1..])).unwrap();
        let own = format!("{}:{} {:o}\n", own.uid(), own.gid(), own.mode() & 0o7777);
        assert_eq!(stat(target), own, "{target}");
        // And when it is no longer new.
        assert_eq!(stat(target), own, "{target}");
    }
    assert_eq!(stat("/not/there"), "0:0 755\n");
}

#[test]
fn whatever_is_done_to_it_outside_is_noticed() {
    let place = Place::new();
    let (data, old) = (place.path("data"), place.path("old"));
    let volume = place.volume("data", "/data");
    let options = ["-v", &*volume];
    place.succeed(
        &options,
        "head -c 300000 /dev/urandom > /data/big; cp /data/big /data/copy",
    );
    copy(&data, &old);
    place.succeed(&options, "echo newer > /data/new");
    let new = place.path("new");
    copy(&data, &new);
    let log = |dir: &Path| fs::read(dir.join("log.0")).unwrap();
    let good = log(&data);
    // Somewhere in a page of a file; it may be either of the two.
    for (at, bit) in [(90_000, 0), (250_000, 7), (500_000, 3)] {
        let mut bad = good.clone();
        bad[at] ^= 1 << bit;
        fs::write(data.join("log.0"), &bad).unwrap();
        let text = place.fail(&options, "cat /data/big /data/copy > /dev/null");
        assert!(text.contains("changed from outside"), "{text}");
    }
    // Pages exchanged.
    let mut bad = good.clone();
    let (one, other) = (90_000, 250_000);
    bad[one..one + 8192].copy_from_slice(&good[other..other + 8192]);
    bad[other..other + 8192].copy_from_slice(&good[one..one + 8192]);
    fs::write(data.join("log.0"), &bad).unwrap();
    place.fail(&options, "cat /data/big /data/copy > /dev/null");
    // The end cut off, all of it older, all of it gone.
    fs::write(data.join("log.0"), &good[..good.len() - 1]).unwrap();
    let text = place.fail(&options, "true");
    assert!(text.contains("cannot be opened"), "{text}");
    copy(&old, &data);
    let text = place.fail(&options, "true");
    assert!(text.contains("rolled back"), "{text}");
    fs::remove_dir_all(&data).unwrap();
    let text = place.fail(&options, "true");
    assert!(text.contains("rolled back"), "{text}");
    // And the right one works.
    copy(&new, &data);
    assert_eq!(
        place.succeed(&options, "cmp /data/big /data/copy && cat /data/new"),
        "newer\n"
    );
    // Anchors belong to places: elsewhere it cannot be told from an old copy.
    let elsewhere = place.volume("new", "/data");
    let text = place.fail(&["-v", &elsewhere], "true");
    assert!(text.contains("anchor"), "{text}");
}

#[test]
fn keys_from_a_file() {
    let place = Place::new();
    let volume = place.volume("data", "/data");
    for (name, byte) in [("right", 1), ("wrong", 2)] {
        fs::write(place.path(name), [byte; 32]).unwrap();
    }
    fs::write(place.path("short"), [1; 31]).unwrap();
    let with = |key: &str, script: &str| {
        let key = place.path(key).display().to_string();
        let options = ["-v", &*volume, "--insecure-volume-key", &*key];
        place.shell(&options, script)
    };
    let written = with("right", "echo kept > /data/file");
    let text = String::from_utf8_lossy(&written.stderr).into_owned();
    assert!(
        written.status.success() && text.contains("insecure_host"),
        "{text}"
    );
    let wrong = with("wrong", "cat /data/file");
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        !wrong.status.success() && text.contains("another key"),
        "{text}"
    );
    let short = with("short", "cat /data/file");
    assert!(String::from_utf8_lossy(&short.stderr).contains("32 bytes"));
    assert_eq!(with("right", "cat /data/file").stdout, b"kept\n");
    // The CPU's key is another one.
    let text = place.fail(&["-v", &volume], "cat /data/file");
    assert!(text.contains("another key"), "{text}");
}

#[test]
fn one_container_at_a_time_and_only_where_the_manifest_says_so() {
    let place = Place::new();
    let volume = place.volume("data", "/data");
    let fifo = place.path("ready");
    let words = ["busybox", "sh", "-c", "echo up; read line"];
    let mut first = place
        .command(&["-i", "-v", &volume], "busybox", &words)
        .stdin(std::process::Stdio::piped())
        .stdout(fs::File::create(&fifo).unwrap())
        .spawn()
        .unwrap();
    while !fs::read_to_string(&fifo).unwrap().contains("up") {
        assert!(first.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = place.fail(&["-v", &volume], "true");
    assert!(text.contains("in use by another container"), "{text}");
    drop(first.stdin.take());
    first.wait().unwrap();
    let manifest = place.path("bulla.toml");
    fs::write(
        &manifest,
        "entrypoint = [\"/bin/busybox\"]\narguments.fixed = [\"true\"]",
    )
    .unwrap();
    let manifest = manifest.display().to_string();
    let run = |options: &[&str]| {
        let output = place.run(options, "busybox", &["true"]);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = run(&["--manifest", &manifest, "-v", &volume]);
    assert!(text.contains("mounts are locked"), "{text}");
    fs::write(
        place.path("bulla.toml"),
        "entrypoint = [\"/bin/busybox\"]\narguments.mode = \"host\"\n[[mounts]]\ntarget = \"/data\"\n\
         type = \"volume\"",
    )
    .unwrap();
    let text = run(&["--manifest", &manifest]);
    assert!(text.contains("add -v"), "{text}");
    let text = run(&["--manifest", &manifest, "-v", &volume]);
    assert!(!text.contains("error"), "{text}");
    // Somebody's files are not hidden silently.
    fs::create_dir(place.path("mine")).unwrap();
    fs::write(place.path("mine/file"), "x").unwrap();
    let text = place.fail(&["-v", &place.volume("mine", "/data")], "true");
    assert!(text.contains("holds file"), "{text}");
}

const SQLITE_WRITE: &str = "
import sqlite3
db = sqlite3.connect('/data/test.db')
db.execute('pragma journal_mode=wal')
db.execute('create table t(k integer primary key, v text)')
for i in range(200):
    with db: db.execute('insert into t values(?, ?)', (i, 'value %d ' % i * 20))
with db: db.execute('delete from t where k % 3 = 0')
db.close()
open('/data/left', 'w').write('over')
import mmap
with open('/data/mapped', 'w+b') as f:
    f.truncate(8192)
    m = mmap.mmap(f.fileno(), 8192); m[5000:5005] = b'hello'; m.flush()
";
const SQLITE_READ: &str = "
import sqlite3
db = sqlite3.connect('/data/test.db')
print(db.execute('pragma integrity_check').fetchone()[0])
print(db.execute('select count(*), sum(k), max(length(v)) from t').fetchone())
print(open('/data/left').read(), open('/data/mapped', 'rb').read()[4998:5007])
";

#[test]
fn a_sqlite_database_survives() {
    let place = Place::new();
    let volume = place.volume("data", "/data");
    let python = |script: &str| {
        let output = place.run(&["-v", &volume], "python", &["python3", "-c", script]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    python(SQLITE_WRITE);
    assert_eq!(
        python(SQLITE_READ),
        "ok\n(133, 13267, 200)\nover b'\\x00\\x00hello\\x00\\x00'\n"
    );
}

/// Killed in the middle of writes, several times: every write that the server acknowledged is there.
#[test]
fn redis_loses_nothing_when_it_is_killed() {
    let place = Place::new();
    let volume = place.volume("data", "/data");
    let mut acknowledged = 0u32;
    for round in 0..3 {
        let port = free_port();
        let text = port.to_string();
        let words = [
            "redis-server",
            "--port",
            &text,
            "--dir",
            "/data",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--save",
            "",
        ];
        let mut command = Command::new(bulla());
        command
            .args(["run", "--quiet", "-v", &volume])
            .args(platform_options())
            .arg("--rootfs")
            .arg(image_of("redis"))
            .args(words)
            .env("BULLA_STATE", place.path("state"));
        let log = place.path(&format!("redis.{round}"));
        command
            .stdout(fs::File::create(&log).unwrap())
            .stderr(fs::File::create(place.path("errors")).unwrap());
        let mut server = command.spawn().unwrap();
        let ask = |words: &[&str]| redis_command(port, words);
        let mut tries = 0;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            tries += 1;
            let ended = server.try_wait().unwrap();
            let errors = fs::read_to_string(place.path("errors")).unwrap();
            assert!(tries < 900 && ended.is_none(), "round {round}: {errors}");
            std::thread::sleep(Duration::from_millis(100));
        }
        while ask(&["PING"]) != "+PONG" {
            std::thread::sleep(Duration::from_millis(100));
        }
        for key in 0..acknowledged {
            assert_eq!(
                ask(&["GET", &format!("key{key}")]),
                format!("value{key}"),
                "round {round}"
            );
        }
        for _ in 0..40 {
            let (key, value) = (format!("key{acknowledged}"), format!("value{acknowledged}"));
            assert_eq!(ask(&["SET", &key, &value]), "+OK");
            acknowledged += 1;
        }
        // More is on its way while it dies.
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let busy =
            std::thread::spawn(
                move || {
                    while stream.write_all(b"SET other something\r\n").is_ok() {}
                },
            );
        ask(&["GET", "other"]);
        server.kill().unwrap();
        server.wait().unwrap();
        let _ = busy.join();
    }
    assert_eq!(acknowledged, 120);
}
