//! Every flipped bit of an image is noticed when it is used: EIO for the program, and the block in
//! the log; where the start needs it, the container does not start.

use bulla_test_apps::{bulla, image, platform_options};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Reads every byte of every file, and every name and attribute.
const READ_ALL: &str = "find / -xdev -exec stat -c '%n %s %a' {} + > /tmp/names || exit 3
    find / -xdev -type l -exec readlink {} \\; > /dev/null || exit 3
    find / -xdev -type f -exec cat {} + > /dev/null || exit 3; echo all read";

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn run(&self, archive: &Path) -> Output {
        let mut command = Command::new("timeout");
        command
            .arg("120")
            .arg(bulla())
            .args(["run", "--quiet"])
            .args(platform_options())
            .arg(archive)
            .args(["busybox", "sh", "-c", READ_ALL])
            .env("BULLA_CACHE", self.dir.path().join("cache"))
            .env("BULLA_STATE", self.dir.path().join("state"));
        command.output().unwrap()
    }

    /// The one image of the cache.
    fn rootfs(&self) -> PathBuf {
        fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => walk(&entry.path(), found),
                    false if entry.path().extension().is_some_and(|end| end == "img") => {
                        found.push(entry.path());
                    }
                    false => {}
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.dir.path().join("cache"), &mut found);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }
}

#[test]
fn each_flipped_bit_is_noticed() {
    let place = Place {
        dir: tempfile::tempdir().unwrap(),
    };
    let archive = image("busybox").archive;
    let good = place.run(&archive);
    assert!(good.status.success(), "{good:?}");
    assert_eq!(good.stdout, b"all read\n");
    let path = place.rootfs();
    let size = fs::metadata(&path).unwrap().len();
    let file = File::options().read(true).write(true).open(&path);
    let file = file.unwrap();
    // Spread over the whole file, the last bits of it included: content, names, tree, site lists.
    let flips = 48;
    for number in 0..flips {
        let at = size * number / (flips - 1);
        let at = at.min(size - 1);
        let bit = 1u8 << (number * 5 % 8);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ bit], at).unwrap();
        let output = place.run(&archive);
        file.write_all_at(&byte, at).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success(),
            "bit {bit:#x} of byte {at} of {size} went unnoticed: {output:?}"
        );
        let named = said.contains(&format!("block {}", at / 4096))
            || said.contains("site lists")
            || said.contains("input/output error") && said.contains("block");
        assert!(named, "byte {at} (block {}): {said}", at / 4096);
    }
    let good = place.run(&archive);
    assert_eq!(good.stdout, b"all read\n", "{good:?}");
}
