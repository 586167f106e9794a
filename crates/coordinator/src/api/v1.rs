//! Version 1 of the client API: no prefix, raw bodies.

use super::client::{Limited, MANIFEST_BYTES, SMALL_BYTES, Sender};
use super::envelope::{V1, done, gone, success};
use super::v2::secret_names;
use crate::core::{Coordinator, Error};
use crate::json::{self, Bytes};
use crate::secrets::UserSecret;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Router, routing};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

type App = State<Arc<Coordinator>>;

pub fn routes() -> Router<Arc<Coordinator>> {
    Router::new()
        .route("/status", get(status))
        .route("/quote", get(quote))
        .route("/manifest", get(manifest).post(set_manifest))
        .route("/update", get(update_log).post(update))
        .route("/secrets", get(secrets).post(set_secrets))
        .route("/recover", routing::post(|| async { gone() }))
}

async fn status(State(app): App) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Data {
        status_code: u8,
        status_message: &'static str,
    }
    let status = app.status();
    success(Data {
        status_code: status.code,
        status_message: status.message,
    })
}

async fn quote(State(app): App) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Data {
        cert: String,
        quote: Option<Bytes>,
    }
    let view = app.quote(&[]);
    success(Data {
        cert: view.certificates,
        quote: view.quote.map(Bytes),
    })
}

async fn manifest(State(app): App, sender: Sender) -> Result<Response, V1> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Data {
        #[serde(rename = "ManifestSignatureRootECDSA")]
        signature: Option<Bytes>,
        manifest_signature: String,
        manifest: Option<Bytes>,
    }
    Ok(success(match app.manifest(sender.credentials())? {
        Some(view) => Data {
            signature: Some(Bytes(view.signature)),
            manifest_signature: view.fingerprint,
            manifest: view.manifest.map(Bytes),
        },
        None => Data {
            signature: None,
            manifest_signature: String::new(),
            manifest: None,
        },
    }))
}

async fn set_manifest(
    State(app): App,
    sender: Sender,
    Limited(body): Limited<MANIFEST_BYTES>,
) -> Result<Response, V1> {
    let secrets = app.set_manifest(&body?, sender.credentials()).await?;
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Data {
        recovery_secrets: BTreeMap<String, Bytes>,
    }
    if secrets.is_empty() {
        return Ok(done());
    }
    Ok(success(Data {
        recovery_secrets: secrets.into_iter().map(|(k, v)| (k, Bytes(v))).collect(),
    }))
}

async fn update_log(State(app): App, sender: Sender) -> Result<Response, V1> {
    let mut text = app.update_log(sender.credentials())?.join("\n");
    text.push('\n');
    Ok(success(text))
}

async fn update(
    State(app): App,
    sender: Sender,
    Limited(body): Limited<MANIFEST_BYTES>,
) -> Result<Response, V1> {
    app.update_manifest(&body?, sender.credentials()).await?;
    Ok(done())
}

async fn secrets(
    State(app): App,
    sender: Sender,
    RawQuery(query): RawQuery,
) -> Result<Response, V1> {
    let names = secret_names(query.as_deref())?;
    let secrets = app.read_secrets(&names, sender.credentials()).await?;
    Ok(success(secrets))
}

async fn set_secrets(
    State(app): App,
    sender: Sender,
    Limited(body): Limited<SMALL_BYTES>,
) -> Result<Response, V1> {
    let uploads: BTreeMap<String, UserSecret> =
        json::from_slice(&body?).map_err(|error| Error::BadRequest(error.to_string()))?;
    app.write_secrets(&uploads, sender.credentials()).await?;
    Ok(done())
}
