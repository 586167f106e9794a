//! A coordinator on free ports, over real TLS, with a platform whose quotes are JSON.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod etcd;
pub mod machine;

use base64::{Engine, prelude::BASE64_STANDARD};
use bulla_coordinator::api::marble::{ActivationReq, ActivationResp};
use bulla_coordinator::api::{client, client_tls, marble, marble_tls, metrics, serve};
use bulla_coordinator::client::marble::{ActivateError, activate, self_signed, signing_request};
use bulla_coordinator::client::{Identity, Rest, Trust};
use bulla_coordinator::core::{Cluster, Coordinator, Options, Owner};
use bulla_coordinator::manifest::Subject;
use bulla_coordinator::quote::{Evidence, QuoteIssuer, QuoteVerifier, with_oe_header};
use bulla_coordinator::seal::InsecureFileKey;
use bulla_coordinator::store::{Anchor, DirectoryPlace, DirectoryStore, Place};
use bulla_coordinator::x509::pem;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;

pub struct TestPlatform;

/// A quote of the test platform: what it says, in the clear, as if its signature had been checked.
pub fn test_quote(report_data: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut quote = json!({
        "mr_enclave": "11".repeat(32), "mr_signer": "22".repeat(32), "product_id": 1,
        "security_version": 2, "debug": false, "tcb": "UpToDate", "emulated": false,
        "platform": "aa", "report_data": hex::encode(report_data),
    });
    change(&mut quote);
    quote.to_string().into_bytes()
}

impl QuoteVerifier for TestPlatform {
    fn verify(&self, quote: &[u8]) -> Result<Evidence, String> {
        let quote: Value = serde_json::from_slice(quote).map_err(|e| e.to_string())?;
        let bytes =
            |name: &str| hex::decode(quote[name].as_str().unwrap_or_default()).unwrap_or_default();
        let mut report_data = [0; 64];
        let given = bytes("report_data");
        report_data[..given.len()].copy_from_slice(&given);
        Ok(Evidence {
            mr_enclave: bytes("mr_enclave").try_into().map_err(|_| "mr_enclave")?,
            mr_signer: bytes("mr_signer").try_into().map_err(|_| "mr_signer")?,
            product_id: quote["product_id"].as_u64().unwrap_or_default() as u16,
            security_version: quote["security_version"].as_u64().unwrap_or_default() as u16,
            debug: quote["debug"].as_bool().unwrap_or_default(),
            report_data,
            tcb_status: quote["tcb"].as_str().unwrap_or_default().to_owned(),
            advisories: Vec::new(),
            cpu_svn: [0; 16],
            pce_svn: 0,
            qe_svn: 0,
            root_hash: [0; 32],
            platform: quote["platform"].as_str().unwrap_or_default().to_owned(),
            emulated: quote["emulated"].as_bool().unwrap_or_default(),
        })
    }
}

impl QuoteIssuer for TestPlatform {
    fn issue(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, String> {
        Ok(test_quote(report_data, |_| {}))
    }
}

pub struct Server {
    pub client: String,
    pub mesh: String,
    pub metrics: String,
    pub app: Arc<Coordinator>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}

pub struct Setup<'a> {
    pub dir: &'a Path,
    pub owner: Option<Owner>,
    pub anchor: Option<Box<dyn Anchor>>,
}

impl Server {
    pub async fn start(dir: &Path) -> Server {
        Server::with(Setup {
            dir,
            owner: None,
            anchor: None,
        })
        .await
    }

    pub async fn with(setup: Setup<'_>) -> Server {
        Server::run(setup, Box::new(TestPlatform), Box::new(TestPlatform)).await
    }

    pub async fn on(
        dir: &Path,
        verifier: Box<dyn QuoteVerifier>,
        issuer: Box<dyn QuoteIssuer>,
    ) -> Server {
        Server::run(
            Setup {
                dir,
                owner: None,
                anchor: None,
            },
            verifier,
            issuer,
        )
        .await
    }

