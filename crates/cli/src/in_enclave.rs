//! `bulla coordinator --in-enclave`: this very program becomes the root file system of an enclave, and
//! runs the coordinator there.
//!
//! The files that options name (certificate, manifest, collateral) are copied in, so they are
//! measured: the enclave's MRENCLAVE says which owner it obeys.

use crate::coordinator_args::CoordinatorArguments;
use crate::failure::Failure;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Program headers of this type name a dynamic loader (elf(5)).
const PT_INTERP: u32 = 3;

pub fn run(arguments: &CoordinatorArguments) -> Result<u8, Failure> {
    let program = std::env::current_exe().map_err(Failure::new)?;
    let bytes = std::fs::read(&program).map_err(|error| at(&program, error))?;
    if needs_loader(&bytes) {
        return Err(Failure::new(
            "this bulla is linked dynamically and cannot run alone in an enclave: build it with \
             `make build`",
        ));
    }
    let root = place()?;
    let _ = std::fs::remove_dir_all(&root);
    for directory in ["tmp", "state", "config"] {
        let path = root.join(directory);
        std::fs::create_dir_all(&path).map_err(|error| at(&path, error))?;
    }
    let copy = root.join("bulla");
    std::fs::write(&copy, bytes).map_err(|error| at(&copy, error))?;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&copy, mode).map_err(|error| at(&copy, error))?;
    let inside = inside(arguments, &root)?;
    let error = Command::new(&program)
        .arg("run")
        .arg("--rootfs")
        .arg(&root)
        .arg("/bulla")
        .args(inside)
        .exec();
    Err(at(&program, error))
}

fn at(path: &Path, error: std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

/// Where the file system is put together: the user's own cache.
fn place() -> Result<PathBuf, Failure> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .ok_or_else(|| Failure::new("HOME is not set"))?;
    Ok(cache.join("bulla/coordinator"))
}

/// The command line inside, with paths as they are there.
fn inside(arguments: &CoordinatorArguments, root: &Path) -> Result<Vec<OsString>, Failure> {
    let mut words: Vec<OsString> = vec!["coordinator".into()];
    let mut option = |name: &str, value: &str| {
        words.push(name.into());
        words.push(value.into());
    };
    option("--state", "/state");
    option("--client-address", &arguments.client_address);
    option("--mesh-address", &arguments.mesh_address);
    if let Some(address) = &arguments.metrics_address {
        option("--metrics-address", address);
    }
    for name in &arguments.names {
        option("--name", name);
    }
    if let Some(hash) = &arguments.owner_token_sha256 {
        option("--owner-token-sha256", hash);
    }
    for (name, file) in [
        ("--manifest", &arguments.manifest),
        ("--owner-certificate", &arguments.owner_certificate),
        ("--collateral", &arguments.collateral),
    ] {
        if let Some(file) = file {
            let there = format!("config/{}", &name[2..]);
            copy(file, &root.join(&there))?;
            option(name, &format!("/{there}"));
        }
    }
    for endpoint in &arguments.etcd {
        option("--etcd", endpoint);
    }
    if !arguments.etcd.is_empty() {
        option("--etcd-prefix", &arguments.etcd_prefix);
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        option("--replica", arguments.replica.as_deref().unwrap_or(&host));
    }
    for peer in &arguments.peers {
        option("--peer", peer);
    }
    if arguments.log_json {
        words.push("--log-json".into());
    }
    if arguments.freshness_anchor.is_some() {
        return Err(Failure::new(
            "--freshness-anchor needs a disk, which an enclave has none of: use --etcd",
        ));
    }
    Ok(words)
}

/// A file, or a directory of files.
fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    if !from.is_dir() {
        return std::fs::copy(from, to)
            .map(|_| ())
            .map_err(|error| at(from, error));
    }
    std::fs::create_dir_all(to).map_err(|error| at(to, error))?;
    for entry in std::fs::read_dir(from).map_err(|error| at(from, error))? {
        let entry = entry.map_err(|error| at(from, error))?;
        std::fs::copy(entry.path(), to.join(entry.file_name())).map_err(|error| at(from, error))?;
    }
    Ok(())
}

/// Whether an ELF file asks for a dynamic loader.
fn needs_loader(elf: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| {
        elf.get(at..at + bytes)
            .map(|slice| {
                slice
                    .iter()
                    .rev()
                    .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
            })
            .unwrap_or(0) as usize
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|index| number(table.saturating_add(index * size), 4) == PT_INTERP as usize)
}
