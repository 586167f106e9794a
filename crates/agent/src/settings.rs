//! The agent's settings: `[attestation]` of the manifest, TOML, a file of the measured configuration.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why the settings cannot be used.
#[derive(Debug, Error)]
pub enum SettingsError {
    #[error("the settings {} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("[attestation]: {0}")]
    Malformed(String),
    #[error("attestation.tls.{key}: {reason}")]
    Unusable { key: &'static str, reason: String },
}

/// All of them.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub tls: Option<Tls>,
}

/// `[attestation.tls]` of the manifest.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Where `tls.key` and `tls.crt` go; made if it is not there. In memory of the enclave.
    pub directory: PathBuf,
    pub common_name: String,
    /// DNS names and addresses of the certificate.
    pub names: Vec<String>,
    pub valid_hours: u32,
    /// For certificates that live shorter than an hour; comes before `valid_hours`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_seconds: Option<u32>,
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
            valid_seconds: None,
            gramine: false,
            endorsements: true,
            reload_signal: 0,
        }
    }
}

/// A year: the quote in it speaks for the day when it was made.
const HOURS_MAX: u32 = 366 * 24;
/// Below this nobody can keep up with renewals.
const SECONDS_MIN: u32 = 3;

impl Tls {
    /// How long a certificate lives, in seconds.
    pub fn lifetime(&self) -> u64 {
        match self.valid_seconds {
            Some(seconds) => seconds.into(),
            None => u64::from(self.valid_hours) * 3600,
        }
    }

    fn check(&self) -> Result<(), SettingsError> {
        let refuse = |key, reason: &str| {
            let reason = reason.to_owned();
            Err(SettingsError::Unusable { key, reason })
        };
        if !self.directory.is_absolute() {
            return refuse("directory", "write a path that begins with /");
        }
        if self.valid_hours == 0 || self.valid_hours > HOURS_MAX {
            return refuse("valid_hours", "write a number from 1 to 8784");
        }
        if self.valid_seconds.is_some_and(|s| s < SECONDS_MIN) {
            return refuse("valid_seconds", "write a number from 3 on");
        }
        if !(0..=64).contains(&self.reload_signal) {
            return refuse("reload_signal", "write a signal's number, or 0 for none");
        }
        let is_name = |name: &String| {
            let label = |label: &str| {
                (1..=63).contains(&label.len())
                    && label
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-_*".contains(&byte))
            };
            name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label))
        };
        match self.names.iter().find(|name| !is_name(name)) {
            Some(name) => refuse("names", &format!("{name:?} is no DNS name or address")),
            None => Ok(()),
        }
    }
}

impl Settings {
    pub fn read(path: &Path) -> Result<Settings, SettingsError> {
        let text = fs::read_to_string(path).map_err(|source| SettingsError::Read {
            path: path.to_owned(),
            source,
        })?;
        Settings::parse(&text)
    }

    /// Reads and checks `[attestation]`.
    pub fn parse(text: &str) -> Result<Settings, SettingsError> {
        let settings: Settings = toml::from_str(text)
            .map_err(|error| SettingsError::Malformed(error.to_string().trim_end().into()))?;
        settings.tls.iter().try_for_each(Tls::check)?;
        Ok(settings)
    }

    /// Where the files go, if it is not where they usually go.
    pub fn unusual_directory(&self) -> Option<String> {
        let directory = &self.tls.as_ref()?.directory;
        (*directory != Tls::default().directory).then(|| directory.display().to_string())
    }

    /// The file's content.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("settings always serialise")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_strict() {
        let settings = Settings::parse("[tls]\nnames = [\"db\", \"::1\", \"*.example\"]").unwrap();
        assert_eq!(Settings::parse(&settings.to_toml()).unwrap(), settings);
        let tls = settings.tls.unwrap();
        assert_eq!((tls.names.len(), tls.lifetime()), (3, 86_400));
        for text in [
            "[tls]\nname = \"db\"",
            "[tsl]",
            "tls = 1",
            "[tls]\nnames = [\"a b\"]",
            "[tls]\nnames = [\"\"]",
            "[tls]\nnames = [\"https://db\"]",
            "[tls]\ndirectory = \"tls\"",
            "[tls]\nvalid_hours = 0",
            "[tls]\nvalid_hours = 100000",
            "[tls]\nvalid_hours = \"24\"",
            "[tls]\nvalid_seconds = 0",
            "[tls]\nreload_signal = 65",
            "[tls]\nreload_signal = -1",
        ] {
            assert!(Settings::parse(text).is_err(), "{text}");
        }
    }
}
