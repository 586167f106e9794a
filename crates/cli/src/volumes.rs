//! Protected volumes on this machine: `-v`, and the files behind a container's volumes.
//!
//! A volume is a directory with two logs of encrypted frames. Its anchor lies elsewhere, in bulla's
//! own directory, under a name made of the volume's place; see `bulla_vault::volume`.

use crate::failure::Failure;
use crate::state::{State, hex};
use bulla_abi::config::{Config, Mount, MountKind, VolumeKey};
use bulla_abi::passthrough::MOUNTS_MAX;
use bulla_abi::volume::{KEY_SIZE, VOLUMES_MAX};
use bulla_loader::{PassedDirectory, VolumeFiles};
use sha2::{Digest, Sha256};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The files of a volume; others make the directory somebody else's.
const LOGS: [&str; 2] = ["log.0", "log.1"];
/// The option for a directory that is used as it is.
const PASSED: &str = "--insecure-passthrough";
/// The anchor, where it lies beside them.
const ANCHOR: &str = "anchor";

/// One `-v`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeOption {
    /// The directory that keeps it.
    pub place: PathBuf,
    /// The directory of the container.
    pub target: Vec<u8>,
    pub read_only: bool,
}

/// What `-v` and the option for a key say.
#[derive(Clone, Debug, Default)]
pub struct VolumeOptions {
    pub volumes: Vec<VolumeOption>,
    /// Directories that the container uses as they are.
    pub passed: Vec<VolumeOption>,
    pub key: Option<PathBuf>,
    /// Anchors lie beside the logs: inside a container of another engine nothing else stays.
    pub anchors_beside: bool,
    /// The emulated machine has no fuses yet, as in each new container of another engine: keys that
    /// hang on them are new ones.
    pub machine_is_new: bool,
}

impl VolumeOptions {
    /// Reads the options.
    pub fn parse(given: &[OsString], key: Option<&Path>) -> Result<VolumeOptions, Failure> {
        let volumes: Vec<VolumeOption> = given
            .iter()
            .map(|text| parse("-v", text))
            .collect::<Result<_, _>>()?;
        for (at, volume) in volumes.iter().enumerate() {
            if volumes[..at]
                .iter()
                .any(|other| other.target == volume.target)
            {
                return Err(Failure::new(format!(
                    "-v: {} is given twice",
                    String::from_utf8_lossy(&volume.target)
                )));
            }
        }
        if volumes.len() > VOLUMES_MAX {
            return Err(Failure::new(format!("-v: at most {VOLUMES_MAX} volumes")));
        }
        Ok(VolumeOptions {
            volumes,
            passed: Vec::new(),
            key: key.map(Path::to_owned),
            anchors_beside: false,
            machine_is_new: false,
        })
    }

    /// Adds `--insecure-passthrough`.
    pub fn with_passed(mut self, given: &[OsString]) -> Result<VolumeOptions, Failure> {
        for text in given {
            let passed = parse(PASSED, text)?;
            if !text.as_bytes().starts_with(b"/") && !text.as_bytes().starts_with(b".") {
                return Err(Failure::new(format!(
                    "{PASSED} {:?}: the directory of this machine starts with `/` or `.`",
                    text.to_string_lossy()
                )));
            }
            let other = &passed.target;
            let within =
                |a: &[u8], b: &[u8]| a.strip_prefix(b).is_some_and(|r| r.starts_with(b"/"));
            let all = self.volumes.iter().chain(&self.passed);
            if all.clone().any(|one| one.target == *other) {
                return Err(Failure::new(format!(
                    "{PASSED}: {} is given twice",
                    String::from_utf8_lossy(other)
                )));
            }
            if all.clone().any(|one| within(&one.target, other))
                || self.passed.iter().any(|one| within(other, &one.target))
            {
                return Err(Failure::new(format!(
                    "{PASSED}: nothing can be mounted below {}, a directory of the host; choose \
                     another place",
                    String::from_utf8_lossy(other)
                )));
            }
            self.passed.push(passed);
        }
        if self.passed.len() > MOUNTS_MAX {
            return Err(Failure::new(format!("{PASSED}: at most {MOUNTS_MAX}")));
        }
        Ok(self)
    }

