//! Freshness: a place outside the state that remembers how new the state was.
//!
//! Sealing keeps the host from reading or changing the state, not from putting an old copy back.
//! An anchor holds the newest revision in a place that is not restored together with the state,
//! such as another disk or another machine's file system.

use super::{StoreError, io};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::path::PathBuf;

/// Which state, and how new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub state: String,
    pub revision: u64,
    /// A state that is about to take this one's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

pub trait Anchor: Send + Sync {
    fn read(&self) -> Result<Option<Mark>, StoreError>;
    /// Returns when the mark would survive a crash.
    fn write(&mut self, mark: &Mark) -> Result<(), StoreError>;
    /// For messages.
    fn place(&self) -> PathBuf;
}

/// Refuses a state that is older than its anchor, or another one.
pub fn check(anchor: &dyn Anchor, found: &Mark) -> Result<(), StoreError> {
    match anchor.read()? {
        Some(mark) if mark.next.as_ref() == Some(&found.state) => Ok(()),
        Some(mark) if mark.state != found.state => Err(StoreError::OtherState(anchor.place())),
        Some(mark) if mark.revision > found.revision => Err(StoreError::Replayed {
            found: found.revision,
            anchored: mark.revision,
            anchor: anchor.place(),
        }),
        _ => Ok(()),
    }
}

/// An anchor in a file, preferably on another disk.
pub struct FileAnchor {
    path: PathBuf,
}

impl FileAnchor {
    /// The anchor of a namespace's state beside that of the coordinator's own (`root`).
    pub fn of(path: Option<&std::path::Path>, id: &str) -> Option<Box<dyn Anchor>> {
        let mut path = path?.as_os_str().to_owned();
        if id != "root" {
            path.push(format!(".{id}"));
        }
        Some(Box::new(FileAnchor::new(PathBuf::from(path))))
    }

    pub fn new(path: PathBuf) -> FileAnchor {
        FileAnchor { path }
    }
}

impl Anchor for FileAnchor {
    fn read(&self) -> Result<Option<Mark>, StoreError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(&self.path)(error)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| StoreError::Damaged {
                path: self.path.clone(),
                reason: error.to_string(),
            })
    }

    fn write(&mut self, mark: &Mark) -> Result<(), StoreError> {
        let text = serde_json::to_vec(mark).unwrap_or_default();
        replace_file(&self.path, &text)
    }

    fn place(&self) -> PathBuf {
        self.path.clone()
    }
}

/// Replaces a file's content so that a crash leaves the old or the new one.
pub fn replace_file(path: &std::path::Path, content: &[u8]) -> Result<(), StoreError> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let mut file = fs::File::create(&draft).map_err(io(&draft))?;
    file.write_all(content).map_err(io(&draft))?;
    file.sync_all().map_err(io(&draft))?;
    fs::rename(&draft, path).map_err(io(path))?;
    sync_directory(path)
}

/// Makes a rename in the file's directory durable.
pub fn sync_directory(path: &std::path::Path) -> Result<(), StoreError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => std::path::Path::new("."),
    };
    fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io(directory))
}
