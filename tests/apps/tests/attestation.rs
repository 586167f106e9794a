//! Attestation from inside: /dev/attestation, quotes that `bulla verify` accepts, and keys.

use bulla_test_apps::{Program, Side, bulla, image, platform_options, sides};
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn in_enclave(script: &str) -> String {
    let finished = Program::new("busybox", &["/bin/sh", "-c", script]).run(Side::Enclave);
    assert_eq!(finished.code, Some(0), "{finished}");
    finished.stdout
}

fn verify(arguments: &[&str]) -> Output {
    let output = Command::new("timeout")
        .arg("60")
        .arg(bulla())
        .arg("verify")
        .args(arguments)
        .output();
    output.unwrap_or_else(|error| panic!("cannot start bulla: {error}"))
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(u8::is_ascii_hexdigit)
        .map(|digit| (digit as char).to_digit(16).unwrap() as u8)
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

const HEX: &str = "od -An -v -tx1";

#[test]
fn the_files_hold_what_gramine_says() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let out = in_enclave(
        "cd /dev/attestation; cat attestation_type; echo; ls; ls keys
         wc -c < my_target_info; wc -c < report; wc -c < user_report_data
         echo -n hello > user_report_data; dd if=report bs=1 skip=320 count=6 2>/dev/null | od -An -c
         wc -c < keys/_sgx_mrenclave
         cmp -s keys/_sgx_mrenclave keys/_sgx_mrsigner || echo differ
         (echo x > report) 2>/dev/null || echo read-only
         (echo x > keys/_sgx_mrsigner) 2>/dev/null || echo read-only
         (echo -n short > keys/mine) 2>/dev/null || echo short
         echo -n 0123456789abcdef > keys/mine; cat keys/mine; echo
         sh -c 'echo -n other > user_report_data; head -c 5 user_report_data'; echo
         head -c 5 user_report_data; echo
         sh -c 'head -c 5 user_report_data'; echo
         (exec sh -c 'head -c 5 user_report_data'); echo",
    );
    let lines: Vec<&str> = out.lines().map(str::trim).collect();
    let expected = [
        "dcap",
        "attestation_type",
        "collateral",
        "keys",
        "my_target_info",
        "quote",
        "report",
        "target_info",
        "user_report_data",
        "_sgx_mrenclave",
        "_sgx_mrsigner",
        "512",
        "432",
        "64",
        r"h   e   l   l   o  \0",
        "16",
        "differ",
        "read-only",
        "read-only",
        "short",
        "0123456789abcdef",
        // A child begins with what its parent wrote, and keeps what it writes to itself.
        "other",
        "hello",
        "hello",
        "hello",
    ];
    assert_eq!(lines, expected, "{out}");
}

/// Gramine has an enclave per process: what one process writes is for its own reports.
#[test]
fn each_process_has_its_own_target_and_report_data() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    const SCRIPT: &str = r#"
import os
os.chdir("/dev/attestation")
read = lambda name: open(name, "rb").read()
def write(name, data):
    with open(name, "wb") as file: file.write(data)
own = read("my_target_info")
assert len(own) == 512 and read("target_info") == bytes(512) and read("user_report_data") == bytes(64)
before = read("report")
write("target_info", own)
assert read("target_info") == own
write("user_report_data", b"parent")
report = read("report")
assert report[320:384] == b"parent" + bytes(58)
assert report[:320] == before[:320], "the same enclave"
assert report[384:] != before[384:], "another target, another MAC"
ready, done = os.pipe(), os.pipe()
if os.fork() == 0:
    assert read("target_info") == own and read("user_report_data")[:6] == b"parent"
    write("user_report_data", b"child")
    write("target_info", bytes(512))
    assert read("report")[320:384] == b"child" + bytes(59)
    os.write(ready[1], b"x"); os.read(done[0], 1)
    assert read("report")[320:384] == b"child" + bytes(59)
    os._exit(7)
