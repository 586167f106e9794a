//! A cluster seen at work: a coordinator and three unmodified images (a front end in Python, an API in
//! Go, Redis) that become marbles by `[coordinator]` of their manifests. They activate, talk to each
//! other over mutual TLS, are restarted, updated by two parties, renewed under load, revoked, and
//! outlive their coordinator.

use bulla_test_apps::{Server, Side, bulla, free_port, image, platform_options, sides};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// For what takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Certificates are renewed so often that a test sees it.
const RENEW_SECONDS: u32 = 4;
/// And revocation lists are looked for.
const CRL_SECONDS: u32 = 3;

const FRONT: &str = r#"
import http.client, http.server, os, signal, ssl, time
place = "/dev/shm/bulla-marble/"
def present(context):
    # OpenSSL opens the file for the certificate and again for the key: it may be the next one by then.
    for last in (False, False, False, True):
        try: return context.load_cert_chain(place + "tls.pem")
        except ssl.SSLError as error:
            if last or error.reason != "KEY_VALUES_MISMATCH": raise
            time.sleep(0.05)
def load(*_):
    global current
    fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    present(fresh)
    current = fresh
load()
signal.signal(signal.SIGHUP, load)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try: self.answer()
        except Exception:
            import traceback
            why = traceback.format_exc()
            print(why, flush=True)
            self.send_response(502); self.end_headers()
            self.wfile.write(why.encode())
    def answer(self):
        status = 200
        if self.path == "/greeting":
            body = open("/run/front/greeting", "rb").read()
        else:
            inner = ssl.create_default_context(cafile=place + "ca.crt")
            inner.load_verify_locations(place + "crl.pem")
            inner.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
            present(inner)
            api = http.client.HTTPSConnection("api", int(os.environ["API_PORT"]), context=inner, timeout=60)
            api.request("GET", self.path)
            answer = api.getresponse()
            status, body = answer.status, answer.read()
        self.send_response(status); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words): pass
class Front(http.server.ThreadingHTTPServer):
    daemon_threads = True
    def get_request(self):
        connection, address = self.socket.accept()
        return current.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address
    def handle_error(self, *_):
        import traceback; traceback.print_exc()
