//! The measured configuration: everything about a container that its owner decided.
//!
//! Serialised with postcard (deterministic, no_std) into the configuration pages, whose hash the
//! measured bootstrap holds. Changing any field changes MRENCLAVE.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Version of this structure; the runtime refuses any other.
pub const VERSION: u32 = 5;

/// Where the agent stands in the containers that have one: the kernel knows it by this path.
pub const AGENT: &str = "/run/bulla/agent";

/// The configuration of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    pub version: u32,
    pub rootfs: Rootfs,
    /// argv of the first process; `argv[0]` is looked up in PATH if it has no slash.
    pub argv: Vec<Vec<u8>>,
    /// Environment, `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// Working directory.
    pub cwd: Vec<u8>,
    /// User as images write it: empty, `name`, `uid`, `name:group` or `uid:gid`; resolved inside
    /// the enclave from the verified /etc/passwd and /etc/group.
    pub user: String,
    pub hostname: String,
    /// Memory that the application may use, in bytes.
    pub memory: u64,
    /// Most threads at once.
    pub threads: u32,
    /// Standard streams are a terminal of the host: the host's word, never measured, see
    /// [`crate::input`].
    #[serde(skip)]
    pub terminal: bool,
    /// /etc/resolv.conf, /etc/hosts: content that replaces the image's.
    pub files: Vec<FixedFile>,
    /// Signal that asks the container to stop (Linux number).
    pub stop_signal: u32,
    /// Options that weaken the container; each is announced at start.
    pub insecure: Vec<Insecure>,
    /// Arguments after `argv` when the host gives none.
    pub default_arguments: Vec<Vec<u8>>,
    /// What the host may add at the start.
    pub host: HostPolicy,
    /// Lines of /etc/hosts after the usual ones.
    pub hosts: Vec<u8>,
    /// What is mounted over the files of the image, in this order.
    pub mounts: Vec<Mount>,
    /// CPU features, as /proc/cpuinfo names them, without which the container does not start.
    pub cpu_features: Vec<String>,
    /// What [`Insecure::Strace`] prints.
    pub strace: Strace,
    /// The files of the image are encrypted under their hash tree.
    pub encryption: Option<Encryption>,
    /// Their key, as the host or the coordinator gave it.
    #[serde(skip)]
    pub image_key: Option<ImageKey>,
}

/// How the files of an image are encrypted: AES-256-XTS, block by block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// A hash of the key: a wrong one is found before anything is read.
    pub check: [u8; 32],
    pub key: ImageKeySource,
}

/// Who releases the key of an encrypted image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageKeySource {
    /// The host has it in a file: for development.
    InsecureHost,
    /// The coordinator gives it to the agent, which gives it to the kernel: nothing of the image can
    /// be seen before.
    Coordinator,
}

/// The key of an encrypted image.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageKey(pub [u8; 32]);

impl core::fmt::Debug for ImageKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("ImageKey(…)")
    }
}

/// What the host may say when it starts the container. Closed by default: whatever is not named
/// here is refused inside the enclave. Patterns are those of [`crate::pattern`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPolicy {
    /// Arguments behind `argv`; each must match one of the patterns. `None`: locked.
    pub arguments: Option<Vec<String>>,
    /// Environment variables that it may set.
    pub environment: Vec<HostVariable>,
    /// It may choose the host name.
    pub hostname: bool,
    /// It supplies /etc/resolv.conf and lines of /etc/hosts: they are untrusted by nature, so they
    /// are checked for their syntax only.
    pub resolver: bool,
    /// It may start further programs in the running container.
    pub exec: bool,
    /// Secrets that it releases, and so knows: for development.
    pub secrets: Vec<HostSecret>,
}

/// A secret of the environment whose value the host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSecret {
    /// The variable.
    pub variable: String,
    /// What the host calls its value.
    pub name: String,
}

/// An environment variable that the host may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostVariable {
    pub name: String,
    /// What the value must match.
    pub pattern: String,
    /// The container does not start without it.
    pub required: bool,
}

/// A file system over a directory of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub target: Vec<u8>,
    pub read_only: bool,
    pub kind: MountKind,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// Memory of the enclave: at most `size` bytes (0: half of the container's), root's `mode`.
    Tmpfs { size: u64, mode: u32 },
    /// A protected volume: files that the host keeps but can neither read nor change. Volumes are
    /// numbered in the order of [`Config::mounts`], see [`crate::volume`].
    Volume { key: VolumeKey },
    /// A directory of the host, which sees and may change all of it. Numbered in the order of
    /// [`Config::mounts`], see [`crate::passthrough`].
    InsecurePassthrough,
}

/// Where the key of a protected volume comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKey {
    /// EGETKEY, bound to the signer and product id: newer versions of the container can open it.
    Signer,
    /// EGETKEY, bound to MRENCLAVE: only this very container can.
    Enclave,
    /// The host gives it, and so knows it: for development.
    InsecureHost,
}

/// Which system calls of which processes are printed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strace {
    /// Names of calls and classes as strace has them (`%file`); all when empty. A `!` in front of
    /// the first means all others.
    pub calls: Vec<String>,
    /// Process ids or names of programs; all when empty.
    pub processes: Vec<String>,
}

/// The verified root file system: an EROFS image with a dm-verity tree (hash format 1, SHA-256).
/// The reader in the enclave takes all of this from here and ignores any superblock of the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Bytes of the EROFS image, a multiple of 4096. The hash tree follows it at this offset in
    /// the file (preceded by nothing: no verity superblock in between).
    pub data_size: u64,
    /// Bytes of the hash tree.
    pub tree_size: u64,
    pub salt: [u8; 32],
    pub root_hash: [u8; 32],
    /// The site lists of the image's programs and libraries, if it has any.
    pub sites: Option<SitesBlob>,
}

impl Rootfs {
    /// Bytes of the whole file; `None` when they contradict each other.
    pub fn file_size(&self) -> Option<u64> {
        let verified = self.data_size.checked_add(self.tree_size)?;
        match &self.sites {
            None => Some(verified),
            Some(sites) if sites.offset >= verified => sites.offset.checked_add(sites.size),
            Some(_) => None,
        }
    }
}

/// Where the [site lists](crate::sites::SiteLists) of an image are: behind the hash tree, in the
/// same file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SitesBlob {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes, at most [`crate::sites::BLOB_MAX`].
    pub size: u64,
    pub sha256: [u8; 32],
}

/// A file whose content the configuration fixes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedFile {
    pub path: Vec<u8>,
    pub content: Vec<u8>,
    pub mode: u32,
}

/// Options that weaken what the enclave protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Insecure {
    /// Without EXINFO the address of a page fault is the host's word; accept it.
    HostFaults,
    /// The enclave is a debug enclave: the host may read it.
    Debug,
    /// System calls are printed to the host's standard error.
    Strace,
    /// The host may start programs in the container.
    Exec,
    /// System calls and options that were refused are listed at the end.
    Report,
    /// The host gives keys of protected volumes, and so can read and change them.
    HostKey,
    /// The host has the key of the image's files.
    HostImageKey,
    /// The host's debugger is told what is mapped where, and waited for.
    Debugger,
    /// The container uses files of the host as they are.
    HostFiles,
    /// The host gives secrets of the environment, and so knows them.
    HostSecrets,
}

impl Config {
    /// The bytes that are measured.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a Config always serialises")
    }

    /// Reads a configuration back; `None` when it is malformed or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Option<Config> {
        let (config, rest) = postcard::take_from_bytes::<Config>(bytes).ok()?;
        (rest.is_empty() && config.version == VERSION).then_some(config)
    }
}
