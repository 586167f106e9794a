//! Registries: pulling into a [`Store`] and pushing from it, with `oci-client`.
//!
//! Blobs are fetched in parallel into `partial/`, verified, and only then moved in place; what an
//! interrupted pull left there is continued. A lock per blob lets one process fetch while others
//! wait. Credentials come from Docker's configuration file and its helpers.

use crate::digest::Digest;
use crate::error::Error;
use crate::output;
use crate::store::Store;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

/// Blobs that are fetched at the same time.
const PARALLEL: usize = 4;
/// A registry that says nothing for so long is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Attempts per manifest and per blob, each of which continues where the last one ended.
const ATTEMPTS: u32 = 3;
/// As large as registries accept.
const MANIFEST_MAX: usize = 4 << 20;
/// Indexes inside indexes.
const NESTING_MAX: u32 = 3;
const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    INDEXES[0],
    INDEXES[1],
];

/// How registries are talked to.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Registries (`host:port`) without TLS.
    pub plain_http: Vec<String>,
    /// Show bars on standard error where that is a terminal.
    pub progress: bool,
    /// Ask the registry even if the image is there.
    pub always: bool,
    /// Never ask a registry.
    pub never: bool,
    /// How long a registry may say nothing; a minute by default.
    pub timeout: Option<Duration>,
}

/// A name with registry and tag: `redis` is `docker.io/library/redis:latest`.
pub fn full_name(name: &str) -> Result<String, Error> {
    Ok(parse(name)?.whole())
}

fn parse(name: &str) -> Result<Reference, Error> {
    if let Some((registry, repository, tag)) = plain(name) {
        return Ok(Reference::with_tag(registry, repository, tag));
    }
    let parsed: Result<Reference, _> = name.parse();
    parsed.map_err(|error| Error::Name {
        name: name.to_owned(),
        reason: error.to_string(),
    })
}

/// Registry, repository and tag of a name as most are: small letters, digits and single separators, no
/// digest. The library's parser takes anything, but compiles a regular expression first, which takes
/// longer than starting an enclave.
fn plain(name: &str) -> Option<(String, String, String)> {
    let word = |text: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        let single = |pair: &[u8]| inner(pair[0]) || inner(pair[1]);
        ends.iter().all(|end| end.is_some_and(|&byte| inner(byte)))
            && bytes
                .iter()
                .all(|&byte| inner(byte) || b"._-".contains(&byte))
            && bytes.windows(2).all(single)
    };
    let (left, right) = name.split_once('/').unwrap_or(("", name));
    let (host, port) = left
        .split_once(':')
        .map_or((left, None), |(host, port)| (host, Some(port)));
    let is_domain = left.contains('.') || port.is_some() || left == "localhost";
    let (registry, path) = match is_domain {
        true => (left, right),
        false => ("docker.io", name),
    };
    let numeric = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let known_form = word(host) && !host.contains('_') && port.is_none_or(numeric);
    if is_domain && (!known_form || host.ends_with("docker.io")) {
        return None;
    }
    let (path, tag) = path.split_once(':').unwrap_or((path, "latest"));
    let (first, rest) = (tag.bytes().next()?, tag.bytes());
    let in_tag = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_tag = in_tag(first)
        && rest
            .into_iter()
            .all(|byte| in_tag(byte) || b".-".contains(&byte));
    if !is_tag || tag.len() > 128 || path.len() > 200 || !path.split('/').all(word) {
        return None;
    }
    let repository = match !is_domain && !path.contains('/') {
        true => format!("library/{path}"),
        false => path.to_owned(),
    };
    Some((registry.to_owned(), repository, tag.to_owned()))
}

/// The manifest of an image, fetched if it is not in the store.
pub fn image(store: &Store, name: &str, options: &Options) -> Result<Digest, Error> {
    let reference = parse(name)?;
    let whole = reference.whole();
    if !options.always
        && let Some(known) = store.find(&whole)
    {
        return Ok(known);
    }
    if options.never {
        return Err(Error::NotStored(whole));
    }
    let session = Session::new(store, reference, options)?;
    let digest = block_on(session.pull())?;
    store.name(&whole, &digest)?;
    Ok(digest)
}

/// Pushes the image of a manifest under a name.
pub fn push(store: &Store, manifest: &Digest, name: &str, options: &Options) -> Result<(), Error> {
    let session = Session::new(store, parse(name)?, options)?;
    block_on(session.push(manifest))
}

fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(Error::io(Path::new("the network")))?;
    runtime.block_on(work)
}

/// Before another attempt.
fn pause(attempt: u32) -> Duration {
    Duration::from_millis(500 << attempt)
}

/// Whether the same request may succeed a moment later: too many of them, or a server that starts.
fn is_temporary(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ServerError { code, .. } => *code == 429 || *code >= 500,
        OciDistributionError::RegistryError { envelope, .. } => {
            let codes = envelope.errors.iter().map(|error| &error.code);
            codes
                .into_iter()
                .any(|code| *code == OciErrorCode::Toomanyrequests)
        }
        _ => false,
    }
}

/// A conversation with one registry.
struct Session<'a> {
    store: &'a Store,
    reference: Reference,
    client: Client,
    auth: RegistryAuth,
    bars: MultiProgress,
}

impl<'a> Session<'a> {
    fn new(
        store: &'a Store,
        reference: Reference,
        options: &Options,
    ) -> Result<Session<'a>, Error> {
        // Fails when another part of the program has chosen one, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(options.plain_http.clone()),
            read_timeout: Some(options.timeout.unwrap_or(READ_TIMEOUT)),
            connect_timeout: Some(CONNECT_TIMEOUT),
            user_agent: concat!("bulla/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let bars = MultiProgress::new();
        if !options.progress {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        Ok(Session {
            auth: credentials(reference.registry())?,
            store,
            client: Client::new(config),
            reference,
            bars,
        })
    }

    fn failed(&self, error: impl std::fmt::Display) -> Error {
        let mut reason = error.to_string();
        reason.truncate(reason.floor_char_boundary(500));
        Error::Registry {
            registry: self.reference.registry().to_owned(),
            name: self.reference.whole(),
            reason,
        }
    }

    async fn pull(&self) -> Result<Digest, Error> {
        let auth = self
            .client
            .auth(&self.reference, &self.auth, RegistryOperation::Pull);
        auth.await.map_err(|error| self.failed(error))?;
        let mut reference = self.reference.clone();
        for _ in 0..NESTING_MAX {
            let bytes = self.manifest(&reference).await?;
            let digest = Digest::of(&bytes);
            if let Some(expected) = reference.digest().and_then(Digest::parse)
                && expected != digest
            {
                return Err(self.failed(format!(
                    "its manifest does not have the digest it should ({expected}, found {digest})"
                )));
            }
            if bytes.len() > MANIFEST_MAX {
                return Err(self.failed("its manifest is larger than 4 MiB"));
            }
            let manifest: Value = serde_json::from_slice(&bytes)
                .map_err(|error| self.failed(format!("its manifest is malformed: {error}")))?;
            match manifest["manifests"].as_array() {
                Some(choices) => {
                    let chosen = self.choose(choices)?;
                    reference = self.reference.clone_with_digest(chosen.to_string());
                }
                None => {
                    self.pull_blobs(&manifest).await?;
                    return self.store.add(&bytes);
                }
            }
        }
        Err(self.failed("its indexes are nested too deeply"))
    }

    /// The image for linux/amd64.
    fn choose(&self, choices: &[Value]) -> Result<Digest, Error> {
        let mut others = Vec::new();
        for choice in choices {
            let platform = &choice["platform"];
            let text = |key: &str| platform[key].as_str().unwrap_or("unknown").to_owned();
            let (os, architecture) = (text("os"), text("architecture"));
            if (os.as_str(), architecture.as_str()) == ("linux", "amd64") {
                let digest = choice["digest"].as_str().and_then(Digest::parse);
                return digest.ok_or_else(|| self.failed("a digest in its index is not SHA-256"));
            }
            others.push(format!("{os}/{architecture}"));
        }
        Err(Error::Platform {
            found: others.join(", "),
        })
    }

    /// A manifest; a registry that is busy for the moment is asked again.
    async fn manifest(&self, reference: &Reference) -> Result<Vec<u8>, Error> {
        let mut attempt = 0;
        loop {
            let pulled = self
                .client
                .pull_manifest_raw(reference, &self.auth, &MANIFESTS);
            match pulled.await {
                Ok((bytes, _)) => return Ok(bytes.to_vec()),
                Err(error) if attempt + 1 < ATTEMPTS && is_temporary(&error) => {}
                Err(error) => return Err(self.failed(error)),
            }
            attempt += 1;
            tokio::time::sleep(pause(attempt)).await;
        }
    }

    async fn pull_blobs(&self, manifest: &Value) -> Result<(), Error> {
        let layers = manifest["layers"].as_array();
        let layers = layers.ok_or_else(|| self.failed("its manifest names no layers"))?;
        let mut wanted: Vec<(Digest, u64)> = Vec::new();
        for descriptor in std::iter::once(&manifest["config"]).chain(layers) {
            let digest = descriptor["digest"].as_str().and_then(Digest::parse);
            let blob = digest.zip(descriptor["size"].as_u64());
            let blob =
                blob.ok_or_else(|| self.failed("a digest in its manifest is not SHA-256"))?;
            if !wanted.contains(&blob) {
                wanted.push(blob);
            }
        }
        let fetches = wanted
            .iter()
            .map(|(digest, size)| self.fetch(digest, *size));
        stream::iter(fetches)
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }

    /// Makes sure that a blob is in the store.
    async fn fetch(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        let done = |store: &Store| store.blob_path(digest).exists();
        if done(self.store) {
            return Ok(());
        }
        let path = self.store.partial_path(digest);
        let mut file = loop {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path);
            let file = file.map_err(Error::io(&path))?;
            // Another process fetches the same blob: wait without blocking our own other fetches.
            while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if done(self.store) {
                return Ok(());
            }
            // It may have given up, and taken its file away.
            if is_at(&file, &path) {
                break file;
            }
        };
        let bar = self.bars.add(ProgressBar::new(size));
        let style =
            ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(digest.hex()[..12].to_owned());
        let mut result = Ok(());
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(pause(attempt)).await;
            }
            let begun = file.metadata().map_err(Error::io(&path))?.len() > 0;
            result = self.fetch_rest(digest, size, &mut file, &path, &bar).await;
            match result {
                Err(Error::Registry { .. }) => {}
                // What was there before may have been damaged; what comes now need not be.
                Err(Error::Digest { .. }) if begun => file.set_len(0).map_err(Error::io(&path))?,
                _ => break,
            }
        }
        bar.finish_and_clear();
        if matches!(result, Err(Error::Digest { .. })) {
            let _ = std::fs::remove_file(&path);
        }
        result?;
        let to = self.store.blob_path(digest);
        std::fs::rename(&path, &to).map_err(Error::io(&to))
    }

    /// Continues a blob to its end and verifies it.
    async fn fetch_rest(
        &self,
        digest: &Digest,
        size: u64,
        file: &mut File,
        path: &Path,
        bar: &ProgressBar,
    ) -> Result<(), Error> {
        let io = Error::io(path);
        let mut hash = Sha256::new();
        let mut have = 0;
        let mut buffer = vec![0; 1 << 20];
        io::Seek::rewind(file).map_err(&io)?;
        loop {
            let read = file.read(&mut buffer).map_err(&io)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            have += read as u64;
        }
        if have > size {
            file.set_len(0).map_err(&io)?;
            io::Seek::rewind(file).map_err(&io)?;
            (hash, have) = (Sha256::new(), 0);
        }
        if have < size {
            let descriptor = OciDescriptor {
                digest: digest.to_string(),
                size: i64::try_from(size).unwrap_or(i64::MAX),
                ..OciDescriptor::default()
            };
            let response = match have {
                0 => {
                    let whole = self.client.pull_blob_stream(&self.reference, &descriptor);
                    BlobResponse::Full(whole.await.map_err(|error| self.failed(error))?)
                }
                _ => {
                    let rest = self.client.pull_blob_stream_partial(
                        &self.reference,
                        &descriptor,
                        have,
                        None,
                    );
                    rest.await.map_err(|error| self.failed(error))?
                }
            };
            let mut body = match response {
                BlobResponse::Partial(rest) => rest.stream,
                BlobResponse::Full(whole) => {
                    file.set_len(0).map_err(&io)?;
                    io::Seek::rewind(file).map_err(&io)?;
                    (hash, have) = (Sha256::new(), 0);
                    whole.stream
                }
            };
            bar.set_position(have);
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(|error| self.failed(error))?;
                have += chunk.len() as u64;
                if have > size {
                    return Err(self.failed(format!("{digest} is larger than its manifest says")));
                }
                hash.update(&chunk);
                file.write_all(&chunk).map_err(&io)?;
                bar.inc(chunk.len() as u64);
            }
            if have < size {
                return Err(self.failed(format!("{digest} ended after {have} of {size} bytes")));
            }
        }
        let found: [u8; 32] = hash.finalize().into();
        let found = Digest::from(found);
        if found != *digest {
            return Err(Error::Digest {
                path: self.reference.whole().into(),
                what: "a blob".into(),
                expected: digest.to_string(),
                found: found.to_string(),
            });
        }
        file.sync_data().map_err(&io)
    }

    async fn push(&self, manifest: &Digest) -> Result<(), Error> {
        let auth = self
            .client
            .auth(&self.reference, &self.auth, RegistryOperation::Push);
        auth.await.map_err(|error| self.failed(error))?;
        let blobs = output::blobs(self.store, manifest)?;
        let pushes = blobs
            .iter()
            .map(|(digest, size)| self.push_blob(digest, *size));
        stream::iter(pushes)
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
        let bytes = self.store.read(manifest)?;
        let kind = serde_json::from_slice::<Value>(&bytes).ok();
        let kind = kind.and_then(|value| value["mediaType"].as_str().map(str::to_owned));
        let kind = kind.unwrap_or_else(|| MANIFESTS[0].to_owned());
        let kind = kind.parse().map_err(|error| self.failed(error))?;
        let pushed = self.client.push_manifest_raw(&self.reference, bytes, kind);
        pushed.await.map_err(|error| self.failed(error))?;
        Ok(())
    }

    async fn push_blob(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        let text = digest.to_string();
        let there = self.client.blob_exists(&self.reference, &text).await;
        if matches!(there, Ok(true)) {
            return Ok(());
        }
        let path = self.store.blob_path(digest);
        let file = tokio::fs::File::open(&path)
            .await
            .map_err(Error::io(&path))?;
        let bar = self.bars.add(ProgressBar::new(size));
        let counted = bar.clone();
        let chunks = tokio_util::io::ReaderStream::with_capacity(file, 4 << 20);
        let chunks = chunks.map_err(oci_client::errors::OciDistributionError::from);
        let chunks = chunks.inspect_ok(move |chunk| counted.inc(chunk.len() as u64));
        let pushed = self
            .client
            .push_blob_stream(&self.reference, chunks, &text, Some(size));
        let pushed = pushed.await;
        bar.finish_and_clear();
        pushed.map(drop).map_err(|error| self.failed(error))
    }
}

