//! `bulla diff`: why two confidential images have different measurements, in words.

use crate::failure::Failure;
use crate::registry::RegistryArguments;
use crate::sign::{read_config, read_signature};
use crate::state::hex;
use bulla_abi::config::Config;
use bulla_abi::layout::LayoutKind;
use bulla_oci::built::Built;
use bulla_oci::source::ImageSource;
use bulla_oci::{Cache, Digest};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The exit code is 0 when both have the same measurements, 1 when not.\n\n\
    Example:\n  bulla diff redis:7-sgx registry.example/me/redis:7-sgx"
)]
pub struct Arguments {
    /// A confidential image
    pub one: OsString,

    /// Another one
    pub other: OsString,

    #[command(flatten)]
    pub registry: RegistryArguments,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A reason, in words.
#[derive(Debug, PartialEq, Serialize)]
struct Reason {
    /// `runtime`, `configuration`, `file`, `signature`.
    part: &'static str,
    what: String,
    /// Whether MRENCLAVE depends on it.
    measured: bool,
}

/// Files that are named before the rest is only counted.
const FILES_SHOWN: usize = 50;

/// Runs the command; 1 when the measurements differ.
pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let cache = Cache::of_user()?;
    let one = open(&cache, &arguments.one, &arguments.registry)?;
    let other = open(&cache, &arguments.other, &arguments.registry)?;
    let reasons = reasons(&one, &other)?;
    let differ = reasons.iter().any(|reason| reason.measured);
    if arguments.json {
        crate::print_json(&reasons)?;
    } else {
        let mut text = String::new();
        for reason in &reasons {
            text.push_str(&format!("{}: {}\n", reason.part, reason.what));
        }
        text.push_str(match (differ, reasons.is_empty()) {
            (true, _) => "MRENCLAVE differs\n",
            (false, true) => "no difference\n",
            (false, false) => "MRENCLAVE is the same\n",
        });
        crate::print(&text)?;
    }
    Ok(u8::from(differ))
}

fn open(cache: &Cache, name: &OsStr, registry: &RegistryArguments) -> Result<Built, Failure> {
    let image = ImageSource::parse(name)?.open(cache, &registry.options())?;
    if !image.is_built() {
        return Err(Failure::new(format!(
            "{} is not a confidential image; make one with `bulla build`",
            name.display()
        )));
    }
    Ok(cache.built(&image)?)
}

fn reasons(one: &Built, other: &Built) -> Result<Vec<Reason>, Failure> {
    let mut reasons = Vec::new();
    let (about_one, about_other) = (one.about()?, other.about()?);
    for program in ["bootstrap", "runtime"] {
        let digests = (
            Digest::of(&one.read(program)?),
            Digest::of(&other.read(program)?),
        );
        if digests.0 != digests.1 {
            reasons.push(Reason {
                part: "runtime",
                what: format!(
                    "the {program} differs: bulla {} ({}) and bulla {} ({})",
                    about_one.bulla,
                    &digests.0.hex()[..12],
                    about_other.bulla,
                    &digests.1.hex()[..12]
                ),
                measured: true,
            });
        }
    }
    for kind in [LayoutKind::Dynamic, LayoutKind::Static] {
        let (config_one, config_other) = (read_config(one, kind)?, read_config(other, kind)?);
        for what in config_reasons(&config_one, &config_other) {
            let known = |reason: &Reason| reason.what == what;
            if !reasons.iter().any(known) {
                reasons.push(Reason {
                    part: "configuration",
                    what,
                    measured: true,
                });
            }
        }
        let (signed_one, signed_other) = (read_signature(one, kind)?, read_signature(other, kind)?);
        for (name, values) in [
            (
                "the signer (MRSIGNER)",
                (hex(&signed_one.mrsigner()), hex(&signed_other.mrsigner())),
            ),
            (
                "the product id",
                (
                    signed_one.isv_prod_id.to_string(),
                    signed_other.isv_prod_id.to_string(),
                ),
            ),
            (
                "the security version",
                (
                    signed_one.isv_svn.to_string(),
                    signed_other.isv_svn.to_string(),
                ),
            ),
        ] {
            let what = format!("{name} differs: {} and {}", values.0, values.1);
            if values.0 != values.1 && !reasons.iter().any(|reason| reason.what == what) {
                reasons.push(Reason {
                    part: "signature",
                    what,
                    measured: false,
                });
            }
        }
    }
    reasons.extend(file_reasons(&files(one)?, &files(other)?));
    Ok(reasons)
}

