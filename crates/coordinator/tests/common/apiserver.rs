//! A real Kubernetes API server, which tests/images/kubernetes.sh builds, on an etcd of its own; with
//! the service account, role and binding that the manual tells operators to make.
#![allow(dead_code, reason = "each test file uses a part")]

use crate::common::b64;
use crate::common::etcd::Etcd;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const NAMESPACE: &str = "shop";
const MANUAL: &str = "../../docs/manual/coordinator.md";

pub struct ApiServer {
    pub address: String,
    /// What the coordinator's service account shows.
    pub token: PathBuf,
    server: Child,
    dir: tempfile::TempDir,
    _etcd: Etcd,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn program() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/images/kubernetes.sh");
    let built = Command::new(script).status().unwrap();
    assert!(built.success(), "kubernetes.sh: {built}");
    let cache = std::env::var_os("BULLA_TEST_CACHE").map_or_else(
        || {
            std::env::var_os("XDG_CACHE_HOME")
                .map_or_else(
                    || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"),
                    PathBuf::from,
                )
                .join("bulla-tests")
        },
        PathBuf::from,
    );
    cache.join("kubernetes/kube-apiserver")
}

impl ApiServer {
    pub fn start() -> ApiServer {
        let program = program();
        let etcd = Etcd::start(1);
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let openssl = |words: &str| {
            let made = Command::new("openssl")
                .args(words.split_whitespace())
                .current_dir(dir.path())
                .output()
                .unwrap();
            assert!(made.status.success(), "openssl {words}: {made:?}");
        };
        openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority \
             -keyout ca.key -out ca.crt",
        );
        openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=kubernetes -keyout \
             tls.key -out tls.csr",
        );
        std::fs::write(path("names"), "subjectAltName = IP:127.0.0.1").unwrap();
        openssl(
            "x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names \
             -out tls.crt",
        );
        openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out accounts.key");
        std::fs::write(path("tokens"), "admin-token,admin,1,system:masters\n").unwrap();
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let log = std::fs::File::create(path("log")).unwrap();
        let server = Command::new(program)
            .args(["--etcd-servers", &etcd.endpoints[0]])
            .args([
                "--bind-address",
                "127.0.0.1",
                "--secure-port",
                &port.to_string(),
            ])
            .args(["--tls-cert-file", &path("tls.crt")])
            .args(["--tls-private-key-file", &path("tls.key")])
            .args(["--token-auth-file", &path("tokens")])
            .args(["--authorization-mode", "RBAC"])
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .args(["--service-account-key-file", &path("accounts.key")])
            .args(["--service-account-signing-key-file", &path("accounts.key")])
            .args(["--service-cluster-ip-range", "10.0.0.0/24"])
            .args([
                "--advertise-address",
                "127.0.0.1",
                "--endpoint-reconciler-type",
                "none",
            ])
            .args(["--cert-dir", &path("certificates")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = ApiServer {
            address: format!("https://127.0.0.1:{port}"),
            token: dir.path().join("token"),
            server,
            dir,
            _etcd: etcd,
        };
        let patience = Instant::now() + Duration::from_secs(120);
        while server.curl("GET", "/readyz", "", b"") != (200, b"ok".to_vec()) {
            let log = || std::fs::read_to_string(server.dir.path().join("log")).unwrap();
            assert!(Instant::now() < patience, "no API server: {}", log());
            std::thread::sleep(Duration::from_millis(200));
        }
        server.prepare();
        server
    }

    /// The namespace, and in it what the manual says.
    fn prepare(&self) {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        self.create(
            "/api/v1/namespaces",
            "application/json",
            &namespace.to_string(),
        );
        let manual =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(MANUAL)).unwrap();
        let block = manual
            .split("```yaml\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
            .find(|block| block.contains("kind: RoleBinding"))
            .expect("the manual has the role");
        for object in block.split("---\n") {
            let kind = object
                .lines()
                .find_map(|line| line.strip_prefix("kind: "))
                .unwrap();
            let (group, kind) = match kind {
                "ServiceAccount" => ("/api/v1", "serviceaccounts"),
                "Role" => ("/apis/rbac.authorization.k8s.io/v1", "roles"),
                "RoleBinding" => ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
                other => panic!("{other}"),
            };
            let path = format!("{group}/namespaces/{NAMESPACE}/{kind}");
            self.create(&path, "application/yaml", object);
        }
        std::fs::write(&self.token, self.token_of("bulla-coordinator")).unwrap();
    }

    fn create(&self, path: &str, form: &str, object: &str) -> Value {
        let (code, said) = self.curl("POST", path, form, object.as_bytes());
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(code, 201, "{path}: {said}");
        serde_json::from_str(&said).unwrap()
    }

    /// Another service account, without any role, and its token in a file.
    pub fn stranger(&self) -> PathBuf {
        let account =
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "stranger"}});
        let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
        self.create(&path, "application/json", &account.to_string());
        let file = self.dir.path().join("stranger");
        std::fs::write(&file, self.token_of("stranger")).unwrap();
        file
    }

    pub fn token_of(&self, account: &str) -> String {
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        });
        let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token");
        let made = self.create(&path, "application/json", &request.to_string());
        made["status"]["token"].as_str().unwrap().to_owned()
    }

    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// A request of the cluster's administrator.
    fn curl(&self, method: &str, path: &str, form: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--request", method, "--cacert"])
            .arg(self.authority())
            .args(["--header", "authorization: Bearer admin-token"])
            .args(["--write-out", "\n%{http_code}"]);
        if !body.is_empty() {
            command
                .args(["--header", &format!("content-type: {form}")])
                .args(["--data-binary", "@-"]);
        }
        let mut child = command
            .arg(format!("{}{path}", self.address))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl: install it");
        child.stdin.take().unwrap().write_all(body).unwrap();
        let mut said = child.wait_with_output().unwrap().stdout;
        let code = said.split_off(said.iter().rposition(|byte| *byte == b'\n').unwrap());
        let code = String::from_utf8(code).unwrap();
        (code.trim().parse().unwrap(), said)
    }

    fn secrets(&self) -> String {
        format!("/api/v1/namespaces/{NAMESPACE}/secrets")
    }

    fn secret(&self, name: &str) -> Value {
        let (code, said) = self.curl("GET", &format!("{}/{name}", self.secrets()), "", b"");
        assert_eq!(code, 200, "{name}");
        serde_json::from_slice(&said).unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        let (_, said) = self.curl("GET", &self.secrets(), "", b"");
        let list: Value = serde_json::from_slice(&said).unwrap();
        let names = list["items"].as_array().unwrap().iter();
        names
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The value of the coordinator's secret.
    pub fn value(&self, name: &str) -> Vec<u8> {
        b64(&self.secret(name)["data"]["sealed"])
    }

    /// Puts another value there, as who keeps the API can.
    pub fn put(&self, name: &str, value: &[u8]) {
        let mut secret = self.secret(name);
        secret["data"]["sealed"] = BASE64_STANDARD.encode(value).into();
        secret["metadata"]["resourceVersion"] = Value::Null;
        let path = format!("{}/{name}", self.secrets());
        let (code, said) = self.curl(
            "PUT",
            &path,
            "application/json",
            secret.to_string().as_bytes(),
        );
        assert_eq!(code, 200, "{}", String::from_utf8_lossy(&said));
    }
}
