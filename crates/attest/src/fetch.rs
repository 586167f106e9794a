//! Fetching collateral over HTTP, with a cache on disk.
//!
//! A service may be slow, send without end, or send nonsense: all is bounded, and what comes back
//! is verified by its signatures, so TLS is for privacy only.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use crate::approve::CollateralSource;
use crate::certificate::Certificate;
use crate::collateral::{COLLATERAL_MAX, Collateral, FIELD_MAX};
use crate::quote::Quote;
use crate::signed_json;
use crate::source::Needed;
use crate::verify::{EMULATED_ROOT_NAME, INTEL_ROOT};

/// Intel's service.
pub const INTEL: &str = "https://api.trustedservices.intel.com";
/// Azure's cache (THIM).
pub const AZURE: &str = "https://global.acccache.azure.net";
/// Longest headers of an answer: two chains, URL encoded, have 8 KiB.
const HEADERS_MAX: usize = 64 << 10;
/// Where Intel keeps the root's revocation list.
const INTEL_ROOT_CRL: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";

/// Whose certificates a service may have.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// What this machine trusts.
    #[default]
    System,
    /// The certificates in this PEM file, and no other.
    File(PathBuf),
    /// Any: PCCS usually has one of its own making, and the collateral is signed anyway. Whoever is
    /// on the way then learns which platform is asked about, and can withhold newer collateral.
    InsecureAny,
}

/// Which service, and how it is asked.
#[derive(Clone, Debug)]
pub struct Options {
    /// `https://host:port`, with the path before `/sgx/certification/v4` if there is one.
    pub base: String,
    pub trust: Trust,
    /// For all requests together.
    pub timeout: Duration,
    pub cache: Option<PathBuf>,
    /// Address of the root's revocation list, where the service itself does not have it.
    pub root_crl: Option<String>,
}

impl Options {
    /// A PCCS, THIM, or what else has all of it at one address.
    pub fn new(base: &str, timeout: Duration) -> Options {
        Options {
            base: base.into(),
            trust: Trust::System,
            timeout,
            cache: None,
            // Intel's own service has it elsewhere.
            root_crl: (base.trim_end_matches('/') == INTEL).then(|| INTEL_ROOT_CRL.into()),
        }
    }
}

/// A service at a base address.
pub struct Service {
    base: String,
    timeout: Duration,
    root_crl: Option<String>,
    agent: ureq::Agent,
    cache: Option<PathBuf>,
}

