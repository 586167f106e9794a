//! `bulla inspect`: what an image says about itself.

use crate::args::InspectArguments;
use crate::containers;
use crate::failure::Failure;
use crate::image_key;
use crate::sign::{read_config, read_signature};
use crate::state::hex;
use bulla_abi::layout::LayoutKind;
use bulla_oci::built::Built;
use bulla_oci::listing::shown;
use bulla_oci::source::ImageSource;
use bulla_oci::{Cache, ImageConfig};
use serde::Serialize;
use std::fmt;

#[derive(Serialize)]
struct Report {
    path: String,
    /// The image's id: the digest of its configuration.
    image: String,
    platform: &'static str,
    layers: usize,
    /// Bytes of the layers as they are stored.
    size: u64,
    config: ImageConfig,
    /// What is measured and what is not, of a confidential image.
    confidential: Option<Confidential>,
}

/// What the owner of a confidential image decided.
#[derive(Serialize)]
struct Confidential {
    bulla: String,
    source: String,
    mrenclave_dynamic: String,
    mrenclave_static: String,
    mrsigner: String,
    product_id: u16,
    security_version: u16,
    /// Key and value of what is fixed by the measurement.
    locked: Vec<(&'static str, String)>,
    /// What the host may decide.
    host: Vec<(&'static str, String)>,
    insecure: Vec<String>,
}

impl Confidential {
    fn of(built: &Built) -> Result<Confidential, Failure> {
        let about = built.about()?;
        let config = read_config(built, LayoutKind::Dynamic)?;
        let signed = read_signature(built, LayoutKind::Dynamic)?;
        let other = read_signature(built, LayoutKind::Static)?;
        let words = |words: &[Vec<u8>]| -> String {
            let words: Vec<String> = words
                .iter()
                .map(|word| format!("\"{}\"", shown(word)))
                .collect();
            format!("[{}]", words.join(", "))
        };
        let mut locked = vec![
            ("program", words(&config.argv)),
            (
                "user",
                if config.user.is_empty() {
                    "root".into()
                } else {
                    config.user.clone()
                },
            ),
            ("directory", shown(&config.cwd)),
            ("memory", format!("{} MiB", config.memory >> 20)),
            ("threads", config.threads.to_string()),
            (
                "files",
                format!("verity root {}", hex(&config.rootfs.root_hash)),
            ),
        ];
        if config.encryption.is_some() {
            let source = match image_key::is_hosts(&config) {
                true => "a file",
                false => "the coordinator",
            };
            locked.push(("encryption", format!("AES-256-XTS, key from {source}")));
        }
        for variable in &config.env {
            locked.push(("environment", shown(variable)));
        }
        for mount in &config.mounts {
            locked.push((
                "mount",
                format!(
                    "{} {:?}{}",
                    shown(&mount.target),
                    mount.kind,
                    if mount.read_only { ", read-only" } else { "" }
                ),
            ));
        }
        for file in &config.files {
            locked.push(("fixed file", shown(&file.path)));
        }
        if !config.cpu_features.is_empty() {
            locked.push(("CPU features", config.cpu_features.join(", ")));
        }
        let mut host = Vec::new();
        match &config.host.arguments {
            Some(patterns) => {
                host.push(("arguments", format!("each matching one of {patterns:?}")))
            }
            None => locked.push(("arguments", "none from the host".into())),
        }
        for variable in &config.host.environment {
            let must = if variable.required { ", required" } else { "" };
            let text = format!("{} matching {:?}{must}", variable.name, variable.pattern);
            host.push(("environment", text));
        }
        match config.host.hostname {
            true => host.push(("host name", "any".into())),
            false => locked.push(("host name", config.hostname.clone())),
        }
        if config.host.resolver {
            host.push((
                "names",
                "/etc/resolv.conf and /etc/hosts, their syntax checked".into(),
            ));
        }
        if config.host.exec {
            host.push((
                "programs",
                "may be started in the container (bulla exec)".into(),
            ));
        }
        for secret in &config.host.secrets {
            let text = format!("{} is the secret {}, a file", secret.variable, secret.name);
            host.push(("secret", text));
        }
        let insecure = config.insecure.iter().map(|&option| {
            let (name, meaning) = crate::banner::insecure(option);
            format!("{name}: {meaning}")
        });
        Ok(Confidential {
            bulla: about.bulla,
            source: format!("{} ({})", about.source, about.source_id),
            mrenclave_dynamic: hex(&signed.enclave_hash),
            mrenclave_static: hex(&other.enclave_hash),
            mrsigner: hex(&signed.mrsigner()),
            product_id: signed.isv_prod_id,
            security_version: signed.isv_svn,
            locked,
            host,
            insecure: insecure.collect(),
        })
    }
}

impl fmt::Display for Confidential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nconfidential, made by bulla {} from {}",
            self.bulla, self.source
        )?;
        writeln!(f, "MRENCLAVE    {} (dynamic)", self.mrenclave_dynamic)?;
        writeln!(f, "             {} (static)", self.mrenclave_static)?;
        writeln!(f, "MRSIGNER     {}", self.mrsigner)?;
        writeln!(
            f,
            "product id   {}, SVN {}",
            self.product_id, self.security_version
        )?;
        writeln!(
            f,
            "these are the image's own words; `bulla measure` computes them"
        )?;
        for (title, lines) in [("locked", &self.locked), ("host may decide", &self.host)] {
            writeln!(f, "\n{title}:")?;
            if lines.is_empty() {
                writeln!(f, "  nothing")?;
            }
            for (name, value) in lines {
                writeln!(f, "  {name:<13} {}", value.escape_debug())?;
            }
        }
        writeln!(f, "\ninsecure options:")?;
        if self.insecure.is_empty() {
            writeln!(f, "  none")?;
        }
        self.insecure
            .iter()
            .try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// Runs the command.
pub fn run(arguments: &InspectArguments) -> Result<(), Failure> {
    // What runs has precedence over what could.
    if let Some(container) = arguments.image.to_str().and_then(containers::inspect) {
        return container;
    }
    let cache = Cache::of_user()?;
    let image =
        ImageSource::parse(&arguments.image)?.open(&cache, &arguments.registry.options())?;
    let confidential = match image.is_built() {
        true => Some(Confidential::of(&cache.built(&image)?)?),
        false => None,
    };
    let (layers, size) = image.layers();
    let report = Report {
        path: image.path().display().to_string(),
        image: image.digest.to_string(),
        platform: "linux/amd64",
        layers,
        size,
        config: image.config,
        confidential,
    };
    if arguments.json {
        crate::print_json(&report)
    } else {
        crate::print(&report.to_string())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.size as f64 / 1e6;
        writeln!(f, "image        {}", self.image)?;
        writeln!(f, "file         {}", self.path)?;
        writeln!(f, "platform     {}", self.platform)?;
        writeln!(f, "layers       {}, {size:.1} MB as stored", self.layers)?;
        let config = &self.config;
        let list = |words: &[String]| format!("{words:?}");
        let or = |text: &str, default: &str| match text {
            "" => default.to_owned(),
            text => text.escape_debug().to_string(),
        };
        writeln!(f, "entry point  {}", list(&config.entrypoint))?;
        writeln!(f, "command      {}", list(&config.cmd))?;
        writeln!(f, "user         {}", or(&config.user, "root"))?;
        writeln!(f, "directory    {}", or(&config.workdir, "/"))?;
        writeln!(f, "stop signal  {}", or(&config.stop_signal, "SIGTERM"))?;
        for (label, values) in [
            ("environment", &config.env),
            ("port", &config.exposed_ports),
            ("volume", &config.volumes),
        ] {
            for value in values {
                writeln!(f, "{label:<12} {}", value.escape_debug())?;
            }
        }
        for (name, value) in &config.labels {
            writeln!(
                f,
                "label        {}={}",
                name.escape_debug(),
                value.escape_debug()
            )?;
        }
        match &self.confidential {
            Some(confidential) => confidential.fmt(f),
            None => Ok(()),
        }
    }
}
