//! Files that appear whole, in the memory of the enclave only.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Writes a file beside its place and puts it there.
pub fn put(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(OsStr::new(".new"));
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.flush()?;
    fs::rename(temporary, path)
}

/// Makes a directory and those above it.
pub fn directory(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// The volume that a path is on, if it is on one: what is written there outlives the container.
pub fn volume_of(path: &Path) -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    // Links count as what they lead to; what does not exist yet will be below what does.
    let absolute = std::path::absolute(path)?;
    let real = absolute
        .ancestors()
        .find_map(|path| path.canonicalize().ok())
        .unwrap_or(absolute);
    Ok(volume_among(&mounts, &real))
}

fn volume_among(mounts: &str, path: &Path) -> Option<PathBuf> {
    let mut found = None;
    let mut depth = 0;
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(target), Some(kind)) = (words.next(), words.next()) else {
            continue;
        };
        let target = PathBuf::from(target.replace("\\040", " "));
        let deep = target.components().count();
        // A later mount on the same place is over the earlier one.
        if path.starts_with(&target) && deep >= depth {
            depth = deep;
            found = (kind == "volume").then_some(target);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_told_from_memory() {
        let mounts = "overlay / overlay rw 0 0\nvolume /data volume rw 0 0\n\
                      tmpfs /data/run tmpfs rw 0 0\nvolume /a\\040b volume rw 0 0\n";
        let volume = |path: &str| volume_among(mounts, path.as_ref());
        assert_eq!(volume("/data/x/y"), Some("/data".into()));
        assert_eq!(volume("/a b/x"), Some("/a b".into()));
        for path in ["/etc/x", "/data/run/x", "/database"] {
            assert_eq!(volume(path), None, "{path}");
        }
    }

    #[test]
    fn files_are_put_whole_with_their_mode() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a/b/file");
        directory(path.parent().unwrap(), 0o700).unwrap();
        for content in ["one", "two"] {
            put(&path, content.as_bytes(), 0o600).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