    async fn run(
        setup: Setup<'_>,
        verifier: Box<dyn QuoteVerifier>,
        issuer: Box<dyn QuoteIssuer>,
    ) -> Server {
        let store = DirectoryStore::open(&setup.dir.join("state"), setup.anchor).unwrap();
        let keys = InsecureFileKey::open(&setup.dir.join("insecure-key")).unwrap();
        let options = Options {
            names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            owner: setup.owner,
            namespace: String::new(),
        };
        let app =
            Arc::new(Coordinator::start(options, store, Box::new(keys), verifier, issuer).unwrap());
        let place = DirectoryPlace {
            directory: setup.dir.join("state"),
            anchor: None,
        };
        let cluster = Cluster::new(app.clone(), Some(Box::new(place)));
        Server::serve(app, cluster).await
    }

    /// One of several over a common store, on a machine of its own.
    pub async fn replica(dir: &Path, place: Box<dyn Place>) -> Server {
        let app = Arc::new(open_replica(dir, place.as_ref()).unwrap());
        let cluster = Cluster::new(app.clone(), Some(place));
        Server::serve(app, cluster).await
    }

    async fn serve(app: Arc<Coordinator>, cluster: Arc<Cluster>) -> Server {
        let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (a, b, c) = (bind().await, bind().await, bind().await);
        let address = |l: &TcpListener| l.local_addr().unwrap().to_string();
        Server {
            client: address(&a),
            mesh: address(&b),
            metrics: address(&c),
            tasks: vec![
                tokio::spawn(serve::over_tls(
                    a,
                    client_tls(&app).unwrap(),
                    client::router(cluster.clone()),
                    app.clone(),
                )),
                tokio::spawn(serve::over_tls(
                    b,
                    marble_tls(&app).unwrap(),
                    marble::router(cluster.clone()),
                    app.clone(),
                )),
                tokio::spawn(serve::plain(c, metrics::router(cluster))),
            ],
            app,
        }
    }

    /// Stops it and lets go of the directory, as when the process ends.
    pub async fn stop(mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
        let app = self.app.clone();
        drop(self);
        // Connections that are just ending still hold it.
        while Arc::strong_count(&app) > 1 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        identity: Option<&Identity>,
    ) -> (u16, Value) {
        let rest = Rest {
            address: self.client.clone(),
            trust: Trust::Any,
            identity: identity.cloned(),
            token: None,
        };
        let (code, bytes, _) = rest
            .raw(method, path, body.map(<[u8]>::to_vec))
            .await
            .unwrap();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// What the plain door at `address` answers.
    pub async fn plain(address: &str, path: &str) -> String {
        String::from_utf8_lossy(&Server::plain_bytes(address, path).await).into_owned()
    }

    async fn plain_bytes(address: &str, path: &str) -> Vec<u8> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    }

    /// The body of what the plain door answers.
    pub async fn plain_body(&self, path: &str) -> Vec<u8> {
        let answer = Server::plain_bytes(&self.metrics, path).await;
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
        answer[head.expect("an HTTP answer") + 4..].to_vec()
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, None, None).await
    }

    pub async fn post(&self, path: &str, body: Value, identity: Option<&Identity>) -> (u16, Value) {
        self.send("POST", path, Some(body.to_string().as_bytes()), identity)
            .await
    }

    pub async fn set(&self, manifest: &Value) -> Value {
        let (code, answer) = self
            .post("/api/v2/manifest", manifest_body(manifest), None)
            .await;
        assert_eq!(code, 200, "{answer}");
        answer["data"].clone()
    }

    pub async fn activate(
        &self,
        marble_type: &str,
        uuid: &str,
    ) -> Result<ActivationResp, ActivateError> {
        self.activate_as(marble_type, uuid, &["localhost"], |_| {})
            .await
    }

    pub async fn activate_as(
        &self,
        marble_type: &str,
        uuid: &str,
        dns: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> Result<ActivationResp, ActivateError> {
        let (identity, signer) = self_signed("marble").unwrap();
        let dns: Vec<String> = dns.iter().map(|s| (*s).to_owned()).collect();
        let request = ActivationReq {
            quote: with_oe_header(&test_quote(&Sha256::digest(&identity.certificate), change)),
            csr: signing_request(&signer, &Subject::default(), &dns, &[]).unwrap(),
            marble_type: marble_type.to_owned(),
            uuid: uuid.to_owned(),
        };
        activate(&self.mesh, Trust::Any, &identity, &request).await
    }
}

