//! What goes beyond MarbleRun: namespaces, boards, predecessors, signed and encrypted policies.

mod common;

use base64::{Engine, prelude::BASE64_STANDARD};
use bulla_coordinator::client::Identity;
use bulla_coordinator::client::marble::self_signed;
use bulla_coordinator::policy;
use common::{Server, UUID, b64, manifest, manifest_body, user_pem};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const NONE: Option<&Identity> = None;

fn fingerprint(manifest: &Value) -> String {
    hex::encode(Sha256::digest(manifest.to_string()))
}

struct Team {
    server: Server,
    dir: tempfile::TempDir,
    admin: Identity,
    other: Identity,
    third: Identity,
    manifest: Value,
}

/// A cluster with three users, of whom all may update.
async fn team(change: impl FnOnce(&mut Value)) -> Team {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let [admin, other, third] = ["admin", "other", "third"].map(|n| self_signed(n).unwrap().0);
    let mut manifest = manifest(&admin, &other);
    manifest["Users"]["third"] = json!({"Certificate": user_pem(&third), "Roles": ["updater"]});
    change(&mut manifest);
    server.set(&manifest).await;
    Team {
        server,
        dir,
        admin,
        other,
        third,
        manifest,
    }
}

impl Team {
    async fn update(&self, manifest: &Value, user: &Identity) -> (u16, Value) {
        self.server
            .post("/api/v2/update", manifest_body(manifest), Some(user))
            .await
    }
}

fn message(answer: &(u16, Value)) -> &str {
    answer.1["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn boards_decide_about_updates() {
    let team = team(|m| {
        m["Boards"] = json!({
            "security": {"Members": ["admin", "other", "third"], "Threshold": 2},
            "operations": {"Members": ["third"]},
        });
        m["Config"]["UpdateBoards"] = json!(["security", "operations"]);
    })
    .await;
    let mut new = team.manifest.clone();
    new["Marbles"]["backend"]["MaxActivations"] = json!(7);
    let first = team.update(&new, &team.admin).await;
    assert_eq!(first.0, 200, "{}", first.1);
    // One more of security, and operations.
    assert_eq!(first.1["data"]["missingAcknowledgments"], 2);
    let acknowledge = async |user| {
        let body = manifest_body(&new);
        let answer = team
            .server
            .post("/api/v2/update-manifest", body, Some(user))
            .await;
        answer.1["data"]["missingAcknowledgments"].clone()
    };
    assert_eq!(acknowledge(&team.other).await, 1, "operations are missing");
    assert_eq!(acknowledge(&team.other).await, 1, "twice is once");
    assert_eq!(acknowledge(&team.third).await, 0);
    let current = team.server.get("/api/v2/manifest").await.1;
    assert_eq!(current["data"]["manifestFingerprint"], fingerprint(&new));
}

#[tokio::test]
async fn nonsense_about_boards_readers_and_imports_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let [admin, other] = ["admin", "other"].map(|n| self_signed(n).unwrap().0);
    let cases: &[(&str, Value, &str)] = &[
        ("/Boards", json!({"b": {"Members": []}}), "needs members"),
        (
            "/Boards",
            json!({"b": {"Members": ["admin", "admin"]}}),
            "each of them once",
        ),
        (
            "/Boards",
            json!({"b": {"Members": ["nobody"]}}),
            "is no user",
        ),
        (
            "/Boards",
            json!({"b": {"Members": ["admin"], "Threshold": 2}}),
            "exceeds",
        ),
        ("/Config/UpdateBoards", json!(["b"]), "does not exist"),
        ("/Secrets/token/ReadBoards", json!(["b"]), "does not exist"),
        ("/Config/ManifestReaders", json!(["nobody"]), "is no user"),
        ("/Config/Predecessor", json!("abc"), "64 hex digits"),
        (
            "/Config/Predecessor",
            json!("ab".repeat(32)),
            "no Predecessor",
        ),
        ("/Secrets/token/Hidden", json!(true), "it is Hidden"),
        (
            "/Secrets/own/Export",
            json!(["x"]),
            "differ for each marble",
        ),
        (
            "/Secrets/shared/Import",
            json!({"Namespace": "x"}),
            "needs the Secret",
        ),
        ("/Secrets/token/Import", json!({"Secret": "x"}), "imported"),
    ];
    for (pointer, value, expected) in cases {
        let mut bad = manifest(&admin, &other);
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        bad.pointer_mut(parent).unwrap()[name] = value.clone();
        let answer = server
            .post("/api/v2/manifest", manifest_body(&bad), NONE)
            .await;
        assert_eq!(answer.0, 500, "{pointer}");
        assert!(
            message(&answer).contains(expected),
            "{pointer}: {}",
            answer.1
        );
    }
}

