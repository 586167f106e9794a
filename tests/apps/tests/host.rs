//! What a container may take from its host when its owner says so, loudly: directories as they
//! are, programs started later (`bulla exec`), secrets from files.

use bulla_test_apps::{Side, Terminal, bulla, image, platform_options};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

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

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["120", "env"])
            .arg(format!("BULLA_STATE={}", self.path("state").display()))
            .arg(bulla())
            .args(words)
            .stdin(Stdio::null());
        command
    }

    fn bulla(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn run(&self, options: &[&str], words: &[&str]) -> Output {
        let busybox = image("busybox");
        let platform = platform_options();
        let mut all = vec!["run"];
        all.extend(platform.iter().map(String::as_str));
        all.extend(options);
        match words.is_empty() {
            // Under a manifest.
            true => all.push(busybox.archive.to_str().unwrap()),
            false => all.extend(["--rootfs", busybox.rootfs.to_str().unwrap()]),
        }
        all.extend(words);
        self.bulla(&all)
    }

    fn shell(&self, options: &[&str], script: &str) -> Output {
        self.run(options, &["busybox", "sh", "-c", script])
    }

    /// It must not start; what bulla says.
    fn refused(&self, options: &[&str]) -> String {
        let output = self.shell(options, "true");
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        text(&output.stderr)
    }

    /// A container in the background.
    fn start(&self, name: &str, options: &[&str], script: &str) -> Container<'_> {
        let mut all = vec!["-d", "--rm", "--name", name];
        all.extend(options);
        let output = self.shell(&all, script);
        assert!(output.status.success(), "{output:?}");
        Container {
            place: self,
            name: name.to_owned(),
        }
    }
}

/// Killed at the end of its test.
struct Container<'a> {
    place: &'a Place,
    name: String,
}

