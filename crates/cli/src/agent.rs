//! Putting the agent before the application, as `[attestation.tls]` of the manifest asks.
//!
//! The agent (crates/agent, a static program that this one brings along) and its settings become files
//! of the measured configuration, under /run/bulla, and the container starts with the agent, which
//! becomes the application once it is done. Without `[attestation.tls]` nothing of it is there.

use bulla_abi::config::{AGENT, Config, FixedFile};
use bulla_agent::settings::Settings;
use bulla_image::embedded;

use crate::failure::Failure;

const SETTINGS: &str = "/run/bulla/settings.toml";

/// Changes the configuration so that it starts with the agent.
pub fn install(config: &mut Config, attestation: &toml::Table) -> Result<(), Failure> {
    let text = toml::to_string(attestation).map_err(Failure::new)?;
    let settings = Settings::parse(&text).map_err(Failure::new)?;
    if settings.tls.is_none() {
        return Ok(());
    }
    let file = |path: &str, content: Vec<u8>, mode| FixedFile {
        path: path.into(),
        content,
        mode,
    };
    config.files.extend([
        file(AGENT, embedded::AGENT.to_vec(), 0o755),
        file(SETTINGS, settings.to_toml().into_bytes(), 0o444),
    ]);
    config.argv.splice(0..0, [AGENT.into(), SETTINGS.into()]);
    Ok(())
}

/// Whether a file is one of the agent's.
pub fn is_own(path: &[u8]) -> bool {
    path == AGENT.as_bytes() || path == SETTINGS.as_bytes()
}

/// The settings of the agent that a configuration starts with, if it is this program's own agent and
/// nothing is in its place.
pub fn installed(config: &Config) -> Option<Settings> {
    let [program, settings, ..] = &config.argv[..] else {
        return None;
    };
    let only = |path: &str| {
        let mut files = config
            .files
            .iter()
            .filter(|file| file.path == path.as_bytes());
        files.next().filter(|_| files.next().is_none())
    };
    if program != AGENT.as_bytes()
        || settings != SETTINGS.as_bytes()
        || only(AGENT)?.content != embedded::AGENT
    {
        return None;
    }
    let text = std::str::from_utf8(&only(SETTINGS)?.content).ok()?;
    Settings::parse(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_cannot_use_is_refused_before_it_is_measured() {
        for text in [
            "[tsl]",
            "[tls]\nname = \"x\"",
            "tls = 1",
            "[tls]\nvalid_hours = \"x\"",
        ] {
            let table: toml::Table = toml::from_str(text).unwrap();
            let mut config = Config::default();
            assert!(install(&mut config, &table).is_err(), "{text}");
            assert!(config.files.is_empty() && config.argv.is_empty());
        }
        let mut config = Config::default();
        install(&mut config, &toml::Table::new()).unwrap();
        assert!(config.argv.is_empty() && config.files.is_empty());
    }

    #[test]
    fn the_agent_comes_first() {
        let table: toml::Table = toml::from_str("[tls]\nnames = [\"db\"]").unwrap();
        let mut config = Config {
            argv: vec![b"redis-server".to_vec()],
            ..Config::default()
        };
        install(&mut config, &table).unwrap();
        assert_eq!(
            config.argv,
            [AGENT.as_bytes(), SETTINGS.as_bytes(), b"redis-server"]
        );
        let files: Vec<_> = config.files.iter().map(|file| &file.path[..]).collect();
        assert_eq!(files, [AGENT.as_bytes(), SETTINGS.as_bytes()]);
        assert_eq!(&config.files[0].content[..4], b"\x7fELF");
    }
}
