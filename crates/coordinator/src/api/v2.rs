//! Version 2 of the client API.

use super::client::{Limited, MANIFEST_BYTES, RECOVERY_BYTES, SMALL_BYTES, Sender};
use super::envelope::{V2, done, success};
use super::openapi::{
    self, Route, body, bytes, list, map, null, nullable, number, object, route, tells, text,
    with_optional,
};
use crate::core::{Coordinator, Error, ReadOutcome, Revoked, UpdateOutcome};
use crate::json::{self, Bytes, Decode, decode_struct};
use crate::secrets::UserSecret;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use axum::routing::{get, post};
use base64::Engine;
use base64::prelude::{BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

type App = State<Arc<Coordinator>>;
type Answer = Result<Response, V2>;

pub fn routes() -> Router<Arc<Coordinator>> {
    openapi::router(table())
}

/// What a finished update tells.
fn outcome_schema() -> Value {
    with_optional(
        [
            ("missingUsers", list(text())),
            ("missingAcknowledgments", number()),
        ],
        [("message", text()), ("recoverySecrets", map(bytes()))],
    )
}

fn read_schema() -> Value {
    object([
        ("id", text()),
        ("missingAgreements", number()),
        ("missingUsers", list(text())),
    ])
}

fn secret_schema() -> Value {
    object([
        ("Type", text()),
        ("Size", number()),
        ("Shared", json!({"type": "boolean"})),
        ("UserDefined", json!({"type": "boolean"})),
        ("Cert", nullable(bytes())),
        ("ValidFor", number()),
        ("Private", nullable(bytes())),
        ("Public", nullable(bytes())),
    ])
}

fn revoked_schema() -> Value {
    object([
        ("marbles", list(text())),
        ("packages", list(text())),
        ("platforms", list(text())),
        ("enclaves", list(text())),
    ])
}

/// Every path with its handlers and its part of the OpenAPI document.
pub fn table() -> Vec<Route> {
    let manifest_body = || body([("manifest", bytes())]);
    vec![
        route("/status", get(status)).get(tells(
            "What the coordinator is ready for",
            object([("code", number()), ("message", text())]),
        )),
        route("/quote", get(quote)).get(
            tells(
                "Certificates, and a quote over SHA-256(root, nonce)",
                object([("cert", text()), ("quote", nullable(bytes()))]),
            )
            .asks("nonce", false, text()),
        ),
        route("/manifest", get(manifest).post(set_manifest))
            .get(tells(
                "The manifest in force, as it was uploaded",
                object([
                    ("manifestSignatureRootECDSA", bytes()),
                    ("manifestFingerprint", text()),
                    ("manifest", nullable(bytes())),
                ]),
            ))
            .post(
                tells(
                    "Set the first manifest, or a new one in recovery",
                    with_optional([], [("RecoverySecrets", map(bytes()))]),
                )
                .takes(manifest_body()),
            ),
        route("/update", get(update_log).post(update))
            .get(tells(
                "The update log, a line of JSON each",
                object([("updateLog", list(text()))]),
            ))
            .post(
                tells(
                    "Raise package versions, or start an update",
                    outcome_schema(),
                )
                .takes(manifest_body())
                .certified(),
            ),
        route("/update-manifest", get(pending).post(acknowledge))
            .get(tells(
                "The pending update",
                object([
                    ("manifest", bytes()),
                    ("message", text()),
                    ("missingUsers", list(text())),
                ]),
            ))
            .post(
                tells("Agree to the pending update", outcome_schema())
                    .takes(manifest_body())
                    .certified(),
            ),
        route("/update-cancel", post(cancel))
            .post(tells("Drop the pending update", object([("message", text())])).certified()),
        route("/secrets", get(secrets).post(set_secrets))
            .get(
                tells("Read secrets", object([("secrets", map(secret_schema()))]))
                    .asks("s", true, list(text()))
                    .certified(),
            )
            .post(
                tells("Set user-defined secrets", null())
                    .takes(body([(
                        "secrets",
                        map(body([
                            ("Cert", bytes()),
                            ("Private", bytes()),
                            ("Key", bytes()),
                        ])),
                    )]))
                    .certified(),
            ),
        route("/recover", post(recover)).post(
            tells(
                "Give a recovery secret, with its signature by the recovery key",
                object([("remaining", number()), ("message", text())]),
            )
            .takes(body([
                ("recoverySecret", bytes()),
                ("recoverySecretSignature", bytes()),
            ])),
        ),
        route("/recover/public-key", get(recovery_key)).get(tells(
            "The key that recovery secrets are encrypted with on their way",
            object([("algorithm", text()), ("ephemeralPublicKey", bytes())]),
        )),
        route("/sign-quote", post(sign_quote)).post(
            tells(
                "Verify a quote and sign the verdict",
                object([("tcbStatus", text()), ("verificationSignature", bytes())]),
            )
            .takes(body([("sgxQuote", bytes())])),
        ),
        route("/monotonic-counter", post(counter)).post(
            tells("Raise a marble's counter", object([("value", number())]))
                .takes(body([("name", text()), ("value", number())]))
                .certified(),
        ),
        // Ours.
        route("/audit", get(audit)).get(tells(
            "The audit log with the signature of its head",
            object([("entries", list(text())), ("signature", bytes())]),
        )),
        route("/revoked", get(revoked).post(revoke))
            .get(tells("What is revoked", revoked_schema()))
            .post(
                tells(
                    "Revoke marbles, packages, their versions and platforms",
                    revoked_schema(),
                )
                .takes(body([
                    ("marbles", list(text())),
                    ("packages", list(text())),
                    ("platforms", list(text())),
                ]))
                .certified(),
            ),
        route("/replica-key", post(replica_key)).post(
            tells("The data key, for a replica", object([("key", bytes())]))
                .takes(body([("quote", bytes())]))
                .certified(),
        ),
        route("/crl", get(revocation_list)).get(tells(
            "The revocation lists of the marble root, of earlier ones whose certificates have not \
             expired and of the next one, PEM; load them anew each minute",
            object([("crl", text())]),
        )),
        route("/policy-key", get(policy_key)).get(tells(
            "The key that policies are encrypted to",
            object([("jwk", json!({"type": "object"})), ("publicKey", bytes())]),
        )),
        route("/read-requests", get(read_requests).post(request_read))
            .get(
                tells(
                    "Requests to read secrets that the sender made or may agree to",
                    list(object([
                        ("user", text()),
                        ("secrets", list(text())),
                        ("reason", text()),
                        ("id", text()),
                        ("missingAgreements", number()),
                        ("missingUsers", list(text())),
                    ])),
                )
                .certified(),
            )
            .post(
                tells("Ask boards for leave to read secrets", read_schema())
                    .takes(body([("secrets", list(text())), ("reason", text())]))
                    .certified(),
            ),
        route("/read-requests/agree", post(agree_to_read)).post(
            tells("Agree to somebody's request", read_schema())
                .takes(body([("id", text())]))
                .certified(),
        ),
        route("/openapi.json", get(openapi_document)),
    ]
}

async fn openapi_document() -> Response {
    use axum::response::IntoResponse;
    axum::Json(openapi::document(&table(), &super::namespaces::table())).into_response()
}

fn parse<T: Decode + Default>(body: Result<Vec<u8>, Error>) -> Result<T, Error> {
    json::from_slice(&body?).map_err(|error| Error::BadRequest(error.to_string()))
}

/// The values of a query parameter, percent-decoded.
fn parameters(query: Option<&str>, name: &str) -> Result<Vec<String>, Error> {
    let bad = || Error::BadRequest("invalid query".to_owned());
    let mut values = Vec::new();
    for pair in query.unwrap_or_default().split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key != name {
            continue;
        }
        let mut bytes = Vec::new();
        let mut rest = value.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'+' => b' ',
                b'%' => {
                    let digits = [rest.next().ok_or_else(bad)?, rest.next().ok_or_else(bad)?];
                    hex::decode(digits).map_err(|_| bad())?[0]
                }
                other => other,
            });
        }
        values.push(String::from_utf8(bytes).map_err(|_| bad())?);
    }
    Ok(values)
}

