//! TLS of both doors: the certificates that are in force now, and a verifier that lets any client
//! certificate in, because who it belongs to is decided later, by its bytes.

use crate::core::Coordinator;
use crate::ecdsa384;
use p521::ecdsa::signature::Verifier;
use ring::signature as alg;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use std::sync::{Arc, Mutex};

/// For the REST API: the root certificate alone; a client certificate is welcome.
pub fn client_tls(coordinator: &Arc<Coordinator>) -> Result<ServerConfig, Error> {
    let mut config = config(coordinator, Door::Client)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// For activation: the marble root certificate, and behind it the intermediate with the same key and the
/// root; a client certificate is a must.
pub fn marble_tls(coordinator: &Arc<Coordinator>) -> Result<ServerConfig, Error> {
    let mut config = config(coordinator, Door::Marble)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn config(coordinator: &Arc<Coordinator>, door: Door) -> Result<ServerConfig, Error> {
    let builder = ServerConfig::builder_with_provider(ecdsa384::provider())
        .with_safe_default_protocol_versions()?;
    Ok(builder
        .with_client_cert_verifier(Arc::new(AnyClient {
            is_mandatory: door == Door::Marble,
        }))
        .with_cert_resolver(Arc::new(Current {
            coordinator: coordinator.clone(),
            door,
            cached: Mutex::new(None),
        })))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Client,
    Marble,
}

/// Serves the certificate that is in force; updates exchange it under running servers.
struct Current {
    coordinator: Arc<Coordinator>,
    door: Door,
    cached: Mutex<Option<Arc<CertifiedKey>>>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("door", &self.door).finish()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut cached = self.cached.lock().unwrap_or_else(|e| e.into_inner());
        self.coordinator.with_pki(|pki| {
            // A marble that pins the root sees by what the marble root's key descends from it.
            let (chain, issuer) = match self.door {
                Door::Client => (vec![&pki.root_cert], &pki.root),
                Door::Marble => (
                    vec![
                        &pki.marble_root_cert,
                        &pki.intermediate_cert,
                        &pki.root_cert,
                    ],
                    &pki.intermediate,
                ),
            };
            if let Some(key) = cached.as_ref()
                && key.cert[0].as_ref() == chain[0].as_slice()
            {
                return Some(key.clone());
            }
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(
                issuer.signer().keys().pkcs8.clone(),
            ));
            let key = ecdsa384::tls_key(key).ok()?;
            let key = Arc::new(CertifiedKey::new(
                chain
                    .into_iter()
                    .cloned()
                    .map(CertificateDer::from)
                    .collect(),
                key,
            ));
            *cached = Some(key.clone());
            Some(key)
        })
    }
}

/// Accepts every certificate whose key the client proves to have.
#[derive(Debug)]
struct AnyClient {
    is_mandatory: bool,
}

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, signed, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, signed, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

const SCHEMES: &[SignatureScheme] = &[
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// Checks a handshake signature against the key of a certificate whose other fields are of no
/// interest (webpki would refuse some of them).
pub(crate) fn verify_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    is_tls13: bool,
) -> Result<HandshakeSignatureValid, Error> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let spki = certificate.public_key();
    let key = spki.subject_public_key.data.as_ref();
    let bad = || Error::InvalidCertificate(CertificateError::BadSignature);
    let verification: &dyn alg::VerificationAlgorithm = match signed.scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 => &alg::ECDSA_P256_SHA256_ASN1,
        SignatureScheme::ECDSA_NISTP384_SHA384 if is_tls13 || key.len() == 97 => {
            return match ecdsa384::verifies(key, message, signed.signature()) {
                true => Ok(HandshakeSignatureValid::assertion()),
                false => Err(bad()),
            };
        }
        SignatureScheme::ECDSA_NISTP384_SHA384 => &alg::ECDSA_P256_SHA384_ASN1,
        SignatureScheme::ECDSA_NISTP521_SHA512 => {
            let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(key).map_err(|_| bad())?;
            let signature =
                p521::ecdsa::Signature::from_der(signed.signature()).map_err(|_| bad())?;
            key.verify(message, &signature).map_err(|_| bad())?;
            return Ok(HandshakeSignatureValid::assertion());
        }
        SignatureScheme::ED25519 => &alg::ED25519,
        SignatureScheme::RSA_PSS_SHA256 => &alg::RSA_PSS_2048_8192_SHA256,
        SignatureScheme::RSA_PSS_SHA384 => &alg::RSA_PSS_2048_8192_SHA384,
        SignatureScheme::RSA_PSS_SHA512 => &alg::RSA_PSS_2048_8192_SHA512,
        // TLS 1.3 has no PKCS#1 v1.5 in handshakes.
        SignatureScheme::RSA_PKCS1_SHA256 if !is_tls13 => &alg::RSA_PKCS1_2048_8192_SHA256,
        SignatureScheme::RSA_PKCS1_SHA384 if !is_tls13 => &alg::RSA_PKCS1_2048_8192_SHA384,
        SignatureScheme::RSA_PKCS1_SHA512 if !is_tls13 => &alg::RSA_PKCS1_2048_8192_SHA512,
        _ => return Err(bad()),
    };
    alg::UnparsedPublicKey::new(verification, key)
        .verify(message, signed.signature())
        .map(|()| HandshakeSignatureValid::assertion())
        .map_err(|_| bad())
}
