//! Encrypted images whose key the coordinator releases: built, measured by anybody, run where the
//! coordinator's policy lets them and its secret is their key, and nowhere else.

use bulla_test_apps::{bulla, image, platform_options};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const SENTENCE: &str = "a sentence that nobody reads before the coordinator agrees";
const KEY: [u8; 32] = [0xa7; 32];
const ANOTHER: [u8; 32] = [0x5c; 32];

struct Place {
    dir: tempfile::TempDir,
    coordinator: Option<Child>,
    client: String,
    mesh: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(child) = &mut self.coordinator {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn all(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

impl Place {
    /// With a coordinator that has no manifest yet.
    fn new() -> Place {
        let mut place = Place {
            dir: tempfile::tempdir().unwrap(),
            coordinator: None,
            client: String::new(),
            mesh: String::new(),
        };
        place.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=admin \
             -keyout admin.key -out admin.pem",
        );
        let log = place.path("log");
        let child = Command::new(bulla())
            .args(["coordinator", "--insecure-outside-enclave"])
            .args(["--client-address", "127.0.0.1:0"])
            .args(["--mesh-address", "127.0.0.1:0"])
            .args(["--state", "state", "--owner-certificate", "admin.pem"])
            // One emulated machine, whose quotes it knows.
            .env("BULLA_STATE", place.path("bulla"))
            .current_dir(place.dir.path())
            .stderr(fs::File::create(&log).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        place.coordinator = Some(child);
        let end = Instant::now() + Duration::from_secs(60);
        while place.mesh.is_empty() {
            let said = fs::read_to_string(&log).unwrap();
            assert!(Instant::now() < end, "{said}");
            let after = |words: &str| {
                let rest = said.split_once(words)?.1;
                let end = rest.find(|c: char| c != ':' && c != '.' && !c.is_ascii_digit())?;
                Some(rest[..end].to_owned())
            };
            if let (Some(client), Some(mesh)) = (after("client API on "), after("marbles on ")) {
                place.client = client.replace("127.0.0.1", "localhost");
                place.mesh = mesh.replace("127.0.0.1", "localhost");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let root = place.coordinator("certificate root @ --insecure");
        fs::write(place.path("root.pem"), root).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn openssl(&self, words: &str) -> String {
        let output = Command::new("openssl")
            .args(words.split_whitespace())
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{words}: {}", all(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn command(&self) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg("120")
            .arg(bulla())
            .env("BULLA_CACHE", self.path("cache"))
            .env("BULLA_STATE", self.path("bulla"))
            .current_dir(self.dir.path());
        command
    }

    /// A client command, where @ is the coordinator.
    fn coordinator(&self, words: &str) -> String {
        let mut command = self.command();
        for word in words.split_whitespace() {
            command.arg(word.replace('@', &self.client));
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "bulla {words}: {}", all(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn by_admin(&self, words: &str) {
        self.coordinator(&format!(
            "{words} @ --coordinator-cert root.pem --cert admin.pem --key admin.key"
        ));
    }

    fn give(&self, key: &[u8; 32]) {
        fs::write(self.path("value"), key).unwrap();
        let encoded = self.openssl("base64 -A -in value");
        let secrets = json!({"image": {"Key": encoded}}).to_string();
        fs::write(self.path("secrets.json"), secrets).unwrap();
        self.by_admin("secret set secrets.json");
    }

    /// Builds an encrypted image that becomes this marble; what it measures.
    fn build(&self, marble: &str) -> Value {
        fs::write(self.path("key"), KEY).unwrap();
        self.openssl("x509 -in root.pem -outform der -out root.der");
        let root = &self.openssl("dgst -sha256 -r root.der")[..64];
        let manifest = format!(
            "entrypoint = [\"/bin/busybox\"]\nuser = \"web\"\nworkdir = \"/srv\"\n\
             [arguments]\nmode = \"host\"\nfixed = [\"true\"]\n\
             [environment]\nGREETING = {{ secret = \"WORDS\" }}\n\
             [[mounts]]\ntarget = \"/srv/scratch\"\ntype = \"tmpfs\"\n\
             [coordinator]\naddress = \"{}\"\nmarble = \"{marble}\"\nroot_sha256 = \"{root}\"\n\
             image_key = \"IMAGE_KEY\"\nwait_seconds = 0\n",
            self.mesh
        );
        fs::write(self.path("bulla.toml"), manifest).unwrap();
        let tree = self.path("tree");
        if !tree.exists() {
            fs::create_dir_all(tree.join("bin")).unwrap();
            fs::create_dir_all(tree.join("etc")).unwrap();
            fs::create_dir_all(tree.join("srv")).unwrap();
            let busybox = image("busybox").rootfs.join("bin/busybox");
            fs::copy(busybox, tree.join("bin/busybox")).unwrap();
            fs::write(tree.join("srv/sentence"), SENTENCE).unwrap();
            let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:7:8:web:/srv:/bin/sh\n";
            fs::write(tree.join("etc/passwd"), passwd).unwrap();
            fs::write(tree.join("etc/group"), "web:x:8:\n").unwrap();
        }
        let output = self
            .command()
            .args(["build", "--json", "--rootfs", "tree", "-t", marble])
            .args(["--manifest", "bulla.toml", "--encrypt", "key"])
            .args(["-o", &format!("{marble}.tar")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", all(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn run(&self, image: &str, options: &[&str], words: &[&str]) -> Output {
        self.run_on(&[&["--layout", "dynamic"], options].concat(), image, words)
    }

    fn run_on(&self, options: &[&str], image: &str, words: &[&str]) -> Output {
        self.command()
            .arg("run")
            .args(platform_options())
            .args(options)
            .arg(image)
            .args(words)
            .output()
            .unwrap()
    }
}

#[test]
fn the_coordinator_releases_the_key_of_an_image() {
    let place = Place::new();
    let built = place.build("box");
    place.build("other");
    // Anybody measures it, and sees where its key comes from; nobody reads it.
    let archive = fs::read(place.path("box.tar")).unwrap();
    let has = |wanted: &[u8]| archive.windows(wanted.len()).any(|window| window == wanted);
    assert!(!has(SENTENCE.as_bytes()) && !has(&KEY));
    let inspected = place.command().args(["inspect", "box.tar"]).output();
    let inspected = all(&inspected.unwrap());
    assert!(
        inspected.contains("key from the coordinator"),
        "{inspected}"
    );
    assert!(!inspected.contains("the host has the key"), "{inspected}");
    let again = place
        .command()
        .args(["measure", "--json", "--layout", "dynamic", "box.tar"])
        .output()
        .unwrap();
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(again["layouts"][0]["mrenclave"], built["mrenclave_dynamic"]);
    // The coordinator has no manifest yet, and the host has nothing to say.
    let output = place.run("box.tar", &[], &["true"]);
    assert_eq!(output.status.code(), Some(69), "{}", all(&output));
    let output = place.run("box.tar", &["--key-file", "key"], &["true"]);
    assert_eq!(output.status.code(), Some(125), "{}", all(&output));
    let said = all(&output);
    assert!(
        said.contains("it is the coordinator that releases"),
        "{said}"
    );

    let ours = json!({
        "SignerID": built["mrsigner"], "ProductID": 0, "SecurityVersion": 0,
        "InsecureAllowEmulated": true,
    });
    let stranger = json!({"UniqueID": "11".repeat(32), "InsecureAllowEmulated": true});
    let parameters = json!({"Env": {"IMAGE_KEY": "{{ hex .Secrets.image }}", "WORDS": "hello"}});
    let marble = |name: &str| json!({"Package": name, "Parameters": parameters});
    let admin = fs::read_to_string(place.path("admin.pem")).unwrap();
    let manifest = json!({
        // The other one is not what the policy says.
        "Packages": {"box": ours, "other": stranger},
        "Marbles": {"box": marble("box"), "other": marble("other")},
        "Secrets": {"image": {"Type": "plain", "UserDefined": true}},
        "Users": {"admin": {"Certificate": admin, "Roles": ["keys"]}},
        "Roles": {"keys": {"ResourceType": "Secrets", "ResourceNames": ["image"],
            "Actions": ["ReadSecret", "WriteSecret"]}},
    });
    fs::write(place.path("manifest.json"), manifest.to_string()).unwrap();
    place.by_admin("manifest set manifest.json");
    // Nobody has given the secret.
    let output = place.run("box.tar", &[], &["true"]);
    assert!(!output.status.success(), "{}", all(&output));
    // One that is no key of this image.
    place.give(&ANOTHER);
    let output = place.run("box.tar", &[], &["cat", "/srv/sentence"]);
    let said = all(&output);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("with the coordinator's key"), "{said}");
    assert!(!said.contains(SENTENCE), "{said}");

    place.give(&KEY);
    let output = place.run("box.tar", &[], &["cat", "sentence"]);
    assert_eq!(output.stdout, SENTENCE.as_bytes(), "{}", all(&output));
    let said = all(&output);
    assert!(!said.contains("the host has the key"), "{said}");
    // On machines without EDMM and EXINFO as well.
    let old = ["--profile", "dcsv3-5.15", "--layout", "static"];
    let output = place.run_on(&old, "box.tar", &["cat", "sentence"]);
    assert_eq!(output.stdout, SENTENCE.as_bytes(), "{}", all(&output));
    // The program is as in any other image, and gets nothing of the key.
    let script = "busybox id -u; busybox id -g; pwd; echo $HOME $GREETING ${IMAGE_KEY-none}; \
                  echo $$; busybox grep -c srv/scratch /proc/mounts; \
                  busybox ls -d / /proc/1 /dev/shm /dev/pts /sys/fs; \
                  echo >/dev/attestation/image_key; busybox ls -n /srv/sentence | busybox wc -l; \
                  busybox cat /dev/shm/bulla-marble/tls.crt | busybox grep -c BEGIN; \
                  : >/srv/scratch/x && echo written; busybox wc -l </proc/mounts";
    let output = place.run("box.tar", &[], &["sh", "-c", script]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = printed.lines().collect();
    let expected = [
        "7",
        "8",
        "/srv",
        "/srv hello none",
        "1",
        "1",
        "/",
        "/dev/pts",
        "/dev/shm",
        "/proc/1",
        "/sys/fs",
        "1",
        "2",
    ];
    assert_eq!(lines[..expected.len()], expected, "{}", all(&output));
    // The policy names another enclave.
    let output = place.run("other.tar", &[], &["true"]);
    let said = all(&output);
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(said.contains("invalid quote"), "{said}");
    // Somebody changed a block that the key fits.
    let unpacked = fs::read_dir(place.path("cache/built-1")).unwrap().flatten();
    for built in unpacked.map(|entry| entry.path().join("rootfs.img")) {
        let mut bytes = fs::read(&built).unwrap();
        // Each block, so that whatever is read first is wrong.
        bytes.iter_mut().step_by(4096).for_each(|byte| *byte ^= 1);
        fs::write(&built, bytes).unwrap();
    }
    let output = place.run("box.tar", &[], &["true"]);
    let said = all(&output);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(
        said.contains("the encrypted image cannot be opened"),
        "{said}"
    );
}

#[test]
fn a_key_of_the_coordinator_needs_an_encrypted_image() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let coordinator =
        "entrypoint = [\"/bin/busybox\"]\n[coordinator]\ninsecure_any = true\nimage_key = \"K\"\n";
    write("bulla.toml", coordinator);
    write(
        "uuid.toml",
        &format!("{coordinator}uuid_file = \"/data/uuid\""),
    );
    let rootfs = image("busybox").rootfs.display().to_string();
    fs::write(dir.path().join("key"), KEY).unwrap();
    for (words, after, reason) in [
        (
            &["build", "-t", "x", "--manifest", "bulla.toml"][..],
            "",
            "--encrypt",
        ),
        (&["run", "--manifest", "bulla.toml"], "true", "--encrypt"),
        (
            &[
                "build",
                "-t",
                "x",
                "--manifest",
                "uuid.toml",
                "--encrypt",
                "key",
            ],
            "",
            "uuid_file",
        ),
    ] {
        let output = Command::new(bulla())
            .args(words)
            .args(["--rootfs", &rootfs])
            .args(after.split_whitespace())
            .env("BULLA_CACHE", dir.path().join("cache"))
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(!output.status.success());
        assert!(all(&output).contains(reason), "{words:?}: {}", all(&output));
    }
}
