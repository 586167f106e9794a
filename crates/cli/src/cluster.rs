//! The clients of a coordinator: every command first makes sure whom it talks to.
//!
//! The first connection only fetches the quote. It must carry the hash of the root certificate and
//! of a fresh nonce, and be of the enclave that `--coordinator-identity` describes; all that
//! follows is sent to exactly that certificate.

use crate::coordinator_args::{
    AuditCommand, CertificateKind, Contact, ManifestCommand, NamespaceCommand, RecoverArguments,
    RevokeArguments, SecretCommand, UpdateCommand,
};
use crate::failure::Failure;
use base64::{Engine, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE};
use bulla_coordinator::client::{Identity, Rest, Trust};
use bulla_coordinator::core::AuditLog;
use bulla_coordinator::manifest::{Package, certificate_der};
use bulla_coordinator::recovery::answer;
use bulla_coordinator::{json as go, parse_sha256, pem_block, policy, quote, sha256};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A coordinator that has been verified.
struct Verified {
    rest: Rest,
    /// PEM blocks, intermediate first.
    chain: String,
    root: Vec<u8>,
    /// What paths begin with: the namespace.
    prefix: String,
}

impl Verified {
    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, Failure> {
        self.rest
            .call(method, &format!("{}{path}", self.prefix), body)
            .await
            .map_err(Failure::new)
    }
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::new)?
        .block_on(future)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

fn identity(contact: &Contact) -> Result<Option<Identity>, Failure> {
    match (&contact.cert, &contact.key) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => read_identity(cert, key).map(Some),
        _ => Err(Failure::new("--cert and --key go together")),
    }
}

fn read_identity(cert: &Path, key: &Path) -> Result<Identity, Failure> {
    let certificate = certificate_der(&read_text(cert)?)
        .map_err(|reason| Failure::new(format!("{}: {reason}", cert.display())))?;
    let key_der = pem_block(&read_text(key)?, "PRIVATE KEY").ok_or_else(|| {
        Failure::new(format!(
            "{}: no PRIVATE KEY block; convert it with `openssl pkcs8 -topk8 -nodes`",
            key.display()
        ))
    })?;
    Ok(Identity {
        certificate,
        key: key_der,
    })
}

async fn verified(contact: &Contact) -> Result<Verified, Failure> {
    let token = match &contact.token_file {
        None => None,
        Some(path) => Some(read_text(path)?.trim().to_owned()),
    };
    let mut rest = Rest {
        address: contact.address.clone(),
        trust: Trust::Any,
        identity: None,
        token: None,
    };
    if let Some(path) = &contact.coordinator_cert {
        let pinned = certificate_der(&read_text(path)?)
            .map_err(|reason| Failure::new(format!("{}: {reason}", path.display())))?;
        rest.trust = Trust::Pinned(pinned);
    }
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(Failure::new)?;
    let path = format!(
        "/quote?nonce={}",
        BASE64_URL_SAFE.encode(nonce).replace('=', "%3D")
    );
    let data = rest.call("GET", &path, None).await.map_err(Failure::new)?;
    let (chain, root) = certificates(&data)?;
    match &rest.trust {
        Trust::Pinned(pinned) if *pinned != root => {
            return Err(Failure::new(
                "the coordinator's root certificate is not that of --coordinator-cert",
            ));
        }
        Trust::Pinned(_) => {}
        Trust::Any if contact.insecure => {
            eprintln!("bulla: INSECURE: the coordinator is not attested");
        }
        Trust::Any => attest(contact, &data, &root, &nonce)?,
    }
    rest.trust = Trust::Pinned(root.clone());
    rest.identity = identity(contact)?;
    rest.token = token;
    let mut coordinator = Verified {
        rest,
        chain,
        root,
        prefix: String::new(),
    };
    if let Some(namespace) = &contact.namespace {
        // A namespace has a root of its own; the coordinator that was just verified names it.
        coordinator.prefix = format!("/namespaces/{}", percent_encoded(namespace));
        let data = get(&coordinator, "/quote").await?;
        (coordinator.chain, coordinator.root) = certificates(&data)?;
    }
    Ok(coordinator)
}

/// The chain that an answer with a quote shows, and the root at its end.
fn certificates(data: &Value) -> Result<(String, Vec<u8>), Failure> {
    let chain = data["cert"].as_str().unwrap_or_default().to_owned();
    let root = chain
        .rfind("-----BEGIN CERTIFICATE-----")
        .and_then(|at| certificate_der(&chain[at..]).ok())
        .ok_or_else(|| Failure::new("the coordinator shows no root certificate"))?;
    Ok((chain, root))
}

