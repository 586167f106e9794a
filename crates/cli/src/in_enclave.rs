//! `bulla coordinator --in-enclave`: this very program becomes the file system of an enclave, and runs
//! the coordinator there.
//!
//! The command line inside and the files that options name (certificate, manifest, collateral) are
//! measured: MRENCLAVE says which owner the coordinator obeys, and which store it uses. The state is in
//! a protected volume, whose anchor notices an old copy.
//!
//! What is put together stays in the cache, in a directory that is named after its content: it appears
//! whole, is the same each time (times and modes are measured too), and several starts may share it.

use crate::coordinator_args::CoordinatorArguments;
use crate::failure::Failure;
use bulla_coordinator::store::KubernetesOptions;
use bulla_oci::Cache;
use clap::ValueEnum;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::UNIX_EPOCH;

/// Program headers of this type name a dynamic loader (elf(5)).
const PT_INTERP: u32 = 3;

/// Enough for ten thousand marbles; where all of it is added before the start, it costs time.
const MEMORY: &str = "1G";

/// Where the directory with the Kubernetes API's token is, in the enclave.
const TOKEN_PLACE: &str = "/run/kubernetes";

/// Becomes `bulla run`; with `--identity`, says what that would be.
pub fn run(arguments: &CoordinatorArguments) -> Result<u8, Failure> {
    if arguments.freshness_anchor.is_some() && !arguments.is_shared() {
        return Err(Failure::new(
            "--freshness-anchor is for coordinators outside an enclave, and for stores that replicas share: \
             the volume of --in-enclave has an anchor of its own",
        ));
    }
    let program = std::env::current_exe().map_err(Failure::new)?;
    let kubernetes = match arguments.kubernetes {
        true => Some(
            crate::coordinator::kubernetes(arguments)
                .in_pod()
                .map_err(Failure::new)?,
        ),
        false => None,
    };
    let (files, words) = contents(arguments, kubernetes.as_ref(), &program)?;
    let root = lay_out(&files)?;
    let mut command = Command::new(&program);
    match arguments.identity {
        true => command.args(["measure", "--json"]),
        false => {
            let platform = arguments.platform.to_possible_value();
            let platform = platform.map_or(String::new(), |value| value.get_name().to_owned());
            command.args(["run", "--quiet", "--platform", &platform])
        }
    };
    command.args(["--memory", MEMORY]);
    // With a shared store only the anchor is kept here.
    let kept = match arguments.is_shared() {
        false => Some((&arguments.state, ":/state")),
        true => arguments
            .freshness_anchor
            .as_ref()
            .map(|anchor| (anchor, ":/anchor")),
    };
    if let Some((place, target)) = kept {
        fs::create_dir_all(place).map_err(|error| at(place, error))?;
        let volume = place.canonicalize().map_err(|error| at(place, error))?;
        let mut volume = volume.into_os_string();
        volume.push(target);
        command.arg("-v").arg(volume);
    }
    // Tokens are exchanged while they are in use, and come from the host anyway.
    if let Some(token) = kubernetes
        .as_ref()
        .and_then(|options| options.token.as_ref())
        && !arguments.identity
    {
        let token = std::path::absolute(token).map_err(|error| at(token, error))?;
        let mut mount = token.parent().unwrap_or(&token).as_os_str().to_owned();
        mount.push(format!(":{TOKEN_PLACE}:ro"));
        command.arg("--insecure-passthrough").arg(mount);
    }
    if let Some(key) = &arguments.insecure_volume_key {
        command.arg("--insecure-volume-key").arg(key);
    }
    if let Some(key) = &arguments.sign_key {
        command.arg("--sign-key").arg(key);
    }
    command.arg("--rootfs").arg(&root).arg("/bulla").args(words);
    if arguments.identity {
        let output = command.output().map_err(|error| at(&program, error))?;
        return print_identity(&output).map(|()| 0);
    }
    Err(at(&program, command.exec()))
}

fn at(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

/// What `--coordinator-identity` of the clients takes.
fn print_identity(output: &Output) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Report {
        layouts: Vec<Measured>,
    }
    #[derive(Deserialize)]
    struct Measured {
        mrenclave: String,
    }
    if !output.status.success() {
        return Err(Failure::new(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ));
    }
    let report: Report = serde_json::from_slice(&output.stdout).map_err(Failure::new)?;
    let mut ids = report
        .layouts
        .into_iter()
        .map(|measured| measured.mrenclave);
    let first = ids.next().unwrap_or_default();
    let others: Vec<String> = ids.collect();
    crate::print_json(&json!({"UniqueID": first, "UniqueIDs": others}))
}

/// Files by their path, with their mode, and the command line inside.
type Files = BTreeMap<PathBuf, (Vec<u8>, u32)>;

