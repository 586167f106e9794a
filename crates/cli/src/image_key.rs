//! Keys of encrypted images, from files.

use crate::failure::Failure;
use bulla_abi::config::{Config, Encryption, ImageKey, ImageKeySource};
use bulla_vault::ImageCipher;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of a key.
const SIZE: usize = 32;

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// Reads a key.
pub fn read(path: &Path) -> Result<ImageKey, Failure> {
    let failed = |error| {
        Failure::new(format!(
            "cannot read the key {}: {error}; name the file with the image's key (for a new image \
             make one with `head -c {SIZE} /dev/urandom > FILE`)",
            path.display()
        ))
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(SIZE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let key: [u8; SIZE] = bytes.try_into().map_err(|_| {
        Failure::new(format!(
            "{} is not a key of {SIZE} bytes; make one with `head -c {SIZE} /dev/urandom > FILE`",
            path.display()
        ))
    })?;
    Ok(ImageKey(key))
}

/// What the configuration says of an image encrypted with this key.
pub fn describe(key: &ImageKey) -> Encryption {
    Encryption {
        check: ImageCipher::check(&hash, &key.0),
        key: ImageKeySource::InsecureHost,
    }
}

/// The cipher of a key.
pub fn cipher(key: &ImageKey) -> ImageCipher {
    ImageCipher::new(&hash, &key.0)
}

/// A wrong key is better explained before the enclave is built.
pub fn check(config: &Config, key: Option<&ImageKey>) -> Result<(), Failure> {
    match (&config.encryption, key) {
        (Some(encryption), Some(key)) if describe(key).check != encryption.check => {
            Err(Failure::new(
                "the key is not the one that the image was encrypted with; give the file that was \
                 given to `bulla build --encrypt`",
            ))
        }
        _ => Ok(()),
    }
}
