//! /dev/attestation, as programs in the enclave see it (Gramine's files).

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::collateral::Collateral;
use crate::ratls::Attester;

/// The enclave that this program runs in.
pub struct Device {
    directory: PathBuf,
    /// Report data is written to one file and the quote read from another.
    turn: Mutex<()>,
}

impl Default for Device {
    fn default() -> Self {
        Device::new()
    }
}

impl Device {
    pub fn new() -> Device {
        Device {
            directory: "/dev/attestation".into(),
            turn: Mutex::new(()),
        }
    }

    /// Whether this program runs in an enclave that offers attestation.
    pub fn is_present(&self) -> bool {
        self.directory.join("user_report_data").exists()
    }

    /// How quotes are made: `dcap` or `none`.
    pub fn kind(&self) -> io::Result<String> {
        let text = fs::read_to_string(self.directory.join("attestation_type"))?;
        Ok(text.trim().to_string())
    }

    /// A quote with this report data.
    ///
    /// Other programs of the container use the same files; the quote is asked for again where one
    /// came in between.
    pub fn quote(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        const TRIES: usize = 16;
        let _turn = self
            .turn
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        for _ in 0..TRIES {
            fs::write(self.directory.join("user_report_data"), report_data)?;
            let quote = fs::read(self.directory.join("quote"))?;
            // Header 48 bytes, then the report, which ends with the report data.
            if quote.get(48 + 320..48 + 384) == Some(report_data.as_slice()) {
                return Ok(quote);
            }
        }
        Err(io::Error::other(
            "/dev/attestation/quote answers with other report data: other programs keep writing to user_report_data",
        ))
    }

    /// Forgets the report data: what this process becomes or starts begins with zeros.
    pub fn forget(&self) -> io::Result<()> {
        fs::write(self.directory.join("user_report_data"), [0; 64])
    }

    /// A sealing key of this enclave (`_sgx_mrenclave`, `_sgx_mrsigner`) or one that was provided.
    pub fn key(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.directory.join("keys").join(name))
    }

    /// The collateral that the host has for this machine's quotes.
    pub fn collateral(&self) -> Option<Collateral> {
        let bytes = fs::read(self.directory.join("collateral")).ok()?;
        Collateral::from_json(&bytes).ok()
    }
}

impl Attester for Device {
    fn quote(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        Device::quote(self, report_data)
    }

    fn collateral(&self) -> Option<Collateral> {
        Device::collateral(self)
    }
}
