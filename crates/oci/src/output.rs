//! Writing images: layers, configuration and manifest into a [`Store`], and a store's image into an
//! archive. Equal input gives equal bytes: entries are in the order given, owned by root, with
//! one fixed time.

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::Error;
use crate::store::{BlobWriter, Store};
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A file for a layer.
pub struct Entry {
    /// Without a leading slash.
    pub path: String,
    pub mode: u32,
    pub content: Content,
}

/// What is in an [`Entry`].
pub enum Content {
    Directory,
    Bytes(Vec<u8>),
    File(PathBuf),
}

/// How layers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerCompression {
    None,
    Gzip,
}

/// A layer in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    digest: Digest,
    size: u64,
    diff_id: Digest,
    compression: LayerCompression,
}

/// Everything about an image but its layers.
pub struct NewImage<'a> {
    pub config: &'a ImageConfig,
    pub annotations: BTreeMap<String, String>,
}

/// Counts and hashes what goes through.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a layer.
pub fn write_layer(
    store: &Store,
    entries: &[Entry],
    compression: LayerCompression,
) -> Result<Layer, Error> {
    let blob = store.writer()?;
    let path = blob.path().to_owned();
    let failed = Error::io(&path);
    let (blob, diff_id) = match compression {
        // The blob's own hash is that of the content as well.
        LayerCompression::None => {
            let blob = write_tar(blob, entries)?;
            let (digest, size) = blob.finish()?;
            return Ok(Layer {
                digest,
                size,
                diff_id: digest,
                compression,
            });
        }
        LayerCompression::Gzip => {
            let hashed = Hashed {
                // Fast: most of what is in there does not shrink much further.
                inner: GzEncoder::new(blob, Level::new(1)),
                hash: Sha256::new(),
            };
            let hashed = write_tar(hashed, entries)?;
            let diff_id: [u8; 32] = hashed.hash.finalize().into();
            let blob: BlobWriter = hashed.inner.finish().map_err(failed)?;
            (blob, Digest::from(diff_id))
        }
    };
    let (digest, size) = blob.finish()?;
    Ok(Layer {
        digest,
        size,
        diff_id,
        compression,
    })
}

fn write_tar<W: Write>(out: W, entries: &[Entry]) -> Result<W, Error> {
    let mut tar = ::tar::Builder::new(out);
    for entry in entries {
        let shown = Path::new(&entry.path);
        let (kind, size, source): (_, u64, Box<dyn Read + '_>) = match &entry.content {
            Content::Directory => (::tar::EntryType::Directory, 0, Box::new(io::empty())),
            Content::Bytes(bytes) => {
                let size = bytes.len() as u64;
                (::tar::EntryType::Regular, size, Box::new(&bytes[..]))
            }
            Content::File(path) => {
                let file = File::open(path).map_err(Error::io(path))?;
                let size = file.metadata().map_err(Error::io(path))?.len();
                let file = io::BufReader::with_capacity(1 << 20, file);
                (::tar::EntryType::Regular, size, Box::new(file))
            }
        };
        let mut header = ::tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_path(shown).map_err(Error::io(shown))?;
        header.set_cksum();
        let mut limited = source.take(size);
        tar.append(&header, &mut limited)
            .map_err(Error::io(shown))?;
    }
    tar.into_inner().map_err(Error::io(Path::new("a layer")))
}

/// Writes configuration and manifest of an image with these layers; the digest of the manifest.
pub fn write_image(store: &Store, image: &NewImage<'_>, layers: &[Layer]) -> Result<Digest, Error> {
    let config = image.config;
    let mut run = Map::new();
    let set = |names: &[String]| {
        let names = names.iter().map(|name| (name.clone(), json!({})));
        Value::Object(names.collect())
    };
    let labels = config.labels.iter();
    let labels: BTreeMap<&String, &String> = labels.map(|(name, value)| (name, value)).collect();
    for (name, value, empty) in [
        (
            "Entrypoint",
            json!(config.entrypoint),
            config.entrypoint.is_empty(),
        ),
        ("Cmd", json!(config.cmd), config.cmd.is_empty()),
        ("Env", json!(config.env), config.env.is_empty()),
        ("User", json!(config.user), config.user.is_empty()),
        (
            "WorkingDir",
            json!(config.workdir),
            config.workdir.is_empty(),
        ),
        (
            "ExposedPorts",
            set(&config.exposed_ports),
            config.exposed_ports.is_empty(),
        ),
        ("Volumes", set(&config.volumes), config.volumes.is_empty()),
        (
            "StopSignal",
            json!(config.stop_signal),
            config.stop_signal.is_empty(),
        ),
        ("Labels", json!(labels), labels.is_empty()),
    ] {
        if !empty {
            run.insert(name.to_owned(), value);
        }
    }
    let ids: Vec<String> = layers
        .iter()
        .map(|layer| layer.diff_id.to_string())
        .collect();
    let mut document = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": ids },
    });
    if !config.created.is_empty() {
        document["created"] = json!(config.created);
    }
    let bytes = document.to_string().into_bytes();
    let digest = store.add(&bytes)?;
    let layers = layers.iter().map(|layer| {
        let suffix = match layer.compression {
            LayerCompression::None => "",
            LayerCompression::Gzip => "+gzip",
        };
        json!({
            "mediaType": format!("{LAYER}{suffix}"),
            "digest": layer.digest.to_string(),
            "size": layer.size,
        })
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": digest.to_string(), "size": bytes.len() },
        "layers": layers.collect::<Vec<_>>(),
        "annotations": image.annotations,
    });
    store.add(manifest.to_string().as_bytes())
}

