//! `bulla coordinator` over shared stores, as people start it: two replicas in enclaves, one killed;
//! namespaces by the command line; and what it says when a store cannot be used.

#[path = "common/kubernetes.rs"]
mod api;
#[path = "common/apiserver.rs"]
mod apiserver;
mod common;

use apiserver::ApiServer;
use bulla_test_apps::{bulla, free_port};
use common::etcd::Etcd;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

fn all(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

struct Replica {
    child: Child,
    words: Vec<String>,
    log: PathBuf,
    port: u16,
    /// Its machine's state, if it is not this user's.
    state: Option<PathBuf>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Replica {
    fn start(dir: &Path, words: Vec<String>, port: u16, state: Option<PathBuf>) -> Replica {
        let log = dir.join(format!("log-{port}"));
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = Command::new(bulla());
        if let Some(state) = &state {
            command.env("BULLA_STATE", state);
        }
        let child = command
            .args(&words)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Replica {
            child,
            words,
            log,
            port,
            state,
        }
    }

    /// Starts it again, with other words.
    fn again(&mut self, dir: &Path, words: Vec<String>) {
        self.kill();
        *self = Replica::start(dir, words, self.port, self.state.take());
    }

    /// SIGKILL.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether replicas have the state of a machine, development key included, in common.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Machines {
    One,
    Two,
}

/// Two replicas over a store, and users.
struct Pair {
    dir: tempfile::TempDir,
    replicas: [Replica; 2],
}

impl Pair {
    fn start(store: &[String]) -> Pair {
        Pair::on(store, Machines::One)
    }

    fn on(store: &[String], machines: Machines) -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let openssl = |words: String| {
            let made = Command::new("openssl")
                .args(words.split_whitespace())
                .current_dir(dir.path())
                .output()
                .unwrap();
            assert!(made.status.success(), "{}", all(&made));
        };
        for name in ["admin", "bob"] {
            openssl(format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj \
                 /CN={name} -keyout {name}.key -out {name}.pem"
            ));
        }
        for name in ["one", "two"] {
            openssl(format!(
                "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out {name}.key"
            ));
            openssl(format!("pkey -in {name}.key -pubout -out {name}.pub"));
        }
        if machines == Machines::Two {
            openssl(
                "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -pkeyopt rsa_keygen_pubexp:3 \
                 -out sign.pem"
                    .to_owned(),
            );
            std::fs::create_dir(dir.path().join("cpu")).unwrap();
        }
        let ports = [free_port(), free_port()];
        let replicas = [0, 1].map(|n| {
            let address = |port: u16| format!("127.0.0.1:{port}");
            let (own, other, mesh) = (ports[n], ports[1 - n], free_port());
            let mut words: Vec<String> = [
                "coordinator",
                "--in-enclave",
                "--owner-certificate",
                "admin.pem",
                "--client-address",
                &address(own),
                "--mesh-address",
                &address(mesh),
                "--replica",
                ["a", "b"][n],
                "--freshness-anchor",
                ["anchor-a", "anchor-b"][n],
                "--peer",
                &address(other),
            ]
            .map(str::to_owned)
            .into();
            words.extend_from_slice(store);
            let mut state = None;
            if machines == Machines::Two {
                words.extend(["--sign-key", "sign.pem"].map(str::to_owned));
                // One takes the name that its CPU gives it; of its peers the first is gone, and the next
                // itself, as where all have one command line.
                if n == 1 {
                    let peers = [address(1), address(own)];
                    let at = words.iter().position(|word| word == "--peer").unwrap();
                    for peer in peers.into_iter().rev() {
                        words.splice(at..at, ["--peer".to_owned(), peer]);
                    }
                    let at = words.iter().position(|word| word == "--replica").unwrap();
                    words.drain(at..at + 2);
                }
                // Emulated machines believe only their own CPU, which is therefore the same.
                let of_machine = dir.path().join(["machine-a", "machine-b"][n]);
                std::fs::create_dir(&of_machine).unwrap();
                std::os::unix::fs::symlink(dir.path().join("cpu"), of_machine.join("emulated"))
                    .unwrap();
                state = Some(of_machine);
            }
            Replica::start(dir.path(), words, own, state)
        });
        Pair { dir, replicas }
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.dir.path().join(name), content).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    /// `bulla WORDS`; @a and @b are the replicas, +NAME the options of a user.
    fn ask(&self, words: &str) -> Output {
        let mut command = Command::new(bulla());
        command.current_dir(self.dir.path());
        for word in words.split_whitespace() {
            match (word, word.strip_prefix('+')) {
                ("@a", _) => command.arg(format!("localhost:{}", self.replicas[0].port)),
                ("@b", _) => command.arg(format!("localhost:{}", self.replicas[1].port)),
                (_, Some("root")) => command.args(["--coordinator-cert", "root.pem"]),
                (_, Some(user)) => command.args([
                    "--coordinator-cert",
                    "root.pem",
                    "--cert",
                    &format!("{user}.pem"),
                    "--key",
                    &format!("{user}.key"),
                ]),
                (word, None) => command.arg(word),
            };
        }
        command.output().unwrap()
    }

    fn logs(&self) -> String {
        let logs = self.replicas.iter();
        logs.map(|replica| std::fs::read_to_string(&replica.log).unwrap())
            .collect()
    }

    fn bulla(&self, words: &str) -> String {
        let output = self.ask(words);
        assert!(
            output.status.success(),
            "bulla {words}: {}\n{}",
            all(&output),
            self.logs()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Asks until the answer begins so.
    fn eventually(&self, words: &str, start: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let output = self.ask(words);
            if all(&output).starts_with(start) {
                return;
            }
            let logs = self.logs();
            assert!(Instant::now() < end, "{words}: {}\n{logs}", all(&output));
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// All that two replicas promise.
    fn live(mut self) {
        self.eventually("status @a --insecure", "2: ");
        self.eventually("status @b --insecure", "2: ");
        let root = self.bulla("certificate root @a --insecure");
        self.write("root.pem", &root);
        let user = |name: &str, roles: &[&str]| json!({"Certificate": self.read(&format!("{name}.pem")), "Roles": roles});
        let manifest = json!({
            "Packages": {"p": {"UniqueID": "11".repeat(32)}},
            "Marbles": {"m": {"Package": "p", "Parameters": {}}},
            "Secrets": {"token": {"Type": "plain", "UserDefined": true}},
            "Users": {"admin": user("admin", &["secrets", "updater"])},
            "Roles": {
                "secrets": {"ResourceType": "Secrets", "ResourceNames": ["token"],
                    "Actions": ["ReadSecret", "WriteSecret"]},
                "updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
            },
            "RecoveryKeys": {"one": self.read("one.pub"), "two": self.read("two.pub")},
        });
        self.write("manifest.json", &manifest.to_string());
        self.bulla("manifest set manifest.json @a +admin --recovery-file recovery.json");
        let root = self.bulla("certificate root @a --insecure");
        self.write("root.pem", &root);
        // The other notices, and gets the key by its quote: it is the same coordinator then.
        self.eventually("status @b +root", "3: ");
        self.bulla("manifest verify manifest.json @b +root");

        // Namespaces: made by one, used by the other, and deleted.
        self.bulla("namespace create team @a +admin --owner bob.pem");
        self.eventually("status @b +root --namespace team", "2: ");
        let mut theirs = manifest.clone();
        theirs["Users"] =
            json!({"bob": {"Certificate": self.read("bob.pem"), "Roles": ["updater"]}});
        self.write("theirs.json", &theirs.to_string());
        let refused = self.ask("manifest set theirs.json @b +admin --namespace team");
        assert!(!refused.status.success() && all(&refused).contains("owner"));
        self.bulla("manifest set theirs.json @b +bob --namespace team");
        self.eventually("status @a +root --namespace team", "3: ");
        let list: Value = serde_json::from_str(&self.bulla("namespace list @a +admin")).unwrap();
        assert_eq!(list[0], json!({"name": "team", "code": 3}));
        self.bulla("namespace delete team @b +admin");
        self.eventually(
            "status @a +root --namespace team",
            "bulla: the coordinator refused (404): there is no namespace",
        );
        let gone = self.ask("namespace delete team @a +admin");
        assert!(!gone.status.success() && all(&gone).contains("no namespace"));

        // One is killed; the other goes on, and what it was told the first knows when it is back.
        self.replicas[0].kill();
        self.write(
            "secrets.json",
            &json!({"token": {"Key": "c2VjcmV0"}}).to_string(),
        );
        self.bulla("secret set secrets.json @b +admin");
        assert!(
            self.bulla("secret get @b token +admin")
                .contains("c2VjcmV0")
        );
        let words = std::mem::take(&mut self.replicas[0].words);
        self.replicas[0].again(self.dir.path(), words);
        self.eventually("status @a +root", "3: ");
        assert!(
            self.bulla("secret get @a token +admin")
                .contains("c2VjcmV0")
        );

        // Both machines are lost. On a new one, in an enclave too, two people open the state.
        self.replicas.iter_mut().for_each(Replica::kill);
        let words: Vec<String> = std::mem::take(&mut self.replicas[0].words);
        let peer = words.iter().position(|word| word == "--peer").unwrap();
        let mut words = [&words[..peer], &words[peer + 2..]].concat();
        for (option, value) in [("--replica", "new"), ("--freshness-anchor", "anchor-new")] {
            let at = words.iter().position(|word| word == option).unwrap();
            words[at + 1] = value.to_owned();
        }
        self.replicas[0].again(self.dir.path(), words);
        self.eventually("status @a --insecure", "1: ");
        let recovery: Value = serde_json::from_str(&self.read("recovery.json")).unwrap();
        for (name, said) in [
            ("one", "Remaining secrets: 1"),
            ("two", "Recovery successful"),
        ] {
            let secret = recovery["RecoverySecrets"][name].as_str().unwrap();
            self.write("share", secret);
            let answer = self.bulla(&format!("recover share {name}.key @a --insecure"));
            assert!(answer.contains(said), "{answer}");
        }
        self.eventually("status @a +root", "3: ");
        assert!(
            self.bulla("secret get @a token +admin")
                .contains("c2VjcmV0")
        );
    }
}

#[test]
fn two_replicas_in_enclaves_over_etcd() {
    let etcd = Etcd::start(1);
    let endpoint = etcd.endpoints[0].clone();
    Pair::start(&["--etcd".to_owned(), endpoint]).live();
}

#[test]
fn one_key_signs_replicas_on_machines_with_keys_of_their_own() {
    let etcd = Etcd::start(1);
    let endpoint = etcd.endpoints[0].clone();
    Pair::on(&["--etcd".to_owned(), endpoint], Machines::Two).live();
}

fn kubernetes(address: &str, namespace: &str, token: &Path) -> Vec<String> {
    let token = token.to_str().unwrap();
    [
        "--kubernetes",
        "--kubernetes-api",
        address,
        "--kubernetes-namespace",
        namespace,
        "--kubernetes-token",
        token,
    ]
    .map(str::to_owned)
    .into()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_in_enclaves_over_the_kubernetes_api() {
    let api = api::Api::start().await;
    let token = api.token_file.path();
    Pair::start(&kubernetes(&api.address, api::NAMESPACE, token)).live();
}

#[test]
#[ignore = "builds a Kubernetes API server: minutes"]
fn two_replicas_in_enclaves_over_a_real_kubernetes_api() {
    let api = ApiServer::start();
    let mut words = kubernetes(&api.address, apiserver::NAMESPACE, &api.token);
    words.push("--store-ca".to_owned());
    words.push(api.authority().to_str().unwrap().to_owned());
    Pair::start(&words).live();
    let mut names = api.names();
    names.retain(|name| name.starts_with("bulla-") && !name.starts_with("bulla-root."));
    assert_eq!(names, [""; 0], "of the namespace that was deleted");
}

#[test]
#[ignore = "builds a Kubernetes API server: minutes"]
fn a_real_kubernetes_api_that_refuses_is_told_in_one_line() {
    let api = ApiServer::start();
    let stranger = api.stranger();
    let mut words = kubernetes(&api.address, apiserver::NAMESPACE, &stranger);
    let authority = api.authority();
    words.extend(["--store-ca", authority.to_str().unwrap()].map(str::to_owned));
    refused(&words, "cannot get resource \"secrets\"");
}

/// Outside an enclave the coordinator ends at once, with one line that says why.
fn refused(words: &[String], reason: &str) {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(bulla())
        .args(["coordinator", "--insecure-outside-enclave"])
        .args([
            "--client-address",
            "127.0.0.1:0",
            "--mesh-address",
            "127.0.0.1:0",
        ])
        .args(words)
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = all(&output);
    assert!(!output.status.success(), "{words:?}: {said}");
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| !line.contains("INSECURE"))
        .collect();
    assert_eq!(lines.len(), 1, "{words:?}: {said}");
    assert!(lines[0].contains(reason), "{words:?}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_store_refuses_is_told_in_one_line() {
    let api = api::Api::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let token = api.token_file.path();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let empty = file("empty", "");
    let empty = empty.to_str().unwrap();
    let mut no_authority = kubernetes(&api.address, api::NAMESPACE, token);
    no_authority.extend(words(&["--store-ca", empty]));
    for (words, reason) in [
        (words(&["--etcd", &nobody]), "the store cannot be reached"),
        (words(&["--etcd", "https://"]), "invalid format"),
        (
            words(&["--kubernetes"]),
            "name the API with --kubernetes-api",
        ),
        (
            words(&["--kubernetes", "--kubernetes-api", &nobody]),
            "name it with --kubernetes-namespace",
        ),
        (
            kubernetes(&nobody, api::NAMESPACE, token),
            "the store cannot be reached",
        ),
        (
            kubernetes(&api.address, api::NAMESPACE, &file("wrong", "wrong")),
            "401: Unauthorized",
        ),
        (
            kubernetes(&api.address, "elsewhere", token),
            "403: secrets is forbidden",
        ),
        (
            kubernetes(&api.address, api::NAMESPACE, &dir.path().join("none")),
            "No such file",
        ),
        (no_authority, "holds no certificate in PEM"),
    ] {
        refused(&words, reason);
    }
}
