//! Reading a manifest: unknown keys with suggestions, and what can be checked without the image.

use super::keys::{keys, nearest};
use super::types::*;
use bulla_abi::{cpu, input, pattern};
use std::path::Path;

/// Largest manifest that is read.
const SIZE_MAX: u64 = 1 << 20;

/// Why a manifest is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    #[error("cannot read the manifest {path}: {error}")]
    Read { path: String, error: std::io::Error },
    #[error(
        "the manifest has more than 1 MiB; it describes one container, see `bulla manifest --help`"
    )]
    TooLarge,
    /// Not TOML, or a value of another type; the message has line and column.
    #[error("the manifest cannot be read: {0}")]
    Syntax(String),
    #[error("the manifest has an unknown key `{key}`{}; see `bulla manifest reference`",
        suggestion.as_ref().map_or(String::new(), |name| format!(": did you mean `{name}`?")))]
    UnknownKey {
        key: String,
        suggestion: Option<String>,
    },
    #[error("in the manifest, {key}: {reason}")]
    Value { key: String, reason: String },
}

fn value(key: impl Into<String>, reason: impl Into<String>) -> ManifestError {
    ManifestError::Value {
        key: key.into(),
        reason: reason.into(),
    }
}

impl Manifest {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Manifest, ManifestError> {
        let failed = |error| ManifestError::Read {
            path: path.display().to_string(),
            error,
        };
        if std::fs::metadata(path).map_err(failed)?.len() > SIZE_MAX {
            return Err(ManifestError::TooLarge);
        }
        Manifest::parse(&std::fs::read_to_string(path).map_err(failed)?)
    }

    /// Reads text.
    pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
        if text.len() as u64 > SIZE_MAX {
            return Err(ManifestError::TooLarge);
        }
        let syntax = |error: toml::de::Error| ManifestError::Syntax(error.to_string());
        let table: toml::Table = toml::from_str(text).map_err(syntax)?;
        let known: Vec<String> = keys().into_iter().map(|key| key.path).collect();
        unknown_key(&table, "", &known)?;
        // From the text, not the table: messages then have line and column.
        let manifest: Manifest = toml::from_str(text).map_err(syntax)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// What holds for every image.
    pub fn check(&self) -> Result<(), ManifestError> {
        if let Some([]) = self.entrypoint.as_deref() {
            return Err(value(
                "entrypoint",
                "it is empty; leave it out to use the image's",
            ));
        }
        if let Some(dir) = &self.workdir
            && !dir.starts_with('/')
        {
            return Err(value("workdir", format!("{dir:?} is not absolute")));
        }
        self.check_arguments()?;
        for (name, variable) in &self.environment {
            check_variable(name, variable)?;
        }
        self.check_network()?;
        for name in &self.cpu.features {
            if cpu::feature_named(name).is_none() {
                let known = cpu::FEATURES.iter().map(|feature| feature.name);
                let meant =
                    nearest(name, known.clone()).map(|name| format!(": did you mean {name}?"));
                let known: Vec<&str> = known.collect();
                return Err(value(
                    "cpu.features",
                    format!(
                        "{name:?} is not known{}; there are {}",
                        meant.unwrap_or_default(),
                        known.join(", ")
                    ),
                ));
            }
        }
        for (index, mount) in self.mounts.iter().enumerate() {
            check_mount(&format!("mounts[{index}]"), mount)?;
            let earlier = &self.mounts[..index];
            if earlier.iter().any(|other| other.target == mount.target) {
                return Err(value(
                    format!("mounts[{index}].target"),
                    format!("something is mounted on {} already", mount.target),
                ));
            }
            // Names there are the host's, and may go at any time.
            let below = |other: &&Mount| {
                let rest = mount.target.strip_prefix(&other.target);
                other.kind == MountType::InsecurePassthrough
                    && rest.is_some_and(|rest| rest.starts_with('/'))
            };
            if let Some(other) = self.mounts.iter().find(below) {
                return Err(value(
                    format!("mounts[{index}].target"),
                    format!(
                        "it is below {}, a directory of the host; mount it elsewhere",
                        other.target
                    ),
                ));
            }
        }
        Ok(())
    }

