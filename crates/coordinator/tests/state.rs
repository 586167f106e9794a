//! What survives: restarts, lost keys, old copies put back, kills at any instant.

mod common;

use base64::{Engine, prelude::BASE64_STANDARD};
use bulla_coordinator::client::marble::self_signed;
use bulla_coordinator::core::Owner;
use bulla_coordinator::manifest::SealMode;
use bulla_coordinator::recovery::Plan;
use bulla_coordinator::seal::{InsecureFileKey, Key};
use bulla_coordinator::store::{
    Anchor, Batch, Content, DirectoryStore, FileAnchor, Header, Opened, StoreError,
};
use common::{Server, Setup, UUID, b64, manifest, manifest_body};
use rsa::pkcs8::{DecodePublicKey, EncodePublicKey};
use rsa::{Oaep, Pkcs1v15Sign, PrivateKey, PublicKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Three RSA keys, made once: making them is the slow part.
fn recovery_keys() -> Vec<PrivateKey> {
    (0..3)
        .map(|_| PrivateKey::new(&mut getrandom::SysRng, 2048).unwrap())
        .collect()
}

fn with_recovery(keys: &[&PrivateKey], threshold: u32) -> Value {
    let admin = self_signed("admin").unwrap().0;
    let other = self_signed("other").unwrap().0;
    let mut manifest = manifest(&admin, &other);
    for (number, key) in keys.iter().enumerate() {
        let der = key.to_public_key().to_public_key_der().unwrap();
        manifest["RecoveryKeys"][format!("key{number}")] =
            json!(bulla_coordinator::x509::pem("PUBLIC KEY", der.as_bytes()));
    }
    manifest["Config"]["RecoveryThreshold"] = json!(threshold);
    manifest
}

/// What a holder sends: the decrypted secret and a signature over it.
fn opened(key: &PrivateKey, encrypted: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let secret = key.decrypt(Oaep::<Sha256>::new(), encrypted).unwrap();
    let signature = key
        .sign(Pkcs1v15Sign::new::<Sha256>(), &Sha256::digest(&secret))
        .unwrap();
    (secret, signature)
}

async fn upload(server: &Server, secret: &[u8], signature: &[u8]) -> (u16, Value) {
    let body = json!({
        "recoverySecret": BASE64_STANDARD.encode(secret),
        "recoverySecretSignature": BASE64_STANDARD.encode(signature),
    });
    server.post("/api/v2/recover", body, None).await
}

#[tokio::test]
async fn state_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let admin = self_signed("admin").unwrap().0;
    server.set(&manifest(&admin, &admin_other())).await;
    let before = server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    server.stop().await;
    let server = Server::start(dir.path()).await;
    assert_eq!(server.get("/api/v2/status").await.1["data"]["code"], 3);
    let after = server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    for name in [
        "SHARED",
        "OWN",
        "MARBLE_PREDEFINED_ROOT_CA",
        "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA",
    ] {
        assert_eq!(after.env[name], before.env[name], "{name}");
    }
    assert!(
        server.activate("backend", UUID).await.is_err(),
        "the budget was kept"
    );
}