    /// Inside a container of another engine: a volume is kept where the engine mounted its own at
    /// the same path (`podman run -v data:/data`).
    pub fn of_engine(config: &Config) -> VolumeOptions {
        let volumes = volumes_of(config).map(|(mount, _)| VolumeOption {
            place: PathBuf::from(OsString::from_vec(mount.target.clone())),
            target: mount.target.clone(),
            read_only: mount.read_only,
        });
        let passed = passed_of(config).map(|mount| VolumeOption {
            place: PathBuf::from(OsString::from_vec(mount.target.clone())),
            target: mount.target.clone(),
            read_only: mount.read_only,
        });
        VolumeOptions {
            volumes: volumes.collect(),
            passed: passed.collect(),
            key: Some(PathBuf::from("/run/secrets/bulla-volume-key")),
            anchors_beside: true,
            machine_is_new: !State::of_user().emulated_fuses().exists(),
        }
    }

    /// Says why volumes of an earlier machine will not open, if there are any. For emulated machines:
    /// the keys of real ones do not go away.
    pub fn warn_of_new_machine(&self, config: &Config) {
        if !self.machine_is_new {
            return;
        }
        let sealed = volumes_of(config).filter(|(_, key)| *key != VolumeKey::InsecureHost);
        for (mount, _) in sealed {
            let place = self
                .volumes
                .iter()
                .find(|volume| volume.target == mount.target);
            if place.is_some_and(|volume| volume.place.join("log.0").exists()) {
                let target = String::from_utf8_lossy(&mount.target);
                eprintln!(
                    "bulla: warning: the volume at {target} is of an earlier container, whose \
                     emulated machine (with the keys) is gone with it; give all containers that use \
                     it one state, as with `-e BULLA_STATE=/state -v state:/state`, from the first on"
                );
            }
        }
    }

    /// The mounts of a container without a manifest.
    pub fn mounts(&self) -> Vec<Mount> {
        let key = match self.key {
            Some(_) => VolumeKey::InsecureHost,
            None => VolumeKey::Signer,
        };
        let volumes = self.volumes.iter();
        let mounts = volumes.map(|volume| Mount {
            target: volume.target.clone(),
            read_only: volume.read_only,
            kind: MountKind::Volume { key },
        });
        let passed = self.passed.iter().map(|passed| Mount {
            target: passed.target.clone(),
            read_only: passed.read_only,
            kind: MountKind::InsecurePassthrough,
        });
        mounts.chain(passed).collect()
    }

    /// Which directory this machine gives for a target: `-v` does as well, as with Docker.
    fn passed_for(&self, target: &[u8]) -> Option<&VolumeOption> {
        let mut all = self.passed.iter().chain(&self.volumes);
        all.find(|given| given.target == target)
    }

    /// Opens the directories of all passthrough mounts, in the configuration's order.
    pub fn open_directories(&self, config: &Config) -> Result<Vec<PassedDirectory>, Failure> {
        let mut all = Vec::new();
        for mount in passed_of(config) {
            let shown = String::from_utf8_lossy(&mount.target);
            let given = self.passed_for(&mount.target).ok_or_else(|| {
                Failure::new(format!(
                    "the container uses a directory of this machine at {shown}, and none was \
                     given; add {PASSED} DIR:{shown}"
                ))
            })?;
            let read_only = mount.read_only || given.read_only;
            let opened = PassedDirectory::open(&given.place, read_only).map_err(|error| {
                Failure::new(format!(
                    "cannot use the directory {} for {shown}: {error}",
                    given.place.display()
                ))
            })?;
            all.push(opened);
        }
        Ok(all)
    }

