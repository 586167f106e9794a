//! Several coordinators over one store: etcd, which is Debian's etcd-server, started here; and the
//! Kubernetes API, once as a double of the part that is used (`common/kubernetes.rs`) and, in
//! `make test-full`, as a real API server, which takes minutes to build (`common/apiserver.rs`).

#[path = "common/kubernetes.rs"]
mod api;
#[path = "common/apiserver.rs"]
mod apiserver;
mod common;

use apiserver::ApiServer;
use base64::{Engine, prelude::BASE64_STANDARD};
use bulla_coordinator::client::marble::self_signed;
use bulla_coordinator::recovery::answer;
use bulla_coordinator::store::{
    ClientTls, EtcdPlace, Kubernetes, KubernetesOptions, ObjectPlace, Place,
};
use common::etcd::Etcd;
use common::{Server, UUID, b64, manifest, manifest_body};
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// A replica's place in etcd.
fn in_etcd(etcd: &Etcd, replica: &str) -> Box<dyn Place> {
    let tls = ClientTls::default();
    Box::new(EtcdPlace::new(&etcd.endpoints, &tls, "/bulla", replica).unwrap())
}

/// A replica on a machine of its own.
async fn replica(place: Box<dyn Place>, dir: &Path, name: &str) -> Server {
    let own = dir.join(name);
    std::fs::create_dir_all(&own).unwrap();
    Server::replica(&own, place).await
}

async fn code(server: &Server) -> u64 {
    server.get("/api/v2/status").await.1["data"]["code"]
        .as_u64()
        .unwrap()
}