fn admin_other() -> bulla_coordinator::client::Identity {
    self_signed("other").unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_with_one_some_or_all_keys() {
    let keys = recovery_keys();
    let [a, b, c] = [&keys[0], &keys[1], &keys[2]];
    for (holders, threshold, needed) in [
        (vec![a], 0, 1),
        (vec![a, b, c], 0, 3),
        (vec![a, b, c], 2, 2),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path()).await;
        let data = server.set(&with_recovery(&holders, threshold)).await;
        let secrets = data["RecoverySecrets"].clone();
        assert_eq!(secrets.as_object().unwrap().len(), holders.len());
        let before = server
            .activate("backend", UUID)
            .await
            .unwrap()
            .parameters
            .unwrap();
        server.stop().await;
        std::fs::remove_file(dir.path().join("state/sealed_key")).unwrap();

        let server = Server::start(dir.path()).await;
        let (_, status) = server.get("/api/v2/status").await;
        assert_eq!(status["data"]["code"], 1);
        assert!(
            status["data"]["message"]
                .as_str()
                .unwrap()
                .starts_with("Coordinator is in recovery mode. Either")
        );
        assert!(server.activate("backend", UUID).await.is_err());
        let key = server.get("/api/v2/recover/public-key").await.1["data"].clone();
        assert_eq!(key["algorithm"], "RSA");
        let ephemeral = PublicKey::from_public_key_der(&b64(&key["ephemeralPublicKey"])).unwrap();
        let share = |number: usize| opened(holders[number], &b64(&secrets[format!("key{number}")]));

        // Wrong ones change nothing.
        let (secret, signature) = share(0);
        assert_eq!(upload(&server, &secret, b"no signature").await.0, 500);
        assert_eq!(upload(&server, &[7; 32], &signature).await.0, 500);
        assert_eq!(upload(&server, &[7; 600], &signature).await.0, 500);
        assert_eq!(upload(&server, &[], &[]).await.0, 500);
        let forged = a
            .sign(Pkcs1v15Sign::new::<Sha256>(), &Sha256::digest([7; 32]))
            .unwrap();
        let (_, answer) = upload(&server, &[7; 32], &forged).await;
        assert!(
            answer["message"]
                .as_str()
                .unwrap()
                .contains("not the recovery secret of key key0"),
            "{answer}"
        );
        let long = vec![b' '; 20481];
        assert_eq!(
            server
                .send("POST", "/api/v2/recover", Some(&long), None)
                .await
                .0,
            400
        );

        for number in 0..needed {
            let (secret, signature) = share(number);
            // Every second one travels encrypted.
            let sent = match number % 2 {
                0 => secret,
                _ => ephemeral
                    .encrypt(&mut getrandom::SysRng, Oaep::<Sha256>::new(), &secret)
                    .unwrap(),
            };
            let (code, answer) = upload(&server, &sent, &signature).await;
            assert_eq!(code, 200, "{answer}");
            let remaining = needed - number - 1;
            assert_eq!(answer["data"]["remaining"], remaining);
            if remaining > 0 {
                assert_eq!(
                    answer["data"]["message"],
                    format!(
                        "Secret was processed successfully. Upload the next secret. Remaining secrets: {remaining}"
                    )
                );
                let (code, answer) = upload(&server, &sent, &signature).await;
                assert_eq!(code, 500, "each key counts once: {answer}");
            } else {
                assert_eq!(answer["data"]["message"], "Recovery successful.");
            }
        }
        assert_eq!(server.get("/api/v2/status").await.1["data"]["code"], 3);
        let after = server
            .activate("backend", UUID)
            .await
            .unwrap()
            .parameters
            .unwrap();
        assert_eq!(after.env["OWN"], before.env["OWN"]);
        assert_eq!(
            after.env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"],
            before.env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"]
        );
        server.stop().await;
        // The key is sealed anew: the next start needs nobody.
        let server = Server::start(dir.path()).await;
        assert_eq!(server.get("/api/v2/status").await.1["data"]["code"], 3);
        assert!(
            server.activate("backend", UUID).await.is_err(),
            "the budget was kept through recovery"
        );
    }
}

#[tokio::test]
async fn a_new_manifest_in_recovery_discards_the_old_state() {
    let dir = tempfile::tempdir().unwrap();
    let admin = self_signed("admin").unwrap().0;
    let manifest = manifest(&admin, &admin_other());
    let server = Server::start(dir.path()).await;
    server.set(&manifest).await;
    let before = server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    server.stop().await;
    std::fs::remove_file(dir.path().join("state/sealed_key")).unwrap();
    let server = Server::start(dir.path()).await;
    let (code, answer) = upload(&server, &[1; 32], &[2; 256]).await;
    assert_eq!(code, 500);
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("no recovery keys"),
        "{answer}"
    );
    server.set(&manifest).await;
    let after = server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    assert_ne!(after.env["SHARED"], before.env["SHARED"]);
    assert_ne!(
        after.env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"],
        before.env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"]
    );
}

