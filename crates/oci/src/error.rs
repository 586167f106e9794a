//! What can be wrong with an image, each in one line with its remedy.

use std::io;
use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// there is no such file
    #[error(
        "there is no file or directory {0}; save an image first, for example with \
         `skopeo copy docker://IMAGE docker-archive:image.tar`"
    )]
    NotFound(PathBuf),
    /// the file is something else
    #[error(
        "{0} is neither a docker-archive, an OCI archive nor an OCI layout directory; make one \
         with `docker save IMAGE -o FILE` or `skopeo copy docker://IMAGE docker-archive:FILE`"
    )]
    NotAnImage(PathBuf),
    /// a plain directory where an image was expected
    #[error(
        "{0} is a directory without an OCI layout; to run a program from a plain directory use \
         `--rootfs {0} PROGRAM`"
    )]
    PlainDirectory(PathBuf),
    /// it ends too early
    #[error("{path} is truncated ({what}); copy or save it again")]
    Truncated { path: PathBuf, what: String },
    /// a structure is wrong
    #[error("{path} is damaged: {what}; save the image again")]
    Damaged { path: PathBuf, what: String },
    /// a part that must be there is not
    #[error("{path} lacks {what}; save the image again with all its layers")]
    Missing { path: PathBuf, what: String },
    /// content and digest differ
    #[error(
        "{what} in {path} does not have the digest it should ({expected}, found {found}); \
         the image was damaged or changed, fetch it again"
    )]
    Digest {
        path: PathBuf,
        what: String,
        expected: String,
        found: String,
    },
    /// another architecture or system
    #[error("the image is for {found}; bulla needs linux/amd64")]
    Platform { found: String },
    /// the archive holds several images
    #[error("{path} holds several images; name one as {path}:TAG, out of {names}")]
    Several { path: PathBuf, names: String },
    /// no image of that name
    #[error("{path} holds no image {wanted}; there is {names}")]
    NoTag {
        path: PathBuf,
        wanted: String,
        names: String,
    },
    /// a layer entry that no honest tool writes
    #[error("a layer of the image is malicious or damaged: entry {entry} {what}")]
    Entry { entry: String, what: &'static str },
    /// a limit is exceeded
    #[error("the image is too large: {what}; see `bulla run --help` for the limits")]
    TooLarge { what: String },
    /// a feature that is not supported
    #[error("{path}: {what}")]
    Unsupported { path: PathBuf, what: String },
    /// the root file system could not be built
    #[error("cannot build the root file system image: {0}")]
    Rootfs(String),
    /// not a name for an image
    #[error(
        "{name:?} is not an image name ({reason}); write for example redis:7 or host:5000/a/b:1"
    )]
    Name { name: String, reason: String },
    /// pulling was forbidden
    #[error("{0} is not on this machine, and --pull never forbids fetching it; see `bulla images`")]
    NotStored(String),
    /// the registry, or the way to it
    #[error(
        "the registry {registry} did not give or take {name}: {reason}; check the name, \
         `docker login {registry}`, and --plain-http if it has no TLS"
    )]
    Registry {
        registry: String,
        name: String,
        reason: String,
    },
    /// Docker's configuration names credentials that cannot be had
    #[error("no credentials for {registry} can be had: {reason}; try `docker login {registry}`")]
    Credentials { registry: String, reason: String },
    /// another engine's images
    #[error("{engine} did not give the image {name}: {reason}")]
    Engine {
        engine: &'static str,
        name: String,
        reason: String,
    },
    /// where the image should go, there is no room
    #[error("{path}: {source}; free some space there, or write the image elsewhere")]
    NoRoom { path: PathBuf, source: io::Error },
    /// the host said no
    #[error("{path}: {source}{}", remedy(source))]
    Io { path: PathBuf, source: io::Error },
}

/// What to do about a common error of the host.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; change its permissions or run as its owner",
        _ if is_full(error) => "; free some space or point BULLA_CACHE to a larger disk",
        _ => "",
    }
}

fn is_full(error: &io::Error) -> bool {
    let kind = error.kind();
    matches!(
        kind,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl From<bulla_rootfs::Error> for Error {
    fn from(error: bulla_rootfs::Error) -> Error {
        let remedy = match &error {
            // Beside the image there is only what waits in temporary files.
            bulla_rootfs::Error::Io { action, source, .. }
                if is_full(source) && action.contains("temporary") =>
            {
                "; free some space or point TMPDIR to a larger disk"
            }
            bulla_rootfs::Error::Io { source, .. } => remedy(source),
            _ => "",
        };
        Error::Rootfs(format!("{error}{remedy}"))
    }
}

impl Error {
    /// For what is written to `path`, which is not in the cache.
    pub(crate) fn of_output(self, path: &Path) -> Error {
        match self {
            Error::Io { source, .. } if is_full(&source) => Error::NoRoom {
                path: path.to_owned(),
                source,
            },
            other => other,
        }
    }

    /// Turns an I/O error on `path` into ours; an early end of file means a truncated image.
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Error::NotFound(path.to_owned()),
            io::ErrorKind::UnexpectedEof => Error::Truncated {
                path: path.to_owned(),
                what: "the data ends too early".to_owned(),
            },
            io::ErrorKind::InvalidData => Error::Damaged {
                path: path.to_owned(),
                what: source.to_string(),
            },
            _ => Error::Io {
                path: path.to_owned(),
                source,
            },
        }
    }
}