    /// Under a manifest the host only says where the volumes are kept.
    pub fn check(&self, config: &Config) -> Result<(), Failure> {
        for passed in &self.passed {
            let shown = String::from_utf8_lossy(&passed.target).into_owned();
            if !passed_of(config).any(|mount| mount.target == passed.target) {
                return Err(Failure::new(format!(
                    "{PASSED}: mounts are locked, and the manifest has none of this kind at \
                     {shown}; leave it out, or build the image again with [[mounts]] target = \
                     \"{shown}\", type = \"insecure_passthrough\""
                )));
            }
        }
        for volume in &self.volumes {
            let shown = String::from_utf8_lossy(&volume.target).into_owned();
            if passed_of(config).any(|mount| mount.target == volume.target) {
                continue;
            }
            let found = volumes_of(config).find(|(mount, _)| mount.target == volume.target);
            let Some((mount, _)) = found else {
                return Err(Failure::new(format!(
                    "-v: mounts are locked, and the manifest has no volume at {shown}; leave it \
                     out, or build the image again with [[mounts]] target = \"{shown}\", type = \
                     \"volume\""
                )));
            };
            if volume.read_only && !mount.read_only {
                return Err(Failure::new(format!(
                    "-v: the manifest mounts {shown} for writing, and that is locked; leave `:ro` \
                     out, or build the image again with read_only = true"
                )));
            }
        }
        Ok(())
    }

    /// Opens the files of all of a container's volumes, in the configuration's order.
    pub fn open(&self, config: &Config, state: &State) -> Result<Vec<VolumeFiles>, Failure> {
        let anchors = (!self.anchors_beside).then(|| state.anchors());
        let mut all = Vec::new();
        for (mount, key) in volumes_of(config) {
            let shown = String::from_utf8_lossy(&mount.target);
            let volume = self
                .volumes
                .iter()
                .find(|volume| volume.target == mount.target);
            let volume = volume.ok_or_else(|| {
                Failure::new(format!(
                    "the container's volume {shown} has no place on this machine; add -v \
                     DIR:{shown}, or -v NAME:{shown}"
                ))
            })?;
            let mut files = open_place(&volume.place, anchors.as_deref())?;
            if key == VolumeKey::InsecureHost {
                files.0[3] = Some(self.open_key(&shown)?);
            }
            all.push(files);
        }
        Ok(all)
    }

    fn open_key(&self, target: &str) -> Result<File, Failure> {
        let path = self.key.as_ref().ok_or_else(|| {
            Failure::new(format!(
                "the volume {target} takes its key from a file; add --insecure-volume-key FILE"
            ))
        })?;
        let failed = |error| Failure::new(format!("cannot read {}: {error}", path.display()));
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() != KEY_SIZE as u64 {
            return Err(Failure::new(format!(
                "{} is not a key of {KEY_SIZE} bytes; make one with `head -c {KEY_SIZE} \
                 /dev/urandom > FILE`",
                path.display()
            )));
        }
        Ok(file)
    }
}

/// The volumes of a configuration.
fn volumes_of(config: &Config) -> impl Iterator<Item = (&Mount, VolumeKey)> {
    config.mounts.iter().filter_map(|mount| match mount.kind {
        MountKind::Volume { key } => Some((mount, key)),
        MountKind::Tmpfs { .. } | MountKind::InsecurePassthrough => None,
    })
}

/// The passthrough mounts of a configuration.
fn passed_of(config: &Config) -> impl Iterator<Item = &Mount> {
    let passed = |mount: &&Mount| mount.kind == MountKind::InsecurePassthrough;
    config.mounts.iter().filter(passed)
}

