//! Builds the enclave programs (crates/enclave) and the agent (crates/agent) for embedding, with the
//! feature `embedded`.
//!
//! What comes out is measured, so it may depend on nothing but the sources, the lock file and the
//! compiler: the inner cargo gets an environment of its own, all settings of the profile come from
//! here or from the workspace, and no path of this machine gets into the programs.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Programs that one inner cargo builds.
struct Recipe {
    package: &'static str,
    /// Inner target folder below the outer one.
    folder: &'static str,
    profile: &'static str,
    features: &'static [&'static str],
    programs: &'static [&'static str],
    settings: &'static [&'static str],
    /// Beside the paths.
    flags: &'static [&'static str],
    /// What BULLA_QUICK_ENCLAVE changes.
    quick: &'static [&'static str],
}

const ENCLAVE: Recipe = Recipe {
    package: "enclave",
    folder: "bulla-enclave",
    profile: "enclave",
    features: &["enclave-bin"],
    programs: &["bulla-bootstrap", "bulla-runtime"],
    settings: &PROFILE,
    flags: &[],
    quick: &QUICK,
};

/// An ordinary static program: it becomes a file of the container, whose image may have no C library.
/// Never built quickly: unoptimised it would not fit into the configuration.
const AGENT: Recipe = Recipe {
    package: "agent",
    folder: "bulla-agent",
    profile: "agent",
    features: &[],
    programs: &["bulla-agent"],
    settings: &AGENT_PROFILE,
    flags: &["-Ctarget-feature=+crt-static", "-Crelocation-model=pie"],
    quick: &[],
};