os.read(ready[0], 1)
assert read("report")[320:384] == b"parent" + bytes(58) and read("target_info") == own
write("user_report_data", b"later")
os.write(done[1], b"x")
assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
# Longer is cut off, shorter filled up; what is written in pieces counts as a whole.
write("user_report_data", bytes(range(100)))
assert read("user_report_data") == bytes(range(64))
fd = os.open("user_report_data", os.O_WRONLY)
os.write(fd, b"ab"); os.write(fd, b"cd"); os.close(fd)
assert read("report")[320:384] == b"abcd" + bytes(60)
quote = read("quote")
assert quote[48 + 320:48 + 384] == b"abcd" + bytes(60)
try: write("target_info", b"\xff" * 512); read("report"); raise SystemExit("reserved bits were taken")
except PermissionError: pass
print("right")
"#;
    let program = Program::new("python", &["python3", "-c", SCRIPT]);
    let finished = program.run(Side::Enclave);
    assert!(
        finished.code == Some(0) && finished.stdout == "right\n",
        "{finished}"
    );
}

#[test]
fn sealing_keys_stay_the_same_and_follow_the_enclave() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let key = |script: &str| {
        in_enclave(&format!(
            "{HEX} /dev/attestation/keys/_sgx_mrenclave {script}"
        ))
    };
    let (one, again, other) = (key(""), key(""), key("; true"));
    assert_eq!(unhex(&one).len(), 16);
    assert_eq!(one, again);
    assert_ne!(one, other, "another command is another enclave");
    let signer = |script: &str| {
        in_enclave(&format!(
            "{HEX} /dev/attestation/keys/_sgx_mrsigner {script}"
        ))
    };
    assert_eq!(signer(""), signer("; true"));
}

#[test]
fn a_quote_is_verified_and_its_bundle_replayed() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let out = in_enclave(&format!(
        "echo -n nonce > /dev/attestation/user_report_data; {HEX} /dev/attestation/quote"
    ));
    let quote = unhex(&out);
    fs::write(path("quote"), &quote).unwrap();
    assert_eq!(&quote[48 + 320..48 + 325], b"nonce");
    let mrenclave: String = quote[48 + 64..48 + 96]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();

    let policy = |emulated: bool, mrenclave: &str| {
        let text = format!(
            "insecure_allow_emulated = {emulated}\n[[accept]]\nmrenclave = \"{mrenclave}\"\n"
        );
        fs::write(path("policy.toml"), text).unwrap();
    };
    let judge = |more: &[&str]| {
        let (quote, policy) = (path("quote"), path("policy.toml"));
        let words = [&[&quote[..], "--offline", "--policy", &policy], more].concat();
        verify(&words)
    };
    policy(true, &mrenclave);
    let output = judge(&["--bundle", &path("bundle")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.contains("emulated") && text.contains("TRUSTED"),
        "{text}"
    );
    let replayed = verify(&["--replay", &path("bundle")]);
    assert_eq!(replayed.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&replayed.stdout), text);
    // A bundle whose verdict was turned round is no evidence.
    let verdict = fs::read_to_string(path("bundle/verdict.json")).unwrap();
    fs::write(
        path("bundle/verdict.json"),
        verdict.replace("\"trusted\": true", "\"trusted\": false"),
    )
    .unwrap();
    assert_eq!(
        verify(&["--replay", &path("bundle")]).status.code(),
        Some(3)
    );

    policy(false, &mrenclave);
    assert_eq!(judge(&[]).status.code(), Some(1), "emulated");
    policy(true, &"00".repeat(32));
    let output = judge(&["--json"]);
    assert_eq!(output.status.code(), Some(1), "another enclave");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"trusted\": false"));
    assert_eq!(
        verify(&[&path("quote"), "--offline"]).status.code(),
        Some(1),
        "no policy"
    );
    policy(true, &mrenclave);
    let mut altered = quote.clone();
    altered[48 + 64] ^= 1;
    fs::write(path("quote"), &altered).unwrap();
    assert_eq!(judge(&[]).status.code(), Some(1), "an altered quote");
    fs::write(path("quote"), b"no quote").unwrap();
    assert_eq!(judge(&[]).status.code(), Some(3));
    assert_eq!(verify(&["https://127.0.0.1:1"]).status.code(), Some(2));
}

const QUOTE: &str =
    "echo -n nonce > /dev/attestation/user_report_data; od -An -v -tx1 /dev/attestation/quote";

