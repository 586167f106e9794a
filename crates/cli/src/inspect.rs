//! `bulla inspect`: what an image says about itself.

use crate::args::InspectArguments;
use crate::failure::Failure;
use bulla_oci::{Image, ImageConfig, Reference};
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
}

/// Runs the command.
pub fn run(arguments: &InspectArguments) -> Result<(), Failure> {
    let reference = Reference::parse(&arguments.image)?;
    let image = Image::open(&reference, &std::env::temp_dir())?;
    let (layers, size) = image.layers();
    let report = Report {
        path: image.path().display().to_string(),
        image: image.digest.to_string(),
        platform: "linux/amd64",
        layers,
        size,
        config: image.config,
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
        Ok(())
    }
}
