//! Where an image comes from, by how it is written on the command line.

use crate::cache::{Cache, Stored};
use crate::digest::Digest;
use crate::error::Error;
use crate::image::{Image, Reference};
use crate::registry::{self, Options};
use crate::store::Store;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An image, as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// An archive or an OCI layout directory.
    File(Reference),
    /// A name: of the store, else of a registry.
    Named(String),
    /// The Docker daemon's.
    Daemon(String),
    /// Podman's.
    Storage(String),
}

impl ImageSource {
    /// Understands files (see [`Reference::parse`]), `docker://NAME`, `docker-daemon:NAME`,
    /// `containers-storage:NAME`, and plain names. What exists as a file is a file.
    pub fn parse(text: &OsStr) -> Result<ImageSource, Error> {
        let file = match Reference::parse(text) {
            Ok(reference) => return Ok(ImageSource::File(reference)),
            Err(error) => error,
        };
        let Some(text) = text.to_str() else {
            return Err(file);
        };
        for (prefix, make) in [
            ("docker://", ImageSource::Named as fn(String) -> ImageSource),
            ("docker-daemon:", ImageSource::Daemon),
            ("containers-storage:", ImageSource::Storage),
        ] {
            if let Some(name) = text.strip_prefix(prefix) {
                return Ok(make(name.to_owned()));
            }
        }
        let like_a_file = text.starts_with(['/', '.'])
            || [".tar", ".tgz", ".gz", ".zst"]
                .iter()
                .any(|end| text.ends_with(end))
            || ["docker-archive:", "oci-archive:", "oci:"]
                .iter()
                .any(|start| text.starts_with(start));
        match like_a_file {
            true => Err(file),
            false => match registry::full_name(text) {
                Ok(_) => Ok(ImageSource::Named(text.to_owned())),
                Err(_) => Err(file),
            },
        }
    }

    /// Opens the image; one that is not on this machine is fetched.
    pub fn open(&self, cache: &Cache, options: &Options) -> Result<Image, Error> {
        match self {
            ImageSource::File(reference) => Image::open(reference, cache.dir()),
            ImageSource::Named(name) => {
                let store = Store::of(cache)?;
                let manifest = registry::image(&store, name, options)?;
                store.open(&manifest)
            }
            ImageSource::Daemon(name) => from_daemon(cache, name),
            ImageSource::Storage(name) => from_storage(cache, name),
        }
    }

    /// The root file system of the image, which is open, built if it is not in the cache.
    pub fn stored(
        &self,
        cache: &Cache,
        image: Image,
        build: crate::cache::Build,
    ) -> Result<Stored, Error> {
        match self {
            ImageSource::File(reference) => cache.image(reference, build),
            _ => cache.opened(image, build),
        }
    }
}

/// A file that is gone when it is dropped; whoever has it open keeps it.
struct Temporary(PathBuf);

impl Temporary {
    fn new(cache: &Cache) -> Temporary {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!(".export-{}-{number}.tar", std::process::id());
        Temporary(cache.dir().join(name))
    }

    fn open(&self, cache: &Cache) -> Result<Image, Error> {
        let reference = Reference {
            path: self.0.clone(),
            tag: None,
        };
        Image::open(&reference, cache.dir())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// `GET /images/NAME/get` of the daemon's own protocol, which answers with a docker-archive.
fn from_daemon(cache: &Cache, name: &str) -> Result<Image, Error> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let socket = match host.strip_prefix("unix://") {
        Some(path) => PathBuf::from(path),
        None if host.is_empty() => PathBuf::from("/var/run/docker.sock"),
        None => {
            return Err(Error::Engine {
                engine: "the Docker daemon",
                name: name.to_owned(),
                reason: format!("DOCKER_HOST is {host}, only unix:// is spoken"),
            });
        }
    };
    let failed = |reason: String| Error::Engine {
        engine: "the Docker daemon",
        name: name.to_owned(),
        reason,
    };
    if registry::full_name(name).is_err() {
        return Err(failed("this is not an image name".into()));
    }
    let mut stream = UnixStream::connect(&socket)
        .map_err(|error| failed(format!("{}: {error}", socket.display())))?;
    let request = format!("GET /images/{name}/get HTTP/1.0\r\nHost: docker\r\n\r\n");
    let io = |error: io::Error| failed(error.to_string());
    stream.write_all(request.as_bytes()).map_err(io)?;
    let mut answer = BufReader::with_capacity(1 << 20, stream);
    let mut status = String::new();
    answer.read_line(&mut status).map_err(io)?;
    let mut header = String::new();
    loop {
        header.clear();
        if answer.read_line(&mut header).map_err(io)? == 0 || header.trim().is_empty() {
            break;
        }
    }
    if status.split_whitespace().nth(1) != Some("200") {
        let mut text = String::new();
        let _ = io::Read::read_to_string(&mut io::Read::take(answer, 500), &mut text);
        return Err(failed(format!("{} {}", status.trim(), text.trim())));
    }
    let temporary = Temporary::new(cache);
    let mut file = File::create(&temporary.0).map_err(Error::io(&temporary.0))?;
    io::copy(&mut answer, &mut file).map_err(io)?;
    temporary.open(cache)
}

/// Podman's and CRI-O's storage has no stable form: their own tools read it.
fn from_storage(cache: &Cache, name: &str) -> Result<Image, Error> {
    let temporary = Temporary::new(cache);
    let archive = format!("docker-archive:{}", temporary.0.display());
    let from = format!("containers-storage:{name}");
    let path = temporary.0.as_os_str();
    let attempts: [(&str, Vec<&OsStr>); 2] = [
        (
            "podman",
            ["save", "--quiet", "--format", "docker-archive", "--output"]
                .map(OsStr::new)
                .into_iter()
                .chain([path, OsStr::new(name)])
                .collect(),
        ),
        (
            "skopeo",
            vec![
                OsStr::new("copy"),
                OsStr::new(&from),
                OsStr::from_bytes(archive.as_bytes()),
            ],
        ),
    ];
    let mut reason = "neither podman nor skopeo is installed".to_owned();
    for (program, arguments) in attempts {
        let run = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output();
        match run {
            Ok(output) if output.status.success() => return temporary.open(cache),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                let last = text.lines().last().unwrap_or("it gave no reason");
                reason = format!("{program}: {last}");
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => reason = format!("{program}: {error}"),
        }
    }
    Err(Error::Engine {
        engine: "containers-storage",
        name: name.to_owned(),
        reason,
    })
}

/// A name for what was read, for messages.
pub fn shown(path: &Path, digest: &Digest) -> String {
    format!("{} ({digest})", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_files() {
        let parse = |text: &str| ImageSource::parse(OsStr::new(text));
        assert_eq!(
            parse("redis:7").unwrap(),
            ImageSource::Named("redis:7".into())
        );
        assert_eq!(
            parse("docker://a.b:5000/x/y@sha256:0000000000000000000000000000000000000000000000000000000000000000").unwrap(),
            ImageSource::Named("a.b:5000/x/y@sha256:0000000000000000000000000000000000000000000000000000000000000000".into())
        );
        assert_eq!(
            parse("docker-daemon:x").unwrap(),
            ImageSource::Daemon("x".into())
        );
        assert_eq!(
            parse("containers-storage:x").unwrap(),
            ImageSource::Storage("x".into())
        );
        for file in ["./x", "/nowhere", "x.tar", "oci:nowhere", "UPPER case"] {
            assert!(matches!(parse(file), Err(Error::NotFound(_))), "{file}");
        }
        assert_eq!(
            registry::full_name("redis").unwrap(),
            "docker.io/library/redis:latest"
        );
    }
}