#[tokio::test]
async fn an_update_names_what_it_replaces() {
    let team = team(|m| m["Config"]["RequirePredecessor"] = json!(true)).await;
    let mut new = team.manifest.clone();
    new["Marbles"]["backend"]["MaxActivations"] = json!(7);
    let without = team.update(&new, &team.admin).await;
    assert!(
        message(&without).contains(&fingerprint(&team.manifest)),
        "{}",
        without.1
    );
    new["Config"]["Predecessor"] = json!("00".repeat(32));
    let wrong = team.update(&new, &team.admin).await;
    assert!(
        message(&wrong).contains("someone else changed it"),
        "{}",
        wrong.1
    );
    new["Config"]["Predecessor"] = json!(fingerprint(&team.manifest).to_uppercase());
    assert_eq!(team.update(&new, &team.admin).await.0, 200);
}

#[tokio::test]
async fn signed_and_encrypted_policies_may_be_carried_by_anyone() {
    let team = team(|m| m["Config"]["UpdateThreshold"] = json!(2)).await;
    let key = team.server.get("/api/v2/policy-key").await.1;
    let public = b64(&key["data"]["publicKey"]);
    let mut new = team.manifest.clone();
    new["Marbles"]["backend"]["MaxActivations"] = json!(7);
    new["Config"]["Predecessor"] = json!(fingerprint(&team.manifest));
    let sealed = |manifest: &Value, signers: &[(&Identity, &str)]| {
        let mut bytes = manifest.to_string().into_bytes();
        for (signer, namespace) in signers {
            bytes = policy::sign(&bytes, signer, namespace).unwrap();
        }
        let envelope = policy::encrypt(&bytes, &public).unwrap();
        json!({"manifest": BASE64_STANDARD.encode(envelope)})
    };
    let send = async |body| team.server.post("/api/v2/update", body, NONE).await;
    let stranger = self_signed("stranger").unwrap().0;
    for signers in [
        vec![],
        vec![(&stranger, "")],
        vec![(&team.admin, "elsewhere")],
    ] {
        assert_eq!(send(sealed(&new, &signers)).await.0, 401);
    }
    let mut loose = new.clone();
    loose["Config"]["Predecessor"] = Value::Null;
    let answer = send(sealed(&loose, &[(&team.admin, ""), (&team.other, "")])).await;
    assert!(message(&answer).contains("must name its Config.Predecessor"));
    let half = send(sealed(&new, &[(&team.admin, "")])).await;
    assert_eq!(half.1["data"]["missingAcknowledgments"], 1, "{}", half.1);
    let body = sealed(&new, &[(&team.third, "")]);
    let rest = team
        .server
        .post("/api/v2/update-manifest", body, NONE)
        .await;
    assert_eq!(rest.1["data"]["missingAcknowledgments"], 0, "{}", rest.1);
    // The manifest in force is what was inside.
    let current = team.server.get("/api/v2/manifest").await.1;
    assert_eq!(
        b64(&current["data"]["manifest"]),
        new.to_string().into_bytes()
    );
    // People go back to the first manifest: the old signatures do not count again.
    assert_eq!(team.update(&team.manifest, &team.admin).await.0, 200);
    let body = manifest_body(&team.manifest);
    let agreed = team
        .server
        .post("/api/v2/update-manifest", body, Some(&team.other))
        .await;
    assert_eq!(
        agreed.1["data"]["missingAcknowledgments"], 0,
        "{}",
        agreed.1
    );
    let replayed = send(sealed(&new, &[(&team.admin, ""), (&team.third, "")])).await;
    assert!(
        message(&replayed).contains("was in force before"),
        "{}",
        replayed.1
    );
    // The key stays across restarts.
    let Team { server, dir, .. } = team;
    server.stop().await;
    let server = Server::start(dir.path()).await;
    assert_eq!(server.get("/api/v2/policy-key").await.1, key);
}

