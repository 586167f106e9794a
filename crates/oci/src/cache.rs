//! Root file system images, kept by the content they were built from.
//!
//! ```text
//! CACHE/rootfs-3/HEX.img    EROFS image, hash tree, site lists; HEX names the layers' content
//! CACHE/rootfs-3/HEX.json   its sizes, salt and hashes
//! CACHE/sources-1/HEX.json  what an archive or directory held when it was last read
//! ```
//! Files appear under their name by renaming a complete file, so readers need no lock; builders of
//! one image take turns by a lock file beside it. A source is recognised by path, size, times and
//! inode, so a known archive is not read again. Nothing here is trusted by the enclave: it checks
//! every block against the root hash in its measured configuration.

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::directory;
use crate::error::Error;
use crate::flatten::Limits;
use crate::image::{Image, Reference};
use crate::tree::Tree;
use bulla_abi::config::Rootfs;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A cache directory.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

/// A root file system image in the cache.
#[derive(Clone, Debug)]
pub struct Stored {
    pub path: PathBuf,
    pub rootfs: Rootfs,
    /// How the image wants to be run; empty for a plain directory.
    pub config: ImageConfig,
    /// The image's id; for a plain directory a fingerprint of its files' attributes.
    pub digest: Digest,
    /// It was built by this call, rather than found.
    pub built: bool,
}

/// What is known of an image in the cache.
#[derive(Clone, Serialize, Deserialize)]
struct Description {
    rootfs: Rootfs,
}

/// Writes the image of a tree into an empty file.
pub type Build<'a> = &'a mut dyn FnMut(Tree, &File) -> Result<Rootfs, Error>;

/// What a source held when it was read.
#[derive(Serialize, Deserialize)]
struct Source {
    stamp: String,
    digest: String,
    content: String,
    config: ImageConfig,
}

