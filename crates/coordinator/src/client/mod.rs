//! The other side: what `bulla status`, `bulla manifest` and marbles say to a coordinator.
//!
//! A coordinator's certificate is a root: no chain leads to it, and webpki refuses it as a leaf. It
//! is trusted by being exactly the one whose hash the coordinator's quote carries, so connections
//! here are *pinned*: [`Trust::Pinned`] compares the certificate, [`Trust::Any`] is for the first
//! contact, which fetches the quote and trusts nothing else.

pub mod marble;
mod rest;

pub use rest::{ApiError, Rest};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring as provider;
use rustls::pki_types::{
    CertificateDer, IpAddr, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime,
};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Which server certificates are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Any: nothing secret may be sent.
    Any,
    /// This one, DER.
    Pinned(Vec<u8>),
}

/// A client certificate and its key, DER (PKCS#8).
#[derive(Clone)]
pub struct Identity {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot connect to {address}: {error}")]
    Connect {
        address: String,
        error: std::io::Error,
    },
    #[error("TLS with {address}: {error}")]
    Tls {
        address: String,
        error: std::io::Error,
    },
    #[error("client certificate: {0}")]
    Identity(Error),
}

/// Connects to `HOST:PORT`; returns the stream and the server's certificate.
pub async fn connect(
    address: &str,
    trust: Trust,
    identity: Option<&Identity>,
    protocol: &[u8],
) -> Result<(TlsStream<TcpStream>, Vec<u8>), ConnectError> {
    let builder = ClientConfig::builder_with_provider(crate::ecdsa384::provider())
        .with_safe_default_protocol_versions()
        .map_err(ConnectError::Identity)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier(trust)));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from(identity.certificate.clone())],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.clone())),
            )
            .map_err(ConnectError::Identity)?,
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| ConnectError::Connect {
            address: address.to_owned(),
            error,
        })?;
    let _ = stream.set_nodelay(true);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host)
        .unwrap_or(ServerName::IpAddress(IpAddr::V4([127, 0, 0, 1].into())));
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| ConnectError::Tls {
            address: address.to_owned(),
            error,
        })?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|certificate| certificate.to_vec())
        .unwrap_or_default();
    Ok((stream, certificate))
}

#[derive(Debug)]
struct Verifier(Trust);

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.0 {
            Trust::Pinned(pinned) if end_entity.as_ref() != pinned.as_slice() => Err(
                Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure),
            ),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crate::api::verify_signature(message, cert, signed, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crate::api::verify_signature(message, cert, signed, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