#[tokio::test]
async fn watched_secrets_are_read_once_after_a_board_agreed() {
    let team = team(|m| {
        m["Boards"] = json!({"keepers": {"Members": ["admin", "other", "third"], "Threshold": 2}});
        m["Secrets"]["token"]["ReadBoards"] = json!(["keepers"]);
    })
    .await;
    let (server, admin) = (&team.server, Some(&team.admin));
    let value = BASE64_STANDARD.encode("hush");
    let body = json!({"secrets": {"token": {"Key": value}}});
    assert_eq!(server.post("/api/v2/secrets", body, admin).await.0, 200);
    let read = async || {
        server
            .send("GET", "/api/v2/secrets?s=token", None, admin)
            .await
    };
    assert_eq!(read().await.0, 403, "nobody has agreed");
    let old = server.send("GET", "/secrets?s=token", None, admin).await;
    assert_eq!(old.0, 500, "the older API is no way around: {}", old.1);
    let ask = json!({"secrets": ["token"], "reason": "incident 7"});
    let stranger = server
        .post("/api/v2/read-requests", ask.clone(), Some(&team.other))
        .await;
    assert_eq!(stranger.0, 401, "only who may read may ask");
    let asked = server.post("/api/v2/read-requests", ask, admin).await.1;
    assert_eq!(asked["data"]["missingAgreements"], 2, "{asked}");
    let agree = async |user: &Identity| {
        let body = json!({"id": asked["data"]["id"]});
        server
            .post("/api/v2/read-requests/agree", body, Some(user))
            .await
    };
    assert!(message(&agree(&team.admin).await).contains("does not count"));
    assert_eq!(agree(&self_signed("x").unwrap().0).await.0, 401);
    assert_eq!(agree(&team.other).await.1["data"]["missingAgreements"], 1);
    assert_eq!(agree(&team.other).await.1["data"]["missingAgreements"], 1);
    assert_eq!(read().await.0, 403, "one of two");
    let listed = server
        .send("GET", "/api/v2/read-requests", None, Some(&team.third))
        .await;
    assert_eq!(listed.1["data"][0]["reason"], "incident 7", "{}", listed.1);
    assert_eq!(agree(&team.third).await.1["data"]["missingAgreements"], 0);
    let answer = read().await;
    assert_eq!(answer.0, 200, "{}", answer.1);
    assert_eq!(answer.1["data"]["secrets"]["token"]["Private"], value);
    assert_eq!(read().await.0, 403, "an agreement is for one reading");
    let log = server.get("/api/v2/audit").await.1["data"]["entries"].to_string();
    for step in [
        "Reading requested",
        "Reading agreed to",
        "Secrets read",
        "incident 7",
    ] {
        assert!(log.contains(step), "{step}: {log}");
    }
}

