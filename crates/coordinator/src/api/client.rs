//! The client REST API: both versions on one router.

use super::body::Room;
use super::envelope;
use super::limit::RateLimit;
use super::serve::Peer;
use super::{namespaces, v1, v2};
use crate::core::{Cluster, Coordinator, Credentials, Error};
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Extension, Router};
use http::request::Parts;
use http_body_util::BodyExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Requests of one address: scripts poll, attackers hammer.
const PER_SECOND: u32 = 200;
const BURST: u32 = 1000;

/// The router of the client API.
pub fn router(cluster: Arc<Cluster>) -> Router {
    let coordinator = cluster.root().clone();
    let limit = Arc::new(RateLimit::new(PER_SECOND, BURST));
    Router::new()
        .merge(v1::routes())
        .nest("/api/v2", v2::routes())
        .with_state(coordinator.clone())
        .merge(namespaces::routes(cluster))
        .fallback(|| async { envelope::not_allowed() })
        .method_not_allowed_fallback(|| async { envelope::not_allowed() })
        .layer(middleware::from_fn_with_state(coordinator, count))
        .layer(middleware::from_fn_with_state(limit, slow_down))
}

async fn count(
    State(coordinator): State<Arc<Coordinator>>,
    request: Request,
    next: Next,
) -> Response {
    coordinator.events.requests.fetch_add(1, Ordering::Relaxed);
    let method = request.method().clone();
    // Not the query: it names secrets.
    let path = request.uri().path().to_owned();
    let address = request
        .extensions()
        .get::<Peer>()
        .and_then(|peer| peer.address)
        .map_or_else(String::new, |address| address.to_string());
    let response = next.run(request).await;
    // Reading changes nothing, and probes do little else.
    if method != http::Method::GET || !response.status().is_success() {
        let code = response.status().as_u16();
        let mut fields: Vec<(&str, &dyn std::fmt::Display)> = vec![
            ("address", &address),
            ("method", &method),
            ("path", &path),
            ("code", &code),
        ];
        if let Some(envelope::Reason(reason)) = response.extensions().get() {
            fields.push(("reason", reason));
        }
        crate::log::event("request", &fields);
    }
    response
}

async fn slow_down(
    State(limit): State<Arc<RateLimit>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match peer.address {
        Some(address) if !limit.allows(address, Instant::now()) => envelope::too_many(),
        _ => next.run(request).await,
    }
}

/// Who sent a request.
pub struct Sender {
    peer: Peer,
    token: Option<String>,
}

impl Sender {
    pub fn credentials(&self) -> Credentials<'_> {
        Credentials {
            certificate: self.peer.certificate.as_deref().map(Vec::as_slice),
            token: self.token.as_deref(),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Sender {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Sender, Self::Rejection> {
        let token = parts
            .headers
            .get(http::header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(str::to_owned);
        Ok(Sender {
            peer: parts.extensions.get::<Peer>().cloned().unwrap_or_default(),
            token,
        })
    }
}

/// A body of at most `MOST` bytes.
pub struct Limited<const MOST: usize>(pub Result<Vec<u8>, Error>);

/// Manifests with large files inside are a few megabytes.
pub const MANIFEST_BYTES: usize = 32 << 20;
/// Everything else is small.
pub const SMALL_BYTES: usize = 1 << 20;
/// Recovery takes secrets from anyone: its limit is MarbleRun's.
pub const RECOVERY_BYTES: usize = 20480;

impl<S: Send + Sync, const MOST: usize> FromRequest<S> for Limited<MOST> {
    type Rejection = std::convert::Infallible;

    async fn from_request(request: Request, _: &S) -> Result<Limited<MOST>, Self::Rejection> {
        let mut body = http_body_util::Limited::new(request.into_body(), MOST);
        let mut bytes = Vec::new();
        let mut room = Room::default();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => {
                    if let Some(data) = frame.data_ref() {
                        if !room.grow(bytes.len() + data.len()) {
                            return Ok(Limited(Err(Error::Refused(
                                "too many large requests at once: try again later".to_owned(),
                            ))));
                        }
                        bytes.extend_from_slice(data);
                    }
                }
                Err(_) => {
                    return Ok(Limited(Err(Error::BadRequest(format!(
                        "request body is broken off, too slow or longer than {MOST} bytes"
                    )))));
                }
            }
        }
        Ok(Limited(Ok(bytes)))
    }
}