    fn check_arguments(&self) -> Result<(), ManifestError> {
        let patterns = self.arguments.patterns.as_deref().unwrap_or_default();
        if self.arguments.mode == ArgumentMode::Locked && !patterns.is_empty() {
            return Err(value(
                "arguments.patterns",
                "the arguments are locked; set mode = \"append\" or \"host\" as well",
            ));
        }
        for text in patterns {
            check_pattern("arguments.patterns", text)?;
        }
        Ok(())
    }

    fn check_network(&self) -> Result<(), ManifestError> {
        let network = &self.network;
        if !input::is_hostname(&network.hostname) {
            return Err(value(
                "network.hostname",
                format!(
                    "{:?} is not a host name; use letters, digits, dots and hyphens, at most 64",
                    network.hostname
                ),
            ));
        }
        let fixed = network.resolver == Resolver::Fixed;
        if fixed && network.nameservers.is_empty() {
            return Err(value(
                "network.nameservers",
                "resolver = \"fixed\" needs at least one",
            ));
        }
        let servers = !network.nameservers.is_empty() || !network.search.is_empty();
        if servers && !fixed {
            return Err(value(
                "network.nameservers",
                "name servers and search domains need resolver = \"fixed\"",
            ));
        }
        for (key, names) in [
            ("network.search", network.search.iter().collect::<Vec<_>>()),
            ("network.hosts", network.hosts.keys().collect()),
        ] {
            for name in names {
                if !input::is_hostname(name) {
                    return Err(value(key, format!("{name:?} is not a name")));
                }
            }
        }
        Ok(())
    }
}

fn check_pattern(key: &str, text: &str) -> Result<(), ManifestError> {
    pattern::check(text)
        .map_err(|invalid| value(key, format!("{text:?} is not a pattern: {invalid}")))
}

fn check_variable(name: &str, variable: &Variable) -> Result<(), ManifestError> {
    let key = format!("environment.{name}");
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(value(
            key,
            "this is not the name of an environment variable",
        ));
    }
    let source = match variable {
        Variable::Fixed(text) if text.contains('\0') => {
            return Err(value(key, "it contains a zero byte"));
        }
        Variable::Set(true) => {
            return Err(value(
                key,
                "true says nothing; write a text, false or { host = true }",
            ));
        }
        Variable::From(source) => source,
        _ => return Ok(()),
    };
    if source.host == source.secret.is_some() {
        return Err(value(key, "write either host = true or secret = \"NAME\""));
    }
    if !source.host && (source.pattern.is_some() || source.default.is_some() || source.required) {
        return Err(value(
            key,
            "pattern, default and required are for host = true only",
        ));
    }
    if source.insecure_host && source.secret.is_none() {
        return Err(value(key, "insecure_host is for secret = \"NAME\" only"));
    }
    if source
        .secret
        .as_deref()
        .is_some_and(|name| name.is_empty() || name.contains('='))
    {
        return Err(value(key, "a secret's name is not empty and has no `=`"));
    }
    if source.required && source.default.is_some() {
        return Err(value(key, "it cannot be required and have a default"));
    }
    if let Some(text) = &source.pattern {
        check_pattern(&format!("{key}.pattern"), text)?;
    }
    // The loader of the container's own libraries obeys these.
    if source.host && (name.starts_with("LD_") || name == "GLIBC_TUNABLES") {
        return Err(value(
            key,
            "this variable decides which code runs, so the host must not set it; fix its value",
        ));
    }
    Ok(())
}

