//! Opening an image: docker-archive, OCI archive or OCI layout directory, tags and platforms.

use crate::config::{self, ImageConfig};
use crate::digest::Digest;
use crate::error::Error;
use crate::flatten::{Flattener, Limits};
use crate::tar::{self, Kind};
use crate::tree::Tree;
use crate::unpack::{self, Blob, Compression};
use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, MediaType, Os};
use serde::Deserialize;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Indexes inside indexes; buildx makes two.
const NESTING_MAX: u32 = 4;
/// Entries of an outer archive: a few per layer.
const ENTRIES_MAX: usize = 100_000;

/// Where an image is: a file or directory, and its name in there if it holds several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub path: PathBuf,
    pub tag: Option<String>,
}

impl Reference {
    /// Understands `PATH`, `PATH:TAG`, and both after `docker-archive:`, `oci:`, `oci-archive:`.
    pub fn parse(text: &OsStr) -> Result<Reference, Error> {
        let bytes = text.as_bytes();
        let prefixes: [&[u8]; 3] = [b"docker-archive:", b"oci-archive:", b"oci:"];
        let plain = Path::new(text).exists();
        let bytes = match prefixes
            .iter()
            .find_map(|prefix| bytes.strip_prefix(*prefix))
        {
            Some(rest) if !plain => rest,
            _ => bytes,
        };
        let whole = Path::new(OsStr::from_bytes(bytes));
        if whole.exists() {
            return Ok(Reference {
                path: whole.to_owned(),
                tag: None,
            });
        }
        for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b':') {
            let path = Path::new(OsStr::from_bytes(&bytes[..at]));
            let tag = std::str::from_utf8(&bytes[at + 1..]);
            if let (true, Ok(tag)) = (path.exists(), tag) {
                return Ok(Reference {
                    path: path.to_owned(),
                    tag: Some(tag.to_owned()),
                });
            }
        }
        Err(Error::NotFound(whole.to_owned()))
    }
}

/// An opened image: its configuration, and where its layers are.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    /// How to run it.
    pub config: ImageConfig,
    /// The digest of its configuration, which names its content (Docker's image id).
    pub digest: Digest,
    layers: Vec<(Blob, Digest)>,
}

impl Image {
    /// Opens the image; `scratch` is a directory for unnamed temporary files.
    pub fn open(reference: &Reference, scratch: &Path) -> Result<Image, Error> {
        let Reference { path, tag } = reference;
        let tag = tag.as_deref();
        let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
        if metadata.is_dir() {
            let store = Store::Layout(path.clone());
            if !path.join("oci-layout").exists() && !path.join("index.json").exists() {
                return Err(Error::PlainDirectory(path.clone()));
            }
            return open_layout(path, &store, tag);
        }
        let mut blob = Blob {
            path: path.clone(),
            file: Arc::new(File::open(path).map_err(Error::io(path))?),
            offset: 0,
            len: metadata.len(),
            digest: None,
        };
        if !metadata.is_file() {
            return Err(Error::NotAnImage(path.clone()));
        }
        let compression = Compression::of_blob(&blob)?;
        if compression != Compression::None {
            // `docker save | gzip`
            blob = unpack::spool(&blob, compression, scratch)?;
        }
        let store = Store::archive(blob)?;
        if store.contains("manifest.json") {
            open_docker(path, &store, tag)
        } else if store.contains("index.json") {
            open_layout(path, &store, tag)
        } else {
            Err(Error::NotAnImage(path.clone()))
        }
    }

    /// Opens the image of a manifest among the blobs of a directory.
    pub(crate) fn of_manifest(dir: &Path, manifest: &Digest) -> Result<Image, Error> {
        let store = Store::Layout(dir.to_owned());
        let name = format!("blobs/sha256/{}", manifest.hex());
        let bytes = store.get(&name, Some(*manifest))?.read("a manifest")?;
        let parsed = ImageManifest::from_reader(&bytes[..]).map_err(|error| Error::Damaged {
            path: dir.join(&name),
            what: format!("it is not an image manifest ({error})"),
        })?;
        let config = store.blob(dir, parsed.config())?;
        let layers = parsed.layers().iter().map(|layer| store.blob(dir, layer));
        Image::new(dir, &config, layers.collect::<Result<_, _>>()?)
    }

    /// A name for the files of the image: equal layers, equal name.
    pub fn content(&self) -> Digest {
        let ids: String = self
            .layers
            .iter()
            .map(|(_, id)| format!("{id}\n"))
            .collect();
        Digest::of(ids.as_bytes())
    }

