//! The measured configuration: everything about a container that its owner decided.
//!
//! Serialised with postcard (deterministic, no_std) into the configuration pages, whose hash the
//! measured bootstrap holds. Changing any field changes MRENCLAVE.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Version of this structure; the runtime refuses any other.
pub const VERSION: u32 = 2;

/// The configuration of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Standard streams are a terminal of the host.
    pub terminal: bool,
    /// /etc/resolv.conf, /etc/hosts: content that replaces the image's.
    pub files: Vec<FixedFile>,
    /// Signal that asks the container to stop (Linux number).
    pub stop_signal: u32,
    /// Options that weaken the container; each is announced at start.
    pub insecure: Vec<Insecure>,
}

/// The verified root file system: an EROFS image with a dm-verity tree (hash format 1, SHA-256).
/// The reader in the enclave takes all of this from here and ignores any superblock of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
