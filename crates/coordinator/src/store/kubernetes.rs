//! Objects in the Kubernetes API: Secrets of one namespace.
//!
//! Four requests on one kind of resource need no client library. `metadata.resourceVersion` makes
//! replacing conditional: the API server compares and swaps in its own etcd. What is kept is sealed
//! already; Secrets are used because clusters guard them best against being changed and deleted.

use super::StoreError;
use super::http::{ClientTls, agent, short};
use super::objects::{Object, Objects};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// A Secret of a MiB, in base64, with its metadata.
const MOST_ANSWER: u64 = 8 << 20;
/// What may be repeated is: API servers restart, and say when they are busy.
const ATTEMPTS: u32 = 5;
/// What stands for an answer that the API would not give. Never taken for "there is none", which would
/// begin a new state.
const NOT_KUBERNETES: &str = "it does not answer as the Kubernetes API does";
/// The key of a Secret's only value.
const VALUE: &str = "sealed";
/// Where a pod finds who it is.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where the API is, and who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubernetesOptions {
    /// `https://HOST:PORT`. None: that of the cluster that this pod runs in.
    pub server: Option<String>,
    /// None: that of this pod.
    pub namespace: Option<String>,
    /// A file with a bearer token, read for each request: tokens are exchanged while they are in
    /// use. None: that of this pod, if it has one.
    pub token: Option<PathBuf>,
    pub tls: ClientTls,
}

impl KubernetesOptions {
    /// With what a pod of a cluster finds by itself.
    pub fn in_pod(&self) -> Result<KubernetesOptions, StoreError> {
        let account = Path::new(ACCOUNT);
        let present = |name: &str| Some(account.join(name)).filter(|path| path.exists());
        let unknown = |what: &str| StoreError::Remote(what.to_owned());
        let mut found = self.clone();
        if found.server.is_none() {
            found.server = Some(in_cluster().ok_or_else(|| {
                unknown("this is no pod of a cluster: name the API with --kubernetes-api")
            })?);
            // They are for that server alone.
            found.token = found.token.or_else(|| present("token"));
            found.tls.authority = found.tls.authority.or_else(|| present("ca.crt"));
        }
        if found.namespace.is_none() {
            let text = std::fs::read_to_string(account.join("namespace")).map_err(|_| {
                unknown("this pod's namespace is not known: name it with --kubernetes-namespace")
            })?;
            found.namespace = Some(text.trim().to_owned());
        }
        Ok(found)
    }
}

pub struct Kubernetes {
    agent: ureq::Agent,
    /// Up to and with `/secrets`.
    base: String,
    token: Option<PathBuf>,
}

impl Kubernetes {
    pub fn new(options: &KubernetesOptions) -> Result<Kubernetes, StoreError> {
        let options = options.in_pod()?;
        let server = options.server.unwrap_or_default();
        let server = server.trim_end_matches('/');
        let namespace = options.namespace.unwrap_or_default();
        Ok(Kubernetes {
            agent: agent(&options.tls, PATIENCE)?,
            base: format!("{server}/api/v1/namespaces/{namespace}/secrets"),
            token: options.token,
        })
    }

    /// Sends a request once.
    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, Failure> {
        let url = format!("{}{path}", self.base);
        let broken = |error: ureq::Error| Failure::Connection(format!("{url}: {error}"));
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(&url)
            .header("accept", "application/json")
            .header("content-type", "application/json");
        if let Some(path) = &self.token {
            let token = std::fs::read_to_string(path)
                .map_err(|error| Failure::Refused(format!("{}: {error}", path.display())))?;
            request = request.header("authorization", format!("Bearer {}", token.trim()));
        }
        let malformed = |error: ureq::http::Error| Failure::Refused(format!("{url}: {error}"));
        let sent = match body {
            Some(body) => self
                .agent
                .run(request.body(body.to_string()).map_err(malformed)?),
            None => self.agent.run(request.body(()).map_err(malformed)?),
        };
        let mut response = sent.map_err(broken)?;
        let status = response.status().as_u16();
        let bytes = response
            .body_mut()
            .with_config()
            .limit(MOST_ANSWER)
            .read_to_vec()
            .map_err(broken)?;
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let said = short(body["message"].as_str().unwrap_or("it does not say why"));
        let is_status = body["kind"] == "Status";
        let is_there = is_status || body["metadata"]["resourceVersion"].is_string();
        match status {
            200..=202 if is_there => Ok(Answer::Object(body)),
            // What became of the request nobody knows.
            200..=299 => Err(Failure::Connection(format!("{url}: {NOT_KUBERNETES}"))),
            404 if is_status => Ok(Answer::NotFound),
            // Another server's, or a proxy's: it does not mean that the state is gone.
            404 => Err(Failure::Refused(format!("{url}: 404: {NOT_KUBERNETES}"))),
            409 if is_status => Ok(Answer::Conflict),
            // It was not even looked at.
            429 => Err(Failure::Busy(format!("{url}: {said}"))),
            500.. => Err(Failure::Connection(format!("{url}: {status}: {said}"))),
            _ => Err(Failure::Refused(format!("{url}: {status}: {said}"))),
        }
    }