    /// Reads all layers, verifies their digests, and lays them over one another.
    pub fn flatten(&self, scratch: &Path, limits: Limits) -> Result<Tree, Error> {
        if self.layers.len() > limits.layers {
            return Err(Error::TooLarge {
                what: format!("{} layers", self.layers.len()),
            });
        }
        let mut flattener = Flattener::new(limits);
        for (blob, diff_id) in &self.layers {
            unpack::layer(blob, Some(*diff_id), &mut flattener, limits.bytes, scratch)?;
        }
        Ok(flattener.tree)
    }

    fn new(path: &Path, config: &Blob, layers: Vec<Blob>) -> Result<Image, Error> {
        let bytes = config.read("the configuration")?;
        let parsed = config::parse(path, &bytes)?;
        if parsed.diff_ids.len() != layers.len() {
            return Err(Error::Damaged {
                path: path.to_owned(),
                what: format!(
                    "its configuration names {} layers, its manifest {}",
                    parsed.diff_ids.len(),
                    layers.len()
                ),
            });
        }
        let ids = parsed.diff_ids.iter().map(|id| digest(path, id));
        let ids: Vec<Digest> = ids.collect::<Result<_, _>>()?;
        Ok(Image {
            path: path.to_owned(),
            config: parsed.config,
            digest: Digest::of(&bytes),
            layers: layers.into_iter().zip(ids).collect(),
        })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of layers and the bytes they have as they are stored.
    pub fn layers(&self) -> (usize, u64) {
        let bytes = self.layers.iter().map(|(blob, _)| blob.len).sum();
        (self.layers.len(), bytes)
    }
}

/// Named files: the entries of an archive, or a directory.
enum Store {
    Layout(PathBuf),
    Archive {
        blob: Blob,
        entries: HashMap<Vec<u8>, Stored>,
    },
}

enum Stored {
    Data { offset: u64, len: u64 },
    Link(Vec<u8>),
}

impl Store {
    /// Indexes an outer archive without reading its contents.
    fn archive(blob: Blob) -> Result<Store, Error> {
        let path = blob.path.clone();
        let not_an_image = |error: std::io::Error, first: bool| match error.kind() {
            std::io::ErrorKind::InvalidData if first => Error::NotAnImage(path.clone()),
            std::io::ErrorKind::UnexpectedEof if first && blob.len < 512 => {
                Error::NotAnImage(path.clone())
            }
            _ => Error::io(&path)(error),
        };
        let file = blob.file.try_clone().map_err(Error::io(&path))?;
        // Small buffer: nearly everything is skipped.
        let source = tar::Seekable::new(BufReader::with_capacity(4096, file));
        let mut reader = tar::Reader::new(source.map_err(Error::io(&path))?);
        let mut entries = HashMap::new();
        loop {
            let first = entries.is_empty();
            let Some(entry) = reader.next_entry().map_err(|e| not_an_image(e, first))? else {
                break;
            };
            let stored = match (entry.kind, &entry.segments[..]) {
                (Kind::Symlink | Kind::HardLink, _) => {
                    let base: &[u8] = match entry.kind {
                        Kind::Symlink => parent(&entry.path),
                        _ => b"",
                    };
                    Stored::Link(normalize(&[base, b"/", &entry.link].concat()))
                }
                (Kind::File, []) => Stored::Data { offset: 0, len: 0 },
                (Kind::File, [segment]) if segment.len == entry.size => Stored::Data {
                    offset: segment.stored,
                    len: segment.len,
                },
                _ => continue,
            };
            entries.insert(normalize(&entry.path), stored);
            if entries.len() > ENTRIES_MAX {
                return Err(Error::NotAnImage(path));
            }
        }
        Ok(Store::Archive { blob, entries })
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Store::Layout(dir) => dir.join(name).exists(),
            Store::Archive { entries, .. } => entries.contains_key(name.as_bytes()),
        }
    }

