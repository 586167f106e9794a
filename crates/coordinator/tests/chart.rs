//! The Helm chart: what it makes of values, whether that is what bulla takes, and (among the long tests)
//! whether a real API server takes it.

#[path = "common/apiserver.rs"]
mod apiserver;
mod common;

use apiserver::{ApiServer, NAMESPACE};
use bulla_test_apps::bulla;
use common::Server;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// `helm` or `kubectl`.
fn tool(name: &str) -> Command {
    let script = repository("tests/images/helm.sh");
    let fetched = Command::new(script).status().unwrap();
    assert!(fetched.success(), "helm.sh: {fetched}");
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = home("BULLA_TEST_CACHE").unwrap_or_else(|| {
        home("XDG_CACHE_HOME")
            .unwrap_or_else(|| home("HOME").unwrap().join(".cache"))
            .join("bulla-tests")
    });
    Command::new(cache.join("helm").join(name))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Values that every release needs, and others.
fn values(others: Value) -> String {
    let mut values = json!({
        "image": {"repository": "registry.example/bulla"},
        "owner": {"tokenSha256": "ab".repeat(32)},
    });
    merge(&mut values, others);
    values.to_string()
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn helm(words: &[&str], others: Value) -> Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), values(others)).unwrap();
    tool("helm")
        .args(words)
        .arg(repository("deploy/helm/bulla-coordinator"))
        .arg("--values")
        .arg(file.path())
        .output()
        .unwrap()
}

/// What the chart makes of values.
struct Release(Vec<Value>);

impl Release {
    fn of(others: Value) -> Release {
        let made = helm(&["template", "prod", "--namespace", "trust"], others);
        assert!(made.status.success(), "{}", text(&made));
        let made = String::from_utf8(made.stdout).unwrap();
        let objects = made
            .split("\n---\n")
            .map(|object| object.trim_start_matches("---\n"));
        let objects = objects.filter(|object| object.lines().any(|line| line.starts_with("kind:")));
        Release(
            objects
                .map(|object| serde_saphyr::from_str(object).unwrap())
                .collect(),
        )
    }

    fn all(&self, kind: &str) -> Vec<&Value> {
        self.0
            .iter()
            .filter(|object| object["kind"] == kind)
            .collect()
    }

    fn one(&self, kind: &str) -> &Value {
        match self.all(kind)[..] {
            [object] => object,
            ref others => panic!("{} of {kind}", others.len()),
        }
    }

    fn pod(&self) -> &Value {
        &self.one("StatefulSet")["spec"]["template"]["spec"]
    }

    fn container(&self) -> &Value {
        &self.pod()["containers"][0]
    }

    fn arguments(&self) -> Vec<&str> {
        let words = self.container()["args"].as_array().unwrap();
        words.iter().map(|word| word.as_str().unwrap()).collect()
    }

    fn values_of(&self, option: &str) -> Vec<&str> {
        let words = self.arguments();
        let pairs = words.windows(2).filter(|pair| pair[0] == option);
        pairs.map(|pair| pair[1]).collect()
    }

