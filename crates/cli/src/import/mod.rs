//! `bulla import`: what was written for SCONE, Gramine or MarbleRun, in our form.
//!
//! The result goes to standard output; what has no equivalent, and what a person must look at, goes
//! to standard error, one line each. Nothing is dropped silently: a [`Taker`] hands out each key
//! once and reports those that nobody asked for.

mod gramine;
mod marblerun;
mod scone;

use crate::failure::Failure;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

pub const EXAMPLES: &str = "\
Examples:
  bulla import gramine app.manifest > bulla.toml
  bulla import scone session.yml > manifest.json
  bulla import marblerun manifest.yaml > manifest.json

What has no equivalent is listed on standard error, one line each.";

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Kind {
    /// A SCONE session (YAML) becomes a coordinator manifest
    Scone,
    /// A Gramine manifest (TOML) becomes a bulla.toml
    Gramine,
    /// A MarbleRun manifest (JSON or YAML) becomes a coordinator manifest
    Marblerun,
}

#[derive(Debug, clap::Args)]
pub struct ImportArguments {
    /// What the file was written for
    pub kind: Kind,
    /// The file
    pub file: PathBuf,
}

/// Larger files are not what people write.
const MOST_BYTES: u64 = 16 << 20;

/// What came out: a text, and lines for a person.
pub struct Imported {
    pub text: String,
    pub notes: Vec<String>,
}

pub fn run(arguments: &ImportArguments) -> Result<(), Failure> {
    let text = read(&arguments.file)?;
    let imported = match arguments.kind {
        Kind::Scone => scone::import(&yaml(&text, &arguments.file)?),
        Kind::Gramine => gramine::import(&toml(&text, &arguments.file)?),
        Kind::Marblerun => marblerun::import(&yaml(&text, &arguments.file)?),
    }
    .map_err(|reason| Failure::new(format!("{}: {reason}", arguments.file.display())))?;
    for note in &imported.notes {
        eprintln!("bulla: import: {note}");
    }
    crate::print(&imported.text)
}

fn read(path: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
    if std::fs::metadata(path).map_err(failed)?.len() > MOST_BYTES {
        return Err(Failure::new(format!(
            "{}: larger than {MOST_BYTES} bytes",
            path.display()
        )));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// YAML, of which JSON is a part.
fn yaml(text: &str, path: &Path) -> Result<Value, Failure> {
    serde_saphyr::from_str(text)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

fn toml(text: &str, path: &Path) -> Result<Value, Failure> {
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        Failure::new(format!(
            "{}: {error}; a template must be rendered first (gramine-manifest)",
            path.display()
        ))
    })?;
    serde_json::to_value(table).map_err(Failure::new)
}

/// Hands out the keys of an object, and reports what is left.
pub struct Taker {
    path: String,
    map: Map<String, Value>,
}

impl Taker {
    /// None if the value is no object.
    pub fn new(path: &str, value: &Value) -> Option<Taker> {
        Some(Taker {
            path: path.to_owned(),
            map: value.as_object()?.clone(),
        })
    }

    pub fn path(&self, key: &str) -> String {
        match self.path.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.path),
        }
    }

    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    /// Text, or what is written like it.
    pub fn text(&mut self, key: &str) -> Option<String> {
        self.take(key).map(|value| text(&value))
    }

    pub fn number(&mut self, key: &str) -> Option<u64> {
        let value = self.take(key)?;
        value
            .as_u64()
            .or_else(|| value.as_str().and_then(|text| text.parse().ok()))
    }

    pub fn flag(&mut self, key: &str) -> Option<bool> {
        let value = self.take(key)?;
        value.as_bool().or_else(|| match value.as_str() {
            Some("true" | "1") => Some(true),
            Some("false" | "0") => Some(false),
            _ => value.as_u64().map(|number| number != 0),
        })
    }

    pub fn list(&mut self, key: &str) -> Vec<Value> {
        match self.take(key) {
            Some(Value::Array(list)) => list,
            Some(other) => vec![other],
            None => Vec::new(),
        }
    }

    /// An object below.
    pub fn below(&mut self, key: &str) -> Option<Taker> {
        let value = self.take(key)?;
        Taker::new(&self.path(key), &value)
    }

    /// Notes a reason if the key is there.
    pub fn explain(&mut self, key: &str, reason: &str, notes: &mut Vec<String>) {
        if self.map.remove(key).is_some() {
            notes.push(format!("{}: {reason}", self.path(key)));
        }
    }

    pub fn rest(self, notes: &mut Vec<String>) {
        for key in self.map.keys() {
            notes.push(format!("{}: has no equivalent, left out", self.path(key)));
        }
    }

    pub fn entries(self) -> impl Iterator<Item = (String, Value)> {
        self.map.into_iter()
    }
}

/// A scalar as text.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn pretty(value: &Value) -> Result<String, String> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