/// The quote is of the expected enclave, and of this root and nonce.
fn attest(contact: &Contact, data: &Value, root: &[u8], nonce: &[u8]) -> Result<(), Failure> {
    let Some(path) = &contact.coordinator_identity else {
        return Err(Failure::new(
            "say what the coordinator must be: --coordinator-identity FILE, --coordinator-cert \
             PEM, or --insecure",
        ));
    };
    let package: Package = go::from_slice(&read(path)?)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    let quote_bytes = data["quote"]
        .as_str()
        .and_then(|text| BASE64_STANDARD.decode(text).ok())
        .ok_or_else(|| {
            Failure::new("the coordinator has no quote: it does not run in an enclave")
        })?;
    let quote_bytes = quote::strip_oe_header(&quote_bytes).map_err(Failure::new)?;
    let verifier = crate::coordinator::verifier(contact.collateral.as_deref());
    let evidence = verifier
        .verify(quote_bytes)
        .map_err(|reason| Failure::new(format!("the coordinator's quote: {reason}")))?;
    if evidence.report_data[..32] != sha256(&[root, nonce].concat()) {
        return Err(Failure::new(
            "the coordinator's quote was made for another certificate or nonce: someone is in \
             between, or replays it",
        ));
    }
    quote::matches(&evidence, &package, &BTreeMap::new()).map_err(|reason| {
        Failure::new(format!("the coordinator is not the expected one: {reason}"))
    })
}

pub fn status(contact: &Contact) -> Result<(), Failure> {
    block_on(async {
        let coordinator = verified(contact).await?;
        let data = get(&coordinator, "/status").await?;
        crate::print(&format!(
            "{}: {}\n",
            data["code"],
            data["message"].as_str().unwrap_or_default()
        ))
    })
}

async fn get(coordinator: &Verified, path: &str) -> Result<Value, Failure> {
    coordinator.call("GET", path, None).await
}

async fn post(coordinator: &Verified, path: &str, body: Value) -> Result<Value, Failure> {
    coordinator.call("POST", path, Some(body)).await
}

fn bytes(value: &Value) -> Result<Vec<u8>, Failure> {
    value
        .as_str()
        .and_then(|text| BASE64_STANDARD.decode(text).ok())
        .ok_or_else(|| Failure::new("the coordinator's answer is broken"))
}

pub fn manifest(command: &ManifestCommand) -> Result<(), Failure> {
    block_on(async {
        match command {
            ManifestCommand::Get { contact, signature } => {
                let data = get(&verified(contact).await?, "/manifest").await?;
                if data["manifest"].is_null() && !signature {
                    return Err(Failure::new(
                        "only its readers may see this manifest: show --cert and --key of one; \
                         `bulla manifest verify` needs none",
                    ));
                }
                let text = match data["manifest"].is_null() {
                    true => String::new(),
                    false => String::from_utf8_lossy(&bytes(&data["manifest"])?).into_owned(),
                };
                match signature {
                    true => crate::print_json(&data),
                    false => crate::print(&(text + "\n")),
                }
            }
            ManifestCommand::Set {
                file,
                contact,
                recovery_file,
            } => {
                let body = json!({"manifest": BASE64_STANDARD.encode(manifest_json(file)?)});
                let data = post(&verified(contact).await?, "/manifest", body).await?;
                match recovery_file {
                    _ if data["RecoverySecrets"].is_null() => crate::print(
                        "Manifest set. There are no recovery keys: if the machine is lost, so is the state.\n",
                    ),
                    Some(path) => std::fs::write(path, data.to_string())
                        .map_err(|error| Failure::new(format!("{}: {error}", path.display()))),
                    None => crate::print_json(&data),
                }
            }
            ManifestCommand::Verify { manifest, contact } => {
                let wanted = match parse_sha256(manifest) {
                    Some(hash) => hash.to_vec(),
                    None => sha256(&manifest_json(Path::new(manifest))?).to_vec(),
                };
                let data = get(&verified(contact).await?, "/manifest").await?;
                // Who may not read the manifest is told its fingerprint.
                let found = match data["manifest"].is_null() {
                    true => parse_sha256(data["manifestFingerprint"].as_str().unwrap_or_default()),
                    false => Some(sha256(&bytes(&data["manifest"])?)),
                };
                match found.is_some_and(|found| found == wanted.as_slice()) {
                    true => crate::print("OK\n"),
                    false => Err(Failure::new("the coordinator works by another manifest")),
                }
            }
            ManifestCommand::Update { command } => update(command).await,
            ManifestCommand::Log { contact } => {
                let data = get(&verified(contact).await?, "/update").await?;
                let lines = data["updateLog"].as_array().cloned().unwrap_or_default();
                let text: String = lines
                    .iter()
                    .filter_map(Value::as_str)
                    .map(|line| format!("{line}\n"))
                    .collect();
                crate::print(&text)
            }
            ManifestCommand::Sign {
                file,
                cert,
                key,
                namespace,
            } => {
                let signer = read_identity(cert, key)?;
                let signed = policy::sign(&manifest_json(file)?, &signer, namespace)
                    .map_err(Failure::new)?;
                crate::print(&(String::from_utf8_lossy(&signed).into_owned() + "\n"))
            }
            ManifestCommand::Encrypt { file, contact } => {
                let plain = manifest_json(file)?;
                let data = get(&verified(contact).await?, "/policy-key").await?;
                let envelope =
                    policy::encrypt(&plain, &bytes(&data["publicKey"])?).map_err(Failure::new)?;
                crate::print(&(envelope + "\n"))
            }
        }
    })
}