pub fn manifest_body(manifest: &Value) -> Value {
    json!({"manifest": BASE64_STANDARD.encode(manifest.to_string())})
}

pub fn user_pem(identity: &Identity) -> String {
    pem("CERTIFICATE", &identity.certificate)
}

pub const UUID: &str = "6d3c7d1e-0b0c-4d5f-8f2a-1a2b3c4d5e6f";

/// A manifest with every kind of thing in it.
pub fn manifest(admin: &Identity, other: &Identity) -> Value {
    json!({
        "Packages": {
            "backend": {"SignerID": "22".repeat(32), "ProductID": 1, "SecurityVersion": 1},
            "frontend": {"UniqueID": "11".repeat(32)},
        },
        "Marbles": {
            "backend": {
                "Package": "backend",
                "MaxActivations": 2,
                "Parameters": {
                    "Files": {
                        "/key": "{{ pem .Secrets.cert.Private }}",
                        "/raw": {"Data": "{{ raw .Secrets.shared }}"},
                        "/plain": {"Data": "SGVsbG8ge3sgeCB9fQ==", "Encoding": "base64", "NoTemplates": true},
                    },
                    "Env": {
                        "SHARED": "{{ hex .Secrets.shared }}",
                        "OWN": "{{ hex .Secrets.own }}",
                        "ROOT": "{{ pem .MarbleRun.RootCA.Cert }}",
                    },
                    "Argv": ["backend", "{{ not a template }}"],
                },
                "TLS": ["web"],
            },
            "versioned": {"Package": "backend"},
            "frontend": {"Package": "frontend", "AllowedDNSNames": ["localhost", "*.cluster.local"]},
            "reader": {"Package": "frontend", "Parameters": {"Env": {"TOKEN": "{{ string .Secrets.token }}"}}},
        },
        "Secrets": {
            "shared": {"Type": "symmetric-key", "Size": 128, "Shared": true},
            "own": {"Type": "symmetric-key", "Size": 256},
            "cert": {"Type": "cert-ecdsa", "Size": 256, "Shared": true, "Cert": {"Subject": {"CommonName": "backend"}}},
            "token": {"Type": "plain", "UserDefined": true},
            "upload": {"Type": "symmetric-key", "Size": 128, "UserDefined": true},
            "tls": {"Type": "cert-ed25519", "UserDefined": true},
        },
        "Users": {
            "admin": {"Certificate": user_pem(admin), "Roles": ["secrets", "packages", "updater"]},
            "other": {"Certificate": user_pem(other), "Roles": ["updater"]},
        },
        "Roles": {
            "secrets": {"ResourceType": "Secrets", "ResourceNames": ["token", "upload"], "Actions": ["readsecret", "WriteSecret"]},
            "packages": {"ResourceType": "Packages", "ResourceNames": ["backend"], "Actions": ["UpdateSecurityVersion"]},
            "updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
        },
        "TLS": {"web": {"Incoming": [{"Port": "443"}], "Outgoing": [{"Addr": "db", "Port": "5432"}]}},
        "Config": {"FeatureGates": ["MonotonicCounter", "SignQuoteEndpoint"]},
    })
}

pub fn b64(value: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn open_replica(
    dir: &Path,
    place: &dyn Place,
) -> Result<Coordinator, bulla_coordinator::core::StartError> {
    let keys = InsecureFileKey::open(&dir.join("insecure-key")).unwrap();
    let options = Options {
        names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        owner: None,
        namespace: String::new(),
    };
    Coordinator::over(
        options,
        place.open("root")?,
        Box::new(keys),
        Box::new(TestPlatform),
        Box::new(TestPlatform),
    )
}

/// Whether a replica starts and runs, or why not.
pub fn opens(dir: &Path, place: &dyn Place) -> Result<(), String> {
    open_replica(dir, place)
        .map(|coordinator| assert_eq!(coordinator.status().code, 3))
        .map_err(|error| error.to_string())
}