/// Whether a file still has this path.
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let number = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let there = std::fs::metadata(path).map(number).ok();
    there.is_some() && there == file.metadata().map(number).ok()
}

/// What Docker's configuration knows for a registry.
fn credentials(registry: &str) -> Result<RegistryAuth, Error> {
    use docker_credential::{CredentialRetrievalError as Lack, DockerCredential};
    // The name under which Docker keeps its own registry.
    let server = match registry {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
    match docker_credential::get_credential(server) {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Ok(RegistryAuth::Basic(user, password))
        }
        Ok(DockerCredential::IdentityToken(token)) => Ok(RegistryAuth::Bearer(token)),
        Err(Lack::ConfigNotFound | Lack::NoCredentialConfigured | Lack::ConfigReadError) => {
            Ok(RegistryAuth::Anonymous)
        }
        Err(error) => Err(Error::Credentials {
            registry: registry.to_owned(),
            reason: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_what_the_library_says() {
        let mut taken = 0;
        for name in [
            "redis",
            "redis:7",
            "me/redis:7-sgx",
            "a.b/c",
            "a.b:5000/x/y:Tag_1.2",
            "localhost/x",
            "localhost:5000/bulla-test:box",
            "test.com:tag",
            "docker.io/redis",
            "index.docker.io/redis",
            "registry.example/me/redis:7-sgx",
            "a--b",
            "a__b",
            "x/Y",
            "a:",
            "a:-x",
            ":x",
            "a/",
            "/a",
            "a..b",
            "a_.b",
            "-a",
            "a.b:x/c",
            "a_b.c/d",
            "a:b:c",
            "a/b:c/d",
            "redis@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "é",
            "",
        ] {
            if let Some((registry, repository, tag)) = plain(name) {
                let reference = Reference::with_tag(registry, repository, tag);
                assert_eq!(name.parse(), Ok(reference), "{name}");
                taken += 1;
            }
        }
        assert!(taken >= 9, "{taken}");
    }
}
