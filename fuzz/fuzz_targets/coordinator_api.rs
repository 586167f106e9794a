//! Requests to a coordinator: the first line says method, path and who asks, the rest is the body. Every
//! answer of the REST interface, errors of the coordinator included, is JSON.
#![no_main]

#[path = "../../crates/coordinator/tests/common/mod.rs"]
mod common;

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use bulla_coordinator::api::{client, marble, serve::Peer};
use bulla_coordinator::client::{Identity, marble::self_signed};
use bulla_coordinator::core::{Cluster, Coordinator, Options};
use bulla_coordinator::seal::InsecureFileKey;
use bulla_coordinator::store::{DirectoryPlace, DirectoryStore};
use common::TestPlatform;
use http::Request;
use tokio::runtime::Runtime;
use tower::ServiceExt;

struct World {
    runtime: Runtime,
    client: Router,
    marble: Router,
    admin: Identity,
    _directory: tempfile::TempDir,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let state = directory.path().join("state");
        let store = DirectoryStore::open(&state, None).expect("it can be made");
        let keys = InsecureFileKey::open(&directory.path().join("key")).expect("it can be made");
        let options = Options {
            names: vec!["localhost".to_owned()],
            owner: None,
            namespace: String::new(),
        };
        let (verifier, issuer) = (Box::new(TestPlatform), Box::new(TestPlatform));
        let coordinator = Coordinator::start(options, store, Box::new(keys), verifier, issuer);
        let coordinator = Arc::new(coordinator.expect("it starts"));
        let place = DirectoryPlace {
            directory: state,
            anchor: None,
        };
        let cluster = Cluster::new(coordinator, Some(Box::new(place)));
        let (admin, other) = (
            self_signed("admin").expect("a key can be made").0,
            self_signed("other").expect("a key can be made").0,
        );
        let world = World {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("threads can be made"),
            client: client::router(cluster.clone()),
            marble: marble::router(cluster),
            admin: admin.clone(),
            _directory: directory,
        };
        let manifest = common::manifest_body(&common::manifest(&admin, &other)).to_string();
        let (code, answer) = send(
            &world,
            "POST",
            "/api/v2/manifest",
            false,
            manifest.as_bytes(),
        )
        .expect("this is a request");
        assert_eq!(code, 200, "{}", String::from_utf8_lossy(&answer));
        world
    })
}

fn send(
    world: &World,
    method: &str,
    path: &str,
    as_admin: bool,
    body: &[u8],
) -> Option<(u16, Vec<u8>)> {
    let mesh = path.starts_with("/rpc.");
    let peer = Peer {
        certificate: as_admin.then(|| Arc::new(world.admin.certificate.clone())),
        address: None,
    };
    let request = Request::builder().method(method).uri(path).extension(peer);
    let request = if mesh {
        request.header("content-type", "application/grpc")
    } else {
        request.header("content-type", "application/json")
    };
    let request = request.body(Body::from(body.to_vec())).ok()?;
    let router = if mesh { &world.marble } else { &world.client };
    let router = router.clone();
    world.runtime.block_on(async move {
        let response = router.oneshot(request).await.expect("routers do not fail");
        let code = response.status().as_u16();
        let body = to_bytes(response.into_body(), 64 << 20).await;
        Some((code, body.expect("the answer ends").to_vec()))
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (head, body) = bytes.split_at(end.unwrap_or(bytes.len()));
    let Ok(head) = std::str::from_utf8(head) else {
        return;
    };
    let mut words = head.split(' ');
    let (Some(method), Some(path), who) = (words.next(), words.next(), words.next()) else {
        return;
    };
    let body = body.strip_prefix(b"\n").unwrap_or(body);
    let Some((code, answer)) = send(world(), method, path, who == Some("admin"), body) else {
        return;
    };
    let text = String::from_utf8_lossy(&answer);
    if !path.starts_with("/rpc.") && method != "HEAD" && (code == 200 || code == 500) {
        let json: Result<serde_json::Value, _> = serde_json::from_slice(&answer);
        assert!(json.is_ok(), "{method} {path}: {text}");
    }
});
