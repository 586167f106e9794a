//! Where collateral comes from: a directory of saved collateral, or a service that speaks the
//! provisioning certification API, version 4 (Intel's own, a PCCS, Azure's THIM), with a cache.
//!
//! Nothing here is trusted: what comes back is signed, and verified by whoever uses it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::approve::CollateralSource;
use crate::certificate::Certificate;
use crate::collateral::{COLLATERAL_MAX, Collateral};
use crate::quote::Quote;

/// Most files of a directory that are looked at.
const FILES_MAX: usize = 1024;

/// Which platform's collateral a quote needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// FMSPC in lowercase hexadecimal.
    pub fmspc: String,
    /// `processor` or `platform`.
    pub ca: &'static str,
    /// `sgx` or `tdx`.
    pub tee: &'static str,
}

impl Needed {
    /// From the PCK certificate that the quote carries (unverified: it only chooses what to fetch).
    pub fn of_quote(quote: &Quote) -> io::Result<Needed> {
        let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_string());
        let leaf = quote
            .certificates
            .first()
            .ok_or_else(|| invalid("the quote carries no PCK certificate"))?;
        let extension = dcap_qvl::intel::parse_pck_extension(leaf)
            .map_err(|error| invalid(&format!("the PCK certificate: {error:#}")))?;
        let issuer = Certificate::decode(leaf).map_err(|error| invalid(&error.to_string()))?;
        Ok(Needed {
            fmspc: hex::encode(extension.fmspc),
            ca: if issuer.issuer().contains("Platform") {
                "platform"
            } else {
                "processor"
            },
            tee: match quote.tee {
                crate::Tee::Sgx => "sgx",
                crate::Tee::Tdx => "tdx",
            },
        })
    }

    fn matches(&self, collateral: &Collateral) -> bool {
        #[derive(Deserialize)]
        struct Info {
            id: String,
            fmspc: String,
        }
        let info: Option<Info> = serde_json::from_str(&collateral.tcb_info).ok();
        info.is_some_and(|info| {
            info.fmspc.eq_ignore_ascii_case(&self.fmspc) && info.id.eq_ignore_ascii_case(self.tee)
        })
    }
}

/// A file of saved collateral, or a directory of them.
#[derive(Clone, Debug)]
pub struct Saved {
    pub path: PathBuf,
}

impl Saved {
    fn read(path: &Path) -> io::Result<Collateral> {
        if fs::metadata(path)?.len() > COLLATERAL_MAX as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is too large for collateral", path.display()),
            ));
        }
        Collateral::from_json(&fs::read(path)?).map_err(|error| {
            let text = format!("{}: {error}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }

    fn none(&self, needed: &Needed) -> io::Error {
        let path = self.path.display();
        let Needed { fmspc, tee, .. } = needed;
        let text = format!("{path} holds none for FMSPC {fmspc} ({tee})");
        io::Error::new(io::ErrorKind::NotFound, text)
    }
}

impl CollateralSource for Saved {
    /// Of several for the same platform, the one that lasts longest.
    fn collateral(&self, quote: &Quote, _now: u64) -> io::Result<Collateral> {
        let failed = |error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
        };
        let needed = Needed::of_quote(quote)?;
        let metadata = match fs::metadata(&self.path) {
            // A cache into which nothing was put yet is an empty one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.none(&needed)),
            other => other.map_err(failed)?,
        };
        if metadata.is_file() {
            return Saved::read(&self.path);
        }
        let mut best: Option<Collateral> = None;
        for entry in fs::read_dir(&self.path).map_err(failed)?.take(FILES_MAX) {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let Ok(collateral) = Saved::read(&path) else {
                continue;
            };
            let lasts = |collateral: &Collateral| collateral.next_update().unwrap_or(0);
            if needed.matches(&collateral)
                && best
                    .as_ref()
                    .is_none_or(|best| lasts(best) < lasts(&collateral))
            {
                best = Some(collateral);
            }
        }
        best.ok_or_else(|| self.none(&needed))
    }
}

/// Several sources, asked in order.
pub struct FirstOf(pub Vec<Box<dyn CollateralSource>>);

impl CollateralSource for FirstOf {
    fn collateral(&self, quote: &Quote, now: u64) -> io::Result<Collateral> {
        let mut errors = Vec::new();
        for source in &self.0 {
            match source.collateral(quote, now) {
                Ok(collateral) => return Ok(collateral),
                Err(error) => errors.push(error),
            }
        }
        // That a source is not meant for such a quote is of interest only where none is.
        let not_found = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        if !errors.iter().all(not_found) {
            errors.retain(|error| !not_found(error));
        }
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Err(io::Error::other(texts.join("; ")))
    }
}

/// The collateral of this machine's emulated platform, for its own quotes only.
pub struct LocalEmulated {
    pub state: PathBuf,
}

impl CollateralSource for LocalEmulated {
    fn collateral(&self, quote: &Quote, _now: u64) -> io::Result<Collateral> {
        let local = crate::emulated::Provisioning::existing(&self.state);
        let root = |chain: &str| {
            pem::parse_many(chain)
                .ok()?
                .pop()
                .map(pem::Pem::into_contents)
        };
        local
            .filter(|local| root(local.pck_chain()).as_ref() == quote.certificates.last())
            .map(|local| local.collateral().clone())
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::NotFound,
                    "it is not of this machine's emulated platform",
                )
            })
    }
}
