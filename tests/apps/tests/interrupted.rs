//! Builds that end before they are done: killed, interrupted, out of space. Nothing partial stays
//! under a final name, and the next build works as if nothing had been.

use bulla_test_apps::{bulla, image};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Without `timeout`: signals go to bulla itself.
    fn build(&self, cache: &Path, output: &Path) -> Command {
        let mut command = Command::new(bulla());
        command
            .arg("build")
            .arg(image("busybox").archive)
            .args(["-t", "box:sgx", "-o"])
            .arg(output)
            .env("BULLA_CACHE", cache)
            .env("BULLA_STATE", self.path("state"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn measure(&self, archive: &Path) -> Output {
        Command::new(bulla())
            .args(["measure", "--json"])
            .arg(archive)
            .env("BULLA_CACHE", self.path("other-cache"))
            .env("BULLA_STATE", self.path("state"))
            .output()
            .unwrap()
    }
}

#[test]
fn killed_and_interrupted_builds_leave_nothing_partial() {
    let place = Place::new();
    let whole = place.path("whole.tar");
    let started = Instant::now();
    let output = place.build(&place.path("cache"), &whole).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let takes = started.elapsed();
    let expected = fs::read(&whole).unwrap();
    let archive = place.path("out.tar");
    const TIMES: u32 = 8;
    let mut ended = 0;
    for number in 0..TIMES {
        let cache = place.path(&format!("cache-{number}"));
        let mut child = place.build(&cache, &archive).spawn().unwrap();
        // From the start to shortly before the end of a build.
        std::thread::sleep(takes * number / (TIMES + 1) + Duration::from_millis(1));
        let signal = if number % 2 == 0 { "-KILL" } else { "-INT" };
        let _ = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .stderr(Stdio::null())
            .status();
        let interrupted = !child.wait().unwrap().success();
        ended += u32::from(interrupted);
        // Whatever is there under its final name is whole.
        match fs::read(&archive) {
            Ok(bytes) => assert!(bytes == expected, "a partial archive at {number}"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        }
        let _ = fs::remove_file(&archive);
        if interrupted {
            // What it left behind is what the next one finds.
            let output = place.build(&cache, &archive).output().unwrap();
            assert!(output.status.success(), "{number}: {output:?}");
            assert!(fs::read(&archive).unwrap() == expected, "{number}");
            fs::remove_file(&archive).unwrap();
        }
        fs::remove_dir_all(&cache).unwrap();
    }
    // The first is killed within its first moments, whatever the machine does.
    assert!(ended >= 1, "none was interrupted");
}

/// A file system of a certain size, unmounted at the end.
struct Small(PathBuf);

impl Small {
    fn new(path: PathBuf, kib: u64) -> Small {
        fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"])
            .arg(&path)
            .status();
        assert!(mounted.unwrap().success(), "tests run as root");
        Small(path)
    }

    fn grow(&self) {
        let mounted = Command::new("mount")
            .args(["-o", "remount,size=256m"])
            .arg(&self.0)
            .status();
        assert!(mounted.unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing_partial() {
    let place = Place::new();
    let whole = place.path("whole.tar");
    let output = place.build(&place.path("cache"), &whole).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let expected = fs::read(&whole).unwrap();
    let needed = expected.len() as u64 / 1024;
    // The cache is too small for the files, or for what is made of them; then the output is.
    for part in [8, 4, 2] {
        let small = Small::new(place.path(&format!("small-{part}")), needed / part);
        let archive = place.path("out.tar");
        let output = place.build(&small.0, &archive).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains("No space left on device"), "{said}");
        assert!(
            said.contains("point BULLA_CACHE to a larger disk"),
            "{said}"
        );
        assert!(!archive.exists());
        // With room enough the next one works, on what the first has left.
        small.grow();
        let output = place.build(&small.0, &archive).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(fs::read(&archive).unwrap() == expected);
        fs::remove_file(&archive).unwrap();
    }
    let small = Small::new(place.path("small-output"), needed / 2);
    let archive = small.0.join("out.tar");
    let output = place
        .build(&place.path("cache"), &archive)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    assert!(said.contains("out.tar: "), "{said}");
    assert!(said.contains("write the image elsewhere"), "{said}");
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 0);
    assert!(place.measure(&whole).status.success());
}

/// Directories of 8 MiB each, on a disk that holds the root file system of one only.
#[test]
fn what_was_used_lately_stays_and_the_rest_makes_room() {
    let place = Place::new();
    let cache = Small::new(place.path("small"), 14 << 10);
    let images = cache.0.join("rootfs-3");
    let measure = |name: &str| {
        let directory = place.path(name);
        fs::create_dir_all(directory.join("bin")).unwrap();
        fs::copy(
            image("busybox").rootfs.join("bin/busybox"),
            directory.join("bin/sh"),
        )
        .unwrap();
        fs::write(directory.join("data"), name.repeat(8 << 20)).unwrap();
        let output = Command::new(bulla())
            .args(["measure", "--rootfs"])
            .arg(directory)
            .arg("/bin/sh")
            .env("BULLA_CACHE", &cache.0)
            .env("BULLA_STATE", place.path("state"))
            .output();
        output.unwrap()
    };
    let output = measure("a");
    assert!(output.status.success(), "{output:?}");
    // The first is in use, as far as anyone can tell.
    let output = measure("b");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("No space left on device"), "{said}");
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    for entry in fs::read_dir(&images).unwrap() {
        let file = fs::File::options().append(true).open(entry.unwrap().path());
        file.unwrap().set_modified(hour_ago).unwrap();
    }
    let output = measure("b");
    assert!(output.status.success(), "{output:?}");
    let names = fs::read_dir(&images).unwrap().flatten();
    let is_image = |entry: &fs::DirEntry| entry.path().extension() == Some("img".as_ref());
    assert_eq!(names.filter(is_image).count(), 1);
}
