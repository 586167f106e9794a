//! What bulla keeps on a machine: the development key and signatures made with it.
//!
//! ```text
//! STATE/development-key.pem   RSA-3072, mode 0600, made on first use
//! STATE/signatures/HEX        SIGSTRUCTs by MRENCLAVE
//! STATE/containers/           see `containers.rs`
//! STATE/emulated/             the emulated machine's fuses
//! ```
//! STATE is BULLA_STATE, else XDG_STATE_HOME/bulla, else ~/.local/state/bulla. Several processes
//! may use it at once: files appear whole, and the first key to appear stays.

use crate::failure::Failure;
use bulla_image::{SigStruct, SigningKey};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The state directory.
#[derive(Clone, Debug)]
pub struct State {
    dir: PathBuf,
}

impl State {
    /// Finds the directory without touching it.
    pub fn of_user() -> State {
        let absolute = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from);
            path.filter(|path| path.is_absolute())
        };
        let dir = absolute("BULLA_STATE")
            .or_else(|| absolute("XDG_STATE_HOME").map(|dir| dir.join("bulla")))
            .or_else(|| absolute("HOME").map(|dir| dir.join(".local/state/bulla")))
            .unwrap_or_else(|| PathBuf::from("/var/lib/bulla"));
        State { dir }
    }

    /// The key that signs enclaves for this machine alone, made if there is none.
    pub fn development_key(&self) -> Result<SigningKey, Failure> {
        let path = self.key_path();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.mode() & 0o077 != 0 => {
                return Err(Failure::new(format!(
                    "the signing key {0} can be read by others; `chmod 600 {0}`",
                    path.display()
                )));
            }
            Ok(_) => return Ok(SigningKey::read(&path)?),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed("read", &path, error)),
        }
        self.make_directory(&self.dir)?;
        let pem = SigningKey::generate()?.to_pem()?;
        let temporary = self.temporary("development-key");
        write_private(&temporary, pem.as_bytes())?;
        // A link fails where a rename would replace another process's key.
        let linked = fs::hard_link(&temporary, &path);
        let _ = fs::remove_file(&temporary);
        match linked {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("create", &path, error)),
        }
        Ok(SigningKey::read(&path)?)
    }

    /// A signature made earlier with the present key.
    pub fn signature(&self, mrenclave: &[u8; 32]) -> Option<[u8; SigStruct::SIZE]> {
        let path = self.signature_path(mrenclave);
        let made = fs::metadata(&path).ok()?;
        let key = fs::metadata(self.key_path()).ok()?;
        let time = |metadata: &fs::Metadata| (metadata.mtime(), metadata.mtime_nsec());
        if time(&key) > time(&made) {
            return None;
        }
        fs::read(path).ok()?.try_into().ok()
    }

    /// Keeps a signature; a failure costs time at the next start, nothing else.
    pub fn keep_signature(&self, mrenclave: &[u8; 32], signature: &[u8; SigStruct::SIZE]) {
        let path = self.signature_path(mrenclave);
        let directory = self.dir.join("signatures");
        let temporary = self.temporary("signature");
        let _ = self
            .make_directory(&directory)
            .and_then(|()| write_private(&temporary, signature))
            .and_then(|()| {
                fs::rename(&temporary, &path).map_err(|error| failed("create", &path, error))
            });
        let _ = fs::remove_file(temporary);
        forget_oldest(&directory, SIGNATURES_KEPT);
    }

    /// Where the emulated machine keeps what on a real one are fuses.
    pub fn emulated_fuses(&self) -> PathBuf {
        self.dir.join("emulated")
    }

    /// Collateral that was fetched.
    pub fn collateral(&self) -> PathBuf {
        self.dir.join("collateral")
    }

    /// Volumes that were given a name instead of a place.
    pub fn volumes(&self) -> PathBuf {
        self.dir.join("volumes")
    }

    /// Anchors of protected volumes: away from the volumes, so that one put back from an old copy
    /// is noticed.
    pub fn anchors(&self) -> PathBuf {
        self.dir.join("anchors")
    }

    /// What is known of containers.
    pub fn containers(&self) -> PathBuf {
        self.dir.join("containers")
    }

    fn key_path(&self) -> PathBuf {
        self.dir.join("development-key.pem")
    }

    fn signature_path(&self, mrenclave: &[u8; 32]) -> PathBuf {
        self.dir.join("signatures").join(hex(mrenclave))
    }

    fn temporary(&self, name: &str) -> PathBuf {
        self.dir.join(format!(".{name}-{}", std::process::id()))
    }

    fn make_directory(&self, path: &Path) -> Result<(), Failure> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| failed("create", path, error))
    }
}

/// Signatures that are kept: who changes an image all day makes one each time.
const SIGNATURES_KEPT: usize = 256;

/// Removes all files of a directory but the `kept` newest, once there are noticeably more.
fn forget_oldest(directory: &Path, kept: usize) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    let mut files: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            let made = (metadata.mtime(), metadata.mtime_nsec());
            metadata.is_file().then(|| (made, entry.path()))
        })
        .collect();
    if files.len() <= kept + kept / 4 {
        return;
    }
    files.sort();
    for (_, path) in &files[..files.len() - kept] {
        let _ = fs::remove_file(path);
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(|error| failed("write", path, error))
}

fn failed(what: &str, path: &Path, error: std::io::Error) -> Failure {
    Failure::new(format!(
        "cannot {what} {}: {error}; set BULLA_STATE to a directory of yours",
        path.display()
    ))
}

/// Lowercase hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn signatures_are_kept_for_the_present_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let state = State {
            dir: dir.path().join("state"),
        };
        state.keep_signature(&[1; 32], &[7; SigStruct::SIZE]);
        assert_eq!(state.signature(&[1; 32]), None, "no key yet");
        // File times are as coarse as the kernel's tick.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(state.key_path(), "x").unwrap();
        assert_eq!(state.signature(&[1; 32]), None, "an older key's");
        state.keep_signature(&[1; 32], &[7; SigStruct::SIZE]);
        assert_eq!(state.signature(&[1; 32]), Some([7; SigStruct::SIZE]));
        assert_eq!(state.signature(&[2; 32]), None);

        fs::set_permissions(state.key_path(), fs::Permissions::from_mode(0o640)).unwrap();
        let error = state.development_key().unwrap_err();
        assert!(error.message.contains("chmod 600"), "{error}");
    }

    #[test]
    fn the_oldest_signatures_go() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..13u64 {
            let file = fs::File::create(dir.path().join(number.to_string())).unwrap();
            let time = UNIX_EPOCH + Duration::from_secs(number);
            file.set_modified(time).unwrap();
            forget_oldest(dir.path(), 8);
        }
        let left = |number: u64| dir.path().join(number.to_string()).exists();
        assert!((0..3).all(|number| !left(number)));
        assert!((3..13).all(left));
    }
}