/// The secrets that a query names.
pub fn secret_names(query: Option<&str>) -> Result<Vec<String>, Error> {
    let names = parameters(query, "s")?;
    match names.is_empty() || names.iter().any(String::is_empty) {
        true => Err(Error::BadRequest(
            "invalid query: name secrets with s=NAME".to_owned(),
        )),
        false => Ok(names),
    }
}

async fn status(State(app): App) -> Response {
    #[derive(Serialize)]
    struct Data {
        code: u8,
        message: &'static str,
    }
    let status = app.status();
    success(Data {
        code: status.code,
        message: status.message,
    })
}

async fn quote(State(app): App, RawQuery(query): RawQuery) -> Answer {
    #[derive(Serialize)]
    struct Data {
        cert: String,
        quote: Option<Bytes>,
    }
    let nonce = parameters(query.as_deref(), "nonce")?
        .pop()
        .unwrap_or_default();
    let nonce = BASE64_URL_SAFE
        .decode(&nonce)
        .or_else(|_| BASE64_URL_SAFE_NO_PAD.decode(&nonce))
        .map_err(|_| Error::BadRequest("nonce is not base64url".to_owned()))?;
    let view = app.quote(&nonce);
    Ok(success(Data {
        cert: view.certificates,
        quote: view.quote.map(Bytes),
    }))
}

