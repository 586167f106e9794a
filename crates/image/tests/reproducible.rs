//! Two checkouts in two folders, one of them in an environment that tries to interfere, give the
//! same enclave programs, byte for byte.

mod common;

use common::{run, temporary};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Copies what git knows of the workspace, as it stands on disk.
fn checkout(to: &Path) {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap();
    let mut git = Command::new("git");
    git.arg("-C")
        .arg(workspace)
        .args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    for file in run(&mut git).lines() {
        let (from, to) = (workspace.join(file), to.join(file));
        if from.is_file() {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, to).unwrap();
        }
    }
}

fn build(folder: &Path, environment: &[(&str, &str)]) -> Vec<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
    ] {
        cargo.env_remove(name);
    }
    cargo.current_dir(folder).envs(environment.iter().copied());
    run(cargo.args([
        "build",
        "--quiet",
        "--locked",
        "-p",
        "bulla-image",
        "--features",
        "embedded",
    ]));
    let built = folder.join("target/bulla-enclave/x86_64-unknown-linux-gnu/enclave");
    vec![built.join("bulla-bootstrap"), built.join("bulla-runtime")]
}

#[test]
#[ignore = "long: builds the enclave programs twice, which takes some minutes"]
fn two_checkouts_give_identical_programs() {
    let folder = temporary("reproducible");
    let (plain, odd) = (folder.join("a"), folder.join("deeper/with a space/b"));
    checkout(&plain);
    checkout(&odd);
    let plain = build(&plain, &[]);
    let settings = "[profile.enclave]\nopt-level = 1\nlto = false\n\
        [build]\nrustflags = [\"-Cdebuginfo=2\"]\n";
    fs::create_dir_all(folder.join("deeper/.cargo")).unwrap();
    fs::write(folder.join("deeper/.cargo/config.toml"), settings).unwrap();
    let interference = [
        ("RUSTFLAGS", "-Ctarget-cpu=x86-64-v2 -Copt-level=1"),
        ("CARGO_PROFILE_ENCLAVE_OPT_LEVEL", "2"),
        ("CARGO_PROFILE_ENCLAVE_CODEGEN_UNITS", "7"),
        ("CARGO_INCREMENTAL", "1"),
        ("SOURCE_DATE_EPOCH", "1"),
        ("TZ", "Asia/Tokyo"),
    ];
    let odd = build(&odd, &interference);
    for (plain, odd) in plain.iter().zip(&odd) {
        let (first, second) = (fs::read(plain).unwrap(), fs::read(odd).unwrap());
        assert!(
            first == second,
            "{} and {} differ",
            plain.display(),
            odd.display()
        );
        // No path of this machine is left.
        let home = std::env::var("HOME").unwrap();
        for path in [
            folder.to_str().unwrap(),
            &format!("{home}/.cargo"),
            &format!("{home}/.rustup"),
        ] {
            let found = first
                .windows(path.len())
                .any(|window| window == path.as_bytes());
            assert!(!found, "{} contains {path}", plain.display());
        }
    }
}
