//! What an image says about how it is to be run.

use crate::error::Error;
use oci_spec::image::{Arch, ImageConfiguration, Os};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The run-time part of an image's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Empty, `name`, `uid`, `name:group` or `uid:gid`.
    pub user: String,
    /// Empty means `/`.
    pub workdir: String,
    /// `80/tcp` and the like.
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    /// `SIGTERM`, `15`; empty when the image does not say.
    pub stop_signal: String,
    /// When it was made, in RFC 3339; empty when the image does not say.
    #[serde(default)]
    pub created: String,
    /// Sorted.
    pub labels: Vec<(String, String)>,
}

/// A parsed configuration blob: what to run, and the layers' digests.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub config: ImageConfig,
    pub diff_ids: Vec<String>,
}

/// Parses a configuration blob and insists on linux/amd64.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Parsed, Error> {
    let parsed = ImageConfiguration::from_reader(bytes).map_err(|error| Error::Damaged {
        path: path.to_owned(),
        what: format!("its configuration is not an image configuration ({error})"),
    })?;
    if *parsed.os() != Os::Linux || *parsed.architecture() != Arch::Amd64 {
        let variant = parsed.variant().iter().map(|variant| format!("/{variant}"));
        let variant: String = variant.collect();
        return Err(Error::Platform {
            found: format!("{}/{}{variant}", parsed.os(), parsed.architecture()),
        });
    }
    let diff_ids = parsed.rootfs().diff_ids().clone();
    let created = parsed.created().clone().unwrap_or_default();
    let Some(config) = parsed.config() else {
        return Ok(Parsed {
            config: ImageConfig {
                created,
                ..ImageConfig::default()
            },
            diff_ids,
        });
    };
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let labels = config.labels().clone().unwrap_or_default();
    let mut labels: Vec<_> = labels.into_iter().collect();
    labels.sort();
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    Ok(Parsed {
        config: ImageConfig {
            entrypoint: list(config.entrypoint()),
            cmd: list(config.cmd()),
            env: list(config.env()),
            user: text(config.user()),
            workdir: text(config.working_dir()),
            exposed_ports: sorted(list(config.exposed_ports())),
            volumes: sorted(list(config.volumes())),
            stop_signal: text(config.stop_signal()),
            created,
            labels,
        },
        diff_ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_docker_configuration() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Hostname":"x","Env":["A=b"],
            "Cmd":["sh","-c","x"],"Entrypoint":null,"User":"redis","WorkingDir":"/data",
            "ExposedPorts":{"6379/tcp":{}},"Volumes":{"/data":{}},"StopSignal":"SIGINT",
            "OnBuild":null,"Labels":null},"rootfs":{"type":"layers","diff_ids":["sha256:00"]},
            "container_config":{},"docker_version":"20","history":[{"created":
            "2023-01-01T00:00:00Z"}]}"#;
        let parsed = parse(Path::new("x"), text.as_bytes()).unwrap();
        assert_eq!(parsed.config.cmd, ["sh", "-c", "x"]);
        assert_eq!(parsed.config.volumes, ["/data"]);
        assert_eq!(parsed.config.exposed_ports, ["6379/tcp"]);
        assert_eq!(parsed.config.user, "redis");
        assert_eq!(parsed.diff_ids, ["sha256:00"]);
    }

    #[test]
    fn refuses_other_platforms_by_name() {
        let text = r#"{"architecture":"arm64","os":"linux","variant":"v8",
            "rootfs":{"type":"layers","diff_ids":[]}}"#;
        let error = parse(Path::new("x"), text.as_bytes()).unwrap_err();
        let expected = "the image is for linux/arm64/v8; bulla needs linux/amd64";
        assert_eq!(error.to_string(), expected);
    }
}