#[tokio::test]
async fn only_named_readers_see_the_manifest() {
    let team = team(|m| m["Config"]["ManifestReaders"] = json!(["admin"])).await;
    let server = &team.server;
    for path in ["/api/v2/update", "/api/v2/audit", "/update"] {
        assert_eq!(server.get(path).await.0, 401, "{path}");
        let allowed = server.send("GET", path, None, Some(&team.admin)).await;
        assert_eq!(allowed.0, 200, "{path}");
        let other = server.send("GET", path, None, Some(&team.other)).await;
        assert_eq!(other.0, 401, "{path}");
    }
    let seen = server.get("/api/v2/manifest").await.1;
    assert_eq!(seen["data"]["manifest"], Value::Null);
    assert_eq!(
        seen["data"]["manifestFingerprint"],
        fingerprint(&team.manifest)
    );
    let seen = server
        .send("GET", "/api/v2/manifest", None, Some(&team.admin))
        .await
        .1;
    assert_eq!(
        b64(&seen["data"]["manifest"]),
        team.manifest.to_string().into_bytes()
    );
}

#[tokio::test]
async fn values_stay_when_only_their_readers_change_and_go_when_unhidden() {
    let team = team(|m| {
        m["Config"]["UpdateThreshold"] = json!(1);
        m["Secrets"]["shared"]["Hidden"] = json!(true);
    })
    .await;
    let value = async || {
        let answer = team.server.activate("backend", UUID).await.unwrap();
        answer.parameters.unwrap().env["SHARED"].clone()
    };
    let first = value().await;
    let mut new = team.manifest.clone();
    new["Marbles"]["backend"]["MaxActivations"] = json!(0);
    new["Secrets"]["shared"]["Export"] = json!(["elsewhere"]);
    assert_eq!(team.update(&new, &team.admin).await.0, 200);
    assert_eq!(value().await, first, "an export changes no value");
    new["Secrets"]["shared"]["Hidden"] = json!(false);
    assert_eq!(team.update(&new, &team.admin).await.0, 200);
    assert_ne!(value().await, first, "what was hidden is never shown");
}