#[tokio::test]
async fn nothing_is_kept_when_sealing_is_disabled() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut manifest = manifest(&self_signed("admin").unwrap().0, &admin_other());
    manifest["Config"]["SealMode"] = json!("Disabled");
    server.set(&manifest).await;
    server.activate("backend", UUID).await.unwrap();
    server.stop().await;
    let server = Server::start(dir.path()).await;
    assert_eq!(server.get("/api/v2/status").await.1["data"]["code"], 2);
}

#[tokio::test]
async fn the_first_manifest_may_need_an_owner() {
    let dir = tempfile::tempdir().unwrap();
    let owner = self_signed("owner").unwrap().0;
    let server = Server::with(Setup {
        dir: dir.path(),
        owner: Some(Owner {
            certificate: Some(owner.certificate.clone()),
            token_hash: Some(Sha256::digest("open sesame").into()),
        }),
        anchor: None,
    })
    .await;
    let body = manifest_body(&manifest(&self_signed("admin").unwrap().0, &admin_other()));
    let stranger = self_signed("owner").unwrap().0;
    assert_eq!(
        server.post("/api/v2/manifest", body.clone(), None).await.0,
        401
    );
    assert_eq!(
        server
            .post("/api/v2/manifest", body.clone(), Some(&stranger))
            .await
            .0,
        401
    );
    let by_token = |token: &str| bulla_coordinator::client::Rest {
        address: server.client.clone(),
        trust: bulla_coordinator::client::Trust::Any,
        identity: None,
        token: Some(token.to_owned()),
    };
    assert!(
        by_token("wrong")
            .call("POST", "/manifest", Some(body.clone()))
            .await
            .is_err()
    );
    assert!(
        by_token("open sesame")
            .call("POST", "/manifest", Some(body.clone()))
            .await
            .is_ok()
    );
}

fn keys(dir: &Path) -> InsecureFileKey {
    InsecureFileKey::open(&dir.join("key")).unwrap()
}

fn anchor(dir: &Path) -> Option<Box<dyn Anchor>> {
    Some(Box::new(FileAnchor::new(dir.join("anchor"))))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test]
async fn an_old_state_that_is_put_back_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (state, old) = (dir.path().join("state"), dir.path().join("old"));
    let keys = keys(dir.path());
    let key = Key::random().unwrap();
    let mut store = DirectoryStore::open(&state, anchor(dir.path())).unwrap();
    store
        .begin(
            &keys,
            &key,
            Header::new(SealMode::ProductKey, Plan::default()).unwrap(),
            Content::new(),
        )
        .unwrap();
    store
        .commit(Batch::default().put("a", "1"))
        .await
        .unwrap()
        .unwrap();
    copy(&state, &old);
    store
        .commit(Batch::default().put("a", "2"))
        .await
        .unwrap()
        .unwrap();
    drop(store);
    let load = |from: &Path| {
        DirectoryStore::open(from, anchor(dir.path()))
            .unwrap()
            .load(&keys)
            .map(|opened| {
                matches!(
                    opened,
                    Opened::State {
                        content: Some(_),
                        ..
                    }
                )
            })
    };
    assert!(load(&state).unwrap());
    let error = load(&old).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Replayed {
                found: 2,
                anchored: 3,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("put an old copy back"));
    // Another state altogether.
    let mut other = DirectoryStore::open(&dir.path().join("other"), None).unwrap();
    other
        .begin(
            &keys,
            &key,
            Header::new(SealMode::ProductKey, Plan::default()).unwrap(),
            Content::new(),
        )
        .unwrap();
    drop(other);
    assert!(matches!(
        load(&dir.path().join("other")).unwrap_err(),
        StoreError::OtherState(_)
    ));
    // The newest is still welcome, and so is a restart of it.
    assert!(load(&state).unwrap());
}

#[test]
fn a_directory_has_one_coordinator() {
    let dir = tempfile::tempdir().unwrap();
    let _first = DirectoryStore::open(dir.path(), None).unwrap();
    assert!(matches!(
        DirectoryStore::open(dir.path(), None),
        Err(StoreError::Locked(_))
    ));
}