/// A manifest's bytes, once they are known to be one, or an envelope around one.
fn manifest_json(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = read(path)?;
    if bytes.trim_ascii().starts_with(b"eyJ") {
        // An encrypted one: only the coordinator can tell.
        return Ok(bytes.trim_ascii().to_vec());
    }
    go::Json::parse(&bytes)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Ok(bytes)
}

async fn update(command: &UpdateCommand) -> Result<(), Failure> {
    let (contact, method, path, file) = match command {
        UpdateCommand::Apply { file, contact } => (contact, "POST", "/update", Some(file)),
        UpdateCommand::Acknowledge { file, contact } => {
            (contact, "POST", "/update-manifest", Some(file))
        }
        UpdateCommand::Cancel { contact } => (contact, "POST", "/update-cancel", None),
        UpdateCommand::Get { contact } => (contact, "GET", "/update-manifest", None),
    };
    let body = match file {
        Some(file) => Some(json!({"manifest": BASE64_STANDARD.encode(manifest_json(file)?)})),
        None => (method == "POST").then(|| json!({})),
    };
    let coordinator = verified(contact).await?;
    crate::print_json(&coordinator.call(method, path, body).await?)
}

pub fn certificate(kind: CertificateKind, contact: &Contact) -> Result<(), Failure> {
    block_on(async {
        let coordinator = verified(contact).await?;
        let root = bulla_coordinator::x509::pem("CERTIFICATE", &coordinator.root);
        let crl = match kind {
            CertificateKind::Crl => get(&coordinator, "/crl").await?["crl"].clone(),
            _ => Value::Null,
        };
        crate::print(match kind {
            CertificateKind::Crl => crl.as_str().unwrap_or_default(),
            CertificateKind::Root => &root,
            CertificateKind::Intermediate => {
                coordinator.chain.strip_suffix(&root).unwrap_or_default()
            }
            CertificateKind::Chain => &coordinator.chain,
        })
    })
}

