//! The agent's settings: `[attestation]` and `[coordinator]` of the manifest, TOML, a file of the
//! measured configuration.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bulla_attest::{HexBytes, Policy};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why the settings cannot be used.
#[derive(Debug, Error)]
pub enum SettingsError {
    #[error("the settings {} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("[attestation]: {0}")]
    Malformed(String),
    #[error("{section}.{key}: {reason}")]
    Unusable {
        section: &'static str,
        key: &'static str,
        reason: String,
    },
}

/// All of them.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<Coordinator>,
}

/// `[coordinator]` of the manifest, whose meaning is documented there (`bulla manifest reference`).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Coordinator {
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marble: Option<String>,
    pub names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_sha256: Option<HexBytes<32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_address: Option<String>,
    pub insecure_any: bool,
    pub directory: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crl_seconds: Option<u32>,
    pub reload_signal: i32,
    pub reload_command: Vec<String>,
    pub wait_seconds: u32,
    /// The coordinator's variable that holds the key of the encrypted image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_key: Option<String>,
    /// Variables of the application, and the coordinator's variables that they take their values
    /// from.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

impl Default for Coordinator {
    fn default() -> Self {
        Coordinator {
            address: "localhost:2001".into(),
            marble: None,
            names: vec!["localhost".into()],
            root_sha256: None,
            client_address: None,
            insecure_any: false,
            directory: "/dev/shm/bulla-marble".into(),
            uuid_file: None,
            renew_seconds: None,
            crl_seconds: None,
            reload_signal: 0,
            reload_command: Vec::new(),
            wait_seconds: 60,
            image_key: None,
            secrets: BTreeMap::new(),
            policy: None,
        }
    }
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
/// Revocation lists go out of date after ten minutes, and the application loads one twice as old.
const CRL_SECONDS_MAX: u32 = 240;

impl Tls {
    /// How long a certificate lives, in seconds.
    pub fn lifetime(&self) -> u64 {
        match self.valid_seconds {
            Some(seconds) => seconds.into(),
            None => u64::from(self.valid_hours) * 3600,
        }
    }

    fn check(&self) -> Result<(), SettingsError> {
        let refuse = |key, reason: &str| Err(unusable("attestation.tls", key, reason));
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
        match self.names.iter().find(|name| !is_name(name)) {
            Some(name) => refuse("names", &format!("{name:?} is no DNS name or address")),
            None => Ok(()),
        }
    }
}

impl Coordinator {
    fn check(&self) -> Result<(), SettingsError> {
        let refuse = |key, reason: &str| Err(unusable("coordinator", key, reason));
        if !is_address(&self.address) {
            return refuse("address", "write HOST:PORT");
        }
        if self
            .client_address
            .as_ref()
            .is_some_and(|address| !is_address(address))
        {
            return refuse("client_address", "write HOST:PORT");
        }
        if self.marble.as_deref() == Some("") {
            return refuse(
                "marble",
                "write the name of a marble of the coordinator's manifest",
            );
        }
        if let Some(name) = self.names.iter().find(|name| !is_name(name)) {
            return refuse("names", &format!("{name:?} is no DNS name or address"));
        }
        let trusts = [
            self.root_sha256.is_some(),
            self.policy.is_some(),
            self.insecure_any,
        ];
        match trusts.iter().filter(|given| **given).count() {
            1 => {}
            0 => {
                return refuse(
                    "root_sha256",
                    "say which coordinator is trusted: root_sha256, [coordinator.policy] or \
                     insecure_any",
                );
            }
            _ => {
                return refuse(
                    "root_sha256",
                    "only one of root_sha256, [coordinator.policy] and insecure_any can say which \
                     coordinator is trusted",
                );
            }
        }
        if let Some(policy) = &self.policy {
            let text = toml::to_string(policy).expect("policies always serialise");
            if let Err(error) = Policy::from_toml(text.as_bytes()) {
                return refuse("policy", &error.to_string());
            }
        }
        if !self.directory.is_absolute() {
            return refuse("directory", "write a path that begins with /");
        }
        if self
            .uuid_file
            .as_ref()
            .is_some_and(|path| !path.is_absolute())
        {
            return refuse("uuid_file", "write a path that begins with /");
        }
        if self.image_key.as_deref() == Some("") {
            return refuse(
                "image_key",
                "write the name of the coordinator's variable that holds the key",
            );
        }
        if self.image_key.is_some() && self.uuid_file.is_some() {
            return refuse(
                "uuid_file",
                "it cannot be read before the coordinator has given image_key, which needs the \
                 UUID; leave one of them out",
            );
        }
        if self
            .renew_seconds
            .is_some_and(|seconds| seconds < SECONDS_MIN)
        {
            return refuse("renew_seconds", "write a number from 3 on");
        }
        if self
            .crl_seconds
            .is_some_and(|seconds| !(SECONDS_MIN..=CRL_SECONDS_MAX).contains(&seconds))
        {
            return refuse("crl_seconds", "write a number from 3 to 240");
        }
        if !(0..=64).contains(&self.reload_signal) {
            return refuse("reload_signal", "write a signal's number, or 0 for none");
        }
        Ok(())
    }
}

fn unusable(section: &'static str, key: &'static str, reason: &str) -> SettingsError {
    let reason = reason.to_owned();
    SettingsError::Unusable {
        section,
        key,
        reason,
    }
}

/// A DNS name (with `*` for any label) or an address.
pub fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_*".contains(&byte))
    };
    name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label))
}

