//! A double of the Kubernetes API: Secrets of one namespace, with `resourceVersion` as the API server
//! has it (a write with another version is 409, a second POST of a name too, versions of a deleted
//! name do not come back), its checks of names, sizes and tokens, and its answers' forms.
#![allow(dead_code, reason = "each test file uses a part")]

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

pub const NAMESPACE: &str = "shop";
const TOKEN: &str = "the-token-of-the-service-account";
/// A Secret's values together.
const MOST_BYTES: usize = 1 << 20;

#[derive(Default)]
struct Content {
    version: u64,
    secrets: BTreeMap<String, Value>,
    requests: u64,
    lose_every: Option<u64>,
}

type Shared = Arc<Mutex<Content>>;

pub struct Api {
    pub address: String,
    pub token_file: tempfile::NamedTempFile,
    content: Shared,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Api {
    pub async fn start() -> Api {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let content = Shared::default();
        let router = Router::new()
            .route("/api/v1/namespaces/{namespace}/secrets", post(create))
            .route(
                "/api/v1/namespaces/{namespace}/secrets/{name}",
                get(read).put(replace).delete(remove),
            )
            .layer(middleware::from_fn_with_state(content.clone(), guard))
            .with_state(content.clone());
        let mut token_file = tempfile::NamedTempFile::new().unwrap();
        writeln!(token_file, "{TOKEN}").unwrap();
        Api {
            address,
            token_file,
            content,
            task: tokio::spawn(bulla_coordinator::api::serve::plain(listener, router)),
        }
    }

    /// Loses the answer of each `n`th request, which is done nevertheless.
    pub fn lose_every(&self, n: u64) {
        self.content.lock().unwrap().lose_every = Some(n);
    }

    pub fn names(&self) -> Vec<String> {
        self.content
            .lock()
            .unwrap()
            .secrets
            .keys()
            .cloned()
            .collect()
    }

    /// The value of the coordinator's secret.
    pub fn value(&self, name: &str) -> Vec<u8> {
        let content = self.content.lock().unwrap();
        let value = &content.secrets[name]["data"]["sealed"];
        BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap()
    }

    /// Puts another value there, as a dishonest API server can.
    pub fn put(&self, name: &str, value: &[u8]) {
        let mut content = self.content.lock().unwrap();
        content.version += 1;
        let version = content.version.to_string();
        let secret = content.secrets.get_mut(name).unwrap();
        secret["data"]["sealed"] = BASE64_STANDARD.encode(value).into();
        secret["metadata"]["resourceVersion"] = version.into();
    }
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    (code, Json(status)).into_response()
}

async fn guard(State(content): State<Shared>, request: Request, next: Next) -> Response {
    let token = request.headers().get("authorization").cloned();
    if token.is_none_or(|token| token != format!("Bearer {TOKEN}")) {
        return failure(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
    }
    if !request
        .uri()
        .path()
        .starts_with(&format!("/api/v1/namespaces/{NAMESPACE}/"))
    {
        return failure(StatusCode::FORBIDDEN, "Forbidden", "secrets is forbidden");
    }
    let response = next.run(request).await;
    let mut content = content.lock().unwrap();
    content.requests += 1;
    match content.lose_every {
        Some(n) if content.requests.is_multiple_of(n) => failure(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            "request did not complete within the allotted timeout",
        ),
        _ => response,
    }
}

/// What the API server demands of every Secret.
#[allow(clippy::result_large_err)] // a refusal is sent at once
fn check(secret: &Value, name: &str) -> Result<(), Response> {
    let invalid = |message: &str| failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
    let is_name = name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        });
    if !is_name {
        return Err(invalid("metadata.name: a lowercase RFC 1123 subdomain"));
    }
    if secret["kind"] != "Secret" || secret["apiVersion"] != "v1" {
        return Err(failure(
            StatusCode::BAD_REQUEST,
            "BadRequest",
            "not a Secret",
        ));
    }
    let mut bytes = 0;
    for (key, value) in secret["data"].as_object().into_iter().flatten() {
        let decoded = value
            .as_str()
            .and_then(|text| BASE64_STANDARD.decode(text).ok());
        let Some(decoded) = decoded else {
            return Err(failure(
                StatusCode::BAD_REQUEST,
                "BadRequest",
                &format!("data[{key}]: illegal base64 data"),
            ));
        };
        bytes += decoded.len();
    }
    match bytes > MOST_BYTES {
        true => Err(invalid("data: Too long: must have at most 1048576 bytes")),
        false => Ok(()),
    }
}

async fn create(State(content): State<Shared>, body: Bytes) -> Response {
    let mut secret: Value = serde_json::from_slice(&body).unwrap();
    let name = secret["metadata"]["name"].as_str().unwrap().to_owned();
    if let Err(refusal) = check(&secret, &name) {
        return refusal;
    }
    let mut content = content.lock().unwrap();
    if content.secrets.contains_key(&name) {
        let message = format!("secrets \"{name}\" already exists");
        return failure(StatusCode::CONFLICT, "AlreadyExists", &message);
    }
    if !secret["metadata"]["resourceVersion"].is_null() {
        return failure(
            StatusCode::BAD_REQUEST,
            "BadRequest",
            "resourceVersion should not be set on objects to be created",
        );
    }
    content.version += 1;
    secret["metadata"]["resourceVersion"] = content.version.to_string().into();
    content.secrets.insert(name, secret.clone());
    (StatusCode::CREATED, Json(secret)).into_response()
}

fn not_found(name: &str) -> Response {
    let message = format!("secrets \"{name}\" not found");
    failure(StatusCode::NOT_FOUND, "NotFound", &message)
}

async fn read(State(content): State<Shared>, Path((_, name)): Path<(String, String)>) -> Response {
    match content.lock().unwrap().secrets.get(&name) {
        Some(secret) => Json(secret.clone()).into_response(),
        None => not_found(&name),
    }
}

async fn replace(
    State(content): State<Shared>,
    Path((_, name)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    let mut secret: Value = serde_json::from_slice(&body).unwrap();
    if let Err(refusal) = check(&secret, &name) {
        return refusal;
    }
    let mut content = content.lock().unwrap();
    let Some(old) = content.secrets.get(&name) else {
        return not_found(&name);
    };
    let wanted = &secret["metadata"]["resourceVersion"];
    if !wanted.is_null() && *wanted != old["metadata"]["resourceVersion"] {
        return failure(
            StatusCode::CONFLICT,
            "Conflict",
            "the object has been modified; please apply your changes to the latest version",
        );
    }
    content.version += 1;
    secret["metadata"]["resourceVersion"] = content.version.to_string().into();
    content.secrets.insert(name, secret.clone());
    Json(secret).into_response()
}

async fn remove(
    State(content): State<Shared>,
    Path((_, name)): Path<(String, String)>,
) -> Response {
    match content.lock().unwrap().secrets.remove(&name) {
        Some(_) => Json(json!({"kind": "Status", "status": "Success"})).into_response(),
        None => not_found(&name),
    }
}