fn check_mount(key: &str, mount: &Mount) -> Result<(), ManifestError> {
    let target = &mount.target;
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    let normal = target
        .strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(plain));
    if !normal {
        return Err(value(
            format!("{key}.target"),
            format!("{target:?} is not an absolute path of a directory, without `.` and `..`"),
        ));
    }
    let first = target[1..].split('/').next().unwrap_or_default();
    if ["proc", "sys", "dev"].contains(&first) && target != "/dev/shm" {
        return Err(value(
            format!("{key}.target"),
            format!("nothing can be mounted on {target}"),
        ));
    }
    let mode = u32::from_str_radix(&mount.mode, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777);
    if mode.is_none() {
        return Err(value(
            format!("{key}.mode"),
            format!("{:?} is not an octal mode", mount.mode),
        ));
    }
    if mount.kind != MountType::Tmpfs && mount.mode != default_mode() {
        return Err(value(format!("{key}.mode"), "only a tmpfs has a mode"));
    }
    if mount.kind != MountType::Tmpfs && mount.size.is_some() {
        return Err(value(format!("{key}.size"), "only a tmpfs has a size"));
    }
    if mount.kind != MountType::Volume && mount.key.is_some() {
        return Err(value(format!("{key}.key"), "only a volume has a key"));
    }
    Ok(())
}