/// `HOST:PORT`, `[::1]:PORT`.
pub fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        is_name(host) && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

impl Settings {
    pub fn read(path: &Path) -> Result<Settings, SettingsError> {
        let text = fs::read_to_string(path).map_err(|source| SettingsError::Read {
            path: path.to_owned(),
            source,
        })?;
        Settings::parse(&text)
    }

    /// Reads and checks them.
    pub fn parse(text: &str) -> Result<Settings, SettingsError> {
        let settings: Settings = toml::from_str(text)
            .map_err(|error| SettingsError::Malformed(error.to_string().trim_end().into()))?;
        settings.tls.iter().try_for_each(Tls::check)?;
        settings
            .coordinator
            .iter()
            .try_for_each(Coordinator::check)?;
        Ok(settings)
    }

    /// What of the settings changes what the container does, beside making a key in the usual place.
    pub fn open(&self) -> Vec<String> {
        let mut open = Vec::new();
        if let Some(tls) = &self.tls
            && tls.directory != Tls::default().directory
        {
            let directory = tls.directory.display();
            open.push(format!("attestation.tls.directory {directory}"));
        }
        // Whoever is the coordinator decides about files, variables and arguments.
        if let Some(coordinator) = &self.coordinator {
            open.push(match (&coordinator.root_sha256, coordinator.insecure_any) {
                (Some(root), _) => format!("coordinator with root {root}"),
                (None, true) => "coordinator that is not verified".into(),
                (None, false) => {
                    let policy = toml::to_string(&coordinator.policy).unwrap_or_default();
                    let hash = HexBytes(bulla_attest::sha256(&[policy.as_bytes()]));
                    format!("coordinator by a policy with SHA-256 {hash}")
                }
            });
        }
        open
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
    fn a_coordinator_is_pinned_in_one_way() {
        let root = format!("root_sha256 = \"{}\"", "ab".repeat(32));
        let policy = format!(
            "[coordinator.policy]\naccept = [{{ mrenclave = \"{}\" }}]",
            "cd".repeat(32)
        );
        for text in [
            format!("[coordinator]\n{root}\nmarble = \"team/web\""),
            format!("[coordinator]\naddress = \"[::1]:2001\"\n{policy}"),
            "[coordinator]\ninsecure_any = true\nnames = []".into(),
        ] {
            let settings = Settings::parse(&text).unwrap();
            assert_eq!(Settings::parse(&settings.to_toml()).unwrap(), settings);
            assert_eq!(settings.open().len(), 1);
        }
        for text in [
            "[coordinator]".into(),
            format!("[coordinator]\n{root}\n{policy}"),
            format!("[coordinator]\n{root}\ninsecure_any = true"),
            "[coordinator]\nroot_sha256 = \"abc\"".into(),
            "[coordinator.policy]\naccept = [{ mrsigner = \"ab\" }]".into(),
            format!(
                "[coordinator.policy]\naccept = [{{ mrsigner = \"{}\" }}]",
                "ab".repeat(32)
            ),
            format!("[coordinator]\n{root}\nadress = \"a:1\""),
            format!("[coordinator]\n{root}\naddress = \"a\""),
            format!("[coordinator]\n{root}\naddress = \"a:0\""),
            format!("[coordinator]\n{root}\naddress = \"https://a:1\""),
            format!("[coordinator]\n{root}\nclient_address = \"a\""),
            format!("[coordinator]\n{root}\nmarble = \"\""),
            format!("[coordinator]\n{root}\nnames = [\"a b\"]"),
            format!("[coordinator]\n{root}\ndirectory = \"tls\""),
            format!("[coordinator]\n{root}\nuuid_file = \"uuid\""),
            format!("[coordinator]\n{root}\nimage_key = \"\""),
            format!("[coordinator]\n{root}\nimage_key = \"K\"\nuuid_file = \"/data/uuid\""),
            format!("[coordinator]\n{root}\nrenew_seconds = 1"),
            format!("[coordinator]\n{root}\ncrl_seconds = 2"),
            format!("[coordinator]\n{root}\ncrl_seconds = 241"),
            format!("[coordinator]\n{root}\nreload_signal = 99"),
        ] {
            assert!(Settings::parse(&text).is_err(), "{text}");
        }
    }

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
