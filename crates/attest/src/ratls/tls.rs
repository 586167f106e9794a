//! rustls: verifiers for both sides, and ready configurations.
//!
//! The peer's certificate is judged by an [`Approver`]; the handshake's signature, which proves
//! that the peer holds the key, is rustls' own check. Approved certificates are remembered until
//! their verdict ends, so that a reconnecting peer costs a hash.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};
use thiserror::Error as ThisError;

use super::issue::Identity;
use super::issued::Issued;
use crate::bytes::sha256;

/// Most certificates that are remembered.
const REMEMBERED_MAX: usize = 4096;

/// A refusal, as it appears in TLS errors.
#[derive(Clone, ThisError)]
#[error("the peer is not trusted: {0}")]
pub struct TlsError(pub String);

/// rustls shows the errors of verifiers in this form, so it is made for people too.
impl fmt::Debug for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An acceptance.
#[derive(Clone, Copy, Debug)]
pub struct Approval {
    /// Until when it may be relied upon, seconds since 1970.
    pub until: u64,
}

/// Decides about a peer's certificate (DER) at a time (seconds since 1970).
pub trait Approver: Send + Sync {
    fn approve(&self, certificate: &[u8], now: u64) -> Result<Approval, String>;
}

/// A rustls verifier for peers of either side.
pub struct PeerVerifier {
    approver: Arc<dyn Approver>,
    provider: Arc<CryptoProvider>,
    approved: Mutex<HashMap<[u8; 32], (u64, u64)>>,
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerVerifier")
    }
}

impl PeerVerifier {
    pub fn new(approver: Arc<dyn Approver>) -> PeerVerifier {
        PeerVerifier {
            approver,
            provider: Arc::new(provider::default_provider()),
            approved: Mutex::new(HashMap::new()),
        }
    }

    fn check(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        let now = now.as_secs();
        let key = sha256(&[certificate]);
        let lock = || self.approved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, until)) = lock().get(&key).copied()
            && (since..until).contains(&now)
        {
            return Ok(());
        }
        let approval = self.approver.approve(certificate, now).map_err(|reason| {
            let error = OtherError(Arc::new(TlsError(reason)));
            Error::InvalidCertificate(CertificateError::Other(error))
        })?;
        let mut approved = lock();
        if approved.len() >= REMEMBERED_MAX {
            approved.retain(|_, (_, until)| now < *until);
            if approved.len() >= REMEMBERED_MAX {
                approved.clear();
            }
        }
        approved.insert(key, (now, approval.until));
        Ok(())
    }

    fn signature12(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn signature13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ServerCertVerifier for PeerVerifier {
    /// The name is not looked at: who the peer is, the quote says.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

fn pair(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from(identity.certificate.clone());
    let key = PrivatePkcs8KeyDer::from(identity.key.to_vec());
    (vec![certificate], key.into())
}

/// Who a peer must be.
#[derive(Clone)]
pub enum Peers {
    /// An enclave: its certificate carries a quote.
    Attested(Arc<dyn Approver>),
    /// Whoever an authority says: it issued the certificate and has not revoked it.
    Issued(Arc<Issued>),
}

impl From<Arc<dyn Approver>> for Peers {
    fn from(approver: Arc<dyn Approver>) -> Peers {
        Peers::Attested(approver)
    }
}

impl From<Arc<Issued>> for Peers {
    fn from(issued: Arc<Issued>) -> Peers {
        Peers::Issued(issued)
    }
}

/// A client that talks to approved servers only, and shows its own certificate if it has one.
/// Sessions are not resumed: each connection is judged.
pub fn client_config(
    servers: impl Into<Peers>,
    own: Option<&Identity>,
) -> Result<ClientConfig, Error> {
    let verifier: Arc<dyn ServerCertVerifier> = match servers.into() {
        Peers::Attested(approver) => Arc::new(PeerVerifier::new(approver)),
        Peers::Issued(issued) => issued,
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Some(own) => {
            let (chain, key) = pair(own);
            builder.with_client_auth_cert(chain, key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// A server; for approved clients only, if it is said who they are.
pub fn server_config(own: &Identity, clients: Option<Peers>) -> Result<ServerConfig, Error> {
    let builder = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()?;
    let builder = match clients {
        Some(Peers::Attested(approver)) => {
            builder.with_client_cert_verifier(Arc::new(PeerVerifier::new(approver)))
        }
        Some(Peers::Issued(issued)) => builder.with_client_cert_verifier(issued),
        None => builder.with_no_client_auth(),
    };
    let (chain, key) = pair(own);
    let mut config = builder.with_single_cert(chain, key)?;
    // A resumed session would outlive the verdict about its client.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
