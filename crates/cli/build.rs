//! How the two programs are linked where they are static: so that they start fast.
//!
//! Each has some 50 000 addresses in its constants, to which its start adds where it was loaded.

use std::process::Command;

/// The first C library whose static start understands packed relocations.
const PACKED_RELOCATIONS_SINCE: (u32, u32) = (2, 36);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let is_gnu = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu");
    if !is_gnu || !features.split(',').any(|feature| feature == "crt-static") {
        return;
    }
    println!("cargo:rustc-link-arg-bins=-Wl,--entry=bulla_entry");
    if libc_version().is_some_and(|version| version >= PACKED_RELOCATIONS_SINCE) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of the C library that is linked in.
fn libc_version() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