    /// The file `name` (never a path of the host's that the image chose: callers pass fixed names
    /// or names made from digests for directories).
    fn get(&self, name: &str, digest: Option<Digest>) -> Result<Blob, Error> {
        match self {
            Store::Layout(dir) => {
                let path = dir.join(name);
                let missing = |error: std::io::Error| match error.kind() {
                    std::io::ErrorKind::NotFound => Error::Missing {
                        path: dir.clone(),
                        what: name.to_owned(),
                    },
                    _ => Error::io(&path)(error),
                };
                let file = File::open(&path).map_err(missing)?;
                let metadata = file.metadata().map_err(Error::io(&path))?;
                if !metadata.is_file() {
                    return Err(Error::Damaged {
                        path: dir.clone(),
                        what: format!("{name} is not a file"),
                    });
                }
                Ok(Blob {
                    path: dir.clone(),
                    len: metadata.len(),
                    file: Arc::new(file),
                    offset: 0,
                    digest,
                })
            }
            Store::Archive { blob, entries } => {
                let mut name_now = normalize(name.as_bytes());
                for _ in 0..8 {
                    match entries.get(&name_now) {
                        Some(&Stored::Data { offset, len }) => {
                            return Ok(Blob {
                                path: blob.path.clone(),
                                file: blob.file.clone(),
                                offset: blob.offset + offset,
                                len,
                                digest,
                            });
                        }
                        Some(Stored::Link(target)) => name_now = target.clone(),
                        None => break,
                    }
                }
                Err(Error::Missing {
                    path: blob.path.clone(),
                    what: name.escape_debug().to_string(),
                })
            }
        }
    }

    /// A blob of an OCI layout, its size checked against the descriptor's.
    fn blob(&self, path: &Path, descriptor: &Descriptor) -> Result<Blob, Error> {
        let digest = digest(path, descriptor.digest().as_ref())?;
        let blob = self.get(&format!("blobs/sha256/{}", digest.hex()), Some(digest))?;
        if blob.len < descriptor.size() {
            return Err(Error::Truncated {
                path: path.to_owned(),
                what: format!("{digest} has {} of {} bytes", blob.len, descriptor.size()),
            });
        }
        if blob.len > descriptor.size() {
            return Err(Error::Damaged {
                path: path.to_owned(),
                what: format!("{digest} is larger than its manifest says"),
            });
        }
        Ok(blob)
    }
}

/// An entry of a docker-archive's manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

fn open_docker(path: &Path, store: &Store, tag: Option<&str>) -> Result<Image, Error> {
    let bytes = store.get("manifest.json", None)?.read("manifest.json")?;
    let damaged = |error: serde_json::Error| Error::Damaged {
        path: path.to_owned(),
        what: format!("manifest.json cannot be read ({error})"),
    };
    let manifests: Vec<DockerManifest> = serde_json::from_slice(&bytes).map_err(damaged)?;
    let names = |manifest: &DockerManifest| manifest.repo_tags.clone().unwrap_or_default();
    let listed = || manifests.iter().flat_map(names).collect::<Vec<_>>();
    let manifest = match tag {
        Some(tag) => manifests
            .iter()
            .find(|manifest| names(manifest).iter().any(|name| matches_tag(name, tag)))
            .ok_or_else(|| no_tag(path, tag, listed()))?,
        None => match &manifests[..] {
            [manifest] => manifest,
            [] => {
                return Err(Error::Missing {
                    path: path.to_owned(),
                    what: "any image in its manifest.json".to_owned(),
                });
            }
            _ => return Err(several(path, listed())),
        },
    };
    let config = store.get(&manifest.config, None)?;
    let layers = manifest.layers.iter().flatten();
    let layers = layers.map(|name| store.get(name, None));
    Image::new(path, &config, layers.collect::<Result<_, _>>()?)
}