async fn manifest(State(app): App, sender: Sender) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Data {
        #[serde(rename = "manifestSignatureRootECDSA")]
        signature: Bytes,
        manifest_fingerprint: String,
        manifest: Option<Bytes>,
    }
    let view = app
        .manifest(sender.credentials())?
        .ok_or_else(|| Error::Refused("no manifest set".to_owned()))?;
    Ok(success(Data {
        signature: Bytes(view.signature),
        manifest_fingerprint: view.fingerprint,
        manifest: view.manifest.map(Bytes),
    }))
}

#[derive(Default)]
struct ManifestBody {
    manifest: Bytes,
}
decode_struct!(ManifestBody { "manifest" => manifest });

fn encoded(secrets: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Bytes> {
    secrets.into_iter().map(|(k, v)| (k, Bytes(v))).collect()
}

async fn set_manifest(
    State(app): App,
    sender: Sender,
    Limited(body): Limited<MANIFEST_BYTES>,
) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Data {
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        recovery_secrets: BTreeMap<String, Bytes>,
    }
    let body: ManifestBody = parse(body)?;
    let secrets = app
        .set_manifest(&body.manifest.0, sender.credentials())
        .await?;
    Ok(success(Data {
        recovery_secrets: encoded(secrets),
    }))
}

async fn update_log(State(app): App, sender: Sender) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Data {
        update_log: Vec<String>,
    }
    Ok(success(Data {
        update_log: app.update_log(sender.credentials())?,
    }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutcomeData {
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'static str,
    missing_users: Vec<String>,
    missing_acknowledgments: usize,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    recovery_secrets: BTreeMap<String, Bytes>,
}

fn outcome(message: &'static str, outcome: UpdateOutcome) -> Response {
    success(OutcomeData {
        message,
        missing_users: outcome.missing_users,
        missing_acknowledgments: outcome.missing_acknowledgments,
        recovery_secrets: encoded(outcome.recovery_secrets),
    })
}

async fn update(State(app): App, sender: Sender, Limited(body): Limited<MANIFEST_BYTES>) -> Answer {
    let body: ManifestBody = parse(body)?;
    let result = app
        .update_manifest(&body.manifest.0, sender.credentials())
        .await?;
    Ok(outcome("", result))
}

async fn pending(State(app): App, sender: Sender) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Data {
        manifest: Bytes,
        message: &'static str,
        missing_users: Vec<String>,
    }
    let (manifest, outcome) = app.pending_update(sender.credentials())?;
    Ok(success(Data {
        manifest: Bytes(manifest),
        message: "The following users have not yet acknowledged the update",
        missing_users: outcome.missing_users,
    }))
}

async fn acknowledge(
    State(app): App,
    sender: Sender,
    Limited(body): Limited<MANIFEST_BYTES>,
) -> Answer {
    let body: ManifestBody = parse(body)?;
    let result = app
        .acknowledge_update(&body.manifest.0, sender.credentials())
        .await?;
    let message = match result.missing_acknowledgments {
        0 => "All users have acknowledged the update manifest. Update successfully applied",
        _ => "Acknowledgement accepted. Further users must acknowledge the update",
    };
    Ok(outcome(message, result))
}

#[derive(Serialize)]
struct MessageData {
    message: String,
}

async fn cancel(State(app): App, sender: Sender) -> Answer {
    app.cancel_update(sender.credentials()).await?;
    Ok(success(MessageData {
        message: "Update successfully cancelled".to_owned(),
    }))
}

async fn secrets(State(app): App, sender: Sender, RawQuery(query): RawQuery) -> Answer {
    #[derive(Serialize)]
    struct Data<T> {
        secrets: T,
    }
    let names = secret_names(query.as_deref())?;
    Ok(success(Data {
        secrets: app.read_secrets(&names, sender.credentials()).await?,
    }))
}

async fn set_secrets(
    State(app): App,
    sender: Sender,
    Limited(body): Limited<SMALL_BYTES>,
) -> Answer {
    #[derive(Default)]
    struct Body {
        secrets: BTreeMap<String, UserSecret>,
    }
    decode_struct!(Body { "secrets" => secrets });
    let body: Body = parse(body)?;
    app.write_secrets(&body.secrets, sender.credentials())
        .await?;
    Ok(done())
}

async fn recover(State(app): App, Limited(body): Limited<RECOVERY_BYTES>) -> Answer {
    #[derive(Default)]
    struct Body {
        secret: Bytes,
        signature: Bytes,
    }
    decode_struct!(Body {
        "recoverySecret" => secret, "recoverySecretSignature" => signature,
    });
    #[derive(Serialize)]
    struct Data {
        remaining: usize,
        message: String,
    }
    let body: Body = parse(body)?;
    let recovered = app.recover(&body.secret.0, &body.signature.0).await?;
    Ok(success(Data {
        remaining: recovered.remaining,
        message: match recovered.remaining {
            0 => "Recovery successful.".to_owned(),
            remaining => format!(
                "Secret was processed successfully. Upload the next secret. Remaining secrets: \
                 {remaining}"
            ),
        },
    }))
}

async fn recovery_key(State(app): App) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Data {
        algorithm: &'static str,
        ephemeral_public_key: Bytes,
    }
    Ok(success(Data {
        algorithm: "RSA",
        ephemeral_public_key: Bytes(app.recovery_public_key()?),
    }))
}

