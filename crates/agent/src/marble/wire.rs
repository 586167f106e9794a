//! `/rpc.Marble/Activate`: one gRPC call over TLS; and the revocation lists, behind the same door. The
//! server's certificate is only written down here;
//! [`super::trust`] judges it before anything of the answer is used, and the request holds nothing
//! secret.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bulla_attest::endpoint::Witness;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, IpAddr, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::MarbleError;

/// For connecting, and for the answer: verifying a quote takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Files of a marble are configuration and keys.
const MOST_ANSWER: usize = 64 << 20;
/// gRPC: the coordinator has no manifest yet, or cannot be used for the moment.
const FAILED_PRECONDITION: i32 = 9;
const UNAVAILABLE: i32 = 14;

#[derive(Clone, PartialEq, Message)]
pub struct Request {
    #[prost(bytes = "vec", tag = "1")]
    pub quote: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub csr: Vec<u8>,
    #[prost(string, tag = "3")]
    pub marble_type: String,
    #[prost(string, tag = "4")]
    pub uuid: String,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    parameters: Option<Parameters>,
}

/// What the marble gets.
#[derive(Clone, PartialEq, Message)]
pub struct Parameters {
    #[prost(map = "string, bytes", tag = "1")]
    pub files: HashMap<String, Vec<u8>>,
    #[prost(map = "string, bytes", tag = "2")]
    pub env: HashMap<String, Vec<u8>>,
    #[prost(string, repeated, tag = "3")]
    pub argv: Vec<String>,
}

/// A client certificate and its key, DER.
pub struct Identity {
    pub certificate: Vec<u8>,
    pub key: Zeroizing<Vec<u8>>,
}

/// Calls; returns the parameters and the certificates that the server showed, its own first.
pub fn activate(
    address: &str,
    identity: &Identity,
    request: &Request,
) -> Result<(Parameters, Vec<Vec<u8>>), MarbleError> {
    in_time(address, call(address, identity, request))
}

/// The revocation lists at a path of the door, as they are said.
pub fn lists(address: &str, identity: &Identity, path: &str) -> Result<Vec<u8>, MarbleError> {
    in_time(address, async {
        let (answer, _) = asked(address, identity, path, None).await?;
        match (answer.status, answer.code) {
            (200, None) => Ok(answer.body.to_vec()),
            (503, _) => Err(MarbleError::NotReady(printable(&String::from_utf8_lossy(
                &answer.body,
            )))),
            _ => Err(MarbleError::Broken(
                "it has no revocation lists: leave coordinator.crl_seconds out".into(),
            )),
        }
    })
}

fn in_time<T>(
    address: &str,
    work: impl Future<Output = Result<T, MarbleError>>,
) -> Result<T, MarbleError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(MarbleError::Start)?
        .block_on(async {
            tokio::time::timeout(PATIENCE, work)
                .await
                .unwrap_or_else(|_| {
                    Err(unreachable(
                        address,
                        format!("no answer within {} seconds", PATIENCE.as_secs()),
                    ))
                })
        })
}

fn unreachable(address: &str, reason: impl fmt::Display) -> MarbleError {
    MarbleError::Unreachable(format!("{address}: {reason}"))
}

async fn call(
    address: &str,
    identity: &Identity,
    request: &Request,
) -> Result<(Parameters, Vec<Vec<u8>>), MarbleError> {
    let path = "/rpc.Marble/Activate";
    let (answer, server) = asked(address, identity, path, Some(request)).await?;
    Ok((understood(answer)?, server))
}

/// A gRPC request, or a plain one without a body; and what the server showed.
async fn asked(
    address: &str,
    identity: &Identity,
    path: &str,
    request: Option<&Request>,
) -> Result<(Answer, Vec<Vec<u8>>), MarbleError> {
    let (config, witness) =
        tls(identity).map_err(|error| MarbleError::Broken(error.to_string()))?;
    let failed = |error: &dyn fmt::Display| unreachable(address, error);
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| failed(&error))?;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .unwrap_or(ServerName::IpAddress(IpAddr::V4([127, 0, 0, 1].into())));
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error: io::Error| failed(&error))?;
    let (mut client, connection) = h2::client::Builder::new()
        .max_header_list_size(64 << 10)
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(|error| failed(&error))?;
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    let url = format!("https://{address}{path}");
    let answer = exchange(&mut client, &url, request).await;
    driver.abort();
    Ok((answer.map_err(|error| failed(&error))?, witness.seen()))
}

struct Answer {
    /// Of HTTP.
    status: u16,
    /// Of gRPC.
    code: Option<i32>,
    message: String,
    body: Zeroizing<Vec<u8>>,
}

