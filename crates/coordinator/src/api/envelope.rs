//! JSend: the form of every answer.

use crate::core::Error;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

#[derive(Serialize)]
struct Envelope<'a, T> {
    status: &'a str,
    data: Option<T>,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
}

fn respond<T: Serialize>(code: StatusCode, envelope: &Envelope<'_, T>) -> Response {
    let body = serde_json::to_vec(envelope).unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

pub fn success<T: Serialize>(data: T) -> Response {
    respond(
        StatusCode::OK,
        &Envelope {
            status: "success",
            data: Some(data),
            message: "",
        },
    )
}

/// Success with nothing to say: `data` is null.
pub fn done() -> Response {
    success(())
}

/// Why a request failed, for the log: an extension of its answer.
#[derive(Clone)]
pub struct Reason(pub String);

fn failure(code: StatusCode, status: &str, message: &str) -> Response {
    let envelope = Envelope::<()> {
        status,
        data: None,
        message,
    };
    let mut response = respond(code, &envelope);
    if code.is_server_error() {
        response.extensions_mut().insert(Reason(message.to_owned()));
    }
    response
}

/// What a path that does not exist, or does not take the method, answers: MarbleRun's clients try
/// the older API on 405 and nothing else.
pub fn not_allowed() -> Response {
    failure(
        StatusCode::METHOD_NOT_ALLOWED,
        "error",
        "method not allowed",
    )
}

pub fn too_many() -> Response {
    failure(
        StatusCode::TOO_MANY_REQUESTS,
        "fail",
        "too many requests: slow down",
    )
}

/// An error in the older API, where all are `error`.
pub struct V1(pub Error);

/// An error in the newer API, where the requester's mistakes are `fail`.
pub struct V2(pub Error);

impl From<Error> for V1 {
    fn from(error: Error) -> V1 {
        V1(error)
    }
}

impl From<Error> for V2 {
    fn from(error: Error) -> V2 {
        V2(error)
    }
}

fn code(error: &Error) -> StatusCode {
    match error {
        Error::BadRequest(_) => StatusCode::BAD_REQUEST,
        Error::Unauthorized(_) => StatusCode::UNAUTHORIZED,
        Error::Forbidden(_) => StatusCode::FORBIDDEN,
        Error::NotFound(_) => StatusCode::NOT_FOUND,
        Error::Conflict => StatusCode::CONFLICT,
        Error::WrongState | Error::Refused(_) | Error::Internal(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

impl IntoResponse for V1 {
    fn into_response(self) -> Response {
        let code = match code(&self.0) {
            // The older API knows neither.
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => StatusCode::INTERNAL_SERVER_ERROR,
            code => code,
        };
        failure(code, "error", &self.0.to_string())
    }
}

impl IntoResponse for V2 {
    fn into_response(self) -> Response {
        let code = code(&self.0);
        let status = match code.is_client_error() {
            true => "fail",
            false => "error",
        };
        failure(code, status, &self.0.to_string())
    }
}

/// The older recovery endpoint is gone for good.
pub fn gone() -> Response {
    failure(
        StatusCode::GONE,
        "error",
        "recovery over this version of the API is no longer supported: use /api/v2/recover",
    )
}
