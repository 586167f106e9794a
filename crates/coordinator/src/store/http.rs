//! How stores on the network are reached.

use super::{StoreError, io};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, TlsProvider};

/// Files of a TLS client, PEM. Without any, TLS trusts nobody, and plain HTTP is all there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Whom to believe who the server is.
    pub authority: Option<PathBuf>,
    /// Who the client is: certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(io(path))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, StoreError> {
    let found: Vec<_> = ureq::tls::parse_pem(&read(path)?)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    match found.is_empty() {
        true => Err(StoreError::Remote(format!(
            "{} holds no certificate in PEM",
            path.display()
        ))),
        false => Ok(found),
    }
}

/// What a server says, for a log: a line that is not endless.
pub fn short(text: &str) -> String {
    const MOST_CHARACTERS: usize = 300;
    let line = |c: char| if c.is_control() { ' ' } else { c };
    let mut said: String = text.chars().take(MOST_CHARACTERS).map(line).collect();
    if text.chars().nth(MOST_CHARACTERS).is_some() {
        said.push('…');
    }
    said
}

/// A client; answers with any status are answers.
pub fn agent(tls: &ClientTls, patience: Duration) -> Result<ureq::Agent, StoreError> {
    let roots = match &tls.authority {
        Some(path) => certificates(path)?,
        None => Vec::new(),
    };
    let identity = match &tls.identity {
        None => None,
        Some((certificate, key)) => {
            let key = PrivateKey::from_pem(&read(key)?)
                .map_err(|error| StoreError::Remote(format!("{}: {error}", key.display())))?;
            Some(ClientCert::new_with_certs(&certificates(certificate)?, key))
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(provider)
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .client_cert(identity)
        .build();
    let config = ureq::Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(patience))
        .max_redirects(0)
        .http_status_as_error(false)
        .build();
    Ok(ureq::Agent::new_with_config(config))
}