/// The first key that is none, with what was probably meant.
fn unknown_key(table: &toml::Table, prefix: &str, known: &[String]) -> Result<(), ManifestError> {
    for (name, entry) in table {
        let path = format!("{prefix}{name}");
        // The names of variables and hosts are free, and so are sections that others define.
        if [
            "environment.",
            "network.hosts.",
            "attestation.",
            "coordinator.policy.",
        ]
        .contains(&prefix)
        {
            if let (toml::Value::Table(inner), "environment.") = (entry, prefix) {
                unknown_key(inner, "environment.NAME.", known)
                    .map_err(|error| with_name(error, name))?;
            }
            continue;
        }
        if !known.contains(&path) {
            let siblings = known.iter().filter_map(|key| key.strip_prefix(prefix));
            let siblings = siblings.filter(|rest| !rest.contains(['.', '[']));
            return Err(ManifestError::UnknownKey {
                suggestion: nearest(name, siblings)
                    .map(|meant| format!("{prefix}{meant}"))
                    .or_else(|| elsewhere(name, known)),
                key: path,
            });
        }
        match entry {
            toml::Value::Table(inner) => unknown_key(inner, &format!("{path}."), known)?,
            toml::Value::Array(entries) => {
                for entry in entries {
                    if let toml::Value::Table(inner) = entry {
                        unknown_key(inner, &format!("{path}[]."), known)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A key of that very name in another section.
fn elsewhere(name: &str, known: &[String]) -> Option<String> {
    let same = |path: &&String| path.rsplit(['.', ']']).next() == Some(name);
    known.iter().find(same).cloned()
}

fn with_name(error: ManifestError, name: &str) -> ManifestError {
    match error {
        ManifestError::UnknownKey { key, suggestion } => ManifestError::UnknownKey {
            key: key.replacen("NAME", name, 1),
            suggestion: suggestion.map(|meant| meant.replacen("NAME", name, 1)),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Manifest::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_manifest() {
        let manifest = Manifest::parse(
            r#"
            entrypoint = ["/bin/server", "-x"]
            user = "app"
            product_id = 7
            security_version = 3
            memory = "512M"
            threads = 16
            [arguments]
            mode = "append"
            patterns = ["--port=[0-9]*"]
            [environment]
            LANG = "C.UTF-8"
            DEBUG = false
            LOG = { host = true, pattern = "[a-z]*", default = "info" }
            PASSWORD = { secret = "db" }
            [network]
            resolver = "fixed"
            nameservers = ["10.0.0.1"]
            hosts = { db = "10.0.0.7", "a.b" = "::1" }
            [cpu]
            features = ["avx2"]
            [[mounts]]
            target = "/tmp"
            type = "tmpfs"
            size = "64M"
            [coordinator]
            marble = "web"
            [coordinator.policy]
            whatever = 1
            [attestation.tls]
            mode = "x"
            "#,
        );
        let manifest = manifest.unwrap();
        assert_eq!(manifest.arguments.mode, ArgumentMode::Append);
        assert_eq!(manifest.environment.len(), 4);
        assert_eq!(manifest.mounts[0].mode, "1777");
        assert_eq!(Manifest::parse("").unwrap(), Manifest::default());
    }

    #[test]
    fn unknown_keys_are_errors_with_a_suggestion() {
        for (text, key, meant) in [
            ("memroy = \"1G\"", "memroy", "did you mean `memory`?"),
            (
                "[arguments]\nmod = \"host\"",
                "arguments.mod",
                "`arguments.mode`",
            ),
            (
                "[network]\nhostnme = \"x\"",
                "network.hostnme",
                "`network.hostname`",
            ),
            ("hostname = \"x\"", "`hostname`", "`network.hostname`"),
            (
                "[coordinator]\nadress = \"x:1\"",
                "coordinator.adress",
                "`coordinator.address`",
            ),
            (
                "[[mounts]]\ntarget=\"/a\"\ntype=\"tmpfs\"\nreadonly=true",
                "mounts[].readonly",
                "`mounts[].read_only`",
            ),
            (
                "[environment]\nA = { hots = true }",
                "environment.A.hots",
                "`environment.A.host`",
            ),
            ("[cpu]\nfeature = []", "cpu.feature", "`cpu.features`"),
        ] {
            let error = error(text);
            assert!(
                error.contains(key) && error.contains(meant),
                "{text}: {error}"
            );
        }
        assert!(!error("zzqq = 1").contains("did you mean"));
    }

    #[test]
    fn bad_values_are_explained() {
        for (text, part) in [
            ("memory = 5", "line 1"),
            ("x = [", "line 1"),
            ("entrypoint = []", "entrypoint"),
            ("workdir = \"srv\"", "not absolute"),
            ("[arguments]\npatterns = [\"*\"]", "locked"),
            (
                "[arguments]\nmode = \"host\"\npatterns = [\"[a\"]",
                "no matching ]",
            ),
            ("[environment]\nA = true", "true says nothing"),
            ("[environment]\nA = { }", "either host"),
            (
                "[environment]\nA = { host = true, secret = \"x\" }",
                "either host",
            ),
            (
                "[environment]\nA = { secret = \"x\", default = \"x\" }",
                "for host = true only",
            ),
            (
                "[environment]\nLD_PRELOAD = { host = true }",
                "which code runs",
            ),
            ("[network]\nhostname = \"a b\"", "not a host name"),
            ("[network]\nresolver = \"fixed\"", "needs at least one"),
            (
                "[network]\nnameservers = [\"1.1.1.1\"]",
                "resolver = \"fixed\"",
            ),
            ("[cpu]\nfeatures = [\"avx3\"]", "did you mean avx"),
            (
                "[[mounts]]\ntarget = \"/a/../b\"\ntype = \"tmpfs\"",
                "not an absolute path",
            ),
            (
                "[[mounts]]\ntarget = \"/proc/x\"\ntype = \"tmpfs\"",
                "nothing can be mounted",
            ),
            (
                "[[mounts]]\ntarget = \"/a\"\ntype = \"tmpfs\"\nmode = \"9\"",
                "octal",
            ),
            (
                "[[mounts]]\ntarget = \"/a\"\ntype = \"volume\"\nsize = \"1M\"",
                "only a tmpfs",
            ),
            (
                "[[mounts]]\ntarget = \"/a\"\ntype = \"tmpfs\"\nkey = \"signer\"",
                "only a volume",
            ),
            (
                "[[mounts]]\ntarget = \"/a\"\ntype = \"insecure_passthrough\"\n[[mounts]]\ntarget = \
                 \"/a/b\"\ntype = \"tmpfs\"",
                "below /a",
            ),
            (
                "[[mounts]]\ntarget = \"/a\"\ntype = \"volume\"\n[[mounts]]\ntarget = \"/a\"\n\
                 type = \"tmpfs\"",
                "already",
            ),
            (
                "[environment]\nA = { host = true, insecure_host = true }",
                "for secret",
            ),
            ("[[mounts]]\ntarget = \"/a\"\ntype = \"nfs\"", "nfs"),
        ] {
            let error = error(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
