//! Activation, as a marble does it.

use super::{Identity, Trust, connect};
use crate::api::marble::{ActivationReq, ActivationResp};
use crate::keys::Signer;
use crate::manifest::Subject;
use crate::x509::{self, AlternativeNames, Certificate, ext_key_usage, key_usage};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::net::IpAddr;
use time::{Duration, OffsetDateTime};

const MOST_ANSWER: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    #[error(transparent)]
    Connect(#[from] super::ConnectError),
    #[error(transparent)]
    Key(#[from] crate::keys::KeyError),
    #[error("the coordinator's answer is broken: {0}")]
    Protocol(String),
    #[error("the coordinator refused (gRPC code {code}): {message}")]
    Refused { code: i32, message: String },
}

/// A self-signed certificate for one activation; the quote must carry its SHA-256.
pub fn self_signed(common_name: &str) -> Result<(Identity, Signer), crate::keys::KeyError> {
    let signer = Signer::generate()?;
    let name = x509::common_name(common_name);
    let now = OffsetDateTime::now_utc();
    let certificate = Certificate {
        issuer: &name,
        subject: &name,
        spki: &signer.keys().spki,
        authority_key_id: None,
        not_before: now - Duration::minutes(5),
        not_after: now + Duration::days(365),
        key_usage: key_usage::DIGITAL_SIGNATURE,
        ext_key_usage: &[ext_key_usage::SERVER, ext_key_usage::CLIENT],
        unknown_ext_key_usage: &[],
        is_ca: false,
        path_len: None,
        names: AlternativeNames::default(),
        extra: Vec::new(),
    }
    .sign(&signer)?;
    let identity = Identity {
        certificate,
        key: signer.keys().pkcs8.clone(),
    };
    Ok((identity, signer))
}

/// A signing request (PKCS#10) for the given names.
pub fn signing_request(
    signer: &Signer,
    subject: &Subject,
    dns: &[String],
    ip: &[IpAddr],
) -> Result<Vec<u8>, crate::keys::KeyError> {
    x509::signing_request(
        signer,
        subject,
        AlternativeNames {
            dns,
            ip,
            email: &[],
        },
    )
}

/// Sends the request over gRPC.
pub async fn activate(
    address: &str,
    trust: Trust,
    identity: &Identity,
    request: &ActivationReq,
) -> Result<ActivationResp, ActivateError> {
    let (stream, _) = connect(address, trust, Some(identity), b"h2").await?;
    let broken = |error: &dyn std::fmt::Display| ActivateError::Protocol(error.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
    let driver = tokio::spawn(connection);
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(request.encoded_len() as u32);
    request.encode(&mut frame).map_err(|error| broken(&error))?;
    let request = http::Request::post(format!("https://{address}/rpc.Marble/Activate"))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(Full::new(frame.freeze()))
        .map_err(|error| broken(&error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| broken(&error))?;
    let headers = response.headers().clone();
    let body = Limited::new(response.into_body(), MOST_ANSWER)
        .collect()
        .await
        .map_err(|error| broken(&error))?;
    driver.abort();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let field = |name: &str| {
        trailers
            .get(name)
            .or_else(|| headers.get(name))
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let code: i32 = field("grpc-status")
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| broken(&"no grpc-status"))?;
    if code != 0 {
        return Err(ActivateError::Refused {
            code,
            message: percent_decoded(&field("grpc-message").unwrap_or_default()),
        });
    }
    let mut bytes: Bytes = body.to_bytes();
    if bytes.len() < 5 || bytes[0] != 0 {
        return Err(broken(&"no plain message"));
    }
    let bytes = bytes.split_off(5);
    ActivationResp::decode(bytes).map_err(|error| broken(&error))
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let decoded = (byte == b'%')
            .then(|| {
                let mut ahead = bytes.clone();
                hex::decode([ahead.next()?, ahead.next()?]).ok()
            })
            .flatten();
        match decoded {
            Some(decoded) => {
                bytes.nth(1);
                out.extend(decoded);
            }
            None => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