impl Service {
    /// Fails if the address is none, or the file of trusted certificates cannot be used.
    pub fn new(options: Options) -> io::Result<Self> {
        check_address(&options.base)?;
        let roots = match &options.trust {
            Trust::File(path) => {
                let bytes = fs::read(path).map_err(|error| {
                    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                })?;
                let roots = certificates(&bytes);
                if roots.is_empty() {
                    let path = path.display();
                    return Err(invalid(format!("{path} holds no certificate in PEM")));
                }
                roots
            }
            Trust::System | Trust::InsecureAny => system_roots(),
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .disable_verification(matches!(options.trust, Trust::InsecureAny))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .max_redirects(2)
            .max_response_header_size(HEADERS_MAX)
            .http_status_as_error(true)
            .build();
        Ok(Service {
            base: options.base.trim_end_matches('/').to_string(),
            timeout: options.timeout,
            root_crl: options.root_crl,
            agent: config.into(),
            cache: options.cache,
        })
    }

    fn get(&self, url: &str, deadline: Instant) -> io::Result<(Vec<u8>, ureq::http::HeaderMap)> {
        let failed = |error: ureq::Error| match error {
            ureq::Error::Timeout(_) => io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "{url}: no answer within {} s",
                    crate::bytes::rounded(self.timeout)
                ),
            ),
            error => io::Error::other(format!("{url}: {error}")),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let request = self.agent.get(url).config();
        let response = request
            .timeout_global(Some(left.max(Duration::from_millis(1))))
            .build()
            .call()
            .map_err(failed)?;
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

    /// Whether it answers as such a service does: fetches the root's revocation list.
    pub fn probe(&self) -> io::Result<()> {
        let address = match &self.root_crl {
            Some(address) => address.clone(),
            None => format!("{}/sgx/certification/v4/rootcacrl", self.base),
        };
        let deadline = Instant::now() + self.timeout;
        let list = revocation_list(self.get(&address, deadline)?.0);
        match crate::collateral::revocation_list_until(&list) {
            Some(_) => Ok(()),
            None => Err(invalid(format!(
                "{address}: what it sends is no revocation list"
            ))),
        }
    }

    fn fetch(&self, needed: &Needed) -> io::Result<Collateral> {
        let Needed { fmspc, ca, tee } = needed;
        let deadline = Instant::now() + self.timeout;
        let get = |url: &str| self.get(url, deadline);
        let base = format!("{}/{{}}/certification/v4", self.base);
        let url = |tee: &str, rest: &str| format!("{}/{rest}", base.replace("{}", tee));
        let chain = |headers: &ureq::http::HeaderMap, names: &[&str]| {
            let value = names.iter().find_map(|name| headers.get(*name));
            let value = value.ok_or_else(|| invalid(format!("no header {}", names[0])))?;
            percent_decode(value.as_bytes())
        };
        let (info, headers) = get(&url(tee, &format!("tcb?fmspc={fmspc}")))?;
        let names = ["TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"];
        let tcb_info_issuer_chain = chain(&headers, &names)?;
        let (tcb_info, tcb_info_signature) =
            signed_json::split(&info, "tcbInfo").map_err(invalid)?;
        let (identity, headers) = get(&url(tee, "qe/identity"))?;
        let names = ["SGX-Enclave-Identity-Issuer-Chain"];
        let qe_identity_issuer_chain = chain(&headers, &names)?;
        let (qe_identity, qe_identity_signature) =
            signed_json::split(&identity, "enclaveIdentity").map_err(invalid)?;
        let (pck_crl, headers) = get(&url("sgx", &format!("pckcrl?ca={ca}&encoding=der")))?;
        let pck_crl_issuer_chain = chain(&headers, &["SGX-PCK-CRL-Issuer-Chain"])?;
        let root_crl = match &self.root_crl {
            Some(address) => get(address)?.0,
            None => get(&url("sgx", "rootcacrl"))?.0,
        };
        Ok(Collateral {
            pck_crl_issuer_chain,
            root_ca_crl: revocation_list(root_crl),
            pck_crl: revocation_list(pck_crl),
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
        if !is_certified(quote) {
            return Err(invalid(
                "the quote's certificates are not Intel's, so nothing is fetched for it".into(),
            ));
        }
        let collateral = self.fetch(&needed)?;
        collateral
            .check()
            .map_err(|error| invalid(error.to_string()))?;
        self.keep(&needed, &collateral);
        Ok(collateral)
    }
}

/// Whether the chain leads to Intel's root: without it no collateral could make the quote genuine, and a
/// stranger could have anything asked for. Dates and revocation are looked at later.
fn is_certified(quote: &Quote) -> bool {
    let decoded: Option<Vec<Certificate>> = (quote.certificates.iter())
        .map(|der| Certificate::decode(der).ok())
        .collect();
    let is_chain = decoded.is_some_and(|chain| {
        let mut pairs = chain.windows(2);
        pairs.all(|pair| pair[0].is_signed_by(&pair[1]))
    });
    is_chain
        && quote
            .certificates
            .last()
            .is_some_and(|root| root == INTEL_ROOT)
}

/// A PCCS sends revocation lists in hexadecimal, Intel in DER or PEM.
fn revocation_list(bytes: Vec<u8>) -> Vec<u8> {
    if bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
        return pem::parse(&bytes).map_or(bytes, pem::Pem::into_contents);
    }
    hex::decode(bytes.trim_ascii()).unwrap_or(bytes)
}

fn check_address(base: &str) -> io::Result<()> {
    let uri: Option<ureq::http::Uri> = base.parse().ok();
    let is_http = |uri: &ureq::http::Uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
    };
    if uri.as_ref().is_some_and(is_http) {
        return Ok(());
    }
    let text = format!("{base:?} is no address of a service; write https://HOST:PORT");
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
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
    certificates(&bytes)
}

fn certificates(bytes: &[u8]) -> Vec<ureq::tls::Certificate<'static>> {
    pem::parse_many(bytes)
        .unwrap_or_default()
        .into_iter()
        .filter(|block| block.tag() == "CERTIFICATE")
        .map(|block| ureq::tls::Certificate::from_der(block.contents()).to_owned())
        .collect()
}
