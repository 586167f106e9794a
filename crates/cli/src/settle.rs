//! From an image and a manifest to the measured configuration.
//!
//! What the manifest leaves open comes from the image, and is locked. Nothing comes from this
//! machine.

use crate::agent;
use crate::failure::Failure;
use crate::workload::{DEFAULT_PATH, Draft, parse_bytes, parse_size, stop_signal};
use bulla_abi::config::{
    Config, HostPolicy, HostSecret, HostVariable, Insecure, Mount, MountKind, Rootfs, VERSION,
    VolumeKey,
};
use bulla_image::manifest::{self, ArgumentMode, Manifest, MountType, Resolver, Variable};
use bulla_oci::ImageConfig;

/// The configuration of an image under a manifest.
pub fn settle(manifest: &Manifest, image: &ImageConfig, rootfs: Rootfs) -> Result<Draft, Failure> {
    let memory = manifest.memory.as_deref().map(parse_size).transpose();
    let memory = memory.map_err(of_key("memory"))?;
    let (argv, default_arguments, arguments) = arguments(manifest, image)?;
    let (env, environment) = environment(manifest, image)?;
    let network = &manifest.network;
    let workdir = manifest.workdir.as_ref().unwrap_or(&image.workdir);
    let workdir = if workdir.is_empty() { "/" } else { workdir };
    if !workdir.starts_with('/') {
        return Err(Failure::new(format!(
            "the image's working directory {workdir:?} is not absolute; set `workdir` in the manifest"
        )));
    }
    let hosts = network.hosts.iter();
    let hosts: String = hosts
        .map(|(name, address)| format!("{address}\t{name}\n"))
        .collect();
    let mut config = Config {
        version: VERSION,
        rootfs,
        argv,
        env,
        cwd: workdir.as_bytes().to_vec(),
        user: manifest.user.clone().unwrap_or_else(|| image.user.clone()),
        hostname: network.hostname.clone(),
        files: resolver_file(network),
        stop_signal: stop_signal(manifest.stop_signal.as_ref().unwrap_or(&image.stop_signal))?,
        insecure: insecure(manifest),
        default_arguments,
        host: HostPolicy {
            arguments,
            environment,
            hostname: network.hostname_from_host,
            resolver: network.resolver == Resolver::Host,
            exec: manifest.insecure_exec,
            secrets: host_secrets(manifest),
        },
        hosts: hosts.into_bytes(),
        mounts: mounts(manifest)?,
        cpu_features: manifest.cpu.features.clone(),
        ..Config::default()
    };
    agent::install(&mut config, manifest)?;
    Ok(Draft {
        config,
        memory,
        threads: manifest.threads,
    })
}

type Words = Vec<Vec<u8>>;

/// Fixed words, words when the host gives none, and what the host's must match.
fn arguments(
    manifest: &Manifest,
    image: &ImageConfig,
) -> Result<(Words, Words, Option<Vec<String>>), Failure> {
    let bytes = |words: &[String]| -> Words {
        words.iter().map(|word| word.clone().into_bytes()).collect()
    };
    let mut argv = bytes(manifest.entrypoint.as_ref().unwrap_or(&image.entrypoint));
    // As with Docker: another entry point does without the image's command.
    let command = match (&manifest.arguments.fixed, &manifest.entrypoint) {
        (Some(fixed), _) => bytes(fixed),
        (None, Some(_)) => Vec::new(),
        (None, None) => bytes(&image.cmd),
    };
    let patterns = manifest.arguments.patterns.clone();
    let patterns = patterns.unwrap_or_else(|| vec!["*".into()]);
    let (defaults, patterns) = match manifest.arguments.mode {
        ArgumentMode::Host => (command, Some(patterns)),
        ArgumentMode::Append => {
            argv.extend(command);
            (Vec::new(), Some(patterns))
        }
        ArgumentMode::Locked => {
            argv.extend(command);
            (Vec::new(), None)
        }
    };
    if argv
        .iter()
        .chain(&defaults)
        .next()
        .is_none_or(Vec::is_empty)
    {
        return Err(Failure::new(
            "the image has no entry point or command; set `entrypoint` in the manifest",
        ));
    }
    if argv.iter().chain(&defaults).any(|word| word.contains(&0)) {
        return Err(Failure::new("an argument contains a zero byte"));
    }
    Ok((argv, defaults, patterns))
}

