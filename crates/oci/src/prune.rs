//! Keeping the cache small: what can be made again goes, least recently used first.
//!
//! Named images (what was pulled and built) stay: they are the user's. A file that a running
//! container has open goes on existing for it. One file may have several names in the cache; it is
//! counted once.

use crate::cache::{Cache, Stored};
use crate::digest::Digest;
use crate::error::Error;
use crate::store::Store;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What is younger is about to be used.
const YOUNG: Duration = Duration::from_secs(60);
/// Left-overs of killed processes that are older than this are nobody's any more. A build that
/// takes longer loses what it wrote.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);
/// What a new root file system should find on the disk, with the temporary files of its build.
const ROOM: u64 = 2 << 30;
/// Directories of this version; others of these names are of older ones.
const CURRENT: [&str; 4] = ["rootfs-3", "sources-1", "images-1", "built-1"];
const VERSIONED: [&str; 4] = ["rootfs-", "sources-", "images-", "built-"];
/// Larger blobs are layers, which refer to nothing.
const METADATA_MAX: u64 = 4 << 20;

/// What the parts of a cache take, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Pulled and built images, by name.
    pub images: u64,
    /// Root file systems: made again when an image is run.
    pub rootfs: u64,
    /// Unpacked confidential images, as far as they do not share with the root file systems.
    pub built: u64,
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
}

impl Cache {
    /// What the cache takes on disk.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        let mut names = Names::default();
        let mut paths = entries(self.dir());
        // Root file systems before what shares with them.
        paths.sort_by_key(|path| name_of(path) == "built-1");
        for path in paths {
            let bytes = names.add(&path);
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
        self.shrink(|_| most)
    }

    /// The same, from what it takes now to at most what `most_of` makes of that.
    fn shrink(&self, most_of: impl FnOnce(u64) -> u64) -> Result<u64, Error> {
        // Measured once: a cache may have many files, and much to remove.
        let mut names = Names::default();
        let before: u64 = entries(self.dir()).iter().map(|path| names.add(path)).sum();
        let most = most_of(before);
        let mut total = before;
        let mut candidates = self.left_overs()?;
        candidates.extend(self.images_that_can_go());
        candidates.sort_by_key(|candidate| candidate.used);
        for candidate in candidates {
            if total <= most {
                break;
            }
            if age(candidate.used) < YOUNG {
                break;
            }
            for path in &candidate.paths {
                let freed = names.take(path);
                remove(path)?;
                total = total.saturating_sub(freed);
            }
        }
        Ok(before - total)
    }

    /// On a disk that is nearly full: what can be made again goes, so that something new can be made.
    pub(crate) fn make_room(&self) {
        let Ok(disk) = rustix::fs::statvfs(self.dir()) else {
            return;
        };
        let missing = ROOM.saturating_sub(disk.f_bavail * disk.f_frsize);
        if missing > 0 {
            // What cannot be removed is no reason not to try.
            let _ = self.shrink(|total| total.saturating_sub(missing));
        }
    }

    /// What is of no use any more: of older versions, of processes that were killed, of names that
    /// stand for something else now. It goes before everything else.
    fn left_overs(&self) -> Result<Vec<Candidate>, Error> {
        let mut paths = Vec::new();
        for path in entries(self.dir()) {
            let name = name_of(&path);
            let old = VERSIONED.iter().any(|start| name.starts_with(start));
            if !CURRENT.contains(&name.as_str()) && (old || age(modified(&path)) > ABANDONED) {
                paths.push(path);
            }
        }
        let abandoned = |path: &PathBuf| age(modified(path)) > ABANDONED;
        let temporary = |path: &PathBuf| {
            let extension = path.extension().unwrap_or_default();
            name_of(path).starts_with('.') || extension == "tmp" || extension == "lock"
        };
        for dir in CURRENT {
            let listed = entries(&self.dir().join(dir)).into_iter();
            paths.extend(listed.filter(|path| temporary(path) && abandoned(path)));
        }
        let partial = entries(&self.dir().join("images-1/partial"));
        paths.extend(partial.into_iter().filter(abandoned));
        let blobs = entries(&self.dir().join("images-1/blobs/sha256"));
        if !blobs.is_empty() {
            let used = self.blobs_in_use()?;
            let unused = |path: &PathBuf| !used.contains(&name_of(path));
            paths.extend(
                blobs
                    .into_iter()
                    .filter(|path| unused(path) && abandoned(path)),
            );
        }
        let candidate = |path| Candidate {
            paths: vec![path],
            used: SystemTime::UNIX_EPOCH,
        };
        Ok(paths.into_iter().map(candidate).collect())
    }

