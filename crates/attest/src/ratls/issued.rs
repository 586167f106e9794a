//! Peers without a quote of their own: an authority (a coordinator, which has seen their quotes) issued
//! their certificates, and its revocation list does not name them.
//!
//! rustls' own verifier does the work: chain, dates, names, revocation. A list that has run out, or is
//! another authority's, is a refusal like any other.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use der::Decode;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring as provider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use thiserror::Error as ThisError;
use x509_cert::certificate::Rfc5280;
use x509_cert::crl::CertificateList;

use crate::bytes::pem_certificates;

/// The largest list that is read, in bytes.
pub const LIST_MAX: usize = 4 << 20;

/// Why an authority or its list cannot be used.
#[derive(Debug, ThisError)]
pub enum IssuedError {
    #[error("this is no certificate of an authority: {0}")]
    Authority(String),
    #[error("this is no revocation list: {0}; fetch it with `bulla certificate crl`")]
    List(String),
    #[error(
        "the revocation list is older than the one before; somebody may be holding back newer ones"
    )]
    Older,
}

/// Verifies peers of either side by the authority that issued their certificates.
pub struct Issued {
    roots: Arc<RootCertStore>,
    current: Mutex<Arc<Current>>,
}

/// What holds until there is a newer list.
struct Current {
    of_servers: Arc<dyn ServerCertVerifier>,
    of_clients: Arc<dyn ClientCertVerifier>,
    made: u64,
}

impl Issued {
    /// Authorities in PEM; the list in PEM or DER.
    pub fn new(authorities: &[u8], list: &[u8]) -> Result<Issued, IssuedError> {
        let refuse = |reason: &dyn fmt::Display| IssuedError::Authority(reason.to_string());
        let text = std::str::from_utf8(authorities).map_err(|error| refuse(&error))?;
        let certificates = pem_certificates(text)
            .filter(|certificates| !certificates.is_empty())
            .ok_or_else(|| refuse(&"it holds no certificate in PEM"))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            let certificate = CertificateDer::from(certificate);
            roots.add(certificate).map_err(|error| refuse(&error))?;
        }
        let roots = Arc::new(roots);
        let current = Mutex::new(Arc::new(Current::new(&roots, list)?));
        Ok(Issued { roots, current })
    }

    /// Takes a newer list. Whatever is wrong with it, the one before holds, until it runs out.
    pub fn renew(&self, list: &[u8]) -> Result<(), IssuedError> {
        let newer = Current::new(&self.roots, list)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if newer.made < current.made {
            return Err(IssuedError::Older);
        }
        *current = Arc::new(newer);
        Ok(())
    }

    fn current(&self) -> Arc<Current> {
        let current = self.current.lock();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Current {
    fn new(roots: &Arc<RootCertStore>, list: &[u8]) -> Result<Current, IssuedError> {
        let refuse = |reason: &dyn fmt::Display| IssuedError::List(reason.to_string());
        if list.len() > LIST_MAX {
            return Err(refuse(&"it is too large"));
        }
        let der = match list.trim_ascii_start().starts_with(b"-----BEGIN") {
            true => pem::parse(list)
                .map_err(|error| refuse(&error))?
                .into_contents(),
            false => list.to_vec(),
        };
        let decoded = CertificateList::<Rfc5280>::from_der(&der).map_err(|error| refuse(&error))?;
        let der = CertificateRevocationListDer::from(der);
        let provider = Arc::new(provider::default_provider());
        let of_servers =
            WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
                .with_crls([der.clone()])
                .enforce_revocation_expiration()
                .build()
                .map_err(|error| refuse(&error))?;
        let of_clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider)
            .with_crls([der])
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| refuse(&error))?;
        Ok(Current {
            of_servers,
            of_clients,
            made: decoded
                .tbs_cert_list
                .this_update
                .to_unix_duration()
                .as_secs(),
        })
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Issued")
    }
}

impl ServerCertVerifier for Issued {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = self.current().of_servers.clone();
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = self.current().of_servers.clone();
        verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = self.current().of_servers.clone();
        verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current().of_servers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Issued {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verifier = self.current().of_clients.clone();
        verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = self.current().of_clients.clone();
        verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = self.current().of_clients.clone();
        verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current().of_clients.supported_verify_schemes()
    }
}
