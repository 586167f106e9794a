//! Fetching collateral over HTTP, with a cache on disk.
//!
//! A service may be slow, send without end, or send nonsense: all is bounded, and what comes back
//! is verified by its signatures, so TLS is for privacy only.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use crate::approve::CollateralSource;
use crate::collateral::{COLLATERAL_MAX, Collateral, FIELD_MAX};
use crate::quote::Quote;
use crate::signed_json;
use crate::source::Needed;
use crate::verify::EMULATED_ROOT_NAME;

/// Intel's service.
pub const INTEL: &str = "https://api.trustedservices.intel.com";
/// Azure's cache (THIM).
pub const AZURE: &str = "https://global.acccache.azure.net";
/// Where Intel keeps the root's revocation list.
const INTEL_ROOT_CRL: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";

/// A service at a base address.
pub struct Service {
    base: String,
    agent: ureq::Agent,
    cache: Option<PathBuf>,
}

impl Service {
    /// `base` without the path, `https://host:port`. `insecure_tls`: take any certificate (PCCS
    /// usually has one of its own making; the collateral is signed anyway).
    pub fn new(base: &str, insecure_tls: bool, timeout: Duration, cache: Option<PathBuf>) -> Self {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(system_roots())))
            .disable_verification(insecure_tls)
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(timeout))
            .max_redirects(2)
            .http_status_as_error(true)
            .build();
        Service {
            base: base.trim_end_matches('/').to_string(),
            agent: config.into(),
            cache,
        }
    }

    fn get(&self, url: &str) -> io::Result<(Vec<u8>, ureq::http::HeaderMap)> {
        let failed = |error: ureq::Error| io::Error::other(format!("{url}: {error}"));
        let response = self.agent.get(url).call().map_err(failed)?;
        let headers = response.headers().clone();
        let mut body = Vec::new();
        response
            .into_body()
            .into_reader()
            .take(FIELD_MAX as u64 + 1)
            .read_to_end(&mut body)?;
        if body.len() > FIELD_MAX {
            return Err(invalid(format!("{url}: more than {FIELD_MAX} bytes")));
        }
        Ok((body, headers))
    }

    fn fetch(&self, needed: &Needed) -> io::Result<Collateral> {
        let Needed { fmspc, ca, tee } = needed;
        let base = format!("{}/{{}}/certification/v4", self.base);
        let url = |tee: &str, rest: &str| format!("{}/{rest}", base.replace("{}", tee));
        let chain = |headers: &ureq::http::HeaderMap, names: &[&str]| {
            let value = names.iter().find_map(|name| headers.get(*name));
            let value = value.ok_or_else(|| invalid(format!("no header {}", names[0])))?;
            percent_decode(value.as_bytes())
        };
        let (info, headers) = self.get(&url(tee, &format!("tcb?fmspc={fmspc}")))?;
        let names = ["TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"];
        let tcb_info_issuer_chain = chain(&headers, &names)?;
        let (tcb_info, tcb_info_signature) =
            signed_json::split(&info, "tcbInfo").map_err(invalid)?;
        let (identity, headers) = self.get(&url(tee, "qe/identity"))?;
        let names = ["SGX-Enclave-Identity-Issuer-Chain"];
        let qe_identity_issuer_chain = chain(&headers, &names)?;
        let (qe_identity, qe_identity_signature) =
            signed_json::split(&identity, "enclaveIdentity").map_err(invalid)?;
        let (pck_crl, headers) = self.get(&url("sgx", &format!("pckcrl?ca={ca}&encoding=der")))?;
        let pck_crl_issuer_chain = chain(&headers, &["SGX-PCK-CRL-Issuer-Chain"])?;
        let root_crl = if self.base == INTEL {
            self.get(INTEL_ROOT_CRL)?.0
        } else {
            self.get(&url("sgx", "rootcacrl"))?.0
        };
        // A PCCS sends revocation lists in hexadecimal, Intel in DER.
        let der = |bytes: Vec<u8>| hex::decode(bytes.trim_ascii()).unwrap_or(bytes);
        Ok(Collateral {
            pck_crl_issuer_chain,
            root_ca_crl: der(root_crl),
            pck_crl: der(pck_crl),
            tcb_info_issuer_chain,
            tcb_info,
            tcb_info_signature,
            qe_identity_issuer_chain,
            qe_identity,
            qe_identity_signature,
        })
    }

    fn cached(&self, needed: &Needed, now: u64) -> Option<Collateral> {
        let path = self.cache_path(needed)?;
        if fs::metadata(&path).ok()?.len() > COLLATERAL_MAX as u64 {
            return None;
        }
        let collateral = Collateral::from_json(&fs::read(path).ok()?).ok()?;
        let until = collateral.next_update()?;
        (now < until).then_some(collateral)
    }

    fn keep(&self, needed: &Needed, collateral: &Collateral) {
        let Some(path) = self.cache_path(needed) else {
            return;
        };
        // A failure costs time at the next verification, nothing else.
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let _ = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&temporary, collateral.to_json()))
            .and_then(|()| fs::rename(&temporary, &path));
        let _ = fs::remove_file(temporary);
    }

    fn cache_path(&self, needed: &Needed) -> Option<PathBuf> {
        let name = format!("{}-{}-{}.json", needed.tee, needed.fmspc, needed.ca);
        Some(self.cache.as_ref()?.join(name))
    }
}

impl CollateralSource for Service {
    fn collateral(&self, quote: &Quote, now: u64) -> io::Result<Collateral> {
        let root = quote.certificates.last();
        if root.is_some_and(|root| crate::certificate::is_root_named(root, EMULATED_ROOT_NAME)) {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "services know nothing of emulated platforms",
            ));
        }
        let needed = Needed::of_quote(quote)?;
        if let Some(cached) = self.cached(&needed, now) {
            return Ok(cached);
        }
        let collateral = self.fetch(&needed)?;
        collateral
            .check()
            .map_err(|error| invalid(error.to_string()))?;
        self.keep(&needed, &collateral);
        Ok(collateral)
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Headers carry PEM in URL encoding.
fn percent_decode(bytes: &[u8]) -> io::Result<String> {
    let malformed = || invalid("a header is not URL encoded".into());
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let digits = rest.get(..2).ok_or_else(malformed)?;
        let mut byte = [0];
        hex::decode_to_slice(digits, &mut byte).map_err(|_| malformed())?;
        out.push(byte[0]);
        rest = &rest[2..];
    }
    String::from_utf8(out).map_err(|_| malformed())
}

/// The certificates that this machine trusts.
fn system_roots() -> Vec<ureq::tls::Certificate<'static>> {
    let files = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/cert.pem",
    ];
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let bytes = named
        .into_iter()
        .chain(files.map(PathBuf::from))
        .find_map(|path| fs::read(path).ok())
        .unwrap_or_default();
    pem::parse_many(bytes)
        .unwrap_or_default()
        .into_iter()
        .filter(|block| block.tag() == "CERTIFICATE")
        .map(|block| ureq::tls::Certificate::from_der(block.contents()).to_owned())
        .collect()
}
