//! Confidential images: manifest, build, measure, sign, diff, registries, engines, containers.

use bulla_test_apps::{bulla, image, platform_options};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A place with its own cache and state.
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
            .arg("120")
            .arg(bulla())
            .args(words)
            .env("BULLA_CACHE", self.path("cache"))
            .env("BULLA_STATE", self.path("state"))
            .env("DOCKER_CONFIG", self.path("docker"))
            .env_remove("SOURCE_DATE_EPOCH");
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn succeed(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(
            output.status.success(),
            "bulla {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn fail(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(
            output.status.code(),
            Some(125),
            "bulla {words:?}: {output:?}"
        );
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.succeed(words)).unwrap()
    }

    /// Runs an image in an enclave.
    fn start(&self, words: &[&str]) -> Output {
        let platform = platform_options();
        let mut all = vec!["run", "--quiet"];
        all.extend(platform.iter().map(String::as_str));
        all.extend(words);
        self.run(&all)
    }
}

fn busybox() -> String {
    image("busybox").archive.to_str().unwrap().to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const MANIFEST: &str = r#"
entrypoint = ["/bin/busybox"]
product_id = 7
security_version = 3
memory = "256M"
threads = 16
[arguments]
mode = "host"
fixed = ["echo", "default"]
patterns = ["env", "mount", "cat", "/etc/*", "sleep", "[0-9]*", "sh", "-c", "trap *", "touch*"]
[environment]
FIXED = "yes"
LOG = { host = true, pattern = "[a-z]*" }
[network]
hosts = { db = "10.1.2.3" }
[[mounts]]
target = "/data"
type = "tmpfs"
size = "1M"
"#;

#[test]
fn the_host_enters_only_where_the_manifest_says_so() {
    let place = Place::new();
    let manifest = place.write("bulla.toml", MANIFEST);
    let image = busybox();
    let run = |options: &[&str], words: &[&str]| {
        let mut all = vec!["--manifest", &manifest];
        all.extend(options);
        all.push(&image);
        all.extend(words);
        place.start(&all)
    };
    assert_eq!(text(&run(&[], &[]).stdout), "default\n");
    let env = text(&run(&["-e", "LOG=debug"], &["env"]).stdout);
    assert!(
        env.contains("LOG=debug\n") && env.contains("FIXED=yes\n"),
        "{env}"
    );
    let mounts = text(&run(&[], &["mount"]).stdout);
    assert!(mounts.contains("tmpfs on /data"), "{mounts}");
    let hosts = text(&run(&["--add-host", "x:10.9.9.9"], &["cat", "/etc/hosts"]).stdout);
    assert!(
        hosts.contains("10.1.2.3\tdb\n") && hosts.contains("10.9.9.9\tx\n"),
        "{hosts}"
    );
    for (options, words, said) in [
        (&["-e", "LOG=9"][..], &[][..], "LOG does not match"),
        (&["-e", "OTHER=x"], &[], "OTHER"),
        (&["--user", "1"], &[], "--user is locked"),
        (&["--memory", "1G"], &[], "--memory is locked"),
        (&["--entrypoint", "/bin/sh"], &[], "--entrypoint is locked"),
        (&["--hostname", "x"], &[], "host name"),
        (&[], &["reboot"], "matches none"),
    ] {
        let output = run(options, words);
        assert_eq!(output.status.code(), Some(125), "{options:?} {words:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains(said), "{options:?} {words:?}: {stderr}");
    }
}

#[test]
fn manifests_with_mistakes() {
    let place = Place::new();
    let bad = place.write("bad.toml", "memroy = \"1G\"\n");
    let error = place.fail(&["manifest", "check", &bad]);
    assert!(error.contains("did you mean `memory`"), "{error}");
    let schema = place.json(&["manifest", "schema"]);
    assert!(schema["properties"]["memory"]["description"].is_string());
    let start = place.succeed(&["manifest", "init", &busybox()]);
    let start = place.write("start.toml", &start);
    place.succeed(&["manifest", "check", &start]);
    for (kind, said) in [
        ("volume", "add -v DIR:/x"),
        ("insecure_passthrough", "add --insecure-passthrough DIR:/x"),
    ] {
        let text = format!("[[mounts]]\ntarget = \"/x\"\ntype = \"{kind}\"\n");
        let file = place.write("mount.toml", &text);
        let error = place.fail(&["run", "--manifest", &file, &busybox()]);
        assert!(error.contains(said), "{error}");
    }
    let tmpfs = "[[mounts]]\ntarget = \"/x\"\ntype = \"tmpfs\"\nsize = \"much\"\n";
    for (text, key) in [("memory = \"1Q\"\n", "memory"), (tmpfs, "mounts.size")] {
        let file = place.write("size.toml", text);
        let error = place.fail(&["run", "--manifest", &file, &busybox()]);
        let named = format!("{key} of the manifest: ");
        assert!(
            error.contains(&named) && error.contains("is not a size"),
            "{error}"
        );
    }
}

#[test]
fn a_built_image_measures_runs_and_says_what_it_is() {
    let place = Place::new();
    let manifest = place.write("bulla.toml", MANIFEST);
    let archive = place.path("out.tar");
    let archive = archive.to_str().unwrap();
    let source = busybox();
    let built = place.json(&[
        "build",
        &source,
        "-t",
        "box:sgx",
        "--manifest",
        &manifest,
        "-o",
        archive,
        "--json",
    ]);
    assert_eq!(
        (&built["product_id"], &built["security_version"]),
        (&7.into(), &3.into())
    );

    let size = |path: &str| fs::metadata(path).unwrap().len();
    let (before, after) = (size(&source), size(archive));
    assert!(
        after <= before * 105 / 100 + (10 << 20),
        "{before} bytes of files became {after}"
    );

    // From the archive, on a machine that knows nothing else.
    let other = Place::new();
    let measured = other.json(&["measure", "--json", archive]);
    assert_eq!(
        measured["layouts"][0]["mrenclave"],
        built["mrenclave_dynamic"]
    );
    assert_eq!(
        measured["layouts"][1]["mrenclave"],
        built["mrenclave_static"]
    );
    assert_eq!(measured["mrsigner"], built["mrsigner"]);
    assert_eq!(measured["isv_svn"], 3);

    // The first start has nothing to unpack, and finds what others unpack.
    let [kept, unpacked] = [&place, &other].map(|place| {
        let mut dirs = fs::read_dir(place.path("cache/built-1")).unwrap();
        dirs.next().unwrap().unwrap().path()
    });
    assert_eq!(kept.file_name(), unpacked.file_name());
    for entry in fs::read_dir(&unpacked).unwrap() {
        let name = entry.unwrap().file_name();
        let [one, other] = [&kept, &unpacked].map(|dir| fs::read(dir.join(&name)).unwrap());
        assert!(one == other, "{name:?} differs");
    }
    assert_eq!(
        fs::read_dir(&kept).unwrap().count(),
        fs::read_dir(&unpacked).unwrap().count()
    );
    assert_eq!(fs::metadata(kept.join("rootfs.img")).unwrap().nlink(), 2);

    for name in ["box:sgx", archive] {
        let output = place.start(&["-e", "LOG=abc", name, "env"]);
        assert!(
            text(&output.stdout).contains("LOG=abc\n"),
            "{name}: {output:?}"
        );
    }
    let error = text(&place.start(&["-e", "X=abc", "box:sgx"]).stderr);
    assert!(error.contains("does not let the host set it"), "{error}");

    let shown = place.succeed(&["inspect", "box:sgx"]);
    for part in [
        "locked:",
        "host may decide:",
        "LOG matching",
        "insecure options:\n  none",
        "FIXED=yes",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let labels = place.json(&["inspect", "--json", archive]);
    let labels = labels["config"]["labels"].as_array().unwrap();
    let has = |name: &str, value: &Value| {
        labels
            .iter()
            .any(|label| label[0] == name && label[1] == *value)
    };
    assert!(has(
        "org.bulla.mrenclave.dynamic",
        &built["mrenclave_dynamic"]
    ));
    assert!(has("org.bulla.mrsigner", &built["mrsigner"]));
    assert!(has("org.bulla.svn", &"3".into()));
    // Nothing half-written beside it.
    let left = fs::read_dir(place.dir.path()).unwrap().flatten();
    assert!(
        !left
            .map(|entry| entry.file_name())
            .any(|name| text(name.as_encoded_bytes()).ends_with(".tmp"))
    );
}

#[test]
fn equal_input_gives_equal_bytes_and_differences_are_named() {
    let place = Place::new();
    let other = Place::new();
    let key = place.path("key.pem");
    make_key(&key);
    let key = key.to_str().unwrap();
    let source = busybox();
    let build = |place: &Place, manifest: &str, name: &str| {
        let manifest = place.write("m.toml", manifest);
        place.json(&[
            "build",
            &source,
            "-t",
            name,
            "--manifest",
            &manifest,
            "--sign-key",
            key,
            "--json",
        ])
    };
    let one = build(&place, MANIFEST, "box:one");
    assert_eq!(one["digest"], build(&other, MANIFEST, "box:one")["digest"]);

    let changed = MANIFEST
        .replace("FIXED = \"yes\"", "FIXED = \"no\"")
        .replace("256M", "128M");
    let two = build(&place, &changed, "box:two");
    assert_ne!(one["mrenclave_dynamic"], two["mrenclave_dynamic"]);
    let output = place.run(&["diff", "box:one", "box:two"]);
    assert_eq!(output.status.code(), Some(1));
    let words = text(&output.stdout);
    for part in [
        "variable FIXED differs: \"yes\" and \"no\"",
        "memory differs",
        "MRENCLAVE differs",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert_eq!(
        place.succeed(&["diff", "box:one", "box:one"]),
        "no difference\n"
    );

    // Another file in the image.
    let root = place.path("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(
        image("busybox").rootfs.join("bin/busybox"),
        root.join("bin/busybox"),
    )
    .unwrap();
    let manifest = place.write("m.toml", MANIFEST);
    let dir = root.to_str().unwrap();
    let build = |name: &str| {
        place.succeed(&[
            "build",
            "--rootfs",
            dir,
            "-t",
            name,
            "--manifest",
            &manifest,
            "--sign-key",
            key,
        ])
    };
    build("dir:one");
    fs::write(root.join("new"), "x").unwrap();
    build("dir:two");
    let words = text(&place.run(&["diff", "dir:one", "dir:two"]).stdout);
    assert!(
        words.contains("/new is in the second image only"),
        "{words}"
    );
}

fn make_key(path: &Path) {
    let made = Command::new("openssl")
        .args(["genrsa", "-3", "-out"])
        .arg(path)
        .arg("3072")
        .output();
    assert!(made.unwrap().status.success());
}

fn openssl(words: &[&str]) {
    let output = Command::new("openssl").args(words).output().unwrap();
    assert!(output.status.success(), "openssl {words:?}: {output:?}");
}

#[test]
fn signing_again_in_one_step_and_in_two() {
    let place = Place::new();
    let source = busybox();
    let built = place.json(&["build", &source, "-t", "box:dev", "--json"]);
    assert_eq!(built["development_key"], true);
    let (key, public) = (place.path("key.pem"), place.path("key.pub"));
    make_key(&key);
    let (key, public) = (key.to_str().unwrap(), public.to_str().unwrap());
    openssl(&["rsa", "-in", key, "-pubout", "-out", public]);
    let once = place.json(&[
        "sign",
        "box:dev",
        "-t",
        "box:once",
        "--sign-key",
        key,
        "--json",
    ]);
    assert_eq!(once["mrenclave_dynamic"], built["mrenclave_dynamic"]);
    assert_ne!(once["mrsigner"], built["mrsigner"]);

    let dir = place.path("digests");
    let dir = dir.to_str().unwrap();
    place.succeed(&["sign", "box:dev", "--digest-out", dir]);
    for layout in ["dynamic", "static"] {
        let (from, to) = (
            format!("{dir}/{layout}.signed"),
            format!("{dir}/{layout}.signature"),
        );
        openssl(&["dgst", "-sha256", "-sign", key, "-out", &to, &from]);
    }
    let twice = place.json(&[
        "sign",
        "box:dev",
        "-t",
        "box:twice",
        "--signature-in",
        dir,
        "--public-key",
        public,
        "--json",
    ]);
    // The same key, the same content, the same bytes.
    assert_eq!(twice["digest"], once["digest"]);
    let error = text(
        &place
            .start(&["box:twice", "/bin/busybox", "echo", "x"])
            .stderr,
    );
    assert!(error.contains("locks them"), "{error}");

    // A signature of other bytes.
    fs::copy(
        format!("{dir}/static.signature"),
        format!("{dir}/dynamic.signature"),
    )
    .unwrap();
    let error = place.fail(&[
        "sign",
        "box:dev",
        "-t",
        "x",
        "--signature-in",
        dir,
        "--public-key",
        public,
    ]);
    assert!(error.contains("signature"), "{error}");
}

#[test]
fn signing_on_a_token() {
    let place = Place::new();
    let module = "/usr/lib/softhsm/libsofthsm2.so";
    assert!(
        Path::new(module).exists(),
        "SoftHSM is missing; run scripts/packages.sh test"
    );
    fs::create_dir(place.path("tokens")).unwrap();
    let config = format!(
        "directories.tokendir = {}\n",
        place.path("tokens").display()
    );
    let config = place.write("softhsm2.conf", &config);
    let key = place.path("key.pem");
    make_key(&key);
    let pkcs8 = place.path("key.p8");
    openssl(&[
        "pkcs8",
        "-topk8",
        "-nocrypt",
        "-in",
        key.to_str().unwrap(),
        "-out",
        pkcs8.to_str().unwrap(),
    ]);
    let softhsm = |words: &[&str]| {
        let output = Command::new("softhsm2-util")
            .args(words)
            .env("SOFTHSM2_CONF", &config)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    softhsm(&[
        "--init-token",
        "--free",
        "--label",
        "bulla",
        "--pin",
        "1234",
        "--so-pin",
        "5678",
    ]);
    softhsm(&[
        "--import",
        pkcs8.to_str().unwrap(),
        "--token",
        "bulla",
        "--label",
        "signer",
        "--id",
        "a1",
        "--pin",
        "1234",
    ]);

    place.succeed(&["build", &busybox(), "-t", "box:dev"]);
    let file = place.json(&[
        "sign",
        "box:dev",
        "-t",
        "box:file",
        "--sign-key",
        key.to_str().unwrap(),
        "--json",
    ]);
    let words = [
        "sign",
        "box:dev",
        "-t",
        "box:token",
        "--pkcs11-module",
        module,
        "--pkcs11-key",
        "signer",
        "--json",
    ];
    let output = place
        .command(&words)
        .env("SOFTHSM2_CONF", &config)
        .env("BULLA_PKCS11_PIN", "1234")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let token: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(token["digest"], file["digest"]);
    let output = place
        .command(&words)
        .env("SOFTHSM2_CONF", &config)
        .env("BULLA_PKCS11_PIN", "9")
        .output()
        .unwrap();
    assert!(text(&output.stderr).contains("token refused"), "{output:?}");
}

#[test]
fn a_changed_image_is_refused() {
    let place = Place::new();
    let dir = place.path("layout");
    let target = format!("{}/", dir.display());
    place.succeed(&["build", &busybox(), "-t", "box:x", "-o", &target]);
    // Unpacked by the first use; then the host changes a byte of a file.
    place.succeed(&["measure", "box:x"]);
    let built = fs::read_dir(place.path("cache/built-1"))
        .unwrap()
        .flatten()
        .next()
        .unwrap()
        .path();
    let rootfs = built.join("rootfs.img");
    let mut bytes = fs::read(&rootfs).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&rootfs, bytes).unwrap();
    let error = place.fail(&["measure", "box:x"]);
    assert!(
        error.contains("block") || error.contains("damaged"),
        "{error}"
    );
    let config = built.join("dynamic.config");
    let mut bytes = fs::read(&config).unwrap();
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    fs::write(&config, bytes).unwrap();
    let output = place.start(&["box:x"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
}

#[test]
fn an_encrypted_image_shows_nothing_and_runs_with_its_key() {
    let place = Place::new();
    // Files of the image: the program, and one with a sentence in it.
    let root = place.path("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(
        image("busybox").rootfs.join("bin/busybox"),
        root.join("bin/busybox"),
    )
    .unwrap();
    let sentence = "a sentence that is in no built image";
    fs::write(root.join("a-telling-name"), sentence.repeat(500)).unwrap();
    let root = root.to_str().unwrap().to_owned();
    let manifest = place.write(
        "bulla.toml",
        "entrypoint = [\"/bin/busybox\"]\n[arguments]\nmode = \"host\"\nfixed = [\"true\"]",
    );
    for (name, byte) in [("right", 1), ("wrong", 2)] {
        fs::write(place.path(name), [byte; 32]).unwrap();
    }
    let key = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let (right, wrong) = (key("right"), key("wrong"));
    let build = |tag: &str, options: &[&str]| {
        let archive = place.path(tag).to_str().unwrap().to_owned();
        let mut words = vec![
            "build",
            "--rootfs",
            &root,
            "--manifest",
            &manifest,
            "--json",
        ];
        words.extend(["-t", tag, "-o", &archive]);
        words.extend(options);
        (place.json(&words), fs::read(&archive).unwrap())
    };
    let (plain, in_clear) = build("plain", &[]);
    let (built, hidden) = build("secret", &["--encrypt", &right]);
    assert_ne!(plain["mrenclave_dynamic"], built["mrenclave_dynamic"]);
    let program = fs::read(Path::new(&root).join("bin/busybox")).unwrap();
    let in_program = &program[program.len() / 2..][..32];
    let has =
        |bytes: &[u8], wanted: &[u8]| bytes.windows(wanted.len()).any(|window| window == wanted);
    // The archive's own copy of bulla is neither; each of these is found where nothing is hidden.
    for wanted in [sentence.as_bytes(), b"a-telling-name", in_program] {
        assert!(has(&in_clear, wanted));
        assert!(!has(&hidden, wanted), "{}", text(wanted));
    }
    // Anyone can measure it.
    let archive = place.path("secret").to_str().unwrap().to_owned();
    let measured = Place::new().json(&["measure", "--json", &archive]);
    assert_eq!(
        measured["layouts"][0]["mrenclave"],
        built["mrenclave_dynamic"]
    );
    let words = ["secret", "cat", "/a-telling-name"];
    let with = |options: &[&str]| place.start(&[options, &words[..]].concat());
    let output = with(&["--key-file", &right]);
    assert_eq!(text(&output.stdout), sentence.repeat(500), "{output:?}");
    assert!(
        text(&output.stderr).contains("the host has the key"),
        "{output:?}"
    );
    for (options, reason) in [
        (&[][..], "--key-file"),
        (
            &["--key-file", &wrong][..],
            "not the one that the image was encrypted with",
        ),
        (&["--key-file", "/dev/null"][..], "not a key"),
    ] {
        let output = with(options);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{error}");
        assert!(error.contains(reason), "{error}");
    }
    let error = text(&place.start(&["--key-file", &right, "plain"]).stderr);
    assert!(error.contains("not encrypted"), "{error}");
    // Encrypted or not, a changed block is found by the tree.
    let unpacked = fs::read_dir(place.path("cache/built-1")).unwrap().flatten();
    for built in unpacked.map(|entry| entry.path().join("rootfs.img")) {
        let mut bytes = fs::read(&built).unwrap();
        bytes[5000] ^= 1;
        fs::write(&built, bytes).unwrap();
    }
    let output = with(&["--key-file", &right]);
    assert!(!output.status.success(), "{output:?}");
    assert!(text(&output.stderr).contains("block"), "{output:?}");
    // Nothing of the build stays behind.
    let left = fs::read_dir(place.path("cache")).unwrap().flatten();
    assert!(
        !left
            .map(|entry| entry.file_name())
            .any(|name| text(name.as_encoded_bytes()).contains("encrypted"))
    );
}

/// Debian's docker-registry on a port of its own.
struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    fn new(place: &Place, extra: &str) -> Registry {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:{port}\n{extra}",
            place.path("registry").display()
        );
        let config = place.write("registry.yml", &config);
        let child = Command::new("docker-registry")
            .args(["serve", &config])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is missing; run scripts/packages.sh test");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Registry { child, port }
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_registry_takes_and_gives_images() {
    let place = Place::new();
    let registry = Registry::new(&place, "");
    let host = registry.host();
    let name = format!("{host}/a/box:sgx");
    let built = place.json(&[
        "build",
        &busybox(),
        "-t",
        &name,
        "--push",
        "--plain-http",
        &host,
        "--json",
    ]);
    let other = Place::new();
    let measured = other.json(&["measure", "--json", "--plain-http", &host, &name]);
    assert_eq!(
        measured["layouts"][0]["mrenclave"],
        built["mrenclave_dynamic"]
    );
    // The second time without the registry.
    drop(registry);
    other.succeed(&["measure", "--pull", "never", &name]);
    let error = other.fail(&[
        "measure",
        "--plain-http",
        &host,
        &format!("{host}/a/box:other"),
    ]);
    assert!(error.contains(&host), "{error}");
    let error = other.fail(&["measure", "--pull", "never", "nobody/has:this"]);
    assert!(error.contains("not on this machine"), "{error}");
}

#[test]
fn ordinary_images_come_from_a_registry_with_a_password() {
    let place = Place::new();
    // bcrypt of "secret".
    let hash = "$2b$05$FunhNr1l2j559RFNY6JstuCdSCmfUCaXUV2OcsDpbdVOKg.mZwaWe";
    let passwords = place.write("htpasswd", &format!("user:{hash}\n"));
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {passwords}\n");
    let registry = Registry::new(&place, &auth);
    let host = registry.host();
    let from = format!("docker-archive:{}", busybox());
    let to = format!("docker://{host}/box:1");
    let copied = Command::new("skopeo")
        .args([
            "--insecure-policy",
            "copy",
            "--dest-creds=user:secret",
            "--dest-tls-verify=false",
            &from,
            &to,
        ])
        .output()
        .unwrap();
    assert!(copied.status.success(), "{copied:?}");
    let digest = format!("{host}/box:1");
    let error = place.fail(&["pull", "--plain-http", &host, &digest]);
    assert!(error.contains("docker login"), "{error}");
    let login = |place: &Place| {
        let auths = format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"dXNlcjpzZWNyZXQ=\"}}}}}}");
        fs::create_dir(place.path("docker")).unwrap();
        fs::write(place.path("docker/config.json"), auths).unwrap();
    };
    login(&place);
    let first = place.succeed(&["pull", "--plain-http", &host, &digest]);
    let by_digest = format!("{host}/box@{}", first.trim());
    assert_eq!(
        place.succeed(&["pull", "--plain-http", &host, &by_digest]),
        first
    );
    let output = place.start(&["--plain-http", &host, &digest, "/bin/busybox", "echo", "hi"]);
    assert!(output.status.success(), "{output:?}");
    // Damaged on the way: the registry's own file is changed.
    let blobs = place.path("registry/docker/registry/v2/blobs/sha256");
    let mut changed = 0;
    for entry in walk(&blobs) {
        let bytes = fs::read(&entry).unwrap();
        if bytes.len() > 100_000 {
            let mut bytes = bytes;
            bytes[50_000] ^= 1;
            fs::write(&entry, bytes).unwrap();
            changed += 1;
        }
    }
    assert!(changed > 0);
    let other = Place::new();
    login(&other);
    let error = other.fail(&["pull", "--plain-http", &host, &digest]);
    assert!(error.contains("digest"), "{error}");
    let blobs = other.path("cache/images-1/blobs/sha256");
    let kept = walk(&blobs)
        .into_iter()
        .filter(|path| fs::metadata(path).unwrap().len() > 100_000);
    assert_eq!(kept.count(), 0, "a damaged blob was kept");
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(walk(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

#[test]
fn containers_are_listed_stopped_and_removed() {
    let place = Place::new();
    let manifest = place.write("bulla.toml", MANIFEST);
    let image = busybox();
    let platform = platform_options();
    let mut words = vec!["run", "-d", "--name", "web"];
    words.extend(platform.iter().map(String::as_str));
    words.extend([
        "--manifest",
        &manifest,
        &image,
        "sh",
        "-c",
        "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 1; done",
    ]);
    let id = place.succeed(&words).trim().to_owned();
    assert_eq!(id.len(), 12);
    let until = |wanted: &str| {
        for _ in 0..600 {
            let logs = place.succeed(&["logs", "web"]);
            if logs.contains(wanted) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!(
            "{wanted} never appeared: {}",
            place.succeed(&["logs", "web"])
        );
    };
    until("up\n");
    let listed = place.json(&["ps", "--json"]);
    assert_eq!(
        (&listed[0]["name"], &listed[0]["status"]),
        (&"web".into(), &"running".into())
    );
    if platform.contains(&"emulated".to_owned()) {
        assert_eq!(listed[0]["labels"]["org.bulla.platform"], "emulated");
        assert!(place.succeed(&["ps"]).contains("EMULATED"));
    }
    assert_eq!(listed[0]["labels"]["org.bulla.insecure"], Value::Null);
    assert_eq!(
        place.json(&["inspect", "web"])["id"],
        Value::from(id.clone())
    );
    let error = place.fail(&words);
    assert!(error.contains("the name web belongs to"), "{error}");
    assert!(place.fail(&["rm", "web"]).contains("runs"));
    place.succeed(&["stop", "-t", "60", &id[..6]]);
    until("bye\n");
    assert_eq!(place.succeed(&["wait", "web"]), "3\n");
    assert_eq!(place.json(&["ps", "--json"]), Value::Array(vec![]));
    assert_eq!(
        place.json(&["ps", "-a", "--json"])[0]["status"],
        "exited (3)"
    );
    assert!(place.fail(&["kill", "web"]).contains("does not run"));
    place.succeed(&["rm", "web"]);
    assert!(place.fail(&["logs", "web"]).contains("no container web"));
}

#[test]
fn insecure_options_are_labels_of_containers_and_images() {
    let place = Place::new();
    let image = busybox();
    let platform = platform_options();
    let mut words = vec!["run", "-d", "--name", "open", "--insecure-exec"];
    words.extend(platform.iter().map(String::as_str));
    words.extend([&image[..], "sh", "-c", "sleep 60"]);
    place.succeed(&words);
    let listed = place.json(&["ps", "--json"]);
    assert_eq!(
        listed[0]["labels"]["org.bulla.insecure"], "insecure_exec",
        "{listed}"
    );
    assert!(place.succeed(&["ps"]).contains("insecure_exec"));
    place.succeed(&["kill", "open"]);
    place.succeed(&["wait", "open"]);

    let open = format!("insecure_exec = true\n{MANIFEST}");
    let manifest = place.write("open.toml", &open);
    let built = place.json(&[
        "build",
        &image,
        "-t",
        "open:sgx",
        "--manifest",
        &manifest,
        "--json",
    ]);
    assert_eq!(built["insecure"][0], "insecure_exec", "{built}");
    let label = |name: &str| {
        let shown = place.json(&["inspect", "--json", name]);
        let labels = shown["config"]["labels"].as_array().unwrap();
        let named = labels.iter().find(|label| label[0] == "org.bulla.insecure");
        named.map(|label| label[1].as_str().unwrap().to_owned())
    };
    assert_eq!(label("open:sgx").as_deref(), Some("insecure_exec"));
    // Signing anew keeps it.
    place.succeed(&["sign", "open:sgx", "-t", "open:again"]);
    assert_eq!(label("open:again").as_deref(), Some("insecure_exec"));
}

#[test]
fn check_says_what_will_work() {
    let place = Place::new();
    let report = place.run(&["check", "--json", &busybox()]);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["libc"], Value::Array(vec![]), "{report}");
    assert!(report["static_programs"].as_u64().unwrap() > 0);
    // A directory with a program for another machine, and nothing else.
    let root = place.path("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    let mut elf = fs::read(image("busybox").rootfs.join("bin/busybox")).unwrap();
    elf[18] = 183;
    fs::write(root.join("bin/app"), elf).unwrap();
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o4755);
    fs::set_permissions(root.join("bin/app"), mode).unwrap();
    let output = place.run(&["check", "--rootfs", root.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let words = text(&output.stdout);
    for part in ["arm64", "setuid", "names no program"] {
        assert!(words.contains(part), "{part}: {words}");
    }
}

/// What can be made again goes, and is made again when it is needed.
#[test]
fn the_cache_says_what_it_takes_and_shrinks() {
    let place = Place::new();
    let manifest = place.write("bulla.toml", MANIFEST);
    place.succeed(&["build", &busybox(), "-t", "box:1", "--manifest", &manifest]);
    let usage = || place.json(&["cache", "show", "--json"]);
    let before = usage();
    let bytes = |usage: &Value, what: &str| usage[what].as_u64().unwrap();
    assert!(bytes(&before, "rootfs") > 1 << 20 && bytes(&before, "images") > 1 << 20);
    let shown = place.succeed(&["cache", "show"]);
    assert!(
        shown.contains("named images") && shown.contains("total"),
        "{shown}"
    );
    // All of it was used a moment ago.
    assert_eq!(place.succeed(&["cache", "prune"]), "0 MiB freed\n");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    for path in walk(&place.path("cache")) {
        fs::File::open(path).unwrap().set_modified(old).unwrap();
    }
    for entry in fs::read_dir(place.path("cache/built-1")).unwrap() {
        fs::File::open(entry.unwrap().path())
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
    assert_eq!(
        place.succeed(&["cache", "prune", "--keep", "1G"]),
        "0 MiB freed\n"
    );
    place.succeed(&["cache", "prune"]);
    let after = usage();
    assert_eq!((bytes(&after, "rootfs"), bytes(&after, "built")), (0, 0));
    assert_eq!(after["images"], before["images"]);
    let output = place.start(&["-e", "LOG=again", "box:1", "env"]);
    assert!(text(&output.stdout).contains("LOG=again\n"), "{output:?}");
    let error = place.fail(&["cache", "prune", "--keep", "much"]);
    assert!(error.contains("is not a size"), "{error}");
}

/// As any other image: podman with runc, the enclave emulated.
#[test]
fn podman_runs_a_built_image() {
    let place = Place::new();
    let manifest = place.write("bulla.toml", MANIFEST);
    let archive = place.path("box.tar");
    let archive = archive.to_str().unwrap();
    place.succeed(&[
        "build",
        &busybox(),
        "-t",
        "bulla-test:box",
        "--manifest",
        &manifest,
        "-o",
        archive,
    ]);
    let config = place.write("containers.conf", "[containers]\ndefault_ulimits = []\n");
    let storage = place.path("storage");
    let podman = |words: &[&str]| {
        let mut command = Command::new("timeout");
        command
            .args(["120", "podman", "--root"])
            .arg(&storage)
            .arg("--runroot")
            .arg(place.path("run"))
            .args([
                "--runtime",
                "runc",
                "--storage-driver",
                "vfs",
                "--cgroup-manager",
                "cgroupfs",
            ])
            .args(words)
            .env("CONTAINERS_CONF", &config);
        command
            .output()
            .expect("podman is missing; run scripts/packages.sh test")
    };
    let loaded = podman(&["load", "-q", "-i", archive]);
    assert!(loaded.status.success(), "{loaded:?}");
    let run = |words: &[&str]| {
        let mut all = vec![
            "run",
            "--rm",
            "--network",
            "host",
            "-e",
            "LOG=podman",
            "localhost/bulla-test:box",
        ];
        if !loaded.stdout.windows(9).any(|part| part == b"localhost") {
            all[6] = "docker.io/library/bulla-test:box";
        }
        all.extend(words);
        podman(&all)
    };
    let output = run(&["env"]);
    assert!(text(&output.stdout).contains("LOG=podman"), "{output:?}");
    assert!(text(&output.stderr).contains("EMULATED"), "{output:?}");
    let output = run(&["reboot"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
}

/// Docker's daemon, without a network of its own.
struct Dockerd {
    child: Child,
    host: String,
    /// What it leaves mounted.
    network: PathBuf,
}

impl Dockerd {
    fn start(place: &Place) -> Dockerd {
        // Paths of sockets are short.
        let host = format!("unix://{}", place.path("d.sock").display());
        let child = Command::new("dockerd")
            .arg("--data-root")
            .arg(place.path("docker-data"))
            .arg("--exec-root")
            .arg(place.path("docker-exec"))
            .arg("--pidfile")
            .arg(place.path("docker.pid"))
            .args(["-H", &host, "--storage-driver", "vfs"])
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("dockerd is missing; run scripts/packages.sh test");
        let network = place.path("docker-exec/netns/default");
        let dockerd = Dockerd {
            child,
            host,
            network,
        };
        while !dockerd.docker(&["version"]).status.success() {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        dockerd
    }

    fn docker(&self, words: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["120", "docker"]).args(words);
        command.env("DOCKER_HOST", &self.host).output().unwrap()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // Asked, it ends its own containerd as well.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").arg(pid).status();
        let _ = self.child.wait();
        let _ = Command::new("umount").arg(&self.network).status();
    }
}

/// As any other image, and its own images are read.
#[test]
fn docker_runs_a_built_image_and_gives_its_own() {
    let place = Place::new();
    let manifest = place.write("bulla.toml", MANIFEST);
    let archive = place.path("box.tar");
    let archive = archive.to_str().unwrap();
    let build = [
        "build",
        &busybox(),
        "-t",
        "bulla-test:docker",
        "-o",
        archive,
    ];
    place.succeed(&[&build[..], &["--manifest", &manifest]].concat());
    let dockerd = Dockerd::start(&place);
    for archive in [archive, &*busybox()] {
        let loaded = dockerd.docker(&["load", "-i", archive]);
        assert!(loaded.status.success(), "{loaded:?}");
    }
    let run = [
        "run",
        "--rm",
        "--network",
        "none",
        "-e",
        "LOG=docker",
        "bulla-test:docker",
    ];
    let output = dockerd.docker(&[&run[..], &["env"]].concat());
    assert!(text(&output.stdout).contains("LOG=docker"), "{output:?}");
    assert!(text(&output.stderr).contains("EMULATED"), "{output:?}");
    let output = dockerd.docker(&[&run[..], &["reboot"]].concat());
    assert_eq!(output.status.code(), Some(125), "{output:?}");

    let name = "docker-daemon:bulla-test/busybox:latest";
    let mut command = place.command(&["inspect", name]);
    let output = command.env("DOCKER_HOST", &dockerd.host).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn bad_output_leaves_nothing_behind() {
    let place = Place::new();
    let source = busybox();
    let error = place.fail(&["build", &source, "-t", "x", "-o", "/nowhere/at/all.tar"]);
    assert!(error.contains("/nowhere"), "{error}");
    let mut truncated = Vec::new();
    fs::File::open(&source)
        .unwrap()
        .take(100_000)
        .read_to_end(&mut truncated)
        .unwrap();
    let path = place.path("cut.tar");
    fs::File::create(&path)
        .unwrap()
        .write_all(&truncated)
        .unwrap();
    place.fail(&["build", path.to_str().unwrap(), "-t", "x"]);
    assert!(!walk(&place.path("cache")).iter().any(|path| {
        let name = text(path.file_name().unwrap().as_encoded_bytes());
        name.ends_with(".img")
            && path.to_string_lossy().contains("rootfs-3")
            && name.contains("tmp")
    }));
}