impl Container<'_> {
    fn exec(&self, words: &[&str]) -> Output {
        let mut all = vec!["exec"];
        let (options, program) = words.split_at(words.iter().position(|w| *w == "--").unwrap());
        all.extend(options);
        all.push(&self.name);
        all.extend(&program[1..]);
        self.place.bulla(&all)
    }

    fn logs(&self) -> String {
        text(&self.place.bulla(&["logs", &self.name]).stdout)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.place.bulla(&["rm", "-f", &self.name]);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn out(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

const CHANGES: &str = "set -e; cd /shared; cat given; ls | sort | tr '\\n' ' '; echo
    echo new > made; echo more >> made; mkdir -p d/e; ln made d/hard; ln -s ../made d/soft
    cat d/soft; chmod 604 made; stat -c '%a %h' made; mv made moved; cat d/hard
    dd if=/dev/zero of=big bs=100k count=13 2>/dev/null; truncate -s 70001 big; stat -c %s big
    printf XY | dd of=big bs=1 seek=65535 conv=notrunc 2>/dev/null
    dd if=big bs=1 skip=65535 count=2 2>/dev/null; echo
    touch -d '2001-02-03 04:05:06' old; stat -c %Y old; rm given; rmdir d 2>&1 | cut -d: -f3
    cat up/../moved; readlink up; cat etc";

#[test]
fn a_directory_of_the_host_is_used_as_it_is() {
    let place = Place::new();
    let shared = place.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("given"), "from the host\n").unwrap();
    fs::create_dir(shared.join("sub")).unwrap();
    symlink("sub", shared.join("up")).unwrap();
    // Its target is the container's own file, not the host's.
    symlink("/etc/hostname", shared.join("etc")).unwrap();
    let mount = format!("{}:/shared", shared.display());
    let options = ["--insecure-passthrough", &*mount];
    let output = place.shell(&options, CHANGES);
    let (seen, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{seen}\n{said}");
    assert_eq!(
        seen,
        "from the host\netc given sub up \nnew\nmore\n604 2\nnew\nmore\n70001\nXY\n981173106\n \
         Directory not empty\nnew\nmore\nsub\nbulla\n"
    );
    // Loudly.
    assert!(said.contains("insecure_passthrough mount"), "{said}");
    // The host sees all of it.
    assert_eq!(
        fs::read_to_string(shared.join("moved")).unwrap(),
        "new\nmore\n"
    );
    let moved = fs::metadata(shared.join("moved")).unwrap();
    assert_eq!((moved.mode() & 0o7777, moved.nlink()), (0o604, 2));
    assert!(!shared.join("given").exists());
    let big = fs::read(shared.join("big")).unwrap();
    assert_eq!((big.len(), &big[65535..65537]), (70001, &b"XY"[..]));
}

#[test]
fn what_the_host_changes_is_seen_and_read_only_is_read_only() {
    let place = Place::new();
    let shared = place.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("value"), "one\n").unwrap();
    let mount = format!("{}:/shared:ro", shared.display());
    let options = ["--insecure-passthrough", &*mount];
    let script = "cat /shared/value; echo x > /shared/x; chmod 777 /shared/value; rm /shared/value
        until [ -e /shared/go ]; do sleep 0.05; done; cat /shared/value /shared/late
        exec busybox sleep 1000";
    let container = place.start("ro", &options, script);
    while !container.logs().contains("one") {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    fs::write(shared.join("late"), "later\n").unwrap();
    fs::write(shared.join("next"), "two\n").unwrap();
    fs::rename(shared.join("next"), shared.join("value")).unwrap();
    fs::write(shared.join("go"), "").unwrap();
    while !container.logs().contains("later") {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let seen = container.logs();
    assert!(seen.contains("two\nlater\n"), "{seen}");
    assert_eq!(seen.matches("Read-only file system").count(), 3, "{seen}");
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 3);
}

#[test]
fn programs_and_devices_of_the_host_are_not_used() {
    let place = Place::new();
    let shared = place.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("script"), "#!/bin/busybox sh\necho it ran\n").unwrap();
    fs::set_permissions(shared.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    let made = Command::new("mkfifo").arg(shared.join("pipe")).status();
    assert!(made.unwrap().success());
    let mount = format!("{}:/shared", shared.display());
    let script = "/shared/script; cat /shared/pipe; mkfifo /shared/other
        stat -c %F /shared/pipe; busybox sh /shared/script";
    let output = place.shell(&["--insecure-passthrough", &mount], script);
    let said = text(&output.stderr);
    assert_eq!(text(&output.stdout), "fifo\nit ran\n", "{said}");
    assert!(said.contains("ermission denied"), "{said}");
    assert!(said.contains("No such device or address"), "{said}");
    assert!(said.contains("Operation not permitted"), "{said}");
}

#[test]
fn a_manifest_says_which_directories_the_host_gives() {
    let place = Place::new();
    let shared = place.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("value"), "one\n").unwrap();
    let manifest = place.write(
        "bulla.toml",
        "entrypoint = [\"busybox\", \"cat\", \"/shared/value\"]\n[[mounts]]\ntarget = \"/shared\"\n\
         type = \"insecure_passthrough\"\nread_only = true\n",
    );
    let error = place.run(&["--manifest", &manifest], &[]);
    let said = text(&error.stderr);
    assert_eq!(error.status.code(), Some(125), "{said}");
    assert!(
        said.contains("--insecure-passthrough DIR:/shared"),
        "{said}"
    );
    // As with Docker, or by its own name.
    for option in ["-v", "--insecure-passthrough"] {
        let mount = format!("{}:/shared", shared.display());
        let output = place.run(&["--manifest", &manifest, option, &mount], &[]);
        assert_eq!(out(output), "one\n", "{option}");
    }
    let other = format!("{}:/other", shared.display());
    let options = ["--manifest", &*manifest, "--insecure-passthrough", &*other];
    let output = place.run(&options, &[]);
    assert!(text(&output.stderr).contains("mounts are locked"));
    let missing = format!("{}:/shared", place.path("nowhere").display());
    let output = place.run(&["--manifest", &manifest, "-v", &missing], &[]);
    assert!(text(&output.stderr).contains("nowhere"), "{output:?}");
}

#[test]
fn programs_are_started_in_a_running_container() {
    let place = Place::new();
    let options = ["--insecure-exec", "-e", "A=container", "-w", "/tmp"];
    let script = "echo $$ > /tmp/pid; mkdir -p /srv; echo ready; exec busybox sleep 1000";
    let container = place.start("box", &options, script);
    while !container.logs().contains("ready") {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // The same files, the same processes, its own environment and directory.
    let seen = container.exec(&[
        "--",
        "busybox",
        "sh",
        "-c",
        "cat /tmp/pid; pwd; echo $A; echo to-stderr >&2; ps | grep -c 'sleep 1000'; exit 7",
    ]);
    assert_eq!(seen.status.code(), Some(7), "{seen:?}");
    assert!(
        text(&seen.stdout).starts_with("1\n/tmp\ncontainer\n"),
        "{seen:?}"
    );
    assert_eq!(text(&seen.stderr), "to-stderr\n");
    let words = ["-e", "A=mine", "-e", "B=2", "-w", "/srv", "-u", "7:8", "--"];
    let program = ["busybox", "sh", "-c", "pwd; echo $A $B; id -u; id -g"];
    let seen = container.exec(&[&words[..], &program[..]].concat());
    assert_eq!(out(seen), "/srv\nmine 2\n7\n8\n");
    // Its input is the client's, where that is wanted.
    let mut client = place.command(&["exec", "-i", "box", "busybox", "cat"]);
    let mut client = client
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = client.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"typed\n").unwrap();
    drop(input);
    assert_eq!(out(client.wait_with_output().unwrap()), "typed\n");
    // Reasons, with the exit codes of other engines.
    for (words, code, reason) in [
        (&["--", "nothing-here"][..], 127, "not found in PATH"),
        (&["--", "/etc/hostname"], 126, "permission denied"),
        (
            &["-w", "/nowhere", "--", "busybox", "true"],
            125,
            "/nowhere",
        ),
        (
            &["-u", "nobody-here", "--", "busybox", "true"],
            125,
            "nobody-here",
        ),
    ] {
        let output = container.exec(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        assert!(text(&output.stderr).contains(reason), "{output:?}");
    }
    // Many, at once.
    let clients: Vec<_> = (0..8)
        .map(|number| {
            let script = format!("echo {number}; exit {number}");
            let mut client = place.command(&["exec", "box", "busybox", "sh", "-c", &script]);
            client.stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (number, client) in clients.into_iter().enumerate() {
        let output = client.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(number as i32));
        assert_eq!(text(&output.stdout), format!("{number}\n"));
    }
    // A signal to the client is one to the program.
    let script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut client = place.command(&["exec", "box", "busybox", "sh", "-c", script]);
    let mut client = client.stdout(Stdio::piped()).spawn().unwrap();
    let mut reader = std::io::BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
    let id = client.id().to_string();
    // `timeout` passes it on.
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
    assert_eq!(line, "ready\ncaught\n");
    client.wait().unwrap();
    // The container ends, and whoever waits is told.
    let mut client = place.command(&["exec", "box", "busybox", "sleep", "1000"]);
    let client = client.stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(place.bulla(&["kill", "box"]).status.success());
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    let gone = container.exec(&["--", "busybox", "true"]);
    assert_eq!(gone.status.code(), Some(125));
}

#[test]
fn a_shell_in_a_running_container() {
    let place = Place::new();
    let script = "echo ready; exec busybox sleep 1000";
    let container = place.start("tty", &["--insecure-exec"], script);
    while !container.logs().contains("ready") {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let mut command = Command::new("env");
    command
        .arg(format!("BULLA_STATE={}", place.path("state").display()))
        .arg(bulla())
        .args(["exec", "-it", "tty", "busybox", "sh"]);
    let mut shell = Terminal::run(command, Side::Enclave);
    shell.step("PS1='rea''dy> '\n", "ready> ");
    shell.step(
        "tty -s && echo 'a t''ty'; stty size\n",
        "a tty\r\n24 80\r\nready> ",
    );
    shell.step("(echo star''ted; exec sleep 100)\n", "started");
    shell.step("\x03", "ready> ");
    shell.step("echo status $?\n", "status 130");
    shell.step("echo x > /dev/tty && echo writ''ten\n", "written");
    shell.send("exit 5\n");
    let (status, _) = shell.wait();
    assert_eq!(status.code(), Some(5));
    drop(container);
}

#[test]
fn without_leave_no_program_is_started() {
    let place = Place::new();
    let container = place.start("locked", &[], "exec busybox sleep 1000");
    let output = container.exec(&["--", "busybox", "true"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(
        said.contains("locked") && said.contains("insecure_exec = true"),
        "{said}"
    );
    // With a manifest the option says nothing.
    let manifest = place.write("bulla.toml", "entrypoint = [\"busybox\", \"true\"]\n");
    let output = place.run(&["--manifest", &manifest, "--insecure-exec"], &[]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("--insecure-exec is locked"));
    let output = place.bulla(&["exec", "nobody", "true"]);
    assert!(text(&output.stderr).contains("there is no container nobody"));
}

#[test]
fn secrets_come_from_files_in_development() {
    let place = Place::new();
    let manifest = place.write(
        "bulla.toml",
        "entrypoint = [\"busybox\", \"sh\", \"-c\", \"echo got $PASSWORD\"]\n[environment]\n\
         PASSWORD = { secret = \"db\", insecure_host = true }\n",
    );
    let file = place.write("password", "not-for-everyone\n");
    let given = format!("db={file}");
    let output = place.run(&["--manifest", &manifest, "--secret", &given], &[]);
    let said = text(&output.stderr);
    assert_eq!(out(output), "got not-for-everyone\n");
    assert!(said.contains("insecure_host secret"), "{said}");
    assert!(!said.contains("not-for-everyone"), "{said}");
    for (words, reason) in [
        (&["--manifest", &*manifest][..], "--secret db=FILE"),
        (
            &["--manifest", &manifest, "--secret", "db=/nowhere"],
            "/nowhere",
        ),
        (
            &["--manifest", &manifest, "--secret", "db"],
            "write NAME=FILE",
        ),
    ] {
        let output = place.run(words, &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains(reason), "{said}");
    }
    // Nothing takes it.
    let said = place.refused(&["--secret", &given]);
    assert!(said.contains("takes no such one"), "{said}");
    // In an image: measured without it, shown by its name, gone from records and logs.
    let image = place.path("app.tar").display().to_string();
    let archive = bulla_test_apps::image("busybox").archive;
    let archive = archive.to_str().unwrap();
    let words = [
        "build",
        archive,
        "-t",
        "s:1",
        "--manifest",
        &manifest,
        "-o",
        &image,
    ];
    out(place.bulla(&words));
    let shown = out(place.bulla(&["inspect", &image]));
    assert!(
        shown.contains("PASSWORD is the secret db, a file"),
        "{shown}"
    );
    out(place.bulla(&["measure", &image]));
    let platform = platform_options();
    let mut words = vec!["run", "-d", "--name", "s"];
    words.extend(platform.iter().map(String::as_str));
    words.extend(["--secret", &given, &image]);
    out(place.bulla(&words));
    out(place.bulla(&["wait", "s"]));
    let record = out(place.bulla(&["inspect", "s"])) + &out(place.bulla(&["ps", "-a", "--json"]));
    assert!(!record.contains("not-for-everyone"), "{record}");
    assert!(out(place.bulla(&["logs", "s"])).contains("got not-for-everyone"));
}