async fn sign_quote(State(app): App, Limited(body): Limited<SMALL_BYTES>) -> Answer {
    #[derive(Default)]
    struct Body {
        quote: Bytes,
    }
    decode_struct!(Body { "sgxQuote" => quote });
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Data {
        tcb_status: String,
        verification_signature: Bytes,
    }
    let body: Body = parse(body)?;
    let (tcb_status, signature) = app.sign_quote(&body.quote.0).await?;
    Ok(success(Data {
        tcb_status,
        verification_signature: Bytes(signature),
    }))
}

async fn counter(State(app): App, sender: Sender, Limited(body): Limited<SMALL_BYTES>) -> Answer {
    #[derive(Default)]
    struct Body {
        name: String,
        value: u64,
    }
    decode_struct!(Body { "name" => name, "value" => value });
    #[derive(Serialize)]
    struct Data {
        value: u64,
    }
    let body: Body = parse(body)?;
    let value = app
        .set_counter(&body.name, body.value, sender.credentials())
        .await?;
    Ok(success(Data { value }))
}

async fn revoked(State(app): App) -> Answer {
    Ok(success(app.revoked()?))
}

async fn revoke(State(app): App, sender: Sender, Limited(body): Limited<SMALL_BYTES>) -> Answer {
    #[derive(Default)]
    struct Body {
        marbles: Vec<String>,
        packages: Vec<String>,
        platforms: Vec<String>,
        enclaves: Vec<String>,
    }
    decode_struct!(Body {
        "marbles" => marbles, "packages" => packages, "platforms" => platforms,
        "enclaves" => enclaves,
    });
    let body: Body = parse(body)?;
    let what = Revoked {
        marbles: body.marbles.into_iter().collect(),
        packages: body.packages.into_iter().collect(),
        platforms: body.platforms.into_iter().collect(),
        enclaves: body.enclaves.into_iter().collect(),
    };
    Ok(success(app.revoke(&what, sender.credentials()).await?))
}

