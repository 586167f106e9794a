//! Quotes of this project's platforms and Intel's: [`crate::quote`]'s traits over `bulla-attest`.

use crate::quote::{Evidence, QuoteIssuer, QuoteVerifier};
use bulla_attest::emulated::Provisioning;
use bulla_attest::{Collateral, Device, Identity, Platform};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Collateral is replaced on disk by whoever fetches it; this often it is looked at again.
const REREAD: Duration = Duration::from_secs(60);
/// Where the quoting enclave's security version stands in a quote of version 3: header 48, report
/// 384, length 4, signature and key 128, then ISVSVN within the enclave's own report.
const QE_SVN_AT: usize = 48 + 384 + 4 + 128 + 258;

/// Verifies with collateral from files: one, or a directory of them (`*.json`), for as many kinds
/// of machines.
pub struct Verifier {
    place: Option<PathBuf>,
    /// State of this machine's emulated platform.
    emulated: Option<PathBuf>,
    cache: Mutex<Option<(Instant, Arc<Vec<Collateral>>)>>,
}

impl Verifier {
    /// None: the collateral that the platform offers in `/dev/attestation`.
    pub fn new(place: Option<&Path>) -> Verifier {
        Verifier {
            place: place.map(Path::to_owned),
            emulated: None,
            cache: Mutex::new(None),
        }
    }

    /// Where no collateral is named: that of this machine's emulated platform too, whose state is
    /// there. Quotes of emulated platforms count only where a manifest accepts them.
    pub fn or_emulated(mut self, state: PathBuf) -> Verifier {
        self.emulated = Some(state);
        self
    }

    fn collateral(&self) -> Result<Arc<Vec<Collateral>>, String> {
        let mut cache = self.cache.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((read, list)) = cache.as_ref()
            && read.elapsed() < REREAD
        {
            return Ok(list.clone());
        }
        let list = match &self.place {
            None => {
                let emulated = self.emulated.as_deref();
                let emulated = emulated.and_then(Provisioning::existing);
                let emulated = emulated.map(|platform| platform.collateral().clone());
                Device::new()
                    .collateral()
                    .into_iter()
                    .chain(emulated)
                    .collect()
            }
            Some(place) => read_all(place)?,
        };
        if list.is_empty() {
            return Err(
                "there is no collateral to verify quotes with: name it with \
                        --collateral"
                    .to_owned(),
            );
        }
        let list = Arc::new(list);
        *cache = Some((Instant::now(), list.clone()));
        Ok(list)
    }
}

fn read_all(place: &Path) -> Result<Vec<Collateral>, String> {
    let failed =
        |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut files = Vec::new();
    if place.is_dir() {
        for entry in std::fs::read_dir(place).map_err(|error| failed(place, &error))? {
            let path = entry.map_err(|error| failed(place, &error))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                files.push(path);
            }
        }
        files.sort();
    } else {
        files.push(place.to_owned());
    }
    files
        .iter()
        .map(|path| {
            let bytes = std::fs::read(path).map_err(|error| failed(path, &error))?;
            Collateral::from_json(&bytes).map_err(|error| failed(path, &error))
        })
        .collect()
}

impl QuoteVerifier for Verifier {
    fn verify(&self, quote: &[u8]) -> Result<Evidence, String> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        let mut reason = String::new();
        for collateral in self.collateral()?.iter() {
            match bulla_attest::verify(quote, collateral, now) {
                Ok(evidence) => return convert(&evidence, quote),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(reason)
    }
}

fn convert(evidence: &bulla_attest::Evidence, quote: &[u8]) -> Result<Evidence, String> {
    let Identity::Enclave(enclave) = &evidence.identity else {
        return Err("it is not of an SGX enclave".to_owned());
    };
    let qe_svn = quote
        .get(QE_SVN_AT..QE_SVN_AT + 2)
        .map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    Ok(Evidence {
        mr_enclave: enclave.mrenclave.0,
        mr_signer: enclave.mrsigner.0,
        product_id: enclave.isv_prod_id,
        security_version: enclave.isv_svn,
        debug: enclave.debug,
        report_data: enclave.report_data.0,
        tcb_status: evidence.tcb.status.name().to_owned(),
        advisories: evidence.tcb.advisories.clone(),
        cpu_svn: enclave.cpu_svn.0,
        pce_svn: evidence.machine.pce_svn,
        qe_svn,
        root_hash: evidence.root.0,
        platform: evidence.machine.ppid.clone(),
        emulated: evidence.platform == Platform::Emulated,
    })
}

/// Quotes of the enclave that this program runs in.
#[derive(Default)]
pub struct ThisEnclave(Device);

impl QuoteIssuer for ThisEnclave {
    fn issue(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, String> {
        self.0.quote(report_data).map_err(|error| error.to_string())
    }
}
