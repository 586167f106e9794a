//! The command line around a program: exit codes, options, identity, mistakes.

use bulla_test_apps::{Finished, Program, Side, bulla, image, platform_options, sides};
use std::process::{Command, Output};

fn run_bulla(arguments: &[&str]) -> Output {
    let output = Command::new("timeout")
        .arg("60")
        .arg(bulla())
        .args(arguments)
        .output();
    output.unwrap_or_else(|error| panic!("cannot start bulla: {error}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn only_enclave() -> bool {
    sides().contains(&Side::Enclave)
}

fn shell(script: &str) -> Program {
    Program::new("busybox", &["/bin/sh", "-c", script])
}

#[test]
fn exit_codes_are_the_programs() {
    for code in [0, 1, 42, 255] {
        assert_eq!(shell(&format!("exit {code}")).compare().code, Some(code));
    }
}

#[test]
fn exit_codes_after_signals() {
    // A fault ends even the first process, which otherwise ignores signals it has no handler for
    // (pid_namespaces(7)); a child dies of any.
    if only_enclave() {
        let program = ["python3", "-c", "import ctypes; ctypes.string_at(0)"];
        let finished = Program::new("tools", &program).run(Side::Enclave);
        assert_eq!(finished.code, Some(139), "{finished}");
        for (signal, number) in [("KILL", 9), ("TERM", 15), ("SEGV", 11)] {
            let finished = shell(&format!("sh -c 'kill -{signal} $$'; exit $?")).run(Side::Enclave);
            assert_eq!(finished.code, Some(128 + number), "{signal}: {finished}");
            let finished = shell(&format!("kill -{signal} $$; echo alive")).run(Side::Enclave);
            assert_eq!(finished.stdout, "alive\n", "{signal}: {finished}");
        }
    }
}

#[test]
fn entry_points_that_cannot_start() {
    if !only_enclave() {
        return;
    }
    let run = |words: &[&str]| -> Finished { Program::new("busybox", words).run(Side::Enclave) };
    for (words, code, said) in [
        (&["/bin/absent"][..], 127, "/bin/absent"),
        (&["absent-from-path"], 127, "absent-from-path"),
        (&["/etc/passwd"], 126, "/etc/passwd"),
        (&["/etc"], 126, "/etc"),
    ] {
        let finished = run(words);
        assert_eq!(finished.code, Some(code), "{words:?}: {finished}");
        let lines: Vec<&str> = finished
            .messages
            .lines()
            .filter(|l| l.contains(said))
            .collect();
        assert_eq!(lines.len(), 1, "one clear line: {finished}");
    }
}

#[test]
fn a_missing_interpreter_is_an_error() {
    if !only_enclave() {
        return;
    }
    let finished =
        shell("printf '#!/no/such/interpreter\\n' > /tmp/s; chmod +x /tmp/s; /tmp/s; echo $?")
            .run(Side::Enclave);
    assert_eq!(finished.stdout, "127\n", "{finished}");
    // The dynamic hello of the tools image, without its dynamic loader.
    let directory = tempfile::tempdir().unwrap();
    let hello = image("tools").rootfs.join("opt/bench/hello");
    std::fs::copy(hello, directory.path().join("hello")).unwrap();
    let path = directory.path().to_str().unwrap();
    let mut arguments = vec!["run".to_owned()];
    arguments.extend(platform_options());
    arguments.extend(["--rootfs".into(), path.into(), "/hello".into()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = run_bulla(&arguments);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(127), "{stderr}");
    assert!(
        stderr.contains("interpreter") && stderr.contains("/hello"),
        "{stderr}"
    );
}

#[test]
fn options_reach_the_program() {
    if !only_enclave() {
        return;
    }
    let script = "pwd; id -u; id -g; hostname; echo $A; echo ${B-unset}; cat /etc/hostname";
    let finished = shell(script)
        .env("A", "from -e")
        .option(&[
            "-w",
            "/tmp",
            "--user",
            "1000:1001",
            "--hostname",
            "somehost",
        ])
        .run(Side::Enclave);
    let expected = "/tmp\n1000\n1001\nsomehost\nfrom -e\nunset\nsomehost\n";
    assert_eq!(finished.stdout, expected, "{finished}");
}

#[test]
fn an_unknown_user_is_an_error() {
    if !only_enclave() {
        return;
    }
    let finished = shell("true")
        .option(&["--user", "nobody-here"])
        .run(Side::Enclave);
    assert_eq!(finished.code, Some(125), "{finished}");
    assert!(finished.messages.contains("nobody-here"), "{finished}");
}

#[test]
fn signals_are_forwarded() {
    let script = "trap 'echo got term; exit 9' TERM; trap 'echo got usr1' USR1
        echo ready; i=0; while [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done";
    for side in sides() {
        let child = shell(script)
            .command(side)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let id = child.id().to_string();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        for signal in ["USR1", "TERM"] {
            Command::new("kill")
                .args(["-s", signal, &id])
                .status()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        let output = child.wait_with_output().unwrap();
        let stdout = text(&output.stdout);
        assert_eq!(stdout, "ready\ngot usr1\ngot term\n", "{side:?}");
        assert_eq!(output.status.code(), Some(9), "{side:?}");
    }
}

#[test]
fn a_program_that_goes_on_is_killed_at_the_third_request() {
    if !only_enclave() {
        return;
    }
    for signal in ["TERM", "INT"] {
        let mut child = shell("trap '' TERM INT; echo ready; while true; do sleep 1; done")
            .command(Side::Enclave)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        let stdout = child.stdout.as_mut().unwrap();
        std::io::Read::read_exact(stdout, &mut ready).unwrap();
        for turn in 0..3 {
            assert!(child.try_wait().unwrap().is_none(), "{signal} {turn}");
            Command::new("kill")
                .args(["-s", signal, &child.id().to_string()])
                .status()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(137), "{signal}");
        let said = text(&output.stderr);
        assert!(said.contains("asked 3 times to end"), "{said}");
    }
}

fn measure(arguments: &[&str]) -> serde_json::Value {
    let output = run_bulla(&[&["measure", "--json"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn measure_predicts_what_run_reports() {
    if !only_enclave() {
        return;
    }
    let archive = image("busybox").archive;
    let archive = archive.to_str().unwrap();
    let workload = ["-e", "A=b", "--hostname", "h", archive, "echo", "x"];
    let predicted = measure(&workload);
    for layout in predicted["layouts"].as_array().unwrap() {
        let name = layout["layout"].as_str().unwrap();
        let mut arguments = vec!["run", "--json", "--platform", "emulated", "--layout", name];
        arguments.extend(workload);
        let output = run_bulla(&arguments);
        let stderr = text(&output.stderr);
        assert_eq!(text(&output.stdout), "x\n", "{stderr}");
        let start: serde_json::Value =
            serde_json::from_str(stderr.lines().next().unwrap()).unwrap();
        assert_eq!(start["mrenclave"], layout["mrenclave"], "{name}");
        assert_eq!(start["mrsigner"], predicted["mrsigner"]);
        assert_eq!(start["emulated"], true);
        assert!(start["warnings"][0].as_str().unwrap().contains("EMULATED"));
    }
}

#[test]
fn a_key_that_is_named_signs_and_its_owner_is_who_says_so() {
    if !only_enclave() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.pem");
    let made = std::process::Command::new("openssl")
        .args([
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:3072",
        ])
        .args(["-pkeyopt", "rsa_keygen_pubexp:3", "-out"])
        .arg(&key)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let key = key.to_str().unwrap();
    let archive = image("busybox").archive;
    let archive = archive.to_str().unwrap();
    let own = measure(&[archive, "true"]);
    let signed = measure(&["--sign-key", key, archive, "true"]);
    assert_eq!(own["layouts"], signed["layouts"]);
    assert_ne!(own["mrsigner"], signed["mrsigner"]);
    assert_eq!(own["development_key"], true);
    assert_eq!(signed["development_key"], false);
    for _ in 0..2 {
        let words = [
            "run",
            "--json",
            "--platform",
            "emulated",
            "--sign-key",
            key,
            archive,
            "true",
        ];
        let output = run_bulla(&words);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        let start: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        assert_eq!(start["mrsigner"], signed["mrsigner"]);
    }
    let output = run_bulla(&["measure", "--sign-key", "/nowhere/key.pem", archive, "true"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("/nowhere/key.pem"));
}

#[test]
fn measurements_follow_every_input() {
    let archive = image("busybox").archive;
    let archive = archive.to_str().unwrap();
    let base = measure(&[archive]);
    assert_eq!(base, measure(&[archive]), "stable");
    let layout = image("busybox").layout;
    assert_eq!(
        base["layouts"],
        measure(&[layout.to_str().unwrap()])["layouts"],
        "same content"
    );
    for changed in [
        &["-e", "A=b", archive][..],
        &["-w", "/tmp", archive],
        &["--user", "1", archive],
        &["--hostname", "other", archive],
        &["--memory", "3G", archive],
        &["--threads", "100", archive],
        &["--dns", "192.0.2.1", archive],
        &["--strace", archive],
        &["--entrypoint", "/bin/ls", archive],
        &[archive, "ls"],
    ] {
        assert_ne!(base["layouts"], measure(changed)["layouts"], "{changed:?}");
    }
}

#[test]
fn emulation_is_announced_loudly() {
    if !only_enclave() {
        return;
    }
    let finished = shell("true").run(Side::Enclave);
    assert!(finished.messages.contains("WARNING") && finished.messages.contains("EMULATED"));
    let finished = shell("true").option(&["--strace"]).run(Side::Enclave);
    assert!(finished.messages.contains("insecure_strace"), "{finished}");
}

#[test]
fn mistakes_get_one_clear_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "no image").unwrap();
    let file = file.to_str().unwrap();
    let archive = image("busybox").archive;
    let truncated = directory.path().join("truncated.tar");
    let bytes = std::fs::read(&archive).unwrap();
    std::fs::write(&truncated, &bytes[..bytes.len() / 2]).unwrap();
    let (archive, truncated) = (archive.to_str().unwrap(), truncated.to_str().unwrap());
    for (arguments, said) in [
        (&["run", "absent.tar"][..], "there is no file"),
        (&["run", file], "neither a docker-archive"),
        (&["run", truncated], "truncated"),
        (&["run", directory.path().to_str().unwrap()], "--rootfs"),
        (&["run", "--rootfs", file, "x"], "needs a directory"),
        (&["run", "-p", "8080:80", archive], "listen on 8080"),
        (&["run", "-p", "x", archive], "not a port"),
        (&["run", "--memory", "lots", archive], "not a size"),
        (&["run", "--memory", "999999T", archive], "memory"),
        // Nothing is asked of the image's registry before the options are understood.
        (
            &["run", "--memory", "lots", "absent.invalid/x"],
            "not a size",
        ),
        (&["run", "--sign-key", file, archive], file),
        (&["run", "-w", "relative", archive], "not absolute"),
        (&["run", "-e", "=x", archive], "environment variable"),
        (&["run", "--env-file", "absent", archive], "env-file"),
        (&["run", "--hostname", "a b", archive], "host name"),
        (&["run", "--profile", "nonesuch", archive], "dcsv3-5.15"),
        (
            &[
                "run",
                "--platform",
                "emulated",
                "--profile",
                "dcsv2",
                "--layout",
                "dynamic",
                archive,
            ],
            "EDMM",
        ),
        (&["run"], "required"),
        (&["run", "--nonsense", archive], "--nonsense"),
        (&["measure", "absent.tar"], "there is no file"),
        (&["inspect", file], "neither a docker-archive"),
    ] {
        let output = run_bulla(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
        if !stderr.starts_with("error:") {
            assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
        }
    }
}

#[test]
fn unreadable_files_are_named() {
    // As another user, since root may read everything.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("image.tar");
    std::fs::copy(image("busybox").archive, &file).unwrap();
    let set = |mode: &str, path: &std::path::Path| {
        Command::new("chmod").arg(mode).arg(path).status().unwrap();
    };
    set("755", directory.path());
    set("600", &file);
    std::fs::create_dir(directory.path().join("cache")).unwrap();
    set("777", &directory.path().join("cache"));
    let binary = directory.path().join("bulla");
    std::fs::copy(bulla(), &binary).unwrap();
    let output = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "env",
            "HOME=/tmp",
        ])
        .env("BULLA_CACHE", directory.path().join("cache"))
        .arg(&binary)
        .arg("inspect")
        .arg(&file)
        .output()
        .unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(
        stderr.contains("Permission denied") && stderr.contains("image.tar"),
        "{stderr}"
    );
}

#[test]
fn a_port_in_use_is_named() {
    for protocol in ["tcp", "udp"] {
        let tcp = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let udp = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = match protocol {
            "tcp" => tcp.local_addr().unwrap().port(),
            _ => udp.local_addr().unwrap().port(),
        };
        let archive = image("busybox").archive;
        let publish = format!("{port}/{protocol}");
        let output = run_bulla(&["run", "-p", &publish, archive.to_str().unwrap(), "true"]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{stderr}");
        let said = format!("port {port} is in use");
        assert!(
            stderr.contains(&said) && stderr.lines().count() == 1,
            "{stderr}"
        );
    }
}

#[test]
fn programs_and_images_for_other_machines_are_refused() {
    // An image for another architecture, by its configuration.
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("oci");
    let script = r#"set -e
        mkdir "$1" && cd "$1" && tar -xf "$0"
        config=$(sed 's/.*"Config":"\([^"]*\)".*/\1/' manifest.json)
        sed 's/"architecture":"amd64"/"architecture":"arm64"/' "$config" > other
        new=$(sha256sum other | cut -d' ' -f1).json
        mv other "$new"
        sed -i "s/$config/$new/" manifest.json
        tar -cf ../other.tar *"#;
    let status = Command::new("sh")
        .args(["-c", script])
        .arg(image("busybox").archive)
        .arg(&layout)
        .status()
        .unwrap();
    assert!(status.success());
    let other = directory.path().join("other.tar");
    let output = run_bulla(&["run", other.to_str().unwrap(), "true"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(
        stderr.contains("linux/arm64") && stderr.lines().count() == 1,
        "{stderr}"
    );
    if !only_enclave() {
        return;
    }
    // A program for another one in an image for this.
    let mut program = std::fs::read(image("busybox").rootfs.join("bin/busybox")).unwrap();
    const MACHINE: usize = 18;
    const AARCH64: u16 = 183;
    program[MACHINE..MACHINE + 2].copy_from_slice(&AARCH64.to_le_bytes());
    let root = directory.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("program"), program).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(root.join("program"), mode).unwrap();
    let root = root.to_str().unwrap();
    let options = platform_options();
    let mut words: Vec<&str> = vec!["run", "--quiet"];
    words.extend(options.iter().map(String::as_str));
    words.extend(["--rootfs", root, "/program"]);
    let output = run_bulla(&words);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(126), "{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|l| l.contains("/program")).collect();
    assert!(lines.len() == 1 && lines[0].contains("x86-64"), "{stderr}");
}

#[test]
fn too_little_memory_is_said() {
    if !only_enclave() {
        return;
    }
    // The host's: no room for the enclave's address range.
    let archive = image("busybox").archive;
    let archive = archive.to_str().unwrap();
    let output = Command::new("prlimit")
        .arg("--as=4000000000")
        .arg(bulla())
        .args(["run", "--quiet", "--platform", "emulated", archive, "true"])
        .output()
        .unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    let lines = stderr.lines().filter(|line| !line.contains("WARNING"));
    let lines: Vec<&str> = lines.collect();
    assert!(
        lines.len() == 1 && lines[0].contains("ulimit -v"),
        "{stderr}"
    );
    // The container's: the program finds the limit and says so itself, or bulla says why it ended.
    for profile in ["full", "dcsv3-5.15"] {
        let script = "x=0123456789abcdef; while true; do x=$x$x; done";
        let finished = shell(script)
            .option(&["--memory", "64M", "--profile", profile])
            .run(Side::Enclave);
        assert_ne!(finished.code, Some(0), "{profile}: {finished}");
        assert_ne!(finished.code, Some(125), "{profile}: {finished}");
        let said = [&finished.stderr, &finished.messages];
        assert!(
            said.iter().any(|text| text.contains("out of memory")),
            "{finished}"
        );
    }
}

/// Names in a directory, if it is there.
fn names(path: &std::path::Path) -> Vec<std::ffi::OsString> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

#[test]
fn killing_bulla_leaves_nothing() {
    if !only_enclave() {
        return;
    }
    let marker = format!("marker-{}", std::process::id());
    let directory = tempfile::tempdir().unwrap();
    let temporary = directory.path().join("tmp");
    let state = directory.path().join("state");
    std::fs::create_dir(&temporary).unwrap();
    // While it starts, and when it runs.
    for wait in [20, 100, 1500] {
        let mut child = Program::new(
            "busybox",
            &["/bin/sh", "-c", "sleep 60 & sleep 60", &marker],
        )
        .command(Side::Enclave)
        .env("TMPDIR", &temporary)
        .env("BULLA_STATE", &state)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        assert!(child.try_wait().unwrap().is_none(), "ended early");
        child.kill().unwrap();
        child.wait().unwrap();
        let processes = Command::new("ps").args(["-eo", "args"]).output().unwrap();
        let left = text(&processes.stdout);
        assert!(!left.lines().any(|line| line.contains(&marker)), "{left}");
        let shared = names("/dev/shm".as_ref());
        assert!(
            !shared
                .iter()
                .any(|name| name.to_string_lossy().contains("bulla")),
            "{shared:?}"
        );
        assert!(names(&temporary).is_empty(), "{:?}", names(&temporary));
    }
    // Nor does the next command find anything of it.
    let listed = Command::new(bulla())
        .args(["ps", "-a"])
        .env("BULLA_STATE", &state)
        .output()
        .unwrap();
    let listed = text(&listed.stdout);
    assert!(listed.lines().count() <= 1, "{listed}");
}

#[test]
fn every_profile_runs_a_program() {
    if !only_enclave() {
        return;
    }
    for profile in ["dcsv2", "dcsv3-5.15", "dcsv3-6.8", "full"] {
        let finished = Program::new("busybox", &["/bin/sh", "-c", "echo $((6 * 7)) | cat"])
            .option(&["--profile", profile, "--memory", "256M"])
            .run(Side::Enclave);
        assert_eq!(finished.stdout, "42\n", "{profile}: {finished}");
    }
}

/// Pages, not time: what the runtime itself has in the enclave when a program of some size has run,
/// all of it: code, heap, stacks and areas of the threads.
#[test]
fn the_runtime_takes_at_most_32_mib() {
    if !only_enclave() {
        return;
    }
    for argv in [
        &[
            "/bin/sh",
            "-c",
            "ls -R / | wc -l; for i in 1 2 3 4; do echo $i | cat; done",
        ][..],
        &["/bin/busybox", "true"],
    ] {
        let finished = Program::new("busybox", argv)
            .option(&["--json", "--stats", "--profile", "full"])
            .run(Side::Enclave);
        let end: serde_json::Value = finished
            .messages
            .lines()
            .chain(finished.stderr.lines())
            .filter_map(|line| serde_json::from_str(line).ok())
            .find(|value: &serde_json::Value| value["event"] == "end")
            .unwrap_or_else(|| panic!("no counters: {finished}"));
        let stats = &end["stats"];
        let added = stats["added_bytes"].as_u64().unwrap();
        let later = stats["platform_counters"]["eaug_pages_runtime"].as_u64();
        let total = added + later.unwrap() * 4096;
        assert!(total > 1 << 20, "{stats}");
        assert!(total <= 32 << 20, "{argv:?}: {} KiB\n{stats}", total >> 10);
    }
}

#[test]
fn stats_count_something() {
    if !only_enclave() {
        return;
    }
    let archive = image("busybox").archive;
    let output = run_bulla(&[
        "run",
        "--json",
        "--stats",
        "--platform",
        "emulated",
        archive.to_str().unwrap(),
        "echo",
        "x",
    ]);
    let stderr = text(&output.stderr);
    let end: serde_json::Value = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
    assert_eq!(end["exit_code"], 0, "{stderr}");
    assert!(end["stats"]["entries"].as_u64().unwrap() > 0, "{stderr}");
    assert!(
        end["stats"]["host_calls"]["Write"].as_u64().unwrap() > 0,
        "{stderr}"
    );
}

#[test]
fn doctor_explains() {
    let output = run_bulla(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let usable = report["platform"] != "none";
    assert_eq!(output.status.success(), usable);
    assert!(report["hardware"].as_array().unwrap().len() > 1);
    // With too small an address space: says so instead of failing.
    let limited = format!("ulimit -v 4000000; exec {} doctor", bulla().display());
    let output = Command::new("bash")
        .args(["-c", &limited])
        .output()
        .unwrap();
    assert!(
        text(&output.stdout).contains("ulimit -v unlimited"),
        "{}",
        text(&output.stderr)
    );
}

/// A root directory that holds the program and nothing else: no /proc, no /sys, no /dev, no /etc.
#[test]
fn doctor_explains_where_there_is_nothing() {
    let root = tempfile::tempdir().unwrap();
    std::fs::copy(bulla(), root.path().join("bulla")).unwrap();
    let output = Command::new("timeout")
        .args(["60", "chroot"])
        .arg(root.path())
        .args(["/bulla", "doctor"])
        .output()
        .unwrap();
    let printed = text(&output.stdout);
    let usable = !printed.contains("Platform: none");
    assert_eq!(output.status.success(), usable, "{printed}");
    for part in [
        "there is no /dev/sgx_enclave",
        "there is no /proc/meminfo",
        "mount -t proc proc /proc",
        "there is no AESM at",
        "there is no /etc/sgx_default_qcnl.conf",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    // What is missing comes with what to do about it.
    let lines: Vec<&str> = printed.lines().map(str::trim).collect();
    for pair in lines.windows(2) {
        if pair[0].starts_with("missing ") || pair[0].starts_with("note ") {
            assert!(pair[1].starts_with("-> "), "{pair:?}");
        }
    }
}

#[test]
fn completions_are_generated() {
    for name in ["bash", "zsh", "fish"] {
        let output = run_bulla(&["completions", name]);
        assert!(
            output.status.success() && text(&output.stdout).contains("measure"),
            "{name}"
        );
    }
}

/// Whether the programs are linked statically: only then does one become another.
fn is_static() -> bool {
    let linked = Command::new("ldd").arg(bulla()).output().unwrap();
    !text(&linked.stdout).contains("libc")
}

/// Starts a container of a known image, and says by which program of `directory` it is run.
fn runner(directory: &std::path::Path) -> String {
    let mut child = Command::new(directory.join("bulla"))
        .args(["run", "-i", "--quiet", "--entrypoint", ""])
        .args(platform_options())
        .arg(image("busybox").archive)
        .args(["/bin/sh", "-c", "echo ready; cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut answer = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut answer, &mut line).unwrap();
    assert_eq!(line, "ready\n");
    let process = std::path::PathBuf::from(format!("/proc/{}", child.id()));
    let program = std::fs::read_link(process.join("exe")).unwrap();
    let name = std::fs::read_to_string(process.join("comm")).unwrap();
    assert_eq!(name, "bulla\n");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    program.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_known_image_is_run_by_the_small_program_of_the_same_build() {
    if !only_enclave() || !is_static() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let small = bulla().with_file_name("bulla-run");
    let whole = directory.path().join("bulla");
    std::fs::copy(bulla(), &whole).unwrap();
    assert_eq!(runner(directory.path()), "bulla");
    std::fs::copy(&small, directory.path().join("bulla-run")).unwrap();
    assert_eq!(runner(directory.path()), "bulla-run");
    // Mistakes are explained by the whole program, and so is what is not known yet.
    let output = Command::new(&whole)
        .args(["run", "--no-such-option"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("no option --no-such-option"));
    // Another build's.
    let mut bytes = std::fs::read(&whole).unwrap();
    let note = b"bulla\0\0\0";
    let at = bytes[..4096]
        .windows(note.len())
        .position(|part| part == note);
    bytes[at.unwrap() + note.len()] ^= 1;
    std::fs::remove_file(&whole).unwrap();
    std::fs::write(&whole, bytes).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&whole, mode).unwrap();
    assert_eq!(runner(directory.path()), "bulla");
    // Alone it can do nothing.
    std::fs::remove_file(&whole).unwrap();
    let output = Command::new(directory.path().join("bulla-run"))
        .arg("run")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("install both"));
}