async fn audit(State(app): App, sender: Sender) -> Answer {
    #[derive(Serialize)]
    struct Data {
        entries: Vec<String>,
        signature: Bytes,
    }
    let log = app.audit(sender.credentials())?;
    Ok(success(Data {
        entries: log.entries,
        signature: Bytes(log.signature),
    }))
}

async fn policy_key(State(app): App) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Data {
        jwk: serde_json::Value,
        public_key: Bytes,
    }
    let key = app.policy_key()?;
    Ok(success(Data {
        jwk: key.jwk(),
        public_key: Bytes(key.public()),
    }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReadData {
    id: String,
    missing_agreements: usize,
    missing_users: Vec<String>,
}

impl From<ReadOutcome> for ReadData {
    fn from(outcome: ReadOutcome) -> ReadData {
        ReadData {
            id: outcome.id,
            missing_agreements: outcome.missing_agreements,
            missing_users: outcome.missing_users,
        }
    }
}

async fn request_read(
    State(app): App,
    sender: Sender,
    Limited(body): Limited<SMALL_BYTES>,
) -> Answer {
    #[derive(Default)]
    struct Body {
        secrets: Vec<String>,
        reason: String,
    }
    decode_struct!(Body { "secrets" => secrets, "reason" => reason });
    let body: Body = parse(body)?;
    let outcome = app
        .request_read(&body.secrets, &body.reason, sender.credentials())
        .await?;
    Ok(success(ReadData::from(outcome)))
}

async fn agree_to_read(
    State(app): App,
    sender: Sender,
    Limited(body): Limited<SMALL_BYTES>,
) -> Answer {
    #[derive(Default)]
    struct Body {
        id: String,
    }
    decode_struct!(Body { "id" => id });
    let body: Body = parse(body)?;
    let outcome = app.agree_to_read(&body.id, sender.credentials()).await?;
    Ok(success(ReadData::from(outcome)))
}

async fn read_requests(State(app): App, sender: Sender) -> Answer {
    #[derive(Serialize)]
    struct Entry {
        user: String,
        secrets: Vec<String>,
        reason: String,
        #[serde(flatten)]
        outcome: ReadData,
    }
    let requests: Vec<Entry> = app
        .read_requests(sender.credentials())?
        .into_iter()
        .map(|request| Entry {
            user: request.user,
            secrets: request.secrets,
            reason: request.reason,
            outcome: request.outcome.into(),
        })
        .collect();
    Ok(success(requests))
}

async fn replica_key(
    State(app): App,
    sender: Sender,
    Limited(body): Limited<SMALL_BYTES>,
) -> Answer {
    #[derive(Default)]
    struct Body {
        quote: Bytes,
    }
    decode_struct!(Body { "quote" => quote });
    #[derive(Serialize)]
    struct Data {
        key: Bytes,
    }
    let body: Body = parse(body)?;
    let key = app.hand_over(&body.quote.0, sender.credentials())?;
    Ok(success(Data { key: Bytes(key) }))
}

async fn revocation_list(State(app): App) -> Answer {
    #[derive(Serialize)]
    struct Data {
        crl: String,
    }
    let lists = app.revocation_lists()?;
    Ok(success(Data {
        crl: lists
            .iter()
            .map(|list| crate::x509::pem("X509 CRL", &list.der))
            .collect(),
    }))
}