fn fresh() -> String {
    Uuid::new_v4().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_over_etcd_serve_at_once_and_survive_the_loss_of_a_minority() {
    let etcd = std::sync::Mutex::new(Etcd::start(3));
    let place = |name: &str| in_etcd(&etcd.lock().unwrap(), name);
    let lose = || {
        let mut etcd = etcd.lock().unwrap();
        etcd.members[0].kill().unwrap();
        etcd.members[0].wait().unwrap();
    };
    replicas_serve_at_once(&place, lose).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_over_kubernetes_serve_at_once_and_survive_broken_connections() {
    let api = api::Api::start().await;
    let place = |name: &str| api.place(name);
    // Some requests are done, but their answers are lost; later more of them.
    api.lose_every(11);
    replicas_serve_at_once(&place, || api.lose_every(5)).await;
    assert!(
        api.names()
            .iter()
            .all(|name| name.starts_with("bulla-root."))
    );
    // Whoever removes the state leaves nothing, of other replicas neither.
    place("d").remove("root").unwrap();
    assert_eq!(api.names(), [""; 0]);
}

/// Who keeps the objects: they can read and change all of them.
trait Keeper {
    fn options(&self) -> KubernetesOptions;
    fn names(&self) -> Vec<String>;
    fn value(&self, name: &str) -> Vec<u8>;
    fn put(&self, name: &str, value: &[u8]);

    fn place(&self, replica: &str) -> Box<dyn Place> {
        let kubernetes = Arc::new(Kubernetes::new(&self.options()).unwrap());
        Box::new(ObjectPlace::new(kubernetes, "bulla", replica))
    }
}

impl Keeper for api::Api {
    fn options(&self) -> KubernetesOptions {
        KubernetesOptions {
            server: Some(self.address.clone()),
            namespace: Some(api::NAMESPACE.to_owned()),
            token: Some(self.token_file.path().to_owned()),
            tls: ClientTls::default(),
        }
    }

    fn names(&self) -> Vec<String> {
        api::Api::names(self)
    }

    fn value(&self, name: &str) -> Vec<u8> {
        api::Api::value(self, name)
    }

    fn put(&self, name: &str, value: &[u8]) {
        api::Api::put(self, name, value);
    }
}

impl Keeper for ApiServer {
    fn options(&self) -> KubernetesOptions {
        KubernetesOptions {
            server: Some(self.address.clone()),
            namespace: Some(apiserver::NAMESPACE.to_owned()),
            token: Some(self.token.clone()),
            tls: ClientTls {
                authority: Some(self.authority()),
                identity: None,
            },
        }
    }

    /// Ours: the account's token controller has none here, but another might.
    fn names(&self) -> Vec<String> {
        let all = ApiServer::names(self);
        all.into_iter()
            .filter(|name| name.starts_with("bulla"))
            .collect()
    }

    fn value(&self, name: &str) -> Vec<u8> {
        ApiServer::value(self, name)
    }

    fn put(&self, name: &str, value: &[u8]) {
        ApiServer::put(self, name, value);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "builds a Kubernetes API server: minutes"]
async fn replicas_over_a_real_kubernetes_api_serve_at_once() {
    let api = ApiServer::start();
    replicas_serve_at_once(&|name: &str| api.place(name), || ()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "builds a Kubernetes API server: minutes"]
async fn what_a_real_kubernetes_api_puts_back_changes_or_leaves_out_is_noticed() {
    let api = ApiServer::start();
    objects_put_back_changed_or_left_out_are_noticed(&api).await;
}

#[test]
#[ignore = "builds a Kubernetes API server: minutes"]
fn a_real_kubernetes_api_says_why_it_refuses() {
    let api = ApiServer::start();
    let dir = tempfile::tempdir().unwrap();
    let said = |change: &dyn Fn(&mut KubernetesOptions)| {
        let mut options = api.options();
        change(&mut options);
        let kubernetes = Arc::new(Kubernetes::new(&options).unwrap());
        common::opens(dir.path(), &ObjectPlace::new(kubernetes, "bulla", "a")).unwrap_err()
    };
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "nobody").unwrap();
    let stranger = api.stranger();
    for (reason, change) in [
        (
            "401: Unauthorized",
            &(|options: &mut KubernetesOptions| options.token = Some(wrong.clone()))
                as &dyn Fn(&mut KubernetesOptions),
        ),
        ("stranger\" cannot get resource \"secrets\"", &|options| {
            options.token = Some(stranger.clone())
        }),
        ("cannot get resource \"secrets\"", &|options| {
            options.namespace = Some("elsewhere".to_owned())
        }),
        ("UnknownIssuer", &|options| {
            options.tls = ClientTls::default()
        }),
    ] {
        let said = said(change);
        assert!(said.contains(reason) && !said.contains('\n'), "{said}");
    }
}

/// What any store must give replicas; `lose`: what it must bear.
async fn replicas_serve_at_once(place: &dyn Fn(&str) -> Box<dyn Place>, lose: impl FnOnce()) {
    let dir = tempfile::tempdir().unwrap();
    let a = replica(place("a"), dir.path(), "a").await;
    let b = replica(place("b"), dir.path(), "b").await;
    assert_eq!((code(&a).await, code(&b).await), (2, 2));
    let [admin, other] = ["admin", "other"].map(|n| self_signed(n).unwrap().0);
    let recovery = rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).unwrap();
    let mut first = manifest(&admin, &other);
    first["Marbles"]["backend"]["MaxActivations"] = json!(20);
    first["RecoveryKeys"] = json!({"one": recovery
        .to_public_key().to_public_key_pem(LineEnding::LF).unwrap()});
    let secrets = a.set(&first).await;

    // The second notices, and is another machine: it gets the key from the first.
    b.app.refresh().await.unwrap();
    assert_eq!(code(&b).await, 1);
    b.app.join(&a.client).await.unwrap();
    assert_eq!(code(&b).await, 3);
    // The third starts later.
    let c = replica(place("c"), dir.path(), "c").await;
    assert_eq!(code(&c).await, 1);
    c.app.join(&b.client).await.unwrap();
    let root = async |server: &Server| server.get("/api/v2/quote").await.1["data"]["cert"].clone();
    assert_eq!(root(&a).await, root(&c).await);

    // A budget of twenty is twenty, however many replicas give it away at once.
    let all = [&a, &b, &c];
    let mut results = Vec::new();
    for _ in 0..3 {
        let attempts = (0..12).map(|n| async move {
            let uuid = fresh();
            all[n % 3].activate("backend", &uuid).await
        });
        results.extend(join_all(attempts).await);
    }
    let given = results.iter().filter(|result| result.is_ok()).count();
    let reasons: Vec<String> = results
        .iter()
        .filter_map(|result| result.as_ref().err().map(ToString::to_string))
        .collect();
    assert_eq!(given, 20, "{reasons:?}");
    assert!(
        reasons
            .iter()
            .all(|reason| reason.contains("reached max activations")),
        "{reasons:?}"
    );

    lose();
    for server in all {
        server.activate("frontend", &fresh()).await.unwrap();
    }
    // What one changes all follow.
    let body = json!({"marbles": [UUID]});
    assert_eq!(c.post("/api/v2/revoked", body, Some(&admin)).await.0, 200);
    let mut second = first.clone();
    second["Marbles"]["backend"]["MaxActivations"] = json!(30);
    let made = b
        .post("/api/v2/update", manifest_body(&second), Some(&admin))
        .await;
    assert_eq!(made.0, 200, "{}", made.1);
    let body = manifest_body(&second);
    let agreed = a.post("/api/v2/update-manifest", body, Some(&other)).await;
    assert_eq!(
        agreed.1["data"]["missingAcknowledgments"], 0,
        "{}",
        agreed.1
    );
    for server in all {
        server.app.refresh().await.unwrap();
        let seen = server.get("/api/v2/manifest").await.1;
        assert_eq!(
            b64(&seen["data"]["manifest"]),
            second.to_string().into_bytes()
        );
        let refused = server
            .activate("frontend", UUID)
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("revoked"), "{refused}");
    }

    // A replica that starts again needs nobody: its key is sealed for it.
    b.stop().await;
    let b = replica(place("b"), dir.path(), "b").await;
    assert_eq!(code(&b).await, 3);
    b.activate("backend", &fresh()).await.unwrap();

    // All machines are lost; the recovery key opens the state on a new one.
    a.stop().await;
    b.stop().await;
    c.stop().await;
    let d = replica(place("d"), dir.path(), "d").await;
    assert_eq!(code(&d).await, 1);
    let public = d.get("/api/v2/recover/public-key").await.1;
    let (secret, signature) = answer(
        recovery.to_pkcs8_der().unwrap().as_bytes(),
        &b64(&secrets["RecoverySecrets"]["one"]),
        &b64(&public["data"]["ephemeralPublicKey"]),
    )
    .unwrap();
    let body = json!({
        "recoverySecret": BASE64_STANDARD.encode(secret),
        "recoverySecretSignature": BASE64_STANDARD.encode(signature),
    });
    let (code_of_recovery, said) = d.post("/api/v2/recover", body, None).await;
    assert_eq!(code_of_recovery, 200, "{said}");
    assert_eq!(code(&d).await, 3);
    d.activate("backend", &fresh()).await.unwrap();
}

/// All at once.
async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut is_done = true;
        for (future, result) in &mut pending {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *result = Some(value),
                    std::task::Poll::Pending => is_done = false,
                }
            }
        }
        match is_done {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    pending
        .into_iter()
        .filter_map(|(_, result)| result)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_etcd_puts_back_changes_or_leaves_out_is_noticed() {
    let etcd = Etcd::start(1);
    let dir = tempfile::tempdir().unwrap();
    let server = replica(in_etcd(&etcd, "a"), dir.path(), "a").await;
    let [admin, other] = ["admin", "other"].map(|n| self_signed(n).unwrap().0);
    server.set(&manifest(&admin, &other)).await;
    server.activate("frontend", &fresh()).await.unwrap();
    let (key, old) = etcd.entry("activations/frontend");
    let (head, old_head) = etcd.entry("/head");
    server.activate("frontend", &fresh()).await.unwrap();
    let (_, new) = etcd.entry("activations/frontend");
    let (_, new_head) = etcd.entry("/head");
    let put = |key: &str, value: &[u8]| {
        assert!(etcd.ctl(&["put", key], value).status.success());
    };
    // The running one notices.
    put(&key, &old);
    let said = server.app.refresh().await.unwrap_err().to_string();
    assert!(said.contains("do not belong together"), "{said}");
    put(&key, &new);
    server.app.refresh().await.unwrap();
    put(&head, &old_head);
    assert!(server.app.refresh().await.is_err(), "an old head");
    put(&head, &new_head);
    server.app.refresh().await.unwrap();
    server.activate("frontend", &fresh()).await.unwrap();
    let (_, newest) = etcd.entry("activations/frontend");
    server.stop().await;
    // One that starts notices too.
    let starts = || common::opens(&dir.path().join("a"), in_etcd(&etcd, "a").as_ref());
    assert_eq!(starts(), Ok(()));
    put(&key, &new);
    assert!(starts().unwrap_err().contains("do not belong together"));
    let mut changed = newest.clone();
    changed[20] ^= 1;
    put(&key, &changed);
    assert!(starts().unwrap_err().contains("was changed"));
    assert!(etcd.ctl(&["del", &key], b"").status.success());
    assert!(starts().unwrap_err().contains("do not belong together"));
    put(&key, &newest);
    assert_eq!(starts(), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_backup_of_etcd_is_noticed_by_an_anchor() {
    let mut etcd = Etcd::start(1);
    let dir = tempfile::tempdir().unwrap();
    let anchor = dir.path().join("anchor");
    let place = |etcd: &Etcd, anchor: Option<&Path>| {
        let place = EtcdPlace::new(&etcd.endpoints, &ClientTls::default(), "/bulla", "a");
        place.unwrap().anchored(anchor.map(Path::to_owned))
    };
    let starts = |etcd: &Etcd, anchor| common::opens(&dir.path().join("a"), &place(etcd, anchor));
    let run = async |etcd: &Etcd, is_first: bool| {
        let server = replica(Box::new(place(etcd, Some(&anchor))), dir.path(), "a").await;
        if is_first {
            let [admin, other] = ["admin", "other"].map(|n| self_signed(n).unwrap().0);
            server.set(&manifest(&admin, &other)).await;
        }
        server.activate("frontend", &fresh()).await.unwrap();
        server.stop().await;
    };
    run(&etcd, true).await;
    etcd.kill();
    let backup = tempfile::tempdir().unwrap();
    let copy = |from: &Path, to: &Path| {
        let words = [from.join("."), to.to_owned()];
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args(words)
            .status();
        assert!(copied.unwrap().success());
    };
    copy(etcd.directory(), backup.path());
    etcd.go_on();
    run(&etcd, false).await;
    assert_eq!(starts(&etcd, Some(&anchor)), Ok(()));
    etcd.kill();
    std::fs::remove_dir_all(etcd.directory().join("m0")).unwrap();
    copy(backup.path(), etcd.directory());
    etcd.go_on();
    // Who kept nothing cannot know.
    assert_eq!(starts(&etcd, None), Ok(()));
    let said = starts(&etcd, Some(&anchor)).unwrap_err();
    assert!(said.contains("older than its freshness anchor"), "{said}");
    // Who wants it all the same deletes the anchor.
    std::fs::remove_file(&anchor).unwrap();
    assert_eq!(starts(&etcd, Some(&anchor)), Ok(()));
    run(&etcd, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_objects_and_another_state_are_noticed_by_an_anchor() {
    let api = api::Api::start().await;
    let dir = tempfile::tempdir().unwrap();
    let place = |prefix: &str, replica: &str| {
        let kubernetes = Arc::new(Kubernetes::new(&api.options()).unwrap());
        ObjectPlace::new(kubernetes, prefix, replica).anchored(Some(dir.path().join(replica)))
    };
    let [admin, other] = ["admin", "other"].map(|n| self_signed(n).unwrap().0);
    let server = replica(Box::new(place("bulla", "a")), &dir.path().join("x"), "a").await;
    server.set(&manifest(&admin, &other)).await;
    let b = replica(Box::new(place("bulla", "b")), &dir.path().join("x"), "b").await;
    b.app.join(&server.client).await.unwrap();
    let old = api.value("bulla-root.head");
    server.activate("frontend", &fresh()).await.unwrap();
    // The other has taken it in.
    b.app.refresh().await.unwrap();
    let newest = api.value("bulla-root.head");
    server.stop().await;
    b.stop().await;
    for name in ["a", "b"] {
        let own = dir.path().join("x").join(name);
        assert_eq!(common::opens(&own, &place("bulla", name)), Ok(()));
        api.put("bulla-root.head", &old);
        let said = common::opens(&own, &place("bulla", name)).unwrap_err();
        assert!(said.contains("older than its freshness anchor"), "{said}");
        api.put("bulla-root.head", &newest);
    }
    // Another state of this very coordinator, elsewhere.
    let server = replica(Box::new(place("other", "c")), &dir.path().join("x"), "a").await;
    server.set(&manifest(&admin, &other)).await;
    server.stop().await;
    std::fs::copy(dir.path().join("a"), dir.path().join("c")).unwrap();
    let own = dir.path().join("x").join("a");
    let said = common::opens(&own, &place("other", "c")).unwrap_err();
    assert!(
        said.contains("not the one that its freshness anchor"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kubernetes_api_puts_back_changes_or_leaves_out_is_noticed() {
    let api = api::Api::start().await;
    objects_put_back_changed_or_left_out_are_noticed(&api).await;
}

async fn objects_put_back_changed_or_left_out_are_noticed(api: &dyn Keeper) {
    let dir = tempfile::tempdir().unwrap();
    let server = replica(api.place("a"), dir.path(), "a").await;
    let [admin, other] = ["admin", "other"].map(|n| self_signed(n).unwrap().0);
    server.set(&manifest(&admin, &other)).await;
    let head = "bulla-root.head";
    let mut before = Vec::new();
    // Enough for more than one snapshot.
    for _ in 0..300 {
        before.push(api.value(head));
        server.activate("frontend", &fresh()).await.unwrap();
    }
    let newest = api.value(head);
    let piece = api
        .names()
        .into_iter()
        .find(|name| name.ends_with(".0"))
        .unwrap();
    assert_eq!(
        api.names()
            .iter()
            .filter(|name| name.ends_with(".0"))
            .count(),
        1,
        "old snapshots go"
    );
    // The running one notices old heads, of this snapshot and of an earlier one.
    for old in [&before[299], &before[0]] {
        api.put(head, old);
        assert!(server.app.refresh().await.is_err());
        assert!(server.activate("frontend", &fresh()).await.is_err());
        api.put(head, &newest);
        server.app.refresh().await.unwrap();
    }
    server.activate("frontend", &fresh()).await.unwrap();
    let newest = api.value(head);
    server.stop().await;
    let starts = || common::opens(&dir.path().join("a"), api.place("a").as_ref());
    assert_eq!(starts(), Ok(()));
    // A head whose snapshot is gone, a record that was changed, a piece that was.
    api.put(head, &before[0]);
    assert!(starts().unwrap_err().contains("missing"));
    let mut changed: Value = serde_json::from_slice(&newest).unwrap();
    let mut journal = b64(&changed["journal"]);
    let end = journal.len() - 1;
    journal[end] ^= 1;
    changed["journal"] = BASE64_STANDARD.encode(journal).into();
    api.put(head, changed.to_string().as_bytes());
    assert!(starts().unwrap_err().contains("was changed"));
    api.put(head, &newest);
    let good = api.value(&piece);
    let mut bad = good.clone();
    bad[40] ^= 1;
    api.put(&piece, &bad);
    assert!(starts().is_err());
    api.put(&piece, &good);
    assert_eq!(starts(), Ok(()));
}