fn contents(
    arguments: &CoordinatorArguments,
    kubernetes: Option<&KubernetesOptions>,
    program: &Path,
) -> Result<(Files, Vec<OsString>), Failure> {
    let bytes = fs::read(program).map_err(|error| at(program, error))?;
    if needs_loader(&bytes) {
        return Err(Failure::new(
            "this bulla is linked dynamically and cannot run alone in an enclave: build it with \
             `make build`",
        ));
    }
    let mut files = Files::from([("bulla".into(), (bytes, 0o755))]);
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
    for endpoint in &arguments.etcd {
        option("--etcd", endpoint);
    }
    if !arguments.etcd.is_empty() {
        option("--etcd-prefix", &arguments.etcd_prefix);
    }
    if let Some(kubernetes) = kubernetes {
        let known = |value: &Option<String>| value.clone().unwrap_or_default();
        option("--kubernetes-api", &known(&kubernetes.server));
        option("--kubernetes-namespace", &known(&kubernetes.namespace));
        option("--kubernetes-prefix", &arguments.kubernetes_prefix);
        if let Some(name) = kubernetes.token.as_ref().and_then(|path| path.file_name()) {
            let token = Path::new(TOKEN_PLACE).join(name);
            option("--kubernetes-token", &token.to_string_lossy());
        }
    }
    if arguments.is_shared() {
        if arguments.freshness_anchor.is_some() {
            option("--freshness-anchor", "/anchor/anchor");
        }
        // Without a name the enclave finds one, so that all replicas have one MRENCLAVE.
        if let Some(replica) = &arguments.replica {
            option("--replica", replica);
        }
    }
    for peer in &arguments.peers {
        option("--peer", peer);
    }
    let authority = match kubernetes {
        Some(kubernetes) => &kubernetes.tls.authority,
        None => &arguments.store_ca,
    };
    for (name, file) in [
        ("store-ca", authority),
        ("store-cert", &arguments.store_cert),
        ("store-key", &arguments.store_key),
        ("manifest", &arguments.manifest),
        ("owner-certificate", &arguments.owner_certificate),
        ("collateral", &arguments.collateral),
    ] {
        if let Some(file) = file {
            let there = Path::new("config").join(name);
            read(file, &there, &mut files)?;
            option(&format!("--{name}"), &format!("/{}", there.display()));
        }
    }
    if kubernetes.is_some() {
        words.push("--kubernetes".into());
    }
    if arguments.log_json {
        words.push("--log-json".into());
    }
    Ok((files, words))
}

/// A file, or a directory of files.
fn read(from: &Path, to: &Path, files: &mut Files) -> Result<(), Failure> {
    if !from.is_dir() {
        let bytes = fs::read(from).map_err(|error| at(from, error))?;
        files.insert(to.to_owned(), (bytes, 0o644));
        return Ok(());
    }
    for entry in fs::read_dir(from).map_err(|error| at(from, error))? {
        let entry = entry.map_err(|error| at(from, error))?;
        if entry.path().is_file() {
            read(&entry.path(), &to.join(entry.file_name()), files)?;
        }
    }
    Ok(())
}

/// Writes the files below a directory of the cache, unless they are there.
fn lay_out(files: &Files) -> Result<PathBuf, Failure> {
    let place = Cache::of_user()
        .map_err(Failure::new)?
        .dir()
        .join("coordinator");
    let root = place.join(name_of(files));
    if root.exists() {
        return Ok(root);
    }
    fs::create_dir_all(&place).map_err(|error| at(&place, error))?;
    let temporary = tempfile::tempdir_in(&place).map_err(|error| at(&place, error))?;
    let new = temporary.path().join("root");
    let mut directories = vec![new.clone()];
    for directory in [
        "tmp",
        "run",
        "state",
        "config",
        "anchor",
        TOKEN_PLACE.trim_start_matches('/'),
    ] {
        directories.push(new.join(directory));
    }
    directories.extend(
        files
            .keys()
            .filter_map(|path| Some(new.join(path.parent()?))),
    );
    for directory in &directories {
        fs::create_dir_all(directory).map_err(|error| at(directory, error))?;
    }
    for (path, (bytes, mode)) in files {
        let path = new.join(path);
        fs::write(&path, bytes).map_err(|error| at(&path, error))?;
        settle(&path, *mode)?;
    }
    // The innermost first: what is made in a directory changes its time.
    directories.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for directory in &directories {
        settle(directory, 0o755)?;
    }
    match fs::rename(&new, &root) {
        // Another start was faster.
        Err(_) if root.exists() => Ok(root),
        Err(error) => Err(at(&root, error)),
        Ok(()) => Ok(root),
    }
}

/// Mode and time: they are measured, and must not depend on when and where this ran.
fn settle(path: &Path, mode: u32) -> Result<(), Failure> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|error| at(path, error))?;
    File::open(path)
        .and_then(|file| file.set_modified(UNIX_EPOCH))
        .map_err(|error| at(path, error))
}

/// A hash of names, lengths, modes and contents.
fn name_of(files: &Files) -> String {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for (path, (bytes, mode)) in files {
        let head = format!("{}\0{mode}\0{}\0", path.display(), bytes.len());
        parts.push(head.into_bytes());
        parts.push(bytes.clone());
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    crate::state::hex(&bulla_attest::sha256(&parts))[..32].to_owned()
}

/// Whether an ELF file asks for a dynamic loader.
fn needs_loader(elf: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| -> usize {
        let slice = elf.get(at..at.saturating_add(bytes)).unwrap_or_default();
        slice
            .iter()
            .rev()
            .fold(0, |sum, byte| (sum << 8) | usize::from(*byte))
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|index| number(table.saturating_add(index * size), 4) == PT_INTERP as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 2 * 56];
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 2;
        elf[64 + 56..64 + 60].copy_from_slice(&kind.to_le_bytes());
        elf
    }

    #[test]
    fn a_dynamic_loader_is_noticed() {
        assert!(needs_loader(&header(PT_INTERP)));
        assert!(!needs_loader(&header(1)));
        assert!(!needs_loader(b""));
        let mut cut = header(PT_INTERP);
        cut.truncate(100);
        assert!(!needs_loader(&cut));
    }

    #[test]
    fn the_name_is_of_the_content() {
        let one = Files::from([("a".into(), (b"xy".to_vec(), 0o644))]);
        let other = Files::from([
            ("a".into(), (b"x".to_vec(), 0o644)),
            ("y".into(), (vec![], 0o644)),
        ]);
        let mode = Files::from([("a".into(), (b"xy".to_vec(), 0o755))]);
        assert_eq!(name_of(&one), name_of(&one.clone()));
        assert_ne!(name_of(&one), name_of(&other));
        assert_ne!(name_of(&one), name_of(&mode));
    }
}