pub fn secret(command: &SecretCommand) -> Result<(), Failure> {
    block_on(async {
        match command {
            SecretCommand::Get { contact, names } => {
                let query: Vec<String> = names
                    .iter()
                    .map(|name| format!("s={}", percent_encoded(name)))
                    .collect();
                let path = format!("/secrets?{}", query.join("&"));
                let data = get(&verified(contact).await?, &path).await?;
                crate::print_json(&data["secrets"])
            }
            SecretCommand::Request {
                contact,
                names,
                reason,
            } => {
                let body = json!({"secrets": names, "reason": reason});
                crate::print_json(&post(&verified(contact).await?, "/read-requests", body).await?)
            }
            SecretCommand::Requests { contact } => {
                crate::print_json(&get(&verified(contact).await?, "/read-requests").await?)
            }
            SecretCommand::Agree { id, contact } => {
                let (body, path) = (json!({"id": id}), "/read-requests/agree");
                crate::print_json(&post(&verified(contact).await?, path, body).await?)
            }
            SecretCommand::Set { file, contact } => {
                let secrets: Value = serde_json::from_slice(&read(file)?)
                    .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
                let body = json!({"secrets": secrets});
                post(&verified(contact).await?, "/secrets", body).await?;
                crate::print("Secrets set.\n")
            }
        }
    })
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

pub fn recover(arguments: &RecoverArguments) -> Result<(), Failure> {
    let raw = read(&arguments.secret)?;
    let encrypted = BASE64_STANDARD
        .decode(raw.trim_ascii())
        .unwrap_or_else(|_| raw.clone());
    let key = pem_block(&read_text(&arguments.recovery_key)?, "PRIVATE KEY")
        .ok_or_else(|| Failure::new("the recovery key has no PRIVATE KEY block"))?;
    block_on(async {
        let coordinator = verified(&arguments.contact).await?;
        let public = get(&coordinator, "/recover/public-key").await?;
        let public = bytes(&public["ephemeralPublicKey"])?;
        let (secret, signature) = answer(&key, &encrypted, &public).map_err(Failure::new)?;
        let body = json!({
            "recoverySecret": BASE64_STANDARD.encode(secret),
            "recoverySecretSignature": BASE64_STANDARD.encode(signature),
        });
        let data = post(&coordinator, "/recover", body).await?;
        crate::print(&format!(
            "{}\n",
            data["message"].as_str().unwrap_or_default()
        ))
    })
}

pub fn revoke(arguments: &RevokeArguments) -> Result<(), Failure> {
    block_on(async {
        let body = json!({
            "marbles": arguments.marbles,
            "packages": arguments.packages,
            "enclaves": arguments.enclaves,
            "platforms": arguments.platforms,
        });
        let data = post(&verified(&arguments.contact).await?, "/revoked", body).await?;
        crate::print_json(&data)
    })
}

pub fn namespace(command: &NamespaceCommand) -> Result<(), Failure> {
    block_on(async {
        match command {
            NamespaceCommand::Create {
                name,
                contact,
                owner,
            } => {
                let body = json!({"name": name, "owner": read_text(owner)?});
                post(&verified(contact).await?, "/namespaces", body).await?;
                crate::print(&format!("Namespace {name} made.\n"))
            }
            NamespaceCommand::Delete { name, contact } => {
                let path = format!("/namespaces/{name}");
                verified(contact).await?.call("DELETE", &path, None).await?;
                crate::print(&format!("Namespace {name} deleted.\n"))
            }
            NamespaceCommand::List { contact } => {
                crate::print_json(&get(&verified(contact).await?, "/namespaces").await?)
            }
        }
    })
}

fn earlier_entries(path: Option<&Path>) -> Result<Vec<String>, Failure> {
    match path {
        None => Ok(Vec::new()),
        Some(path) => Ok(entries(&read_log(path)?)),
    }
}

fn read_log(path: &Path) -> Result<Value, Failure> {
    serde_json::from_slice(&read(path)?)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// Chain, signature, and growth since an earlier copy.
fn check_log(data: &Value, root: &[u8], earlier: &[String]) -> Result<(), Failure> {
    let log = AuditLog {
        entries: entries(data),
        signature: bytes(&data["signature"])?,
    };
    log.verify(root, earlier).map_err(Failure::new)?;
    crate::print(&format!(
        "OK: {} entries, {} of them in the earlier copy\n",
        log.entries.len(),
        earlier.len()
    ))
}

pub fn audit(command: &AuditCommand) -> Result<(), Failure> {
    block_on(async {
        match command {
            AuditCommand::Get { contact } => {
                crate::print_json(&get(&verified(contact).await?, "/audit").await?)
            }
            AuditCommand::Verify { contact, earlier } => {
                let earlier = earlier_entries(earlier.as_deref())?;
                let coordinator = verified(contact).await?;
                let data = get(&coordinator, "/audit").await?;
                check_log(&data, &coordinator.root, &earlier)
            }
            AuditCommand::VerifyCopy {
                file,
                root,
                earlier,
            } => {
                let root = certificate_der(&read_text(root)?)
                    .map_err(|reason| Failure::new(format!("{}: {reason}", root.display())))?;
                check_log(
                    &read_log(file)?,
                    &root,
                    &earlier_entries(earlier.as_deref())?,
                )
            }
        }
    })
}

fn entries(log: &Value) -> Vec<String> {
    let entries = log["entries"].as_array().cloned().unwrap_or_default();
    entries
        .iter()
        .filter_map(|entry| entry.as_str().map(str::to_owned))
        .collect()
}
