//! What the loader is given to load: an enclave image in plain terms.

use bulla_abi::layout::LayoutKind;
use bytes::Bytes;

/// An enclave image, ready to be added page by page.
#[derive(Clone)]
pub struct Enclave {
    pub kind: LayoutKind,
    /// The SECS as ECREATE takes it.
    pub secs: [u8; 4096],
    /// Pages in the order in which they are added (the measurement depends on it).
    pub runs: Vec<PageRun>,
    /// The signature structure for EINIT.
    pub sigstruct: [u8; 1808],
    /// Thread slots that are part of the image.
    pub slots: u32,
}

/// Consecutive pages with equal attributes.
#[derive(Clone)]
pub struct PageRun {
    /// Linear address in bytes, a multiple of 4096.
    pub address: u64,
    /// SECINFO.FLAGS.
    pub flags: u64,
    /// Whether all of it is measured with EEXTEND.
    pub measured: bool,
    pub content: Content,
}

/// What the pages of a [`PageRun`] hold; lengths are multiples of 4096.
#[derive(Clone)]
pub enum Content {
    Data(Bytes),
    /// This many bytes of zeros.
    Zero(u64),
}

impl Content {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Content::Data(data) => data.len() as u64,
            Content::Zero(len) => *len,
        }
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