impl Cache {
    /// The user's cache: BULLA_CACHE, else XDG_CACHE_HOME/bulla, else ~/.cache/bulla.
    pub fn of_user() -> Result<Cache, Error> {
        let absolute = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from);
            path.filter(|path| path.is_absolute())
        };
        let dir = absolute("BULLA_CACHE")
            .or_else(|| absolute("XDG_CACHE_HOME").map(|dir| dir.join("bulla")))
            .or_else(|| absolute("HOME").map(|dir| dir.join(".cache/bulla")))
            .unwrap_or_else(|| std::env::temp_dir().join("bulla-cache"));
        Cache::at(dir)
    }

    /// The cache in `dir`, which is made if need be.
    pub fn at(dir: PathBuf) -> Result<Cache, Error> {
        for name in ["rootfs-3", "sources-1"] {
            let path = dir.join(name);
            if !path.is_dir() {
                let made = std::fs::create_dir_all(&path);
                made.map_err(|source| Error::Io { path, source })?;
            }
        }
        Ok(Cache { dir })
    }

    /// Where it is; also the place for temporary files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// An image's root file system, if the file has not changed since it was read.
    pub fn known_image(&self, reference: &Reference) -> Result<Option<Stored>, Error> {
        let (key, stamp) = self.identify(reference)?;
        Ok(self.known(&key, &stamp))
    }

    /// The key of an image's file and its present state.
    fn identify(&self, reference: &Reference) -> Result<(Digest, String), Error> {
        let path = canonical(&reference.path)?;
        let stamp = match path.is_dir() {
            true => stamp(&path.join("index.json")).or_else(|_| stamp(&path))?,
            false => stamp(&path)?,
        };
        let tag = reference.tag.as_deref().unwrap_or_default();
        let key = Digest::of(&[path.as_os_str().as_bytes(), b"\0", tag.as_bytes()].concat());
        Ok((key, stamp))
    }

    /// The root file system of an image, built if it is not there.
    pub fn image(&self, reference: &Reference, build: Build) -> Result<Stored, Error> {
        let (key, stamp) = self.identify(reference)?;
        if let Some(stored) = self.known(&key, &stamp) {
            return Ok(stored);
        }
        let image = Image::open(reference, &self.dir)?;
        let content = image.content();
        let flatten = || image.flatten(&self.dir, Limits::default());
        let (description, built) = self.rootfs(&content, flatten, build)?;
        let source = Source {
            stamp,
            digest: image.digest.to_string(),
            content: content.hex(),
            config: image.config.clone(),
        };
        self.remember(&key, &source)?;
        Ok(Stored {
            path: self.rootfs_path(&content, "img"),
            rootfs: description.rootfs,
            config: image.config,
            digest: image.digest,
            built,
        })
    }

    /// The root file system of an image that is open already, built if it is not there.
    pub fn opened(&self, image: Image, build: Build) -> Result<Stored, Error> {
        let content = image.content();
        let flatten = || image.flatten(&self.dir, Limits::default());
        let (description, built) = self.rootfs(&content, flatten, build)?;
        Ok(Stored {
            path: self.rootfs_path(&content, "img"),
            rootfs: description.rootfs,
            digest: image.digest,
            config: image.config,
            built,
        })
    }

    /// The root file system of a plain directory, built if the directory changed since.
    pub fn directory(&self, dir: &Path, build: Build) -> Result<Stored, Error> {
        let path = canonical(dir)?;
        if !path.is_dir() {
            return Err(Error::Unsupported {
                path,
                what: "--rootfs needs a directory; give an image without --rootfs".to_owned(),
            });
        }
        let fingerprint = directory::fingerprint(&path)?;
        let key = Digest::of(&[b"dir\0", path.as_os_str().as_bytes()].concat());
        let stamp = fingerprint.hex();
        if let Some(stored) = self.known(&key, &stamp) {
            return Ok(stored);
        }
        let content = Digest::of(&[key.bytes().as_slice(), fingerprint.bytes()].concat());
        let (description, built) = self.rootfs(&content, || directory::tree(&path), build)?;
        if let Some(old) = self.source(&key)
            && old.content != content.hex()
            && let Some(old) = Digest::parse(&old.content)
        {
            // The directory changed: nobody asks for its former state again. Running containers
            // have the file open.
            for extension in ["img", "json", "lock"] {
                let _ = std::fs::remove_file(self.rootfs_path(&old, extension));
            }
        }
        let source = Source {
            stamp,
            digest: fingerprint.to_string(),
            content: content.hex(),
            config: ImageConfig::default(),
        };
        self.remember(&key, &source)?;
        Ok(Stored {
            path: self.rootfs_path(&content, "img"),
            rootfs: description.rootfs,
            config: ImageConfig::default(),
            digest: fingerprint,
            built,
        })
    }

    /// What is known of a source that has not changed and whose image is still there.
    fn known(&self, key: &Digest, stamp: &str) -> Option<Stored> {
        let source = self.source(key).filter(|source| source.stamp == stamp)?;
        let content = Digest::parse(&source.content)?;
        let description = self.complete(&content)?;
        Some(Stored {
            rootfs: description.rootfs,
            path: self.rootfs_path(&content, "img"),
            digest: Digest::parse(&source.digest)?,
            config: source.config,
            built: false,
        })
    }

    fn source(&self, key: &Digest) -> Option<Source> {
        read_json(&self.source_path(key))
    }

    fn remember(&self, key: &Digest, source: &Source) -> Result<(), Error> {
        write_json(&self.source_path(key), source)
    }

    fn source_path(&self, key: &Digest) -> PathBuf {
        self.dir.join(format!("sources-1/{}.json", key.hex()))
    }

    fn rootfs_path(&self, content: &Digest, extension: &str) -> PathBuf {
        self.dir
            .join(format!("rootfs-3/{}.{extension}", content.hex()))
    }

    /// The description of an image that is in the cache whole.
    fn complete(&self, content: &Digest) -> Option<Description> {
        let description: Description = read_json(&self.rootfs_path(content, "json"))?;
        let len = std::fs::metadata(self.rootfs_path(content, "img"))
            .ok()?
            .len();
        let whole = description.rootfs.file_size() == Some(len);
        whole.then_some(description)
    }

    fn rootfs(
        &self,
        content: &Digest,
        tree: impl FnOnce() -> Result<Tree, Error>,
        build: Build,
    ) -> Result<(Description, bool), Error> {
        if let Some(description) = self.complete(content) {
            return Ok((description, false));
        }
        let lock_path = self.rootfs_path(content, "lock");
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path))?;
        let locked = flock(&lock, FlockOperation::LockExclusive);
        locked.map_err(|errno| Error::io(&lock_path)(errno.into()))?;
        if let Some(description) = self.complete(content) {
            return Ok((description, false));
        }
        self.make_room();
        let tree = tree()?;
        // Under the lock, so what is there is of a builder that died.
        let temporary = self.rootfs_path(content, "tmp");
        let built = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)
            .map_err(Error::io(&temporary))
            .and_then(|file| build(tree, &file));
        let rootfs = match built {
            Ok(rootfs) => rootfs,
            Err(error) => {
                let _ = std::fs::remove_file(&temporary);
                return Err(error);
            }
        };
        let path = self.rootfs_path(content, "img");
        std::fs::rename(&temporary, &path).map_err(Error::io(&path))?;
        let description = Description { rootfs };
        write_json(&self.rootfs_path(content, "json"), &description)?;
        let _ = std::fs::remove_file(&lock_path);
        Ok((description, true))
    }
}

fn canonical(path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(Error::io(path))
}

/// Tells two states of a file apart.
fn stamp(path: &Path) -> Result<String, Error> {
    let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
    Ok(format!(
        "{}:{}:{}:{}.{}:{}.{}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec()
    ))
}

/// A JSON file of ours; anything unreadable counts as absent.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Puts a JSON file in place at once.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let text = serde_json::to_vec(value)
        .map_err(|error| Error::io(path)(io::Error::other(error.to_string())))?;
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{number}.tmp", std::process::id()));
    let written = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        Error::io(path)(error)
    })
}