fn environment(
    manifest: &Manifest,
    image: &ImageConfig,
) -> Result<(Words, Vec<HostVariable>), Failure> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match env.iter_mut().find(|(known, _)| known == name) {
        Some(known) => known.1 = value.to_owned(),
        None => env.push((name.to_owned(), value.to_owned())),
    };
    for variable in [DEFAULT_PATH]
        .into_iter()
        .chain(image.env.iter().map(String::as_str))
    {
        if let Some((name, value)) = variable.split_once('=') {
            set(name, value);
        }
    }
    let mut from_host = Vec::new();
    let mut removed = Vec::new();
    for (name, variable) in &manifest.environment {
        match variable {
            Variable::Fixed(value) => set(name, value),
            Variable::Set(_) => removed.push(name),
            Variable::From(source) if source.secret.is_some() => {
                if manifest.coordinator.is_none() && !source.insecure_host {
                    return Err(Failure::new(format!(
                        "environment.{name} is a secret, but the manifest has no [coordinator] \
                         that could release it; add one, or for development insecure_host = true"
                    )));
                }
                removed.push(name);
            }
            Variable::From(source) => {
                if let Some(value) = &source.default {
                    set(name, value);
                }
                if source.required {
                    removed.push(name);
                }
                from_host.push(HostVariable {
                    name: name.clone(),
                    pattern: source.pattern.clone().unwrap_or_else(|| "*".into()),
                    required: source.required,
                });
            }
        }
    }
    env.retain(|(name, _)| !removed.contains(&name));
    let lines = env.into_iter();
    let lines = lines.map(|(name, value)| format!("{name}={value}").into_bytes());
    Ok((lines.collect(), from_host))
}

/// Secrets that the host gives.
fn host_secrets(manifest: &Manifest) -> Vec<HostSecret> {
    let mut secrets = Vec::new();
    for (variable, source) in &manifest.environment {
        if let Variable::From(source) = source
            && source.insecure_host
            && let Some(name) = &source.secret
        {
            secrets.push(HostSecret {
                variable: variable.clone(),
                name: name.clone(),
            });
        }
    }
    secrets
}

fn resolver_file(network: &manifest::Network) -> Vec<bulla_abi::config::FixedFile> {
    if network.resolver != Resolver::Fixed {
        return Vec::new();
    }
    let servers = network.nameservers.iter();
    let mut text: String = servers
        .map(|address| format!("nameserver {address}\n"))
        .collect();
    if !network.search.is_empty() {
        text.push_str(&format!("search {}\n", network.search.join(" ")));
    }
    vec![crate::workload::file("/etc/resolv.conf", text.into_bytes())]
}

fn insecure(manifest: &Manifest) -> Vec<Insecure> {
    let mut keys = manifest.mounts.iter().map(|mount| mount.key);
    let host_key = keys.any(|key| key == Some(manifest::VolumeKey::InsecureHost));
    let passthrough = MountType::InsecurePassthrough;
    let host_files = manifest
        .mounts
        .iter()
        .any(|mount| mount.kind == passthrough);
    let options = [
        (manifest.insecure_host_faults, Insecure::HostFaults),
        (manifest.insecure_debug, Insecure::Debug),
        (manifest.insecure_strace, Insecure::Strace),
        (manifest.insecure_report, Insecure::Report),
        (manifest.insecure_debugger, Insecure::Debugger),
        (manifest.insecure_exec, Insecure::Exec),
        (host_key, Insecure::HostKey),
        (host_files, Insecure::HostFiles),
        (!host_secrets(manifest).is_empty(), Insecure::HostSecrets),
    ];
    options
        .into_iter()
        .filter_map(|(on, option)| on.then_some(option))
        .collect()
}

fn mounts(manifest: &Manifest) -> Result<Vec<Mount>, Failure> {
    let mounts = manifest.mounts.iter().map(|mount| {
        let kind = match mount.kind {
            MountType::Tmpfs => MountKind::Tmpfs {
                size: mount
                    .size
                    .as_deref()
                    .map(parse_bytes)
                    .transpose()
                    .map_err(of_key("mounts.size"))?
                    .unwrap_or(0),
                mode: u32::from_str_radix(&mount.mode, 8).unwrap_or(0o1777),
            },
            MountType::Volume => MountKind::Volume {
                key: match mount.key.unwrap_or_default() {
                    manifest::VolumeKey::Signer => VolumeKey::Signer,
                    manifest::VolumeKey::Enclave => VolumeKey::Enclave,
                    manifest::VolumeKey::InsecureHost => VolumeKey::InsecureHost,
                },
            },
            MountType::InsecurePassthrough => MountKind::InsecurePassthrough,
        };
        Ok(Mount {
            target: mount.target.clone().into_bytes(),
            read_only: mount.read_only,
            kind,
        })
    });
    mounts.collect()
}

