//! `bulla start`: the entry point of confidential images, inside a container of any engine.
//!
//! The engine's part (arguments, environment, host name, resolver files) is what the host adds; it
//! is offered to the enclave as far as the measured configuration lets it in.

use crate::args::{Layout, PlatformArguments};
use crate::failure::Failure;
use crate::image_key;
use crate::run::{self, Launch};
use crate::volumes::VolumeOptions;
use crate::workload::{self, Prepared};
use bulla_abi::config::Config;
use bulla_abi::input::HostInput;
use bulla_abi::layout::LayoutKind;
use bulla_oci::built::Built;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What engines set without being asked.
const OF_ENGINES: [&str; 8] = [
    "PATH",
    "HOME",
    "HOSTNAME",
    "TERM",
    "container",
    "PWD",
    "SHLVL",
    "_",
];

/// Where an engine puts the key of an encrypted image, as a secret.
const IMAGE_KEY: &str = "/run/secrets/bulla-image-key";

/// Where it puts secrets of the environment, by their names.
const SECRETS: &str = "/run/secrets";

/// Starts the confidential image that it is part of
#[derive(Debug, clap::Parser)]
#[command(name = "bulla", version)]
pub enum Program {
    /// Start the program of this image in its enclave
    Start(Arguments),
}

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Arguments for the program, where the manifest lets the host give some
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<OsString>,

    #[command(flatten)]
    pub platform: PlatformArguments,

    /// Enclave layout [default: what works]
    #[arg(long, value_enum)]
    pub layout: Option<Layout>,

    /// Where the image's own files are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let dir = match &arguments.bundle {
        Some(dir) => dir.clone(),
        None => {
            let own = std::env::current_exe().ok();
            let dir = own.and_then(|path| path.parent().map(PathBuf::from));
            dir.ok_or_else(|| Failure::new("cannot find this program's directory; use --bundle"))?
        }
    };
    let built = Built::at(dir).map_err(|error| {
        Failure::new(format!(
            "{error}; `bulla start` is for the inside of a confidential image, use `bulla run`"
        ))
    })?;
    let mut prepared = Prepared::of_built(&built, |config| input(config, &arguments.words))?;
    prepared.volumes = VolumeOptions::of_engine(prepared.config(LayoutKind::Dynamic));
    run::enter(
        prepared,
        Launch {
            platform: &arguments.platform,
            layout: arguments.layout,
            interactive: true,
            ..Launch::default_for(&arguments.platform)
        },
    )
}

/// What the engine offers, as far as it may.
fn input(config: &Config, words: &[OsString]) -> Result<HostInput, Failure> {
    let policy = &config.host;
    let mut environment = Vec::new();
    let mut ignored = Vec::new();
    for (name, value) in std::env::vars_os() {
        if policy.variable(name.as_bytes()).is_some() {
            environment.push([name.as_bytes(), b"=", &value.into_vec()].concat());
        } else if !OF_ENGINES.iter().any(|known| name == *known) && !workload::is_own(&name) {
            ignored.push(name.to_string_lossy().into_owned());
        }
    }
    if !ignored.is_empty() {
        eprintln!(
            "bulla: warning: the manifest does not let the host set {}; ignored",
            ignored.join(", ")
        );
    }
    let read = |path: &str| std::fs::read(path).unwrap_or_default();
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Ok(HostInput {
        arguments: (!words.is_empty())
            .then(|| words.iter().map(|word| word.as_bytes().to_vec()).collect()),
        environment,
        hostname: policy.hostname.then(|| hostname.trim().to_owned()),
        resolver: policy.resolver.then(|| read("/etc/resolv.conf")),
        hosts: match policy.resolver {
            true => read("/etc/hosts"),
            false => Vec::new(),
        },
        terminal: std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
        image_key: match image_key::is_hosts(config) {
            true => Some(image_key::read(Path::new(IMAGE_KEY))?),
            false => None,
        },
        secrets: policy
            .secrets
            .iter()
            .map(|secret| {
                let path = Path::new(SECRETS).join(&secret.name);
                workload::read_secret(secret.name.clone(), &path)
            })
            .collect::<Result<_, _>>()?,
    })
}