fn open_layout(path: &Path, store: &Store, tag: Option<&str>) -> Result<Image, Error> {
    let bytes = store.get("index.json", None)?.read("index.json")?;
    let damaged = |what: &str, error: &dyn std::fmt::Display| Error::Damaged {
        path: path.to_owned(),
        what: format!("{what} cannot be read ({error})"),
    };
    let index = ImageIndex::from_reader(&bytes[..]).map_err(|e| damaged("index.json", &e))?;
    let name = |descriptor: &Descriptor| {
        let annotations = descriptor.annotations().as_ref()?;
        let name = annotations.get(CONTAINERD_NAME);
        name.or(annotations.get(REF_NAME)).cloned()
    };
    let mut names: Vec<String> = index.manifests().iter().filter_map(name).collect();
    names.sort();
    names.dedup();
    let chosen: Vec<Descriptor> = match tag {
        Some(tag) => {
            let named = |found: &&Descriptor| {
                let short = found.annotations().as_ref().and_then(|a| a.get(REF_NAME));
                name(found).is_some_and(|name| matches_tag(&name, tag))
                    || short.is_some_and(|name| name == tag)
            };
            index.manifests().iter().filter(named).cloned().collect()
        }
        None if names.len() > 1 => return Err(several(path, names)),
        None => index.manifests().clone(),
    };
    if let (Some(tag), true) = (tag, chosen.is_empty()) {
        return Err(no_tag(path, tag, names));
    }

    let mut candidates = chosen;
    for _ in 0..NESTING_MAX {
        let descriptor = pick(path, &candidates)?;
        let blob = store.blob(path, &descriptor)?;
        let bytes = blob.read("a manifest")?;
        match descriptor.media_type() {
            MediaType::ImageIndex => {
                let index = ImageIndex::from_reader(&bytes[..]);
                candidates = index
                    .map_err(|e| damaged("an index", &e))?
                    .manifests()
                    .clone();
            }
            MediaType::Other(name) if name.ends_with("manifest.list.v2+json") => {
                let index = ImageIndex::from_reader(&bytes[..]);
                candidates = index
                    .map_err(|e| damaged("an index", &e))?
                    .manifests()
                    .clone();
            }
            _ => {
                let manifest = ImageManifest::from_reader(&bytes[..]);
                let manifest = manifest.map_err(|e| damaged("a manifest", &e))?;
                let config = store.blob(path, manifest.config())?;
                let layers = manifest
                    .layers()
                    .iter()
                    .map(|layer| store.blob(path, layer));
                return Image::new(path, &config, layers.collect::<Result<_, _>>()?);
            }
        }
    }
    Err(Error::Damaged {
        path: path.to_owned(),
        what: "its indexes are nested too deep".to_owned(),
    })
}

/// The manifest for linux/amd64, or the only one without a platform.
fn pick(path: &Path, candidates: &[Descriptor]) -> Result<Descriptor, Error> {
    let mut found = Vec::new();
    for descriptor in candidates {
        match descriptor.platform() {
            Some(platform)
                if *platform.os() == Os::Linux
                    && *platform.architecture() == Arch::Amd64
                    // x86-64-v2 and v3 need instructions that a machine may lack.
                    && platform.variant().as_deref().is_none_or(|v| v == "v1") =>
            {
                return Ok(descriptor.clone());
            }
            Some(platform) => {
                let variant = platform.variant().iter().map(|v| format!("/{v}"));
                let variant: String = variant.collect();
                let name = format!("{}/{}{variant}", platform.os(), platform.architecture());
                // Attestations are listed as unknown/unknown.
                if !name.starts_with("unknown/") && !found.contains(&name) {
                    found.push(name);
                }
            }
            None => {}
        }
    }
    let without = candidates
        .iter()
        .find(|descriptor| descriptor.platform().is_none());
    match without {
        Some(descriptor) => Ok(descriptor.clone()),
        None if found.is_empty() => Err(Error::Missing {
            path: path.to_owned(),
            what: "any image in its index".to_owned(),
        }),
        None => Err(Error::Platform {
            found: found.join(", "),
        }),
    }
}

/// `tag` names the image `name`: whole, or without its registry, or as its tag alone.
fn matches_tag(name: &str, tag: &str) -> bool {
    name == tag
        || name
            .strip_suffix(tag)
            .is_some_and(|rest| rest.ends_with(['/', ':']))
        || name.strip_suffix(":latest").is_some_and(|name| {
            name == tag
                || name
                    .strip_suffix(tag)
                    .is_some_and(|rest| rest.ends_with('/'))
        })
}

fn no_tag(path: &Path, wanted: &str, names: Vec<String>) -> Error {
    Error::NoTag {
        path: path.to_owned(),
        wanted: wanted.to_owned(),
        names: match names.is_empty() {
            true => "only an image without a name, to be used without one".to_owned(),
            false => names.join(", "),
        },
    }
}

fn several(path: &Path, names: Vec<String>) -> Error {
    Error::Several {
        path: path.to_owned(),
        names: names.join(", "),
    }
}

fn digest(path: &Path, text: &str) -> Result<Digest, Error> {
    let digest = text.strip_prefix("sha256:").and_then(Digest::parse);
    digest.ok_or_else(|| Error::Unsupported {
        path: path.to_owned(),
        what: format!(
            "digest {:.80} is not a SHA-256 digest, the only kind bulla reads",
            text.escape_debug().to_string()
        ),
    })
}

fn parent(path: &[u8]) -> &[u8] {
    let slash = path.iter().rposition(|&byte| byte == b'/');
    slash.map_or(b"", |at| &path[..at])
}

/// A name inside an archive without `.`, `..` and empty components.
fn normalize(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}
