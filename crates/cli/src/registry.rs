//! `bulla pull`, `bulla push`, `bulla images`, and the options about registries.

use crate::failure::Failure;
use bulla_oci::registry::{self, Options};
use bulla_oci::{Cache, Store};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, Default, clap::Args)]
pub struct RegistryArguments {
    /// Speak to this registry without TLS (insecure: anyone on the way can read and change)
    #[arg(long, value_name = "HOST[:PORT]")]
    pub plain_http: Vec<String>,

    /// When to ask the registry for an image
    #[arg(long, value_enum, default_value_t = Pull::Missing)]
    pub pull: Pull,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Pull {
    /// If this machine does not have it
    #[default]
    Missing,
    /// Every time
    Always,
    /// Not at all
    Never,
}

impl RegistryArguments {
    /// In the terms of the library.
    pub fn options(&self) -> Options {
        Options {
            plain_http: self.plain_http.clone(),
            progress: true,
            always: self.pull == Pull::Always,
            never: self.pull == Pull::Never,
            timeout: timeout(),
        }
    }
}

/// The seconds of BULLA_REGISTRY_TIMEOUT, if it has some.
fn timeout() -> Option<Duration> {
    let text = std::env::var("BULLA_REGISTRY_TIMEOUT").ok()?;
    let seconds = text.parse().ok().filter(|&seconds| seconds > 0);
    if seconds.is_none() {
        eprintln!(
            "bulla: warning: BULLA_REGISTRY_TIMEOUT={text:?} is no number of seconds above 0; a minute holds"
        );
    }
    seconds.map(Duration::from_secs)
}

#[derive(Debug, clap::Args)]
pub struct PullArguments {
    /// The image
    pub name: String,

    #[command(flatten)]
    pub registry: RegistryArguments,
}

#[derive(Debug, clap::Args)]
pub struct PushArguments {
    /// The image
    pub name: String,

    /// Also write an archive
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    pub registry: RegistryArguments,
}

#[derive(Debug, clap::Args)]
pub struct ImagesArguments {
    /// Forget this image
    #[arg(long, value_name = "NAME")]
    pub remove: Vec<String>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Fetches an image; prints the digest of its manifest.
pub fn pull(arguments: &PullArguments) -> Result<(), Failure> {
    let cache = Cache::of_user()?;
    let store = Store::of(&cache)?;
    let options = Options {
        always: true,
        ..arguments.registry.options()
    };
    let digest = registry::image(&store, &arguments.name, &options)?;
    // A confidential image is unpacked now, not when somebody waits for its start.
    let image = store.open(&digest)?;
    if image.is_built() {
        cache.built(&image)?;
    }
    crate::print(&format!("{digest}\n"))
}

/// Pushes an image of this machine under its name.
pub fn push(arguments: &PushArguments) -> Result<(), Failure> {
    let store = Store::of(&Cache::of_user()?)?;
    let name = registry::full_name(&arguments.name)?;
    let digest = store.find(&name).ok_or_else(|| {
        Failure::new(format!(
            "there is no image {name} on this machine; see `bulla images`"
        ))
    })?;
    registry::push(&store, &digest, &name, &arguments.registry.options())?;
    if let Some(path) = &arguments.output {
        bulla_oci::output::write_archive(&store, &digest, Some(&name), path)?;
    }
    crate::print(&format!("{digest}\n"))
}

/// Lists the images of this machine.
pub fn images(arguments: &ImagesArguments) -> Result<(), Failure> {
    let store = Store::of(&Cache::of_user()?)?;
    for name in &arguments.remove {
        let name = registry::full_name(name)?;
        if !store.forget(&name)? {
            return Err(Failure::new(format!(
                "there is no image {name}; see `bulla images`"
            )));
        }
    }
    let names = store.names()?;
    if arguments.json {
        return crate::print_json(&names);
    }
    let lines = names
        .iter()
        .map(|named| format!("{}  {}\n", named.manifest, named.name));
    crate::print(&lines.collect::<String>())
}