    /// Root file systems and unpacked images, with the time of their last use.
    fn images_that_can_go(&self) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for path in entries(&self.dir().join("rootfs-3")) {
            if path.extension().is_some_and(|extension| extension == "img") {
                let about = path.with_extension("json");
                candidates.push(Candidate {
                    used: modified(&about).max(modified(&path)),
                    paths: vec![about, path],
                });
            }
        }
        for path in entries(&self.dir().join("built-1")) {
            if !name_of(&path).starts_with('.') {
                candidates.push(Candidate {
                    used: modified(&path.join("about.json")).max(modified(&path)),
                    paths: vec![path],
                });
            }
        }
        candidates
    }

    /// The names of all blobs that a named image consists of.
    fn blobs_in_use(&self) -> Result<HashSet<String>, Error> {
        let store = Store::of(self)?;
        let names = store.names()?.into_iter();
        let mut todo: Vec<Digest> = names
            .filter_map(|name| Digest::parse(&name.manifest))
            .collect();
        let mut used = HashSet::new();
        while let Some(digest) = todo.pop() {
            if !used.insert(digest.hex()) {
                continue;
            }
            let path = store.blob_path(&digest);
            if fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= METADATA_MAX)
                && let Some(value) = crate::cache::read_json::<serde_json::Value>(&path)
            {
                references(&value, &mut todo);
            }
        }
        Ok(used)
    }
}

/// The digests that a manifest or index names.
fn references(value: &serde_json::Value, to: &mut Vec<Digest>) {
    match value {
        serde_json::Value::Object(members) => {
            let digest = members.get("digest").and_then(|value| value.as_str());
            to.extend(digest.and_then(Digest::parse));
            members.values().for_each(|value| references(value, to));
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| references(value, to)),
        _ => {}
    }
}

impl Stored {
    /// Notes that it is used, for [`Cache::prune`]. Whether that works does not matter.
    pub fn touch(&self) {
        touch(&self.path.with_extension("json"));
    }
}

