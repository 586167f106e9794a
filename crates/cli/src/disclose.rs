//! What an enclave was started with: for policies that name files or images instead of MRENCLAVE.
//!
//! MRENCLAVE covers the configuration, but says nothing of it. Whoever knows the configuration can
//! measure it again and compare. There are two ways to know it: a *document* that the enclave's owner
//! publishes (`bulla measure --configuration FILE`), or the image itself, from which the verifier makes
//! the configuration as `bulla run` and `bulla build` do. Only this bulla's own enclave programs are
//! measured, never programs that came along: a document cannot bring its own library OS.
//!
//! A document may say anything, so what it leaves open is listed, and refused unless the policy
//! accepts it.

use std::ffi::OsStr;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bulla_abi::config::{Config, FixedFile};
use bulla_abi::layout::LayoutKind;
use bulla_attest::{Disclosed, HexBytes};
use bulla_image::Options;
use bulla_image::manifest::Manifest;
use serde::{Deserialize, Serialize};

use crate::agent;
use crate::args::Workload;
use crate::enclave::{self, Programs};
use crate::failure::Failure;
use crate::settle::settle;
use crate::state::hex;
use crate::volumes::VolumeOptions;
use crate::workload::{self, DEFAULT_PATH, Prepared, Source};

/// Largest document: two configurations of at most 4 MiB each, in base64.
pub const DOCUMENT_MAX: u64 = 16 << 20;
const FORMAT: &str = "bulla-configuration-1";
const KINDS: [LayoutKind; 2] = [LayoutKind::Dynamic, LayoutKind::Static];

/// A published configuration.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    /// Version of bulla that made it.
    bulla: String,
    layouts: Vec<Layout>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    layout: String,
    /// For people; it is computed again.
    mrenclave: String,
    /// Base64.
    config: String,
}

