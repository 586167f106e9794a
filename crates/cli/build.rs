//! Builds the enclave's two programs, so that one `cargo build` gives a complete `bulla`.
//!
//! They are built by a cargo of their own with the `enclave` profile and an environment from which
//! everything that could change the result was removed (architecture §10.2): flags, wrappers,
//! profile overrides; paths of this machine are remapped. So two checkouts give one MRENCLAVE.
//! BULLA_ENCLAVE_DIR names a directory with ready `bulla-bootstrap` and `bulla-runtime` instead.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROGRAMS: [(&str, &str); 2] = [
    ("BULLA_BOOTSTRAP", "bulla-bootstrap"),
    ("BULLA_RUNTIME", "bulla-runtime"),
];

fn main() {
    println!("cargo:rerun-if-env-changed=BULLA_ENCLAVE_DIR");
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workspace = manifest
        .ancestors()
        .nth(2)
        .expect("crates/cli is in a workspace");
    let directory = match env::var_os("BULLA_ENCLAVE_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => build(workspace),
    };
    for (name, program) in PROGRAMS {
        let path = directory.join(program);
        println!("cargo:rerun-if-changed={}", path.display());
        println!("cargo:rustc-env={name}={}", path.display());
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn build(workspace: &Path) -> PathBuf {
    for name in ["enclave", "libos", "vault", "abi"] {
        println!(
            "cargo:rerun-if-changed={}",
            workspace.join("crates").join(name).display()
        );
    }
    for name in ["Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", workspace.join(name).display());
    }
    // Shared by all profiles of this checkout's target directory, hence not in OUT_DIR.
    let out = PathBuf::from(variable("OUT_DIR"));
    let target = out
        .ancestors()
        .nth(4)
        .expect("OUT_DIR is deep in the target directory");
    let target = target.join("enclave-build");

    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| {
        let home = env::var_os("HOME")?;
        Some(Path::new(&home).join(".cargo"))
    });
    let mut flags = vec![format!(
        "--remap-path-prefix={}=/bulla",
        workspace.display()
    )];
    if let Some(home) = &cargo_home {
        flags.push(format!("--remap-path-prefix={}=/cargo", home.display()));
    }

    let mut cargo = Command::new(variable("CARGO"));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let keep = matches!(&*text, "CARGO_HOME" | "CARGO_NET_OFFLINE" | "RUSTUP_HOME")
            || text.starts_with("CARGO_REGISTRIES_")
            || text.starts_with("CARGO_HTTP_");
        let ours = text.starts_with("CARGO") || text.starts_with("RUST");
        if ours && !keep && text != "RUSTUP_TOOLCHAIN" {
            cargo.env_remove(&name);
        }
    }
    let status = cargo
        .current_dir(workspace)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args([
            "build",
            "--quiet",
            "--locked",
            "--profile",
            "enclave",
            "--target",
            TARGET,
        ])
        .args([
            "--package",
            "bulla-enclave",
            "--features",
            "enclave-bin",
            "--target-dir",
        ])
        .arg(&target)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("building the enclave's programs failed: {status}"),
        Err(error) => panic!("cannot start cargo for the enclave's programs: {error}"),
    }
    let built = target.join(TARGET).join("enclave");
    for (_, program) in PROGRAMS {
        let path = built.join(program);
        assert!(
            fs::metadata(&path).is_ok(),
            "{} was not built",
            path.display()
        );
    }
    built
}
