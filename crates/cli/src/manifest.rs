//! `bulla manifest`: a manifest to start from, checks, and the reference of its keys.

use crate::failure::Failure;
use bulla_image::manifest::{self, Manifest};
use bulla_oci::ImageConfig;
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
#[expect(
    clippy::large_enum_variant,
    reason = "parsed once; clap flattens no boxes"
)]
pub enum Arguments {
    /// Print a commented manifest for an image
    #[command(after_help = "Example:\n  bulla manifest init redis.tar > bulla.toml")]
    Init {
        /// The image
        image: OsString,
    },
    /// Check a manifest
    Check {
        /// The manifest
        #[arg(default_value = "bulla.toml")]
        file: PathBuf,
    },
    /// Print the JSON Schema of manifests, for editors
    Schema,
    /// Print every key with its meaning and default
    Reference,
    #[command(flatten)]
    Cluster(crate::coordinator_args::ManifestCommand),
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match arguments {
        Arguments::Init { image } => {
            let config = crate::workload::image_config(image)?;
            let values = from_image(&config)?;
            crate::print(&manifest::template(&image.to_string_lossy(), &values))
        }
        Arguments::Check { file } => {
            Manifest::read(file)?;
            crate::print(&format!("{}: no mistakes found\n", file.display()))
        }
        Arguments::Schema => crate::print_json(&manifest::schema()),
        Arguments::Reference => crate::print(&reference()),
        Arguments::Cluster(command) => crate::cluster::manifest(command),
    }
}

/// The values that hold without a manifest, as TOML.
fn from_image(config: &ImageConfig) -> Result<Vec<(String, String)>, Failure> {
    let mut values = vec![
        ("entrypoint".to_owned(), toml(&config.entrypoint)?),
        ("arguments.fixed".to_owned(), toml(&config.cmd)?),
        ("user".to_owned(), toml(&config.user)?),
        ("workdir".to_owned(), toml(&or(&config.workdir, "/"))?),
        (
            "stop_signal".to_owned(),
            toml(&or(&config.stop_signal, "SIGTERM"))?,
        ),
    ];
    for variable in &config.env {
        if let Some((name, value)) = variable.split_once('=') {
            values.push((format!("environment.{}", key(name)), toml(&value)?));
        }
    }
    Ok(values)
}

/// A TOML key: bare where it may be.
fn key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match !name.is_empty() && name.chars().all(bare) {
        true => name.to_owned(),
        false => format!("{name:?}"),
    }
}

fn or(text: &str, default: &str) -> String {
    match text {
        "" => default.to_owned(),
        text => text.to_owned(),
    }
}

/// Lists and texts as TOML: for these JSON has the same form, but for one escape.
fn toml(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(value).map_err(Failure::new)?;
    Ok(text.replace('\u{7f}', "\\u007f"))
}

/// The table that is also in the manual.
fn reference() -> String {
    let mut out = String::from("| key | default | meaning |\n|---|---|---|\n");
    let mut keys = manifest::keys();
    // In what order they come depends on the features that other crates ask of serde_json.
    keys.sort_by(|a, b| a.path.cmp(&b.path));
    for key in keys {
        let default = key
            .default
            .map_or(String::new(), |value| format!("`{value}`"));
        let line = format!("| `{}` | {default} | {} |\n", key.path, key.description);
        out.push_str(&line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_init_writes_is_a_manifest() {
        let config = ImageConfig {
            entrypoint: vec!["/a \"b\"".into()],
            env: vec!["A.B=\u{7f}\\x".into(), "C=d".into()],
            ..ImageConfig::default()
        };
        let text = manifest::template("x", &from_image(&config).unwrap());
        Manifest::parse(&text).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("C = ")).collect();
        assert_eq!(lines, ["# C = \"d\""]);
    }

    #[test]
    fn the_manual_has_the_reference() {
        let manual = include_str!("../../../docs/manual/manifest.md");
        assert!(
            manual.contains(&reference()),
            "run `bulla manifest reference` for the manual"
        );
    }
}