/// The blobs that a manifest of the store names: the configuration first, then the layers.
pub fn blobs(store: &Store, manifest: &Digest) -> Result<Vec<(Digest, u64)>, Error> {
    let damaged = || Error::Damaged {
        path: store.blob_path(manifest),
        what: "it is not an image manifest".into(),
    };
    let bytes = store.read(manifest)?;
    let parsed: Value = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
    let layers = parsed["layers"].as_array().ok_or_else(damaged)?;
    let descriptors = std::iter::once(&parsed["config"]).chain(layers);
    let blob = |descriptor: &Value| {
        let digest = Digest::parse(descriptor["digest"].as_str()?)?;
        Some((digest, descriptor["size"].as_u64()?))
    };
    descriptors
        .map(|one| blob(one).ok_or_else(damaged))
        .collect()
}

/// Writes an archive that is an OCI archive and a docker-archive at once: every engine's `load`
/// takes it. It appears under its name whole.
pub fn write_archive(
    store: &Store,
    manifest: &Digest,
    name: Option<&str>,
    path: &Path,
) -> Result<(), Error> {
    let temporary = temporary_beside(path);
    let written = (|| {
        let file = File::create(&temporary).map_err(Error::io(&temporary))?;
        let entries = archive_entries(store, manifest, name)?;
        let out = write_tar(io::BufWriter::with_capacity(1 << 20, file), &entries)?;
        let file = out.into_inner().map_err(|error| error.into_error());
        let file = file.map_err(Error::io(&temporary))?;
        file.sync_all().map_err(Error::io(&temporary))?;
        std::fs::rename(&temporary, path).map_err(Error::io(path))
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(|error| error.of_output(path))
}

/// Writes an OCI layout directory, which must not exist.
pub fn write_layout(
    store: &Store,
    manifest: &Digest,
    name: Option<&str>,
    path: &Path,
) -> Result<(), Error> {
    if path.exists() {
        return Err(Error::Unsupported {
            path: path.to_owned(),
            what: "it exists already; choose another directory or remove it".into(),
        });
    }
    let temporary = temporary_beside(path);
    let written = (|| {
        for entry in archive_entries(store, manifest, name)? {
            let target = temporary.join(&entry.path);
            let done = match &entry.content {
                Content::Directory => std::fs::create_dir_all(&target),
                Content::Bytes(bytes) => std::fs::write(&target, bytes),
                Content::File(from) => std::fs::copy(from, &target).map(drop),
            };
            done.map_err(Error::io(&target))?;
        }
        std::fs::rename(&temporary, path).map_err(Error::io(path))
    })();
    if written.is_err() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    written.map_err(|error| error.of_output(path))
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

fn archive_entries(
    store: &Store,
    manifest: &Digest,
    name: Option<&str>,
) -> Result<Vec<Entry>, Error> {
    let directory = |path: &str| Entry {
        path: path.to_owned(),
        mode: 0o755,
        content: Content::Directory,
    };
    let bytes = |path: &str, content: Vec<u8>| Entry {
        path: path.to_owned(),
        mode: 0o644,
        content: Content::Bytes(content),
    };
    let blob_name = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let mut descriptor = json!({
        "mediaType": MANIFEST,
        "digest": manifest.to_string(),
        "size": store.read(manifest)?.len(),
        "platform": { "architecture": "amd64", "os": "linux" },
    });
    if let Some(name) = name {
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        descriptor["annotations"] = json!({
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": tag,
        });
    }
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
    let named = blobs(store, manifest)?;
    let (config, layers) = match named.split_first() {
        Some((config, layers)) => (config, layers),
        None => return Ok(Vec::new()),
    };
    let docker = json!([{
        "Config": blob_name(&config.0),
        "RepoTags": name.into_iter().collect::<Vec<_>>(),
        "Layers": layers.iter().map(|(digest, _)| blob_name(digest)).collect::<Vec<_>>(),
    }]);
    let mut entries = vec![directory("blobs"), directory("blobs/sha256")];
    let mut seen: Vec<Digest> = vec![];
    for digest in std::iter::once(manifest).chain(named.iter().map(|(digest, _)| digest)) {
        if !seen.contains(digest) {
            seen.push(*digest);
            entries.push(Entry {
                path: blob_name(digest),
                mode: 0o644,
                content: Content::File(store.blob_path(digest)),
            });
        }
    }
    entries.push(bytes("index.json", index.to_string().into_bytes()));
    entries.push(bytes("manifest.json", docker.to_string().into_bytes()));
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    entries.push(bytes("oci-layout", layout.to_vec()));
    Ok(entries)
}
