//! Confidential images: container images that `bulla build` made.
//!
//! All they have is one directory, [`DIR`]:
//!
//! ```text
//! bulla/bulla                       the loader, which is the entry point
//! bulla/bootstrap, bulla/runtime    the enclave's programs
//! bulla/dynamic.config, .sigstruct  measured configuration and signature, by layout
//! bulla/static.config, .sigstruct
//! bulla/rootfs.img                  the container's files, hash tree, site lists
//! bulla/files.json                  list of these files, with digests
//! bulla/about.json                  where it came from, and the manifest
//! ```
//! `bulla run` does not execute the loader in there, but reads the rest with its own.

use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::Error;
use crate::flatten::Limits;
use crate::image::Image;
use crate::output::{self, Entry};
use crate::tree::Kind;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The directory in the image, without a leading slash.
pub const DIR: &str = "bulla";
/// Label that makes an image a confidential one; its value is [`FORMAT`].
pub const LABEL: &str = "org.bulla.format";
/// Changes with the form of the directory.
pub const FORMAT: &str = "1";
/// The files that [`Cache::built`] takes out.
const FILES: [&str; 10] = [
    "bulla",
    "bootstrap",
    "runtime",
    "dynamic.config",
    "dynamic.sigstruct",
    "static.config",
    "static.sigstruct",
    "files.json",
    "about.json",
    "rootfs.img",
];

/// What is said about a confidential image in its `about.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// Version of bulla that built it.
    pub bulla: String,
    /// Version of the configuration's form: loader and runtime must agree about it.
    pub config_version: u32,
    /// The image it was made from: as it was named, and its id.
    pub source: String,
    pub source_id: String,
    /// The manifest, as JSON.
    pub manifest: serde_json::Value,
    /// How the files of the original image want to be run.
    pub image_config: crate::ImageConfig,
}

/// The unpacked directory of a confidential image.
#[derive(Clone, Debug)]
pub struct Built {
    /// Where its files are.
    pub dir: PathBuf,
}

impl Built {
    /// A directory that is there already: in a running container.
    pub fn at(dir: PathBuf) -> Result<Built, Error> {
        let built = Built { dir };
        built.about()?;
        Ok(built)
    }

    /// A file of it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Reads a small file of it.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.path(name);
        std::fs::read(&path).map_err(Error::io(&path))
    }

    /// What it says about itself. Not measured.
    pub fn about(&self) -> Result<About, Error> {
        let bytes = self.read("about.json")?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Damaged {
            path: self.path("about.json"),
            what: error.to_string(),
        })
    }
}

impl Image {
    /// Whether `bulla build` made it.
    pub fn is_built(&self) -> bool {
        self.label(LABEL).is_some()
    }

    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        let mut labels = self.config.labels.iter();
        labels
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

impl Cache {
    /// The directory of a confidential image, unpacked if that has not been done.
    pub fn built(&self, image: &Image) -> Result<Built, Error> {
        match image.label(LABEL) {
            Some(FORMAT) => {}
            other => {
                return Err(Error::Unsupported {
                    path: image.path().to_owned(),
                    what: format!(
                        "its format is {}, this bulla reads {FORMAT}; use the bulla that built it",
                        other.unwrap_or("unknown")
                    ),
                });
            }
        }
        let built = Built::at(self.place(image, |temporary| self.unpack(image, temporary))?)?;
        crate::prune::touch(&built.path("about.json"));
        Ok(built)
    }

    /// Makes the directory of a confidential image from the files that its layers were written from,
    /// so that its first start need not unpack them. What is large is in the cache already, and gets
    /// another name.
    pub fn keep_built<'a>(
        &self,
        image: &Image,
        entries: impl IntoIterator<Item = &'a Entry>,
    ) -> Result<(), Error> {
        let put = |entry: &Entry, to: &Path| {
            let path = to.join(
                entry
                    .path
                    .strip_prefix(DIR)
                    .unwrap_or_default()
                    .trim_matches('/'),
            );
            let written = match &entry.content {
                output::Content::Directory => Ok(()),
                output::Content::Bytes(bytes) => std::fs::write(&path, bytes),
                output::Content::File(from) => match from.starts_with(self.dir()) {
                    true => std::fs::hard_link(from, &path)
                        .or_else(|_| std::fs::copy(from, &path).map(drop)),
                    false => std::fs::copy(from, &path).map(drop),
                },
            };
            written.map_err(Error::io(&path))
        };
        let placed = self.place(image, |to| {
            std::fs::create_dir_all(to).map_err(Error::io(to))?;
            entries.into_iter().try_for_each(|entry| put(entry, to))
        });
        placed.map(drop)
    }

    /// The directory of a confidential image, filled by `fill` if it is not there. It appears whole.
    fn place(
        &self,
        image: &Image,
        fill: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let parent = self.dir().join("built-1");
        std::fs::create_dir_all(&parent).map_err(Error::io(&parent))?;
        let dir = parent.join(image.digest.hex());
        if !dir.exists() {
            let temporary = parent.join(format!(".{}.{}", image.digest.hex(), std::process::id()));
            let _ = std::fs::remove_dir_all(&temporary);
            let placed = fill(&temporary).and_then(|()| match std::fs::rename(&temporary, &dir) {
                // Another process was faster.
                Err(_) if dir.exists() => Ok(()),
                other => other.map_err(Error::io(&dir)),
            });
            let _ = std::fs::remove_dir_all(&temporary);
            placed?;
        }
        Ok(dir)
    }

    fn unpack(&self, image: &Image, to: &Path) -> Result<(), Error> {
        self.make_room();
        std::fs::create_dir_all(to).map_err(Error::io(to))?;
        let tree = image.flatten(self.dir(), Limits::default())?;
        for name in FILES {
            let missing = || Error::Missing {
                path: image.path().to_owned(),
                what: format!("/{DIR}/{name}"),
            };
            let id = tree
                .lookup(format!("{DIR}/{name}").as_bytes())
                .ok_or_else(missing)?;
            let Kind::File(content) = &tree.node(id).kind else {
                return Err(missing());
            };
            let path = to.join(name);
            let mut file = File::create(&path).map_err(Error::io(&path))?;
            let mut reader = tree.open(content).map_err(Error::io(image.path()))?;
            io::copy(&mut reader, &mut file).map_err(Error::io(&path))?;
        }
        Ok(())
    }
}

/// The digest of a program, for messages about differences.
pub fn short(digest: &Digest) -> String {
    digest.hex()[..12].to_owned()
}
