//! Prometheus' door: plain HTTP, nothing secret behind it. The revocation list is here too: it is
//! signed, and who must look at it before a handshake cannot be asked to make one.

use crate::core::Cluster;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use std::sync::Arc;

pub fn router(cluster: Arc<Cluster>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/events", get(events))
        .route("/crl", get(own_list))
        .route("/crl/{namespace}", get(list))
        .with_state(cluster)
}

async fn metrics(State(cluster): State<Arc<Cluster>>) -> Response {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4")],
        cluster.metrics(),
    )
        .into_response()
}

async fn events(State(cluster): State<Arc<Cluster>>) -> Response {
    Json(cluster.root().events.recent()).into_response()
}

async fn own_list(State(cluster): State<Arc<Cluster>>) -> Response {
    revocation_list(&cluster, "")
}

async fn list(State(cluster): State<Arc<Cluster>>, Path(name): Path<String>) -> Response {
    revocation_list(&cluster, &name)
}

/// DER, as RFC 2585 has it.
fn revocation_list(cluster: &Arc<Cluster>, name: &str) -> Response {
    match cluster.get(name) {
        Ok(Some(coordinator)) => match coordinator.revocation_list() {
            Ok(list) => ([(CONTENT_TYPE, "application/pkix-crl")], list).into_response(),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
        },
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}