/// Gives a file the present time.
pub(crate) fn touch(path: &Path) {
    if let Ok(file) = fs::OpenOptions::new().append(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Removes a file, or a directory with all that is in it. Another process may have been faster.
fn remove(path: &Path) -> Result<(), Error> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = match is_dir {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

fn age(time: SystemTime) -> Duration {
    SystemTime::now().duration_since(time).unwrap_or_default()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir).into_iter().flatten().flatten();
    listed.map(|entry| entry.path()).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn modified(path: &Path) -> SystemTime {
    let time = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Files with several names, by device and inode: how many names of each were found.
#[derive(Default)]
struct Names(HashMap<(u64, u64), u64>);

impl Names {
    /// Bytes on disk, of a directory with all that is in it, without what was found before.
    fn add(&mut self, path: &Path) -> u64 {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                entries(path).iter().map(|path| self.add(path)).sum()
            }
            Ok(metadata) if metadata.nlink() > 1 => {
                let count = self.0.entry((metadata.dev(), metadata.ino())).or_default();
                *count += 1;
                match *count {
                    1 => metadata.blocks() * 512,
                    _ => 0,
                }
            }
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        }
    }

    /// The bytes that are freed when what was found here is removed: a file goes with its last name.
    fn take(&mut self, path: &Path) -> u64 {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                entries(path).iter().map(|path| self.take(path)).sum()
            }
            Ok(metadata) => match self.0.get_mut(&(metadata.dev(), metadata.ino())) {
                Some(count) if *count > 1 => {
                    *count -= 1;
                    0
                }
                _ => metadata.blocks() * 512,
            },
            Err(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        dir: tempfile::TempDir,
        cache: Cache,
    }

    impl Place {
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::at(dir.path().to_owned()).unwrap();
            Place { dir, cache }
        }

        /// A file of 100 000 bytes that was last used some hours ago.
        fn put(&self, name: &str, hours: u64) -> PathBuf {
            let path = self.dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![1; 100_000]).unwrap();
            let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            let time = SystemTime::now() - Duration::from_secs(hours * 3600);
            file.set_modified(time).unwrap();
            path
        }
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let place = Place::new();
        let old = place.put("rootfs-3/old.img", 30);
        let old_about = place.put("rootfs-3/old.json", 29);
        let middle = place.put("rootfs-3/middle.img", 100);
        // Used lately, although made long ago.
        place.put("rootfs-3/middle.json", 2);
        let new = place.put("rootfs-3/new.img", 0);
        let version = place.put("rootfs-2/x.img", 1);
        let left = place.put(".encrypted.x.1", 48);
        let temporary = place.put("rootfs-3/x.tmp", 48);
        let total = place.cache.usage().total();
        assert!(total >= 8 * 100_000, "{total}");
        assert_eq!(place.cache.prune(total).unwrap(), 0);
        place.cache.prune(total - 350_000).unwrap();
        assert!(!version.exists() && !left.exists() && !temporary.exists());
        assert!(!old.exists() && !old_about.exists());
        assert!(middle.exists() && new.exists());
        place.cache.prune(0).unwrap();
        assert!(!middle.exists());
        // Young.
        assert!(new.exists());
        assert_eq!(place.cache.prune(0).unwrap(), 0);
    }

    #[test]
    fn images_with_a_name_stay_whole() {
        let place = Place::new();
        let store = Store::of(&place.cache).unwrap();
        let layer = store.add(&[7; 9000]).unwrap();
        let manifest = format!("{{\"layers\":[{{\"digest\":\"{layer}\"}}]}}");
        let manifest = store.add(manifest.as_bytes()).unwrap();
        store.name("docker.io/library/x:1", &manifest).unwrap();
        let forgotten = store
            .add(b"of a name that was given to another image")
            .unwrap();
        let young = store.add(b"of an image that is being built").unwrap();
        let old = SystemTime::now() - 2 * ABANDONED;
        for digest in [layer, manifest, forgotten] {
            let file = fs::OpenOptions::new()
                .append(true)
                .open(store.blob_path(&digest))
                .unwrap();
            file.set_modified(old).unwrap();
        }
        place.cache.prune(0).unwrap();
        let there = |digest| store.blob_path(&digest).exists();
        assert!(there(layer) && there(manifest) && there(young));
        assert!(!there(forgotten));
    }

    #[test]
    fn what_was_freed_is_what_is_missing_afterwards() {
        let place = Place::new();
        let image = place.put("rootfs-3/a.img", 90);
        place.put("rootfs-3/a.json", 90);
        place.put("rootfs-3/b.img", 80);
        // The second names go first.
        let built = place.dir.path().join("built-1/a");
        fs::create_dir_all(&built).unwrap();
        fs::hard_link(&image, built.join("rootfs.img")).unwrap();
        fs::hard_link(&image, built.join("again.img")).unwrap();
        place.put("built-1/a/about.json", 100);
        let old = SystemTime::now() - Duration::from_secs(100 * 60);
        fs::File::open(&built).unwrap().set_modified(old).unwrap();
        let before = place.cache.usage().total();
        for most in [before - 1, before - 100_001, before - 200_001, 0] {
            let has = place.cache.usage().total();
            let freed = place.cache.prune(most).unwrap();
            let left = place.cache.usage().total();
            assert_eq!(has - left, freed);
            assert!(left <= most, "{left} of {most}");
        }
        assert!(!built.exists() && !image.exists());
    }

    #[test]
    fn what_has_two_names_is_counted_once_and_goes_with_the_second() {
        let place = Place::new();
        let image = place.put("rootfs-3/x.img", 30);
        place.put("rootfs-3/x.json", 30);
        let before = place.cache.usage();
        let other = place.dir.path().join("built-1/y/rootfs.img");
        fs::create_dir_all(other.parent().unwrap()).unwrap();
        fs::hard_link(&image, &other).unwrap();
        assert_eq!(place.cache.usage(), before);
        place.put("built-1/y/about.json", 20);
        let total = place.cache.usage().total();
        // The directory is new, so only the first name goes, with which nothing is freed.
        let freed = place.cache.prune(total - 150_000).unwrap();
        assert!(freed < 150_000, "{freed}");
        assert!(!image.exists() && other.exists());
    }
}
