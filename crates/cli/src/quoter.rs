//! Quotes for the enclave: from AESM on hardware, from the software quoting enclave where the
//! platform is emulated. Nothing is opened before the enclave asks.

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use bulla_attest::Aesm;
use bulla_attest::emulated::{Provisioning, QuotingEnclave};
use bulla_loader::Quoter;
use bulla_loader::backend::emulated::{CPU_SVN, Fuses, verify_report};

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// The quoter of a platform, by its backend's name.
pub fn of_platform(name: &str, emulated_state: PathBuf) -> Box<dyn Quoter> {
    if name == "emulated" {
        Box::new(Emulated {
            state: emulated_state,
            opened: OnceLock::new(),
        })
    } else {
        Box::new(Hardware {
            aesm: Aesm::of_machine(),
        })
    }
}

struct Hardware {
    aesm: Aesm,
}

impl Quoter for Hardware {
    fn target(&self) -> io::Result<[u8; 512]> {
        self.aesm.target_info().map_err(io::Error::other)
    }

    fn quote(&self, report: &[u8]) -> io::Result<Vec<u8>> {
        let report = report
            .try_into()
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.aesm.quote(report).map_err(io::Error::other)
    }
}

/// The emulated machine's quoting enclave.
struct Emulated {
    state: PathBuf,
    opened: OnceLock<Result<(Provisioning, QuotingEnclave), String>>,
}

impl Emulated {
    fn open(&self) -> io::Result<&(Provisioning, QuotingEnclave)> {
        let opened = self.opened.get_or_init(|| {
            let provisioning = Provisioning::open(&self.state, CPU_SVN, now())
                .map_err(|error| error.to_string())?;
            let fuses = Fuses::open(&self.state).map_err(|error| error.to_string())?;
            let check = move |target: &_, report: &_| verify_report(&fuses, target, report);
            let enclave = QuotingEnclave::new(&provisioning, Box::new(check))
                .map_err(|error| error.to_string())?;
            Ok((provisioning, enclave))
        });
        opened
            .as_ref()
            .map_err(|reason| io::Error::other(reason.clone()))
    }
}

impl Quoter for Emulated {
    fn target(&self) -> io::Result<[u8; 512]> {
        Ok(self.open()?.1.target_info().to_bytes())
    }

    fn quote(&self, report: &[u8]) -> io::Result<Vec<u8>> {
        self.open()?.1.quote(report).map_err(io::Error::other)
    }

    fn collateral(&self) -> io::Result<Vec<u8>> {
        Ok(self.open()?.0.collateral().to_json().into_bytes())
    }
}