fn parse(option: &str, text: &OsStr) -> Result<VolumeOption, Failure> {
    let shown = text.to_string_lossy().into_owned();
    let mut parts = text.as_bytes().split(|&byte| byte == b':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return Err(Failure::new(format!(
            "{option} {shown:?} names no place on this machine; write DIR:TARGET or NAME:TARGET"
        )));
    };
    let read_only = match (parts.next(), parts.next()) {
        (None, _) | (Some(b"rw"), None) => false,
        (Some(b"ro"), None) => true,
        _ => {
            return Err(Failure::new(format!(
                "{option} {shown:?}: the only options are `ro` and `rw`"
            )));
        }
    };
    let plain = |part: &[u8]| !matches!(part, b"" | b"." | b"..");
    let target = target.strip_suffix(b"/").unwrap_or(target);
    let parts: Vec<&[u8]> = target.split(|&byte| byte == b'/').collect();
    let system = [&b"proc"[..], b"sys", b"dev"].contains(parts.get(1).unwrap_or(&&b""[..]));
    if parts.len() < 2 || !parts[0].is_empty() || !parts[1..].iter().all(|p| plain(p)) || system {
        return Err(Failure::new(format!(
            "{option} {shown:?}: the target is an absolute path of the container, without `.` and `..`, \
             and not in /proc, /sys or /dev"
        )));
    }
    let place = if source.contains(&b'/') || source.starts_with(b".") {
        PathBuf::from(OsString::from_vec(source.to_vec()))
    } else {
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
        if source.is_empty() || !source.iter().all(good) {
            return Err(Failure::new(format!(
                "{option} {shown:?}: a volume's name has letters, digits, `_`, `.` and `-`; a directory \
                 has a `/`"
            )));
        }
        State::of_user().volumes().join(OsStr::from_bytes(source))
    };
    Ok(VolumeOption {
        place,
        target: target.to_vec(),
        read_only,
    })
}

/// The files of a volume kept at `place`, locked for this process.
fn open_place(place: &Path, anchors: Option<&Path>) -> Result<VolumeFiles, Failure> {
    let shown = place.display();
    let failed = |error: std::io::Error| {
        Failure::new(format!(
            "cannot use {shown} for a protected volume: {error}"
        ))
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(place)
        .map_err(failed)?;
    for entry in fs::read_dir(place).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let ours = LOGS.iter().any(|log| name == *log) || (anchors.is_none() && name == ANCHOR);
        if !ours {
            return Err(Failure::new(format!(
                "{shown} holds {}, which is not of a protected volume: the container would not see \
                 it, since nothing of this machine enters unencrypted; give an empty directory",
                name.display()
            )));
        }
    }
    let open = |path: &Path| {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        options.open(path).map_err(failed)
    };
    let first = open(&place.join(LOGS[0]))?;
    match first.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Failure::new(format!(
                "the volume {shown} is in use by another container; stop that one first"
            )));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let second = open(&place.join(LOGS[1]))?;
    let anchor = match anchors {
        None => place.join(ANCHOR),
        Some(anchors) => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(anchors)
                .map_err(failed)?;
            let real = place.canonicalize().map_err(failed)?;
            anchors.join(hex(&Sha256::digest(real.as_os_str().as_bytes())[..16]))
        }
    };
    let anchor = open(&anchor)?;
    Ok(VolumeFiles([Some(first), Some(second), Some(anchor), None]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<VolumeOption, Failure> {
        parse("-v", OsStr::new(text))
    }

    #[test]
    fn options() {
        let volume = one("/srv/data:/var/lib/db/:ro").unwrap();
        assert_eq!(volume.place, Path::new("/srv/data"));
        assert_eq!(
            (&volume.target[..], volume.read_only),
            (&b"/var/lib/db"[..], true)
        );
        assert!(one("./x:/y").unwrap().place.starts_with("."));
        assert!(one("name:/y").unwrap().place.ends_with("volumes/name"));
        for (text, part) in [
            ("/data", "names no place"),
            ("/a:b", "absolute"),
            ("/a:/", "absolute"),
            ("/a:/b/../c", "absolute"),
            ("/a:/proc/x", "/proc"),
            ("/a:/b:z", "`ro`"),
            ("/a:/b:ro:rw", "`ro`"),
            ("a b:/c", "name"),
            (":/c", "name"),
        ] {
            let error = one(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let twice = ["a:/x", "b:/x/"].map(OsString::from);
        assert!(VolumeOptions::parse(&twice, None).is_err());
    }

    #[test]
    fn other_peoples_directories_are_refused() {
        let dir = std::env::temp_dir().join(format!("bulla-volumes-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("mine.txt"), "x").unwrap();
        let error = open_place(&dir, None).unwrap_err();
        assert!(error.message.contains("mine.txt"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