/// The document of a workload.
pub fn document(prepared: &Prepared) -> Result<Vec<u8>, Failure> {
    let mut layouts = Vec::new();
    for kind in KINDS {
        let image = enclave::build(prepared, kind, &Options::default())?;
        layouts.push(Layout {
            layout: kind.name().into(),
            mrenclave: hex(&image.mrenclave),
            config: BASE64_STANDARD.encode(prepared.config(kind).to_bytes()),
        });
    }
    let document = Document {
        format: FORMAT.into(),
        bulla: env!("CARGO_PKG_VERSION").into(),
        layouts,
    };
    let mut bytes = serde_json::to_vec_pretty(&document).map_err(Failure::new)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// What a document discloses.
pub fn of_document(bytes: &[u8]) -> Result<Disclosed, Failure> {
    let malformed = |error: String| Failure::new(format!("the configuration: {error}"));
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    if document.format != FORMAT {
        return Err(malformed(format!(
            "its format is {:?}, not {FORMAT:?}",
            document.format
        )));
    }
    let mut configs = Vec::new();
    for layout in &document.layouts {
        let kind = KINDS.into_iter().find(|kind| kind.name() == layout.layout);
        let kind = kind.ok_or_else(|| malformed(format!("no layout {:?}", layout.layout)))?;
        let bytes = BASE64_STANDARD
            .decode(&layout.config)
            .map_err(|error| malformed(error.to_string()))?;
        let config = Config::from_bytes(&bytes).ok_or_else(|| {
            malformed(format!(
                "bulla {} wrote it, which this version ({}) cannot read; use the same version",
                document.bulla,
                env!("CARGO_PKG_VERSION")
            ))
        })?;
        configs.push((kind, config));
    }
    of_configs(&configs)
}

/// Facts of configurations that differ in nothing but limits.
fn of_configs(configs: &[(LayoutKind, Config)]) -> Result<Disclosed, Failure> {
    let mut disclosed: Option<Disclosed> = None;
    for (kind, config) in configs {
        let image = enclave::lay_out(&Programs::embedded(), config, *kind, &Options::default())?;
        let facts = Disclosed {
            mrenclaves: vec![HexBytes(image.mrenclave)],
            ..facts(config)
        };
        match &mut disclosed {
            None => disclosed = Some(facts),
            Some(known) => {
                known.mrenclaves.extend(facts.mrenclaves);
                if (&known.rootfs, &known.command, &known.open)
                    != (&facts.rootfs, &facts.command, &facts.open)
                {
                    return Err(Failure::new(
                        "the configuration's layouts say different things; publish each in a \
                         document of its own",
                    ));
                }
            }
        }
    }
    disclosed.ok_or_else(|| Failure::new("the configuration has no layout"))
}

/// What a configuration says, without its measurement.
fn facts(config: &Config) -> Disclosed {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let mut open = Vec::new();
    let mut command: Vec<String> = config.argv.iter().map(text).collect();
    let mut files: Vec<&FixedFile> = config.files.iter().collect();
    // The agent is bulla's own, and becomes the program that follows.
    if let Some(settings) = agent::installed(config) {
        command.drain(..2);
        files.retain(|file| !agent::is_own(&file.path));
        open.extend(settings.open());
    }
    command.extend(config.default_arguments.iter().map(text));
    for file in files {
        if file.path != b"/etc/resolv.conf" {
            open.push(format!(
                "file {} with SHA-256 {}",
                text(&file.path),
                HexBytes(bulla_attest::sha256(&[&file.content]))
            ));
        }
    }
    for variable in &config.env {
        if !is_usual(variable) {
            open.push(format!("environment {}", text(variable)));
        }
    }
    let host = &config.host;
    if let Some(patterns) = &host.arguments {
        open.push(format!("arguments from the host matching {patterns:?}"));
    }
    for variable in &host.environment {
        open.push(format!(
            "environment {} from the host matching {:?}",
            variable.name, variable.pattern
        ));
    }
    if host.exec {
        open.push("programs that the host starts".into());
    }
    for option in &config.insecure {
        open.push(format!("insecure {option:?}"));
    }
    for mount in &config.mounts {
        open.push(format!("mount {} {:?}", text(&mount.target), mount.kind));
    }
    if !config.cwd.is_empty() && config.cwd != b"/" {
        open.push(format!("working directory {}", text(&config.cwd)));
    }
    if !config.user.is_empty() {
        open.push(format!("user {}", config.user));
    }
    Disclosed {
        mrenclaves: Vec::new(),
        rootfs: HexBytes(config.rootfs.root_hash),
        command,
        open,
        image: None,
    }
}

/// Variables that no program takes code from.
fn is_usual(variable: &[u8]) -> bool {
    if variable == DEFAULT_PATH.as_bytes() {
        return true;
    }
    let name = variable.split(|byte| *byte == b'=').next().unwrap_or(&[]);
    name.starts_with(b"LC_")
        || [&b"LANG"[..], b"LANGUAGE", b"TZ", b"TERM", b"HOSTNAME"].contains(&name)
}

/// What an image amounts to, measured here: as `bulla run IMAGE` and `bulla build IMAGE` start it, or
/// with a manifest as that says.
pub fn of_image(name: &OsStr, manifest: Option<&Path>) -> Result<Disclosed, Failure> {
    let registry = crate::registry::RegistryArguments::default();
    let stored = Source::Image(name).stored(&registry.options())?;
    let chosen = match manifest {
        Some(path) => Manifest::read(path)?,
        None => Manifest::default(),
    };
    let mut drafts = vec![settle(&chosen, &stored.config, stored.rootfs.clone())?];
    if manifest.is_none() {
        drafts.push(workload::from_options(
            &stored,
            &Workload::default(),
            &[],
            &VolumeOptions::default(),
        )?);
    }
    let mut disclosed: Option<Disclosed> = None;
    for draft in drafts {
        let configs = KINDS.map(|kind| (kind, draft.config(kind)));
        let facts = of_configs(&configs)?;
        match &mut disclosed {
            None => disclosed = Some(facts),
            Some(known) => known.mrenclaves.extend(facts.mrenclaves),
        }
    }
    let disclosed = disclosed.ok_or_else(|| Failure::new("the image cannot be run"))?;
    Ok(Disclosed {
        // Whatever it is, the verifier's own image and manifest say so.
        open: Vec::new(),
        image: Some(stored.digest.to_string()),
        ..disclosed
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulla_abi::config::{
        HostPolicy, HostVariable, Insecure, Mount, MountKind, Rootfs, VERSION,
    };

    fn config() -> Config {
        Config {
            version: VERSION,
            rootfs: Rootfs {
                root_hash: [7; 32],
                ..Rootfs::default()
            },
            argv: vec![b"server".to_vec(), b"-v".to_vec()],
            env: vec![DEFAULT_PATH.into(), b"LANG=C".to_vec()],
            cwd: b"/".to_vec(),
            ..Config::default()
        }
    }

    #[test]
    fn a_plain_configuration_leaves_nothing_open() {
        let facts = facts(&config());
        assert_eq!(facts.rootfs, HexBytes([7; 32]));
        assert_eq!(facts.command, ["server", "-v"]);
        assert!(facts.open.is_empty(), "{:?}", facts.open);
    }

    #[test]
    fn whatever_else_decides_what_runs_is_open() {
        type Change = fn(&mut Config);
        let changes: [(&str, Change); 10] = [
            ("environment LD_PRELOAD=/x", |config| {
                config.env.push(b"LD_PRELOAD=/x".to_vec());
            }),
            ("environment PATH=/tmp", |config| {
                config.env.push(b"PATH=/tmp".to_vec());
            }),
            ("file /bin/server", |config| {
                config.files.push(FixedFile {
                    path: b"/bin/server".to_vec(),
                    content: b"x".to_vec(),
                    mode: 0o755,
                });
            }),
            ("arguments from the host", |config| {
                config.host = HostPolicy {
                    arguments: Some(vec!["*".into()]),
                    ..HostPolicy::default()
                };
            }),
            ("environment X from the host", |config| {
                config.host.environment.push(HostVariable {
                    name: "X".into(),
                    pattern: "*".into(),
                    required: false,
                });
            }),
            ("programs that the host starts", |config| {
                config.host.exec = true;
            }),
            ("insecure Debug", |config| {
                config.insecure.push(Insecure::Debug);
            }),
            ("mount /etc", |config| {
                config.mounts.push(Mount {
                    target: b"/etc".to_vec(),
                    read_only: false,
                    kind: MountKind::Tmpfs { size: 0, mode: 0 },
                });
            }),
            ("working directory /x", |config| config.cwd = b"/x".to_vec()),
            ("user 7", |config| config.user = "7".into()),
        ];
        for (said, change) in changes {
            let mut config = config();
            change(&mut config);
            let open = facts(&config).open;
            assert!(
                open.len() == 1 && open[0].starts_with(said),
                "{said}: {open:?}"
            );
        }
    }

    #[test]
    fn only_the_real_agent_is_looked_through() {
        let manifest = Manifest::parse("[attestation.tls]").unwrap();
        let mut with = config();
        agent::install(&mut with, &manifest).unwrap();
        let facts_with = facts(&with);
        assert_eq!(facts_with.command, ["server", "-v"]);
        assert!(facts_with.open.is_empty(), "{:?}", facts_with.open);
        let mut other = with.clone();
        other.files[0].content[100] ^= 1;
        let facts_other = facts(&other);
        assert_ne!(facts_other.command, ["server", "-v"]);
        assert_eq!(facts_other.open.len(), 2);
        let mut twice = with;
        let file = FixedFile {
            content: b"#!/bin/sh".to_vec(),
            ..twice.files[0].clone()
        };
        twice.files.push(file);
        assert!(!facts(&twice).open.is_empty());
    }

    #[test]
    fn documents_are_strict() {
        let good = Document {
            format: FORMAT.into(),
            bulla: "0".into(),
            layouts: vec![Layout {
                layout: "dynamic".into(),
                mrenclave: "whatever".into(),
                config: BASE64_STANDARD.encode(config().to_bytes()),
            }],
        };
        let text = serde_json::to_string(&good).unwrap();
        let disclosed = of_document(text.as_bytes()).unwrap();
        let measured = enclave::lay_out(
            &Programs::embedded(),
            &config(),
            LayoutKind::Dynamic,
            &Options::default(),
        );
        assert_eq!(
            disclosed.mrenclaves,
            [HexBytes(measured.unwrap().mrenclave)]
        );
        for (from, to) in [
            (FORMAT, "bulla-configuration-2"),
            ("dynamic", "automatic"),
            ("\"config\":\"", "\"config\":\"AAAA"),
            ("\"mrenclave\"", "\"mrenclaves\""),
            ("}]}", "}]"),
            ("\"layouts\":[{", "\"layouts\":[],\"x\":[{"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            assert!(of_document(changed.as_bytes()).is_err(), "{from} → {to}");
        }
        assert!(of_document(b"").is_err());
    }
}