/// What a command prints.
fn succeed(command: &mut Command, stdin: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(stdin.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

#[test]
fn rules_about_files_need_the_right_configuration() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    fs::write(path("quote"), unhex(&in_enclave(QUOTE))).unwrap();
    let measure = |name: &str, script: &str| {
        let mut command = Command::new(bulla());
        command.args([
            "measure",
            "--json",
            "--configuration",
            &path(name),
            "--rootfs",
        ]);
        command.arg(image("busybox").rootfs);
        let text = succeed(command.args(["/bin/sh", "-c", script]), "");
        let measured: serde_json::Value = serde_json::from_str(&text).unwrap();
        measured["rootfs_hash"].as_str().unwrap().to_owned()
    };
    let rootfs = measure("right.json", QUOTE);
    assert_eq!(measure("wrong.json", "true"), rootfs, "the same files");
    let policy = |rootfs: &str, command: &str| {
        let text = format!(
            "insecure_allow_emulated = true\n[[accept]]\nrootfs = \"{rootfs}\"\n\
             command = [\"/bin/sh\", \"-c\", '{command}']\n"
        );
        fs::write(path("policy.toml"), text).unwrap();
    };
    let judge = |more: &[&str]| {
        let (quote, policy) = (path("quote"), path("policy.toml"));
        let words = [&[&quote[..], "--offline", "--policy", &policy], more].concat();
        let output = verify(&words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    };
    let (right, wrong) = (path("right.json"), path("wrong.json"));
    policy(&rootfs, QUOTE);
    let bundle = path("bundle");
    let (code, text) = judge(&["--configuration", &right, "--bundle", &bundle]);
    assert!(code == Some(0) && text.contains("TRUSTED"), "{text}");
    let replayed = verify(&["--replay", &bundle]);
    assert_eq!(replayed.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&replayed.stdout), text);
    let (code, text) = judge(&[]);
    assert!(
        code == Some(1) && text.contains("--configuration"),
        "{text}"
    );
    let (code, text) = judge(&["--configuration", &wrong]);
    assert!(
        code == Some(1) && text.contains("another enclave's"),
        "{text}"
    );
    // A document that says something else than what it was made from measures to something else.
    let document = fs::read_to_string(&right).unwrap();
    let at = document.rfind("\"config\": \"").unwrap() + 200;
    let other = if document.as_bytes()[at] == b'A' {
        "B"
    } else {
        "A"
    };
    fs::write(
        path("bad.json"),
        [&document[..at], other, &document[at + 1..]].concat(),
    )
    .unwrap();
    assert!(matches!(
        judge(&["--configuration", &path("bad.json")]).0,
        Some(1 | 3)
    ));
    fs::write(path("bad.json"), "{}").unwrap();
    assert_eq!(judge(&["--configuration", &path("bad.json")]).0, Some(3));
    assert_eq!(judge(&["--configuration", &path("none.json")]).0, Some(3));
    policy(&"01".repeat(32), QUOTE);
    assert_eq!(
        judge(&["--configuration", &right]).0,
        Some(1),
        "other files"
    );
    policy(&rootfs, "another command");
    assert_eq!(
        judge(&["--configuration", &right]).0,
        Some(1),
        "another command"
    );
    fs::write(
        path("policy.toml"),
        format!("insecure_allow_emulated = true\n[[accept]]\nrootfs = \"{rootfs}\"\n"),
    )
    .unwrap();
    assert_eq!(
        judge(&["--configuration", &right]).0,
        Some(3),
        "any command"
    );
}

#[test]
fn rules_about_images_need_the_image() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let archive = image("busybox").archive;
    let digest = {
        let text = succeed(
            Command::new(bulla())
                .args(["measure", "--json"])
                .arg(&archive),
            "",
        );
        let measured: serde_json::Value = serde_json::from_str(&text).unwrap();
        measured["image"].as_str().unwrap().to_owned()
    };
    let policy = |digest: &str| {
        let text = format!("insecure_allow_emulated = true\n[[accept]]\nimage = \"{digest}\"\n");
        fs::write(path("policy.toml"), text).unwrap();
    };
    let judge = |more: &[&std::ffi::OsStr]| {
        let mut command = Command::new(bulla());
        command.args([
            "verify",
            &path("quote"),
            "--offline",
            "--policy",
            &path("policy.toml"),
        ]);
        let output = command.args(more).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    };
    let tag = format!("bulla-test-{}:sgx", std::process::id());
    succeed(
        Command::new(bulla())
            .arg("build")
            .arg(&archive)
            .args(["-t", &tag]),
        "",
    );
    for subject in [archive.as_os_str(), tag.as_ref()] {
        let mut run = Command::new(bulla());
        run.args(["run", "--quiet", "-i"])
            .args(platform_options())
            .arg(subject);
        fs::write(path("quote"), unhex(&succeed(&mut run, QUOTE))).unwrap();
        policy(&digest);
        let (code, text) = judge(&["--image".as_ref(), archive.as_os_str()]);
        assert!(
            code == Some(0) && text.contains(&digest),
            "{subject:?}: {text}"
        );
        assert_eq!(judge(&[]).0, Some(1), "{subject:?}: nothing is shown");
        let other = image("micro").archive;
        assert_eq!(
            judge(&["--image".as_ref(), other.as_os_str()]).0,
            Some(1),
            "{subject:?}"
        );
        policy(&format!("sha256:{}", "01".repeat(32)));
        assert_eq!(
            judge(&["--image".as_ref(), archive.as_os_str()]).0,
            Some(1),
            "{subject:?}"
        );
    }
    // With another command it is not that image any more.
    let mut run = Command::new(bulla());
    run.args(["run", "--quiet"])
        .args(platform_options())
        .arg(&archive);
    let text = succeed(run.args(["sh", "-c", QUOTE]), "");
    fs::write(path("quote"), unhex(&text)).unwrap();
    policy(&digest);
    // An image that nobody gives, and one that is none.
    let absent = judge(&["--image".as_ref(), "localhost:1/absent:1".as_ref()]);
    assert_eq!(absent.0, Some(2), "{}", absent.1);
    let none = judge(&["--image".as_ref(), "/etc/hostname".as_ref()]);
    assert_eq!(none.0, Some(3), "{}", none.1);
    assert_eq!(judge(&["--image".as_ref(), archive.as_os_str()]).0, Some(1));
}