#[tokio::test]
async fn every_flipped_bit_of_the_state_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let keys = keys(dir.path());
    let mut store = DirectoryStore::open(&state, None).unwrap();
    let header = Header::new(SealMode::ProductKey, Plan::default()).unwrap();
    store
        .begin(
            &keys,
            &Key::random().unwrap(),
            header,
            Content::from([("a".into(), b"1".to_vec())]),
        )
        .unwrap();
    drop(store);
    let path = state.join("sealed_data");
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        std::fs::write(&path, &changed).unwrap();
        let loaded = DirectoryStore::open(&state, None).unwrap().load(&keys);
        let is_unsealed = matches!(
            loaded,
            Ok(Opened::State {
                content: Some(_),
                ..
            })
        );
        assert!(!is_unsealed, "byte {at}");
    }
}

/// A crash between the new snapshot and the new key's final name leaves both keys.
#[test]
fn a_crash_while_the_key_changes_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let keys = keys(dir.path());
    let header = Header::new(SealMode::UniqueKey, Plan::default()).unwrap();
    let content = Content::from([("n".to_owned(), b"0".to_vec())]);
    let mut store = DirectoryStore::open(&state, None).unwrap();
    store
        .begin(&keys, &Key::random().unwrap(), header, content)
        .unwrap();
    let old = std::fs::read(state.join("sealed_key")).unwrap();
    let batch = Batch::default().put("n", "1");
    let key = Key::random().unwrap();
    assert!(
        store
            .rekey(&keys, &key, SealMode::UniqueKey, Plan::default(), batch)
            .unwrap()
    );
    drop(store);
    std::fs::rename(state.join("sealed_key"), state.join("sealed_key.next")).unwrap();
    std::fs::write(state.join("sealed_key"), old).unwrap();
    for _ in 0..2 {
        let loaded = DirectoryStore::open(&state, None).unwrap().load(&keys);
        let Ok(Opened::State {
            content: Some(content),
            ..
        }) = loaded
        else {
            panic!("the state cannot be unsealed");
        };
        assert_eq!(content["n"], b"1");
    }
    assert!(!state.join("sealed_key.next").exists());
}

const CHILD: &str = "BULLA_STORE_CHILD";

/// The child of the kill test: commits, and says so, until it is killed.
#[test]
fn kill_child() {
    let Ok(dir) = std::env::var(CHILD) else {
        return;
    };
    use std::io::Write;
    let dir = Path::new(&dir);
    let keys = keys(dir);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut store = DirectoryStore::open(&dir.join("state"), anchor(dir)).unwrap();
        let mut next = match store.load(&keys).unwrap() {
            Opened::State {
                content: Some(content),
                ..
            } => std::str::from_utf8(&content["n"])
                .unwrap()
                .parse::<u64>()
                .unwrap(),
            Opened::State { .. } => panic!("the state cannot be unsealed"),
            Opened::Empty => {
                let header = Header::new(SealMode::ProductKey, Plan::default()).unwrap();
                let content = Content::from([("n".to_owned(), b"0".to_vec())]);
                store
                    .begin(&keys, &Key::random().unwrap(), header, content)
                    .unwrap();
                0
            }
        };
        loop {
            next += 1;
            let value = next.to_string();
            let batch = Batch::default().put("n", value.clone()).put("twin", value);
            // Every few steps the data key changes, as in an update.
            if next % 7 == 0 {
                store
                    .rekey(
                        &keys,
                        &Key::random().unwrap(),
                        SealMode::UniqueKey,
                        Plan::default(),
                        batch,
                    )
                    .unwrap();
            } else {
                store.commit(batch).await.unwrap().unwrap();
            }
            println!("\ncommitted {next}");
            std::io::stdout().flush().unwrap();
        }
    });
}