/// Differences between configurations, a key each.
fn config_reasons(one: &Config, other: &Config) -> Vec<String> {
    let text = |words: &[Vec<u8>]| -> Vec<String> {
        words
            .iter()
            .map(|word| bulla_oci::listing::shown(word))
            .collect()
    };
    let mut reasons = Vec::new();
    let mut compare = |key: &str, values: (String, String)| {
        if values.0 != values.1 {
            reasons.push(format!("{key} differs: {} and {}", values.0, values.1));
        }
    };
    macro_rules! field {
        ($key:literal, $config:ident => $value:expr) => {
            compare(
                $key,
                (
                    {
                        let $config = one;
                        format!("{:?}", $value)
                    },
                    {
                        let $config = other;
                        format!("{:?}", $value)
                    },
                ),
            )
        };
    }
    field!("the program and its arguments", c => text(&c.argv));
    field!("arguments that the host may replace", c => text(&c.default_arguments));
    field!("the working directory", c => text(std::slice::from_ref(&c.cwd)));
    field!("user", c => &c.user);
    field!("the host name", c => &c.hostname);
    field!("memory", c => c.memory);
    field!("threads", c => c.threads);
    field!("stop_signal", c => c.stop_signal);
    field!("insecure options", c => &c.insecure);
    field!("arguments from the host", c => &c.host.arguments);
    field!("environment from the host", c => &c.host.environment);
    field!("hostname_from_host", c => c.host.hostname);
    field!("the resolver from the host", c => c.host.resolver);
    field!("insecure_exec", c => c.host.exec);
    field!("network.hosts", c => text(std::slice::from_ref(&c.hosts)));
    field!("mounts", c => &c.mounts);
    field!("encryption or its key", c => &c.encryption);
    field!("cpu.features", c => &c.cpu_features);
    let env = |config: &Config| -> BTreeMap<String, String> {
        let lines = text(&config.env).into_iter();
        let split = |line: String| {
            line.split_once('=')
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
        };
        lines.filter_map(split).collect()
    };
    let (env_one, env_other) = (env(one), env(other));
    let names = env_one.keys().chain(env_other.keys());
    let names: std::collections::BTreeSet<&String> = names.collect();
    for name in names {
        let values = (env_one.get(name), env_other.get(name));
        match values {
            (Some(a), Some(b)) if a != b => {
                reasons.push(format!(
                    "the environment variable {name} differs: {a:?} and {b:?}"
                ));
            }
            (Some(_), None) => reasons.push(format!(
                "the environment variable {name} is in the first only"
            )),
            (None, Some(_)) => reasons.push(format!(
                "the environment variable {name} is in the second only"
            )),
            _ => {}
        }
    }
    let contents = |config: &Config| -> Vec<(String, Digest, u32)> {
        let files = config.files.iter();
        files
            .map(|file| {
                (
                    bulla_oci::listing::shown(&file.path),
                    Digest::of(&file.content),
                    file.mode,
                )
            })
            .collect()
    };
    if contents(one) != contents(other) {
        reasons.push("files that the manifest fixes (as /etc/resolv.conf) differ".into());
    }
    if one.rootfs != other.rootfs {
        reasons.push(format!(
            "the files differ: verity root {} and {}",
            &hex(&one.rootfs.root_hash)[..16],
            &hex(&other.rootfs.root_hash)[..16]
        ));
    }
    // Fields that were added to the configuration since this was written.
    if reasons.is_empty() && one != other {
        reasons.push("a key that this command does not know differs".into());
    }
    reasons
}

type FileList = BTreeMap<String, Value>;

/// The list in the image. Not measured itself: the root hash above says whether files differ.
fn files(built: &Built) -> Result<FileList, Failure> {
    let list: Vec<Value> = serde_json::from_slice(&built.read("files.json")?)
        .map_err(|error| Failure::new(format!("the image's file list is damaged: {error}")))?;
    let named = |entry: Value| Some((entry["path"].as_str()?.to_owned(), entry));
    Ok(list.into_iter().filter_map(named).collect())
}

fn file_reasons(one: &FileList, other: &FileList) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let paths = one.keys().chain(other.keys());
    let paths: std::collections::BTreeSet<&String> = paths.collect();
    for path in paths {
        let what = match (one.get(path), other.get(path)) {
            (Some(_), None) => format!("{path} is in the first image only"),
            (None, Some(_)) => format!("{path} is in the second image only"),
            (Some(a), Some(b)) if a != b => {
                let keys = ["type", "mode", "uid", "gid", "size", "sha256", "target"];
                let differ = keys.into_iter().filter(|key| a[*key] != b[*key]);
                let words: Vec<&str> = differ
                    .map(|key| if key == "sha256" { "content" } else { key })
                    .collect();
                format!("{path} differs in {}", words.join(", "))
            }
            _ => continue,
        };
        reasons.push(Reason {
            part: "file",
            what,
            measured: true,
        });
    }
    let more = reasons.len().saturating_sub(FILES_SHOWN);
    if more > 0 {
        reasons.truncate(FILES_SHOWN);
        reasons.push(Reason {
            part: "file",
            what: format!("{more} more"),
            measured: true,
        });
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_variables_are_named() {
        let one = Config {
            user: "a".into(),
            env: vec![b"A=1".to_vec(), b"B=2".to_vec()],
            ..Config::default()
        };
        let other = Config {
            user: "b".into(),
            env: vec![b"A=3".to_vec(), b"C=2".to_vec()],
            memory: 5,
            ..Config::default()
        };
        let reasons = config_reasons(&one, &other).join("\n");
        for part in [
            "user differs: \"a\" and \"b\"",
            "memory differs: 0 and 5",
            "variable A differs",
            "B is in the first only",
            "C is in the second only",
        ] {
            assert!(reasons.contains(part), "{part}: {reasons}");
        }
        assert!(config_reasons(&one, &one).is_empty());
    }

    #[test]
    fn files_are_named() {
        let list = |text: &str| -> FileList { serde_json::from_str(text).unwrap() };
        let one = list(r#"{"/a":{"path":"/a","sha256":"1","mode":"0644"},"/b":{"path":"/b"}}"#);
        let other = list(r#"{"/a":{"path":"/a","sha256":"2","mode":"0600"},"/c":{"path":"/c"}}"#);
        let reasons: Vec<String> = file_reasons(&one, &other)
            .into_iter()
            .map(|r| r.what)
            .collect();
        assert_eq!(
            reasons,
            [
                "/a differs in mode, content",
                "/b is in the first image only",
                "/c is in the second image only"
            ]
        );
    }
}
