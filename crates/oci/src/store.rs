//! Images by name: what was pulled, and what was built.
//!
//! ```text
//! CACHE/images-1/blobs/sha256/HEX   manifests, configurations, layers
//! CACHE/images-1/names/HEX.json     a name and the digest of its manifest; HEX is of the name
//! ```
//! A blob appears under its name whole and verified, by renaming, so readers need no lock and
//! several processes may write the same blob.

use crate::cache::{Cache, read_json, write_json};
use crate::digest::Digest;
use crate::error::Error;
use crate::image::Image;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The images of a cache.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// A name of the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Named {
    pub name: String,
    pub manifest: String,
}

impl Store {
    /// The store of a cache, made if need be.
    pub fn of(cache: &Cache) -> Result<Store, Error> {
        let dir = cache.dir().join("images-1");
        for name in ["blobs/sha256", "names", "partial"] {
            let path = dir.join(name);
            std::fs::create_dir_all(&path).map_err(Error::io(&path))?;
        }
        Ok(Store { dir })
    }

    /// Where a blob is, or would be.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// Where a blob is while it is fetched.
    pub(crate) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("partial").join(digest.hex())
    }

    /// The manifest that a name stands for.
    pub fn find(&self, name: &str) -> Option<Digest> {
        let named: Named = read_json(&self.name_path(name))?;
        let digest = Digest::parse(&named.manifest)?;
        self.blob_path(&digest).exists().then_some(digest)
    }

    /// Gives an image a name.
    pub fn name(&self, name: &str, manifest: &Digest) -> Result<(), Error> {
        let named = Named {
            name: name.to_owned(),
            manifest: manifest.to_string(),
        };
        write_json(&self.name_path(name), &named)
    }

    /// Takes a name away; false when there was none.
    pub fn forget(&self, name: &str) -> Result<bool, Error> {
        let path = self.name_path(name);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(&path)(error)),
        }
    }

    /// All names, sorted.
    pub fn names(&self) -> Result<Vec<Named>, Error> {
        let dir = self.dir.join("names");
        let entries = std::fs::read_dir(&dir).map_err(Error::io(&dir))?;
        let mut names: Vec<Named> = entries
            .filter_map(|entry| read_json(&entry.ok()?.path()))
            .collect();
        names.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(names)
    }

    /// Opens the image of a manifest.
    pub fn open(&self, manifest: &Digest) -> Result<Image, Error> {
        Image::of_manifest(&self.dir, manifest)
    }

    /// Reads a small blob, verified.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.blob_path(digest);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(Error::Digest {
                path,
                what: "a blob".into(),
                expected: digest.to_string(),
                found: found.to_string(),
            });
        }
        Ok(bytes)
    }

    /// Adds a small blob.
    pub fn add(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let mut writer = self.writer()?;
        let path = writer.path.clone();
        writer.write_all(bytes).map_err(Error::io(&path))?;
        Ok(writer.finish()?.0)
    }

    /// A blob to be written.
    pub fn writer(&self) -> Result<BlobWriter, Error> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("new-{}-{number}", std::process::id());
        let path = self.dir.join("partial").join(name);
        let file = File::create(&path).map_err(Error::io(&path))?;
        Ok(BlobWriter {
            store: self.clone(),
            path,
            file,
            hash: Sha256::new(),
            size: 0,
        })
    }

    fn name_path(&self, name: &str) -> PathBuf {
        let hex = Digest::of(name.as_bytes()).hex();
        self.dir.join("names").join(format!("{hex}.json"))
    }

    /// The directory, which has the form of an OCI layout without index.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// A blob that is being written; without [`finish`](Self::finish) nothing is left of it.
pub struct BlobWriter {
    store: Store,
    path: PathBuf,
    file: File,
    hash: Sha256,
    size: u64,
}

impl BlobWriter {
    /// Puts the blob in place; its digest and size.
    pub fn finish(self) -> Result<(Digest, u64), Error> {
        let bytes: [u8; 32] = self.hash.clone().finalize().into();
        let digest = Digest::from(bytes);
        let path = self.store.blob_path(&digest);
        std::fs::rename(&self.path, &path).map_err(Error::io(&path))?;
        Ok((digest, self.size))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
