//! Prometheus' door: plain HTTP, nothing secret behind it.

use crate::core::Coordinator;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::header::CONTENT_TYPE;
use std::sync::Arc;

pub fn router(coordinator: Arc<Coordinator>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/events", get(events))
        .with_state(coordinator)
}

async fn metrics(State(app): State<Arc<Coordinator>>) -> Response {
    let text = app.events.metrics(app.status().code);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn events(State(app): State<Arc<Coordinator>>) -> Response {
    Json(app.events.recent()).into_response()
}