async fn exchange(
    client: &mut h2::client::SendRequest<Bytes>,
    url: &str,
    request: Option<&Request>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    std::future::poll_fn(|context| client.poll_ready(context)).await?;
    let response = match request {
        None => {
            client
                .send_request(http::Request::get(url).body(())?, true)?
                .0
        }
        Some(request) => {
            let mut frame = BytesMut::new();
            frame.put_u8(0);
            frame.put_u32(request.encoded_len() as u32);
            request.encode(&mut frame)?;
            let head = http::Request::post(url)
                .header(http::header::CONTENT_TYPE, "application/grpc")
                .header(http::header::TE, "trailers")
                .body(())?;
            let (response, mut body) = client.send_request(head, false)?;
            body.send_data(frame.freeze(), true)?;
            response
        }
    };
    let (head, mut stream) = response.await?.into_parts();
    let mut content = Zeroizing::new(Vec::new());
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        if content.len() + chunk.len() > MOST_ANSWER {
            return Err(format!("an answer of more than {MOST_ANSWER} bytes").into());
        }
        content.extend_from_slice(&chunk);
    }
    let trailers = stream.trailers().await?.unwrap_or_default();
    let field = |name: &str| {
        let value = trailers.get(name).or_else(|| head.headers.get(name))?;
        value.to_str().ok()
    };
    Ok(Answer {
        status: head.status.as_u16(),
        code: field("grpc-status").and_then(|code| code.parse().ok()),
        message: percent_decoded(field("grpc-message").unwrap_or_default()),
        body: content,
    })
}

fn understood(answer: Answer) -> Result<Parameters, MarbleError> {
    let broken = |reason: String| MarbleError::Broken(reason);
    let message = printable(&answer.message);
    match answer.code {
        None => return Err(broken("no grpc-status".into())),
        Some(0) => {}
        Some(FAILED_PRECONDITION | UNAVAILABLE) => return Err(MarbleError::NotReady(message)),
        Some(code) => return Err(MarbleError::Refused { code, message }),
    }
    // A flag (0: not compressed) and a length come first.
    let message = match answer.body.get(..5) {
        Some([0, ..]) => &answer.body[5..],
        _ => return Err(broken("no plain message".into())),
    };
    let response = Response::decode(message).map_err(|error| broken(error.to_string()))?;
    response
        .parameters
        .ok_or_else(|| broken("no parameters".into()))
}

/// One line for the log, whatever a peer says.
fn printable(text: &str) -> String {
    const MOST: usize = 2000;
    text.chars()
        .take(MOST)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn percent_decoded(text: &str) -> String {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let pair = (digit(bytes.get(at + 1)), digit(bytes.get(at + 2)));
        match (bytes[at], pair) {
            (b'%', (Some(high), Some(low))) => {
                out.push((high << 4 | low) as u8);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn tls(identity: &Identity) -> Result<(ClientConfig, Arc<Witness>), rustls::Error> {
    let witness = Arc::new(Witness::default());
    let key = PrivatePkcs8KeyDer::from(identity.key.to_vec());
    let mut config = ClientConfig::builder_with_provider(witness.provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_client_auth_cert(
            vec![CertificateDer::from(identity.certificate.clone())],
            PrivateKeyDer::Pkcs8(key),
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((config, witness))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_fits_a_line() {
        assert_eq!(percent_decoded("a%20b%zz%4"), "a b%zz%4");
        assert_eq!(percent_decoded("%C3%A4"), "ä");
        assert_eq!(printable("a\nb\u{1b}[2J"), "a b [2J");
    }

    #[test]
    fn answers_are_understood_or_refused() {
        let answer = |code, body: &[u8]| Answer {
            status: 200,
            code,
            message: "why".into(),
            body: Zeroizing::new(body.to_vec()),
        };
        let parameters = Parameters {
            argv: vec!["a".into()],
            ..Parameters::default()
        };
        let response = Response {
            parameters: Some(parameters.clone()),
        };
        let mut body = vec![0; 5];
        body.extend(response.encode_to_vec());
        assert_eq!(understood(answer(Some(0), &body)).unwrap(), parameters);
        for (code, body) in [
            (Some(0), &[][..]),
            (Some(0), &[0; 4]),
            (Some(0), &[0; 5]),
            (Some(0), &[1, 0, 0, 0, 0]),
            (Some(0), &[0, 0, 0, 0, 1, 0xff]),
            (None, &body),
        ] {
            let broken = understood(answer(code, body));
            assert!(matches!(broken, Err(MarbleError::Broken(_))), "{body:?}");
        }
        let refused = understood(answer(Some(7), &[])).unwrap_err().to_string();
        assert!(refused.contains("why"), "{refused}");
        let early = understood(answer(Some(9), &[]));
        assert!(matches!(early, Err(MarbleError::NotReady(_))));
    }
}
