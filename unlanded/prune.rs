//! Keeping the cache small: what can be made again goes, least recently used first.
//!
//! Named images (what was pulled and built) stay: they are the user's. A file that a running
//! container has open goes on existing for it.

use crate::cache::{Cache, Stored};
use crate::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What is younger is about to be used.
const YOUNG: Duration = Duration::from_secs(60);
/// Left-overs of killed processes that are older than this are nobody's any more.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);
/// Directories of this version; others of these names are of older ones.
const CURRENT: [&str; 4] = ["rootfs-3", "sources-1", "images-1", "built-1"];

/// What a part of the cache takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Root file systems: made again when an image is run.
    pub rootfs: u64,
    /// Unpacked confidential images: likewise.
    pub built: u64,
    /// Pulled and built images, by name.
    pub images: u64,
    /// Of older versions, and left-overs.
    pub other: u64,
}

impl Usage {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.rootfs + self.built + self.images + self.other
    }
}

/// Something that can be made again.
struct Candidate {
    /// Removed in this order, so that nothing refers to what is gone.
    paths: Vec<PathBuf>,
    used: SystemTime,
    bytes: u64,
}

impl Cache {
    /// What the cache takes on disk, in bytes.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for path in entries(self.dir()) {
            let bytes = size(&path);
            match name_of(&path).as_str() {
                "rootfs-3" => usage.rootfs += bytes,
                "built-1" => usage.built += bytes,
                "images-1" => usage.images += bytes,
                _ => usage.other += bytes,
            }
        }
        usage
    }

    /// Removes what can be made again, least recently used first, until the cache takes at most
    /// `most` bytes or nothing more can go; the bytes that were freed.
    pub fn prune(&self, most: u64) -> Result<u64, Error> {
        let now = SystemTime::now();
        let age = |time: SystemTime| now.duration_since(time).unwrap_or_default();
        let mut total = self.usage().total();
        let before = total;
        let mut candidates = Vec::new();
        for path in entries(self.dir()) {
            let name = name_of(&path);
            if CURRENT.contains(&name.as_str()) {
                continue;
            }
            let versions = ["rootfs-", "sources-", "images-", "built-"];
            let old = versions.iter().any(|start| name.starts_with(start));
            let used = modified(&path);
            if old || age(used) > ABANDONED {
                candidates.push(Candidate {
                    bytes: size(&path),
                    paths: vec![path],
                    // Before everything that is still of use.
                    used: SystemTime::UNIX_EPOCH,
                });
            }
        }
        for path in entries(&self.dir().join("rootfs-3")) {
            if path.extension().is_some_and(|extension| extension == "img") {
                let about = path.with_extension("json");
                candidates.push(Candidate {
                    bytes: size(&path),
                    used: modified(&about).max(modified(&path)),
                    paths: vec![about, path],
                });
            } else if name_of(&path).starts_with('.') && age(modified(&path)) > ABANDONED {
                candidates.push(Candidate {
                    bytes: size(&path),
                    paths: vec![path],
                    used: SystemTime::UNIX_EPOCH,
                });
            }
        }
        for path in entries(&self.dir().join("built-1")) {
            candidates.push(Candidate {
                bytes: size(&path),
                used: modified(&path),
                paths: vec![path],
            });
        }
        candidates.sort_by_key(|candidate| candidate.used);
        for candidate in candidates {
            if total <= most || age(candidate.used) < YOUNG {
                break;
            }
            for path in &candidate.paths {
                let removed = match path.is_dir() {
                    true => fs::remove_dir_all(path),
                    false => fs::remove_file(path),
                };
                match removed {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io(path)(error));
                    }
                    _ => {}
                }
            }
            total = total.saturating_sub(candidate.bytes);
        }
        Ok(before - total)
    }
}

impl Stored {
    /// Notes that it is used, for [`Cache::prune`]. Whether that works does not matter.
    pub fn touch(&self) {
        let about = self.path.with_extension("json");
        if let Ok(file) = fs::OpenOptions::new().append(true).open(about) {
            let _ = file.set_modified(SystemTime::now());
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir).into_iter().flatten().flatten();
    listed.map(|entry| entry.path()).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn modified(path: &Path) -> SystemTime {
    let time = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Bytes on disk, of a directory with all that is in it.
fn size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => entries(path).iter().map(|path| size(path)).sum(),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned()).unwrap();
        let hours = |count| SystemTime::now() - Duration::from_secs(count * 3600);
        let put = |name: &str, age| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![1; 100_000]).unwrap();
            let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            file.set_modified(hours(age)).unwrap();
            path
        };
        let old = put("rootfs-3/old.img", 30);
        let old_about = put("rootfs-3/old.json", 29);
        let middle = put("rootfs-3/middle.img", 100);
        // Used lately, although made long ago.
        put("rootfs-3/middle.json", 2);
        let new = put("rootfs-3/new.img", 0);
        let version = put("rootfs-2/x.img", 1);
        let image = put("images-1/blobs/sha256/x", 500);
        let left = put(".encrypted.x.1", 48);
        let total = cache.usage().total();
        assert!(total >= 8 * 100_000, "{total}");
        assert_eq!(cache.prune(total).unwrap(), 0);
        cache.prune(total - 250_000).unwrap();
        assert!(!version.exists() && !left.exists() && !old.exists() && !old_about.exists());
        assert!(middle.exists() && new.exists());
        cache.prune(0).unwrap();
        assert!(!middle.exists());
        // Young, or the user's own.
        assert!(new.exists() && image.exists());
        assert!(cache.prune(0).unwrap() < 100);
    }
}
