//! Authenticated encryption of what leaves memory, and the key that protects the data key.

use crate::manifest::SealMode;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::{Zeroize, ZeroizeOnDrop};

const NONCE_BYTES: usize = 12;

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("cannot read random bytes: {0}")]
    Random(getrandom::Error),
    #[error("sealed data cannot be opened: it was made with another key, or changed")]
    Open,
    #[error("cannot encrypt")]
    Encrypt,
    #[error("cannot get a sealing key from {path}: {error}")]
    Key {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("the sealing key in {0} has the wrong length")]
    KeyLength(PathBuf),
}

/// A 256-bit key that is wiped after use.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key(pub [u8; 32]);

impl Key {
    pub fn random() -> Result<Key, SealError> {
        let mut key = Key([0; 32]);
        getrandom::fill(&mut key.0).map_err(SealError::Random)?;
        Ok(key)
    }

    /// AES-256-GCM; the nonce comes first.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(SealError::Random)?;
        let payload = Payload {
            msg: plain,
            aad: context,
        };
        let sealed = Aes256Gcm::new(&self.0.into())
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(|_| SealError::Encrypt)?;
        Ok([&nonce[..], &sealed].concat())
    }

    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, sealed) = sealed
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(SealError::Open)?;
        let payload = Payload {
            msg: sealed,
            aad: context,
        };
        Aes256Gcm::new(&self.0.into())
            .decrypt(&Nonce::from(*nonce), payload)
            .map_err(|_| SealError::Open)
    }
}

/// Where keys come from that only this enclave (or its signer's enclaves) can have.
pub trait SealingKeys: Send + Sync {
    fn key(&self, mode: SealMode) -> Result<Key, SealError>;
}

/// The keys that the library OS shows in `/dev/attestation/keys`.
pub struct EnclaveKeys {
    pub directory: PathBuf,
}

impl Default for EnclaveKeys {
    fn default() -> EnclaveKeys {
        EnclaveKeys {
            directory: PathBuf::from("/dev/attestation/keys"),
        }
    }
}

impl EnclaveKeys {
    /// A name that enclaves of one signer have on one CPU, at each start; it tells nothing of the keys.
    pub fn name(&self) -> Result<String, SealError> {
        let key = self.key(SealMode::ProductKey)?;
        let hash = crate::sha256(&[&b"bulla replica name\0"[..], &key.0].concat());
        Ok(format!("cpu-{}", hex::encode(&hash[..8])))
    }
}

impl SealingKeys for EnclaveKeys {
    fn key(&self, mode: SealMode) -> Result<Key, SealError> {
        let path = self.directory.join(match mode {
            SealMode::UniqueKey => "_sgx_mrenclave",
            SealMode::ProductKey | SealMode::Disabled => "_sgx_mrsigner",
        });
        let mut bytes = fs::read(&path).map_err(|error| SealError::Key {
            path: path.clone(),
            error,
        })?;
        if bytes.len() < 16 {
            return Err(SealError::KeyLength(path));
        }
        let mut key = Key([0; 32]);
        // 32 bytes are always within HKDF's range.
        let expanded =
            Hkdf::<Sha256>::new(Some(b"bulla coordinator sealing"), &bytes).expand(b"", &mut key.0);
        bytes.zeroize();
        expanded.map_err(|_| SealError::KeyLength(path))?;
        Ok(key)
    }
}

/// A key in an ordinary file, for running outside an enclave: anyone who reads the disk reads the
/// state.
pub struct InsecureFileKey {
    path: PathBuf,
}

impl InsecureFileKey {
    /// Uses the key in `path`, making one if there is none.
    pub fn open(path: &Path) -> Result<InsecureFileKey, SealError> {
        let failed = |error| SealError::Key {
            path: path.to_owned(),
            error,
        };
        if !path.exists() {
            let key = Key::random()?;
            let draft = path.with_extension("new");
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&draft)
                .map_err(failed)?;
            file.write_all(&key.0).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            fs::rename(&draft, path).map_err(failed)?;
        }
        Ok(InsecureFileKey {
            path: path.to_owned(),
        })
    }
}

impl SealingKeys for InsecureFileKey {
    fn key(&self, _: SealMode) -> Result<Key, SealError> {
        let mut bytes = fs::read(&self.path).map_err(|error| SealError::Key {
            path: self.path.clone(),
            error,
        })?;
        let key = bytes.as_slice().try_into().map(Key);
        bytes.zeroize();
        key.map_err(|_| SealError::KeyLength(self.path.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_and_context_only() {
        let key = Key::random().unwrap();
        let sealed = key.seal(b"context", b"secret").unwrap();
        assert_eq!(key.open(b"context", &sealed).unwrap(), b"secret");
        assert!(key.open(b"other", &sealed).is_err());
        assert!(Key::random().unwrap().open(b"context", &sealed).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(key.open(b"context", &changed).is_err());
        }
        for length in 0..sealed.len() {
            assert!(key.open(b"context", &sealed[..length]).is_err());
        }
    }

    #[test]
    fn a_name_is_that_of_the_signers_key() {
        let dir = tempfile::tempdir().unwrap();
        let keys = EnclaveKeys {
            directory: dir.path().to_owned(),
        };
        assert!(keys.name().is_err());
        let named = |signer: &[u8; 16], enclave: &[u8; 16]| {
            fs::write(dir.path().join("_sgx_mrsigner"), signer).unwrap();
            fs::write(dir.path().join("_sgx_mrenclave"), enclave).unwrap();
            keys.name().unwrap()
        };
        let name = named(&[1; 16], &[2; 16]);
        assert_eq!(name, named(&[1; 16], &[3; 16]), "a new version keeps it");
        assert_ne!(name, named(&[4; 16], &[2; 16]));
    }

    #[test]
    fn a_file_key_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let first = InsecureFileKey::open(&path)
            .unwrap()
            .key(SealMode::UniqueKey)
            .unwrap();
        let again = InsecureFileKey::open(&path)
            .unwrap()
            .key(SealMode::UniqueKey)
            .unwrap();
        assert_eq!(first.0, again.0);
        fs::write(&path, b"short").unwrap();
        assert!(
            InsecureFileKey::open(&path)
                .unwrap()
                .key(SealMode::UniqueKey)
                .is_err()
        );
    }
}
