//! The coordinator and its client commands, as people use them: one life of a cluster, to the death
//! of its machine and back.

use bulla_test_apps::bulla;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const TOKEN: &str = "correct-horse-battery-staple";

struct Coordinator {
    child: Child,
    address: String,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Cluster {
    dir: tempfile::TempDir,
    coordinator: Option<Coordinator>,
    starts: usize,
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn all(output: &Output) -> String {
    text(output) + &String::from_utf8_lossy(&output.stderr)
}

impl Cluster {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name).to_string_lossy().into_owned()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn openssl(&self, words: &str) {
        let output = Command::new("openssl")
            .args(words.split_whitespace())
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{words}: {}", all(&output));
    }

    /// A user's certificate and key: NAME.pem, NAME.key.
    fn user(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
             -keyout {name}.key -out {name}.pem"
        ));
    }

    fn start(&mut self) {
        self.starts += 1;
        let log = self.path(&format!("log{}", self.starts));
        let child = Command::new(bulla())
            .args(["coordinator", "--insecure-outside-enclave", "--log-json"])
            .args([
                "--client-address",
                "127.0.0.1:0",
                "--mesh-address",
                "127.0.0.1:0",
            ])
            .args(["--state", "state", "--owner-certificate", "admin.pem"])
            .args(["--freshness-anchor", "anchor"])
            .current_dir(self.dir.path())
            .stderr(std::fs::File::create(&log).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut coordinator = Coordinator {
            child,
            address: String::new(),
        };
        let patience = Instant::now() + Duration::from_secs(60);
        while coordinator.address.is_empty() {
            assert!(
                Instant::now() < patience,
                "{}",
                std::fs::read_to_string(&log).unwrap()
            );
            let said = std::fs::read_to_string(&log).unwrap();
            if let Some((_, rest)) = said.split_once("client API on ")
                && let Some((address, _)) = rest.split_once(',')
            {
                coordinator.address = address.to_owned();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.coordinator = Some(coordinator);
    }

    /// Runs `bulla WORDS`, where @ is the coordinator's address and +NAME the options of a user.
    fn try_bulla(&self, words: &str) -> Output {
        let address = &self.coordinator.as_ref().unwrap().address;
        let mut command = Command::new(bulla());
        command.current_dir(self.dir.path());
        for word in words.split_whitespace() {
            match word.strip_prefix('+') {
                Some("root") => command.args(["--coordinator-cert", "root.pem"]),
                Some(user) => command.args(["--coordinator-cert", "root.pem"]).args([
                    "--cert",
                    &format!("{user}.pem"),
                    "--key",
                    &format!("{user}.key"),
                ]),
                None => command.arg(word.replace('@', address)),
            };
        }
        command.output().unwrap()
    }

    fn bulla(&self, words: &str) -> String {
        let output = self.try_bulla(words);
        assert!(output.status.success(), "bulla {words}: {}", all(&output));
        text(&output)
    }

    fn refused(&self, words: &str, reason: &str) {
        let output = self.try_bulla(words);
        assert!(!output.status.success(), "bulla {words}: {}", all(&output));
        assert!(
            all(&output).contains(reason),
            "bulla {words}: {}",
            all(&output)
        );
    }
}

fn manifest(cluster: &Cluster) -> Value {
    let user = |name: &str, roles: &[&str]| json!({"Certificate": cluster.read(&format!("{name}.pem")), "Roles": roles});
    json!({
        "Packages": {"p": {"UniqueID": "11".repeat(32)}},
        "Marbles": {"m": {"Package": "p", "Parameters": {"Env": {"T": "{{ string .Secrets.token }}"}}}},
        "Secrets": {
            "token": {"Type": "plain", "UserDefined": true},
            "guarded": {"Type": "plain", "UserDefined": true, "ReadBoards": ["keepers"]},
        },
        "Users": {
            "admin": user("admin", &["secrets", "updater"]), "bob": user("bob", &["updater"]),
        },
        "Roles": {
            "secrets": {"ResourceType": "Secrets", "ResourceNames": ["token", "guarded"],
                "Actions": ["ReadSecret", "WriteSecret"]},
            "updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
        },
        "Boards": {"keepers": {"Members": ["bob"]}},
        "RecoveryKeys": {"one": cluster.read("one.pub"), "two": cluster.read("two.pub")},
    })
}

#[test]
fn the_life_of_a_cluster_by_the_command_line() {
    let mut cluster = Cluster {
        dir: tempfile::tempdir().unwrap(),
        coordinator: None,
        starts: 0,
    };
    for name in ["admin", "bob", "stranger"] {
        cluster.user(name);
    }
    for name in ["one", "two"] {
        cluster.openssl(&format!(
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out {name}.key"
        ));
        cluster.openssl(&format!("pkey -in {name}.key -pubout -out {name}.pub"));
    }
    cluster.start();

    // Whom am I talking to?
    cluster.refused("status @", "--coordinator-identity");
    let identity = cluster.write(
        "identity.json",
        json!({"UniqueID": "11".repeat(32)}).to_string(),
    );
    cluster.refused(
        &format!("status @ --coordinator-identity {identity}"),
        "no quote",
    );
    assert!(cluster.bulla("status @ --insecure").starts_with("2: "));
    cluster.write("root.pem", cluster.bulla("certificate root @ --insecure"));
    assert!(cluster.bulla("status @ +root").starts_with("2: "));
    cluster.refused("status @ --coordinator-cert bob.pem", "");

    // The first manifest is the owner's to set.
    let first = manifest(&cluster);
    cluster.write("first.json", first.to_string());
    cluster.refused("manifest set first.json @ +root", "owner");
    cluster.refused("manifest set first.json @ +stranger", "owner");
    cluster.bulla("manifest set first.json @ +admin --recovery-file recovery.json");
    assert!(cluster.bulla("status @ +root").starts_with("3: "));
    cluster.bulla("manifest verify first.json @ +root");
    assert_eq!(
        cluster.bulla("manifest get @ +root").trim_end(),
        first.to_string()
    );
    cluster.refused(
        &format!("manifest verify {} @ +root", "00".repeat(32)),
        "another manifest",
    );

    // Secrets, and those that boards watch over.
    let value = cluster.write("value", TOKEN);
    cluster.openssl(&format!("base64 -A -in {value} -out value.b64"));
    let encoded = cluster.read("value.b64");
    let secrets = json!({"token": {"Key": encoded}, "guarded": {"Key": encoded}});
    cluster.write("secrets.json", secrets.to_string());
    cluster.refused("secret set secrets.json @ +bob", "lacks the permission");
    cluster.bulla("secret set secrets.json @ +admin");
    assert!(
        cluster
            .bulla("secret get @ token +admin")
            .contains(&encoded)
    );
    cluster.refused("secret get @ token +stranger", "does not match any user");
    cluster.refused("secret get @ nothing +admin", "lacks the permission");
    cluster.refused("secret get @ guarded +admin", "agreement of keepers");
    let asked: Value =
        serde_json::from_str(&cluster.bulla("secret request @ guarded +admin --reason audit"))
            .unwrap();
    assert!(cluster.bulla("secret requests @ +bob").contains("audit"));
    cluster.bulla(&format!(
        "secret agree {} @ +bob",
        asked["id"].as_str().unwrap()
    ));
    assert!(
        cluster
            .bulla("secret get @ guarded +admin")
            .contains(&encoded)
    );
    cluster.refused("secret get @ guarded +admin", "agreement of keepers");

    // An update: signed by both, encrypted, carried by nobody in particular.
    cluster.bulla("audit get @ +root");
    cluster.write("earlier.json", cluster.bulla("audit get @ +root"));
    let mut second = first.clone();
    cluster.openssl("dgst -sha256 -r -out first.sha256 first.json");
    second["Config"] = json!({"Predecessor": cluster.read("first.sha256")[..64]});
    second["Secrets"]["guarded"]["Export"] = json!(["team"]);
    cluster.write("second.json", second.to_string());
    let sign = |file: &str, user: &str| {
        cluster.bulla(&format!(
            "manifest sign {file} --cert {user}.pem --key {user}.key"
        ))
    };
    cluster.write("once.jws", sign("second.json", "admin"));
    cluster.write("twice.jws", sign("once.jws", "bob"));
    cluster.write(
        "sealed.jwe",
        cluster.bulla("manifest encrypt twice.jws @ +root"),
    );
    assert!(!cluster.read("sealed.jwe").contains("payload"));
    cluster.bulla("manifest update apply sealed.jwe @ +root");
    cluster.bulla("manifest verify second.json @ +root");
    // And one step by step.
    let mut third = second.clone();
    third["Config"] = json!({});
    third["Marbles"]["m"]["MaxActivations"] = json!(3);
    cluster.write("third.json", third.to_string());
    cluster.bulla("manifest update apply third.json @ +admin");
    assert!(cluster.bulla("manifest update get @ +root").contains("bob"));
    cluster.bulla("manifest update cancel @ +bob");
    cluster.refused("manifest update get @ +root", "no update in progress");

    // The audit log goes on from its earlier copy, and lies are noticed.
    assert!(
        cluster
            .bulla("audit verify @ +root --earlier earlier.json")
            .starts_with("OK")
    );
    cluster.write("audit.json", cluster.bulla("audit get @ +root"));
    let copy = "audit verify-copy audit.json --root root.pem --earlier earlier.json";
    assert!(cluster.bulla(copy).starts_with("OK"));
    let log = cluster.read("audit.json");
    cluster.write(
        "audit.json",
        log.replace(
            "\\\"reason\\\":\\\"audit\\\"",
            "\\\"reason\\\":\\\"idle\\\"",
        ),
    );
    cluster.refused(copy, "entries were changed");
    assert!(
        cluster
            .bulla("manifest log @ +root")
            .contains("Initial manifest set")
    );

    // Namespaces.
    cluster.bulla("namespace create team @ +admin --owner bob.pem");
    assert!(cluster.bulla("namespace list @ +admin").contains("team"));
    let mut theirs = first.clone();
    theirs["Secrets"]["guarded"] = json!({"Type": "plain", "Import": {"Secret": "guarded"}});
    theirs["Roles"]["secrets"]["ResourceNames"] = json!(["token"]);
    cluster.write("theirs.json", theirs.to_string());
    cluster.refused(
        "manifest set theirs.json @ +admin --namespace team",
        "owner",
    );
    cluster.bulla("manifest set theirs.json @ +bob --namespace team --recovery-file theirs.rec");
    assert!(
        cluster
            .bulla("status @ +root --namespace team")
            .starts_with("3: ")
    );
    let theirs_root = cluster.bulla("certificate root @ +root --namespace team");
    assert_ne!(theirs_root, cluster.read("root.pem"));
    cluster.refused("status @ +root --namespace nobody", "no namespace");

    // Revocation.
    let uuid = "6d3c7d1e-0b0c-4d5f-8f2a-1a2b3c4d5e6f";
    assert!(
        cluster
            .bulla(&format!("revoke @ +admin --marble {uuid}"))
            .contains(uuid)
    );

    // The machine dies; the state is opened on another by its two keys.
    let mut dead = cluster.coordinator.take().unwrap();
    dead.child.kill().unwrap();
    dead.child.wait().unwrap();
    drop(dead);
    std::fs::remove_file(cluster.path("state/sealed_key")).unwrap();
    std::fs::remove_file(cluster.path("state/insecure_sealing_key")).unwrap();
    cluster.start();
    assert!(cluster.bulla("status @ --insecure").starts_with("1: "));
    let recovery: Value = serde_json::from_str(&cluster.read("recovery.json")).unwrap();
    for (name, expected) in [
        ("one", "Remaining secrets: 1"),
        ("two", "Recovery successful"),
    ] {
        let secret = recovery["RecoverySecrets"][name].as_str().unwrap();
        cluster.write("share", secret);
        let said = cluster.bulla(&format!("recover share {name}.key @ --insecure"));
        assert!(said.contains(expected), "{said}");
    }
    assert!(
        cluster.bulla("status @ +root").starts_with("3: "),
        "it is the same root"
    );
    assert!(
        cluster
            .bulla("secret get @ token +admin")
            .contains(&encoded)
    );
    assert!(
        cluster
            .bulla("audit verify @ +root --earlier earlier.json")
            .starts_with("OK")
    );
    // The namespace has its own keys.
    assert!(
        cluster
            .bulla("status @ +root --namespace team")
            .starts_with("1: ")
    );

    // Nothing of all this left a secret in the log.
    let mut secrets = vec![TOKEN.to_owned(), encoded];
    for share in recovery["RecoverySecrets"].as_object().unwrap().values() {
        secrets.push(share.as_str().unwrap().to_owned());
    }
    for start in 1..=cluster.starts {
        let log = cluster.read(&format!("log{start}"));
        for secret in &secrets {
            assert!(!log.contains(secret.as_str()), "{log}");
        }
        let lines = log.lines().filter(|line| line.starts_with('{'));
        let events: Vec<Value> = lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(
            events.iter().any(|event| event["event"] == "request"),
            "{log}"
        );
    }
}

const SESSION: &str = "
name: shop
services:
  - name: api
    mrenclaves: [aa]
    environment: {KEY: $$SCONE::key$$}
secrets:
  - {name: key, kind: binary, size: 16}
unheard_of: 1
";

#[test]
fn what_others_wrote_is_imported_and_its_remainder_told() {
    let dir = tempfile::tempdir().unwrap();
    let import = |kind: &str, name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        Command::new(bulla())
            .args(["import", kind])
            .arg(path)
            .output()
            .unwrap()
    };
    let session = import("scone", "session.yml", SESSION);
    assert!(session.status.success(), "{}", all(&session));
    let manifest: Value = serde_json::from_str(&text(&session)).unwrap();
    assert_eq!(
        manifest["Marbles"]["api"]["Parameters"]["Env"]["KEY"],
        "{{ hex .Secrets.key }}"
    );
    assert!(
        all(&session).contains("unheard_of: has no equivalent"),
        "{}",
        all(&session)
    );

    let gramine = import(
        "gramine",
        "app.manifest",
        "libos.entrypoint = '/bin/app'\nsgx.enclave_size = '1G'\nsgx.unheard_of = 1\n",
    );
    assert!(gramine.status.success(), "{}", all(&gramine));
    assert!(all(&gramine).contains("sgx.unheard_of: has no equivalent"));
    let file = dir.path().join("bulla.toml");
    std::fs::write(&file, text(&gramine)).unwrap();
    let check = Command::new(bulla())
        .args(["manifest", "check"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", all(&check));

    let other = import("gramine", "other.toml", "a = 1\n");
    assert!(!other.status.success());
    assert!(
        all(&other).contains("libos.entrypoint is missing"),
        "{}",
        all(&other)
    );
}

#[test]
fn outside_an_enclave_it_starts_only_by_an_insecure_name() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(bulla())
        .args(["coordinator", "--state"])
        .arg(dir.path().join("state"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(
        all(&output).contains("--insecure-outside-enclave"),
        "{}",
        all(&output)
    );
    assert!(
        !Path::new(&dir.path().join("state")).exists(),
        "nothing was made"
    );
}
