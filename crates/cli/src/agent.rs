//! Putting the agent before the application, as `[attestation.tls]` of the manifest asks.
//!
//! The agent (crates/agent, a static program) and its settings become files of the measured
//! configuration, under /run/bulla, and the container starts with the agent, which becomes the
//! application once it is done.

use std::fs;
use std::path::PathBuf;

use bulla_abi::config::{Config, FixedFile};

use crate::failure::Failure;

const AGENT: &str = "/run/bulla/agent";
const SETTINGS: &str = "/run/bulla/settings.toml";

/// What `[attestation.tls]` may hold; the agent says what each means.
const TLS_KEYS: [&str; 7] = [
    "directory",
    "common_name",
    "names",
    "valid_hours",
    "gramine",
    "endorsements",
    "reload_signal",
];

/// Changes the configuration so that it starts with the agent.
pub fn install(config: &mut Config, attestation: &toml::Table) -> Result<(), Failure> {
    for key in attestation.keys() {
        if key != "tls" {
            return Err(Failure::new(format!(
                "attestation.{key} is not a key of the manifest; there is attestation.tls"
            )));
        }
    }
    let Some(tls) = attestation.get("tls") else {
        return Ok(());
    };
    let tls = tls
        .as_table()
        .ok_or_else(|| Failure::new("attestation.tls is a table: write [attestation.tls]"))?;
    for key in tls.keys() {
        if !TLS_KEYS.contains(&key.as_str()) {
            return Err(Failure::new(format!(
                "attestation.tls.{key} is not a key of the manifest; there are {}",
                TLS_KEYS.join(", ")
            )));
        }
    }
    let settings = toml::to_string(attestation).map_err(Failure::new)?;
    let file = |path: &str, content: Vec<u8>, mode| FixedFile {
        path: path.into(),
        content,
        mode,
    };
    config.files.push(file(AGENT, program()?, 0o755));
    config
        .files
        .push(file(SETTINGS, settings.into_bytes(), 0o444));
    config.argv.splice(0..0, [AGENT.into(), SETTINGS.into()]);
    Ok(())
}

/// The agent's program: beside bulla's own, or what BULLA_AGENT names.
fn program() -> Result<Vec<u8>, Failure> {
    let named = std::env::var_os("BULLA_AGENT").map(PathBuf::from);
    let beside = || Some(std::env::current_exe().ok()?.with_file_name("bulla-agent"));
    let path = named
        .or_else(beside)
        .ok_or_else(|| Failure::new("bulla's own program cannot be found; set BULLA_AGENT"))?;
    fs::read(&path).map_err(|error| {
        Failure::new(format!(
            "[attestation.tls] needs the agent, and {} cannot be read: {error}; build it with \
             scripts/agent.sh, or set BULLA_AGENT",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused() {
        for text in ["[tsl]", "[tls]\nname = \"x\"", "tls = 1"] {
            let table: toml::Table = toml::from_str(text).unwrap();
            let mut config = Config::default();
            assert!(install(&mut config, &table).is_err(), "{text}");
            assert!(config.files.is_empty() && config.argv.is_empty());
        }
        let mut config = Config::default();
        install(&mut config, &toml::Table::new()).unwrap();
        assert!(config.argv.is_empty());
    }
}