    /// Sends what may be repeated, until there is an answer.
    fn repeat(&self, method: &str, path: &str) -> Result<Answer, StoreError> {
        let mut attempt = 1;
        loop {
            match self.send(method, path, None) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Refused(reason)) => return Err(StoreError::Remote(reason)),
                Err(Failure::Busy(reason) | Failure::Connection(reason)) => {
                    if attempt == ATTEMPTS {
                        return Err(StoreError::Remote(reason));
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(100) * 2u32.pow(attempt));
            attempt += 1;
        }
    }

    fn malformed(&self, what: &str) -> StoreError {
        StoreError::Remote(format!("{}: a Secret has no {what}", self.base))
    }

    fn version(&self, secret: &Value) -> Result<String, StoreError> {
        let version = secret["metadata"]["resourceVersion"].as_str();
        Ok(version
            .ok_or_else(|| self.malformed("resourceVersion"))?
            .to_owned())
    }
}

/// The address that every pod is told.
fn in_cluster() -> Option<String> {
    let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?;
    Some(match host.contains(':') {
        true => format!("https://[{host}]:{port}"),
        false => format!("https://{host}:{port}"),
    })
}

enum Answer {
    Object(Value),
    NotFound,
    Conflict,
}

enum Failure {
    /// Nobody knows what became of the request.
    Connection(String),
    /// It was not done, and may be later.
    Busy(String),
    /// It was not done, and never will be.
    Refused(String),
}

impl Objects for Kubernetes {
    fn place(&self) -> String {
        self.base.clone()
    }

    fn get(&self, name: &str) -> Result<Option<Object>, StoreError> {
        match self.repeat("GET", &format!("/{name}"))? {
            Answer::NotFound => Ok(None),
            Answer::Conflict => Err(StoreError::Conflict),
            Answer::Object(secret) => {
                let value = secret["data"][VALUE].as_str();
                let value = value.ok_or_else(|| self.malformed("value of ours"))?;
                Ok(Some(Object {
                    bytes: BASE64
                        .decode(value)
                        .map_err(|_| self.malformed("value in base64"))?,
                    version: self.version(&secret)?,
                }))
            }
        }
    }

    fn put(
        &self,
        name: &str,
        bytes: &[u8],
        version: Option<&str>,
    ) -> Result<Option<String>, StoreError> {
        let mut secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "bulla"}},
            "data": {VALUE: BASE64.encode(bytes)},
        });
        let (method, path) = match version {
            None => ("POST", String::new()),
            Some(version) => {
                secret["metadata"]["resourceVersion"] = version.into();
                ("PUT", format!("/{name}"))
            }
        };
        let mut attempt = 1;
        loop {
            match self.send(method, &path, Some(&secret)) {
                Ok(Answer::Object(secret)) => return self.version(&secret).map(Some),
                // What is gone cannot be replaced; a namespace that is not there says so here.
                Ok(Answer::NotFound) if version.is_none() => {
                    return Err(StoreError::Remote(format!(
                        "{}: there is no such namespace",
                        self.base
                    )));
                }
                Ok(Answer::NotFound | Answer::Conflict) => return Ok(None),
                Err(Failure::Refused(reason)) => return Err(StoreError::Remote(reason)),
                Err(Failure::Connection(_)) => return Err(StoreError::Conflict),
                Err(Failure::Busy(reason)) if attempt == ATTEMPTS => {
                    return Err(StoreError::Remote(reason));
                }
                Err(Failure::Busy(_)) => {}
            }
            std::thread::sleep(Duration::from_millis(100) * 2u32.pow(attempt));
            attempt += 1;
        }
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.repeat("DELETE", &format!("/{name}")).map(|_| ())
    }
}
