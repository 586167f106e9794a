//! Strangers who mean harm: connections that never say what they want, requests of every kind with
//! hostile content, and questions whose answers would tell whether a secret exists.

mod common;

use bulla_coordinator::api::marble::ActivationReq;
use bulla_coordinator::api::serve;
use bulla_coordinator::client::marble::{ActivateError, activate, self_signed, signing_request};
use bulla_coordinator::client::{Identity, Trust, connect};
use bulla_coordinator::manifest::Subject;
use bulla_coordinator::quote::with_oe_header;
use common::{Server, UUID, manifest, test_quote};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Cluster {
    server: Server,
    admin: Identity,
    other: Identity,
    _dir: tempfile::TempDir,
}

async fn cluster() -> Cluster {
    serve::raise_limits();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let [admin, other] = ["admin", "other"].map(|name| self_signed(name).unwrap().0);
    server.set(&manifest(&admin, &other)).await;
    Cluster {
        server,
        admin,
        other,
        _dir: dir,
    }
}

/// More connections than there are places, in every state that costs the other side nothing.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_half_open_connections_do_not_keep_others_out() {
    let c = cluster().await;
    let places = 4096.min(
        usize::try_from(
            rustix::process::getrlimit(rustix::process::Resource::Nofile)
                .current
                .unwrap_or(u64::MAX),
        )
        .unwrap_or(usize::MAX)
            / 3,
    );
    let mut held = Vec::new();
    // Handshakes that are finished, then a part of a header, or of a body.
    let mut talking = Vec::new();
    for part in [
        "",
        "GET /api/v2/status HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        "POST /api/v2/manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{",
    ]
    .repeat(20)
    {
        let (mut stream, _) = connect(&c.server.client, Trust::Any, None, b"http/1.1")
            .await
            .unwrap();
        stream.write_all(part.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        talking.push(stream);
    }
    // Handshakes that are not begun, or not finished.
    for number in 0..places + places / 8 {
        for address in [&c.server.client, &c.server.mesh] {
            if number % 2 == 0 && address == &c.server.mesh {
                continue;
            }
            let mut stream = TcpStream::connect(address).await.unwrap();
            if number % 3 == 0 {
                let _ = stream.write_all(&[0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc]).await;
            }
            held.push(stream);
        }
        if number % 500 == 0 {
            assert_eq!(c.server.get("/api/v2/status").await.0, 200, "{number}");
        }
    }
    assert_eq!(c.server.get("/api/v2/status").await.0, 200);
    assert!(c.server.activate("backend", UUID).await.is_ok());
    // Those that came first were closed for those that came last: by a reset, for they had sent.
    let mut byte = [0];
    for stream in &mut talking {
        assert!(
            matches!(stream.read(&mut byte).await, Ok(0) | Err(_)),
            "it was waiting longest"
        );
    }
}

/// A body that nobody wants is read to its end, so that the answer arrives.
#[tokio::test(flavor = "multi_thread")]
async fn who_sends_too_much_still_hears_why() {
    let c = cluster().await;
    for (request, length, codes) in [
        ("POST /api/v2/manifest", 40 << 20, [400, 400]),
        ("POST /api/v2/recover", 1 << 20, [400, 500]),
        ("POST /api/v2/nothing", 4 << 20, [404, 405]),
        ("PUT /api/v2/status", 4 << 20, [404, 405]),
        ("GET /api/v2/status", 1 << 20, [200, 200]),
        ("POST /nothing", 4 << 20, [404, 405]),
    ] {
        let (mut stream, _) = connect(&c.server.client, Trust::Any, None, b"http/1.1")
            .await
            .unwrap();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // As simple clients do: all of it first, then look for an answer.
        let piece = vec![b'['; 64 << 10];
        for _ in 0..length / piece.len() {
            stream.write_all(&piece).await.expect(request);
        }
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        let code: u16 = answer
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .unwrap_or_else(|| panic!("{request}: {answer}"));
        assert!(codes.contains(&code), "{request}: {answer}");
    }
}

/// Bodies and fields that no request should have.
fn hostile_values() -> Vec<Value> {
    let nested = (0..100).fold(json!(1), |inner, _| json!([inner]));
    vec![
        Value::Null,
        json!(0),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(true),
        json!(""),
        json!("\u{0}"),
        json!("../../../etc/passwd"),
        json!("{{ pem .MarbleRun.MarbleCert.Private }}"),
        json!("A".repeat(300_000)),
        json!("\u{202e}\u{fffd}💣"),
        json!("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        json!([]),
        json!({}),
        json!([{"Key": {}}]),
        json!({"__proto__": 1, "": {"": []}}),
        nested,
    ]
}

/// Every request of the document, from nobody, from a user and from one with few rights, with
/// everything that can be wrong in it.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_with_hostile_content_does_harm() {
    let c = cluster().await;
    let document = c.server.get("/api/v2/openapi.json").await.1;
    let before = c.server.get("/api/v2/manifest").await.1;
    let mut count = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        // Those below namespaces are the same handlers.
        if path.starts_with("/namespaces/{name}/") {
            continue;
        }
        let path = format!("/api/v2{}", path.trim_start_matches("/api/v2"));
        let path = path.replace("{id}", "..%2f..").replace("{name}", "%00");
        for (method, operation) in methods.as_object().unwrap() {
            let method = method.to_uppercase();
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let fields: Vec<String> = schema["properties"]
                .as_object()
                .map(|properties| properties.keys().cloned().collect())
                .unwrap_or_default();
            let mut bodies: Vec<Vec<u8>> = [
                &b""[..],
                b"{",
                b"\xff\xfe",
                b"[[[[",
                b"{\"a\":1,\"a\":2}",
                b"nul",
            ]
            .map(<[u8]>::to_vec)
            .to_vec();
            bodies.push(vec![b'['; 100_000]);
            bodies.push(vec![b' '; (1 << 20) + 1]);
            for (number, value) in hostile_values().into_iter().enumerate() {
                bodies.push(value.to_string().into_bytes());
                for field in fields.iter().filter(|_| number % 3 == 0) {
                    let mut body = json!({});
                    body[field] = value.clone();
                    bodies.push(body.to_string().into_bytes());
                }
                let all: serde_json::Map<String, Value> = fields
                    .iter()
                    .map(|field| (field.clone(), value.clone()))
                    .collect();
                bodies.push(Value::from(all).to_string().into_bytes());
            }
            if method == "GET" {
                bodies.truncate(1);
            }
            for (number, body) in bodies.iter().enumerate() {
                let sender = [None, Some(&c.other), Some(&c.admin)][number % 3];
                let (code, answer) = c
                    .server
                    .send(&method, &path, (method != "GET").then_some(body), sender)
                    .await;
                count += 1;
                assert_ne!(code, 429, "the limit must not answer for the API");
                assert!(
                    answer.is_object(),
                    "{method} {path} {code}: {}",
                    String::from_utf8_lossy(&body[..body.len().min(200)])
                );
                let said = answer["message"].as_str().unwrap_or_default();
                assert!(said.len() < 4096, "{method} {path}: {} bytes", said.len());
                assert!(!said.contains("panicked"), "{said}");
            }
        }
    }
    assert!(count > 300, "{count}");
    let after = c.server.get("/api/v2/manifest").await.1;
    assert_eq!(after["data"]["manifest"], before["data"]["manifest"]);
    assert_eq!(c.server.get("/api/v2/status").await.1["data"]["code"], 3);
    assert!(c.server.activate("backend", UUID).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_marbles_are_refused_and_cost_no_budget() {
    let c = cluster().await;
    let (identity, signer) = self_signed("marble").unwrap();
    let good = ActivationReq {
        quote: with_oe_header(&test_quote(
            &bulla_coordinator::sha256(&identity.certificate),
            |_| {},
        )),
        csr: signing_request(&signer, &Subject::default(), &["localhost".to_owned()], &[]).unwrap(),
        marble_type: "backend".to_owned(),
        uuid: UUID.to_owned(),
    };
    let huge = "A".repeat(900_000);
    let mut bad = Vec::new();
    let mut with = |change: &dyn Fn(&mut ActivationReq)| {
        let mut request = good.clone();
        change(&mut request);
        bad.push(request);
    };
    for text in [
        "",
        "\u{0}",
        "/",
        "//",
        "a/backend",
        "..",
        "{{ .Secrets }}",
        &huge,
    ] {
        with(&|r| r.marble_type = text.to_owned());
        with(&|r| r.uuid = text.to_owned());
    }
    for bytes in [&b""[..], b"\0", b"\x30\x82\xff\xff", &[0x30; 2000]] {
        with(&|r| r.quote = bytes.to_vec());
        with(&|r| r.csr = bytes.to_vec());
    }
    with(&|r| r.quote = vec![7; 2 << 20]);
    with(&|r| r.csr = vec![0x30; 2 << 20]);
    with(&|r| r.csr.truncate(r.csr.len() - 1));
    with(&|r| r.csr.push(0));
    with(&|r| {
        let end = r.csr.len() - 1;
        r.csr[end] ^= 1;
    });
    let names: Vec<String> = (0..101).map(|n| format!("n{n}")).collect();
    let many = signing_request(&signer, &Subject::default(), &names, &[]).unwrap();
    with(&|r| r.csr.clone_from(&many));
    for request in &bad {
        match activate(&c.server.mesh, Trust::Any, &identity, request).await {
            Err(ActivateError::Refused { code, message }) => {
                assert_ne!(code, 13, "an internal error: {message}");
                assert!(message.len() < 4096, "{} bytes", message.len());
            }
            Err(_) => {}
            Ok(_) => panic!("{} {}", request.marble_type, request.uuid),
        }
    }
    // Its budget is two.
    for _ in 0..2 {
        assert!(
            activate(&c.server.mesh, Trust::Any, &identity, &good)
                .await
                .is_ok()
        );
    }
}

/// Who may not read a secret gets one answer, whether it exists or not.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_learns_whether_a_secret_exists() {
    let c = cluster().await;
    let stranger = self_signed("stranger").unwrap().0;
    let hidden = ["own", "shared", "tls", "token"];
    let ask = async |name: &str, sender: Option<&Identity>| {
        let mut answers = Vec::new();
        for path in [
            format!("/api/v2/secrets?s={name}"),
            format!("/secrets?s={name}"),
        ] {
            answers.push(c.server.send("GET", &path, None, sender).await);
        }
        for (path, body) in [
            (
                "/api/v2/secrets",
                json!({"secrets": {name: {"Key": "AAAAAAAAAAAAAAAAAAAAAA=="}}}),
            ),
            (
                "/api/v2/read-requests",
                json!({"secrets": [name], "reason": "curious"}),
            ),
        ] {
            answers.push(c.server.post(path, body, sender).await);
        }
        answers
            .into_iter()
            .map(|(code, answer)| {
                assert_ne!(code, 200, "{name}: {answer}");
                (code, answer.to_string().replace(name, "NAME"))
            })
            .collect::<Vec<_>>()
    };
    for sender in [None, Some(&stranger), Some(&c.other)] {
        let of_nothing = ask("absent", sender).await;
        for name in hidden {
            assert_eq!(ask(name, sender).await, of_nothing, "{name}");
        }
    }
    // The administrator may use two, and learns nothing of others.
    let of_nothing = ask("absent", Some(&c.admin)).await;
    for name in ["own", "shared", "tls"] {
        assert_eq!(ask(name, Some(&c.admin)).await, of_nothing, "{name}");
    }
}
