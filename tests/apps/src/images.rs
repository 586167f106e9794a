//! Finding, or first building, the test images and `bulla` itself.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The files of one image, see tests/images/build.sh.
#[derive(Clone, Debug)]
pub struct Image {
    pub archive: PathBuf,
    pub layout: PathBuf,
    pub rootfs: PathBuf,
}

fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

fn cache() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from);
    absolute("BULLA_TEST_CACHE").unwrap_or_else(|| {
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(std::env::temp_dir);
        base.join("bulla-tests")
    })
}

/// An image, built if it is not there (the script takes its own lock).
pub fn image(name: &'static str) -> Image {
    static READY: OnceLock<Mutex<HashMap<&'static str, Image>>> = OnceLock::new();
    let ready = READY.get_or_init(Mutex::default);
    let mut ready = ready.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(image) = ready.get(name) {
        return image.clone();
    }
    let script = workspace().join("tests/images/build.sh");
    let status = Command::new(&script).arg(name).status();
    assert!(
        status.as_ref().is_ok_and(|status| status.success()),
        "building the test image {name} failed: {status:?}"
    );
    let images = cache().join("images");
    let image = Image {
        archive: images.join(format!("{name}.tar")),
        layout: images.join(format!("{name}.oci")),
        rootfs: images.join(format!("{name}.rootfs")),
    };
    ready.insert(name, image.clone());
    image
}

/// The `bulla` under test: BULLA_BIN, or a release build of this checkout.
pub fn bulla() -> &'static Path {
    static BULLA: OnceLock<PathBuf> = OnceLock::new();
    BULLA.get_or_init(|| {
        if let Some(path) = std::env::var_os("BULLA_BIN") {
            return PathBuf::from(path);
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .current_dir(workspace())
            .args(["build", "--release", "--quiet", "--package", "bulla-cli"])
            .status();
        assert!(
            status.as_ref().is_ok_and(|status| status.success()),
            "building bulla failed: {status:?}"
        );
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target = target.unwrap_or_else(|| workspace().join("target"));
        target.join("release/bulla")
    })
}

/// Options of `bulla run` that choose the platform: the emulator unless BULLA_TEST_PLATFORM says
/// otherwise.
pub fn platform_options() -> Vec<String> {
    let platform = std::env::var("BULLA_TEST_PLATFORM").unwrap_or_else(|_| "emulated".into());
    vec!["--platform".into(), platform]
}
