//! Why an enclave could not be loaded or run.

use crate::backend;

/// Errors of [`crate::launch`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the enclave image is damaged: {0}; build it again")]
    Image(String),
    #[error("loading the enclave ({step}): {source}")]
    Load {
        step: &'static str,
        source: backend::Error,
    },
    #[error("the root file system image cannot be mapped: {0}")]
    Rootfs(std::io::Error),
    #[error("no memory for the host's side of the enclave: {0}")]
    Memory(std::io::Error),
    #[error("a host thread cannot be started: {0}; check the limit on processes (ulimit -u)")]
    Thread(std::io::Error),
    #[error("a host thread cannot be prepared for the enclave: {0}")]
    Prepare(backend::Error),
    #[error("the terminal cannot be guarded: {0}; leave -t out")]
    Terminal(std::io::Error),
    #[error("signal handling cannot be set up: {0}")]
    Signals(std::io::Error),
    #[error(
        "thread slot {slot} cannot be entered: EENTER raised exception {vector} \
         (error code {code:#x}, address {address:#x}); the enclave was stopped or lost its memory"
    )]
    Entry {
        slot: u32,
        vector: u16,
        code: u16,
        address: u64,
    },
    #[error("an enclave already runs in this process; start another process")]
    Busy,
}