    /// Everything that a container mounts is a volume of the pod.
    fn check_mounts(&self) {
        let set = &self.one("StatefulSet")["spec"];
        let mut volumes: Vec<&Value> = Vec::new();
        volumes.extend(
            self.pod()["volumes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| &v["name"]),
        );
        let claims = set["volumeClaimTemplates"].as_array();
        volumes.extend(
            claims
                .into_iter()
                .flatten()
                .map(|claim| &claim["metadata"]["name"]),
        );
        let mounts = self.container()["volumeMounts"].as_array().unwrap();
        let mut mounted: Vec<&Value> = mounts.iter().map(|mount| &mount["name"]).collect();
        let key = |value: &&Value| value.as_str().unwrap().to_owned();
        volumes.sort_by_key(key);
        mounted.sort_by_key(key);
        assert_eq!(volumes, mounted);
    }

    /// bulla understands the command line: it fails for another reason, this place being no pod.
    fn check_command_line(&self, reason: &str) {
        let dir = tempfile::tempdir().unwrap();
        let said = Command::new(bulla())
            .args(self.arguments())
            .current_dir(dir.path())
            .env_remove("KUBERNETES_SERVICE_HOST")
            .output()
            .unwrap();
        let told = text(&said);
        assert!(!said.status.success() && told.contains(reason), "{told}");
        assert!(!told.contains("Usage:"), "{told}");
    }
}

#[test]
fn an_enclave_over_the_kubernetes_api_is_the_default() {
    let release = Release::of(json!({}));
    let words = release.arguments();
    assert_eq!(
        words[..4],
        ["coordinator", "--in-enclave", "--platform", "hardware"]
    );
    assert!(words.contains(&"--kubernetes") && !words.iter().any(|w| w.contains("insecure")));
    assert_eq!(release.values_of("--owner-token-sha256"), ["ab".repeat(32)]);
    let host = "prod-bulla-coordinator-peers.trust.svc:4433";
    assert_eq!(
        release.values_of("--peer"),
        [0, 1, 2, 3, 4].map(|n| format!("prod-bulla-coordinator-{n}.{host}"))
    );
    // Scaling is not another enclave.
    for replicas in [1, 5] {
        let other = Release::of(json!({"replicas": replicas}));
        assert_eq!(other.arguments(), words);
    }
    assert!(
        release
            .values_of("--name")
            .contains(&"prod-bulla-coordinator.trust.svc")
    );
    // It would tell replicas apart by their measurement.
    assert_eq!(release.values_of("--replica"), [""; 0]);
    release.check_command_line("name the API with --kubernetes-api");
    release.check_mounts();

    let set = &release.one("StatefulSet")["spec"];
    assert_eq!(set["replicas"], 2);
    assert_eq!(set["podManagementPolicy"], "Parallel");
    let peers = &set["serviceName"];
    let services = release.all("Service");
    let of_peers = services
        .iter()
        .find(|service| &service["metadata"]["name"] == peers);
    assert_eq!(of_peers.unwrap()["spec"]["clusterIP"], "None");
    assert_eq!(of_peers.unwrap()["spec"]["publishNotReadyAddresses"], true);
    for service in services {
        assert_eq!(service["spec"]["selector"], set["selector"]["matchLabels"]);
    }
    assert_eq!(
        release.one("PodDisruptionBudget")["apiVersion"],
        "policy/v1"
    );

    let pod = release.pod();
    assert_eq!(pod["automountServiceAccountToken"], true);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    let container = release.container();
    for kind in ["requests", "limits"] {
        assert_eq!(container["resources"][kind]["sgx.intel.com/epc"], "1Gi");
    }
    assert_eq!(
        container["securityContext"],
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}})
    );
}

