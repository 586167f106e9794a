//! The agent's settings: TOML, a file of the measured configuration.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

/// Why the settings cannot be used.
#[derive(Debug, Error)]
pub enum SettingsError {
    #[error("the settings {} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the settings {} are malformed: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
}

/// All of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub tls: Option<Tls>,
}

/// `[attestation.tls]` of the manifest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Where `tls.key` and `tls.crt` go; made if it is not there. In memory of the enclave.
    pub directory: PathBuf,
    pub common_name: String,
    /// DNS names and addresses of the certificate.
    pub names: Vec<String>,
    pub valid_hours: u32,
    /// Gramine's extension too.
    pub gramine: bool,
    /// Let the collateral travel along.
    pub endorsements: bool,
    /// Signal for process 1 after a renewal, by number; 0 for none.
    pub reload_signal: i32,
}

impl Default for Tls {
    fn default() -> Self {
        Tls {
            directory: "/dev/shm/bulla-tls".into(),
            common_name: "bulla".into(),
            names: Vec::new(),
            valid_hours: 24,
            gramine: false,
            endorsements: true,
            reload_signal: 0,
        }
    }
}

impl Settings {
    pub fn read(path: &Path) -> Result<Settings, SettingsError> {
        let text = fs::read_to_string(path).map_err(|source| SettingsError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|error| SettingsError::Malformed {
            path: path.to_owned(),
            reason: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_strict() {
        let settings: Settings = toml::from_str("[tls]\nnames = [\"db\"]").unwrap();
        let tls = settings.tls.unwrap();
        assert_eq!((tls.names.len(), tls.valid_hours), (1, 24));
        assert!(toml::from_str::<Settings>("[tls]\nname = \"db\"").is_err());
        assert!(toml::from_str::<Settings>("[tsl]").is_err());
    }
}
