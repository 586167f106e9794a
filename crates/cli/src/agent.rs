//! Putting the agent before the application, as `[attestation.tls]` and `[coordinator]` of the manifest
//! ask.
//!
//! The agent (crates/agent, a static program that this one brings along) and its settings become files
//! of the measured configuration, under /run/bulla, and the container starts with the agent, which
//! becomes the application once it is done. Without them nothing of it is there.

use bulla_abi::config::{AGENT, Config, FixedFile};
use bulla_agent::settings::Settings;
use bulla_image::embedded;
use bulla_image::manifest::{Manifest, Variable};

use crate::failure::Failure;

const SETTINGS: &str = "/run/bulla/settings.toml";

/// Changes the configuration so that it starts with the agent, if the manifest wants that.
pub fn install(config: &mut Config, manifest: &Manifest) -> Result<(), Failure> {
    let settings = settings(manifest)?;
    if settings.tls.is_none() && settings.coordinator.is_none() {
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

fn settings(manifest: &Manifest) -> Result<Settings, Failure> {
    let mut table = manifest.attestation.clone().unwrap_or_default();
    if table.contains_key("coordinator") {
        return Err(Failure::new(
            "[attestation.coordinator] is no section; write [coordinator]",
        ));
    }
    if let Some(coordinator) = &manifest.coordinator {
        let mut coordinator = toml::Table::try_from(coordinator).map_err(Failure::new)?;
        let secrets: toml::Table = manifest
            .environment
            .iter()
            .filter_map(|(variable, source)| match source {
                // With `insecure_host` it is the host that gives it.
                Variable::From(source) if !source.insecure_host => {
                    Some((variable.clone(), source.secret.clone()?.into()))
                }
                _ => None,
            })
            .collect();
        if !secrets.is_empty() {
            coordinator.insert("secrets".into(), secrets.into());
        }
        table.insert("coordinator".into(), coordinator.into());
    }
    let text = toml::to_string(&table).map_err(Failure::new)?;
    Settings::parse(&text).map_err(Failure::new)
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

    fn installed_by(text: &str) -> Result<Config, Failure> {
        let mut config = Config {
            argv: vec![b"redis-server".to_vec()],
            ..Config::default()
        };
        install(&mut config, &Manifest::parse(text).unwrap())?;
        Ok(config)
    }

    #[test]
    fn what_the_agent_cannot_use_is_refused_before_it_is_measured() {
        for text in [
            "[attestation.tsl]",
            "[attestation.tls]\nname = \"x\"",
            "[attestation]\ntls = 1",
            "[attestation.tls]\nvalid_hours = \"x\"",
            "[attestation.coordinator]\ninsecure_any = true",
            "[coordinator]",
            "[coordinator]\nroot_sha256 = \"x\"",
            "[coordinator.policy]\nwhatever = 1",
        ] {
            assert!(installed_by(text).is_err(), "{text}");
        }
        let config = installed_by("").unwrap();
        assert!(config.argv.len() == 1 && config.files.is_empty());
    }

    #[test]
    fn the_agent_comes_first() {
        let config = installed_by("[attestation.tls]\nnames = [\"db\"]").unwrap();
        assert_eq!(
            config.argv,
            [AGENT.as_bytes(), SETTINGS.as_bytes(), b"redis-server"]
        );
        let files: Vec<_> = config.files.iter().map(|file| &file.path[..]).collect();
        assert_eq!(files, [AGENT.as_bytes(), SETTINGS.as_bytes()]);
        assert_eq!(&config.files[0].content[..4], b"\x7fELF");
    }

    #[test]
    fn the_agent_understands_each_key_of_the_manifest() {
        let config = installed_by(
            "[coordinator]\naddress = \"c:1\"\nmarble = \"web\"\nnames = [\"web\"]\n\
             client_address = \"c:2\"\ndirectory = \"/tls\"\nuuid_file = \"/data/uuid\"\n\
             renew_seconds = 9\ncrl_seconds = 30\nreload_signal = 1\nreload_command = [\"a\", \"b\"]\nwait_seconds = 7\n\
             [coordinator.policy]\naccept = [{ mrenclave = \"00000000000000000000000000000000\
             00000000000000000000000000000000\" }]\n\
             [environment]\nPASSWORD = { secret = \"DB_PASSWORD\" }",
        )
        .unwrap();
        let settings = installed(&config).unwrap().coordinator.unwrap();
        assert_eq!(settings.secrets["PASSWORD"], "DB_PASSWORD");
        assert_eq!(settings.address, "c:1");
        assert_eq!(settings.marble.as_deref(), Some("web"));
        assert_eq!(settings.wait_seconds, 7);
        assert!(settings.policy.is_some());
        // The defaults that the manifest documents are the agent's own.
        let least = Manifest::parse("[coordinator]\ninsecure_any = true").unwrap();
        let expected = bulla_agent::settings::Coordinator {
            insecure_any: true,
            ..Default::default()
        };
        assert_eq!(super::settings(&least).unwrap().coordinator, Some(expected));
    }
}