/// Whatever a server does, `bulla verify` ends, with the exit code of what cannot be reached. (One that
/// did not end would be ended by `timeout`, with another code.)
#[test]
fn hostile_servers_cost_a_time_out_and_no_more() {
    use std::net::{TcpListener, TcpStream};
    type Act = fn(TcpStream);
    let silent: Act = |stream| {
        std::thread::sleep(std::time::Duration::from_secs(120));
        drop(stream);
    };
    let slow: Act = |mut stream| {
        // A TLS record of 16 KiB that comes a byte at a time.
        let _ = stream.write_all(&[22, 3, 3, 0x40, 0]);
        while stream.write_all(&[2]).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    let endless: Act = |mut stream| while stream.write_all(&[b'H'; 65536]).is_ok() {};
    let headers: Act = |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream
            .write_all(b"X: yyyyyyyyyyyyyyyyyyyyyyyyy\r\n")
            .is_ok()
        {}
    };
    let other: Act = |mut stream| {
        let _ = stream.write_all(b"220 mail.example ESMTP\r\n");
    };
    let closing: Act = drop;
    let quote = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../crates/attest/tests/data/sgx_quote"
    );
    let state = tempfile::tempdir().unwrap();
    for (name, act) in [
        ("silent", silent),
        ("slow", slow),
        ("endless", endless),
        ("headers", headers),
        ("other", other),
        ("closing", closing),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                std::thread::spawn(move || act(stream));
            }
        });
        let (endpoint, coordinator) = (
            format!("https://{address}"),
            format!("coordinator://{address}"),
        );
        let (pccs, plain) = (endpoint.clone(), format!("http://{address}"));
        for subject in [
            vec![endpoint.as_str()],
            vec![&coordinator],
            vec![quote, "--pccs", &pccs],
            vec![quote, "--pccs", &plain],
        ] {
            let output = Command::new("timeout")
                .arg("60")
                .arg(bulla())
                .args(["verify", "--timeout", "1"])
                .args(&subject)
                .env("BULLA_STATE", state.path())
                .output()
                .unwrap();
            assert_eq!(
                output.status.code(),
                Some(2),
                "{name}, {subject:?}: {output:?}"
            );
        }
    }
}