/// The role is the one that the manual tells operators to make, and that the store's tests use.
#[test]
fn the_role_is_that_of_the_manual() {
    let manual = std::fs::read_to_string(repository("docs/manual/coordinator.md")).unwrap();
    let role = manual
        .split("---\n")
        .find(|object| object.contains("kind: Role\n"))
        .unwrap();
    let role: Value = serde_saphyr::from_str(role).unwrap();
    let release = Release::of(json!({}));
    assert_eq!(release.one("Role")["rules"], role["rules"]);
    let account = &release.one("ServiceAccount")["metadata"]["name"];
    assert_eq!(&release.one("RoleBinding")["subjects"][0]["name"], account);
    assert_eq!(&release.pod()["serviceAccountName"], account);
    for kind in ["embedded", "etcd"] {
        let store = json!({"kind": kind, "etcd": {"endpoints": ["etcd:2379"]}});
        let release = Release::of(json!({"store": store, "replicas": 1}));
        assert!(release.all("Role").is_empty() && release.all("RoleBinding").is_empty());
        assert_eq!(release.pod()["automountServiceAccountToken"], false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_ask_for_what_is_there() {
    let release = Release::of(json!({}));
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let rest = bulla_coordinator::client::Rest {
        address: server.client.clone(),
        trust: bulla_coordinator::client::Trust::Any,
        identity: None,
        token: None,
    };
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let get = &release.container()[probe]["httpGet"];
        assert_eq!(
            (&get["scheme"], &get["port"]),
            (&json!("HTTPS"), &json!("client"))
        );
        let (code, ..) = rest
            .raw("GET", get["path"].as_str().unwrap(), None)
            .await
            .unwrap();
        assert_eq!(code, 200, "{probe}");
    }
}

#[test]
fn values_choose_stores_keys_and_the_insecure_ways() {
    let owner = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    let etcd = Release::of(json!({
        "replicas": 3,
        "store": {"kind": "etcd", "etcd": {"endpoints": ["https://a:2379", "https://b:2379"],
            "tlsSecret": "etcd-tls", "clientCertificate": true}},
        "signKeySecret": "signer", "collateralConfigMap": "collateral",
        "owner": {"certificate": owner, "tokenSha256": ""},
        "metrics": {"enabled": true}, "names": ["coordinator.example"],
        "image": {"digest": format!("sha256:{}", "0".repeat(64))},
        "sgx": {"aesmd": "/var/run/aesmd", "supplementalGroups": [111],
            "resources": {"sgx.intel.com/epc": null, "kubernetes.azure.com/sgx_epc_mem_in_MiB": 512}},
    }));
    assert_eq!(
        etcd.values_of("--etcd"),
        ["https://a:2379", "https://b:2379"]
    );
    for (option, value) in [
        ("--store-ca", "/store/ca.crt"),
        ("--store-key", "/store/tls.key"),
        ("--sign-key", "/sign/sign.pem"),
        ("--collateral", "/collateral"),
        ("--owner-certificate", "/config/owner.pem"),
        ("--metrics-address", "0.0.0.0:9944"),
    ] {
        assert_eq!(etcd.values_of(option), [value]);
    }
    assert_eq!(etcd.values_of("--peer").len(), 5);
    assert!(etcd.values_of("--name").contains(&"coordinator.example"));
    assert_eq!(etcd.one("ConfigMap")["data"]["owner.pem"], owner);
    let image = etcd.container()["image"].as_str().unwrap();
    assert!(
        image.starts_with("registry.example/bulla@sha256:00"),
        "{image}"
    );
    let limits = &etcd.container()["resources"]["limits"];
    assert_eq!(limits["kubernetes.azure.com/sgx_epc_mem_in_MiB"], 512);
    assert_eq!(limits["sgx.intel.com/epc"], Value::Null);
    assert_eq!(
        etcd.pod()["securityContext"]["supplementalGroups"],
        json!([111])
    );
    etcd.check_mounts();
    etcd.check_command_line("No such file");

    let embedded = json!({"replicas": 1, "store": {"kind": "embedded"}});
    let mut emulated = embedded.clone();
    merge(
        &mut emulated,
        json!({"sgx": {"insecureEmulated": true}, "persistence": {"enabled": false}}),
    );
    let emulated = Release::of(emulated);
    assert_eq!(emulated.values_of("--platform"), ["emulated"]);
    assert_eq!(
        emulated.values_of("--freshness-anchor"),
        [""; 0],
        "the volume has its own"
    );
    assert_eq!(
        emulated.container()["resources"]["limits"]["sgx.intel.com/epc"],
        Value::Null
    );
    assert_eq!(
        emulated.one("StatefulSet")["spec"]["volumeClaimTemplates"],
        Value::Null
    );
    assert!(emulated.all("PodDisruptionBudget").is_empty());
    emulated.check_mounts();

    let mut outside = embedded;
    merge(
        &mut outside,
        json!({"insecureOutsideEnclave": true, "signKeySecret": "signer"}),
    );
    let outside = Release::of(outside);
    assert!(outside.arguments().contains(&"--insecure-outside-enclave"));
    assert!(!outside.arguments().contains(&"--in-enclave"));
    assert_eq!(outside.values_of("--freshness-anchor"), ["/machine/anchor"]);
    assert_eq!(
        outside.container()["resources"]["limits"]["sgx.intel.com/epc"],
        Value::Null
    );
    outside.check_mounts();
}

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    let strict = helm(&["lint", "--strict"], json!({}));
    assert!(strict.status.success(), "{}", text(&strict));
    for (others, reason) in [
        (
            json!({"owner": {"tokenSha256": ""}}),
            "nobody owns the coordinator",
        ),
        (json!({"owner": {"tokenSha256": "abc"}}), "tokenSha256"),
        (json!({"image": {"repository": ""}}), "repository"),
        (
            json!({"store": {"kind": "embedded"}}),
            "the embedded store is one replica's own",
        ),
        (json!({"store": {"kind": "redis"}}), "kind"),
        (json!({"store": {"kind": "etcd"}}), "name its members"),
        (
            json!({"sgx": {"insecureEmulated": true}}),
            "believes nobody but itself",
        ),
        (
            json!({"insecureOutsideEnclave": true}),
            "cannot prove to each other",
        ),
        (
            json!({"replicas": 1, "insecureOutsideEnclave": true, "sgx": {"insecureEmulated": true}}),
            "exclude each other",
        ),
        (
            json!({"sgx": {"resources": {"sgx.intel.com/epc": null}}}),
            "an enclave needs a device",
        ),
        (
            json!({"store": {"etcd": {"clientCertificate": true}}}),
            "store.etcd.tlsSecret",
        ),
        (json!({"replicas": 0}), "replicas"),
        (json!({"inEnclave": false}), "inEnclave"),
        (json!({"service": {"clientPort": 70000}}), "clientPort"),
    ] {
        let made = helm(&["template", "prod"], others.clone());
        let said = text(&made);
        assert!(
            !made.status.success() && said.contains(reason),
            "{others}: {said}"
        );
    }
}

#[test]
#[ignore = "builds a Kubernetes API server: minutes"]
fn a_real_api_server_takes_the_chart() {
    let api = ApiServer::start();
    let authority = api.authority();
    let authority = authority.to_str().unwrap();
    let of_helm = [
        "--namespace",
        NAMESPACE,
        "--kube-apiserver",
        &api.address,
        "--kube-ca-file",
        authority,
        "--kube-token",
        "admin-token",
    ];
    let kubectl = |token: &str, words: &[&str]| {
        let said = tool("kubectl")
            .args([
                "--server",
                &api.address,
                "--certificate-authority",
                authority,
            ])
            .args(["--token", token, "--namespace", NAMESPACE])
            .args(words)
            .output()
            .unwrap();
        // Warnings of versions are no answers.
        match said.stdout.is_empty() {
            true => text(&said).trim().to_owned(),
            false => String::from_utf8(said.stdout).unwrap().trim().to_owned(),
        }
    };
    let release = |words: &[&str], others: Value| {
        let said = helm(&[words, &of_helm].concat(), others);
        assert!(said.status.success(), "{}", text(&said));
        text(&said)
    };
    let told = release(&["install", "prod"], json!({}));
    assert!(told.contains("bulla status localhost:4433"), "{told}");
    let name = "prod-bulla-coordinator";
    let get = |what: &str, path: &str| {
        kubectl(
            "admin-token",
            &["get", what, name, "-o", &format!("jsonpath={{{path}}}")],
        )
    };
    assert_eq!(get("statefulset", ".spec.replicas"), "2");
    let epc = ".spec.template.spec.containers[0].resources.limits.sgx\\.intel\\.com/epc";
    assert_eq!(get("statefulset", epc), "1Gi");
    assert_eq!(get("service", ".spec.ports[1].port"), "2001");
    assert_eq!(get("poddisruptionbudget", ".spec.maxUnavailable"), "1");

    // The account may do what the store does, and nothing else.
    let token = api.token_of(name);
    for (verb, may) in [
        ("get", "yes"),
        ("create", "yes"),
        ("update", "yes"),
        ("delete", "yes"),
        ("list", "no"),
    ] {
        let said = kubectl(&token, &["auth", "can-i", verb, "secrets"]);
        assert_eq!(said, may, "{verb}");
    }
    assert_eq!(kubectl(&token, &["auth", "can-i", "get", "pods"]), "no");

    let others = json!({"metrics": {"enabled": true}, "replicas": 3});
    release(&["upgrade", "prod"], others);
    assert_eq!(get("statefulset", ".spec.replicas"), "3");
    let development =
        json!({"replicas": 1, "store": {"kind": "embedded"}, "sgx": {"insecureEmulated": true}});
    let told = release(&["install", "dev"], development);
    assert!(told.contains("INSECURE: its enclave is emulated"), "{told}");
    let gone = tool("helm")
        .args(["uninstall", "prod"])
        .args(of_helm)
        .output()
        .unwrap();
    assert!(gone.status.success(), "{}", text(&gone));
    assert!(get("statefulset", ".spec").contains("not found"));
}