Front(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// Where the coordinator runs.
#[derive(Clone, Copy, PartialEq)]
enum Runs {
    /// As an ordinary process.
    Outside,
    /// In an enclave, where it is known by its quote.
    Enclave,
}

struct Coordinator {
    child: Child,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Cluster {
    runs: Runs,
    dir: tempfile::TempDir,
    client: u16,
    mesh: u16,
    front: u16,
    api: u16,
    redis: u16,
    /// Where the front end keeps its UUID.
    volume: &'static str,
    coordinator: Option<Coordinator>,
    starts: usize,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn all(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

/// Asks again until the answer is there.
fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(last) if Instant::now() > end => panic!("never {what}: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

impl Cluster {
    fn new(runs: Runs) -> Cluster {
        let cluster = Cluster {
            runs,
            dir: tempfile::tempdir().unwrap(),
            client: free_port(),
            mesh: free_port(),
            front: free_port(),
            api: free_port(),
            redis: free_port(),
            volume: "front.volume",
            coordinator: None,
            starts: 0,
        };
        for name in ["admin", "bob"] {
            cluster.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                 -subj /CN={name} -keyout {name}.key -out {name}.pem"
            ));
        }
        for name in ["one", "two"] {
            cluster.openssl(&format!(
                "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out {name}.key"
            ));
            cluster.openssl(&format!("pkey -in {name}.key -pubout -out {name}.pub"));
        }
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn read(&self, name: &str) -> String {
        text(&std::fs::read(self.path(name)).unwrap())
    }

    fn openssl(&self, words: &str) -> String {
        let output = Command::new("openssl")
            .args(words.split_whitespace())
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{words}: {}", all(&output));
        text(&output.stdout)
    }

    /// `bulla WORDS`, where @ is the coordinator and +NAME the options of a user (or of nobody: +root).
    fn try_bulla(&self, words: &str) -> Output {
        let mut command = Command::new(bulla());
        command.current_dir(self.dir.path());
        for word in words.split_whitespace() {
            match word.strip_prefix('+') {
                Some(user) => {
                    command.args(["--coordinator-cert", "root.pem"]);
                    if user != "root" {
                        command.args(["--cert", &format!("{user}.pem")]);
                        command.args(["--key", &format!("{user}.key")]);
                    }
                }
                None => {
                    command.arg(word.replace('@', &format!("localhost:{}", self.client)));
                }
            }
        }
        command.output().unwrap()
    }

    fn bulla(&self, words: &str) -> String {
        let output = self.try_bulla(words);
        assert!(
            output.status.success(),
            "bulla {words}: {}\n{}",
            all(&output),
            self.log()
        );
        text(&output.stdout)
    }

    fn log(&self) -> String {
        self.read(&format!("log{}", self.starts))
    }

    fn coordinator_command(&self) -> Command {
        let mut command = Command::new(bulla());
        command.arg("coordinator").arg(match self.runs {
            Runs::Outside => "--insecure-outside-enclave",
            Runs::Enclave => "--in-enclave",
        });
        command
            .args(["--client-address", &format!("127.0.0.1:{}", self.client)])
            .args(["--mesh-address", &format!("127.0.0.1:{}", self.mesh)])
            .args(["--state", "state", "--owner-certificate", "admin.pem"])
            .current_dir(self.dir.path());
        command
    }

    /// What the coordinator's enclave is, known before it runs.
    fn identity(&self) -> Value {
        let output = self.coordinator_command().arg("--identity").output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", all(&output));
        let mut identity: Value = serde_json::from_slice(&output.stdout).unwrap();
        identity["InsecureAllowEmulated"] = json!(true);
        identity
    }

    fn start_coordinator(&mut self) {
        self.starts += 1;
        let log = std::fs::File::create(self.path(&format!("log{}", self.starts))).unwrap();
        let mut command = self.coordinator_command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().unwrap();
        self.coordinator = Some(Coordinator { child });
        eventually("a coordinator that answers", || {
            let output = self.try_bulla("status @ --insecure");
            match output.status.success() {
                true => Ok(()),
                false => Err(all(&output) + &self.log()),
            }
        });
    }

    fn root_sha256(&self) -> String {
        self.openssl("x509 -in root.pem -outform der -out root.der");
        self.openssl("dgst -sha256 -r root.der")[..64].to_owned()
    }

    /// The manifest of a service, `NAME.toml`.
    fn service(&self, name: &str, more: &str) {
        let reload = match name {
            "front" => "reload_signal = 1\nuuid_file = \"/data/uuid\"",
            "redis" => {
                "reload_command = [\"redis-cli\", \"-s\", \"/tmp/redis.sock\", \"config\", \"set\", \
                 \"tls-cert-file\", \"/dev/shm/bulla-marble/tls.pem\", \
                 \"tls-key-file\", \"/dev/shm/bulla-marble/tls.pem\"]"
            }
            _ => "",
        };
        // Each way to know the coordinator is used by somebody.
        let trust = match (self.runs, name) {
            (Runs::Enclave, "api") => format!(
                "client_address = \"localhost:{}\"\n[coordinator.policy]\n\
                 insecure_allow_emulated = true\naccept = [{{ mrenclave = {} }}]",
                self.client,
                self.identity()["UniqueID"]
            ),
            _ => format!("root_sha256 = \"{}\"", self.root_sha256()),
        };
        let port = self.mesh;
        self.write(
            &format!("{name}.toml"),
            format!(
                "memory = \"512M\"\n{more}\n[network]\nhosts = {{ api = \"127.0.0.1\", redis = \
                 \"127.0.0.1\" }}\n[coordinator]\naddress = \"localhost:{port}\"\nmarble = \
                 \"{name}\"\nnames = [\"{name}\"]\nrenew_seconds = {RENEW_SECONDS}\ncrl_seconds = {CRL_SECONDS}\n{reload}\n{trust}\n"
            ),
        );
    }

    fn services(&self) {
        self.service(
            "front",
            &format!(
                "entrypoint = [\"python3\", \"-c\", '''{FRONT}''']\n[[mounts]]\ntarget = \
                 \"/data\"\ntype = \"volume\""
            ),
        );
        self.service(
            "api",
            "[environment]\nPASSWORD = { secret = \"REDIS_PASSWORD\" }",
        );
        self.service("redis", "");
    }

    fn image(name: &str) -> PathBuf {
        image(match name {
            "front" => "python",
            "api" => "api",
            _ => "redis",
        })
        .archive
    }

    fn measured(&self, name: &str) -> String {
        self.measure(name)["layouts"][0]["mrenclave"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn measure(&self, name: &str) -> Value {
        let output = Command::new(bulla())
            .args(["measure", "--json", "--layout", "dynamic", "--manifest"])
            .arg(self.path(&format!("{name}.toml")))
            .arg(Self::image(name))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", all(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn run(&self, name: &str) -> Command {
        self.run_with(name, &[])
    }

    /// With further options of `bulla run`.
    fn run_with(&self, name: &str, options: &[&str]) -> Command {
        let mut command = Command::new(bulla());
        command
            .args(["run", "--quiet", "--layout", "dynamic", "--manifest"])
            .arg(self.path(&format!("{name}.toml")))
            .args(platform_options());
        if name == "front" {
            let place = self.path(self.volume);
            command.arg("-v").arg(format!("{}:/data", place.display()));
        }
        command.args(options).arg(Self::image(name));
        command
    }

    fn serve(&self, name: &str) -> Server {
        let port = match name {
            "front" => self.front,
            "api" => self.api,
            _ => self.redis,
        };
        Server::start(self.run(name), Side::Enclave, port, PATIENCE)
    }

    fn manifest(&self) -> Value {
        let user = |name: &str| json!({"Certificate": self.read(&format!("{name}.pem")), "Roles": ["updater"]});
        let package =
            |name: &str| json!({"UniqueID": self.measured(name), "InsecureAllowEmulated": true});
        let tls = "/dev/shm/bulla-marble";
        let redis = format!(
            "requirepass {{{{ hex .Secrets.password }}}}\nport 0\nbind 127.0.0.1\nsave \"\"\n\
             tls-port {}\nunixsocket /tmp/redis.sock\ntls-cert-file {tls}/tls.pem\n\
             tls-key-file {tls}/tls.pem\ntls-ca-cert-file {tls}/ca.crt\ntls-auth-clients yes\n",
            self.redis
        );
        json!({
            "Packages": {"front": package("front"), "api": package("api"), "redis": package("redis")},
            "Marbles": {
                "front": {
                    "Package": "front", "AllowedDNSNames": ["front"],
                    "Parameters": {
                        "Env": {"PORT": self.front.to_string(), "API_PORT": self.api.to_string()},
                        "Files": {"/run/front/greeting": "good morning"},
                    },
                },
                // Twice: at the start and after the restart. Renewals take nothing of it.
                "api": {
                    "Package": "api", "AllowedDNSNames": ["api"], "MaxActivations": 2,
                    "Parameters": {"Env": {
                        "LISTEN": format!("127.0.0.1:{}", self.api),
                        "REDIS": format!("redis:{}", self.redis),
                        "REDIS_PASSWORD": "{{ hex .Secrets.password }}",
                    }},
                },
                "redis": {
                    "Package": "redis", "AllowedDNSNames": ["redis"],
                    "Parameters": {
                        "Argv": ["redis-server", "/run/redis/redis.conf"],
                        "Env": {"REDISCLI_AUTH": "{{ hex .Secrets.password }}"},
                        "Files": {"/run/redis/redis.conf": redis},
                    },
                },
            },
            "Secrets": {"password": {"Type": "symmetric-key", "Size": 256, "Shared": true}},
            "Users": {"admin": user("admin"), "bob": user("bob")},
            "Roles": {"updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}},
            "RecoveryKeys": {"one": self.read("one.pub"), "two": self.read("two.pub")},
        })
    }

    /// An ordinary client that trusts the coordinator's root.
    fn get(&self, path: &str) -> Result<String, String> {
        let output = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--fail-with-body",
                "--max-time",
                "60",
            ])
            .args(["--resolve", &format!("front:{}:127.0.0.1", self.front)])
            .arg("--cacert")
            .arg(self.path("root.pem"))
            .arg(format!("https://front:{}{path}", self.front))
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(all(&output)),
        }
    }

    /// A service's certificate as it shows it now, PEM.
    fn certificate(&self, port: u16) -> String {
        let output = Command::new("openssl")
            .args(["s_client", "-connect", &format!("127.0.0.1:{port}")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let shown = text(&output.stdout);
        let start = shown.find("-----BEGIN CERTIFICATE").expect("a certificate");
        let end = shown.find("-----END CERTIFICATE").expect("a certificate");
        shown[start..end].to_owned() + "-----END CERTIFICATE-----\n"
    }

    /// The UUID in a service's certificate.
    fn uuid(&self, port: u16) -> String {
        self.write("leaf.pem", self.certificate(port));
        let subject = self.openssl("x509 -in leaf.pem -noout -subject -nameopt multiline");
        let line = subject.lines().find(|line| line.contains("commonName"));
        line.and_then(|line| line.split_once("= "))
            .unwrap()
            .1
            .to_owned()
    }

    /// Runs a service that must not come up; returns what it said.
    fn refused(&self, name: &str, code: i32) -> String {
        let output = self.run(name).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", all(&output));
        all(&output)
    }
}

/// Requests without a pause, until it is dropped; none may fail.
struct Load<'a> {
    stop: &'a AtomicBool,
    done: &'a AtomicUsize,
}

impl Load<'_> {
    fn count(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }
}

fn under_load<T>(cluster: &Cluster, work: impl FnOnce(&Load<'_>) -> T) -> T {
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match cluster.get("/count") {
                    Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                    Err(error) => {
                        failures.push(error);
                        0
                    }
                };
            }
            failures
        });
        let load = Load {
            stop: &stop,
            done: &done,
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&load)));
        load.stop.store(true, Ordering::Relaxed);
        let failures = worker.join().unwrap();
        match result {
            Ok(result) => {
                assert!(failures.is_empty(), "{failures:#?}");
                result
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn life(runs: Runs) {
    let mut cluster = Cluster::new(runs);
    cluster.start_coordinator();
    match runs {
        Runs::Outside => {
            cluster.write("root.pem", cluster.bulla("certificate root @ --insecure"));
        }
        Runs::Enclave => {
            // Its quote shows that enclave, and no other.
            let mut identity = cluster.identity();
            cluster.write("identity.json", identity.to_string());
            let root = cluster.bulla("certificate root @ --coordinator-identity identity.json");
            cluster.write("root.pem", root);
            identity["UniqueID"] = json!("11".repeat(32));
            identity["UniqueIDs"] = json!([]);
            cluster.write("other.json", identity.to_string());
            let other = cluster.try_bulla("status @ --coordinator-identity other.json");
            assert!(!other.status.success(), "{}", all(&other));
            assert!(
                all(&other).contains("is not the expected one"),
                "{}",
                all(&other)
            );
        }
    }
    cluster.services();

    // Nobody knows them yet: a marble waits for its coordinator's manifest.
    let first = cluster.manifest();
    cluster.write("first.json", first.to_string());
    cluster.bulla("manifest set first.json @ +admin --recovery-file recovery.json");

    let redis = cluster.serve("redis");
    let api = cluster.serve("api");
    let front = cluster.serve("front");
    let said = cluster.get("/count").unwrap_or_else(|error| {
        panic!(
            "{error}\n{}\n{}\n{}\n{}",
            front.output(),
            api.output(),
            redis.output(),
            cluster.log()
        )
    });
    assert_eq!(said, "count :1 for front\n");
    assert_eq!(cluster.get("/greeting").unwrap(), "good morning");

    // Mutual: without a certificate of the cluster neither API nor Redis talks.
    for port in [cluster.api, cluster.redis] {
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "(sleep 1; printf 'PING\\r\\n'; sleep 1) | openssl s_client -quiet -connect 127.0.0.1:{port}"
            ))
            .output()
            .unwrap();
        let said = all(&output);
        assert!(!said.contains("NOAUTH") && !said.contains("PONG"), "{said}");
        assert!(said.contains("alert"), "{said}");
    }

    // One is restarted: a new instance, the same cluster. A third is one too many.
    let before = cluster.uuid(cluster.api);
    api.stop();
    let api = cluster.serve("api");
    assert_ne!(cluster.uuid(cluster.api), before);
    assert_eq!(cluster.get("/count").unwrap(), "count :2 for front\n");
    let many = cluster.refused("api", 77);
    assert!(many.contains("reached max activations count"), "{many}");

    // Certificates are renewed, each of the three, and no request fails.
    let ports = [cluster.front, cluster.api, cluster.redis];
    under_load(&cluster, |load| {
        let before = ports.map(|port| cluster.certificate(port));
        for (port, before) in ports.iter().zip(&before) {
            eventually("renewed", || {
                let now = cluster.certificate(*port);
                if now != *before {
                    Ok(())
                } else {
                    Err(format!("port {port}"))
                }
            });
        }
        eventually("a request", || {
            if load.count() > 3 {
                Ok(())
            } else {
                Err("few".into())
            }
        });
    });

    // Two parties update the manifest under load: a new issuer, a new file.
    let mut second = first.clone();
    second["Marbles"]["front"]["Parameters"]["Files"]["/run/front/greeting"] =
        json!("good evening");
    second["Marbles"]["api"]["MaxActivations"] = json!(0);
    cluster.write("second.json", second.to_string());
    under_load(&cluster, |load| {
        let before = load.count();
        let said = cluster.bulla("manifest update apply second.json @ +admin");
        assert!(said.contains("bob"), "{said}");
        assert_eq!(cluster.get("/greeting").unwrap(), "good morning");
        cluster.bulla("manifest update acknowledge second.json @ +bob");
        cluster.bulla("manifest verify second.json @ +root");
        eventually("the new greeting", || match cluster.get("/greeting")? {
            greeting if greeting == "good evening" => Ok(()),
            greeting => Err(greeting),
        });
        let issuer = cluster.bulla("certificate intermediate @ +root");
        cluster.write("intermediate.pem", issuer);
        for port in ports {
            eventually("of the new issuer", || {
                cluster.write("leaf.pem", cluster.certificate(port));
                let output = Command::new("openssl")
                    .args([
                        "verify",
                        "-partial_chain",
                        "-CAfile",
                        "intermediate.pem",
                        "leaf.pem",
                    ])
                    .current_dir(cluster.dir.path())
                    .output()
                    .unwrap();
                if output.status.success() {
                    Ok(())
                } else {
                    Err(all(&output))
                }
            });
        }
        eventually("a request", || {
            if load.count() > before + 3 {
                Ok(())
            } else {
                Err("few".into())
            }
        });
    });

    // One is revoked: it gets no further certificate, and cannot come back.
    let uuid = cluster.uuid(cluster.front);
    cluster.bulla(&format!("revoke @ +admin --marble {uuid}"));
    eventually("refused", || match front.output() {
        said if said.contains("this marble is revoked") => Ok(()),
        said => Err(said),
    });
    front.stop();
    let back = cluster.refused("front", 77);
    assert!(back.contains("this marble is revoked"), "{back}");
    // Another instance is none of that.
    cluster.volume = "other.volume";
    let front = cluster.serve("front");
    assert_ne!(cluster.uuid(cluster.front), uuid);

    // Its peers refuse one that is revoked while it runs and shows a certificate that has not expired.
    let uuid = cluster.uuid(cluster.api);
    cluster.bulla(&format!("revoke @ +admin --marble {uuid}"));
    eventually("refused by its peer", || match cluster.get("/count") {
        Err(_) if front.output().contains("certificate revoked") => Ok(()),
        other => Err(format!("{other:?}: {}", front.output())),
    });
    assert_eq!(cluster.uuid(cluster.api), uuid, "it still runs");
    api.stop();
    let api = cluster.serve("api");
    let count = cluster.get("/count").unwrap();
    assert!(count.starts_with("count :"), "{count}");

    // The coordinator is killed; the services go on.
    drop(cluster.coordinator.take());
    let count = cluster.get("/count").unwrap();
    assert!(count.starts_with("count :"), "{count}");
    eventually("noticed", || match api.output() {
        said if said.contains("cannot be reached") => Ok(()),
        said => Err(said),
    });
    match runs {
        // Its machine is lost too: the state comes back by the keys of two people.
        Runs::Outside => {
            std::fs::remove_file(cluster.path("state/sealed_key")).unwrap();
            std::fs::remove_file(cluster.path("state/insecure_sealing_key")).unwrap();
            cluster.start_coordinator();
            assert!(cluster.bulla("status @ --insecure").starts_with("1: "));
            let recovery: Value = serde_json::from_str(&cluster.read("recovery.json")).unwrap();
            for name in ["one", "two"] {
                let secret = recovery["RecoverySecrets"][name].as_str().unwrap();
                cluster.write("share", secret);
                cluster.bulla(&format!("recover share {name}.key @ --insecure"));
            }
        }
        // The same enclave opens its volume again.
        Runs::Enclave => cluster.start_coordinator(),
    }
    assert!(cluster.bulla("status @ +root").starts_with("3: "));
    cluster.bulla("manifest verify second.json @ +root");

    // Whoever ran is renewed again, and a new instance finds the others.
    under_load(&cluster, |_| {
        for port in ports {
            let before = cluster.certificate(port);
            eventually("renewed", || {
                if cluster.certificate(port) != before {
                    Ok(())
                } else {
                    Err(front.output())
                }
            });
        }
    });
    api.stop();
    let api = cluster.serve("api");
    let count = cluster.get("/count").unwrap();
    assert!(count.starts_with("count :"), "{count}");
    for service in [front, api, redis] {
        service.stop();
    }
}

#[test]
fn a_cluster_lives_with_a_coordinator_outside() {
    if sides().contains(&Side::Enclave) {
        life(Runs::Outside);
    }
}

#[test]
fn a_cluster_lives_with_a_coordinator_in_an_enclave() {
    if sides().contains(&Side::Enclave) {
        life(Runs::Enclave);
    }
}

/// What ends a marble before its program starts, and how.
#[test]
fn whoever_is_refused_never_starts() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let mut cluster = Cluster::new(Runs::Outside);
    let manifest = |coordinator: &str| {
        let port = cluster.mesh;
        cluster.write(
            "api.toml",
            format!(
                "entrypoint = [\"/bin/api\"]\nmemory = \"512M\"\n[coordinator]\n\
                 address = \"localhost:{port}\"\n{coordinator}\n"
            ),
        );
    };
    let zeros = "00".repeat(32);
    // Nobody is there.
    manifest(&format!(
        "marble = \"api\"\nroot_sha256 = \"{zeros}\"\nwait_seconds = 0"
    ));
    let said = cluster.refused("api", 69);
    assert!(said.contains("cannot be reached"), "{said}");
    // Which marble?
    manifest(&format!("root_sha256 = \"{zeros}\""));
    let said = cluster.refused("api", 125);
    assert!(said.contains("EDG_MARBLE_TYPE"), "{said}");

    cluster.start_coordinator();
    cluster.write("root.pem", cluster.bulla("certificate root @ --insecure"));
    let manifest = |coordinator: &str| {
        let port = cluster.mesh;
        cluster.write(
            "api.toml",
            format!(
                "entrypoint = [\"/bin/api\"]\nmemory = \"512M\"\n\
                 [environment]\nEDG_MARBLE_TYPE = {{ host = true, pattern = \"api*\" }}\n\
                 LISTEN = {{ secret = \"LISTEN\" }}\n[coordinator]\n\
                 address = \"localhost:{port}\"\nclient_address = \"localhost:{}\"\n{coordinator}\n",
                cluster.client
            ),
        );
    };
    let set = |value: Value, name: &str| {
        cluster.write(name, value.to_string());
        cluster.bulla(&format!("manifest set {name} @ +admin"));
    };
    let run = |words: &[&str]| cluster.run_with("api", words).output().unwrap();
    // No manifest yet.
    manifest("marble = \"api\"\ninsecure_any = true\nwait_seconds = 0");
    let said = cluster.refused("api", 69);
    assert!(
        said.contains("cannot accept marbles in current state"),
        "{said}"
    );
    assert!(said.contains("INSECURE: any coordinator"), "{said}");

    // By the signer: the manifests below measure differently.
    let measured = cluster.measure("api");
    set(
        json!({
            "Packages": {
                "api": {
                    "SignerID": measured["mrsigner"], "ProductID": 0, "SecurityVersion": 0,
                    "InsecureAllowEmulated": true,
                },
                "other": {"UniqueID": "11".repeat(32), "InsecureAllowEmulated": true},
            },
            "Marbles": {
                "api": {"Package": "api", "AllowedDNSNames": ["api"],
                    "Parameters": {"Env": {"LISTEN": "nowhere"}}},
                "apiless": {"Package": "api", "Parameters": {}},
                "apis": {"Package": "other", "Parameters": {}},
                "apin": {"Package": "api", "Parameters": {
                    "Env": {"LISTEN": "nowhere"}, "Argv": ["/bin/nothing"]}},
            },
        }),
        "manifest.json",
    );
    // A name that the coordinator's manifest does not allow.
    let said = cluster.refused("api", 77);
    assert!(
        said.contains("does not allow the DNS name localhost"),
        "{said}"
    );
    assert!(said.contains("gRPC code 7"), "{said}");
    let told = cluster.log();
    assert!(told.contains("activation refused"), "{told}");
    // Variables of the host choose only what the manifest lets them, here the type.
    for (kind, code, reason) in [
        ("apis", 77, "marble verification failed: invalid quote"),
        ("apix", 77, "unknown marble type"),
        ("apiless", 125, "gives no variable LISTEN"),
        ("apin", 127, "cannot start /bin/nothing"),
    ] {
        let output = run(&["-e", &format!("EDG_MARBLE_TYPE={kind}")]);
        let said = all(&output);
        assert_eq!(output.status.code(), Some(code), "{kind}: {said}");
        assert!(said.contains(reason), "{kind}: {said}");
    }
    let output = run(&["-e", "EDG_MARBLE_TYPE=web"]);
    assert_eq!(output.status.code(), Some(125), "{}", all(&output));
    let output = run(&["-e", "EDG_MARBLE_COORDINATOR_ADDR=localhost:1"]);
    assert_eq!(output.status.code(), Some(125), "{}", all(&output));
    // Another coordinator than the pinned one, or one without a quote.
    manifest(&format!("marble = \"api\"\nroot_sha256 = \"{zeros}\""));
    let output = run(&["-e", "EDG_MARBLE_TYPE=apin"]);
    let said = all(&output);
    assert_eq!(output.status.code(), Some(76), "{said}");
    assert!(said.contains("its root certificate has SHA-256"), "{said}");
    manifest(&format!(
        "marble = \"api\"\n[coordinator.policy]\naccept = [{{ mrenclave = \"{zeros}\" }}]"
    ));
    let said = cluster.refused("api", 76);
    assert!(said.contains("no quote"), "{said}");
}