#[tokio::test]
async fn namespaces_are_apart_and_share_what_they_export() {
    let team = team(|m| m["Secrets"]["shared"]["Export"] = json!(["pay"])).await;
    let server = &team.server;
    let owner = self_signed("owner").unwrap().0;
    let make = async |name: &str, user: Option<&Identity>| {
        let body = json!({"name": name, "owner": user_pem(&owner)});
        server.post("/api/v2/namespaces", body, user).await
    };
    assert_eq!(make("pay", NONE).await.0, 401);
    assert_eq!(make("pay", Some(&owner)).await.0, 401, "not yet anybody");
    for bad in [
        "",
        "Pay",
        "a/b",
        "../x",
        "a..b",
        "-a",
        "a.b.c.d.e",
        &"a".repeat(64),
    ] {
        assert_eq!(make(bad, Some(&team.admin)).await.0, 400, "{bad}");
    }
    assert_eq!(make("none.below", Some(&team.admin)).await.0, 404);
    for name in ["pay", "ship"] {
        assert_eq!(make(name, Some(&team.admin)).await.0, 200);
    }
    assert_eq!(make("pay", Some(&team.admin)).await.0, 500, "once");
    let there = |path: &str| format!("/api/v2/namespaces/pay{path}");
    assert_eq!(server.get(&there("/status")).await.1["data"]["code"], 2);
    assert_eq!(server.get("/api/v2/namespaces/nil/status").await.0, 404);
    assert_eq!(server.get(&there("/nothing")).await.0, 405);

    let importing = json!({
        "Packages": {"p": {"UniqueID": "11".repeat(32)}},
        "Marbles": {"m": {"Package": "p", "Parameters": {"Env": {
            "THEIRS": "{{ hex .Secrets.theirs }}", "OURS": "{{ hex .Secrets.ours }}"}}}},
        "Secrets": {
            "theirs": {"Type": "symmetric-key", "Import": {"Secret": "shared"}},
            "ours": {"Type": "symmetric-key", "Size": 128, "Shared": true},
        },
        "Users": {"owner": {"Certificate": user_pem(&owner), "Roles": ["u"]}},
        "Roles": {"u": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}},
    });
    let set = async |space: &str, user| {
        let path = format!("/api/v2/namespaces/{space}/manifest");
        server.post(&path, manifest_body(&importing), user).await
    };
    assert_eq!(
        set("pay", Some(&team.admin)).await.0,
        401,
        "its owner sets it"
    );
    assert_eq!(set("pay", Some(&owner)).await.0, 200);
    assert_eq!(set("ship", Some(&owner)).await.0, 200);

    let root = server.get("/api/v2/quote").await.1["data"]["cert"].clone();
    let own = server.get(&there("/quote")).await.1["data"]["cert"].clone();
    assert_ne!(root, own, "each has its own root");
    let here = server
        .activate("backend", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    let there_now = server
        .activate("pay/m", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    assert_eq!(here.env["SHARED"], there_now.env["THEIRS"]);
    assert_ne!(here.env["SHARED"], there_now.env["OURS"]);
    assert_ne!(
        here.env["MARBLE_PREDEFINED_ROOT_CA"],
        there_now.env["MARBLE_PREDEFINED_ROOT_CA"]
    );
    let refused = server
        .activate("ship/m", UUID)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("cannot be imported"), "{refused}");
    assert!(server.activate("pay/backend", UUID).await.is_err());
    assert!(server.activate("nil/m", UUID).await.is_err());

    // Below a namespace its own users rule.
    let body = json!({"name": "pay.eu", "owner": user_pem(&team.third)});
    let below = server
        .post("/api/v2/namespaces", body.clone(), Some(&team.admin))
        .await;
    assert_eq!(below.0, 401, "{}", below.1);
    assert_eq!(
        server
            .post("/api/v2/namespaces", body, Some(&owner))
            .await
            .0,
        200
    );
    let list = server
        .send("GET", "/api/v2/namespaces", None, Some(&team.admin))
        .await
        .1;
    let names: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["name"])
        .collect();
    assert_eq!(names, ["pay", "pay.eu", "ship"]);

    // Metrics tell them apart.
    let metrics = Server::plain(&server.metrics, "/metrics").await;
    let line = format!(
        "coordinator_marble_activations_success_total{{namespace=\"pay\",type=\"m\",uuid=\"{UUID}\"}} 1"
    );
    assert!(metrics.contains(&line), "{metrics}");
    assert!(metrics.contains("\ncoordinator_state{namespace=\"pay\"} 3\n"));

    // Deleting is for who rules above; what is below goes first.
    let delete = async |name: &str, user| {
        let path = format!("/api/v2/namespaces/{name}");
        server.send("DELETE", &path, None, user).await
    };
    assert_eq!(delete("ship", None).await.0, 401);
    assert_eq!(delete("ship", Some(&owner)).await.0, 401);
    assert_eq!(delete("none", Some(&team.admin)).await.0, 404);
    let refused = delete("pay", Some(&team.admin)).await;
    assert!(
        refused.1.to_string().contains("pay.eu is below"),
        "{}",
        refused.1
    );
    let kept = || {
        std::fs::read_dir(team.dir.path().join("state/namespaces"))
            .unwrap()
            .count()
    };
    let before = kept();
    assert_eq!(delete("ship", Some(&team.admin)).await.0, 200);
    assert_eq!(kept(), before - 1, "nothing of it is kept");
    assert_eq!(server.get("/api/v2/namespaces/ship/status").await.0, 404);
    assert!(server.activate("ship/m", UUID).await.is_err());
    assert_eq!(delete("ship", Some(&team.admin)).await.0, 404);

    // All of it is there after a restart.
    let Team { server, dir, .. } = team;
    server.stop().await;
    let server = Server::start(dir.path()).await;
    let again = server
        .activate("pay/m", UUID)
        .await
        .unwrap()
        .parameters
        .unwrap();
    assert_eq!(again.env["OURS"], there_now.env["OURS"]);
    assert_eq!(again.env["THEIRS"], there_now.env["THEIRS"]);
}