/// SIGKILL at `count` random instants: what was acknowledged is there, and nothing is half there.
fn kill_at_random(count: usize) {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let keys_source = keys(dir.path());
    let mut acknowledged = 0u64;
    for round in 0..count {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill_child", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut random = [0u8; 4];
        getrandom::fill(&mut random).unwrap();
        // From before its first step to some hundred steps later.
        let micros = u64::from(u32::from_le_bytes(random)) % 40_000;
        std::thread::sleep(std::time::Duration::from_micros(micros));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut output = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut output)
            .unwrap();
        let whole_lines = output.rfind('\n').map_or("", |end| &output[..end]);
        for line in whole_lines.lines() {
            if let Some(number) = line.strip_prefix("committed ") {
                acknowledged = acknowledged.max(number.parse().unwrap());
            }
        }
        assert!(!output.contains("panicked"), "round {round}: {output}");
        let mut store =
            DirectoryStore::open(&dir.path().join("state"), anchor(dir.path())).unwrap();
        match store.load(&keys_source).unwrap() {
            Opened::Empty => assert_eq!(acknowledged, 0, "round {round}: the state is gone"),
            Opened::State { content: None, .. } => panic!("round {round}: cannot be unsealed"),
            Opened::State {
                content: Some(content),
                ..
            } => {
                let number: u64 = std::str::from_utf8(&content["n"]).unwrap().parse().unwrap();
                assert!(
                    number >= acknowledged,
                    "round {round}: {number} < {acknowledged}"
                );
                if number > 0 {
                    assert_eq!(content["n"], content["twin"], "round {round}: half a batch");
                }
            }
        }
    }
    assert!(
        acknowledged > 0,
        "the children committed nothing: the test tests nothing"
    );
}

#[test]
fn the_store_survives_kills_at_random_points() {
    kill_at_random(60);
}

#[test]
#[ignore = "600 processes: 20 s"]
fn the_store_survives_600_kills_at_random_points() {
    kill_at_random(600);
}

/// A disk of its own, with little room.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> SmallDisk {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m", "small"])
            .arg(dir.path())
            .status();
        assert!(mounted.unwrap().success(), "mount: run as root");
        SmallDisk(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open lets go of it soon.
        let _ = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_is_survived() {
    let disk = SmallDisk::new();
    let dir = disk.0.path();
    let server = Server::start(dir).await;
    let [admin, other] = ["admin", "other"].map(|name| self_signed(name).unwrap().0);
    server.set(&manifest(&admin, &other)).await;
    let set = async |server: &Server, n: usize| {
        let value = BASE64_STANDARD.encode(format!("{n} {}", "x".repeat(4000)));
        let body = json!({"secrets": {"token": {"Key": value}}});
        server.post("/api/v2/secrets", body, Some(&admin)).await
    };
    let get = async |server: &Server| {
        let path = "/api/v2/secrets?s=token";
        let (code, answer) = server.send("GET", path, None, Some(&admin)).await;
        assert_eq!(code, 200, "{answer}");
        let value = b64(&answer["data"]["secrets"]["token"]["Private"]);
        let text = String::from_utf8(value).unwrap();
        text.split(' ').next().unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(set(&server, 0).await.0, 200);
    let filler = dir.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write(&mut file, &[0; 4096]).is_ok() {}
    let mut kept = 0;
    let refused = loop {
        match set(&server, kept + 1).await {
            (200, _) => kept += 1,
            (code, answer) => break (code, answer["message"].to_string()),
        }
    };
    assert_eq!(refused.0, 500);
    assert!(refused.1.contains("no storage space"), "{}", refused.1);
    assert_eq!(set(&server, 99).await.0, 500);
    // What is there is served; after a crash too.
    assert_eq!(get(&server).await, kept);
    server.stop().await;
    let server = Server::start(dir).await;
    assert_eq!(get(&server).await, kept);
    // With room again it goes on by itself.
    assert_eq!(set(&server, 99).await.0, 500);
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    for n in 100..120 {
        let (code, said) = set(&server, n).await;
        assert_eq!(code, 200, "{said}");
    }
    server.stop().await;
    let server = Server::start(dir).await;
    assert_eq!(get(&server).await, 119);
}
