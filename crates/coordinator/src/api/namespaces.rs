//! Namespaces: made, listed and deleted here; everything in one is version 2 of the API below its path.

use super::client::{Limited, SMALL_BYTES, Sender};
use super::envelope::{V2, done, not_allowed, success};
use super::{openapi, v2};
use crate::core::{Cluster, Error};
use crate::json::{self, decode_struct};
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Router, extract::FromRequestParts};
use http::Uri;
use serde::Serialize;
use std::sync::Arc;
use tower_service::Service;

type App = State<Arc<Cluster>>;

pub fn routes(cluster: Arc<Cluster>) -> Router {
    Router::new()
        .route("/api/v2/namespaces", get(list).post(create))
        .route("/api/v2/namespaces/{name}", axum::routing::delete(remove))
        .route("/api/v2/namespaces/{name}/{*rest}", any(within))
        .with_state(cluster)
}

/// Their part of the OpenAPI document.
pub fn table() -> Vec<openapi::Route> {
    use openapi::{body, list, null, number, object, tells, text};
    vec![
        openapi::route("/namespaces", axum::routing::MethodRouter::new())
            .get(
                tells(
                    "The namespaces, with the codes of their states",
                    list(object([("name", text()), ("code", number())])),
                )
                .certified(),
            )
            .post(
                tells("Make a namespace", null())
                    .takes(body([("name", text()), ("owner", text())]))
                    .certified(),
            ),
        openapi::route("/namespaces/{name}", axum::routing::MethodRouter::new())
            .delete(tells("Delete a namespace and all that is kept for it", null()).certified()),
    ]
}

async fn create(
    State(app): App,
    sender: Sender,
    Limited(body): Limited<SMALL_BYTES>,
) -> Result<Response, V2> {
    #[derive(Default)]
    struct Body {
        name: String,
        owner: String,
    }
    decode_struct!(Body { "name" => name, "owner" => owner });
    let body: Body =
        json::from_slice(&body?).map_err(|error| Error::BadRequest(error.to_string()))?;
    app.create(&body.name, &body.owner, sender.credentials())
        .await?;
    Ok(done())
}

async fn remove(
    State(app): App,
    sender: Sender,
    name: Result<Path<String>, axum::extract::rejection::PathRejection>,
) -> Result<Response, V2> {
    let Ok(Path(name)) = name else {
        return Ok(not_allowed());
    };
    app.delete(&name, sender.credentials()).await?;
    Ok(done())
}

async fn list(State(app): App, sender: Sender) -> Result<Response, V2> {
    #[derive(Serialize)]
    struct Entry {
        name: String,
        code: u8,
    }
    let namespaces: Vec<Entry> = app
        .list(sender.credentials())?
        .into_iter()
        .map(|view| Entry {
            name: view.name,
            code: view.code,
        })
        .collect();
    Ok(success(namespaces))
}

/// Hands a request on to its namespace.
async fn within(State(app): App, request: Request) -> Result<Response, V2> {
    let (mut parts, body) = request.into_parts();
    let Ok(Path((name, rest))) =
        Path::<(String, String)>::from_request_parts(&mut parts, &()).await
    else {
        return Ok(not_allowed());
    };
    let Some(coordinator) = app.get(&name)? else {
        // Whoever may not know a namespace's name learns nothing by trying.
        return Err(Error::NotFound(format!("there is no namespace {name}")).into());
    };
    let query = parts
        .uri
        .query()
        .map(|q| format!("?{q}"))
        .unwrap_or_default();
    parts.uri = format!("/{rest}{query}")
        .parse::<Uri>()
        .map_err(|_| Error::BadRequest("invalid path".to_owned()))?;
    let mut router: Router = Router::new()
        .merge(v2::routes())
        .fallback(|| async { not_allowed() })
        .method_not_allowed_fallback(|| async { not_allowed() })
        .with_state(coordinator);
    let answer = router.call(Request::from_parts(parts, body)).await;
    Ok(answer
        .unwrap_or_else(|never| match never {})
        .into_response())
}
