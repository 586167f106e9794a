//! Requests to the client API.

use super::{ConnectError, Identity, Trust, connect};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;

/// Answers are manifests at most.
const MOST_ANSWER: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the coordinator's answer is broken: {0}")]
    Protocol(String),
    /// The coordinator's own reason.
    #[error("the coordinator refused ({code}): {message}")]
    Refused { code: u16, message: String },
}

/// A coordinator's client API, connected to anew for each request.
pub struct Rest {
    pub address: String,
    pub trust: Trust,
    pub identity: Option<Identity>,
    pub token: Option<String>,
}

impl Rest {
    /// Sends a request; returns the status code, the body, and the server's certificate.
    pub async fn raw(
        &self,
        method: &str,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(u16, Vec<u8>, Vec<u8>), ApiError> {
        let (stream, certificate) = connect(
            &self.address,
            self.trust.clone(),
            self.identity.as_ref(),
            b"http/1.1",
        )
        .await?;
        let broken = |error: &dyn std::fmt::Display| ApiError::Protocol(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        let driver = tokio::spawn(connection);
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, &self.address);
        if let Some(token) = &self.token {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| broken(&error))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error))?;
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), MOST_ANSWER)
            .collect()
            .await
            .map_err(|error| broken(&error))?
            .to_bytes()
            .to_vec();
        driver.abort();
        Ok((code, body, certificate))
    }

    /// Sends a request of version 2; returns the `data` of its answer.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Result<serde_json::Value, ApiError> {
        let body = body.map(|body| body.to_string().into_bytes());
        let (code, bytes, _) = self.raw(method, &format!("/api/v2{path}"), body).await?;
        let mut answer: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|error| ApiError::Protocol(format!("status {code}: {error}")))?;
        if answer["status"] != "success" {
            return Err(ApiError::Refused {
                code,
                message: answer["message"].as_str().unwrap_or_default().to_owned(),
            });
        }
        Ok(answer["data"].take())
    }
}
