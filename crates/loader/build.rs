//! Names this build, so that `bulla` and the programs beside it can tell whether they belong together.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

fn main() {
    // All packages: what they make runs in the same enclave.
    println!("cargo:rerun-if-changed=..");
    println!("cargo:rerun-if-changed=../../Cargo.lock");
    let mut files = BTreeSet::new();
    find(Path::new(".."), &mut files);
    files.insert(PathBuf::from("../../Cargo.lock"));
    let mut hash = DefaultHasher::new();
    for file in files {
        hash.write(file.as_os_str().as_encoded_bytes());
        hash.write(&std::fs::read(&file).unwrap_or_default());
    }
    for name in ["TARGET", "PROFILE", "BULLA_QUICK_ENCLAVE"] {
        println!("cargo:rerun-if-env-changed={name}");
        hash.write(std::env::var(name).unwrap_or_default().as_bytes());
    }
    println!("cargo:rustc-env=BULLA_BUILD={:016x}", hash.finish());
}

/// Sources and package files below a directory.
fn find(directory: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find(&path, files);
        } else if path
            .extension()
            .is_some_and(|ext| ext == "rs" || ext == "toml")
        {
            files.insert(path);
        }
    }
}