/// The only variables that the inner cargo sees: where tools and caches are, how to reach a
/// registry, and the job server.
const KEPT: [&str; 14] = [
    "PATH",
    "HOME",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "TMPDIR",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_OFFLINE",
    "CARGO_HTTP_CAINFO",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// The profile, said once more: a `config.toml` somewhere above could change it otherwise.
/// Symbols stay, since the layout looks for the boot header by name.
const PROFILE: [&str; 10] = [
    "opt-level=3",
    "lto='fat'",
    "codegen-units=1",
    "panic='abort'",
    "debug=0",
    "strip='debuginfo'",
    "debug-assertions=false",
    "overflow-checks=false",
    "incremental=false",
    "rpath=false",
];

/// The agent's: small, since all of it is hashed when an enclave with it starts.
const AGENT_PROFILE: [&str; 10] = [
    "opt-level='s'",
    "lto='fat'",
    "codegen-units=1",
    "panic='abort'",
    "debug=0",
    "strip='symbols'",
    "debug-assertions=false",
    "overflow-checks=false",
    "incremental=false",
    "rpath=false",
];
/// What every CPU with SGX has and the programs may use without asking: CPUID cannot be executed in
/// an enclave, and the ciphers would ask. All of it has encodings without a VEX prefix, so the upper
/// halves of the application's vector registers stay as they are.
const CPU_FEATURES: &str = "-Ctarget-feature=+aes,+pclmulqdq,+sse3,+ssse3,+sse4.1";

/// The compiler with which published measurements are made. Another one gives other programs, and so
/// another MRENCLAVE. A `rust-toolchain.toml` would say the same, but makes rustup download it before
/// anybody can build anything; here other compilers build, and say what they cannot do.
const COMPILER: &str = "rustc 1.95.0 (59807616e 2026-04-14)";

/// What a developer changes with `BULLA_QUICK_ENCLAVE=1`: seconds instead of a minute for a build.
/// The programs are other ones, with another MRENCLAVE, so this is never set for a release.
const QUICK: [&str; 3] = ["lto='off'", "codegen-units=16", "incremental=true"];
const QUICK_VARIABLE: &str = "BULLA_QUICK_ENCLAVE";
/// For quick builds only: a cache of compiled packages.
const QUICK_KEPT: [&str; 4] = [
    "RUSTC_WRAPPER",
    "SCCACHE_DIR",
    "SCCACHE_CACHE_SIZE",
    "SCCACHE_IDLE_TIMEOUT",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={QUICK_VARIABLE}");
    if env::var_os("CARGO_FEATURE_EMBEDDED").is_none() {
        return;
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workspace = package
        .ancestors()
        .nth(2)
        .expect("the package is in crates/image");
    // Paths relative to this package: a target folder that was copied with its checkout must not
    // watch the old one.
    for file in ["Cargo.lock", "Cargo.toml"] {
        println!("cargo:rerun-if-changed=../../{file}");
    }
    for name in ["RUSTC", "RUSTUP_TOOLCHAIN", "CARGO_HOME"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    // One inner target folder for all outer profiles (<target>/bulla-enclave), because what is
    // built in there does not depend on them.
    let quick = env::var_os(QUICK_VARIABLE).is_some_and(|value| !value.is_empty());
    if quick {
        println!("cargo:warning={QUICK_VARIABLE} is set: this enclave is for development only");
    }
    let compiler = ask(&variable("RUSTC"), &["-V"]);
    if let Some(warning) = other_compiler(compiler.trim()) {
        println!("cargo:warning={warning}");
    }
    let mut packages = BTreeSet::new();
    for recipe in [ENCLAVE, AGENT] {
        let quick = quick && !recipe.quick.is_empty();
        let suffix = if quick { "-quick" } else { "" };
        let folder = format!("{}{suffix}", recipe.folder);
        let target = out.ancestors().nth(4).unwrap_or(&out).join(folder);
        build(&recipe, workspace, &target, quick);
        let built = target.join(TARGET).join(recipe.profile);
        for program in recipe.programs {
            let (from, to) = (built.join(program), out.join(program));
            fs::copy(&from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
            sources(
                &built.join(format!("{program}.d")),
                workspace,
                &mut packages,
            );
        }
    }
    pieces(&out);
    for package in packages {
        for part in ["src", "Cargo.toml", "build.rs"] {
            let name = package.file_name().unwrap_or_default().to_string_lossy();
            if package.join(part).exists() {
                println!("cargo:rerun-if-changed=../{name}/{part}");
            }
        }
    }
}

/// Hashes the runtime's file in pieces, so that no start of a container has to.
fn pieces(out: &Path) {
    let runtime = out.join("bulla-runtime");
    let file = fs::read(&runtime).unwrap_or_else(|e| panic!("{}: {e}", runtime.display()));
    let hashes = file
        .chunks_exact(bulla_abi::boot::HASH_PIECE as usize)
        .flat_map(Sha256::digest);
    let list = out.join("bulla-runtime.pieces");
    fs::write(&list, hashes.collect::<Vec<u8>>())
        .unwrap_or_else(|e| panic!("{}: {e}", list.display()));
}

/// What to say of a compiler that is not [`COMPILER`].
fn other_compiler(compiler: &str) -> Option<String> {
    let release = COMPILER.split(' ').nth(1).unwrap_or_default();
    (compiler != COMPILER).then(|| {
        format!(
            "this is {compiler}: the enclave works, but published measurements are those of {COMPILER}; to reproduce them, `rustup toolchain install {release}` and build with RUSTUP_TOOLCHAIN={release}"
        )
    })
}

/// What the compiler prints.
fn ask(rustc: &OsString, arguments: &[&str]) -> String {
    let output = Command::new(rustc).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run rustc: {error}"));
    String::from_utf8(output.stdout).expect("rustc prints UTF-8")
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"))
}

/// Runs the inner cargo.
fn build(recipe: &Recipe, workspace: &Path, target: &Path, quick: bool) {
    let rustc = variable("RUSTC");
    let mut cargo = Command::new(variable("CARGO"));
    cargo.env_clear().current_dir(workspace);
    for name in KEPT {
        if let Some(value) = env::var_os(name) {
            cargo.env(name, value);
        }
    }
    cargo
        .env("RUSTC", &rustc)
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "");
    for name in QUICK_KEPT
        .iter()
        .take(if quick { QUICK_KEPT.len() } else { 0 })
    {
        if let Some(value) = env::var_os(name) {
            cargo.env(name, value);
        }
    }
    // This form of the variable comes before any flags in a config.toml.
    let mut flags = flags(workspace, &rustc);
    flags.extend(recipe.flags.iter().map(|flag| flag.to_string()));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    cargo.env("LC_ALL", "C");
    cargo.args([
        "build",
        "--quiet",
        "--locked",
        "--target",
        TARGET,
        "--profile",
        recipe.profile,
    ]);
    cargo
        .arg("--manifest-path")
        .arg(workspace.join(format!("crates/{}/Cargo.toml", recipe.package)));
    for feature in recipe.features {
        cargo.args(["--features", feature]);
    }
    cargo.arg("--target-dir").arg(target);
    cargo.args(["--config", &format!("target.{TARGET}.linker='cc'")]);
    let quicker = recipe.quick.iter().filter(|_| quick);
    for setting in recipe.settings.iter().chain(quicker) {
        cargo.args(["--config", &format!("profile.{}.{setting}", recipe.profile)]);
    }
    let status = cargo
        .status()
        .unwrap_or_else(|error| panic!("cannot run cargo: {error}"));
    assert!(
        status.success(),
        "{} does not build: {status}",
        recipe.package
    );
}

/// Compiler flags that keep this machine's paths out of the programs.
fn flags(workspace: &Path, rustc: &OsString) -> Vec<String> {
    let sysroot = ask(rustc, &["--print", "sysroot"]).trim().to_owned();
    let version = ask(rustc, &["-vV"]);
    let commit = version
        .lines()
        .find_map(|line| line.strip_prefix("commit-hash: "));
    // Where the sources of the standard library are installed, rustc shows their place instead of
    // the one they were built at.
    let library = format!("/rustc/{}", commit.unwrap_or("unknown"));
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"));
    // The last prefix that matches counts.
    [
        (sysroot.clone(), "/sysroot".to_owned()),
        (cargo_home.display().to_string(), "/cargo".to_owned()),
        (workspace.display().to_string(), "/bulla".to_owned()),
        (format!("{sysroot}/lib/rustlib/src/rust"), library),
    ]
    .map(|(from, to)| format!("--remap-path-prefix={from}={to}"))
    .into_iter()
    .chain([CPU_FEATURES.to_owned()])
    .collect()
}

/// The packages of the workspace that a program is made of, from its dependency file.
fn sources(list: &Path, workspace: &Path, packages: &mut BTreeSet<PathBuf>) {
    let text = fs::read_to_string(list).unwrap_or_else(|e| panic!("{}: {e}", list.display()));
    let crates = workspace.join("crates");
    // Spaces in paths are escaped, and no file of ours has one after the workspace's folder.
    let text = text.replace("\\ ", " ");
    let prefix = format!("{}/", crates.display());
    for rest in text.split(&prefix).skip(1) {
        if let Some((package, _)) = rest.split_once('/') {
            packages.insert(crates.join(package));
        }
    }
    assert!(
        !packages.is_empty(),
        "{} names no package of the workspace",
        list.display()
    );
}