/// Says which key of the manifest it is about.
fn of_key(key: &str) -> impl Fn(Failure) -> Failure + '_ {
    move |failure| Failure {
        message: format!("{key} of the manifest: {}", failure.message),
        ..failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["entry".into()],
            cmd: vec!["default".into()],
            env: vec!["A=image".into(), "LOG=quiet".into(), "GONE=1".into()],
            user: "app".into(),
            ..ImageConfig::default()
        }
    }

    fn settled(text: &str) -> Result<Config, Failure> {
        let manifest = Manifest::parse(text).unwrap();
        settle(&manifest, &image(), Rootfs::default()).map(|draft| draft.config)
    }

    fn words(words: &[Vec<u8>]) -> Vec<String> {
        words
            .iter()
            .map(|word| String::from_utf8(word.clone()).unwrap())
            .collect()
    }

    #[test]
    fn without_a_manifest_the_image_is_locked() {
        let config = settled("").unwrap();
        assert_eq!(words(&config.argv), ["entry", "default"]);
        assert_eq!(config.user, "app");
        assert_eq!(
            config.host,
            HostPolicy {
                resolver: true,
                ..HostPolicy::default()
            }
        );
        assert!(config.insecure.is_empty());
        assert!(words(&config.env).contains(&"A=image".to_owned()));
    }

    #[test]
    fn arguments_by_mode() {
        let append = settled("[arguments]\nmode = \"append\"").unwrap();
        assert_eq!(words(&append.argv), ["entry", "default"]);
        assert_eq!(append.host.arguments.unwrap(), ["*"]);
        let host = settled("[arguments]\nmode = \"host\"\npatterns = [\"-v\"]").unwrap();
        assert_eq!(words(&host.argv), ["entry"]);
        assert_eq!(words(&host.default_arguments), ["default"]);
        assert_eq!(host.host.arguments.unwrap(), ["-v"]);
        let other = settled("entrypoint = [\"other\"]").unwrap();
        assert_eq!(words(&other.argv), ["other"]);
    }

    #[test]
    fn environment_by_source() {
        let config = settled(
            "[environment]\nGONE = false\nLOG = { host = true, pattern = \"[a-z]*\" }\nB = \"2\"\n\
             URL = { host = true, required = true }",
        );
        let config = config.unwrap();
        let env = words(&config.env);
        assert!(
            env.contains(&"LOG=quiet".into()) && env.contains(&"B=2".into()),
            "{env:?}"
        );
        assert!(
            !env.iter()
                .any(|line| line.starts_with("GONE") || line.starts_with("URL"))
        );
        assert_eq!(config.host.environment.len(), 2);
        let error = settled("[environment]\nP = { secret = \"x\" }").unwrap_err();
        assert!(error.message.contains("[coordinator]"), "{error}");
    }

    #[test]
    fn insecure_options_are_named() {
        let exec = settled("insecure_exec = true").unwrap();
        assert!(exec.host.exec && exec.insecure == [Insecure::Exec]);
        let mount =
            "[[mounts]]\ntarget = \"/d\"\ntype = \"insecure_passthrough\"\nread_only = true";
        let passed = settled(mount).unwrap();
        assert_eq!(passed.insecure, [Insecure::HostFiles]);
        assert_eq!(passed.mounts[0].kind, MountKind::InsecurePassthrough);
        assert!(passed.mounts[0].read_only);
        let secret = "[environment]\nA = { secret = \"s\", insecure_host = true }";
        let secret = settled(secret).unwrap();
        assert_eq!(secret.insecure, [Insecure::HostSecrets]);
        assert_eq!(secret.host.secrets[0].name, "s");
        // What the image says of it is not used.
        assert!(!words(&secret.env).iter().any(|line| line.starts_with("A=")));
        let volume =
            settled("[[mounts]]\ntarget = \"/d\"\ntype = \"volume\"\nkey = \"insecure_host\"");
        let volume = volume.unwrap();
        assert_eq!(
            volume.mounts[0].kind,
            MountKind::Volume {
                key: VolumeKey::InsecureHost
            }
        );
        assert_eq!(volume.insecure, [Insecure::HostKey]);
        let tmpfs =
            settled("[[mounts]]\ntarget = \"/d\"\ntype = \"tmpfs\"\nsize = \"1M\"").unwrap();
        assert_eq!(
            tmpfs.mounts[0].kind,
            MountKind::Tmpfs {
                size: 1 << 20,
                mode: 0o1777
            }
        );
    }
}
